//! `prune`: letting go of what is declared no more.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::super::{Failures, context::Context, output};
use crate::{
    desired::{Desired, Origin},
    error::{Error, Result},
    keep::{Action, PruneOptions, PrunedRow, prune},
    kind::Kind,
    schedule::Refresh,
};

#[derive(Serialize)]
struct Row<'a> {
    schema: &'static str,
    reference: &'a str,
    namespace: &'a str,
    dry_run: bool,
    #[serde(flatten)]
    pruned: &'a PrunedRow,
}

pub(crate) async fn run(context: &Context, dry_run: bool) -> Result<Failures> {
    let attached = context.attach().await?;
    let namespace = &attached.profile.namespace;
    let desired = desired_images(context, namespace)?;
    let rows = prune(&attached.engine, &desired, PruneOptions { dry_run }).await?;
    if context.printer.json() {
        let rows: Vec<Row<'_>> = rows
            .iter()
            .map(|pruned| Row {
                schema: "edgepull.prune/1",
                reference: &pruned.record,
                namespace,
                dry_run,
                pruned,
            })
            .collect();
        context.printer.document(&rows);
    } else {
        for row in &rows {
            context.printer.text(&line(row, dry_run));
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

fn line(row: &PrunedRow, dry_run: bool) -> String {
    let action = match (row.action, dry_run) {
        (Action::Removed, false) => "removed",
        (Action::Removed, true) => "would remove",
        (Action::Unpinned, false) => "unpinned",
        (Action::Unpinned, true) => "would unpin",
        (Action::Kept, _) => "kept",
    };
    format!(
        "{action} {} ({})\n",
        output::plain(&row.record),
        output::plain(&row.reason)
    )
}

/// Everything that is declared. Fails rather than giving a part of it: what is missing
/// here is removed.
fn desired_images(context: &Context, namespace: &str) -> Result<Vec<Desired>> {
    let directory = context
        .global
        .config
        .as_deref()
        .and_then(Path::parent)
        .unwrap_or(Path::new("/etc/edgepull"))
        .join("images.d");
    let fail = |error: &std::io::Error| {
        Error::io("read the declared images in", &directory, error)
            .with_kind(Kind::Config)
            .hint("nothing is pruned while it is not known what is declared")
    };
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in std::fs::read_dir(&directory).map_err(|error| fail(&error))? {
        files.push(entry.map_err(|error| fail(&error))?.path());
    }
    files.sort();
    let mut desired = Vec::new();
    for file in files {
        if file.extension().is_none_or(|end| end != "txt") {
            return Err(Error::new(
                Kind::Config,
                format_args!("`{}` cannot be read yet", file.display()),
            )
            .hint("nothing is pruned while it is not known what is declared"));
        }
        let text = std::fs::read_to_string(&file).map_err(|error| fail(&error))?;
        for (at, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            desired.push(Desired {
                reference: Context::reference(line)?,
                platform: "host".to_owned(),
                namespace: namespace.to_owned(),
                refresh: Refresh::Never,
                pin: true,
                keep_previous: 1,
                origin: Origin {
                    file: file.clone(),
                    line: at + 1,
                },
            });
        }
    }
    Ok(desired)
}
