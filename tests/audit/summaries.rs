//! Who read or wrote how many messages of which DEK.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use waxseal::audit::Record;
use waxseal::policy::{Action, BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::{Aad, Caller, Envelope, Error, Limits, ManualClock};
use waxseal_testing::support::{block_on, local};

use crate::ground::{LONG, Place, builder, context, flushed};

const EVERY: Duration = Duration::from_secs(10);

/// Messages by DEK and operation, over all summaries.
fn totals(records: &[Record]) -> BTreeMap<(String, String), u64> {
    let mut totals = BTreeMap::new();
    for record in records.iter().filter(|record| record.activity == "dek_used") {
        let key = (record.dek_id.clone().unwrap(), record.operation.clone().unwrap().into_owned());
        *totals.entry(key).or_default() += record.count.unwrap();
    }
    totals
}

#[test]
fn every_message_is_counted_once_whatever_way_it_was_used() {
    let place = Place::new();
    let trail = builder(&place).access_summaries(EVERY).start().unwrap();
    let envelope = Envelope::builder().wrap_with(local("kek")).observer(trail.clone()).build();
    let (envelope, aad) = (envelope.unwrap(), Aad::empty());
    let sealed = block_on(envelope.encrypt(&context(), aad, b"text")).unwrap();
    let encryptor = block_on(envelope.encryptor(&context())).unwrap();
    for _ in 0..4 {
        encryptor.encrypt(aad, b"text").unwrap();
    }
    let decryptor = block_on(envelope.decryptor(&context(), &sealed)).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..25 {
                    block_on(envelope.decrypt(&context(), aad, &sealed)).unwrap();
                    decryptor.decrypt(aad, &sealed).unwrap();
                }
            });
        }
    });
    for _ in 0..5 {
        block_on(envelope.decrypt(&context(), Aad::from(b"other"), &sealed)).unwrap_err();
    }
    drop((encryptor, decryptor));
    block_on(envelope.close());
    assert!(trail.close());
    let id = waxseal::inspect(&sealed).unwrap().dek_id.to_string();
    let expected = BTreeMap::from([
        ((id.clone(), "decrypt".to_owned()), 200),
        ((id, "encrypt".to_owned()), 5),
    ]);
    let records = place.records();
    assert_eq!(totals(&records), expected);
    let used = records.iter().position(|record| record.activity == "dek_used").unwrap();
    let wiped = records.iter().position(|record| record.activity == "dek_wiped").unwrap();
    assert!(used < wiped);
    assert!(records[used].context.is_some() && records[used].start_time <= records[used].end_time);
}

#[test]
fn a_summary_comes_in_its_time_and_only_of_what_was_used() {
    let (place, clock) = (Place::new(), ManualClock::new());
    let trail = builder(&place).clock(clock.clone()).access_summaries(EVERY).start().unwrap();
    let envelope = Envelope::builder()
        .wrap_with(local("kek"))
        .clock(clock.clone())
        .limits(Limits::default().max_age(100 * LONG))
        .observer(trail.clone())
        .build()
        .unwrap();
    let sealed = block_on(envelope.encrypt(&context(), Aad::empty(), b"text")).unwrap();
    let summaries = || {
        flushed(&trail);
        let records = place.records();
        records.into_iter().filter(|record| record.activity == "dek_used").collect::<Vec<_>>()
    };
    let wait_for = |count: usize| {
        let began = Instant::now();
        while summaries().len() < count {
            assert!(began.elapsed() < LONG, "{:#?}", summaries());
            std::thread::sleep(Duration::from_millis(20));
        }
    };
    for _ in 0..3 {
        block_on(envelope.decrypt(&context(), Aad::empty(), &sealed)).unwrap();
    }
    // The wiping thread looks once a second.
    std::thread::sleep(Duration::from_millis(1500));
    assert!(summaries().is_empty(), "its time has not come");
    clock.advance(EVERY);
    wait_for(2);
    let counted: Vec<_> = summaries().iter().map(|record| record.count.unwrap()).collect();
    assert_eq!(counted.iter().sum::<u64>(), 4);
    assert_eq!(summaries()[0].start_time.as_deref(), Some("1970-01-01T00:00:00Z"));
    assert_eq!(summaries()[0].end_time.as_deref(), Some("1970-01-01T00:00:10Z"));
    clock.advance(EVERY);
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(summaries().len(), 2, "nothing was used since");
    block_on(envelope.decrypt(&context(), Aad::empty(), &sealed)).unwrap();
    clock.advance(EVERY);
    wait_for(3);
    assert_eq!(summaries()[2].count, Some(1));
}

#[test]
fn without_summaries_nothing_is_counted() {
    let place = Place::new();
    let trail = builder(&place).start().unwrap();
    let envelope = Envelope::builder()
        .wrap_with(local("kek"))
        .limits(Limits::default().max_uses(10))
        .observer(trail.clone())
        .build()
        .unwrap();
    block_on(envelope.encrypt(&context(), Aad::empty(), b"text")).unwrap();
    block_on(envelope.close());
    assert!(trail.close());
    assert!(place.records().iter().all(|record| record.activity != "dek_used"));
}

/// Messages by caller and operation, over all summaries.
fn by_caller(records: &[Record]) -> BTreeMap<(String, String), u64> {
    let mut totals = BTreeMap::new();
    for record in records.iter().filter(|record| record.activity == "dek_used_by") {
        assert!(record.dek_id.is_some() && record.context.is_some());
        assert!(record.caller_request_id.is_none());
        let caller = record.caller_service.clone().unwrap();
        *totals.entry((caller, record.operation.clone().unwrap().into_owned())).or_default() +=
            record.count.unwrap();
    }
    totals
}

fn caller(service: &str) -> Caller {
    let caller = Caller::builder().service(service).role("clerk").source_address([10, 0, 0, 7]);
    caller.build().unwrap().with_request_id("one of many").unwrap()
}

/// Lets everyone encrypt, and nobody but one service decrypt.
#[derive(Debug)]
struct OnlyBilling;

impl Policy for OnlyBilling {
    fn decide<'a>(&'a self, asked: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        let service = asked.caller.and_then(Caller::service);
        let allows = asked.operation == Action::Encrypt || service == Some("billing");
        Box::pin(async move {
            Ok(if allows { Decision::allow() } else { Decision::deny(["not billing"]) })
        })
    }
}

#[test]
fn who_used_a_dek_is_counted_whatever_way_it_was_used() {
    for has_policy in [false, true] {
        let place = Place::new();
        let trail = builder(&place).access_summaries(EVERY).start().unwrap();
        let envelope = Envelope::builder().wrap_with(local("kek")).observer(trail.clone());
        let envelope = match has_policy {
            true => envelope.policy(OnlyBilling, PolicyOptions::default()),
            false => envelope,
        };
        let (envelope, aad, context) = (envelope.build().unwrap(), Aad::empty(), context());
        let (billing, import) = (caller("billing"), caller("import"));
        let (to_read, to_write) = (envelope.acting_for(&billing), envelope.acting_for(&import));
        // Five by calls, and five by handles.
        let sealed = block_on(to_write.encrypt(&context, aad, b"text")).unwrap();
        block_on(to_write.encrypt_compact(&context, aad, b"text")).unwrap();
        for _ in 0..3 {
            block_on(to_write.encrypt_in_place(&context, aad, &mut b"text".to_vec())).unwrap();
        }
        let encryptor = block_on(to_write.encryptor(&context)).unwrap();
        let mut buffer = vec![0; encryptor.prefix_len() + 4 + encryptor.tag_len()];
        encryptor.encrypt_in_place(aad, &mut buffer).unwrap();
        let clone = encryptor.clone();
        for _ in 0..3 {
            clone.encrypt(aad, b"text").unwrap();
        }
        encryptor.compact().encrypt(aad, b"text").unwrap();
        // Four by calls, and two by a handle.
        for _ in 0..2 {
            block_on(to_read.decrypt(&context, aad, &sealed)).unwrap();
        }
        assert!(to_read.decrypt_cached(&context, aad, &sealed).unwrap().is_some());
        block_on(to_read.decrypt_in_place(&context, aad, &mut sealed.clone())).unwrap();
        let decryptor = block_on(to_read.decryptor(&context, &sealed)).unwrap();
        decryptor.decrypt(aad, &sealed).unwrap();
        decryptor.decrypt_in_place(aad, &mut sealed.clone()).unwrap();
        // Refused calls do not count, and calls without a caller count for no caller.
        let other = Aad::from(b"other");
        block_on(to_read.decrypt(&context, other, &sealed)).unwrap_err();
        decryptor.decrypt(other, &sealed).unwrap_err();
        assert_eq!(block_on(to_write.decrypt(&context, aad, &sealed)).is_err(), has_policy);
        block_on(envelope.encrypt(&context, aad, b"text")).unwrap();
        block_on(envelope.close());
        assert!(trail.close());
        let records = place.records();
        let key = |caller: &str, access: &str| (caller.to_owned(), access.to_owned());
        let mut expected =
            BTreeMap::from([(key("billing", "decrypt"), 6), (key("import", "encrypt"), 10)]);
        if !has_policy {
            expected.insert(key("import", "decrypt"), 1);
        }
        assert_eq!(by_caller(&records), expected);
        let of = |access: &str| {
            totals(&records).into_iter().filter(|((_, its), _)| its == access).map(|(_, n)| n).sum()
        };
        let totals: (u64, u64) = (of("encrypt"), of("decrypt"));
        assert_eq!(totals, (11, if has_policy { 6 } else { 7 }));
        let used_by = records.iter().find(|record| record.activity == "dek_used_by").unwrap();
        assert_eq!(used_by.caller_roles, ["clerk"]);
        assert_eq!(used_by.caller_address.as_deref(), Some("10.0.0.7"));
        let wiped = records.iter().position(|record| record.activity == "dek_wiped").unwrap();
        assert!(records.iter().skip(wiped).all(|record| record.activity != "dek_used_by"));
    }
}

#[test]
fn more_callers_than_are_told_apart_are_a_record() {
    let (place, clock) = (Place::new(), ManualClock::new());
    let trail = builder(&place).clock(clock.clone()).access_summaries(EVERY).start().unwrap();
    let envelope = Envelope::builder()
        .wrap_with(local("kek"))
        .clock(clock.clone())
        .limits(Limits::default().max_age(100 * LONG))
        .observer(trail.clone());
    let (envelope, aad) = (envelope.build().unwrap(), Aad::empty());
    let sealed = block_on(envelope.encrypt(&context(), aad, b"text")).unwrap();
    for n in 0..5000 {
        let caller = caller(&format!("service {n}"));
        block_on(envelope.acting_for(&caller).decrypt(&context(), aad, &sealed)).unwrap();
    }
    // Those without a caller are of no DEK, so they come with the summary.
    clock.advance(EVERY);
    let began = Instant::now();
    while trail.statistics().written < 4096 {
        assert!(began.elapsed() < LONG, "{trail:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
    block_on(envelope.close());
    assert!(trail.close());
    let records = place.records();
    let others: Vec<_> =
        records.iter().filter(|record| record.activity == "dek_used_by_others").collect();
    assert_eq!(others.iter().map(|record| record.count.unwrap()).sum::<u64>(), 5000 - 4096);
    assert!(others[0].message.is_some() && others[0].dek_id.is_none());
    assert_eq!(by_caller(&records).values().sum::<u64>(), 4096);
}
