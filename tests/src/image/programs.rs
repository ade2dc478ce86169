//! Images whose programs fail in every way there is.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::build::{Image, Platform};
use super::layer::Layer;
use super::layout::Layout;
use super::samples::{ARM64, base_layer, host, published};
use crate::tools::Lab;

/// What [`programs`] offers besides busybox, each in the root directory.
///
/// `foreign`: for another machine; `noloader`: dynamic, without a loader; `script`, `noexec`,
/// `empty`, `text`: what their names say; `illegal`, `crash`: static programs of a few bytes.
pub fn programs() -> Layout {
    program(&["/bin/sh"], &[])
}

/// The same with this entrypoint and these settings of its config.
#[track_caller]
pub fn program(entrypoint: &[&str], settings: &[(&str, Value)]) -> Layout {
    let layout = Layout::new();
    let mut image = Image::new(&layout, host())
        .layer(base_layer(&layout, host().arch))
        .layer(broken(&layout))
        .entrypoint(entrypoint);
    for (key, value) in settings {
        image = image.setting(key, value.clone());
    }
    let entry = image.finish();
    published(layout, &[entry])
}

fn broken(layout: &Layout) -> Layer<'_> {
    let foreign = if host() == ARM64 { "amd64" } else { "arm64" };
    let foreign = Lab::get().tool(&format!("busybox-{foreign}/bin/busybox"));
    let machine = Path::new("/bin/true");
    let mut layer = Layer::new(layout)
        .copy("foreign", 0o755, &foreign)
        .copy("noloader", 0o755, machine)
        .file("script", 0o755, b"#!/no/such/interpreter\n")
        .file("noexec", 0o644, b"#!/bin/sh\n")
        .file("empty", 0o755, b"")
        .file("text", 0o755, b"hello\n")
        .file("etc/passwd", 0o644, b"root:x:0:0::/:\nweb:x:33:34::/:\n")
        .file("etc/group", 0o644, b"root:x:0:\nweb:x:34:\nlog:x:4:web\n")
        .raw(
            "tmp/",
            |header| {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(0o1777);
            },
            b"",
        )
        .raw(
            "data/",
            |header| {
                header.set_entry_type(tar::EntryType::Directory);
                header.set_mode(0o750);
                header.set_uid(33);
                header.set_gid(34);
            },
            b"",
        )
        .file("data/given", 0o644, b"by the image\n");
    if host().arch == "amd64" {
        layer = layer
            .file("illegal", 0o755, &static_elf(&[0x0f, 0x0b]))
            .file("crash", 0o755, &static_elf(&[0x31, 0xc0, 0x48, 0x8b, 0x00]));
    }
    layer
}

/// An image with this machine's loader and C library: `nolibs` needs another library, `level` has
/// a mark that it needs a CPU that nobody has.
#[track_caller]
pub fn dynamic() -> Layout {
    let layout = Layout::new();
    let loader = "/lib64/ld-linux-x86-64.so.2";
    let library = "/lib/x86_64-linux-gnu/libc.so.6";
    let level = for_a_cpu_to_come(fs::read("/bin/true").unwrap());
    let layer = Layer::new(&layout)
        .dir("lib64")
        .copy("lib64/ld-linux-x86-64.so.2", 0o755, Path::new(loader))
        .copy(&library[1..], 0o755, Path::new(library))
        .copy("nolibs", 0o755, Path::new("/bin/ls"))
        .file("level", 0o755, &level);
    let entry = Image::new(&layout, host())
        .layer(layer)
        .entrypoint(&["/nolibs"])
        .finish();
    published(layout, &[entry])
}

/// Sets every bit of `GNU_PROPERTY_X86_ISA_1_NEEDED`.
#[track_caller]
fn for_a_cpu_to_come(mut program: Vec<u8>) -> Vec<u8> {
    let property = [0x02, 0x80, 0x00, 0xc0, 4, 0, 0, 0];
    let at = program
        .windows(property.len())
        .position(|window| window == property)
        .expect("the program says which CPU level it needs");
    program[at + property.len()..][..4].fill(0xff);
    program
}

/// An index with an image for each of these platforms, all of this machine's busybox; each
/// greets as [`super::hello`] does.
#[track_caller]
pub fn with_platforms(platforms: &[Platform]) -> Layout {
    let layout = Layout::new();
    let entries: Vec<Value> = platforms
        .iter()
        .map(|platform| {
            let script = format!("#!/bin/sh\necho hello from {}\n", platform.arch);
            Image::new(&layout, *platform)
                .layer(base_layer(&layout, host().arch))
                .layer(Layer::new(&layout).file("hello", 0o755, script.as_bytes()))
                .entrypoint(&["/hello"])
                .finish()
        })
        .collect();
    published(layout, &entries)
}

/// One manifest for `platform` and nothing in it.
#[track_caller]
pub fn nothing(platform: Platform) -> Layout {
    let layout = Layout::new();
    let layer = Layer::new(&layout).file("file", 0o644, b"x");
    let entry = Image::new(&layout, platform)
        .layer(layer)
        .setting("Cmd", json!(null))
        .finish();
    published(layout, &[entry])
}

/// A static program for amd64: these instructions, and nothing else.
pub fn static_elf(code: &[u8]) -> Vec<u8> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let mut bytes = b"\x7fELF\x02\x01\x01".to_vec();
    bytes.resize(16, 0);
    let half = |bytes: &mut Vec<u8>, value: u16| bytes.extend(value.to_le_bytes());
    half(&mut bytes, 2);
    half(&mut bytes, 62);
    bytes.extend(1_u32.to_le_bytes());
    for value in [BASE + HEADERS, 64, 0] {
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend(0_u32.to_le_bytes());
    for value in [64, 56, 1, 0, 0, 0] {
        half(&mut bytes, value);
    }
    let size = HEADERS + code.len() as u64;
    bytes.extend(1_u32.to_le_bytes());
    bytes.extend(5_u32.to_le_bytes());
    for value in [0, BASE, BASE, size, size, 0x1000] {
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend_from_slice(code);
    bytes
}
