use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::{
    reconcile::Why,
    redact::Secret,
    schedule::{Jitter, Windows},
};

fn settings() -> Settings {
    Settings {
        windows: Windows::default(),
        jitter: Jitter::new(Secret::new("m"), None),
        backoff: Backoff::default(),
    }
}

fn key(name: &str) -> Key {
    Key {
        reference: format!("r.example/{name}:1"),
        platform: "host".to_owned(),
        namespace: "default".to_owned(),
    }
}

fn record(name: &str) -> Record {
    Record::of(&key(name))
}

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

const NOW: &str = "2026-11-28T12:00:00Z";

#[test]
fn failures_add_up_until_something_succeeds() {
    let mut memory = Memory::first();
    let now = at(NOW);
    let error = Error::new(Kind::Unavailable, "cannot fetch").registry("r.example");
    let pull = Step::Pull(Why::Due);
    for count in 1..4_u32 {
        memory.failed(&key("a"), now, pull, &error, &settings());
        let remembered = memory.get(&key("a")).expect("remembered");
        assert_eq!(remembered.failures, count);
        let wait = now
            .until(remembered.next_try.expect("a wait"))
            .expect("later");
        let seconds = wait.get_seconds();
        assert!(
            seconds >= 5 << (count - 1) && seconds <= 10 << (count - 1),
            "{wait}"
        );
        let json = remembered.error.as_ref().expect("an error");
        assert_eq!(json["kind"], "unavailable");
        assert_eq!(json["registry"], "r.example");
    }
    memory.succeeded(&key("a"), now, Step::Pull(Why::Due));
    let expected = Remembered {
        last_check: Some(now),
        last_success: Some(now),
        ..Remembered::default()
    };
    assert_eq!(memory.get(&key("a")), Some(&expected));
    // A pin says nothing about the registry, and a registry that is away nothing about pins.
    let later = at("2026-11-28T13:00:00Z");
    memory.succeeded(&key("a"), later, Step::Pin(true));
    assert_eq!(memory.get(&key("a")), Some(&expected));
    for (kind, left) in [(Kind::Unavailable, 1), (Kind::ContainerdUnavailable, 0)] {
        memory.failed(&key("a"), now, pull, &Error::new(kind, "no"), &settings());
        for step in [Step::Pin(true), Step::Trim, Step::Recheck] {
            memory.succeeded(&key("a"), later, step);
            let remembered = memory.get(&key("a")).expect("remembered");
            assert_eq!(remembered.failures, left, "{kind:?} {step:?}");
            assert_eq!(remembered.error.is_some(), left == 1);
        }
        memory.succeeded(&key("a"), now, pull);
        let compared = Remembered {
            sound: true,
            ..expected.clone()
        };
        assert_eq!(memory.get(&key("a")), Some(&compared));
        // The same word of the engine about a record says nothing of a registry.
        let error = Error::new(kind, "no");
        memory.failed(&key("a"), now, Step::Recheck, &error, &settings());
        memory.succeeded(&key("a"), now, Step::Pin(true));
        assert_eq!(memory.get(&key("a")), Some(&compared));
    }
}

#[test]
fn a_clock_that_cannot_be_right_is_tried_within_five_minutes() {
    let mut memory = Memory::first();
    let now = at("1970-01-01T00:10:00Z");
    let error = Error::new(Kind::Unavailable, "cannot fetch");
    for _ in 0..20 {
        memory.failed(
            &key("a"),
            now,
            Step::Pull(Why::Missing),
            &error,
            &settings(),
        );
    }
    let next = |memory: &Memory, name| memory.get(&key(name)).and_then(|r| r.next_try);
    assert!(next(&memory, "a").expect("a wait") <= at("1970-01-01T00:15:00Z"));
    memory.postpone(&[key("b")], now, &settings());
    assert_eq!(next(&memory, "b"), Some(at("1970-01-01T00:15:00Z")));
    // Once is enough; and nothing has failed.
    memory.postpone(&[key("b")], at("1970-01-01T00:14:00Z"), &settings());
    assert_eq!(next(&memory, "b"), Some(at("1970-01-01T00:15:00Z")));
    assert_eq!(memory.get(&key("b")).expect("remembered").failures, 0);
}

#[test]
fn after_an_unclean_stop_everything_is_compared_once() {
    let mut memory = Memory::default();
    memory.succeeded(&key("a"), at(NOW), Step::Pull(Why::Missing));
    memory.unclean([key("b")]);
    for name in ["a", "b"] {
        assert!(memory.get(&key(name)).expect("remembered").recheck);
    }
    memory.succeeded(&key("a"), at(NOW), Step::Pull(Why::Missing));
    assert!(
        memory.get(&key("a")).expect("remembered").recheck,
        "layers that were here count"
    );
    memory.succeeded(&key("a"), at(NOW), Step::Recheck);
    assert!(!memory.get(&key("a")).expect("remembered").recheck);
}

#[test]
fn a_daemon_that_is_killed_again_and_again_comes_to_the_end_of_its_comparing() {
    let rechecks = |memory: &Memory| {
        let names = ["a", "b"];
        names.map(|name| memory.get(&key(name)).expect("remembered").recheck)
    };
    let mut memory = Memory::default();
    memory.begin("first");
    memory.unclean([key("a"), key("b")]);
    memory.succeeded(&key("a"), at(NOW), Step::Recheck);
    // Killed, and started again: what was compared in this boot still counts.
    let restarted = |memory: &Memory, boot: &str| {
        let mut memory = Memory::from_json(&memory.to_json()).expect("our own");
        memory.begin(boot);
        memory.unclean([key("a"), key("b")]);
        memory
    };
    memory = restarted(&memory, "first");
    assert_eq!(rechecks(&memory), [false, true]);
    memory.succeeded(&key("b"), at(NOW), Step::Recheck);
    memory = restarted(&memory, "first");
    assert_eq!(rechecks(&memory), [false, false]);
    // In another boot the power may have been lost; and who cannot tell boots apart must
    // think so.
    assert_eq!(rechecks(&restarted(&memory, "second")), [true, true]);
    assert_eq!(
        rechecks(&restarted(&restarted(&memory, ""), "")),
        [true, true]
    );
}

#[test]
fn what_nobody_asks_for_is_not_remembered_for_ever() {
    let mut memory = Memory::first();
    memory.undesired_since(&record("a"), at(NOW));
    assert_eq!(memory.undesired().collect::<Vec<_>>(), [&record("a")]);
    memory.forget_undesired();
    assert_eq!(memory.undesired().count(), 0);
}

#[test]
fn what_is_not_desired_is_remembered_until_it_is_removed() {
    let mut memory = Memory::first();
    for name in ["a", "b", "c"] {
        memory.succeeded(&key(name), at(NOW), Step::Pull(Why::Missing));
    }
    let day = Duration::from_secs(86400);
    let (tomorrow, after) = (at("2026-11-29T12:00:00Z"), at("2026-11-29T12:00:01Z"));
    memory.forget(&[key("a")].into(), at("1980-01-01T00:00:00Z"));
    assert!(memory.get(&key("b")).is_some(), "who knows when that was");
    memory.forget(&[key("a")].into(), at(NOW));
    assert!(memory.get(&key("a")).is_some() && memory.get(&key("b")).is_none());
    memory.forget(&[key("a")].into(), tomorrow);
    assert_eq!(memory.removable(at(NOW), day), []);
    assert_eq!(memory.removable(tomorrow, day), [record("b"), record("c")]);
    assert_eq!(memory.next_removal(day), Some(tomorrow));
    assert_eq!(memory.undesired_since(&record("b"), after), Some(at(NOW)));
    assert_eq!(memory.undesired_since(&record("d"), after), Some(after));
    // One is declared again, another removed.
    memory.forget(&[key("a"), key("b")].into(), after);
    memory.removed(&record("d"));
    assert_eq!(memory.removable(tomorrow, day), [record("c")]);
    assert_eq!(
        memory.removable(at("1970-01-01T00:00:00Z"), Duration::ZERO),
        []
    );
}

/// A record is one for all platforms, and goes when none of them is desired.
#[test]
fn a_record_is_desired_as_long_as_one_of_its_platforms_is() {
    let mut memory = Memory::first();
    let arm = Key {
        platform: "linux/arm/v7".to_owned(),
        ..key("a")
    };
    for key in [&key("a"), &arm] {
        memory.succeeded(key, at(NOW), Step::Pull(Why::Missing));
    }
    memory.forget(&[key("a")].into(), at(NOW));
    assert!(memory.get(&arm).is_none());
    assert_eq!(memory.undesired().count(), 0);
    memory.forget(&[].into(), at(NOW));
    assert_eq!(memory.undesired().collect::<Vec<_>>(), [&record("a")]);
}

#[test]
fn the_list_of_what_was_once_desired_has_an_end() {
    let mut memory = Memory::first();
    let mut moment = at(NOW);
    for number in 0..=MOST_UNDESIRED {
        moment = later(moment, Duration::from_secs(1));
        memory.undesired_since(&record(&number.to_string()), moment);
    }
    let all = memory.removable(moment, Duration::ZERO);
    assert_eq!(all.len(), MOST_UNDESIRED);
    assert!(!all.contains(&record("0")), "the oldest went");
}

#[test]
fn keys_of_a_later_version_are_passed_over() {
    let text = br#"{"schema":"edgepull.state/1.3","clean":true,"new":[1],"images":[
        {"reference":"r.example/a:1","platform":"host","namespace":"default","new":{},
         "failures":2,"next_try":"2026-11-28T12:00:00Z"}]}"#;
    let memory = Memory::from_json(text).expect("understood");
    assert!(memory.is_clean());
    let remembered = memory.get(&key("a")).expect("remembered");
    assert_eq!(
        *remembered,
        Remembered {
            failures: 2,
            next_try: Some(at(NOW)),
            ..Remembered::default()
        }
    );
}

fn moment() -> impl Strategy<Value = Timestamp> {
    (-2_000_000_000_i64..4_000_000_000, 0_i32..1_000_000_000)
        .prop_map(|(seconds, nanos)| Timestamp::new(seconds, nanos).expect("within bounds"))
}

fn remembered() -> impl Strategy<Value = Remembered> {
    let maybe = || proptest::option::of(moment());
    let error = proptest::option::of("\\PC{0,20}");
    (
        maybe(),
        maybe(),
        any::<u32>(),
        maybe(),
        error,
        any::<bool>(),
    )
        .prop_map(
            |(last_check, last_success, failures, next_try, error, recheck)| Remembered {
                sound: !recheck,
                of_fetching: recheck,
                last_check,
                last_success,
                failures,
                next_try,
                error: error.map(|text| serde_json::json!({"kind": "internal", "message": text})),
                recheck,
            },
        )
}

proptest! {
    #[test]
    fn what_is_written_reads_back(
        images in proptest::collection::btree_map("\\PC{1,10}", remembered(), 0..8),
        undesired in proptest::collection::btree_map("\\PC{1,10}", moment(), 0..8),
        clean: bool,
    ) {
        let memory = Memory {
            images: images.into_iter().map(|(name, one)| (key(&name), one)).collect(),
            undesired: undesired.into_iter().map(|(name, one)| (record(&name), one)).collect(),
            clean,
            boot: "a boot".to_owned(),
        };
        prop_assert_eq!(Memory::from_json(&memory.to_json()).expect("our own"), memory);
    }

    #[test]
    fn any_bytes_are_a_memory_or_refused(bytes: Vec<u8>, cut in 0_usize..400) {
        drop(Memory::from_json(&bytes));
        let mut memory = Memory::first();
        memory.unclean([key("a"), key("b")]);
        let mut document = memory.to_json();
        let whole = document.len();
        document.truncate(cut);
        prop_assert_eq!(Memory::from_json(&document).is_ok(), cut >= whole);
    }
}
