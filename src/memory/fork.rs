//! A number that changes in the child of a fork, for the price of one memory read.
//!
//! On Linux one page of the process is marked `MADV_WIPEONFORK` (madvise(2), since Linux 4.14): the kernel gives a forked
//! child a page of zeros in its place. A zero therefore says "nobody has looked since the fork". Where the mark
//! cannot be had, the process id is compared at each look, which costs a system call.
#![allow(unsafe_code)]

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Counts the forks between the first process that used the library and this one, plus one.
static GENERATION: AtomicU64 = AtomicU64::new(0);

/// For systems without the mark: the process that `GENERATION` was last counted for.
static PROCESS: AtomicU32 = AtomicU32::new(0);

static MARK: OnceLock<Option<&'static AtomicU32>> = OnceLock::new();

/// The fork generation of this process. What was made under another one belongs to an ancestor.
pub(crate) fn generation() -> u64 {
    match MARK.get_or_init(map_mark) {
        Some(mark) => {
            if mark.load(Ordering::Acquire) == 0 {
                // The count moves before the mark is set: whoever sees the mark sees the new count. Two threads
                // that race here count twice, which only discards a little more.
                GENERATION.fetch_add(1, Ordering::AcqRel);
                mark.store(1, Ordering::Release);
            }
        }
        None => {
            let process = std::process::id();
            if PROCESS.load(Ordering::Acquire) != process {
                GENERATION.fetch_add(1, Ordering::AcqRel);
                PROCESS.store(process, Ordering::Release);
            }
        }
    }
    GENERATION.load(Ordering::Acquire)
}

#[cfg(target_os = "linux")]
fn map_mark() -> Option<&'static AtomicU32> {
    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

    let len = rustix::param::page_size();
    // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice aliases nothing.
    let page =
        unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) }
            .ok()?;
    // SAFETY: the range is exactly the mapping just made, and nothing refers into it yet.
    if unsafe { madvise(page, len, Advice::LinuxWipeOnFork) }.is_err() {
        // SAFETY: as above; it is not used after this.
        let _ = unsafe { munmap(page, len) };
        return None;
    }
    // SAFETY: page-aligned, zeroed, writable memory that is never unmapped is a valid `AtomicU32` for ever. The
    // kernel's zeroing at a fork happens in the child before any of its instructions runs, so it races with none.
    Some(unsafe { AtomicU32::from_ptr(page.cast()) })
}

#[cfg(not(target_os = "linux"))]
fn map_mark() -> Option<&'static AtomicU32> {
    None
}

#[cfg(test)]
mod tests {
    use super::generation;

    #[test]
    fn the_generation_stands_still_without_a_fork() {
        let first = generation();
        assert!(first >= 1);
        for _ in 0..1000 {
            assert_eq!(generation(), first);
        }
        let other_thread = std::thread::spawn(generation).join().unwrap();
        assert_eq!(other_thread, first);
    }
}
