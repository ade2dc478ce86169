//! Credential files.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| edgepull::registry::fuzzing::docker_config(data));
