//! `status`, `sync` and `wait` as scripts use them, against the socket of a daemon whose
//! state is made up.

use std::{
    path::Path,
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use edgepull::{
    daemon::{Ask, Handle, socket::Control},
    desired::Key,
    error::Error,
    event::{Event, Observer},
    kind::Kind,
    metrics::Metrics,
    oci::Digest,
    status::{Board, Ready},
};
use jiff::Timestamp;
use serde_json::Value;
use tokio::sync::oneshot;

/// A daemon without a loop; `sync` is answered at once.
struct Daemon {
    dir: tempfile::TempDir,
    board: Board,
    /// So many wishes for its configuration to be read come to nothing.
    busy: Arc<AtomicU32>,
    end: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

fn now() -> Timestamp {
    Timestamp::now()
}

fn key(name: &str) -> Key {
    Key {
        reference: format!("r.example/{name}:1"),
        platform: "host".to_owned(),
        namespace: "k8s.io".to_owned(),
    }
}

impl Daemon {
    fn new(names: &[&str]) -> Self {
        let board = Board::new("linux/arm64", "1.2.3", now());
        let keys: Vec<Key> = names.iter().map(|name| key(name)).collect();
        board.desired(&keys, now());
        let mut daemon = Self {
            dir: tempfile::tempdir().expect("a directory"),
            board,
            busy: Arc::default(),
            end: None,
            thread: None,
        };
        daemon.start();
        daemon
    }

    fn start(&mut self) {
        let facts = edgepull_platform::Facts::live().expect("this host");
        let host = edgepull_platform::detect(&facts).expect("is one");
        let metrics = Metrics::new(&host, "1.2.3");
        let (handle, mut asks) = Handle::new(self.board.clone(), metrics, "{}".to_owned());
        let (end, ended) = oneshot::channel();
        let path = self.dir.path().join("s");
        let board = self.board.clone();
        let busy = Arc::clone(&self.busy);
        let (started, starting) = std::sync::mpsc::channel();
        let work = async move {
            let control = Control::bind(&path).expect("bound");
            started.send(()).expect("somebody waits");
            let answering = async {
                while let Some(ask) = asks.recv().await {
                    if matches!(ask, Ask::Reload { .. })
                        && busy
                            .fetch_update(Relaxed, Relaxed, |left| left.checked_sub(1))
                            .is_ok()
                    {
                        continue;
                    }
                    let (Ask::Sync { done, .. } | Ask::Reload { done }) = ask;
                    board.pass_done(now());
                    let _ = done.send(());
                }
            };
            tokio::select! {
                () = control.serve(handle) => {}
                () = answering => {}
                _ = ended => {}
            }
        };
        let thread = thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime")
                .block_on(work);
        });
        starting.recv().expect("it listens");
        self.end = Some(end);
        self.thread = Some(thread);
    }

    fn stop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it ended well");
        }
    }

    fn ready(&self, name: &str) {
        let ready = Ready {
            digest: Digest::of(name.as_bytes()),
            pinned: true,
            selected_platform: None,
            snapshotter: None,
        };
        self.board.ready(&key(name), ready, None, now());
    }

    fn failed(&self, name: &str, kind: Kind) {
        let error = Error::new(kind, format!("cannot pull {name}")).hint("wait");
        self.board.failed(&key(name), &error, None, now());
    }

    fn command(&self, args: &[&str]) -> Command {
        command(&self.dir.path().join("s"), args)
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("it runs")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.stop();
    }
}

fn command(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_edgepull"));
    command
        .args(args)
        .env_clear()
        .env("EDGEPULL_SOCKET", socket)
        .stdin(Stdio::null());
    command
}

fn code(output: &Output) -> i32 {
    output.status.code().expect("no signal")
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}{}", out(output), err(output)))
}

#[test]
fn status_shows_all_or_one() {
    let daemon = Daemon::new(&["a", "b"]);
    daemon.ready("a");
    daemon.failed("b", Kind::NotFound);
    let output = daemon.run(&["status"]);
    assert_eq!(code(&output), 0);
    let text = out(&output);
    assert!(text.starts_with("REFERENCE"), "{text}");
    assert!(text.contains("r.example/a:1  host      ready"), "{text}");
    assert!(
        text.contains("\nr.example/b:1: cannot pull b\nhint: wait\n"),
        "{text}"
    );
    let output = daemon.run(&["status", "-o", "json", "r.example/b:1"]);
    let document = json(&output);
    assert_eq!(document["schema"], "edgepull.status/1");
    assert_eq!(document["images"].as_array().map(Vec::len), Some(1));
    assert_eq!(document["images"][0]["error"]["kind"], "not_found");
    let output = daemon.run(&["status", "r.example/c:1", "-o", "json"]);
    assert_eq!(code(&output), 21);
    assert_eq!(json(&output)["error"]["kind"], "not_found");
}

#[test]
fn readiness_is_an_exit_code() {
    let daemon = Daemon::new(&["a", "b", "c"]);
    daemon.ready("a");
    assert_eq!(
        code(&daemon.run(&["status", "--ready", "r.example/a:1"])),
        0
    );
    assert_eq!(code(&daemon.run(&["status", "--ready"])), 124, "not yet");
    daemon.failed("b", Kind::PlatformMissing);
    daemon.ready("c");
    assert_eq!(code(&daemon.run(&["status", "--ready"])), 3);
    daemon.failed("c", Kind::NoSpace);
    assert_eq!(code(&daemon.run(&["status", "--ready"])), 30, "the worst");
    assert_eq!(code(&daemon.run(&["status"])), 0, "asking went well");
}

#[test]
fn sync_tells_what_failed() {
    let daemon = Daemon::new(&["a", "b"]);
    daemon.ready("a");
    daemon.failed("b", Kind::RateLimited);
    let output = daemon.run(&["sync", "-o", "json"]);
    assert_eq!(code(&output), 22);
    assert_eq!(json(&output)["first_pass_done"], true);
    assert_eq!(code(&daemon.run(&["sync", "r.example/a:1"])), 0);
    let output = daemon.run(&["sync", "--no-wait", "-o", "json"]);
    assert_eq!(
        (code(&output), json(&output)["asked"]["reference"].clone()),
        (0, Value::Null)
    );
    let fault = Error::new(Kind::Config, "images.d/a.toml is wrong");
    daemon.board.faults(vec![fault]);
    let output = daemon.run(&["sync", "r.example/a:1"]);
    assert_eq!(
        code(&output),
        2,
        "something else is in force than is written"
    );
    assert!(out(&output).contains("images.d/a.toml is wrong"));
}

#[test]
fn wait_ends_when_the_last_image_is_there() {
    let daemon = Daemon::new(&["a", "b"]);
    daemon.ready("a");
    let waiting = daemon
        .command(&["wait", "--timeout", "60s", "-o", "json"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    thread::sleep(Duration::from_millis(300));
    daemon.board.pulling(&key("b"), now());
    for _ in 0..2000 {
        // More than a listener may be behind.
        daemon.board.observe(&Event::Syncing {
            reference: "r.example/b:1".to_owned(),
        });
    }
    daemon.ready("b");
    let output = waiting.wait_with_output().expect("it ends");
    assert_eq!(code(&output), 0);
    let images = json(&output)["images"].clone();
    assert!(
        images
            .as_array()
            .expect("images")
            .iter()
            .all(|image| image["state"] == "ready")
    );
}

#[test]
fn wait_ends_with_3_when_only_publishers_can_help() {
    let daemon = Daemon::new(&["a", "b"]);
    daemon.ready("a");
    daemon.failed("b", Kind::PlatformMissing);
    let output = daemon.run(&["wait", "--timeout", "60s"]);
    assert_eq!(code(&output), 3);
    assert!(
        err(&output).contains("error: cannot pull b"),
        "{}",
        err(&output)
    );
    assert_eq!(out(&output), "");
}

#[test]
fn wait_gives_up_at_its_limit_and_says_what_is_late() {
    let daemon = Daemon::new(&["a", "b"]);
    daemon.ready("a");
    let start = Instant::now();
    let output = daemon.run(&["wait", "--timeout", "1s"]);
    assert!(start.elapsed() >= Duration::from_secs(1));
    assert_eq!(code(&output), 124);
    let text = err(&output);
    assert!(
        text.contains("error: 1 of 2 images are not ready after 1s"),
        "{text}"
    );
    assert!(text.contains("r.example/b:1 is waiting"), "{text}");
    for wrong in ["0s", "soon", "-1s", "48h"] {
        assert_eq!(
            code(&daemon.run(&["wait", "--timeout", wrong])),
            2,
            "{wrong}"
        );
    }
}

#[test]
fn wait_outlives_a_daemon_that_is_too_busy_to_read_its_configuration() {
    let daemon = Daemon::new(&["a"]);
    daemon.ready("a");
    daemon.busy.store(2, Relaxed);
    let output = daemon.run(&["wait", "--timeout", "60s"]);
    assert_eq!(code(&output), 0, "{}", err(&output));
    assert_eq!(daemon.busy.load(Relaxed), 0);
}

#[test]
fn wait_outlives_a_restart_of_the_daemon() {
    let mut daemon = Daemon::new(&["a"]);
    let waiting = daemon
        .command(&["wait", "--timeout", "60s"])
        .spawn()
        .expect("it runs");
    thread::sleep(Duration::from_millis(300));
    daemon.stop();
    daemon.ready("a");
    daemon.start();
    let output = waiting.wait_with_output().expect("it ends");
    assert_eq!(code(&output), 0);
}

#[test]
fn somebody_at_a_terminal_sees_what_happens() {
    let daemon = Daemon::new(&["a"]);
    let socket = daemon.dir.path().join("s");
    let line = format!("{} wait --timeout 60s", env!("CARGO_BIN_EXE_edgepull"));
    // script(1) gives it a terminal.
    let waiting = Command::new("script")
        .args(["-qefc", &line, "/dev/null"])
        .env("EDGEPULL_SOCKET", socket)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("util-linux is there");
    thread::sleep(Duration::from_millis(500));
    daemon.board.pulling(&key("a"), now());
    daemon.board.observe(&Event::Planned {
        reference: "r.example/a:1".to_owned(),
        layers: 1,
        bytes_to_fetch: 2048,
        bytes_present: 0,
    });
    daemon.ready("a");
    let output = waiting.wait_with_output().expect("it ends");
    let text = out(&output);
    assert_eq!(code(&output), 0, "{text}");
    for line in ["resolving", "fetching 0 B of 2.0 KiB", "ready"] {
        assert!(
            text.contains(&format!("r.example/a:1: {line}\r\n")),
            "{text}"
        );
    }
}

#[test]
fn without_a_daemon_the_next_step_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    for args in [&["status"][..], &["sync"], &["wait"]] {
        let output = command(&dir.path().join("s"), args)
            .output()
            .expect("it runs");
        assert_eq!(code(&output), 41, "{args:?}");
        assert!(
            err(&output).contains("systemctl start edgepull"),
            "{}",
            err(&output)
        );
    }
    // A broken configuration is what one asks the daemon about.
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "nonsense").expect("written");
    let daemon = Daemon::new(&[]);
    let config = config.to_str().expect("UTF-8");
    let output = daemon.run(&["--config", config, "status"]);
    assert_eq!(code(&output), 0);
    assert!(out(&output).contains("no images are declared"));
}
