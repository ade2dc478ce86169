//! What kubelet asks, one method each.

use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use prost::Message;
use tonic::client::Grpc;

use super::wire::{self, Named, Nothing};
use super::{K8S, image_name};
use crate::dock::{Answer, Client, Dock};
use crate::process::wait_for;

const PATIENCE: Duration = Duration::from_secs(60);

/// A sandbox that was asked for.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its id.
    pub id: String,
    config: wire::PodSandboxConfig,
}

/// A container of a pod.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Where its log is.
    pub log: PathBuf,
}

/// A line of a log as CRI defines it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// `stdout` or `stderr`.
    pub stream: String,
    /// False where the next entry goes on with the same line.
    pub full: bool,
    /// What was written.
    pub text: String,
}

/// A connection of one thread.
#[derive(Debug)]
pub struct Kubelet<'a> {
    dock: &'a Dock,
    client: Client,
}

impl<'a> Kubelet<'a> {
    /// Once the plugin and its image are ready.
    #[track_caller]
    pub(super) fn of(dock: &'a Dock) -> Self {
        let kubelet = Self {
            dock,
            client: dock.connect(),
        };
        wait_for("CRI and the image", PATIENCE, || kubelet.has_image());
        kubelet
    }

    fn ask<Q, A>(&self, service: &str, method: &str, request: Q) -> Answer<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        let path = format!("/runtime.v1.{service}/{method}");
        let path = path.parse().expect("a method's name is a path");
        let mut grpc = Grpc::new(self.client.channel());
        self.client.call(async {
            grpc.ready()
                .await
                .map_err(|e| tonic::Status::unavailable(e.to_string()))?;
            let codec = tonic_prost::ProstCodec::<Q, A>::default();
            grpc.unary(tonic::Request::new(request), path, codec).await
        })
    }

    fn runtime<Q, A>(&self, method: &str, request: Q) -> Answer<A>
    where
        Q: Message + 'static,
        A: Message + Default + 'static,
    {
        self.ask("RuntimeService", method, request)
    }

    fn named<A: Message + Default + 'static>(&self, method: &str, id: &str) -> Answer<A> {
        self.runtime(method, Named { id: id.to_owned() })
    }

    fn has_image(&self) -> bool {
        let request = wire::ImageStatusRequest {
            image: Some(wire::ImageSpec {
                image: image_name(),
            }),
        };
        let answer: Answer<wire::ImageStatusResponse> =
            self.ask("ImageService", "ImageStatus", request);
        answer.is_ok_and(|answer| answer.image.is_some())
    }

    /// `Status`.
    #[track_caller]
    pub fn about(&self) -> wire::StatusResponse {
        self.runtime("Status", Nothing {}).unwrap()
    }

    /// A pod with the machine's network, and all else of its own.
    #[track_caller]
    pub fn pod(&self, handler: &str) -> Pod {
        self.pod_with(handler, |_| ()).unwrap()
    }

    /// The same, changed.
    #[track_caller]
    pub fn pod_with(
        &self,
        handler: &str,
        change: impl FnOnce(&mut wire::PodSandboxConfig),
    ) -> Answer<Pod> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pod-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let logs = self.dock.daemon.dir().join("pods").join(&name);
        fs::create_dir_all(&logs).unwrap();
        let mut config = wire::PodSandboxConfig {
            metadata: Some(wire::PodSandboxMetadata {
                name: name.clone(),
                uid: name,
                namespace: "lab".to_owned(),
                attempt: 0,
            }),
            hostname: String::new(),
            log_directory: logs.to_str().expect("a path is text").to_owned(),
            linux: Some(wire::LinuxPodSandboxConfig {
                cgroup_parent: format!("/{K8S}"),
                security_context: Some(wire::LinuxSandboxSecurityContext {
                    namespace_options: Some(wire::NamespaceOption {
                        network: wire::NODE,
                        pid: wire::CONTAINER,
                        ipc: wire::POD,
                        userns_options: None,
                    }),
                }),
            }),
        };
        change(&mut config);
        let request = wire::RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        };
        let Named { id } = self.runtime("RunPodSandbox", request)?;
        self.dock.watch_in(K8S, &id);
        Ok(Pod { id, config })
    }

    /// `StopPodSandbox`.
    pub fn stop_pod(&self, pod: &Pod) -> Answer<()> {
        let answer: Answer<Nothing> = self.named("StopPodSandbox", &pod.id);
        answer.map(|_| ())
    }

    /// `RemovePodSandbox`, which stops it.
    pub fn remove_pod(&self, pod: &Pod) -> Answer<()> {
        let answer: Answer<Nothing> = self.named("RemovePodSandbox", &pod.id);
        answer.map(|_| ())
    }

    /// As kubelet ends a pod.
    #[track_caller]
    pub fn end(&self, pod: &Pod) {
        self.stop_pod(pod).unwrap();
        self.remove_pod(pod).unwrap();
    }

    /// `PodSandboxStatus`.
    #[track_caller]
    pub fn pod_status(&self, pod: &Pod) -> wire::PodSandboxStatus {
        let answer: wire::PodSandboxStatusResponse =
            self.named("PodSandboxStatus", &pod.id).unwrap();
        answer.status.unwrap()
    }

    /// `CreateContainer`, with the namespaces of its pod.
    pub fn create(
        &self,
        pod: &Pod,
        name: &str,
        command: &[&str],
        change: impl FnOnce(&mut wire::ContainerConfig),
    ) -> Answer<Container> {
        let options = pod.config.linux.as_ref().and_then(|linux| {
            let context = linux.security_context.as_ref()?;
            context.namespace_options.clone()
        });
        let mut config = wire::ContainerConfig {
            metadata: Some(wire::ContainerMetadata {
                name: name.to_owned(),
                attempt: 0,
            }),
            image: Some(wire::ImageSpec {
                image: image_name(),
            }),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            mounts: Vec::new(),
            log_path: format!("{name}.log"),
            linux: Some(wire::LinuxContainerConfig {
                resources: Some(wire::LinuxContainerResources::default()),
                security_context: Some(wire::LinuxContainerSecurityContext {
                    namespace_options: options,
                }),
            }),
        };
        change(&mut config);
        let log = PathBuf::from(&pod.config.log_directory).join(&config.log_path);
        let request = wire::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let Named { id } = self.runtime("CreateContainer", request)?;
        self.dock.watch_in(K8S, &id);
        Ok(Container { id, log })
    }

    /// `StartContainer`.
    pub fn start(&self, container: &Container) -> Answer<()> {
        let answer: Answer<Nothing> = self.named("StartContainer", &container.id);
        answer.map(|_| ())
    }

    /// A container that runs this.
    #[track_caller]
    pub fn run(&self, pod: &Pod, name: &str, command: &[&str]) -> Container {
        let container = self.create(pod, name, command, |_| ()).unwrap();
        self.start(&container).unwrap();
        container
    }

    /// One that runs this in busybox' shell.
    #[track_caller]
    pub fn sh(&self, pod: &Pod, name: &str, script: &str) -> Container {
        self.run(pod, name, &["/bin/sh", "-c", script])
    }

    /// `StopContainer`, with so many seconds of grace.
    pub fn stop(&self, container: &Container, seconds: i64) -> Answer<()> {
        let request = wire::StopContainerRequest {
            container_id: container.id.clone(),
            timeout: seconds,
        };
        let answer: Answer<Nothing> = self.runtime("StopContainer", request);
        answer.map(|_| ())
    }

    /// `RemoveContainer`.
    pub fn remove(&self, container: &Container) -> Answer<()> {
        let answer: Answer<Nothing> = self.named("RemoveContainer", &container.id);
        answer.map(|_| ())
    }

    /// `ContainerStatus`.
    #[track_caller]
    pub fn status(&self, container: &Container) -> wire::ContainerStatus {
        let answer: wire::ContainerStatusResponse =
            self.named("ContainerStatus", &container.id).unwrap();
        answer.status.unwrap()
    }

    /// The same, once it is over.
    #[track_caller]
    pub fn ended(&self, container: &Container) -> wire::ContainerStatus {
        wait_for("the container's end", PATIENCE, || {
            self.status(container).state == wire::EXITED
        });
        self.status(container)
    }

    /// `ListContainers`: the ids of a pod's, sorted.
    #[track_caller]
    pub fn containers(&self, pod: &Pod) -> Vec<String> {
        let answer: wire::ListContainersResponse =
            self.runtime("ListContainers", Nothing {}).unwrap();
        let mut ids: Vec<String> = answer
            .containers
            .into_iter()
            .filter(|listed| listed.pod_sandbox_id == pod.id)
            .map(|listed| listed.id)
            .collect();
        ids.sort();
        ids
    }

    /// `ExecSync`, with a limit in seconds; 0: none.
    pub fn exec(
        &self,
        container: &Container,
        command: &[&str],
        seconds: i64,
    ) -> Answer<wire::ExecSyncResponse> {
        let request = wire::ExecSyncRequest {
            container_id: container.id.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: seconds,
        };
        self.runtime("ExecSync", request)
    }

    /// What a shell in the container says; it must end well.
    #[track_caller]
    pub fn says(&self, container: &Container, script: &str) -> String {
        let said = self
            .exec(container, &["/bin/sh", "-c", script], 30)
            .unwrap();
        assert_eq!(said.exit_code, 0, "{script}: {said:?}");
        String::from_utf8(said.stdout).unwrap()
    }

    /// `ContainerStats`.
    #[track_caller]
    pub fn stats(&self, container: &Container) -> wire::ContainerStats {
        let answer: wire::ContainerStatsResponse =
            self.named("ContainerStats", &container.id).unwrap();
        answer.stats.unwrap()
    }

    /// `UpdateContainerResources`: a limit of memory.
    pub fn limit_memory(&self, container: &Container, bytes: i64) -> Answer<()> {
        let request = wire::UpdateContainerResourcesRequest {
            container_id: container.id.clone(),
            linux: Some(wire::LinuxContainerResources {
                memory_limit_in_bytes: bytes,
                ..wire::LinuxContainerResources::default()
            }),
        };
        let answer: Answer<Nothing> = self.runtime("UpdateContainerResources", request);
        answer.map(|_| ())
    }
}

impl Container {
    /// Its log so far, each line checked for its form.
    #[track_caller]
    pub fn log(&self) -> Vec<Line> {
        let text = fs::read_to_string(&self.log).unwrap();
        // A line that is being written is not there yet.
        text.split_inclusive('\n')
            .filter(|line| line.ends_with('\n'))
            .map(|line| {
                let words: Vec<&str> = line.trim_end_matches('\n').splitn(4, ' ').collect();
                let [time, stream, tag, text] = words[..] else {
                    panic!("not CRI's form: {line}");
                };
                assert!(time.contains('T'), "{line}");
                assert!(["F", "P"].contains(&tag), "{line}");
                Line {
                    stream: stream.to_owned(),
                    full: tag == "F",
                    text: text.to_owned(),
                }
            })
            .collect()
    }

    /// What was written to one of its streams.
    #[track_caller]
    pub fn wrote(&self, stream: &str) -> String {
        let lines = self.log().into_iter();
        lines
            .filter(|line| line.stream == stream)
            .map(|line| line.text + if line.full { "\n" } else { "" })
            .collect()
    }
}
