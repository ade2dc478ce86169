//! Pods, asked for as kubelet asks: containerd's own CRI plugin over the shim under test.
//!
//! Pods have the machine's network, so that no plugin of CNI is needed; their image is brought as an
//! archive, and is the pause image as well.

mod kubelet;
pub mod wire;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use kubelet::{Container, Kubelet, Line, Pod};

use crate::containerd::{Setup, Version};
use crate::dock::{Dock, crun, is_foreign, runtime};
use crate::image;
use crate::process::{self, wait_for};
use crate::tools::{Lab, RunDir};

/// The namespace of Kubernetes.
pub const K8S: &str = "k8s.io";
/// The handler with the shim by its name, and options as TOML.
pub const BY_NAME: &str = "by-name";
/// The handler with the shim by its path, and runc's own options.
pub const BY_PATH: &str = "by-path";
/// The shim with crun in place of runc, by its path where that can be.
pub const CRUN: &str = "crun";
/// The handler with containerd's own shim.
pub const GO: &str = "go";

/// The handlers that are the shim under test. 1.6 reads `runtime_path` and does nothing with it.
pub fn handlers(version: Version) -> &'static [&'static str] {
    if version == Version::V1_6 {
        &[BY_NAME, CRUN]
    } else {
        &[BY_NAME, BY_PATH, CRUN]
    }
}

/// A machine of the lab may not be allowed to lower a score, which a pod's pause container wants.
const SCORES: &str = "restrict_oom_score_adj = true\n";
/// How long an exec's streams may be held by what it left behind; 1.6 waits for ever.
const DRAIN: &str = "drain_exec_sync_io_timeout = \"2s\"\n";
/// A plugin of CNI.
const CNI: &str = r#"#!/bin/sh
case $CNI_COMMAND in
ADD) echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"'"$CNI_NETNS"'"}],"ips":[{"address":"10.88.0.2/24","interface":0}]}' ;;
VERSION) echo '{"cniVersion":"1.0.0","supportedVersions":["0.3.1","0.4.0","1.0.0"]}' ;;
esac
"#;
const REPOSITORY: &str = "localhost/lab/pod";

/// The image of all containers: busybox, and programs that cannot run (see [`image::programs`]).
pub(crate) fn image_name() -> String {
    format!("{REPOSITORY}:latest")
}

/// A daemon with CRI, and what belongs to it.
#[derive(Debug)]
pub struct Pods {
    /// The daemon.
    pub dock: Dock,
    _options: RunDir,
}

impl Pods {
    /// A new daemon.
    #[track_caller]
    pub fn new(version: Version) -> Self {
        let options = Lab::get().run_dir("options");
        let setup = Setup::new(version)
            .cri()
            .config(&configuration(version, options.path()));
        let dock = Dock::with(setup);
        let archive = dock.daemon.dir().join("pod.tar");
        image::program(&["/bin/sleep", "2147483647"], &[]).archive(&archive);
        let archive = archive.to_str().expect("a path is text");
        let import = ["images", "import", "--base-name", REPOSITORY, archive];
        dock.daemon.ctr(K8S, &import).ok();
        Self {
            dock,
            _options: options,
        }
    }

    /// Speaks CRI, from this thread.
    #[track_caller]
    pub fn kubelet(&self) -> Kubelet<'_> {
        Kubelet::of(&self.dock)
    }

    /// Where a container's bundle is.
    pub fn bundle(&self, id: &str) -> PathBuf {
        let tasks = self
            .dock
            .daemon
            .dir()
            .join("state/io.containerd.runtime.v2.task");
        tasks.join(K8S).join(id)
    }

    /// The files that the running shims are.
    pub fn programs(&self) -> Vec<String> {
        let exe = |pid: u32| fs::read_link(format!("/proc/{pid}/exe")).ok();
        let name = |path: PathBuf| path.file_name()?.to_str().map(str::to_owned);
        let mut all: Vec<String> = self
            .dock
            .shims()
            .into_iter()
            .filter_map(|pid| name(exe(pid)?))
            .collect();
        all.sort();
        all
    }
}

/// `dir`: for files that the configuration names.
fn configuration(version: Version, dir: &Path) -> String {
    let runc = Lab::get().tool("runc/usr/sbin/runc");
    let shim = Lab::get().shim();
    let image = image_name();
    let drain = if version == Version::V1_6 { "" } else { DRAIN };
    let (plugin, mut text) = if version == Version::V2 {
        (
            "io.containerd.cri.v1.runtime",
            format!(
                "[plugins.\"io.containerd.cri.v1.images\".pinned_images]\nsandbox = \"{image}\"\n\
                 [plugins.\"io.containerd.cri.v1.runtime\"]\n{SCORES}{drain}"
            ),
        )
    } else {
        let plugin = "io.containerd.grpc.v1.cri";
        (
            plugin,
            format!("[plugins.\"{plugin}\"]\nsandbox_image = \"{image}\"\n{SCORES}{drain}"),
        )
    };
    let path = if is_foreign() {
        String::new()
    } else {
        format!("runtime_path = \"{}\"\n", shim.display())
    };
    let (named, crun) = (runtime(), crun());
    let usual = "io.containerd.runc.v2";
    for (name, kind, path, oci) in [
        (GO, usual, "", &runc),
        (BY_NAME, &named, "", &runc),
        (BY_PATH, usual, path.as_str(), &runc),
        if version == Version::V1_6 {
            (CRUN, named.as_str(), "", &crun)
        } else {
            (CRUN, usual, path.as_str(), &crun)
        },
    ] {
        let table = format!("plugins.\"{plugin}\".containerd.runtimes.{name}");
        let mut options = format!(
            "BinaryName = \"{}\"\nSystemdCgroup = false\n",
            oci.display()
        );
        if version == Version::V1_6 && kind == named {
            // It tells a runtime that it does not know nothing but the name of a file.
            let file = dir.join(name);
            fs::write(&file, options).unwrap();
            options = format!(
                "TypeUrl = \"runtimeoptions.v1.Options\"\nConfigPath = \"{}\"\n",
                file.display()
            );
        }
        let _infallible = write!(
            text,
            "[{table}]\nruntime_type = \"{kind}\"\n{path}[{table}.options]\n{options}"
        );
    }
    let _infallible = write!(
        text,
        "[plugins.\"{plugin}\".containerd]\ndefault_runtime_name = \"{GO}\"\n"
    );
    text
}

/// A network that gives an address and makes nothing: for pods that have one of their own. Returns
/// when the plugin knows of it.
#[track_caller]
pub fn give_network(pods: &Pods) {
    let dir = pods.dock.daemon.dir().join("cni");
    fs::create_dir_all(&dir).unwrap();
    for name in ["loopback", "lab"] {
        let program = dir.join(name);
        fs::write(&program, CNI).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let network = "{\"cniVersion\":\"1.0.0\",\"name\":\"pods\",\"plugins\":[{\"type\":\"lab\"}]}";
    fs::write(dir.join("lab.conflist"), network).unwrap();
    let kubelet = pods.kubelet();
    wait_for("the network", Duration::from_secs(30), || {
        let conditions = kubelet.about().status.unwrap_or_default().conditions;
        conditions
            .iter()
            .any(|condition| condition.r#type == "NetworkReady" && condition.status)
    });
}

/// The processes of a machine whose command line this is, with blanks between the words.
pub fn running_as(line: &str) -> Vec<u32> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| {
            let found = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let found = String::from_utf8_lossy(&found).replace('\0', " ");
            found.trim_end() == line && process::alive(*pid)
        })
        .collect()
}
