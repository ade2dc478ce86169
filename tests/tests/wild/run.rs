//! Runs a row with the real program and judges it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use edgepull_tests::edgepull::{Edgepull, Run};
use edgepull_tests::faulty::{Kind, Request, SECRET_TOKEN, SIGNATURE, transcript};
use edgepull_tests::image::{Layout, digest_of, host};
use edgepull_tests::process::wait_for;
use edgepull_tests::tools::Lab;
use serde_json::Value;

use super::row::{Left, PASSWORD, Row, Seen, Stage, Store, World, size_in};

/// A judged row: a line of the table.
pub(crate) struct Line {
    pub(crate) name: &'static str,
    pub(crate) source: &'static str,
    pub(crate) outcome: String,
    pub(crate) asks: [usize; 4],
    pub(crate) bytes: u64,
    pub(crate) twice: u64,
    pub(crate) left: String,
    pub(crate) took: Duration,
    /// What is not as it should be.
    pub(crate) wrong: Vec<String>,
    /// Everything there is to know, for a failing row.
    pub(crate) story: String,
}

/// Runs row number `at`.
pub(crate) fn run(row: &Row, at: usize, world: &World) -> Line {
    let mut stage = (row.stage)(world);
    let place = Place::new(row.store, at);
    let mut wrong = Vec::new();
    if let Some(script) = &row.again {
        let first = call(&mut stage, &place, world);
        if first.output.code != Some(0) {
            wrong.push(format!(
                "the first pull fails: {}",
                first.output.transcript()
            ));
        }
        for server in &stage.watched {
            server.turn(script(world));
        }
    }
    if let Some(limit) = row.killed_at {
        let begun = prepared(&stage, &place, world).start();
        wait_for(
            "the layer to be on its way",
            Duration::from_secs(60),
            || bytes(&stage.requests(), &stage.layout).0 >= limit,
        );
        begun.running.signal(nix::sys::signal::Signal::SIGKILL);
        let _killed = begun.wait();
    }
    let output = call(&mut stage, &place, world);
    let requests = stage.requests();
    let document = serde_json::from_slice::<Value>(&output.output.stdout).unwrap_or(Value::Null);
    let report = document[0].clone();
    let error = [&report["error"], &document["error"]]
        .into_iter()
        .find(|error| error.is_object())
        .cloned()
        .unwrap_or(Value::Null);
    let seen = Seen {
        reference: stage.reference.clone(),
        run: output,
        requests,
        report,
        error,
    };

    let expect = &row.expect;
    let code = seen.run.output.code;
    let kind = seen.error["kind"].as_str().unwrap_or_default();
    if code != Some(expect.code) || kind != expect.kind {
        wrong.push(format!(
            "ended with {code:?} {kind}, not with {} {}",
            expect.code, expect.kind
        ));
    }
    let asks = count(&seen.requests);
    if (0..4).any(|at| !expect.asks.0[at].contains(&asks[at])) {
        wrong.push(format!(
            "asked {asks:?} times (tag, manifest, blob, token), not {:?}",
            expect.asks.0
        ));
    }
    let (bytes, twice) = bytes(&seen.requests, &stage.layout);
    if twice > expect.twice {
        wrong.push(format!(
            "{twice} bytes came twice, at most {} may",
            expect.twice
        ));
    }
    let left = place.left(&stage, world);
    let any = expect.left == Left::Rest && left.as_ref().is_ok_and(|left| *left != Left::Image);
    if !any && left != Ok(expect.left) {
        wrong.push(format!("left {left:?}, not {:?}", expect.left));
    }
    for check in &row.checks {
        wrong.extend(check(&seen, world).err());
    }
    if let Some(check) = stage.after.take() {
        wrong.extend(check().err());
    }
    wrong.extend(everywhere(&seen, &stage));
    let mut story = format!(
        "{}\nrequests:\n{}\n",
        seen.run.output.transcript(),
        transcript(&seen.requests)
    );
    if row.heals {
        for server in &stage.watched {
            server.heal();
        }
        let again = call(&mut stage, &place, world);
        if again.output.code != Some(0) || place.left(&stage, world) != Ok(Left::Image) {
            wrong.push("the next call, with the fault gone, does not complete the image".into());
            story.push_str(&again.output.transcript());
        }
    }
    Line {
        name: row.name,
        source: row.source,
        outcome: format!("{} {kind}", code.unwrap_or(-1)).trim().to_owned(),
        asks,
        bytes,
        twice,
        left: left.map_or_else(|e| e, |left| format!("{left:?}").to_lowercase()),
        took: seen.run.output.took,
        wrong,
        story,
    }
}

/// What must hold in every row, whatever else it is about.
fn everywhere(seen: &Seen, stage: &Stage) -> Vec<String> {
    let mut wrong = Vec::new();
    let all = format!("{}\n{}", seen.run.text(), seen.run.output.stderr);
    for secret in [PASSWORD, SECRET_TOKEN, SIGNATURE] {
        if all.contains(secret) {
            wrong.push(format!("{secret} is in the output"));
        }
    }
    if seen.run.output.stderr.contains("panicked") {
        wrong.push("it panicked".to_owned());
    }
    if seen.report.is_null() && seen.error.is_null() {
        wrong.push("stdout is no report".to_owned());
    }
    if !seen.error.is_null() {
        for key in ["message", "registry", "hint", "retryable", "reference"] {
            if seen.error.get(key).is_none() {
                wrong.push(format!("the error has no {key}"));
            }
        }
        if seen.error["reference"] != stage.reference.as_str() {
            wrong.push("the error does not name the reference".to_owned());
        }
    }
    let identity = |r: &Request| {
        r.headers.is_empty()
            || matches!(r.kind, Kind::Ping | Kind::Token | Kind::Other)
            || r.header("accept-encoding") == Some("identity")
    };
    if !seen.requests.iter().all(identity) {
        wrong.push("a request without Accept-Encoding: identity".to_owned());
    }
    wrong
}

/// Where a row puts the image.
enum Place {
    Oci(edgepull_tests::tools::RunDir),
    Containerd(String),
}

impl Place {
    fn new(store: Store, at: usize) -> Self {
        match store {
            Store::Layout => Self::Oci(Lab::get().run_dir("store")),
            Store::Containerd => Self::Containerd(format!("wild-{at}")),
        }
    }

    /// What is in it.
    fn left(&self, stage: &Stage, world: &World) -> Result<Left, String> {
        let layout = &stage.layout;
        let (named, mut blobs, begun) = match self {
            Self::Oci(dir) => oci_content(&dir.path().join("img"))?,
            Self::Containerd(namespace) => {
                let daemon = &world.daemon;
                let active = daemon.ctr(namespace, &["content", "active"]).ok().text();
                (
                    !daemon.images(namespace).is_empty(),
                    daemon.blobs(namespace),
                    active.lines().count().saturating_sub(1),
                )
            }
        };
        blobs.sort();
        if !named {
            return Ok(match (blobs.is_empty(), begun) {
                (_, 1..) => Left::Partial,
                (true, _) => Left::Nothing,
                (false, _) => Left::Blobs,
            });
        }
        let manifest = layout.manifest("latest", &host());
        let mut wanted = layout.parts(&manifest);
        wanted.extend([manifest, layout.digest("latest")]);
        if let Some(missing) = wanted.iter().find(|digest| !blobs.contains(digest)) {
            return Err(format!("a name, but {missing} is missing"));
        }
        if begun > 0 {
            return Err("an image, and blobs begun".to_owned());
        }
        Ok(Left::Image)
    }
}

/// Whether a name is there, the whole blobs (their hashes checked), and how many are begun.
fn oci_content(dir: &Path) -> Result<(bool, Vec<String>, usize), String> {
    let index = fs::read(dir.join("index.json")).unwrap_or_default();
    let index: Value = serde_json::from_slice(&index).unwrap_or_default();
    let named = index["manifests"].as_array().is_some_and(|m| !m.is_empty());
    let list = |path: &Path| -> Vec<_> {
        let entries = fs::read_dir(path).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).collect()
    };
    let mut blobs = Vec::new();
    for file in list(&dir.join("blobs/sha256")) {
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        let found = digest_of(&fs::read(&file).unwrap_or_default());
        if found != format!("sha256:{name}") {
            return Err(format!("the bytes of blob {name} are {found}"));
        }
        blobs.push(found);
    }
    Ok((named, blobs, list(&dir.join(".edgepull")).len()))
}

fn prepared(stage: &Stage, place: &Place, world: &World) -> Edgepull {
    let verb = ["pull", &stage.reference];
    let mut call = match &stage.netns {
        Some(namespace) => Edgepull::in_netns(namespace, verb),
        None => Edgepull::new(verb),
    };
    let home = call.home().to_path_buf();
    let placed = |text: &str| text.replace("{home}", &home.to_string_lossy());
    call = call
        .json()
        .args(stage.args.iter().map(|arg| placed(arg)))
        .env("EDGEPULL_LOG", "trace");
    call = match place {
        Place::Oci(dir) => {
            let mut store = std::ffi::OsString::from("oci:");
            store.push(dir.path().join("img"));
            call.arg("--store").arg(store)
        }
        Place::Containerd(namespace) => call.on(&world.daemon, namespace),
    };
    for (name, value) in &stage.env {
        call = call.env(name, value);
    }
    for (name, text) in &stage.files {
        let path = home.join(name);
        fs::create_dir_all(path.parent().expect("it lies in the home")).unwrap();
        fs::write(&path, placed(text)).unwrap();
        if name.starts_with("docker-credential-") {
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            call = call.env(
                "PATH",
                format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", home.display()),
            );
        }
    }
    call
}

fn call(stage: &mut Stage, place: &Place, world: &World) -> Run {
    let started = prepared(stage, place, world).start();
    if let Some(act) = stage.during.take() {
        act();
    }
    started.wait()
}

/// By tag, of manifests, of blobs, of tokens.
fn count(requests: &[Request]) -> [usize; 4] {
    [Kind::Tag, Kind::Manifest, Kind::Blob, Kind::Token]
        .map(|kind| requests.iter().filter(|r| r.kind == kind).count())
}

/// Bytes of blobs that were sent, and how many of them were sent before.
fn bytes(requests: &[Request], layout: &Layout) -> (u64, u64) {
    let mut blobs: Vec<(&str, u64)> = Vec::new();
    for request in requests {
        if request.kind != Kind::Blob || !matches!(request.status, 200 | 206) {
            continue;
        }
        match blobs.iter_mut().find(|(what, _)| *what == request.what) {
            Some((_, sent)) => *sent += request.sent,
            None => blobs.push((&request.what, request.sent)),
        }
    }
    let twice = |(what, sent): &(&str, u64)| sent.saturating_sub(size_in(layout, what));
    (
        blobs.iter().map(|(_, sent)| sent).sum(),
        blobs.iter().map(twice).sum(),
    )
}
