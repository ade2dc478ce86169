//! A deep look at one image: documents, blobs, snapshots, and the files in them.
//!
//! containerd looks at none of it again once it is committed, and a power cut leaves empty
//! files in snapshots that count as whole. What is called damage here is proven: the layer's
//! own tar, verified by its digest, says something else than the disk. Where nothing can be
//! proven the report says why.

use std::{
    collections::BTreeSet,
    fmt,
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use jiff::Timestamp;
use serde::Serialize;

use super::{
    choose::{choose, is_damage},
    layers,
};
use crate::{
    choice::Choice,
    containerd::{
        Cause, Engine, Lease,
        client::DEFAULT_SNAPSHOTTER,
        labels::{gc_children, gc_snapshot_key},
        lease::lease_hash,
        stack::layer_directories,
    },
    error::{Error, Result},
    oci::{ChainId, Descriptor, Digest},
    pull::{
        Need,
        plan::{Image, unique},
    },
    resolve::Want,
};

/// Damages that a report lists; of more it says the number.
const MAX_LISTED: usize = 50;
const GONE: &str = "the snapshot was removed while it was looked at";
/// How the views of a check are named; whoever finds one may remove it.
pub(super) const VIEW: &str = "edgepull-recheck-";

/// What is damaged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DamageKind {
    /// An index, a manifest or a config.
    Document,
    /// A layer's blob.
    Blob,
    /// A layer's snapshot, which is missing.
    Snapshot,
    /// A file of a layer's snapshot.
    File,
}

/// One thing that is not as the image says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    pub kind: DamageKind,
    /// Of the document or of the layer.
    pub digest: Digest,
    /// Of a file, relative to the image's root.
    pub path: Option<String>,
    pub expected: String,
    pub found: String,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            DamageKind::Document => "document",
            DamageKind::Blob => "blob",
            DamageKind::Snapshot => "snapshot of layer",
            DamageKind::File => "file of layer",
        };
        write!(f, "{what} {}", self.digest.short())?;
        if let Some(path) = &self.path {
            write!(f, ", `{path}`")?;
        }
        write!(f, ": {} instead of {}", self.found, self.expected)
    }
}

/// What could not be looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unchecked {
    /// `None`: the whole image.
    pub layer: Option<Digest>,
    pub reason: String,
}

/// What an image's state comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Sound,
    /// Nothing is known to be damaged, and not everything could be looked at.
    Unchecked,
    Damaged,
    /// It was damaged and is sound (or unchecked) now.
    Repaired,
    /// It is damaged, and repairing it failed; or it could not be looked at.
    Failed,
}

/// What looking at one image found.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// `None` if documents are damaged: which image it is cannot be told then.
    pub choice: Option<Choice>,
    pub damage: Vec<Damage>,
    /// Damages beyond those that are listed.
    pub more: u64,
    pub unchecked: Vec<Unchecked>,
    /// Bytes of blobs that were read.
    pub read: u64,
    /// Whether the image is unpacked for the snapshotter that was looked at.
    pub unpacked: bool,
    /// Documents and blobs to bring back, whether they are listed or not.
    pub(super) wanting: BTreeSet<Digest>,
    /// The lowest layer with damaged files, as its place in the chain.
    pub(super) lowest: Option<usize>,
    /// What the disk has less of than it should, of what is damaged: a healed image takes
    /// that much more.
    pub(super) lost: Need,
}

impl Report {
    pub fn verdict(&self) -> Verdict {
        if !self.damage.is_empty() {
            Verdict::Damaged
        } else if !self.unchecked.is_empty() {
            Verdict::Unchecked
        } else {
            Verdict::Sound
        }
    }

    fn damaged(
        &mut self,
        kind: DamageKind,
        digest: &Digest,
        path: Option<String>,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) {
        if matches!(kind, DamageKind::Document | DamageKind::Blob) {
            self.wanting.insert(digest.clone());
        }
        if self.damage.len() >= MAX_LISTED {
            self.more += 1;
            return;
        }
        self.damage.push(Damage {
            kind,
            digest: digest.clone(),
            path,
            expected: expected.into(),
            found: found.into(),
        });
    }

    /// What was found of files proves nothing.
    fn forget_files(&mut self) {
        self.damage.retain(|damage| damage.kind != DamageKind::File);
        self.more = 0;
        self.lowest = None;
        self.lost.unpack = 0;
        self.skipped(None, GONE);
    }

    fn skipped(&mut self, layer: Option<&Digest>, reason: impl Into<String>) {
        self.unchecked.push(Unchecked {
            layer: layer.cloned(),
            reason: reason.into(),
        });
    }
}

/// Layers that were found sound: images share them, and one look in a pass is enough.
#[derive(Debug, Default)]
pub struct Sound(BTreeSet<SoundLayer>);

/// Namespaces share blobs, perhaps, and snapshots never.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct SoundLayer {
    blob: Digest,
    namespace: String,
    /// Whose files were compared: the snapshotter's, by chain.
    files: Option<(String, ChainId)>,
}

/// Looks at the image below `target`: reads all of its blobs and the files of its snapshots,
/// under a lease and a view of its own, which it takes away again. Fails if containerd does;
/// what the image lacks is in the report.
pub async fn recheck(
    engine: &Engine,
    snapshotter: &str,
    target: &Descriptor,
    want: &Want,
    sound: &mut Sound,
) -> Result<Report> {
    let (choice, instead) = match choose(engine, target, want).await {
        Ok(chosen) => chosen,
        Err(error) if is_damage(&error) => {
            let mut report = Report::default();
            let found = error.message();
            report.damaged(
                DamageKind::Document,
                &target.digest,
                None,
                "documents that can be read",
                found,
            );
            return Ok(report);
        }
        Err(error) => return Err(error),
    };
    // Nobody else's: another check of the same image would end it below this one.
    let own = format!(
        "{snapshotter} recheck {} {}",
        std::process::id(),
        Timestamp::now()
    );
    let hash = lease_hash(engine.namespace(), &own, &target.digest);
    let lease = Lease::acquire(engine, &hash).await?;
    let check = Check {
        engine,
        lease: &lease,
        snapshotter,
        choice: &choice,
    };
    let report = tokio::select! {
        report = check.run(sound) => report,
        error = lease.keep() => Err(error),
    };
    let released = lease.release().await;
    let mut report = report?;
    released?;
    if instead {
        // It may never have been here, or all of it is lost.
        let there = choice.platform.as_ref();
        let there = there.map_or("another platform".to_owned(), ToString::to_string);
        let wanted = &want.asked;
        report.skipped(
            None,
            format!("the image for `{wanted}` is not here; what is here for {there} was looked at"),
        );
    }
    report.choice = Some(choice);
    Ok(report)
}

struct Check<'a> {
    engine: &'a Engine,
    lease: &'a Lease,
    snapshotter: &'a str,
    choice: &'a Choice,
}

impl Check<'_> {
    async fn run(&self, sound: &mut Sound) -> Result<Report> {
        let mut report = Report::default();
        self.documents(&mut report).await?;
        let image = match Image::new(self.choice, true) {
            Ok(image) => image,
            // Of a kind that nobody unpacks: its blobs are all there is to it.
            Err(error) => {
                report.skipped(None, error.message());
                Image::new(self.choice, false)?
            }
        };
        let present = self.snapshots(&image, &mut report).await?;
        // A view keeps the snapshots while their files are read.
        let view = match present.iter().rposition(|there| *there) {
            Some(top) if report.unpacked => self.view(&image, top, &mut report).await?,
            _ => None,
        };
        let (key, directories) = view.unzip();
        let directories = directories.unwrap_or_default();
        let result = self
            .layers(&image, &present, &directories, sound, &mut report)
            .await;
        if let Some(key) = key {
            // Whoever repairs the image meanwhile takes the view away, and files with it.
            if report.lowest.is_some()
                && !self
                    .engine
                    .has_snapshot_named(self.snapshotter, &key)
                    .await?
            {
                report.forget_files();
            }
            self.engine
                .remove_snapshot_named(self.snapshotter, &key)
                .await?;
        }
        result.map(|()| report)
    }

    async fn documents(&self, report: &mut Report) -> Result<()> {
        let mut digests: Vec<&Digest> = self
            .choice
            .documents()
            .iter()
            .map(|document| &document.descriptor.digest)
            .collect();
        digests.push(self.choice.config.digest());
        for digest in digests {
            match self.engine.read_document(digest).await {
                Ok(_) => {}
                Err(error) if is_damage(&error) => {
                    let found = error.message();
                    report.damaged(DamageKind::Document, digest, None, "its content", found);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Which snapshots of the chain exist, from the bottom up.
    async fn snapshots(&self, image: &Image<'_>, report: &mut Report) -> Result<Vec<bool>> {
        let mut present = Vec::with_capacity(image.steps.len());
        for step in &image.steps {
            present.push(
                self.engine
                    .has_snapshot(self.snapshotter, &step.chain)
                    .await?,
            );
        }
        let Some(top) = image.top() else {
            return Ok(present);
        };
        // Whoever unpacks an image says so on its config. Without that it was only stored.
        let label = self
            .engine
            .blob_info(self.choice.config.digest())
            .await?
            .and_then(|info| info.labels.get(&gc_snapshot_key(self.snapshotter)).cloned());
        report.unpacked = label.as_deref() == Some(top.as_str());
        if !report.unpacked {
            let reason = format!(
                "the image is not unpacked for snapshotter {}",
                self.snapshotter
            );
            report.skipped(None, reason);
            return Ok(present);
        }
        for (step, present) in image.steps.iter().zip(&present) {
            if !present {
                let expected = format!("snapshot {}", step.chain);
                report.damaged(
                    DamageKind::Snapshot,
                    &step.layer.digest,
                    None,
                    expected,
                    "nothing",
                );
            }
        }
        Ok(present)
    }

    /// A view on the layer `top`, and the directories from there down.
    async fn view(
        &self,
        image: &Image<'_>,
        top: usize,
        report: &mut Report,
    ) -> Result<Option<(String, Vec<PathBuf>)>> {
        static COUNTER: AtomicU64 = AtomicU64::new(0);
        if self.snapshotter != DEFAULT_SNAPSHOTTER {
            let reason = format!(
                "where snapshotter {} keeps the files of a layer is not known",
                self.snapshotter
            );
            report.skipped(None, reason);
            return Ok(None);
        }
        let Some(step) = image.steps.get(top) else {
            return Ok(None);
        };
        // In a container, or after a boot, the process has the same number again, and a view of
        // one that was killed may still be there.
        let key = format!(
            "{VIEW}{}-{}-{} {}",
            std::process::id(),
            COUNTER.fetch_add(1, Ordering::Relaxed),
            jiff::Timestamp::now().as_nanosecond(),
            step.chain
        );
        let engine = self.lease.engine()?;
        let mounts = match engine
            .view(self.snapshotter, &key, step.chain.as_str())
            .await
        {
            Ok(mounts) => mounts,
            Err(failure) if failure.cause == Cause::Missing => {
                report.skipped(None, GONE);
                return Ok(None);
            }
            Err(failure) => return Err(failure.into()),
        };
        match layer_directories(&mounts, top + 1) {
            Ok(directories) => Ok(Some((key, directories))),
            Err(reason) => {
                report.skipped(None, reason);
                Ok(Some((key, Vec::new())))
            }
        }
    }

    async fn layers(
        &self,
        image: &Image<'_>,
        present: &[bool],
        directories: &[PathBuf],
        sound: &mut Sound,
        report: &mut Report,
    ) -> Result<()> {
        let promised = self.promised().await?;
        if !image.unpack {
            for layer in unique(&image.manifest.layers) {
                self.layer(layer, None, None, &promised, sound, report)
                    .await?;
            }
            return Ok(());
        }
        for (at, step) in image.steps.iter().enumerate() {
            let there = present.get(at).copied().unwrap_or_default();
            let directory = directories.get(at).filter(|_| there).cloned();
            let chain = directory.is_some().then_some(&step.chain);
            let damaged = self
                .layer(&step.layer, chain, directory, &promised, sound, report)
                .await?;
            if damaged && report.lowest.is_none() {
                report.lowest = Some(at);
            }
        }
        Ok(())
    }

    /// The blobs that the manifest holds. containerd can be told to let go of layers that
    /// are unpacked; then they are not held, and may be gone.
    async fn promised(&self) -> Result<BTreeSet<String>> {
        let leaf = &self.choice.leaf;
        let info = self.engine.blob_info(&leaf.descriptor.digest).await?;
        let labels = info.map(|info| info.labels).unwrap_or_default();
        Ok(gc_children(leaf)
            .into_iter()
            .filter(|(key, value)| labels.get(key) == Some(value))
            .map(|(_, value)| value)
            .collect())
    }

    /// Looks at one layer; whether its files are damaged.
    async fn layer(
        &self,
        layer: &Descriptor,
        chain: Option<&ChainId>,
        directory: Option<PathBuf>,
        promised: &BTreeSet<String>,
        sound: &mut Sound,
        report: &mut Report,
    ) -> Result<bool> {
        let digest = &layer.digest;
        let known = SoundLayer {
            blob: digest.clone(),
            namespace: self.engine.namespace().to_owned(),
            files: chain.map(|chain| (self.snapshotter.to_owned(), chain.clone())),
        };
        if sound.0.contains(&known) {
            return Ok(false);
        }
        let expected = || format!("a blob of {} bytes", layer.size);
        let Some(_) = self.engine.blob_info(digest).await? else {
            if promised.contains(digest.as_str()) {
                report.damaged(DamageKind::Blob, digest, None, expected(), "nothing");
                report.lost.fetch = report.lost.fetch.saturating_add(layer.size);
            } else {
                report.skipped(
                    Some(digest),
                    "the layer's blob was discarded when it was unpacked",
                );
            }
            return Ok(false);
        };
        let read = layers::read(self.engine, layer, directory).await?;
        report.read += read.bytes;
        if let Some(found) = read.blob {
            report.damaged(DamageKind::Blob, digest, None, expected(), found);
            let lost = layer.size.saturating_sub(read.bytes);
            report.lost.fetch = report.lost.fetch.saturating_add(lost);
            return Ok(false);
        }
        match read.files {
            None => {}
            Some(Ok(compared)) => {
                report.more += compared.more;
                for wrong in &compared.wrong {
                    report.damaged(
                        DamageKind::File,
                        digest,
                        Some(wrong.path.clone()),
                        &*wrong.expected,
                        &*wrong.found,
                    );
                }
                if !compared.wrong.is_empty() {
                    report.lost.unpack = report.lost.unpack.saturating_add(compared.lost);
                    return Ok(true);
                }
            }
            Some(Err(error)) => {
                report.skipped(Some(digest), reason(&error));
                return Ok(false);
            }
        }
        sound.0.insert(known);
        Ok(false)
    }
}

fn reason(error: &Error) -> String {
    std::iter::once(error.message())
        .chain(error.causes().iter().map(String::as_str))
        .collect::<Vec<_>>()
        .join(": ")
}
