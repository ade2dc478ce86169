//! The package on a machine with systemd: from installing to purging, and everything that goes
//! wrong between.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use edgepull_tests::containerd::Version;
use edgepull_tests::sysbox::SysBox;

#[test]
fn the_box_boots_and_loses_its_power() {
    let mut machine = SysBox::start(Version::V1_7);
    assert_eq!(
        machine.property("containerd.service", "ActiveState"),
        "active"
    );
    machine.ctr("default", &["version"]).ok();
    machine.write("/etc/kept", "kept");
    machine.pull_the_plug();
    machine.boot();
    assert!(machine.has("/etc/kept"));
    machine.ctr("default", &["version"]).ok();
}
