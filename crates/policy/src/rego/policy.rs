//! A Rego policy that is reloaded when its files change.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use sha2::{Digest, Sha256};
use waxseal::kek::toolkit::process_generation;
use waxseal::policy::{BoxFuture, Decision, Policy, Question};
use waxseal::{Error, ErrorKind};

use super::engine::Compiled;
use super::sources::{self, Contents, RegoSources, Signature};
use crate::answer;

/// How many bytes of the content hash are the revision of a policy without one.
const REVISION_BYTES: usize = 8;

/// The callback for a reload.
pub(super) type Reloaded = dyn Fn(&Result<(), Error>) + Send + Sync;

/// The options, checked.
pub(super) struct Terms {
    pub(super) sources: RegoSources,
    pub(super) package: String,
    pub(super) time_limit: Duration,
    pub(super) watch: Option<Duration>,
    pub(super) reloaded: Option<Box<Reloaded>>,
}

/// A policy in Rego v1, evaluated in this process.
///
/// Its package (by default `waxseal`) has a rule `allow`, which must be exactly `true`, and a rule
/// `deny_reason`, a set of texts that is empty if it allows. `valid_for_seconds` may shorten how
/// long a decision is cached. The input is the [`Question`] as JSON. Any other result, including an
/// error of a builtin, is a denial.
///
/// ```
/// use waxseal::policy::PolicyOptions;
/// use waxseal::{Aad, Caller, EncryptionContext, Envelope, ErrorKind, kek::local::LocalKek};
/// use waxseal_policy::{RegoPolicy, RegoSources};
///
/// # pollster::block_on(async {
/// let sources = RegoSources::new().rego(
///     "tables.rego",
///     r#"
///     package waxseal
///
///     default allow := false
///
///     allow if count(deny_reason) == 0
///
///     deny_reason contains "another service's table" if {
///         not owns_table
///     }
///
///     owns_table if input.caller.service == data.owners[input.context.table]
///     "#,
/// );
/// let sources = sources.data(r#"{"owners": {"invoices": "billing"}}"#);
/// let policy = RegoPolicy::builder(sources).build()?;
/// let kek = LocalKek::in_memory("dev")?;
/// let envelope = Envelope::builder().wrap_with(kek).policy(policy, PolicyOptions::default()).build()?;
///
/// let invoices = EncryptionContext::new([("table", "invoices")])?;
/// let billing = Caller::builder().service("billing").build()?;
/// let sealed = envelope.acting_for(&billing).encrypt(&invoices, Aad::empty(), b"42").await?;
///
/// let other = Caller::builder().service("reporting").build()?;
/// let error = envelope.acting_for(&other).decrypt(&invoices, Aad::empty(), &sealed).await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::PolicyDenied);
/// assert_eq!(&*error.reasons()[0], "another service's table");
/// # Ok::<(), waxseal::Error>(()) }).unwrap();
/// ```
///
/// A clone is another handle to the same policy.
#[derive(Clone)]
pub struct RegoPolicy(Arc<Inner>);

struct Inner {
    terms: Terms,
    current: ArcSwap<Loaded>,
    generation: AtomicU64,
    /// Separate for each process: in the child of a fork, nobody may be left to unlock that of its
    /// parent.
    seen: ArcSwap<SeenHere>,
    /// The process in which files are watched.
    watched_in: AtomicU64,
}

/// A compiled policy.
struct Loaded {
    compiled: Compiled,
    /// The hash of the contents.
    hash: [u8; 32],
    revision: String,
    at: SystemTime,
}

/// The findings of the last look at the files.
struct Seen {
    signature: Signature,
    /// Why the files do not decide now.
    trouble: Option<Error>,
}

/// The findings of one process.
struct SeenHere {
    process: u64,
    /// Held by the caller that reloads.
    seen: Mutex<Seen>,
}

impl SeenHere {
    fn new(signature: Signature) -> Self {
        Self { process: process_generation(), seen: Mutex::new(Seen { signature, trouble: None }) }
    }

    fn lock(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of a [`RegoPolicy`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RegoStatus {
    /// The revision of the policy that decides: that of its bundle, or the beginning of the
    /// contents' SHA-256.
    pub revision: String,
    /// When it was loaded.
    pub loaded_at: SystemTime,
    /// Why the current files cannot be used. The previous policy decides meanwhile.
    pub trouble: Option<Error>,
}

impl RegoPolicy {
    pub(super) fn start(terms: Terms) -> Result<Self, Error> {
        let signature = sources::signature(&terms.sources.sources);
        let loaded = terms.load()?;
        let policy = Self(Arc::new(Inner {
            terms,
            current: ArcSwap::from_pointee(loaded),
            generation: AtomicU64::new(1),
            seen: ArcSwap::from_pointee(SeenHere::new(signature)),
            watched_in: AtomicU64::new(0),
        }));
        policy.watch();
        Ok(policy)
    }

    /// Reads the sources again. Returns whether the policy changed. If it did, all cached decisions
    /// and handles end.
    ///
    /// # Errors
    /// Those of [`build`](crate::RegoPolicyBuilder::build). The previous policy then continues to
    /// decide.
    pub fn reload(&self) -> Result<bool, Error> {
        self.0.reload(true)
    }

    /// Returns which policy decides, and what is wrong with the next one.
    #[must_use]
    pub fn status(&self) -> RegoStatus {
        let (loaded, seen) = (self.0.current.load(), self.0.seen());
        RegoStatus {
            revision: loaded.revision.clone(),
            loaded_at: loaded.at,
            trouble: seen.lock().trouble.clone(),
        }
    }

    /// Starts the thread that watches the files, once in each process.
    fn watch(&self) {
        let (Some(interval), process) = (self.0.terms.watch, process_generation()) else { return };
        let has_files = !sources::signature(&self.0.terms.sources.sources).is_empty();
        if self.0.watched_in.swap(process, Ordering::AcqRel) == process || !has_files {
            return;
        }
        let inner = Arc::downgrade(&self.0);
        let started = thread::Builder::new()
            .name("waxseal-policy".to_owned())
            .spawn(move || look_after(&inner, interval));
        if started.is_err() {
            // The next question tries again.
            self.0.watched_in.store(0, Ordering::Release);
        }
    }

    fn decide_now(&self, question: &Question<'_>) -> Result<Decision, Error> {
        // In the child of a fork nobody watches yet.
        if self.0.terms.watch.is_some()
            && self.0.watched_in.load(Ordering::Acquire) != process_generation()
        {
            self.watch();
        }
        let loaded = self.0.current.load_full();
        let input = serde_json::to_string(question)
            .map_err(|_| Error::new(ErrorKind::Provider, "the question is not JSON"))?;
        let document = loaded.compiled.ask(&input)?;
        Ok(answer::decision(document.as_ref()).with_revision(&loaded.revision))
    }
}

impl Policy for RegoPolicy {
    fn decide<'a>(&'a self, question: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        Box::pin(async move { self.decide_now(question) })
    }

    fn generation(&self) -> u64 {
        self.0.generation.load(Ordering::Acquire)
    }
}

impl fmt::Debug for RegoPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegoPolicy")
            .field("package", &self.0.terms.package)
            .field("revision", &self.0.current.load().revision)
            .finish_non_exhaustive()
    }
}

fn look_after(inner: &Weak<Inner>, interval: Duration) {
    loop {
        thread::sleep(interval);
        let Some(inner) = inner.upgrade() else { return };
        // `on_reload` and the status report it.
        let _ = inner.reload(false);
    }
}

impl Terms {
    fn load(&self) -> Result<Loaded, Error> {
        let contents = sources::read(&self.sources.sources)?;
        let compiled = Compiled::new(&contents, &self.package, self.time_limit, false)?;
        let hash = hash(&contents);
        let short = hash.iter().take(REVISION_BYTES).map(|byte| format!("{byte:02x}"));
        let revision = contents.revision.unwrap_or_else(|| short.collect());
        Ok(Loaded { compiled, hash, revision, at: SystemTime::now() })
    }
}

/// Whether a file could not be read. The content of an archive does not change on its own.
fn is_unread(error: &Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, UnexpectedEof};

    let cause = error.cause().and_then(|cause| cause.downcast_ref::<io::Error>());
    cause.is_some_and(|cause| !matches!(cause.kind(), InvalidData | InvalidInput | UnexpectedEof))
}

/// Returns the hash of everything that decides.
fn hash(contents: &Contents) -> [u8; 32] {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update(u64::try_from(text.len()).unwrap_or(u64::MAX).to_be_bytes());
        hash.update(text);
    };
    for (name, text) in contents.modules.iter().filter(|(name, _)| !sources::is_test(name)) {
        add(name);
        add(text);
    }
    add(&serde_json::Value::Object(contents.data.clone()).to_string());
    add(contents.revision.as_deref().unwrap_or_default());
    hash.finalize().into()
}

impl Inner {
    fn seen(&self) -> Arc<SeenHere> {
        let seen = self.seen.load_full();
        if seen.process == process_generation() {
            return seen;
        }
        // The child looks at the files again.
        let ours = Arc::new(SeenHere::new(Signature::new()));
        drop(self.seen.compare_and_swap(&seen, ours));
        // The parent's state is never dropped.
        std::mem::forget(seen);
        self.seen.load_full()
    }

    /// Reloads, if requested or if a file may have changed.
    fn reload(&self, always: bool) -> Result<bool, Error> {
        let here = self.seen();
        let mut seen = here.lock();
        // Taken before the files are read, so that the next look sees anything written meanwhile.
        let signature = sources::signature(&self.terms.sources.sources);
        if !always && signature == seen.signature {
            return Ok(false);
        }
        let loaded = self.terms.load();
        // A file that could not be read, for example without permission, may be readable at the
        // next look although no file changed.
        if !loaded.as_ref().is_err_and(is_unread) {
            seen.signature = signature;
        }
        let is_other = match &loaded {
            Ok(loaded) => loaded.hash != self.current.load().hash,
            Err(_) => true,
        };
        let result = loaded.map(|loaded| {
            if is_other {
                self.current.store(Arc::new(loaded));
                // After the policy, so that a caller that sees the number asks the new one.
                self.generation.fetch_add(1, Ordering::AcqRel);
            }
        });
        let text = |error: &Error| error.to_string();
        let trouble = result.as_ref().err().cloned();
        let is_news = trouble.as_ref().map(text) != seen.trouble.as_ref().map(text);
        seen.trouble = trouble;
        drop(seen);
        if is_other
            && (always || result.is_ok() || is_news)
            && let Some(told) = &self.terms.reloaded
        {
            // Foreign code: its panic does not end the watching thread.
            let _ = catch_unwind(AssertUnwindSafe(|| told(&result))).map_err(std::mem::forget);
        }
        result.map(|()| is_other)
    }
}
