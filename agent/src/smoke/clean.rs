//! Taking away what a run left in the engine.

use std::{path::Path, time::Duration};

use jiff::Timestamp;
use tokio::time::{Instant, timeout};

use super::place::{self, Place, Where};
use crate::{
    clock,
    containerd::{
        Cause, Engine,
        containers::Container,
        labels::{SMOKE, SMOKE_UNTIL},
    },
    error::{Error, Result},
};

/// How long a program may take to end once it is killed: one that waits for a disk cannot.
const DEATH: Duration = Duration::from_secs(30);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(500);

/// Takes everything of the run `id` out of the engine. All of it is tried, whatever fails; the
/// error is the first one.
pub(super) async fn clean(engine: &Engine, id: &str, snapshotter: &str) -> Result<()> {
    let task = end_task(engine, id).await;
    // While a task runs, its container is what others find it by.
    task?;
    let container = engine.delete_container(id).await;
    let snapshot = engine.remove_snapshot_named(snapshotter, id).await;
    let lease = engine.drop_leases_of(place::lease_of(id)).await;
    container.and(snapshot).and(lease)
}

/// Ends and removes the task, in whatever state it is.
async fn end_task(engine: &Engine, id: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        let failure = match engine.delete_task(id).await {
            Ok(()) => return Ok(()),
            Err(failure) => failure,
        };
        if failure.cause == Cause::Disconnected || begun.elapsed() > DEATH {
            return Err(failure.into());
        }
        // It still runs, or has not begun.
        if let Err(failure) = engine.kill_task(id).await
            && failure.cause == Cause::Disconnected
        {
            return Err(failure.into());
        }
        let _ = timeout(PAUSE, engine.wait_task(id)).await;
    }
}

/// Takes away what runs left whose processes are gone, of this engine and namespace. What could
/// not be done is said; the next call tries again.
pub async fn sweep(engine: &Engine, runtime_dir: &Path) -> Vec<Error> {
    let mut errors = Vec::new();
    match Place::abandoned(runtime_dir) {
        Ok(places) => {
            for place in places {
                errors.extend(sweep_place(engine, place).await.err());
            }
        }
        Err(error) => errors.push(error),
    }
    // The places go with a boot, and other runtime directories are not seen from here.
    match engine.containers().await {
        Ok(containers) => {
            for container in containers {
                if is_abandoned(&container, &clock::boot(Path::new("/")), Timestamp::now())
                    && !Place::is_held(runtime_dir, &container.id)
                {
                    let cleaned = clean(engine, &container.id, &container.snapshotter).await;
                    errors.extend(cleaned.err());
                }
            }
        }
        Err(error) => errors.push(error),
    }
    errors
}

async fn sweep_place(engine: &Engine, place: Place) -> Result<()> {
    if let Some(found) = &place.found {
        let here = Where::of(engine, &found.snapshotter);
        if *found != here {
            // Somebody who asks that engine does it.
            return Ok(());
        }
        clean(engine, &place.id, &found.snapshotter).await?;
    }
    place.remove()
}

/// Whether a container was made by a run of another boot, or one that is over by now. One without
/// readable labels was not made by us.
fn is_abandoned(container: &Container, boot: &str, now: Timestamp) -> bool {
    let Some(made_in) = container.labels.get(SMOKE) else {
        return false;
    };
    let until = container.labels.get(SMOKE_UNTIL);
    let until: Option<Timestamp> = until.and_then(|text| text.parse().ok());
    container.id.starts_with(place::PREFIX)
        && (made_in != boot && !boot.is_empty() || until.is_some_and(|until| until < now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::labels::Labels;

    #[test]
    fn only_our_own_containers_of_earlier_boots_or_times_are_abandoned() {
        let now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        let of = |id: &str, labels: &[(&str, &str)]| {
            let labels = labels
                .iter()
                .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            let container = Container {
                id: id.to_owned(),
                image: String::new(),
                snapshotter: "overlayfs".to_owned(),
                snapshot: id.to_owned(),
                labels: labels.collect::<Labels>(),
            };
            is_abandoned(&container, "boot-2", now)
        };
        let id = "edgepull-smoke-1";
        let (later, earlier) = ("2026-01-01T01:00:00Z", "2025-12-31T23:00:00Z");
        assert!(of(id, &[(SMOKE, "boot-1"), (SMOKE_UNTIL, later)]));
        assert!(of(id, &[(SMOKE, "boot-2"), (SMOKE_UNTIL, earlier)]));
        assert!(!of(id, &[(SMOKE, "boot-2"), (SMOKE_UNTIL, later)]));
        assert!(!of(id, &[(SMOKE, "boot-2")]));
        assert!(!of(id, &[]));
        assert!(!of("web", &[(SMOKE, "boot-1"), (SMOKE_UNTIL, earlier)]));
    }
}
