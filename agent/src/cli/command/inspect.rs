//! `inspect` and `explain`: what a reference offers, and why each entry is or is not for this host.

use std::fmt::Write as _;

use edgepull_platform::{OfferKind, Verdict, Wanted};
use serde::Serialize;

use super::super::{
    Failures,
    args::Look,
    context::{Context, Target},
    output,
};
use crate::{
    asked::{Asked, parse_platform},
    error::{Error, Result},
    kind::Kind,
    oci::{Digest, MediaType},
    resolve::{Entry, Resolution, Want, resolve},
    session::Attached,
};

#[derive(Serialize)]
struct Document<'a> {
    schema: &'static str,
    reference: &'a str,
    /// What was wanted: `host`, or `--platform`.
    platform: &'a str,
    selected_platform: Option<String>,
    namespace: Option<&'a str>,
    snapshotter: Option<&'a str>,
    digest: &'a Digest,
    media_type: &'a MediaType,
    entries: &'a [Entry],
    selected: Option<&'a Digest>,
    selected_leaf: Option<&'a Digest>,
    wanted: Vec<String>,
    error: Option<&'a Error>,
}

pub(crate) async fn run(context: &Context, look: &Look, explain: bool) -> Result<Failures> {
    let (want, attached) = want(context, look).await?;
    let target = context.target(&look.reference).await?;
    let resolution = look_up(&target, &want).await?;
    if context.printer.json() {
        let attached = attached.as_ref();
        context.printer.document(&Document {
            schema: "edgepull.inspect/1",
            reference: target.typed(),
            platform: &want.asked,
            selected_platform: resolution
                .outcome
                .as_ref()
                .ok()
                .and_then(|c| c.platform.as_ref())
                .map(ToString::to_string),
            namespace: attached.map(|a| a.profile.namespace.as_str()),
            snapshotter: attached.map(|a| a.snapshotter.as_str()),
            digest: &resolution.root.descriptor.digest,
            media_type: &resolution.root.descriptor.media_type,
            entries: &resolution.entries,
            selected: resolution.selected.as_ref(),
            selected_leaf: resolution.selected_leaf(),
            wanted: want
                .wanted
                .platforms()
                .iter()
                .map(ToString::to_string)
                .collect(),
            error: resolution.outcome.as_ref().err(),
        });
    } else {
        context
            .printer
            .text(&text(context, &target, &want, &resolution, explain));
    }
    // Looking succeeded, whatever was found: exit code 0.
    Ok(Failures::new())
}

async fn want(context: &Context, look: &Look) -> Result<(Want, Option<Attached>)> {
    if let Some(text) = &look.platform
        && text != "host"
    {
        if text == "all" {
            return Err(Error::new(
                Kind::Usage,
                "`--platform all` is of no use here: every entry is shown anyway",
            )
            .hint("name one platform to judge the entries for a host of it"));
        }
        // A plain host of that platform, in containerd's order; this machine does not count.
        let platform = parse_platform(text)?;
        let want = Want {
            wanted: Wanted::fallback(&platform),
            host: None,
            engine: None,
            asked: text.clone(),
            variant_best: false,
            probation: false,
        };
        return Ok((want, None));
    }
    let (attached, _) = context.attach_if_alive().await?;
    match context.wants(&[], attached.as_ref(), false)?.pop() {
        Some(Asked::One(want)) => Ok((*want, attached)),
        // An empty list of platforms means the host; there is no other case.
        _ => Err(Error::new(Kind::Internal, "no platform is wanted")),
    }
}

pub(super) async fn look_up(target: &Target, want: &Want) -> Result<Resolution> {
    let named = |error| look_up_failed(target, error);
    let root = target.root().await.map_err(named)?;
    resolve(root, target.source(), want).await.map_err(named)
}

/// Names the reference in a failure to read it.
pub(super) fn look_up_failed(target: &Target, error: Error) -> Error {
    let error = error
        .during(format_args!("cannot look up `{}`", target.typed()))
        .reference(target.typed());
    match target.registry() {
        Some(registry) => error.registry(registry),
        None => error,
    }
}

fn text(
    context: &Context,
    target: &Target,
    want: &Want,
    resolution: &Resolution,
    explain: bool,
) -> String {
    let p = &context.printer;
    let mut out = String::new();
    let _ = writeln!(out, "{} {}", p.bold("reference "), target.typed());
    let _ = writeln!(
        out,
        "{} {}",
        p.bold("digest    "),
        resolution.root.descriptor.digest
    );
    let _ = writeln!(
        out,
        "{} {}",
        p.bold("type      "),
        output::plain(resolution.root.descriptor.media_type.as_str())
    );
    if explain {
        match (&want.host, want.asked.as_str()) {
            (Some(host), "host") => {
                let machine = host
                    .machine
                    .as_deref()
                    .map(|m| format!(", {m}"))
                    .unwrap_or_default();
                let _ = writeln!(out, "{} {}{machine}", p.bold("this host "), host.platform);
            }
            (_, asked) => {
                let _ = writeln!(out, "{} a plain host of {asked}", p.bold("judged for"));
            }
        }
        let order: Vec<String> = want
            .wanted
            .platforms()
            .iter()
            .map(ToString::to_string)
            .collect();
        let _ = writeln!(out, "{} {}", p.bold("looks for "), order.join(" > "));
    }
    out.push('\n');
    let rows: Vec<Vec<String>> = resolution
        .entries
        .iter()
        .map(|entry| {
            vec![
                mark(entry.verdict).to_owned(),
                entry.platform.clone().unwrap_or_else(|| "-".to_owned()),
                kind(entry.kind).to_owned(),
                entry.digest.short(),
                verdict(entry.verdict).to_owned(),
                entry.reason.clone(),
            ]
        })
        .collect();
    out.push_str(&output::table(
        &["", "PLATFORM", "KIND", "DIGEST", "VERDICT", "REASON"],
        &rows,
    ));
    out.push('\n');
    match &resolution.outcome {
        Ok(choice) => {
            let platform = choice
                .platform
                .as_ref()
                .map_or("no platform".to_owned(), ToString::to_string);
            let _ = writeln!(
                out,
                "{} {} ({})",
                p.green("selected"),
                choice.leaf.descriptor.digest,
                output::plain(&platform)
            );
        }
        Err(error) => {
            match &resolution.selected {
                Some(entry) => {
                    let _ = writeln!(out, "{} {entry}", p.green("selected"));
                    let _ = writeln!(
                        out,
                        "but it cannot be used: {}",
                        output::plain(error.message())
                    );
                }
                None => {
                    let _ = writeln!(
                        out,
                        "nothing is selected: {}",
                        output::plain(error.message())
                    );
                }
            }
            if explain {
                for cause in error.causes() {
                    let _ = writeln!(out, "  {}", output::plain(cause));
                }
                if let Some(hint) = error.hint_text() {
                    let _ = writeln!(out, "hint: {}", output::plain(hint));
                }
            }
        }
    }
    out
}

fn mark(verdict: Verdict) -> &'static str {
    if verdict == Verdict::Selected {
        "*"
    } else {
        " "
    }
}

fn kind(kind: OfferKind) -> &'static str {
    match kind {
        OfferKind::Image => "image",
        OfferKind::Artifact => "artifact",
        OfferKind::Attestation => "attestation",
        OfferKind::Index => "index",
        OfferKind::Other => "other",
    }
}

fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Selected => "selected",
        Verdict::Runnable => "runnable",
        Verdict::Emulated => "emulated",
        Verdict::Foreign => "foreign",
        Verdict::Skipped => "skipped",
    }
}
