//! A command, found and judged.

use super::{
    inits::started_by_init,
    surroundings::Surroundings,
    tree::{FileNode, Place, Tree, Unseen, follow},
};
use crate::{
    Host, Platform,
    executable::{Found, Judgement, Kind, Needs, Step, Verdict, judge_with},
};

/// One file on the way from a command to what the kernel starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// In the root file system, without links where it was found; for people.
    pub path: String,
    /// What it needs.
    pub needs: Needs,
    /// The layer that it is from; `None` where that is not known.
    pub layer: Option<usize>,
}

/// What became of a command that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Looked {
    /// Whether it runs.
    pub verdict: Verdict,
    /// The files on the way, the command's own first.
    pub files: Vec<Seen>,
    /// Which of `files` the cores would run: the first that is no script.
    pub decisive: usize,
}

impl Looked {
    /// The file that the cores would run.
    pub fn file(&self) -> Option<&Seen> {
        self.files.get(self.decisive).or_else(|| self.files.last())
    }
}

/// Looks commands up, and judges them.
pub struct Looker<'a> {
    around: &'a Surroundings,
    tree: &'a mut dyn Tree,
    /// Whether something may be mounted, or come otherwise, that brings what is missing there.
    may_come: &'a dyn Fn(&[u8]) -> bool,
    /// By the path that was asked for: where it led.
    seen: Vec<(Vec<u8>, Vec<u8>, FileNode)>,
}

impl std::fmt::Debug for Looker<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Looker")
            .field("around", &self.around)
            .field("seen", &self.seen)
            .finish_non_exhaustive()
    }
}

impl<'a> Looker<'a> {
    /// Looks in `tree`. `may_come` says of an interpreter or a loader that is missing whether it is
    /// nevertheless no proof: something may be mounted there.
    pub fn new(
        around: &'a Surroundings,
        tree: &'a mut dyn Tree,
        may_come: &'a dyn Fn(&[u8]) -> bool,
    ) -> Self {
        Self {
            around,
            tree,
            may_come,
            seen: Vec::new(),
        }
    }

    /// Judges what `word` starts.
    ///
    /// # Errors
    ///
    /// Where it was not found or cannot be seen: the reason in words.
    pub fn command(&mut self, word: &str, host: &Host) -> Result<Looked, Unseen> {
        let mut without_rights = None;
        for place in self.around.places(word) {
            match follow(self.tree, &place) {
                Place::File { path, file } if file.executable => {
                    return self.judge(place, path, file, host);
                }
                Place::File { path, .. } => without_rights = without_rights.or(Some(path)),
                Place::Nothing => {}
                Place::Unseen(why) => {
                    return Err(Unseen(format!("`{}`: {why}", shown(&place))));
                }
            }
        }
        Err(Unseen(match without_rights {
            Some(path) => format!(
                "`/{}` is there, and nobody may execute it (permission denied, unless something is mounted over it)",
                shown(&path)
            ),
            None => format!(
                "`{}` is not in the image: it starts only where something is mounted that has it",
                word.escape_debug()
            ),
        }))
    }

    /// Judges what an init would start, if `words` are an init's: an init does nothing by itself,
    /// what it starts is what it is for.
    pub fn started(&mut self, words: &[String], host: &Host) -> Option<Result<Looked, Unseen>> {
        let started = started_by_init(words)?;
        let mut looked = self.command(started, host);
        if let Ok(looked) = &mut looked {
            may_be_for_a_shell(looked);
        }
        Some(looked)
    }

    fn judge(
        &mut self,
        asked: Vec<u8>,
        path: Vec<u8>,
        file: FileNode,
        host: &Host,
    ) -> Result<Looked, Unseen> {
        let Ok(needs) = self.tree.needs(&path) else {
            return Err(Unseen(format!("`/{}` could not be read", shown(&path))));
        };
        self.seen.push((asked.clone(), path, file));
        let judgement = judge_with(&needs, host, &mut |named| self.find(named));
        Ok(self.looked(Step { path: asked, needs }, judgement))
    }

    fn find(&mut self, named: &[u8]) -> Found {
        let asked = self.around.absolute(named);
        match follow(self.tree, &asked) {
            Place::File { path, file } if file.executable => match self.tree.needs(&path) {
                Ok(needs) => {
                    self.seen.push((named.to_vec(), path, file));
                    Found::File(Box::new(needs))
                }
                Err(_) => Found::Unseen,
            },
            Place::Nothing if !(self.may_come)(&asked) => Found::Missing,
            Place::File { .. } | Place::Nothing | Place::Unseen(_) => Found::Unseen,
        }
    }

    fn looked(&self, first: Step, judgement: Judgement) -> Looked {
        let steps: Vec<Step> = std::iter::once(first).chain(judgement.chain).collect();
        // The first that is no script is what the kernel starts; a loader comes after it.
        let decisive = steps
            .iter()
            .position(|step| !matches!(step.needs.kind, Kind::Script(_)))
            .unwrap_or_else(|| steps.len().saturating_sub(1));
        Looked {
            verdict: judgement.verdict,
            files: steps.into_iter().map(|step| self.file(step)).collect(),
            decisive,
        }
    }

    fn file(&self, step: Step) -> Seen {
        let seen = self.seen.iter().find(|(asked, ..)| *asked == step.path);
        Seen {
            path: seen.map_or_else(
                || shown(&step.path),
                |(_, path, _)| format!("/{}", shown(path)),
            ),
            needs: step.needs,
            layer: seen.and_then(|(_, _, file)| file.layer),
        }
    }
}

impl Seen {
    /// What its bytes are for.
    pub fn machine(&self) -> Option<Platform> {
        self.needs.machine()
    }
}

/// An init starts its command by execvp(3), which has a shell read what the kernel does not know.
fn may_be_for_a_shell(looked: &mut Looked) {
    let text = looked.files.first().is_some_and(|first| {
        matches!(
            first.needs.kind,
            Kind::Text { .. } | Kind::Empty | Kind::Zeros | Kind::Unknown
        )
    });
    if let Verdict::Refused { reason, .. } = &looked.verdict
        && text
    {
        looked.verdict = Verdict::Unknown {
            reason: format!("{reason}; the init that starts it may have a shell read it"),
        };
    }
}

/// A path for people.
fn shown(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}
