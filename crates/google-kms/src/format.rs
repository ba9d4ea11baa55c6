//! Google Cloud KMS's formats: the name of a key, the number of a version, and the checksum that it
//! sends and checks.
#![forbid(unsafe_code)]

use std::sync::{Mutex, PoisonError};

use crc::{CRC_32_ISCSI, Crc, Table};

/// The separator between the name of a key and the number of a version.
const VERSIONS: &str = "/cryptoKeyVersions/";

static CRC32C: Crc<u32, Table<1>> = Crc::<u32, Table<1>>::new(&CRC_32_ISCSI);

/// CRC-32C (Castagnoli), as required by "Data integrity guidelines" of Cloud KMS. The checksum of a
/// DEK is as secret as the DEK.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    CRC32C.checksum(bytes)
}

/// The parts of the resource name of a key,
/// `projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct KeyName<'a> {
    pub(crate) project: &'a str,
    pub(crate) location: &'a str,
}

impl<'a> KeyName<'a> {
    /// Reads a name. Returns `None` unless it has exactly that form: a version must not be in a
    /// message.
    pub(crate) fn read(text: &'a str) -> Option<Self> {
        let mut parts = text.split('/');
        let mut next = |name: &str| {
            let is_this = parts.next()? == name;
            parts.next().filter(|_| is_this)
        };
        let (project, location) = (next("projects")?, next("locations")?);
        let (ring, key) = (next("keyRings")?, next("cryptoKeys")?);
        let is_word = |word: &str, also: &[u8]| {
            (1..=63).contains(&word.len())
                && word.bytes().all(|byte| byte.is_ascii_alphanumeric() || also.contains(&byte))
        };
        // A project of a domain is `example.com:name`.
        let well_formed = parts.next().is_none()
            && is_word(project, b"-.:")
            && is_word(location, b"-")
            && is_word(ring, b"-_")
            && is_word(key, b"-_")
            // A path in a URL has no such segments.
            && !project.starts_with('.');
        well_formed.then_some(Self { project, location })
    }
}

impl KeyName<'_> {
    /// A project has an id and a number. An id begins with a letter.
    fn names_project_by_number(&self) -> bool {
        self.project.bytes().all(|byte| byte.is_ascii_digit())
    }
}

/// The name of a key as requested, and as answers call it.
///
/// A name contains the project's id or its number, whichever the caller wrote, and no page says
/// which of them appears in the answer. So one of either kind is accepted for the other, but only
/// one: an answer with a third name is about another key.
pub(crate) struct Naming {
    asked: Box<str>,
    /// The other name of the project, from the last answer.
    other: Mutex<Option<Box<str>>>,
}

impl Naming {
    pub(crate) fn new(asked: &str) -> Self {
        Self { asked: asked.into(), other: Mutex::default() }
    }

    pub(crate) fn asked(&self) -> &str {
        &self.asked
    }

    /// Whether this names the key.
    pub(crate) fn is(&self, named: &str) -> bool {
        if named == &*self.asked {
            return true;
        }
        let (Some(asked), Some(found)) = (KeyName::read(&self.asked), KeyName::read(named)) else {
            return false;
        };
        let behind = |name: &str, project: &str| {
            name.get("projects/".len() + project.len()..).map(str::to_owned)
        };
        let is_alike = asked.names_project_by_number() != found.names_project_by_number()
            && behind(&self.asked, asked.project) == behind(named, found.project);
        if !is_alike {
            return false;
        }
        let mut other = self.other.lock().unwrap_or_else(PoisonError::into_inner);
        match other.take() {
            // Forgotten, since it is unknown which of the two was wrong.
            Some(before) if *before != *found.project => false,
            _ => {
                *other = Some(found.project.into());
                true
            }
        }
    }

    /// Returns the version that an answer names, if it belongs to this key.
    pub(crate) fn version(&self, named: &str) -> Option<VersionNumber> {
        let (key, number) = named.split_once(VERSIONS)?;
        let number = VersionNumber::read(number.as_bytes())?;
        self.is(key).then_some(number)
    }
}

/// The number of a key version. Rotations count up; an administrator may make any version the
/// primary one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct VersionNumber(pub(crate) u64);

impl VersionNumber {
    /// Reads it from the metadata of a wrapped key.
    pub(crate) fn of_meta(meta: &[u8]) -> Option<Self> {
        Self::read(meta)
    }

    /// Reads decimal digits without anything before them.
    fn read(digits: &[u8]) -> Option<Self> {
        let is_plain = (1..=20).contains(&digits.len())
            && digits.iter().all(u8::is_ascii_digit)
            && digits.first() != Some(&b'0');
        let text = std::str::from_utf8(digits).ok().filter(|_| is_plain)?;
        text.parse().ok().map(Self)
    }

    pub(crate) fn text(self) -> String {
        self.0.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KEY: &str = "projects/p-1/locations/europe-west1/keyRings/r_1/cryptoKeys/k-1";

    #[test]
    fn a_key_name_is_read_in_its_parts() {
        let name = KeyName::read(KEY).unwrap();
        assert_eq!((name.project, name.location), ("p-1", "europe-west1"));
        assert!(KeyName::read(&KEY.replace("p-1", "example.com:p-1")).is_some());
    }

    #[test]
    fn what_is_not_the_name_of_a_key_is_not_read() {
        for (from, to) in [
            ("projects/", "project/"),
            ("p-1", ""),
            ("p-1", ".."),
            ("p-1", "p 1"),
            ("k-1", "k.1"),
            ("k-1", "k-1/cryptoKeyVersions/1"),
            ("k-1", "k-1:encrypt"),
            ("k-1", "k-1?x=1"),
            ("k-1", "k-1/"),
            ("r_1", "r_1/x"),
            ("europe-west1", "europe/west1"),
            ("/keyRings", "//keyRings"),
            ("cryptoKeys", "CryptoKeys"),
        ] {
            assert_eq!(KeyName::read(&KEY.replace(from, to)), None, "{from} {to}");
        }
        assert_eq!(KeyName::read(""), None);
        assert_eq!(KeyName::read(&KEY.replace("k-1", &"k".repeat(64))), None);
        assert_eq!(KeyName::read(&format!("/{KEY}")), None);
    }

    #[test]
    fn a_version_is_believed_only_of_the_key_that_was_asked() {
        let naming = Naming::new(KEY);
        let of = |name: &str| naming.version(name);
        assert_eq!(of(&format!("{KEY}/cryptoKeyVersions/12")), Some(VersionNumber(12)));
        for name in [
            KEY.to_owned(),
            format!("{KEY}/cryptoKeyVersions/"),
            format!("{KEY}/cryptoKeyVersions/0"),
            format!("{KEY}/cryptoKeyVersions/01"),
            format!("{KEY}/cryptoKeyVersions/1/"),
            format!("{KEY}/cryptoKeyVersions/-1"),
            format!("{KEY}/cryptoKeyVersions/99999999999999999999"),
            format!("{KEY}2/cryptoKeyVersions/1"),
            String::new(),
        ] {
            assert_eq!(of(&name), None, "{name}");
        }
    }

    #[test]
    fn a_project_s_number_is_taken_for_its_id_and_nothing_else_is() {
        let by_number = KEY.replace("p-1", "123456789012");
        for (asked, answered) in [(KEY, &*by_number), (&*by_number, KEY)] {
            let naming = Naming::new(asked);
            for name in [asked, answered, asked, answered] {
                assert!(naming.is(name), "{asked} {name}");
            }
            let (project, other) = match asked == KEY {
                true => ("123456789012", "123456789013"),
                false => ("p-1", "p-2"),
            };
            for (part, by) in [
                ("europe-west1", "europe-west2"),
                ("r_1", "r_2"),
                ("k-1", "k-2"),
                (project, ""),
                (project, "."),
            ] {
                assert!(!naming.is(&answered.replace(part, by)), "{asked} {part} {by}");
            }
            assert!(!naming.is(&answered.replace(project, other)), "a third name");
            assert!(naming.is(answered), "which of the two was wrong is not known");
        }
        // Two ids, and two numbers, are two projects.
        assert!(!Naming::new(KEY).is(&KEY.replace("p-1", "p-2")));
        assert!(!Naming::new(&by_number).is(&KEY.replace("p-1", "1")));
    }

    #[test]
    fn the_checksum_is_crc32c() {
        // RFC 3720, appendix B.4, and the check value of the catalogue of CRCs.
        assert_eq!(crc32c(b"123456789"), 0xE306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
        assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
    }

    proptest! {
        #[test]
        fn a_version_in_the_metadata_is_read_back(number in 1..=u64::MAX) {
            let text = VersionNumber(number).text();
            prop_assert_eq!(VersionNumber::of_meta(text.as_bytes()), Some(VersionNumber(number)));
        }

        #[test]
        fn nothing_that_is_read_panics(bytes in prop::collection::vec(any::<u8>(), 0..70), text in "\\PC*") {
            let _ = VersionNumber::of_meta(&bytes);
            let naming = Naming::new(KEY);
            let _ = (KeyName::read(&text), naming.is(&text), naming.version(&text));
        }
    }
}
