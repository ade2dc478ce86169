//! Commands and processes.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How long any single command of the lab may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a finished command left.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// All of stdout.
    pub stdout: Vec<u8>,
    /// All of stderr, as text.
    pub stderr: String,
    /// Wall time.
    pub took: Duration,
}

impl Output {
    /// Stdout as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Fails the test, with everything that was printed, unless the exit code is 0.
    #[track_caller]
    pub fn ok(self) -> Self {
        assert!(self.code == Some(0), "{}", self.transcript());
        self
    }

    /// The whole story in one text.
    pub fn transcript(&self) -> String {
        format!(
            "$ {}\nexit: {:?} after {:?}\nstdout:\n{}\nstderr:\n{}",
            self.command,
            self.code,
            self.took,
            self.text(),
            self.stderr
        )
    }
}

/// Runs a command to its end, reading both of its outputs.
#[track_caller]
pub fn run(command: &mut Command) -> Output {
    run_within(command, PATIENCE)
}

/// As [`run`], with a limit of its own; a command that takes longer is killed and fails the test.
#[track_caller]
pub fn run_within(command: &mut Command, limit: Duration) -> Output {
    spawn(command).wait_within(limit)
}

/// A command under way.
#[derive(Debug)]
pub struct Running {
    child: Child,
    command: String,
    begun: Instant,
    stdout: Option<thread::JoinHandle<Vec<u8>>>,
    stderr: Option<thread::JoinHandle<Vec<u8>>>,
}

/// Starts a command and collects its outputs in the background.
#[track_caller]
pub fn spawn(command: &mut Command) -> Running {
    let words: Vec<String> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|e| panic!("cannot start {}: {e}", words.join(" ")));
    let stdout = child.stdout.take().map(drain);
    let stderr = child.stderr.take().map(drain);
    Running {
        child,
        command: words.join(" "),
        begun: Instant::now(),
        stdout,
        stderr,
    }
}

fn drain(mut from: impl Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut all = Vec::new();
        // A reset pipe ends the text like a closed one does.
        let _ended = from.read_to_end(&mut all);
        all
    })
}

impl Running {
    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// True until it has ended.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        send(self.child.id(), signal);
    }

    /// Waits for the end, with the default limit.
    #[track_caller]
    pub fn wait(self) -> Output {
        self.wait_within(PATIENCE)
    }

    /// Waits for the end; kills and fails when it does not come within the limit, which counts
    /// from the start of the command.
    #[track_caller]
    pub fn wait_within(self, limit: Duration) -> Output {
        let end = self.begun + limit;
        let (output, late) = self.ended_by(end);
        assert!(!late, "not done after {limit:?}: {}", output.transcript());
        output
    }

    /// Waits for the end of what has run for as long as it liked: the limit counts from now.
    /// True if it had to be killed because the end did not come.
    #[track_caller]
    pub fn ends_within(self, limit: Duration) -> (Output, bool) {
        self.ended_by(Instant::now() + limit)
    }

    #[track_caller]
    fn ended_by(mut self, end: Instant) -> (Output, bool) {
        let mut late = false;
        let status = loop {
            if let Some(status) = self
                .child
                .try_wait()
                .expect("our own child can be waited for")
            {
                break status;
            }
            if Instant::now() > end {
                late = true;
                send(self.child.id(), Signal::SIGKILL);
                break self.child.wait().expect("our own child can be waited for");
            }
            thread::sleep(Duration::from_millis(3));
        };
        let join = |reader: Option<thread::JoinHandle<Vec<u8>>>| {
            reader.and_then(|r| r.join().ok()).unwrap_or_default()
        };
        let output = Output {
            command: self.command.clone(),
            code: status.code(),
            took: self.begun.elapsed(),
            stdout: join(self.stdout.take()),
            stderr: String::from_utf8_lossy(&join(self.stderr.take())).into_owned(),
        };
        (output, late)
    }
}

/// A command that dies with the thread that started it, so that a killed test leaves no daemon.
pub fn tied(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Whether a process exists and is not a zombie.
pub fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit(')')
            .next()
            .is_some_and(|rest| !rest.trim_start().starts_with(['Z', 'X']))
    })
}

/// Sends a signal; a process that is gone already is no error.
pub fn send(pid: u32, signal: Signal) {
    let Ok(pid) = i32::try_from(pid) else { return };
    if pid > 1 {
        let _gone = kill(Pid::from_raw(pid), signal);
    }
}

/// Every process whose command line or environment-free arguments mention `dir`, with all of
/// their descendants (the shims of a containerd, and their containers).
pub fn users_of(dir: &Path) -> Vec<u32> {
    let needle = dir.to_string_lossy().into_owned();
    let mut table = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|n| n.parse::<u32>().ok())
        else {
            continue;
        };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat
            .rsplit(')')
            .next()
            .and_then(|rest| rest.split_whitespace().nth(1))
            .and_then(|ppid| ppid.parse::<u32>().ok())
            .unwrap_or(0);
        let mentions = line.match_indices(&needle).any(|(at, _)| {
            line[at + needle.len()..].starts_with(['/', '\0']) || at + needle.len() == line.len()
        });
        table.push((pid, parent, mentions));
    }
    let me = std::process::id();
    let mut found: Vec<u32> = table
        .iter()
        .filter(|(pid, _, mentions)| *mentions && *pid != me)
        .map(|(pid, _, _)| *pid)
        .collect();
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        next += 1;
        for (pid, ppid, _) in &table {
            if *ppid == parent && !found.contains(pid) {
                found.push(*pid);
            }
        }
    }
    found.retain(|pid| alive(*pid));
    found
}

/// The processes that `parent` started, and that are not over.
pub fn children_of(parent: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let rest = stat.rsplit(')').next().unwrap_or_default();
            rest.split_whitespace().nth(1) == Some(parent.to_string().as_str())
        })
        .filter(|pid| alive(*pid))
        .collect()
}

/// Kills everything that works under `dir`, by id, and waits until it is gone.
pub fn kill_users_of(dir: &Path) {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let users = users_of(dir);
        if users.is_empty() {
            return;
        }
        if Instant::now() > end {
            note(&format!("still running under {}: {users:?}", dir.display()));
            return;
        }
        for pid in users {
            send(pid, Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until `ready` says so.
#[track_caller]
pub fn wait_for(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) {
    let end = Instant::now() + limit;
    while !ready() {
        assert!(Instant::now() < end, "{what}: not within {limit:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A remark from a place that cannot fail (clean-up).
pub fn note(text: &str) {
    use io::Write;
    let _closed = writeln!(io::stderr(), "lab: {text}");
}
