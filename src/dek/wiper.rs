//! Destroys keys on time, in an idle process too: one thread per process, started by the first DEK.
#![forbid(unsafe_code)]

use std::cmp::{Ordering as Order, Reverse};
use std::collections::BinaryHeap;
use std::time::Duration;

use arc_swap::ArcSwapOption;

use super::lease::Lease;
use crate::memory::clock::{Clock, Moment};
use crate::memory::fork;
use crate::observer::Event;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, process_static, thread};

/// The longest time between two looks while there are DEKs: a suspended machine, or a clock that was set, is noticed this long after.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// The shortest, so that many deadlines are met in one look.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);
/// How soon keys that were in use at their deadline are tried again.
const RETRY: Duration = Duration::from_millis(5);

/// Whatever has keys to be destroyed at a moment.
pub(super) trait Mortal: Send + Sync {
    fn lease(&self) -> &Lease;
}

/// The DEKs of one source, by the end of their last possible use. The wiper holds them weakly, and so does this.
pub(super) struct Registry {
    due: Mutex<Due>,
    /// The wiper knows it.
    known: AtomicBool,
}

#[derive(Default)]
struct Due {
    entries: BinaryHeap<Reverse<Entry>>,
    clock: Clock,
}

struct Entry {
    gone: Moment,
    dek: Weak<dyn Mortal>,
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Order::Equal
    }
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Order> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    fn cmp(&self, other: &Self) -> Order {
        self.gone.cmp_by_boot(other.gone)
    }
}

impl Registry {
    pub(super) fn new(clock: Clock) -> Arc<Self> {
        let due = Mutex::new(Due { entries: BinaryHeap::new(), clock });
        Arc::new(Self { due, known: AtomicBool::new(false) })
    }

    fn lock(&self) -> MutexGuard<'_, Due> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From here on the DEK is wiped on time.
    pub(super) fn add(self: &Arc<Self>, dek: Weak<dyn Mortal>, gone: Moment) {
        let soon = {
            let mut due = self.lock();
            // Now and then, so that the heap does not grow with DEKs that were replaced and dropped long before their deadline.
            if due.entries.len() >= 1024 && due.entries.len().is_power_of_two() {
                due.entries.retain(|Reverse(entry)| entry.dek.strong_count() > 0);
            }
            due.entries.push(Reverse(Entry { gone, dek }));
            due.clock.now().until(gone) < LONGEST_WAIT
        };
        tell_wiper(self, soon);
    }

    fn is_empty(&self) -> bool {
        self.lock().entries.is_empty()
    }

    /// Ends every DEK that `which` picks, and waits until their keys are gone.
    pub(super) fn end_where(&self, which: impl Fn(&Lease) -> bool) {
        let chosen: Vec<Arc<dyn Mortal>> = {
            let due = self.lock();
            due.entries
                .iter()
                .filter_map(|Reverse(entry)| entry.dek.upgrade())
                .filter(|dek| which(dek.lease()))
                .collect()
        };
        for dek in chosen {
            end_now(&*dek);
        }
    }

    /// As [`end_where`](Self::end_where) for all, unless somebody holds the lock who may be gone: for the child of a fork.
    pub(super) fn try_end_all(&self) {
        let Ok(due) = self.due.try_lock() else { return };
        for dek in due.entries.iter().filter_map(|Reverse(entry)| entry.dek.upgrade()) {
            dek.lease().end();
        }
    }

    /// Ends what is due; when to look again, if there is anything left.
    fn sweep(&self) -> Option<Duration> {
        let (mut ended, mut in_use) = (Vec::new(), Vec::new());
        let mut due = self.lock();
        let now = due.clock.now();
        // The heap is in the order of one clock. Where the other went further, anything in it may be due.
        let is_over = |entry: &Entry| now.is_past(entry.gone) || entry.dek.strong_count() == 0;
        let mut over = Vec::new();
        while due.entries.peek().is_some_and(|Reverse(entry)| is_over(entry)) {
            over.extend(due.entries.pop());
        }
        if due.entries.iter().any(|Reverse(entry)| now.is_past(entry.gone)) {
            let (more, rest): (Vec<_>, Vec<_>) = due.entries.drain().partition(|Reverse(entry)| is_over(entry));
            over.extend(more);
            due.entries = rest.into();
        }
        for Reverse(entry) in over {
            let Some(dek) = entry.dek.upgrade() else { continue };
            if dek.lease().end() {
                ended.push(dek);
            } else {
                in_use.push(Reverse(entry));
            }
        }
        let retry = !in_use.is_empty();
        due.entries.extend(in_use);
        let next = due.entries.peek().map(|Reverse(entry)| now.until(entry.gone));
        drop(due);
        for dek in ended {
            announce(&*dek);
        }
        next.map(|next| if retry { RETRY } else { next.clamp(SHORTEST_WAIT, LONGEST_WAIT) })
    }
}

/// Ends a DEK and waits for whoever is in the middle of using it.
pub(super) fn end_now(dek: &dyn Mortal) {
    while !dek.lease().end() {
        thread::sleep(Duration::from_micros(50));
    }
    announce(dek);
}

/// Tells that the keys of a DEK are gone, once.
pub(super) fn announce(dek: &dyn Mortal) {
    let lease = dek.lease();
    if lease.is_first_to_announce_the_end() {
        lease.observers.tell(&Event::Wiped { dek_id: &lease.id, context: &lease.context });
    }
}

/// The thread of this process, and what it looks after.
struct Wiper {
    generation: u64,
    work: Mutex<Work>,
    woken: Condvar,
}

#[derive(Default)]
struct Work {
    registries: Vec<Weak<Registry>>,
    /// Something was added that does not wait for the next look.
    pressing: bool,
    /// There was nothing to look after, so there is no next look.
    asleep: bool,
}

impl Wiper {
    fn lock(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

process_static! {
    /// Behind a pointer that is swapped and not behind a lock: a lock could have been held by a thread that a fork left behind.
    static WIPER: ArcSwapOption<Wiper> = ArcSwapOption::const_empty();
}

/// Makes sure that somebody looks after the registry, and at once if a deadline is nearer than the next look.
fn tell_wiper(registry: &Arc<Registry>, soon: bool) {
    let generation = fork::generation();
    let wiper = match WIPER.load_full() {
        Some(wiper) if wiper.generation == generation => wiper,
        old => start(generation, old),
    };
    let mut work = wiper.lock();
    if !registry.known.swap(true, Ordering::Relaxed) {
        work.registries.push(Arc::downgrade(registry));
    }
    if soon || work.asleep {
        work.pressing = true;
        drop(work);
        wiper.woken.notify_one();
    }
}

fn start(generation: u64, old: Option<Arc<Wiper>>) -> Arc<Wiper> {
    let wiper = Arc::new(Wiper { generation, work: Mutex::default(), woken: Condvar::new() });
    let before = WIPER.compare_and_swap(&old, Some(wiper.clone()));
    if let Some(other) = before.as_ref().filter(|other| other.generation == generation) {
        return other.clone();
    }
    // After a fork the old one's lock may be held for ever: it is never dropped, so that nobody touches it.
    std::mem::forget(old);
    let its = wiper.clone();
    // Without the thread, keys are destroyed when they are dropped and never used past their time, but may stay in an idle process.
    let _ = thread::Builder::new().name("waxseal-wiper".to_owned()).spawn(move || run(&its));
    wiper
}

fn run(wiper: &Wiper) {
    loop {
        let known: Vec<Arc<Registry>> = {
            let mut work = wiper.lock();
            (work.pressing, work.asleep) = (false, false);
            work.registries.retain(|registry| registry.strong_count() > 0);
            work.registries.iter().filter_map(Weak::upgrade).collect()
        };
        let next = known.iter().filter_map(|registry| registry.sweep()).min();
        // A source that was dropped meanwhile goes with this, outside every lock.
        drop(known);
        let mut work = wiper.lock();
        match next {
            Some(next) => drop(wiper.woken.wait_timeout_while(work, next, |work| !work.pressing)),
            None => {
                // What was added since the look is not lost: it found the wiper awake, so look once more.
                work.asleep = work
                    .registries
                    .iter()
                    .all(|registry| registry.upgrade().is_none_or(|registry| registry.is_empty()));
                if work.asleep {
                    drop(wiper.woken.wait_while(work, |work| !work.pressing));
                }
            }
        }
    }
}
