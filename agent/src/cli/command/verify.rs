//! `verify`: what an image starts, followed file by file to what the kernel would start, and
//! judged by its bytes. Nothing is run and nothing is fetched.

use std::fmt::Write as _;

use edgepull_platform::{Platform, executable::Verdict};
use serde::Serialize;

use super::super::{
    Failures, args,
    context::{Context, Target},
    output,
};
use crate::{
    asked::{Asked, wants_of},
    choice::Choice,
    containerd::StoreSource,
    error::{Error, Result},
    kind::Kind,
    layout::LayoutRef,
    oci::{Digest, Document, ImageConfig, Reference},
    proof::{Launch, Policy, Promise, Proof, of_layers, of_snapshot},
    pull::{image::is_artifact, plan::Image},
    resolve::{Want, resolve},
    session::Attached,
    source::Source,
};

/// The document, or one of several.
#[derive(Debug, Serialize)]
struct Row {
    schema: &'static str,
    reference: String,
    platform: String,
    selected_platform: Option<String>,
    namespace: Option<String>,
    snapshotter: Option<String>,
    address: Option<String>,
    digest: Option<Digest>,
    #[serde(flatten)]
    proof: Proof,
    warnings: Vec<String>,
    error: Option<Error>,
}

/// Where the image is looked at.
enum Place {
    /// In containerd, unpacked or not.
    Engine {
        attached: Box<Attached>,
        store: StoreSource,
    },
    Local(Target),
}

impl Place {
    fn source(&self) -> &dyn Source {
        match self {
            Self::Engine { store, .. } => store,
            Self::Local(target) => target.source(),
        }
    }

    fn attached(&self) -> Option<&Attached> {
        match self {
            Self::Engine { attached, .. } => Some(attached),
            Self::Local(_) => None,
        }
    }
}

pub(crate) async fn run(context: &Context, call: &args::Verify) -> Result<Failures> {
    let typed = &call.reference;
    let (place, root) = open(context, typed)
        .await
        .map_err(|error| named(error, typed))?;
    let asked = context.wants(&call.platform.platforms, place.attached(), false)?;
    let mut rows = Vec::new();
    for one in &asked {
        rows.extend(verify(context, call, &place, &root, one).await?);
    }
    print(context, &rows);
    let errors = rows.iter().filter_map(|row| row.error.as_ref());
    Ok(errors.map(Error::kind).collect())
}

fn named(error: Error, typed: &str) -> Error {
    error
        .during(format_args!("cannot verify `{typed}`"))
        .reference(typed)
}

/// The image that the reference stands for: of the engine's store or of a layout, never a
/// registry's.
async fn open(context: &Context, typed: &str) -> Result<(Place, Document)> {
    if LayoutRef::parse(typed).is_some() {
        let target = context.target(typed).await?;
        let root = target.root().await?;
        return Ok((Place::Local(target), root));
    }
    // No registry client: reading the system's CAs alone would cost more than all of this.
    let reference = &Context::reference(typed)?;
    let attached = context.attach().await?;
    let record = attached.engine.image(&reference.record_name()).await?;
    let record = record.ok_or_else(|| absent(reference, &attached))?;
    let store = StoreSource::new(attached.engine.clone());
    let root = store.document(&record.target).await?;
    let attached = Box::new(attached);
    Ok((Place::Engine { attached, store }, root))
}

fn absent(reference: &Reference, attached: &Attached) -> Error {
    Error::new(
        Kind::NotFound,
        format_args!(
            "containerd at {} has no image `{}` in namespace {}",
            attached.profile.address.display(),
            reference.record_name(),
            attached.profile.namespace
        ),
    )
    .hint(format_args!(
        "fetch it first: `edgepull pull {0}` judges it as well; or without a daemon: `edgepull pull --store oci:DIR {0}`, then `edgepull verify oci:DIR`",
        reference.typed()
    ))
}

async fn verify(
    context: &Context,
    call: &args::Verify,
    place: &Place,
    root: &Document,
    asked: &Asked,
) -> Result<Vec<Row>> {
    let host = context.host()?;
    let wants = wants_of(asked, root, place.source(), Some(host))
        .await
        .map_err(|error| named(error, &call.reference))?;
    let mut rows = Vec::new();
    for mut want in wants {
        // The bytes are about to be looked at, whatever the label says.
        want.probation = true;
        let mut row = Row {
            schema: "edgepull.verify/1",
            reference: call.reference.clone(),
            platform: want.asked.clone(),
            selected_platform: None,
            namespace: None,
            snapshotter: None,
            address: None,
            digest: None,
            proof: Proof::unknown(Vec::new(), "nothing was looked at"),
            warnings: Vec::new(),
            error: None,
        };
        if let Some(attached) = place.attached() {
            row.namespace = Some(attached.profile.namespace.clone());
            row.snapshotter = Some(attached.snapshotter.clone());
            row.address = Some(attached.profile.address.display().to_string());
        }
        if let Err(error) = look(context, call, place, root, &want, &mut row).await {
            let error = named(error, &call.reference);
            row.error = Some(error.platform(&want.asked).host(&host.platform));
        }
        rows.push(row);
    }
    Ok(rows)
}

async fn look(
    context: &Context,
    call: &args::Verify,
    place: &Place,
    root: &Document,
    want: &Want,
    row: &mut Row,
) -> Result<()> {
    let host = context.host()?;
    let resolution = resolve(root.clone(), place.source(), want).await?;
    let choice = resolution.outcome?.complete(place.source()).await?;
    row.selected_platform = choice.platform.as_ref().map(ToString::to_string);
    row.digest = Some(choice.leaf.descriptor.digest.clone());
    if is_artifact(&choice) {
        return Err(Error::new(
            Kind::Unsupported,
            "what the reference offers here is an artifact, of which nothing is started",
        )
        .hint("`edgepull pull --artifact-dir DIR` delivers and verifies its files"));
    }
    row.proof = match Launch::of(&choice.config) {
        Some(launch) if call.command.is_empty() => prove(context, place, &choice, launch).await?,
        Some(launch) => {
            let launch = launch.with_command(call.command.clone());
            prove(context, place, &choice, launch).await?
        }
        None => Proof::unknown(Vec::new(), "what the image starts cannot be read"),
    };
    let config = Platform::from_label(&ImageConfig::parse(&choice.config)?.label);
    // Who asks for a proof gets one, also where pulls go by labels.
    let policy = match context.session().config().policy {
        Policy::Off => Policy::Elf,
        policy => policy,
    };
    let judged = policy.judge(
        &row.proof,
        &Promise {
            label: choice.platform.as_ref(),
            config: config.as_ref(),
            manifest: &choice.leaf.descriptor.digest,
            host,
            emulation: context.session().config().emulation,
            probation: choice
                .probation
                .as_deref()
                .map(|error| (error, want.wanted.platforms())),
        },
    )?;
    row.warnings = judged.warnings;
    match &row.proof.verdict {
        Verdict::Refused { reason, .. } => Err(Error::new(
            Kind::NotRunnable,
            "what the image starts cannot run on this host",
        )
        .because(reason)
        .hint("to judge it as another host: `edgepull detect --record DIR` there, and `--sysroot DIR` here")),
        _ => Ok(()),
    }
}

async fn prove(context: &Context, place: &Place, choice: &Choice, launch: Launch) -> Result<Proof> {
    let host = context.host()?;
    let image = Image::new(choice, true)?;
    if let (Place::Engine { attached, .. }, Some(top)) = (place, image.top()) {
        let (engine, snapshotter) = (&attached.engine, &attached.snapshotter);
        if engine.has_snapshot(snapshotter, top).await? {
            let layers = image.steps.iter().map(|step| step.layer.digest.clone());
            return of_snapshot(engine, snapshotter, top, launch, layers.collect(), host).await;
        }
    }
    of_layers(place.source(), &image.manifest.layers, &launch, host).await
}

fn print(context: &Context, rows: &[Row]) {
    if context.printer.json() {
        match rows {
            [row] => context.printer.document(row),
            rows => context.printer.document(&rows),
        }
        return;
    }
    for row in rows {
        context.printer.text(&text(context, row));
        if let Some(error) = &row.error {
            output::print_error(error);
        }
    }
}

fn text(context: &Context, row: &Row) -> String {
    let p = &context.printer;
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(
            out,
            "{} {}",
            p.bold(&format!("{name:<10}")),
            output::plain(value)
        );
    };
    line("reference", &row.reference);
    if let Some(platform) = &row.selected_platform {
        line("platform", platform);
    }
    if let Some(digest) = &row.digest {
        line("digest", digest.as_str());
    }
    line("verdict", &row.proof.verdict.to_string());
    line("starts", &row.proof.entrypoint.join(" "));
    let told = row
        .proof
        .reasons
        .iter()
        .skip(usize::from(row.proof.verdict.reason().is_some()));
    for reason in told.chain(&row.warnings) {
        line("note", reason);
    }
    if !row.proof.chain.is_empty() {
        let table: Vec<Vec<String>> = row
            .proof
            .chain
            .iter()
            .map(|link| {
                vec![
                    link.path.clone(),
                    link.needs.clone(),
                    link.platform.clone().unwrap_or_else(|| "-".to_owned()),
                    link.layer.as_ref().map_or("-".to_owned(), Digest::short),
                ]
            })
            .collect();
        out.push_str(&output::table(&["PATH", "IS", "FOR", "LAYER"], &table));
    }
    out
}
