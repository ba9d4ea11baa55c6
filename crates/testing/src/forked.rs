//! What a provider says in the child of a fork.
#![allow(unsafe_code)]

use rustix::process::{Pid, WaitOptions, waitpid};
use waxseal::kek::{KekError, KekErrorClass, KekProvider};

use crate::support::{a_dek, block_on, context};

/// Runs `check` in a child of this process and asserts that it holds there. The child runs nothing
/// of the test harness, and is ended if it waits.
pub fn in_a_child(check: impl FnOnce() -> bool) {
    // SAFETY: the child runs the library and leaves without running anything of the test harness.
    // glibc's allocator is usable in the child of a threaded process.
    match unsafe { libc::fork() } {
        0 => {
            // SAFETY: ends a child that waits, instead of this test's answer.
            unsafe { libc::alarm(30) };
            let status = if check() { 17 } else { 1 };
            // SAFETY: ends this process at once.
            unsafe { libc::_exit(status) }
        }
        child if child > 0 => {
            let (_, status) = waitpid(Pid::from_raw(child), WaitOptions::empty()).unwrap().unwrap();
            assert_eq!(status.exit_status(), Some(17));
        }
        _ => panic!("fork failed"),
    }
}

/// A provider that a fork left without its runtime returns an error instead of hanging. What it
/// knows without a call it still says, and in the parent it continues.
pub fn a_child_is_told_to_build_its_own(kek: &dyn KekProvider) {
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = block_on(kek.wrap(&alice, &dek)).unwrap();
    in_a_child(|| {
        let is_told = |error: KekError| error.class() == KekErrorClass::Misconfigured;
        block_on(kek.unwrap(&alice, &wrapped)).is_err_and(is_told)
            && block_on(kek.wrap(&alice, &dek)).is_err_and(is_told)
            && block_on(kek.health()).is_err_and(is_told)
            && kek.is_current(&wrapped) == Some(true)
    });
    let unwrapped = block_on(kek.unwrap(&alice, &wrapped)).unwrap();
    assert_eq!(unwrapped.expose(), dek.expose(), "the parent goes on");
}
