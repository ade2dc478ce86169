//! What the shim tells about containers that it did not start, and the daemon and the journal's
//! catalogue know it by. Both sides have it from here, so that there is one.

use serde::{Deserialize, Serialize};

use crate::executable::Refusal;

/// Where the daemon takes datagrams, one for each refusal.
pub const SOCKET: &str = "/run/edgepull/refusals.sock";

/// The most that a datagram has (bytes); a longer one is none of the shim's.
pub const LONGEST: usize = 8 << 10;

/// The journal's `MESSAGE_ID` of a container that was not started.
pub const REFUSED: &str = "b517af57002a4a57abfee016fcb18259";
/// The same of one that was started, and that an emulator runs.
pub const EMULATED: &str = "feddd073deb24ea7bd30c179046a33ff";
/// The same of a configuration that cannot be used, whichever program says so.
pub const CONFIG: &str = "987d3c028c4ba2928080e6e553f6733d";

/// The reason where an emulator would run it, and somebody forbade that.
pub const EMULATION: &str = "emulation";

/// Every reason there is: those of files, and [`EMULATION`].
pub fn reasons() -> impl Iterator<Item = &'static str> {
    Refusal::ALL
        .into_iter()
        .map(Refusal::name)
        .chain([EMULATION])
}

/// One datagram, as JSON. Who reads it takes fields that it does not know, and lacks others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedStart {
    /// Why, in one word of [`reasons`].
    pub reason: String,
    /// The same as a sentence, with the next step.
    #[serde(default)]
    pub message: String,
    /// The container's id.
    #[serde(default)]
    pub container: String,
    /// Its namespace in containerd.
    #[serde(default)]
    pub namespace: String,
    /// The image, where the container says which.
    #[serde(default)]
    pub reference: Option<String>,
    /// The pod as `NAMESPACE/NAME`, where it is one's.
    #[serde(default)]
    pub pod: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_read_as_it_was_written_and_leniently() {
        let told = RefusedStart {
            reason: "machine".to_owned(),
            message: "cannot run here".to_owned(),
            container: "web".to_owned(),
            namespace: "k8s.io".to_owned(),
            reference: Some("docker.io/library/a:1".to_owned()),
            pod: None,
        };
        let text = serde_json::to_string(&told).expect("plain data");
        assert_eq!(serde_json::from_str::<RefusedStart>(&text).ok(), Some(told));
        let newer = r#"{"reason":"pages","colour":["red"]}"#;
        let newer: RefusedStart = serde_json::from_str(newer).expect("read");
        assert_eq!((newer.reason.as_str(), newer.reference), ("pages", None));
        for junk in ["", "machine", "{}", r#"{"reason":1}"#] {
            assert!(
                serde_json::from_str::<RefusedStart>(junk).is_err(),
                "{junk}"
            );
        }
    }

    #[test]
    fn reasons_are_words_that_differ() {
        let all: std::collections::BTreeSet<_> = reasons().collect();
        assert_eq!(all.len(), reasons().count());
        assert!(
            all.iter()
                .all(|name| name.bytes().all(|b| b.is_ascii_lowercase()))
        );
    }
}
