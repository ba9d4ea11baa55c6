//! Sinks besides the file: those that fail, panic, or are all there is.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use waxseal::audit::{AppendTo, AuditSink, AuditTrail, Record, Verifier};
use waxseal::{Event, KekId, Observer};

use crate::ground::{Kept, Place, activities, builder, flushed, key, public, record};

#[test]
fn a_sink_receives_the_lines_of_the_file() {
    let (place, kept) = (Place::new(), Kept::default());
    let trail = builder(&place).sink(kept.clone()).start().unwrap();
    record(&trail, 0..5);
    assert!(trail.close());
    assert_eq!(kept.lines(), place.lines(1));
}

#[test]
fn without_a_directory_the_lines_of_a_sink_are_a_chain_of_their_own() {
    let kept = Kept::default();
    let trail = AuditTrail::builder().sink(kept.clone()).checkpoint_key(key()).start().unwrap();
    record(&trail, 0..5);
    assert!(trail.close());
    let lines = kept.lines().concat();
    let mut records = Vec::new();
    let verifier = Verifier::new().key(public());
    let found =
        verifier.verify_stream(lines.as_bytes(), |record| records.push(record.clone())).unwrap();
    assert_eq!(found.fault, None);
    assert_eq!(records[0].activity, "trail_opened");
    assert!(found.is_closed);
}

#[test]
fn checkpoints_alone_go_to_a_file_of_their_own() {
    let place = Place::new();
    let elsewhere = place.path.with_extension("checkpoints");
    for _ in 0..2 {
        let sink = AppendTo::open(&elsewhere).unwrap();
        let trail = builder(&place).checkpoint_key(key()).checkpoints_to(sink).start().unwrap();
        record(&trail, 0..5);
        assert!(trail.close());
    }
    let copies = std::fs::read_to_string(elsewhere).unwrap();
    let of_the_trail: Vec<_> =
        place.lines(1).into_iter().filter(|line| line.contains("\"checkpoint\"")).collect();
    assert_eq!(of_the_trail.len(), 3);
    assert_eq!(copies, of_the_trail.concat());
    assert!(AppendTo::open(place.path.join("not/there")).is_err());
}

/// Fails or panics while it is told to.
#[derive(Clone, Debug, Default)]
struct Broken {
    fails: Arc<AtomicBool>,
    panics: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
}

impl AuditSink for Broken {
    fn write(&mut self, _: &Record, _: &str) -> io::Result<()> {
        assert!(!self.panics.load(Ordering::SeqCst));
        if self.fails.load(Ordering::SeqCst) {
            return Err(io::Error::other("no space there"));
        }
        self.received.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }
}

#[test]
fn a_sink_that_fails_or_panics_stops_nothing_and_a_record_says_so() {
    for panics in [false, true] {
        let (place, broken) = (Place::new(), Broken::default());
        let trail = builder(&place).sink(broken.clone()).start().unwrap();
        let how = if panics { &broken.panics } else { &broken.fails };
        how.store(true, Ordering::SeqCst);
        for n in 0..5 {
            record(&trail, n..n + 1);
            flushed(&trail);
        }
        assert!(trail.statistics().sink_failures >= 5);
        how.store(false, Ordering::SeqCst);
        record(&trail, 5..7);
        assert!(trail.close());
        let records = place.records();
        let notes: Vec<_> = records
            .iter()
            .filter(|record| record.activity.starts_with("sink_"))
            .map(|record| (&*record.activity, record.message.as_deref().unwrap_or("")))
            .collect();
        let why = if panics { "it panicked" } else { "no space there" };
        assert_eq!(notes, [("sink_failed", why), ("sink_recovered", "")]);
        assert_eq!(records.iter().filter(|record| record.dek_id.is_some()).count(), 7);
        assert!(broken.received.load(Ordering::SeqCst) > 0);
    }
}

/// Fails every second time.
#[derive(Debug, Default)]
struct Flapping(u64);

impl AuditSink for Flapping {
    fn write(&mut self, _: &Record, _: &str) -> io::Result<()> {
        self.0 += 1;
        if self.0.is_multiple_of(2) { Ok(()) } else { Err(io::Error::other("now and then")) }
    }
}

#[test]
fn a_sink_that_fails_now_and_then_does_not_fill_the_trail_with_notes() {
    let place = Place::new();
    let trail = builder(&place).sink(Flapping::default()).start().unwrap();
    for n in 0..20 {
        record(&trail, n..n + 1);
    }
    assert!(trail.close());
    let records = place.records();
    let notes = activities(&records).iter().filter(|name| name.starts_with("sink_")).count();
    assert!(notes <= 21, "{notes}");
}

/// At the first event it waits until it is let go, and at the second it causes a third.
#[derive(Clone, Debug, Default)]
struct Talkative {
    trail: Arc<OnceLock<AuditTrail>>,
    has_begun: Arc<AtomicBool>,
    may_go: Arc<AtomicBool>,
}

fn wait_until(flag: &AtomicBool) {
    while !flag.load(Ordering::SeqCst) {
        std::thread::sleep(Duration::from_millis(1));
    }
}

impl AuditSink for Talkative {
    fn write(&mut self, record: &Record, _: &str) -> io::Result<()> {
        match &*record.activity {
            "kek_revoked" => {
                self.has_begun.store(true, Ordering::SeqCst);
                wait_until(&self.may_go);
            }
            "shut_down" => {
                let kek_id = &KekId::new("local:kek").unwrap();
                self.trail.get().unwrap().event(&Event::Reinstated { kek_id });
            }
            _ => {}
        }
        Ok(())
    }
}

/// The thread that tells of wiped DEKs may come late.
#[test]
fn an_event_that_comes_while_the_trail_closes_is_written() {
    let (place, sink) = (Place::new(), Talkative::default());
    let trail = builder(&place).sink(sink.clone()).start().unwrap();
    sink.trail.set(trail.clone()).unwrap();
    let kek_id = &KekId::new("local:kek").unwrap();
    trail.event(&Event::Revoked { kek_id });
    wait_until(&sink.has_begun);
    trail.event(&Event::ShutDown);
    std::thread::scope(|scope| {
        let closing = scope.spawn(|| trail.close());
        // So that the second event is in the last batch.
        std::thread::sleep(Duration::from_millis(200));
        sink.may_go.store(true, Ordering::SeqCst);
        assert!(closing.join().unwrap());
    });
    let lines = place.lines(1).concat();
    assert!(lines.contains("kek_reinstated"), "{lines}");
    assert_eq!(place.verify().fault, None);
}
