//! The compact form: a message without its wrapped keys, which are stored separately.
#![forbid(unsafe_code)]

use crate::error::{Error, ErrorKind};
use crate::format::stream::carried_keys;
use crate::format::{Message, WrappedKeys};
use crate::suite::DekId;

/// A message in compact form, with the wrapped keys that open it.
///
/// Its bytes are 68 longer than the plaintext (80 under XAES-256-GCM). The wrapped keys are the
/// same for every message of a DEK. Store them once, under the [DEK id](Self::dek_id), **durably
/// and before the message**. To open it later, combine both with [`Sealed::compact`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Compact {
    bytes: Vec<u8>,
    dek_id: DekId,
    wrapped_keys: WrappedKeys,
}

impl Compact {
    pub(super) fn new(bytes: Vec<u8>, dek_id: DekId, wrapped_keys: WrappedKeys) -> Self {
        Self { bytes, dek_id, wrapped_keys }
    }

    /// Returns the message, without its wrapped keys.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the DEK's id, which is in the message too.
    #[must_use]
    pub fn dek_id(&self) -> DekId {
        self.dek_id
    }

    /// Returns the wrapped keys of the DEK.
    #[must_use]
    pub fn wrapped_keys(&self) -> &WrappedKeys {
        &self.wrapped_keys
    }

    /// Returns the message and its wrapped keys.
    #[must_use]
    pub fn into_parts(self) -> (Vec<u8>, WrappedKeys) {
        (self.bytes, self.wrapped_keys)
    }
}

/// A message to read: its bytes, and where its wrapped keys are.
///
/// Bytes convert into it directly; they then carry their wrapped keys. A message in compact form
/// comes with its wrapped keys: as a [`Compact`], or by [`Sealed::compact`]. Otherwise an envelope
/// finds them in its [key store](crate::EnvelopeBuilder::key_store). Without a store it refuses the
/// message with [`ErrorKind::MissingWrappedKeys`], even if its DEK is cached. A
/// [`Decryptor`](crate::Decryptor) has the DEK and needs no wrapped keys.
#[derive(Clone, Copy, Debug)]
pub struct Sealed<'a> {
    bytes: &'a [u8],
    apart: Option<&'a WrappedKeys>,
}

impl<'a> Sealed<'a> {
    /// Combines a message in compact form with its wrapped keys. If the bytes already carry wrapped
    /// keys, those are used.
    #[must_use]
    pub fn compact(bytes: &'a [u8], wrapped_keys: &'a WrappedKeys) -> Self {
        Self { bytes, apart: Some(wrapped_keys) }
    }

    /// Returns the bytes of the message.
    #[must_use]
    pub fn as_bytes(self) -> &'a [u8] {
        self.bytes
    }

    /// Returns the wrapped keys of a message, or of the head of a stream.
    pub(super) fn wrapped_keys(self) -> Result<&'a [u8], Error> {
        match (carried_keys(self.bytes)?, self.apart) {
            ((_, keys @ [_, ..]), _) => Ok(keys),
            (_, Some(apart)) => Ok(apart.as_bytes()),
            ((dek_id, []), None) => Err(missing(dek_id)),
        }
    }

    /// Parses the message. With `has_store`, it may come without wrapped keys.
    #[inline]
    pub(super) fn parse(self, has_store: impl FnOnce() -> bool) -> Result<Message<'a>, Error> {
        self.with_keys(Message::parse(self.bytes)?, has_store)
    }

    /// Does the same as [`parse`](Self::parse), with less work. `None` if the header is not that of
    /// `parsed`, from which `like` was read.
    #[inline]
    pub(super) fn parse_like(
        self,
        parsed: Sealed<'_>,
        like: &Message<'a>,
        has_store: impl FnOnce() -> bool,
    ) -> Option<Result<Message<'a>, Error>> {
        let message = like.parse_like(parsed.bytes, self.bytes)?;
        Some(message.and_then(|message| self.with_keys(message, has_store)))
    }

    #[inline]
    fn with_keys(
        self,
        mut message: Message<'a>,
        has_store: impl FnOnce() -> bool,
    ) -> Result<Message<'a>, Error> {
        if message.wrapped_keys.is_empty() {
            message.wrapped_keys = match self.apart {
                Some(wrapped_keys) => wrapped_keys.as_bytes(),
                None if has_store() => &[],
                None => return Err(missing(message.header.dek_id)),
            };
        }
        Ok(message)
    }
}

/// Returns the error for a message whose wrapped keys cannot be found.
#[cold]
fn missing(dek_id: DekId) -> Error {
    Error::new(ErrorKind::MissingWrappedKeys, dek_id.to_string())
}

impl<'a, B: AsRef<[u8]> + ?Sized> From<&'a B> for Sealed<'a> {
    fn from(bytes: &'a B) -> Self {
        Self { bytes: bytes.as_ref(), apart: None }
    }
}

impl<'a> From<&'a Compact> for Sealed<'a> {
    fn from(compact: &'a Compact) -> Self {
        Self::compact(&compact.bytes, &compact.wrapped_keys)
    }
}
