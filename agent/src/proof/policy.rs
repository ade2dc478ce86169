//! What a policy makes of an image's proof: the table of labels and bytes.
//!
//! | label | bytes | `off` | `elf` | `strict` |
//! |---|---|---|---|---|
//! | fits | fit | ready | ready | ready |
//! | fits | for another machine | not looked at | `mislabelled` | `mislabelled` |
//! | fits | right machine, cannot run here | not looked at | `not_runnable` | `not_runnable` |
//! | does not fit (single manifest) | fit | `platform_missing` | ready, told | `mislabelled` |
//! | does not fit (single manifest) | do not fit, or unknown | `platform_missing` | the same | the same |
//! | entry right, config wrong | fit | ready | ready, told | `mislabelled` |
//! | any | unknown | label decides | label decides | label decides |
//!
//! Bytes of another machine that this host's cores run all the same (a 32-bit program under a
//! 64-bit label) are told and no more. Where the label itself is none that the cores run (another
//! platform was asked for by name), the bytes are compared with the label and not with the host.

use edgepull_platform::{
    Host, How, Platform,
    executable::{Refusal, Verdict},
};

use super::judge::Proof;
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::Digest,
};

/// `[policy] image`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Labels decide.
    Off,
    /// What is proven by bytes decides, labels where nothing is.
    #[default]
    Elf,
    /// The same, and labels have to be right.
    Strict,
}

/// `[policy] emulation`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Emulation {
    /// A program for other cores is not what a label for these promised.
    #[default]
    Never,
    /// It will do if a registered emulator runs it.
    Allow,
}

/// What an image is said to be, and for whom.
#[derive(Debug, Clone, Copy)]
pub struct Promise<'a> {
    /// The index entry's platform, or the config's for a single manifest.
    pub label: Option<&'a Platform>,
    /// The config's platform.
    pub config: Option<&'a Platform>,
    /// The manifest.
    pub manifest: &'a Digest,
    pub host: &'a Host,
    pub emulation: Emulation,
    /// The label fits nothing that was wanted: what it would come to, and what was wanted.
    pub probation: Option<(&'a Error, &'a [Platform])>,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Judged {
    /// What its owner should know.
    pub warnings: Vec<String>,
}

impl Policy {
    /// Judges an image that was looked at. Fails with `mislabelled`, `not_runnable` or
    /// `platform_missing`, and with the evidence that a publisher can act on.
    pub fn judge(self, proof: &Proof, promise: &Promise<'_>) -> Result<Judged> {
        let mut judged = Judged::default();
        if self == Self::Off {
            return match promise.probation {
                Some((error, _)) => Err(error.clone()),
                None => Ok(judged),
            };
        }
        if let Some((error, wanted)) = promise.probation {
            self.on_probation(proof, promise, error, wanted)?;
            judged.warnings.push(wrong_label(proof, promise));
            return Ok(judged);
        }
        let Some(label) = promise.label else {
            judged.warnings.extend(doubts(proof));
            return Ok(judged);
        };
        self.by_label(proof, promise, label, &mut judged)?;
        if let Some(config) = promise.config.filter(|config| !same_cores(config, label)) {
            let what = format!("its index entry says {label}, and its config says {config}");
            if self == Self::Strict && fits(proof, label) == Some(true) {
                return Err(mislabelled(proof, promise, label).because(what));
            }
            judged.warnings.push(what);
        }
        judged.warnings.extend(doubts(proof));
        Ok(judged)
    }

    fn by_label(
        self,
        proof: &Proof,
        promise: &Promise<'_>,
        label: &Platform,
        judged: &mut Judged,
    ) -> Result<()> {
        let on_cores = matches!(proof.verdict, Verdict::Native | Verdict::Compat32);
        let emulated = matches!(proof.verdict, Verdict::Emulated { .. });
        let promised_cores = promise
            .host
            .how(label)
            .is_some_and(|runs| runs.how != How::Emulated);
        if fits(proof, label) == Some(false) {
            let allowed = emulated && promise.emulation == Emulation::Allow;
            let undecided = matches!(proof.verdict, Verdict::Unknown { .. }) || !promised_cores;
            let may_run = (promised_cores && (on_cores || allowed))
                || (undecided && is_narrower(proof.machine.as_ref(), label));
            if !may_run || self == Self::Strict {
                return Err(mislabelled(proof, promise, label));
            }
            judged.warnings.push(wrong_label(proof, promise));
            return Ok(());
        }
        match &proof.verdict {
            // Of a platform that was asked for by name this host is no judge, but for what runs
            // nowhere.
            Verdict::Refused { why, .. } if !promised_cores && !is_anywhere(*why) => Ok(()),
            // By its label it fits, so something else than the machine is in the way.
            Verdict::Refused { why, reason } => Err(not_runnable(proof, *why, reason)),
            _ => Ok(()),
        }
    }

    fn on_probation(
        self,
        proof: &Proof,
        promise: &Promise<'_>,
        error: &Error,
        wanted: &[Platform],
    ) -> Result<()> {
        let runs = match &proof.verdict {
            Verdict::Native | Verdict::Compat32 => true,
            Verdict::Emulated { .. } => promise.emulation == Emulation::Allow,
            Verdict::Refused { .. } | Verdict::Unknown { .. } => false,
        };
        let machine = proof.machine.as_ref();
        let fitting = machine.and_then(|machine| {
            wanted
                .iter()
                .find(|wanted| same_cores(wanted, machine))
                .map(|wanted| (machine, wanted))
        });
        let Some((machine, wanted)) = fitting else {
            return Err(because_of(error.clone(), proof));
        };
        // A host's own platform has to run; of others only the machine is told.
        let own = promise
            .host
            .how(wanted)
            .is_some_and(|r| r.how != How::Emulated);
        if own && !runs {
            return Err(because_of(error.clone(), proof));
        }
        if self == Self::Strict {
            let label = promise.label.unwrap_or(machine);
            return Err(mislabelled(proof, promise, label)
                .because("policy `strict` wants labels to be right even where the bytes fit"));
        }
        Ok(())
    }
}

/// Whether the program is for what the label names. `None`: it does not tell.
fn fits(proof: &Proof, label: &Platform) -> Option<bool> {
    let machine = proof.machine.as_ref()?;
    // A runtime for it may be what the image is for, whatever its label says.
    if matches!(machine.os(), "wasi" | "wasip1") {
        return None;
    }
    // A loader or an emulator for it may be registered by the file's name.
    if machine.os() != label.os() && !matches!(proof.verdict, Verdict::Refused { .. }) {
        return None;
    }
    Some(same_cores(machine, label))
}

/// Whether the obstacle is the file's own, on whatever host.
fn is_anywhere(why: Refusal) -> bool {
    matches!(
        why,
        Refusal::Empty | Refusal::Format | Refusal::Depth | Refusal::Damaged
    )
}

/// A program for the 32-bit mode that cores of the label's kind may have.
fn is_narrower(machine: Option<&Platform>, label: &Platform) -> bool {
    let narrow = machine.filter(|machine| machine.os() == label.os());
    let narrow = narrow.map(Platform::architecture);
    matches!(
        (label.architecture(), narrow),
        ("amd64", Some("386")) | ("arm64", Some("arm"))
    )
}

/// System and architecture; variants are bounds, and a file's bytes seldom tell them.
fn same_cores(one: &Platform, other: &Platform) -> bool {
    one.os() == other.os() && one.architecture() == other.architecture()
}

fn doubts(proof: &Proof) -> Vec<String> {
    let about = |reason: &String| format!("not proven to run here: {reason}");
    match &proof.verdict {
        Verdict::Unknown { .. } => proof.reasons.iter().map(about).collect(),
        // Of a platform that was asked for by name: that it does not run here is no news.
        Verdict::Refused { .. } => Vec::new(),
        _ => proof.reasons.clone(),
    }
}

fn wrong_label(proof: &Proof, promise: &Promise<'_>) -> String {
    let label = promise
        .label
        .map_or_else(|| "nothing".to_owned(), ToString::to_string);
    format!(
        "the label says {label}, and {} (verdict: {}): the label is wrong",
        evidence(proof),
        proof.verdict.name()
    )
}

/// The file that decided, and where it is.
fn evidence(proof: &Proof) -> String {
    let Some(file) = proof.file() else {
        return "nothing was found".to_owned();
    };
    let layer = file
        .layer
        .as_ref()
        .map_or_else(String::new, |layer| format!(" of layer {layer}"));
    format!("`{}`{layer} is {}", file.path, file.needs)
}

fn because_of(error: Error, proof: &Proof) -> Error {
    let error = if proof.chain.is_empty() {
        error
    } else {
        error.because(evidence(proof))
    };
    match proof.reasons.first() {
        Some(reason) => error.because(reason),
        None => error,
    }
}

fn mislabelled(proof: &Proof, promise: &Promise<'_>, label: &Platform) -> Error {
    let machine = proof.machine.as_ref();
    let found = machine.map_or_else(|| "something else".to_owned(), ToString::to_string);
    Error::new(
        Kind::Mislabelled,
        format_args!("what is labelled {label} is for {found}"),
    )
    .because(evidence(proof))
    .because(format_args!(
        "manifest {} is labelled {label}",
        promise.manifest
    ))
    .platforms(
        vec![label.to_string()],
        machine.map(ToString::to_string).into_iter().collect(),
    )
    .hint(format_args!(
        "tell the publisher: the image for {label} has to be built for it and pushed again; until then name an older tag or digest"
    ))
}

fn not_runnable(proof: &Proof, why: Refusal, reason: &str) -> Error {
    let hint = match why {
        Refusal::Pages => {
            "boot a kernel with 4K pages (on a Raspberry Pi 5 `kernel=kernel8.img` in config.txt), or have the image built with segments aligned to 64K (`-z max-page-size=65536`)"
        }
        Refusal::Level => {
            "use an image that is built for this CPU's level: an older tag, or another base"
        }
        Refusal::Mode => {
            "use the 64-bit image of it, if there is one: `edgepull inspect` shows what is offered"
        }
        Refusal::Empty | Refusal::Damaged => {
            "if the image was sound once, `edgepull repair` compares its files with its layers and brings them back; else the publisher has to build it again"
        }
        Refusal::Interpreter => {
            "tell the publisher: what the program needs is not in the image, or is for another C library"
        }
        _ => "tell the publisher; `edgepull verify` shows each file on the way from the entrypoint",
    };
    let error = Error::new(
        Kind::NotRunnable,
        "what the image starts cannot run on this host",
    )
    .because(evidence(proof))
    .because(reason)
    .hint(hint);
    match why {
        Refusal::Empty | Refusal::Damaged => error.of_damage(),
        _ => error,
    }
}

#[cfg(test)]
mod tests;
