//! `std::io::Write` for a stream.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::io::Write;

use super::checked;
use super::sealing::Sealing;

/// Encrypts what is written to it: see
/// [`Envelope::encrypt_stream`](crate::Envelope::encrypt_stream).
///
/// **Call [`finish`](Self::finish) at the end.** Only `finish` writes the last chunk, and every
/// reader refuses a stream without it. It is also the only way to get the inner writer back. A
/// writer that is dropped, such as after an error or a panic, leaves a stream that is refused.
///
/// Each chunk is written as soon as it is full. Plaintext that does not fill a chunk stays in
/// memory, even after [`flush`](Write::flush). After an error of the inner writer the same call can
/// be repeated. After an encryption error, such as [`Expired`](crate::ErrorKind::Expired), every
/// call fails; [`Error::of_io`](crate::Error::of_io) returns that error.
#[must_use = "without `finish` the stream is refused by every reader"]
pub struct StreamWriter<W: Write> {
    sealing: Sealing,
    inner: W,
}

impl<W: Write> StreamWriter<W> {
    pub(super) fn new(sealing: Sealing, inner: W) -> Self {
        Self { sealing, inner }
    }

    /// Encrypts and writes the last chunk, flushes, and returns the inner writer.
    ///
    /// It does not sync a file.
    ///
    /// # Errors
    /// Those of the inner writer and of the encryption. The inner writer is then dropped, and the
    /// stream is refused, unless all of it was written and the flush failed. To retry, use
    /// [`try_finish`](Self::try_finish).
    pub fn finish(mut self) -> io::Result<W> {
        loop {
            match self.try_finish() {
                Ok(()) => return Ok(self.inner),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Finishes like [`finish`](Self::finish), for a writer that may need several calls, such as a
    /// non-blocking one. Call it until it succeeds. After that nothing can be written, and `finish`
    /// returns the inner writer.
    ///
    /// # Errors
    /// Those of [`finish`](Self::finish).
    pub fn try_finish(&mut self) -> io::Result<()> {
        self.drain()?;
        if !self.sealing.is_finished() {
            self.sealing.end()?;
            self.drain()?;
        }
        self.inner.flush()
    }

    /// Returns the inner writer. Writing to it corrupts the stream.
    pub fn get_ref(&self) -> &W {
        &self.inner
    }

    /// Writes the encrypted output.
    fn drain(&mut self) -> io::Result<()> {
        loop {
            let pending = self.sealing.pending();
            if pending.is_empty() {
                return Ok(());
            }
            match checked(self.inner.write(pending)?, pending.len())? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                n => self.sealing.written(n),
            }
        }
    }
}

impl<W: Write> Write for StreamWriter<W> {
    fn write(&mut self, plaintext: &[u8]) -> io::Result<usize> {
        self.drain()?;
        if plaintext.is_empty() {
            return Ok(0);
        }
        Ok(self.sealing.take(plaintext)?)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.drain()?;
        self.inner.flush()
    }
}

impl<W: Write> fmt::Debug for StreamWriter<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamWriter")
            .field("dek_id", &self.sealing.encryptor().dek_id())
            .finish_non_exhaustive()
    }
}
