//! A whole stream in memory, from one buffer to another.
//!
//! Each chunk is encrypted or decrypted directly from source to destination. Threads take chunks in
//! parallel, and none waits for its turn.
#![forbid(unsafe_code)]

use std::num::NonZero;
use std::sync::{Mutex, PoisonError};
use std::{iter, thread};

use super::decryptor::open_to;
use super::{StreamDecryptor, StreamEncryptor};
use crate::dek::{StreamDek, StreamUse};
use crate::envelope::Plaintext;
use crate::error::{Error, ErrorKind};
use crate::memory::{wipe, zeros};
use crate::suite::{InOut, TAG_LEN};

/// A thread takes chunks of this total size, and none is started for less.
const PORTION: usize = 1024 * 1024;
/// The key is locked once for chunks of this total size, and cannot be wiped meanwhile. A lock for
/// each chunk would wait until all earlier writes are in memory.
const USE: usize = 256 * 1024;

impl StreamEncryptor {
    /// Encrypts `plaintext` to a whole stream in a new buffer, on up to `threads` threads: this
    /// one, and others that end before the call does. A thread is started only for 1 MiB or more,
    /// since less is faster without it.
    ///
    /// ```
    /// # use waxseal::{Aad, EncryptionContext, Envelope, StreamHead, StreamOptions, kek::local::LocalKek};
    /// # use std::num::NonZero;
    /// # pollster::block_on(async {
    /// # let envelope = Envelope::builder().wrap_with(LocalKek::in_memory("test")?).build()?;
    /// # let (context, plaintext) = (EncryptionContext::empty(), vec![7; 1 << 20]);
    /// let (aad, threads) = (Aad::from(b"backup 17"), NonZero::new(2).unwrap());
    /// let encryptor = envelope.stream_encryptor(&context, aad, StreamOptions::default()).await?;
    /// let sealed = encryptor.encrypt_slice(threads, &plaintext)?;
    ///
    /// let head = StreamHead::from_prefix(&sealed)?;
    /// let decryptor = envelope.stream_decryptor(&context, aad, &head).await?;
    /// assert_eq!(&*decryptor.decrypt_slice(threads, &sealed[head.len()..])?, &plaintext);
    /// # Ok::<(), waxseal::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::TooLarge`] for more bytes than a stream can have; [`ErrorKind::Exhausted`] and
    /// [`ErrorKind::Expired`] as with a [`StreamWriter`](crate::StreamWriter).
    pub fn encrypt_slice(
        self,
        threads: NonZero<usize>,
        plaintext: &[u8],
    ) -> Result<Vec<u8>, Error> {
        let mut stream = vec![0; self.len_of(plaintext)?];
        self.encrypt_slice_to(threads, plaintext, &mut stream)?;
        Ok(stream)
    }

    /// Encrypts like [`encrypt_slice`](Self::encrypt_slice), to a buffer of exactly
    /// [`stream_len`](Self::stream_len) bytes, such as one that is reused.
    ///
    /// # Errors
    /// Those of [`encrypt_slice`](Self::encrypt_slice), and [`ErrorKind::BufferSize`] for a buffer
    /// of another length. After any other error the buffer is filled with zeros.
    pub fn encrypt_slice_to(
        self,
        threads: NonZero<usize>,
        plaintext: &[u8],
        stream: &mut [u8],
    ) -> Result<(), Error> {
        let all = AllOrNothing(stream).of_len(self.len_of(plaintext))?;
        let chunk = self.chunk.bytes();
        let (head, body) = all.0.split_at_mut_checked(self.head.len()).ok_or_else(buffer_size)?;
        head.copy_from_slice(&self.head);
        let key = self.key();
        key.count(plaintext.len())?;
        let seal = |key: &StreamUse<'_>, index, from: &[u8], to: &mut [u8]| {
            let (to, tag) = to.split_last_chunk_mut::<TAG_LEN>().ok_or_else(buffer_size)?;
            *tag = key.seal(index, InOut { from: Some(from), to })?;
            Ok(())
        };
        side_by_side(threads, key, (chunk, plaintext), (chunk + TAG_LEN, body), seal)?;
        all.done();
        Ok(())
    }

    fn len_of(&self, plaintext: &[u8]) -> Result<usize, Error> {
        let len = u64::try_from(plaintext.len()).ok().and_then(|len| self.stream_len(len));
        len.and_then(buffer_len).ok_or_else(too_large)
    }
}

impl StreamDecryptor {
    /// Decrypts a whole stream to a new buffer, on up to `threads` threads: this one, and others
    /// that end before the call does. A thread is started only for 1 MiB or more. `body` is the
    /// bytes that follow the head.
    ///
    /// **All or nothing**: the plaintext is returned only if every chunk was authentic, including
    /// the last one. So it is the whole.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`] and [`ErrorKind::Malformed`] for a stream that was changed, cut or
    /// extended; [`ErrorKind::Expired`] when the stream's time is over.
    pub fn decrypt_slice(&self, threads: NonZero<usize>, body: &[u8]) -> Result<Plaintext, Error> {
        let mut plaintext = Plaintext::new(zeros(self.len_in(body)?));
        self.decrypt_slice_to(threads, body, plaintext.bytes_mut())?;
        Ok(plaintext)
    }

    /// Decrypts like [`decrypt_slice`](Self::decrypt_slice), to a buffer that is exactly as long as
    /// the plaintext ([`StreamHead::plaintext_len`](crate::StreamHead::plaintext_len)), such as one
    /// that is reused.
    ///
    /// Until it returns, the buffer may hold unauthentic bytes. It must not be shared with anyone
    /// who may not see them, for example through memory that another process maps too.
    ///
    /// # Errors
    /// Those of [`decrypt_slice`](Self::decrypt_slice), and [`ErrorKind::BufferSize`] for a buffer
    /// of another length. After any other error the buffer is filled with zeros.
    pub fn decrypt_slice_to(
        &self,
        threads: NonZero<usize>,
        body: &[u8],
        plaintext: &mut [u8],
    ) -> Result<(), Error> {
        let all = AllOrNothing(plaintext).of_len(self.len_in(body))?;
        let chunk = self.chunk.bytes();
        let key = self.key();
        side_by_side(threads, key, (chunk + TAG_LEN, body), (chunk, &mut *all.0), open_to)?;
        all.done();
        Ok(())
    }

    fn len_in(&self, body: &[u8]) -> Result<usize, Error> {
        let len = self.head.len().checked_add(body.len()).ok_or_else(too_large)?;
        let len = self.head.plaintext_len(u64::try_from(len).unwrap_or(u64::MAX))?;
        buffer_len(len).ok_or_else(too_large)
    }
}

/// Returns the length of a buffer for this many bytes, unless no buffer can hold them: on 32 bits a
/// plaintext may fit in memory and its stream not.
fn buffer_len(bytes: u64) -> Option<usize> {
    isize::try_from(bytes).ok().map(isize::unsigned_abs)
}

/// Processes all chunks of a stream, each once. The length of a full chunk is given for both sides.
/// The last is shorter, and may be empty on one side.
fn side_by_side(
    threads: NonZero<usize>,
    key: &StreamDek,
    (full_in, from): (usize, &[u8]),
    (full_out, to): (usize, &mut [u8]),
    work: impl Fn(&StreamUse<'_>, u64, &[u8], &mut [u8]) -> Result<(), Error> + Sync,
) -> Result<(), Error> {
    let [chunks, at_once] = [PORTION, USE].map(|len| (len / full_in.min(full_out)).max(1));
    let portions = pairs((chunks * full_in, from), (chunks * full_out, to)).enumerate();
    let more = (from.len() / (chunks * full_in)).saturating_sub(1);
    let shared = Mutex::new((portions, None));
    let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    let run = || {
        let next = || match &mut *lock() {
            (portions, None) => portions.next(),
            (_, Some(_)) => None,
        };
        while let Some((at, (from, to))) = next() {
            let mut index = at * chunks;
            for (from, to) in pairs((at_once * full_in, from), (at_once * full_out, to)) {
                let result = key.with(|key| {
                    for (from, to) in pairs((full_in, from), (full_out, to)) {
                        // More than any stream can have, so it is refused there.
                        work(&key, u64::try_from(index).unwrap_or(u64::MAX), from, to)?;
                        index += 1;
                    }
                    Ok(())
                });
                if let Err(error) = result {
                    lock().1 = Some(error);
                    return;
                }
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..more.min(threads.get() - 1) {
            let another = thread::Builder::new().name("waxseal-stream".to_owned());
            // Fewer threads can do the work too.
            if another.spawn_scoped(scope, run).is_err() {
                break;
            }
        }
        run();
    });
    shared.into_inner().unwrap_or_else(PoisonError::into_inner).1.map_or(Ok(()), Err)
}

/// Returns the corresponding parts of two buffers. If one ends first, the other's last part is
/// paired with an empty one.
fn pairs<'a>(
    (len_in, from): (usize, &'a [u8]),
    (len_out, to): (usize, &'a mut [u8]),
) -> impl Iterator<Item = (&'a [u8], &'a mut [u8])> {
    let inputs = from.chunks(len_in).chain(iter::once(&[][..]));
    let outputs = to.chunks_mut(len_out).chain(iter::once(&mut [][..]));
    inputs.zip(outputs).take_while(|(from, to)| !(from.is_empty() && to.is_empty()))
}

/// A buffer that is filled with zeros unless the work on it is [done](Self::done).
struct AllOrNothing<'b>(&'b mut [u8]);

impl AllOrNothing<'_> {
    /// Returns it if it has the length of the result. A buffer of another length is left unchanged.
    fn of_len(self, result: Result<usize, Error>) -> Result<Self, Error> {
        if result? == self.0.len() {
            return Ok(self);
        }
        self.done();
        Err(buffer_size())
    }

    fn done(mut self) {
        self.0 = &mut [];
    }
}

impl Drop for AllOrNothing<'_> {
    fn drop(&mut self) {
        wipe(self.0);
    }
}

fn buffer_size() -> Error {
    Error::new(ErrorKind::BufferSize, "the buffer does not have the length of the result")
}

fn too_large() -> Error {
    let detail =
        "a stream has less than 2^52 bytes, and a buffer at most half of the address space";
    Error::new(ErrorKind::TooLarge, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checked, since a length beyond every `Vec` would end the process.
    #[test]
    fn a_buffer_is_as_long_as_one_can_be() {
        let most = isize::MAX.unsigned_abs();
        let longest = u64::try_from(most).unwrap();
        assert_eq!(buffer_len(0), Some(0));
        assert_eq!(buffer_len(longest), Some(most));
        assert_eq!(buffer_len(longest + 1), None);
        assert_eq!(buffer_len(u64::MAX), None);
        assert_eq!(
            Vec::<u8>::new().try_reserve(most + 1).is_err(),
            buffer_len(longest + 1).is_none()
        );
    }
}
