//! Delivering an artifact: its layers as files in a directory.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

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

/// Writes every layer of `manifest` as a file in `dir` (made if need be), named by
/// the base name of its `org.opencontainers.image.title`, or by its digest's
/// digits where it has none; and the config as `config.json`, unless it is empty.
/// A layer that is itself called `config.json` keeps that name, and the config
/// gets its digits.
///
/// All files are fetched and verified before the first one becomes visible; a file
/// of the same name is replaced. Returns the files in the manifest's order, the
/// config last.
pub async fn deliver_artifact(
    dir: &Path,
    manifest: &Manifest,
    source: &dyn Source,
) -> Result<Vec<PathBuf>> {
    let files = plan(manifest)?;
    let path = dir.to_owned();
    let root = blocking(move || Dir::create(&path)).await?;
    let mut ready: Vec<(Temporary, String)> = Vec::with_capacity(files.len());
    for (number, (name, descriptor)) in files.into_iter().enumerate() {
        let root = root.clone();
        // Not made from the title: that may be as long as a name can be.
        let temporary = format!(".edgepull-{number}");
        let out = blocking(move || root.temporary(&temporary)).await?;
        let out = pour(out, descriptor, source, |_| {}).await?;
        let out = blocking(move || {
            out.sync()?;
            Ok(out)
        })
        .await?;
        ready.push((out, name));
    }
    let dir = dir.to_owned();
    blocking(move || {
        let mut delivered = Vec::with_capacity(ready.len());
        for (out, name) in ready {
            out.publish(&name)?;
            delivered.push(dir.join(name));
        }
        Ok(delivered)
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
        let name = [CONFIG_FILE, manifest.config.digest.hex()]
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
    if name.starts_with(".edgepull-") {
        return Err(refused("the name is reserved"));
    }
    Ok(name.to_owned())
}
