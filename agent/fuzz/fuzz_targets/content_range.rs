//! Content-Range headers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| edgepull::registry::fuzzing::content_range(text));
