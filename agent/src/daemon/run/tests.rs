use std::fs;

use super::*;
use crate::{
    config::Config,
    error::Error,
    kind::Kind,
    metrics::Metrics,
    reconcile::Step,
    session::Flags,
    status::{Board, Ready, State},
};

/// A daemon that was not started, whose engine does not answer.
struct Scene {
    daemon: Daemon,
    tell: mpsc::Sender<News>,
    dir: tempfile::TempDir,
}

impl Scene {
    fn new(declared: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join("images.d")).expect("made");
        let flags = Flags {
            address: Some(dir.path().join("nobody.sock")),
            namespace: Some("default".to_owned()),
            runtime_dir: dir.path().to_owned(),
            ..Flags::default()
        };
        fs::write(dir.path().join("config.toml"), "").expect("written");
        let config = Config::of_text("", None).expect("empty");
        let places = Places {
            config: Some(dir.path().join("config.toml")),
            images: dir.path().join("images.d"),
            state: dir.path().join("state"),
            runtime: dir.path().to_owned(),
            socket: dir.path().join("s"),
            root: dir.path().to_owned(),
        };
        let session = Session::new(flags, config);
        let host = session.host().expect("a host");
        let board = Board::new("linux/arm64", "1", Timestamp::UNIX_EPOCH);
        let metrics = Metrics::new(host, "1");
        let (handle, _asks) = Handle::new(board, metrics, String::new());
        let (tell, news) = mpsc::channel(8);
        fs::write(places.images.join("a.txt"), declared).expect("written");
        let text = Declared::new(&places, String::new());
        let notifier = Arc::new(Notifier::silent());
        let daemon = Daemon::build(session, places, text, handle, notifier, news).expect("built");
        Self { daemon, tell, dir }
    }

    fn key(&self, at: usize) -> Key {
        self.daemon.declared.images[at].key()
    }

    fn state(&self, at: usize) -> State {
        let key = self.key(at);
        self.daemon.handle.board.image(&key).expect("shown").state
    }

    fn lose(&mut self) {
        let error = Error::new(Kind::ContainerdUnavailable, "gone");
        self.daemon.engine_lost(error);
    }
}

#[tokio::test]
async fn while_the_engine_is_away_nobody_runs_in_circles() {
    let mut scene = Scene::new("r.example/a:1\n");
    let key = scene.key(0);
    // It could not be looked at, and that is long over.
    let error = Error::new(Kind::Timeout, "no answer");
    scene.daemon.unseen(&key, &error);
    assert_eq!(scene.daemon.blind.len(), 1);
    scene.lose();
    scene.daemon.pass().await;
    let nap = scene.daemon.nap(None);
    assert!(nap > Duration::from_millis(200), "{nap:?}");
    assert!(scene.daemon.blind.is_empty());
    assert!(scene.daemon.stale.contains(&key), "it is looked at again");
}

#[tokio::test]
async fn what_cannot_be_looked_at_is_no_failure_to_remember() {
    let mut scene = Scene::new("r.example/a:1\nr.example/b:1\n");
    let (a, b) = (scene.key(0), scene.key(1));
    let ready = Ready {
        digest: crate::oci::Digest::of(b"a"),
        pinned: true,
        selected_platform: None,
        snapshotter: None,
    };
    let board = scene.daemon.handle.board.clone();
    board.ready(&a, ready, None, Timestamp::now());
    let error = Error::new(Kind::Timeout, "no answer");
    for key in [&a, &b] {
        scene.daemon.unseen(key, &error);
        assert!(scene.daemon.memory.get(key).is_none());
        let shown = board.image(key).expect("shown");
        assert!(shown.error.is_some() && shown.next_try.is_some());
    }
    assert_eq!(scene.state(0), State::Ready, "most likely it is here still");
    assert_eq!(scene.state(1), State::Failed);
    // A reload does not look before its time.
    scene.daemon.stale.clear();
    scene.daemon.read_declared();
    assert!(scene.daemon.stale.is_empty());
}

#[tokio::test]
async fn an_engine_that_is_away_changes_no_verdict() {
    let mut scene = Scene::new("r.example/a:1\nr.example/b:1\nr.example/c:1\n");
    let board = scene.daemon.handle.board.clone();
    let now = Timestamp::now();
    let missing = Error::new(Kind::PlatformMissing, "not for this host");
    board.failed(&scene.key(0), &missing, None, now);
    board.failed(&scene.key(1), &Error::new(Kind::NotFound, "no"), None, now);
    board.pulling(&scene.key(2), now);
    scene.lose();
    let mut heard = board.listen();
    scene.daemon.pass().await;
    assert_eq!(scene.state(0), State::MissingPlatform);
    assert_eq!(scene.state(1), State::Failed);
    assert_eq!(scene.state(2), State::Waiting, "nobody pulls it");
    while heard.try_recv().is_ok() {}
    scene.daemon.pass().await;
    let mut images = 0;
    while let Ok(told) = heard.try_recv() {
        images += u32::from(matches!(told, crate::status::Notice::Image(_)));
    }
    assert_eq!(images, 0, "nothing is new");
}

#[tokio::test]
async fn whoever_waits_is_told_that_the_engine_is_away() {
    let mut scene = Scene::new("r.example/a:1\n");
    let (done, heard) = oneshot::channel();
    let reference = None;
    scene
        .daemon
        .heed(Some(News::Ask(Ask::Sync { reference, done })));
    assert!(scene.daemon.asked.contains(&scene.key(0)));
    scene.daemon.pass().await;
    assert!(heard.await.is_err(), "it was not done");
    assert!(scene.daemon.asked.is_empty());
    // What is not declared any more is not waited for either.
    let (done, heard) = oneshot::channel();
    let reference = None;
    scene
        .daemon
        .heed(Some(News::Ask(Ask::Sync { reference, done })));
    fs::write(scene.dir.path().join("images.d/a.txt"), "").expect("written");
    scene.daemon.heed(Some(News::Changed));
    heard.await.expect("done");
}

/// What `work` says to the journal.
fn said(work: impl FnOnce()) -> Vec<String> {
    use tracing_subscriber::layer::SubscriberExt;

    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("socket");
    let journald = std::os::unix::net::UnixDatagram::bind(&path).expect("bound");
    journald.set_nonblocking(true).expect("set");
    let journal = crate::daemon::journal::Journal::at(&path).expect("made");
    tracing::subscriber::with_default(tracing_subscriber::registry().with(journal), work);
    let mut buffer = [0; 4096];
    let mut records = Vec::new();
    while let Ok(length) = journald.recv(&mut buffer) {
        records.push(String::from_utf8_lossy(&buffer[..length]).into_owned());
    }
    records
}

#[tokio::test]
async fn a_failure_tells_how_far_the_work_was() {
    let mut scene = Scene::new("r.example/a:1\n");
    let key = scene.key(0);
    let desired = scene.daemon.desired(&key).expect("declared");
    let board = scene.daemon.handle.board.clone();
    board.pulling(&key, Timestamp::now());
    crate::event::Observer::observe(
        &board,
        &crate::event::Event::Planned {
            reference: key.reference.clone(),
            layers: 1,
            bytes_to_fetch: 7,
            bytes_present: 0,
        },
    );
    let digest = Digest::of(b"a");
    scene.daemon.resolved = Some(digest.clone());
    let error = Error::new(Kind::Unavailable, "the registry went away");
    let records = said(|| {
        scene
            .daemon
            .failed(&desired, Step::Pull(crate::reconcile::Why::Missing), &error);
    });
    assert_eq!(records.len(), 1);
    for field in [
        "EDGEPULL_PHASE=fetching\n",
        &format!("EDGEPULL_DIGEST={digest}\n"),
    ] {
        assert!(records[0].contains(field), "{field}{}", records[0]);
    }
}

#[tokio::test]
async fn what_could_not_be_compared_is_told() {
    let mut scene = Scene::new("r.example/a:1\n");
    let desired = scene.daemon.desired(&scene.key(0)).expect("declared");
    let found = crate::daemon::worker::Rechecked {
        unchecked: vec!["no permission".to_owned()],
        ..Default::default()
    };
    let records = said(|| scene.daemon.rechecked(&desired, &found));
    assert_eq!(records.len(), 1);
    assert!(records[0].contains("no permission"), "{}", records[0]);
    assert!(records[0].contains("EDGEPULL_REFERENCE="), "{}", records[0]);
}

/// An engine that is back at once, after the same image took it down again.
#[tokio::test]
async fn whoever_waits_for_the_image_that_takes_the_engine_down_hears_of_it() {
    let mut scene = Scene::new("r.example/a:1\n");
    let key = scene.key(0);
    let (done, _heard) = oneshot::channel();
    let reference = None;
    scene
        .daemon
        .heed(Some(News::Ask(Ask::Sync { reference, done })));
    let desired = scene.daemon.desired(&key).expect("declared");
    let pull = Step::Pull(crate::reconcile::Why::Asked);
    for dealt in [false, true] {
        let error = Error::new(Kind::ContainerdUnavailable, "gone");
        scene.daemon.engine_went(&desired, pull, error);
        assert_eq!(scene.daemon.dealt.contains(&key), dealt);
        assert_eq!(scene.daemon.asked.contains(&key), !dealt);
    }
}

#[tokio::test]
async fn whoever_has_gone_is_not_remembered() {
    let mut scene = Scene::new("r.example/a:1\n");
    for _ in 0..3 {
        let (done, heard) = oneshot::channel();
        let reference = None;
        scene
            .daemon
            .heed(Some(News::Ask(Ask::Sync { reference, done })));
        assert_eq!(scene.daemon.waiters.len(), 1);
        drop(heard);
    }
    let (done, _) = oneshot::channel();
    let reference = None;
    scene
        .daemon
        .heed(Some(News::Ask(Ask::Sync { reference, done })));
    assert!(scene.daemon.waiters.is_empty());
}

/// Where nothing can be watched, nobody tells.
#[tokio::test]
async fn a_change_that_nobody_told_of_is_found_in_time() {
    let mut scene = Scene::new("r.example/a:1\n");
    let address = ([127, 0, 0, 1], 9).into();
    let config = format!("[metrics]\nlisten = \"{address}\"\n");
    fs::write(scene.dir.path().join("config.toml"), config).expect("written");
    let images = scene.dir.path().join("images.d/b.txt");
    fs::write(images, "r.example/b:1\n").expect("written");
    scene.daemon.look_again_after_a_while(Instant::now());
    assert_eq!(scene.daemon.declared.images.len(), 1, "not yet");
    let later = Instant::now() + POLL;
    scene.daemon.look_again_after_a_while(later);
    assert_eq!(scene.daemon.declared.images.len(), 2);
    let listens = *scene.daemon.handle.listens_at().borrow();
    assert_eq!(listens, Some(address));
}

#[tokio::test]
async fn other_settings_drop_what_was_made_by_those_before() {
    let mut scene = Scene::new("r.example/a:1\n");
    let before = scene.daemon.generation;
    scene.daemon.heed(Some(News::Changed));
    assert_eq!(scene.daemon.generation, before, "nothing has changed");
    let config = scene.dir.path().join("config.toml");
    fs::write(&config, "[limits]\nnonsense = 1\n").expect("written");
    scene.daemon.heed(Some(News::Changed));
    assert_eq!(
        scene.daemon.generation, before,
        "what holds is the last good one"
    );
    assert_eq!(scene.daemon.handle.board.daemon().faults.len(), 1);
    fs::write(&config, "[host]\n").expect("written");
    let key = scene.key(0);
    scene
        .daemon
        .observed
        .insert(key.clone(), Observed::default());
    scene.daemon.heed(Some(News::Reload));
    assert_ne!(scene.daemon.generation, before);
    assert!(scene.daemon.observed.is_empty() && scene.daemon.stale.contains(&key));
    assert!(scene.daemon.handle.board.daemon().faults.is_empty());
}

#[tokio::test]
async fn a_stop_ends_the_work_and_the_state_is_whole() {
    let mut scene = Scene::new("r.example/a:1\n");
    let state = scene.dir.path().join("state");
    let (killed, _) = StateFile::new(&state).load();
    assert!(!killed.is_clean(), "until it ends in order");
    scene.tell.send(News::Stop).await.expect("there is room");
    scene.daemon.work().await;
    scene.daemon.close().expect("written");
    assert!(StateFile::new(&state).load().0.is_clean());
}

#[tokio::test]
async fn failures_of_many_images_are_written_down_together() {
    let mut scene = Scene::new("r.example/a:1\n");
    let key = scene.key(0);
    let state = scene.dir.path().join("state");
    let known = || StateFile::new(&state).load().0.get(&key).cloned();
    let daemon = &mut scene.daemon;
    daemon.saving.soon(&daemon.memory).await;
    let error = Error::new(Kind::Unavailable, "away");
    daemon
        .memory
        .failed(&key, Timestamp::now(), Step::Trim, &error, &daemon.settings);
    daemon.saving.soon(&daemon.memory).await;
    assert!(known().is_none(), "a moment after the last time");
    daemon.saving.later(&daemon.memory).await;
    assert!(known().is_some(), "at the end of the pass");
    daemon
        .memory
        .succeeded(&key, Timestamp::now(), Step::Recheck);
}

#[tokio::test]
async fn a_state_that_cannot_be_written_does_not_keep_images_from_coming() {
    let scene = Scene::new("r.example/a:1\n");
    let Scene {
        daemon, dir, tell, ..
    } = scene;
    let places = daemon.places.clone();
    drop((daemon, tell));
    // In the way of the file that is written first; root writes into any directory.
    let state = dir.path().join("state");
    fs::create_dir(state.join("state.json.tmp")).expect("made");
    fs::write(state.join("state.json.tmp/in-the-way"), "").expect("written");
    let flags = Flags {
        address: Some(dir.path().join("nobody.sock")),
        ..Flags::default()
    };
    let session = Session::new(flags, Config::of_text("", None).expect("empty"));
    let metrics = Metrics::new(session.host().expect("a host"), "1");
    let board = Board::new("linux/arm64", "1", Timestamp::UNIX_EPOCH);
    let (handle, _asks) = Handle::new(board, metrics, String::new());
    let (_tell, news) = mpsc::channel(1);
    let declared = Declared::new(&places, String::new());
    let notifier = Arc::new(Notifier::silent());
    let built = Daemon::build(session, places, declared, handle, notifier, news);
    let mut daemon = built.expect("it works without");
    assert!(daemon.close().is_err(), "and says so at the end");
}

/// At boot the engine comes later, and until then its usual namespace is not known.
#[tokio::test]
async fn before_an_engine_has_said_its_namespace_nothing_that_is_remembered_is_forgotten() {
    let mut scene = Scene::new("r.example/a:1\n");
    let stand_in = scene.key(0);
    let real = Key {
        namespace: "k8s.io".to_owned(),
        ..stand_in.clone()
    };
    let other = Key {
        reference: "r.example/gone:1".to_owned(),
        ..real.clone()
    };
    let daemon = &mut scene.daemon;
    let now = Timestamp::now();
    for key in [&real, &other] {
        daemon
            .memory
            .succeeded(key, now, Step::Pull(crate::reconcile::Why::Missing));
    }
    daemon.declared.doubtful = true;
    daemon.read_declared();
    assert!(daemon.memory.get(&real).is_some() && daemon.memory.get(&other).is_some());
    assert!(daemon.memory.get(&stand_in).is_none());
    daemon.declared.namespace = Some("k8s.io".to_owned());
    daemon.read_declared();
    assert_eq!(daemon.declared.images[0].key(), real);
    let known = daemon.memory.get(&real).expect("it is still desired");
    assert!(known.last_success.is_some() && known.recheck);
    assert!(daemon.memory.get(&other).is_none());
    // The engine is away for a moment; what was its namespace still is.
    daemon
        .engines
        .lost(Error::new(Kind::ContainerdUnavailable, "gone"));
    daemon.read_declared();
    assert_eq!(daemon.declared.images[0].key(), real);
    assert!(daemon.memory.get(&real).is_some());
}

#[tokio::test]
async fn under_pressure_nothing_is_begun_but_what_somebody_asks_for_and_not_for_ever() {
    let mut scene = Scene::new("r.example/a:1\n");
    let (key, long) = (scene.key(0), Duration::from_secs(600));
    let proc = scene.dir.path().join("proc/pressure");
    let images = scene.dir.path().join("images.d/a.txt");
    let (daemon, tell) = (&mut scene.daemon, &scene.tell);
    assert!(
        daemon.calm(&key, long).await,
        "nothing says that there is any"
    );
    fs::create_dir_all(&proc).expect("made");
    let line = |name: &str| format!("{name} avg10=50.00 avg60=1.00 avg300=1.00 total=1\n");
    let text = line("some") + &line("full");
    fs::write(proc.join("memory"), text).expect("written");
    let board = daemon.handle.board.clone();
    let mut heard = board.listen();
    let (done, _asker) = oneshot::channel();
    let reference = None;
    let wish = News::Ask(Ask::Sync { reference, done });
    tell.send(wish).await.expect("there is room");
    assert!(!daemon.calm(&key, long).await, "somebody waits");
    let paused = |notice| match notice {
        crate::status::Notice::Daemon(daemon) => daemon.paused,
        _ => None,
    };
    let told = std::iter::from_fn(|| heard.try_recv().ok()).find_map(paused);
    assert!(told.is_some_and(|reason| reason.contains("memory")));
    assert_eq!(board.daemon().paused, None);
    // It lasts for as long as is waited for its end: once in a pass is enough.
    daemon.asked.clear();
    assert!(daemon.calm(&key, Duration::ZERO).await);
    assert!(daemon.pressed && daemon.calm(&key, long).await);
    daemon.pressed = false;
    // It is not wanted any more, or nothing is.
    fs::write(&images, "").expect("written");
    tell.send(News::Changed).await.expect("there is room");
    assert!(!daemon.calm(&key, long).await);
    fs::write(&images, "r.example/a:1\n").expect("written");
    daemon.heed(Some(News::Changed));
    tell.send(News::Stop).await.expect("there is room");
    assert!(!daemon.calm(&key, long).await);
}

/// Between the last word about images.d and a removal somebody may have declared what is to go.
#[tokio::test]
async fn what_is_declared_is_read_once_more_before_anything_is_removed() {
    let mut scene = Scene::new("r.example/a:1\n");
    let images = scene.dir.path().join("images.d");
    let daemon = &mut scene.daemon;
    assert!(daemon.is_declared_as_before() && daemon.look_again.is_none());
    fs::write(images.join("b.txt"), "r.example/b:1\n").expect("written");
    assert!(!daemon.is_declared_as_before());
    assert_eq!(daemon.declared.images.len(), 2);
    assert!(
        daemon.look_again.take().is_some(),
        "and it is looked at soon"
    );
    assert!(daemon.is_declared_as_before());
    fs::write(images.join("c.toml"), "nonsense").expect("written");
    assert!(!daemon.is_declared_as_before());
}
