//! The cached decisions. moka bounds their number, and each has an end. In front of the cache, each
//! thread remembers the last few decisions, so that they cost less than a look-up.
//!
//! Questions are compared completely, never just by a hash, so that a decision never answers
//! another question.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use moka::ops::compute::Op;
use moka::sync::Cache;

use super::Decision;
use super::options::OptionsInForce;
use crate::caller::{Action, Caller, memory_of};
use crate::clock::Moment;
use crate::context::EncryptionContext;
use crate::memory::fork::{OfProcess, PerProcess};

/// A decision of this size counts as one, and a larger one as several.
const BYTES_OF_ONE: usize = 1024;
/// The approximate overhead of a decision beyond its texts: keys, pointers, the cache's own data.
const BYTES_OF_EACH: usize = 384;
/// A decision that counts as more than this is not remembered by threads, and the cache is trimmed
/// to its bound at once.
const HEAVY: u32 = 8;
/// A decision that counts as more is not cached, since moka frees evicted memory late.
const TOO_HEAVY: u32 = 256;
/// How many decisions a thread remembers.
const REMEMBERED: u64 = 16;
const REMEMBERED_LEN: usize = 16;

/// The last change of the rules. A decision under other rules is not used.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Stamp {
    /// The generation that the policy reports.
    pub(super) generation: u64,
    /// The number of times that decisions were dropped here.
    pub(super) epoch: u64,
}

/// What a decision depends on, except for the time and what is the same for a whole envelope.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) operation: Action,
    pub(super) context: &'a EncryptionContext,
    pub(super) caller: Option<&'a Caller>,
}

/// A decision and how long it is used.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) decision: Arc<Decision>,
    /// Later questions have higher numbers.
    pub(super) question: u64,
    pub(super) stamp: Stamp,
    /// Until when it is used without asking.
    pub(super) until: Moment,
    /// Until when it is used while the policy is unavailable.
    pub(super) last_known_until: Moment,
    /// How often it, and earlier decisions about the same question, allowed from the cache. Counted
    /// only if these are reported.
    pub(super) uses: Arc<AtomicU32>,
}

impl Entry {
    pub(super) fn is_in_force(&self, stamp: Stamp, now: Moment) -> bool {
        self.stamp == stamp && !now.is_past(self.until)
    }

    /// Whether it is used in an outage.
    pub(super) fn is_last_known(&self, stamp: Stamp, now: Moment) -> bool {
        self.stamp == stamp && !now.is_past(self.last_known_until)
    }

    /// Whether its question is newer. Under other rules every question is.
    fn is_newer_than(&self, other: &Self) -> bool {
        (self.stamp.epoch, self.question) > (other.stamp.epoch, other.question)
    }
}

/// A question without its caller's borrows.
#[derive(Clone)]
pub(super) struct AskedBefore {
    operation: Action,
    context: EncryptionContext,
    /// Includes the request only if a decision may depend on it.
    caller: Option<Caller>,
}

impl Hash for AskedBefore {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.operation, self.context.digest(), &self.caller).hash(state);
    }
}

impl PartialEq for AskedBefore {
    fn eq(&self, other: &Self) -> bool {
        (self.operation, &self.context, &self.caller)
            == (other.operation, &other.context, &other.caller)
    }
}

impl Eq for AskedBefore {}

impl AskedBefore {
    pub(super) fn of(asked: Asked<'_>, with_request_id: bool) -> Self {
        let caller = asked.caller.map(|caller| match with_request_id {
            true => caller.clone(),
            false => caller.without_request_id(),
        });
        Self { operation: asked.operation, context: asked.context.clone(), caller }
    }

    pub(super) fn as_asked(&self) -> Asked<'_> {
        let Self { operation, context, caller } = self;
        Asked { operation: *operation, context, caller: caller.as_ref() }
    }

    /// Compares a question without building a key for it.
    #[inline]
    fn is(&self, asked: Asked<'_>, with_request_id: bool) -> bool {
        let is_caller = match (&self.caller, asked.caller) {
            (None, None) => true,
            (Some(a), Some(b)) if with_request_id => a == b,
            (Some(a), Some(b)) => a.is_who(b),
            _ => false,
        };
        is_caller && self.operation == asked.operation && self.context == *asked.context
    }

    /// Returns how many decisions it counts as, with its answer.
    fn weight(&self, answer: &Decision) -> u32 {
        let pairs = self.context.iter().map(|(name, value)| memory_of([name, value]));
        // The context has its canonical bytes in addition to its pairs.
        let context = self.context.as_bytes().len() + pairs.sum::<usize>();
        let caller = self.caller.as_ref().map_or(0, Caller::memory);
        let reasons = memory_of(answer.reasons().iter().map(|reason| &**reason));
        let bytes = BYTES_OF_EACH + context + caller + reasons + memory_of(answer.revision());
        u32::try_from(bytes.div_ceil(BYTES_OF_ONE)).unwrap_or(u32::MAX)
    }
}

/// A decision that a thread remembers. Fields that are checked first come first.
struct Remembered {
    owner: u64,
    /// Whether it allows.
    allows: bool,
    key: AskedBefore,
    entry: Entry,
}

thread_local! {
    static REMEMBERED_HERE: RefCell<[Option<Remembered>; REMEMBERED_LEN]> =
        const { RefCell::new([const { None }; REMEMBERED_LEN]) };
}

type Cached = Cache<AskedBefore, Entry>;

/// The decisions of one envelope.
pub(super) struct Decisions {
    /// Distinguishes this cache in what threads remember.
    number: u64,
    with_request_id: bool,
    max_decisions: u64,
    /// How long a decision can be useful. moka frees the memory some time after that.
    kept_for: Duration,
    cached: PerProcess<Cached>,
}

impl Decisions {
    pub(super) fn new(options: &OptionsInForce) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            with_request_id: options.with_request_id,
            max_decisions: options.max_decisions,
            kept_for: options.cache_for.saturating_add(options.last_known_for),
            cached: PerProcess::new(),
        }
    }

    /// Looks up the decision in force about this question and passes it to `quick`, which calls no
    /// foreign code. If that returns nothing, the decision itself is returned as the error.
    pub(super) fn with<R>(
        &self,
        asked: Asked<'_>,
        stamp: Stamp,
        now: Moment,
        quick: impl Fn(&Entry) -> Option<R>,
    ) -> Option<Result<R, Entry>> {
        let answer = |entry: &Entry| quick(entry).ok_or_else(|| entry.clone());
        let remembered = self.slot(asked, |slot| {
            let remembered = slot.as_ref()?;
            self.answers(remembered, asked, stamp, now).then(|| answer(&remembered.entry))
        });
        if remembered.is_some() {
            return remembered;
        }
        let key = AskedBefore::of(asked, self.with_request_id);
        let entry = self.cached().get(&key).filter(|entry| entry.is_in_force(stamp, now))?;
        let answer = answer(&entry);
        if key.weight(&entry.decision) <= HEAVY {
            let allows = entry.decision.is_allowed();
            let new = Remembered { owner: self.number, allows, key, entry };
            self.slot(asked, |slot| slot.replace(new));
        }
        Some(answer)
    }

    /// Whether this thread remembers that this question is allowed and the decision is in force.
    /// Most operations ask no more, so nothing is moved.
    #[inline]
    pub(super) fn remembers_allow(&self, asked: Asked<'_>, stamp: Stamp, now: Moment) -> bool {
        let allows = self.slot(asked, |slot| {
            let remembered = slot.as_ref()?;
            Some(remembered.allows && self.answers(remembered, asked, stamp, now))
        });
        allows == Some(true)
    }

    /// Whether the remembered decision is about this question and in force.
    #[inline]
    fn answers(&self, of: &Remembered, asked: Asked<'_>, stamp: Stamp, now: Moment) -> bool {
        of.owner == self.number
            && of.entry.is_in_force(stamp, now)
            && of.key.is(asked, self.with_request_id)
    }

    /// Returns the last decision about this question, in force or not.
    pub(super) fn last(&self, asked: Asked<'_>) -> Option<Entry> {
        self.cached().get(&AskedBefore::of(asked, self.with_request_id))
    }

    /// Stores a decision, unless a newer question has one. It also stores a decision that has
    /// ended: it replaces an older one, which must not return in an outage.
    pub(super) fn put(&self, asked: Asked<'_>, mut entry: Entry) {
        if self.kept_for.is_zero() {
            return;
        }
        let (cached, key) = (self.cached(), AskedBefore::of(asked, self.with_request_id));
        let weight = key.weight(&entry.decision);
        if weight > TOO_HEAVY {
            return cached.invalidate(&key);
        }
        cached.entry(key).and_compute_with(|old| match old.as_ref().map(moka::Entry::value) {
            Some(old) if !entry.is_newer_than(old) => Op::Nop,
            old => {
                if let Some(old) = old {
                    entry.uses = old.uses.clone();
                }
                Op::Put(entry)
            }
        });
        if weight > HEAVY {
            cached.run_pending_tasks();
        }
    }

    /// Extends the decision of question `question` until `until`, if it is still there. Returns the
    /// current decision.
    pub(super) fn prolong(&self, asked: Asked<'_>, question: u64, until: Moment) -> Option<Entry> {
        let key = AskedBefore::of(asked, self.with_request_id);
        let result = self.cached().entry(key).and_compute_with(|there| match there {
            Some(there) if there.value().question == question => {
                let mut entry = there.into_value();
                entry.until = until.earlier(entry.last_known_until);
                Op::Put(entry)
            }
            _ => Op::Nop,
        });
        result.into_entry().map(moka::Entry::into_value)
    }

    /// Returns the number of cached decisions.
    #[cfg(test)]
    pub(super) fn weight(&self) -> (u64, u64) {
        let cached = self.cached();
        cached.run_pending_tasks();
        (cached.entry_count(), cached.weighted_size())
    }

    fn cached(&self) -> Arc<OfProcess<Cached>> {
        self.cached.get_or_init(|| {
            Cache::builder()
                .max_capacity(self.max_decisions)
                .weigher(|key: &AskedBefore, entry: &Entry| key.weight(&entry.decision))
                .time_to_live(self.kept_for)
                .build()
        })
    }

    /// Returns the slot in which this thread remembers the decision about a question. `None` while
    /// the thread ends.
    #[inline]
    fn slot<R>(
        &self,
        asked: Asked<'_>,
        work: impl FnOnce(&mut Option<Remembered>) -> Option<R>,
    ) -> Option<R> {
        let [context, ..] = asked.context.digest();
        let who = asked.caller.map_or(0, Caller::who_hash);
        let mixed = self.number ^ who ^ u64::from(*context) ^ (asked.operation as u64) << 2;
        let index = usize::try_from(mixed % REMEMBERED).unwrap_or_default();
        let work = |all: &RefCell<[Option<Remembered>; REMEMBERED_LEN]>| {
            work(all.try_borrow_mut().ok()?.get_mut(index)?)
        };
        REMEMBERED_HERE.try_with(work).ok().flatten()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::clock::{Clock, ManualClock};
    use crate::policy::PolicyOptions;

    const STAMP: Stamp = Stamp { generation: 1, epoch: 1 };

    fn decisions(options: PolicyOptions) -> Decisions {
        Decisions::new(&options.check(Duration::from_secs(300)).unwrap())
    }

    fn entry(clock: &Clock) -> Entry {
        let until = clock.now().plus(Duration::from_secs(30));
        let decision = Arc::new(Decision::allow());
        let uses = Arc::default();
        Entry { decision, question: 1, stamp: STAMP, until, last_known_until: until, uses }
    }

    fn numbered(clock: &Clock, question: u64, epoch: u64) -> Entry {
        Entry { question, stamp: Stamp { generation: 1, epoch }, ..entry(clock) }
    }

    #[test]
    fn a_hundred_thousand_callers_and_long_texts_leave_a_bounded_cache() {
        let (clock, context) = (Clock::Manual(ManualClock::new()), EncryptionContext::empty());
        let decisions = decisions(PolicyOptions::default().max_decisions(1000));
        let put = |caller: &Caller| {
            let (operation, context) = (Action::Decrypt, &context);
            decisions.put(Asked { operation, context, caller: Some(caller) }, entry(&clock));
        };
        for n in 0..100_000 {
            put(&Caller::builder().attribute("user", format!("user {n}")).build().unwrap());
        }
        let (entries, weight) = decisions.weight();
        assert!((1..=1000).contains(&entries) && weight <= 1000, "{entries} {weight}");
        for n in 0..100 {
            let groups = (0..60).map(|i| format!("{i}{n:01000}"));
            put(&Caller::builder().groups(groups).build().unwrap());
        }
        let (_, weight) = decisions.weight();
        assert!(weight <= 1000, "{weight}");
    }

    #[test]
    fn a_decision_is_not_of_use_after_its_end_or_under_other_rules() {
        let manual = ManualClock::new();
        let (clock, context) = (Clock::Manual(manual.clone()), EncryptionContext::empty());
        let decisions = decisions(PolicyOptions::default());
        let asked = Asked { operation: Action::Encrypt, context: &context, caller: None };
        decisions.put(asked, entry(&clock));
        let look = |stamp| decisions.with(asked, stamp, clock.now(), |entry| Some(entry.question));
        assert!(look(Stamp { generation: 2, epoch: 1 }).is_none());
        assert!(look(Stamp { generation: 1, epoch: 2 }).is_none());
        // From the cache first, and then from what the thread remembers.
        assert!(matches!(look(STAMP), Some(Ok(1))));
        assert!(matches!(look(STAMP), Some(Ok(1))));
        assert!(look(Stamp { generation: 2, epoch: 1 }).is_none());
        manual.advance(Duration::from_secs(29));
        assert!(look(STAMP).is_some());
        manual.advance(Duration::from_secs(1));
        assert!(look(STAMP).is_none());
        assert!(decisions.last(asked).is_some());
    }

    #[test]
    fn what_a_thread_remembers_allows_this_question_alone_under_these_rules_until_the_end() {
        let manual = ManualClock::new();
        let (clock, context) = (Clock::Manual(manual.clone()), EncryptionContext::empty());
        let [one, other] =
            [decisions(PolicyOptions::default()), decisions(PolicyOptions::default())];
        let caller = Caller::builder().service("billing").build().unwrap();
        let asked = Asked { operation: Action::Decrypt, context: &context, caller: Some(&caller) };
        one.put(asked, entry(&clock));
        let allows = |asked, stamp| one.remembers_allow(asked, stamp, clock.now());
        assert!(!allows(asked, STAMP), "it is in the cache, and this thread has not met it");
        assert!(one.with(asked, STAMP, clock.now(), |_| Some(())).is_some());
        assert!(allows(asked, STAMP));
        let request = caller.with_request_id("7").unwrap();
        let elsewhere = EncryptionContext::new([("tenant", "acme")]).unwrap();
        for different in [
            Asked { operation: Action::Encrypt, ..asked },
            Asked { caller: None, ..asked },
            Asked { caller: Some(&request), ..asked },
            Asked { context: &elsewhere, ..asked },
        ] {
            assert!(!allows(different, STAMP));
        }
        assert!(!other.remembers_allow(asked, STAMP, clock.now()), "of another envelope");
        assert!(!allows(asked, Stamp { generation: 2, ..STAMP }));
        assert!(!allows(asked, Stamp { epoch: 2, ..STAMP }));
        assert!(std::thread::scope(|scope| {
            scope.spawn(|| !allows(asked, STAMP)).join().unwrap()
        }));
        manual.advance(Duration::from_secs(30));
        assert!(!allows(asked, STAMP));
        let denied = Arc::new(Decision::deny(["no"]));
        one.put(asked, Entry { decision: denied, question: 2, ..entry(&clock) });
        assert!(one.with(asked, STAMP, clock.now(), |_| Some(())).is_some());
        assert!(!allows(asked, STAMP), "a denial is remembered as one");
    }

    #[test]
    fn only_a_newer_question_replaces_a_decision_and_an_outage_prolongs_what_it_saw() {
        let (clock, context) = (Clock::Manual(ManualClock::new()), EncryptionContext::empty());
        let decisions = decisions(PolicyOptions::default());
        let asked = Asked { operation: Action::Encrypt, context: &context, caller: None };
        let last = || decisions.last(asked).map(|entry| (entry.stamp.epoch, entry.question));
        for (question, epoch, expected) in
            [(5, 1, (1, 5)), (4, 1, (1, 5)), (6, 1, (1, 6)), (3, 2, (2, 3)), (9, 1, (2, 3))]
        {
            decisions.put(asked, numbered(&clock, question, epoch));
            assert_eq!(last(), Some(expected));
        }
        let until = clock.now().plus(Duration::from_secs(1));
        assert!(decisions.prolong(asked, 6, until).unwrap().until != until);
        assert!(decisions.prolong(asked, 3, until).unwrap().until == until);
        let nobody = Asked { operation: Action::Decrypt, ..asked };
        assert!(decisions.prolong(nobody, 3, until).is_none());
    }
}
