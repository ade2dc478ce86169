//! A directory of files that declare images: `images.d`.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read as _},
    os::unix::{ffi::OsStrExt, fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{Desired, Key, Origin, Read, Source, Traits, declared, declared::Declared};
use crate::{
    error::{Error, Result},
    kind::Kind,
    redact::printable,
    schedule::Refresh,
    table::Fault,
};

/// The most that is read of one file (bytes).
const LARGEST: u64 = 1 << 20;
/// More than anybody keeps apart.
const MOST_FILES: usize = 1024;
/// Each is looked at in every pass.
const MOST_IMAGES: usize = 4096;
/// Longer names are cut where they are shown.
const SHOWN: usize = 200;

/// `*.toml` and `*.txt` of a directory, in the order of their names. Names that begin with
/// a dot and other endings do not count, links are followed.
#[derive(Debug)]
pub struct Directory {
    path: PathBuf,
    /// What each file said when it was last right.
    good: BTreeMap<OsString, Vec<Declared>>,
}

impl Directory {
    /// Nothing is read yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            good: BTreeMap::new(),
        }
    }

    /// Brings `good` up to date; what could not be read stays as it was.
    fn refresh(&mut self, read: &mut Read) {
        let names = match names(&self.path) {
            Ok(names) => names,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let place = shown(&self.path);
                let note = format!("`{place}` does not exist, so no images are declared");
                read.notes.push(note);
                // More likely an accident than a wish to be rid of everything.
                read.complete = false;
                self.good.clear();
                return;
            }
            Err(error) => {
                read.complete = false;
                read.faults.push(refusal(&self.path).caused_by(&error).hint(
                    "what was last read of it still counts, and nothing is removed meanwhile",
                ));
                return;
            }
        };
        if names.len() > MOST_FILES {
            read.complete = false;
            read.faults.push(
                refusal(&self.path)
                    .because(format_args!(
                        "it has {} files, of which the first {MOST_FILES} by name count",
                        names.len()
                    ))
                    .hint("one file may declare any number of images"),
            );
        }
        let mut before = std::mem::take(&mut self.good);
        for name in names.into_iter().take(MOST_FILES) {
            let path = self.path.join(&name);
            match declared_in(&path) {
                Ok(Some(images)) => {
                    self.good.insert(name, images);
                }
                // It went away meanwhile.
                Ok(None) => {}
                Err(fault) => {
                    read.complete = false;
                    let last = before.remove(&name);
                    read.faults.push(fault.hint(match last {
                        Some(_) => "correct it; until then what it said before counts, and nothing is removed",
                        None => "correct it; until then it declares nothing, and nothing is removed",
                    }));
                    self.good.extend(last.map(|images| (name, images)));
                }
            }
        }
    }

    /// What of it this host should have.
    fn settle(&self, host: &Traits, read: &mut Read) {
        let mut places: BTreeMap<Key, usize> = BTreeMap::new();
        let mut records: BTreeMap<(String, String), usize> = BTreeMap::new();
        for (name, images) in &self.good {
            for declared in images.iter().filter(|image| image.only.takes(host)) {
                let origin = Origin {
                    file: self.path.join(name),
                    line: declared.line,
                };
                let refresh = refresh(declared, host, &origin, &mut read.notes);
                for platform in &declared.platforms {
                    let mut desired = Desired {
                        reference: declared.reference.clone(),
                        platform: platform.clone(),
                        namespace: declared
                            .namespace
                            .clone()
                            .unwrap_or_else(|| host.namespace.clone()),
                        refresh,
                        pin: declared.pin,
                        keep_previous: declared.keep_previous,
                        verify: declared.verify,
                        artifact: declared.artifact.clone(),
                        origin: origin.clone(),
                    };
                    let key = desired.key();
                    if let Some(first) = places.get(&key).and_then(|at| read.images.get(*at)) {
                        read.notes.push(printable(
                            &format!(
                                "{key} of {origin} is already declared in {}, which counts",
                                first.origin
                            ),
                            4 * SHOWN,
                        ));
                        continue;
                    }
                    if read.images.len() == MOST_IMAGES {
                        read.complete = false;
                        read.faults.push(
                            refusal(&origin.file)
                                .because(format_args!(
                                    "line {}: more than {MOST_IMAGES} images are declared; this one and those after it do not count",
                                    origin.line
                                ))
                                .hint("`only` says on which hosts an image is wanted"),
                        );
                        return;
                    }
                    let holder = read.images.iter().find(|other| shares_dir(other, &desired));
                    if let Some(holder) = holder {
                        read.faults.push(
                            refusal(&origin.file)
                                .because(format_args!(
                                    "line {}: `artifact_dir` is that of {} already",
                                    origin.line, holder.origin
                                ))
                                .hint("a directory holds one artifact; give this one another"),
                        );
                        read.complete = false;
                        continue;
                    }
                    if desired.artifact.is_some() {
                        places.insert(key, read.images.len());
                        read.images.push(desired);
                        continue;
                    }
                    let record = (key.reference.clone(), key.namespace.clone());
                    let first = *records.entry(record).or_insert(read.images.len());
                    if let Some(first) = read.images.get(first)
                        && let Some(note) = yield_to(first, &mut desired)
                        && !read.notes.contains(&note)
                    {
                        read.notes.push(note);
                    }
                    places.insert(key, read.images.len());
                    read.images.push(desired);
                }
            }
        }
    }
}

impl Source for Directory {
    fn read(&mut self, host: &Traits) -> Read {
        let mut read = Read {
            complete: true,
            ..Read::default()
        };
        self.refresh(&mut read);
        self.settle(host, &mut read);
        read
    }
}

/// Whether both want their files in the same directory.
fn shares_dir(one: &Desired, other: &Desired) -> bool {
    match (&one.artifact, &other.artifact) {
        (Some(one), Some(other)) => one.dir == other.dir,
        _ => false,
    }
}

/// All platforms of a reference have one image record, which is pinned or is not: what the
/// first of them declares of it holds. The note says so where that is not what `later` says.
fn yield_to(first: &Desired, later: &mut Desired) -> Option<String> {
    let said = |image: &Desired| (image.pin, image.keep_previous);
    if said(first) == said(later) {
        return None;
    }
    (later.pin, later.keep_previous) = said(first);
    Some(printable(
        &format!(
            "pin and keep_previous of {} in {} do not count: its platforms have one image record, and {} says them for all",
            later.reference, later.origin, first.origin
        ),
        4 * SHOWN,
    ))
}

/// What a digest names never changes, so there is nothing to compare.
fn refresh(
    declared: &Declared,
    host: &Traits,
    origin: &Origin,
    notes: &mut Vec<String>,
) -> Refresh {
    if declared.reference.digest().is_none() {
        return declared.refresh.unwrap_or(host.default_refresh);
    }
    if let Some(refresh @ Refresh::Every(_)) = declared.refresh {
        notes.push(printable(
            &format!(
                "refresh = \"{refresh}\" of {origin} does not count: {} is pinned by its digest",
                declared.reference
            ),
            4 * SHOWN,
        ));
    }
    Refresh::Never
}

fn shown(path: &Path) -> String {
    printable(&path.to_string_lossy(), SHOWN)
}

fn refusal(path: &Path) -> Error {
    Error::new(Kind::Config, format_args!("cannot use `{}`", shown(path)))
}

/// The names that count, sorted by their bytes.
fn names(path: &Path) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        if kind(&name).is_some() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

type Parse = fn(&str) -> Result<Vec<Declared>, Fault>;

/// How a file of this name is read, if it is at all.
fn kind(name: &OsString) -> Option<Parse> {
    let name = name.as_bytes();
    if name.starts_with(b".") {
        return None;
    }
    if name.ends_with(b".toml") {
        return Some(declared::toml);
    }
    name.ends_with(b".txt").then_some(declared::lines as Parse)
}

/// What a file declares; `None` if it is not there any more.
fn declared_in(path: &Path) -> Result<Option<Vec<Declared>>> {
    let parse = path.file_name().and_then(|name| kind(&name.to_owned()));
    let Some(parse) = parse else {
        return Ok(None);
    };
    // Not waiting for a writer, should it be a pipe.
    let opened = OpenOptions::new()
        .read(true)
        .custom_flags(nix::fcntl::OFlag::O_NONBLOCK.bits())
        .open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if is_gone(path, &error) => return Ok(None),
        Err(error) => return Err(refusal(path).caused_by(&error)),
    };
    let text = text(file, path)?;
    parse(&text).map(Some).map_err(|fault| {
        let key = fault
            .key
            .map_or_else(String::new, |key| format!(", key `{key}`"));
        refusal(path).because(format_args!("line {}{key}: {}", fault.line, fault.what))
    })
}

/// Not a link into nowhere, which is a fault.
fn is_gone(path: &Path, error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound && fs::symlink_metadata(path).is_err()
}

fn text(file: File, path: &Path) -> Result<String> {
    let unreadable = |error: &io::Error| refusal(path).caused_by(error);
    let metadata = file.metadata().map_err(|error| unreadable(&error))?;
    if !metadata.is_file() {
        return Err(refusal(path).because("it is no regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(&error))?;
    if bytes.len() as u64 > LARGEST {
        return Err(refusal(path).because(format_args!("it has more than {LARGEST} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let good = error.utf8_error().valid_up_to();
        refusal(path).because(format_args!("byte {good} is no UTF-8"))
    })
}

#[cfg(test)]
mod tests;
