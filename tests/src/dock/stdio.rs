//! The ends of a container's standard streams.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use ring::digest::{Context, SHA256};

/// How long a stream may take to its end.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a call says about the three streams.
#[derive(Debug, Clone, Default)]
pub struct Stdio {
    /// `stdin`.
    pub stdin: String,
    /// `stdout`.
    pub stdout: String,
    /// `stderr`.
    pub stderr: String,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

/// All that came out of a stream.
#[derive(Debug)]
pub struct Sink {
    done: Receiver<(Vec<u8>, String)>,
}

impl Stdio {
    fn fifo(dir: &Path, name: &str) -> String {
        fs::create_dir_all(dir).unwrap();
        let path = dir.join(name);
        let _earlier = fs::remove_file(&path);
        mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)
            .unwrap_or_else(|e| panic!("mkfifo {}: {e}", path.display()));
        path.to_str().expect("a path of the lab is text").to_owned()
    }

    /// FIFOs for the output and errors, in a directory; nobody reads them yet.
    #[track_caller]
    pub fn out_err(dir: &Path) -> Self {
        Self {
            stdout: Self::fifo(dir, "stdout"),
            stderr: Self::fifo(dir, "stderr"),
            ..Self::default()
        }
    }

    /// FIFOs for all three.
    #[track_caller]
    pub fn all(dir: &Path) -> Self {
        Self {
            stdin: Self::fifo(dir, "stdin"),
            ..Self::out_err(dir)
        }
    }

    /// A terminal: input and output.
    #[track_caller]
    pub fn terminal(dir: &Path) -> Self {
        Self {
            stdin: Self::fifo(dir, "stdin"),
            stdout: Self::fifo(dir, "stdout"),
            stderr: String::new(),
            terminal: true,
        }
    }

    /// Reads the output to its end.
    pub fn read_stdout(&self) -> Sink {
        Sink::of(&self.stdout, Duration::ZERO)
    }

    /// Reads the errors to their end.
    pub fn read_stderr(&self) -> Sink {
        Sink::of(&self.stderr, Duration::ZERO)
    }

    /// Opens the output for a reader of the test's own. Waits for the shim.
    #[track_caller]
    pub fn open_stdout(&self) -> File {
        File::open(&self.stdout).unwrap()
    }
}

impl Sink {
    /// Reads a FIFO to its end; before each piece there is a pause.
    pub fn of(path: &str, pause: Duration) -> Self {
        let (to, done) = channel();
        let path = PathBuf::from(path);
        thread::spawn(move || {
            let mut file = File::open(&path).unwrap();
            let (mut all, mut piece) = (Vec::new(), vec![0; 1 << 16]);
            loop {
                thread::sleep(pause);
                match file.read(&mut piece) {
                    Ok(n) if n > 0 => all.extend_from_slice(&piece[..n]),
                    _ => break,
                }
            }
            let digest = sha256(&all);
            let _nobody_waits = to.send((all, digest));
        });
        Self { done }
    }

    /// Everything, once the shim has closed its end; and its SHA-256.
    #[track_caller]
    pub fn all(self) -> (Vec<u8>, String) {
        self.done.recv_timeout(PATIENCE).expect("the stream ends")
    }

    /// The same as text.
    #[track_caller]
    pub fn text(self) -> String {
        String::from_utf8_lossy(&self.all().0).into_owned()
    }
}

/// Writes these bytes into a FIFO that a shim has opened, closes it, and says so. It is open when
/// this returns.
#[track_caller]
pub fn feed(path: &str, bytes: Vec<u8>) -> Receiver<()> {
    let (to, done) = channel();
    let mut file = File::options().write(true).open(path).unwrap();
    thread::spawn(move || {
        file.write_all(&bytes).unwrap();
        drop(file);
        let _nobody_waits = to.send(());
    });
    done
}

/// In hexadecimal, as `sha256sum` prints it.
pub fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut context = Context::new(&SHA256);
    context.update(bytes);
    let digest = context.finish();
    digest.as_ref().iter().fold(String::new(), |mut text, b| {
        let _infallible = write!(text, "{b:02x}");
        text
    })
}

/// What `seq 1 LAST` prints: a piece that is lost, doubled or moved shows.
pub fn numbers(last: u32, end: &str) -> Vec<u8> {
    use std::fmt::Write as _;
    let mut text = String::new();
    for n in 1..=last {
        let _infallible = write!(text, "{n}{end}");
    }
    text.into_bytes()
}
