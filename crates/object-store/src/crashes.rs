//! Insertions that end between their two writes: the caller goes away, a write fails, an answer is
//! lost.
#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use waxseal::store::{BranchId, BranchPlace, Insertion, KeyStore, RowId, StoredRow};

use crate::objects::Objects;
use crate::store::ObjectKeyStore;

/// How a write goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    /// It is not done.
    Fails,
    /// It is done, and the answer is lost.
    LosesAnswer,
    /// It is not done, and never answered: the caller goes away.
    Hangs,
}

const FAULTS: [Fault; 3] = [Fault::Fails, Fault::LosesAnswer, Fault::Hangs];

/// Memory in which the write of this number goes wrong.
#[derive(Debug)]
struct Faulty {
    memory: Arc<InMemory>,
    left: AtomicUsize,
    fault: Fault,
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Faulty")
    }
}

#[async_trait::async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, to: &Path, bytes: PutPayload, how: PutOptions) -> Result<PutResult> {
        let before = self.left.fetch_sub(1, Ordering::SeqCst);
        if before != 1 {
            return self.memory.put_opts(to, bytes, how).await;
        }
        match self.fault {
            Fault::Fails => {}
            Fault::LosesAnswer => drop(self.memory.put_opts(to, bytes, how).await?),
            Fault::Hangs => std::future::pending().await,
        }
        Err(Error::Generic { store: "faulty", source: "connection reset".into() })
    }

    async fn put_multipart_opts(
        &self,
        _: &Path,
        _: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        panic!("not used")
    }

    async fn get_opts(&self, of: &Path, how: GetOptions) -> Result<GetResult> {
        self.memory.get_opts(of, how).await
    }

    fn delete_stream(
        &self,
        _: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        panic!("nothing is ever deleted")
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.memory.list(prefix)
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> Result<ListResult> {
        panic!("not used")
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> Result<()> {
        panic!("not used")
    }
}

/// A store on this memory; the write of number `at` goes wrong, if there is one.
fn store(memory: &Arc<InMemory>, at: usize, fault: Fault) -> ObjectKeyStore {
    let store = Arc::new(Faulty { memory: memory.clone(), left: AtomicUsize::new(at), fault });
    let bound = Duration::from_secs(20);
    let objects = Objects { store, prefix: Path::from("a/prefix"), local: None, bound };
    // Made outside of a runtime, so that its calls run where they are polled and end with their
    // caller.
    let make = move || ObjectKeyStore::new(objects, "faulty".to_owned());
    std::thread::spawn(make).join().unwrap()
}

fn row(id: u8, period: i64) -> StoredRow {
    let place = BranchPlace { branch: BranchId::from_bytes([1; 32]), period, epoch: 0 };
    StoredRow::from_parts(RowId::from_bytes([id; 16]), Some(place), [id; 50])
}

/// Inserts as far as the fault, and then goes away.
fn insert_until_fault(store: &ObjectKeyStore, row: &StoredRow) {
    match store.insert(row).now_or_never() {
        None | Some(Err(_)) => {}
        Some(Ok(insertion)) => panic!("{insertion:?}"),
    }
}

async fn is_nowhere(store: &ObjectKeyStore, row: &StoredRow) {
    assert_eq!(store.get(row.id()).await.unwrap(), None);
    let branch = row.place().unwrap().branch;
    let found = store.branch(&branch, i64::MIN).await.unwrap();
    assert!(!found.contains(row), "{found:?}");
    let page = store.scan(None, 100).await.unwrap();
    assert!(!page.rows.contains(row), "{page:?}");
}

async fn is_stored(store: &ObjectKeyStore, row: &StoredRow) {
    assert_eq!(store.get(row.id()).await.unwrap().as_ref(), Some(row));
    let branch = row.place().unwrap().branch;
    assert!(store.branch(&branch, i64::MIN).await.unwrap().contains(row));
    assert!(store.scan(None, 100).await.unwrap().rows.contains(row));
}

#[tokio::test]
async fn an_insertion_that_ends_between_its_writes_leaves_nothing_half_and_the_next_completes_it() {
    for fault in FAULTS {
        for at in [1, 2] {
            let memory = Arc::new(InMemory::new());
            let (cut, whole) = (store(&memory, at, fault), store(&memory, 0, fault));
            let row = row(1, 0);
            insert_until_fault(&cut, &row);
            // Only the last write can have stored it.
            let is_there = (at, fault) == (2, Fault::LosesAnswer);
            if is_there {
                is_stored(&whole, &row).await;
            } else {
                is_nowhere(&whole, &row).await;
            }
            let expected =
                if is_there { Insertion::Exists(row.clone()) } else { Insertion::Inserted };
            assert_eq!(whole.insert(&row).await.unwrap(), expected, "{fault:?} at {at}");
            is_stored(&whole, &row).await;
        }
    }
}

#[tokio::test]
async fn who_comes_after_an_insertion_that_ended_half_wins_and_the_first_never_does() {
    for fault in FAULTS {
        let memory = Arc::new(InMemory::new());
        let whole = store(&memory, 0, fault);
        let (first, second) = (row(1, 0), row(2, 0));
        let at = if fault == Fault::LosesAnswer { 1 } else { 2 };
        insert_until_fault(&store(&memory, at, fault), &first);
        assert_eq!(whole.insert(&second).await.unwrap(), Insertion::Inserted);
        for _ in 0..2 {
            let there = Insertion::Exists(second.clone());
            assert_eq!(whole.insert(&first).await.unwrap(), there);
            is_nowhere(&whole, &first).await;
            is_stored(&whole, &second).await;
        }
        // An erasure counts what is stored, and leaves what is not.
        let branch = second.place().unwrap().branch;
        assert_eq!(whole.erase_branch(&branch).await.unwrap().erased, 1);
        is_nowhere(&whole, &first).await;
    }
}

#[tokio::test]
async fn a_row_that_lost_its_place_can_be_inserted_at_another_or_at_none() {
    let memory = Arc::new(InMemory::new());
    let whole = store(&memory, 0, Fault::Fails);
    for (id, elsewhere) in [(1, Some(row(1, 7))), (3, None)] {
        let (lost, winner) = (row(id, i64::from(id)), row(id + 1, i64::from(id)));
        insert_until_fault(&store(&memory, 2, Fault::Fails), &lost);
        assert_eq!(whole.insert(&winner).await.unwrap(), Insertion::Inserted);
        let elsewhere =
            elsewhere.unwrap_or_else(|| StoredRow::from_parts(*lost.id(), None, lost.as_bytes()));
        assert_eq!(whole.insert(&elsewhere).await.unwrap(), Insertion::Inserted);
        assert_eq!(whole.get(lost.id()).await.unwrap(), Some(elsewhere));
        assert_eq!(whole.insert(&lost).await.unwrap(), Insertion::Exists(winner));
    }
}

/// Were it let in, both insertions might end, and the row be at two places.
#[tokio::test]
async fn a_row_whose_insertion_at_another_place_may_go_on_is_not_inserted() {
    let memory = Arc::new(InMemory::new());
    let whole = store(&memory, 0, Fault::Hangs);
    insert_until_fault(&store(&memory, 2, Fault::Hangs), &row(1, 0));
    let without_place = StoredRow::from_parts(*row(1, 0).id(), None, *b"x");
    for other in [row(1, 9), without_place] {
        let error = whole.insert(&other).await.unwrap_err();
        assert_eq!(error.class(), waxseal::store::StoreErrorClass::Unavailable);
        assert!(error.to_string().contains("another place"), "{error}");
    }
    assert_eq!(whole.insert(&row(1, 0)).await.unwrap(), Insertion::Inserted);
}

#[tokio::test]
async fn an_erasure_that_ends_early_is_completed_by_the_next() {
    let memory = Arc::new(InMemory::new());
    let whole = store(&memory, 0, Fault::Fails);
    let rows: Vec<_> =
        (0..20).map(|period| row(u8::try_from(period).unwrap() + 1, period)).collect();
    for row in &rows {
        whole.insert(row).await.unwrap();
    }
    let branch = BranchId::from_bytes([1; 32]);
    assert!(store(&memory, 5, Fault::Fails).erase_branch(&branch).await.is_err());
    let erasure = whole.erase_branch(&branch).await.unwrap();
    assert_eq!(erasure.erased + erasure.already_erased, 20);
    assert!(erasure.erased > 0 && erasure.already_erased > 0, "{erasure:?}");
    let found = whole.branch(&branch, i64::MIN).await.unwrap();
    assert!(found.len() == 20 && found.iter().all(StoredRow::is_tombstone));
}

#[tokio::test]
async fn a_replacement_that_fails_leaves_the_old_row_or_the_new_one() {
    for fault in [Fault::Fails, Fault::LosesAnswer] {
        let memory = Arc::new(InMemory::new());
        let (whole, old) = (store(&memory, 0, fault), row(1, 0));
        whole.insert(&old).await.unwrap();
        let new = StoredRow::from_parts(*old.id(), old.place().copied(), *b"new");
        assert!(store(&memory, 1, fault).replace(&old, &new).await.is_err());
        let expected = if fault == Fault::Fails { &old } else { &new };
        is_stored(&whole, expected).await;
        assert_eq!(whole.replace(&old, &new).await.unwrap(), fault == Fault::Fails);
        is_stored(&whole, &new).await;
    }
}
