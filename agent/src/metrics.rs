//! What Prometheus is told: a fold over the outcomes of the work, and how each image
//! stands when it asks. Names and labels are those of `docs/metrics.md`; label values come
//! from closed or bounded sets.

mod text;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, OpenOptions, Permissions},
    io::{self, Write as _},
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use edgepull_platform::{Host, starts};
use jiff::Timestamp;

use self::text::Text;
use crate::{
    error::{Error, Result},
    kind::Kind,
    pull::{Bytes, Status},
};

/// The `Content-Type` of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Upper bounds of the duration's buckets, in seconds: from a small update on a fast link
/// to a large image on a slow one.
const BUCKETS: [u32; 11] = [1, 2, 5, 10, 30, 60, 120, 300, 900, 1800, 3600];

/// Different registries, which come from outside; what is beyond them is `other`.
const MOST_VALUES: usize = 64;
/// Different answers of theirs: a registry that makes statuses up gets no series for each.
const MOST_CODES: usize = 32;
/// Reasons of refused starts, which another program sends.
const MOST_REASONS: usize = 32;
const LONGEST_REASON: usize = 32;
const OTHER: &str = "other";
const PULLED: &str = "pulled";
const PRESENT: &str = "present";

/// How one image stands, for its own series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    pub reference: String,
    pub platform: String,
    pub namespace: String,
    pub ready: bool,
    pub platform_missing: bool,
    pub last_success: Option<Timestamp>,
}

/// The counters of this process, to be cloned freely.
#[derive(Debug, Clone)]
pub struct Metrics(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    host: Vec<(&'static str, String)>,
    version: String,
    pulls: BTreeMap<&'static str, u64>,
    durations: [u64; BUCKETS.len()],
    duration_count: u64,
    duration_sum: Duration,
    resumed: u64,
    written: u64,
    bytes: BTreeMap<(String, String), u64>,
    requests: BTreeMap<(String, String), u64>,
    remaining: BTreeMap<String, u64>,
    refused: BTreeMap<String, u64>,
    reconciled: Option<Timestamp>,
}

impl Metrics {
    pub fn new(host: &Host, version: &str) -> Self {
        let labels = vec![
            ("os", host.os.clone()),
            ("arch", host.architecture.clone()),
            ("variant", host.variant.clone()),
            (
                "page_size",
                host.page_size
                    .map_or(String::new(), |size| size.to_string()),
            ),
            ("cpu_level", host.cpu_level.clone().unwrap_or_default()),
            ("machine", host.machine.clone().unwrap_or_default()),
        ];
        // A counter that is born with its first event has not risen, and no alert sees that.
        let kinds = Kind::ALL.into_iter().map(Kind::name);
        let results = [PULLED, PRESENT].into_iter().chain(kinds);
        let reasons = starts::reasons().map(str::to_owned);
        Self(Arc::new(Mutex::new(Inner {
            host: labels,
            version: version.to_owned(),
            pulls: results.map(|result| (result, 0)).collect(),
            refused: reasons.map(|reason| (reason, 0)).collect(),
            ..Inner::default()
        })))
    }

    /// One try to pull an image has ended. The duration counts where something was pulled:
    /// failures and images that were there would say nothing about the link.
    pub fn pull_ended(&self, ended: Result<Status, Kind>, took: Duration) {
        let mut inner = self.lock();
        let result = match ended {
            Ok(Status::Pulled) => PULLED,
            Ok(Status::Present) => PRESENT,
            Err(kind) => kind.name(),
        };
        *inner.pulls.entry(result).or_default() += 1;
        if ended == Ok(Status::Pulled) {
            inner.duration_count += 1;
            inner.duration_sum = inner.duration_sum.saturating_add(took);
            for (bucket, bound) in inner.durations.iter_mut().zip(BUCKETS) {
                if took <= Duration::from_secs(bound.into()) {
                    *bucket += 1;
                }
            }
        }
    }

    /// An image was compared with its layers and found damaged, whether or not that was mended.
    pub fn found_damaged(&self) {
        let result = Kind::StoreDamaged.name();
        *self.lock().pulls.entry(result).or_default() += 1;
    }

    /// What work put into the store, however it ended.
    pub fn stored(&self, bytes: Bytes) {
        let mut inner = self.lock();
        inner.resumed = inner.resumed.saturating_add(bytes.resumed);
        inner.written = inner.written.saturating_add(bytes.written);
    }

    /// `count` more requests to `registry` were answered with `code`: an HTTP status, or
    /// `error` where there was no answer.
    pub fn requests(&self, registry: &str, code: &str, count: u64) {
        add(&mut self.lock().requests, registry, code, count);
    }

    /// `count` more bytes of images of `registry` came from `source`.
    pub fn bytes(&self, registry: &str, source: &str, count: u64) {
        add(&mut self.lock().bytes, registry, source, count);
    }

    /// What `registry` said is left of its limit.
    pub fn rate_limit_remaining(&self, registry: &str, remaining: u64) {
        let mut inner = self.lock();
        let known = inner.remaining.contains_key(registry);
        if known || inner.remaining.len() < MOST_VALUES {
            inner.remaining.insert(registry.to_owned(), remaining);
        }
    }

    /// The shim refused to start a container. The reason comes from another program, which may be
    /// of another version: a short identifier, everything else is `other`.
    pub fn refused_start(&self, reason: &str) {
        let mut inner = self.lock();
        let reason = if is_identifier(reason) { reason } else { OTHER };
        let full = inner.refused.len() >= MOST_REASONS;
        let reason = if full && !inner.refused.contains_key(reason) {
            OTHER
        } else {
            reason
        };
        *inner.refused.entry(reason.to_owned()).or_default() += 1;
    }

    /// A pass over all images has ended.
    pub fn reconciled(&self, now: Timestamp) {
        self.lock().reconciled = Some(now);
    }

    /// The text that Prometheus reads (format 0.0.4).
    pub fn render(&self, images: &[Sample]) -> String {
        let inner = self.lock();
        let mut text = Text::default();
        text.gauge("edgepull_build_info", "The version of edgepull that runs.");
        text.sample(&[("version", &inner.version)], 1);
        text.gauge("edgepull_host_info", "What this host is.");
        let host: Vec<(&str, &str)> = inner.host.iter().map(|(k, v)| (*k, v.as_str())).collect();
        text.sample(&host, 1);
        of_images(&mut text, images);
        text.counter(
            "edgepull_pulls_total",
            "Tries to pull an image, and comparisons that found it damaged, by how they ended.",
        );
        for (result, count) in &inner.pulls {
            text.sample(&[("result", result)], *count);
        }
        inner.durations(&mut text);
        text.counter(
            "edgepull_pull_bytes_total",
            "Bytes of images that arrived, by registry and by where they came from.",
        );
        for ((registry, source), count) in &inner.bytes {
            text.sample(&[("registry", registry), ("source", source)], *count);
        }
        text.counter(
            "edgepull_resumed_bytes_total",
            "Bytes that an earlier try had left and that were not fetched again.",
        );
        text.sample(&[], inner.resumed);
        text.counter(
            "edgepull_written_bytes_total",
            "Bytes written to the store: blobs and unpacked layers.",
        );
        text.sample(&[], inner.written);
        text.counter(
            "edgepull_registry_requests_total",
            "Requests to registries, by HTTP status (`error`: no answer).",
        );
        for ((registry, code), count) in &inner.requests {
            text.sample(&[("registry", registry), ("code", code)], *count);
        }
        text.gauge(
            "edgepull_ratelimit_remaining",
            "What the registry said is left of its limit of pulls.",
        );
        for (registry, remaining) in &inner.remaining {
            text.sample(&[("registry", registry)], *remaining);
        }
        text.counter(
            "edgepull_refused_starts_total",
            "Containers that were not started because they cannot run here.",
        );
        for (reason, count) in &inner.refused {
            text.sample(&[("reason", reason)], *count);
        }
        text.gauge(
            "edgepull_reconcile_timestamp_seconds",
            "When the last pass over all images ended; 0 before the first.",
        );
        text.sample(&[], inner.reconciled.map_or(0, Timestamp::as_second));
        text.into_string()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn durations(&self, text: &mut Text) {
        text.histogram(
            "edgepull_pull_duration_seconds",
            "How long pulls took that fetched something.",
        );
        for (bound, count) in BUCKETS.iter().zip(self.durations) {
            text.part("_bucket", &[("le", &bound.to_string())], count);
        }
        text.part("_bucket", &[("le", "+Inf")], self.duration_count);
        text.part("_sum", &[], self.duration_sum.as_secs_f64());
        text.part("_count", &[], self.duration_count);
    }
}

/// The series of the desired images; those of others are not there any longer.
fn of_images(text: &mut Text, images: &[Sample]) {
    let labels = |image: &Sample| {
        [
            ("reference", image.reference.clone()),
            ("platform", image.platform.clone()),
            ("namespace", image.namespace.clone()),
        ]
    };
    text.gauge(
        "edgepull_image_ready",
        "1 if the desired image is whole on this host.",
    );
    for image in images {
        text.sample(&refs(&labels(image)), u8::from(image.ready));
    }
    text.gauge(
        "edgepull_image_platform_missing",
        "1 if the reference offers nothing for this host.",
    );
    for image in images {
        text.sample(&refs(&labels(image)), u8::from(image.platform_missing));
    }
    // One series for all platforms of a reference: the last of their successes.
    let mut last: BTreeMap<(&str, &str), Timestamp> = BTreeMap::new();
    for image in images {
        if let Some(at) = image.last_success {
            let newest = last
                .entry((&image.reference, &image.namespace))
                .or_insert(at);
            *newest = at.max(*newest);
        }
    }
    text.gauge(
        "edgepull_image_last_success_timestamp_seconds",
        "When the image was last known to be as its registry has it.",
    );
    for ((reference, namespace), at) in last {
        text.sample(
            &[("reference", reference), ("namespace", namespace)],
            at.as_second(),
        );
    }
}

fn refs<'a, const N: usize>(labels: &'a [(&'a str, String); N]) -> [(&'a str, &'a str); N] {
    labels
        .each_ref()
        .map(|(name, value)| (*name, value.as_str()))
}

type Series = BTreeMap<(String, String), u64>;

/// Adds to the series of a registry and a second label; of both there are only so many values.
fn add(series: &mut Series, registry: &str, second: &str, count: u64) {
    let registries = series.keys().map(|(registry, _)| registry.as_str());
    let registry = bounded(registries, registry, MOST_VALUES);
    let seconds = series.keys().map(|(_, second)| second.as_str());
    let second = bounded(seconds, second, MOST_CODES);
    let sum = series.entry((registry, second)).or_default();
    *sum = sum.saturating_add(count);
}

/// The value, or [`OTHER`] if it is not known and `most` others are.
fn bounded<'a>(known: impl Iterator<Item = &'a str>, value: &str, most: usize) -> String {
    let known: BTreeSet<&str> = known.filter(|known| *known != OTHER).collect();
    let has_room = known.len() < most || known.contains(value);
    if has_room { value } else { OTHER }.to_owned()
}

fn is_identifier(text: &str) -> bool {
    (1..=LONGEST_REASON).contains(&text.len())
        && text
            .bytes()
            .all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_'))
}

/// A new file that everybody may read, whatever the umask: `node_exporter` is not root. The
/// directory may be writable for others, so nothing that is there already is written to.
fn write_readable(path: &Path, text: &str) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.set_permissions(Permissions::from_mode(0o644))?;
    file.write_all(text.as_bytes())
}

/// Writes `text` for `node_exporter`'s textfile collector, which must never see half of it
/// and reads only names that end in `.prom`.
pub fn write_textfile(path: &Path, text: &str) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.edgepull"));
    let written = write_readable(&temporary, text).and_then(|()| fs::rename(&temporary, path));
    written.map_err(|error| {
        // It may not be there at all.
        let _ = fs::remove_file(&temporary);
        Error::io("write the metrics to", path, &error)
            .hint("`[metrics] textfile` names a file in node_exporter's textfile directory")
    })
}

#[cfg(test)]
mod tests;
