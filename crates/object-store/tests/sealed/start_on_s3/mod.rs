//! Rewraps of large objects on S3, whose rest the server copies: on SeaweedFS, which has conditions
//! in copies and completions, and on moto, which overlooks both.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::version::{
    RewrapOptions, RewrapProgress, Rewrapped, S3ReplaceStart, S3ReplaceStartBuilder, SealedStore,
    SealedStoreBuilder,
};
use object_store::aws::{AmazonS3, Checksum};
use object_store::client::{HttpConnector, HttpRequest, HttpRequestBody, ReqwestConnector};
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::signer::{Method, SignedUrlOptions, Signer};
use object_store::{
    Attribute, Attributes, BackoffConfig, ClientOptions, Error, ObjectStore, ObjectStoreExt,
    PutOptions, Result, RetryConfig,
};
use waxseal::ErrorKind;
use waxseal_testing::seaweedfs::SeaweedFs;
use waxseal_testing::stand_in::StandIn;

use super::ground::*;
use super::rewrap::Keks;
use super::s3::{BUCKET, moto, s3, seaweedfs};
use super::wire::{Act, Call, Wire};

mod faults;

const MIB: u64 = 1 << 20;
/// Where the chunks end that a beginning of 5 MiB has.
const END: u64 = HEAD + (5 * MIB - HEAD).div_ceil(SEALED_CHUNK) * SEALED_CHUNK;
/// The plaintext of those chunks.
const CHUNKS: u64 = (END - HEAD) / SEALED_CHUNK * CHUNK;

/// Impatient, so that what hangs is given up.
fn retry() -> RetryConfig {
    let (short, long) = (Duration::from_millis(5), Duration::from_millis(50));
    let backoff = BackoffConfig { init_backoff: short, max_backoff: long, base: 2.0 };
    RetryConfig { backoff, max_retries: 2, retry_timeout: Duration::from_secs(20) }
}

/// One server, with what looks at the requests to it.
struct Ground {
    url: String,
    wire: Wire,
    keks: Keks,
}

impl Ground {
    fn at(url: String) -> Self {
        Self { url, wire: Wire::new(), keks: Keks::make() }
    }

    /// Past the wire.
    fn bare(&self) -> AmazonS3 {
        s3(&self.url, BUCKET).build().unwrap()
    }

    fn wired(&self) -> AmazonS3 {
        let s3 = s3(&self.url, BUCKET).with_retry(retry());
        s3.with_http_connector(self.wire.clone()).build().unwrap()
    }

    fn by_s3(&self) -> S3ReplaceStartBuilder {
        let client = ClientOptions::new().with_allow_http(true);
        S3ReplaceStart::builder(self.wired(), BUCKET)
            .client_options(client)
            .connector(self.wire.clone())
            .retry(retry())
            .from_len(0)
    }

    fn before(&self) -> SealedStore<AmazonS3> {
        self.keks.before(self.bare()).build().unwrap()
    }

    fn moving_by(&self, by: S3ReplaceStartBuilder) -> SealedStoreBuilder<AmazonS3> {
        self.keks.moving(self.wired()).replace_start_by(by.build().unwrap())
    }

    fn moving(&self) -> SealedStore<AmazonS3> {
        self.moving_by(self.by_s3()).build().unwrap()
    }

    fn after(&self) -> SealedStore<AmazonS3> {
        self.keks.after(self.bare())
    }

    /// Uploads of the bucket that were neither completed nor aborted.
    async fn uploads(&self) -> usize {
        self.listed_uploads().await.len()
    }

    /// Their keys and ids.
    async fn listed_uploads(&self) -> Vec<(String, String)> {
        let options = SignedUrlOptions::new().with_query([("uploads", "")]);
        let (s3, root, minute) = (self.bare(), Path::default(), Duration::from_secs(60));
        let url = s3.signed_url_opts(Method::GET, &root, minute, &options).await.unwrap();
        let mut request = HttpRequest::new(HttpRequestBody::empty());
        *request.uri_mut() = url.as_str().parse().unwrap();
        let client = ReqwestConnector::default();
        let client = client.connect(&ClientOptions::new().with_allow_http(true)).unwrap();
        let answer = client.execute(request).await.unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        let body = answer.into_body().bytes().await.unwrap();
        let text = String::from_utf8_lossy(&body).into_owned();
        let between = |from: &str, to: &str| -> Vec<String> {
            text.split(from).skip(1).map(|rest| rest.split(to).next().unwrap().to_owned()).collect()
        };
        let (keys, ids) = (between("<Key>", "</Key>"), between("<UploadId>", "</UploadId>"));
        assert_eq!(keys.len(), ids.len());
        keys.into_iter().zip(ids).collect()
    }

    /// What a creation left whose answer was lost.
    async fn abort_all(&self) {
        use object_store::multipart::MultipartStore;
        for (key, id) in self.listed_uploads().await {
            self.bare().abort_multipart(&Path::from(key), &id).await.unwrap();
        }
    }

    /// An upload that was given up is aborted a moment later.
    async fn no_upload_is_left(&self, because: &str) {
        let start = Instant::now();
        while self.uploads().await > 0 {
            assert!(start.elapsed() < Duration::from_secs(60), "an upload is left: {because}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// What it is now: by the new KEK or the old one, it has this text.
    async fn has(&self, path: &Path, text: &[u8], because: &str) -> bool {
        let reading = self.keks.moving(self.bare()).build().unwrap();
        assert!(get(&reading, path).await.unwrap() == text, "another text: {because}");
        self.after().get_range(path, 0..1).await.is_ok()
    }
}

fn servers() -> (SeaweedFs, StandIn) {
    (seaweedfs(), moto())
}

fn operations(calls: &[Call]) -> Vec<&'static str> {
    let mut operations: Vec<_> = calls.iter().map(|call| call.operation).collect();
    // Parts are at the same time.
    let is_part = |operation: &&str| matches!(*operation, "copy" | "part");
    if let Some(first) = operations.iter().position(is_part) {
        let len = operations[first..].iter().take_while(|operation| is_part(operation)).count();
        operations[first..first + len].sort_unstable();
    }
    operations
}

/// Head, first chunks, and then the upload.
fn expected(copies: usize) -> Vec<&'static str> {
    let begin = ["get", "get", "create"].into_iter().chain(vec!["copy"; copies]);
    begin.chain(["part", "list parts", "get", "complete", "get"]).collect()
}

/// A bit more than the beginning has.
fn short() -> Vec<u8> {
    plaintext(CHUNKS + 10_000)
}

fn attributes() -> Attributes {
    Attributes::from_iter([
        (Attribute::ContentType, "text/csv"),
        (Attribute::Metadata("origin".into()), "billing"),
    ])
}

fn sums(calls: &[Call]) -> (u64, u64) {
    (calls.iter().map(|call| call.up).sum(), calls.iter().map(|call| call.down).sum())
}

#[tokio::test]
async fn of_forty_mib_five_go_through_the_process() {
    let (seaweedfs, moto) = servers();
    for url in [seaweedfs.url(), moto.url()] {
        let ground = Ground::at(url);
        let (path, text) = (Path::from("a folder+x/ä%41~b=c&d.csv"), plaintext(40 * MIB));
        let before = ground.before();
        let put = async || {
            let options = PutOptions { attributes: attributes(), ..Default::default() };
            before.put_opts(&path, text.clone().into(), options).await.unwrap();
            before.content_id(&path).await.unwrap()
        };
        // Without it, all of it comes and goes.
        put().await;
        ground.keks.moving(ground.wired()).build().unwrap().rewrap(&path).await.unwrap();
        let (up, down) = sums(&ground.wire.take_calls());
        assert!(up > 40 * MIB && down > 40 * MIB, "{up} {down}");

        for (part_size, copies) in [(256 * MIB, 1), (8 * MIB, 5)] {
            let id = put().await;
            let moving = ground.moving_by(ground.by_s3().part_size(part_size)).build().unwrap();
            assert_eq!(moving.rewrap(&path).await.unwrap(), Rewrapped::Changed);
            let calls = ground.wire.take_calls();
            assert_eq!(operations(&calls), expected(copies));
            let (up, down) = sums(&calls);
            println!("{up} bytes up and {down} down in {} requests", calls.len());
            let all = 5 * MIB..5 * MIB + SEALED_CHUNK + 8192;
            assert!(all.contains(&up) && (5 * MIB - HEAD..all.end).contains(&down), "{up} {down}");

            let after = ground.after();
            let got = after.get(&path).await.unwrap();
            assert_eq!(got.attributes, attributes());
            assert_eq!(after.content_id(&path).await.unwrap(), id);
            assert!(got.bytes().await.unwrap() == text);
            for start in [0, CHUNKS - 100, CHUNKS, 13 * MIB - 5000, 40 * MIB - 700] {
                let got = after.get_range(&path, start..start + 700).await.unwrap();
                let place = usize::try_from(start).unwrap();
                assert!(got == text[place..place + 700], "{start}");
            }
            assert_eq!(moving.rewrap(&path).await.unwrap(), Rewrapped::Unchanged);
            ground.wire.take_calls();
            ground.no_upload_is_left("done").await;
        }
    }
}

#[tokio::test]
async fn an_object_is_changed_in_this_way_from_the_first_byte_behind_the_beginning_on() {
    let (seaweedfs, moto) = servers();
    for url in [seaweedfs.url(), moto.url()] {
        let ground = Ground::at(url);
        let path = Path::from("a");
        // Rests of this many bytes: 5 MiB are 1,275 chunks and 80 bytes, with a tag.
        let five = CHUNKS + 1275 * CHUNK + 64;
        for (len, copies) in [
            (CHUNKS - 1, None),
            (CHUNKS, Some(1)),
            (CHUNKS + 1, Some(1)),
            (five - 1, Some(1)),
            (five, Some(1)),
            (five + 1, Some(2)),
        ] {
            let text = plaintext(len);
            ground.before().put(&path, text.clone().into()).await.unwrap();
            let size = ground.bare().head(&path).await.unwrap().size;
            assert_eq!(size == END + 5 * MIB, len == five);
            let moving = ground.moving_by(ground.by_s3().part_size(5 * MIB).from_len(size));
            assert_eq!(moving.build().unwrap().rewrap(&path).await.unwrap(), Rewrapped::Changed);
            let calls = ground.wire.take_calls();
            let expected = copies.map_or_else(|| vec!["get", "get", "get", "put"], expected);
            assert_eq!(operations(&calls), expected, "{len}");
            assert!(ground.has(&path, &text, "rewrapped").await, "{len}");

            // Below the least length that was set.
            ground.before().put(&path, text.clone().into()).await.unwrap();
            let moving = ground.moving_by(ground.by_s3().from_len(size + 1)).build().unwrap();
            moving.rewrap(&path).await.unwrap();
            let calls = ground.wire.take_calls();
            assert_eq!(operations(&calls), ["get", "get", "get", "put"], "{len}");
            assert!(ground.has(&path, &text, "rewrapped").await, "{len}");
        }
        ground.no_upload_is_left("done").await;
    }
}

/// Before each request. On SeaweedFS nothing is ever lost: it copies only from the version that is
/// demanded, and completes only if it is still there. moto overlooks both, so what is written
/// between the last look and the completion is lost there.
#[tokio::test]
async fn an_object_that_others_overwrite_meanwhile_stays_theirs() {
    let (seaweedfs, moto) = servers();
    for (url, has_conditions) in [(seaweedfs.url(), true), (moto.url(), false)] {
        let ground = Ground::at(url);
        let (path, old, new) = (Path::from("a/b"), short(), plaintext(CHUNKS + 20_000));
        ground.before().put(&path, new.clone().into()).await.unwrap();
        let theirs = ground.bare().get(&path).await.unwrap().bytes().await.unwrap();
        let requests = expected(1);
        for (nth, request) in requests.into_iter().enumerate() {
            ground.before().put(&path, old.clone().into()).await.unwrap();
            let (bare, at, theirs) = (ground.bare(), path.clone(), theirs.clone());
            let overwrite = Act::First(Arc::new(move || {
                let (bare, at, theirs) = (bare.clone(), at.clone(), theirs.clone());
                Box::pin(async move { drop(bare.put(&at, theirs.into()).await.unwrap()) })
            }));
            ground.wire.script(move |n, _| if n == nth { overwrite.clone() } else { Act::Pass });
            assert_eq!(ground.moving().rewrap(&path).await.unwrap(), Rewrapped::Changed);
            let calls = operations(&ground.wire.take_calls());
            ground.wire.behave();
            let is_lost = !has_conditions && request == "complete";
            let (text, because) = (if is_lost { &old } else { &new }, format!("{nth}: {calls:?}"));
            assert!(ground.has(&path, text, &because).await, "{because}");
            ground.no_upload_is_left(&because).await;
        }
    }
}

#[tokio::test]
async fn an_object_that_others_delete_meanwhile_is_gone() {
    let (seaweedfs, moto) = servers();
    for (url, has_conditions) in [(seaweedfs.url(), true), (moto.url(), false)] {
        let ground = Ground::at(url);
        let path = Path::from("a/b");
        let requests = expected(1);
        for (nth, request) in requests.into_iter().enumerate() {
            ground.before().put(&path, short().into()).await.unwrap();
            let (bare, at) = (ground.bare(), path.clone());
            let delete = Act::First(Arc::new(move || {
                let (bare, at) = (bare.clone(), at.clone());
                Box::pin(async move { bare.delete(&at).await.unwrap() })
            }));
            ground.wire.script(move |n, _| if n == nth { delete.clone() } else { Act::Pass });
            let done = ground.moving().rewrap(&path).await;
            ground.wire.behave();
            let is_there_again = !has_conditions && request == "complete";
            if is_there_again {
                assert_eq!(done.unwrap(), Rewrapped::Changed);
            } else {
                assert!(matches!(done, Err(Error::NotFound { .. })), "{nth}: {done:?}");
                assert!(ground.bare().head(&path).await.is_err());
            }
            ground.no_upload_is_left(request).await;
        }
    }
}

/// What is looked for in the wrong place is a failure: whoever saw it counted as gone would take
/// the old KEK away.
#[tokio::test]
async fn objects_that_are_looked_for_elsewhere_are_not_counted_as_gone() {
    let (seaweedfs, moto) = servers();
    for url in [seaweedfs.url(), moto.url()] {
        let ground = Ground::at(url);
        let (prefix, path, text) = (Path::from("tenants/a"), Path::from("b"), short());
        let before = ground.keks.before(PrefixStore::new(ground.bare(), prefix.clone()));
        before.build().unwrap().put(&path, text.into()).await.unwrap();
        let client = ClientOptions::new().with_allow_http(true);
        let of_another = S3ReplaceStart::builder(ground.wired(), "another").client_options(client);
        let of_another = of_another.from_len(0).prefix(prefix.clone());
        // The first has no prefix.
        for by in [ground.by_s3(), of_another] {
            let moving = ground.keks.moving(PrefixStore::new(ground.wired(), prefix.clone()));
            let moving = moving.replace_start_by(by.build().unwrap()).build().unwrap();
            let (mut failures, options) = (Vec::new(), RewrapOptions::default());
            let report = |so_far: &RewrapProgress| {
                failures.extend(so_far.failures.iter().map(|(_, error)| error.to_string()));
            };
            let done = moving.rewrap_prefix(None, options, report).await.unwrap();
            assert_eq!((done.rewrapped, done.failed, done.gone), (0, 1, 0));
            assert!(failures[0].contains("another bucket or prefix"), "{failures:?}");
        }
        ground.no_upload_is_left("nothing was found").await;
    }
}

/// S3 demands a signature over all of its headers, also those that the client adds itself.
#[tokio::test]
async fn headers_of_s3_that_the_client_has_by_default_are_signed() {
    let server = seaweedfs();
    let ground = Ground::at(server.url());
    let (path, text) = (Path::from("a/b"), short());
    ground.before().put(&path, text.clone().into()).await.unwrap();
    let headers = [("x-amz-expected-bucket-owner", "123456789012"), ("x-other", "1")];
    let headers = headers.map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
    let client = ClientOptions::new().with_allow_http(true);
    let client = client.with_default_headers(headers.into_iter().collect());
    let by = ground.by_s3().client_options(client);
    let moving = ground.moving_by(by).build().unwrap();
    assert_eq!(moving.rewrap(&path).await.unwrap(), Rewrapped::Changed);
    let calls = ground.wire.take_calls();
    let is_own = |call: &&Call| ["copy", "list parts", "complete"].contains(&call.operation);
    let signed: Vec<_> = calls.iter().filter(is_own).map(|call| call.signed.as_str()).collect();
    assert_eq!(signed.len(), 3);
    for signed in signed {
        assert!(signed.contains("x-amz-expected-bucket-owner") && !signed.contains("x-other"));
    }
    assert!(ground.has(&path, &text, "done").await);
}

#[tokio::test]
async fn two_rewraps_of_one_object_at_the_same_time_leave_it_whole() {
    let (seaweedfs, moto) = servers();
    for url in [seaweedfs.url(), moto.url()] {
        let ground = Ground::at(url);
        let (path, text) = (Path::from("a/b"), short());
        for _ in 0..5 {
            ground.before().put(&path, text.clone().into()).await.unwrap();
            let (one, other) = (ground.moving(), ground.moving());
            let (one, other) = tokio::join!(one.rewrap(&path), other.rewrap(&path));
            assert!(matches!((one, other), (Ok(_), Ok(_))));
            assert!(ground.has(&path, &text, "two").await);
            ground.no_upload_is_left("two").await;
        }
    }
}

#[tokio::test]
async fn a_walk_under_a_prefix_has_objects_of_both_kinds() {
    let (seaweedfs, moto) = servers();
    for url in [seaweedfs.url(), moto.url()] {
        let ground = Ground::at(url);
        let prefix = Path::from("tenants/a b");
        let before = ground.keks.before(PrefixStore::new(ground.bare(), prefix.clone()));
        let before = before.build().unwrap();
        let lengths = [10, CHUNKS + 10_000, 0, CHUNKS - 1, 12 * MIB, 60_000];
        let path = |n: u64| Path::from(format!("{n}"));
        for (n, len) in (0..).zip(lengths) {
            before.put(&path(n), plaintext(len).into()).await.unwrap();
        }
        before.inner().put(&path(9), "not encrypted".into()).await.unwrap();
        let by = ground.by_s3().prefix(prefix.clone()).build().unwrap();
        let moving = ground.keks.moving(PrefixStore::new(ground.wired(), prefix.clone()));
        let moving = moving.replace_start_by(by).build().unwrap();
        let options = RewrapOptions::default().at_once(3);
        let done = moving.rewrap_prefix(None, options.clone(), |_| {}).await.unwrap();
        assert_eq!((done.rewrapped, done.unchanged, done.failed), (6, 0, 1));
        let count = |of: &str, calls: &[Call]| calls.iter().filter(|c| c.operation == of).count();
        let calls = ground.wire.take_calls();
        assert_eq!((count("complete", &calls), count("put", &calls)), (2, 4));
        let again = moving.rewrap_prefix(None, options, |_| {}).await.unwrap();
        assert_eq!((again.rewrapped, again.unchanged, again.failed), (0, 6, 1));
        let after = ground.keks.after(PrefixStore::new(ground.bare(), prefix));
        for (n, len) in (0..).zip(lengths) {
            assert!(get(&after, &path(n)).await.unwrap() == plaintext(len), "{n}");
        }
        ground.no_upload_is_left("done").await;
    }
}

/// Parts are joined by their checksums then, or the object goes through the process.
#[tokio::test]
async fn a_client_with_checksums_rewraps_too() {
    let (seaweedfs, moto) = servers();
    for (url, is_seaweedfs) in [(seaweedfs.url(), true), (moto.url(), false)] {
        let ground = Ground::at(url);
        let (path, text) = (Path::from("a/b"), short());
        ground.before().put(&path, text.clone().into()).await.unwrap();
        let summing = s3(&ground.url, BUCKET).with_checksum_algorithm(Checksum::SHA256);
        let summing = summing.with_http_connector(ground.wire.clone()).build().unwrap();
        let client = ClientOptions::new().with_allow_http(true);
        let by = S3ReplaceStart::builder(summing.clone(), BUCKET).client_options(client);
        let by = by.connector(ground.wire.clone()).from_len(0).build().unwrap();
        let moving = ground.keks.moving(summing).replace_start_by(by).build().unwrap();
        assert_eq!(moving.rewrap(&path).await.unwrap(), Rewrapped::Changed);
        let calls = operations(&ground.wire.take_calls());
        println!("{calls:?}");
        assert!(ground.has(&path, &text, "rewrapped").await, "{calls:?}");
        // SeaweedFS requires checksums in a completion, but returns none for copied parts.
        assert!(!is_seaweedfs || calls.last() == Some(&"put"), "{calls:?}");
        ground.no_upload_is_left("rewrapped").await;
    }
}

/// Each with a value that changes what happens.
#[tokio::test]
async fn every_option_is_heeded() {
    let server = seaweedfs();
    let ground = Ground::at(server.url());
    let (path, text) = (Path::from("a/b"), plaintext(CHUNKS + 12 * MIB));
    ground.before().put(&path, text.clone().into()).await.unwrap();
    let rewrap = async |by: S3ReplaceStartBuilder| -> Result<Rewrapped> {
        ground.moving_by(by).build().unwrap().rewrap(&path).await
    };
    // Of another place, there is nothing to copy.
    let elsewhere = ground.by_s3().prefix(Path::from("elsewhere"));
    assert!(rewrap(elsewhere).await.is_err());
    let client = ClientOptions::new().with_allow_http(true);
    let other = S3ReplaceStart::builder(ground.wired(), "another").client_options(client);
    assert!(rewrap(other.from_len(0)).await.is_err());
    // Plain HTTP is not allowed, unless it is.
    let strict = S3ReplaceStart::builder(ground.wired(), BUCKET).from_len(0);
    assert!(rewrap(strict.retry(RetryConfig { max_retries: 0, ..retry() })).await.is_err());
    // Headers are sent, and signed.
    let with_header = || {
        let mut headers = object_store::signer::HeaderMap::new();
        headers.insert("x-amz-request-payer", "requester".parse().unwrap());
        ground.by_s3().headers(headers)
    };
    assert!(!format!("{:?}", with_header()).contains("requester"));
    ground.wire.script(|_, call| match call.operation {
        "copy" => Act::Without("x-amz-request-payer"),
        _ => Act::Pass,
    });
    assert!(matches!(rewrap(with_header()).await, Err(Error::PermissionDenied { .. })));
    // No answer in time.
    ground.wire.script(|_, call| if call.operation == "copy" { Act::Hang } else { Act::Pass });
    let short = ground.by_s3().timeout(Duration::from_millis(1));
    let failed = rewrap(short).await.unwrap_err();
    assert!(failed.to_string().contains("no answer in time"), "{failed}");
    // No repetitions.
    let mut is_first = true;
    ground.wire.script(move |_, call| {
        match call.operation == "copy" && std::mem::take(&mut is_first) {
            true => Act::Answer(503, String::new()),
            false => Act::Pass,
        }
    });
    let once = ground.by_s3().retry(RetryConfig { max_retries: 0, ..retry() });
    assert!(rewrap(once).await.is_err());
    ground.wire.behave();
    assert!(!ground.has(&path, &text, "nothing was done").await);
    ground.no_upload_is_left("nothing was done").await;
    // One after the other.
    ground.wire.take_calls();
    rewrap(with_header().at_once(1).part_size(5 * MIB)).await.unwrap();
    let calls: Vec<_> = ground.wire.take_calls().iter().map(|call| call.operation).collect();
    assert_eq!(calls[2..8], ["create", "part", "copy", "copy", "copy", "list parts"]);
    assert!(ground.has(&path, &text, "done").await);

    let refused = [
        S3ReplaceStart::builder(ground.bare(), ""),
        S3ReplaceStart::builder(ground.bare(), "a\nb"),
        ground.by_s3().part_size(5 * MIB - 1),
        ground.by_s3().part_size((5 << 30) + 1),
        ground.by_s3().at_once(0),
        ground.by_s3().at_once(101),
        ground.by_s3().timeout(Duration::ZERO),
    ];
    for refused in refused {
        let said = format!("{refused:?}");
        assert_eq!(refused.build().expect_err(&said).kind(), ErrorKind::InvalidOption);
    }
    for fine in [ground.by_s3().part_size(5 * MIB), ground.by_s3().part_size(5 << 30)] {
        assert!(fine.at_once(100).build().is_ok());
    }
}
