//! Rewraps: one object, a prefix, with others at work, on stores that fail.

use std::sync::{Arc, Mutex};

use crate::version::{ObjectKeys, RewrapOptions, Rewrapped, SealedStore, SealedStoreBuilder};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{Attribute, Attributes, ObjectStore, ObjectStoreExt, PutOptions};
use waxseal::{Envelope, ErrorKind, kek::local::LocalKek};

use super::ground::*;
use super::scripted::{Act, Scripted};

pub(crate) struct Keks {
    pub(crate) old: LocalKek,
    pub(crate) new: LocalKek,
}

impl Keks {
    pub(crate) fn make() -> Self {
        let kek = |name| LocalKek::in_memory(name).unwrap();
        Self { old: kek("old"), new: kek("new") }
    }

    /// Written by the old one.
    pub(crate) fn before<S: ObjectStore>(&self, store: S) -> SealedStoreBuilder<S> {
        let envelope = Envelope::builder().wrap_with(self.old.clone()).build().unwrap();
        SealedStore::builder(store, ObjectKeys::new(envelope, context())).chunk_size(4096)
    }

    /// Where both can be read, and the new one writes.
    pub(crate) fn moving<S: ObjectStore>(&self, store: S) -> SealedStoreBuilder<S> {
        let envelope = Envelope::builder().wrap_with(self.new.clone());
        let envelope = envelope.unwrap_with(self.old.clone()).build().unwrap();
        SealedStore::builder(store, ObjectKeys::new(envelope, context())).chunk_size(4096)
    }

    /// Without the old one.
    pub(crate) fn after<S: ObjectStore>(&self, store: S) -> SealedStore<S> {
        let envelope = Envelope::builder().wrap_with(self.new.clone()).build().unwrap();
        let store = SealedStore::builder(store, ObjectKeys::new(envelope, context()));
        store.chunk_size(4096).build().unwrap()
    }
}

#[tokio::test]
async fn a_rewrapped_object_opens_with_the_new_kek_alone_and_is_the_same() {
    for single_put in [0, 64 << 20] {
        let (keks, scripted) = (Keks::make(), Scripted::new(InMemory::new()));
        let path = Path::from("a/b");
        let text = plaintext(20 << 20);
        let attributes = Attributes::from_iter([(Attribute::ContentType, "text/csv")]);
        let options = PutOptions { attributes: attributes.clone(), ..Default::default() };
        let before = keks.before(scripted.clone()).build().unwrap();
        let put = before.put_opts(&path, text.clone().into(), options).await.unwrap();
        let id = id_of(&before, &path, &put).await;
        assert!(get(&keks.after(scripted.clone()), &path).await.is_err());

        let moving = keks.moving(scripted.clone()).single_put(single_put).build().unwrap();
        assert_eq!(moving.rewrap(&path).await.unwrap(), Rewrapped::Changed);
        let after = keks.after(scripted.clone());
        let got = after.get(&path).await.unwrap();
        assert_eq!(got.attributes, attributes);
        assert_eq!(after.content_id(&path).await.unwrap(), id);
        assert!(got.bytes().await.unwrap() == text);
        // The other one has the DEK in memory.
        let before = keks.before(scripted.clone()).build().unwrap();
        assert_eq!(kind(&get(&before, &path).await.unwrap_err()), Some(ErrorKind::UnknownKek));

        scripted.take_calls();
        assert_eq!(moving.rewrap(&path).await.unwrap(), Rewrapped::Unchanged);
        assert_eq!(scripted.take_calls().len(), 1, "a head");
    }
}

/// Whatever fails, the object is the old one or the rewrapped one.
#[tokio::test]
async fn no_failure_loses_an_object() {
    for single_put in [0, 64 << 20] {
        let (keks, scripted) = (Keks::make(), Scripted::new(InMemory::new()));
        let path = Path::from("a/b");
        let text = plaintext(9 << 20);
        let before = keks.before(scripted.clone()).build().unwrap();
        let moving = keks.moving(scripted.clone()).single_put(single_put).build().unwrap();
        before.put(&path, text.clone().into()).await.unwrap();
        scripted.take_calls();
        moving.rewrap(&path).await.unwrap();
        let calls = scripted.take_calls().len();
        assert!(calls >= 3);
        let flip = || Act::bytes(|bytes| bytes.last_mut().map_or((), |byte| *byte ^= 1));
        for nth in 0..calls {
            for act in [Act::Fail, Act::Lose, Act::Break(5000), flip()] {
                scripted.behave();
                before.put(&path, text.clone().into()).await.unwrap();
                scripted.script(move |n, _| if n == nth { act.clone() } else { Act::Pass });
                let done = moving.rewrap(&path).await;
                scripted.behave();
                assert!(get(&moving, &path).await.unwrap() == text, "call {nth}");
                if done.is_ok() {
                    assert!(get(&keks.after(scripted.clone()), &path).await.unwrap() == text);
                }
            }
            // Given up there.
            scripted.behave();
            before.put(&path, text.clone().into()).await.unwrap();
            scripted.script(move |n, _| if n == nth { Act::Hang } else { Act::Pass });
            let patience = std::time::Duration::from_millis(200);
            assert!(tokio::time::timeout(patience, moving.rewrap(&path)).await.is_err());
            scripted.behave();
            assert!(get(&moving, &path).await.unwrap() == text, "call {nth}");
        }
    }
}

/// A request has its time, in which a large object does not come, and parts are uploaded meanwhile.
#[tokio::test]
async fn a_large_object_is_read_in_portions_of_one_version() {
    let (keks, scripted) = (Keks::make(), Scripted::new(InMemory::new()));
    let path = Path::from("a");
    let before = keks.before(scripted.clone()).build().unwrap();
    let moving = keks.moving(scripted.clone()).single_put(1 << 20).build().unwrap();
    let text = plaintext(33 << 20);
    before.put(&path, text.clone().into()).await.unwrap();
    scripted.take_calls();
    moving.rewrap(&path).await.unwrap();
    let calls = scripted.take_calls();
    let lengths: Vec<_> = calls
        .iter()
        .filter(|call| call.operation == "get")
        .map(|call| (call.range.clone().unwrap(), call.if_match.is_some()))
        .filter(|(range, _)| range.start > 0)
        .map(|(range, is_of_one_version)| {
            assert!(is_of_one_version);
            range.end - range.start
        })
        .collect();
    let most = (16 << 20) / CHUNK * SEALED_CHUNK;
    assert!(lengths.len() == 3 && lengths.iter().all(|len| *len <= most), "{lengths:?}");
    assert!(get(&keks.after(scripted.clone()), &path).await.unwrap() == text);

    // Overwritten between two of them.
    before.put(&path, text.clone().into()).await.unwrap();
    let (bare, at) = (scripted.clone(), path.clone());
    let other = keks.before(InMemory::new()).build().unwrap();
    let new = plaintext(34 << 20);
    other.put(&path, new.clone().into()).await.unwrap();
    let theirs = other.inner().get(&path).await.unwrap().bytes().await.unwrap();
    let overwrite = Act::Then(Arc::new(move || {
        let (bare, at, theirs) = (bare.clone(), at.clone(), theirs.clone());
        Box::pin(async move {
            bare.bare().put_opts(&at, theirs.into(), Default::default()).await.unwrap();
        })
    }));
    let mut gets = 0;
    scripted.script(move |_, call| {
        gets += usize::from(call.operation == "get");
        if call.operation == "get" && gets == 3 { overwrite.clone() } else { Act::Pass }
    });
    assert_eq!(moving.rewrap(&path).await.unwrap(), Rewrapped::Changed);
    scripted.behave();
    assert!(get(&keks.after(scripted.clone()), &path).await.unwrap() == new);
}

#[tokio::test]
async fn an_object_that_others_overwrite_meanwhile_stays_theirs() {
    for single_put in [0, 64 << 20] {
        let (keks, scripted) = (Keks::make(), Scripted::new(InMemory::new()));
        let path = Path::from("a");
        let moving = keks.moving(scripted.clone()).single_put(single_put).build().unwrap();
        // After the head and the chunks were read.
        for nth in [0, 1] {
            let before = keks.before(InMemory::new()).build().unwrap();
            let (old, new) = (plaintext(10_000), plaintext(12_000));
            before.put(&path, new.clone().into()).await.unwrap();
            let theirs = before.inner().get(&path).await.unwrap().bytes().await.unwrap();
            let before = keks.before(scripted.clone()).build().unwrap();
            before.put(&path, old.into()).await.unwrap();
            let (bare, at) = (scripted.clone(), path.clone());
            let overwrite = Act::Then(Arc::new(move || {
                let (bare, at, theirs) = (bare.clone(), at.clone(), theirs.clone());
                Box::pin(async move {
                    bare.bare().put_opts(&at, theirs.into(), Default::default()).await.unwrap();
                })
            }));
            scripted.script(move |n, _| if n == nth { overwrite.clone() } else { Act::Pass });
            assert_eq!(moving.rewrap(&path).await.unwrap(), Rewrapped::Changed);
            scripted.behave();
            assert!(get(&keks.after(scripted.clone()), &path).await.unwrap() == new, "{nth}");
        }
    }
}

/// There are stores that overlook `If-Match` in writes. Nothing is lost there but what is written
/// between the last look and the write.
#[tokio::test]
async fn where_the_store_overlooks_conditions_an_object_is_looked_at_right_before_it_is_replaced() {
    let (keks, scripted) = (Keks::make(), Scripted::new(InMemory::new()));
    let path = Path::from("a");
    let moving = keks.moving(scripted.clone()).build().unwrap();
    let before = keks.before(InMemory::new()).build().unwrap();
    let (old, new) = (plaintext(10_000), plaintext(12_000));
    before.put(&path, new.clone().into()).await.unwrap();
    let theirs = before.inner().get(&path).await.unwrap().bytes().await.unwrap();
    let before = keks.before(scripted.clone()).build().unwrap();
    // After the chunks were read, and after the last look.
    for (nth, is_lost) in [(1, false), (2, true)] {
        before.put(&path, old.clone().into()).await.unwrap();
        let (bare, at, theirs) = (scripted.clone(), path.clone(), theirs.clone());
        let overwrite = Act::Then(Arc::new(move || {
            let (bare, at, theirs) = (bare.clone(), at.clone(), theirs.clone());
            Box::pin(async move {
                bare.bare().put_opts(&at, theirs.into(), Default::default()).await.unwrap();
            })
        }));
        scripted.script(move |n, call| match call.operation {
            "put" => Act::Unconditional,
            _ if n == nth => overwrite.clone(),
            _ => Act::Pass,
        });
        assert_eq!(moving.rewrap(&path).await.unwrap(), Rewrapped::Changed);
        scripted.behave();
        let is = get(&keks.after(scripted.clone()), &path).await.unwrap();
        assert!(is == if is_lost { &old } else { &new }, "{nth}");
    }
}

#[tokio::test]
async fn a_walk_goes_on_where_it_stopped_and_counts_what_failed() {
    let (keks, scripted) = (Keks::make(), Scripted::new(InMemory::new()));
    let before = keks.before(scripted.clone()).build().unwrap();
    let path = |n: usize| Path::from(format!("exports/{n:02}"));
    for n in 0..25 {
        before.put(&path(n), format!("text {n}").into()).await.unwrap();
    }
    before.put(&Path::from("elsewhere"), "text".into()).await.unwrap();
    scripted.bare().put_opts(&path(3), "not encrypted".into(), Default::default()).await.unwrap();
    let (moving, prefix) = (keks.moving(scripted.clone()).build().unwrap(), Path::from("exports"));
    let options = RewrapOptions::default().page(10);

    // The list breaks off within the second page. Before, it was read for its order.
    let mut lists = 0;
    scripted.script(move |_, call| match call.operation {
        "list" => {
            lists += 1;
            if lists == 1 { Act::Pass } else { Act::Break(15) }
        }
        _ => Act::Pass,
    });
    let seen = Mutex::new(Vec::new());
    let stopped = moving.rewrap_prefix(Some(&prefix), options.clone(), |so_far| {
        let failures = so_far.failures.iter().map(|(path, _)| path.clone()).collect::<Vec<_>>();
        let next = so_far.next.clone().unwrap();
        seen.lock().unwrap().push((next, so_far.rewrapped, so_far.failed, failures));
    });
    stopped.await.unwrap_err();
    let seen = seen.into_inner().unwrap();
    assert_eq!(seen, [(path(9), 9, 1, vec![path(3)]), (path(14), 14, 1, vec![])]);

    scripted.behave();
    let rest = options.clone().after(path(14));
    let done = moving.rewrap_prefix(Some(&prefix), rest, |_| {}).await.unwrap();
    assert_eq!((done.rewrapped, done.unchanged, done.failed), (10, 0, 0));
    assert_eq!(done.next, Some(path(24)));
    let again = moving.rewrap_prefix(Some(&prefix), options, |_| {}).await.unwrap();
    assert_eq!((again.rewrapped, again.unchanged, again.failed), (0, 24, 1));
    let after = keks.after(scripted.clone());
    for n in (0..25).filter(|n| *n != 3) {
        assert_eq!(get(&after, &path(n)).await.unwrap(), format!("text {n}"));
    }
    // They have one DEK, which this one has not in memory yet.
    let elsewhere = get(&keks.after(scripted.clone()), &Path::from("elsewhere")).await;
    assert_eq!(kind(&elsewhere.unwrap_err()), Some(ErrorKind::UnknownKek));
}

/// In a bucket in use there is always one, and a walk has to be able to end without a failure.
#[tokio::test]
async fn an_object_that_is_deleted_during_a_walk_is_no_failure() {
    for single_put in [0, 64 << 20] {
        let (keks, scripted) = (Keks::make(), Scripted::new(InMemory::new()));
        let before = keks.before(scripted.clone()).build().unwrap();
        let path = |n: usize| Path::from(format!("{n}"));
        for n in 0..6 {
            before.put(&path(n), format!("text {n}").into()).await.unwrap();
        }
        let (inner, deleting) = (scripted.clone(), path);
        scripted.script(move |_, call| {
            let is_head = call.operation == "get" && call.range == Some(0..HEAD);
            let gone = match call.path.as_ref() {
                // Before its head is read, and after that.
                "1" if is_head => deleting(2),
                "4" if is_head => deleting(4),
                _ => return Act::Pass,
            };
            let inner = inner.clone();
            Act::Then(Arc::new(move || {
                let (inner, gone) = (inner.clone(), gone.clone());
                Box::pin(async move { inner.bare().delete(&gone).await.unwrap() })
            }))
        });
        let moving = keks.moving(scripted.clone()).single_put(single_put).build().unwrap();
        let options = RewrapOptions::default().at_once(1);
        let done = moving.rewrap_prefix(None, options, |_| {}).await.unwrap();
        assert!(done.failures.is_empty());
        assert_eq!((done.rewrapped, done.failed, done.gone), (4, 0, 2));
        for n in [2, 4] {
            assert!(scripted.bare().head(&path(n)).await.is_err(), "{n} is there again");
        }
    }
}

/// The first pages may be in order by chance. Continuing after them would leave out the others.
#[tokio::test]
async fn where_the_store_lists_in_no_order_no_page_says_where_to_go_on() {
    let (keks, scripted) = (Keks::make(), Scripted::new(InMemory::new()));
    let before = keks.before(scripted.clone()).build().unwrap();
    for n in 0..25 {
        before.put(&Path::from(format!("{n:02}")), "text".into()).await.unwrap();
    }
    // 20 to 24, and then 00 to 19.
    scripted.script(|_, call| if call.operation == "list" { Act::Turn(20) } else { Act::Pass });
    let moving = keks.moving(scripted.clone()).build().unwrap();
    let mut next = Vec::new();
    let options = RewrapOptions::default().page(5);
    let done = moving.rewrap_prefix(None, options, |so_far| next.push(so_far.next.clone())).await;
    assert_eq!(done.unwrap().rewrapped, 25);
    assert_eq!(next, vec![None; 5]);
}

/// In local files there is no replacement if unchanged.
#[tokio::test]
async fn local_files_are_rewrapped() {
    let folder = tempfile::tempdir().unwrap();
    let local = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
    let keks = Keks::make();
    let before = keks.before(local.clone()).build().unwrap();
    for name in ["b/1", "a/1", "a/2"] {
        before.put(&Path::from(name), name.into()).await.unwrap();
    }
    let moving = keks.moving(local.clone()).build().unwrap();
    let done = moving.rewrap_prefix(None, RewrapOptions::default(), |_| {}).await.unwrap();
    assert_eq!((done.rewrapped, done.failed), (3, 0), "{done:?}");
    for name in ["b/1", "a/1", "a/2"] {
        assert_eq!(get(&keks.after(local.clone()), &Path::from(name)).await.unwrap(), name);
    }
}

#[tokio::test]
async fn wrapped_keys_that_do_not_fit_into_the_head_change_nothing() {
    let (keks, store) = (Keks::make(), Arc::new(InMemory::new()));
    // 104 bytes and one wrapped key, by a short name.
    let mut len = 104;
    let before = loop {
        let sealed = keks.before(store.clone()).head_len(len).build().unwrap();
        if sealed.put(&Path::from("a"), "text".into()).await.is_ok() {
            break sealed;
        }
        len += 1;
    };
    let both = Envelope::builder().wrap_with(keks.old.clone()).wrap_with(keks.new.clone());
    let keys = ObjectKeys::new(both.build().unwrap(), context());
    let both = SealedStore::builder(store, keys).chunk_size(4096).head_len(len).build().unwrap();
    let error = both.rewrap(&Path::from("a")).await.unwrap_err();
    assert_eq!(kind(&error), Some(ErrorKind::TooLarge));
    assert_eq!(get(&before, &Path::from("a")).await.unwrap(), "text");
}
