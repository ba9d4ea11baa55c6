//! The hash chain: each line ends with a hash of everything up to it.
//!
//! ```text
//! line(n) = {…the record…,"hash":"h(n)"}
//! h(n)    = SHA-256(h(n-1) ‖ {…the record…)        the bytes of the line before `,"hash":`
//! h(-1)   = SHA-256("waxseal.audit.v1 chain" ‖ 0x00 ‖ the trail's id)
//! ```
#![forbid(unsafe_code)]

use std::fmt;

use sha2::{Digest, Sha256};

use super::record::Record;
use crate::error::Error;
use crate::hex;

/// The maximum size of a line in bytes, including its end. A record is far shorter: its longest
/// part, a context, is at most 8 KiB, or twice that with every character escaped.
pub(super) const MAX_LINE: usize = 64 * 1024;

const DOMAIN: &[u8] = b"waxseal.audit.v1 chain\0";
const BEFORE_HASH: &str = ",\"hash\":\"";
const AFTER_HASH: &str = "\"}";

/// The hash of a record and of all before it.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ChainHash([u8; 32]);

impl ChainHash {
    /// Reads 64 lower-case hexadecimal digits.
    pub(super) fn read(text: &str) -> Option<Self> {
        hex::decode(text).map(Self)
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the hash after another record.
    pub(super) fn then(self, record: &[u8]) -> Self {
        Self(Sha256::new().chain_update(self.0).chain_update(record).finalize().into())
    }
}

/// Writes 64 lower-case hexadecimal digits.
impl fmt::Display for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&hex::encode(&self.0))
    }
}

impl fmt::Debug for ChainHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChainHash({self})")
    }
}

/// The id that distinguishes trails: 8 random bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct TrailId([u8; 8]);

impl TrailId {
    pub(super) fn random() -> Result<Self, Error> {
        let mut id = [0; 8];
        getrandom::fill(&mut id).map_err(Error::randomness)?;
        Ok(Self(id))
    }

    pub(super) fn read(text: &str) -> Option<Self> {
        hex::decode(text).map(Self)
    }

    /// Reads it from a record's [`uid`](Record::uid), if that matches the record's sequence.
    pub(super) fn of(record: &Record) -> Option<Self> {
        let (id, sequence) = record.uid.split_once('-')?;
        (sequence == record.sequence.to_string()).then(|| Self::read(id)).flatten()
    }

    pub(super) fn as_bytes(&self) -> &[u8; 8] {
        &self.0
    }

    /// The hash before the first record.
    pub(super) fn start(&self) -> ChainHash {
        ChainHash(Sha256::new().chain_update(DOMAIN).chain_update(self.0).finalize().into())
    }
}

impl fmt::Display for TrailId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for TrailId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TrailId({self})")
    }
}

/// The end of a chain, where the next record is added.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Chain {
    pub(super) trail: TrailId,
    /// The sequence of the next record.
    pub(super) next: u64,
    /// The hash of the last one.
    pub(super) head: ChainHash,
}

/// A record as a line, including its end, and the chain after it.
pub(super) struct Sealed {
    pub(super) line: String,
    pub(super) chain: Chain,
}

impl Chain {
    pub(super) fn new(trail: TrailId) -> Self {
        Self { trail, next: 0, head: trail.start() }
    }

    /// Assigns the record its place and returns its line. Once the line is written, the caller
    /// continues with the returned chain.
    pub(super) fn seal(&self, record: &mut Record) -> Result<Sealed, serde_json::Error> {
        record.sequence = self.next;
        record.uid = format!("{}-{}", self.trail, self.next);
        let mut line = serde_json::to_string(record)?;
        // The bracket that ends the record is moved to the end of the line.
        line.pop();
        let head = self.head.then(line.as_bytes());
        line.push_str(BEFORE_HASH);
        line.push_str(&head.to_string());
        line.push_str(AFTER_HASH);
        line.push('\n');
        Ok(Sealed { line, chain: Self { head, next: self.next.saturating_add(1), ..*self } })
    }
}

/// The parts of a line. Only its form has been checked.
pub(super) struct Line<'a> {
    /// The bytes that the hash covers.
    covered: &'a [u8],
    /// The hash that the line claims.
    pub(super) hash: ChainHash,
    pub(super) record: Record,
    /// Whether it is written as a trail writes this record. Otherwise it may be ambiguous.
    pub(super) is_canonical: bool,
}

impl<'a> Line<'a> {
    /// Reads a line without its end. `None` if it is not a record of a trail.
    pub(super) fn read(line: &'a [u8]) -> Option<Self> {
        let text = std::str::from_utf8(line).ok()?;
        let (rest, hash) = text.strip_suffix(AFTER_HASH)?.split_at_checked(
            text.len().checked_sub(AFTER_HASH.len() + 2 * size_of::<ChainHash>())?,
        )?;
        let hash = ChainHash::read(hash)?;
        let covered = rest.strip_suffix(BEFORE_HASH)?.as_bytes();
        let record: Record = serde_json::from_str(text).ok()?;
        let written = serde_json::to_string(&record).ok()?;
        let is_canonical = written.strip_suffix('}').map(str::as_bytes) == Some(covered);
        Some(Self { covered, hash, record, is_canonical })
    }

    /// Whether it follows `before` unchanged.
    pub(super) fn follows(&self, before: ChainHash) -> bool {
        before.then(self.covered) == self.hash
    }
}

/// Returns the record of a line that this process made, with its end.
pub(super) fn record_of(line: &str) -> Option<Record> {
    Line::read(line.strip_suffix('\n')?.as_bytes()).map(|line| line.record)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_it_was_written_and_follows_only_what_came_before() {
        let chain = Chain::new(TrailId([7; 8]));
        let mut record = Record::of("dek_made");
        record.kek_ids = vec!["local:a\"b\\".to_owned()];
        let sealed = chain.seal(&mut record).unwrap();
        let line = Line::read(sealed.line.strip_suffix('\n').unwrap().as_bytes()).unwrap();
        assert_eq!(line.record, record);
        assert_eq!(line.hash, sealed.chain.head);
        assert!(line.follows(chain.head));
        assert!(!line.follows(sealed.chain.head));
        assert_eq!(TrailId::of(&record), Some(chain.trail));
        assert_eq!(sealed.chain.next, 1);
    }

    /// `python3 -c 'import hashlib; print(hashlib.sha256(b"waxseal.audit.v1
    /// chain\0"+b"\7"*8).hexdigest())'`
    #[test]
    fn the_chain_starts_where_the_page_says() {
        let expected = "000a65c7f95afa7cb1034675d2239966118166ca8fde757f299ebc9311057851";
        assert_eq!(TrailId([7; 8]).start().to_string(), expected);
    }

    #[test]
    fn what_is_not_a_line_is_refused() {
        let long = "x".repeat(100);
        for bytes in [&b""[..], b"\"}", b"{}", b"\xFF", long.as_bytes(), b",\"hash\":\"00\"}"] {
            assert!(Line::read(bytes).is_none());
        }
        let no_record = format!("{{\"a\":1,\"hash\":\"{}\"}}", "0".repeat(64));
        assert!(Line::read(no_record.as_bytes()).is_none());
    }
}
