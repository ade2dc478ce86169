//! Tests of `files`.

use std::{fs, os::unix::fs::symlink};

use super::*;

/// A header that says nothing of permissions and owner: they are whoever's tests these.
fn header(kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(0);
    let old = header.as_old_mut();
    for field in [&mut old.mode, &mut old.uid, &mut old.gid] {
        *field = *b"nothing\0";
    }
    header
}

/// A layer: names and contents; a name with `/` at its end is a directory.
fn layer(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in entries {
        let kind = if name.ends_with('/') {
            tar::EntryType::Directory
        } else {
            tar::EntryType::Regular
        };
        let mut header = header(kind);
        header.set_size(content.len() as u64);
        builder
            .append_data(&mut header, name, *content)
            .expect("in memory");
    }
    builder.into_inner().expect("in memory")
}

fn link(builder: &mut tar::Builder<Vec<u8>>, kind: tar::EntryType, name: &str, to: &str) {
    builder
        .append_link(&mut header(kind), name, to)
        .expect("in memory");
}

fn wrong(tar: &[u8], directory: &Path) -> Vec<String> {
    let compared = compare(tar, directory).expect("compared");
    compared
        .wrong
        .into_iter()
        .map(|wrong| format!("{}: {}", wrong.path, wrong.found))
        .collect()
}

#[test]
fn what_differs_is_named_and_the_rest_is_not() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    fs::create_dir_all(at.join("a/b")).expect("made");
    for (name, content) in [("a/full", "full"), ("a/empty", ""), ("a/b/long", "longer")] {
        fs::write(at.join(name), content).expect("written");
    }
    fs::create_dir(at.join("a/dir")).expect("made");
    let tar = layer(&[
        ("a/", b""),
        ("a/full", b"full"),
        ("a/empty", b"not empty"),
        ("a/b/long", b"long"),
        ("a/gone", b"gone"),
        ("a/dir", b"a file"),
        ("none/x", b"x"),
        (".wh.old", b""),
    ]);
    assert_eq!(
        wrong(&tar, at),
        [
            "a/b/long: a file of 6 bytes",
            "a/dir: a directory",
            "a/empty: a file of 0 bytes",
            "a/gone: nothing",
            "none/x: nothing",
        ]
    );
}

#[test]
fn contents_are_compared_to_the_last_byte() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    let long = vec![b'x'; 200_000];
    let mut flipped = long.clone();
    *flipped.last_mut().expect("not empty") = b'y';
    for (name, content) in [
        ("same", &long),
        ("flipped", &flipped),
        ("zeros", &vec![0; 70_000]),
    ] {
        fs::write(at.join(name), content).expect("written");
    }
    symlink("there", at.join("link")).expect("linked");
    let mut builder = tar::Builder::new(Vec::new());
    link(&mut builder, tar::EntryType::Symlink, "link", "elsewhere");
    let links = builder.into_inner().expect("in memory");
    let files = layer(&[
        ("same", &long),
        ("flipped", &long),
        ("zeros", &long[..70_000]),
    ]);
    assert_eq!(
        wrong(&[&links[..512], &files].concat(), at),
        [
            "flipped: other content from byte 199999 on",
            "link: a symbolic link to `there`",
            "zeros: other content from byte 0 on",
        ]
    );
}

/// All three of GNU's formats, and what comes after such a file.
#[test]
fn the_holes_of_a_sparse_file_are_zeros() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut whole = vec![0; 100_000];
    whole[70_000..70_004].copy_from_slice(b"data");
    let size = whole.len().to_string();
    let mut map = b"1\n70000\n4\n".to_vec();
    map.resize(512, 0);
    map.extend_from_slice(b"data");
    let entry = |records: &[(&str, &str)], content: &[u8]| {
        let mut builder = tar::Builder::new(Vec::new());
        let records = records.iter().map(|(key, value)| (*key, value.as_bytes()));
        builder.append_pax_extensions(records).expect("in memory");
        let mut bytes = builder.into_inner().expect("in memory");
        bytes.truncate(bytes.len() - 1024);
        [bytes, layer(&[("file", content), ("after", b"after")])].concat()
    };
    fs::write(dir.path().join("after"), b"after").expect("written");
    for tar in [
        entry(
            &[
                ("GNU.sparse.major", "1"),
                ("GNU.sparse.minor", "0"),
                ("GNU.sparse.realsize", &size),
            ],
            &map,
        ),
        entry(
            &[
                ("GNU.sparse.size", &size),
                ("GNU.sparse.map", "70000,4,100000,0"),
            ],
            b"data",
        ),
        entry(
            &[
                ("GNU.sparse.size", &size),
                ("GNU.sparse.offset", "70000"),
                ("GNU.sparse.numbytes", "4"),
            ],
            b"data",
        ),
    ] {
        let mut there = whole.clone();
        let mut found = |at: usize, byte: u8| {
            there[at] = byte;
            fs::write(dir.path().join("file"), &there).expect("written");
            wrong(&tar, dir.path())
        };
        assert!(found(0, 0).is_empty());
        assert_eq!(found(99_999, 1), ["file: other content from byte 99999 on"]);
        assert_eq!(
            found(70_001, b'A'),
            ["file: other content from byte 70001 on"]
        );
        assert_eq!(found(5, 5), ["file: other content from byte 5 on"]);
    }
}

#[test]
fn permissions_are_compared_and_a_hard_link_excuses_them() {
    use std::os::unix::fs::PermissionsExt;

    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    fs::write(at.join("one"), b"1").expect("written");
    fs::hard_link(at.join("one"), at.join("two")).expect("linked");
    fs::set_permissions(at.join("one"), PermissionsExt::from_mode(0o700)).expect("set");
    let entry = |mode: u32| {
        let mut header = header(tar::EntryType::Regular);
        header.set_mode(mode);
        header.set_size(1);
        header.set_path("one").expect("short");
        header.set_cksum();
        let content = [&b"1"[..], &[0; 511]].concat();
        [header.as_bytes().to_vec(), content].concat()
    };
    assert!(wrong(&entry(0o700), at).is_empty());
    assert_eq!(wrong(&entry(0o755), at), ["one: permissions 0700"]);
    let mut builder = tar::Builder::new(Vec::new());
    link(&mut builder, tar::EntryType::Link, "two", "one");
    let links = builder.into_inner().expect("in memory");
    assert!(wrong(&[entry(0o755), links].concat(), at).is_empty());
}

#[test]
fn links_are_followed_within_the_layer_and_never_out_of_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path().join("layer");
    fs::create_dir_all(at.join("usr/lib")).expect("made");
    fs::write(dir.path().join("outside"), b"1234").expect("written");
    fs::write(at.join("usr/lib/x"), b"1234").expect("written");
    symlink("/usr/lib", at.join("lib")).expect("linked");
    symlink("../..", at.join("usr/out")).expect("linked");
    symlink(dir.path().join("outside"), at.join("file")).expect("linked");
    let mut builder = tar::Builder::new(Vec::new());
    link(&mut builder, tar::EntryType::Symlink, "lib", "/usr/lib");
    let links = builder.into_inner().expect("in memory");
    let links = &links[..512];
    let tar = [
        links,
        &layer(&[
            ("lib/x", b"1234"),
            ("usr/out/outside", b"1234"),
            ("file", b"1234"),
        ]),
    ]
    .concat();
    assert_eq!(
        wrong(&tar, &at),
        ["file: a symbolic link", "outside: nothing"]
    );
}

#[test]
fn later_entries_of_the_layer_explain_what_is_there() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    fs::create_dir_all(at.join("usr")).expect("made");
    symlink("usr", at.join("via")).expect("linked");
    fs::write(at.join("usr/f"), b"22").expect("written");
    fs::write(at.join("twice"), b"22").expect("written");
    fs::write(at.join("was-a-directory"), b"22").expect("written");
    let tar = layer(&[
        ("twice", b"1"),
        ("twice", b"22"),
        ("via/f", b"1"),
        ("usr/f", b"22"),
        ("was-a-directory/deep/x", b"1"),
        ("was-a-directory", b"22"),
        ("hidden/x", b"1"),
        (".wh.hidden", b""),
        ("implicit/sub/x", b"1"),
        ("implicit/.wh..wh..opq", b""),
    ]);
    assert!(wrong(&tar, at).is_empty(), "{:?}", wrong(&tar, at));
    // The order matters: what comes first explains nothing.
    let tar = layer(&[("twice", b"22"), ("twice", b"1")]);
    assert_eq!(wrong(&tar, at), ["twice: a file of 2 bytes"]);
}

#[test]
fn an_emptied_file_is_not_excused_by_its_other_names() {
    let dir = tempfile::tempdir().expect("a directory");
    let at = dir.path();
    fs::write(at.join("one"), b"").expect("written");
    fs::hard_link(at.join("one"), at.join("two")).expect("linked");
    let mut builder = tar::Builder::new(Vec::new());
    link(&mut builder, tar::EntryType::Link, "two", "one");
    let tail = builder.into_inner().expect("in memory");
    let head = layer(&[("one", b"content")]);
    let tar = [&head[..1024], &tail].concat();
    assert_eq!(wrong(&tar, at), ["one: a file of 0 bytes"]);
}

#[test]
fn memory_is_bounded_and_the_number_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let names: Vec<String> = (0..1500).map(|n| format!("f{n}")).collect();
    let entries: Vec<(&str, &[u8])> = names.iter().map(|n| (n.as_str(), &b"x"[..])).collect();
    let compared = compare(layer(&entries).as_slice(), dir.path()).expect("compared");
    assert_eq!((compared.wrong.len(), compared.more), (1024, 476));
    // All of them explained: then nothing can be said.
    let mut all = entries.clone();
    let whiteouts: Vec<String> = names.iter().map(|n| format!(".wh.{n}")).collect();
    all.extend(whiteouts.iter().map(|n| (n.as_str(), &b""[..])));
    assert!(compare(layer(&all).as_slice(), dir.path()).is_err());
}

#[test]
fn what_cannot_be_read_is_an_error_and_no_damage() {
    let dir = tempfile::tempdir().expect("a directory");
    assert!(compare(&[1_u8; 600][..], dir.path()).is_err());
    assert!(compare(&b""[..], &dir.path().join("none")).is_err());
}
