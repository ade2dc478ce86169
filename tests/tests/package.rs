//! What `make dist` packs: the same bytes each time, what is in them, and the unit's reasons.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use edgepull_tests::device::version;
use edgepull_tests::process::{self, Output};
use edgepull_tests::target::Target;
use edgepull_tests::tools::{Lab, RunDir};

/// Debian's architectures and the targets whose program is in them.
const DEBS: [(&str, &str); 3] = [
    ("amd64", "x86_64-unknown-linux-musl"),
    ("arm64", "aarch64-unknown-linux-musl"),
    // Raspberry Pi OS calls ARMv6 so, too.
    ("armhf", "arm-unknown-linux-musleabihf"),
];

/// Packages of the shipped programs, made in a place of their own.
struct Dist {
    dir: RunDir,
}

impl Dist {
    fn make(umask: &str, file_system: &str) -> Self {
        let dir = Lab::get().run_dir("dist");
        let triples: Vec<String> = Target::all().into_iter().map(|t| t.triple).collect();
        for triple in &triples {
            let place = dir.path().join(triple);
            fs::create_dir(&place).unwrap();
            let target = Target::named(triple);
            for file in [target.file(), target.shim()] {
                fs::copy(&file, place.join(file.file_name().unwrap())).unwrap();
            }
        }
        // Started elsewhere, with another mask and temporary files on another file system.
        let temporary = dir.path().join("tmp");
        fs::create_dir(&temporary).unwrap();
        let script = "[ $2 = disk ] || mount -t $2 none $TMPDIR; umask $1; exec $3 all";
        process::run_within(
            Command::new("unshare")
                .args(["--mount", "sh", "-ec", script, "sh", umask, file_system])
                .arg(Lab::get().workspace().join("cross/package"))
                .current_dir(dir.path())
                .env("EDGEPULL_DIST", dir.path())
                .env("TMPDIR", temporary)
                .env("LANG", "de_DE.UTF-8"),
            std::time::Duration::from_secs(300),
        )
        .ok();
        Self { dir }
    }

    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        fs::read_dir(self.dir.path())
            .unwrap()
            .flatten()
            .filter(|entry| entry.path().is_file())
            .map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                (name, fs::read(entry.path()).unwrap())
            })
            .collect()
    }

    fn deb(&self, arch: &str) -> PathBuf {
        self.dir
            .path()
            .join(format!("edgepull_{}-1_{arch}.deb", version()))
    }

    fn unpacked(&self, arch: &str) -> PathBuf {
        let to = self.dir.path().join(format!("unpacked-{arch}"));
        dpkg_deb(&["--raw-extract"], &self.deb(arch), Some(&to));
        to
    }
}

#[track_caller]
fn dpkg_deb(args: &[&str], file: &Path, to: Option<&Path>) -> Output {
    let mut command = Command::new("dpkg-deb");
    command.args(args).arg(file);
    if let Some(to) = to {
        command.arg(to);
    }
    process::run(&mut command).ok()
}

/// All in one test: making them takes longest.
#[test]
fn packages_are_reproducible_and_whole() {
    let dist = Dist::make("022", "disk");
    let again = Dist::make("077", "tmpfs");
    let (files, others) = (dist.files(), again.files());
    let names: Vec<&String> = files.keys().collect();
    assert_eq!(names, others.keys().collect::<Vec<_>>());
    assert_eq!(names.len(), 4 + 3, "{names:?}");
    for (name, bytes) in &files {
        assert!(others[name] == *bytes, "{name} is not the same twice");
    }
    drop(again);

    for (arch, triple) in DEBS {
        contents(&dist, arch, triple);
    }
    tarball(&dist);
    manual_pages(&dist);
    completions(&dist);
    lintian(&dist);
}

fn contents(dist: &Dist, arch: &str, triple: &str) {
    let field = |name: &str| {
        let mut command = Command::new("dpkg-deb");
        process::run(command.arg("--field").arg(dist.deb(arch)).arg(name))
            .ok()
            .text()
    };
    assert_eq!(field("Architecture"), format!("{arch}\n"));
    let dir = dist.unpacked(arch);
    for file in [Target::named(triple).file(), Target::named(triple).shim()] {
        let packed = dir.join("usr/bin").join(file.file_name().unwrap());
        assert!(
            fs::read(&packed).unwrap() == fs::read(&file).unwrap(),
            "{} of {arch} is not {triple}'s",
            packed.display()
        );
    }
    let verifier = dir.join("usr/lib/edgepull/image-verifier/edgepull-image-verifier");
    assert_eq!(
        fs::canonicalize(verifier).unwrap(),
        fs::canonicalize(dir.join("usr/bin/edgepull")).unwrap()
    );
    let conffiles = fs::read_to_string(dir.join("DEBIAN/conffiles")).unwrap();
    assert_eq!(
        conffiles,
        "/etc/edgepull/config.toml\n/etc/edgepull/images.d/example.txt\n"
    );
    for path in [
        "usr/lib/systemd/system/edgepull.service",
        "usr/lib/sysusers.d/edgepull.conf",
        "usr/lib/tmpfiles.d/edgepull.conf",
        "usr/lib/systemd/catalog/edgepull.catalog",
        "usr/share/man/man1/edgepull.1.gz",
        "usr/share/man/man5/edgepull-hosts.5.gz",
        "usr/share/man/man5/edgepull-images.5.gz",
        "usr/share/man/man8/containerd-shim-edgepull-v1.8.gz",
        "usr/share/doc/edgepull/docs/shim.md",
        "usr/share/doc/edgepull/examples/shim/containerd-1.6.toml",
        "usr/share/doc/edgepull/examples/shim/containerd-1.toml",
        "usr/share/doc/edgepull/examples/shim/k3s/config-v3.toml.tmpl",
        "usr/share/doc/edgepull/docs/metrics.md",
        "usr/share/doc/edgepull/copyright",
        "usr/share/doc/edgepull/changelog.Debian.gz",
    ] {
        assert!(dir.join(path).is_file(), "{arch}: {path}");
    }
    // An example declares nothing.
    let example = fs::read_to_string(dir.join("etc/edgepull/images.d/example.txt")).unwrap();
    assert!(example.lines().all(|line| line.starts_with('#')));
    // Everybody may read it: whoever calls the command line, too.
    let listed = dpkg_deb(&["--contents"], &dist.deb(arch), None).text();
    for line in listed.lines() {
        assert!(line.contains(" root/root "), "{line}");
        let mode = line.split(' ').next().unwrap();
        assert!(
            ["drwxr-xr-x", "-rwxr-xr-x", "-rw-r--r--", "lrwxrwxrwx"].contains(&mode),
            "{line}"
        );
    }
}

fn tarball(dist: &Dist) {
    let name = format!("edgepull-{}-aarch64-unknown-linux-musl", version());
    let archive = dist.dir.path().join(format!("{name}.tar.gz"));
    process::run(
        Command::new("tar")
            .arg("-C")
            .arg(dist.dir.path())
            .arg("-xzf")
            .arg(archive),
    )
    .ok();
    let dir = dist.dir.path().join(name);
    for file in [
        "LICENSE",
        "README.md",
        "completions/edgepull.bash",
        "man/containerd-shim-edgepull-v1.8",
        "examples/shim/kubernetes.yaml",
    ] {
        assert!(dir.join(file).is_file(), "{file}");
    }
    let root = dist.dir.path().join("installed");
    let at = |path: &str| root.join(path);
    fs::create_dir_all(at("usr/bin")).unwrap();
    install(&dir, &root);
    for file in [
        "usr/lib/systemd/system/edgepull.service",
        "usr/lib/sysusers.d/edgepull.conf",
        "usr/lib/tmpfiles.d/edgepull.conf",
        "usr/lib/systemd/catalog/edgepull.catalog",
        "etc/edgepull/images.d/example.txt",
        // Calls of the command line by others than root read it.
        "etc/edgepull/config.toml",
    ] {
        let found = fs::metadata(at(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        assert_eq!(found.permissions().mode() & 0o777, 0o644, "{file}");
    }
    // An upgrade leaves alone what somebody wrote, or took away.
    fs::write(at("etc/edgepull/config.toml"), "# mine\n").unwrap();
    fs::remove_file(at("etc/edgepull/images.d/example.txt")).unwrap();
    let programs = ["edgepull", "containerd-shim-edgepull-v1"];
    for program in programs {
        fs::write(at("usr/bin").join(program), "old").unwrap();
    }
    install(&dir, &root);
    assert_eq!(
        fs::read_to_string(at("etc/edgepull/config.toml")).unwrap(),
        "# mine\n"
    );
    assert!(!at("etc/edgepull/images.d/example.txt").exists());
    for program in programs {
        assert!(
            fs::read(at("usr/bin").join(program)).unwrap() == fs::read(dir.join(program)).unwrap(),
            "{program} is not the new one"
        );
    }
}

/// What `INSTALL` says, below another root and without what needs the system's systemd.
fn install(dir: &Path, root: &Path) {
    let text = fs::read_to_string(dir.join("INSTALL")).unwrap();
    let commands: Vec<String> = text
        .lines()
        .filter_map(|line| line.strip_prefix("  "))
        .filter(|line| !line.starts_with("system") && !line.starts_with("journalctl"))
        .map(|line| line.replace(" /", &format!(" {}/", root.display())))
        .collect();
    assert!(commands.len() > 5, "{text}");
    let script = commands.join("\n");
    process::run(Command::new("sh").args(["-euxc", &script]).current_dir(dir)).ok();
}

fn lintian(dist: &Dist) {
    for (arch, _) in DEBS {
        let said = process::run(
            Command::new(Lab::get().installed("lintian"))
                .args(["--allow-root", "--fail-on=error,warning"])
                .arg(dist.deb(arch))
                .env("TMPDIR", dist.dir.path()),
        );
        assert_eq!(said.code, Some(0), "{}", said.transcript());
        assert!(!said.text().contains("unused-override"), "{}", said.text());
    }
}

fn manual_pages(dist: &Dist) {
    let dir = dist.dir.path().join("unpacked-amd64/usr/share/man");
    let mut pages = 0;
    for section in fs::read_dir(&dir).unwrap().flatten() {
        for page in fs::read_dir(section.path()).unwrap().flatten() {
            let shown = process::run(
                Command::new(Lab::get().installed("man"))
                    .args(["--warnings", "--local-file"])
                    .arg(page.path())
                    .env("LC_ALL", "C.UTF-8")
                    .env("MANROFFSEQ", "")
                    .env("MANWIDTH", "80"),
            )
            .ok();
            assert_eq!(shown.stderr, "", "{}", page.path().display());
            assert!(shown.text().contains("NAME"), "{}", page.path().display());
            pages += 1;
        }
    }
    assert!(pages >= 4);
}

fn completions(dist: &Dist) {
    let file = dist
        .dir
        .path()
        .join("unpacked-amd64/usr/share/bash-completion/completions/edgepull");
    let script = r#"source "$1" && complete -p edgepull"#;
    process::run(Command::new("bash").args(["-c", script, "bash"]).arg(file)).ok();
}

/// The script of the package, `purge`, where the copy of the program that prerm made is `program`;
/// in a mount namespace of its own, since the paths are the system's.
fn purge(program: Option<&str>) -> Output {
    let script = r#"
        for dir in /run /var/lib /etc/edgepull; do
            [ ! -d $dir ] || mount -t tmpfs -o mode=755 none $dir
        done
        mkdir -p /var/lib/edgepull/.purge
        cd /var/lib/edgepull/.purge
        if [ -n "$2" ]; then
            echo "$2" >edgepull
            chmod 755 edgepull
        fi
        touch config.toml
        sh "$1" purge
        [ ! -e /var/lib/edgepull ]
    "#;
    let postrm = Lab::get().workspace().join("cross/debian/postrm");
    process::run(
        Command::new("unshare")
            .args(["--mount", "sh", "-euc", script, "sh"])
            .arg(postrm)
            .arg(program.unwrap_or_default())
            .env("DPKG_MAINTSCRIPT_PACKAGE", "edgepull"),
    )
    .ok()
}

#[test]
fn a_purge_that_cannot_drop_pins_says_how() {
    let good = r#"#!/bin/sh
[ "$*" = '--config=/var/lib/edgepull/.purge/config.toml prune --release' ]"#;
    assert_eq!(purge(Some(good)).stderr, "");
    for program in [None, Some("#!/bin/sh\nexit 40"), Some("#!/no/such/program")] {
        let said = purge(program).stderr;
        let hint = "ctr -n NAMESPACE images label REF io.edgepull.pin= io.edgepull.pinned= \
                    io.cri-containerd.pinned=\n";
        assert!(said.ends_with(hint), "{program:?}: {said}");
    }
}

/// A removal while a container runs with the shim: told, and done.
#[test]
fn a_removal_under_running_containers_is_told() {
    let prerm = Lab::get().workspace().join("cross/debian/prerm");
    // Paths are the system's: so all of it in a mount namespace, with a program that stays for a while.
    let script = r#"
        mount -t tmpfs none /run
        for dir in /usr/bin /var/lib; do
            mkdir -p "$2$dir-upper" "$2$dir-work"
            mount -t overlay -o "lowerdir=$dir,upperdir=$2$dir-upper,workdir=$2$dir-work" none $dir
        done
        cp /bin/sleep /usr/bin/containerd-shim-edgepull-v1
        cp /bin/true /usr/bin/edgepull
        export PATH=/usr/bin:/bin
        sh "$1" remove 2>"$2/none"
        /usr/bin/containerd-shim-edgepull-v1 600 & shim=$!
        trap 'kill $shim' EXIT
        until [ "$(readlink /proc/$shim/exe)" = /usr/bin/containerd-shim-edgepull-v1 ]; do :; done
        sh "$1" upgrade 2>>"$2/none"
        sh "$1" remove
        [ ! -s "$2/none" ]
    "#;
    let dir = Lab::get().run_dir("prerm");
    let said = process::run(
        Command::new("unshare")
            .args(["--mount", "bash", "-euc", script, "sh"])
            .arg(prerm)
            .arg(dir.path())
            .env("DPKG_MAINTSCRIPT_PACKAGE", "edgepull"),
    )
    .ok();
    assert!(
        said.stderr
            .contains("containers run with containerd-shim-edgepull-v1"),
        "{}",
        said.transcript()
    );
}

#[test]
fn every_option_of_the_unit_has_its_reason() {
    let path = Lab::get().workspace().join("systemd/edgepull.service");
    let text = fs::read_to_string(path).unwrap();
    let mut before = "";
    let mut options = 0;
    for line in text.lines() {
        if !line.starts_with('#') && line.contains('=') {
            assert!(before.starts_with('#'), "no reason above `{line}`");
            options += 1;
        }
        before = line;
    }
    assert!(options > 50, "{options} options");
}
