//! A root file system in memory, for tests here and of the crates above.

use std::collections::BTreeMap;

use super::{FileNode, Node, Tree, Unseen};
use crate::executable::Needs;

/// A file system of a few entries.
#[derive(Debug, Default)]
pub struct Files(BTreeMap<Vec<u8>, (Node, Vec<u8>)>);

impl Files {
    fn put(mut self, path: &str, node: Node, bytes: &[u8]) -> Self {
        let mut parent = path;
        while let Some((above, _)) = parent.rsplit_once('/') {
            let directory = (Node::Directory, Vec::new());
            self.0.entry(above.as_bytes().to_vec()).or_insert(directory);
            parent = above;
        }
        self.0
            .insert(path.as_bytes().to_vec(), (node, bytes.to_vec()));
        self
    }

    /// With a regular file, and the directories that it is in.
    pub fn file(self, path: &str, executable: bool, bytes: &[u8]) -> Self {
        let file = FileNode {
            executable,
            layer: Some(0),
        };
        self.put(path, Node::File(file), bytes)
    }

    /// With a symbolic link.
    pub fn link(self, path: &str, target: &str) -> Self {
        self.put(path, Node::Link(target.as_bytes().to_vec()), b"")
    }

    /// With something that is neither.
    pub fn other(self, path: &str) -> Self {
        self.put(path, Node::Other, b"")
    }
}

impl Tree for Files {
    fn node(&mut self, path: &[u8]) -> Result<Node, Unseen> {
        Ok(self
            .0
            .get(path)
            .map_or(Node::Missing, |(node, _)| node.clone()))
    }

    fn needs(&mut self, path: &[u8]) -> Result<Needs, Unseen> {
        match self.0.get(path) {
            Some((_, bytes)) => Ok(Needs::read(bytes)),
            None => Err(Unseen("no such file".to_owned())),
        }
    }
}
