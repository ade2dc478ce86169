//! Who asks: anonymously, with Basic, or with a bearer token.
//!
//! The first request to a repository is anonymous; what the registry then demands is
//! remembered, so that each later request needs no refusal first. Grants belong to the
//! origin that demanded them and never leave it (`transport`).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use reqwest::header::{HeaderValue, WWW_AUTHENTICATE};
use tokio::time::Instant;

use super::{
    challenge::{self, Bearer, Challenge},
    credentials::{Credentials, Found},
    demands::{Demands, MAX_REMEMBERED},
    docker_config::Login,
    endpoint::{Endpoint, Route},
    notices::Notices,
    retry::Budget,
    token,
    transport::{Answer, Ask, Transport},
};
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::Repository,
};

/// Basic credentials are looked up again after this, as files and helpers change.
const BASIC_LIFETIME: Duration = Duration::from_secs(10 * 60);
/// Each layer of a private image would ask again whether it is public.
const DENIED: Duration = Duration::from_secs(30);
/// Each way to a better answer is tried once; this only guards against a mistake here.
const MAX_ROUNDS: u32 = 8;

/// The repository that is asked, and the server that is asked for it.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    pub(super) domain: Arc<str>,
    pub(super) path: Arc<str>,
    pub(super) origin: String,
    pub(super) plain_http: bool,
    pub(super) host: Option<String>,
    /// Under which name credentials are looked up: a mirror's own, at a mirror.
    pub(super) account: Arc<str>,
    pub(super) is_mirror: bool,
    pub(super) route: Arc<Route>,
    /// Another server follows, so this one is not waited for as long.
    pub(super) hurried: bool,
}

impl Subject {
    pub(super) fn new(repository: &Repository, endpoint: &Endpoint) -> Self {
        Self {
            domain: repository.domain().into(),
            path: repository.path().into(),
            origin: endpoint.origin(),
            plain_http: endpoint.is_plain_http(),
            host: endpoint.host().map(str::to_owned),
            account: if endpoint.is_mirror() {
                endpoint.authority().into()
            } else {
                repository.domain().into()
            },
            is_mirror: endpoint.is_mirror(),
            route: endpoint.route().clone(),
            hurried: false,
        }
    }

    fn scope(&self) -> String {
        format!("repository:{}:pull", self.path)
    }

    /// Our own scope and the challenge's, each once, in a stable order.
    fn scopes(&self, bearer: &Bearer) -> Vec<String> {
        let theirs = bearer.scope.as_deref().unwrap_or_default();
        // A mirror may have the repository under another name, which only it knows.
        let mut scopes = if self.is_mirror && !theirs.trim().is_empty() {
            Vec::new()
        } else {
            vec![self.scope()]
        };
        scopes.extend(theirs.split_ascii_whitespace().map(str::to_owned));
        scopes.sort();
        scopes.dedup();
        scopes
    }
}

/// In whose name a request went out.
#[derive(Debug, Clone, Default)]
pub(super) struct Who {
    /// The source of the credentials that were presented, if any were.
    pub(super) source: Option<Arc<str>>,
    /// The source of credentials that were presented before, and refused.
    pub(super) refused: Option<Arc<str>>,
}

/// What may be presented.
#[derive(Debug, Clone)]
struct Access {
    header: HeaderValue,
    source: Option<Arc<str>>,
    /// Made for this request, so that making another would not help.
    fresh: bool,
}

struct Grant {
    access: Access,
    until: Instant,
}

#[derive(PartialEq, Eq, Hash, Clone)]
struct GrantKey {
    /// Mirrors may name the same realm; what one may present is not the other's.
    account: Arc<str>,
    realm: String,
    service: Option<String>,
    scopes: Vec<String>,
    anonymous: bool,
}

/// What is in a slot: a grant, or that there is none for nobody in particular.
#[derive(Default)]
enum Kept {
    #[default]
    Nothing,
    Grant(Grant),
    Denied(Error, Instant),
}

type Slot = Arc<tokio::sync::Mutex<Kept>>;

/// The grants of one client.
pub(super) struct Auth {
    credentials: Credentials,
    notices: Notices,
    demands: Demands,
    /// A slot is locked while its grant is being fetched, so that ten blobs that start
    /// together cost one token.
    slots: Mutex<HashMap<GrantKey, Slot>>,
}

/// What was tried for one request.
#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one way that is tried once, in any order"
)]
struct Round {
    /// What is presented is what other repositories of the server wanted.
    guessed: bool,
    asked: bool,
    renewed: bool,
    fresh_redirect: bool,
    anonymous: bool,
    refused: Option<Arc<str>>,
}

enum Step {
    Again(Option<Access>),
    GiveUp,
}

/// A grant that could not be had, and whose credentials were used for it.
struct Refused {
    error: Error,
    source: Option<Arc<str>>,
}

impl Auth {
    pub(super) fn new(credentials: Credentials, notices: Notices) -> Self {
        Self {
            credentials,
            notices,
            demands: Demands::default(),
            slots: Mutex::default(),
        }
    }

    /// Sends the request in the best name there is. The answer is the registry's last
    /// word; it may still be a refusal.
    pub(super) async fn send(
        &self,
        transport: &Transport,
        subject: &Subject,
        ask: &Ask,
        budget: &mut Budget,
    ) -> Result<(Answer, Who)> {
        let mut round = Round::default();
        let mut access = self.ready(transport, subject, &mut round, budget).await?;
        for turn in 0.. {
            let header = access.as_ref().map(|access| &access.header);
            let answer = transport.send(ask, header, budget).await?;
            let status = answer.status().as_u16();
            let who = Who {
                source: access.as_ref().and_then(|access| access.source.clone()),
                refused: round.refused.clone(),
            };
            if turn >= MAX_ROUNDS {
                return Ok((answer, who));
            }
            if answer.elsewhere {
                // A signed address may be stale (from a cache on the way): the
                // registry gives a fresh one, once.
                if matches!(status, 400 | 401 | 403 | 410) && !round.fresh_redirect {
                    round.fresh_redirect = true;
                    continue;
                }
                return Ok((answer, who));
            }
            if !matches!(status, 401 | 403) {
                if answer.status().is_success()
                    && let Some(source) = &round.refused
                {
                    self.notices.say(format!("{} refused the credentials from {source} and accepted an anonymous request; renew or remove them", subject.domain));
                    self.demands.anonymous_helped(subject);
                }
                return Ok((answer, who));
            }
            match self
                .next(
                    transport,
                    subject,
                    &answer,
                    access.take(),
                    &mut round,
                    budget,
                )
                .await?
            {
                Step::Again(next) => access = next,
                Step::GiveUp => {
                    let who = Who {
                        refused: round.refused,
                        ..who
                    };
                    return Ok((answer, who));
                }
            }
        }
        Err(Error::new(
            Kind::Internal,
            "the requests of a pull never end",
        ))
    }

    /// What can be presented from the start. A refusal here is no end: the registry's
    /// answer to an anonymous request says what it wants now.
    async fn ready(
        &self,
        transport: &Transport,
        subject: &Subject,
        round: &mut Round,
        budget: &mut Budget,
    ) -> Result<Option<Access>> {
        let Some(known) = self.demands.of(subject) else {
            let guess = self.guess(transport, subject, budget).await;
            round.guessed = guess.is_some();
            return Ok(guess);
        };
        round.anonymous = known.anonymous;
        match self
            .grant(
                transport,
                subject,
                &known.challenge,
                known.anonymous,
                None,
                budget,
            )
            .await
        {
            Ok(access) => Ok(access),
            Err(refused) if refused.error.kind() == Kind::Unauthorized => Ok(None),
            Err(refused) => Err(refused.error),
        }
    }

    /// What the server wanted for its other repositories. Where that does not help, its
    /// answer to an anonymous request says what does.
    async fn guess(
        &self,
        transport: &Transport,
        subject: &Subject,
        budget: &mut Budget,
    ) -> Option<Access> {
        // What a mirror calls the repository only its own challenge tells.
        if subject.is_mirror {
            return None;
        }
        let challenge = self.demands.usual(&subject.origin)?;
        let grant = self.grant(transport, subject, &challenge, false, None, budget);
        grant.await.ok()?
    }

    /// What to present after a 401 or 403.
    async fn next(
        &self,
        transport: &Transport,
        subject: &Subject,
        answer: &Answer,
        used: Option<Access>,
        round: &mut Round,
        budget: &mut Budget,
    ) -> Result<Step> {
        if std::mem::take(&mut round.guessed) {
            // As if nothing were known: this repository may be public, or in another way.
            return Ok(Step::Again(None));
        }
        let lines = answer.headers().get_all(WWW_AUTHENTICATE);
        let challenges = challenge::parse(lines.iter().filter_map(|line| line.to_str().ok()));
        let mut challenge = challenges.into_iter().next();
        let unauthorized = answer.status().as_u16() == 401;
        if unauthorized {
            let Some(challenge) = &challenge else {
                return Ok(Step::GiveUp);
            };
            self.demands.remember(subject, challenge, round.anonymous);
        } else if used.as_ref().is_some_and(|used| !used.fresh) {
            // Some registries with Basic say 403 of a login that has expired. It is looked up
            // again, which costs no request; a token would cost one for each denial.
            let known = self.demands.of(subject).map(|known| known.challenge);
            challenge = challenge
                .or(known)
                .filter(|challenge| matches!(challenge, Challenge::Basic));
        }
        if let Some(challenge) = &challenge {
            let stale = match &used {
                None if unauthorized && !round.asked => {
                    round.asked = true;
                    Some(None)
                }
                Some(used) if !used.fresh && !round.renewed => {
                    round.renewed = true;
                    Some(Some(used.header.clone()))
                }
                _ => None,
            };
            if let Some(stale) = stale {
                let step = self
                    .obtain(transport, subject, challenge, stale.as_ref(), round, budget)
                    .await?;
                let same = matches!(&step, Step::Again(Some(next)) if Some(&next.header) == stale.as_ref());
                // The same login again would be denied again.
                if unauthorized || !same {
                    return Ok(step);
                }
            }
        }
        // A refusal of who asked. Old credentials must not lock anybody out of what is
        // public.
        let Some(source) = used.and_then(|used| used.source) else {
            return Ok(Step::GiveUp);
        };
        if round.anonymous {
            return Ok(Step::GiveUp);
        }
        round.anonymous = true;
        round.asked = true;
        round.refused = Some(source);
        match challenge.or_else(|| self.demands.of(subject).map(|known| known.challenge)) {
            Some(challenge @ Challenge::Bearer(_)) => {
                self.obtain(transport, subject, &challenge, None, round, budget)
                    .await
            }
            Some(Challenge::Basic) | None => Ok(Step::Again(None)),
        }
    }

    /// A grant; if the token server refuses the stored credentials, nobody's.
    async fn obtain(
        &self,
        transport: &Transport,
        subject: &Subject,
        challenge: &Challenge,
        stale: Option<&HeaderValue>,
        round: &mut Round,
        budget: &mut Budget,
    ) -> Result<Step> {
        let first = self
            .grant(
                transport,
                subject,
                challenge,
                round.anonymous,
                stale,
                budget,
            )
            .await;
        let outcome = match first {
            Err(Refused {
                error,
                source: Some(source),
            }) if error.kind() == Kind::Unauthorized && !round.anonymous => {
                round.anonymous = true;
                round.refused = Some(source);
                self.grant(transport, subject, challenge, true, None, budget)
                    .await
            }
            other => other,
        };
        match outcome {
            Ok(Some(access)) => Ok(Step::Again(Some(access))),
            Ok(None) => Ok(Step::GiveUp),
            Err(Refused { error, .. }) => Err(match &round.refused {
                Some(source) if error.kind() == Kind::Unauthorized => error.because(format_args!(
                    "the credentials from {source} were refused as well"
                )),
                _ => error,
            }),
        }
    }

    /// A cached grant, or a new one. `stale` is one that was just refused. `None`: the
    /// registry wants Basic, and there is no login.
    async fn grant(
        &self,
        transport: &Transport,
        subject: &Subject,
        challenge: &Challenge,
        anonymous: bool,
        stale: Option<&HeaderValue>,
        budget: &mut Budget,
    ) -> Result<Option<Access>, Refused> {
        let key = match challenge {
            Challenge::Basic => GrantKey {
                account: subject.account.clone(),
                realm: subject.origin.clone(),
                service: None,
                scopes: vec![subject.scope()],
                anonymous,
            },
            Challenge::Bearer(bearer) => GrantKey {
                account: subject.account.clone(),
                realm: bearer.realm.clone(),
                service: bearer.service.clone(),
                scopes: subject.scopes(bearer),
                anonymous,
            },
        };
        let slot = self.slot(&key);
        let mut slot = slot.lock().await;
        match &*slot {
            Kept::Grant(grant)
                if Instant::now() < grant.until && stale != Some(&grant.access.header) =>
            {
                return Ok(Some(grant.access.clone()));
            }
            Kept::Denied(error, until) if Instant::now() < *until => {
                return Err(Refused {
                    error: error.clone(),
                    source: None,
                });
            }
            _ => *slot = Kept::Nothing,
        }
        let found = if anonymous {
            None
        } else {
            self.credentials
                .lookup(
                    &subject.account,
                    &subject.path,
                    subject.is_mirror,
                    &self.notices,
                )
                .await
                .map_err(|error| Refused {
                    error: error.registry(&subject.domain),
                    source: None,
                })?
        };
        let source = found.as_ref().map(|found| found.source.clone());
        let made = self
            .make(
                transport,
                subject,
                challenge,
                &key.scopes,
                found.as_ref(),
                budget,
            )
            .await
            .map_err(|error| {
                if anonymous && error.kind() == Kind::Unauthorized {
                    *slot = Kept::Denied(error.clone(), Instant::now() + DENIED);
                }
                Refused {
                    error,
                    source: source.clone(),
                }
            })?;
        let Some((header, lifetime)) = made else {
            return Ok(None);
        };
        let access = Access {
            header,
            source,
            fresh: true,
        };
        *slot = Kept::Grant(Grant {
            access: Access {
                fresh: false,
                ..access.clone()
            },
            // Renewed a little before its end, so that it does not end on the way.
            until: Instant::now() + lifetime.mul_f32(0.9),
        });
        Ok(Some(access))
    }

    async fn make(
        &self,
        transport: &Transport,
        subject: &Subject,
        challenge: &Challenge,
        scopes: &[String],
        found: Option<&Found>,
        budget: &mut Budget,
    ) -> Result<Option<(HeaderValue, Duration)>> {
        match (challenge, found.map(|found| &found.login)) {
            (Challenge::Basic, Some(Login::Password { user, password })) => {
                Ok(Some((token::basic(user, password)?, BASIC_LIFETIME)))
            }
            (_, Some(Login::Registry(secret))) => Ok(Some((
                token::header(&format!("Bearer {}", secret.reveal()))?,
                BASIC_LIFETIME,
            ))),
            (Challenge::Basic, None | Some(Login::Identity(_))) => Ok(None),
            (Challenge::Bearer(bearer), _) => {
                let token = token::fetch(transport, subject, bearer, scopes, found, budget).await?;
                let header = token::header(&format!("Bearer {}", token.secret.reveal()))?;
                Ok(Some((header, token.lifetime)))
            }
        }
    }

    fn slot(&self, key: &GrantKey) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= MAX_REMEMBERED {
            slots.clear();
        }
        slots.entry(key.clone()).or_default().clone()
    }
}
