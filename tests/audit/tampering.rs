//! Every change of a trail's files is detected, at the right place.

use std::fs;
use std::sync::mpsc;
use std::time::Duration;

use waxseal::audit::{Disclosure, FaultKind, Verifier};

use crate::ground::{Place, a_trail, builder, chained_anew, record};

/// The first fault: its kind, file, line and sequence.
fn fault(place: &Place) -> (FaultKind, String, u64, u64) {
    let fault = place.verify().fault.unwrap();
    (fault.kind, fault.file, fault.line, fault.sequence)
}

fn name(number: u64) -> String {
    format!("trail-{number:08}.jsonl")
}

#[test]
fn a_trail_that_nobody_touched_has_no_fault() {
    let place = a_trail(30);
    assert!(place.files().len() >= 4, "the test needs several files");
    let found = place.verify();
    assert_eq!(found.fault, None);
    assert!(found.is_closed && found.records > 30);
}

#[test]
fn every_changed_byte_is_found_at_its_line() {
    let place = a_trail(4);
    assert_eq!(place.files().len(), 1);
    let bytes = fs::read(place.file(1)).unwrap();
    let mut line = 1;
    for at in 0..bytes.len() {
        for flip in [0x01, 0x80] {
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            fs::write(place.file(1), &changed).unwrap();
            let (kind, _, found_at, sequence) = fault(&place);
            assert_eq!((found_at, sequence + 1), (line, line), "byte {at}: {kind:?}");
        }
        line += u64::from(bytes[at] == b'\n');
    }
}

#[test]
fn every_removed_repeated_or_swapped_line_is_found_and_named() {
    let whole = a_trail(30);
    for number in 1..=3 {
        let lines = whole.lines(number);
        let place = whole.copy();
        let first: u64 = (1..number).map(|before| whole.lines(before).len() as u64).sum();
        for at in 0..lines.len() {
            let (line, sequence) = (at as u64 + 1, first + at as u64);
            let mut changed = lines.clone();
            changed.remove(at);
            place.write(number, &changed);
            let is_last = at + 1 == lines.len();
            // What follows the last line of a file is the first of the next.
            let place_of_next = if is_last { (name(number + 1), 1) } else { (name(number), line) };
            assert_eq!(
                fault(&place),
                (
                    FaultKind::Missing { through: sequence },
                    place_of_next.0,
                    place_of_next.1,
                    sequence
                )
            );

            let mut changed = lines.clone();
            changed.insert(at, lines[at].clone());
            place.write(number, &changed);
            assert_eq!(
                fault(&place),
                (FaultKind::Repeated { sequence }, name(number), line + 1, sequence + 1)
            );

            for other in at + 1..lines.len() {
                let mut changed = lines.clone();
                changed.swap(at, other);
                place.write(number, &changed);
                assert_eq!(fault(&place), (FaultKind::Moved, name(number), line, sequence));
            }
        }
        place.write(number, &lines);
        assert_eq!(place.verify().fault, None, "the copy is whole again");
    }
}

#[test]
fn a_file_that_is_removed_renamed_or_exchanged_is_found() {
    let whole = a_trail(30);
    let files = whole.files().len() as u64;
    for number in 1..=files {
        let place = whole.copy();
        fs::remove_file(place.file(number)).unwrap();
        let found = place.verify();
        if number < files {
            assert_eq!(fault(&place).0, FaultKind::FileMissing { number });
        } else {
            // Only a witness can know that there was more.
            assert!(found.fault.is_none() && !found.is_closed);
        }
    }
    let place = whole.copy();
    fs::rename(place.file(2), place.path.join("2")).unwrap();
    fs::rename(place.file(3), place.file(2)).unwrap();
    fs::rename(place.path.join("2"), place.file(3)).unwrap();
    assert_eq!(fault(&place), (FaultKind::Moved, name(2), 1, whole.lines(1).len() as u64));

    // Without the last line of one and the first of the next, with everything renumbered and
    // chained again, two files are one.
    let place = whole.copy();
    place.write(1, &[whole.lines(1), whole.lines(2)].concat());
    for number in 3..=files {
        fs::rename(place.file(number), place.file(number - 1)).unwrap();
    }
    chained_anew(&place);
    let line = whole.lines(1).len() as u64 + 1;
    assert_eq!(fault(&place), (FaultKind::OtherFile, name(1), line, line - 1));
}

#[test]
fn a_file_of_another_trail_is_found() {
    let (place, other) = (a_trail(30), a_trail(30));
    fs::copy(other.file(2), place.file(2)).unwrap();
    assert_eq!(fault(&place).0, FaultKind::OtherTrail);
}

#[test]
fn a_line_that_was_put_in_is_found() {
    let place = a_trail(4);
    let mut lines = place.lines(1);
    for put_in in ["\n", "{}\n", "null\n", "\0\n", "{\"metadata.sequence\":3}\n"] {
        lines.insert(3, put_in.to_owned());
        place.write(1, &lines);
        assert_eq!(fault(&place), (FaultKind::NoRecord, name(1), 4, 3));
        lines.remove(3);
    }
    // A line without an end is not read to its end.
    fs::write(place.file(1), vec![b'x'; 10 << 20]).unwrap();
    assert_eq!(fault(&place), (FaultKind::NoRecord, name(1), 1, 0));
}

#[test]
fn a_trail_that_is_not_there_is_a_fault_and_a_directory_that_is_not_there_an_error() {
    let place = Place::new();
    assert!(Verifier::new().verify(&place.path).is_err());
    fs::create_dir(&place.path).unwrap();
    assert_eq!(fault(&place).0, FaultKind::FileMissing { number: 1 });
    fs::write(place.file(1), "").unwrap();
    assert!(place.verify().fault.is_some());
}

#[test]
fn old_files_can_be_moved_away_and_the_rest_still_verifies() {
    let place = a_trail(30);
    let first = (place.lines(1).len() + place.lines(2).len()) as u64;
    for number in [1, 2] {
        fs::remove_file(place.file(number)).unwrap();
    }
    assert_eq!(fault(&place).0, FaultKind::FileMissing { number: 1 });
    let found = Verifier::new().first_file(3).verify(&place.path).unwrap();
    assert_eq!((found.fault, found.first_sequence), (None, first));
}

#[test]
fn a_stream_of_lines_verifies_as_the_files_do() {
    let place = a_trail(30);
    let all: Vec<u8> = place.files().iter().flat_map(|file| fs::read(file).unwrap()).collect();
    let mut seen = 0;
    let found = Verifier::new().verify_stream(&all[..], |_| seen += 1).unwrap();
    assert_eq!((found.fault, found.records), (None, seen));
    let found = Verifier::new().verify_stream(&all[..all.len() - 1], |_| {}).unwrap();
    assert_eq!(found.fault.unwrap().kind, FaultKind::Incomplete);
}

/// There is no file 0, so the position that the first one claims is not trusted.
#[test]
fn first_file_0_is_the_first_file() {
    let place = a_trail(30);
    let renamed = Place::new();
    fs::create_dir(&renamed.path).unwrap();
    let line = place.lines(2)[0].replace("\"file\":2", "\"file\":1");
    renamed.write(1, &[line]);
    let head = place.lines(2)[0].split("\"previous\":\"").nth(1).unwrap()[..64].to_owned();
    rehash_first(&renamed, &head);
    let found = Verifier::new().first_file(0).verify(&renamed.path).unwrap();
    assert!(found.fault.is_some(), "{found:?}");
}

fn rehash_first(place: &Place, head: &str) {
    use sha2::{Digest, Sha256};
    let head: Vec<u8> =
        (0..32).map(|i| u8::from_str_radix(&head[2 * i..2 * i + 2], 16).unwrap()).collect();
    let line = place.lines(1)[0].clone();
    let covered = line.rsplit_once(",\"hash\":\"").unwrap().0.to_owned();
    let head = Sha256::digest([&head[..], covered.as_bytes()].concat());
    let hash: String = head.iter().map(|byte| format!("{byte:02x}")).collect();
    place.write(1, &[format!("{covered},\"hash\":\"{hash}\"}}\n")]);
}

/// It reads on after the first fault to find out more.
#[test]
fn a_fault_is_named_even_if_a_later_file_cannot_be_read() {
    let place = a_trail(30);
    let mut lines = place.lines(1);
    lines.remove(3);
    place.write(1, &lines);
    fs::remove_file(place.file(2)).unwrap();
    fs::create_dir(place.file(2)).unwrap();
    let mut lines = place.lines(1);
    lines.truncate(4);
    place.write(1, &lines);
    let found = Verifier::new().verify(&place.path);
    assert!(found.as_ref().is_ok_and(|found| found.fault.is_some()), "{found:?}");
}

/// It would wait for a writer.
#[test]
fn a_pipe_in_the_place_of_a_file_does_not_stop_the_verifier() {
    let place = a_trail(30);
    fs::remove_file(place.file(2)).unwrap();
    let made = std::process::Command::new("mkfifo").arg(place.file(2)).status().unwrap();
    assert!(made.success());
    let (path, (done, ended)) = (place.path.clone(), mpsc::channel());
    std::thread::spawn(move || {
        let _ = done.send(Verifier::new().verify(path).is_ok());
    });
    assert!(ended.recv_timeout(Duration::from_secs(5)).is_ok(), "it waits for a writer");
}

/// Two programs could read two things in it.
#[test]
fn a_line_with_two_values_of_one_name_is_no_record() {
    let place = Place::new();
    let trail = builder(&place).other_context_values(Disclosure::Clear).start().unwrap();
    record(&trail, 0..1);
    assert!(trail.close());
    let lines: Vec<String> = place
        .lines(1)
        .iter()
        .map(|line| line.replace("\"tenant\":\"acme\"", "\"tenant\":\"other\",\"tenant\":\"acme\""))
        .map(|line| line.replacen('{', "{\"hash\":\"0\",", 1))
        // The last record repeats the hash before it.
        .take(2)
        .collect();
    place.write(1, &lines);
    chained_by_last_hash(&place);
    assert!(place.verify().fault.is_some(), "{}", place.lines(1).concat());
}

/// As [`chained_anew`], which looks for the first `hash` in a line.
fn chained_by_last_hash(place: &Place) {
    use sha2::{Digest, Sha256};
    let mut lines = place.lines(1);
    let id = lines[0].split("metadata.uid\":\"").nth(1).unwrap()[..16].to_owned();
    let id: Vec<u8> =
        (0..8).map(|i| u8::from_str_radix(&id[2 * i..2 * i + 2], 16).unwrap()).collect();
    let mut head = Sha256::digest([&b"waxseal.audit.v1 chain\0"[..], &id].concat());
    for line in &mut lines {
        let covered = line.rsplit_once(",\"hash\":\"").unwrap().0.to_owned();
        head = Sha256::digest([&head[..], covered.as_bytes()].concat());
        let hash: String = head.iter().map(|byte| format!("{byte:02x}")).collect();
        *line = format!("{covered},\"hash\":\"{hash}\"}}\n");
    }
    place.write(1, &lines);
}
