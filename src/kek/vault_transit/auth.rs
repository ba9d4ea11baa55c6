//! Who this process is to the server: logging in, keeping the token alive in the background, and logging in anew.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex as StdMutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use tokio::sync::{Mutex, Notify};
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use super::endpoints::{
    AppRoleLogin, Auth, CertificateLogin, KubernetesLogin, SecretText, TokenState, app_role_login, certificate_login,
    is_path, kubernetes_login, lookup_self, renew_self,
};
use super::errors::Failure;
use super::transport::{SMALL, Token, Transport};
use crate::kek::KekErrorClass;
use crate::suite::spread;

/// How this process proves to the server who it is. Nothing secret is in its Debug text.
///
/// Whatever is read from a file is read anew at each login, so an orchestrator can replace it.
pub struct VaultAuth(Method);

enum Method {
    Token(Token),
    TokenFile(PathBuf),
    AppRole {
        mount: String,
        role_id: String,
        secret_id: Option<Source>,
    },
    Kubernetes {
        mount: String,
        role: String,
        jwt: PathBuf,
    },
    Certificate {
        mount: String,
        role: Option<String>,
    },
    /// A text that can never be a token; refused at build.
    Unusable(&'static str),
}

enum Source {
    Value(SecretText),
    File(PathBuf),
}

const KUBERNETES_JWT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const MAX_FILE: u64 = 64 * 1024;

impl VaultAuth {
    /// This token. It is renewed as long as the server allows; when it ends there is no way to another, and every call fails as
    /// *misconfigured*. For development, or where something else ends the process in time.
    #[must_use]
    pub fn token(token: impl Into<String>) -> Self {
        match Token::new(SecretText::new(token.into())) {
            Some(token) => Self(Method::Token(token)),
            None => Self(Method::Unusable("the token is empty or has a character that a token cannot have")),
        }
    }

    /// The token in this file, such as the sink of a Vault agent. The file is read again when its token is refused or ends.
    #[must_use]
    pub fn token_file(path: impl Into<PathBuf>) -> Self {
        Self(Method::TokenFile(path.into()))
    }

    /// AppRole with this role id, at the mount `approle`. Add the secret id, if the role wants one.
    #[must_use]
    pub fn app_role(role_id: impl Into<String>) -> Self {
        Self(Method::AppRole { mount: "approle".to_owned(), role_id: role_id.into(), secret_id: None })
    }

    /// AppRole's secret id. Without effect on other methods.
    #[must_use]
    pub fn secret_id(mut self, secret_id: impl Into<String>) -> Self {
        if let Method::AppRole { secret_id: own, .. } = &mut self.0 {
            *own = Some(Source::Value(SecretText::new(secret_id.into())));
        }
        self
    }

    /// The file with AppRole's secret id. Without effect on other methods.
    #[must_use]
    pub fn secret_id_file(mut self, path: impl Into<PathBuf>) -> Self {
        if let Method::AppRole { secret_id: own, .. } = &mut self.0 {
            *own = Some(Source::File(path.into()));
        }
        self
    }

    /// Kubernetes with this role, at the mount `kubernetes`, by the token of the pod's service account.
    #[must_use]
    pub fn kubernetes(role: impl Into<String>) -> Self {
        Self(Method::Kubernetes { mount: "kubernetes".to_owned(), role: role.into(), jwt: KUBERNETES_JWT.into() })
    }

    /// Another file for the service account's token. Without effect on other methods.
    #[must_use]
    pub fn jwt_file(mut self, path: impl Into<PathBuf>) -> Self {
        if let Method::Kubernetes { jwt, .. } = &mut self.0 {
            *jwt = path.into();
        }
        self
    }

    /// The TLS client certificate of the connection, at the mount `cert`, for whichever role matches it.
    #[must_use]
    pub fn certificate() -> Self {
        Self(Method::Certificate { mount: "cert".to_owned(), role: None })
    }

    /// Only this role of the certificate method. Without effect on other methods.
    #[must_use]
    pub fn certificate_role(mut self, name: impl Into<String>) -> Self {
        if let Method::Certificate { role, .. } = &mut self.0 {
            *role = Some(name.into());
        }
        self
    }

    /// Where the method is mounted. Without effect on tokens.
    #[must_use]
    pub fn mount(mut self, path: impl Into<String>) -> Self {
        match &mut self.0 {
            Method::AppRole { mount, .. } | Method::Kubernetes { mount, .. } | Method::Certificate { mount, .. } => {
                *mount = path.into();
            }
            Method::Token(_) | Method::TokenFile(_) | Method::Unusable(_) => {}
        }
        self
    }

    /// What is wrong with it, as far as can be told without asking.
    pub(super) fn check(&self, has_certificate: bool) -> Result<(), &'static str> {
        match &self.0 {
            Method::Unusable(why) => Err(why),
            Method::AppRole { mount, .. } | Method::Kubernetes { mount, .. } | Method::Certificate { mount, .. }
                if !is_path(mount) =>
            {
                Err("the mount of the login method is not a path")
            }
            Method::Certificate { .. } if !has_certificate => Err("a login by certificate wants client_certificate"),
            _ => Ok(()),
        }
    }

    fn name(&self) -> &'static str {
        match self.0 {
            Method::Token(_) => "token",
            Method::TokenFile(_) => "token file",
            Method::AppRole { .. } => "AppRole",
            Method::Kubernetes { .. } => "Kubernetes",
            Method::Certificate { .. } => "certificate",
            Method::Unusable(_) => "unusable",
        }
    }

    /// Whether logging in again gives another token.
    fn makes_tokens(&self) -> bool {
        matches!(self.0, Method::AppRole { .. } | Method::Kubernetes { .. } | Method::Certificate { .. })
    }
}

impl fmt::Debug for VaultAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VaultAuth({})", self.name())
    }
}

/// A token and how long it lives.
pub(super) struct Session {
    pub(super) token: Token,
    /// Before the request that gave it, so that it never ends earlier than is believed here.
    since: Instant,
    /// `None`: for ever, or nobody knows.
    lease: Option<Duration>,
    /// The lease that the login gave; a renewal that gives less has met the token's last end.
    first_lease: Option<Duration>,
    renewable: bool,
}

impl Session {
    fn new(token: Token, since: Instant, seconds: u64, renewable: bool) -> Self {
        let lease = (seconds > 0).then(|| Duration::from_secs(seconds));
        Self { token, since, lease, first_lease: lease, renewable }
    }

    fn is_over(&self) -> bool {
        self.lease.is_some_and(|lease| self.since.elapsed() >= lease)
    }

    /// When to see to it: after about half of the lease, not all processes at once.
    fn due_in(&self) -> Option<Duration> {
        let spread = spread() * 0.1;
        self.lease.map(|lease| lease.mul_f64(0.6 - spread).saturating_sub(self.since.elapsed()))
    }

    fn left(&self) -> Duration {
        self.lease.map_or(Duration::MAX, |lease| lease.saturating_sub(self.since.elapsed()))
    }
}

/// How long after a new login that did not help a 403 is believed without another.
const BELIEVED_FOR: Duration = Duration::from_secs(10);
const SOONEST_RETRY: Duration = Duration::from_millis(100);
const LATEST_RETRY: Duration = Duration::from_secs(10);

/// Keeps one session for all callers.
pub(super) struct Authenticator {
    auth: VaultAuth,
    transport: Arc<Transport>,
    current: ArcSwapOption<Session>,
    gate: Mutex<Gate>,
    /// Wakes the task that keeps the token alive.
    changed: Arc<Notify>,
    keeper: StdMutex<Option<JoinHandle<()>>>,
    /// Why the token could not be kept alive the last time, for an operator.
    trouble: StdMutex<Option<String>>,
}

/// Held by the one who logs in.
#[derive(Default)]
struct Gate {
    last_failure: Option<(Instant, Failure)>,
    believe_until: Option<Instant>,
}

/// What led to a login.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Refused {
    Nothing,
    /// The token in use, or the policy behind it.
    ACall,
}

impl Authenticator {
    pub(super) fn new(auth: VaultAuth, transport: Arc<Transport>) -> Arc<Self> {
        Arc::new(Self {
            auth,
            transport,
            current: ArcSwapOption::empty(),
            gate: Mutex::default(),
            changed: Arc::default(),
            keeper: StdMutex::default(),
            trouble: StdMutex::default(),
        })
    }

    pub(super) fn method(&self) -> &'static str {
        self.auth.name()
    }

    pub(super) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    fn usable(&self) -> Option<Arc<Session>> {
        self.current.load_full().filter(|session| !session.is_over())
    }

    /// The session to use, after a login if there is none: one login for all who wait.
    pub(super) async fn session(self: &Arc<Self>) -> Result<Arc<Session>, Failure> {
        if let Some(session) = self.usable() {
            return Ok(session);
        }
        let asked = Instant::now();
        let mut gate = self.gate.lock().await;
        if let Some(session) = self.usable() {
            return Ok(session);
        }
        match &gate.last_failure {
            Some((at, failure)) if *at >= asked => Err(failure.clone()),
            _ => self.log_in_now(&mut gate, Refused::Nothing).await,
        }
    }

    /// After a 403: the session to try once more with, or `None` where the refusal stands.
    pub(super) async fn after_refusal(self: &Arc<Self>, refused: &Session) -> Result<Option<Arc<Session>>, Failure> {
        let asked = Instant::now();
        let mut gate = self.gate.lock().await;
        if let Some(session) = self.usable()
            && !session.token.is(&refused.token)
        {
            return Ok(Some(session));
        }
        if gate.believe_until.is_some_and(|until| Instant::now() < until) {
            return Ok(None);
        }
        if let Some((at, failure)) = &gate.last_failure
            && *at >= asked
        {
            return Err(failure.clone());
        }
        let session = self.log_in_now(&mut gate, Refused::ACall).await?;
        if session.token.is(&refused.token) {
            // It is good, and still refused.
            gate.believe_until = Some(Instant::now() + BELIEVED_FOR);
            return Ok(None);
        }
        Ok(Some(session))
    }

    /// A new login did not help: it is the policy.
    pub(super) async fn refused_again(&self) {
        self.gate.lock().await.believe_until = Some(Instant::now() + BELIEVED_FOR);
    }

    async fn log_in_now(self: &Arc<Self>, gate: &mut Gate, refused: Refused) -> Result<Arc<Session>, Failure> {
        match self.log_in(refused).await {
            Ok(session) => {
                gate.last_failure = None;
                Ok(self.put(session))
            }
            Err(failure) => {
                gate.last_failure = Some((Instant::now(), failure.clone()));
                Err(failure)
            }
        }
    }

    fn put(self: &Arc<Self>, session: Session) -> Arc<Session> {
        let session = Arc::new(session);
        self.current.store(Some(session.clone()));
        self.set_trouble(None);
        self.changed.notify_one();
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        // A task that ended with the runtime it was on is followed by one on the runtime that the provider works on now.
        if session.lease.is_some() && keeper.as_ref().is_none_or(JoinHandle::is_finished) {
            *keeper = Some(tokio::spawn(keep_alive(Arc::downgrade(self), self.changed.clone())));
        }
        session
    }

    async fn log_in(&self, refused: Refused) -> Result<Session, Failure> {
        let since = Instant::now();
        let token = match &self.auth.0 {
            Method::Token(token) => token.share(),
            Method::TokenFile(path) => {
                let text = self.read_file(path).await?;
                Token::new(text).ok_or_else(|| file_failure(path, "holds no token"))?
            }
            Method::AppRole { mount, role_id, secret_id } => {
                let from_file;
                let secret_id = match secret_id {
                    None => None,
                    Some(Source::Value(value)) => Some(value.0.as_str()),
                    Some(Source::File(path)) => {
                        from_file = self.read_file(path).await?;
                        Some(from_file.0.as_str())
                    }
                };
                let request = app_role_login(mount, AppRoleLogin { role_id, secret_id });
                return self.log_in_with(&request, since).await;
            }
            Method::Kubernetes { mount, role, jwt } => {
                let jwt = self.read_file(jwt).await?;
                let request = kubernetes_login(mount, KubernetesLogin { role, jwt: &jwt.0 });
                return self.log_in_with(&request, since).await;
            }
            Method::Certificate { mount, role } => {
                return self
                    .log_in_with(&certificate_login(mount, CertificateLogin { name: role.as_deref() }), since)
                    .await;
            }
            Method::Unusable(why) => return Err(Failure::misconfigured(*why)),
        };
        self.look_up(token, since, refused).await
    }

    async fn log_in_with<E: rustify::endpoint::Endpoint>(
        &self,
        request: &E,
        since: Instant,
    ) -> Result<Session, Failure> {
        let operation = format!("login ({})", self.auth.name());
        let reply = self.transport.send(&operation, request, None, SMALL).await?;
        match reply.success::<serde::de::IgnoredAny>(&operation) {
            Ok(answer) => {
                answer.auth.and_then(|auth| session_of(auth, since)).ok_or_else(|| Failure::not_understood(&operation))
            }
            Err(failure) => Err(login_failure(failure)),
        }
    }

    /// What the server knows of a token that was handed to us.
    async fn look_up(&self, token: Token, since: Instant, refused: Refused) -> Result<Session, Failure> {
        let operation = format!("login ({})", self.auth.name());
        let reply = self.transport.send(&operation, &lookup_self(), Some(&token), SMALL).await?;
        match reply.success::<TokenState>(&operation) {
            Ok(answer) => match answer.data {
                Some(state) => Ok(Session::new(token, since, state.ttl, state.renewable)),
                None => Err(Failure::not_understood(&operation)),
            },
            // Without the default policy a good token may be refused here too: the next call will show.
            Err(_) if reply.status == 403 && refused == Refused::Nothing => Ok(Session::new(token, since, 0, false)),
            Err(_) if reply.status == 403 => {
                let message =
                    format!("{operation}: the token has ended or was revoked, or may not look itself up (403)");
                Err(Failure::misconfigured(message))
            }
            Err(failure) => Err(login_failure(failure)),
        }
    }

    async fn renew(&self, session: &Session) -> Result<Session, Failure> {
        let since = Instant::now();
        let reply = self.transport.send("renewal of the token", &renew_self(), Some(&session.token), SMALL).await?;
        let auth = reply.success::<serde::de::IgnoredAny>("renewal of the token")?.auth;
        let auth = auth.ok_or_else(|| Failure::not_understood("renewal of the token"))?;
        let renewed = Session::new(session.token.share(), since, auth.lease_duration, auth.renewable);
        Ok(Session { first_lease: session.first_lease, ..renewed })
    }

    async fn read_file(&self, path: &Path) -> Result<SecretText, Failure> {
        let wanted = path.to_owned();
        let read = tokio::task::spawn_blocking(move || read_secret(&wanted)).await;
        read.ok().flatten().ok_or_else(|| file_failure(path, "cannot be read as a short text"))
    }

    /// One step of keeping the token alive: whatever keeps it longest. `Err` if it is to be tried again.
    async fn look_after(self: &Arc<Self>, session: &Arc<Session>) -> Result<(), Failure> {
        if let Method::TokenFile(_) = self.auth.0
            && let Ok(fresh) = self.log_in(Refused::ACall).await
            && !fresh.token.is(&session.token)
        {
            self.put(fresh);
            return Ok(());
        }
        if session.renewable {
            match self.renew(session).await {
                Ok(renewed) => {
                    let ends_soon = renewed.lease < renewed.first_lease;
                    // Somebody may have logged in meanwhile.
                    if self.current.load().as_ref().is_some_and(|current| current.token.is(&renewed.token)) {
                        self.put(renewed);
                    }
                    if !ends_soon || !self.auth.makes_tokens() {
                        return Ok(());
                    }
                }
                Err(failure) if is_passing(&failure) || !self.auth.makes_tokens() => return Err(failure),
                Err(_) => {}
            }
        } else if !self.auth.makes_tokens() {
            return Err(Failure::misconfigured("the token cannot be renewed"));
        }
        let mut gate = self.gate.lock().await;
        self.log_in_now(&mut gate, Refused::Nothing).await.map(|_| ())
    }
}

impl Drop for Authenticator {
    fn drop(&mut self) {
        self.changed.notify_one();
    }
}

/// Runs as long as the provider: sees to the token well before its end, and waits for the next one when it could not be saved.
async fn keep_alive(authenticator: Weak<Authenticator>, changed: Arc<Notify>) {
    let mut retry: Option<Duration> = None;
    loop {
        let wait = {
            let Some(authenticator) = authenticator.upgrade() else { return };
            match authenticator.usable() {
                Some(session) => retry.map(|retry| retry.min(session.left())).or_else(|| session.due_in()),
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

fn session_of(auth: Auth, since: Instant) -> Option<Session> {
    Some(Session::new(Token::new(auth.client_token)?, since, auth.lease_duration, auth.renewable))
}

fn is_passing(failure: &Failure) -> bool {
    matches!(failure.class, KekErrorClass::Unavailable | KekErrorClass::Throttled)
}

/// A login that is refused says nothing of the key: an operator has to act.
fn login_failure(failure: Failure) -> Failure {
    if is_passing(&failure) { failure } else { Failure::misconfigured(failure.message) }
}

fn file_failure(path: &Path, what: &str) -> Failure {
    Failure::misconfigured(format!("login: {} {what}", path.display()))
}

/// A short text without the white space around it; `None` if it is not one.
fn read_secret(path: &Path) -> Option<SecretText> {
    use std::io::Read;

    let file = std::fs::File::open(path).ok()?;
    let mut bytes = Zeroizing::new(vec![0; usize::try_from(MAX_FILE + 1).ok()?]);
    let mut len = 0;
    let mut file = file.take(MAX_FILE + 1);
    loop {
        match file.read(bytes.get_mut(len..)?).ok()? {
            0 => break,
            read => len += read,
        }
    }
    let text = std::str::from_utf8(bytes.get(..len)?).ok()?.trim();
    (!text.is_empty() && u64::try_from(len).ok()? <= MAX_FILE).then(|| SecretText::new(text.to_owned()))
}
