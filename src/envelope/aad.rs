//! The bytes that belong to one message and are not stored in it.
#![forbid(unsafe_code)]

use std::fmt;

/// Additional authenticated data (AAD) of one message, such as the row's primary key.
///
/// The AAD is authenticated with the message, is not part of it, and never leaves the process. Pass
/// the same bytes to encrypt and to decrypt. It is a separate type, constructed by name, so that
/// AAD and plaintext cannot be swapped.
///
/// ```
/// use waxseal::Aad;
///
/// let row = 17_u64.to_be_bytes();
/// assert_eq!(Aad::from(&row).as_bytes(), [0, 0, 0, 0, 0, 0, 0, 17]);
/// assert!(Aad::from(b"row 17") != Aad::empty());
/// ```
///
/// Plaintext is not accepted in its place:
///
/// ```compile_fail
/// # async fn swapped(envelope: waxseal::Envelope, context: waxseal::EncryptionContext) {
/// envelope.encrypt(&context, b"plaintext", b"row 17").await;
/// # }
/// ```
///
/// Debug shows only the length.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Aad<'a>(&'a [u8]);

impl<'a> Aad<'a> {
    /// No AAD. Nothing then binds the message to the place where it is stored, so anyone who can
    /// write there can move it to another row of the same encryption context.
    #[must_use]
    pub const fn empty() -> Self {
        Self(&[])
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

impl<'a, B: AsRef<[u8]> + ?Sized> From<&'a B> for Aad<'a> {
    fn from(bytes: &'a B) -> Self {
        Self(bytes.as_ref())
    }
}

impl fmt::Debug for Aad<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Aad({} bytes)", self.0.len())
    }
}
