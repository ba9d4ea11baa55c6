//! The suite of `object_store` itself, over every store and binding. Each of its tests also runs on the bare store: one that
//! fails there is named here, and no other may fail.
//!
//! Of the suite, only the tests of `MultipartStore` are not applicable: that trait uploads parts by index, of which the store
//! would have to encrypt one twice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use futures_util::future::LocalBoxFuture;
use object_store::ObjectStore;
use object_store::aws::{AmazonS3, AmazonS3Builder, S3CopyIfNotExists};
use object_store::integration as suite;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::prefix::PrefixStore;
use waxseal_object_store::v0_14::{Binding, SealedStore};
use waxseal_testing::seaweedfs::{ACCESS_KEY, SECRET_KEY, SeaweedFs};
use waxseal_testing::stand_in::StandIn;

use crate::ground::builder;

type Store = Arc<dyn ObjectStore>;
type Test = fn(Store) -> LocalBoxFuture<'static, ()>;

const TESTS: [(&str, Test); 15] = [
    ("put_get_delete_list", |it| Box::pin(async move { suite::put_get_delete_list(&it).await })),
    ("list_with_offset_exclusivity", |it| {
        Box::pin(async move { suite::list_with_offset_exclusivity(&it).await })
    }),
    ("get_opts", |it| Box::pin(async move { suite::get_opts(&it).await })),
    ("list_uses_directories_correctly", |it| {
        Box::pin(async move { suite::list_uses_directories_correctly(&it).await })
    }),
    ("list_with_delimiter", |it| Box::pin(async move { suite::list_with_delimiter(&it).await })),
    ("rename_and_copy", |it| Box::pin(async move { suite::rename_and_copy(&it).await })),
    ("copy_if_not_exists", |it| Box::pin(async move { suite::copy_if_not_exists(&it).await })),
    ("copy_rename_nonexistent_object", |it| {
        Box::pin(async move { suite::copy_rename_nonexistent_object(&it).await })
    }),
    ("get_nonexistent_object", |it| {
        Box::pin(async move {
            let error = suite::get_nonexistent_object(&it, None).await.unwrap_err();
            assert!(matches!(error, object_store::Error::NotFound { .. }), "{error}");
        })
    }),
    ("stream_get", |it| Box::pin(async move { suite::stream_get(&it).await })),
    ("put_opts", |it| Box::pin(async move { suite::put_opts(&it, true).await })),
    ("put_opts_without_update", |it| Box::pin(async move { suite::put_opts(&it, false).await })),
    ("put_get_attributes", |it| Box::pin(async move { suite::put_get_attributes(&it).await })),
    ("multipart_race_condition", |it| {
        Box::pin(async move { suite::multipart_race_condition(&it, true).await })
    }),
    ("multipart_out_of_order", |it| {
        Box::pin(async move { suite::multipart_out_of_order(&it).await })
    }),
];

/// On a thread of its own, with a runtime of its own: returns whether it did not panic.
fn passes(test: impl FnOnce() -> LocalBoxFuture<'static, ()> + Send + 'static) -> bool {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    thread::spawn(run).join().is_ok()
}

/// Runs the suite on the stores that `make` makes, each time another one. Those that fail on the bare
/// store are `known`, and those that fail there at times.
fn run<S: ObjectStore>(
    make: impl Fn() -> S + Clone + Send + 'static,
    bindings: &[Binding],
    known: &[&str],
    at_times: &[&str],
) {
    let mut failing = BTreeSet::new();
    for (name, test) in TESTS {
        let bare = make.clone();
        if !passes(move || test(Arc::new(bare()))) {
            failing.insert(name);
            continue;
        }
        for binding in bindings.iter().copied() {
            let make = make.clone();
            let sealed =
                move || -> Store { Arc::new(builder(make()).binding(binding).build().unwrap()) };
            assert!(passes(move || test(sealed())), "{name} with {binding:?}");
        }
    }
    failing.retain(|name| !at_times.contains(name));
    assert_eq!(failing, known.iter().copied().collect(), "on the bare store");
}

const BINDINGS: [Binding; 3] = [Binding::Path, Binding::FileName, Binding::Nothing];

#[test]
fn the_suite_passes_in_memory() {
    run(InMemory::new, &BINDINGS, &["put_opts_without_update"], &[]);
}

#[test]
fn the_suite_passes_in_local_files() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().to_owned();
    let make = move || {
        let folder = tempfile::tempdir_in(&root).unwrap().keep();
        LocalFileSystem::new_with_prefix(folder).unwrap()
    };
    run(make, &BINDINGS, &["put_opts"], &[]);
}

fn s3(url: &str, bucket: &str) -> AmazonS3Builder {
    AmazonS3Builder::new()
        .with_endpoint(url)
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name(bucket)
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY)
        .with_copy_if_not_exists(S3CopyIfNotExists::Multipart)
}

/// Every store under a prefix of its own: SeaweedFS reserves much of the disk for each bucket.
fn prefixes(url: String) -> impl Fn() -> PrefixStore<AmazonS3> + Clone + Send + 'static {
    let next = Arc::new(AtomicUsize::new(0));
    move || {
        let prefix = format!("store-{}", next.fetch_add(1, Ordering::SeqCst));
        PrefixStore::new(s3(&url, BUCKET).build().unwrap(), prefix)
    }
}

const S3_BINDINGS: [Binding; 2] = [Binding::Path, Binding::Nothing];

const BUCKET: &str = "objects";

fn seaweedfs() -> SeaweedFs {
    let server = SeaweedFs::start();
    server.create_bucket(BUCKET);
    server
}

fn moto() -> StandIn {
    let server = StandIn::moto();
    crate::ground::create_bucket(server.port(), BUCKET);
    server
}

#[test]
fn the_suite_passes_on_seaweedfs() {
    let server = seaweedfs();
    let known = ["put_get_delete_list", "put_opts_without_update"];
    run(prefixes(server.url()), &S3_BINDINGS, &known, &["list_uses_directories_correctly"]);
}

/// moto does not keep metadata of names that have an underscore.
#[test]
fn the_suite_passes_on_moto() {
    let server = moto();
    let known = ["put_get_attributes", "put_opts_without_update"];
    run(prefixes(server.url()), &S3_BINDINGS, &known, &[]);
}

/// Pages of a list.
#[test]
fn the_test_of_paginated_lists_passes_on_s3() {
    let (seaweedfs, moto) = (seaweedfs(), moto());
    for url in [seaweedfs.url(), moto.url()] {
        let passed = passes(move || {
            let sealed: SealedStore<AmazonS3> =
                builder(s3(&url, BUCKET).build().unwrap()).build().unwrap();
            Box::pin(async move { suite::list_paginated(&sealed, &sealed).await })
        });
        assert!(passed);
    }
}
