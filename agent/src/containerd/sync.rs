//! Making what containerd wrote durable before an image is called ready. containerd
//! syncs its database on every commit, but not the files of a snapshot: after a power
//! cut a "valid" snapshot may be full of empty files, and nobody looks again.

use std::path::{Path, PathBuf};

use super::client::Engine;
use crate::{
    error::{Error, Result},
    kind::Kind,
};

impl Engine {
    /// Syncs the file systems of `snapshotter` and of the content store. Returns what
    /// could not be synced because it is not visible from here, for a warning.
    pub async fn sync_stores(&self, snapshotter: Option<&str>) -> Result<Vec<String>> {
        let mut roots: Vec<(String, Option<PathBuf>)> = Vec::new();
        if let Some(name) = snapshotter {
            let root = self
                .snapshotters()
                .iter()
                .find(|s| s.name == name)
                .and_then(|s| s.root.clone());
            roots.push((format!("snapshotter {name}"), root));
        }
        roots.push((
            "content store".to_owned(),
            self.content_root().map(Path::to_owned),
        ));
        let mut unseen = Vec::new();
        let mut visible: Vec<PathBuf> = Vec::new();
        for (what, root) in roots {
            match root {
                Some(root) if root.is_dir() => visible.push(root),
                Some(root) => unseen.push(format!(
                    "cannot sync the {what}: `{}` is not visible from here",
                    root.display()
                )),
                None => unseen.push(format!(
                    "cannot sync the {what}: containerd does not say where it is"
                )),
            }
        }
        // A sync can take a minute on a slow card; nothing else may wait for it.
        let synced = tokio::task::spawn_blocking(move || sync_all(&visible)).await;
        match synced {
            Ok(result) => result.map(|()| unseen),
            Err(_) => Err(Error::new(
                Kind::Internal,
                "the thread that syncs the disk ended early",
            )),
        }
    }
}

fn sync_all(roots: &[PathBuf]) -> Result<()> {
    use std::os::unix::fs::MetadataExt;

    let mut done: Vec<u64> = Vec::new();
    for root in roots {
        let fail = |error: &std::io::Error| {
            let failed = Error::io("sync the file system of", root, error);
            if failed.kind() == Kind::NoSpace {
                return failed;
            }
            failed
                .with_kind(Kind::StoreDamaged)
                .hint("the disk did not take what was written; look at the kernel's log")
        };
        let directory = std::fs::File::open(root).map_err(|error| fail(&error))?;
        let device = directory.metadata().map_err(|error| fail(&error))?.dev();
        if done.contains(&device) {
            continue;
        }
        done.push(device);
        nix::unistd::syncfs(&directory).map_err(|errno| fail(&errno.into()))?;
    }
    Ok(())
}
