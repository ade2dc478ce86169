//! Small file systems.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use crate::tools::{Lab, RunDir};

/// A tmpfs of a given size: full as soon as the test wants.
#[derive(Debug)]
pub struct SmallDisk {
    path: PathBuf,
    _dir: RunDir,
}

impl SmallDisk {
    /// Mounts one.
    #[track_caller]
    pub fn new(bytes: u64) -> Self {
        let dir = Lab::get().run_dir("disk");
        let path = dir.path().join("small");
        fs::create_dir(&path).unwrap();
        mount(
            Some("tmpfs"),
            &path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(format!("size={bytes}").as_str()),
        )
        .unwrap_or_else(|e| panic!("cannot mount a tmpfs: {e}"));
        Self { path, _dir: dir }
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes that are taken.
    #[track_caller]
    pub fn used(&self) -> u64 {
        let all = nix::sys::statvfs::statvfs(&self.path)
            .unwrap_or_else(|e| panic!("{}: {e}", self.path.display()));
        (all.blocks() - all.blocks_free()) * all.fragment_size()
    }

    /// Makes it larger or smaller.
    #[track_caller]
    pub fn resize(&self, bytes: u64) {
        mount(
            Some("tmpfs"),
            &self.path,
            Some("tmpfs"),
            MsFlags::MS_REMOUNT,
            Some(format!("size={bytes}").as_str()),
        )
        .unwrap_or_else(|e| panic!("cannot resize a tmpfs: {e}"));
    }
}
