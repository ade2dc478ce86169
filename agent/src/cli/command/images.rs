//! `images` and `rm`: what edgepull put here, and taking it away again.

use serde::Serialize;

use super::super::{Failures, context::Context, output};
use crate::{
    containerd::{
        K8S_NAMESPACE,
        image::ImageRecord,
        labels::{CRI_PINNED, MANAGED, PINNED},
    },
    error::{Error, Result},
    kind::Kind,
    oci::{Digest, Reference},
};

#[derive(Serialize)]
struct Row {
    schema: &'static str,
    reference: String,
    digest: Digest,
    media_type: String,
    namespace: String,
    managed: Option<String>,
    pinned: bool,
}

pub(crate) async fn list(context: &Context, all: bool) -> Result<Failures> {
    let attached = context.attach().await?;
    let mut rows: Vec<Row> = attached
        .engine
        .images(Vec::new())
        .await?
        .into_iter()
        .filter(|image| all || image.labels.contains_key(MANAGED))
        .map(|image| row(&attached.profile.namespace, image))
        .collect();
    rows.sort_by(|a, b| a.reference.cmp(&b.reference));
    if context.printer.json() {
        context.printer.document(&rows);
    } else {
        let table: Vec<Vec<String>> = rows
            .iter()
            .map(|row| {
                vec![
                    row.reference.clone(),
                    row.digest.short(),
                    row.managed.clone().unwrap_or_else(|| "-".to_owned()),
                    if row.pinned {
                        "pinned".to_owned()
                    } else {
                        String::new()
                    },
                ]
            })
            .collect();
        context.printer.text(&output::table(
            &["REFERENCE", "DIGEST", "MANAGED", "PIN"],
            &table,
        ));
    }
    Ok(Failures::new())
}

fn row(namespace: &str, image: ImageRecord) -> Row {
    Row {
        schema: "edgepull.image/1",
        pinned: [CRI_PINNED, PINNED]
            .iter()
            .any(|(key, value)| image.labels.get(*key).is_some_and(|v| v == value)),
        managed: image.labels.get(MANAGED).cloned(),
        reference: image.name,
        digest: image.target.digest,
        media_type: image.target.media_type.to_string(),
        namespace: namespace.to_owned(),
    }
}

#[derive(Serialize)]
struct Removed {
    schema: &'static str,
    reference: String,
    namespace: String,
    records: Vec<String>,
    error: Option<Error>,
}

pub(crate) async fn remove(
    context: &Context,
    references: &[String],
    force: bool,
) -> Result<Failures> {
    let parsed = references
        .iter()
        .map(|typed| Context::reference(typed))
        .collect::<Result<Vec<_>>>()?;
    let attached = context.attach().await?;
    let mut rows = Vec::new();
    for reference in &parsed {
        // What was removed before a failure is gone, and is told.
        let mut removed = Vec::new();
        let ended = remove_one(&attached.engine, reference, force, &mut removed).await;
        let error = ended.err().map(|error| {
            error
                .during(format_args!("cannot remove `{}`", reference.typed()))
                .reference(reference.typed())
        });
        rows.push(Removed {
            schema: "edgepull.rm/1",
            reference: reference.typed().to_owned(),
            namespace: attached.profile.namespace.clone(),
            records: removed,
            error,
        });
    }
    if context.printer.json() {
        context.printer.document(&rows);
    } else {
        for row in &rows {
            for name in &row.records {
                context
                    .printer
                    .text(&format!("removed {}\n", output::plain(name)));
            }
            if let Some(error) = &row.error {
                output::print_error(error);
            }
        }
    }
    Ok(rows
        .iter()
        .filter_map(|row| row.error.as_ref().map(Error::kind))
        .collect())
}

/// Removes the record, and with it the records that edgepull wrote beside it for the
/// same target (CRI's). The last deletion waits for containerd's garbage collection.
async fn remove_one(
    engine: &crate::containerd::Engine,
    reference: &Reference,
    force: bool,
    removed: &mut Vec<String>,
) -> Result<()> {
    let name = reference.record_name();
    let Some(image) = engine.image(&name).await? else {
        return Err(Error::new(
            Kind::NotFound,
            format_args!(
                "there is no image `{name}` in namespace `{}`",
                engine.namespace()
            ),
        )
        .hint("`edgepull images --all` lists what is there"));
    };
    if !image.labels.contains_key(MANAGED) && !force {
        return Err(Error::new(
            Kind::Usage,
            format_args!("`{name}` was not put here by edgepull"),
        )
        .hint("remove it with the tool that made it, or say `--force`"));
    }
    let there = engine.images(Vec::new()).await?;
    let repository = reference.repository().to_string();
    let doomed = doomed(engine.namespace(), &repository, &image, &there, force);
    let last = doomed.len().saturating_sub(1);
    for (at, name) in doomed.into_iter().enumerate() {
        if engine.delete_image(&name, at == last).await? {
            removed.push(name);
        }
    }
    Ok(())
}

/// The names to delete: the record's own, and in `k8s.io` those that stand beside it for
/// CRI and that nothing else needs. Everywhere else a name is there because somebody
/// wanted it.
fn doomed(
    namespace: &str,
    repository: &str,
    image: &ImageRecord,
    there: &[ImageRecord],
    force: bool,
) -> Vec<String> {
    let mut doomed = vec![image.name.clone()];
    if namespace != K8S_NAMESPACE {
        return doomed;
    }
    let by_digest = format!("{repository}@{}", image.target.digest);
    let others: Vec<&ImageRecord> = there
        .iter()
        .filter(|other| other.name != image.name && other.target.digest == image.target.digest)
        .collect();
    let ours = |other: &ImageRecord| force || other.labels.contains_key(MANAGED);
    let tagged = format!("{repository}:");
    if !others.iter().any(|other| other.name.starts_with(&tagged)) {
        doomed.extend(
            others
                .iter()
                .filter(|other| other.name == by_digest && ours(other))
                .map(|other| other.name.clone()),
        );
    }
    let is_id = |other: &ImageRecord| other.name.starts_with("sha256:");
    if !others
        .iter()
        .any(|other| !is_id(other) && !doomed.contains(&other.name))
    {
        doomed.extend(
            others
                .iter()
                .filter(|other| is_id(other) && ours(other))
                .map(|other| other.name.clone()),
        );
    }
    doomed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        containerd::labels::Labels,
        oci::{Descriptor, MediaType},
    };

    fn record(name: &str, target: &str, ours: bool) -> ImageRecord {
        let mut labels = Labels::new();
        if ours {
            labels.insert(MANAGED.to_owned(), "cli".to_owned());
        }
        ImageRecord {
            name: name.to_owned(),
            target: Descriptor::new(MediaType::OciIndex, Digest::of(target.as_bytes()), 1),
            labels,
        }
    }

    fn names(namespace: &str, force: bool, there: &[ImageRecord]) -> Vec<String> {
        let image = there.first().expect("the one to remove");
        let repository = image.name.split([':', '@']).next().expect("a name");
        doomed(namespace, repository, image, there, force)
    }

    #[test]
    fn what_stands_beside_a_record_goes_with_it_if_nothing_else_needs_it() {
        let digest = Digest::of(b"t");
        let by_digest = format!("r/app@{digest}");
        let elsewhere = format!("mirror/app@{digest}");
        let app = record("r/app:1", "t", true);
        let own = record(&by_digest, "t", true);
        let id = record("sha256:c0", "t", true);
        let all = [app.clone(), own.clone(), id.clone()];
        let whole: Vec<&str> = vec!["r/app:1", &by_digest, "sha256:c0"];
        assert_eq!(names("k8s.io", false, &all), whole);
        // Outside Kubernetes every name was asked for.
        assert_eq!(names("default", true, &all), ["r/app:1"]);
        // Another tag of the same repository needs both, one of another needs the id.
        let with = |name: &str, ours| {
            let other = record(name, "t", ours);
            [app.clone(), own.clone(), id.clone(), other]
        };
        assert_eq!(names("k8s.io", true, &with("r/app:2", true)), ["r/app:1"]);
        for other in ["mirror/app:1", &elsewhere] {
            let left = names("k8s.io", true, &with(other, true));
            assert_eq!(left, ["r/app:1", &by_digest], "beside {other}");
        }
        // Nor does what points elsewhere matter, or go.
        let mut moved = with("r/app:2", true);
        moved[3].target = record("", "u", true).target;
        assert_eq!(names("k8s.io", true, &moved), whole);
    }

    #[test]
    fn adopted_records_stay_without_force() {
        let by_digest = format!("r/app@{}", Digest::of(b"t"));
        let all = [
            record("r/app:1", "t", true),
            record(&by_digest, "t", false),
            record("sha256:c0", "t", false),
        ];
        assert_eq!(names("k8s.io", false, &all), ["r/app:1"]);
        assert_eq!(names("k8s.io", true, &all).len(), 3);
    }
}
