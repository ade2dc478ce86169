use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
};

use edgepull_platform::{
    Facts, detect,
    launch::testing::{AMD64, ARM, ARM64, I386, program},
};
use nix::{sys::stat, unistd::mkfifo};
use serde_json::{Value, json};

mod properties;

use super::*;

const QEMU: &str = "enabled\ninterpreter /usr/bin/qemu-aarch64-static\nflags: FLAGS\noffset 0\n\
    magic 7f454c460201010000000000000000000200b700\nmask ffffffffffffff00fffffffffffffffffeffffff\n";
const STATUS: (&str, &str) = ("proc/sys/fs/binfmt_misc/status", "enabled\n");

/// A bundle in a directory of its own.
struct Scene {
    dir: tempfile::TempDir,
    config: Value,
}

impl Scene {
    fn new(args: &[&str]) -> Scene {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("rootfs")).expect("made");
        let config = json!({
            "process": {
                "args": args,
                "env": ["PATH=/usr/bin:/bin"],
                "cwd": "/",
                "user": {"uid": 0, "gid": 0},
                "capabilities": {"effective": ["CAP_CHOWN", "CAP_DAC_OVERRIDE"]},
            },
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/dev/shm", "type": "tmpfs", "source": "shm"},
            ],
        });
        Scene { dir, config }
    }

    fn rootfs(&self) -> PathBuf {
        self.dir.path().join("rootfs")
    }

    fn at(&self, path: &str) -> PathBuf {
        let path = self.dir.path().join(path);
        fs::create_dir_all(path.parent().expect("one")).expect("made");
        path
    }

    /// A file that everybody may execute, below the bundle.
    fn file(self, path: &str, bytes: &[u8]) -> Scene {
        self.with_mode(path, bytes, 0o755)
    }

    fn with_mode(self, path: &str, bytes: &[u8], mode: u32) -> Scene {
        let at = self.at(path);
        fs::write(&at, bytes).expect("written");
        fs::set_permissions(&at, fs::Permissions::from_mode(mode)).expect("set");
        self
    }

    fn link(self, path: &str, target: &str) -> Scene {
        symlink(target, self.at(path)).expect("linked");
        self
    }

    fn set(mut self, pointer: &str, value: Value) -> Scene {
        let (parent, key) = pointer.rsplit_once('/').expect("a pointer");
        let parent = self.config.pointer_mut(parent).expect("there");
        parent[key] = value;
        self
    }

    fn mount(mut self, destination: &str, mount: &Value) -> Scene {
        let mut mount = mount.clone();
        mount["destination"] = destination.into();
        self.config["mounts"]
            .as_array_mut()
            .expect("a list")
            .push(mount);
        self
    }

    fn bound(self, destination: &str, source: &str) -> Scene {
        let source = self.dir.path().join(source);
        let mount = json!({"type": "bind", "source": source, "options": ["rbind", "ro"]});
        self.mount(destination, &mount)
    }

    fn bundle(&self) -> Bundle {
        Bundle::parse(self.config.to_string().as_bytes()).expect("a bundle")
    }

    fn asked(&self, host: &Host, policy: Emulation) -> Decision {
        let here = Here::known(host.clone());
        examine(&self.bundle(), &self.rootfs(), &here, policy)
    }

    fn on(&self, host: &Host) -> Decision {
        self.asked(host, Emulation::Allow)
    }

    /// The line of a refusal on a plain amd64 host.
    fn line(&self) -> String {
        match self.on(&amd64()) {
            Decision::Refuse(refusal) => refusal.line().to_owned(),
            other => panic!("{other:?}"),
        }
    }

    fn goes(&self) {
        assert_eq!(self.on(&amd64()), Decision::Go, "{}", self.config);
    }

    fn refused(&self, reason: &str) {
        match self.on(&amd64()) {
            Decision::Refuse(refusal) => assert_eq!(refusal.reason(), reason),
            other => panic!("{other:?}: {}", self.config),
        }
    }
}

fn host(probes: &str, handlers: &[(&str, &str)]) -> Host {
    let files = [STATUS].into_iter().chain(handlers.iter().copied());
    detect(&Facts::from_texts(probes, files)).expect("a host")
}

fn amd64() -> Host {
    let probes = "uname_machine=x86_64\nAT_PAGESZ=4096\nkernel_config_ia32_emulation=y";
    host(probes, &[])
}

fn with_qemu(flags: &str) -> Host {
    let text = QEMU.replace("FLAGS", flags);
    let table = [("proc/sys/fs/binfmt_misc/qemu-aarch64", text.as_str())];
    host("uname_machine=x86_64\nAT_PAGESZ=4096", &table)
}

/// The table of handlers was not seen.
fn unobserved() -> Host {
    let facts = Facts::from_texts("uname_machine=x86_64\nAT_PAGESZ=4096", []);
    detect(&facts).expect("a host")
}

#[test]
fn a_program_for_other_cores_is_refused_with_the_next_step() {
    let scene = Scene::new(&["app"]).file("rootfs/usr/bin/app", &program(ARM64, None));
    assert_eq!(
        scene.line(),
        "cannot run here: /usr/bin/app of the container is a static program for arm64; this host \
         (linux/amd64) runs amd64 and 386; use an image that has linux/amd64 \
         (`edgepull check IMAGE` tells), or register an emulator"
    );
    let named = scene.set(
        "/annotations",
        json!({"io.kubernetes.cri.image-name": "docker.io/library/app:1"}),
    );
    assert!(
        named
            .line()
            .contains("`edgepull check docker.io/library/app:1` tells")
    );
    named
        .set("/process/args", json!(["/usr/bin/app", "x"]))
        .refused("machine");
    for own in [AMD64, I386] {
        let scene = Scene::new(&["app"]).file("rootfs/bin/app", &program(own, None));
        scene.goes();
    }
}

#[test]
fn a_file_of_a_power_cut_is_named_as_one() {
    let empty = Scene::new(&["/app"]).file("rootfs/app", b"");
    assert!(
        empty.line().starts_with(
            "cannot run here: /app of the container is empty, probably from a power cut; \
             `edgepull repair IMAGE` "
        ),
        "{}",
        empty.line()
    );
    empty.refused("empty");
    let zeros = Scene::new(&["/app"]).file("rootfs/app", &[0; 5000]);
    assert!(
        zeros
            .line()
            .contains("consists of zeros, probably from a power cut")
    );
    let mut half = program(AMD64, None);
    half.truncate(100);
    let cut = Scene::new(&["/app"]).file("rootfs/app", &half);
    cut.refused("damaged");
    assert!(
        cut.line().contains("`edgepull repair IMAGE`"),
        "{}",
        cut.line()
    );
    let script = Scene::new(&["/entry.sh"])
        .file("rootfs/entry.sh", b"#!/bin/sh\n")
        .file("rootfs/bin/sh", b"");
    assert!(
        script
            .line()
            .contains("/bin/sh of the container, which /entry.sh needs, is empty"),
        "{}",
        script.line()
    );
    // A loader, too.
    let loader = Scene::new(&["/app"])
        .file("rootfs/app", &program(AMD64, Some("/lib/ld.so")))
        .file("rootfs/lib/ld.so", b"");
    assert!(
        loader.line().contains("edgepull repair"),
        "{}",
        loader.line()
    );
}

#[test]
fn what_an_init_starts_counts_and_the_init_may_be_mounted() {
    let scene = Scene::new(&["/sbin/docker-init", "--", "app"])
        .file("host-init", &program(AMD64, None))
        .file("rootfs/bin/app", &program(ARM64, None))
        .bound("/sbin/docker-init", "host-init");
    scene.refused("machine");
    assert!(
        scene
            .line()
            .contains("/bin/app of the container, which /sbin/docker-init starts, is a"),
        "{}",
        scene.line()
    );
    let foreign = Scene::new(&["/sbin/docker-init", "--", "app"])
        .file("host-init", &program(ARM64, None))
        .bound("/sbin/docker-init", "host-init");
    foreign.refused("machine");
}

#[test]
fn what_cannot_be_known_goes() {
    let foreign = || Scene::new(&["app"]).file("rootfs/usr/bin/app", &program(ARM64, None));
    foreign().refused("machine");
    for (pointer, value) in [
        ("/process/args", json!(["gone"])),
        ("/process/args", json!([])),
        ("/process/args", Value::Null),
        ("/process/args", json!([""])),
        ("/process/args", json!(["/dev/app"])),
        ("/process/args", json!(["/proc/self/exe"])),
        ("/process", Value::Null),
        ("/process/env", json!([])),
        ("/process/env", json!(["PATH="])),
        ("/process/env", json!(["PATH=/usr/bin", "PATH=:/usr/bin"])),
        ("/linux", json!({"namespaces": [{"type": "user"}]})),
        ("/linux", json!({"uidMappings": [{"containerID": 0}]})),
        ("/annotations", json!({"run.oci.handler": "wasm"})),
    ] {
        foreign().set(pointer, value).goes();
    }
    // Nobody may execute it; or not this user, perhaps.
    let bytes = program(ARM64, None);
    Scene::new(&["/app"])
        .with_mode("rootfs/app", &bytes, 0o644)
        .goes();
    let mine = |uid: u32| {
        Scene::new(&["/app"])
            .with_mode("rootfs/app", &bytes, 0o700)
            .set("/process/user", json!({"uid": uid}))
    };
    mine(1000).goes();
    mine(0).refused("machine");
    mine(0)
        .set("/process/capabilities", Value::Null)
        .refused("machine");
    // As a runtime does, what the user may not execute is passed by.
    Scene::new(&["app"])
        .with_mode("rootfs/usr/bin/app", &bytes, 0o644)
        .file("rootfs/bin/app", &program(AMD64, None))
        .goes();
    let closed = Scene::new(&["/a/app"])
        .file("rootfs/a/app", &bytes)
        .set("/process/user", json!({"uid": 1000}));
    closed.refused("machine");
    fs::set_permissions(closed.at("rootfs/a"), fs::Permissions::from_mode(0o700)).expect("set");
    closed.goes();
    let here = Here::known(amd64());
    let nowhere = closed.dir.path().join("nowhere");
    assert_eq!(
        examine(&closed.bundle(), &nowhere, &here, Emulation::Allow),
        Decision::Go
    );
    assert!(Bundle::parse(b"{").is_none());
    assert!(Bundle::parse(b"{\"process\":3}").is_none());
}

#[test]
fn pipes_devices_and_links_hold_nothing_up() {
    let scene = Scene::new(&["/pipe"]);
    mkfifo(&scene.at("rootfs/pipe"), stat::Mode::S_IRWXU).expect("made");
    scene.goes();
    let device = stat::makedev(1, 3);
    let null = scene.at("rootfs/null");
    stat::mknod(&null, stat::SFlag::S_IFCHR, stat::Mode::S_IRWXU, device).expect("root");
    scene.set("/process/args", json!(["/null"])).goes();
    // Links stay inside: of this host nothing is looked at.
    Scene::new(&["/app"])
        .file("secret", &program(ARM64, None))
        .link("rootfs/app", "../secret")
        .link("rootfs/loop", "loop")
        .goes();
    Scene::new(&["/bin/app"])
        .file("rootfs/usr/bin/app", &program(ARM64, None))
        .link("rootfs/bin", "/usr/bin")
        .refused("machine");
    Scene::new(&["/loop"]).link("rootfs/loop", "loop").goes();
}

#[test]
fn what_lies_below_a_mount_is_looked_at_where_it_comes_from_or_not_at_all() {
    let own = program(AMD64, None);
    let foreign = program(ARM64, None);
    let volume = |destination: &str| {
        Scene::new(&["/opt/app"])
            .file("rootfs/opt/app", &own)
            .file("volume/app", &foreign)
            .bound(destination, "volume")
    };
    volume("/opt").refused("machine");
    volume("/opt/").refused("machine");
    volume("/elsewhere/../opt").refused("machine");
    volume("/op").goes();
    volume("/opt/sub").goes();
    // Mounted by way of a link of the image, also from a mount to the next.
    let mut linked = Scene::new(&["/opt/app"])
        .file("rootfs/opt/app", &own)
        .link("rootfs/srv", "opt")
        .file("volume/app", &foreign)
        .bound("/srv", "volume");
    linked.refused("machine");
    // A later one lies over it.
    linked = linked.file("other/app", &own).bound("/opt", "other");
    linked.goes();
    linked = linked.mount("/opt", &json!({"type": "tmpfs", "source": "tmpfs"}));
    linked.goes();
    // Inside a volume links are the container's.
    Scene::new(&["/opt/app"])
        .file("rootfs/usr/bin/x", &foreign)
        .link("volume/app", "/usr/bin/x")
        .bound("/opt", "volume")
        .refused("machine");
    // What cannot be looked at.
    let image = || {
        Scene::new(&["/opt/app"])
            .file("rootfs/opt/app", &foreign)
            .file("volume/app", &foreign)
    };
    image().bound("/opt", "nowhere").goes();
    for mount in [
        json!({"type": "nfs", "source": "server:/x"}),
        json!({"type": "bind", "source": "/", "options": ["rbind", "idmap"]}),
        json!({"type": "bind", "source": "/", "options": ["bind"], "uidMappings": [{}]}),
        json!({"type": "overlay", "source": "overlay"}),
        json!({}),
    ] {
        image().mount("/opt", &mount).goes();
    }
    image()
        .mount(
            "/opt/app",
            &json!({"type": "bind", "source": "volume/app", "options": ["bind"]}),
        )
        .goes();
    image().mount("/", &json!({"type": "tmpfs"})).goes();
}

#[test]
fn a_hook_may_bring_what_is_missing_and_the_network_does_not() {
    let hook = |name: &str| json!({"prestart": [{"path": "/proc/1/exe", "args": [name, "x"]}]});
    let scene = |bytes: &[u8], name: &str| {
        Scene::new(&["/bin/app"])
            .file("rootfs/bin/app", bytes)
            .set("/hooks", hook(name))
    };
    let lost = program(AMD64, Some("/lib/ld.so"));
    scene(b"", "nvidia-container-runtime-hook").goes();
    scene(&lost, "nvidia-container-runtime-hook").goes();
    scene(&program(ARM64, None), "nvidia-container-runtime-hook").goes();
    scene(&program(ARM64, None), "libnetwork-setkey").refused("machine");
    scene(b"", "libnetwork-setkey").refused("empty");
    scene(&lost, "libnetwork-setkey").refused("interpreter");
}

#[test]
fn an_emulator_runs_it_unless_somebody_forbids_that() {
    let scene = || Scene::new(&["/app"]).file("rootfs/app", &program(ARM64, None));
    let warned = |decision: Decision| match decision {
        Decision::GoWithWarning(emulated) => emulated.line().to_owned(),
        other => panic!("{other:?}"),
    };
    let refused = |decision: Decision| match decision {
        Decision::Refuse(refusal) => (refusal.reason(), refusal.line().to_owned()),
        other => panic!("{other:?}"),
    };
    let line = warned(scene().on(&with_qemu("F")));
    assert!(
        line.starts_with(
            "/app of the container is a static program for arm64; this host (linux/amd64) runs it \
             by the emulator `qemu-aarch64`"
        ),
        "{line}"
    );
    let (reason, line) = refused(scene().asked(&with_qemu("F"), Emulation::Never));
    assert_eq!(reason, "emulation");
    assert!(line.contains("[shim] emulation"), "{line}");
    // The stricter of the two counts.
    let annotated = |value| scene().set("/annotations", json!({"io.edgepull.emulation": value}));
    assert_eq!(
        refused(annotated("never").on(&with_qemu("F"))).0,
        "emulation"
    );
    assert_eq!(
        refused(annotated("allow").asked(&with_qemu("F"), Emulation::Never)).0,
        "emulation"
    );
    warned(annotated("allow").on(&with_qemu("F")));
    // Without F the emulator has to be in the image.
    let (reason, line) = refused(scene().on(&with_qemu("")));
    assert_eq!(reason, "interpreter");
    assert!(line.contains("lacks the flag F"), "{line}");
    let inside = scene().file("rootfs/usr/bin/qemu-aarch64-static", &program(AMD64, None));
    warned(inside.on(&with_qemu("")));
    // What the cores run is not emulated, whatever is forbidden.
    let own = Scene::new(&["/app"]).file("rootfs/app", &program(AMD64, None));
    assert_eq!(own.asked(&with_qemu("F"), Emulation::Never), Decision::Go);
}

#[test]
fn handlers_that_nobody_saw_may_be_there() {
    let foreign = Scene::new(&["/app"]).file("rootfs/app", &program(ARM64, None));
    assert_eq!(foreign.on(&unobserved()), Decision::Go);
    foreign.refused("machine");
    let text = Scene::new(&["/app"]).file("rootfs/app", b"print('x')\n");
    assert_eq!(text.on(&unobserved()), Decision::Go);
    text.refused("format");
    // No handler is for an empty file, nor for what these cores run.
    let empty = Scene::new(&["/app"]).file("rootfs/app", b"");
    assert!(matches!(empty.on(&unobserved()), Decision::Refuse(_)));
    let lost = Scene::new(&["/app"]).file("rootfs/app", &program(AMD64, Some("/lib/ld.so")));
    assert!(matches!(lost.on(&unobserved()), Decision::Refuse(_)));
}

#[test]
fn other_obstacles_have_their_own_next_steps() {
    let arm64 = |pages: u32, mode: &str| {
        host(
            &format!("uname_machine=aarch64\nAT_PAGESZ={pages}\n{mode}"),
            &[],
        )
    };
    let line = |scene: &Scene, host: &Host| match scene.on(host) {
        Decision::Refuse(refusal) => (refusal.reason(), refusal.line().to_owned()),
        other => panic!("{other:?}"),
    };
    let narrow = Scene::new(&["/app"]).file("rootfs/app", &program(ARM, None));
    let (reason, told) = line(&narrow, &arm64(4096, "personality_per_linux32=einval"));
    assert_eq!(reason, "mode");
    assert!(
        told.contains("no 32-bit Arm mode") && told.contains("`edgepull inspect IMAGE`"),
        "{told}"
    );
    assert_eq!(
        narrow.on(&arm64(
            4096,
            "personality_per_linux32=ok\nuname_machine_under_linux32=armv8l"
        )),
        Decision::Go
    );
    let lost =
        Scene::new(&["/bin/app"]).file("rootfs/bin/app", &program(AMD64, Some("/lib/ld-musl.so")));
    let (reason, told) = line(&lost, &amd64());
    assert_eq!(reason, "interpreter");
    assert!(told.contains("/bin/app of the container is a program for amd64, and its loader `/lib/ld-musl.so` does not exist"), "{told}");
    let windows = Scene::new(&["/app.exe"]).file("rootfs/app.exe", b"MZ\0\0");
    assert!(
        line(&windows, &amd64())
            .1
            .contains("runs Linux programs for amd64"),
        "{}",
        windows.line()
    );
}

#[test]
fn a_line_is_one_line_whatever_the_names_are() {
    let name = format!("a\n\u{1b}[31m\u{85}{}", "ä".repeat(100));
    let deep = format!("{name}/").repeat(8);
    let path = format!("/{deep}app");
    let image = "r".repeat(3000);
    for bytes in [
        program(ARM64, None),
        Vec::new(),
        b"#!/bin/no\x01thing\r\n".to_vec(),
    ] {
        let scene = Scene::new(&[&path])
            .file(&format!("rootfs{path}"), &bytes)
            .set(
                "/annotations",
                json!({"io.kubernetes.cri.image-name": image}),
            );
        let line = scene.line();
        assert!(line.len() < 1000, "{}", line.len());
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
}

#[test]
fn an_exec_is_judged_as_its_container_is() {
    let scene = Scene::new(&["/own"])
        .file("rootfs/own", &program(AMD64, None))
        .file("rootfs/usr/bin/tool", &program(ARM64, None));
    let here = Here::known(amd64());
    let exec = |json: Value| {
        let process = Process::parse(json.to_string().as_bytes()).expect("a process");
        examine_process(
            &scene.bundle(),
            &process,
            &scene.rootfs(),
            &here,
            Emulation::Allow,
        )
    };
    let env = json!(["PATH=/usr/bin"]);
    let tool = exec(json!({"args": ["tool"], "env": env, "cwd": "/"}));
    assert!(matches!(tool, Decision::Refuse(_)), "{tool:?}");
    assert_eq!(
        exec(json!({"args": ["/own"], "env": env, "cwd": "/"})),
        Decision::Go
    );
    let relative = exec(json!({"args": ["bin/tool"], "cwd": "/usr"}));
    assert!(matches!(relative, Decision::Refuse(_)), "{relative:?}");
}
