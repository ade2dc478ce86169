//! `images` and `rm`: what edgepull put here, and taking it away again.

use serde::Serialize;

use super::super::{Failures, context::Context, output};
use crate::{
    containerd::{
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
    removed: Vec<String>,
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
        let ended = remove_one(&attached.engine, reference, force).await;
        let (removed, error) = match ended {
            Ok(removed) => (removed, None),
            Err(error) => (Vec::new(), Some(error.reference(reference.typed()))),
        };
        rows.push(Removed {
            schema: "edgepull.rm/1",
            reference: reference.typed().to_owned(),
            namespace: attached.profile.namespace.clone(),
            removed,
            error,
        });
    }
    if context.printer.json() {
        context.printer.document(&rows);
    } else {
        for row in &rows {
            for name in &row.removed {
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
) -> Result<Vec<String>> {
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
    let siblings = engine.images(Vec::new()).await?;
    let others = siblings.iter().any(|other| {
        other.name != name
            && other.target.digest == image.target.digest
            && !other.name.starts_with("sha256:")
            && !other.name.contains('@')
    });
    let mut doomed = vec![name.clone()];
    if !others {
        doomed.extend(
            siblings
                .iter()
                .filter(|other| {
                    other.name != name
                        && other.target.digest == image.target.digest
                        && (force || other.labels.contains_key(MANAGED))
                })
                .map(|other| other.name.clone()),
        );
    }
    let last = doomed.len() - 1;
    for (at, name) in doomed.iter().enumerate() {
        engine.delete_image(name, at == last).await?;
    }
    Ok(doomed)
}
