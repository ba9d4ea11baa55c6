//! The position of a scan, in bytes and in text.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind};
use crate::hex;

/// The position from which a scan continues. It can be kept, as bytes or as text, and used by
/// another process.
///
/// ```
/// use waxseal::store::{RewrapOptions, ScanCursor};
///
/// # let kept_by_a_job_that_an_outage_stopped = "6f72646572733137";
/// let cursor: ScanCursor = kept_by_a_job_that_an_outage_stopped.parse()?;
/// assert_eq!(cursor.to_string(), kept_by_a_job_that_an_outage_stopped);
/// let options = RewrapOptions::default().after(cursor);
/// # let _ = options;
/// # Ok::<(), waxseal::Error>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct ScanCursor(Box<[u8]>);

impl ScanCursor {
    /// Makes it from the store's own bytes.
    #[must_use]
    pub fn from_bytes(bytes: impl Into<Box<[u8]>>) -> Self {
        Self(bytes.into())
    }

    /// Returns the store's own bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Writes two lower-case hexadecimal digits for each byte.
impl fmt::Display for ScanCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(&self.0))
    }
}

impl fmt::Debug for ScanCursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ScanCursor({self})")
    }
}

impl FromStr for ScanCursor {
    type Err = Error;

    /// Reads what [`Display`](fmt::Display) writes.
    fn from_str(text: &str) -> Result<Self, Error> {
        let malformed = || {
            Error::new(ErrorKind::Malformed, "a cursor is pairs of lower-case hexadecimal digits")
        };
        hex::decode_all(text).map(Self::from_bytes).ok_or_else(malformed)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for ScanCursor {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for ScanCursor {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::ScanCursor;
    use crate::error::ErrorKind;

    #[test]
    fn a_cursor_is_kept_as_text() {
        for bytes in [&[][..], &[0, 0x9A, 0xFF], &[7; 64]] {
            let cursor = ScanCursor::from_bytes(bytes);
            assert_eq!(cursor.to_string().parse::<ScanCursor>().unwrap(), cursor);
        }
        assert_eq!(ScanCursor::from_bytes([0, 0x9A]).to_string(), "009a");
        for text in ["0", "0g", "9A", " 00", "é0"] {
            let error = text.parse::<ScanCursor>().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Malformed, "{text}");
        }
    }

    #[cfg(feature = "serde")]
    #[test]
    fn a_cursor_is_kept_in_a_file() {
        let cursor = ScanCursor::from_bytes([0, 0x9A]);
        assert_eq!(serde_json::to_string(&cursor).unwrap(), "\"009a\"");
        assert_eq!(serde_json::from_str::<ScanCursor>("\"009a\"").unwrap(), cursor);
        assert!(serde_json::from_str::<ScanCursor>("\"9\"").is_err());
    }
}
