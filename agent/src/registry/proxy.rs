//! Which proxy a request takes: the rules of `http_proxy`, `https_proxy`, `all_proxy`
//! and `no_proxy` as Go's library, and so containerd, reads them. The HTTP library's own
//! reading knows no ports, and no `*` for addresses.

use std::{collections::BTreeMap, fmt, net::IpAddr};

use reqwest::Url;

/// The proxies of an environment. Their addresses may hold passwords.
#[derive(Clone, Default)]
pub(super) struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    not_for: Vec<Rule>,
}

/// The way to one registry, where it is configured. The address may hold a password.
#[derive(Clone, PartialEq, Eq)]
pub enum Via {
    /// Through no proxy, whatever the environment says.
    Direct,
    /// Through this one.
    Proxy(Url),
}

impl fmt::Debug for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("Direct"),
            Self::Proxy(url) => write!(f, "Proxy({})", super::endpoint::authority(url)),
        }
    }
}

impl Via {
    /// `direct`, or the address of an HTTP proxy with or without scheme; `None` if the
    /// text is neither.
    pub fn parse(text: &str) -> Option<Self> {
        if text.trim().eq_ignore_ascii_case("direct") {
            return Some(Self::Direct);
        }
        parse(text).map(Self::Proxy)
    }

    pub(super) fn url(&self) -> Option<&Url> {
        match self {
            Self::Direct => None,
            Self::Proxy(url) => Some(url),
        }
    }
}

/// The configured ways, by the registry's name in references or by a server's own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ways {
    /// To whatever has none of its own; `None`: as the environment says.
    pub default: Option<Via>,
    /// In lower case, with the port if it has one.
    pub by_host: BTreeMap<String, Via>,
}

impl Ways {
    /// The way to a server (`host` or `host:port`) that is asked for `registry`. The
    /// server's own name counts first, so that a mirror can be near and its registry far.
    pub(super) fn to(&self, server: &str, registry: &str) -> Option<&Via> {
        [server, registry]
            .iter()
            .find_map(|name| self.by_host.get(&name.to_ascii_lowercase()))
            .or(self.default.as_ref())
    }
}

/// One entry of `no_proxy`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Rule {
    All,
    Address(IpAddr, Option<u16>),
    Network(IpAddr, u32),
    /// The name in lower case; whether the name itself counts, or only those below it.
    Name {
        name: String,
        itself: bool,
        port: Option<u16>,
    },
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = |url: &Option<Url>| url.as_ref().map(super::endpoint::authority);
        f.debug_struct("Proxies")
            .field("http", &shown(&self.http))
            .field("https", &shown(&self.https))
            .field("not_for", &self.not_for)
            .finish()
    }
}

impl Proxies {
    pub(super) fn of_process() -> Self {
        Self::of_environment(|name| std::env::var(name).ok())
    }

    /// The capitals first, as Go does; `HTTP_PROXY` is not read in a CGI script, where
    /// a request could set it.
    fn of_environment(get: impl Fn(&str) -> Option<String>) -> Self {
        let first = |names: &[&str]| {
            names
                .iter()
                .find_map(|name| get(name).filter(|value| !value.trim().is_empty()))
        };
        let proxy = |names: &[&str]| {
            let text = first(names)?;
            let parsed = parse(&text);
            if parsed.is_none() {
                tracing::warn!(
                    variable = names.first(),
                    "no address of a proxy; it does not count"
                );
            }
            parsed
        };
        let all = proxy(&["ALL_PROXY", "all_proxy"]);
        let http: &[&str] = if get("REQUEST_METHOD").is_some() {
            &["http_proxy"]
        } else {
            &["HTTP_PROXY", "http_proxy"]
        };
        Self {
            http: proxy(http).or_else(|| all.clone()),
            https: proxy(&["HTTPS_PROXY", "https_proxy"]).or(all),
            not_for: first(&["NO_PROXY", "no_proxy"])
                .map(|list| list.split(',').filter_map(rule).collect())
                .unwrap_or_default(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.http.is_none() && self.https.is_none()
    }

    /// The proxy on the way to `url`. This machine itself is never behind one.
    pub(super) fn of(&self, url: &Url) -> Option<&Url> {
        let proxy = match url.scheme() {
            "http" => self.http.as_ref(),
            "https" => self.https.as_ref(),
            _ => None,
        }?;
        (!super::endpoint::is_loopback(url) && !self.excepted(url)).then_some(proxy)
    }

    fn excepted(&self, url: &Url) -> bool {
        let host = url.host_str().unwrap_or_default().to_ascii_lowercase();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let port = url.port_or_known_default();
        let at = |wanted: Option<u16>| wanted.is_none() || wanted == port;
        let address = bare.parse::<IpAddr>().ok();
        self.not_for.iter().any(|rule| match rule {
            Rule::All => true,
            Rule::Address(ip, wanted) => address == Some(*ip) && at(*wanted),
            Rule::Network(net, bits) => address.is_some_and(|ip| within(ip, *net, *bits)),
            Rule::Name { name, itself, port } => {
                let below = host
                    .strip_suffix(name.as_str())
                    .is_some_and(|start| start.ends_with('.'));
                address.is_none() && (below || (*itself && host == *name)) && at(*port)
            }
        })
    }
}

/// An address with or without scheme. Only proxies that speak HTTP.
fn parse(text: &str) -> Option<Url> {
    let text = text.trim();
    let with_scheme = if text.contains("://") {
        text.to_owned()
    } else {
        format!("http://{text}")
    };
    Url::parse(&with_scheme)
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

fn rule(text: &str) -> Option<Rule> {
    let text = text.trim().to_ascii_lowercase();
    if text == "*" {
        return Some(Rule::All);
    }
    if let Some((net, bits)) = text.split_once('/') {
        let (net, bits) = (net.parse::<IpAddr>().ok()?, bits.parse::<u32>().ok()?);
        let most = if net.is_ipv4() { 32 } else { 128 };
        return (bits <= most).then_some(Rule::Network(net, bits));
    }
    if let Ok(ip) = text.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Some(Rule::Address(ip, None));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) => (host, Some(port.parse::<u16>().ok()?)),
        None => (text.as_str(), None),
    };
    if let Ok(ip) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Some(Rule::Address(ip, port));
    }
    let host = host
        .strip_prefix('*')
        .filter(|rest| rest.starts_with('.'))
        .unwrap_or(host);
    let (name, itself) = match host.strip_prefix('.') {
        Some(name) => (name, false),
        None => (host, true),
    };
    (!name.is_empty()).then(|| Rule::Name {
        name: name.to_owned(),
        itself,
        port,
    })
}

fn within(ip: IpAddr, net: IpAddr, bits: u32) -> bool {
    match (ip, net) {
        (IpAddr::V4(ip), IpAddr::V4(net)) => {
            let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
            u32::from(ip) & mask == u32::from(net) & mask
        }
        (IpAddr::V6(ip), IpAddr::V6(net)) => {
            let mask = u128::MAX.checked_shl(128 - bits).unwrap_or(0);
            u128::from(ip) & mask == u128::from(net) & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxies(pairs: &[(&str, &str)]) -> Proxies {
        Proxies::of_environment(|name| {
            pairs
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    fn of(proxies: &Proxies, url: &str) -> Option<String> {
        let url = Url::parse(url).expect("a URL");
        proxies.of(&url).map(super::super::endpoint::authority)
    }

    #[test]
    fn a_servers_own_way_counts_before_its_registrys() {
        let near = Via::parse("http://me:pw@near:3128").expect("a proxy");
        let far = Via::parse("far:3128").expect("a proxy");
        let ways = Ways {
            default: Some(far.clone()),
            by_host: [
                ("mirror.example:5000".to_owned(), Via::Direct),
                ("docker.io".to_owned(), near.clone()),
            ]
            .into(),
        };
        assert_eq!(
            ways.to("Mirror.example:5000", "docker.io"),
            Some(&Via::Direct)
        );
        assert_eq!(ways.to("registry-1.docker.io", "docker.io"), Some(&near));
        assert_eq!(ways.to("ghcr.io", "ghcr.io"), Some(&far));
        assert_eq!(Ways::default().to("ghcr.io", "ghcr.io"), None);
        assert!(!format!("{ways:?}").contains("pw"), "{ways:?}");
        assert_eq!(Via::parse("socks5://a"), None);
        assert_eq!(Via::parse(""), None);
    }

    #[test]
    fn each_scheme_has_its_own() {
        let some = proxies(&[
            ("HTTP_PROXY", "plain.example:3128"),
            ("https_proxy", "http://me:hunter2@secure.example:8080"),
        ]);
        assert_eq!(
            of(&some, "http://r.example/").as_deref(),
            Some("plain.example:3128")
        );
        assert_eq!(
            of(&some, "https://r.example/").as_deref(),
            Some("secure.example:8080")
        );
        assert_eq!(of(&some, "https://localhost:5000/"), None);
        assert_eq!(of(&some, "http://127.0.0.1:5000/"), None);
        assert!(!format!("{some:?}").contains("hunter2"));
        let all = proxies(&[("all_proxy", "a.example"), ("HTTPS_PROXY", " ")]);
        assert_eq!(of(&all, "https://r.example/").as_deref(), Some("a.example"));
        let cgi = proxies(&[("HTTP_PROXY", "evil.example"), ("REQUEST_METHOD", "GET")]);
        assert!(cgi.is_empty());
        assert!(proxies(&[("https_proxy", "socks5://x:1"), ("http_proxy", "::")]).is_empty());
    }

    #[test]
    fn exceptions_are_read_as_go_reads_them() {
        for (list, url, direct) in [
            ("*", "https://10.0.0.1/", true),
            ("*", "https://r.example/", true),
            ("10.0.0.0/8", "https://10.1.2.3:5000/", true),
            ("10.0.0.0/8", "https://11.1.2.3/", false),
            ("0.0.0.0/0", "https://11.1.2.3/", true),
            ("fd00::/8", "https://[fd12::1]:5000/", true),
            ("::/0", "https://11.1.2.3/", false),
            ("[fd00::1]:5000", "https://[fd00::1]:5000/", true),
            ("fd00::1", "https://[fd00::1]/", true),
            ("10.0.0.1:5000", "https://10.0.0.1:5000/", true),
            ("10.0.0.1:5000", "https://10.0.0.1/", false),
            ("r.example", "https://r.example/", true),
            ("R.Example", "https://a.r.example:5000/", true),
            ("r.example", "https://xr.example/", false),
            (".r.example", "https://a.r.example/", true),
            (".r.example", "https://r.example/", false),
            ("*.r.example", "https://a.r.example/", true),
            ("r.example:443", "https://r.example/", true),
            ("r.example:5000", "https://r.example/", false),
            (" a , r.example ", "https://r.example/", true),
            ("a b,,/,10.0.0.0/99,r:x", "https://r.example/", false),
        ] {
            let some = proxies(&[("HTTPS_PROXY", "p.example"), ("no_proxy", list)]);
            assert_eq!(of(&some, url).is_none(), direct, "{list} {url}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_list_is_read(list in "\\PC{0,60}", host in "[a-z.]{1,10}") {
            let some = proxies(&[("HTTPS_PROXY", "p.example"), ("NO_PROXY", &list)]);
            if let Ok(url) = Url::parse(&format!("https://{host}/")) {
                let _ = some.of(&url);
            }
        }
    }
}
