//! Key stores hold the wrapped keys that messages do not carry.
//!
//! A [`KeyStore`] keeps [rows](KeyRow) of branch keys and of the DEKs of compact messages. It sees
//! no key and is not trusted: the DEK id in a row commits to the key and its context, and the KEKs
//! authenticate the wrapped keys. The worst that a store can do is lose rows, or return old ones.
//!
//! ```text
//!   branch keys, compact messages ──► KeyStore ──► a table, a bucket, or memory
//! ```
#![forbid(unsafe_code)]

#[cfg(feature = "tokio")]
mod conflict_backoff;
#[cfg(feature = "test-util")]
pub mod conformance;
mod cursor;
mod error;
mod memory;
mod rewrap;
#[cfg(feature = "test-util")]
pub mod scripted;
#[cfg(feature = "tokio")]
mod spawn;

use std::fmt;

#[cfg(feature = "tokio")]
pub use conflict_backoff::ConflictBackoff;
pub use cursor::ScanCursor;
pub use error::{StoreError, StoreErrorClass};
pub use memory::MemoryStore;
pub use rewrap::{RewrapOptions, RewrapProgress};
#[cfg(feature = "tokio")]
pub use spawn::StoreSpawner;

pub use crate::format::{KeyKind, KeyRow};
pub use crate::runtime::BoxFuture;

use crate::error::Error;
use crate::kek::CallAdvice;
use crate::suite::DekId;
use crate::sync::Arc;

/// Keeps key rows for all processes that share them.
///
/// Implementations try once, or as often as their client does, and report with [`StoreErrorClass`]
/// what a failure means. They run the conformance suite ([`conformance`](crate::store)) in their
/// tests. All they may read from a row's bytes is whether it is a tombstone.
///
/// Three rules make races harmless. [`insert`](Self::insert) never overwrites a row. A row is
/// replaced only if it is still what the caller read. A tombstone stays forever.
pub trait KeyStore: fmt::Debug + Send + Sync {
    /// Returns the store's name, for errors, events and health checks.
    fn name(&self) -> &str;

    /// Inserts a row unless there is one with its [`RowId`], or one at its [`BranchPlace`]. In that
    /// case it returns the existing row. When it returns, the row is durable: every later read by
    /// any process finds it.
    fn insert<'a>(&'a self, row: &'a StoredRow) -> BoxFuture<'a, Result<Insertion, StoreError>>;

    /// Returns a row. A read sees every insertion, replacement and erasure that returned before it
    /// began (in a replicated store: read from the leader).
    fn get<'a>(&'a self, id: &'a RowId) -> BoxFuture<'a, Result<Option<StoredRow>, StoreError>>;

    /// Returns the rows of a branch whose period began at `from` or later, including tombstones,
    /// ascending by [place](BranchPlace). As consistent as [`get`](Self::get).
    fn branch<'a>(
        &'a self,
        branch: &'a BranchId,
        from: i64,
    ) -> BoxFuture<'a, Result<Vec<StoredRow>, StoreError>>;

    /// Replaces a row, if the stored one is still `old`, byte for byte, and is not a tombstone.
    /// Returns whether it did. Both rows have the same [`RowId`] and the same place.
    fn replace<'a>(
        &'a self,
        old: &'a StoredRow,
        new: &'a StoredRow,
    ) -> BoxFuture<'a, Result<bool, StoreError>>;

    /// Replaces every live row of a branch with its [tombstone](StoredRow::tombstone), in one
    /// transaction if the store has them, and otherwise row by row, so that a repetition completes
    /// it.
    fn erase_branch<'a>(
        &'a self,
        branch: &'a BranchId,
    ) -> BoxFuture<'a, Result<Erasure, StoreError>>;

    /// Returns up to `limit` rows (at least 1) after `after`, in any order that the store chooses.
    /// A scan from beginning to end sees every row that exists all the time exactly once, while
    /// other rows are added and while rows are replaced or erased.
    fn scan<'a>(
        &'a self,
        after: Option<&'a ScanCursor>,
        limit: usize,
    ) -> BoxFuture<'a, Result<ScanPage, StoreError>>;

    /// Checks whether the store can be read now, with its schema.
    fn health(&self) -> BoxFuture<'_, Result<(), StoreError>>;

    /// Returns what an operator should fix although the store works, such as an outdated schema.
    /// [`BranchKek`](crate::branch::BranchKek) reports it as
    /// [`Health::Degraded`](crate::kek::Health) after [`health`](Self::health). It makes no call: a
    /// store knows it from earlier calls. By default there is no warning.
    fn warning(&self) -> Option<Box<str>> {
        None
    }

    /// Returns the store's advice about its calls: timeout, tries, a budget. It applies if the
    /// [`CallPolicy`](crate::CallPolicy) leaves an option unset. A store that answers in this
    /// process declares that with [`CallAdvice::in_process`], and then no call has a timeout, a
    /// retry or a breaker. It is called before each call. By default there is no advice.
    fn advice(&self) -> CallAdvice {
        CallAdvice::default()
    }
}

/// The first 16 bytes of the id of a row's key, which identify the row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RowId([u8; 16]);

impl RowId {
    /// The length in bytes.
    pub const LEN: usize = 16;

    /// Makes the id from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

impl From<&DekId> for RowId {
    fn from(id: &DekId) -> Self {
        let mut bytes = [0; Self::LEN];
        for (byte, of_id) in bytes.iter_mut().zip(id.as_bytes()) {
            *byte = *of_id;
        }
        Self(bytes)
    }
}

/// Writes 32 lower-case hexadecimal digits.
impl fmt::Display for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for RowId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RowId({self})")
    }
}

/// The name of a branch in a store: the SHA-256 of its context without the period.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BranchId([u8; 32]);

impl BranchId {
    /// Makes the id from its bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Writes 64 lower-case hexadecimal digits.
impl fmt::Display for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BranchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BranchId({self})")
    }
}

/// The place of a branch key's row. A store holds at most one row at a place.
///
/// It is only an index. The row's context decides, to which the key's id commits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct BranchPlace {
    /// The branch.
    pub branch: BranchId,
    /// When the period began, in seconds since 1970-01-01T00:00:00Z.
    pub period: i64,
    /// How many keys of this branch and period were erased before this one.
    pub epoch: u32,
}

/// A row as a store keeps it: the bytes, and the keys by which it is found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StoredRow {
    id: RowId,
    place: Option<BranchPlace>,
    bytes: Box<[u8]>,
}

impl StoredRow {
    /// Makes the stored form of a row.
    #[must_use]
    pub fn new(row: &KeyRow, place: Option<BranchPlace>) -> Self {
        Self { id: row.id().into(), place, bytes: row.to_bytes().into() }
    }

    /// Makes it from a store's content. The bytes are not checked.
    #[must_use]
    pub fn from_parts(id: RowId, place: Option<BranchPlace>, bytes: impl Into<Box<[u8]>>) -> Self {
        Self { id, place, bytes: bytes.into() }
    }

    /// Returns the id by which the row is found.
    #[must_use]
    pub fn id(&self) -> &RowId {
        &self.id
    }

    /// Returns the place of a branch key's row. Other rows have no place.
    #[must_use]
    pub fn place(&self) -> Option<&BranchPlace> {
        self.place.as_ref()
    }

    /// Returns the encoded [`KeyRow`].
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads the bytes.
    ///
    /// # Errors
    /// Those of [`KeyRow::try_from`].
    pub fn row(&self) -> Result<KeyRow, Error> {
        KeyRow::try_from(&*self.bytes)
    }

    /// Returns whether the bytes are a tombstone.
    #[must_use]
    pub fn is_tombstone(&self) -> bool {
        self.row().is_ok_and(|row| row.is_tombstone())
    }

    /// Returns the tombstone that erasure leaves of this row: the same id and place, and no wrapped
    /// keys. If the row cannot be read, or holds another key, the tombstone's key id is the row id,
    /// followed by zeros.
    #[must_use]
    pub fn tombstone(&self) -> Self {
        let (kind, id) = match self.row() {
            Ok(row) if RowId::from(row.id()) == self.id => (row.kind(), *row.id()),
            _ => {
                let mut id = [0; 32];
                id.iter_mut().zip(self.id.0).for_each(|(byte, of_id)| *byte = of_id);
                let kind = if self.place.is_some() { KeyKind::Branch } else { KeyKind::Dek };
                (kind, DekId::from_bytes(id))
            }
        };
        let bytes = KeyRow::tombstone(kind, id).to_bytes().into();
        Self { id: self.id, place: self.place, bytes }
    }
}

/// The result of [`KeyStore::insert`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Insertion {
    /// The row is stored.
    Inserted,
    /// A row existed already, and is unchanged.
    Exists(StoredRow),
}

/// The result of [`KeyStore::erase_branch`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Erasure {
    /// Live rows that became tombstones.
    pub erased: u64,
    /// Tombstones that were there before.
    pub already_erased: u64,
}

/// One page of [`KeyStore::scan`].
#[derive(Clone, Debug, Default)]
pub struct ScanPage {
    /// The rows. A page may have fewer than requested, or none, without being the last.
    pub rows: Vec<StoredRow>,
    /// Where the next page begins. `None` at the end.
    pub next: Option<ScanCursor>,
}

/// Lets a store be shared between branch KEKs and envelopes.
impl<S: KeyStore + ?Sized> KeyStore for Arc<S> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn insert<'a>(&'a self, row: &'a StoredRow) -> BoxFuture<'a, Result<Insertion, StoreError>> {
        (**self).insert(row)
    }

    fn get<'a>(&'a self, id: &'a RowId) -> BoxFuture<'a, Result<Option<StoredRow>, StoreError>> {
        (**self).get(id)
    }

    fn branch<'a>(
        &'a self,
        branch: &'a BranchId,
        from: i64,
    ) -> BoxFuture<'a, Result<Vec<StoredRow>, StoreError>> {
        (**self).branch(branch, from)
    }

    fn replace<'a>(
        &'a self,
        old: &'a StoredRow,
        new: &'a StoredRow,
    ) -> BoxFuture<'a, Result<bool, StoreError>> {
        (**self).replace(old, new)
    }

    fn erase_branch<'a>(
        &'a self,
        branch: &'a BranchId,
    ) -> BoxFuture<'a, Result<Erasure, StoreError>> {
        (**self).erase_branch(branch)
    }

    fn scan<'a>(
        &'a self,
        after: Option<&'a ScanCursor>,
        limit: usize,
    ) -> BoxFuture<'a, Result<ScanPage, StoreError>> {
        (**self).scan(after, limit)
    }

    fn health(&self) -> BoxFuture<'_, Result<(), StoreError>> {
        (**self).health()
    }

    fn warning(&self) -> Option<Box<str>> {
        (**self).warning()
    }

    fn advice(&self) -> CallAdvice {
        (**self).advice()
    }
}
