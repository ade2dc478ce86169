//! Platforms that registered interpreters add, always after what the cores run.

use super::{Findings, handled};
use crate::binfmt::Handler;
use crate::facts::Facts;
use crate::host::{Host, How, Runs};
use crate::order::vector;
use crate::platform::{Platform, printable};

/// Adds emulated platforms to `runs`, and warns of handlers that get in the way.
pub(super) fn add(facts: &Facts, host: &mut Host, findings: &mut Findings) {
    if !facts.handlers_enabled() {
        findings.note(
            "emulation",
            "switched off",
            "proc/sys/fs/binfmt_misc/status",
        );
        return;
    }
    let handlers: Vec<Handler> = facts
        .handlers()
        .filter_map(|(name, text)| Handler::parse(name, text))
        .filter(|handler| handler.enabled)
        .collect();
    host.by_extension = facts
        .handlers()
        .filter(|(_, text)| by_extension(text))
        .map(|(name, _)| printable(name))
        .collect();
    for architecture in handled() {
        let mut takers = handlers
            .iter()
            .filter(|handler| handler.takes(architecture));
        let Some(first) = takers.next() else { continue };
        let handler = std::iter::once(first)
            .chain(takers)
            .find(|handler| handler.works_in_containers())
            .unwrap_or(first);
        let source = format!("proc/sys/fs/binfmt_misc/{}", printable(&handler.name));
        findings.note(
            "emulation",
            format!(
                "{architecture} by {} (flags {})",
                handler.interpreter, handler.flags
            ),
            &source,
        );
        if takes_over(host, architecture, handler, findings) {
            continue;
        }
        if !handler.works_in_containers() {
            findings.warn(format!(
                "the handler `{}` for {architecture} lacks the flag F: it does not work in containers",
                printable(&handler.name)
            ));
            continue;
        }
        for platform in platforms(architecture) {
            host.runs.push(Runs {
                platform,
                how: How::Emulated,
                interpreter: Some(printable(&handler.interpreter)),
            });
        }
    }
    host.handlers = handlers;
}

/// An enabled handler that looks at the end of a file's name.
fn by_extension(text: &str) -> bool {
    let has = |start: &str| text.lines().any(|line| line.trim().starts_with(start));
    has("enabled") && has("extension ")
}

/// A handler goes before the kernel's own loader, even for what the cores would run.
fn takes_over(
    host: &mut Host,
    architecture: &str,
    handler: &Handler,
    findings: &mut Findings,
) -> bool {
    let by = printable(&handler.interpreter);
    let mut own = false;
    for runs in &mut host.runs {
        if runs.how != How::Emulated && runs.platform.architecture() == architecture {
            own = true;
            runs.interpreter = Some(by.clone());
        }
    }
    if own {
        findings.warn(format!(
            "the handler `{}` takes over {architecture} programs that the cores would run: they are emulated by {by}",
            printable(&handler.name)
        ));
    }
    own || host.kernel == architecture
}

/// What an emulator of an architecture runs: its baseline, and for 32-bit Arm what QEMU's
/// default CPU runs.
fn platforms(architecture: &str) -> Vec<Platform> {
    match architecture {
        "arm" => vector(&Platform::linux("arm", "v7")),
        other => vec![Platform::linux(other, "")],
    }
}
