//! The files beside a `hosts.toml`: certificates and keys.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use super::parse::Config;
use crate::{
    error::{Error, Result},
    kind::Kind,
    registry::tls::{self, ClientPair, HostTls},
};

/// The largest CA bundles are a quarter of it.
const MAX_FILE: u64 = 1 << 20;

/// The whole file; `None` if there is none.
pub(super) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let unreadable = |error: &dyn std::fmt::Display| {
        Error::new(
            Kind::Config,
            format_args!("cannot read `{}`", path.display()),
        )
        .because(error)
        .hint(
            "it says how a registry is reached; correct it, or name another tree with --hosts-dir",
        )
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(&error)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(unreadable(&format_args!("larger than {MAX_FILE} bytes")));
    }
    Ok(Some(bytes))
}

/// A file that is named somewhere, and must be there.
fn named(path: &Path, of: &Path) -> Result<Vec<u8>> {
    read(path)
        .and_then(|bytes| {
            bytes.ok_or_else(|| {
                Error::new(
                    Kind::Config,
                    format_args!("`{}` does not exist", path.display()),
                )
            })
        })
        .map_err(|error| error.because(format_args!("`{}` names it", of.display())))
}

/// What `config` says about TLS, with its files read; `None` if it says nothing. Names
/// are relative to the folder of the file `of`.
pub(super) fn tls(config: &Config, of: &Path) -> Result<Option<Arc<HostTls>>> {
    let folder = of.parent().unwrap_or(Path::new("."));
    let at = |name: &str| folder.join(name);
    let mut tls = HostTls {
        skip_verify: config.skip_verify,
        ..HostTls::default()
    };
    for name in &config.ca {
        add_ca(&mut tls, &at(name), of)?;
    }
    for (certificate, key) in &config.client {
        let key = key.as_deref().unwrap_or(certificate);
        add_client(&mut tls, &at(certificate), &at(key), of)?;
    }
    Ok((tls != HostTls::default()).then(|| Arc::new(tls)))
}

/// Docker's way, without a `hosts.toml`: `*.crt` are CAs, `*.cert` and the `*.key` of
/// that name are who we are.
pub(super) fn by_name(folder: &Path) -> Result<Option<Arc<HostTls>>> {
    let entries = std::fs::read_dir(folder).map_err(|error| {
        Error::new(
            Kind::Config,
            format_args!("cannot read the folder `{}`", folder.display()),
        )
        .because(error)
    })?;
    let mut names: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| !path.is_dir())
        .collect();
    names.sort();
    let mut tls = HostTls::default();
    for path in &names {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => add_ca(&mut tls, path, folder)?,
            Some("cert") => {
                let key = path.with_extension("key");
                let key = if key.exists() { &key } else { path };
                add_client(&mut tls, path, key, folder)?;
            }
            _ => {}
        }
    }
    Ok((tls != HostTls::default()).then(|| Arc::new(tls)))
}

fn add_ca(tls: &mut HostTls, path: &Path, of: &Path) -> Result<()> {
    let unusable = |why: &dyn std::fmt::Display| {
        Error::new(
            Kind::Config,
            format_args!("`{}` cannot be used as a CA", path.display()),
        )
        .because(why)
        .hint("a PEM file with at least one CA certificate is wanted")
    };
    let bytes = named(path, of)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let found = found.map_err(|error| unusable(&error))?;
    if found.is_empty() {
        return Err(unusable(&"there is no certificate in it"));
    }
    let mut last = None;
    let before = tls.ca.len();
    for certificate in found {
        match tls::check_ca(&certificate) {
            Ok(()) => tls.ca.push(certificate),
            // Bundles hold a few of odd forms; one that can be used is enough.
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) if tls.ca.len() == before => Err(unusable(&error)),
        _ => Ok(()),
    }
}

fn add_client(tls: &mut HostTls, certificate: &Path, key: &Path, of: &Path) -> Result<()> {
    let unusable = |path: &Path, why: &dyn std::fmt::Display| {
        Error::new(
            Kind::Config,
            format_args!(
                "`{}` cannot be used as a client certificate",
                path.display()
            ),
        )
        .because(why)
        .hint("PEM files are wanted: the certificate, and its key without a password")
    };
    let bytes = named(certificate, of)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let chain = chain.map_err(|error| unusable(certificate, &error))?;
    if chain.is_empty() {
        return Err(unusable(certificate, &"there is no certificate in it"));
    }
    let key_bytes = if key == certificate {
        bytes
    } else {
        named(key, of)?
    };
    // The parser's own words may quote the key.
    let parsed = PrivateKeyDer::from_pem_slice(&key_bytes)
        .map_err(|_| unusable(key, &"there is no private key in it that can be read"))?;
    let pair = ClientPair { chain, key: parsed };
    tls::check_pair(&pair).map_err(|error| unusable(key, &error))?;
    tls.clients.push(pair);
    Ok(())
}
