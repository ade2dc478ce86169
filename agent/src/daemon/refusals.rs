//! Containers that were not started, as the shim tells: one datagram each
//! ([`edgepull_platform::starts`]).

use std::{path::Path, time::Duration};

use edgepull_platform::starts::{LONGEST, RefusedStart};
use jiff::Timestamp;
use tokio::{
    net::UnixDatagram,
    time::{Instant, sleep_until},
};

use super::{Handle, socket::put_in_place};
use crate::{
    error::{Error, Result},
    redact::printable,
};

/// What is taken in a second, of whoever: a container that is restarted for ever is restarted far
/// less often. The rest is dropped by the kernel, whose queue is short.
const MOST: u32 = 50;
const SECOND: Duration = Duration::from_secs(1);
/// Bytes of one text of a datagram, of which no more is kept.
const LONGEST_TEXT: usize = 1 << 10;
const LONGEST_NAME: usize = 256;

/// Listens at `path` and counts, until dropped. Sending is for root alone. The lock of the
/// control socket beside it is the right to this one, too.
pub async fn count_refusals(path: &Path, handle: Handle) -> Result<()> {
    let socket = put_in_place(path, 0o600, None, |at| UnixDatagram::bind(at))?;
    let mut datagram = vec![0; LONGEST];
    let mut second = Instant::now();
    let mut taken = 0;
    loop {
        let length = socket.recv(&mut datagram).await.map_err(|error| {
            Error::io("read from", path, &error)
                .hint("starts that are refused are not counted until the daemon is restarted")
        })?;
        if let Some(start) = parse(datagram.get(..length).unwrap_or_default()) {
            handle.metrics.refused_start(&start.reason);
            handle.board.refused_start(start, Timestamp::now());
        }
        if second.elapsed() >= SECOND {
            (second, taken) = (Instant::now(), 0);
        }
        taken += 1;
        if taken >= MOST {
            sleep_until(second + SECOND).await;
        }
    }
}

/// A datagram, without what does not belong on a terminal or is too long. What is none is nothing.
fn parse(datagram: &[u8]) -> Option<RefusedStart> {
    let start: RefusedStart = serde_json::from_slice(datagram).ok()?;
    let name = |text: &str| printable(text, LONGEST_NAME);
    Some(RefusedStart {
        reason: name(&start.reason),
        message: printable(&start.message, LONGEST_TEXT),
        container: name(&start.container),
        namespace: name(&start.namespace),
        reference: start.reference.as_deref().map(name),
        pod: start.pod.as_deref().map(name),
    })
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use edgepull_platform::{Facts, detect};

    use super::*;
    use crate::{metrics::Metrics, status::Board};

    #[test]
    fn junk_is_nothing_and_texts_are_bounded() {
        for junk in [
            &b""[..],
            b"machine",
            b"\xff",
            b"{",
            b"[]",
            b"{\"reason\":[]}",
        ] {
            assert_eq!(parse(junk), None);
        }
        let long = serde_json::to_vec(&RefusedStart {
            reason: "machine".to_owned(),
            message: "\u{1b}[31mx\n".repeat(500),
            container: "c".repeat(4000),
            ..RefusedStart::default()
        });
        let start = parse(&long.expect("plain data")).expect("read");
        assert_eq!(start.reason, "machine");
        assert!(
            start.message.len() <= LONGEST_TEXT + 8 && start.container.len() <= LONGEST_NAME + 8
        );
        assert!(!start.message.chars().any(char::is_control), "{start:?}");
    }

    #[tokio::test]
    async fn refusals_of_the_shim_are_counted_and_junk_and_floods_hurt_nobody() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("refusals.sock");
        let facts = Facts::from_texts("uname_machine=x86_64", []);
        let host = detect(&facts).expect("a host");
        let board = Board::new("linux/amd64", "1", Timestamp::UNIX_EPOCH);
        let (handle, _asks) = Handle::new(board, Metrics::new(&host, "1"), String::new());
        // What a daemon that was killed left.
        drop(std::os::unix::net::UnixDatagram::bind(&path).expect("bound"));
        let telling = async {
            let socket = tokio::net::UnixDatagram::unbound().expect("made");
            let told = |reason: &str, image: &str| {
                let start = RefusedStart {
                    reason: reason.to_owned(),
                    message: "cannot run here".to_owned(),
                    reference: Some(image.to_owned()),
                    ..RefusedStart::default()
                };
                serde_json::to_vec(&start).expect("plain data")
            };
            let junk = vec![b'x'; 20_000];
            for datagram in [
                &told("machine", "a"),
                &b"machine".to_vec(),
                &junk,
                &told("machine", "a"),
                &told("No Such Reason", "b"),
            ] {
                while socket.send_to(datagram, &path).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            let wanted = [
                "edgepull_refused_starts_total{reason=\"machine\"} 2",
                "edgepull_refused_starts_total{reason=\"other\"} 1",
            ];
            while !wanted
                .iter()
                .all(|line| handle.metrics_text().contains(line))
            {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            assert_eq!(fs::metadata(&path).expect("there").mode() & 0o777, 0o600);
            let rows = handle.board.daemon().refused_starts;
            let rows: Vec<_> = rows
                .iter()
                .map(|row| (row.start.reference.as_deref(), row.count))
                .collect();
            assert_eq!(rows, [(Some("b"), 1), (Some("a"), 2)]);
            // A flood: whoever sends never waits, and what is taken is a few at most.
            let flood = std::os::unix::net::UnixDatagram::unbound().expect("made");
            flood.set_nonblocking(true).expect("set");
            for _ in 0..200 {
                for _ in 0..50 {
                    let _ = flood.send_to(&told("pages", "c"), &path);
                }
                tokio::task::yield_now().await;
            }
            let text = handle.metrics_text();
            let line = text
                .lines()
                .find(|line| line.contains("refused_starts_total{reason=\"pages\"}"));
            let count = line.and_then(|line| line.rsplit_once(' ')?.1.parse::<u32>().ok());
            assert!(
                count.is_some_and(|count| (1..200).contains(&count)),
                "{line:?}"
            );
        };
        tokio::select! {
            ended = count_refusals(&path, handle.clone()) => panic!("{ended:?}"),
            told = tokio::time::timeout(Duration::from_secs(20), telling) => told.expect("counted"),
        }
    }
}
