//! `oci:DIR[:TAG|@DIGEST]` and `oci-archive:FILE[:TAG|@DIGEST]`.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::printable;
use crate::{
    error::{Error, Result},
    kind::Kind,
    oci::Digest,
};

/// Longest name of an image inside a layout.
const MAX_TAG: usize = 512;

/// The form of a local store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayoutKind {
    /// `oci:DIR`
    Dir,
    /// `oci-archive:FILE`
    Archive,
}

/// Which image of a layout is meant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// A name: `1.27`, or a full one such as `docker.io/library/nginx:1.27`.
    Tag(String),
    /// Of an entry, of a document below one, or of `index.json` itself.
    Digest(Digest),
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => f.write_str(tag),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

/// A parsed reference to a local store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayoutRef {
    typed: String,
    kind: LayoutKind,
    path: PathBuf,
    selector: Option<Selector>,
}

impl LayoutRef {
    /// Parses `input`; `None` when it has neither form, and so is a registry reference.
    ///
    /// As with skopeo the first colon ends the path, so that a name may be a full
    /// reference with colons of its own; a path with a colon cannot be written.
    pub fn parse(input: &str) -> Option<Result<Self>> {
        let (kind, rest) = if let Some(rest) = input.strip_prefix("oci-archive:") {
            (LayoutKind::Archive, rest)
        } else {
            (LayoutKind::Dir, input.strip_prefix("oci:")?)
        };
        Some(Self::parse_rest(input, kind, rest))
    }

    fn parse_rest(input: &str, kind: LayoutKind, rest: &str) -> Result<Self> {
        let invalid = |why: &dyn fmt::Display| {
            Error::new(
                Kind::InvalidReference,
                format_args!("`{}` is no reference to a local store", printable(input)),
            )
            .because(why)
            .hint("write oci:DIR, oci:DIR:TAG or oci:DIR@sha256:HEX, likewise oci-archive:FILE")
        };
        let digest_at = rest
            .rsplit_once('@')
            .filter(|(_, digest)| digest.starts_with("sha") && digest.contains(':'));
        let (path, selector) = if let Some((path, digest)) = digest_at {
            let digest = Digest::parse(digest).map_err(|error| invalid(&error))?;
            if path.contains(':') {
                return Err(invalid(&"it has a tag and a digest; one is enough"));
            }
            (path, Some(Selector::Digest(digest)))
        } else if let Some((path, tag)) = rest.split_once(':') {
            if !is_tag(tag) {
                return Err(invalid(&format_args!(
                    "`{}` is no tag and no image name",
                    printable(tag)
                )));
            }
            (path, Some(Selector::Tag(tag.to_owned())))
        } else {
            (rest, None)
        };
        if path.is_empty() {
            return Err(invalid(&"the path is missing"));
        }
        if path.chars().any(char::is_control) {
            return Err(invalid(&"the path has control characters"));
        }
        Ok(Self {
            typed: input.to_owned(),
            kind,
            path: PathBuf::from(path),
            selector,
        })
    }

    /// What the user typed.
    pub fn typed(&self) -> &str {
        &self.typed
    }

    /// Directory or archive.
    pub fn kind(&self) -> LayoutKind {
        self.kind
    }

    /// The layout's directory, or the archive file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The image that was named, if one was.
    pub fn selector(&self) -> Option<&Selector> {
        self.selector.as_ref()
    }
}

impl fmt::Display for LayoutRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.typed)
    }
}

/// The grammar of `org.opencontainers.image.ref.name` (image-spec annotations.md),
/// without its rule that separators stand between letters.
fn is_tag(tag: &str) -> bool {
    !tag.is_empty()
        && tag.len() <= MAX_TAG
        && tag
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._:@+/".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn parse(input: &str) -> (LayoutKind, String, Option<String>) {
        let parsed = LayoutRef::parse(input).expect("a form").expect("valid");
        assert_eq!(parsed.typed(), input);
        (
            parsed.kind(),
            parsed.path().display().to_string(),
            parsed.selector().map(ToString::to_string),
        )
    }

    #[test]
    fn both_forms_with_and_without_a_selector() {
        use LayoutKind::{Archive, Dir};
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(parse("oci:d"), (Dir, "d".into(), None));
        assert_eq!(parse("oci:/a/b:1.27"), (Dir, "/a/b".into(), some("1.27")));
        assert_eq!(
            parse("oci-archive:a.tar:docker.io/library/nginx:1"),
            (Archive, "a.tar".into(), some("docker.io/library/nginx:1"))
        );
        assert_eq!(
            parse(&format!("oci:./d@{DIGEST}")),
            (Dir, "./d".into(), some(DIGEST))
        );
        assert_eq!(parse("oci:me@home"), (Dir, "me@home".into(), None));
        assert_eq!(parse("oci:me@home:v1"), (Dir, "me@home".into(), some("v1")));
    }

    #[test]
    fn what_is_no_local_reference() {
        for other in ["nginx", "oci", "docker://x", "ocii:x", ""] {
            assert!(LayoutRef::parse(other).is_none(), "{other}");
        }
        let with_both = format!("oci:d:tag@{DIGEST}");
        for bad in [
            "oci:",
            "oci::tag",
            "oci:d:",
            "oci:d:a b",
            "oci:d@sha256:12",
            "oci:\u{7}d",
            &with_both,
        ] {
            let error = LayoutRef::parse(bad).expect("a form").expect_err(bad);
            assert_eq!(error.kind(), Kind::InvalidReference, "{bad}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_parsed_or_refused(input in "oci(-archive)?:\\PC{0,60}") {
            if let Some(Ok(parsed)) = LayoutRef::parse(&input) {
                proptest::prop_assert!(!parsed.path().as_os_str().is_empty());
            }
        }
    }
}
