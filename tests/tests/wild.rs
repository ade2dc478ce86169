//! Registries as they are in the wild: one row for each behaviour that is known to break clients.
//!
//! Every row asserts exit code and error kind, the number of requests by kind, the bytes of blobs
//! that came twice, and what is left in the store. All rows run, six at a time; the failing ones
//! are told at the end. The whole table is printed and written to `target/wild.md`.
//!
//! ```text
//! cargo test -p edgepull-tests --test wild                              all rows
//! EDGEPULL_WILD=redirect cargo test -p edgepull-tests --test wild       rows whose name has that
//! ```
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use wild::row::{Row, World};
use wild::run::{Line, run};

mod wild {
    pub(crate) mod blobs;
    pub(crate) mod credentials;
    pub(crate) mod doors;
    pub(crate) mod layers;
    pub(crate) mod links;
    pub(crate) mod logins;
    pub(crate) mod manifests;
    pub(crate) mod mirrors;
    pub(crate) mod report;
    pub(crate) mod row;
    pub(crate) mod run;
    pub(crate) mod statuses;
    pub(crate) mod tls;
}

/// Rows that the program does not pass yet, and why. A row that passes must be taken out.
const KNOWN_FAULTS: &[(&str, &str)] = &[];

/// Rows at once: most of their time they wait.
const AT_ONCE: usize = 6;

#[test]
fn every_behaviour_in_the_wild() {
    let filter = std::env::var("EDGEPULL_WILD").unwrap_or_default();
    let mut rows: Vec<Row> = [
        wild::manifests::rows(),
        wild::logins::rows(),
        wild::credentials::rows(),
        wild::blobs::rows(),
        wild::layers::rows(),
        wild::statuses::rows(),
        wild::tls::rows(),
        wild::mirrors::rows(),
        wild::links::rows(),
        wild::doors::rows(),
    ]
    .into_iter()
    .flatten()
    .collect();
    if filter.is_empty() {
        assert!(rows.len() >= 70, "only {} rows", rows.len());
        for (name, _) in KNOWN_FAULTS {
            assert!(rows.iter().any(|row| row.name == *name), "no row {name:?}");
        }
    }
    let mut names: Vec<_> = rows.iter().map(|row| row.name).collect();
    names.sort_unstable();
    let twice = names.windows(2).find(|pair| pair[0] == pair[1]);
    assert!(twice.is_none(), "two rows of one name: {twice:?}");
    rows.retain(|row| row.name.contains(&filter));

    let begun = Instant::now();
    let world = World::new();
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by_key(|at| !rows[*at].slow);
    let (next, lines) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some(&at) = order.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let line = judged(&rows[at], at, &world);
                    lines.lock().unwrap().push((at, line));
                }
            });
        }
    });
    let mut lines = lines.into_inner().unwrap();
    lines.sort_by_key(|(at, _)| *at);
    let mut lines: Vec<Line> = lines.into_iter().map(|(_, line)| line).collect();
    wild::report::settle(&mut lines, KNOWN_FAULTS);
    wild::report::publish(&lines, begun.elapsed(), filter.is_empty());
    let failed = wild::report::failures(&lines);
    assert!(failed.is_empty(), "{failed}");
}

/// A panic within a row (the lab's own assertions) is that row's failure.
fn judged(row: &Row, at: usize, world: &World) -> Line {
    catch_unwind(AssertUnwindSafe(|| run(row, at, world))).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Line::broken(row, text.unwrap_or_default())
    })
}
