//! What was inserted is found, by id and by place.
#![forbid(unsafe_code)]

use super::*;

pub(super) async fn has_a_name_and_is_well(subject: &dyn Subject, _: u64) -> Result<(), Stop> {
    let store = subject.store();
    ensure(!store.name().trim().is_empty(), "the store has no name")?;
    ensure(!store.name().contains(char::is_control), "the name has unprintable characters")?;
    ensure(store.name() == subject.store().name(), "the name changes")?;
    ok("health", store.health().await)?;
    ok("health", subject.another().health().await)
}

pub(super) async fn returns_what_was_inserted(subject: &dyn Subject, _: u64) -> Result<(), Stop> {
    let (branch, absent) = (new_branch()?, dek()?);
    is_stored(subject, absent.id(), None, "a row that was never inserted").await?;
    branch_is(subject, &branch, i64::MIN, &[], "a branch without rows").await?;
    for row in [dek()?, branch_key(place(branch, 86_400, 0))?] {
        insert(&*subject.store(), &row).await?;
        is_stored(subject, row.id(), Some(&row), "an inserted row").await?;
    }
    is_stored(subject, absent.id(), None, "a row that was never inserted").await
}

pub(super) async fn never_overwrites_by_insert(subject: &dyn Subject, _: u64) -> Result<(), Stop> {
    let at = place(new_branch()?, 0, 0);
    for row in [dek()?, branch_key(at)?] {
        insert(&*subject.store(), &row).await?;
        for turn in 0..2 {
            let store = handle(subject, turn);
            insert_finds(&*store, &row, &row, "the same row again").await?;
            let other = changed(&row, 1)?;
            insert_finds(&*store, &other, &row, "another row of the same id").await?;
        }
        is_stored(subject, row.id(), Some(&row), "a row after insertions of its id").await?;
    }
    // An id alone is enough, wherever the row claims to belong.
    let row = dek()?;
    insert(&*subject.store(), &row).await?;
    let elsewhere = place(at.branch, 1, 0);
    let moved = StoredRow::from_parts(*row.id(), Some(elsewhere), row.as_bytes());
    insert_finds(&*subject.store(), &moved, &row, "the same id at a place").await?;
    insert(&*subject.another(), &branch_key(elsewhere)?).await
}

pub(super) async fn keeps_one_row_per_place(subject: &dyn Subject, _: u64) -> Result<(), Stop> {
    let at = place(new_branch()?, 2_592_000, 1);
    let (first, second) = (branch_key(at)?, branch_key(at)?);
    insert(&*subject.store(), &first).await?;
    for turn in 0..2 {
        let store = handle(subject, turn);
        insert_finds(&*store, &second, &first, "another row at the same place").await?;
    }
    is_stored(subject, second.id(), None, "a row that was refused").await?;
    branch_is(subject, &at.branch, i64::MIN, &[&first], "a place that two wanted").await
}

pub(super) async fn finds_the_rows_of_a_branch_in_order(
    subject: &dyn Subject,
    _: u64,
) -> Result<(), Stop> {
    let (branch, other) = (new_branch()?, new_branch()?);
    let mut rows = Vec::new();
    // Numbers that sort differently as text, or as bytes of either order.
    for (period, epoch) in
        [(-300, 0), (-2, 0), (0, 0), (0, 1), (0, 2), (0, 10), (0, 256), (9, 0), (10, 0), (256, 3)]
    {
        rows.push(branch_key(place(branch, period, epoch))?);
    }
    insert(&*subject.store(), &branch_key(place(other, 0, 3))?).await?;
    for (turn, index) in [4, 9, 0, 6, 2, 8, 1, 5, 3, 7].into_iter().enumerate() {
        if let Some(row) = rows.get(index) {
            insert(&*handle(subject, turn), row).await?;
        }
    }
    for from in [i64::MIN, -300, -299, 0, 1, 9, 10, 11, 256, 257, i64::MAX] {
        let expected: Vec<_> = rows.iter().filter(|row| row_period(row) >= from).collect();
        branch_is(subject, &branch, from, &expected, &format!("the branch from {from}")).await?;
    }
    Ok(())
}

fn row_period(row: &StoredRow) -> i64 {
    row.place().map_or(0, |place| place.period)
}

pub(super) async fn takes_every_period_and_epoch(
    subject: &dyn Subject,
    _: u64,
) -> Result<(), Stop> {
    let branch = new_branch()?;
    let mut rows = Vec::new();
    for period in [i64::MIN, -1, 0, 253_402_300_800, i64::MAX] {
        for epoch in [0, u32::MAX] {
            let row = branch_key(place(branch, period, epoch))?;
            insert(&*subject.store(), &row).await?;
            is_stored(subject, row.id(), Some(&row), "a row at the limits of a place").await?;
            rows.push(row);
        }
    }
    let all: Vec<_> = rows.iter().collect();
    branch_is(subject, &branch, i64::MIN, &all, "places at their limits").await?;
    let last: Vec<_> = all.iter().copied().skip(8).collect();
    branch_is(subject, &branch, i64::MAX, &last, "the last period that there is").await
}

pub(super) async fn keeps_the_largest_rows(subject: &dyn Subject, _: u64) -> Result<(), Stop> {
    let at = place(new_branch()?, 0, 0);
    let (row, other) = (largest(Some(at))?, largest(None)?);
    insert(&*subject.store(), &row).await?;
    insert(&*subject.store(), &other).await?;
    is_stored(subject, row.id(), Some(&row), "the largest row").await?;
    is_stored(subject, other.id(), Some(&other), "the largest row without a place").await?;
    branch_is(subject, &at.branch, 0, &[&row], "a branch of the largest row").await?;
    // One of them differs from the other in the last byte only.
    let mut bytes = row.as_bytes().to_vec();
    if let Some(last) = bytes.last_mut() {
        *last ^= 1;
    }
    let changed = StoredRow::from_parts(*row.id(), Some(at), bytes);
    ensure(
        !replace(&*subject.store(), &changed, &row).await?,
        "replaced a large row that differs in its last byte from the old one",
    )?;
    ensure(replace(&*subject.store(), &row, &changed).await?, "did not replace a large row")?;
    is_stored(subject, row.id(), Some(&changed), "the largest row, replaced").await
}

pub(super) async fn keeps_what_it_cannot_read(subject: &dyn Subject, _: u64) -> Result<(), Stop> {
    let at = place(new_branch()?, 0, 0);
    // All byte values, which no text encoding survives.
    let bytes: Vec<u8> = (0..=255).rev().collect();
    for at in [None, Some(at)] {
        let row = StoredRow::from_parts((&new_id()?).into(), at, &*bytes);
        insert(&*subject.store(), &row).await?;
        is_stored(subject, row.id(), Some(&row), "bytes of a later version").await?;
        if let Some(at) = at {
            let erasure = ok("erase_branch", subject.store().erase_branch(&at.branch).await)?;
            ensure(erasure.erased == 1, "erasure left out a row that cannot be read")?;
            let left = row.tombstone();
            is_stored(subject, row.id(), Some(&left), "an unreadable row, erased").await?;
        }
    }
    Ok(())
}
