//! Which entries match a wanted list, best first.

use std::cmp::Reverse;

use super::{Offer, OfferKind, Wanted};
use crate::platform::{Platform, printable};

/// Windows releases with long-term service, whose images newer hosts up to the next one run.
const LTSC: &[u16] = &[20348, 26100];

/// Whose rules decide what is a candidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rules {
    /// No attestations; without a platform only images and indexes.
    Ours,
    /// The label alone; everything without a platform.
    Containerd,
}

/// The indices of matching entries, best first; ties keep index order; entries without a
/// platform come last.
pub(super) fn candidates(offers: &[Offer], wanted: &Wanted, rules: Rules) -> Vec<usize> {
    let mut ranked = Vec::new();
    let mut platformless = Vec::new();
    for (at, offer) in offers.iter().enumerate() {
        if rules == Rules::Ours && offer.is_attestation() {
            continue;
        }
        if offer.label.is_none() {
            if rules == Rules::Containerd
                || matches!(offer.kind, OfferKind::Image | OfferKind::Index)
            {
                platformless.push(at);
            }
        } else if let Some(platform) = offer.platform()
            && let Some(slot) = slot(&platform, wanted)
        {
            ranked.push((at, slot, platform));
        }
    }
    ranked.sort_by_cached_key(|(_, slot, platform)| {
        // On Windows the higher version goes first, compared as text like containerd does;
        // elsewhere more features go first, where features count at all.
        let version = if platform.os() == "windows" {
            platform.os_version().unwrap_or_default()
        } else {
            ""
        };
        let features = if wanted.ignore_os_features {
            0
        } else {
            features(platform).count()
        };
        (*slot, Reverse((version.to_owned(), features)))
    });
    ranked
        .into_iter()
        .map(|(at, ..)| at)
        .chain(platformless)
        .collect()
}

/// The place in the wanted list that an offer fills.
fn slot(offer: &Platform, wanted: &Wanted) -> Option<usize> {
    wanted.platforms().iter().position(|want| {
        names_match(offer, want)
            && version_matches(offer, want)
            && (wanted.ignore_os_features || has_features(offer, want))
    })
}

fn names_match(offer: &Platform, want: &Platform) -> bool {
    !offer.architecture().is_empty()
        && offer.os() == want.os()
        && offer.architecture() == want.architecture()
        && offer.variant() == want.variant()
}

/// The features that an entry demands. `win32k` is none: containerd strips it.
fn features(platform: &Platform) -> impl Iterator<Item = &String> {
    let windows = platform.os() == "windows";
    platform
        .os_features()
        .iter()
        .filter(move |feature| !(windows && *feature == "win32k"))
}

fn has_features(offer: &Platform, want: &Platform) -> bool {
    features(offer).all(|feature| want.os_features().contains(feature))
}

/// Versions count on Windows only, and only where both sides have one.
fn version_matches(offer: &Platform, want: &Platform) -> bool {
    match (offer.os(), want.os_version(), offer.os_version()) {
        ("windows", Some(host), Some(image)) => windows_runs(host, image),
        _ => true,
    }
}

fn windows_runs(host: &str, image: &str) -> bool {
    let (Some(host), Some(image)) = (build(host), build(image)) else {
        return false;
    };
    if (host.0, host.1) != (image.0, image.1) {
        return false;
    }
    let Some(first) = LTSC.first() else {
        return false;
    };
    if host.2 < *first {
        return host.2 == image.2;
    }
    let oldest = LTSC
        .iter()
        .rev()
        .find(|release| host.2 > **release)
        .unwrap_or(first);
    (*oldest..=host.2).contains(&image.2)
}

/// Major, minor and build.
fn build(version: &str) -> Option<(u8, u8, u16)> {
    let mut parts = version.split('.');
    Some((
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
        parts.next()?.parse().ok()?,
    ))
}

/// Why an entry that is wanted by its names is not a candidate all the same.
pub(super) fn refused_by_options(offer: &Platform, wanted: &Wanted) -> Option<String> {
    let want = wanted
        .platforms()
        .iter()
        .find(|want| names_match(offer, want))?;
    if !version_matches(offer, want) {
        let (image, host) = (
            offer.os_version().unwrap_or_default(),
            want.os_version().unwrap_or_default(),
        );
        let image = printable(image);
        return Some(format!(
            "a Windows {host} host does not run images for Windows {image}"
        ));
    }
    let missing: Vec<_> = features(offer)
        .filter(|feature| !want.os_features().contains(*feature))
        .cloned()
        .collect();
    if wanted.ignore_os_features || missing.is_empty() {
        return None;
    }
    let missing = printable(&missing.join(", "));
    Some(format!(
        "it demands os.features ({missing}) that the wanted platform does not have"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_builds() {
        for (host, runs, not) in [
            ("10.0.17763", "10.0.17763.1", "10.0.20348"),
            (
                "10.0.20348.9",
                "10.0.20348",
                "10.0.17763 10.0.22621 10.0.26100 9.0.20348",
            ),
            ("10.0.22621", "10.0.20348", "10.0.17763"),
            ("10.0.25398", "10.0.20348", "10.0.17763"),
            (
                "10.0.26100",
                "10.0.20348 10.0.22621 10.0.26100",
                "10.0.17763 10.0.26200 x 10.0",
            ),
            ("10.0.26200", "10.0.26100 10.0.26200", "10.0.20348"),
        ] {
            for image in runs.split(' ') {
                assert!(windows_runs(host, image), "{host} runs {image}");
            }
            for image in not.split(' ') {
                assert!(!windows_runs(host, image), "{host} does not run {image}");
            }
        }
    }
}
