//! Hosts with registered interpreters.

use super::*;

fn handler(machine: &str, state: &str, flags: &str) -> String {
    format!(
        "{state}\ninterpreter /usr/bin/qemu\nflags: {flags}\noffset 0\nmagic 7f454c46{machine}\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
    )
}

const AMD64_MAGIC: &str = "02010100000000000000000002003e00";
const ARM_MAGIC: &str = "01010100000000000000000002002800";

fn with_handler(probes: &str, text: &str) -> Host {
    let files = [
        ("proc/cpuinfo", ARM64_CPU),
        ("proc/sys/fs/binfmt_misc/any", text),
    ];
    detect(&Facts::from_texts(
        &format!("uname_machine=aarch64\n{probes}"),
        files,
    ))
    .expect("a host")
}

#[test]
fn emulated_platforms_come_last_and_are_marked() {
    let host = with_handler(
        "personality_per_linux32=ok",
        &handler(AMD64_MAGIC, "enabled", "POCF"),
    );
    assert_eq!(runs(&host), "arm64 arm/v8 arm/v7 arm/v6 arm/v5 amd64");
    let last = host.runs.last().expect("one");
    assert_eq!(
        (last.how, last.interpreter.as_deref()),
        (How::Emulated, Some("/usr/bin/qemu"))
    );
    assert_eq!(host.runs_natively().count(), 5);

    assert_eq!(
        runs(&with_handler("", &handler(AMD64_MAGIC, "disabled", "F"))),
        "arm64"
    );
    let host = with_handler("", &handler(AMD64_MAGIC, "enabled", "OC"));
    assert_eq!(runs(&host), "arm64");
    assert!(
        host.warnings.iter().any(|text| text.contains("flag F")),
        "{:?}",
        host.warnings
    );
}

#[test]
fn handlers_that_change_nothing() {
    let amd64 = handler(AMD64_MAGIC, "enabled", "F");
    let files = [
        ("proc/sys/fs/binfmt_misc/any", amd64.as_str()),
        ("proc/sys/fs/binfmt_misc/status", "disabled\n"),
    ];
    let host = detect(&Facts::from_texts("uname_machine=aarch64", files)).expect("a host");
    assert_eq!(runs(&host), "arm64");
    // The kernel itself runs it, though not this userland's containers.
    let host = with_handler(
        "userland=armhf",
        &handler(&AMD64_MAGIC.replace("3e00", "b700"), "enabled", "F"),
    );
    assert_eq!(runs(&host), "arm/v8 arm/v7 arm/v6 arm/v5");
}

#[test]
fn a_handler_for_arm_takes_over_the_32_bit_mode() {
    let text = handler(ARM_MAGIC, "enabled", "F");
    let host = with_handler("personality_per_linux32=ok", &text);
    assert!(
        host.warnings.iter().any(|text| text.contains("takes over")),
        "{:?}",
        host.warnings
    );
    let arm = host.how(&Platform::linux("arm", "v7")).expect("it runs");
    assert_eq!(
        (arm.how, arm.interpreter.as_deref()),
        (How::Compat32, Some("/usr/bin/qemu"))
    );

    let host = with_handler("personality_per_linux32=einval", &text);
    assert_eq!(runs(&host), "arm64 arm/v7 arm/v6 arm/v5");
    assert_eq!(host.runs_natively().count(), 1);
}
