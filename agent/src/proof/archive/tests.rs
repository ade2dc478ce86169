use std::{collections::BTreeMap, io::Write};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use futures_util::{future::BoxFuture, stream};

use super::super::testing::{AMD64, ARM64, host, program};
use super::*;
use crate::{
    oci::{Document, MediaType, Verified},
    source::BlobStream,
};

/// Layers in memory.
#[derive(Debug, Default)]
struct Held(BTreeMap<Digest, Bytes>);

impl Held {
    fn add(&mut self, bytes: Vec<u8>) -> Descriptor {
        let digest = Digest::of(&bytes);
        let size = bytes.len() as u64;
        self.0.insert(digest.clone(), bytes.into());
        Descriptor::new(
            MediaType::parse("application/vnd.oci.image.layer.v1.tar+gzip"),
            digest,
            size,
        )
    }
}

impl Source for Held {
    fn document<'a>(&'a self, _: &'a Descriptor) -> BoxFuture<'a, Result<Document>> {
        Box::pin(async { Err(Error::new(Kind::NotFound, "no documents here")) })
    }

    fn blob<'a>(&'a self, descriptor: &'a Descriptor, _: u64) -> BoxFuture<'a, Result<BlobStream>> {
        let bytes = self.0.get(&descriptor.digest).cloned().unwrap_or_default();
        let chunks: Vec<Result<Bytes>> = bytes
            .chunks(700)
            .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
            .collect();
        Box::pin(async { Ok(Box::pin(stream::iter(chunks)) as BlobStream) })
    }

    fn name(&self) -> &'static str {
        "held"
    }
}

/// One entry of a tar: name, mode, type, target, content.
fn entry(path: &str, mode: u32, kind: u8, target: &str, content: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    header[..path.len()].copy_from_slice(path.as_bytes());
    header[100..107].copy_from_slice(format!("{mode:07o}").as_bytes());
    header[108..115].copy_from_slice(b"0000000");
    header[116..123].copy_from_slice(b"0000000");
    header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    header[136..147].copy_from_slice(b"00000000000");
    header[148..156].copy_from_slice(b"        ");
    header[156] = kind;
    header[157..157 + target.len()].copy_from_slice(target.as_bytes());
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut bytes = header.to_vec();
    bytes.extend(content);
    bytes.resize(bytes.len().next_multiple_of(512), 0);
    bytes
}

fn file(path: &str, content: &[u8]) -> Vec<u8> {
    entry(path, 0o755, b'0', "", content)
}

fn layer(entries: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = entries.concat();
    tar.resize(tar.len() + 1024, 0);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(&tar).expect("in memory");
    gzip.finish().expect("in memory")
}

async fn judged(layers: &[Vec<u8>], command: &str) -> Proof {
    let mut held = Held::default();
    let layers: Vec<Descriptor> = layers.iter().map(|layer| held.add(layer.clone())).collect();
    let config = format!(r#"{{"config":{{"Cmd":["{command}"]}}}}"#);
    let launch = Launch::of(&Verified::of(Bytes::from(config))).expect("read");
    let host = host("x86-v3");
    let proof = of_layers(&held, &layers, &launch, &host).await;
    proof.expect("readable")
}

#[tokio::test]
async fn layers_lie_over_each_other() {
    let amd64 = program(AMD64, None);
    let arm64 = program(ARM64, None);
    let bottom = layer(&[
        file("usr/bin/old", &arm64),
        file("usr/bin/tool", &amd64),
        file("opt/a/x", &amd64),
        entry("bin", 0o777, b'2', "usr/bin", b""),
        entry("usr/bin/hard", 0o755, b'1', "usr/bin/tool", b""),
        file("srv/hidden", &amd64),
        file("entry", b"#!/bin/tool\n"),
        entry("data", 0o644, b'0', "", &amd64),
    ]);
    let top = layer(&[
        file("usr/bin/old", &amd64),
        entry("usr/bin/.wh.tool", 0o644, b'0', "", b""),
        entry("opt/.wh.a", 0o644, b'0', "", b""),
        file("srv/shown", &amd64),
        entry("srv/.wh..wh..opq", 0o644, b'0', "", b""),
        file("usr/bin/tool", &arm64),
    ]);
    let layers = [bottom, top];
    for (command, verdict) in [
        ("/bin/old", "native"),
        // The link keeps what the layer above replaced.
        ("/bin/hard", "native"),
        ("/bin/tool", "refused"),
        ("/entry", "refused"),
        ("/opt/a/x", "unknown"),
        ("/srv/hidden", "unknown"),
        ("/srv/shown", "native"),
        ("/data", "unknown"),
        ("/nothing", "unknown"),
    ] {
        let proof = judged(&layers, command).await;
        assert_eq!(proof.verdict.name(), verdict, "{command}: {proof:?}");
    }
    let entry = judged(&layers, "/entry").await;
    let from: Vec<_> = entry.chain.iter().map(|link| link.layer.clone()).collect();
    let digests: Vec<_> = layers.iter().map(|layer| Some(Digest::of(layer))).collect();
    assert_eq!(from, digests);
}

#[tokio::test]
async fn a_layer_that_is_not_what_its_digest_says_proves_nothing() {
    let good = layer(&[file("app", &program(AMD64, None))]);
    let mut held = Held::default();
    let descriptor = held.add(good.clone());
    let launch = Launch::of(&Verified::of(Bytes::from_static(
        br#"{"config":{"Cmd":["/app"]}}"#,
    )))
    .expect("read");
    let host = host("x86-v3");
    for bad in [
        layer(&[file("app", &program(ARM64, None))]),
        good[..good.len() / 2].to_vec(),
        b"rubbish".to_vec(),
        Vec::new(),
    ] {
        held.0.insert(descriptor.digest.clone(), bad.into());
        let layers = [descriptor.clone()];
        let failed = of_layers(&held, &layers, &launch, &host).await;
        assert!(failed.is_err(), "{failed:?}");
    }
    let rubbish = held.add(b"rubbish".to_vec());
    let error = of_layers(&held, &[rubbish], &launch, &host)
        .await
        .expect_err("no layer");
    assert_eq!(error.kind(), Kind::InvalidContent);
}

#[tokio::test]
async fn a_program_that_is_larger_than_what_is_held_is_judged_by_its_beginning() {
    let mut large = program(AMD64, None);
    large.resize(MOST_CONTENT + 4096, 0);
    let proof = judged(&[layer(&[file("app", &large)])], "/app").await;
    assert_ne!(proof.verdict.name(), "refused", "{proof:?}");
}

/// A few kilobytes may say a million times that half a million names are hidden.
#[tokio::test]
async fn a_layer_that_hides_the_same_again_and_again_is_given_up() {
    let mut entries = vec![file("app", &program(AMD64, None))];
    entries.extend((0..1500).map(|n| entry(&format!("d/{n}"), 0o644, b'0', "", b"")));
    entries.extend((0..1500).map(|_| entry("d/.wh..wh..opq", 0o644, b'0', "", b"")));
    let proof = judged(&[layer(&entries)], "/app").await;
    assert_eq!(proof.verdict.name(), "unknown");
    assert!(proof.reasons[0].contains("too many files"), "{proof:?}");
}

/// As containerd unpacks them, whose overlay hides what is below a new directory's name.
#[tokio::test]
async fn entries_below_links_are_where_unpacking_puts_them() {
    let amd64 = program(AMD64, None);
    let loaded = program(AMD64, Some("/lib64/ld.so"));
    let bottom = layer(&[
        entry("lib64", 0o777, b'2', "usr/lib64", b""),
        file("lib64/ld.so", &amd64),
        entry("lib64/again.so", 0o755, b'1', "lib64/ld.so", b""),
        file("app", &loaded),
        entry("bin", 0o777, b'2', "usr/bin", b""),
        file("usr/bin/sh", &amd64),
        entry("loop", 0o777, b'2', "loop", b""),
        file("loop/x", &amd64),
    ]);
    let top = layer(&[file("bin/foo", &amd64)]);
    let both = [bottom, top];
    for (layers, command, verdict) in [
        (&both[..1], "/app", "native"),
        (&both[..1], "/usr/lib64/again.so", "native"),
        (&both[..1], "/bin/sh", "native"),
        (&both[..], "/bin/foo", "native"),
        (&both, "/bin/sh", "unknown"),
        (&both, "/usr/bin/sh", "native"),
        (&both, "/loop/x", "unknown"),
    ] {
        let proof = judged(layers, command).await;
        assert_eq!(proof.verdict.name(), verdict, "{command}: {proof:?}");
    }
}

/// A few kilobytes may ask for gigabytes.
#[tokio::test]
async fn links_are_counted_with_where_they_lead() {
    let target = "x/".repeat(49);
    let mut entries = vec![file("app", &program(AMD64, None))];
    entries.push(entry("l", 0o777, b'2', &target, b""));
    entries.extend((0..3000).map(|n| entry(&format!("h{n}"), 0o777, b'1', "l", b"")));
    let names = Names::default();
    let tar = entries.concat();
    let names = names.add(0, tar.as_slice()).expect("readable");
    assert!(names.bytes > 3000 * target.len());
    assert!(!names.is_too_much());
}
