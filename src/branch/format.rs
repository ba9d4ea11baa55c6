//! The entry of a branch key in a message's wrapped keys (docs/format.md, "Branch keys").
#![forbid(unsafe_code)]

use crate::format::reader::Reader;
use crate::format::{KeyKind, KeyRow, WrappedDek};
use crate::store::RowId;
use crate::suite::{BranchSalt, BranchWrapped};

const DERIVED: u8 = 1;
const WRAPPED: u8 = 2;
const SELF_CONTAINED: u8 = 3;

/// How a DEK is derived from a branch key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Form {
    Derived(BranchSalt),
    Wrapped(BranchWrapped),
}

/// An entry: the id of the branch key, how the DEK is derived from it, and the branch key's row if
/// no store holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct BranchEntry {
    pub(super) row_id: RowId,
    pub(super) form: Form,
    pub(super) row: Option<KeyRow>,
}

impl BranchEntry {
    /// Reads what [`to_bytes`](Self::to_bytes) writes. Returns `None` for anything else.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let (kind, row) = match reader.u8()? {
            SELF_CONTAINED => {
                let kind = reader.u8()?;
                let len = reader.u16()?;
                let row = KeyRow::try_from(reader.take(len.into())?).ok()?;
                (kind, Some(row))
            }
            kind => (kind, None),
        };
        let row_id = RowId::from_bytes(*reader.array()?);
        let form = match kind {
            DERIVED => Form::Derived(*reader.array()?),
            WRAPPED => Form::Wrapped(BranchWrapped {
                nonce: *reader.array()?,
                dek: *reader.array()?,
                tag: *reader.array()?,
            }),
            _ => return None,
        };
        let fits = |row: &KeyRow| {
            row.kind() == KeyKind::Branch && !row.is_tombstone() && RowId::from(row.id()) == row_id
        };
        let whole = reader.is_empty() && bytes.len() <= WrappedDek::MAX_WRAPPED;
        (whole && row.as_ref().is_none_or(fits)).then_some(Self { row_id, form, row })
    }

    /// Returns `None` if the row is too long for an entry.
    pub(super) fn to_bytes(&self) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(33);
        let kind = match self.form {
            Form::Derived(_) => DERIVED,
            Form::Wrapped(_) => WRAPPED,
        };
        if let Some(row) = &self.row {
            let row = row.to_bytes();
            bytes.extend_from_slice(&[SELF_CONTAINED, kind]);
            bytes.extend_from_slice(&u16::try_from(row.len()).ok()?.to_le_bytes());
            bytes.extend_from_slice(&row);
        } else {
            bytes.push(kind);
        }
        bytes.extend_from_slice(self.row_id.as_bytes());
        match &self.form {
            Form::Derived(salt) => bytes.extend_from_slice(salt),
            Form::Wrapped(BranchWrapped { nonce, dek, tag }) => {
                for part in [&nonce[..], dek, tag] {
                    bytes.extend_from_slice(part);
                }
            }
        }
        (bytes.len() <= WrappedDek::MAX_WRAPPED).then_some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::EncryptionContext;
    use crate::format::{KekId, WrappedKeys};
    use crate::suite::DekId;

    fn entries() -> Vec<(usize, BranchEntry)> {
        let id = DekId::from_bytes([5; 32]);
        let row_id = RowId::from(&id);
        let entry = WrappedDek::new(KekId::new("local:root").unwrap(), vec![7; 76]).unwrap();
        let keys = WrappedKeys::new([entry]).unwrap();
        let row = KeyRow::live(KeyKind::Branch, id, EncryptionContext::empty(), keys);
        let len = row.to_bytes().len();
        let derived = Form::Derived([1; 16]);
        let wrapped = Form::Wrapped(BranchWrapped { nonce: [2; 24], dek: [3; 32], tag: [4; 16] });
        vec![
            (33, BranchEntry { row_id, form: derived, row: None }),
            (89, BranchEntry { row_id, form: wrapped, row: None }),
            (36 + len, BranchEntry { row_id, form: derived, row: Some(row.clone()) }),
            (92 + len, BranchEntry { row_id, form: wrapped, row: Some(row) }),
        ]
    }

    #[test]
    fn an_entry_is_read_back_and_no_other_length_of_it_is() {
        for (len, entry) in entries() {
            let bytes = entry.to_bytes().unwrap();
            assert_eq!(bytes.len(), len);
            assert_eq!(BranchEntry::read(&bytes).unwrap(), entry);
            for cut in 0..bytes.len() {
                assert!(BranchEntry::read(&bytes[..cut]).is_none(), "{len} cut at {cut}");
            }
            assert!(BranchEntry::read(&[&bytes[..], &[0]].concat()).is_none());
        }
    }

    #[test]
    fn a_changed_entry_is_refused_or_read_as_what_it_says() {
        for (_, entry) in entries() {
            let bytes = entry.to_bytes().unwrap();
            for bit in 0..bytes.len() * 8 {
                let mut changed = bytes.clone();
                changed[bit / 8] ^= 1 << (bit % 8);
                if let Some(read) = BranchEntry::read(&changed) {
                    assert_ne!(read, entry);
                    assert_eq!(read.to_bytes().unwrap(), changed, "one entry, one encoding");
                }
            }
        }
    }

    #[test]
    fn a_row_of_another_key_or_kind_or_a_tombstone_is_refused_in_a_self_contained_entry() {
        let (_, entry) = entries().pop().unwrap();
        let row = entry.row.clone().unwrap();
        let live = |kind, id| {
            let (context, keys) =
                (row.context().unwrap().clone(), row.wrapped_keys().unwrap().clone());
            KeyRow::live(kind, id, context, keys)
        };
        let read = |row| {
            let entry = BranchEntry { row: Some(row), ..entry.clone() };
            BranchEntry::read(&entry.to_bytes().unwrap())
        };
        assert!(read(row.clone()).is_some(), "the control");
        assert!(read(live(KeyKind::Dek, *row.id())).is_none());
        assert!(read(live(KeyKind::Branch, DekId::from_bytes([6; 32]))).is_none());
        assert!(read(KeyRow::tombstone(KeyKind::Branch, *row.id())).is_none());
    }
}
