//! `containerd-shim-edgepull-v1` by its command line, as each containerd calls it: what is on its
//! standard input, and what it answers, byte for byte.
//!
//! What containerd 2.3 and later write and read is `BootstrapParams` and `BootstrapResult`
//! (api/runtime/bootstrap/v1 of v2.3.4), here by their bytes: the lab has no such containerd.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use edgepull_tests::dock::ttrpc::{Connected, Id, Wire};
use edgepull_tests::dock::{crun, sockets_of, wire};
use edgepull_tests::process::{self, wait_for};
use edgepull_tests::tools::{Lab, RunDir};
use nix::sys::signal::Signal;
use prost::Message;
use serde_json::json;

const SOON: Duration = Duration::from_secs(60);
const SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];
const UNIMPLEMENTED: i32 = 12;

/// A bundle and a containerd that is not there.
#[derive(Debug)]
struct Place {
    dir: RunDir,
    namespace: String,
}

/// What a call left.
#[derive(Debug)]
struct Said {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl Said {
    #[track_caller]
    fn ok(self) -> Vec<u8> {
        assert_eq!(self.code, Some(0), "{self:?}");
        assert_eq!(
            self.stderr, "",
            "containerd reads it as a part of the answer"
        );
        self.stdout
    }

    #[track_caller]
    fn address(self) -> String {
        String::from_utf8(self.ok()).unwrap()
    }

    #[track_caller]
    fn refused(self) -> String {
        assert_ne!(self.code, Some(0), "{self:?}");
        assert!(self.stdout.is_empty(), "{self:?}");
        assert_eq!(self.stderr.trim_end().lines().count(), 1, "{self:?}");
        self.stderr
    }
}

impl Place {
    fn new() -> Self {
        let dir = Lab::get().run_dir("start");
        let namespace = "lab".to_owned();
        Self { dir, namespace }
    }

    fn containerd(&self) -> PathBuf {
        self.dir.path().join("c.sock")
    }

    fn bundle(&self, id: &str, annotations: &serde_json::Value) -> PathBuf {
        let bundle = self.dir.path().join(id);
        fs::create_dir_all(&bundle).unwrap();
        let config = json!({"ociVersion": "1.0.2", "annotations": annotations});
        fs::write(bundle.join("config.json"), config.to_string()).unwrap();
        bundle
    }

    fn command(&self, id: &str, action: &[&str]) -> Command {
        let mut command = Command::new(Lab::get().shim());
        command
            .args(["-namespace", &self.namespace, "-id", id, "-address"])
            .arg(self.containerd())
            .args(["-publish-binary", "/usr/bin/containerd"])
            .args(action)
            .current_dir(self.dir.path().join(id))
            .env("TTRPC_ADDRESS", self.dir.path().join("t.sock"))
            .env("PATH", Lab::get().path_with(Path::new("/bin")));
        command
    }

    #[track_caller]
    fn start(&self, id: &str, input: &[u8]) -> Said {
        call(&mut self.command(id, &["start"]), input)
    }

    fn socket(&self, group: &str) -> PathBuf {
        sockets_of(&self.containerd(), &self.namespace, group).remove(0)
    }

    /// No process and no socket of these.
    #[track_caller]
    fn is_clean(&self, groups: &[&str]) {
        wait_for("the end of every shim", SOON, || {
            process::users_of(self.dir.path()).is_empty()
        });
        for group in groups {
            assert!(
                !self.socket(group).exists(),
                "the socket of {group} is left"
            );
        }
    }
}

/// Its standard input is closed after `input`; its outputs are read to their ends, as containerd
/// does: a server that keeps them open would hold it up for ever.
#[track_caller]
fn call(command: &mut Command, input: &[u8]) -> Said {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // One that does not read it is right as well.
    let _unread = stdin.write_all(input);
    drop(stdin);
    let (to, done) = std::sync::mpsc::channel();
    let pid = child.id();
    std::thread::spawn(move || {
        let _nobody_waits = to.send(child.wait_with_output());
    });
    let output = done.recv_timeout(SOON).unwrap_or_else(|_| {
        process::send(pid, Signal::SIGKILL);
        panic!("its outputs stay open");
    });
    let output = output.unwrap();
    Said {
        code: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

#[track_caller]
fn shutdown(address: &str) {
    let mut wire = Wire::connect(address).unwrap();
    let id = Id { id: "x".into() };
    let answer: Result<Id, _> = wire.call(SERVICES[0], "Shutdown", &id);
    answer.unwrap();
}

/// The pid of who answers there.
#[track_caller]
fn served_by(address: &str, service: &str) -> u32 {
    let mut wire = Wire::connect(address).unwrap();
    let nobody = Id {
        id: "nobody".into(),
    };
    let answer: Connected = wire.call(service, "Connect", &nobody).unwrap();
    assert_eq!(answer.task_pid, 0);
    answer.shim_pid
}

/// A protobuf field of text.
fn text(field: u8, value: &str) -> Vec<u8> {
    let mut bytes = vec![field << 3 | 2];
    let mut length = value.len();
    while length > 0x7f {
        bytes.push(u8::try_from(length & 0x7f).unwrap() | 0x80);
        length >>= 7;
    }
    bytes.push(u8::try_from(length).unwrap());
    bytes.extend(value.as_bytes());
    bytes
}

/// As containerd 1.6 to 2.2 call: nothing, or the options.
#[test]
fn an_old_containerd_gets_a_bare_address() {
    let options = wire::RuncOptions::default().any().encode_to_vec();
    let more = wire::RuncOptions {
        binary_name: "runc".into(),
        ..wire::RuncOptions::default()
    };
    let foreign = wire::RuntimeOptions {
        type_url: "any.Options".into(),
        ..wire::RuntimeOptions::default()
    };
    for input in [
        Vec::new(),
        options,
        more.any().encode_to_vec(),
        foreign.any().encode_to_vec(),
    ] {
        let place = Place::new();
        let bundle = place.bundle("old", &json!({}));
        let address = place.start("old", &input).address();
        let socket = place.socket("old");
        assert_eq!(address.trim_end(), format!("unix://{}", socket.display()));
        let permissions = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(permissions(&socket), 0o600);
        // containerd 1.x reads it there after its own restart.
        let kept = fs::read_to_string(bundle.join("address")).unwrap();
        assert_eq!(kept, address.trim_end());
        let pids = SERVICES.map(|service| served_by(address.trim_end(), service));
        assert!(pids[0] > 0 && pids[0] == pids[1], "{pids:?}");
        assert_eq!(process::users_of(place.dir.path()), [pids[0]]);
        shutdown(address.trim_end());
        place.is_clean(&["old"]);
    }
}

/// As containerd 2.3 and later call.
#[test]
fn a_new_containerd_gets_what_it_can_decode() {
    let place = Place::new();
    place.bundle("new", &json!({}));
    let params = [
        text(1, "new"),
        text(2, "lab"),
        // log_level: LOG_LEVEL_DEBUG, -4 as a varint of ten bytes.
        vec![
            0x18, 0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01,
        ],
        text(4, "v2.3.4"),
        text(5, &place.dir.path().join("t.sock").to_string_lossy()),
        text(6, &place.containerd().to_string_lossy()),
        text(7, "/usr/bin/containerd"),
    ]
    .concat();
    let answer = place.start("new", &params).ok();
    let address = format!("unix://{}", place.socket("new").display());
    let expected = [vec![0x08, 3], text(2, &address), text(3, "ttrpc")].concat();
    assert_eq!(answer, expected, "{}", String::from_utf8_lossy(&answer));
    let pid = served_by(&address, SERVICES[1]);
    assert_eq!(pid, served_by(&address, SERVICES[0]));
    shutdown(&address);
    place.is_clean(&["new"]);
}

/// `socket_dir`: there it listens, and from there it takes its socket away.
#[test]
fn a_new_containerd_says_where_to_listen() {
    let place = Place::new();
    place.bundle("where", &json!({}));
    // A socket's path has 107 bytes, and its name alone 64.
    let short = tempfile::tempdir_in("/run").unwrap();
    let dir = short.path().join("s");
    let params = [
        text(1, "where"),
        text(2, "lab"),
        text(4, "v2.3.4"),
        text(9, &dir.to_string_lossy()),
    ]
    .concat();
    let answer = String::from_utf8_lossy(&place.start("where", &params).ok()).into_owned();
    let sockets: Vec<PathBuf> = fs::read_dir(&dir)
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    assert_eq!(sockets.len(), 1, "{sockets:?}");
    let address = format!("unix://{}", sockets[0].display());
    assert!(answer.contains(&address), "{answer}");
    served_by(&address, SERVICES[1]);
    shutdown(&address);
    place.is_clean(&["where"]);
    assert!(!sockets[0].exists());
}

/// Whoever asks for what runs already gets its address, and no second process.
#[track_caller]
fn one_process_for_all_with(key: &str) {
    let place = Place::new();
    for id in ["one", "two", "three"] {
        place.bundle(id, &json!({ key: "together" }));
    }
    place.bundle("apart", &json!({}));
    let addresses: Vec<String> = std::thread::scope(|scope| {
        let calls = ["one", "two", "three"].map(|id| {
            let place = &place;
            scope.spawn(move || place.start(id, b"").address())
        });
        calls.map(|call| call.join().unwrap()).to_vec()
    });
    assert!(
        addresses.iter().all(|one| *one == addresses[0]),
        "{addresses:?}"
    );
    assert_eq!(
        addresses[0].trim_end(),
        format!("unix://{}", place.socket("together").display())
    );
    let apart = place.start("apart", b"").address();
    assert_ne!(apart, addresses[0]);
    let shims = process::users_of(place.dir.path());
    let states = shims
        .iter()
        .map(|pid| fs::read_to_string(format!("/proc/{pid}/status")));
    let states: Vec<_> = states
        .flatten()
        .map(|text| text.lines().take(7).collect::<String>())
        .collect();
    assert_eq!(shims.len(), 2, "{states:#?}");
    // Those that were announced are waited for, but not for ever.
    shutdown(&addresses[0]);
    shutdown(&apart);
    place.is_clean(&["together", "apart", "one", "two", "three"]);
}

#[test]
fn a_group_has_one_process() {
    one_process_for_all_with("io.containerd.runc.v2.group");
}

#[test]
fn a_pod_has_one_process() {
    one_process_for_all_with("io.kubernetes.cri.sandbox-id");
}

/// Left by one that was killed, or by a machine that lost its power.
#[test]
fn a_socket_that_nobody_listens_on_is_taken_over() {
    let place = Place::new();
    place.bundle("stale", &json!({}));
    let address = place.start("stale", b"").address();
    let first = served_by(address.trim_end(), SERVICES[0]);
    process::send(first, Signal::SIGKILL);
    wait_for("its end", SOON, || !process::alive(first));
    assert!(place.socket("stale").exists());
    let again = place.start("stale", b"").address();
    assert_eq!(again, address);
    assert_ne!(served_by(again.trim_end(), SERVICES[0]), first);
    shutdown(again.trim_end());
    place.is_clean(&["stale"]);
}

#[test]
fn long_names_have_short_sockets() {
    let mut place = Place::new();
    place.namespace = "n".repeat(76);
    let id = "i".repeat(76);
    place.bundle(&id, &json!({}));
    let address = place.start(&id, b"").address();
    assert_eq!(
        address.trim_end(),
        format!("unix://{}", place.socket(&id).display())
    );
    assert!(address.len() < 106 + "unix://".len());
    shutdown(address.trim_end());
    place.is_clean(&[&id]);
}

#[test]
fn it_ends_when_it_is_told() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let place = Place::new();
        place.bundle("told", &json!({}));
        let address = place.start("told", b"").address();
        process::send(served_by(address.trim_end(), SERVICES[0]), signal);
        place.is_clean(&["told"]);
    }
}

#[test]
fn what_is_no_request_harms_nobody() {
    let place = Place::new();
    place.bundle("hostile", &json!({}));
    let address = place.start("hostile", b"").address();
    let address = address.trim_end();
    let pid = served_by(address, SERVICES[0]);
    let refused = |service: &str, method: &str| {
        let mut wire = Wire::connect(address).unwrap();
        wire.call::<Id>(service, method, &Id::default())
            .unwrap_err()
    };
    assert_eq!(
        refused("containerd.task.v9.Task", "Connect").code,
        UNIMPLEMENTED
    );
    assert_eq!(refused(SERVICES[0], "NoSuchMethod").code, UNIMPLEMENTED);
    let unknown = refused(SERVICES[0], "State");
    assert_eq!(unknown.code, 5, "{unknown:?}");
    for bytes in [
        vec![0xff; 4096],
        // A frame of 4 GiB.
        [0xffu8, 0xff, 0xff, 0xff, 0, 0, 0, 1, 1, 0].to_vec(),
        // A part of a header.
        vec![0; 5],
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        let mut wire = Wire::connect(address).unwrap();
        let _closed = wire.raw(&bytes);
        drop(wire);
        assert_eq!(served_by(address, SERVICES[1]), pid);
    }
    // A request that is no protobuf, on a connection that goes on or ends.
    let mut wire = Wire::connect(address).unwrap();
    wire.frame(1, 1, &[0xff; 64]).unwrap();
    drop(wire.answer());
    // Many that say nothing.
    let idle: Vec<Wire> = (0..64).map(|_| Wire::connect(address).unwrap()).collect();
    assert_eq!(served_by(address, SERVICES[1]), pid);
    drop(idle);
    shutdown(address);
    place.is_clean(&["hostile"]);
}

#[test]
fn delete_says_what_became_of_it() {
    let place = Place::new();
    let bundle = place.bundle("gone", &json!({}));
    fs::write(bundle.join("init.pid"), "4242").unwrap();
    let mut command = place.command("gone", &["delete"]);
    let said = call(&mut command, b"");
    assert_eq!(said.code, Some(0), "{said:?}");
    let answer = Deleted::decode(said.stdout.as_slice()).unwrap();
    assert_eq!((answer.pid, answer.exit_status), (4242, 137));
    assert!(answer.exited_at.is_some());
    place.is_clean(&["gone"]);
}

/// `containerd.task.v2.DeleteResponse`.
#[derive(Clone, PartialEq, Message)]
struct Deleted {
    #[prost(uint32, tag = "1")]
    pid: u32,
    #[prost(uint32, tag = "2")]
    exit_status: u32,
    #[prost(message, optional, tag = "3")]
    exited_at: Option<prost_types::Timestamp>,
}

/// `containerd.types.RuntimeInfo`.
#[derive(Clone, PartialEq, Message)]
struct Info {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, optional, tag = "2")]
    version: Option<Id>,
    #[prost(message, optional, tag = "3")]
    options: Option<prost_types::Any>,
    #[prost(message, optional, tag = "4")]
    features: Option<prost_types::Any>,
}

#[test]
fn it_says_what_it_is() {
    let path = Lab::get().path_with(Path::new("/bin"));
    let shim = |args: &[&str], input: &[u8]| {
        let mut command = Command::new(Lab::get().shim());
        call(command.args(args).env("PATH", &path), input).ok()
    };
    let version = String::from_utf8(shim(&["-v"], b"")).unwrap();
    assert!(version.contains("containerd-shim-edgepull-v1"), "{version}");
    assert!(version.contains(env!("CARGO_PKG_VERSION")), "{version}");
    assert_eq!(version.as_bytes(), shim(&["-version"], b""));
    for (options, runtime) in [
        (None, "runc"),
        (Some(wire::RuncOptions::default().any()), "runc"),
        (
            Some(
                wire::RuncOptions {
                    binary_name: crun().to_str().unwrap().into(),
                    ..wire::RuncOptions::default()
                }
                .any(),
            ),
            "crun",
        ),
    ] {
        let input = options
            .as_ref()
            .map(Message::encode_to_vec)
            .unwrap_or_default();
        let info = Info::decode(shim(&["-info"], &input).as_slice()).unwrap();
        assert_eq!(info.name, "io.containerd.edgepull.v1");
        assert_eq!(info.version.unwrap().id, env!("CARGO_PKG_VERSION"));
        assert_eq!(info.options, options);
        let features = info.features.unwrap();
        assert_eq!(
            features.type_url,
            "types.containerd.io/opencontainers/runtime-spec/1/features/Features"
        );
        let features: serde_json::Value = serde_json::from_slice(&features.value).unwrap();
        assert!(features["ociVersionMin"].is_string(), "{features}");
        assert_eq!(
            features.to_string().contains("crun"),
            runtime == "crun",
            "{features}"
        );
    }
}

/// crun 1.8.1 has no such command, and what is not there has none either: no error.
#[test]
fn an_oci_runtime_without_features_is_no_error() {
    let old = Lab::get().installed("crun");
    for binary in [old.to_str().unwrap(), "/no/such/runtime"] {
        let options = wire::RuncOptions {
            binary_name: binary.into(),
            ..wire::RuncOptions::default()
        };
        let mut command = Command::new(Lab::get().shim());
        let answer = call(command.arg("-info"), &options.any().encode_to_vec()).ok();
        let info = Info::decode(answer.as_slice()).unwrap();
        assert_eq!(info.name, "io.containerd.edgepull.v1");
        assert_eq!(info.features, None, "{binary}");
    }
}

#[test]
fn a_wrong_call_is_one_line() {
    let place = Place::new();
    place.bundle("ok", &json!({}));
    let shim = |args: &[&str]| {
        let mut command = Command::new(Lab::get().shim());
        call(command.args(args).current_dir(place.dir.path()), b"").refused()
    };
    for (args, part) in [
        (vec!["-nonsense"], "nonsense"),
        (vec!["-namespace", "lab", "-id", "ok", "stop"], "stop"),
        (
            vec![
                "-namespace",
                "lab",
                "-id",
                "../up",
                "-address",
                "/c",
                "start",
            ],
            "../up",
        ),
        (
            vec!["-namespace", "lab", "-id", "", "-address", "/c", "start"],
            "id",
        ),
        (vec![], "containerd"),
    ] {
        let line = shim(&args);
        assert!(line.contains(part), "{args:?}: {line}");
    }
    assert!(process::users_of(place.dir.path()).is_empty());
}

/// The directory of sockets cannot be made: said, and nothing is left running.
#[test]
fn a_place_where_nothing_can_listen_is_said() {
    let place = Place::new();
    place.bundle("full", &json!({}));
    let file = place.dir.path().join("file");
    let _in_the_way = UnixListener::bind(&file).unwrap();
    let dir = file.join("s");
    let params = [
        text(1, "full"),
        text(2, "lab"),
        text(9, &dir.to_string_lossy()),
    ]
    .concat();
    let line = place.start("full", &params).refused();
    assert!(line.contains(&*file.to_string_lossy()), "{line}");
    place.is_clean(&["full"]);
}
