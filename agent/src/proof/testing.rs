//! What the tests of this module share: hosts that were recorded, and small programs.

use std::path::Path;

use edgepull_platform::{Facts, Host, detect};

/// `x86-v3`, `pi4-armhf-on-64`, `pi5-16k`, `pi-zero` or `graviton4`.
pub(super) fn host(name: &str) -> Host {
    let hosts = Path::new(env!("CARGO_MANIFEST_DIR")).join("../platform/tests/data/hosts");
    detect(&Facts::recorded(&hosts.join(name)).expect("recorded")).expect("a host")
}

pub(super) use edgepull_platform::launch::testing::{AMD64, ARM, ARM64, I386, program};
