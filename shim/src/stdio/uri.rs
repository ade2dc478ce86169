//! What a stream is to be connected to, as containerd's clients write it: a path, or a URI.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::error::{Error, Result};

/// Where a stream comes from or goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// Nothing was asked for.
    Null,
    /// Something that is there: a FIFO nearly always, which the client made.
    Path(PathBuf),
    /// A file that is made when it is missing.
    File(PathBuf),
    /// A program that takes the output.
    Logger(LoggerCommand),
}

/// A program that takes output, and how it is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LoggerCommand {
    pub(super) path: PathBuf,
    pub(super) arguments: Vec<OsString>,
    /// It must say that it is ready; its end alone is no such word (`binary-v2`).
    pub(super) strict: bool,
}

impl Target {
    /// Reads `value`, which is that of `stream`.
    pub(super) fn parse(stream: &str, value: &str) -> Result<Target> {
        let invalid = |why: &str| {
            Err(Error::invalid(format!(
                "{stream} {value:?} cannot be used: {why}"
            )))
        };
        if value.is_empty() {
            return Ok(Target::Null);
        }
        if value.contains('\0') {
            return invalid("it has a zero byte");
        }
        // A path is taken as it is: percent signs and question marks are part of it.
        if value.starts_with('/') {
            return Ok(Target::Path(value.into()));
        }
        let Some((scheme, rest)) = value.split_once(':') else {
            return invalid("it is no absolute path and no URI");
        };
        let rest = rest.split_once('#').map_or(rest, |(rest, _)| rest);
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let path = match rest.strip_prefix("//") {
            None => rest,
            Some(rest) => {
                let start = rest.find('/').unwrap_or(rest.len());
                let (host, path) = rest.split_at(start);
                if !host.is_empty() && host != "localhost" {
                    return invalid("it names a host; a local path has three slashes");
                }
                path
            }
        };
        let kind = scheme.to_ascii_lowercase();
        if !matches!(kind.as_str(), "fifo" | "file" | "binary" | "binary-v2") {
            return invalid(&format!(
                "the scheme {scheme:?} is unknown; fifo, file, binary and binary-v2 are known"
            ));
        }
        if !path.starts_with('/') {
            return invalid("its path is not absolute");
        }
        let Some(path) = decode(path, false).filter(|path| !path.contains(&0)) else {
            return invalid("its path has an invalid percent escape");
        };
        let path = PathBuf::from(OsString::from_vec(path));
        Ok(match kind.as_str() {
            "fifo" => Target::Path(path),
            "file" => Target::File(path),
            _ => Target::Logger(LoggerCommand {
                path,
                arguments: arguments(query),
                strict: kind == "binary-v2",
            }),
        })
    }
}

/// The arguments that a query stands for: every key and, as an argument of its own, the first of
/// its values, which is empty where there is none. That is how containerd reads it; its order is
/// a map's, ours that of the query. What cannot be decoded is left out, as it is there.
fn arguments(query: &str) -> Vec<OsString> {
    let mut pairs: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
    for pair in query
        .split('&')
        .filter(|pair| !pair.is_empty() && !pair.contains(';'))
    {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let (Some(key), Some(value)) = (decode(key, true), decode(value, true)) else {
            continue;
        };
        // An argument of a program ends at a zero byte.
        if key.contains(&0) || value.contains(&0) || pairs.iter().any(|(known, _)| *known == key) {
            continue;
        }
        pairs.push((key, value));
    }
    pairs
        .into_iter()
        .flat_map(|(key, value)| [key, value])
        .map(OsString::from_vec)
        .collect()
}

/// Undoes percent escapes; `None` if one is not valid.
fn decode(text: &str, plus_is_space: bool) -> Option<Vec<u8>> {
    let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let (high, low) = (digit(bytes.next())?, digit(bytes.next())?);
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' if plus_is_space => b' ',
            byte => byte,
        });
    }
    Some(decoded)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::error::Code;

    fn parse(value: &str) -> Target {
        Target::parse("stdout", value).unwrap()
    }

    fn logger(path: &str, arguments: &[&str], strict: bool) -> Target {
        Target::Logger(LoggerCommand {
            path: path.into(),
            arguments: arguments.iter().map(OsString::from).collect(),
            strict,
        })
    }

    #[test]
    fn what_clients_write_is_read_as_containerd_reads_it() {
        assert_eq!(parse(""), Target::Null);
        assert_eq!(
            parse("/run/a%20b?c#d"),
            Target::Path("/run/a%20b?c#d".into())
        );
        assert_eq!(parse("fifo:///run/a%20b"), Target::Path("/run/a b".into()));
        assert_eq!(parse("fifo:/run/a"), Target::Path("/run/a".into()));
        assert_eq!(
            parse("file:///var/log/x.log?y=z"),
            Target::File("/var/log/x.log".into())
        );
        assert_eq!(parse("FILE://localhost/x"), Target::File("/x".into()));
        assert_eq!(
            parse("binary:///bin/logger"),
            logger("/bin/logger", &[], false)
        );
        assert_eq!(
            parse("binary-v2:///bin/logger?id=a%26b&mode=x+y#f"),
            logger("/bin/logger", &["id", "a&b", "mode", "x y"], true)
        );
        // Only the first value of a key; a key without a value has an empty one.
        assert_eq!(
            parse("binary:///l?b=2&a=1&b=3&flag&&=v&bad=%zz&semi;colon=1"),
            logger("/l", &["b", "2", "a", "1", "flag", "", "", "v"], false)
        );
    }

    #[test]
    fn what_cannot_be_used_is_named() {
        for (value, why) in [
            ("npipe:////./pipe/x", "\"npipe\" is unknown"),
            ("relative/path", "no absolute path"),
            ("file:relative", "not absolute"),
            ("file://", "not absolute"),
            ("file://var/log/x", "names a host"),
            ("file:///a%2", "percent escape"),
            ("file:///a%00b", "percent escape"),
            ("/a\0b", "zero byte"),
        ] {
            let error = Target::parse("stdout", value).unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument, "{value}");
            assert!(error.message().contains(why), "{value}: {error}");
            assert!(error.message().starts_with("stdout"), "{error}");
        }
    }
}
