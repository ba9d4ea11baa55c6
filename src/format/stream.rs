//! The head of a stream, and where its chunks are (docs/format.md, "Stream").
#![forbid(unsafe_code)]

use std::ops::Range;

use super::message::{self, HEADER_LEN, Header, Message, MessageKind, cut};
use super::reader::Reader;
use crate::error::{Error, ErrorKind};
use crate::suite::{ChunkSize, Commitment, DekId, StreamSalt, Suite, TAG_LEN};

/// The part of a head that gives the length of the head.
pub(crate) const FIXED_LEN: usize = HEADER_LEN + 8;
/// Salt and commitment.
const TAIL_LEN: usize = 24 + 32;

/// A stream's head, parsed. Nothing in it is authenticated.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head<'a> {
    pub(crate) suite: Suite,
    pub(crate) dek_id: DekId,
    pub(crate) chunk: ChunkSize,
    /// Zero bytes after the wrapped keys, so that a longer list fits in their place.
    pub(crate) room: u16,
    /// Empty in compact form. Not parsed.
    pub(crate) wrapped_keys: &'a [u8],
    pub(crate) salt: &'a StreamSalt,
    pub(crate) commitment: &'a Commitment,
}

/// What the first [`FIXED_LEN`] bytes say.
struct Fixed {
    header: Header,
    chunk: ChunkSize,
    room: u16,
}

impl Fixed {
    fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        let header = Header::read(reader)?;
        if header.kind != MessageKind::Stream {
            let detail = "a message, where a stream is expected";
            return Err(Error::new(ErrorKind::UnsupportedKind, detail));
        }
        let log2 = reader.u8().ok_or_else(cut)?;
        let chunk = ChunkSize::from_log2(log2).ok_or_else(|| {
            Error::new(ErrorKind::UnsupportedChunkSize, format!("2^{log2} bytes"))
        })?;
        let room = reader.u16().ok_or_else(cut)?;
        check_zeros(reader.take(5).ok_or_else(cut)?, "reserved bytes of a stream")?;
        Ok(Self { header, chunk, room })
    }

    fn head_len(&self) -> usize {
        let keys = usize::from(self.header.wrapped_len) + usize::from(self.room);
        FIXED_LEN + keys + TAIL_LEN
    }
}

/// Returns the length of a head, at most 131,174 bytes, from its first [`FIXED_LEN`] bytes.
pub(crate) fn head_len(fixed: &[u8]) -> Result<usize, Error> {
    Ok(Fixed::read(&mut Reader::new(fixed))?.head_len())
}

impl<'a> Head<'a> {
    /// Reads the head at the front of `bytes`.
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(bytes);
        let Fixed { header, chunk, room } = Fixed::read(&mut reader)?;
        let wrapped_keys = reader.take(header.wrapped_len.into()).ok_or_else(cut)?;
        check_zeros(reader.take(room.into()).ok_or_else(cut)?, "room of a stream")?;
        let (salt, commitment) = reader.array().zip(reader.array()).ok_or_else(cut)?;
        let Header { suite, dek_id, .. } = header;
        Ok(Self { suite, dek_id, chunk, room, wrapped_keys, salt, commitment })
    }

    pub(crate) fn len(&self) -> usize {
        FIXED_LEN + self.wrapped_keys.len() + usize::from(self.room) + TAIL_LEN
    }

    pub(crate) fn to_bytes(self) -> Result<Vec<u8>, Error> {
        let wrapped_len = u16::try_from(self.wrapped_keys.len())
            .map_err(|_| Error::new(ErrorKind::TooLarge, "wrapped keys"))?;
        let Self { suite, dek_id, chunk, room, .. } = self;
        let header = Header { suite, kind: MessageKind::Stream, wrapped_len, dek_id }.to_bytes();
        let [low, high] = room.to_le_bytes();
        let mut bytes = Vec::with_capacity(self.len());
        bytes.extend_from_slice(&header);
        bytes.extend_from_slice(&[chunk.log2(), low, high, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(self.wrapped_keys);
        bytes.resize(bytes.len() + usize::from(room), 0);
        bytes.extend_from_slice(self.salt);
        bytes.extend_from_slice(self.commitment);
        Ok(bytes)
    }

    /// Returns the head with other wrapped keys. It keeps its length if they fit.
    fn with_wrapped_keys(self, wrapped_keys: &'a [u8]) -> Self {
        let space = self.wrapped_keys.len() + usize::from(self.room);
        let room = space.saturating_sub(wrapped_keys.len());
        Self { wrapped_keys, room: u16::try_from(room).unwrap_or(u16::MAX), ..self }
    }

    /// Returns where things are in a stream of `len` bytes.
    pub(crate) fn layout(&self, len: u64) -> Result<Layout, Error> {
        Layout::new(self.chunk, self.len() as u64, len)
    }
}

fn check_zeros(bytes: &[u8], what: &'static str) -> Result<(), Error> {
    match bytes.iter().all(|byte| *byte == 0) {
        true => Ok(()),
        false => Err(Error::new(ErrorKind::Malformed, what)),
    }
}

/// Where the chunks of a stream are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Layout {
    head_len: u64,
    chunk: u64,
    /// The index of the last chunk. It is the only short one.
    pub(crate) last: u64,
    pub(crate) plaintext_len: u64,
}

impl Layout {
    fn new(chunk: ChunkSize, head_len: u64, len: u64) -> Result<Self, Error> {
        let (size, tag) = (chunk.bytes() as u64, TAG_LEN as u64);
        let body = len.checked_sub(head_len).ok_or_else(cut)?;
        let (last, rest) = (body / (size + tag), body % (size + tag));
        let rest = rest.checked_sub(tag).ok_or_else(no_last_chunk)?;
        chunk.check_index(last)?;
        let chunk = size;
        Ok(Self { head_len, chunk, last, plaintext_len: last * chunk + rest })
    }

    /// Returns the position of a chunk with its tag. `index` is at most that of the last.
    pub(crate) fn place_of(&self, index: u64) -> Range<u64> {
        let sealed = self.chunk + TAG_LEN as u64;
        let start = self.head_len + index * sealed;
        let len = if index < self.last {
            sealed
        } else {
            self.plaintext_len - self.last * self.chunk + TAG_LEN as u64
        };
        start..start + len
    }
}

/// Returns the DEK id and the wrapped keys of a message, or of the head of a stream. The wrapped
/// keys are not parsed, and are empty in compact form.
pub(crate) fn carried_keys(sealed: &[u8]) -> Result<(DekId, &[u8]), Error> {
    if Header::of(sealed)?.kind == MessageKind::Stream {
        return Head::parse(sealed).map(|head| (head.dek_id, head.wrapped_keys));
    }
    Message::parse(sealed).map(|message| (message.header.dek_id, message.wrapped_keys))
}

/// Returns the same message, or stream, with other wrapped keys (encoded, or empty for the compact
/// form). Everything else is copied unchanged, including what follows the head of a stream.
pub(crate) fn with_wrapped_keys(sealed: &[u8], wrapped_keys: &[u8]) -> Result<Vec<u8>, Error> {
    if Header::of(sealed)?.kind == MessageKind::Message {
        return message::with_wrapped_keys(sealed, wrapped_keys);
    }
    let head = Head::parse(sealed)?;
    let mut bytes = head.with_wrapped_keys(wrapped_keys).to_bytes()?;
    let rest = sealed.get(head.len()..).unwrap_or_default();
    bytes.try_reserve_exact(rest.len()).map_err(Error::no_memory)?;
    bytes.extend_from_slice(rest);
    Ok(bytes)
}

/// Returns the error for a stream without its short last chunk, which was cut.
pub(crate) fn no_last_chunk() -> Error {
    Error::new(
        ErrorKind::Malformed,
        "the stream ends before its last chunk: it was cut, or its writer ended without `finish`",
    )
}

#[cfg(test)]
mod tests {
    use super::super::message::is_sealed;
    use super::*;

    fn head<'a>(wrapped_keys: &'a [u8], room: u16) -> Head<'a> {
        Head {
            suite: Suite::Aes256Gcm,
            dek_id: DekId::from_bytes([7; 32]),
            chunk: ChunkSize::from_log2(12).unwrap(),
            room,
            wrapped_keys,
            salt: &[8; 24],
            commitment: &[9; 32],
        }
    }

    #[test]
    fn a_head_is_read_back_and_no_shorter_one_is() {
        for (keys, room) in [(&b""[..], 0), (b"", 3), (b"wrapped", 0), (b"wrapped", 300)] {
            let bytes = head(keys, room).to_bytes().unwrap();
            assert_eq!(bytes.len(), 104 + keys.len() + usize::from(room));
            assert_eq!(head_len(&bytes[..FIXED_LEN]).unwrap(), bytes.len());
            let longer = [&bytes[..], b"chunks"].concat();
            let read = Head::parse(&longer).unwrap();
            assert_eq!((read.len(), read.to_bytes().unwrap()), (bytes.len(), bytes.clone()));
            assert_eq!(carried_keys(&longer).unwrap(), (read.dek_id, keys));
            for len in 0..bytes.len() {
                assert!(Head::parse(&bytes[..len]).is_err(), "cut at {len}");
                assert_eq!(is_sealed(&bytes[..len]), len >= HEADER_LEN);
            }
        }
    }

    #[test]
    fn what_this_build_does_not_know_is_an_error_of_its_own_kind() {
        let good = head(b"wrapped", 2).to_bytes().unwrap();
        for (at, value, kind) in [
            (0, 0xC2, ErrorKind::NotSealed),
            (3, 2, ErrorKind::UnsupportedVersion),
            (4, 0, ErrorKind::UnsupportedSuite),
            (4, 3, ErrorKind::UnsupportedSuite),
            (5, 1, ErrorKind::UnsupportedKind),
            (5, 3, ErrorKind::UnsupportedKind),
            (40, 11, ErrorKind::UnsupportedChunkSize),
            (40, 25, ErrorKind::UnsupportedChunkSize),
            (40, 255, ErrorKind::UnsupportedChunkSize),
            (43, 1, ErrorKind::Malformed),
            (47, 0x80, ErrorKind::Malformed),
            (55, 1, ErrorKind::Malformed),
            (56, 1, ErrorKind::Malformed),
            (7, 1, ErrorKind::Malformed),
        ] {
            let mut bytes = good.clone();
            bytes[at] = value;
            assert_eq!(Head::parse(&bytes).unwrap_err().kind(), kind, "byte {at} = {value}");
        }
    }

    #[test]
    fn other_wrapped_keys_take_from_the_room_and_leave_the_rest_as_it_is() {
        let stream = [&head(b"wrapped", 5).to_bytes().unwrap()[..], b"chunks"].concat();
        for keys in [&b""[..], b"w", b"wrapped", b"wrapped-keys"] {
            let changed = with_wrapped_keys(&stream, keys).unwrap();
            let read = Head::parse(&changed).unwrap();
            assert_eq!((read.wrapped_keys, usize::from(read.room)), (keys, 12 - keys.len()));
            assert_eq!(changed.len(), stream.len());
            assert_eq!(changed[60..], stream[60..]);
            assert_eq!(with_wrapped_keys(&changed, b"wrapped").unwrap(), stream);
        }
        let longer = with_wrapped_keys(&stream, b"wrapped keys.").unwrap();
        assert_eq!(longer.len(), stream.len() + 1);
        assert_eq!((Head::parse(&longer).unwrap().room, &longer[61..]), (0, &stream[60..]));
        // More room than its field can say: then the head becomes shorter.
        let large = vec![1; 65_535];
        let stream = head(&large, 65_535).to_bytes().unwrap();
        let small = with_wrapped_keys(&stream, b"w").unwrap();
        assert_eq!((Head::parse(&small).unwrap().room, small.len()), (65_535, 104 + 1 + 65_535));
    }

    #[test]
    fn a_layout_is_that_of_one_plaintext_length_or_refused() {
        let head = head(b"wrapped", 2);
        let (head_len, sealed) = (head.len() as u64, 4096 + 16);
        for plaintext in [0, 1, 4095, 4096, 4097, 8191, 8192, 8193, 40_960] {
            let len = head_len + plaintext + (plaintext / 4096 + 1) * 16;
            let layout = head.layout(len).unwrap();
            assert_eq!((layout.plaintext_len, layout.last), (plaintext, plaintext / 4096));
            let places: Vec<_> = (0..=layout.last).map(|index| layout.place_of(index)).collect();
            assert_eq!((places[0].start, places.last().unwrap().end), (head_len, len));
            assert!(places.windows(2).all(|two| two[0].end == two[1].start));
            assert!(places[..places.len() - 1].iter().all(|it| it.end - it.start == sealed));
        }
        for body in [0, 1, 15, sealed, sealed + 15, 2 * sealed] {
            let error = head.layout(head_len + body).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Malformed, "{body}");
        }
        assert!(head.layout(head_len - 1).is_err() && head.layout(u64::MAX).is_err());
    }
}
