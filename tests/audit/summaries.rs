//! Who read or wrote how many messages of which DEK.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use waxseal::audit::Record;
use waxseal::{Aad, Envelope, Limits, ManualClock};
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
