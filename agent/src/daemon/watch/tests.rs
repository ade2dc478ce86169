//! Real files, real events: what counts as a change and what does not.

use std::{fs, os::unix::fs::symlink};

use super::*;

const SOON: Duration = Duration::from_secs(4);
const QUIET: Duration = Duration::from_millis(900);

struct Tree {
    dir: tempfile::TempDir,
}

impl Tree {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().expect("a directory"),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn watch(&self) -> Watch {
        let images = self.path("etc/edgepull/images.d");
        let config = self.path("etc/edgepull/config.toml");
        Watch::new(&[&images], &[&config])
    }

    fn make(&self) {
        fs::create_dir_all(self.path("etc/edgepull/images.d")).expect("made");
    }

    fn write(&self, name: &str) {
        fs::write(self.path(name), "x").expect("written");
    }
}

async fn hears(watch: &mut Watch) -> bool {
    tokio::time::timeout(SOON, watch.changed()).await.is_ok()
}

async fn is_quiet(watch: &mut Watch) -> bool {
    tokio::time::timeout(QUIET, watch.changed()).await.is_err()
}

#[tokio::test]
async fn files_are_noticed_however_they_are_written() {
    let tree = Tree::new();
    tree.make();
    let mut watch = tree.watch();
    assert!(is_quiet(&mut watch).await);
    tree.write("etc/edgepull/images.d/a.toml");
    assert!(hears(&mut watch).await, "a new file");
    // As editors do it.
    tree.write("etc/edgepull/config.toml~");
    assert!(is_quiet(&mut watch).await, "not a name that counts");
    fs::rename(
        tree.path("etc/edgepull/config.toml~"),
        tree.path("etc/edgepull/config.toml"),
    )
    .expect("renamed");
    assert!(hears(&mut watch).await, "renamed into place");
    fs::remove_file(tree.path("etc/edgepull/images.d/a.toml")).expect("removed");
    assert!(hears(&mut watch).await, "removed");
    tree.write("etc/edgepull/other.conf");
    assert!(is_quiet(&mut watch).await, "a neighbour");
}

#[tokio::test]
async fn many_changes_are_one() {
    let tree = Tree::new();
    tree.make();
    let mut watch = tree.watch();
    for number in 0..50 {
        tree.write(&format!("etc/edgepull/images.d/{number}.toml"));
    }
    assert!(hears(&mut watch).await);
    assert!(is_quiet(&mut watch).await);
}

#[tokio::test]
async fn a_change_is_not_lost_when_nobody_waits_for_its_end() {
    let tree = Tree::new();
    tree.make();
    let mut watch = tree.watch();
    tree.write("etc/edgepull/images.d/a.toml");
    let short = Duration::from_millis(100);
    assert!(tokio::time::timeout(short, watch.changed()).await.is_err());
    assert!(hears(&mut watch).await);
}

#[tokio::test]
async fn a_directory_that_comes_later_is_found() {
    let tree = Tree::new();
    fs::create_dir(tree.path("etc")).expect("made");
    let mut watch = tree.watch();
    tree.write("etc/passwd");
    assert!(is_quiet(&mut watch).await, "/etc is busy");
    fs::create_dir(tree.path("etc/edgepull")).expect("made");
    assert!(hears(&mut watch).await);
    tree.write("etc/edgepull/config.toml");
    assert!(hears(&mut watch).await);
    fs::create_dir(tree.path("etc/edgepull/images.d")).expect("made");
    assert!(hears(&mut watch).await);
    tree.write("etc/edgepull/images.d/a.txt");
    assert!(hears(&mut watch).await);
}

#[tokio::test]
async fn a_directory_that_is_replaced_is_watched_anew() {
    let tree = Tree::new();
    tree.make();
    let mut watch = tree.watch();
    let images = tree.path("etc/edgepull/images.d");
    fs::rename(&images, tree.path("etc/edgepull/old")).expect("moved");
    fs::create_dir(&images).expect("made");
    assert!(hears(&mut watch).await);
    tree.write("etc/edgepull/old/a.toml");
    assert!(
        is_quiet(&mut watch).await,
        "the old one is not watched any more"
    );
    tree.write("etc/edgepull/images.d/a.toml");
    assert!(hears(&mut watch).await);
    fs::remove_dir_all(tree.path("etc/edgepull")).expect("removed");
    assert!(hears(&mut watch).await);
    tree.make();
    assert!(hears(&mut watch).await);
    tree.write("etc/edgepull/images.d/b.toml");
    assert!(hears(&mut watch).await);
}

#[tokio::test]
async fn a_config_map_is_changed_by_its_link() {
    let tree = Tree::new();
    tree.make();
    let at = |name: &str| tree.path("etc/edgepull/images.d").join(name);
    let version = |name: &str| {
        fs::create_dir(at(name)).expect("made");
        fs::write(at(name).join("a.toml"), name).expect("written");
    };
    version("..1");
    symlink("..1", at("..data")).expect("linked");
    symlink("..data/a.toml", at("a.toml")).expect("linked");
    let mut watch = tree.watch();
    assert!(is_quiet(&mut watch).await);
    version("..2");
    symlink("..2", at("..data_tmp")).expect("linked");
    fs::rename(at("..data_tmp"), at("..data")).expect("swapped");
    fs::remove_dir_all(at("..1")).expect("removed");
    assert!(hears(&mut watch).await);
    assert_eq!(fs::read_to_string(at("a.toml")).expect("there"), "..2");
}

#[tokio::test]
async fn without_a_kernel_that_helps_nothing_is_heard_and_nothing_fails() {
    let mut watch = Watch {
        inotify: None,
        targets: Vec::new(),
        places: Vec::new(),
        pending: false,
    };
    watch.arm();
    assert!(is_quiet(&mut watch).await);
}
