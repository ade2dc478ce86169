//! A gzip file of the command line, inflated through a buffer of 64 KiB.

use std::io::Read;

use flate2::read::MultiGzDecoder;

use crate::mark;

pub fn run(path: &str) {
    let packed = std::fs::read(path).expect("the file of the command line");
    let mut buffer = vec![0; 1 << 16];
    let mut total = 0_usize;
    let mut sum = 0_u32;
    let mut all = 0;
    mark::stretch(1, "inflate", packed.len(), || {
        let mut reader = MultiGzDecoder::new(&packed[..]);
        loop {
            let got = reader.read(&mut buffer).expect("a whole gzip file");
            if got == 0 {
                break;
            }
            total += got;
            sum = sum.rotate_left(1) ^ u32::from(buffer[got - 1]);
            all += 1;
        }
    });
    println!("# {total} bytes in {all} reads, {sum:08x}");
}
