//! `repair`: a deep look at images in containerd, and healing what is damaged.

use std::fmt::Write as _;

use serde::Serialize;

use super::super::{
    Failures, args,
    context::{Context, state_dir},
    output, progress,
};
use crate::{
    asked::Asked,
    containerd::{
        image::ImageRecord,
        labels::{MANAGED, PINNED_BY},
    },
    error::{Error, Result},
    event::Events,
    keep::{Damage, Repair, Report, Sound, Unchecked, Verdict, recheck},
    kind::Kind,
    oci::Reference,
    resolve::Want,
    session::Attached,
};

/// Lines of detail for one image; JSON has them all.
const SHOWN: usize = 10;

#[derive(Serialize)]
struct Row {
    schema: &'static str,
    reference: String,
    platform: String,
    selected_platform: Option<String>,
    namespace: String,
    snapshotter: String,
    address: String,
    verdict: Verdict,
    damage: Vec<Damage>,
    /// Damages that are not listed.
    more_damage: u64,
    unchecked: Vec<Unchecked>,
    bytes: Bytes,
    others: Vec<String>,
    warnings: Vec<String>,
    error: Option<Error>,
}

#[derive(Default, Serialize)]
struct Bytes {
    /// Of blobs that were read from the store.
    read: u64,
    downloaded: u64,
}

pub(crate) async fn run(context: &Context, call: &args::Repair) -> Result<Failures> {
    let references = call
        .references
        .iter()
        .map(|typed| Context::reference(typed))
        .collect::<Result<Vec<_>>>()?;
    let attached = context.attach().await?;
    let host = context.wants(&[], Some(&attached), false)?;
    let Some(Asked::One(want)) = host.into_iter().next() else {
        return Err(Error::new(Kind::Internal, "this host wants no platform"));
    };
    let job = Job {
        context,
        call,
        attached: &attached,
        want: &want,
        events: &progress::observer(call.progress, context.global.quiet),
    };
    let mut sound = Sound::default();
    let mut rows = Vec::new();
    if references.is_empty() {
        let all = attached.engine.images(Vec::new()).await?;
        for (reference, record) in ours(&all) {
            rows.push(
                job.one(&reference, Ok(Some(record.clone())), &mut sound)
                    .await,
            );
        }
    }
    for reference in &references {
        let record = attached.engine.image(&reference.record_name()).await;
        rows.push(job.one(reference, record, &mut sound).await);
    }
    print(context, &rows);
    Ok(rows
        .iter()
        .filter_map(|row| match (&row.error, row.verdict) {
            (Some(error), _) => Some(error.kind()),
            (None, Verdict::Damaged) => Some(Kind::StoreDamaged),
            (None, _) => None,
        })
        .collect())
}

/// What edgepull put here or pinned: every image once, by its best name.
fn ours(all: &[ImageRecord]) -> Vec<(Reference, &ImageRecord)> {
    let mut found: Vec<(Reference, &ImageRecord)> = all
        .iter()
        .filter(|record| {
            record.labels.contains_key(MANAGED) || record.labels.contains_key(PINNED_BY)
        })
        // CRI's own name for an image is a digest, and no reference.
        .filter(|record| !record.name.starts_with("sha256:"))
        .filter_map(|record| Some((Reference::parse(&record.name).ok()?, record)))
        .collect();
    // A tag says more than the digest beside it.
    found.sort_by(|(a, one), (b, other)| {
        let key = |reference: &Reference| reference.digest().is_some();
        (key(a), &one.name).cmp(&(key(b), &other.name))
    });
    let mut seen = std::collections::BTreeSet::new();
    found.retain(|(_, record)| seen.insert(&record.target.digest));
    found
}

struct Job<'a> {
    context: &'a Context,
    call: &'a args::Repair,
    attached: &'a Attached,
    want: &'a Want,
    events: &'a Events,
}

impl Job<'_> {
    async fn one(
        &self,
        reference: &Reference,
        record: Result<Option<ImageRecord>>,
        sound: &mut Sound,
    ) -> Row {
        let attached = self.attached;
        let mut row = Row {
            schema: "edgepull.repair/1",
            reference: reference.typed().to_owned(),
            platform: self.want.asked.clone(),
            selected_platform: None,
            namespace: attached.profile.namespace.clone(),
            snapshotter: attached.snapshotter.clone(),
            address: attached.profile.address.display().to_string(),
            verdict: Verdict::Failed,
            damage: Vec::new(),
            more_damage: 0,
            unchecked: Vec::new(),
            bytes: Bytes::default(),
            others: Vec::new(),
            warnings: Vec::new(),
            error: None,
        };
        let record = record.and_then(|record| {
            record.ok_or_else(|| {
                Error::new(
                    Kind::NotFound,
                    format_args!(
                        "there is no image `{reference}` in namespace `{}`",
                        attached.profile.namespace
                    ),
                )
                .hint("`edgepull images --all` lists what is there")
            })
        });
        let ended = match record {
            Ok(record) => Box::pin(self.look(reference, &record, sound, &mut row)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            row.error = Some(error.reference(reference.typed()));
        }
        row
    }

    async fn look(
        &self,
        reference: &Reference,
        record: &ImageRecord,
        sound: &mut Sound,
        row: &mut Row,
    ) -> Result<()> {
        let engine = &self.attached.engine;
        let snapshotter = &self.attached.snapshotter;
        if self.call.check {
            let report = recheck(engine, snapshotter, &record.target, self.want, sound).await?;
            row.verdict = report.verdict();
            row.found(report);
            return Ok(());
        }
        let repair = Repair {
            engine,
            snapshotter,
            client: self.context.client()?,
            want: self.want,
            events: self.events,
            state_dir: &state_dir(),
            managed_by: "cli",
            // Whoever asks for it by hand is not held up by a floor, as with a pull.
            room: None,
        };
        let repaired = Box::pin(repair.image(reference, record, sound)).await?;
        row.verdict = repaired.verdict;
        row.bytes.downloaded = repaired.fetched;
        row.others = repaired.others;
        row.warnings = repaired.warnings;
        row.error = repaired.error;
        row.found(repaired.report);
        Ok(())
    }
}

impl Row {
    fn found(&mut self, report: Report) {
        self.selected_platform = report
            .choice
            .and_then(|choice| choice.platform)
            .map(|platform| platform.to_string());
        self.damage = report.damage;
        self.more_damage = report.more;
        self.unchecked = report.unchecked;
        self.bytes.read = report.read;
    }
}

fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Sound => "sound",
        Verdict::Unchecked => "unchecked",
        Verdict::Damaged => "damaged",
        Verdict::Repaired => "repaired",
        Verdict::Failed => "failed",
    }
}

fn print(context: &Context, rows: &[Row]) {
    if context.printer.json() {
        context.printer.document(&rows);
        return;
    }
    let table: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            vec![
                row.reference.clone(),
                word(row.verdict).to_owned(),
                (row.damage.len() as u64 + row.more_damage).to_string(),
                output::bytes(row.bytes.downloaded),
            ]
        })
        .collect();
    let head = ["REFERENCE", "VERDICT", "DAMAGE", "FETCHED"];
    context.printer.text(&output::table(&head, &table));
    for row in rows {
        context.printer.text(&details(row));
        if let Some(error) = &row.error {
            output::print_error(error);
        }
    }
}

fn details(row: &Row) -> String {
    let mut text = String::new();
    let name = output::plain(&row.reference);
    for damage in row.damage.iter().take(SHOWN) {
        let what = damage.path.as_deref().unwrap_or(damage.digest.as_str());
        let _ = writeln!(
            text,
            "{name}: {}: {} is wanted, {} was there",
            output::plain(what),
            output::plain(&damage.expected),
            output::plain(&damage.found)
        );
    }
    let more = row.damage.len().saturating_sub(SHOWN) as u64 + row.more_damage;
    if more > 0 {
        let _ = writeln!(text, "{name}: {more} more like these");
    }
    for unchecked in &row.unchecked {
        let layer = unchecked
            .layer
            .as_ref()
            .map_or(String::new(), |layer| format!("layer {}: ", layer.short()));
        let reason = output::plain(&unchecked.reason);
        let _ = writeln!(text, "{name}: not checked: {layer}{reason}");
    }
    for other in &row.others {
        let other = output::plain(other);
        let _ = writeln!(
            text,
            "{name}: {other} stands on the same layer, and was unpacked again"
        );
    }
    for warning in &row.warnings {
        let _ = writeln!(text, "{name}: {}", output::plain(warning));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        containerd::labels::Labels,
        oci::{Descriptor, Digest, MediaType},
    };

    #[test]
    fn every_image_of_ours_is_looked_at_once_by_its_best_name() {
        let record = |name: &str, target: &str, label: Option<&str>| ImageRecord {
            name: name.to_owned(),
            target: Descriptor::new(MediaType::OciIndex, Digest::of(target.as_bytes()), 1),
            labels: label
                .map(|key| (key.to_owned(), "agent".to_owned()))
                .into_iter()
                .collect::<Labels>(),
        };
        let by_digest = format!("r.example/app@{}", Digest::of(b"t"));
        let all = [
            record(&by_digest, "t", Some(MANAGED)),
            record(Digest::of(b"c").as_str(), "t", Some(MANAGED)),
            record("r.example/app:1", "t", Some(MANAGED)),
            record("r.example/theirs:1", "u", None),
            record("r.example/pinned:1", "v", Some(PINNED_BY)),
        ];
        let names: Vec<&str> = ours(&all)
            .iter()
            .map(|(_, record)| record.name.as_str())
            .collect();
        assert_eq!(names, ["r.example/app:1", "r.example/pinned:1"]);
    }
}
