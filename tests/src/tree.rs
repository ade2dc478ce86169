//! What is in a directory, to the attribute: for comparing what two programs unpacked.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::containerd::Containerd;
use crate::image::digest_of;
use crate::process;

/// 2020: everything younger was not in a layer, but set by the clock while unpacking.
const YOUNG: u64 = 1_577_836_800;

/// One entry, printed: type, mode, owner, time, device, link, attributes, content.
pub type Tree = BTreeMap<PathBuf, String>;

/// Reads a directory by way of GNU tar, which sees all there is to see.
#[track_caller]
pub fn of(dir: &Path) -> Tree {
    let output = process::run(
        Command::new("tar")
            .args(["--create", "--sort=name", "--numeric-owner", "--format=pax"])
            .args(["--xattrs", "--xattrs-include=*", "--acls", "--directory"])
            .arg(dir)
            .arg("."),
    )
    .ok();
    let mut tree = Tree::new();
    let mut archive = tar::Archive::new(output.stdout.as_slice());
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let mut attributes: Vec<String> = Vec::new();
        for extension in entry.pax_extensions().unwrap().into_iter().flatten() {
            let extension = extension.unwrap();
            let key = extension.key().unwrap();
            if key.starts_with("SCHILY.") {
                let value = extension.value_bytes();
                attributes.push(format!("{key}={}", String::from_utf8_lossy(value)));
            }
        }
        attributes.sort();
        let link = entry.link_name().unwrap().map(std::borrow::Cow::into_owned);
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        let header = entry.header();
        let mtime = header.mtime().unwrap();
        let device = (
            header.device_major().unwrap(),
            header.device_minor().unwrap(),
        );
        let time = if mtime > YOUNG {
            "now".to_owned()
        } else {
            mtime.to_string()
        };
        let printed = format!(
            "{:?} {:o} {}:{} mtime={time} device={device:?} link={link:?} {attributes:?} {}",
            header.entry_type(),
            header.mode().unwrap(),
            header.uid().unwrap(),
            header.gid().unwrap(),
            digest_of(&content),
        );
        tree.insert(path, printed);
    }
    tree
}

/// The directories of an image's layers on overlayfs, topmost first, by a snapshot upon the
/// top one.
#[track_caller]
pub fn layer_dirs(daemon: &Containerd, namespace: &str, chain: &[String]) -> Vec<PathBuf> {
    let top = chain.last().expect("an image has layers");
    let key = format!("edgepull-lab-look-{}", &top[7..19]);
    // Not a view: of these two only `prepare` is held against garbage collection by ctr.
    daemon
        .ctr(namespace, &["snapshots", "prepare", &key, top])
        .ok();
    let mounts = daemon
        .ctr(namespace, &["snapshots", "mounts", "/lab", &key])
        .ok();
    daemon.ctr(namespace, &["snapshots", "rm", &key]).ok();
    let text = mounts.text();
    let lower = text
        .split(['=', ',', ' ', '\n'])
        .skip_while(|word| *word != "lowerdir")
        .nth(1);
    if let Some(dirs) = lower {
        return dirs.split(':').map(PathBuf::from).collect();
    }
    // One layer: a bind mount of its directory.
    let dir = text
        .split_whitespace()
        .find(|word| word.starts_with('/') && *word != "/lab");
    vec![PathBuf::from(
        dir.unwrap_or_else(|| panic!("no directory in {text}")),
    )]
}

/// Every layer's tree, bottom first.
#[track_caller]
pub fn layers(daemon: &Containerd, namespace: &str, chain: &[String]) -> Vec<Tree> {
    let mut trees: Vec<Tree> = layer_dirs(daemon, namespace, chain)
        .iter()
        .map(|dir| of(dir))
        .collect();
    trees.reverse();
    assert_eq!(trees.len(), chain.len());
    trees
}

/// Fails the test with the lines that differ.
#[track_caller]
pub fn assert_same(what: &str, ours: &Tree, theirs: &Tree) {
    let mut differences = Vec::new();
    for path in ours
        .keys()
        .chain(theirs.keys().filter(|path| !ours.contains_key(*path)))
    {
        let (our, their) = (ours.get(path), theirs.get(path));
        if our != their {
            differences.push(format!(
                "{}\n  ours:   {our:?}\n  theirs: {their:?}",
                path.display()
            ));
        }
    }
    assert!(
        differences.is_empty(),
        "{what}:\n{}",
        differences.join("\n")
    );
}
