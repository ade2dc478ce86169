//! The real registry behind each of its doors, over a network whose connections break: what is
//! lost is a connection and never a login, and what came over it is not fetched again.

use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

use edgepull_tests::fault_proxy::{Fault, FaultProxy};
use edgepull_tests::faulty::Request;
use edgepull_tests::pki::{Authority, Validity};
use edgepull_tests::registry::{self, Door, Registry};
use edgepull_tests::tls_front::free_443;
use edgepull_tests::token_server::TokenServer;

use super::row::{PASSWORD, Row, Stage, USER, Watched, World, holds, row};

/// Blobs that are fetched at once by default.
const AT_ONCE: u32 = 3;

/// What a client of the registry has to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Password,
    Tokens,
    Tls,
}

/// A pull needs no more connections than it fetches blobs at once; HTTP/2 needs one.
fn connections(proxy: &FaultProxy, limit: u32) -> Result<(), String> {
    let connections = proxy.connections();
    holds(
        (1..=limit).contains(&connections),
        &format!("{connections} connections, at most {limit} may be"),
    )
}

/// A registry that is reached through a proxy which cannot read along: the registry's own log
/// says what was asked, the proxy what came through.
struct Sealed {
    registry: Registry,
}

impl Watched for Sealed {
    fn requests(&self) -> Vec<Request> {
        let mut requests = self.registry.requests();
        for request in &mut requests {
            // What it handed to the kernel, most of which a cut connection never carries.
            request.sent = 0;
        }
        requests
    }
}

fn stage(w: &World, kind: Kind, fault: &Fault, times: Option<u32>) -> Stage {
    let proxied = |target: &str| {
        let proxy = FaultProxy::start(target, 7, fault.clone());
        Rc::new(match times {
            Some(times) => proxy.times(times),
            None => proxy,
        })
    };
    let whole_ones = matches!(fault, Fault::Delay(_));
    // The second one with a password or a token: the registry ends a connection with its refusal.
    let few = move |proxy: &FaultProxy| match (whole_ones, kind) {
        (false, _) => Ok(()),
        (true, Kind::Tls) => connections(proxy, 1),
        (true, _) => connections(proxy, AT_ONCE + 2),
    };
    match kind {
        Kind::Password => {
            let registry = w.registry().beside(&Door::Password);
            let proxy = proxied(registry.host());
            let creds = format!("{}:{}", registry::USER, registry::PASSWORD);
            Stage::at(proxy.host(), &w.hello)
                .args(["--creds".to_owned(), creds])
                .watch(Rc::clone(&proxy))
                .keep(registry)
                .after(move || few(&proxy))
        }
        Kind::Tokens => {
            let signer = Authority::new();
            let server = TokenServer::start(&signer.identity(), Some((USER, PASSWORD)));
            let (realm, certificate) = (server.realm().to_owned(), signer.certificate());
            let registry = w.registry().beside(&Door::Tokens {
                realm: &realm,
                signer: &certificate,
            });
            let proxy = proxied(registry.host());
            Stage::at(proxy.host(), &w.hello)
                .creds()
                .watch(Rc::clone(&proxy))
                .watch(server)
                .keep((registry, signer))
                .after(move || few(&proxy))
        }
        Kind::Tls => {
            let identity = w
                .authority()
                .issue("proxied", &["IP:127.0.0.1"], Validity::Now);
            let registry = w.registry().beside(&Door::Tls {
                address: &free_443(),
                identity: &identity,
                clients: None,
            });
            let proxy = proxied(registry.host());
            let toml = format!(
                "server = \"https://{}\"\nca = \"{}\"\n",
                proxy.host(),
                w.authority().certificate().display()
            );
            let whole = w.whole();
            Stage::at(proxy.host(), &w.hello)
                .hosts(proxy.host(), toml)
                .watch(Sealed { registry })
                .after(move || {
                    few(&proxy)?;
                    // Handshakes and records cost something; a layer again would cost far more.
                    let (passed, connections) = (proxy.passed(), proxy.connections());
                    let limit = whole + whole / 50 + u64::from(connections) * 8192;
                    holds(
                        (whole..=limit).contains(&passed),
                        &format!(
                            "{passed} bytes in {connections} connections, at most {limit} may"
                        ),
                    )
                })
        }
    }
}

/// The requests of an untroubled pull.
const fn untroubled(kind: Kind) -> [usize; 4] {
    match kind {
        Kind::Password => [2, 1, 4, 0],
        Kind::Tokens => [2, 1, 4, 1],
        Kind::Tls => [1, 1, 4, 0],
    }
}

/// So many requests for blobs more than an untroubled pull has. A broken connection may also cost
/// one request by tag, one of the manifest and one token.
fn broken(
    name: &'static str,
    source: &'static str,
    kind: Kind,
    (fault, times): (Fault, Option<u32>),
    blobs: RangeInclusive<usize>,
) -> Row {
    let least = untroubled(kind);
    let spare = usize::from(*blobs.end() > 0);
    let mut asks = least.map(|n| n..=n + spare);
    asks[2] = least[2] + blobs.start()..=least[2] + blobs.end();
    row(name, source, move |w| stage(w, kind, &fault, times)).asks_within(asks)
}

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (kind, names) in [
        (
            Kind::Password,
            [
                "docker-registry with htpasswd, connections reset",
                "docker-registry with htpasswd, connections cut",
                "docker-registry with htpasswd, a connection stalls",
                "docker-registry with htpasswd, connections refused",
                "docker-registry with htpasswd, connections late",
            ],
        ),
        (
            Kind::Tokens,
            [
                "docker-registry with signed tokens, connections reset",
                "docker-registry with signed tokens, connections cut",
                "docker-registry with signed tokens, a connection stalls",
                "docker-registry with signed tokens, connections refused",
                "docker-registry with signed tokens, connections late",
            ],
        ),
        (
            Kind::Tls,
            [
                "docker-registry with TLS, connections reset",
                "docker-registry with TLS, connections cut",
                "docker-registry with TLS, a connection stalls",
                "docker-registry with TLS, connections refused",
                "docker-registry with TLS, connections late",
            ],
        ),
    ] {
        let [reset, cut, stall, refused, late] = names;
        let each = 150_000..400_000;
        let delay = Duration::from_millis(700);
        rows.extend([
            broken(
                reset,
                "faults: RST",
                kind,
                (Fault::Reset(each.clone()), None),
                1..=20,
            ),
            broken(
                cut,
                "faults: FIN in mid-body",
                kind,
                (Fault::Cut(each), None),
                1..=20,
            ),
            broken(
                stall,
                "faults: stall",
                kind,
                (Fault::Stall(300_000), Some(1)),
                1..=2,
            )
            .slow(),
            broken(
                refused,
                "faults: refused",
                kind,
                (Fault::Refuse, Some(2)),
                0..=0,
            ),
            broken(
                late,
                "faults: slow to connect",
                kind,
                (Fault::Delay(delay), None),
                0..=0,
            ),
        ]);
    }
    rows
}
