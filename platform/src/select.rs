//! Offers and a wanted list in; a choice, and a verdict with a reason for every offer out.

use serde::Serialize;

use crate::host::{Host, How};
use crate::order::{Selects, vector};
use crate::platform::{Label, Platform};

mod missing;
mod rank;

pub use missing::{Missing, explain_missing};

/// What kind of thing an index entry is, as far as its media types tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OfferKind {
    /// A container image.
    Image,
    /// An artifact: delivered, never unpacked.
    Artifact,
    /// A statement about another entry.
    Attestation,
    /// Another index.
    Index,
    /// Something of an unknown media type.
    Other,
}

/// One index entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// Its platform, where it has one.
    pub label: Option<Label>,
    /// What it is.
    pub kind: OfferKind,
    /// Its digest, for messages.
    pub digest: String,
}

impl Offer {
    /// The normalised platform, where the entry names one.
    pub fn platform(&self) -> Option<Platform> {
        self.label.as_ref().and_then(Platform::from_label)
    }

    /// Never a candidate: an attestation, by its kind or by its label `unknown/unknown`.
    fn is_attestation(&self) -> bool {
        self.kind == OfferKind::Attestation
            || self.platform().is_some_and(|platform| {
                platform.os() == "unknown" && platform.architecture() == "unknown"
            })
    }
}

/// Which platforms are wanted, best first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    platforms: Vec<Platform>,
    ignore_os_features: bool,
}

impl Wanted {
    /// This platform and no other.
    pub fn exact(platform: Platform) -> Wanted {
        Wanted::list(vec![platform])
    }

    /// This platform, then what containerd falls back to.
    pub fn fallback(platform: &Platform) -> Wanted {
        Wanted::list(vector(platform))
    }

    /// What the reader of the store will look up.
    pub fn selects(selects: &Selects) -> Wanted {
        Wanted::list(selects.platforms.clone())
    }

    /// These platforms, best first.
    pub fn list(platforms: Vec<Platform>) -> Wanted {
        Wanted {
            platforms,
            ignore_os_features: false,
        }
    }

    /// As containerd up to 2.2, which does not compare `os.features`.
    #[must_use]
    pub fn ignoring_os_features(mut self) -> Wanted {
        self.ignore_os_features = true;
        self
    }

    /// The list, best first.
    pub fn platforms(&self) -> &[Platform] {
        &self.platforms
    }
}

/// The verdict on one entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The choice. Without a platform of its own it is so only if its config or its own entries agree.
    Selected,
    /// It would run, but another entry goes before it or it was not asked for.
    Runnable,
    /// It would run under a registered emulator only.
    Emulated,
    /// It is not for this host.
    Foreign,
    /// It is never run, or its platform is not known from here.
    Skipped,
}

/// What became of one entry, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EntryVerdict {
    /// Its platform, where it names one.
    pub platform: Option<Platform>,
    /// The verdict.
    pub verdict: Verdict,
    /// One sentence for a person.
    pub reason: String,
    /// It has no platform of its own: its config or its own entries must be looked at.
    #[serde(skip)]
    pub needs_look: bool,
}

/// The engine would take an entry that this host cannot run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EngineConflict {
    /// Which entry.
    pub entry: usize,
    /// Its platform.
    pub platform: Platform,
    /// Why this host cannot run it.
    pub reason: String,
}

/// The outcome for a whole index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// Matching entries, best first: those with a platform, then those without one, whose config
    /// or own entries must be looked at. containerd looks at the first of all candidates only.
    pub candidates: Vec<usize>,
    /// The entry that containerd's reader looks at, by its rules alone: for the engine's whole
    /// list where an engine is given, else for the wanted one. If the choice is another one, an
    /// image record must point at the manifest, not at the index.
    pub reader_takes: Option<usize>,
    /// One verdict for every offer, in the same order.
    pub entries: Vec<EntryVerdict>,
    /// Set if the engine's own choice is refused by this host.
    pub engine_conflict: Option<EngineConflict>,
}

impl Selection {
    /// The choice, provisional if its [`EntryVerdict::needs_look`] is set.
    pub fn selected(&self) -> Option<usize> {
        self.candidates.first().copied()
    }
}

/// Judges every offer. Pure; the same for every order of equals (index order decides).
pub fn select(
    offers: &[Offer],
    wanted: &Wanted,
    host: Option<&Host>,
    engine: Option<&Platform>,
) -> Selection {
    let candidates = rank::candidates(offers, wanted, rank::Rules::Ours);
    let entries = offers
        .iter()
        .enumerate()
        .map(|(at, offer)| judge(at, offer, offers, wanted, host, &candidates))
        .collect();
    let platforms = engine.map_or_else(|| wanted.platforms.clone(), vector);
    let theirs = Wanted {
        platforms,
        ignore_os_features: wanted.ignore_os_features,
    };
    let reader_takes = rank::candidates(offers, &theirs, rank::Rules::Containerd)
        .first()
        .copied();
    let engine_conflict = engine
        .and(host)
        .and_then(|host| engine_conflict(offers, reader_takes?, host));
    Selection {
        candidates,
        reader_takes,
        entries,
        engine_conflict,
    }
}

fn engine_conflict(offers: &[Offer], entry: usize, host: &Host) -> Option<EngineConflict> {
    let platform = offers.get(entry)?.platform()?;
    let reason = host.disproves(&platform)?;
    Some(EngineConflict {
        entry,
        platform,
        reason,
    })
}

fn judge(
    at: usize,
    offer: &Offer,
    offers: &[Offer],
    wanted: &Wanted,
    host: Option<&Host>,
    candidates: &[usize],
) -> EntryVerdict {
    let platform = offer.platform();
    let say = |verdict, needs_look, reason: String| EntryVerdict {
        platform: platform.clone(),
        verdict,
        reason,
        needs_look,
    };
    let artifact = if offer.kind == OfferKind::Artifact {
        " (an artifact: delivered, not run)"
    } else {
        ""
    };
    if offer.is_attestation() {
        return say(
            Verdict::Skipped,
            false,
            "an attestation about another entry, never run".to_owned(),
        );
    }
    let Some(of) = &platform else {
        return judge_platformless(at, offer, offers, candidates, &say);
    };
    let rank = candidates.iter().position(|candidate| *candidate == at);
    if rank == Some(0) {
        let place = match wanted.platforms().first() {
            Some(best) if best.base() == of.base() => "is what is wanted first",
            _ => "is the best of what is wanted that is offered",
        };
        let caveat = host.and_then(|host| caveat(host, of)).unwrap_or_default();
        let reason = format!("{} {place}{artifact}{caveat}", of.base());
        return say(Verdict::Selected, false, reason);
    }
    if rank.is_some() {
        let winner = candidates
            .first()
            .and_then(|winner| offers.get(*winner)?.platform());
        let reason = match winner {
            Some(winner) if winner == *of => format!(
                "{} as well, but another entry comes before it in the index",
                of.base()
            ),
            Some(winner) => format!("it would do, but {} is preferred", winner.base()),
            None => "it would do, but another entry is preferred".to_owned(),
        };
        return say(Verdict::Runnable, false, reason);
    }
    if of.architecture().is_empty() {
        return say(
            Verdict::Foreign,
            false,
            "it names no architecture, so nothing matches it".to_owned(),
        );
    }
    if let Some(reason) = rank::refused_by_options(of, wanted) {
        return say(Verdict::Foreign, false, reason);
    }
    let Some(host) = host else {
        return say(
            Verdict::Foreign,
            false,
            format!("{} is not wanted", of.base()),
        );
    };
    match host.how(of) {
        Some(runs) if runs.how == How::Emulated => {
            let by = runs.interpreter.as_deref().unwrap_or("an emulator");
            say(
                Verdict::Emulated,
                false,
                format!("this host runs {} under {by} only", of.base()),
            )
        }
        Some(_) => say(
            Verdict::Runnable,
            false,
            format!("this host runs {}, but it is not wanted", of.base()),
        ),
        None => {
            let reason = host
                .disproves(of)
                .unwrap_or_else(|| format!("nothing shows that this host runs {}", of.base()));
            say(Verdict::Foreign, false, reason)
        }
    }
}

/// What to add about a choice that the host's cores do not run.
fn caveat(host: &Host, of: &Platform) -> Option<String> {
    match host.how(of) {
        Some(runs) if runs.how == How::Emulated => Some(format!(
            "; here it runs under {} only",
            runs.interpreter.as_deref().unwrap_or("an emulator")
        )),
        Some(_) => None,
        None => host.disproves(of).map(|reason| format!("; but {reason}")),
    }
}

fn judge_platformless(
    at: usize,
    offer: &Offer,
    offers: &[Offer],
    candidates: &[usize],
    say: &dyn Fn(Verdict, bool, String) -> EntryVerdict,
) -> EntryVerdict {
    if offer.label.is_some() {
        return say(
            Verdict::Skipped,
            false,
            "its platform is empty, so nothing matches it".to_owned(),
        );
    }
    let what = match offer.kind {
        OfferKind::Artifact => {
            return say(
                Verdict::Skipped,
                false,
                "an artifact for no platform in particular".to_owned(),
            );
        }
        OfferKind::Other => {
            return say(
                Verdict::Skipped,
                false,
                "of an unknown media type, and without a platform".to_owned(),
            );
        }
        OfferKind::Index => "its own entries decide",
        OfferKind::Image | OfferKind::Attestation => "its config decides",
    };
    match candidates.first() {
        Some(first) if *first == at => say(
            Verdict::Selected,
            true,
            format!("it has no platform here; {what}"),
        ),
        Some(first)
            if offers
                .get(*first)
                .is_some_and(|winner| winner.label.is_some()) =>
        {
            say(
                Verdict::Skipped,
                true,
                "it has no platform here, and an entry with one fits".to_owned(),
            )
        }
        _ => say(
            Verdict::Skipped,
            true,
            format!("it has no platform here, and is not the first such entry; {what}"),
        ),
    }
}

#[cfg(test)]
mod tests;
