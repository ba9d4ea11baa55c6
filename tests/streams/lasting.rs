//! How long a stream lasts, and what ends it.

use std::io::{self, Read, Write};

use super::ground::*;
use waxseal::kek::KekErrorClass;
use waxseal::{Aad, Envelope, ErrorKind, Limits, StreamReader, StreamWriter};
use waxseal_testing::support::stage::{Stage, ms, secs};

const CHUNKS: usize = 100;

/// A stage, a stream that another process wrote, and a message of the same DEK.
fn stage(limits: Limits) -> (Stage, Vec<u8>, Vec<u8>) {
    let stage = Stage::new(limits);
    let elsewhere = envelope(stage.kek.local());
    let sealed = sealed_by(&elsewhere, small(), &plaintext(CHUNKS * CHUNK));
    let message = block_on(elsewhere.encrypt(&stage.alice, Aad::from(AAD), b"text")).unwrap();
    (stage, sealed, message)
}

fn reader<'s>(envelope: &Envelope, sealed: &'s [u8]) -> StreamReader<&'s [u8]> {
    block_on(envelope.decrypt_stream(&context("alice"), Aad::from(AAD), sealed)).unwrap()
}

fn writer(envelope: &Envelope) -> StreamWriter<Vec<u8>> {
    block_on(envelope.stream_encryptor(&context("alice"), Aad::from(AAD), small()))
        .unwrap()
        .writer(Vec::new())
}

/// Reads the next chunk.
fn next(reader: &mut impl Read) -> Result<(), ErrorKind> {
    reader.read_exact(&mut [0; CHUNK]).map_err(|error| kind_of(&error))
}

fn put(writer: &mut impl Write) -> Result<(), ErrorKind> {
    writer.write_all(&[7; CHUNK]).map_err(|error: io::Error| kind_of(&error))
}

#[test]
fn a_stream_outlasts_max_age_and_ends_with_max_stream_age() {
    let (stage, sealed, _) = stage(Limits::default().max_stream_age(secs(1000)));
    let (mut reading, mut writing) = (reader(&stage.envelope, &sealed), writer(&stage.envelope));
    let calls = stage.calls();
    for _ in 0..9 {
        stage.clock.advance(secs(110));
        assert_eq!((next(&mut reading), put(&mut writing)), (Ok(()), Ok(())));
    }
    assert_eq!(stage.calls(), calls, "no key service is asked");
    stage.clock.advance(secs(9));
    assert_eq!((next(&mut reading), put(&mut writing)), (Ok(()), Ok(())));
    stage.clock.advance(secs(2));
    let over = Err(ErrorKind::Expired);
    assert_eq!((next(&mut reading), put(&mut writing)), (over, over));
    assert_eq!(kind_of(&writing.finish().unwrap_err()), ErrorKind::Expired);
}

#[test]
fn by_default_a_stream_lasts_an_hour_and_never_beyond_a_day_in_all() {
    let (stage, sealed, _) = stage(Limits::default());
    let mut reading = reader(&stage.envelope, &sealed);
    stage.clock.advance(secs(3599));
    assert_eq!(next(&mut reading), Ok(()));
    stage.clock.advance(secs(2));
    assert_eq!(next(&mut reading), Err(ErrorKind::Expired));

    let built = |limits| Envelope::builder().wrap_with(local("kek")).limits(limits).build();
    let (day, hour) = (secs(86_400), secs(3600));
    for wrong in [
        Limits::default().max_stream_age(secs(0)),
        Limits::default().max_stream_age(day),
        Limits::default().max_age(day - hour).max_stream_age(hour + ms(1)),
    ] {
        let error = built(wrong).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(error.to_string().contains("max_stream_age"), "{error}");
    }
    let error = built(Limits::default().max_age(day).max_stream_age(ms(1))).unwrap_err();
    assert!(error.to_string().contains("max_stream_age: max_age and stale_if_error"), "{error}");
    for right in [
        Limits::default().max_age(day),
        Limits::default().max_stream_age(day - secs(300)),
        Limits::default().max_age(day - hour).max_stream_age(hour),
        Limits::default().max_stream_age(ms(1)),
    ] {
        built(right).unwrap();
    }
}

#[test]
fn limits_that_leave_a_stream_less_than_its_default_refuse_it_until_its_time_is_set() {
    let kek = local("kek");
    let built = |limits| Envelope::builder().wrap_with(kek.clone()).limits(limits).build().unwrap();
    let sealed = sealed_by(&envelope(&kek), small(), b"text");
    let (day, hour, alice) = (secs(86_400), secs(3600), context("alice"));
    let long = Limits::default().stale_if_error_reading(day - hour - secs(200));
    for (limits, says) in [
        (Limits::default().max_age(day), "leave streams no time in 24 hours"),
        (long, "leave 58m20s, less than its default of 1h"),
        (Limits::default().max_age(day - hour + ms(1)), "leave 59m59s999ms, less than"),
    ] {
        let envelope = built(limits);
        let writing = block_on(envelope.stream_encryptor(&alice, Aad::from(AAD), small()));
        let reading = block_on(envelope.decrypt_stream(&alice, Aad::from(AAD), &sealed[..]));
        for error in [writing.unwrap_err(), reading.unwrap_err()] {
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
            let text = error.to_string();
            assert!(text.contains("max_stream_age") && text.contains(says), "{text}");
        }
        assert_eq!(envelope.statistics().keks[0].calls, 0, "no key service is asked");
        // Messages have no part in it.
        let message = block_on(envelope.encrypt(&alice, Aad::empty(), b"text")).unwrap();
        block_on(envelope.decrypt(&alice, Aad::empty(), &message)).unwrap();
    }
    for limits in [long.max_stream_age(ms(1_000)), Limits::default().max_age(day - hour)] {
        let envelope = built(limits);
        assert_eq!(sealed_by(&envelope, small(), b"text").len(), sealed.len());
        assert_eq!(read_alice(&envelope, &sealed).1, Ok(()));
    }
}

#[test]
fn what_ends_the_dek_ends_its_streams_at_the_next_chunk() {
    type End = fn(&Envelope);
    let ends: [(&str, End); 4] = [
        ("evict_context", |envelope| envelope.evict_context(&context("alice"))),
        ("evict_all", Envelope::evict_all),
        ("revoke_kek", |envelope| {
            envelope.revoke_kek(&waxseal::KekId::new("local:kek").unwrap());
        }),
        ("shut_down", Envelope::shut_down),
    ];
    for (name, end) in ends {
        // At once, and when the DEK's own time is over.
        for later in [secs(0), secs(500)] {
            let (stage, sealed, _) = stage(Limits::default());
            let (mut reading, mut writing) =
                (reader(&stage.envelope, &sealed), writer(&stage.envelope));
            let seekable = block_on(stage.envelope.open_stream(
                &context("alice"),
                Aad::from(AAD),
                &sealed[..],
            ))
            .unwrap();
            stage.clock.advance(later);
            std::thread::sleep(ms(50));
            assert_eq!((next(&mut reading), put(&mut writing)), (Ok(()), Ok(())), "{name}");
            stage.envelope.evict_context(&context("bob"));
            assert_eq!((next(&mut reading), put(&mut writing)), (Ok(()), Ok(())), "{name}");
            end(&stage.envelope);
            let over = Err(ErrorKind::Expired);
            assert_eq!((next(&mut reading), put(&mut writing)), (over, over), "{name} {later:?}");
            assert_eq!(kind_of(&seekable.read_range(0..1).unwrap_err()), ErrorKind::Expired);
        }
    }
}

#[test]
fn a_denial_that_another_caller_gets_ends_streams_for_reading() {
    for later in [secs(85), secs(500)] {
        let (stage, sealed, message) = stage(Limits::default());
        let mut reading = reader(&stage.envelope, &sealed);
        stage.clock.advance(later);
        assert_eq!(next(&mut reading), Ok(()));
        stage.kek.fail_with(KekErrorClass::Denied);
        let read = || block_on(stage.envelope.decrypt(&stage.alice, Aad::from(AAD), &message));
        let _ = read();
        assert_eq!(read().unwrap_err().kind(), ErrorKind::Denied);
        assert_eq!(next(&mut reading), Err(ErrorKind::Expired), "after {later:?}");
    }
}

#[test]
fn a_denial_of_wrapping_ends_streams_for_writing() {
    let (stage, ..) = stage(Limits::default());
    let mut writing = writer(&stage.envelope);
    stage.clock.advance(secs(500));
    assert_eq!(put(&mut writing), Ok(()));
    stage.kek.fail_with(KekErrorClass::Denied);
    assert!(stage.write().is_err());
    assert_eq!(put(&mut writing), Err(ErrorKind::Expired));
}

#[test]
fn an_outage_and_an_eviction_for_room_end_no_stream() {
    let (stage, sealed, _) = stage(Limits::default().max_entries(1));
    let mut reading = reader(&stage.envelope, &sealed);
    stage.read().unwrap();
    stage.log.wait_for("Evicted", 1);
    assert_eq!(next(&mut reading), Ok(()));
    stage.kek.fail_with(KekErrorClass::Unavailable);
    stage.clock.advance(secs(500));
    assert!(stage.read().is_err());
    assert_eq!(next(&mut reading), Ok(()));
}

/// A look through all DEKs for the streams of each would take hours with a million of them.
#[test]
fn ending_many_streams_or_deks_with_streams_costs_in_proportion_to_their_number() {
    let work = |(deks, streams): (usize, usize)| {
        let envelope = envelope(&local("kek"));
        let begin = |tenant: String| {
            let tenant = context(&tenant);
            block_on(envelope.stream_encryptor(&tenant, Aad::empty(), small())).unwrap()
        };
        let each = |dek| (0..streams).map(move |_| format!("tenant {dek}"));
        let open: Vec<_> = (0..deks).flat_map(each).map(begin).collect();
        let info = allocation_counter::measure(|| envelope.evict_all());
        drop(open);
        info.bytes_total
    };
    for (few, many) in [((64, 1), (512, 1)), ((1, 64), (1, 512))] {
        let (of_few, of_many) = (work(few), work(many));
        assert!(of_many < 16 * of_few, "{few:?}: {of_few} bytes, {many:?}: {of_many} bytes");
    }
}

#[test]
fn a_stream_keeps_its_envelope_and_its_key_goes_with_it() {
    let kek = local("kek");
    let sealed = sealed_by(&envelope(&kek), small(), &plaintext(3 * CHUNK));
    let own = envelope(&kek);
    let mut reading = reader(&own, &sealed);
    drop(own);
    assert_eq!(next(&mut reading), Ok(()));
    let mut writing = writer(&envelope(&kek));
    assert_eq!(put(&mut writing), Ok(()));
    let written = writing.finish().unwrap();
    assert_eq!(read_alice(&envelope(&kek), &written).1, Ok(()));
}
