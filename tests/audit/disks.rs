//! Disks that fail: what could not be written, what may not be on the disk, and what a verifier
//! says about it.

use std::ffi::CString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use waxseal::audit::{
    AppendTo, AuditSink, AuditTrail, FaultKind, Record, SyncPolicy, TrailDirectory, Verification,
    Verifier,
};
use waxseal::{DekId, ErrorKind, KekId, ManualClock, Observer};

use crate::ground::{
    Kept, LONG, Place, activities, builder, child, context, flushed, key, public, record, unwrapped,
};

fn with_key() -> Verifier {
    Verifier::new().key(public())
}

/// What a verifier finds, and the first byte of the DEK of every unwrap that it hands over.
fn seen(place: &Place, verifier: &Verifier) -> (Verification, Vec<u8>) {
    let mut seen = Vec::new();
    let each = |record: &Record| {
        if record.activity == "dek_unwrapped" {
            let id = record.dek_id.as_deref().unwrap();
            seen.push(u8::from_str_radix(&id[..2], 16).unwrap());
        }
    };
    let found = verifier.verify_each(&place.path, each).unwrap();
    (found, seen)
}

/// From now on no wait for the disk succeeds for the file of this name, whichever thread asks: the
/// kernel itself refuses the calls.
#[allow(unsafe_code)]
fn syncs_fail_of(name: &str) {
    let fd = fs::read_dir("/proc/self/fd")
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|fd| fs::read_link(fd).is_ok_and(|path| path.to_string_lossy().ends_with(name)))
        .unwrap_or_else(|| panic!("{name} is not open"));
    let fd: u32 = fd.file_name().unwrap().to_str().unwrap().parse().unwrap();
    let load = |offset| stmt(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, offset);
    let equal = |value, yes, no| jump(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, value, yes, no);
    let answer = |value| stmt(libc::BPF_RET | libc::BPF_K, value);
    let number = |call: libc::c_long| u32::try_from(call).unwrap();
    let error = libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EIO).unwrap();
    let mut program = [
        load(0),
        equal(number(libc::SYS_fdatasync), 1, 0),
        equal(number(libc::SYS_fsync), 0, 3),
        // The first argument, and of it the lower half.
        load(16),
        equal(fd, 0, 1),
        answer(error),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    let len = u16::try_from(program.len()).unwrap();
    let program = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    // SAFETY: the program outlives both calls, and its length is right.
    let installed = unsafe {
        libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            libc::SECCOMP_FILTER_FLAG_TSYNC,
            &raw const program,
        )
    };
    assert_eq!(installed, 0, "{}", std::io::Error::last_os_error());
}

fn stmt(code: u32, k: u32) -> libc::sock_filter {
    jump(code, k, 0, 0)
}

fn jump(code: u32, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code: u16::try_from(code).unwrap(), jt, jf, k }
}

const FAILING: &str = "WAXSEAL_TEST_AUDIT_SYNC_FAILS";

/// Run by [`after_a_failed_wait_for_the_disk_a_trail_goes_on_in_a_new_file`] only.
#[test]
fn the_process_whose_disk_fails() {
    let Some(path) = std::env::var_os(FAILING) else { return };
    let path = PathBuf::from(path);
    let policy = match path.extension() {
        Some(_) => SyncPolicy::Checkpoints,
        None => SyncPolicy::Records,
    };
    let trail = AuditTrail::builder()
        .directory(TrailDirectory::new(&path).sync(policy))
        .checkpoint_key(key())
        .checkpoint_every(3, LONG)
        .start()
        .unwrap();
    record(&trail, 0..4);
    flushed(&trail);
    syncs_fail_of("trail-00000001.jsonl");
    record(&trail, 4..10);
    flushed(&trail);
    let statistics = trail.statistics();
    assert!(statistics.write_failures > 0 && statistics.failure.is_none(), "{statistics:?}");
    record(&trail, 10..12);
    assert!(trail.close());
    println!("went on");
}

/// A trail whose disk failed, and the sequence from which on its first file may be lost.
fn a_failed_sync(policy: SyncPolicy) -> (Place, u64) {
    let mut place = Place::new();
    if policy == SyncPolicy::Checkpoints {
        place.path.set_extension("checkpoints");
    }
    let child = child("disks::the_process_whose_disk_fails", FAILING, &place.path).output();
    let child = child.unwrap();
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(said.contains("went on"), "{said}{}", String::from_utf8_lossy(&child.stderr));
    let records = place.records();
    let opened = |record: &&Record| record.trail.as_ref().is_some_and(|trail| trail.file == 2);
    let opened = records.iter().find(opened).unwrap();
    let from = opened.trail.as_ref().unwrap().unsynced_from.unwrap();
    (place, from)
}

#[test]
fn after_a_failed_wait_for_the_disk_a_trail_goes_on_in_a_new_file() {
    for policy in [SyncPolicy::Records, SyncPolicy::Checkpoints] {
        let (place, from) = a_failed_sync(policy);
        assert_eq!(place.files().len(), 2);
        // As long as the machine runs, everything is there. What the next file repeats is handed
        // over once.
        let (found, ids) = seen(&place, &with_key());
        assert_eq!((found.fault, found.sync_failures, found.lost_at_sync), (None, 1, 0));
        assert_eq!(ids, (0..12).collect::<Vec<_>>());
        assert!(found.is_closed);
        let second = place.lines(2).concat();
        assert!(second.contains("file_sync_failed") && second.contains("waxseal.repeats"));
        let synced = usize::try_from(from).unwrap();
        let doubtful = place.lines(1).len() - synced;
        let note = format!("\"count\":{doubtful},\"message\":\"trail-00000001.jsonl\"");
        assert!(second.contains(&note), "{second}");

        // A crash of the machine leaves any part of what was not on the disk.
        let (whole, lines) = (fs::read(place.file(1)).unwrap(), place.lines(1));
        let on_disk: usize = lines[..synced].iter().map(String::len).sum();
        let cut = |at: usize| whole[..at].to_vec();
        let zeros = |at: usize| {
            let mut bytes = cut(at);
            bytes.resize(whole.len(), 0);
            bytes
        };
        let hole = || {
            let mut bytes = whole.clone();
            bytes[on_disk + 30..on_disk + lines[synced].len() + 40].fill(0);
            bytes
        };
        let one_line = on_disk + lines[synced].len();
        for left in [
            cut(on_disk),
            cut(on_disk + 17),
            cut(one_line),
            cut(one_line + 17),
            zeros(on_disk),
            zeros(on_disk + 9),
            hole(),
        ] {
            let copy = place.copy();
            fs::write(copy.file(1), &left).unwrap();
            for verifier in [with_key(), Verifier::new()] {
                let (found, ids) = seen(&copy, &verifier);
                assert_eq!(found.fault, None);
                assert!(found.lost_at_sync > 0 && found.sync_failures == 1);
                let mut sorted = ids.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..12).collect::<Vec<_>>());
            }
            let trail = builder(&copy).checkpoint_key(key()).start().unwrap();
            record(&trail, 12..13);
            assert!(trail.close());
            assert_eq!(with_key().verify(&copy.path).unwrap().fault, None);
        }
    }
}

/// The excuse covers what the disk failed to keep, and no record before.
#[test]
fn what_was_on_the_disk_before_is_not_excused_by_a_failed_wait() {
    let (place, from) = a_failed_sync(SyncPolicy::Records);
    let lines = place.lines(1);
    let synced = usize::try_from(from).unwrap();
    for kept in 1..synced {
        place.write(1, &lines[..kept]);
        let fault = with_key().verify(&place.path).unwrap().fault.unwrap();
        assert_eq!(fault.sequence, kept as u64, "{fault}");
    }
    // Nor does it excuse another change.
    let mut changed = lines.clone();
    changed[synced] = changed[synced].replace("Success", "Failure");
    place.write(1, &changed);
    assert_eq!(with_key().verify(&place.path).unwrap().fault.unwrap().kind, FaultKind::Changed);
    place.write(1, &lines);
    assert_eq!(with_key().verify(&place.path).unwrap().fault, None);
}

/// Anyone can write a file that excuses what they took out. A key has to vouch for it.
#[test]
fn an_excuse_that_no_checkpoint_vouches_for_is_none() {
    let (place, from) = a_failed_sync(SyncPolicy::Records);
    let (first, second) = (place.lines(1), place.lines(2));
    place.write(1, &first[..usize::try_from(from).unwrap()]);
    let signed = second.iter().position(|line| line.contains("waxseal.checkpoint")).unwrap();
    place.write(2, &second[..=signed]);
    assert_eq!(with_key().verify(&place.path).unwrap().fault, None);
    for kept in 1..=signed {
        place.write(2, &second[..kept]);
        let fault = with_key().verify(&place.path).unwrap().fault.unwrap();
        assert!(matches!(fault.kind, FaultKind::Missing { .. }), "{fault}");
        assert!(builder(&place).checkpoint_key(key()).start().is_err());
    }
}

const COPIES: &str = "WAXSEAL_TEST_AUDIT_COPIES_FAIL";

/// Run by [`after_a_failed_wait_for_the_disk_copies_go_on_in_a_new_file`] only.
#[test]
fn the_process_whose_copies_fail() {
    let Some(path) = std::env::var_os(COPIES) else { return };
    let path = Path::new(&path);
    // So that the next files do not get the number of the one that fails.
    let numbers: Vec<_> = (0..8).map(|_| fs::File::open("/dev/null").unwrap()).collect();
    let trail = AuditTrail::builder()
        .directory(TrailDirectory::new(path))
        .checkpoint_key(key())
        .checkpoint_every(2, LONG)
        .checkpoints_to(AppendTo::open(path.with_extension("copies")).unwrap())
        .start()
        .unwrap();
    record(&trail, 0..4);
    flushed(&trail);
    syncs_fail_of("audit.copies");
    drop(numbers);
    for n in 4..10 {
        record(&trail, n..n + 1);
        flushed(&trail);
    }
    assert!(trail.close());
    println!("went on");
}

#[test]
fn after_a_failed_wait_for_the_disk_copies_go_on_in_a_new_file() {
    let place = Place::new();
    let said = child("disks::the_process_whose_copies_fail", COPIES, &place.path).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    let records = place.records();
    let activities = activities(&records);
    let told = |activity| activities.contains(&activity);
    assert!(told("sink_failed") && told("sink_recovered"), "{activities:?}");
    let copies = place.path.with_extension("copies");
    assert!(copies.with_extension("copies.2").exists());
    // Every checkpoint is in one of the two, so that a cut anywhere is found.
    let all = || with_key().witnesses(&copies).unwrap();
    assert_eq!(all().verify(&place.path).unwrap().fault, None);
    let checkpoints: Vec<u64> = records
        .iter()
        .filter(|record| record.checkpoint.is_some())
        .map(|record| record.sequence)
        .collect();
    let lines = place.lines(1);
    for at in checkpoints {
        place.write(1, &lines[..usize::try_from(at).unwrap()]);
        let fault = all().verify(&place.path).unwrap().fault.unwrap();
        assert!(
            matches!(fault.kind, FaultKind::CutOff { .. } | FaultKind::NoCheckpoint),
            "{fault}"
        );
    }
    // What the first one may have lost with the machine does not stop the reader.
    place.write(1, &lines);
    let torn = fs::read(&copies).unwrap();
    fs::write(&copies, [&torn[..torn.len() - 90], &[0; 4096][..], b"\n"].concat()).unwrap();
    assert_eq!(all().verify(&place.path).unwrap().fault, None);
}

#[test]
fn behind_an_incomplete_line_copies_go_on_in_a_new_file() {
    let (place, kept) = (Place::new(), Kept::default());
    let copies = place.path.with_extension("copies");
    for torn in [false, true] {
        if torn {
            let bytes = fs::read(&copies).unwrap();
            fs::write(&copies, &bytes[..bytes.len() - 20]).unwrap();
        }
        let trail = builder(&place)
            .checkpoint_key(key())
            .checkpoints_to(AppendTo::open(&copies).unwrap())
            .checkpoints_to(kept.clone())
            .start()
            .unwrap();
        record(&trail, 0..3);
        assert!(trail.close());
    }
    let next = fs::read_to_string(copies.with_extension("copies.2")).unwrap();
    assert_eq!(next, kept.lines().last().unwrap().to_owned());
    assert_eq!(with_key().witnesses(&copies).unwrap().verify(&place.path).unwrap().fault, None);
    // It continues there, and a line that is not a checkpoint is named.
    let mut sink = AppendTo::open(&copies).unwrap();
    sink.write(&Record::default(), "no checkpoint\n").unwrap();
    assert!(!copies.with_extension("copies.3").exists());
    let error = with_key().witnesses(&copies).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert!(error.to_string().contains("audit.copies.2, line 2"), "{error}");
}

const SMALL: &str = "WAXSEAL_TEST_AUDIT_SMALL_DISK";

/// Run by [`a_disk_that_is_full_loses_nothing_that_fits_into_the_queue`] only: its disk is its own.
#[test]
fn the_process_with_a_small_disk() {
    let Some(disk) = std::env::var_os(SMALL) else { return };
    let disk = Path::new(&disk);
    let (filler, copies) = (disk.join("filler"), disk.join("copies"));
    let trail = AuditTrail::builder()
        .directory(TrailDirectory::new(disk.join("audit")))
        .checkpoint_key(key())
        .checkpoint_every(5, LONG)
        .checkpoints_to(AppendTo::open(&copies).unwrap())
        .start()
        .unwrap();
    record(&trail, 0..7);
    flushed(&trail);
    // Whatever is left is taken.
    let full = fs::write(&filler, vec![1; 8 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    record(&trail, 7..40);
    let began = Instant::now();
    while trail.statistics().failure.is_none() {
        assert!(began.elapsed() < LONG, "{trail:?}");
    }
    fs::remove_file(&filler).unwrap();
    record(&trail, 40..41);
    flushed(&trail);
    assert!(trail.close());
    let place = Verifier::new().key(public()).witnesses(&copies).unwrap();
    let mut ids = Vec::new();
    let found = place.verify_each(disk.join("audit"), |record| ids.extend(record.dek_id.clone()));
    let found = found.unwrap();
    assert_eq!((found.fault, found.is_closed), (None, true));
    let expected: Vec<String> = (0..41).map(|n| format!("{n:02x}").repeat(32)).collect();
    assert_eq!(ids, expected);
    println!("went on");
}

#[test]
#[allow(unsafe_code)]
fn a_disk_that_is_full_loses_nothing_that_fits_into_the_queue() {
    let disk = tempfile::tempdir().unwrap();
    let target = CString::new(disk.path().to_str().unwrap()).unwrap();
    let mut child = child("disks::the_process_with_a_small_disk", SMALL, disk.path());
    // SAFETY: between fork and exec it only makes system calls, with texts that are there already.
    unsafe { child.pre_exec(move || mount_small_disk(&target)) };
    let child = child.output().unwrap();
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    assert!(said.contains("went on"), "{said}{}", String::from_utf8_lossy(&child.stderr));
}

/// A file system of 256 KiB that only this process sees.
#[allow(unsafe_code)]
fn mount_small_disk(target: &CString) -> std::io::Result<()> {
    let done = |result: i32| match result {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    // SAFETY: system calls with texts that end with zero and outlive them.
    unsafe {
        let (user, group) = (libc::getuid(), libc::getgid());
        if done(libc::unshare(libc::CLONE_NEWNS)).is_err() {
            done(libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS))?;
            fs::write("/proc/self/setgroups", "deny")?;
            fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
            fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
        }
        let (none, root, kind) = (std::ptr::null(), c"/".as_ptr(), c"tmpfs".as_ptr());
        let private = libc::MS_REC | libc::MS_PRIVATE;
        done(libc::mount(none, root, none, private, std::ptr::null()))?;
        done(libc::mount(kind, target.as_ptr(), kind, 0, c"size=256k".as_ptr().cast()))
    }
}

const KILLED_AT: &str = "WAXSEAL_TEST_AUDIT_KILLED_AT";

/// The event that a process is killed in.
fn last_event(trail: &AuditTrail) {
    let (context, kek_id) = (context(), KekId::new("local:test").unwrap());
    trail.event(&unwrapped(&DekId::from_bytes([0xEE; 32]), &context, &kek_id));
}

fn of_fixed_time(path: &Path) -> AuditTrail {
    AuditTrail::builder()
        .directory(TrailDirectory::new(path).sync(SyncPolicy::Never))
        .clock(ManualClock::new())
        .checkpoint_key(key())
        .start()
        .unwrap()
}

/// Run by [`a_process_killed_at_every_byte_of_an_event_leaves_a_trail_that_goes_on`] only. The
/// kernel kills it in the `write` that would make a file longer than the limit, when all bytes up
/// to there are written.
#[test]
fn the_process_that_is_killed_at_a_byte() {
    let Some(path) = std::env::var_os(KILLED_AT) else { return };
    let path = Path::new(&path);
    let byte: u64 = path.extension().unwrap().to_str().unwrap().parse().unwrap();
    let trail = of_fixed_time(path);
    record(&trail, 0..2);
    flushed(&trail);
    let len = fs::metadata(path.join("trail-00000001.jsonl")).unwrap().len();
    let limit = |resource, bytes| {
        let limit = rustix::process::Rlimit { current: Some(bytes), maximum: None };
        rustix::process::setrlimit(resource, limit).unwrap();
    };
    limit(rustix::process::Resource::Core, 0);
    limit(rustix::process::Resource::Fsize, len + byte);
    last_event(&trail);
    flushed(&trail);
    // Not reached.
    println!("written");
}

#[test]
fn a_process_killed_at_every_byte_of_an_event_leaves_a_trail_that_goes_on() {
    use std::os::unix::process::ExitStatusExt;

    let whole = Place::new();
    let trail = of_fixed_time(&whole.path);
    record(&trail, 0..2);
    last_event(&trail);
    flushed(&trail);
    let (lines, line) = (whole.lines(1).len(), whole.lines(1).last().unwrap().clone());
    drop(trail);
    let killed_at = |byte: usize| {
        let mut place = Place::new();
        place.path.set_extension(byte.to_string());
        let name = "disks::the_process_that_is_killed_at_a_byte";
        let ended = child(name, KILLED_AT, &place.path).output().unwrap();
        assert_eq!(ended.status.signal(), Some(libc::SIGXFSZ), "byte {byte}: {ended:?}");
        let found = with_key().verify(&place.path).unwrap();
        assert_eq!(found.records, lines as u64 - 1, "byte {byte}");
        let fault = (byte > 0).then_some(FaultKind::Incomplete);
        assert_eq!(found.fault.map(|fault| fault.kind), fault, "byte {byte}");

        let trail = of_fixed_time(&place.path);
        record(&trail, 3..4);
        assert!(trail.close());
        let (found, ids) = seen(&place, &with_key());
        assert_eq!((found.fault, found.not_closed), (None, 1), "byte {byte}");
        assert_eq!(ids, [0, 1, 3], "byte {byte}");
    };
    std::thread::scope(|scope| {
        for first in 0..4 {
            let (killed_at, len) = (&killed_at, line.len());
            scope.spawn(move || (first..len).step_by(4).for_each(killed_at));
        }
    });
}
