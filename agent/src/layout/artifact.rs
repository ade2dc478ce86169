//! Delivering an artifact: its layers and its config as files in a directory, and beside them
//! a record of what was delivered.

mod record;

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

pub use self::record::{Delivery, Identity, RECORD};
use self::record::{hashes_to, read, write};
use super::{
    blocking,
    copy::pour,
    dir::{Dir, Temporary},
};
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::{Descriptor, Manifest},
    source::Source,
};

const TITLE: &str = "org.opencontainers.image.title";
/// The `{}` that stands for "nothing" (image-spec manifest.md).
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const CONFIG_FILE: &str = "config.json";
/// What file systems take.
const MAX_NAME: usize = 255;
/// Names that begin like this are ours: the record, and files that are not whole yet.
const OURS: &str = ".edgepull";

/// What a delivery came to.
#[derive(Debug, Clone)]
pub struct Delivered {
    /// The files in the manifest's order, the config last.
    pub files: Vec<PathBuf>,
    /// Bytes that were fetched, and written.
    pub fetched: u64,
    /// Bytes of files that were there already, with the right digest.
    pub reused: u64,
    /// The record as it is now.
    pub delivery: Delivery,
}

/// Writes every layer of `manifest` as a file in `dir` (made if need be), named by
/// the base name of its `org.opencontainers.image.title`, or by its digest's
/// digits where it has none; and the config, unless it is empty, by its own title,
/// else as `config.json`. A layer that has the config's name keeps it, and the
/// config gets its digits.
///
/// A file that is there and has the right digest is neither fetched nor written. All
/// others are fetched, verified and synced before the first one becomes visible; each
/// then gets its name by a rename, and [`RECORD`] names the whole set last. Then files
/// of the former record go that this artifact does not have, if they still are what was
/// delivered. A directory holds one artifact: another repository's, or another
/// platform's, is refused.
pub async fn deliver_artifact(
    dir: &Path,
    identity: &Identity,
    manifest: &Manifest,
    source: &dyn Source,
) -> Result<Delivered> {
    let files = plan(manifest)?;
    let path = dir.to_owned();
    let (root, lock) = blocking(move || {
        let root = Dir::create(&path)?;
        let lock = root.lock()?;
        Ok((root, lock))
    })
    .await?;
    let from = root.clone();
    let former = blocking(move || read(&from)).await?;
    if let Some(former) = &former
        && !former.identity.is_same_artifact(identity)
    {
        return Err(taken(dir, former));
    }
    let (mut fetched, mut reused) = (0_u64, 0_u64);
    let mut ready: Vec<(Temporary, String)> = Vec::new();
    for (number, (name, descriptor)) in files.iter().enumerate() {
        let (there, file, of) = (root.clone(), name.clone(), (*descriptor).clone());
        if blocking(move || hashes_to(&there, &file, &of.digest, of.size)).await? {
            reused = reused.saturating_add(descriptor.size);
            continue;
        }
        let root = root.clone();
        // Not made from the title: that may be as long as a name can be.
        let temporary = format!("{OURS}-{number}");
        let out = blocking(move || root.temporary(&temporary)).await?;
        let out = pour(out, descriptor, source, |_| {}).await?;
        let out = blocking(move || {
            // Whoever may enter the directory may read what is in it, whatever the umask.
            out.readable()?;
            out.sync()?;
            Ok(out)
        })
        .await?;
        fetched = fetched.saturating_add(descriptor.size);
        ready.push((out, name.clone()));
    }
    let delivery = Delivery::new(identity, &files, former.as_ref(), !ready.is_empty());
    let delivered = files.iter().map(|(name, _)| dir.join(name)).collect();
    let delivery = blocking(move || {
        for (out, name) in ready {
            out.publish(&name)?;
        }
        let delivery = settle(&root, delivery, former.as_ref())?;
        drop(lock);
        Ok(delivery)
    })
    .await?;
    Ok(Delivered {
        files: delivered,
        fetched,
        reused,
        delivery,
    })
}

/// Writes the record, then takes away what it says is of no use any more. A crash in
/// between leaves that to the next delivery.
fn settle(root: &Dir, mut delivery: Delivery, former: Option<&Delivery>) -> Result<Delivery> {
    if former != Some(&delivery) {
        write(root, &delivery)?;
    }
    if delivery.leftover.is_empty() {
        return Ok(delivery);
    }
    for file in std::mem::take(&mut delivery.leftover) {
        // One that somebody changed is theirs now.
        if hashes_to(root, &file.name, &file.digest, file.size)? {
            root.unlink(&file.name)?;
        }
    }
    root.sync()?;
    write(root, &delivery)?;
    Ok(delivery)
}

fn taken(dir: &Path, by: &Delivery) -> Error {
    Error::new(
        Kind::Usage,
        format_args!("`{}` holds another artifact", dir.display()),
    )
    .because(format_args!(
        "its {RECORD} says it is of {} for {}",
        by.identity.repository,
        by.identity.wanted.join(", ")
    ))
    .hint(format_args!(
        "a directory holds one artifact: name another one, or remove `{}` if its files are not needed",
        dir.join(RECORD).display()
    ))
}

/// What was delivered into `dir`, if there is a record; each file has its size, its bytes
/// are not looked at.
pub async fn delivered(dir: &Path) -> Result<Option<Delivery>> {
    with(dir, Delivery::stands).await
}

/// The same, with every byte compared.
pub async fn verified(dir: &Path) -> Result<Option<Delivery>> {
    with(dir, Delivery::is_sound).await
}

async fn with(dir: &Path, holds: fn(&Dir, &Delivery) -> Result<bool>) -> Result<Option<Delivery>> {
    let path = dir.to_owned();
    blocking(move || {
        if !path.is_dir() {
            return Ok(None);
        }
        let root = Dir::open(&path)?;
        match read(&root)? {
            Some(delivery) if holds(&root, &delivery)? => Ok(Some(delivery)),
            _ => Ok(None),
        }
    })
    .await
}

/// Writes down that whoever is to be told of `delivery` was told, unless another one has
/// taken its place meanwhile.
pub async fn notified(dir: &Path, delivery: &Delivery) -> Result<()> {
    let path = dir.to_owned();
    let delivery = delivery.clone();
    blocking(move || {
        let root = Dir::open(&path)?;
        let _lock = root.lock()?;
        match read(&root)? {
            Some(mut now) if now.identity == delivery.identity => {
                now.notified = Some(delivery.identity.manifest_digest);
                write(&root, &now)
            }
            _ => Ok(()),
        }
    })
    .await
}

/// The files by name, all names checked before anything is fetched.
fn plan(manifest: &Manifest) -> Result<Vec<(String, &Descriptor)>> {
    let mut taken = BTreeSet::new();
    let mut files = Vec::new();
    for layer in &manifest.layers {
        let name = match layer.annotation(TITLE) {
            Some(title) => base_name(title)?,
            None if layer.media_type.as_str() == EMPTY_TYPE => continue,
            None => layer.digest.hex().to_owned(),
        };
        if !taken.insert(name.clone()) {
            return Err(Error::new(
                Kind::InvalidContent,
                format_args!("the artifact has two files named `{name}`"),
            ));
        }
        files.push((name, layer));
    }
    if manifest.config.media_type.as_str() != EMPTY_TYPE && manifest.config.size > 0 {
        let titled = manifest.config.annotation(TITLE).map(base_name);
        let usual = titled
            .transpose()?
            .unwrap_or_else(|| CONFIG_FILE.to_owned());
        let name = [usual.as_str(), manifest.config.digest.hex()]
            .into_iter()
            .find(|name| !taken.contains(*name));
        // Both taken: then one of the layers is this very blob.
        if let Some(name) = name {
            files.push((name.to_owned(), &manifest.config));
        }
    }
    Ok(files)
}

/// The last component of a title, if the whole of it is harmless.
fn base_name(title: &str) -> Result<String> {
    let refused = |why: &str| {
        let shown: String = title
            .chars()
            .take(80)
            .flat_map(char::escape_debug)
            .collect();
        Error::new(
            Kind::InvalidContent,
            format_args!("the artifact names a file `{shown}`"),
        )
        .because(why)
        .hint("ask the publisher to give the file a plain name")
    };
    if title.chars().any(char::is_control) {
        return Err(refused("the name has control characters"));
    }
    if title.starts_with(['/', '\\']) {
        return Err(refused("the name is absolute"));
    }
    if title.split(['/', '\\']).any(|part| part == "..") {
        return Err(refused("the name leads out of the directory"));
    }
    let name = title.rsplit('/').next().unwrap_or_default();
    if name.is_empty() || name == "." {
        return Err(refused("the name is empty"));
    }
    if name.len() > MAX_NAME {
        return Err(refused("the name is too long"));
    }
    if name.starts_with(OURS) {
        return Err(refused("the name is reserved"));
    }
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests;
