//! The common header and the message (docs/format.md, "Common header" and "Message").
#![forbid(unsafe_code)]

use std::ops::Range;

use super::limits::MAX_PLAINTEXT;
use super::reader::Reader;
use crate::error::{Error, ErrorKind};
use crate::suite::{DekId, Suite, TAG_LEN};

/// The length of the common header in bytes.
pub(super) const HEADER_LEN: usize = 40;

/// The first bytes of a sealed value of any version. The byte C1 never occurs in UTF-8 text.
const MAGIC: [u8; 3] = [0xC1, b'W', b'X'];
const VERSION: u8 = 1;

/// The kind of a sealed value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum MessageKind {
    /// One payload, decrypted as a whole.
    Message,
    /// A payload of any length, in chunks: see
    /// [`Envelope::encrypt_stream`](crate::Envelope::encrypt_stream).
    Stream,
}

impl MessageKind {
    const fn id(self) -> u8 {
        match self {
            Self::Message => 1,
            Self::Stream => 2,
        }
    }

    const fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::Message),
            2 => Some(Self::Stream),
            _ => None,
        }
    }
}

/// Whether a message carries its wrapped keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Form {
    Embedded,
    Compact,
}

/// Returns whether `bytes` begin with the whole fixed header of a sealed value that this build
/// knows.
///
/// It reads only the first 40 bytes. **Never** write "sealed? then decrypt, else use as plaintext":
/// anyone who can write to the table could then replace a sealed value with a plain one.
#[must_use]
pub fn is_sealed(bytes: &[u8]) -> bool {
    Header::read(&mut Reader::new(bytes)).is_ok()
}

/// The first 40 bytes of every sealed value.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) suite: Suite,
    pub(crate) kind: MessageKind,
    pub(crate) wrapped_len: u16,
    pub(crate) dek_id: DekId,
}

impl Header {
    pub(super) fn read(reader: &mut Reader<'_>) -> Result<Self, Error> {
        if reader.array() != Some(&MAGIC) {
            return Err(Error::new(ErrorKind::NotSealed, ""));
        }
        let version = reader.u8().ok_or_else(cut)?;
        if version != VERSION {
            return Err(Error::new(ErrorKind::UnsupportedVersion, format!("{version}")));
        }
        let suite = reader.u8().ok_or_else(cut)?;
        let suite = Suite::from_id(suite)
            .ok_or_else(|| Error::new(ErrorKind::UnsupportedSuite, format!("{suite}")))?;
        let kind = reader.u8().ok_or_else(cut)?;
        let kind = MessageKind::from_id(kind)
            .ok_or_else(|| Error::new(ErrorKind::UnsupportedKind, format!("{kind}")))?;
        if kind == MessageKind::Stream && suite == Suite::Xaes256Gcm {
            return Err(Error::new(ErrorKind::UnsupportedSuite, "3 in a stream"));
        }
        let wrapped_len = reader.u16().ok_or_else(cut)?;
        let dek_id = DekId::from_bytes(*reader.array().ok_or_else(cut)?);
        Ok(Self { suite, kind, wrapped_len, dek_id })
    }

    /// Reads only the header, of any kind.
    pub(crate) fn of(bytes: &[u8]) -> Result<Self, Error> {
        Self::read(&mut Reader::new(bytes))
    }
}

pub(super) fn cut() -> Error {
    Error::new(ErrorKind::Malformed, "shorter than its header says")
}

/// A message, parsed but not decrypted.
#[derive(Clone, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) header: Header,
    pub(crate) nonce: &'a [u8],
    /// Empty in compact form. Not parsed.
    pub(crate) wrapped_keys: &'a [u8],
    /// The ciphertext without its tag.
    pub(crate) payload: Range<usize>,
    pub(crate) tag: &'a [u8; TAG_LEN],
}

impl<'a> Message<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<Self, Error> {
        let header = Header::read(&mut Reader::new(bytes))?;
        if header.kind != MessageKind::Message {
            return Err(Error::new(ErrorKind::UnsupportedKind, "a stream, not a message"));
        }
        Self::behind(header, bytes)
    }

    /// Parses like [`parse`](Self::parse), with less work. Returns `None` if the header is not that
    /// of `parsed`, from which this message was parsed.
    #[inline]
    pub(crate) fn parse_like(&self, parsed: &[u8], bytes: &'a [u8]) -> Option<Result<Self, Error>> {
        // Compared word by word, which costs less than a call.
        let [was, is] = [parsed, bytes].map(|bytes| bytes.as_chunks::<8>().0.get(..HEADER_LEN / 8));
        was?.iter().eq(is?).then(|| Self::behind(self.header, bytes))
    }

    /// Reads what follows the header.
    #[inline(always)]
    fn behind(header: Header, bytes: &'a [u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(bytes.get(HEADER_LEN..).ok_or_else(cut)?);
        let nonce = reader.take(header.suite.nonce_len()).ok_or_else(cut)?;
        let wrapped_keys = reader.take(header.wrapped_len.into()).ok_or_else(cut)?;
        let (payload, tag) = reader.rest().split_last_chunk::<TAG_LEN>().ok_or_else(cut)?;
        if u64::try_from(payload.len()).is_ok_and(|len| len > MAX_PLAINTEXT) {
            return Err(Error::new(ErrorKind::Malformed, "longer than any message can be"));
        }
        let start = HEADER_LEN + nonce.len() + wrapped_keys.len();
        Ok(Self { header, nonce, wrapped_keys, payload: start..start + payload.len(), tag })
    }
}

/// The part before a message's ciphertext, for one DEK. Only the nonce differs between messages.
#[derive(Clone, Debug)]
pub(crate) struct Prefix {
    /// With zeros in place of the nonce.
    bytes: Box<[u8]>,
    nonce: Range<usize>,
}

impl Prefix {
    /// `wrapped_keys` is the encoded list, or empty for the compact form.
    pub(crate) fn new(suite: Suite, dek_id: DekId, wrapped_keys: &[u8]) -> Result<Self, Error> {
        let wrapped_len = u16::try_from(wrapped_keys.len())
            .map_err(|_| Error::new(ErrorKind::TooLarge, "wrapped keys"))?;
        let header = Header { suite, kind: MessageKind::Message, wrapped_len, dek_id }.to_bytes();
        let (zeros, len) = ([0; 24], suite.nonce_len());
        let bytes = [&header, zeros.get(..len).unwrap_or_default(), wrapped_keys].concat();
        Ok(Self { bytes: bytes.into(), nonce: HEADER_LEN..HEADER_LEN + len })
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Fills `room`, which is exactly [`len`](Self::len) long.
    pub(crate) fn write(&self, nonce: &[u8], room: &mut [u8]) -> Result<(), Error> {
        let room = Some(room).filter(|room| room.len() == self.len()).ok_or_else(prefix_room)?;
        room.copy_from_slice(&self.bytes);
        self.write_nonce(nonce, room)
    }

    /// Puts another nonce into a prefix that was already [written](Self::write).
    #[inline(always)]
    pub(crate) fn write_nonce(&self, nonce: &[u8], room: &mut [u8]) -> Result<(), Error> {
        let place = room.get_mut(self.nonce.clone()).filter(|place| place.len() == nonce.len());
        let place = place.ok_or_else(prefix_room)?;
        // Most nonces have 12 bytes, which would take longer to copy by a call.
        match nonce.as_array::<12>().zip(place.as_mut_array()) {
            Some((nonce, place)) => *place = *nonce,
            None => place.copy_from_slice(nonce),
        }
        Ok(())
    }
}

fn prefix_room() -> Error {
    Error::new(ErrorKind::BufferSize, "room for the prefix")
}

impl Header {
    pub(super) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [low, high] = self.wrapped_len.to_le_bytes();
        let fixed =
            [MAGIC[0], MAGIC[1], MAGIC[2], VERSION, self.suite.id(), self.kind.id(), low, high];
        let mut values = fixed.iter().chain(self.dek_id.as_bytes()).copied();
        std::array::from_fn(|_| values.next().unwrap_or_default())
    }
}

/// Returns the same message with other wrapped keys (encoded, or empty for the compact form).
/// Nonce, ciphertext and tag are copied unchanged.
pub(super) fn with_wrapped_keys(sealed: &[u8], wrapped_keys: &[u8]) -> Result<Vec<u8>, Error> {
    let message = Message::parse(sealed)?;
    let prefix = Prefix::new(message.header.suite, message.header.dek_id, wrapped_keys)?;
    let rest = sealed.get(message.payload.start..).unwrap_or_default();
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(prefix.len().saturating_add(rest.len())).map_err(Error::no_memory)?;
    bytes.resize(prefix.len(), 0);
    prefix.write(message.nonce, &mut bytes)?;
    bytes.extend_from_slice(rest);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(suite: Suite, wrapped_keys: &[u8], payload: &[u8]) -> Vec<u8> {
        let prefix = Prefix::new(suite, DekId::from_bytes([7; 32]), wrapped_keys).unwrap();
        let mut bytes = vec![0; prefix.len()];
        prefix.write(&vec![9; suite.nonce_len()], &mut bytes).unwrap();
        bytes.extend_from_slice(payload);
        bytes.extend_from_slice(&[5; TAG_LEN]);
        bytes
    }

    #[test]
    fn a_compact_message_is_68_bytes_longer_than_its_plaintext_and_80_under_xaes() {
        assert_eq!(sample(Suite::Aes256Gcm, b"", b"").len(), 68);
        assert_eq!(sample(Suite::ChaCha20Poly1305, b"", b"").len(), 68);
        assert_eq!(sample(Suite::Xaes256Gcm, b"", b"").len(), 80);
    }

    #[test]
    fn parse_finds_the_parts_that_were_written() {
        let bytes = sample(Suite::Aes256Gcm, b"wrapped", b"payload");
        let message = Message::parse(&bytes).unwrap();
        assert_eq!(message.header.suite, Suite::Aes256Gcm);
        assert_eq!(message.header.dek_id.as_bytes(), &[7; 32]);
        assert_eq!(message.nonce, [9; 12]);
        assert_eq!(message.wrapped_keys, b"wrapped");
        assert_eq!(&bytes[message.payload.clone()], b"payload");
        assert_eq!(message.tag, &[5; TAG_LEN]);
        let compact = with_wrapped_keys(&bytes, b"").unwrap();
        assert_eq!(compact, sample(Suite::Aes256Gcm, b"", b"payload"));
        assert_eq!(with_wrapped_keys(&compact, b"wrapped").unwrap(), bytes);
    }

    #[test]
    fn a_message_like_one_that_was_parsed_is_parsed_to_the_same() {
        for suite in [Suite::Aes256Gcm, Suite::Xaes256Gcm] {
            let good = sample(suite, b"wrapped", b"payload");
            let parsed = Message::parse(&good).unwrap();
            let same = |bytes: &[u8]| {
                let like = parsed.parse_like(&good, bytes);
                assert_eq!(like.is_some(), bytes.get(..40) == good.get(..40));
                match (Message::parse(bytes), like) {
                    (_, None) => {}
                    (Ok(message), Some(Ok(like))) => {
                        assert_eq!(format!("{message:?}"), format!("{like:?}"));
                    }
                    (Err(error), Some(Err(like))) => assert_eq!(error.kind(), like.kind()),
                    (parsed, like) => panic!("{parsed:?}, {like:?}"),
                }
            };
            same(&sample(suite, b"wrapped", b"another payload, which is longer"));
            same(&sample(suite, b"other keys of another length", b""));
            same(&sample(Suite::ChaCha20Poly1305, b"wrapped", b"payload"));
            (0..good.len()).for_each(|len| same(&good[..len]));
            for bit in 0..8 * good.len() {
                let mut changed = good.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                same(&changed);
            }
        }
    }

    #[test]
    fn what_this_build_does_not_know_is_an_error_of_its_own_kind() {
        let good = sample(Suite::Aes256Gcm, b"w", b"p");
        for (at, value, kind) in [
            (0, 0xC2, ErrorKind::NotSealed),
            (1, b'w', ErrorKind::NotSealed),
            (3, 0, ErrorKind::UnsupportedVersion),
            (3, 2, ErrorKind::UnsupportedVersion),
            (4, 0, ErrorKind::UnsupportedSuite),
            (4, 4, ErrorKind::UnsupportedSuite),
            (5, 0, ErrorKind::UnsupportedKind),
            (5, 2, ErrorKind::UnsupportedKind),
            (5, 3, ErrorKind::UnsupportedKind),
            (6, 255, ErrorKind::Malformed),
        ] {
            let mut bytes = good.clone();
            bytes[at] = value;
            assert_eq!(Message::parse(&bytes).unwrap_err().kind(), kind, "byte {at} = {value}");
        }
        assert_eq!(Message::parse(b"").unwrap_err().kind(), ErrorKind::NotSealed);
        assert_eq!(Message::parse(b"plain text").unwrap_err().kind(), ErrorKind::NotSealed);
    }

    #[test]
    fn every_truncation_is_refused() {
        for suite in [Suite::Aes256Gcm, Suite::Xaes256Gcm] {
            let good = sample(suite, b"wrapped", b"");
            for len in 0..good.len() {
                assert!(Message::parse(&good[..len]).is_err(), "cut at {len}");
            }
            assert!(Message::parse(&good).is_ok());
        }
    }

    #[test]
    fn is_sealed_wants_the_whole_header() {
        let good = sample(Suite::Aes256Gcm, b"wrapped", b"payload");
        assert!(is_sealed(&good));
        assert!(is_sealed(&good[..HEADER_LEN]));
        for len in 0..HEADER_LEN {
            assert!(!is_sealed(&good[..len]), "{len} bytes");
        }
        assert!(!is_sealed("\u{c1}WX plain text that is long enough to be a header".as_bytes()));
    }
}
