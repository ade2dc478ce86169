//! In which order the servers of a repository are asked for one thing, and what is said
//! when none of them delivers.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{Mutex, PoisonError},
};

use super::{
    auth::Subject,
    endpoint::Capabilities,
    health,
    repo::{At, Repo},
};
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::Digest,
};

/// Blobs remembered for a repository; an image has some dozens.
const MAX_BLOBS: usize = 1024;

/// What came of the servers that were asked for each blob, by their place in the list.
#[derive(Debug, Default)]
pub(super) struct Troubles(Mutex<BTreeMap<Digest, Trouble>>);

#[derive(Debug, Default)]
struct Trouble {
    /// Bytes of these are in what the reader holds.
    served: BTreeSet<usize>,
    /// These broke off, or sent something else: asked after all others.
    last: BTreeSet<usize>,
}

impl Troubles {
    fn with<T>(&self, digest: &Digest, then: impl FnOnce(&mut Trouble) -> T) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= MAX_BLOBS && !all.contains_key(digest) {
            all.clear();
        }
        then(all.entry(digest.clone()).or_default())
    }

    /// A body begins to come from there.
    pub(super) fn serves(&self, digest: &Digest, index: usize, from_start: bool) {
        self.with(digest, |trouble| {
            if from_start {
                trouble.served.clear();
            }
            trouble.served.insert(index);
        });
    }

    /// A body from there broke off. Whether of `all` somebody else is left.
    pub(super) fn broke(&self, digest: &Digest, index: usize, all: &BTreeSet<usize>) -> bool {
        self.with(digest, |trouble| {
            trouble.last.insert(index);
            all.iter().any(|other| !trouble.last.contains(other))
        })
    }

    /// What came was not the blob. Those who sent it, and whether somebody else is left
    /// of `all`.
    pub(super) fn distrust(&self, digest: &Digest, all: &BTreeSet<usize>) -> (Vec<usize>, bool) {
        self.with(digest, |trouble| {
            let mut guilty = std::mem::take(&mut trouble.served);
            // Of several, nobody knows who it was; the registry itself is asked alone
            // before it is blamed.
            if guilty.len() > 1
                && let Some(registry) = all.last()
            {
                guilty.remove(registry);
            }
            let before = trouble.last.len();
            trouble.last.extend(&guilty);
            // Those who were asked before are not worth another try: this must end.
            let news = trouble.last.len() > before;
            let others = all.iter().any(|index| !trouble.last.contains(index));
            (guilty.into_iter().collect(), news && others)
        })
    }

    fn is_last(&self, digest: &Digest, index: usize) -> bool {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(digest)
            .is_some_and(|trouble| trouble.last.contains(&index))
    }
}

/// The servers still to be asked for one thing, and what the others said.
pub(super) struct Asking<'a> {
    repo: &'a Repo,
    queue: VecDeque<usize>,
    /// Passed over, because they failed a moment ago.
    passed: Vec<usize>,
    /// By place in the list; `None` is one that was passed over.
    outcomes: BTreeMap<usize, (String, Option<Error>)>,
    /// The place of the one whose word counts, the last of the list: the registry itself,
    /// as a rule. It alone is waited for.
    authority: Option<usize>,
    second_round: bool,
}

impl<'a> Asking<'a> {
    /// For what `able` servers have; `blob` says that a blob is wanted.
    pub(super) fn new(
        repo: &'a Repo,
        able: fn(Capabilities) -> bool,
        blob: Option<&Digest>,
    ) -> Result<Self> {
        let endpoints = repo.endpoints()?;
        let mut queue: Vec<usize> = (0..endpoints.len())
            .filter(|index| able(endpoints[*index].capabilities()))
            .collect();
        let authority = queue.last().copied();
        if let Some(digest) = blob {
            // Stable: otherwise the order of preference stays.
            queue.sort_by_key(|index| repo.troubles.is_last(digest, *index));
        }
        Ok(Self {
            repo,
            queue: queue.into(),
            passed: Vec::new(),
            outcomes: BTreeMap::new(),
            authority,
            second_round: false,
        })
    }

    /// The next server, unless it is known to be dead and another follows.
    pub(super) fn next(&mut self) -> Option<At<'a>> {
        let endpoints = self.repo.endpoints().ok()?;
        loop {
            let Some(index) = self.queue.pop_front() else {
                if self.second_round || !self.worth_another_round() {
                    return None;
                }
                self.second_round = true;
                self.queue.extend(std::mem::take(&mut self.passed));
                continue;
            };
            let endpoint = endpoints.get(index)?;
            let hurried = self.authority != Some(index);
            if hurried
                && !self.second_round
                && let Err(why) = self.repo.health().allows(&endpoint.route().origin)
            {
                let line = format!(
                    "{}: not asked, because it failed a moment ago: {why}",
                    endpoint.authority()
                );
                self.outcomes.insert(index, (line, None));
                self.passed.push(index);
                continue;
            }
            return Some(At {
                repo: self.repo,
                endpoint,
                index,
                subject: Subject {
                    hurried,
                    ..Subject::new(self.repo.reference().repository(), endpoint)
                },
            });
        }
    }

    /// Whether the servers that were passed over could still help: the one whose word
    /// counts is not there to be asked.
    fn worth_another_round(&self) -> bool {
        let last = self.authority.and_then(|index| self.outcomes.get(&index));
        matches!(last, Some((_, Some(error))) if matches!(error.kind(), Kind::Unavailable | Kind::Timeout))
    }

    /// It did not deliver; the next one is asked.
    pub(super) fn failed(&mut self, at: &At<'_>, error: Error) {
        let host = at.endpoint.authority();
        let causes = error.causes().join("; ");
        let line = if causes.is_empty() {
            format!("{host}: {}", error.message())
        } else if causes.contains(&host) {
            causes
        } else {
            format!("{host}: {causes}")
        };
        tracing::debug!(host, error = %error, why = line, "failed, the next host is asked");
        // Headers that came in time have closed its breaker; a body that did not counts more.
        if error.kind() == Kind::Timeout {
            let origin = &at.endpoint.route().origin;
            let why = error.causes().join("; ");
            self.repo.health().bad(origin, health::DEAD, None, &why);
        }
        if error.kind() == Kind::InvalidContent && !self.queue.is_empty() {
            self.repo.say(format!("{line}; the next host is asked"));
        }
        self.outcomes.insert(at.index, (line, Some(error)));
    }

    /// The error of a repository whose servers all failed: what the registry itself said
    /// decides, and each server's outcome is a cause of its own, in order of preference.
    pub(super) fn verdict(mut self) -> Error {
        let decisive = self.authority;
        let error = decisive.and_then(|index| self.outcomes.get_mut(&index)?.1.take());
        let error = match error {
            Some(error) if self.outcomes.len() == 1 => error,
            Some(error) => {
                let mut whole = Error::new(error.kind(), error.message());
                for (line, _) in self.outcomes.values() {
                    whole = whole.because(line);
                }
                if let Some(hint) = error.hint_text() {
                    whole = whole.hint(hint);
                }
                let whole = if error.is_of_clock() {
                    whole.of_clock()
                } else {
                    whole
                };
                whole.retry(error.is_retryable()).after(error.retry_after())
            }
            None => Error::new(Kind::Config, "no server is configured for it")
                .because("none of the hosts in its hosts.toml has the capability that is needed")
                .hint("a host needs `resolve` for tags, and `pull` for content"),
        };
        self.repo.named(error)
    }
}
