use std::{os::unix::fs::symlink, time::Duration};

use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn host() -> Traits {
    Traits {
        arch: "arm64".to_owned(),
        model: Some("Raspberry Pi 4 Model B".to_owned()),
        labels: [("site".to_owned(), "berlin".to_owned())].into(),
        namespace: "default".to_owned(),
        default_refresh: Refresh::Every(Duration::from_secs(21600)),
    }
}

struct Dir {
    dir: tempfile::TempDir,
    source: Directory,
}

impl Dir {
    fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let source = Directory::new(dir.path().join("images.d"));
        fs::create_dir(&source.path).expect("made");
        Self { dir, source }
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.source.path.join(name), text).expect("written");
    }

    fn read(&mut self) -> Read {
        self.source.read(&host())
    }
}

fn names(read: &Read) -> Vec<String> {
    let names = read.images.iter();
    names.map(|image| image.key().to_string()).collect()
}

fn why(fault: &Error) -> String {
    assert_eq!(fault.kind(), Kind::Config);
    format!("{} {}", fault.message(), fault.causes().join(" "))
}

#[test]
fn files_count_in_the_order_of_their_names_and_others_not_at_all() {
    let mut dir = Dir::new();
    dir.write("20.txt", "r/b:1\n");
    dir.write(
        "10.toml",
        "[[image]]\nreference = \"r/a:1\"\nplatforms = [\"host\", \"arm64\"]\n",
    );
    dir.write("B.txt", "r/c:1\n");
    for other in [
        "a.toml.bak",
        "a.toml~",
        "a.toml.dpkg-old",
        ".a.toml",
        "..data.txt",
        "README",
        "toml",
    ] {
        dir.write(other, "this is no reference");
    }
    let read = dir.read();
    assert_eq!(
        names(&read),
        [
            "docker.io/r/a:1 (host, default)",
            "docker.io/r/a:1 (linux/arm64, default)",
            "docker.io/r/b:1 (host, default)",
            "docker.io/r/c:1 (host, default)",
        ]
    );
    assert!(
        read.complete && read.faults.is_empty() && read.notes.is_empty(),
        "{read:?}"
    );
    assert_eq!(read.images[2].origin.line, 1);
    assert_eq!(read.images[2].origin.file, dir.source.path.join("20.txt"));
    assert_eq!(read.images[2].refresh, host().default_refresh);
    assert!(read.images[2].pin);
    assert_eq!(read.images[2].keep_previous, 1);
}

#[test]
fn a_faulty_file_keeps_what_it_said_and_holds_up_no_other() {
    let mut dir = Dir::new();
    dir.write("a.txt", "r/a:1");
    dir.write("b.toml", "[[image]]\nreference = \"r/b:1\"\n");
    dir.write("c.toml", "[[image]]\npins = 1\n");
    // At the start there is nothing to go on.
    let read = dir.read();
    assert_eq!(names(&read).len(), 2);
    assert!(!read.complete);
    assert_eq!(read.faults.len(), 1);

    dir.write("a.txt", "r/a:2");
    dir.write(
        "b.toml",
        "[[image]]\nreference = \"r/b:2\"\nrefresh = \"1s\"\n",
    );
    dir.write("c.toml", "[[image]]\nreference = \"r/c:1\"\n");
    let read = dir.read();
    assert_eq!(
        names(&read),
        [
            "docker.io/r/a:2 (host, default)",
            "docker.io/r/b:1 (host, default)",
            "docker.io/r/c:1 (host, default)",
        ]
    );
    assert!(!read.complete);
    let [fault] = read.faults.as_slice() else {
        panic!("one fault: {read:?}")
    };
    let text = why(fault);
    for part in ["b.toml", "line 3", "key `image.refresh`", "a minute"] {
        assert!(text.contains(part), "no {part}: {text}");
    }
    assert!(
        fault
            .hint_text()
            .is_some_and(|hint| hint.contains("before counts"))
    );

    dir.write("b.toml", "[[image]]\nreference = \"r/b:2\"\n");
    let read = dir.read();
    assert!(read.complete && read.faults.is_empty());
    assert_eq!(names(&read)[1], "docker.io/r/b:2 (host, default)");
    // A file that is removed declares nothing, whatever it said.
    fs::remove_file(dir.source.path.join("b.toml")).expect("removed");
    let read = dir.read();
    assert!(read.complete);
    assert_eq!(names(&read).len(), 2);
}

#[test]
fn what_cannot_be_a_file_of_images_is_a_fault() {
    for (make, part) in [
        (
            (|path| fs::create_dir(path).expect("made")) as fn(&Path),
            "no regular file",
        ),
        (
            |path| nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRUSR).expect("made"),
            "no regular file",
        ),
        (
            |path| symlink("nowhere", path).expect("made"),
            "No such file",
        ),
        (
            |path| fs::write(path, [b'a', 0xff]).expect("made"),
            "byte 1 is no UTF-8",
        ),
        (
            |path| fs::write(path, vec![b'\n'; (1 << 20) + 1]).expect("made"),
            "more than 1048576 bytes",
        ),
    ] {
        let mut dir = Dir::new();
        dir.write("z.txt", "r/z:1");
        make(&dir.source.path.join("a.txt"));
        let read = dir.read();
        assert_eq!(names(&read).len(), 1, "{part}");
        assert!(!read.complete);
        assert!(why(&read.faults[0]).contains(part), "{:?}", read.faults);
    }
}

/// As a `ConfigMap` is mounted: `a.txt` leads to `..data/a.txt`, and `..data` is replaced.
#[test]
fn links_are_followed() {
    let mut dir = Dir::new();
    let at = |name: &str| dir.source.path.join(name);
    for (version, text) in [("..1", "r/a:1"), ("..2", "r/a:2")] {
        fs::create_dir(at(version)).expect("made");
        fs::write(at(version).join("a.txt"), text).expect("written");
    }
    symlink("..1", at("..data")).expect("linked");
    symlink("..data/a.txt", at("a.txt")).expect("linked");
    let replace = at("..data");
    assert_eq!(names(&dir.read()), ["docker.io/r/a:1 (host, default)"]);
    fs::remove_file(&replace).expect("removed");
    symlink("..2", &replace).expect("linked");
    let read = dir.read();
    assert_eq!(names(&read), ["docker.io/r/a:2 (host, default)"]);
    assert!(read.complete);
}

#[test]
fn without_the_directory_nothing_is_declared_and_nothing_removed() {
    let mut dir = Dir::new();
    dir.write("a.txt", "r/a:1");
    assert_eq!(names(&dir.read()).len(), 1);
    let away = dir.dir.path().join("away");
    fs::rename(&dir.source.path, &away).expect("moved");
    let read = dir.read();
    assert!(read.images.is_empty() && read.faults.is_empty() && !read.complete);
    assert!(read.notes[0].contains("does not exist"), "{read:?}");

    // What cannot be listed still counts.
    fs::rename(&away, &dir.source.path).expect("moved");
    assert_eq!(names(&dir.read()).len(), 1);
    fs::rename(&dir.source.path, &away).expect("moved");
    fs::write(&dir.source.path, "no directory").expect("written");
    let read = dir.read();
    assert_eq!(names(&read).len(), 1);
    assert!(!read.complete && read.notes.is_empty());
    assert!(why(&read.faults[0]).contains("images.d"), "{read:?}");
}

#[test]
fn of_two_declarations_of_one_image_the_first_counts() {
    let mut dir = Dir::new();
    dir.write(
        "a.toml",
        "\n[[image]]\nreference = \"r/a:1\"\npin = false\n",
    );
    dir.write("b.txt", "docker.io/r/a:1\nr/b:1\n");
    let read = dir.read();
    assert_eq!(read.images.len(), 2);
    assert!(!read.images[0].pin);
    assert!(read.complete && read.faults.is_empty());
    let note = &read.notes[0];
    for part in ["a.toml`, line 3", "b.txt`, line 1", "docker.io/r/a:1"] {
        assert!(note.contains(part), "no {part}: {note}");
    }
}

/// Else one would pin what the other unpins, for ever.
#[test]
fn of_two_platforms_of_one_record_the_first_says_whether_it_is_pinned() {
    let mut dir = Dir::new();
    dir.write("a.txt", "r/a:1\nr/b:1\n");
    dir.write(
        "b.toml",
        r#"
[[image]]
reference = "r/a:1"
platforms = ["linux/arm64", "linux/arm/v7"]
pin = false
keep_previous = 3

[[image]]
reference = "r/a:1"
platforms = ["linux/arm64"]
namespace = "other"
pin = false

[[image]]
reference = "r/b:1"
platforms = ["linux/arm64"]
"#,
    );
    let read = dir.read();
    let said = |image: &Desired| (image.platform.clone(), image.pin, image.keep_previous);
    let said: Vec<_> = read.images.iter().map(said).collect();
    let expected = [
        ("host", true, 1),
        ("host", true, 1),
        ("linux/arm64", true, 1),
        ("linux/arm/v7", true, 1),
        ("linux/arm64", false, 1),
        ("linux/arm64", true, 1),
    ];
    assert_eq!(
        said,
        expected.map(|(name, pin, keep)| (name.to_owned(), pin, keep))
    );
    assert_eq!(read.notes.len(), 1, "{:?}", read.notes);
    for part in ["a.txt`, line 1", "b.toml`, line 3", "docker.io/r/a:1"] {
        assert!(read.notes[0].contains(part), "no {part}: {}", read.notes[0]);
    }
    assert!(read.complete && read.faults.is_empty());
}

#[test]
fn an_image_for_other_hosts_is_no_fault_and_comes_with_a_label() {
    let mut dir = Dir::new();
    dir.write(
        "a.toml",
        "[[image]]\nreference = \"r/a:1\"\nonly = { labels = { site = \"paris\" } }\n\
         [[image]]\nreference = \"r/a:1\"\nonly = { arch = \"aarch64\" }\nnamespace = \"k8s.io\"\n",
    );
    let read = dir.read();
    assert_eq!(names(&read), ["docker.io/r/a:1 (host, k8s.io)"]);
    assert!(read.complete && read.notes.is_empty());
    let mut paris = host();
    paris.labels.insert("site".to_owned(), "paris".to_owned());
    assert_eq!(dir.source.read(&paris).images.len(), 2);
}

#[test]
fn a_digest_is_never_refreshed() {
    let mut dir = Dir::new();
    dir.write(
        "a.toml",
        format!("[[image]]\nreference = \"r/a@{DIGEST}\"\nrefresh = \"6h\"\n"),
    );
    dir.write("b.txt", format!("r/b@{DIGEST}\n"));
    dir.write(
        "c.toml",
        "[[image]]\nreference = \"r/c:1\"\nrefresh = \"never\"\n",
    );
    let read = dir.read();
    assert_eq!(read.images.len(), 3);
    assert!(
        read.images
            .iter()
            .all(|image| image.refresh == Refresh::Never)
    );
    assert_eq!(read.notes.len(), 1, "only where something else was said");
    assert!(read.notes[0].contains("6h"), "{:?}", read.notes);
}

#[test]
fn there_are_limits_and_what_is_within_them_counts() {
    let mut dir = Dir::new();
    let many: Vec<_> = (0..5000).map(|number| format!("r/a:{number}")).collect();
    dir.write("a.txt", many.join("\n"));
    let read = dir.read();
    assert_eq!(read.images.len(), MOST_IMAGES);
    assert!(!read.complete);
    assert!(
        why(&read.faults[0]).contains("line 4097"),
        "{:?}",
        read.faults
    );

    let mut dir = Dir::new();
    for number in 0..=MOST_FILES {
        dir.write(&format!("{number:04}.txt"), format!("r/a:{number}\n"));
    }
    let read = dir.read();
    assert_eq!(read.images.len(), MOST_FILES);
    assert!(!read.complete);
    assert!(
        why(&read.faults[0]).contains("1025 files"),
        "{:?}",
        read.faults
    );
}

#[test]
fn a_directory_is_for_one_artifact_and_a_second_one_is_a_fault() {
    let mut dir = Dir::new();
    let declared = |name: &str, place: &str| {
        format!(
            "[[image]]\nreference = \"r/{name}:1\"\nplatforms = [\"zephyr/arm/v7\"]\nartifact_dir = \"{place}\"\n"
        )
    };
    dir.write(
        "a.toml",
        [
            declared("a", "/f/1"),
            declared("b", "/f/1/"),
            declared("c", "/f/2"),
        ]
        .concat(),
    );
    let read = dir.read();
    assert_eq!(read.images.len(), 2, "{:?}", names(&read));
    assert!(!read.complete);
    let told = why(&read.faults[0]);
    assert!(told.contains("line 6") && told.contains("line 2"), "{told}");
}
