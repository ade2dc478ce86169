//! `export` and `import`: OCI archives for hosts without a network.

use std::{path::PathBuf, time::Instant};

use super::{
    super::{
        Failures,
        args::Progress,
        context::{Context, Target, state_dir},
        progress,
    },
    row::{Bytes, Row, print},
};
use crate::{
    asked::wants_of,
    containerd::StoreSource,
    desired::Verify,
    error::{Error, Result},
    event::{Event, Events},
    kind::Kind,
    layout::{self, Archive},
    oci::{Document, Reference},
    pull::{self, Choice, image::is_artifact},
    registry::Repo,
    resolve::resolve,
    session::Attached,
    source::{Nearest, Source},
};

pub(crate) struct Export {
    pub(crate) references: Vec<String>,
    pub(crate) platforms: Vec<String>,
    pub(crate) to: PathBuf,
    /// Ask the registry although containerd has an image of that name.
    pub(crate) fresh: bool,
    pub(crate) progress: Progress,
}

pub(crate) struct Import {
    pub(crate) file: PathBuf,
    pub(crate) platforms: Vec<String>,
    pub(crate) unpack: bool,
    pub(crate) pin: bool,
    pub(crate) progress: Progress,
}

/// An image to be exported: where it comes from and what of it was chosen.
struct Picked {
    typed: String,
    names: layout::Names,
    from: From,
    root: Document,
    choices: Vec<crate::resolve::Picked>,
}

enum From {
    Target(Target),
    Store { store: StoreSource, repo: Repo },
}

impl From {
    fn source(&self) -> Nearest<'_> {
        match self {
            Self::Target(target) => Nearest {
                near: target.source(),
                far: target.source(),
            },
            Self::Store { store, repo } => Nearest {
                near: store,
                far: repo,
            },
        }
    }
}

pub(crate) async fn run(context: &Context, call: &Export) -> Result<Failures> {
    // Without an engine everything comes from the registry.
    let (attached, _) = context.attach_if_alive().await?;
    let asked = context.wants(&call.platforms, attached.as_ref(), false)?;
    let events = progress::observer(call.progress, context.global.quiet);
    let started = Instant::now();
    let mut rows = Vec::new();
    let mut picked = Vec::new();
    for typed in &call.references {
        let opened = open(context, attached.as_ref(), typed, call.fresh).await;
        let (from, names, root) = match opened {
            Ok(opened) => opened,
            Err(error) if matches!(error.kind(), Kind::InvalidReference | Kind::Usage) => {
                return Err(error);
            }
            Err(error) => {
                for one in &asked {
                    let error = export_failed(error.clone(), typed);
                    rows.push(failed("edgepull.export/1", typed, one.text(), error));
                }
                continue;
            }
        };
        let mut choices = Vec::new();
        for one in &asked {
            let wants = match wants_of(one, &root, &from.source(), context.host().ok()).await {
                Ok(wants) => wants,
                Err(error) => {
                    rows.push(failed(
                        "edgepull.export/1",
                        typed,
                        "all",
                        export_failed(error, typed),
                    ));
                    continue;
                }
            };
            for want in wants {
                let mut row = Row::new("edgepull.export/1", typed, &want.asked);
                let resolved = resolve(root.clone(), &from.source(), &want)
                    .await
                    .and_then(|r| r.outcome);
                match resolved {
                    Ok(choice) => {
                        row.chosen(
                            &choice.root,
                            &choice.leaf,
                            choice.platform.as_ref(),
                            context,
                        );
                        row.status = "pulled";
                        choices.push(choice);
                    }
                    Err(error) => {
                        row.error = Some(export_failed(error, typed).platform(&want.asked));
                    }
                }
                rows.push(row);
            }
        }
        if !choices.is_empty() {
            picked.push(Picked {
                typed: typed.clone(),
                names,
                from,
                root,
                choices,
            });
        }
    }
    // Half an archive is worse than none: one missing platform and nothing is written.
    if rows.iter().all(|row| row.error.is_none()) {
        match write(call, &picked, &events).await {
            Ok(stats) => {
                if let Some(row) = rows.first_mut() {
                    row.bytes = stats;
                }
            }
            Err(error) => {
                for row in &mut rows {
                    row.status = "failed";
                    row.error = Some(
                        error
                            .clone()
                            .reference(&row.reference)
                            .platform(&row.platform),
                    );
                }
            }
        }
    } else {
        for row in rows.iter_mut().filter(|row| row.error.is_none()) {
            row.status = "failed";
            row.warnings.push(
                "nothing was written, because another part of the archive is missing".to_owned(),
            );
        }
    }
    for row in &mut rows {
        row.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    }
    print(context, &rows);
    Ok(rows
        .iter()
        .filter_map(|row| row.error.as_ref().map(Error::kind))
        .collect())
}

/// The row of what failed before its platforms were known.
fn failed(schema: &'static str, reference: &str, platform: &str, error: Error) -> Row {
    let mut row = Row::new(schema, reference, platform);
    row.error = Some(error.platform(platform));
    row
}

fn export_failed(error: Error, typed: &str) -> Error {
    error
        .during(format_args!("cannot export `{typed}`"))
        .reference(typed)
}

fn import_failed(error: Error, name: &str) -> Error {
    error
        .during(format_args!("cannot import `{name}`"))
        .reference(name)
}

async fn open(
    context: &Context,
    attached: Option<&Attached>,
    typed: &str,
    fresh: bool,
) -> Result<(From, layout::Names, Document)> {
    let target = context.target(typed).await?;
    if let (Some(attached), Target::Registry { reference, repo }) = (attached, &target) {
        let store = StoreSource::new(attached.engine.clone());
        let names = layout::Names::of(reference);
        let record = if fresh {
            None
        } else {
            attached.engine.image(&reference.record_name()).await?
        };
        let root = match record {
            Some(record) => store.document(&record.target).await?,
            None => repo.get().await?,
        };
        return Ok((
            From::Store {
                store,
                repo: repo.clone(),
            },
            names,
            root,
        ));
    }
    let names = match &target {
        Target::Registry { reference, .. } => layout::Names::of(reference),
        Target::Local { local, wanted } => local.names(wanted.selector())?,
    };
    let root = target.root().await?;
    Ok((From::Target(target), names, root))
}

async fn write(call: &Export, picked: &[Picked], events: &Events) -> Result<Bytes> {
    // Ancestors and leaves of all choices of one image, each once.
    let parts: Vec<(Vec<Document>, Vec<Document>)> = picked
        .iter()
        .map(|image| {
            let mut ancestors: Vec<Document> = Vec::new();
            let mut leaves: Vec<Document> = Vec::new();
            let push = |list: &mut Vec<Document>, document: &Document| {
                if !list
                    .iter()
                    .any(|known| known.descriptor.digest == document.descriptor.digest)
                {
                    list.push(document.clone());
                }
            };
            for choice in &image.choices {
                for ancestor in &choice.ancestors {
                    push(&mut ancestors, ancestor);
                }
                push(&mut leaves, &choice.leaf);
            }
            (ancestors, leaves)
        })
        .collect();
    let sources: Vec<Nearest<'_>> = picked.iter().map(|image| image.from.source()).collect();
    let images: Vec<layout::Image<'_>> = picked
        .iter()
        .zip(&parts)
        .zip(&sources)
        .map(|((image, (ancestors, leaves)), source)| layout::Image {
            content: layout::Content {
                root: &image.root,
                ancestors,
                leaves,
            },
            source,
            names: &image.names,
            reference: &image.typed,
        })
        .collect();
    let stats = layout::write_archive(&call.to, &images, events).await?;
    for image in picked {
        events.emit(&Event::Finished {
            reference: image.typed.clone(),
            ok: true,
        });
    }
    Ok(Bytes {
        downloaded: stats.downloaded,
        resumed: stats.resumed,
        reused: stats.reused,
        written: stats.written,
    })
}

pub(crate) async fn import(context: &Context, call: &Import) -> Result<Failures> {
    let archive = Archive::open(&call.file).await?;
    let attached = context.attach().await?;
    let asked = context.wants(&call.platforms, Some(&attached), false)?;
    let events = progress::observer(call.progress, context.global.quiet);
    let mut rows = Vec::new();
    for (reference, descriptor) in archive.images()? {
        let root = archive.document(&descriptor).await?;
        let name = reference.record_name();
        for one in &asked {
            let wants = match wants_of(one, &root, &archive, context.host().ok()).await {
                Ok(wants) => wants,
                Err(error) => {
                    let error = import_failed(error, &name);
                    rows.push(failed("edgepull.import/1", &name, "all", error));
                    continue;
                }
            };
            for mut want in wants {
                want.probation = call.unpack && context.session().judges(Verify::None);
                let started = Instant::now();
                let mut row = Row::new("edgepull.import/1", &name, &want.asked);
                row.at(&attached);
                let ended = async {
                    let choice = resolve(root.clone(), &archive, &want)
                        .await?
                        .outcome?
                        .complete(&archive)
                        .await?;
                    row.chosen(
                        &choice.root,
                        &choice.leaf,
                        choice.platform.as_ref(),
                        context,
                    );
                    let one = One {
                        reference: &reference,
                        choice: &choice,
                        jury: context.session().jury(&want, Verify::None),
                    };
                    import_one(&attached, call, one, &archive, &events, &mut row).await
                };
                let ended = Box::pin(ended).await;
                events.emit(&Event::Finished {
                    reference: name.clone(),
                    ok: ended.is_ok(),
                });
                if let Err(error) = ended {
                    row.error = Some(import_failed(error, &name).platform(&want.asked));
                }
                row.duration_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
                rows.push(row);
            }
        }
    }
    print(context, &rows);
    Ok(rows
        .iter()
        .filter_map(|row| row.error.as_ref().map(Error::kind))
        .collect())
}

/// One image of an archive, and who judges it.
struct One<'a> {
    reference: &'a Reference,
    choice: &'a Choice,
    jury: Option<pull::Jury<'a>>,
}

async fn import_one(
    attached: &Attached,
    call: &Import,
    one: One<'_>,
    archive: &Archive,
    events: &Events,
    row: &mut Row,
) -> Result<()> {
    let One {
        reference,
        choice,
        jury,
    } = one;
    if is_artifact(choice) {
        return Err(Error::new(
            Kind::Unsupported,
            "the archive holds an artifact here, which is delivered and not unpacked",
        ));
    }
    let request = pull::Request {
        reference,
        choice,
        more: &[],
        unpack_more: false,
        source: archive,
        from_registry: false,
        snapshotter: Some(&attached.snapshotter),
        unpack: call.unpack,
        keep_layers: true,
        pin: call.pin,
        managed_by: "import",
        room: None,
        jury,
    };
    let outcome = pull::pull_into(&attached.engine, &request, events, &state_dir()).await?;
    row.ended(outcome);
    Ok(())
}
