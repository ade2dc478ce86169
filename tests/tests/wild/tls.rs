//! TLS, names, addresses, proxies.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use edgepull_tests::faulty::{Action, Auth, Faulty, Kind, Rule, Tokens};
use edgepull_tests::forward_proxy::ForwardProxy;
use edgepull_tests::pki::{Authority, Validity};
use edgepull_tests::registry::{Door, Registry, free_port};
use edgepull_tests::tls_front::{TlsFront, free_443, listen_443};

use super::row::{PASSWORD, Row, Stage, USER, World, faulty, holds, row};

/// TLS before a faulty registry, with a certificate of the world's authority, which is trusted.
struct Secured {
    registry: Faulty,
    front: TlsFront,
}

/// Names of a certificate are unique in its authority.
fn issue(w: &World, address: &str, validity: Validity) -> edgepull_tests::pki::Identity {
    let ip = address.rsplit_once(':').map_or(address, |(ip, _)| ip);
    w.authority().issue(ip, &[&format!("IP:{ip}")], validity)
}

fn secured(w: &World, validity: Validity, auth: Auth, rules: Vec<Rule>) -> Secured {
    let listener = listen_443();
    let address = listener.local_addr().unwrap().to_string();
    let identity = issue(w, &address, validity);
    let registry = Faulty::start_with(Arc::clone(&w.hello), auth, rules);
    let front = TlsFront::start(listener, registry.host(), &identity, None);
    Secured { registry, front }
}

impl Secured {
    fn stage(self, trusted: &Path) -> Stage {
        let layout = Arc::clone(self.registry.layout());
        Stage::at(self.front.host(), &layout)
            .env("SSL_CERT_FILE", trusted)
            .watch(self.registry)
            .keep(self.front)
    }
}

fn trusted(
    name: &'static str,
    source: &'static str,
    validity: Validity,
    rules: impl Fn(&World) -> Vec<Rule> + Send + Sync + 'static,
) -> Row {
    row(name, source, move |w| {
        secured(w, validity, Auth::Open, rules(w)).stage(&w.authority().certificate())
    })
}

/// The real registry's own TLS.
fn real_tls(w: &World, clients: Option<&Path>) -> Registry {
    let address = free_443();
    let identity = issue(w, &address, Validity::Now);
    w.registry().beside(&Door::Tls {
        address: &address,
        identity: &identity,
        clients,
    })
}

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = certificates();
    rows.extend(schemes());
    rows.extend(proxies());
    rows.extend(addresses());
    rows
}

fn certificates() -> Vec<Row> {
    vec![
        trusted(
            "a private CA",
            "TLS and proxies: private CA",
            Validity::Now,
            |_| vec![],
        ),
        row(
            "a private CA nobody knows here",
            "TLS and proxies: private CA",
            |w| {
                let other = Authority::new();
                secured(w, Validity::Now, Auth::Open, vec![])
                    .stage(&other.certificate())
                    .keep(other)
            },
        )
        .fails("unavailable")
        .asks(0, 0, 0, 0)
        .says(&["authority", "private CA"]),
        trusted(
            "a certificate that is past",
            "TLS and proxies: clock; faults: clock +10 years",
            Validity::Past,
            |_| vec![],
        )
        .fails("unavailable")
        .asks(0, 0, 0, 0)
        .says(&["expired at 2021-01-01", "clock"]),
        trusted(
            "a certificate that is not yet valid",
            "TLS and proxies: clock; faults: clock 1970",
            Validity::Future,
            |_| vec![],
        )
        .fails("unavailable")
        .asks(0, 0, 0, 0)
        .says(&["valid from 2045-01-01", "clock"]),
        row("a certificate for another name", "TLS and proxies", |w| {
            let listener = listen_443();
            let identity =
                w.authority()
                    .issue("elsewhere", &["DNS:elsewhere.example"], Validity::Now);
            let registry = Faulty::start(Arc::clone(&w.hello), []);
            let front = TlsFront::start(listener, registry.host(), &identity, None);
            Secured { registry, front }.stage(&w.authority().certificate())
        })
        .fails("unavailable")
        .asks(0, 0, 0, 0)
        .says(&["another name"]),
        row(
            "a client certificate is wanted",
            "TLS and proxies: mutual TLS",
            |w| {
                let listener = listen_443();
                let address = listener.local_addr().unwrap().to_string();
                let identity = issue(w, &address, Validity::Now);
                let registry = Faulty::start(Arc::clone(&w.hello), []);
                let authority = w.authority().certificate();
                let front = TlsFront::start(listener, registry.host(), &identity, Some(&authority));
                Secured { registry, front }.stage(&authority)
            },
        )
        .fails("unavailable")
        .asks(0, 0, 0, 0),
        row("no CA certificates on this host", "TLS and proxies", |w| {
            let none = w.authority().dir().join("none.pem");
            std::fs::write(&none, "").unwrap();
            secured(w, Validity::Now, Auth::Open, vec![]).stage(&none)
        })
        .fails("config")
        .asks(0, 0, 0, 0)
        .says(&["ca-certificates"]),
        row(
            "docker-registry with TLS and HTTP/2",
            "TLS and proxies: private CA",
            |w| {
                let registry = real_tls(w, None);
                Stage::at(registry.host(), &w.hello)
                    .env("SSL_CERT_FILE", w.authority().certificate())
                    .watch(registry)
            },
        )
        .check(|seen, _| {
            let log = &seen.run.output.stderr;
            holds(
                !log.contains("HTTP/1.1 200"),
                "HTTP/1.1 although HTTP/2 was offered",
            )
        }),
        row(
            "docker-registry that wants a client certificate",
            "TLS and proxies: mutual TLS",
            |w| {
                let registry = real_tls(w, Some(&w.authority().certificate()));
                Stage::at(registry.host(), &w.hello)
                    .env("SSL_CERT_FILE", w.authority().certificate())
                    .watch(registry)
            },
        )
        .fails("unavailable")
        .asks(0, 0, 0, 0),
        row(
            "the storage's CA is unknown",
            "faults: CA for registry but not storage",
            |w| {
                let other = Authority::new();
                let listener = listen_443();
                let address = listener.local_addr().unwrap().to_string();
                let ip = address.rsplit_once(':').unwrap().0;
                let identity = other.issue(ip, &[&format!("IP:{ip}")], Validity::Now);
                let storage = Faulty::start(Arc::clone(&w.hello), []);
                let front = TlsFront::start(listener, storage.host(), &identity, None);
                let to = Rule::on(Kind::Blob, Action::Redirect(format!("https://{address}")));
                secured(w, Validity::Now, Auth::Open, vec![to])
                    .stage(&w.authority().certificate())
                    .watch(storage)
                    .keep((front, other))
            },
        )
        .fails("unavailable")
        .asks_within([1..=1, 1..=1, 1..=2, 0..=0])
        .says(&["redirected", "authority"]),
    ]
}

fn schemes() -> Vec<Row> {
    vec![
        row("https to http", "faults: https to http redirect", |w| {
            let storage = Faulty::start(Arc::clone(&w.hello), []);
            let to = Rule::on(
                Kind::Blob,
                Action::Redirect(format!("http://{}", storage.host())),
            );
            secured(w, Validity::Now, Auth::Open, vec![to])
                .stage(&w.authority().certificate())
                .watch(storage)
        })
        .fails("unavailable")
        .asks(1, 1, 1, 0)
        .says(&["https to plain http"]),
        row(
            "a token server in the clear behind https",
            "self-hosted: Nexus: realm rewritten",
            |w| {
                let tokens = Tokens {
                    user: Some((USER.to_owned(), PASSWORD.to_owned())),
                    ..Tokens::default()
                };
                secured(w, Validity::Now, Auth::Tokens(tokens), vec![])
                    .stage(&w.authority().certificate())
                    .creds()
            },
        )
        .fails("unavailable")
        .asks(1, 0, 0, 0)
        .says(&["plain http"]),
        row(
            "plain HTTP where TLS is spoken",
            "faults: plain HTTP on 443",
            |w| {
                let registry = Faulty::on(listen_443(), Arc::clone(&w.hello), Auth::Open, []);
                Stage::of(registry).env("SSL_CERT_FILE", w.authority().certificate())
            },
        )
        .fails("unavailable")
        .asks_within([0..=1, 0..=0, 0..=0, 0..=0])
        .check(|seen, _| seen.says(&["--plain-http"])),
        row(
            "plain HTTP on 443, as told",
            "TLS and proxies: plain HTTP",
            |w| {
                let registry = Faulty::on(listen_443(), Arc::clone(&w.hello), Auth::Open, []);
                Stage::of(registry).args(["--plain-http"])
            },
        ),
        row("TLS where plain HTTP is spoken", "status codes: 400", |w| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap().to_string();
            let identity = issue(w, &address, Validity::Now);
            let registry = Faulty::start(Arc::clone(&w.hello), []);
            let front = TlsFront::start(listener, registry.host(), &identity, None);
            Stage::at(&address, &w.hello).watch(registry).keep(front)
        })
        .fails("unavailable")
        .asks(0, 0, 0, 0),
    ]
}

/// A registry of this name, behind a proxy.
const FAR: &str = "registry.far.example:5000";

fn proxies() -> Vec<Row> {
    let behind = |w: &World, login: Option<(&str, &str)>| {
        let registry = Faulty::start(Arc::clone(&w.hello), []);
        let proxy = ForwardProxy::start(&[(FAR, registry.host())], login);
        let stage = Stage::at(FAR, &w.hello)
            .args(["--plain-http"])
            .watch(registry);
        (stage, proxy)
    };
    vec![
        row("HTTP_PROXY", "TLS and proxies: proxy", move |w| {
            let (stage, proxy) = behind(w, None);
            stage
                .env("http_proxy", format!("http://{}", proxy.host()))
                .keep(proxy)
        }),
        row("HTTPS_PROXY", "TLS and proxies: proxy", |w| {
            let identity =
                w.authority()
                    .issue("tunnel", &["DNS:registry.far.example"], Validity::Now);
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let registry = Faulty::start(Arc::clone(&w.hello), []);
            let front = TlsFront::start(listener, registry.host(), &identity, None);
            let proxy = ForwardProxy::start(&[(FAR, front.host())], None);
            Stage::at(FAR, &w.hello)
                .env("https_proxy", format!("http://{}", proxy.host()))
                .env("SSL_CERT_FILE", w.authority().certificate())
                .watch(registry)
                .keep((front, proxy))
        }),
        row(
            "a proxy that wants a password",
            "faults: proxy 407",
            move |w| {
                let (stage, proxy) = behind(w, Some(("site", PASSWORD)));
                stage
                    .env("http_proxy", format!("http://{}", proxy.host()))
                    .keep(proxy)
            },
        )
        .fails("unavailable")
        .asks(0, 0, 0, 0)
        .says(&["proxy"]),
        row(
            "a proxy that gets its password",
            "TLS and proxies: password hidden",
            move |w| {
                let (stage, proxy) = behind(w, Some(("site", PASSWORD)));
                let url = format!("http://site:{PASSWORD}@{}", proxy.host());
                stage.env("http_proxy", url).keep(proxy)
            },
        ),
        row("407 in the tunnel", "faults: proxy 407", |w| {
            let proxy = ForwardProxy::start(&[], Some(("site", PASSWORD)));
            Stage::at(FAR, &w.hello)
                .env(
                    "https_proxy",
                    format!("http://wrong:guess@{}", proxy.host()),
                )
                .env("SSL_CERT_FILE", w.authority().certificate())
                .keep(proxy)
        })
        .fails("unavailable")
        .asks(0, 0, 0, 0)
        .says(&["proxy"]),
        row(
            "a proxy that nobody runs",
            "TLS and proxies: proxy",
            move |w| {
                let (stage, _) = behind(w, None);
                stage.env("http_proxy", format!("http://127.0.0.1:{}", free_port()))
            },
        )
        .fails("unavailable")
        .asks(0, 0, 0, 0),
        row(
            "NO_PROXY by address range",
            "TLS and proxies: no_proxy: CIDR",
            |w| {
                Stage::of(Faulty::start(Arc::clone(&w.hello), []))
                    .env("http_proxy", format!("http://127.0.0.1:{}", free_port()))
                    .env("no_proxy", "example.org,127.0.0.0/8")
            },
        ),
        row(
            "a proxy that logs in by web page",
            "TLS and proxies: intercepting proxy",
            |w| {
                let page = "<html><head><title>Accept the terms</title></head></html>";
                let portal = Faulty::start(
                    Arc::clone(&w.hello),
                    [Rule::always(Action::body("text/html", page))],
                );
                let proxy = ForwardProxy::start(&[(FAR, portal.host())], None);
                Stage::at(FAR, &w.hello)
                    .args(["--plain-http"])
                    .env("http_proxy", format!("http://{}", proxy.host()))
                    .watch(portal)
                    .keep(proxy)
            },
        )
        .fails("unavailable")
        .asks(1, 0, 0, 0)
        .says(&["Accept the terms"]),
    ]
}

fn addresses() -> Vec<Row> {
    vec![
        row("an IPv6 literal", "faults: IPv6 literal", |w| {
            let listener = TcpListener::bind("[::1]:0").unwrap();
            Stage::of(Faulty::on(listener, Arc::clone(&w.hello), Auth::Open, []))
        }),
        row("nobody listens", "mirrors", |w| {
            Stage::at(&format!("127.0.0.1:{}", free_port()), &w.hello)
        })
        .fails("unavailable")
        .asks(0, 0, 0, 0),
        row("no such name", "faults: DNS gone", |w| {
            Stage::at("no-such-registry.invalid", &w.hello)
        })
        .fails("unavailable")
        .asks(0, 0, 0, 0)
        .says(&["resolved"]),
        faulty(
            "localhost by its name",
            "TLS and proxies: origins",
            |_| vec![],
        ),
    ]
}
