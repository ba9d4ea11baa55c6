//! Many lists of wrapped keys at once: they are rewrapped in as few calls as the key service
//! allows, and each is checked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use waxseal::kek::KekErrorClass::{Denied, Misconfigured, Unavailable};
use waxseal::kek::scripted::{Act, ScriptedKek};
use waxseal::kek::{BoxFuture, CallAdvice, Health, KekError, KekProvider, UnwrappedDek};
use waxseal::{
    Aad, CallPolicy, Dek, EncryptionContext, Envelope, Error, ErrorKind, KekId, ManualClock,
    WrappedDek,
};
use waxseal_testing::support::stage::{Log, entries_of, with_entries};
use waxseal_testing::support::{self, block_on, context};

/// A KEK whose service takes this many DEKs in a call.
fn batching(name: &str, size: usize) -> ScriptedKek {
    let kek = ScriptedKek::new(name).unwrap();
    kek.take_batches_of(size);
    kek
}

/// A message of each tenant, and so of as many DEKs, wrapped by the local KEK below the script.
struct Rows(Vec<(EncryptionContext, Vec<u8>)>);

impl Rows {
    fn by(kek: &ScriptedKek, deks: usize) -> Self {
        let writer = support::envelope(kek.local());
        let row = |n: usize| {
            let context = context(&format!("tenant {n}"));
            let sealed = block_on(writer.encrypt(&context, Aad::empty(), b"row")).unwrap();
            (context, sealed)
        };
        Self((0..deks).map(row).collect())
    }

    fn messages(&self) -> impl Iterator<Item = (&EncryptionContext, &[u8])> {
        self.0.iter().map(|(context, sealed)| (context, &**sealed))
    }

    fn rewrapped_by(&self, envelope: &Envelope) -> Vec<Result<Vec<u8>, Error>> {
        block_on(envelope.rewrap_all(self.messages()))
    }

    /// Each opens by this KEK alone.
    fn assert_open(&self, rewrapped: &[Result<Vec<u8>, Error>], kek: &ScriptedKek) {
        assert_eq!(rewrapped.len(), self.0.len());
        let cold = support::envelope(kek.local());
        for ((context, _), sealed) in self.0.iter().zip(rewrapped) {
            let sealed = sealed.as_ref().unwrap();
            let opened = block_on(cold.decrypt(context, Aad::empty(), sealed)).unwrap();
            assert_eq!(*opened, *b"row");
        }
    }
}

fn by(kek: &ScriptedKek) -> Envelope {
    Envelope::builder().wrap_with(kek.clone()).build().unwrap()
}

fn moving(to: &ScriptedKek, from: &ScriptedKek) -> Envelope {
    Envelope::builder().wrap_with(to.clone()).unwrap_with(from.clone()).build().unwrap()
}

/// Wraps, unwraps and rewraps.
fn calls(kek: &ScriptedKek) -> (u64, u64, u64) {
    let calls = kek.calls();
    (calls.wraps, calls.unwraps, calls.rewraps)
}

fn kinds(results: &[Result<Vec<u8>, Error>]) -> Vec<Option<ErrorKind>> {
    results.iter().map(|result| result.as_ref().err().map(Error::kind)).collect()
}

#[test]
fn three_hundred_deks_are_rewrapped_in_three_calls_and_checked_in_three() {
    let kek = batching("kek", 128);
    let rows = Rows::by(&kek, 300);
    kek.local().rotate().unwrap();
    let envelope = by(&kek);
    let rewrapped = rows.rewrapped_by(&envelope);
    assert_eq!(calls(&kek), (0, 3, 3));
    assert_eq!(envelope.statistics().keks[0].calls, 6);
    kek.local().retire(1).unwrap();
    rows.assert_open(&rewrapped, &kek);
    // What is current is kept, and checked all the same.
    let again = Rows(
        rows.0.iter().zip(&rewrapped).map(|((c, _), r)| (c.clone(), r.clone().unwrap())).collect(),
    );
    let kept = again.rewrapped_by(&envelope);
    assert_eq!(calls(&kek), (0, 6, 3));
    assert!(kept.iter().zip(&again.0).all(|(kept, (_, given))| kept.as_ref().unwrap() == given));
}

#[test]
fn without_batches_each_dek_costs_what_it_did() {
    let kek = ScriptedKek::new("kek").unwrap();
    let rows = Rows::by(&kek, 50);
    kek.local().rotate().unwrap();
    let rewrapped = rows.rewrapped_by(&by(&kek));
    assert_eq!(calls(&kek), (0, 50, 50));
    rows.assert_open(&rewrapped, &kek);
}

#[test]
fn without_a_rewrap_in_the_service_a_rewrap_is_two_calls_and_counts_as_two() {
    for (batch, deks, expected) in
        [(1, 50, (50, 100, 0)), (128, 300, (3, 6, 0)), (128, 1, (1, 2, 0))]
    {
        let kek = batching("kek", batch);
        kek.have_no_rewrap();
        let rows = Rows::by(&kek, deks);
        kek.local().rotate().unwrap();
        let log = Log::default();
        let envelope = Envelope::builder().wrap_with(kek.clone()).observer(log.clone()).build();
        let envelope = envelope.unwrap();
        let rewrapped = rows.rewrapped_by(&envelope);
        // The check of what was made is the second half of the calls to unwrap.
        assert_eq!(calls(&kek), expected, "{deks} in batches of {batch}");
        let made = expected.0 + expected.1;
        assert_eq!(envelope.statistics().keks[0].calls, made);
        assert_eq!(log.count("Called"), usize::try_from(made).unwrap());
        assert_eq!((log.count("Unwrapped"), log.count("Wrapped")), (2 * deks, deks));
        kek.local().retire(1).unwrap();
        rows.assert_open(&rewrapped, &kek);
    }
}

#[test]
fn of_the_two_calls_only_the_one_that_failed_is_made_again() {
    let kek = ScriptedKek::new("kek").unwrap();
    kek.have_no_rewrap();
    let rows = Rows::by(&kek, 1);
    kek.local().rotate().unwrap();
    kek.script([Act::Succeed, Act::Fail(Unavailable)]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let rewrapped = runtime.block_on(async { by(&kek).rewrap_all(rows.messages()).await });
    assert_eq!(calls(&kek), (2, 2, 0));
    rows.assert_open(&rewrapped, &kek);
}

#[test]
fn a_dek_that_is_not_the_message_s_is_not_wrapped_again() {
    // Somebody put the entry of bob's DEK into alice's message.
    let kek = ScriptedKek::new("kek").unwrap();
    kek.have_no_rewrap();
    let rows = Rows::by(&kek, 1);
    let (context, sealed) = &rows.0[0];
    let other = Dek::random().unwrap();
    let entry = block_on(kek.local().wrap(context, &other)).unwrap();
    let forged = with_entries(sealed, vec![entry]);
    let error = block_on(by(&kek).rewrap_unverified(context, &forged)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(kek.calls().wraps, 0);
}

#[test]
fn one_dek_alone_is_no_batch() {
    let kek = batching("kek", 128);
    let rows = Rows::by(&kek, 1);
    kek.local().rotate().unwrap();
    // A batch would be refused: this one takes none.
    kek.take_batches_of(1);
    let rewrapped = rows.rewrapped_by(&by(&kek));
    assert_eq!(calls(&kek), (0, 1, 1));
    rows.assert_open(&rewrapped, &kek);
}

#[test]
fn another_kek_takes_over_in_batches_of_each() {
    for (of_old, of_new, expected) in [
        (128, 128, ((0, 3, 0), (3, 3, 0))),
        (10, 128, ((0, 31, 0), (3, 3, 0))),
        (128, 10, ((0, 3, 0), (31, 31, 0))),
        (1, 128, ((0, 300, 0), (3, 3, 0))),
    ] {
        let (old, new) = (batching("old", of_old), batching("new", of_new));
        let rows = Rows::by(&old, 300);
        let rewrapped = rows.rewrapped_by(&moving(&new, &old));
        rows.assert_open(&rewrapped, &new);
        assert_eq!(entries_of(rewrapped[7].as_ref().unwrap()).len(), 1);
        assert_eq!((calls(&old), calls(&new)), expected, "{of_old}, {of_new}");
    }
}

#[test]
fn a_kek_without_batches_beside_one_that_has_them_is_asked_one_by_one() {
    let (a, b) = (batching("a", 16), ScriptedKek::new("b").unwrap());
    let both = || {
        let builder = Envelope::builder().wrap_with(a.clone()).wrap_with(b.clone());
        builder.build().unwrap()
    };
    let rows = Rows(
        (0..40)
            .map(|n| {
                let context = context(&format!("{n}"));
                let sealed = block_on(both().encrypt(&context, Aad::empty(), b"row")).unwrap();
                (context, sealed)
            })
            .collect(),
    );
    for kek in [&a, &b] {
        kek.local().rotate().unwrap();
    }
    let before = (calls(&a), calls(&b));
    let rewrapped = rows.rewrapped_by(&both());
    let after = (calls(&a), calls(&b));
    assert_eq!((after.0.1 - before.0.1, after.0.2), (3, 3));
    assert_eq!((after.1.1 - before.1.1, after.1.2), (40, 40));
    for kek in [&a, &b] {
        rows.assert_open(&rewrapped, kek);
    }
}

#[test]
fn a_bad_list_fails_alone() {
    let kek = batching("kek", 64);
    let mut rows = Rows::by(&kek, 60);
    let foreign = Rows::by(&ScriptedKek::new("another").unwrap(), 1).0.remove(0);
    kek.local().rotate().unwrap();
    let damaged = |entry: &WrappedDek| {
        let mut bytes = entry.wrapped().to_vec();
        bytes[60] ^= 1;
        WrappedDek::new(entry.kek_id().clone(), bytes).unwrap()
    };
    let entry = entries_of(&rows.0[5].1).remove(0);
    rows.0[5].1 = with_entries(&rows.0[5].1, [damaged(&entry)]);
    // Of another DEK: it unwraps, and the DEK id does not match.
    let other = entries_of(&rows.0[7].1);
    rows.0[6].1 = with_entries(&rows.0[6].1, other);
    rows.0[20].0 = context("somebody else");
    rows.0[30] = foreign;
    rows.0[40].1 = b"plain".to_vec();
    let malformed = rows.0[41].1[..60].to_vec();
    rows.0[41].1 = malformed;
    let results = rows.rewrapped_by(&by(&kek));
    let (invalid, mut expected) = (Some(ErrorKind::Invalid), vec![None; 60]);
    for place in [5, 6, 20] {
        expected[place] = invalid;
    }
    expected[30] = Some(ErrorKind::UnknownKek);
    expected[40] = Some(ErrorKind::NotSealed);
    expected[41] = Some(ErrorKind::Malformed);
    assert_eq!(kinds(&results), expected);
    kek.local().retire(1).unwrap();
    let good: Vec<_> = (0..60).filter(|place| expected[*place].is_none()).collect();
    let (contexts, results): (Vec<_>, Vec<_>) =
        good.iter().map(|at| (rows.0[*at].clone(), results[*at].clone())).unzip();
    Rows(contexts).assert_open(&results, &kek);
}

#[test]
fn a_kek_that_denies_half_of_a_batch_fails_that_half() {
    let kek = batching("kek", 128);
    let rows = Rows::by(&kek, 100);
    kek.local().rotate().unwrap();
    let is_denied = |context: &EncryptionContext| {
        let tenant = context.get("tenant").unwrap();
        tenant.as_bytes().last().unwrap() % 2 == 1
    };
    kek.fail_where(move |context| is_denied(context).then_some(Denied));
    let results = rows.rewrapped_by(&by(&kek));
    for ((context, _), result) in rows.0.iter().zip(&results) {
        let denied = is_denied(context).then_some(ErrorKind::Denied);
        assert_eq!(result.as_ref().err().map(Error::kind), denied);
    }
    // The same where only the check is denied: nothing is kept on the word of the rewrap.
    let asked = Mutex::new(HashMap::new());
    kek.fail_where(move |context| {
        let mut asked = asked.lock().unwrap();
        let times = asked.entry(context.clone()).or_insert(0);
        *times += 1;
        (is_denied(context) && *times > 1).then_some(Denied)
    });
    let checked = rows.rewrapped_by(&by(&kek));
    assert_eq!(kinds(&checked), kinds(&results));
}

#[test]
fn what_a_kek_denies_is_healed_from_another_keks_entries_in_a_batch_too() {
    let (kek, other) = (batching("kek", 128), batching("other", 128));
    let both = || {
        let builder = Envelope::builder().wrap_with(kek.local().clone());
        builder.wrap_with(other.local().clone()).build().unwrap()
    };
    let mut rows = Vec::new();
    for n in 0..100 {
        if n == 50 {
            kek.local().rotate().unwrap();
        }
        let context = context(&format!("tenant {n}"));
        rows.push((
            context.clone(),
            block_on(both().encrypt(&context, Aad::empty(), b"row")).unwrap(),
        ));
    }
    kek.local().rotate().unwrap();
    kek.local().retire(1).unwrap();
    let rows = Rows(rows);
    let rewrapped = rows.rewrapped_by(&moving(&kek, &other));
    rows.assert_open(&rewrapped, &kek);
    // All are rewrapped, one half is checked. The other half is denied, so the KEK is asked for it,
    // and then the other one. What that brings is wrapped and checked.
    assert_eq!((calls(&kek), calls(&other)), ((1, 3, 1), (0, 1, 0)));
}

#[test]
fn an_outage_fails_every_list_with_its_kind_and_drops_nothing() {
    let kek = batching("kek", 10);
    let rows = Rows::by(&kek, 25);
    kek.local().rotate().unwrap();
    for class in [Unavailable, Misconfigured] {
        kek.fail_with(class);
        let results = rows.rewrapped_by(&by(&kek));
        let expected =
            if class == Unavailable { ErrorKind::Unavailable } else { ErrorKind::Misconfigured };
        assert!(kinds(&results).iter().all(|kind| *kind == Some(expected)), "{results:?}");
        assert!(results[0].as_ref().unwrap_err().to_string().contains("local:kek"));
    }
    assert_eq!(calls(&kek), (0, 0, 6), "an outage is no reason to ask for the DEKs");
    kek.fail_with(None);
    // One that comes between rewrap and check.
    kek.script([Act::Succeed, Act::Fail(Unavailable)]);
    let results = rows.rewrapped_by(&by(&kek));
    assert_eq!(results.iter().filter(|result| result.is_err()).count(), 10, "of one batch");
    rows.assert_open(&rows.rewrapped_by(&by(&kek)), &kek);
}

fn policy() -> CallPolicy {
    CallPolicy::default().backoff(Duration::from_millis(1))
}

fn retrying(kek: &ScriptedKek, policy: CallPolicy) -> Envelope {
    Envelope::builder().wrap_with(kek.clone()).call_policy(policy).build().unwrap()
}

#[tokio::test]
async fn a_batch_is_retried_as_a_call_is_and_then_only_for_what_an_outage_kept_back() {
    let kek = batching("kek", 64);
    let rows = Rows::by(&kek, 40);
    kek.local().rotate().unwrap();
    let envelope = retrying(&kek, policy().tries(3));
    // The whole call fails twice.
    kek.script([Act::Fail(Unavailable), Act::Fail(Unavailable)]);
    let rewrapped = envelope.rewrap_all(rows.messages()).await;
    rows.assert_open(&rewrapped, &kek);
    assert_eq!(calls(&kek), (0, 1, 3));
    // Half of the items fail once.
    kek.local().rotate().unwrap();
    let asked = Arc::new(Mutex::new(HashMap::new()));
    let seen = asked.clone();
    kek.fail_where(move |context| {
        let mut seen = seen.lock().unwrap();
        let times = seen.entry(context.clone()).or_insert(0);
        *times += 1;
        let is_odd = context.get("tenant").unwrap().as_bytes().last().unwrap() % 2 == 1;
        (is_odd && *times == 1).then_some(Unavailable)
    });
    let before = calls(&kek);
    let rewrapped = envelope.rewrap_all(rows.messages()).await;
    rows.assert_open(&rewrapped, &kek);
    let after = calls(&kek);
    assert_eq!((after.1 - before.1, after.2 - before.2), (1, 2));
    let times: Vec<_> = asked.lock().unwrap().values().copied().collect();
    // A rewrap and a check each; those that failed again.
    assert_eq!((times.iter().sum::<i32>(), times.len()), (20 * 2 + 20 * 3, 40));
    // And no more often than the policy says.
    kek.local().rotate().unwrap();
    kek.fail_where(|context| {
        let is_odd = context.get("tenant").unwrap().as_bytes().last().unwrap() % 2 == 1;
        is_odd.then_some(Unavailable)
    });
    let before = calls(&kek).2;
    let results = envelope.rewrap_all(rows.messages()).await;
    assert_eq!(calls(&kek).2 - before, 3);
    let failed: Vec<_> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    assert_eq!(failed.len(), 20);
    assert!(failed.iter().all(|error| error.is_retryable()));
    assert!(failed[0].to_string().contains("(3 tries)"), "{}", failed[0]);
}

/// A provider that itself refuses wrapped keys that cannot be its own, as those of real services
/// do. The results of its batches are altered before they are returned.
#[derive(Debug)]
struct Bent {
    kek: ScriptedKek,
    size: usize,
    bend: Bend,
}

type Bend = fn(Vec<Result<WrappedDek, KekError>>) -> Vec<Result<WrappedDek, KekError>>;

impl Bent {
    fn look(wrapped: &WrappedDek) -> Result<(), KekError> {
        match wrapped.wrapped().len() {
            76 => Ok(()),
            _ => Err(KekError::invalid("not mine").without_asking()),
        }
    }
}

impl KekProvider for Bent {
    fn id(&self) -> &KekId {
        self.kek.id()
    }

    fn rewraps_in_service(&self) -> bool {
        true
    }

    fn batch_size(&self) -> usize {
        self.size
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        self.kek.wrap(context, dek)
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        match Self::look(wrapped) {
            Ok(()) => self.kek.unwrap(context, wrapped),
            Err(refusal) => Box::pin(async { Err(refusal) }),
        }
    }

    fn rewrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        self.kek.rewrap(context, wrapped)
    }

    fn rewrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        Box::pin(async move {
            let results = self.kek.rewrap_many(items).await.into_iter().zip(items);
            let looked = results.map(|(result, (_, wrapped))| {
                Self::look(wrapped)?;
                result
            });
            (self.bend)(looked.collect())
        })
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        self.kek.health()
    }
}

fn bent(size: usize, bend: Bend) -> (ScriptedKek, Envelope, Rows) {
    let kek = batching("kek", 128);
    let rows = Rows::by(&kek, 30);
    kek.local().rotate().unwrap();
    let provider = Bent { kek: kek.clone(), size, bend };
    let envelope = Envelope::builder().wrap_with(provider).build().unwrap();
    (kek, envelope, rows)
}

#[test]
fn a_batch_in_another_order_is_found_by_the_commitment_and_nothing_is_lost() {
    let (kek, envelope, rows) = bent(128, |mut results| {
        results.reverse();
        results
    });
    let rewrapped = rows.rewrapped_by(&envelope);
    // They were unwrapped and wrapped instead.
    kek.local().retire(1).unwrap();
    rows.assert_open(&rewrapped, &kek);
    assert!(calls(&kek).0 > 0);
}

#[test]
fn an_entry_that_its_own_kek_would_not_recognise_is_the_provider_s_fault() {
    let (_, envelope, rows) = bent(128, |mut results| {
        let entry = results[3].as_ref().unwrap();
        let id = KekId::new("local:somebody-else").unwrap();
        results[3] = Ok(WrappedDek::new(id, entry.wrapped()).unwrap());
        results
    });
    let results = rows.rewrapped_by(&envelope);
    let mut expected = vec![None; 30];
    expected[3] = Some(ErrorKind::Provider);
    assert_eq!(kinds(&results), expected);
}

#[test]
fn a_batch_with_too_few_or_too_many_results_or_none_is_no_answer() {
    let bends: [Bend; 4] = [
        |mut results| {
            results.pop();
            results
        },
        |mut results| {
            results.push(Err(KekError::denied("one more")));
            results
        },
        |_| Vec::new(),
        |_| panic!("by script"),
    ];
    for bend in bends {
        let (kek, envelope, rows) = bent(128, bend);
        let results = rows.rewrapped_by(&envelope);
        assert!(kinds(&results).iter().all(|kind| *kind == Some(ErrorKind::Unavailable)));
        assert_eq!(calls(&kek), (0, 0, 1));
    }
}

#[test]
fn a_batch_size_of_nothing_or_of_everything_is_taken_as_what_it_can_mean() {
    for size in [0, 1, usize::MAX] {
        let (kek, envelope, rows) = bent(size, |results| results);
        rows.assert_open(&rows.rewrapped_by(&envelope), &kek);
        assert_eq!(calls(&kek).2, if size > 1 { 1 } else { 30 });
    }
}

#[tokio::test]
async fn batches_that_bring_nothing_open_the_breaker_though_forged_items_are_among_them() {
    for class in [Unavailable, Misconfigured] {
        let kek = batching("kek", 64);
        let mut rows = Rows::by(&kek, 40);
        kek.local().rotate().unwrap();
        // The provider itself refuses these, so they show nothing about the service.
        for place in [3, 17] {
            let junk = WrappedDek::new(kek.id().clone(), vec![7; 3]).unwrap();
            rows.0[place].1 = with_entries(&rows.0[place].1, [junk]);
        }
        let provider = Bent { kek: kek.clone(), size: 64, bend: |results| results };
        let (clock, log) = (ManualClock::new(), Log::default());
        let envelope = Envelope::builder()
            .wrap_with(provider)
            .call_policy(policy().tries(1).breaker_failures(5))
            .clock(clock.clone())
            .observer(log.clone())
            .build()
            .unwrap();
        kek.fail_with(class);
        for _ in 0..10 {
            let results = envelope.rewrap_all(rows.messages()).await;
            assert!(results.iter().all(Result::is_err));
            clock.advance(Duration::from_millis(100));
        }
        assert_eq!(log.count("BreakerOpened"), 1, "{class}");
    }
}

/// Counts the calls that wait at the same time. Each waits until all have begun that can.
#[derive(Clone, Default)]
struct InFlight {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

impl InFlight {
    fn count(&self, kek: &ScriptedKek) {
        let counted = self.clone();
        kek.wait_for(move || {
            let InFlight { now, most } = counted.clone();
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let mut polls = 0;
            Box::pin(std::future::poll_fn(move |task| {
                polls += 1;
                if polls > 10 {
                    now.fetch_sub(1, Ordering::SeqCst);
                    return Poll::Ready(());
                }
                task.waker().wake_by_ref();
                Poll::Pending
            }))
        });
    }
}

#[test]
fn a_large_rewrap_makes_no_more_calls_at_the_same_time_than_one_caller_may() {
    for of_a in [1, 10] {
        let (a, b) = (ScriptedKek::new("a").unwrap(), ScriptedKek::new("b").unwrap());
        // No budget holds it back, so what is seen is its own bound.
        for kek in [&a, &b] {
            kek.advise(CallAdvice::default().in_process());
        }
        a.take_batches_of(of_a);
        let rows = Rows::by(&b, 200);
        b.local().rotate().unwrap();
        let in_flight = InFlight::default();
        in_flight.count(&a);
        in_flight.count(&b);
        let both = Envelope::builder().wrap_with(a.clone()).wrap_with(b.clone()).build().unwrap();
        let rewrapped = rows.rewrapped_by(&both);
        rows.assert_open(&rewrapped, &a);
        rows.assert_open(&rewrapped, &b);
        let most = in_flight.most.load(Ordering::SeqCst);
        assert!((33..=64).contains(&most), "{of_a}: {most}");
        assert_eq!(calls(&b), (0, 400, 200), "{of_a}");
    }
}

#[test]
fn whoever_gives_up_in_the_middle_of_a_batch_leaves_nothing_behind() {
    let kek = batching("kek", 64);
    let rows = Rows::by(&kek, 40);
    kek.local().rotate().unwrap();
    let envelope = by(&kek);
    for acts in [vec![Act::Hang], vec![Act::Succeed, Act::Hang]] {
        kek.script(acts);
        let mut rewrap = Box::pin(envelope.rewrap_all(rows.messages()));
        let mut task = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(rewrap.as_mut().poll(&mut task).is_pending());
    }
    assert_eq!(envelope.statistics().reading_deks, 0);
    rows.assert_open(&rows.rewrapped_by(&envelope), &kek);
}

#[test]
fn a_batch_on_its_way_obeys_what_is_revoked_and_repeats_only_what_that_concerns() {
    let tenant = context("tenant 7");
    type End = fn(&Envelope, &EncryptionContext, &KekId);
    let ends: [(End, Option<ErrorKind>, u64); 4] = [
        (|envelope, _, _| envelope.shut_down(), Some(ErrorKind::ShutDown), 1),
        (|envelope, _, kek_id| envelope.revoke_kek(kek_id), Some(ErrorKind::Denied), 1),
        // The rest of the batch counts.
        (|envelope, tenant, _| envelope.evict_context(tenant), None, 2),
        (|envelope, _, _| envelope.evict_all(), None, 2),
    ];
    for (n, (end, expected, rewraps)) in ends.into_iter().enumerate() {
        let kek = batching("kek", 64);
        let rows = Rows::by(&kek, 40);
        kek.local().rotate().unwrap();
        let envelope = by(&kek);
        let (seen, ended) = (Arc::new(AtomicU64::new(0)), envelope.clone());
        let (calls_seen, items) = (Arc::new(AtomicU64::new(0)), seen.clone());
        kek.fail_where(move |_| {
            items.fetch_add(1, Ordering::SeqCst);
            None
        });
        let (tenant, kek_id) = (tenant.clone(), kek.id().clone());
        kek.wait_for(move || {
            if calls_seen.fetch_add(1, Ordering::SeqCst) == 0 {
                end(&ended, &tenant, &kek_id);
            }
            Box::pin(async {})
        });
        let results = rows.rewrapped_by(&envelope);
        assert!(kinds(&results).iter().all(|kind| *kind == expected), "{n}: {results:?}");
        assert_eq!(calls(&kek).2, rewraps, "{n}");
        if expected.is_none() {
            // Rewrapped and checked, and the evicted ones again.
            let again = if n == 2 { 1 } else { 40 };
            assert_eq!(seen.load(Ordering::SeqCst), 2 * 40 + 2 * again, "{n}");
            rows.assert_open(&results, &kek);
        }
    }
}
