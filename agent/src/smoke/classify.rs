//! What came of a run, and what that means. A table: each row is what a program, a loader, a
//! shell or a runtime says and does, and what that proves.
//!
//! A program may print anything and exit with anything, so a text counts only with the exit code
//! that goes with it, and only where whoever says it begins a line so. A signal that ends a program
//! is 128 and its number, which a program may also exit with by itself; that is not told apart.

use serde::{Deserialize, Serialize};

/// What a run came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It ended with 0, or was alive for as long as was asked for.
    Passed,
    /// It ran, and ended with something else.
    Failed,
    /// It did not end in time.
    Timeout,
    /// It cannot run here.
    NotRunnable,
}

impl Outcome {
    /// As JSON has it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Timeout => "timeout",
            Self::NotRunnable => "not_runnable",
        }
    }
}

/// How a program ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ended<'a> {
    pub(super) code: u32,
    /// The kernel killed something in the container for want of memory.
    pub(super) oom: bool,
    pub(super) stdout: &'a str,
    pub(super) stderr: &'a str,
}

/// What that means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meaning {
    pub(super) outcome: Outcome,
    pub(super) signal: Option<&'static str>,
    pub(super) reason: Option<String>,
    /// The runtime said it in the program's place: a look at the files may say more.
    pub(super) by_runtime: bool,
}

/// Where a text must stand to count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// A line of standard error begins so.
    Begins,
    /// A line of standard error has it in it.
    Contains,
    /// It is all that was printed, on one line that begins with `exec `: by the runtime, in
    /// place of the program.
    Runtime,
}

struct Row {
    /// Exit codes that go with it; none: all but 0.
    codes: &'static [u32],
    place: Place,
    text: &'static str,
    reason: &'static str,
}

const FORMAT: &str = "the kernel does not take its program (exec format error): for another machine, empty, or a script without `#!`";
const NO_LOADER: &str =
    "its program is there, but the loader or interpreter that it names is not in the image";

/// What proves that a program cannot run here.
///
/// The runtime's own rows are runc's (exit code 1 up to 1.1, 255 since) and crun's, which says the
/// same with a capital letter.
const ROWS: [Row; 16] = [
    Row {
        codes: &[1, 255, 126],
        place: Place::Runtime,
        text: "exec format error",
        reason: FORMAT,
    },
    Row {
        codes: &[1, 255, 127],
        place: Place::Runtime,
        text: "no such file or directory",
        reason: NO_LOADER,
    },
    Row {
        codes: &[1, 255, 126],
        place: Place::Runtime,
        text: "permission denied",
        reason: "its program, its loader or its interpreter may not be executed",
    },
    // A shell that is the program, or that a script begins with.
    Row {
        codes: &[126],
        place: Place::Contains,
        text: "exec format error",
        reason: FORMAT,
    },
    // glibc, at the start and in the loader.
    Row {
        codes: &[127],
        place: Place::Begins,
        text: "fatal glibc error: cpu ",
        reason: "its C library is built for a newer CPU level than this CPU has",
    },
    Row {
        codes: &[127],
        place: Place::Contains,
        text: "cpu isa level is lower than required",
        reason: "it is built for a newer CPU level than this CPU has",
    },
    Row {
        codes: &[127],
        place: Place::Begins,
        text: "fatal: kernel too old",
        reason: "its C library needs a newer kernel",
    },
    Row {
        codes: &[127],
        place: Place::Contains,
        text: "elf load command alignment not page-aligned",
        reason: "a library of it is laid out for smaller pages than this kernel has",
    },
    Row {
        codes: &[127],
        place: Place::Contains,
        text: "error while loading shared libraries: ",
        reason: "a shared library that it needs is missing or does not fit",
    },
    Row {
        codes: &[1],
        place: Place::Contains,
        text: "' not found (required by ",
        reason: "it needs a newer C library than the image has",
    },
    // musl's loader.
    Row {
        codes: &[127],
        place: Place::Begins,
        text: "error loading shared library ",
        reason: "a shared library that it needs is missing or does not fit",
    },
    Row {
        codes: &[127],
        place: Place::Begins,
        text: "error relocating ",
        reason: "a shared library that it needs is another one than it was built with",
    },
    // Language runtimes and libraries that look by themselves.
    Row {
        codes: &[],
        place: Place::Begins,
        text: "<jemalloc>: unsupported system page size",
        reason: "its allocator (jemalloc) is built for smaller pages than this kernel has",
    },
    Row {
        codes: &[1],
        place: Place::Begins,
        text: "this program can only be run on amd64 processors with ",
        reason: "it is built for a newer CPU level than this CPU has (GOAMD64)",
    },
    Row {
        codes: &[1],
        place: Place::Begins,
        text: "runtime: this cpu has no ",
        reason: "it is built for a newer Arm than this CPU is (GOARM)",
    },
    // qemu-user in the place of the kernel.
    Row {
        codes: &[255],
        place: Place::Begins,
        text: "qemu-",
        reason: "its emulator cannot start it: the loader is missing in the image, or it is no program",
    },
];

/// Signals by number, and what they mean for whoever tries an image.
const SIGNALS: [(u32, &str, &str); 16] = [
    (1, "SIGHUP", ""),
    (2, "SIGINT", ""),
    (3, "SIGQUIT", ""),
    (
        4,
        "SIGILL",
        "an instruction that this CPU lacks: most likely built for a newer CPU level",
    ),
    (5, "SIGTRAP", "it stopped itself at a trap"),
    (
        6,
        "SIGABRT",
        "it gave up by itself (abort); its output says why",
    ),
    (
        7,
        "SIGBUS",
        "a memory access that the CPU or a cut-off file does not allow",
    ),
    (8, "SIGFPE", "a division by zero or the like"),
    (9, "SIGKILL", "it was killed from outside"),
    (
        11,
        "SIGSEGV",
        "a memory access where there is nothing: a fault of the program, or one laid out for other pages",
    ),
    (10, "SIGUSR1", ""),
    (12, "SIGUSR2", ""),
    (13, "SIGPIPE", ""),
    (14, "SIGALRM", ""),
    (15, "SIGTERM", "it was asked to end from outside"),
    (31, "SIGSYS", "a system call that is not allowed"),
];

/// What the end of a program means.
pub(super) fn ended(ended: Ended<'_>) -> Meaning {
    if ended.code == 0 {
        return Meaning {
            outcome: Outcome::Passed,
            signal: None,
            reason: None,
            by_runtime: false,
        };
    }
    if let Some(row) = ROWS.iter().find(|row| row.fits(ended)) {
        return Meaning {
            outcome: Outcome::NotRunnable,
            signal: None,
            reason: Some(row.reason.to_owned()),
            by_runtime: row.place == Place::Runtime,
        };
    }
    let (signal, reason) = by_code(ended);
    Meaning {
        outcome: Outcome::Failed,
        signal,
        reason: Some(reason),
        by_runtime: false,
    }
}

impl Row {
    fn fits(&self, ended: Ended<'_>) -> bool {
        if !self.codes.is_empty() && !self.codes.contains(&ended.code) {
            return false;
        }
        let mut lines = ended.stderr.lines().map(str::to_ascii_lowercase);
        match self.place {
            Place::Begins => lines.any(|line| line.starts_with(self.text)),
            Place::Contains => lines.any(|line| line.contains(self.text)),
            Place::Runtime => {
                let only = lines.next().unwrap_or_default();
                ended.stdout.is_empty()
                    && lines.next().is_none()
                    && only.starts_with("exec ")
                    && only.ends_with(self.text)
            }
        }
    }
}

fn by_code(ended: Ended<'_>) -> (Option<&'static str>, String) {
    let code = ended.code;
    let number = code
        .checked_sub(128)
        .filter(|number| (1..=64).contains(number));
    if ended.oom && number.is_some() {
        let name = signal_name(number);
        return (
            name,
            "it took more memory than it may, and the kernel killed it; `--memory` gives more"
                .to_owned(),
        );
    }
    let known = SIGNALS.iter().find(|(known, ..)| Some(*known) == number);
    match known {
        Some((_, name, "")) => (Some(name), format!("ended by {name}")),
        Some((_, name, meaning)) => (Some(name), format!("ended by {name}: {meaning}")),
        None => {
            let text = match code {
                126 => "exit code 126: a shell found a command that it could not execute",
                127 => {
                    "exit code 127: a shell did not find a command, or its loader or interpreter"
                }
                _ => "",
            };
            let mut reason = if text.is_empty() {
                format!("exit code {code}")
            } else {
                text.to_owned()
            };
            if ended.oom {
                reason.push_str("; the kernel killed a process of it for want of memory");
            }
            (None, reason)
        }
    }
}

fn signal_name(number: Option<u32>) -> Option<&'static str> {
    SIGNALS
        .iter()
        .find(|(known, ..)| Some(*known) == number)
        .map(|(_, name, _)| *name)
}

/// Why the runtime did not start it, if that is the image's fault; from the texts of runc and
/// crun. What is `None` is a fault of the host or of the engine.
pub(super) fn refused(text: &str, program: &str) -> Option<&'static str> {
    let named = [format!("exec: \"{program}\""), format!("`{program}`")];
    // Else it is about the runtime's own program, a hook, a mount.
    if !named.iter().any(|name| text.contains(name)) && !text.contains("open executable") {
        return None;
    }
    let text = text.to_ascii_lowercase();
    let rows = [
        ("exec format error", FORMAT),
        (
            "not found in $path",
            "the command is not in the image, in no directory of its PATH",
        ),
        (
            "permission denied",
            "its program may not be executed, or is a directory",
        ),
        ("is a directory", "its program is a directory"),
        (
            "no such file or directory",
            "its program is not in the image",
        ),
    ];
    rows.iter()
        .find(|(part, _)| text.contains(part))
        .map(|(_, reason)| *reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(code: u32, stderr: &str) -> Meaning {
        ended(Ended {
            code,
            oom: false,
            stdout: "",
            stderr,
        })
    }

    /// Texts as they were seen, with the codes that they came with.
    #[test]
    fn each_row_knows_its_text() {
        let seen = [
            (1, "exec /arm: exec format error\n"),
            (255, "exec /arm: exec format error\n"),
            (1, "exec /noloader: no such file or directory\n"),
            (1, "exec /script: permission denied\n"),
            (
                126,
                "/run.sh: line 2: /app: cannot execute binary file: Exec format error\n",
            ),
            (127, "Fatal glibc error: CPU does not support x86-64-v3\n"),
            (
                127,
                "/app: error while loading shared libraries: libx.so.1: CPU ISA level is lower than required\n",
            ),
            (127, "FATAL: kernel too old\n"),
            (
                127,
                "/app: error while loading shared libraries: libx.so.1: ELF load command alignment not page-aligned\n",
            ),
            (
                127,
                "/app: error while loading shared libraries: libc.so.6: cannot open shared object file: No such file or directory\n",
            ),
            (
                1,
                "/app: /lib/x86_64-linux-gnu/libc.so.6: version `GLIBC_2.38' not found (required by /app)\n",
            ),
            (
                127,
                "Error loading shared library libz.so.1: No such file or directory (needed by /app)\nError relocating /app: inflate: symbol not found\n",
            ),
            (127, "Error relocating /app: inflate: symbol not found\n"),
            (
                134,
                "<jemalloc>: Unsupported system page size\nout of memory\n",
            ),
            (139, "<jemalloc>: Unsupported system page size\n"),
            (
                1,
                "This program can only be run on AMD64 processors with v3 microarchitecture support.\n",
            ),
            (
                1,
                "runtime: this CPU has no VFPv3 floating point hardware, so it cannot run\nthis GOARM=7 binary. Recompile using GOARM=6.\n",
            ),
            (
                255,
                "qemu-aarch64: Could not open '/lib/ld-linux-aarch64.so.1': No such file or directory\n",
            ),
        ];
        for (code, text) in seen {
            let meaning = of(code, text);
            assert_eq!(meaning.outcome, Outcome::NotRunnable, "{code} {text}");
            assert_eq!(meaning.signal, None);
        }
        for row in &ROWS {
            let known = seen.iter().any(|(code, text)| {
                let ended = Ended {
                    code: *code,
                    oom: false,
                    stdout: "",
                    stderr: text,
                };
                ROWS.iter().find(|row| row.fits(ended)).map(|row| row.text) == Some(row.text)
            });
            assert!(known, "no example for `{}`", row.text);
        }
    }

    #[test]
    fn a_program_that_only_talks_of_it_is_not_taken_at_its_word() {
        for (code, stderr) in [
            (1, "starting\nexec /x: exec format error\n"),
            (3, "exec /x: exec format error\n"),
            (1, "a test of: exec format error\n"),
            (1, "Fatal glibc error: CPU does not support x86-64-v3\n"),
            (2, "error while loading shared libraries: x\n"),
            (1, "jemalloc: Unsupported system page size\n"),
        ] {
            assert_eq!(of(code, stderr).outcome, Outcome::Failed, "{code} {stderr}");
        }
        let talks = Ended {
            code: 1,
            oom: false,
            stdout: "hello\n",
            stderr: "exec /x: exec format error\n",
        };
        assert_eq!(ended(talks).outcome, Outcome::Failed);
        assert_eq!(
            of(0, "exec /x: exec format error\n").outcome,
            Outcome::Passed
        );
    }

    #[test]
    fn codes_and_signals_are_told() {
        for (code, signal, part) in [
            (3, None, "exit code 3"),
            (126, None, "could not execute"),
            (127, None, "did not find"),
            (132, Some("SIGILL"), "newer CPU level"),
            (134, Some("SIGABRT"), "abort"),
            (135, Some("SIGBUS"), "memory access"),
            (137, Some("SIGKILL"), "killed from outside"),
            (139, Some("SIGSEGV"), "memory access"),
            (159, Some("SIGSYS"), "system call"),
            (129, Some("SIGHUP"), "ended by SIGHUP"),
            (128, None, "exit code 128"),
            (255, None, "exit code 255"),
        ] {
            let meaning = of(code, "");
            assert_eq!((meaning.outcome, meaning.signal), (Outcome::Failed, signal));
            assert!(meaning.reason.is_some_and(|r| r.contains(part)), "{code}");
        }
        for (code, part) in [(137, "more memory"), (1, "want of memory")] {
            let meaning = ended(Ended {
                code,
                oom: true,
                stdout: "",
                stderr: "",
            });
            assert!(meaning.reason.is_some_and(|r| r.contains(part)), "{code}");
        }
    }

    /// As runc 1.1 and crun say it; the last ones are no fault of the image.
    #[test]
    fn what_the_runtime_refuses_is_told_apart() {
        for text in [
            r#"OCI runtime create failed: runc create failed: unable to start container process: exec: "/x": permission denied: unknown"#,
            r#"OCI runtime create failed: runc create failed: unable to start container process: exec: "/x": stat /x: no such file or directory: unknown"#,
            r#"OCI runtime create failed: runc create failed: unable to start container process: exec: "x": executable file not found in $PATH: unknown"#,
            "OCI runtime create failed: executable file `x` not found in $PATH: No such file or directory: unknown",
            "OCI runtime create failed: open executable: Permission denied: unknown",
            "OCI runtime start failed: exec container process `/x`: Exec format error",
        ] {
            let program = if text.contains("/x") { "/x" } else { "x" };
            assert!(refused(text, program).is_some(), "{text}");
        }
        for text in [
            "OCI runtime create failed: cgroups in hybrid mode not supported",
            r#"unable to retrieve OCI runtime error: exec: "runc": executable file not found in $PATH"#,
            "mkdir /run/containerd: permission denied",
            "error mounting \"proc\" to rootfs: no such file or directory",
        ] {
            assert_eq!(refused(text, "/x"), None, "{text}");
        }
    }
}
