//! Counts by caller and DEK, bounded in number and in memory.
//!
//! It is in the path of every message of a named caller, and takes one lock that other threads
//! seldom need. A caller that reads a page reads many messages of one DEK in a row, and these are
//! counted without a look-up. Others take two look-ups, without a hash function, since DEK ids are
//! already hashes.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};
use std::time::Duration;

use super::{Access, Accessed};
use crate::caller::Caller;
use crate::context::EncryptionContext;
use crate::memory::fork;
use crate::suite::DekId;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::shards::{shard, shards};
use crate::sync::{Mutex, MutexGuard, PoisonError};

/// How many pairs of a caller and a DEK are tracked between two reports, in all groups of threads
/// together.
pub(crate) const MAX_CALLERS: usize = 4096;
/// The maximum size of their names in bytes.
const MAX_MEMORY: usize = 4 << 20;

/// Messages of named callers since the last report.
pub(crate) struct CallerCounts {
    /// In the child of a fork, threads that are gone may hold the locks.
    generation: u64,
    groups: Box<[Group]>,
    pairs: AtomicUsize,
    memory: AtomicUsize,
}

/// On separate cache lines, so that no group waits for another.
#[derive(Default)]
#[repr(align(128))]
struct Group(Mutex<Counted>);

#[derive(Default)]
struct Counted {
    /// The pair that was counted at least twice in a row. Its messages are not yet in `deks`.
    row: Option<Row>,
    /// The hash of the last counted pair.
    last: u64,
    deks: HashMap<DekId, OfDek, BuildHasherDefault<AsItIs>>,
    /// Messages of pairs that exceeded the limits, by access.
    others: Messages,
}

struct Row {
    dek_id: DekId,
    caller: Caller,
    messages: Messages,
}

struct OfDek {
    context: EncryptionContext,
    /// By the hash of the caller, which nobody outside can predict.
    callers: HashMap<u64, Vec<Use>, BuildHasherDefault<AsItIs>>,
}

struct Use {
    caller: Caller,
    messages: Messages,
}

#[derive(Clone, Copy, Default)]
struct Messages {
    encrypted: u64,
    decrypted: u64,
}

impl Messages {
    fn count(&mut self, access: Access, messages: u64) {
        let counted = match access {
            Access::Encrypt => &mut self.encrypted,
            Access::Decrypt => &mut self.decrypted,
        };
        *counted = counted.saturating_add(messages);
    }

    fn add(&mut self, other: Self) {
        self.count(Access::Encrypt, other.encrypted);
        self.count(Access::Decrypt, other.decrypted);
    }

    /// Returns the non-zero counts.
    fn each(self) -> impl Iterator<Item = (Access, u64)> {
        [(Access::Encrypt, self.encrypted), (Access::Decrypt, self.decrypted)]
            .into_iter()
            .filter(|(_, messages)| *messages > 0)
    }
}

impl CallerCounts {
    pub(crate) fn new() -> Self {
        Self {
            generation: fork::generation(),
            groups: (0..shards()).map(|_| Group::default()).collect(),
            pairs: AtomicUsize::new(0),
            memory: AtomicUsize::new(0),
        }
    }

    /// Counts messages.
    pub(crate) fn count(
        &self,
        caller: &Caller,
        dek_id: &DekId,
        context: &EncryptionContext,
        access: Access,
        messages: u64,
    ) {
        if self.generation != fork::generation() {
            return;
        }
        let Some(group) = self.groups.get(shard()) else { return };
        let mut counted = lock(group);
        match &mut counted.row {
            Some(row) if row.dek_id == *dek_id && row.caller.is_who(caller) => {
                row.messages.count(access, messages);
            }
            _ => self.count_apart(&mut counted, caller, dek_id, context, access, messages),
        }
    }

    /// Counts messages of another caller or DEK than the last ones.
    fn count_apart(
        &self,
        counted: &mut Counted,
        caller: &Caller,
        dek_id: &DekId,
        context: &EncryptionContext,
        access: Access,
        messages: u64,
    ) {
        let Some(used) = counted.used(caller, dek_id) else {
            let mut first = Messages::default();
            first.count(access, messages);
            return self.count_first(counted, caller, dek_id, context, first);
        };
        used.messages.count(access, messages);
        let pair = BuildHasherDefault::<AsItIs>::default().hash_one(dek_id) ^ caller.who_hash();
        if std::mem::replace(&mut counted.last, pair) == pair {
            counted.end_row();
            let (dek_id, caller) = (*dek_id, caller.without_request_id());
            counted.row = Some(Row { dek_id, caller, messages: Messages::default() });
        }
    }

    /// Counts the first messages of a caller with a DEK.
    #[cold]
    fn count_first(
        &self,
        counted: &mut Counted,
        caller: &Caller,
        dek_id: &DekId,
        context: &EncryptionContext,
        messages: Messages,
    ) {
        let caller = caller.without_request_id();
        let memory = held(&caller, context);
        // Other groups may be at the same point, so a few more may be added.
        let is_full = self.pairs.load(Ordering::Relaxed) >= MAX_CALLERS
            || self.memory.load(Ordering::Relaxed).saturating_add(memory) > MAX_MEMORY;
        if is_full {
            return counted.others.add(messages);
        }
        self.pairs.fetch_add(1, Ordering::Relaxed);
        self.memory.fetch_add(memory, Ordering::Relaxed);
        counted.add(dek_id, context, Use { caller, messages });
    }

    /// Takes the counts of one DEK, which has ended.
    pub(crate) fn take_of(&self, dek_id: &DekId, within: Duration) -> Vec<Accessed> {
        let mut all = Counted::default();
        if self.generation == fork::generation() {
            for group in &self.groups {
                let mut counted = lock(group);
                counted.end_row();
                let of_dek = counted.deks.remove_entry(dek_id);
                drop(counted);
                self.release(of_dek.iter().map(|(_, of_dek)| of_dek));
                all.add_all(of_dek);
            }
        }
        all.told(within)
    }

    /// Takes all counts.
    pub(crate) fn take(&self, within: Duration) -> Vec<Accessed> {
        let mut all = Counted::default();
        if self.generation == fork::generation() {
            for group in &self.groups {
                let mut counted = std::mem::take(&mut *lock(group));
                counted.end_row();
                self.release(counted.deks.values());
                all.others.add(counted.others);
                all.add_all(counted.deks);
            }
        }
        all.told(within)
    }

    /// Makes room.
    fn release<'c>(&self, deks: impl Iterator<Item = &'c OfDek>) {
        for of_dek in deks {
            for used in of_dek.callers.values().flatten() {
                self.pairs.fetch_sub(1, Ordering::Relaxed);
                let held = held(&used.caller, &of_dek.context);
                self.memory.fetch_sub(held, Ordering::Relaxed);
            }
        }
    }
}

impl Counted {
    fn used(&mut self, caller: &Caller, dek_id: &DekId) -> Option<&mut Use> {
        let uses = self.deks.get_mut(dek_id)?.callers.get_mut(&caller.who_hash())?;
        uses.iter_mut().find(|used| used.caller.is_who(caller))
    }

    /// Adds the consecutive messages to the count of their pair.
    fn end_row(&mut self) {
        let Some(row) = self.row.take() else { return };
        if let Some(used) = self.used(&row.caller, &row.dek_id) {
            used.messages.add(row.messages);
        }
    }

    fn add(&mut self, dek_id: &DekId, context: &EncryptionContext, new: Use) {
        let of_dek = self
            .deks
            .entry(*dek_id)
            .or_insert_with(|| OfDek { context: context.clone(), callers: HashMap::default() });
        let uses = of_dek.callers.entry(new.caller.who_hash()).or_default();
        match uses.iter_mut().find(|used| used.caller.is_who(&new.caller)) {
            Some(used) => used.messages.add(new.messages),
            None => uses.push(new),
        }
    }

    fn add_all(&mut self, deks: impl IntoIterator<Item = (DekId, OfDek)>) {
        for (dek_id, OfDek { context, callers }) in deks {
            for new in callers.into_values().flatten() {
                self.add(&dek_id, &context, new);
            }
        }
    }

    fn told(self, within: Duration) -> Vec<Accessed> {
        let mut told = Vec::new();
        for (dek_id, OfDek { context, callers }) in self.deks {
            for Use { caller, messages } in callers.into_values().flatten() {
                told.extend(messages.each().map(|(access, messages)| Accessed::By {
                    caller: caller.clone(),
                    dek_id,
                    context: context.clone(),
                    access,
                    messages,
                    within,
                }));
            }
        }
        let others = self.others.each();
        told.extend(others.map(|(access, messages)| Accessed::Others { access, messages, within }));
        told
    }
}

/// Returns the approximate size of a pair in bytes. A context has its canonical bytes in addition
/// to its pairs.
fn held(caller: &Caller, context: &EncryptionContext) -> usize {
    caller.memory().saturating_add(2 * context.as_bytes().len())
}

fn lock(group: &Group) -> MutexGuard<'_, Counted> {
    group.0.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Hashes what is already a hash: the id of a DEK, which only counts after an authentic message,
/// and the keyed hash of a caller.
#[derive(Default)]
struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let first = bytes.iter().take(size_of::<u64>());
        self.0 = first.fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, number: u64) {
        self.0 ^= number;
    }

    /// The length of what follows.
    fn write_usize(&mut self, _: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(name: &str) -> Caller {
        Caller::builder().service(name).build().unwrap()
    }

    fn id(n: u32) -> DekId {
        let mut id = [0; 32];
        id[..4].copy_from_slice(&n.to_le_bytes());
        DekId::from_bytes(id)
    }

    /// The caller's name, if any, and the DEK.
    fn told(counts: Vec<Accessed>) -> Vec<(String, Option<DekId>, Access, u64)> {
        let mut told: Vec<_> = counts
            .into_iter()
            .map(|accessed| match accessed {
                Accessed::By { caller, dek_id, access, messages, .. } => {
                    (caller.service().unwrap().to_owned(), Some(dek_id), access, messages)
                }
                Accessed::Others { access, messages, .. } => {
                    (String::new(), None, access, messages)
                }
                Accessed::All { .. } => unreachable!(),
            })
            .collect();
        told.sort_by_key(|(name, id, access, _)| (name.clone(), *id, access.as_str()));
        told
    }

    #[test]
    fn each_message_is_told_once_by_caller_dek_and_access_whichever_thread_counts() {
        let (counts, context) = (CallerCounts::new(), EncryptionContext::empty());
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    // A second caller value for the same caller, in another request.
                    let a = caller("a").with_request_id("7").unwrap();
                    // In turn, and in a row.
                    for n in 0..100 {
                        counts.count(&a, &id(1), &context, Access::Decrypt, 1);
                        for _ in 0..n % 4 {
                            counts.count(&caller("b"), &id(1), &context, Access::Encrypt, 1);
                        }
                    }
                    counts.count(&a, &id(2), &context, Access::Decrypt, 1);
                });
            }
        });
        let (a, b) = ("a".to_owned(), "b".to_owned());
        let of_one = told(counts.take_of(&id(1), Duration::ZERO));
        let expected = [
            (a.clone(), Some(id(1)), Access::Decrypt, 800),
            (b, Some(id(1)), Access::Encrypt, 1200),
        ];
        assert_eq!(of_one, expected);
        let rest = told(counts.take(Duration::ZERO));
        assert_eq!(rest, [(a, Some(id(2)), Access::Decrypt, 8)]);
        assert!(counts.take(Duration::ZERO).is_empty());
    }

    #[test]
    fn what_is_over_the_bound_is_told_without_a_caller_and_room_comes_back() {
        let (counts, context) = (CallerCounts::new(), EncryptionContext::empty());
        for _ in 0..2 {
            for n in 0..u32::try_from(MAX_CALLERS).unwrap() + 10 {
                counts.count(&caller(&format!("{n:05}")), &id(n), &context, Access::Decrypt, 1);
            }
            let told = told(counts.take(Duration::ZERO));
            assert_eq!(told.len(), MAX_CALLERS + 1);
            assert_eq!(told[0], (String::new(), None, Access::Decrypt, 10));
        }
        // A caller may have names of 64 KiB.
        let long = |n: u32| {
            let groups = (0..60).map(|group| format!("{n}-{group}-{}", "x".repeat(1000)));
            Caller::builder().service(n.to_string()).groups(groups).build().unwrap()
        };
        for n in 0..200 {
            counts.count(&long(n), &id(n), &context, Access::Decrypt, 1);
        }
        let told = told(counts.take(Duration::ZERO));
        assert!(told.len() < 100, "{} callers were kept", told.len());
        assert_eq!(told.iter().map(|(.., messages)| messages).sum::<u64>(), 200);
        let empty = (counts.pairs.load(Ordering::Relaxed), counts.memory.load(Ordering::Relaxed));
        assert_eq!(empty, (0, 0));
    }
}
