//! Who asks: token servers and their dialects, Basic, stored credentials.

use std::sync::Arc;
use std::time::Duration;

use edgepull_tests::fault_proxy::{Fault, FaultProxy};
use edgepull_tests::faulty::{Action, Auth, Faulty, Kind, Request, Rule, Tokens};
use edgepull_tests::http::base64;
use edgepull_tests::pki::Authority;
use edgepull_tests::registry::{self, Door};
use edgepull_tests::token_server::TokenServer;

use super::credentials::{auths, basic_registry};
use super::row::{Left, PASSWORD, Row, Stage, USER, World, holds, row, with_login};

fn user() -> (String, String) {
    (USER.to_owned(), PASSWORD.to_owned())
}

/// A token server for [`user`] only.
fn theirs() -> Tokens {
    Tokens {
        user: Some(user()),
        anonymous: false,
        ..Tokens::default()
    }
}

/// A registry whose tokens are as `tokens` says; the call has the user's password if `login`.
fn tokens(
    name: &'static str,
    source: &'static str,
    login: bool,
    tokens: impl Fn() -> Tokens + Send + Sync + 'static,
) -> Row {
    row(name, source, move |w| {
        let stage = Stage::of(Faulty::start_with(
            Arc::clone(&w.hello),
            Auth::Tokens(tokens()),
            [],
        ));
        if login { stage.creds() } else { stage }
    })
    // The first request learns from its 401 what is wanted.
    .asks(2, 1, 4, 1)
}

fn token_requests(requests: &[Request]) -> impl Iterator<Item = &Request> {
    requests.iter().filter(|r| r.kind == Kind::Token)
}

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = dialects();
    rows.extend(lifetimes());
    rows.extend(refusals());
    rows.extend(real());
    rows
}

fn dialects() -> Vec<Row> {
    vec![
        tokens(
            "an anonymous token",
            "public registries: Docker Hub",
            false,
            Tokens::default,
        ),
        tokens(
            "a user's token",
            "public registries: Docker Hub",
            true,
            theirs,
        ),
        tokens(
            "a token without expires_in",
            "public registries: GitLab: then 60 s",
            true,
            || Tokens {
                expires_in: None,
                ..theirs()
            },
        ),
        tokens(
            "access_token only",
            "public registries: GitLab",
            true,
            || Tokens {
                token: false,
                ..theirs()
            },
        ),
        tokens("token only", "public registries: GitLab", true, || Tokens {
            access_token: false,
            ..theirs()
        }),
        tokens(
            "a challenge without scope",
            "public registries: GHCR: build it",
            false,
            || Tokens {
                scope: false,
                needs_scope: true,
                ..Tokens::default()
            },
        )
        .check(|seen, _| {
            let scoped =
                token_requests(&seen.requests).all(|r| r.query.contains("lab%2Fapp%3Apull"));
            holds(scoped, "a token was asked for without scope")
        }),
        row(
            "a token server on another host",
            "public registries: Docker Hub: auth.docker.io",
            |w| {
                let open = Tokens::default();
                let server =
                    Faulty::start_with(Arc::clone(&w.hello), Auth::Tokens(open.clone()), []);
                let realm = format!(
                    "http://{}/token",
                    server.host().replace("127.0.0.1", "localhost")
                );
                let registry = Faulty::start_with(
                    Arc::clone(&w.hello),
                    Auth::Tokens(Tokens {
                        realm: Some(realm),
                        ..open
                    }),
                    [],
                );
                Stage::of(registry).watch(server)
            },
        )
        .asks(2, 1, 4, 1),
        row(
            "credentials for another host in the clear",
            "self-hosted: Nexus: a realm rewritten by a proxy",
            |w| {
                let server = Faulty::start_with(Arc::clone(&w.hello), Auth::Tokens(theirs()), []);
                let realm = format!(
                    "http://{}/token",
                    server.host().replace("127.0.0.1", "localhost")
                );
                let registry = Faulty::start_with(
                    Arc::clone(&w.hello),
                    Auth::Tokens(Tokens {
                        realm: Some(realm),
                        ..theirs()
                    }),
                    [],
                );
                Stage::of(registry).creds().watch(server)
            },
        )
        .fails("unavailable")
        .asks(1, 0, 0, 0)
        .says(&["localhost"]),
        row(
            "an identity token",
            "public registries: Azure ACR: POST refresh_token",
            |w| {
                let identity = format!("{PASSWORD}-identity");
                let auth = Auth::Tokens(Tokens {
                    identity: Some(identity.clone()),
                    anonymous: false,
                    ..Tokens::default()
                });
                let server = Faulty::start_with(Arc::clone(&w.hello), auth, []);
                // The null GUID stands for nobody: the token is what counts.
                let user = base64(b"00000000-0000-0000-0000-000000000000:");
                let entry = format!("\"auth\":\"{user}\",\"identitytoken\":\"{identity}\"");
                let file = auths(server.host(), &entry);
                Stage::of(server).file("config.json", file)
            },
        )
        .asks(2, 1, 4, 1)
        .check(|seen, _| {
            let posted = token_requests(&seen.requests).all(|r| r.method == "POST");
            holds(posted, "the identity token did not go by POST")
        }),
        with_login(
            "Basic on /v2/, Bearer elsewhere",
            "self-hosted: nora: follow the failing URL",
            || Auth::Tokens(theirs()),
            |_| {
                let basic = (
                    "WWW-Authenticate".to_owned(),
                    "Basic realm=\"nora\"".to_owned(),
                );
                vec![Rule::on(
                    Kind::Ping,
                    Action::Answer(401, vec![basic], Vec::new()),
                )]
            },
        )
        .asks(2, 1, 4, 1),
    ]
}

fn lifetimes() -> Vec<Row> {
    let slow = |_: &World| {
        let drip = Action::Slow(1 << 17, Duration::from_millis(150));
        vec![Rule::on(Kind::Blob, drip)]
    };
    vec![
        with_login(
            "tokens that live one second",
            "public registries: GitLab: 60 s to 5 min; basics",
            || {
                Auth::Tokens(Tokens {
                    expires_in: Some(1),
                    lives: Some(Duration::from_secs(1)),
                    ..theirs()
                })
            },
            slow,
        )
        .asks_within([2..=2, 1..=2, 4..=8, 1..=4]),
        with_login(
            "a token that says 300 s and lives one",
            "faults: 60 s token on a 5 min blob",
            || {
                Auth::Tokens(Tokens {
                    lives: Some(Duration::from_secs(1)),
                    ..theirs()
                })
            },
            |w| {
                let layer = w.layer();
                vec![
                    Rule::on(Kind::Manifest, Action::Delay(Duration::from_millis(1100))),
                    Rule::on(Kind::Blob, Action::Truncate(500_000))
                        .what(&layer)
                        .times(1),
                ]
            },
        )
        .asks_within([2..=2, 1..=2, 5..=10, 2..=3]),
        tokens("401 in mid-pull", "faults: 401 in mid-pull", true, || {
            Tokens {
                uses: Some(3),
                ..theirs()
            }
        })
        // Three layers are on their way at once: each of them may be told.
        .asks_within([2..=2, 1..=1, 5..=7, 2..=3]),
        with_login(
            "401 in mid-layer: renewed and resumed",
            "basics; faults: 401 in mid-pull",
            || {
                Auth::Tokens(Tokens {
                    uses: Some(3),
                    ..theirs()
                })
            },
            |w| {
                let cut = Rule::on(Kind::Blob, Action::Truncate(300_000)).what(&w.layer());
                vec![cut.times(2)]
            },
        )
        .asks_within([2..=2, 1..=1, 7..=9, 2..=4]),
        with_login(
            "the token server is busy for a moment",
            "public registries: Quay: bursts on the token step",
            || Auth::Tokens(theirs()),
            |_| vec![Rule::on(Kind::Token, Action::status(503)).times(1)],
        )
        .asks(2, 1, 4, 2),
        with_login(
            "the token server is down",
            "public registries: Quay",
            || Auth::Tokens(theirs()),
            |_| vec![Rule::on(Kind::Token, Action::status(503))],
        )
        .fails("unavailable")
        .asks_within([1..=1, 0..=0, 0..=0, 3..=3])
        .heals(),
        with_login(
            "the token server limits",
            "status codes: 429",
            || Auth::Tokens(theirs()),
            |_| {
                let wait = ("Retry-After".to_owned(), "1".to_owned());
                vec![Rule::on(Kind::Token, Action::Answer(429, vec![wait], Vec::new())).times(1)]
            },
        )
        .asks(2, 1, 4, 2),
        with_login(
            "the token is a web page",
            "status codes: 200 with HTML",
            || Auth::Tokens(theirs()),
            |_| {
                let page = "<html><head><title>Single sign-on</title></head></html>";
                vec![Rule::on(Kind::Token, Action::body("text/html", page))]
            },
        )
        .fails("unavailable")
        .asks(1, 0, 0, 1)
        .says(&["Single sign-on"]),
        with_login(
            "the token's answer has no token",
            "public registries: GitLab",
            || Auth::Tokens(theirs()),
            |_| {
                vec![Rule::on(
                    Kind::Token,
                    Action::body("application/json", "{\"expires_in\":60}"),
                )]
            },
        )
        .fails("unavailable")
        .asks(1, 0, 0, 1),
    ]
}

fn refusals() -> Vec<Row> {
    vec![
        tokens(
            "private, and nobody asks",
            "public registries: GHCR: the token endpoint says 401",
            false,
            theirs,
        )
        .fails("unauthorized")
        .asks(1, 0, 0, 1)
        .says(&["private or missing"]),
        row("a wrong password", "status codes: 401", |w| {
            let server = Faulty::start_with(Arc::clone(&w.hello), Auth::Tokens(theirs()), []);
            Stage::of(server).args(["--creds", "edge:guess"])
        })
        .fails("unauthorized")
        // Once in the user's name, once in nobody's.
        .asks(1, 0, 0, 2)
        .check(|seen, _| {
            let told = seen.run.text() + &seen.run.output.stderr;
            holds(!told.contains("guess"), "the password is in the output")
        }),
        row(
            "stale credentials on a public image",
            "public registries: GHCR: once anonymously; faults",
            |w| {
                let server = Faulty::start_with(
                    Arc::clone(&w.hello),
                    Auth::Tokens(Tokens {
                        user: Some(user()),
                        ..Tokens::default()
                    }),
                    [],
                );
                let old = base64(b"edge:of-last-year");
                let file = auths(server.host(), &format!("\"auth\":\"{old}\""));
                Stage::of(server).file("config.json", file)
            },
        )
        .asks(2, 1, 4, 2)
        .check(|seen, _| seen.warns("config.json")),
        tokens(
            "an expired account on a public image",
            "public registries: ECR public: 403",
            true,
            || Tokens {
                user: Some(user()),
                refuses_users: true,
                ..Tokens::default()
            },
        )
        .asks(3, 1, 4, 2)
        .check(|seen, _| seen.warns("--creds")),
        row(
            "stale Basic on a public image",
            "faults: stale Basic on a public image",
            |w| {
                let refused = Action::Answer(
                    401,
                    vec![(
                        "WWW-Authenticate".to_owned(),
                        "Basic realm=\"lab\"".to_owned(),
                    )],
                    Vec::new(),
                );
                let rule = Rule::always(refused).when(Request::authorized);
                Stage::of(Faulty::start(Arc::clone(&w.hello), [rule])).creds()
            },
        ),
        row(
            "Basic without credentials",
            "self-hosted: Nexus: forceBasicAuth",
            |w| Stage::of(basic_registry(w)),
        )
        .fails("unauthorized")
        .asks(1, 0, 0, 0),
        row("Basic with a wrong password", "status codes: 401", |w| {
            Stage::of(basic_registry(w)).args(["--creds", "edge:guess"])
        })
        .fails("unauthorized")
        .asks_within([2..=3, 0..=0, 0..=0, 0..=0]),
        row("401 without a challenge", "status codes: 401", |w| {
            let rule = Rule::on(Kind::Tag, Action::status(401));
            Stage::of(Faulty::start(Arc::clone(&w.hello), [rule])).creds()
        })
        .fails("unauthorized")
        .asks(1, 0, 0, 0),
        row(
            "403 for everything",
            "public registries: Google: private or missing",
            |w| {
                let rule = Rule::on(Kind::Tag, Action::status(403));
                Stage::of(Faulty::start(Arc::clone(&w.hello), [rule]))
            },
        )
        .fails("unauthorized")
        .asks(1, 0, 0, 0)
        .says(&["private or missing"]),
        with_login(
            "a token that is never good enough",
            "status codes: 401: once with a new token",
            || {
                Auth::Tokens(Tokens {
                    uses: Some(0),
                    ..theirs()
                })
            },
            |_| vec![],
        )
        .fails("unauthorized")
        .asks_within([2..=2, 0..=0, 0..=0, 2..=2]),
        with_login(
            "a layer that is denied for a moment",
            "public registries: GHCR: denied now and then",
            || Auth::Tokens(theirs()),
            |w| {
                vec![
                    Rule::on(Kind::Blob, Action::status(403))
                        .what(&w.layer())
                        .times(2),
                ]
            },
        )
        .asks_within([2..=2, 1..=1, 6..=6, 1..=3]),
        row(
            "a layer that is refused though the rest is not",
            "status codes: 403; public registries: GHCR: two or three retries",
            |w| {
                let refused = Rule::on(Kind::Blob, Action::status(403)).what(&w.layer());
                let auth = Auth::Tokens(theirs());
                Stage::of(Faulty::start_with(Arc::clone(&w.lone), auth, [refused])).creds()
            },
        )
        .fails("unauthorized")
        .left(Left::Partial)
        .asks_within([2..=2, 1..=1, 2..=5, 1..=2])
        .heals(),
    ]
}

/// The real registry, with the requests counted by a proxy in front.
fn real() -> Vec<Row> {
    vec![
        row("docker-registry", "self-hosted: distribution", |w| {
            let proxy = FaultProxy::start(w.registry().host(), 1, Fault::Pass);
            Stage::at(proxy.host(), &w.hello).watch(proxy)
        }),
        row(
            "docker-registry with htpasswd",
            "self-hosted: distribution",
            |w| {
                let registry = w.registry().beside(&Door::Password);
                let proxy = FaultProxy::start(registry.host(), 1, Fault::Pass);
                Stage::at(proxy.host(), &w.hello)
                    .args([
                        "--creds".to_owned(),
                        format!("{}:{}", registry::USER, registry::PASSWORD),
                    ])
                    .watch(proxy)
                    .keep(registry)
            },
        )
        .asks(2, 1, 4, 0)
        .check(|seen, _| {
            let told = seen.run.text() + &seen.run.output.stderr;
            holds(
                !told.contains(registry::PASSWORD),
                "the password is in the output",
            )
        }),
        row(
            "docker-registry with htpasswd, nobody asks",
            "status codes: 401",
            |w| {
                let registry = w.registry().beside(&Door::Password);
                let proxy = FaultProxy::start(registry.host(), 1, Fault::Pass);
                Stage::at(proxy.host(), &w.hello)
                    .watch(proxy)
                    .keep(registry)
            },
        )
        .fails("unauthorized")
        .asks(1, 0, 0, 0),
        row(
            "docker-registry with signed tokens",
            "public registries: GitLab: JWT",
            |w| signed(w, PASSWORD),
        )
        .asks(2, 1, 4, 1),
        row(
            "docker-registry whose token server refuses",
            "public registries: GHCR",
            |w| signed(w, "other"),
        )
        .fails("unauthorized")
        .asks(1, 0, 0, 2),
    ]
}

/// The real registry with a token server that knows the user by `password`.
fn signed(w: &World, password: &'static str) -> Stage {
    let signer = Authority::new();
    let server = TokenServer::start(&signer.identity(), Some((USER, password)));
    let (realm, certificate) = (server.realm().to_owned(), signer.certificate());
    let registry = w.registry().beside(&Door::Tokens {
        realm: &realm,
        signer: &certificate,
    });
    let proxy = FaultProxy::start(registry.host(), 1, Fault::Pass);
    Stage::at(proxy.host(), &w.hello)
        .creds()
        .watch(proxy)
        .watch(server)
        .keep((registry, signer))
}
