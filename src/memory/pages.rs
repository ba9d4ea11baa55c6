//! Maps pages of memory: locked, kept out of dumps, wiped in a forked child. This is the only file
//! with `unsafe`.
//!
//! Each protection is requested separately, since a system may refuse any of them. The caller
//! handles a refusal.
#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

#[cfg(target_os = "linux")]
pub(super) use linux::Page;
#[cfg(not(target_os = "linux"))]
pub(super) use other::Page;

#[cfg(target_os = "linux")]
mod linux {
    use std::ptr::{self, NonNull};

    use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};

    use super::{AtomicU64, io};

    /// A mapping of one page, zeroed and referenced from nowhere else. Unmapped on drop.
    pub(in super::super) struct Page {
        at: NonNull<[u8; 32]>,
        len: usize,
    }

    impl Page {
        pub(in super::super) fn map() -> io::Result<Self> {
            let len = rustix::param::page_size();
            let access = ProtFlags::READ | ProtFlags::WRITE;
            // SAFETY: a fresh private anonymous mapping at an address of the kernel's choice
            // aliases nothing.
            let at = unsafe { mmap_anonymous(ptr::null_mut(), len, access, MapFlags::PRIVATE) }?;
            let at = NonNull::new(at.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
            Ok(Self { at, len })
        }

        /// Keeps it out of swap (mlock(2)).
        pub(in super::super) fn lock(&self) -> io::Result<()> {
            // SAFETY: the range is exactly this mapping. Locking changes no byte of it.
            Ok(unsafe { mlock(self.at.as_ptr().cast(), self.len) }?)
        }

        /// Keeps it out of core dumps (madvise(2), `MADV_DONTDUMP`).
        pub(in super::super) fn exclude_from_dumps(&self) -> io::Result<()> {
            self.advise(Advice::LinuxDontDump)
        }

        /// Makes the kernel replace it with zeros in a forked child (madvise(2), `MADV_WIPEONFORK`,
        /// since Linux 4.14).
        pub(in super::super) fn wipe_on_fork(&self) -> io::Result<()> {
            self.advise(Advice::LinuxWipeOnFork)
        }

        fn advise(&self, advice: Advice) -> io::Result<()> {
            // SAFETY: the range is exactly this mapping, and neither advice changes a byte of it in
            // this process. In a child the kernel's zeroing comes before any of its instructions,
            // and zeros are valid for all that is ever placed here.
            Ok(unsafe { madvise(self.at.as_ptr().cast(), self.len, advice) }?)
        }

        /// Splits the page into slots of 32 bytes. From now on it stays mapped forever.
        pub(in super::super) fn into_secrets(self) -> &'static mut [[u8; 32]] {
            let page = std::mem::ManuallyDrop::new(self);
            // SAFETY: page-aligned, zeroed, writable memory of this length that is never unmapped,
            // and nobody else has its address.
            unsafe { std::slice::from_raw_parts_mut(page.at.as_ptr(), page.len / 32) }
        }

        /// Returns the start of the page as a number, zero at first. From now on the page stays
        /// mapped forever.
        pub(super) fn into_counter(self) -> &'static AtomicU64 {
            let page = std::mem::ManuallyDrop::new(self);
            // SAFETY: page-aligned, zeroed, writable memory that is never unmapped is a valid
            // `AtomicU64` forever.
            unsafe { AtomicU64::from_ptr(page.at.as_ptr().cast()) }
        }
    }

    impl Drop for Page {
        fn drop(&mut self) {
            // SAFETY: the range is exactly this mapping, and nothing refers into it: `into_secrets`
            // and `into_counter` do not come here.
            let _ = unsafe { munmap(self.at.as_ptr().cast(), self.len) };
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    use super::{AtomicU64, io};

    /// There is no page.
    pub(in super::super) enum Page {}

    impl Page {
        pub(in super::super) fn map() -> io::Result<Self> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(in super::super) fn lock(&self) -> io::Result<()> {
            match *self {}
        }

        pub(in super::super) fn exclude_from_dumps(&self) -> io::Result<()> {
            match *self {}
        }

        pub(in super::super) fn wipe_on_fork(&self) -> io::Result<()> {
            match *self {}
        }

        pub(in super::super) fn into_secrets(self) -> &'static mut [[u8; 32]] {
            match self {}
        }

        pub(super) fn into_counter(self) -> &'static AtomicU64 {
            match self {}
        }
    }
}

/// A number that is zero in a forked child, whatever its parent wrote there. It is mapped at the
/// first look.
///
/// It has no lock: one that another thread holds at a fork would stay locked in the child forever.
pub(super) struct ForkMark(AtomicPtr<AtomicU64>);

/// The target of a [`ForkMark`] where the system has no such page. Never written.
static NONE: AtomicU64 = AtomicU64::new(0);

impl ForkMark {
    pub(super) const fn new() -> Self {
        Self(AtomicPtr::new(std::ptr::null_mut()))
    }

    /// Returns `None` where the system does not wipe pages on fork.
    pub(super) fn get(&self) -> Option<&'static AtomicU64> {
        let mut at = self.0.load(Ordering::Acquire);
        if at.is_null() {
            at = self.map();
        }
        // SAFETY: not null any more, so it came from a `&'static AtomicU64` in `map`.
        (!std::ptr::eq(at, &NONE)).then(|| unsafe { &*at })
    }

    /// Threads that race here each map a page, and all use the first one.
    #[cold]
    fn map(&self) -> *mut AtomicU64 {
        let page = Page::map().and_then(|page| page.wipe_on_fork().map(|()| page));
        let mine = std::ptr::from_ref(page.map_or(&NONE, Page::into_counter)).cast_mut();
        match self.0.compare_exchange(
            std::ptr::null_mut(),
            mine,
            Ordering::AcqRel,
            Ordering::Acquire,
        ) {
            Ok(_) => mine,
            Err(first) => first,
        }
    }
}

/// Runs tests in a forked child.
#[cfg(test)]
pub(super) mod forked {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use rustix::process::{Pid, WaitOptions, waitpid};

    /// Runs `work` in a forked child and fails if it panics there, or hangs.
    #[allow(clippy::unwrap_used, clippy::panic)]
    pub(in super::super) fn in_child(work: impl FnOnce()) {
        // SAFETY: the child runs `work` and leaves without running anything of the test harness.
        // glibc's allocator is usable in the child of a threaded process.
        match unsafe { libc::fork() } {
            0 => {
                // SAFETY: has no effect but to end this process if it hangs, on a lock that the
                // fork left behind for example.
                unsafe { libc::alarm(120) };
                let worked = catch_unwind(AssertUnwindSafe(work));
                // SAFETY: ends this process at once; nothing of it is needed any more.
                unsafe { libc::_exit(i32::from(worked.is_err())) }
            }
            child if child > 0 => {
                let (_, status) =
                    waitpid(Pid::from_raw(child), WaitOptions::empty()).unwrap().unwrap();
                assert_eq!(status.exit_status(), Some(0), "the child failed, or hung");
            }
            _ => panic!("fork failed"),
        }
    }

    /// Takes away the right to lock memory without limit, and leaves `bytes`.
    #[allow(clippy::unwrap_used)]
    pub(in super::super) fn limit_locked_memory(bytes: u64) {
        use rustix::process::{Resource, Rlimit, setrlimit};

        setrlimit(Resource::Memlock, Rlimit { current: Some(bytes), maximum: Some(bytes) })
            .unwrap();
        if rustix::process::geteuid().is_root() {
            // SAFETY: changes the user of this process, a child that only this test has, to one
            // without rights.
            assert_eq!(unsafe { libc::setresuid(65_534, 65_534, 65_534) }, 0);
        }
    }
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_zeros_and_is_unmapped_when_nothing_of_it_was_taken() {
        let page = Page::map().unwrap();
        page.lock().unwrap();
        page.exclude_from_dumps().unwrap();
        page.wipe_on_fork().unwrap();
        let secrets = page.into_secrets();
        assert_eq!(secrets.as_flattened().len(), rustix::param::page_size());
        assert!(secrets.as_flattened().iter().all(|byte| *byte == 0));
        // Neighbouring mappings are merged into one line of the list, so the total size is counted.
        let mapped = || {
            let status = std::fs::read_to_string("/proc/self/statm").unwrap();
            status.split(' ').next().unwrap().parse::<usize>().unwrap()
        };
        let before = mapped();
        for _ in 0..100_000 {
            drop(Page::map().unwrap());
        }
        assert!(mapped() < before + 50_000, "the pages are still there");
    }

    #[test]
    fn a_mark_is_zero_in_a_child_and_the_same_to_every_thread() {
        let mark = ForkMark::new();
        let marks: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| scope.spawn(|| std::ptr::from_ref(mark.get().unwrap()).addr()))
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(marks.iter().all(|at| *at == marks[0]));
        let mark = mark.get().unwrap();
        mark.store(7, Ordering::SeqCst);
        forked::in_child(|| assert_eq!(mark.load(Ordering::SeqCst), 0));
        assert_eq!(mark.load(Ordering::SeqCst), 7);
    }
}
