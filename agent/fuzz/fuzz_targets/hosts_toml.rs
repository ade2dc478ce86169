//! containerd's hosts.toml.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| edgepull::registry::fuzzing::hosts_toml(text));
