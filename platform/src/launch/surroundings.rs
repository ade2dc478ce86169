//! Where a command is looked for.

/// Where commands are looked for if nothing says otherwise, as in containerd's default spec.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a word of a command means: `PATH` and the working directory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Surroundings {
    /// `PATH`, split.
    path: Vec<String>,
    /// Absolute.
    directory: String,
}

impl Surroundings {
    /// With `path` as `PATH`, and in `directory`, which is taken from the root if it does not begin
    /// there.
    pub fn new(path: &str, directory: &str) -> Self {
        Self {
            path: path.split(':').map(str::to_owned).collect(),
            directory: format!("/{}", directory.trim_start_matches('/')),
        }
    }

    /// Where a runtime looks for `word`, in order: as it is, if there is a slash in it, else
    /// below each directory of `PATH`.
    pub fn places(&self, word: &str) -> Vec<Vec<u8>> {
        if word.contains('/') {
            return vec![self.absolute(word.as_bytes())];
        }
        let directories = self.path.iter().map(|directory| {
            // As in execvp(3): an empty one is the working directory.
            let directory = if directory.is_empty() { "." } else { directory };
            self.absolute(format!("{directory}/{word}").as_bytes())
        });
        directories.collect()
    }

    /// A path as seen from the working directory.
    pub fn absolute(&self, path: &[u8]) -> Vec<u8> {
        if path.starts_with(b"/") {
            return path.to_vec();
        }
        [self.directory.as_bytes(), b"/", path].concat()
    }
}
