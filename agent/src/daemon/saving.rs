//! When the memory is written down, and by whom: a slow card's sync takes longer than the
//! service manager waits for a sign of life, so the loop's task does not do it itself.

use std::{
    sync::{Arc, Mutex, PoisonError, TryLockError},
    time::Duration,
};

use tokio::{
    task::JoinHandle,
    time::{Instant, timeout},
};

use super::journal;
use crate::{
    error::{Error, Result},
    kind::Kind,
    reconcile::{Memory, StateFile},
};

/// What came of single images is not worth a write each time: flash wears out, and hundreds
/// of images whose registry is away fail within a second.
const SAVE: Duration = Duration::from_secs(60);

/// A disk that has not taken it by then is not waited for: images come and go without.
const LIMIT: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(super) struct Saving {
    file: Arc<Mutex<StateFile>>,
    /// When it was last tried.
    last: Option<Instant>,
    /// The failure that was told last.
    told: Option<Error>,
    limit: Duration,
    /// What the disk has not taken yet.
    writing: Option<JoinHandle<Result<()>>>,
}

impl Saving {
    pub(super) fn new(file: StateFile) -> Self {
        Self {
            file: Arc::new(Mutex::new(file)),
            last: None,
            told: None,
            limit: LIMIT,
            writing: None,
        }
    }

    /// At the beginning and at the end, when nothing else has to go on meanwhile.
    pub(super) fn now(&mut self, memory: &Memory) -> Result<()> {
        match self.file.try_lock() {
            Ok(mut file) => file.save(memory),
            Err(TryLockError::Poisoned(file)) => file.into_inner().save(memory),
            Err(TryLockError::WouldBlock) => Err(stuck()),
        }
    }

    /// Within a pass: not each time.
    pub(super) async fn soon(&mut self, memory: &Memory) {
        if self.last.is_none_or(|last| last.elapsed() >= SAVE) {
            self.later(memory).await;
        }
    }

    /// On another thread; what is the same as in the file is not written.
    pub(super) async fn later(&mut self, memory: &Memory) {
        self.last = Some(Instant::now());
        let error = self.write(memory).await.err();
        // A disk that is full is full in every pass.
        if let Some(error) = &error
            && self
                .told
                .as_ref()
                .is_none_or(|told| !told.says_the_same(error))
        {
            journal::report(error, None);
        }
        self.told = error;
    }

    async fn write(&mut self, memory: &Memory) -> Result<()> {
        if self.writing.as_ref().is_some_and(|it| !it.is_finished()) {
            return Err(stuck());
        }
        let (file, memory) = (Arc::clone(&self.file), memory.clone());
        let save = move || {
            file.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .save(&memory)
        };
        let mut writing = tokio::task::spawn_blocking(save);
        let Ok(saved) = timeout(self.limit, &mut writing).await else {
            self.writing = Some(writing);
            return Err(stuck());
        };
        saved.unwrap_or_else(|_| {
            Err(Error::new(
                Kind::Internal,
                "the thread that writes the state ended early",
            )
            .hint("please report it, with the daemon's journal"))
        })
    }
}

fn stuck() -> Error {
    Error::new(Kind::Timeout, "the state is not written down yet")
        .because("its disk does not take it")
        .hint("until it is, a restart forgets what was tried since; the kernel's log may say what is wrong with the disk")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_that_takes_nothing_is_not_waited_for() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut saving = Saving::new(StateFile::new(dir.path()));
        saving.limit = Duration::from_millis(50);
        let memory = Memory::default();
        let file = Arc::clone(&saving.file);
        let (held, begun) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let disk = std::thread::spawn(move || {
            let _file = file.lock().expect("free");
            held.send(()).expect("somebody waits");
            let _ = ended.recv();
        });
        begun.recv().expect("it is held");
        saving.later(&memory).await;
        assert_eq!(saving.told.as_ref().map(Error::kind), Some(Kind::Timeout));
        // Neither is it at the end.
        assert_eq!(saving.now(&memory).expect_err("held").kind(), Kind::Timeout);
        // There is one thread that waits, however often it is tried.
        let first = saving.writing.as_ref().map(JoinHandle::id);
        saving.later(&memory).await;
        assert_eq!(saving.writing.as_ref().map(JoinHandle::id), first);
        drop(end);
        disk.join().expect("it ends");
        while saving.writing.as_ref().is_some_and(|it| !it.is_finished()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        saving.later(&memory).await;
        assert!(saving.told.is_none());
        saving.now(&memory).expect("written");
    }
}
