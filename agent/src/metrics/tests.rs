//! The rendered text against what Prometheus and the table of the documentation expect.

use std::collections::{BTreeMap, BTreeSet};

use edgepull_platform::{Facts, detect};

use super::*;

fn metrics() -> Metrics {
    let host = detect(&Facts::live().expect("this host")).expect("is one");
    Metrics::new(&host, "1.2.3")
}

fn sample(reference: &str, ready: bool) -> Sample {
    Sample {
        reference: reference.to_owned(),
        platform: "host".to_owned(),
        namespace: "k8s.io".to_owned(),
        ready,
        platform_missing: !ready,
        last_success: ready.then(|| Timestamp::from_second(1000).expect("in range")),
    }
}

/// Every kind of series at least once.
fn full() -> Metrics {
    let metrics = metrics();
    let bytes = Bytes {
        downloaded: 1,
        resumed: 20,
        reused: 3,
        written: 40,
    };
    metrics.pull_ended(Ok(Status::Pulled), Duration::from_millis(2500));
    metrics.pull_ended(Ok(Status::Present), Duration::ZERO);
    metrics.pull_ended(Err(Kind::NoSpace), Duration::from_secs(9));
    metrics.stored(bytes);
    metrics.stored(bytes);
    metrics.found_damaged();
    metrics.requests("r.example", "200", 3);
    metrics.requests("r.example", "200", 2);
    metrics.bytes("r.example", "registry", 77);
    metrics.rate_limit_remaining("r.example", 12);
    metrics.refused_start("machine");
    metrics.reconciled(Timestamp::from_second(2000).expect("in range"));
    metrics
}

#[test]
fn the_text_has_what_happened() {
    let text = full().render(&[
        sample("r.example/a:1", true),
        sample("r.example/b:1", false),
    ]);
    for line in [
        "edgepull_build_info{version=\"1.2.3\"} 1",
        "edgepull_image_ready{reference=\"r.example/a:1\",platform=\"host\",namespace=\"k8s.io\"} 1",
        "edgepull_image_ready{reference=\"r.example/b:1\",platform=\"host\",namespace=\"k8s.io\"} 0",
        "edgepull_image_platform_missing{reference=\"r.example/b:1\",platform=\"host\",namespace=\"k8s.io\"} 1",
        "edgepull_image_last_success_timestamp_seconds{reference=\"r.example/a:1\",namespace=\"k8s.io\"} 1000",
        "edgepull_pulls_total{result=\"pulled\"} 1",
        "edgepull_pulls_total{result=\"present\"} 1",
        "edgepull_pulls_total{result=\"no_space\"} 1",
        "edgepull_pulls_total{result=\"store_damaged\"} 1",
        "edgepull_pulls_total{result=\"unavailable\"} 0",
        "edgepull_pull_duration_seconds_bucket{le=\"2\"} 0",
        "edgepull_pull_duration_seconds_bucket{le=\"5\"} 1",
        "edgepull_pull_duration_seconds_bucket{le=\"+Inf\"} 1",
        "edgepull_pull_duration_seconds_sum 2.5",
        "edgepull_pull_duration_seconds_count 1",
        "edgepull_pull_bytes_total{registry=\"r.example\",source=\"registry\"} 77",
        "edgepull_resumed_bytes_total 40",
        "edgepull_written_bytes_total 80",
        "edgepull_registry_requests_total{registry=\"r.example\",code=\"200\"} 5",
        "edgepull_ratelimit_remaining{registry=\"r.example\"} 12",
        "edgepull_refused_starts_total{reason=\"machine\"} 1",
        "edgepull_reconcile_timestamp_seconds 2000",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
    let later = full().render(&[sample("r.example/a:1", true)]);
    assert!(
        !later.contains("r.example/b:1"),
        "it is not desired any more"
    );
}

/// Names with their labels (`le` and the suffixes of histograms belong to the format).
fn rendered(text: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut found = BTreeMap::new();
    let mut family = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            family = rest.split(' ').next().expect("a name").to_owned();
            found.insert(family.clone(), BTreeSet::new());
        } else if !line.starts_with('#') {
            let end = line.find(['{', ' ']).expect("a sample");
            assert!(
                line[..end].starts_with(&family),
                "{line} stands below {family}"
            );
            let labels = found.get_mut(&family).expect("a family");
            // No value of this test has a comma or an equals sign.
            let inside = line[end..]
                .strip_prefix('{')
                .and_then(|l| l.split_once('}'));
            for label in inside.map_or("", |(labels, _)| labels).split(',') {
                let name = label.split('=').next().unwrap_or_default();
                if !name.is_empty() && name != "le" {
                    labels.insert(name.to_owned());
                }
            }
        }
    }
    found
}

/// `| `name` | type | `label`, … | … |`
fn documented() -> BTreeMap<String, BTreeSet<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/metrics.md");
    let text = fs::read_to_string(path).expect("the page is there");
    let rows = text.lines().filter(|line| line.starts_with("| `edgepull_"));
    rows.map(|row| {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let labels = cells[3].split(',').map(|l| l.trim().trim_matches('`'));
        let labels = labels.filter(|l| !l.is_empty()).map(str::to_owned);
        (cells[1].trim_matches('`').to_owned(), labels.collect())
    })
    .collect()
}

#[test]
fn the_documentation_has_the_names_and_labels_that_are_rendered() {
    let text = full().render(&[sample("r.example/a:1", true)]);
    let mut rendered = rendered(&text);
    // A machine may have commas in its name.
    let host = ["os", "arch", "variant", "page_size", "cpu_level", "machine"];
    rendered.insert(
        "edgepull_host_info".to_owned(),
        host.map(str::to_owned).into(),
    );
    assert_eq!(rendered, documented());
    let line = text.lines().find(|l| l.starts_with("edgepull_host_info{"));
    for label in host {
        assert!(
            line.expect("it is there").contains(&format!("{label}=\"")),
            "{label}"
        );
    }
}

#[test]
fn every_family_is_there_before_anything_happened() {
    let empty: Vec<String> = rendered(&metrics().render(&[])).into_keys().collect();
    let all: Vec<String> = rendered(&full().render(&[])).into_keys().collect();
    assert_eq!(empty, all);
}

/// An increase from nothing is none for Prometheus.
#[test]
fn what_alerts_count_is_there_as_nothing_before_it_happens() {
    let text = metrics().render(&[]);
    let is_there = |line: &str| assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    for result in Kind::ALL
        .map(Kind::name)
        .iter()
        .chain(&["pulled", "present"])
    {
        is_there(&format!("edgepull_pulls_total{{result=\"{result}\"}} 0"));
    }
    for reason in ["machine", "pages", "empty", "emulation"] {
        is_there(&format!(
            "edgepull_refused_starts_total{{reason=\"{reason}\"}} 0"
        ));
    }
}

#[test]
fn label_values_are_escaped() {
    let text = metrics().render(&[sample("a\"b\\c\nd", true)]);
    assert!(
        text.contains(r#"{reference="a\"b\\c\nd",platform"#),
        "{text}"
    );
}

#[test]
fn what_comes_from_outside_is_bounded() {
    let metrics = metrics();
    for reason in ["no such\nthing", "", "Machine", "ä", &"a".repeat(33)] {
        metrics.refused_start(reason);
    }
    for number in 0..100 {
        metrics.refused_start(&format!("reason_{number}"));
        metrics.requests(&format!("r{number}.example"), "200", 1);
        metrics.rate_limit_remaining(&format!("r{number}.example"), 1);
    }
    for code in 300..400 {
        metrics.requests("r0.example", &code.to_string(), 1);
        metrics.requests("late.example", "200", 1);
    }
    let text = metrics.render(&[]);
    let count = |prefix: &str| text.lines().filter(|line| line.starts_with(prefix)).count();
    assert_eq!(count("edgepull_refused_starts_total{"), MOST_REASONS);
    // One registry that makes statuses up takes no place of others.
    assert_eq!(
        count("edgepull_registry_requests_total{"),
        MOST_VALUES + 1 + MOST_CODES
    );
    assert_eq!(count("edgepull_ratelimit_remaining{"), MOST_VALUES);
    for line in [
        "edgepull_refused_starts_total{reason=\"other\"} 86",
        "edgepull_registry_requests_total{registry=\"other\",code=\"200\"} 136",
        "edgepull_registry_requests_total{registry=\"r0.example\",code=\"other\"} 69",
        "edgepull_registry_requests_total{registry=\"r0.example\",code=\"330\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}\n{text}");
    }
}

#[test]
fn a_textfile_is_replaced_as_a_whole() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("edgepull.prom");
    write_textfile(&path, "one\n").expect("written");
    write_textfile(&path, "two\n").expect("written");
    assert_eq!(fs::read_to_string(&path).expect("there"), "two\n");
    let mode = || fs::metadata(&path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(), 0o644);
    // A unit may have `UMask=0077`, and somebody else may have put a link where we write.
    let before = nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    let other = dir.path().join("other");
    std::os::unix::fs::symlink(&other, dir.path().join(".edgepull.prom.edgepull")).expect("made");
    let written = write_textfile(&path, "three\n");
    nix::sys::stat::umask(before);
    written.expect("written");
    assert_eq!(mode(), 0o644);
    assert!(!other.exists(), "nothing is written through a link");
    let names: Vec<_> = fs::read_dir(dir.path()).expect("there").flatten().collect();
    assert_eq!(names.len(), 1, "nothing else is left");
    let nowhere = dir.path().join("no/such/edgepull.prom");
    let error = write_textfile(&nowhere, "").expect_err("there is no such directory");
    assert!(error.message().contains("no/such/edgepull.prom"));
}
