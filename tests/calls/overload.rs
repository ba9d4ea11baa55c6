//! More calls than the budget allows: which call is next, and which calls do not wait.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};
use waxseal_testing::support;

use futures_util::StreamExt;
use support::context;
use waxseal::kek::CallAdvice;
use waxseal::kek::scripted::{Act, ScriptedKek};
use waxseal::{Aad, CallBudget, CallPolicy, EncryptionContext, Envelope, ErrorKind, StartOptions};

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn slow(kek: &ScriptedKek, pause: Duration) {
    kek.wait_for(move || Box::pin(tokio::time::sleep(pause)));
}

/// As many messages, each under a DEK that no envelope here has seen.
async fn messages(kek: &ScriptedKek, count: usize) -> Vec<(EncryptionContext, Vec<u8>)> {
    let elsewhere = support::envelope(kek.local());
    let mut sealed = Vec::new();
    for n in 0..count {
        let tenant = context(&n.to_string());
        sealed.push((
            tenant.clone(),
            elsewhere.encrypt(&tenant, Aad::empty(), b"payload").await.unwrap(),
        ));
    }
    sealed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_that_leave_do_not_use_up_the_turns_of_others() {
    // 75 a second for opening, and twice as many that want to. Nothing but the future that is
    // dropped says how long they wait.
    let kek = ScriptedKek::new("kek").unwrap();
    slow(&kek, ms(20));
    let budget = CallBudget::new(100, 64).unwrap();
    let envelope = Envelope::builder().wrap_with(kek.clone()).call_budget(budget).build().unwrap();
    let (mut overload, mut later) = (messages(&kek, 600).await, messages(&kek, 40).await);
    let (served, start) = (Arc::new(AtomicUsize::new(0)), Instant::now());
    let mut callers = Vec::new();
    for (n, (tenant, sealed)) in overload.drain(..).enumerate() {
        tokio::time::sleep_until((start + ms(1000) * u32::try_from(n).unwrap() / 150).into()).await;
        let (envelope, served) = (envelope.clone(), served.clone());
        callers.push(tokio::spawn(async move {
            let answer =
                tokio::time::timeout(ms(200), envelope.decrypt(&tenant, Aad::empty(), &sealed))
                    .await;
            served.fetch_add(usize::from(answer.is_ok_and(|answer| answer.is_ok())), SeqCst);
        }));
    }
    for caller in callers {
        caller.await.unwrap();
    }
    // 300 in four seconds, and what was saved up; all but none before.
    assert!(served.load(SeqCst) >= 210, "{} of 300", served.load(SeqCst));
    // The load has fallen: new calls are served.
    for (tenant, sealed) in later.drain(..) {
        tokio::time::timeout(ms(3000), envelope.decrypt(&tenant, Aad::empty(), &sealed))
            .await
            .expect("waits")
            .unwrap();
    }
    assert!(envelope.statistics().keks[0].budget_waits > 0, "they waited for their turns");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_that_left_is_forgotten_at_once() {
    let kek = ScriptedKek::new("kek").unwrap();
    let envelope = Envelope::builder()
        .wrap_with(kek.clone())
        .call_budget(CallBudget::new(4, 4).unwrap())
        .build()
        .unwrap();
    let mut messages = messages(&kek, 31).await;
    let (tenant, last) = messages.pop().unwrap();
    let burst =
        messages.iter().map(|(tenant, sealed)| envelope.decrypt(tenant, Aad::empty(), sealed));
    let _ = tokio::time::timeout(ms(100), futures_util::future::join_all(burst)).await;
    // With the turns of those that left, it would be ten seconds, twice the deadline.
    envelope.decrypt(&tenant, Aad::empty(), &last).await.unwrap();
}

#[tokio::test]
async fn one_whose_turn_would_come_too_late_is_throttled_at_once() {
    let kek = ScriptedKek::new("kek").unwrap();
    let policy = CallPolicy::default().timeout(ms(2000)).deadline(ms(3000));
    let budget = CallBudget::new(4, 64).unwrap();
    let envelope = Envelope::builder()
        .wrap_with(kek.clone())
        .call_policy(policy)
        .call_budget(budget)
        .build()
        .unwrap();
    let messages = messages(&kek, 60).await;
    let start = Instant::now();
    let mut reads: futures_util::stream::FuturesUnordered<_> = messages
        .iter()
        .map(|(tenant, sealed)| envelope.decrypt(tenant, Aad::empty(), sealed))
        .collect();
    let mut throttled = 0;
    while start.elapsed() < ms(1000)
        && let Ok(Some(answer)) = tokio::time::timeout(ms(1000), reads.next()).await
    {
        throttled += usize::from(answer.is_err_and(|error| error.kind() == ErrorKind::Throttled));
    }
    assert!(throttled >= 45, "{throttled} of 60 were told at once; there is time for ten");
    let refusals = envelope.statistics().keks[0].budget_refusals;
    assert!(refusals >= u64::try_from(throttled).unwrap(), "{refusals} of {throttled}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_not_polled_holds_up_nobody_else() {
    // Rewraps share no call, so each is driven by its own future alone.
    let kek = ScriptedKek::new("kek").unwrap();
    slow(&kek, ms(5));
    let budget = CallBudget::new(10_000, 4).unwrap();
    let envelope = Envelope::builder().wrap_with(kek.clone()).call_budget(budget).build().unwrap();
    let all = messages(&kek, 80).await;
    kek.local().rotate().unwrap();
    let (rows, details) = all.split_at(40);
    let rewrap = |(tenant, sealed): &(EncryptionContext, Vec<u8>)| {
        let (envelope, tenant, sealed) = (envelope.clone(), tenant.clone(), sealed.clone());
        async move { envelope.rewrap(&tenant, &sealed).await }
    };
    let mut stream = std::pin::pin!(futures_util::stream::iter(rows).map(rewrap).buffered(30));
    let mut done = 0;
    while let Some(row) = stream.next().await {
        row.unwrap();
        tokio::time::timeout(ms(3000), rewrap(&details[done])).await.expect("held up").unwrap();
        done += 1;
    }
    assert_eq!(done, 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warm_up_takes_as_long_as_its_number_needs() {
    let kek = ScriptedKek::new("kek").unwrap();
    slow(&kek, ms(40));
    let policy = CallPolicy::default().timeout(ms(400)).deadline(ms(500));
    let contexts: Vec<_> = (0..400).map(|n| context(&n.to_string())).collect();
    let builder = || {
        let budget = CallBudget::new(1000, 8).unwrap();
        Envelope::builder().wrap_with(kek.clone()).call_policy(policy).call_budget(budget)
    };
    // Two seconds of calls, and half a second for each.
    let options = StartOptions::default().warm_up(&contexts);
    tokio::spawn(builder().start(options)).await.unwrap().unwrap();
    assert_eq!(kek.calls().wraps, 400);
    // So it is with what the store behind a key allows.
    let store = ScriptedKek::new("store").unwrap();
    store.advise(CallAdvice::default().budget(CallBudget::new(20, 64).unwrap()));
    let envelope =
        Envelope::builder().wrap_with(store.clone()).call_policy(policy).build().unwrap();
    envelope.warm_up(&contexts[..40]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_the_smallest_budgets_messages_are_opened_and_sealed() {
    for (per_second, in_flight) in [(1, 1), (1000, 1), (1, 1000), (2, 2), (3, 3)] {
        let kek = ScriptedKek::new("kek").unwrap();
        slow(&kek, ms(5));
        let budget = CallBudget::new(per_second, in_flight).unwrap();
        let envelope =
            Envelope::builder().wrap_with(kek.clone()).call_budget(budget).build().unwrap();
        let messages = messages(&kek, 2).await;
        let alice = context("alice");
        let reads =
            messages.iter().map(|(tenant, sealed)| envelope.decrypt(tenant, Aad::empty(), sealed));
        let reads = async { futures_util::future::try_join_all(reads).await.map(|_| ()) };
        let both = async {
            tokio::try_join!(reads, async {
                envelope.encrypt(&alice, Aad::empty(), b"x").await.map(|_| ())
            })
        };
        both.await.unwrap_or_else(|error| {
            panic!("{per_second} a second, {in_flight} in flight: {error}")
        });
    }
}

#[tokio::test]
async fn a_key_service_that_wants_to_be_left_alone_for_ever_is_throttled_and_nothing_overflows() {
    for timeout in [ms(2000), ms(10_000), ms(60_000)] {
        let kek = ScriptedKek::new("kek").unwrap();
        kek.script([Act::AskLater(Duration::MAX), Act::AskLater(Duration::from_secs(u64::MAX))]);
        let policy = CallPolicy::default().timeout(timeout).deadline(ms(60_000));
        let envelope =
            Envelope::builder().wrap_with(kek.clone()).call_policy(policy).build().unwrap();
        for _ in 0..2 {
            let error = envelope.encrypt(&context("alice"), Aad::empty(), b"x").await.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Throttled);
        }
    }
}
