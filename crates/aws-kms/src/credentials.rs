//! The credentials that sign calls: cached, renewed before they expire, and loaded separately from
//! the calls that wait for them.
//!
//! The SDK's own cache loads credentials within the call that first needs them, and stops when that
//! call is dropped. Credentials that take longer than one try would never arrive. Here a separate
//! task loads them. `refusals` says what a failed load means.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::identity::{
    Identity, IdentityCachePartition, IdentityFuture, ResolveCachedIdentity, ResolveIdentity,
    SharedIdentityResolver,
};
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use futures_util::FutureExt;
use tokio::sync::watch;
use waxseal::kek::Login;

/// Credentials that expire sooner are not used, as in the SDK.
const TOO_LATE: Duration = Duration::from_secs(10);
/// They are renewed in the background this long before, or in the last quarter of their life.
const AHEAD: Duration = Duration::from_secs(300);
/// The assumed life of credentials without an expiry, as in the SDK.
const WITHOUT_END: Duration = Duration::from_secs(15 * 60);
/// The longest time of a load.
const LONGEST_LOAD: Duration = Duration::from_secs(60);
/// A load that takes this long may hang, so the next caller starts another one.
const SLOW_LOAD: Duration = Duration::from_secs(15);
/// The shortest interval between loads after KMS refused credentials.
const AFTER_REFUSAL: Duration = Duration::from_secs(1);
/// The shortest interval between loads in the background.
const IN_BACKGROUND: Duration = Duration::from_secs(10);
/// An AWS client has one source of credentials, or two with different signatures.
const MOST_SOURCES: usize = 16;

type Answer = Result<Identity, Failed>;

/// Why credentials could not be loaded, shared by all that waited.
#[derive(Clone, Debug)]
pub(crate) struct Failed(pub(crate) Arc<BoxError>);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("loading credentials")
    }
}

impl StdError for Failed {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&**self.0)
    }
}

/// Caches credentials by their source. A clone is another handle to the same cache.
#[derive(Clone, Default)]
pub(crate) struct Keeper(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    sources: HashMap<IdentityCachePartition, Source>,
    /// How often the credentials changed.
    generation: u64,
    /// Loads that succeeded, and that failed.
    loads: u64,
    failures: u64,
}

struct Source {
    resolver: SharedIdentityResolver,
    components: RuntimeComponents,
    held: Option<Held>,
    loading: Option<Loading>,
    /// When the last load began that no caller needed at once.
    tried: Option<Instant>,
}

struct Held {
    identity: Identity,
    /// When its load began: the result of a slow load does not replace a later one's.
    asked: Instant,
    renew_from: SystemTime,
    ends: SystemTime,
}

#[derive(Clone)]
struct Loading {
    answer: watch::Receiver<Option<Answer>>,
    began: Instant,
}

impl Loading {
    async fn wait(mut self) -> Answer {
        let answer = match self.answer.wait_for(Option::is_some).await {
            Ok(answer) => answer.clone(),
            Err(_) => None,
        };
        // The task ended with its runtime.
        answer.unwrap_or_else(|| Err(Failed(Arc::new("the load was ended".into()))))
    }
}

impl Keeper {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a number that changes with the credentials, so that a refused caller can check for
    /// others.
    pub(crate) fn generation(&self) -> u64 {
        self.state().generation
    }

    /// Returns how often credentials were loaded, and how long the current ones remain valid.
    pub(crate) fn login(&self) -> Login {
        let state = self.state();
        let login = Login::new(state.loads, state.failures);
        let held = state.sources.values().filter_map(|source| source.held.as_ref());
        let ends = held.filter_map(|held| held.identity.expiration()).min();
        match ends {
            Some(ends) => login.ends_in(ends.duration_since(SystemTime::now()).unwrap_or_default()),
            None => login,
        }
    }

    /// Loads credentials again after KMS refused those of that generation, although they look
    /// valid. Returns whether they changed.
    ///
    /// # Errors
    /// The failure to load them.
    pub(crate) async fn renew(&self, refused: u64) -> Result<bool, BoxError> {
        let loads: Vec<_> = {
            let mut state = self.state();
            if state.generation != refused {
                return Ok(true);
            }
            state
                .sources
                .iter_mut()
                .filter_map(|(id, source)| self.again(*id, source, AFTER_REFUSAL))
                .collect()
        };
        for load in loads {
            load.wait().await?;
        }
        Ok(self.generation() != refused)
    }

    /// Loads the cached credentials again; `None` if that was done a moment ago.
    fn again(
        &self,
        id: IdentityCachePartition,
        source: &mut Source,
        pause: Duration,
    ) -> Option<Loading> {
        if source.loading.is_none() {
            if source.tried.is_some_and(|tried| tried.elapsed() < pause) {
                return None;
            }
            source.tried = Some(Instant::now());
        }
        self.load(id, source)
    }

    /// Returns the load in flight, or a new one. `None` outside a tokio runtime.
    fn load(&self, id: IdentityCachePartition, source: &mut Source) -> Option<Loading> {
        let on_its_way = source.loading.take().filter(|loading| {
            // A load that ended without an answer ended with its runtime.
            loading.began.elapsed() < SLOW_LOAD && loading.answer.has_changed().is_ok()
        });
        if on_its_way.is_none() {
            let runtime = tokio::runtime::Handle::try_current().ok()?;
            let (tell, answer) = watch::channel(None);
            let (resolver, components) = (source.resolver.clone(), source.components.clone());
            let (keeper, began) = (self.clone(), Instant::now());
            runtime.spawn(async move {
                let loaded = load(&resolver, &components).await;
                keeper.keep(id, &components, began, &loaded);
                tell.send_replace(Some(loaded));
            });
            source.loading = Some(Loading { answer, began });
        } else {
            source.loading = on_its_way;
        }
        source.loading.clone()
    }

    fn keep(
        &self,
        id: IdentityCachePartition,
        components: &RuntimeComponents,
        asked: Instant,
        loaded: &Answer,
    ) {
        let now = now(components);
        let mut state = self.state();
        let State { sources, generation, loads, failures } = &mut *state;
        let counted = if loaded.is_ok() { loads } else { failures };
        *counted = counted.saturating_add(1);
        let Some(source) = sources.get_mut(&id) else { return };
        if source.loading.as_ref().is_some_and(|loading| loading.began <= asked) {
            source.loading = None;
        }
        let Ok(identity) = loaded else { return };
        if source.held.as_ref().is_some_and(|held| held.asked > asked && now + TOO_LATE < held.ends)
        {
            return;
        }
        if source.held.as_ref().is_none_or(|held| !is_same(&held.identity, identity)) {
            *generation += 1;
        }
        let ends = identity.expiration().unwrap_or(now + WITHOUT_END);
        let life = ends.duration_since(now).unwrap_or_default();
        // Credentials without an expiry do not expire. They are only checked again.
        let ahead = if identity.expiration().is_some() {
            AHEAD.min(life / 4).max(TOO_LATE)
        } else {
            TOO_LATE
        };
        let renew_from = ends.checked_sub(ahead).unwrap_or(now);
        source.held = Some(Held { identity: identity.clone(), asked, renew_from, ends });
    }

    /// Returns the credentials that are valid at `now`, or else the load to wait for.
    fn look(
        &self,
        resolver: SharedIdentityResolver,
        components: &RuntimeComponents,
        now: SystemTime,
    ) -> (Option<Identity>, Option<Loading>) {
        let id = resolver.cache_partition();
        let mut state = self.state();
        if state.sources.len() >= MOST_SOURCES && !state.sources.contains_key(&id) {
            state.sources.clear();
        }
        let source = state.sources.entry(id).or_insert_with(|| Source {
            resolver,
            components: components.clone(),
            held: None,
            loading: None,
            tried: None,
        });
        let usable = source.held.as_ref().filter(|held| now + TOO_LATE < held.ends);
        match usable.map(|held| (held.identity.clone(), now >= held.renew_from)) {
            Some((identity, is_due)) => {
                if is_due {
                    self.again(id, source, IN_BACKGROUND);
                }
                (Some(identity), None)
            }
            None => (None, self.load(id, source)),
        }
    }

    /// Returns credentials in their last seconds, or without an expiry, if no others can be loaded:
    /// better than none.
    fn nearly_ended(&self, id: IdentityCachePartition, now: SystemTime) -> Option<Identity> {
        let state = self.state();
        let held = state.sources.get(&id)?.held.as_ref()?;
        let has_no_end = held.identity.expiration().is_none();
        (has_no_end || now < held.ends).then(|| held.identity.clone())
    }
}

impl ResolveCachedIdentity for Keeper {
    fn resolve_cached_identity<'a>(
        &'a self,
        resolver: SharedIdentityResolver,
        components: &'a RuntimeComponents,
        _: &'a ConfigBag,
    ) -> IdentityFuture<'a> {
        IdentityFuture::new(async move {
            let id = resolver.cache_partition();
            match self.look(resolver, components, now(components)) {
                (Some(identity), _) => Ok(identity),
                (None, None) => Err("credentials are loaded on a tokio runtime".into()),
                (None, Some(loading)) => match loading.wait().await {
                    Ok(identity) => Ok(identity),
                    Err(error) => {
                        self.nearly_ended(id, now(components)).ok_or_else(|| error.into())
                    }
                },
            }
        })
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keeper([redacted])")
    }
}

fn now(components: &RuntimeComponents) -> SystemTime {
    components.time_source().map_or_else(SystemTime::now, |source| source.now())
}

fn is_same(one: &Identity, other: &Identity) -> bool {
    let keys = |identity: &Identity| {
        let credentials = identity.data::<Credentials>()?;
        Some((
            credentials.access_key_id().to_owned(),
            credentials.session_token().map(ToOwned::to_owned),
        ))
    };
    keys(one).is_some_and(|keys_of_one| keys(other) == Some(keys_of_one))
}

async fn load(resolver: &SharedIdentityResolver, components: &RuntimeComponents) -> Answer {
    let bag = ConfigBag::base();
    let work = async { resolver.resolve_identity(components, &bag).await };
    match tokio::time::timeout(LONGEST_LOAD, AssertUnwindSafe(work).catch_unwind()).await {
        Ok(Ok(answer)) => answer.map_err(|error| Failed(Arc::new(error))),
        Ok(Err(_)) => Err(Failed(Arc::new("the source of credentials panicked".into()))),
        Err(_) => match resolver.fallback_on_interrupt() {
            Some(identity) => Ok(identity),
            None => {
                Err(Failed(Arc::new(CredentialsError::provider_timed_out(LONGEST_LOAD).into())))
            }
        },
    }
}
