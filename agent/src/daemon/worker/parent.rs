//! The daemon's end: starting a worker, giving it jobs, outliving it.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, Command},
    time::timeout,
};

use super::{Answer, Done, Hello, Job, Spent};
use crate::{
    error::{Error, Result},
    event::Event,
    kind::Kind,
};

/// How long a worker without a job may take to end.
const FAREWELL: Duration = Duration::from_secs(5);

/// A worker process. Dropped, it is killed: what it was doing goes on in the next one.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    to: OwnedWriteHalf,
    from: Lines<BufReader<OwnedReadHalf>>,
}

impl Worker {
    /// Starts one: this program again, with the arguments it was started with.
    /// `config` is the text of the configuration that counts.
    pub async fn start(config: &str) -> Result<Self> {
        let failed = |action: &str, error: &std::io::Error| {
            Error::new(
                Kind::Internal,
                format_args!("cannot {action} a worker process"),
            )
            .caused_by(error)
        };
        let (ours, theirs) =
            std::os::unix::net::UnixStream::pair().map_err(|error| failed("talk to", &error))?;
        // Also after an upgrade: this is the file that runs, not what has taken its name.
        let child = Command::new("/proc/self/exe")
            .args(std::env::args_os().skip(1))
            .arg("--worker")
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| failed("start", &error))?;
        ours.set_nonblocking(true)
            .map_err(|error| failed("talk to", &error))?;
        let stream = UnixStream::from_std(ours).map_err(|error| failed("talk to", &error))?;
        let (from, to) = stream.into_split();
        let mut worker = Self {
            child,
            to,
            from: BufReader::new(from).lines(),
        };
        worker
            .say(&Hello {
                config: config.to_owned(),
            })
            .await?;
        Ok(worker)
    }

    async fn say(&mut self, message: &impl serde::Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(message).map_err(|error| {
            Error::new(Kind::Internal, "cannot write a job down").caused_by(&error)
        })?;
        line.push(b'\n');
        match self.to.write_all(&line).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.lost().await),
        }
    }

    /// Does one job. Events go to `observe` as they come. The second value is what it took;
    /// after an `internal` failure of the worker itself nothing is known of that, and the
    /// worker must not be used again.
    pub async fn run(
        &mut self,
        job: &Job,
        mut observe: impl FnMut(Event),
    ) -> (Result<Done>, Spent) {
        if let Err(error) = self.say(job).await {
            return (Err(error), Spent::default());
        }
        loop {
            let Ok(Some(line)) = self.from.next_line().await else {
                return (Err(self.lost().await), Spent::default());
            };
            match serde_json::from_str(&line) {
                Ok(Answer::Event(event)) => observe(event),
                Ok(Answer::Ended {
                    done,
                    failed,
                    retry_after,
                    spent,
                }) => {
                    let ended = match (done, failed) {
                        (Some(done), None) => Ok(done),
                        (_, Some(error)) => {
                            Err(error.after(retry_after.map(Duration::from_millis)))
                        }
                        (None, None) => Err(Error::new(
                            Kind::Internal,
                            "a worker process ended a job without saying how",
                        )),
                    };
                    return (ended, spent);
                }
                Err(error) => {
                    let error = Error::new(
                        Kind::Internal,
                        "a worker process said what cannot be understood",
                    )
                    .caused_by(&error);
                    return (Err(error), Spent::default());
                }
            }
        }
    }

    /// Whether the process is still there to be given a job.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Lets it end, and sees to it that it does.
    pub async fn end(self) {
        let Self {
            mut child,
            to,
            from,
            ..
        } = self;
        drop((to, from));
        if timeout(FAREWELL, child.wait()).await.is_err() {
            let _ = child.kill().await;
        }
    }

    /// What its end says, once it does not talk any more.
    async fn lost(&mut self) -> Error {
        let how = match timeout(FAREWELL, self.child.wait()).await {
            Ok(Ok(status)) => status.to_string(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it does not answer".to_owned(),
        };
        let _ = self.child.start_kill();
        Error::new(Kind::Internal, "a worker process ended in the middle of its work")
            .because(how)
            .hint("what it had fetched is kept; if signal 9 ended it, look for `oom` in the kernel's log, and see MemoryMax of the unit")
            .retry(true)
    }
}
