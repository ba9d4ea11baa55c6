//! Makers, rewrappers and erasers of branch keys over one store, and the end of what came through a
//! branch key.

use super::*;
use crate::branch::BranchKek;
use crate::store::{BoxFuture as StoreFuture, KeyStore, MemoryStore, RewrapOptions, StoredRow};

/// One process: an envelope over a branch KEK of its own.
#[derive(Clone)]
struct Process {
    branches: BranchKek,
    envelope: Envelope,
}

impl Process {
    fn new(root: &ToyKek, store: &MemoryStore, clock: &ManualClock) -> Self {
        let branches = BranchKek::builder(root.clone())
            .name("orders")
            .per(["tenant"])
            .store(store.clone())
            .origin(DekOrigin::KeyService)
            .limits(few_entries().max_age(MAX_AGE))
            .clock(clock.clone())
            .build()
            .unwrap();
        let envelope = Envelope::builder()
            .wrap_with(branches.clone())
            .limits(few_entries().max_age(MAX_AGE))
            .clock(clock.clone())
            .build()
            .unwrap();
        Self { branches, envelope }
    }

    fn write(&self) -> Result<Vec<u8>, Error> {
        block_on(self.envelope.encrypt(&ALICE, Aad::empty(), b"x"))
    }

    fn read(&self, sealed: &[u8]) -> Result<(), Error> {
        block_on(self.envelope.decrypt(&ALICE, Aad::empty(), sealed)).map(drop)
    }
}

fn rows(store: &MemoryStore) -> Vec<StoredRow> {
    let scan: StoreFuture<'_, _> = store.scan(None, 100);
    block_on(scan).unwrap().rows
}

fn live(store: &MemoryStore) -> usize {
    rows(store).iter().filter(|row| !row.is_tombstone()).count()
}

#[test]
fn processes_that_make_a_branch_key_together_end_with_one() {
    explore(|| {
        let (root, store, clock) = (ToyKek::new(), MemoryStore::new(), ManualClock::new());
        let processes: Vec<_> = (0..3).map(|_| Process::new(&root, &store, &clock)).collect();
        let writing = processes.iter().map(|process| {
            let process = process.clone();
            spawn(move || process.write().unwrap())
        });
        let sealed = join(writing);
        assert_eq!(rows(&store).len(), 1);
        for (process, sealed) in processes.iter().flat_map(|p| sealed.iter().map(move |s| (p, s))) {
            process.read(sealed).unwrap();
        }
    });
}

#[test]
fn no_race_of_makers_rewrappers_and_erasers_revives_or_loses_a_key() {
    explore(|| {
        let (root, store, clock) = (ToyKek::new(), MemoryStore::new(), ManualClock::new());
        let [maker, rewrapper, eraser] = [(); 3].map(|()| Process::new(&root, &store, &clock));
        let before = maker.write().unwrap();
        let making = spawn(move || {
            // A process that erases nothing may continue until its branch key is renewed.
            let reader = maker;
            reader.envelope.evict_all();
            reader.branches.evict_all();
            reader.write().map(|sealed| (reader, sealed))
        });
        let rewrapping = spawn(move || {
            block_on(rewrapper.branches.rewrap_branch_keys(RewrapOptions::default(), |_| {}))
        });
        let erasing = spawn(move || {
            block_on(eraser.branches.erase([("tenant", "alice")])).unwrap();
            eraser
        });
        let (made, rewrapped) = (making.join().unwrap(), rewrapping.join().unwrap());
        let eraser = erasing.join().unwrap();
        assert_eq!(rewrapped.unwrap().failed, 0);
        // Keys from before the erasure are refused from then on, for every caller.
        assert!(eraser.read(&before).is_err());
        assert!(Process::new(&root, &store, &clock).read(&before).is_err());
        assert!(live(&store) <= 1 && rows(&store).iter().any(StoredRow::is_tombstone));
        // A key that was made after it is readable by all.
        if live(&store) == 1 {
            let (_, sealed) = made.unwrap();
            Process::new(&root, &store, &clock).read(&sealed).unwrap();
        }
    });
}

#[test]
fn whatever_came_through_a_branch_key_ends_with_it_whoever_obtains_it_meanwhile() {
    explore(|| {
        let (root, store, clock) = (ToyKek::new(), MemoryStore::new(), ManualClock::new());
        let process = Process::new(&root, &store, &clock);
        let sealed = process.write().unwrap();
        process.envelope.evict_all();
        let reading = {
            let (process, sealed) = (process.clone(), sealed.clone());
            spawn(move || block_on(process.envelope.decryptor(&ALICE, &*sealed)).ok())
        };
        let root_id = root.id().clone();
        let revoking = {
            let process = process.clone();
            spawn(move || process.branches.revoke_kek(&root_id))
        };
        let handle = reading.join().unwrap();
        revoking.join().unwrap();
        // The revocation has returned, so nothing under the root serves.
        if let Some(handle) = handle {
            let opened = handle.decrypt(Aad::empty(), &sealed);
            assert_eq!(kind(&opened), Some(ErrorKind::Expired));
        }
        assert_eq!(kind(&process.read(&sealed)), Some(ErrorKind::Denied));
        assert_eq!(process.envelope.statistics().reading_deks, 0);
    });
}

/// Both derive the DEK on their own threads.
#[test]
fn callers_that_derive_one_dek_at_the_same_time_keep_none_past_a_revocation() {
    explore(|| {
        let (root, store, clock) = (ToyKek::new(), MemoryStore::new(), ManualClock::new());
        let process = Process::new(&root, &store, &clock);
        let sealed = process.write().unwrap();
        process.envelope.evict_all();
        let reading: Vec<_> = (0..2)
            .map(|_| {
                let (process, sealed) = (process.clone(), sealed.clone());
                spawn(move || block_on(process.envelope.decryptor(&ALICE, &*sealed)).ok())
            })
            .collect();
        let revoking = {
            let process = process.clone();
            spawn(move || process.branches.evict_all())
        };
        let handles = join(reading);
        revoking.join().unwrap();
        for handle in handles.into_iter().flatten() {
            // It was obtained before the eviction, or again after it.
            let opened = handle.decrypt(Aad::empty(), &sealed).map(drop);
            assert!(matches!(kind(&opened), None | Some(ErrorKind::Expired)), "{opened:?}");
        }
        process.branches.evict_all();
        assert_eq!(process.envelope.statistics().reading_deks, 0);
        process.read(&sealed).unwrap();
        assert_eq!(process.envelope.statistics().reading_deks, 1);
    });
}
