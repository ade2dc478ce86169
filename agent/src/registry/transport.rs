//! The one way on which requests leave: counted, redirected by us, retried within a
//! budget. Nothing here knows what is asked for.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use reqwest::{
    Method, Response, StatusCode, Url,
    header::{
        ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION,
        RANGE,
    },
};

use super::{
    body::{self, BodyFault},
    client::Settings,
    clients::Clients,
    counts::{Counters, Meter, Origin},
    endpoint::Route,
    failure::{self, Failed, Target},
    health::{self, Health},
    notices::Notices,
    quota::Quotas,
    retry::{self, Advice, Budget},
    tls::Trust,
};
use crate::{
    error::Result,
    redact::{self, Secret},
};

/// As many as containerd follows.
const MAX_REDIRECTS: usize = 10;

/// A request, apart from who asks.
#[derive(Debug)]
pub(super) struct Ask {
    pub(super) target: Target,
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) accept: &'static str,
    /// First and last byte.
    pub(super) range: Option<(u64, u64)>,
    /// An urlencoded form, which holds a token.
    pub(super) form: Option<Secret>,
    /// The server on whose behalf it is sent.
    pub(super) route: Option<Arc<Route>>,
    /// Another server follows, so this one is not waited for as long.
    pub(super) hurried: bool,
}

/// What came back, and from where. It has no `Debug`: the address may be signed.
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) url: Url,
    /// Another origin than the one asked has answered.
    pub(super) elsewhere: bool,
    /// The proxy on the way.
    pub(super) proxy: Option<String>,
    pub(super) meter: Meter,
}

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(super) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// A header's text; one that is no text counts as absent.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers().get(name)?.to_str().ok()
    }

    /// The length that the header claims; for HEAD, too.
    pub(super) fn length(&self) -> Option<u64> {
        self.header("content-length")?.trim().parse().ok()
    }

    /// The whole body, as [`body::read`] gives it.
    pub(super) async fn body(&mut self, limit: usize, time: Duration) -> Result<Bytes, BodyFault> {
        let read = body::read(&mut self.response, limit, time).await;
        if let Ok(bytes) = &read {
            self.meter.came(bytes.len());
        }
        read
    }

    /// The coding of the body, if it is any but the plain one.
    pub(super) fn encoding(&self) -> Option<&str> {
        let coding = self.headers().get("content-encoding")?;
        let coding = coding.to_str().unwrap_or("unreadable").trim();
        (!coding.is_empty() && !coding.eq_ignore_ascii_case("identity")).then_some(coding)
    }
}

/// Connections, and the counters.
pub(super) struct Transport {
    clients: Clients,
    health: Health,
    requests: AtomicU64,
    auth_requests: AtomicU64,
    pub(super) counters: Counters,
    pub(super) quotas: Quotas,
}

impl Transport {
    pub(super) fn trusting(settings: &Settings, trust: Trust, notices: Notices) -> Self {
        Self {
            clients: Clients::new(settings, trust),
            health: Health::new(notices),
            requests: AtomicU64::new(0),
            auth_requests: AtomicU64::new(0),
            counters: Counters::default(),
            quotas: Quotas::default(),
        }
    }

    pub(super) fn health(&self) -> &Health {
        &self.health
    }

    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    pub(super) fn auth_requests(&self) -> u64 {
        self.auth_requests.load(Ordering::Relaxed)
    }

    /// Asks until there is an answer that asking again would not change, or the budget
    /// is used up. The answer may be of any status.
    pub(super) async fn send(
        &self,
        ask: &Ask,
        authorization: Option<&HeaderValue>,
        budget: &mut Budget,
    ) -> Result<Answer> {
        if let Some(error) = self.quotas.refusal(ask) {
            return Err(error);
        }
        loop {
            let (outcome, advice) = match self.follow(ask, authorization).await {
                Ok(answer) => {
                    self.quotas.note(ask, &answer);
                    let head = ask.method == Method::HEAD;
                    let advice = retry::advice(answer.status(), answer.headers(), head);
                    (Ok(answer), advice)
                }
                Err(Failed { error, advice }) => (Err(error), advice),
            };
            let Some(wait) = budget.grant(advice) else {
                if let Ok(answer) = &outcome {
                    self.quotas.keep_away(ask, answer);
                }
                return outcome;
            };
            let why = match &outcome {
                Ok(answer) => answer.status().to_string(),
                Err(error) => error.to_string(),
            };
            tracing::debug!(what = %ask.target, why, wait = ?wait, "asking again");
            // The connection of a refused request is free before the wait.
            drop(outcome);
            tokio::time::sleep(wait).await;
        }
    }

    /// One try, redirects included. `Authorization` goes to the origin that was asked
    /// and to no other.
    async fn follow(
        &self,
        ask: &Ask,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, Failed> {
        let home = ask.url.origin();
        let mut url = ask.url.clone();
        for _ in 0..=MAX_REDIRECTS {
            let elsewhere = url.origin() != home;
            let authorization = authorization.filter(|_| !elsewhere);
            let response = self.once(ask, &url, elsewhere, authorization).await?;
            let mirror = ask.route.as_ref().is_some_and(|route| route.mirror);
            let origin = if mirror {
                Origin::Mirror
            } else {
                Origin::Registry
            };
            let answer = Answer {
                response,
                meter: self.counters.meter(&ask.target.registry, origin),
                proxy: self.clients.proxy(&url, ask.route.as_deref()),
                url,
                elsewhere,
            };
            match redirect(ask, &answer)? {
                None => return Ok(answer),
                Some(next) => url = next,
            }
        }
        Err(Failed::at_once(
            failure::unusable(
                &ask.target,
                format_args!(
                    "more than {MAX_REDIRECTS} redirects, the last one to {}",
                    url.host_str().unwrap_or_default()
                ),
            )
            .retry(false),
        ))
    }

    async fn once(
        &self,
        ask: &Ask,
        url: &Url,
        elsewhere: bool,
        authorization: Option<&HeaderValue>,
    ) -> Result<Response, Failed> {
        let route = ask.route.as_deref();
        let client = self
            .clients
            .of(url, route, ask.hurried)
            .map_err(|error| Failed::at_once(error.registry(&ask.target.registry)))?;
        let counter = if ask.target.is_token() {
            &self.auth_requests
        } else {
            &self.requests
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let mut request = client
            .request(ask.method.clone(), url.clone())
            .headers(headers(ask, url, authorization));
        if let Some(form) = &ask.form {
            request = request.body(form.reveal().to_owned());
        }
        let outcome = request.send().await;
        if !ask.target.is_token() {
            let code = outcome
                .as_ref()
                .ok()
                .map(|response| response.status().as_u16());
            self.counters.request(&ask.target.registry, code);
        }
        match &outcome {
            Ok(response) => {
                tracing::debug!(method = %ask.method, url = redact::url(url), status = response.status().as_u16(), "request");
            }
            Err(_) => {
                tracing::debug!(method = %ask.method, url = redact::url(url), "request failed");
            }
        }
        let outcome = outcome.map_err(|error| {
            let proxy = self.clients.proxy(url, route);
            failure::transport(&ask.target, url, elsewhere, proxy.as_deref(), error)
        });
        if !elsewhere && let Some(route) = route {
            self.record(route, url, &outcome);
        }
        outcome
    }

    /// What the server's own answer, or its silence, says about its health.
    fn record(&self, route: &Route, url: &Url, outcome: &Result<Response, Failed>) {
        let origin = &route.origin;
        // A dead token server closes the server that sends us there; a living one does
        // not speak for it.
        let itself = *origin == super::endpoint::origin(url);
        match outcome {
            Ok(response) => {
                let status = response.status();
                let bad = |weight, wait| {
                    self.health
                        .bad(origin, weight, wait, &format!("it answered {status}"));
                };
                match status.as_u16() {
                    429 | 502..=504 => {
                        bad(health::DEAD, retry::retry_after(response.headers()));
                    }
                    500..=599 => bad(health::ODD, None),
                    _ if itself => self.health.good(origin),
                    _ => {}
                }
            }
            Err(failed) => {
                // A connection that broke may have been an old one.
                let broke = failed.advice == Advice::Backoff
                    && failed.error.kind() != crate::kind::Kind::Timeout;
                let weight = if broke { health::ODD } else { health::DEAD };
                let why = failed.error.causes().join("; ");
                self.health.bad(origin, weight, None, &why);
            }
        }
    }
}

/// The headers of a request: the server's own from its configuration, where the request
/// stays at its origin, below ours.
fn headers(ask: &Ask, url: &Url, authorization: Option<&HeaderValue>) -> HeaderMap {
    let mut headers = match &ask.route {
        Some(route) if route.origin == super::endpoint::origin(url) => route.headers.clone(),
        _ => HeaderMap::new(),
    };
    headers.insert(ACCEPT, HeaderValue::from_static(ask.accept));
    // Content is hashed as it is stored; a coding in between would hide it.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if let Some((first, last)) = ask.range
        && let Ok(range) = HeaderValue::from_str(&format!("bytes={first}-{last}"))
    {
        headers.insert(RANGE, range);
    }
    if let Some(authorization) = authorization {
        headers.insert(AUTHORIZATION, authorization.clone());
    }
    if ask.form.is_some() {
        let form = HeaderValue::from_static("application/x-www-form-urlencoded");
        headers.insert(CONTENT_TYPE, form);
    }
    headers
}

/// Where the answer sends us, if it does.
fn redirect(ask: &Ask, answer: &Answer) -> Result<Option<Url>, Failed> {
    if !matches!(answer.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Ok(None);
    }
    let refuse = |why: &dyn std::fmt::Display| Failed {
        error: failure::unusable(&ask.target, why).retry(false),
        advice: Advice::Never,
    };
    if ask.form.is_some() {
        return Err(refuse(
            &"the token server redirects a request that holds a token; it is not followed",
        ));
    }
    let next = answer
        .headers()
        .get(LOCATION)
        .and_then(|location| location.to_str().ok())
        .and_then(|location| answer.url.join(location).ok())
        .filter(Url::has_host)
        .ok_or_else(|| refuse(&"a redirect without a usable target"))?;
    next_hop(&answer.url, next)
        .map(Some)
        .map_err(|why| refuse(&why))
}

/// Checks one hop; credentials written into the target are cut off.
fn next_hop(from: &Url, mut to: Url) -> Result<Url, String> {
    let host = to.host_str().unwrap_or_default();
    match (from.scheme(), to.scheme()) {
        (_, "https") | ("http", "http") => {}
        ("https", "http") => {
            return Err(format!(
                "redirected from https to plain http at {host}, which is refused"
            ));
        }
        (_, scheme) => return Err(format!("redirected to the scheme `{scheme}`")),
    }
    to.set_username("")
        .and_then(|()| to.set_password(None))
        .map_err(|()| "redirected to an address without a host".to_owned())?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hops_never_leave_https() {
        let url = |text: &str| Url::parse(text).expect("a URL");
        let https = url("https://r.example/v2/");
        let http = url("http://r.example/v2/");
        assert!(next_hop(&https, url("https://cdn.example/x?sig=1")).is_ok());
        assert!(next_hop(&http, url("https://cdn.example/x")).is_ok());
        assert!(next_hop(&http, url("http://cdn.example/x")).is_ok());
        assert!(next_hop(&https, url("http://cdn.example/x")).is_err());
        assert!(next_hop(&https, url("ftp://cdn.example/x")).is_err());
        let bare = next_hop(&https, url("https://me:pw@cdn.example/x")).expect("allowed");
        assert_eq!(bare.as_str(), "https://cdn.example/x");
    }
}
