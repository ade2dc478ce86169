//! A layer's tar: every entry, and the contents of every other one. As it is, and with the
//! checksum of every block made right, which chance never does.
#![no_main]

use edgepull::layout::{LayerEntries, Piece};
use libfuzzer_sys::fuzz_target;

fn read(bytes: &[u8]) {
    let mut entries = LayerEntries::new(bytes);
    let mut with_content = true;
    while let Ok(Some(entry)) = entries.next_entry() {
        assert!(
            !entry
                .path
                .split(|byte| *byte == b'/')
                .any(|part| part == b"..")
        );
        let mut data = 0;
        while let (true, Ok(Some(piece))) = (with_content, entries.next_piece()) {
            if let Piece::Data(piece) = piece {
                data += piece.len();
            }
        }
        assert!(data <= bytes.len());
        with_content = !with_content;
    }
}

fuzz_target!(|data: &[u8]| {
    read(data);
    let mut valid = data.to_vec();
    for block in valid
        .chunks_exact_mut(512)
        .filter(|block| block.iter().any(|byte| *byte != 0))
    {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    read(&valid);
});
