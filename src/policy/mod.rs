//! Policies decide who may do what. A policy is asked before each operation, even if the DEK is
//! cached.
//!
//! ```text
//!   operation ──► decision of this thread ──► cached decision ──► Policy (yours, Rego, OPA)
//! ```
//!
//! A cached DEK would serve anyone who asks. So policies decide for each operation, and decisions
//! are cached separately from the DEKs. This layer knows nothing about messages or key services.
//! docs/policy.md is the guide.
#![forbid(unsafe_code)]

mod asker;
mod decisions;
mod guard;
#[cfg(feature = "serde")]
mod json;
mod options;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

pub(crate) use guard::{Granted, Guard, Permission};
pub use options::PolicyOptions;

use crate::caller::Caller;
pub use crate::caller::{Action, AttributeValue};
use crate::context::EncryptionContext;
use crate::error::Error;
use crate::format::KekId;
pub use crate::runtime::BoxFuture;
use crate::sync::foreign::caught;

/// Decides who may do what.
///
/// **Anything but a clear allow is a denial**: an error, a panic, a late answer. The crate
/// `waxseal-policy` has implementations for Rego policies, in this process or on an OPA server.
/// Yours may decide in code:
///
/// ```
/// use waxseal::policy::{Action, BoxFuture, Decision, Policy, PolicyOptions, Question};
/// use waxseal::{Aad, Caller, EncryptionContext, Envelope, Error, ErrorKind, kek::local::LocalKek};
///
/// #[derive(Debug)]
/// struct AnalystsRead;
///
/// impl Policy for AnalystsRead {
///     fn decide<'a>(&'a self, question: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
///         let is_analyst = question.caller.is_some_and(|caller| caller.roles().any(|role| role == "analyst"));
///         let allowed = question.operation == Action::Encrypt || is_analyst;
///         let decision = if allowed { Decision::allow() } else { Decision::deny(["only analysts read"]) };
///         Box::pin(async { Ok(decision) })
///     }
/// }
///
/// # pollster::block_on(async {
/// # let kek = LocalKek::in_memory("test")?;
/// let envelope =
///     Envelope::builder().wrap_with(kek).policy(AnalystsRead, PolicyOptions::default()).build()?;
/// let context = EncryptionContext::new([("table", "reports")])?;
/// let sealed = envelope.encrypt(&context, Aad::empty(), b"Q3").await?;
///
/// let analyst = Caller::builder().role("analyst").build()?;
/// assert_eq!(&*envelope.acting_for(&analyst).decrypt(&context, Aad::empty(), &sealed).await?, b"Q3");
///
/// // The DEK is cached, but the policy still decides about each caller, or about none.
/// let intern = Caller::builder().role("intern").build()?;
/// let error = envelope.acting_for(&intern).decrypt(&context, Aad::empty(), &sealed).await.unwrap_err();
/// assert_eq!(error.kind(), ErrorKind::PolicyDenied);
/// assert_eq!(&*error.reasons()[0], "only analysts read");
/// assert!(envelope.decrypt(&context, Aad::empty(), &sealed).await.is_err());
/// # Ok::<(), Error>(()) }).unwrap();
/// ```
///
/// Its Debug output names it in [`Event::Configured`](crate::Event::Configured), so it must not
/// show a secret.
pub trait Policy: fmt::Debug + Send + Sync {
    /// Decides. The decision may depend only on the question and the time, until
    /// [`generation`](Self::generation) changes, because decisions are cached.
    ///
    /// # Errors
    /// Any error is a denial. [`ErrorKind::Unavailable`](crate::ErrorKind::Unavailable) and
    /// [`ErrorKind::Throttled`](crate::ErrorKind::Throttled) are outages, for which
    /// [`PolicyOptions::last_known_for`] may choose otherwise.
    fn decide<'a>(&'a self, question: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>>;

    /// Returns a number that changes whenever the rules or their data do. Decisions made under
    /// another number are dropped, and handles based on them end, even if the number returns. It is
    /// called for each operation, so it must be quick.
    fn generation(&self) -> u64 {
        0
    }
}

impl<P: Policy + ?Sized> Policy for Arc<P> {
    fn decide<'a>(&'a self, question: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        (**self).decide(question)
    }

    fn generation(&self) -> u64 {
        (**self).generation()
    }
}

/// Describes a policy and its options for the configuration event.
pub(crate) fn described(
    policy: Option<&(Arc<dyn Policy>, PolicyOptions)>,
) -> Vec<(&'static str, String)> {
    const LONGEST: usize = 512;
    let Some((policy, options)) = policy else { return Vec::new() };
    let name = caught(|| format!("{policy:?}")).unwrap_or_else(|| "its Debug panics".to_owned());
    let name = name.chars().take(LONGEST).collect();
    vec![("policy", name), ("policy_options", format!("{options:?}"))]
}

/// What a [`Policy`] decides about.
///
/// With the feature `serde` it is the input of a Rego policy:
///
/// ```json
/// {
///   "operation": "decrypt",
///   "domain": "orders",
///   "kek_ids": ["arn:aws:kms:eu-west-1:111122223333:key/1234"],
///   "context": { "tenant": "acme", "table": "cards" },
///   "caller": {
///     "service": "reporting",
///     "roles": ["analyst"],
///     "groups": ["emea"],
///     "source_address": "10.1.2.3",
///     "attributes": { "clearance": "confidential", "teams": ["a", "b"] }
///   },
///   "time": "2026-11-29T08:52:45Z",
///   "request_id": "4b0c6a1e"
/// }
/// ```
///
/// Unknown fields are left out. Empty lists are included.
#[derive(Clone, Copy)]
#[non_exhaustive]
pub struct Question<'a> {
    /// The operation.
    pub operation: Action,
    /// The data domain, if the envelope has one: [`PolicyOptions::domain`].
    pub domain: Option<&'a str>,
    /// The KEKs that the operation may use, as configured: to encrypt, those that wrap; to decrypt
    /// and rewrap, all KEKs of the envelope. They are not those that a message names, which anyone
    /// who can write messages chooses.
    pub kek_ids: &'a [KekId],
    /// The encryption context.
    pub context: &'a EncryptionContext,
    /// The caller. `None` if no caller was named.
    pub caller: Option<&'a Caller>,
    /// The time of the question. A decision is used for a while after it.
    pub time: SystemTime,
    /// The request id, if the caller has one and [`PolicyOptions::ignore_request_id`] is not set.
    /// Take it from here, not from the caller.
    pub request_id: Option<&'a str>,
}

impl<'a> Question<'a> {
    /// Makes a question without domain, KEKs, caller and request, at the current time. For tests of
    /// policies.
    #[must_use]
    pub fn new(operation: Action, context: &'a EncryptionContext) -> Self {
        let (domain, kek_ids, caller, request_id) = (None, &[][..], None, None);
        let time = SystemTime::now();
        Self { operation, domain, kek_ids, context, caller, time, request_id }
    }

    /// Sets the caller, and with it the request id.
    #[must_use]
    pub fn caller(mut self, caller: &'a Caller) -> Self {
        (self.caller, self.request_id) = (Some(caller), caller.request_id());
        self
    }

    /// Sets the data domain.
    #[must_use]
    pub fn domain(mut self, domain: &'a str) -> Self {
        self.domain = Some(domain);
        self
    }

    /// Sets the KEKs.
    #[must_use]
    pub fn kek_ids(mut self, kek_ids: &'a [KekId]) -> Self {
        self.kek_ids = kek_ids;
        self
    }

    /// Sets the time.
    #[must_use]
    pub fn time(mut self, time: SystemTime) -> Self {
        self.time = time;
        self
    }

    /// Returns the time in UTC in the form of RFC 3339. Empty for a time that it cannot express,
    /// such as one after the year 9999.
    #[must_use]
    pub fn time_rfc3339(&self) -> String {
        let nanos = |duration: Duration| i128::try_from(duration.as_nanos()).ok();
        let since_epoch = match self.time.duration_since(SystemTime::UNIX_EPOCH) {
            Ok(after) => nanos(after),
            Err(before) => nanos(before.duration()).map(|nanos| -nanos),
        };
        since_epoch
            .and_then(|nanos| OffsetDateTime::from_unix_timestamp_nanos(nanos).ok())
            .and_then(|time| time.format(&Rfc3339).ok())
            .unwrap_or_default()
    }
}

/// Omits the request id.
impl fmt::Debug for Question<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Question")
            .field("operation", &self.operation)
            .field("domain", &self.domain)
            .field("kek_ids", &self.kek_ids)
            .field("context", &self.context)
            .field("caller", &self.caller)
            .field("time", &self.time)
            .finish_non_exhaustive()
    }
}

/// The decision of a [`Policy`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Decision {
    is_allowed: bool,
    reasons: Arc<[Box<str>]>,
    revision: Option<Arc<str>>,
    valid_for: Option<Duration>,
}

impl Decision {
    /// The maximum number of reasons kept of a denial.
    pub const MAX_REASONS: usize = 32;
    /// The maximum size of a reason, and of a revision, in bytes. The rest is dropped.
    pub const MAX_REASON_BYTES: usize = 512;

    /// Allows the operation.
    #[must_use]
    pub fn allow() -> Self {
        Self { is_allowed: true, reasons: Arc::default(), revision: None, valid_for: None }
    }

    /// Denies the operation, for these reasons. They reach the caller in [`Error::reasons`].
    #[must_use]
    pub fn deny<R: AsRef<str>>(reasons: impl IntoIterator<Item = R>) -> Self {
        let reasons = reasons.into_iter().take(Self::MAX_REASONS);
        let reasons = reasons.map(|reason| cut(reason.as_ref()).into()).collect();
        Self { is_allowed: false, reasons, revision: None, valid_for: None }
    }

    /// Sets the revision of the policy that decided.
    #[must_use]
    pub fn with_revision(mut self, revision: impl AsRef<str>) -> Self {
        self.revision = Some(cut(revision.as_ref()).into());
        self
    }

    /// Sets how long the decision may be used, counted from the question, such as until the end of
    /// business hours. It shortens [`PolicyOptions::cache_for`], and no outage extends it. With 0
    /// it covers one operation, and no handle can be based on it.
    #[must_use]
    pub fn valid_for(mut self, duration: Duration) -> Self {
        self.valid_for = Some(duration);
        self
    }

    /// Returns whether the operation is allowed.
    #[must_use]
    pub fn is_allowed(&self) -> bool {
        self.is_allowed
    }

    /// Returns the reasons of a denial.
    #[must_use]
    pub fn reasons(&self) -> &[Box<str>] {
        &self.reasons
    }

    /// Returns the revision of the policy.
    #[must_use]
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }
}

/// Returns the beginning of a text, up to the maximum size.
fn cut(text: &str) -> &str {
    let end = text.floor_char_boundary(Decision::MAX_REASON_BYTES);
    text.get(..end).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_denial_that_is_endless_a_bounded_part_is_kept() {
        let reasons = std::iter::repeat_with(|| "\u{e9}".repeat(300));
        let decision = Decision::deny(reasons).with_revision("r".repeat(100_000));
        assert_eq!(decision.reasons().len(), Decision::MAX_REASONS);
        assert_eq!(decision.reasons()[0].len(), 512);
        assert_eq!(decision.revision().unwrap().len(), 512);
        assert_eq!(Decision::deny(["x".repeat(3) + &"\u{e9}".repeat(300)]).reasons()[0].len(), 511);
    }

    #[test]
    fn the_time_of_a_question_is_written_in_utc() {
        let context = EncryptionContext::empty();
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_764_406_365_500);
        let question = Question::new(Action::Decrypt, &context).time(at);
        assert_eq!(question.time_rfc3339(), "2025-11-29T08:52:45.5Z");
        let before = question.time(SystemTime::UNIX_EPOCH - Duration::from_secs(1));
        assert_eq!(before.time_rfc3339(), "1969-12-31T23:59:59Z");
        let far = SystemTime::UNIX_EPOCH + Duration::from_secs(1 << 50);
        assert_eq!(question.time(far).time_rfc3339(), "");
        let year_10_000 = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_800);
        assert_eq!(question.time(year_10_000).time_rfc3339(), "");
    }

    #[test]
    fn debug_of_a_question_has_no_request_id_and_no_address() {
        let context = EncryptionContext::empty();
        let caller = Caller::builder().source_address([10, 99, 2, 3]).build().unwrap();
        let caller = caller.with_request_id("req-7").unwrap();
        let shown = format!("{:?}", Question::new(Action::Decrypt, &context).caller(&caller));
        assert!(!shown.contains("req-7") && !shown.contains("10.99"), "{shown}");
    }
}
