//! Who is let in: nobody asked, Basic, a token server in all its dialects, signed addresses.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::time::{Duration, Instant};

use super::Request;
use crate::http::basic;

/// Every token begins so: no output of the program may hold it.
pub const SECRET_TOKEN: &str = "token-of-the-lab";
/// Every signature begins so: no output of the program may hold it.
pub const SIGNATURE: &str = "signed-by-the-lab";

/// What the registry wants to see before it serves content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Auth {
    /// Nothing.
    Open,
    /// A user and a password, with every request.
    Basic(String, String),
    /// A token from its own endpoint; anonymous ones are given when no user is named.
    Bearer(Option<(String, String)>),
    /// A token from a token server that may be odd.
    Tokens(Tokens),
    /// As object storage behind a registry: a signature ([`super::Action::Sign`]) and nothing
    /// else; a request with `Authorization` is refused.
    Storage(Signed),
}

impl Auth {
    /// The user's token, or nothing.
    pub fn user(user: &str, password: &str) -> Self {
        Self::Bearer(Some((user.to_owned(), password.to_owned())))
    }
}

/// A token server and what its tokens are worth.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one oddity, in any combination"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Who gets one by password.
    pub user: Option<(String, String)>,
    /// Who gets one by POST with this identity token.
    pub identity: Option<String>,
    /// Whether nobody in particular gets one, too.
    pub anonymous: bool,
    /// Whether the answer has `token`.
    pub token: bool,
    /// Whether the answer has `access_token`.
    pub access_token: bool,
    /// What it says of the lifetime.
    pub expires_in: Option<u64>,
    /// How long the registry takes a token after its first use.
    pub lives: Option<Duration>,
    /// How many requests a token is good for.
    pub uses: Option<u32>,
    /// Another server to ask; this one then takes that one's tokens.
    pub realm: Option<String>,
    /// Whether the challenge names the scope.
    pub scope: bool,
    /// Whether a token without scope is of no use (GHCR).
    pub needs_scope: bool,
    /// Whether users are refused (403) although they have a token, as with an expired account.
    pub refuses_users: bool,
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            user: None,
            identity: None,
            anonymous: true,
            token: true,
            access_token: true,
            expires_in: Some(300),
            lives: None,
            uses: None,
            realm: None,
            scope: true,
            needs_scope: false,
            refuses_users: false,
        }
    }
}

/// What a signature of the storage is good for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Signed {
    /// So many requests.
    pub requests: Option<u32>,
    /// So many bytes of bodies; the connection is cut there.
    pub bytes: Option<u64>,
    /// The first so many signatures are refused from the start.
    pub stale: u32,
}

/// What was given out and what became of it.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    tokens: u32,
    signatures: u32,
    seen: HashMap<String, Seen>,
}

#[derive(Debug)]
struct Seen {
    since: Instant,
    uses: u32,
    bytes: u64,
}

impl Ledger {
    /// How often this was seen before, since when, and what was sent for it.
    fn note(&mut self, key: &str) -> &mut Seen {
        self.seen.entry(key.to_owned()).or_insert_with(|| Seen {
            since: Instant::now(),
            uses: 0,
            bytes: 0,
        })
    }

    pub(super) fn charge(&mut self, request: &Request, bytes: u64) {
        if let Some(signature) = signature(request) {
            self.note(&signature).bytes += bytes;
        }
    }
}

/// The verdict on a request.
pub(super) enum Admission {
    Welcome,
    /// The same, for so many bytes.
    Limited(u64),
    /// 401 with this challenge.
    Challenge(String),
    /// This status and body.
    Refused(u16, &'static str),
}

/// Whether the request may have content.
pub(super) fn admit(
    auth: &Auth,
    ledger: &mut Ledger,
    host: &str,
    repository: &str,
    request: &Request,
) -> Admission {
    let sent = request.header("authorization").unwrap_or_default();
    match auth {
        Auth::Open => Admission::Welcome,
        Auth::Basic(user, password) if sent == basic(user, password) => Admission::Welcome,
        Auth::Basic(..) => Admission::Challenge("Basic realm=\"lab\"".to_owned()),
        Auth::Bearer(user) => {
            let tokens = of_user(user.clone());
            token_admits(&tokens, ledger, host, repository, sent)
        }
        Auth::Tokens(tokens) => token_admits(tokens, ledger, host, repository, sent),
        Auth::Storage(terms) => storage_admits(*terms, ledger, request),
    }
}

fn of_user(user: Option<(String, String)>) -> Tokens {
    Tokens {
        anonymous: user.is_none(),
        user,
        ..Tokens::default()
    }
}

fn token_admits(
    tokens: &Tokens,
    ledger: &mut Ledger,
    host: &str,
    repository: &str,
    sent: &str,
) -> Admission {
    let mut challenge = format!(
        "Bearer realm=\"{}\",service=\"lab\"",
        tokens
            .realm
            .clone()
            .unwrap_or_else(|| format!("http://{host}/token"))
    );
    if tokens.scope {
        let _infallible = write!(challenge, ",scope=\"repository:{repository}:pull\"");
    }
    let Some(token) = sent
        .strip_prefix("Bearer ")
        .filter(|token| token.starts_with(SECRET_TOKEN))
    else {
        return Admission::Challenge(challenge);
    };
    if tokens.refuses_users && token.contains("-user-") {
        return Admission::Refused(403, DENIED);
    }
    if tokens.needs_scope && !token.contains("-scoped-") {
        return Admission::Challenge(challenge);
    }
    let seen = ledger.note(token);
    let dead = tokens.uses.is_some_and(|uses| seen.uses >= uses)
        || tokens
            .lives
            .is_some_and(|lives| seen.since.elapsed() > lives);
    seen.uses += 1;
    if dead {
        let error = ",error=\"invalid_token\"";
        return Admission::Challenge(challenge + error);
    }
    Admission::Welcome
}

const DENIED: &str = "{\"errors\":[{\"code\":\"DENIED\",\"message\":\"denied\"}]}";

fn signature(request: &Request) -> Option<String> {
    let found = request
        .query
        .split('&')
        .find_map(|pair| pair.strip_prefix("X-Amz-Signature="))?;
    found.starts_with(SIGNATURE).then(|| found.to_owned())
}

fn storage_admits(terms: Signed, ledger: &mut Ledger, request: &Request) -> Admission {
    if request.authorized() {
        return Admission::Refused(
            400,
            "<Error><Code>InvalidArgument</Code><Message>Only one auth mechanism allowed</Message></Error>",
        );
    }
    let expired = "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>";
    let Some(signature) = signature(request) else {
        return Admission::Refused(403, expired);
    };
    let serial = signature.rsplit('-').next().and_then(|n| n.parse().ok());
    if serial.is_none_or(|serial: u32| serial <= terms.stale) {
        return Admission::Refused(403, expired);
    }
    let seen = ledger.note(&signature);
    let dead = terms.requests.is_some_and(|n| seen.uses >= n)
        || terms.bytes.is_some_and(|n| seen.bytes >= n);
    seen.uses += 1;
    match terms.bytes {
        _ if dead => Admission::Refused(403, expired),
        Some(n) => Admission::Limited(n - seen.bytes),
        None => Admission::Welcome,
    }
}

/// The token server's answer: status and body.
pub(super) fn token(
    auth: &Auth,
    ledger: &mut Ledger,
    request: &Request,
    form: &[u8],
) -> (u16, String) {
    let tokens = match auth {
        Auth::Tokens(tokens) => tokens.clone(),
        Auth::Bearer(user) => of_user(user.clone()),
        _ => Tokens::default(),
    };
    let form = String::from_utf8_lossy(form);
    let by_password = tokens.user.as_ref().is_some_and(|(user, password)| {
        request.header("authorization") == Some(basic(user, password).as_str())
            || (form.contains(&format!("username={user}"))
                && form.contains(&format!("password={password}")))
    });
    let by_identity = tokens.identity.as_ref().is_some_and(|identity| {
        request.method == "POST"
            && form.contains("grant_type=refresh_token")
            && form.contains(&format!("refresh_token={identity}"))
    });
    let nobody = request.header("authorization").is_none() && request.method == "GET";
    if !(by_password || by_identity || (tokens.anonymous && nobody)) {
        let body = "{\"errors\":[{\"code\":\"UNAUTHORIZED\",\"message\":\"wrong password\"}]}";
        return (401, body.to_owned());
    }
    let who = if nobody { "anonymous" } else { "user" };
    let scoped = request.query.contains("scope=repository") || form.contains("scope=repository");
    let scope = if scoped { "scoped" } else { "bare" };
    ledger.tokens += 1;
    let token = format!("{SECRET_TOKEN}-{who}-{scope}-{}", ledger.tokens);
    let mut answer = serde_json::json!({});
    if tokens.token {
        answer["token"] = token.clone().into();
    }
    if tokens.access_token {
        answer["access_token"] = token.into();
    }
    if let Some(seconds) = tokens.expires_in {
        answer["expires_in"] = seconds.into();
    }
    (200, answer.to_string())
}

/// The next address of the storage for a request.
pub(super) fn signed(ledger: &mut Ledger, to: &str, request: &Request) -> String {
    ledger.signatures += 1;
    format!(
        "{to}{}?X-Amz-Expires=300&X-Amz-Signature={SIGNATURE}-{}",
        request.path, ledger.signatures
    )
}
