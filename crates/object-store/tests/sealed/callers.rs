//! A policy decides in every read and write, also where head and DEK are in memory.

use std::ops::Range;

use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, Extensions, GetOptions, ObjectStore, PutMultipartOptions, PutOptions,
};
use waxseal::policy::{BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::{Caller, Envelope, ErrorKind, kek::local::LocalKek};
use waxseal_object_store::v0_14::{ObjectKeys, SealedStore};

use super::ground::*;

/// One service may do everything, and nobody else anything.
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
    // Encrypted anew for its other path: read and written.
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
        // It has no place for a caller, so nobody asks.
        assert!(is_denied(sealed.get_ranges(&path, &[0..1, 5000..5010]).await));
    }
}
