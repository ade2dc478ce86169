//! A CPU without crypto extensions, for every library that asks the C library what the CPU has:
//! with `CHOICES_BLIND` set, `getauxval` hides AES, PMULL, SHA-1 and SHA-2. The program is
//! static, so this one is found before the C library's.
//!
//! The standard library's own detection may read the vector elsewhere; no candidate uses it
//! for these. `measure` checks that the counts differ where they must.

#[cfg(any(target_arch = "aarch64", target_arch = "arm"))]
mod arm {
    use core::ffi::c_ulong;

    unsafe extern "C" {
        fn __getauxval(item: c_ulong) -> c_ulong;
    }

    /// `AT_HWCAP` and bits 3 to 6 on arm64, `AT_HWCAP2` and bits 0 to 3 on 32-bit Arm.
    const HIDDEN: (c_ulong, c_ulong) = if cfg!(target_arch = "aarch64") {
        (16, 0b1111 << 3)
    } else {
        (26, 0b1111)
    };

    #[unsafe(no_mangle)]
    extern "C" fn getauxval(item: c_ulong) -> c_ulong {
        // SAFETY: both only read what the kernel gave the process, and nothing writes it.
        let (value, blind) = unsafe {
            (
                __getauxval(item),
                !libc::getenv(c"CHOICES_BLIND".as_ptr()).is_null(),
            )
        };
        if blind && item == HIDDEN.0 {
            value & !HIDDEN.1
        } else {
            value
        }
    }
}
