//! `smoke`: images run for real on every containerd, what is said of it, and that nothing stays.
#![allow(
    clippy::unwrap_used,
    reason = "a test: a panic with a position is the failure report"
)]

use std::process::Command;

use edgepull_tests::containerd::{Containerd, Version};
use edgepull_tests::edgepull::{Edgepull, Run};
use edgepull_tests::faulty::Kind;
use edgepull_tests::image::{self, AMD64, Layout, Platform, host};
use edgepull_tests::on_each_containerd;
use edgepull_tests::process;
use edgepull_tests::scene::{NAMESPACE, Scene, greeting};
use edgepull_tests::smoking::{Stand, runtime_dir, smoke, smoke_ref};
use edgepull_tests::tools::Lab;
use serde_json::{Value, json};

/// `linux/386`, which machines of amd64 run as well.
const I386: Platform = Platform::new("linux", "386", "");

fn one(run: Run, code: i32) -> Value {
    run.exits(code).element()
}

fn each_way_to_end_is_told(version: Version) {
    let scene = Scene::new(version, image::programs());
    scene.pull();
    let before = Stand::of(&scene.daemon);
    let sh = |script: &'static str| vec!["/bin/sh", "-c", script];
    let mut rows: Vec<(Vec<&str>, &str, Value, Value, &str)> = vec![
        (vec!["/bin/true"], "passed", json!(0), json!(null), ""),
        (
            vec!["/foreign"],
            "not_runnable",
            json!(1),
            json!(null),
            "it is built for",
        ),
        (
            vec!["/noloader"],
            "not_runnable",
            json!(1),
            json!(null),
            "its loader",
        ),
        (
            vec!["/script"],
            "not_runnable",
            json!(1),
            json!(null),
            "interpreter `/no/such/interpreter`",
        ),
        (
            vec!["/empty"],
            "not_runnable",
            json!(1),
            json!(null),
            "empty",
        ),
        (
            vec!["/noexec"],
            "not_runnable",
            json!(null),
            json!(null),
            "may not be executed",
        ),
        (
            vec!["missing"],
            "not_runnable",
            json!(null),
            json!(null),
            "not in the image",
        ),
        (
            vec!["/missing"],
            "not_runnable",
            json!(null),
            json!(null),
            "not in the image",
        ),
        (
            sh("echo out; echo err >&2; exit 3"),
            "failed",
            json!(3),
            json!(null),
            "exit code 3",
        ),
        (
            sh("/none"),
            "failed",
            json!(127),
            json!(null),
            "did not find",
        ),
        (
            sh("echo exec /x: exec format error >&2; echo; exit 1"),
            "failed",
            json!(1),
            json!(null),
            "exit code 1",
        ),
    ];
    if host() == AMD64 {
        rows.push((
            vec!["/illegal"],
            "failed",
            json!(132),
            json!("SIGILL"),
            "newer CPU level",
        ));
        rows.push((
            vec!["/crash"],
            "failed",
            json!(139),
            json!("SIGSEGV"),
            "memory access",
        ));
    }
    for (command, outcome, code, signal, reason) in rows {
        let exit = match outcome {
            "passed" => 0,
            "failed" => 12,
            _ => 10,
        };
        let run = smoke_ref(&scene.daemon, &scene.reference)
            .arg("--")
            .args(&command)
            .run();
        let row = one(run, exit);
        assert_eq!(row["outcome"], outcome, "{command:?}: {row:#}");
        assert_eq!(row["exit_code"], code, "{command:?}: {row:#}");
        assert_eq!(row["signal"], signal, "{command:?}: {row:#}");
        let told = row["reason"].as_str().unwrap_or_default();
        assert!(told.contains(reason), "{command:?}: {row:#}");
        let kind = match outcome {
            "passed" => json!(null),
            "failed" => json!("smoke_failed"),
            other => json!(other),
        };
        assert_eq!(row["error"]["kind"], kind, "{row:#}");
        if exit == 12 && command.len() == 3 && reason == "exit code 3" {
            assert_eq!(row["output_tail"], "out\nerr\n");
        }
    }
    before.is_left(&scene.daemon);
}

/// What was not there before goes again; the record that was there is not touched, and holds
/// nothing more than before.
fn what_is_fetched_goes_again(version: Version) {
    let layout = image::with_platforms(&[host(), I386]);
    let scene = Scene::new(version, layout);
    let nothing = Stand::of(&scene.daemon);
    let row = one(smoke_ref(&scene.daemon, &scene.reference).run(), 0);
    for (key, value) in [
        ("schema", json!("edgepull.smoke/1")),
        ("reference", json!(scene.reference)),
        ("platform", json!("host")),
        ("selected_platform", json!(host().to_string())),
        ("namespace", json!(NAMESPACE)),
        ("snapshotter", json!("overlayfs")),
        ("outcome", json!("passed")),
        ("exit_code", json!(0)),
        ("signal", json!(null)),
        ("output_tail", json!(greeting())),
        ("reason", json!(null)),
        ("error", json!(null)),
    ] {
        assert_eq!(row[key], value, "{key}: {row:#}");
    }
    assert!(row["duration_ms"].is_u64(), "{row:#}");
    nothing.is_left(&scene.daemon);
    scene.pull();
    let pulled = Stand::of(&scene.daemon);
    let blobs = scene.registry.count("GET", &Kind::Blob);
    one(smoke_ref(&scene.daemon, &scene.reference).run(), 0);
    assert_eq!(
        scene.registry.count("GET", &Kind::Blob),
        blobs,
        "what is here is not fetched"
    );
    if host() == AMD64 {
        let other = smoke_ref(&scene.daemon, &scene.reference).args(["--platform", "linux/386"]);
        let row = one(other.run(), 0);
        assert_eq!(row["selected_platform"], "linux/386");
        assert_eq!(row["output_tail"], "hello from 386\n");
    }
    pulled.is_left(&scene.daemon);
    scene.greets();
}

fn a_container_is_shut_in(version: Version) {
    let daemon = Containerd::start(version);
    let script =
        "exec 2>/dev/null; touch() { echo x >$1/x 2>/dev/null && echo $1 yes || echo $1 no; }
        for dir in / /etc /tmp /run /data /dev/shm; do touch $dir; done
        cat /data/given; echo $(busybox id -u) $(busybox id -g) $(busybox id -G)
        busybox grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status
        ls /sys/class/net; cat /sys/class/net/lo/flags
        busybox hostname; busybox pwd; echo $$;        cat | busybox wc -c; echo by name >/dev/stdout";
    let settings = [
        ("User", json!("web")),
        ("Volumes", json!({"/data": {}})),
        ("WorkingDir", json!("/etc")),
        ("Cmd", json!(["-c", script])),
    ];
    let layout = image::program(&["/bin/sh"], &settings);
    let row = one(smoke(&daemon, &layout).run(), 0);
    let caps = "00000000800405fb";
    assert_eq!(
        row["output_tail"],
        format!(
            "/ no\n/etc no\n/tmp yes\n/run no\n/data yes\n/dev/shm yes\nby the image\n33 34 34 4\n\
             CapEff:\t0000000000000000\nCapBnd:\t{caps}\nNoNewPrivs:\t1\nlo\n0x9\nsmoke\n/etc\n1\n0\nby name\n"
        ),
        "{row:#}"
    );
    // Root may write where the image's files are no more than anybody else.
    let as_root = smoke(&daemon, &layout).args(["--", "/bin/sh", "-c", "echo x >/etc/x"]);
    let root = image::program(&["/bin/sh", "-c", "echo x >/run/x && ! echo x >/x"], &[]);
    one(as_root.run(), 12);
    one(smoke(&daemon, &root).run(), 0);
    let nobody = image::program(&["/bin/true"], &[("User", json!("nobody"))]);
    let row = one(smoke(&daemon, &nobody).run(), 10);
    assert!(
        row["reason"].as_str().unwrap().contains("no user `nobody`"),
        "{row:#}"
    );
    Stand::nothing().is_left(&daemon);
}

fn a_service_is_alive_or_late(version: Version) {
    let daemon = Containerd::start(version);
    let service = image::program(&["/bin/sh", "-c", "echo ready; exec sleep 1000"], &[]);
    let row = one(
        smoke(&daemon, &service).args(["--timeout", "2s"]).run(),
        124,
    );
    assert_eq!(row["outcome"], "timeout");
    assert_eq!(
        (&row["exit_code"], &row["signal"]),
        (&json!(null), &json!(null))
    );
    assert_eq!(row["output_tail"], "ready\n");
    assert_eq!(row["error"]["kind"], "timeout");
    assert!(row["duration_ms"].as_u64().unwrap() >= 2000, "{row:#}");
    let row = one(smoke(&daemon, &service).args(["--alive", "2s"]).run(), 0);
    assert_eq!(
        (&row["outcome"], &row["output_tail"]),
        (&json!("passed"), &json!("ready\n"))
    );
    let broken = image::program(&["/bin/sh", "-c", "exit 4"], &[]);
    let row = one(smoke(&daemon, &broken).args(["--alive", "100s"]).run(), 12);
    assert_eq!(row["exit_code"], 4);
    Stand::nothing().is_left(&daemon);
}

/// Far more than a pipe holds, a grandchild that keeps the pipe open, and more memory than it may.
fn output_and_memory_are_bounded(version: Version) {
    let scene = Scene::new(version, image::programs());
    scene.pull();
    let before = Stand::of(&scene.daemon);
    let run = |script: &str, code: i32| {
        let call = smoke_ref(&scene.daemon, &scene.reference).args(["--memory", "24M"]);
        one(call.args(["--", "/bin/sh", "-c", script]).run(), code)
    };
    let row = run("busybox yes | busybox head -c 30000000; echo; echo end", 0);
    let tail = row["output_tail"].as_str().unwrap();
    assert!(
        tail.ends_with("y\n\nend\n") || tail.ends_with("y\nend\n"),
        "{tail:?}"
    );
    assert!(
        tail.len() <= 8 << 10 && tail.len() > 7 << 10,
        "{}",
        tail.len()
    );
    let row = run("sleep 1000 & echo gone", 0);
    assert_eq!(row["output_tail"], "gone\n");
    assert!(row["duration_ms"].as_u64().unwrap() < 60_000, "{row:#}");
    let row = run("exec busybox tail /dev/zero", 12);
    assert_eq!(
        (&row["exit_code"], &row["signal"]),
        (&json!(137), &json!("SIGKILL"))
    );
    assert!(
        row["reason"].as_str().unwrap().contains("more memory"),
        "{row:#}"
    );
    before.is_left(&scene.daemon);
}

on_each_containerd!(
    each_way_to_end_is_told,
    what_is_fetched_goes_again,
    a_container_is_shut_in,
    a_service_is_alive_or_late,
    output_and_memory_are_bounded,
);

/// The words of real loaders.
#[cfg(target_arch = "x86_64")]
#[test]
fn loaders_that_give_up_are_understood() {
    let daemon = Containerd::start(Version::V1_7);
    let layout = image::dynamic();
    let row = one(smoke(&daemon, &layout).run(), 10);
    assert!(
        row["reason"].as_str().unwrap().contains("shared library"),
        "{row:#}"
    );
    assert_eq!(row["exit_code"], 127);
    let row = one(smoke(&daemon, &layout).args(["--", "/level"]).run(), 10);
    assert!(
        row["reason"].as_str().unwrap().contains("CPU level"),
        "{row:#}"
    );
    Stand::nothing().is_left(&daemon);
}

#[test]
fn what_cannot_be_tried_is_told_and_nothing_is_started() {
    let scene = Scene::new(Version::V1_7, image::only_s390x());
    let row = one(
        smoke_ref(&scene.daemon, &scene.reference)
            .args(["--platform", "linux/s390x"])
            .run(),
        10,
    );
    assert_eq!(row["outcome"], "not_runnable");
    assert!(
        row["reason"].as_str().unwrap().contains("linux/s390x"),
        "{row:#}"
    );
    // Its config, which the platform is read of, and no layer.
    assert!(scene.registry.count("GET", &Kind::Blob) <= 1);
    let missing = smoke_ref(&scene.daemon, &scene.reference).run();
    let row = one(missing, 3);
    assert_eq!(row["outcome"], Value::Null);
    assert_eq!(row["error"]["kind"], "platform_missing");
    let none = smoke_ref(&scene.daemon, "oci:/no/such/layout")
        .run()
        .exits(21);
    assert_eq!(none.element()["error"]["kind"], "not_found");
    let empty = image::nothing(host());
    let row = one(smoke(&scene.daemon, &empty).run(), 10);
    assert!(
        row["reason"].as_str().unwrap().contains("no program"),
        "{row:#}"
    );
    let layout = image::hello();
    let other = smoke(&scene.daemon, &layout).args(["--runtime", "io.example.none.v1"]);
    let error = other.run().fails(2, "config");
    assert!(
        error["causes"]
            .to_string()
            .contains("runtime `io.example.none.v1`"),
        "{error:#}"
    );
    for wrong in [
        &["--sysroot", "/no/such"][..],
        &["--alive", "1s", "--timeout", "1s"],
        &["--memory", "1k"],
        &["--timeout", "0s"],
        &["--junit"],
        &["--junit", "/no/such/folder/junit.xml"],
    ] {
        smoke(&scene.daemon, &layout).args(wrong).run().exits(2);
    }
    let foreign = image::mislabelled_single(image::ARM64, image::ARM64);
    let row = one(smoke(&scene.daemon, &foreign).run(), 3);
    assert_eq!(row["error"]["kind"], "platform_missing", "{row:#}");
    let mislabelled = image::mislabelled_single(image::ARM64, AMD64);
    let row = one(smoke(&scene.daemon, &mislabelled).run(), 0);
    assert!(row["warnings"].to_string().contains("label"), "{row:#}");
    let artifact = image::zephyr();
    let zephyr = smoke(&scene.daemon, &artifact).args(["--platform", "zephyr/arm/v7"]);
    zephyr.run().fails(25, "unsupported");
    Stand::nothing().is_left(&scene.daemon);
}

/// One table, one `JUnit` file, the worst exit code.
#[test]
fn several_are_told_together() {
    let daemon = Containerd::start(Version::V2);
    let hello = image::hello();
    let failing = image::program(
        &["/bin/sh", "-c", "printf 'bad\\033[2J]]>\\n' >&2; exit 9"],
        &[],
    );
    let call = Edgepull::new(["smoke"])
        .on(&daemon, NAMESPACE)
        .env("RUNTIME_DIRECTORY", runtime_dir(&daemon));
    let junit = call.home().join("out.xml");
    let call = call
        .arg(format!("oci:{}", hello.path().display()))
        .arg(format!("oci:{}", failing.path().display()))
        .arg("oci:/no/such/layout")
        .arg("--junit")
        .arg(&junit);
    let (run, xml) = call.start().wait_and(|| {
        // Whatever a program prints: a parser takes it.
        let parse = "import sys, xml.dom.minidom as x; x.parse(sys.argv[1])";
        let mut python = Command::new(Lab::get().installed("python3"));
        process::run(python.args(["-c", parse]).arg(&junit)).ok();
        std::fs::read_to_string(&junit).unwrap()
    });
    // Of `not_found` and `smoke_failed` the first is the worse one.
    let run = run.exits(21);
    let text = run.text();
    assert!(
        text.contains("RESULT") && text.contains("\npassed"),
        "{text}"
    );
    assert!(text.contains("  | bad\\u{1b}[2J]]>"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text:?}");
    for part in [
        "tests=\"3\" failures=\"1\" errors=\"1\"",
        "<failure type=\"smoke_failed\" message=\"exit code 9\">",
        "<error type=\"not_found\"",
        "<system-err>bad[2J]]&gt;",
    ] {
        assert!(xml.contains(part), "{part}: {xml}");
    }
    Stand::nothing().is_left(&daemon);
}

/// Whatever a layout's name is: a path with a digest, an archive.
#[test]
fn archives_and_other_runtimes_are_run() {
    let layout: Layout = image::hello();
    let daemon = Containerd::start(Version::V1_6);
    let call = Edgepull::new(["export"]);
    let archive = call.home().join("app.tar");
    let export = call
        .arg(format!("oci:{}", layout.path().display()))
        .args(["--platform", &host().to_string(), "--to"])
        .arg(&archive);
    let (run, row) = export.start().wait_and(|| {
        let reference = format!("oci-archive:{}", archive.display());
        one(smoke_ref(&daemon, &reference).run(), 0)
    });
    run.exits(0);
    assert_eq!(row["output_tail"], greeting());
    // Another runtime, which this version has.
    let other = smoke(&daemon, &layout).args(["--runtime", "io.containerd.runc.v1"]);
    let row = one(other.run(), 0);
    assert_eq!(row["runtime"], "io.containerd.runc.v1");
    assert_eq!(row["output_tail"], greeting());
    Stand::nothing().is_left(&daemon);
}
