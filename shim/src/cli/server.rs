//! The server: until its last container has gone.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener as StdListener;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{SockaddrLike, UnixAddr, getsockname};
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal as on};
use tokio::task::spawn_local;

use crate::child::Reaper;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::log;
use crate::publish::Publisher;
use crate::task::Tasks;
use crate::wire::ttrpc::{self, Service};

use super::flags::Flags;

/// How long events may take at the end.
const FLUSH: Duration = Duration::from_secs(10);

pub(super) fn run(flags: &Flags) -> Result<()> {
    if flags.namespace.is_empty() {
        return Err(Error::invalid(
            "this is containerd's to call; -h tells more",
        ));
    }
    let listener = take_listener()?;
    log::open(Path::new("log"), flags.debug);
    // Its first bundle goes before it does, and a directory that is somebody's cannot be unmounted.
    std::env::set_current_dir("/").map_err(|error| Error::io("/", error))?;
    prepare()?;
    super::block_on(serve(flags, listener))?
}

/// The socket that `start` made; standard input is nothing from then on.
fn take_listener() -> Result<StdListener> {
    let stdin = std::io::stdin();
    let listening = getsockname::<UnixAddr>(std::os::fd::AsRawFd::as_raw_fd(&stdin))
        .is_ok_and(|address| address.len() > 0);
    if !listening {
        return Err(Error::invalid(
            "standard input is no socket: the server is started by `start`; -h tells more",
        ));
    }
    let failed = |error: &dyn std::fmt::Display| Error::io("taking over the socket", error);
    let listener: OwnedFd = stdin
        .as_fd()
        .try_clone_to_owned()
        .map_err(|error| failed(&error))?;
    let null = File::open("/dev/null").map_err(|error| failed(&error))?;
    nix::unistd::dup2_stdin(&null).map_err(|error| failed(&error))?;
    let listener = StdListener::from(listener);
    listener
        .set_nonblocking(true)
        .map_err(|error| failed(&error))?;
    Ok(listener)
}

fn prepare() -> Result<()> {
    // What a container leaves becomes our child.
    nix::sys::prctl::set_child_subreaper(true)
        .map_err(|error| Error::io("becoming a subreaper", error))?;
    // std has SIGPIPE ignored, and gives it back to what it starts. Descriptors: a shim of a pod has
    // some for each process.
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        crate::child::remember_limit(soft, hard);
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
    Ok(())
}

async fn serve(flags: &Flags, listener: StdListener) -> Result<()> {
    let failed = |error: std::io::Error| Error::io("serving", error);
    let listener = UnixListener::from_std(listener).map_err(failed)?;
    let reaper = Reaper::new().map_err(failed)?;
    spawn_local(reaper.reap_forever());
    let address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    let publisher = Publisher::new(&flags.namespace, &address);
    let tasks = Tasks::new(&flags.namespace, Config::load(), publisher.clone());
    let service: Rc<dyn Service> = Rc::new(tasks.clone());
    let mut terminate = on(SignalKind::terminate()).map_err(failed)?;
    let mut interrupt = on(SignalKind::interrupt()).map_err(failed)?;
    let mut dump = on(SignalKind::user_defined1()).map_err(failed)?;
    log::debug(format!("serving, pid {}", std::process::id()));
    // Whoever started it may be gone by now.
    drop(tasks.connected());
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    let (service, tasks) = (service.clone(), tasks.clone());
                    spawn_local(async move {
                        let _connected = tasks.connected();
                        ttrpc::serve(stream, service).await;
                    });
                }
                Err(error) => {
                    // No descriptors, perhaps: they come back.
                    log::warn(format!("accepting a connection: {error}"));
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            },
            () = tasks.ended() => break,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = dump.recv() => log::info(tasks.describe()),
        }
    }
    // First of all: who finds it no more makes a shim of its own, and who was about to be accepted
    // sees that it is gone.
    drop(listener);
    if !flags.socket.is_empty() {
        let _ = std::fs::remove_file(&flags.socket);
    }
    publisher.flushed(FLUSH).await;
    // The answer to the `Shutdown` may be on its way.
    tokio::task::yield_now().await;
    Ok(())
}
