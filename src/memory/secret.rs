//! Thirty-two secret bytes with one address for life.
#![forbid(unsafe_code)]

use std::fmt;

use zeroize::Zeroize;

/// A 256-bit secret: on the heap, so that moving the handle copies no key byte, and wiped when dropped.
pub(crate) struct Secret32(Box<[u8; 32]>);

impl Secret32 {
    /// Zeros, to be filled in place.
    pub(crate) fn zeroed() -> Self {
        Self(Box::new([0; 32]))
    }

    /// `None` unless `bytes` is exactly 32 long.
    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 32] = bytes.try_into().ok()?;
        let mut secret = Self::zeroed();
        secret.0.copy_from_slice(bytes);
        Some(secret)
    }

    /// From the operating system's generator, which a fork or a thread's state cannot make repeat itself.
    pub(crate) fn random() -> Result<Self, getrandom::Error> {
        let mut secret = Self::zeroed();
        getrandom::fill(secret.expose_mut())?;
        Ok(secret)
    }

    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.0
    }

    pub(crate) fn expose_mut(&mut self) -> &mut [u8; 32] {
        &mut self.0
    }
}

impl Drop for Secret32 {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Secret32 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret32([redacted])")
    }
}

#[cfg(test)]
mod tests {
    use super::Secret32;

    #[test]
    fn only_exactly_32_bytes_become_a_secret() {
        for len in [0, 16, 31, 33, 64] {
            assert!(Secret32::from_slice(&vec![1; len]).is_none(), "{len} bytes");
        }
        assert_eq!(Secret32::from_slice(&[7; 32]).unwrap().expose(), &[7; 32]);
    }

    #[test]
    fn debug_shows_no_byte() {
        let text = format!("{:?}", Secret32::from_slice(&[0xAB; 32]).unwrap());
        assert_eq!(text, "Secret32([redacted])");
    }
}
