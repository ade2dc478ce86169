//! `start`: finds the shim of the container's group, or leaves one, and prints where it listens.
//!
//! The socket listens before the server runs, so nobody has to wait for that. The server gets it as
//! its standard input, which needs no convention about numbers, and has neither of our outputs:
//! containerd reads those to their end.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use prost::Message;

use crate::bundle::{self, Bundle, Spec};
use crate::config::{Config, Grouping};
use crate::error::{Error, Result};
use crate::wire::Any;
use crate::wire::group::{self, HoldRequest, HoldResponse};
use crate::wire::options::{OLD_OPTIONS, OLD_RUNTIME, OPTIONS, Options, RUNTIME_OPTIONS};
use crate::wire::start::{BootstrapParams, BootstrapResult};
use crate::wire::ttrpc;

use super::flags::Flags;
use super::socket::{self, Bound};

/// How many groups of a host are looked through for one with room.
const MOST_GROUPS: u32 = 1000;
/// How long a shim that answers may take for it.
const LIMIT: Duration = Duration::from_secs(2);

/// Who called.
struct Caller {
    /// containerd 2.3 or later, which says everything on stdin and takes protobuf.
    bootstrap: bool,
    ttrpc_address: String,
    socket_dir: Option<String>,
    debug: bool,
    options: Option<Any>,
}

impl Caller {
    /// Options and bootstrap parameters look alike on the wire, so these are for us only where they
    /// repeat what the flags say.
    fn read(stdin: &[u8], flags: &Flags) -> Caller {
        let told = BootstrapParams::decode(stdin)
            .ok()
            .filter(|params| params.instance_id == flags.id && params.namespace == flags.namespace);
        let environment = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
        if let Some(params) = told {
            let known = [OPTIONS, OLD_OPTIONS, OLD_RUNTIME];
            let of_runtime = |any: &Any| {
                let mut known = known.iter().chain(&RUNTIME_OPTIONS);
                known.any(|name| any.is(name))
            };
            let options = params.extensions.into_iter().filter_map(|one| one.value);
            return Caller {
                bootstrap: true,
                ttrpc_address: if params.ttrpc_address.is_empty() {
                    environment
                } else {
                    params.ttrpc_address
                },
                socket_dir: params.socket_dir,
                debug: flags.debug || params.log_level < 0,
                options: options.into_iter().find(of_runtime),
            };
        }
        Caller {
            bootstrap: false,
            ttrpc_address: environment,
            socket_dir: None,
            debug: flags.debug,
            options: Any::decode(stdin)
                .ok()
                .filter(|any| !any.type_url.is_empty()),
        }
    }

    fn answer(&self, path: &Path) -> Vec<u8> {
        let address = format!("unix://{}", path.display());
        if !self.bootstrap {
            // Before 2.3 all take the bare address; 1.6 takes nothing else.
            return address.into_bytes();
        }
        BootstrapResult {
            version: 3,
            address,
            protocol: "ttrpc".to_owned(),
        }
        .encode_to_vec()
    }
}

pub(super) fn run(flags: &Flags) -> Result<Vec<u8>> {
    bundle::check_id(&flags.id)?;
    if flags.namespace.is_empty() || flags.namespace.contains('/') {
        return Err(Error::invalid("-namespace is needed"));
    }
    let caller = Caller::read(&super::read_stdin(), flags);
    let directory = match &flags.bundle {
        Some(path) => path.clone(),
        None => {
            std::env::current_dir().map_err(|error| Error::io("the current directory", error))?
        }
    };
    let bundle = Bundle::new(&directory);
    // Not every bundle has one (a sandbox that is not a container has none).
    let spec = if bundle.join("config.json").exists() {
        bundle.spec()?
    } else {
        Spec::default()
    };
    let config = Config::load();
    let options = bundle::options(caller.options.as_ref())?;
    let (path, listener) = find(flags, &caller, &config, &spec)?;
    let address = format!("unix://{}", path.display());
    let written = bundle::write(&bundle.join("address"), address.as_bytes());
    if let Some(listener) = listener {
        // Last: nothing can fail after it.
        let served =
            written.and_then(|()| serve(flags, &caller, &bundle, &path, listener, &options));
        if served.is_err() {
            let _ = std::fs::remove_file(&path);
        }
        served?;
    } else {
        written?;
    }
    Ok(caller.answer(&path))
}

/// The address of the container's shim; with the socket, where there is no such shim yet.
fn find(
    flags: &Flags,
    caller: &Caller,
    config: &Config,
    spec: &Spec,
) -> Result<(PathBuf, Option<OwnedFd>)> {
    let directory = caller.socket_dir.as_deref();
    if !flags.socket.is_empty() {
        let path = PathBuf::from(
            flags
                .socket
                .strip_prefix("unix://")
                .unwrap_or(&flags.socket),
        );
        return match socket::bind(&path)? {
            Bound::New(listener) => Ok((path, Some(listener.into()))),
            Bound::Taken(_) => Ok((path, None)),
        };
    }
    let (name, most) = match config.grouping {
        Grouping::Pod => (spec.group().unwrap_or(&flags.id).to_owned(), 0),
        Grouping::Host { most } => ("edgepull-host".to_owned(), most),
    };
    for n in 0..MOST_GROUPS {
        // Names of groups of a host cannot be ids of containers: those have no slash.
        let group = if most > 0 {
            format!("{name}/{n}")
        } else {
            name.clone()
        };
        let path = socket::path(directory, &flags.address, &flags.namespace, &group)?;
        for _ in 0..8 {
            match socket::bind(&path)? {
                Bound::New(listener) => return Ok((path, Some(listener.into()))),
                Bound::Taken(stream) => match hold(stream, &flags.id, most) {
                    Held::Yes => return Ok((path, None)),
                    Held::No => break,
                    // It was just ending; its socket is gone by now, or will be refused.
                    Held::Gone => std::thread::sleep(Duration::from_millis(20)),
                },
            }
        }
        if most == 0 {
            return Err(Error::unknown(format!(
                "the shim of {name} at {} is ending and does not end; `ctr tasks ls` and the journal of containerd tell more",
                path.display()
            )));
        }
    }
    Err(Error::unknown(
        "there is no shim with room for one more container",
    ))
}

enum Held {
    Yes,
    No,
    Gone,
}

/// Asks a shim to wait for the container.
fn hold(stream: UnixStream, id: &str, most: u32) -> Held {
    let request = HoldRequest {
        id: id.to_owned(),
        most,
    };
    let _ = stream.set_read_timeout(Some(LIMIT));
    let _ = stream.set_write_timeout(Some(LIMIT));
    match ttrpc::call_once(stream, group::SERVICE, "Hold", &request) {
        Ok(payload) => match HoldResponse::decode(payload.as_slice()) {
            Ok(response) if response.granted => Held::Yes,
            Ok(_) if most > 0 => Held::No,
            _ => Held::Gone,
        },
        Err(ttrpc::Once::Lost) => Held::Gone,
        // A shim of another make takes every container that is sent to it; one that is late is there,
        // and busy.
        Err(ttrpc::Once::Refused | ttrpc::Once::Late) => Held::Yes,
    }
}

/// Leaves a server for the socket.
fn serve(
    flags: &Flags,
    caller: &Caller,
    bundle: &Bundle,
    path: &Path,
    listener: OwnedFd,
    options: &Options,
) -> Result<()> {
    // By its name, for those who look for it; while a package is being replaced there is none.
    let program = std::env::current_exe().ok().filter(|path| path.exists());
    let program = program.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let mut command = Command::new(program);
    command.args([
        "-namespace",
        &flags.namespace,
        "-id",
        &flags.id,
        "-address",
        &flags.address,
    ]);
    command.arg("-socket").arg(path);
    if caller.debug {
        command.arg("-debug");
    }
    command.env("TTRPC_ADDRESS", &caller.ttrpc_address);
    // containerd's own word to systemd is not the shim's, nor a container's.
    command.env_remove("NOTIFY_SOCKET");
    command.current_dir(bundle.path());
    command
        .stdin(listener)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.process_group(0);
    adjust_oom_score();
    let mut child = command
        .spawn()
        .map_err(|error| Error::io("starting the server", error))?;
    if !options.shim_cgroup.is_empty()
        && let Err(error) = join_cgroup(&options.shim_cgroup, child.id())
    {
        let _ = child.kill();
        let _ = child.wait();
        return Err(error);
    }
    Ok(())
}

/// A shim is to outlive its containers, and not containerd: one more than that has. The server and
/// what it starts inherit it.
fn adjust_oom_score() {
    let parent = nix::unistd::getppid();
    let score = std::fs::read_to_string(format!("/proc/{parent}/oom_score_adj"));
    let score = score.ok().and_then(|text| text.trim().parse::<i32>().ok());
    if let Some(score) = score {
        let score = score.saturating_add(1).min(1000);
        // Not allowed to in a container: then it stays as it is.
        let _ = std::fs::write("/proc/self/oom_score_adj", score.to_string());
    }
}

/// Puts a process into a cgroup that is there, in each hierarchy that has it.
fn join_cgroup(cgroup: &str, pid: u32) -> Result<()> {
    let relative = Path::new(cgroup.trim_start_matches('/'));
    if relative
        .components()
        .any(|part| part == std::path::Component::ParentDir)
    {
        return Err(Error::invalid(format!(
            "the cgroup `{cgroup}` leads outside"
        )));
    }
    let root = Path::new("/sys/fs/cgroup");
    let mut places = vec![root.join(relative)];
    if let Ok(entries) = std::fs::read_dir(root) {
        places.extend(entries.flatten().map(|entry| entry.path().join(relative)));
    }
    let mut joined = false;
    for place in places {
        let file = place.join("cgroup.procs");
        let Ok(mut file) = std::fs::OpenOptions::new().write(true).open(&file) else {
            continue;
        };
        file.write_all(pid.to_string().as_bytes())
            .map_err(|error| Error::io(format!("joining the cgroup {}", place.display()), error))?;
        joined = true;
    }
    if joined {
        return Ok(());
    }
    Err(Error::not_found(format!(
        "the cgroup `{cgroup}` of the runtime's options (ShimCgroup) is not there"
    )))
}
