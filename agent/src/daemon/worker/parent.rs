//! The daemon's end: starting a worker, giving it jobs, outliving it.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    process::{Child, Command},
    time::timeout,
};

use super::{Answer, Done, Hello, Job, Spent};
use crate::{
    daemon::REPORT,
    error::{Error, Result},
    event::Event,
    kind::Kind,
};

/// How long a worker without a job may take to end.
const FAREWELL: Duration = Duration::from_secs(5);

/// A worker that says nothing for so long hangs, and holds up all other images. It is silent
/// while the engine unpacks a layer, which on a slow card takes long, and while it compares
/// one image; everything else that it waits for is limited by itself to less.
const SILENCE: Duration = Duration::from_secs(2 * 3600);

/// Bytes of one line from a worker. Damage to thousands of files has fewer.
const LONGEST: u64 = 4 << 20;

/// A worker process. Dropped, it is killed: what it was doing goes on in the next one.
#[derive(Debug)]
pub struct Worker {
    child: Child,
    to: OwnedWriteHalf,
    from: BufReader<OwnedReadHalf>,
    silence: Duration,
    /// A job was begun and has not ended: what it says next is about that one.
    busy: bool,
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
            .hint("where memory or processes are short, see MemoryMax and TasksMax of the unit")
            .retry(true)
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
            from: BufReader::new(from),
            silence: SILENCE,
            busy: false,
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
            Error::new(Kind::Internal, "cannot write a job down")
                .caused_by(&error)
                .hint(REPORT)
        })?;
        line.push(b'\n');
        match self.to.write_all(&line).await {
            Ok(()) => Ok(()),
            Err(_) => Err(self.lost().await),
        }
    }

    /// Does one job. Events go to `observe` as they come. The second value is what it took;
    /// after a failure of the worker itself nothing is known of that, and the worker is not
    /// usable any more.
    pub async fn run(
        &mut self,
        job: &Job,
        mut observe: impl FnMut(Event),
    ) -> (Result<Done>, Spent) {
        self.busy = true;
        if let Err(error) = self.say(job).await {
            return (Err(error), Spent::default());
        }
        loop {
            let line = match timeout(self.silence, self.hear()).await {
                Ok(Ok(line)) if line.ends_with(b"\n") => line,
                Ok(Ok(line)) if line.len() as u64 >= LONGEST => {
                    return (Err(self.chatters()), Spent::default());
                }
                Ok(_) => return (Err(self.lost().await), Spent::default()),
                Err(_) => return (Err(self.hangs(job)), Spent::default()),
            };
            match serde_json::from_slice(&line) {
                Ok(Answer::Event(event)) => observe(event),
                Ok(Answer::Ended(ended)) => {
                    self.busy = false;
                    return ended.result();
                }
                Err(error) => {
                    let error = Error::new(
                        Kind::Internal,
                        "a worker process said what cannot be understood",
                    )
                    .caused_by(&error)
                    .hint(REPORT);
                    return (Err(error), Spent::default());
                }
            }
        }
    }

    /// The next line, as far as there is one.
    async fn hear(&mut self) -> std::io::Result<Vec<u8>> {
        let mut line = Vec::new();
        let mut from = (&mut self.from).take(LONGEST);
        from.read_until(b'\n', &mut line).await?;
        Ok(line)
    }

    /// It reads what strangers sent: they are not to decide how much the daemon holds.
    fn chatters(&mut self) -> Error {
        let _ = self.child.start_kill();
        Error::new(
            Kind::Internal,
            format_args!("a worker process said more than {LONGEST} bytes at once"),
        )
        .hint(REPORT)
    }

    /// Whether the process is there to be given a job.
    pub fn is_usable(&mut self) -> bool {
        !self.busy && matches!(self.child.try_wait(), Ok(None))
    }

    /// Lets it end, and sees to it that it does.
    pub async fn end(self) {
        self.end_within(FAREWELL).await;
    }

    /// The same, for one that has something to take away first.
    pub async fn end_within(self, patience: Duration) {
        let Self {
            mut child,
            to,
            from,
            ..
        } = self;
        drop((to, from));
        if timeout(patience, child.wait()).await.is_err() {
            let _ = child.start_kill();
            // One that waits for a disk dies when that answers, and the runtime takes note.
            let _ = timeout(FAREWELL, child.wait()).await;
        }
    }

    fn hangs(&mut self, job: &Job) -> Error {
        let _ = self.child.start_kill();
        Error::new(
            Kind::Timeout,
            format_args!("cannot go on with `{}`", job.reference),
        )
        .because(format_args!(
            "the worker process said nothing for {} s, and was ended",
            self.silence.as_secs()
        ))
        .reference(&job.reference)
        .hint("another edgepull that holds the image's lock, or an engine that hangs, may be why; `-v` says more")
        .retry(true)
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::worker::Work;

    /// A process that does nothing, and the other end of its socket.
    fn worker() -> (Worker, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let child = Command::new("sleep")
            .arg("60")
            .kill_on_drop(true)
            .spawn()
            .expect("started");
        let (from, to) = ours.into_split();
        let worker = Worker {
            child,
            to,
            from: BufReader::new(from),
            silence: Duration::from_millis(300),
            busy: false,
        };
        (worker, theirs)
    }

    fn job() -> Job {
        Job {
            work: Work::Pull,
            reference: "r.example/a:1".to_owned(),
            platform: "host".to_owned(),
            namespace: "default".to_owned(),
            pin: true,
            keep_previous: 0,
            verify: crate::desired::Verify::None,
            artifact: None,
        }
    }

    const ENDED: &str = r#"{"ended":{"done":{"rechecked":{"repaired":false,"damage":[],"unchecked":[],"fetched":0}},"failed":null,"retry_after":null,"of_clock":false,"spent":{"requests":[],"bytes":[],"remaining":[]}}}"#;

    #[tokio::test]
    async fn one_that_says_nothing_is_ended() {
        let (mut worker, mut far) = worker();
        // As long as it says something it may take its time.
        let tell = async {
            for _ in 0..4 {
                tokio::time::sleep(Duration::from_millis(150)).await;
                let event = r#"{"event":{"event":"syncing","reference":"r.example/a:1"}}"#;
                far.write_all(format!("{event}\n").as_bytes())
                    .await
                    .expect("heard");
            }
        };
        let mut events = 0;
        let job = job();
        let run = worker.run(&job, |_| events += 1);
        let ((ended, _), ()) = tokio::join!(run, tell);
        let error = ended.expect_err("it hangs");
        assert_eq!(error.kind(), Kind::Timeout);
        assert!(error.is_retryable());
        assert_eq!(events, 4);
        assert!(!worker.is_usable());
        let status = timeout(FAREWELL, worker.child.wait()).await;
        assert!(status.expect("it ends").is_ok());
    }

    #[tokio::test]
    async fn one_that_never_comes_to_an_end_is_not_listened_to_for_ever() {
        let (mut worker, mut far) = worker();
        worker.silence = Duration::from_secs(10);
        let tell = async {
            let piece = vec![b'x'; 1 << 20];
            // Until nobody takes it any more.
            for _ in 0..5 {
                let _ = timeout(Duration::from_secs(1), far.write_all(&piece)).await;
            }
        };
        let job = job();
        let run = worker.run(&job, |_| {});
        let ((ended, _), ()) = tokio::join!(run, tell);
        let error = ended.expect_err("it chatters");
        assert!(error.message().contains("said more than"), "{error}");
        assert!(error.hint_text().is_some());
        let status = timeout(FAREWELL, worker.child.wait()).await;
        assert!(status.expect("it ends").is_ok());
    }

    #[tokio::test]
    async fn one_that_talks_nonsense_gets_no_other_job() {
        let (mut worker, mut far) = worker();
        let text = format!("{ENDED}\nnonsense\n{ENDED}\n");
        far.write_all(text.as_bytes()).await.expect("heard");
        let (ended, _) = worker.run(&job(), |_| {}).await;
        assert!(matches!(ended, Ok(Done::Rechecked(_))), "{ended:?}");
        assert!(worker.is_usable());
        let (ended, _) = worker.run(&job(), |_| {}).await;
        assert_eq!(ended.expect_err("nonsense").kind(), Kind::Internal);
        // The next line would be taken for the answer to another image.
        assert!(!worker.is_usable());
    }
}
