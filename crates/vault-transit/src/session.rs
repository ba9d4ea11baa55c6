//! A token with its lifetime, and the number of logins.
#![forbid(unsafe_code)]

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::transport::Token;
use waxseal::kek::Login;
use waxseal::kek::toolkit::jitter;

/// A token and its lifetime.
pub(crate) struct Session {
    /// `None` if something in between adds it.
    pub(crate) token: Option<Token>,
    /// Taken before the request that gave it, so that it never expires earlier than assumed here.
    pub(crate) since: Instant,
    /// `None` if it does not expire, or its expiry is not known.
    pub(crate) lease: Option<Duration>,
    /// The lease of the login. A renewal that gives less has reached the token's maximum lifetime.
    pub(crate) first_lease: Option<Duration>,
    pub(crate) renewable: bool,
    /// A login of this provider made it and nobody else has it, so it is revoked when it is no
    /// longer needed.
    pub(crate) is_ours: bool,
    /// A call with it succeeded.
    pub(crate) worked: AtomicBool,
}

impl Session {
    pub(crate) fn new(token: Option<Token>, since: Instant, seconds: u64, renewable: bool) -> Self {
        let lease = (seconds > 0).then(|| Duration::from_secs(seconds));
        let worked = AtomicBool::new(false);
        Self { token, since, lease, first_lease: lease, renewable, is_ours: false, worked }
    }

    pub(crate) fn has_token_of(&self, other: &Self) -> bool {
        is_same(self.token.as_ref(), other.token.as_ref())
    }

    pub(crate) fn is_over(&self) -> bool {
        self.lease.is_some_and(|lease| self.since.elapsed() >= lease)
    }

    /// Returns when to renew it: after about half of the lease, and not in all processes at once.
    pub(crate) fn due_in(&self) -> Option<Duration> {
        let spread = jitter() * 0.1;
        self.lease.map(|lease| lease.mul_f64(0.6 - spread).saturating_sub(self.since.elapsed()))
    }

    pub(crate) fn left(&self) -> Duration {
        self.lease.map_or(Duration::MAX, |lease| lease.saturating_sub(self.since.elapsed()))
    }
}

/// Counts logins.
#[derive(Default)]
pub(crate) struct Logins {
    succeeded: AtomicU64,
    failed: AtomicU64,
}

impl Logins {
    pub(crate) fn count(&self, is_success: bool) {
        let counted = if is_success { &self.succeeded } else { &self.failed };
        counted.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the counts with the remaining time of the current token.
    pub(crate) fn shown(&self, current: Option<&Session>) -> Login {
        let [succeeded, failed] =
            [&self.succeeded, &self.failed].map(|n| n.load(Ordering::Relaxed));
        let login = Login::new(succeeded, failed);
        match current.filter(|session| session.lease.is_some()) {
            Some(session) => login.ends_in(session.left()),
            None => login,
        }
    }
}

pub(crate) fn is_same(one: Option<&Token>, other: Option<&Token>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => one.is(other),
        (None, None) => true,
        _ => false,
    }
}
