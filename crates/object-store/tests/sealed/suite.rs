//! The suite of `object_store` itself, over every store and binding. Each of its tests also runs on
//! the bare store: one that fails there is named here, and no other may fail.
//!
//! Of the suite, only the tests of `MultipartStore` are not applicable: that trait uploads parts by
//! index, of which the store would have to encrypt one twice.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;

use crate::version::Binding;
use futures_util::future::LocalBoxFuture;
use object_store::ObjectStore;
use object_store::integration as suite;

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

/// On a separate thread, with its own runtime: returns whether it did not panic.
pub(crate) fn passes(test: impl FnOnce() -> LocalBoxFuture<'static, ()> + Send + 'static) -> bool {
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    };
    thread::spawn(run).join().is_ok()
}

/// Runs the suite on the stores that `make` makes, each time another one. Those that fail on the
/// bare store are `known`, and those that fail there at times.
pub(crate) fn run<S: ObjectStore>(
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
