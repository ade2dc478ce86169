//! Mirrors and what `hosts.toml` says of hosts.

use std::sync::Arc;

use edgepull_tests::faulty::{Action, Auth, Faulty, Kind, Request, Rule};
use edgepull_tests::http::base64;
use edgepull_tests::pki::Validity;
use edgepull_tests::registry::{Door, free_port};
use edgepull_tests::tls_front::{TlsFront, free_443, listen_443};

use super::row::{PASSWORD, Row, Seen, Stage, USER, World, holds, row};

/// A mirror that behaves like this, before a registry that behaves like that.
fn mirrored(
    name: &'static str,
    source: &'static str,
    mirror: impl Fn(&World) -> Vec<Rule> + Send + Sync + 'static,
    upstream: impl Fn(&World) -> Vec<Rule> + Send + Sync + 'static,
) -> Row {
    row(name, source, move |w| before(w, mirror(w), upstream(w), ""))
        .check(|seen, _| names_upstream_to_mirrors_only(seen))
}

/// `more`: further lines of the mirror's table.
fn before(w: &World, mirror: Vec<Rule>, upstream: Vec<Rule>, more: &str) -> Stage {
    let upstream = Faulty::start(Arc::clone(&w.hello), upstream);
    let mirror = Faulty::start(Arc::clone(&w.hello), mirror);
    let host = upstream.host().to_owned();
    let toml = hosts_toml(&host, &[(mirror.host(), more)]);
    Stage::of(upstream).watch(mirror).hosts(&host, toml)
}

fn hosts_toml(server: &str, mirrors: &[(&str, &str)]) -> String {
    let mut toml = format!("server = \"http://{server}\"\n");
    for (host, more) in mirrors {
        toml.push_str("[host.\"http://");
        toml.push_str(host);
        toml.push_str("\"]\n");
        toml.push_str(more);
    }
    toml
}

/// Only a mirror is told whose content is wanted.
fn is_mirror(request: &Request) -> bool {
    request.query.contains("ns=")
}

/// The registry itself is never told its own name.
fn names_upstream_to_mirrors_only(seen: &Seen) -> Result<(), String> {
    let registry = seen.reference.split('/').next();
    let told = |r: &Request| is_mirror(r) && r.header("host") == registry;
    holds(
        !seen.requests.iter().any(told),
        "ns= went to the registry itself",
    )
}

fn at_mirror(seen: &Seen) -> usize {
    seen.requests.iter().filter(|r| is_mirror(r)).count()
}

fn nothing(_: &World) -> Vec<Rule> {
    Vec::new()
}

fn down(_: &World) -> Vec<Rule> {
    vec![Rule::always(Action::status(503))]
}

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = falls();
    rows.extend(tables());
    rows.extend(transports());
    rows
}

fn falls() -> Vec<Row> {
    vec![
        mirrored("a mirror that has everything", "mirrors", nothing, down)
            .check(|seen, _| holds(at_mirror(seen) == 6, "not all from the mirror")),
        mirrored(
            "a mirror that has nothing",
            "mirrors: 404",
            |_| vec![Rule::always(Action::status(404))],
            nothing,
        )
        // Once with `ns`, once without, then the registry.
        .asks_within([2..=3, 3..=3, 8..=12, 0..=0]),
        mirrored(
            "a mirror that is down",
            "mirrors: 503 of a half-started cache; breaker",
            down,
            nothing,
        )
        .asks_within([2..=2, 1..=1, 4..=4, 0..=0])
        .check(|seen, _| {
            holds(
                at_mirror(seen) <= 3,
                "the dead mirror was asked for each blob",
            )
        }),
        mirrored(
            "a mirror that hangs up",
            "mirrors",
            |_| vec![Rule::always(Action::Close)],
            nothing,
        )
        .asks_within([2..=4, 1..=2, 4..=5, 0..=0])
        .check(|seen, _| {
            holds(
                at_mirror(seen) <= 3,
                "the dead mirror was asked for each blob",
            )
        }),
        row("a mirror that nobody runs", "mirrors: refusal", |w| {
            let upstream = Faulty::start(Arc::clone(&w.hello), []);
            let host = upstream.host().to_owned();
            let toml = hosts_toml(&host, &[(&format!("127.0.0.1:{}", free_port()), "")]);
            Stage::of(upstream).hosts(&host, toml)
        }),
        row("a mirror without a name", "mirrors: DNS failure", |w| {
            let upstream = Faulty::start(Arc::clone(&w.hello), []);
            let host = upstream.host().to_owned();
            let toml = hosts_toml(&host, &[("no-such-mirror.invalid", "")]);
            Stage::of(upstream).hosts(&host, toml)
        }),
        mirrored(
            "a mirror that hangs",
            "faults: first mirror hangs",
            |_| vec![Rule::always(Action::Stall(0)).when(|r| r.method == "GET")],
            nothing,
        )
        .asks_within([2..=3, 1..=2, 4..=5, 0..=0])
        .slow(),
        mirrored(
            "a mirror with 500 for every blob",
            "self-hosted: Spegel: next host at once",
            |_| vec![Rule::on(Kind::Blob, Action::status(500))],
            nothing,
        )
        .asks_within([1..=1, 1..=1, 5..=8, 0..=0]),
        mirrored(
            "a mirror that lacks one child",
            "faults: mirror lacks one child",
            |w| vec![Rule::on(Kind::Manifest, Action::status(404)).what(&w.manifest())],
            nothing,
        )
        .asks_within([1..=1, 2..=3, 4..=4, 0..=0]),
        mirrored(
            "a mirror that lacks one layer",
            "mirrors",
            |w| vec![Rule::on(Kind::Blob, Action::status(404)).what(&w.layer())],
            nothing,
        )
        .asks_within([1..=1, 1..=1, 5..=6, 0..=0]),
        mirrored(
            "a mirror with a flipped bit",
            "mirrors: a digest mismatch moves on, with a warning",
            |w| vec![Rule::on(Kind::Blob, Action::FlipBit(5000)).what(&w.layer())],
            nothing,
        )
        .asks_within([1..=1, 1..=1, 5..=6, 0..=0])
        .twice(1_200_000)
        .check(|seen, _| {
            holds(
                seen.report["warnings"]
                    .as_array()
                    .is_some_and(|w| !w.is_empty()),
                "no warning",
            )
        }),
        mirrored(
            "a mirror with another manifest",
            "mirrors: a digest mismatch moves on",
            |_| vec![Rule::on(Kind::Manifest, Action::FlipBit(40))],
            nothing,
        )
        .asks(1, 2, 4, 0),
        mirrored(
            "a mirror that breaks in mid-layer",
            "mirrors; blobs: resume",
            |w| {
                vec![
                    Rule::on(Kind::Blob, Action::Reset(600_000))
                        .what(&w.layer())
                        .times(1),
                    Rule::on(Kind::Blob, Action::status(503)).what(&w.layer()),
                ]
            },
            nothing,
        )
        .asks_within([1..=1, 1..=1, 5..=6, 0..=0])
        .twice(1 << 16),
        mirrored(
            "a mirror that is a web page",
            "status codes: 200 with HTML",
            |_| {
                let page = "<html><head><title>It works!</title></head></html>";
                vec![Rule::always(Action::body("text/html", page))]
            },
            nothing,
        )
        // The pages.
        .twice(1000)
        .asks_within([2..=3, 1..=3, 4..=12, 0..=0]),
        mirrored(
            "a mirror that limits",
            "status codes: 429",
            |_| {
                vec![Rule::always(Action::Answer(
                    429,
                    vec![("Retry-After".into(), "3600".into())],
                    vec![],
                ))]
            },
            nothing,
        )
        .asks_within([2..=2, 1..=2, 4..=5, 0..=0]),
        mirrored("everybody is down", "mirrors: report each host", down, down)
            .fails("unavailable")
            .asks_within([2..=4, 0..=0, 0..=0, 0..=0])
            .check(|seen, _| {
                let mut hosts: Vec<_> = seen
                    .requests
                    .iter()
                    .filter_map(|r| r.header("host"))
                    .collect();
                hosts.sort_unstable();
                hosts.dedup();
                seen.says(&hosts)
            })
            .heals(),
        mirrored(
            "not found anywhere",
            "mirrors; status codes: 404",
            |_| vec![Rule::always(Action::status(404))],
            |_| vec![Rule::always(Action::status(404))],
        )
        .fails("not_found")
        .asks_within([2..=3, 0..=0, 0..=0, 0..=0]),
    ]
}

fn tables() -> Vec<Row> {
    vec![
        row(
            "a mirror for blobs only",
            "mirrors: capabilities; stale tags",
            |w| {
                before(
                    w,
                    vec![Rule::on(Kind::Tag, Action::status(418))],
                    vec![],
                    "capabilities = [\"pull\"]\n",
                )
            },
        )
        .check(|seen, _| {
            let wrong = |r: &Request| is_mirror(r) == (r.kind == Kind::Tag);
            holds(
                !seen.requests.iter().any(wrong),
                "tags at the mirror, or content not",
            )
        }),
        row(
            "a mirror below a path",
            "faults: prefix mirror: override_path",
            |w| {
                let upstream = Faulty::start(Arc::clone(&w.hello), down(w));
                let mirror = Faulty::start(
                    Arc::clone(&w.hello),
                    [Rule::always(Action::status(404))
                        .when(|r| !r.path.starts_with("/v2/proxy/lab/app/"))],
                );
                let host = upstream.host().to_owned();
                let place = format!("{}/v2/proxy", mirror.host());
                let toml = hosts_toml(&host, &[(&place, "override_path = true\n")]);
                Stage::of(upstream).watch(mirror).hosts(&host, toml)
            },
        ),
        row(
            "a mirror that is strict about ns",
            "mirrors: once without",
            |w| {
                let strict = Rule::always(Action::status(400)).when(is_mirror);
                before(w, vec![strict], down(w), "")
            },
        )
        .asks_within([2..=2, 1..=1, 4..=4, 0..=0]),
        row(
            "a mirror that refuses whoever sends no ns",
            "self-hosted: Spegel",
            |w| {
                let strict = Rule::always(Action::status(404)).when(|r| !is_mirror(r));
                before(w, vec![strict], down(w), "")
            },
        ),
        row(
            "a header for the mirror",
            "mirrors: header; self-hosted: Dragonfly",
            |w| {
                let secret = format!("[host.\"http://{{}}\".header]\nX-Lab = \"{PASSWORD}\"\n");
                let upstream = Faulty::start(Arc::clone(&w.hello), []);
                let mirror = Faulty::start(
                    Arc::clone(&w.hello),
                    [
                        Rule::always(Action::status(404)).when(|r| r.header("x-lab").is_none()),
                        Rule::on(Kind::Blob, Action::status(404)),
                    ],
                );
                let host = upstream.host().to_owned();
                let mut toml = hosts_toml(&host, &[(mirror.host(), "")]);
                toml.push_str(&secret.replace("{}", mirror.host()));
                Stage::of(upstream).watch(mirror).hosts(&host, toml)
            },
        )
        .asks_within([1..=1, 1..=1, 5..=12, 0..=0])
        .check(|seen, _| {
            let leaked = seen
                .requests
                .iter()
                .any(|r| r.status == 200 && r.kind == Kind::Blob && r.header("x-lab").is_some());
            holds(!leaked, "the mirror's header went to the registry")
        }),
        row(
            "the registry's login stays there",
            "mirrors: credentials by origin",
            |w| {
                let auth = Auth::Basic(USER.to_owned(), PASSWORD.to_owned());
                let upstream = Faulty::start_with(Arc::clone(&w.hello), auth, []);
                let challenge = vec![(
                    "WWW-Authenticate".to_owned(),
                    "Basic realm=\"mirror\"".to_owned(),
                )];
                let mirror = Faulty::start(
                    Arc::clone(&w.hello),
                    [Rule::always(Action::Answer(401, challenge, vec![]))],
                );
                let host = upstream.host().to_owned();
                let entry = base64(format!("{USER}:{PASSWORD}").as_bytes());
                let toml = hosts_toml(&host, &[(mirror.host(), "")]);
                let file = format!("{{\"auths\":{{\"{host}\":{{\"auth\":\"{entry}\"}}}}}}");
                Stage::of(upstream)
                    .watch(mirror)
                    .hosts(&host, toml)
                    .file("config.json", file)
            },
        )
        .asks_within([3..=4, 1..=3, 4..=12, 0..=0])
        .check(|seen, _| {
            let leaked = seen.requests.iter().any(|r| is_mirror(r) && r.authorized());
            holds(!leaked, "the registry's login went to the mirror")
        }),
        row("a mirror for every registry", "mirrors: _default", |w| {
            let upstream = Faulty::start(Arc::clone(&w.hello), down(w));
            let mirror = Faulty::start(Arc::clone(&w.hello), []);
            let toml = format!("[host.\"http://{}\"]\n", mirror.host());
            Stage::of(upstream).watch(mirror).hosts("_default", toml)
        }),
        row(
            "two mirrors, in the order of the file",
            "mirrors: ordered",
            |w| {
                let upstream = Faulty::start(Arc::clone(&w.hello), down(w));
                let first = Faulty::start(
                    Arc::clone(&w.hello),
                    [Rule::on(Kind::Blob, Action::status(404))],
                );
                let second = Faulty::start(
                    Arc::clone(&w.hello),
                    [
                        Rule::on(Kind::Tag, Action::status(418)),
                        Rule::on(Kind::Manifest, Action::status(418)),
                    ],
                );
                let host = upstream.host().to_owned();
                let toml = hosts_toml(&host, &[(first.host(), ""), (second.host(), "")]);
                Stage::of(upstream)
                    .watch(first)
                    .watch(second)
                    .hosts(&host, toml)
            },
        )
        .asks_within([1..=1, 1..=1, 8..=12, 0..=0]),
        row(
            "a hosts.toml that is broken",
            "hosts.toml: a parse error is reported",
            |w| {
                let upstream = Faulty::start(Arc::clone(&w.hello), []);
                let host = upstream.host().to_owned();
                Stage::of(upstream).hosts(&host, "server = \"http://x\"\n\n[host.\"http://y\"\n")
            },
        )
        .fails("config")
        .asks(0, 0, 0, 0)
        .says(&["hosts.toml", "line 3"]),
        row(
            "a hosts.toml with a wrong type",
            "hosts.toml: a parse error is reported",
            |w| {
                let upstream = Faulty::start(Arc::clone(&w.hello), []);
                let host = upstream.host().to_owned();
                Stage::of(upstream).hosts(&host, "[host.\"http://y\"]\nskip_verify = \"maybe\"\n")
            },
        )
        .fails("config")
        .asks(0, 0, 0, 0)
        .says(&["hosts.toml", "skip_verify"]),
    ]
}

fn https_host(address: &str) -> String {
    address.strip_suffix(":443").unwrap_or(address).to_owned()
}

fn transports() -> Vec<Row> {
    // A registry with TLS of the world's authority, and lines of its hosts.toml.
    let secured = |w: &World, clients: bool, rules: Vec<Rule>, more: &str| {
        let listener = listen_443();
        let address = listener.local_addr().unwrap().to_string();
        let ip = https_host(&address);
        let identity = w
            .authority()
            .issue(&ip, &[&format!("IP:{ip}")], Validity::Now);
        let registry = Faulty::start(Arc::clone(&w.hello), rules);
        let authority = w.authority().certificate();
        let front = TlsFront::start(
            listener,
            registry.host(),
            &identity,
            clients.then_some(authority.as_path()),
        );
        let toml = format!(
            "server = \"https://{address}\"\n[host.\"https://{address}\"]\n{}",
            more.replace("CA", &authority.display().to_string())
        );
        Stage::at(&address, &w.hello)
            .hosts(&address, toml)
            .watch(registry)
            .keep(front)
    };
    vec![
        row(
            "a CA from hosts.toml",
            "TLS and proxies: ca in hosts.toml",
            move |w| secured(w, false, vec![], "ca = \"CA\"\n"),
        ),
        row("skip_verify", "hosts.toml", move |w| {
            secured(w, false, vec![], "skip_verify = true\n")
        }),
        row(
            "a host's CA is not the storage's",
            "TLS and proxies: CA by host table",
            move |w| {
                let listener = listen_443();
                let address = listener.local_addr().unwrap().to_string();
                let ip = https_host(&address);
                let identity = w
                    .authority()
                    .issue(&ip, &[&format!("IP:{ip}")], Validity::Now);
                let storage = Faulty::start(Arc::clone(&w.hello), []);
                let front = TlsFront::start(listener, storage.host(), &identity, None);
                let to = Rule::on(Kind::Blob, Action::Redirect(format!("https://{address}")));
                secured(w, false, vec![to], "skip_verify = true\n")
                    .watch(storage)
                    .keep(front)
            },
        )
        .fails("unavailable")
        .asks_within([1..=1, 1..=1, 1..=1, 0..=0])
        .says(&["redirected"]),
        row(
            "a client certificate from hosts.toml",
            "TLS and proxies: mutual TLS",
            move |w| {
                let client = w
                    .authority()
                    .issue("device", &["DNS:device.example"], Validity::Now);
                let more = format!(
                    "ca = \"CA\"\nclient = [[\"{}\", \"{}\"]]\n",
                    client.cert.display(),
                    client.key.display()
                );
                secured(w, true, vec![], &more)
            },
        ),
        row(
            "docker-registry with a client certificate",
            "TLS and proxies: mutual TLS",
            |w| {
                let address = free_443();
                let ip = https_host(&address);
                let authority = w.authority().certificate();
                let identity = w
                    .authority()
                    .issue(&ip, &[&format!("IP:{ip}")], Validity::Now);
                let client =
                    w.authority()
                        .issue("gateway", &["DNS:gateway.example"], Validity::Now);
                let registry = w.registry().beside(&Door::Tls {
                    address: &address,
                    identity: &identity,
                    clients: Some(&authority),
                });
                let toml = format!(
                    "server = \"https://{address}\"\nca = \"{}\"\nclient = [[\"{}\", \"{}\"]]\n",
                    authority.display(),
                    client.cert.display(),
                    client.key.display()
                );
                Stage::at(&address, &w.hello)
                    .hosts(&address, toml)
                    .watch(registry)
            },
        ),
        row(
            "a CA as docker keeps it",
            "docker's .crt folders",
            move |w| {
                let authority = std::fs::read_to_string(w.authority().certificate()).unwrap();
                let mut stage = secured(w, false, vec![], "");
                let host = stage.reference.split('/').next().unwrap().to_owned();
                stage.files.clear();
                stage.file(format!("certs.d/{host}/ca.crt"), authority)
            },
        ),
    ]
}
