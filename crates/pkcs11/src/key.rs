//! What is known of the KEK, and how its versions are distinguished.
#![forbid(unsafe_code)]

use std::fmt;
use std::str::FromStr;

use data_encoding::HEXLOWER;
use waxseal::{Error, ErrorKind};

/// The source of a wrapped key's IV. Tokens differ, so the source is determined at the first
/// connection, before anything is wrapped, and kept from then on.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum IvSource {
    /// This process makes the IV, with the operating system's generator. In text: `caller`.
    Caller,
    /// The token makes the IV and writes it into the caller's buffer, which is zero before. In
    /// text: `token`.
    Token,
    /// The token makes the IV and appends it to the ciphertext, after the tag. In text: `appended`.
    Appended,
    /// The token makes the IV in the message API of PKCS#11 3.0 (`C_EncryptMessage`). In text:
    /// `message`.
    Message,
}

/// Selects which keys of the token are versions of the KEK.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum Versions {
    /// The KEK is one key. Several keys with its label are an error. In text: `single`.
    #[default]
    Single,
    /// All keys with the label are versions of the KEK. Their `CKA_ID` is read as a big-endian
    /// number, and the highest one wraps. In text: `by-id`.
    ById,
}

macro_rules! names {
    ($type:ident, $option:literal: $($variant:ident = $name:literal),*) => {
        impl FromStr for $type {
            type Err = Error;

            fn from_str(text: &str) -> Result<Self, Error> {
                match text {
                    $($name => Ok(Self::$variant),)*
                    _ => {
                        let known = [$($name),*].join(", ");
                        let text = format!("{}: expected one of {known}", $option);
                        Err(Error::new(ErrorKind::InvalidOption, text))
                    }
                }
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $name),* })
            }
        }
    };
}

names!(
    IvSource, "iv-source":
    Caller = "caller", Token = "token", Appended = "appended", Message = "message"
);
names!(Versions, "versions": Single = "single", ById = "by-id");

/// What the token reports about the KEK.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct KeyInfo {
    /// The `CKA_ID` of the key that wraps, in hexadecimal digits. It may be empty.
    pub current: String,
    /// The `CKA_ID` of each version, the current one last.
    pub versions: Vec<String>,
    /// The source of the IVs. `None` until the key has encrypted.
    pub iv_source: Option<IvSource>,
    /// What an operator should look at, such as a key that can be extracted.
    pub notes: Vec<String>,
}

pub(crate) fn hex(id: &[u8]) -> String {
    HEXLOWER.encode(id)
}

/// Orders ids by their numeric value.
pub(crate) fn as_number(id: &[u8]) -> (usize, &[u8]) {
    let zeros = id.iter().take_while(|byte| **byte == 0).count();
    let digits = id.get(zeros..).unwrap_or_default();
    (digits.len(), digits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn ids_are_ordered_as_numbers(
            one in any::<u64>(),
            other in any::<u64>(),
            zeros in 0_usize..4,
        ) {
            let bytes = one.to_be_bytes();
            let padded = [&vec![0; zeros], &bytes[..]].concat();
            prop_assert_eq!(as_number(&padded), as_number(&bytes));
            let other_bytes = other.to_be_bytes();
            prop_assert_eq!(as_number(&bytes).cmp(&as_number(&other_bytes)), one.cmp(&other));
        }
    }

    #[test]
    fn names_are_read_and_written() {
        for source in [IvSource::Caller, IvSource::Token, IvSource::Appended, IvSource::Message] {
            assert_eq!(source.to_string().parse::<IvSource>().unwrap(), source);
        }
        for versions in [Versions::Single, Versions::ById] {
            assert_eq!(versions.to_string().parse::<Versions>().unwrap(), versions);
        }
        let error = "random".parse::<IvSource>().unwrap_err().to_string();
        assert!(error.contains("iv-source") && error.contains("caller, token"), "{error}");
    }
}
