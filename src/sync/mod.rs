//! Everything that threads share and wait on, in one place, so that tests can replace threads with
//! a schedule explorer.
//!
//! In every build except the schedule tests (`--cfg shuttle`, see tests/schedules) these are the
//! standard library's types. There they are shuttle's, which may switch threads at each operation.
//! Shuttle does not see `arc-swap`, which is lock-free, or the fork mark. Neither waits for another
//! thread, so that is fine. Memory orderings weaker than `SeqCst` are not explored.
#![forbid(unsafe_code)]

pub(crate) mod foreign;
pub(crate) mod shards;
pub(crate) mod slot;
pub(crate) mod wakers;

#[cfg(not(all(test, shuttle)))]
mod imp {
    pub(crate) use std::sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, TryLockError, Weak, atomic,
    };
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
