//! How a provider is logged in to its key service.
#![forbid(unsafe_code)]

use std::time::Duration;

/// How a provider is logged in to its key service: how often it did, and how long that still holds.
/// [`KekProvider::login`](super::KekProvider::login) returns it.
///
/// ```
/// use std::time::Duration;
/// use waxseal::kek::Login;
///
/// let login = Login::new(3, 1).ends_in(Duration::from_secs(900));
/// assert_eq!((login.logins, login.failures), (3, 1));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Login {
    /// Logins that succeeded, or loads of credentials.
    pub logins: u64,
    /// Those that failed, and renewals of a token that failed.
    pub failures: u64,
    /// How long the current token or credentials can still be used. 0 if they have ended. `None` if
    /// there are none, or their end is not known.
    pub ends_in: Option<Duration>,
}

impl Login {
    /// Makes one without an end.
    #[must_use]
    pub fn new(logins: u64, failures: u64) -> Self {
        Self { logins, failures, ends_in: None }
    }

    /// Sets how long it can still be used.
    #[must_use]
    pub fn ends_in(mut self, left: Duration) -> Self {
        self.ends_in = Some(left);
        self
    }
}
