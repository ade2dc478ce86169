//! Watching the configuration: changed files are noticed by themselves, without polling.
//!
//! Directories are watched, not files: editors write a new file and rename it, and a
//! `ConfigMap` is changed by renaming the link `..data`. What does not exist yet is waited
//! for in the nearest directory that does.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    io,
    os::fd::{AsFd, AsRawFd, RawFd},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    time::{Instant, timeout_at},
};

/// No event for this long, and a change is over.
const CALM: Duration = Duration::from_millis(500);
/// Somebody who never stops writing is not waited for any longer.
const LONGEST: Duration = Duration::from_secs(5);

/// Directories that appear while they are looked for are looked for again, this often.
const ARMINGS: usize = 4;

/// The link that a `ConfigMap`'s files go through.
const DATA: &str = "..data";

/// What is watched: it tells that something changed, never what.
#[derive(Debug)]
pub struct Watch {
    inotify: Option<AsyncFd<Queue>>,
    targets: Vec<Target>,
    places: Vec<Place>,
    /// Something changed that nobody was told of yet.
    pending: bool,
}

#[derive(Debug)]
struct Queue(Inotify);

impl AsRawFd for Queue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Within the runtime.
#[expect(
    deprecated,
    reason = "its successor differs in being `unsafe`, and asks for a descriptor that stays open \
              and the same: `Queue` owns it and never hands it out"
)]
fn register(inotify: Inotify) -> io::Result<AsyncFd<Queue>> {
    AsyncFd::with_interest(Queue(inotify), Interest::READABLE)
}

#[derive(Debug, Clone)]
enum Target {
    /// Every file in it.
    Directory(PathBuf),
    File(PathBuf),
}

/// Names that count, by directory; `None`: all.
type Wanted = BTreeMap<PathBuf, Option<BTreeSet<OsString>>>;

/// One watched directory.
#[derive(Debug)]
struct Place {
    descriptor: WatchDescriptor,
    /// Names that count; `None`: all.
    names: Option<BTreeSet<OsString>>,
}

impl Watch {
    /// Watches every file in `directories`, and `files`. Begin before reading them, so that
    /// no change is missed. Where the kernel refuses, nothing is watched, and that is said.
    pub fn new(directories: &[&Path], files: &[&Path]) -> Self {
        let targets = directories
            .iter()
            .map(|path| Target::Directory(absolute(path)))
            .chain(files.iter().map(|path| Target::File(absolute(path))))
            .collect();
        let opened = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
            .map_err(io::Error::from)
            .and_then(register);
        let inotify = match opened {
            Ok(inotify) => Some(inotify),
            Err(error) => {
                refused(&error);
                None
            }
        };
        let mut watch = Self {
            inotify,
            targets,
            places: Vec::new(),
            pending: false,
        };
        watch.arm();
        watch
    }

    /// Ends when something has changed, and has been calm since. May be dropped and called
    /// again; a change in between counts.
    pub async fn changed(&mut self) {
        while !self.pending {
            self.pending = self.some_change().await;
        }
        let end = Instant::now() + LONGEST;
        let mut calm = Instant::now() + CALM;
        while let Ok(counts) = timeout_at(calm.min(end), self.some_change()).await {
            if counts {
                calm = Instant::now() + CALM;
            }
        }
        self.pending = false;
    }

    /// Waits for events; whether one of them counts.
    async fn some_change(&mut self) -> bool {
        let Some(inotify) = &self.inotify else {
            return std::future::pending().await;
        };
        let read = async {
            loop {
                let mut ready = inotify.readable().await?;
                match ready.try_io(|queue| Ok(queue.get_ref().0.read_events()?)) {
                    Ok(events) => return events,
                    Err(_would_block) => {}
                }
            }
        };
        let events: io::Result<Vec<InotifyEvent>> = read.await;
        match events {
            Ok(events) => {
                let counts = events.iter().any(|event| self.counts(event));
                if counts {
                    self.arm();
                }
                counts
            }
            Err(error) => {
                refused(&error);
                self.inotify = None;
                false
            }
        }
    }

    fn counts(&self, event: &InotifyEvent) -> bool {
        // Events were lost: something may have happened.
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return true;
        }
        let of_place = self
            .places
            .iter()
            .find(|place| place.descriptor == event.wd);
        match (of_place, &event.name) {
            // A place that is no longer watched, or that was replaced.
            (None, _) => false,
            // The directory itself is gone.
            (Some(_), None) => true,
            (Some(place), Some(name)) => place
                .names
                .as_ref()
                .is_none_or(|names| names.contains(name)),
        }
    }

    /// Watches what there is now, and no longer what there was.
    fn arm(&mut self) {
        let mut wanted = self.wanted();
        for _ in 0..ARMINGS {
            self.watch(wanted.clone());
            // What was made before its directory was watched has no event.
            let now = self.wanted();
            if now == wanted {
                break;
            }
            wanted = now;
        }
    }

    /// The directories to watch, each with the names in it that count.
    fn wanted(&self) -> Wanted {
        let mut wanted = Wanted::new();
        for target in &self.targets {
            for (directory, name) in places_of(target) {
                let names = wanted
                    .entry(directory)
                    .or_insert_with(|| Some(BTreeSet::new()));
                match (names.as_mut(), name) {
                    (Some(names), Some(name)) => {
                        names.insert(name);
                    }
                    _ => *names = None,
                }
            }
        }
        wanted
    }

    fn watch(&mut self, wanted: Wanted) {
        let Some(inotify) = &self.inotify else {
            return;
        };
        let queue = &inotify.get_ref().0;
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_ATTRIB
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        let mut places: Vec<Place> = Vec::new();
        for (directory, names) in wanted {
            match queue.add_watch(&directory, flags) {
                Ok(descriptor) => {
                    // Two names of one directory are one watch.
                    let same = places
                        .iter_mut()
                        .find(|place| place.descriptor == descriptor);
                    match (same, names) {
                        (None, names) => places.push(Place { descriptor, names }),
                        (Some(place), Some(more)) => {
                            if let Some(known) = place.names.as_mut() {
                                known.extend(more);
                            }
                        }
                        (Some(place), None) => place.names = None,
                    }
                }
                // It went away just now; its parent tells when it is back.
                Err(Errno::ENOENT | Errno::ENOTDIR) => {}
                Err(errno) => refused(&errno.into()),
            }
        }
        for old in &self.places {
            let still = places
                .iter()
                .any(|place| place.descriptor == old.descriptor);
            if !still {
                // The kernel has forgotten it already if the directory was removed.
                let _ = queue.rm_watch(old.descriptor);
            }
        }
        self.places = places;
    }
}

/// The directories to watch for `target`, each with the one name in it that counts.
fn places_of(target: &Target) -> Vec<(PathBuf, Option<OsString>)> {
    let (path, mut places) = match target {
        Target::Directory(path) if path.is_dir() => (path, vec![(path.clone(), None)]),
        Target::Directory(path) | Target::File(path) => (path, Vec::new()),
    };
    // The nearest directory above that exists, for the name that leads on from there. Above
    // it nothing is watched: a whole tree that is renamed is rare, and /etc is busy.
    let mut below = path.as_path();
    while let Some(parent) = below.parent() {
        if parent.is_dir() {
            let name = below.file_name().map(OsString::from);
            places.push((parent.to_owned(), name));
            places.push((parent.to_owned(), Some(DATA.into())));
            break;
        }
        below = parent;
    }
    places
}

/// inotify knows no `..` above a directory that does not exist.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn refused(error: &io::Error) {
    tracing::warn!(
        %error,
        "cannot watch the configuration for changes; reload with `systemctl reload edgepull` \
         (SIGHUP), or raise fs.inotify.max_user_watches and max_user_instances"
    );
}

#[cfg(test)]
mod tests;
