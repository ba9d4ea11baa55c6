//! The token that requests carry: cached, renewed before it expires, and loaded separately from the
//! calls that wait for it.
//!
//! The SDK loads a token within the call that needs it, and stops when that call is dropped. Five
//! minutes before a token expires it makes every call wait for the next one, although the old one
//! is still valid. Here a separate task loads it.
#![forbid(unsafe_code)]

use std::error::Error as StdError;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use azure_core::Error as SdkError;
use azure_core::credentials::{AccessToken, TokenCredential, TokenRequestOptions};
use azure_core::error::ErrorKind as SdkErrorKind;
use futures_util::FutureExt;
use tokio::sync::watch;
use waxseal::kek::Login;

use crate::credentials::Source;
use crate::transport::Trouble;

/// A token that expires sooner is not used.
const TOO_LATE: Duration = Duration::from_secs(10);
/// It is renewed in the background this long before its end, or in the last quarter of its life.
const AHEAD: Duration = Duration::from_secs(300);
/// The longest time of a load.
const LONGEST_LOAD: Duration = Duration::from_secs(60);
/// A load that takes this long may hang, so the next caller starts another one.
const SLOW_LOAD: Duration = Duration::from_secs(15);
/// The shortest interval between loads after the service refused a token.
const AFTER_REFUSAL: Duration = Duration::from_secs(1);
/// The shortest interval between loads in the background.
const IN_BACKGROUND: Duration = Duration::from_secs(10);

type Answer = Result<AccessToken, Failed>;

/// Why there is no token, shared by all that waited.
#[derive(Clone, Debug)]
pub(crate) struct Failed(Arc<SdkError>);

impl fmt::Display for Failed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("loading a token")
    }
}

impl StdError for Failed {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.0)
    }
}

impl From<Failed> for SdkError {
    fn from(failed: Failed) -> Self {
        SdkError::with_error(SdkErrorKind::Credential, failed, "no token")
    }
}

/// Caches the token of one source. A clone is another handle to the same cache.
#[derive(Clone)]
pub(crate) struct Keeper(Arc<Inner>);

struct Inner {
    source: Source,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    loading: Option<Loading>,
    /// How often the token changed.
    generation: u64,
    loads: u64,
    failures: u64,
    /// When the last load in the background began.
    tried: Option<Instant>,
    /// When the last load began because the service had refused a token. A failed load does not
    /// count, since the token is still the refused one.
    renewed: Option<Instant>,
}

struct Held {
    token: AccessToken,
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
        answer.unwrap_or_else(|| Err(failed("the load was ended")))
    }
}

fn failed(text: &str) -> Failed {
    let trouble = Trouble { misconfigured: false, text: text.to_owned() };
    Failed(Arc::new(SdkError::new(SdkErrorKind::Io, trouble)))
}

impl Keeper {
    pub(crate) fn new(source: Source) -> Self {
        Self(Arc::new(Inner { source, state: Mutex::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns a number that changes with the token, so that a refused caller can check for another
    /// one.
    pub(crate) fn generation(&self) -> u64 {
        self.state().generation
    }

    /// Returns how often a token was loaded, and how long the current one remains valid.
    pub(crate) fn login(&self) -> Login {
        let state = self.state();
        let login = Login::new(state.loads, state.failures);
        match &state.held {
            Some(held) => {
                login.ends_in(held.ends.duration_since(SystemTime::now()).unwrap_or_default())
            }
            None => login,
        }
    }

    /// Drops the token. The next call loads another one.
    pub(crate) fn close(&self) {
        self.state().held = None;
    }

    /// Loads a token again after the service refused that of this generation, although it looks
    /// valid. Returns whether it changed.
    ///
    /// # Errors
    /// The failure to load one.
    pub(crate) async fn renew(&self, refused: u64, scopes: &[&str]) -> Result<bool, SdkError> {
        let pause = {
            let state = self.state();
            let last = state.renewed.filter(|_| state.loading.is_none());
            last.and_then(|last| AFTER_REFUSAL.checked_sub(last.elapsed()))
        };
        // Only a load shows whether the token is refused or no other can be obtained.
        if let Some(pause) = pause
            && tokio::runtime::Handle::try_current().is_ok()
        {
            tokio::time::sleep(pause).await;
        }
        let load = {
            let mut state = self.state();
            if state.generation != refused {
                return Ok(true);
            }
            if state.loading.is_none() {
                state.renewed = Some(Instant::now());
            }
            self.load(&mut state, scopes)
        };
        let Some(load) = load else { return Ok(false) };
        load.wait().await?;
        Ok(self.generation() != refused)
    }

    /// Returns the load in flight, or a new one. `None` outside a tokio runtime.
    fn load(&self, state: &mut State, scopes: &[&str]) -> Option<Loading> {
        let on_its_way = state.loading.take().filter(|loading| {
            // A load that ended without an answer ended with its runtime.
            loading.began.elapsed() < SLOW_LOAD && loading.answer.has_changed().is_ok()
        });
        if on_its_way.is_some() {
            state.loading = on_its_way;
            return state.loading.clone();
        }
        let runtime = tokio::runtime::Handle::try_current().ok()?;
        let (tell, answer) = watch::channel(None);
        let (keeper, began) = (self.clone(), Instant::now());
        let scopes: Vec<String> = scopes.iter().map(|scope| (*scope).to_owned()).collect();
        runtime.spawn(async move {
            let loaded = keeper.0.load(&scopes).await;
            keeper.keep(began, &loaded);
            tell.send_replace(Some(loaded));
        });
        state.loading = Some(Loading { answer, began });
        state.loading.clone()
    }

    fn keep(&self, asked: Instant, loaded: &Answer) {
        let now = SystemTime::now();
        let mut state = self.state();
        if state.loading.as_ref().is_some_and(|loading| loading.began <= asked) {
            state.loading = None;
        }
        let Ok(token) = loaded else {
            state.failures = state.failures.saturating_add(1);
            state.renewed = None;
            return;
        };
        state.loads = state.loads.saturating_add(1);
        if state.held.as_ref().is_some_and(|held| held.asked > asked && now + TOO_LATE < held.ends)
        {
            return;
        }
        if state.held.as_ref().is_none_or(|held| held.token.token != token.token) {
            state.generation += 1;
        }
        let ends = SystemTime::from(token.expires_on);
        let life = ends.duration_since(now).unwrap_or_default();
        let ahead = AHEAD.min(life / 4).max(TOO_LATE);
        let renew_from = ends.checked_sub(ahead).unwrap_or(now);
        state.held = Some(Held { token: token.clone(), asked, renew_from, ends });
    }

    /// Returns the token that is valid now, or else the load to wait for.
    fn look(&self, scopes: &[&str]) -> (Option<AccessToken>, Option<Loading>) {
        let now = SystemTime::now();
        let mut state = self.state();
        let usable = state.held.as_ref().filter(|held| now + TOO_LATE < held.ends);
        match usable.map(|held| (held.token.clone(), now >= held.renew_from)) {
            Some((token, is_due)) => {
                if is_due && state.tried.is_none_or(|tried| tried.elapsed() >= IN_BACKGROUND) {
                    state.tried = Some(Instant::now());
                    self.load(&mut state, scopes);
                }
                (Some(token), None)
            }
            None => (None, self.load(&mut state, scopes)),
        }
    }

    /// Returns a token in its last seconds, if no other can be loaded: better than none.
    fn nearly_ended(&self) -> Option<AccessToken> {
        let state = self.state();
        let held = state.held.as_ref()?;
        (SystemTime::now() < held.ends).then(|| held.token.clone())
    }
}

/// Returns the logins of all keepers, and the token that expires first.
pub(crate) fn login(keepers: &[Keeper]) -> Login {
    let each: Vec<_> = keepers.iter().map(Keeper::login).collect();
    let sum = |of: fn(&Login) -> u64| each.iter().map(of).fold(0, u64::saturating_add);
    let login = Login::new(sum(|login| login.logins), sum(|login| login.failures));
    match each.iter().filter_map(|login| login.ends_in).min() {
        Some(left) => login.ends_in(left),
        None => login,
    }
}

impl Inner {
    async fn load(&self, scopes: &[String]) -> Answer {
        let work = async {
            let credential = self.source.credential().await?;
            let scopes: Vec<&str> = scopes.iter().map(String::as_str).collect();
            let token = credential.get_token(&scopes, None).await?;
            // The SDK accepts an answer without a token as a token.
            match token.token.secret().is_empty() {
                false => Ok(token),
                true => Err(failed("it gave no token").into()),
            }
        };
        match tokio::time::timeout(LONGEST_LOAD, AssertUnwindSafe(work).catch_unwind()).await {
            Ok(Ok(answer)) => answer.map_err(|error| Failed(Arc::new(error))),
            Ok(Err(_)) => Err(failed("the source of the token panicked")),
            Err(_) => Err(failed("the login did not end in time")),
        }
    }
}

#[async_trait::async_trait]
impl TokenCredential for Keeper {
    async fn get_token(
        &self,
        scopes: &[&str],
        _: Option<TokenRequestOptions<'_>>,
    ) -> azure_core::Result<AccessToken> {
        match self.look(scopes) {
            (Some(token), _) => Ok(token),
            (None, None) => Err(failed("a token is loaded on a tokio runtime").into()),
            (None, Some(loading)) => match loading.wait().await {
                Ok(token) => Ok(token),
                Err(error) => self.nearly_ended().ok_or_else(|| error.into()),
            },
        }
    }
}

impl fmt::Debug for Keeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keeper([redacted])")
    }
}
