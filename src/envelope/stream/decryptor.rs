//! The key for reading a stream.
#![forbid(unsafe_code)]

use std::fmt;
use std::io::Read;
use std::sync::Arc;

use super::opening::Opening;
use super::{ReadAt, SeekableStream, StreamHead, StreamReader};
use crate::dek::{OwnedSource, StreamDek, StreamUse};
use crate::envelope::Plaintext;
use crate::error::{Error, ErrorKind};
use crate::format::stream::no_last_chunk;
use crate::memory::wipe;
use crate::suite::{ChunkSize, DekId, InOut, TAG_LEN};

/// The key of one stream: see [`Envelope::stream_decryptor`](crate::Envelope::stream_decryptor).
/// The stream's head has been checked against the context and the AAD.
///
/// It is valid for [`Limits::max_stream_age`](crate::Limits::max_stream_age). When its DEK is
/// denied, revoked or evicted by [`evict_context`](crate::Envelope::evict_context), the next chunk
/// fails with [`ErrorKind::Expired`]. A clone is a pointer.
#[derive(Clone)]
pub struct StreamDecryptor {
    key: Arc<StreamDek>,
    pub(super) chunk: ChunkSize,
    pub(super) head: StreamHead,
    /// Keeps the source alive: the DEKs end with the last envelope, handle or stream.
    _source: Arc<OwnedSource>,
}

impl StreamDecryptor {
    pub(super) fn new(
        key: Arc<StreamDek>,
        chunk: ChunkSize,
        head: StreamHead,
        source: Arc<OwnedSource>,
    ) -> Self {
        Self { key, chunk, head, _source: source }
    }

    /// Returns the id of the DEK.
    #[must_use]
    pub fn dek_id(&self) -> DekId {
        self.key.dek_id()
    }

    /// Returns the head.
    #[must_use]
    pub fn head(&self) -> &StreamHead {
        &self.head
    }

    /// Returns a reader of the plaintext. `inner` supplies the bytes that follow the head.
    pub fn reader<R: Read>(self, inner: R) -> StreamReader<R> {
        StreamReader::new(Opening::new(self), inner)
    }

    /// Returns a reader of the plaintext at any position. `source` is the whole stream, with its
    /// head. This reads the last chunk, which authenticates the length.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] and
    /// [`ErrorKind::Malformed`] for a stream that was cut or extended;
    /// [`ErrorKind::Io`] if the source failed.
    pub fn seekable<S: ReadAt>(self, source: S) -> Result<SeekableStream<S>, Error> {
        SeekableStream::new(self, source)
    }

    /// Decrypts one chunk with its tag, for your own code that obtains the bytes of a stream. It
    /// does no I/O.
    ///
    /// Chunk `index`, counted from 0, is `index * (chunk_size + 16)` bytes after the head, and has
    /// `chunk_size + 16` bytes. Only the last is shorter, down to 16 bytes. So plaintext that is
    /// shorter than [`chunk_size`](StreamHead::chunk_size) is the authentic end of the stream. **A
    /// full chunk says nothing about the end**, and a part is not the whole.
    ///
    /// ```
    /// # use waxseal::{Aad, EncryptionContext, Envelope, StreamHead, StreamOptions, kek::local::LocalKek};
    /// # use std::io::Write;
    /// # pollster::block_on(async {
    /// # let envelope = Envelope::builder().wrap_with(LocalKek::in_memory("test")?).build()?;
    /// # let context = EncryptionContext::empty();
    /// # let mut writer = envelope.encrypt_stream(&context, Aad::empty(), Vec::new()).await?;
    /// # writer.write_all(&[7; 100_000])?;
    /// # let sealed = writer.finish()?;
    /// let head = StreamHead::from_prefix(&sealed)?;
    /// let decryptor = envelope.stream_decryptor(&context, Aad::empty(), &head).await?;
    /// let second = sealed[head.len() + head.chunk_size() + 16..].to_vec();
    /// assert_eq!(decryptor.decrypt_chunk(1, second)?.len(), 100_000 - 65_536);
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] if it is not that chunk of this stream, [`ErrorKind::Malformed`] for
    /// a length that no chunk has, [`ErrorKind::Expired`] when the stream's time is over. The
    /// buffer is then wiped.
    pub fn decrypt_chunk(&self, index: u64, mut sealed: Vec<u8>) -> Result<Plaintext, Error> {
        if sealed.len() > self.chunk.bytes() + TAG_LEN {
            wipe(&mut sealed);
            return Err(Error::new(ErrorKind::Malformed, "more bytes than a chunk has"));
        }
        let len = self.open(index, &mut sealed)?;
        sealed.truncate(len);
        Ok(Plaintext::new(sealed))
    }

    /// Decrypts one chunk with its tag, in place, and returns the length of its plaintext. The last
    /// chunk is shorter than the others.
    pub(super) fn open(&self, index: u64, sealed: &mut [u8]) -> Result<usize, Error> {
        if let Some((payload, tag)) = sealed.split_last_chunk_mut::<TAG_LEN>() {
            self.key.open(index, InOut::in_place(payload), tag)?;
            return Ok(payload.len());
        }
        wipe(sealed);
        Err(no_last_chunk())
    }

    /// Decrypts one chunk with its tag to `to`, which is as long as its plaintext. If it is not
    /// authentic, `to` is wiped.
    pub(super) fn open_to(&self, index: u64, sealed: &[u8], to: &mut [u8]) -> Result<(), Error> {
        self.key.with(|key| open_to(&key, index, sealed, to))
    }

    /// Returns the key, for use with several chunks.
    pub(super) fn key(&self) -> &StreamDek {
        &self.key
    }
}

/// Does the same as [`StreamDecryptor::open_to`], with a key that is in use.
pub(super) fn open_to(
    key: &StreamUse<'_>,
    index: u64,
    sealed: &[u8],
    to: &mut [u8],
) -> Result<(), Error> {
    let (from, tag) = sealed.split_last_chunk::<TAG_LEN>().ok_or_else(no_last_chunk)?;
    key.open(index, InOut { from: Some(from), to }, tag)
}

impl fmt::Debug for StreamDecryptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamDecryptor").field("head", &self.head).finish_non_exhaustive()
    }
}
