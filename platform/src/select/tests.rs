use proptest::prelude::*;

use super::Verdict::{Foreign, Runnable, Selected, Skipped};
use super::*;
use crate::detect::detect;
use crate::facts::Facts;
use crate::order::{selects_for_engine, selects_without_engine};

fn platform(text: &str) -> Platform {
    Platform::parse(text).expect("a platform")
}

fn offer(text: &str) -> Offer {
    let mut parts = text.split('/');
    let mut next = || parts.next().unwrap_or_default().to_owned();
    let label = Label {
        os: next(),
        architecture: next(),
        variant: next(),
        ..Label::default()
    };
    Offer {
        label: Some(label),
        kind: OfferKind::Image,
        digest: text.to_owned(),
    }
}

fn offers(list: &str) -> Vec<Offer> {
    list.split_ascii_whitespace()
        .map(|text| match text {
            "-" => Offer {
                label: None,
                kind: OfferKind::Image,
                digest: text.to_owned(),
            },
            "index" => Offer {
                label: None,
                kind: OfferKind::Index,
                digest: text.to_owned(),
            },
            "artifact" => Offer {
                label: None,
                kind: OfferKind::Artifact,
                digest: text.to_owned(),
            },
            "other" => Offer {
                label: None,
                kind: OfferKind::Other,
                digest: text.to_owned(),
            },
            "attestation" => Offer {
                kind: OfferKind::Attestation,
                ..offer("unknown/unknown")
            },
            _ => offer(text),
        })
        .collect()
}

fn host(probes: &str) -> Host {
    let flags = "flags : cmov cx8 fpu fxsr mmx syscall sse sse2 cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2 lm\n";
    let cpuinfo = if probes.contains("x86") { flags } else { "" };
    detect(&Facts::from_texts(
        &probes.replace(' ', "\n"),
        [("proc/cpuinfo", cpuinfo)],
    ))
    .expect("a host")
}

/// Graviton4 and the like.
fn without_aarch32() -> Host {
    host("uname_machine=aarch64 personality_per_linux32=einval")
}

fn verdicts(selection: &Selection) -> Vec<Verdict> {
    selection
        .entries
        .iter()
        .map(|entry| entry.verdict)
        .collect()
}

#[test]
fn candidates_are_ranked_and_equals_keep_their_order() {
    let list = offers(
        "linux/amd64 linux/arm/v5 - linux/arm linux/arm64/v8 linux/arm64 windows/arm64 index attestation",
    );
    let selection = select(&list, &Wanted::fallback(&platform("arm64")), None, None);
    assert_eq!(selection.candidates, [4, 5, 3, 1, 2, 7]);
    assert_eq!(
        (selection.selected(), selection.reader_takes),
        (Some(4), Some(4))
    );
    assert!(
        selection
            .entries
            .iter()
            .all(|entry| !entry.reason.is_empty())
    );
    let exact = select(&list, &Wanted::exact(platform("arm/v5")), None, None);
    assert_eq!(exact.candidates, [1, 2, 7]);
}

#[test]
fn what_has_no_platform_is_looked_at_last() {
    let list = offers("artifact other attestation - index");
    let selection = select(&list, &Wanted::exact(platform("amd64")), None, None);
    assert_eq!(selection.candidates, [3, 4]);
    // containerd looks at the first, whatever it is.
    assert_eq!(selection.reader_takes, Some(0));
    assert_eq!(
        verdicts(&selection),
        [Skipped, Skipped, Skipped, Selected, Skipped]
    );
    assert_eq!(
        selection
            .entries
            .iter()
            .map(|e| e.needs_look)
            .collect::<Vec<_>>(),
        [false, false, false, true, true]
    );
}

#[test]
fn attestations_are_never_candidates() {
    for list in ["attestation", "unknown/unknown", "linux/amd64"] {
        let mut list = offers(list);
        list[0].kind = OfferKind::Attestation;
        let selection = select(
            &list,
            &Wanted::list(vec![platform("amd64"), platform("unknown/unknown")]),
            None,
            None,
        );
        assert_eq!(
            (selection.candidates.len(), verdicts(&selection)),
            (0, vec![Skipped])
        );
    }
    let mut list = offers("unknown/unknown");
    list[0].kind = OfferKind::Image;
    assert!(
        select(
            &list,
            &Wanted::exact(platform("unknown/unknown")),
            None,
            None
        )
        .candidates
        .is_empty()
    );
}

#[test]
fn an_artifact_of_another_system_is_taken_only_by_name() {
    let mut list = offers("zephyr/arm/v7 linux/arm/v7 zephyr/arm/v5");
    list[0].kind = OfferKind::Artifact;
    list[2].kind = OfferKind::Artifact;
    assert_eq!(
        select(&list, &Wanted::fallback(&platform("arm/v7")), None, None).candidates,
        [1]
    );
    assert_eq!(
        select(&list, &Wanted::exact(platform("zephyr/armv7")), None, None).candidates,
        [0]
    );
    assert_eq!(
        select(
            &list,
            &Wanted::fallback(&platform("zephyr/armv7")),
            None,
            None
        )
        .candidates,
        [0]
    );
    let selection = select(&list, &Wanted::exact(platform("zephyr/armv7")), None, None);
    assert!(selection.entries[0].reason.contains("artifact"));
}

#[test]
fn verdicts_for_a_host() {
    let list = offers("linux/arm64 linux/arm/v7 linux/amd64 attestation linux/arm64 / linux/");
    let selection = select(
        &list,
        &Wanted::exact(platform("arm64")),
        Some(&without_aarch32()),
        None,
    );
    assert_eq!(
        verdicts(&selection),
        [
            Selected, Foreign, Foreign, Skipped, Runnable, Skipped, Foreign
        ]
    );
    assert!(
        selection.entries[1].reason.contains("no 32-bit Arm mode"),
        "{}",
        selection.entries[1].reason
    );
    assert!(
        selection.entries[4]
            .reason
            .contains("another entry comes before it")
    );
    let capable = host("uname_machine=aarch64 personality_per_linux32=ok");
    let selection = select(
        &list,
        &Wanted::exact(platform("arm64")),
        Some(&capable),
        None,
    );
    assert_eq!(verdicts(&selection)[1], Runnable);
}

#[test]
fn features_count_for_newer_engines_only() {
    let mut list = offers("linux/amd64 linux/amd64 linux/amd64");
    for (at, features) in [(0, vec!["gpu", "simd"]), (2, vec!["gpu"])] {
        let label = list[at].label.as_mut().expect("a label");
        label.os_features = features.into_iter().map(ToOwned::to_owned).collect();
    }
    let plain = Wanted::exact(platform("amd64"));
    let selection = select(&list, &plain, None, None);
    assert_eq!(selection.candidates, [1]);
    assert!(
        selection.entries[0].reason.contains("gpu, simd"),
        "{}",
        selection.entries[0].reason
    );
    assert_eq!(
        select(&list, &plain.ignoring_os_features(), None, None).candidates,
        [0, 1, 2]
    );
    let host = Wanted::fallback(&platform("linux(+gpu+simd)/amd64"));
    assert_eq!(select(&list, &host, None, None).candidates, [0, 2, 1]);
    let host = Wanted::fallback(&platform("linux(+gpu)/amd64"));
    assert_eq!(select(&list, &host, None, None).candidates, [2, 1]);
}

#[test]
fn windows_takes_the_highest_version_that_runs() {
    let mut list = offers("windows/amd64 windows/amd64 windows/amd64 windows/amd64");
    for (entry, version) in
        list.iter_mut()
            .zip(["10.0.17763.1", "10.0.17763.2", "", "10.0.20348.1"])
    {
        entry.label.as_mut().expect("a label").os_version = version.to_owned();
    }
    let wanted = Wanted::fallback(&platform("windows(10.0.17763)/amd64"));
    let selection = select(&list, &wanted, None, None);
    assert_eq!(selection.candidates, [1, 0, 2]);
    assert!(
        selection.entries[3].reason.contains("Windows"),
        "{}",
        selection.entries[3].reason
    );
}

#[test]
fn the_engines_choice_may_be_refused() {
    let host = without_aarch32();
    let list = offers("linux/amd64 linux/arm/v7");
    let engine = platform("arm64");
    let selects = selects_for_engine(&engine, &host);
    assert_eq!(selects.platforms, [platform("arm64")]);
    assert_eq!(selects.removed.len(), 4);
    let selection = select(
        &list,
        &Wanted::selects(&selects),
        Some(&host),
        Some(&engine),
    );
    assert_eq!(selection.candidates, [0; 0]);
    let conflict = selection.engine_conflict.expect("a conflict");
    assert_eq!(
        (conflict.entry, conflict.platform.to_string().as_str()),
        (1, "linux/arm/v7")
    );
    assert!(conflict.reason.contains("no 32-bit Arm mode"));
    let list = offers("linux/arm64 linux/arm/v7");
    assert_eq!(
        select(
            &list,
            &Wanted::selects(&selects),
            Some(&host),
            Some(&engine)
        )
        .engine_conflict,
        None
    );
}

#[test]
fn a_better_variant_is_not_what_the_reader_takes() {
    let list = offers("linux/amd64/v3 linux/amd64");
    let engine = platform("amd64");
    let best = select(
        &list,
        &Wanted::exact(platform("amd64/v3")),
        None,
        Some(&engine),
    );
    assert_eq!((best.selected(), best.reader_takes), (Some(0), Some(1)));
    let selection = select(&list, &Wanted::fallback(&engine), None, Some(&engine));
    assert_eq!(
        (selection.selected(), selection.reader_takes),
        (Some(1), Some(1))
    );
}

#[test]
fn what_is_not_disproved_stays_selected() {
    let unknown = host("uname_machine=aarch64");
    assert_eq!(
        selects_for_engine(&platform("arm64"), &unknown)
            .platforms
            .len(),
        5
    );
    assert_eq!(
        selects_without_engine(&unknown).platforms,
        [platform("arm64")]
    );
    let on64 = host("uname_machine=aarch64 userland=armhf");
    assert!(
        selects_for_engine(&platform("arm/v8"), &on64)
            .removed
            .is_empty()
    );
    assert!(
        selects_for_engine(&platform("arm64"), &on64)
            .removed
            .is_empty()
    );
    let v2 = host("uname_machine=x86_64");
    let selects = selects_for_engine(&platform("amd64/v3"), &v2);
    assert_eq!(
        selects
            .removed
            .iter()
            .map(|removed| removed.platform.to_string())
            .collect::<Vec<_>>(),
        ["linux/amd64/v3"]
    );
    let narrow = host("uname_machine=x86_64 userland=i386");
    assert_eq!(
        selects_for_engine(&platform("amd64/v2"), &narrow)
            .platforms
            .len(),
        3
    );
    let no386 = host("uname_machine=x86_64 cmdline_ia32_emulation=0");
    assert_eq!(
        selects_for_engine(&platform("amd64"), &no386).platforms,
        [platform("amd64")]
    );
    let zero = host("uname_machine=armv6l");
    let selects = selects_for_engine(&platform("arm/v7"), &zero);
    assert_eq!(selects.platforms, [platform("arm/v6"), platform("arm/v5")]);
}

#[test]
fn hints() {
    let arm64 = without_aarch32();
    let capable = host("uname_machine=aarch64 personality_per_linux32=ok");
    let unknown = host("uname_machine=aarch64");
    let v2 = host("uname_machine=x86_64");
    let zero = host("uname_machine=armv6l");
    let on64 = host("uname_machine=aarch64 userland=armhf");
    for (list, wanted, host, nearest, hint) in [
        ("", "amd64", None, None, "the index is empty"),
        (
            "linux/arm/v7",
            "arm64",
            Some(&arm64),
            Some("linux/arm/v7"),
            "no 32-bit Arm mode",
        ),
        (
            "linux/arm/v7",
            "arm64",
            Some(&capable),
            Some("linux/arm/v7"),
            "ask for it by name",
        ),
        (
            "linux/arm/v7",
            "arm64",
            Some(&unknown),
            Some("linux/arm/v7"),
            "nothing shows",
        ),
        (
            "linux/amd64",
            "arm64",
            None,
            None,
            "built for linux/amd64 alone",
        ),
        ("linux/amd64 linux/s390x", "arm64", None, None, "publisher"),
        (
            "linux/arm/armv7",
            "arm/v7",
            None,
            Some("linux/arm/armv7"),
            "unusual spelling of linux/arm/v7",
        ),
        (
            "linux/arm/v7l",
            "arm/v8",
            None,
            Some("linux/arm/v7l"),
            "unusual spelling of linux/arm/v7",
        ),
        (
            "linux/armv7",
            "arm/v7",
            None,
            Some("linux/armv7"),
            "unusual spelling",
        ),
        (
            "linux/amd64/v3",
            "amd64",
            Some(&v2),
            Some("linux/amd64/v3"),
            "needs a CPU of level v3; this one is of level v2",
        ),
        (
            "linux/amd64/v2",
            "amd64",
            Some(&v2),
            Some("linux/amd64/v2"),
            "ask for it by name",
        ),
        (
            "linux/arm64/v9",
            "arm64",
            None,
            Some("linux/arm64/v9"),
            "without a variant",
        ),
        (
            "linux/arm/v7",
            "arm/v6",
            Some(&zero),
            Some("linux/arm/v7"),
            "more than linux/arm/v6 can run",
        ),
        (
            "linux/arm64",
            "arm/v8",
            Some(&on64),
            Some("linux/arm64"),
            "engine are 32-bit",
        ),
        ("windows/amd64", "amd64", None, None, "only Windows"),
        (
            "darwin/amd64 windows/amd64",
            "amd64",
            None,
            None,
            "nothing for linux",
        ),
        ("-", "amd64", None, None, "no entry names a platform"),
    ] {
        let missing = explain_missing(&offers(list), &Wanted::exact(platform(wanted)), host);
        assert_eq!(
            missing.nearest.as_deref(),
            nearest,
            "{list} for {wanted}: {}",
            missing.hint
        );
        assert!(
            missing.hint.contains(hint),
            "{list} for {wanted}: {}",
            missing.hint
        );
    }
}

#[test]
fn hints_of_other_kinds() {
    let mut list = offers("zephyr/arm/v7");
    list[0].kind = OfferKind::Artifact;
    let missing = explain_missing(&list, &Wanted::exact(platform("arm/v7")), None);
    assert_eq!(missing.offered, ["zephyr/arm/v7 (artifact)"]);
    assert!(missing.hint.contains("only artifacts"), "{}", missing.hint);

    let magic = "7f454c4602010100000000000000000002003e00";
    let handler =
        format!("enabled\ninterpreter /usr/bin/qemu-x86_64\nflags: F\noffset 0\nmagic {magic}\n");
    let files = [("proc/sys/fs/binfmt_misc/x", handler.as_str())];
    let host = detect(&Facts::from_texts("uname_machine=aarch64", files)).expect("a host");
    let list = offers("linux/amd64");
    let missing = explain_missing(&list, &Wanted::exact(platform("arm64")), Some(&host));
    assert_eq!(missing.nearest.as_deref(), Some("linux/amd64"));
    assert!(
        missing.hint.contains("/usr/bin/qemu-x86_64"),
        "{}",
        missing.hint
    );
    let selection = select(&list, &Wanted::exact(platform("arm64")), Some(&host), None);
    assert_eq!(verdicts(&selection), [Verdict::Emulated]);

    let selection = select(&list, &Wanted::exact(platform("amd64")), Some(&host), None);
    assert!(
        selection.entries[0]
            .reason
            .contains("under /usr/bin/qemu-x86_64 only")
    );
    let selection = select(
        &list,
        &Wanted::exact(platform("amd64")),
        Some(&without_aarch32()),
        None,
    );
    assert!(
        selection.entries[0]
            .reason
            .contains("but this host's cores are arm64")
    );

    let missing = explain_missing(&offers("linux/amd64"), &Wanted::list(Vec::new()), None);
    assert!(
        missing.hint.contains("nothing is wanted"),
        "{}",
        missing.hint
    );
}

fn any_offer() -> impl Strategy<Value = Offer> {
    let label = (
        "(linux|windows|zephyr|unknown|\\PC{0,4})",
        "(amd64|arm64|arm|386|unknown|\\PC{0,5})",
        "(|v[5-8]|v8\\.[0-9]|\\PC{0,3})",
        "(|10\\.0\\.[0-9]{4,6}|\\PC{0,5})",
        prop::collection::vec("[a-c]{1,2}", 0..3),
    );
    let label = label.prop_map(
        |(os, architecture, variant, os_version, os_features)| Label {
            os,
            architecture,
            variant,
            os_version,
            os_features,
        },
    );
    let kinds = [
        OfferKind::Image,
        OfferKind::Artifact,
        OfferKind::Attestation,
        OfferKind::Index,
        OfferKind::Other,
    ];
    (
        prop::option::of(label),
        prop::sample::select(kinds.to_vec()),
    )
        .prop_map(|(label, kind)| Offer {
            label,
            kind,
            digest: String::new(),
        })
}

proptest! {
    #[test]
    fn any_index_is_judged(list in prop::collection::vec(any_offer(), 0..12), of in "(linux|windows)/(amd64|arm64|arm)", with_host: bool) {
        let host = with_host.then(without_aarch32);
        let wanted = Wanted::fallback(&platform(&of));
        let selection = select(&list, &wanted, host.as_ref(), Some(&platform("arm64")));
        prop_assert_eq!(selection.entries.len(), list.len());
        let selected: Vec<_> = (0..list.len()).filter(|at| selection.entries[*at].verdict == Selected).collect();
        prop_assert_eq!(selected, selection.selected().into_iter().collect::<Vec<_>>());
        let mut distinct = selection.candidates.clone();
        distinct.sort_unstable();
        distinct.dedup();
        prop_assert_eq!(distinct.len(), selection.candidates.len());
        // Ours are containerd's without what can never run, in its order.
        let theirs = rank::candidates(&list, &wanted, rank::Rules::Containerd);
        let kept: Vec<_> = theirs.into_iter().filter(|at| selection.candidates.contains(at)).collect();
        prop_assert_eq!(kept, selection.candidates);
        prop_assert!(!explain_missing(&list, &wanted, host.as_ref()).hint.is_empty());
    }
}
