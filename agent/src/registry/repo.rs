//! One repository: its manifests and blobs, from the servers that answer for it.

use std::{collections::BTreeSet, sync::Arc};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use reqwest::{Method, Url};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    announced::{DocumentHeaders, described, fitting, inline, is_foreign},
    asking::{Asking, Troubles},
    auth::{Subject, Who},
    blob::{self, Misfit, Reading},
    body::SMALL_BODY_TIME,
    client::Client,
    endpoint::{Capabilities, Endpoint},
    failure::{self, Target},
    health::{self, Health, Namespaced},
    resume::{self, Opened},
    retry::{Budget, Effort, Policy},
    said,
    transport::{Answer, Ask},
};
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::{Descriptor, Digest, Document, Hasher, Reference, Verified},
    source::{BlobStream, Source},
};

/// All six manifest types in one header and without `q`: some registries read only
/// the first header, some misread weights. Schema 1 is asked for so that it is
/// recognised and refused by name.
const ACCEPT_MANIFEST: &str = concat!(
    "application/vnd.oci.image.index.v1+json, ",
    "application/vnd.oci.image.manifest.v1+json, ",
    "application/vnd.docker.distribution.manifest.list.v2+json, ",
    "application/vnd.docker.distribution.manifest.v2+json, ",
    "application/vnd.docker.distribution.manifest.v1+prettyjws, ",
    "application/vnd.docker.distribution.manifest.v1+json, ",
    "*/*"
);
/// For registries that refuse the others (406).
const ACCEPT_SINGLE: &str = concat!(
    "application/vnd.oci.image.manifest.v1+json, ",
    "application/vnd.docker.distribution.manifest.v2+json"
);
const ACCEPT_BLOB: &str = "*/*";

/// The limit that registries themselves have.
pub(super) const MAX_MANIFEST: usize = 4 << 20;
/// Addresses of a foreign layer that are tried.
const MAX_FOREIGN: usize = 4;

/// A repository of a registry, bound to the reference it was made for.
#[derive(Debug, Clone)]
pub struct Repo {
    pub(super) client: Client,
    reference: Reference,
    /// A domain that is no host is reported when it is first used.
    endpoints: Result<Arc<[Endpoint]>>,
    /// Shared by all requests that this value and its clones make.
    effort: Arc<Effort>,
    pub(super) troubles: Arc<Troubles>,
}

impl Repo {
    pub(super) fn new(
        client: Client,
        reference: Reference,
        endpoints: Result<Vec<Endpoint>>,
    ) -> Self {
        Self {
            client,
            reference,
            endpoints: endpoints.map(Into::into),
            effort: Arc::default(),
            troubles: Arc::default(),
        }
    }

    /// The reference this was made for.
    pub fn reference(&self) -> &Reference {
        &self.reference
    }

    /// Asks by HEAD what the reference points at. `None` when the answer cannot be
    /// used (no digest, no length, another status than 200): then [`Repo::get`] tells.
    /// It is a claim of the registry; nothing is verified yet.
    pub async fn head(&self) -> Result<Option<Descriptor>> {
        let mut asking = Asking::new(self, self.resolving(), None)?;
        let mut unclear = false;
        while let Some(at) = asking.next() {
            match at.head().await {
                Ok(Some(found)) => return Ok(Some(found)),
                // Another host may say it; if none does, the GET asks all of them again.
                Ok(None) => unclear = true,
                Err(error) => asking.failed(&at, error),
            }
        }
        if unclear {
            return Ok(None);
        }
        Err(asking.verdict())
    }

    /// Fetches what the reference points at. A digest reference is verified; for a tag
    /// the body's own hash is the digest, whatever the registry's header says.
    pub async fn get(&self) -> Result<Document> {
        let mut asking = Asking::new(self, self.resolving(), None)?;
        while let Some(at) = asking.next() {
            match at.get().await {
                Ok(found) => return Ok(found),
                Err(error) => asking.failed(&at, error),
            }
        }
        Err(asking.verdict())
    }

    /// What a server must be able to do, to be asked for the reference: a digest cannot
    /// be answered wrongly.
    fn resolving(&self) -> fn(Capabilities) -> bool {
        if self.reference.digest().is_some() {
            |can| can.pull
        } else {
            |can| can.resolve
        }
    }

    pub(super) fn effort(&self) -> &Effort {
        &self.effort
    }

    pub(super) fn blob_budget(&self) -> Budget {
        Budget::for_blob(self.client.shared.retry, self.effort.clone())
    }

    /// Waits until another transfer may begin.
    pub(super) async fn slot(&self) -> Option<OwnedSemaphorePermit> {
        // Never closed; without it nothing but the limit is lost.
        let slots = self.client.shared.slots.clone();
        slots.acquire_owned().await.ok()
    }

    /// Opens a blob at the first server that delivers it from `offset` on.
    pub(super) async fn open(
        &self,
        descriptor: &Descriptor,
        offset: u64,
        budget: &mut Budget,
    ) -> Result<Opened> {
        let digest = &descriptor.digest;
        let mut asking = Asking::new(self, |can| can.pull, Some(digest))?;
        while let Some(at) = asking.next() {
            match at.blob(descriptor, offset, budget).await {
                Ok(found) => {
                    self.troubles.serves(digest, at.index, offset == 0);
                    return Ok(found);
                }
                Err(error) => asking.failed(&at, error),
            }
        }
        Err(asking.verdict())
    }

    /// A body from the server at `index` broke off. Whether another one is there that did
    /// not yet fail with this blob: it need not be waited for.
    pub(super) fn broke(&self, descriptor: &Descriptor, index: usize, error: &Error) -> bool {
        let Ok(endpoints) = self.endpoints() else {
            return false;
        };
        if let Some(endpoint) = endpoints.get(index) {
            let weight = if error.kind() == Kind::Timeout {
                health::DEAD
            } else {
                health::ODD
            };
            let why = error.causes().join("; ");
            self.health()
                .bad(&endpoint.route().origin, weight, None, &why);
        }
        self.troubles
            .broke(&descriptor.digest, index, &Self::pulling(endpoints))
    }

    fn pulling(endpoints: &[Endpoint]) -> BTreeSet<usize> {
        let able = endpoints.iter().enumerate();
        able.filter(|(_, endpoint)| endpoint.capabilities().pull)
            .map(|(index, _)| index)
            .collect()
    }

    pub(super) fn endpoints(&self) -> Result<&[Endpoint]> {
        match &self.endpoints {
            Ok(endpoints) => Ok(endpoints),
            Err(error) => Err(self.named(error.clone())),
        }
    }

    pub(super) fn health(&self) -> &Health {
        self.client.shared.transport.health()
    }

    /// Tells the user what did not stop the work.
    pub(super) fn say(&self, text: String) {
        self.client.shared.notices.say(text);
    }

    pub(super) fn named(&self, error: Error) -> Error {
        error
            .registry(self.reference.repository().domain())
            .reference(self.reference.typed())
    }
}

impl Source for Repo {
    fn document<'a>(&'a self, descriptor: &'a Descriptor) -> BoxFuture<'a, Result<Document>> {
        Box::pin(async move {
            if let Some(bytes) = inline(descriptor) {
                let verified = Verified::check(bytes, &descriptor.digest)?;
                return fitting(Document::parse(&verified, None)?, descriptor);
            }
            let mut asking = Asking::new(self, |can| can.pull, None)?;
            while let Some(at) = asking.next() {
                match at.document(descriptor).await {
                    Ok(found) => return Ok(found),
                    Err(error) => asking.failed(&at, error),
                }
            }
            Err(asking.verdict())
        })
    }

    fn blob<'a>(
        &'a self,
        descriptor: &'a Descriptor,
        offset: u64,
    ) -> BoxFuture<'a, Result<BlobStream>> {
        Box::pin(async move {
            if offset > descriptor.size {
                return Err(Error::new(
                    Kind::Internal,
                    format_args!(
                        "byte {offset} of a blob of {} bytes was asked for",
                        descriptor.size
                    ),
                ));
            }
            if let Some(mut bytes) = inline(descriptor) {
                let at = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                return Ok(blob::ready(bytes.split_off(at)));
            }
            if offset == descriptor.size {
                return Ok(blob::ready(Bytes::new()));
            }
            resume::stream(self, descriptor, offset).await
        })
    }

    fn distrust(&self, descriptor: &Descriptor) -> bool {
        let Ok(endpoints) = self.endpoints() else {
            return false;
        };
        let digest = &descriptor.digest;
        let (guilty, others) = self.troubles.distrust(digest, &Self::pulling(endpoints));
        if others {
            for endpoint in guilty.into_iter().filter_map(|index| endpoints.get(index)) {
                let host = endpoint.authority();
                self.say(format!(
                    "{host} sent wrong bytes for blob {digest}; it is fetched from another host"
                ));
            }
        }
        others
    }

    fn pieced(&self, descriptor: &Descriptor) -> bool {
        self.effort.is_pieced(&descriptor.digest)
    }

    fn at_once(&self) -> usize {
        self.client.shared.at_once
    }

    fn name(&self) -> &str {
        self.reference.repository().domain()
    }
}

/// The repository at one of its servers.
pub(super) struct At<'a> {
    pub(super) repo: &'a Repo,
    pub(super) endpoint: &'a Endpoint,
    /// Its place in the list.
    pub(super) index: usize,
    pub(super) subject: Subject,
}

impl At<'_> {
    /// Every host is asked before any is waited for.
    fn budget(&self) -> Budget {
        let policy = self.repo.client.shared.retry;
        let policy = if self.subject.hurried {
            Policy { tries: 1, ..policy }
        } else {
            policy
        };
        Budget::new(policy, self.repo.effort.clone())
    }

    async fn send(&self, ask: &Ask, budget: &mut Budget) -> Result<(Answer, Who)> {
        let shared = &self.repo.client.shared;
        let origin = &self.subject.origin;
        let answered = shared
            .auth
            .send(&shared.transport, &self.subject, ask, budget)
            .await?;
        if ask.url.query().is_none() || !self.endpoint.is_mirror() {
            return Ok(answered);
        }
        let status = answered.0.status();
        if status.is_success() {
            self.repo.health().set_namespaced(origin, Namespaced::Yes);
        }
        // Strict servers refuse the parameter. One that says "not found" may know the
        // registry and lack the content: without the parameter it could name another
        // registry's tag, but not another's digest.
        let refused = status.as_u16() == 400 || (status.as_u16() == 404 && ask.target.is_pinned());
        if !refused || self.repo.health().namespaced(origin) != Namespaced::Unknown {
            return Ok(answered);
        }
        let mut bare = Ask {
            target: ask.target.clone(),
            method: ask.method.clone(),
            url: ask.url.clone(),
            accept: ask.accept,
            range: ask.range,
            form: None,
            route: ask.route.clone(),
            hurried: ask.hurried,
        };
        bare.url.set_query(None);
        let again = shared
            .auth
            .send(&shared.transport, &self.subject, &bare, budget)
            .await;
        match again {
            Ok(again) if again.0.status().is_success() => {
                self.repo.health().set_namespaced(origin, Namespaced::No);
                Ok(again)
            }
            _ => Ok(answered),
        }
    }

    fn url(&self, collection: &str, name: &str) -> Url {
        let namespaced = self.repo.health().namespaced(&self.subject.origin) != Namespaced::No;
        self.endpoint
            .url(&self.subject.path, collection, name, namespaced)
    }

    fn manifest(&self, method: Method, name: &str) -> Ask {
        Ask {
            target: Target::manifest(&self.repo.reference, name),
            method,
            url: self.url("manifests", name),
            accept: ACCEPT_MANIFEST,
            range: None,
            form: None,
            route: Some(self.endpoint.route().clone()),
            hurried: self.subject.hurried,
        }
    }

    async fn refused(&self, ask: &Ask, answer: Answer, who: &Who) -> Error {
        let error = failure::status(&ask.target, answer, who).await;
        let quotas = &self.repo.client.shared.transport.quotas;
        quotas.refused(ask, &error);
        error
    }

    async fn head(&self) -> Result<Option<Descriptor>> {
        let reference = &self.repo.reference;
        let ask = self.manifest(Method::HEAD, reference.target());
        let (answer, who) = match self.send(&ask, &mut self.budget()).await {
            Ok(answered) => answered,
            // The GET's refusal has a text; HEAD's has none.
            Err(error) if error.kind() == Kind::Unauthorized => return Ok(None),
            Err(error) => return Err(error),
        };
        if answer.status().as_u16() == 429 {
            return Err(self.refused(&ask, answer, &who).await);
        }
        Ok(described(&answer, reference.digest()))
    }

    async fn get(&self) -> Result<Document> {
        let reference = &self.repo.reference;
        let (bytes, headers) = self.fetch(reference.target()).await?;
        let verified = if let Some(digest) = reference.digest() {
            Verified::check(bytes, digest).map_err(|e| self.context(e))?
        } else {
            if let Some(claimed) = &headers.digest {
                let mut hasher = Hasher::new(claimed.algorithm());
                hasher.update(&bytes);
                let found = hasher.finish();
                if found != *claimed {
                    self.repo.client.shared.notices.say(format!("the registry says that {reference} is {claimed}, but its answer is {found}; the answer counts"));
                }
            }
            Verified::of(bytes)
        };
        Document::parse(&verified, headers.content_type.as_deref()).map_err(|e| self.context(e))
    }

    async fn document(&self, descriptor: &Descriptor) -> Result<Document> {
        let (bytes, headers) = self.fetch(descriptor.digest.as_str()).await?;
        let verified = Verified::check(bytes, &descriptor.digest).map_err(|e| self.context(e))?;
        if descriptor.size > 0 && descriptor.size != verified.size() {
            return Err(self.context(Error::new(
                Kind::InvalidContent,
                format_args!(
                    "document {} has {} bytes, but was announced with {}",
                    descriptor.digest,
                    verified.size(),
                    descriptor.size
                ),
            )));
        }
        let document = Document::parse(&verified, headers.content_type.as_deref())
            .map_err(|e| self.context(e))?;
        fitting(document, descriptor).map_err(|e| self.context(e))
    }

    /// Fetches a document's bytes, not yet verified.
    async fn fetch(&self, name: &str) -> Result<(Bytes, DocumentHeaders)> {
        let mut ask = self.manifest(Method::GET, name);
        let mut budget = self.budget();
        loop {
            let (mut answer, who) = self.send(&ask, &mut budget).await?;
            if answer.status().as_u16() == 406 && ask.accept == ACCEPT_MANIFEST {
                ask.accept = ACCEPT_SINGLE;
                continue;
            }
            if answer.status().as_u16() != 200 {
                return Err(self.refused(&ask, answer, &who).await);
            }
            if let Some(coding) = answer.encoding() {
                return Err(failure::encoded(&ask.target, &answer.url, coding));
            }
            let headers = DocumentHeaders {
                content_type: answer.header("content-type").map(str::to_owned),
                digest: answer
                    .header("docker-content-digest")
                    .and_then(|text| Digest::parse(text.trim()).ok()),
            };
            match answer.body(MAX_MANIFEST, SMALL_BODY_TIME).await {
                Ok(bytes) if said::is_web_page(headers.content_type.as_deref(), &bytes) => {
                    return Err(failure::web_page(&ask.target, &answer.url, &bytes));
                }
                Ok(bytes) => {
                    if ask.accept == ACCEPT_SINGLE {
                        let host = self.endpoint.authority();
                        self.repo.say(format!(
                            "{host} refuses lists of images; only the one that it offers is looked at"
                        ));
                    }
                    self.repo.effort.admit();
                    return Ok((bytes, headers));
                }
                Err(fault) => {
                    let failed = failure::body(&ask.target, &answer.url, fault, MAX_MANIFEST);
                    match budget.grant(failed.advice) {
                        Some(wait) => tokio::time::sleep(wait).await,
                        None => return Err(failed.error),
                    }
                }
            }
        }
    }

    async fn blob(
        &self,
        descriptor: &Descriptor,
        offset: u64,
        budget: &mut Budget,
    ) -> Result<Opened> {
        let digest = &descriptor.digest;
        // Every host is asked before any is waited for.
        let mut one = self.budget();
        let budget = if self.subject.hurried {
            &mut one
        } else {
            budget
        };
        let mut ask = Ask {
            target: Target::blob(&self.repo.reference, digest),
            method: Method::GET,
            url: self.url("blobs", digest.as_str()),
            accept: ACCEPT_BLOB,
            // Closed: some registries refuse an open range.
            range: (offset > 0).then(|| (offset, descriptor.size.saturating_sub(1))),
            form: None,
            route: Some(self.endpoint.route().clone()),
            hurried: self.subject.hurried,
        };
        let flow = &self.repo.client.shared.flow;
        let opened = |reading: Reading| {
            let origin = self.subject.origin.clone();
            if reading.ignores_range() {
                self.repo.effort.range_ignored(&origin);
            }
            Opened {
                reading,
                origin,
                index: self.index,
            }
        };
        loop {
            let (answer, who) = self.send(&ask, budget).await?;
            let misfit = match answer.status().as_u16() {
                200 | 206 => match blob::open(ask.target.clone(), answer, descriptor, offset, flow)
                {
                    Ok(reading) => return Ok(opened(reading)),
                    Err(misfit) => misfit,
                },
                416 => blob::refused_range(&ask.target, &answer, descriptor.size, offset),
                404 if is_foreign(descriptor) => {
                    let refusal = failure::status(&ask.target, answer, &who).await;
                    let found = self.foreign(&ask, descriptor, offset, budget).await;
                    return found.map(opened).ok_or(refusal);
                }
                _ => return Err(failure::status(&ask.target, answer, &who).await),
            };
            match misfit {
                // A server that is confused about parts may still have the whole.
                Misfit::Part(error) if ask.range.is_some() => {
                    tracing::debug!(%error, causes = ?error.causes(), "asking for the whole");
                    ask.range = None;
                }
                Misfit::Part(error) | Misfit::Other(error) => return Err(error),
            }
        }
    }

    /// The addresses that the manifest itself gives for a foreign layer. They are the
    /// publisher's, so nobody's credentials go there; the digest decides.
    async fn foreign(
        &self,
        ask: &Ask,
        descriptor: &Descriptor,
        offset: u64,
        budget: &mut Budget,
    ) -> Option<Reading> {
        let urls = descriptor.urls.iter().filter_map(|text| {
            let url = Url::parse(text).ok()?;
            let plain = url.username().is_empty() && url.password().is_none();
            (matches!(url.scheme(), "http" | "https") && plain).then_some(url)
        });
        for url in urls.take(MAX_FOREIGN) {
            let ask = Ask {
                target: ask.target.clone(),
                method: Method::GET,
                url,
                accept: ACCEPT_BLOB,
                range: ask.range,
                form: None,
                route: None,
                hurried: false,
            };
            let transport = &self.repo.client.shared.transport;
            let flow = &self.repo.client.shared.flow;
            let opened = match transport.send(&ask, None, budget).await {
                Ok(answer) if matches!(answer.status().as_u16(), 200 | 206) => {
                    blob::open(ask.target, answer, descriptor, offset, flow).map_err(|misfit| {
                        match misfit {
                            Misfit::Part(error) | Misfit::Other(error) => error,
                        }
                    })
                }
                Ok(answer) => Err(failure::status(&ask.target, answer, &Who::default()).await),
                Err(error) => Err(error),
            };
            match opened {
                Ok(reading) => return Some(reading),
                Err(error) => {
                    tracing::debug!(error = %error, causes = ?error.causes(), "a foreign layer's address failed");
                }
            }
        }
        None
    }

    fn context(&self, error: Error) -> Error {
        error.registry(&self.subject.domain)
    }
}
