//! One session for all callers: logs in, keeps the token alive in the background, logs in again,
//! and determines whether a 403 is about the token or about the policy.
//!
//! # A refused call
//! A 403 may concern the token, which another login can fix, or the policy, which is a denial that
//! ends DEKs. A conclusion applies to one token and one path only.
//!
//! | the token | is refused at a path | then |
//! |---|---|---|
//! | is not the session's any more | | the call is tried with the session's |
//! | has an end elsewhere (a file) | | the file is read; another token in it is tried |
//! | was seen to live when it was refused there | in words that concern a policy | *denied*, nobody asked |
//! | comes of a login, and no login was in vain lately | | a new login, and the call with it |
//! | | | the server is asked about the token: it lives: *denied*, or *unavailable* if the 403 said that it does not; it is dead: a new login, or *misconfigured* where there is none |
//!
//! A login is in vain while the path that led to it stays refused. The pause before the next one
//! then doubles each time.
#![forbid(unsafe_code)]

use std::future::Future;
use std::hash::RandomState;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as StdMutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::runtime::Handle;
use tokio::sync::{Mutex, Notify, OwnedMutexGuard};
use tokio::task::JoinHandle;

use crate::denials::Denials;
use crate::endpoints::{Auth, TokenState, lookup_self, renew_self, revoke_self};
use crate::errors::{Failure, Refusal};
use crate::login::{Credentials, Desk, Kept, VaultAuth, login_failure};
use crate::session::{Logins, Session, is_same};
use crate::transport::{SMALL, Token, Transport};
use waxseal::kek::toolkit::process_generation;
use waxseal::kek::{KekErrorClass, Login};

/// The pause between two refused logins with the same credentials.
const FIRST_REFUSED_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_REFUSED_PAUSE: Duration = Duration::from_secs(30);
const SOONEST_RETRY: Duration = Duration::from_millis(100);
const LATEST_RETRY: Duration = Duration::from_secs(10);
/// How long calls in flight with a token delay its revocation.
const GIVEN_BACK_AFTER: Duration = Duration::from_secs(30);
const GIVEN_BACK_AT_CLOSE_AFTER: Duration = Duration::from_secs(1);

/// Keeps one session for all callers.
pub(crate) struct Authenticator {
    auth: VaultAuth,
    transport: Arc<Transport>,
    current: ArcSwapOption<Session>,
    gate: Arc<Mutex<Gate>>,
    denials: StdMutex<Denials>,
    /// Whether tokens of this login may look themselves up. If so, the words of a refusal alone do
    /// not prove that a refused token is alive.
    looks_up: AtomicBool,
    /// Whether `denials` has entries.
    any_denial: AtomicBool,
    /// Wakes the task that keeps the token alive.
    changed: Arc<Notify>,
    keeper: StdMutex<Option<JoinHandle<()>>>,
    /// The runtime on which the last token arrived, so that it can be revoked when nobody polls any
    /// more.
    runtime: StdMutex<Option<Handle>>,
    /// The process in which it was built.
    process: u64,
    hasher: RandomState,
    /// Why the token could not be kept alive the last time, for an operator.
    trouble: StdMutex<Option<String>>,
    logins: Logins,
}

/// Held by the caller that logs in.
#[derive(Default)]
struct Gate {
    last_failure: Option<(Instant, Failure)>,
    refused: Option<RefusedLogin>,
    kept: Option<Kept>,
}

/// A refused login is not retried at once, unless with other credentials.
struct RefusedLogin {
    with: u64,
    until: Instant,
    pause: Duration,
    failure: Failure,
}

/// What to do after a 403.
pub(crate) enum Verdict {
    /// Try again with this session.
    Again(Arc<Session>),
    /// The policy denies it.
    Denied,
}

/// What the server says about a token when asked.
enum Life {
    Lives,
    /// Refused to look itself up, in words that concern a policy.
    LivesByItsWords,
    Ended,
    /// Not allowed to be asked about.
    Unknown,
}

impl Authenticator {
    pub(crate) fn new(auth: VaultAuth, transport: Arc<Transport>) -> Arc<Self> {
        Arc::new(Self {
            auth,
            transport,
            current: ArcSwapOption::empty(),
            gate: Arc::default(),
            denials: StdMutex::default(),
            looks_up: AtomicBool::new(false),
            any_denial: AtomicBool::new(false),
            changed: Arc::default(),
            keeper: StdMutex::default(),
            runtime: StdMutex::default(),
            process: process_generation(),
            hasher: RandomState::new(),
            trouble: StdMutex::default(),
            logins: Logins::default(),
        })
    }

    pub(crate) fn method(&self) -> &'static str {
        self.auth.name()
    }

    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    fn denials(&self) -> MutexGuard<'_, Denials> {
        self.denials.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how often it logged in, and how long the current token remains valid.
    pub(crate) fn login(&self) -> Login {
        self.logins.shown(self.current.load().as_deref())
    }

    fn desk(&self) -> Desk<'_> {
        Desk { auth: &self.auth, transport: &self.transport, hasher: &self.hasher }
    }

    fn usable(&self) -> Option<Arc<Session>> {
        self.current.load_full().filter(|session| !session.is_over())
    }

    /// Returns the session to use, after a login if there is none: one login for all that wait.
    pub(crate) async fn session(self: &Arc<Self>) -> Result<Arc<Session>, Failure> {
        if let Some(session) = self.usable() {
            return Ok(session);
        }
        let asked = Instant::now();
        let mut gate = self.gate.clone().lock_owned().await;
        if let Some(session) = self.usable() {
            return Ok(session);
        }
        let its = self.clone();
        apart(async move { its.log_in_shared(&mut gate, asked).await }).await
    }

    /// Records that a call with it succeeded.
    pub(crate) fn worked(&self, session: &Session, path: &str) {
        if !session.worked.load(Ordering::Relaxed) {
            session.worked.store(true, Ordering::Relaxed);
        }
        if self.any_denial.load(Ordering::Relaxed) {
            let mut denials = self.denials();
            denials.worked(path);
            self.any_denial.store(!denials.is_empty(), Ordering::Relaxed);
        }
    }

    /// Decides what follows from the server's 403 at `path`. See the [module](self).
    pub(crate) async fn after_refusal(
        self: &Arc<Self>,
        refused: &Arc<Session>,
        path: &str,
        reason: Refusal,
    ) -> Result<Verdict, Failure> {
        let is_believed = || {
            reason == Refusal::Policy && self.denials().are_believed(refused.token.as_ref(), path)
        };
        if is_believed() {
            return Ok(Verdict::Denied);
        }
        let asked = Instant::now();
        let gate = self.gate.clone().lock_owned().await;
        let (its, refused, path) = (self.clone(), refused.clone(), path.to_owned());
        apart(async move { its.judge(gate, asked, &refused, &path, reason).await }).await
    }

    async fn judge(
        self: &Arc<Self>,
        mut gate: OwnedMutexGuard<Gate>,
        asked: Instant,
        refused: &Arc<Session>,
        path: &str,
        reason: Refusal,
    ) -> Result<Verdict, Failure> {
        let is_believed = || {
            reason == Refusal::Policy && self.denials().are_believed(refused.token.as_ref(), path)
        };
        match self.usable() {
            Some(session) if !session.has_token_of(refused) => return Ok(Verdict::Again(session)),
            Some(_) if is_believed() => return Ok(Verdict::Denied),
            Some(_) => {}
            // It expired meanwhile, or was revoked.
            None => return self.log_in_shared(&mut gate, asked).await.map(Verdict::Again),
        }
        let mut no_login = None;
        if self.auth.is_a_file() {
            if let Credentials::Token(token) = self.desk().credentials().await?
                && !is_same(token.as_ref(), refused.token.as_ref())
            {
                return Ok(Verdict::Again(self.put(self.adopt(token, Instant::now()).await?)));
            }
        } else if self.auth.makes_tokens() && self.denials().may_log_in() {
            self.denials().log_in_because_of(path);
            self.any_denial.store(true, Ordering::Relaxed);
            match self.log_in_shared(&mut gate, asked).await {
                Ok(session) => return Ok(Verdict::Again(session)),
                Err(failure) if failure.is_passing() || failure.locked => return Err(failure),
                // The current token may still be valid.
                Err(failure) => no_login = Some(failure),
            }
        }
        let life = match self.look_up(refused.token.as_ref()).await?.0 {
            Life::LivesByItsWords if !self.looks_up.load(Ordering::Relaxed) => Life::Lives,
            // A session that has not worked yet comes from a recent login. It is not dead, but its
            // tokens are not what they were.
            Life::LivesByItsWords if !refused.worked.load(Ordering::Relaxed) => {
                self.looks_up.store(false, Ordering::Relaxed);
                Life::Lives
            }
            Life::LivesByItsWords => Life::Ended,
            life => life,
        };
        match life {
            Life::Lives => self.denied(refused, path, reason),
            Life::Unknown if reason == Refusal::Policy => self.denied(refused, path, reason),
            Life::Ended if self.auth.makes_tokens() && no_login.is_none() => {
                self.replace(&mut gate, refused).await.map(Verdict::Again)
            }
            Life::Ended | Life::LivesByItsWords | Life::Unknown => {
                Err(no_login.unwrap_or_else(|| {
                    Failure::misconfigured(format!(
                        "{}: the token has ended or was revoked (403)",
                        self.desk().operation()
                    ))
                }))
            }
        }
    }

    /// Handles a token that is alive but refused.
    fn denied(&self, session: &Session, path: &str, reason: Refusal) -> Result<Verdict, Failure> {
        if reason == Refusal::InvalidToken {
            let message = "one node calls the token invalid, another knows it (403)";
            return Err(Failure::unavailable(format!("{}: {message}", self.desk().operation())));
        }
        session.worked.store(true, Ordering::Relaxed);
        self.denials().believe(session.token.as_ref(), path, self.auth.makes_tokens());
        self.any_denial.store(true, Ordering::Relaxed);
        Ok(Verdict::Denied)
    }

    /// Handles a token that is dead, whatever the policy says.
    async fn replace(
        self: &Arc<Self>,
        gate: &mut Gate,
        dead: &Arc<Session>,
    ) -> Result<Arc<Session>, Failure> {
        self.current.store(None);
        if !dead.worked.load(Ordering::Relaxed) {
            // Another one would end the same way.
            let message = format!(
                "{}: the server does not know the token that it gave (403)",
                self.desk().operation()
            );
            let failure = Failure::misconfigured(message);
            let credentials = self.desk().credentials().await?;
            gate.refuse(self.desk().fingerprint(&credentials), &failure);
            return Err(failure);
        }
        self.log_in_now(gate).await
    }

    /// Returns a login, or the failure of one that was made since `asked`.
    async fn log_in_shared(
        self: &Arc<Self>,
        gate: &mut Gate,
        asked: Instant,
    ) -> Result<Arc<Session>, Failure> {
        match &gate.last_failure {
            Some((at, failure)) if *at >= asked => Err(failure.clone()),
            _ => self.log_in_now(gate).await,
        }
    }

    async fn log_in_now(self: &Arc<Self>, gate: &mut Gate) -> Result<Arc<Session>, Failure> {
        match self.log_in(gate).await {
            Ok(session) => {
                (gate.last_failure, gate.refused) = (None, None);
                self.logins.count(true);
                Ok(self.put(session))
            }
            Err(failure) => {
                gate.last_failure = Some((Instant::now(), failure.clone()));
                self.logins.count(false);
                Err(failure)
            }
        }
    }

    async fn log_in(&self, gate: &mut Gate) -> Result<Session, Failure> {
        let since = Instant::now();
        let desk = self.desk();
        let credentials = desk.credentials().await?;
        let with = desk.fingerprint(&credentials);
        if let Some(refused) = gate.refused.as_ref().filter(|refused| refused.with == with)
            && since < refused.until
        {
            return Err(refused.failure.clone().without_asking());
        }
        if let Credentials::Token(token) = credentials {
            return self.adopt(token, since).await;
        }
        match desk.log_in(credentials, &mut gate.kept).await {
            Ok(auth) => self
                .session_of(auth, since)
                .ok_or_else(|| Failure::not_understood(&desk.operation())),
            Err(failure) => {
                if failure.class == KekErrorClass::Misconfigured && failure.asked {
                    gate.refuse(with, &failure);
                }
                Err(failure)
            }
        }
    }

    fn session_of(&self, auth: Auth, since: Instant) -> Option<Session> {
        let is_ours = auth.token_type != "batch";
        let token = Token::new(auth.client_token)?;
        Some(Session {
            is_ours,
            ..Session::new(Some(token), since, auth.lease_duration, auth.renewable)
        })
    }

    /// Uses a token from the user, whatever the server says about it, since a valid token may not
    /// be allowed to look itself up. The next call will show.
    async fn adopt(&self, token: Option<Token>, since: Instant) -> Result<Session, Failure> {
        if token.is_none() {
            return Ok(Session::new(None, since, 0, false));
        }
        let (_, state) = self.look_up(token.as_ref()).await?;
        let (seconds, renewable) = state.map_or((0, false), |state| (state.ttl, state.renewable));
        Ok(Session::new(token, since, seconds, renewable))
    }

    /// Asks the server about a token.
    async fn look_up(&self, token: Option<&Token>) -> Result<(Life, Option<TokenState>), Failure> {
        let operation = self.desk().operation();
        let reply = self.transport.send(&operation, &lookup_self(), token, SMALL).await?;
        if reply.is_success() {
            let answer = reply.success::<TokenState>(&operation)?;
            let state = answer.data.ok_or_else(|| Failure::not_understood(&operation))?;
            self.looks_up.store(true, Ordering::Relaxed);
            return Ok((Life::Lives, Some(state)));
        }
        match reply.refusal() {
            Some(Refusal::Policy) => Ok((Life::LivesByItsWords, None)),
            Some(Refusal::Bare | Refusal::InvalidToken) => Ok((Life::Ended, None)),
            None => {
                // An agent or a gateway that blocks this says nothing about the token.
                match matches!(reply.status, 403..=405) && !reply.is_the_servers() {
                    true => Ok((Life::Unknown, None)),
                    false => Err(login_failure(reply.failure(&operation))),
                }
            }
        }
    }

    fn put(self: &Arc<Self>, session: Session) -> Arc<Session> {
        let session = Arc::new(session);
        let superseded = self.current.swap(Some(session.clone()));
        if let Some(old) = superseded.filter(|old| old.is_ours && !old.has_token_of(&session)) {
            tokio::spawn(give_back(self.transport.clone(), old, GIVEN_BACK_AFTER));
        }
        *self.runtime.lock().unwrap_or_else(PoisonError::into_inner) = Some(Handle::current());
        self.set_trouble(None);
        self.changed.notify_one();
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        // A task that ended with its runtime is followed by one on the runtime that the provider
        // uses now.
        if session.lease.is_some() && keeper.as_ref().is_none_or(JoinHandle::is_finished) {
            *keeper = Some(tokio::spawn(keep_alive(Arc::downgrade(self), self.changed.clone())));
        }
        session
    }

    /// Revokes the token, if a login made it. The next call logs in again.
    pub(crate) async fn close(&self) {
        // Waits for a login in progress, or its token would stay.
        let gate = self.gate.lock().await;
        let session = self.current.swap(None);
        drop(gate);
        self.changed.notify_one();
        if let Some(session) = session.filter(|session| session.is_ours) {
            give_back(self.transport.clone(), session, GIVEN_BACK_AT_CLOSE_AFTER).await;
        }
    }

    async fn renew(&self, session: &Session) -> Result<Session, Failure> {
        let since = Instant::now();
        let operation = "renewal of the token";
        let reply =
            self.transport.send(operation, &renew_self(), session.token.as_ref(), SMALL).await?;
        let auth = reply.success::<serde::de::IgnoredAny>(operation)?.auth;
        let auth = auth.ok_or_else(|| Failure::not_understood(operation))?;
        let token = session.token.as_ref().map(Token::share);
        let renewed = Session::new(token, since, auth.lease_duration, auth.renewable);
        let worked = AtomicBool::new(session.worked.load(Ordering::Relaxed));
        Ok(Session {
            first_lease: session.first_lease,
            is_ours: session.is_ours,
            worked,
            ..renewed
        })
    }

    /// Whether this is still the token in use.
    fn uses(&self, session: &Session) -> bool {
        self.current.load().as_ref().is_some_and(|current| current.has_token_of(session))
    }

    /// Does one step of keeping the token alive, with the longest effect available. Returns `Err`
    /// if it should be retried.
    async fn look_after(self: &Arc<Self>, session: &Arc<Session>) -> Result<(), Failure> {
        if self.auth.is_a_file()
            && let Ok(Credentials::Token(token)) = self.desk().credentials().await
            && !is_same(token.as_ref(), session.token.as_ref())
            && let Ok(fresh) = self.adopt(token, Instant::now()).await
        {
            self.put(fresh);
            return Ok(());
        }
        if session.renewable {
            match self.renew(session).await {
                Ok(renewed) => {
                    let ends_soon = renewed.lease < renewed.first_lease;
                    // Somebody may have logged in meanwhile.
                    if self.uses(&renewed) {
                        self.put(renewed);
                    }
                    if !ends_soon || !self.auth.makes_tokens() {
                        return Ok(());
                    }
                }
                Err(failure) if failure.is_passing() || !self.auth.makes_tokens() => {
                    self.logins.count(false);
                    return Err(failure);
                }
                Err(_) => {}
            }
        } else if !self.auth.makes_tokens() {
            self.logins.count(false);
            return Err(Failure::misconfigured("the token cannot be renewed"));
        }
        let mut gate = self.gate.lock().await;
        if !self.uses(session) {
            return Ok(());
        }
        self.log_in_now(&mut gate).await.map(|_| ())
    }
}

impl Gate {
    fn refuse(&mut self, with: u64, failure: &Failure) {
        let pause = match &self.refused {
            Some(refused) if refused.with == with => (refused.pause * 2).min(LONGEST_REFUSED_PAUSE),
            _ => FIRST_REFUSED_PAUSE,
        };
        self.refused = Some(RefusedLogin {
            with,
            until: Instant::now() + pause,
            pause,
            failure: failure.clone(),
        });
    }
}

/// Logs in within a separate task. A login may take longer than one try of a call. Within the call
/// it would never finish, and would leave a token at the server each time.
async fn apart<T: Send + 'static>(
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> Result<T, Failure> {
    // The holder of the gate waits for no other holder, so there is one such task.
    match tokio::spawn(work).await {
        Ok(answer) => answer,
        Err(error) if error.is_panic() => Err(Failure::unavailable("login: the provider panicked")),
        Err(_) => Err(Failure::unavailable("login: the runtime ended")),
    }
}

/// Revokes the token (`revoke-self`) when the calls in flight with it are done, so that tokens do
/// not pile up at the server. A failure is ignored, since the token's lease expires on its own.
async fn give_back(transport: Arc<Transport>, session: Arc<Session>, longest: Duration) {
    let start = Instant::now();
    while Arc::strong_count(&session) > 1 && start.elapsed() < longest {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    if !session.is_over() {
        let _ = transport
            .send("giving back the token", &revoke_self(), session.token.as_ref(), SMALL)
            .await;
    }
}

impl Drop for Authenticator {
    fn drop(&mut self) {
        self.changed.notify_one();
        // After a fork the runtime belongs to the parent, and so does the token.
        if self.process == process_generation()
            && let Some(session) = self.current.swap(None).filter(|session| session.is_ours)
            && let Some(runtime) = self.runtime.get_mut().unwrap_or_else(PoisonError::into_inner)
        {
            runtime.spawn(give_back(self.transport.clone(), session, GIVEN_BACK_AFTER));
        }
    }
}

/// Runs as long as the provider exists: renews the token well before its end, and waits for the
/// next token if it could not be kept.
async fn keep_alive(authenticator: Weak<Authenticator>, changed: Arc<Notify>) {
    let mut retry: Option<Duration> = None;
    loop {
        let wait = {
            let Some(authenticator) = authenticator.upgrade() else { return };
            match authenticator.usable() {
                Some(session) => {
                    retry.map(|retry| retry.min(session.left())).or_else(|| session.due_in())
                }
                None => None,
            }
        };
        match wait {
            // A new session came, or the provider went.
            None => {
                changed.notified().await;
                retry = None;
                continue;
            }
            Some(wait) if tokio::time::timeout(wait, changed.notified()).await.is_ok() => {
                retry = None;
                continue;
            }
            Some(_) => {}
        }
        let Some(authenticator) = authenticator.upgrade() else { return };
        let Some(session) = authenticator.usable() else { continue };
        retry = match authenticator.look_after(&session).await {
            Ok(()) => None,
            Err(failure) => {
                authenticator.set_trouble(Some(failure.message));
                let pause = retry.map_or(session.left() / 10, |retry| retry * 2);
                Some(pause.clamp(SOONEST_RETRY, LATEST_RETRY))
            }
        };
    }
}
