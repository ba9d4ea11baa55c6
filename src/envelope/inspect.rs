//! Reads what a sealed value says about itself, without a key.
#![forbid(unsafe_code)]

use crate::error::Error;
use crate::format::stream::Head;
use crate::format::{Header, KekId, Message, MessageKind, WrappedKeys};
use crate::suite::{DekId, Suite};

/// The result of [`inspect`]. **Nothing in it is authenticated**: it is what the bytes claim.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Inspection {
    /// The format's version.
    pub version: u8,
    /// The suite.
    pub suite: Suite,
    /// Message or stream.
    pub kind: MessageKind,
    /// The id of its DEK.
    pub dek_id: DekId,
    /// The KEKs that wrapped the DEK. Empty in compact form.
    pub keks: Vec<KekEntry>,
    /// The length of the plaintext in bytes. `None` for a stream.
    pub plaintext_len: Option<usize>,
    /// More about the head of a stream. `None` for a message.
    pub stream: Option<StreamShape>,
}

/// The layout of the stream of an [`Inspection`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct StreamShape {
    /// The length of the head in bytes.
    pub head_len: usize,
    /// The plaintext bytes of each chunk except the last.
    pub chunk_size: usize,
    /// How many bytes the wrapped keys can grow without a longer head.
    pub room: u16,
}

/// One wrapped key of an [`Inspection`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct KekEntry {
    /// The KEK.
    pub kek_id: KekId,
    /// The length of the wrapped DEK in bytes.
    pub wrapped_len: usize,
    /// The provider's hint, such as which key material wrapped it.
    pub meta: Vec<u8>,
}

/// Inspects a sealed value. It needs no key and makes no call. For a stream, the head is enough: at
/// most the first 131,174 bytes.
///
/// # Errors
/// The kinds for bytes that are not a sealed value of this format:
/// [`NotSealed`](crate::ErrorKind::NotSealed),
/// [`UnsupportedVersion`](crate::ErrorKind::UnsupportedVersion) and its siblings,
/// [`Malformed`](crate::ErrorKind::Malformed).
pub fn inspect(sealed: &[u8]) -> Result<Inspection, Error> {
    let header = Header::of(sealed)?;
    let (wrapped_keys, plaintext_len, stream) = match header.kind {
        MessageKind::Message => {
            let message = Message::parse(sealed)?;
            (message.wrapped_keys, Some(message.payload.len()), None)
        }
        MessageKind::Stream => {
            let head = Head::parse(sealed)?;
            let (head_len, chunk_size, room) = (head.len(), head.chunk.bytes(), head.room);
            (head.wrapped_keys, None, Some(StreamShape { head_len, chunk_size, room }))
        }
    };
    let keks = match wrapped_keys {
        [] => Vec::new(),
        bytes => WrappedKeys::try_from(bytes)?.entries().iter().map(entry).collect(),
    };
    Ok(Inspection {
        version: 1,
        suite: header.suite,
        kind: header.kind,
        dek_id: header.dek_id,
        keks,
        plaintext_len,
        stream,
    })
}

fn entry(wrapped: &crate::format::WrappedDek) -> KekEntry {
    KekEntry {
        kek_id: wrapped.kek_id().clone(),
        wrapped_len: wrapped.wrapped().len(),
        meta: wrapped.meta().to_vec(),
    }
}
