//! Files of images.d: TOML, and lists of references.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| edgepull::desired::fuzz(text));
