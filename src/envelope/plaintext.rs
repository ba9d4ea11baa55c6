//! The plaintext of a decrypted message.
#![forbid(unsafe_code)]

use std::fmt;
use std::ops::Deref;

use crate::memory::{wipe, wipe_and_keep};

/// A decrypted payload: authenticated, readable as a slice, wiped on drop.
///
/// A wiped buffer of 16 KiB to 4 MiB may be reused for the next plaintext. The process keeps up to
/// 4 MiB of zeros for that.
///
/// It has no Clone and no serde, and Debug shows only the length. You are responsible for wiping
/// any copy that you make of its bytes.
pub struct Plaintext(Vec<u8>);

impl Plaintext {
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// Appends bytes, for which there is room.
    pub(super) fn extend(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(super) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Returns the bytes, which nothing wipes from now on.
    #[must_use]
    pub fn into_vec(mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Plaintext {
    fn drop(&mut self) {
        wipe_and_keep(&mut self.0);
    }
}

impl Deref for Plaintext {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for Plaintext {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Plaintext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plaintext([redacted; {} bytes])", self.0.len())
    }
}

/// Plaintext in a caller's buffer that the caller may not have yet. It is wiped unless it is
/// released, even if the caller gives up.
pub(super) struct Withheld<'b>(pub(super) &'b mut [u8]);

impl Drop for Withheld<'_> {
    fn drop(&mut self) {
        wipe(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::Plaintext;

    #[test]
    fn debug_shows_the_length_and_no_byte() {
        assert_eq!(
            format!("{:?}", Plaintext::new(b"secret".to_vec())),
            "Plaintext([redacted; 6 bytes])"
        );
        assert_eq!(Plaintext::new(b"secret".to_vec()).into_vec(), b"secret");
    }
}
