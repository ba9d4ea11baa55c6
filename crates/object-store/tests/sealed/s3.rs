//! The suite of `object_store` itself on servers that speak S3.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::version::{Binding, SealedStore};
use object_store::aws::{AmazonS3, AmazonS3Builder, S3CopyIfNotExists};
use object_store::integration as suite;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, PutMultipartOptions, PutOptions, TagSet};
use waxseal_testing::seaweedfs::{ACCESS_KEY, SECRET_KEY, SeaweedFs};
use waxseal_testing::stand_in::StandIn;

use crate::ground::builder;
use crate::suite::{passes, run};

pub(crate) fn s3(url: &str, bucket: &str) -> AmazonS3Builder {
    AmazonS3Builder::new()
        .with_endpoint(url)
        .with_allow_http(true)
        .with_region("us-east-1")
        .with_bucket_name(bucket)
        .with_access_key_id(ACCESS_KEY)
        .with_secret_access_key(SECRET_KEY)
        .with_copy_if_not_exists(S3CopyIfNotExists::Multipart)
}

/// Every store under its own prefix: SeaweedFS reserves much of the disk for each bucket.
fn prefixes(url: String) -> impl Fn() -> PrefixStore<AmazonS3> + Clone + Send + 'static {
    let next = Arc::new(AtomicUsize::new(0));
    move || {
        let prefix = format!("store-{}", next.fetch_add(1, Ordering::SeqCst));
        PrefixStore::new(s3(&url, BUCKET).build().unwrap(), prefix)
    }
}

const S3_BINDINGS: [Binding; 2] = [Binding::Path, Binding::Nothing];

pub(crate) const BUCKET: &str = "objects";

pub(crate) fn seaweedfs() -> SeaweedFs {
    let server = SeaweedFs::start();
    server.create_bucket(BUCKET);
    server
}

pub(crate) fn moto() -> StandIn {
    let server = StandIn::moto();
    create_bucket(server.port(), BUCKET);
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

/// `object_store` writes tags and cannot read them, so the server is asked.
#[tokio::test]
async fn the_tags_of_a_write_are_those_of_the_object() {
    let server = moto();
    let sealed: SealedStore<AmazonS3> =
        builder(s3(&server.url(), BUCKET).build().unwrap()).build().unwrap();
    let mut tags = TagSet::default();
    tags.push("retention", "7 years");
    let put = PutOptions { tags: tags.clone(), ..Default::default() };
    sealed.put_opts(&Path::from("whole"), "text".into(), put).await.unwrap();
    let options = PutMultipartOptions { tags, ..Default::default() };
    let mut upload = sealed.put_multipart_opts(&Path::from("parts"), options).await.unwrap();
    upload.put_part("text".into()).await.unwrap();
    upload.complete().await.unwrap();
    for path in ["whole", "parts"] {
        let tagging = ask(server.port(), "GET", &format!("{BUCKET}/{path}?tagging"));
        let is_there = ["<Key>retention</Key>", "<Value>7 years</Value>"];
        assert!(is_there.iter().all(|part| tagging.contains(part)), "{path}: {tagging}");
    }
}

fn create_bucket(port: u16, bucket: &str) {
    ask(port, "PUT", bucket);
}

/// Of stand-ins that take it without a signature.
fn ask(port: u16, method: &str, what: &str) -> String {
    use std::io::{Read, Write};
    let mut connection = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
    let host = "s3.us-east-1.amazonaws.com\r\nAuthorization: AWS AKIATEST:x";
    let request = format!(
        "{method} /{what} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    );
    connection.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(" 200 "), "{answer}");
    answer
}
