//! The record beside the files of a delivered artifact: what they are, and whether whoever is
//! to be told of them was told.

use std::io::{Read as _, Write as _};

use serde::{Deserialize, Serialize};

use super::super::dir::Dir;
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::{Descriptor, Digest, Hasher},
};

/// The record's name.
pub const RECORD: &str = ".edgepull.json";
const NEW: &str = ".edgepull-record";
const SCHEMA: &str = "edgepull.artifact/1";
/// A record of thousands of files is smaller.
const MAX_RECORD: u64 = 4 << 20;

/// Which artifact it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// `registry.example/fita/service`; a tag may move.
    pub repository: String,
    /// The platforms that were asked for.
    pub wanted: Vec<String>,
    /// What the reference pointed at.
    pub target_digest: Digest,
    pub manifest_digest: Digest,
    /// What the artifact says it is for.
    pub platform: Option<String>,
}

/// One delivered file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub name: String,
    pub digest: Digest,
    pub size: u64,
}

/// What a directory holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivery {
    schema: String,
    #[serde(flatten)]
    pub identity: Identity,
    pub files: Vec<File>,
    /// Files of an earlier version that are to be removed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) leftover: Vec<File>,
    /// The manifest whose delivery somebody was told of.
    #[serde(default)]
    pub notified: Option<Digest>,
}

impl Identity {
    pub(super) fn is_same_artifact(&self, other: &Self) -> bool {
        (&self.repository, &self.wanted) == (&other.repository, &other.wanted)
    }
}

impl Delivery {
    /// `changed`: files were written, so that whoever was told has to be told again.
    pub(super) fn new(
        identity: &Identity,
        files: &[(String, &Descriptor)],
        former: Option<&Self>,
        changed: bool,
    ) -> Self {
        let files: Vec<File> = files
            .iter()
            .map(|(name, descriptor)| File {
                name: name.clone(),
                digest: descriptor.digest.clone(),
                size: descriptor.size,
            })
            .collect();
        let before = former
            .into_iter()
            .flat_map(|former| former.files.iter().chain(&former.leftover));
        let leftover = before
            .filter(|old| files.iter().all(|new| new.name != old.name))
            .cloned()
            .collect();
        Self {
            schema: SCHEMA.to_owned(),
            identity: identity.clone(),
            files,
            leftover,
            notified: former
                .filter(|_| !changed)
                .and_then(|former| former.notified.clone()),
        }
    }

    /// Whether somebody was told of just this.
    pub fn is_told(&self) -> bool {
        self.notified.as_ref() == Some(&self.identity.manifest_digest)
    }

    /// Whether it is what `repository` has for `wanted`, as far as it was asked for.
    pub fn is_of(&self, repository: &str, wanted: &[String]) -> bool {
        self.identity.repository == repository && self.identity.wanted == wanted
    }

    pub(super) fn stands(root: &Dir, delivery: &Self) -> Result<bool> {
        for file in &delivery.files {
            if !is_plain(&file.name) || size_of(root, &file.name)? != Some(file.size) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    pub(super) fn is_sound(root: &Dir, delivery: &Self) -> Result<bool> {
        for file in &delivery.files {
            if !is_plain(&file.name) || !hashes_to(root, &file.name, &file.digest, file.size)? {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// Names of the record are names in the directory, whoever wrote it.
fn is_plain(name: &str) -> bool {
    let is_plain = |c: char| c != '/' && !c.is_control();
    !name.is_empty() && name != "." && name != ".." && name.chars().all(is_plain)
}

/// Something else of that name (a link, a directory) is no file of ours.
fn size_of(root: &Dir, name: &str) -> Result<Option<u64>> {
    match root.file(name) {
        Ok(found) => Ok(found.map(|(_, size)| size)),
        Err(error) if error.kind() == Kind::InvalidContent => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether `name` is a file of just these bytes.
pub(super) fn hashes_to(root: &Dir, name: &str, digest: &Digest, size: u64) -> Result<bool> {
    if !is_plain(name) {
        return Ok(false);
    }
    let mut file = match root.file(name) {
        Ok(Some((file, found))) if found == size => file,
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == Kind::InvalidContent => return Ok(false),
        Err(error) => return Err(error),
    };
    let mut hasher = Hasher::new(digest.algorithm());
    let mut buffer = vec![0; 64 << 10];
    let mut left = size;
    loop {
        let read = file
            .read(&mut buffer)
            .map_err(|error| Error::io("read", &root.path().join(name), &error))?;
        let (Some(bytes), Some(rest)) = (
            buffer.get(..read),
            left.checked_sub(u64::try_from(read).unwrap_or(u64::MAX)),
        ) else {
            return Ok(false);
        };
        if read == 0 {
            return Ok(left == 0 && hasher.finish() == *digest);
        }
        left = rest;
        hasher.update(bytes);
    }
}

/// The record; one that cannot be understood is as good as none, and is replaced.
pub(super) fn read(root: &Dir) -> Result<Option<Delivery>> {
    let bytes = match root.read_small(RECORD, MAX_RECORD) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(None),
        Err(error) if error.kind() == Kind::InvalidContent => return Ok(None),
        Err(error) => return Err(error),
    };
    Ok(serde_json::from_slice(&bytes)
        .ok()
        .filter(|delivery: &Delivery| delivery.schema == SCHEMA))
}

pub(super) fn write(root: &Dir, delivery: &Delivery) -> Result<()> {
    let mut text = serde_json::to_vec_pretty(delivery).map_err(|error| {
        Error::new(Kind::Internal, "cannot write down what was delivered").caused_by(&error)
    })?;
    text.push(b'\n');
    let out = root.temporary(NEW)?;
    out.file()
        .and_then(|mut file| file.write_all(&text))
        .map_err(|error| Error::io("write", &out.path(), &error))?;
    out.readable()?;
    out.sync()?;
    out.publish(RECORD)
}
