//! A minimal client, and (feature `tls-server`) the same client against a server in the same
//! process: handshakes and 16 MiB of each cipher suite, each side counted on its own.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

fn provider() -> CryptoProvider {
    #[cfg(feature = "tls-ring")]
    let provider = rustls::crypto::ring::default_provider();
    #[cfg(feature = "tls-aws")]
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    #[cfg(feature = "tls-rustcrypto")]
    let provider = rustls_rustcrypto::provider();
    provider
}

fn client(provider: CryptoProvider, root: &str) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let root = std::fs::read(root).expect("a root certificate");
    roots
        .add(CertificateDer::from(root))
        .expect("a root certificate");
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config)
}

fn connection(config: &Arc<ClientConfig>) -> ClientConnection {
    let name = ServerName::try_from("localhost").expect("a name");
    ClientConnection::new(Arc::clone(config), name).expect("a client")
}

/// ROOT ADDRESS: what a program that only fetches would link.
#[cfg(not(feature = "tls-server"))]
pub fn run(arguments: &[String]) {
    use std::io::{Read, Write};
    let config = client(provider(), &arguments[0]);
    let mut socket = std::net::TcpStream::connect(&arguments[1]).expect("a server");
    let mut connection = connection(&config);
    let mut stream = rustls::Stream::new(&mut connection, &mut socket);
    stream
        .write_all(b"GET / HTTP/1.0\r\n\r\n")
        .expect("a handshake");
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    println!("# {} bytes", answer.len());
}

/// DIRECTORY: `ec-` and `rsa-` with `root.der`, `leaf.der`, `key.der`.
#[cfg(feature = "tls-server")]
pub fn run(arguments: &[String]) {
    server::run(&arguments[0]);
}

#[cfg(feature = "tls-server")]
mod server {
    use std::io::{Read, Write};

    use rustls::pki_types::PrivateKeyDer;
    use rustls::{Connection, ServerConfig, ServerConnection, SupportedCipherSuite};

    use super::{Arc, CertificateDer, CryptoProvider, client, connection, provider};
    use crate::mark;

    const HANDSHAKES: usize = 4;
    const TOTAL: usize = 16 << 20;

    fn one_suite(suite: SupportedCipherSuite) -> CryptoProvider {
        CryptoProvider {
            cipher_suites: vec![suite],
            ..provider()
        }
    }

    fn server(directory: &str, kind: &str) -> Arc<ServerConfig> {
        let read = |name: &str| {
            std::fs::read(format!("{directory}/{kind}-{name}.der")).expect("certificate or key")
        };
        let key = PrivateKeyDer::try_from(read("key")).expect("a key");
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![CertificateDer::from(read("leaf"))], key)
            .expect("a certificate");
        // Tickets are no part of what a client's first connection costs.
        config.send_tls13_tickets = 0;
        Arc::new(config)
    }

    /// Moves what one side has to say to the other.
    fn pass(from: &mut Connection, to: &mut Connection, slots: (u32, u32)) -> bool {
        let mut wire = Vec::new();
        mark::slot(slots.0);
        while from.wants_write() {
            from.write_tls(&mut wire).expect("memory");
        }
        mark::slot(slots.1);
        let mut rest = &wire[..];
        while !rest.is_empty() {
            to.read_tls(&mut rest).expect("memory");
            to.process_new_packets().expect("what the other side said");
        }
        mark::slot(mark::OTHER);
        !wire.is_empty()
    }

    fn pair(
        client: &Arc<rustls::ClientConfig>,
        server: &Arc<ServerConfig>,
        slots: (u32, u32),
    ) -> (Connection, Connection) {
        mark::slot(slots.0);
        let mut near = Connection::Client(connection(client));
        mark::slot(slots.1);
        let server = ServerConnection::new(Arc::clone(server)).expect("a server");
        let mut far = Connection::Server(server);
        mark::slot(mark::OTHER);
        while pass(&mut near, &mut far, slots) | pass(&mut far, &mut near, (slots.1, slots.0)) {}
        assert!(!near.is_handshaking() && !far.is_handshaking());
        (near, far)
    }

    pub fn run(directory: &str) {
        let first = provider().cipher_suites[0];
        println!("# first suite {:?}", first.suite());
        for (number, kind) in [(1, "ec"), (3, "rsa")] {
            let near = client(provider(), &format!("{directory}/{kind}-root.der"));
            let far = server(directory, kind);
            // Once unmeasured: what is made once in a process is no part of a handshake.
            let (warm, _) = pair(&near, &far, (mark::OTHER, mark::OTHER));
            let group = warm
                .negotiated_key_exchange_group()
                .map(|group| group.name());
            println!("# {kind} {:?} {group:?}", warm.protocol_version());
            for _ in 0..HANDSHAKES {
                pair(&near, &far, (number, number + 1));
            }
            mark::report(number, &format!("handshake-{kind}-client"), HANDSHAKES);
            mark::report(number + 1, &format!("handshake-{kind}-server"), HANDSHAKES);
        }
        let names = ["AES_128_GCM", "AES_256_GCM", "CHACHA20_POLY1305"];
        for (suite, name) in (5..).step_by(2).zip(names) {
            bulk(directory, suite, name);
        }
    }

    /// 16 MiB from server to client.
    fn bulk(directory: &str, number: u32, name: &str) {
        let wanted = format!("TLS13_{name}_");
        let suites = provider().cipher_suites;
        let suite = suites
            .iter()
            .find(|suite| format!("{:?}", suite.suite()).starts_with(&wanted));
        let near = client(
            one_suite(*suite.expect("a suite")),
            &format!("{directory}/ec-root.der"),
        );
        let (mut near, mut far) = pair(&near, &server(directory, "ec"), (mark::OTHER, mark::OTHER));
        let piece = vec![7; 1 << 14];
        let mut wire = Vec::with_capacity(1 << 15);
        let mut buffer = vec![0; 1 << 16];
        let mut got = 0;
        while got < TOTAL {
            wire.clear();
            mark::slot(number);
            far.writer().write_all(&piece).expect("memory");
            while far.wants_write() {
                far.write_tls(&mut wire).expect("memory");
            }
            mark::slot(number + 1);
            let mut rest = &wire[..];
            while !rest.is_empty() {
                near.read_tls(&mut rest).expect("memory");
                near.process_new_packets().expect("records");
                while let Ok(read @ 1..) = near.reader().read(&mut buffer) {
                    got += read;
                }
            }
            mark::slot(mark::OTHER);
        }
        mark::report(number, &format!("seal-{name}"), TOTAL);
        mark::report(number + 1, &format!("open-{name}"), TOTAL);
    }
}
