//! What to say when nothing fits.

use serde::Serialize;

use super::{Offer, OfferKind, Wanted};
use crate::host::{Host, How};
use crate::normalize::{known_spelling, lenient_architecture};
use crate::order::vector;
use crate::platform::{Platform, printable};

/// Nothing fits: what was wanted, what is there, and what would help.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Missing {
    /// What was wanted, best first.
    pub wanted: Vec<String>,
    /// What is offered, in index order; artifacts are marked.
    pub offered: Vec<String>,
    /// The offer that comes nearest.
    pub nearest: Option<String>,
    /// What to do, or why nothing can be done.
    pub hint: String,
}

/// Explains why no offer fits.
pub fn explain_missing(offers: &[Offer], wanted: &Wanted, host: Option<&Host>) -> Missing {
    let listed: Vec<(Platform, OfferKind)> = offers
        .iter()
        .filter(|offer| !offer.is_attestation())
        .filter_map(|offer| Some((offer.platform()?, offer.kind)))
        .collect();
    let (nearest, hint) = nearest(&listed, offers, wanted, host);
    Missing {
        wanted: wanted.platforms().iter().map(ToString::to_string).collect(),
        offered: listed
            .iter()
            .map(|(platform, kind)| shown(platform, *kind))
            .collect(),
        nearest,
        hint,
    }
}

fn shown(platform: &Platform, kind: OfferKind) -> String {
    let mark = if kind == OfferKind::Artifact {
        " (artifact)"
    } else {
        ""
    };
    format!("{}{mark}", platform.described())
}

type Rule = fn(&Platform, &Platform, Option<&Host>) -> Option<String>;

/// The rules, nearest first: offer, best wanted platform, host; a hint if it applies.
const RULES: &[Rule] = &[
    features,
    windows_version,
    spelling,
    level,
    no_aarch32,
    arm_variant,
    emulated,
];

fn nearest(
    listed: &[(Platform, OfferKind)],
    offers: &[Offer],
    wanted: &Wanted,
    host: Option<&Host>,
) -> (Option<String>, String) {
    let say = |hint: &str| (None, hint.to_owned());
    let Some(best) = wanted.platforms().first() else {
        return say("nothing is wanted: the engine's platform accepts nothing that this host runs");
    };
    if offers.is_empty() {
        return say("the index is empty");
    }
    for rule in RULES {
        for (platform, kind) in listed
            .iter()
            .filter(|(_, kind)| *kind != OfferKind::Artifact)
        {
            if let Some(hint) = rule(platform, best, host) {
                return (Some(shown(platform, *kind)), hint);
            }
        }
    }
    let images = listed
        .iter()
        .filter(|(_, kind)| *kind != OfferKind::Artifact);
    let mut bases: Vec<_> = images
        .clone()
        .map(|(platform, _)| platform.base())
        .collect();
    bases.dedup();
    if let Some((platform, kind)) = listed.iter().find(|(_, kind)| *kind == OfferKind::Artifact)
        && bases.is_empty()
    {
        let hint = format!("only artifacts are offered; ask for one by its platform, {platform}");
        return (Some(shown(platform, *kind)), hint);
    }
    if bases.is_empty() {
        return say("no entry names a platform, and none turned out to fit");
    }
    if images
        .clone()
        .all(|(platform, _)| platform.os() == "windows")
    {
        return say("only Windows images are offered");
    }
    if !images
        .clone()
        .any(|(platform, _)| platform.os() == best.os())
    {
        return say(&format!("nothing for {} is offered", best.os()));
    }
    match bases.as_slice() {
        [only] => say(&format!(
            "this image is built for {only} alone; its publisher would have to build it for {} as well",
            best.base()
        )),
        _ => say(&format!(
            "its publisher would have to build it for {} as well",
            best.base()
        )),
    }
}

fn features(offer: &Platform, best: &Platform, _: Option<&Host>) -> Option<String> {
    if offer.base() != best.base() || offer.os() == "windows" {
        return None;
    }
    let lacking: Vec<_> = offer
        .os_features()
        .iter()
        .filter(|f| !best.os_features().contains(*f))
        .cloned()
        .collect();
    if lacking.is_empty() {
        return None;
    }
    let lacking = printable(&lacking.join(", "));
    Some(format!(
        "it demands os.features ({lacking}), which containerd compares since 2.3"
    ))
}

fn windows_version(offer: &Platform, best: &Platform, _: Option<&Host>) -> Option<String> {
    (offer.os() == "windows" && offer.base() == best.base()).then(|| {
        format!(
            "the Windows builds differ: {} is offered",
            offer.described()
        )
    })
}

fn spelling(offer: &Platform, best: &Platform, _: Option<&Host>) -> Option<String> {
    if offer.os() != best.os() || offer.architecture().is_empty() {
        return None;
    }
    let known = known_spelling(offer.architecture(), offer.variant())
        .map(|variant| offer.with(offer.architecture(), &variant))
        .or_else(|| {
            let (architecture, implied) = lenient_architecture(offer.architecture())?;
            let typed = offer.variant();
            let variant = if typed.is_empty() {
                implied.as_str()
            } else {
                typed
            };
            (architecture != offer.architecture()).then(|| offer.with(&architecture, variant))
        })
        .filter(|known| vector(best).contains(known))?;
    Some(format!(
        "`{}` is an unusual spelling of {}, which no engine understands; its publisher should correct the index",
        offer.base(),
        known.base()
    ))
}

fn level(offer: &Platform, best: &Platform, host: Option<&Host>) -> Option<String> {
    if offer.os() != best.os() || offer.architecture() != best.architecture() {
        return None;
    }
    let needs = offer.variant();
    match offer.architecture() {
        "amd64" if matches!(needs, "v2" | "v3" | "v4") => {
            Some(match host.and_then(|host| host.cpu_level.as_deref()) {
                Some(level) if level >= needs => format!(
                    "this CPU is of level {level} and would run {}, but the engine does not look for it: ask for it by name",
                    offer.base()
                ),
                Some(level) => format!(
                    "{} needs a CPU of level {needs}; this one is of level {level}",
                    offer.base()
                ),
                None => format!("{} needs a CPU of level {needs}", offer.base()),
            })
        }
        "arm64" if !needs.is_empty() => Some(format!(
            "only {} is offered; engines look for linux/arm64 without a variant",
            offer.base()
        )),
        _ => None,
    }
}

fn no_aarch32(offer: &Platform, best: &Platform, host: Option<&Host>) -> Option<String> {
    if offer.os() != best.os() || (offer.architecture(), best.architecture()) != ("arm", "arm64") {
        return None;
    }
    match host {
        Some(host) if host.aarch32_el0 == Some(true) => Some(format!(
            "this host runs {} in 32-bit mode: ask for it by name",
            offer.base()
        )),
        Some(host) if host.aarch32_el0.is_none() => Some(
            "32-bit Arm is offered, but nothing shows that this host has a 32-bit Arm mode"
                .to_owned(),
        ),
        Some(host) if host.how(offer).is_none() => Some(
            "32-bit Arm is offered, but this host's cores or kernel have no 32-bit Arm mode"
                .to_owned(),
        ),
        Some(_) => None,
        None => Some(format!(
            "32-bit Arm is offered: ask for it by name, {}, if the host has a 32-bit mode",
            offer.base()
        )),
    }
}

fn arm_variant(offer: &Platform, best: &Platform, host: Option<&Host>) -> Option<String> {
    if offer.os() != best.os() {
        return None;
    }
    match (offer.architecture(), best.architecture()) {
        ("arm", "arm") if matches!(offer.variant(), "v6" | "v7" | "v8") && offer.variant() > best.variant() => Some(
            format!("{} is offered, which is more than {} can run", offer.base(), best.base()),
        ),
        ("arm64", "arm") if host.is_some_and(|host| host.kernel == "arm64") => Some(
            "64-bit Arm is offered and this kernel would run it, but this userland and its engine are 32-bit".to_owned(),
        ),
        _ => None,
    }
}

fn emulated(offer: &Platform, _: &Platform, host: Option<&Host>) -> Option<String> {
    let runs = host?.how(offer).filter(|runs| runs.how == How::Emulated)?;
    let by = runs.interpreter.as_deref().unwrap_or("an emulator");
    Some(format!(
        "{} would run here, slowly, under {by}: ask for it by name",
        offer.base()
    ))
}
