//! A private dockerd with the containerd image store, on a private containerd (namespace `moby`).

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::containerd::Containerd;
use crate::http::{self, Body, Response};
use crate::process;
use crate::tools::{Lab, RunDir};

/// A running dockerd; stopped when dropped. No bridge, no firewall rules: images only, and
/// containers without a network.
#[derive(Debug)]
pub struct Docker {
    child: Child,
    dir: RunDir,
}

impl Docker {
    /// Starts one on that containerd.
    #[track_caller]
    pub fn start(containerd: &Containerd) -> Self {
        let lab = Lab::get();
        let dir = lab.run_dir("dkr");
        let at = dir.path();
        let config = json!({
            "data-root": at.join("data"),
            "exec-root": at.join("exec"),
            "pidfile": at.join("pid"),
            "hosts": [format!("unix://{}", at.join("d.sock").display())],
            "containerd": containerd.address(),
            "features": {"containerd-snapshotter": true},
            "bridge": "none",
            "iptables": false,
            "ip6tables": false,
            "ip-forward": false,
            "userland-proxy": false,
        });
        fs::write(at.join("daemon.json"), config.to_string()).unwrap();
        let log = File::create(at.join("log")).unwrap();
        let bin = lab.tool("docker/usr/sbin/dockerd");
        let containerd_bin = containerd.version().bin();
        let child = process::tied(&bin)
            .arg("--config-file")
            .arg(at.join("daemon.json"))
            .env("PATH", lab.path_with(&containerd_bin))
            .env("TMPDIR", at)
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start dockerd: {e}"));
        let mut docker = Self { child, dir };
        let end = Instant::now() + Duration::from_secs(30);
        while !docker
            .ask("GET", "/_ping", None)
            .is_ok_and(|r| r.status == 200)
        {
            let gone = !matches!(docker.child.try_wait(), Ok(None));
            assert!(
                !gone && Instant::now() < end,
                "dockerd does not come up:\n{}",
                docker.log()
            );
            std::thread::sleep(Duration::from_millis(30));
        }
        docker
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("d.sock")
    }

    fn ask(&self, method: &str, target: &str, body: Option<&Value>) -> std::io::Result<Response> {
        let text = body.map(Value::to_string).unwrap_or_default();
        let body = match body {
            Some(_) => Body::Bytes(text.as_bytes()),
            None => Body::Empty,
        };
        http::request_unix(&self.socket(), method, target, &body)
    }

    /// The daemon's log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// A call of the Engine API; the answer must be a success.
    #[track_caller]
    pub fn api(&self, method: &str, target: &str, body: Option<&Value>) -> Response {
        let answer = self
            .ask(method, target, body)
            .unwrap_or_else(|e| panic!("{method} {target}: {e}\n{}", self.log()));
        assert!(
            (200..300).contains(&answer.status),
            "{method} {target}: {} {}",
            answer.status,
            String::from_utf8_lossy(&answer.body)
        );
        answer
    }

    /// `docker images`: every tag it knows.
    #[track_caller]
    pub fn tags(&self) -> Vec<String> {
        let answer = self.api("GET", "/images/json", None);
        let images: Vec<Value> = serde_json::from_slice(&answer.body).unwrap();
        let mut tags: Vec<String> = images
            .iter()
            .flat_map(|image| image["RepoTags"].as_array().into_iter().flatten())
            .filter_map(|tag| Some(tag.as_str()?.to_owned()))
            .collect();
        tags.sort();
        tags
    }

    /// `docker run --rm --network none IMAGE`: exit code and what was printed.
    #[track_caller]
    pub fn run(&self, image: &str) -> (i64, String) {
        let config = json!({
            "Image": image,
            "Tty": true,
            "HostConfig": {"NetworkMode": "none"},
        });
        let made = self.api("POST", "/containers/create", Some(&config));
        let made: Value = serde_json::from_slice(&made.body).unwrap();
        let id = made["Id"].as_str().unwrap();
        self.api("POST", &format!("/containers/{id}/start"), None);
        let ended = self.api("POST", &format!("/containers/{id}/wait"), None);
        let ended: Value = serde_json::from_slice(&ended.body).unwrap();
        let log = self.api(
            "GET",
            &format!("/containers/{id}/logs?stdout=1&stderr=1"),
            None,
        );
        self.api("DELETE", &format!("/containers/{id}?force=1"), None);
        let code = ended["StatusCode"].as_i64().unwrap_or(-1);
        (code, String::from_utf8_lossy(&log.body).into_owned())
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        process::send(self.child.id(), nix::sys::signal::Signal::SIGTERM);
        let end = Instant::now() + Duration::from_secs(10);
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}
