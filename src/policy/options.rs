//! How a policy is asked, and how long its decisions are used.
#![forbid(unsafe_code)]

use std::time::Duration;

use crate::duration;
use crate::error::{Error, ErrorKind};

const DEFAULT_CACHE_FOR: Duration = Duration::from_secs(30);
const DEFAULT_MAX_DECISIONS: u64 = 10_000;
const HARD_MAX_DECISIONS: u64 = 1 << 20;
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(1);
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);
/// The same limit as for DEKs: a revoked permission works for a day at most.
const LONGEST_LAST_KNOWN: Duration = Duration::from_secs(24 * 60 * 60);

/// Options of [`EnvelopeBuilder::policy`](crate::EnvelopeBuilder::policy). `build` refuses a value
/// out of range.
///
/// ```
/// use std::time::Duration;
/// use waxseal::policy::PolicyOptions;
///
/// let options = PolicyOptions::default()
///     .domain("orders")
///     .cache_for(Duration::from_secs(10))
///     .last_known_for(Duration::from_secs(300));
/// ```
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[must_use]
pub struct PolicyOptions {
    domain: Option<Box<str>>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration"))]
    cache_for: Option<Duration>,
    max_decisions: Option<u64>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration"))]
    timeout: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration"))]
    last_known_for: Option<Duration>,
    ignore_request_id: bool,
    report_cached_allows: u32,
    require_caller: bool,
}

impl PolicyOptions {
    /// Sets the name of the data domain, which the policy sees.
    pub fn domain(mut self, name: impl Into<Box<str>>) -> Self {
        self.domain = Some(name.into());
        self
    }

    /// Sets how long a decision is used, counted from when the policy was asked. By default 30
    /// seconds, and never longer than [`Limits::max_age`](crate::Limits::max_age). With 0 every
    /// operation asks, and there are no handles.
    pub fn cache_for(mut self, duration: Duration) -> Self {
        self.cache_for = Some(duration);
        self
    }

    /// Sets how many decisions are cached: 1 to 1,048,576, by default 10,000. A decision that takes
    /// more than 1 KiB, including its question, counts as several, so that memory is bounded too.
    pub fn max_decisions(mut self, decisions: u64) -> Self {
        self.max_decisions = Some(decisions);
        self
    }

    /// Sets how long the policy may take: 1 ms to 60 s, by default 1 second. A later allow counts
    /// as an outage, even if the policy blocked its thread. This needs a
    /// [`Runtime`](crate::Runtime): without one there is no timeout, and a policy that hangs does
    /// so forever.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets what an outage of the policy means. With 0, the default, every operation without a
    /// cached decision is denied. Otherwise the last decision about exactly this question, allowing
    /// or denying, is used for this much longer, and the policy is asked again every second. 0 to
    /// 24 hours. A permission that is revoked during the outage keeps working for that long.
    pub fn last_known_for(mut self, duration: Duration) -> Self {
        self.last_known_for = Some(duration);
        self
    }

    /// Hides [request ids](crate::Caller::with_request_id) from the policy, so that requests of one
    /// caller share a decision. By default the policy sees the id, and since a decision may depend
    /// on it, each request asks separately. Observers see the id either way.
    pub fn ignore_request_id(mut self) -> Self {
        self.ignore_request_id = true;
        self
    }

    /// Reports every `every`-th operation that a cached decision allowed, counted for each
    /// question. 1 reports all of them, and 0, the default, none.
    pub fn report_cached_allows(mut self, every: u32) -> Self {
        self.report_cached_allows = every;
        self
    }

    /// Denies every operation without a named caller, without asking the policy. The reason is "no
    /// caller is named".
    pub fn require_caller(mut self) -> Self {
        self.require_caller = true;
        self
    }

    /// Checks that every value is in range, and that the domain is unset because the domain's
    /// envelope sets it.
    pub(crate) fn check_for_domain(&self) -> Result<(), Error> {
        if self.domain.is_some() {
            let detail = "domain: leave it out, the policy sees the name of the domain";
            return Err(Error::new(ErrorKind::InvalidOption, detail));
        }
        self.clone().check(Duration::MAX).map(drop)
    }

    /// Checks the options, given the longest time that a DEK serves.
    pub(super) fn check(self, max_age: Duration) -> Result<OptionsInForce, Error> {
        let timeout = self.timeout.unwrap_or(DEFAULT_TIMEOUT);
        if !(Duration::from_millis(1)..=LONGEST_TIMEOUT).contains(&timeout) {
            return Err(refused("timeout", timeout, "1ms to 60s"));
        }
        let last_known_for = self.last_known_for.unwrap_or_default();
        if last_known_for > LONGEST_LAST_KNOWN {
            return Err(refused("last_known_for", last_known_for, "0s to 24h"));
        }
        let max_decisions = self.max_decisions.unwrap_or(DEFAULT_MAX_DECISIONS);
        if !(1..=HARD_MAX_DECISIONS).contains(&max_decisions) {
            let detail = format!(
                "policy: max_decisions is {max_decisions}, 1 to {HARD_MAX_DECISIONS} are allowed"
            );
            return Err(Error::new(ErrorKind::InvalidOption, detail));
        }
        Ok(OptionsInForce {
            domain: self.domain,
            cache_for: self.cache_for.unwrap_or(DEFAULT_CACHE_FOR).min(max_age),
            max_decisions,
            timeout,
            last_known_for,
            with_request_id: !self.ignore_request_id,
            report_every: self.report_cached_allows,
            require_caller: self.require_caller,
        })
    }
}

fn refused(option: &str, value: Duration, allowed: &str) -> Error {
    let value = duration::write(value);
    let detail = format!("policy: {option} is {value}, {allowed} is allowed");
    Error::new(ErrorKind::InvalidOption, detail)
}

/// The options, checked and with their defaults.
#[derive(Debug)]
pub(super) struct OptionsInForce {
    pub(super) domain: Option<Box<str>>,
    pub(super) cache_for: Duration,
    pub(super) max_decisions: u64,
    pub(super) timeout: Duration,
    /// How much longer the last known decision is used in an outage.
    pub(super) last_known_for: Duration,
    pub(super) with_request_id: bool,
    pub(super) report_every: u32,
    pub(super) require_caller: bool,
}
