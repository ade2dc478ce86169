//! Rate limits and Retry-After in their various forms, one header value a line.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| edgepull::registry::fuzzing::rate_limit(text));
