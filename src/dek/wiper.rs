//! Destroys keys on time, in an idle process too: one thread per process, started by the first DEK.
#![forbid(unsafe_code)]

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Duration;

use super::registry::{Leased, Registry};
use crate::memory::fork::PerProcess;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, process_static, thread};

/// The longest time between two looks while there are DEKs: a suspended machine, or a clock that was set, is noticed this long after.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// The shortest, so that many deadlines are met in one look.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);
/// How soon keys that were in use at their deadline are tried again.
const RETRY: Duration = Duration::from_millis(5);

/// The thread of this process, and what it looks after.
#[derive(Default)]
struct Wiper {
    work: Mutex<Work>,
    woken: Condvar,
    /// The thread is there, or is being started.
    is_alive: AtomicBool,
}

#[derive(Default)]
struct Work {
    registries: Vec<Weak<Registry>>,
    /// Something was added that does not wait for the next look.
    pressing: bool,
    /// There was nothing to look after, so there is no next look.
    asleep: bool,
}

process_static! {
    static WIPER: PerProcess<Wiper> = PerProcess::new();
}

/// From here on the DEK is wiped on time.
pub(super) fn look_after<D: Leased + 'static>(registry: &Arc<Registry>, dek: &Arc<D>) {
    let left = registry.add(dek);
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
}

/// Starts the thread where it is missing: it could not be started before, or it is gone. Whoever cannot start it either does its
/// work for one registry.
pub(super) fn ensure_alive(registry: &Registry) {
    let wiper = WIPER.get_or_init(Wiper::default);
    if wiper.is_alive.load(Ordering::Relaxed) || wiper.is_alive.swap(true, Ordering::SeqCst) {
        return;
    }
    let its = wiper.clone();
    let started = thread::Builder::new().name("waxseal-wiper".to_owned()).spawn(move || {
        // However it ends, the next DEK starts another.
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
            // A panic in one registry keeps no other's keys in memory.
            let sweep = |registry: &Arc<Registry>| {
                catch_unwind(AssertUnwindSafe(|| registry.sweep(RETRY))).unwrap_or(Some(LONGEST_WAIT))
            };
            let next = known.iter().filter_map(sweep).min();
            // A source that was dropped meanwhile goes with this, outside every lock.
            drop(known);
            let mut work = self.lock();
            match next {
                Some(next) => {
                    let next = if next == RETRY { next } else { next.clamp(SHORTEST_WAIT, LONGEST_WAIT) };
                    drop(self.woken.wait_timeout_while(work, next, |work| !work.pressing));
                }
                None => {
                    // What was added since the look is not lost: it found the wiper awake, so look once more.
                    work.asleep = work
                        .registries
                        .iter()
                        .all(|registry| registry.upgrade().is_none_or(|registry| registry.is_empty()));
                    if work.asleep {
                        drop(self.woken.wait_while(work, |work| !work.pressing));
                    }
                }
            }
        }
    }
}
