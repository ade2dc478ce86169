use proptest::prelude::*;

use super::*;

mod handlers;

const ARM64_CPU: &str = "processor : 0\nFeatures : fp asimd\nCPU implementer : 0x41\nCPU architecture: 8\nCPU part : 0x";

fn host(probes: &str, cpuinfo: &str) -> Host {
    detect(&Facts::from_texts(
        &probes.replace(' ', "\n"),
        [("proc/cpuinfo", cpuinfo)],
    ))
    .expect("a host")
}

fn runs(host: &Host) -> String {
    let shown: Vec<_> = host
        .runs
        .iter()
        .map(|runs| runs.platform.to_string().replace("linux/", ""))
        .collect();
    shown.join(" ")
}

fn arm64(probes: &str, part: &str) -> Host {
    host(
        &format!("uname_machine=aarch64 {probes}"),
        &format!("{ARM64_CPU}{part}\n"),
    )
}

fn source<'a>(host: &'a Host, fact: &str) -> &'a str {
    host.evidence
        .iter()
        .find(|evidence| evidence.fact == fact)
        .map_or("", |evidence| evidence.source.as_str())
}

#[test]
fn a_32_bit_mode_is_proven_or_unknown() {
    for (probes, part, expected) in [
        ("", "d03", None),
        ("", "d4f", None),
        ("personality_per_linux32=ok", "d03", Some(true)),
        ("personality_per_linux32=einval", "d03", Some(false)),
        ("personality_per_linux32=eperm", "d03", None),
        (
            "personality_per_linux32=ok uname_machine_under_linux32=armv8l",
            "d03",
            Some(true),
        ),
        (
            "personality_per_linux32=ok uname_machine_under_linux32=armv7l",
            "d03",
            Some(true),
        ),
        (
            "personality_per_linux32=ok uname_machine_under_linux32=aarch64",
            "d03",
            Some(false),
        ),
        (
            "personality_per_linux32=ok kernel_config_compat=n",
            "d03",
            Some(false),
        ),
        ("kernel_config_compat=y", "d03", None),
        (
            "personality_per_linux32=ok features_under_linux32=",
            "d03",
            Some(false),
        ),
        ("lscpu_op_modes=64-bit", "d03", Some(false)),
        ("lscpu_op_modes=32-bit,64-bit", "d03", Some(true)),
        ("userland_bits=32", "d03", Some(true)),
    ] {
        let host = arm64(probes, part);
        assert_eq!(host.aarch32_el0, expected, "{probes} {part}");
        if !probes.starts_with("userland") {
            let expected = if expected == Some(true) {
                "arm64 arm/v8 arm/v7 arm/v6 arm/v5"
            } else {
                "arm64"
            };
            assert_eq!(runs(&host), expected, "{probes}");
        }
    }
}

#[test]
fn the_table_of_cores_is_a_hint() {
    let host = arm64("personality_per_linux32=einval", "d03");
    assert!(
        host.warnings
            .iter()
            .any(|text| text.contains("does not offer it")),
        "{:?}",
        host.warnings
    );
    let host = arm64("personality_per_linux32=ok", "d4f");
    assert!(
        host.warnings
            .iter()
            .any(|text| text.contains("documented without it")),
        "{:?}",
        host.warnings
    );
    assert!(source(&arm64("", "d4f"), "aarch32_el0_hint").contains("hint"));
    assert_eq!(source(&arm64("", "fff"), "aarch32_el0_hint"), "");
}

#[test]
fn the_robust_order_of_arm_variants() {
    let board = |name: &str, part: &str, number: &str| {
        format!(
            "processor : 0\nmodel name : {name}\nCPU implementer : 0x41\nCPU architecture: {number}\nCPU part : 0x{part}\n"
        )
    };
    let none = "ARM core";
    for (probes, name, part, number, expected) in [
        (
            "uname_machine=armv6l",
            "ARMv6-compatible processor rev 7 (v6l)",
            "b76",
            "7",
            "v6",
        ),
        (
            "uname_machine=armv7l",
            "ARMv6-compatible processor rev 7 (v6l)",
            "b76",
            "7",
            "v6",
        ),
        ("uname_machine=armv6l", none, "b76", "7", "v6"),
        (
            "uname_machine=armv7l AT_PLATFORM=v6l",
            none,
            "c07",
            "7",
            "v7",
        ),
        (
            "uname_machine=armv7l",
            "ARMv7 Processor rev 4 (v7l)",
            "d03",
            "7",
            "v7",
        ),
        ("uname_machine=armv5tel", none, "926", "5TEJ", "v5"),
    ] {
        assert_eq!(
            host(probes, &board(name, part, number)).variant,
            expected,
            "{probes} {name} {part} {number}"
        );
    }
    let facts =
        |probes: &str, text: &str| detect(&Facts::from_texts(probes, [("proc/cpuinfo", text)]));
    assert_eq!(
        facts(
            "uname_machine=armvl\nAT_PLATFORM=v6l",
            &board(none, "c07", "7")
        )
        .map(|host| host.variant),
        Ok("v6".to_owned())
    );
    // Of an emulator's host nothing is taken.
    let foreign = "model name : QEMU (v6l)\nflags : lm\n";
    assert_eq!(
        facts("uname_machine=armv7l", foreign).map(|host| host.variant),
        Ok("v7".to_owned())
    );
    // Without uname: the part before the number, and nothing at all is an error.
    let text = board(none, "b76", "7");
    let probes = "userland=armhf\nuname_machine=armvl";
    assert_eq!(
        facts(probes, &text).map(|host| host.variant),
        Ok("v6".to_owned())
    );
    assert_eq!(
        facts(probes, &board(none, "c07", "7")).map(|host| host.variant),
        Ok("v7".to_owned())
    );
    assert_eq!(
        facts(probes, &board(none, "c07", "?")).map(|host| host.variant),
        Err(DetectError::NoArmVariant)
    );
}

#[test]
fn a_cpu_that_calls_itself_seven() {
    let text =
        "processor : 0\nmodel name : ARMv6-compatible processor rev 7 (v6l)\nCPU architecture: 7\n";
    let host = host("uname_machine=armv7l", text);
    assert_eq!(
        (host.variant.as_str(), runs(&host).as_str()),
        ("v6", "arm/v6 arm/v5")
    );
    assert_eq!(host.warnings.len(), 2, "{:?}", host.warnings);
}

#[test]
fn kernel_and_userland_are_two_things() {
    let host = arm64("userland=armhf", "d08");
    assert_eq!(
        (
            host.kernel.as_str(),
            host.userland.as_str(),
            host.variant.as_str()
        ),
        ("arm64", "arm", "v8")
    );
    assert_eq!(runs(&host), "arm/v8 arm/v7 arm/v6 arm/v5");
    assert!(host.runs.iter().all(|runs| runs.how == How::Compat32));
    assert_eq!(host.kernel_also_execs, [Platform::linux("arm64", "")]);
    assert!(
        host.warnings
            .iter()
            .any(|text| text.contains("32-bit engine"))
    );

    let host = super::tests::host("uname_machine=x86_64 userland=i386", "flags : lm\n");
    assert_eq!(
        (host.platform.to_string().as_str(), runs(&host).as_str()),
        ("linux/386", "386")
    );
    assert_eq!(host.kernel_also_execs, [Platform::linux("amd64", "")]);

    // A leaked personality.
    let host = super::tests::host("uname_machine=armv8l AT_PLATFORM=aarch64", ARM64_CPU);
    assert_eq!(
        (host.kernel.as_str(), host.userland.as_str()),
        ("arm64", "arm64")
    );
    let host = super::tests::host("uname_machine=armv8l", "");
    assert_eq!(
        (
            host.kernel.as_str(),
            host.userland.as_str(),
            host.variant.as_str()
        ),
        ("arm64", "arm", "v8")
    );
    assert_eq!(host.aarch32_el0, Some(true));
    let host = super::tests::host("uname_machine=armv7l AT_PLATFORM=v8l", ARM64_CPU);
    assert_eq!(
        (
            host.kernel.as_str(),
            host.userland.as_str(),
            host.variant.as_str()
        ),
        ("arm64", "arm", "v8")
    );
}

#[test]
fn a_userland_that_the_cores_cannot_run_is_emulated() {
    for (probes, cpuinfo) in [
        (
            "uname_machine=armv7l",
            "vendor_id : GenuineIntel\nflags : fpu lm\n",
        ),
        ("uname_machine=aarch64 userland=amd64", ARM64_CPU),
        (
            "uname_machine=aarch64 personality_per_linux32=einval userland=armhf AT_PLATFORM=v7l",
            ARM64_CPU,
        ),
    ] {
        let host = host(probes, cpuinfo);
        assert!(host.emulated, "{probes}");
        assert!(
            host.warnings.iter().any(|text| text.contains("emulator")),
            "{probes}"
        );
    }
}

#[test]
fn what_is_not_recorded_is_null() {
    let host = host("uname_machine=x86_64", "");
    assert_eq!(
        (
            host.page_size,
            host.cpu_level.as_deref(),
            host.machine.as_deref()
        ),
        (None, None, None)
    );
    assert_eq!(
        (host.variant.as_str(), runs(&host).as_str()),
        ("", "amd64 386")
    );
    assert_eq!(source(&host, "os"), "assumed: not recorded");
    assert_eq!(arm64("AT_PAGESZ=65536", "d08").page_size, Some(65536));
    for size in [
        "0",
        "4095",
        "6000",
        "-1",
        "x",
        "1",
        "2048",
        "4194304",
        "18446744073709551615",
    ] {
        assert_eq!(
            arm64(&format!("AT_PAGESZ={size}"), "d08").page_size,
            None,
            "{size}"
        );
    }
}

#[test]
fn x86_programs_of_32_bits_are_assumed_unless_disproved() {
    for (probes, expected, list) in [
        ("", None, "amd64 386"),
        ("cmdline_ia32_emulation=0", Some(false), "amd64"),
        ("cmdline_ia32_emulation=1", Some(true), "amd64 386"),
        (
            "cmdline_ia32_emulation=1 kernel_config_ia32_emulation=n",
            Some(false),
            "amd64",
        ),
        ("kernel_config_ia32_emulation=y", Some(true), "amd64 386"),
        (
            "kernel_config_ia32_emulation=y kernel_config_ia32_emulation_default_disabled=y",
            Some(false),
            "amd64",
        ),
    ] {
        let host = host(&format!("uname_machine=x86_64 {probes}"), "");
        assert_eq!(
            (host.ia32, runs(&host).as_str()),
            (expected, list),
            "{probes}"
        );
    }
    let files = [("proc/sys/abi/vsyscall32", "1\n")];
    let compiled_in = detect(&Facts::from_texts("uname_machine=x86_64", files)).expect("a host");
    assert_eq!(compiled_in.ia32, None);
    assert!(source(&compiled_in, "runs_386").starts_with("compiled in"));
    let assumed = host("uname_machine=x86_64", "");
    assert!(
        assumed
            .evidence
            .iter()
            .any(|evidence| evidence.fact == "runs_386" && evidence.value == "assumed")
    );
}

#[test]
fn other_architectures() {
    for (machine, expected) in [
        ("riscv64", "linux/riscv64"),
        ("s390x", "linux/s390x"),
        ("ppc64le", "linux/ppc64le"),
        ("loongarch64", "linux/loong64"),
        ("i686", "linux/386"),
    ] {
        let host = host(&format!("uname_machine={machine}"), "");
        assert_eq!(
            (
                host.platform.to_string().as_str(),
                runs(&host).replace(' ', "")
            ),
            (expected, expected.replace("linux/", ""))
        );
        assert_eq!(host.aarch32_el0, Some(false), "{machine}");
    }
    let fails = |probes: &str| detect(&Facts::from_texts(probes, [])).expect_err("no host");
    assert_eq!(
        fails("uname_machine=vax"),
        DetectError::UnknownMachine("vax".to_owned())
    );
    assert_eq!(
        fails("uname_sysname=FreeBSD"),
        DetectError::UnsupportedSystem("FreeBSD".to_owned())
    );
    assert_eq!(fails("uname_sysname=Linux"), DetectError::NoArchitecture);
}

#[test]
fn names_of_machines() {
    let named = |files: &[(&str, &str)]| {
        detect(&Facts::from_texts(
            "uname_machine=x86_64",
            files.iter().copied(),
        ))
        .expect("a host")
        .machine
    };
    assert_eq!(
        named(&[("proc/device-tree/model", "Radxa ROCK 5B\0")]).as_deref(),
        Some("Radxa ROCK 5B")
    );
    let dmi = "sys/class/dmi/id/product_name";
    assert_eq!(named(&[(dmi, "NUC11\n")]).as_deref(), Some("NUC11"));
    assert_eq!(named(&[(dmi, "To Be Filled By O.E.M.\n")]), None);
    assert_eq!(named(&[("proc/cpuinfo", "model : 79\nflags : lm\n")]), None);
    assert_eq!(
        named(&[("proc/cpuinfo", "Model : Raspberry Pi 4\nflags : lm")]).as_deref(),
        Some("Raspberry Pi 4")
    );
}

#[test]
fn some_cpus_only() {
    let files = [
        ("proc/cpuinfo", ARM64_CPU),
        ("sys/devices/system/cpu/aarch32_el0", "0-2,5-6\n"),
    ];
    let host = detect(&Facts::from_texts("uname_machine=aarch64", files)).expect("a host");
    assert_eq!(
        (host.aarch32_el0, host.aarch32_cpus.as_deref()),
        (Some(true), Some("0-2,5-6"))
    );
    assert!(host.warnings.iter().any(|text| text.contains("0-2,5-6")));
}

#[test]
fn the_document() {
    let document = serde_json::to_value(arm64("AT_PAGESZ=4096", "d08")).expect("a document");
    let keys: Vec<_> = document
        .as_object()
        .expect("an object")
        .keys()
        .map(String::as_str)
        .collect();
    let mut expected = [
        "schema",
        "platform",
        "os",
        "architecture",
        "variant",
        "userland",
        "kernel",
        "machine",
        "page_size",
        "aarch32_el0",
        "cpu_level",
        "runs",
        "evidence",
        "warnings",
    ];
    expected.sort_unstable();
    assert_eq!(keys, expected);
    assert_eq!(
        document.get("schema").and_then(|s| s.as_str()),
        Some("edgepull.host/1")
    );
    let first = document.pointer("/runs/0").map(ToString::to_string);
    assert_eq!(
        first.as_deref(),
        Some(r#"{"how":"native","interpreter":null,"platform":"linux/arm64"}"#)
    );
}

#[test]
fn this_host() {
    let host = detect(&Facts::live().expect("facts")).expect("a host");
    assert_eq!(host.os, "linux");
    assert!(!host.runs.is_empty());
    assert!(host.page_size.is_some());
}

#[test]
fn a_recording_of_this_host_is_this_host() {
    let facts = Facts::live().expect("facts");
    let dir = tempfile::tempdir().expect("a directory");
    facts.record(dir.path()).expect("written");
    let recorded = Facts::recorded(dir.path()).expect("read");
    assert_eq!(detect(&recorded), detect(&facts));
}

/// Facts of a plausible kind: known keys, odd values.
fn any_probes() -> impl Strategy<Value = String> {
    let key = "(uname_machine|uname_sysname|AT_PLATFORM|AT_PAGESZ|userland|userland_bits|personality_per_linux32|emulator|uname_machine_under_linux32)";
    let value = "(aarch64|armv[5-8]l|armv|x86_64|i686|v[5-8]l|v|32|ok|einval|armhf|amd64|Linux|4096|\\PC{0,6})";
    prop::collection::vec((key, value), 0..6).prop_map(|pairs| {
        pairs
            .iter()
            .map(|(key, value)| format!("{key}={value}\n"))
            .collect::<Vec<_>>()
            .concat()
    })
}

fn any_cpuinfo() -> impl Strategy<Value = String> {
    let key = "(model name|Processor|processor|Features|CPU architecture|CPU part|CPU implementer|flags|isa|vendor_id|Model|cpu|revision|\\PC{0,4})";
    let value = "(0x[0-9a-f]{1,9}|[0-9]{1,3}|\\(v[0-9]{0,3}l\\)|\\(v|fp asimd|lm fpu|IBM/S390|rv64|\\PC{0,8})";
    prop::collection::vec((key, value), 0..10).prop_map(|pairs| {
        pairs
            .iter()
            .map(|(key, value)| format!("{key}\t: {value}\n"))
            .collect::<Vec<_>>()
            .concat()
    })
}

proptest! {
    #[test]
    fn any_facts_are_judged_without_panic(probes in any_probes(), cpuinfo in any_cpuinfo(), handler in "(enabled\n)?(interpreter \\PC{0,5}\n)?(flags: [A-Z]{0,3}\n)?(offset [0-9]{1,20}\n)?(magic [0-9a-f]{0,50}\n)?(mask [0-9a-f]{0,50}\n)?") {
        let files = [("proc/cpuinfo", cpuinfo.as_str()), ("proc/sys/fs/binfmt_misc/x", handler.as_str())];
        if let Ok(host) = detect(&Facts::from_texts(&probes, files)) {
            // Whatever else, the first thing that runs is the platform itself, and emulation is last.
            prop_assert_eq!(host.runs.first().map(|runs| &runs.platform), Some(&host.platform));
            let emulated: Vec<_> = host.runs.iter().map(|runs| runs.how == How::Emulated).collect();
            prop_assert!(emulated.is_sorted());
            prop_assert!(host.runs.iter().all(|runs| runs.how == How::Emulated || host.disproves(&runs.platform).is_none()));
        }
    }

    #[test]
    fn any_text_is_judged_without_panic(probes in "\\PC{0,60}", cpuinfo in "\\PC{0,80}") {
        let _ = detect(&Facts::from_texts(&probes, [("proc/cpuinfo", cpuinfo.as_str())]));
    }
}
