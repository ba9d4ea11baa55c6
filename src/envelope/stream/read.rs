//! `std::io::Read` for a stream.
#![forbid(unsafe_code)]

use std::fmt;
use std::io;
use std::io::{BufRead, Read};

use super::opening::Opening;
use super::{checked, copied};

/// Decrypts a stream from its beginning: see
/// [`Envelope::decrypt_stream`](crate::Envelope::decrypt_stream).
///
/// Every byte that it returns is authentic and at its position in the stream. **Only the end shows
/// that the stream is complete**, when [`read`](Read::read) returns 0. Until then do not act on the
/// whole: a stream that was cut returns its first part and then an error. After a decryption error
/// every read fails; [`Error::of_io`](crate::Error::of_io) returns that error. An error of the
/// inner reader is passed on, and the next read continues where it was.
///
/// It holds one chunk, and needs no [`BufReader`](io::BufReader). A chunk that fits into the buffer
/// of a [`read`](Read::read) is decrypted directly into it. If the chunk is not authentic, that
/// part of the buffer is wiped before the read returns its error. So the buffer must not be shared
/// with anyone who may not see unauthentic bytes, for example through memory that another process
/// maps too.
pub struct StreamReader<R> {
    opening: Opening,
    inner: R,
}

impl<R: Read> StreamReader<R> {
    pub(super) fn new(opening: Opening, inner: R) -> Self {
        Self { opening, inner }
    }

    /// Returns the inner reader. At the end of the stream, it is positioned after it.
    pub fn into_inner(self) -> R {
        self.inner
    }
}

impl<R: Read> Read for StreamReader<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if out.is_empty() {
            return Ok(0);
        }
        while let Some(room) = self.opening.room()? {
            let n = checked(self.inner.read(room)?, room.len())?;
            match self.opening.filled(n, out)? {
                0 => {}
                taken => return Ok(taken),
            }
        }
        let taken = copied(self.opening.plaintext(), out);
        self.opening.consume(taken);
        Ok(taken)
    }

    /// Appends chunk by chunk, without zeroing the space first as the default does.
    fn read_to_end(&mut self, out: &mut Vec<u8>) -> io::Result<usize> {
        let mut appended = 0;
        loop {
            let len = match self.fill_buf() {
                Ok([]) => return Ok(appended),
                Ok(plaintext) => {
                    out.try_reserve(plaintext.len())?;
                    out.extend_from_slice(plaintext);
                    plaintext.len()
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            self.consume(len);
            appended += len;
        }
    }
}

impl<R: Read> BufRead for StreamReader<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while let Some(room) = self.opening.room()? {
            let n = checked(self.inner.read(room)?, room.len())?;
            self.opening.filled(n, &mut [])?;
        }
        Ok(self.opening.plaintext())
    }

    fn consume(&mut self, n: usize) {
        self.opening.consume(n);
    }
}

impl<R> fmt::Debug for StreamReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamReader")
            .field("dek_id", &self.opening.decryptor().dek_id())
            .finish_non_exhaustive()
    }
}
