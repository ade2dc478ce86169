//! `agent`: the daemon, one pass of it, or a look at its configuration.

use std::path::{Path, PathBuf};

use super::super::{
    Failures,
    args::{self, Global},
    context::{self, Context, state_dir},
    output,
};
use crate::{
    config::Config,
    daemon::{self, Places, worker},
    desired::{Directory, Source},
    error::{Error, Result},
    kind::Kind,
    session::Session,
};

/// Where images are declared, beside the configuration.
const IMAGES: &str = "images.d";
const CONFIGURATION: &str = "/etc/edgepull";
const STATE: &str = "/var/lib/edgepull";

pub(crate) async fn run(
    context: &Context,
    global: &Global,
    call: &args::Agent,
) -> Result<Failures> {
    let flags = context::flags(global, None);
    if call.worker {
        worker::serve(|config| Session::new(flags, config)).await?;
        return Ok(Failures::new());
    }
    if global.sysroot.is_some() {
        return Err(Error::new(
            Kind::Usage,
            "the daemon works on this host, not on a recorded one",
        )
        .hint("`edgepull check --sysroot DIR` judges images for a recorded host"));
    }
    let places = places(global);
    let text = Config::text(places.config.as_deref())?;
    let config = Config::of_text(&text, places.config.as_deref())?;
    let session = Session::new(flags, config);
    if call.check_config {
        return check(context, &session, &places);
    }
    if !call.once {
        Box::pin(daemon::run(session, places, text)).await?;
        return Ok(Failures::new());
    }
    let handle = daemon::once(session, places, text).await?;
    let status = handle.board.document();
    if context.printer.json() {
        context.printer.document(&status);
    } else {
        for image in &status.images {
            let state = image.state.name();
            context
                .printer
                .text(&format!("{state}  {}\n", output::plain(&image.reference)));
        }
    }
    let failures = status.images.iter().filter_map(|image| {
        let error = image.failure()?;
        if !context.printer.json() {
            output::print_error(&error);
        }
        Some(error.kind())
    });
    let faults = status.daemon.faults.iter().map(Error::kind);
    Ok(failures.chain(faults).collect())
}

/// Where the daemon's things are: beside a named configuration, where systemd says, or
/// where they usually are.
pub(crate) fn places(global: &Global) -> Places {
    let configuration = match &global.config {
        Some(file) => file.parent().map(Path::to_path_buf).unwrap_or_default(),
        None => by_systemd("CONFIGURATION_DIRECTORY").unwrap_or_else(|| CONFIGURATION.into()),
    };
    let runtime = state_dir();
    Places {
        config: global.config.clone(),
        images: configuration.join(IMAGES),
        state: by_systemd("STATE_DIRECTORY").unwrap_or_else(|| STATE.into()),
        socket: runtime.join("edgepull.sock"),
        root: "/".into(),
        runtime,
    }
}

/// The first of the directories that systemd made for the unit.
fn by_systemd(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os(name)?)
        .next()
        .filter(|path| path.is_absolute())
}

/// Reads everything that is configured, and does nothing.
fn check(context: &Context, session: &Session, places: &Places) -> Result<Failures> {
    let read = Directory::new(&places.images).read(&session.traits()?);
    for note in &read.notes {
        output::warn(&format!("warning: {}", output::plain(note)));
    }
    if context.printer.json() {
        context.printer.document(&serde_json::json!({
            "schema": "edgepull.check-config/1",
            "images": read.images.iter().map(|image| serde_json::json!({
                "reference": image.reference.record_name(),
                "platform": image.platform,
                "namespace": image.namespace,
                "refresh": image.refresh.to_string(),
                "pin": image.pin,
                "keep_previous": image.keep_previous,
                "verify": image.verify,
                "file": image.origin.file.display().to_string(),
                "line": image.origin.line,
            })).collect::<Vec<_>>(),
            "faults": read.faults,
        }));
    } else {
        let rows: Vec<Vec<String>> = read
            .images
            .iter()
            .map(|image| {
                vec![
                    output::plain(&image.reference.record_name()).into_owned(),
                    image.platform.clone(),
                    image.namespace.clone(),
                    image.refresh.to_string(),
                    image.origin.to_string(),
                ]
            })
            .collect();
        context.printer.text(&output::table(
            &[
                "REFERENCE",
                "PLATFORM",
                "NAMESPACE",
                "REFRESH",
                "DECLARED IN",
            ],
            &rows,
        ));
    }
    for fault in &read.faults {
        output::print_error(fault);
    }
    Ok(read.faults.iter().map(Error::kind).collect())
}
