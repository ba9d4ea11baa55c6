//! Periods of branch keys: when they began, as text and as seconds.
#![forbid(unsafe_code)]

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::clock::Moment;

/// How far the clocks of two processes may differ. A period that begins within this time counts as
/// begun.
const SKEW_SECONDS: i64 = 60 * 60;

/// The second at which a period began, since 1970-01-01T00:00:00Z.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Period(pub(crate) i64);

impl Period {
    pub(crate) fn now(now: Moment) -> i64 {
        now.wall_nanos().div_euclid(1_000_000_000)
    }

    /// Returns the period that contains `now`. Periods of one length begin at the same times
    /// everywhere.
    pub(crate) fn containing(now: i64, length: Duration) -> Self {
        let length = seconds(length);
        Self(now.div_euclid(length).saturating_mul(length))
    }

    /// Whether it has begun, for a process whose clock may be behind.
    pub(crate) fn has_begun(self, now: i64) -> bool {
        self.0 <= now.saturating_add(SKEW_SECONDS)
    }

    /// Whether keys of this period are used for new DEKs.
    pub(crate) fn is_current(self, now: i64, length: Duration) -> bool {
        self.has_begun(now) && self.0.saturating_add(seconds(length)) > now
    }

    /// Returns the earliest beginning of a period that may still be current.
    pub(crate) fn earliest(now: i64, length: Duration) -> i64 {
        now.saturating_sub(seconds(length))
    }

    /// Returns it in the form of RFC 3339, in UTC and without fractions. `None` beyond the year
    /// 9999.
    pub(crate) fn to_text(self) -> Option<String> {
        OffsetDateTime::from_unix_timestamp(self.0).ok()?.format(&Rfc3339).ok()
    }

    /// Reads what [`to_text`](Self::to_text) writes, and no other form of the same time.
    pub(crate) fn of_text(text: &str) -> Option<Self> {
        let period = Self(OffsetDateTime::parse(text, &Rfc3339).ok()?.unix_timestamp());
        (period.0 >= 0 && period.to_text()? == text).then_some(period)
    }
}

/// The shortest allowed period is a minute.
fn seconds(length: Duration) -> i64 {
    i64::try_from(length.as_secs()).unwrap_or(i64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(24 * 60 * 60);

    #[test]
    fn a_period_has_one_text() {
        let period = Period::of_text("2026-11-01T00:00:00Z").unwrap();
        assert_eq!(period, Period(1_793_491_200));
        assert_eq!(period.to_text().unwrap(), "2026-11-01T00:00:00Z");
        for other in [
            "2026-11-01T00:00:00+00:00",
            "2026-11-01T01:00:00+01:00",
            "2026-11-01T00:00:00.0Z",
            "2026-11-01t00:00:00z",
            "2026-11-01 00:00:00Z",
            "2026-11-01",
            "1969-12-31T23:59:59Z",
            "2026-11-01T23:59:60Z",
            "1793491200",
            "",
        ] {
            assert_eq!(Period::of_text(other), None, "{other}");
        }
    }

    #[test]
    fn periods_are_the_same_for_clocks_that_differ_and_current_within_an_hour() {
        let period = Period::containing(1_793_491_200 + 5, DAY);
        assert_eq!(period, Period::containing(1_793_491_200 + 86_399, DAY));
        assert_eq!(Period::containing(-1, DAY), Period(-86_400));
        for (now, current) in [
            (period.0 - 3601, false),
            (period.0 - 3600, true),
            (period.0, true),
            (period.0 + 86_399, true),
            (period.0 + 86_400, false),
        ] {
            assert_eq!(period.is_current(now, DAY), current, "{now}");
            assert!(!current || period.0 >= Period::earliest(now, DAY));
        }
    }
}
