//! What threads share and wait on, from one place, so that the tests can put a schedule explorer in the threads' place.
//!
//! In every build but that of the schedule tests (`--cfg shuttle`, see tests/schedules) these are the standard library's own types.
//! There they are shuttle's, which gives control away at each operation. Not seen by it, and not in need of it since they never wait
//! while another thread is in the middle of something: `arc-swap` (lock-free), `async-lock` (its locks are held
//! only within a call that gives no control away), the fork mark. Memory orderings weaker than `SeqCst` are not explored.
#![forbid(unsafe_code)]

pub(crate) mod shards;
pub(crate) mod slot;

#[cfg(not(all(test, shuttle)))]
mod imp {
    pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, TryLockError, Weak, atomic};
    pub(crate) use std::{thread, thread_local};

    /// A static of the process.
    macro_rules! process_static {
        ($(#[$attribute:meta])* static $name:ident: $type:ty = $value:expr;) => {
            $(#[$attribute])*
            static $name: $type = $value;
        };
    }
    pub(crate) use process_static;
}

#[cfg(all(test, shuttle))]
#[path = "../../tests/schedules/sync.rs"]
mod imp;

pub(crate) use imp::*;
