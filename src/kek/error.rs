//! Errors of providers.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Shown, ShownCause};

/// What the failure of a key service means for the DEKs that depend on it. The handling of outages
/// and revocations depends on providers getting this right.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum KekErrorClass {
    /// Unreachable, not answering, or answering with something unknown. The call may be retried,
    /// and DEKs may be served stale.
    Unavailable,
    /// The service asked for fewer calls. Like unavailable, but retried more slowly.
    Throttled,
    /// Refused: no permission, KEK disabled, pending deletion or deleted. DEKs are never served
    /// stale.
    Denied,
    /// This wrapped key is wrong, or does not belong to this context. It says nothing about others.
    Invalid,
    /// An operator must act: login refused, credentials expired, store disconnected by mistake.
    Misconfigured,
}

impl KekErrorClass {
    pub(crate) fn kind(self) -> ErrorKind {
        match self {
            Self::Unavailable => ErrorKind::Unavailable,
            Self::Throttled => ErrorKind::Throttled,
            Self::Denied => ErrorKind::Denied,
            Self::Invalid => ErrorKind::Invalid,
            Self::Misconfigured => ErrorKind::Misconfigured,
        }
    }
}

impl fmt::Display for KekErrorClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unavailable => "unavailable",
            Self::Throttled => "throttled",
            Self::Denied => "denied",
            Self::Invalid => "invalid",
            Self::Misconfigured => "misconfigured",
        })
    }
}

/// The failure of one call to a key service.
///
/// The message is shown to operators. It contains no key bytes and no credential. It may quote a
/// server, so Display and Debug escape unprintable characters. Clones share the cause: the items of
/// a batch that failed as a whole share one failure.
#[derive(Clone, thiserror::Error)]
#[error("{class}: {}", Shown(message))]
pub struct KekError {
    class: KekErrorClass,
    message: Cow<'static, str>,
    retry_after: Option<Duration>,
    /// Whether the key service was asked, so that this is its response or its silence.
    asked: bool,
    /// This process made no call because its budget was used up.
    over_budget: bool,
    /// Something between this process and the key service refused this one request.
    on_the_way: bool,
    /// Set if the failure has its own kind, whose text reveals nothing about a mismatch.
    shown_as: Option<ErrorKind>,
    cause: Option<Arc<dyn std::error::Error + Send + Sync>>,
    /// The cause as it appears in the chain of sources.
    #[source]
    shown_cause: Option<Arc<ShownCause>>,
}

impl fmt::Debug for KekError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KekError")
            .field("class", &self.class)
            .field("message", &self.message)
            .field("retry_after", &self.retry_after)
            .field("asked", &self.asked)
            .field("source", &self.shown_cause)
            .finish()
    }
}

impl KekError {
    /// Makes an error of this class.
    pub fn new(class: KekErrorClass, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            class,
            message: message.into(),
            retry_after: None,
            asked: true,
            over_budget: false,
            on_the_way: false,
            shown_as: None,
            cause: None,
            shown_cause: None,
        }
    }

    /// Makes an error of the class [`KekErrorClass::Unavailable`].
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(KekErrorClass::Unavailable, message)
    }

    /// Makes an error of the class [`KekErrorClass::Throttled`].
    pub fn throttled(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(KekErrorClass::Throttled, message)
    }

    /// Makes an error of the class [`KekErrorClass::Denied`].
    pub fn denied(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(KekErrorClass::Denied, message)
    }

    /// Makes an error of the class [`KekErrorClass::Invalid`].
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(KekErrorClass::Invalid, message)
    }

    /// Makes an error of the class [`KekErrorClass::Misconfigured`].
    pub fn misconfigured(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(KekErrorClass::Misconfigured, message)
    }

    /// Adds the cause. Its Debug and Display must be as free of secrets as the message. As a
    /// [`source`](std::error::Error::source) it is shown with unprintable characters escaped.
    /// [`cause`](Self::cause) returns it unchanged.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        let cause = source.into();
        self.shown_cause = Some(Arc::new(ShownCause::of(&*cause)));
        self.cause = Some(cause.into());
        self
    }

    /// Returns the cause itself, for downcasting.
    #[must_use]
    pub fn cause(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
        self.cause.as_deref()
    }

    /// Sets how long the key service asks to wait before another try.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// Returns how long the key service asks to wait, if it said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Marks the error as one for which the key service was not asked: the provider decided it from
    /// the bytes or from what it already knew. Such a failure does not show whether the service is
    /// up. Without this call, an error counts as the service's own response, or as its silence.
    #[must_use]
    pub fn without_asking(mut self) -> Self {
        self.asked = false;
        self
    }

    /// Returns whether the key service was asked: see [`without_asking`](Self::without_asking).
    #[must_use]
    pub fn was_asked(&self) -> bool {
        self.asked
    }

    /// Returns the message without the class that `Display` adds before it, for a provider that
    /// includes it in its own message. Unprintable characters in it are not escaped.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns what the failure means.
    #[must_use]
    pub fn class(&self) -> KekErrorClass {
        self.class
    }
}

impl KekError {
    /// Makes the error of a call that was not made because of a [`CallBudget`](crate::CallBudget).
    pub(crate) fn over_budget(message: String) -> Self {
        Self { over_budget: true, ..Self::throttled(message).without_asking() }
    }

    /// Makes an error of the class [`KekErrorClass::Invalid`] that is shown as another kind, with
    /// its text, which does not say whether a message and a context belong together.
    pub(crate) fn invalid_shown_as(kind: ErrorKind, message: String) -> Self {
        Self { shown_as: Some(kind), ..Self::invalid(message) }
    }

    /// Marks the error as a refusal of this one request by something between this process and the
    /// key service. The content of a request may come from an attacker, so this does not count
    /// against the service.
    ///
    /// Only the key service may deny: [`KekErrorClass::Denied`] becomes
    /// [`KekErrorClass::Misconfigured`], so a gateway that refuses ends no DEK.
    #[must_use]
    pub fn on_the_way(mut self) -> Self {
        self.on_the_way = true;
        if self.class == KekErrorClass::Denied {
            self.class = KekErrorClass::Misconfigured;
        }
        self
    }

    /// Whether an intermediary caused it, so that it does not show whether the service is up.
    pub(crate) fn is_from_the_way(&self) -> bool {
        self.on_the_way
    }

    /// Whether this process was too busy, so that it says nothing about the key service.
    pub(crate) fn is_over_budget(&self) -> bool {
        self.over_budget
    }

    pub(crate) fn is_worth_a_retry(&self) -> bool {
        self.asked && matches!(self.class, KekErrorClass::Unavailable | KekErrorClass::Throttled)
    }

    /// Ranks failures. The lowest rank is the least severe, and decides among several.
    pub(crate) fn severity_rank(&self) -> u8 {
        match self.class {
            KekErrorClass::Unavailable => 0,
            KekErrorClass::Throttled => 1,
            KekErrorClass::Misconfigured => 2,
            KekErrorClass::Denied => 3,
            KekErrorClass::Invalid => 4,
        }
    }

    /// Adds the number of tries to the message if there was more than one.
    pub(crate) fn after(mut self, tries: u32) -> Self {
        if tries > 1 {
            self.message = format!("{} ({tries} tries)", self.message).into();
        }
        self
    }

    /// Does the same as [`into_error`](Self::into_error), for wrapping a new DEK. No message exists
    /// yet that the text could reveal anything about, so *invalid* keeps its text.
    pub(crate) fn into_error_of_wrapping(self, detail: String) -> Error {
        self.into_error_of_kind(detail)
    }

    /// The detail already contains the message, so the source is the cause beneath it.
    fn into_error_of_kind(self, detail: String) -> Error {
        let error = Error::new(self.shown_as.unwrap_or(self.class.kind()), detail);
        match self.cause {
            Some(cause) => error.with_cause(cause),
            None => error,
        }
    }

    pub(crate) fn into_error(self, detail: String) -> Error {
        match self.class {
            // Opaque, like every other mismatch.
            KekErrorClass::Invalid if self.shown_as.is_none() => Error::invalid(),
            _ => self.into_error_of_kind(detail),
        }
    }
}

impl From<KekError> for Error {
    fn from(error: KekError) -> Self {
        let detail = error.message.clone().into_owned();
        error.into_error(detail)
    }
}

#[cfg(test)]
mod tests {
    use super::{KekError, KekErrorClass};

    #[test]
    fn a_refusal_on_the_way_is_no_denial() {
        for (class, on_the_way) in [
            (KekErrorClass::Denied, KekErrorClass::Misconfigured),
            (KekErrorClass::Invalid, KekErrorClass::Invalid),
            (KekErrorClass::Unavailable, KekErrorClass::Unavailable),
        ] {
            assert_eq!(KekError::new(class, "403").on_the_way().class(), on_the_way);
        }
    }
}
