//! What an image starts, out of any config, and where it is looked for.
#![no_main]

use edgepull::{oci::Verified, proof::Launch};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let config = Verified::of(data.to_vec().into());
    if let Some(launch) = Launch::of(&config) {
        for word in launch.words() {
            for place in launch.places(&word) {
                assert!(place.starts_with(b"/"));
            }
        }
    }
});
