use edgepull_platform::{Platform, launch::testing::Files};

use super::super::{
    judge::prove,
    launch::Launch,
    testing::{AMD64, ARM, ARM64, I386, host, program},
};
use super::*;
use crate::oci::Verified;

fn platform(text: &str) -> Platform {
    Platform::parse(text).expect("a platform")
}

fn proof(bytes: &[u8], host: &Host) -> Proof {
    let mut files = Files::default().file("app", true, bytes);
    let config = bytes::Bytes::from_static(br#"{"config":{"Cmd":["/app"]}}"#);
    let launch = Launch::of(&Verified::of(config)).expect("read");
    prove(&launch, &mut files, &[Digest::of(b"layer")], host)
}

/// `label`, the config's label where it differs, the bytes.
struct Case<'a> {
    host: &'a str,
    label: &'a str,
    config: Option<&'a str>,
    bytes: Vec<u8>,
    probation: bool,
    emulation: Emulation,
}

impl Case<'_> {
    fn judge(&self, policy: Policy) -> Result<Judged> {
        let host = host(self.host);
        let label = platform(self.label);
        let config = self.config.map(platform);
        let manifest = Digest::of(b"manifest");
        let wanted = [host.platform.clone()];
        let missing = Error::new(Kind::PlatformMissing, "nothing fits");
        policy.judge(
            &proof(&self.bytes, &host),
            &Promise {
                label: Some(&label),
                config: config.as_ref().or(Some(&label)),
                manifest: &manifest,
                host: &host,
                emulation: self.emulation,
                probation: self.probation.then_some((&missing, &wanted[..])),
            },
        )
    }

    /// By `off`, `elf` and `strict`: the kind of failure, `told` or `ready`.
    fn by_policy(&self) -> [String; 3] {
        [Policy::Off, Policy::Elf, Policy::Strict].map(|policy| match self.judge(policy) {
            Ok(judged) if judged.warnings.is_empty() => "ready".to_owned(),
            Ok(_) => "told".to_owned(),
            Err(error) => error.kind().name().to_owned(),
        })
    }
}

fn on_amd64(label: &str, bytes: Vec<u8>) -> Case<'_> {
    Case {
        host: "x86-v3",
        label,
        config: None,
        bytes,
        probation: false,
        emulation: Emulation::Never,
    }
}

#[test]
fn the_table_of_labels_and_bytes() {
    let amd64 = || program(AMD64, None);
    let arm64 = || program(ARM64, None);
    let probation = |label, bytes| Case {
        probation: true,
        ..on_amd64(label, bytes)
    };
    let wrong_config = |bytes| Case {
        config: Some("linux/arm64"),
        ..on_amd64("linux/amd64", bytes)
    };
    let unknown = || b"#!/bin/nowhere\n".to_vec();
    for (name, case, wanted) in [
        (
            "fits, fit",
            on_amd64("linux/amd64", amd64()),
            ["ready", "ready", "ready"],
        ),
        (
            "fits, another machine",
            on_amd64("linux/amd64", arm64()),
            ["ready", "mislabelled", "mislabelled"],
        ),
        (
            "fits, empty",
            on_amd64("linux/amd64", Vec::new()),
            ["ready", "not_runnable", "not_runnable"],
        ),
        (
            "fits, no interpreter",
            on_amd64("linux/amd64", unknown()),
            ["ready", "not_runnable", "not_runnable"],
        ),
        (
            "fits, 32 bits of the same cores",
            on_amd64("linux/amd64", program(I386, None)),
            ["ready", "told", "mislabelled"],
        ),
        (
            "does not fit, fit",
            probation("linux/arm64", amd64()),
            ["platform_missing", "told", "mislabelled"],
        ),
        (
            "does not fit, do not fit",
            probation("linux/arm64", arm64()),
            ["platform_missing", "platform_missing", "platform_missing"],
        ),
        (
            "does not fit, unknown",
            probation("linux/arm64", b"\0asm\x01\0\0\0".to_vec()),
            ["platform_missing", "platform_missing", "platform_missing"],
        ),
        (
            "config wrong, fit",
            wrong_config(amd64()),
            ["ready", "told", "mislabelled"],
        ),
        (
            "unknown",
            on_amd64("linux/amd64", b"\0asm\x01\0\0\0".to_vec()),
            ["ready", "told", "told"],
        ),
        // Asked for by name: this host is no judge of whether it runs.
        (
            "foreign, right",
            on_amd64("linux/arm64", arm64()),
            ["ready", "ready", "ready"],
        ),
        (
            "foreign, empty",
            on_amd64("linux/arm64", Vec::new()),
            ["ready", "not_runnable", "not_runnable"],
        ),
        (
            "foreign, wrong",
            on_amd64("linux/arm64", amd64()),
            ["ready", "mislabelled", "mislabelled"],
        ),
    ] {
        assert_eq!(case.by_policy(), wanted, "{name}");
    }
}

#[test]
fn a_host_without_32_bit_mode_refuses_what_its_label_hides() {
    let case = Case {
        host: "graviton4",
        ..on_amd64("linux/arm64", program(ARM, None))
    };
    assert_eq!(case.by_policy()[1], "mislabelled");
    let pi = Case {
        host: "pi4-armhf-on-64",
        ..on_amd64("linux/arm64", program(ARM, None))
    };
    assert_ne!(pi.by_policy()[1], "mislabelled");
}

#[test]
fn evidence_names_layer_path_and_both_platforms() {
    let error = on_amd64("linux/amd64", program(ARM64, None))
        .judge(Policy::Elf)
        .expect_err("mislabelled");
    assert_eq!(error.kind(), Kind::Mislabelled);
    let causes = error.causes().join("; ");
    for part in ["/app", Digest::of(b"layer").as_str(), "arm64"] {
        assert!(causes.contains(part), "{causes}");
    }
    assert!(
        causes.contains(Digest::of(b"manifest").as_str()),
        "{causes}"
    );
    assert_eq!(error.wanted(), ["linux/amd64"]);
}

#[test]
fn an_emulator_counts_only_where_it_may() {
    let host = host("x86-v3");
    let found = Proof {
        verdict: Verdict::Emulated {
            handler: "qemu-aarch64".to_owned(),
        },
        ..proof(&program(ARM64, None), &host)
    };
    let label = platform("linux/amd64");
    let manifest = Digest::of(b"manifest");
    let promise = |emulation| Promise {
        label: Some(&label),
        config: None,
        manifest: &manifest,
        host: &host,
        emulation,
        probation: None,
    };
    let kind = |emulation| {
        let judged = Policy::Elf.judge(&found, &promise(emulation));
        judged.map_or_else(|error| error.kind().name(), |_| "told")
    };
    assert_eq!(kind(Emulation::Never), "mislabelled");
    assert_eq!(kind(Emulation::Allow), "told");
}
