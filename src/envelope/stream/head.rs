//! The public view of a stream's head.
#![forbid(unsafe_code)]

use std::fmt;
use std::io::{ErrorKind as IoErrorKind, Read};

use super::{ReadAt, checked, io_failed};
use crate::error::Error;
use crate::format::WrappedKeys;
use crate::format::stream::{FIXED_LEN, Head, head_len};
use crate::suite::{DekId, Suite};

/// How many bytes of a head are requested at once. Memory is allocated for bytes that arrived, not
/// for those that a head claims to have.
const STEP: usize = 4096;

/// The part before a stream's chunks: its suite, its DEK id, its wrapped keys.
///
/// **Nothing in it is authenticated** before it has become a
/// [`StreamDecryptor`](crate::StreamDecryptor).
#[derive(Clone, PartialEq, Eq)]
pub struct StreamHead {
    bytes: Box<[u8]>,
    suite: Suite,
    dek_id: DekId,
    chunk_size: usize,
    room: u16,
    /// The wrapped keys of a compact stream.
    apart: Option<WrappedKeys>,
}

impl StreamHead {
    /// Reads a head, and no byte after it. A head has at most 131,174 bytes.
    ///
    /// # Errors
    /// The kinds for bytes that are not a stream of this format;
    /// [`ErrorKind::Io`](crate::ErrorKind::Io) if the reader failed or would block.
    pub fn read(mut reader: impl Read) -> Result<Self, Error> {
        let mut buffer = HeadBuffer::default();
        while let Some(room) = buffer.room()? {
            match reader.read(room).and_then(|n| checked(n, room.len())) {
                Ok(n) => buffer.filled(n)?,
                Err(error) if error.kind() == IoErrorKind::Interrupted => {}
                Err(error) => return Err(io_failed(error)),
            }
        }
        buffer.into_head()
    }

    /// Reads the head at the front of `bytes`, and ignores what follows.
    ///
    /// # Errors
    /// The kinds for bytes that are not a stream of this format.
    pub fn from_prefix(bytes: &[u8]) -> Result<Self, Error> {
        let head = Head::parse(bytes)?;
        Ok(Self {
            bytes: bytes.get(..head.len()).unwrap_or_default().into(),
            suite: head.suite,
            dek_id: head.dek_id,
            chunk_size: head.chunk.bytes(),
            room: head.room,
            apart: None,
        })
    }

    /// Reads the head of a source, in one or two reads.
    pub(super) fn read_at(source: &impl ReadAt) -> Result<Self, Error> {
        let size = source.size().map_err(io_failed)?;
        let mut bytes = Vec::new();
        let mut wanted = 1024;
        loop {
            let have = bytes.len();
            let end = usize::try_from(size).unwrap_or(usize::MAX).min(wanted);
            if end <= have {
                return Self::from_prefix(&bytes);
            }
            bytes.resize(end, 0);
            let room = bytes.get_mut(have..).unwrap_or_default();
            super::seekable::read_exact_at(source, room, have as u64).map_err(io_failed)?;
            wanted = head_len(&bytes)?;
        }
    }

    /// Supplies the wrapped keys of a stream in compact form. A stream that carries wrapped keys
    /// uses those instead.
    #[must_use]
    pub fn with_wrapped_keys(mut self, wrapped_keys: &WrappedKeys) -> Self {
        self.apart = Some(wrapped_keys.clone());
        self
    }

    /// Returns the bytes of the head.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the length of the head in bytes. It is at least 104.
    #[expect(clippy::len_without_is_empty, reason = "it never is")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Returns the suite of the chunks.
    #[must_use]
    pub fn suite(&self) -> Suite {
        self.suite
    }

    /// Returns the id of the DEK.
    #[must_use]
    pub fn dek_id(&self) -> DekId {
        self.dek_id
    }

    /// Returns the commitment. It differs for every stream, and a rewrap does not change it. Nobody
    /// without the DEK can make a second stream with the same one. If you store it elsewhere, such
    /// as in a catalogue, you can check that a stream is the one that was written.
    #[must_use]
    pub fn commitment(&self) -> [u8; 32] {
        self.bytes.last_chunk().copied().unwrap_or_default()
    }

    /// Returns the plaintext bytes of each chunk except the last.
    #[must_use]
    pub fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    /// Returns how many bytes the wrapped keys can grow without a longer head.
    #[must_use]
    pub fn room(&self) -> u16 {
        self.room
    }

    /// Returns the length of the plaintext, computed from the length of the whole stream in bytes.
    ///
    /// It is **not authenticated**. The length that a [`SeekableStream`](crate::SeekableStream)
    /// returns is.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`](crate::ErrorKind::Malformed) for a length that no stream has, and
    /// [`ErrorKind::TooLarge`](crate::ErrorKind::TooLarge) for more than any stream can have.
    pub fn plaintext_len(&self, stream_len: u64) -> Result<u64, Error> {
        Ok(self.parsed()?.layout(stream_len)?.plaintext_len)
    }

    /// Whether the same chunks follow. A rewrap may have changed the wrapped keys.
    pub(in crate::envelope) fn is_of_the_same_stream(&self, other: &Self) -> bool {
        let of = |head: &Self| {
            let head = head.parsed().ok()?;
            Some((head.suite, head.dek_id, head.chunk, *head.salt, *head.commitment))
        };
        of(self).is_some_and(|own| of(other) == Some(own))
    }

    pub(super) fn parsed(&self) -> Result<Head<'_>, Error> {
        Head::parse(&self.bytes)
    }

    /// Empty if they are neither in the head nor supplied.
    pub(super) fn wrapped_keys(&self) -> &[u8] {
        match (self.parsed().map(|head| head.wrapped_keys), &self.apart) {
            (Ok(keys @ [_, ..]), _) => keys,
            (_, Some(apart)) => apart.as_bytes(),
            _ => &[],
        }
    }
}

impl fmt::Debug for StreamHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamHead")
            .field("suite", &self.suite)
            .field("dek_id", &self.dek_id)
            .field("chunk_size", &self.chunk_size)
            .field("room", &self.room)
            .finish_non_exhaustive()
    }
}

/// A head that arrives in pieces.
#[derive(Default)]
pub(super) struct HeadBuffer {
    bytes: Vec<u8>,
    filled: usize,
}

impl HeadBuffer {
    /// Returns where the next bytes go. `None` if the head is complete.
    pub(super) fn room(&mut self) -> Result<Option<&mut [u8]>, Error> {
        let wanted = match self.filled < FIXED_LEN {
            true => FIXED_LEN,
            false => head_len(&self.bytes)?,
        };
        self.bytes.resize(wanted.min(self.filled + STEP), 0);
        Ok(self.bytes.get_mut(self.filled..).filter(|room| !room.is_empty()))
    }

    /// Records that `n` bytes arrived. 0 is the end of the input, which a head may not have.
    pub(super) fn filled(&mut self, n: usize) -> Result<(), Error> {
        self.filled += n;
        if n == 0 {
            Head::parse(self.bytes.get(..self.filled).unwrap_or_default())?;
        }
        Ok(())
    }

    pub(super) fn into_head(self) -> Result<StreamHead, Error> {
        StreamHead::from_prefix(&self.bytes)
    }
}
