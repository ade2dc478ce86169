//! What the C library's memory functions cost: every byte that is fetched is copied a few times.

use std::hint::black_box;

use crate::mark;

const TOTAL: usize = 16 << 20;
const PIECE: usize = 1 << 14;

pub fn run() {
    let mut from = vec![1_u8; PIECE + 64];
    let mut to = vec![2_u8; PIECE + 64];
    let times = || 0..TOTAL / PIECE;
    mark::stretch(1, "memcpy", TOTAL, || {
        for _ in times() {
            to[..PIECE].copy_from_slice(&black_box(&from)[..PIECE]);
            black_box(&mut to);
        }
    });
    mark::stretch(2, "memcpy-unaligned", TOTAL, || {
        for _ in times() {
            to[3..PIECE + 3].copy_from_slice(&black_box(&from)[8..PIECE + 8]);
            black_box(&mut to);
        }
    });
    mark::stretch(3, "memmove-down", TOTAL, || {
        for _ in times() {
            black_box(&mut from).copy_within(5..PIECE + 5, 0);
        }
    });
    mark::stretch(4, "memmove-up", TOTAL, || {
        for _ in times() {
            black_box(&mut from).copy_within(0..PIECE, 5);
        }
    });
    mark::stretch(5, "memset", TOTAL, || {
        for _ in times() {
            black_box(&mut from)[..PIECE].fill(3);
        }
    });
    mark::stretch(6, "memcmp", TOTAL, || {
        from.fill(1);
        to.fill(1);
        for _ in times() {
            black_box(black_box(&from)[..PIECE] == black_box(&to)[..PIECE]);
        }
    });
}
