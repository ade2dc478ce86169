//! stdout is data, stderr is everything else; a reader that went away is no failure.

use std::{
    borrow::Cow,
    io::{self, IsTerminal, Write},
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

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
        Self {
            output,
            colour: !colour_is_refused() && io::stdout().is_terminal(),
        }
    }

    pub(crate) fn json(&self) -> bool {
        self.output == Output::Json
    }

    /// One JSON document on stdout.
    pub(crate) fn document(&self, value: &impl Serialize) {
        match serde_json::to_string_pretty(value) {
            Ok(text) => write_stdout(&format!("{}\n", json_safe(&text))),
            Err(error) => {
                let _ = UNWRITTEN
                    .set(Error::new(Kind::Internal, "cannot encode the result").caused_by(&error));
            }
        }
    }

    /// Text on stdout; of control characters only line ends and our own colours pass.
    pub(crate) fn text(&self, text: &str) {
        write_stdout(&screen(text, self.colour));
    }

    pub(crate) fn bold(&self, text: &str) -> String {
        self.styled(BOLD, text)
    }

    pub(crate) fn green(&self, text: &str) -> String {
        self.styled(GREEN, text)
    }

    pub(crate) fn dim(&self, text: &str) -> String {
        self.styled(DIM, text)
    }

    fn styled(&self, style: &str, text: &str) -> String {
        if self.colour {
            format!("{style}{text}{RESET}")
        } else {
            text.to_owned()
        }
    }
}

/// <https://no-color.org>: set and not empty.
fn colour_is_refused() -> bool {
    std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
}

/// Whether logs may be coloured.
pub(crate) fn colour_on_stderr() -> bool {
    !colour_is_refused() && !JSON_LINES.load(Ordering::Relaxed) && io::stderr().is_terminal()
}

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const RESET: &str = "\x1b[0m";

/// Why a result did not reach stdout, if it did not.
static UNWRITTEN: OnceLock<Error> = OnceLock::new();

/// The first failure to write a result; a reader that went away is none.
pub(crate) fn unwritten() -> Option<&'static Error> {
    UNWRITTEN.get()
}

fn write_stdout(text: &str) {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            let _ = UNWRITTEN.set(Error::io("write to", "standard output".as_ref(), &error));
        }
        _ => {}
    }
}

/// Characters that move a cursor, hide text or reorder it: an index, a registry or a
/// device tree must not write to the terminal with them.
fn harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{e0000}'..='\u{e0fff}')
}

/// Foreign text as one line that is safe on a terminal.
pub(crate) fn plain(text: &str) -> Cow<'_, str> {
    if !text.chars().any(harmful) {
        return Cow::Borrowed(text);
    }
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if harmful(c) {
            safe.extend(c.escape_default());
        } else {
            safe.push(c);
        }
    }
    Cow::Owned(safe)
}

/// Lines for a terminal; with `colour` our own styles stay what they are.
fn screen(text: &str, colour: bool) -> String {
    let mut safe = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let style = [BOLD, DIM, GREEN, RESET]
            .into_iter()
            .find(|style| colour && rest.starts_with(*style));
        let taken = if let Some(style) = style {
            safe.push_str(style);
            style.len()
        } else {
            if c == '\n' || !harmful(c) {
                safe.push(c);
            } else {
                safe.extend(c.escape_default());
            }
            c.len_utf8()
        };
        rest = rest.get(taken..).unwrap_or_default();
    }
    safe
}

/// The same JSON without harmful characters, which stand in its strings only.
pub(crate) fn json_safe(text: &str) -> String {
    use std::fmt::Write as _;

    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || !harmful(c) {
            safe.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                let _ = write!(safe, "\\u{unit:04x}");
            }
        }
    }
    safe
}

/// With `--progress json` every line on stderr is JSON, failures and logs too.
static JSON_LINES: AtomicBool = AtomicBool::new(false);

pub(crate) fn stderr_is_json() {
    JSON_LINES.store(true, Ordering::Relaxed);
}

/// One JSON value as one line on stderr.
pub(crate) fn json_line(value: &impl Serialize) {
    if let Ok(line) = serde_json::to_string(value) {
        write_stderr(&format!("{}\n", json_safe(&line)));
    }
}

/// Nothing can be done if that fails.
fn write_stderr(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}

/// One line on stderr.
pub(crate) fn warn(line: &str) {
    write_stderr(&format!("{}\n", plain(line)));
}

/// Where logs go: lines on stderr, in their own event with `--progress json`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if JSON_LINES.load(Ordering::Relaxed) {
            let message = String::from_utf8_lossy(line);
            json_line(&serde_json::json!({ "event": "log", "message": message.trim_end() }));
            return Ok(line.len());
        }
        // A log that cannot be written is no reason to stop.
        let _ = io::stderr().lock().write_all(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The failure as people read it: the error, its causes, what was wanted and
/// offered, and the next step.
pub(crate) fn render_error(error: &Error) -> String {
    use std::fmt::Write as _;

    let mut text = format!("error: {}\n", plain(error.message()));
    for cause in error.causes() {
        let _ = writeln!(text, "  caused by: {}", plain(cause));
    }
    if error.kind() == Kind::PlatformMissing || !error.wanted().is_empty() {
        let list = |items: &[String]| {
            if items.is_empty() {
                "nothing".to_owned()
            } else {
                items.join(", ")
            }
        };
        let _ = writeln!(text, "wanted: {}", plain(&list(error.wanted())));
        let _ = writeln!(text, "offered: {}", plain(&list(error.offered())));
    }
    if let Some(hint) = error.hint_text() {
        let _ = writeln!(text, "hint: {}", plain(hint));
    }
    text
}

/// Prints a failure on stderr.
pub(crate) fn print_error(error: &Error) {
    if JSON_LINES.load(Ordering::Relaxed) {
        json_line(&serde_json::json!({ "event": "error", "error": error }));
    } else {
        write_stderr(&render_error(error));
    }
}

/// Rows in columns, as wide as their longest cell; the last column is free.
pub(crate) fn table(head: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<Cow<'_, str>>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| plain(cell)).collect())
        .collect();
    let columns = head.len();
    let mut width: Vec<usize> = head.iter().map(|h| h.chars().count()).collect();
    for row in &rows {
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
    for row in &rows {
        text.push_str(&line(&mut row.iter().map(AsRef::as_ref)));
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
    fn foreign_text_does_not_reach_the_terminal_as_it_is() {
        let evil = "a\x1b[2J\u{9b}1m\r\nok\u{202e}b";
        let error = Error::new(Kind::NotFound, evil)
            .because(evil)
            .platforms(vec![evil.to_owned()], vec![evil.to_owned()])
            .hint(evil);
        for text in [
            render_error(&error),
            table(&["A"], &[vec![evil.to_owned()]]),
            screen(&format!("{BOLD}x{RESET} {}\n", plain(evil)), false),
        ] {
            assert!(!text.replace('\n', "").chars().any(harmful), "{text:?}");
            assert!(!text.contains("\nok"), "a line of its own: {text:?}");
        }
        assert_eq!(
            screen("\x1b[1mx\x1b[0m\x1b[2J\n", true),
            "\x1b[1mx\x1b[0m\\u{1b}[2J\n"
        );
        let json = json_safe(&serde_json::to_string_pretty(&[evil, "\u{e0041}"]).expect("plain"));
        assert!(!json.replace('\n', "").chars().any(harmful), "{json:?}");
        let back: Vec<String> = serde_json::from_str(&json).expect("still JSON");
        assert_eq!(back, [evil, "\u{e0041}"]);
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
