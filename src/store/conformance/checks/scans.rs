//! Scans while rows are added and changed.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use super::*;

/// How often a scan returned each row.
type Seen = BTreeMap<RowId, u32>;

/// The maximum number of pages of a scan, so that one that loops ends.
const PAGES: usize = 1_000_000;

/// The changes between the pages of a scan.
struct Changes {
    rows: Vec<StoredRow>,
    branch: BranchId,
    other: BranchId,
}

impl Changes {
    /// Makes the changes after a page. Some of the rows sort before the cursor, some after it.
    async fn make(&self, store: &dyn KeyStore, page: usize) -> Result<(), Stop> {
        if page < 20 {
            let period = i64::try_from(page).unwrap_or(0);
            insert(store, &branch_key(place(self.other, period, 0))?).await?;
            insert(store, &dek()?).await?;
        }
        if let Some(row) = self.rows.get(page) {
            replace(store, row, &changed(row, 1)?).await?;
        }
        if page == 3 {
            ok("erase_branch", store.erase_branch(&self.branch).await)?;
        }
        Ok(())
    }
}

async fn scan(
    subject: &dyn Subject,
    limit: usize,
    changes: Option<&Changes>,
) -> Result<Seen, Stop> {
    let (mut seen, mut cursor) = (Seen::new(), None);
    for page in 0..PAGES {
        let store = handle(subject, page);
        let found = ok("scan", store.scan(cursor.as_ref(), limit).await)?;
        ensure(
            found.rows.len() <= limit,
            format!("a page of {} rows, of at most {limit}", found.rows.len()),
        )?;
        for row in found.rows {
            *seen.entry(*row.id()).or_default() += 1;
        }
        match found.next {
            None => return Ok(seen),
            Some(next) if cursor.as_ref() == Some(&next) => {
                return failed("a page ends where it began");
            }
            // Like a restart in another process.
            Some(next) => cursor = Some(ScanCursor::from_bytes(next.as_bytes())),
        }
        if let Some(changes) = changes {
            changes.make(&*subject.another(), page).await?;
        }
    }
    failed(format!("a scan did not end within {PAGES} pages"))
}

fn each_once(seen: &Seen, rows: &[StoredRow], limit: usize) -> Result<(), Stop> {
    for row in rows {
        let times = seen.get(row.id()).copied().unwrap_or_default();
        ensure(
            times == 1,
            format!("a scan in pages of {limit} saw {} {times} times", shown(Some(row))),
        )?;
    }
    Ok(())
}

async fn some_rows(subject: &dyn Subject, branch: BranchId) -> Result<Vec<StoredRow>, Stop> {
    let mut rows = Vec::new();
    for period in 0..12 {
        rows.push(branch_key(place(branch, period, 0))?);
        rows.push(dek()?);
    }
    for row in &rows {
        insert(&*subject.store(), row).await?;
    }
    Ok(rows)
}

pub(super) async fn scans_every_row_once_while_rows_change(
    subject: &dyn Subject,
    _: u64,
) -> Result<(), Stop> {
    for limit in [2, 7, 1000] {
        let branch = new_branch()?;
        let rows = some_rows(subject, branch).await?;
        let changes = Changes { rows, branch, other: new_branch()? };
        let seen = scan(subject, limit, Some(&changes)).await?;
        each_once(&seen, &changes.rows, limit)?;
        ensure(seen.values().all(|times| *times == 1), "a scan saw a row twice")?;
    }
    Ok(())
}

pub(super) async fn scans_pages_of_one_row(subject: &dyn Subject, _: u64) -> Result<(), Stop> {
    let rows = some_rows(subject, new_branch()?).await?;
    let seen = scan(subject, 1, None).await?;
    each_once(&seen, &rows, 1)
}

pub(super) async fn resumes_a_scan_from_a_kept_cursor(
    subject: &dyn Subject,
    _: u64,
) -> Result<(), Stop> {
    let rows = some_rows(subject, new_branch()?).await?;
    let first = ok("scan", subject.store().scan(None, 5).await)?;
    let Some(next) = first.next else {
        return failed("no next page, though there are more rows than the page has");
    };
    // The same cursor twice: both scans continue from the same row.
    for _ in 0..2 {
        let mut seen = Seen::new();
        let mut cursor = Some(ScanCursor::from_bytes(next.as_bytes()));
        while let Some(from) = cursor {
            let page = ok("scan", subject.another().scan(Some(&from), 50).await)?;
            for row in &page.rows {
                *seen.entry(*row.id()).or_default() += 1;
            }
            ensure(page.next.as_ref() != Some(&from), "a page ends where it began")?;
            cursor = page.next;
        }
        for row in &first.rows {
            *seen.entry(*row.id()).or_default() += 1;
        }
        each_once(&seen, &rows, 50)?;
    }
    Ok(())
}
