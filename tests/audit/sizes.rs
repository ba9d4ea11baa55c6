//! What a verifier takes of memory does not depend on how long the trail is.

use std::fs;
use std::path::Path;

use waxseal::audit::{AuditTrail, Backpressure, FaultKind, SyncPolicy, TrailDirectory, Verifier};

use crate::ground::{LONG, Place, child, key, public, record};

const VERIFIED: &str = "WAXSEAL_TEST_AUDIT_VERIFIED";

/// A trail of this many bytes, in files of 1 MiB.
fn a_trail_of(bytes: u64) -> Place {
    let place = Place::new();
    let directory = TrailDirectory::new(&place.path).max_bytes(1 << 20).sync(SyncPolicy::Never);
    let trail = AuditTrail::builder()
        .directory(directory)
        .checkpoint_key(key())
        .backpressure(Backpressure::Block(LONG))
        .close_within(LONG)
        .start()
        .unwrap();
    let len = || place.files().iter().map(|file| fs::metadata(file).unwrap().len()).sum::<u64>();
    while len() < bytes {
        for _ in 0..20 {
            record(&trail, 0..200);
        }
    }
    assert!(trail.close());
    place
}

fn highest_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Run by [`a_long_trail_is_verified_in_the_memory_of_a_short_one`] only: the highest memory is
/// that of a process.
#[test]
fn the_process_that_verifies() {
    let Some(path) = std::env::var_os(VERIFIED) else { return };
    let before = highest_memory();
    let found = Verifier::new().key(public()).verify(Path::new(&path)).unwrap();
    let faults = [None, Some(FaultKind::NoRecord)];
    assert!(faults.contains(&found.fault.map(|fault| fault.kind)));
    println!("verified: {} {}", found.records, highest_memory() - before);
}

/// Records, and how many kB the process grew by.
fn verified(place: &Place) -> (u64, u64) {
    let output = child("sizes::the_process_that_verifies", VERIFIED, &place.path).output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    let line = said.lines().find_map(|line| line.split_once("verified: ")).unwrap().1;
    let (records, grown) = line.split_once(' ').unwrap();
    (records.parse().unwrap(), grown.parse().unwrap())
}

#[test]
fn a_long_trail_is_verified_in_the_memory_of_a_short_one() {
    const MOST: u64 = 4096;

    let (short, long) = (a_trail_of(1 << 20), a_trail_of(24 << 20));
    let ((few, _), (many, grown)) = (verified(&short), verified(&long));
    assert!(many > 4 * few, "{few} and {many} records");
    assert!(grown < MOST, "{grown} kB for {many} records");
    // A line without an end is as long as the file.
    let last = long.files().len() as u64;
    fs::write(long.file(last), vec![b'x'; 24 << 20]).unwrap();
    let (_, grown) = verified(&long);
    assert!(grown < MOST, "{grown} kB for a line of 24 MiB");
}
