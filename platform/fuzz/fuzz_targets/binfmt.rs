//! Any text in the kernel's table of interpreters.
#![no_main]

use edgepull_platform::{Facts, How, detect};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    let files = [("proc/sys/fs/binfmt_misc/entry", input)];
    let facts = Facts::from_texts("uname_machine=aarch64\npersonality_per_linux32=ok", files);
    let host = detect(&facts).expect("an arm64 host");
    assert_eq!(host.runs_natively().count(), 5);
    let emulated = host
        .runs
        .iter()
        .skip(5)
        .all(|runs| runs.how == How::Emulated && runs.interpreter.is_some());
    assert!(emulated);
});
