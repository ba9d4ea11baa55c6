//! Whom KMS sees: credentials that are kept, renewed ahead and loaded apart from the calls that
//! wait for them, and what a failure to load them means.
//!
//! The SDK's own cache loads within the call that first needs the credentials, and gives up when
//! that call does: credentials that take longer than one try would never come. Here a task of its
//! own loads them.
//!
//! Sources: `CredentialsError` in aws-credential-types; the common errors of the AWS STS, IAM
//! Identity Center and SSO OIDC API References; what the credential providers of aws-config answer,
//! in their source.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use aws_credential_types::Credentials;
use aws_credential_types::provider::error::{CredentialsError, TokenError};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::identity::{
    Identity, IdentityCachePartition, IdentityFuture, ResolveCachedIdentity, ResolveIdentity, SharedIdentityResolver,
};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::config_bag::ConfigBag;
use aws_smithy_types::error::ErrorMetadata;
use futures_util::FutureExt;
use tokio::sync::watch;

use super::client::ProviderChainError;
use waxseal::kek::KekErrorClass;

use KekErrorClass::{Misconfigured, Throttled, Unavailable};

/// Credentials that end sooner are not used any more, as in the SDK.
const TOO_LATE: Duration = Duration::from_secs(10);
/// They are renewed in the background so long before, or in the last quarter of their life.
const AHEAD: Duration = Duration::from_secs(300);
/// Where credentials do not say when they end, as in the SDK.
const WITHOUT_END: Duration = Duration::from_secs(15 * 60);
/// No load takes longer.
const LONGEST_LOAD: Duration = Duration::from_secs(60);
/// One that takes so long may hang: whoever comes then has another begun beside it.
const SLOW_LOAD: Duration = Duration::from_secs(15);
/// After a refusal by KMS they are not loaded more often than this.
const AFTER_REFUSAL: Duration = Duration::from_secs(1);
/// Nor in the background more often than this.
const IN_BACKGROUND: Duration = Duration::from_secs(10);
/// An AWS client has one source of credentials, or two with other signatures.
const MOST_SOURCES: usize = 16;

type Answer = Result<Identity, Failed>;

/// Why credentials could not be loaded, for all that waited.
#[derive(Clone, Debug)]
struct Failed(Arc<BoxError>);

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

/// The credentials at hand, by where they come from. A clone is another handle to the same.
#[derive(Clone, Default)]
pub(super) struct Keeper(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    sources: HashMap<IdentityCachePartition, Source>,
    /// How often credentials came that are other ones.
    generation: u64,
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
    /// When its load began: one that was slow does not replace what a later one brought.
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

    /// Changes when other credentials come: who was refused looks whether there are others by now.
    pub(super) fn generation(&self) -> u64 {
        self.state().generation
    }

    /// KMS refused the credentials of that generation, which look good. Whether there are others
    /// now.
    ///
    /// # Errors
    /// The failure to load them.
    pub(super) async fn renew(&self, refused: u64) -> Result<bool, BoxError> {
        let loads: Vec<_> = {
            let mut state = self.state();
            if state.generation != refused {
                return Ok(true);
            }
            state.sources.iter_mut().filter_map(|(id, source)| self.again(*id, source, AFTER_REFUSAL)).collect()
        };
        for load in loads {
            load.wait().await?;
        }
        Ok(self.generation() != refused)
    }

    /// Loads what is at hand anew; `None` if that was done just now.
    fn again(&self, id: IdentityCachePartition, source: &mut Source, pause: Duration) -> Option<Loading> {
        if source.loading.is_none() {
            if source.tried.is_some_and(|tried| tried.elapsed() < pause) {
                return None;
            }
            source.tried = Some(Instant::now());
        }
        self.load(id, source)
    }

    /// The load that is on its way, or a new one. `None` outside a tokio runtime.
    fn load(&self, id: IdentityCachePartition, source: &mut Source) -> Option<Loading> {
        let on_its_way = source.loading.take().filter(|loading| {
            // One that ended without an answer ended with its runtime.
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

    fn keep(&self, id: IdentityCachePartition, components: &RuntimeComponents, asked: Instant, loaded: &Answer) {
        let now = now(components);
        let mut state = self.state();
        let State { sources, generation } = &mut *state;
        let Some(source) = sources.get_mut(&id) else { return };
        if source.loading.as_ref().is_some_and(|loading| loading.began <= asked) {
            source.loading = None;
        }
        let Ok(identity) = loaded else { return };
        if source.held.as_ref().is_some_and(|held| held.asked > asked && now + TOO_LATE < held.ends) {
            return;
        }
        if source.held.as_ref().is_none_or(|held| !is_same(&held.identity, identity)) {
            *generation += 1;
        }
        let ends = identity.expiration().unwrap_or(now + WITHOUT_END);
        let life = ends.duration_since(now).unwrap_or_default();
        // What does not say when it ends does not end: it is only looked at again.
        let ahead = if identity.expiration().is_some() { AHEAD.min(life / 4).max(TOO_LATE) } else { TOO_LATE };
        let renew_from = ends.checked_sub(ahead).unwrap_or(now);
        source.held = Some(Held { identity: identity.clone(), asked, renew_from, ends });
    }

    /// What is at hand at `now`, and what there is to wait for where nothing is.
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
        let at_hand = source.held.as_ref().filter(|held| now + TOO_LATE < held.ends);
        match at_hand.map(|held| (held.identity.clone(), now >= held.renew_from)) {
            Some((identity, is_due)) => {
                if is_due {
                    self.again(id, source, IN_BACKGROUND);
                }
                (Some(identity), None)
            }
            None => (None, self.load(id, source)),
        }
    }

    /// In their last seconds, or where they do not say when they end, and no others can be had: better than none.
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
                    Err(error) => self.nearly_ended(id, now(components)).ok_or_else(|| error.into()),
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
        Some((credentials.access_key_id().to_owned(), credentials.session_token().map(ToOwned::to_owned)))
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
            None => Err(Failed(Arc::new(CredentialsError::provider_timed_out(LONGEST_LOAD).into()))),
        },
    }
}

// --- what a failure means

/// How those who give out credentials refuse, and how they say that they are in trouble. What is in
/// no row is an outage.
const CODES: &[(&str, KekErrorClass)] = &[
    ("AccessDenied", Misconfigured),
    ("AccessDeniedException", Misconfigured),
    ("AssumeRoleUnauthorizedAccess", Misconfigured),
    ("AuthorizationHeaderMalformed", Misconfigured),
    ("ExpiredToken", Misconfigured),
    ("ExpiredTokenException", Misconfigured),
    ("ForbiddenException", Misconfigured),
    ("IDPRejectedClaim", Misconfigured),
    ("IDPRejectedClaimException", Misconfigured),
    ("IncompleteSignature", Misconfigured),
    ("InvalidAction", Misconfigured),
    ("InvalidClientException", Misconfigured),
    ("InvalidClientTokenId", Misconfigured),
    ("InvalidGrantException", Misconfigured),
    ("InvalidIdentityToken", Misconfigured),
    ("InvalidIdentityTokenException", Misconfigured),
    ("InvalidParameterValue", Misconfigured),
    ("InvalidRequestException", Misconfigured),
    ("InvalidSignatureException", Misconfigured),
    ("MalformedPolicyDocument", Misconfigured),
    ("MalformedPolicyDocumentException", Misconfigured),
    ("MissingAuthenticationToken", Misconfigured),
    ("NotAuthorized", Misconfigured),
    ("OptInRequired", Misconfigured),
    ("PackedPolicyTooLarge", Misconfigured),
    ("PackedPolicyTooLargeException", Misconfigured),
    ("RegionDisabledException", Misconfigured),
    ("RequestExpired", Misconfigured),
    ("ResourceNotFoundException", Misconfigured),
    ("SignatureDoesNotMatch", Misconfigured),
    ("UnauthorizedClientException", Misconfigured),
    ("UnauthorizedException", Misconfigured),
    ("UnrecognizedClientException", Misconfigured),
    ("ValidationError", Misconfigured),
    ("ValidationException", Misconfigured),
    ("RequestLimitExceeded", Throttled),
    ("RequestThrottled", Throttled),
    ("SlowDown", Throttled),
    ("SlowDownException", Throttled),
    ("ThrottledException", Throttled),
    ("Throttling", Throttled),
    ("ThrottlingException", Throttled),
    ("TooManyRequestsException", Throttled),
    ("IDPCommunicationError", Unavailable),
    ("IDPCommunicationErrorException", Unavailable),
    ("InternalError", Unavailable),
    ("InternalFailure", Unavailable),
    ("InternalServerException", Unavailable),
    ("ServiceUnavailable", Unavailable),
    ("ServiceUnavailableException", Unavailable),
];

/// How the SDK says it where there is no code: the words, the class, and what is shown.
const WORDS: &[(&str, KekErrorClass, &str)] = &[
    ("token has expired and cannot be refreshed", Misconfigured, "the sign-in has expired"),
    ("token is expired", Misconfigured, "the sign-in has expired"),
    ("request forbidden: imds is disabled", Misconfigured, "the instance's metadata service forbids it"),
];

/// What is known of a failure to load credentials.
pub(super) struct Refusal {
    pub(super) class: KekErrorClass,
    /// Fixed words, a code and a status: never what a source says of itself, which may be the
    /// output of a program.
    pub(super) text: String,
    /// Somebody was asked for credentials.
    pub(super) was_asked: bool,
}

/// What is known so far, the strongest sign first.
#[derive(Default)]
struct Signs {
    code: Option<(String, Option<KekErrorClass>)>,
    words: Option<(KekErrorClass, &'static str)>,
    status: Option<u16>,
    line: Option<String>,
    file: Option<io::ErrorKind>,
}

/// `None` if the failure was none of loading credentials.
pub(super) fn refusal(error: &(dyn StdError + 'static)) -> Option<Refusal> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(failed) = error.downcast_ref::<Failed>() {
            let inner: &(dyn StdError + 'static) = &**failed.0;
            return Some(match inner.downcast_ref::<CredentialsError>() {
                Some(error) => of_credentials(error),
                None => of_anything(inner),
            });
        }
        if let Some(error) = error.downcast_ref::<CredentialsError>() {
            return Some(of_credentials(error));
        }
        cause = error.source();
    }
    None
}

fn of_anything(error: &(dyn StdError + 'static)) -> Refusal {
    let mut signs = Signs::default();
    signs.read(error);
    signs.into_refusal("loading credentials failed", None)
}

fn of_credentials(error: &CredentialsError) -> Refusal {
    let mut signs = Signs::default();
    signs.read(error);
    match error {
        CredentialsError::CredentialsNotLoaded(_) => {
            if signs.line.is_none() && signs.status.is_none() && signs.code.is_none() {
                let text = "no credentials are configured".to_owned();
                return Refusal { class: Misconfigured, text, was_asked: false };
            }
            signs.into_refusal("no credentials were found", Some(Misconfigured))
        }
        CredentialsError::InvalidConfiguration(_) => {
            signs.into_refusal("the credentials' configuration is not valid", Some(Misconfigured))
        }
        CredentialsError::ProviderTimedOut(_) => {
            signs.line.get_or_insert_with(|| "no answer in time".to_owned());
            signs.into_refusal("loading credentials failed", None)
        }
        _ => signs.into_refusal("loading credentials failed", None),
    }
}

impl Signs {
    /// Reads an error, its causes, and the attempts of a chain of providers.
    fn read(&mut self, error: &(dyn StdError + 'static)) {
        let mut cause = Some(error);
        // Nobody nests so deep; a source that is its own cause does.
        for _ in 0..64 {
            let Some(error) = cause else { return };
            self.read_one(error);
            if let Some(chain) = error.downcast_ref::<ProviderChainError<CredentialsError>>() {
                for attempt in chain.attempts() {
                    self.read(attempt.error());
                }
                return;
            }
            if let Some(chain) = error.downcast_ref::<ProviderChainError<TokenError>>() {
                for attempt in chain.attempts() {
                    self.read(attempt.error());
                }
                return;
            }
            cause = error.source();
        }
    }

    fn read_one(&mut self, error: &(dyn StdError + 'static)) {
        if let Some(meta) = error.downcast_ref::<ErrorMetadata>() {
            if let Some(code) = meta.code().filter(|code| is_code(code)) {
                self.code = Some((code.to_owned(), class_of(code)));
            }
            return;
        }
        if let Some(connector) = error.downcast_ref::<ConnectorError>() {
            if connector.is_timeout() {
                self.line.get_or_insert_with(|| "no answer in time".to_owned());
            } else if connector.is_io() {
                self.line.get_or_insert_with(|| "no connection".to_owned());
            }
            return;
        }
        if let Some(io) = error.downcast_ref::<io::Error>() {
            match self.line.as_mut() {
                Some(line) if line == "no connection" => *line = format!("no connection: {}", io.kind()),
                Some(_) => {}
                None => self.file = Some(io.kind()),
            }
            return;
        }
        if let Some(error) = error.downcast_ref::<CredentialsError>()
            && matches!(error, CredentialsError::ProviderTimedOut(_))
        {
            self.line.get_or_insert_with(|| "no answer in time".to_owned());
            return;
        }
        // Display only: Debug may hold what was sent.
        self.read_text(&error.to_string());
    }

    fn read_text(&mut self, text: &str) {
        if self.code.is_none() {
            let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
            let known = words.find_map(|word| class_of(word).map(|class| (word.to_owned(), Some(class))));
            self.code = known;
        }
        if self.words.is_none() {
            let text = text.to_lowercase();
            let known = WORDS.iter().find(|(words, ..)| text.contains(words));
            self.words = known.map(|(_, class, shown)| (*class, *shown));
        }
        // "StatusCode(503)" of a container's endpoint, "(code: 503)" of the instance's.
        self.status =
            self.status.or_else(|| status_after(text, "StatusCode(").or_else(|| status_after(text, "(code: ")));
        if self.line.is_none() && text.contains("could not communicate with IMDS") {
            self.line = Some("no connection".to_owned());
        }
    }

    /// `otherwise` is the class where nothing says anything else.
    fn into_refusal(self, what: &str, otherwise: Option<KekErrorClass>) -> Refusal {
        let by_status = self.status.and_then(|status| match status {
            429 => Some(Throttled),
            408 | 500.. => Some(Unavailable),
            400..500 => Some(Misconfigured),
            _ => None,
        });
        let by_line = self.line.as_ref().map(|_| Unavailable);
        let by_file = self.file.and_then(|kind| match kind {
            io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => Some(Misconfigured),
            _ => None,
        });
        let by_code = self.code.as_ref().and_then(|(_, class)| *class);
        let by_words = self.words.map(|(class, _)| class);
        let signs = [by_code, by_words, by_status, by_line, by_file, otherwise];
        let class = signs.into_iter().flatten().next().unwrap_or(Unavailable);
        let mut text = what.to_owned();
        let status = self.status.filter(|_| self.code.is_none()).map(|status| format!("status {status}"));
        let file = self.file.map(|kind| kind.to_string());
        let shown = self.code.map(|(code, _)| code).or(self.words.map(|(_, shown)| shown.to_owned()));
        for sign in [shown, status, self.line, file].into_iter().flatten() {
            text = format!("{text}: {sign}");
        }
        Refusal { class, text, was_asked: true }
    }
}

fn class_of(code: &str) -> Option<KekErrorClass> {
    CODES.iter().find(|(known, _)| *known == code).map(|(_, class)| *class)
}

fn is_code(code: &str) -> bool {
    (1..=64).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
}

fn status_after(text: &str, mark: &str) -> Option<u16> {
    let (_, rest) = text.split_once(mark)?;
    let digits: String = rest.chars().take(3).collect();
    digits.parse().ok().filter(|status| (100..600).contains(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(error: CredentialsError) -> (KekErrorClass, String) {
        let refusal = of_credentials(&error);
        (refusal.class, refusal.text)
    }

    #[test]
    fn an_outage_of_a_source_is_one_and_a_refusal_is_an_operator_s_matter() {
        for (class, shown, error) in [
            (Unavailable, "failed", CredentialsError::provider_error("a 503 from STS")),
            (Unavailable, "503", CredentialsError::provider_error("Non-success status: StatusCode(503)")),
            (Unavailable, "500", CredentialsError::provider_error("error response from IMDS (code: 500). x")),
            (Throttled, "429", CredentialsError::provider_error("Non-success status: StatusCode(429)")),
            (Misconfigured, "403", CredentialsError::provider_error("Non-success status: StatusCode(403)")),
            (Unavailable, "no answer in time", CredentialsError::provider_timed_out(Duration::from_secs(5))),
            (Misconfigured, "AccessDenied", CredentialsError::provider_error("unhandled error (AccessDenied)")),
            (Misconfigured, "ExpiredToken", CredentialsError::provider_error("failed [ExpiredToken]: it is")),
            (Throttled, "Throttling", CredentialsError::provider_error("unhandled error (Throttling)")),
            (Unavailable, "InternalFailure", CredentialsError::provider_error("unhandled error (InternalFailure)")),
            (Misconfigured, "configured", CredentialsError::not_loaded("no role on this machine")),
            (Misconfigured, "valid", CredentialsError::invalid_configuration("a loop of profiles")),
            (Misconfigured, "not found", CredentialsError::provider_error(io::Error::from(io::ErrorKind::NotFound))),
            (
                Unavailable,
                "no connection: connection refused",
                CredentialsError::unhandled(ConnectorError::io(
                    io::Error::from(io::ErrorKind::ConnectionRefused).into(),
                )),
            ),
            (Unavailable, "no connection", CredentialsError::not_loaded(ConnectorError::io("closed".into()))),
            (Unavailable, "no answer in time", CredentialsError::unhandled(ConnectorError::timeout("late".into()))),
        ] {
            let (found, text) = of(error);
            assert_eq!(found, class, "{text}");
            assert!(text.contains(shown), "{text}");
        }
    }

    #[test]
    fn a_code_that_a_service_names_is_shown_and_one_that_is_not_known_is_no_refusal() {
        let named = |code: &str| {
            let meta = ErrorMetadata::builder().code(code).message("the secret").build();
            of(CredentialsError::provider_error(meta))
        };
        assert_eq!(named("AccessDenied"), (Misconfigured, "loading credentials failed: AccessDenied".to_owned()));
        assert_eq!(named("BrandNew"), (Unavailable, "loading credentials failed: BrandNew".to_owned()));
        assert_eq!(named("a secret\n"), (Unavailable, "loading credentials failed".to_owned()));
    }

    #[test]
    fn nothing_that_a_source_says_is_passed_on() {
        let (_, text) = of(CredentialsError::provider_error("exited with 1. Stderr: token=hunter2 AccessDenied"));
        assert_eq!(text, "loading credentials failed: AccessDenied");
    }

    #[test]
    fn the_codes_are_each_there_once() {
        let mut codes: Vec<_> = CODES.iter().map(|(code, _)| code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), CODES.len());
    }
}
