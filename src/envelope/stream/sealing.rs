//! Turns plaintext into the bytes of a stream, without I/O.
#![forbid(unsafe_code)]

use super::{StreamEncryptor, copied};
use crate::error::{Error, ErrorKind};
use crate::memory::wipe;
use crate::suite::TAG_LEN;

/// A stream that is being written: one chunk, in plaintext or encrypted.
pub(super) struct Sealing {
    encryptor: StreamEncryptor,
    /// Holds the head first, and then one chunk.
    buffer: Vec<u8>,
    /// How much of the buffer is in use: pending output, or collected plaintext. There is no
    /// plaintext after it.
    len: usize,
    /// How much of the pending output was written.
    written: usize,
    index: u64,
    state: State,
}

enum State {
    /// The head or a chunk is pending, and more follows.
    Out,
    /// Plaintext is being collected.
    Filling,
    /// The last chunk is pending.
    LastOut,
    Finished,
    Failed(Error),
}

impl Sealing {
    pub(super) fn new(mut encryptor: StreamEncryptor) -> Self {
        let buffer = std::mem::take(&mut encryptor.head);
        let len = buffer.len();
        Self { encryptor, buffer, len, written: 0, index: 0, state: State::Out }
    }

    pub(super) fn encryptor(&self) -> &StreamEncryptor {
        &self.encryptor
    }

    /// Returns the bytes to write before anything else.
    pub(super) fn pending(&self) -> &[u8] {
        match self.state {
            State::Out | State::LastOut => {
                self.buffer.get(self.written..self.len).unwrap_or_default()
            }
            _ => &[],
        }
    }

    /// Records that `n` of the [pending](Self::pending) bytes were written.
    pub(super) fn written(&mut self, n: usize) {
        self.written += n;
        if self.pending().is_empty() {
            self.state = match self.state {
                State::Out => State::Filling,
                State::LastOut => State::Finished,
                _ => return,
            };
            (self.written, self.len) = (0, 0);
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        matches!(self.state, State::Finished)
    }

    /// Takes as much plaintext as belongs to this chunk. Nothing is pending. A whole chunk is
    /// encrypted from where it is.
    pub(super) fn take(&mut self, plaintext: &[u8]) -> Result<usize, Error> {
        self.check_filling()?;
        let chunk = self.encryptor.chunk.bytes();
        self.make_room(chunk);
        if let (0, Some(whole)) = (self.len, plaintext.get(..chunk)) {
            self.seal(Some(whole), chunk, State::Out)?;
            return Ok(chunk);
        }
        let room = self.buffer.get_mut(self.len..chunk).unwrap_or_default();
        let taken = copied(plaintext, room);
        self.len += taken;
        if self.len == chunk {
            self.seal(None, chunk, State::Out)?;
        }
        Ok(taken)
    }

    /// Encrypts the last chunk, which is the short one. Nothing is pending.
    pub(super) fn end(&mut self) -> Result<(), Error> {
        self.check_filling()?;
        self.make_room(self.len);
        self.seal(None, self.len, State::LastOut)
    }

    /// Makes room for a chunk of this size. The first chunk of a stream makes it for all, so no
    /// plaintext is left in an outgrown allocation.
    fn make_room(&mut self, chunk: usize) {
        if self.buffer.len() < chunk + TAG_LEN {
            self.buffer = vec![0; chunk + TAG_LEN];
        }
    }

    fn check_filling(&self) -> Result<(), Error> {
        match &self.state {
            State::Filling => Ok(()),
            State::Failed(error) => Err(error.clone()),
            State::Out | State::LastOut | State::Finished => {
                Err(Error::new(ErrorKind::Exhausted, "the stream is finished"))
            }
        }
    }

    /// A failure is final: a chunk whose index was used is never encrypted again.
    fn seal(&mut self, from: Option<&[u8]>, len: usize, next: State) -> Result<(), Error> {
        let to = self.buffer.get_mut(..len + TAG_LEN).unwrap_or_default();
        match self.encryptor.seal_chunk(self.index, from, to) {
            Ok(()) => {
                self.len = len + TAG_LEN;
                self.index += 1;
                self.state = next;
                Ok(())
            }
            Err(error) => {
                wipe(&mut self.buffer);
                self.state = State::Failed(error.clone());
                Err(error)
            }
        }
    }
}

impl Drop for Sealing {
    fn drop(&mut self) {
        if !matches!(self.state, State::Out | State::LastOut) {
            wipe(self.buffer.get_mut(..self.len).unwrap_or_default());
        }
    }
}
