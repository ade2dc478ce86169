//! A file's needs against a host. See the table in the documentation of the module above.

use std::fmt;

use super::{BadLine, DEEPEST, Elf, Kind, Needs, Script, path};
use crate::binfmt::Handler;
use crate::host::Host;
use crate::platform::printable;

mod program;

/// Whether a host can execute a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The cores run it, and nothing in it speaks against this host.
    Native,
    /// The same, in the cores' 32-bit mode.
    Compat32,
    /// A registered handler runs it.
    Emulated {
        /// The handler's name in the kernel's table.
        handler: String,
    },
    /// It cannot run here.
    Refused {
        /// The kind of obstacle.
        why: Refusal,
        /// The obstacle in words.
        reason: String,
    },
    /// It may run or not.
    Unknown {
        /// What is not known, in words.
        reason: String,
    },
}

/// Why a file cannot run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// For other cores.
    Machine,
    /// For another operating system.
    System,
    /// For a 32-bit mode that is not there.
    Mode,
    /// For better cores of the same kind.
    Level,
    /// For smaller pages.
    Pages,
    /// For an old ABI that the kernel does not know.
    Abi,
    /// No bytes, or only zeros.
    Empty,
    /// Its structure is broken, or it is cut off.
    Damaged,
    /// Nothing that a kernel starts.
    Format,
    /// Its interpreter or loader is missing or is none.
    Interpreter,
    /// Scripts that call scripts, too many of them.
    Depth,
}

impl Refusal {
    /// Every one, in the order of reports.
    pub const ALL: [Refusal; 11] = [
        Refusal::Machine,
        Refusal::System,
        Refusal::Mode,
        Refusal::Level,
        Refusal::Pages,
        Refusal::Abi,
        Refusal::Empty,
        Refusal::Damaged,
        Refusal::Format,
        Refusal::Interpreter,
        Refusal::Depth,
    ];

    /// In one word, for reports and labels.
    pub const fn name(self) -> &'static str {
        match self {
            Refusal::Machine => "machine",
            Refusal::System => "system",
            Refusal::Mode => "mode",
            Refusal::Level => "level",
            Refusal::Pages => "pages",
            Refusal::Abi => "abi",
            Refusal::Empty => "empty",
            Refusal::Damaged => "damaged",
            Refusal::Format => "format",
            Refusal::Interpreter => "interpreter",
            Refusal::Depth => "depth",
        }
    }

    /// Does it show that the file is for another platform, rather than unable to run on its own?
    pub fn is_foreign(self) -> bool {
        matches!(self, Refusal::Machine | Refusal::System)
    }
}

impl Verdict {
    /// `native`, `compat32`, `emulated`, `refused` or `unknown`.
    pub fn name(&self) -> &'static str {
        match self {
            Verdict::Native => "native",
            Verdict::Compat32 => "compat32",
            Verdict::Emulated { .. } => "emulated",
            Verdict::Refused { .. } => "refused",
            Verdict::Unknown { .. } => "unknown",
        }
    }

    /// Why it is refused or unknown.
    pub fn reason(&self) -> Option<&str> {
        match self {
            Verdict::Refused { reason, .. } | Verdict::Unknown { reason } => Some(reason),
            _ => None,
        }
    }

    /// Will it be started, as far as can be told?
    pub fn runs(&self) -> bool {
        matches!(
            self,
            Verdict::Native | Verdict::Compat32 | Verdict::Emulated { .. }
        )
    }

    fn refused(why: Refusal, reason: impl Into<String>) -> Verdict {
        Verdict::Refused {
            why,
            reason: reason.into(),
        }
    }

    fn unknown(reason: impl Into<String>) -> Verdict {
        Verdict::Unknown {
            reason: reason.into(),
        }
    }

    /// The same, with its reason put behind the name of the file that it is about.
    fn about(self, what: &str) -> Verdict {
        match self {
            Verdict::Refused { why, reason } => Verdict::Refused {
                why,
                reason: format!("{what}: {reason}"),
            },
            Verdict::Unknown { reason } => Verdict::unknown(format!("{what}: {reason}")),
            runs => runs,
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Native | Verdict::Compat32 => f.write_str(self.name()),
            Verdict::Emulated { handler } => write!(f, "emulated by {handler}"),
            Verdict::Refused { reason, .. } => write!(f, "refused: {reason}"),
            Verdict::Unknown { reason } => write!(f, "unknown: {reason}"),
        }
    }
}

/// What the caller found under a path that a file names.
#[derive(Debug, Clone)]
pub enum Found {
    /// The file.
    File(Box<Needs>),
    /// There is none.
    Missing,
    /// Nobody looked: it is taken to be there.
    NotLooked,
    /// Somebody looked, and it cannot be told: it could not be read, may not be executed, or is
    /// where something may be mounted.
    Unseen,
}

/// A file on the way, after the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The path by which the one before named it.
    pub path: Vec<u8>,
    /// What it needs.
    pub needs: Needs,
}

/// A verdict, and the files that led to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Verdict,
    /// Interpreters and the loader, in order; at most [`DEEPEST`] and one.
    pub chain: Vec<Step>,
}

/// Judges one file by itself. A script alone is unknown, and loaders are taken to be there.
pub fn judge(needs: &Needs, host: &Host) -> Verdict {
    judge_with(needs, host, &mut |_| Found::NotLooked).verdict
}

/// Judges a file together with what it names: interpreters of scripts, a program's loader, and the
/// program of a handler that must be in the image. `find` looks such a path up, inside the image; one
/// that does not begin with `/` is relative to the working directory.
pub fn judge_with(needs: &Needs, host: &Host, find: &mut dyn FnMut(&[u8]) -> Found) -> Judgement {
    let mut chain: Vec<Step> = Vec::new();
    let mut doubts = Vec::new();
    let mut levels = 0;
    let verdict = loop {
        let current = chain.last().map_or(needs, |step| &step.needs);
        let about = chain.last().map(|step| path(&step.path));
        let handler = handler_for(current, host);
        let script = match &current.kind {
            Kind::Script(script) if handler.is_none() => script,
            _ => {
                levels += usize::from(handler.is_some());
                let verdict = if levels > DEEPEST {
                    too_deep()
                } else if let Some(handler) = handler {
                    emulated(current, handler, find)
                } else {
                    by_kind(current, host)
                };
                let verdict = match about {
                    Some(name) => verdict.about(&format!("its interpreter {name}")),
                    None => verdict,
                };
                break with_loader(verdict, handler.is_some(), host, &mut chain, needs, find);
            }
        };
        levels += 1;
        if levels > DEEPEST {
            break too_deep();
        }
        let interpreter = script.interpreter.clone();
        let doubt = script.pitfalls.iter().find(|pitfall| pitfall.is_grave());
        doubts.extend(doubt.copied());
        match find(&interpreter) {
            Found::File(needs) => chain.push(Step {
                path: interpreter,
                needs: *needs,
            }),
            Found::Missing => break missing_interpreter(script),
            Found::NotLooked => break alone(script),
            Found::Unseen => break unseen_interpreter(script),
        }
    };
    let verdict = match doubts.first() {
        Some(doubt) if verdict.runs() => {
            Verdict::unknown(format!("its first line {}", doubt.text()))
        }
        _ => verdict,
    };
    Judgement { verdict, chain }
}

fn too_deep() -> Verdict {
    Verdict::refused(
        Refusal::Depth,
        format!(
            "its interpreter is a script whose interpreter is a script, and so on: the kernel follows {DEEPEST} and no more (ELOOP)"
        ),
    )
}

fn pitfall(script: &Script) -> String {
    let doubt = script.pitfalls.iter().find(|pitfall| pitfall.is_grave());
    doubt.map_or_else(String::new, |doubt| {
        format!("; its first line {}", doubt.text())
    })
}

fn missing_interpreter(script: &Script) -> Verdict {
    Verdict::refused(
        Refusal::Interpreter,
        format!(
            "its interpreter `{}` does not exist{}",
            path(&script.interpreter),
            pitfall(script)
        ),
    )
}

fn unseen_interpreter(script: &Script) -> Verdict {
    Verdict::unknown(format!(
        "its interpreter `{}` is not there or cannot be looked at: it runs only where something is mounted that brings it{}",
        path(&script.interpreter),
        pitfall(script)
    ))
}

fn alone(script: &Script) -> Verdict {
    Verdict::unknown(format!(
        "it is a script: its interpreter `{}` decides, and was not looked at{}",
        path(&script.interpreter),
        pitfall(script)
    ))
}

/// The handler that takes a file before the kernel's own loaders see it. The last one registered
/// would, which the table does not tell: one that works in containers is preferred.
fn handler_for<'a>(needs: &Needs, host: &'a Host) -> Option<&'a Handler> {
    let takers = || {
        host.handlers
            .iter()
            .filter(|handler| !needs.head.is_empty() && handler.matches(&needs.head))
    };
    takers()
        .find(|handler| handler.works_in_containers())
        .or_else(|| takers().next())
}

fn emulated(needs: &Needs, handler: &Handler, find: &mut dyn FnMut(&[u8]) -> Found) -> Verdict {
    let name = printable(&handler.name);
    let by = printable(&handler.interpreter);
    if !handler.works_in_containers() {
        match find(handler.interpreter.as_bytes()) {
            Found::File(_) => {}
            Found::Missing => {
                return Verdict::refused(
                    Refusal::Interpreter,
                    format!(
                        "the handler `{name}` takes it and would start `{by}`, which does not exist in the image; the handler lacks the flag F"
                    ),
                );
            }
            Found::NotLooked | Found::Unseen => {
                return Verdict::unknown(format!(
                    "the handler `{name}` takes it, and works only where `{by}` is in the image, because it lacks the flag F"
                ));
            }
        }
    }
    if let Some(elf) = needs.elf() {
        if let Some(fault) = &elf.fault {
            return Verdict::unknown(format!(
                "the handler `{name}` takes it, but the file {}",
                fault.text
            ));
        }
        if elf.cut_off.is_some() {
            return Verdict::unknown(format!(
                "the handler `{name}` takes it, but the file is cut off"
            ));
        }
        if let Some(level @ 3..) = program::x86_level(elf) {
            return Verdict::unknown(format!(
                "it needs x86-64-v{level}, and whether the handler `{name}` emulates that is not known"
            ));
        }
    }
    Verdict::Emulated { handler: name }
}

/// A file that no handler takes and that is no script.
fn by_kind(needs: &Needs, host: &Host) -> Verdict {
    let by_name = |verdict: Verdict| match host.by_extension.first() {
        Some(handler) => Verdict::unknown(format!(
            "{}, unless the handler `{handler}` takes it by its file name",
            verdict.reason().unwrap_or_default()
        )),
        None => verdict,
    };
    let refused = |why, reason: &str| by_name(Verdict::refused(why, reason));
    match &needs.kind {
        Kind::Unreadable => Verdict::unknown("it could not be read"),
        Kind::Elf(elf) => {
            let verdict = program::judge(elf, needs.size, host);
            match &verdict {
                Verdict::Refused { why, .. } if why.is_foreign() => by_name(verdict),
                _ => verdict,
            }
        }
        // Judged by what it names.
        Kind::Script(script) => alone(script),
        Kind::Empty => refused(
            Refusal::Empty,
            "it is empty: 0 bytes, as a power cut or a broken copy leaves a file",
        ),
        Kind::Zeros => refused(
            Refusal::Empty,
            "it consists of zeros, as a power cut leaves a file",
        ),
        Kind::BadScript(BadLine::NoInterpreter) => refused(
            Refusal::Format,
            "its first line is `#!` without an interpreter",
        ),
        Kind::BadScript(BadLine::TooLong) => refused(
            Refusal::Format,
            "the interpreter's path in its first line is longer than the 256 bytes that the kernel reads",
        ),
        Kind::Wasm(_) => Verdict::unknown(
            "it is WebAssembly: the kernel does not start it, a container runtime for Wasm may",
        ),
        Kind::OldFormat(name) => Verdict::unknown(format!(
            "it is of the format {name}, which only old or special kernels start"
        )),
        Kind::Pe(_) | Kind::MachO(_) => refused(
            Refusal::System,
            &format!("it is {}, and this host runs Linux", needs.describe()),
        ),
        Kind::Java => refused(
            Refusal::Format,
            "it is a Java class: a Java runtime starts it, the kernel does not",
        ),
        Kind::Text {
            hidden_script: true,
        } => refused(
            Refusal::Format,
            "a byte order mark stands before its `#!`, so that the kernel does not see a script; save it as UTF-8 without one",
        ),
        Kind::Text { .. } => refused(
            Refusal::Format,
            "it is text without a `#!` line: only a shell would run it, the kernel does not (exec format error)",
        ),
        Kind::Unknown => refused(
            Refusal::Format,
            "it is no program of a kind that the kernel starts (exec format error)",
        ),
    }
}

/// The loader of a program that runs by itself. The kernel starts it, so it must be there and fit;
/// an emulator may bring its own.
fn with_loader(
    verdict: Verdict,
    emulated: bool,
    host: &Host,
    chain: &mut Vec<Step>,
    first: &Needs,
    find: &mut dyn FnMut(&[u8]) -> Found,
) -> Verdict {
    let program = chain.last().map_or(first, |step| &step.needs);
    // A missing or foreign loader is a proof, also where the program itself is in doubt; but not
    // where the doubt is whether the kernel reads the file as we do.
    let open = |elf: &&Elf| {
        verdict.runs()
            || matches!(verdict, Verdict::Unknown { .. })
                && !emulated
                && program::is_for_cores(elf, host)
                && elf.fault.is_none()
    };
    let Some(elf) = program.elf().filter(open) else {
        return verdict;
    };
    let Some(loader) = elf.interpreter.clone() else {
        return verdict;
    };
    let name = path(&loader);
    let machine = elf.architecture();
    match find(&loader) {
        Found::NotLooked => verdict,
        Found::Unseen => Verdict::unknown(format!(
            "its loader `{name}` could not be looked at: it is not readable or not executable, or comes with a mount"
        )),
        Found::Missing if emulated => Verdict::unknown(format!(
            "its loader `{name}` does not exist; it runs only if the emulator brings its own"
        )),
        Found::Missing => Verdict::refused(
            Refusal::Interpreter,
            format!(
                "its loader `{name}` does not exist in the image: the program was built for another C library or another Arm float ABI"
            ),
        ),
        Found::File(needs) => {
            let fits = match needs.elf() {
                _ if needs.kind == Kind::Unreadable => Verdict::unknown("it could not be read"),
                Some(elf) if elf.architecture() == machine && emulated => verdict.clone(),
                Some(elf) if elf.architecture() == machine => program::judge(elf, needs.size, host),
                _ if emulated => Verdict::unknown(format!(
                    "it is {}, and an emulator may not use it",
                    needs.describe()
                )),
                _ => Verdict::refused(
                    Refusal::Interpreter,
                    format!("it is {}, which cannot load this program", needs.describe()),
                ),
            };
            chain.push(Step {
                path: loader,
                needs: *needs,
            });
            let proof = matches!(fits, Verdict::Refused { .. });
            if fits.runs() || !verdict.runs() && !proof {
                verdict
            } else {
                fits.about(&format!("its loader {name}"))
            }
        }
    }
}
