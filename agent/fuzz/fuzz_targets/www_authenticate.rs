//! Challenges from registries.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| edgepull::registry::fuzzing::www_authenticate(text));
