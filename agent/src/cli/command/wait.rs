//! `wait`: until every declared image is here, or nothing but its publisher can help.

use std::{path::Path, time::Duration};

use tokio::time::{Instant, sleep, timeout_at};

use super::{
    super::{Failures, context::Context, output},
    status::{Said, shows_progress},
    told::{Document, Image},
};
use crate::{
    daemon::client::{Client, Listening},
    error::{Error, Result},
    kind::Kind,
};

/// A daemon that is restarted is back by then.
const RESTART: Duration = Duration::from_secs(30);
/// Between two tries to reach it.
const PAUSE: Duration = Duration::from_secs(1);

pub(crate) async fn run(
    context: &Context,
    socket: &Path,
    limit: Option<Duration>,
) -> Result<Failures> {
    let mut document = Document::default();
    let client = Client::new(socket);
    let waited = wait(context, &client, &mut document);
    let ended = match limit.and_then(|limit| Instant::now().checked_add(limit)) {
        Some(end) => timeout_at(end, waited).await,
        None => Ok(waited.await),
    };
    match ended {
        Ok(ended) => ended?,
        Err(_) => return Err(late(&document, limit.unwrap_or_default())),
    }
    let images = document.images();
    let mut failures: Failures = images.iter().filter_map(Image::not_ready).collect();
    for fault in document.faults() {
        output::print_error(&fault);
        failures.push(Kind::Config);
    }
    if context.printer.json() {
        context.printer.document(document.json());
    } else {
        for error in images
            .iter()
            .filter(|i| !i.is_ready())
            .filter_map(Image::error)
        {
            output::print_error(&error);
        }
    }
    Ok(failures)
}

/// Follows what the daemon tells until the end, over its restarts.
async fn wait(context: &Context, client: &Client, document: &mut Document) -> Result<()> {
    // Nobody there is no reason to wait: somebody has to start it.
    client.status(None).await?;
    // What was declared a moment ago is waited for, too. The daemon may be busy, or end just now.
    while let Err(error) = client.reload().await {
        if !error.is_retryable() {
            return Err(error);
        }
        sleep(PAUSE).await;
        drop(again(client).await?);
    }
    let mut events = again(client).await?;
    let mut said = Said::default();
    let shows = shows_progress(context);
    loop {
        if let Ok(Some(told)) = events.next().await {
            let changed = document.take(told);
            if let Some(image) = changed.filter(|_| shows) {
                said.about(&image);
            }
            if is_over(document) {
                return Ok(());
            }
        } else {
            sleep(PAUSE).await;
            events = again(client).await?;
        }
    }
}

/// Listens as soon as the daemon can be listened to.
async fn again(client: &Client) -> Result<Listening> {
    let end = Instant::now() + RESTART;
    loop {
        match client.events().await {
            Ok(events) => return Ok(events),
            Err(error) if Instant::now() >= end => {
                return Err(error.during("the edgepull daemon went away while it was waited for"));
            }
            Err(_) => sleep(PAUSE).await,
        }
    }
}

/// Everything is ready, or lacks an image that only its publisher can make. With nothing
/// declared, the daemon must have looked first.
fn is_over(document: &Document) -> bool {
    let images = document.images();
    if images.is_empty() {
        return document.first_pass_done();
    }
    images
        .iter()
        .all(|image| matches!(image.not_ready(), None | Some(Kind::PlatformMissing)))
}

fn late(document: &Document, limit: Duration) -> Error {
    let images = document.images();
    let open: Vec<&Image> = images.iter().filter(|image| !image.is_ready()).collect();
    let message = if images.is_empty() {
        format!("the daemon has not read its configuration after {limit:?}")
    } else {
        format!(
            "{} of {} images are not ready after {limit:?}",
            open.len(),
            images.len()
        )
    };
    let error = Error::new(Kind::Timeout, message)
        .hint("the daemon goes on; `edgepull status` shows how far it is");
    open.iter().fold(error, |error, image| {
        error.because(format_args!("{} is {}", image.reference, image.words()))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn document(states: &[&str], first_pass_done: bool) -> Document {
        let image = |state: &&str| json!({"reference": state, "state": state});
        let images: Vec<Value> = states.iter().map(image).collect();
        Document::new(json!({"images": images, "first_pass_done": first_pass_done}))
    }

    #[test]
    fn it_is_over_when_only_publishers_can_help() {
        for (states, over) in [
            (&["ready", "ready"][..], true),
            (&["ready", "missing_platform"], true),
            (&["missing_platform"], true),
            (&["ready", "pulling"], false),
            (&["ready", "waiting"], false),
            (&["failed"], false),
        ] {
            assert_eq!(is_over(&document(states, false)), over, "{states:?}");
        }
        assert!(!is_over(&document(&[], false)), "not read yet");
        assert!(is_over(&document(&[], true)));
        assert!(!is_over(&Document::default()));
    }

    #[test]
    fn what_is_late_is_named() {
        let states = document(&["ready", "waiting", "missing_platform"], true);
        let error = late(&states, Duration::from_secs(30));
        assert_eq!(error.kind(), Kind::Timeout);
        assert_eq!(error.message(), "2 of 3 images are not ready after 30s");
        assert_eq!(
            error.causes(),
            ["waiting is waiting", "missing_platform is missing platform"]
        );
    }
}
