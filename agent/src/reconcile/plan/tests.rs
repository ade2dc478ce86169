use jiff::tz::TimeZone;
use proptest::prelude::*;

use super::*;
use crate::{
    desired::Origin,
    oci::{Digest, Reference},
    redact::Secret,
    schedule::{Jitter, Windows},
};

mod world;

use world::World;

const NOW: &str = "2026-11-28T12:00:00Z";
const HOUR: Duration = Duration::from_secs(3600);

fn at(text: &str) -> Timestamp {
    text.parse().expect("a time")
}

fn zoned(at: Timestamp) -> Zoned {
    at.to_zoned(TimeZone::UTC)
}

fn desired(name: &str, refresh: Refresh) -> Desired {
    Desired {
        reference: Reference::parse(&format!("r.example/{name}:1")).expect("valid"),
        platform: "host".to_owned(),
        namespace: "default".to_owned(),
        refresh,
        pin: true,
        keep_previous: 1,
        verify: crate::desired::Verify::None,
        artifact: None,
        origin: Origin {
            file: "a.toml".into(),
            line: 1,
        },
    }
}

/// As everything should be.
fn present() -> Observed {
    Observed {
        target: Some(Digest::of(b"1")),
        complete: true,
        pinned: true,
        previous: vec![],
    }
}

fn settings(windows: &[&str]) -> Settings {
    let windows = windows.iter().map(|text| text.parse().expect("a window"));
    Settings {
        windows: Windows::new(windows.collect()),
        jitter: Jitter::new(Secret::new("machine"), None),
        backoff: Backoff::default(),
    }
}

/// Images `a`, `b`, … that are refreshed every ten hours.
fn world(observed: impl IntoIterator<Item = Observed>) -> World {
    let mut world = World::new(settings(&[]), at(NOW));
    for (name, observed) in ["a", "b", "c", "d", "e"].into_iter().zip(observed) {
        world.add(desired(name, Refresh::Every(10 * HOUR)), Some(observed));
    }
    world
}

fn steps(plan: &Plan) -> Vec<(&str, Step)> {
    let steps = plan.steps.iter();
    steps
        .map(|(key, step)| {
            let name = key.reference.trim_start_matches("r.example/");
            (name.trim_end_matches(":1"), *step)
        })
        .collect()
}

#[test]
fn the_missing_come_first_then_the_doubtful_then_pins_then_refreshes() {
    let loose = Observed {
        pinned: false,
        previous: vec![Digest::of(b"2"), Digest::of(b"3")],
        ..present()
    };
    let broken = Observed {
        complete: false,
        ..loose.clone()
    };
    let mut world = world([present(), loose, broken, Observed::default(), present()]);
    for name in ["a", "b", "e"] {
        world.remember(name, |r| r.last_check = Some(at("2026-11-28T11:00:00Z")));
    }
    world.remember("a", |r| r.last_check = Some(at("2026-11-27T12:00:00Z")));
    world.remember("c", |r| r.failures = 1);
    world.remember("e", |r| r.recheck = true);
    assert_eq!(
        steps(&world.plan()),
        [
            ("d", Step::Pull(Why::Missing)),
            ("c", Step::Pull(Why::Missing)),
            ("e", Step::Recheck),
            ("b", Step::Pin(true)),
            ("a", Step::Pull(Why::Due)),
            ("b", Step::Trim),
        ]
    );
    // Somebody waits: before everything.
    world.ask("a");
    assert_eq!(steps(&world.plan())[0], ("a", Step::Pull(Why::Asked)));
}

#[test]
fn what_is_there_is_refreshed_when_its_time_and_its_hosts_offset_have_come() {
    let mut world = world([present()]);
    world.remember("a", |r| r.last_check = Some(at(NOW)));
    let plan = world.plan();
    assert_eq!(steps(&plan), []);
    let wake = plan.wake.expect("the refresh");
    let spread = 10 * HOUR + HOUR / 2;
    assert!(
        wake >= later(at(NOW), 10 * HOUR) && wake < later(at(NOW), spread),
        "{wake}"
    );
    world.now = wake;
    assert_eq!(steps(&world.plan()), [("a", Step::Pull(Why::Due))]);
    // Never asked: now.
    world.remember("a", |r| r.last_check = None);
    world.now = at(NOW);
    assert_eq!(steps(&world.plan()), [("a", Step::Pull(Why::Due))]);
    world.set_refresh(Refresh::Never);
    assert_eq!(world.plan(), Plan::default());
}

#[test]
fn a_clock_that_was_ahead_holds_nothing_up() {
    let mut world = world([present(), Observed::default()]);
    world.remember("a", |r| r.last_check = Some(at("2036-01-01T00:00:00Z")));
    world.remember("b", |r| r.next_try = Some(at("2036-01-01T00:00:00Z")));
    assert_eq!(
        steps(&world.plan()),
        [("b", Step::Pull(Why::Missing)), ("a", Step::Pull(Why::Due))]
    );
    // A little is no reason to ask everybody.
    world.remember("a", |r| r.last_check = Some(at("2026-11-28T12:00:05Z")));
    assert_eq!(steps(&world.plan()), [("b", Step::Pull(Why::Missing))]);
}

#[test]
fn fetching_waits_for_a_window_and_nothing_else_does() {
    let unpinned = Observed {
        pinned: false,
        ..present()
    };
    let mut world = world([unpinned, Observed::default()]);
    world.settings = settings(&["22:00-06:00"]);
    world.remember("a", |r| r.recheck = true);
    let plan = world.plan();
    assert_eq!(steps(&plan), [("a", Step::Recheck), ("a", Step::Pin(true))]);
    assert_eq!(plan.wake, Some(at("2026-11-28T22:00:00Z")));
    world.ask("b");
    assert_eq!(steps(&world.plan())[0], ("b", Step::Pull(Why::Asked)));
    world.asked.clear();
    // A try that falls out of the window waits for the next one.
    world.now = at("2026-11-29T05:59:00Z");
    world.remember("b", |r| r.next_try = Some(at("2026-11-29T06:10:00Z")));
    world.remember("a", |r| r.last_check = Some(at("2026-11-29T05:00:00Z")));
    let plan = world.plan();
    assert_eq!(plan.wake, Some(at("2026-11-29T22:00:00Z")));
    world.now = at("2026-11-29T22:00:00Z");
    assert!(steps(&world.plan()).contains(&("b", Step::Pull(Why::Missing))));
}

#[test]
fn nothing_is_done_before_the_next_try_unless_somebody_asks() {
    let unpinned = Observed {
        pinned: false,
        ..present()
    };
    let mut world = world([unpinned, Observed::default()]);
    for name in ["a", "b"] {
        world.remember(name, |r| {
            r.failures = 3;
            r.recheck = true;
            r.next_try = Some(at("2026-11-28T12:00:40Z"));
        });
    }
    let plan = world.plan();
    assert_eq!(steps(&plan), []);
    assert_eq!(plan.wake, Some(at("2026-11-28T12:00:40Z")));
    world.ask("b");
    assert_eq!(steps(&world.plan()), [("b", Step::Pull(Why::Asked))]);
}

/// A pin needs no registry, and one that limits us may be waited for a day.
#[test]
fn what_needs_no_registry_does_not_wait_for_one() {
    let loose = Observed {
        pinned: false,
        previous: vec![Digest::of(b"2"), Digest::of(b"3")],
        ..present()
    };
    let mut world = world([loose]);
    world.remember("a", |r| r.recheck = true);
    let key = desired("a", Refresh::Never).key();
    let limit = crate::error::Error::new(crate::kind::Kind::RateLimited, "slow down");
    let limit = limit.after(Some(5 * HOUR));
    let (now, settings) = (world.now, world.settings.clone());
    let due = Step::Pull(Why::Due);
    world.memory.failed(&key, now, due, &limit, &settings);
    let until = world.memory.get(&key).and_then(|r| r.next_try);
    assert!(until.is_some_and(|until| until >= later(now, 5 * HOUR)));
    let all = [
        ("a", Step::Recheck),
        ("a", Step::Pin(true)),
        ("a", Step::Trim),
    ];
    assert_eq!(steps(&world.plan()), all);
    world.run();
    // The registry's word still counts.
    let plan = world.plan();
    assert_eq!((steps(&plan), plan.wake), (vec![], until));
    // Room is made by letting go.
    let full = crate::error::Error::new(crate::kind::Kind::NoSpace, "the disk is full");
    for (name, step) in [("a", Step::Pull(Why::Due)), ("b", Step::Recheck)] {
        let mut world = self::world([present(), present()]);
        let key = desired(name, Refresh::Never).key();
        for observed in world.observed.values_mut() {
            observed.previous = vec![Digest::of(b"2"), Digest::of(b"3")];
        }
        world.memory.failed(&key, now, step, &full, &settings);
        let trims = steps(&world.plan()).contains(&(name, Step::Trim));
        assert_eq!(trims, name == "a", "{step:?}");
    }
    // What fails itself waits by itself.
    world.remember("a", |r| r.recheck = true);
    let away = crate::error::Error::new(crate::kind::Kind::NotFound, "no such record");
    world
        .memory
        .failed(&key, now, Step::Recheck, &away, &settings);
    let plan = world.plan();
    assert_eq!(
        (steps(&plan), plan.wake),
        (vec![], until),
        "and changes no word"
    );
}

#[test]
fn a_clock_that_cannot_be_right_is_waited_for_and_then_tried() {
    let mut world = world([present(), Observed::default()]);
    world.now = at("1970-01-01T00:00:10Z");
    world.remember("a", |r| r.recheck = true);
    let plan = world.plan();
    assert_eq!(steps(&plan), [("a", Step::Recheck)]);
    assert_eq!(plan.postponed.len(), 2);
    assert_eq!(plan.wake, Some(at("1970-01-01T00:00:40Z")));
    world.run();
    world.now = at("1970-01-01T00:05:09Z");
    assert_eq!(steps(&world.plan()), []);
    // Nobody sets this clock; the registry may not mind.
    world.now = at("1970-01-01T00:05:10Z");
    assert_eq!(
        steps(&world.plan()),
        [("b", Step::Pull(Why::Missing)), ("a", Step::Pull(Why::Due))]
    );
    // A wait from before the power failed says nothing.
    world.remember("b", |r| r.next_try = Some(at(NOW)));
    let plan = world.run();
    assert_eq!(steps(&plan), [("a", Step::Pull(Why::Due))]);
    assert_eq!(plan.postponed.len(), 1);
    world.now = at("1970-01-01T00:10:10Z");
    assert_eq!(steps(&world.plan())[0], ("b", Step::Pull(Why::Missing)));
    world.remember("a", |r| r.last_check = None);
    // It is set meanwhile: at once.
    world.now = at(NOW);
    assert_eq!(steps(&world.plan()).len(), 2);
    let mut asked = self::world([Observed::default()]);
    asked.now = at("1970-01-01T00:00:10Z");
    asked.ask("a");
    assert_eq!(steps(&asked.plan()), [("a", Step::Pull(Why::Asked))]);
}

#[test]
fn an_engine_that_is_away_is_left_alone() {
    let mut world = World::new(settings(&[]), at(NOW));
    world.add(desired("a", Refresh::Every(HOUR)), None);
    world.remember("a", |r| r.recheck = true);
    world.ask("a");
    assert_eq!(world.plan(), Plan::default());
}

#[derive(Debug, Clone)]
struct Any {
    desired: (Option<u64>, bool, usize),
    observed: Option<(bool, bool, bool, usize)>,
    last_check: Option<i64>,
    failures: u32,
    next_try: Option<i64>,
    recheck: bool,
    fails: bool,
}

fn any_image() -> impl Strategy<Value = Any> {
    let desired = (
        proptest::option::of(60_u64..100_000),
        any::<bool>(),
        0_usize..3,
    );
    let observed = proptest::option::weighted(
        0.9,
        (any::<bool>(), any::<bool>(), any::<bool>(), 0_usize..5),
    );
    // Either possible, or from a clock that was far ahead.
    let far = || 10_000_000_i64..20_000_000;
    let last_check = proptest::option::of(prop_oneof![9 => -200_000_i64..60, 1 => far()]);
    let next_try = proptest::option::of(prop_oneof![9 => -4_000_i64..80_000, 1 => far()]);
    let rest = (0_u32..40, any::<bool>(), any::<bool>());
    (desired, observed, last_check, next_try, rest).prop_map(
        |(desired, observed, last_check, next_try, (failures, recheck, fails))| Any {
            desired,
            observed,
            last_check,
            failures,
            next_try,
            recheck,
            fails,
        },
    )
}

fn any_world(images: Vec<Any>, windows: &[&str], thorough: bool, now: Timestamp) -> World {
    let mut world = World::new(settings(windows), now);
    world.thorough = thorough;
    for (number, image) in images.into_iter().enumerate() {
        let name = format!("i{number}");
        let (every, pin, keep_previous) = image.desired;
        let every = every.map(Duration::from_secs);
        let desired = Desired {
            pin,
            keep_previous,
            ..desired(&name, every.map_or(Refresh::Never, Refresh::Every))
        };
        let observed = image
            .observed
            .map(|(there, complete, pinned, previous)| Observed {
                target: there.then(|| Digest::of(b"1")),
                complete,
                pinned,
                previous: (0..previous)
                    .map(|n| Digest::of(&[1, u8::try_from(n).expect("few")]))
                    .collect(),
            });
        let from = |seconds: Option<i64>| {
            let second = seconds.map(|seconds| now.as_second().saturating_add(seconds));
            second.and_then(|second| Timestamp::from_second(second).ok())
        };
        if image.fails {
            world.failing.insert(desired.key());
        }
        world.add(desired, observed);
        world.remember(&name, |r| {
            r.last_check = from(image.last_check);
            r.failures = image.failures;
            r.next_try = from(image.next_try);
            r.recheck = image.recheck;
        });
    }
    world
}

fn images() -> impl Strategy<Value = Vec<Any>> {
    proptest::collection::vec(any_image(), 0..8)
}

proptest! {
    /// From any state, with pulls that leave everything as declared or the least: what is
    /// done until nothing is left to do now, and then whenever the plan says, ends with
    /// everything as it should be.
    #[test]
    fn any_state_becomes_what_is_desired(
        mut all in images(),
        windowed: bool,
        thorough: bool,
        implausible: bool,
    ) {
        for image in &mut all {
            image.fails = false;
        }
        let windows: &[&str] = if windowed { &["Mon-Fri 01:00-02:00"] } else { &[] };
        let now = if implausible { "1990-01-01T00:00:00Z" } else { NOW };
        let mut world = any_world(all, windows, thorough, at(now));
        let mut turns = 0;
        while !world.is_as_desired() {
            turns += 1;
            prop_assert!(turns < 10_000, "{world:?}");
            let plan = world.run();
            if plan.steps.is_empty() {
                world.now = plan.wake.expect("something waits");
            }
        }
        // And the same moment brings no more than refreshes whose time has come.
        for _ in 0..3 {
            world.run();
        }
        let plan = world.plan();
        prop_assert!(plan.steps.is_empty(), "{plan:?}");
    }

    /// Executing one plan with pulls that leave everything as declared is enough.
    #[test]
    fn after_a_plan_the_next_is_empty(all in images()) {
        let mut world = any_world(all, &[], true, at(NOW));
        world.failing.clear();
        world.run();
        let next = world.plan();
        prop_assert_eq!(next.steps, vec![]);
    }

    /// For three days some images fail whenever something is tried.
    #[test]
    fn those_that_fail_hold_up_no_others(all in images()) {
        let mut world = any_world(all, &[], false, at(NOW));
        let end = later(at(NOW), 72 * HOUR);
        let mut turns = 0;
        while world.now < end {
            turns += 1;
            prop_assert!(turns < 20_000, "it turns in circles: {world:?}");
            let plan = world.run();
            for (key, _) in &plan.steps {
                prop_assert!(!world.early.contains_key(key), "{key} before its time");
            }
            if plan.steps.is_empty() {
                match plan.wake {
                    Some(wake) => world.now = wake,
                    None => break,
                }
            }
        }
        prop_assert!(world.others_are_as_desired(), "{world:?}");
        for ((key, is_pull), tries) in &world.tries {
            // Every fifteen minutes, and the quick ones at the start.
            prop_assert!(*tries <= 72 * 4 + 60, "{key} {is_pull}: {tries}");
        }
    }

    #[test]
    fn the_plan_is_the_same_until_its_wake_and_another_then(
        all in images(),
        asked in proptest::collection::btree_set(0_usize..8, 0..3),
        part in 1_i64..1000,
    ) {
        let mut world = any_world(all, &[], false, at(NOW));
        for number in asked {
            world.ask(&format!("i{number}"));
        }
        let plan = world.plan();
        let waits = world.waits(&plan);
        prop_assert!(plan.wake.is_some() || !waits, "{plan:?}");
        let Some(wake) = plan.wake else {
            return Ok(());
        };
        prop_assert!(wake > world.now);
        let nanos = wake.as_nanosecond() - world.now.as_nanosecond();
        let between = world.now.as_nanosecond() + nanos * i128::from(part) / 1000;
        let start = world.now;
        world.now = Timestamp::from_nanosecond(between.min(wake.as_nanosecond() - 1)).expect("between");
        prop_assert_eq!(&world.plan().steps, &plan.steps, "{} to {}: {:?}", start, wake, world);
        world.now = wake;
        prop_assert_ne!(world.plan().steps, plan.steps);
    }

    #[test]
    fn any_moment_and_any_window_gives_a_plan(all in images(), second in -377_705_023_201_i64..253_402_207_200) {
        let now = Timestamp::from_second(second).expect("within bounds");
        for windows in [&[][..], &["Sun 22:00-06:00"]] {
            let world = any_world(all.clone(), windows, false, now);
            let plan = world.plan();
            prop_assert!(plan.wake.is_none_or(|wake| wake > now));
            for (key, _) in &plan.steps {
                // No failure is remembered, so there is nothing that local steps need not mind.
                let next = world.memory.get(key).and_then(|r| r.next_try);
                let far = later(now, Backoff::MOST);
                prop_assert!(next.is_none_or(|next| next <= now || next > far));
            }
        }
    }
}

/// Its pull failed, and then somebody brought it by hand: nobody asks a registry about it for
/// hours, or ever, and it must not be said to have failed all that time.
#[test]
fn a_failure_that_somebody_else_made_good_is_over() {
    let now = at(NOW);
    for refresh in [Refresh::Never, Refresh::Every(6 * HOUR)] {
        let image = desired("a", refresh);
        let key = image.key();
        let mut memory = Memory::first();
        memory.succeeded(&key, now, Step::Pull(Why::Missing));
        let error = crate::error::Error::new(crate::kind::Kind::NotFound, "no such tag");
        let step = Step::Pull(Why::Missing);
        memory.failed(&key, now, step, &error, &settings(&[]));
        let planned = |memory: &Memory, observed: Observed, now| {
            let observed = BTreeMap::from([(key.clone(), observed)]);
            let asked = BTreeSet::new();
            let desired = std::slice::from_ref(&image);
            plan(
                &zoned(now),
                desired,
                &observed,
                memory,
                &settings(&[]),
                &asked,
            )
        };
        let settled = |memory: &Memory, observed, now| planned(memory, observed, now).settled;
        let later = later(now, HOUR);
        assert_eq!(
            settled(&memory, present(), later),
            std::slice::from_ref(&key)
        );
        assert!(
            settled(&memory, present(), now).is_empty(),
            "told for a while"
        );
        assert!(settled(&memory, Observed::default(), later).is_empty());
        let unpinned = Observed {
            pinned: false,
            ..present()
        };
        assert!(settled(&memory, unpinned, later).is_empty());
        // A refresh that is due says itself what comes of it.
        let due = super::later(now, 10 * HOUR);
        let is_due = refresh != Refresh::Never;
        assert_eq!(settled(&memory, present(), due).is_empty(), is_due);
        memory.settle(std::slice::from_ref(&key));
        let known = memory.get(&key).expect("remembered");
        assert!(known.error.is_none() && known.failures == 0 && known.next_try.is_none());
        assert_eq!(known.last_check, Some(now));
        assert!(settled(&memory, present(), later).is_empty(), "once");
    }
}
