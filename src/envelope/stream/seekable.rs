//! Reads a stream at any position.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io;
use std::io::{BufRead, Read, Seek, SeekFrom};
use std::ops::{Deref, Range};
use std::sync::Arc;

use super::{StreamDecryptor, StreamHead, checked, copied, io_failed};
use crate::envelope::Plaintext;
use crate::error::Error;
use crate::format::stream::Layout;
use crate::memory::wipe;
use crate::suite::TAG_LEN;

/// Bytes that can be read at any position, such as a file or a slice.
///
/// ```
/// use std::io;
///
/// struct Download(Vec<u8>);
///
/// impl waxseal::ReadAt for Download {
///     fn size(&self) -> io::Result<u64> {
///         Ok(self.0.len() as u64)
///     }
///
///     fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
///         self.0.read_at(buffer, offset) // Here a request for the range.
///     }
/// }
/// ```
pub trait ReadAt {
    /// Returns the number of bytes. It is called when a stream is opened.
    ///
    /// # Errors
    /// Those of the source.
    fn size(&self) -> io::Result<u64>;

    /// Reads the bytes at `offset` into the front of `buffer`, and returns how many were read.
    /// There may be fewer than fit, and 0 means the end.
    ///
    /// # Errors
    /// Those of the source. [`io::ErrorKind::Interrupted`] is retried.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

impl ReadAt for [u8] {
    fn size(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        Ok(copied(rest.unwrap_or_default(), buffer))
    }
}

impl ReadAt for Vec<u8> {
    fn size(&self) -> io::Result<u64> {
        self.as_slice().size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.as_slice().read_at(buffer, offset)
    }
}

#[cfg(any(unix, windows))]
impl ReadAt for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    #[cfg(unix)]
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(self, buffer, offset)
    }

    #[cfg(windows)]
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(self, buffer, offset)
    }
}

impl<S: ReadAt + ?Sized> ReadAt for &S {
    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buffer, offset)
    }
}

impl<S: ReadAt + ?Sized> ReadAt for Arc<S> {
    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buffer, offset)
    }
}

impl<S: ReadAt + ?Sized> ReadAt for Box<S> {
    fn size(&self) -> io::Result<u64> {
        (**self).size()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        (**self).read_at(buffer, offset)
    }
}

/// Fills the buffer, whatever portions the source returns.
pub(super) fn read_exact_at(
    source: &impl ReadAt,
    mut buffer: &mut [u8],
    mut offset: u64,
) -> io::Result<()> {
    while !buffer.is_empty() {
        match source.read_at(buffer, offset).and_then(|n| checked(n, buffer.len())) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buffer = buffer.get_mut(n..).unwrap_or_default();
                offset = offset.saturating_add(n as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A stream of which any part can be decrypted: see
/// [`Envelope::open_stream`](crate::Envelope::open_stream).
///
/// Its length is authentic, since the last chunk was decrypted when it was opened. A read decrypts
/// the chunks that it needs. [`read_range`](Self::read_range) can be called from many threads at
/// once. [`Read`] and [`Seek`] keep the chunk at their position in memory.
///
/// A source that changes after the stream was opened makes reads fail. No read mixes two streams,
/// since each stream has its own key. An older version of *the same* stream has the same bytes,
/// apart from its wrapped keys.
pub struct SeekableStream<S> {
    decryptor: StreamDecryptor,
    layout: Layout,
    source: S,
    position: u64,
    /// The last decrypted chunk, and its index.
    chunk: Option<(u64, Chunk)>,
}

/// A decrypted chunk, wiped on drop.
struct Chunk {
    buffer: Vec<u8>,
    len: usize,
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.buffer.get(..self.len).unwrap_or_default()
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        wipe(&mut self.buffer);
    }
}

impl<S: ReadAt> SeekableStream<S> {
    pub(super) fn new(decryptor: StreamDecryptor, source: S) -> Result<Self, Error> {
        let size = source.size().map_err(io_failed)?;
        let layout = decryptor.head.parsed()?.layout(size)?;
        let mut stream = Self { decryptor, layout, source, position: 0, chunk: None };
        let last = stream.chunk_at(layout.last, None).map_err(io_failed)?;
        stream.chunk = Some((layout.last, last));
        Ok(stream)
    }

    /// Returns the length of the plaintext in bytes. It is authentic.
    #[expect(clippy::len_without_is_empty, reason = "as for a file")]
    pub fn len(&self) -> u64 {
        self.layout.plaintext_len
    }

    /// Returns the head.
    pub fn head(&self) -> &StreamHead {
        &self.decryptor.head
    }

    /// Returns the source.
    pub fn get_ref(&self) -> &S {
        &self.source
    }

    /// Returns the source.
    pub fn into_inner(self) -> S {
        self.source
    }

    /// Decrypts a part of the plaintext. Anything beyond its end is left out.
    ///
    /// ```
    /// # use waxseal::{Aad, EncryptionContext, Envelope, kek::local::LocalKek};
    /// # use std::io::Write;
    /// # pollster::block_on(async {
    /// # let envelope = Envelope::builder().wrap_with(LocalKek::in_memory("test")?).build()?;
    /// # let context = EncryptionContext::empty();
    /// # let mut writer = envelope.encrypt_stream(&context, Aad::empty(), Vec::new()).await?;
    /// # writer.write_all(&[b'x'; 1 << 20])?;
    /// # let file = writer.finish()?;
    /// let stream = envelope.open_stream(&context, Aad::empty(), file).await?;
    /// assert_eq!(stream.len(), 1 << 20);
    /// assert_eq!(&*stream.read_range(1000..1010)?, b"xxxxxxxxxx");
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// Those of the source; an [error of the library](crate::Error::of_io) if a chunk is not
    /// authentic or the stream's time is over. Nothing is returned then.
    pub fn read_range(&self, range: Range<u64>) -> io::Result<Plaintext> {
        let range = range.start..range.end.min(self.len());
        let too_long = || io::Error::from(io::ErrorKind::OutOfMemory);
        let len = usize::try_from(range.end.saturating_sub(range.start)).map_err(|_| too_long())?;
        let mut part = Vec::new();
        part.try_reserve_exact(len).map_err(|_| too_long())?;
        let mut part = Plaintext::new(part);
        let (mut position, mut buffer) = (range.start, None);
        while position < range.end {
            let (index, within) = self.place_of(position);
            let chunk = self.chunk_at(index, buffer.take())?;
            let left = usize::try_from(range.end - position).unwrap_or(usize::MAX);
            let rest = chunk.get(within..).unwrap_or_default();
            let rest = rest.get(..left).unwrap_or(rest);
            part.extend(rest);
            position += rest.len() as u64;
            buffer = Some(chunk);
        }
        Ok(part)
    }

    /// Returns the index of a position's chunk, and the position in it.
    fn place_of(&self, position: u64) -> (u64, usize) {
        let chunk = self.decryptor.chunk.bytes() as u64;
        // Less than a chunk, which has at most 2^24 bytes.
        (position / chunk, usize::try_from(position % chunk).unwrap_or(usize::MAX))
    }

    /// Reads and decrypts a chunk. It replaces another one, if given.
    fn chunk_at(&self, index: u64, other: Option<Chunk>) -> io::Result<Chunk> {
        let Range { start, end } = self.layout.place_of(index);
        let sealed_len = self.decryptor.chunk.bytes() + TAG_LEN;
        let len = usize::try_from(end - start).unwrap_or(sealed_len).min(sealed_len);
        // A buffer that grew would leave its plaintext behind.
        let other = other.filter(|other| other.buffer.len() >= len);
        let mut chunk = other.unwrap_or_else(|| Chunk { buffer: vec![0; len], len });
        chunk.len = len;
        let sealed = chunk.buffer.get_mut(..chunk.len).unwrap_or_default();
        read_exact_at(&self.source, sealed, start)?;
        chunk.len = self.decryptor.open(index, sealed)?;
        Ok(chunk)
    }
}

impl<S: ReadAt> Read for SeekableStream<S> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        let taken = copied(self.fill_buf()?, out);
        self.consume(taken);
        Ok(taken)
    }
}

impl<S: ReadAt> BufRead for SeekableStream<S> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position >= self.len() {
            return Ok(&[]);
        }
        let (index, within) = self.place_of(self.position);
        let chunk = match self.chunk.take() {
            Some((at, chunk)) if at == index => chunk,
            other => self.chunk_at(index, other.map(|(_, chunk)| chunk))?,
        };
        let (_, chunk) = self.chunk.insert((index, chunk));
        Ok(chunk.get(within..).unwrap_or_default())
    }

    fn consume(&mut self, n: usize) {
        self.position = self.position.saturating_add(n as u64);
    }
}

impl<S: ReadAt> Seek for SeekableStream<S> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(by) => self.len().checked_add_signed(by),
            SeekFrom::Current(by) => self.position.checked_add_signed(by),
        };
        let detail = "a position before the beginning, or beyond every stream";
        self.position =
            position.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, detail))?;
        Ok(self.position)
    }
}

impl<S> fmt::Debug for SeekableStream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SeekableStream")
            .field("dek_id", &self.decryptor.dek_id())
            .field("len", &self.layout.plaintext_len)
            .finish_non_exhaustive()
    }
}
