//! A queue that is full, flushes, and the end of a trail.

use std::fs;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use waxseal::Observer;
use waxseal::audit::{AuditSink, AuditTrail, Backpressure, Record};

use crate::ground::{LONG, Place, activities, builder, flushed, record};

/// Blocks until it is let go.
#[derive(Debug)]
struct Gate {
    arrived: Sender<()>,
    go: Receiver<()>,
}

impl AuditSink for Gate {
    fn write(&mut self, record: &Record, _: &str) -> io::Result<()> {
        if record.activity == "dek_unwrapped" {
            let _ = self.arrived.send(());
            let _ = self.go.recv();
        }
        Ok(())
    }
}

/// A trail whose thread is in the sink, with one event of its queue.
fn blocked(place: &Place, pressure: Backpressure) -> (AuditTrail, Sender<()>) {
    let ((arrived, is_there), (let_go, go)) = (channel(), channel());
    let trail = builder(place)
        .capacity(4)
        .backpressure(pressure)
        .sink(Gate { arrived, go })
        .start()
        .unwrap();
    record(&trail, 0..1);
    is_there.recv().unwrap();
    (trail, let_go)
}

#[test]
fn what_does_not_fit_is_dropped_and_counted_and_the_drop_is_a_record() {
    let place = Place::new();
    let (trail, let_go) = blocked(&place, Backpressure::Drop);
    let began = Instant::now();
    record(&trail, 1..21);
    assert!(began.elapsed() < Duration::from_secs(5), "no caller waits");
    let statistics = trail.statistics();
    assert_eq!((statistics.dropped, statistics.waiting), (17, 4));
    drop(let_go);
    assert!(trail.close());
    let records = place.records();
    let dropped = records.iter().find(|record| record.activity == "records_dropped").unwrap();
    assert_eq!(dropped.count, Some(17));
    assert!(dropped.start_time.is_some() && dropped.start_time <= dropped.end_time);
    let ids: Vec<_> = records.iter().filter_map(|record| record.dek_id.as_deref()).collect();
    assert_eq!(ids.iter().map(|id| &id[..2]).collect::<Vec<_>>(), ["00", "01", "02", "03"]);
}

#[test]
fn a_caller_that_is_to_wait_does_and_loses_nothing() {
    let place = Place::new();
    let (trail, let_go) = blocked(&place, Backpressure::Block(LONG));
    // The one that is being written waits too.
    record(&trail, 1..4);
    let caller = {
        let trail = trail.clone();
        std::thread::spawn(move || record(&trail, 4..9))
    };
    std::thread::sleep(Duration::from_millis(50));
    assert!(!caller.is_finished(), "the queue is full");
    drop(let_go);
    caller.join().unwrap();
    assert!(trail.close());
    assert_eq!(trail.statistics().dropped, 0);
    assert_eq!(place.records().iter().filter(|record| record.dek_id.is_some()).count(), 9);
}

#[test]
fn a_caller_waits_no_longer_than_it_is_to() {
    let place = Place::new();
    let (trail, let_go) = blocked(&place, Backpressure::Block(Duration::from_millis(30)));
    record(&trail, 1..4);
    let began = Instant::now();
    record(&trail, 5..6);
    assert!(began.elapsed() >= Duration::from_millis(30));
    assert_eq!(trail.statistics().dropped, 1);
    drop(let_go);
    assert!(trail.close());
}

/// A sink that causes events of its own trail must not wait for itself.
#[derive(Debug, Default)]
struct Echo(std::sync::Arc<std::sync::Mutex<Option<AuditTrail>>>);

impl AuditSink for Echo {
    fn write(&mut self, record_of: &Record, _: &str) -> io::Result<()> {
        let trail = self.0.lock().unwrap().clone();
        if let Some(trail) = trail.filter(|_| record_of.dek_id.is_some()) {
            record(&trail, 0..3);
        }
        Ok(())
    }
}

#[test]
fn a_sink_that_causes_events_does_not_wait_for_itself() {
    let (place, echo) = (Place::new(), Echo::default());
    let slot = echo.0.clone();
    let trail = builder(&place)
        .capacity(2)
        .backpressure(Backpressure::Block(LONG))
        .sink(echo)
        .start()
        .unwrap();
    *slot.lock().unwrap() = Some(trail.clone());
    record(&trail, 0..1);
    let began = Instant::now();
    while trail.statistics().dropped < 10 {
        assert!(began.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(1));
    }
    *slot.lock().unwrap() = None;
    assert!(trail.close());
}

#[test]
fn after_the_end_events_are_dropped_and_counted() {
    let place = Place::new();
    let trail = builder(&place).start().unwrap();
    assert!(trail.close());
    assert!(trail.close(), "again");
    record(&trail, 0..3);
    assert_eq!(trail.statistics().dropped, 3);
    assert_eq!(activities(&place.records()), ["trail_file_opened", "trail_closed"]);
}

#[test]
fn the_end_does_not_wait_longer_than_it_is_to() {
    let place = Place::new();
    let trail = builder(&place).close_within(Duration::from_millis(200)).start().unwrap();
    record(&trail, 0..1);
    flushed(&trail);
    let away = place.path.with_extension("away");
    std::fs::rename(&place.path, &away).unwrap();
    record(&trail, 1..4);
    let began = Instant::now();
    assert!(!trail.close());
    assert!(began.elapsed() < Duration::from_secs(10));
    let statistics = trail.statistics();
    assert!(statistics.dropped == 3 && statistics.write_failures > 0, "{statistics:?}");
}

#[test]
fn events_of_many_threads_are_all_there_in_the_order_of_each_thread() {
    let place = Place::new();
    let trail = builder(&place).start().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8_u8 {
            let trail = &trail;
            scope.spawn(move || {
                for n in 0..25 {
                    record(trail, thread * 25 + n..thread * 25 + n + 1);
                }
            });
        }
    });
    assert!(trail.close());
    let records = place.records();
    for thread in 0..8_u8 {
        let of_thread: Vec<u8> = records
            .iter()
            .filter_map(|record| u8::from_str_radix(&record.dek_id.as_deref()?[..2], 16).ok())
            .filter(|n| n / 25 == thread)
            .collect();
        assert_eq!(of_thread, (thread * 25..thread * 25 + 25).collect::<Vec<_>>());
    }
}

#[test]
fn debug_of_a_trail_shows_its_counts() {
    let place = Place::new();
    let trail = builder(&place).start().unwrap();
    let observer: &dyn Observer = &trail;
    assert!(format!("{observer:?}").contains("dropped: 0"));
}

/// What the thread has taken and cannot write waits too.
#[test]
fn no_more_events_wait_than_the_capacity() {
    let place = Place::new();
    let trail = builder(&place).capacity(4).close_within(Duration::ZERO).start().unwrap();
    let away = place.path.with_extension("away");
    fs::rename(&place.path, &away).unwrap();
    record(&trail, 0..4);
    let began = Instant::now();
    while trail.statistics().failure.is_none() {
        assert!(began.elapsed() < LONG);
        std::thread::sleep(Duration::from_millis(5));
    }
    record(&trail, 4..8);
    let waiting = 8 - trail.statistics().dropped;
    assert!(waiting <= 4, "{waiting} wait, and the statistics say {trail:?}");
}
