//! What a board says after what the loop and its work told it.

use super::*;

fn key(name: &str) -> Key {
    Key {
        reference: format!("r.example/{name}:1"),
        platform: "host".to_owned(),
        namespace: "default".to_owned(),
    }
}

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

fn board(names: &[&str]) -> Board {
    let board = Board::new("linux/arm64", "1.2.3", at(0));
    let keys: Vec<Key> = names.iter().map(|name| key(name)).collect();
    board.desired(&keys, at(1));
    board
}

fn ready(text: &str) -> Ready {
    Ready {
        digest: Digest::of(text.as_bytes()),
        pinned: true,
        selected_platform: None,
        snapshotter: Some("overlayfs".to_owned()),
    }
}

fn image(board: &Board, name: &str) -> Image {
    let key = key(name);
    let images = board.images();
    let found = images.into_iter().find(|image| is(image, &key));
    found.expect("it is desired")
}

#[test]
fn the_document_has_the_fields_of_the_contract() {
    let board = board(&["a"]);
    let json = serde_json::to_value(board.document()).expect("plain data");
    assert_eq!(json["schema"], "edgepull.status/1");
    assert_eq!(json["host"], "linux/arm64");
    assert_eq!(json["counts"]["waiting"], 1);
    let row = json["images"][0].as_object().expect("a row");
    for field in [
        "reference",
        "platform",
        "selected_platform",
        "namespace",
        "snapshotter",
        "state",
        "digest",
        "pinned",
        "since",
        "next_try",
        "progress",
        "error",
    ] {
        assert!(row.contains_key(field), "{field}");
    }
    assert_eq!(row["since"], "1970-01-01T00:00:01Z");
}

#[test]
fn since_changes_with_the_state_alone() {
    let board = board(&["a"]);
    board.waiting(&key("a"), "outside the window", Some(at(50)), at(2));
    assert_eq!(image(&board, "a").since, at(1), "it was waiting already");
    board.pulling(&key("a"), at(3));
    board.ready(&key("a"), ready("x"), Some(at(100)), at(4));
    board.pulling(&key("a"), at(5));
    assert_eq!(image(&board, "a").state, State::Ready, "it is still usable");
    let unreachable = Error::new(Kind::Unavailable, "no answer");
    board.refresh_failed(&key("a"), &unreachable, Some(at(60)), at(6));
    let row = image(&board, "a");
    assert_eq!((row.state, row.since), (State::Ready, at(4)));
    assert_eq!(row.error_kind(), Some(Kind::Unavailable));
    assert_eq!(row.progress, None);
    board.ready(&key("a"), ready("y"), None, at(7));
    assert_eq!(image(&board, "a").since, at(4));
    assert_eq!(image(&board, "a").error, None);
    board.lost(&key("a"), "removed behind our back", at(8));
    let row = image(&board, "a");
    assert_eq!((row.state, row.since), (State::Waiting, at(8)));
    assert_eq!((row.digest, row.pinned), (None, false));
}

#[test]
fn a_missing_platform_is_a_state_of_its_own() {
    let board = board(&["a", "b"]);
    let missing = Error::new(Kind::PlatformMissing, "nothing fits");
    board.failed(&key("a"), &missing, Some(at(9)), at(2));
    board.failed(
        &key("b"),
        &Error::new(Kind::NotFound, "no tag"),
        None,
        at(2),
    );
    assert_eq!(image(&board, "a").state, State::MissingPlatform);
    assert_eq!(image(&board, "b").state, State::Failed);
    let counts = board.daemon().counts;
    assert_eq!((counts.missing_platform, counts.failed), (1, 1));
    // A tag that moved to an index without this platform: what is here stays.
    board.ready(&key("b"), ready("x"), None, at(3));
    board.refresh_failed(&key("b"), &missing, None, at(4));
    assert!(image(&board, "b").is_ready() && image(&board, "b").misses_platform());
}

#[test]
fn progress_follows_the_blobs() {
    let board = board(&["a"]);
    let reference = || "r.example/a:1".to_owned();
    let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
    let say = |event: Event| {
        board.observe(&event);
        image(&board, "a").progress
    };
    let progress = |phase, bytes, total| {
        Some(Progress {
            phase,
            bytes,
            total,
        })
    };
    let planned = Event::Planned {
        reference: reference(),
        layers: 2,
        bytes_to_fetch: 100,
        bytes_present: 7,
    };
    assert_eq!(say(planned.clone()), None, "nobody said what is worked on");
    board.pulling(&key("a"), at(2));
    assert_eq!(
        image(&board, "a").progress,
        progress(Phase::Resolving, 0, 0)
    );
    assert_eq!(say(planned), progress(Phase::Fetching, 0, 100));
    let started = |offset| Event::BlobStarted {
        reference: reference(),
        digest: one.clone(),
        size: 60,
        offset,
    };
    let more = |bytes| Event::BlobProgress {
        reference: reference(),
        digest: one.clone(),
        bytes,
    };
    assert_eq!(say(started(20)), progress(Phase::Fetching, 20, 100));
    assert_eq!(say(more(30)), progress(Phase::Fetching, 50, 100));
    assert_eq!(say(started(40)), progress(Phase::Fetching, 40, 100));
    let unpacking = Event::Unpacking {
        reference: reference(),
        digest: one.clone(),
    };
    assert_eq!(say(unpacking), progress(Phase::Fetching, 40, 100));
    let done = |digest: &Digest, size, reused| Event::BlobDone {
        reference: reference(),
        digest: digest.clone(),
        size,
        reused,
    };
    assert_eq!(
        say(done(&one, 60, false)),
        progress(Phase::Fetching, 60, 100)
    );
    assert_eq!(
        say(done(&Digest::of(b"3"), 7, true)),
        progress(Phase::Fetching, 60, 100),
        "what was here is not fetched"
    );
    assert_eq!(
        say(done(&two, 40, false)),
        progress(Phase::Unpacking, 100, 100)
    );
    assert_eq!(say(more(u64::MAX)), progress(Phase::Unpacking, 100, 100));
    let syncing = Event::Syncing {
        reference: reference(),
    };
    assert_eq!(say(syncing), progress(Phase::Syncing, 100, 100));
    board.ready(&key("a"), ready("x"), None, at(3));
    assert_eq!(say(more(1)), None, "the work is over");
}

#[test]
fn images_that_are_no_longer_desired_vanish_and_the_others_stay() {
    let board = board(&["a", "b"]);
    board.ready(&key("b"), ready("x"), None, at(2));
    board.succeeded(&key("b"), Some(at(2)));
    board.pulling(&key("a"), at(2));
    let mut heard = board.listen();
    board.desired(&[key("c"), key("b"), key("b")], at(3));
    let names: Vec<String> = board.images().into_iter().map(|i| i.reference).collect();
    assert_eq!(names, ["r.example/c:1", "r.example/b:1"]);
    assert_eq!(image(&board, "b").last_success, Some(at(2)));
    assert!(matches!(heard.try_recv(), Ok(Notice::Gone(gone)) if gone == key("a")));
    assert!(matches!(heard.try_recv(), Ok(Notice::Image(_))));
    assert!(matches!(heard.try_recv(), Ok(Notice::Daemon(daemon)) if daemon.counts.desired == 2));
    // Late words about it change nothing.
    board.failed(&key("a"), &Error::new(Kind::Internal, "x"), None, at(4));
    assert_eq!(board.images().len(), 2);
}

#[test]
fn a_listener_that_does_not_listen_holds_nobody_up() {
    let board = board(&["a"]);
    let mut heard = board.listen();
    board.pulling(&key("a"), at(2));
    for _ in 0..10 * BACKLOG {
        board.observe(&Event::Syncing {
            reference: "r.example/a:1".to_owned(),
        });
    }
    assert!(matches!(
        heard.try_recv(),
        Err(broadcast::error::TryRecvError::Lagged(_))
    ));
}

#[test]
fn what_concerns_the_daemon_is_told_when_it_changes() {
    let board = board(&[]);
    let mut heard = board.listen();
    let engine = Engine {
        address: "/run/x.sock".to_owned(),
        reachable: true,
        ..Engine::default()
    };
    board.engine(engine.clone(), None);
    board.engine(engine.clone(), None);
    // Why it is away may change while it is.
    let gone = Error::new(Kind::ContainerdUnavailable, "no answer");
    board.engine(engine.clone(), Some(gone.clone()));
    board.engine(engine.clone(), Some(gone.clone()));
    board.engine(engine.clone(), Some(gone.because("no such file")));
    board.engine(engine, None);
    board.paused(Some("memory"));
    board.paused(Some("memory"));
    board.pass_done(at(5));
    let mut told = 0;
    while let Ok(notice) = heard.try_recv() {
        assert!(matches!(notice, Notice::Daemon(_)));
        told += 1;
    }
    assert_eq!(told, 6);
    let daemon = board.daemon();
    assert!(daemon.first_pass_done);
    assert_eq!(daemon.paused.as_deref(), Some("memory"));
}

/// Else whoever listens would see the failure go and come with every look.
#[test]
fn an_image_that_is_here_with_a_failure_is_told_once() {
    let board = board(&["a"]);
    let unreachable = Error::new(Kind::Unavailable, "no answer");
    let json = Some(as_json(&unreachable));
    board.here(&key("a"), ready("x"), json.clone(), Some(at(9)), at(2));
    let mut heard = board.listen();
    board.here(&key("a"), ready("x"), json, Some(at(9)), at(3));
    assert!(heard.try_recv().is_err(), "nothing is new");
    let row = image(&board, "a");
    assert!(row.is_ready());
    assert_eq!(row.error_kind(), Some(Kind::Unavailable));
}
