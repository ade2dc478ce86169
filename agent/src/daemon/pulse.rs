//! Whether the loop goes round, for whoever is to tell the service manager that it does.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::notify::Notifier;
use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// A step that talks to the engine alone is broken off after this. Each of its calls has a
/// limit, of ten minutes at most, and few steps make more than a handful.
const STEP: Duration = Duration::from_secs(30 * 60);
/// A loop that has not gone round for so long never will. Whatever it waits for takes less.
const LONGEST: Duration = Duration::from_secs(60 * 60);

/// The loop's sign of life; clone freely.
#[derive(Debug, Clone)]
pub(super) struct Pulse {
    /// When it last went on; `None` while there is nothing to do and it waits for news.
    last: Arc<Mutex<Option<Instant>>>,
    longest: Duration,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self {
            last: Arc::new(Mutex::new(Some(Instant::now()))),
            longest: LONGEST,
        }
    }

    /// The loop goes on.
    pub(super) fn beat(&self) {
        self.set(Some(Instant::now()));
    }

    /// There is nothing to do: what comes next, wakes it.
    pub(super) fn rest(&self) {
        self.set(None);
    }

    pub(super) fn is_beating(&self, now: Instant) -> bool {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.is_none_or(|last| now.saturating_duration_since(last) < self.longest)
    }

    fn set(&self, last: Option<Instant>) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = last;
    }
}

/// Tells the service manager that the loop goes round, for as long as it does.
pub(super) async fn heartbeat(notifier: &Notifier, pulse: &Pulse) {
    let Some(interval) = notifier.watchdog_interval() else {
        return std::future::pending().await;
    };
    let mut stands = false;
    loop {
        if pulse.is_beating(Instant::now()) {
            notifier.alive();
            stands = false;
        } else if !stands {
            stands = true;
            tracing::error!("the work stands still; the watchdog of the service manager ends it");
        }
        sleep(interval).await;
    }
}

/// What is done, in a place of its own: it is large.
type Work<'a, T> = Pin<Box<dyn Future<Output = Result<T>> + Send + 'a>>;

/// Does what has no limit as a whole.
pub(super) async fn limited<T>(what: &str, work: Work<'_, T>) -> Result<T> {
    within(STEP, what, work).await
}

async fn within<T>(limit: Duration, what: &str, work: Work<'_, T>) -> Result<T> {
    timeout(limit, work).await.unwrap_or_else(|_| {
        Err(Error::new(Kind::Timeout, format_args!("cannot {what}"))
            .because(format_args!("it was not done in {} s", limit.as_secs()))
            .hint("an engine that hangs, or a disk, may be why: see `systemctl status containerd`"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_stands_still_is_not_said_to_live() {
        let pulse = Pulse::new();
        let later = || Instant::now() + LONGEST;
        assert!(pulse.is_beating(Instant::now()));
        assert!(!pulse.is_beating(later()));
        // Nothing to do for days is no standstill.
        pulse.rest();
        assert!(pulse.is_beating(later()));
        pulse.beat();
        assert!(!pulse.is_beating(later()));
    }

    #[tokio::test]
    async fn the_watchdog_hears_of_a_loop_that_goes_round_and_of_no_other() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("notify");
        let socket = tokio::net::UnixDatagram::bind(&path).expect("bound");
        let every = Some("20000".into());
        let notifier = Notifier::new(Some(path.as_os_str()), every, None, 1);
        let mut pulse = Pulse::new();
        pulse.longest = Duration::ZERO;
        let hears = async |pulse: &Pulse| {
            let mut text = [0; 32];
            tokio::select! {
                () = heartbeat(&notifier, pulse) => panic!("it goes on for ever"),
                heard = timeout(Duration::from_millis(300), socket.recv(&mut text)) => heard.is_ok(),
            }
        };
        assert!(!hears(&pulse).await, "it stands still");
        pulse.rest();
        assert!(hears(&pulse).await);
    }

    #[tokio::test]
    async fn what_never_ends_is_broken_off_before_the_loop_is_taken_for_dead() {
        let limit = Duration::from_millis(20);
        let error = within::<()>(limit, "trim", Box::pin(std::future::pending())).await;
        assert_eq!(error.expect_err("it hangs").kind(), Kind::Timeout);
        assert!(STEP < LONGEST);
        assert_eq!(
            limited("trim", Box::pin(async { Ok(7) }))
                .await
                .expect("done"),
            7
        );
    }
}
