//! Cgroups of version 1 on the kernel that the tests run on, and of version 2 from one that was
//! recorded.
#![allow(clippy::unwrap_used, reason = "tests")]

mod place;
mod recorded;

mod v1;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::*;

/// No test waits longer for what has to happen.
const LIMIT: Duration = Duration::from_secs(60);

/// Long enough for what would happen to happen.
const MOMENT: Duration = Duration::from_millis(150);

async fn next(watch: &mut OomWatch<'_>) -> Option<()> {
    let next = tokio::time::timeout(LIMIT, watch.next()).await;
    next.expect("nothing happens")
}

async fn nothing_comes(watch: &mut OomWatch<'_>) -> bool {
    tokio::time::timeout(MOMENT, watch.next()).await.is_err()
}

/// A file that gives each name a value of its own.
fn numbered(names: &[&str]) -> String {
    let mut file = String::new();
    for (name, value) in names.iter().zip(1001..) {
        writeln!(file, "{name} {value}").unwrap();
    }
    file
}

/// What fields 1 and on have if they are read from that file in its order.
fn expected(names: &[&str]) -> BTreeMap<u32, u64> {
    (1..).zip(1001..).take(names.len()).collect()
}

/// The numbers of a message by those of their fields.
fn varints(mut message: &[u8]) -> BTreeMap<u32, u64> {
    let mut fields = BTreeMap::new();
    while !message.is_empty() {
        let (field, kind) = decode_key(&mut message).unwrap();
        if kind == WireType::Varint {
            fields.insert(field, decode_varint(&mut message).unwrap());
        } else {
            skip_field(kind, field, &mut message, DecodeContext::default()).unwrap();
        }
    }
    fields
}
