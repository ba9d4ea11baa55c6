//! Each way in which a key service fails, for DEKs that are not cached, cached, and past their age:
//! what callers see, what it costs, and how soon it is over.
//!
//! The minutes that this takes are virtual: a runtime whose time jumps to the next timer, and a
//! clock that follows it. So the figures are the same on every machine.
//! `cargo test --all-features --test calls faults -- --nocapture` prints them.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use waxseal_testing::support;

use support::context;
use waxseal::kek::scripted::ScriptedKek;
use waxseal::kek::{BoxFuture, Health, KekError, KekErrorClass, KekProvider, UnwrappedDek};
use waxseal::{
    Aad, CallBudget, Dek, EncryptionContext, Envelope, Error, ErrorKind, KekId, Limits,
    ManualClock, Runtime, Sealed, WrappedDek,
};

/// The unit of virtual time: nothing here happens between two ticks.
const TICK: Duration = Duration::from_millis(1);
const MAX_AGE: Duration = Duration::from_secs(2);
const GRACE: Duration = Duration::from_secs(30);
/// Within `MAX_AGE`, renewals included.
const SHORT: Duration = Duration::from_millis(1900);
const LONG: Duration = Duration::from_secs(8);
const CLIENTS: usize = 20;
const EVERY: Duration = Duration::from_millis(20);
const DEKS: usize = 10;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fault {
    Down,
    Hang,
    Slow250,
    Slow1000,
    Flapping,
    Class(KekErrorClass),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Every message has a DEK that was never seen.
    Cold,
    /// The fault ends before a DEK reaches its age.
    Warm,
    /// It does not, and there is no grace.
    PastAge,
    /// It does not, and there is one.
    PastAgeWithGrace,
}

/// The envelope waits in the runtime's virtual time. Without a runtime it waits in real time.
#[derive(Debug)]
struct VirtualTime;

impl Runtime for VirtualTime {
    fn spawn(&self, future: BoxFuture<'static, ()>) {
        drop(tokio::spawn(future));
    }

    fn sleep(&self, duration: Duration) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(duration))
    }
}

/// A key service with a fault, and when it last vouched for each DEK.
#[derive(Debug)]
struct Faulty {
    kek: ScriptedKek,
    clock: tokio::time::Instant,
    fault: Mutex<Option<Fault>>,
    vouched: Mutex<HashMap<Vec<u8>, Duration>>,
}

impl Faulty {
    fn now(&self) -> Duration {
        self.clock.elapsed()
    }

    async fn act(&self) -> Result<(), KekError> {
        let fault = *self.fault.lock().unwrap();
        match fault {
            None => tokio::time::sleep(5 * TICK).await,
            Some(Fault::Down) => return Err(KekError::unavailable("connection refused")),
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Slow250) => tokio::time::sleep(250 * TICK).await,
            Some(Fault::Slow1000) => tokio::time::sleep(1000 * TICK).await,
            Some(Fault::Flapping) if self.now().as_millis() % 1000 < 500 => {
                return Err(KekError::unavailable("connection reset"));
            }
            Some(Fault::Flapping) => tokio::time::sleep(5 * TICK).await,
            Some(Fault::Class(class)) => {
                tokio::time::sleep(5 * TICK).await;
                return Err(KekError::new(class, "as told"));
            }
        }
        Ok(())
    }
}

impl KekProvider for Faulty {
    fn id(&self) -> &KekId {
        self.kek.id()
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            self.act().await?;
            self.kek.wrap(context, dek).await
        })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move {
            self.act().await?;
            let dek = self.kek.unwrap(context, wrapped).await?;
            self.vouched.lock().unwrap().insert(wrapped.wrapped().to_vec(), self.now());
            Ok(dek)
        })
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        self.kek.health()
    }
}

#[derive(Default)]
struct Seen {
    succeeded: u32,
    failed: HashMap<ErrorKind, u32>,
    slowest: Duration,
    past_limit: u32,
    /// When the last operation began that failed after the service was back.
    last_failure: Duration,
}

struct Outcome {
    share: f64,
    kinds: Vec<ErrorKind>,
    calls: u64,
    slowest: Duration,
    recovered: Duration,
    past_limit: u32,
}

/// Runs one row of the table.
fn run(fault: Fault, state: State) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async {
        let clock = ManualClock::new();
        let follows = clock.clone();
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(TICK).await;
                follows.advance(TICK);
            }
        });
        let faulty = Arc::new(Faulty {
            kek: ScriptedKek::new("kek").unwrap(),
            clock: tokio::time::Instant::now(),
            fault: Mutex::default(),
            vouched: Mutex::default(),
        });
        let grace = if state == State::PastAgeWithGrace { GRACE } else { Duration::ZERO };
        let limits = Limits::default()
            .max_age(MAX_AGE)
            .stale_if_error_reading(grace)
            .denial_ttl(Duration::from_millis(500))
            .max_entries(1 << 20);
        let envelope = Envelope::builder()
            .wrap_with(faulty.clone())
            .limits(limits)
            .clock(clock.clone())
            .runtime(VirtualTime)
            // In real time, of which next to none goes by.
            .call_budget(CallBudget::new(1_000_000, 65_536).unwrap())
            .build()
            .unwrap();

        let alice = context("alice");
        let local = faulty.kek.local().clone();
        let new_message = move |alice: EncryptionContext| {
            let elsewhere = support::envelope(&local);
            async move { elsewhere.encrypt_compact(&alice, Aad::empty(), b"payload").await.unwrap() }
        };
        let mut known = Vec::new();
        for _ in 0..DEKS {
            let sealed = new_message(alice.clone()).await;
            envelope
                .decrypt(&alice, Aad::empty(), Sealed::compact(sealed.as_bytes(), sealed.wrapped_keys()))
                .await
                .unwrap();
            known.push(sealed);
        }
        *faulty.fault.lock().unwrap() = Some(fault);
        let before = faulty.calls_made(&envelope);
        let begin = faulty.now();
        let length = if state == State::Warm { SHORT } else { LONG };
        let (end, over) = (begin + length, begin + length + Duration::from_secs(5));

        let (during, after) = (Arc::new(Mutex::new(Seen::default())), Arc::new(Mutex::new(Seen::default())));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|n| {
                let (envelope, alice, faulty, known) = (envelope.clone(), alice.clone(), faulty.clone(), known.clone());
                let (during, after, new_message) = (during.clone(), after.clone(), new_message.clone());
                tokio::spawn(async move {
                    for round in 0.. {
                        tokio::time::sleep(EVERY).await;
                        let sealed = match state {
                            State::Cold => new_message(alice.clone()).await,
                            _ => known[(n + round) % DEKS].clone(),
                        };
                        let began = faulty.now();
                        if began >= over {
                            return;
                        }
                        let seen = if began < end { &during } else { &after };
                        let (message, keys) = (sealed.as_bytes(), sealed.wrapped_keys());
                        let answer = envelope
                            .decrypt(&alice, Aad::empty(), Sealed::compact(message, keys))
                            .await
                            .map(|plain| plain.to_vec());
                        seen.lock().unwrap().note(&faulty, keys.entries()[0].wrapped(), began, answer, MAX_AGE + grace);
                    }
                })
            })
            .collect();
        tokio::time::sleep(length).await;
        *faulty.fault.lock().unwrap() = None;
        let calls = faulty.calls_made(&envelope) - before;
        for client in clients {
            client.await.unwrap();
        }
        let (during, after) = (during.lock().unwrap(), after.lock().unwrap());
        let failures: u32 = during.failed.values().sum();
        assert!(during.succeeded + failures > 50, "too little to tell");
        let mut kinds: Vec<_> = during.failed.keys().copied().collect();
        kinds.sort_by_key(|kind| kind.as_str());
        Outcome {
            share: f64::from(during.succeeded) / f64::from(during.succeeded + failures),
            kinds,
            calls,
            slowest: during.slowest,
            recovered: after.last_failure.saturating_sub(end),
            past_limit: during.past_limit + after.past_limit,
        }
    })
}

impl Faulty {
    fn calls_made(&self, envelope: &Envelope) -> u64 {
        envelope.statistics().keks[0].calls
    }
}

impl Seen {
    fn note(
        &mut self,
        faulty: &Faulty,
        wrapped: &[u8],
        began: Duration,
        answer: Result<Vec<u8>, Error>,
        limit: Duration,
    ) {
        let now = faulty.now();
        match answer {
            Ok(payload) => {
                assert_eq!(payload, b"payload");
                self.succeeded += 1;
                let vouched = faulty.vouched.lock().unwrap()[wrapped];
                // The clock follows by up to a tick.
                self.past_limit += u32::from(now - vouched > limit + 2 * TICK);
                // Slower than a second is not recovered either.
                if now - began > Duration::from_secs(1) {
                    self.last_failure = self.last_failure.max(began);
                }
            }
            Err(error) => {
                *self.failed.entry(error.kind()).or_default() += 1;
                self.last_failure = self.last_failure.max(began);
            }
        }
        self.slowest = self.slowest.max(now - began);
    }
}

#[test]
fn faults_are_felt_no_more_than_the_limits_say_and_are_over_within_a_second() {
    use KekErrorClass::{Denied, Invalid, Misconfigured, Throttled};
    let faults = [
        Fault::Down,
        Fault::Hang,
        Fault::Slow250,
        Fault::Slow1000,
        Fault::Flapping,
        Fault::Class(Throttled),
        Fault::Class(Denied),
        Fault::Class(Invalid),
        Fault::Class(Misconfigured),
    ];
    let mut table = String::new();
    writeln!(table, "| fault | DEKs | class seen | succeeded | calls | slowest | recovered after | past the limit |")
        .unwrap();
    writeln!(table, "|---|---|---|---|---|---|---|---|").unwrap();
    let mut wrong = Vec::new();
    // Each has its own time, so they may run side by side.
    let states = [State::Cold, State::Warm, State::PastAge, State::PastAgeWithGrace];
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let run = |fault| scope.spawn(move || states.map(|state| (state, run(fault, state))));
        let running = faults.map(|fault| (fault, run(fault)));
        running.into_iter().map(|(fault, thread)| (fault, thread.join().unwrap())).collect()
    });
    for (fault, outcomes) in outcomes {
        for (state, seen) in outcomes {
            let kinds: Vec<_> = seen.kinds.iter().map(|kind| kind.as_str()).collect();
            let kinds = if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") };
            writeln!(
                table,
                "| {fault:?} | {state:?} | {kinds} | {:.1} % | {} | {} ms | {} ms | {} |",
                100.0 * seen.share,
                seen.calls,
                seen.slowest.as_millis(),
                seen.recovered.as_millis(),
                seen.past_limit
            )
            .unwrap();
            wrong.extend(
                expectations(fault, state, &seen)
                    .into_iter()
                    .map(|what| format!("{fault:?} {state:?}: {what}")),
            );
        }
    }
    println!("{table}");
    assert!(wrong.is_empty(), "{table}\n{}", wrong.join("\n"));
}

/// What is not as it should be.
fn expectations(fault: Fault, state: State, seen: &Outcome) -> Vec<&'static str> {
    use KekErrorClass::{Denied, Invalid, Misconfigured, Throttled};
    let kind = match fault {
        Fault::Down | Fault::Hang | Fault::Flapping => Some(ErrorKind::Unavailable),
        Fault::Slow250 | Fault::Slow1000 => None,
        Fault::Class(Throttled) => Some(ErrorKind::Throttled),
        Fault::Class(Denied) => Some(ErrorKind::Denied),
        Fault::Class(Invalid) => Some(ErrorKind::Invalid),
        Fault::Class(Misconfigured) => Some(ErrorKind::Misconfigured),
        Fault::Class(_) => Some(ErrorKind::Unavailable),
    };
    let outage = !matches!(fault, Fault::Class(Denied | Invalid | Misconfigured));
    let ridden_out = match state {
        State::Cold => kind.is_none(),
        State::Warm => fault != Fault::Class(Denied),
        State::PastAge => kind.is_none(),
        State::PastAgeWithGrace => outage,
    };
    let mut wrong = Vec::new();
    let mut check = |holds: bool, what| wrong.extend((!holds).then_some(what));
    check(seen.past_limit == 0, "served past the limit");
    check(seen.recovered <= Duration::from_secs(1), "recovered too late");
    check(!ridden_out || seen.share == 1.0, "felt, though within the limits");
    let patience = Duration::from_millis(if state == State::PastAgeWithGrace { 260 } else { 0 });
    check(
        !matches!(state, State::Warm | State::PastAgeWithGrace)
            || !outage
            || seen.slowest <= patience,
        "slow",
    );
    check(ridden_out || fault == Fault::Flapping || seen.share < 1.0, "the fault was not there");
    check(seen.kinds.iter().all(|seen| Some(*seen) == kind), "another class");
    // 20 clients asking every 20 ms for 8 s would be 8,000 calls, three times as many with retries.
    let most = match (state, fault) {
        (State::Cold, Fault::Down | Fault::Hang | Fault::Class(Misconfigured)) => 600,
        (State::Cold, _) => 24_000,
        // An answer that says nothing about the next one is asked for each time.
        (State::PastAge | State::PastAgeWithGrace, Fault::Class(Invalid)) => 3_000,
        (_, _) => 600,
    };
    check(seen.calls <= most, "too many calls");
    wrong
}
