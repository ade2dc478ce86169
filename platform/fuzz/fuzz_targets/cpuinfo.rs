//! Any CPU description, on any kind of machine. The first line holds probes, separated by `;`.
#![no_main]

use edgepull_platform::{Facts, detect};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let (probes, cpuinfo) = input.split_once('\n').unwrap_or(("", input));
    let facts = Facts::from_texts(&probes.replace(';', "\n"), [("proc/cpuinfo", cpuinfo)]);
    if let Ok(host) = detect(&facts) {
        assert_eq!(
            host.runs.first().map(|runs| &runs.platform),
            Some(&host.platform)
        );
        assert!(serde_json::to_string(&host).is_ok());
    }
});
