//! What a provider says went wrong.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Shown, ShownCause};

/// What the failure of a key service means for the DEKs that depend on it. The whole handling of outages and revocations rests
/// on providers getting this right.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum KekErrorClass {
    /// Not reachable, not answering, or answering with something unknown. May be retried, may be ridden out.
    Unavailable,
    /// Asked for fewer calls. As unavailable, but retried more slowly.
    Throttled,
    /// Refused: no permission, KEK disabled, pending deletion or deleted. Never ridden out.
    Denied,
    /// This wrapped key, or this context with it, is not right. Says nothing about any other.
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
/// The message is shown to operators: it holds no key bytes and no credential. It may quote a
/// server: what is not printable is escaped in Display and in Debug.
#[derive(thiserror::Error)]
#[error("{class}: {}", Shown(message))]
pub struct KekError {
    class: KekErrorClass,
    message: Cow<'static, str>,
    retry_after: Option<Duration>,
    /// The key service was asked: this is its answer, or its silence.
    asked: bool,
    /// This process made no call because it makes as many as it may.
    over_budget: bool,
    /// Something between this process and the key service refused this one request.
    on_the_way: bool,
    cause: Option<Box<dyn std::error::Error + Send + Sync>>,
    /// The cause as whoever prints the chain of sources gets to see it.
    #[source]
    shown_cause: Option<Box<ShownCause>>,
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
    /// An error of this class.
    pub fn new(class: KekErrorClass, message: impl Into<Cow<'static, str>>) -> Self {
        Self {
            class,
            message: message.into(),
            retry_after: None,
            asked: true,
            over_budget: false,
            on_the_way: false,
            cause: None,
            shown_cause: None,
        }
    }

    /// [`KekErrorClass::Unavailable`].
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(KekErrorClass::Unavailable, message)
    }

    /// [`KekErrorClass::Throttled`].
    pub fn throttled(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(KekErrorClass::Throttled, message)
    }

    /// [`KekErrorClass::Denied`].
    pub fn denied(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(KekErrorClass::Denied, message)
    }

    /// [`KekErrorClass::Invalid`].
    pub fn invalid(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(KekErrorClass::Invalid, message)
    }

    /// [`KekErrorClass::Misconfigured`].
    pub fn misconfigured(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(KekErrorClass::Misconfigured, message)
    }

    /// Adds the cause. Its Debug and Display must be as free of secrets as the message. As a
    /// [`source`](std::error::Error::source) it is shown with what is not printable escaped;
    /// [`cause`](Self::cause) gives it as it is.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        let cause = source.into();
        self.shown_cause = Some(Box::new(ShownCause::of(&*cause)));
        self.cause = Some(cause);
        self
    }

    /// The cause itself, for whoever knows its type.
    #[must_use]
    pub fn cause(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
        self.cause.as_deref()
    }

    /// How long the key service wants to be left alone before another try.
    #[must_use]
    pub fn with_retry_after(mut self, wait: Duration) -> Self {
        self.retry_after = Some(wait);
        self
    }

    /// How long the key service wants to be left alone, if it said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after
    }

    /// Says that the key service was not asked: the provider decided this by itself, from the bytes or from what it
    /// knew before. Such a failure is no sign that the service is alive or down. Without it, an error counts as
    /// the service's own answer, or as its silence.
    #[must_use]
    pub fn without_asking(mut self) -> Self {
        self.asked = false;
        self
    }

    /// Whether the key service was asked: see [`without_asking`](Self::without_asking).
    #[must_use]
    pub fn was_asked(&self) -> bool {
        self.asked
    }

    /// Returns the message without the class that `Display` puts before it, for a provider that puts
    /// the failure of something else into its own. What is not printable in it is not escaped.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What the failure means.
    #[must_use]
    pub fn class(&self) -> KekErrorClass {
        self.class
    }
}

impl KekError {
    /// For a call that was not made because of a [`CallBudget`](crate::CallBudget).
    pub(crate) fn over_budget(message: String) -> Self {
        Self { over_budget: true, ..Self::throttled(message).without_asking() }
    }

    /// Said by something on the way to the key service, of this request: whoever writes messages may have chosen what is in it.
    #[must_use]
    pub fn on_the_way(mut self) -> Self {
        self.on_the_way = true;
        self
    }

    /// Says nothing of the key service, whether it is alive or down.
    pub(crate) fn is_from_the_way(&self) -> bool {
        self.on_the_way
    }

    /// Says nothing of the key service: it is this process that was too busy.
    pub(crate) fn is_over_budget(&self) -> bool {
        self.over_budget
    }

    pub(crate) fn is_worth_a_retry(&self) -> bool {
        self.asked && matches!(self.class, KekErrorClass::Unavailable | KekErrorClass::Throttled)
    }

    /// Among several failures: the smallest leaves most hope.
    pub(crate) fn hope(&self) -> u8 {
        match self.class {
            KekErrorClass::Unavailable => 0,
            KekErrorClass::Throttled => 1,
            KekErrorClass::Misconfigured => 2,
            KekErrorClass::Denied => 3,
            KekErrorClass::Invalid => 4,
        }
    }

    /// Says how often it was tried, where that was more than once.
    pub(crate) fn after(mut self, tries: u32) -> Self {
        if tries > 1 {
            self.message = format!("{} ({tries} tries)", self.message).into();
        }
        self
    }

    /// As [`into_error`](Self::into_error), for what wraps a new DEK: there is no message yet that an answer could tell anything
    /// of, so *invalid* keeps its text.
    pub(crate) fn into_error_of_wrapping(self, detail: String) -> Error {
        self.into_error_of_kind(detail)
    }

    /// The detail has the message already, so the cause beneath it is the source.
    fn into_error_of_kind(self, detail: String) -> Error {
        let error = Error::new(self.class.kind(), detail);
        match self.shown_cause {
            Some(cause) => error.with_source(cause),
            None => error,
        }
    }

    pub(crate) fn into_error(self, detail: String) -> Error {
        match self.class {
            // Opaque, like every other way of not belonging together.
            KekErrorClass::Invalid => Error::invalid(),
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
