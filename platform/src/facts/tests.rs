use super::*;

#[test]
fn probes_are_lines_with_comments() {
    let probes = parse_probes(
        "# about\nuname_machine=aarch64 # observed\nAT_PAGESZ=4096\t# x\nnot a probe\n=x\nfeatures_under_linux32=\nempty=# gone\nbinfmt_entry=a; flags: POF # b\n",
    );
    let expected = [
        ("AT_PAGESZ", "4096"),
        ("binfmt_entry", "a; flags: POF"),
        ("empty", ""),
        ("features_under_linux32", ""),
        ("uname_machine", "aarch64"),
    ];
    assert_eq!(
        probes
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .collect::<Vec<_>>(),
        expected
    );
}

#[test]
fn a_recorded_host_is_read_back_as_it_was() {
    let facts = Facts::from_texts(
        "uname_machine=armv6l\nAT_PAGESZ=4096",
        [
            ("proc/cpuinfo", "Serial\t\t: 00000000deadbeef\nModel : Pi\n"),
            ("proc/sys/fs/binfmt_misc/qemu-arm", "enabled\n"),
            ("../escape", "no"),
            ("/absolute", "no"),
        ],
    );
    assert_eq!(facts.files.len(), 2);
    let dir = tempfile::tempdir().expect("a directory");
    facts.record(dir.path()).expect("written");
    let again = Facts::recorded(dir.path()).expect("read");
    assert_eq!(again.probes, facts.probes);
    assert_eq!(
        again.file("proc/cpuinfo"),
        Some("Serial\t\t: 0000000000000000\nModel : Pi\n")
    );
    assert_eq!(
        again.handlers().collect::<Vec<_>>(),
        [("qemu-arm", "enabled\n")]
    );
    assert_eq!(again.files.len(), 2);
}

#[test]
fn a_directory_without_facts_is_no_host() {
    let dir = tempfile::tempdir().expect("a directory");
    assert!(matches!(
        Facts::recorded(dir.path()),
        Err(FactsError::NoFacts { .. })
    ));
    assert!(matches!(
        Facts::recorded(&dir.path().join("none")),
        Err(FactsError::Unreadable { .. })
    ));
}

#[test]
fn a_recorded_host_does_not_reach_the_running_system() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("probes"), "uname_machine=aarch64\n").expect("written");
    fs::create_dir(dir.path().join("proc")).expect("made");
    std::os::unix::fs::symlink("/proc/cpuinfo", dir.path().join("proc/cpuinfo")).expect("linked");
    let facts = Facts::recorded(dir.path()).expect("read");
    assert_eq!(facts.file("proc/cpuinfo"), None);
}

#[test]
fn a_pipe_is_not_waited_for() {
    let dir = tempfile::tempdir().expect("a directory");
    fs::create_dir(dir.path().join("proc")).expect("made");
    let made = std::process::Command::new("mkfifo")
        .arg(dir.path().join("proc/cpuinfo"))
        .status();
    if !made.is_ok_and(|status| status.success()) {
        println!("no mkfifo here: not tested");
        return;
    }
    let (sender, receiver) = std::sync::mpsc::channel();
    let path = dir.path().to_owned();
    std::thread::spawn(move || sender.send(Facts::recorded(&path).is_err()));
    assert_eq!(
        receiver.recv_timeout(std::time::Duration::from_secs(20)),
        Ok(true)
    );
}

#[test]
fn options_of_a_kernel() {
    let config = "CONFIG_COMPAT_32=y\nCONFIG_COMPAT=y\n# CONFIG_IA32_EMULATION is not set\n";
    assert_eq!(kernel_option(config, "CONFIG_COMPAT"), Some("y"));
    assert_eq!(kernel_option(config, "CONFIG_IA32_EMULATION"), Some("n"));
    assert_eq!(kernel_option(config, "CONFIG_IA32"), None);
    assert_eq!(
        boot_parameter(
            "ro ia32_emulation=1 quiet ia32_emulation=off\n",
            "ia32_emulation"
        ),
        Some("off")
    );
    assert_eq!(
        boot_parameter("ro ia32_emulationx=1", "ia32_emulation"),
        None
    );
}

#[test]
fn a_recorded_root_yields_options_but_not_its_command_line() {
    let dir = tempfile::tempdir().expect("a directory");
    let write = |path, text| write_below(dir.path(), path, text).expect("written");
    write("probes", "uname_release=6.1\nuname_machine=x86_64\n");
    write("proc/cmdline", "password=secret ia32_emulation=0");
    write("boot/config-6.1", "CONFIG_IA32_EMULATION=y\n");
    let facts = Facts::recorded(dir.path()).expect("read");
    assert_eq!(facts.probe("cmdline_ia32_emulation"), Some("0"));
    assert_eq!(facts.probe("kernel_config_ia32_emulation"), Some("y"));
    assert!(!format!("{facts:?}").contains("secret"));
}

#[test]
fn auxiliary_vectors_of_both_widths() {
    let long: Vec<u8> = [6u64, 16384, 16, 7, 0, 0, 6, 1]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    let short: Vec<u8> = [6u32, 4096, 16, 7, 0, 0, 6, 1]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();
    assert_eq!(
        live::parse_auxv(&long, 8),
        BTreeMap::from([(6, 16384), (16, 7)])
    );
    assert_eq!(
        live::parse_auxv(&short, 4),
        BTreeMap::from([(6, 4096), (16, 7)])
    );
    assert_eq!(live::parse_auxv(&[1, 2, 3], 8), BTreeMap::new());
    assert_eq!(
        live::parse_auxv(&[1, 2, 3], 0),
        BTreeMap::from([(0, 0)]).into_iter().take(0).collect()
    );
}

#[test]
fn the_personality_is_one_threads() {
    let machine = || {
        nix::sys::utsname::uname()
            .expect("a name")
            .machine()
            .to_owned()
    };
    let before = machine();
    let seen = live::under_linux32();
    assert_eq!(machine(), before);
    // A filter may forbid the call; where it is allowed, an amd64 kernel shows what it does.
    if cfg!(target_arch = "x86_64") && seen.contains_key("personality_per_linux32") {
        assert_eq!(
            seen.get("uname_machine_under_linux32").map(String::as_str),
            Some("i686")
        );
    }
}

#[test]
fn this_system_has_facts() {
    let facts = Facts::live().expect("a system");
    assert_eq!(facts.probe("uname_sysname"), Some("Linux"));
    assert!(
        facts
            .probe("AT_PAGESZ")
            .is_some_and(|size| size.parse::<u64>().is_ok_and(u64::is_power_of_two))
    );
    assert_eq!(
        facts.probe("userland_bits"),
        Some(usize::BITS.to_string().as_str())
    );
}

#[test]
fn a_quick_look_and_a_whole_one_tell_the_same_of_what_runs() {
    let whole = crate::detect(&Facts::live().expect("facts")).expect("a host");
    let quick = Facts::quick().expect("facts").with_handlers(|| None);
    let quick = crate::detect(&quick).expect("a host");
    assert_eq!(quick.kernel, whole.kernel);
    assert_eq!(quick.userland, whole.userland);
    assert_eq!(quick.page_size, whole.page_size);
    assert_eq!(quick.cpu_level, whole.cpu_level);
    assert_eq!(quick.features, whole.features);
    assert_eq!(quick.handlers, whole.handlers);
}

#[test]
fn handlers_are_read_anew_and_where_they_are_mounted() {
    let dir = tempfile::tempdir().expect("a directory");
    let facts = Facts::from_texts(
        "uname_machine=x86_64",
        [("proc/sys/fs/binfmt_misc/gone", "enabled\nmagic 00\n")],
    );
    assert!(facts.handlers_observed());
    std::fs::write(dir.path().join("status"), "enabled\n").expect("written");
    std::fs::write(dir.path().join("qemu"), "enabled\nmagic 7f\n").expect("written");
    let again = facts.with_handlers(|| Some(dir.path().to_owned()));
    let names: Vec<&str> = again.handlers().map(|(name, _)| name).collect();
    assert!(again.handlers_observed());
    // Where the test runs the table may be mounted, and then that one counts.
    assert!(!names.contains(&"gone"), "{names:?}");
    if !std::path::Path::new("/proc/sys/fs/binfmt_misc/status").exists() && !again.no_table {
        assert_eq!(names, ["qemu"]);
        assert!(!facts.with_handlers(|| None).handlers_observed());
    }
    assert!(has_table("nodev\tproc\nnodev\tbinfmt_misc\n\text4\n"));
    assert!(!has_table("nodev\tproc\n\text4\n"));
}

#[test]
fn a_description_that_was_cut_off_loses_its_last_processor() {
    let processor = format!("flags : {}\n\n", "a".repeat(1000));
    let whole = whole_processors(processor.repeat(3));
    assert_eq!(whole.len(), 3 * processor.len());
    let mut cut = processor.repeat(20);
    cut.truncate(usize::try_from(QUICK_CPUINFO).expect("small"));
    let cut = whole_processors(cut);
    assert!(cut.ends_with("a\n"));
    assert_eq!((cut.len() + 1) % processor.len(), 0);
}
