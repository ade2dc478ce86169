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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::{layout::testing::Memory, oci::DocumentKind};

    fn manifest(
        memory: &mut Memory,
        config: (&str, &str),
        layers: &[(Option<&str>, &str)],
    ) -> Manifest {
        let config = memory.add(config.0, config.1.to_owned());
        let layers: Vec<Descriptor> = layers
            .iter()
            .map(|(title, content)| {
                let mut layer = memory.add("application/octet-stream", (*content).to_owned());
                if let Some(title) = title {
                    layer
                        .annotations
                        .insert(TITLE.to_owned(), (*title).to_owned());
                }
                layer
            })
            .collect();
        let json = serde_json::json!({"schemaVersion": 2, "config": config, "layers": layers});
        match memory
            .document("application/vnd.oci.image.manifest.v1+json", &json)
            .kind
        {
            DocumentKind::Manifest(manifest) => *manifest,
            DocumentKind::Index(_) => panic!("a manifest was written"),
        }
    }

    fn listed(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(dir)
            .expect("a directory")
            .map(|e| e.expect("an entry").file_name().to_string_lossy().into())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn layers_become_files_by_title_or_digest() {
        let temporary = tempfile::tempdir().expect("a directory");
        let dir = temporary.path().join("out");
        let mut memory = Memory::default();
        let artifact = manifest(
            &mut memory,
            ("application/vnd.x.config+json", r#"{"a":1}"#),
            &[
                (Some("build/zephyr.bin"), "code"),
                (None, "plain"),
                (Some("./x"), ""),
            ],
        );
        let hex = crate::oci::Digest::of(b"plain").hex().to_owned();
        for _ in 0..2 {
            let files = deliver_artifact(&dir, &artifact, &memory)
                .await
                .expect("delivered");
            let expected = ["zephyr.bin", &hex, "x", "config.json"].map(|name| dir.join(name));
            assert_eq!(files, expected);
        }
        assert_eq!(fs::read(dir.join("zephyr.bin")).expect("there"), b"code");
        assert_eq!(
            fs::read(dir.join("config.json")).expect("there"),
            br#"{"a":1}"#
        );
        assert_eq!(listed(&dir).len(), 4);
        // A link of that name is replaced, not written through.
        fs::write(temporary.path().join("victim"), "untouched").expect("written");
        fs::remove_file(dir.join("x")).expect("there");
        std::os::unix::fs::symlink("../victim", dir.join("x")).expect("linked");
        deliver_artifact(&dir, &artifact, &memory)
            .await
            .expect("delivered");
        assert_eq!(fs::read(dir.join("x")).expect("there"), b"");
        assert_eq!(
            fs::read(temporary.path().join("victim")).expect("there"),
            b"untouched"
        );
    }

    #[tokio::test]
    async fn an_empty_config_is_no_file_and_config_json_may_be_a_layer() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut memory = Memory::default();
        let empty = manifest(
            &mut memory,
            (EMPTY_TYPE, "{}"),
            &[(Some("config.json"), "model")],
        );
        deliver_artifact(dir.path(), &empty, &memory)
            .await
            .expect("delivered");
        assert_eq!(listed(dir.path()), ["config.json"]);
        let both = manifest(
            &mut memory,
            ("x/y", "{ }"),
            &[(Some("config.json"), "model")],
        );
        deliver_artifact(dir.path(), &both, &memory)
            .await
            .expect("delivered");
        assert_eq!(
            fs::read(dir.path().join("config.json")).expect("there"),
            b"model"
        );
        assert_eq!(listed(dir.path()).len(), 2);
    }

    #[tokio::test]
    async fn hostile_names_and_wrong_bytes_deliver_nothing() {
        let temporary = tempfile::tempdir().expect("a directory");
        let dir = temporary.path().join("out");
        let mut memory = Memory::default();
        let long = "x".repeat(256);
        for title in [
            "",
            "/",
            ".",
            "..",
            "../x",
            "a/..",
            "a/../b",
            "/etc/passwd",
            "a/",
            "a\nb",
            "..\\x",
            "\u{7f}",
            ".edgepull-0",
            &long,
        ] {
            let bad = manifest(
                &mut memory,
                (EMPTY_TYPE, "{}"),
                &[(Some("ok"), "a"), (Some(title), "b")],
            );
            let error = deliver_artifact(&dir, &bad, &memory)
                .await
                .expect_err(title);
            assert_eq!(error.kind(), Kind::InvalidContent, "{title:?}");
        }
        let twice = manifest(
            &mut memory,
            (EMPTY_TYPE, "{}"),
            &[(Some("a/x"), "a"), (Some("b/x"), "b")],
        );
        assert!(deliver_artifact(&dir, &twice, &memory).await.is_err());
        let wrong = manifest(
            &mut memory,
            (EMPTY_TYPE, "{}"),
            &[(Some("a"), "a"), (Some("b"), "b")],
        );
        memory.blobs.insert(
            crate::oci::Digest::of(b"b"),
            bytes::Bytes::from_static(b"x"),
        );
        let error = deliver_artifact(&dir, &wrong, &memory)
            .await
            .expect_err("wrong");
        assert_eq!(error.kind(), Kind::InvalidContent);
        assert!(listed(&dir).is_empty());
        assert_eq!(listed(temporary.path()), ["out"]);
    }
}
