//! Cgroups without a container: the OCI runtime makes them first, and knows of them only by what it
//! writes later. One that was killed between the two never takes them away.

use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long processes in it may take to their end.
const LIMIT: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);

/// Takes away the cgroups that `cgroupsPath` of a specification names, where nothing is in them.
/// What systemd names (`slice:prefix:name`) is systemd's to take away.
pub fn remove(cgroups_path: &str) {
    remove_below(Path::new("/sys/fs/cgroup"), cgroups_path, LIMIT);
}

fn remove_below(mounts: &Path, cgroups_path: &str, limit: Duration) {
    let path = Path::new(cgroups_path);
    let plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let Some(path) = path
        .strip_prefix("/")
        .ok()
        .filter(|path| plain && path.components().next().is_some())
    else {
        return;
    };
    let trees = fs::read_dir(mounts).into_iter().flatten().flatten();
    let mut cgroups: Vec<PathBuf> = trees.map(|entry| entry.path().join(path)).collect();
    cgroups.push(mounts.join(path));
    let end = Instant::now() + limit;
    cgroups.retain(|cgroup| cgroup.is_dir());
    while !cgroups.is_empty() {
        // An empty one is all that can be removed like this.
        cgroups.retain(|cgroup| match fs::remove_dir(cgroup) {
            Err(error) => error.kind() == ErrorKind::ResourceBusy,
            Ok(()) => false,
        });
        if cgroups.is_empty() || Instant::now() >= end {
            return;
        }
        sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_empty_goes_and_what_is_not_stays() {
        let mounts = tempfile::tempdir().expect("a directory");
        let at = |path: &str| mounts.path().join(path);
        for path in [
            "cpu/lab/one",
            "pids/lab/one",
            "lab/one",
            "pids/lab/used/by",
            "cpu/lab/two",
        ] {
            fs::create_dir_all(at(path)).expect("made");
        }
        remove_below(mounts.path(), "/lab/one", Duration::ZERO);
        for gone in ["cpu/lab/one", "pids/lab/one", "lab/one"] {
            assert!(!at(gone).exists(), "{gone}");
        }
        remove_below(mounts.path(), "/lab/used", Duration::ZERO);
        for other in [
            "",
            "/",
            "lab/two",
            "/lab/../lab/two",
            "system.slice:lab:two",
        ] {
            remove_below(mounts.path(), other, Duration::ZERO);
        }
        assert!(at("pids/lab/used/by").exists());
        assert!(at("cpu/lab/two").exists());
    }
}
