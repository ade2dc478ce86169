//! Recorded hosts and real indexes, judged as their `expect.json` says.
//!
//! The few under `tests/data` always run. `EDGEPULL_FIXTURES` names a directory with more of the
//! same form; without it `shared/fixtures` beside the workspace's parent is used if it exists.

use std::fs;
use std::path::{Path, PathBuf};

use edgepull_platform::{
    Facts, Host, Label, Offer, OfferKind, Platform, Verdict, Wanted, detect, explain_missing,
    select, selects_for_engine, selects_without_engine,
};
use serde_json::Value;

fn own() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

/// Our own data, then the larger collection where there is one.
fn collections(kind: &str) -> Vec<PathBuf> {
    let more = std::env::var_os("EDGEPULL_FIXTURES").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/fixtures"),
        PathBuf::from,
    );
    let mut found = vec![own().join(kind)];
    let more = more.join(kind);
    if more.is_dir() {
        found.push(more);
    } else {
        println!(
            "the larger collection {} is absent: only tests/data is judged",
            more.display()
        );
    }
    found
}

fn json(path: &Path) -> Value {
    let text =
        fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn strings(value: Option<&Value>) -> Option<Vec<String>> {
    let list = value?.as_array()?;
    Some(
        list.iter()
            .filter_map(Value::as_str)
            .map(ToOwned::to_owned)
            .collect(),
    )
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> = fs::read_dir(dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.is_dir())
        .collect();
    found.sort();
    found
}

/// What differs between a host and what is expected of it.
fn differences(host: &Host, expect: &Value) -> Vec<String> {
    let found = serde_json::to_value(host).expect("a document");
    let mut wrong = Vec::new();
    for key in [
        "os",
        "architecture",
        "variant",
        "aarch32_el0",
        "page_size",
        "kernel_also_execs",
        "aarch32_cpus",
        "emulated",
    ] {
        if let Some(wanted) = expect.get(key)
            && found.get(key) != Some(wanted)
        {
            wrong.push(format!(
                "{key}: expected {wanted}, found {:?}",
                found.get(key)
            ));
        }
    }
    let runs: Vec<_> = host
        .runs_natively()
        .map(|runs| runs.platform.to_string())
        .collect();
    if Some(&runs) != strings(expect.get("can_run")).as_ref() {
        wrong.push(format!(
            "can_run: expected {:?}, found {runs:?}",
            expect.get("can_run")
        ));
    }
    if let Some(emulated) = strings(expect.get("emulates")) {
        let found: Vec<_> = host
            .runs
            .iter()
            .filter(|runs| runs.interpreter.is_some())
            .collect();
        let found: Vec<_> = found.iter().map(|runs| runs.platform.to_string()).collect();
        if found != emulated {
            wrong.push(format!("emulates: expected {emulated:?}, found {found:?}"));
        }
    }
    wrong
}

#[test]
fn hosts() {
    let mut judged = 0;
    let mut wrong = Vec::new();
    for dir in collections("hosts")
        .iter()
        .flat_map(|dir| subdirectories(dir))
    {
        let expect = json(&dir.join("expect.json"));
        let host = Facts::recorded(&dir)
            .map_err(|e| e.to_string())
            .and_then(|f| detect(&f).map_err(|e| e.to_string()));
        match host {
            Err(error) => wrong.push(format!("{}: {error}", dir.display())),
            Ok(host) => wrong.extend(
                differences(&host, &expect)
                    .iter()
                    .map(|text| format!("{}: {text}", dir.display())),
            ),
        }
        judged += 1;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{judged} hosts judged");
    assert!(judged >= 5);
}

/// With any one probe or the CPU description missing, an answer is the same, null, or an error
/// that says so, but never another one.
#[test]
fn hosts_with_a_fact_missing() {
    for dir in collections("hosts")
        .iter()
        .flat_map(|dir| subdirectories(dir))
    {
        let full = detect(&Facts::recorded(&dir).expect("facts")).expect("a host");
        let probes = fs::read_to_string(dir.join("probes")).unwrap_or_default();
        let cpuinfo = fs::read_to_string(dir.join("proc/cpuinfo")).unwrap_or_default();
        let lines: Vec<&str> = probes.lines().collect();
        for drop in 0..=lines.len() {
            let kept: Vec<&str> = lines
                .iter()
                .enumerate()
                .filter(|(at, _)| *at != drop)
                .map(|(_, line)| *line)
                .collect();
            let cpuinfo = if drop == lines.len() {
                ""
            } else {
                cpuinfo.as_str()
            };
            let Ok(host) = detect(&Facts::from_texts(
                &kept.join("\n"),
                [("proc/cpuinfo", cpuinfo)],
            )) else {
                continue;
            };
            let what = lines.get(drop).unwrap_or(&"proc/cpuinfo");
            // Of a host whose userland or CPU nothing describes, the rest follows from the kernel.
            let same = |one: Option<String>, other: Option<String>| {
                one.is_none() || other.is_none() || one == other
            };
            assert!(
                same(
                    host.page_size.map(|s| s.to_string()),
                    full.page_size.map(|s| s.to_string())
                ),
                "{dir:?} {what}"
            );
            assert!(
                same(host.cpu_level.clone(), full.cpu_level.clone()),
                "{dir:?} {what}"
            );
            if !full.emulated {
                assert_eq!(host.kernel, full.kernel, "{dir:?} without {what}");
                assert!(
                    same(
                        host.aarch32_el0.map(|a| a.to_string()),
                        full.aarch32_el0.map(|a| a.to_string())
                    ),
                    "{dir:?} without {what}"
                );
                for runs in host.runs_natively() {
                    assert!(
                        full.how(&runs.platform).is_some()
                            || full.kernel_also_execs.contains(&runs.platform),
                        "{dir:?} without {what}: {}",
                        runs.platform
                    );
                }
            }
        }
    }
}

/// The value of a key, whatever its case: Go reads JSON that way, and registries rely on it.
fn field<'a>(value: &'a Value, name: &str) -> Option<&'a Value> {
    value
        .as_object()?
        .iter()
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value)
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    field(value, name)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

fn is_index(media_type: &str) -> bool {
    media_type.ends_with("image.index.v1+json") || media_type.ends_with("manifest.list.v2+json")
}

fn offer(entry: &Value) -> Offer {
    let media_type = text(entry, "mediaType");
    let referenced =
        field(entry, "annotations").is_some_and(|a| a.get("vnd.docker.reference.type").is_some());
    let kind = if referenced {
        OfferKind::Attestation
    } else if is_index(media_type) {
        OfferKind::Index
    } else if !(media_type.ends_with("image.manifest.v1+json")
        || media_type.ends_with("distribution.manifest.v2+json")
        || media_type.ends_with("manifest.v1+prettyjws"))
    {
        OfferKind::Other
    } else if !text(entry, "artifactType").is_empty() {
        OfferKind::Artifact
    } else {
        OfferKind::Image
    };
    let label = field(entry, "platform")
        .map(|platform| serde_json::from_value(platform.clone()).expect("a platform"));
    Offer {
        label,
        kind,
        digest: text(entry, "digest").to_owned(),
    }
}

fn offers(index: &Value) -> Vec<Offer> {
    field(index, "manifests")
        .and_then(Value::as_array)
        .map(|list| list.iter().map(offer).collect())
        .unwrap_or_default()
}

fn blob(dir: &Path, digest: &str) -> Option<Value> {
    let (algorithm, hex) = digest.split_once(':')?;
    let text = fs::read_to_string(dir.join("blobs").join(algorithm).join(hex)).ok()?;
    serde_json::from_str(&text).ok()
}

/// The platform of a manifest that is not here, as another index lists it.
fn label_elsewhere(dir: &Path, digest: &str) -> Option<Label> {
    let files = fs::read_dir(dir)
        .expect("a directory")
        .map(|entry| entry.expect("an entry").path());
    files
        .filter(|path| path.extension().is_some_and(|end| end == "json"))
        .filter_map(|path| serde_json::from_str::<Value>(&fs::read_to_string(path).ok()?).ok())
        .flat_map(|index| offers(&index))
        .find_map(|offer| offer.label.filter(|_| offer.digest == digest))
}

/// What containerd's reader would end with: the entry of this index, and the manifest behind it.
fn resolve(dir: &Path, index: &Value, wanted: &Wanted, depth: u8) -> Option<(String, String)> {
    let offers = offers(index);
    let selection = select(&offers, wanted, None, None);
    assert_eq!(selection.entries.len(), offers.len());
    assert!(
        selection
            .entries
            .iter()
            .all(|entry| !entry.reason.is_empty())
    );
    let chosen = selection.selected()?;
    let marked: Vec<_> = selection
        .entries
        .iter()
        .map(|entry| entry.verdict == Verdict::Selected)
        .collect();
    assert_eq!(marked.iter().filter(|marked| **marked).count(), 1);
    assert!(marked[chosen]);
    let offer = &offers[chosen];
    let platformed = offer.label.is_some();
    let digest = offer.digest.clone();
    let child = blob(dir, &digest);
    if offer.kind == OfferKind::Index && depth < 4 {
        let leaf = child
            .and_then(|child| resolve(dir, &child, wanted, depth + 1))
            .map(|(_, leaf)| leaf);
        return if platformed {
            Some((digest.clone(), leaf.unwrap_or(digest)))
        } else {
            Some((digest, leaf?))
        };
    }
    if platformed {
        return Some((digest.clone(), digest));
    }
    let label = match child {
        Some(child) => {
            let config = blob(dir, text(field(&child, "config")?, "digest"))?;
            serde_json::from_value(config).ok()?
        }
        None => label_elsewhere(dir, &digest)?,
    };
    let of_config = Offer {
        label: Some(label),
        ..offer.clone()
    };
    select(&[of_config], wanted, None, None).selected()?;
    Some((digest.clone(), digest))
}

/// The list that a host key stands for.
fn wanted(key: &str) -> Wanted {
    let host = |probes: &str| detect(&Facts::from_texts(probes, [])).expect("a host");
    match key.split_once(';') {
        Some(("linux/amd64", "no-ia32")) => {
            let host = host("uname_machine=x86_64\ncmdline_ia32_emulation=0");
            Wanted::selects(&selects_without_engine(&host))
        }
        Some(("linux/arm64", "no-aarch32")) => {
            let host = host("uname_machine=aarch64\npersonality_per_linux32=einval");
            Wanted::selects(&selects_for_engine(
                &Platform::parse("linux/arm64").expect("a platform"),
                &host,
            ))
        }
        _ => {
            let platform = match key.split_once(':') {
                Some((platform, version)) => {
                    let (os, rest) = platform.split_once('/').expect("two parts");
                    format!("{os}({})/{rest}", version.trim_end_matches(".x"))
                }
                None => key.to_owned(),
            };
            Wanted::fallback(&Platform::parse(&platform).expect("a platform"))
        }
    }
}

/// What is expected for a key: keys that are only listed where they differ follow their base.
fn expected<'a>(expect: &'a Value, list: &str, key: &str) -> Option<&'a Value> {
    let base = match key {
        "linux/amd64/v2" | "linux/amd64/v3" => "linux/amd64",
        "linux/arm/v8" => "linux/arm/v7",
        key => key,
    };
    let list = expect.get(list)?;
    list.get(key).or_else(|| list.get(base))
}

fn judge(path: &Path, wrong: &mut Vec<String>) -> bool {
    let expect = json(path);
    if expect.get("kind").and_then(Value::as_str) != Some("index") {
        return false;
    }
    let dir = path.parent().expect("a directory");
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .expect("a name")
        .replace(".expect.json", "");
    let index = json(&dir.join(format!("{name}.json")));
    let selections = expect
        .get("selections")
        .and_then(Value::as_object)
        .expect("selections");
    let mut keys: Vec<&str> = selections.keys().map(String::as_str).collect();
    keys.extend(["linux/amd64/v2", "linux/amd64/v3", "linux/arm/v8"]);
    for key in keys {
        let wanted = wanted(key);
        let found = resolve(dir, &index, &wanted, 0);
        let digest = found.as_ref().map(|(digest, _)| digest.as_str());
        if expected(&expect, "selections", key).and_then(Value::as_str) != digest {
            wrong.push(format!("{name} {key}: found {digest:?}"));
        }
        if let Some(leaf) = expect.get("leaf").and_then(|leaf| leaf.get(key))
            && found.as_ref().map(|(_, leaf)| leaf.as_str()) != leaf.as_str()
        {
            wrong.push(format!("{name} {key}: leaf {found:?}"));
        }
        let found = resolve(dir, &index, &wanted.ignoring_os_features(), 0);
        let older = expected(&expect, "selectionsIgnoringOsFeatures", key)
            .or_else(|| expected(&expect, "selections", key));
        if older.and_then(Value::as_str) != found.as_ref().map(|(digest, _)| digest.as_str()) {
            wrong.push(format!("{name} {key}: up to 2.2 found {found:?}"));
        }
    }
    let offers = offers(&index);
    let missing = explain_missing(&offers, &wanted("linux/arm/v5"), None);
    let offered: Vec<_> = missing
        .offered
        .iter()
        .map(|text| text.replace(" (artifact)", ""))
        .collect();
    if Some(&offered) != strings(expect.get("available")).as_ref() {
        wrong.push(format!("{name}: available {offered:?}"));
    }
    assert!(!missing.hint.is_empty(), "{name}");
    let selection = select(&offers, &wanted("linux/amd64"), None, None);
    for never in strings(expect.get("neverSelect")).unwrap_or_default() {
        let judged = offers
            .iter()
            .zip(&selection.entries)
            .filter(|(offer, _)| offer.digest == never);
        if judged.clone().count() == 0
            || judged
                .clone()
                .any(|(_, entry)| entry.verdict != Verdict::Skipped)
        {
            wrong.push(format!("{name}: {never} must be skipped"));
        }
    }
    true
}

#[test]
fn indexes() {
    let mut judged = 0;
    let mut wrong = Vec::new();
    for dir in collections("indexes") {
        let mut paths: Vec<_> = fs::read_dir(&dir)
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            .collect();
        paths.sort();
        for path in paths
            .iter()
            .filter(|path| path.to_string_lossy().ends_with(".expect.json"))
        {
            judged += usize::from(judge(path, &mut wrong));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    println!("{judged} indexes judged");
    assert!(judged >= 5);
}
