//! Reads along on one HTTP/1.1 connection. A client of ours never sends a request before the
//! answer to the last one is over, so one request is open at a time.

use std::io::BufReader;

use crate::faulty::{Request, parse};
use crate::http::{find, read_head};

#[derive(Debug, Default)]
pub(super) struct Tap {
    /// Bytes of a head that is not complete yet.
    asked: Vec<u8>,
    answered: Vec<u8>,
    /// The open request's place in the log.
    at: Option<usize>,
    /// Whether its answer's head has passed.
    in_body: bool,
    /// Bytes of the answer's body still to come.
    left: u64,
}

impl Tap {
    /// Bytes from the client.
    pub(super) fn up(&mut self, bytes: &[u8], log: &mut Vec<Request>) {
        self.asked.extend_from_slice(bytes);
        let Some(end) = end_of_head(&self.asked) else {
            return;
        };
        let head: Vec<u8> = self.asked.drain(..end).collect();
        // A form, if there is one, came in the same breath.
        self.asked.clear();
        if let Ok((first, headers)) = read_head(&mut BufReader::new(head.as_slice())) {
            log.push(parse(&first, headers));
            self.at = Some(log.len() - 1);
            self.in_body = false;
            self.answered.clear();
        }
    }

    /// Bytes from the server, as far as they were passed on.
    pub(super) fn down(&mut self, bytes: &[u8], log: &mut [Request]) {
        let Some(request) = self.at.and_then(|at| log.get_mut(at)) else {
            return;
        };
        if self.in_body {
            let n = self.left.min(bytes.len() as u64);
            request.sent += n;
            self.left -= n;
            return;
        }
        self.answered.extend_from_slice(bytes);
        let Some(end) = end_of_head(&self.answered) else {
            return;
        };
        let head = self.answered[..end].to_vec();
        let rest = (self.answered.len() - end) as u64;
        self.answered.clear();
        let Ok((first, headers)) = read_head(&mut BufReader::new(head.as_slice())) else {
            return;
        };
        request.status = first
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .unwrap_or(0);
        self.in_body = true;
        self.left = if request.method == "HEAD" {
            0
        } else {
            find(&headers, "content-length")
                .and_then(|n| n.parse().ok())
                .unwrap_or(u64::MAX)
        };
        let n = self.left.min(rest);
        request.sent += n;
        self.left -= n;
    }
}

fn end_of_head(bytes: &[u8]) -> Option<usize> {
    let at = bytes.windows(4).position(|four| four == b"\r\n\r\n")?;
    Some(at + 4)
}
