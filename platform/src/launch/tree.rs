//! The root file system of an image, looked at path by path: links are followed here, inside
//! the root and nowhere else, whatever holds the files.

use std::collections::VecDeque;

use crate::executable::Needs;

/// Links that a kernel follows in one path.
pub const MOST_LINKS: usize = 40;
/// The longest path that a kernel takes (bytes).
pub const LONGEST: usize = 4096;
/// Where a runtime mounts something of its own: what the image has there is not seen.
const MOUNTED: [&[u8]; 3] = [b"proc", b"sys", b"dev"];

/// Why something of a root file system cannot be seen, in words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unseen(pub String);

/// What stands under one path. Links are not followed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// Nothing.
    Missing,
    /// A directory.
    Directory,
    /// Where it leads, as it is written.
    Link(Vec<u8>),
    /// A regular file.
    File(FileNode),
    /// A device, a pipe.
    Other,
}

/// A regular file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileNode {
    /// Whoever starts it may execute it, as far as its mode tells.
    pub executable: bool,
    /// The layer that it is from, counted from the bottom; `None` where that is not known.
    pub layer: Option<usize>,
}

/// Something that holds an image's files.
pub trait Tree {
    /// What stands under `path`, which is relative to the root, has no `.` and no `..`, and
    /// leads over no link. Fails where that cannot be seen.
    fn node(&mut self, path: &[u8]) -> Result<Node, Unseen>;

    /// What the regular file there needs. Fails where it cannot be read.
    fn needs(&mut self, path: &[u8]) -> Result<Needs, Unseen>;
}

/// What a path leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A regular file.
    File {
        /// Without links, relative to the root.
        path: Vec<u8>,
        /// What it is.
        file: FileNode,
    },
    /// Nothing, or nothing that could be executed.
    Nothing,
    /// It cannot be told; why.
    Unseen(String),
}

/// Follows `path` as the kernel would within the image's root.
pub fn follow(tree: &mut dyn Tree, path: &[u8]) -> Place {
    let mut done: Vec<Vec<u8>> = Vec::new();
    let mut ahead: VecDeque<Vec<u8>> = components(path);
    let mut links = 0;
    while let Some(name) = ahead.pop_front() {
        match name.as_slice() {
            b"." | b"" => continue,
            b".." => {
                done.pop();
                continue;
            }
            _ => {}
        }
        if done.is_empty() && MOUNTED.contains(&name.as_slice()) {
            return Place::Unseen(format!(
                "it is below /{}, which is mounted when a container starts",
                String::from_utf8_lossy(&name)
            ));
        }
        done.push(name);
        let here = done.join(&b'/');
        if here.len() > LONGEST {
            return Place::Nothing;
        }
        match tree.node(&here) {
            Err(Unseen(why)) => return Place::Unseen(why),
            Ok(Node::Missing | Node::Other) => return Place::Nothing,
            Ok(Node::Directory) => {}
            Ok(Node::File(file)) => {
                return if ahead.is_empty() {
                    Place::File { path: here, file }
                } else {
                    Place::Nothing
                };
            }
            Ok(Node::Link(target)) => {
                links += 1;
                if links > MOST_LINKS || target.len() > LONGEST {
                    return Place::Nothing;
                }
                if target.starts_with(b"/") {
                    done.clear();
                } else {
                    done.pop();
                }
                let mut next = components(&target);
                next.append(&mut ahead);
                ahead = next;
            }
        }
    }
    Place::Nothing
}

/// The names in a path, `.` and `..` among them.
pub fn components(path: &[u8]) -> VecDeque<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/');
    names
        .filter(|name| !name.is_empty())
        .map(<[u8]>::to_vec)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::testing::Files;
    use super::*;

    fn leads(files: &mut Files, path: &str) -> String {
        match follow(files, path.as_bytes()) {
            Place::File { path, .. } => String::from_utf8(path).expect("text"),
            Place::Nothing => "nothing".to_owned(),
            Place::Unseen(why) => why,
        }
    }

    #[test]
    fn links_are_followed_inside_the_root() {
        let mut files = Files::default()
            .file("usr/bin/busybox", true, b"x")
            .link("bin", "usr/bin")
            .link("usr/bin/sh", "busybox")
            .link("usr/bin/ash", "/../../bin/./sh")
            .link("usr/bin/up", "../../../../../usr/bin/busybox")
            .link("one", "two")
            .link("two", "one")
            .link("gone", "/nowhere")
            .link("exe", "/proc/self/exe")
            .other("pipe");
        for (path, to) in [
            ("/bin/sh", "usr/bin/busybox"),
            ("bin//ash", "usr/bin/busybox"),
            ("/usr/bin/../bin/up", "usr/bin/busybox"),
            ("/bin/sh/x", "nothing"),
            ("/bin/busybox/..", "nothing"),
            ("/bin", "nothing"),
            ("/one", "nothing"),
            ("/gone", "nothing"),
            ("/pipe", "nothing"),
            ("/", "nothing"),
            ("", "nothing"),
        ] {
            assert_eq!(leads(&mut files, path), to, "{path}");
        }
        for path in ["/exe", "/proc/1/exe", "dev/fd/0"] {
            assert!(leads(&mut files, path).contains("mounted"), "{path}");
        }
    }

    #[test]
    fn no_path_is_followed_without_end() {
        let long = "a/".repeat(3000);
        let mut files = Files::default().link("l", &format!("{}l", "./".repeat(2000)));
        assert_eq!(leads(&mut files, "/l"), "nothing");
        assert_eq!(leads(&mut files, &long), "nothing");
    }
}
