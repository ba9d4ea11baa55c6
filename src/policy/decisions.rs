//! The cached decisions. moka bounds their number, and each has its end. In front of it each thread
//! remembers the last few, so that a decision costs less than a look-up.
//!
//! Questions are compared whole, never by a hash alone, so that a decision answers no other one.
#![forbid(unsafe_code)]

use std::cell::RefCell;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::sync::Cache;

use super::Decision;
use super::options::OptionsInForce;
use crate::caller::{Action, Caller};
use crate::clock::Moment;
use crate::context::EncryptionContext;
use crate::memory::fork::{OfProcess, PerProcess};

/// A question of this size counts as one decision, a longer one as several.
const BYTES_OF_ONE: usize = 1024;
/// How many decisions a thread remembers.
const REMEMBERED: u64 = 16;
const REMEMBERED_LEN: usize = 16;

/// When the rules changed last. A decision of another state of the rules is not used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stamp {
    /// What the policy says.
    pub(super) generation: u64,
    /// How often decisions were dropped here.
    pub(super) epoch: u64,
}

/// What a decision depends on, but for the time and what is the same for a whole envelope.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) operation: Action,
    pub(super) context: &'a EncryptionContext,
    pub(super) caller: Option<&'a Caller>,
}

/// A decision and for how long it is used.
#[derive(Clone)]
pub(super) struct Entry {
    pub(super) decision: Arc<Decision>,
    pub(super) stamp: Stamp,
    /// Until when it is used without asking.
    pub(super) until: Moment,
    /// Until when it is used while the policy is unavailable.
    pub(super) last_known_until: Moment,
}

#[derive(Clone)]
struct AskedBefore {
    operation: Action,
    context: EncryptionContext,
    /// With its request only if a decision may depend on that.
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
    fn of(asked: Asked<'_>, with_request_id: bool) -> Self {
        let caller = asked.caller.map(|caller| match with_request_id {
            true => caller.clone(),
            false => caller.without_request_id(),
        });
        Self { operation: asked.operation, context: asked.context.clone(), caller }
    }

    /// Whether it is this question, without a key being made for it.
    fn is(&self, asked: Asked<'_>, with_request_id: bool) -> bool {
        let is_caller = match (&self.caller, asked.caller) {
            (None, None) => true,
            (Some(a), Some(b)) if with_request_id => a == b,
            (Some(a), Some(b)) => a.is_who(b),
            _ => false,
        };
        is_caller && self.operation == asked.operation && self.context == *asked.context
    }

    fn weight(&self) -> u32 {
        let bytes = self.context.as_bytes().len() + self.caller.as_ref().map_or(0, Caller::bytes);
        u32::try_from(bytes.div_ceil(BYTES_OF_ONE)).unwrap_or(u32::MAX).max(1)
    }
}

/// What a thread remembers.
struct Remembered {
    owner: u64,
    key: AskedBefore,
    entry: Entry,
    /// How often it was used.
    uses: u32,
}

thread_local! {
    static REMEMBERED_HERE: RefCell<[Option<Remembered>; REMEMBERED_LEN]> =
        const { RefCell::new([const { None }; REMEMBERED_LEN]) };
}

type Cached = Cache<AskedBefore, Entry>;

/// The decisions of one envelope.
pub(super) struct Decisions {
    /// Distinguishes them in what threads remember.
    number: u64,
    with_request_id: bool,
    max_decisions: u64,
    /// For how long a decision can be of use. moka frees the memory some time after it.
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

    /// Looks for the decision about this question that is in force. `quick` is given it, and how
    /// often this thread has used it. It calls no foreign code. Where it returns nothing, the
    /// decision itself is returned, as the error.
    pub(super) fn with<R>(
        &self,
        asked: Asked<'_>,
        stamp: Stamp,
        now: Moment,
        quick: impl Fn(&Entry, u32) -> Option<R>,
    ) -> Option<Result<R, Entry>> {
        let in_force = |entry: &Entry| entry.stamp == stamp && !now.is_past(entry.until);
        let answer = |entry: &Entry, uses: u32| quick(entry, uses).ok_or_else(|| entry.clone());
        let remembered = self.slot(asked, |slot| {
            let remembered = slot.as_mut()?;
            if remembered.owner != self.number
                || !in_force(&remembered.entry)
                || !remembered.key.is(asked, self.with_request_id)
            {
                return None;
            }
            remembered.uses = remembered.uses.wrapping_add(1);
            Some(answer(&remembered.entry, remembered.uses))
        });
        if remembered.is_some() {
            return remembered;
        }
        let key = AskedBefore::of(asked, self.with_request_id);
        let entry = self.cached().get(&key).filter(in_force)?;
        let answer = answer(&entry, 1);
        let new = Remembered { owner: self.number, key, entry, uses: 1 };
        self.slot(asked, |slot| slot.replace(new));
        Some(answer)
    }

    /// Returns the last decision about this question, whether in force or not.
    pub(super) fn last(&self, asked: Asked<'_>) -> Option<Entry> {
        self.cached().get(&AskedBefore::of(asked, self.with_request_id))
    }

    pub(super) fn put(&self, asked: Asked<'_>, entry: Entry) {
        self.cached().insert(AskedBefore::of(asked, self.with_request_id), entry);
    }

    /// How many decisions are cached.
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
                .weigher(|key: &AskedBefore, _| key.weight())
                .time_to_live(self.kept_for)
                .build()
        })
    }

    /// The place where this thread remembers the decision about a question. `None` while the thread
    /// ends.
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
        Entry { decision, stamp: STAMP, until, last_known_until: until }
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
        let look = |stamp| decisions.with(asked, stamp, clock.now(), |_, uses| Some(uses));
        assert!(look(Stamp { generation: 2, epoch: 1 }).is_none());
        assert!(look(Stamp { generation: 1, epoch: 2 }).is_none());
        // From the cache, and then from what the thread remembers.
        assert!(matches!(look(STAMP), Some(Ok(1))));
        assert!(matches!(look(STAMP), Some(Ok(2))));
        assert!(look(Stamp { generation: 2, epoch: 1 }).is_none());
        manual.advance(Duration::from_secs(29));
        assert!(look(STAMP).is_some());
        manual.advance(Duration::from_secs(1));
        assert!(look(STAMP).is_none());
        assert!(decisions.last(asked).is_some());
    }
}
