//! Rewraps all branch keys of a store.
#![forbid(unsafe_code)]

use futures_util::StreamExt;
use futures_util::stream;

use super::{BRANCH, BranchKek};
use crate::error::{Error, ErrorKind};
use crate::format::{KeyKind, KeyRow};
use crate::kek::rewrap::Check;
use crate::store::{KeyStore, ScanCursor, StoredRow};

/// How often a row is read again that others change at the same time.
const ATTEMPTS: usize = 5;
const DEFAULT_PAGE: usize = 256;

/// Options of [`BranchKek::rewrap_branch_keys`].
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct RewrapBranchKeys {
    after: Option<ScanCursor>,
    page: Option<usize>,
}

impl RewrapBranchKeys {
    /// Goes on where an earlier walk ended: [`RewrapProgress::next`].
    pub fn after(mut self, cursor: ScanCursor) -> Self {
        self.after = Some(cursor);
        self
    }

    /// Sets how many rows are read at a time: by default 256.
    pub fn page(mut self, rows: usize) -> Self {
        self.page = Some(rows.max(1));
        self
    }
}

/// How far [`BranchKek::rewrap_branch_keys`] is.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RewrapProgress {
    /// Branch keys that the root KEKs wrapped again.
    pub rewrapped: u64,
    /// Branch keys that were wrapped by the current versions of the root KEKs already.
    pub current: u64,
    /// Tombstones, and rows of other branches or kinds.
    pub skipped: u64,
    /// Branch keys that could not be rewrapped, for a reason that does not pass by itself. Their
    /// rows are unchanged.
    pub failed: u64,
    /// The first of those failures.
    pub first_failure: Option<Error>,
    /// Where to go on. `None` at the end.
    pub next: Option<ScanCursor>,
}

enum Outcome {
    Rewrapped,
    Current,
    Skipped,
}

impl BranchKek {
    /// Rewraps every branch key of this name in the store by the current versions of the root KEKs,
    /// and by no other KEK. No message changes, and none needs to. After it, a retired root can be
    /// disabled: see docs/key-stores.md, "Rotation day".
    ///
    /// It reads the store page by page and calls `progress` after each. A row is replaced only if
    /// nobody changed it meanwhile. Each new entry is unwrapped and checked before the old one goes.
    /// A walk that stops can [go on](RewrapBranchKeys::after), and a repetition does what is left.
    ///
    /// ```
    /// # use waxseal::{branch::{BranchKek, RewrapBranchKeys}, store::MemoryStore, kek::local::LocalKek};
    /// # pollster::block_on(async {
    /// # let root = LocalKek::in_memory("root")?;
    /// # let kek = BranchKek::builder(root).name("orders").store(MemoryStore::new()).build()?;
    /// let done = kek.rewrap_branch_keys(RewrapBranchKeys::default(), |_| {}).await?;
    /// assert_eq!((done.failed, done.next), (0, None));
    /// # Ok::<(), waxseal::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] without a store. The first outage of the store or of a root: the
    /// last progress says where to go on. Look at [`RewrapProgress::failed`] too.
    pub async fn rewrap_branch_keys(
        &self,
        options: RewrapBranchKeys,
        mut progress: impl FnMut(&RewrapProgress),
    ) -> Result<RewrapProgress, Error> {
        let Some(store) = &self.0.store else {
            return Err(Error::new(ErrorKind::InvalidOption, format!("{}: no store", self.0.id)));
        };
        let RewrapBranchKeys { after, page } = options;
        let mut so_far = RewrapProgress { next: after, ..RewrapProgress::default() };
        loop {
            let limit = page.unwrap_or(DEFAULT_PAGE);
            let scan = store.scan(so_far.next.as_ref(), limit);
            let found = self.0.source.of_store_or_error(&**store, scan).await?;
            let at_once = self.0.source.keks().at_once();
            let outcomes: Vec<_> = stream::iter(found.rows)
                .map(|row| self.rewrap_row(&**store, row))
                .buffered(at_once)
                .collect()
                .await;
            for outcome in outcomes {
                match outcome {
                    Ok(Outcome::Rewrapped) => so_far.rewrapped += 1,
                    Ok(Outcome::Current) => so_far.current += 1,
                    Ok(Outcome::Skipped) => so_far.skipped += 1,
                    Err(error) if error.is_retryable() => return Err(error),
                    Err(error) => {
                        so_far.failed += 1;
                        so_far.first_failure.get_or_insert(error);
                    }
                }
            }
            so_far.next = found.next;
            progress(&so_far);
            if so_far.next.is_none() {
                return Ok(so_far);
            }
        }
    }

    async fn rewrap_row(
        &self,
        store: &dyn KeyStore,
        mut stored: StoredRow,
    ) -> Result<Outcome, Error> {
        let source = &self.0.source;
        for _ in 0..ATTEMPTS {
            let row = source.read_row(store, &stored)?;
            let (Some(context), Some(keys)) = (row.context(), row.wrapped_keys()) else {
                return Ok(Outcome::Skipped);
            };
            if row.kind() != KeyKind::Branch || context.get(BRANCH) != Some(self.name()) {
                return Ok(Outcome::Skipped);
            }
            let rewrapped = source.rewrap_list(context, row.id(), keys, Check::UnwrapEach).await?;
            if rewrapped == *keys {
                return Ok(Outcome::Current);
            }
            let new = KeyRow::live(row.kind(), *row.id(), context.clone(), rewrapped);
            let new = StoredRow::new(&new, stored.place().copied());
            if source.of_store_or_error(store, store.replace(&stored, &new)).await? {
                return Ok(Outcome::Rewrapped);
            }
            // Somebody else rewrapped or erased it.
            match source.of_store_or_error(store, store.get(stored.id())).await? {
                Some(there) => stored = there,
                None => return Ok(Outcome::Skipped),
            }
        }
        Err(Error::new(
            ErrorKind::Unavailable,
            format!("key store {}: row {} changes all the time", store.name(), stored.id()),
        ))
    }
}
