//! stdout is data, stderr is everything else; a reader that went away is no failure.

use std::io::{self, IsTerminal, Write};

use serde::Serialize;

use super::args::Output;
use crate::{error::Error, kind::Kind};

/// How results leave the process.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Printer {
    pub(crate) output: Output,
    pub(crate) colour: bool,
}

impl Printer {
    pub(crate) fn new(output: Output) -> Self {
        // https://no-color.org: set and not empty.
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            output,
            colour: !refused && io::stdout().is_terminal(),
        }
    }

    pub(crate) fn json(self) -> bool {
        self.output == Output::Json
    }

    /// One JSON document on stdout.
    pub(crate) fn document(self, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => self.text(&format!("{text}\n")),
            Err(error) => warn(&format!("cannot encode the result: {error}")),
        }
    }

    /// Text on stdout. A closed pipe ends the output, not the work.
    #[expect(
        clippy::unused_self,
        reason = "whoever prints has been given the printer"
    )]
    pub(crate) fn text(self, text: &str) {
        let mut out = io::stdout().lock();
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    pub(crate) fn bold(self, text: &str) -> String {
        if self.colour {
            format!("\x1b[1m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn green(self, text: &str) -> String {
        if self.colour {
            format!("\x1b[32m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }

    pub(crate) fn dim(self, text: &str) -> String {
        if self.colour {
            format!("\x1b[2m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// One line on stderr; nothing can be done if that fails.
pub(crate) fn warn(line: &str) {
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// The failure as people read it: the error, its causes, what was wanted and
/// offered, and the next step.
pub(crate) fn render_error(error: &Error) -> String {
    use std::fmt::Write as _;

    let mut text = format!("error: {}\n", error.message());
    for cause in error.causes() {
        let _ = writeln!(text, "  caused by: {cause}");
    }
    if error.kind() == Kind::PlatformMissing || !error.wanted().is_empty() {
        let list = |items: &[String]| {
            if items.is_empty() {
                "nothing".to_owned()
            } else {
                items.join(", ")
            }
        };
        let _ = writeln!(text, "wanted: {}", list(error.wanted()));
        let _ = writeln!(text, "offered: {}", list(error.offered()));
    }
    if let Some(hint) = error.hint_text() {
        let _ = writeln!(text, "hint: {hint}");
    }
    text
}

/// Prints a failure on stderr.
pub(crate) fn print_error(error: &Error) {
    let _ = io::stderr()
        .lock()
        .write_all(render_error(error).as_bytes());
}

/// Rows in columns, as wide as their longest cell; the last column is free.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let columns = head.len();
    let mut width: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in rows {
        for (at, cell) in row.iter().enumerate().take(columns) {
            if let Some(w) = width.get_mut(at) {
                *w = (*w).max(cell.chars().count());
            }
        }
    }
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut text = String::new();
        for (at, cell) in cells.enumerate() {
            text.push_str(cell);
            if at + 1 < columns {
                let pad = width
                    .get(at)
                    .copied()
                    .unwrap_or_default()
                    .saturating_sub(cell.chars().count());
                text.extend(std::iter::repeat_n(' ', pad + 2));
            }
        }
        format!("{}\n", text.trim_end())
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    text
}

/// Bytes for people: `1.5 MiB`.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut whole = count;
    let mut rest = 0;
    while whole >= 1024 && unit + 1 < UNITS.len() {
        rest = whole % 1024;
        whole /= 1024;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or("B");
    if unit == 0 {
        format!("{whole} {name}")
    } else {
        format!("{whole}.{} {name}", rest * 10 / 1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_top_down() {
        let error = Error::new(Kind::PlatformMissing, "cannot pull `r.example/app:1`")
            .because("no offered platform fits")
            .platforms(
                vec!["linux/arm64".to_owned()],
                vec!["linux/amd64".to_owned()],
            )
            .hint("ask the publisher for linux/arm64");
        assert_eq!(
            render_error(&error),
            "error: cannot pull `r.example/app:1`\n  caused by: no offered platform fits\n\
             wanted: linux/arm64\noffered: linux/amd64\nhint: ask the publisher for linux/arm64\n"
        );
    }

    #[test]
    fn tables_align_and_sizes_read_well() {
        let text = table(&["A", "B"], &[vec!["long".to_owned(), "x".to_owned()]]);
        assert_eq!(text, "A     B\nlong  x\n");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(bytes(u64::MAX), "16777215.9 TiB");
    }
}
