use std::time::Duration;

use super::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn every_key_is_read() {
    let text = r#"
# Two of them.
[[image]]
reference = "nginx:1.27"
platforms = ["host", "aarch64", "linux/arm64", "amd64/v3,fallback"]
namespace = "k8s.io"
refresh = "90m"
pin = false
verify = "static"
keep_previous = 3
only = { arch = ["aarch64", "arm"], model = "Raspberry Pi 4*", labels = { site = "berlin" } }

[[image]]
reference = "r.example/a:1"
[image.only]
arch = "amd64"
"#;
    let read = toml(text).expect("right");
    let [first, second] = read.as_slice() else {
        panic!("two are declared: {read:?}")
    };
    assert_eq!(
        *first,
        Declared {
            line: 4,
            reference: Reference::parse("nginx:1.27").expect("valid"),
            platforms: ["host", "linux/arm64", "linux/amd64/v3,fallback"]
                .map(str::to_owned)
                .into(),
            namespace: Some("k8s.io".to_owned()),
            refresh: Some(Refresh::Every(Duration::from_secs(5400))),
            pin: false,
            keep_previous: 3,
            verify: Verify::Static,
            artifact: None,
            only: Only {
                arch: Some(vec!["arm64".to_owned(), "arm".to_owned()]),
                model: Some("Raspberry Pi 4*".to_owned()),
                labels: [("site".to_owned(), "berlin".to_owned())].into(),
            },
        }
    );
    let reference = Reference::parse("r.example/a:1").expect("valid");
    assert_eq!(
        *second,
        Declared {
            only: Only {
                arch: Some(vec!["amd64".to_owned()]),
                ..Only::default()
            },
            ..Declared::new(14, reference)
        }
    );
    assert_eq!(toml(""), Ok(Vec::new()));
    assert_eq!(toml("image = []"), Ok(Vec::new()));
}

#[test]
fn a_fault_has_its_line_and_key_and_says_what_is_wrong() {
    for (lines, line, key, what) in [
        ("pin = 1", 3, "image.pin", "true or false"),
        ("pins = true", 3, "image.pins", "no such key"),
        ("platforms = []", 3, "image.platforms", "empty"),
        (
            "platforms = [\"all\"]",
            3,
            "image.platforms",
            "name the platforms",
        ),
        ("platforms = [\"a/b/c/d\"]", 3, "image.platforms", "OS/ARCH"),
        ("platforms = 1", 3, "image.platforms", "list of strings"),
        ("namespace = \"a/b\"", 3, "image.namespace", "letters"),
        ("namespace = \"\"", 3, "image.namespace", "letters"),
        ("namespace = \"-a\"", 3, "image.namespace", "letters"),
        ("refresh = \"59s\"", 3, "image.refresh", "a minute"),
        ("refresh = \"often\"", 3, "image.refresh", "`never`"),
        (
            "artifact_dir = \"files\"",
            3,
            "image.artifact_dir",
            "the path of a directory",
        ),
        (
            "artifact_dir = \"/a/../b\"",
            3,
            "image.artifact_dir",
            "without `..`",
        ),
        (
            "artifact_dir = \"/a\"",
            3,
            "image.artifact_dir",
            "one platform",
        ),
        (
            "artifact_dir = \"/a\"\nplatforms = [\"linux/arm64\", \"zephyr/arm/v7\"]",
            3,
            "image.artifact_dir",
            "one platform",
        ),
        ("hook = [\"/bin/true\"]", 3, "image.hook", "there is none"),
        ("hook = [\"true\"]", 3, "image.hook", "from `/` on"),
        ("hook = []", 3, "image.hook", "from `/` on"),
        ("verify = \"yes\"", 3, "image.verify", "no way to verify"),
        ("keep_previous = 17", 3, "image.keep_previous", "0 to 16"),
        ("keep_previous = -1", 3, "image.keep_previous", "0 to 16"),
        ("\nonly = { arch = [] }", 4, "image.only.arch", "no host"),
        (
            "only = { arch = [\"arm46\"] }",
            3,
            "image.only.arch",
            "`arm46`",
        ),
        (
            "only = { site = \"a\" }",
            3,
            "image.only.site",
            "no such key",
        ),
        (
            "only = { labels = { a = 1 } }",
            3,
            "image.only.labels.a",
            "a string",
        ),
        ("only = []", 3, "image.only", "a table"),
    ] {
        let text = format!("[[image]]\nreference = \"r.example/a:1\"\n{lines}\n");
        let fault = toml(&text).expect_err(lines);
        assert_eq!(fault.line, line, "{lines}");
        assert_eq!(fault.key.as_deref(), Some(key), "{lines}");
        assert!(fault.what.contains(what), "{lines}: {}", fault.what);
    }
    for (text, line, key, what) in [
        (
            "[[image]]\npin = true",
            1,
            Some("image.reference"),
            "missing",
        ),
        ("[image]\nreference = \"a\"", 1, Some("image"), "[[image]]"),
        ("\nimage = \"a\"", 2, Some("image"), "[[image]]"),
        ("[[images]]", 1, Some("images"), "[[image]]"),
        ("image = [\"a\"]", 1, Some("image"), "a table"),
        (
            "[[image]]\nreference = \"A\"",
            2,
            Some("image.reference"),
            "lower case",
        ),
        (
            "[[image]]\nreference = \"oci:/x\"",
            2,
            Some("image.reference"),
            "import",
        ),
        ("[[image]\n", 1, None, ""),
    ] {
        let fault = toml(text).expect_err(text);
        assert_eq!(fault.line, line, "{text}");
        assert_eq!(fault.key.as_deref(), key, "{text}");
        assert!(fault.what.contains(what), "{text}: {}", fault.what);
    }
    // A password that got there by mistake is not told on.
    let fault = lines("https://me:hunter2@r.example/a").expect_err("no reference");
    assert!(!fault.what.contains("hunter2"), "{}", fault.what);
}

#[test]
fn lists_have_comments_blank_lines_and_any_line_ends() {
    let text = format!(
        "\u{feff}# ours\r\n\r\n  nginx:1.27  # the proxy\r\nr.example/a@{DIGEST}\n\t\n#nginx\nb"
    );
    let read = lines(&text).expect("right");
    let names: Vec<_> = read
        .iter()
        .map(|image| (image.line, image.reference.record_name()))
        .collect();
    assert_eq!(
        names,
        [
            (3, "docker.io/library/nginx:1.27".to_owned()),
            (4, format!("r.example/a@{DIGEST}")),
            (7, "docker.io/library/b:latest".to_owned()),
        ]
    );
    for (text, line, what) in [
        ("a\nb c\n", 2, "one reference a line"),
        ("\n\nA", 3, "lower case"),
        ("oci-archive:x.tar", 1, "import"),
    ] {
        let fault = lines(text).expect_err(text);
        assert_eq!((fault.line, fault.key), (line, None), "{text}");
        assert!(fault.what.contains(what), "{}", fault.what);
    }
}

/// The page has every key, and its examples can be copied.
#[test]
fn the_manual_page_is_right() {
    let page = include_str!("../../../../docs/edgepull-images.5.md");
    let block = |language: &str| {
        let fence = format!("```{language}\n");
        let (_, rest) = page.split_once(&fence).expect(language);
        rest.split_once("```").expect("an end").0
    };
    let images = toml(block("toml")).expect("right");
    let every = &images[0];
    assert_eq!(images.len(), 2);
    assert!(every.namespace.is_some() && every.refresh.is_some());
    assert!(every.only.arch.is_some() && every.only.model.is_some());
    assert!(!every.only.labels.is_empty());
    assert_eq!(lines(block("text")).expect("right").len(), 2);
    for key in [
        "reference",
        "platforms",
        "namespace",
        "refresh",
        "pin",
        "verify",
        "keep_previous",
        "only.arch",
        "only.model",
        "only.labels",
    ] {
        assert!(page.contains(&format!("| `{key}` |")), "{key}");
    }
}

proptest::proptest! {
    #[test]
    fn any_text_is_images_or_a_fault(text in "\\PC{0,60}|(\\[\\[image\\]\\]|\n|reference|only|labels|arch|platforms|=|\"|a|\\{|\\}|\\[|\\]|\\.){0,30}") {
        super::super::fuzz(&text);
    }

    #[test]
    fn a_file_of_references_has_each_of_them(names in proptest::collection::vec("[a-z]{1,8}:[a-z0-9]{1,5}", 0..20)) {
        let listed = lines(&names.join("\r\n")).expect("references");
        let tables: Vec<_> = names.iter().map(|name| format!("[[image]]\nreference = \"{name}\"")).collect();
        let declared = toml(&tables.join("\n")).expect("references");
        proptest::prop_assert_eq!(listed.len(), names.len());
        for (one, other) in listed.iter().zip(&declared) {
            let line = one.line;
            proptest::prop_assert_eq!(one, &Declared { line, ..other.clone() });
        }
    }
}

#[test]
fn files_of_an_artifact_have_a_place_and_a_hook() {
    let text = r#"
[[image]]
reference = "r.example/fita:1"
hook = ["/usr/libexec/notify", "a b", ""]
artifact_dir = "/var/lib//far-edge/"
platforms = ["zephyr/armv7"]
"#;
    let read = toml(text).expect("right");
    let artifact = Artifact {
        dir: "/var/lib/far-edge".into(),
        hook: ["/usr/libexec/notify", "a b", ""].map(str::to_owned).into(),
    };
    assert_eq!(read[0].artifact, Some(artifact));
    assert_eq!(read[0].platforms, ["zephyr/arm/v7"]);
}
