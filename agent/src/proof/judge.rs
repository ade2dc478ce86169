//! The judgement of an image's entrypoint: found, followed to its interpreters and its loader.

use edgepull_platform::{
    Host, Platform,
    executable::{Refusal, Verdict},
    launch::{Looked, Looker, Seen, Tree, Unseen},
};
use serde::{Serialize, Serializer};

use super::launch::Launch;
use crate::oci::Digest;

/// Where an interpreter or a loader that is missing is missing: elsewhere something may be mounted
/// that brings it.
const SYSTEM: [&[u8]; 4] = [b"bin", b"sbin", b"usr", b"lib"];

/// One file on the way from the entrypoint to what the kernel starts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Link {
    /// In the image, without links where it was found.
    pub path: String,
    /// `elf`, `script`, `empty` and so on.
    pub kind: &'static str,
    /// The platform that its bytes tell.
    pub platform: Option<String>,
    /// What it is, and so needs, in words.
    pub needs: String,
    /// The layer that it is from; null where that is not known.
    pub layer: Option<Digest>,
}

/// What looking at an image came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Proof {
    #[serde(serialize_with = "name")]
    pub verdict: Verdict,
    /// All words of the command.
    pub entrypoint: Vec<String>,
    pub chain: Vec<Link>,
    /// Why it is refused or unknown, and what else is to be known.
    pub reasons: Vec<String>,
    /// What the file that the cores would run is for, by its bytes.
    #[serde(skip)]
    pub machine: Option<Platform>,
    /// Where that file is in `chain`.
    #[serde(skip)]
    pub decisive: usize,
}

fn name<S: Serializer>(verdict: &Verdict, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(verdict.name())
}

impl Proof {
    /// Nothing is known, and why.
    pub fn unknown(entrypoint: Vec<String>, reason: impl Into<String>) -> Self {
        let reason = reason.into();
        Self {
            verdict: Verdict::Unknown {
                reason: reason.clone(),
            },
            entrypoint,
            chain: Vec::new(),
            reasons: vec![reason],
            machine: None,
            decisive: 0,
        }
    }

    /// The file that decided.
    pub fn file(&self) -> Option<&Link> {
        self.chain.get(self.decisive).or_else(|| self.chain.last())
    }

    /// The kind of obstacle, where it is refused.
    pub fn refusal(&self) -> Option<Refusal> {
        match &self.verdict {
            Verdict::Refused { why, .. } => Some(*why),
            _ => None,
        }
    }
}

/// Judges what `launch` starts in `tree`. `layers` are the layers' digests, from the bottom up.
pub fn prove(launch: &Launch, tree: &mut dyn Tree, layers: &[Digest], host: &Host) -> Proof {
    let words = launch.words();
    let may_come = |path: &[u8]| !is_of_system(path) || launch.is_volume(path);
    let mut search = Looker::new(launch.surroundings(), tree, &may_come);
    let Some(first) = words.first().filter(|word| !word.is_empty()) else {
        return Proof::unknown(words, "the image names no command to start");
    };
    let mut proof = match search.command(first, host) {
        Ok(looked) => of_looked(looked, words.clone(), layers),
        Err(Unseen(reason)) => return Proof::unknown(words, reason),
    };
    if !proof.verdict.runs() {
        return proof;
    }
    if let Some(started) = search.started(&words, host) {
        match started {
            Ok(looked) => {
                let mut inner = of_looked(looked, words, layers);
                inner.decisive = inner.decisive.saturating_add(proof.chain.len());
                inner.chain.splice(0..0, proof.chain);
                return inner;
            }
            Err(Unseen(reason)) => proof
                .reasons
                .push(format!("what `{first}` starts: {reason}")),
        }
    } else if let Some(given) = launch.given()
        && let Ok(looked) = search.command(given, host)
        && let Verdict::Refused { why, reason } = &looked.verdict
        && why.is_foreign()
    {
        // Whether the entrypoint executes it is its own affair.
        let told = format!("the command `{given}`, which the entrypoint is given: {reason}");
        proof.reasons.push(told);
    }
    proof
}

fn of_looked(looked: Looked, entrypoint: Vec<String>, layers: &[Digest]) -> Proof {
    let decisive = looked.files.get(looked.decisive);
    Proof {
        machine: decisive.and_then(Seen::machine),
        chain: looked.files.iter().map(|file| link(file, layers)).collect(),
        reasons: looked
            .verdict
            .reason()
            .into_iter()
            .map(str::to_owned)
            .collect(),
        verdict: looked.verdict,
        entrypoint,
        decisive: looked.decisive,
    }
}

fn link(file: &Seen, layers: &[Digest]) -> Link {
    Link {
        path: file.path.clone(),
        kind: file.needs.kind.name(),
        platform: file.needs.platform().map(|platform| platform.to_string()),
        needs: file.needs.describe(),
        layer: file.layer.and_then(|layer| layers.get(layer)).cloned(),
    }
}

/// Below `/bin`, `/sbin`, `/usr` or one of `/lib…`.
fn is_of_system(path: &[u8]) -> bool {
    let first = path
        .split(|byte| *byte == b'/')
        .find(|name| !name.is_empty());
    first.is_some_and(|name| SYSTEM.contains(&name) || name.starts_with(b"lib"))
}

#[cfg(test)]
mod tests;
