//! Many callers that want the same row at once.
#![forbid(unsafe_code)]

use super::*;

const TASKS: usize = 48;

pub(super) async fn lets_one_of_many_inserts_win(
    subject: &dyn Subject,
    _: u64,
) -> Result<(), Stop> {
    for round in 0..6 {
        let (at, id) = (place(new_branch()?, round, 0), new_id()?);
        let mut rows = Vec::new();
        for task in 0..TASKS {
            // They collide at a place, like processes at the start of a period, or at an id.
            let number = u32::try_from(task).unwrap_or(0);
            let of_id = || version(id, None, number);
            rows.push(if round % 2 == 0 { branch_key(at)? } else { of_id()? });
        }
        let inserts = rows.iter().cloned().enumerate().map(|(task, row)| {
            let store = handle(subject, task);
            async move { ok("insert", store.insert(&row).await) }
        });
        let results = at_once(subject, inserts.collect()).await?;
        let winners: Vec<_> = rows
            .iter()
            .zip(&results)
            .filter(|(_, result)| **result == Insertion::Inserted)
            .map(|(row, _)| row)
            .collect();
        let [winner] = winners.as_slice() else {
            return failed(format!("{} of {TASKS} inserts won", winners.len()));
        };
        for result in &results {
            if let Insertion::Exists(there) = result {
                same(Some(there), Some(winner), "what a loser was given")?;
            }
        }
        is_stored(subject, winner.id(), Some(winner), "the winner").await?;
        if round % 2 == 0 {
            branch_is(subject, &at.branch, i64::MIN, &[winner], "the place of a race").await?;
            for loser in rows.iter().filter(|row| row.id() != winner.id()) {
                same(
                    ok("get", subject.store().get(loser.id()).await)?.as_ref(),
                    None,
                    "a row that lost",
                )?;
            }
        }
    }
    Ok(())
}

pub(super) async fn lets_one_of_many_replacements_win(
    subject: &dyn Subject,
    _: u64,
) -> Result<(), Stop> {
    let mut current = branch_key(place(new_branch()?, 0, 0))?;
    insert(&*subject.store(), &current).await?;
    for round in 0..6_u32 {
        let mut rows = Vec::new();
        for task in 0..32 {
            rows.push(changed(&current, 1 + round * 32 + task)?);
        }
        let replacements = rows.iter().cloned().enumerate().map(|(task, new)| {
            let (store, old) = (handle(subject, task), current.clone());
            async move { ok("replace", store.replace(&old, &new).await) }
        });
        let results = at_once(subject, replacements.collect()).await?;
        let winners: Vec<_> =
            rows.iter().zip(&results).filter(|(_, won)| **won).map(|(row, _)| row).collect();
        let [winner] = winners.as_slice() else {
            return failed(format!("{} of 32 replacements of one row won", winners.len()));
        };
        is_stored(subject, winner.id(), Some(winner), "the winner").await?;
        current = (*winner).clone();
    }
    Ok(())
}

/// The rows that one task of the race read. Each must be one that may exist.
type Read = Vec<StoredRow>;

pub(super) async fn leaves_nothing_half_when_erasures_race(
    subject: &dyn Subject,
    _: u64,
) -> Result<(), Stop> {
    for _ in 0..4 {
        let branch = new_branch()?;
        let mut before = Vec::new();
        for period in 0..8 {
            let row = branch_key(place(branch, period, 0))?;
            insert(&*subject.store(), &row).await?;
            before.push(row);
        }
        let mut during = Vec::new();
        for period in 8..16 {
            during.push(branch_key(place(branch, period, 0))?);
        }
        let mut tasks: Vec<BoxFuture<'static, Result<Read, Stop>>> = Vec::new();
        for (turn, (old, new)) in before.iter().cloned().zip(during.iter().cloned()).enumerate() {
            let (store, next) = (handle(subject, turn), changed(&old, 1)?);
            tasks.push(Box::pin(async move {
                ok("replace", store.replace(&old, &next).await)?;
                Ok(Vec::new())
            }));
            let store = handle(subject, turn);
            tasks.push(Box::pin(async move { insert(&*store, &new).await.map(|()| Vec::new()) }));
            let store = handle(subject, turn + 1);
            tasks.push(Box::pin(async move {
                if turn < 4 {
                    ok("erase_branch", store.erase_branch(&branch).await)?;
                }
                ok("branch", store.branch(&branch, i64::MIN).await)
            }));
        }
        let mut versions = Vec::new();
        for row in before.iter().chain(&during) {
            versions.extend([row.clone(), changed(row, 1)?, row.tombstone()]);
        }
        for row in at_once(subject, tasks).await?.into_iter().flatten() {
            let what = "a read during an erasure returned what nobody stored";
            ensure(versions.contains(&row), format!("{what}: {}", shown(Some(&row))))?;
        }
        // Each erasure began after these rows existed, so it covers any replacement of them.
        for row in &before {
            let what = "a row of a branch that was erased while it was replaced";
            is_stored(subject, row.id(), Some(&row.tombstone()), what).await?;
        }
        for row in &during {
            let found = ok("get", subject.another().get(row.id()).await)?;
            ensure(
                found.as_ref() == Some(row) || found == Some(row.tombstone()),
                format!("a row inserted during an erasure: {}", shown(found.as_ref())),
            )?;
        }
        let erasure = ok("erase_branch", subject.store().erase_branch(&branch).await)?;
        ensure(erasure.erased + erasure.already_erased == 16, format!("{erasure:?} of 16 rows"))?;
        let tombstones: Vec<_> = before.iter().chain(&during).map(StoredRow::tombstone).collect();
        let all: Vec<_> = tombstones.iter().collect();
        branch_is(subject, &branch, i64::MIN, &all, "the erased branch").await?;
    }
    Ok(())
}
