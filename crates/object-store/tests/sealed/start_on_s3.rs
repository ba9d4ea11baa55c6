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
use waxseal_testing::fault_proxy::{Fault, FaultProxy};
use waxseal_testing::seaweedfs::SeaweedFs;
use waxseal_testing::stand_in::StandIn;

use super::ground::*;
use super::rewrap::Keks;
use super::s3::{BUCKET, moto, s3, seaweedfs};
use super::wire::{Act, Call, HANGS, Wire};

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
        // Rests of so many bytes: 5 MiB are 1,275 chunks and 80 bytes, with a tag.
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

/// Requests that do not arrive, whose answers do not, and that the service has no time for.
#[tokio::test]
async fn a_connection_that_is_cut_at_a_request_costs_a_repetition() {
    let (seaweedfs, moto) = servers();
    for (url, most) in [(seaweedfs.url(), 8), (moto.url(), 2)] {
        let ground = Ground::at(url);
        let (path, text) = (Path::from("a/b"), short());
        let slow_down = "<Error><Code>SlowDown</Code><Message>later</Message></Error>";
        let internal = "<Error><Code>InternalError</Code><Message>again</Message></Error>";
        let requests = expected(1);
        for (nth, request) in requests.into_iter().enumerate() {
            // Before `nth`, of parts at the same time, may be another one of them.
            let is_own = |operation: &str| matches!(operation, "copy" | "list parts" | "complete");
            for act in [
                Act::Fail,
                Act::Lose,
                Act::Hang,
                Act::HangAfter,
                Act::Answer(503, slow_down.into()),
                Act::Answer(500, String::new()),
                Act::Answer(200, internal.into()),
                Act::Answer(200, slow_down.into()),
            ]
            .into_iter()
            .take(most)
            {
                ground.before().put(&path, text.clone().into()).await.unwrap();
                let is_lie = matches!(act, Act::Answer(200, _));
                ground.wire.script(move |n, call| match n == nth {
                    true if is_lie && !is_own(call.operation) => Act::Pass,
                    true => act.clone(),
                    false => Act::Pass,
                });
                let done = ground.moving().rewrap(&path).await;
                let calls = operations(&ground.wire.take_calls());
                ground.wire.behave();
                let because = format!("{nth}: {calls:?}");
                assert_eq!(done.unwrap(), Rewrapped::Changed, "{because}");
                assert!(ground.has(&path, &text, &because).await, "{because}");
                // Of a creation whose answer is lost nobody knows the id.
                if request != "create" {
                    ground.no_upload_is_left(&because).await;
                } else {
                    ground.abort_all().await;
                }
            }
        }
    }
}

/// It fails for good: the object is as it was, or rewrapped, and no upload is left.
#[tokio::test]
async fn a_service_that_fails_for_good_leaves_the_object_as_it_was() {
    let server = seaweedfs();
    let ground = Ground::at(server.url());
    let (path, text) = (Path::from("a/b"), short());
    let error = |code: &str| format!("<Error><Code>{code}</Code><Message>m</Message></Error>");
    let huge = format!("<CopyPartResult>{}", " ".repeat(3 << 20));
    for of in ["create", "part", "copy", "list parts", "complete"] {
        ground.before().put(&path, text.clone().into()).await.unwrap();
        for act in [
            Act::Fail,
            Act::Answer(503, error("SlowDown")),
            Act::Answer(403, error("AccessDenied")),
            Act::Answer(400, error("InvalidPart")),
            Act::Answer(404, error("NoSuchUpload")),
            Act::Answer(301, String::new()),
            Act::Answer(200, error("AccessDenied")),
            Act::Answer(200, error("SlowDown")),
            Act::Answer(200, String::new()),
            Act::Answer(200, "garbage".to_owned()),
            Act::Answer(200, "<CopyPartResult></CopyPartResult>".to_owned()),
            Act::Answer(200, huge.clone()),
        ] {
            let is_lie = matches!(act, Act::Answer(200, _));
            // Those of `object_store` are its own affair.
            if is_lie && matches!(of, "create" | "part") {
                continue;
            }
            let said = match &act {
                Act::Answer(status, body) => format!("{of}: {status} {body:.60}"),
                _ => of.to_owned(),
            };
            let told = act.clone();
            ground.wire.script(move |_, call| match call.operation == of {
                true => told.clone(),
                false => Act::Pass,
            });
            let failed = ground.moving().rewrap(&path).await.expect_err(&said);
            ground.wire.behave();
            assert!(!matches!(failed, Error::NotFound { .. } | Error::Precondition { .. }));
            let is_denied = said.contains("AccessDenied");
            assert_eq!(matches!(failed, Error::PermissionDenied { .. }), is_denied, "{said}");
            for word in ["Signature", "X-Amz", "uploadId"] {
                let shown = format!("{failed} {failed:?}");
                assert!(!shown.contains(word) || matches!(of, "create" | "part"), "{shown}");
            }
            assert!(!ground.has(&path, &text, &said).await, "{said}");
            ground.no_upload_is_left(&said).await;
        }
    }
}

#[tokio::test]
async fn what_the_service_cannot_do_goes_through_the_process() {
    let server = seaweedfs();
    let ground = Ground::at(server.url());
    let (path, text) = (Path::from("a/b"), short());
    let error = |code: &str| format!("<Error><Code>{code}</Code></Error>");
    for (of, status, body) in [
        ("copy", 501, error("NotImplemented")),
        ("copy", 501, String::new()),
        ("copy", 200, error("NotImplemented")),
        ("copy", 405, error("MethodNotAllowed")),
        ("list parts", 501, error("NotImplemented")),
        ("complete", 501, error("NotImplemented")),
    ] {
        ground.before().put(&path, text.clone().into()).await.unwrap();
        let answer = Act::Answer(status, body);
        ground.wire.script(move |_, call| match call.operation == of {
            true => answer.clone(),
            false => Act::Pass,
        });
        assert_eq!(ground.moving().rewrap(&path).await.unwrap(), Rewrapped::Changed, "{of}");
        let calls = ground.wire.take_calls();
        ground.wire.behave();
        assert!(calls.iter().any(|call| call.operation == "put"));
        assert!(ground.has(&path, &text, of).await);
        ground.no_upload_is_left(of).await;
    }
}

#[tokio::test]
async fn a_client_that_panics_leaves_no_upload() {
    let server = seaweedfs();
    let ground = Ground::at(server.url());
    let (path, text) = (Path::from("a/b"), short());
    ground.before().put(&path, text.clone().into()).await.unwrap();
    for of in ["create", "part", "copy", "list parts", "complete"] {
        ground.wire.script(move |_, call| match call.operation == of {
            true => Act::Panic,
            false => Act::Pass,
        });
        assert!(matches!(ground.moving().rewrap(&path).await, Err(Error::Generic { .. })), "{of}");
        ground.wire.behave();
        assert!(!ground.has(&path, &text, of).await, "{of}");
        ground.no_upload_is_left(of).await;
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

/// What the server did is looked for where its answer says nothing.
#[tokio::test]
async fn a_completion_whose_answer_is_garbage_is_found_to_be_done() {
    let (seaweedfs, moto) = servers();
    for url in [seaweedfs.url(), moto.url()] {
        let ground = Ground::at(url);
        let (path, text) = (Path::from("a/b"), short());
        ground.before().put(&path, text.clone().into()).await.unwrap();
        ground.wire.script(|_, call| match call.operation {
            "complete" => Act::Body("garbage".to_owned()),
            _ => Act::Pass,
        });
        assert_eq!(ground.moving().rewrap(&path).await.unwrap(), Rewrapped::Changed);
        ground.wire.behave();
        assert!(ground.has(&path, &text, "done").await);
        ground.no_upload_is_left("done").await;
    }
}

/// moto copies the whole object where the range is overlooked, and makes an empty part where the
/// source is. SeaweedFS checks the signature, which has both.
#[tokio::test]
async fn parts_that_are_not_what_was_asked_for_are_not_joined() {
    let (seaweedfs, moto) = servers();
    for url in [seaweedfs.url(), moto.url()] {
        let ground = Ground::at(url);
        let (path, text) = (Path::from("a/b"), short());
        ground.before().put(&path, text.clone().into()).await.unwrap();
        for header in ["x-amz-copy-source-range", "x-amz-copy-source"] {
            ground.wire.script(move |_, call| match call.operation {
                "copy" => Act::Without(header),
                _ => Act::Pass,
            });
            ground.moving().rewrap(&path).await.expect_err(header);
            ground.wire.behave();
            assert!(!ground.has(&path, &text, header).await);
            ground.no_upload_is_left(header).await;
        }
    }
}

/// moto takes requests that were changed on their way. A page has a thousand parts of 5 MiB
/// otherwise.
#[tokio::test]
async fn lists_of_several_pages_are_read_to_their_end_and_no_list_goes_on_for_ever() {
    let server = moto();
    let ground = Ground::at(server.url());
    let (path, text) = (Path::from("a/b"), plaintext(CHUNKS + 22 * MIB));
    ground.before().put(&path, text.clone().into()).await.unwrap();
    let rewrap = async || {
        let moving = ground.moving_by(ground.by_s3().part_size(5 * MIB)).build().unwrap();
        moving.rewrap(&path).await
    };
    let listed = |calls: &[Call]| calls.iter().filter(|c| c.operation == "list parts").count();
    let page = "<ListPartsResult><IsTruncated>true</IsTruncated></ListPartsResult>";
    let part = |number| {
        let tag = "<ETag>a</ETag><Size>1</Size>";
        format!("<Part><PartNumber>{number}</PartNumber>{tag}</Part></ListPartsResult>")
    };
    let first = page.replace("</ListPartsResult>", &part(1));
    for (body, requests) in [(page.to_owned(), 1), (first, 2)] {
        ground.wire.script(move |_, call| match call.operation {
            "list parts" => Act::Answer(200, body.clone()),
            _ => Act::Pass,
        });
        rewrap().await.unwrap_err();
        assert_eq!(listed(&ground.wire.take_calls()), requests);
        ground.wire.behave();
        assert!(!ground.has(&path, &text, "a list").await);
        ground.no_upload_is_left("a list").await;
    }
    // One more part with each request.
    let mut number = 0;
    ground.wire.script(move |_, call| match call.operation {
        "list parts" => {
            number += 1;
            Act::Answer(200, page.replace("</ListPartsResult>", &part(number)))
        }
        _ => Act::Pass,
    });
    rewrap().await.unwrap_err();
    assert_eq!(listed(&ground.wire.take_calls()), 7);
    ground.wire.script(|_, call| match call.operation {
        "list parts" => Act::ShortPages,
        _ => Act::Pass,
    });
    rewrap().await.unwrap();
    assert_eq!(listed(&ground.wire.take_calls()), 3);
    ground.wire.behave();
    assert!(ground.has(&path, &text, "rewrapped").await);
    ground.no_upload_is_left("rewrapped").await;
}

/// Whoever gives up at any request, before it arrives or after, leaves no upload.
#[tokio::test]
async fn a_rewrap_that_is_given_up_at_any_request_leaves_no_upload() {
    let server = seaweedfs();
    let ground = Ground::at(server.url());
    let (path, text) = (Path::from("a/b"), short());
    let requests = expected(2);
    let last = requests.len() - 1;
    let text = [text, plaintext(6 * MIB)].concat();
    for (nth, request) in requests.into_iter().enumerate() {
        for act in [Act::Hang, Act::HangAfter] {
            ground.before().put(&path, text.clone().into()).await.unwrap();
            let (told, mut reached) = tokio::sync::mpsc::unbounded_channel();
            ground.wire.script(move |n, _| {
                if n == nth {
                    told.send(()).unwrap();
                    return act.clone();
                }
                Act::Pass
            });
            let moving = ground.moving_by(ground.by_s3().part_size(5 * MIB)).build().unwrap();
            tokio::select! {
                done = moving.rewrap(&path) => panic!("{nth}: {done:?}"),
                _ = reached.recv() => {}
            }
            let because = format!("{nth}: {request}");
            if request == "create" {
                // Of one whose answer is lost, nobody knows the id.
                tokio::time::sleep(2 * HANGS).await;
                ground.abort_all().await;
            }
            ground.no_upload_is_left(&because).await;
            let is_done = ground.has(&path, &text, &because).await;
            assert!(!is_done || request == "complete" || nth == last, "{because}");
            ground.wire.behave();
        }
    }
    // At any moment.
    let text = short();
    for step in 0..20 {
        ground.before().put(&path, text.clone().into()).await.unwrap();
        let moving = ground.moving_by(ground.by_s3().part_size(5 * MIB)).build().unwrap();
        let patience = Duration::from_millis(step * 4);
        let _ = tokio::time::timeout(patience, moving.rewrap(&path)).await;
        ground.no_upload_is_left("at any moment").await;
        ground.has(&path, &text, "at any moment").await;
    }
}

#[test]
fn a_runtime_that_ends_leaves_the_object_as_it_was() {
    let server = seaweedfs();
    let ground = Ground::at(server.url());
    let (path, text) = (Path::from("a/b"), short());
    let runtime = || tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    // The last request only looks at what was done.
    for nth in 2..expected(1).len() - 1 {
        runtime().block_on(ground.before().put(&path, text.clone().into())).unwrap();
        let (told, mut reached) = tokio::sync::mpsc::unbounded_channel();
        ground.wire.script(move |n, _| {
            if n == nth {
                let _ = told.send(());
                return Act::Hang;
            }
            Act::Pass
        });
        let ends = runtime();
        let (moving, at) = (ground.moving(), path.clone());
        ends.spawn(async move { moving.rewrap(&at).await });
        ends.block_on(reached.recv());
        ends.shutdown_background();
        ground.wire.behave();
        runtime().block_on(async { assert!(!ground.has(&path, &text, "the runtime ended").await) });
    }
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
        // SeaweedFS demands checksums in a completion, and tells none of copied parts.
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

/// On real connections.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_break_leave_the_object_whole() {
    let server = seaweedfs();
    let proxy = FaultProxy::start(server.port());
    let ground = Ground::at(format!("http://127.0.0.1:{}", proxy.port()));
    let direct = Ground { keks: Keks::make(), ..Ground::at(server.url()) };
    let (path, text) = (Path::from("a/b"), short());
    let mut faults = vec![Fault::Reset, Fault::Delay(Duration::from_millis(5))];
    faults.extend([0, 1, 500, 1500, 100_000, 5_000_000].map(Fault::Truncate));
    faults.extend((0..8).map(|step| Fault::Truncate(5 * 1_048_576 + 2000 + step * 400)));
    for fault in faults {
        ground.before().put(&path, text.clone().into()).await.unwrap();
        proxy.set(fault.clone());
        let done = ground.moving().rewrap(&path).await;
        proxy.set(Fault::None);
        proxy.cut();
        let is_new = ground.has(&path, &text, &format!("{fault:?}")).await;
        assert!(is_new || done.is_err(), "{fault:?}");
        direct.abort_all().await;
    }
}
