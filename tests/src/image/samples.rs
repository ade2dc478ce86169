//! The shapes the scenarios ask for. Each is tagged `latest` in a layout of its own.

use std::sync::{Mutex, PoisonError};

use serde_json::{Value, json};

use super::build::{Image, Platform, index, media};
use super::layer::Layer;
use super::layout::Layout;
use crate::tools::Lab;

/// `linux/amd64`.
pub const AMD64: Platform = Platform::new("linux", "amd64", "");
/// `linux/arm64`.
pub const ARM64: Platform = Platform::new("linux", "arm64", "");
/// `linux/arm/v7`.
pub const ARM_V7: Platform = Platform::new("linux", "arm", "v7");
/// The platform of the machine the tests run on.
pub fn host() -> Platform {
    match std::env::consts::ARCH {
        "aarch64" => ARM64,
        "arm" => ARM_V7,
        _ => AMD64,
    }
}

/// What [`hello`] offers.
pub const HELLO: [Platform; 3] = [AMD64, ARM64, ARM_V7];

const TAG: &str = "latest";

/// A multi-platform image of busybox; its entrypoint prints `hello from <arch>`. The first layer
/// is shared by all platforms.
#[track_caller]
pub fn hello() -> Layout {
    let layout = Layout::new();
    let entries = hello_entries(&layout, &HELLO, false);
    published(layout, &entries)
}

/// As [`hello`], from docker's media types: manifest list and schema 2.
#[track_caller]
pub fn docker_types() -> Layout {
    let layout = Layout::new();
    let entries = hello_entries(&layout, &HELLO, true);
    finish_list(layout, &entries)
}

/// As Akraino's validation images are published: a docker list indented by three blanks, arm64
/// without variant; `arm64` false is the day its job broke and `--ignore-missing` hid it.
#[track_caller]
pub fn akraino(arm64: bool) -> Layout {
    let layout = Layout::new();
    let platforms: &[Platform] = if arm64 { &[AMD64, ARM64] } else { &[AMD64] };
    let entries = hello_entries(&layout, platforms, true);
    finish_list(layout, &entries)
}

/// One platform, no index.
#[track_caller]
pub fn hello_single(platform: Platform) -> Layout {
    let layout = Layout::new();
    let image = hello_image(&layout, platform, platform.arch, false);
    layout.tag(TAG, image);
    layout
}

/// One manifest whose config says `label`, with the bytes of `bytes`.
#[track_caller]
pub fn mislabelled_single(label: Platform, bytes: Platform) -> Layout {
    let layout = Layout::new();
    let image = hello_image(&layout, label, bytes.arch, false);
    layout.tag(TAG, image);
    layout
}

/// An index whose `linux/amd64` entry holds 32-bit Arm programs.
#[track_caller]
pub fn arm_busybox_labelled(label: Platform) -> Layout {
    let layout = Layout::new();
    let image = hello_image(&layout, label, "arm", false);
    published(layout, &[image])
}

/// As buildx publishes with provenance: each image followed by an attestation, `unknown/unknown`.
#[track_caller]
pub fn attested() -> Layout {
    let layout = Layout::new();
    let mut entries = hello_entries(&layout, &[AMD64, ARM64], false);
    for subject in entries.clone() {
        entries.push(attestation(&layout, &subject));
    }
    published(layout, &entries)
}

/// An index with an index in it.
#[track_caller]
pub fn nested() -> Layout {
    let layout = Layout::new();
    let inner = hello_entries(&layout, &HELLO, false);
    let (_, mut inner) = index(&layout, &inner);
    inner["platform"] = host().json();
    published(layout, &[inner])
}

/// FITA's shape: linux images and one artifact for `zephyr/arm/v7`, with a file `service.json`.
#[track_caller]
pub fn zephyr() -> Layout {
    let layout = Layout::new();
    let mut entries = hello_entries(&layout, &HELLO, false);
    let config = layout.put(
        b"{\n    \"architecture\": \"arm\",\n    \"os\": \"zephyr\",\n    \"variant\": \"v7\"\n}",
    );
    let service = layout.put_json(&json!({
        "name": "temperature_sensor",
        "version": "0.1.0",
        "data_model": [],
        "service": "AGFzbQEAAAA=",
        "dependencies": {"sdk_api": "1.0"},
        "inputs": [],
        "outputs": [],
    }));
    let mut layer = service.descriptor("application/vnd.embserve.v1+json");
    layer["annotations"] = json!({"org.opencontainers.image.title": "service.json"});
    let manifest = layout.put_json(&json!({
        "schemaVersion": 2,
        "mediaType": media::MANIFEST,
        "config": config.descriptor(media::CONFIG),
        "layers": [layer],
        "annotations": {"org.opencontainers.image.created": "2001-09-09T01:46:40Z"},
    }));
    let mut entry = manifest.descriptor(media::MANIFEST);
    entry["artifactType"] = json!(media::CONFIG);
    entry["platform"] = Platform::new("zephyr", "arm", "v7").json();
    entries.push(entry);
    published(layout, &entries)
}

/// Windows entries of two builds, and one linux image.
#[track_caller]
pub fn windows() -> Layout {
    let layout = Layout::new();
    let mut entries: Vec<Value> = ["10.0.17763.2300", "10.0.20348.2227"]
        .into_iter()
        .map(|os_version| {
            let platform = Platform {
                os_version,
                ..Platform::new("windows", "amd64", "")
            };
            let layer = Layer::new(&layout).file("Files/hello.txt", 0o644, os_version.as_bytes());
            Image::new(&layout, platform).layer(layer).finish()
        })
        .collect();
    entries.extend(hello_entries(&layout, &[AMD64], false));
    published(layout, &entries)
}

/// What large projects publish: Linux for machines that no lab has, Windows of three builds.
#[track_caller]
pub fn many_systems() -> Layout {
    let layout = Layout::new();
    let mut entries = Vec::new();
    for architecture in ["amd64", "arm64", "s390x", "ppc64le", "riscv64", "loong64"] {
        let layer = Layer::new(&layout).file("hello", 0o755, architecture.as_bytes());
        let image = Image::new(&layout, Platform::new("linux", architecture, ""));
        entries.push(image.layer(layer).finish());
    }
    for os_version in ["10.0.17763.2300", "10.0.20348.2227", "10.0.26100.1742"] {
        let platform = Platform {
            os_version,
            ..Platform::new("windows", "amd64", "")
        };
        let layer = Layer::new(&layout).file("Files/hello.txt", 0o644, os_version.as_bytes());
        entries.push(Image::new(&layout, platform).layer(layer).finish());
    }
    published(layout, &entries)
}

/// An index that offers only `linux/s390x`: for no host of the lab.
#[track_caller]
pub fn only_s390x() -> Layout {
    let layout = Layout::new();
    let layer = Layer::new(&layout).file("hello", 0o755, b"#!/bin/sh\n");
    let image = Image::new(&layout, Platform::new("linux", "s390x", "")).layer(layer);
    let entry = image.finish();
    published(layout, &[entry])
}

/// A docker manifest of schema 1, which nobody should accept any more.
#[track_caller]
pub fn schema1() -> Layout {
    let layout = Layout::new();
    let document = json!({
        "schemaVersion": 1,
        "name": "hello",
        "tag": "latest",
        "architecture": "amd64",
        "fsLayers": [{"blobSum": super::digest_of(b"")}],
        "history": [{"v1Compatibility": "{}"}],
        "signatures": [],
    });
    let blob = layout.put_json(&document);
    layout.tag(TAG, blob.descriptor(media::SCHEMA1));
    layout
}

/// All that is hard to unpack, in four layers: whiteouts, opaque directories, hard links,
/// extended attributes, device nodes, set-id bits, owners, implied parents, long names.
#[track_caller]
pub fn tricky() -> Layout {
    let layout = Layout::new();
    let long = format!("long/{}/{}", "d".repeat(120), "f".repeat(120));
    let base = base_layer(&layout, host().arch)
        .dir("keep")
        .file("keep/stays", 0o644, b"stays")
        .file("keep/goes", 0o644, b"goes")
        .dir("hidden")
        .file("hidden/old", 0o644, b"old")
        .raw(
            "sticky/",
            |h| {
                h.set_entry_type(tar::EntryType::Directory);
                h.set_mode(0o1777);
                h.set_uid(5);
                h.set_gid(6);
            },
            b"",
        );
    let second = Layer::new(&layout)
        .whiteout("keep/goes")
        .opaque("hidden")
        .file("hidden/new", 0o600, b"new")
        // No entry for `sticky`: its owner and mode come from the layer below.
        .file("sticky/child", 0o644, b"child");
    let third = Layer::new(&layout)
        .file("links/one", 0o640, b"one inode")
        .hardlink("links/two", "links/one")
        .symlink("links/soft", "one")
        .file_with_xattr("xattr/cap", b"cap", "security.capability", CAP_NET_RAW)
        .file_with_xattr("xattr/user", b"user", "user.edgepull", b"yes")
        .raw(
            "dev/lab-null",
            |h| {
                h.set_entry_type(tar::EntryType::Char);
                h.set_device_major(1).expect("ustar has device numbers");
                h.set_device_minor(3).expect("ustar has device numbers");
            },
            b"",
        )
        .raw(
            "dev/lab-fifo",
            |h| h.set_entry_type(tar::EntryType::Fifo),
            b"",
        )
        .raw(
            "bin/suid",
            |h| {
                h.set_mode(0o4755);
                h.set_uid(7);
                h.set_gid(8);
            },
            b"suid",
        );
    let fourth = Layer::new(&layout)
        .file(&long, 0o644, b"long")
        .whiteout("links/soft")
        .file("links/soft", 0o644, b"now a file")
        .file(
            "hello",
            0o755,
            format!("#!/bin/sh\necho hello from {}\n", host().arch).as_bytes(),
        );
    let entry = Image::new(&layout, host())
        .layer(base)
        .layer(second)
        .layer(third)
        .layer(fourth)
        .entrypoint(&["/hello"])
        .finish();
    published(layout, &[entry])
}

/// `cap_net_raw+ep`, revision 2.
const CAP_NET_RAW: &[u8] = &[
    0x01, 0x00, 0x00, 0x02, 0x00, 0x20, 0x00, 0x00, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// An image for this machine with `layers` more layers of `each` incompressible bytes. Made once, kept
/// under the lab's cache.
#[track_caller]
pub fn big(layers: u64, each: u64) -> Layout {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let arch = host().arch;
    let path = Lab::get()
        .cache()
        .join(format!("big-{arch}-{layers}x{each}"));
    let layout = Layout::at(&path);
    if layout.find(TAG).is_some() {
        return layout;
    }
    let say = format!("echo hello from {arch}");
    let mut image = Image::new(&layout, host())
        .layer(base_layer(&layout, arch))
        .entrypoint(&["/bin/sh", "-c", &say]);
    for n in 0..layers {
        let layer = Layer::stored(&layout).noise(&format!("data/noise-{n}"), each, n + 1);
        image = image.layer(layer);
    }
    let entry = image.finish();
    published(layout, &[entry])
}

/// So many images that share nothing, tagged `app0`, `app1`, …: one small layer each, with
/// content of its own.
#[track_caller]
pub fn apart(images: usize) -> Layout {
    let layout = Layout::new();
    for n in 0..images {
        let layer = Layer::stored(&layout).noise("data", 200 << 10, n as u64 + 1);
        let entry = Image::new(&layout, host()).layer(layer).finish();
        let (_, descriptor) = index(&layout, &[entry]);
        layout.tag(&format!("app{n}"), descriptor);
    }
    layout
}

/// Two images, `latest` and `other`, on one base.
#[track_caller]
pub fn siblings() -> Layout {
    let layout = Layout::new();
    for tag in ["latest", "other"] {
        let base = Layer::new(&layout).file("shared", 0o644, b"shared by both");
        let own = Layer::new(&layout).file("own", 0o644, tag.as_bytes());
        let image = Image::new(&layout, host()).layer(base).layer(own).finish();
        layout.tag(tag, image);
    }
    layout
}

/// An index with an entry that has no platform at all; the config tells.
#[track_caller]
pub fn bare_config_only() -> Layout {
    let layout = Layout::new();
    let mut entries = hello_entries(&layout, &[host()], false);
    for entry in &mut entries {
        entry.as_object_mut().unwrap().remove("platform");
    }
    published(layout, &entries)
}

pub(super) fn base_layer<'a>(layout: &'a Layout, arch: &str) -> Layer<'a> {
    let busybox = Lab::get().tool(&format!("busybox-{arch}/bin/busybox"));
    let mut layer = Layer::new(layout)
        .dir("bin")
        .copy("bin/busybox", 0o755, &busybox);
    for name in ["sh", "echo", "cat", "ls", "stat", "sleep", "true"] {
        layer = layer.symlink(&format!("bin/{name}"), "busybox");
    }
    for dir in ["dev", "proc", "sys", "tmp", "etc"] {
        layer = layer.dir(dir);
    }
    layer
}

/// `bytes`: the architecture whose busybox goes in.
pub(super) fn hello_image(layout: &Layout, platform: Platform, bytes: &str, docker: bool) -> Value {
    let shared = Layer::new(layout).dir("etc").file(
        "etc/os-release",
        0o644,
        b"ID=edgepull-lab\nVERSION_ID=1\n",
    );
    let script = format!("#!/bin/sh\necho hello from {}\n", platform.arch);
    let greeting = Layer::new(layout)
        .file("hello", 0o755, script.as_bytes())
        .file("etc/greeting", 0o644, b"hello\n");
    let image = Image::new(layout, platform)
        .layer(shared)
        .layer(base_layer(layout, bytes))
        .layer(greeting)
        .entrypoint(&["/hello"]);
    if docker { image.docker() } else { image }.finish()
}

fn hello_entries(layout: &Layout, platforms: &[Platform], docker: bool) -> Vec<Value> {
    platforms
        .iter()
        .map(|platform| hello_image(layout, *platform, platform.arch, docker))
        .collect()
}

fn attestation(layout: &Layout, subject: &Value) -> Value {
    let statement = layout.put_json(&json!({
        "_type": "https://in-toto.io/Statement/v0.1",
        "predicateType": "https://slsa.dev/provenance/v0.2",
        "subject": [{"name": "hello", "digest": subject["digest"]}],
        "predicate": {},
    }));
    let config = layout.put_json(&json!({
        "architecture": "unknown",
        "os": "unknown",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [statement.digest]},
    }));
    let mut layer = statement.descriptor("application/vnd.in-toto+json");
    layer["annotations"] = json!({"in-toto.io/predicate-type": "https://slsa.dev/provenance/v0.2"});
    let manifest = layout.put_json(&json!({
        "schemaVersion": 2,
        "mediaType": media::MANIFEST,
        "config": config.descriptor(media::CONFIG),
        "layers": [layer],
    }));
    let mut entry = manifest.descriptor(media::MANIFEST);
    entry["annotations"] = json!({
        "vnd.docker.reference.digest": subject["digest"],
        "vnd.docker.reference.type": "attestation-manifest",
    });
    entry["platform"] = json!({"architecture": "unknown", "os": "unknown"});
    entry
}

/// An index of these entries, tagged `latest`.
#[track_caller]
pub fn published(layout: Layout, entries: &[Value]) -> Layout {
    let (_, descriptor) = index(&layout, entries);
    layout.tag(TAG, descriptor);
    layout
}

fn finish_list(layout: Layout, entries: &[Value]) -> Layout {
    let list = json!({
        "schemaVersion": 2,
        "mediaType": media::DOCKER_LIST,
        "manifests": entries,
    });
    let mut bytes = Vec::new();
    let indent = serde_json::ser::PrettyFormatter::with_indent(b"   ");
    let mut writer = serde_json::Serializer::with_formatter(&mut bytes, indent);
    serde::Serialize::serialize(&list, &mut writer).expect("a document can be written");
    let blob = layout.put(&bytes);
    layout.tag(TAG, blob.descriptor(media::DOCKER_LIST));
    layout
}
