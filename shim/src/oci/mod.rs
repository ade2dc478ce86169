//! The OCI runtime (runc, crun, ...) as a program: one call, one process.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::time::{Instant, timeout_at};

use crate::child::{self, Child};
use crate::error::{Code, Error, Result};
use crate::wire::options::{CheckpointOptions, Options};

pub mod console;

/// Where the runtimes keep their state, unless the options say otherwise; per namespace.
const ROOT: &str = "/run/containerd/runc";
/// What of a runtime's output and log is read (bytes): it lists every process of a container.
const OUTPUT: u64 = 4 << 20;

/// How a container's runtime is called.
#[derive(Debug, Clone)]
pub struct Runtime {
    program: String,
    /// Whether it is runc itself, which inherits nothing to anybody.
    hurries: bool,
    root: PathBuf,
    systemd_cgroup: bool,
    log: PathBuf,
}

/// A call that was not successful.
#[derive(Debug)]
pub struct Failure {
    /// What the runtime said, in one line; `None` where it said nothing.
    pub said: Option<String>,
    /// How it ended, and on which call.
    pub ended: String,
}

impl Failure {
    /// As people see it: `OCI runtime create failed: …`.
    pub fn error(self, what: &str) -> Error {
        match &self.said {
            Some(said) => Error::unknown(format!("{what}: {}", explained(said))),
            None => Error::unknown(format!(
                "{what}: unable to retrieve OCI runtime error: {}",
                self.ended
            )),
        }
    }

    /// What a signal to a process that is not there any more comes to.
    pub fn of_kill(self) -> Error {
        const GONE: [&str; 5] = [
            "process already finished",
            "container not running",
            "no such process",
            "does not exist",
            "process not found",
        ];
        let said = self.said.as_deref().unwrap_or(&self.ended);
        let lower = said.to_lowercase();
        if GONE.iter().any(|gone| lower.contains(gone)) {
            return Error::not_found(format!("process already finished: {}", one_line(said)));
        }
        self.error("unknown error after kill")
    }

    /// Whether the runtime does not know the container (any more).
    pub fn is_unknown_container(&self) -> bool {
        self.said
            .iter()
            .chain([&self.ended])
            .any(|text| text.contains("does not exist"))
    }
}

/// A runtime's words, with the next step where ours are of more use.
fn explained(said: &str) -> String {
    let said = one_line(said);
    if said.contains("unknown version specified") {
        return format!(
            "{said} (this crun is too old for the specifications of this containerd: crun 1.21 or later, or runc, is needed)"
        );
    }
    if said.contains("cgroups in hybrid mode not supported") {
        return format!(
            "{said} (crun wants cgroup v1 or v2 alone: boot with systemd.unified_cgroup_hierarchy=1, or use runc)"
        );
    }
    said
}

fn one_line(text: &str) -> String {
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ")
}

/// The three streams that a container's process gets.
pub type Ends = [OwnedFd; 3];

/// What `create` and `restore` are given.
#[derive(Debug, Default)]
pub struct Creation<'a> {
    pub ends: Option<Ends>,
    pub console: Option<&'a Path>,
    pub no_pivot: bool,
    pub no_keyring: bool,
}

impl Creation<'_> {
    fn pass(&self, command: &mut Command, bundle: &Path) {
        command.arg("--pid-file").arg(bundle.join("init.pid"));
        if let Some(socket) = self.console {
            command.arg("--console-socket").arg(socket);
        }
        if self.no_pivot {
            command.arg("--no-pivot");
        }
        if self.no_keyring {
            command.arg("--no-new-keyring");
        }
    }
}

/// What was started and has not ended.
#[derive(Debug)]
pub struct Running {
    child: Child,
    what: String,
    output: Option<File>,
    log: PathBuf,
    /// What the log held before.
    logged: u64,
}

impl Runtime {
    /// The runtime of a container: `options` as the caller gave them, `bundle` where its log goes.
    pub fn new(options: &Options, namespace: &str, bundle: &Path) -> Runtime {
        let or = |text: &str, default: &str| {
            if text.is_empty() {
                default.to_owned()
            } else {
                text.to_owned()
            }
        };
        Runtime {
            program: or(&options.binary_name, "runc"),
            hurries: false,
            root: Path::new(&or(&options.root, ROOT)).join(namespace),
            systemd_cgroup: options.systemd_cgroup,
            log: bundle.join("log.json"),
        }
    }

    /// Its name, for messages.
    pub fn program(&self) -> &str {
        &self.program
    }

    /// Which of the runtimes that are known well it is: the program itself, not a wrapper of that
    /// name, nor a link of that name to something else.
    pub fn known(&self) -> Option<&'static str> {
        let found = if self.program.contains('/') {
            PathBuf::from(&self.program)
        } else {
            let path = std::env::var_os("PATH")?;
            let mut places = std::env::split_paths(&path).map(|dir| dir.join(&self.program));
            places.find(|place| place.is_file())?
        };
        let real = std::fs::canonicalize(found).ok()?;
        let name = real.file_name()?.to_str()?;
        let known = ["runc", "crun"].into_iter().find(|known| *known == name)?;
        let mut magic = [0; 4];
        File::open(&real).ok()?.read_exact(&mut magic).ok()?;
        (magic == *b"\x7fELF").then_some(known)
    }

    /// The same for a container without hooks, which would inherit how a runtime is hurried.
    pub fn without_hooks(self) -> Runtime {
        Runtime {
            hurries: self.known() == Some("runc"),
            ..self
        }
    }

    fn command(&self, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root);
        command.arg("--log").arg(&self.log);
        command.args(["--log-format", "json"]);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command.arg(verb);
        command
    }

    /// Starts one call; its own output is kept for the error, unless the container gets its streams.
    fn start(
        &self,
        mut command: Command,
        what: &str,
        ends: Option<Ends>,
        input: Option<File>,
    ) -> Result<Running> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::unknown(format!("starting `{} {what}`: {error}", self.program))
        };
        let mut output = None;
        if let Some([stdin, stdout, stderr]) = ends {
            command.stdin(stdin).stdout(stdout).stderr(stderr);
        } else {
            // A file in memory: nobody has to read while the runtime writes.
            let file = memfd_create(c"output", MFdFlags::MFD_CLOEXEC);
            let file = File::from(file.map_err(|error| failed(&error))?);
            let copy = || file.try_clone().map_err(|error| failed(&error));
            command.stdout(copy()?).stderr(copy()?);
            command.stdin(input.map_or_else(Stdio::null, Stdio::from));
            output = Some(file);
        }
        // Wrappers of runtimes look for the specification where they are started.
        let bundle = self.log.parent().filter(|bundle| bundle.is_dir());
        command.current_dir(bundle.unwrap_or(Path::new("/")));
        if self.hurries {
            // A program in Go that lives for milliseconds: collecting its garbage is a tenth of that.
            // The limit is for one that has much to do all the same. No container inherits these.
            command.env("GOGC", "off").env("GOMEMLIMIT", "48MiB");
        }
        dies_with_us(&mut command);
        let logged = std::fs::metadata(&self.log).map_or(0, |meta| meta.len());
        let child = child::spawn(&mut command).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => Error::unknown(format!(
                "OCI runtime {what} failed: exec: \"{}\": executable file not found in $PATH: install this OCI runtime, or name another one (BinaryName in the runtime's options)",
                self.program
            )),
            _ => failed(&error),
        })?;
        Ok(Running {
            child,
            what: format!("{} {what}", self.program),
            output,
            log: self.log.clone(),
            logged,
        })
    }

    async fn call(
        &self,
        command: Command,
        what: &str,
        deadline: Option<Instant>,
    ) -> Result<std::result::Result<Vec<u8>, Failure>> {
        self.start(command, what, None, None)?
            .finish(deadline)
            .await
    }

    /// `create`: the container is there afterwards, and its command waits for `start`.
    pub fn create(&self, id: &str, bundle: &Path, creation: Creation<'_>) -> Result<Running> {
        let mut command = self.command("create");
        command.arg("--bundle").arg(bundle);
        creation.pass(&mut command, bundle);
        command.arg(id);
        self.start(command, "create", creation.ends, None)
    }

    /// `restore`, from a checkpoint of criu's.
    pub fn restore(
        &self,
        id: &str,
        bundle: &Path,
        images: &Path,
        work: &Path,
        creation: Creation<'_>,
    ) -> Result<Running> {
        let mut command = self.command("restore");
        command.arg("--image-path").arg(images);
        command.arg("--work-path").arg(work);
        command.arg("--bundle").arg(bundle);
        // Without --no-subreaper, which crun does not know: detached, what is restored comes to us
        // when the runtime ends.
        command.arg("--detach");
        creation.pass(&mut command, bundle);
        command.arg(id);
        self.start(command, "restore", creation.ends, None)
    }

    /// `exec`, detached: it returns when the process runs.
    pub fn exec(
        &self,
        id: &str,
        process: &Path,
        pid_file: &Path,
        console: Option<&Path>,
        ends: Option<Ends>,
    ) -> Result<Running> {
        let mut command = self.command("exec");
        command.arg("--process").arg(process);
        command.arg("--pid-file").arg(pid_file);
        command.arg("--detach");
        if let Some(socket) = console {
            command.arg("--console-socket").arg(socket);
        }
        command.arg(id);
        self.start(command, "exec", ends, None)
    }

    /// A verb with nothing but the container: `start`, `pause`, `resume`.
    pub async fn plain(
        &self,
        verb: &str,
        id: &str,
        deadline: Option<Instant>,
    ) -> Result<std::result::Result<Vec<u8>, Failure>> {
        let mut command = self.command(verb);
        command.arg(id);
        self.call(command, verb, deadline).await
    }

    pub async fn kill(
        &self,
        id: &str,
        signal: u32,
        all: bool,
        deadline: Option<Instant>,
    ) -> Result<std::result::Result<Vec<u8>, Failure>> {
        let mut command = self.command("kill");
        if all {
            command.arg("--all");
        }
        command.arg(id).arg(signal.to_string());
        self.call(command, "kill", deadline).await
    }

    pub async fn delete(
        &self,
        id: &str,
        force: bool,
    ) -> Result<std::result::Result<Vec<u8>, Failure>> {
        let mut command = self.command("delete");
        if force {
            command.arg("--force");
        }
        command.arg(id);
        self.call(command, "delete", None).await
    }

    /// The container's processes.
    pub async fn ps(&self, id: &str, deadline: Option<Instant>) -> Result<Vec<u32>> {
        let mut command = self.command("ps");
        command.args(["--format", "json", id]);
        let out = self
            .call(command, "ps", deadline)
            .await?
            .map_err(|failure| failure.error("OCI runtime ps failed"))?;
        let pids: Option<Vec<u32>> = serde_json::from_slice(&out)
            .map_err(|error| Error::io(format!("what `{} ps` printed", self.program), error))?;
        Ok(pids.unwrap_or_default())
    }

    pub async fn update(
        &self,
        id: &str,
        resources: &[u8],
        deadline: Option<Instant>,
    ) -> Result<()> {
        let mut input = File::from(
            memfd_create(c"resources", MFdFlags::MFD_CLOEXEC)
                .map_err(|error| Error::io("memory for the resources", error))?,
        );
        std::io::Write::write_all(&mut input, resources)
            .and_then(|()| input.seek(SeekFrom::Start(0)))
            .map_err(|error| Error::io("memory for the resources", error))?;
        let mut command = self.command("update");
        command.args(["--resources", "-", id]);
        self.start(command, "update", None, Some(input))?
            .finish(deadline)
            .await?
            .map_err(|failure| failure.error("OCI runtime update failed"))?;
        Ok(())
    }

    /// `checkpoint`, by criu.
    pub async fn checkpoint(
        &self,
        id: &str,
        images: &Path,
        work: &Path,
        options: &CheckpointOptions,
    ) -> Result<std::result::Result<Vec<u8>, Failure>> {
        let mut command = self.command("checkpoint");
        command.arg("--image-path").arg(images);
        command.arg("--work-path").arg(work);
        for (wanted, flag) in [
            (!options.exit, "--leave-running"),
            (options.open_tcp, "--tcp-established"),
            (options.external_unix_sockets, "--ext-unix-sk"),
            (options.terminal, "--shell-job"),
            (options.file_locks, "--file-locks"),
        ] {
            if wanted {
                command.arg(flag);
            }
        }
        if !options.cgroups_mode.is_empty() {
            command
                .arg("--manage-cgroups-mode")
                .arg(&options.cgroups_mode);
        }
        for namespace in &options.empty_namespaces {
            command.arg("--empty-ns").arg(namespace);
        }
        command.arg(id);
        self.call(command, "checkpoint", None).await
    }

    /// What the runtime says it can do, as JSON; `None` where it has no such verb.
    pub async fn features(&self) -> Option<Vec<u8>> {
        let mut command = Command::new(&self.program);
        command.arg("features");
        let out = self.call(command, "features", None).await.ok()?.ok()?;
        serde_json::from_slice::<serde_json::Value>(&out).ok()?;
        Some(out)
    }
}

impl Running {
    /// Waits for the end; kills the runtime at the deadline, as whoever asked has given up by then.
    pub async fn finish(
        mut self,
        deadline: Option<Instant>,
    ) -> Result<std::result::Result<Vec<u8>, Failure>> {
        let pid = self.child.pid;
        let ending = self.child.ending.exit();
        let exit = match deadline {
            None => ending.await,
            Some(deadline) => {
                tokio::pin!(ending);
                let Ok(exit) = timeout_at(deadline, &mut ending).await else {
                    // Not reaped yet, or we would know: so the number is still its own.
                    let _ = kill(pid, Signal::SIGKILL);
                    ending.await;
                    return Err(Error::new(
                        Code::DeadlineExceeded,
                        format!("`{}` did not end in time and was killed", self.what),
                    ));
                };
                exit
            }
        };
        let mut out = Vec::new();
        if let Some(file) = &mut self.output {
            let _ = file.seek(SeekFrom::Start(0));
            let _ = file.take(OUTPUT).read_to_end(&mut out);
        }
        if exit.status == 0 {
            return Ok(Ok(out));
        }
        let printed = one_line(&String::from_utf8_lossy(&out));
        let said =
            last_error(&self.log, self.logged).or(Some(printed).filter(|text| !text.is_empty()));
        let ended = match exit.status {
            code @ ..=128 => format!("`{}` ended with status {code}", self.what),
            code => format!("`{}` was ended by signal {}", self.what, code - 128),
        };
        Ok(Err(Failure { said, ended }))
    }
}

/// The last error that a runtime wrote into its log, from `after` on.
fn last_error(path: &Path, after: u64) -> Option<String> {
    #[derive(Deserialize)]
    struct Line {
        level: String,
        msg: String,
    }
    let mut file = File::open(path).ok()?;
    file.seek(SeekFrom::Start(after)).ok()?;
    let mut bytes = Vec::new();
    file.take(OUTPUT).read_to_end(&mut bytes).ok()?;
    serde_json::Deserializer::from_slice(&bytes)
        .into_iter::<Line>()
        .map_while(std::result::Result::ok)
        .filter(|line| line.level == "error" || line.level == "fatal")
        .last()
        .map(|line| line.msg)
}

/// The kernel kills the runtime when this process goes: half-way through, it would be in the way of
/// whoever cleans up.
fn dies_with_us(command: &mut Command) {
    let set = || {
        nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
        Ok(())
    };
    #[allow(
        unsafe_code,
        reason = "what is set between fork and exec can be set nowhere else"
    )]
    // SAFETY: one prctl(2), which allocates nothing and takes no lock.
    unsafe {
        command.pre_exec(set);
    }
}

/// The pid in a file that a runtime wrote.
pub fn read_pid(path: &Path) -> Result<Pid> {
    let bytes = crate::bundle::read(path)?;
    let text = String::from_utf8_lossy(&bytes);
    let pid = text.trim().parse().ok().filter(|pid| *pid > 0);
    pid.map(Pid::from_raw)
        .ok_or_else(|| Error::unknown(format!("{} holds no pid", path.display())))
}

#[cfg(test)]
mod tests;
