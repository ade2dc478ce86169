//! One container, its task, and its execs.

use std::fs;
use std::path::PathBuf;

use containerd_client::services::v1::container::Runtime;
use containerd_client::services::v1::{Container, CreateTaskRequest, ExecProcessRequest};
use containerd_client::types::{Descriptor, Mount};
use prost_types::Any;
use serde_json::Value;
use tonic::Status;

use super::client::{Answer, Client};
use super::spec::{Spec, process};
use super::stdio::Stdio;
use super::{Dock, rootfs, runtime, wire};
use crate::scene::NAMESPACE;

const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// A container being put together.
#[derive(Debug)]
pub struct Make<'a> {
    dock: &'a Dock,
    id: String,
    spec: Spec,
    stdio: Stdio,
    options: Option<Any>,
    runtime: String,
    mounts: Option<Vec<Mount>>,
    checkpoint: Option<Descriptor>,
}

impl<'a> Make<'a> {
    pub(super) fn new(dock: &'a Dock, id: String) -> Self {
        Self {
            dock,
            spec: Spec::new(&id),
            id,
            stdio: Stdio::default(),
            options: None,
            runtime: runtime(),
            mounts: None,
            checkpoint: None,
        }
    }

    /// Its id.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Where it may keep what a test needs: streams, layers.
    pub fn dir(&self) -> PathBuf {
        self.dock.daemon.dir().join("dock").join(&self.id)
    }

    /// What it runs.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.spec.0["process"]["args"] = args.into();
        self
    }

    /// What it runs, for a shell.
    #[must_use]
    pub fn sh(self, script: &str) -> Self {
        self.args(&["sh", "-c", script])
    }

    /// An annotation.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.spec.0["annotations"][key] = value.into();
        self
    }

    /// Any change of the specification.
    #[must_use]
    pub fn spec(mut self, change: impl FnOnce(&mut Value)) -> Self {
        change(&mut self.spec.0);
        self
    }

    /// Its streams.
    #[must_use]
    pub fn stdio(mut self, stdio: &Stdio) -> Self {
        self.spec.0["process"]["terminal"] = stdio.terminal.into();
        self.stdio = stdio.clone();
        self
    }

    /// The options of its runtime.
    #[must_use]
    pub fn options(mut self, options: Any) -> Self {
        self.options = Some(options);
        self
    }

    /// Another OCI runtime than runc.
    #[must_use]
    pub fn oci_runtime(self, binary: &std::path::Path) -> Self {
        let options = wire::RuncOptions {
            binary_name: binary.to_str().expect("a path is text").to_owned(),
            ..wire::RuncOptions::default()
        };
        self.options(options.any())
    }

    /// Other mounts than an overlay over busybox.
    #[must_use]
    pub fn mounts(mut self, mounts: Vec<Mount>) -> Self {
        self.mounts = Some(mounts);
        self
    }

    /// From a checkpoint.
    #[must_use]
    pub fn checkpoint(mut self, checkpoint: Descriptor) -> Self {
        self.checkpoint = Some(checkpoint);
        self
    }

    /// An overlay as the overlayfs snapshotter gives it.
    #[track_caller]
    fn overlay(&self) -> Vec<Mount> {
        let dir = self.dir();
        for part in ["upper", "work"] {
            fs::create_dir_all(dir.join(part)).unwrap();
        }
        vec![Mount {
            r#type: "overlay".to_owned(),
            source: "overlay".to_owned(),
            target: String::new(),
            options: vec![
                "index=off".to_owned(),
                format!("workdir={}", dir.join("work").display()),
                format!("upperdir={}", dir.join("upper").display()),
                format!("lowerdir={}", rootfs().display()),
            ],
        }]
    }

    /// Task.Create; what it says.
    #[track_caller]
    pub fn create(self) -> Answer<Task<'a>> {
        let (client, id) = (self.dock.client(), self.id.clone());
        let answer = self.try_create();
        if answer.is_err() {
            client.delete_container(&id).unwrap();
        }
        answer
    }

    /// The same where nothing is sure: containerd may be killed meanwhile.
    #[track_caller]
    pub fn try_create(self) -> Answer<Task<'a>> {
        let client = self.dock.client();
        let container = Container {
            id: self.id.clone(),
            runtime: Some(Runtime {
                name: self.runtime.clone(),
                options: self.options.clone(),
            }),
            spec: Some(Any {
                type_url: SPEC_TYPE.to_owned(),
                value: self.spec.0.to_string().into_bytes(),
            }),
            ..Container::default()
        };
        client.create_container(container)?;
        let request = CreateTaskRequest {
            container_id: self.id.clone(),
            rootfs: self.mounts.clone().unwrap_or_else(|| self.overlay()),
            stdin: self.stdio.stdin.clone(),
            stdout: self.stdio.stdout.clone(),
            stderr: self.stdio.stderr.clone(),
            terminal: self.stdio.terminal,
            checkpoint: self.checkpoint.clone(),
            ..CreateTaskRequest::default()
        };
        let pid = client.create(request)?;
        Ok(Task {
            dock: self.dock,
            id: self.id,
            pid,
        })
    }

    /// Task.Create, which must work.
    #[track_caller]
    pub fn created(self) -> Task<'a> {
        let dock = self.dock;
        self.create()
            .unwrap_or_else(|e| panic!("create: {e:?}\n{}", dock.daemon.log()))
    }

    /// Task.Create and Task.Start, which must work.
    #[track_caller]
    pub fn start(self) -> Task<'a> {
        let task = self.created();
        let pid = task.start().unwrap();
        assert_eq!(pid, task.pid, "the pid of start");
        task
    }

    /// Task.Create, which must not work: what it says.
    #[track_caller]
    pub fn refused(self) -> Status {
        let id = self.id.clone();
        match self.create() {
            Err(status) => status,
            Ok(task) => panic!("{id} was created, its pid is {}", task.pid),
        }
    }
}

/// A task.
#[derive(Debug)]
pub struct Task<'a> {
    dock: &'a Dock,
    id: String,
    /// Of its first process.
    pub pid: u32,
}

impl Task<'_> {
    /// The container.
    pub fn id(&self) -> &str {
        &self.id
    }

    fn client(&self) -> &Client {
        self.dock.client()
    }

    /// Task.Start; the pid.
    pub fn start(&self) -> Answer<u32> {
        self.client().start(&self.id, "")
    }

    /// Task.Kill of the first process.
    pub fn kill(&self, signal: u32) -> Answer<()> {
        self.client().kill(&self.id, "", signal, false)
    }

    /// Task.Kill of all processes.
    pub fn kill_all(&self, signal: u32) -> Answer<()> {
        self.client().kill(&self.id, "", signal, true)
    }

    /// Task.Wait: the exit status.
    #[track_caller]
    pub fn wait(&self) -> u32 {
        self.client().wait(&self.id, "").unwrap().exit_status
    }

    /// The same where nothing is sure.
    pub fn try_wait(&self) -> Answer<u32> {
        self.client().wait(&self.id, "").map(|a| a.exit_status)
    }

    /// The status of Task.State, by name.
    #[track_caller]
    pub fn status(&self) -> &'static str {
        let state = self.client().state(&self.id, "").unwrap();
        state.status().as_str_name()
    }

    /// Task.Delete, and the container's record: its exit status.
    pub fn delete(&self) -> Answer<u32> {
        let answer = self.client().delete(&self.id)?;
        self.client().delete_container(&self.id)?;
        Ok(answer.exit_status)
    }

    /// Wait and delete, which say the same.
    #[track_caller]
    pub fn end(self) -> u32 {
        let waited = self.wait();
        let deleted = self.delete().unwrap();
        assert_eq!(waited, deleted, "the exit status of wait and of delete");
        waited
    }

    /// SIGKILL, and away with it.
    #[track_caller]
    pub fn end_by_force(self) {
        self.kill(9).unwrap();
        assert_eq!(self.end(), 137);
    }

    /// A process being put together that is to run in it.
    pub fn exec(&self, exec: &str) -> Exec<'_> {
        Exec {
            dock: self.dock,
            container: self.id.clone(),
            id: exec.to_owned(),
            process: process(&["true"]),
            stdio: Stdio::default(),
        }
    }

    /// Where its streams may be.
    pub fn dir(&self) -> PathBuf {
        self.dock.daemon.dir().join("dock").join(&self.id)
    }

    /// A file of the memory controller of its control group.
    #[track_caller]
    pub fn memory(&self, file: &str) -> String {
        let groups = super::cgroup_of(NAMESPACE, &self.id);
        let found = groups.iter().map(|group| group.join(file));
        let path = found
            .clone()
            .find(|path| path.is_file())
            .unwrap_or_else(|| panic!("no {file} in {groups:?}"));
        fs::read_to_string(path).unwrap().trim().to_owned()
    }
}

/// An exec.
#[derive(Debug)]
pub struct Exec<'a> {
    dock: &'a Dock,
    container: String,
    id: String,
    process: Value,
    stdio: Stdio,
}

impl Exec<'_> {
    /// What it runs.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.process["args"] = args.into();
        self
    }

    /// What it runs, for a shell.
    #[must_use]
    pub fn sh(self, script: &str) -> Self {
        self.args(&["sh", "-c", script])
    }

    /// Its streams.
    #[must_use]
    pub fn stdio(mut self, stdio: &Stdio) -> Self {
        self.process["terminal"] = stdio.terminal.into();
        self.stdio = stdio.clone();
        self
    }

    /// The request of Task.Exec.
    pub fn request(&self) -> ExecProcessRequest {
        ExecProcessRequest {
            container_id: self.container.clone(),
            stdin: self.stdio.stdin.clone(),
            stdout: self.stdio.stdout.clone(),
            stderr: self.stdio.stderr.clone(),
            terminal: self.stdio.terminal,
            spec: Some(Any {
                type_url: PROCESS_TYPE.to_owned(),
                value: self.process.to_string().into_bytes(),
            }),
            exec_id: self.id.clone(),
        }
    }

    /// Task.Exec.
    pub fn add(&self) -> Answer<()> {
        self.dock.client().exec(self.request())
    }

    /// Task.Start; the pid.
    pub fn start(&self) -> Answer<u32> {
        self.dock.client().start(&self.container, &self.id)
    }

    /// Both, which must work; the pid.
    #[track_caller]
    pub fn run(&self) -> u32 {
        self.add().unwrap();
        self.start()
            .unwrap_or_else(|e| panic!("start of exec {}: {e:?}", self.id))
    }

    /// Task.Wait: the exit status.
    #[track_caller]
    pub fn wait(&self) -> u32 {
        let answer = self.dock.client().wait(&self.container, &self.id);
        answer.unwrap().exit_status
    }

    /// Task.Kill.
    pub fn kill(&self, signal: u32) -> Answer<()> {
        self.dock
            .client()
            .kill(&self.container, &self.id, signal, false)
    }

    /// Task.Delete: the exit status.
    pub fn delete(&self) -> Answer<u32> {
        let answer = self.dock.client().delete_exec(&self.container, &self.id);
        answer.map(|a| a.exit_status)
    }

    /// Wait and delete, which say the same.
    #[track_caller]
    pub fn end(&self) -> u32 {
        let waited = self.wait();
        assert_eq!(
            self.delete().unwrap(),
            waited,
            "exit status of wait and delete"
        );
        waited
    }

    /// The same where nothing is sure.
    pub fn try_end(&self) -> Answer<u32> {
        self.dock.client().wait(&self.container, &self.id)?;
        self.delete()
    }

    /// The status of Task.State, by name.
    #[track_caller]
    pub fn status(&self) -> &'static str {
        let state = self.dock.client().state(&self.container, &self.id).unwrap();
        state.status().as_str_name()
    }
}

/// What a process that goes on does.
pub fn running<'a>(dock: &'a Dock, name: &str) -> Task<'a> {
    dock.make(name).args(&["sleep", "600"]).start()
}
