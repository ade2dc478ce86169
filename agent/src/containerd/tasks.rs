//! Tasks: containers that run. containerd keeps them over its own restart, and so do the
//! calls that wait.

use std::time::Duration;

use containerd_client::{
    services::v1::{
        CreateTaskRequest, DeleteTaskRequest, KillRequest, StartRequest, WaitRequest,
        tasks_client::TasksClient,
    },
    types::Mount,
};
use tokio::time::Instant;
use tonic::transport::Channel;

use super::{
    client::{DIRECTORIES, Engine, MAX_MESSAGE, METADATA, Patience},
    failure::{Cause, Outcome},
};

/// Deadline for making or starting a task: mounts and namespaces on a slow and busy board.
const START: Duration = Duration::from_secs(120);
/// No program is waited for longer: flags stay below a day.
const LONGEST: Duration = Duration::from_secs(25 * 3600);
/// A connection that held for so long was a new one: the next outage has patience of its own.
const HELD: Duration = Duration::from_secs(2);

fn client(channel: Channel) -> TasksClient<Channel> {
    TasksClient::new(channel).max_decoding_message_size(MAX_MESSAGE)
}

impl Engine {
    /// Makes the task of a container: its namespaces and mounts, and a first process that waits.
    /// Its standard input is empty; what it prints goes to the two FIFOs. The process id. Not
    /// repeated: whether it was made is not known when the connection breaks.
    pub async fn create_task(
        &self,
        id: &str,
        rootfs: Vec<Mount>,
        stdout: &str,
        stderr: &str,
    ) -> Outcome<u32> {
        let message = CreateTaskRequest {
            container_id: id.to_owned(),
            rootfs,
            stdout: stdout.to_owned(),
            stderr: stderr.to_owned(),
            ..CreateTaskRequest::default()
        };
        let action = format!("create the task of container `{id}`");
        let answer = self
            .call_once(&action, START, message, |c, r| async move {
                client(c).create(r).await
            })
            .await?;
        Ok(answer.pid)
    }

    /// Lets the program begin. Not repeated, as [`Self::create_task`].
    pub async fn start_task(&self, id: &str) -> Outcome<()> {
        let message = StartRequest {
            container_id: id.to_owned(),
            ..StartRequest::default()
        };
        let action = format!("start the task of container `{id}`");
        self.call_once(&action, START, message, |c, r| async move {
            client(c).start(r).await
        })
        .await
        .map(|_| ())
    }

    /// The exit status, when it has ended: 128 and the number of a signal that ended it. A
    /// containerd that restarts meanwhile is waited for.
    pub async fn wait_task(&self, id: &str) -> Outcome<u32> {
        let action = format!("wait for the task of container `{id}`");
        let mut patience = Patience::new();
        loop {
            let message = WaitRequest {
                container_id: id.to_owned(),
                ..WaitRequest::default()
            };
            let asked = Instant::now();
            let answer = self
                .call_once(&action, LONGEST, message, |c, r| async move {
                    client(c).wait(r).await
                })
                .await;
            match answer {
                Ok(answer) => return Ok(answer.exit_status),
                Err(failure) if failure.cause == Cause::Disconnected => {
                    if asked.elapsed() > HELD {
                        patience.renew();
                    }
                    patience.pause(self, failure).await?;
                }
                Err(failure) => return Err(failure),
            }
        }
    }

    /// Ends a task's processes. Done, if there is none that runs.
    pub async fn kill_task(&self, id: &str) -> Outcome<()> {
        const SIGKILL: u32 = 9;

        let message = KillRequest {
            container_id: id.to_owned(),
            signal: SIGKILL,
            all: true,
            ..KillRequest::default()
        };
        let action = format!("kill the task of container `{id}`");
        let answer = self
            .call(&action, METADATA, message, |c, r| async move {
                client(c).kill(r).await
            })
            .await;
        match answer {
            Err(failure) if failure.cause != Cause::Missing => Err(failure),
            _ => Ok(()),
        }
    }

    /// Removes a task that has ended, with its mounts and its control group. Done, if there is
    /// none. What it printed has left the runtime when this returns.
    pub async fn delete_task(&self, id: &str) -> Outcome<()> {
        let message = DeleteTaskRequest {
            container_id: id.to_owned(),
        };
        let action = format!("delete the task of container `{id}`");
        let answer = self
            .call(&action, DIRECTORIES, message, |c, r| async move {
                client(c).delete(r).await
            })
            .await;
        match answer {
            Err(failure) if failure.cause != Cause::Missing => Err(failure),
            _ => Ok(()),
        }
    }
}
