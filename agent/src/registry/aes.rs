//! Whether this host's cores have instructions for AES. A Raspberry Pi up to 4 has none:
//! there ChaCha20-Poly1305 is cheaper for the same protection, and servers conclude from
//! the order of a client's offer what it is good at (`cross/CHOICES.md` has the figures).

/// Told by the kernel or the core; unknown counts as no.
pub(super) fn in_hardware() -> bool {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    return std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(target_arch = "arm")]
    return std::fs::read("/proc/self/auxv").is_ok_and(|words| in_vector(&words));
    #[cfg(not(any(
        target_arch = "x86_64",
        target_arch = "x86",
        target_arch = "aarch64",
        target_arch = "arm"
    )))]
    return false;
}

/// Whether the auxiliary vector of a 32-bit Arm process (proc(5): pairs of key and value)
/// has the AES instructions that 64-bit cores have in their 32-bit state.
#[cfg(any(target_arch = "arm", test))]
fn in_vector(words: &[u8]) -> bool {
    const AT_HWCAP2: u32 = 26;
    const HWCAP2_AES: u32 = 1;
    let word = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).map_or(0, u32::from_ne_bytes);
    words.chunks_exact(8).any(|pair| {
        let (key, value) = pair.split_at(4);
        word(key) == AT_HWCAP2 && word(value) & HWCAP2_AES != 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vector(pairs: &[(u32, u32)]) -> Vec<u8> {
        let words = pairs.iter().flat_map(|(key, value)| [*key, *value]);
        words.flat_map(u32::to_ne_bytes).collect()
    }

    #[test]
    fn the_capability_is_found_in_the_vector() {
        assert!(in_vector(&vector(&[(16, 0), (26, 0x1f), (0, 0)])));
        assert!(!in_vector(&vector(&[(16, 1), (26, 0x1e), (0, 0)])));
        assert!(!in_vector(&vector(&[(16, 1), (0, 0)])));
        assert!(!in_vector(&[]));
        assert!(!in_vector(&vector(&[(26, 1)])[..7]), "cut off");
    }
}
