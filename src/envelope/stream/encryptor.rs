//! The key for writing a stream.
#![forbid(unsafe_code)]

use std::fmt;
use std::io::Write;
use std::sync::Arc;

use super::StreamWriter;
use super::sealing::Sealing;
use crate::dek::{BegunStream, OwnedSource, StreamDek};
use crate::error::{Error, ErrorKind};
use crate::format::WrappedKeys;
use crate::format::stream::Head;
use crate::suite::{ChunkSize, DekId, InOut, TAG_LEN};

/// The maximum size of wrapped keys and room in bytes.
const MAX_KEY_SPACE: u32 = 2 * 65_535;

/// How a stream is written. Unset options have their defaults.
///
/// ```
/// use waxseal::StreamOptions;
///
/// let options = StreamOptions::default().chunk_size(1 << 20).room(1024);
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct StreamOptions {
    chunk_size: u32,
    room: u16,
    key_space: Option<u32>,
    compact: bool,
}

impl Default for StreamOptions {
    fn default() -> Self {
        Self { chunk_size: 1 << 16, room: 256, key_space: None, compact: false }
    }
}

impl StreamOptions {
    /// Sets the plaintext bytes of a chunk: a power of two from 4 KiB to 16 MiB, by default 64 KiB.
    /// Writer and reader keep one chunk in memory. A ranged read fetches whole chunks. The chunk
    /// size may not exceed [`Limits::max_bytes`](crate::Limits::max_bytes).
    #[must_use]
    pub const fn chunk_size(mut self, bytes: u32) -> Self {
        self.chunk_size = bytes;
        self
    }

    /// Sets how many zero bytes follow the wrapped keys, by default 256. A rewrap whose list is up
    /// to this much longer changes the head in place.
    #[must_use]
    pub const fn room(mut self, bytes: u16) -> Self {
        self.room = bytes;
        self
    }

    /// Sets the total size of wrapped keys and room, at most 131,070 bytes, instead of
    /// [`room`](Self::room). All heads then have the same length, so plaintext lengths follow from
    /// those of the streams.
    #[must_use]
    pub const fn key_space(mut self, bytes: u32) -> Self {
        self.key_space = Some(bytes);
        self
    }

    /// Leaves the wrapped keys out. Store
    /// [those of the encryptor](StreamEncryptor::wrapped_keys), durably and under the DEK id,
    /// before the stream, or set a [key store](crate::EnvelopeBuilder::key_store).
    #[must_use]
    pub const fn compact(mut self) -> Self {
        self.compact = true;
        self
    }

    pub(in crate::envelope) fn is_compact(&self) -> bool {
        self.compact
    }

    pub(super) fn chunk(&self) -> Result<ChunkSize, Error> {
        let bytes = self.chunk_size;
        let chunk = bytes
            .is_power_of_two()
            .then(|| u8::try_from(bytes.trailing_zeros()).ok().and_then(ChunkSize::from_log2));
        chunk.flatten().ok_or_else(|| {
            let detail = format!("chunk_size is {bytes}, a power of two from 4096 to 16777216");
            Error::new(ErrorKind::InvalidOption, format!("{detail} is allowed"))
        })
    }

    /// Returns the room behind wrapped keys of this length.
    fn room_for(&self, wrapped_len: usize) -> Result<u16, Error> {
        let Some(space) = self.key_space else { return Ok(self.room) };
        if space > MAX_KEY_SPACE {
            let detail = format!("key_space is {space}, 0 to {MAX_KEY_SPACE} are allowed");
            return Err(Error::new(ErrorKind::InvalidOption, detail));
        }
        let room = usize::try_from(space).ok().and_then(|space| space.checked_sub(wrapped_len));
        room.ok_or_else(|| {
            let detail = format!("wrapped keys of {wrapped_len} bytes for a key_space of {space}");
            Error::new(ErrorKind::TooLarge, detail)
        })
        .and_then(|room| {
            u16::try_from(room).map_err(|_| {
                let detail = format!("key_space is {space}, which leaves {room} bytes of room");
                Error::new(ErrorKind::InvalidOption, detail)
            })
        })
    }
}

/// The key of one new stream: see
/// [`Envelope::stream_encryptor`](crate::Envelope::stream_encryptor).
///
/// It is not an [`Encryptor`](crate::Encryptor): it writes **one** stream, and so it cannot be
/// cloned. It is valid for [`Limits::max_stream_age`](crate::Limits::max_stream_age). When its DEK
/// is denied, revoked or evicted by [`evict_context`](crate::Envelope::evict_context), and in the
/// child of a fork, the next chunk fails with [`ErrorKind::Expired`].
#[must_use = "a stream is written by its writer"]
pub struct StreamEncryptor {
    key: Arc<StreamDek>,
    pub(super) head: Vec<u8>,
    pub(super) chunk: ChunkSize,
    wrapped_keys: WrappedKeys,
    /// Keeps the source alive: the DEKs end with the last envelope, handle or stream.
    _source: Arc<OwnedSource>,
}

impl StreamEncryptor {
    pub(super) fn new(
        begun: BegunStream,
        options: StreamOptions,
        chunk: ChunkSize,
        source: Arc<OwnedSource>,
    ) -> Result<Self, Error> {
        let wrapped_keys = begun.dek.wrapped_keys.clone();
        let carried = if options.compact { &[] } else { wrapped_keys.as_bytes() };
        let head = Head {
            suite: begun.dek.lease.suite.of_streams(),
            dek_id: begun.dek.lease.id,
            chunk,
            room: options.room_for(carried.len())?,
            wrapped_keys: carried,
            salt: &begun.salt,
            commitment: &begun.commitment,
        };
        let head = head.to_bytes()?;
        Ok(Self { key: begun.key, head, chunk, wrapped_keys, _source: source })
    }

    /// Returns the id of the DEK.
    #[must_use]
    pub fn dek_id(&self) -> DekId {
        self.key.dek_id()
    }

    /// Returns the wrapped forms of the DEK, for a stream in compact form.
    #[must_use]
    pub fn wrapped_keys(&self) -> &WrappedKeys {
        &self.wrapped_keys
    }

    /// Returns the length of the head in bytes.
    #[must_use]
    pub fn head_len(&self) -> usize {
        self.head.len()
    }

    /// Returns the length of a stream with this many plaintext bytes. `None` for more than any
    /// stream can have.
    #[must_use]
    pub fn stream_len(&self, plaintext_len: u64) -> Option<u64> {
        let last = plaintext_len / self.chunk.bytes() as u64;
        self.chunk.check_index(last).ok()?;
        plaintext_len.checked_add((last + 1) * TAG_LEN as u64)?.checked_add(self.head.len() as u64)
    }

    /// Encrypts one chunk to the front of `to`, and its tag to the end. Without `from` the
    /// plaintext is already there. **Call it once for each index**: the caller counts.
    pub(super) fn seal_chunk(
        &self,
        index: u64,
        from: Option<&[u8]>,
        to: &mut [u8],
    ) -> Result<(), Error> {
        let no_room = || Error::new(ErrorKind::BufferSize, "no room for the tag of a chunk");
        let (to, tag) = to.split_last_chunk_mut::<TAG_LEN>().ok_or_else(no_room)?;
        *tag = self.key.seal(index, InOut { from, to })?;
        Ok(())
    }

    /// Returns the key, for use with several chunks.
    pub(super) fn key(&self) -> &StreamDek {
        &self.key
    }

    /// Returns the writer of the stream. It writes nothing yet.
    pub fn writer<W: Write>(self, inner: W) -> StreamWriter<W> {
        StreamWriter::new(Sealing::new(self), inner)
    }
}

impl fmt::Debug for StreamEncryptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamEncryptor")
            .field("dek_id", &self.dek_id())
            .field("chunk_size", &self.chunk.bytes())
            .finish_non_exhaustive()
    }
}
