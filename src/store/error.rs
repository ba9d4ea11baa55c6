//! What a failure of a key store means.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::fmt;

use crate::error::{Error, ErrorKind, ShownCause};
use crate::kek::KekError;

/// What a failure of a [`KeyStore`](super::KeyStore) means. None of them says anything about a KEK,
/// and none evicts a cached key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum StoreErrorClass {
    /// The store could not be reached, or could not answer. The call may be retried.
    Unavailable,
    /// The store asks for fewer calls. The call may be retried, more slowly.
    Throttled,
    /// The store cannot be used until an operator acts: login, permission, schema, address.
    Misconfigured,
}

impl StoreErrorClass {
    pub(crate) fn kind(self) -> ErrorKind {
        match self {
            Self::Unavailable => ErrorKind::Unavailable,
            Self::Throttled => ErrorKind::Throttled,
            Self::Misconfigured => ErrorKind::Misconfigured,
        }
    }
}

/// A failure of a [`KeyStore`](super::KeyStore).
///
/// Its text is for people and contains no login and no wrapped key. The library adds the store's
/// name.
pub struct StoreError {
    class: StoreErrorClass,
    message: Cow<'static, str>,
    about_one_row: bool,
    cause: Option<ShownCause>,
}

impl StoreError {
    fn new(class: StoreErrorClass, message: impl Into<Cow<'static, str>>) -> Self {
        Self { class, message: message.into(), about_one_row: false, cause: None }
    }

    /// Makes an error of the class [`StoreErrorClass::Unavailable`].
    pub fn unavailable(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StoreErrorClass::Unavailable, message)
    }

    /// Makes an error of the class [`StoreErrorClass::Throttled`].
    pub fn throttled(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StoreErrorClass::Throttled, message)
    }

    /// Makes an error of the class [`StoreErrorClass::Misconfigured`].
    pub fn misconfigured(message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StoreErrorClass::Misconfigured, message)
    }

    /// Adds the cause. Its texts must be free of secrets. Unprintable characters are escaped.
    #[must_use]
    pub fn with_source(
        mut self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        self.cause = Some(ShownCause::of(&*source.into()));
        self
    }

    /// Marks the failure as one row's, such as a damaged row. Anyone who can write a message
    /// chooses which row is read, so this does not count against the store and opens no circuit
    /// breaker.
    #[must_use]
    pub fn about_one_row(mut self) -> Self {
        self.about_one_row = true;
        self
    }

    /// Returns what the failure means.
    #[must_use]
    pub fn class(&self) -> StoreErrorClass {
        self.class
    }
}

impl StoreError {
    /// Returns the same failure as an error of calls.
    pub(crate) fn into_call_error(self) -> KekError {
        let of_class = match self.class {
            StoreErrorClass::Unavailable => KekError::unavailable(self.message),
            StoreErrorClass::Throttled => KekError::throttled(self.message),
            StoreErrorClass::Misconfigured => KekError::misconfigured(self.message),
        };
        let failure = match self.cause {
            Some(cause) => of_class.with_source(cause),
            None => of_class,
        };
        if self.about_one_row { failure.on_the_way() } else { failure }
    }
}

/// For code that sets up a store and uses only [`Error`].
impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let of_class = Self::new(error.class.kind(), error.message);
        match error.cause {
            Some(cause) => of_class.with_source(cause),
            None => of_class,
        }
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", crate::error::Shown(&self.message))
    }
}

impl fmt::Debug for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreError")
            .field("class", &self.class)
            .field("message", &self.message)
            .field("cause", &self.cause)
            .finish()
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.cause.as_ref().map(|cause| cause as _)
    }
}
