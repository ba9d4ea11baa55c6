//! Sinks other than the file: those that fail, panic, or are the only sink.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use waxseal::audit::{AppendTo, AuditSink, AuditTrail, Record, Verifier};
use waxseal::{Event, KekId, Observer};

use crate::ground::{Kept, LONG, Place, activities, builder, flushed, key, public, record};

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

/// Fails or panics while it is set to.
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

/// The thread that reports wiped DEKs may be late.
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

#[derive(Debug)]
struct Fails;

impl AuditSink for Fails {
    fn write(&mut self, _: &Record, _: &str) -> io::Result<()> {
        Err(io::Error::other("no"))
    }
}

/// Its failures come with records of the trail only.
#[test]
fn a_sink_of_checkpoints_that_fails_is_in_the_trail() {
    let place = Place::new();
    let trail = builder(&place)
        .checkpoint_key(key())
        .checkpoint_every(2, LONG)
        .checkpoints_to(Fails)
        .start()
        .unwrap();
    for n in 0..10 {
        record(&trail, n..n + 1);
        flushed(&trail);
    }
    assert!(trail.close());
    assert!(trail.statistics().sink_failures > 0);
    assert!(activities(&place.records()).contains(&"sink_failed"));
}

/// The first record is one of the trail.
#[test]
fn a_sink_that_fails_from_the_start_is_in_the_trail() {
    let place = Place::new();
    let trail = builder(&place).sink(Fails).start().unwrap();
    record(&trail, 0..10);
    assert!(trail.close());
    assert!(activities(&place.records()).contains(&"sink_failed"));
}

#[derive(Debug)]
struct PanicsWhenShown;

impl std::fmt::Display for PanicsWhenShown {
    fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        panic!("in Display")
    }
}

impl std::error::Error for PanicsWhenShown {}

#[derive(Debug)]
struct FailsBadly(bool);

impl AuditSink for FailsBadly {
    fn write(&mut self, record: &Record, _: &str) -> io::Result<()> {
        if self.0 && record.dek_id.is_some() {
            return Err(io::Error::other(PanicsWhenShown));
        }
        Ok(())
    }
}

impl Drop for FailsBadly {
    fn drop(&mut self) {
        if !self.0 {
            panic!("in Drop");
        }
    }
}

/// The text of an error is foreign code too.
#[test]
fn a_sink_whose_error_panics_does_not_end_the_trail() {
    let place = Place::new();
    let trail = builder(&place).sink(FailsBadly(true)).close_within(LONG).start().unwrap();
    record(&trail, 0..3);
    assert!(trail.close(), "the thread of the trail is dead: {trail:?}");
}

/// So is a destructor.
#[test]
fn a_sink_that_panics_in_its_destructor_does_not_hide_the_end() {
    let place = Place::new();
    let trail = builder(&place).sink(FailsBadly(false)).close_within(LONG).start().unwrap();
    record(&trail, 0..3);
    assert!(trail.close(), "everything is written: {trail:?}");
}

/// Takes nothing until it is set to.
#[derive(Clone, Debug, Default)]
struct Away(Arc<AtomicBool>, Kept);

impl AuditSink for Away {
    fn write(&mut self, record: &Record, line: &str) -> io::Result<()> {
        if !self.0.load(Ordering::SeqCst) {
            return Err(io::Error::other("away"));
        }
        self.1.write(record, line)
    }
}

#[test]
fn the_last_checkpoint_that_a_sink_missed_comes_with_the_next_one() {
    let (place, away) = (Place::new(), Away::default());
    let trail = builder(&place)
        .checkpoint_key(key())
        .checkpoint_every(3, LONG)
        .checkpoints_to(away.clone())
        .start()
        .unwrap();
    record(&trail, 0..9);
    flushed(&trail);
    away.0.store(true, Ordering::SeqCst);
    assert!(trail.close());
    let of_the_trail: Vec<_> =
        place.lines(1).into_iter().filter(|line| line.contains("waxseal.checkpoint")).collect();
    let received = away.1.lines();
    assert!(of_the_trail.len() > received.len() && received.len() > 1, "{received:?}");
    assert!(of_the_trail.ends_with(&received));
    let records = place.records();
    let activities = activities(&records);
    assert!(activities.contains(&"sink_failed") && activities.contains(&"sink_recovered"));
    assert!(place.verify().is_closed);
}
