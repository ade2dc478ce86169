use super::*;
use crate::registry::Via;

const EVERY_KEY: &str = include_str!("../../../docs/config.toml");

#[test]
fn the_example_has_every_key_and_is_right() {
    let uncommented: String = EVERY_KEY
        .lines()
        .map(|line| line.strip_prefix("#: ").unwrap_or(line))
        .flat_map(|line| [line, "\n"])
        .collect();
    let config = Config::parse(&uncommented).expect("right");
    let Config {
        address: Some(_),
        namespace: Some(_),
        snapshotter: Some(_),
        hosts_dir: Some(_),
        max_concurrent_downloads: Some(3),
        rate: Some(2_097_152),
        disk_floor: Some(DiskFloor::Percent(10)),
        refresh: Some(Refresh::Every(_)),
        jitter: Some(_),
        windows,
        prune: Some(Refresh::Never),
        policy: Policy::Strict,
        emulation: Emulation::Allow,
        shim:
            Shim {
                emulation: Some(Emulation::Never),
                by_host: Some(true),
                group_most: Some(32),
            },
        metrics_listen: Some(_),
        metrics_textfile: Some(_),
        labels,
        connect_timeout: Some(_),
        read_timeout: Some(_),
        stall_timeout: Some(_),
        ways,
    } = config
    else {
        panic!("a key is missing in docs/config.toml: {config:?}")
    };
    assert_eq!(ways.by_host["registry.example:5000"], Via::Direct);
    assert!(ways.default.is_some());
    assert_eq!(labels["site"], "berlin");
    assert_eq!(windows.len(), 2);
    // As it is delivered it sets nothing.
    assert_eq!(Config::parse(EVERY_KEY), Ok(Config::default()));
}

#[test]
fn a_fault_has_its_line_and_key_and_no_secret() {
    for (text, line, key) in [
        ("\n[limit]\n", 2, "limit"),
        ("[limits]\nrates = \"1M\"", 2, "limits.rates"),
        ("[limits]\nrate = 5", 2, "limits.rate"),
        ("[limits]\nrate = \"0\"", 2, "limits.rate"),
        (
            "[limits]\nmax_concurrent_downloads = 0",
            2,
            "limits.max_concurrent_downloads",
        ),
        (
            "[limits]\nmax_concurrent_downloads = 65",
            2,
            "limits.max_concurrent_downloads",
        ),
        (
            "[limits]\nmax_concurrent_downloads = \"3\"",
            2,
            "limits.max_concurrent_downloads",
        ),
        ("[limits]\ndisk_floor = \"100%\"", 2, "limits.disk_floor"),
        ("[limits]\ndisk_floor = 10", 2, "limits.disk_floor"),
        ("[host]\nlabels = { a = 1 }", 2, "host.labels.a"),
        ("[host]\nlabels = \"a\"", 2, "host.labels"),
        ("[host]\nlabel = {}", 2, "host.label"),
        ("[schedule]\nrefresh = \"59s\"", 2, "schedule.refresh"),
        ("[schedule]\nrefresh = 6", 2, "schedule.refresh"),
        ("[schedule]\nprune = \"soon\"", 2, "schedule.prune"),
        ("[schedule]\njitter = \"never\"", 2, "schedule.jitter"),
        ("[schedule]\nwindows = [\"22-6\"]", 2, "schedule.windows"),
        ("[schedule]\nwindows = [1]", 2, "schedule.windows"),
        ("[schedule]\nwindow = []", 2, "schedule.window"),
        ("[shim]\nemulation = \"nevr\"", 2, "shim.emulation"),
        ("[shim]\nemulation = true", 2, "shim.emulation"),
        ("[shim]\ngroup = \"node\"", 2, "shim.group"),
        ("[shim]\ngroup_most = 0", 2, "shim.group_most"),
        ("[shim]\ngroup_most = 1001", 2, "shim.group_most"),
        ("[shim]\ngate = \"off\"", 2, "shim.gate"),
        ("[metrics]\nlisten = \":9464\"", 2, "metrics.listen"),
        (
            "[metrics]\ntextfile = \"edgepull.prom\"",
            2,
            "metrics.textfile",
        ),
        (
            "[metrics]\ntextfile = \"/var/lib/e.txt\"",
            2,
            "metrics.textfile",
        ),
        ("[metrics]\nport = 1", 2, "metrics.port"),
        ("[policy]\nimage = \"none\"", 2, "policy.image"),
        ("[policy]\nemulation = true", 2, "policy.emulation"),
        ("[policy]\nelf = 1", 2, "policy.elf"),
        ("[containerd]\naddress = \"\"", 2, "containerd.address"),
        (
            "[registry]\nstall_timeout = \"1ms\"",
            2,
            "registry.stall_timeout",
        ),
        (
            "[registry]\nproxy = \"socks5://me:hunter2@a\"",
            2,
            "registry.proxy",
        ),
        (
            "[registry.\"a.example\"]\nmirror = \"b\"",
            2,
            "registry.a.example.mirror",
        ),
        ("registry = 1", 1, "registry"),
    ] {
        let fault = Config::parse(text).expect_err(text);
        assert_eq!(fault.line, line, "{text}");
        assert_eq!(fault.key.as_deref(), Some(key), "{text}");
        assert!(!fault.what.contains("hunter2"), "{}", fault.what);
    }
    assert!(Config::parse("[limits").is_err());
    assert_eq!(Config::parse(""), Ok(Config::default()));
}

#[test]
fn what_is_not_set_is_as_usual() {
    let hours = |hours: u64| Duration::from_secs(3600 * hours);
    let usual = Config::default();
    assert_eq!(usual.default_refresh(), Refresh::Every(hours(6)));
    assert_eq!(usual.prune_after(), None);
    assert_eq!(usual.free_floor(), DiskFloor::Percent(10));
    let timing = usual.timing(Secret::new("m"));
    assert_eq!(timing.windows, Windows::default());
    assert_eq!(timing.jitter.bound(hours(6)), hours(1) / 2);

    let text = "[schedule]\nrefresh = \"never\"\njitter = \"2h\"\nprune = \"30d\"\nwindows = \"22:00-06:00\"";
    let set = Config::parse(text).expect("right");
    assert_eq!(set.default_refresh(), Refresh::Never);
    assert_eq!(set.prune_after(), Some(hours(24 * 30)));
    let timing = set.timing(Secret::new("m"));
    assert_ne!(timing.windows, Windows::default());
    assert_eq!(timing.jitter.bound(hours(6)), hours(2));
}

#[test]
fn a_named_file_must_exist() {
    let missing = Config::load(Some(Path::new("/no/such/config.toml")));
    let error = missing.expect_err("there is none");
    assert_eq!(error.kind(), Kind::Config);
    assert!(error.message().contains("/no/such/config.toml"));
}

proptest::proptest! {
    #[test]
    fn any_text_is_a_configuration_or_a_fault(text in "(\\[|\\]|registry|limits|rate|=|\"|\n|1|x|\\.){0,40}") {
        drop(Config::parse(&text));
    }
}
