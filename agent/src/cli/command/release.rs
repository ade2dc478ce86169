//! `prune --release`: edgepull leaves the host.

use std::{os::unix::net::UnixStream, time::Duration};

use serde::Serialize;

use super::{
    super::{Failures, context::Context, output},
    agent::places,
};
use crate::{
    containerd::Engine,
    daemon::{Lock, Places},
    engine::{self, Profile},
    error::{Error, Result},
    keep::{Released, ReleasedRow, release},
    kind::Kind,
};

/// How long an engine's socket may take to answer.
const ENGINE_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Serialize)]
struct Row {
    schema: &'static str,
    reference: String,
    namespace: String,
    dry_run: bool,
    #[serde(flatten)]
    released: ReleasedRow,
}

pub(crate) async fn run(context: &Context, dry_run: bool) -> Result<Failures> {
    let _lock = if dry_run {
        None
    } else {
        daemon_is_away(context)?
    };
    // Also those that an earlier configuration meant; a pin stays where it was set.
    let profiles = engine::living(
        context.named_address.as_deref(),
        context.global.address.as_deref(),
    );
    if profiles.is_empty() {
        output::warn(
            "warning: no container engine answers; pins that edgepull set in one stay in it",
        );
        output::warn(
            "hint: ctr -n NAMESPACE images label REF io.edgepull.pin= io.edgepull.pinned= io.cri-containerd.pinned=",
        );
    }
    let mut rows = Vec::new();
    let mut failures = Failures::new();
    for profile in &profiles {
        // What one engine or namespace refuses is no reason to leave the rest.
        if let Err(error) = of_engine(context, profile, dry_run, &mut rows, &mut failures).await {
            output::print_error(&error);
            failures.push(error.kind());
        }
    }
    failures.extend(
        rows.iter()
            .filter_map(|row| row.released.error.as_ref().map(Error::kind)),
    );
    if context.printer.json() {
        context.printer.document(&rows);
    } else {
        for row in &rows {
            context.printer.text(&line(row));
            if let Some(error) = &row.released.error {
                output::print_error(error);
            }
        }
    }
    Ok(failures)
}

async fn of_engine(
    context: &Context,
    profile: &Profile,
    dry_run: bool,
    rows: &mut Vec<Row>,
    failures: &mut Failures,
) -> Result<()> {
    let connect =
        async |namespace: &str| Engine::connect(&profile.address, namespace, ENGINE_TIMEOUT).await;
    let namespaces = match &context.named_namespace {
        Some(named) => vec![named.clone()],
        None => connect(&profile.namespace).await?.namespaces().await?,
    };
    for namespace in namespaces {
        let released = async { release(&connect(&namespace).await?, dry_run).await };
        match released.await {
            Ok(released) => rows.extend(released.into_iter().map(|released| Row {
                schema: "edgepull.prune/1",
                reference: released.record.clone(),
                namespace: namespace.clone(),
                dry_run,
                released,
            })),
            Err(error) => {
                output::print_error(&error);
                failures.push(error.kind());
            }
        }
    }
    Ok(())
}

/// A daemon that runs would set its pins again, and lose the pull that a lease protects; so
/// would one pass of it. None begins while the lock is held.
fn daemon_is_away(context: &Context) -> Result<Option<Lock>> {
    let Places { socket, state, .. } = places(&context.global);
    if UnixStream::connect(&socket).is_ok() {
        return Err(Error::new(
            Kind::Usage,
            format_args!(
                "the daemon at `{}` runs, and would set its pins again",
                socket.display()
            ),
        )
        .hint("stop it first: `systemctl stop edgepull`"));
    }
    // Where there is no state, or none that this user can see, nobody works on it.
    if !state.join("lock").exists() {
        return Ok(None);
    }
    match Lock::of_state(&state) {
        Ok(lock) => Ok(Some(lock)),
        Err(error) if error.kind() == Kind::Usage => Err(Error::new(
            Kind::Usage,
            "a pass of edgepull is under way, and would set its pins again",
        )
        .because(error.message())
        .hint("wait until it has ended, or stop it: `systemctl stop edgepull`")),
        Err(error) => Err(error),
    }
}

fn line(row: &Row) -> String {
    let action = match (row.released.action, row.dry_run) {
        (Released::Unpinned, false) => "unpinned",
        (Released::Unpinned, true) => "would unpin",
        (Released::Released, false) => "released lease",
        (Released::Released, true) => "would release lease",
        (Released::Kept, _) => "kept",
    };
    format!(
        "{action} {} in {} ({})\n",
        output::plain(&row.reference),
        output::plain(&row.namespace),
        output::plain(&row.released.reason)
    )
}
