//! Who undoes what: a step that is needed again and again is somebody else's will, and doing
//! it once more only wears the disk out.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    desired::Key,
    reconcile::{Step, Why},
};

/// How far back is looked.
const WINDOW: Duration = Duration::from_secs(10 * 60);
/// A person who takes an image away a few times gets it back at once each time; so often
/// in [`WINDOW`] is a program.
const MOST: usize = 6;

/// Steps that went well, and when.
#[derive(Debug, Default)]
pub(super) struct Disputes(Vec<(Instant, Key, Step)>);

impl Disputes {
    /// The step was taken, and did what it should. What is done because its time has come, or
    /// because somebody asks for it, is nobody's undoing.
    pub(super) fn done(&mut self, key: &Key, step: Step, now: Instant) {
        if !matches!(step, Step::Pull(Why::Due | Why::Asked)) {
            self.0.push((now, key.clone(), step));
        }
    }

    /// Whether the step was taken so often that it is not worth taking now.
    pub(super) fn is_futile(&mut self, key: &Key, step: Step, now: Instant) -> bool {
        self.0
            .retain(|(at, ..)| now.saturating_duration_since(*at) < WINDOW);
        let same = |(_, of, what): &&(Instant, Key, Step)| *what == step && of == key;
        self.0.iter().filter(same).count() >= MOST
    }
}

/// Which step lost the engine last.
#[derive(Debug, Default)]
pub(super) struct Suspect(Option<(Key, Step)>);

impl Suspect {
    /// The engine went during this step. Whether that is to be counted against the image:
    /// once is the engine's affair; the same step again, when the engine had answered in
    /// between, is that image's (a plugin that does not answer, an engine that dies of it),
    /// and the others must not wait for it.
    pub(super) fn lost(&mut self, key: &Key, step: Step) -> bool {
        let now = Some((key.clone(), step));
        let again = self.0 == now;
        self.0 = now;
        again
    }

    /// A step for the image went well.
    pub(super) fn clear(&mut self, key: &Key) {
        if self.0.as_ref().is_some_and(|(suspect, _)| suspect == key) {
            self.0 = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    fn key(reference: &str) -> Key {
        Key {
            reference: reference.to_owned(),
            platform: "host".to_owned(),
            namespace: "default".to_owned(),
        }
    }

    #[test]
    fn an_engine_that_goes_with_the_same_image_each_time_is_that_images_fault() {
        let mut suspect = Suspect::default();
        let pull = Step::Pull(Why::Missing);
        assert!(!suspect.lost(&key("a"), pull), "it may have been restarted");
        assert!(suspect.lost(&key("a"), pull));
        assert!(suspect.lost(&key("a"), pull), "and stays so");
        assert!(!suspect.lost(&key("b"), pull));
        suspect.clear(&key("a"));
        assert!(suspect.lost(&key("b"), pull), "another one's success");
        suspect.clear(&key("b"));
        assert!(!suspect.lost(&key("b"), pull));
    }

    #[test]
    fn what_comes_because_it_is_time_is_no_dispute() {
        let mut disputes = Disputes::default();
        let start = Instant::now();
        for why in [Why::Due, Why::Asked] {
            let pull = Step::Pull(why);
            for minute in 0..20 {
                let now = start + Duration::from_secs(60 * minute);
                assert!(!disputes.is_futile(&key("a"), pull, now), "{minute}");
                disputes.done(&key("a"), pull, now);
            }
        }
    }

    #[test]
    fn what_is_undone_again_and_again_is_left_alone_for_a_while() {
        let mut disputes = Disputes::default();
        let start = Instant::now();
        let pin = Step::Pin(true);
        let mut taken = 0;
        // An hour in which somebody undoes it every second.
        for second in 0..3600 {
            let now = start + Duration::from_secs(second);
            if !disputes.is_futile(&key("a"), pin, now) {
                disputes.done(&key("a"), pin, now);
                taken += 1;
            }
        }
        assert_eq!(taken, 6 * MOST);
        let now = start + Duration::from_secs(3599);
        assert!(!disputes.is_futile(&key("b"), pin, now), "another image");
        assert!(!disputes.is_futile(&key("a"), Step::Pull(Why::Missing), now));
        assert!(disputes.0.len() <= MOST, "nothing is kept for ever");
    }
}
