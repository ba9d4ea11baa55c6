//! The row of a key store (docs/format.md, "Key row"): wrapped keys that are stored apart from
//! messages, in one form for every store.
#![forbid(unsafe_code)]

use std::fmt;

use super::context::read_with_reserved_names;
use super::reader::Reader;
use super::wrapped_keys::WrappedKeys;
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::suite::DekId;

const MAGIC: [u8; 4] = [0xC1, b'W', b'K', 0x01];
const STATE_LIVE: u8 = 0;
const STATE_TOMBSTONE: u8 = 1;
/// The bytes before the context: magic, state, kind, two lengths and the id.
const FIXED_LEN: usize = 4 + 1 + 1 + 2 + 32 + 2;

/// What the key of a row is for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum KeyKind {
    /// A DEK of messages in compact form.
    Dek,
    /// A branch key, from which DEKs are derived.
    Branch,
    /// The key of a blind index.
    Index,
}

impl KeyKind {
    const fn id(self) -> u8 {
        match self {
            Self::Dek => 0,
            Self::Branch => 1,
            Self::Index => 2,
        }
    }

    const fn from_id(id: u8) -> Option<Self> {
        match id {
            0 => Some(Self::Dek),
            1 => Some(Self::Branch),
            2 => Some(Self::Index),
            _ => None,
        }
    }
}

/// A row of a key store: the wrapped keys of one key, or the tombstone that erasure left of it.
///
/// It holds nothing secret. The id commits to the key and to the context, and the KEKs authenticate
/// the wrapped keys. So a row that is changed or moved opens nothing. Only the kind is not
/// authenticated: the context says what a key is for.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyRow {
    kind: KeyKind,
    id: DekId,
    live: Option<(EncryptionContext, WrappedKeys)>,
}

impl KeyRow {
    /// The maximum size of a row in bytes.
    pub const MAX_BYTES: usize = FIXED_LEN + EncryptionContext::MAX_BYTES + WrappedKeys::MAX_BYTES;

    /// Makes the row of a key: its id, the context that the id commits to, and its wrapped keys.
    #[must_use]
    pub fn live(
        kind: KeyKind,
        id: DekId,
        context: EncryptionContext,
        wrapped_keys: WrappedKeys,
    ) -> Self {
        Self { kind, id, live: Some((context, wrapped_keys)) }
    }

    /// Makes the row that is left when the key is erased. From then on it refuses the id.
    #[must_use]
    pub fn tombstone(kind: KeyKind, id: DekId) -> Self {
        Self { kind, id, live: None }
    }

    /// Returns what the key is for.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// Returns the key's id.
    #[must_use]
    pub fn id(&self) -> &DekId {
        &self.id
    }

    /// Returns whether the key was erased.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.live.is_none()
    }

    /// Returns the context, unless the key was erased.
    #[must_use]
    pub fn context(&self) -> Option<&EncryptionContext> {
        self.live.as_ref().map(|(context, _)| context)
    }

    /// Returns the wrapped keys, unless the key was erased.
    #[must_use]
    pub fn wrapped_keys(&self) -> Option<&WrappedKeys> {
        self.live.as_ref().map(|(_, wrapped_keys)| wrapped_keys)
    }

    /// Returns the encoded row.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let (state, context, keys) = match &self.live {
            Some((context, keys)) => (STATE_LIVE, context.as_bytes(), keys.as_bytes()),
            None => (STATE_TOMBSTONE, &[][..], &[][..]),
        };
        let mut bytes = Vec::with_capacity(FIXED_LEN + context.len() + keys.len());
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[state, self.kind.id()]);
        bytes.extend_from_slice(&length(keys));
        bytes.extend_from_slice(self.id.as_bytes());
        bytes.extend_from_slice(&length(context));
        bytes.extend_from_slice(context);
        bytes.extend_from_slice(keys);
        bytes
    }
}

/// Both fit: a context has at most 8,192 bytes and a list of wrapped keys 65,535.
fn length(part: &[u8]) -> [u8; 2] {
    u16::try_from(part.len()).unwrap_or(u16::MAX).to_le_bytes()
}

/// Reads [`KeyRow::to_bytes`]. Refuses anything but the one encoding of a valid row.
///
/// # Errors
/// [`ErrorKind::Malformed`], or [`ErrorKind::UnsupportedVersion`] and
/// [`ErrorKind::UnsupportedKind`] for what a later version may have written.
impl TryFrom<&[u8]> for KeyRow {
    type Error = Error;

    fn try_from(bytes: &[u8]) -> Result<Self, Error> {
        let cut = || malformed("cut short");
        let mut reader = Reader::new(bytes);
        let [magic @ .., version] = reader.array::<4>().ok_or_else(cut)?;
        let [expected @ .., known] = &MAGIC;
        if magic != expected {
            return Err(malformed("not a key row"));
        }
        if version != known {
            return Err(Error::new(ErrorKind::UnsupportedVersion, version.to_string()));
        }
        let state = reader.u8().ok_or_else(cut)?;
        let kind = reader.u8().ok_or_else(cut)?;
        let kind = KeyKind::from_id(kind).ok_or_else(|| {
            Error::new(ErrorKind::UnsupportedKind, format!("a key row of kind {kind}"))
        })?;
        let keys_len = reader.u16().ok_or_else(cut)?;
        let id = DekId::from_bytes(*reader.array().ok_or_else(cut)?);
        let context_len = reader.u16().ok_or_else(cut)?;
        let context = reader.take(context_len.into()).ok_or_else(cut)?;
        let keys = reader.take(keys_len.into()).ok_or_else(cut)?;
        if !reader.is_empty() {
            return Err(malformed("too long"));
        }
        let live = match state {
            STATE_LIVE => Some((read_with_reserved_names(context)?, WrappedKeys::try_from(keys)?)),
            STATE_TOMBSTONE if context.is_empty() && keys.is_empty() => None,
            _ => return Err(malformed("its state")),
        };
        Ok(Self { kind, id, live })
    }
}

fn malformed(what: &'static str) -> Error {
    Error::new(ErrorKind::Malformed, format!("key row: {what}"))
}

impl fmt::Debug for KeyRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyRow")
            .field("kind", &self.kind)
            .field("id", &self.id)
            .field("context", &self.context())
            .field("wrapped_keys", &self.wrapped_keys())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::super::wrapped_keys::{KekId, WrappedDek};
    use super::*;

    fn row() -> KeyRow {
        let context = EncryptionContext::with_reserved_names([
            ("tenant", "acme"),
            ("waxseal:branch", "orders"),
        ])
        .unwrap();
        let entry = WrappedDek::new(KekId::new("local:root").unwrap(), vec![7; 76]).unwrap();
        let keys = WrappedKeys::new([entry]).unwrap();
        KeyRow::live(KeyKind::Branch, DekId::from_bytes([9; 32]), context, keys)
    }

    #[test]
    fn a_row_is_read_back_and_no_other_length_of_it_is() {
        for row in [row(), KeyRow::tombstone(KeyKind::Dek, DekId::from_bytes([1; 32]))] {
            let bytes = row.to_bytes();
            assert_eq!(KeyRow::try_from(&bytes[..]).unwrap(), row);
            for len in 0..bytes.len() {
                assert!(KeyRow::try_from(&bytes[..len]).is_err(), "cut at {len}");
            }
            assert!(KeyRow::try_from(&[&bytes[..], &[0]].concat()[..]).is_err(), "one byte more");
        }
        assert_eq!(KeyRow::tombstone(KeyKind::Dek, *row().id()).to_bytes().len(), FIXED_LEN);
    }

    #[test]
    fn a_changed_row_is_refused_or_read_as_what_it_says() {
        let bytes = row().to_bytes();
        for bit in 0..bytes.len() * 8 {
            let mut changed = bytes.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            if let Ok(read) = KeyRow::try_from(&changed[..]) {
                assert_ne!(read, row());
                assert_eq!(read.to_bytes(), changed, "one row, one encoding");
            }
        }
        let of = |at: usize, byte: u8| {
            let mut changed = bytes.clone();
            changed[at] = byte;
            KeyRow::try_from(&changed[..]).unwrap_err().kind()
        };
        assert_eq!(of(0, 0), ErrorKind::Malformed);
        assert_eq!(of(3, 2), ErrorKind::UnsupportedVersion);
        assert_eq!(of(4, 1), ErrorKind::Malformed, "a tombstone has no wrapped keys");
        assert_eq!(of(5, 9), ErrorKind::UnsupportedKind);
        assert_eq!(of(FIXED_LEN + 9, b'\n'), ErrorKind::Malformed, "a name in the context");
    }
}
