//! `check`: does REF offer P? One row for each pair, the worst as exit code.

use serde::Serialize;

use super::{
    super::{
        Failures,
        context::{Context, Target},
        output,
    },
    inspect::{look_up, look_up_failed},
};
use crate::{
    asked::{Asked, wants_of},
    error::{Error, Result},
    kind::Kind,
    oci::Digest,
    pull::image,
    resolve::Want,
};

#[derive(Serialize)]
struct Row {
    schema: &'static str,
    reference: String,
    platform: String,
    selected_platform: Option<String>,
    namespace: Option<String>,
    snapshotter: Option<String>,
    ok: bool,
    digest: Option<Digest>,
    error: Option<Error>,
}

pub(crate) async fn run(
    context: &Context,
    references: &[String],
    platforms: &[String],
) -> Result<Failures> {
    // Only a check for this host depends on the engine that runs here.
    let for_host = platforms.is_empty() || platforms.iter().any(|p| p == "host");
    let (attached, _) = if for_host {
        context.attach_if_alive().await?
    } else {
        (None, None)
    };
    let asked = context.wants(platforms, attached.as_ref(), false)?;
    // Wrong references end the call before any work.
    let mut targets = Vec::new();
    for typed in references {
        targets.push(open(context, typed).await?);
    }
    let mut rows = Vec::new();
    for (typed, target) in references.iter().zip(targets) {
        for one in &asked {
            let wants = match (&target, one) {
                (_, Asked::One(want)) => Ok(vec![want.as_ref().clone()]),
                (Ok(target), Asked::All) => every(context, target, one).await,
                (Err(error), Asked::All) => Err(error.clone()),
            };
            let wants = match wants {
                Ok(wants) => wants,
                Err(error) => {
                    rows.push(row(typed, "all", Err(error)));
                    continue;
                }
            };
            for want in wants {
                let found = match &target {
                    Ok(target) => check(target, &want).await,
                    Err(error) => Err(error.clone()),
                };
                rows.push(row(typed, &want.asked, found));
            }
        }
    }
    for row in &mut rows {
        row.namespace = attached.as_ref().map(|a| a.profile.namespace.clone());
        row.snapshotter = attached.as_ref().map(|a| a.snapshotter.clone());
    }
    print(context, &rows);
    Ok(rows
        .iter()
        .filter_map(|row| row.error.as_ref().map(Error::kind))
        .collect())
}

/// A reference that does not parse ends the call; a layout that cannot be read is one row.
async fn open(context: &Context, typed: &str) -> Result<Result<Target>> {
    match context.target(typed).await {
        Ok(target) => Ok(Ok(target)),
        Err(error)
            if matches!(
                error.kind(),
                Kind::InvalidReference | Kind::Usage | Kind::Config
            ) =>
        {
            Err(error)
        }
        Err(error) => Ok(Err(error)),
    }
}

async fn every(context: &Context, target: &Target, asked: &Asked) -> Result<Vec<Want>> {
    let named = |error| look_up_failed(target, error);
    let root = target.root().await.map_err(named)?;
    wants_of(asked, &root, target.source(), context.host().ok())
        .await
        .map_err(named)
}

async fn check(target: &Target, want: &Want) -> Result<(Digest, Option<String>)> {
    let resolution = look_up(target, want).await?;
    let choice = resolution.outcome.map_err(|error| {
        let error = match target {
            Target::Registry { reference, .. } => image::advised(error, reference),
            Target::Local { .. } => error,
        };
        error.reference(target.typed())
    })?;
    Ok((
        choice.leaf.descriptor.digest,
        choice.platform.map(|p| p.to_string()),
    ))
}

fn row(reference: &str, platform: &str, found: Result<(Digest, Option<String>)>) -> Row {
    let (digest, selected_platform, error) = match found {
        Ok((digest, platform)) => (Some(digest), platform, None),
        Err(error) => (
            None,
            None,
            Some(error.reference(reference).platform(platform)),
        ),
    };
    Row {
        schema: "edgepull.check/1",
        reference: reference.to_owned(),
        platform: platform.to_owned(),
        selected_platform,
        namespace: None,
        snapshotter: None,
        ok: error.is_none(),
        digest,
        error,
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
                if row.ok {
                    "ok".to_owned()
                } else {
                    row.error
                        .as_ref()
                        .map_or("failed", |e| e.kind().name())
                        .to_owned()
                },
                row.reference.clone(),
                row.platform.clone(),
                row.selected_platform
                    .clone()
                    .unwrap_or_else(|| "-".to_owned()),
                row.digest.as_ref().map_or("-".to_owned(), Digest::short),
            ]
        })
        .collect();
    context.printer.text(&output::table(
        &["RESULT", "REFERENCE", "WANTED", "SELECTED", "DIGEST"],
        &table,
    ));
    for error in rows.iter().filter_map(|row| row.error.as_ref()) {
        output::print_error(error);
    }
}
