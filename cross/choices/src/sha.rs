//! SHA-256 of 16 MiB, in pieces of 64 KiB as bodies arrive.

use crate::mark;

const TOTAL: usize = 16 << 20;

pub fn run() {
    let piece: Vec<u8> = (0..1 << 16).map(|i: u32| ((i * 31) >> 3) as u8).collect();
    let pieces = || std::iter::repeat_n(&piece[..], TOTAL >> 16);
    let hash: Vec<u8> = mark::stretch(1, "sha256", TOTAL, || {
        #[cfg(feature = "sha-ring")]
        let hash = {
            let mut context = ring::digest::Context::new(&ring::digest::SHA256);
            pieces().for_each(|piece| context.update(piece));
            context.finish().as_ref().to_vec()
        };
        #[cfg(feature = "sha-aws")]
        let hash = {
            let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
            pieces().for_each(|piece| context.update(piece));
            context.finish().as_ref().to_vec()
        };
        #[cfg(feature = "sha-sha2")]
        let hash = {
            use sha2::Digest;
            let mut context = sha2::Sha256::new();
            pieces().for_each(|piece| context.update(piece));
            context.finalize().to_vec()
        };
        hash
    });
    let text: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    println!("# {text}");
}
