//! Whether AES costs these cores little. A Raspberry Pi up to 4 has no instructions for
//! it: there ChaCha20-Poly1305 is cheaper for the same protection, and servers conclude
//! from the order of a client's offer what it is good at (`cross/CHOICES.md` has the
//! figures).

/// Told by the kernel or the core, of what the TLS library makes use of: on 32-bit Arm
/// it knows no such instructions, whatever the core has.
pub(super) fn is_cheap() -> bool {
    #[cfg(any(target_arch = "x86_64", target_arch = "x86"))]
    return std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "x86", target_arch = "aarch64")))]
    return false;
}
