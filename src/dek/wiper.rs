//! Destroys keys on time, even in an idle process. There is one thread per process, started by the
//! first DEK.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use super::registry::{Leased, Registry};
use crate::memory::fork::PerProcess;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, process_static, thread};

/// The longest time between two looks while there are DEKs. Suspension of the machine or a change
/// to the clock is noticed after at most this time.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// The shortest time between two looks, so that one look handles many deadlines.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);
/// The pause before retrying keys that were in use at their deadline.
const RETRY: Duration = Duration::from_millis(5);

/// The wiping thread of this process and the registries that it looks after.
#[derive(Default)]
struct Wiper {
    work: Mutex<Work>,
    woken: Condvar,
    /// The thread runs or is being started.
    is_alive: AtomicBool,
}

#[derive(Default)]
struct Work {
    registries: Vec<Weak<Registry>>,
    /// An added DEK needs a look before the next regular one.
    pressing: bool,
    /// There are no DEKs, so no next look is planned.
    asleep: bool,
}

process_static! {
    static WIPER: PerProcess<Wiper> = PerProcess::new();
}

/// Registers the DEK that `make` returns to be wiped on time. `make` runs under the registry's
/// lock.
pub(super) fn look_after<D: Leased + 'static>(
    registry: &Arc<Registry>,
    make: impl FnOnce() -> Option<Arc<D>>,
) -> Option<Arc<D>> {
    let (dek, left) = registry.add(make)?;
    let wiper = WIPER.get_or_init(Wiper::default);
    let mut work = wiper.lock();
    if !registry.known.swap(true, Ordering::Relaxed) {
        work.registries.push(Arc::downgrade(registry));
    }
    if left < LONGEST_WAIT || work.asleep {
        work.pressing = true;
        drop(work);
        wiper.woken.notify_one();
    } else {
        drop(work);
    }
    ensure_alive(registry);
    Some(dek)
}

/// Starts the thread if it has ended or could not be started before. If it still cannot be started,
/// sweeps this registry instead.
pub(super) fn ensure_alive(registry: &Arc<Registry>) {
    let wiper = WIPER.get_or_init(Wiper::default);
    if wiper.is_alive.load(Ordering::Relaxed) || wiper.is_alive.swap(true, Ordering::SeqCst) {
        return;
    }
    let its = wiper.clone();
    let started = thread::Builder::new().name("waxseal-wiper".to_owned()).spawn(move || {
        // However the thread ends, the next DEK starts another.
        let end = catch_unwind(AssertUnwindSafe(|| its.run()));
        its.is_alive.store(false, Ordering::SeqCst);
        if let Err(panic) = end {
            resume_unwind(panic);
        }
    });
    if started.is_err() {
        wiper.is_alive.store(false, Ordering::SeqCst);
        registry.sweep(RETRY);
    }
}

impl Wiper {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        loop {
            let known: Vec<Arc<Registry>> = {
                let mut work = self.lock();
                (work.pressing, work.asleep) = (false, false);
                work.registries.retain(|registry| registry.strong_count() > 0);
                work.registries.iter().filter_map(Weak::upgrade).collect()
            };
            // A panic in one registry does not keep the keys of others in memory.
            let sweep = |registry: &Arc<Registry>| {
                catch_unwind(AssertUnwindSafe(|| registry.sweep(RETRY)))
                    .unwrap_or(Some(LONGEST_WAIT))
            };
            let next = known.iter().filter_map(sweep).min();
            // The last reference to a source may be dropped here, outside every lock.
            drop(known);
            let mut work = self.lock();
            match next {
                Some(next) => {
                    let next =
                        if next == RETRY { next } else { next.clamp(SHORTEST_WAIT, LONGEST_WAIT) };
                    drop(self.woken.wait_timeout_while(work, next, |work| !work.pressing));
                }
                None => {
                    // A DEK that was added since the look found the wiper awake, so look once more.
                    work.asleep = work.registries.iter().all(|registry| {
                        registry.upgrade().is_none_or(|registry| registry.is_empty())
                    });
                    if work.asleep {
                        drop(self.woken.wait_while(work, |work| !work.pressing));
                    }
                }
            }
        }
    }
}
