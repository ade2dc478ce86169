//! The text of one file of `images.d`. Pure: files are read elsewhere.

use std::{
    collections::BTreeMap,
    path::{Component, Path, PathBuf},
};

use edgepull_platform::Platform;
use toml::de::DeValue;

use super::{
    Artifact, Verify,
    only::{Only, architecture},
};
use crate::{
    oci::Reference,
    redact::printable,
    schedule::Refresh,
    table::{Fault, Node, Reader, Value, document, shown},
};

/// Each is a whole image on the disk.
const MOST_PREVIOUS: u64 = 16;
/// More than there are platforms that one host can use.
const MOST_PLATFORMS: usize = 32;
/// containerd's limit.
const LONGEST_NAMESPACE: usize = 76;
/// Longer words are cut where they are shown.
const SHOWN: usize = 120;

/// An image as a file declares it; `None` is what it does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Declared {
    pub(super) line: usize,
    pub(super) reference: Reference,
    /// In their printed form, each once.
    pub(super) platforms: Vec<String>,
    pub(super) namespace: Option<String>,
    pub(super) refresh: Option<Refresh>,
    pub(super) pin: bool,
    pub(super) keep_previous: usize,
    pub(super) verify: Verify,
    pub(super) artifact: Option<Artifact>,
    pub(super) only: Only,
}

impl Declared {
    fn new(line: usize, reference: Reference) -> Self {
        Self {
            line,
            reference,
            platforms: vec!["host".to_owned()],
            namespace: None,
            refresh: None,
            pin: true,
            keep_previous: 1,
            verify: Verify::None,
            artifact: None,
            only: Only::default(),
        }
    }
}

/// A list: one reference a line, `#` begins a comment.
pub(super) fn lines(text: &str) -> Result<Vec<Declared>, Fault> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut all = Vec::new();
    for (line, content) in (1..).zip(text.lines()) {
        let fault = |what| Fault {
            line,
            key: None,
            what,
        };
        let mut words = content
            .split_whitespace()
            .take_while(|word| !word.starts_with('#'));
        let Some(word) = words.next() else {
            continue;
        };
        if let Some(more) = words.next() {
            return Err(fault(format!(
                "one reference a line is wanted, and `{}` follows it",
                shown(more)
            )));
        }
        all.push(Declared::new(line, reference(word).map_err(fault)?));
    }
    Ok(all)
}

/// TOML: any number of `[[image]]`.
pub(super) fn toml(text: &str) -> Result<Vec<Declared>, Fault> {
    let document = document(text)?;
    let reader = Reader::new(text);
    let mut all = Vec::new();
    for (name, span, value) in Node::root(&document).in_order() {
        if name != "image" {
            return Err(reader.fault(
                &shown(name),
                &span,
                "there is no such key; images are `[[image]]`",
            ));
        }
        let DeValue::Array(list) = value.get_ref() else {
            return Err(reader.fault(name, &span, "it is written `[[image]]`"));
        };
        for item in list {
            let table = reader.table(name, item)?;
            all.push(image(&reader, &table, &item.span())?);
        }
    }
    Ok(all)
}

fn image(
    reader: &Reader<'_>,
    table: &Node<'_, '_>,
    at: &std::ops::Range<usize>,
) -> Result<Declared, Fault> {
    let Some((key, value)) = table.get("reference") else {
        return Err(reader.fault("image.reference", at, "it is missing"));
    };
    let text = reader.string(&key, value)?;
    let named = reference(text).map_err(|what| reader.fault(&key, &value.span(), what))?;
    let line = reader.fault("", &value.span(), "").line;
    let mut image = Declared::new(line, named);
    let (mut dir, mut hook) = (None, None);
    let mut judged = None;
    for (name, span, value) in table.in_order() {
        let key = table.name(name);
        match name {
            "reference" => {}
            "platforms" => image.platforms = platforms(reader, &key, value)?,
            "namespace" => image.namespace = Some(namespace(reader, &key, value)?),
            "refresh" => {
                let read = Refresh::parse(reader.string(&key, value)?);
                let refresh = read.map_err(|why| {
                    reader.fault(&key, &value.span(), format!("{why}, or `never`"))
                })?;
                image.refresh = Some(refresh);
            }
            "pin" => image.pin = reader.boolean(&key, value)?,
            "verify" => {
                image.verify = verify(reader, &key, value)?;
                judged = Some(span);
            }
            "keep_previous" => {
                let number = reader.integer(&key, value, 0..MOST_PREVIOUS + 1)?;
                image.keep_previous = usize::try_from(number).unwrap_or_default();
            }
            "artifact_dir" => dir = Some((directory(reader, &key, value)?, span)),
            "hook" => hook = Some((words(reader, &key, value)?, span)),
            "only" => image.only = only(reader, &reader.table(&key, value)?)?,
            _ => return Err(reader.fault(&key, &span, "there is no such key")),
        }
    }
    let key = |name| table.name(name);
    match (dir, hook) {
        (Some((_, at)), _) if image.platforms.len() != 1 || image.platforms == ["host"] => {
            return Err(reader.fault(
                &key("artifact_dir"),
                &at,
                "a directory holds the artifact of one platform: name it, as in platforms = [\"zephyr/arm/v7\"]",
            ));
        }
        (Some(_), _) if image.verify != Verify::None => {
            return Err(reader.fault(
                &key("verify"),
                &judged.unwrap_or_else(|| at.clone()),
                "of an artifact's files nothing is started, so there is nothing to verify",
            ));
        }
        (Some((dir, _)), hook) => {
            let hook = hook.map(|(hook, _)| hook).unwrap_or_default();
            image.artifact = Some(Artifact { dir, hook });
        }
        (None, Some((_, at))) => {
            return Err(reader.fault(
                &key("hook"),
                &at,
                "it is called for files in `artifact_dir`, and there is none",
            ));
        }
        (None, None) => {}
    }
    Ok(image)
}

/// Where files go is not to depend on where somebody stands.
fn directory(reader: &Reader<'_>, key: &str, value: &Value<'_>) -> Result<PathBuf, Fault> {
    let path = Path::new(reader.string(key, value)?);
    let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || path.parent().is_none() || !path.components().all(plain) {
        let what = "the path of a directory is wanted, from `/` on and without `..`";
        return Err(reader.fault(key, &value.span(), what));
    }
    // As it is compared: without `/` at its end.
    Ok(path.components().collect())
}

fn words(reader: &Reader<'_>, key: &str, value: &Value<'_>) -> Result<Vec<String>, Fault> {
    let words = reader.strings(key, value)?;
    let is_whole = |word: &&str| !word.contains('\0');
    match words.first() {
        Some(program) if Path::new(program).is_absolute() && words.iter().all(is_whole) => {
            Ok(words.into_iter().map(str::to_owned).collect())
        }
        _ => {
            let what = "a program is wanted by its path from `/` on, then its arguments: [\"/usr/libexec/notify\", \"now\"]";
            Err(reader.fault(key, &value.span(), what))
        }
    }
}

fn reference(text: &str) -> Result<Reference, String> {
    // It would parse: as the tag of an image of that name on Docker Hub.
    if text.starts_with("oci:") || text.starts_with("oci-archive:") {
        return Err(format!(
            "`{}` is a local store; `edgepull import` puts an archive into containerd",
            shown(text)
        ));
    }
    // The parser repeats what follows, which may be a password.
    if text.contains("://") {
        return Err(format!(
            "`{}` is no image reference: there is neither scheme nor user in one; write `HOST/NAME:TAG`",
            shown(text)
        ));
    }
    Reference::parse(text).map_err(|why| format!("`{}` is no image reference: {why}", shown(text)))
}

fn platforms(reader: &Reader<'_>, key: &str, value: &Value<'_>) -> Result<Vec<String>, Fault> {
    let fault = |what: String| reader.fault(key, &value.span(), what);
    let mut all: Vec<String> = Vec::new();
    for text in reader.strings(key, value)? {
        let platform = platform(text).map_err(fault)?;
        if !all.contains(&platform) {
            all.push(platform);
        }
    }
    match all.len() {
        0 => Err(fault(
            "it is empty; leave the line out for `host`".to_owned(),
        )),
        1..=MOST_PLATFORMS => Ok(all),
        _ => Err(fault(format!("more than {MOST_PLATFORMS} platforms"))),
    }
}

/// As `--platform` takes it, in its one printed form.
fn platform(text: &str) -> Result<String, String> {
    if text == "host" {
        return Ok(text.to_owned());
    }
    if text == "all" {
        return Err(
            "`all` depends on what the index has one day; name the platforms, or `host`".to_owned(),
        );
    }
    let (name, fallback) = super::parts(text);
    match Platform::parse(name) {
        Ok(platform) if fallback => Ok(format!("{platform},fallback")),
        Ok(platform) => Ok(platform.to_string()),
        Err(why) => Err(printable(
            &format!("{why}; write OS/ARCH[/VARIANT], or `host`"),
            3 * SHOWN,
        )),
    }
}

/// containerd's rule: letters and digits, `.`, `_` and `-` between them.
fn namespace(reader: &Reader<'_>, key: &str, value: &Value<'_>) -> Result<String, Fault> {
    let text = reader.string(key, value)?;
    let parts = || text.split(['.', '_', '-']);
    let is_word =
        |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if text.len() > LONGEST_NAMESPACE || !parts().all(is_word) {
        let what = "letters and digits are wanted, with `.`, `_` or `-` between them";
        return Err(reader.fault(key, &value.span(), what));
    }
    Ok(text.to_owned())
}

fn verify(reader: &Reader<'_>, key: &str, value: &Value<'_>) -> Result<Verify, Fault> {
    let what = match reader.string(key, value)? {
        "none" => return Ok(Verify::None),
        "static" => return Ok(Verify::Static),
        "run" => return Ok(Verify::Run),
        other => format!(
            "`{}` is no way to verify; there are `none`, `static` and `run`",
            shown(other)
        ),
    };
    Err(reader.fault(key, &value.span(), what))
}

fn only(reader: &Reader<'_>, table: &Node<'_, '_>) -> Result<Only, Fault> {
    let mut only = Only::default();
    for (name, span, value) in table.in_order() {
        let key = table.name(name);
        match name {
            "arch" => {
                let fault = |what: String| reader.fault(&key, &value.span(), what);
                let names = reader.strings(&key, value)?;
                if names.is_empty() {
                    return Err(fault("it is empty, and so holds for no host".to_owned()));
                }
                let known = names.into_iter().map(|name| {
                    architecture(name).ok_or_else(|| {
                        fault(format!(
                            "`{}` is no architecture; write `arm64`, `amd64`, `arm`",
                            shown(name)
                        ))
                    })
                });
                only.arch = Some(known.collect::<Result<_, _>>()?);
            }
            "model" => only.model = Some(reader.string(&key, value)?.to_owned()),
            "labels" => only.labels = labels(reader, &reader.table(&key, value)?)?,
            _ => return Err(reader.fault(&key, &span, "there is no such key")),
        }
    }
    Ok(only)
}

fn labels(reader: &Reader<'_>, table: &Node<'_, '_>) -> Result<BTreeMap<String, String>, Fault> {
    let mut labels = BTreeMap::new();
    for (name, _, value) in table.in_order() {
        let text = reader.string(&table.name(name), value)?;
        labels.insert(name.to_owned(), text.to_owned());
    }
    Ok(labels)
}

#[cfg(test)]
mod tests;
