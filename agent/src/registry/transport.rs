//! The one way on which requests leave: counted, redirected by us, retried within a
//! budget. Nothing here knows what is asked for.

use std::sync::atomic::{AtomicU64, Ordering};

use reqwest::{
    Method, Response, StatusCode, Url,
    header::{
        ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION,
        RANGE,
    },
};

use super::{
    client::Settings,
    failure::{self, Failed, Target},
    quota::Quotas,
    retry::{self, Advice, Budget},
    tls,
};
use crate::{
    error::{Error, Result},
    kind::Kind,
    redact::{self, Secret},
};

/// As many as containerd follows.
const MAX_REDIRECTS: usize = 10;
/// Idle connections kept for one host; a pull rarely fetches more blobs at once.
const MAX_IDLE: usize = 8;

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
}

/// What came back, and from where. It has no `Debug`: the address may be signed.
pub(super) struct Answer {
    pub(super) response: Response,
    pub(super) url: Url,
    /// Another origin than the one asked has answered.
    pub(super) elsewhere: bool,
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

    /// The coding of the body, if it is any but the plain one.
    pub(super) fn encoding(&self) -> Option<&str> {
        let coding = self.headers().get("content-encoding")?;
        let coding = coding.to_str().unwrap_or("unreadable").trim();
        (!coding.is_empty() && !coding.eq_ignore_ascii_case("identity")).then_some(coding)
    }
}

/// Connections, and the counters.
pub(super) struct Transport {
    http: reqwest::Client,
    tls_problem: Option<Error>,
    requests: AtomicU64,
    auth_requests: AtomicU64,
    pub(super) quotas: Quotas,
}

impl Transport {
    pub(super) fn new(settings: &Settings) -> Result<Self> {
        let tls = tls::system()?;
        Self::with_tls(settings, tls)
    }

    pub(super) fn with_tls(settings: &Settings, tls: tls::Tls) -> Result<Self> {
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.config)
            .redirect(reqwest::redirect::Policy::none())
            .referer(false)
            .retry(reqwest::retry::never())
            .user_agent(&settings.user_agent)
            .connect_timeout(settings.connect_timeout)
            .read_timeout(settings.read_timeout)
            .pool_max_idle_per_host(MAX_IDLE);
        if !settings.system_proxy {
            builder = builder.no_proxy();
        }
        let http = builder.build().map_err(|error| {
            Error::new(Kind::Internal, "cannot set up the HTTP client").caused_by(&error)
        })?;
        Ok(Self {
            http,
            tls_problem: tls.problem,
            requests: AtomicU64::new(0),
            auth_requests: AtomicU64::new(0),
            quotas: Quotas::default(),
        })
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
            let answer = Answer {
                response,
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
        if url.scheme() == "https"
            && let Some(problem) = &self.tls_problem
        {
            return Err(Failed::at_once(
                problem.clone().registry(&ask.target.registry),
            ));
        }
        let counter = if ask.target.is_token() {
            &self.auth_requests
        } else {
            &self.requests
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let mut request = self
            .http
            .request(ask.method.clone(), url.clone())
            .header(ACCEPT, ask.accept)
            // Content is hashed as it is stored; a coding in between would hide it.
            .header(ACCEPT_ENCODING, "identity");
        if let Some((first, last)) = ask.range {
            request = request.header(RANGE, format!("bytes={first}-{last}"));
        }
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization.clone());
        }
        if let Some(form) = &ask.form {
            request = request
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.reveal().to_owned());
        }
        let outcome = request.send().await;
        match &outcome {
            Ok(response) => {
                tracing::debug!(method = %ask.method, url = redact::url(url), status = response.status().as_u16(), "request");
            }
            Err(_) => {
                tracing::debug!(method = %ask.method, url = redact::url(url), "request failed");
            }
        }
        outcome.map_err(|error| failure::transport(&ask.target, url, elsewhere, error))
    }
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
