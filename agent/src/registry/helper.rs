//! `docker-credential-*` programs: the key on stdin, JSON on stdout.

use std::{
    io::Write,
    os::fd::OwnedFd,
    process::{Child, Command, Stdio},
    time::Duration,
};

use serde::Deserialize;
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    time::{sleep, timeout},
};

use super::docker_config::{HelperCall, Login, password};

/// Helpers ask cloud services; longer than this and the pull fails instead.
const PATIENCE: Duration = Duration::from_secs(20);
/// A login is far below this.
const MAX_OUTPUT: u64 = 64 << 10;
/// How often a helper that closed its output is asked whether it has ended.
const POLL: Duration = Duration::from_millis(10);
/// What every helper says when it has nothing (docker-credential-helpers).
const NOT_FOUND: &str = "credentials not found in native keychain";

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username", default)]
    user: String,
    #[serde(rename = "Secret", default)]
    secret: String,
}

/// Asks the helper; `None` if it has nothing for the key. The error never quotes
/// the output of a helper that may have printed a secret.
pub(super) async fn get(call: &HelperCall) -> Result<Option<Login>, String> {
    let sound = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if call.program.is_empty() || call.program.len() > 64 || !call.program.chars().all(sound) {
        return Err("its name is no program name".to_owned());
    }
    run(&format!("docker-credential-{}", call.program), &call.key).await
}

/// A helper never outlives the lookup, not even one whose pull was cancelled.
struct Owned(Child);

impl Drop for Owned {
    fn drop(&mut self) {
        // Already ended is fine; `wait` only collects it then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn run(program: &str, key: &str) -> Result<Option<Login>, String> {
    let child = Command::new(program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| error.to_string())?;
    let mut child = Owned(child);
    // A key fits into the pipe, so this cannot block; a helper that does not read is
    // its own problem.
    if let Some(mut stdin) = child.0.stdin.take() {
        let _ = stdin.write_all(key.as_bytes());
    }
    let stdout = child.0.stdout.take().ok_or("no output")?;
    let (ok, output) = timeout(PATIENCE, finish(&mut child.0, stdout.into()))
        .await
        .map_err(|_| format!("no answer in {} s", PATIENCE.as_secs()))??;
    if !ok {
        let text = String::from_utf8_lossy(&output);
        return if text.contains(NOT_FOUND) {
            Ok(None)
        } else {
            Err("it ended with a failure".to_owned())
        };
    }
    let answer: Answer = serde_json::from_slice(&output)
        .map_err(|_| "its answer is not the JSON of a credential helper".to_owned())?;
    if answer.secret.is_empty() {
        return Ok(None);
    }
    Ok(Some(password(&answer.user, &answer.secret)))
}

/// The output, and whether the helper ended well.
async fn finish(child: &mut Child, stdout: OwnedFd) -> Result<(bool, Vec<u8>), String> {
    let stdout = pipe::Receiver::from_owned_fd(stdout).map_err(|error| error.to_string())?;
    let mut output = Vec::new();
    stdout
        .take(MAX_OUTPUT + 1)
        .read_to_end(&mut output)
        .await
        .map_err(|error| error.to_string())?;
    if output.len() as u64 > MAX_OUTPUT {
        return Err("its answer is too long".to_owned());
    }
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok((status.success(), output)),
            Ok(None) => sleep(POLL).await,
            Err(error) => return Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    async fn script(body: &str) -> Result<Option<Login>, String> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("helper");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("set");
        let path = path.to_str().expect("text");
        // Another test's fork may still hold the script open for writing (ETXTBSY).
        for _ in 0..50 {
            match run(path, "key.example").await {
                Err(error) if error.contains("busy") => sleep(POLL).await,
                other => return other,
            }
        }
        run(path, "key.example").await
    }

    #[tokio::test]
    async fn the_protocol_is_spoken() {
        let login = script(
            r#"read key; [ "$1" = get ] && echo "{\"ServerURL\":\"$key\",\"Username\":\"$key\",\"Secret\":\"s\"}""#,
        )
        .await;
        assert_eq!(login, Ok(Some(password("key.example", "s"))));
        let token = script(r#"echo '{"Username":"<token>","Secret":"s"}'"#).await;
        assert!(matches!(token, Ok(Some(Login::Identity(_)))));
        let none = script(&format!("echo {NOT_FOUND}; exit 1")).await;
        assert_eq!(none, Ok(None));
    }

    #[tokio::test]
    async fn failures_are_told_without_the_output() {
        for body in ["echo hunter2; exit 1", "echo hunter2"] {
            let error = script(body).await.expect_err(body);
            assert!(!error.contains("hunter2"), "{error}");
        }
        let long = script("head -c 100000 /dev/zero").await;
        assert!(long.is_err());
        for program in ["", "../x", "a b", "a/b"] {
            let call = HelperCall {
                program: program.to_owned(),
                key: String::new(),
            };
            assert!(get(&call).await.is_err(), "{program}");
        }
    }
}
