//! The socket as its users see it: asked by our own client, and by strangers byte for byte.

use std::{future::Future, os::unix::fs::MetadataExt};

use jiff::Timestamp;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::mpsc,
};

use super::*;
use crate::{
    daemon::{Ask, client::Client},
    desired::Key,
    event::{Event, Observer},
    metrics::Metrics,
    oci::Digest,
    status::{Board, Engine, Ready},
};

struct Scene {
    dir: tempfile::TempDir,
    handle: Handle,
    asks: mpsc::Receiver<Ask>,
}

fn now() -> Timestamp {
    Timestamp::from_second(1_700_000_000).expect("in range")
}

fn key(name: &str) -> Key {
    Key {
        reference: format!("r.example/{name}:1"),
        platform: "host".to_owned(),
        namespace: "k8s.io".to_owned(),
    }
}

impl Scene {
    /// `a` is here, `b` has no image for this host.
    fn new() -> Self {
        let facts = edgepull_platform::Facts::live().expect("this host");
        let host = edgepull_platform::detect(&facts).expect("is one");
        let board = Board::new("linux/arm64", "1.2.3", now());
        board.desired(&[key("a"), key("b")], now());
        let ready = Ready {
            digest: Digest::of(b"a"),
            pinned: true,
            selected_platform: Some("linux/arm64".to_owned()),
            snapshotter: None,
        };
        board.ready(&key("a"), ready, None, now());
        let missing = Error::new(Kind::PlatformMissing, "nothing fits");
        board.failed(&key("b"), &missing, Some(now()), now());
        let metrics = Metrics::new(&host, "1.2.3");
        let (handle, asks) = Handle::new(
            board,
            metrics,
            "{\"schema\":\"edgepull.host/1\"}".to_owned(),
        );
        Self {
            dir: tempfile::tempdir().expect("a directory"),
            handle,
            asks,
        }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("edgepull.sock")
    }

    fn client(&self) -> Client {
        Client::new(&self.path())
    }

    /// Runs `asking` while the socket is served.
    async fn served<T>(&self, asking: impl Future<Output = T>) -> T {
        let control = Control::bind(&self.path()).expect("bound");
        tokio::select! {
            () = control.serve(self.handle.clone()) => panic!("it serves until it is dropped"),
            asked = asking => asked,
        }
    }

    /// What comes back for these bytes.
    async fn raw(&self, request: &str) -> String {
        let mut stream = UnixStream::connect(self.path()).await.expect("there");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("text");
        answer
    }

    async fn get(&self, path: &str) -> (u16, String) {
        let answer = self
            .raw(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
            .await;
        let status = answer.split(' ').nth(1).and_then(|s| s.parse().ok());
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status.expect("a status"), body.to_owned())
    }

    fn reachable(&self, reachable: bool) {
        let engine = Engine {
            address: "/run/containerd/containerd.sock".to_owned(),
            reachable,
            ..Engine::default()
        };
        self.handle.board.engine(engine, None);
    }
}

fn kind(body: &str) -> String {
    let body: Value = serde_json::from_str(body).expect("JSON");
    assert!(body["error"]["message"].is_string(), "{body}");
    body["error"]["kind"].as_str().expect("a kind").to_owned()
}

#[tokio::test]
async fn the_client_gets_the_document_of_all_and_of_one() {
    let scene = Scene::new();
    scene
        .served(async {
            let all = scene.client().status(None).await.expect("answered");
            assert_eq!(all["schema"], "edgepull.status/1");
            assert_eq!(all["images"].as_array().map(Vec::len), Some(2));
            let one = scene.client().status(Some("r.example/b:1")).await;
            let one = one.expect("answered");
            assert_eq!(one["images"][0]["state"], "missing_platform");
            assert_eq!(one["images"].as_array().map(Vec::len), Some(1));
            for (typed, kind) in [
                ("r.example/c:1", Kind::NotFound),
                ("UPPER", Kind::InvalidReference),
            ] {
                let error = scene.client().status(Some(typed)).await.expect_err(typed);
                assert_eq!(error.kind(), kind);
                let json = serde_json::to_value(&error).expect("plain data");
                assert_eq!(json["reference"], typed);
            }
        })
        .await;
}

#[tokio::test]
async fn readiness_is_about_the_daemon_and_not_about_images() {
    let scene = Scene::new();
    scene
        .served(async {
            assert_eq!(scene.get("/healthz").await.0, 200);
            let (status, body) = scene.get("/readyz").await;
            assert_eq!((status, kind(&body).as_str()), (503, "agent_unavailable"));
            scene.handle.board.pass_done(now());
            let (status, body) = scene.get("/readyz").await;
            assert_eq!(
                (status, kind(&body).as_str()),
                (503, "containerd_unavailable")
            );
            scene.reachable(true);
            assert_eq!(
                scene.get("/readyz").await.0,
                200,
                "though one image is missing"
            );
            scene.reachable(false);
            let (status, body) = scene.get("/readyz").await;
            assert_eq!(status, 503);
            assert!(body.contains("/run/containerd/containerd.sock"), "{body}");
            assert_eq!(scene.get("/healthz").await.0, 200);
            // What is to be done about it, is another question.
            let several = Error::new(Kind::Config, "several engines").hint("name one");
            let none = Engine::default();
            scene.handle.board.engine(none, Some(several));
            let (status, body) = scene.get("/readyz").await;
            assert_eq!((status, kind(&body).as_str()), (503, "config"));
        })
        .await;
}

#[tokio::test]
async fn what_is_not_there_is_refused_as_json() {
    let scene = Scene::new();
    scene
        .served(async {
            for (path, status, word) in [
                ("/", 404, "not_found"),
                ("/v2/status", 404, "not_found"),
                ("/v1/status/", 404, "not_found"),
                ("/v1/sync", 405, "usage"),
                ("/v1/status?all=1", 400, "usage"),
                ("/metrics?x", 400, "usage"),
                ("/v1/status?reference=no.such/image", 404, "not_found"),
            ] {
                let (found, body) = scene.get(path).await;
                assert_eq!((found, kind(&body).as_str()), (status, word), "{path}");
            }
            let answer = scene
                .raw("DELETE /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
                .await;
            assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
            assert!(answer.contains("allow: GET, HEAD\r\n"), "{answer}");
            let answer = scene
                .raw("HEAD /v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
                .await;
            assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            assert!(answer.ends_with("\r\n\r\n"), "no body: {answer}");
            assert!(!answer.contains("content-length: 0"), "{answer}");
            for nonsense in ["\u{16}\u{3}\u{1}", "GET\r\n\r\n", "GET / HTTP/9.9\r\n\r\n"] {
                let answer = scene.raw(&format!("{nonsense}\r\n\r\n")).await;
                assert!(answer.starts_with("HTTP/1.1 4"), "{nonsense:?}: {answer}");
            }
            let long = "x".repeat(64 * 1024);
            // It may be closed before all of it was sent.
            let mut stream = UnixStream::connect(scene.path()).await.expect("there");
            let _ = stream
                .write_all(format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())
                .await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.starts_with("HTTP/1.1 4"), "{answer}");
            assert_eq!(scene.get("/healthz").await.0, 200, "it lives on");
        })
        .await;
}

#[tokio::test]
async fn metrics_have_the_images_as_they_stand() {
    let scene = Scene::new();
    scene
        .served(async {
            let (status, text) = scene.get("/metrics").await;
            assert_eq!(status, 200);
            for (name, reference, value) in [
                ("ready", "r.example/a:1", 1),
                ("ready", "r.example/b:1", 0),
                ("platform_missing", "r.example/b:1", 1),
            ] {
                let line = format!(
                    "edgepull_image_{name}{{reference=\"{reference}\",platform=\"host\",namespace=\"k8s.io\"}} {value}\n"
                );
                assert!(text.contains(&line), "{line}{text}");
            }
            assert_eq!(text, scene.handle.metrics_text());
            scene.handle.board.desired(&[key("a")], now());
            assert!(!scene.get("/metrics").await.1.contains("r.example/b:1"));
            let host = scene.get("/v1/host").await.1;
            assert_eq!(host, "{\"schema\":\"edgepull.host/1\"}");
        })
        .await;
}

#[tokio::test]
async fn a_wish_reaches_the_loop_and_its_end_whoever_waits() {
    let mut scene = Scene::new();
    let (_, nobody) = mpsc::channel(1);
    let mut asks = std::mem::replace(&mut scene.asks, nobody);
    let work = async {
        let mut wishes = Vec::new();
        while let Some(ask) = asks.recv().await {
            let (reference, done) = match ask {
                Ask::Sync { reference, done } => (reference, done),
                Ask::Reload { done } => {
                    let _ = done.send(());
                    continue;
                }
            };
            wishes.push(reference);
            match wishes.len() {
                1 => drop(done),
                2 => {
                    let missing = Error::new(Kind::NotFound, "no tag");
                    scene.handle.board.failed(&key("b"), &missing, None, now());
                    let _ = done.send(());
                }
                // This one cannot be done.
                _ => break,
            }
        }
        wishes
    };
    let asking = async {
        let error = scene.client().sync(Some("r.example/c:1"), true).await;
        assert_eq!(error.expect_err("not desired").kind(), Kind::NotFound);
        scene.client().reload().await.expect("read");
        let asked = scene.client().sync(None, false).await.expect("taken");
        assert_eq!(asked["asked"]["reference"], Value::Null);
        let done = scene.client().sync(Some("r.example/b:1"), true).await;
        let done = done.expect("done");
        assert_eq!(done["images"][0]["state"], "failed");
        let error = scene.client().sync(Some("r.example/a:1"), true).await;
        assert_eq!(
            error.expect_err("nobody did it").kind(),
            Kind::AgentUnavailable
        );
    };
    let (wishes, ()) = scene.served(async { tokio::join!(work, asking) }).await;
    let (a, b) = ("r.example/a:1".to_owned(), "r.example/b:1".to_owned());
    assert_eq!(wishes, [None, Some(b), Some(a)]);
}

#[tokio::test]
async fn wishes_that_nobody_takes_are_refused_in_the_end() {
    let scene = Scene::new();
    scene
        .served(async {
            for _ in 0..16 {
                scene.client().sync(None, false).await.expect("room");
            }
            let error = scene.client().sync(None, false).await.expect_err("full");
            assert_eq!(error.kind(), Kind::AgentUnavailable);
            assert!(error.is_retryable());
        })
        .await;
}

#[tokio::test]
async fn events_follow_the_document() {
    let scene = Scene::new();
    scene
        .served(async {
            let mut events = scene.client().events().await.expect("there");
            let first = events.next().await.expect("whole").expect("there");
            assert_eq!(first.name, "status");
            assert_eq!(first.data["images"][0]["state"], "ready");
            scene.handle.board.pulling(&key("b"), now());
            scene.handle.board.observe(&Event::Planned {
                reference: "r.example/b:1".to_owned(),
                layers: 1,
                bytes_to_fetch: 9,
                bytes_present: 0,
            });
            let mut names = Vec::new();
            for _ in 0..3 {
                let told = events.next().await.expect("whole").expect("there");
                names.push((told.name, told.data["state"].clone()));
            }
            assert_eq!(names[0], ("image".to_owned(), "pulling".into()));
            assert_eq!(names[1], ("work".to_owned(), Value::Null));
            assert_eq!(names[2], ("image".to_owned(), "pulling".into()));
        })
        .await;
}

#[tokio::test]
async fn who_says_nothing_or_never_ends_is_let_go() {
    let scene = Scene::new();
    let server = Server::new(scene.handle.clone(), Surface::Control);
    for said in ["", "GET /healthz HTTP/1.1\r\nHost: x\r\n"] {
        let (near, mut far) = UnixStream::pair().expect("a pair");
        far.write_all(said.as_bytes()).await.expect("sent");
        let answered = answer(Box::new(near), server.clone(), Duration::from_millis(100));
        let answered = tokio::time::timeout(Duration::from_secs(5), answered).await;
        answered.expect("it ends by itself");
    }
}

#[tokio::test]
async fn many_listeners_leave_room_for_questions() {
    let scene = Scene::new();
    scene
        .served(async {
            let mut listening = Vec::new();
            for _ in 0..16 {
                listening.push(scene.client().events().await.expect("room"));
            }
            let error = scene.client().events().await.expect_err("too many");
            assert_eq!(error.kind(), Kind::AgentUnavailable);
            scene.client().status(None).await.expect("answered");
            listening.pop();
            let again = async {
                while scene.client().events().await.is_err() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            };
            let again = tokio::time::timeout(Duration::from_secs(5), again).await;
            again.expect("a place is free again");
        })
        .await;
}

#[tokio::test]
async fn a_listener_that_never_reads_holds_nobody_up() {
    let scene = Scene::new();
    scene
        .served(async {
            let mut deaf = UnixStream::connect(scene.path()).await.expect("there");
            let request = b"GET /v1/events HTTP/1.1\r\nHost: x\r\n\r\n";
            deaf.write_all(request).await.expect("sent");
            for _ in 0..200 {
                for _ in 0..100 {
                    scene.handle.board.pulling(&key("b"), now());
                }
                tokio::task::yield_now().await;
            }
            scene.client().status(None).await.expect("answered");
        })
        .await;
}

#[tokio::test]
async fn one_daemon_at_a_time_and_a_dead_one_is_replaced() {
    let scene = Scene::new();
    let path = scene.path();
    let first = Control::bind(&path).expect("bound");
    let there = fs::metadata(&path).expect("there");
    assert_eq!(there.mode() & 0o777, 0o660);
    let error = Control::bind(&path).expect_err("it lives");
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.message().contains("another edgepull daemon"));
    assert!(path.exists(), "its socket stays");
    drop(first);
    assert!(
        !path.exists(),
        "a daemon that ends takes its socket with it"
    );
    // One that was killed did not.
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bound"));
    let second = Control::bind(&path).expect("replaced");
    drop(second);
    fs::write(&path, "precious").expect("written");
    let error = Control::bind(&path).expect_err("no socket");
    assert!(error.causes().is_empty() && error.hint_text().is_some());
    assert_eq!(fs::read(&path).expect("there"), b"precious");
    let nowhere = scene.dir.path().join("no/such/edgepull.sock");
    assert!(Control::bind(&nowhere).is_err());
}

#[tokio::test]
async fn scrapers_have_figures_and_nothing_else() {
    let scene = Scene::new();
    let scrapes = Scrapes::bind(([127, 0, 0, 1], 0).into())
        .await
        .expect("bound");
    let address = scrapes.0.local_addr().expect("bound");
    let get = async |path: &str| {
        let mut stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("there");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.expect("text");
        answer
    };
    let asking = async {
        assert!(
            get("/metrics")
                .await
                .contains("\nedgepull_build_info{version=\"1.2.3\"} 1\n")
        );
        assert!(get("/healthz").await.starts_with("HTTP/1.1 200 "));
        for path in ["/v1/status", "/v1/sync", "/v1/events", "/v1/host"] {
            assert!(get(path).await.starts_with("HTTP/1.1 404 "), "{path}");
        }
        let error = Scrapes::bind(address).await.expect_err("it is taken");
        assert_eq!(error.kind(), Kind::Config);
    };
    tokio::select! {
        () = scrapes.serve(scene.handle.clone()) => panic!("it serves until it is dropped"),
        () = asking => {}
    }
}

#[tokio::test]
async fn scrapers_are_answered_where_the_configuration_says_now() {
    let scene = Scene::new();
    let free = || {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bound");
        listener.local_addr().expect("bound")
    };
    let answers = async |address: SocketAddr| {
        let mut tries = 0;
        loop {
            match tokio::net::TcpStream::connect(address).await {
                Ok(mut stream) => {
                    let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
                    stream.write_all(request).await.expect("sent");
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer).await.expect("text");
                    return answer.starts_with("HTTP/1.1 200 ");
                }
                Err(_) if tries < 20 => tokio::time::sleep(Duration::from_millis(10)).await,
                Err(_) => return false,
            }
            tries += 1;
        }
    };
    let (first, second) = (free(), free());
    scene.handle.listen_at(Some(first));
    let asking = async {
        assert!(answers(first).await);
        scene.handle.listen_at(Some(second));
        assert!(answers(second).await);
        assert!(!answers(first).await, "it listens elsewhere");
        scene.handle.listen_at(None);
        tokio::task::yield_now().await;
        assert!(!answers(second).await, "and then nowhere");
        // One that is taken can be had later.
        let taken = std::net::TcpListener::bind(first).expect("free");
        scene.handle.listen_at(Some(first));
        tokio::time::sleep(Duration::from_millis(50)).await;
        drop(taken);
        let had = async { while !answers(first).await {} };
        tokio::time::timeout(Duration::from_secs(5), had)
            .await
            .expect("tried again");
    };
    tokio::select! {
        () = serve_told(scene.handle.clone(), Duration::from_millis(100)) => panic!("it serves until it is dropped"),
        () = asking => {}
    }
}

#[tokio::test]
async fn those_who_wait_for_the_loop_leave_connections_to_others() {
    let scene = Scene::new();
    scene
        .served(async {
            let wait = b"POST /v1/sync?wait=1 HTTP/1.1\r\nHost: x\r\n\r\n";
            let mut waiting = Vec::new();
            for _ in 0..8 {
                let mut stream = UnixStream::connect(scene.path()).await.expect("there");
                stream.write_all(wait).await.expect("sent");
                waiting.push(stream);
            }
            let client = scene.client();
            let refused = tokio::time::timeout(Duration::from_secs(5), client.sync(None, true));
            let error = refused.await.expect("at once").expect_err("too many");
            assert_eq!(error.kind(), Kind::AgentUnavailable);
            assert!(error.message().contains("8 wait"), "{error}");
            assert!(error.hint_text().is_some());
            assert_eq!(scene.get("/healthz").await.0, 200);
            scene.client().sync(None, false).await.expect("taken");
        })
        .await;
}

#[tokio::test]
async fn whoever_finds_every_connection_taken_is_answered_after_one_has_ended() {
    let scene = Scene::new();
    scene
        .served(async {
            let mut idle = Vec::new();
            for _ in 0..MOST_CONNECTIONS {
                idle.push(UnixStream::connect(scene.path()).await.expect("there"));
            }
            tokio::task::yield_now().await;
            let limit = Duration::from_millis(200);
            let late = tokio::time::timeout(limit, scene.client().status(None)).await;
            assert!(late.is_err(), "there is no place");
            idle.pop();
            scene.client().status(None).await.expect("answered");
        })
        .await;
}
