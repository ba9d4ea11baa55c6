//! The keys that a provider uses, what is known of their versions, and the advice about calls to
//! them.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::answers::Protection;
use crate::format::{KeyName, Naming, VersionNumber};
use waxseal::kek::CallAdvice;
use waxseal::{CallBudget, Error};
use waxseal::{KekId, WrappedDek};

/// The maximum number of entries whose version is known only from `decrypt`.
const MOST_SETTLED: usize = 4096;

/// A call to an external key manager leaves Google's network and returns. Two such tries fit into
/// the default deadline of 5 s.
const EXTERNAL_TIMEOUT: Duration = Duration::from_millis(2400);
const EXTERNAL_BACKOFF: Duration = Duration::from_millis(100);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A key that wraps or unwraps.
pub(crate) struct Key {
    pub(crate) id: KekId,
    pub(crate) naming: Naming,
    /// A [`Protection`], from the last answer.
    protection: AtomicU8,
    budget: Option<CallBudget>,
}

impl Key {
    pub(crate) fn new(id: KekId, is_external: bool, budget: Option<CallBudget>) -> Self {
        let protection = if is_external { Protection::External } else { Protection::Unknown };
        Self {
            naming: Naming::new(id.as_str()),
            id,
            protection: AtomicU8::new(protection as u8),
            budget,
        }
    }

    pub(crate) fn name(&self) -> &str {
        self.id.as_str()
    }

    pub(crate) fn learn(&self, protection: Protection) {
        if protection != Protection::Unknown {
            self.protection.store(protection as u8, Ordering::Relaxed);
        }
    }

    fn quota(&self) -> &'static Quota {
        let protection = self.protection.load(Ordering::Relaxed);
        QUOTAS.iter().find(|quota| quota.of as u8 == protection).unwrap_or(&SOFTWARE)
    }

    /// Returns the advice about calls to this key: a part of the quota, and more time for an
    /// external key.
    pub(crate) fn advice(&self) -> CallAdvice {
        let quota = self.quota();
        let advice = CallAdvice::default();
        let advice = match (&self.budget, shared_budget(quota, self.name())) {
            (Some(budget), _) => advice.budget(budget.clone()),
            (None, Ok(budget)) => advice.budget(budget),
            (None, Err(_)) => advice,
        };
        match quota.of {
            Protection::External => advice.timeout(EXTERNAL_TIMEOUT).backoff(EXTERNAL_BACKOFF),
            _ => advice,
        }
    }
}

/// A quarter of the default quota that applies to a key of this kind ("Quotas" of Cloud KMS), so
/// that several hosts fit into it.
struct Quota {
    of: Protection,
    name: &'static str,
    per_second: u32,
    in_flight: u32,
}

/// 60,000 requests a minute of the calling project.
const SOFTWARE: Quota =
    Quota { of: Protection::Software, name: "crypto", per_second: 250, in_flight: 64 };
const QUOTAS: [Quota; 3] = [
    SOFTWARE,
    // 500 a second of the project that has the key, for each location.
    Quota { of: Protection::Hsm, name: "hsm", per_second: 125, in_flight: 64 },
    // 100 a second of the project that has the key, for each location.
    Quota { of: Protection::External, name: "external", per_second: 25, in_flight: 16 },
];

/// The default budgets, by quota, project and location. All envelopes and keys in this process
/// share them.
static BUDGETS: Mutex<BTreeMap<String, CallBudget>> = Mutex::new(BTreeMap::new());

fn shared_budget(quota: &Quota, key: &str) -> Result<CallBudget, Error> {
    let place = KeyName::read(key);
    let place = place.map(|name| format!("{}/{}", name.project, name.location));
    let name = format!("{}:{}", quota.name, place.unwrap_or_default());
    let mut budgets = lock(&BUDGETS);
    if let Some(budget) = budgets.get(&name) {
        return Ok(budget.clone());
    }
    let budget = CallBudget::new(quota.per_second, quota.in_flight)?;
    budgets.insert(name, budget.clone());
    Ok(budget)
}

/// The key that wraps, and those that only unwrap.
pub(crate) struct Keys {
    pub(crate) own: Key,
    pub(crate) former: Vec<Key>,
    primary: Mutex<Option<Known>>,
}

/// The primary version, if known.
#[derive(Clone, Copy)]
struct Known {
    version: VersionNumber,
    /// When the question was asked, not when the answer came, so that a late answer does not
    /// replace a newer one.
    asked: Instant,
}

impl Keys {
    pub(crate) fn new(own: Key, former: Vec<Key>) -> Self {
        Self { own, former, primary: Mutex::default() }
    }

    /// Returns the key of an entry; `None` if it is not for this provider.
    pub(crate) fn find(&self, kek_id: &KekId) -> Option<&Key> {
        std::iter::once(&self.own).chain(&self.former).find(|key| &key.id == kek_id)
    }

    /// Returns the number of the primary version of the key that wraps.
    pub(crate) fn primary(&self) -> Option<VersionNumber> {
        lock(&self.primary).map(|known| known.version)
    }

    pub(crate) fn learn_primary(&self, version: VersionNumber, asked: Instant) {
        let mut known = lock(&self.primary);
        if known.is_none_or(|known| known.asked <= asked) {
            *known = Some(Known { version, asked });
        }
    }

    /// Whether the primary version made this entry. An entry of a former key is never current.
    pub(crate) fn is_current(&self, wrapped: &WrappedDek, settled: &Settled) -> Option<bool> {
        if wrapped.kek_id() != &self.own.id {
            return self.find(wrapped.kek_id()).map(|_| false);
        }
        let primary = self.primary()?;
        match settled.of(wrapped) {
            Some(Made::By(version)) => Some(version == primary),
            Some(Made::NotBy(version)) if version == primary => Some(false),
            Some(Made::NotBy(_)) | None => {
                VersionNumber::of_meta(wrapped.meta()).map(|version| version == primary)
            }
        }
    }
}

/// What `decrypt` said about the version that made an entry: whether it was the primary one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Made {
    By(VersionNumber),
    NotBy(VersionNumber),
}

/// What `decrypt` said about entries. It takes precedence over what an entry says, which anyone may
/// have written.
#[derive(Default)]
pub(crate) struct Settled(Mutex<SettledEntries>);

#[derive(Default)]
struct SettledEntries {
    by_entry: HashMap<[u8; 32], Made>,
    /// The oldest first.
    order: VecDeque<[u8; 32]>,
}

impl Settled {
    /// `primary` is the primary version, if it was known to be the same before and after the call.
    ///
    /// If an entry names another version and the primary one opened it, that says nothing: either
    /// the entry is wrong, or the key was rotated and this process does not know yet.
    pub(crate) fn learn(
        &self,
        wrapped: &WrappedDek,
        used_primary: bool,
        primary: Option<VersionNumber>,
    ) {
        let Some(primary) = primary else { return };
        let claimed = VersionNumber::of_meta(wrapped.meta());
        let made = match (used_primary, claimed) {
            (true, Some(claimed)) if claimed != primary => return,
            (true, _) => Made::By(primary),
            (false, Some(claimed)) if claimed != primary => return,
            (false, _) => Made::NotBy(primary),
        };
        let entry = digest(wrapped);
        let mut settled = lock(&self.0);
        if settled.by_entry.insert(entry, made).is_none() {
            settled.order.push_back(entry);
        }
        if settled.order.len() > MOST_SETTLED
            && let Some(oldest) = settled.order.pop_front()
        {
            settled.by_entry.remove(&oldest);
        }
    }

    pub(crate) fn of(&self, wrapped: &WrappedDek) -> Option<Made> {
        let settled = lock(&self.0);
        if settled.by_entry.is_empty() {
            return None;
        }
        settled.by_entry.get(&digest(wrapped)).copied()
    }
}

fn digest(wrapped: &WrappedDek) -> [u8; 32] {
    let id = wrapped.kek_id().as_str();
    let mut hash = Sha256::new();
    hash.update(id.len().to_be_bytes());
    hash.update(id);
    hash.update(wrapped.wrapped());
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(key: &str) -> KekId {
        KekId::new(format!("projects/p/locations/l/keyRings/r/cryptoKeys/{key}")).unwrap()
    }

    fn keys() -> Keys {
        Keys::new(Key::new(id("own"), false, None), vec![Key::new(id("old"), false, None)])
    }

    fn entry(n: usize, version: Option<u64>) -> WrappedDek {
        let entry = WrappedDek::new(id("own"), n.to_be_bytes().to_vec()).unwrap();
        let meta = version.map(|version| VersionNumber(version).text()).unwrap_or_default();
        entry.with_meta(meta.into_bytes()).unwrap()
    }

    #[test]
    fn an_entry_is_current_as_cloud_kms_said_and_else_as_it_says_itself() {
        let (keys, settled) = (keys(), Settled::default());
        let current = |entry: &WrappedDek| keys.is_current(entry, &settled);
        assert_eq!(current(&entry(1, Some(2))), None, "nobody knows the primary version");
        keys.learn_primary(VersionNumber(2), Instant::now());
        assert_eq!(current(&entry(1, Some(2))), Some(true));
        assert_eq!(current(&entry(1, Some(1))), Some(false));
        assert_eq!(current(&entry(1, None)), None);
        let primary = Some(VersionNumber(2));
        settled.learn(&entry(3, Some(2)), false, primary);
        assert_eq!(current(&entry(3, Some(2))), Some(false), "it lied");
        assert_eq!(current(&entry(3, None)), Some(false));
        settled.learn(&entry(4, None), true, primary);
        assert_eq!(current(&entry(4, None)), Some(true));
        settled.learn(&entry(5, Some(1)), true, primary);
        assert_eq!(current(&entry(5, None)), None, "the key may have been rotated");
        let old = WrappedDek::new(id("old"), vec![1]).unwrap();
        assert_eq!(current(&old), Some(false));
        let foreign = WrappedDek::new(id("other"), vec![1]).unwrap();
        assert_eq!(current(&foreign), None);
    }

    #[test]
    fn a_late_answer_does_not_replace_a_newer_one() {
        let keys = keys();
        let early = Instant::now();
        let late = early + Duration::from_secs(1);
        keys.learn_primary(VersionNumber(2), late);
        keys.learn_primary(VersionNumber(1), early);
        assert_eq!(keys.primary(), Some(VersionNumber(2)));
        keys.learn_primary(VersionNumber(1), late);
        assert_eq!(keys.primary(), Some(VersionNumber(1)), "an administrator may go back");
    }

    #[test]
    fn what_is_settled_is_bounded() {
        let settled = Settled::default();
        for n in 0..MOST_SETTLED + 10 {
            settled.learn(&entry(n, None), true, Some(VersionNumber(1)));
        }
        assert_eq!(settled.of(&entry(0, None)), None, "the oldest is forgotten");
        assert!(settled.of(&entry(MOST_SETTLED, None)).is_some());
        assert_eq!(lock(&settled.0).by_entry.len(), MOST_SETTLED);
    }

    #[test]
    fn keys_under_one_quota_share_its_budget_and_others_do_not() {
        let budget = |key: &Key| key.advice().call_budget().unwrap().clone();
        let (a, b) = (Key::new(id("a"), false, None), Key::new(id("b"), false, None));
        assert!(budget(&a).is_same(&budget(&b)));
        a.learn(Protection::Hsm);
        assert!(!budget(&a).is_same(&budget(&b)));
        a.learn(Protection::Unknown);
        b.learn(Protection::Hsm);
        assert!(budget(&a).is_same(&budget(&b)), "what is known stays");
        let elsewhere = KekId::new(id("a").as_str().replace("/l/", "/l2/")).unwrap();
        let elsewhere = Key::new(elsewhere, false, None);
        elsewhere.learn(Protection::Hsm);
        assert!(!budget(&a).is_same(&budget(&elsewhere)));
        let own = CallBudget::new(4, 4).unwrap();
        let with_own = Key::new(id("a"), true, Some(own.clone()));
        assert!(budget(&with_own).is_same(&own));
    }
}
