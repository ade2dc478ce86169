//! A root file system in memory and small programs, for tests of the crates above.

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

/// `e_machine` of amd64.
pub const AMD64: u16 = 62;
/// Of arm64.
pub const ARM64: u16 = 183;
/// Of 32-bit Arm.
pub const ARM: u16 = 40;
/// Of 386.
pub const I386: u16 = 3;

/// A program for `machine` of one segment, with a loader or static (gABI: ELF header, program
/// headers).
pub fn program(machine: u16, loader: Option<&str>) -> Vec<u8> {
    let wide = matches!(machine, AMD64 | ARM64);
    let word = |value: u64| -> Vec<u8> {
        let bytes = value.to_le_bytes();
        bytes[..if wide { 8 } else { 4 }].to_vec()
    };
    let (header, entry): (u64, u64) = if wide { (64, 56) } else { (52, 32) };
    let count = 1 + u16::from(loader.is_some());
    let text = loader.map_or_else(Vec::new, |path| [path.as_bytes(), b"\0"].concat());
    let at = header + entry * u64::from(count);
    let size = at + text.len() as u64 + 16;
    let mut bytes = b"\x7fELF".to_vec();
    bytes.extend([if wide { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    bytes.extend(2_u16.to_le_bytes());
    bytes.extend(machine.to_le_bytes());
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(word(0x40_0000 + at + text.len() as u64));
    bytes.extend(word(header));
    bytes.extend(word(0));
    let flags: u32 = if machine == ARM { 0x0500_0000 } else { 0 };
    bytes.extend(flags.to_le_bytes());
    for half in [header, entry, u64::from(count), 0, 0, 0] {
        bytes.extend(&half.to_le_bytes()[..2]);
    }
    let mut segment = |kind: u32, offset: u64, length: u64| {
        let middle: Vec<u8> = [
            offset,
            0x40_0000 + offset,
            0x40_0000 + offset,
            length,
            length,
        ]
        .into_iter()
        .flat_map(word)
        .collect();
        bytes.extend(kind.to_le_bytes());
        if wide {
            bytes.extend(5_u32.to_le_bytes());
        }
        bytes.extend(middle);
        if !wide {
            bytes.extend(5_u32.to_le_bytes());
        }
        bytes.extend(word(0x1_0000));
    };
    if loader.is_some() {
        segment(3, at, text.len() as u64);
    }
    segment(1, 0, size);
    bytes.extend(text);
    bytes.resize(usize::try_from(size).unwrap_or_default(), 0x90);
    bytes
}
