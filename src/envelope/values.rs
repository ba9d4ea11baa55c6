//! Many values in one buffer, with their offsets.
#![forbid(unsafe_code)]

use std::fmt;
use std::ops::Deref;

use crate::dek::SHORT_BLOCK;
use crate::error::{Error, ErrorKind};
use crate::memory::wipe;
use crate::suite::InOut;

/// Consecutive values in one buffer, in the order of the call that made them:
/// [`Envelope::encrypt_many`](crate::Envelope::encrypt_many) and related calls.
///
/// ```
/// # use waxseal::{Aad, EncryptionContext, Envelope, kek::local::LocalKek};
/// # pollster::block_on(async {
/// # let envelope = Envelope::builder().wrap_with(LocalKek::in_memory("test")?).build()?;
/// # let context = EncryptionContext::empty();
/// let items = ["a", "bc"].map(|text| (Aad::empty(), text));
/// let sealed = envelope.encrypt_many(&context, items).await?;
/// assert_eq!((sealed.len(), sealed.offsets().len()), (2, 3));
/// let second = &sealed.as_bytes()[sealed.offsets()[1]..sealed.offsets()[2]];
/// assert_eq!(sealed.get(1), Some(second));
/// # Ok::<(), waxseal::Error>(()) }).unwrap();
/// ```
///
/// Debug shows only numbers.
#[derive(PartialEq, Eq)]
pub struct Values {
    bytes: Vec<u8>,
    /// 0, followed by the end of each value.
    offsets: Vec<usize>,
}

impl Default for Values {
    fn default() -> Self {
        Self { bytes: Vec::new(), offsets: vec![0] }
    }
}

impl Values {
    /// Returns the number of values.
    #[must_use]
    pub fn len(&self) -> usize {
        self.offsets.len().saturating_sub(1)
    }

    /// Returns whether there are no values.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns one value. The first has index 0.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        let (begin, end) = (self.offsets.get(index)?, self.offsets.get(index.checked_add(1)?)?);
        self.bytes.get(*begin..*end)
    }

    /// Returns an iterator over the values.
    #[must_use = "iterators are lazy"]
    pub fn iter(&self) -> Iter<'_> {
        self.into_iter()
    }

    /// Returns the bytes of all values.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns where each value begins in [`as_bytes`](Self::as_bytes), followed by the end of the
    /// last one. There is one offset more than there are values, as in columnar formats.
    #[must_use]
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }

    /// Returns the bytes and the offsets.
    #[must_use]
    pub fn into_parts(self) -> (Vec<u8>, Vec<usize>) {
        (self.bytes, self.offsets)
    }

    /// Makes room for this many values with this many bytes in total.
    pub(super) fn with_room(values: usize, bytes: usize) -> Result<Self, Error> {
        let mut room = Self::default();
        // The caller may have one value in memory and name it many times.
        room.bytes.try_reserve_exact(bytes).map_err(|_| no_memory())?;
        room.offsets.try_reserve_exact(values).map_err(|_| no_memory())?;
        Ok(room)
    }

    /// Returns the buffer, for appending a value, and the ends of the values.
    #[inline]
    pub(super) fn parts_mut(&mut self) -> (&mut Vec<u8>, &mut Vec<usize>) {
        (&mut self.bytes, &mut self.offsets)
    }
}

pub(super) fn no_memory() -> Error {
    Error::new(ErrorKind::TooLarge, "no memory for all results in one buffer")
}

/// The values, one by one.
#[derive(Clone)]
pub struct Iter<'v> {
    bytes: &'v [u8],
    ends: std::slice::Windows<'v, usize>,
}

impl<'v> Iterator for Iter<'v> {
    type Item = &'v [u8];

    fn next(&mut self) -> Option<&'v [u8]> {
        match self.ends.next()? {
            [begin, end] => self.bytes.get(*begin..*end),
            _ => None,
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.ends.size_hint()
    }
}

impl ExactSizeIterator for Iter<'_> {}

impl fmt::Debug for Iter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Iter({} values)", self.len())
    }
}

impl<'v> IntoIterator for &'v Values {
    type Item = &'v [u8];
    type IntoIter = Iter<'v>;

    fn into_iter(self) -> Iter<'v> {
        Iter { bytes: &self.bytes, ends: self.offsets.windows(2) }
    }
}

impl fmt::Debug for Values {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Values({} values, {} bytes)", self.len(), self.bytes.len())
    }
}

/// The plaintexts of many messages, in the order of the messages: authenticated, readable as
/// [`Values`], wiped on drop.
///
/// It has no Clone and no serde, and Debug shows only numbers. You are responsible for wiping any
/// copy that you make of its bytes.
#[derive(Default)]
pub struct Plaintexts(Values);

impl Plaintexts {
    pub(super) fn with_room(values: usize, bytes: usize) -> Result<Self, Error> {
        Values::with_room(values, bytes).map(Self)
    }

    /// Returns the bytes and the offsets. Nothing wipes them from now on.
    #[must_use]
    pub fn into_parts(mut self) -> (Vec<u8>, Vec<usize>) {
        std::mem::take(&mut self.0).into_parts()
    }

    /// Makes room for the next values, and for as many similar ones as the iterator `hinted` at.
    pub(super) fn expect(
        &mut self,
        values: usize,
        bytes: usize,
        hinted: usize,
    ) -> Result<(), Error> {
        /// The maximum size for which a hint is followed.
        const MOST: usize = 64 << 20;
        let (used, room) = (self.0.bytes.len(), self.0.bytes.capacity());
        let wanted = used.checked_add(bytes).ok_or_else(no_memory)?;
        if wanted > room {
            let like_these = (bytes / values.max(1)).saturating_mul(hinted).min(MOST);
            let wanted = wanted.saturating_add(like_these).max(room.saturating_mul(2));
            let mut larger = Vec::new();
            larger.try_reserve_exact(wanted).map_err(|_| no_memory())?;
            larger.extend_from_slice(&self.0.bytes);
            // No plaintext is left in an outgrown buffer.
            wipe(&mut self.0.bytes);
            self.0.bytes = larger;
        }
        self.0.offsets.try_reserve(values).map_err(|_| no_memory())
    }

    /// Appends the plaintexts of these ciphertexts, for which there is room. `open` decrypts each
    /// to its place, or wipes it. If one fails, those before it are kept.
    #[inline]
    pub(super) fn append<'s, T>(
        &mut self,
        items: &[T],
        ciphertext: impl Fn(&T) -> &'s [u8],
        open: impl Fn(&T, InOut<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let Values { bytes, offsets } = &mut self.0;
        let mut begin = bytes.len();
        let len = items.iter().map(|item| ciphertext(item).len()).fold(0, usize::saturating_add);
        let end = begin.checked_add(len).filter(|end| *end <= bytes.capacity());
        let end = end.ok_or_else(no_memory)?;
        let is_short = len <= SHORT_BLOCK;
        if is_short {
            bytes.resize(end, 0);
        }
        for item in items {
            let ciphertext = ciphertext(item);
            let end = begin + ciphertext.len();
            if !is_short {
                bytes.extend_from_slice(ciphertext);
            }
            let to = bytes.get_mut(begin..end).unwrap_or_default();
            if let Err(error) = open(item, InOut { from: is_short.then_some(ciphertext), to }) {
                bytes.truncate(begin);
                return Err(error.of_item(offsets.len().saturating_sub(1)));
            }
            offsets.push(end);
            begin = end;
        }
        Ok(())
    }
}

impl Drop for Plaintexts {
    fn drop(&mut self) {
        wipe(&mut self.0.bytes);
    }
}

impl Deref for Plaintexts {
    type Target = Values;

    fn deref(&self) -> &Values {
        &self.0
    }
}

impl<'v> IntoIterator for &'v Plaintexts {
    type Item = &'v [u8];
    type IntoIter = Iter<'v>;

    fn into_iter(self) -> Iter<'v> {
        self.0.iter()
    }
}

impl fmt::Debug for Plaintexts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Plaintexts([redacted; {} values, {} bytes])", self.len(), self.0.bytes.len())
    }
}
