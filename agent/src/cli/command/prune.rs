//! `prune`: letting go of what is declared no more.

use serde::Serialize;

use super::super::{Failures, context::Context, output};
use crate::{
    desired::Desired,
    error::{Error, Result},
    keep::{Action, PruneOptions, PrunedRow, prune},
    kind::Kind,
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
    let desired = desired_images(context)?;
    let rows = prune(
        &attached.engine,
        &desired,
        PruneOptions {
            dry_run,
            only: None,
        },
    )
    .await?;
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
fn desired_images(context: &Context) -> Result<Vec<Desired>> {
    let read = super::agent::declared(context)?;
    if read.complete {
        return Ok(read.images);
    }
    let error = Error::new(
        Kind::Config,
        "cannot tell what is declared, so nothing is pruned",
    )
    .hint("`edgepull agent --check-config` shows what is wrong");
    Err(read
        .faults
        .iter()
        .map(|fault| format!("{fault}: {}", fault.causes().join(": ")))
        .chain(read.notes)
        .fold(error, Error::because))
}
