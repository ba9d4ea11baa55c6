//! What the keys of checkpoints and copies elsewhere find, that the chain alone cannot.

use std::fs;

use waxseal::audit::{
    AuditKey, AuditTrail, Checkpoint, CheckpointKey, CheckpointVerifier, FaultKind, TrailDirectory,
    Verifier,
};

use crate::ground::{Kept, LONG, Place, a_trail, builder, chained_anew, key, public, record};

fn with_key() -> Verifier {
    Verifier::new().key(public())
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

/// Who can write the file hides a record and makes the chain anew.
#[test]
fn a_chain_that_was_made_anew_is_found_with_the_key_and_not_without() {
    let place = a_trail(30);
    let mut lines = place.lines(2);
    let at = lines.iter().position(|line| line.contains("dek_unwrapped")).unwrap();
    lines[at] = lines[at].replace("dek_unwrapped", "dek_unwrappeb");
    place.write(2, &lines);
    assert_eq!(place.verify().fault.unwrap().kind, FaultKind::Changed);
    chained_anew(&place);
    // The first checkpoint behind it still says the old hash.
    let next = lines.iter().skip(at).position(|line| line.contains("\"checkpoint\"")).unwrap() + at;
    let fault = place.verify().fault.unwrap();
    assert_eq!((fault.kind, fault.line), (FaultKind::CheckpointRefused, next as u64 + 1));

    // So the attacker takes the checkpoints out, renumbers, and chains again: the chain is whole, and no key vouches for it.
    let (mut sequence, files) = (0, place.files().len() as u64);
    for number in 1..=files {
        let mut kept = Vec::new();
        for line in place.lines(number).iter().filter(|line| !line.contains("\"checkpoint\"")) {
            let uid = line.split("\"metadata.uid\":\"").nth(1).unwrap().split('-').next().unwrap();
            let rest = line.split_once("\"time_dt\"").unwrap().1;
            kept.push(format!(
                "{{\"metadata.sequence\":{sequence},\"metadata.uid\":\"{uid}-{sequence}\",\"time_dt\"{rest}"
            ));
            sequence += 1;
        }
        place.write(number, &kept);
    }
    chained_anew(&place);
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
    for seed in [[1; 32], [2; 32]] {
        let trail = builder(&place).checkpoint_key(CheckpointKey::ed25519(&seed)).start().unwrap();
        record(&trail, 0..3);
        assert!(trail.close());
    }
    let verifier = |seeds: &[[u8; 32]]| {
        seeds.iter().fold(Verifier::new(), |verifier, seed| {
            let public = CheckpointKey::ed25519(seed).public_key().unwrap();
            verifier.key(CheckpointVerifier::ed25519(&public).unwrap())
        })
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

/// Whoever has the key of the checkpoints makes the end anew, and cannot take back what left the machine.
#[test]
fn a_trail_made_anew_with_the_key_is_found_by_its_witnesses() {
    let (_, copies) = a_witnessed_trail();
    let place = a_trail(30);
    assert_eq!(with_key().verify(&place.path).unwrap().fault, None);
    let fault = witnessed(&copies).verify(&place.path).unwrap().fault.unwrap();
    assert_eq!(fault.kind, FaultKind::WitnessDisagrees);
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
