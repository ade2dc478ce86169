//! What went wrong, in the words of the reader: each failed request becomes one error
//! with kind, registry, cause and next step, and an advice whether to ask again.

use std::{error::Error as StdError, fmt, io, sync::Arc, time::Duration};

use reqwest::{StatusCode, Url};
use rustls::{AlertDescription, CertificateError, InvalidMessage};

use super::{
    auth::Who,
    body::{self, BodyFault},
    endpoint, quota,
    retry::{self, Advice},
    said::{MAX_SAID, Said},
    tls,
    transport::Answer,
};
use crate::{
    error::Error,
    kind::Kind,
    oci::{Digest, Reference},
    redact::printable,
};

/// What a request is for.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) registry: Arc<str>,
    pub(super) what: What,
}

#[derive(Debug, Clone)]
pub(super) enum What {
    Manifest { repository: String, name: String },
    Blob { repository: String, digest: Digest },
    Token { repository: Arc<str> },
}

impl Target {
    pub(super) fn manifest(reference: &Reference, name: &str) -> Self {
        Self {
            registry: reference.repository().domain().into(),
            what: What::Manifest {
                repository: reference.repository().to_string(),
                name: name.to_owned(),
            },
        }
    }

    pub(super) fn blob(reference: &Reference, digest: &Digest) -> Self {
        Self {
            registry: reference.repository().domain().into(),
            what: What::Blob {
                repository: reference.repository().to_string(),
                digest: digest.clone(),
            },
        }
    }

    /// Whether it is asked for by its digest, so that no answer can be another's.
    pub(super) fn is_pinned(&self) -> bool {
        match &self.what {
            What::Manifest { name, .. } => name.contains(':'),
            What::Blob { .. } => true,
            What::Token { .. } => false,
        }
    }

    pub(super) fn is_token(&self) -> bool {
        matches!(self.what, What::Token { .. })
    }

    pub(super) fn error(&self, kind: Kind) -> Error {
        Error::new(kind, format_args!("cannot fetch {self}")).registry(&self.registry)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.what {
            What::Manifest { repository, name } => {
                let sign = if name.contains(':') { '@' } else { ':' };
                write!(f, "manifest {repository}{sign}{name}")
            }
            What::Blob { repository, digest } => write!(f, "blob {digest} of {repository}"),
            What::Token { repository } => {
                write!(f, "a token for {}/{repository}", self.registry)
            }
        }
    }
}

/// A failed try.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) error: Error,
    pub(super) advice: Advice,
}

impl Failed {
    /// A failure that trying again would not change.
    pub(super) fn at_once(error: Error) -> Self {
        Self {
            error,
            advice: Advice::Never,
        }
    }
}

/// An answer that no correct server gives; another one may.
pub(super) fn unusable(target: &Target, why: impl fmt::Display) -> Error {
    target.error(Kind::Unavailable).because(why)
}

/// Content that cannot be what was asked for.
pub(super) fn invalid(target: &Target, why: impl fmt::Display) -> Error {
    target.error(Kind::InvalidContent).because(why)
}

/// A coded body: its bytes are not those that were published.
pub(super) fn encoded(target: &Target, url: &Url, coding: &str) -> Error {
    invalid(
        target,
        format_args!(
            "{} sent it with content coding `{}`, although none was asked for",
            endpoint::authority(url),
            printable(coding, 40)
        ),
    )
    .hint("a proxy or the storage behind the registry re-encodes content; exempt the registry from it")
}

/// A request that brought no answer.
pub(super) fn transport(
    target: &Target,
    url: &Url,
    elsewhere: bool,
    proxy: Option<&str>,
    error: reqwest::Error,
) -> Failed {
    let host = endpoint::authority(url);
    // The message of the outermost error holds the address, signature included.
    let error = error.without_url();
    let fault = Fault::of(&error);
    let shown = if elsewhere {
        format!("{host} (where the registry redirected to)")
    } else {
        host.clone()
    };
    let kind = match fault {
        Fault::Stalled => Kind::Timeout,
        _ => Kind::Unavailable,
    };
    let base = target.error(kind);
    let (failure, advice) = match fault {
        Fault::Dns => (
            base.because(format_args!("the name {shown} cannot be resolved"))
                .caused_by_root(&error)
                .hint("check the spelling of the host, the network, and the DNS servers of this device"),
            Advice::Quick,
        ),
        Fault::Refused => (
            base.because(format_args!("{shown} refuses the connection"))
                .hint("nothing listens there, or a firewall rejects it; check host and port"),
            Advice::Quick,
        ),
        Fault::ConnectTimeout => (
            base.because(format_args!("no connection to {shown} in time"))
                .hint("the host is down, or a firewall drops the packets"),
            Advice::Quick,
        ),
        Fault::Stalled => (
            base.because(format_args!("{shown} sends nothing any more")),
            Advice::Backoff,
        ),
        Fault::PlainHttp => (
            base.because(format_args!("{shown} answered a TLS handshake in plain http"))
                .hint("if that registry is meant to have no TLS, pass --plain-http")
                .retry(false),
            Advice::Never,
        ),
        Fault::Proxy => (
            base.because(format_args!("{} wants credentials", named(proxy)))
                .caused_by_root(&error)
                .hint(proxy_hint(proxy))
                .retry(false),
            Advice::Never,
        ),
        Fault::Tls(why) => (certificate(base, &shown, &why), Advice::Never),
        Fault::Broken => (
            base.because(format_args!("the connection to {shown} broke"))
                .caused_by_root(&error),
            Advice::Backoff,
        ),
    };
    // What a proxy on the way does looks like the far side's doing.
    let failure = match proxy {
        Some(proxy) => failure.because(format_args!("on the way through the proxy {proxy}")),
        None => failure,
    };
    Failed {
        error: failure,
        advice,
    }
}

fn named(proxy: Option<&str>) -> String {
    proxy.map_or_else(
        || "a proxy".to_owned(),
        |proxy| format!("the proxy {proxy}"),
    )
}

fn proxy_hint(proxy: Option<&str>) -> String {
    format!(
        "set the credentials of {} in https_proxy or http_proxy (http://USER:PASSWORD@PROXY), or exempt the registry by no_proxy",
        named(proxy)
    )
}

/// Only the innermost cause: the layers above say "error sending request".
trait Root {
    fn caused_by_root(self, error: &reqwest::Error) -> Self;
}

impl Root for Error {
    fn caused_by_root(self, error: &reqwest::Error) -> Self {
        let mut root: &(dyn StdError + 'static) = error;
        while let Some(next) = root.source() {
            root = next;
        }
        self.because(printable(&root.to_string(), MAX_SAID))
    }
}

/// Where a connection failed.
#[derive(Debug)]
enum Fault {
    Dns,
    Refused,
    ConnectTimeout,
    Stalled,
    PlainHttp,
    Proxy,
    Tls(rustls::Error),
    Broken,
}

impl Fault {
    fn of(error: &reqwest::Error) -> Self {
        let mut next: Option<&(dyn StdError + 'static)> = Some(error);
        while let Some(cause) = next {
            if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
                return match tls {
                    rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => {
                        Self::PlainHttp
                    }
                    tls => Self::Tls(tls.clone()),
                };
            }
            if let Some(io) = cause.downcast_ref::<io::Error>() {
                if io.kind() == io::ErrorKind::ConnectionRefused {
                    return Self::Refused;
                }
                // `source` of an io::Error skips the error that it wraps.
                if let Some(inner) = io.get_ref() {
                    let inner: &(dyn StdError + 'static) = inner;
                    next = Some(inner);
                    continue;
                }
            }
            // hyper-util has no type for it.
            if cause.to_string().contains("proxy authorization required") {
                return Self::Proxy;
            }
            next = cause.source();
        }
        if error.is_dns() {
            Self::Dns
        } else if error.is_timeout() && error.is_connect() {
            Self::ConnectTimeout
        } else if error.is_timeout() {
            Self::Stalled
        } else {
            Self::Broken
        }
    }
}

/// A failed handshake. Small devices often have no battery-backed clock, so a date
/// problem names both dates.
fn certificate(base: Error, host: &str, error: &rustls::Error) -> Error {
    let clock = "is the clock of this device right? it is compared with the certificate's dates";
    let date = |time: rustls::pki_types::UnixTime| {
        i64::try_from(time.as_secs())
            .ok()
            .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
            .map_or_else(|| "an unknown date".to_owned(), |at| at.to_string())
    };
    match error {
        rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { time, not_after }) => {
            base.because(format_args!(
                "the certificate of {host} expired at {}; this device's clock says {}",
                date(*not_after),
                date(*time)
            ))
            .hint(clock)
        }
        rustls::Error::InvalidCertificate(CertificateError::NotValidYetContext {
            time,
            not_before,
        }) => base
            .because(format_args!(
                "the certificate of {host} is valid from {}; this device's clock says {}",
                date(*not_before),
                date(*time)
            ))
            .hint(clock)
            .of_clock(),
        rustls::Error::InvalidCertificate(CertificateError::Expired) => base
            .because(format_args!("the certificate of {host} has expired"))
            .hint(clock),
        rustls::Error::InvalidCertificate(CertificateError::NotValidYet) => base
            .because(format_args!("the certificate of {host} is not valid yet"))
            .hint(clock)
            .of_clock(),
        rustls::Error::InvalidCertificate(
            CertificateError::UnknownIssuer | CertificateError::Other(_),
        ) if tls::is_untrusted(error) => base
            .because(format_args!(
                "the certificate of {host} is signed by {}that this host does not trust",
                match error {
                    rustls::Error::InvalidCertificate(CertificateError::Other(_)) =>
                        "itself, an authority ",
                    _ => "an authority ",
                }
            ))
            .hint("with a private CA, add its certificate to the host's trust store, or as `ca` to the registry's hosts.toml; else somebody intercepts the connection")
            .retry(false),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => base
            .because(format_args!("the certificate of {host} is for another name"))
            .because(printable(&error.to_string(), MAX_SAID))
            .hint("use the name that the certificate has, or correct the certificate")
            .retry(false),
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
            | AlertDescription::CertificateUnknown),
        ) => base
            .because(format_args!("{host} refuses who we are: TLS alert {alert:?}"))
            .hint("it wants another client certificate, or one at all; set `client` in the registry's hosts.toml")
            .retry(false),
        other => base
            .because(format_args!("the TLS handshake with {host} failed"))
            .because(printable(&other.to_string(), MAX_SAID)),
    }
}

/// A small body that could not be read.
pub(super) fn body(target: &Target, url: &Url, fault: BodyFault, limit: usize) -> Failed {
    let host = endpoint::authority(url);
    match fault {
        BodyFault::TooLarge => Failed::at_once(invalid(
            target,
            format_args!("the answer of {host} is larger than the {limit} bytes that are read"),
        )),
        BodyFault::Slow => Failed {
            error: target
                .error(Kind::Timeout)
                .because(format_args!("{host} sends its answer too slowly")),
            advice: Advice::Backoff,
        },
        BodyFault::Broken(error) => transport(target, url, false, None, error),
    }
}

/// A body that stopped coming.
pub(super) fn stalled(target: &Target, url: &Url, limit: Duration) -> Failed {
    Failed {
        error: target.error(Kind::Timeout).because(format_args!(
            "{} sent (almost) nothing for {} s",
            endpoint::authority(url),
            limit.as_secs_f32()
        )),
        advice: Advice::Backoff,
    }
}

/// A refusal in HTTP.
pub(super) async fn status(target: &Target, mut answer: Answer, who: &Who) -> Error {
    let said = Said::parse(&body::read_error(&mut answer.response).await);
    let status = answer.status();
    let host = endpoint::authority(&answer.url);
    let mut cause = if answer.elsewhere {
        format!("{host}, where the registry redirected to, answered {status}")
    } else {
        format!("{host} answered {status}")
    };
    if let Some(text) = said.text.as_ref().or(said.title.as_ref()) {
        cause.push_str(": ");
        cause.push_str(text);
    }
    let of = |kind| target.error(kind).because(&cause);
    if answer.elsewhere && matches!(status.as_u16(), 400 | 401 | 403 | 410) {
        return of(Kind::Unavailable)
            .hint("the storage behind the registry refuses the address that the registry gave out; a caching proxy may keep it too long");
    }
    match status.as_u16() {
        401 | 403 => denied(of(Kind::Unauthorized), target, who),
        404 | 410 => absent(of(Kind::NotFound), target, &said, who),
        429 => quota::limited(of(Kind::RateLimited), target, answer.headers()),
        407 => of(Kind::Unavailable)
            .hint(proxy_hint(answer.proxy.as_deref()))
            .retry(false),
        406 => of(Kind::InvalidContent).hint(
            "the registry does not serve the manifest types that are in use today; is it very old?",
        ),
        451 => of(Kind::Unavailable).retry(false),
        400 if cause.contains("HTTP request to an HTTPS server") => of(Kind::Unavailable)
            .hint("this registry wants https")
            .retry(false),
        408 | 425 | 500..=599 => of(Kind::Unavailable).after(retry::retry_after(answer.headers())),
        code => {
            let error = of(Kind::Unavailable).retry(code >= 500);
            match said.title {
                Some(title) => error.hint(page_hint(&title)),
                None => error,
            }
        }
    }
}

fn denied(error: Error, target: &Target, who: &Who) -> Error {
    let error = match &who.refused {
        Some(source) => error.because(format_args!(
            "the credentials from {source} were refused as well"
        )),
        None => error,
    };
    let registry = &target.registry;
    match who.source.as_ref().or(who.refused.as_ref()) {
        Some(source) => error.hint(format_args!(
            "the credentials from {source} do not open this repository: renew them, or check the name; registries say the same of what is private and what is missing"
        )),
        None => error.hint(format_args!(
            "the repository is private or missing, registries say the same of both; check the name, or log in to {registry} (docker login, --authfile or --creds)"
        )),
    }
}

fn absent(error: Error, target: &Target, said: &Said, who: &Who) -> Error {
    let registry = &target.registry;
    let hint = match (&target.what, said.code.as_deref()) {
        (_, Some("NAME_UNKNOWN")) => {
            format!("{registry} has no such repository; check its spelling")
        }
        (What::Manifest { name, .. }, _) if !name.contains(':') => {
            "the repository has no such tag; check its spelling".to_owned()
        }
        (What::Manifest { .. }, _) => {
            "the registry does not have this digest (any more)".to_owned()
        }
        (What::Blob { .. }, _) => {
            "the registry has the manifest, but not all it points to; push the image again, or try another mirror".to_owned()
        }
        (What::Token { .. }, _) => "the registry names a token server that is not there".to_owned(),
    };
    if who.source.is_none() {
        error.hint(format_args!(
            "{hint}; if the repository is private, log in to {registry} first"
        ))
    } else {
        error.hint(hint)
    }
}

/// The token server's refusal.
pub(super) async fn token_refused(
    target: &Target,
    answer: Answer,
    source: Option<Arc<str>>,
) -> Error {
    let refusal = match answer.status() {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => true,
        // OAuth2 says it so of a refresh token that has ended (RFC 6749, 5.2).
        StatusCode::BAD_REQUEST => source.is_some(),
        _ => false,
    };
    if !refusal {
        return match answer.status().as_u16() {
            429 | 408 | 500..=599 => status(target, answer, &Who::default()).await,
            _ => status(target, answer, &Who::default())
                .await
                .with_kind(Kind::Unavailable),
        };
    }
    let who = Who {
        source,
        refused: None,
    };
    status(target, answer, &who)
        .await
        .with_kind(Kind::Unauthorized)
        .hint("the token server refuses the stored credentials; log in again")
}

/// A web page where content was expected: a captive portal, a login page of a proxy,
/// the registry's own web interface.
pub(super) fn web_page(target: &Target, url: &Url, bytes: &[u8]) -> Error {
    let title = Said::parse(bytes).title;
    target
        .error(Kind::Unavailable)
        .because(format_args!(
            "{} answered with a web page",
            endpoint::authority(url)
        ))
        .hint(page_hint(title.as_deref().unwrap_or_default()))
}

fn page_hint(title: &str) -> String {
    let title = if title.is_empty() {
        String::new()
    } else {
        format!(" (its title: `{title}`)")
    };
    format!(
        "a web page{title} came instead of the registry's answer: a portal or proxy wants a login, or the repository path is wrong"
    )
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::UnixTime;

    use super::*;

    fn base() -> Error {
        Error::new(Kind::Unavailable, "cannot fetch")
    }

    #[test]
    fn certificate_dates_name_both_clocks() {
        let at = |seconds| UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        for (fault, dates, clock) in [
            (
                CertificateError::NotValidYetContext {
                    time: at(0),
                    not_before: at(1_700_000_000),
                },
                ["1970-01-01T00:00:00Z", "2023-11-14T22:13:20Z"],
                true,
            ),
            (
                CertificateError::ExpiredContext {
                    time: at(1_700_000_000),
                    not_after: at(1_600_000_000),
                },
                ["2023-11-14T22:13:20Z", "2020-09-13T12:26:40Z"],
                false,
            ),
        ] {
            let error = certificate(
                base(),
                "r.example",
                &rustls::Error::InvalidCertificate(fault),
            );
            let causes = error.causes().concat();
            assert!(dates.iter().all(|date| causes.contains(date)), "{causes}");
            assert!(error.hint_text().expect("a hint").contains("clock"));
            assert!(error.is_retryable(), "the clock may be set later");
            assert_eq!(error.is_of_clock(), clock);
        }
        let huge = CertificateError::ExpiredContext {
            time: at(u64::MAX),
            not_after: at(0),
        };
        let error = certificate(base(), "r", &rustls::Error::InvalidCertificate(huge));
        assert!(error.causes().concat().contains("an unknown date"));
    }

    #[test]
    fn an_unknown_issuer_is_final() {
        let fault = rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let error = certificate(base(), "r.example", &fault);
        assert!(error.hint_text().expect("a hint").contains("private CA"));
        assert!(!error.is_retryable());
    }
}
