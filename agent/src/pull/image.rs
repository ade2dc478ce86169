//! One reference for one platform into containerd: what a registry says, what the store has
//! of it already, the choice, and the pull of the rest.

use std::path::Path;

use edgepull_platform::Host;

use super::{
    Choice,
    jury::{Jury, Look},
    plan::Image,
    present::is_present,
    room::Room,
    run::{Bytes, Outcome, Request, Status, pull_into},
};
use crate::{
    containerd::{Engine, StoreSource},
    error::{Error, Result},
    event::{Event, Events},
    kind::Kind,
    oci::{Digest, Document, Manifest, Reference},
    registry::{Client, Repo},
    resolve::{Want, resolve},
    source::{Nearest, Source},
};

/// Pulls images from registries into one engine.
#[derive(Debug, Clone, Copy)]
pub struct Puller<'a> {
    pub engine: &'a Engine,
    pub client: &'a Client,
    pub snapshotter: &'a str,
    pub events: &'a Events,
    /// Where the lock of the image goes.
    pub state_dir: &'a Path,
    /// Value of `io.edgepull.managed` on records that are created here.
    pub managed_by: &'a str,
    pub pin: bool,
    /// `false`: content and records only.
    pub unpack: bool,
    /// Who says whether there is room; `None`: nobody is asked.
    pub room: Option<&'a dyn Room>,
    /// Who looks at the bytes before an image counts; `None`: labels decide.
    pub jury: Option<Jury<'a>>,
}

/// What a reference turned out to be.
#[derive(Debug)]
pub enum Found {
    /// The registry says what the store has already, all of it.
    Present(Choice),
    /// An image of which something is missing.
    Image(Choice),
    /// An artifact, which is delivered and not unpacked.
    Artifact(Choice),
}

impl Found {
    pub fn choice(&self) -> &Choice {
        match self {
            Self::Present(choice) | Self::Image(choice) | Self::Artifact(choice) => choice,
        }
    }
}

impl Puller<'_> {
    /// What `reference` is in `repo`, and whether it is here. An unchanged image costs one
    /// HEAD.
    pub async fn find(&self, reference: &Reference, repo: &Repo, want: &Want) -> Result<Found> {
        let store = StoreSource::new(self.engine.clone());
        let root = match self.known(reference, repo).await? {
            // The registry (or the reference itself) says which document it is: if the
            // store has it and everything below it, there is nothing to do.
            Some(local) => {
                if let Ok(resolution) = resolve(local.clone(), &store, want).await
                    && let Ok(picked) = resolution.outcome
                    && let Ok(choice) = picked.complete(&store).await
                    && !is_artifact(&choice)
                    && is_present(self.engine, &self.request(reference, &choice, &store)).await?
                {
                    return Ok(Found::Present(choice));
                }
                local
            }
            None => repo.get().await?,
        };
        let nearest = Nearest {
            near: &store,
            far: repo,
        };
        let choice = choose(reference.typed(), root, &nearest, want, self.events).await?;
        Ok(if is_artifact(&choice) {
            Found::Artifact(choice)
        } else {
            Found::Image(choice)
        })
    }

    /// Fetches what is missing of `choice` from the `repo` it was found in, unpacks it and records it.
    pub async fn fetch(
        &self,
        reference: &Reference,
        repo: &Repo,
        choice: &Choice,
    ) -> Result<Outcome> {
        let request = self.request(reference, choice, repo);
        pull_into(self.engine, &request, self.events, self.state_dir).await
    }

    /// Whether all layers of `choice` are unpacked here, whatever the records say.
    ///
    /// # Errors
    ///
    /// Where containerd fails, or the image cannot be unpacked at all.
    pub async fn is_unpacked(&self, choice: &Choice) -> Result<bool> {
        let image = Image::new(choice, self.unpack)?;
        match image.top() {
            Some(top) => self.engine.has_snapshot(self.snapshotter, top).await,
            None => Ok(false),
        }
    }

    /// Looks at the bytes of an image that is here ([`Found::Present`]), and adds what they
    /// prove to its outcome.
    ///
    /// # Errors
    ///
    /// `mislabelled`, `not_runnable`, `platform_missing`; or where containerd fails.
    pub async fn prove(
        &self,
        choice: &Choice,
        mut outcome: Outcome,
        look: Look,
    ) -> Result<Outcome> {
        if let Some(jury) = &self.jury {
            let image = Image::new(choice, self.unpack)?;
            let found = jury
                .judge(self.engine, self.snapshotter, &image, look)
                .await?;
            outcome.warnings.extend(found.warnings);
            outcome.proof = found.proof;
        }
        Ok(outcome)
    }

    fn request<'a>(
        &'a self,
        reference: &'a Reference,
        choice: &'a Choice,
        source: &'a dyn Source,
    ) -> Request<'a> {
        Request {
            reference,
            choice,
            more: &[],
            unpack_more: false,
            source,
            from_registry: true,
            snapshotter: Some(self.snapshotter),
            unpack: self.unpack,
            keep_layers: true,
            pin: self.pin,
            managed_by: self.managed_by,
            room: self.room,
            jury: self.jury,
        }
    }

    /// The root document out of the store, if it is known without fetching it: by a
    /// digest reference, or by one HEAD for a tag that an image record exists for.
    async fn known(&self, reference: &Reference, repo: &Repo) -> Result<Option<Document>> {
        if let Some(digest) = reference.digest() {
            return stored(self.engine, digest).await;
        }
        let record = self.engine.image(&reference.record_name()).await?;
        if record.is_none() {
            // Never pulled: the GET that follows says everything a HEAD would.
            return Ok(None);
        }
        match repo.head().await? {
            Some(descriptor) => stored(self.engine, &descriptor.digest).await,
            None => Ok(None),
        }
    }
}

/// Chooses the image below `root`, and says so.
pub async fn choose(
    typed: &str,
    root: Document,
    source: &dyn Source,
    want: &Want,
    events: &Events,
) -> Result<Choice> {
    let choice = resolve(root, source, want)
        .await?
        .outcome?
        .complete(source)
        .await?;
    events.emit(&Event::Resolved {
        reference: typed.to_owned(),
        digest: choice.root.descriptor.digest.clone(),
        manifest: choice.leaf.descriptor.digest.clone(),
        platform: choice
            .platform
            .as_ref()
            .map_or("no platform".to_owned(), ToString::to_string),
    });
    Ok(choice)
}

/// The document, if containerd has it undamaged; a damaged one is fetched again.
pub async fn stored(engine: &Engine, digest: &Digest) -> Result<Option<Document>> {
    match engine.read_document(digest).await {
        Ok(verified) => Ok(Document::parse(&verified, None).ok()),
        Err(error) if matches!(error.kind(), Kind::NotFound | Kind::StoreDamaged) => Ok(None),
        Err(error) => Err(error),
    }
}

pub fn is_artifact(choice: &Choice) -> bool {
    choice.manifest().is_some_and(Manifest::is_artifact)
}

/// The outcome of [`Found::Present`].
pub fn present(choice: &Choice) -> Outcome {
    let reused = choice.manifest().map_or(0, |m| {
        m.config.size + m.layers.iter().map(|l| l.size).sum::<u64>()
    }) + choice.leaf.descriptor.size;
    Outcome {
        status: Status::Present,
        bytes: Bytes {
            reused,
            ..Bytes::default()
        },
        warnings: Vec::new(),
        proof: None,
    }
}

/// What the label alone already tells about running it here.
pub fn warnings(want: &Want, choice: &Choice) -> Vec<String> {
    let mut warnings = Vec::new();
    // On probation its label is no promise, and its bytes tell.
    if choice.probation.is_none()
        && let Some(platform) = &choice.platform
        && let Some(host) = &want.host
        && let Some(reason) = host.disproves(platform)
    {
        warnings.push(format!(
            "{platform} was asked for, but this host cannot run it: {reason}"
        ));
    }
    if choice.target_is_leaf {
        warnings.push("the image record points at the manifest and not at the index, because containerd would look up another entry".to_owned());
    }
    warnings
}

/// To a failure that nothing fits: where the publisher of this very reference may have put
/// what is missing. Names are only told; nothing is taken from another tag by itself.
pub fn advised(error: Error, reference: &Reference) -> Error {
    if error.kind() != Kind::PlatformMissing {
        return error;
    }
    let words = |platform: &str| -> Option<String> {
        let rest = platform.strip_prefix("linux/")?;
        Some(rest.split(['/', ' ']).next()?.to_owned())
    };
    let offered: Vec<String> = error.offered().iter().filter_map(|it| words(it)).collect();
    let missing = error.wanted().first().and_then(|it| words(it));
    // As `akraino/validation` names them: LAYER-ARCH-VERSION beside LAYER-VERSION.
    let parts = reference.tag().and_then(|tag| tag.rsplit_once('-'));
    let (Some(missing), Some((layer, version))) = (missing, parts) else {
        return error;
    };
    let is_of_one = |word: &str| word == missing || offered.iter().any(|it| it == word);
    if offered.is_empty()
        || offered.contains(&missing)
        || [layer, version].contains(&"")
        || layer.split('-').chain([version]).any(is_of_one)
    {
        return error;
    }
    error.hint_also(format_args!(
        "where each architecture has a tag of its own, its name may be `{layer}-{missing}-{version}`: `edgepull inspect {}:{layer}-{missing}-{version}` shows whether that was built",
        reference.repository()
    ))
}

/// The failure of a pull, with what it was about.
pub fn named(error: Error, reference: &Reference, platform: &str, host: Option<&Host>) -> Error {
    let typed = reference.typed();
    let error = advised(error, reference);
    let error = if error.message().starts_with("cannot pull") {
        error
    } else {
        error.during(format_args!("cannot pull `{typed}`"))
    };
    let error = error
        .reference(typed)
        .registry(reference.repository().domain())
        .platform(platform);
    match host {
        Some(host) => error.host(&host.platform),
        None => error,
    }
}
