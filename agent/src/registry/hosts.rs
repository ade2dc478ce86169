//! Which servers answer for a registry. Today exactly one: the registry itself.

use reqwest::Url;

use super::endpoint::{Endpoint, is_loopback};
use crate::error::Result;

/// Docker Hub's name in references, and the host that serves it.
const HUB: &str = "docker.io";
const HUB_HOST: &str = "registry-1.docker.io";

/// The servers for `domain`, in the order they are asked.
pub(super) fn endpoints(domain: &str, plain_http: bool) -> Result<Vec<Endpoint>> {
    let authority = if domain == HUB { HUB_HOST } else { domain };
    // containerd's rule: a loopback host with a port that is not 443 speaks http.
    let local = Url::parse(&format!("https://{authority}/"))
        .is_ok_and(|url| is_loopback(&url) && url.port().is_some());
    let scheme = if plain_http || local { "http" } else { "https" };
    Ok(vec![Endpoint::registry(scheme, authority)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_and_hosts_follow_containerd() {
        for (domain, plain, origin) in [
            ("docker.io", false, "https://registry-1.docker.io"),
            ("ghcr.io", false, "https://ghcr.io"),
            ("ghcr.io", true, "http://ghcr.io"),
            ("localhost:5000", false, "http://localhost:5000"),
            ("127.0.0.1:80", false, "http://127.0.0.1"),
            ("localhost:443", false, "https://localhost"),
            ("localhost", false, "https://localhost"),
            ("[::1]:5000", false, "http://[::1]:5000"),
            ("10.0.0.1:5000", false, "https://10.0.0.1:5000"),
        ] {
            let found = endpoints(domain, plain).expect("a host");
            assert_eq!(
                found.iter().map(Endpoint::origin).collect::<Vec<_>>(),
                [origin],
                "{domain}"
            );
        }
    }
}
