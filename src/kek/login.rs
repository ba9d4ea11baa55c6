//! A provider's login to its key service.
#![forbid(unsafe_code)]

use std::time::Duration;

/// A provider's login to its key service: how often it logged in, and how long the login is valid.
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
    /// Logins, or loads of credentials, that succeeded.
    pub logins: u64,
    /// Logins, loads of credentials and renewals of a token that failed.
    pub failures: u64,
    /// How long the current token or credentials remain valid. 0 if they have expired. `None` if
    /// there are none, or their end is not known.
    pub ends_in: Option<Duration>,
}

impl Login {
    /// Makes a login without an end.
    #[must_use]
    pub fn new(logins: u64, failures: u64) -> Self {
        Self { logins, failures, ends_in: None }
    }

    /// Sets how long it remains valid.
    #[must_use]
    pub fn ends_in(mut self, left: Duration) -> Self {
        self.ends_in = Some(left);
        self
    }
}
