//! The package on a machine with systemd: from installing to purging, and everything that goes
//! wrong between.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use edgepull_tests::agent::wait_quiet;
use edgepull_tests::device::{Device, NAMESPACE, UNIT, version};
use edgepull_tests::faulty::{Action, Auth, Faulty, Kind, Rule};
use edgepull_tests::image::{self, Layout, host};
use edgepull_tests::process::wait_for;
use serde_json::Value;

const MIB: u64 = 1 << 20;
/// A pull that is broken off has so many layers on their way, of so many bytes each.
const LAYERS: usize = 3;
const EACH: u64 = 12 * MIB;

/// A link of about 1.6 MiB a second for each layer.
fn slow() -> Rule {
    Rule::on(
        Kind::Blob,
        Action::Slow(64 << 10, Duration::from_millis(40)),
    )
}

/// A layer, and its size.
type Sized = (String, u64);

/// The layers with noise in them.
fn big_layers(layout: &Layout) -> Vec<Sized> {
    let parts = layout.parts(&layout.manifest("latest", &host()));
    let sized = parts.into_iter().map(|digest| {
        let size = std::fs::metadata(layout.blob_path(&digest)).unwrap().len();
        (digest, size)
    });
    sized.filter(|(_, size)| *size >= EACH).collect()
}

/// Bytes of a blob that the registry has sent.
fn sent(registry: &Faulty, digest: &str) -> u64 {
    let requests = registry.requests();
    let about = requests.iter().filter(|request| request.what == digest);
    about.map(|request| request.sent).sum()
}

/// Declares an image behind a slow link, and waits until a third of each layer has come.
#[track_caller]
fn mid_pull(device: &Device) -> (Faulty, String, Vec<Sized>) {
    let registry = Faulty::start(image::big(LAYERS as u64, EACH), [slow()]);
    let reference = registry.reference("lab/big", "latest");
    let layers = big_layers(registry.layout());
    assert_eq!(layers.len(), LAYERS);
    device.declare("big", &[&reference]);
    wait_for("a third", Duration::from_secs(60), || {
        layers
            .iter()
            .all(|(layer, size)| sent(&registry, layer) >= size / 3)
    });
    for (layer, size) in &layers {
        assert!(sent(&registry, layer) < *size, "{layer} is there already");
    }
    (registry, reference, layers)
}

/// Each layer came once, but for what was on its way when the pull was broken off; and it was
/// asked for from an offset.
#[track_caller]
fn continued(registry: &Faulty, layers: &[Sized]) {
    for (layer, size) in layers {
        let again = sent(registry, layer) - size;
        println!("{again} of {size} bytes came twice");
        assert!(again <= 4 * MIB, "{}", registry.transcript());
        let resumed = registry.requests().iter().any(|request| {
            request.what == *layer
                && request
                    .header("range")
                    .is_some_and(|range| !range.starts_with("bytes=0-"))
        });
        assert!(resumed, "{}", registry.transcript());
    }
}

#[test]
fn what_is_declared_arrives_and_everybody_can_see_it() {
    let device = Device::start();
    let registry = Faulty::start(image::hello(), []);
    let reference = registry.reference("lab/app", "latest");
    assert_eq!(device.machine.property(UNIT, "ActiveState"), "active");
    assert_eq!(device.machine.property(UNIT, "UnitFileState"), "enabled");

    device.declare("mine", &[&reference]);
    let image = device.wait_ready(&reference);
    assert_eq!(image["pinned"], true, "{image}");
    assert!(device.pinned(&reference), "{}", device.labels(&reference));
    device.edgepull(&["wait", "--timeout", "10s"]).ok();
    let limit = Duration::from_secs(10);
    wait_for("a word of it to systemd", limit, || {
        device.machine.property(UNIT, "StatusText") == "1 of 1 images ready"
    });
    let status = device.machine.run(["systemctl", "status", UNIT]).ok();
    let shown = "Status: \"1 of 1 images ready\"";
    assert!(status.text().contains(shown), "{}", status.text());
    // Whoever reads only the text is told of which image it is.
    let line = format!("{reference}: the image is ready");
    assert!(status.text().contains(&line), "{}", status.text());

    // The socket is the group's, the state nobody's.
    let socket = std::fs::metadata(device.machine.path("/run/edgepull/edgepull.sock")).unwrap();
    let groups = std::fs::read_to_string(device.machine.path("/etc/group")).unwrap();
    let group = groups.lines().find_map(|line| {
        let mut words = line.split(':');
        (words.next()? == "edgepull").then(|| words.nth(1)?.parse::<u32>().ok())?
    });
    assert_eq!((socket.mode() & 0o777, Some(socket.gid())), (0o660, group));
    let state = std::fs::metadata(device.machine.path("/var/lib/edgepull")).unwrap();
    assert_eq!(state.mode() & 0o777, 0o700);
    let group = group.unwrap().to_string();
    let ask = |groups: &str| {
        let groups = format!("--groups={groups}");
        let words = ["setpriv", "--reuid=65534", "--regid=65534", &groups];
        device
            .machine
            .run(words.into_iter().chain(["edgepull", "status"]))
    };
    ask(&group).ok();
    assert_eq!(ask("65534").code, Some(41));
}

/// One boot for what only looks.
#[test]
fn the_unit_is_valid_exposes_little_and_hides_no_fact() {
    let device = Device::start();
    is_valid_and_exposes_little(&device);
    says_what_it_leaves_out(&device);
    detect_sees_the_same_host_inside(&device);
    nothing_but_its_own_can_be_written(&device);
}

fn nothing_but_its_own_can_be_written(device: &Device) {
    let pid = device.main_pid();
    let writable = |path: &str| {
        let inside = ["nsenter", "-t", &pid, "-m", "test", "-w", path];
        device.machine.run(inside).code == Some(0)
    };
    for path in ["/var/lib/edgepull", "/run/edgepull"] {
        assert!(writable(path), "{path}");
    }
    for path in ["/etc", "/etc/edgepull", "/var/lib/containerd", "/usr/bin"] {
        assert!(!writable(path), "{path}");
    }
}

fn is_valid_and_exposes_little(device: &Device) {
    let verified = device.machine.run(["systemd-analyze", "verify", UNIT]).ok();
    assert_eq!(verified.stderr, "", "{}", verified.transcript());
    // Exits with 1 above that.
    device
        .machine
        .run(["systemd-analyze", "security", "--threshold=30", UNIT])
        .ok();
}

fn unit(device: &Device) -> String {
    let path = "/usr/lib/systemd/system/edgepull.service";
    std::fs::read_to_string(device.machine.path(path)).unwrap()
}

/// With these set `detect` would see another host inside than outside, or images could not be
/// compared; who wants to set them finds the reason in the unit.
fn says_what_it_leaves_out(device: &Device) {
    let unit = unit(device);
    for (option, value, reason) in [
        ("LockPersonality", "no", "forbids the probe"),
        ("ProcSubset", "all", "hides /proc/cpuinfo"),
        ("RestrictSUIDSGID", "no", "openat2"),
    ] {
        assert_eq!(device.machine.property(UNIT, option), value, "{option}");
        let told = format!("# - {option}=");
        let (_, rest) = unit.split_once(&told).unwrap_or_else(|| panic!("{told}"));
        let remark = rest.split("\n# - ").next().unwrap();
        assert!(remark.contains(reason), "{option}: {remark}");
    }
}

fn detect_sees_the_same_host_inside(device: &Device) {
    let unit = unit(device);
    let look = unit
        .replace("Type=notify", "Type=oneshot")
        .replace(
            "Restart=always",
            "StandardOutput=file:/var/lib/edgepull/look",
        )
        .replace("WatchdogSec=60s", "")
        .replace("edgepull agent", "edgepull detect --output json");
    device
        .machine
        .write("/etc/systemd/system/look.service", look);
    device.machine.run(["systemctl", "daemon-reload"]).ok();
    device.machine.run(["systemctl", "start", "look"]).ok();
    let inside = std::fs::read(device.machine.path("/var/lib/edgepull/look")).unwrap();
    let outside = device.edgepull(&["detect", "--output", "json"]).ok();
    let parse = |text: &[u8]| serde_json::from_slice::<Value>(text).unwrap();
    let inside = parse(&inside);
    assert_eq!(inside, parse(&outside.stdout));
    let runs = inside["runs"].as_array().unwrap();
    assert!(
        runs.iter().any(|one| one["how"] == "emulated"),
        "the box has an emulator: {inside:#}"
    );
}

#[test]
fn logins_come_as_a_credential() {
    let device = Device::start();
    let auth = Auth::Basic("device".to_owned(), "secret".to_owned());
    let registry = Faulty::start_with(image::hello(), auth, []);
    let reference = registry.reference("lab/app", "latest");
    // `device:secret`
    let login = format!(
        r#"{{"auths":{{"{}":{{"auth":"ZGV2aWNlOnNlY3JldA=="}}}}}}"#,
        registry.host()
    );
    device
        .machine
        .write("/etc/credstore/registry-auth.json", login);
    device.machine.run(["systemctl", "restart", UNIT]).ok();
    device.declare("mine", &[&reference]);
    device.wait_ready(&reference);
}

#[test]
fn killed_within_a_pull_it_goes_on_where_it_was() {
    let device = Device::start();
    let (registry, reference, layers) = mid_pull(&device);
    // How far it is, for whoever asks systemd.
    let text = format!("0 of 1 images ready; fetching {reference} ");
    wait_for("a word of the work", Duration::from_secs(10), || {
        let status = device.machine.property(UNIT, "StatusText");
        status.starts_with(&text) && status.ends_with(" %")
    });
    let before = device.main_pid();
    device.machine.signal(UNIT, "SIGKILL");
    device.wait_restarted(&before);
    device.wait_ready(&reference);
    continued(&registry, &layers);
}

#[test]
fn hung_it_is_restarted_by_the_watchdog() {
    let device = Device::start();
    let before = device.main_pid();
    device.machine.signal(UNIT, "SIGSTOP");
    device.wait_restarted(&before);
    assert!(
        device.machine.journal(UNIT).contains("Watchdog timeout"),
        "{}",
        device.machine.journal(UNIT)
    );
    // And left alone it does not bark.
    let after = device.main_pid();
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(device.main_pid(), after);
}

#[test]
fn without_containerd_it_waits_and_says_so() {
    let device = Device::start();
    let registry = Faulty::start(image::hello(), []);
    let reference = registry.reference("lab/app", "latest");
    device
        .machine
        .run(["systemctl", "stop", "containerd.service"])
        .ok();
    device.declare("mine", &[&reference]);
    wait_for("the reason", Duration::from_secs(30), || {
        device.status()["engine_error"]["kind"] == "containerd_unavailable"
    });
    // That is no fault of the image's.
    let limit = Duration::from_secs(10);
    let image = device.wait_until("declared", &reference, limit, |image| !image.is_null());
    assert_eq!(image["state"], "waiting", "{image}");
    assert!(image["error"].is_null(), "{image}");
    assert_eq!(device.machine.property(UNIT, "NRestarts"), "0");
    device
        .machine
        .run(["systemctl", "start", "containerd.service"])
        .ok();
    let image = device.wait_ready(&reference);
    assert!(image["error"].is_null(), "{image}");
    assert!(device.answer()["engine_error"].is_null());
    assert_eq!(device.machine.property(UNIT, "NRestarts"), "0");
}

#[test]
fn a_full_disk_is_reported_and_costs_nothing() {
    let device = Device::with_disk(40 * MIB);
    let small = Faulty::start(image::hello(), []);
    let small_reference = small.reference("lab/app", "latest");
    device.declare("small", &[&small_reference]);
    device.wait_ready(&small_reference);

    let large = Faulty::start(image::big(1, 24 * MIB), []);
    let large_reference = large.reference("lab/big", "latest");
    device.declare("large", &[&large_reference]);
    let limit = Duration::from_secs(30);
    let image = device.wait_until("typed", &large_reference, limit, |image| {
        image["error"]["kind"] == "no_space"
    });
    assert_ne!(image["state"], "ready", "{image}");
    device.wait_ready(&small_reference);
    assert_eq!(device.machine.property(UNIT, "NRestarts"), "0");

    device.machine.disk().resize(400 * MIB);
    device.edgepull(&["sync"]).ok();
    device.wait_ready(&large_reference);
    device.wait_ready(&small_reference);
}

/// The disk is filled by somebody else while layers come in.
#[test]
fn a_disk_that_fills_within_a_pull_costs_only_time() {
    let device = Device::with_disk(400 * MIB);
    let small = Faulty::start(image::hello(), []);
    let small_reference = small.reference("lab/app", "latest");
    device.declare("small", &[&small_reference]);
    device.wait_ready(&small_reference);

    let (registry, reference, layers) = mid_pull(&device);
    let disk = device.machine.disk();
    disk.resize(disk.used() + MIB);
    let limit = Duration::from_secs(60);
    let image = device.wait_until("typed", &reference, limit, |image| {
        image["error"]["kind"] == "no_space"
    });
    assert_ne!(image["state"], "ready", "{image}");
    for (layer, size) in &layers {
        let came = sent(&registry, layer);
        assert!(came < *size, "{came} of {size}: it met no full disk");
    }
    device.wait_ready(&small_reference);
    assert_eq!(device.machine.property(UNIT, "NRestarts"), "0");

    device.machine.disk().resize(400 * MIB);
    device.edgepull(&["sync"]).ok();
    device.wait_ready(&reference);
    continued(&registry, &layers);
    device.wait_ready(&small_reference);
}

#[test]
fn after_a_power_cut_within_a_pull_it_converges() {
    let mut device = Device::start();
    let (registry, reference, layers) = mid_pull(&device);
    device.machine.pull_the_plug();
    device.machine.boot();
    device.wait_ready(&reference);
    assert!(device.pinned(&reference));
    assert_eq!(device.empty_files(), [""; 0].map(std::path::PathBuf::from));
    continued(&registry, &layers);
    drop(registry);

    // With all there, but for a file whose bytes had not reached the disk: it is found, and
    // healed without the registry.
    device.machine.pull_the_plug();
    let (file, size) = device
        .unpacked()
        .into_iter()
        .max_by_key(|(_, size)| *size)
        .unwrap();
    assert_eq!(size, EACH);
    std::fs::File::create(&file).unwrap();
    device.machine.boot();
    let whole = |device: &Device| {
        let large = device.unpacked();
        large.iter().filter(|(_, size)| *size == EACH).count()
    };
    wait_for("the file", Duration::from_secs(60), || {
        whole(&device) == LAYERS && device.empty_files().is_empty()
    });
    // By the daemon itself, which says so when it is done.
    wait_for("a word of it", Duration::from_secs(60), || {
        let journal = device.machine.journal(UNIT);
        journal.contains("was damaged, and is repaired")
    });
    device.wait_ready(&reference);
}

#[test]
fn configuration_is_read_again() {
    let device = Device::start();
    let registry = Faulty::start(image::hello(), []);
    let one = registry.reference("lab/one", "latest");
    let two = registry.reference("lab/two", "latest");
    device.declare("one", &[&one]);
    device.wait_ready(&one);
    let pid = device.main_pid();

    // By watching.
    device.declare("two", &[&two]);
    device.wait_ready(&two);

    // A fault: told, and the last good configuration stays.
    let good = std::fs::read(device.machine.path("/etc/edgepull/config.toml")).unwrap();
    device
        .machine
        .write("/etc/edgepull/config.toml", "[limits]\nspeed = 1\n");
    device.machine.run(["systemctl", "reload", UNIT]).ok();
    wait_for("the fault is told", Duration::from_secs(10), || {
        let faults = device.status()["faults"].to_string();
        faults.contains("\"config\"") && faults.contains("speed")
    });
    assert!(device.machine.journal(UNIT).contains("speed"));
    device.wait_ready(&one);
    assert_eq!(device.edgepull(&["agent", "--check-config"]).code, Some(2));

    // Mended, and taken by SIGHUP.
    device.machine.write("/etc/edgepull/config.toml", good);
    device.machine.run(["systemctl", "reload", UNIT]).ok();
    device.edgepull(&["agent", "--check-config"]).ok();
    let limit = Duration::from_secs(10);
    wait_for("no fault any more", limit, || {
        device.status()["faults"]
            .as_array()
            .is_some_and(Vec::is_empty)
    });
    // A list that is elsewhere, and only linked to: of its changes nobody tells but the signal.
    let three = registry.reference("lab/three", "latest");
    device.machine.write("/srv/list.txt", &two);
    let link = device.machine.path("/etc/edgepull/images.d/linked.txt");
    std::os::unix::fs::symlink("/srv/list.txt", link).unwrap();
    device.machine.remove("/etc/edgepull/images.d/one.txt");
    device.wait_unlisted(&one, limit);
    wait_quiet(|| device.answer());
    device.machine.write("/srv/list.txt", &three);
    std::thread::sleep(Duration::from_secs(2));
    assert!(device.image(&three).is_null(), "who told?");
    device.machine.run(["systemctl", "reload", UNIT]).ok();
    device.wait_ready(&three);
    device.machine.remove("/etc/edgepull/images.d/two.txt");
    device.wait_unlisted(&two, limit);
    device.wait_ready(&three);
    assert_eq!(device.main_pid(), pid);
    assert_eq!(device.machine.property(UNIT, "ActiveState"), "active");
}

#[test]
fn what_is_taken_behind_its_back_comes_again() {
    let device = Device::start();
    let registry = Faulty::start(image::hello(), []);
    let reference = registry.reference("lab/app", "latest");
    device.declare("mine", &[&reference]);
    device.wait_ready(&reference);
    let ctr = |args: &[&str]| device.machine.ctr(NAMESPACE, args).ok();

    ctr(&["images", "rm", "--sync", &reference]);
    let limit = Duration::from_secs(30);
    wait_for("the image again", limit, || device.pinned(&reference));
    ctr(&["images", "label", &reference, "io.edgepull.pinned="]);
    wait_for("the pin again", limit, || device.pinned(&reference));
    device.wait_ready(&reference);
}

#[test]
fn upgraded_removed_purged() {
    let device = Device::start();
    let registry = Faulty::start(image::hello(), []);
    let reference = registry.reference("lab/app", "latest");
    device.declare("mine", &[&reference]);
    device.wait_ready(&reference);
    // By hand, in a namespace that no configuration names; and a pull that was broken off.
    let elsewhere = |args: &[&str]| device.machine.ctr("elsewhere", args).ok().text();
    let pull = ["-n", "elsewhere", "pull", "--pin", &reference];
    device.edgepull(&pull).ok();
    let lease = ["create", "--id", "edgepull-0-1", "io.edgepull.lease=0"];
    elsewhere(&[&["leases"], &lease[..]].concat());
    let edited = "# edited\n";
    device.machine.write("/etc/edgepull/config.toml", edited);
    let config = || {
        let path = device.machine.path("/etc/edgepull/config.toml");
        std::fs::read_to_string(path).unwrap()
    };

    let before = device.main_pid();
    device.install("99.0.0");
    device.wait_restarted(&before);
    device.wait_ready(&reference);
    assert_eq!(config(), edited);

    device.machine.run(["dpkg", "--remove", "edgepull"]).ok();
    assert!(!device.machine.has("/usr/bin/edgepull"));
    assert_ne!(device.machine.property(UNIT, "ActiveState"), "active");
    assert_eq!(config(), edited);
    assert!(device.pinned(&reference), "{}", device.labels(&reference));

    // Again, and it is as it was.
    device.install(version());
    device.wait_ready(&reference);
    assert_eq!(config(), edited);

    let purged = device.machine.run(["dpkg", "--purge", "edgepull"]).ok();
    assert!(!purged.stderr.contains("may be left"), "{}", purged.stderr);
    for path in [
        "/var/lib/edgepull",
        "/run/edgepull",
        "/etc/edgepull/config.toml",
    ] {
        assert!(!device.machine.has(path), "{path}");
    }
    // What the user wrote is the user's.
    assert!(device.machine.has("/etc/edgepull/images.d/mine.txt"));
    // The image stays, without our pin.
    assert!(!device.labels(&reference).is_empty());
    assert!(!device.pinned(&reference), "{}", device.labels(&reference));
    for namespace in [NAMESPACE, "elsewhere"] {
        let leases = device.machine.ctr(namespace, &["leases", "ls"]).ok();
        assert!(!leases.text().contains("edgepull"), "{}", leases.text());
    }
    let left = elsewhere(&["images", "ls"]);
    assert!(left.contains(&reference), "{left}");
    assert!(!left.contains("io.edgepull.pin"), "{left}");
    let failed = device.machine.run(["systemctl", "--failed", "--quiet"]);
    assert_eq!(failed.text(), "");
}
