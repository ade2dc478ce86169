//! Requests and their answers.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Handle, stream};
use crate::{
    error::{Error, Result},
    kind::Kind,
    metrics,
    oci::Reference,
};

/// What every answer carries.
pub(super) type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

/// Listeners of events at a time, so that they leave connections to others.
const MOST_LISTENERS: usize = 16;
/// Those at a time who wait for the loop, which may take hours, likewise.
const MOST_WAITING: usize = 8;

const JSON: &str = "application/json";

/// Who asks, and so what is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Surface {
    /// The control socket: everything.
    Control,
    /// The TCP address: nothing that changes anything, and nothing but figures.
    Scrapes,
}

/// What there is, with the method that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Route {
    Status,
    Host,
    Events,
    Metrics,
    Health,
    Ready,
    Sync,
    Reload,
}

impl Route {
    fn of(path: &str, surface: Surface) -> Option<Self> {
        let route = match path {
            "/v1/status" => Self::Status,
            "/v1/host" => Self::Host,
            "/v1/events" => Self::Events,
            "/metrics" => Self::Metrics,
            "/healthz" => Self::Health,
            "/readyz" => Self::Ready,
            "/v1/sync" => Self::Sync,
            "/v1/reload" => Self::Reload,
            _ => return None,
        };
        let public = matches!(route, Self::Metrics | Self::Health | Self::Ready);
        (public || surface == Surface::Control).then_some(route)
    }

    fn takes(self, method: &Method) -> bool {
        match self {
            Self::Sync | Self::Reload => method == Method::POST,
            _ => method == Method::GET || method == Method::HEAD,
        }
    }

    const fn allow(self) -> &'static str {
        match self {
            Self::Sync | Self::Reload => "POST",
            _ => "GET, HEAD",
        }
    }

    /// The keys that may stand after the `?`.
    const fn keys(self) -> &'static [&'static str] {
        match self {
            Self::Status => &["reference"],
            Self::Sync => &["reference", "wait"],
            _ => &[],
        }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Server {
    handle: Handle,
    surface: Surface,
    listeners: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Server {
    pub(super) fn new(handle: Handle, surface: Surface) -> Self {
        Self {
            handle,
            surface,
            listeners: Arc::new(Semaphore::new(MOST_LISTENERS)),
            waiting: Arc::new(Semaphore::new(MOST_WAITING)),
        }
    }

    /// The body of a request is never read: no request has one.
    pub(super) async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let path = request.uri().path();
        let Some(route) = Route::of(path, self.surface) else {
            let known = match self.surface {
                Surface::Control => {
                    "there are /v1/status, /v1/host, /v1/events, /v1/sync, /v1/reload, /metrics, /healthz and /readyz"
                }
                Surface::Scrapes => {
                    "there are /metrics, /healthz and /readyz; the rest is on the control socket"
                }
            };
            let error = Error::new(Kind::NotFound, "there is nothing of that name").hint(known);
            return refusal(StatusCode::NOT_FOUND, &error);
        };
        if !route.takes(request.method()) {
            let message = format_args!("{path} takes {}", route.allow());
            let error = Error::new(Kind::Usage, message).hint("ask with another method");
            let mut answer = refusal(StatusCode::METHOD_NOT_ALLOWED, &error);
            let allow = HeaderValue::from_static(route.allow());
            answer.headers_mut().insert(ALLOW, allow);
            return answer;
        }
        let query = match Query::parse(request.uri().query(), route.keys()) {
            Ok(query) => query,
            Err(error) => return refused(&error),
        };
        let answered = match route {
            Route::Status => self.status(query.reference.as_deref()),
            Route::Host => Ok(full(StatusCode::OK, JSON, self.handle.host())),
            Route::Events => self.events(request.method()),
            Route::Metrics => Ok(full(
                StatusCode::OK,
                metrics::CONTENT_TYPE,
                self.handle.metrics_text(),
            )),
            Route::Health => Ok(document(StatusCode::OK, &serde_json::json!({ "ok": true }))),
            // Whatever the kind: who asks looks at the status, and the daemon is there.
            Route::Ready => Ok(match self.handle.ready() {
                Ok(()) => document(StatusCode::OK, &serde_json::json!({ "ready": true })),
                Err(error) => refusal(StatusCode::SERVICE_UNAVAILABLE, &error),
            }),
            Route::Sync => self.sync(query).await,
            Route::Reload => self.reload().await.and_then(|()| self.status(None)),
        };
        answered.unwrap_or_else(|error| refused(&error))
    }

    fn status(&self, reference: Option<&str>) -> Result<Response<Body>> {
        let found = self.handle.document(reference)?;
        Ok(document(StatusCode::OK, &found))
    }

    fn events(&self, method: &Method) -> Result<Response<Body>> {
        let mut answer = full(StatusCode::OK, "text/event-stream", "");
        let headers = answer.headers_mut();
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if method == Method::HEAD {
            return Ok(answer);
        }
        let place = place(&self.listeners, MOST_LISTENERS, "listen to events")?;
        *answer.body_mut() = stream::body(&self.handle.board, place);
        Ok(answer)
    }

    async fn reload(&self) -> Result<()> {
        let _place = place(&self.waiting, MOST_WAITING, "wait for the daemon")?;
        self.handle.reload()?.await.map_err(|_| {
            Error::new(Kind::AgentUnavailable, "the configuration was not read")
                .because("the daemon stops")
                .hint("ask again when it runs: `systemctl status edgepull`")
        })
    }

    async fn sync(&self, query: Query) -> Result<Response<Body>> {
        // What is not desired is refused now, not when the pass is done; what was declared a
        // moment ago counts.
        if self.handle.document(query.reference.as_deref()).is_err() {
            self.reload().await?;
        }
        self.handle.document(query.reference.as_deref())?;
        let _place = if query.wait {
            Some(place(&self.waiting, MOST_WAITING, "wait for the daemon")?)
        } else {
            None
        };
        let done = self.handle.sync(query.reference.clone())?;
        if !query.wait {
            let asked = serde_json::json!({ "asked": { "reference": query.reference } });
            return Ok(document(StatusCode::ACCEPTED, &asked));
        }
        done.await.map_err(|_| {
            Error::new(Kind::AgentUnavailable, "the pass was not done")
                .because("the daemon stops, or cannot do it now")
                .hint("`edgepull status` and `journalctl -u edgepull` say more")
        })?;
        self.status(query.reference.as_deref())
    }
}

/// One of `most` places, so that connections are left to others.
fn place(places: &Arc<Semaphore>, most: usize, do_that: &str) -> Result<OwnedSemaphorePermit> {
    Arc::clone(places).try_acquire_owned().map_err(|_| {
        let message = format_args!("{most} {do_that} already");
        Error::new(Kind::AgentUnavailable, message).hint("ask again when one of them has ended")
    })
}

/// What stands after the `?`.
#[derive(Debug, Default, PartialEq, Eq)]
struct Query {
    /// The name of the image record.
    reference: Option<String>,
    wait: bool,
}

impl Query {
    fn parse(text: Option<&str>, known: &[&str]) -> Result<Self> {
        let mut query = Self::default();
        let url = format!("http://edgepull/?{}", text.unwrap_or_default());
        let wrong = |message: std::fmt::Arguments<'_>| {
            Error::new(Kind::Usage, message).hint(match known {
                [] => "nothing may stand after the `?`".to_owned(),
                known => format!("after the `?` may stand: {}", known.join(", ")),
            })
        };
        let url = reqwest::Url::parse(&url)
            .map_err(|error| wrong(format_args!("cannot read the query")).caused_by(&error))?;
        for (key, value) in url.query_pairs() {
            match key.as_ref() {
                "reference" if known.contains(&"reference") => {
                    query.reference = Some(record_name(&value)?);
                }
                "wait" if known.contains(&"wait") => {
                    query.wait = match value.as_ref() {
                        "1" | "true" => true,
                        "0" | "false" => false,
                        _ => return Err(wrong(format_args!("`wait` is 0 or 1"))),
                    };
                }
                _ => {
                    return Err(wrong(format_args!(
                        "there is no `{}` here",
                        key.escape_debug()
                    )));
                }
            }
        }
        Ok(query)
    }
}

fn record_name(typed: &str) -> Result<String> {
    let reference = Reference::parse(typed).map_err(|error| {
        Error::new(
            Kind::InvalidReference,
            format_args!("`{typed}` is no image reference"),
        )
        .because(error)
        .reference(typed)
        .hint("`edgepull status` lists what is declared, as it is to be written")
    })?;
    Ok(reference.record_name())
}

/// The status that goes with a kind; the kind itself is in the body.
const fn status_of(kind: Kind) -> StatusCode {
    match kind {
        Kind::Usage | Kind::Config | Kind::InvalidReference => StatusCode::BAD_REQUEST,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::ContainerdUnavailable | Kind::AgentUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        Kind::Internal
        | Kind::PlatformMissing
        | Kind::NotRunnable
        | Kind::Mislabelled
        | Kind::SmokeFailed
        | Kind::Unauthorized
        | Kind::RateLimited
        | Kind::Unavailable
        | Kind::InvalidContent
        | Kind::Unsupported
        | Kind::NoSpace
        | Kind::StoreDamaged
        | Kind::Timeout
        | Kind::Cancelled => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn refused(error: &Error) -> Response<Body> {
    refusal(status_of(error.kind()), error)
}

fn refusal(status: StatusCode, error: &Error) -> Response<Body> {
    document(status, &serde_json::json!({ "error": error }))
}

fn document(status: StatusCode, value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(mut text) => {
            text.push(b'\n');
            full(status, JSON, text)
        }
        Err(_) => full(StatusCode::INTERNAL_SERVER_ERROR, JSON, "{}\n"),
    }
}

/// hyper leaves the body of an answer to HEAD away by itself.
fn full(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Response<Body> {
    let mut answer = Response::new(Full::new(text.into()).boxed_unsync());
    *answer.status_mut() = status;
    let value = HeaderValue::from_static(content_type);
    answer.headers_mut().insert(CONTENT_TYPE, value);
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_read_strictly() {
        let parse = |text| Query::parse(Some(text), &["reference", "wait"]);
        let query = parse("reference=nginx%3A1.27&wait=1").expect("right");
        assert_eq!(
            query.reference.as_deref(),
            Some("docker.io/library/nginx:1.27")
        );
        assert!(query.wait);
        assert_eq!(parse("").expect("nothing"), Query::default());
        for (text, kind) in [
            ("reference=UPPER", Kind::InvalidReference),
            ("wait=soon", Kind::Usage),
            ("verbose=1", Kind::Usage),
            ("wait", Kind::Usage),
        ] {
            let error = parse(text).expect_err(text);
            assert_eq!(error.kind(), kind);
            assert!(error.hint_text().is_some(), "{text}");
        }
        assert!(Query::parse(Some("wait=1"), &["reference"]).is_err());
    }

    #[test]
    fn scrapers_see_figures_and_nothing_else() {
        for path in ["/v1/status", "/v1/host", "/v1/events", "/v1/sync", "/", ""] {
            assert_eq!(Route::of(path, Surface::Scrapes), None, "{path}");
        }
        for path in ["/metrics", "/healthz", "/readyz"] {
            let route = Route::of(path, Surface::Scrapes);
            assert_eq!(route, Route::of(path, Surface::Control));
            assert!(route.is_some_and(|route| !route.takes(&Method::POST)));
        }
    }
}
