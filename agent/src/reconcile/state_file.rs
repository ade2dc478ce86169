//! The one small file that the memory survives restarts in: replaced as a whole, and
//! never in the way of a start.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, ErrorKind, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::Memory;
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::Digest,
};

const NAME: &str = "state.json";
/// Written beside it first. A leftover is from a run that was killed.
const NEW: &str = "state.json.tmp";
/// What could not be read is kept here for whoever wants to know why.
const DAMAGED: &str = "state.json.damaged";
/// Several times what the most images with the longest errors take (bytes).
const LARGEST: u64 = 16 << 20;

/// The state file of one directory.
#[derive(Debug)]
pub struct StateFile {
    dir: PathBuf,
    /// What is in it; flash wears out by writing the same again.
    written: Option<Digest>,
}

impl StateFile {
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            written: None,
        }
    }

    /// What was remembered. Without a file it is a first start. One that cannot be read is
    /// a warning, and the start is as after a stop without notice.
    pub fn load(&mut self) -> (Memory, Option<Error>) {
        // It is replaced by the next save, if it cannot be removed now.
        let _ = fs::remove_file(self.dir.join(NEW));
        let path = self.dir.join(NAME);
        let bytes = match read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return (Memory::first(), None),
            Err(error) => {
                let warning = Error::io("read", &path, &error)
                    .hint("every image is looked at again; make the file readable");
                return (Memory::default(), Some(warning));
            }
        };
        match Memory::from_json(&bytes) {
            Ok(memory) => {
                self.written = Some(Digest::of(&bytes));
                (memory, None)
            }
            Err(error) => {
                let aside = self.dir.join(DAMAGED);
                let warning = match fs::rename(&path, &aside) {
                    Ok(()) => error.hint(format_args!(
                        "it is kept as `{}`; every image is looked at again",
                        aside.display()
                    )),
                    Err(why) => error
                        .because(format_args!("it cannot be moved aside: {why}"))
                        .hint("every image is looked at again, and the file is replaced"),
                };
                let at = format_args!("cannot use `{}`", path.display()).to_string();
                (Memory::default(), Some(warning.during(at)))
            }
        }
    }

    /// Replaces the file, if anything is different. After it returns the new one is there
    /// even if the power fails; until then the old one is.
    pub fn save(&mut self, memory: &Memory) -> Result<()> {
        let bytes = memory.to_json();
        let digest = Digest::of(&bytes);
        if self.written.as_ref() == Some(&digest) {
            return Ok(());
        }
        self.written = None;
        let new = self.dir.join(NEW);
        self.replace(&new, &bytes).map_err(|error| {
            // What did not fit must not take the room of what may.
            let _ = fs::remove_file(&new);
            let path = self.dir.join(NAME);
            // Nothing that is not there was looked for.
            let failure = Error::io("write", &path, &error);
            let failure = match failure.kind() {
                Kind::NotFound => failure.with_kind(Kind::Internal),
                _ => failure,
            };
            failure.hint("until it can be written, a restart forgets what was tried since")
        })?;
        self.written = Some(digest);
        Ok(())
    }

    fn replace(&self, new: &Path, bytes: &[u8]) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        match fs::remove_file(new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Errors in it name private registries.
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(new, self.dir.join(NAME))?;
        File::open(&self.dir)?.sync_all()
    }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // What is cut off is no document.
    File::open(path)?.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::{desired::Key, reconcile::Step};

    fn memory(tag: &str) -> (Memory, Key) {
        let key = Key {
            reference: format!("r.example/a:{tag}"),
            platform: "host".to_owned(),
            namespace: "default".to_owned(),
        };
        let mut memory = Memory::default();
        memory.succeeded(&key, jiff::Timestamp::UNIX_EPOCH, Step::Recheck);
        (memory, key)
    }

    #[test]
    fn what_is_saved_is_loaded_and_only_root_reads_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = dir.path().join("state");
        let mut file = StateFile::new(&dir);
        let (first, warning) = file.load();
        assert!(first.is_clean() && warning.is_none());
        let (saved, key) = memory("1");
        file.save(&saved).expect("saved");
        let mode = |path: &Path| {
            let metadata = fs::metadata(path).expect("there");
            metadata.permissions().mode() & 0o777
        };
        assert_eq!(mode(&dir.join(NAME)), 0o600);
        assert_eq!(mode(&dir), 0o700);
        fs::write(dir.join(NEW), "half a fi").expect("written");
        let (loaded, warning) = StateFile::new(&dir).load();
        assert_eq!(loaded, saved);
        assert!(warning.is_none() && loaded.get(&key).is_some());
        assert!(!dir.join(NEW).exists());
        let names: Vec<_> = fs::read_dir(&dir).expect("there").collect();
        assert_eq!(names.len(), 1);
    }

    #[test]
    fn the_same_is_not_written_again() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join(NAME);
        StateFile::new(dir.path())
            .save(&memory("1").0)
            .expect("saved");
        let mut file = StateFile::new(dir.path());
        let (loaded, _) = file.load();
        fs::remove_file(&path).expect("removed");
        file.save(&loaded).expect("nothing to do");
        assert!(!path.exists());
        file.save(&memory("2").0).expect("saved");
        assert!(path.exists());
    }

    #[test]
    fn a_damaged_file_is_kept_aside_and_the_start_is_unclean() {
        for text in [
            &b""[..],
            b"{\"schema\":\"edgepull.state/1\",\"images\":[{\"ref",
            b"\0\0\0\0",
            b"{\"schema\":\"edgepull.state/2\"}",
            b"{\"schema\":\"edgepull.state/10\"}",
            b"{\"schema\":\"edgepull.state/1\",\"images\":[{\"reference\":\"a\",\"platform\":\"host\",\"namespace\":\"d\",\"next_try\":\"soon\"}]}",
        ] {
            let dir = tempfile::tempdir().expect("a directory");
            fs::write(dir.path().join(NAME), text).expect("written");
            let mut file = StateFile::new(dir.path());
            let (memory, warning) = file.load();
            assert_eq!(memory, Memory::default());
            assert!(!memory.is_clean());
            let warning = warning.expect("a warning");
            assert_eq!(warning.kind(), Kind::StoreDamaged);
            assert!(warning.message().contains(NAME), "{warning}");
            assert!(warning.hint_text().expect("a hint").contains(DAMAGED));
            let kept = fs::read(dir.path().join(DAMAGED)).expect("kept");
            assert_eq!(kept, text);
            assert!(!dir.path().join(NAME).exists());
            file.save(&memory).expect("saved");
            assert!(StateFile::new(dir.path()).load().1.is_none());
        }
    }

    #[test]
    fn what_cannot_be_read_or_written_is_told() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::create_dir(dir.path().join(NAME)).expect("made");
        let mut file = StateFile::new(dir.path());
        let (memory, warning) = file.load();
        assert!(!memory.is_clean());
        assert!(warning.expect("a warning").message().contains("state.json"));
        let error = file.save(&memory).expect_err("a directory is in the way");
        assert!(error.message().contains("cannot write"), "{error}");
        assert!(!dir.path().join(NEW).exists());

        fs::write(dir.path().join("file"), "").expect("written");
        let mut below = StateFile::new(dir.path().join("file"));
        let error = below.save(&memory).expect_err("no directory");
        assert_eq!(error.kind(), Kind::Internal);
    }
}
