//! What the keys of checkpoints and copies elsewhere find, that the chain alone cannot.

use std::fs;
use std::time::Duration;

use waxseal::audit::{
    AuditKey, AuditTrail, AuditTrailBuilder, Checkpoint, CheckpointKey, CheckpointVerifier,
    FaultKind, SyncPolicy, TrailDirectory, Verifier,
};
use waxseal::{ErrorKind, ManualClock};

use crate::ground::{
    Kept, LONG, Place, a_trail, activities, builder, chained_anew, flushed, key, public, record,
};

fn with_key() -> Verifier {
    Verifier::new().key(public())
}

/// Removes the checkpoints from the record `from` on, then renumbers and chains the rest, without
/// any key.
fn without_checkpoints(place: &Place, from: u64, edit: impl Fn(&str) -> String) {
    let (mut sequence, mut read) = (0, 0);
    for number in 1..=place.files().len() as u64 {
        let mut kept = Vec::new();
        for line in place.lines(number) {
            read += 1;
            if read > from && line.contains("\"checkpoint\"") {
                continue;
            }
            let uid = line.split("\"metadata.uid\":\"").nth(1).unwrap().split('-').next().unwrap();
            let rest = edit(line.split_once("\"time_dt\"").unwrap().1);
            kept.push(format!(
                "{{\"metadata.sequence\":{sequence},\"metadata.uid\":\"{uid}-{sequence}\",\"time_dt\"{rest}"
            ));
            sequence += 1;
        }
        place.write(number, &kept);
    }
    chained_anew(place);
}

/// What a start refuses, it does not touch.
fn refused(place: &Place, builder: AuditTrailBuilder, why: &str) {
    let before: Vec<_> = place.files().iter().map(|file| fs::read(file).unwrap()).collect();
    let error = builder.start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    assert!(error.to_string().contains(why), "{error}");
    assert!(error.to_string().contains("begin a new trail in another one"), "{error}");
    let after: Vec<_> = place.files().iter().map(|file| fs::read(file).unwrap()).collect();
    assert!(before == after);
}

/// The next checkpoint would authenticate it.
#[test]
fn a_forged_trail_is_not_signed_by_the_next_start() {
    let place = a_trail(30);
    without_checkpoints(&place, 0, |line| line.replace("dek_unwrapped", "dek_evicted"));
    assert_eq!(place.verify().fault, None, "the chain alone shows nothing");
    let why = "nothing is authenticated by a checkpoint";
    refused(&place, builder(&place).checkpoint_key(key()), why);
    // The one who finds it names it too.
    assert!(with_key().verify(&place.path).unwrap().fault.is_some());
}

/// The start checks every place after the last checkpoints.
#[test]
fn a_changed_end_is_refused_by_the_next_start_naming_file_and_line() {
    let place = a_trail(30);
    let last = place.files().len() as u64;
    for (line, old, new) in
        [(0, "\"time_dt\":\"2", "\"time_dt\":\"1"), (2, "\"time_dt\":\"2", "\"time_dt\":\"1")]
    {
        let copy = place.copy();
        let mut lines = copy.lines(last);
        lines[line] = lines[line].replacen(old, new, 1);
        copy.write(last, &lines);
        let why = format!("trail-{last:08}.jsonl, line {}, ", line + 1);
        for start in [builder(&copy), builder(&copy).checkpoint_key(key())] {
            refused(&copy, start, &why);
        }
    }
}

/// One checkpoint is removed, and the chain computed again up to the next, which is signed over
/// another one.
#[test]
fn a_checkpoint_that_was_taken_out_is_found() {
    let place = Place::new();
    let start = || builder(&place).checkpoint_key(key()).checkpoint_every(4, LONG).start().unwrap();
    let trail = start();
    for n in 0..12 {
        record(&trail, n..n + 1);
        flushed(&trail);
    }
    drop(trail);
    // A writer with the key, which starts again after a checkpoint and does not know the others.
    let copy = place.copy();
    let lines = copy.lines(1);
    let is_checkpoint = |line: &&String| line.contains("waxseal.checkpoint");
    assert!(lines.iter().filter(is_checkpoint).count() > 3);
    let links: Vec<u64> = lines
        .iter()
        .filter(is_checkpoint)
        .map(|line| {
            line.split("\"previous_sequence\":")
                .nth(1)
                .unwrap()
                .split(',')
                .next()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect();
    let places: Vec<u64> =
        lines.iter().zip(0..).filter(|(line, _)| is_checkpoint(line)).map(|(_, at)| at).collect();
    assert_eq!(links[0], 0);
    assert_eq!(links[1..], places[..places.len() - 1]);
    // The link is signed, so changing it changes the checkpoint.
    let mut lines = lines;
    let at = usize::try_from(places[1]).unwrap();
    lines[at] = lines[at].replace("\"previous_sequence\":1", "\"previous_sequence\":0");
    copy.write(1, &lines);
    chained_anew(&copy);
    let fault = with_key().verify(&copy.path).unwrap().fault.unwrap();
    assert_eq!(fault.kind, FaultKind::CheckpointMissing { sequence: 0 });
}

/// Its links lead from run to run, from file to file, and past files that were moved away.
#[test]
fn a_trail_that_goes_on_links_its_checkpoints() {
    let place = Place::new();
    for _ in 0..4 {
        let directory = TrailDirectory::new(&place.path).max_bytes(4096);
        let trail = AuditTrail::builder()
            .directory(directory)
            .checkpoint_key(key())
            .checkpoint_every(3, LONG)
            .start()
            .unwrap();
        record(&trail, 0..5);
        assert!(trail.close());
    }
    let files = place.files().len() as u64;
    assert!(files > 3);
    assert_eq!(with_key().verify(&place.path).unwrap().fault, None);
    for first in 2..=files {
        let found = with_key().first_file(first).verify(&place.path).unwrap();
        assert_eq!(found.fault, None);
        fs::remove_file(place.file(first - 1)).unwrap();
    }
    let trail = builder(&place).checkpoint_key(key()).start().unwrap();
    assert!(trail.close());
    assert_eq!(with_key().first_file(files).verify(&place.path).unwrap().fault, None);
}

/// Killed anywhere, the trail continues if it is complete and a key vouches for its beginning.
/// Before the first checkpoint no key does, so nothing is signed after it.
#[test]
fn killed_anywhere_a_trail_with_a_key_goes_on() {
    let whole = Place::new();
    let trail = builder(&whole).checkpoint_key(key()).checkpoint_every(4, LONG).start().unwrap();
    record(&trail, 0..3);
    flushed(&trail);
    let bytes = fs::read(whole.file(1)).unwrap();
    drop(trail);
    let begun = bytes.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    let signed = bytes.iter().skip(begun).position(|byte| *byte == b'\n').unwrap() + 1 + begun;
    let id = whole.verify().trail;
    let ends = [0, begun, signed, bytes.len()];
    let is_tried =
        |cut: &usize| cut.is_multiple_of(17) || ends.iter().any(|end| end.abs_diff(*cut) < 3);
    for cut in (0..=bytes.len()).filter(is_tried) {
        let place = Place::new();
        fs::create_dir(&place.path).unwrap();
        fs::write(place.file(1), &bytes[..cut]).unwrap();
        let directory = TrailDirectory::new(&place.path).sync(SyncPolicy::Never);
        let trail =
            AuditTrail::builder().directory(directory).checkpoint_key(key()).start().unwrap();
        assert!(trail.close(), "cut at {cut}");
        let found = with_key().verify(&place.path).unwrap();
        assert_eq!(found.fault, None, "cut at {cut}");
        assert!(found.is_closed);
        assert_eq!(found.trail == id, cut >= signed, "cut at {cut}");
        let aside = fs::read(place.path.join("trail-00000001.unsigned-1"));
        let is_begun = (begun..signed).contains(&cut);
        assert_eq!(aside.ok(), is_begun.then(|| bytes[..begun].to_vec()), "cut at {cut}");
    }
}

/// An attacker who can write to the directory cuts a trail back to its first record, or replaces
/// it. What the key signs from then on is another trail, so no copy of a checkpoint matches it.
#[test]
fn a_trail_that_was_cut_back_to_its_first_record_is_kept_and_no_key_goes_on_behind_it() {
    let (place, kept) = (Place::new(), Kept::default());
    let start = || builder(&place).checkpoint_key(key()).checkpoints_to(kept.clone());
    let trail = start().start().unwrap();
    record(&trail, 0..5);
    assert!(trail.close());
    let (id, first) = (place.verify().trail.unwrap(), place.lines(1)[..1].to_vec());
    for round in 1..=2 {
        place.write(1, &first);
        assert!(start().start().unwrap().close());
        let aside = place.path.join(format!("trail-00000001.unsigned-{round}"));
        assert_eq!(fs::read_to_string(aside).unwrap(), first.concat());
        let found = with_key().verify(&place.path).unwrap();
        assert_eq!((found.fault, found.trail == Some(id.clone())), (None, false));
        let records = place.records();
        let note = records.iter().find(|record| record.activity == "unsigned_file_moved").unwrap();
        let message = note.message.as_deref().unwrap();
        assert!(message.contains(&format!("trail-00000001.unsigned-{round}")), "{message}");
    }
    let copies: Vec<_> = kept.lines().iter().map(|line| Checkpoint::read(line).unwrap()).collect();
    let fault = witnessed(&copies).verify(&place.path).unwrap().fault.unwrap();
    assert_eq!(fault.kind, FaultKind::OtherTrail);
}

/// The checkpoint directly follows the first record, whatever else the start has to report.
#[test]
fn a_start_after_a_torn_first_record_is_signed_before_it_says_so() {
    let place = Place::new();
    fs::create_dir(&place.path).unwrap();
    fs::write(place.file(1), "{\"metadata.sequ").unwrap();
    assert!(builder(&place).checkpoint_key(key()).start().unwrap().close());
    let records = place.records();
    let expected =
        ["trail_file_opened", "checkpoint", "incomplete_line_moved", "trail_closed", "checkpoint"];
    assert_eq!(activities(&records), expected);
}

/// A new trail in file 2 would not verify from file 1 on.
#[test]
fn an_only_begun_file_among_others_is_refused() {
    let place = a_trail(4);
    place.write(1, &place.lines(1)[..1]);
    fs::write(place.file(2), "").unwrap();
    refused(&place, builder(&place).checkpoint_key(key()), "nothing is authenticated");
}

/// What was written without a key is not signed later.
#[test]
fn a_trail_without_checkpoints_does_not_go_on_with_a_key() {
    let place = Place::new();
    drop(builder(&place).start().unwrap());
    refused(&place, builder(&place).checkpoint_key(key()), "nothing is authenticated");
    assert!(builder(&place).start().is_ok());
}

/// What somebody else did to a file while the trail was written is in the trail, and stops no
/// start.
#[test]
fn after_a_damaged_file_a_trail_with_a_key_goes_on_in_the_next() {
    let place = Place::new();
    let start = || builder(&place).checkpoint_key(key()).start();
    let trail = start().unwrap();
    record(&trail, 0..2);
    flushed(&trail);
    fs::OpenOptions::new().write(true).open(place.file(1)).unwrap().set_len(100).unwrap();
    record(&trail, 2..3);
    flushed(&trail);
    // As if it were killed now.
    let copy = place.copy();
    let trail = builder(&copy).checkpoint_key(key()).start().unwrap();
    assert!(trail.close());
}

#[test]
fn each_file_and_the_whole_trail_end_with_a_checkpoint() {
    let place = a_trail(30);
    for number in 1..=place.files().len() as u64 {
        assert!(place.lines(number).last().unwrap().contains("\"activity_name\":\"checkpoint\""));
    }
    let found = with_key().verify(&place.path).unwrap();
    assert_eq!(found.fault, None);
    assert_eq!(found.authenticated_before, Some(found.records - 1));
    assert!(found.checkpoints > 6);
}

/// An attacker who can write the file hides a record and computes the chain again.
#[test]
fn a_chain_that_was_made_anew_is_found_with_the_key_and_not_without() {
    let place = a_trail(30);
    let mut lines = place.lines(2);
    let at = lines.iter().position(|line| line.contains("dek_unwrapped")).unwrap();
    lines[at] = lines[at].replace("dek_unwrapped", "dek_unwrappeb");
    place.write(2, &lines);
    assert_eq!(place.verify().fault.unwrap().kind, FaultKind::Changed);
    chained_anew(&place);
    // The first checkpoint after it still has the old hash.
    let next = lines.iter().skip(at).position(|line| line.contains("\"checkpoint\"")).unwrap() + at;
    let fault = place.verify().fault.unwrap();
    assert_eq!((fault.kind, fault.line), (FaultKind::CheckpointRefused, next as u64 + 1));

    // So the attacker takes the checkpoints out, renumbers, and chains again: the chain is whole,
    // and no key vouches for it.
    without_checkpoints(&place, 0, |line| line.to_owned());
    assert_eq!(place.verify().fault, None, "whoever can write the file can make the chain");
    let fault = with_key().verify(&place.path).unwrap().fault.unwrap();
    assert_eq!(fault.kind, FaultKind::NoCheckpoint);
}

#[test]
fn another_key_accepts_nothing() {
    let place = a_trail(4);
    let other = CheckpointKey::ed25519(&[8; 32]);
    let other = CheckpointVerifier::ed25519(&other.public_key().unwrap()).unwrap();
    let fault = Verifier::new().key(other).verify(&place.path).unwrap().fault.unwrap();
    assert_eq!(fault.kind, FaultKind::CheckpointRefused);
}

#[test]
fn after_a_change_of_the_key_both_are_needed() {
    let place = Place::new();
    let public = |seed: &[u8; 32]| {
        let public = CheckpointKey::ed25519(seed).public_key().unwrap();
        CheckpointVerifier::ed25519(&public).unwrap()
    };
    for seed in [[1; 32], [2; 32]] {
        let trail = builder(&place).checkpoint_key(CheckpointKey::ed25519(&seed));
        if seed == [2; 32] {
            let trail = builder(&place).checkpoint_key(CheckpointKey::ed25519(&seed));
            refused(&place, trail, "the checkpoint is not authentic");
        }
        let trail = trail.earlier_checkpoint_key(public(&[1; 32])).start().unwrap();
        record(&trail, 0..3);
        assert!(trail.close());
    }
    let verifier = |seeds: &[[u8; 32]]| {
        seeds.iter().fold(Verifier::new(), |verifier, seed| verifier.key(public(seed)))
    };
    assert_eq!(verifier(&[[1; 32], [2; 32]]).verify(&place.path).unwrap().fault, None);
    assert!(verifier(&[[1; 32]]).verify(&place.path).unwrap().fault.is_some());
    assert!(verifier(&[[2; 32]]).verify(&place.path).unwrap().fault.is_some());
}

#[test]
fn a_mac_verifies_with_its_key_and_with_no_other() {
    let place = Place::new();
    let of = |byte: u8| {
        let bytes: Vec<u8> = (0..32).map(|n| n ^ byte).collect();
        AuditKey::from_slice(&bytes).unwrap()
    };
    let trail = builder(&place).checkpoint_key(CheckpointKey::mac(of(1))).start().unwrap();
    record(&trail, 0..3);
    assert!(trail.close());
    for (byte, fault) in [(1, None), (2, Some(FaultKind::CheckpointRefused))] {
        let found =
            Verifier::new().key(CheckpointVerifier::mac(of(byte))).verify(&place.path).unwrap();
        assert_eq!(found.fault.map(|fault| fault.kind), fault);
    }
}

/// A trail whose checkpoints leave the machine, and their copies.
fn a_witnessed_trail() -> (Place, Vec<Checkpoint>) {
    let (place, kept) = (Place::new(), Kept::default());
    let trail = AuditTrail::builder()
        .directory(TrailDirectory::new(&place.path).max_bytes(4096))
        .checkpoint_key(key())
        .checkpoint_every(5, LONG)
        .checkpoints_to(kept.clone())
        .start()
        .unwrap();
    record(&trail, 0..30);
    assert!(trail.close());
    let copies = kept.lines().iter().map(|line| Checkpoint::read(line).unwrap()).collect();
    (place, copies)
}

fn witnessed(copies: &[Checkpoint]) -> Verifier {
    copies.iter().fold(with_key(), |verifier, copy| verifier.witness(copy.clone()))
}

#[test]
fn a_trail_cut_off_at_any_record_is_found_by_its_witnesses() {
    let (place, copies) = a_witnessed_trail();
    assert!(copies.len() > 6);
    let verifier = witnessed(&copies);
    assert_eq!(verifier.verify(&place.path).unwrap().fault, None);
    let last = copies.last().unwrap().sequence();
    for number in (1..=place.files().len() as u64).rev() {
        let mut lines = place.lines(number);
        while lines.pop().is_some() && !lines.is_empty() {
            place.write(number, &lines);
            let fault = verifier.verify(&place.path).unwrap().fault.unwrap();
            assert_eq!(fault.kind, FaultKind::CutOff { through: last });
        }
        fs::remove_file(place.file(number)).unwrap();
    }
    assert!(verifier.verify(&place.path).unwrap().fault.is_some());
}

/// An attacker with the key of the checkpoints can write the end again, but cannot take back what
/// left the machine.
#[test]
fn a_trail_made_anew_with_the_key_is_found_by_its_witnesses() {
    let (_, copies) = a_witnessed_trail();
    let place = a_trail(30);
    assert_eq!(with_key().verify(&place.path).unwrap().fault, None);
    let fault = witnessed(&copies).verify(&place.path).unwrap().fault.unwrap();
    assert_eq!(fault.kind, FaultKind::OtherTrail);
}

#[test]
fn a_witness_that_is_not_authentic_is_refused() {
    let (place, copies) = a_witnessed_trail();
    let other = CheckpointKey::ed25519(&[8; 32]);
    let other = CheckpointVerifier::ed25519(&other.public_key().unwrap()).unwrap();
    let error =
        Verifier::new().key(other).witness(copies[0].clone()).verify(&place.path).unwrap_err();
    assert!(error.to_string().contains("witness"), "{error}");
    for line in ["", "{}", &place.lines(1)[0]] {
        assert!(Checkpoint::read(line).is_err());
    }
}

#[test]
fn without_a_key_copies_of_checkpoints_still_show_that_the_end_was_cut() {
    let (place, kept) = (Place::new(), Kept::default());
    let trail = builder(&place).checkpoints_to(kept.clone()).start().unwrap();
    record(&trail, 0..3);
    assert!(trail.close());
    let copies = kept.lines();
    let witness = Checkpoint::read(&copies[0]).unwrap();
    let lines = place.lines(1);
    place.write(1, &lines[..lines.len() - 1]);
    let fault = Verifier::new().witness(witness).verify(&place.path).unwrap().fault.unwrap();
    assert!(matches!(fault.kind, FaultKind::CutOff { .. }));
}

/// Its files begin after the witness.
#[test]
fn a_trail_exchanged_for_another_of_the_same_key_is_found_by_its_witnesses() {
    let (place, kept) = (Place::new(), Kept::default());
    let trail = builder(&place).checkpoint_key(key()).checkpoints_to(kept.clone()).start().unwrap();
    record(&trail, 0..1);
    assert!(trail.close());
    let witness = Checkpoint::read(&kept.lines()[0]).unwrap();
    let other = a_trail(30);
    fs::remove_file(other.file(1)).unwrap();
    let found = with_key().first_file(2).witness(witness).verify(&other.path).unwrap();
    assert!(found.fault.is_some(), "the witness is of another trail: {found:?}");
}

/// Nobody but the attacker can have both.
#[test]
fn a_tail_that_was_rolled_back_before_a_restart_is_a_fault_with_the_copies_of_both() {
    let (place, kept) = (Place::new(), Kept::default());
    let start = || builder(&place).checkpoint_key(key()).checkpoints_to(kept.clone());
    let trail = start().start().unwrap();
    record(&trail, 0..2);
    assert!(trail.close());
    let lines = place.lines(1);
    // Back to the first three records. The next run's checkpoint has the same sequence.
    place.write(1, &lines[..3]);
    let trail = start().start().unwrap();
    assert!(trail.close());
    let verifier = kept
        .lines()
        .iter()
        .fold(with_key(), |verifier, line| verifier.witness(Checkpoint::read(line).unwrap()));
    let found = verifier.verify(&place.path);
    assert!(found.as_ref().is_ok_and(|found| found.fault.is_some()), "{found:?}");
}

/// Time is measured by the clock since boot.
#[test]
fn after_the_clock_went_back_checkpoints_are_still_made_in_time() {
    let (place, clock) = (Place::new(), ManualClock::new());
    clock.advance(Duration::from_secs(1_000_000));
    let trail = builder(&place)
        .clock(clock.clone())
        .checkpoint_key(key())
        .checkpoint_every(1000, Duration::from_secs(60))
        .start()
        .unwrap();
    clock.set_wall_back(Duration::from_secs(86_400));
    for n in 0..5 {
        record(&trail, n..n + 1);
        flushed(&trail);
        clock.advance(Duration::from_secs(120));
    }
    assert!(activities(&place.records()).contains(&"checkpoint"));
}
