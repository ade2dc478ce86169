//! What to do now, and when to look again. Pure: the same world gives the same plan.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::{Timestamp, Zoned};

use super::{Memory, Observed, Remembered, Step, Why};
use crate::{
    clock,
    desired::{Desired, Key},
    schedule::{Backoff, Refresh, Settings},
};

/// While the clock cannot be right it is looked at so often; it costs nothing.
const LOOK: Duration = Duration::from_secs(30);

/// Steps in the order in which they are taken, and what they wait for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Where one fails, the later ones of the same image are not to be taken.
    pub steps: Vec<(Key, Step)>,
    /// When the plan would differ because of the time alone; later than now.
    pub wake: Option<Timestamp>,
    /// What is held up by a clock that cannot be right, for [`Memory::postpone`].
    pub postponed: Vec<Key>,
    /// What is as it should be and not due, though its last try failed: somebody else made
    /// it good, and nothing that is done would say so. For [`Memory::settle`].
    pub settled: Vec<Key>,
}

/// The order of steps of different images; those of one image have it, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// Somebody waits for it.
    Asked,
    Missing,
    Recheck,
    Pin,
    Due,
    Trim,
}

/// Plans for every desired image that was observed; one whose engine does not answer is
/// not in `observed`, and nothing is done about it.
///
/// - What is in `asked` is pulled now: before its time, outside windows, in spite of
///   earlier failures, and with a clock that cannot be right. A person waits, and sees
///   what comes of it.
/// - Nothing else is done for an image before its `next_try`; only what needs no registry
///   does not wait for one that failed.
/// - What fetches waits for a window, and for this host's moment after it opens; comparing,
///   pins and letting go do not.
/// - With a clock that cannot be right, what fetches is postponed, by five minutes for
///   each try ([`Memory::postpone`]): a device whose clock is never set gets its images
///   from a registry that does not mind, and asks no other in vain too often.
pub fn plan(
    now: &Zoned,
    desired: &[Desired],
    observed: &BTreeMap<Key, Observed>,
    memory: &Memory,
    settings: &Settings,
    asked: &BTreeSet<Key>,
) -> Plan {
    let moment = now.timestamp();
    let mut planner = Planner {
        now: moment,
        open: settings.windows.is_open(now),
        plausible: clock::plausible(moment),
        ranked: Vec::new(),
        postponed: BTreeSet::new(),
        settled: Vec::new(),
        local: None,
        fetch: None,
    };
    let unknown = Remembered::default();
    for (place, desired) in desired.iter().enumerate() {
        let key = desired.key();
        if let Some(observed) = observed.get(&key) {
            let image = Image {
                place,
                asked: asked.contains(&key),
                remembered: memory.get(&key).unwrap_or(&unknown),
                desired,
                observed,
                key,
            };
            planner.image(&image, settings);
        }
    }
    planner.finish(now, settings)
}

struct Image<'a> {
    place: usize,
    asked: bool,
    key: Key,
    desired: &'a Desired,
    observed: &'a Observed,
    remembered: &'a Remembered,
}

struct Planner {
    now: Timestamp,
    open: bool,
    plausible: bool,
    /// With failures and place in the declaration, to be sorted by.
    ranked: Vec<(Rank, u32, usize, Key, Step)>,
    postponed: BTreeSet<Key>,
    settled: Vec<Key>,
    /// The earliest later moment for a step that fetches nothing, and for one that does,
    /// windows aside.
    local: Option<Timestamp>,
    fetch: Option<Timestamp>,
}

impl Planner {
    fn image(&mut self, image: &Image<'_>, settings: &Settings) {
        let Image {
            desired,
            observed,
            remembered,
            ..
        } = image;
        let is_here = observed.target.is_some() && observed.complete;
        let from = self.from(remembered);
        let local_from = if remembered.of_fetching {
            self.now
        } else {
            from
        };
        if image.asked {
            self.take(image, Rank::Asked, Step::Pull(Why::Asked));
        } else if !is_here {
            self.fetch(image, Rank::Missing, Why::Missing, from);
        } else if let Some(due) = self.due(image, settings) {
            self.fetch(image, Rank::Due, Why::Due, due.max(from));
        }
        // An image that is asked for may have to be mended, too; its time counts for that.
        let comes = is_here || image.asked || self.is_taken(image);
        if remembered.recheck && comes {
            self.local(image, Rank::Recheck, Step::Recheck, local_from);
        }
        if is_here && observed.pinned != desired.pin {
            self.local(image, Rank::Pin, Step::Pin(desired.pin), local_from);
        }
        if is_here && observed.previous.len() > desired.keep_previous {
            self.local(image, Rank::Trim, Step::Trim, local_from);
        }
        let is_due = self.due(image, settings).is_some_and(|at| at <= self.now);
        let is_well = is_here
            && observed.pinned == desired.pin
            && observed.previous.len() <= desired.keep_previous
            && !remembered.recheck;
        // Until then it is told.
        let is_told = from > self.now;
        if is_well && !is_due && !is_told && !image.asked && remembered.error.is_some() {
            self.settled.push(image.key.clone());
        }
    }

    /// From when on anything is done for an image. A moment that no wait reaches was
    /// written by a clock that has been put back since.
    fn from(&self, remembered: &Remembered) -> Timestamp {
        remembered
            .next_try
            .filter(|next| *next <= later(self.now, Backoff::MOST))
            .map_or(self.now, |next| next.max(self.now))
    }

    /// When a present image is compared with its registry.
    fn due(&self, image: &Image<'_>, settings: &Settings) -> Option<Timestamp> {
        let Refresh::Every(every) = image.desired.refresh else {
            return None;
        };
        let Some(last) = image.remembered.last_check else {
            return Some(self.now);
        };
        // The clock was ahead when that was written.
        if last > later(self.now, every) {
            return Some(self.now);
        }
        let offset = settings.jitter.offset(&image.key.to_string(), every);
        Some(later(later(last, every), offset).max(self.now))
    }

    fn take(&mut self, image: &Image<'_>, rank: Rank, step: Step) {
        let failures = match rank {
            // One that fails again and again does not come before one that may not.
            Rank::Missing | Rank::Due => image.remembered.failures,
            _ => 0,
        };
        let key = image.key.clone();
        self.ranked.push((rank, failures, image.place, key, step));
    }

    fn is_taken(&self, image: &Image<'_>) -> bool {
        let last = self.ranked.last();
        last.is_some_and(|(_, _, place, _, _)| *place == image.place)
    }

    fn local(&mut self, image: &Image<'_>, rank: Rank, step: Step, at: Timestamp) {
        if at <= self.now {
            self.take(image, rank, step);
        } else {
            self.local = Some(self.local.map_or(at, |earliest| earliest.min(at)));
        }
    }

    fn fetch(&mut self, image: &Image<'_>, rank: Rank, why: Why, at: Timestamp) {
        if at <= self.now && self.open {
            // One that was written by the right clock says nothing about this one.
            let next = image.remembered.next_try;
            let waited = next.is_some_and(|next| next <= self.now);
            if self.plausible || waited {
                self.take(image, rank, Step::Pull(why));
            } else {
                self.postponed.insert(image.key.clone());
            }
        } else {
            self.fetch = Some(self.fetch.map_or(at, |earliest| earliest.min(at)));
        }
    }

    fn finish(mut self, now: &Zoned, settings: &Settings) -> Plan {
        self.ranked.sort_by_key(|step| (step.0, step.1, step.2));
        let fetch = self.fetch.map(|at| {
            let at = at.to_zoned(now.time_zone().clone());
            settings.windows.opens_at(&at).timestamp()
        });
        // When the clock is set, what was far off may be now, and nobody tells us.
        let waits = !self.postponed.is_empty() || self.fetch.is_some();
        let look = (waits && !self.plausible).then(|| later(self.now, LOOK));
        let wake = [self.local, fetch, look].into_iter().flatten().min();
        let steps = self.ranked.into_iter();
        Plan {
            steps: steps.map(|(_, _, _, key, step)| (key, step)).collect(),
            wake: wake.filter(|wake| *wake > self.now),
            postponed: self.postponed.into_iter().collect(),
            settled: self.settled,
        }
    }
}

pub(super) fn later(at: Timestamp, by: Duration) -> Timestamp {
    at.checked_add(by).unwrap_or(Timestamp::MAX)
}

#[cfg(test)]
mod tests;
