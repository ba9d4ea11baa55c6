//! tokio's `AsyncRead` and `AsyncWrite` for a stream.
#![forbid(unsafe_code)]

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf};

use super::head::HeadBuffer;
use super::opening::Opening;
use super::sealing::Sealing;
use super::{StreamDecryptor, StreamEncryptor, StreamHead, checked, io_failed};
use crate::context::EncryptionContext;
use crate::envelope::{Aad, ActingFor, Envelope};
use crate::error::Error;

impl Envelope {
    /// Encrypts like [`encrypt_stream`](Self::encrypt_stream), to a tokio writer.
    ///
    /// ```
    /// # use waxseal::{Aad, EncryptionContext, Envelope, kek::local::LocalKek};
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    ///
    /// # tokio::runtime::Builder::new_current_thread().enable_time().build()?.block_on(async {
    /// # let envelope = Envelope::builder().wrap_with(LocalKek::in_memory("test")?).build()?;
    /// # let context = EncryptionContext::empty();
    /// let mut writer = envelope.encrypt_stream_async(&context, Aad::empty(), Vec::new()).await?;
    /// writer.write_all(b"text").await?;
    /// let sealed = writer.finish().await?;
    ///
    /// let mut reader = envelope.decrypt_stream_async(&context, Aad::empty(), &sealed[..]).await?;
    /// let mut text = String::new();
    /// reader.read_to_string(&mut text).await?;
    /// assert_eq!(text, "text");
    /// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt).
    pub async fn encrypt_stream_async<W: AsyncWrite + Unpin>(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        writer: W,
    ) -> Result<AsyncStreamWriter<W>, Error> {
        self.for_nobody().encrypt_stream_async(context, aad, writer).await
    }

    /// Decrypts like [`decrypt_stream`](Self::decrypt_stream), from a tokio reader.
    ///
    /// # Errors
    /// Those of [`decrypt_stream`](Self::decrypt_stream).
    pub async fn decrypt_stream_async<R: AsyncRead + Unpin>(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        reader: R,
    ) -> Result<AsyncStreamReader<R>, Error> {
        self.for_nobody().decrypt_stream_async(context, aad, reader).await
    }
}

impl ActingFor<'_> {
    /// Does the same as [`Envelope::encrypt_stream_async`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::encrypt_stream_async`].
    pub async fn encrypt_stream_async<W: AsyncWrite + Unpin>(
        self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        writer: W,
    ) -> Result<AsyncStreamWriter<W>, Error> {
        let encryptor = self.stream_encryptor(context, aad, Default::default()).await?;
        Ok(encryptor.async_writer(writer))
    }

    /// Does the same as [`Envelope::decrypt_stream_async`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::decrypt_stream_async`].
    pub async fn decrypt_stream_async<R: AsyncRead + Unpin>(
        self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        mut reader: R,
    ) -> Result<AsyncStreamReader<R>, Error> {
        let head = StreamHead::read_async(&mut reader).await?;
        Ok(self.stream_decryptor(context, aad, &head).await?.async_reader(reader))
    }
}

impl StreamHead {
    /// Reads a head like [`read`](Self::read), from a tokio reader.
    ///
    /// # Errors
    /// Those of [`read`](Self::read).
    pub async fn read_async<R: AsyncRead + Unpin>(reader: &mut R) -> Result<Self, Error> {
        let mut buffer = HeadBuffer::default();
        while let Some(room) = buffer.room()? {
            let mut room = ReadBuf::new(room);
            let read = poll_fn(|cx| Pin::new(&mut *reader).poll_read(cx, &mut room)).await;
            let n = room.filled().len();
            match read {
                Ok(()) => buffer.filled(n)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_failed(error)),
            }
        }
        buffer.into_head()
    }
}

impl StreamEncryptor {
    /// Returns the writer of the stream, to a tokio writer: see [`writer`](Self::writer).
    pub fn async_writer<W: AsyncWrite + Unpin>(self, inner: W) -> AsyncStreamWriter<W> {
        AsyncStreamWriter { sealing: Sealing::new(self), inner }
    }
}

impl StreamDecryptor {
    /// Returns a reader of the plaintext, from a tokio reader: see [`reader`](Self::reader).
    pub fn async_reader<R: AsyncRead + Unpin>(self, inner: R) -> AsyncStreamReader<R> {
        AsyncStreamReader { opening: Opening::new(self), inner }
    }
}

/// A [`StreamWriter`](crate::StreamWriter) for tokio.
///
/// **Call [`finish`](Self::finish) at the end**, or shut it down, which also shuts down the inner
/// writer. Without one of the two every reader refuses the stream. A chunk is encrypted on the task
/// that writes. With chunks of megabytes that takes milliseconds. A write that is dropped before it
/// completes has taken nothing.
///
/// `tokio_util::io::StreamReader` and `tokio::io::copy` write a `Stream` of `Bytes` to it.
#[must_use = "without `finish` or a shut-down the stream is refused by every reader"]
pub struct AsyncStreamWriter<W> {
    sealing: Sealing,
    inner: W,
}

impl<W: AsyncWrite + Unpin> AsyncStreamWriter<W> {
    /// Encrypts and writes the last chunk, flushes, and returns the inner writer.
    ///
    /// If the future is dropped before the last chunk is written, the stream is refused.
    ///
    /// # Errors
    /// Those of the inner writer and of the encryption. The stream is then refused, unless all of
    /// it was written and the flush failed.
    pub async fn finish(mut self) -> io::Result<W> {
        poll_fn(|cx| self.poll_end(cx)).await?;
        poll_fn(|cx| Pin::new(&mut self.inner).poll_flush(cx)).await?;
        Ok(self.inner)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        if !self.sealing.is_finished() {
            self.sealing.end()?;
            ready!(self.poll_drain(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes the encrypted output.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let pending = self.sealing.pending();
            if pending.is_empty() {
                return Poll::Ready(Ok(()));
            }
            let n = ready!(Pin::new(&mut self.inner).poll_write(cx, pending))?;
            match checked(n, pending.len())? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                n => self.sealing.written(n),
            }
        }
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for AsyncStreamWriter<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        plaintext: &[u8],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(cx))?;
        if plaintext.is_empty() {
            return Poll::Ready(Ok(0));
        }
        Poll::Ready(Ok(self.sealing.take(plaintext)?))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_end(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<W> fmt::Debug for AsyncStreamWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncStreamWriter")
            .field("dek_id", &self.sealing.encryptor().dek_id())
            .finish_non_exhaustive()
    }
}

/// A [`StreamReader`](crate::StreamReader) for tokio.
///
/// A chunk is decrypted on the task that reads. A read that is dropped before it completes loses
/// nothing.
///
/// # A `Stream` of `Bytes`
/// `tokio_util::io::ReaderStream` makes one, such as the body of an HTTP response:
///
/// ```
/// # use waxseal::{Aad, EncryptionContext, Envelope, kek::local::LocalKek};
/// use futures_util::TryStreamExt;
/// use tokio_util::io::ReaderStream;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let envelope = Envelope::builder().wrap_with(LocalKek::in_memory("test")?).build()?;
/// # let context = EncryptionContext::empty();
/// # let mut writer = envelope.encrypt_stream(&context, Aad::empty(), Vec::new()).await?;
/// # std::io::Write::write_all(&mut writer, &[7; 200_000])?;
/// # let sealed = writer.finish()?;
/// let reader = envelope.decrypt_stream_async(&context, Aad::empty(), &sealed[..]).await?;
/// // One item a chunk.
/// let mut stream = ReaderStream::with_capacity(reader, 64 << 10);
/// let mut len = 0;
/// while let Some(bytes) = stream.try_next().await? {
///     len += bytes.len();
/// }
/// assert_eq!(len, 200_000); // Complete: what was cut ends with an error.
/// # Ok(()) }
/// ```
///
/// The library itself implements no `Stream`: that trait is below version 1, and its next version
/// would break this crate. The wrapper copies each byte once. An implementation here would too,
/// since the chunk's buffer is wiped. **An item that is an error is not the end**: `while let
/// Some(Ok(bytes))` mistakes a stream that was cut for a complete one.
pub struct AsyncStreamReader<R> {
    opening: Opening,
    inner: R,
}

impl<R: AsyncRead + Unpin> AsyncStreamReader<R> {
    /// Returns the inner reader. At the end of the stream, it is positioned after it.
    pub fn into_inner(self) -> R {
        self.inner
    }

    /// Completes when there is plaintext, or the stream has ended.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(room) = self.opening.room()? {
            let mut room = ReadBuf::new(room);
            ready!(Pin::new(&mut self.inner).poll_read(cx, &mut room))?;
            let n = room.filled().len();
            self.opening.filled(n, &mut [])?;
        }
        Poll::Ready(Ok(()))
    }
}

impl<R: AsyncRead + Unpin> AsyncRead for AsyncStreamReader<R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_fill(cx))?;
        let plaintext = self.opening.plaintext();
        let taken = plaintext.len().min(out.remaining());
        out.put_slice(plaintext.get(..taken).unwrap_or_default());
        self.opening.consume(taken);
        Poll::Ready(Ok(()))
    }
}

impl<R: AsyncRead + Unpin> AsyncBufRead for AsyncStreamReader<R> {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let this = self.get_mut();
        ready!(this.poll_fill(cx))?;
        Poll::Ready(Ok(this.opening.plaintext()))
    }

    fn consume(mut self: Pin<&mut Self>, n: usize) {
        self.opening.consume(n);
    }
}

impl<R> fmt::Debug for AsyncStreamReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AsyncStreamReader")
            .field("dek_id", &self.opening.decryptor().dek_id())
            .finish_non_exhaustive()
    }
}
