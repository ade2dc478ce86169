//! The row of `pull`, `export` and `import`, as JSON and as a line.

use std::fmt::Write as _;

use edgepull_platform::Platform;
use serde::Serialize;

use super::{
    super::{context::Context, output},
    verdict::RunVerdict,
};
use crate::{
    error::Error,
    oci::{Digest, Document},
    pull::{Outcome, Status},
    session::Attached,
};

#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Bytes {
    pub(super) downloaded: u64,
    pub(super) resumed: u64,
    pub(super) reused: u64,
    pub(super) written: u64,
}

#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) schema: &'static str,
    pub(super) reference: String,
    pub(super) platform: String,
    pub(super) selected_platform: Option<String>,
    pub(super) namespace: Option<String>,
    pub(super) snapshotter: Option<String>,
    pub(super) address: Option<String>,
    pub(super) index_digest: Option<Digest>,
    pub(super) manifest_digest: Option<Digest>,
    pub(super) status: &'static str,
    pub(super) verdict: RunVerdict,
    pub(super) bytes: Bytes,
    pub(super) requests: u64,
    pub(super) duration_ms: u64,
    pub(super) files: Vec<String>,
    pub(super) warnings: Vec<String>,
    pub(super) error: Option<Error>,
}

impl Row {
    pub(super) fn new(schema: &'static str, reference: &str, platform: &str) -> Self {
        Self {
            schema,
            reference: reference.to_owned(),
            platform: platform.to_owned(),
            selected_platform: None,
            namespace: None,
            snapshotter: None,
            address: None,
            index_digest: None,
            manifest_digest: None,
            status: "failed",
            verdict: RunVerdict::Unknown,
            bytes: Bytes::default(),
            requests: 0,
            duration_ms: 0,
            files: Vec::new(),
            warnings: Vec::new(),
            error: None,
        }
    }

    pub(super) fn chosen(
        &mut self,
        root: &Document,
        leaf: &Document,
        platform: Option<&Platform>,
        context: &Context,
    ) {
        let (root, leaf) = (&root.descriptor.digest, &leaf.descriptor.digest);
        self.index_digest = (root != leaf).then(|| root.clone());
        self.manifest_digest = Some(leaf.clone());
        self.selected_platform = platform.map(ToString::to_string);
        self.verdict = RunVerdict::of(platform, context.host().ok());
    }

    /// What a pull into containerd came to.
    pub(super) fn ended(&mut self, outcome: Outcome) {
        self.status = match outcome.status {
            Status::Pulled => "pulled",
            Status::Present => "present",
        };
        self.bytes = Bytes {
            downloaded: outcome.bytes.downloaded,
            resumed: outcome.bytes.resumed,
            reused: outcome.bytes.reused,
            written: outcome.bytes.written,
        };
        self.warnings.extend(outcome.warnings);
        if let Some(proof) = &outcome.proof {
            self.verdict = self.verdict.proven(&proof.verdict);
        }
    }

    pub(super) fn at(&mut self, attached: &Attached) {
        self.namespace = Some(attached.profile.namespace.clone());
        self.snapshotter = Some(attached.snapshotter.clone());
        self.address = Some(attached.profile.address.display().to_string());
    }
}

pub(super) fn print(context: &Context, rows: &[Row]) {
    if context.printer.json() {
        context.printer.document(&rows);
        return;
    }
    for row in rows {
        match &row.error {
            Some(error) => output::print_error(error),
            None => context.printer.text(&line(context, row)),
        }
    }
}

fn line(context: &Context, row: &Row) -> String {
    let digest = row
        .manifest_digest
        .as_ref()
        .map_or(String::new(), ToString::to_string);
    let platform = row.selected_platform.as_deref().unwrap_or("no platform");
    let (platform, reference) = (output::plain(platform), output::plain(&row.reference));
    let mut line = format!(
        "{} {reference} {platform} ({}) {digest}",
        context.printer.green(row.status),
        row.verdict.word(),
    );
    if row.status == "pulled" {
        let _ = write!(
            line,
            "  {} fetched, {} reused, {} requests, {:.1} s",
            output::bytes(row.bytes.downloaded),
            output::bytes(row.bytes.reused),
            row.requests,
            std::time::Duration::from_millis(row.duration_ms).as_secs_f64()
        );
    }
    line.push('\n');
    for file in &row.files {
        let _ = writeln!(line, "  {}", output::plain(file));
    }
    line
}
