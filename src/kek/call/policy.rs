//! Timeouts, retries and breakers of calls to key services.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

use super::CallBudget;
use crate::duration;
use crate::error::{Error, ErrorKind};
use crate::runtime::NEEDED;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(2);
const DEFAULT_DEADLINE: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(60);
const DEFAULT_TRIES: u32 = 3;
const MOST_TRIES: u32 = 10;
const DEFAULT_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(10);
const DEFAULT_BREAKER_FAILURES: u32 = 5;
const MOST_BREAKER_FAILURES: u32 = 1000;
const DEFAULT_BREAKER_PROBE: Duration = Duration::from_millis(500);
const DEFAULT_HEDGE: u8 = 95;

/// Sets how key services are called. Unset options have their defaults. `build` refuses a value
/// that is out of range or contradicts another option. Time options need a
/// [`Runtime`](crate::Runtime) and are refused without one.
///
/// ```
/// use std::time::Duration;
/// use waxseal::CallPolicy;
///
/// let policy = CallPolicy::default().timeout(Duration::from_millis(500)).tries(4);
/// ```
///
/// In configuration (feature `serde`) a duration is text with a unit, such as `"2s"` or `"500ms"`.
/// A plain number is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct CallPolicy {
    #[cfg_attr(feature = "serde", serde(with = "crate::duration"))]
    timeout: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration"))]
    deadline: Option<Duration>,
    tries: Option<u32>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration"))]
    backoff: Option<Duration>,
    hedge_percentile: Option<u8>,
    breaker_failures: Option<u32>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration"))]
    breaker_probe: Option<Duration>,
}

impl CallPolicy {
    /// Sets how long one try may take: 1 ms to 60 s, by default 2 s. A healthy key service answers
    /// in a tenth of that, and two tries fit into the default deadline.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Sets how long a caller waits in total, including every retry, pause and failover: 1 ms to 60
    /// s and no less than `timeout`, by default 5 s, or `timeout` if that is longer. A caller that
    /// wants to wait less drops its future. The call continues while another caller waits for it,
    /// and a request in flight is finished.
    #[must_use]
    pub const fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }

    /// Sets how often each key service is tried for one request: 1 to 10, by default 3. Only
    /// *unavailable* and *throttled* are retried, and only while at least a tenth of `timeout` is
    /// left.
    #[must_use]
    pub const fn tries(mut self, tries: u32) -> Self {
        self.tries = Some(tries);
        self
    }

    /// Sets the longest pause before the second try: 1 ms to 10 s and below `deadline`, by default
    /// 50 ms. It doubles with each try and is four times as long after *throttled*. The actual
    /// pause is uniformly random between zero and that ("full jitter"), so that calls that failed
    /// together are not repeated together. If a key service says how long to wait, that applies
    /// instead.
    #[must_use]
    pub const fn backoff(mut self, backoff: Duration) -> Self {
        self.backoff = Some(backoff);
        self
    }

    /// Sets when a second KEK is asked, if several can unwrap: when the preferred one has not
    /// responded within this percentile of its own recent latencies. The first response counts. 50
    /// to 99, by default 95: one request in twenty costs a second call. With 100 the next KEK is
    /// asked only after a failure.
    #[must_use]
    pub const fn hedge_percentile(mut self, percentile: u8) -> Self {
        self.hedge_percentile = Some(percentile);
        self
    }

    /// Sets after how many failures in a row, over at least 200 ms, a KEK's circuit breaker opens:
    /// 1 to 1,000, by default 5. Failures are *unavailable* and *misconfigured*. Those that concern
    /// one caller (*invalid*, *denied*) and *throttled* do not count.
    #[must_use]
    pub const fn breaker_failures(mut self, failures: u32) -> Self {
        self.breaker_failures = Some(failures);
        self
    }

    /// Sets how often an open breaker lets one call through to check whether the key service is
    /// back: 1 ms to 60 s, by default 500 ms, so that a recovered service is used again within a
    /// second.
    #[must_use]
    pub const fn breaker_probe(mut self, every: Duration) -> Self {
        self.breaker_probe = Some(every);
        self
    }

    pub(crate) fn check(&self, has_timers: bool) -> Result<PolicyInForce, Error> {
        let timeout = millis("timeout", self.timeout.unwrap_or(DEFAULT_TIMEOUT), LONGEST)?;
        let deadline =
            millis("deadline", self.deadline.unwrap_or(DEFAULT_DEADLINE.max(timeout)), LONGEST)?;
        let backoff = millis(
            "backoff",
            self.backoff.unwrap_or(DEFAULT_BACKOFF.min(deadline / 2)),
            LONGEST_BACKOFF,
        )?;
        let timeout = if self.timeout.is_none() { timeout.min(deadline) } else { timeout };
        if timeout > deadline {
            return Err(invalid(format!(
                "timeout is {timeout:?}, longer than the deadline of {deadline:?}"
            )));
        }
        if backoff >= deadline {
            return Err(invalid(format!(
                "backoff is {backoff:?}, not below the deadline of {deadline:?}"
            )));
        }
        let tries = number("tries", self.tries.unwrap_or(DEFAULT_TRIES), MOST_TRIES)?;
        let hedge = self.hedge_percentile.unwrap_or(DEFAULT_HEDGE);
        if !(50..=100).contains(&hedge) {
            return Err(invalid(format!("hedge_percentile is {hedge}, 50 to 100 are allowed")));
        }
        let failures = self.breaker_failures.unwrap_or(DEFAULT_BREAKER_FAILURES);
        let policy = PolicyInForce {
            chosen: *self,
            timeout,
            deadline,
            tries,
            backoff,
            hedge_percentile: (hedge < 100).then_some(hedge),
            breaker_failures: number("breaker_failures", failures, MOST_BREAKER_FAILURES)?,
            breaker_probe: millis(
                "breaker_probe",
                self.breaker_probe.unwrap_or(DEFAULT_BREAKER_PROBE),
                LONGEST,
            )?,
        };
        let needs_timers = [
            ("timeout", self.timeout.is_some()),
            ("deadline", self.deadline.is_some()),
            ("backoff", self.backoff.is_some()),
            ("tries", self.tries.is_some_and(|tries| tries > 1)),
            ("hedge_percentile", self.hedge_percentile.is_some_and(|percentile| percentile < 100)),
        ];
        match needs_timers.iter().find(|(_, set)| *set && !has_timers) {
            Some((option, _)) => Err(invalid(format!("{option} {NEEDED}"))),
            None => Ok(policy),
        }
    }
}

fn millis(option: &str, value: Duration, most: Duration) -> Result<Duration, Error> {
    if (Duration::from_millis(1)..=most).contains(&value) {
        return Ok(value);
    }
    let [is, most] = [value, most].map(duration::write);
    Err(invalid(format!("{option} is {is}, 1ms to {most} are allowed")))
}

fn number(option: &str, value: u32, most: u32) -> Result<u32, Error> {
    if (1..=most).contains(&value) {
        return Ok(value);
    }
    Err(invalid(format!("{option} is {value}, 1 to {most} are allowed")))
}

pub(super) fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidOption, detail)
}

/// Advice from a [`KekProvider`](crate::kek::KekProvider) about its key service, as part of a
/// [`CallTarget`]. It applies if the envelope's [`CallPolicy`] leaves an option unset. A value
/// outside the policy's range is clamped to it.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CallAdvice {
    pub(super) timeout: Option<Duration>,
    pub(super) tries: Option<u32>,
    pub(super) backoff: Option<Duration>,
    pub(super) budget: Option<CallBudget>,
    pub(super) in_process: bool,
}

impl CallAdvice {
    /// Declares that calls are answered in this process, from keys that the provider holds, and
    /// that the provider has its own timeouts, retries and budgets for the calls it makes. The
    /// envelope's then do not apply to these calls. They have no circuit breaker, and are not
    /// counted as calls to a key service.
    #[must_use]
    pub fn in_process(mut self) -> Self {
        self.in_process = true;
        self
    }

    /// See [`CallPolicy::timeout`].
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// See [`CallPolicy::tries`].
    #[must_use]
    pub fn tries(mut self, tries: u32) -> Self {
        self.tries = Some(tries);
        self
    }

    /// See [`CallPolicy::backoff`].
    #[must_use]
    pub fn backoff(mut self, backoff: Duration) -> Self {
        self.backoff = Some(backoff);
        self
    }

    /// Sets a budget for this provider's calls that applies in addition to the envelope's, for a
    /// limit that several KEKs share.
    #[must_use]
    pub fn budget(mut self, budget: CallBudget) -> Self {
        self.budget = Some(budget);
        self
    }

    /// Returns the [`budget`](Self::budget) of this advice.
    #[must_use]
    pub fn call_budget(&self) -> Option<&CallBudget> {
        self.budget.as_ref()
    }
}

/// The target of a call: one key, Region or key store. Calls to one target share a circuit breaker,
/// latencies and advice. A target that is down does not stop calls to another.
#[derive(Clone, Debug)]
pub struct CallTarget {
    name: Box<str>,
    advice: CallAdvice,
}

impl CallTarget {
    /// Makes a target without advice. The name distinguishes the targets of one provider and is
    /// shown to operators.
    #[must_use]
    pub fn new(name: impl Into<Box<str>>) -> Self {
        Self { name: name.into(), advice: CallAdvice::default() }
    }

    /// Adds advice about calls to this target.
    #[must_use]
    pub fn with_advice(mut self, advice: CallAdvice) -> Self {
        self.advice = advice;
        self
    }

    /// Returns the name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns the advice about calls to it.
    #[must_use]
    pub fn advice(&self) -> &CallAdvice {
        &self.advice
    }
}

/// [`CallPolicy`] with every default filled in. Its Debug is the text in the configuration event.
#[derive(Clone, Copy)]
pub(crate) struct PolicyInForce {
    chosen: CallPolicy,
    pub(super) timeout: Duration,
    pub(super) deadline: Duration,
    pub(super) tries: u32,
    pub(super) backoff: Duration,
    pub(super) hedge_percentile: Option<u8>,
    pub(super) breaker_failures: u32,
    pub(super) breaker_probe: Duration,
}

impl fmt::Debug for PolicyInForce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallPolicy")
            .field("timeout", &self.timeout)
            .field("deadline", &self.deadline)
            .field("tries", &self.tries)
            .field("backoff", &self.backoff)
            .field("hedge_percentile", &self.hedge_percentile.unwrap_or(100))
            .field("breaker_failures", &self.breaker_failures)
            .field("breaker_probe", &self.breaker_probe)
            .finish()
    }
}

impl PolicyInForce {
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Returns the policy of calls to a key store. A busy store is slow, and clients of stores have
    /// their own timeouts. So a try may take the whole deadline, unless a timeout was chosen.
    pub(crate) fn for_stores(self) -> Self {
        match self.chosen.timeout {
            None => Self { timeout: self.deadline, ..self },
            Some(_) => self,
        }
    }

    /// Applies a provider's advice to options that the user left unset.
    pub(super) fn advised(mut self, advice: &CallAdvice) -> Self {
        const SHORTEST: Duration = Duration::from_millis(1);
        if let (None, Some(timeout)) = (self.chosen.timeout, advice.timeout) {
            self.timeout = timeout.max(SHORTEST).min(self.deadline);
        }
        if let (None, Some(tries)) = (self.chosen.tries, advice.tries) {
            self.tries = tries.clamp(1, MOST_TRIES);
        }
        if let (None, Some(backoff)) = (self.chosen.backoff, advice.backoff) {
            self.backoff = backoff.max(SHORTEST).min(LONGEST_BACKOFF).min(self.deadline / 2);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_provider_s_advice_counts_where_the_user_chose_nothing() {
        let advice = CallAdvice::default().timeout(SECOND).tries(4).backoff(SECOND / 10);
        let open = CallPolicy::default().check(true).unwrap().advised(&advice);
        assert_eq!((open.timeout, open.tries, open.backoff), (SECOND, 4, SECOND / 10));
        assert_eq!(
            (open.deadline, open.breaker_failures),
            (DEFAULT_DEADLINE, DEFAULT_BREAKER_FAILURES)
        );
        let chosen = CallPolicy::default().timeout(3 * SECOND).tries(2).backoff(SECOND / 2);
        let chosen = chosen.check(true).unwrap().advised(&advice);
        assert_eq!((chosen.timeout, chosen.tries, chosen.backoff), (3 * SECOND, 2, SECOND / 2));
    }

    #[test]
    fn advice_never_leaves_the_ranges_of_the_policy() {
        let greedy =
            CallAdvice::default().timeout(1000 * SECOND).tries(1000).backoff(1000 * SECOND);
        let policy = CallPolicy::default().deadline(SECOND).check(true).unwrap().advised(&greedy);
        assert_eq!(
            (policy.timeout, policy.tries, policy.backoff),
            (SECOND, MOST_TRIES, SECOND / 2)
        );
        let nothing =
            CallAdvice::default().timeout(Duration::ZERO).tries(0).backoff(Duration::ZERO);
        let policy = CallPolicy::default().check(true).unwrap().advised(&nothing);
        assert_eq!(
            (policy.timeout, policy.tries, policy.backoff),
            (SECOND / 1000, 1, SECOND / 1000)
        );
    }
}
