//! TOML as it is read here: every fault with its line and its key, tables in the order
//! of their file, nothing that is not asked for. What the keys mean is for others.

use std::{ops::Range, time::Duration};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use crate::redact::printable;

/// How much of a key is shown.
const MAX_SHOWN: usize = 120;

/// What cannot be understood, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fault {
    /// From 1.
    pub(crate) line: usize,
    /// The key, dotted, as far as it is known.
    pub(crate) key: Option<String>,
    pub(crate) what: String,
}

/// A text that is TOML.
pub(crate) fn document(text: &str) -> Result<Spanned<DeTable<'_>>, Fault> {
    DeTable::parse(text).map_err(|error| Fault {
        line: line(text, error.span().map_or(0, |span| span.start)),
        key: None,
        what: error.message().trim().replace('\n', ", "),
    })
}

pub(crate) type Value<'i> = Spanned<DeValue<'i>>;

/// A table and its name.
pub(crate) struct Node<'a, 'i> {
    path: String,
    table: &'a DeTable<'i>,
}

impl<'a, 'i> Node<'a, 'i> {
    pub(crate) fn root(document: &'a Spanned<DeTable<'i>>) -> Self {
        Self {
            path: String::new(),
            table: document.get_ref(),
        }
    }

    /// The value, and the whole name of its key.
    pub(crate) fn get(&self, key: &str) -> Option<(String, &'a Value<'i>)> {
        Some((self.name(key), self.table.get(key)?))
    }

    pub(crate) fn name(&self, key: &str) -> String {
        if self.path.is_empty() {
            shown(key)
        } else {
            format!("{}.{}", self.path, shown(key))
        }
    }

    /// The entries as they stand in the file: containerd asks hosts in that order.
    pub(crate) fn in_order(&self) -> Vec<(&'a str, Range<usize>, &'a Value<'i>)> {
        let mut entries: Vec<_> = self
            .table
            .iter()
            .map(|(key, value)| (key.get_ref().as_ref(), key.span(), value))
            .collect();
        // A table may be named by one of its own before it has a head of its own.
        entries.sort_by_key(|(_, span, value)| {
            let inner = match value.get_ref() {
                DeValue::Table(table) => table.keys().map(|key| key.span().start).min(),
                _ => None,
            };
            inner.unwrap_or(span.start).min(span.start)
        });
        entries
    }
}

/// Reads typed values, and keeps what did not count.
pub(crate) struct Reader<'t> {
    text: &'t str,
    ignored: Vec<String>,
}

impl<'t> Reader<'t> {
    pub(crate) fn new(text: &'t str) -> Self {
        Self {
            text,
            ignored: Vec::new(),
        }
    }

    /// What was read and does not count: for the user, with its line.
    pub(crate) fn into_ignored(self) -> Vec<String> {
        self.ignored
    }

    pub(crate) fn fault(&self, key: &str, at: &Range<usize>, what: impl Into<String>) -> Fault {
        Fault {
            line: line(self.text, at.start),
            key: (!key.is_empty()).then(|| key.to_owned()),
            what: what.into(),
        }
    }

    pub(crate) fn wanted(&self, key: &str, value: &Value<'_>, wanted: &str) -> Fault {
        let found = value.get_ref().type_str();
        self.fault(
            key,
            &value.span(),
            format!("{wanted} is wanted here, not a TOML {found}"),
        )
    }

    pub(crate) fn ignore(&mut self, key: &str, at: &Range<usize>, why: &str) {
        let line = line(self.text, at.start);
        self.ignored.push(format!("line {line}: {key}: {why}"));
    }

    pub(crate) fn string<'v>(&self, key: &str, value: &'v Value<'_>) -> Result<&'v str, Fault> {
        match value.get_ref() {
            DeValue::String(text) => Ok(text.as_ref()),
            _ => Err(self.wanted(key, value, "a string")),
        }
    }

    pub(crate) fn boolean(&self, key: &str, value: &Value<'_>) -> Result<bool, Fault> {
        match value.get_ref() {
            DeValue::Boolean(yes) => Ok(*yes),
            _ => Err(self.wanted(key, value, "true or false")),
        }
    }

    /// A whole number within bounds.
    pub(crate) fn integer(
        &self,
        key: &str,
        value: &Value<'_>,
        bounds: Range<u64>,
    ) -> Result<u64, Fault> {
        let DeValue::Integer(number) = value.get_ref() else {
            return Err(self.wanted(key, value, "a whole number"));
        };
        number
            .as_str()
            .parse()
            .ok()
            .filter(|_| number.radix() == 10)
            .filter(|number| bounds.contains(number))
            .ok_or_else(|| {
                let what = format!(
                    "a whole number from {} to {} is wanted",
                    bounds.start,
                    bounds.end.saturating_sub(1)
                );
                self.fault(key, &value.span(), what)
            })
    }

    pub(crate) fn table<'a, 'i>(
        &self,
        key: &str,
        value: &'a Value<'i>,
    ) -> Result<Node<'a, 'i>, Fault> {
        match value.get_ref() {
            DeValue::Table(table) => Ok(Node {
                path: key.to_owned(),
                table,
            }),
            _ => Err(self.wanted(key, value, "a table")),
        }
    }

    /// A string, or several in a list.
    pub(crate) fn strings<'v>(
        &self,
        key: &str,
        value: &'v Value<'_>,
    ) -> Result<Vec<&'v str>, Fault> {
        match value.get_ref() {
            DeValue::String(text) => Ok(vec![text.as_ref()]),
            DeValue::Array(list) => list.iter().map(|item| self.string(key, item)).collect(),
            _ => Err(self.wanted(key, value, "a string or a list of strings")),
        }
    }
}

/// The line of a byte, from 1.
fn line(text: &str, at: usize) -> usize {
    let before = text.as_bytes().iter().take(at);
    1 + before.filter(|byte| **byte == b'\n').count()
}

pub(crate) fn shown(text: &str) -> String {
    // An address may hold a password before its `@`.
    let text = match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://…@{host}"),
        (None, Some((_, host))) => format!("…@{host}"),
        (_, None) => text.to_owned(),
    };
    printable(&text, MAX_SHOWN)
}

/// A duration as Go writes it: `300ms`, `1.5s`, `1m30s`; not a negative one.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    const LONGEST: f64 = 86400.0;
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut seconds = 0.0_f64;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let number: f64 = number.parse().ok()?;
        let end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(end);
        let scale = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        seconds += number * scale;
        rest = tail;
    }
    Duration::try_from_secs_f64(seconds.min(LONGEST)).ok()
}
