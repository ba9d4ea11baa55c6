//! New beginnings of objects on S3: the options. `upload.rs` has the requests.
#![forbid(unsafe_code)]

mod upload;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use object_store::client::{HttpClient, HttpConnector, ReqwestConnector};
use object_store::multipart::MultipartStore;
use object_store::path::Path;
use object_store::signer::{HeaderMap, HeaderValue, Signer};
use object_store::{ClientOptions, Error, Result, RetryConfig};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use waxseal::ErrorKind;

use super::answers;
use super::{ReplaceStart, StartChange};
use upload::failure;

/// S3's minimum for every part except the last, and its maximum.
const LEAST_PART: u64 = 5 << 20;
const LARGEST_PART: u64 = 5 << 30;
const MOST_PARTS: u64 = 10_000;

trait Store: MultipartStore + Signer {}
impl<S: MultipartStore + Signer> Store for S {}

/// Makes S3 copy the unchanged part of a rewrapped object (`UploadPartCopy`), and completes the
/// upload on the condition that the object is unchanged (`If-Match`).
///
/// ```no_run
/// use object_store::aws::AmazonS3Builder;
/// use waxseal_object_store::v0_14::{ObjectKeys, S3ReplaceStart, SealedStore};
///
/// # fn example(keys: ObjectKeys) -> Result<(), Box<dyn std::error::Error>> {
/// let s3 = AmazonS3Builder::from_env().with_bucket_name("exports").build()?;
/// let by_s3 = S3ReplaceStart::builder(s3.clone(), "exports").build()?;
/// let store = SealedStore::builder(s3, keys).replace_start_by(by_s3).build()?;
/// # Ok(()) }
/// ```
///
/// It needs `s3:GetObject`, `s3:PutObject`, `s3:AbortMultipartUpload` and
/// `s3:ListMultipartUploadParts`, and a tokio runtime. The [module's page](super#rewrap) describes
/// each step, and the differences of S3-compatible services.
///
/// A clone is a pointer.
#[derive(Clone)]
pub struct S3ReplaceStart(Arc<Shared>);

struct Shared {
    store: Arc<dyn Store>,
    http: HttpClient,
    /// The headers of S3 that this client has by default.
    of_client: HeaderMap,
    options: Options,
}

/// For one request.
const TIMEOUT: Duration = Duration::from_secs(300);

struct Options {
    bucket: String,
    prefix: Path,
    part_size: u64,
    at_once: usize,
    from_len: u64,
    timeout: Duration,
    retry: RetryConfig,
    headers: HeaderMap,
}

/// Builds an [`S3ReplaceStart`]: see [`S3ReplaceStart::builder`].
#[must_use]
pub struct S3ReplaceStartBuilder {
    store: Arc<dyn Store>,
    options: Options,
    client: ClientOptions,
    connector: Box<dyn HttpConnector>,
}

impl S3ReplaceStart {
    /// Begins one for a bucket. The store is an [`AmazonS3`](object_store::aws::AmazonS3) of that
    /// bucket, with the credentials, endpoint and other settings to use.
    pub fn builder(
        store: impl MultipartStore + Signer,
        bucket: impl Into<String>,
    ) -> S3ReplaceStartBuilder {
        S3ReplaceStartBuilder {
            store: Arc::new(store),
            options: Options {
                bucket: bucket.into(),
                prefix: Path::default(),
                part_size: 256 << 20,
                at_once: 4,
                from_len: 16 << 20,
                timeout: TIMEOUT,
                // Room for two requests that hang until their timeout.
                retry: RetryConfig { retry_timeout: 3 * TIMEOUT, ..RetryConfig::default() },
                headers: HeaderMap::new(),
            },
            client: ClientOptions::new(),
            connector: Box::new(ReqwestConnector::default()),
        }
    }
}

impl S3ReplaceStartBuilder {
    /// Sets the prefix of every path of the [`SealedStore`](super::SealedStore), if that wraps a
    /// [`PrefixStore`](object_store::prefix::PrefixStore).
    pub fn prefix(mut self, prefix: Path) -> Self {
        self.options.prefix = prefix;
        self
    }

    /// Sets the length of the parts that the store copies: 5 MiB to 5 GiB, by default 256 MiB. In
    /// an object above 2.4 TiB they are longer, since there are at most 10,000.
    pub fn part_size(mut self, bytes: u64) -> Self {
        self.options.part_size = bytes;
        self
    }

    /// Sets how many parts of one object are copied at the same time: 1 to 100, by default 4.
    pub fn at_once(mut self, parts: usize) -> Self {
        self.options.at_once = parts;
        self
    }

    /// Sets the minimum length of objects that are changed this way, in bytes of the encrypted
    /// object, by default 16 MiB. Shorter ones pass through the process, with fewer requests. So
    /// does any object with nothing after the first 5 MiB.
    pub fn from_len(mut self, bytes: u64) -> Self {
        self.options.from_len = bytes;
        self
    }

    /// Sets how long one request made here may take, by default 5 minutes, since it includes the
    /// copy of a part. It replaces the timeout of the [client's options](Self::client_options).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// Sets how requests made here are retried: after 5xx, 429, *slow down* and the like, and if
    /// the connection failed. By default up to 10 times, and for 15 minutes, in which a copy may
    /// hang twice until its timeout.
    pub fn retry(mut self, retry: RetryConfig) -> Self {
        self.options.retry = retry;
        self
    }

    /// Adds headers to the copies of parts, which are signed. With customer-provided keys (SSE-C),
    /// S3 requires six: `x-amz-server-side-encryption-customer-…` and
    /// `x-amz-copy-source-server-side-encryption-customer-…`.
    pub fn headers(mut self, headers: HeaderMap) -> Self {
        self.options.headers = headers;
        self
    }

    /// Sets the options of the HTTP client, such as a proxy, root certificates, or permission to
    /// use plain HTTP. Use those that the store was built with.
    pub fn client_options(mut self, options: ClientOptions) -> Self {
        self.client = options;
        self
    }

    /// Sets the factory of the HTTP client, by default [`ReqwestConnector`].
    pub fn connector(mut self, connector: impl HttpConnector) -> Self {
        self.connector = Box::new(connector);
        self
    }

    /// Makes it. It makes no request.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for an option out of range, and for options with which no HTTP
    /// client can be made.
    pub fn build(self) -> Result<S3ReplaceStart, waxseal::Error> {
        let invalid = |detail: String| waxseal::Error::new(ErrorKind::InvalidOption, detail);
        let Options { bucket, part_size, at_once, timeout, .. } = &self.options;
        if bucket.is_empty() || HeaderValue::from_str(bucket).is_err() {
            return Err(invalid("bucket is empty, or has characters that none has".to_owned()));
        }
        if !(LEAST_PART..=LARGEST_PART).contains(part_size) {
            let allowed = format!("{LEAST_PART} to {LARGEST_PART} are allowed");
            return Err(invalid(format!("part_size is {part_size}, {allowed}")));
        }
        if !(1..=100).contains(at_once) {
            return Err(invalid(format!("at_once is {at_once}, 1 to 100 are allowed")));
        }
        if timeout.is_zero() {
            return Err(invalid("timeout is 0".to_owned()));
        }
        let mut of_client = self.client.get_default_headers().cloned().unwrap_or_default();
        let others: Vec<_> =
            of_client.keys().filter(|name| !name.as_str().starts_with("x-amz-")).cloned().collect();
        others.iter().for_each(|name| drop(of_client.remove(name)));
        let http = self.connector.connect(&self.client.with_timeout_disabled());
        let http = http.map_err(|error| invalid(format!("no HTTP client: {error}")))?;
        let (store, options) = (self.store, self.options);
        Ok(S3ReplaceStart(Arc::new(Shared { store, http, of_client, options })))
    }
}

#[async_trait]
impl ReplaceStart for S3ReplaceStart {
    fn start_len(&self, object_len: u64) -> Option<u64> {
        let rest = object_len.checked_sub(LEAST_PART).filter(|rest| *rest > 0)?;
        let is_possible = rest.div_ceil(MOST_PARTS - 1) <= LARGEST_PART;
        (is_possible && object_len >= self.0.options.from_len).then_some(LEAST_PART)
    }

    async fn replace_start(&self, change: StartChange) -> Result<()> {
        let Ok(runtime) = Handle::try_current() else {
            return Err(Error::NotSupported { source: "there is no tokio runtime".into() });
        };
        // Dropped with this future, which notifies the task.
        let (_waiting, given_up) = oneshot::channel();
        let task = runtime.spawn(self.0.clone().replace(change, given_up));
        task.await.unwrap_or_else(|error| Err(failure(format!("the upload ended: {error}"))))
    }
}

impl fmt::Debug for S3ReplaceStart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug(&self.0.options, f.debug_struct("S3ReplaceStart"))
    }
}

impl fmt::Debug for S3ReplaceStartBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        debug(&self.options, f.debug_struct("S3ReplaceStartBuilder"))
    }
}

/// Without the headers: they may have a key.
fn debug(options: &Options, mut f: fmt::DebugStruct<'_, '_>) -> fmt::Result {
    f.field("bucket", &options.bucket)
        .field("prefix", &options.prefix)
        .field("part_size", &options.part_size)
        .field("at_once", &options.at_once)
        .field("from_len", &options.from_len)
        .finish_non_exhaustive()
}
