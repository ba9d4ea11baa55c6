//! Streams: payloads of any length, encrypted in chunks.
//!
//! ```text
//!   look-up (await) ──► StreamEncryptor ──► StreamWriter: Write        AsyncStreamWriter (tokio)
//!   StreamHead, look-up (await) ──► StreamDecryptor ──► StreamReader: Read + BufRead
//!                                                   └─► SeekableStream: Read + Seek, read_range
//! ```
//!
//! The key is looked up once, and everything after that is synchronous. `sealing` and `opening`
//! convert bytes to chunks and back, and do no I/O. The other modules read and write.
#![forbid(unsafe_code)]

mod decryptor;
mod encryptor;
mod head;
mod opening;
mod parallel;
mod read;
mod sealing;
mod seekable;
mod slices;
#[cfg(feature = "tokio")]
mod tokio;
mod write;

use std::io;
use std::io::{Read, Write};

pub use decryptor::StreamDecryptor;
pub use encryptor::{StreamEncryptor, StreamOptions};
pub use head::StreamHead;
pub use read::StreamReader;
pub use seekable::{ReadAt, SeekableStream};
pub use write::StreamWriter;

#[cfg(feature = "tokio")]
pub use self::tokio::{AsyncStreamReader, AsyncStreamWriter};
use super::{Aad, ActingFor, Envelope};
use crate::caller::{Action, Caller};
use crate::context::EncryptionContext;
use crate::dek::ReadingRequest;
use crate::error::{Error, ErrorKind};
use crate::observe::Access;

impl Envelope {
    /// Begins a stream. Data written to the result is encrypted, in chunks, to `writer`.
    ///
    /// **Call [`finish`](StreamWriter::finish)**, or every reader refuses the stream. The key
    /// service is asked at most once, here. docs/streams.md is the guide.
    ///
    /// ```
    /// # use waxseal::{Aad, EncryptionContext, Envelope, kek::local::LocalKek};
    /// use std::io::{Read, Write};
    ///
    /// # pollster::block_on(async {
    /// # let envelope = Envelope::builder().wrap_with(LocalKek::in_memory("test")?).build()?;
    /// # let context = EncryptionContext::empty();
    /// let mut writer = envelope.encrypt_stream(&context, Aad::from(b"backup 17"), Vec::new()).await?;
    /// for line in 0..100_000 {
    ///     writeln!(writer, "line {line}")?;
    /// }
    /// let sealed = writer.finish()?;
    ///
    /// let mut reader = envelope.decrypt_stream(&context, Aad::from(b"backup 17"), &sealed[..]).await?;
    /// let mut text = String::new();
    /// reader.read_to_string(&mut text)?;
    /// assert!(text.ends_with("line 99999\n"));
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt).
    pub async fn encrypt_stream<W: Write>(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        writer: W,
    ) -> Result<StreamWriter<W>, Error> {
        let options = StreamOptions::default();
        Ok(self.stream_encryptor_for(None, context, aad, options).await?.writer(writer))
    }

    /// Returns the key of a new stream, like [`encrypt_stream`](Self::encrypt_stream) but with
    /// options and without a writer.
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt); [`ErrorKind::InvalidOption`] for an option out of
    /// range, or if the limits leave no time for streams
    /// ([`Limits::max_stream_age`](crate::Limits::max_stream_age)); [`ErrorKind::TooLarge`] if the
    /// wrapped keys do not fit in [`key_space`](StreamOptions::key_space).
    pub async fn stream_encryptor(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        options: StreamOptions,
    ) -> Result<StreamEncryptor, Error> {
        self.stream_encryptor_for(None, context, aad, options).await
    }

    /// Opens a stream for reading from its beginning.
    ///
    /// It reads the head from `reader`, which may block, and checks that the head belongs to this
    /// context and AAD. After that it never waits for a key service.
    ///
    /// **Returned plaintext is authentic, but may be only a part.** Only the end, which
    /// [`read`](Read::read) reports as 0 bytes, shows that it was the whole. A stream that was cut
    /// ends with an error.
    ///
    /// # Errors
    /// Those of [`decrypt`](Self::decrypt); [`ErrorKind::Io`] if the reader failed.
    pub async fn decrypt_stream<R: Read>(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        mut reader: R,
    ) -> Result<StreamReader<R>, Error> {
        let head = StreamHead::read(&mut reader)?;
        Ok(self.stream_decryptor_for(None, context, aad, &head).await?.reader(reader))
    }

    /// Opens a stream whose source can be read at any position.
    ///
    /// It reads the head and the last chunk, which authenticates the length. Each
    /// [`read_range`](SeekableStream::read_range) then reads only the chunks that it needs.
    ///
    /// # Errors
    /// Those of [`decrypt`](Self::decrypt); [`ErrorKind::Io`] if the source failed.
    pub async fn open_stream<S: ReadAt>(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        source: S,
    ) -> Result<SeekableStream<S>, Error> {
        let head = StreamHead::read_at(&source)?;
        self.stream_decryptor_for(None, context, aad, &head).await?.seekable(source)
    }

    /// Returns the key of the stream that begins with `head`, for loops, several threads and your
    /// own reading code.
    ///
    /// # Errors
    /// Those of [`decrypt`](Self::decrypt).
    pub async fn stream_decryptor(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        head: &StreamHead,
    ) -> Result<StreamDecryptor, Error> {
        self.stream_decryptor_for(None, context, aad, head).await
    }

    pub(super) async fn stream_encryptor_for(
        &self,
        caller: Option<&Caller>,
        context: &EncryptionContext,
        aad: Aad<'_>,
        options: StreamOptions,
    ) -> Result<StreamEncryptor, Error> {
        let chunk = options.chunk()?;
        let permitted = self.permit(Action::Encrypt, context, caller).await?;
        let begun = self.source.begin_stream(context, chunk, aad.as_bytes()).await?;
        self.confirm(permitted, Action::Encrypt, context, caller).await?;
        if let Some(caller) = caller {
            self.source.count(caller, &begun.dek.lease.id, context, Access::Encrypt, 1);
        }
        StreamEncryptor::new(begun, options, chunk, self.source.clone())
    }

    pub(super) async fn stream_decryptor_for(
        &self,
        caller: Option<&Caller>,
        context: &EncryptionContext,
        aad: Aad<'_>,
        head: &StreamHead,
    ) -> Result<StreamDecryptor, Error> {
        let permitted = self.permit(Action::Decrypt, context, caller).await?;
        let (parsed, wrapped_keys) = (head.parsed()?, head.wrapped_keys());
        if wrapped_keys.is_empty() && !self.source.has_store() {
            return Err(Error::new(ErrorKind::MissingWrappedKeys, parsed.dek_id.to_string()));
        }
        let request = ReadingRequest {
            context,
            id: &parsed.dek_id,
            suite: parsed.suite,
            wrapped_keys: Some(wrapped_keys),
            is_stored: wrapped_keys.is_empty(),
        };
        let key = self.source.open_stream(request, &parsed, aad.as_bytes()).await?;
        self.confirm(permitted, Action::Decrypt, context, caller).await?;
        if let Some(caller) = caller {
            self.source.count(caller, &parsed.dek_id, context, Access::Decrypt, 1);
        }
        Ok(StreamDecryptor::new(key, parsed.chunk, head.clone(), self.source.clone()))
    }
}

impl ActingFor<'_> {
    /// Does the same as [`Envelope::encrypt_stream`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::encrypt_stream`].
    pub async fn encrypt_stream<W: Write>(
        self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        writer: W,
    ) -> Result<StreamWriter<W>, Error> {
        Ok(self.stream_encryptor(context, aad, StreamOptions::default()).await?.writer(writer))
    }

    /// Does the same as [`Envelope::stream_encryptor`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::stream_encryptor`].
    pub async fn stream_encryptor(
        self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        options: StreamOptions,
    ) -> Result<StreamEncryptor, Error> {
        self.envelope.stream_encryptor_for(self.caller, context, aad, options).await
    }

    /// Does the same as [`Envelope::decrypt_stream`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::decrypt_stream`].
    pub async fn decrypt_stream<R: Read>(
        self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        mut reader: R,
    ) -> Result<StreamReader<R>, Error> {
        let head = StreamHead::read(&mut reader)?;
        Ok(self.stream_decryptor(context, aad, &head).await?.reader(reader))
    }

    /// Does the same as [`Envelope::open_stream`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::open_stream`].
    pub async fn open_stream<S: ReadAt>(
        self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        source: S,
    ) -> Result<SeekableStream<S>, Error> {
        let head = StreamHead::read_at(&source)?;
        self.stream_decryptor(context, aad, &head).await?.seekable(source)
    }

    /// Does the same as [`Envelope::stream_decryptor`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::stream_decryptor`].
    pub async fn stream_decryptor(
        self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        head: &StreamHead,
    ) -> Result<StreamDecryptor, Error> {
        self.envelope.stream_decryptor_for(self.caller, context, aad, head).await
    }
}

/// Returns the error of a reader or source, while a stream is opened.
fn io_failed(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error,
        Err(error) => Error::new(ErrorKind::Io, "the stream could not be read").with_source(error),
    }
}

/// Returns the byte count that a reader or writer reported, unless it exceeds what it was given.
fn checked(taken: usize, given: usize) -> io::Result<usize> {
    match taken <= given {
        true => Ok(taken),
        false => Err(io::Error::other("a reader or writer took more bytes than it was given")),
    }
}

/// Copies as much as fits, and returns how much that is.
fn copied(from: &[u8], to: &mut [u8]) -> usize {
    let n = from.len().min(to.len());
    if let (Some(from), Some(to)) = (from.get(..n), to.get_mut(..n)) {
        to.copy_from_slice(from);
    }
    n
}
