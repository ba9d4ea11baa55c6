//! Replacement, erasure, tombstones.
#![forbid(unsafe_code)]

use super::*;

pub(super) async fn replaces_only_what_is_unchanged(
    subject: &dyn Subject,
    _: u64,
) -> Result<(), Stop> {
    let branch = new_branch()?;
    for first in [dek()?, branch_key(place(branch, 0, 0))?] {
        let (second, third) = (changed(&first, 1)?, changed(&first, 2)?);
        let store = subject.store();
        ensure(
            !replace(&*store, &first, &second).await?,
            "replaced a row that was never inserted",
        )?;
        is_stored(subject, first.id(), None, "a row that was never inserted").await?;
        insert(&*store, &first).await?;
        ensure(
            !replace(&*store, &second, &third).await?,
            "replaced a row that is not the old one",
        )?;
        is_stored(subject, first.id(), Some(&first), "a row that was not replaced").await?;
        ensure(replace(&*store, &first, &second).await?, "did not replace an unchanged row")?;
        is_stored(subject, first.id(), Some(&second), "a replaced row").await?;
        ensure(
            !replace(&*subject.another(), &first, &third).await?,
            "replaced a row by what was read before another replaced it",
        )?;
        is_stored(subject, first.id(), Some(&second), "a row that another replaced").await?;
        ensure(
            replace(&*store, &second, &second).await?,
            "did not replace an unchanged row by itself",
        )?;
        if let Some(at) = second.place() {
            branch_is(subject, &at.branch, 0, &[&second], "the branch of a replaced row").await?;
        }
    }
    Ok(())
}

pub(super) async fn replaces_only_with_the_same_id_and_place(
    subject: &dyn Subject,
    _: u64,
) -> Result<(), Stop> {
    let branch = new_branch()?;
    let row = branch_key(place(branch, 0, 0))?;
    insert(&*subject.store(), &row).await?;
    let with = |place| StoredRow::from_parts(*row.id(), place, row.as_bytes());
    let wrong = [
        ("another id", branch_key(place(branch, 0, 0))?),
        ("another place", with(Some(place(branch, 0, 1)))),
        ("no place", with(None)),
    ];
    for (what, wrong) in wrong {
        // An error is fine too, since it is the caller's mistake.
        let replaced = subject.store().replace(&row, &wrong).await.unwrap_or(false);
        ensure(!replaced, format!("replaced a row by one with {what}"))?;
        is_stored(subject, row.id(), Some(&row), what).await?;
        branch_is(subject, &branch, i64::MIN, &[&row], what).await?;
    }
    Ok(())
}

pub(super) async fn erases_the_branch_and_no_other(
    subject: &dyn Subject,
    _: u64,
) -> Result<(), Stop> {
    let (branch, other) = (new_branch()?, new_branch()?);
    let mut rows = Vec::new();
    for (period, epoch) in [(-1, 0), (0, 0), (0, 1), (2, 0)] {
        rows.push(branch_key(place(branch, period, epoch))?);
    }
    let (beside, without_place) = (branch_key(place(other, 0, 0))?, dek()?);
    for row in rows.iter().chain([&beside, &without_place]) {
        insert(&*subject.store(), row).await?;
    }
    let nothing = ok("erase_branch", subject.store().erase_branch(&new_branch()?).await)?;
    ensure(nothing == Erasure::default(), "erased rows of a branch without rows")?;

    let tombstones: Vec<_> = rows.iter().map(StoredRow::tombstone).collect();
    for (erased, already_erased) in [(4, 0), (0, 4)] {
        let erasure = ok("erase_branch", subject.store().erase_branch(&branch).await)?;
        let counts = (erasure.erased, erasure.already_erased);
        ensure(
            counts == (erased, already_erased),
            format!("{counts:?} rows erased and erased before, of {erased} and {already_erased}"),
        )?;
        for tombstone in &tombstones {
            is_stored(subject, tombstone.id(), Some(tombstone), "an erased row").await?;
        }
        let all: Vec<_> = tombstones.iter().collect();
        branch_is(subject, &branch, i64::MIN, &all, "an erased branch").await?;
    }
    branch_is(subject, &other, i64::MIN, &[&beside], "another branch").await?;
    is_stored(subject, without_place.id(), Some(&without_place), "a row without a place").await?;

    let next = branch_key(place(branch, 2, 1))?;
    insert(&*subject.store(), &next).await?;
    let erasure = ok("erase_branch", subject.another().erase_branch(&branch).await)?;
    ensure(
        erasure == Erasure { erased: 1, already_erased: 4 },
        format!("{erasure:?} of one new row and four tombstones"),
    )?;
    is_stored(subject, next.id(), Some(&next.tombstone()), "a row after the first erasure").await
}

pub(super) async fn keeps_tombstones(subject: &dyn Subject, _: u64) -> Result<(), Stop> {
    let at = place(new_branch()?, 0, 0);
    for live in [dek()?, branch_key(at)?] {
        let (store, tombstone) = (subject.store(), live.tombstone());
        insert(&*store, &live).await?;
        ensure(replace(&*store, &live, &tombstone).await?, "did not replace a row by a tombstone")?;
        for turn in 0..2 {
            let store = handle(subject, turn);
            insert_finds(&*store, &live, &tombstone, "the erased row again").await?;
            insert_finds(&*store, &tombstone, &tombstone, "the tombstone again").await?;
            for new in [&live, &changed(&live, 1)?] {
                ensure(!replace(&*store, &live, new).await?, "replaced a row that is erased")?;
                let revived = store.replace(&tombstone, new).await.unwrap_or(false);
                ensure(!revived, "replaced a tombstone by a live row")?;
            }
        }
        is_stored(subject, live.id(), Some(&tombstone), "a tombstone").await?;
    }
    let elsewhere = branch_key(at)?;
    let found = ok("insert", subject.store().insert(&elsewhere).await)?;
    ensure(found != Insertion::Inserted, "a new row took the place of a tombstone")?;
    // A tombstone may also arrive first, as a copy from another store.
    let copied = dek()?;
    insert(&*subject.store(), &copied.tombstone()).await?;
    let what = "the row of a copied tombstone";
    insert_finds(&*subject.store(), &copied, &copied.tombstone(), what).await
}
