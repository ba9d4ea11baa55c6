//! Wiping, protected memory for secrets that wipe themselves, and detection of forks.
//!
//! The bottom layer: it imports nothing else from the crate. `pages` is the only file with
//! `unsafe`.
#![deny(unsafe_code)]

mod arena;
pub(crate) mod fork;
mod pages;
mod protection;
mod secret;
mod spare;

pub use arena::memory_protection;
pub(crate) use arena::protection_notice;
pub use protection::MemoryProtection;
pub(crate) use secret::Secret32;
pub(crate) use spare::{wipe_and_keep, zeros};

/// Overwrites `bytes` with zeros at the speed of `memset`. The compiler may not remove it.
///
/// `Zeroize` writes byte by byte, which for bulk plaintext costs more than its decryption.
pub(crate) fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    zeroize::optimization_barrier(bytes);
}

/// Runs `work` with the 32 KiB of stack below this call overwritten before and after. A value that
/// is made on the stack and moved leaves a copy there. Its unused bytes (the rest of an enum with a
/// small variant) carry earlier stack content to places that nothing wipes.
pub(crate) fn leaving_no_trace_on_the_stack<R>(work: impl FnOnce() -> R) -> R {
    const ROOM: usize = 32 * 1024;
    overwrite_the_stack::<ROOM>();
    overwriting_the_stack_after::<ROOM, R>(work)
}

/// Runs `work` and then overwrites `ROOM` bytes of the stack below this call.
pub(crate) fn overwriting_the_stack_after<const ROOM: usize, R>(work: impl FnOnce() -> R) -> R {
    #[inline(never)]
    fn apart<R>(work: impl FnOnce() -> R) -> R {
        std::hint::black_box(work)()
    }

    let result = apart(work);
    overwrite_the_stack::<ROOM>();
    result
}

#[inline(never)]
fn overwrite_the_stack<const ROOM: usize>() {
    let room = [0_u8; ROOM];
    zeroize::optimization_barrier(&room);
}

#[cfg(test)]
pub(crate) mod tests {
    use super::wipe;

    /// Returns how far below its own frame `work` wrote to the stack.
    #[cfg(target_os = "linux")]
    pub(crate) fn depth_on_the_stack(work: impl FnOnce() -> usize) -> usize {
        use std::hint::black_box;
        use std::os::unix::fs::FileExt;

        const PAINTED: usize = 64 * 1024;
        #[inline(never)]
        fn paint() -> usize {
            black_box(&black_box([0xA7_u8; PAINTED])).as_ptr().addr()
        }
        #[inline(never)]
        fn apart(work: impl FnOnce() -> usize) -> usize {
            black_box(work)()
        }
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let mut painted = vec![0; PAINTED];
        let lowest = paint();
        let here = apart(work);
        memory.read_exact_at(&mut painted, lowest.try_into().unwrap()).unwrap();
        here - lowest - painted.iter().position(|byte| *byte != 0xA7).unwrap()
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn what_was_on_the_stack_is_overwritten() {
        use std::os::unix::fs::FileExt;

        // Leaves a pattern on the stack, far deeper than the search reaches, and returns its place.
        fn leave() -> usize {
            let secret = std::hint::black_box([0xA7_u8; 16 * 1024]);
            std::hint::black_box(&secret).as_ptr().addr()
        }
        #[inline(never)]
        fn apart(work: fn() -> usize) -> usize {
            std::hint::black_box(work)()
        }
        let memory = std::fs::File::open("/proc/self/mem").unwrap();
        let left = |at: usize| {
            let mut bytes = [0; 256];
            memory.read_exact_at(&mut bytes, at.try_into().unwrap()).unwrap();
            bytes.iter().filter(|byte| **byte == 0xA7).count()
        };
        assert!(left(apart(leave)) > 64, "the control");
        assert_eq!(left(super::leaving_no_trace_on_the_stack(leave)), 0);
    }

    #[test]
    fn wipe_leaves_only_zeros() {
        for len in [0, 1, 15, 16, 17, 4096, 100_003] {
            let mut bytes = vec![0xA5; len];
            wipe(&mut bytes);
            assert!(bytes.iter().all(|byte| *byte == 0), "{len} bytes");
        }
    }
}
