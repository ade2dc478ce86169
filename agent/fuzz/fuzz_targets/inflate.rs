//! Layers in gzip, in zstd or plain, as far as a megabyte.
#![no_main]

use std::io::Read;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(reader) = edgepull::layout::inflated(data) {
        let mut plain = Vec::new();
        let _ = reader.take(1 << 20).read_to_end(&mut plain);
    }
});
