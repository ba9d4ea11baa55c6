//! How much and for how long a DEK may be used.
#![forbid(unsafe_code)]

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::duration;
use crate::error::{Error, ErrorKind};
use crate::format::limits;
use crate::suite::Suite;

const DEFAULT_MAX_AGE: Duration = Duration::from_secs(5 * 60);
const MIN_MAX_AGE: Duration = Duration::from_millis(1);
const HARD_MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);
const HARD_STALE_IF_ERROR: Duration = Duration::from_secs(24 * 60 * 60);
/// A revoked key works for a day at most, whatever the options say.
const HARD_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);
/// A common cryptoperiod, and far from every cap for an ordinary writer.
const DEFAULT_ROTATE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
const MIN_ROTATE_AFTER: Duration = Duration::from_secs(60);
const HARD_ROTATE_AFTER: Duration = Duration::from_secs(30 * 24 * 60 * 60);
/// Long enough for most uploads.
const DEFAULT_MAX_STREAM_AGE: Duration = Duration::from_secs(60 * 60);
const DEFAULT_DENIAL_TTL: Duration = Duration::from_secs(5);
const MAX_DENIAL_TTL: Duration = Duration::from_secs(5 * 60);
const DEFAULT_MAX_ENTRIES: u64 = 4096;
const HARD_MAX_ENTRIES: u64 = 1 << 20;

/// Limits the DEKs of one [`Envelope`](crate::Envelope). Unset options have their defaults. `build`
/// refuses values out of range.
///
/// ```
/// use std::time::Duration;
/// use waxseal::Limits;
///
/// let limits = Limits::default().max_age(Duration::from_secs(60)).max_messages(1 << 20);
/// ```
///
/// In configuration (feature `serde`) a duration is text with a unit, such as `"5m"`, `"300s"`,
/// `"1h30m"` or `"250ms"`. A plain number is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(default, deny_unknown_fields)
)]
#[non_exhaustive]
pub struct Limits {
    #[cfg_attr(feature = "serde", serde(with = "crate::duration"))]
    max_age: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration"))]
    refresh_after: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration"))]
    rotate_after: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration"))]
    stale_if_error_reading: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration"))]
    stale_if_error_writing: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration"))]
    max_stream_age: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(with = "crate::duration"))]
    denial_ttl: Option<Duration>,
    max_entries: Option<u64>,
    max_messages: Option<u64>,
    max_bytes: Option<u64>,
    max_uses: Option<u64>,
}

impl Limits {
    /// Sets how long a DEK is used, for reading and for writing, until the key service has to
    /// answer again: 1 ms to 24 hours, by default 5 minutes. The time counts from the start of the
    /// request. It is also the longest time that a revoked KEK keeps working in this process. How
    /// long one DEK encrypts is a separate limit: [`rotate_after`](Self::rotate_after).
    #[must_use]
    pub const fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = Some(max_age);
        self
    }

    /// Sets the age from which a DEK in use is renewed while it remains in use. For reading, it is
    /// unwrapped again. For writing, a new DEK is wrapped, which proves that the KEKs still allow
    /// it, and the current one continues until [`rotate_after`](Self::rotate_after). Must be less
    /// than `max_age`, by default four fifths of it. Each DEK is renewed up to a tenth earlier, at
    /// random, so that not all fall due at once.
    #[must_use]
    pub const fn refresh_after(mut self, refresh_after: Duration) -> Self {
        self.refresh_after = Some(refresh_after);
        self
    }

    /// Sets how long one DEK encrypts, counted from when it was made: 1 minute to 30 days, by
    /// default 24 hours. The first renewal after this time replaces the DEK, so its last message is
    /// up to one `max_age` later. A DEK that was not renewed within `max_age` ends sooner, and the
    /// next message makes another.
    ///
    /// It extends no trust: past `max_age` a DEK encrypts only if the key service has allowed
    /// wrapping again. It has no effect on reading.
    #[must_use]
    pub const fn rotate_after(mut self, rotate_after: Duration) -> Self {
        self.rotate_after = Some(rotate_after);
        self
    }

    /// Sets how much longer than `max_age` a DEK decrypts messages while the key service is
    /// *unavailable* or *throttled*, and only then (stale-if-error of RFC 5861). 0 to 24 hours, and
    /// at most 24 hours together with `max_age`; by default 0. A revoked KEK keeps working for this
    /// much longer if its revocation coincides with an outage.
    #[must_use]
    pub const fn stale_if_error_reading(mut self, grace: Duration) -> Self {
        self.stale_if_error_reading = Some(grace);
        self
    }

    /// Sets the same as [`stale_if_error_reading`](Self::stale_if_error_reading), for encryption.
    #[must_use]
    pub const fn stale_if_error_writing(mut self, grace: Duration) -> Self {
        self.stale_if_error_writing = Some(grace);
        self
    }

    /// Sets how long a stream can be written or read after it is opened: 1 ms to 24 hours, and at
    /// most 24 hours together with `max_age` and `stale_if_error`; by default 1 hour. If `max_age`
    /// and `stale_if_error` leave less than that hour, streams are refused with
    /// [`ErrorKind::InvalidOption`] until this is set. The default is never shortened silently.
    ///
    /// An open stream may outlast `max_age`, so a revocation that this process does not learn of
    /// takes up to this much longer to end it. Anything that ends the DEK early ends the stream at
    /// its next chunk: see docs/streams.md.
    #[must_use]
    pub const fn max_stream_age(mut self, max_stream_age: Duration) -> Self {
        self.max_stream_age = Some(max_stream_age);
        self
    }

    /// Sets how long a denial or an *invalid* response is remembered. Until then the same wrapped
    /// keys in the same context are refused without a call. 0 to 5 minutes, by default 5 seconds. A
    /// restored permission takes at most this long to be noticed.
    #[must_use]
    pub const fn denial_ttl(mut self, denial_ttl: Duration) -> Self {
        self.denial_ttl = Some(denial_ttl);
        self
    }

    /// Sets the number of cached DEKs, for reading and for writing each: 1 to 1,048,576, by default
    /// 4,096. A DEK for reading takes about 3.3 KB. A DEK for writing, which is also cached for
    /// reading, takes about 5.0 KB. Each takes about 1 KB more if [`Backend::Fastest`] uses two
    /// backends (docs/performance.md). A full cache of the default size takes 21 MB, or 25 MB.
    ///
    /// [`Backend::Fastest`]: crate::Backend::Fastest
    #[must_use]
    pub const fn max_entries(mut self, max_entries: u64) -> Self {
        self.max_entries = Some(max_entries);
        self
    }

    /// Sets the number of messages that one DEK encrypts. Suites with 96-bit nonces allow 1 to
    /// 2^32, by default 2^24, which keeps the probability of a repeated nonce below 2^-49 per DEK.
    /// XAES-256-GCM allows up to 2^64 - 1, by default 2^40.
    #[must_use]
    pub const fn max_messages(mut self, max_messages: u64) -> Self {
        self.max_messages = Some(max_messages);
        self
    }

    /// Sets the number of plaintext bytes that one DEK encrypts: 1 to 2^50, by default 2^40.
    /// XAES-256-GCM has no limit unless one is set.
    #[must_use]
    pub const fn max_bytes(mut self, max_bytes: u64) -> Self {
        self.max_bytes = Some(max_bytes);
        self
    }

    /// Sets the number of messages that a DEK decrypts before it is unwrapped again: at least 1, by
    /// default unlimited. Set it only if reads must appear at the key service in proportion. A
    /// message that fails authentication does not count.
    #[must_use]
    pub const fn max_uses(mut self, max_uses: u64) -> Self {
        self.max_uses = Some(max_uses);
        self
    }

    pub(crate) fn check(&self, suite: Suite) -> Result<LimitsInForce, Error> {
        let (default_messages, hard_messages) = limits::messages(suite);
        let (default_bytes, hard_bytes) = limits::bytes(suite);
        let max_age = self.max_age.unwrap_or(DEFAULT_MAX_AGE);
        within_time("max_age", max_age, MIN_MAX_AGE..=HARD_MAX_AGE)?;
        let refresh_after = self.refresh_after.unwrap_or(max_age.mul_f64(0.8));
        if refresh_after.is_zero() || refresh_after >= max_age {
            let (is, limit) = (duration::write(refresh_after), duration::write(max_age));
            let detail = format!("refresh_after is {is}, above 0s and below max_age ({limit})");
            return Err(Error::new(ErrorKind::InvalidOption, format!("{detail} is allowed")));
        }
        let rotate_after = self.rotate_after.unwrap_or(DEFAULT_ROTATE_AFTER);
        within_time("rotate_after", rotate_after, MIN_ROTATE_AFTER..=HARD_ROTATE_AFTER)?;
        let grace = |field, grace: Option<Duration>| {
            within_time(field, grace.unwrap_or_default(), Duration::ZERO..=HARD_STALE_IF_ERROR)
        };
        let (reading, writing) = (
            grace("stale_if_error_reading", self.stale_if_error_reading)?,
            grace("stale_if_error_writing", self.stale_if_error_writing)?,
        );
        let longest = max_age.saturating_add(reading.max(writing));
        let together = "the sum of max_age and stale_if_error";
        within_time(together, longest, MIN_MAX_AGE..=HARD_LIFETIME)?;
        let left = HARD_LIFETIME.saturating_sub(longest);
        let max_stream_age = match self.max_stream_age {
            Some(_) if left < MIN_MAX_AGE => return Err(no_time_for_streams(left)),
            Some(age) => Ok(within_time("max_stream_age", age, MIN_MAX_AGE..=left)?),
            None if left < DEFAULT_MAX_STREAM_AGE => Err(left),
            None => Ok(DEFAULT_MAX_STREAM_AGE),
        };
        let denial_ttl = self.denial_ttl.unwrap_or(DEFAULT_DENIAL_TTL);
        within_time("denial_ttl", denial_ttl, Duration::ZERO..=MAX_DENIAL_TTL)?;
        Ok(LimitsInForce {
            max_age,
            refresh_after,
            rotate_after,
            stale_if_error_reading: reading,
            stale_if_error_writing: writing,
            max_stream_age,
            denial_ttl,
            max_entries: within(
                "max_entries",
                self.max_entries.unwrap_or(DEFAULT_MAX_ENTRIES),
                1..=HARD_MAX_ENTRIES,
            )?,
            max_messages: within(
                "max_messages",
                self.max_messages.unwrap_or(default_messages),
                1..=hard_messages,
            )?,
            max_bytes: within(
                "max_bytes",
                self.max_bytes.unwrap_or(default_bytes),
                1..=hard_bytes,
            )?,
            max_uses: self
                .max_uses
                .map(|uses| within("max_uses", uses, 1..=u64::MAX))
                .transpose()?,
            summaries: None,
        })
    }
}

fn within<T: PartialOrd + Display>(
    field: &str,
    value: T,
    range: RangeInclusive<T>,
) -> Result<T, Error> {
    if range.contains(&value) {
        return Ok(value);
    }
    let detail = format!("{field} is {value}, {} to {} are allowed", range.start(), range.end());
    Err(Error::new(ErrorKind::InvalidOption, detail))
}

/// Does the same as [`within`], with the durations written as in a configuration file.
fn within_time(
    field: &str,
    value: Duration,
    range: RangeInclusive<Duration>,
) -> Result<Duration, Error> {
    if range.contains(&value) {
        return Ok(value);
    }
    let [is, least, most] = [value, *range.start(), *range.end()].map(duration::write);
    let detail = format!("{field} is {is}, {least} to {most} are allowed");
    Err(Error::new(ErrorKind::InvalidOption, detail))
}

/// Returns the error for a stream if its time is not set and only `left` remains.
fn no_time_for_streams(left: Duration) -> Error {
    let detail = match left < MIN_MAX_AGE {
        true => "max_stream_age: max_age and stale_if_error leave streams no time in 24 hours. \
                 Lower one of them"
            .to_owned(),
        false => {
            let [left, default] = [left, DEFAULT_MAX_STREAM_AGE].map(duration::write);
            format!(
                "max_stream_age is not set, and max_age and stale_if_error leave {left}, less than \
                 its default of {default}. Set it, or lower one of them"
            )
        }
    };
    Error::new(ErrorKind::InvalidOption, detail)
}

/// [`Limits`] with every default filled in, checked for one suite.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LimitsInForce {
    pub(crate) max_age: Duration,
    pub(crate) refresh_after: Duration,
    pub(crate) rotate_after: Duration,
    pub(crate) stale_if_error_reading: Duration,
    pub(crate) stale_if_error_writing: Duration,
    /// `Err` with the time that `max_age` leaves, if that is less than the default.
    max_stream_age: Result<Duration, Duration>,
    pub(crate) denial_ttl: Duration,
    pub(crate) max_entries: u64,
    pub(crate) max_messages: u64,
    pub(crate) max_bytes: u64,
    pub(crate) max_uses: Option<u64>,
    /// How often uses are reported. If `None`, they are not counted.
    pub(crate) summaries: Option<Duration>,
}

impl LimitsInForce {
    /// Returns the limits for a stream's own lease.
    pub(super) fn of_streams(&self) -> Result<Self, Error> {
        Ok(Self { max_age: self.max_stream_age.map_err(no_time_for_streams)?, ..*self })
    }

    /// Refuses a chunk size larger than the number of bytes that a DEK may encrypt.
    pub(super) fn check_chunk(&self, bytes: usize) -> Result<(), Error> {
        match u64::try_from(bytes).is_ok_and(|bytes| bytes <= self.max_bytes) {
            true => Ok(()),
            false => {
                let detail = format!("chunk_size is {bytes}, above max_bytes ({})", self.max_bytes);
                Err(Error::new(ErrorKind::InvalidOption, detail))
            }
        }
    }
}
