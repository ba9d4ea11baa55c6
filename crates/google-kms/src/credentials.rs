//! The credentials that calls carry: their sources, and when the source is asked again.
//!
//! google-cloud-auth caches a token and renews it in its own task. It leaves several cases open.
//! After a refusal its task ends and repeats the refusal forever. After an outage it waits ten
//! seconds, even if calls arrive. It sets no time limit. It panics when the runtime of its task has
//! ended. It does not learn that Cloud KMS refused a token. In each of these cases it is made again
//! here.
#![forbid(unsafe_code)]

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
pub(crate) use google_cloud_auth::credentials::Credentials;
use google_cloud_auth::credentials::{
    Builder, CacheableResource, EntityTag, external_account, impersonated, mds, service_account,
    user_account,
};
use reqwest::header::HeaderMap;
use tokio::runtime::Handle;

use crate::errors::Failure;
use crate::refusals::refusal;
use crate::transport;
use waxseal::kek::{KekErrorClass, Login};

/// A token that takes this long may never come, so the next caller asks again.
const SLOW: Duration = Duration::from_secs(10);
/// The shortest interval between new tokens while Cloud KMS refuses one after the other.
const AFTER_REFUSAL: Duration = Duration::from_secs(1);

/// The sources of credentials.
#[derive(Clone)]
pub(crate) enum Source {
    /// `GOOGLE_APPLICATION_CREDENTIALS`, gcloud's file, the metadata server, in this order.
    ApplicationDefault,
    /// A file of any type that Google issues.
    File(PathBuf),
    /// The metadata server, at this URL if it is not the usual one.
    Metadata(Option<String>),
    Given(Credentials),
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::ApplicationDefault => "application default credentials",
            Self::File(_) => "a credentials file",
            Self::Metadata(_) => "the metadata server",
            Self::Given(_) => "credentials from the caller",
        })
    }
}

/// A cheap handle: clones share the same credentials.
#[derive(Clone)]
pub(crate) struct Keeper(Arc<Inner>);

struct Inner {
    source: Source,
    quota_project: Option<String>,
    /// Held while the credentials are being made.
    making: async_lock::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: Option<Arc<Held>>,
    /// How often they were made.
    generation: u64,
    /// Tokens obtained, and failures to get one.
    loads: u64,
    failures: u64,
    /// When Cloud KMS last refused a token and they were made again.
    renewed: Option<Instant>,
    /// The last generation whose token Cloud KMS accepted.
    accepted: u64,
}

struct Held {
    credentials: Credentials,
    generation: u64,
    /// The runtime of their task.
    runtime: tokio::runtime::Id,
    progress: Mutex<Progress>,
}

#[derive(Default)]
struct Progress {
    /// The tag of the last token.
    tag: Option<EntityTag>,
    /// Since when a caller has been waiting.
    waits_since: Option<Instant>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The headers of a call, and the credentials that made them.
pub(crate) struct Loaded {
    pub(crate) headers: HeaderMap,
    pub(crate) generation: u64,
}

impl Keeper {
    pub(crate) fn new(source: Source, quota_project: Option<String>) -> Self {
        let making = async_lock::Mutex::new(());
        Self(Arc::new(Inner { source, quota_project, making, state: Mutex::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0.state)
    }

    pub(crate) fn source(&self) -> &Source {
        &self.0.source
    }

    pub(crate) fn login(&self) -> Login {
        let state = self.state();
        Login::new(state.loads, state.failures)
    }

    /// Drops everything cached. The next call makes it again.
    pub(crate) fn close(&self) {
        self.state().held = None;
    }

    /// Returns the headers of a call.
    pub(crate) async fn load(&self) -> Result<Loaded, Failure> {
        // Twice, since only a panic shows that the task ended with its runtime.
        match self.try_load().await {
            Err(None) => self.try_load().await,
            answer => answer,
        }
        .map_err(|failure| {
            failure.unwrap_or_else(|| {
                Failure::unavailable("loading credentials failed: their task has ended")
            })
        })
    }

    /// Returns `Err(None)` if the credentials' task has ended.
    async fn try_load(&self) -> Result<Loaded, Option<Failure>> {
        let held = self.held().await.map_err(Some)?;
        lock(&held.progress).waits_since.get_or_insert_with(Instant::now);
        let headers = AssertUnwindSafe(held.credentials.headers(Default::default()));
        let answer = headers.catch_unwind().await;
        lock(&held.progress).waits_since = None;
        match answer {
            Ok(Ok(CacheableResource::New { entity_tag, data })) => {
                let tag = lock(&held.progress).tag.replace(entity_tag.clone());
                if tag != Some(entity_tag) {
                    self.state().loads += 1;
                }
                Ok(Loaded { headers: data, generation: held.generation })
            }
            Ok(Ok(CacheableResource::NotModified)) => {
                self.failed(held.generation);
                Err(Some(Failure::not_understood("loading credentials")))
            }
            Ok(Err(error)) => {
                self.failed(held.generation);
                Err(Some(refusal(&error, error.is_transient())))
            }
            Err(_) => {
                self.failed(held.generation);
                Err(None)
            }
        }
    }

    /// Counts the failure, and abandons credentials that may have failed permanently.
    fn failed(&self, generation: u64) {
        let mut state = self.state();
        state.failures += 1;
        if state.held.as_ref().is_some_and(|held| held.generation == generation) {
            state.held = None;
        }
    }

    /// Records that Cloud KMS accepted a token of that generation.
    pub(crate) fn accepted(&self, generation: u64) {
        let mut state = self.state();
        state.accepted = state.accepted.max(generation);
    }

    /// Records that Cloud KMS refused a token of that generation. Returns whether there is, or can
    /// be, another one.
    pub(crate) fn renew(&self, refused: u64) -> bool {
        if matches!(self.0.source, Source::Given(_)) {
            return false;
        }
        let mut state = self.state();
        if state.held.as_ref().is_none_or(|held| held.generation != refused) {
            return true;
        }
        let is_soon = state.renewed.is_some_and(|renewed| renewed.elapsed() < AFTER_REFUSAL);
        if is_soon && state.accepted < refused {
            return false;
        }
        state.renewed = Some(Instant::now());
        state.held = None;
        true
    }

    /// Returns the credentials if their task is alive and does not hang.
    fn usable(&self) -> Option<Arc<Held>> {
        let runtime = Handle::try_current().ok()?.id();
        let held = self.state().held.clone()?;
        let is_slow = lock(&held.progress).waits_since.is_some_and(|since| since.elapsed() >= SLOW);
        // Credentials from the user belong to the user.
        let is_given = matches!(self.0.source, Source::Given(_));
        (is_given || held.runtime == runtime && !is_slow).then_some(held)
    }

    /// They are made in a separate task, so that the next caller gets them if this one leaves.
    async fn held(&self) -> Result<Arc<Held>, Failure> {
        if let Some(held) = self.usable() {
            return Ok(held);
        }
        let keeper = self.clone();
        let made = tokio::spawn(async move { keeper.make_held().await }).await;
        made.unwrap_or_else(|_| {
            Err(Failure::unavailable("loading credentials failed: the runtime has ended"))
        })
    }

    async fn make_held(&self) -> Result<Arc<Held>, Failure> {
        let _alone = self.0.making.lock().await;
        if let Some(held) = self.usable() {
            return Ok(held);
        }
        let (source, quota_project) = (self.0.source.clone(), self.0.quota_project.clone());
        // This reads files, and the system's root certificates.
        let made = tokio::task::spawn_blocking(move || make(source, quota_project)).await;
        let credentials = match made {
            Ok(Ok(credentials)) => credentials,
            Ok(Err(text)) => {
                self.state().failures += 1;
                return Err(Failure::unasked(KekErrorClass::Misconfigured, text));
            }
            Err(_) => {
                return Err(Failure::unavailable("loading credentials failed: they panicked"));
            }
        };
        let mut state = self.state();
        state.generation += 1;
        let held = Arc::new(Held {
            credentials,
            generation: state.generation,
            runtime: Handle::current().id(),
            progress: Mutex::default(),
        });
        state.held = Some(held.clone());
        Ok(held)
    }
}

/// Runs in a thread of a tokio runtime, where their task is started. The error is for an operator,
/// and shows nothing from a file.
fn make(source: Source, quota_project: Option<String>) -> Result<Credentials, String> {
    if !transport::has_roots() {
        return Err(format!("loading credentials failed: {}", transport::NO_ROOTS));
    }
    macro_rules! built {
        ($builder:expr) => {{
            let builder = $builder;
            match quota_project {
                Some(project) => builder.with_quota_project_id(project),
                None => builder,
            }
            .build()
            .map_err(|error| unusable(&error))
        }};
    }
    match source {
        Source::Given(credentials) => Ok(credentials),
        Source::ApplicationDefault => built!(Builder::default()),
        Source::Metadata(None) => built!(mds::Builder::default()),
        Source::Metadata(Some(url)) => built!(mds::Builder::default().with_endpoint(url)),
        Source::File(path) => {
            let failed = |what: &str| {
                let name = path.display();
                format!("loading credentials failed: credentials_file {name}: {what}")
            };
            let text = std::fs::read(&path).map(zeroize::Zeroizing::new);
            let text =
                text.map_err(|error| failed(&format!("cannot be read: {}", error.kind())))?;
            let json: serde_json::Value =
                serde_json::from_slice(&text).map_err(|_| failed("is not JSON"))?;
            match json.get("type").and_then(serde_json::Value::as_str) {
                Some("service_account") => built!(service_account::Builder::new(json)),
                Some("external_account") => built!(external_account::Builder::new(json)),
                Some("impersonated_service_account") => built!(impersonated::Builder::new(json)),
                Some("authorized_user") => built!(user_account::Builder::new(json)),
                _ => Err(failed("its type is none of service_account, external_account, impersonated_service_account, authorized_user")),
            }
            .map_err(|why| if why.contains("credentials_file") { why } else { failed(&why) })
        }
    }
}

fn unusable(error: &google_cloud_auth::build_errors::Error) -> String {
    let what = if error.is_loading() {
        "the file cannot be found or opened (GOOGLE_APPLICATION_CREDENTIALS names it)"
    } else if error.is_parsing() {
        "the file cannot be parsed"
    } else if error.is_unknown_type() {
        "the file's type is not known"
    } else if error.is_missing_field() {
        "a field is missing"
    } else {
        "this type of credentials is not supported"
    };
    format!("loading credentials failed: {what}")
}
