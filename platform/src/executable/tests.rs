//! Files made by hand, hosts made by hand, and the programs of the machine that runs the tests.

use super::*;
use crate::detect::detect;
use crate::facts::Facts;
use crate::host::Host;

mod build;
mod chains;
mod features;
mod files;
#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod kernel;
mod properties;
mod verdicts;

use build::Program;

fn read(bytes: &[u8]) -> Needs {
    Needs::read(&bytes)
}

fn elf(bytes: &[u8]) -> Elf {
    match read(bytes).kind {
        Kind::Elf(elf) => *elf,
        other => panic!("no ELF file: {other:?}"),
    }
}

const V1: &str = "flags : fpu lm cmov cx8 fxsr mmx syscall sse sse2";
const V2: &str = " cx16 lahf_lm popcnt pni ssse3 sse4_1 sse4_2";
const V3: &str = " avx avx2 bmi1 bmi2 f16c fma abm movbe xsave";

/// A host by its name in the tables.
fn host(name: &str) -> Host {
    let amd64 = "uname_machine=x86_64\nuserland=amd64\nuname_release=6.1.0\n";
    let arm64 = "uname_machine=aarch64\nuserland=arm64\n";
    let with32 = "personality_per_linux32=ok\nuname_machine_under_linux32=armv8l\n";
    let (probes, cpuinfo) = match name {
        "amd64 v1" => (
            format!("{amd64}kernel_config_ia32_emulation=y"),
            V1.to_owned(),
        ),
        "amd64 v2" => (amd64.to_owned(), format!("{V1}{V2}")),
        "amd64 v3" => (
            format!("{amd64}kernel_config_ia32_emulation=n"),
            format!("{V1}{V2}{V3}"),
        ),
        "amd64 of no level" => (amd64.to_owned(), String::new()),
        "386 on amd64" => (
            "uname_machine=x86_64\nuserland=i386".to_owned(),
            format!("{V1}{V2}"),
        ),
        "arm64" => (format!("{arm64}AT_PAGESZ=4096\n{with32}"), String::new()),
        "arm64 16k" => (format!("{arm64}AT_PAGESZ=16384\n{with32}"), String::new()),
        "arm64 64k" => (format!("{arm64}AT_PAGESZ=65536\n{with32}"), String::new()),
        "arm64 without 32" => (
            format!("{arm64}AT_PAGESZ=4096\npersonality_per_linux32=einval"),
            String::new(),
        ),
        "arm64 unobserved" => (arm64.to_owned(), String::new()),
        "arm on arm64" => (
            format!("uname_machine=aarch64\nuserland=armhf\nAT_PAGESZ=4096\n{with32}"),
            String::new(),
        ),
        "arm v5" => (
            "uname_machine=armv5tejl\nAT_PLATFORM=v5l".to_owned(),
            String::new(),
        ),
        "arm v6" => (
            "uname_machine=armv6l\nAT_PLATFORM=v6l".to_owned(),
            String::new(),
        ),
        "arm v7" => (
            "uname_machine=armv7l\nAT_PLATFORM=v7l".to_owned(),
            String::new(),
        ),
        "s390x" | "riscv64" | "ppc64le" => (format!("uname_machine={name}"), String::new()),
        "emulated arm" => (
            "uname_machine=armv7l\nuserland=armhf".to_owned(),
            format!("{V1}{V2}"),
        ),
        other => panic!("no host {other}"),
    };
    detect(&Facts::from_texts(
        &probes,
        [("proc/cpuinfo", cpuinfo.as_str())],
    ))
    .expect("a host")
}

/// The host `amd64 v1` with one handler.
fn host_with(name: &str, entry: &str) -> Host {
    let path = format!("proc/sys/fs/binfmt_misc/{name}");
    let files = [("proc/cpuinfo", V1), (path.as_str(), entry)];
    let probes = "uname_machine=x86_64\nuserland=amd64\nkernel_config_ia32_emulation=y";
    detect(&Facts::from_texts(probes, files)).expect("a host")
}

/// As in Debian: Arm of 64 bits, flags as given.
fn qemu_arm64(flags: &str) -> String {
    format!(
        "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: {flags}\noffset 0\n\
         magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n"
    )
}

/// The host `amd64 v1` with an emulator for Arm of 64 bits.
fn emulating(flags: &str) -> Host {
    host_with("qemu-aarch64", &qemu_arm64(flags))
}
