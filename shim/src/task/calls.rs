//! The calls about what is there.

use nix::libc;
use nix::unistd::Pid;
use tokio::time::Instant;

use crate::child;
use crate::error::{Code, Error, Result};
use crate::oci::Failure;
use crate::wire::events::{Event, OfContainer};
use crate::wire::options::{
    CHECKPOINT_OPTIONS, CheckpointOptions, OLD_CHECKPOINT_OPTIONS, PROCESS_DETAILS, ProcessDetails,
};
use crate::wire::task::{
    CheckpointTaskRequest, CloseIoRequest, ConnectResponse, KillRequest, PidsResponse, ProcessInfo,
    ProcessRequest, ResizePtyRequest, StateResponse, StatsResponse, UpdateTaskRequest,
    WaitResponse,
};
use crate::wire::ttrpc::Call;
use crate::wire::{Any, Empty};

use super::process::{State, status_of};
use super::{Inner, value};

/// The highest signal of Linux.
const HIGHEST: u32 = 64;

impl Inner {
    pub(super) fn state(&self, request: &ProcessRequest) -> Result<StateResponse> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let bundle = container.bundle.path().display().to_string();
        Ok(process.answer(&container.id, &bundle, container.is_paused()))
    }

    pub(super) async fn pids(
        &self,
        request: &ProcessRequest,
        deadline: Option<Instant>,
    ) -> Result<PidsResponse> {
        let container = self.container(&request.id)?;
        let mut pids = container.runtime.ps(&container.id, deadline).await?;
        // containerd (1.7 on) drops a task without processes when it comes back, and with it the exit
        // code of one that ended meanwhile: a job that did its work would count as failed.
        if pids.is_empty() && container.init.state.get() == State::Stopped {
            pids.push(container.init.number());
        }
        let execs = container.all_execs();
        let processes = pids
            .into_iter()
            .map(|pid| {
                let of = execs
                    .iter()
                    .find(|exec| exec.state.get() == State::Running && exec.number() == pid);
                let info = of.map(|exec| {
                    let details = ProcessDetails {
                        exec_id: exec.exec_id.clone(),
                    };
                    Any::new(PROCESS_DETAILS, &details)
                });
                ProcessInfo { pid, info }
            })
            .collect();
        Ok(PidsResponse { processes })
    }

    pub(super) async fn pause(
        &self,
        request: &ProcessRequest,
        deadline: Option<Instant>,
    ) -> Result<Empty> {
        let container = self.container(&request.id)?;
        if container.init.state.get() != State::Running || container.init_gone.get() {
            return Err(Error::precondition("cannot pause what does not run"));
        }
        container
            .runtime
            .plain("pause", &container.id, deadline)
            .await?
            .map_err(|failure| failure.error("OCI runtime pause failed"))?;
        if container.init_gone.get() {
            // Whoever waits for the rest of it would wait for good.
            let _ = container
                .runtime
                .plain("resume", &container.id, None)
                .await?;
            return Err(Error::precondition("cannot pause what does not run"));
        }
        if container.init.state.get() == State::Running {
            container.init.state.set(State::Paused);
        }
        let event = Event::Paused(OfContainer {
            container_id: container.id.clone(),
        });
        self.publisher.publish(&container.id, &event);
        Ok(Empty {})
    }

    pub(super) async fn resume(
        &self,
        request: &ProcessRequest,
        deadline: Option<Instant>,
    ) -> Result<Empty> {
        let container = self.container(&request.id)?;
        if container.init.state.get() != State::Paused {
            return Err(Error::precondition("cannot resume what is not paused"));
        }
        container
            .runtime
            .plain("resume", &container.id, deadline)
            .await?
            .map_err(|failure| failure.error("OCI runtime resume failed"))?;
        if container.init.state.get() == State::Paused {
            container.init.state.set(State::Running);
        }
        let event = Event::Resumed(OfContainer {
            container_id: container.id.clone(),
        });
        self.publisher.publish(&container.id, &event);
        Ok(Empty {})
    }

    pub(super) async fn kill(
        &self,
        request: &KillRequest,
        deadline: Option<Instant>,
    ) -> Result<Empty> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        if request.signal > HIGHEST {
            return Err(Error::invalid(format!(
                "there is no signal {}",
                request.signal
            )));
        }
        let finished = || Error::not_found("process already finished");
        if request.exec_id.is_empty() {
            if process.state.get() == State::Stopped && !request.all {
                return Err(finished());
            }
            let _kill = container.kills.read().await;
            container
                .runtime
                .kill(&container.id, request.signal, request.all, deadline)
                .await?
                .map_err(Failure::of_kill)?;
            return Ok(Empty {});
        }
        match (process.pid(), process.state.get()) {
            (_, State::Stopped) => Err(finished()),
            (None, _) => Err(Error::precondition("process not created")),
            // Reaped by now: the number may be another's.
            (Some(pid), _) if !child::is_waited_for(pid) => Err(finished()),
            (Some(pid), _) => signal(pid, request.signal).map(|()| Empty {}),
        }
    }

    pub(super) fn resize(&self, request: &ResizePtyRequest) -> Result<Empty> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let small = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
        if let Some(io) = process.io() {
            io.resize(small(request.width), small(request.height))?;
        }
        Ok(Empty {})
    }

    pub(super) fn close_io(&self, request: &CloseIoRequest) -> Result<Empty> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty {})
    }

    pub(super) async fn update(
        &self,
        request: &UpdateTaskRequest,
        deadline: Option<Instant>,
    ) -> Result<Empty> {
        let container = self.container(&request.id)?;
        if container.init.state.get() == State::Stopped {
            return Err(Error::precondition("cannot update a stopped container"));
        }
        let resources = value(request.resources.as_ref());
        container
            .runtime
            .update(&container.id, resources, deadline)
            .await?;
        Ok(Empty {})
    }

    pub(super) async fn wait(&self, request: &ProcessRequest, call: &Call) -> Result<WaitResponse> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        // Nothing of the container is held while waiting but the process.
        drop(container);
        let exit = tokio::select! {
            exit = process.exited() => exit,
            () = call.abandoned() => return Err(Error::new(Code::DeadlineExceeded, "nobody waits any more")),
        };
        Ok(WaitResponse {
            exit_status: status_of(exit),
            exited_at: Some(exit.at.into()),
        })
    }

    pub(super) fn stats(&self, request: &ProcessRequest) -> Result<StatsResponse> {
        let container = self.container(&request.id)?;
        let cgroup = container.cgroup.borrow().clone();
        let cgroup = cgroup.ok_or_else(|| Error::not_found("cgroup does not exist"))?;
        let (type_url, value) = cgroup.stats()?;
        Ok(StatsResponse {
            stats: Some(Any { type_url, value }),
        })
    }

    /// containerd asks this of a shim that it has found again, also for a container that it does
    /// not have.
    pub(super) fn connect(&self, request: &ProcessRequest) -> ConnectResponse {
        let task = self
            .container(&request.id)
            .map_or(0, |one| one.init.number());
        ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: task,
            version: String::new(),
        }
    }

    pub(super) async fn checkpoint(&self, request: &CheckpointTaskRequest) -> Result<Empty> {
        let container = self.container(&request.id)?;
        if !matches!(container.init.state.get(), State::Running | State::Paused) {
            return Err(Error::precondition("cannot checkpoint what does not run"));
        }
        let options = checkpoint_options(request.options.as_ref())?;
        // Clients that name a directory want it there; the other one is to become an image.
        let images = Some(&options.image_path).filter(|path| !path.is_empty());
        let images = images.unwrap_or(&request.path);
        let own = container.bundle.join("criu-work");
        let work = if options.work_path.is_empty() {
            own.clone()
        } else {
            options.work_path.clone().into()
        };
        // runc makes it, crun does not.
        std::fs::create_dir_all(&work)
            .map_err(|error| Error::io(format!("making {}", work.display()), error))?;
        let result = container
            .runtime
            .checkpoint(&container.id, images.as_ref(), &work, &options)
            .await;
        let dump = container.bundle.join("criu-dump.log");
        if !matches!(result, Ok(Ok(_))) {
            // criu's own words are in there; the directory goes.
            let _ = std::fs::copy(work.join("dump.log"), &dump);
        }
        if options.work_path.is_empty() {
            let _ = std::fs::remove_dir_all(&own);
        }
        result?.map_err(|failure| {
            let error = failure.error("checkpoint failed");
            Error::unknown(format!("{error} path= {}", dump.display()))
        })?;
        Ok(Empty {})
    }
}

fn checkpoint_options(any: Option<&Any>) -> Result<CheckpointOptions> {
    let Some(any) = any else {
        return Ok(CheckpointOptions::default());
    };
    if any.is(CHECKPOINT_OPTIONS) {
        return super::read(&any.value);
    }
    if any.is(OLD_CHECKPOINT_OPTIONS) {
        let mut options: CheckpointOptions = super::read(&any.value)?;
        std::mem::swap(&mut options.image_path, &mut options.work_path);
        return Ok(options);
    }
    Ok(CheckpointOptions::default())
}

/// kill(2), also for signals that have no name. Only for children that are not reaped yet.
pub(super) fn signal(pid: Pid, signal: u32) -> Result<()> {
    let number = i32::try_from(signal).map_err(|_| Error::invalid("no such signal"))?;
    #[allow(unsafe_code, reason = "the safe interface knows no real-time signals")]
    // SAFETY: two numbers; nothing of this process is touched.
    let done = unsafe { libc::kill(pid.as_raw(), number) };
    if done == 0 {
        return Ok(());
    }
    match nix::errno::Errno::last() {
        nix::errno::Errno::ESRCH => Err(Error::not_found("process already finished")),
        errno => Err(Error::io(format!("signal {signal} to {pid}"), errno)),
    }
}
