//! What a process has as stdin, stdout and stderr, and the copies between that and its client.
//!
//! A client names a FIFO for each stream. The process never gets the FIFO itself but a pipe, and
//! this process copies; as it also holds the client's end of every FIFO, a client that is not there
//! is no error anywhere: input just does not come, output is not taken. So containerd can be
//! restarted under a running container, and nobody ever gets SIGPIPE for it. Files are written here
//! too, and not by the process: with a descriptor of the host's file, a container could cut or
//! rewrite the log, and chmod the file. Only loggers get the process' own pipe.
//!
//! Descriptors held for a process: three for a stdin FIFO (both its ends, and that of a pipe),
//! two for each FIFO or file that output goes to, none for loggers; with a terminal four, and one
//! for its output. Memory: a task for each copy, and a buffer only for what is under way.

mod copy;
mod logger;
mod open;
#[cfg(test)]
mod tests;
mod uri;

use std::cell::{Cell, RefCell};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer};
use rustix::termios::{Winsize, tcsetwinsize};
use tokio::io::Interest;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::copy::{Ended, Side};
use self::logger::Logger;
use self::open::{Pipe, Sink};
use self::uri::{LoggerCommand, Target};
use crate::error::{Error, Result};
use crate::log;
use crate::polled::Polled;

/// What a process is to be connected to, as containerd asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stdio {
    /// Nothing, or a FIFO.
    pub stdin: String,
    /// Nothing, a FIFO, or a URI: `fifo`, `file`, `binary`, `binary-v2`.
    pub stdout: String,
    /// As `stdout`; a terminal has none.
    pub stderr: String,
    /// Whether the process has a terminal.
    pub terminal: bool,
}

/// Whose process it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    /// The container's id, also for what is executed in it.
    pub container: String,
    /// containerd's namespace.
    pub namespace: String,
    /// Who owns the pipes.
    pub uid: u32,
    /// Their group.
    pub gid: u32,
}

/// The process' ends; to be given to what starts it, and to be closed here then.
#[derive(Debug)]
pub struct Ends {
    /// What it reads.
    pub stdin: OwnedFd,
    /// What it writes.
    pub stdout: OwnedFd,
    /// What it writes of errors.
    pub stderr: OwnedFd,
}

/// The streams of one process.
#[derive(Debug, Default)]
pub struct Io {
    outputs: Rc<Outputs>,
    copies: RefCell<Vec<JoinHandle<()>>>,
    input: RefCell<Option<Input>>,
    stdin_is_closed: Cell<bool>,
    /// The writing end of stdin's FIFO.
    hold: RefCell<Option<OwnedFd>>,
    console: Option<Console>,
    loggers: Vec<Logger>,
}

/// Input that is not copied yet.
#[derive(Debug)]
struct Input {
    from: PathBuf,
    to: Side,
    is_terminal: bool,
}

/// The copies of output that still go on.
#[derive(Debug, Default)]
struct Outputs {
    running: Cell<usize>,
    none: Notify,
}

/// A copy of output that goes on as long as this is there.
struct Running(Rc<Outputs>);

impl Running {
    fn new(outputs: &Rc<Outputs>) -> Running {
        outputs.running.set(outputs.running.get() + 1);
        Running(Rc::clone(outputs))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.running.set(self.0.running.get() - 1);
        if self.0.running.get() == 0 {
            self.0.none.notify_waiters();
        }
    }
}

#[derive(Debug)]
struct Console {
    master: Rc<Polled>,
    /// The terminal itself, held open while the process runs: what closes it to open it again, as
    /// an init system does, would otherwise look like the end.
    slave: RefCell<Option<OwnedFd>>,
    ended: Rc<Ended>,
}

impl Io {
    /// Connects a process that has no terminal. Its output is copied at once, its input when
    /// [`Io::begin_input`] says so.
    pub async fn open(stdio: &Stdio, owner: &Owner) -> Result<(Ends, Io)> {
        let mut io = Io::default();
        match io.connect(stdio, owner).await {
            Ok(ends) => Ok((ends, io)),
            Err(error) => {
                io.close().await;
                Err(error.context(format_args!("the streams of {}", owner.container)))
            }
        }
    }

    /// Connects a process whose terminal's other side is `master`, which nobody else may have.
    pub async fn with_console(stdio: &Stdio, owner: &Owner, master: OwnedFd) -> Result<Io> {
        let mut io = Io::default();
        match io.connect_console(stdio, owner, master).await {
            Ok(()) => Ok(io),
            Err(error) => {
                io.close().await;
                Err(error.context(format_args!("the terminal of {}", owner.container)))
            }
        }
    }

    /// Changes the size of the terminal, if there is one.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        let Some(console) = &self.console else {
            return Ok(());
        };
        let size = Winsize {
            ws_col: width,
            ws_row: height,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(&*console.master, size)
            .map_err(|error| Error::io("cannot change the size of the terminal", error))
    }

    /// Begins to copy input; to be called when the process has been started and a client may ask
    /// for [`Io::close_stdin`]. A client whose input is short has written all of it as soon as its
    /// FIFO has a reader, and says then, and only then, that there is no more: `ctr` cannot say so
    /// before it has the answer to Create.
    pub fn begin_input(&self) {
        let Some(input) = self.input.take() else {
            return;
        };
        let source = match open::source(&input.from) {
            Ok(source) => source,
            // The process sees the end.
            Err(error) => return log::warn(error),
        };
        if !self.stdin_is_closed.get() {
            self.hold.replace(source.hold);
        }
        let copy = tokio::task::spawn_local(async move {
            // Who does not read any more has closed it, or has ended.
            copy::copy(&source.side, &input.to, None, |_| false).await;
            if input.is_terminal {
                input.to.end_terminal_input().await;
            }
        });
        self.copies.borrow_mut().push(copy);
    }

    /// Lets stdin end when the client has closed it and what it wrote is read.
    pub fn close_stdin(&self) {
        self.stdin_is_closed.set(true);
        self.hold.take();
    }

    /// To be called when the process' end is seen. A terminal ends with its process, whoever else
    /// has it: what was written by then is copied, and then the client sees the end. A pipe ends
    /// when nobody has it any more.
    pub fn ended(&self) {
        if let Some(console) = &self.console {
            console.slave.take();
            console.ended.set();
        }
    }

    /// Waits until all output was read and handed over, at most `limit`: whether it was. To be
    /// called when the process has ended.
    pub async fn drained(&self, limit: Duration) -> bool {
        self.ended();
        let drained = async {
            loop {
                let none = self.outputs.none.notified();
                if self.outputs.running.get() == 0 {
                    return;
                }
                none.await;
            }
        };
        tokio::time::timeout(limit, drained).await.is_ok()
    }

    /// Ends the copies, and the loggers: they may take some time for what they have read.
    pub async fn close(mut self) {
        self.close_stdin();
        let copies = self.copies.take();
        for copy in &copies {
            copy.abort();
        }
        for copy in copies {
            // An error says that it was aborted. Descriptors are closed when it is through.
            let _ = copy.await;
        }
        let deadline = Instant::now() + logger::ASKED;
        for logger in std::mem::take(&mut self.loggers) {
            logger.close(deadline).await;
        }
    }

    async fn connect(&mut self, wanted: &Stdio, owner: &Owner) -> Result<Ends> {
        let stdin = match stdin(wanted)? {
            None => open::null()?,
            Some(source) => {
                let pipe = Pipe::to_process(owner)?;
                let side = side(pipe.ours, Interest::WRITABLE)?;
                self.input_from(source, side, false);
                pipe.theirs
            }
        };
        let stdout = Target::parse("stdout", &wanted.stdout)?;
        let stderr = Target::parse("stderr", &wanted.stderr)?;
        let (stdout, stderr) = if stdout != stderr {
            (
                self.output("stdout", &stdout, owner).await?,
                self.output("stderr", &stderr, owner).await?,
            )
        } else if let Target::Logger(logger) = &stdout {
            let ((stdout, out), (stderr, err)) = (open::pipe(owner)?, open::pipe(owner)?);
            self.start_logger(logger, owner, [stdout, stderr]).await?;
            (out, err)
        } else {
            // One pipe for both keeps the order of what is written.
            let end = self.output("stdout", &stdout, owner).await?;
            let copy = end
                .try_clone()
                .map_err(|error| Error::io("cannot share the pipe of stdout", error))?;
            (end, copy)
        };
        Ok(Ends {
            stdin,
            stdout,
            stderr,
        })
    }

    /// Connects one stream of output; what the process gets of it.
    async fn output(&mut self, stream: &str, target: &Target, owner: &Owner) -> Result<OwnedFd> {
        let sink = match target {
            Target::Null => return open::null(),
            Target::Path(path) => open::sink(stream, path, false)?,
            Target::File(path) => open::sink(stream, path, true)?,
            Target::Logger(logger) => {
                let (read, write) = open::pipe(owner)?;
                // The logger sees the end of the other stream at once.
                let (other, _) = open::pipe(owner)?;
                let inputs = match stream {
                    "stdout" => [read, other],
                    _ => [other, read],
                };
                self.start_logger(logger, owner, inputs).await?;
                return Ok(write);
            }
        };
        let pipe = Pipe::from_process(owner)?;
        let from = side(pipe.ours, Interest::READABLE)?;
        let name = format!("{stream} of {}", owner.container);
        self.copy_output(from, sink, None, name);
        Ok(pipe.theirs)
    }

    fn input_from(&self, from: PathBuf, to: Side, is_terminal: bool) {
        self.input.replace(Some(Input {
            from,
            to,
            is_terminal,
        }));
    }

    async fn start_logger(
        &mut self,
        logger: &LoggerCommand,
        owner: &Owner,
        inputs: [OwnedFd; 2],
    ) -> Result<()> {
        let logger = Logger::start(logger, owner, inputs, logger::READY).await?;
        self.loggers.push(logger);
        Ok(())
    }

    async fn connect_console(
        &mut self,
        stdio: &Stdio,
        owner: &Owner,
        master: OwnedFd,
    ) -> Result<()> {
        let source = stdin(stdio)?;
        // Without this (before Linux 4.13), the end is when nobody has the terminal.
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave = ioctl_tiocgptpeer(&master, flags).ok();
        open::set_nonblocking(&master)?;
        let master = Polled::new(master, Interest::READABLE | Interest::WRITABLE)
            .map_err(|(_, error)| Error::io("cannot wait for the terminal", error))?;
        let master = Rc::new(master);
        let sink = match Target::parse("stdout", &stdio.stdout)? {
            Target::Null => Sink::of(side(open::null()?, Interest::WRITABLE)?),
            Target::Path(path) => open::sink("stdout", &path, false)?,
            Target::File(path) => open::sink("stdout", &path, true)?,
            Target::Logger(logger) => {
                let pipe = Pipe::to_process(owner)?;
                let (stderr, unused) = open::pipe(owner)?;
                self.start_logger(&logger, owner, [pipe.theirs, stderr])
                    .await?;
                Sink {
                    _with: Some(unused),
                    ..Sink::of(side(pipe.ours, Interest::WRITABLE)?)
                }
            }
        };
        let ended = Rc::new(Ended::default());
        let name = format!("the terminal of {}", owner.container);
        let from = Side::Polled(Rc::clone(&master));
        self.copy_output(from, sink, Some(Rc::clone(&ended)), name);
        if let Some(source) = source {
            let to = Side::Polled(Rc::clone(&master));
            self.input_from(source, to, true);
        }
        self.console = Some(Console {
            master,
            slave: RefCell::new(slave),
            ended,
        });
        Ok(())
    }

    /// Copies output until there is no more, and lets the client see the end then.
    fn copy_output(&mut self, from: Side, sink: Sink, ended: Option<Rc<Ended>>, name: String) {
        let running = Running::new(&self.outputs);
        self.copies
            .borrow_mut()
            .push(tokio::task::spawn_local(async move {
                let mut said = false;
                // A full disk, or a logger that is gone, is no reason to stop the process: what cannot
                // be written is lost, and what comes later may be written again.
                let lost = |error| {
                    if !said {
                        log::warn(format_args!("output is lost, {name}: {error}"));
                    }
                    said = true;
                    true
                };
                copy::copy(&from, &sink.side, ended.as_deref(), lost).await;
                // A FIFO that is closed before its client came loses what is in it.
                if sink.client_is_late {
                    sink.side.taken().await;
                }
                drop((from, sink));
                drop(running);
            }));
    }
}

impl Drop for Io {
    fn drop(&mut self) {
        for copy in self.copies.borrow().iter() {
            copy.abort();
        }
    }
}

fn stdin(stdio: &Stdio) -> Result<Option<PathBuf>> {
    match Target::parse("stdin", &stdio.stdin)? {
        Target::Null => Ok(None),
        Target::Path(path) => open::exists("stdin", &path).map(|()| Some(path)),
        Target::File(_) | Target::Logger(_) => Err(Error::invalid(format!(
            "stdin {:?} cannot be used: it has to be a FIFO",
            stdio.stdin
        ))),
    }
}

fn side(fd: OwnedFd, interest: Interest) -> Result<Side> {
    Side::new(fd, interest).map_err(|error| Error::io("cannot wait for a stream", error))
}
