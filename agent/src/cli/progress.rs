//! Progress as a fold over events: bars on a terminal, plain lines, or JSON lines.

use std::{
    collections::HashMap,
    io::{self, IsTerminal, Write},
    sync::Mutex,
};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{args::Progress, output};
use crate::{
    event::{Event, Events, Observer},
    oci::Digest,
};

/// Chooses what listens to the work.
pub(crate) fn observer(choice: Progress, quiet: bool) -> Events {
    match choice {
        Progress::None => Events::none(),
        Progress::Json => Events::new(JsonLines),
        _ if quiet => Events::none(),
        Progress::Auto if io::stderr().is_terminal() => Events::new(Bars::new()),
        Progress::Auto | Progress::Plain => Events::new(PlainLines::default()),
    }
}

/// Every event as one JSON line on stderr.
struct JsonLines;

impl Observer for JsonLines {
    fn observe(&self, event: &Event) {
        output::json_line(event);
    }
}

/// One line per state change, none per chunk: fit for a journal.
#[derive(Default)]
struct PlainLines(Mutex<HashMap<(String, Digest), u64>>);

impl Observer for PlainLines {
    fn observe(&self, event: &Event) {
        let line = match event {
            Event::Resolving { reference } => format!("{reference}: resolving"),
            Event::Resolved {
                reference,
                manifest,
                platform,
                ..
            } => {
                format!("{reference}: {platform} is {}", manifest.short())
            }
            Event::Planned {
                reference,
                layers,
                bytes_to_fetch,
                bytes_present,
            } => format!(
                "{reference}: {layers} layers, {} to fetch, {} already here",
                output::bytes(*bytes_to_fetch),
                output::bytes(*bytes_present)
            ),
            Event::BlobStarted {
                reference,
                digest,
                size,
                offset,
            } if *offset > 0 => format!(
                "{reference}: {} resumed at {} of {}",
                digest.short(),
                output::bytes(*offset),
                output::bytes(*size)
            ),
            Event::BlobStarted { .. } | Event::BlobProgress { .. } | Event::Unpacking { .. } => {
                return;
            }
            Event::BlobDone {
                reference,
                digest,
                size,
                reused,
            } => format!(
                "{reference}: {} {} ({})",
                digest.short(),
                if *reused { "already here" } else { "fetched" },
                output::bytes(*size)
            ),
            Event::BlobWaiting { reference, digest } => {
                format!(
                    "{reference}: {} is being fetched by another client, waiting",
                    digest.short()
                )
            }
            Event::Unpacked {
                reference,
                digest,
                reused,
            } => {
                if *reused {
                    return;
                }
                format!("{reference}: {} unpacked", digest.short())
            }
            Event::Syncing { reference } => format!("{reference}: syncing to disk"),
            Event::Warning { reference, message } => format!("warning: {reference}: {message}"),
            Event::Finished { reference, ok } => {
                if !ok {
                    return;
                }
                format!("{reference}: done")
            }
        };
        // Repeats (several waits for one blob) say nothing new.
        if let (Event::BlobWaiting { reference, digest }, Ok(mut said)) = (event, self.0.lock()) {
            let count = said.entry((reference.clone(), digest.clone())).or_default();
            *count += 1;
            if *count > 1 {
                return;
            }
        }
        output::warn(&line);
    }
}

/// A bar for each blob in flight and one for the total, with rate and time left.
struct Bars {
    all: MultiProgress,
    state: Mutex<BarState>,
}

#[derive(Default)]
struct BarState {
    total: Option<ProgressBar>,
    blobs: HashMap<Digest, ProgressBar>,
}

const BAR: &str = "{prefix:<20!} [{bar:28}] {bytes:>10}/{total_bytes:<10} {msg}";
const TOTAL: &str = "{prefix:<20!} [{bar:28}] {bytes:>10}/{total_bytes:<10} {bytes_per_sec:>12} {eta:>4} left {msg}";

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

impl Bars {
    fn new() -> Self {
        // Ten times a second is smooth for people and cheap for a small core.
        Self {
            all: MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)),
            state: Mutex::default(),
        }
    }
}

impl Observer for Bars {
    fn observe(&self, event: &Event) {
        let Ok(mut state) = self.state.lock() else {
            return;
        };
        match event {
            Event::Resolving { reference } => {
                let _ = self.all.println(format!("{reference}: resolving"));
            }
            Event::Resolved {
                reference,
                manifest,
                platform,
                ..
            } => {
                let line = format!("{reference}: {platform} is {}", manifest.short());
                let _ = self.all.println(output::plain(&line));
            }
            Event::Planned {
                bytes_to_fetch,
                layers,
                ..
            } => {
                if *bytes_to_fetch > 0 {
                    let bar = self.all.add(ProgressBar::new(*bytes_to_fetch));
                    bar.set_style(style(TOTAL));
                    bar.set_prefix(format!("total, {layers} layers"));
                    state.total = Some(bar);
                }
            }
            Event::BlobStarted {
                digest,
                size,
                offset,
                ..
            } => {
                let bar = self.all.insert(0, ProgressBar::new(*size));
                bar.set_style(style(BAR));
                bar.set_prefix(digest.short());
                bar.set_position(*offset);
                state.blobs.insert(digest.clone(), bar);
            }
            Event::BlobProgress { digest, bytes, .. } => {
                if let Some(bar) = state.blobs.get(digest) {
                    bar.inc(*bytes);
                }
                if let Some(total) = &state.total {
                    total.inc(*bytes);
                }
            }
            Event::BlobWaiting { digest, .. } => {
                if let Some(bar) = state.blobs.get(digest) {
                    bar.set_message("waiting for another client");
                }
            }
            Event::BlobDone { digest, reused, .. } => {
                if let Some(bar) = state.blobs.get(digest)
                    && !reused
                {
                    bar.set_message("fetched");
                }
            }
            Event::Unpacking { digest, .. } => {
                if let Some(bar) = state.blobs.get(digest) {
                    bar.set_message("unpacking");
                }
            }
            Event::Unpacked { digest, .. } => {
                if let Some(bar) = state.blobs.remove(digest) {
                    bar.finish_and_clear();
                }
            }
            Event::Syncing { .. } => {
                if let Some(total) = &state.total {
                    total.set_message("syncing");
                }
            }
            Event::Warning { reference, message } => {
                let line = format!("warning: {reference}: {message}");
                let _ = self.all.println(output::plain(&line));
            }
            Event::Finished { .. } => {
                for (_, bar) in state.blobs.drain() {
                    bar.finish_and_clear();
                }
                if let Some(total) = state.total.take() {
                    total.finish_and_clear();
                }
                let _ = io::stderr().flush();
            }
        }
    }
}
