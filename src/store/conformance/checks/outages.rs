//! Cancelled calls, a crash, and an unavailable store.
#![forbid(unsafe_code)]

use std::future::poll_fn;
use std::sync::mpsc;
use std::task::Poll;
use std::time::{Duration, Instant};

use futures_util::TryFutureExt;
use futures_util::future::{Either, join_all, select};
use futures_util::task::AtomicWaker;

use super::*;
use crate::store::StoreError;
use crate::sync::atomic::{AtomicBool, Ordering};

pub(super) async fn survives_cancellation(subject: &dyn Subject, _: u64) -> Result<(), Stop> {
    let branch = new_branch()?;
    let kept = branch_key(place(branch, 0, 0))?;
    insert(&*subject.store(), &kept).await?;
    let store = subject.store();
    let mut rows = Vec::new();
    for turn in 1..=40 {
        let row = branch_key(place(branch, turn, 0))?;
        let new = changed(&kept, 1)?;
        let (mut get, mut put) = (store.get(kept.id()), store.insert(&row));
        let (mut change, mut scan) = (store.replace(&kept, &new), store.scan(None, 2));
        poll_fn(|task| {
            let _ = get.as_mut().poll(task).is_ready();
            let _ = put.as_mut().poll(task).is_ready();
            let _ = change.as_mut().poll(task).is_ready();
            let _ = scan.as_mut().poll(task).is_ready();
            Poll::Ready(())
        })
        .await;
        drop((get, put, change, scan));
        rows.push(row);
    }
    let mut erase = store.erase_branch(&branch);
    poll_fn(|task| {
        let _ = erase.as_mut().poll(task).is_ready();
        Poll::Ready(())
    })
    .await;
    drop(erase);
    // A cancelled call took effect or did not, and the store keeps working.
    for row in &rows {
        let found = ok("get", store.get(row.id()).await)?;
        ensure(
            found.is_none() || found.as_ref() == Some(row) || found == Some(row.tombstone()),
            format!("after a cancelled insertion: {}", shown(found.as_ref())),
        )?;
    }
    ok("erase_branch", store.erase_branch(&branch).await)?;
    is_stored(subject, kept.id(), Some(&kept.tombstone()), "a row after cancelled calls").await
}

pub(super) async fn keeps_over_a_crash_what_has_returned(
    subject: &dyn Subject,
    _: u64,
) -> Result<(), Stop> {
    for _ in 0..2 {
        let (branch, erased) = (new_branch()?, new_branch()?);
        let (first, second, gone) =
            (branch_key(place(branch, 0, 0))?, dek()?, branch_key(place(erased, 0, 0))?);
        let store = subject.store();
        for row in [&first, &second, &gone] {
            insert(&*store, row).await?;
        }
        let replaced = changed(&second, 1)?;
        ensure(replace(&*store, &second, &replaced).await?, "did not replace an unchanged row")?;
        ok("erase_branch", store.erase_branch(&erased).await)?;
        let last = branch_key(place(branch, 1, 0))?;
        insert(&*store, &last).await?;
        step(subject.crash().await)?;
        let what = "after a crash";
        is_stored(subject, replaced.id(), Some(&replaced), what).await?;
        is_stored(subject, gone.id(), Some(&gone.tombstone()), what).await?;
        branch_is(subject, &branch, i64::MIN, &[&first, &last], what).await?;
    }
    Ok(())
}

pub(super) async fn is_unavailable_while_it_is_away_and_recovers(
    subject: &dyn Subject,
    _: u64,
) -> Result<(), Stop> {
    let branch = new_branch()?;
    let row = branch_key(place(branch, 0, 0))?;
    let store = subject.store();
    insert(&*store, &row).await?;
    step(subject.take_away().await)?;
    let failures = while_away(&*store, &row, &branch, subject.answers_within()).await;
    step(subject.give_back().await)?;
    failures?;
    is_stored(subject, row.id(), Some(&row), "after the store came back").await?;
    ok("health after the store came back", store.health().await)?;
    insert(&*store, &dek()?).await
}

async fn while_away(
    store: &dyn KeyStore,
    row: &StoredRow,
    branch: &BranchId,
    limit: Duration,
) -> Result<(), Stop> {
    let (new, other) = (changed(row, 1)?, dek()?);
    // All at once, so that it takes the time of one call.
    let outcomes = [
        fails("get", limit, Box::pin(store.get(row.id()).map_ok(drop))),
        fails("insert", limit, Box::pin(store.insert(&other).map_ok(drop))),
        fails("branch", limit, Box::pin(store.branch(branch, 0).map_ok(drop))),
        fails("replace", limit, Box::pin(store.replace(row, &new).map_ok(drop))),
        fails("erase_branch", limit, Box::pin(store.erase_branch(branch).map_ok(drop))),
        fails("scan", limit, Box::pin(store.scan(None, 1).map_ok(drop))),
        fails("health", limit, store.health()),
    ];
    join_all(outcomes).await.into_iter().collect()
}

async fn fails(
    name: &str,
    limit: Duration,
    call: BoxFuture<'_, Result<(), StoreError>>,
) -> Result<(), Stop> {
    let began = Instant::now();
    match within(limit, call).await {
        None => failed(format!("{name}: no answer within {limit:?} while the store is away")),
        Some(Ok(())) => failed(format!("{name}: succeeded while the store is away")),
        Some(Err(error)) => ensure(
            error.class() == StoreErrorClass::Unavailable,
            format!("{name}: {:?} ({error}) after {:?}", error.class(), began.elapsed()),
        ),
    }
}

/// Returns the future's value, or `None` after the time, which a thread measures since there may be
/// no runtime.
async fn within<T>(limit: Duration, future: BoxFuture<'_, T>) -> Option<T> {
    let (is_over, waker) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicWaker::new()));
    let (keep, dropped) = mpsc::channel::<()>();
    let alarm = (is_over.clone(), waker.clone());
    std::thread::spawn(move || {
        if dropped.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            alarm.0.store(true, Ordering::SeqCst);
            alarm.1.wake();
        }
    });
    let end = poll_fn(|task| {
        waker.register(task.waker());
        if is_over.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
    });
    let outcome = select(future, Box::pin(end)).await;
    drop(keep);
    match outcome {
        Either::Left((value, _)) => Some(value),
        Either::Right(_) => None,
    }
}
