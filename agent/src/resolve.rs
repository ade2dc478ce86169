//! From a document to the one image in it that fits, with a reason for every entry.
//!
//! The decision itself is `edgepull_platform::select`; here the documents are
//! walked: nested indexes, entries without a platform, single manifests.

mod missing;

use edgepull_platform::{
    EntryVerdict, Host, Offer, OfferKind, Platform, Selection, Verdict, Wanted, select,
};
use serde::Serialize;

use self::missing::missing;
use crate::{
    choice::Choice,
    error::{Error, Result},
    kind::Kind,
    oci::{Descriptor, Digest, Document, DocumentKind, ImageConfig, Index, Manifest, Verified},
    source::{Source, small_blob},
};

/// Indexes inside indexes are followed this deep; published ones need one.
const MAX_DEPTH: usize = 4;

/// What is wanted, and by whom.
#[derive(Debug, Clone)]
pub struct Want {
    /// Platforms that are acceptable, best first.
    pub wanted: Wanted,
    /// The host for which it is wanted, where there is one: reasons and hints name it.
    pub host: Option<Host>,
    /// The engine's own platform, when the engine's reader decides.
    pub engine: Option<Platform>,
    /// How the user asked for it: `host`, or the text of `--platform`.
    pub asked: String,
    /// `--variant best`: take the host's best even where the reader would look elsewhere.
    pub variant_best: bool,
    /// Whether a single image with a label that does not fit is picked on probation, because
    /// somebody will look at its bytes before it counts.
    pub probation: bool,
}

/// One row of `inspect`.
#[derive(Debug, Clone, Serialize)]
pub struct Entry {
    pub digest: Digest,
    /// Bytes of the document that the entry points at.
    pub size: u64,
    pub platform: Option<String>,
    pub kind: OfferKind,
    pub verdict: Verdict,
    pub reason: String,
}

/// What a reference offers, and the choice or the reason why there is none.
#[derive(Debug)]
pub struct Resolution {
    pub root: Document,
    pub entries: Vec<Entry>,
    /// The chosen entry of the root document (itself, for a single manifest).
    pub selected: Option<Digest>,
    pub outcome: Result<Picked>,
}

/// The image that was picked; its config is read only if the decision needed it.
#[derive(Debug, Clone)]
pub struct Picked {
    pub root: Document,
    /// Nested indexes from the root (exclusive) down to the leaf (exclusive).
    pub ancestors: Vec<Document>,
    /// The manifest.
    pub leaf: Document,
    pub platform: Option<Platform>,
    /// The record must point at the manifest: the reader would take another entry.
    pub target_is_leaf: bool,
    /// Its label does not fit: the failure that this is, unless its bytes fit.
    pub probation: Option<Box<Error>>,
    config: Option<Verified>,
}

impl Picked {
    /// Adds what a store needs: the config.
    pub async fn complete(self, source: &dyn Source) -> Result<Choice> {
        let config = if let Some(config) = self.config {
            config
        } else {
            let DocumentKind::Manifest(manifest) = &self.leaf.kind else {
                return Err(Error::new(
                    Kind::Internal,
                    "the picked document is no manifest",
                ));
            };
            read_config(&self.leaf, manifest, source).await?
        };
        Ok(Choice {
            root: self.root,
            ancestors: self.ancestors,
            leaf: self.leaf,
            config,
            platform: self.platform,
            target_is_leaf: self.target_is_leaf,
            probation: self.probation,
        })
    }
}

impl Resolution {
    /// The manifest that was reached, through nested indexes.
    pub fn selected_leaf(&self) -> Option<&Digest> {
        self.outcome
            .as_ref()
            .ok()
            .map(|choice| &choice.leaf.descriptor.digest)
    }
}

/// The offers of an index, as `platform` judges them.
pub fn offers(index: &Index) -> Vec<Offer> {
    index
        .entries
        .iter()
        .map(|entry| Offer {
            label: entry.platform.clone(),
            kind: Index::kind_of(entry),
            digest: entry.digest.to_string(),
        })
        .collect()
}

/// Where following the chosen entry ended.
enum Walk {
    Reached(Box<Picked>),
    /// What it points at is for something else.
    Misfit(Error),
    /// What it points at cannot be read, or not be used.
    Unread(Error),
}

/// Judges `root` and walks to the chosen image. That nothing fits, or that what was
/// chosen cannot be read, is an outcome: the document itself was read.
pub async fn resolve(root: Document, source: &dyn Source, want: &Want) -> Result<Resolution> {
    match root.kind.clone() {
        DocumentKind::Manifest(manifest) => single(root, &manifest, source, want).await,
        DocumentKind::Index(index) => {
            let offers = offers(&index);
            let selection = select(
                &offers,
                &want.wanted,
                want.host.as_ref(),
                want.engine.as_ref(),
            );
            let mut entries: Vec<Entry> = index
                .entries
                .iter()
                .zip(&offers)
                .zip(&selection.entries)
                .map(|((entry, offer), verdict)| row(entry, offer, verdict))
                .collect();
            let chosen = selection.selected();
            let named = |at: usize| index.entries.get(at).map(|entry| entry.digest.clone());
            let mut selected = None;
            let outcome = if let Some(why) = conflict(&selection, want) {
                revise(&mut entries, chosen, Verdict::Runnable, &why);
                Err(missing(&offers, want, &root).because(why))
            } else if let Some(at) = chosen {
                match walk(&root, &index, at, &selection, source, want).await {
                    Walk::Reached(picked) => {
                        selected = named(at);
                        Ok(*picked)
                    }
                    Walk::Misfit(error) => {
                        let why = error.causes().last().cloned().unwrap_or_default();
                        revise(&mut entries, chosen, Verdict::Foreign, &why);
                        Err(error)
                    }
                    // A label decides by itself; without one the choice was provisional.
                    Walk::Unread(error) => {
                        if offers
                            .get(at)
                            .is_some_and(|offer| offer.platform().is_some())
                        {
                            selected = named(at);
                        } else {
                            let why = format!(
                                "it has no platform here, and what it points at is of no help: {}",
                                error.message()
                            );
                            revise(&mut entries, chosen, Verdict::Skipped, &why);
                        }
                        Err(error)
                    }
                }
            } else {
                Err(missing(&offers, want, &root))
            };
            Ok(Resolution {
                root,
                entries,
                selected,
                outcome,
            })
        }
    }
}

/// Why the engine's own choice stands in the way, if it does.
fn conflict(selection: &Selection, want: &Want) -> Option<String> {
    let conflict = selection.engine_conflict.as_ref()?;
    (!want.variant_best).then(|| {
        format!(
            "the container engine would take its entry for {}, but {}",
            conflict.platform, conflict.reason
        )
    })
}

/// Settles the verdict of an entry that was chosen before all was known.
fn revise(entries: &mut [Entry], at: Option<usize>, verdict: Verdict, reason: &str) {
    if let Some(entry) = at.and_then(|at| entries.get_mut(at))
        && entry.verdict == Verdict::Selected
    {
        entry.verdict = verdict;
        reason.clone_into(&mut entry.reason);
    }
}

fn row(entry: &Descriptor, offer: &Offer, verdict: &EntryVerdict) -> Entry {
    Entry {
        digest: entry.digest.clone(),
        size: entry.size,
        platform: offer.platform().map(|p| p.to_string()),
        kind: offer.kind,
        verdict: verdict.verdict,
        reason: verdict.reason.clone(),
    }
}

/// Follows entry `at` of `index` to an image manifest.
async fn walk(
    root: &Document,
    index: &Index,
    at: usize,
    selection: &Selection,
    source: &dyn Source,
    want: &Want,
) -> Walk {
    let mut ancestors = Vec::new();
    let mut index = index.clone();
    let mut at = at;
    let mut label: Option<Platform> = None;
    // The reader of the store leaves our path at the first index where it takes another entry.
    let mut astray = selection.reader_takes != Some(at);
    for _ in 0..MAX_DEPTH {
        let Some(entry) = index.entries.get(at) else {
            return Walk::Unread(Error::new(
                Kind::Internal,
                "the chosen entry is not in its index",
            ));
        };
        label = entry
            .platform
            .as_ref()
            .and_then(Platform::from_label)
            .or(label);
        let document = match follow(root, entry, source).await {
            Ok(document) => document,
            Err(error) => return Walk::Unread(error),
        };
        match document.kind.clone() {
            DocumentKind::Manifest(manifest) => {
                let mut config = None;
                if label.is_none() {
                    let read = match read_config(&document, &manifest, source).await {
                        Ok(read) => read,
                        Err(error) => return Walk::Unread(error),
                    };
                    // Nothing but the config says what it is for.
                    let said = config_platform(&manifest, &read);
                    config = Some(read);
                    let offer = config_offer(&document, &manifest, said.as_ref());
                    let offers = [offer];
                    let selection = select(
                        &offers,
                        &want.wanted,
                        want.host.as_ref(),
                        want.engine.as_ref(),
                    );
                    if let Some(why) = conflict(&selection, want) {
                        return Walk::Misfit(missing(&offers, want, root).because(why));
                    }
                    let platform = said.as_ref().and_then(Platform::from_label);
                    if platform.is_none() || selection.selected().is_none() {
                        let says =
                            platform.map_or_else(|| "no platform".to_owned(), |p| p.to_string());
                        let all = self::offers(&index);
                        return Walk::Misfit(
                            missing(&with_config(all, at, said), want, root).because(format_args!(
                                "the entry names no platform, and its config says {says}"
                            )),
                        );
                    }
                    astray |= selection.reader_takes.is_none();
                    label = platform;
                }
                return Walk::Reached(Box::new(Picked {
                    root: root.clone(),
                    ancestors,
                    leaf: document,
                    config,
                    platform: label,
                    target_is_leaf: want.variant_best && astray,
                    probation: None,
                }));
            }
            DocumentKind::Index(inner) => {
                let offers = self::offers(&inner);
                let selection = select(
                    &offers,
                    &want.wanted,
                    want.host.as_ref(),
                    want.engine.as_ref(),
                );
                let error = match (conflict(&selection, want), selection.selected()) {
                    (None, Some(next)) => {
                        astray |= selection.reader_takes != Some(next);
                        ancestors.push(document);
                        index = inner;
                        at = next;
                        continue;
                    }
                    (Some(why), _) => missing(&offers, want, &document).because(why),
                    (None, None) => missing(&offers, want, &document)
                        .because("the nested index that was chosen offers nothing that fits"),
                };
                return Walk::Misfit(error);
            }
        }
    }
    Walk::Unread(Error::new(
        Kind::Unsupported,
        format_args!(
            "index {} nests more than {MAX_DEPTH} levels deep",
            root.descriptor.digest
        ),
    ))
}

/// The document behind an entry.
async fn follow(root: &Document, entry: &Descriptor, source: &dyn Source) -> Result<Document> {
    if !entry.media_type.is_index() && !entry.media_type.is_manifest() {
        return Err(Error::new(
            Kind::Unsupported,
            format_args!(
                "entry {} has the media type `{}`, which is neither an index nor an image manifest",
                entry.digest, entry.media_type
            ),
        ));
    }
    source.document(entry).await.map_err(|error| {
        let message = format!(
            "cannot read entry {} of index {}",
            entry.digest,
            root.descriptor.digest.short()
        );
        if error.kind() == Kind::NotFound {
            error
                .during(message)
                .hint("the index lists it, but this registry does not have it: an incomplete mirror or push; try the original registry")
        } else {
            error.during(message)
        }
    })
}

/// The same offers, with the platform of entry `at` known from its config.
fn with_config(
    mut offers: Vec<Offer>,
    at: usize,
    label: Option<edgepull_platform::Label>,
) -> Vec<Offer> {
    if let Some(offer) = offers.get_mut(at) {
        offer.label = label;
    }
    offers
}

fn config_offer(
    document: &Document,
    manifest: &Manifest,
    label: Option<&edgepull_platform::Label>,
) -> Offer {
    Offer {
        label: label.cloned(),
        kind: if manifest.is_artifact() {
            OfferKind::Artifact
        } else {
            OfferKind::Image
        },
        digest: document.descriptor.digest.to_string(),
    }
}

/// Whether the config may name a platform: that of an artifact is anything.
fn config_has_platform(manifest: &Manifest) -> bool {
    manifest.config.media_type.is_image_config() || !manifest.is_artifact()
}

/// Configs of artifacts need not be JSON; those of images must be.
fn config_platform(manifest: &Manifest, config: &Verified) -> Option<edgepull_platform::Label> {
    if !config_has_platform(manifest) {
        return None;
    }
    ImageConfig::parse(config)
        .ok()
        .map(|c| c.label)
        .filter(|l| !l.os.is_empty() || !l.architecture.is_empty())
}

async fn read_config(
    document: &Document,
    manifest: &Manifest,
    source: &dyn Source,
) -> Result<Verified> {
    let config = small_blob(source, &manifest.config)
        .await
        .map_err(|error| {
            error.during(format_args!(
                "cannot read the config of manifest {}",
                document.descriptor.digest
            ))
        })?;
    if !manifest.is_artifact() {
        ImageConfig::parse(&config)?;
    }
    Ok(config)
}

/// A reference that is one manifest: its config is its only label.
async fn single(
    root: Document,
    manifest: &Manifest,
    source: &dyn Source,
    want: &Want,
) -> Result<Resolution> {
    let (config, label) = if config_has_platform(manifest) {
        match read_config(&root, manifest, source).await {
            Ok(config) => {
                let label = config_platform(manifest, &config);
                (Some(config), label)
            }
            Err(error) => return Ok(unread(root, manifest, error)),
        }
    } else {
        (None, None)
    };
    let offers = [config_offer(&root, manifest, label.as_ref())];
    let selection = select(
        &offers,
        &want.wanted,
        want.host.as_ref(),
        want.engine.as_ref(),
    );
    let platform = label.as_ref().and_then(Platform::from_label);
    let fits =
        platform.is_some() && selection.selected().is_some() && selection.engine_conflict.is_none();
    // An artifact for no platform is for whoever asks for it by name.
    let generic = manifest.is_artifact() && platform.is_none();
    let digest = root.descriptor.digest.clone();
    let entry = Entry {
        digest: digest.clone(),
        size: root.descriptor.size,
        platform: platform.as_ref().map(ToString::to_string),
        kind: offers.first().map_or(OfferKind::Other, |o| o.kind),
        verdict: match selection.entries.first() {
            _ if fits || generic => Verdict::Selected,
            Some(verdict) if verdict.verdict != Verdict::Selected => verdict.verdict,
            _ => Verdict::Foreign,
        },
        reason: if generic {
            "an artifact for no platform in particular".to_owned()
        } else if platform.is_none() {
            "a single image whose config names no platform".to_owned()
        } else {
            let said = selection
                .entries
                .first()
                .map(|v| v.reason.clone())
                .unwrap_or_default();
            format!("a single image, its config is the only label: {said}")
        },
    };
    let misfit = || {
        let error = missing(&offers, want, &root)
            .because("the reference is a single image, not an index: its config is its only label");
        match conflict(&selection, want) {
            Some(why) => error.because(why),
            None => error,
        }
    };
    let pick = |platform, probation| Picked {
        root: root.clone(),
        ancestors: Vec::new(),
        leaf: root.clone(),
        config,
        platform,
        target_is_leaf: false,
        probation,
    };
    let outcome = if fits || generic {
        Ok(pick(platform, None))
    } else if want.probation && !manifest.is_artifact() {
        Ok(pick(platform, Some(Box::new(misfit()))))
    } else {
        Err(misfit())
    };
    let selected = outcome.is_ok().then(|| digest.clone());
    Ok(Resolution {
        root,
        entries: vec![entry],
        selected,
        outcome,
    })
}

/// A single manifest whose config, its only label, cannot be read.
fn unread(root: Document, manifest: &Manifest, error: Error) -> Resolution {
    let entry = Entry {
        digest: root.descriptor.digest.clone(),
        size: root.descriptor.size,
        platform: None,
        kind: config_offer(&root, manifest, None).kind,
        verdict: Verdict::Skipped,
        reason: "a single image whose config, its only label, cannot be read".to_owned(),
    };
    Resolution {
        root,
        entries: vec![entry],
        selected: None,
        outcome: Err(error),
    }
}

/// `--platform all`: every image entry of an index, each as the platform to ask for;
/// of a single manifest the platform that its config names.
pub async fn all_platforms(root: &Document, source: &dyn Source) -> Result<Vec<Platform>> {
    let mut platforms: Vec<Platform> = Vec::new();
    match &root.kind {
        DocumentKind::Index(index) => {
            for offer in offers(index) {
                if matches!(offer.kind, OfferKind::Image | OfferKind::Index)
                    && let Some(platform) = offer.platform()
                    && !platforms.contains(&platform)
                {
                    platforms.push(platform);
                }
            }
        }
        DocumentKind::Manifest(manifest) if config_has_platform(manifest) => {
            let config = read_config(root, manifest, source).await?;
            platforms.extend(
                config_platform(manifest, &config).and_then(|label| Platform::from_label(&label)),
            );
        }
        DocumentKind::Manifest(_) => {}
    }
    if platforms.is_empty() {
        return Err(Error::new(
            Kind::PlatformMissing,
            format_args!(
                "{} has no image with a platform in it",
                root.descriptor.digest.short()
            ),
        )
        .hint("`edgepull inspect` shows what it is"));
    }
    Ok(platforms)
}

#[cfg(test)]
mod tests;
