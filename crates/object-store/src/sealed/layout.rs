//! Where the chunks of an object are, computed from its length. All objects of a store have the
//! same head length and chunk size, so this needs no head.
#![forbid(unsafe_code)]

use std::ops::Range;

/// The bytes of a chunk's tag.
const TAG_LEN: u64 = 16;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Layout {
    pub(super) head_len: u64,
    pub(super) chunk: u64,
}

impl Layout {
    /// The bytes of a full chunk with its tag.
    fn sealed_chunk(self) -> u64 {
        self.chunk + TAG_LEN
    }

    /// Returns the length of the plaintext of an object. `None` for a length that no object has.
    pub(super) fn plaintext_len(self, len: u64) -> Option<u64> {
        let body = len.checked_sub(self.head_len)?;
        let rest = (body % self.sealed_chunk()).checked_sub(TAG_LEN)?;
        Some(body / self.sealed_chunk() * self.chunk + rest)
    }

    /// Returns the length of an object with this much plaintext.
    pub(super) fn object_len(self, plaintext: u64) -> u64 {
        let tags = (plaintext / self.chunk + 1).saturating_mul(TAG_LEN);
        plaintext.saturating_add(tags).saturating_add(self.head_len)
    }

    /// Returns the chunks that a part of the plaintext needs. If it reaches to the end, the last
    /// chunk is among them even if it is empty, because it authenticates the end.
    pub(super) fn chunks_of(self, part: &Range<u64>, plaintext: u64) -> Range<u64> {
        let end = match part.end >= plaintext {
            true => plaintext / self.chunk + 1,
            false => part.end.div_ceil(self.chunk),
        };
        let start = part.start / self.chunk;
        start..end.max(start + 1)
    }

    /// Returns the number of chunks, at least one, that cover the first `least` bytes of an object
    /// of `len` bytes. `None` if nothing follows them.
    pub(super) fn chunks_within(self, least: u64, len: u64) -> Option<Range<u64>> {
        let body = least.saturating_sub(self.head_len);
        let chunks = 0..body.div_ceil(self.sealed_chunk()).max(1);
        (self.place_of(&chunks, len).end < len).then_some(chunks)
    }

    /// Returns where chunks are in an object of `len` bytes.
    pub(super) fn place_of(self, chunks: &Range<u64>, len: u64) -> Range<u64> {
        let at = |index: u64| {
            let before = index.saturating_mul(self.sealed_chunk());
            before.saturating_add(self.head_len).min(len)
        };
        at(chunks.start)..at(chunks.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAYOUT: Layout = Layout { head_len: 1024, chunk: 4096 };

    #[test]
    fn lengths_of_objects_and_plaintexts_follow_from_each_other() {
        for plaintext in [0, 1, 4095, 4096, 4097, 8191, 8192, 8193, 1 << 40] {
            let len = LAYOUT.object_len(plaintext);
            assert_eq!(LAYOUT.plaintext_len(len), Some(plaintext));
        }
        let sealed = 4096 + 16;
        for body in [0, 1, 15, sealed, sealed + 15, 2 * sealed] {
            assert_eq!(LAYOUT.plaintext_len(1024 + body), None, "{body}");
        }
        assert_eq!(LAYOUT.plaintext_len(0), None);
        assert_eq!(LAYOUT.plaintext_len(1023), None);
        assert!(LAYOUT.plaintext_len(u64::MAX).is_none_or(|len| len < u64::MAX));
        assert_eq!(LAYOUT.object_len(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_part_has_the_chunks_that_it_touches_and_the_last_where_it_reaches_the_end() {
        let chunks = |start, end, plaintext| LAYOUT.chunks_of(&(start..end), plaintext);
        assert_eq!(chunks(0, 1, 100_000), 0..1);
        assert_eq!(chunks(0, 4096, 100_000), 0..1);
        assert_eq!(chunks(4095, 4097, 100_000), 0..2);
        assert_eq!(chunks(4096, 8192, 100_000), 1..2);
        assert_eq!(chunks(99_999, 100_000, 100_000), 24..25);
        assert_eq!(chunks(0, 8192, 8192), 0..3);
        assert_eq!(chunks(8192, 8192, 8192), 2..3);
        assert_eq!(chunks(0, 0, 0), 0..1);
        let len = LAYOUT.object_len(8192);
        assert_eq!(LAYOUT.place_of(&(0..3), len), 1024..len);
        assert_eq!(LAYOUT.place_of(&(2..3), len), len - 16..len);
        assert_eq!(LAYOUT.place_of(&(1..2), len), 1024 + 4112..1024 + 2 * 4112);
        assert_eq!(LAYOUT.place_of(&(u64::MAX - 1..u64::MAX), len), len..len);
    }

    #[test]
    fn a_beginning_has_whole_chunks_and_something_behind_it() {
        let end = |chunks: u64| 1024 + chunks * (4096 + 16);
        for (least, len, chunks) in [
            (0, end(1), None),
            (0, end(1) + 16, Some(0..1)),
            (1024, end(9), Some(0..1)),
            (1025, end(9), Some(0..1)),
            (end(2), end(9), Some(0..2)),
            (end(2) + 1, end(9), Some(0..3)),
            (end(8), end(8) + 16, Some(0..8)),
            (end(8) + 1, end(8) + 16, None),
            (end(9), end(8) + 16, None),
            (u64::MAX, end(9), None),
            (u64::MAX, u64::MAX, None),
        ] {
            assert_eq!(LAYOUT.chunks_within(least, len), chunks, "{least} of {len}");
        }
    }
}
