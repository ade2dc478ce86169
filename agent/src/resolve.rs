//! From a document to the one image in it that fits, with a reason for every entry.
//!
//! The decision itself is `edgepull_platform::select`; here the documents are
//! walked: nested indexes, entries without a platform, single manifests.

use edgepull_platform::{
    EntryVerdict, Host, Offer, OfferKind, Platform, Verdict, Wanted, explain_missing, select,
};
use serde::Serialize;

use crate::{
    choice::Choice,
    error::{Error, Result},
    kind::Kind,
    oci::{
        Descriptor, Digest, Document, DocumentKind, ImageConfig, Index, Manifest, MediaType,
        Verified,
    },
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

/// Judges `root` and walks to the chosen image. Fails only if a document that the
/// decision needs cannot be read; "nothing fits" is an outcome.
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
            let mut outcome = if let Some(conflict) = &selection.engine_conflict
                && !want.variant_best
            {
                Err(missing(&offers, want, &root).because(format_args!(
                    "the container engine would take its entry for {}, but {}",
                    conflict.platform, conflict.reason
                )))
            } else if let Some(at) = selection.selected() {
                walk(&root, &index, at, source, want).await?
            } else {
                Err(missing(&offers, want, &root))
            };
            if want.variant_best
                && let Ok(picked) = &mut outcome
            {
                picked.target_is_leaf = selection.reader_takes != selection.selected();
            }
            let selected = match (&outcome, selection.selected()) {
                (Ok(_), Some(at)) => index.entries.get(at).map(|entry| entry.digest.clone()),
                _ => None,
            };
            // The verdict of a provisional choice (a platform only its config knows) is settled now.
            if selected.is_none()
                && let Some(entry) = selection.selected().and_then(|at| entries.get_mut(at))
                && entry.verdict == Verdict::Selected
            {
                entry.verdict = Verdict::Foreign;
                if let Err(error) = &outcome {
                    entry.reason = error
                        .causes()
                        .first()
                        .cloned()
                        .unwrap_or_else(|| "what it points at does not fit".to_owned());
                }
            }
            Ok(Resolution {
                root,
                entries,
                selected,
                outcome,
            })
        }
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

/// The typed failure when nothing fits.
fn missing(offers: &[Offer], want: &Want, root: &Document) -> Error {
    let told = explain_missing(offers, &want.wanted, want.host.as_ref());
    let host = want.host.as_ref().map(|h| h.platform.to_string());
    let whom = if want.asked == "host" {
        "this host can use"
    } else {
        "fits what was asked for"
    };
    let mut error = Error::new(
        Kind::PlatformMissing,
        format_args!(
            "{} offers no image that {whom}",
            root.descriptor.digest.short()
        ),
    );
    if want.asked == "host" {
        if let Some(host) = &want.host {
            error = error.because(why_wanted(host));
        }
    } else {
        error = error.because(format_args!("asked for by `--platform {}`", want.asked));
    }
    if let Some(nearest) = &told.nearest {
        error = error.because(format_args!("the nearest offer is {nearest}"));
    }
    error = error.platforms(told.wanted, told.offered).hint(told.hint);
    if let Some(host) = host {
        error = error.host(host);
    }
    error.platform(&want.asked)
}

/// One line on why this host wants what it wants.
fn why_wanted(host: &Host) -> String {
    let machine = host
        .machine
        .as_deref()
        .map(|m| format!(" ({m})"))
        .unwrap_or_default();
    let mut line = format!(
        "this host is {}{machine}, kernel {}, userland {}",
        host.platform, host.kernel, host.userland
    );
    match host.aarch32_el0 {
        Some(false) if host.architecture == "arm64" => line.push_str(", without a 32-bit mode"),
        Some(true) if host.architecture == "arm64" => line.push_str(", with a 32-bit mode"),
        _ => {}
    }
    line
}

/// Follows entry `at` of `index` to an image manifest.
async fn walk(
    root: &Document,
    index: &Index,
    at: usize,
    source: &dyn Source,
    want: &Want,
) -> Result<Result<Picked>> {
    let mut ancestors = Vec::new();
    let mut index = index.clone();
    let mut at = at;
    let mut label: Option<Platform> = None;
    for _ in 0..MAX_DEPTH {
        let Some(entry) = index.entries.get(at) else {
            return Err(Error::new(
                Kind::Internal,
                "the chosen entry is not in its index",
            ));
        };
        if !entry.media_type.is_index() && !entry.media_type.is_manifest() {
            return Err(Error::new(
                Kind::Unsupported,
                format_args!(
                    "entry {} has the media type `{}`, which is neither an index nor an image manifest",
                    entry.digest, entry.media_type
                ),
            ));
        }
        label = entry
            .platform
            .as_ref()
            .and_then(Platform::from_label)
            .or(label);
        let document = source.document(entry).await.map_err(|error| {
            let message = format!("cannot read entry {} of index {}", entry.digest, root.descriptor.digest.short());
            if error.kind() == Kind::NotFound {
                error
                    .during(message)
                    .hint("the index lists it, but this registry does not have it: an incomplete mirror or push; try the original registry")
            } else {
                error.during(message)
            }
        })?;
        match document.kind.clone() {
            DocumentKind::Manifest(manifest) => {
                let mut config = None;
                if label.is_none() {
                    let read = read_config(&document, &manifest, source).await?;
                    // Nothing but the config says what it is for.
                    let said = config_platform(&manifest, &read);
                    config = Some(read);
                    let offer = config_offer(&document, &manifest, said.as_ref());
                    let offers = [offer];
                    if select(&offers, &want.wanted, want.host.as_ref(), None)
                        .selected()
                        .is_none()
                    {
                        let says = said
                            .as_ref()
                            .and_then(Platform::from_label)
                            .map_or_else(|| "no platform".to_owned(), |p| p.to_string());
                        let all = self::offers(&index);
                        return Ok(Err(missing(&with_config(all, at, said), want, root)
                            .because(format_args!(
                                "the entry names no platform, and its config says {says}"
                            ))));
                    }
                    label = said.as_ref().and_then(Platform::from_label);
                }
                return Ok(Ok(Picked {
                    root: root.clone(),
                    ancestors,
                    leaf: document,
                    config,
                    platform: label,
                    target_is_leaf: false,
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
                let Some(next) = selection.selected() else {
                    return Ok(Err(missing(&offers, want, &document).because(
                        "the nested index that was chosen offers nothing that fits",
                    )));
                };
                ancestors.push(document);
                index = inner;
                at = next;
            }
        }
    }
    Err(Error::new(
        Kind::Unsupported,
        format_args!(
            "index {} nests more than {MAX_DEPTH} levels deep",
            root.descriptor.digest
        ),
    ))
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

/// Configs of artifacts need not be JSON; those of images must be.
fn config_platform(manifest: &Manifest, config: &Verified) -> Option<edgepull_platform::Label> {
    let image_like = manifest.config.media_type.is_image_config() || !manifest.is_artifact();
    if !image_like {
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
    let config = read_config(&root, manifest, source).await?;
    let label = config_platform(manifest, &config);
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
    let outcome = if fits || generic {
        Ok(Picked {
            root: root.clone(),
            ancestors: Vec::new(),
            leaf: root.clone(),
            config: Some(config),
            platform,
            target_is_leaf: false,
        })
    } else {
        Err(missing(&offers, want, &root)
            .because("the reference is a single image, not an index: its config is its only label"))
    };
    let selected = outcome.is_ok().then(|| digest.clone());
    Ok(Resolution {
        root,
        entries: vec![entry],
        selected,
        outcome,
    })
}

/// Every image entry of an index (`--platform all`), each as the platform to ask for;
/// empty for a single manifest, which is asked for as it is.
pub fn all_platforms(root: &Document) -> Vec<Platform> {
    let DocumentKind::Index(index) = &root.kind else {
        return Vec::new();
    };
    let mut platforms: Vec<Platform> = Vec::new();
    for offer in offers(index) {
        if matches!(offer.kind, OfferKind::Image | OfferKind::Index)
            && let Some(platform) = offer.platform()
            && !platforms.contains(&platform)
        {
            platforms.push(platform);
        }
    }
    platforms
}

/// Whether a media type is one of those that `inspect` can look into.
pub fn is_document(media_type: &MediaType) -> bool {
    media_type.is_index() || media_type.is_manifest()
}
