//! Which servers answer for a registry, and how each is reached: containerd's tree of
//! `hosts.toml` files, and docker's folders of certificates.
//!
//! Read anew for each repository that is bound, as containerd does for each pull: a
//! changed file counts without a restart.

mod files;
mod parse;

use std::path::{Path, PathBuf};

use reqwest::Url;

pub(super) use self::parse::parse;
use self::parse::{Config, HostsFile};
use super::{
    endpoint::{API_ROOT, Capabilities, Endpoint, authority, is_loopback},
    notices::Notices,
    proxy::Ways,
};
use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// Docker Hub's name in references, and the host that serves it.
const HUB: &str = "docker.io";
const HUB_HOST: &str = "registry-1.docker.io";
const FILE: &str = "hosts.toml";

/// Where the configuration is, and what holds without one.
#[derive(Debug, Clone, Default)]
pub(super) struct Hosts {
    /// Trees, the first that knows the registry counts.
    pub(super) roots: Vec<PathBuf>,
    pub(super) plain_http: bool,
    /// Configured proxies.
    pub(super) ways: Ways,
}

impl Hosts {
    /// The servers for `domain`, in the order they are asked.
    pub(super) fn endpoints(&self, domain: &str, notices: &Notices) -> Result<Vec<Endpoint>> {
        let found = match self.folder(domain)? {
            Some(folder) => self.configured(domain, &folder, notices),
            None => Ok(vec![self.itself(domain, &Config::default(), None)?]),
        };
        let endpoints: Vec<Endpoint> = found
            .map_err(|error| error.registry(domain))?
            .into_iter()
            .map(|endpoint| {
                let via = self.ways.to(&endpoint.authority(), domain);
                endpoint.via(via)
            })
            .collect();
        for endpoint in &endpoints {
            let able = endpoint.capabilities();
            tracing::debug!(
                registry = domain,
                host = endpoint.shown(),
                resolve = able.resolve,
                pull = able.pull,
                mirror = endpoint.is_mirror(),
                "will be asked"
            );
        }
        Ok(endpoints)
    }

    /// The folder for a registry: the first that exists counts, whatever is in it.
    fn folder(&self, domain: &str) -> Result<Option<PathBuf>> {
        for root in &self.roots {
            for name in names(domain) {
                let folder = root.join(name);
                match folder.try_exists() {
                    Ok(true) => return Ok(Some(folder)),
                    Ok(false) => {}
                    Err(error) => {
                        return Err(Error::new(
                            Kind::Config,
                            format_args!("cannot look for `{}`", folder.display()),
                        )
                        .because(error)
                        .hint("it may say how the registry is reached; make it readable, or name another tree with --hosts-dir")
                        .registry(domain));
                    }
                }
            }
        }
        Ok(None)
    }

    fn configured(&self, domain: &str, folder: &Path, notices: &Notices) -> Result<Vec<Endpoint>> {
        let path = folder.join(FILE);
        let Some(bytes) = files::read(&path)?.filter(|bytes| !bytes.is_empty()) else {
            let tls = files::by_name(folder)?;
            let itself = self.itself(domain, &Config::default(), tls)?;
            return Ok(vec![itself]);
        };
        let text = String::from_utf8(bytes).map_err(|error| {
            let good = error.utf8_error().valid_up_to();
            broken(&path, &format!("byte {good} is no UTF-8"))
        })?;
        let file = parse(&text).map_err(|fault| {
            let at = fault
                .key
                .map_or_else(String::new, |key| format!(", key `{key}`"));
            broken(&path, &format!("line {}{at}: {}", fault.line, fault.what))
        })?;
        for ignored in &file.ignored {
            notices.say(format!(
                "`{}`, {ignored}; it does not count",
                path.display()
            ));
        }
        self.assemble(domain, file, &path)
    }

    fn assemble(&self, domain: &str, file: HostsFile, path: &Path) -> Result<Vec<Endpoint>> {
        let mut endpoints = Vec::new();
        for (address, config) in file.hosts {
            let able = config.capabilities.unwrap_or(Capabilities::ALL);
            let tls = files::tls(&config, path)?;
            endpoints.push(
                placed(domain, Endpoint::at(address.base, address.prefix, able)).with_route(
                    config.headers,
                    tls,
                    config.dial_timeout,
                ),
            );
        }
        let tls = files::tls(&file.own, path)?;
        let last = match file.server {
            Some(address) => {
                let able = file.own.capabilities.unwrap_or(Capabilities::ALL);
                placed(domain, Endpoint::at(address.base, address.prefix, able)).with_route(
                    file.own.headers,
                    tls,
                    file.own.dial_timeout,
                )
            }
            // containerd's rule: unnamed, it may do everything.
            None => self.itself(domain, &file.own, tls)?,
        };
        let listed = endpoints.iter().any(|endpoint: &Endpoint| {
            endpoint.is_at(&last) && endpoint.capabilities().include(last.capabilities())
        });
        if !listed {
            endpoints.push(last);
        }
        endpoints
            .retain(|endpoint| endpoint.capabilities().resolve || endpoint.capabilities().pull);
        Ok(endpoints)
    }

    /// The registry itself.
    fn itself(
        &self,
        domain: &str,
        config: &Config,
        tls: Option<std::sync::Arc<super::tls::HostTls>>,
    ) -> Result<Endpoint> {
        let authority = own_authority(domain);
        // containerd's rule: a loopback host with a port that is not 443 speaks http,
        // unless somebody configured TLS for it.
        let local = tls.is_none()
            && Url::parse(&format!("https://{authority}/"))
                .is_ok_and(|url| is_loopback(&url) && url.port().is_some());
        let scheme = if self.plain_http || local {
            "http"
        } else {
            "https"
        };
        let endpoint = Endpoint::registry(scheme, authority)?;
        Ok(endpoint.with_route(config.headers.clone(), tls, config.dial_timeout))
    }
}

/// The names of a registry's folder, as containerd looks for them.
fn names(domain: &str) -> Vec<String> {
    let mut names = Vec::with_capacity(3);
    if let Some((host, port)) = domain.rsplit_once(':') {
        names.push(format!("{host}_{port}_"));
    }
    names.push(domain.to_owned());
    names.push("_default".to_owned());
    names
}

fn own_authority(domain: &str) -> &str {
    if domain == HUB { HUB_HOST } else { domain }
}

/// Tells a mirror from the registry itself; a port that the scheme implies is the same
/// written or not.
fn placed(domain: &str, endpoint: Endpoint) -> Endpoint {
    let scheme = if endpoint.is_plain_http() {
        "http"
    } else {
        "https"
    };
    let own = Url::parse(&format!("{scheme}://{}{API_ROOT}", own_authority(domain)));
    if own.is_ok_and(|own| authority(&own) == endpoint.authority()) {
        endpoint
    } else {
        endpoint.mirroring(domain)
    }
}

fn broken(path: &Path, why: &str) -> Error {
    Error::new(
        Kind::Config,
        format_args!("cannot read `{}`", path.display()),
    )
    .because(why)
    .hint("correct the file; containerd itself only logs such a fault and then goes past the mirrors that it lists")
}

#[cfg(test)]
mod tests;
