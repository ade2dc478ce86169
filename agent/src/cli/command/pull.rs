//! `pull`: resolve, fetch, verify, unpack, sync and record; one row for each
//! reference and platform, the worst as exit code.

use std::{path::Path, time::Instant};

use super::{
    super::{
        Failures, args,
        context::{Asked, Attached, Context, state_dir, wants_of},
        progress,
    },
    row::{Bytes, Row, print},
};
use crate::{
    containerd::{Engine, StoreSource},
    error::{Error, Result},
    event::{Event, Events},
    kind::Kind,
    layout::{self, Layout, LayoutKind, LayoutRef},
    oci::{Digest, Document, Reference},
    pull::{self, Choice},
    resolve::{Want, resolve},
    source::{InHand, Nearest, Source},
};

/// Where the image goes.
pub(super) enum Store {
    Containerd(Box<Attached>),
    Layout(LayoutRef),
}

pub(crate) async fn run(context: &Context, call: &args::Pull) -> Result<Failures> {
    // Wrong references end the call before any work.
    let references = call
        .references
        .iter()
        .map(|typed| Context::reference(typed))
        .collect::<Result<Vec<_>>>()?;
    let store = store(context, &call.store).await?;
    let attached = match &store {
        Store::Containerd(attached) => Some(attached.as_ref()),
        Store::Layout(_) => None,
    };
    let all = ["all".to_owned()];
    let platforms = if call.all_platforms {
        &all[..]
    } else {
        &call.platform.platforms
    };
    let asked = context.wants(platforms, attached, call.variant.is_some())?;
    let events = progress::observer(call.progress, context.global.quiet);
    let mut rows = Vec::new();
    for reference in &references {
        for one in &asked {
            rows.extend(
                Job {
                    context,
                    call,
                    store: &store,
                    reference,
                    events: &events,
                }
                .run(one)
                .await,
            );
        }
    }
    print(context, &rows);
    Ok(rows
        .iter()
        .filter_map(|row| row.error.as_ref().map(Error::kind))
        .collect())
}

async fn store(context: &Context, text: &str) -> Result<Store> {
    if text == "containerd" {
        return Ok(Store::Containerd(Box::new(context.attach().await?)));
    }
    match LayoutRef::parse(text) {
        Some(parsed) => Ok(Store::Layout(parsed?)),
        None => Err(
            Error::new(Kind::Usage, format_args!("`{text}` is no store"))
                .hint("stores are `containerd`, `oci:DIR` and `oci-archive:FILE`"),
        ),
    }
}

/// One reference into one store.
struct Job<'a> {
    context: &'a Context,
    call: &'a args::Pull,
    store: &'a Store,
    reference: &'a Reference,
    events: &'a Events,
}

impl Job<'_> {
    async fn run(&self, asked: &Asked) -> Vec<Row> {
        let mut rows = Vec::new();
        let wants = match asked {
            Asked::One(want) => vec![want.as_ref().clone()],
            Asked::All => match self.every(asked).await {
                Ok(wants) => wants,
                Err(error) => {
                    let mut row = Row::new("edgepull.pull/1", self.reference.typed(), "all");
                    row.error = Some(self.named(error, "all"));
                    return vec![row];
                }
            },
        };
        for want in &wants {
            rows.push(self.one(want).await);
        }
        rows
    }

    /// `--platform all`: each image entry as a want of its own.
    async fn every(&self, asked: &Asked) -> Result<Vec<Want>> {
        let repo = self.context.client()?.repository(self.reference);
        let root = repo.get().await?;
        wants_of(asked, &root, &repo, self.context.host().ok()).await
    }

    async fn one(&self, want: &Want) -> Row {
        let started = Instant::now();
        let requests = self
            .context
            .client()
            .map_or(0, crate::registry::Client::requests);
        let mut row = Row::new("edgepull.pull/1", self.reference.typed(), &want.asked);
        self.events.emit(&Event::Resolving {
            reference: self.reference.typed().to_owned(),
        });
        let ended = self.pull(want, &mut row).await;
        self.events.emit(&Event::Finished {
            reference: self.reference.typed().to_owned(),
            ok: ended.is_ok(),
        });
        if let Err(error) = ended {
            row.status = "failed";
            row.error = Some(self.named(error, &want.asked));
        }
        if let Ok(client) = self.context.client() {
            for message in client.take_notices() {
                self.say(&mut row, message);
            }
        }
        row.requests = self
            .context
            .client()
            .map_or(0, crate::registry::Client::requests)
            - requests;
        row.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        row
    }

    fn named(&self, error: Error, platform: &str) -> Error {
        let typed = self.reference.typed();
        let error = if error.message().starts_with("cannot pull") {
            error
        } else {
            error.during(format_args!("cannot pull `{typed}`"))
        };
        let error = error
            .reference(typed)
            .registry(self.reference.repository().domain())
            .platform(platform);
        match self.context.host() {
            Ok(host) => error.host(&host.platform),
            Err(_) => error,
        }
    }

    async fn pull(&self, want: &Want, row: &mut Row) -> Result<()> {
        match self.store {
            Store::Containerd(attached) => {
                row.at(attached);
                Box::pin(self.pull_containerd(attached, want, row)).await
            }
            Store::Layout(to) => Box::pin(self.pull_layout(to, want, row)).await,
        }
    }

    async fn pull_containerd(&self, attached: &Attached, want: &Want, row: &mut Row) -> Result<()> {
        let repo = self.context.client()?.repository(self.reference);
        let call = self.call;
        let store = StoreSource::new(attached.engine.clone());
        let root = match self.known_digest(attached, &repo).await? {
            // The registry (or the reference itself) says which document it is: if the
            // store has it and everything below it, there is nothing to do.
            Some(local) => {
                if let Ok(resolution) = resolve(local.clone(), &store, want).await
                    && let Ok(picked) = resolution.outcome
                    && let Ok(choice) = picked.complete(&store).await
                    && !is_artifact(&choice)
                {
                    let request = self.request(attached, &choice, &store);
                    if pull::is_present(&attached.engine, &request).await? {
                        row.chosen(
                            &choice.root,
                            &choice.leaf,
                            choice.platform.as_ref(),
                            self.context,
                        );
                        row.status = "present";
                        row.bytes.reused = present_bytes(&choice);
                        return Ok(());
                    }
                }
                local
            }
            None => repo.get().await?,
        };
        let nearest = Nearest {
            near: &store,
            far: &repo,
        };
        let choice = self.choose(root, &nearest, want).await?;
        row.chosen(
            &choice.root,
            &choice.leaf,
            choice.platform.as_ref(),
            self.context,
        );
        self.warn(row, want, &choice);
        if is_artifact(&choice) {
            let Some(dir) = &call.artifact_dir else {
                return Err(artifact_needs_dir());
            };
            return self.deliver(dir, &choice, &repo, row).await;
        }
        let request = self.request(attached, &choice, &repo);
        let outcome =
            pull::pull_into(&attached.engine, &request, self.events, &state_dir()).await?;
        row.ended(outcome);
        Ok(())
    }

    fn request<'a>(
        &'a self,
        attached: &'a Attached,
        choice: &'a Choice,
        source: &'a dyn Source,
    ) -> pull::Request<'a> {
        pull::Request {
            reference: self.reference,
            choice,
            more: &[],
            unpack_more: false,
            source,
            from_registry: true,
            snapshotter: Some(&attached.snapshotter),
            unpack: !self.call.no_unpack,
            keep_layers: true,
            pin: self.call.pin,
            managed_by: "cli",
        }
    }

    /// The root document out of the store, if it is known without fetching it: by a
    /// digest reference, or by one HEAD for a tag that an image record exists for.
    async fn known_digest(
        &self,
        attached: &Attached,
        repo: &crate::registry::Repo,
    ) -> Result<Option<Document>> {
        if let Some(digest) = self.reference.digest() {
            return stored(&attached.engine, digest).await;
        }
        let record = attached.engine.image(&self.reference.record_name()).await?;
        if record.is_none() {
            // Never pulled: the GET that follows says everything a HEAD would.
            return Ok(None);
        }
        match repo.head().await? {
            Some(descriptor) => stored(&attached.engine, &descriptor.digest).await,
            None => Ok(None),
        }
    }

    async fn choose(&self, root: Document, source: &dyn Source, want: &Want) -> Result<Choice> {
        let choice = resolve(root, source, want)
            .await?
            .outcome?
            .complete(source)
            .await?;
        self.events.emit(&Event::Resolved {
            reference: self.reference.typed().to_owned(),
            digest: choice.root.descriptor.digest.clone(),
            manifest: choice.leaf.descriptor.digest.clone(),
            platform: choice
                .platform
                .as_ref()
                .map_or("no platform".to_owned(), ToString::to_string),
        });
        Ok(choice)
    }

    fn say(&self, row: &mut Row, message: String) {
        self.events.emit(&Event::Warning {
            reference: self.reference.typed().to_owned(),
            message: message.clone(),
        });
        row.warnings.push(message);
    }

    /// Says what the label alone already tells about running it here.
    fn warn(&self, row: &mut Row, want: &Want, choice: &Choice) {
        if let Some(platform) = &choice.platform
            && let Some(host) = &want.host
            && let Some(reason) = host.disproves(platform)
        {
            self.say(
                row,
                format!("{platform} was asked for, but this host cannot run it: {reason}"),
            );
        }
        if choice.target_is_leaf {
            self.say(row, "the image record points at the manifest and not at the index, because containerd would look up another entry".to_owned());
        }
    }

    async fn pull_layout(&self, to: &LayoutRef, want: &Want, row: &mut Row) -> Result<()> {
        let repo = self.context.client()?.repository(self.reference);
        let root = repo.get().await?;
        // What an older layout already holds is not fetched to decide.
        let near = (to.kind() == LayoutKind::Dir)
            .then(|| Layout::open(to.path()).ok())
            .flatten();
        let choice = match &near {
            Some(near) => {
                self.choose(root, &Nearest { near, far: &repo }, want)
                    .await?
            }
            None => self.choose(root, &repo, want).await?,
        };
        row.chosen(
            &choice.root,
            &choice.leaf,
            choice.platform.as_ref(),
            self.context,
        );
        self.warn(row, want, &choice);
        if is_artifact(&choice)
            && let Some(dir) = &self.call.artifact_dir
        {
            self.deliver(dir, &choice, &repo, row).await?;
        }
        let names = layout::Names::of(self.reference);
        let source = InHand {
            blob: &choice.config,
            far: &repo,
        };
        let content = layout::Content {
            root: &choice.root,
            ancestors: &choice.ancestors,
            leaves: std::slice::from_ref(&choice.leaf),
        };
        let stats = match to.kind() {
            LayoutKind::Dir => {
                let layout = Layout::create_or_open(to.path())?;
                layout::copy_to_layout(
                    &layout,
                    content,
                    &source,
                    &names,
                    self.events,
                    self.reference.typed(),
                )
                .await?
            }
            LayoutKind::Archive => {
                let images = [layout::Image {
                    content,
                    source: &source,
                    names: &names,
                    reference: self.reference.typed(),
                }];
                layout::write_archive(to.path(), &images, self.events).await?
            }
        };
        row.bytes = Bytes {
            downloaded: stats.downloaded,
            resumed: stats.resumed,
            reused: stats.reused,
            written: stats.written,
        };
        row.status = if stats.written == 0 {
            "present"
        } else {
            "pulled"
        };
        Ok(())
    }

    async fn deliver(
        &self,
        dir: &Path,
        choice: &Choice,
        source: &dyn Source,
        row: &mut Row,
    ) -> Result<()> {
        let manifest = choice.manifest().ok_or_else(|| {
            Error::new(Kind::Internal, "an artifact without a manifest was chosen")
        })?;
        let files = layout::deliver_artifact(dir, manifest, source).await?;
        row.bytes.downloaded +=
            manifest.layers.iter().map(|l| l.size).sum::<u64>() + manifest.config.size;
        row.bytes.written = row.bytes.downloaded;
        row.files = files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        row.status = "pulled";
        Ok(())
    }
}

/// The document, if containerd has it undamaged; a damaged one is fetched again.
async fn stored(engine: &Engine, digest: &Digest) -> Result<Option<Document>> {
    match engine.read_document(digest).await {
        Ok(verified) => Ok(Document::parse(&verified, None).ok()),
        Err(error) if matches!(error.kind(), Kind::NotFound | Kind::StoreDamaged) => Ok(None),
        Err(error) => Err(error),
    }
}

pub(super) fn is_artifact(choice: &Choice) -> bool {
    choice
        .manifest()
        .is_some_and(crate::oci::Manifest::is_artifact)
}

fn artifact_needs_dir() -> Error {
    Error::new(
        Kind::Unsupported,
        "the reference offers an artifact here, which is delivered and not unpacked",
    )
    .hint("say where its files go with `--artifact-dir DIR`, or keep it with `--store oci:DIR`")
}

fn present_bytes(choice: &Choice) -> u64 {
    choice.manifest().map_or(0, |m| {
        m.config.size + m.layers.iter().map(|l| l.size).sum::<u64>()
    }) + choice.leaf.descriptor.size
}
