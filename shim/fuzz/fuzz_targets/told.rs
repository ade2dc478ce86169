//! What containerd tells a shim in other ways: its command line, and the runtime's options in each form.
#![no_main]

use edgepull_shim::bundle;
use edgepull_shim::cli::Flags;
use edgepull_shim::wire::Any;
use edgepull_shim::wire::options::{
    OLD_OPTIONS, OLD_RUNTIME, OPTIONS, RUNTIME_OPTIONS, RuntimeOptions,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        drop(Flags::parse(text.split('\n').map(str::to_owned)));
        if bundle::check_id(text).is_ok() {
            assert!(!text.contains('/') && !text.starts_with('.'));
        }
    }
    for name in [OPTIONS, OLD_OPTIONS, OLD_RUNTIME] {
        drop(bundle::options(Some(&Any {
            type_url: name.to_owned(),
            value: bytes.to_vec(),
        })));
    }
    // Not bytes of its own: a name of a file in them would be read.
    let envelope = RuntimeOptions {
        config_body: bytes.to_vec(),
        ..RuntimeOptions::default()
    };
    drop(bundle::options(Some(&Any::new(RUNTIME_OPTIONS[0], &envelope))));
});
