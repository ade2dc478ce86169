//! What is read out of files.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::build::note;
use super::*;

#[test]
fn headers_of_every_kind() {
    for (program, architecture, name) in [
        (Program::amd64(), Some("amd64"), "amd64"),
        (Program::i386(), Some("386"), "386"),
        (Program::other(6, false, true), Some("386"), "386"),
        (Program::arm64(), Some("arm64"), "arm64"),
        (Program::arm(), Some("arm"), "arm"),
        (Program::other(21, true, true), Some("ppc64le"), "ppc64le"),
        (Program::other(21, true, false), Some("ppc64"), "ppc64"),
        (Program::other(22, true, false), Some("s390x"), "s390x"),
        (Program::other(243, true, true), Some("riscv64"), "riscv64"),
        (Program::other(258, true, true), Some("loong64"), "loong64"),
        (Program::other(8, true, false), Some("mips64"), "mips64"),
        (
            Program::other(62, false, true),
            None,
            "x86-64 with 32-bit addresses (x32)",
        ),
        (
            Program::other(20, false, false),
            None,
            "32-bit big-endian PowerPC",
        ),
        (
            Program::other(183, true, false),
            None,
            "64-bit big-endian Arm",
        ),
        (
            Program::other(999, true, true),
            None,
            "machine number 999 (64-bit, little-endian)",
        ),
    ] {
        let found = elf(&program.write());
        assert_eq!(found.architecture(), architecture, "{name}");
        assert_eq!(found.machine_name(), name);
        assert_eq!(found.entry, 0x40_0100, "{name}");
        assert_eq!(found.loads.len(), 2, "{name}");
        assert_eq!((found.fault.clone(), found.cut_off), (None, None), "{name}");
        assert!(found.is_static(), "{name}");
    }
}

#[test]
fn a_loader_and_a_dynamic_section() {
    let found = elf(&Program::arm().loader("/lib/ld-linux-armhf.so.3").write());
    assert_eq!(
        found.interpreter.as_deref(),
        Some(&b"/lib/ld-linux-armhf.so.3"[..])
    );
    assert!(found.dynamic.is_some() && !found.is_static());
    assert_eq!(found.first_needed, found.dynamic);
}

#[test]
fn attributes_and_float_abis_of_arm() {
    let program = Program::arm().attributes(&[(6, 10), (7, b'A'), (10, 4), (12, 1), (28, 1)]);
    let found = elf(&program.write());
    let wanted = ArmAttributes {
        cpu_arch: Some(10),
        profile: Some(u64::from(b'A')),
        fp_arch: Some(4),
        simd_arch: Some(1),
        vfp_args: Some(1),
    };
    assert_eq!(found.arm, Some(wanted));
    assert_eq!(found.float_abi(), Some(FloatAbi::Hard));
    assert_eq!(found.arm_eabi(), Some(5));
    for (flags, abi) in [
        (0x0500_0400, Some(FloatAbi::Hard)),
        (0x0500_0200, Some(FloatAbi::Soft)),
        (0x0500_0000, None),
    ] {
        assert_eq!(
            elf(&Program::arm().flags(flags).write()).float_abi(),
            abi,
            "{flags:x}"
        );
    }
    for (tag, version) in [
        (2, Some(5)),
        (5, Some(5)),
        (6, Some(6)),
        (7, Some(6)),
        (9, Some(6)),
        (8, Some(7)),
        (10, Some(7)),
        (14, Some(8)),
        (22, Some(8)),
        (13, None),
        (21, None),
        (99, None),
    ] {
        let found = elf(&Program::arm().attributes(&[(6, tag)]).write());
        assert_eq!(found.arm.expect("attributes").version(), version, "{tag}");
    }
}

#[test]
fn levels_of_x86() {
    for (bits, level) in [
        (1, Some(1)),
        (2, Some(2)),
        (7, Some(3)),
        (15, Some(4)),
        (16, None),
        (0, None),
    ] {
        for program in [Program::amd64(), Program::i386()] {
            assert_eq!(
                elf(&program.needs_isa(bits).write()).x86_level,
                level,
                "{bits}"
            );
        }
    }
    // The same number on other machines means something else.
    assert_eq!(elf(&Program::arm64().needs_isa(4).write()).x86_level, None);
}

#[test]
fn notes_of_kernels_and_systems() {
    let words = |values: [u32; 4]| -> Vec<u8> {
        values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect()
    };
    let linux = note("GNU", 1, &words([0, 3, 2, 0]), 4, true);
    let build_id = note("GNU", 3, b"0123456789abcdefghij", 4, true);
    let found = elf(&Program::amd64()
        .note(4, 4, [build_id, linux].concat())
        .write());
    assert_eq!(found.oldest_kernel, Some((3, 2, 0)));
    let bsd = note("FreeBSD", 1, &[0; 4], 4, true);
    assert_eq!(
        elf(&Program::amd64().note(4, 4, bsd).write()).system,
        Some("FreeBSD")
    );
    let marked = Program {
        os_abi: 9,
        ..Program::amd64()
    };
    assert_eq!(elf(&marked.write()).system, Some("FreeBSD"));
    let big = note(
        "GNU",
        1,
        &[0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 15, 0, 0, 0, 0],
        4,
        false,
    );
    let found = elf(&Program::other(22, true, false).note(4, 4, big).write());
    assert_eq!(found.oldest_kernel, Some((4, 15, 0)));
}

#[test]
fn build_information_of_go() {
    let program = Program::arm().go(&[
        "-compiler=gc",
        "GOARCH=arm",
        "GOOS=linux",
        "GOARM=7,softfloat",
    ]);
    let go = elf(&program.write()).go.expect("Go");
    assert_eq!(go.version.as_deref(), Some("go1.22"));
    assert_eq!(go.setting("GOARCH"), Some("arm"));
    assert_eq!(go.arm(), Some((7, true)));
    for (value, wanted) in [
        ("7", (7, false)),
        ("5", (5, true)),
        ("5,hardfloat", (5, false)),
        ("6", (6, false)),
    ] {
        let setting = format!("GOARM={value}");
        let go = elf(&Program::arm().go(&[&setting]).write()).go.expect("Go");
        assert_eq!(go.arm(), Some(wanted), "{value}");
    }
    let go = elf(&Program::amd64().go(&["GOAMD64=v3"]).write())
        .go
        .expect("Go");
    assert_eq!(go.amd64_level(), Some(3));
    // Without sections it is found in the data.
    let mut file = Program::amd64().write();
    let info = super::build::go(&["GOAMD64=v2"]);
    let at = 0x800 + 32;
    file[60..62].fill(0);
    file.splice(at..at + info.len().min(0xe0), info.iter().copied());
    let found = elf(&file).go.expect("Go");
    assert_eq!(found.amd64_level(), Some(2));
}

#[test]
fn pages_and_what_shares_them() {
    let large = elf(&Program::arm64().write());
    assert_eq!(large.largest_page(), Some(65536));
    let small = elf(&Program::arm64().only_4k().write());
    assert_eq!(small.largest_page(), Some(4096));
    assert!(small.fits_pages(4096) && !small.fits_pages(16384));
    let none = Program::arm64().loads(&[(0x10, 0x40_0000, 0x800, 0x800, 5)]);
    assert_eq!(elf(&none.write()).largest_page(), None);
    let shared = Program::arm64().loads(&[
        (0, 0x40_0000, 0x800, 0x800, 5),
        (0x800, 0x40_0800, 0x100, 0x100, 6),
    ]);
    let shared = elf(&shared.write());
    assert!(shared.shares_pages(4096) && shared.largest_page() == Some(65536));
    // What has no bytes in the file is not mapped from it.
    let zeroed = Program::arm64().loads(&[
        (0, 0x40_0000, 0x800, 0x800, 5),
        (0x7, 0x41_0000, 0, 0x100, 6),
    ]);
    assert_eq!(elf(&zeroed.write()).largest_page(), Some(65536));
}

#[test]
fn structures_that_no_kernel_takes() {
    let good = Program::amd64().write();
    let patched = |at: usize, bytes: &[u8]| {
        let mut file = good.clone();
        file.splice(at..at + bytes.len(), bytes.iter().copied());
        elf(&file).fault.expect("a fault")
    };
    for (fault, certain, text) in [
        (
            patched(54, &[57, 0]),
            true,
            "has no program headers of the right size",
        ),
        (
            patched(56, &[0, 0]),
            true,
            "has no program headers of the right size",
        ),
        (
            patched(56, &[0xff, 0xff]),
            true,
            "has more than 64 KiB of program headers",
        ),
        (
            patched(32, &[0xff; 8]),
            true,
            "ends before its program headers",
        ),
        (
            patched(24, &[0xff; 8]),
            true,
            "starts at an address that it does not load",
        ),
        (
            patched(64, &[9]),
            true,
            "starts at an address that it does not load",
        ),
        (
            patched(4, &[0]),
            true,
            "has no program headers of the right size",
        ),
        (
            patched(5, &[3]),
            false,
            "has a header that names no class or byte order",
        ),
    ] {
        assert_eq!(fault, Fault { certain, text });
    }
    let nothing = Program::amd64().loads(&[]).note(4, 4, Vec::new());
    assert_eq!(
        elf(&nothing.write()).fault.expect("a fault").text,
        "has nothing to load"
    );
    let library = Program::amd64()
        .kind(3)
        .entry(0)
        .loads(&[(0, 0, 0x800, 0x800, 5)]);
    assert_eq!(
        elf(&library.write()).fault.expect("a fault").text,
        "looks like a shared library"
    );
    let mut loader = Program::amd64().loader("/lib/ld.so").write();
    let path = loader
        .windows(10)
        .position(|part| part == b"/lib/ld.so")
        .expect("there");
    loader.splice(path + 10..=path + 10, *b"x");
    assert_eq!(
        elf(&loader).fault.expect("a fault").text,
        "has a loader's path without an end"
    );
}

#[test]
fn a_file_that_ends_too_early() {
    let file = Program::amd64().write();
    let found = elf(&file[..0x700]);
    assert_eq!(found.cut_off, Some(0x900));
    assert_eq!(found.fault, None);
    assert_eq!(
        elf(&file[..100]).fault.expect("a fault").text,
        "ends before its program headers"
    );
}

/// Everything that is not ELF.
#[test]
fn other_kinds() {
    let mut pe = b"MZ".to_vec();
    pe.resize(0x3c, 0);
    pe.extend([0x80, 0, 0, 0]);
    pe.resize(0x80, 0);
    pe.extend(b"PE\0\0\x64\x86");
    let fat = b"\xca\xfe\xba\xbe\0\0\0\x02\x01\0\0\x07\0\0\0\x03\0\0\0\0\0\0\0\0\0\0\0\0\x01\0\0\x0c\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let names = |names: &[Option<&'static str>], fat| {
        Kind::MachO(MachO {
            fat,
            architectures: names.to_vec(),
        })
    };
    let rows: &[(&[u8], Kind)] = &[
        (b"", Kind::Empty),
        (&[0; 5000], Kind::Zeros),
        (b"\0asm\x01\0\0\0", Kind::Wasm(Wasm::Module)),
        (b"\0asm\x0d\0\x01\0", Kind::Wasm(Wasm::Component)),
        (b"\0asm\x07\0\0\0", Kind::Wasm(Wasm::Other(7))),
        (
            &pe,
            Kind::Pe(Pe {
                machine: Some(0x8664),
            }),
        ),
        (b"MZ", Kind::Pe(Pe { machine: None })),
        (
            b"\xcf\xfa\xed\xfe\x0c\0\0\x01",
            names(&[Some("arm64")], false),
        ),
        (b"\xfe\xed\xfa\xce\0\0\0\x07", names(&[Some("386")], false)),
        (fat, names(&[Some("amd64"), Some("arm64")], true)),
        (b"\xca\xfe\xba\xbe\0\0\0\x34", Kind::Java),
        (b"bFLT\0\0\0\x04", Kind::OldFormat("bFLT")),
        (b"\x0b\x01\x64\0", Kind::OldFormat("a.out")),
        (
            b"echo hello\n",
            Kind::Text {
                hidden_script: false,
            },
        ),
        (
            b"\xef\xbb\xbf#!/bin/sh\n",
            Kind::Text {
                hidden_script: true,
            },
        ),
        (b"\x1f\x8b\x08\0", Kind::Unknown),
        (b"#!\n", Kind::BadScript(BadLine::NoInterpreter)),
        (b"#! \t \n", Kind::BadScript(BadLine::NoInterpreter)),
    ];
    for (bytes, kind) in rows {
        assert_eq!(&read(bytes).kind, kind, "{bytes:?}");
        assert!(!read(bytes).describe().is_empty());
    }
}

#[test]
fn first_lines_of_scripts() {
    use Pitfall::{
        ArgumentCut, CarriageReturnInArgument, CarriageReturnInName, LongForOldKernels,
        RelativePath, SeveralWordsForEnv,
    };
    let long = format!("#!/{}\n", "x".repeat(200));
    let longest = format!("#!/{}", "x".repeat(252));
    let padded = format!("#!{}/bin/sh", " ".repeat(240));
    let argument = format!("#!/bin/sh {}\n", "x".repeat(300));
    let name = long.trim_end().trim_start_matches("#!").to_owned();
    let cut = "x".repeat(245);
    let rows: &[(&str, &str, Option<&str>, &[Pitfall])] = &[
        ("#!/bin/sh\n", "/bin/sh", None, &[]),
        ("#!/bin/sh", "/bin/sh", None, &[]),
        ("#! \t/bin/sh \t\n", "/bin/sh", None, &[]),
        ("#!/bin/sh -e -x \n", "/bin/sh", Some("-e -x"), &[]),
        ("#!/bin/sh\0 -e\n", "/bin/sh", None, &[]),
        ("#!/bin/sh\r\n", "/bin/sh\r", None, &[CarriageReturnInName]),
        (
            "#!/bin/sh -e\r\n",
            "/bin/sh",
            Some("-e\r"),
            &[CarriageReturnInArgument],
        ),
        (
            "#!/usr/bin/env python3\n",
            "/usr/bin/env",
            Some("python3"),
            &[],
        ),
        (
            "#!/usr/bin/env python3 -u\n",
            "/usr/bin/env",
            Some("python3 -u"),
            &[SeveralWordsForEnv],
        ),
        (
            "#!/usr/bin/env -S python3 -u\n",
            "/usr/bin/env",
            Some("-S python3 -u"),
            &[],
        ),
        ("#!sh\n", "sh", None, &[RelativePath]),
        (&long, &name, None, &[LongForOldKernels]),
        (&padded, "/bin/sh", None, &[]),
        (&argument, "/bin/sh", Some(&cut), &[ArgumentCut]),
    ];
    for (text, interpreter, argument, pitfalls) in rows {
        let Kind::Script(script) = read(text.as_bytes()).kind else {
            panic!("no script: {text:?}");
        };
        assert_eq!(script.interpreter, interpreter.as_bytes(), "{text:?}");
        assert_eq!(
            script.argument.as_deref(),
            argument.map(str::as_bytes),
            "{text:?}"
        );
        assert_eq!(&script.pitfalls, pitfalls, "{text:?}");
    }
    assert_eq!(
        read(format!("{longest}yyyy\n").as_bytes()).kind,
        Kind::BadScript(BadLine::TooLong)
    );
    assert!(matches!(read(longest.as_bytes()).kind, Kind::Script(_)));
}

/// An unpacker that kept the beginning of a file.
#[test]
fn only_the_beginning() {
    let file = Program::arm().attributes(&[(6, 10)]).write();
    let whole = Some(file.len() as u64);
    let head = |length: usize| {
        Needs::read(&Head {
            bytes: &file[..length],
            size: whole,
        })
    };
    let found = head(0x300);
    let found = found.elf().expect("ELF");
    assert_eq!(
        (found.loads.len(), found.arm, found.unread),
        (2, None, Some(Unread::Sections))
    );
    assert_eq!(head(100).kind, Kind::Unreadable);
    assert_eq!(head(0).kind, Kind::Unreadable);
    let nothing = Head {
        bytes: b"",
        size: Some(0),
    };
    assert_eq!(Needs::read(&nothing).kind, Kind::Empty);
    let script = Head {
        bytes: b"#!/bin/sh\n",
        size: Some(10),
    };
    assert!(matches!(Needs::read(&script).kind, Kind::Script(_)));
}

fn on_this_machine(path: &Path) -> Needs {
    let file = File::open(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Needs::read(&file)
}

/// This test runs, and so does the shell: on this machine both are judged to. Where the test runs
/// under an emulator, the shell is the emulator's and no business of the machine it shows.
#[test]
fn programs_of_this_machine() {
    let host = detect(&Facts::live().expect("facts")).expect("a host");
    let own = std::env::current_exe().expect("a path");
    for path in [own.as_path(), Path::new("/bin/sh")] {
        let needs = on_this_machine(path);
        let program = needs.elf().expect("ELF");
        assert_eq!(program.fault, None, "{}", path.display());
        if path != own && program.architecture() != Some(in_oci(std::env::consts::ARCH)) {
            continue;
        }
        assert_eq!(program.architecture(), Some(host.userland.as_str()));
        let judgement = judge_with(&needs, &host, &mut |path| {
            let path = std::str::from_utf8(path).expect("a plain path");
            Found::File(Box::new(on_this_machine(Path::new(path))))
        });
        assert!(
            judgement.verdict.runs(),
            "{}: {}",
            path.display(),
            judgement.verdict
        );
    }
}

/// An architecture of Rust's as OCI has it.
fn in_oci(name: &str) -> &str {
    match name {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// Programs for three machines, where the end-to-end tests have left them.
#[test]
fn busybox_for_three_machines() {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR")).join("../build/lab");
    for (name, architecture, hosts) in [
        (
            "busybox-amd64",
            "amd64",
            [("amd64 v1", "native"), ("arm64", "refused")],
        ),
        (
            "busybox-arm64",
            "arm64",
            [("arm64 64k", "native"), ("amd64 v3", "refused")],
        ),
        (
            "busybox-arm",
            "arm",
            [("arm v7", "native"), ("arm64 without 32", "refused")],
        ),
    ] {
        let paths: Vec<PathBuf> = ["bin/busybox", "usr/bin/busybox"]
            .iter()
            .map(|path| lab.join(name).join(path))
            .collect();
        let Some(path) = paths.iter().find(|path| path.is_file()) else {
            println!("{name} is absent: not judged");
            continue;
        };
        let needs = on_this_machine(path);
        assert_eq!(needs.elf().and_then(Elf::architecture), Some(architecture));
        for (on, wanted) in hosts {
            let verdict = judge(&needs, &host(on));
            assert_eq!(verdict.name(), wanted, "{name} on {on}: {verdict}");
        }
    }
}
