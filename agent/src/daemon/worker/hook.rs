//! The program that is told of an artifact's new files.

use std::{
    ffi::OsString,
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    time::timeout,
};

use crate::{
    error::{Error, Result},
    kind::Kind,
    layout::Delivery,
    redact::printable,
};

/// Who needs longer starts something that goes on by itself.
pub(super) const LIMIT: Duration = Duration::from_secs(60);
/// How long what it printed is waited for when it has ended.
const REST: Duration = Duration::from_secs(1);
/// Bytes of its output that go to the journal; the rest is read and dropped.
const MOST_OUTPUT: usize = 16 << 10;
/// Lines of it that are part of a failure.
const LAST_LINES: usize = 3;
const LONGEST_LINE: usize = 400;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// One call.
#[derive(Debug)]
pub(super) struct Hook<'a> {
    /// The program and its arguments.
    pub(super) words: &'a [String],
    pub(super) reference: &'a str,
    pub(super) platform: &'a str,
    pub(super) dir: &'a Path,
    pub(super) delivery: &'a Delivery,
}

impl Hook<'_> {
    /// Runs it to its end. Its output goes to the journal.
    pub(super) async fn run(&self, limit: Duration) -> Result<()> {
        let Some((program, args)) = self.words.split_first() else {
            return Ok(());
        };
        let child = Command::new(program)
            .args(args)
            .env_clear()
            .envs(self.variables())
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn();
        let mut child = child.map_err(|error| {
            self.failed(Kind::Internal)
                .caused_by(&error)
                .hint("`hook` names a program and its arguments; what the unit may execute, it may")
        })?;
        let mut group = Group::of(&child);
        let said: [Said; 2] = Default::default();
        let [out, err] = said.each_ref().map(Arc::clone);
        let readers = [
            tokio::spawn(listen(child.stdout.take(), out)),
            tokio::spawn(listen(child.stderr.take(), err)),
        ];
        let Ok(status) = timeout(limit, child.wait()).await else {
            drop(group);
            return Err(self
                .failed(Kind::Timeout)
                .because(format_args!(
                    "it did not end within {} s, and was ended",
                    limit.as_secs()
                ))
                .hint("a hook that needs longer starts a service, say, and ends")
                .retry(true));
        };
        // What it started goes on, and may hold its output open.
        group.let_go();
        for reader in readers {
            let abort = reader.abort_handle();
            if timeout(REST, reader).await.is_err() {
                abort.abort();
            }
        }
        let lines: Vec<String> = said
            .iter()
            .map(|text| text.lock().unwrap_or_else(PoisonError::into_inner))
            .flat_map(|text| {
                let text = String::from_utf8_lossy(&text).into_owned();
                let lines = text.lines().map(|line| printable(line, LONGEST_LINE));
                lines.collect::<Vec<_>>()
            })
            .collect();
        for line in &lines {
            tracing::info!(
                reference = self.reference,
                platform = self.platform,
                "the hook says: {line}"
            );
        }
        let status = status.map_err(|error| self.failed(Kind::Internal).caused_by(&error))?;
        if status.success() {
            return Ok(());
        }
        let last = lines.iter().skip(lines.len().saturating_sub(LAST_LINES));
        let error = self.failed(Kind::Internal).because(status);
        Err(last
            .fold(error, |error, line| {
                error.because(format_args!("it said: {line}"))
            })
            .hint("the files are in place; the hook is called again until it ends with 0")
            .retry(true))
    }

    fn variables(&self) -> Vec<(&'static str, OsString)> {
        let identity = &self.delivery.identity;
        let mut files = OsString::new();
        for file in &self.delivery.files {
            if !files.is_empty() {
                files.push("\n");
            }
            files.push(self.dir.join(&file.name));
        }
        let platform = identity.platform.as_deref().unwrap_or(self.platform);
        vec![
            ("PATH", PATH.into()),
            ("EDGEPULL_REFERENCE", self.reference.into()),
            ("EDGEPULL_DIGEST", identity.manifest_digest.as_str().into()),
            ("EDGEPULL_PLATFORM", platform.into()),
            ("EDGEPULL_DIR", self.dir.into()),
            ("EDGEPULL_FILES", files),
        ]
    }

    fn failed(&self, kind: Kind) -> Error {
        let program = self.words.first().map_or("", String::as_str);
        Error::new(
            kind,
            format_args!(
                "the hook `{program}` was not done with the files of `{}`",
                self.reference
            ),
        )
        .reference(self.reference)
        .retry(true)
    }
}

/// Ended as a whole when it is dropped before the hook ended: with what it started.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        let pid = child.id().and_then(|id| i32::try_from(id).ok());
        Self(pid.map(Pid::from_raw))
    }

    /// The hook ended by itself: from now on its number may be somebody else's.
    fn let_go(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = killpg(group, Signal::SIGKILL);
        }
    }
}

/// What it said so far.
type Said = Arc<Mutex<Vec<u8>>>;

/// Keeps what it says, up to a bound, and reads to its end.
async fn listen(from: Option<impl AsyncRead + Unpin>, said: Said) {
    let Some(mut from) = from else { return };
    let mut buffer = [0; 4096];
    while let Ok(read) = from.read(&mut buffer).await {
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            break;
        };
        let mut kept = said.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MOST_OUTPUT.saturating_sub(kept.len());
        kept.extend(bytes.iter().take(room));
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn delivery() -> Delivery {
        let digest = crate::oci::Digest::of(b"1");
        serde_json::from_value(serde_json::json!({
            "schema": "edgepull.artifact/1",
            "repository": "r.example/a",
            "wanted": ["zephyr/arm/v7"],
            "target_digest": digest,
            "manifest_digest": digest,
            "platform": "zephyr/arm/v7",
            "files": [
                {"name": "service.json", "digest": digest, "size": 1},
                {"name": "config.json", "digest": digest, "size": 1},
            ],
        }))
        .expect("a record")
    }

    async fn run(script: &str, dir: &Path, limit: Duration) -> Result<()> {
        let words = ["/bin/sh", "-c", script, "sh", "argument"].map(str::to_owned);
        let hook = Hook {
            words: &words,
            reference: "r.example/a:1",
            platform: "zephyr/arm/v7",
            dir,
            delivery: &delivery(),
        };
        hook.run(limit).await
    }

    #[tokio::test]
    async fn it_knows_what_is_new_and_nothing_of_our_environment() {
        let dir = tempfile::tempdir().expect("a directory");
        let script = r#"pwd >"$EDGEPULL_DIR/out"; echo "$1" >>"$EDGEPULL_DIR/out"; env | sed '/^PWD=/d;/^_=/d;/^SHLVL=/d' | sort >>"$EDGEPULL_DIR/out""#;
        run(script, dir.path(), LIMIT).await.expect("done");
        let said = fs::read_to_string(dir.path().join("out")).expect("written");
        let place = dir.path().display();
        let digest = crate::oci::Digest::of(b"1");
        // The second line of EDGEPULL_FILES is sorted, too.
        let mut expected: Vec<String> = vec![
            format!("{place}/config.json"),
            format!("EDGEPULL_DIGEST={digest}"),
            format!("EDGEPULL_DIR={place}"),
            format!("EDGEPULL_FILES={place}/service.json"),
            "EDGEPULL_PLATFORM=zephyr/arm/v7".to_owned(),
            "EDGEPULL_REFERENCE=r.example/a:1".to_owned(),
            format!("PATH={PATH}"),
        ];
        let mut lines: Vec<String> = said.lines().map(str::to_owned).collect();
        assert_eq!(lines.drain(..2).collect::<Vec<_>>(), ["/", "argument"]);
        lines.sort();
        expected.sort();
        assert_eq!(lines, expected);
    }

    #[tokio::test]
    async fn failures_say_what_it_said() {
        let dir = tempfile::tempdir().expect("a directory");
        let error = run("echo one; echo two >&2; exit 3", dir.path(), LIMIT)
            .await
            .expect_err("it fails");
        assert!(error.is_retryable());
        assert_eq!(
            error.causes(),
            ["exit status: 3", "it said: one", "it said: two"]
        );
        let much = "yes | head -c 1000000; exit 1";
        assert!(run(much, dir.path(), LIMIT).await.is_err());
        let words = ["/no/such/hook".to_owned()];
        let hook = Hook {
            words: &words,
            reference: "r.example/a:1",
            platform: "zephyr/arm/v7",
            dir: dir.path(),
            delivery: &delivery(),
        };
        assert!(hook.run(LIMIT).await.expect_err("none").is_retryable());
    }

    #[tokio::test]
    async fn one_that_hangs_is_ended_with_its_children() {
        let dir = tempfile::tempdir().expect("a directory");
        let script = r#"sleep 600 & echo $! >"$EDGEPULL_DIR/pid"; wait"#;
        let error = run(script, dir.path(), Duration::from_secs(1)).await;
        assert_eq!(error.expect_err("it hangs").kind(), Kind::Timeout);
        let pid = fs::read_to_string(dir.path().join("pid")).expect("started");
        let stat = Path::new("/proc").join(pid.trim()).join("stat");
        for _ in 0..100 {
            // Nobody may have taken note of its end yet.
            match fs::read_to_string(&stat) {
                Ok(text) if !text.contains(") Z ") => {}
                _ => return,
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{pid} still runs");
    }
}
