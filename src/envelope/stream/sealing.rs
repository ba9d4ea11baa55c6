//! Turns plaintext into the bytes of a stream, without I/O.
#![forbid(unsafe_code)]

use super::StreamEncryptor;
use crate::error::{Error, ErrorKind};
use crate::memory::wipe;
use crate::suite::TAG_LEN;

/// A stream that is being written: one chunk, in plaintext or encrypted.
pub(super) struct Sealing {
    encryptor: StreamEncryptor,
    /// The head or an encrypted chunk on its way out, or plaintext that is collected.
    buffer: Vec<u8>,
    /// How much of what is on its way out was written.
    written: usize,
    index: u64,
    state: State,
}

enum State {
    /// The buffer is on its way out, and more follows.
    Out,
    /// The buffer collects plaintext.
    Filling,
    /// The last chunk is on its way out.
    LastOut,
    Finished,
    Failed(Error),
}

impl Sealing {
    pub(super) fn new(mut encryptor: StreamEncryptor) -> Self {
        let buffer = std::mem::take(&mut encryptor.head);
        Self { encryptor, buffer, written: 0, index: 0, state: State::Out }
    }

    pub(super) fn encryptor(&self) -> &StreamEncryptor {
        &self.encryptor
    }

    /// Returns the bytes that are to be written out before anything else.
    pub(super) fn pending(&self) -> &[u8] {
        match self.state {
            State::Out | State::LastOut => self.buffer.get(self.written..).unwrap_or_default(),
            _ => &[],
        }
    }

    /// `n` of the [pending](Self::pending) bytes were written out.
    pub(super) fn written(&mut self, n: usize) {
        self.written += n;
        if self.pending().is_empty() {
            self.state = match self.state {
                State::Out => State::Filling,
                State::LastOut => State::Finished,
                _ => return,
            };
            self.written = 0;
            self.buffer.clear();
        }
    }

    pub(super) fn is_finished(&self) -> bool {
        matches!(self.state, State::Finished)
    }

    /// Takes plaintext, as much as belongs to this chunk. Nothing is pending.
    pub(super) fn take(&mut self, plaintext: &[u8]) -> Result<usize, Error> {
        self.check_filling()?;
        let chunk = self.encryptor.chunk.bytes();
        // At once, so that no plaintext is left in a block that it outgrew.
        if self.buffer.capacity() < chunk + TAG_LEN {
            self.buffer = Vec::with_capacity(chunk + TAG_LEN);
        }
        let taken = plaintext.len().min(chunk - self.buffer.len());
        self.buffer.extend_from_slice(plaintext.get(..taken).unwrap_or_default());
        if self.buffer.len() == chunk {
            self.seal(State::Out)?;
        }
        Ok(taken)
    }

    /// Encrypts the last chunk, which is the short one. Nothing is pending.
    pub(super) fn end(&mut self) -> Result<(), Error> {
        self.check_filling()?;
        self.buffer.reserve_exact(TAG_LEN);
        self.seal(State::LastOut)
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
    fn seal(&mut self, next: State) -> Result<(), Error> {
        match self.encryptor.key.seal(self.index, &mut self.buffer) {
            Ok(tag) => {
                self.buffer.extend_from_slice(&tag);
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
            wipe(&mut self.buffer);
        }
    }
}
