//! Scripts, by the kernel's own rules (`binfmt_script.c`).

/// `BINPRM_BUF_SIZE`: as much as the kernel reads of a file before it decides.
pub const BINPRM_BUF_SIZE: usize = 256;
/// The same before Linux 5.1.
const BEFORE_5_1: usize = 128;
/// A script's interpreter may be a script, up to this many files in a row (`exec_binprm`).
/// A handler counts as one, too.
pub const DEEPEST: usize = 5;

/// The first line of a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Script {
    /// The path of the interpreter, as the kernel will look it up.
    pub interpreter: Vec<u8>,
    /// All that follows it, as one argument.
    pub argument: Option<Vec<u8>>,
    /// What people trip over.
    pub pitfalls: Vec<Pitfall>,
}

/// What people trip over in a script's first line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pitfall {
    /// The line ends in CR LF, and the CR belongs to the interpreter's name.
    CarriageReturnInName,
    /// The line ends in CR LF, and the CR belongs to the argument.
    CarriageReturnInArgument,
    /// `env` is given several words; the kernel passes them as one, and `env` looks for a program
    /// of that name. `env -S` is what splits them.
    SeveralWordsForEnv,
    /// The path is relative to the working directory.
    RelativePath,
    /// The line is too long for kernels before 5.1, which cut it.
    LongForOldKernels,
    /// The line is longer than any kernel reads; the argument is cut.
    ArgumentCut,
}

impl Pitfall {
    /// In words, after "its first line".
    pub fn text(self) -> &'static str {
        match self {
            Pitfall::CarriageReturnInName => {
                "ends in CR LF (Windows line ends), so the kernel looks for an interpreter whose name ends in a carriage return"
            }
            Pitfall::CarriageReturnInArgument => {
                "ends in CR LF (Windows line ends), so the interpreter gets an argument that ends in a carriage return"
            }
            Pitfall::SeveralWordsForEnv => {
                "gives `env` several words, which the kernel passes as one: `env -S` would split them"
            }
            Pitfall::RelativePath => "names its interpreter relative to the working directory",
            Pitfall::LongForOldKernels => "is longer than kernels before 5.1 read",
            Pitfall::ArgumentCut => "is longer than the kernel reads, so its argument is cut",
        }
    }

    /// Does it make a failure likely?
    pub fn is_grave(self) -> bool {
        matches!(
            self,
            Pitfall::CarriageReturnInName
                | Pitfall::CarriageReturnInArgument
                | Pitfall::SeveralWordsForEnv
                | Pitfall::ArgumentCut
        )
    }
}

/// Why a file that starts with `#!` is none that the kernel starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BadLine {
    /// Nothing follows.
    NoInterpreter,
    /// The path goes on beyond what the kernel reads.
    TooLong,
}

fn blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// Reads the first line out of the file's first bytes, filled up with zeros to
/// [`BINPRM_BUF_SIZE`]. `None`: it does not begin with `#!`.
pub(super) fn read(head: &[u8]) -> Option<Result<Script, BadLine>> {
    let head = head.get(..BINPRM_BUF_SIZE.min(head.len()))?;
    head.starts_with(b"#!").then(|| first_line(head))
}

fn first_line(head: &[u8]) -> Result<Script, BadLine> {
    // `strnchr` finds no line end behind a NUL.
    let newline = head
        .iter()
        .position(|byte| *byte == b'\n' || *byte == 0)
        .filter(|at| head.get(*at) == Some(&b'\n'));
    let last = BINPRM_BUF_SIZE - 1;
    let mut cut = false;
    let line = if let Some(end) = newline {
        head.get(2..end)
    } else {
        let rest = head.get(2..).unwrap_or_default();
        let name = rest
            .iter()
            .position(|byte| !blank(*byte))
            .ok_or(BadLine::NoInterpreter)?;
        let end = rest
            .get(name..)
            .unwrap_or_default()
            .iter()
            .position(|byte| blank(*byte) || *byte == 0)
            .ok_or(BadLine::TooLong)?;
        cut = rest
            .get(name + end..)
            .unwrap_or_default()
            .iter()
            .all(|byte| *byte != 0);
        head.get(2..last.min(head.len()))
    };
    let line = line.unwrap_or_default();
    let start = line.iter().position(|byte| !blank(*byte));
    let end = line.iter().rposition(|byte| !blank(*byte));
    let (Some(start), Some(end)) = (start, end) else {
        return Err(BadLine::NoInterpreter);
    };
    let line = line.get(start..=end).unwrap_or_default();
    let stop = line.iter().position(|byte| blank(*byte) || *byte == 0);
    let (name, rest) = line.split_at(stop.unwrap_or(line.len()));
    if name.is_empty() {
        return Err(BadLine::NoInterpreter);
    }
    let argument = rest
        .iter()
        .position(|byte| !blank(*byte))
        .filter(|_| rest.first() != Some(&0))
        .and_then(|at| rest.get(at..)?.split(|byte| *byte == 0).next())
        .filter(|argument| !argument.is_empty());
    Ok(Script {
        interpreter: name.to_vec(),
        pitfalls: pitfalls(name, argument, newline, cut),
        argument: argument.map(<[u8]>::to_vec),
    })
}

fn pitfalls(
    name: &[u8],
    argument: Option<&[u8]>,
    newline: Option<usize>,
    cut: bool,
) -> Vec<Pitfall> {
    let mut found = Vec::new();
    if name.ends_with(b"\r") {
        found.push(Pitfall::CarriageReturnInName);
    }
    if argument.is_some_and(|argument| argument.ends_with(b"\r")) {
        found.push(Pitfall::CarriageReturnInArgument);
    }
    if name.ends_with(b"/env")
        && argument.is_some_and(|argument| {
            argument.iter().any(|byte| blank(*byte))
                && !argument.starts_with(b"-")
                && !argument.contains(&b'=')
        })
    {
        found.push(Pitfall::SeveralWordsForEnv);
    }
    if !name.starts_with(b"/") {
        found.push(Pitfall::RelativePath);
    }
    if cut && argument.is_some() {
        found.push(Pitfall::ArgumentCut);
    } else if newline.is_some_and(|end| end >= BEFORE_5_1 - 1) {
        found.push(Pitfall::LongForOldKernels);
    }
    found
}
