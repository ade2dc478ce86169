//! `Create`: mounts, gate, streams, and the OCI runtime's `create`.

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use nix::sys::stat::Mode;
use tokio::time::Instant;

use crate::bundle::{self, Bundle};
use crate::child::Watch;
use crate::error::{Code, Error, Result};
use crate::oci::console::Console;
use crate::oci::{self, Creation, Runtime};
use crate::stdio::{Ends, Io, Owner, Stdio};
use crate::wire::events::{Event, TaskCreate, TaskIo};
use crate::wire::options::Options;
use crate::wire::task::{CreateTaskRequest, PidResponse};
use crate::wire::ttrpc::Call;
use crate::{log, mounts};

use super::Inner;
use super::container::{Container, Restore};
use super::process::{Process, number};

/// Takes an id out of the list of those that are being created.
struct Creating<'a>(&'a Rc<Inner>, &'a str);

impl Drop for Creating<'_> {
    fn drop(&mut self) {
        self.0.creating.borrow_mut().remove(self.1);
        self.0.end_if_asked();
    }
}

/// What was made on the way.
struct Made {
    init: Process,
    restore: Option<Restore>,
    ending: Option<crate::child::Ending>,
}

impl Inner {
    pub(super) async fn create(
        self: Rc<Self>,
        request: CreateTaskRequest,
        call: &Call,
    ) -> Result<PidResponse> {
        let id = request.id.as_str();
        bundle::check_id(id)?;
        if !Path::new(&request.bundle).is_absolute() {
            return Err(Error::invalid(format!(
                "the bundle `{}` is no path",
                request.bundle.escape_debug()
            )));
        }
        if self.ending.get() {
            return Err(Error::new(
                Code::Unavailable,
                "this shim is ending; try again",
            ));
        }
        self.held.borrow_mut().remove(id);
        if self.containers.borrow().contains_key(id)
            || !self.creating.borrow_mut().insert(id.to_owned())
        {
            return Err(Error::new(
                Code::AlreadyExists,
                format!("container {id} exists"),
            ));
        }
        let _creating = Creating(&self, id);
        let bundle = Bundle::new(&request.bundle);
        // This container's log is read as long as it is there; that of the one before may be gone.
        log::follow(&bundle.join("log"));
        let options = bundle::options(request.options.as_ref())?;
        let spec = bundle.spec()?;
        bundle.remember(&options)?;
        let root = spec
            .root
            .as_ref()
            .map_or("rootfs", |root| root.path.as_str());
        let root = bundle.join(root);
        let mut runtime = Runtime::new(&options, &self.namespace, bundle.path());
        if !spec.has_hooks() {
            runtime = runtime.without_hooks();
        }

        let mounted = !request.rootfs.is_empty();
        let result = self
            .make(&request, &bundle, &root, &options, &runtime, call.deadline)
            .await;
        let made = match result {
            Ok(made) => made,
            Err(error) => {
                if mounted {
                    self.unmount(bundle.rootfs()).await;
                }
                return Err(error);
            }
        };
        // containerd gave up meanwhile, and has taken the bundle away: nobody will ever ask for this.
        if self.asked.get() && call.is_gone() {
            let _ = runtime.delete(id, true).await;
            if let Some(io) = made.init.take_io()
                && let Ok(io) = Rc::try_unwrap(io)
            {
                io.close().await;
            }
            if mounted {
                self.unmount(bundle.rootfs()).await;
            }
            return Err(Error::new(Code::Aborted, "nobody waits for it any more"));
        }
        self.asked.set(false);
        let container = Rc::new(Container {
            id: id.to_owned(),
            bundle,
            runtime,
            options,
            init: Rc::new(made.init),
            execs: RefCell::default(),
            specs: RefCell::default(),
            mounted,
            shares_pids: spec.shares_pids(),
            init_gone: Cell::new(false),
            kills: tokio::sync::RwLock::default(),
            cgroup: RefCell::default(),
            checkpoint: RefCell::new(made.restore),
            watcher: RefCell::default(),
        });
        self.containers
            .borrow_mut()
            .insert(id.to_owned(), container.clone());
        let pid = number(container.init.pid());
        self.publisher.publish(
            id,
            &Event::Create(TaskCreate {
                container_id: id.to_owned(),
                bundle: request.bundle.clone(),
                rootfs: request.rootfs.clone(),
                io: Some(TaskIo {
                    stdin: request.stdin.clone(),
                    stdout: request.stdout.clone(),
                    stderr: request.stderr.clone(),
                    terminal: request.terminal,
                }),
                checkpoint: request.checkpoint.clone(),
                pid,
            }),
        );
        if let Some(ending) = made.ending {
            self.watch_cgroup(&container);
            self.follow(&container, &container.init, ending);
        }
        Ok(PidResponse { pid })
    }

    async fn make(
        &self,
        request: &CreateTaskRequest,
        bundle: &Bundle,
        root: &Path,
        options: &Options,
        runtime: &Runtime,
        deadline: Option<Instant>,
    ) -> Result<Made> {
        let rootfs = bundle.rootfs();
        if !request.rootfs.is_empty() {
            match nix::unistd::mkdir(&rootfs, Mode::from_bits_truncate(0o711)) {
                Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                Err(errno) => return Err(Error::io(rootfs.display(), errno)),
            }
            mounts::mount_all(&request.rootfs, &rootfs)
                .await
                .map_err(|error| error.context("failed to mount rootfs component"))?;
        }
        let stdio = Stdio {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let owner = self.owner(&request.id, options);
        // containerd names a directory that it unpacked; options may name one that is there.
        let checkpoint = Some(&request.checkpoint).filter(|path| !path.is_empty());
        let checkpoint = checkpoint.unwrap_or(&options.criu_image_path);
        let restoring = !checkpoint.is_empty();
        if !restoring {
            let root = root.to_owned();
            self.admit(&request.id, bundle, root, None, runtime).await?;
        }
        let init = Process::new("", stdio);
        let streams = Streams::open(&init.stdio, &owner, bundle, "console.sock").await?;
        if restoring {
            let (console, ends, io) = streams.split();
            if let Some(io) = io {
                init.set_io(io);
            }
            return Ok(Made {
                init,
                restore: Some(Restore {
                    images: PathBuf::from(checkpoint),
                    console,
                    ends,
                }),
                ending: None,
            });
        }
        let (console, ends, io) = streams.split();
        let watch = Watch::begin();
        let creation = Creation {
            ends,
            console: console.as_ref().map(Console::address),
            no_pivot: options.no_pivot_root,
            no_keyring: options.no_new_keyring,
        };
        let finished = match runtime.create(&request.id, bundle.path(), creation) {
            Ok(running) => running.finish(deadline).await,
            Err(error) => Err(error),
        };
        let finished = finished.and_then(|result| {
            result.map_err(|failure| failure.error("OCI runtime create failed"))
        });
        let pid = finished.and_then(|_| oci::read_pid(&bundle.join("init.pid")));
        let io = match (pid, io) {
            (Ok(pid), io) => {
                init.set_pid(pid);
                match (io, console) {
                    (Some(io), _) => Ok(Some(io)),
                    (None, Some(console)) => receive(console, &init.stdio, &owner).await.map(Some),
                    (None, None) => Ok(None),
                }
            }
            (Err(error), io) => {
                if let Some(io) = io {
                    io.close().await;
                }
                Err(error)
            }
        };
        match io {
            Ok(Some(io)) => init.set_io(io),
            Ok(None) => {}
            Err(error) => {
                // Whether there is a container at all, only the runtime knows.
                let _ = runtime.delete(&request.id, true).await;
                return Err(error);
            }
        }
        let ending = init.pid().map(|pid| watch.claim(pid));
        Ok(Made {
            init,
            restore: None,
            ending,
        })
    }

    pub(super) fn owner(&self, id: &str, options: &Options) -> Owner {
        Owner {
            container: id.to_owned(),
            namespace: self.namespace.clone(),
            uid: options.io_uid,
            gid: options.io_gid,
        }
    }
}

/// What a process is connected to, before it is there.
pub(super) struct Streams {
    console: Option<Console>,
    pipes: Option<(Ends, Io)>,
}

impl Streams {
    pub(super) async fn open(
        stdio: &Stdio,
        owner: &Owner,
        bundle: &Bundle,
        socket: &str,
    ) -> Result<Streams> {
        if stdio.terminal {
            return Ok(Streams {
                console: Some(Console::listen(bundle.path(), socket)?),
                pipes: None,
            });
        }
        Ok(Streams {
            console: None,
            pipes: Some(Io::open(stdio, owner).await?),
        })
    }

    pub(super) fn split(self) -> (Option<Console>, Option<oci::Ends>, Option<Io>) {
        match self.pipes {
            Some((ends, io)) => (
                self.console,
                Some([ends.stdin, ends.stdout, ends.stderr]),
                Some(io),
            ),
            None => (self.console, None, None),
        }
    }
}

/// The terminal of a process that has just been made.
pub(super) async fn receive(console: Console, stdio: &Stdio, owner: &Owner) -> Result<Io> {
    let master = console
        .receive()
        .await
        .map_err(|error| error.context("failed to retrieve console master"))?;
    Io::with_console(stdio, owner, master).await
}

/// Unmounts that hang at most; one that comes after those is done here.
const MOST_UNMOUNTS: usize = 64;
/// How long one is waited for.
const UNMOUNT: Duration = Duration::from_secs(10);

impl Inner {
    /// Takes the root away, beside everything else: an overlay may first write all of its files. One
    /// that takes too long, or has no thread, is detached: then nobody sees it any more, and the
    /// kernel ends it when it can.
    pub(super) async fn unmount(&self, rootfs: PathBuf) {
        let path = rootfs.clone();
        let unmount = move || mounts::unmount_recursive(&path);
        let result = match self.unmounts.run(MOST_UNMOUNTS, UNMOUNT, unmount).await {
            Some(result) => result,
            None => mounts::detach(&rootfs),
        };
        if let Err(error) = result {
            log::warn(format!("{}: {error}", rootfs.display()));
        }
    }
}
