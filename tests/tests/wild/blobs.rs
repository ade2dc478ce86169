//! Blobs: redirects, signed addresses, ranges, resuming.

use std::sync::Arc;
use std::time::Duration;

use edgepull_tests::fault_proxy::{Fault, FaultProxy};
use edgepull_tests::faulty::{Action, Auth, Faulty, Kind, Rule, Signed};
use edgepull_tests::image;
use edgepull_tests::registry::free_port;

use super::row::{Left, PASSWORD, Row, Stage, USER, World, faulty, holds, lone, row};

/// The layer that is worth cutting, cut like this the first so many times.
pub(super) fn layer(w: &World, action: Action, times: u32) -> Rule {
    Rule::on(Kind::Blob, action).what(&w.layer()).times(times)
}

pub(super) fn layer_always(w: &World, action: Action) -> Rule {
    Rule::on(Kind::Blob, action).what(&w.layer())
}

/// A registry that sends blobs to a storage host, as object storage behaves.
fn stored(
    name: &'static str,
    source: &'static str,
    terms: Signed,
    rules: impl Fn(&World) -> Vec<Rule> + Send + Sync + 'static,
) -> Row {
    row(name, source, move |w| {
        let storage = Faulty::start_with(Arc::clone(&w.hello), Auth::Storage(terms), rules(w));
        let to = format!("http://{}", elsewhere(&storage));
        let registry = Faulty::start_with(
            Arc::clone(&w.hello),
            Auth::user(USER, PASSWORD),
            [Rule::on(Kind::Blob, Action::Sign(to))],
        );
        Stage::of(registry).creds().watch(storage)
    })
    // Each blob is asked for twice: here and there.
    .asks(2, 1, 8, 1)
}

/// Another name for the same address, so that the origin differs in more than the port.
pub(super) fn elsewhere(server: &Faulty) -> String {
    server.host().replace("127.0.0.1", "localhost")
}

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = redirects();
    rows.extend(cuts());
    rows.extend(ranges());
    rows.extend(wrong_bytes());
    rows.extend(kills());
    rows
}

fn redirects() -> Vec<Row> {
    vec![
        stored(
            "storage that refuses Authorization",
            "blobs: redirect to storage; public registries: ECR, ACR",
            Signed::default(),
            |_| vec![],
        )
        .check(|seen, _| {
            let leaked = seen
                .requests
                .iter()
                .any(|r| !r.query.is_empty() && r.kind == Kind::Blob && r.authorized());
            holds(!leaked, "credentials went to the storage")
        }),
        stored(
            "a signed address that is dead at half",
            "faults: signed URL dead at half",
            Signed {
                bytes: Some(500_000),
                ..Signed::default()
            },
            |_| vec![],
        )
        .asks_within([2..=2, 1..=1, 12..=13, 1..=1]),
        stored(
            "a signed address that is dead on arrival",
            "public registries: Quay: stale in a cache",
            Signed {
                stale: 1,
                ..Signed::default()
            },
            |_| vec![],
        )
        .asks(2, 1, 10, 1),
        stored(
            "signed addresses that are always dead",
            "status codes: 403: once through the registry",
            Signed {
                stale: 1000,
                ..Signed::default()
            },
            |_| vec![],
        )
        .fails("unavailable")
        .left(Left::Nothing)
        .says(&["localhost", "redirected"])
        .asks_within([2..=2, 1..=1, 4..=4, 1..=1]),
        stored(
            "a cut behind the redirect",
            "blobs: signed URL: new GET to the registry",
            Signed {
                requests: Some(1),
                ..Signed::default()
            },
            |w| vec![layer(w, Action::Truncate(400_000), 1)],
        )
        .asks(2, 1, 10, 1),
        row(
            "storage that nobody runs",
            "blobs: redirect target behind a firewall",
            |w| {
                let to = format!("http://localhost:{}", free_port());
                let rule = Rule::on(Kind::Blob, Action::Redirect(to));
                Stage::of(Faulty::start(Arc::clone(&w.hello), [rule]))
            },
        )
        .fails("unavailable")
        .left(Left::Nothing)
        .says(&["localhost", "redirected"])
        .asks_within([1..=1, 1..=1, 1..=2, 0..=0]),
        row("storage that is busy", "status codes: 503", |w| {
            let busy = Rule::on(Kind::Blob, Action::status(503)).times(1);
            let storage = Faulty::start(Arc::clone(&w.hello), [busy]);
            let to = format!("http://{}", elsewhere(&storage));
            let registry = Faulty::start(
                Arc::clone(&w.hello),
                [Rule::on(Kind::Blob, Action::Redirect(to))],
            );
            Stage::of(registry).watch(storage)
        })
        .asks(1, 1, 10, 0),
        row(
            "a redirect within the registry keeps the login",
            "manifests: 301: auth on the same origin",
            |w| {
                let moved = Action::Location(308, |r| r.path.replace("/lab/app/", "/moved/app/"));
                let rule = Rule::on(Kind::Blob, moved).when(|r| r.path.contains("/lab/app/"));
                let auth = Auth::Basic(USER.to_owned(), PASSWORD.to_owned());
                Stage::of(Faulty::start_with(Arc::clone(&w.hello), auth, [rule])).creds()
            },
        )
        .asks(2, 1, 8, 0),
        faulty("a redirect to another scheme", "status codes: 3xx", |_| {
            let odd = Action::Location(307, |_| "ftp://localhost/x".to_owned());
            vec![Rule::on(Kind::Manifest, odd)]
        })
        .fails("unavailable")
        .asks(1, 1, 0, 0)
        .says(&["ftp"]),
    ]
}

fn cuts() -> Vec<Row> {
    vec![
        faulty(
            "a short body with FIN",
            "blobs: closed cleanly, body short",
            |w| vec![layer(w, Action::Truncate(700_000), 1)],
        )
        .asks(1, 1, 5, 0),
        faulty(
            "a short body with FIN, into a layout",
            "blobs: closed cleanly, body short",
            |w| vec![layer(w, Action::Truncate(700_000), 1)],
        )
        .in_layout()
        .asks_within([1..=1, 1..=1, 5..=6, 0..=0])
        // The config, see "nothing wrong, into a layout".
        .twice(412),
        faulty("RST at 99 %", "faults: RST at 99 %", |w| {
            vec![layer(w, Action::Reset(w.layer_size() * 99 / 100), 1)]
        })
        .asks(1, 1, 5, 0)
        .twice(1 << 16),
        faulty("RST five times", "blobs: progress goes on", |w| {
            vec![layer(w, Action::Reset(200_000), 5)]
        })
        .asks(1, 1, 9, 0)
        .twice(5 << 16),
        faulty(
            "RST in two layers before a byte",
            "status codes: burst",
            |w| {
                let config = w.hello.parts(&w.manifest()).remove(0);
                vec![
                    Rule::on(Kind::Blob, Action::Delay(Duration::ZERO)).what(&config),
                    Rule::on(Kind::Blob, Action::Reset(0)).times(2),
                ]
            },
        )
        .asks(1, 1, 6, 0),
        faulty("a config that is cut once", "blobs: short body", |w| {
            let config = w.hello.parts(&w.manifest()).remove(0);
            vec![
                Rule::on(Kind::Blob, Action::Truncate(100))
                    .what(&config)
                    .times(1),
            ]
        })
        .asks(1, 1, 5, 0),
        lone(
            "a body that never begins",
            "blobs: three tries without a new byte",
            |w| vec![layer_always(w, Action::Truncate(0))],
        )
        .fails("unavailable")
        .left(Left::Partial)
        .asks_within([1..=1, 1..=1, 4..=6, 0..=0])
        .heals(),
        faulty(
            "a close instead of an answer",
            "public registries: Quay",
            |w| vec![layer(w, Action::Close, 1)],
        )
        .asks(1, 1, 5, 0),
        faulty("a close instead of every answer", "status codes", |_| {
            vec![Rule::always(Action::Close)]
        })
        .fails("unavailable")
        .asks_within([3..=3, 0..=0, 0..=0, 0..=0])
        .heals(),
        faulty(
            "every connection closed after its answer",
            "self-hosted: Nexus: closes when idle",
            |_| vec![Rule::always(Action::CloseAfter)],
        )
        .asks_within([1..=1, 1..=2, 4..=6, 0..=0]),
        faulty("a slow drip", "public registries: nixery: slow", |w| {
            vec![layer_always(
                w,
                Action::Slow(1 << 16, Duration::from_millis(100)),
            )]
        }),
        faulty(
            "a slow first byte",
            "self-hosted: zot: minutes; public registries: nixery",
            |_| {
                vec![Rule::on(
                    Kind::Manifest,
                    Action::Delay(Duration::from_secs(4)),
                )]
            },
        )
        .slow(),
        faulty(
            "a stall in mid-layer",
            "faults: stall; blobs: stalls without closing",
            |w| vec![layer(w, Action::Stall(600_000), 1)],
        )
        .slow()
        .asks(1, 1, 5, 0),
        row(
            "resets at random before docker-registry",
            "blobs: resume",
            |w| {
                let proxy =
                    FaultProxy::start(w.registry().host(), 7, Fault::Reset(60_000..400_000));
                Stage::at(proxy.host(), &w.hello).watch(proxy)
            },
        )
        .asks_within([1..=1, 1..=1, 6..=14, 0..=0])
        .twice(12_000),
        row(
            "closes at random before docker-registry",
            "blobs: resume",
            |w| {
                let proxy = FaultProxy::start(w.registry().host(), 11, Fault::Cut(60_000..400_000));
                Stage::at(proxy.host(), &w.hello).watch(proxy)
            },
        )
        .asks_within([1..=1, 1..=1, 6..=14, 0..=0])
        .twice(12_000),
        row(
            "docker-registry comes late",
            "public registries: Quay",
            |w| {
                let late = Fault::Delay(Duration::from_millis(800));
                let proxy = FaultProxy::start(w.registry().host(), 1, late);
                Stage::at(proxy.host(), &w.hello).watch(proxy)
            },
        ),
        row(
            "docker-registry refuses two connections",
            "public registries: Quay",
            |w| {
                let proxy = FaultProxy::start(w.registry().host(), 1, Fault::Refuse).times(2);
                Stage::at(proxy.host(), &w.hello).watch(proxy)
            },
        ),
    ]
}

fn ranges() -> Vec<Row> {
    let half = |w: &World| layer(w, Action::Truncate(w.layer_size() / 2), 1);
    vec![
        faulty(
            "a range that is ignored",
            "blobs: range ignored: 200",
            move |w| vec![half(w), layer_always(w, Action::IgnoreRange)],
        )
        .asks(1, 1, 5, 0)
        .twice(600_000),
        lone(
            "ranges ignored, every body cut",
            "blobs: repeated 200: quadratic",
            |w| {
                // Whatever is asked for, the first half of the blob comes, as if it were all of it.
                let half = w.hello.read(&w.layer()).len() / 2;
                let mut raw = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n",
                    w.layer_size()
                )
                .into_bytes();
                raw.extend(&w.hello.read(&w.layer())[..half]);
                vec![layer_always(w, Action::Raw(raw))]
            },
        )
        .fails("unavailable")
        .left(Left::Partial)
        .asks_within([1..=1, 1..=1, 2..=5, 0..=0])
        .twice(2 << 20),
        faulty("an open range is refused", "blobs: open range 416", |w| {
            vec![
                layer(w, Action::Truncate(500_000), 1),
                layer_always(w, Action::RefuseOpenRange),
            ]
        })
        .asks(1, 1, 5, 0),
        faulty(
            "every range is refused",
            "blobs: 416: truncate and restart",
            |w| {
                vec![
                    layer(w, Action::Truncate(500_000), 1),
                    layer_always(w, Action::RefuseRange),
                ]
            },
        )
        .asks_within([1..=1, 1..=1, 6..=6, 0..=0])
        .twice(500_000),
        faulty(
            "a 206 that is shifted by one and says so",
            "faults: 206 shifted by one",
            |w| {
                vec![
                    layer(w, Action::Truncate(500_000), 1),
                    layer(w, Action::Shift(true), 1),
                ]
            },
        )
        .asks_within([1..=1, 1..=1, 6..=6, 0..=0])
        .twice(1_200_000),
        faulty(
            "a 206 that is shifted by one in secret",
            "blobs: 206 for another range",
            |w| {
                vec![
                    layer(w, Action::Truncate(500_000), 1),
                    layer(w, Action::Shift(false), 1),
                ]
            },
        )
        .asks_within([1..=1, 1..=1, 7..=7, 0..=0])
        .twice(1_200_000),
        faulty(
            "a 206 with another total",
            "blobs: Content-Range total",
            |w| {
                vec![
                    layer(w, Action::Truncate(500_000), 1),
                    layer(w, Action::WrongTotal, 1),
                ]
            },
        )
        .asks_within([1..=1, 1..=1, 6..=6, 0..=0])
        .twice(1_200_000),
        faulty(
            "a 206 without Content-Range",
            "blobs: require Content-Range",
            |w| {
                let bare = Action::Answer(206, Vec::new(), vec![0; 1000]);
                vec![layer(w, Action::Truncate(500_000), 1), layer(w, bare, 1)]
            },
        )
        .asks_within([1..=1, 1..=1, 6..=6, 0..=0])
        .twice(600_000),
    ]
}

fn wrong_bytes() -> Vec<Row> {
    vec![
        lone("one bit flipped, always", "faults: one bit flipped", |w| {
            vec![layer_always(w, Action::FlipBit(5000))]
        })
        .fails("invalid_content")
        .left(Left::Blobs)
        .twice(1_200_000)
        .asks(1, 1, 2, 0)
        .heals(),
        lone(
            "one bit flipped, always, into a layout",
            "faults: one bit flipped",
            |w| vec![layer_always(w, Action::FlipBit(5000))],
        )
        .in_layout()
        .fails("invalid_content")
        .left(Left::Rest)
        .twice(1_300_000)
        .asks_within([1..=1, 1..=1, 2..=5, 0..=0])
        .heals(),
        faulty(
            "one bit flipped after a resume",
            "blobs: digest wrong after a resume: once whole",
            |w| {
                vec![
                    layer(w, Action::Truncate(500_000), 1),
                    layer(w, Action::FlipBit(600_000), 1),
                ]
            },
        )
        .asks_within([1..=1, 1..=1, 6..=6, 0..=0])
        .twice(1_200_000),
        lone("one byte too many", "faults: one byte too many", |w| {
            vec![layer_always(w, Action::OneMore)]
        })
        .fails("invalid_content")
        .left(Left::Blobs)
        .asks(1, 1, 2, 0)
        .heals(),
        lone(
            "one byte too many, chunked",
            "blobs: stop at size + 1",
            |w| {
                let size = usize::try_from(w.layer_size()).unwrap();
                let mut raw = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
                raw.extend(format!("{:x}\r\n", size + 1).bytes());
                raw.extend(w.hello.read(&w.layer()));
                raw.extend(b"!\r\n0\r\n\r\n");
                vec![layer_always(w, Action::Raw(raw))]
            },
        )
        .fails("invalid_content")
        .left(Left::Blobs)
        .asks(1, 1, 2, 0)
        .heals(),
        lone(
            "a shorter blob than announced",
            "blobs: the descriptor counts",
            |w| {
                vec![layer_always(
                    w,
                    Action::body("application/octet-stream", "another blob"),
                )]
            },
        )
        .fails("invalid_content")
        .left(Left::Blobs)
        .asks(1, 1, 2, 0)
        .heals(),
        lone(
            "a layer that is a web page",
            "status codes: 200 with HTML",
            |w| {
                let page = "<html><head><title>Guest network</title></head></html>";
                vec![layer_always(w, Action::body("text/html", page))]
            },
        )
        .fails("unavailable")
        .left(Left::Partial)
        .asks(1, 1, 2, 0)
        .heals(),
        lone(
            "a layer gzip-encoded once more",
            "public registries: redhat: gzip-encoded",
            |w| vec![layer_always(w, Action::Gzip)],
        )
        .fails("invalid_content")
        .left(Left::Blobs)
        .twice(1_200_000)
        .asks(1, 1, 2, 0)
        .heals(),
        faulty("a config with a flipped bit", "blobs", |w| {
            let config = w.hello.parts(&w.manifest()).remove(0);
            vec![Rule::on(Kind::Blob, Action::FlipBit(10)).what(&config)]
        })
        .fails("invalid_content")
        .asks(1, 1, 1, 0)
        .heals(),
    ]
}

/// What a call that was killed leaves is used by the next one.
fn kills() -> Vec<Row> {
    let big = |_: &World| {
        let drip = Action::Slow(1 << 17, Duration::from_millis(10));
        let layout = image::big(1, 12 << 20);
        Stage::of(Faulty::start(layout, [Rule::on(Kind::Blob, drip)]))
    };
    vec![
        row("killed in mid-layer", "kill -9", big)
            .killed_at(9 << 20)
            .asks_within([2..=2, 1..=2, 4..=6, 0..=0])
            .twice(4 << 20),
        row("killed in mid-layer, into a layout", "kill -9", big)
            .in_layout()
            .killed_at(9 << 20)
            .asks_within([2..=2, 1..=2, 4..=8, 0..=0])
            .twice(4 << 20),
    ]
}
