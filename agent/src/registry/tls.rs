//! The TLS configuration, built here so that provider, roots and versions are ours.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        ResolvesClientCert, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime},
    server::ParsedCertificate,
    sign::CertifiedKey,
};

use super::aes;
use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// The authorities that this host trusts, and what is wrong with that, if anything is.
#[derive(Clone)]
pub(super) struct Trust {
    pub(super) roots: Arc<RootCertStore>,
    /// Reported only when https is used: a device that pulls over http in its own
    /// network needs no certificates.
    pub(super) problem: Option<Error>,
}

/// The host's certificate store (or `SSL_CERT_FILE`, `SSL_CERT_DIR`).
pub(super) fn system() -> Trust {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(found.certs);
    let problem = (added == 0).then(|| {
        let mut error = Error::new(
            Kind::Config,
            "no trusted CA certificates on this host, so https cannot be used",
        )
        .hint("install the package ca-certificates, or point SSL_CERT_FILE to a PEM bundle");
        for cause in found.errors.iter().take(3) {
            error = error.because(cause);
        }
        error
    });
    Trust {
        roots: Arc::new(roots),
        problem,
    }
}

/// What is particular to one server.
#[derive(Default, PartialEq, Eq)]
pub(super) struct HostTls {
    /// Trusted besides the system's.
    pub(super) ca: Vec<CertificateDer<'static>>,
    /// Who we are, if the server asks.
    pub(super) clients: Vec<ClientPair>,
    /// Whatever certificate it has.
    pub(super) skip_verify: bool,
}

/// A certificate, with those above it, and its key.
#[derive(PartialEq, Eq)]
pub(super) struct ClientPair {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl fmt::Debug for HostTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostTls")
            .field("ca", &self.ca.len())
            .field("clients", &self.clients.len())
            .field("skip_verify", &self.skip_verify)
            .finish()
    }
}

impl HostTls {
    /// The part that also holds for the servers this one sends us to: its token server
    /// and its storage are often signed by the same private CA. Whoever has that CA's
    /// key could answer for the server itself, so nothing is given away.
    pub(super) fn trust_only(&self) -> Self {
        Self {
            ca: self.ca.clone(),
            clients: Vec::new(),
            skip_verify: false,
        }
    }

    pub(super) fn is_trust_only(&self) -> bool {
        self.clients.is_empty() && !self.skip_verify
    }

    /// Whether it needs none of the system's authorities.
    pub(super) fn stands_alone(&self) -> bool {
        self.skip_verify || !self.ca.is_empty()
    }
}

/// A certificate that may be added to those that are trusted.
pub(super) fn check_ca(certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
    RootCertStore::empty().add(certificate.clone().into_owned())
}

/// A key that can be used, and belongs to its certificate.
pub(super) fn check_pair(pair: &ClientPair) -> Result<(), rustls::Error> {
    certified(pair, &provider()).map(drop)
}

/// Whether a certificate failed because nobody who is trusted here signed it.
pub(super) fn is_untrusted(error: &rustls::Error) -> bool {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => true,
        rustls::Error::InvalidCertificate(CertificateError::Other(why)) => is_ca_itself(why),
        _ => false,
    }
}

/// The library has no name for it.
fn is_ca_itself(why: &rustls::OtherError) -> bool {
    why.to_string() == "CaUsedAsEndEntity"
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(offering(aes::is_cheap()))
}

/// All cipher suites, those first that cost these cores least.
fn offering(aes: bool) -> CryptoProvider {
    let mut provider = rustls::crypto::ring::default_provider();
    if !aes {
        // Stable: among its likes each keeps its place, TLS 1.3 before 1.2.
        provider.cipher_suites.sort_by_key(|suite| {
            let name = suite.suite().as_str().unwrap_or_default();
            let old = suite.version().version != rustls::ProtocolVersion::TLSv1_3;
            (old, !name.contains("CHACHA20"))
        });
    }
    provider
}

fn certified(pair: &ClientPair, provider: &CryptoProvider) -> Result<CertifiedKey, rustls::Error> {
    CertifiedKey::from_der(pair.chain.clone(), pair.key.clone_key(), provider)
}

/// A client that trusts `roots`, and for one server what is particular to it.
pub(super) fn client(roots: &Arc<RootCertStore>, host: Option<&HostTls>) -> Result<ClientConfig> {
    let failed =
        |error: &rustls::Error| Error::new(Kind::Internal, "cannot configure TLS").caused_by(error);
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| failed(&error))?;
    let builder = match host {
        Some(host) if host.skip_verify => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider.clone()))),
        Some(host) if !host.ca.is_empty() => {
            let mut all = RootCertStore::clone(roots);
            all.add_parsable_certificates(host.ca.iter().cloned());
            let inner =
                WebPkiServerVerifier::builder_with_provider(Arc::new(all), provider.clone())
                    .build()
                    .map_err(|error| {
                        Error::new(Kind::Internal, "cannot configure TLS").caused_by(&error)
                    })?;
            builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(OrItself {
                    inner,
                    known: host.ca.clone(),
                }))
        }
        _ => builder.with_root_certificates(roots.clone()),
    };
    let mut config = match host.map(|host| host.clients.as_slice()) {
        None | Some([]) => builder.with_no_client_auth(),
        Some(pairs) => {
            let keys: Result<Vec<_>, _> = pairs
                .iter()
                .map(|pair| certified(pair, &provider).map(Arc::new))
                .collect();
            let keys = keys.map_err(|error| failed(&error))?;
            builder.with_client_cert_resolver(Arc::new(ClientKeys(keys)))
        }
    };
    // reqwest leaves a given configuration alone, so the protocols are offered here.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// A self-signed certificate that was made the CA as it is. `openssl req -x509` marks it
/// as a CA, and such a one is refused as a server's; Go's library, and so containerd,
/// takes it.
#[derive(Debug)]
struct OrItself {
    inner: Arc<WebPkiServerVerifier>,
    known: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for OrItself {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = self.inner.verify_server_cert(
            end_entity,
            intermediates,
            server_name,
            ocsp_response,
            now,
        );
        match verdict {
            // Found after the dates were looked at, and before the name is.
            Err(rustls::Error::InvalidCertificate(CertificateError::Other(why)))
                if is_ca_itself(&why) && self.known.contains(end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner
            .verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// `skip_verify`: only ever given to the client of the one server that it is set for.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    // A certificate that nobody looks at proves nothing by its signature.
    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Several client certificates, of which the server says whose it takes.
#[derive(Debug)]
struct ClientKeys(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for ClientKeys {
    fn resolve(
        &self,
        root_hint_subjects: &[&[u8]],
        sigschemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        let usable = |key: &&Arc<CertifiedKey>| key.key.choose_scheme(sigschemes).is_some();
        // An issuer's name stands in a certificate as it stands in the hint.
        let hinted = |key: &&Arc<CertifiedKey>| {
            root_hint_subjects.iter().any(|hint| {
                !hint.is_empty()
                    && key
                        .cert
                        .iter()
                        .any(|part| part.windows(hint.len()).any(|window| window == *hint))
            })
        };
        self.0
            .iter()
            .filter(usable)
            .find(hinted)
            .or_else(|| self.0.iter().find(usable))
            .cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::pem::PemObject;

    use super::*;

    #[test]
    fn cores_without_aes_ask_for_what_they_are_good_at() {
        let names = |aes| -> Vec<&str> {
            let suites = offering(aes).cipher_suites;
            suites.iter().filter_map(|s| s.suite().as_str()).collect()
        };
        let (with, without) = (names(true), names(false));
        assert_eq!(without[0], "TLS13_CHACHA20_POLY1305_SHA256");
        assert!(
            without[1..3]
                .iter()
                .all(|name| name.starts_with("TLS13_AES"))
        );
        assert!(without[3].contains("CHACHA20"), "{without:?}");
        assert!(with[0].contains("AES"), "{with:?}");
        // Nothing less is offered, and nothing more.
        let sorted = |mut names: Vec<&'static str>| {
            names.sort_unstable();
            names
        };
        assert_eq!(sorted(with), sorted(without));
    }

    #[test]
    fn of_several_client_certificates_the_servers_hint_chooses() {
        let pem = |bytes: &[u8]| CertificateDer::from_pem_slice(bytes).expect("a certificate");
        let key = PrivateKeyDer::from_pem_slice(include_bytes!("testdata/key.pem")).expect("a key");
        let signing = provider()
            .key_provider
            .load_private_key(key)
            .expect("usable");
        let (a, b) = (
            pem(include_bytes!("testdata/good.pem")),
            pem(include_bytes!("testdata/other.pem")),
        );
        let hint = b
            .windows(24)
            .find(|part| !a.windows(24).any(|other| other == *part))
            .expect("they differ")
            .to_vec();
        let keys = ClientKeys(
            [&a, &b]
                .map(|certificate| {
                    Arc::new(CertifiedKey::new(
                        vec![certificate.clone()],
                        signing.clone(),
                    ))
                })
                .into(),
        );
        let all = provider()
            .signature_verification_algorithms
            .supported_schemes();
        let chosen = |hints: &[&[u8]]| keys.resolve(hints, &all).expect("one").cert[0].clone();
        assert_eq!(chosen(&[]), a);
        assert_eq!(chosen(&[&hint]), b);
        assert_eq!(chosen(&[b"nobody's name", &[]]), a);
        assert!(keys.resolve(&[], &[]).is_none());
    }

    #[test]
    fn both_protocols_are_offered() {
        let config = client(&Arc::new(RootCertStore::empty()), None).expect("a configuration");
        assert_eq!(config.alpn_protocols.len(), 2);
    }
}
