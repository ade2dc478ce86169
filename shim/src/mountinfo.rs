//! `/proc/PID/mountinfo` (proc(5)).

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;

/// Hands the lines of such a file to `each`, one at a time: there may be thousands.
///
/// # Errors
/// What the kernel says; what was read before stays handed.
pub fn lines(file: &Path, mut each: impl FnMut(&str)) -> io::Result<()> {
    let mut reader = BufReader::with_capacity(4096, File::open(file)?);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        each(String::from_utf8_lossy(&line).trim_end_matches('\n'));
        line.clear();
    }
    Ok(())
}

/// A path without the kernel's escapes: `\040` is a blank.
pub fn unescape(path: &str) -> String {
    let mut parts = path.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let code = part
            .get(..3)
            .and_then(|code| u8::from_str_radix(code, 8).ok());
        if let Some(code) = code {
            plain.push(char::from(code));
            plain.push_str(&part[3..]);
        } else {
            plain.push('\\');
            plain.push_str(part);
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn escapes_are_undone() {
        for (escaped, plain) in [
            ("/a\\040b\\011c\\012d\\134e", "/a b\tc\nd\\e"),
            ("/a\\04", "/a\\04"),
            ("/a\\", "/a\\"),
            ("\\999é\\é", "\\999é\\é"),
        ] {
            assert_eq!(unescape(escaped), plain);
        }
    }

    #[test]
    fn every_line_comes() {
        let mut seen = 0;
        lines(Path::new("/proc/self/mountinfo"), |line| {
            assert!(line.contains(" - ") && !line.ends_with('\n'), "{line}");
            seen += 1;
        })
        .unwrap();
        assert!(seen > 0);
        assert!(lines(Path::new("/none"), |_| {}).is_err());
    }
}
