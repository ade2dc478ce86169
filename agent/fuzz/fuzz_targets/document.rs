//! Indexes, manifests and configs from registries.
#![no_main]

use bytes::Bytes;
use edgepull::oci::{Document, ImageConfig, MediaType, Verified};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let verified = Verified::of(Bytes::copy_from_slice(data));
    for said in [
        None,
        Some("text/plain"),
        Some(MediaType::OCI_INDEX),
        Some(MediaType::OCI_MANIFEST),
    ] {
        let _ = Document::parse(&verified, said);
    }
    let _ = ImageConfig::parse(&verified);
});
