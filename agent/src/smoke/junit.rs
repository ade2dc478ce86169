//! A report for CI systems: `JUnit`'s XML, as Jenkins and GitLab read it.

use std::{
    fmt::Write as _,
    fs::{File, OpenOptions},
    io::Write as _,
    os::unix::fs::OpenOptionsExt,
    path::Path,
    time::Duration,
};

use jiff::Timestamp;

use crate::{
    error::{Error, Result},
    kind::Kind,
};

/// One test of it.
#[derive(Debug, Clone, Copy)]
pub struct Case<'a> {
    /// The reference.
    pub class: &'a str,
    /// The platform.
    pub name: &'a str,
    pub time: Duration,
    pub result: Status<'a>,
    pub stdout: &'a str,
    pub stderr: &'a str,
}

/// How it went.
#[derive(Debug, Clone, Copy)]
pub enum Status<'a> {
    Passed,
    /// It ran or could not: kind, one line, the whole story.
    Failed(&'a str, &'a str, &'a str),
    /// It did not come to a verdict: the same.
    Error(&'a str, &'a str, &'a str),
}

/// The document.
pub fn document(suite: &str, cases: &[Case<'_>], now: Timestamp) -> String {
    let count =
        |wanted: fn(&Status<'_>) -> bool| cases.iter().filter(|case| wanted(&case.result)).count();
    let failures = count(|result| matches!(result, Status::Failed(..)));
    let errors = count(|result| matches!(result, Status::Error(..)));
    let time: Duration = cases.iter().map(|case| case.time).sum();
    let counts = format!(
        "tests=\"{}\" failures=\"{failures}\" errors=\"{errors}\" time=\"{}\"",
        cases.len(),
        seconds(time)
    );
    let mut text = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(text, "<testsuites name=\"{}\" {counts}>", safe(suite));
    let _ = writeln!(
        text,
        "  <testsuite name=\"{}\" {counts} skipped=\"0\" timestamp=\"{}\">",
        safe(suite),
        now.strftime("%Y-%m-%dT%H:%M:%S")
    );
    for case in cases {
        let _ = writeln!(
            text,
            "    <testcase classname=\"{}\" name=\"{}\" time=\"{}\">",
            safe(case.class),
            safe(case.name),
            seconds(case.time)
        );
        let (tag, told) = match case.result {
            Status::Passed => ("", None),
            Status::Failed(kind, line, all) => ("failure", Some((kind, line, all))),
            Status::Error(kind, line, all) => ("error", Some((kind, line, all))),
        };
        if let Some((kind, line, all)) = told {
            let _ = writeln!(
                text,
                "      <{tag} type=\"{}\" message=\"{}\">{}</{tag}>",
                safe(kind),
                safe(line),
                safe(all)
            );
        }
        for (tag, output) in [("system-out", case.stdout), ("system-err", case.stderr)] {
            if !output.is_empty() {
                let _ = writeln!(text, "      <{tag}>{}</{tag}>", safe(output));
            }
        }
        text.push_str("    </testcase>\n");
    }
    text.push_str("  </testsuite>\n</testsuites>\n");
    text
}

/// Whether there is a place for it: a run may be long, and its report must not be lost.
pub fn check(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    if parent.is_none_or(Path::is_dir) && path.file_name().is_some() && !path.is_dir() {
        return Ok(());
    }
    Err(Error::new(
        Kind::Usage,
        format_args!("`{}` cannot be a report's file", path.display()),
    )
    .hint("its folder has to be there"))
}

/// Writes it in one step: whoever reads the file finds the old one, or all of the new one.
pub fn write(path: &Path, document: &str) -> Result<()> {
    let failed = |error: &std::io::Error| Error::io("write", path, error);
    let mut name = path
        .file_name()
        .ok_or_else(|| failed(&std::io::ErrorKind::InvalidInput.into()))?
        .to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let new = path.with_file_name(name);
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&new)
        .and_then(|mut file: File| {
            file.write_all(document.as_bytes())?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&new, path));
    written.map_err(|error| {
        // It is of no use to anybody; that it stays does no harm.
        let _ = std::fs::remove_file(&new);
        failed(&error)
    })
}

fn seconds(time: Duration) -> String {
    format!("{:.3}", time.as_secs_f64())
}

/// Text for element or attribute: what XML 1.0 has no character for is left out, whatever the
/// escape.
fn safe(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\t'
            | '\n'
            | '\u{20}'..='\u{7e}'
            | '\u{a0}'..='\u{d7ff}'
            | '\u{e000}'..='\u{fffd}'
            | '\u{10000}'..='\u{10ffff}' => safe.push(c),
            _ => {}
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_counts_and_escapes() {
        let case = |result, stdout| Case {
            class: "r/app:1",
            name: "linux/arm64",
            time: Duration::from_millis(1500),
            result,
            stdout,
            stderr: "",
        };
        let cases = [
            case(Status::Passed, ""),
            case(
                Status::Failed("smoke_failed", "a \"<line>\"", "a & b"),
                "\u{1b}[2J\u{0}]]>\u{fffe}\nok\t\u{85}",
            ),
            case(Status::Error("not_found", "x", "y"), ""),
        ];
        let now: Timestamp = "2026-01-02T03:04:05.6Z".parse().expect("a time");
        let text = document("edgepull smoke", &cases, now);
        assert!(text.contains(
            "tests=\"3\" failures=\"1\" errors=\"1\" time=\"4.500\" skipped=\"0\" timestamp=\"2026-01-02T03:04:05\""
        ));
        assert!(text.contains("message=\"a &quot;&lt;line&gt;&quot;\">a &amp; b</failure>"));
        assert!(
            text.contains("<system-out>[2J]]&gt;\nok\t</system-out>"),
            "{text}"
        );
        assert!(text.contains("<error type=\"not_found\""));
    }

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("junit.xml");
        std::fs::write(&path, "old").expect("written");
        write(&path, "new").expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("there"), "new");
        let names = std::fs::read_dir(dir.path()).expect("listed").count();
        assert_eq!(names, 1);
        assert!(write(&dir.path().join("none/junit.xml"), "x").is_err());
        assert!(write(Path::new("/"), "x").is_err());
        for (wrong, fits) in [
            (path.clone(), true),
            ("new.xml".into(), true),
            (dir.path().join("none/junit.xml"), false),
            (dir.path().to_owned(), false),
            ("/".into(), false),
        ] {
            assert_eq!(check(&wrong).is_ok(), fits, "{wrong:?}");
        }
    }
}
