//! Wakers in the queue, and warm-ups with several KEKs.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, unused)]
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};
use support::context;
use waxseal::kek::scripted::{Act, ScriptedKek};
use waxseal::{Aad, CallBudget, CallPolicy, Envelope};
use waxseal_testing::support;

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}
type Fut = Pin<Box<dyn Future<Output = ()> + Send>>;

/// As an executor's: the waker is the last handle to the task.
struct Task(Mutex<Option<Fut>>);
impl Wake for Task {
    fn wake(self: Arc<Self>) {}
}

static ARMED: std::sync::atomic::AtomicBool = std::sync::atomic::AtomicBool::new(false);
struct Bad;
impl Wake for Bad {
    fn wake(self: Arc<Self>) {
        if ARMED.load(std::sync::atomic::Ordering::SeqCst) {
            std::panic::resume_unwind(Box::new("a bad waker"));
        }
    }
}

async fn rewraps(n: usize) -> (Envelope, Vec<Fut>) {
    let (old, new) = (ScriptedKek::new("old").unwrap(), ScriptedKek::new("new").unwrap());
    new.wait_for(|| Box::pin(tokio::time::sleep(ms(300))));
    old.wait_for(|| Box::pin(tokio::time::sleep(ms(300))));
    let sealed =
        support::envelope(old.local()).encrypt(&context("a"), Aad::empty(), b"x").await.unwrap();
    // An envelope each, since what they wait for its end by has its own lock (event-listener).
    let budget = CallBudget::new(1000, 1).unwrap();
    let envelope = || {
        Envelope::builder()
            .wrap_with(new.clone())
            .unwrap_with(old.clone())
            .call_budget(budget.clone())
            .build()
            .unwrap()
    };
    let futures = (0..n)
        .map(|_| {
            let (envelope, sealed) = (envelope(), sealed.clone());
            Box::pin(async move {
                println!("rewrap: {:?}", envelope.rewrap(&context("a"), &sealed).await.map(|_| ()));
            }) as Fut
        })
        .collect();
    let envelope = envelope();
    (envelope, futures)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waker_that_is_the_last_handle_to_a_task_in_line_blocks_nobody() {
    let (done, wait) = std::sync::mpsc::channel();
    let handle = tokio::runtime::Handle::current();
    std::thread::spawn(move || {
        let _inside = handle.enter();
        let (envelope, mut futures) = handle.block_on(rewraps(3));
        let (mut holder, mut moved, mut other) =
            (futures.pop().unwrap(), futures.pop().unwrap(), futures.pop().unwrap());
        let noop = Waker::noop();
        // One has the only place, two wait.
        assert!(holder.as_mut().poll(&mut Context::from_waker(noop)).is_pending());
        assert!(other.as_mut().poll(&mut Context::from_waker(noop)).is_pending());
        let task = Arc::new(Task(Mutex::new(Some(other))));
        let waker = Waker::from(task);
        assert!(moved.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
        drop(waker);
        // It is polled by another task from now on; the first one is gone but for its waker in the
        // queue.
        let _ = moved.as_mut().poll(&mut Context::from_waker(noop));
        done.send(()).unwrap();
    });
    wait.recv_timeout(Duration::from_secs(5)).expect("the budget's lock is held for ever");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_waker_in_the_queue_that_panics_concerns_its_owner_only() {
    let (envelope, mut futures) = rewraps(2).await;
    let (mut holder, mut bad) = (futures.pop().unwrap(), futures.pop().unwrap());
    assert!(holder.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let waker = Waker::from(Arc::new(Bad));
    assert!(bad.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    ARMED.store(true, std::sync::atomic::Ordering::SeqCst);
    // The first one leaves.
    let left = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(holder)));
    ARMED.store(false, std::sync::atomic::Ordering::SeqCst);
    assert!(left.is_ok(), "whoever leaves meets somebody else's panic");
}

async fn warm(keks: usize, busy: bool, per_second: u32) -> Result<(), waxseal::Error> {
    let all: Vec<_> = (0..keks).map(|n| ScriptedKek::new(&n.to_string()).unwrap()).collect();
    for kek in &all {
        kek.wait_for(|| Box::pin(tokio::time::sleep(ms(20))));
    }
    let elsewhere = support::envelope(all[0].local());
    let mut sealed = Vec::new();
    if busy {
        for n in 0..900 {
            let c = context(&format!("r{n}"));
            sealed.push((c.clone(), elsewhere.encrypt(&c, Aad::empty(), b"x").await.unwrap()));
        }
    }
    let mut builder = Envelope::builder()
        .call_budget(CallBudget::new(per_second, 64).unwrap())
        .call_policy(CallPolicy::default().deadline(ms(2000)).timeout(ms(1000)));
    for kek in all {
        builder = builder.wrap_with(kek);
    }
    let envelope = builder.build().unwrap();
    for (n, (c, s)) in sealed.into_iter().enumerate() {
        let envelope = envelope.clone();
        tokio::spawn(async move {
            tokio::time::sleep(ms(40 * n as u64)).await;
            let _ = envelope.decrypt(&c, Aad::empty(), &s).await;
        });
    }
    tokio::time::sleep(ms(600)).await;
    let contexts: Vec<_> = (0..24).map(|n| context(&n.to_string())).collect();
    let start = Instant::now();
    envelope.warm_up(&contexts).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warm_up_succeeds_while_others_use_the_budget() {
    warm(1, true, 20).await.unwrap();
}
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warm_up_under_two_keks_succeeds_while_others_use_the_budget() {
    warm(2, true, 20).await.unwrap();
}
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_warm_up_under_five_keks_keeps_within_a_small_budget() {
    warm(5, false, 20).await.unwrap();
}
