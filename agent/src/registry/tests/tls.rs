//! TLS for real: certificates that are trusted, unknown, past and not yet valid.

use std::{
    io::{Read, Write},
    net::TcpListener,
    sync::Arc,
};

use rustls::{
    RootCertStore, ServerConfig, ServerConnection, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

use super::{
    super::{
        endpoint::Endpoint,
        tls::{HostTls, Trust},
    },
    *,
};
use crate::{error::Result, kind::Kind, oci::Document};

/// One throw-away key signed all of them; nothing else trusts it.
const KEY: &[u8] = include_bytes!("../testdata/key.pem");
/// 2020 to 9999.
const GOOD: &[u8] = include_bytes!("../testdata/good.pem");
/// 2020 to 2021.
const EXPIRED: &[u8] = include_bytes!("../testdata/expired.pem");
/// 2200 to 2300.
const FUTURE: &[u8] = include_bytes!("../testdata/future.pem");
/// An authority that signed none of them.
const OTHER: &[u8] = include_bytes!("../testdata/other.pem");

/// Signed by itself and marked as a CA, as `openssl req -x509` does; for 127.0.0.1 alone.
const SELF_CA: &[u8] = include_bytes!("../testdata/self-ca.pem");
/// The same, past.
const SELF_CA_PAST: &[u8] = include_bytes!("../testdata/self-ca-past.pem");

fn certificate(pem: &[u8]) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem).expect("a certificate")
}

/// A server that answers connections with the manifest; it ends with the process.
fn serve(host: &str, pem: &[u8]) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = PrivateKeyDer::from_pem_slice(KEY).expect("a key");
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate(pem)], key)
        .expect("a server");
    let config = Arc::new(config);
    let listener = TcpListener::bind((host, 0)).expect("a port");
    let port = listener.local_addr().expect("bound").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let connection = ServerConnection::new(config.clone()).expect("a connection");
            let mut tls = StreamOwned::new(connection, stream);
            let mut head = Vec::new();
            let mut byte = [0];
            while !head.ends_with(b"\r\n\r\n") && matches!(tls.read(&mut byte), Ok(1)) {
                head.extend(byte);
            }
            let reply = format!(
                "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{MANIFEST}",
                MANIFEST.len()
            );
            let _ = tls.write_all(reply.as_bytes());
            tls.conn.send_close_notify();
            let _ = tls.flush();
        }
    });
    port
}

/// Fetches from `host` over https, where the server has `pem`, trusting `trusted`.
async fn get(host: &str, pem: &[u8], trusted: &[u8]) -> Result<Document> {
    let authority = format!("{host}:{}", serve(host, pem));
    let mut roots = RootCertStore::empty();
    roots.add(certificate(trusted)).expect("a root");
    let trust = Trust {
        roots: Arc::new(roots),
        problem: None,
    };
    let client = Client::trusting(quick(), trust);
    let reference = Reference::parse(&format!("{authority}/lib/app:1")).expect("valid");
    let endpoint = Endpoint::registry("https", &authority)?;
    Repo::new(client, reference, Ok(vec![endpoint])).get().await
}

#[tokio::test]
async fn a_trusted_certificate_opens_by_name_and_by_address() {
    get("localhost", GOOD, GOOD).await.expect("fetched");
    get("127.0.0.1", GOOD, GOOD).await.expect("fetched");
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_told() {
    for (host, pem, trusted, cause, retryable) in [
        (
            "localhost",
            EXPIRED,
            EXPIRED,
            "expired at 2021-01-01T00:00:00Z",
            true,
        ),
        (
            "localhost",
            FUTURE,
            FUTURE,
            "valid from 2200-01-01T00:00:00Z",
            true,
        ),
        ("127.0.0.2", GOOD, GOOD, "is for another name", false),
        ("localhost", GOOD, OTHER, "signed by an authority", false),
    ] {
        let error = get(host, pem, trusted).await.expect_err(cause);
        assert_eq!(error.kind(), Kind::Unavailable, "{cause}");
        assert!(error.causes().concat().contains(cause), "{error:?}");
        assert_eq!(error.is_retryable(), retryable, "{cause}");
        assert_eq!(error.is_of_clock(), pem == FUTURE, "{cause}");
        assert!(error.hint_text().is_some(), "{cause}");
    }
}

/// Fetches from `host` with what `hosts.toml` says of it, trusting nobody else.
async fn configured(host: &str, pem: &[u8], settings: HostTls) -> Result<Document> {
    let authority = format!("{host}:{}", serve(host, pem));
    let trust = Trust {
        roots: Arc::new(RootCertStore::empty()),
        problem: Some(crate::error::Error::new(Kind::Config, "no roots")),
    };
    let client = Client::trusting(quick(), trust);
    let reference = Reference::parse(&format!("{authority}/lib/app:1")).expect("valid");
    let endpoint = Endpoint::registry("https", &authority)?.with_route(
        reqwest::header::HeaderMap::new(),
        Some(Arc::new(settings)),
        None,
    );
    Repo::new(client, reference, Ok(vec![endpoint])).get().await
}

fn ca(pem: &[u8]) -> HostTls {
    HostTls {
        ca: vec![certificate(pem)],
        ..HostTls::default()
    }
}

fn unchecked() -> HostTls {
    HostTls {
        skip_verify: true,
        ..HostTls::default()
    }
}

#[tokio::test]
async fn a_hosts_own_authority_needs_no_system_store() {
    configured("localhost", GOOD, ca(GOOD))
        .await
        .expect("fetched");
    configured("127.0.0.1", SELF_CA, ca(SELF_CA))
        .await
        .expect("fetched");
    configured("127.0.0.2", EXPIRED, unchecked())
        .await
        .expect("fetched");
    for (host, pem, trusted, cause) in [
        ("localhost", GOOD, OTHER, "signed by an authority"),
        ("localhost", EXPIRED, EXPIRED, "expired at"),
        ("127.0.0.1", SELF_CA_PAST, SELF_CA_PAST, "expired at"),
        ("127.0.0.2", SELF_CA, SELF_CA, "is for another name"),
        ("127.0.0.1", SELF_CA, OTHER, "signed by itself"),
    ] {
        let error = configured(host, pem, ca(trusted)).await.expect_err(cause);
        assert_eq!(error.kind(), Kind::Unavailable, "{cause}");
        assert!(
            error.causes().concat().contains(cause),
            "{cause}: {error:?}"
        );
    }
    let error = configured("localhost", GOOD, HostTls::default()).await;
    assert_eq!(error.expect_err("no roots").kind(), Kind::Config);
}
