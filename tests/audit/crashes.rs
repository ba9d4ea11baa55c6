//! Killed at any byte, a trail verifies to its last whole record and continues after it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use waxseal::audit::{AuditTrail, FaultKind, SyncPolicy, TrailDirectory};

use crate::ground::{Place, activities, builder, child, context, flushed, record, unwrapped};
use waxseal::{DekId, KekId, Observer};

#[test]
fn killed_at_every_byte_of_a_record_the_trail_verifies_to_the_last_whole_one_and_goes_on() {
    let whole = Place::new();
    let trail = builder(&whole).start().unwrap();
    record(&trail, 0..3);
    flushed(&trail);
    // As it is while the process runs: without an end.
    let bytes = fs::read(whole.file(1)).unwrap();
    drop(trail);
    let lines: Vec<&[u8]> = bytes.split_inclusive(|byte| *byte == b'\n').collect();
    let mut begun = 0;
    for (n, line) in lines.iter().enumerate() {
        for cut in begun..begun + line.len() {
            let place = Place::new();
            fs::create_dir(&place.path).unwrap();
            fs::write(place.file(1), &bytes[..cut]).unwrap();
            let found = place.verify();
            assert_eq!(found.records, n as u64, "cut at {cut}");
            let kind = found.fault.map(|fault| fault.kind);
            let expected = match (n, cut - begun) {
                (0, 0) => Some(FaultKind::FileMissing { number: 1 }),
                (_, 0) => None,
                _ => Some(FaultKind::Incomplete),
            };
            assert_eq!(kind, expected, "cut at {cut}");

            let directory = TrailDirectory::new(&place.path).sync(SyncPolicy::Never);
            let trail = AuditTrail::builder().directory(directory).start().unwrap();
            record(&trail, 3..4);
            assert!(trail.close());
            let records = place.records();
            let moved = records.iter().find(|record| record.activity == "incomplete_line_moved");
            assert_eq!(moved.is_some(), cut > begun, "cut at {cut}");
            if let Some(moved) = moved {
                let message = moved.message.as_ref().unwrap();
                assert!(message.starts_with(&format!("{} bytes", cut - begun)), "{message}");
                let kept = place.path.join(format!("trail-00000001.partial-{begun}"));
                assert_eq!(fs::read(kept).unwrap(), &bytes[begun..cut]);
            }
            let begins = if n == 0 { "trail_file_opened" } else { "trail_resumed" };
            assert_eq!(records[n].activity, begins);
            assert_eq!(records.last().unwrap().activity, "trail_closed");
        }
        begun += line.len();
    }
}

/// A power failure can leave zeros where a file was longer than what reached the disk.
#[test]
fn zeros_at_the_end_are_an_incomplete_line() {
    for zeros in [1, 8192, 200_000] {
        let place = Place::new();
        let trail = builder(&place).start().unwrap();
        record(&trail, 0..3);
        flushed(&trail);
        drop(trail);
        let mut bytes = fs::read(place.file(1)).unwrap();
        bytes.resize(bytes.len() + zeros, 0);
        fs::write(place.file(1), bytes).unwrap();
        assert!(place.verify().fault.is_some());
        drop(builder(&place).start().unwrap());
        assert!(activities(&place.records()).contains(&"incomplete_line_moved"));
    }
}

#[test]
fn killed_while_a_new_file_was_begun_the_trail_goes_on_in_it() {
    let place = Place::new();
    let start = || {
        let directory = TrailDirectory::new(&place.path).max_bytes(4096);
        AuditTrail::builder().directory(directory).start().unwrap()
    };
    let trail = start();
    record(&trail, 0..9);
    drop(trail);
    let next = place.files().len() as u64 + 1;
    fs::write(place.file(next), "").unwrap();
    drop(start());
    assert!(place.records().len() > 9);
    fs::write(place.file(next + 1), "{\"metadata.sequ").unwrap();
    drop(start());
    assert!(activities(&place.records()).contains(&"incomplete_line_moved"));
}

/// It may be evidence.
#[test]
fn a_last_line_that_is_whole_and_no_record_is_not_touched() {
    let place = Place::new();
    drop(builder(&place).start().unwrap());
    let mut bytes = fs::read(place.file(1)).unwrap();
    bytes.extend_from_slice(b"something else\n");
    fs::write(place.file(1), &bytes).unwrap();
    let error = builder(&place).start().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("trail-00000001.jsonl, line 3, sequence 2: the line is not a record"),
        "{error}"
    );
    assert_eq!(fs::read(place.file(1)).unwrap(), bytes);
}

#[test]
fn a_trail_that_was_closed_goes_on_with_the_next_start() {
    let place = Place::new();
    for _ in 0..3 {
        let trail = builder(&place).start().unwrap();
        record(&trail, 0..1);
        assert!(trail.close());
    }
    let closed = ["dek_unwrapped", "trail_closed"];
    let expected = [
        &["trail_file_opened"][..],
        &closed,
        &["trail_resumed"],
        &closed,
        &["trail_resumed"],
        &closed,
    ]
    .concat();
    assert_eq!(activities(&place.records()), expected);
}

/// What a drop loses is gone, and the next start says so.
#[test]
fn the_next_start_says_that_the_trail_had_no_end() {
    let place = Place::new();
    let trail = builder(&place).close_within(Duration::from_millis(100)).start().unwrap();
    record(&trail, 0..1);
    flushed(&trail);
    let away = place.path.with_extension("away");
    fs::rename(&place.path, &away).unwrap();
    record(&trail, 1..4);
    drop(trail);
    std::thread::sleep(Duration::from_millis(500));
    fs::rename(&away, &place.path).unwrap();
    drop(builder(&place).start().unwrap());
    let records = place.records();
    assert!(
        records.iter().any(|record| record.error_type.is_some()),
        "three events are lost: {:?}",
        activities(&records)
    );
}

const KILLED: &str = "WAXSEAL_TEST_AUDIT_KILLED";

/// Run by [`a_process_killed_in_mid_write_leaves_a_trail_that_goes_on`] only.
#[test]
fn the_process_that_is_killed() {
    let Some(path) = std::env::var_os(KILLED) else { return };
    let directory = TrailDirectory::new(Path::new(&path)).max_bytes(16 << 10);
    let trail = AuditTrail::builder().directory(directory).start().unwrap();
    println!("started");
    let (context, kek_id) = (context(), KekId::new("local:test").unwrap());
    for n in 0_u64.. {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&n.to_le_bytes());
        let dek_id = DekId::from_bytes(id);
        trail.event(&unwrapped(&dek_id, &context, &kek_id));
    }
}

#[test]
fn a_process_killed_in_mid_write_leaves_a_trail_that_goes_on() {
    use std::io::{BufRead, BufReader};
    let place = Place::new();
    let mut begun = 0;
    for round in 0..8 {
        let mut process = child("crashes::the_process_that_is_killed", KILLED, &place.path)
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().contains("started")));
        let lines =
            || place.files().iter().map(|file| fs::metadata(file).unwrap().len()).sum::<u64>();
        let (before, began) = (lines(), std::time::Instant::now());
        while lines() < before + 10_000 {
            assert!(began.elapsed() < crate::ground::LONG, "nothing is written");
        }
        std::thread::sleep(Duration::from_millis(round));
        process.kill().unwrap();
        process.wait().unwrap();
        let found = place.verify();
        let kind = found.fault.map(|fault| fault.kind);
        assert!(matches!(kind, None | Some(FaultKind::Incomplete)), "{kind:?}");
        assert!(found.records > begun + 10, "nothing was written");
        begun = found.records;
    }
    drop(builder(&place).start().unwrap());
    let records = place.records();
    assert!(records.len() as u64 > begun);
    assert!(
        activities(&records).iter().filter(|activity| **activity == "trail_resumed").count() >= 8
    );
}

/// Both may be evidence.
#[test]
fn a_second_crash_at_the_same_byte_keeps_what_the_first_left() {
    let place = Place::new();
    drop(builder(&place).start().unwrap());
    let whole = fs::read(place.file(1)).unwrap();
    for torn in ["{\"first\":", "{\"second\":"] {
        fs::write(place.file(1), [&whole, torn.as_bytes()].concat()).unwrap();
        drop(builder(&place).start().unwrap());
    }
    let kept: Vec<String> = fs::read_dir(&place.path)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().contains("partial"))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();
    assert!(kept.iter().any(|text| text.contains("first")), "{kept:?}");
}

/// It may lead out of the directory.
#[test]
fn a_start_does_not_cut_a_file_behind_a_link() {
    let place = Place::new();
    fs::create_dir(&place.path).unwrap();
    let theirs = place.path.with_extension("theirs");
    fs::write(&theirs, "without an end").unwrap();
    std::os::unix::fs::symlink(&theirs, place.file(1)).unwrap();
    let _ = builder(&place).start();
    assert_eq!(fs::read_to_string(&theirs).unwrap(), "without an end");
}
