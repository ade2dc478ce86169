//! The judgement of an image's entrypoint: found, followed to its interpreters and its loader.

use edgepull_platform::{
    Host, Platform,
    executable::{Found, Judgement, Kind as FileKind, Needs, Refusal, Step, Verdict, judge_with},
};
use serde::{Serialize, Serializer};

use super::{
    launch::Launch,
    tree::{FileNode, Place, Tree, follow},
};
use crate::oci::Digest;

/// Programs that start, and wait for, the command after `--`.
const INITS: [&str; 5] = [
    "tini",
    "tini-static",
    "dumb-init",
    "catatonit",
    "docker-init",
];
/// Their options that have a value in the next word.
const WITH_VALUE: [&str; 4] = ["-e", "-p", "-r", "--rewrite"];
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
    let mut looker = Looker {
        launch,
        tree,
        layers,
        seen: Vec::new(),
    };
    let Some(first) = words.first().filter(|word| !word.is_empty()) else {
        return Proof::unknown(words, "the image names no command to start");
    };
    let mut proof = match looker.command(first, host) {
        Ok(judged) => looker.proof(judged, words.clone()),
        Err(reason) => return Proof::unknown(words, reason),
    };
    // An init does nothing by itself: what it starts is what the image is for.
    if proof.verdict.runs()
        && let Some(started) = started_by_init(&words)
    {
        match looker.command(started, host) {
            Ok(mut judged) => {
                may_be_for_a_shell(&mut judged);
                let mut inner = looker.proof(judged, words);
                inner.decisive = inner.decisive.saturating_add(proof.chain.len());
                inner.chain.splice(0..0, proof.chain);
                return inner;
            }
            Err(reason) => proof
                .reasons
                .push(format!("what `{first}` starts: {reason}")),
        }
    } else if proof.verdict.runs()
        && let Some(given) = launch.given()
        && let Ok(judged) = looker.command(given, host)
        && let Verdict::Refused { why, reason } = &judged.judgement.verdict
        && why.is_foreign()
    {
        // Whether the entrypoint executes it is its own affair.
        let told = format!("the command `{given}`, which the entrypoint is given: {reason}");
        proof.reasons.push(told);
    }
    proof
}

/// The command after the `--` of an init.
fn started_by_init(words: &[String]) -> Option<&str> {
    let (first, rest) = words.split_first()?;
    let name = first.rsplit('/').next()?;
    if !INITS.contains(&name) {
        return None;
    }
    let mut rest = rest.iter().map(String::as_str);
    // A `--` behind the command is the command's own.
    while let Some(word) = rest.next() {
        match word {
            "--" => return rest.next(),
            _ if WITH_VALUE.contains(&word) => drop(rest.next()),
            _ if word.starts_with('-') => {}
            _ => return None,
        }
    }
    None
}

/// An init starts its command by execvp(3), which has a shell read what the kernel does not know.
fn may_be_for_a_shell(judged: &mut Judged) {
    let kind = &judged.needs.kind;
    let text = matches!(
        kind,
        FileKind::Text { .. } | FileKind::Empty | FileKind::Zeros | FileKind::Unknown
    );
    if let Verdict::Refused { reason, .. } = &judged.judgement.verdict
        && text
    {
        judged.judgement.verdict = Verdict::Unknown {
            reason: format!("{reason}; the init that starts it may have a shell read it"),
        };
    }
}

/// A file that was judged.
struct Judged {
    path: Vec<u8>,
    needs: Needs,
    judgement: Judgement,
}

/// Looks files up, and remembers where they were.
struct Looker<'a> {
    launch: &'a Launch,
    tree: &'a mut dyn Tree,
    layers: &'a [Digest],
    /// By the path that was asked for: where it led.
    seen: Vec<(Vec<u8>, Vec<u8>, FileNode)>,
}

impl Looker<'_> {
    fn command(&mut self, word: &str, host: &Host) -> Result<Judged, String> {
        let mut without_rights = None;
        for place in self.launch.places(word) {
            match follow(self.tree, &place) {
                Place::File { path, file } if file.executable => {
                    return self.judge(place, path, file, host);
                }
                Place::File { path, .. } => without_rights = without_rights.or(Some(path)),
                Place::Nothing => {}
                Place::Unseen(why) => return Err(format!("`{}`: {why}", shown(&place))),
            }
        }
        Err(match without_rights {
            Some(path) => format!(
                "`/{}` is there, and nobody may execute it (permission denied, unless something is mounted over it)",
                shown(&path)
            ),
            None => format!(
                "`{}` is not in the image: it starts only where something is mounted that has it",
                word.escape_debug()
            ),
        })
    }

    fn judge(
        &mut self,
        asked: Vec<u8>,
        path: Vec<u8>,
        file: FileNode,
        host: &Host,
    ) -> Result<Judged, String> {
        let unread = |path: &[u8]| format!("`/{}` could not be read", shown(path));
        let Ok(needs) = self.tree.needs(&path) else {
            return Err(unread(&path));
        };
        self.seen.push((asked.clone(), path, file));
        let judgement = judge_with(&needs, host, &mut |named| self.find(named));
        Ok(Judged {
            path: asked,
            needs,
            judgement,
        })
    }

    fn find(&mut self, named: &[u8]) -> Found {
        let asked = self.launch.absolute(named);
        match follow(self.tree, &asked) {
            Place::File { path, file } if file.executable => match self.tree.needs(&path) {
                Ok(needs) => {
                    self.seen.push((named.to_vec(), path, file));
                    Found::File(Box::new(needs))
                }
                Err(_) => Found::Unseen,
            },
            Place::Nothing if is_of_system(&asked) && !self.launch.is_volume(&asked) => {
                Found::Missing
            }
            Place::File { .. } | Place::Nothing | Place::Unseen(_) => Found::Unseen,
        }
    }

    fn proof(&self, judged: Judged, entrypoint: Vec<String>) -> Proof {
        let first = Step {
            path: judged.path,
            needs: judged.needs,
        };
        let steps: Vec<&Step> = std::iter::once(&first)
            .chain(&judged.judgement.chain)
            .collect();
        // The first that is no script is what the kernel starts; a loader comes after it.
        let decisive = steps
            .iter()
            .position(|step| !matches!(step.needs.kind, FileKind::Script(_)))
            .unwrap_or_else(|| steps.len().saturating_sub(1));
        let machine = steps.get(decisive).and_then(|step| step.needs.machine());
        let chain = steps.iter().map(|step| self.link(step)).collect();
        let reasons = judged.judgement.verdict.reason().map(str::to_owned);
        Proof {
            reasons: reasons.into_iter().collect(),
            verdict: judged.judgement.verdict,
            entrypoint,
            chain,
            machine,
            decisive,
        }
    }

    fn link(&self, step: &Step) -> Link {
        let seen = self.seen.iter().find(|(asked, ..)| *asked == step.path);
        let path = seen.map_or_else(
            || shown(&step.path),
            |(_, path, _)| format!("/{}", shown(path)),
        );
        let layer = seen.and_then(|(_, _, file)| self.layers.get(file.layer?));
        Link {
            path,
            kind: step.needs.kind.name(),
            platform: step.needs.platform().map(|platform| platform.to_string()),
            needs: step.needs.describe(),
            layer: layer.cloned(),
        }
    }
}

/// Below `/bin`, `/sbin`, `/usr` or one of `/lib…`.
fn is_of_system(path: &[u8]) -> bool {
    let first = path
        .split(|byte| *byte == b'/')
        .find(|name| !name.is_empty());
    first.is_some_and(|name| SYSTEM.contains(&name) || name.starts_with(b"lib"))
}

/// A path for people.
fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}

#[cfg(test)]
mod tests;
