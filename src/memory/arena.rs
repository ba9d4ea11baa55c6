//! Holds secrets in slots of 32 bytes, in pages that are locked, kept out of core dumps and wiped
//! in forked children, as far as the system allows. Otherwise secrets are in ordinary memory, and
//! [`protection`](super::protection) reports it.
//!
//! Pages are never returned to the system, so that a slot is a plain `&'static mut` that is lent
//! and returned. A forked child begins a new arena. Inherited secrets of its parent are never lent
//! again.
#![forbid(unsafe_code)]

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwapOption;

use super::pages::Page;
use super::protection::{MemoryProtection, Record};
use super::{fork, wipe};

type Bytes = &'static mut [u8; 32];

/// Thirty-two bytes on loan, zeroed at first.
pub(super) struct Loan {
    pub(super) bytes: Bytes,
    locked: bool,
    generation: u64,
}

impl Loan {
    pub(super) fn is_of_this_process(&self) -> bool {
        self.generation == fork::generation()
    }
}

struct Arena {
    generation: u64,
    pieces: Mutex<Pieces>,
}

/// The free slots, all zeros, and the protection of each page.
#[derive(Default)]
struct Pieces {
    /// Lent before the others.
    locked: Vec<Bytes>,
    unlocked: Vec<Bytes>,
    record: Record,
}

/// Held in a pointer that is swapped and not in a lock, which a thread that a fork left behind
/// could hold.
static ARENA: ArcSwapOption<Arena> = ArcSwapOption::const_empty();

pub(super) fn lend() -> Loan {
    let arena = current();
    let (bytes, locked) = arena.lock().take();
    Loan { bytes, locked, generation: arena.generation }
}

/// Wipes the bytes and keeps them for the next loan.
pub(super) fn give_back(loan: Loan) {
    let Loan { bytes, locked, generation } = loan;
    wipe(bytes);
    // In the child of a fork, the parent's pages are neither locked nor counted, and are left
    // alone.
    if let Some(arena) = &*ARENA.load()
        && arena.generation == generation
        && generation == fork::generation()
    {
        let mut pieces = arena.lock();
        if locked { pieces.locked.push(bytes) } else { pieces.unlocked.push(bytes) }
    }
}

/// Passes the record of protection to `look`, after requesting the first page if there is none yet.
fn with_record<R>(look: impl FnOnce(&mut Record) -> R) -> R {
    give_back(lend());
    look(&mut current().lock().record)
}

/// Returns the system's protection of the memory in which this process keeps secrets. It requests
/// the first page if there is none yet, so a service can log the answer when it starts. Later pages
/// may hit a limit that the first one did not.
///
/// ```
/// let protection = waxseal::memory_protection();
/// if !protection.is_complete() {
///     eprintln!("{protection}");
/// }
/// ```
#[must_use]
pub fn memory_protection() -> MemoryProtection {
    with_record(|record| record.protection())
}

/// Returns the protection the first time it is incomplete in this process.
///
/// It is called after DEKs are made: pages are requested as needed, and any of them may be the
/// first to be refused.
pub(crate) fn protection_notice() -> Option<MemoryProtection> {
    with_record(Record::notice)
}

/// The arena of this process.
fn current() -> Arc<Arena> {
    let generation = fork::generation();
    match ARENA.load_full() {
        Some(arena) if arena.generation == generation => arena,
        old => begin(generation, old),
    }
}

#[cold]
fn begin(generation: u64, old: Option<Arc<Arena>>) -> Arc<Arena> {
    let arena = Arc::new(Arena { generation, pieces: Mutex::default() });
    let before = ARENA.compare_and_swap(&old, Some(arena.clone()));
    // After a fork the old arena's lists may be inconsistent. It is never dropped, so that it is
    // never touched.
    std::mem::forget(old);
    match before.as_ref() {
        Some(other) if other.generation == generation => other.clone(),
        _ => arena,
    }
}

impl Arena {
    fn lock(&self) -> MutexGuard<'_, Pieces> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pieces {
    /// Returns a free piece, and whether it is locked.
    fn take(&mut self) -> (Bytes, bool) {
        if let Some(bytes) = self.locked.pop() {
            return (bytes, true);
        }
        match self.unlocked.pop() {
            Some(bytes) => (bytes, false),
            None => self.take_from_new_page(),
        }
    }

    #[cold]
    fn take_from_new_page(&mut self) -> (Bytes, bool) {
        let (bytes, locked) = match Page::map() {
            Ok(page) => {
                let lock = page.lock();
                let (locked, dump, fork) =
                    (lock.is_ok(), page.exclude_from_dumps(), page.wipe_on_fork());
                let bytes = page.into_secrets();
                self.record.add(bytes.as_flattened().len(), lock, dump, fork);
                (bytes, locked)
            }
            Err(error) => {
                let bytes: &'static mut [[u8; 32]] = Box::leak(Box::new([[0; 32]; 64]));
                let refused =
                    || Err(io::Error::new(error.kind(), format!("no page for secrets: {error}")));
                self.record.add(bytes.as_flattened().len(), refused(), refused(), refused());
                (bytes, false)
            }
        };
        let free = if locked { &mut self.locked } else { &mut self.unlocked };
        // Room for every slot, so that returning one never allocates.
        free.reserve(self.record.pieces());
        let mut bytes = bytes.iter_mut();
        match bytes.next() {
            Some(first) => {
                free.extend(bytes);
                (first, locked)
            }
            // No page is smaller than 32 bytes.
            None => (Box::leak(Box::default()), false),
        }
    }
}

#[cfg(target_os = "linux")]
#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::super::pages::forked::{in_child, limit_locked_memory};
    use super::super::{Secret32, fork};
    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Make(u8),
        MakeMany(u8),
        Drop(prop::sample::Index),
        Fork,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            12 => (1..=255_u8).prop_map(Step::Make),
            1 => (1..=255_u8).prop_map(Step::MakeMany),
            10 => any::<prop::sample::Index>().prop_map(Step::Drop),
            1 => Just(Step::Fork),
        ];
        prop::collection::vec(step, 1..60)
    }

    struct Live {
        secret: Secret32,
        content: [u8; 32],
        generation: u64,
    }

    fn make(live: &mut Vec<Live>, byte: u8) {
        let mut secret = Secret32::zeroed();
        assert_eq!(secret.expose(), &[0; 32], "what another secret left");
        let number = u64::try_from(live.len()).unwrap().to_le_bytes();
        let mut content = [byte; 32];
        content[..8].copy_from_slice(&number);
        secret.expose_mut().copy_from_slice(&content);
        live.push(Live { secret, content, generation: fork::generation() });
    }

    fn check(live: &[Live]) {
        let mut places = HashSet::new();
        let mut place = |bytes: &[u8; 32]| {
            assert!(
                bytes.as_ptr().addr().is_multiple_of(32) && places.insert(bytes.as_ptr().addr())
            )
        };
        for Live { secret, content, generation } in live {
            place(secret.expose());
            if *generation == fork::generation() {
                assert!(secret.is_of_this_process());
                assert_eq!(secret.expose(), content);
            } else {
                assert!(!secret.is_of_this_process() && secret.try_clone().is_none());
                assert_eq!(secret.expose(), &[0; 32], "a parent's secret");
            }
        }
        let arena = current();
        let pieces = arena.lock();
        for free in pieces.locked.iter().chain(&pieces.unlocked) {
            place(free);
            assert_eq!(**free, [0; 32], "a free piece");
        }
    }

    fn run(steps: &[Step], live: &mut Vec<Live>, forks: u8) {
        for (i, step) in steps.iter().enumerate() {
            match step {
                Step::Make(byte) => make(live, *byte),
                Step::MakeMany(byte) => (0..150).for_each(|_| make(live, *byte)),
                Step::Drop(which) if !live.is_empty() => {
                    drop(live.swap_remove(which.index(live.len())))
                }
                Step::Drop(_) => {}
                // The child continues the same steps, with all of the parent's secrets.
                Step::Fork if forks > 0 => in_child(|| run(&steps[i + 1..], live, forks - 1)),
                Step::Fork => {}
            }
            check(live);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_two_secrets_share_bytes_and_what_is_free_is_zero_across_forks(steps in steps()) {
            run(&steps, &mut Vec::new(), 3);
        }
    }

    #[test]
    fn threads_get_pieces_of_their_own() {
        std::thread::scope(|scope| {
            for thread in 1..=4_u8 {
                scope.spawn(move || {
                    let mut kept = Vec::new();
                    for round in 0..20_000_usize {
                        let mut secret = Secret32::zeroed();
                        assert_eq!(secret.expose(), &[0; 32]);
                        secret.expose_mut().fill(thread);
                        kept.push(secret);
                        if round % 3 != 0 {
                            let secret = kept.swap_remove(round % kept.len());
                            assert_eq!(secret.expose(), &[thread; 32]);
                        }
                    }
                    assert!(kept.iter().all(|secret| secret.expose() == &[thread; 32]));
                });
            }
        });
    }

    #[test]
    fn a_fork_while_other_threads_make_secrets_leaves_the_child_no_lock_to_wait_for() {
        let stop = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        drop([Secret32::zeroed(), Secret32::zeroed()]);
                    }
                });
            }
            for _ in 0..300 {
                let parents = Secret32::from_slice(&[7; 32]).unwrap();
                in_child(|| {
                    let mine = Secret32::from_slice(&[8; 32]).unwrap();
                    drop(parents);
                    assert_eq!(mine.expose(), &[8; 32]);
                });
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }

    #[test]
    fn beyond_the_limit_on_locked_memory_secrets_go_on_and_one_notice_is_given() {
        for (limit, locked) in [(64 * 1024, 64 * 1024), (0, 0), (4096 * 3 + 5, 4096 * 3)] {
            in_child(|| {
                limit_locked_memory(limit);
                let mut live = Vec::new();
                let mut notices = Vec::new();
                for i in 0..5000_usize {
                    make(&mut live, u8::try_from(i % 255 + 1).unwrap());
                    notices.extend(protection_notice());
                }
                check(&live);
                assert_eq!(notices.len(), 1, "{notices:?}");
                let message = notices[0].to_string();
                assert!(message.contains(&format!("the limit is {limit} bytes")), "{message}");
                let protection = memory_protection();
                assert_eq!(
                    [protection.locked, protection.excluded_from_dumps, protection.wiped_on_fork],
                    [false, true, true]
                );
                assert!(protection.detail.contains(&format!("{locked} of ")), "{protection}");
                // Locked slots are lent first.
                live.clear();
                let next = arena_slot_is_locked();
                assert_eq!(next, locked > 0);
            });
        }
    }

    fn arena_slot_is_locked() -> bool {
        let slot = lend();
        let locked = slot.locked;
        give_back(slot);
        locked
    }
}
