//! A failure within the provider, before it becomes a [`KekError`].
#![forbid(unsafe_code)]

use waxseal::kek::{KekError, KekErrorClass};

/// What to do with the session after a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum After {
    /// It is still good.
    Keep,
    /// It may be in any state, so the next call opens another.
    Drop,
    /// It is gone, and perhaps the login with it. The call was not made and is repeated once.
    Reconnect,
    /// The handle of the key is gone. The key is looked up again, and the call repeated once.
    FindKey,
    /// The token has no further session.
    NoSession,
}

/// A failure of one call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    pub(crate) class: KekErrorClass,
    pub(crate) message: String,
    /// Whether the token answered, or failed to answer.
    pub(crate) asked: bool,
    pub(crate) after: After,
    /// The token or the connection to it is gone. Restarting the module may find it again.
    pub(crate) is_lost: bool,
    /// Other code of the process finalised the module.
    pub(crate) is_ended: bool,
    /// Nothing at all was seen on the token, so it may be gone and not the key.
    pub(crate) is_bare: bool,
}

impl Failure {
    pub(crate) fn new(class: KekErrorClass, message: impl Into<String>) -> Self {
        let message = message.into();
        Self {
            class,
            message,
            asked: true,
            after: After::Keep,
            is_lost: false,
            is_ended: false,
            is_bare: false,
        }
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self::new(KekErrorClass::Unavailable, message)
    }

    pub(crate) fn misconfigured(message: impl Into<String>) -> Self {
        Self::new(KekErrorClass::Misconfigured, message)
    }

    pub(crate) fn denied(message: impl Into<String>) -> Self {
        Self::new(KekErrorClass::Denied, message)
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(KekErrorClass::Invalid, message)
    }

    pub(crate) fn without_asking(mut self) -> Self {
        self.asked = false;
        self
    }

    pub(crate) fn after(mut self, after: After) -> Self {
        self.after = after;
        self
    }

    pub(crate) fn lost(mut self) -> Self {
        self.is_lost = true;
        self
    }
}

impl From<Failure> for KekError {
    fn from(failure: Failure) -> Self {
        let error = Self::new(failure.class, failure.message);
        if failure.asked { error } else { error.without_asking() }
    }
}

/// The child of a fork inherits the module's memory, but neither its threads nor its sessions.
pub(crate) fn forked() -> Failure {
    let text = "the process forked since the PKCS#11 module was initialised; a child must start \
                anew (exec), or be forked before its first provider";
    Failure::misconfigured(text).without_asking()
}
