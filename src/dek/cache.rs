//! The DEKs at hand: bounded in number by quick_cache, in time by their leases, and looked up without touching what another thread writes.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::future::Future;
use std::time::Duration;

use async_lock::OnceCell;
use futures_util::future::{Either, select};
use quick_cache::sync::Cache;
use quick_cache::{DefaultHashBuilder, Lifecycle, OptionsBuilder, UnitWeighter};

use super::flight::{Answer, Flights};
use super::lease::{Age, Lease, Request, shut_down};
use super::wiper::{Mortal, Registry, end_now};
use super::{LimitsInForce, ReadingDek, WritingDek};
use crate::context::EncryptionContext;
use crate::error::Error;
use crate::memory::clock::{Clock, Moment};
use crate::memory::fork;
use crate::memory::slot::shards;
use crate::observer::Event;
use crate::runtime::Runtime;
use crate::suite::{DekId, Suite};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::thread::LocalKey;
use crate::sync::{Arc, process_static, thread_local};

/// What one process has at hand for one source. The child of a fork gets another.
pub(crate) struct DekCache {
    /// Tells the caches of a process apart in the memos of its threads.
    number: u64,
    generation: u64,
    /// By the digest of the context.
    writing: Bounded<[u8; 32], Arc<WritingDek>>,
    /// One entry per suite: a message that names another suite has another key.
    reading: Bounded<(DekId, Suite), Arc<ReadingDek>>,
    /// Exact questions that were denied, and until when they are not asked again.
    denied: Bounded<Request, (Moment, Error)>,
    registry: Arc<Registry>,
    pub(super) flights: Flights,
    /// Counts what an operator revoked or cleared: the answer to a question asked before does not count after.
    epoch: AtomicU64,
    /// Set when the source is shut down: calls that are on their way end.
    closed: OnceCell<()>,
    refuse_for: Duration,
    clock: Clock,
}

/// What a look-up found.
pub(super) enum Hit<D> {
    Fresh(Arc<D>),
    /// Serves, and should be renewed.
    Due(Arc<D>),
    /// Past its age: serves only while the key service is unavailable.
    Grace(Arc<D>),
    /// The id commits to another context than the caller's, so no key service has to be asked.
    OtherContext,
    None,
}

impl<D: Mortal> Hit<D> {
    fn of(dek: Arc<D>) -> Self {
        match dek.lease().age() {
            Age::Fresh => Self::Fresh(dek),
            Age::Due => Self::Due(dek),
            Age::Grace => Self::Grace(dek),
            Age::Gone => Self::None,
        }
    }
}

impl DekCache {
    pub(super) fn new(limits: &LimitsInForce, clock: Clock, runtime: Option<Arc<dyn Runtime>>) -> Self {
        process_static! {
            static NUMBER: AtomicU64 = AtomicU64::new(1);
        }

        Self {
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            generation: fork::generation(),
            writing: bounded(limits.max_entries),
            reading: bounded(limits.max_entries),
            denied: bounded(limits.max_entries),
            registry: Registry::new(clock.clone()),
            flights: Flights::new(runtime),
            epoch: AtomicU64::new(0),
            closed: OnceCell::new(),
            refuse_for: limits.refuse_for,
            clock,
        }
    }

    pub(super) fn is_of_this_process(&self) -> bool {
        self.generation == fork::generation()
    }

    /// Uses the DEK for reading that this thread used last, if it is fresh.
    pub(super) fn with_remembered_reading<R>(
        &self,
        context: &EncryptionContext,
        id: &DekId,
        suite: Suite,
        work: impl FnOnce(&Arc<ReadingDek>) -> R,
    ) -> Option<R> {
        let mine = |dek: &ReadingDek| {
            dek.lease.id == *id && dek.lease.suite == suite && dek.lease.context == *context && !dek.is_used_up()
        };
        with_remembered(&READING, self.number, id.as_bytes(), mine, work)
    }

    /// Uses the DEK for writing that this thread used last, if it is fresh.
    pub(super) fn with_remembered_writing<R>(
        &self,
        context: &EncryptionContext,
        work: impl FnOnce(&Arc<WritingDek>) -> R,
    ) -> Option<R> {
        let mine = |dek: &WritingDek| dek.lease.context == *context && dek.is_of_this_process() && !dek.is_used_up();
        with_remembered(&WRITING, self.number, context.digest(), mine, work)
    }

    /// Does the id of a hit belong to the caller's context? Nothing else would notice a wrong tenant as early.
    pub(super) fn reading(&self, context: &EncryptionContext, id: &DekId, suite: Suite) -> Hit<ReadingDek> {
        let Some(dek) = self.reading.get(&(*id, suite)) else { return Hit::None };
        if dek.lease.context != *context {
            return Hit::OtherContext;
        }
        if dek.is_used_up() {
            return Hit::None;
        }
        let hit = Hit::of(dek);
        match &hit {
            Hit::Fresh(dek) => remember(&READING, self.number, id.as_bytes(), dek),
            Hit::None => drop(self.reading.remove_if(&(*id, suite), |dek| dek.lease.age() == Age::Gone)),
            _ => {}
        }
        hit
    }

    pub(super) fn writing(&self, context: &EncryptionContext) -> Hit<WritingDek> {
        let dek = self.writing.get(context.digest());
        let usable =
            |dek: &Arc<WritingDek>| dek.lease.context == *context && dek.is_of_this_process() && !dek.is_used_up();
        let Some(dek) = dek.filter(usable) else { return Hit::None };
        match Hit::of(dek) {
            Hit::Fresh(dek) if dek.is_nearly_used_up() => Hit::Due(dek),
            hit => {
                if let Hit::Fresh(dek) = &hit {
                    remember(&WRITING, self.number, context.digest(), dek);
                }
                hit
            }
        }
    }

    pub(super) fn put_writing(&self, dek: &Arc<WritingDek>) {
        self.register(dek);
        let mut evicted = EvictedNow::default();
        self.writing.insert_with_lifecycle(*dek.lease.context.digest(), dek.clone(), &mut evicted);
        evicted.0.retain(|old| old.lease.context != dek.lease.context);
    }

    pub(super) fn put_reading(&self, dek: &Arc<ReadingDek>) {
        self.register(dek);
        let mut evicted = EvictedNow::default();
        self.reading.insert_with_lifecycle((dek.lease.id, dek.lease.suite), dek.clone(), &mut evicted);
        evicted.0.retain(|old| (old.lease.id, old.lease.suite) != (dek.lease.id, dek.lease.suite));
    }

    fn register<D: Mortal + 'static>(&self, dek: &Arc<D>) {
        let weak = Arc::downgrade(dek);
        self.registry.add(weak, dek.lease().gone());
    }

    /// The denial of exactly this question, while it is remembered.
    pub(super) fn denial(&self, request: &Request) -> Option<Error> {
        let (until, error) = self.denied.get(request)?;
        if self.clock.now().is_past(until) {
            self.denied.remove(request);
            return None;
        }
        Some(error)
    }

    /// Remembers a denial.
    pub(super) fn remember_denial(&self, request: Request, error: &Error) {
        if !self.refuse_for.is_zero() {
            self.denied.insert(request, (self.clock.now().plus(self.refuse_for), error.clone()));
        }
    }

    /// Ends the DEKs for reading that were the answer to this question. Whoever asked another one about the same DEK is untouched.
    pub(super) fn end_reading(&self, id: &DekId, suite: Suite, request: Request) -> bool {
        let answer = self.reading.get(&(*id, suite)).filter(|dek| dek.lease.request == request);
        if answer.is_some() {
            self.reading.remove(&(*id, suite));
            self.end_where(|lease| lease.request == request);
        }
        answer.is_some()
    }

    /// Ends the DEKs for writing of a context.
    pub(super) fn end_writing(&self, context: &EncryptionContext, request: Request) {
        if self.writing.get(context.digest()).is_some() {
            self.writing.remove(context.digest());
            self.end_where(|lease| lease.request == request);
        }
    }

    /// Ends the DEKs that `which` picks, wherever they are, and waits until their keys are gone.
    fn end_where(&self, which: impl Fn(&Lease) -> bool) {
        self.registry.end_where(which);
    }

    /// For an operator's hand: as [`end_where`](Self::end_where), and no answer that is on its way counts.
    pub(super) fn revoke_where(&self, which: impl Fn(&Lease) -> bool) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        self.end_where(which);
    }

    pub(super) fn close(&self) {
        // An error says that it is closed already.
        let _ = self.closed.set_blocking(());
    }

    /// The answer, or an error as soon as the source is shut down.
    pub(super) async fn unless_closed<D>(&self, answer: impl Future<Output = Answer<D>>) -> Answer<D> {
        match select(std::pin::pin!(answer), std::pin::pin!(self.closed.wait())).await {
            Either::Left((answer, _)) => answer,
            Either::Right(_) => Err(shut_down()),
        }
    }

    pub(super) fn forget_denials(&self) {
        self.denied.clear();
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::SeqCst)
    }

    /// How many DEKs there are, for reading and for writing.
    pub(super) fn counts(&self) -> (usize, usize) {
        let alive = |lease: &Lease| lease.age() != Age::Gone;
        let reading = self.reading.iter().filter(|(_, dek)| alive(&dek.lease)).count();
        (reading, self.writing.iter().filter(|(_, dek)| alive(&dek.lease)).count())
    }

    /// In the child of a fork, where other threads' locks may be held for ever: ends what it can of the parent's DEKs.
    pub(super) fn abandon(&self) {
        self.registry.try_end_all();
    }
}

impl Drop for DekCache {
    fn drop(&mut self) {
        if self.is_of_this_process() {
            self.end_where(|_| true);
        }
    }
}

type Bounded<K, V> = Cache<K, V, UnitWeighter, DefaultHashBuilder, EndEvicted>;

fn bounded<K: Eq + std::hash::Hash, V: Clone + Evicted>(max_entries: u64) -> Bounded<K, V> {
    let capacity = usize::try_from(max_entries).unwrap_or(usize::MAX);
    // A shard has its part of the capacity, so few entries want few shards.
    let options = OptionsBuilder::new()
        .shards(shards().min(capacity / 64).max(1))
        .estimated_items_capacity(capacity.min(64))
        .weight_capacity(max_entries)
        .build();
    match options {
        Ok(options) => Cache::with_options(options, UnitWeighter, DefaultHashBuilder::default(), EndEvicted),
        // Nothing that the options need is left out.
        Err(_) => Cache::with(capacity.min(64), max_entries, UnitWeighter, DefaultHashBuilder::default(), EndEvicted),
    }
}

/// Ends what had to make room, handles included. What is replaced by a newer one is taken out before, and lives on for those who have it.
#[derive(Clone)]
struct EndEvicted;

/// Collects what was evicted while the cache's lock was held, and ends it when the lock is free again.
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

impl<D: Mortal> Evicted for Arc<D> {
    fn make_room(&self) {
        let Lease { id, context, observers, .. } = self.lease();
        observers.tell(&Event::Evicted { dek_id: id, context });
        end_now(&**self);
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

/// How many look-ups a thread answers itself for each one that the cache sees, which has to know what is in use.
const HITS_PER_LOOKUP: u8 = 64;
const MEMO_LEN: usize = 8;

/// What a thread used last. The keys can be destroyed under it at any time: that a DEK is remembered prolongs nothing.
struct Memo<D>([Option<Remembered<D>>; MEMO_LEN]);

struct Remembered<D> {
    cache: u64,
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

fn with_remembered<D: Mortal, R>(
    memo: &'static LocalKey<RefCell<Memo<D>>>,
    cache: u64,
    key: &[u8; 32],
    mine: impl FnOnce(&D) -> bool,
    work: impl FnOnce(&Arc<D>) -> R,
) -> Option<R> {
    memo.with(|memo| {
        // Busy if the caller's own code runs within `work`, which it does not; then the cache answers.
        let mut memo = memo.try_borrow_mut().ok()?;
        let remembered = memo.slot(key)?.as_mut()?;
        if remembered.cache != cache || remembered.hits == HITS_PER_LOOKUP || !mine(&remembered.dek) {
            return None;
        }
        if remembered.dek.lease().age() != Age::Fresh {
            return None;
        }
        remembered.hits += 1;
        Some(work(&remembered.dek))
    })
}

fn remember<D: 'static>(memo: &'static LocalKey<RefCell<Memo<D>>>, cache: u64, key: &[u8; 32], dek: &Arc<D>) {
    memo.with(|memo| {
        if let Ok(mut memo) = memo.try_borrow_mut()
            && let Some(slot) = memo.slot(key)
        {
            *slot = Some(Remembered { cache, hits: 0, dek: dek.clone() });
        }
    });
}
