//! The command line, in the style of Go's flags: `-name value`, `-name=value`, one dash or two.

use std::path::PathBuf;

use crate::error::{Error, Result};

/// The text of `-h`.
pub const USAGE: &str = "\
containerd-shim-edgepull-v1: runs containers for containerd, by runc or crun, and says why
one cannot run here.

containerd calls it; people configure it (see containerd-shim-edgepull-v1(8)):

  ctr run --runtime io.containerd.edgepull.v1 IMAGE ID

Usage: containerd-shim-edgepull-v1 [FLAGS] [start | delete]

  -namespace NAME        containerd's namespace of the container
  -id ID                 the container
  -bundle DIR            its bundle; the current directory without it
  -address PATH          containerd's own socket
  -publish-binary PATH   containerd's program; not used
  -socket PATH           where to listen; chosen by namespace and id without it
  -debug                 a more talkative log
  -info                  what this shim and its OCI runtime can do, as protobuf
  -v, -version           the version
  -h, -help              this text

Without start or delete it is the server, with the socket as its standard input.
";

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Start,
    Delete,
    Serve,
    Info,
    Version,
    Help,
}

/// The command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flags {
    pub action: Action,
    pub namespace: String,
    pub id: String,
    pub bundle: Option<PathBuf>,
    pub address: String,
    pub socket: String,
    pub debug: bool,
}

impl Flags {
    /// Understands what stands after the program's name.
    pub fn parse(words: impl IntoIterator<Item = String>) -> Result<Flags> {
        let mut flags = Flags {
            action: Action::Serve,
            namespace: String::new(),
            id: String::new(),
            bundle: None,
            address: String::new(),
            socket: String::new(),
            debug: false,
        };
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let Some(name) = word.strip_prefix("--").or(word.strip_prefix('-')) else {
                flags.action = match (word.as_str(), flags.action) {
                    (_, asked @ (Action::Info | Action::Version | Action::Help)) => asked,
                    ("start", _) => Action::Start,
                    ("delete", _) => Action::Delete,
                    ("", _) => Action::Serve,
                    (other, _) => {
                        let message = format!(
                            "unknown action `{}`; there are start and delete",
                            other.escape_debug()
                        );
                        return Err(Error::invalid(message));
                    }
                };
                // As containerd's own shims: what follows an action is not looked at.
                break;
            };
            let (name, given) = match name.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (name, None),
            };
            let yes = given
                .as_deref()
                .is_none_or(|value| matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"));
            let mut value = || {
                given
                    .clone()
                    .or_else(|| words.next())
                    .ok_or_else(|| Error::invalid(format!("-{name} needs a value")))
            };
            match name {
                "namespace" => flags.namespace = value()?,
                "id" => flags.id = value()?,
                "bundle" => {
                    let path = Some(value()?).filter(|path| !path.is_empty());
                    flags.bundle = path.map(PathBuf::from);
                }
                "address" => flags.address = value()?,
                "socket" => flags.socket = value()?,
                "publish-binary" => drop(value()?),
                "debug" => flags.debug = yes,
                "info" if yes => flags.action = Action::Info,
                "v" | "version" if yes => flags.action = Action::Version,
                "h" | "help" if yes => flags.action = Action::Help,
                "info" | "v" | "version" | "h" | "help" => {}
                other => {
                    let message = format!("unknown flag -{}; -h lists them", other.escape_debug());
                    return Err(Error::invalid(message));
                }
            }
        }
        Ok(flags)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn parse(line: &str) -> Result<Flags> {
        Flags::parse(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn it_is_called_as_containerd_calls() {
        let flags = parse("-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id x -debug start").unwrap();
        assert_eq!(
            flags,
            Flags {
                action: Action::Start,
                namespace: "k8s.io".to_owned(),
                id: "x".to_owned(),
                bundle: None,
                address: "/run/c.sock".to_owned(),
                socket: String::new(),
                debug: true,
            }
        );
        let flags = parse("--namespace=n -id=a -bundle /b -address  delete more -words").unwrap();
        assert_eq!(
            (flags.action, flags.bundle),
            (Action::Delete, Some("/b".into()))
        );
        assert_eq!(parse("-debug=false -id x").unwrap().action, Action::Serve);
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert_eq!(parse("-v start").unwrap().action, Action::Version);
        for bad in ["stop", "-id", "-x"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
