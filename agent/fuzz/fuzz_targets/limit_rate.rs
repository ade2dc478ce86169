//! Transfer rates as they are typed.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| edgepull::registry::fuzzing::limit_rate(text));
