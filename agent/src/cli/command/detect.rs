//! `detect`: the truth about this host.

use std::{
    fmt::Write as _,
    io::{Read, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use edgepull_platform::{Host, Selects};

use super::super::{Failures, context::Context, output};
use crate::{
    daemon::{EngineRow, HostDocument},
    error::{Error, Result},
    kind::Kind,
    session::Attached,
};

/// Where dockers listen.
const DOCKER: [&str; 2] = ["/run/docker.sock", "/var/run/docker.sock"];

pub(crate) async fn run(context: &Context, record: Option<&Path>) -> Result<Failures> {
    if let Some(dir) = record {
        context.facts()?.record(dir).map_err(|error| {
            Error::new(
                Kind::Internal,
                format_args!("cannot record this host in `{}`", dir.display()),
            )
            .caused_by(&error)
        })?;
    }
    let mut host = context.host()?.clone();
    // `detect` tells what it finds; several engines, or a dead one, are findings.
    let attached = match context.attach_if_alive().await {
        Ok((attached, None)) => attached,
        Ok((_, Some(error))) => {
            if context.global.address.is_some() {
                host.warnings.push(format!(
                    "{}; without an engine `selects` is what the host runs",
                    error.message()
                ));
            }
            None
        }
        Err(error) => {
            host.warnings.push(error.message().to_owned());
            None
        }
    };
    if context.global.sysroot.is_none()
        && let Some(warning) = docker_warning()
    {
        host.warnings.push(warning);
    }
    let selects = context.selects(attached.as_ref())?;
    for removed in &selects.removed {
        host.warnings.push(format!(
            "the engine would take {} images, but this host cannot run them: {}",
            removed.platform, removed.reason
        ));
    }
    if context.printer.json() {
        context.printer.document(&HostDocument {
            host: &host,
            selects: &selects.platforms,
            engine: attached.as_ref().map(EngineRow::of),
        });
    } else {
        context
            .printer
            .text(&text(context, &host, &selects, attached.as_ref()));
    }
    Ok(Failures::new())
}

fn text(context: &Context, host: &Host, selects: &Selects, attached: Option<&Attached>) -> String {
    let p = &context.printer;
    let mut out = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(
            out,
            "{} {}",
            p.bold(&format!("{name:<12}")),
            value.replace(['\n', '\r'], " ")
        );
    };
    let variant = if host.variant.is_empty() {
        String::new()
    } else {
        format!("  (variant {})", host.variant)
    };
    line("platform", &format!("{}{variant}", host.platform));
    line("machine", host.machine.as_deref().unwrap_or("not known"));
    line("kernel", &host.kernel);
    line("userland", &host.userland);
    line(
        "page size",
        &host.page_size.map_or("not known".to_owned(), |size| {
            format!("{} KiB", size / 1024)
        }),
    );
    if host.architecture == "arm64" || host.architecture == "arm" {
        let known = match host.aarch32_el0 {
            Some(true) => "yes",
            Some(false) => "no",
            None => "not known",
        };
        line("32-bit Arm", known);
    }
    if let Some(level) = &host.cpu_level {
        line("cpu level", level);
    }
    for (at, runs) in host.runs.iter().enumerate() {
        let how = match runs.how {
            edgepull_platform::How::Native => p.green("native"),
            edgepull_platform::How::Compat32 => p.green("compat32"),
            edgepull_platform::How::Emulated => {
                format!(
                    "emulated by {}",
                    runs.interpreter.as_deref().unwrap_or("a handler")
                )
            }
        };
        line(
            if at == 0 { "runs" } else { "" },
            &format!("{:<16} {how}", runs.platform.to_string()),
        );
    }
    let selected: Vec<String> = selects.platforms.iter().map(ToString::to_string).collect();
    line("selects", &selected.join(", "));
    match attached {
        Some(a) => line(
            "engine",
            &format!(
                "containerd {} at {} (namespace {}, snapshotter {}, {})",
                a.engine.version(),
                a.profile.address.display(),
                a.profile.namespace,
                a.snapshotter,
                a.platform
            ),
        ),
        None => line("engine", "none"),
    }
    out.push('\n');
    out.push_str(&p.bold("evidence\n"));
    for evidence in &host.evidence {
        let _ = writeln!(
            out,
            "  {} = {} {}",
            evidence.fact,
            output::plain(&evidence.value),
            p.dim(&format!("({})", evidence.source))
        );
    }
    for warning in &host.warnings {
        let _ = writeln!(out, "warning: {}", output::plain(warning));
    }
    out
}

/// A docker with graph drivers keeps its images where containerd does not see them.
fn docker_warning() -> Option<String> {
    let socket = DOCKER
        .iter()
        .find_map(|path| UnixStream::connect(path).ok())?;
    let answer = docker_info(socket).ok()?;
    if answer.contains("io.containerd.snapshotter.v1") {
        return None;
    }
    Some(
        "docker on this host keeps its images in a graph driver of its own and will not see what is pulled into containerd; \
         set `features.containerd-snapshotter` to true in daemon.json to change that"
            .to_owned(),
    )
}

/// `GET /info` over the socket: one request is not worth an HTTP client.
fn docker_info(mut socket: UnixStream) -> std::io::Result<String> {
    const LIMIT: u64 = 1 << 20;
    let patience = Some(Duration::from_secs(3));
    socket.set_read_timeout(patience)?;
    socket.set_write_timeout(patience)?;
    socket.write_all(b"GET /info HTTP/1.0\r\nHost: docker\r\n\r\n")?;
    let mut answer = Vec::new();
    socket.take(LIMIT).read_to_end(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}
