//! Programs that need more than their architecture, against hosts whose features are known.

use super::verdicts::told;
use super::*;

/// A host with a CPU description.
fn with(probes: &str, cpuinfo: &str) -> Host {
    detect(&Facts::from_texts(probes, [("proc/cpuinfo", cpuinfo)])).expect("a host")
}

fn arm64(features: &str) -> Host {
    let lines = format!("Features : {features}\nCPU implementer : 0x41\nCPU architecture: 8\n");
    with(
        "uname_machine=aarch64\nuserland=arm64\nAT_PAGESZ=4096",
        &lines,
    )
}

fn arm(version: u8, features: &str) -> Host {
    let lines = format!("Features : {features}\nCPU implementer : 0x41\nCPU architecture: 7\n");
    with(&format!("uname_machine=armv{version}l"), &lines)
}

fn verdict(program: &Program, host: &Host) -> String {
    told(&judge(&read(&program.write()), host))
}

#[test]
fn extensions_of_arm64() {
    const OLD: &str = "fp asimd aes pmull sha1 sha2 crc32 cpuid";
    const NEW: &str = "fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp";
    const LSE: &str = "fp asimd atomics";
    for (setting, old, new, lse) in [
        ("v8.0", "native", "native", "native"),
        ("v8.0,lse", "refused Level", "native", "native"),
        ("v8.1", "refused Level", "native", "unknown"),
        ("v8.2", "refused Level", "native", "unknown"),
        ("v8.3", "refused Level", "unknown", "unknown"),
        ("v9.0", "refused Level", "unknown", "unknown"),
        ("v9.5", "unknown", "unknown", "unknown"),
        ("v8.0,crypto", "native", "native", "unknown"),
        ("v8.0,lse,crypto", "refused Level", "native", "unknown"),
        ("v8.0,other", "unknown", "unknown", "unknown"),
    ] {
        let program = || Program::arm64().go(&[&format!("GOARM64={setting}")]);
        assert_eq!(verdict(&program(), &arm64(OLD)), old, "{setting}");
        assert_eq!(verdict(&program(), &arm64(NEW)), new, "{setting}");
        assert_eq!(verdict(&program(), &arm64(LSE)), lse, "{setting}");
    }
}

/// A program may run on any core, so what one lacks none has.
#[test]
fn cores_that_differ() {
    let core = |features: &str| {
        format!("Features : {features}\nCPU implementer : 0x41\nCPU architecture: 8\n\n")
    };
    let lines = core("fp asimd atomics crc32") + &core("fp asimd crc32");
    let host = with("uname_machine=aarch64\nuserland=arm64", &lines);
    assert_eq!(host.has_feature("crc32"), Some(true));
    assert_eq!(host.has_feature("atomics"), Some(false));
    let none = with("uname_machine=aarch64\nuserland=arm64", "");
    assert_eq!(none.has_feature("atomics"), None);
}

#[test]
fn floating_point_units_of_arm() {
    const NONE: &str = "swp half thumb fastmult edsp";
    const VFP: &str = "swp half thumb fastmult vfp edsp";
    const V3: &str = "half thumb fastmult vfp edsp vfpv3 vfpv3d16 tls";
    const NEON: &str = "half thumb fastmult vfp edsp neon vfpv3 tls vfpd32";
    const V4: &str = "half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32";
    let attributes = |pairs: &[(u8, u8)]| Program::arm().attributes(pairs);
    let go = |setting: &str| Program::arm().go(&[setting]);
    for (name, program, host, wanted) in [
        ("GOARM=6", go("GOARM=6"), arm(6, NONE), "refused Level"),
        ("GOARM=6", go("GOARM=6"), arm(6, VFP), "native"),
        ("GOARM=7", go("GOARM=7"), arm(7, VFP), "refused Level"),
        ("GOARM=7", go("GOARM=7"), arm(7, V3), "native"),
        ("soft", go("GOARM=7,softfloat"), arm(7, VFP), "native"),
        (
            "NEON",
            attributes(&[(6, 10), (12, 1)]),
            arm(7, V3),
            "unknown",
        ),
        (
            "NEON",
            attributes(&[(6, 10), (12, 1)]),
            arm(7, NEON),
            "native",
        ),
        (
            "VFPv3-D16",
            attributes(&[(6, 10), (10, 4)]),
            arm(7, V3),
            "native",
        ),
        (
            "VFPv4",
            attributes(&[(6, 10), (10, 5)]),
            arm(7, NEON),
            "unknown",
        ),
        (
            "VFPv4",
            attributes(&[(6, 10), (10, 5)]),
            arm(7, V4),
            "native",
        ),
        (
            "VFP",
            attributes(&[(6, 6), (10, 2)]),
            arm(6, NONE),
            "unknown",
        ),
        (
            "hard float",
            attributes(&[(6, 4)]).flags(0x0500_0400),
            arm(5, VFP),
            "native",
        ),
    ] {
        let told = verdict(&program, &host);
        assert_eq!(told, wanted, "{name} on {:?}", host.features);
    }
}

#[test]
fn sse2() {
    let old = with("uname_machine=i686", "flags : fpu mmx fxsr sse");
    let new = with("uname_machine=i686", "flags : fpu mmx fxsr sse sse2");
    let program = |setting: &str| Program::i386().go(&[setting]);
    assert_eq!(verdict(&program("GO386=sse2"), &old), "refused Level");
    assert_eq!(verdict(&program("GO386=sse2"), &new), "native");
    assert_eq!(verdict(&program("GO386=softfloat"), &old), "native");
}

/// A kernel is built for one page size.
#[test]
fn pages_by_the_configuration() {
    let host = |option: &str| {
        let probes =
            format!("uname_machine=aarch64\nuserland=arm64\nkernel_config_arm64_{option}=y");
        with(&probes, "")
    };
    assert_eq!(host("16k_pages").page_size, Some(16384));
    let small = || Program::arm64().only_4k();
    assert_eq!(verdict(&small(), &host("16k_pages")), "refused Pages");
    assert_eq!(verdict(&small(), &host("4k_pages")), "native");
    assert_eq!(verdict(&small(), &host("other")), "unknown");
}

/// What is in doubt by itself is refused where its loader is missing, or for other cores.
#[test]
fn a_missing_loader_is_proof() {
    let host = arm(6, "half thumb fastmult vfp edsp");
    let program = Program::arm()
        .attributes(&[(6, 10)])
        .loader("/lib/ld-linux-armhf.so.3");
    let needs = read(&program.write());
    let with = |found: Found| {
        let judged = judge_with(&needs, &host, &mut move |_| found.clone());
        told(&judged.verdict)
    };
    let file = |program: Program| Found::File(Box::new(read(&program.write())));
    assert_eq!(with(Found::NotLooked), "unknown");
    assert_eq!(with(Found::Missing), "refused Interpreter");
    assert_eq!(with(file(Program::arm64())), "refused Interpreter");
    assert_eq!(with(file(Program::arm().attributes(&[(6, 6)]))), "unknown");
    assert_eq!(with(file(Program::arm().attributes(&[(6, 10)]))), "unknown");
}
