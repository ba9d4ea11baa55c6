//! All DEKs of one source, indexed by deadline, id and context, so that ending some does not
//! require a walk through all.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::lease::Lease;
use super::registration::{Entries, Registration};
use crate::caller::Caller;
use crate::clock::{Clock, Moment};
use crate::context::EncryptionContext;
use crate::kek::Dependants;
use crate::memory::fork;
use crate::observe::{Access, AccessCounts, Accessed, CallerCounts, Event, LaterEvent, Observers};
use crate::suite::DekId;
use crate::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use crate::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, thread};

/// A DEK whose keys end with a lease.
pub(crate) trait Leased: Send + Sync {
    fn lease(&self) -> &Lease;

    fn is_for_reading(&self) -> bool;

    /// Returns how many messages it was used for since the last call, as far as they are counted.
    fn take_counted(&self) -> u64;

    /// Whether to report the end of this lease. Returns `true` once.
    fn is_end_to_report(&self) -> bool {
        self.lease().is_first_to_announce_the_end()
    }
}

/// Holds weak references to its DEKs, as the wiper does.
pub(super) struct Registry {
    generation: u64,
    clock: Clock,
    deks: Mutex<Deks>,
    summaries: Option<Summaries>,
    /// Whether the wiper knows this registry.
    pub(super) known: AtomicBool,
}

/// When the uses of all DEKs were last reported, and when they are reported next.
struct Summaries {
    every: Duration,
    /// By the clock since boot, in nanoseconds.
    last: AtomicI64,
    /// The next report is already queued for the observers.
    is_queued: AtomicBool,
    callers: CallerCounts,
}

impl Summaries {
    fn new(every: Duration, now: Moment) -> Self {
        let last = AtomicI64::new(now.boot_nanos());
        Self { every, last, is_queued: AtomicBool::new(false), callers: CallerCounts::new() }
    }

    fn since_last(&self, now: Moment) -> Duration {
        let nanos = now.boot_nanos().saturating_sub(self.last.load(Ordering::Relaxed));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(0))
    }

    /// Whether the next report has to be queued. Returns `true` once for each.
    fn is_due(&self, now: Moment) -> bool {
        self.since_last(now) >= self.every && !self.is_queued.swap(true, Ordering::Relaxed)
    }

    /// Begins the next period. Returns how long the last one was.
    fn begin_next(&self, now: Moment) -> Duration {
        let was = self.since_last(now);
        self.last.store(now.boot_nanos(), Ordering::Relaxed);
        self.is_queued.store(false, Ordering::Relaxed);
        was
    }
}

/// Ordered collections, so that the tests' schedules can be replayed.
#[derive(Default)]
struct Deks {
    last: u64,
    entries: BTreeMap<u64, Entry>,
    /// Indexed by each clock, since either may pass the deadline first.
    by_boot: BTreeSet<(i64, u64)>,
    by_wall: BTreeSet<(i64, u64)>,
    /// Another tree, like the next one. A map of small collections took a tenth of a cached DEK's
    /// memory.
    by_dek: BTreeSet<(DekId, u64)>,
    by_context: BTreeSet<([u8; 32], u64)>,
}

struct Entry {
    dek: Weak<dyn Leased>,
    wipe_at: Moment,
    id: DekId,
    context: [u8; 32],
}

impl Entries for Registry {
    fn is_of_this_process(&self) -> bool {
        self.generation == fork::generation()
    }

    fn remove(&self, number: u64) {
        let entry = self.lock().remove(number);
        // Outside the lock.
        drop(entry);
    }

    fn since_summary(&self) -> Option<Duration> {
        self.summaries.as_ref().map(|summaries| summaries.since_last(self.clock.now()))
    }

    fn take_callers_of(&self, dek_id: &DekId, within: Duration) -> Vec<Accessed> {
        let summaries = self.summaries.as_ref();
        summaries.map_or_else(Vec::new, |summaries| summaries.callers.take_of(dek_id, within))
    }
}

impl AccessCounts for Registry {
    fn take(&self) -> Vec<Accessed> {
        let Some(summaries) = &self.summaries else { return Vec::new() };
        let within = summaries.begin_next(self.clock.now());
        let mut all: Vec<_> = self.all().iter().filter_map(|dek| counted(&**dek, within)).collect();
        all.extend(summaries.callers.take(within));
        all
    }
}

impl Deks {
    fn insert(&mut self, entry: Entry) -> u64 {
        self.last += 1;
        let number = self.last;
        self.by_boot.insert((entry.wipe_at.boot_nanos(), number));
        self.by_wall.insert((entry.wipe_at.wall_nanos(), number));
        self.by_dek.insert((entry.id, number));
        self.by_context.insert((entry.context, number));
        self.entries.insert(number, entry);
        number
    }

    fn remove(&mut self, number: u64) -> Option<Entry> {
        let entry = self.entries.remove(&number)?;
        self.by_boot.remove(&(entry.wipe_at.boot_nanos(), number));
        self.by_wall.remove(&(entry.wipe_at.wall_nanos(), number));
        self.by_dek.remove(&(entry.id, number));
        self.by_context.remove(&(entry.context, number));
        Some(entry)
    }

    /// Removes a DEK from the schedule. It stays registered, so that keys derived through it can be
    /// found.
    fn unschedule(&mut self, number: u64) {
        if let Some(entry) = self.entries.get(&number) {
            self.by_boot.remove(&(entry.wipe_at.boot_nanos(), number));
            self.by_wall.remove(&(entry.wipe_at.wall_nanos(), number));
        }
    }

    fn alive<'a>(&self, numbers: impl IntoIterator<Item = &'a u64>) -> Vec<Arc<dyn Leased>> {
        numbers.into_iter().filter_map(|number| self.entries.get(number)?.dek.upgrade()).collect()
    }

    fn any_alive(&self) -> Option<Arc<dyn Leased>> {
        self.entries.values().find_map(|entry| entry.dek.upgrade())
    }

    /// Returns the DEKs past their end by either clock.
    fn due(&self, now: Moment) -> Vec<(u64, Weak<dyn Leased>)> {
        let past = |by: &BTreeSet<(i64, u64)>, now: i64| -> Vec<u64> {
            by.iter()
                .take_while(|(wipe_at, _)| *wipe_at <= now)
                .map(|(_, number)| *number)
                .collect()
        };
        let mut numbers = past(&self.by_boot, now.boot_nanos());
        numbers.extend(past(&self.by_wall, now.wall_nanos()));
        numbers.sort_unstable();
        numbers.dedup();
        numbers
            .iter()
            .filter_map(|number| Some((*number, self.entries.get(number)?.dek.clone())))
            .collect()
    }

    fn next(&self, now: Moment) -> Option<Duration> {
        let first =
            |by: &BTreeSet<(i64, u64)>| Some(now.until(self.entries.get(&by.first()?.1)?.wipe_at));
        first(&self.by_boot).into_iter().chain(first(&self.by_wall)).min()
    }
}

impl Dependants for Registry {
    fn end_dependants_of(&self, parent: usize, dek: Option<&DekId>) {
        // A destructor may end the parent.
        self.end(self.of_parent(parent, dek), end_later);
    }

    fn evict_dependants_of(&self, parent: usize) {
        let mut deks = self.of_parent(parent, None);
        // Eviction makes room for DEKs. A stream's key takes none of it, so the stream continues.
        deks.retain(|dek| !dek.lease().is_of_a_stream() && dek.lease().evict());
        end_evicted_later(&deks);
    }
}

impl Registry {
    pub(super) fn new(clock: Clock, summaries: Option<Duration>) -> Arc<Self> {
        let (deks, known) = (Mutex::default(), AtomicBool::new(false));
        let summaries = summaries.map(|every: Duration| Summaries::new(every, clock.now()));
        Arc::new(Self { generation: fork::generation(), clock, deks, summaries, known })
    }

    /// No DEK may be dropped under this lock: its registration takes the lock too.
    fn lock(&self) -> MutexGuard<'_, Deks> {
        self.deks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Registers a DEK to be wiped on time. Returns the time until then.
    ///
    /// `make` runs under the lock. If it takes the keys of a DEK that has not ended, a caller that
    /// ends that DEK later finds the new one here.
    pub(super) fn add<D: Leased + 'static>(
        self: &Arc<Self>,
        make: impl FnOnce() -> Option<Arc<D>>,
    ) -> Option<(Arc<D>, Duration)> {
        let (dek, number) = {
            let mut deks = self.lock();
            let dek = make()?;
            let lease = dek.lease();
            let (wipe_at, weak) = (lease.wipe_at(), Arc::downgrade(&dek));
            let (id, context) = (lease.id, *lease.context.digest());
            let number = deks.insert(Entry { dek: weak, wipe_at, id, context });
            (dek, number)
        };
        let lease = dek.lease();
        let entries: Weak<dyn Entries> = Arc::<Self>::downgrade(self);
        lease.set_registration(Registration::new(entries, number));
        for parent in lease.parents() {
            let dependants: Weak<dyn Dependants> = Arc::<Self>::downgrade(self);
            parent.add_dependants(dependants);
        }
        let left = self.clock.now().until(lease.wipe_at());
        Some((dek, left))
    }

    /// Counts a message of a named caller, if such counts are requested.
    #[inline]
    pub(super) fn count(
        &self,
        caller: &Caller,
        dek_id: &DekId,
        context: &EncryptionContext,
        access: Access,
        messages: u64,
    ) {
        if let Some(summaries) = &self.summaries {
            summaries.callers.count(caller, dek_id, context, access, messages);
        }
    }

    /// Whether nothing is left to wipe on time.
    pub(super) fn is_empty(&self) -> bool {
        self.lock().by_boot.is_empty()
    }

    pub(super) fn all(&self) -> Vec<Arc<dyn Leased>> {
        let deks = self.lock();
        deks.alive(deks.entries.keys())
    }

    fn of_parent(&self, parent: usize, dek: Option<&DekId>) -> Vec<Arc<dyn Leased>> {
        if !self.is_of_this_process() {
            return Vec::new();
        }
        let mut deks = dek.map_or_else(|| self.all(), |id| self.of_dek(id));
        deks.retain(|dek| dek.lease().has_parent(parent));
        deks
    }

    pub(super) fn of_dek(&self, id: &DekId) -> Vec<Arc<dyn Leased>> {
        let deks = self.lock();
        deks.alive(deks.by_dek.range((*id, 0)..=(*id, u64::MAX)).map(|(_, number)| number))
    }

    pub(super) fn of_context(&self, context: &EncryptionContext) -> Vec<Arc<dyn Leased>> {
        let deks = self.lock();
        let digest = *context.digest();
        deks.alive(
            deks.by_context.range((digest, 0)..=(digest, u64::MAX)).map(|(_, number)| number),
        )
    }

    /// Ends these DEKs by `end`, and every lease that a renewal gave them before they ended.
    pub(super) fn end(&self, mut deks: Vec<Arc<dyn Leased>>, end: fn(&[Arc<dyn Leased>])) {
        let renewed = |dek: &Arc<dyn Leased>| {
            let mut leases = self.of_dek(&dek.lease().id);
            leases.retain(|other| !other.is_for_reading() && !other.lease().has_ended());
            leases
        };
        while !deks.is_empty() {
            end(&deks);
            // A branch key is obtained again with each renewal, so a new lease belongs to another
            // one. A stream is not renewed.
            let may_share = |dek: &&Arc<dyn Leased>| {
                let lease = dek.lease();
                !dek.is_for_reading() && !lease.is_of_a_branch_key() && !lease.is_of_a_stream()
            };
            deks = deks.iter().filter(may_share).flat_map(renewed).collect();
        }
    }

    /// Ends every DEK, in the child of a fork, unless a thread that no longer exists holds the
    /// lock.
    pub(super) fn try_end_all(&self) {
        let Ok(deks) = self.deks.try_lock() else { return };
        for dek in deks.alive(deks.entries.keys()) {
            dek.lease().end();
        }
    }

    /// Has the observers' own thread report which DEKs were used.
    fn summarise_if_due(self: &Arc<Self>) {
        let now = self.clock.now();
        if !self.summaries.as_ref().is_some_and(|summaries| summaries.is_due(now)) {
            return;
        }
        // All DEKs here have the same observers. This may be the last reference to the DEK, which
        // is then dropped here, after the lock is released.
        let alive = self.lock().any_alive();
        let observers = alive.and_then(|dek| dek.lease().observers.upgrade());
        match (observers, &self.summaries) {
            (Some(observers), _) => observers.emit_later(LaterEvent::Summaries(self.clone())),
            (None, Some(summaries)) => summaries.is_queued.store(false, Ordering::Relaxed),
            (None, None) => {}
        }
    }

    /// Ends the DEKs that are due. Returns when to look again, if DEKs are left.
    pub(super) fn sweep(self: &Arc<Self>, retry: Duration) -> Option<Duration> {
        self.summarise_if_due();
        let due = self.lock().due(self.clock.now());
        let (mut over, mut in_use) = (Vec::new(), false);
        for (number, dek) in due {
            // Taken before the end, so that one of the two reports it if the envelope is dropped
            // meanwhile.
            let dek = dek.upgrade().map(|dek| (dek.lease().observers.upgrade(), dek));
            match dek {
                Some((_, dek)) if !dek.lease().end() => in_use = true,
                dek => over.push((number, dek)),
            }
        }
        let next = {
            let mut deks = self.lock();
            for (number, dek) in &over {
                // A stream may outlast the branch key that it was derived through, and ends if that
                // branch key is denied or erased later.
                match dek {
                    Some((_, dek)) if dek.lease().is_of_a_branch_key() => deks.unschedule(*number),
                    _ => drop(deks.remove(*number)),
                }
            }
            deks.next(self.clock.now())
        };
        for (observers, dek) in over.into_iter().filter_map(|(_, dek)| dek) {
            announce_later_to(observers, &*dek);
        }
        if in_use { Some(retry) } else { next }
    }
}

/// Ends DEKs and everything derived through them, waits for uses in progress, and reports when all
/// keys are gone.
pub(super) fn end_all<D: Leased + ?Sized>(deks: &[Arc<D>]) {
    revoke_and_wait(deks);
    for dek in deks {
        announce(&**dek);
    }
}

/// Does the same as [`end_all`], from a destructor.
pub(super) fn end_later<D: Leased + ?Sized>(deks: &[Arc<D>]) {
    revoke_and_wait(deks);
    for dek in deks {
        announce_later(&**dek);
    }
}

/// Does the same as [`end_all`], but reports nothing yet: a later call of `end_all` for them does.
pub(super) fn end_quietly<D: Leased + ?Sized>(deks: &[Arc<D>]) {
    revoke_and_wait(deks);
}

/// Ends evicted DEKs and evicts everything derived through them. Nobody waits to use them. A later
/// [`announce`] reports it.
pub(super) fn end_evicted_quietly<D: Leased + ?Sized>(deks: &[Arc<D>]) {
    evict_and_wait(deks);
}

/// Does the same as [`end_evicted_quietly`], from a destructor, and reports it.
pub(super) fn end_evicted_later<D: Leased + ?Sized>(deks: &[Arc<D>]) {
    evict_and_wait(deks);
    for dek in deks {
        announce_later(&**dek);
    }
}

fn evict_and_wait<D: Leased + ?Sized>(deks: &[Arc<D>]) {
    end_and_wait(deks);
    // Only streams are derived through a DEK.
    for lease in deks.iter().map(|dek| dek.lease()).filter(|lease| lease.is_of_a_branch_key()) {
        for dependants in lease.dependants() {
            dependants.evict_dependants_of(lease.identity());
        }
    }
}

fn revoke_and_wait<D: Leased + ?Sized>(deks: &[Arc<D>]) {
    for dek in deks {
        dek.lease().revoke();
    }
    end_and_wait(deks);
    for lease in deks.iter().map(|dek| dek.lease()) {
        let dek = (!lease.is_of_a_branch_key()).then_some(&lease.id);
        for dependants in lease.dependants() {
            dependants.end_dependants_of(lease.identity(), dek);
        }
    }
}

fn end_and_wait<D: Leased + ?Sized>(deks: &[Arc<D>]) {
    // All are ended first, so that no use begins while another is waited for.
    let mut left: Vec<&Arc<D>> = deks.iter().filter(|dek| !dek.lease().end()).collect();
    while !left.is_empty() {
        thread::sleep(Duration::from_micros(50));
        left.retain(|dek| !dek.lease().end());
    }
}

/// Returns what a DEK was used for since the last report, if it was used.
fn counted(dek: &(impl Leased + ?Sized), within: Duration) -> Option<Accessed> {
    let lease = dek.lease();
    let messages = Some(dek.take_counted()).filter(|messages| *messages > 0)?;
    Some(Accessed::All {
        dek_id: lease.id,
        context: lease.context.clone(),
        access: if dek.is_for_reading() { Access::Decrypt } else { Access::Encrypt },
        messages,
        within,
    })
}

/// Returns what an ended DEK was used for since the last report, and by whom.
fn counted_at_the_end(dek: &(impl Leased + ?Sized)) -> Vec<Accessed> {
    let Some(within) = dek.lease().since_summary() else { return Vec::new() };
    let mut all: Vec<_> = counted(dek, within).into_iter().collect();
    all.extend(dek.lease().take_callers(within));
    all
}

/// Reports, once, that the keys of a DEK are gone.
pub(super) fn announce(dek: &(impl Leased + ?Sized)) {
    let lease = dek.lease();
    if let Some(observers) = lease.observers.upgrade()
        && dek.is_end_to_report()
    {
        for accessed in counted_at_the_end(dek) {
            observers.emit(&accessed.as_event());
        }
        observers.emit(&Event::Wiped { dek_id: &lease.told_id, context: &lease.context });
    }
}

/// Does the same as [`announce`], from a destructor or a thread that must not wait.
pub(super) fn announce_later(dek: &(impl Leased + ?Sized)) {
    announce_later_to(dek.lease().observers.upgrade(), dek);
}

fn announce_later_to(observers: Option<Observers>, dek: &(impl Leased + ?Sized)) {
    let lease = dek.lease();
    if let Some(observers) = observers
        && dek.is_end_to_report()
    {
        for accessed in counted_at_the_end(dek) {
            observers.emit_later(LaterEvent::Accessed(accessed));
        }
        observers.emit_later(LaterEvent::Wiped {
            dek_id: lease.told_id,
            context: lease.context.clone(),
        });
    }
}

#[cfg(all(test, not(shuttle)))]
mod tests {
    use std::sync::mpsc;

    use super::super::Limits;
    use super::super::lease::{LeasedKey, Terms};
    use super::*;
    use crate::clock::ManualClock;
    use crate::format::{KekId, WrappedDek, WrappedKeys};
    use crate::suite::{Backend, Dek, DekKeys, Suite, derive_dek_id};

    /// A lease whose owner drops it as soon as somebody looks at it.
    struct Fleeting {
        lease: Lease,
        owner: Mutex<Option<Arc<Self>>>,
    }

    impl Leased for Fleeting {
        fn lease(&self) -> &Lease {
            drop(self.owner.lock().unwrap_or_else(PoisonError::into_inner).take());
            &self.lease
        }

        fn is_for_reading(&self) -> bool {
            true
        }

        fn take_counted(&self) -> u64 {
            0
        }
    }

    #[test]
    fn a_dek_whose_owner_goes_during_a_summary_locks_nobody_out() {
        let (clock, suite) = (Clock::Manual(ManualClock::new()), Suite::Aes256Gcm);
        let (context, dek) = (EncryptionContext::empty(), Dek::random().unwrap());
        let keys = DekKeys::derive(Backend::RustCrypto, &dek, &context, suite).unwrap();
        let entry = WrappedDek::new(KekId::new("kek").unwrap(), vec![7; 40]).unwrap();
        let terms = Terms {
            context: &context,
            id: derive_dek_id(&dek, &context).unwrap(),
            suite,
            wrapped_keys: WrappedKeys::new([entry]).unwrap(),
            is_stored: false,
            source_keks: Box::new([]),
            parents: Box::new([]),
            asked: clock.now(),
            stale_if_error: Duration::ZERO,
            deadline: Duration::ZERO,
            clock: &clock,
            observers: Observers::new(Vec::new()).downgrade(),
        };
        let limits = Limits::default().check(suite).unwrap();
        let lease = Lease::new(terms, &LeasedKey::Dek(keys), &limits);
        let registry = Registry::new(clock, Some(Duration::ZERO));
        let fleeting = Arc::new(Fleeting { lease, owner: Mutex::default() });
        let (dek, _) = registry.add(|| Some(fleeting)).unwrap();
        *dek.owner.lock().unwrap() = Some(dek.clone());
        drop(dek);
        let (done, swept) = mpsc::channel();
        std::thread::spawn(move || {
            registry.sweep(Duration::from_millis(5));
            done.send(registry.all().len()).unwrap();
        });
        assert_eq!(swept.recv_timeout(Duration::from_secs(60)), Ok(0));
    }
}

#[cfg(all(test, shuttle))]
#[path = "../../tests/schedules/leases.rs"]
mod leases;
