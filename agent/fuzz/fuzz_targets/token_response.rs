//! Answers of token servers, and the bodies of refusals.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    edgepull::registry::fuzzing::token_response(data);
    edgepull::registry::fuzzing::error_body(data);
});
