//! The daemon's status document as the command line reads it: leniently, since another
//! version of the daemon may have written it.

use std::{fmt::Write as _, time::Duration};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::super::output::{self, Printer};
use crate::{daemon::client::Told, error::Error, kind::Kind};

/// A status document, and what has changed since.
#[derive(Debug, Clone, Default)]
pub(super) struct Document(Map<String, Value>);

/// One image of it.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Image {
    pub(super) reference: String,
    pub(super) platform: String,
    pub(super) namespace: String,
    pub(super) state: String,
    digest: Option<String>,
    pinned: bool,
    since: Option<Timestamp>,
    reason: Option<String>,
    next_try: Option<Timestamp>,
    progress: Option<Progress>,
    error: Option<Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
struct Progress {
    phase: String,
    bytes: u64,
    total: u64,
}

impl Document {
    pub(super) fn new(value: Value) -> Self {
        match value {
            Value::Object(fields) => Self(fields),
            _ => Self::default(),
        }
    }

    /// As the daemon wrote it.
    pub(super) fn json(&self) -> &Map<String, Value> {
        &self.0
    }

    pub(super) fn images(&self) -> Vec<Image> {
        let images = self.0.get("images").and_then(Value::as_array);
        let read = |image: &Value| Image::deserialize(image).ok();
        images.into_iter().flatten().filter_map(read).collect()
    }

    /// Takes in one event; the image that it is about, if it is about one.
    pub(super) fn take(&mut self, told: Told) -> Option<Image> {
        match (told.name.as_str(), told.data) {
            ("status", Value::Object(fields)) => self.0 = fields,
            ("daemon", Value::Object(fields)) => self.0.extend(fields),
            ("gone", gone) => {
                if let Some(images) = self.rows() {
                    images.retain(|image| !same(image, &gone));
                }
            }
            ("image", image) => {
                let read = Image::deserialize(&image).ok();
                let images = self.rows()?;
                match images.iter_mut().find(|known| same(known, &image)) {
                    Some(known) => *known = image,
                    None => images.push(image),
                }
                return read;
            }
            _ => {}
        }
        None
    }

    fn rows(&mut self) -> Option<&mut Vec<Value>> {
        self.0.get_mut("images").and_then(Value::as_array_mut)
    }

    pub(super) fn first_pass_done(&self) -> bool {
        self.0.get("first_pass_done") == Some(&Value::Bool(true))
    }

    /// What is wrong with the daemon's configuration.
    pub(super) fn faults(&self) -> Vec<Error> {
        let faults = self.0.get("faults").and_then(Value::as_array);
        let faults = faults.into_iter().flatten();
        faults.filter_map(Error::from_json).collect()
    }

    /// What people read: how the daemon is, its images, and what failed.
    pub(super) fn text(&self, printer: Printer, now: Timestamp) -> String {
        let mut text = String::new();
        let word = |key: &str| self.0.get(key).and_then(Value::as_str);
        if let Some(reason) = word("paused") {
            let _ = writeln!(text, "paused: {}", output::plain(reason));
        }
        if let Some(error) = self.0.get("engine_error").and_then(Error::from_json) {
            text.push_str(&failure("containerd", &error));
        }
        for fault in self.faults() {
            text.push_str(&failure("configuration", &fault));
        }
        let refused = self.0.get("refused_starts").and_then(Value::as_array);
        for row in refused.into_iter().flatten().filter(|row| row.is_object()) {
            text.push_str(&refused_start(row));
        }
        let images = self.images();
        if images.is_empty() {
            text.push_str("no images are declared below /etc/edgepull/images.d\n");
            return text;
        }
        let rows: Vec<Vec<String>> = images.iter().map(|image| image.row(now)).collect();
        let head = [
            "REFERENCE",
            "PLATFORM",
            "STATE",
            "DIGEST",
            "PIN",
            "SINCE",
            "NEXT",
        ];
        let table = output::table(&head, &rows);
        match table.split_once('\n') {
            Some((head, rows)) => {
                let _ = write!(text, "{}\n{rows}", printer.bold(head));
            }
            None => text.push_str(&table),
        }
        for image in &images {
            if let Some(error) = image.error() {
                text.push_str(&failure(&image.reference, &error));
            }
        }
        text
    }
}

/// `refused container ID (NAMESPACE), 3 times: why`.
fn refused_start(row: &Value) -> String {
    let word = |key: &str| row.get(key).and_then(Value::as_str).unwrap_or_default();
    let what = match (word("pod"), word("container")) {
        ("", container) => format!("container {container}"),
        (pod, _) => format!("a container of pod {pod}"),
    };
    let times = match row.get("count").and_then(Value::as_u64) {
        None | Some(1) => String::new(),
        Some(count) => format!(", {count} times"),
    };
    let line = format!(
        "not started: {what} ({}){times}: {}",
        word("namespace"),
        word("message")
    );
    format!("{}\n", output::plain(&line))
}

fn same(one: &Value, other: &Value) -> bool {
    ["reference", "platform", "namespace"]
        .iter()
        .all(|key| one.get(key) == other.get(key))
}

/// A failure as part of an answer, not as one of ours.
fn failure(of: &str, error: &Error) -> String {
    let rendered = output::render_error(error);
    let rest = rendered.strip_prefix("error: ").unwrap_or(&rendered);
    let mut text = format!("\n{}: ", output::plain(of));
    for line in rest.lines() {
        let _ = writeln!(text, "{line}");
    }
    text
}

impl Image {
    pub(super) fn is_ready(&self) -> bool {
        self.state == "ready"
    }

    pub(super) fn error(&self) -> Option<Error> {
        self.error.as_ref().and_then(Error::from_json)
    }

    /// Why it is not ready; `None` if it is. What has not failed is late, no more.
    pub(super) fn not_ready(&self) -> Option<Kind> {
        match self.state.as_str() {
            "ready" => None,
            "missing_platform" => Some(Kind::PlatformMissing),
            _ => Some(self.error().map_or(Kind::Timeout, |error| error.kind())),
        }
    }

    /// How it stands, in a few words.
    pub(super) fn words(&self) -> String {
        if let Some(progress) = &self.progress {
            return progress.words();
        }
        let why = match self.error() {
            Some(error) => Some(error.message().to_owned()),
            None => self.reason.clone(),
        };
        let state = self.state.replace('_', " ");
        match why {
            Some(why) => format!("{state}: {why}"),
            None => state,
        }
    }

    fn row(&self, now: Timestamp) -> Vec<String> {
        let digest = self.digest.as_deref().unwrap_or("-");
        // `sha256:` and twelve digits, as everywhere.
        let digest = digest.chars().take(19).collect();
        let next = match (&self.progress, self.next_try) {
            (Some(progress), _) => progress.words(),
            (None, Some(next)) if next > now => format!("in {}", span(now, next)),
            (None, Some(_)) => "now".to_owned(),
            (None, None) => String::new(),
        };
        let next = match (&self.reason, next.is_empty()) {
            (Some(reason), true) => reason.clone(),
            (Some(reason), false) => format!("{next} ({reason})"),
            (None, _) => next,
        };
        vec![
            self.reference.clone(),
            self.platform.clone(),
            self.state.clone(),
            digest,
            if self.pinned { "pinned" } else { "" }.to_owned(),
            self.since.map_or(String::new(), |since| span(since, now)),
            next,
        ]
    }
}

impl Progress {
    fn words(&self) -> String {
        if self.total == 0 {
            return self.phase.clone();
        }
        let (bytes, total) = (output::bytes(self.bytes), output::bytes(self.total));
        format!("{} {bytes} of {total}", self.phase)
    }
}

/// A length of time for people: `45s`, `12m`, `3h`, `5d`.
fn span(from: Timestamp, to: Timestamp) -> String {
    let seconds = u64::try_from(to.as_second().saturating_sub(from.as_second())).unwrap_or(0);
    let seconds = Duration::from_secs(seconds).as_secs();
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(name: &str, data: Value) -> Told {
        Told {
            name: name.to_owned(),
            data,
        }
    }

    fn image(name: &str, state: &str) -> Value {
        json!({"reference": name, "platform": "host", "namespace": "n", "state": state})
    }

    #[test]
    fn events_change_the_document() {
        let mut document = Document::default();
        // Before the document there is nothing to change.
        assert_eq!(document.take(told("image", image("x", "ready"))), None);
        document.take(told(
            "status",
            json!({"schema": "edgepull.status/1", "images": [image("a", "waiting")]}),
        ));
        let changed = document.take(told("image", image("a", "ready")));
        assert!(changed.is_some_and(|image| image.is_ready()));
        document.take(told("image", image("b", "failed")));
        document.take(told("gone", image("a", "whatever")));
        document.take(told("daemon", json!({"first_pass_done": true})));
        document.take(told("work", json!({"event": "syncing"})));
        document.take(told("news", json!(7)));
        assert!(document.first_pass_done());
        document.take(told(
            "daemon",
            json!({"refused_starts": [{"container": "c1", "pod": null, "namespace": "default",
                "message": "cannot\nrun here", "count": 2}, 7]}),
        ));
        let printer = Printer {
            output: super::super::super::args::Output::Text,
            colour: false,
        };
        let text = document.text(printer, Timestamp::UNIX_EPOCH);
        assert_eq!(text.matches("not started").count(), 1, "{text}");
        assert!(
            text.contains("not started: container c1 (default), 2 times: cannot\\nrun here\n"),
            "{text}"
        );
        let left: Vec<String> = document.images().into_iter().map(|i| i.reference).collect();
        assert_eq!(left, ["b"]);
        assert_eq!(document.json()["schema"], "edgepull.status/1");
    }

    #[test]
    fn people_read_a_table_and_what_failed() {
        let now: Timestamp = "2026-01-01T12:00:00Z".parse().expect("a time");
        let mut ready = image("r/a:1", "ready");
        ready["digest"] = json!(format!("sha256:{}", "0".repeat(64)));
        ready["pinned"] = json!(true);
        ready["since"] = json!("2026-01-01T09:00:00Z");
        ready["next_try"] = json!("2026-01-01T12:05:00Z");
        let mut pulling = image("r/b:1", "pulling");
        pulling["progress"] = json!({"phase": "fetching", "bytes": 1024, "total": 2048});
        let mut missing = image("r/c:1", "missing_platform");
        let error = Error::new(Kind::PlatformMissing, "nothing\u{1b}[2J fits").platforms(
            vec!["linux/arm64".to_owned()],
            vec!["linux/amd64".to_owned()],
        );
        missing["error"] = serde_json::to_value(&error).expect("plain data");
        let document = Document::new(json!({
            "paused": "memory is short",
            "images": [ready, pulling, missing],
        }));
        let printer = Printer {
            output: super::super::super::args::Output::Text,
            colour: false,
        };
        assert_eq!(
            document.text(printer, now),
            "paused: memory is short\n\
             REFERENCE  PLATFORM  STATE             DIGEST               PIN     SINCE  NEXT\n\
             r/a:1      host      ready             sha256:000000000000  pinned  3h     in 5m\n\
             r/b:1      host      pulling           -                                   fetching 1.0 KiB of 2.0 KiB\n\
             r/c:1      host      missing_platform  -\n\
             \nr/c:1: nothing\\u{1b}[2J fits\nwanted: linux/arm64\noffered: linux/amd64\n"
        );
        let none = Document::new(json!({"images": []})).text(printer, now);
        assert!(none.contains("no images are declared"), "{none}");
    }

    #[test]
    fn what_is_not_ready_has_a_kind() {
        let kind = |value: Value| Image::deserialize(value).expect("an image").not_ready();
        assert_eq!(kind(image("a", "ready")), None);
        assert_eq!(kind(image("a", "waiting")), Some(Kind::Timeout));
        assert_eq!(
            kind(image("a", "missing_platform")),
            Some(Kind::PlatformMissing)
        );
        assert_eq!(kind(image("a", "of a later version")), Some(Kind::Timeout));
        let mut failed = image("a", "failed");
        failed["error"] = json!({"kind": "no_space", "message": "full"});
        assert_eq!(kind(failed), Some(Kind::NoSpace));
    }
}
