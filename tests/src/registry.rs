//! A private docker-registry (distribution), as Debian builds it.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::TcpListener;
use std::process::Child;
use std::time::Duration;

use crate::http::{self, Body};
use crate::process;
use crate::tools::{Lab, RunDir};

/// User of a registry with basic authentication.
pub const USER: &str = "edge";
/// Its password.
pub const PASSWORD: &str = "pull-me";
/// `htpasswd -nbB edge pull-me`, at the lowest cost.
const HTPASSWD: &str = "edge:$2y$05$QacX6NZW6YY/JnNjVJeeyuiNx4U.eVBOej0ucbZiGipFWQX46WeVy\n";

/// A running registry; stopped and removed when dropped.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    host: String,
    auth: Option<String>,
    dir: RunDir,
}

impl Registry {
    /// One that anybody may use.
    #[track_caller]
    pub fn start() -> Self {
        Self::with(false)
    }

    /// One that asks for [`USER`] and [`PASSWORD`] (basic).
    #[track_caller]
    pub fn start_with_password() -> Self {
        Self::with(true)
    }

    #[track_caller]
    fn with(password: bool) -> Self {
        // Another process may take the port between our look and the registry's: then again.
        for _ in 0..5 {
            if let Some(registry) = Self::attempt(password) {
                return registry;
            }
        }
        panic!("the registry does not come up");
    }

    fn attempt(password: bool) -> Option<Self> {
        let lab = Lab::get();
        let dir = lab.run_dir("reg");
        let port = free_port();
        let host = format!("127.0.0.1:{port}");
        let at = dir.path().display();
        let mut config = format!(
            "version: 0.1\nlog:\n  level: warn\n  accesslog:\n    disabled: true\nstorage:\n  delete:\n    enabled: true\n  \
             filesystem:\n    rootdirectory: {at}/data\n  maintenance:\n    uploadpurging:\n      enabled: false\n\
             http:\n  addr: {host}\n"
        );
        if password {
            fs::write(dir.path().join("htpasswd"), HTPASSWD).unwrap();
            let _infallible = write!(
                config,
                "auth:\n  htpasswd:\n    realm: lab\n    path: {at}/htpasswd\n"
            );
        }
        fs::write(dir.path().join("config.yml"), config).unwrap();
        let log = File::create(dir.path().join("log")).unwrap();
        let mut child = process::tied(lab.tool("docker-registry/usr/bin/docker-registry"))
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start docker-registry: {e}"));
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while std::time::Instant::now() < end {
            if !matches!(child.try_wait(), Ok(None)) {
                let log = fs::read_to_string(dir.path().join("log")).unwrap_or_default();
                process::note(&format!("docker-registry ended: {log}"));
                return None;
            }
            let answer = http::request(&host, "GET", "/v2/", &[], &Body::Empty);
            if answer.is_ok_and(|r| matches!(r.status, 200 | 401)) {
                return Some(Self {
                    child,
                    host,
                    auth: password.then(|| http::basic(USER, PASSWORD)),
                    dir,
                });
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _killed = child.kill();
        let _status = child.wait();
        None
    }

    /// `127.0.0.1:port`.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The `Authorization` to send, if it wants one.
    pub fn authorization(&self) -> Option<&str> {
        self.auth.as_deref()
    }

    /// A full reference.
    pub fn reference(&self, repository: &str, tag: &str) -> String {
        format!("{}/{repository}:{tag}", self.host)
    }

    /// What the registry itself wrote.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

/// A port on which nobody listens right now.
pub fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("loopback has free ports")
        .port()
}
