//! Links as devices have them: slow, far, lossy, gone for a while; on the
//! shaped links of `edgepull_tests::shaped`.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use edgepull_tests::faulty::{Action, Auth, Faulty, Kind, Rule};
use edgepull_tests::shaped::{Shape, Shaped};

use super::row::{Row, Stage, World, row};

const MBIT: u64 = 1_000_000;

/// A registry at the other end of a link.
fn across(w: &World, shape: Shape, rules: Vec<Rule>) -> (Stage, Rc<RefCell<Shaped>>) {
    let link = Shaped::start(shape);
    let registry = Faulty::on(link.listen(), Arc::clone(&w.hello), Auth::Open, rules);
    let far = link.far().to_owned();
    let link = Rc::new(RefCell::new(link));
    let stage = Stage::of(registry)
        .args(["--plain-http"])
        .netns(&far)
        .keep(Rc::clone(&link));
    (stage, link)
}

fn plain(name: &'static str, source: &'static str, shape: Shape) -> Row {
    row(name, source, move |w| across(w, shape, vec![]).0).slow()
}

pub(crate) fn rows() -> Vec<Row> {
    let good = Shape {
        rate: 8 * MBIT,
        delay: 20,
        loss: 0,
    };
    vec![
        plain(
            "two megabits",
            "basics: own deadline",
            Shape {
                rate: 2 * MBIT,
                ..good
            },
        ),
        plain(
            "a satellite",
            "basics: own deadline",
            Shape { delay: 300, ..good },
        ),
        plain(
            "one packet in fifty lost",
            "basics: own deadline",
            Shape { loss: 2, ..good },
        ),
        row(
            "the link is down for three seconds",
            "faults: DNS gone; interface changes",
            move |w| {
                let (stage, link) = across(
                    w,
                    Shape {
                        rate: 4 * MBIT,
                        ..good
                    },
                    vec![],
                );
                stage.during(move || {
                    sleep(Duration::from_millis(900));
                    link.borrow_mut().down();
                    sleep(Duration::from_secs(3));
                    link.borrow_mut().up();
                })
            },
        )
        .slow(),
        row(
            "a new address in mid-layer",
            "faults: interface changes in mid-layer",
            move |w| {
                let (stage, link) = across(
                    w,
                    Shape {
                        rate: 4 * MBIT,
                        ..good
                    },
                    vec![],
                );
                stage.during(move || {
                    sleep(Duration::from_millis(1200));
                    link.borrow_mut().renumber();
                })
            },
        )
        .asks_within([1..=2, 1..=2, 4..=7, 0..=0])
        // What the sender's kernel still held for the old address.
        .twice(700_000)
        .slow(),
        row("a reset on a lossy link", "faults: RST; links", move |w| {
            let cut = Rule::on(Kind::Blob, Action::Reset(600_000))
                .what(&w.layer())
                .times(1);
            across(w, Shape { loss: 1, ..good }, vec![cut]).0
        })
        .asks(1, 1, 5, 0)
        // A reset takes with it what the kernel of the sender still held.
        .twice(600_000)
        .slow(),
    ]
}
