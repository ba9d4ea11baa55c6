//! The content of objects: a line of text and, if the object is a row, its bytes after it.
//!
//! ```text
//!   waxseal-row/1 ROWID -                          a row without place
//!   waxseal-row/1 ROWID BRANCHID PERIOD EPOCH      a row at its place
//!   waxseal-claim/1 ROWID BRANCHID PERIOD EPOCH    where the row of this id is, if it is anywhere
//! ```
#![forbid(unsafe_code)]

use waxseal::store::{BranchId, BranchPlace, RowId, StoredRow};

const ROW: &str = "waxseal-row/1";
const CLAIM: &str = "waxseal-claim/1";
/// The maximum length of the first line.
const LONGEST_LINE: usize = 256;

/// An object of the store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Content {
    Row(StoredRow),
    Claim(RowId, BranchPlace),
}

pub(crate) fn encode_row(row: &StoredRow) -> Vec<u8> {
    let mut bytes = match row.place() {
        None => format!("{ROW} {} -\n", row.id()),
        Some(place) => format!("{ROW} {} {}\n", row.id(), line(place)),
    }
    .into_bytes();
    bytes.extend_from_slice(row.as_bytes());
    bytes
}

pub(crate) fn encode_claim(id: &RowId, place: &BranchPlace) -> Vec<u8> {
    format!("{CLAIM} {id} {}\n", line(place)).into_bytes()
}

fn line(place: &BranchPlace) -> String {
    format!("{} {} {}", place.branch, place.period, place.epoch)
}

/// Returns `None` of what this store did not write.
pub(crate) fn decode(bytes: &[u8]) -> Option<Content> {
    let end = bytes.iter().take(LONGEST_LINE).position(|byte| *byte == b'\n')?;
    let (line, rest) = bytes.split_at_checked(end + 1)?;
    let mut words = std::str::from_utf8(line).ok()?.trim_end_matches('\n').split(' ');
    let (kind, id) = (words.next()?, RowId::from_bytes(from_hex(words.next()?)?));
    let place = match words.next()? {
        "-" => None,
        branch => Some(BranchPlace {
            branch: BranchId::from_bytes(from_hex(branch)?),
            period: words.next()?.parse().ok()?,
            epoch: words.next()?.parse().ok()?,
        }),
    };
    match (kind, place, words.next()) {
        (ROW, place, None) => Some(Content::Row(StoredRow::from_parts(id, place, rest))),
        (CLAIM, Some(place), None) if rest.is_empty() => Some(Content::Claim(id, place)),
        _ => None,
    }
}

/// Returns the name of a place within its branch. Names sort as places do: the sign is flipped, and
/// the length is fixed.
pub(crate) fn place_name(place: &BranchPlace) -> String {
    format!("{}{:08x}", before_period(place.period), place.epoch)
}

/// Returns a name that sorts before every name of this period or a later one, and after all others.
pub(crate) fn before_period(period: i64) -> String {
    format!("{:016x}-", period.cast_unsigned() ^ (1 << 63))
}

pub(crate) fn row_id(name: &str) -> Option<RowId> {
    from_hex(name).map(RowId::from_bytes)
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let is_hex = |digit: u8| digit.is_ascii_digit() || (b'a'..=b'f').contains(&digit);
    if text.len() != 2 * N || !text.bytes().all(is_hex) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing)]

    use super::*;

    const PLACE: BranchPlace =
        BranchPlace { branch: BranchId::from_bytes([0xAB; 32]), period: -7, epoch: 3 };
    const ID: RowId = RowId::from_bytes([9; 16]);

    #[test]
    fn names_sort_as_places_do() {
        let periods = [i64::MIN, -300, -2, -1, 0, 9, 10, 256, 253_402_300_800, i64::MAX];
        let mut names = Vec::new();
        for period in periods {
            names.push(before_period(period));
            for epoch in [0, 1, 2, 10, 256, u32::MAX] {
                names.push(place_name(&BranchPlace { period, epoch, ..PLACE }));
            }
        }
        assert!(names.is_sorted_by(|a, b| a < b), "{names:?}");
    }

    #[test]
    fn objects_are_read_as_they_were_written() {
        for place in [None, Some(PLACE)] {
            for bytes in [&b""[..], b"\n\n\0\xFF", b"waxseal-row/1 x"] {
                let row = StoredRow::from_parts(ID, place, bytes);
                assert_eq!(decode(&encode_row(&row)), Some(Content::Row(row)));
            }
        }
        assert_eq!(decode(&encode_claim(&ID, &PLACE)), Some(Content::Claim(ID, PLACE)));
    }

    #[test]
    fn what_is_cut_or_of_somebody_else_is_not_read() {
        let claim = encode_claim(&ID, &PLACE);
        for len in 0..claim.len() {
            assert_eq!(decode(&claim[..len]), None, "{len} bytes");
        }
        let more = [&claim[..], b"x"].concat();
        for foreign in [&b"{\"a\":1}\n"[..], b"waxseal-row/2 x -\n", b"waxseal-row/1 00 -\n", &more]
        {
            assert_eq!(decode(foreign), None);
        }
    }
}
