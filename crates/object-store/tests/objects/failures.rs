//! How the store handles an operator's changes, an outage and another program's objects.

use std::time::{Duration, Instant};

use waxseal::ErrorKind;
use waxseal::store::{Insertion, KeyStore, ScanCursor, StoreError, StoreErrorClass};
use waxseal_object_store::ObjectKeyStore;
use waxseal_testing::stand_in::{Line, Relay};

use crate::s3::{BUCKET, S3};
use crate::{ACCESS_KEY, SECRET, local, row, s3, s3_builder};

/// Every call's error.
async fn errors(store: &ObjectKeyStore) -> Vec<(&'static str, Option<StoreError>)> {
    let row = row(1, 0, 0);
    let branch = row.place().unwrap().branch;
    vec![
        ("insert", store.insert(&row).await.err()),
        ("get", store.get(row.id()).await.err()),
        ("branch", store.branch(&branch, 0).await.err()),
        ("replace", store.replace(&row, &row).await.err()),
        ("erase_branch", store.erase_branch(&branch).await.err()),
        ("scan", store.scan(None, 1).await.err()),
        ("health", store.health().await.err()),
    ]
}

fn are(errors: Vec<(&'static str, Option<StoreError>)>, class: StoreErrorClass, text: &str) {
    for (call, error) in errors {
        let error = error.unwrap_or_else(|| panic!("{call} succeeded"));
        assert_eq!(error.class(), class, "{call}: {error}");
        assert!(error.to_string().contains(text), "{call}: {error}");
        assert!(!format!("{error} {error:?}").contains(SECRET), "{call}: {error:?}");
    }
}

#[tokio::test]
async fn a_bucket_that_is_not_there_is_misconfigured() {
    for server in S3::all() {
        let store = s3(&server.url(), "no-such-bucket", Duration::from_secs(30));
        are(errors(&store).await, StoreErrorClass::Misconfigured, "the bucket is not there");
    }
}

#[tokio::test]
async fn a_wrong_login_is_misconfigured_and_not_shown() {
    let server = S3::seaweedfs();
    let login = |key: &str, secret: &str| {
        s3_builder(&server.url(), BUCKET)
            .option("aws_access_key_id", key)
            .option("aws_secret_access_key", secret)
            .build()
            .unwrap()
    };
    login(ACCESS_KEY, SECRET).health().await.unwrap();
    let wrong = format!("{SECRET}x");
    are(errors(&login(ACCESS_KEY, &wrong)).await, StoreErrorClass::Misconfigured, "403");
    are(errors(&login("AKIAOTHER", SECRET)).await, StoreErrorClass::Misconfigured, "403");
}

#[tokio::test]
async fn a_server_that_is_killed_is_unavailable_within_the_bound() {
    for mut server in S3::all() {
        let store = s3(&server.url(), BUCKET, Duration::from_secs(5));
        store.health().await.unwrap();
        server.kill();
        let began = Instant::now();
        are(errors(&store).await, StoreErrorClass::Unavailable, "");
        assert!(began.elapsed() < Duration::from_secs(7 * 6), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_unavailable_within_the_bound() {
    let server = S3::seaweedfs();
    let relay = Relay::to(server.port());
    let store = s3(&relay.url(), BUCKET, Duration::from_millis(1500));
    relay.set(Line::Silent);
    let began = Instant::now();
    are(errors(&store).await, StoreErrorClass::Unavailable, "");
    assert!(began.elapsed() < Duration::from_secs(7 * 2), "{:?}", began.elapsed());
    relay.set(Line::Open);
    s3(&relay.url(), BUCKET, Duration::from_secs(30)).health().await.unwrap();
}

#[tokio::test]
async fn objects_of_another_program_and_moved_objects_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = local(folder.path());
    let (one, two) = (row(1, 0, 1), row(1, 5, 2));
    store.insert(&one).await.unwrap();
    store.insert(&two).await.unwrap();
    let branch = one.place().unwrap().branch;
    let of_branch = folder.path().join("branches").join(branch.to_string());
    let mut files: Vec<_> =
        std::fs::read_dir(&of_branch).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 2);
    let is_named = |error: StoreError, name: &str| {
        assert_eq!(error.class(), StoreErrorClass::Misconfigured);
        assert!(error.to_string().contains(name), "{error}");
    };
    // The older row's object at the newer one's place.
    let newer = std::fs::read(&files[1]).unwrap();
    std::fs::copy(&files[0], &files[1]).unwrap();
    let name = files[1].file_name().unwrap().to_str().unwrap();
    is_named(store.branch(&branch, 0).await.unwrap_err(), name);
    is_named(store.get(two.id()).await.unwrap_err(), name);
    std::fs::write(&files[1], newer).unwrap();
    assert_eq!(store.branch(&branch, 0).await.unwrap(), [one, two]);

    std::fs::write(folder.path().join("keys/readme.txt"), "hello").unwrap();
    is_named(store.scan(None, 10).await.unwrap_err(), "readme.txt");
    let cursor = ScanCursor::from_bytes(*b"another's");
    is_named(store.scan(Some(&cursor), 10).await.unwrap_err(), "cursor");
}

#[tokio::test]
async fn a_folder_that_goes_away_is_misconfigured() {
    let folder = tempfile::tempdir().unwrap();
    let store = local(folder.path());
    store.health().await.unwrap();
    let path = folder.path().to_owned();
    drop(folder);
    let error = store.health().await.unwrap_err();
    assert_eq!(error.class(), StoreErrorClass::Misconfigured);
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}

#[test]
fn every_option_that_is_wrong_fails_at_build() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    std::fs::write(&file, "x").unwrap();
    let url = |url: &str| ObjectKeyStore::builder(url);
    let s3 = || s3_builder("http://127.0.0.1:1", "keys");
    for (builder, named) in [
        (url("no url"), "url"),
        (url("ftp://host/x"), "ftp"),
        (url("http://host/x"), "url"),
        (url("s3://AKIATEST:wJalrXUtnFEMI@keys/x"), "url"),
        (url("s3://keys/x?aws_secret_access_key=wJalrXUtnFEMI"), "url"),
        (url("file:///no/such/folder"), "/no/such/folder"),
        (url(&format!("file://{}", file.display())), "folder"),
        (url("memory:///").option("aws_region", "x"), "aws_region"),
        (s3().option("aws_no_such_option", SECRET), "aws_no_such_option"),
        (s3().option("aws_allow_http", "perhaps"), "option"),
        (s3().timeout(Duration::from_millis(99)), "timeout"),
        (s3().timeout(Duration::from_secs(301)), "timeout"),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");
        assert!(error.to_string().contains(named), "{named}: {error}");
        assert!(!format!("{error} {error:?}").contains(SECRET), "{error:?}");
    }
}

#[test]
fn debug_shows_the_url_and_no_login() {
    let builder = s3_builder("http://127.0.0.1:1", "keys");
    let shown = format!("{builder:?}");
    assert!(shown.contains("aws_secret_access_key") && !shown.contains(SECRET), "{shown}");
    let store = builder.build().unwrap();
    let shown = format!("{store:?}");
    assert!(shown.contains("s3://keys/some/prefix") && !shown.contains(SECRET), "{shown}");
    assert_eq!(store.name(), "s3://keys/some/prefix");
}

#[tokio::test]
async fn stores_with_other_prefixes_do_not_see_each_other() {
    let server = S3::seaweedfs();
    let one = s3(&server.url(), BUCKET, Duration::from_secs(30));
    let other = ObjectKeyStore::builder("s3://keys/some/prefix2")
        .option("aws_endpoint", server.url())
        .option("aws_allow_http", "true")
        .option("aws_access_key_id", ACCESS_KEY)
        .option("aws_secret_access_key", SECRET)
        .build()
        .unwrap();
    let row = row(1, 0, 0);
    one.insert(&row).await.unwrap();
    assert_eq!(other.get(row.id()).await.unwrap(), None);
    assert!(other.scan(None, 10).await.unwrap().rows.is_empty());
    assert!(other.branch(&row.place().unwrap().branch, 0).await.unwrap().is_empty());
}

/// An envelope is used from threads without a runtime too. A panic there would be every caller's.
#[test]
fn a_caller_without_a_runtime_is_served() {
    use waxseal_testing::support::block_on;

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = runtime.block_on(async { local(folder.path()) });
    let row = row(1, 0, 1);
    assert!(matches!(block_on(store.insert(&row)).unwrap(), Insertion::Inserted));
    assert_eq!(block_on(store.get(row.id())).unwrap().unwrap().as_bytes(), row.as_bytes());
    block_on(store.health()).unwrap();
    // One that was made outside works on the runtime of its caller.
    let outside = local(folder.path());
    runtime.block_on(outside.get(row.id())).unwrap().unwrap();
    let error = block_on(outside.get(row.id())).unwrap_err();
    assert_eq!(error.class(), StoreErrorClass::Misconfigured, "{error}");
    // The runtime of the store has ended.
    drop(runtime);
    let error = block_on(store.get(row.id())).unwrap_err();
    assert_eq!(error.class(), StoreErrorClass::Unavailable, "{error}");
}

/// The URL is the name of the store, which errors and metrics show.
#[test]
fn a_user_in_a_url_is_refused_and_not_shown() {
    for url in ["s3://hunter2@bucket/keys", "gs://hunter2@my.bucket"] {
        let error = ObjectKeyStore::builder(url).build().unwrap_err().to_string();
        assert!(error.contains("no user") && !error.contains("hunter2"), "{error}");
    }
}
