//! A full disk, a file or a directory that is gone or cannot be written, two writers, a clock that
//! goes back.

use std::error::Error;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use waxseal::audit::{AppendTo, AuditTrail, FaultKind, TrailDirectory, Verifier};
use waxseal::{ErrorKind, ManualClock};

use crate::ground::{Kept, LONG, Place, activities, builder, child, flushed, record};

/// Waits until the trail says that it cannot write.
fn failing(trail: &AuditTrail) -> String {
    let began = Instant::now();
    loop {
        if let Some(why) = trail.statistics().failure {
            return why;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{trail:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

const FULL: &str = "WAXSEAL_TEST_AUDIT_FULL";

/// Run by [`a_full_disk_loses_nothing_that_fits_into_the_queue`] only: limits are those of a
/// process.
#[test]
#[allow(unsafe_code)]
fn the_process_whose_disk_is_full() {
    let Some(path) = std::env::var_os(FULL) else { return };
    let limit = |bytes| {
        let limit = rustix::process::Rlimit { current: bytes, maximum: None };
        rustix::process::setrlimit(rustix::process::Resource::Fsize, limit).unwrap();
    };
    // SAFETY: no handler runs; without this the signal ends the process.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let trail =
        AuditTrail::builder().directory(TrailDirectory::new(Path::new(&path))).start().unwrap();
    // In the middle of a line.
    limit(Some(5000));
    record(&trail, 0..40);
    println!("failing: {}", failing(&trail));
    assert!(!trail.flush(Duration::from_millis(100)));
    let len = fs::metadata(Path::new(&path).join("trail-00000001.jsonl")).unwrap().len();
    println!("len: {len}");
    limit(None);
    record(&trail, 40..41);
    flushed(&trail);
    assert_eq!(trail.statistics().failure, None);
    assert!(trail.close());
    println!("went on");
}

#[test]
fn a_full_disk_loses_nothing_that_fits_into_the_queue() {
    let place = Place::new();
    let child =
        child("outages::the_process_whose_disk_is_full", FULL, &place.path).output().unwrap();
    let said = String::from_utf8(child.stdout).unwrap();
    assert!(child.status.success(), "{said}");
    assert!(said.contains("went on") && said.contains("failing: "), "{said}");
    let records = place.records();
    let unwrapped = records.iter().filter(|record| record.activity == "dek_unwrapped");
    let ids: Vec<_> = unwrapped.map(|record| record.dek_id.clone().unwrap()).collect();
    let expected: Vec<String> = (0..41).map(|n| format!("{n:02x}").repeat(32)).collect();
    assert_eq!(ids, expected);
    let failure = records.iter().find(|record| record.activity == "trail_write_failed").unwrap();
    assert!(failure.count.unwrap() > 0 && failure.message.is_some());
}

#[test]
fn a_file_that_is_removed_is_noticed_and_the_trail_goes_on_in_the_next() {
    let place = Place::new();
    let trail = builder(&place).start().unwrap();
    record(&trail, 0..2);
    flushed(&trail);
    fs::remove_file(place.file(1)).unwrap();
    record(&trail, 2..4);
    assert!(trail.close());
    assert!(place.lines(2)[1].contains("file_removed"));
    assert_eq!(place.verify().fault.unwrap().kind, FaultKind::FileMissing { number: 1 });
    assert_eq!(
        waxseal::audit::Verifier::new().first_file(2).verify(&place.path).unwrap().fault,
        None
    );
}

#[test]
fn a_file_that_somebody_else_cut_or_wrote_is_left_as_it_is() {
    for longer in [true, false] {
        let place = Place::new();
        let trail = builder(&place).start().unwrap();
        record(&trail, 0..2);
        flushed(&trail);
        let mut bytes = fs::read(place.file(1)).unwrap();
        if longer {
            bytes.extend_from_slice(b"x\n")
        } else {
            bytes.truncate(100)
        }
        fs::write(place.file(1), &bytes).unwrap();
        record(&trail, 2..4);
        assert!(trail.close());
        assert_eq!(fs::read(place.file(1)).unwrap(), bytes);
        assert!(place.lines(2)[1].contains("file_changed"));
        let fault = place.verify().fault.unwrap();
        assert_eq!(fault.file, "trail-00000001.jsonl");
    }
}

#[test]
fn a_file_in_the_place_of_the_next_is_passed_over() {
    let place = Place::new();
    let trail = AuditTrail::builder()
        .directory(TrailDirectory::new(&place.path).max_bytes(4096))
        .start()
        .unwrap();
    fs::write(place.file(2), "not mine\n").unwrap();
    record(&trail, 0..20);
    assert!(trail.close());
    assert_eq!(fs::read_to_string(place.file(2)).unwrap(), "not mine\n");
    assert!(place.file(3).exists());
    assert_eq!(place.verify().fault.unwrap().file, "trail-00000002.jsonl");
}

#[test]
fn a_directory_that_is_gone_and_comes_back_loses_nothing_that_fits_into_the_queue() {
    let place = Place::new();
    let trail = builder(&place).start().unwrap();
    record(&trail, 0..2);
    flushed(&trail);
    let away = place.path.with_extension("away");
    fs::rename(&place.path, &away).unwrap();
    record(&trail, 2..4);
    assert!(failing(&trail).contains("No such file"));
    fs::rename(&away, &place.path).unwrap();
    record(&trail, 4..5);
    assert!(trail.close(), "{trail:?}");
    let records = place.records();
    assert_eq!(records.iter().filter(|record| record.activity == "dek_unwrapped").count(), 5);
    assert!(activities(&records).contains(&"trail_write_failed"));
}

#[test]
fn a_trail_that_cannot_be_written_does_not_start() {
    let place = Place::new();
    fs::write(&place.path, "a file").unwrap();
    let error = builder(&place).start().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Io);
    let deep = AuditTrail::builder().directory(TrailDirectory::new(place.path.join("a/b")));
    assert_eq!(deep.start().unwrap_err().kind(), ErrorKind::Io);
}

/// Printing an error and its causes repeats nothing.
#[test]
fn what_the_system_says_of_a_file_is_in_the_cause_alone() {
    let place = Place::new();
    fs::write(&place.path, "a file").unwrap();
    let nowhere = place.path.join("a/b");
    for error in [
        AuditTrail::builder().directory(TrailDirectory::new(&nowhere)).start().unwrap_err(),
        Verifier::new().verify(&nowhere).unwrap_err(),
        Verifier::new().witnesses(&nowhere).unwrap_err(),
        AppendTo::open(&nowhere).unwrap_err(),
    ] {
        let cause = error.source().unwrap().to_string();
        assert!(error.cause().is_some_and(|cause| cause.is::<std::io::Error>()), "{error}");
        assert!(!error.to_string().contains(&cause), "{error}: {cause}");
        assert!(error.to_string().contains("a/b"), "{error}");
    }
}

const READ_ONLY: &str = "WAXSEAL_TEST_AUDIT_READ_ONLY";

/// Run by [`a_directory_that_is_read_only_is_an_error_at_the_start`] only: permissions do not bind
/// root.
#[test]
#[allow(unsafe_code)]
fn the_process_that_may_not_write() {
    let Some(path) = std::env::var_os(READ_ONLY) else { return };
    // SAFETY: a system call without pointers. For anybody but root it fails, and root is not bound
    // by permissions.
    unsafe { libc::setuid(65534) };
    let directory = TrailDirectory::new(Path::new(&path));
    let error = AuditTrail::builder().directory(directory).start().unwrap_err();
    println!("refused: {error}: {}", error.source().unwrap());
}

#[test]
fn a_directory_that_is_read_only_is_an_error_at_the_start() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    fs::create_dir(&place.path).unwrap();
    fs::set_permissions(place.path.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&place.path, fs::Permissions::from_mode(0o555)).unwrap();
    let said = child("outages::the_process_that_may_not_write", READ_ONLY, &place.path).output();
    let said = String::from_utf8(said.unwrap().stdout).unwrap();
    assert!(said.contains("refused: ") && said.contains("Permission denied"), "{said}");
    fs::set_permissions(&place.path, fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn what_a_trail_makes_only_its_owner_may_read() {
    use std::os::unix::fs::PermissionsExt;
    let place = Place::new();
    drop(builder(&place).start().unwrap());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&place.path), mode(&place.file(1))), (0o700, 0o600));
}

const SECOND: &str = "WAXSEAL_TEST_AUDIT_SECOND";

/// Run by [`a_second_writer_is_refused`] only.
#[test]
fn the_second_process() {
    let Some(path) = std::env::var_os(SECOND) else { return };
    match AuditTrail::builder().directory(TrailDirectory::new(Path::new(&path))).start() {
        Ok(_) => println!("started"),
        Err(error) => println!("refused: {error}"),
    }
}

#[test]
fn a_second_writer_is_refused() {
    let place = Place::new();
    let trail = builder(&place).start().unwrap();
    let in_another_process = || {
        let mut second = child("outages::the_second_process", SECOND, &place.path);
        String::from_utf8(second.stderr(Stdio::null()).output().unwrap().stdout).unwrap()
    };
    let error = builder(&place).start().unwrap_err();
    assert!(error.to_string().contains("another process or trail writes it"), "{error}");
    let said = in_another_process();
    assert!(said.contains("refused: ") && said.contains("another process"), "{said}");
    record(&trail, 0..1);
    assert!(trail.close());
    drop(trail);
    let said = in_another_process();
    assert!(said.contains("started"), "{said}");
    assert!(place.records().len() > 3);
}

#[test]
fn a_clock_that_goes_back_is_recorded_and_the_order_stays() {
    let (place, clock) = (Place::new(), ManualClock::new());
    clock.advance(Duration::from_secs(1_000_000));
    let trail = builder(&place).clock(clock.clone()).checkpoints_to(Kept::default());
    let trail = trail.checkpoint_every(1, LONG).start().unwrap();
    record(&trail, 0..1);
    // Records that the trail itself writes meanwhile come after those that are queued.
    clock.advance(Duration::from_secs(60));
    flushed(&trail);
    clock.set_wall_back(Duration::from_secs(3600));
    record(&trail, 1..3);
    assert!(trail.close());
    let records = place.records();
    let note = records.iter().find(|record| record.activity == "clock_set_back").unwrap();
    assert_eq!(note.message.as_deref(), Some("by 3600 s"));
    assert_eq!(note.time, "1970-01-12T12:47:40Z");
    assert_eq!(place.verify().clock_set_back, 1);
    let ids: Vec<_> = records.iter().filter_map(|record| record.dek_id.clone()).collect();
    assert!(ids.is_sorted() && ids.len() == 3);
}

#[test]
fn a_file_is_rotated_by_age() {
    let (place, clock) = (Place::new(), ManualClock::new());
    let directory = TrailDirectory::new(&place.path).max_age(Duration::from_secs(60));
    let trail = AuditTrail::builder().directory(directory).clock(clock.clone()).start().unwrap();
    for n in 0..3 {
        record(&trail, n..n + 1);
        flushed(&trail);
        clock.advance(Duration::from_secs(59));
        record(&trail, n..n + 1);
        flushed(&trail);
        clock.advance(Duration::from_secs(1));
    }
    assert!(trail.close());
    assert_eq!(place.files().len(), 4);
    assert_eq!(place.verify().fault, None);
}

/// It tries twice, since the next name is taken.
#[test]
fn a_cut_file_is_recorded_as_cut_even_if_the_next_name_is_taken() {
    let place = Place::new();
    let trail = builder(&place).start().unwrap();
    record(&trail, 0..2);
    flushed(&trail);
    fs::write(place.file(2), "not mine\n").unwrap();
    fs::OpenOptions::new().write(true).open(place.file(1)).unwrap().set_len(100).unwrap();
    record(&trail, 2..3);
    assert!(trail.close());
    let lines = place.lines(3).concat();
    assert!(lines.contains("file_changed") && !lines.contains("file_removed"), "{lines}");
}
