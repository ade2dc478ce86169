//! `status` and `sync`: how the declared images stand, and looking at them now.

use std::{
    convert::Infallible,
    io::{self, IsTerminal},
    path::Path,
};

use jiff::Timestamp;

use super::{
    super::{Failures, context::Context, output},
    told::{Document, Image},
};
use crate::{
    daemon::client::{Client, Listening},
    error::Result,
    kind::Kind,
};

/// `status`: the document; with `ready` the exit code says whether all of it is ready.
pub(crate) async fn run(
    context: &Context,
    socket: &Path,
    reference: Option<&str>,
    ready: bool,
) -> Result<Failures> {
    let document = Document::new(Client::new(socket).status(reference).await?);
    print(context, &document);
    if !ready {
        return Ok(Failures::new());
    }
    Ok(document
        .images()
        .iter()
        .filter_map(Image::not_ready)
        .collect())
}

/// `sync`: a pass now. What failed in it is the exit code.
pub(crate) async fn sync(
    context: &Context,
    socket: &Path,
    reference: Option<&str>,
    wait: bool,
) -> Result<Failures> {
    let client = Client::new(socket);
    if !wait {
        let asked = client.sync(reference, false).await?;
        if context.printer.json() {
            context.printer.document(&asked);
        }
        return Ok(Failures::new());
    }
    let done = client.sync(reference, true);
    // Somebody looks on: what is told meanwhile is worth a line. Where others listen already,
    // and there is no room, it is done all the same.
    let events = if shows_progress(context) {
        client.events().await.ok()
    } else {
        None
    };
    let answer = match events {
        Some(mut events) => tokio::select! {
            answer = done => answer,
            never = follow(&mut events) => match never {},
        },
        None => done.await,
    };
    let document = Document::new(answer?);
    print(context, &document);
    let failed = document.images();
    let mut failures: Failures = failed
        .iter()
        .filter_map(|image| image.error().map(|error| error.kind()))
        .collect();
    failures.extend(document.faults().iter().map(|_| Kind::Config));
    Ok(failures)
}

fn print(context: &Context, document: &Document) {
    if context.printer.json() {
        context.printer.document(document.json());
    } else {
        let text = document.text(context.printer, Timestamp::now());
        context.printer.text(&text);
    }
}

/// Whether lines of progress would be read by somebody.
pub(super) fn shows_progress(context: &Context) -> bool {
    !context.global.quiet && io::stderr().is_terminal()
}

/// A line for each change of an image, for ever.
async fn follow(events: &mut Listening) -> Infallible {
    let mut document = Document::default();
    let mut said = Said::default();
    while let Ok(Some(told)) = events.next().await {
        if let Some(image) = document.take(told) {
            said.about(&image);
        }
    }
    std::future::pending().await
}

/// Lines of progress, none of them twice.
#[derive(Debug, Default)]
pub(super) struct Said(std::collections::HashMap<String, String>);

impl Said {
    pub(super) fn about(&mut self, image: &Image) {
        let words = image.words();
        let of = format!(
            "{} ({}, {})",
            image.reference, image.platform, image.namespace
        );
        if self.0.get(&of) != Some(&words) {
            output::warn(&format!("{}: {words}", image.reference));
            self.0.insert(of, words);
        }
    }
}
