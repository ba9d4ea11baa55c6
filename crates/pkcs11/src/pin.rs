//! The source of the PIN, and the PIN itself while it is needed.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::str::FromStr;

use waxseal::{Error, ErrorKind};
use zeroize::Zeroizing;

use crate::errors::Failure;

/// Longest PIN, in bytes, with the end of its line.
const LONGEST: u64 = 4096;

/// Selects the source of the user's PIN. It is read at every login, so that a new PIN is noticed.
///
/// As text it is `file:PATH` or a plain absolute path, or `env:NAME`.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "String", into = "String")
)]
#[non_exhaustive]
pub enum PinSource {
    /// A file with the PIN. One line feed at its end, or a carriage return and line feed, is not
    /// part of the PIN.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
}

fn invalid(detail: &str) -> Error {
    Error::new(ErrorKind::InvalidOption, format!("pin-source: {detail}"))
}

impl FromStr for PinSource {
    type Err = Error;

    /// Reads the text of a `pin-source`, already decoded.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], which never shows the text, since it could be the PIN.
    fn from_str(text: &str) -> Result<Self, Error> {
        if text.starts_with('|') {
            return Err(invalid("commands are not run; name a file"));
        }
        if let Some(name) = text.strip_prefix("env:") {
            let is_name = !name.is_empty() && !name.contains(['=', '\0']) && !name.starts_with('/');
            if !is_name {
                return Err(invalid("env: needs the name of an environment variable after it"));
            }
            return Ok(Self::Environment(name.to_owned()));
        }
        let path = match text.strip_prefix("file:") {
            Some(path) => match path.strip_prefix("//") {
                Some(path) if path.starts_with('/') => path,
                Some(_) => return Err(invalid("file: names no host; expected file:/PATH")),
                None => path,
            },
            None => text,
        };
        if !path.starts_with('/') || path.contains('\0') {
            return Err(invalid("expected file:/PATH, /PATH or env:NAME, not the PIN itself"));
        }
        Ok(Self::File(path.into()))
    }
}

impl fmt::Display for PinSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // A second slash would begin a host.
            Self::File(path) if path.as_os_str().as_encoded_bytes().starts_with(b"//") => {
                write!(f, "file://{}", path.display())
            }
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Environment(name) => write!(f, "env:{name}"),
        }
    }
}

impl TryFrom<String> for PinSource {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<PinSource> for String {
    fn from(source: PinSource) -> Self {
        source.to_string()
    }
}

/// A PIN or its source. Debug shows no PIN.
pub(crate) enum Pin {
    From(PinSource),
    Given(Zeroizing<String>),
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(source) => source.fmt(f),
            Self::Given(_) => f.write_str("[redacted]"),
        }
    }
}

impl Pin {
    /// Reads it. A source that cannot be read is an outage, since it may be a volume that is not
    /// mounted yet.
    pub(crate) fn read(&self) -> Result<Zeroizing<String>, Failure> {
        let pin = match self {
            Self::Given(pin) => pin.clone(),
            Self::From(source) => read(source)?,
        };
        if pin.is_empty() {
            return Err(Failure::misconfigured("log in: the PIN is empty").without_asking());
        }
        Ok(pin)
    }
}

fn read(source: &PinSource) -> Result<Zeroizing<String>, Failure> {
    let bytes = match source {
        PinSource::Environment(name) => match std::env::var_os(name) {
            Some(value) => value.into_encoded_bytes(),
            None => {
                let text = format!("log in: the environment variable {name} is not set");
                return Err(Failure::misconfigured(text).without_asking());
            }
        },
        PinSource::File(path) => {
            // So long that it never moves and leaves a PIN behind.
            let mut bytes = Vec::with_capacity(2 * 4096);
            File::open(path)
                .and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes))
                .map_err(|error| {
                    let text =
                        format!("log in: the PIN file {} cannot be read: {error}", path.display());
                    Failure::unavailable(text).without_asking()
                })?;
            bytes
        }
    };
    let bytes = Zeroizing::new(bytes);
    // A truncated PIN would be a wrong one, which counts towards the lock of the token.
    if u64::try_from(bytes.len()).map_or(true, |len| len > LONGEST) {
        let text = format!("log in: the PIN is longer than {LONGEST} bytes");
        return Err(Failure::misconfigured(text).without_asking());
    }
    let line = bytes.strip_suffix(b"\n").map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let pin = std::str::from_utf8(line.unwrap_or(&bytes))
        .map_err(|_| Failure::misconfigured("log in: the PIN is not UTF-8").without_asking())?;
    Ok(Zeroizing::new(pin.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_that_is_too_long_is_refused_and_not_cut() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let source = PinSource::File(file.path().to_owned());
        for (len, fits) in [(4096, true), (4097, false), (100_000, false)] {
            std::fs::write(file.path(), vec![b'7'; len]).unwrap();
            assert_eq!(read(&source).is_ok(), fits, "{len}");
        }
    }

    #[test]
    fn a_source_is_read_from_text_and_written_back() {
        for (text, source, written) in [
            ("file:/run/pin", PinSource::File("/run/pin".into()), "file:/run/pin"),
            ("file:///run/pin", PinSource::File("/run/pin".into()), "file:/run/pin"),
            ("/run/pin", PinSource::File("/run/pin".into()), "file:/run/pin"),
            ("file:////pin", PinSource::File("//pin".into()), "file:////pin"),
            ("env:HSM_PIN", PinSource::Environment("HSM_PIN".into()), "env:HSM_PIN"),
        ] {
            assert_eq!(text.parse::<PinSource>().unwrap(), source);
            assert_eq!(source.to_string(), written);
        }
    }

    #[test]
    fn a_pin_in_the_place_of_its_source_is_refused_and_not_shown() {
        for text in [
            "file://host/pin",
            "",
            "123456",
            "|cat /run/pin",
            "env:",
            "file:pin",
            "pin",
            "env:A=B",
            "env:/x",
        ] {
            let error = text.parse::<PinSource>().unwrap_err();
            assert!(error.to_string().contains("pin-source"), "{error}");
            assert!(!format!("{error} {error:?}").contains("123456"));
        }
    }

    #[test]
    fn one_end_of_line_is_not_part_of_the_pin() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pin");
        let pin = Pin::From(PinSource::File(path.clone()));
        assert_eq!(pin.read().unwrap_err().class, waxseal::kek::KekErrorClass::Unavailable);
        for (content, read) in
            [("1234", "1234"), ("1234\n", "1234"), ("12 34\r\n", "12 34"), ("1234\n\n", "1234\n")]
        {
            std::fs::write(&path, content).unwrap();
            assert_eq!(pin.read().unwrap().as_str(), read);
        }
        for content in [&b""[..], b"\n", b"\xFF"] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(pin.read().unwrap_err().class, waxseal::kek::KekErrorClass::Misconfigured);
        }
    }

    #[test]
    fn a_given_pin_is_shown_nowhere() {
        let pin = Pin::Given(Zeroizing::new("1234".to_owned()));
        assert_eq!(format!("{pin:?}"), "[redacted]");
    }
}
