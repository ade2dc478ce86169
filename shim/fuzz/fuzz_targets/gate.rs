//! Any `config.json` over a root file system of any bytes: what it starts, through what it mounts.
//! The input is the document up to its first zero byte, then the bytes of three files.
#![no_main]

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use edgepull_platform::{Facts, Host, detect};
use edgepull_shim::config::Emulation;
use edgepull_shim::gate::{Bundle, Decision, Here, Process, examine, examine_process};
use libfuzzer_sys::fuzz_target;

const FILES: [&str; 3] = ["rootfs/bin/app", "rootfs/sbin/tini", "volume/app"];

/// In the build folder, made anew by each run: nothing runs at the end of one.
fn bundle() -> &'static Path {
    static BUNDLE: OnceLock<PathBuf> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let build = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../build/fuzz/gate");
        let _ = fs::remove_dir_all(&build);
        for file in FILES {
            let parent = build.join(file);
            fs::create_dir_all(parent.parent().expect("one")).expect("made");
        }
        for (target, link) in [
            ("bin", "link"),
            ("/loop", "loop"),
            ("../../volume/app", "out"),
        ] {
            symlink(target, build.join("rootfs").join(link)).expect("linked");
        }
        build
    })
}

fn hosts() -> &'static [Host] {
    static HOSTS: OnceLock<Vec<Host>> = OnceLock::new();
    let status = ("proc/sys/fs/binfmt_misc/status", "enabled");
    let qemu = (
        "proc/sys/fs/binfmt_misc/qemu",
        "enabled\ninterpreter /bin/app\nflags: \noffset 0\n\
        magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n",
    );
    HOSTS.get_or_init(|| {
        [
            ("uname_machine=x86_64\nAT_PAGESZ=4096", vec![status, qemu]),
            ("uname_machine=x86_64\nAT_PAGESZ=4096", vec![]),
            ("uname_machine=aarch64\nAT_PAGESZ=16384", vec![status]),
            ("uname_machine=armv6l", vec![status]),
        ]
        .into_iter()
        .map(|(probes, files)| detect(&Facts::from_texts(probes, files)).expect("a host"))
        .collect()
    })
}

fn check(decision: &Decision) {
    let line = match decision {
        Decision::Go => return,
        Decision::GoWithWarning(emulated) => emulated.line(),
        Decision::Refuse(refusal) => {
            assert!(edgepull_platform::starts::reasons().any(|known| known == refusal.reason()));
            refusal.line()
        }
    };
    assert!(line.len() < 1000 && !line.chars().any(char::is_control));
}

fuzz_target!(|input: &[u8]| {
    let end = input
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(input.len());
    let (json, rest) = input.split_at(end);
    let Some(config) = Bundle::parse(json) else {
        let _ = Process::parse(json);
        return;
    };
    let rest = rest.get(1..).unwrap_or_default();
    let third = rest.len().div_ceil(FILES.len()).max(1);
    let mut parts = rest.chunks(third);
    for file in FILES {
        let path = bundle().join(file);
        fs::write(&path, parts.next().unwrap_or_default()).expect("written");
        fs::set_permissions(&path, Permissions::from_mode(0o755)).expect("set");
    }
    let rootfs = bundle().join("rootfs");
    let exec = Process::parse(br#"{"args":["app","x"],"env":["PATH=/bin"],"cwd":"/"}"#);
    for host in hosts() {
        let here = Here::known(host.clone());
        for policy in [Emulation::Allow, Emulation::Never] {
            check(&examine(&config, &rootfs, &here, policy));
        }
        if let Some(exec) = &exec {
            check(&examine_process(
                &config,
                exec,
                &rootfs,
                &here,
                Emulation::Allow,
            ));
        }
    }
});
