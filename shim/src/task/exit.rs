//! What follows when a process ends.

use std::rc::Rc;

use tokio::task::spawn_local;

use crate::cgroup::Cgroup;
use crate::child::Ending;
use crate::log;
use crate::wire::events::{Event, OfContainer, TaskExit};

use super::Inner;
use super::container::Container;
use super::process::{Process, State, status_of};

const SIGKILL: u32 = 9;

impl Inner {
    /// Tells of the end of `process` when it comes.
    pub(super) fn follow(
        self: &Rc<Self>,
        container: &Rc<Container>,
        process: &Rc<Process>,
        ending: Ending,
    ) {
        let tasks = self.clone();
        let container = container.clone();
        let process = process.clone();
        spawn_local(async move {
            let exit = ending.exit().await;
            let is_init = process.exec_id.is_empty();
            if is_init {
                container.init_gone.set(true);
            }
            if let Some(io) = process.io() {
                io.ended();
            }
            // Whoever starts it tells that first.
            let turn = process.turn.lock().await;
            if is_init {
                tasks.after_init(&container).await;
            }
            process.set_exit(exit);
            let id = if is_init {
                &container.id
            } else {
                &process.exec_id
            };
            tasks.publisher.publish(
                &container.id,
                &Event::Exit(TaskExit {
                    container_id: container.id.clone(),
                    id: id.clone(),
                    pid: process.number(),
                    exit_status: status_of(exit),
                    exited_at: Some(exit.at.into()),
                }),
            );
            drop(turn);
        });
    }

    /// An init's exit is the last of its container.
    async fn after_init(&self, container: &Container) {
        // What is frozen gets no signal.
        if container.is_paused() {
            match container.runtime.plain("resume", &container.id, None).await {
                Ok(Ok(_)) => {}
                Ok(Err(failure)) => log::warn(failure.error("resuming what has ended")),
                Err(error) => log::warn(error),
            }
            container.init.state.set(State::Running);
        }
        if container.shares_pids {
            let killed = container
                .runtime
                .kill(&container.id, SIGKILL, true, None)
                .await;
            match killed {
                Ok(Ok(_)) => {}
                Ok(Err(failure)) => log::debug(failure.of_kill()),
                Err(error) => log::warn(error),
            }
        }
        for exec in container.all_execs() {
            // One that is being started has ended too by the time that it has its turn, or failed.
            let turn = exec.turn.lock().await;
            let running = exec.state.get() == State::Running;
            drop(turn);
            if running {
                exec.exited().await;
            }
        }
        let killed = container
            .cgroup
            .borrow()
            .as_ref()
            .is_some_and(|cgroup| cgroup.take_oom());
        if killed {
            self.tell_oom(&container.id);
        }
    }

    pub(super) fn tell_oom(&self, id: &str) {
        let event = Event::Oom(OfContainer {
            container_id: id.to_owned(),
        });
        self.publisher.publish(id, &event);
    }

    /// Looks for the container's cgroup, and tells when the kernel kills something in it for lack of
    /// memory.
    pub(super) fn watch_cgroup(self: &Rc<Self>, container: &Rc<Container>) {
        let Some(pid) = container.init.pid() else {
            return;
        };
        let cgroup = match Cgroup::of(pid) {
            Ok(cgroup) => Rc::new(cgroup),
            Err(error) => {
                log::debug(format!("the cgroup of {}: {error}", container.id));
                return;
            }
        };
        container.cgroup.replace(Some(cgroup.clone()));
        let tasks = self.clone();
        let id = container.id.clone();
        let task = spawn_local(async move {
            match cgroup.watch_oom() {
                Ok(mut watch) => {
                    while watch.next().await.is_some() {
                        if cgroup.take_oom() {
                            tasks.tell_oom(&id);
                        }
                    }
                }
                Err(error) => log::info(format!("out-of-memory events of {id}: {error}")),
            }
        });
        container.watcher.replace(Some(task.abort_handle()));
    }
}
