//! The TLS configuration, built here so that provider, roots and versions are ours.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};

use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// A TLS client and what is wrong with its trust, if anything is.
pub(super) struct Tls {
    pub(super) config: ClientConfig,
    /// Reported only when https is used: a device that pulls over http in its own
    /// network needs no certificates.
    pub(super) problem: Option<Error>,
}

/// A client that trusts the host's certificate store (or `SSL_CERT_FILE`, `SSL_CERT_DIR`).
pub(super) fn system() -> Result<Tls> {
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
    Ok(Tls {
        config: with_roots(roots)?,
        problem,
    })
}

/// A client that trusts exactly `roots`.
pub(super) fn with_roots(roots: RootCertStore) -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Error::new(Kind::Internal, "cannot configure TLS").caused_by(&error))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    // reqwest leaves a given configuration alone, so the protocols are offered here.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_protocols_are_offered() {
        let config = with_roots(RootCertStore::empty()).expect("a configuration");
        assert_eq!(config.alpn_protocols.len(), 2);
    }
}
