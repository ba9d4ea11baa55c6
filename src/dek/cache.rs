//! The cached DEKs. quick_cache bounds their number, and their leases bound their lifetime. A
//! look-up reads nothing that another thread writes.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::future::Future;
use std::time::Duration;

use futures_util::future::{Either, select};
#[cfg(not(all(test, shuttle)))]
use quick_cache::DefaultHashBuilder as Hashing;
use quick_cache::sync::Cache;
use quick_cache::{Lifecycle, OptionsBuilder, UnitWeighter};

use super::flight::Flights;
use super::lease::{Age, Lease, RequestKey, Terms, shut_down};
use super::registry::{
    Leased, Registry, announce, end_all, end_evicted_quietly, end_later, end_quietly,
};
use super::revocations::Revocations;
use super::wiper::look_after;
use super::{LimitsInForce, ReadingDek, WritingDek};
use crate::caller::Caller;
use crate::clock::{Clock, Moment};
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::{KekId, WrappedDek};
use crate::kek::set::Failure;
use crate::memory::fork;
use crate::observe::{Access, AccessCounts, Accessed, Event};
use crate::runtime::Runtime;
use crate::suite::{DekId, Suite};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::shards::shards;
use crate::sync::thread::LocalKey;
use crate::sync::wakers::Latch;
use crate::sync::{Arc, process_static, thread_local};

/// The cached DEKs of one source in one process. The child of a fork gets its own cache.
pub(crate) struct DekCache {
    /// The owner under which threads remember its DEKs.
    owner: MemoOwner,
    /// Indexed by the digest of the context.
    writing: Bounded<[u8; 32], Arc<WritingDek>>,
    /// Indexed by DEK id and suite: a message of another suite has another key.
    reading: Bounded<(DekId, Suite), Arc<ReadingDek>>,
    /// Requests that were denied or found invalid, and until when they are refused without a call.
    refused: Bounded<RequestKey, (Moment, Error)>,
    registry: Arc<Registry>,
    pub(super) flights: Flights,
    /// What an operator revoked or evicted. Responses to earlier requests are discarded.
    pub(super) revocations: Revocations,
    /// Set at shut-down. It ends calls that are in flight.
    closed: Latch,
    denial_ttl: Duration,
    clock: Clock,
}

impl DekCache {
    pub(super) fn new(
        source: SourceNumber,
        limits: &LimitsInForce,
        clock: Clock,
        runtime: Option<Arc<dyn Runtime>>,
    ) -> Self {
        Self {
            owner: MemoOwner::now(source),
            writing: bounded(limits.max_entries),
            reading: bounded(limits.max_entries),
            refused: bounded(limits.max_entries),
            registry: Registry::new(clock.clone(), limits.summaries),
            flights: Flights::new(runtime),
            revocations: Revocations::default(),
            closed: Latch::default(),
            denial_ttl: limits.denial_ttl,
            clock,
        }
    }

    pub(super) fn is_of_this_process(&self) -> bool {
        self.owner.generation == fork::generation()
    }

    /// Remembers the DEK for the next look-ups of this thread.
    pub(super) fn remember_reading(&self, dek: &Arc<ReadingDek>) {
        remember(&READING, self.owner, dek.lease.id.as_bytes(), dek);
    }

    /// Remembers the DEK for the next look-ups of this thread.
    pub(super) fn remember_writing(&self, dek: &Arc<WritingDek>) {
        remember(&WRITING, self.owner, dek.lease.context.digest(), dek);
    }

    /// Returns the DEK for reading, whatever its age.
    ///
    /// Fails if the id commits to a context other than the caller's. No key service is asked. This
    /// is the earliest check that notices a wrong tenant.
    pub(super) fn reading(
        &self,
        context: &EncryptionContext,
        id: &DekId,
        suite: Suite,
    ) -> Result<Option<Arc<ReadingDek>>, Error> {
        let Some(dek) = self.reading.get(&(*id, suite)) else { return Ok(None) };
        if dek.lease.context != *context {
            return Err(Error::invalid());
        }
        if dek.lease.age(self.clock.now()) == Age::Ended {
            let is_gone = |dek: &Arc<ReadingDek>| dek.lease.age(self.clock.now()) == Age::Ended;
            drop(self.reading.remove_if(&(*id, suite), is_gone));
            return Ok(None);
        }
        Ok(Some(dek).filter(|dek| !dek.is_used_up()))
    }

    /// Returns the DEK for writing, whatever its age.
    pub(super) fn writing(&self, context: &EncryptionContext) -> Option<Arc<WritingDek>> {
        let dek = self.writing.get(context.digest())?;
        let usable = dek.lease.context == *context && dek.is_of_this_process() && !dek.is_used_up();
        usable.then_some(dek)
    }

    /// Registers the DEK, so that it is wiped on time and can be revoked.
    pub(super) fn look_after<D: Leased + 'static>(&self, dek: &Arc<D>) {
        look_after(&self.registry, || Some(dek.clone()));
    }

    /// Gives a DEK for writing another lease and registers it, unless the DEK's own lease has
    /// ended. A later revocation, eviction or denial that ends the DEK also ends the new lease.
    pub(super) fn another_lease(
        &self,
        dek: &WritingDek,
        terms: Terms<'_>,
        limits: &LimitsInForce,
    ) -> Option<Arc<WritingDek>> {
        look_after(&self.registry, || dek.another_lease(terms, limits).map(Arc::new))
    }

    /// Caches a registered DEK.
    pub(super) fn put_writing(&self, dek: &Arc<WritingDek>) {
        if dek.lease.is_late() {
            return;
        }
        let mut evicted = EvictedNow::default();
        self.writing.insert_with_lifecycle(*dek.lease.context.digest(), dek.clone(), &mut evicted);
        evicted.0.retain(|old| old.lease.context != dek.lease.context || Arc::ptr_eq(old, dek));
    }

    /// Caches a registered DEK.
    pub(super) fn put_reading(&self, dek: &Arc<ReadingDek>) {
        if dek.lease.is_late() {
            return;
        }
        let mut evicted = EvictedNow::default();
        self.reading.insert_with_lifecycle(
            (dek.lease.id, dek.lease.suite),
            dek.clone(),
            &mut evicted,
        );
        let of_this_dek = |old: &Arc<ReadingDek>| {
            (old.lease.id, old.lease.suite) == (dek.lease.id, dek.lease.suite)
        };
        evicted.0.retain(|old| !of_this_dek(old) || Arc::ptr_eq(old, dek));
    }

    /// Returns the refusal of this exact request while it is remembered.
    pub(super) fn refusal(&self, request_key: &RequestKey) -> Option<Error> {
        let (until, error) = self.refused.get(request_key)?;
        if self.clock.now().is_past(until) {
            self.refused.remove(request_key);
            return None;
        }
        Some(error)
    }

    /// Remembers a denial, or that a wrapped key and its context do not belong together.
    pub(super) fn remember_refusal(&self, request_key: RequestKey, error: &Error) {
        if !self.denial_ttl.is_zero() {
            let until = self.clock.now().plus(self.denial_ttl);
            self.refused.insert(request_key, (until, error.remembered(self.denial_ttl)));
        }
    }

    /// Records that a KEK failed at one wrapped key of a DEK. The outcome of the others is not
    /// known yet.
    pub(super) fn record_failure(
        &self,
        context: &EncryptionContext,
        id: &DekId,
        provider: &KekId,
        entry: &WrappedDek,
        kind: ErrorKind,
    ) {
        if !kind.is_outage() {
            for dek in self.reading_of(context, id) {
                dek.lease().record_refusal(provider, entry, kind);
            }
        }
    }

    /// Returns the DEKs for reading of this id and context. A denial in another context affects
    /// none of them, because anyone can cause one.
    fn reading_of(&self, context: &EncryptionContext, id: &DekId) -> Vec<Arc<dyn Leased>> {
        let mut deks = self.registry.of_dek(id);
        deks.retain(|dek| dek.is_for_reading() && dek.lease().context == *context);
        deks
    }

    /// Ends the DEKs for reading of this id that `which` selects, and their handles.
    pub(super) fn end_reading(
        &self,
        context: &EncryptionContext,
        id: &DekId,
        which: impl Fn(&Lease) -> bool,
    ) {
        let mut deks = self.reading_of(context, id);
        deks.retain(|dek| which(dek.lease()));
        end_all(&deks);
    }

    /// Ends the branch keys of a branch that the denial is about, for reading and for writing,
    /// since both come from one row.
    pub(super) fn end_denied(
        &self,
        context: &EncryptionContext,
        id: Option<&DekId>,
        failure: &Failure,
    ) {
        let is_erased = |lease: &Lease| failure.is_erased && id == Some(&lease.id);
        let mut deks = self.registry.of_context(context);
        deks.retain(|dek| dek.lease().is_denied_by(failure) || is_erased(dek.lease()));
        end_all(&deks);
    }

    /// Ends the DEKs for writing of a context, and their handles.
    pub(super) fn end_writing(&self, context: &EncryptionContext) {
        self.writing.remove(context.digest());
        let mut deks = self.registry.of_context(context);
        deks.retain(|dek| !dek.is_for_reading());
        self.registry.end(deks, end_all);
    }

    /// Revokes a KEK. Like the two methods below, it ends the DEKs, waits until their keys are
    /// gone, and discards responses in flight.
    pub(super) fn revoke_kek(&self, kek_id: &KekId) {
        self.revocations.of_kek(kek_id);
        let mut deks = self.registry.all();
        deks.retain(|dek| dek.lease().came_from(kek_id));
        self.registry.end(deks, end_all);
    }

    pub(super) fn evict_context(&self, context: &EncryptionContext) {
        self.revocations.of_context(context);
        self.registry.end(self.registry.of_context(context), end_all);
    }

    /// Evicts several contexts: see [`evict_context`](Self::evict_context). Discards every response
    /// in flight.
    pub(super) fn evict_contexts(&self, which: impl Fn(&EncryptionContext) -> bool) {
        self.end_contexts(which, end_all);
    }

    /// Does the same as [`evict_contexts`](Self::evict_contexts), from a destructor.
    pub(super) fn evict_contexts_later(&self, which: impl Fn(&EncryptionContext) -> bool) {
        self.end_contexts(which, end_later);
    }

    fn end_contexts(
        &self,
        which: impl Fn(&EncryptionContext) -> bool,
        end: fn(&[Arc<dyn Leased>]),
    ) {
        self.revocations.of_everything();
        let mut deks = self.registry.all();
        deks.retain(|dek| which(&dek.lease().context));
        self.registry.end(deks, end);
    }

    pub(super) fn revoke_all(&self) {
        self.revocations.of_everything();
        self.registry.end(self.registry.all(), end_all);
    }

    /// Does the same as [`revoke_all`](Self::revoke_all), from a destructor.
    pub(super) fn end_all_later(&self) {
        self.revocations.of_everything();
        self.registry.end(self.registry.all(), end_later);
    }

    /// Does the same as [`revoke_all`](Self::revoke_all), and lets that method report it.
    pub(super) fn end_all_quietly(&self) {
        self.revocations.of_everything();
        self.registry.end(self.registry.all(), end_quietly);
    }

    pub(super) fn close(&self) {
        self.closed.set();
    }

    /// Returns the response, or an error as soon as the source is shut down.
    pub(super) async fn unless_closed<T, E: From<Error>>(
        &self,
        answer: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        match select(std::pin::pin!(answer), std::pin::pin!(self.closed.wait())).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => Err(shut_down().into()),
        }
    }

    /// Counts messages of a named caller.
    #[inline]
    pub(super) fn count(
        &self,
        caller: &Caller,
        dek_id: &DekId,
        context: &EncryptionContext,
        access: Access,
        messages: u64,
    ) {
        self.registry.count(caller, dek_id, context, access, messages);
    }

    /// Takes the counts that no DEK will report: those of callers beyond the tracked number, and of
    /// uses that ended after their DEK.
    pub(super) fn take_counts(&self) -> Vec<Accessed> {
        AccessCounts::take(&*self.registry)
    }

    pub(super) fn forget_refusals(&self) {
        self.refused.clear();
    }

    /// Returns the number of DEKs, for reading and for writing.
    pub(super) fn counts(&self) -> (usize, usize) {
        let now = self.clock.now();
        let mut reading = 0;
        self.each_reading(|_| reading += 1);
        let alive = |lease: &Lease| lease.age(now) != Age::Ended;
        (reading, self.writing.iter().filter(|(_, dek)| alive(&dek.lease)).count())
    }

    /// Calls `work` with the lease of each DEK for reading.
    pub(super) fn each_reading(&self, mut work: impl FnMut(&Lease)) {
        let now = self.clock.now();
        let alive = self.reading.iter().filter(|(_, dek)| dek.lease.age(now) != Age::Ended);
        alive.for_each(|(_, dek)| work(&dek.lease));
    }

    /// Ends as many of the parent's DEKs as it can, in the child of a fork. Threads of the parent
    /// may hold locks forever.
    pub(super) fn abandon(&self) {
        forget(&READING, |dek| dek.lease.end());
        forget(&WRITING, |dek| dek.lease.end());
        self.registry.try_end_all();
    }
}

impl Drop for DekCache {
    fn drop(&mut self) {
        if self.is_of_this_process() {
            end_later(&self.registry.all());
        }
    }
}

/// Fixed, so that the cache evicts in the same order in every run of a recorded schedule.
#[cfg(all(test, shuttle))]
type Hashing = std::hash::BuildHasherDefault<std::hash::DefaultHasher>;

type Bounded<K, V> = Cache<K, V, UnitWeighter, Hashing, EndEvicted>;

fn bounded<K: Eq + std::hash::Hash, V: Clone + Evicted>(max_entries: u64) -> Bounded<K, V> {
    let capacity = usize::try_from(max_entries).unwrap_or(usize::MAX);
    // Each shard has its part of the capacity, so few entries need few shards.
    let options = OptionsBuilder::new()
        .shards(shards().min(capacity / 64).max(1))
        .estimated_items_capacity(capacity.min(64))
        .weight_capacity(max_entries)
        .build();
    match options {
        Ok(options) => Cache::with_options(options, UnitWeighter, Hashing::default(), EndEvicted),
        // No required option is missing, so this cannot fail.
        Err(_) => {
            Cache::with(capacity.min(64), max_entries, UnitWeighter, Hashing::default(), EndEvicted)
        }
    }
}

/// Ends evicted DEKs and their handles. A DEK that a newer one replaces is taken out first, and
/// lives on for its holders.
#[derive(Clone)]
struct EndEvicted;

/// Collects evicted entries under the cache's lock, and ends them when the lock is released.
struct EvictedNow<V: Evicted>(Vec<V>);

impl<V: Evicted> Default for EvictedNow<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V: Evicted> Drop for EvictedNow<V> {
    fn drop(&mut self) {
        self.0.drain(..).for_each(|value| value.make_room());
    }
}

trait Evicted {
    fn make_room(&self);
}

impl<D: Leased> Evicted for Arc<D> {
    fn make_room(&self) {
        let Lease { told_id: dek_id, context, observers, .. } = self.lease();
        // Callers that waited for this DEK may still use it once.
        let ends = self.lease().evict();
        if ends {
            end_evicted_quietly(std::slice::from_ref(self));
        }
        // Wiped before an observer can block.
        if let Some(observers) = observers.upgrade() {
            observers.emit(&Event::Evicted { dek_id, context });
        }
        if ends {
            announce(&**self);
        }
    }
}

impl Evicted for (Moment, Error) {
    fn make_room(&self) {}
}

impl<K, V: Evicted> Lifecycle<K, V> for EndEvicted {
    type RequestState = EvictedNow<V>;

    fn on_evict(&self, evicted: &mut EvictedNow<V>, _: K, value: V) {
        evicted.0.push(value);
    }
}

/// How many look-ups a thread answers from its memo for each one that reaches the cache, which has
/// to know what is in use.
const HITS_PER_LOOKUP: u8 = 64;
const MEMO_LEN: usize = 8;

/// Distinguishes the sources of a process in the memos of its threads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct SourceNumber(u64);

impl SourceNumber {
    pub(super) fn next() -> Self {
        process_static! {
            static NEXT: AtomicU64 = AtomicU64::new(1);
        }
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// The owner of remembered DEKs: one source in one process. Thanks to it, a memo need not look at
/// the shared cache, and does not return the parent's DEKs in a forked child.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct MemoOwner {
    source: SourceNumber,
    generation: u64,
}

impl MemoOwner {
    /// Returns the source's owner in the current process.
    pub(super) fn now(source: SourceNumber) -> Self {
        Self { source, generation: fork::generation() }
    }

    /// Uses the DEK for reading that this thread used last, if it matches and `serves` returns
    /// true. `serves` is checked last.
    pub(super) fn with_reading<R>(
        self,
        context: &EncryptionContext,
        id: &DekId,
        suite: Suite,
        serves: impl FnOnce(&ReadingDek) -> bool,
        work: impl FnOnce(&Arc<ReadingDek>) -> R,
    ) -> Option<R> {
        let serves = |dek: &ReadingDek| {
            dek.lease.id == *id
                && dek.lease.suite == suite
                && dek.lease.context == *context
                && !dek.is_used_up()
                && serves(dek)
        };
        with_remembered(&READING, self, id.as_bytes(), serves, work)
    }

    /// Uses the DEK for writing that this thread used last, if it matches and `serves` returns
    /// true. `serves` is checked last.
    pub(super) fn with_writing<R>(
        self,
        context: &EncryptionContext,
        serves: impl FnOnce(&WritingDek) -> bool,
        work: impl FnOnce(&Arc<WritingDek>) -> R,
    ) -> Option<R> {
        let serves = |dek: &WritingDek| {
            dek.lease.context == *context
                && dek.is_of(self.generation)
                && !dek.is_used_up()
                && serves(dek)
        };
        with_remembered(&WRITING, self, context.digest(), serves, work)
    }
}

/// The DEKs that a thread used last. Remembering a DEK does not extend its life: its keys can be
/// destroyed at any time.
struct Memo<D>([Option<Remembered<D>>; MEMO_LEN]);

struct Remembered<D> {
    owner: MemoOwner,
    hits: u8,
    dek: Arc<D>,
}

thread_local! {
    static READING: RefCell<Memo<ReadingDek>> = const { RefCell::new(Memo([const { None }; MEMO_LEN])) };
    static WRITING: RefCell<Memo<WritingDek>> = const { RefCell::new(Memo([const { None }; MEMO_LEN])) };
}

impl<D> Memo<D> {
    fn slot(&mut self, [first, ..]: &[u8; 32]) -> Option<&mut Option<Remembered<D>>> {
        self.0.get_mut(usize::from(*first) % MEMO_LEN)
    }
}

fn with_remembered<D: Leased, R>(
    memo: &'static LocalKey<RefCell<Memo<D>>>,
    owner: MemoOwner,
    key: &[u8; 32],
    serves: impl FnOnce(&D) -> bool,
    work: impl FnOnce(&Arc<D>) -> R,
) -> Option<R> {
    // A thread that is ending has no memo, so the cache answers.
    memo.try_with(|memo| {
        // `work` does not call back into the memo. If it did, the memo would be busy and the cache
        // would answer.
        let mut memo = memo.try_borrow_mut().ok()?;
        let remembered = memo.slot(key)?.as_mut()?;
        if remembered.owner != owner
            || remembered.hits == HITS_PER_LOOKUP
            || !serves(&remembered.dek)
        {
            return None;
        }
        remembered.hits += 1;
        Some(work(&remembered.dek))
    })
    .ok()
    .flatten()
}

fn remember<D: 'static>(
    memo: &'static LocalKey<RefCell<Memo<D>>>,
    owner: MemoOwner,
    key: &[u8; 32],
    dek: &Arc<D>,
) {
    // The replaced entry is dropped after the borrow ends.
    let replaced = memo.try_with(|memo| {
        let mut memo = memo.try_borrow_mut().ok()?;
        memo.slot(key)?.replace(Remembered { owner, hits: 0, dek: dek.clone() })
    });
    drop(replaced);
}

/// Ends and forgets the DEKs that this thread remembers.
fn forget<D: 'static>(memo: &'static LocalKey<RefCell<Memo<D>>>, end: impl Fn(&D) -> bool) {
    let forgotten = memo.try_with(|memo| {
        let mut memo = memo.try_borrow_mut().ok()?;
        Some(std::mem::replace(&mut *memo, Memo([const { None }; MEMO_LEN])))
    });
    if let Ok(Some(Memo(remembered))) = forgotten {
        remembered.iter().flatten().for_each(|remembered| _ = end(&remembered.dek));
    }
}
