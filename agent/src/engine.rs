//! Engine profiles: which containerd, which namespace, which registry configuration
//! belong together on which distribution. Pure but for one look at the sockets.

use std::{
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
};

use nix::errno::Errno;

use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// Where the engine is and what to call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    pub name: &'static str,
    pub address: PathBuf,
    pub namespace: String,
    pub hosts_dir: PathBuf,
}

const STOCK_SOCKET: &str = "/run/containerd/containerd.sock";

const RKE2_HOSTS: &str = "/var/lib/rancher/rke2/agent/etc/containerd/certs.d";

struct Known {
    name: &'static str,
    address: &'static str,
    /// `None`: `k8s.io` if a kubelet is configured, else `default`.
    namespace: Option<&'static str>,
    hosts_dir: &'static str,
}

/// Sockets of the distributions, in the order in which they are looked for.
const KNOWN: [Known; 5] = [
    // rke2 uses k3s' socket path as well.
    Known {
        name: "k3s/rke2",
        address: "/run/k3s/containerd/containerd.sock",
        namespace: Some("k8s.io"),
        hosts_dir: "/var/lib/rancher/k3s/agent/etc/containerd/certs.d",
    },
    Known {
        name: "microk8s",
        address: "/var/snap/microk8s/common/run/containerd.sock",
        namespace: Some("k8s.io"),
        hosts_dir: "/var/snap/microk8s/current/args/certs.d",
    },
    Known {
        name: "k0s",
        address: "/run/k0s/containerd.sock",
        namespace: Some("k8s.io"),
        hosts_dir: "/etc/k0s/containerd.d/certs.d",
    },
    Known {
        name: "docker",
        address: "/run/docker/containerd/containerd.sock",
        namespace: Some("moby"),
        hosts_dir: "/etc/docker/certs.d",
    },
    Known {
        name: "plain",
        address: STOCK_SOCKET,
        namespace: None,
        hosts_dir: "/etc/containerd/certs.d",
    },
];

/// Files that only a configured kubelet leaves.
const KUBELET: [&str; 2] = [
    "/var/lib/kubelet/config.yaml",
    "/etc/kubernetes/kubelet.conf",
];

/// The trees of `hosts.toml` files for an engine; for none that can be told, the stock one's.
pub fn hosts_dirs(profile: Option<&Profile>) -> Vec<PathBuf> {
    let dir = profile.map_or_else(
        || PathBuf::from(KNOWN[4].hosts_dir),
        |profile| profile.hosts_dir.clone(),
    );
    if dir == Path::new(KNOWN[0].hosts_dir) {
        // One socket, two distributions; a host has one of them.
        return vec![dir, PathBuf::from(RKE2_HOSTS)];
    }
    vec![dir]
}

/// What the command line or the environment says.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    pub address: Option<PathBuf>,
    pub namespace: Option<String>,
}

/// Whether somebody has this socket, as engines do. A connection would tell, too, but it waits
/// for as long as an engine that hangs accepts none, and wakes one that does not.
fn is_listening(path: &Path) -> bool {
    // unix(7): where a socket of another type is bound, that is what is said.
    let asked = UnixDatagram::unbound().and_then(|socket| socket.connect(path));
    asked.is_err_and(|error| error.raw_os_error() == Some(Errno::EPROTOTYPE as i32))
}

/// Every engine that is meant: the one that a call named; else all that answer, of those that
/// are known and the configured one.
pub fn living(named: Option<&Path>, configured: Option<&Path>) -> Vec<Profile> {
    living_with(named, configured, is_listening, Path::exists)
}

fn living_with(
    named: Option<&Path>,
    configured: Option<&Path>,
    alive: impl Fn(&Path) -> bool,
    exists: impl Fn(&Path) -> bool,
) -> Vec<Profile> {
    let at = |address: &Path| profile_at(address, &exists);
    let mut all: Vec<Profile> = if let Some(named) = named {
        vec![at(named)]
    } else {
        let known = KNOWN.iter().map(|known| profile(known, None, &exists));
        known.chain(configured.map(at)).collect()
    };
    let mut seen = Vec::new();
    all.retain(|profile| {
        let first = !seen.contains(&profile.address);
        seen.push(profile.address.clone());
        first && alive(&profile.address)
    });
    all
}

/// Chooses the engine. Several living ones and no `--address` is a question to the
/// user, never a guess; no living one falls back to the stock socket, whose error
/// then says that nothing answers there.
pub fn choose(overrides: &Overrides) -> Result<Profile> {
    choose_with(overrides, is_listening, Path::exists)
}

fn choose_with(
    overrides: &Overrides,
    alive: impl Fn(&Path) -> bool,
    exists: impl Fn(&Path) -> bool,
) -> Result<Profile> {
    let known = if let Some(address) = &overrides.address {
        profile_at(address, &exists)
    } else {
        let living: Vec<&Known> = KNOWN
            .iter()
            .filter(|known| alive(Path::new(known.address)))
            .collect();
        match living.as_slice() {
            [] => profile(&KNOWN[4], None, &exists),
            [one] => profile(one, None, &exists),
            several => {
                let list: Vec<String> = several
                    .iter()
                    .map(|k| format!("{} ({})", k.address, k.name))
                    .collect();
                return Err(Error::new(
                    Kind::Usage,
                    format_args!("several container engines are running: {}", list.join(", ")),
                )
                .hint(
                    "say which one is meant with `--address SOCKET` (`-a`) or CONTAINERD_ADDRESS",
                ));
            }
        }
    };
    Ok(match &overrides.namespace {
        Some(namespace) => Profile {
            namespace: namespace.clone(),
            ..known
        },
        None => known,
    })
}

/// Other tools write `unix:///run/…` into `CONTAINERD_ADDRESS`.
fn socket(address: &Path) -> &Path {
    address
        .to_str()
        .and_then(|text| text.strip_prefix("unix://"))
        .map_or(address, Path::new)
}

/// Of an engine that was named by its socket.
fn profile_at(address: &Path, exists: impl Fn(&Path) -> bool) -> Profile {
    let address = socket(address);
    let matching = KNOWN
        .iter()
        .find(|known| Path::new(known.address) == address);
    profile(matching.unwrap_or(&KNOWN[4]), Some(address), exists)
}

fn profile(known: &Known, address: Option<&Path>, exists: impl Fn(&Path) -> bool) -> Profile {
    let namespace = known.namespace.unwrap_or_else(|| {
        if KUBELET.iter().any(|file| exists(Path::new(file))) {
            "k8s.io"
        } else {
            "default"
        }
    });
    Profile {
        name: known.name,
        address: address.map_or_else(|| PathBuf::from(known.address), Path::to_path_buf),
        namespace: namespace.to_owned(),
        hosts_dir: PathBuf::from(known.hosts_dir),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_living_engine_is_taken_with_its_namespace() {
        let profile = choose_with(
            &Overrides::default(),
            |path| path.starts_with("/run/k3s"),
            |_| false,
        )
        .expect("one");
        assert_eq!(
            (profile.name, profile.namespace.as_str()),
            ("k3s/rke2", "k8s.io")
        );
    }

    /// The daemon asks on the thread that all its work is done on.
    #[tokio::test]
    async fn an_engine_that_accepts_nobody_is_there_and_holds_nobody_up() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("containerd.sock");
        assert!(!is_listening(&path), "there is nothing");
        let socket = tokio::net::UnixSocket::new_stream().expect("a socket");
        socket.bind(&path).expect("bound");
        let listener = socket.listen(0).expect("it listens");
        let _waits = std::os::unix::net::UnixStream::connect(&path).expect("there is room for one");
        let (tell, told) = std::sync::mpsc::channel();
        let asked = path.clone();
        std::thread::spawn(move || tell.send(living(Some(&asked), None).len()));
        let answer = told.recv_timeout(std::time::Duration::from_secs(5));
        assert_eq!(answer, Ok(1));
        drop(listener);
        assert!(!is_listening(&path), "it has ended");
        std::fs::write(dir.path().join("file"), "").expect("written");
        assert!(!is_listening(&dir.path().join("file")), "no socket");
    }

    #[test]
    fn several_are_a_question() {
        let error = choose_with(&Overrides::default(), |_| true, |_| false).expect_err("several");
        assert_eq!(error.kind(), Kind::Usage);
        assert!(
            error
                .hint_text()
                .is_some_and(|hint| hint.contains("--address"))
        );
    }

    #[test]
    fn all_that_live_are_meant_unless_one_is_named() {
        let names = |named: Option<&str>, configured: Option<&str>, living: &[&str]| {
            let alive = |path: &Path| living.iter().any(|start| path.starts_with(start));
            let (named, configured) = (named.map(Path::new), configured.map(Path::new));
            living_with(named, configured, alive, |_| false)
                .iter()
                .map(|profile| profile.address.display().to_string())
                .collect::<Vec<_>>()
        };
        let two = ["/run/containerd", "/run/docker", "/srv"];
        let docker = "/run/docker/containerd/containerd.sock";
        let both = [docker, STOCK_SOCKET];
        let own = "/srv/containerd.sock";
        assert_eq!(names(None, None, &two), both);
        assert!(names(None, Some(own), &[]).is_empty());
        // What is configured is one of them, and may have been another one earlier.
        assert_eq!(names(None, Some(docker), &two), both);
        assert_eq!(names(None, Some(own), &two), [docker, STOCK_SOCKET, own]);
        assert_eq!(names(Some(STOCK_SOCKET), Some(own), &two), [STOCK_SOCKET]);
        assert_eq!(names(Some("unix:///srv/x"), None, &two), ["/srv/x"]);
        assert!(names(Some("/run/k0s/containerd.sock"), None, &two).is_empty());
    }

    #[test]
    fn a_kubelet_makes_the_stock_socket_kubernetes() {
        let nobody = |_: &Path| false;
        let none = Overrides::default();
        assert_eq!(
            choose_with(&none, nobody, |_| false)
                .expect("stock")
                .namespace,
            "default"
        );
        assert_eq!(
            choose_with(&none, nobody, |p| p.ends_with("config.yaml"))
                .expect("stock")
                .namespace,
            "k8s.io"
        );
    }

    #[test]
    fn an_address_may_be_a_url() {
        let overrides = Overrides {
            address: Some("unix:///run/k3s/containerd/containerd.sock".into()),
            namespace: None,
        };
        let profile = choose_with(&overrides, |_| true, |_| false).expect("given");
        assert_eq!(profile.name, "k3s/rke2");
        assert_eq!(
            profile.address,
            Path::new("/run/k3s/containerd/containerd.sock")
        );
    }

    #[test]
    fn an_address_names_its_profile_and_a_namespace_wins() {
        let overrides = Overrides {
            address: Some("/run/k0s/containerd.sock".into()),
            namespace: Some("x".into()),
        };
        let profile = choose_with(&overrides, |_| true, |_| false).expect("given");
        assert_eq!((profile.name, profile.namespace.as_str()), ("k0s", "x"));
    }
}
