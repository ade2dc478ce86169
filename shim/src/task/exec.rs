//! `Exec` and `Start`.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::rc::Rc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use tokio::time::Instant;

use crate::bundle;
use crate::child::{self, Watch};
use crate::error::{Code, Error, Result};
use crate::oci::console::Console;
use crate::oci::{self, Creation};
use crate::stdio::Stdio;
use crate::wire::Empty;
use crate::wire::events::{Event, OfExec, TaskStart};
use crate::wire::task::{ExecProcessRequest, PidResponse, ProcessRequest};

use super::container::Container;
use super::create::{Streams, receive};
use super::process::{Process, State, number};
use super::{Inner, value};

impl Inner {
    /// Announces a process; `Start` starts it.
    pub(super) fn exec(&self, request: ExecProcessRequest) -> Result<Empty> {
        let container = self.container(&request.id)?;
        bundle::check_id(&request.exec_id)?;
        container.may_exec()?;
        if container.execs.borrow().contains_key(&request.exec_id) {
            let message = format!("id {}", request.exec_id);
            return Err(Error::new(Code::AlreadyExists, message));
        }
        let mut spec: serde_json::Value = serde_json::from_slice(value(request.spec.as_ref()))
            .map_err(|error| {
                Error::invalid(format!("the process of exec {}: {error}", request.exec_id))
            })?;
        let Some(table) = spec.as_object_mut() else {
            return Err(Error::invalid(format!(
                "the process of exec {} is no object",
                request.exec_id
            )));
        };
        table.insert("terminal".to_owned(), request.terminal.into());
        let stdio = Stdio {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let process = Rc::new(Process::new(&request.exec_id, stdio));
        container
            .execs
            .borrow_mut()
            .insert(request.exec_id.clone(), process);
        container
            .specs
            .borrow_mut()
            .insert(request.exec_id.clone(), spec);
        self.publisher.publish(
            &container.id,
            &Event::ExecAdded(OfExec {
                container_id: container.id.clone(),
                exec_id: request.exec_id,
                pid: 0,
            }),
        );
        Ok(Empty {})
    }

    pub(super) async fn start(
        self: Rc<Self>,
        request: ProcessRequest,
        deadline: Option<Instant>,
    ) -> Result<PidResponse> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let turn = process.turn.lock().await;
        let word = match process.state.get() {
            State::Created => None,
            State::Running => Some("running"),
            State::Paused => Some("paused"),
            State::Stopped => Some("stopped"),
        };
        if let Some(word) = word {
            let message = format!("cannot start a {word} process");
            return Err(Error::precondition(message));
        }
        if request.exec_id.is_empty() {
            self.start_init(&container, deadline).await?;
        } else {
            self.start_exec(&container, &process, deadline).await?;
        }
        drop(turn);
        Ok(PidResponse {
            pid: process.number(),
        })
    }

    async fn start_init(
        self: &Rc<Self>,
        container: &Rc<Container>,
        deadline: Option<Instant>,
    ) -> Result<()> {
        if container.checkpoint.borrow().is_some() {
            self.restore(container, deadline).await?;
        } else {
            container
                .runtime
                .plain("start", &container.id, deadline)
                .await?
                .map_err(|failure| failure.error("OCI runtime start failed"))?;
        }
        container.init.set_running();
        self.publisher.publish(
            &container.id,
            &Event::Start(TaskStart {
                container_id: container.id.clone(),
                pid: container.init.number(),
            }),
        );
        Ok(())
    }

    /// Brings a container back from its checkpoint.
    async fn restore(
        self: &Rc<Self>,
        container: &Rc<Container>,
        deadline: Option<Instant>,
    ) -> Result<()> {
        let Some(restore) = container.checkpoint.take() else {
            return Ok(());
        };
        let options = &container.options;
        let work = if options.criu_work_path.is_empty() {
            container.bundle.join("work")
        } else {
            PathBuf::from(&options.criu_work_path)
        };
        let watch = Watch::begin();
        let creation = Creation {
            ends: restore.ends,
            console: restore.console.as_ref().map(Console::address),
            no_pivot: options.no_pivot_root,
            no_keyring: options.no_new_keyring,
        };
        container
            .runtime
            .restore(
                &container.id,
                container.bundle.path(),
                &restore.images,
                &work,
                creation,
            )?
            .finish(deadline)
            .await?
            .map_err(|failure| failure.error("OCI runtime restore failed"))?;
        let pid = oci::read_pid(&container.bundle.join("init.pid"))?;
        container.init.set_pid(pid);
        // The turn is ours: its exit, which may have been, is told after this.
        self.follow(container, &container.init, watch.claim(pid));
        self.watch_cgroup(container);
        if let Some(console) = restore.console {
            let owner = self.owner(&container.id, options);
            let io = receive(console, &container.init.stdio, &owner).await?;
            container.init.set_io(io);
        }
        Ok(())
    }

    async fn start_exec(
        self: &Rc<Self>,
        container: &Rc<Container>,
        process: &Rc<Process>,
        deadline: Option<Instant>,
    ) -> Result<()> {
        if container.init_gone.get() {
            return Err(Error::precondition(format!(
                "container {} init process is not running",
                container.id
            )));
        }
        container.may_exec()?;
        let spec = container.specs.borrow_mut().remove(&process.exec_id);
        let spec = spec.ok_or_else(|| Error::precondition("it was started before, and failed"))?;
        match self.run_exec(container, process, &spec, deadline).await {
            Ok(()) => Ok(()),
            Err(error) => {
                process.give_up();
                Err(error)
            }
        }
    }

    async fn run_exec(
        self: &Rc<Self>,
        container: &Rc<Container>,
        process: &Rc<Process>,
        spec: &serde_json::Value,
        deadline: Option<Instant>,
    ) -> Result<()> {
        let owner = self.owner(&container.id, &container.options);
        let exec_id = &process.exec_id;
        let (id, bundle) = (&container.id, &container.bundle);
        let root = PathBuf::from(format!("/proc/{}/root", container.init.number()));
        self.admit(id, bundle, root, Some(spec), &container.runtime)
            .await?;
        // In memory: nothing of it can stay behind.
        let failed = |error: &dyn std::fmt::Display| Error::io("memory for the process", error);
        let file =
            memfd_create(c"process", MFdFlags::MFD_CLOEXEC).map_err(|error| failed(&error))?;
        let mut file = File::from(file);
        file.write_all(spec.to_string().as_bytes())
            .map_err(|error| failed(&error))?;
        let path = PathBuf::from(format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            file.as_raw_fd()
        ));
        let pid_file = container.bundle.join(&format!("{exec_id}.pid"));
        let socket = format!("{exec_id}.sock");
        let streams = Streams::open(&process.stdio, &owner, &container.bundle, &socket).await?;
        let (console, ends, io) = streams.split();
        let watch = Watch::begin();
        let address = console.as_ref().map(Console::address);
        let finished = match container
            .runtime
            .exec(&container.id, &path, &pid_file, address, ends)
        {
            Ok(running) => running.finish(deadline).await,
            Err(error) => Err(error),
        };
        let pid = finished
            .and_then(|result| result.map_err(|failure| failure.error("OCI runtime exec failed")))
            .and_then(|_| oci::read_pid(&pid_file));
        let pid = match pid {
            Ok(pid) => pid,
            Err(error) => {
                if let Some(io) = io {
                    io.close().await;
                }
                let _ = std::fs::remove_file(&pid_file);
                return Err(error);
            }
        };
        process.set_pid(pid);
        let ending = watch.claim(pid);
        let received = match (io, console) {
            (Some(io), _) => Ok(Some(io)),
            (None, Some(console)) => receive(console, &process.stdio, &owner).await.map(Some),
            (None, None) => Ok(None),
        };
        match received {
            Ok(Some(io)) => process.set_io(io),
            Ok(None) => {}
            Err(error) => {
                // It runs, with a terminal that nobody has.
                if child::is_waited_for(pid) {
                    let _ = super::calls::signal(pid, 9);
                }
                ending.exit().await;
                return Err(error);
            }
        }
        process.set_running();
        self.publisher.publish(
            &container.id,
            &Event::ExecStarted(OfExec {
                container_id: container.id.clone(),
                exec_id: exec_id.clone(),
                pid: number(Some(pid)),
            }),
        );
        self.follow(container, process, ending);
        Ok(())
    }
}
