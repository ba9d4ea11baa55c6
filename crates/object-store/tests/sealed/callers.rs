//! A policy decides in every read and write, even if head and DEK are in memory.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::version::{Binding, ObjectKeys, RewrapOptions, SealedStore};
use futures_util::StreamExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, Extensions, GetOptions, MultipartUpload, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, PutOptions,
};
use waxseal::policy::{Action, BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::{Access, Caller, Envelope, ErrorKind, Event, Observer, kek::local::LocalKek};

use super::ground::*;

/// One service may do everything, and all others nothing.
#[derive(Debug)]
struct BillingOnly;

impl Policy for BillingOnly {
    fn decide<'a>(
        &'a self,
        question: &'a Question<'a>,
    ) -> BoxFuture<'a, Result<Decision, waxseal::Error>> {
        let decision = match question.caller.and_then(Caller::service) {
            Some("billing") => Decision::allow(),
            _ => Decision::deny(["only billing"]),
        };
        Box::pin(async { Ok(decision) })
    }
}

fn acting(service: Option<&str>) -> Extensions {
    let mut extensions = Extensions::new();
    if let Some(service) = service {
        extensions.insert(Caller::builder().service(service).build().unwrap());
    }
    extensions
}

fn is_denied<T>(result: object_store::Result<T>) -> bool {
    match result {
        Ok(_) => false,
        Err(error) => {
            kind(&error) == Some(ErrorKind::PolicyDenied)
                && matches!(error, Error::PermissionDenied { .. })
        }
    }
}

#[tokio::test]
async fn a_kept_head_and_a_cached_dek_serve_nobody_whom_the_policy_denies() {
    let kek = LocalKek::in_memory("test").unwrap();
    let envelope = Envelope::builder().wrap_with(kek);
    let envelope = envelope.policy(BillingOnly, PolicyOptions::default()).build().unwrap();
    let keys = ObjectKeys::new(envelope, context());
    let sealed = SealedStore::builder(InMemory::new(), keys).chunk_size(4096).build().unwrap();
    let (path, other) = (Path::from("a"), Path::from("b"));
    let put = async |service| {
        let options = PutOptions { extensions: acting(service), ..Default::default() };
        sealed.put_opts(&path, plaintext(10_000).into(), options).await
    };
    let read = async |service, range: Option<Range<u64>>| {
        let options = GetOptions::new().with_range(range).with_extensions(acting(service));
        sealed.get_opts(&path, options).await?.bytes().await
    };
    let begin = async |service| {
        let options = PutMultipartOptions { extensions: acting(service), ..Default::default() };
        sealed.put_multipart_opts(&other, options).await
    };
    // Encrypted again for its other path: read and written.
    let copy = async |service| {
        let options = CopyOptions::new().with_extensions(acting(service));
        sealed.copy_opts(&path, &other, options).await
    };
    put(Some("billing")).await.unwrap();
    for _ in 0..2 {
        assert!(read(Some("billing"), None).await.unwrap() == plaintext(10_000));
        let part = read(Some("billing"), Some(5000..5010)).await.unwrap();
        assert_eq!(part, plaintext(10_000)[5000..5010]);
        copy(Some("billing")).await.unwrap();
        begin(Some("billing")).await.unwrap().abort().await.unwrap();
        for service in [None, Some("reporting")] {
            assert!(is_denied(read(service, None).await));
            assert!(is_denied(read(service, Some(5000..5010)).await));
            assert!(is_denied(put(service).await));
            assert!(is_denied(begin(service).await));
            assert!(is_denied(copy(service).await));
        }
        // It has no place for a caller, so the policy is not asked.
        assert!(is_denied(sealed.get_ranges(&path, &[0..1, 5000..5010]).await));
    }
}

/// The service of the caller, and what it asks for.
type Asked = (Option<String>, Action);

/// Every question with its caller, and what the trail has of callers.
#[derive(Clone, Debug, Default)]
struct Seen {
    asked: Arc<Mutex<Vec<Asked>>>,
    counted: Arc<Mutex<BTreeMap<(String, &'static str), u64>>>,
}

impl Policy for Seen {
    fn decide<'a>(
        &'a self,
        question: &'a Question<'a>,
    ) -> BoxFuture<'a, Result<Decision, waxseal::Error>> {
        let service = question.caller.and_then(Caller::service).map(str::to_owned);
        let decision = match service.as_deref() {
            Some("billing" | "archive") => Decision::allow(),
            _ => Decision::deny(["only billing and archive"]),
        };
        self.asked.lock().unwrap().push((service, question.operation));
        Box::pin(async { Ok(decision) })
    }
}

impl Observer for Seen {
    fn event(&self, event: &Event<'_>) {
        if let Event::AccessedBy { caller, access, messages, .. } = event {
            let access = if *access == Access::Encrypt { "encrypt" } else { "decrypt" };
            let service = caller.service().unwrap().to_owned();
            *self.counted.lock().unwrap().entry((service, access)).or_default() += messages;
        }
    }

    fn access_summaries(&self) -> Option<Duration> {
        Some(Duration::from_secs(3600))
    }
}

type Store = SealedStore<InMemory>;

/// What reads or writes content: every way of the trait, and those of the store itself.
const WAYS: [&str; 14] = [
    "put",
    "upload",
    "get",
    "part",
    "ranges",
    "copy",
    "copy by the store",
    "rename",
    "rename by the store",
    "copy if absent",
    "rename if absent",
    "extension",
    "rewrap",
    "rewrap prefix",
];

/// Does it, at paths in its own folder.
async fn do_it(store: &Store, plain: &Store, way: &str) -> object_store::Result<()> {
    let [from, other, same] = ["x/one", "x/two", "y/one"].map(Path::from);
    for path in [&other, &same] {
        let _ = plain.inner().delete(path).await;
    }
    let read = async |options: GetOptions| store.get_opts(&from, options).await?.bytes().await;
    match way {
        "put" => store.put(&other, "text".into()).await.map(drop),
        "upload" => {
            let mut upload = store.put_multipart(&other).await?;
            upload.put_part("text".into()).await?;
            upload.complete().await.map(drop)
        }
        "get" => read(GetOptions::new()).await.map(drop),
        "part" => read(GetOptions::new().with_range(Some(5000..5010))).await.map(drop),
        "ranges" => store.get_ranges(&from, &[0..1, 5000..5010]).await.map(drop),
        "copy" => store.copy(&from, &other).await,
        "copy by the store" => store.copy(&from, &same).await,
        "copy if absent" => store.copy_if_not_exists(&from, &other).await,
        "rename" | "rename by the store" | "rename if absent" => {
            let renamed = match way {
                "rename" => store.rename(&from, &other).await,
                "rename if absent" => store.rename_if_not_exists(&from, &other).await,
                _ => store.rename(&from, &same).await,
            };
            if renamed.is_ok() {
                // Back, in the caller's name too.
                let back = if way == "rename by the store" { &same } else { &other };
                store.rename(back, &from).await?;
            }
            renamed
        }
        "extension" => {
            let options = PutOptions { extensions: acting(None), ..Default::default() };
            store.put_opts(&other, "text".into(), options).await.map(drop)
        }
        "rewrap" => store.rewrap(&from).await.map(drop),
        "rewrap prefix" => {
            let done = store.rewrap_prefix(None, RewrapOptions::default(), |_| {}).await?;
            match done.failed {
                0 => Ok(()),
                // The failures were reported; asked separately, each says why.
                _ => store.rewrap(&from).await.map(drop),
            }
        }
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_store_that_acts_for_a_caller_names_it_in_every_way_and_no_decision_serves_another() {
    let (kek, seen) = (LocalKek::in_memory("test").unwrap(), Seen::default());
    let envelope = Envelope::builder()
        .wrap_with(kek.clone())
        .policy(seen.clone(), PolicyOptions::default())
        .observer(seen.clone())
        .build()
        .unwrap();
    let keys = ObjectKeys::new(envelope.clone(), context());
    let plain = SealedStore::builder(InMemory::new(), keys).chunk_size(4096);
    let plain = plain.binding(Binding::FileName).build().unwrap();
    let caller = |service: &str| Caller::builder().service(service).build().unwrap();
    let [billing, archive, reporting] =
        ["billing", "archive", "reporting"].map(|service| plain.acting_for(&caller(service)));
    let from = Path::from("x/one");
    billing.put(&from, plaintext(10_000).into()).await.unwrap();
    for way in WAYS {
        let object = plain.inner().get(&from).await.unwrap().bytes().await.unwrap();
        // With decision, head and DEK in memory, too.
        for (store, service) in
            [(&billing, "billing"), (&archive, "archive"), (&billing, "billing")]
        {
            seen.asked.lock().unwrap().clear();
            kek.rotate().unwrap();
            do_it(store, &plain, way).await.unwrap();
            let asked = seen.asked.lock().unwrap();
            let is_of_it = |(by, _): &(Option<String>, _)| by.as_deref() == Some(service);
            assert!(asked.iter().all(is_of_it), "{way}: {asked:?}");
        }
        plain.inner().put(&from, object.into()).await.unwrap();
        for (store, service) in [(&reporting, Some("reporting")), (&plain, None)] {
            // A cached denial for this caller does not deny another one.
            for _ in 0..2 {
                let before = plain.inner().get(&from).await.unwrap().bytes().await.unwrap();
                assert!(is_denied(do_it(store, &plain, way).await), "{way} for {service:?}");
                let after = plain.inner().get(&from).await.unwrap().bytes().await.unwrap();
                assert_eq!(before, after);
                for target in ["x/two", "y/one"] {
                    assert!(plain.inner().head(&Path::from(target)).await.is_err(), "{way}");
                }
            }
        }
        do_it(&archive, &plain, way).await.unwrap();
    }
    // A caller that the options name takes precedence.
    let read = async |store: &Store, service| {
        let options = GetOptions::new().with_extensions(acting(Some(service)));
        store.get_opts(&from, options).await
    };
    assert!(read(&reporting, "billing").await.is_ok() && read(&plain, "billing").await.is_ok());
    assert!(is_denied(read(&billing, "reporting").await));
    // A clone acts for the same caller, and a store for another caller acts only for that caller.
    assert!(billing.clone().get(&from).await.is_ok());
    assert!(is_denied(billing.acting_for(&caller("reporting")).get(&from).await));
    // Operations that touch no content do not ask the policy, as without a caller.
    seen.asked.lock().unwrap().clear();
    reporting.head(&from).await.unwrap();
    reporting.list(None).next().await.unwrap().unwrap();
    reporting.content_id(&from).await.unwrap();
    reporting.delete(&from).await.unwrap();
    assert!(seen.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_trail_counts_what_each_caller_read_and_wrote() {
    let (kek, seen) = (LocalKek::in_memory("test").unwrap(), Seen::default());
    let envelope = Envelope::builder().wrap_with(kek.clone()).observer(seen.clone());
    let envelope = envelope.build().unwrap();
    let keys = ObjectKeys::new(envelope.clone(), context());
    let plain = SealedStore::builder(InMemory::new(), keys).chunk_size(4096).build().unwrap();
    let caller = |service: &str| Caller::builder().service(service).build().unwrap();
    let [a, b] = ["a", "b"].map(|service| plain.acting_for(&caller(service)));
    let (one, two) = (Path::from("one"), Path::from("two"));
    a.put(&one, plaintext(10_000).into()).await.unwrap();
    a.get_ranges(&one, &[0..1, 5000..5010]).await.unwrap();
    b.get_range(&one, 0..10).await.unwrap();
    b.get(&one).await.unwrap().bytes().await.unwrap();
    b.copy(&one, &two).await.unwrap();
    plain.get(&one).await.unwrap().bytes().await.unwrap();
    kek.rotate().unwrap();
    // The chunks are authenticated on their way.
    a.rewrap(&two).await.unwrap();
    envelope.evict_all();
    let expected = [
        (("a", "decrypt"), 2),
        (("a", "encrypt"), 1),
        (("b", "decrypt"), 3),
        (("b", "encrypt"), 1),
    ];
    let expected = expected.map(|((service, access), count)| ((service.to_owned(), access), count));
    assert_eq!(*seen.counted.lock().unwrap(), BTreeMap::from(expected));
}
