//! Work that the kernel may hold up for long, in a thread of its own: everything else here is one
//! thread, which must go on. No pool: where no thread can be made, that is an answer, not a panic.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::timeout;

/// For a look or a system call: what is long is on the heap.
const STACK: usize = 256 << 10;

/// Threads for one purpose; those that hang are counted.
#[derive(Debug, Clone, Default)]
pub struct Aside(Arc<AtomicUsize>);

/// Ends the count of a thread, however it ends.
struct Counted(Arc<AtomicUsize>);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Aside {
    /// What `work` comes to, if it ends within `limit`. `None` also where `most` threads are at it
    /// already, or none can be made: then nothing was begun.
    pub async fn run<T: Send + 'static>(
        &self,
        most: usize,
        limit: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if self.0.load(Ordering::Relaxed) >= most {
            return None;
        }
        self.0.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(self.0.clone());
        let (tell, told) = oneshot::channel();
        let thread = std::thread::Builder::new().stack_size(STACK);
        let spawned = thread.spawn(move || {
            let _counted = counted;
            // Nobody may be listening any more.
            let _ = tell.send(work());
        });
        spawned.ok()?;
        timeout(limit, told).await.ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn what_hangs_is_left_behind_and_counted() {
        let (go, wait) = mpsc::channel::<()>();
        let long = Duration::from_secs(60);
        crate::child::testing::run(async move {
            let aside = Aside::default();
            assert_eq!(aside.run(1, long, || 7).await, Some(7));
            let hangs = move || wait.recv().is_err();
            let short = Duration::from_millis(1);
            assert_eq!(aside.run(1, short, hangs).await, None, "it hangs");
            assert_eq!(aside.run(1, long, || 7).await, None, "one is at it");
            assert_eq!(aside.run(2, long, || 7).await, Some(7));
            drop(go);
            while aside.run(1, long, || 7).await.is_none() {
                tokio::task::yield_now().await;
            }
        });
    }
}
