//! Files against hosts.

use super::build::note;
use super::*;

pub(super) const GLIBC: &str = "/lib64/ld-linux-x86-64.so.2";
const MUSL: &str = "/lib/ld-musl-x86_64.so.1";

/// A verdict's name, with the kind of refusal.
pub(super) fn told(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Emulated { handler } => format!("emulated {handler}"),
        Verdict::Refused { why, .. } => format!("refused {why:?}"),
        other => other.name().to_owned(),
    }
}

/// What it is, the file, and hosts with verdicts.
type Row<'a> = (&'a str, Program, &'a [(&'a str, &'a str)]);

fn check(rows: &[Row<'_>]) {
    for (name, program, hosts) in rows {
        let needs = read(&program.write());
        for (on, wanted) in *hosts {
            let verdict = judge(&needs, &host(on));
            assert_eq!(&told(&verdict), wanted, "{name} on {on}: {verdict}");
        }
    }
}

#[test]
fn machines_and_modes() {
    check(&[
        (
            "amd64",
            Program::amd64(),
            &[
                ("amd64 v1", "native"),
                ("386 on amd64", "unknown"),
                ("arm64", "refused Machine"),
                ("arm v7", "refused Machine"),
                ("s390x", "refused Machine"),
                ("emulated arm", "unknown"),
            ],
        ),
        (
            "386",
            Program::i386(),
            &[
                ("amd64 v1", "compat32"),
                ("amd64 v2", "unknown"),
                ("amd64 v3", "refused Mode"),
                ("386 on amd64", "compat32"),
                ("arm64", "refused Machine"),
            ],
        ),
        (
            "arm64",
            Program::arm64(),
            &[
                ("arm64", "native"),
                ("arm64 16k", "native"),
                ("arm64 64k", "native"),
                ("arm64 unobserved", "native"),
                ("arm on arm64", "unknown"),
                ("amd64 v3", "refused Machine"),
                ("arm v7", "refused Machine"),
            ],
        ),
        (
            "arm",
            Program::arm(),
            &[
                ("arm64", "compat32"),
                ("arm64 16k", "compat32"),
                ("arm64 without 32", "refused Mode"),
                ("arm64 unobserved", "unknown"),
                ("arm on arm64", "compat32"),
                ("arm v7", "native"),
                ("amd64 v1", "refused Machine"),
                (
                    "emulated arm",
                    "emulated the emulator that this userland runs under",
                ),
            ],
        ),
        (
            "s390x",
            Program::other(22, true, false),
            &[("s390x", "native"), ("amd64 v1", "refused Machine")],
        ),
        (
            "s390",
            Program::other(22, false, false),
            &[("s390x", "unknown"), ("amd64 v1", "refused Machine")],
        ),
        (
            "riscv64",
            Program::other(243, true, true),
            &[("riscv64", "native"), ("arm64", "refused Machine")],
        ),
        (
            "riscv32",
            Program::other(243, false, true),
            &[("riscv64", "unknown"), ("arm64", "refused Machine")],
        ),
        (
            "ppc64",
            Program::other(21, true, false),
            &[("ppc64le", "refused Machine")],
        ),
        (
            "x32",
            Program::other(62, false, true),
            &[("amd64 v1", "unknown"), ("arm64", "refused Machine")],
        ),
        (
            "big-endian arm64",
            Program::other(183, true, false),
            &[("arm64", "refused Machine")],
        ),
        (
            "another machine",
            Program::other(999, true, true),
            &[("amd64 v1", "refused Machine")],
        ),
        (
            "a swapped header",
            Program::other(62 << 8, true, true),
            &[("amd64 v1", "unknown")],
        ),
        (
            "no program",
            Program::amd64().kind(1),
            &[("amd64 v1", "refused Format")],
        ),
        (
            "a core dump",
            Program::amd64().kind(4),
            &[("amd64 v1", "refused Format")],
        ),
        (
            "a position-independent program",
            Program::amd64().kind(3),
            &[("amd64 v1", "native")],
        ),
    ]);
}

#[test]
fn pages() {
    check(&[
        (
            "for 4 KiB",
            Program::arm64().only_4k(),
            &[
                ("arm64", "native"),
                ("arm64 16k", "refused Pages"),
                ("arm64 64k", "refused Pages"),
                ("arm64 unobserved", "unknown"),
            ],
        ),
        (
            "for 4 KiB, 32-bit",
            Program::arm().only_4k(),
            &[
                ("arm64", "compat32"),
                ("arm64 16k", "refused Pages"),
                ("arm v7", "native"),
            ],
        ),
        (
            "for 4 KiB, x86",
            Program::amd64().only_4k(),
            &[("amd64 v1", "native")],
        ),
        (
            "for no page",
            Program::amd64().loads(&[(0x10, 0x40_0000, 0x800, 0x800, 5)]),
            &[("amd64 v1", "refused Pages")],
        ),
        (
            "sharing a page of 16 KiB",
            Program::arm64().loads(&[
                (0, 0x40_0000, 0x800, 0x800, 5),
                (0x1000, 0x40_1000, 0x100, 0x100, 6),
            ]),
            &[("arm64", "native"), ("arm64 16k", "unknown")],
        ),
    ]);
    let verdict = judge(
        &read(&Program::arm64().only_4k().write()),
        &host("arm64 16k"),
    );
    assert_eq!(
        verdict.to_string(),
        "refused: it is laid out for pages of at most 4 KiB, and this kernel has pages of 16 KiB: \
         it would crash at start; it must be linked with -z max-page-size=16384, or the kernel be one with smaller pages"
    );
}

#[test]
fn levels_of_x86() {
    let glibc = Program::amd64().loader(GLIBC);
    check(&[
        (
            "v2",
            glibc.clone().needs_isa(3),
            &[
                ("amd64 v1", "refused Level"),
                ("amd64 v2", "native"),
                ("amd64 v3", "native"),
                ("amd64 of no level", "unknown"),
            ],
        ),
        (
            "v3",
            glibc.clone().needs_isa(4),
            &[("amd64 v2", "refused Level"), ("amd64 v3", "native")],
        ),
        (
            "v1",
            glibc.needs_isa(1),
            &[("amd64 v1", "native"), ("amd64 of no level", "native")],
        ),
        (
            "v3, musl",
            Program::amd64().loader(MUSL).needs_isa(4),
            &[("amd64 v1", "unknown"), ("amd64 v3", "native")],
        ),
        (
            "v3, static",
            Program::amd64().needs_isa(4),
            &[("amd64 v1", "unknown")],
        ),
        (
            "GOAMD64=v3",
            Program::amd64().go(&["GOAMD64=v3"]),
            &[("amd64 v2", "refused Level"), ("amd64 v3", "native")],
        ),
        (
            "GOAMD64=v1",
            Program::amd64().go(&["GOAMD64=v1"]),
            &[("amd64 v1", "native")],
        ),
    ]);
}

#[test]
fn versions_of_arm() {
    check(&[
        (
            "v7",
            Program::arm().attributes(&[(6, 10)]),
            &[
                ("arm v6", "unknown"),
                ("arm v7", "native"),
                ("arm64", "compat32"),
            ],
        ),
        (
            "v6",
            Program::arm().attributes(&[(6, 6), (28, 1)]),
            &[("arm v5", "unknown"), ("arm v6", "native")],
        ),
        (
            "v5 hard float",
            Program::arm().flags(0x0500_0400).attributes(&[(6, 4)]),
            &[("arm v5", "unknown"), ("arm v6", "native")],
        ),
        (
            "v5 soft float",
            Program::arm().flags(0x0500_0200).attributes(&[(6, 4)]),
            &[("arm v5", "native")],
        ),
        (
            "v8",
            Program::arm().attributes(&[(6, 14)]),
            &[("arm v7", "unknown"), ("arm64", "compat32")],
        ),
        (
            "for microcontrollers",
            Program::arm().attributes(&[(6, 13), (7, b'M')]),
            &[("arm v7", "unknown")],
        ),
        (
            "without attributes",
            Program::arm(),
            &[
                ("arm v5", "unknown"),
                ("arm v6", "unknown"),
                ("arm v7", "native"),
            ],
        ),
        (
            "GOARM=7",
            Program::arm().go(&["GOARM=7"]),
            &[
                ("arm v5", "refused Level"),
                ("arm v6", "refused Level"),
                ("arm v7", "native"),
                ("arm64", "compat32"),
            ],
        ),
        (
            "GOARM=7,softfloat",
            Program::arm().go(&["GOARM=7,softfloat"]),
            &[("arm v6", "refused Level"), ("arm v7", "native")],
        ),
        (
            "GOARM=6",
            Program::arm().go(&["GOARM=6"]),
            &[("arm v5", "refused Level"), ("arm v6", "native")],
        ),
        (
            "before EABI",
            Program::arm().flags(2),
            &[("arm64", "refused Abi"), ("arm v7", "unknown")],
        ),
        (
            "GOARM64=v8.0",
            Program::arm64().go(&["GOARM64=v8.0"]),
            &[("arm64", "native")],
        ),
        (
            "GOARM64=v9.0",
            Program::arm64().go(&["GOARM64=v9.0"]),
            &[("arm64", "unknown")],
        ),
        (
            "GOARM64=v8.0,lse",
            Program::arm64().go(&["GOARM64=v8.0,lse"]),
            &[("arm64", "unknown")],
        ),
    ]);
}

/// A kernel that does not look at the byte order starts it.
#[test]
fn a_byte_order_that_is_wrong() {
    let mut file = Program::amd64().write();
    file[5] = 2;
    let verdict = judge(&read(&file), &host("amd64 v1"));
    assert_eq!(told(&verdict), "unknown", "{verdict}");
}

#[test]
fn doubtful_files() {
    let words = |values: [u32; 4]| -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    };
    let since = |major, minor| {
        Program::amd64().note(4, 4, note("GNU", 1, &words([0, major, minor, 0]), 4, true))
    };
    check(&[
        (
            "for Linux 3.2",
            since(3, 2),
            &[("amd64 v1", "native"), ("amd64 of no level", "native")],
        ),
        ("for Linux 6.1", since(6, 1), &[("amd64 v1", "native")]),
        (
            "for Linux 6.2",
            since(6, 2),
            &[("amd64 v1", "unknown"), ("386 on amd64", "unknown")],
        ),
        (
            "for FreeBSD",
            Program {
                os_abi: 9,
                ..Program::amd64()
            },
            &[("amd64 v1", "unknown")],
        ),
        (
            "a library",
            Program::amd64()
                .kind(3)
                .entry(0)
                .loads(&[(0, 0, 0x800, 0x800, 5)]),
            &[("amd64 v1", "unknown")],
        ),
        (
            "with nowhere to start",
            Program::amd64().entry(0x99_0000),
            &[("amd64 v1", "refused Damaged")],
        ),
    ]);
    // A pair of pointers among the data.
    let descriptor = Program::other(21, true, false).entry(0x41_0810);
    assert_eq!(elf(&descriptor.write()).fault, None);
    let data = Program::amd64().entry(0x41_0810);
    check(&[("starting in its data", data, &[("amd64 v1", "unknown")])]);
    // A linker writes the data last: what is cut off may never be used. The code must be there.
    let far = Program::amd64()
        .entry(0x40_3000)
        .loads(&[(0, 0x40_0000, 0x8000, 0x8000, 5)])
        .write();
    for (length, wanted) in [
        (0x8000, "native"),
        (0x7000, "unknown"),
        (0x3001, "unknown"),
        (0x3000, "refused Damaged"),
    ] {
        let verdict = judge(&read(&far[..length]), &host("amd64 v1"));
        assert_eq!(told(&verdict), wanted, "{length:x}: {verdict}");
    }
    let loader = Program::amd64().loader(GLIBC).write();
    let head = Needs::read(&Head {
        bytes: &loader[..0x400],
        size: None,
    });
    assert_eq!(
        told(&judge(&head, &host("amd64 v1"))),
        "unknown",
        "its loader's path was not kept"
    );
    let verdict = judge(&head, &host("arm64"));
    assert_eq!(
        told(&verdict),
        "refused Machine",
        "the header suffices for that"
    );
}

#[test]
fn handlers_go_first() {
    let arm64 = read(&Program::arm64().only_4k().write());
    assert_eq!(
        told(&judge(&arm64, &emulating("POF"))),
        "emulated qemu-aarch64"
    );
    assert_eq!(told(&judge(&arm64, &emulating("PO"))), "unknown");
    let mut seen = Vec::new();
    let mut missing = |path: &[u8]| {
        seen.push(path.to_vec());
        Found::Missing
    };
    let judgement = judge_with(&arm64, &emulating("PO"), &mut missing);
    assert_eq!(told(&judgement.verdict), "refused Interpreter");
    assert_eq!(seen, [b"/usr/bin/qemu-aarch64-static"]);
    let mut present = |_: &[u8]| Found::File(Box::new(read(&Program::amd64().write())));
    let judgement = judge_with(&arm64, &emulating("PO"), &mut present);
    assert_eq!(told(&judgement.verdict), "emulated qemu-aarch64");

    // What the file is decides, not a header made up for its architecture.
    let mut odd = Program::arm64().write();
    odd[8] = 1;
    assert_eq!(
        told(&judge(&read(&odd), &emulating("F"))),
        "refused Machine"
    );
    let cut = Program::arm64().write();
    assert_eq!(
        told(&judge(&read(&cut[..0x700]), &emulating("F"))),
        "unknown"
    );
    let disabled = qemu_arm64("F").replace("enabled", "disabled");
    let disabled = host_with("qemu-aarch64", &disabled);
    assert_eq!(told(&judge(&arm64, &disabled)), "refused Machine");

    // A handler that takes what the cores would run.
    let own = qemu_arm64("F").replace("b700", "3e00");
    let own = host_with("wrapper", &own);
    let amd64 = read(&Program::amd64().write());
    assert_eq!(told(&judge(&amd64, &own)), "emulated wrapper");
    let v3 = read(&Program::amd64().needs_isa(4).write());
    assert_eq!(told(&judge(&v3, &own)), "unknown");
    // The emulator may bring its own loader.
    let dynamic = read(
        &Program::arm64()
            .loader("/lib/ld-linux-aarch64.so.1")
            .write(),
    );
    let judgement = judge_with(&dynamic, &emulating("F"), &mut |_| Found::Missing);
    assert_eq!(told(&judgement.verdict), "unknown");
}

#[test]
fn other_kinds() {
    let plain = host("amd64 v1");
    let windows = host_with(
        "WSLInterop",
        "enabled\ninterpreter /init\nflags: PF\noffset 0\nmagic 4d5a\n",
    );
    let java = host_with(
        "jar",
        "enabled\ninterpreter /usr/bin/jexec\nflags: \nextension .jar\n",
    );
    for (bytes, here, on_windows, by_name) in [
        (&b""[..], "refused Empty", "refused Empty", "unknown"),
        (&[0; 100], "refused Empty", "refused Empty", "unknown"),
        (b"MZ", "refused System", "emulated WSLInterop", "unknown"),
        (
            b"\xcf\xfa\xed\xfe\x07\0\0\x01",
            "refused System",
            "refused System",
            "unknown",
        ),
        (b"\0asm\x01\0\0\0", "unknown", "unknown", "unknown"),
        (b"bFLT\0\0\0\x04", "unknown", "unknown", "unknown"),
        (
            b"echo hello\n",
            "refused Format",
            "refused Format",
            "unknown",
        ),
        (b"PK\x03\x04", "refused Format", "refused Format", "unknown"),
        (
            b"\xca\xfe\xba\xbe\0\0\0\x34",
            "refused Format",
            "refused Format",
            "unknown",
        ),
        (b"#!\n", "refused Format", "refused Format", "unknown"),
    ] {
        let needs = read(bytes);
        for (host, wanted) in [(&plain, here), (&windows, on_windows), (&java, by_name)] {
            let verdict = judge(&needs, host);
            assert_eq!(told(&verdict), wanted, "{bytes:?}: {verdict}");
        }
    }
}

#[test]
fn platforms_that_files_tell() {
    for (bytes, wanted) in [
        (
            Program::amd64().needs_isa(4).write(),
            Some("linux/amd64/v3"),
        ),
        (Program::amd64().write(), Some("linux/amd64")),
        (
            Program::arm().attributes(&[(6, 6)]).write(),
            Some("linux/arm/v6"),
        ),
        (
            Program::arm().go(&["GOARM=5"]).write(),
            Some("linux/arm/v5"),
        ),
        (Program::arm().write(), None),
        (Program::other(62, false, true).write(), None),
        (b"\0asm\x01\0\0\0".to_vec(), Some("wasi/wasm")),
        (
            b"\xcf\xfa\xed\xfe\x0c\0\0\x01".to_vec(),
            Some("darwin/arm64"),
        ),
        (b"#!/bin/sh\n".to_vec(), None),
    ] {
        let platform = read(&bytes).platform().map(|platform| platform.to_string());
        assert_eq!(platform.as_deref(), wanted);
    }
}
