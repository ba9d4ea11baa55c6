//! Turns the bytes of a stream into plaintext, without I/O.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::StreamDecryptor;
use crate::error::Error;
use crate::memory::wipe;
use crate::suite::TAG_LEN;

/// A stream that is being read from its beginning: one chunk, encrypted or in plaintext.
pub(super) struct Opening {
    decryptor: StreamDecryptor,
    buffer: Vec<u8>,
    /// How much of an encrypted chunk has arrived.
    filled: usize,
    /// Plaintext that has not been taken yet.
    plaintext: Range<usize>,
    index: u64,
    state: State,
}

enum State {
    Reading,
    /// The last chunk was authentic.
    Ended,
    Failed(Error),
}

impl Opening {
    pub(super) fn new(decryptor: StreamDecryptor) -> Self {
        let buffer = vec![0; decryptor.chunk.bytes() + TAG_LEN];
        Self { decryptor, buffer, filled: 0, plaintext: 0..0, index: 0, state: State::Reading }
    }

    pub(super) fn decryptor(&self) -> &StreamDecryptor {
        &self.decryptor
    }

    /// Returns authentic plaintext.
    pub(super) fn plaintext(&self) -> &[u8] {
        self.buffer.get(self.plaintext.clone()).unwrap_or_default()
    }

    pub(super) fn consume(&mut self, n: usize) {
        let start = self.plaintext.start.saturating_add(n);
        self.plaintext.start = start.min(self.plaintext.end);
    }

    /// Returns where the next bytes of the stream go. `None` while there is plaintext, and at the
    /// end.
    pub(super) fn room(&mut self) -> Result<Option<&mut [u8]>, Error> {
        match &self.state {
            State::Failed(error) => Err(error.clone()),
            State::Reading if self.plaintext.is_empty() => Ok(self.buffer.get_mut(self.filled..)),
            State::Reading | State::Ended => Ok(None),
        }
    }

    /// Records that `n` bytes of the stream arrived. 0 is its end. If they complete a chunk whose
    /// plaintext fits into `out`, it is decrypted there, and its length is returned.
    pub(super) fn filled(&mut self, n: usize, out: &mut [u8]) -> Result<usize, Error> {
        self.filled += n;
        let is_last = n == 0;
        if !is_last && self.filled < self.buffer.len() {
            return Ok(0);
        }
        let sealed = self.buffer.get_mut(..self.filled).unwrap_or_default();
        let out = sealed.len().checked_sub(TAG_LEN).and_then(|len| out.get_mut(..len));
        let opened = match out {
            Some(out) => {
                let len = out.len();
                self.decryptor.open_to(self.index, sealed, out).map(|()| (len, 0))
            }
            None => self.decryptor.open(self.index, sealed).map(|len| (0, len)),
        };
        match opened {
            Ok((taken, left)) => {
                self.plaintext = 0..left;
                self.filled = 0;
                self.index += 1;
                if is_last {
                    self.state = State::Ended;
                }
                Ok(taken)
            }
            Err(error) => {
                wipe(&mut self.buffer);
                self.state = State::Failed(error.clone());
                Err(error)
            }
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        wipe(&mut self.buffer);
    }
}
