//! What to say when nothing fits: why this host wants what it wants, what is offered,
//! and what would help.

use edgepull_platform::{Host, Offer, OfferKind, explain_missing};

use super::Want;
use crate::{
    error::Error,
    kind::Kind,
    oci::{Document, DocumentKind},
};

/// The typed failure when nothing fits.
pub(super) fn missing(offers: &[Offer], want: &Want, root: &Document) -> Error {
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
    if matches!(root.kind, DocumentKind::Index(_)) && is_left_out(offers, want) {
        error = error.because(
            "an index has what its publisher's tools put into it: a build that failed, or a tool that skips what it does not find (manifest-tool's `--ignore-missing`), leaves a platform out without a word",
        );
    }
    error = error.platforms(told.wanted, told.offered).hint(told.hint);
    if let Some(host) = host {
        error = error.host(host);
    }
    error.platform(&want.asked)
}

/// Whether the index has images for the same system, and for other machines only.
fn is_left_out(offers: &[Offer], want: &Want) -> bool {
    let Some(best) = want.wanted.platforms().first() else {
        return false;
    };
    let mut images = offers
        .iter()
        .filter(|offer| offer.kind == OfferKind::Image)
        .filter_map(Offer::platform)
        .filter(|platform| platform.os() == best.os())
        .peekable();
    images.peek().is_some() && images.all(|it| it.architecture() != best.architecture())
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
