use proptest::prelude::*;

use super::*;

fn printed(input: &str) -> String {
    Platform::parse(input).map_or_else(
        |error| format!("error: {error}"),
        |platform| platform.to_string(),
    )
}

fn label(os: &str, architecture: &str, variant: &str) -> Label {
    Label {
        os: os.into(),
        architecture: architecture.into(),
        variant: variant.into(),
        ..Label::default()
    }
}

#[test]
fn people_may_spell_it_their_way() {
    for (input, expected) in [
        ("aarch64", "linux/arm64"),
        ("Aarch64", "linux/arm64"),
        ("arm64", "linux/arm64"),
        ("arm64/v8", "linux/arm64"),
        ("aarch64/v8", "linux/arm64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("linux/arm64/armv8", "linux/arm64"),
        ("linux/arm64/9", "linux/arm64/v9"),
        ("armhf", "linux/arm/v7"),
        ("arm", "linux/arm/v7"),
        ("arm/7", "linux/arm/v7"),
        ("armv7", "linux/arm/v7"),
        ("armv7l", "linux/arm/v7"),
        ("arm/v7l", "linux/arm/v7"),
        ("linux/arm", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"),
        ("arm/v6", "linux/arm/v6"),
        ("armel", "linux/arm/v6"),
        ("armv8l", "linux/arm/v8"),
        ("x86_64", "linux/amd64"),
        ("Linux/x86_64", "linux/amd64"),
        ("amd64/v1", "linux/amd64"),
        ("amd64/v3", "linux/amd64/v3"),
        ("x86-64-v3", "linux/amd64/v3"),
        ("amd64/3", "linux/amd64/v3"),
        ("i386", "linux/386"),
        ("i686", "linux/386"),
        ("s390x", "linux/s390x"),
        ("ppc64el", "linux/ppc64le"),
        ("loongarch64", "linux/loong64"),
        ("macos/arm64", "darwin/arm64"),
        ("macOS/x86_64", "darwin/amd64"),
        ("zephyr/armv7", "zephyr/arm/v7"),
        ("zephyr/arm/v7", "zephyr/arm/v7"),
        ("sunos/sun4m", "sunos/sun4m"),
        ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
        ("windows()/amd64", "windows/amd64"),
        (
            "windows(10.0.17763+win32k)/amd64",
            "windows(10.0.17763+win32k)/amd64",
        ),
        ("linux(+gpu+simd)/amd64", "linux(+gpu+simd)/amd64"),
        (
            "linux(+unsorted+erofs+erofs)/amd64",
            "linux(+erofs+unsorted)/amd64",
        ),
        (
            "windows(10.0.17763%2Bbuild.42)/amd64",
            "windows(10.0.17763%2Bbuild.42)/amd64",
        ),
        ("windows(50%25done)/amd64", "windows(50%25done)/amd64"),
    ] {
        assert_eq!(printed(input), expected, "{input}");
    }
}

#[test]
fn nonsense_is_refused() {
    for input in [
        "",
        "/",
        "/amd64",
        "amd64/",
        "linux/",
        "linux//v7",
        " ",
        "linux /amd64",
        "linux/&",
        "a/b/c/d",
        "*",
        "linux/*",
        "nosuchcpu",
        "linux(/amd64",
        "linux(+)/amd64",
        "linux)/amd64",
        "linux(a b)/amd64",
        "linux(%zz)/amd64",
        "linux(%2)/amd64",
        "linux(x)y/amd64",
        "(x)/amd64",
        "x64/x64/1",
        "arm(1)/amd64",
        "linux/amd64(x)",
        "linux/\u{e9}",
    ] {
        assert!(
            Platform::parse(input).is_err(),
            "{input:?} gave {}",
            printed(input)
        );
    }
    assert!(matches!(
        Platform::parse(&"a".repeat(10_000)),
        Err(ParsePlatformError::TooLong(10_000))
    ));
}

#[test]
fn a_system_alone_is_this_programs_architecture() {
    let own = own_architecture();
    let windows = Platform::parse("windows(10.0.17763)").expect("known system");
    assert_eq!(
        (windows.os(), windows.os_version()),
        ("windows", Some("10.0.17763"))
    );
    assert_eq!((windows.architecture.clone(), windows.variant.clone()), own);
    assert_eq!(
        Platform::parse("macOS").expect("known system").os(),
        "darwin"
    );
}

#[test]
fn labels_get_containerds_normalisation_only() {
    let shown = |os, architecture, variant| {
        Platform::from_label(&label(os, architecture, variant)).map(|p| p.to_string())
    };
    assert_eq!(shown("", "amd64", "v1").as_deref(), Some("linux/amd64"));
    assert_eq!(shown("linux", "arm", "").as_deref(), Some("linux/arm/v7"));
    assert_eq!(shown("linux", "armv7", "").as_deref(), Some("linux/armv7"));
    assert_eq!(
        shown("linux", "arm", "v7l").as_deref(),
        Some("linux/arm/v7l")
    );
    assert_eq!(
        shown("MacOS", "AArch64", "8").as_deref(),
        Some("darwin/arm64")
    );
    assert_eq!(shown("linux", "", "").as_deref(), Some("linux/?"));
    assert_eq!(shown("", "", ""), None);
    assert_eq!(
        shown("linux", "amd64\n\u{1b}[31m", "").as_deref(),
        Some("linux/amd64%0A%1B%5B31m")
    );
}

#[test]
fn labels_are_read_leniently() {
    let read = |json: &str| serde_json::from_str::<Label>(json).expect("a label");
    assert_eq!(read("{}"), Label::default());
    assert_eq!(
        read(r#"{"os":null,"architecture":"arm","features":["x"],"new":1}"#),
        label("", "arm", "")
    );
    let full = read(
        r#"{"os":"windows","architecture":"amd64","os.version":"10.0.1","os.features":["win32k"]}"#,
    );
    let platform = Platform::from_label(&full).expect("named");
    assert_eq!(platform.to_string(), "windows(10.0.1+win32k)/amd64");
    assert_eq!(
        platform.described(),
        "windows/amd64 (os.version 10.0.1) (os.features win32k)"
    );
    assert_eq!(
        serde_json::to_string(&platform).expect("a string"),
        r#""windows(10.0.1+win32k)/amd64""#
    );
}

#[test]
fn foreign_text_does_not_reach_a_terminal() {
    let odd = Label {
        os_version: "1\n2\u{1b}".to_owned(),
        ..label("linux", "arm", "")
    };
    let odd = Platform::from_label(&odd).expect("named").described();
    assert_eq!(odd, "linux/arm/v7 (os.version 1?2?)");
}

#[test]
fn platforms_are_strings_in_documents() {
    let list: Vec<Platform> = serde_json::from_str(r#"["aarch64","amd64/v3"]"#).expect("platforms");
    assert_eq!(
        serde_json::to_string(&list).expect("json"),
        r#"["linux/arm64","linux/amd64/v3"]"#
    );
    assert!(serde_json::from_str::<Platform>(r#""a/b/c/d""#).is_err());
}

proptest! {
    #[test]
    fn printing_and_parsing_agree(
        os in "[a-zA-Z]{1,8}", version in "[ -~]{0,12}", features in prop::collection::vec("[!-~]{1,6}", 0..3),
        architecture in "(amd64|arm64|arm|armv7|x86_64|386|[a-z0-9_]{1,8})", variant in "(|v[0-9]|[0-9]|v8\\.[0-9]|[a-z0-9]{1,5})",
    ) {
        prop_assume!(lenient_architecture(&os).is_none());
        let label = Label { os, architecture, variant, os_version: version, os_features: features };
        let platform = Platform::from_label(&label).expect("named");
        let text = platform.to_string();
        let parsed = Platform::parse(&text).expect("its own print");
        // A label is not read leniently, so its first print may be a spelling; the second is not.
        prop_assert_eq!(&Platform::parse(&parsed.to_string()), &Ok(parsed.clone()));
        prop_assert_eq!(parsed.os_version(), platform.os_version());
        prop_assert_eq!(parsed.os_features(), platform.os_features());
    }

    #[test]
    fn normalising_twice_changes_nothing(architecture in "\\PC{0,8}|armhf|armel|arm|aarch64|x86-64", variant in "\\PC{0,5}|v?[0-9](\\.[0-9])?") {
        let once = canonical(&architecture, &variant);
        prop_assert_eq!(canonical(&once.0, &once.1), once);
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,40}") {
        if let Ok(platform) = Platform::parse(&text) {
            prop_assert_eq!(Platform::parse(&platform.to_string()), Ok(platform));
        }
    }
}

#[test]
fn what_prints_longer_than_it_was_typed_is_still_read_back() {
    for length in 500..=512 {
        let typed = format!("{}/arm", "x".repeat(length - 4));
        if let Ok(platform) = Platform::parse(&typed) {
            assert_eq!(Platform::parse(&platform.to_string()), Ok(platform));
        }
    }
}
