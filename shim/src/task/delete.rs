//! `Delete`.

use std::rc::Rc;
use std::time::Duration;

use tokio::time::timeout;

use crate::child::Exit;
use crate::error::{Error, Result};
use crate::log;
use crate::wire::events::{Event, TaskDelete};
use crate::wire::task::{DeleteResponse, ProcessRequest};

use super::Inner;
use super::container::Container;
use super::process::{Process, State, status_of};

/// How long output may take to be read, and a process to end that the runtime has killed.
const LIMIT: Duration = Duration::from_secs(10);

impl Inner {
    pub(super) async fn delete(&self, request: ProcessRequest) -> Result<DeleteResponse> {
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        let turn = process.turn.lock().await;
        // Somebody else may have been quicker.
        let container = self.container(&request.id)?;
        let process = container.process(&request.exec_id)?;
        if matches!(process.state.get(), State::Running | State::Paused) {
            return Err(Error::unknown("cannot delete a running process"));
        }
        if request.exec_id.is_empty() {
            return self.delete_init(&container, turn).await;
        }
        drain(&container, &process).await;
        let _ = std::fs::remove_file(container.bundle.join(&format!("{}.pid", request.exec_id)));
        container.execs.borrow_mut().remove(&request.exec_id);
        container.specs.borrow_mut().remove(&request.exec_id);
        let answer = response(&process, process.exit());
        if process.exit().is_none() {
            process.give_up();
        }
        Ok(answer)
    }

    async fn delete_init(
        &self,
        container: &Rc<Container>,
        turn: tokio::sync::MutexGuard<'_, ()>,
    ) -> Result<DeleteResponse> {
        let init = &container.init;
        // One that was to be restored still has the process' ends of its streams.
        container.checkpoint.take();
        let created = init.state.get() == State::Created;
        if !created {
            drain(container, init).await;
        }
        // One that was never started is killed by it; one that was never restored is not known.
        let deleted = container.runtime.delete(&container.id, created).await?;
        if let Err(failure) = deleted
            && !failure.is_unknown_container()
        {
            log::warn(format!(
                "{}: {}",
                container.id,
                failure.error("deleting it once more")
            ));
            // What is left over, such as a cgroup with a process that is just ending.
            let again = container.runtime.delete(&container.id, true).await?;
            if let Err(failure) = again
                && !failure.is_unknown_container()
            {
                return Err(failure.error("failed to delete task"));
            }
        }
        // The exit is told when the turn is free.
        drop(turn);
        if created && init.pid().is_some() && timeout(LIMIT, init.exited()).await.is_err() {
            log::warn(format!(
                "{} was deleted, and its process is still there",
                container.id
            ));
        }
        drain(container, init).await;
        let execs: Vec<Rc<Process>> = container.all_execs();
        for exec in execs {
            drain(container, &exec).await;
        }
        if container.mounted {
            self.unmount(container.bundle.rootfs()).await;
        }
        // Bounded: a runtime that hangs in its `kill` must not keep the container for ever.
        let killed = timeout(LIMIT, container.kills.write()).await;
        if self.containers.borrow_mut().remove(&container.id).is_none() {
            return Err(Error::not_found(format!(
                "container not created: {}",
                container.id
            )));
        }
        drop(killed);
        let answer = response(init, init.exit());
        if init.exit().is_none() {
            init.give_up();
        }
        self.publisher.publish(
            &container.id,
            &Event::Delete(TaskDelete {
                container_id: container.id.clone(),
                pid: answer.pid,
                exit_status: answer.exit_status,
                exited_at: answer.exited_at,
                id: String::new(),
            }),
        );
        Ok(answer)
    }
}

/// Waits until what it wrote is read, and closes its streams.
async fn drain(container: &Container, process: &Process) {
    let Some(io) = process.take_io() else { return };
    if !io.drained(LIMIT).await {
        log::warn(format!(
            "somebody still holds the output of {} {}: what comes now is lost",
            container.id, process.exec_id
        ));
    }
    // Nobody else keeps it longer than a call takes.
    match Rc::try_unwrap(io) {
        Ok(io) => io.close().await,
        Err(io) => io.close_stdin(),
    }
}

fn response(process: &Process, exit: Option<Exit>) -> DeleteResponse {
    DeleteResponse {
        pid: process.number(),
        exit_status: exit.map_or(0, status_of),
        exited_at: exit.map(|exit| exit.at.into()),
    }
}
