use std::collections::HashSet;

use super::*;

fn platform(text: &str) -> Platform {
    Platform::parse(text).expect("a platform")
}

fn listed(text: &str) -> String {
    vector(&platform(text))
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" ")
        .replace("linux/", "")
}

#[test]
fn containerds_vectors() {
    const ARM: &str = "arm/v8 arm/v7 arm/v6 arm/v5";
    for (host, expected) in [
        ("amd64", "amd64 386".to_owned()),
        ("amd64/v2", "amd64/v2 amd64 386".to_owned()),
        ("amd64/v3", "amd64/v3 amd64/v2 amd64 386".to_owned()),
        (
            "amd64/v4",
            "amd64/v4 amd64/v3 amd64/v2 amd64 386".to_owned(),
        ),
        ("386", "386".to_owned()),
        ("arm/v8", ARM.to_owned()),
        ("arm", "arm/v7 arm/v6 arm/v5".to_owned()),
        ("arm/v6", "arm/v6 arm/v5".to_owned()),
        ("arm/v5", "arm/v5".to_owned()),
        ("arm/v4", "arm/v4".to_owned()),
        ("arm/unknown", "arm/unknown".to_owned()),
        ("arm64", format!("arm64 {ARM}")),
        ("arm64/v8.2", format!("arm64/v8.2 arm64/v8.1 arm64 {ARM}")),
        (
            "arm64/v9",
            format!("arm64/v9 arm64/v8.5 arm64/v8.4 arm64/v8.3 arm64/v8.2 arm64/v8.1 arm64 {ARM}"),
        ),
        ("arm64/v8.10", String::new()),
        ("arm64/v8.01", String::new()),
        ("arm64/v10", String::new()),
        ("riscv64", "riscv64".to_owned()),
        (
            "windows(10.0.20348)/amd64",
            "windows(10.0.20348)/amd64 windows(10.0.20348)/386".to_owned(),
        ),
        ("windows/arm64", "windows/arm64".to_owned()),
        ("darwin/arm64", "darwin/arm64 arm64".to_owned()),
        ("zephyr/armv7", "zephyr/arm/v7".to_owned()),
    ] {
        assert_eq!(listed(host), expected, "{host}");
    }
}

#[test]
fn armv9_contains_the_right_armv8() {
    for (minor, newest) in [(1, 6), (2, 7), (3, 8), (4, 9), (5, 9), (6, 9), (7, 9)] {
        let list = listed(&format!("arm64/v9.{minor}"));
        let mut expected: Vec<String> =
            (1..=minor).rev().map(|n| format!("arm64/v9.{n}")).collect();
        expected.push("arm64/v9".to_owned());
        expected.extend((1..=newest).rev().map(|n| format!("arm64/v8.{n}")));
        expected.extend(["arm64", "arm/v8", "arm/v7", "arm/v6", "arm/v5"].map(ToOwned::to_owned));
        assert_eq!(list, expected.join(" "));
    }
}

/// containerd's own table of who takes what.
#[test]
fn who_takes_what() {
    for (host, yes, no) in [
        ("amd64", "amd64 386", "amd64/v2 arm/v7 arm64 windows/amd64"),
        (
            "amd64/v2",
            "amd64 amd64/v1 amd64/v2 386",
            "amd64/v3 amd64/v4 arm arm64 windows/amd64",
        ),
        ("386", "386", "amd64 arm arm/v7 windows/386"),
        (
            "arm/v8",
            "arm arm/v5 arm/v6 arm/v7 arm/v8",
            "amd64 arm/v4 arm64 windows/arm",
        ),
        ("arm/v7", "arm arm/v5 arm/v6 arm/v7", "arm/v4 arm/v8 arm64"),
        ("arm/v6", "arm/v5 arm/v6", "arm arm/v4 arm/v7 arm/v8 arm64"),
        ("arm/v5", "arm/v5", "arm arm/v4 arm/v6"),
        ("arm/v4", "arm/v4", "arm arm/v5"),
        (
            "arm64",
            "arm arm/v5 arm/v6 arm/v7 arm/v8 arm64 arm64/v8",
            "arm/v4 arm/v9 arm64/v9 arm64/v8.1",
        ),
        (
            "arm64/v8.1",
            "arm arm64 arm64/v8 arm64/v8.1",
            "arm/v4 arm/v9 arm64/v9",
        ),
        (
            "arm64/v9",
            "arm arm/v5 arm64 arm64/v8 arm64/v8.5 arm64/v9 arm64/v9.0",
            "arm/v4 arm64/v8.6",
        ),
        (
            "arm64/v9.6",
            "arm arm64 arm64/v8.9 arm64/v9 arm64/v9.6",
            "arm/v4 arm64/v8.10 arm64/v9.7",
        ),
        ("windows/amd64", "windows/amd64", "linux/amd64 windows/arm"),
    ] {
        let list: HashSet<_> = vector(&platform(host)).into_iter().collect();
        for image in yes.split(' ') {
            assert!(list.contains(&platform(image)), "{host} takes {image}");
        }
        for image in no.split(' ') {
            assert!(
                !list.contains(&platform(image)),
                "{host} does not take {image}"
            );
        }
    }
}

proptest::proptest! {
    #[test]
    fn the_order_is_strict_and_starts_with_the_host(text in "(linux|windows|darwin|zephyr)/(amd64|arm|arm64|386|riscv64)(/v[0-9](\\.[0-9])?)?") {
        let platform = platform(&text);
        let list = vector(&platform);
        let distinct: HashSet<_> = list.iter().collect();
        proptest::prop_assert_eq!(distinct.len(), list.len());
        if let Some(first) = list.first() {
            proptest::prop_assert_eq!(first, &platform);
        }
        // Every member's own list is contained, in the same order: the order is total.
        for member in &list {
            let positions: Vec<_> = vector(member).iter().filter_map(|m| list.iter().position(|p| p == m)).collect();
            proptest::prop_assert!(positions.is_sorted());
        }
    }
}
