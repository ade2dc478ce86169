//! `pull`: resolve, fetch, verify, unpack, sync and record; one row for each
//! reference and platform, the worst as exit code.

use std::{path::Path, time::Instant};

use super::{
    super::{
        Failures, args,
        context::{Context, state_dir},
        progress,
    },
    row::{Bytes, Row, print},
};
use crate::{
    asked::{Asked, wants_of},
    desired::Verify,
    error::{Error, Result},
    event::{Event, Events},
    kind::Kind,
    layout::{self, Layout, LayoutKind, LayoutRef},
    oci::{Document, Reference},
    pull::{
        Choice, Found, Look, Puller, Status, artifact,
        image::{self, is_artifact},
    },
    registry::Client,
    resolve::Want,
    session::Attached,
    source::{InHand, Nearest, Source},
};

/// Where the image goes.
pub(super) enum Store {
    Containerd(Box<Attached>),
    Layout(LayoutRef),
    /// No engine answers, and this is why; files of artifacts need none.
    Nowhere(Error),
}

pub(crate) async fn run(context: &Context, call: &args::Pull) -> Result<Failures> {
    // Wrong references end the call before any work.
    let references = call
        .references
        .iter()
        .map(|typed| Context::reference(typed))
        .collect::<Result<Vec<_>>>()?;
    let store = match store(context, &call.store).await {
        Err(error)
            if error.kind() == Kind::ContainerdUnavailable
                && call.artifact_dir.is_some()
                && context.named_address.is_none() =>
        {
            Store::Nowhere(error)
        }
        store => store?,
    };
    let attached = match &store {
        Store::Containerd(attached) => Some(attached.as_ref()),
        Store::Layout(_) | Store::Nowhere(_) => None,
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
        for mut want in wants {
            // In other stores nobody looks at the bytes.
            want.probation = matches!(self.store, Store::Containerd(_))
                && !self.call.no_unpack
                && self.context.session().judges(Verify::None);
            rows.push(self.one(&want).await);
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
        let requests = self.context.client().map_or(0, Client::requests);
        let mut row = Row::new("edgepull.pull/1", self.reference.typed(), &want.asked);
        self.events.emit(&Event::Resolving {
            reference: self.reference.typed().to_owned(),
        });
        let ended = self.pull(want, &mut row).await;
        self.events.emit(&Event::Finished {
            reference: self.reference.typed().to_owned(),
            ok: ended.is_ok(),
        });
        let client = self.context.client();
        let notices = client.map_or_else(|_| Vec::new(), Client::take_notices);
        if let Err(error) = ended {
            row.status = "failed";
            // Such as a login that could not be read: why there was none.
            let error = notices.iter().fold(error, Error::because);
            row.error = Some(self.named(error, &want.asked));
        }
        for message in notices {
            self.say(&mut row, message);
        }
        row.requests = self.context.client().map_or(0, Client::requests) - requests;
        row.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        row
    }

    fn named(&self, error: Error, platform: &str) -> Error {
        image::named(error, self.reference, platform, self.context.host().ok())
    }

    async fn pull(&self, want: &Want, row: &mut Row) -> Result<()> {
        if let Some(dir) = &self.call.artifact_dir
            && !matches!(self.store, Store::Layout(_))
            && self.unchanged(dir, want, row).await?
        {
            return Ok(());
        }
        match self.store {
            Store::Containerd(attached) => {
                row.at(attached);
                Box::pin(self.pull_containerd(attached, want, row)).await
            }
            Store::Layout(to) => Box::pin(self.pull_layout(to, want, row)).await,
            Store::Nowhere(error) => Box::pin(self.pull_files(error, want, row)).await,
        }
    }

    /// Whether the files of the artifact are all there, as its registry has them.
    async fn unchanged(&self, dir: &Path, want: &Want, row: &mut Row) -> Result<bool> {
        let repo = self.context.client()?.repository(self.reference);
        let found = artifact::unchanged(self.reference, &repo, want, dir).await?;
        let Some(delivery) = found else {
            return Ok(false);
        };
        let identity = delivery.identity;
        row.index_digest =
            (identity.target_digest != identity.manifest_digest).then_some(identity.target_digest);
        row.manifest_digest = Some(identity.manifest_digest);
        row.selected_platform = identity.platform;
        row.bytes.reused = delivery.files.iter().map(|file| file.size).sum();
        let files = delivery.files.iter();
        row.files = files
            .map(|file| dir.join(&file.name).display().to_string())
            .collect();
        row.status = "present";
        Ok(true)
    }

    /// Without an engine only an artifact can be had.
    async fn pull_files(&self, engine: &Error, want: &Want, row: &mut Row) -> Result<()> {
        let repo = self.context.client()?.repository(self.reference);
        let choice = self.choose(repo.get().await?, &repo, want).await?;
        row.chosen(
            &choice.root,
            &choice.leaf,
            choice.platform.as_ref(),
            self.context,
        );
        let Some(dir) = self
            .call
            .artifact_dir
            .as_ref()
            .filter(|_| is_artifact(&choice))
        else {
            return Err(engine.clone());
        };
        self.deliver(dir, want, &choice, &repo, row).await
    }

    async fn pull_containerd(&self, attached: &Attached, want: &Want, row: &mut Row) -> Result<()> {
        let client = self.context.client()?;
        let repo = client.repository(self.reference);
        let state_dir = state_dir();
        let puller = Puller {
            engine: &attached.engine,
            client,
            snapshotter: &attached.snapshotter,
            events: self.events,
            state_dir: &state_dir,
            managed_by: "cli",
            pin: self.call.pin,
            unpack: !self.call.no_unpack,
            room: None,
            jury: self.context.session().jury(want, Verify::None),
        };
        let found = puller.find(self.reference, &repo, want).await?;
        let choice = found.choice();
        row.chosen(
            &choice.root,
            &choice.leaf,
            choice.platform.as_ref(),
            self.context,
        );
        if let Found::Present(choice) = &found {
            let outcome = puller
                .prove(choice, image::present(choice), Look::Once)
                .await?;
            for message in outcome.warnings.clone() {
                self.tell(message);
            }
            row.ended(outcome);
            return Ok(());
        }
        self.warn(row, want, choice);
        if let Found::Artifact(choice) = &found {
            let Some(dir) = &self.call.artifact_dir else {
                return Err(artifact_needs_dir());
            };
            return self.deliver(dir, want, choice, &repo, row).await;
        }
        row.ended(puller.fetch(self.reference, &repo, choice).await?);
        Ok(())
    }

    fn say(&self, row: &mut Row, message: String) {
        self.tell(message.clone());
        row.warnings.push(message);
    }

    fn tell(&self, message: String) {
        self.events.emit(&Event::Warning {
            reference: self.reference.typed().to_owned(),
            message,
        });
    }

    fn warn(&self, row: &mut Row, want: &Want, choice: &Choice) {
        for message in image::warnings(want, choice) {
            self.say(row, message);
        }
    }

    async fn choose(&self, root: Document, source: &dyn Source, want: &Want) -> Result<Choice> {
        image::choose(self.reference.typed(), root, source, want, self.events).await
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
            self.deliver(dir, want, &choice, &repo, row).await?;
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
        want: &Want,
        choice: &Choice,
        source: &dyn Source,
        row: &mut Row,
    ) -> Result<()> {
        let delivered = artifact::deliver(self.reference, want, choice, source, dir).await?;
        let (status, bytes) = artifact::outcome(&delivered);
        row.bytes.downloaded += bytes.downloaded;
        row.bytes.written += bytes.written;
        row.bytes.reused += bytes.reused;
        row.files = delivered
            .files
            .iter()
            .map(|file| file.display().to_string())
            .collect();
        row.status = match status {
            Status::Pulled => "pulled",
            Status::Present => "present",
        };
        Ok(())
    }
}

fn artifact_needs_dir() -> Error {
    Error::new(
        Kind::Unsupported,
        "the reference offers an artifact here, which is delivered and not unpacked",
    )
    .hint("say where its files go with `--artifact-dir DIR`, or keep it with `--store oci:DIR`")
}
