//! The list of wrapped keys (docs/format.md, "Wrapped keys"): the layout of bincode's `standard()`
//! configuration, in one canonical form.
#![forbid(unsafe_code)]

use std::borrow::Borrow;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use super::reader::Reader;
use crate::error::{Error, ErrorKind, Shown};

/// The id of a key encryption key, in every system: the ARN of a KMS key,
/// `vault:CLUSTER/MOUNT/KEY`, `local:NAME`.
///
/// It has 1 to 512 bytes of UTF-8 and is compared byte for byte. A clone is a pointer.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KekId(Arc<str>);

impl KekId {
    /// The maximum size of a KEK id in bytes.
    pub const MAX_LEN: usize = 512;

    /// Makes a KEK id from its text.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] unless it has 1 to 512 bytes.
    pub fn new(id: impl AsRef<str>) -> Result<Self, Error> {
        let id = id.as_ref();
        if id.is_empty() || id.len() > Self::MAX_LEN {
            let detail =
                format!("a KEK id has {} bytes, 1 to {} are allowed", id.len(), Self::MAX_LEN);
            return Err(Error::new(ErrorKind::InvalidOption, detail));
        }
        Ok(Self(id.into()))
    }

    /// Returns the exact text. If the id comes from a message, its writer chose the text. For logs,
    /// use `Display`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for KekId {
    type Err = Error;

    /// Those of [`KekId::new`].
    fn from_str(id: &str) -> Result<Self, Error> {
        Self::new(id)
    }
}

impl AsRef<str> for KekId {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl Borrow<str> for KekId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Writes the id for people and logs. Unprintable characters are escaped, since the writer of a
/// message chooses them. [`as_str`](KekId::as_str) returns the exact text.
impl fmt::Display for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Shown(&self.0).fmt(f)
    }
}

impl fmt::Debug for KekId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KekId({:?})", &*self.0)
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for KekId {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

#[cfg(feature = "serde")]
impl<'de> serde::Deserialize<'de> for KekId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// One DEK as one KEK wrapped it.
#[derive(Clone, PartialEq, Eq)]
pub struct WrappedDek {
    kek_id: KekId,
    wrapped: Box<[u8]>,
    meta: Box<[u8]>,
}

impl WrappedDek {
    /// The maximum size of a wrapped DEK in bytes.
    pub const MAX_WRAPPED: usize = 6144;
    /// The maximum size of the metadata in bytes.
    pub const MAX_META: usize = 64;

    /// Makes the result of a provider's `wrap`: the KEK's id and the wrapped bytes, without
    /// metadata.
    ///
    /// # Errors
    /// [`ErrorKind::Provider`] unless `wrapped` has 1 to 6,144 bytes.
    pub fn new(kek_id: KekId, wrapped: impl Into<Box<[u8]>>) -> Result<Self, Error> {
        let wrapped = wrapped.into();
        if wrapped.is_empty() || wrapped.len() > Self::MAX_WRAPPED {
            let detail = format!(
                "a wrapped DEK of {} bytes, 1 to {} are allowed",
                wrapped.len(),
                Self::MAX_WRAPPED
            );
            return Err(Error::new(ErrorKind::Provider, detail));
        }
        Ok(Self { kek_id, wrapped, meta: Box::default() })
    }

    /// Adds metadata, a hint for the provider such as which key material wrapped the DEK. It is not
    /// authenticated.
    ///
    /// # Errors
    /// [`ErrorKind::Provider`] for more than 64 bytes.
    pub fn with_meta(mut self, meta: impl Into<Box<[u8]>>) -> Result<Self, Error> {
        self.meta = meta.into();
        if self.meta.len() > Self::MAX_META {
            let detail = format!(
                "metadata of {} bytes, at most {} are allowed",
                self.meta.len(),
                Self::MAX_META
            );
            return Err(Error::new(ErrorKind::Provider, detail));
        }
        Ok(self)
    }

    /// Returns the same entry without metadata, so only with what the KEK proves by unwrapping it.
    pub(crate) fn without_meta(&self) -> Self {
        Self { meta: Box::default(), ..self.clone() }
    }

    /// Returns the KEK that the entry names.
    #[must_use]
    pub fn kek_id(&self) -> &KekId {
        &self.kek_id
    }

    /// Returns the bytes that the KEK's service returned.
    #[must_use]
    pub fn wrapped(&self) -> &[u8] {
        &self.wrapped
    }

    /// Returns the provider's hint. Never base a security decision on it.
    #[must_use]
    pub fn meta(&self) -> &[u8] {
        &self.meta
    }
}

impl fmt::Debug for WrappedDek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "WrappedDek({}, {} bytes, {} of metadata)",
            self.kek_id,
            self.wrapped.len(),
            self.meta.len()
        )
    }
}

/// All wrapped forms of one DEK. A message carries them, or for a compact message they are stored
/// separately.
///
/// There are 1 to 16 entries, ascending by KEK id, with no duplicate id. They are not secret. Only
/// the KEKs and the DEK id authenticate them: changing them can make a message unreadable, but
/// never decrypt it to something else. A clone is a pointer.
#[derive(Clone)]
pub struct WrappedKeys(Arc<List>);

struct List {
    entries: Box<[WrappedDek]>,
    bytes: Box<[u8]>,
}

impl WrappedKeys {
    /// The maximum number of entries.
    pub const MAX_ENTRIES: usize = 16;
    /// The maximum size of an encoded list in bytes.
    pub const MAX_BYTES: usize = 65_535;

    /// Builds the list from its entries in any order.
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] for more than 16 entries or 65,535 bytes,
    /// [`ErrorKind::InvalidOption`] for no entry or for two of one KEK.
    pub fn new(entries: impl IntoIterator<Item = WrappedDek>) -> Result<Self, Error> {
        let mut entries: Vec<WrappedDek> = entries.into_iter().collect();
        entries.sort_by(|a, b| a.kek_id.cmp(&b.kek_id));
        if entries.is_empty() {
            return Err(Error::new(ErrorKind::InvalidOption, "no wrapped key"));
        }
        if entries.len() > Self::MAX_ENTRIES {
            let detail = format!(
                "{} wrapped keys, at most {} are allowed",
                entries.len(),
                Self::MAX_ENTRIES
            );
            return Err(Error::new(ErrorKind::TooLarge, detail));
        }
        if let Some([twice, _]) = entries.array_windows().find(|[a, b]| a.kek_id == b.kek_id) {
            return Err(Error::new(
                ErrorKind::InvalidOption,
                format!("two wrapped keys of {}", twice.kek_id),
            ));
        }
        let mut bytes = Vec::new();
        push_varint(&mut bytes, entries.len());
        for entry in &entries {
            for part in [entry.kek_id.0.as_bytes(), &entry.wrapped, &entry.meta] {
                push_varint(&mut bytes, part.len());
                bytes.extend_from_slice(part);
            }
        }
        if bytes.len() > Self::MAX_BYTES {
            let detail = format!(
                "wrapped keys of {} bytes, at most {} are allowed",
                bytes.len(),
                Self::MAX_BYTES
            );
            return Err(Error::new(ErrorKind::TooLarge, detail));
        }
        Ok(Self(Arc::new(List { entries: entries.into(), bytes: bytes.into() })))
    }

    /// Returns the encoded list.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// Returns the entries, ascending by KEK id.
    #[must_use]
    pub fn entries(&self) -> &[WrappedDek] {
        &self.0.entries
    }
}

/// One list has one encoding.
impl PartialEq for WrappedKeys {
    fn eq(&self, other: &Self) -> bool {
        self.0.bytes == other.0.bytes
    }
}

impl Eq for WrappedKeys {}

impl fmt::Debug for WrappedKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.entries()).finish()
    }
}

/// Reads [`WrappedKeys::as_bytes`]. Refuses anything but the one canonical encoding of a valid
/// list.
///
/// # Errors
/// [`ErrorKind::Malformed`].
impl TryFrom<&[u8]> for WrappedKeys {
    type Error = Error;

    fn try_from(bytes: &[u8]) -> Result<Self, Error> {
        let entries = read_entries(bytes)
            .ok_or_else(|| Error::new(ErrorKind::Malformed, "not a list of wrapped keys"))?;
        Ok(Self(Arc::new(List { entries: entries.into(), bytes: bytes.into() })))
    }
}

fn read_entries(bytes: &[u8]) -> Option<Vec<WrappedDek>> {
    if bytes.len() > WrappedKeys::MAX_BYTES {
        return None;
    }
    let mut reader = Reader::new(bytes);
    let count = read_varint(&mut reader, 1, WrappedKeys::MAX_ENTRIES)?;
    let mut entries: Vec<WrappedDek> = Vec::with_capacity(count);
    for _ in 0..count {
        let len = read_varint(&mut reader, 1, KekId::MAX_LEN)?;
        let kek_id = reader.text(len)?;
        if entries.last().is_some_and(|last| last.kek_id.as_str() >= kek_id) {
            return None;
        }
        let len = read_varint(&mut reader, 1, WrappedDek::MAX_WRAPPED)?;
        let wrapped = reader.take(len)?;
        let len = read_varint(&mut reader, 0, WrappedDek::MAX_META)?;
        let meta = reader.take(len)?;
        entries.push(WrappedDek {
            kek_id: KekId(kek_id.into()),
            wrapped: wrapped.into(),
            meta: meta.into(),
        });
    }
    reader.is_empty().then_some(entries)
}

/// bincode's variable-length integer, up to the lengths here: one byte up to 250, otherwise 251 and
/// a `u16`.
fn push_varint(bytes: &mut Vec<u8>, value: usize) {
    match u8::try_from(value) {
        Ok(byte @ ..=250) => bytes.push(byte),
        _ => {
            // Every caller has checked its length against a limit below 2^16. A longer one would
            // fail the size check of the list.
            bytes.push(251);
            bytes.extend_from_slice(&u16::try_from(value).unwrap_or(u16::MAX).to_le_bytes());
        }
    }
}

/// Accepts only the shortest form, and only a value within `min..=max`.
fn read_varint(reader: &mut Reader<'_>, min: usize, max: usize) -> Option<usize> {
    let value = match reader.u8()? {
        byte @ ..=250 => usize::from(byte),
        251 => usize::from(reader.u16().filter(|value| *value > 250)?),
        _ => return None,
    };
    (min..=max).contains(&value).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, wrapped: usize, meta: usize) -> WrappedDek {
        WrappedDek::new(KekId::new(id).unwrap(), vec![0xAA; wrapped])
            .unwrap()
            .with_meta(vec![0xBB; meta])
            .unwrap()
    }

    type Plain = Vec<(String, Vec<u8>, Vec<u8>)>;

    /// Returns what bincode 2.0.1, with a limit, reads from the bytes.
    fn bincode_decode(bytes: &[u8]) -> Result<(Plain, usize), bincode::error::DecodeError> {
        bincode::decode_from_slice(bytes, bincode::config::standard().with_limit::<65_535>())
    }

    fn plain(keys: &WrappedKeys) -> Plain {
        keys.entries()
            .iter()
            .map(|e| (e.kek_id.as_str().to_owned(), e.wrapped.to_vec(), e.meta.to_vec()))
            .collect()
    }

    #[test]
    fn the_layout_is_bincodes() {
        for entries in [
            vec![entry("local:a", 76, 0)],
            vec![entry("b", 250, 64), entry("a", 251, 1), entry(&"k".repeat(512), 6144, 0)],
            (0..16).map(|i| entry(&format!("kek-{i}"), 184, 16)).collect(),
        ] {
            let keys = WrappedKeys::new(entries).unwrap();
            assert_eq!(
                bincode_decode(keys.as_bytes()).unwrap(),
                (plain(&keys), keys.as_bytes().len())
            );
            assert_eq!(
                bincode::encode_to_vec(plain(&keys), bincode::config::standard()).unwrap(),
                keys.as_bytes()
            );
            assert_eq!(WrappedKeys::try_from(keys.as_bytes()).unwrap(), keys);
        }
    }

    #[test]
    fn whatever_is_accepted_is_canonical_for_bincode_too() {
        let good =
            WrappedKeys::new([entry("a", 3, 2), entry("b", 252, 0)]).unwrap().as_bytes().to_vec();
        let mut accepted = 0;
        for at in 0..good.len() {
            for value in 0..=255 {
                let mut bytes = good.clone();
                bytes[at] = value;
                let Ok(keys) = WrappedKeys::try_from(&bytes[..]) else { continue };
                accepted += 1;
                assert_eq!(bincode_decode(&bytes).unwrap(), (plain(&keys), bytes.len()));
                assert_eq!(
                    bincode::encode_to_vec(plain(&keys), bincode::config::standard()).unwrap(),
                    bytes
                );
                assert_eq!(
                    WrappedKeys::new(keys.entries().iter().cloned()).unwrap().as_bytes(),
                    bytes
                );
            }
        }
        assert!(accepted > good.len(), "the test reached the accepting path {accepted} times");
    }

    #[test]
    fn there_is_one_encoding_only() {
        let two = |a: &str, b: &str| {
            let mut bytes = vec![2];
            for id in [a, b] {
                bytes.push(u8::try_from(id.len()).unwrap());
                bytes.extend_from_slice(id.as_bytes());
                bytes.extend_from_slice(&[1, 0xAA, 0]);
            }
            bytes
        };
        assert!(WrappedKeys::try_from(&two("a", "b")[..]).is_ok());
        for (bytes, why) in [
            (two("b", "a"), "out of order"),
            (two("a", "a"), "one id twice"),
            ([two("a", "b"), vec![0]].concat(), "a byte behind the last"),
            (vec![0], "no entry"),
            (vec![17], "too many entries"),
            (vec![251, 1, 0, 1, b'a', 1, 0xAA, 0], "a count that is not minimal"),
            (vec![1, 251, 1, 0, b'a', 1, 0xAA, 0], "a length that is not minimal"),
            (vec![1, 0, 1, 0xAA, 0], "an empty id"),
            (vec![1, 1, 0xFF, 1, 0xAA, 0], "an id that is not UTF-8"),
            (vec![1, 1, b'a', 0, 0], "an empty wrapped key"),
            (vec![1, 1, b'a', 252, 1, 0, 0, 0, 0xAA, 0], "a 32-bit length"),
            (vec![1, 1, b'a', 253, 255, 255, 255, 255, 255, 255, 255, 255], "a 64-bit length"),
            (vec![], "nothing"),
        ] {
            let error = WrappedKeys::try_from(&bytes[..]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Malformed, "{why}");
        }
    }

    #[test]
    fn limits_bite_at_their_edges() {
        let kind = |result: Result<WrappedKeys, Error>| result.unwrap_err().kind();
        assert_eq!(kind(WrappedKeys::new([])), ErrorKind::InvalidOption);
        assert_eq!(
            kind(WrappedKeys::new([entry("a", 1, 0), entry("a", 2, 0)])),
            ErrorKind::InvalidOption
        );
        assert_eq!(
            kind(WrappedKeys::new((0..17).map(|i| entry(&format!("{i}"), 1, 0)))),
            ErrorKind::TooLarge
        );
        assert!(WrappedKeys::new((0..10).map(|i| entry(&format!("{i}"), 6144, 64))).is_ok());
        assert_eq!(
            kind(WrappedKeys::new((0..11).map(|i| entry(&format!("{i}"), 6144, 64)))),
            ErrorKind::TooLarge
        );
        assert!(
            KekId::new("").is_err()
                && KekId::new("k".repeat(513)).is_err()
                && KekId::new("k".repeat(512)).is_ok()
        );
        let id = KekId::new("a").unwrap();
        assert!(
            WrappedDek::new(id.clone(), vec![]).is_err()
                && WrappedDek::new(id.clone(), vec![0; 6145]).is_err()
        );
        assert!(WrappedDek::new(id, vec![0]).unwrap().with_meta(vec![0; 65]).is_err());
    }
}
