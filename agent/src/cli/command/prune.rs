//! `prune`: letting go of what is declared no more.

use serde::Serialize;

use super::{
    super::{Failures, context::Context, output},
    agent::places,
};
use crate::{
    desired::{Desired, Directory, Source},
    error::{Error, Result},
    keep::{Action, PruneOptions, PrunedRow, prune},
    kind::Kind,
};

/// Faults that are named as the reason for doing nothing.
const SHOWN: usize = 3;

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
    let options = PruneOptions {
        dry_run,
        only: None,
    };
    let rows = prune(&attached.engine, &desired, options).await?;
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
    let images = places(&context.global).images;
    let read = Directory::new(&images).read(&context.traits(namespace)?);
    if read.complete {
        return Ok(read.images);
    }
    // Whatever they are of, all of them end in the same refusal.
    let error = Error::new(
        Kind::Config,
        format_args!("`{}` does not say all that is declared", images.display()),
    )
    .hint("nothing is removed while it is not known what is declared; `edgepull agent --check-config` lists what is wrong");
    let faults = read.faults.iter().map(|fault| fault.message().to_owned());
    Err(faults
        .chain(read.notes)
        .take(SHOWN)
        .fold(error, Error::because))
}
