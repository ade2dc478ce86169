//! The proof of an image that is not unpacked: its layers are read as streams, once for the names
//! in them and once more for each file on the way. Nothing is written anywhere.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    ops::Bound,
};

use edgepull_platform::{
    Host,
    executable::{Head, Needs},
    launch::{FileNode, LONGEST, MOST_LINKS, Node, Tree, Unseen, components},
};
use futures_util::StreamExt;
use tokio::sync::mpsc;

use super::{
    judge::{Proof, prove},
    launch::Launch,
};
use crate::{
    error::{Error, Result},
    kind::Kind,
    layout::{Chunks, EntryKind, LayerEntries, Piece, inflated},
    oci::{Descriptor, Digest, Verifier},
    source::Source,
};

/// Chunks on their way from the source to whoever reads the layer.
const AHEAD: usize = 2;
/// The names of all layers together (bytes): more are not held.
const MOST_NAMES: usize = 128 << 20;
/// An entry of a map, about (bytes).
const ENTRY: usize = 200;
/// Names that are gone through because layers hide them: a layer may say so for the same ones
/// again and again.
const MOST_HIDDEN: usize = 1 << 20;
/// What is held of one file; what stands behind it cannot be had (bytes).
const MOST_CONTENT: usize = 32 << 20;
/// Files on the way: interpreters of interpreters, loaders, twice.
const MOST_FILES: usize = 32;
const EXECUTABLE: u32 = 0o111;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Judges an image by its layers in `source`, the lowest first. Media types are not asked: what
/// the bytes say decides, as where layers are unpacked.
///
/// # Errors
///
/// Where a layer cannot be read, or is not what its digest says.
pub async fn of_layers(
    source: &dyn Source,
    layers: &[Descriptor],
    launch: &Launch,
    host: &Host,
) -> Result<Proof> {
    let digests: Vec<Digest> = layers.iter().map(|layer| layer.digest.clone()).collect();
    let mut names = Names::default();
    for (number, layer) in layers.iter().enumerate() {
        names = read(source, layer, move |tar| names.add(number, tar)).await?;
        if names.is_too_much() {
            return Ok(Proof::unknown(
                launch.words(),
                "the image has too many files to be looked at without unpacking it",
            ));
        }
    }
    let mut tree = Archive {
        names,
        known: BTreeMap::new(),
        wanted: None,
    };
    for _ in 0..MOST_FILES {
        let proof = prove(launch, &mut tree, &digests, host);
        let Some((number, path)) = tree.wanted.take() else {
            return Ok(proof);
        };
        let Some(layer) = layers.get(number) else {
            break;
        };
        let asked = path.clone();
        let needs = read(source, layer, move |tar| content(&asked, tar)).await?;
        tree.known.insert((number, path), needs);
    }
    Ok(Proof::unknown(
        launch.words(),
        "more files lead to what is started than are looked at",
    ))
}

/// Streams a layer through `work`, and compares it with its digest.
async fn read<T: Send + 'static>(
    source: &dyn Source,
    layer: &Descriptor,
    work: impl FnOnce(Box<dyn Read>) -> Result<T> + Send + 'static,
) -> Result<T> {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let unreadable = |error: &std::io::Error| {
        Error::new(Kind::InvalidContent, "the layer cannot be read").caused_by(error)
    };
    let task = tokio::task::spawn_blocking(move || {
        let tar = inflated(Chunks::new(receiver)).map_err(|error| unreadable(&error))?;
        work(tar)
    });
    let mut verifier = Verifier::new(layer);
    let mut stream = source.blob(layer, 0).await?;
    let mut sender = Some(sender);
    while let Some(chunk) = stream.next().await {
        let chunk = chunk?;
        verifier.update(&chunk)?;
        // Whoever reads the files may have what it looks for; the hash wants all of it.
        if let Some(open) = &sender
            && open.send(chunk).await.is_err()
        {
            sender = None;
        }
    }
    drop(sender);
    let done = task
        .await
        .map_err(|_| Error::new(Kind::Internal, "the thread that reads a layer ended early"))?;
    // What a wrong blob says means nothing, not even that it cannot be read.
    verifier.finish()?;
    done.map_err(|error| error.during(format_args!("cannot read layer {}", layer.digest)))
}

/// A name of an image's root file system.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Name {
    node: Node,
    /// The entry of its layer that has the content, where that has another name: a hard link.
    origin: Option<Vec<u8>>,
}

impl Name {
    /// What it takes under `path`, about, with its place among the layer's own (bytes).
    fn weight(&self, path: &[u8]) -> usize {
        let link = match &self.node {
            Node::Link(target) => target.len(),
            _ => 0,
        };
        let origin = self.origin.as_ref().map_or(0, Vec::len);
        let parts = [path.len(), path.len(), link, origin, ENTRY];
        parts.into_iter().fold(0, usize::saturating_add)
    }
}

impl From<Node> for Name {
    fn from(node: Node) -> Self {
        Self { node, origin: None }
    }
}

/// The names of layers over each other.
#[derive(Debug, Default)]
struct Names {
    all: BTreeMap<Vec<u8>, Name>,
    bytes: usize,
    /// Names that were looked at because something hides what is below.
    hidden: usize,
}

impl Names {
    /// More than an image of people has.
    fn is_too_much(&self) -> bool {
        self.bytes > MOST_NAMES || self.hidden > MOST_HIDDEN
    }

    fn add(mut self, layer: usize, tar: impl Read) -> Result<Self> {
        let mut entries = LayerEntries::new(tar);
        // What this layer brings stays, whatever it says of what is below.
        let mut own = BTreeSet::new();
        while let Some(entry) = entries.next_entry()? {
            if self.is_too_much() {
                break;
            }
            let (parent, name) = match entry.path.iter().rposition(|byte| *byte == b'/') {
                Some(at) => (
                    entry.path.get(..at).unwrap_or_default(),
                    entry.path.get(at.saturating_add(1)..).unwrap_or_default(),
                ),
                None => (&b""[..], entry.path.as_slice()),
            };
            let name = name.to_vec();
            // Below a loop nothing can be unpacked.
            let Some(parent) = self.real(parent, &mut own) else {
                continue;
            };
            if name == OPAQUE {
                self.remove_below(&parent, &own);
                continue;
            }
            if let Some(hidden) = name.strip_prefix(WHITEOUT) {
                let hidden = joined(&parent, hidden);
                if !own.contains(&hidden) {
                    self.all.remove(&hidden);
                }
                self.remove_below(&hidden, &own);
                continue;
            }
            if entry.path.is_empty() {
                continue;
            }
            let path = joined(&parent, &name);
            let mut made: Name = match entry.kind {
                EntryKind::Directory => Node::Directory.into(),
                EntryKind::File(_) => Node::File(FileNode {
                    // A mode that cannot be read is no proof.
                    executable: entry.mode.is_none_or(|mode| mode & EXECUTABLE != 0),
                    layer: Some(layer),
                })
                .into(),
                // No kernel follows a longer one.
                EntryKind::Symlink if entry.target.len() <= LONGEST => {
                    Node::Link(entry.target).into()
                }
                EntryKind::HardLink => {
                    let target = clean(&entry.target);
                    let (above, name) = match target.iter().rposition(|byte| *byte == b'/') {
                        Some(at) => target.split_at(at),
                        None => (&b""[..], target.as_slice()),
                    };
                    let above = self.real(above, &mut own).unwrap_or_default();
                    self.same(&joined(&above, name.strip_prefix(b"/").unwrap_or(name)))
                }
                EntryKind::Symlink | EntryKind::Special => Node::Other.into(),
            };
            if made.node != Node::Directory {
                self.remove_below(&path, &BTreeSet::new());
            }
            // Its content is found in the layer by the name that it has there.
            if path != entry.path && made.origin.is_none() {
                made.origin = Some(entry.path);
            }
            self.bytes = self.bytes.saturating_add(made.weight(&path));
            own.insert(path.clone());
            self.all.insert(path, made);
        }
        Ok(self)
    }

    /// Where the directory `parent` of an entry is: links of the same layer are followed inside the
    /// root, as unpacking does; over whatever else stands in the way, of this layer or of those
    /// below, comes a directory. `None`: links without end.
    fn real(&mut self, parent: &[u8], own: &mut BTreeSet<Vec<u8>>) -> Option<Vec<u8>> {
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut ahead = components(parent);
        let mut links = 0;
        while let Some(name) = ahead.pop_front() {
            match name.as_slice() {
                b"." => continue,
                b".." => {
                    done.pop();
                    continue;
                }
                _ => done.push(name),
            }
            let here = done.join(&b'/');
            match self.all.get(&here).map(|name| &name.node) {
                None | Some(Node::Directory) => {}
                Some(Node::Link(target)) if own.contains(&here) => {
                    links += 1;
                    if links > MOST_LINKS || here.len() > LONGEST {
                        return None;
                    }
                    if target.starts_with(b"/") {
                        done.clear();
                    } else {
                        done.pop();
                    }
                    let mut next = components(target);
                    next.append(&mut ahead);
                    ahead = next;
                }
                Some(_) => {
                    let made = Name::from(Node::Directory);
                    self.bytes = self.bytes.saturating_add(made.weight(&here));
                    own.insert(here.clone());
                    self.all.insert(here, made);
                }
            }
        }
        Some(done.join(&b'/'))
    }

    /// Removes what is below a directory, but for what is in `kept`.
    fn remove_below(&mut self, directory: &[u8], kept: &BTreeSet<Vec<u8>>) {
        let mut from = directory.to_vec();
        if !from.is_empty() {
            from.push(b'/');
        }
        let range = (Bound::Included(from.clone()), Bound::Unbounded);
        let below = self.all.range(range);
        let mut hidden = 0_usize;
        let gone: Vec<Vec<u8>> = below
            .take_while(|(path, _)| path.starts_with(&from))
            .inspect(|_| hidden = hidden.saturating_add(1))
            .filter(|(path, _)| !kept.contains(*path))
            .map(|(path, _)| path.clone())
            .collect();
        self.hidden = self.hidden.saturating_add(hidden);
        for path in gone {
            self.all.remove(&path);
        }
    }

    /// Is something below it? Directories need no entry of their own.
    fn has_below(&self, path: &[u8]) -> bool {
        let from = [path, b"/"].concat();
        let range = (Bound::Included(from.clone()), Bound::Unbounded);
        self.all
            .range(range)
            .next()
            .is_some_and(|(path, _)| path.starts_with(&from))
    }

    /// What a link to the file at `path` is, as that stands now: layers above may put another
    /// in its place, and the link keeps the old one.
    fn same(&self, path: &[u8]) -> Name {
        match self.all.get(path) {
            Some(name) => Name {
                node: name.node.clone(),
                origin: name.origin.clone().or_else(|| Some(path.to_vec())),
            },
            None => Node::Other.into(),
        }
    }

    fn node(&self, path: &[u8]) -> Node {
        match self.all.get(path) {
            Some(name) => name.node.clone(),
            None if self.has_below(path) => Node::Directory,
            None => Node::Missing,
        }
    }

    /// The layer that has the content of a file, and under which name.
    fn origin(&self, path: &[u8]) -> Option<(usize, Vec<u8>)> {
        let name = self.all.get(path)?;
        let Node::File(FileNode { layer, .. }) = name.node else {
            return None;
        };
        let origin = name.origin.clone().unwrap_or_else(|| path.to_vec());
        Some((layer?, origin))
    }
}

fn joined(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        name.to_vec()
    } else {
        [parent, b"/", name].concat()
    }
}

/// The path of a hard link's target as entries have theirs.
fn clean(path: &[u8]) -> Vec<u8> {
    let names = path.split(|byte| *byte == b'/');
    let names: Vec<&[u8]> = names.filter(|name| !matches!(*name, b"" | b".")).collect();
    names.join(&b'/')
}

/// What the file that the layer has under `path` needs; the last entry of that name counts.
fn content(path: &[u8], tar: impl Read) -> Result<Needs> {
    let mut entries = LayerEntries::new(tar);
    let mut needs = Needs::read(&Head {
        bytes: &[],
        size: None,
    });
    while let Some(entry) = entries.next_entry()? {
        let EntryKind::File(size) = entry.kind else {
            continue;
        };
        if entry.path != path {
            continue;
        }
        let mut bytes = Vec::new();
        while bytes.len() < MOST_CONTENT {
            let left = MOST_CONTENT.saturating_sub(bytes.len());
            match entries.next_piece()? {
                Some(Piece::Data(data)) => bytes.extend_from_slice(data),
                Some(Piece::Hole(zeros)) => {
                    let zeros = usize::try_from(zeros).map_or(left, |zeros| zeros.min(left));
                    bytes.resize(bytes.len().saturating_add(zeros), 0);
                }
                None => break,
            }
        }
        needs = Needs::read(&Head {
            bytes: &bytes,
            size: Some(size),
        });
    }
    Ok(needs)
}

/// An image's files, of which only those that were asked for have been read.
#[derive(Debug)]
struct Archive {
    names: Names,
    /// By layer and name in it.
    known: BTreeMap<(usize, Vec<u8>), Needs>,
    /// The first file that was asked for and is not known.
    wanted: Option<(usize, Vec<u8>)>,
}

impl Tree for Archive {
    fn node(&mut self, path: &[u8]) -> Result<Node, Unseen> {
        Ok(self.names.node(path))
    }

    fn needs(&mut self, path: &[u8]) -> Result<Needs, Unseen> {
        let origin = self.names.origin(path);
        if let Some(needs) = origin.as_ref().and_then(|origin| self.known.get(origin)) {
            return Ok(needs.clone());
        }
        if self.wanted.is_none() {
            self.wanted = origin;
        }
        Err(Unseen("the file was not read yet".to_owned()))
    }
}

#[cfg(test)]
mod tests;
