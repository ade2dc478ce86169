//! The allocators: one of them for the small programs, all of them, to be chosen by
//! `CHOICES_ALLOCATOR`, for the product (which takes minutes to link, and once is enough).

#[cfg(all(not(feature = "agent"), feature = "alloc-mimalloc"))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[cfg(all(not(feature = "agent"), feature = "alloc-dlmalloc"))]
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

#[cfg(all(not(feature = "agent"), feature = "alloc-rlsf"))]
#[global_allocator]
static ALLOCATOR: rlsf::SmallGlobalTlsf = rlsf::SmallGlobalTlsf::new();

#[cfg(feature = "agent")]
mod chosen {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::sync::atomic::{AtomicU8, Ordering};

    #[global_allocator]
    static ALLOCATOR: Chosen = Chosen;

    static RLSF: rlsf::SmallGlobalTlsf = rlsf::SmallGlobalTlsf::new();

    struct Chosen;

    /// First letter of `CHOICES_ALLOCATOR`; the C library's where it is not set.
    fn which() -> u8 {
        static WHICH: AtomicU8 = AtomicU8::new(0);
        match WHICH.load(Ordering::Relaxed) {
            0 => {
                // SAFETY: read before there is a second thread, of memory that stays.
                let letter = unsafe {
                    let value = libc::getenv(c"CHOICES_ALLOCATOR".as_ptr());
                    if value.is_null() {
                        b's'
                    } else {
                        value.cast::<u8>().read()
                    }
                };
                WHICH.store(letter, Ordering::Relaxed);
                letter
            }
            letter => letter,
        }
    }

    // SAFETY: hands every call to the one allocator that the process has chosen.
    unsafe impl GlobalAlloc for Chosen {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            unsafe {
                match which() {
                    b'm' => mimalloc::MiMalloc.alloc(layout),
                    b'd' => dlmalloc::GlobalDlmalloc.alloc(layout),
                    b'r' => RLSF.alloc(layout),
                    _ => System.alloc(layout),
                }
            }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            unsafe {
                match which() {
                    b'm' => mimalloc::MiMalloc.alloc_zeroed(layout),
                    b'd' => dlmalloc::GlobalDlmalloc.alloc_zeroed(layout),
                    b'r' => RLSF.alloc_zeroed(layout),
                    _ => System.alloc_zeroed(layout),
                }
            }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            unsafe {
                match which() {
                    b'm' => mimalloc::MiMalloc.dealloc(block, layout),
                    b'd' => dlmalloc::GlobalDlmalloc.dealloc(block, layout),
                    b'r' => RLSF.dealloc(block, layout),
                    _ => System.dealloc(block, layout),
                }
            }
        }

        unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
            unsafe {
                match which() {
                    b'm' => mimalloc::MiMalloc.realloc(block, layout, size),
                    b'd' => dlmalloc::GlobalDlmalloc.realloc(block, layout, size),
                    b'r' => RLSF.realloc(block, layout, size),
                    _ => System.realloc(block, layout, size),
                }
            }
        }
    }
}
