//! Who uses an image that may be removed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::{choose::is_damage, prune::is_owned, stand::Standing};
use crate::{
    containerd::{Engine, K8S_NAMESPACE, StoreSource, image::ImageRecord, labels::gc_snapshot_key},
    error::Result,
    oci::{Descriptor, Digest, DocumentKind},
    source::Source,
};

/// Who uses images; asked for as little as possible.
pub(super) struct Users<'a> {
    engine: &'a Engine,
    standing: BTreeMap<String, Standing>,
}

impl<'a> Users<'a> {
    pub(super) fn new(engine: &'a Engine) -> Self {
        Self {
            engine,
            standing: BTreeMap::new(),
        }
    }

    pub(super) fn namespace(&self) -> &str {
        self.engine.namespace()
    }

    /// The user of a record's image, in words; only asked for where an answer matters.
    pub(super) async fn of(&mut self, record: &ImageRecord) -> Result<Option<String>> {
        if !is_owned(record) || self.engine.namespace() == K8S_NAMESPACE {
            return Ok(None);
        }
        let snapshotters: Vec<String> = self
            .engine
            .snapshotters()
            .iter()
            .filter(|snapshotter| snapshotter.init_error.is_none())
            .map(|snapshotter| snapshotter.name.clone())
            .collect();
        let tops = tops(self.engine, &record.target, &snapshotters).await?;
        let mut asked: BTreeSet<&str> = tops.iter().map(|(name, _)| name.as_str()).collect();
        // Containers are the same for every snapshotter; one must be asked in any case.
        asked.extend(snapshotters.first().map(String::as_str));
        for name in asked {
            if !self.standing.contains_key(name) {
                let standing = Standing::of(self.engine, name).await?;
                self.standing.insert(name.to_owned(), standing);
            }
        }
        let made_from = self
            .standing
            .values()
            .find_map(|standing| standing.made_from(&record.name));
        Ok(made_from.or_else(|| {
            tops.iter()
                .find_map(|(name, top)| self.standing.get(name)?.runs_on(top))
        }))
    }
}

/// The snapshots that containers of an image start from: of all its platforms that are
/// here, in every snapshotter that it is unpacked for.
async fn tops(
    engine: &Engine,
    target: &Descriptor,
    snapshotters: &[String],
) -> Result<Vec<(String, String)>> {
    let mut found = Vec::new();
    for config in configs(engine, target).await? {
        let info = engine.blob_info(&config).await?;
        let labels = info.map(|info| info.labels).unwrap_or_default();
        found.extend(snapshotters.iter().filter_map(|name| {
            let top = labels.get(&gc_snapshot_key(name))?;
            Some((name.clone(), top.clone()))
        }));
    }
    Ok(found)
}

/// The configs of an image: of all its platforms that are here.
pub(super) async fn configs(engine: &Engine, target: &Descriptor) -> Result<Vec<Digest>> {
    let store = StoreSource::new(engine.clone());
    let mut found = Vec::new();
    // Indexes may name one document many times.
    let mut seen: BTreeSet<Digest> = BTreeSet::from([target.digest.clone()]);
    let mut documents = VecDeque::from([target.clone()]);
    while let Some(descriptor) = documents.pop_front() {
        // One that is not here, or damaged, has nothing below it that could be run. Without
        // an answer that is not known.
        let document = match store.document(&descriptor).await {
            Ok(document) => document,
            Err(error) if is_damage(&error) => continue,
            Err(error) => return Err(error),
        };
        match document.kind {
            DocumentKind::Index(index) => documents.extend(
                index
                    .entries
                    .into_iter()
                    .filter(|entry| entry.media_type.is_index() || entry.media_type.is_manifest())
                    .filter(|entry| seen.insert(entry.digest.clone())),
            ),
            DocumentKind::Manifest(manifest) => found.push(manifest.config.digest),
        }
    }
    Ok(found)
}

/// Whether the record `name` is CRI's for a config.
pub(super) fn is_configs(name: &str) -> bool {
    name.starts_with("sha256:")
}

/// The names of CRI's records for the configs of these images. Two indexes with one config
/// share such a record, and it points at one of them.
pub(super) async fn config_names<'a>(
    engine: &Engine,
    records: impl Iterator<Item = &'a ImageRecord>,
) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    let mut seen: BTreeSet<&Digest> = BTreeSet::new();
    for record in records.filter(|record| !is_configs(&record.name)) {
        if seen.insert(&record.target.digest) {
            let configs = configs(engine, &record.target).await?;
            names.extend(configs.iter().map(Digest::to_string));
        }
    }
    Ok(names)
}
