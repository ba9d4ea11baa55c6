//! Durations as people write them in configuration: a number and its unit, `"300s"`, `"5m"`,
//! `"1h30m"`, `"250ms"`.
//!
//! With the feature `serde`, use it by `#[serde(with = "...")]` on an `Option<Duration>`. A number
//! without a unit is refused, since it could mean seconds or milliseconds. This is stricter than
//! the crate humantime, which reads `"1 5s"` as 15 seconds and `"5M"` as five months.
#![forbid(unsafe_code)]

use std::time::Duration;

#[cfg(feature = "serde")]
pub use text::{deserialize, serialize};

/// The units, longest first. The first name of each is written, and all are read.
const UNITS: [(u64, &[&str]); 7] = [
    (86_400_000_000_000, &["d", "day", "days"]),
    (3_600_000_000_000, &["h", "hr", "hrs", "hour", "hours"]),
    (60_000_000_000, &["m", "min", "mins", "minute", "minutes"]),
    (1_000_000_000, &["s", "sec", "secs", "second", "seconds"]),
    (1_000_000, &["ms", "msec", "millis", "millisecond", "milliseconds"]),
    (1_000, &["us", "\u{b5}s", "\u{3bc}s", "usec", "micros", "microsecond", "microseconds"]),
    (1, &["ns", "nsec", "nanos", "nanosecond", "nanoseconds"]),
];

/// The expected form, for error texts.
pub const EXPECTED: &str =
    "a duration with its unit, such as \"300s\", \"5m\", \"1h30m\" or \"250ms\"";

/// Reads a duration. Returns `None` for anything ambiguous.
///
/// It takes numbers with units, each unit once, longer ones first. Spaces may separate them. The
/// last number may have a decimal fraction if it is a whole number of nanoseconds.
#[must_use]
pub fn read(text: &str) -> Option<Duration> {
    let mut rest = text.trim_matches(' ');
    if rest.is_empty() {
        return None;
    }
    let mut units = UNITS.iter();
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let (whole, behind) = split_digits(rest)?;
        let (fraction, behind) = match behind.strip_prefix('.') {
            Some(behind) => split_digits(behind)?,
            None => ("", behind),
        };
        let behind = behind.trim_start_matches(' ');
        let name = behind
            .find(|c: char| !c.is_alphabetic())
            .map_or(Some(behind), |end| behind.get(..end))?;
        let (unit, _) = units.find(|(_, names)| names.contains(&name))?;
        let unit = u128::from(*unit);
        nanos = nanos.checked_add(whole.parse::<u128>().ok()?.checked_mul(unit)?)?;
        rest = behind.get(name.len()..)?.trim_start_matches(' ');
        if !fraction.is_empty() {
            let scale = 10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?;
            let part = fraction.parse::<u128>().ok()?.checked_mul(unit)?;
            if !rest.is_empty() || !part.is_multiple_of(scale) {
                return None;
            }
            nanos = nanos.checked_add(part / scale)?;
        }
    }
    let second = 1_000_000_000;
    Some(Duration::new(u64::try_from(nanos / second).ok()?, u32::try_from(nanos % second).ok()?))
}

/// Returns the leading digits, at least one, and the rest.
fn split_digits(text: &str) -> Option<(&str, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at_checked(end).filter(|(digits, _)| !digits.is_empty())
}

/// Writes a duration as [`read`] reads it back.
#[must_use]
pub fn write(duration: Duration) -> String {
    let mut nanos = duration.as_nanos();
    let mut text = String::new();
    for (unit, names) in UNITS {
        let (unit, name) = (u128::from(unit), names.first().unwrap_or(&""));
        if nanos >= unit {
            text.push_str(&format!("{}{name}", nanos / unit));
            nanos %= unit;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Durations in serde's data model.
#[cfg(feature = "serde")]
mod text {
    use std::fmt;
    use std::time::Duration;

    use serde::de::{Deserializer, Error, Unexpected, Visitor};
    use serde::ser::Serializer;

    use super::{EXPECTED, read, write};

    /// Writes a duration in the largest unit that leaves no fraction.
    ///
    /// # Errors
    /// Errors of the serializer.
    pub fn serialize<S: Serializer>(
        duration: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match duration {
            Some(duration) => serializer.serialize_some(&write(*duration)),
            None => serializer.serialize_none(),
        }
    }

    /// Reads a duration with its unit.
    ///
    /// # Errors
    /// Anything else, including a number without a unit.
    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        deserializer.deserialize_option(Optional)
    }

    struct Optional;

    impl<'de> Visitor<'de> for Optional {
        type Value = Option<Duration>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(EXPECTED)
        }

        fn visit_none<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
            Ok(None)
        }

        fn visit_some<D: Deserializer<'de>>(
            self,
            deserializer: D,
        ) -> Result<Self::Value, D::Error> {
            deserializer.deserialize_str(Text).map(Some)
        }

        /// For a format that does not mark optional values.
        fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
            Text.visit_str(text).map(Some)
        }
    }

    struct Text;

    impl Visitor<'_> for Text {
        type Value = Duration;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(EXPECTED)
        }

        fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
            read(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        for (text, millis) in [
            ("5m", 300_000),
            ("300s", 300_000),
            ("250ms", 250),
            ("1h30m", 5_400_000),
            ("1h 30min", 5_400_000),
            ("1 hour 30 minutes", 5_400_000),
            ("1d", 86_400_000),
            ("5 min", 300_000),
            ("  2 secs ", 2_000),
            ("1.5s", 1_500),
            ("1m0.25s", 60_250),
            ("0s", 0),
            ("007s", 7_000),
            ("90m", 5_400_000),
        ] {
            assert_eq!(read(text), Some(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(read("1s1ns"), Some(Duration::new(1, 1)));
        assert_eq!(read("2\u{b5}s"), Some(Duration::from_micros(2)));
    }

    #[test]
    fn what_could_be_meant_in_two_ways_is_refused() {
        for text in [
            "",
            " ",
            "300",
            "0",
            "5",
            "m",
            "-5m",
            "+5m",
            "5M",
            "5S",
            "1 5s",
            "5m5m",
            "30m1h",
            "5m 30",
            "1.5",
            "1.s",
            ".5s",
            "1..5s",
            "1.5h30m",
            "0.5ns",
            "1,5s",
            "1e3s",
            "5 minuten",
            "PT5M",
            "5m;",
            "5m\n",
            "5:00",
            "\u{661}s",
            "1_000s",
            "infinity",
            "5w",
            "1y",
            "99999999999999999999d",
            "18446744073709551615s1000ms",
            "1.00000000000000000000000000000000000000000000s",
        ] {
            assert_eq!(read(text), None, "{text}");
        }
        assert_eq!(read("18446744073709551615s999ms"), Some(Duration::new(u64::MAX, 999_000_000)));
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(secs in any::<u64>(), nanos in 0_u32..1_000_000_000) {
            let duration = Duration::new(secs, nanos);
            prop_assert_eq!(read(&write(duration)), Some(duration));
        }

        #[test]
        fn nothing_that_is_read_panics(text in "[0-9.dhms \u{b5}\u{e9}-]{0,60}|\\PC*") {
            if let Some(duration) = read(&text) {
                prop_assert_eq!(read(&write(duration)), Some(duration));
            }
        }
    }
}
