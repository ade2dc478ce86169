//! Whether the disks have room for a pull: what it takes may not go below what has to stay
//! free, and where a kubelet lives, not below where it begins to evict.

mod kubelet;

use std::{
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use self::kubelet::Eviction;
use crate::{
    config::DiskFloor,
    containerd::Engine,
    error::{Error, Result},
    kind::Kind,
    pull::{Need, Room},
};

/// The disks of an engine, and what has to stay free on them.
#[derive(Debug, Clone)]
pub struct Space {
    /// Of the content store, where blobs go.
    content: Option<PathBuf>,
    /// Of the snapshotter, where layers are unpacked.
    snapshots: Option<PathBuf>,
    floor: DiskFloor,
    /// The kubelet's thresholds, and its own directory.
    kubelet: Option<(Eviction, PathBuf)>,
}

/// What a file system has (bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Disk {
    device: u64,
    free: u64,
    size: u64,
}

impl Disk {
    /// `None` where the path cannot be seen from here.
    fn of(path: &Path) -> Option<Self> {
        let device = std::fs::metadata(path).ok()?.dev();
        let stat = nix::sys::statvfs::statvfs(path).ok()?;
        let block = wide(stat.fragment_size());
        Some(Self {
            device,
            free: wide(stat.blocks_available()).saturating_mul(block),
            size: wide(stat.blocks()).saturating_mul(block),
        })
    }
}

/// Counts of the system are 32 or 64 bits wide, by target.
fn wide(count: impl Into<u64>) -> u64 {
    count.into()
}

/// What has to stay free, and who says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Floor {
    bytes: u64,
    why: &'static str,
}

impl Space {
    /// For pulls into `engine` with `snapshotter`.
    pub fn of(engine: &Engine, snapshotter: &str, floor: DiskFloor) -> Result<Self> {
        let snapshotter = engine.snapshotter(Some(snapshotter))?;
        let content = engine.content_root().map(Path::to_owned);
        let snapshots = snapshotter.root.clone();
        Ok(Self::at(content, snapshots, floor, Path::new("/")))
    }

    /// `root` is where a kubelet is looked for.
    fn at(
        content: Option<PathBuf>,
        snapshots: Option<PathBuf>,
        floor: DiskFloor,
        root: &Path,
    ) -> Self {
        Self {
            content,
            snapshots,
            floor,
            kubelet: Eviction::read(root).map(|eviction| (eviction, root.join(kubelet::NODEFS))),
        }
    }

    /// The highest of the floors of one disk.
    fn floor(&self, disk: Disk) -> Floor {
        let mut floor = Floor {
            bytes: self.floor.of(disk.size),
            why: "`[limits] disk_floor`",
        };
        let Some((eviction, nodefs)) = &self.kubelet else {
            return floor;
        };
        let shared = Disk::of(nodefs).is_some_and(|nodefs| nodefs.device == disk.device);
        for (threshold, counts, why) in [
            (eviction.imagefs, true, "kubelet's `imagefs.available`"),
            (eviction.nodefs, shared, "kubelet's `nodefs.available`"),
        ] {
            let bytes = threshold.map_or(0, |threshold| threshold.of(disk.size));
            if counts && bytes > floor.bytes {
                floor = Floor { bytes, why };
            }
        }
        floor
    }

    /// What goes where: one row for each disk, with the first path on it.
    fn shares(&self, need: Need) -> Vec<(&Path, Disk, Need)> {
        let fetch = Need { unpack: 0, ..need };
        let unpack = Need { fetch: 0, ..need };
        let mut shares: Vec<(&Path, Disk, Need)> = Vec::new();
        for (path, part) in [(&self.content, fetch), (&self.snapshots, unpack)] {
            let Some(path) = path.as_deref() else {
                continue;
            };
            // Another mount namespace, perhaps: containerd will say when it is full.
            let Some(disk) = Disk::of(path) else {
                tracing::debug!(path = %path.display(), "the free space cannot be seen from here");
                continue;
            };
            match shares
                .iter_mut()
                .find(|(_, known, _)| known.device == disk.device)
            {
                Some((_, _, sum)) => {
                    sum.fetch = sum.fetch.saturating_add(part.fetch);
                    sum.unpack = sum.unpack.saturating_add(part.unpack);
                }
                None => shares.push((path, disk, part)),
            }
        }
        shares
    }
}

impl Room for Space {
    fn ask(&self, need: Need) -> Result<()> {
        for (path, disk, part) in self.shares(need) {
            check(path, disk, part, self.floor(disk))?;
        }
        Ok(())
    }
}

fn check(path: &Path, disk: Disk, need: Need, floor: Floor) -> Result<()> {
    let wanted = u128::from(need.fetch) + u128::from(need.unpack);
    // What takes nothing may go on where nothing is left.
    if wanted == 0 || u128::from(disk.free) >= wanted + u128::from(floor.bytes) {
        return Ok(());
    }
    Err(Error::new(
        Kind::NoSpace,
        format_args!("there is no room for it at `{}`", path.display()),
    )
    .because(format_args!(
        "{} are free; {} are to be fetched and about {} to be unpacked",
        mebibytes(disk.free),
        mebibytes(need.fetch),
        mebibytes(need.unpack)
    ))
    .because(format_args!(
        "{} of {} have to stay free, by {}",
        mebibytes(floor.bytes),
        mebibytes(disk.size),
        floor.why
    ))
    .hint("free some space there (`edgepull prune` lets go of images that are no longer desired), or lower `[limits] disk_floor` if that is what stands in the way"))
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn disk(free: u64) -> Disk {
        Disk {
            device: 1,
            free,
            size: 100 * GIB,
        }
    }

    fn space(floor: &str, root: &Path) -> Space {
        let here = Some(root.to_owned());
        Space::at(here.clone(), here, floor.parse().expect("a floor"), root)
    }

    fn kubelet(text: &str) -> tempfile::TempDir {
        let root = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(root.path().join(kubelet::NODEFS)).expect("a folder");
        let file = root.path().join(kubelet::NODEFS).join("config.yaml");
        std::fs::write(file, text).expect("a file");
        root
    }

    #[test]
    fn what_stays_free_decides() {
        let floor = Floor {
            bytes: 10 * GIB,
            why: "the test",
        };
        let need = Need {
            fetch: GIB,
            unpack: 3 * GIB,
        };
        let at = Path::new("/var/lib/containerd");
        assert!(check(at, disk(14 * GIB), need, floor).is_ok());
        let error = check(at, disk(14 * GIB - 1), need, floor).expect_err("too little");
        assert_eq!(error.kind(), Kind::NoSpace);
        let text = format!(
            "{} {:?} {:?}",
            error.message(),
            error.causes(),
            error.hint_text()
        );
        for told in [
            "/var/lib/containerd",
            "14336 MiB",
            "1024 MiB",
            "3072 MiB",
            "10240 MiB",
            "the test",
            "disk_floor",
        ] {
            assert!(text.contains(told), "{told}: {text}");
        }
        assert!(
            check(at, disk(0), Need::default(), floor).is_ok(),
            "nothing is taken"
        );
        let all = Need {
            fetch: u64::MAX,
            unpack: u64::MAX,
        };
        assert!(check(at, disk(u64::MAX), all, floor).is_err());
    }

    #[test]
    fn the_highest_floor_counts() {
        let nobody = tempfile::tempdir().expect("a folder");
        let usual = kubelet("");
        let high = kubelet("evictionHard:\n  imagefs.available: 1%\n  nodefs.available: 30%\n");
        let device = Disk::of(usual.path()).expect("a disk").device;
        for (root, floor, device, percent, why) in [
            (&nobody, "10%", device, 10, "disk_floor"),
            (&usual, "10%", device, 15, "imagefs"),
            (&usual, "20%", device, 20, "disk_floor"),
            (&high, "10%", device, 30, "nodefs"),
            // The images have a disk of their own.
            (&high, "10%", device + 1, 10, "disk_floor"),
        ] {
            let disk = Disk {
                device,
                ..disk(GIB)
            };
            let found = space(floor, root.path()).floor(disk);
            assert_eq!(found.bytes / GIB, percent, "{floor} {why}");
            assert!(found.why.contains(why), "{found:?}");
        }
    }

    #[test]
    fn one_disk_is_asked_for_both_and_what_is_not_seen_for_nothing() {
        let root = tempfile::tempdir().expect("a folder");
        let need = Need {
            fetch: 1,
            unpack: 2,
        };
        let both = space("10%", root.path());
        let shares = both.shares(need);
        assert_eq!(shares.len(), 1);
        assert_eq!(shares[0].2, need);
        let unseen = Space {
            content: Some(root.path().join("nothing")),
            snapshots: None,
            ..both
        };
        assert!(unseen.shares(need).is_empty());
        let all = Need {
            fetch: u64::MAX,
            unpack: 0,
        };
        assert!(unseen.ask(all).is_ok());
        assert_eq!(
            space("1%", root.path())
                .ask(all)
                .expect_err("too much")
                .kind(),
            Kind::NoSpace
        );
    }

    proptest! {
        #[test]
        fn a_granted_need_leaves_the_floor(
            free in 0..u64::MAX, bytes in 0..u64::MAX, fetch in 0..u64::MAX, unpack in 0..u64::MAX,
        ) {
            let floor = Floor { bytes, why: "x" };
            let need = Need { fetch, unpack };
            if check(Path::new("/"), disk(free), need, floor).is_ok() && fetch > 0 {
                let left = u128::from(free) - u128::from(fetch) - u128::from(unpack);
                prop_assert!(left >= u128::from(bytes));
            }
        }
    }
}
