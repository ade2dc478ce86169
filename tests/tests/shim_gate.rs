//! The gate: what cannot run here is refused before it is created, in one line that says which file,
//! what it needs, what this host has, and what to do; and nothing else is refused.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use containerd_client::types::Mount;
use edgepull_tests::containerd::{Setup, Version};
use edgepull_tests::dock::{Code, Dock, rootfs, running};
use edgepull_tests::emulated::Emulating;
use edgepull_tests::faulty::Faulty;
use edgepull_tests::image::{self, AMD64, ARM64, host};
use edgepull_tests::on_each_containerd;
use edgepull_tests::process::{self, wait_for};
use edgepull_tests::scene::NAMESPACE;
use edgepull_tests::tools::Lab;
use serde_json::json;

const SOON: Duration = Duration::from_secs(30);

/// A machine that this one does not run, as its files and as people call it.
fn foreign() -> (PathBuf, &'static str) {
    let arch = if host() == AMD64 { "arm64" } else { "amd64" };
    (
        Lab::get().tool(&format!("busybox-{arch}/bin/busybox")),
        arch,
    )
}

/// A root file system with busybox of this machine and these files.
fn root(dock: &Dock, name: &str, files: &[(&str, &[u8])]) -> Vec<Mount> {
    let dir = dock.daemon.dir().join("roots").join(name);
    for part in ["bin", "dev", "proc", "sys", "tmp", "data"] {
        fs::create_dir_all(dir.join(part)).unwrap();
    }
    let own = dir.join("bin/busybox");
    fs::copy(rootfs().join("bin/busybox"), &own).unwrap();
    for (path, bytes) in files {
        let file = dir.join(path);
        fs::write(&file, bytes).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    for name in ["sh", "sleep", "true", "echo"] {
        symlink("busybox", dir.join("bin").join(name)).unwrap();
    }
    vec![bind(&dir)]
}

fn bind(dir: &Path) -> Mount {
    Mount {
        r#type: "bind".to_owned(),
        source: dir.to_str().unwrap().to_owned(),
        target: String::new(),
        options: vec!["rbind".to_owned(), "rw".to_owned()],
    }
}

fn what_cannot_run_is_refused_by_name(version: Version) {
    let dock = Dock::new(version);
    let events = dock.events();
    let (foreign, arch) = foreign();
    let foreign = fs::read(foreign).unwrap();
    let this = format!("linux/{}", host().arch);
    let files: [(&str, &[u8]); 5] = [
        ("bin/app", &foreign),
        ("bin/empty", b""),
        ("bin/zeros", &[0; 8192]),
        ("bin/other-sh", &foreign),
        ("bin/script", b"#!/bin/other-sh\necho hello\n"),
    ];
    for (args, parts) in [
        (
            vec!["/bin/app"],
            vec!["/bin/app", arch, &this, "edgepull check"],
        ),
        // Along the container's own PATH.
        (vec!["app", "--flag"], vec!["/bin/app", arch, &this]),
        (
            vec!["/bin/script"],
            vec!["/bin/script", "/bin/other-sh", arch, &this],
        ),
        (vec!["/bin/empty"], vec!["/bin/empty", "is empty"]),
        (vec!["/bin/zeros"], vec!["/bin/zeros", "zeros"]),
    ] {
        let make = dock.make("refused").args(&args);
        let id = make.id().to_owned();
        let mounts = root(&dock, &id, &files);
        let said = make.mounts(mounts).refused();
        assert_eq!(said.code(), Code::FailedPrecondition, "{said:?}");
        let line = said.message();
        for part in parts {
            assert!(line.contains(part), "no `{part}` in: {line}");
        }
        assert!(
            !line.contains('\n') && !line.contains("exec format"),
            "{line}"
        );
        // The OCI runtime was not asked.
        assert!(!line.contains("OCI runtime"), "{line}");
        dock.is_clean();
        assert!(!events.names(&id).contains(&"start".to_owned()));
    }
}

fn an_exec_that_cannot_run_is_refused_and_the_container_goes_on(version: Version) {
    let dock = Dock::new(version);
    let (foreign, arch) = foreign();
    let foreign = fs::read(foreign).unwrap();
    let make = dock.make("exec").args(&["sleep", "600"]);
    let files: [(&str, &[u8]); 2] = [("bin/app", &foreign), ("bin/empty", b"")];
    let mounts = root(&dock, make.id(), &files);
    let task = make.mounts(mounts).start();
    for (n, (file, part)) in [("/bin/app", arch), ("/bin/empty", "is empty")]
        .iter()
        .enumerate()
    {
        let exec = task.exec(&format!("e{n}")).args(&[file]);
        let said = exec
            .add()
            .and_then(|()| exec.start().map(|_| ()))
            .unwrap_err();
        assert_eq!(said.code(), Code::FailedPrecondition, "{said:?}");
        assert!(
            said.message().contains(file) && said.message().contains(part),
            "{said:?}"
        );
        let _registered = exec.delete();
    }
    let exec = task.exec("fine").args(&["true"]);
    exec.run();
    assert_eq!(exec.end(), 0);
    task.end_by_force();
    dock.is_clean();
}

/// As the blockfile snapshotter gives one: a file with a file system in it.
fn an_image_file_is_a_root_file_system_and_is_looked_at(version: Version) {
    let dock = Dock::new(version);
    let (foreign, arch) = foreign();
    let make = dock
        .make("image")
        .args(&["sh", "-c", "echo x >/data/written"]);
    let tree = root(
        &dock,
        make.id(),
        &[("bin/app", &fs::read(foreign).unwrap())],
    );
    let image = make.dir().join("image");
    fs::create_dir_all(make.dir()).unwrap();
    fs::File::create(&image).unwrap().set_len(32 << 20).unwrap();
    let mut mkfs = Command::new(Lab::get().installed("mkfs.ext4"));
    mkfs.args(["-q", "-d", &tree[0].source]).arg(&image);
    process::run(&mut mkfs).ok();
    let mounts = |options: &[&str]| {
        vec![Mount {
            r#type: "ext4".to_owned(),
            source: image.to_str().unwrap().to_owned(),
            target: String::new(),
            options: options.iter().map(|&one| one.to_owned()).collect(),
        }]
    };
    let used = || {
        let devices = fs::read_dir("/sys/block").unwrap();
        let mut behind = devices.filter_map(|device| {
            fs::read_to_string(device.unwrap().path().join("loop/backing_file")).ok()
        });
        behind.any(|file| file.trim_end() == image.to_str().unwrap())
    };
    assert_eq!(make.mounts(mounts(&["loop"])).start().end(), 0);
    wait_for("the end of the device", SOON, || !used());
    let make = dock
        .make("again")
        .args(&["sh", "-c", "test -s /data/written && ! touch /data/x"]);
    let read_only = mounts(&["loop", "ro", "noload"]);
    let task = make.mounts(read_only).start();
    assert_eq!(task.wait(), 0);
    assert!(used());
    task.end();
    let said = dock
        .make("foreign")
        .args(&["app"])
        .mounts(mounts(&["loop"]))
        .refused();
    assert!(
        said.message().contains("/bin/app") && said.message().contains(arch),
        "{said:?}"
    );
    wait_for("the end of the device", SOON, || !used());
    dock.is_clean();
}

/// A wrong refusal is worse than none.
fn what_is_not_known_is_tried(version: Version) {
    let dock = Dock::new(version);
    let (foreign, _) = foreign();
    let foreign = fs::read(foreign).unwrap();
    // Covered by a mount of the container's own: what lies below is not what starts.
    let make = dock.make("covered").args(&["/data/app"]).spec(|spec| {
        let from = rootfs().join("bin");
        spec["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/data", "type": "bind", "source": from, "options": ["rbind", "ro"],
        }));
    });
    let mounts = root(&dock, make.id(), &[("data/true", &foreign)]);
    let task = make.args(&["/data/true"]).mounts(mounts).start();
    assert_eq!(task.end(), 0);
    // A script by a shell, a link, a file without a known format, one that is missing.
    let files: [(&str, &[u8]); 2] = [
        ("bin/script", b"#!/bin/sh\nexit 23\n"),
        ("bin/junk", b"junk\n"),
    ];
    let make = dock.make("script").args(&["script"]);
    let mounts = root(&dock, make.id(), &files);
    assert_eq!(make.mounts(mounts).start().end(), 23);
    let make = dock.make("junk").args(&["/bin/junk"]);
    let mounts = root(&dock, make.id(), &files);
    match make.mounts(mounts).create() {
        Err(said) => assert!(said.message().contains("exec format error"), "{said:?}"),
        Ok(task) => {
            let said = task.start().unwrap_err();
            assert!(said.message().contains("exec format error"), "{said:?}");
            task.kill(9).unwrap();
            task.end();
        }
    }
    let make = dock.make("missing").args(&["/bin/missing"]);
    let mounts = root(&dock, make.id(), &files);
    let said = make.mounts(mounts).refused();
    assert!(
        said.message().contains("no such file or directory"),
        "{said:?}"
    );
    dock.is_clean();
}

/// As a user sees it.
fn ctr_prints_the_line(version: Version) {
    let dock = Dock::new(version);
    let (label, bytes) = (host(), if host() == AMD64 { ARM64 } else { AMD64 });
    let image = dock.pull(image::mislabelled_single(label, bytes));
    let id = dock.id("ctr");
    let run = dock.ctr_run(&["--rm"], &image, &id, &[]);
    assert_ne!(run.code, Some(0), "{}", run.transcript());
    let line = run
        .stderr
        .lines()
        .find(|line| line.contains("/bin/busybox"));
    let line = line.unwrap_or_else(|| panic!("{}", run.transcript()));
    for part in [
        bytes.arch,
        &format!("linux/{}", host().arch),
        "edgepull check",
    ] {
        assert!(line.contains(part), "no `{part}` in: {line}");
    }
    let rest = dock.ctr_run(&["-d"], &image, &id, &["/bin/busybox", "true"]);
    assert_ne!(rest.code, Some(0), "{}", rest.transcript());
    assert!(
        dock.daemon
            .ctr("lab", &["tasks", "ls", "-q"])
            .ok()
            .text()
            .is_empty()
    );
    let _record = dock.daemon.ctr("lab", &["containers", "rm", &id]);
    dock.is_clean();
    // The image of this machine runs.
    let image = dock.pull(image::hello());
    let id = dock.id("right");
    let run = dock.ctr_run(&["--rm"], &image, &id, &[]).ok();
    assert_eq!(run.text(), format!("hello from {}\n", host().arch));
    dock.is_clean();
}

/// A configuration that cannot be read stops no container.
#[test]
fn a_broken_configuration_stops_nothing() {
    for (n, text) in ["[shim", "[shim]\nemulation = 5\n", "\u{0}"]
        .iter()
        .enumerate()
    {
        let dir = Lab::get().run_dir("shim-config");
        let file = dir.path().join("config.toml");
        fs::write(&file, text).unwrap();
        let dock =
            Dock::with(Setup::new(Version::V2).env("EDGEPULL_CONFIG", file.to_str().unwrap()));
        assert_eq!(dock.sh("fine", "exit 3").end(), 3, "configuration {n}");
        let task = running(&dock, "exec");
        let exec = task.exec("fine").args(&["true"]);
        exec.run();
        assert_eq!(exec.end(), 0);
        task.end_by_force();
        dock.is_clean();
    }
}

/// What was sent so far.
fn sent(socket: &UnixDatagram) -> Vec<String> {
    let mut all = Vec::new();
    let mut bytes = vec![0; 16 << 10];
    while let Ok(length) = socket.recv(&mut bytes) {
        all.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
    }
    all
}

/// On a machine that emulates: it runs, and the journal says how; where that is forbidden, it is
/// refused, and the journal and edgepull's daemon are told.
#[cfg(target_arch = "x86_64")]
#[test]
fn what_is_emulated_is_told_or_forbidden() {
    const EMULATED: &str = "MESSAGE_ID=feddd073deb24ea7bd30c179046a33ff";
    const REFUSED: &str = "MESSAGE_ID=b517af57002a4a57abfee016fcb18259";
    let shim = Lab::get().shim();
    let machine = Emulating::start_with(Version::V2, &[shim.parent().unwrap()]);
    let listen = |path: &str| {
        let path = machine.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let journal = listen("/run/systemd/journal/socket");
    let daemon = listen("/run/edgepull/refusals.sock");
    let registry = Faulty::start(image::mislabelled_single(AMD64, ARM64), []);
    let reference = registry.reference("lab/emulated", "latest");
    let ctr = |args: &[&str]| {
        let program = Version::V2.bin().join("ctr");
        let call = machine.call(&program).arg("-a").arg(machine.address());
        call.args(["-n", NAMESPACE]).args(args).run()
    };
    let pull = [
        "images",
        "pull",
        "--plain-http",
        "--local",
        "--skip-metadata",
    ];
    ctr(&[&pull[..], &[reference.as_str()]].concat()).exits(0);
    let run = ["run", "--rm", "--runtime", "io.containerd.edgepull.v1"];
    let ran = ctr(&[&run[..], &[&reference, "emulated"]].concat()).exits(0);
    assert_eq!(ran.text(), "hello from amd64\n", "by an arm64 shell");
    let told = sent(&journal);
    assert!(told.iter().any(|one| one.contains(EMULATED)), "{told:#?}");
    assert!(!told.iter().any(|one| one.contains(REFUSED)), "{told:#?}");
    assert_eq!(sent(&daemon), [""; 0]);
    let never = [
        "--annotation",
        "io.edgepull.emulation=never",
        &reference,
        "never",
    ];
    let refused = ctr(&[&run[..], &never].concat()).exits(1);
    for part in ["/bin/busybox", "arm64", "io.edgepull.emulation"] {
        assert!(
            refused.output.stderr.contains(part),
            "no `{part}` in {}",
            refused.output.stderr
        );
    }
    let told = sent(&journal);
    let record = told.iter().find(|one| one.contains(REFUSED));
    let record = record.unwrap_or_else(|| panic!("{told:#?}"));
    for field in [
        "CONTAINER_ID=never\n",
        "CONTAINER_NAMESPACE=lab\n",
        "EDGEPULL_KIND=not_runnable\n",
        "PRIORITY=3\n",
    ] {
        assert!(record.contains(field), "no {field} in {record}");
    }
    let told = sent(&daemon);
    assert_eq!(told.len(), 1, "{told:#?}");
    let told: serde_json::Value = serde_json::from_str(&told[0]).unwrap();
    assert_eq!(
        (&told["reason"], &told["container"]),
        (&json!("emulation"), &json!("never"))
    );
}

on_each_containerd!(
    what_cannot_run_is_refused_by_name,
    an_exec_that_cannot_run_is_refused_and_the_container_goes_on,
    an_image_file_is_a_root_file_system_and_is_looked_at,
    what_is_not_known_is_tried,
    ctr_prints_the_line,
);
