//! Whatever a bundle and its files are: no panic, a line that everybody passes on, and no refusal
//! of what these cores run.

use proptest::prelude::*;

use super::*;

fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("/bin/app".to_owned()),
        Just("app".to_owned()),
        Just("/sbin/tini".to_owned()),
        Just("--".to_owned()),
        Just("/opt/app".to_owned()),
        Just("../app".to_owned()),
        "\\PC{0,12}",
        "[a-z./]{0,12}",
    ]
}

fn mount() -> impl Strategy<Value = Value> {
    let kind = prop_oneof![Just("bind"), Just("tmpfs"), Just("nfs"), Just("")];
    let option = prop_oneof![
        Just("rbind"),
        Just("bind"),
        Just("idmap"),
        Just("ro"),
        Just("tmpcopyup")
    ];
    let place = prop_oneof![
        Just("/opt"),
        Just("/bin"),
        Just("bin/../opt"),
        Just("/link"),
        Just("/"),
        Just(""),
        Just("/dev/shm"),
        Just("/loop/x"),
        Just("/bin/app"),
    ];
    let source = prop_oneof![
        Just("volume"),
        Just("rootfs/bin"),
        Just("volume/app"),
        Just("gone"),
        Just("/dev/null")
    ];
    (kind, proptest::collection::vec(option, 0..3), place, source).prop_map(
        |(kind, options, destination, source)| {
            json!({"type": kind, "options": options, "destination": destination, "source": source})
        },
    )
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(program(AMD64, None)),
        Just(program(ARM64, None)),
        Just(program(AMD64, Some("/lib/ld.so"))),
        Just(Vec::new()),
        Just(b"#!/bin/app x\n".to_vec()),
        Just(b"#!/opt/app\n".to_vec()),
        proptest::collection::vec(any::<u8>(), 0..300),
        (proptest::collection::vec(any::<u8>(), 0..200)).prop_map(|tail| {
            let mut bytes = program(AMD64, None);
            let keep = tail.len().min(bytes.len());
            let at = bytes.len() - keep;
            bytes.splice(at.., tail);
            bytes
        }),
    ]
}

fn furnish(scene: Scene, files: &[(&str, &Vec<u8>)]) -> Scene {
    let scene = scene.link("rootfs/link", "bin").link("rootfs/loop", "loop");
    files
        .iter()
        .fold(scene, |scene, (path, bytes)| scene.file(path, bytes))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn nothing_panics_and_every_line_is_fit_to_be_read(
        args in proptest::collection::vec(word(), 0..5),
        path in "[a-z/:.]{0,20}",
        cwd in word(),
        uid in prop_oneof![Just(0_u32), any::<u32>()],
        mounts in proptest::collection::vec(mount(), 0..4),
        app in content(),
        tini in content(),
        other in content(),
    ) {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let mut scene = Scene::new(&args)
            .set("/process/env", json!([format!("PATH=/bin:{path}")]))
            .set("/process/cwd", json!(cwd))
            .set("/process/user", json!({"uid": uid}));
        for mount in &mounts {
            scene = scene.mount(mount["destination"].as_str().expect("text"), mount);
        }
        let scene = furnish(scene, &[
            ("rootfs/bin/app", &app), ("rootfs/sbin/tini", &tini), ("rootfs/opt/app", &other),
            ("volume/app", &other),
        ]);
        for host in [amd64(), with_qemu("F"), with_qemu(""), unobserved()] {
            let line = match scene.asked(&host, Emulation::Never) {
                Decision::Refuse(refusal) => refusal.line().to_owned(),
                Decision::GoWithWarning(emulated) => emulated.line().to_owned(),
                Decision::Go => continue,
            };
            prop_assert!(line.len() < 1000 && !line.chars().any(char::is_control), "{line}");
        }
    }

    #[test]
    fn what_these_cores_run_goes_wherever_it_is(
        word in prop_oneof![Just("/bin/app"), Just("app"), Just("/link/app"), Just("bin/app"), Just("/opt/app")],
        init in any::<bool>(),
        mounts in proptest::collection::vec(mount(), 0..4),
        user in any::<bool>(),
    ) {
        let mut words = vec![word];
        if init {
            words.splice(0..0, ["/sbin/tini", "-s", "--"]);
        }
        let mut scene = Scene::new(&words);
        if user {
            scene = scene.set("/process/user", json!({"uid": 1000}));
        }
        for mount in &mounts {
            scene = scene.mount(mount["destination"].as_str().expect("text"), mount);
        }
        let own = program(AMD64, None);
        let scene = furnish(scene, &[
            ("rootfs/bin/app", &own), ("rootfs/sbin/tini", &own), ("rootfs/opt/app", &own),
            ("volume/app", &own),
        ]);
        for host in [amd64(), with_qemu("F"), with_qemu(""), unobserved()] {
            prop_assert_eq!(scene.asked(&host, Emulation::Never), Decision::Go);
        }
    }

    #[test]
    fn any_document_is_read_or_not(text in "\\PC{0,80}", bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        drop(Bundle::parse(text.as_bytes()));
        drop(Process::parse(&bytes));
    }
}
