//! The records of a tar's extended headers.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| edgepull::layout::fuzz_pax(data));
