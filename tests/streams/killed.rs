//! A process that is killed while it writes a file, and a disk that is full.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::files::Place;
use super::ground::*;
use waxseal::kek::local::LocalKek;
use waxseal::{Aad, Envelope, Error, FileOptions};

const DIR: &str = "WAXSEAL_TEST_FILES_DIR";
const DO: &str = "WAXSEAL_TEST_FILES_DO";
/// How many bytes a file may have: the next one kills, or fails.
const MOST: &str = "WAXSEAL_TEST_FILES_MOST";

const LEN: usize = 4 * CHUNK + 100;

fn opened(dir: &Path) -> Envelope {
    let kek = LocalKek::open_or_create(dir.join("kek"), "kek").unwrap();
    Envelope::builder().wrap_with(kek).build().unwrap()
}

fn seal(envelope: &Envelope, dir: &Path, options: &FileOptions) -> Result<u64, Error> {
    let (from, to) = (dir.join("plain"), dir.join("sealed"));
    let options = options.clone().stream(small());
    block_on(envelope.encrypt_file(&context("alice"), Aad::from(AAD), from, to, &options))
}

fn open(envelope: &Envelope, dir: &Path, options: &FileOptions) -> Result<u64, Error> {
    let (from, to) = (dir.join("given"), dir.join("opened"));
    block_on(envelope.decrypt_file(&context("alice"), Aad::from(AAD), from, to, options))
}

/// Run by the tests below only.
#[test]
fn the_process_that_is_killed() {
    let Some(dir) = std::env::var_os(DIR).map(PathBuf::from) else { return };
    let envelope = opened(&dir);
    let what = std::env::var(DO).unwrap();
    if let Ok(most) = std::env::var(MOST) {
        // No core file, which would be large and count.
        setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) }).unwrap();
        let of_files = getrlimit(Resource::Fsize);
        let current = Some(most.parse().unwrap());
        setrlimit(Resource::Fsize, Rlimit { current, ..of_files }).unwrap();
    }
    let done = |result: Result<u64, Error>| match result {
        Ok(_) => std::process::exit(10),
        Err(error) => {
            eprintln!("{error:?}");
            std::process::exit(11)
        }
    };
    let overwrite = FileOptions::default().overwrite();
    match &*what {
        "seal" => done(seal(&envelope, &dir, &FileOptions::default())),
        "open" => done(open(&envelope, &dir, &FileOptions::default())),
        "seal over" => done(seal(&envelope, &dir, &overwrite)),
        "open over" => done(open(&envelope, &dir, &overwrite)),
        "relative" => {
            std::env::set_current_dir(dir.join("first")).unwrap();
            let (context, aad, other) = (context("alice"), Aad::from(AAD), dir.join("second"));
            let leave = FileOptions::default().on_progress(move |_| {
                std::env::set_current_dir(&other).unwrap();
            });
            let seal = envelope.encrypt_file(&context, aad, "../plain", "sealed", &leave);
            block_on(seal).unwrap();
            std::env::set_current_dir(dir.join("first")).unwrap();
            done(block_on(envelope.decrypt_file(&context, aad, "sealed", "deep/../opened", &leave)))
        }
        _ => loop {
            seal(&envelope, &dir, &overwrite).unwrap();
            open(&envelope, &dir, &overwrite).unwrap();
        },
    }
}

fn child(dir: &Path, what: &str) -> Command {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child
        .args(["--exact", "killed::the_process_that_is_killed", "--nocapture"])
        .env(DIR, dir)
        .env(DO, what)
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    child
}

/// A directory with a plaintext, the stream of another one, and the key.
fn place() -> (Place, Vec<u8>) {
    let place = Place::new();
    let dir = place.dir.path();
    fs::write(dir.join("plain"), plaintext(LEN)).unwrap();
    let sealed = sealed_by(&opened(dir), small(), &plaintext(LEN));
    fs::write(dir.join("given"), &sealed).unwrap();
    (place, sealed)
}

/// The temporary files that were left, and their lengths. What is not whole is for this user only.
fn left(place: &Place) -> Vec<(PathBuf, u64)> {
    let sealed_len = usize::try_from(fs::metadata(place.path("given")).unwrap().len()).unwrap();
    let names = place.names().into_iter();
    let names = names.filter(|name| name.starts_with(".waxseal-") && name.ends_with(".tmp"));
    let with_len = |path: PathBuf| {
        let of = fs::metadata(&path).unwrap();
        let is_whole = [LEN, sealed_len].contains(&usize::try_from(of.len()).unwrap());
        assert!(is_whole || of.mode() & 0o777 == 0o600, "{:o}", of.mode());
        (path, of.len())
    };
    names.map(|name| with_len(place.path(&name))).collect()
}

const SIGXFSZ: i32 = 25;

fn is_killed(status: ExitStatus) -> bool {
    status.signal() == Some(SIGXFSZ)
}

/// Each border of a chunk, and a byte before and after it.
fn borders(first: usize, chunk: usize, end: usize) -> impl Iterator<Item = usize> {
    let borders = (0..).map(move |i| first + i * chunk).take_while(move |at| *at < end);
    let around = |at: usize| [at.saturating_sub(1), at, at + 1];
    let mut all: Vec<_> = [0].into_iter().chain(borders).chain([end]).flat_map(around).collect();
    all.retain(|at| *at < end);
    all.sort_unstable();
    all.dedup();
    all.into_iter()
}

/// The directory of a process is everybody's, so anybody may change it meanwhile.
#[test]
fn a_relative_target_is_where_it_was_when_the_call_began() {
    let (place, _) = place();
    let dir = place.dir.path();
    for name in ["first", "first/deep", "second"] {
        fs::create_dir(dir.join(name)).unwrap();
    }
    let status = child(dir, "relative").status().unwrap();
    assert_eq!(status.code(), Some(10));
    assert_eq!(fs::read(dir.join("first/opened")).unwrap(), plaintext(LEN));
    assert_eq!(fs::read_dir(dir.join("first")).unwrap().count(), 3);
    assert_eq!(fs::read_dir(dir.join("second")).unwrap().count(), 0);
}

#[test]
fn a_process_killed_at_any_border_of_a_chunk_leaves_nothing_at_the_target() {
    let (place, sealed) = place();
    let dir = place.dir.path();
    let of_sealed: Vec<_> = borders(head_len(&sealed), SEALED_CHUNK, sealed.len()).collect();
    let of_opened: Vec<_> = borders(CHUNK, CHUNK, LEN).collect();
    assert!(of_sealed.len() > 15 && of_opened.len() > 12, "{of_sealed:?} {of_opened:?}");
    for (what, target, most) in [("seal", "sealed", of_sealed), ("open", "opened", of_opened)] {
        for most in most {
            let mut child = child(dir, what);
            let status = child.env(MOST, most.to_string()).status().unwrap();
            assert!(is_killed(status), "{what} {most}: {status}");
            assert!(!place.path(target).exists(), "{what} was killed at {most}");
            let left = left(&place);
            assert_eq!(left.len(), 1, "{left:?}");
            assert_eq!(left[0].1, most as u64);
            // With the last one that was left, the next run goes as if there were none.
            if most.is_multiple_of(2) {
                fs::remove_file(&left[0].0).unwrap();
                continue;
            }
            let envelope = opened(dir);
            let result = match what {
                "seal" => seal(&envelope, dir, &FileOptions::default()),
                _ => open(&envelope, dir, &FileOptions::default()),
            };
            assert_eq!(result.unwrap(), LEN as u64);
            assert_eq!(self::left(&place), left);
            let read = fs::read(place.path(target)).unwrap();
            match what {
                "seal" => assert_eq!(read_alice(&envelope, &read), (plaintext(LEN), Ok(()))),
                _ => assert_eq!(read, plaintext(LEN)),
            }
            fs::remove_file(place.path(target)).unwrap();
            fs::remove_file(&left[0].0).unwrap();
        }
    }
}

#[test]
fn a_process_killed_while_it_replaces_a_file_leaves_the_old_one() {
    let (place, sealed) = place();
    for (what, target) in [("seal over", "sealed"), ("open over", "opened")] {
        for most in [0, 1, CHUNK, CHUNK + 1, head_len(&sealed) + SEALED_CHUNK, LEN - 1] {
            fs::write(place.path(target), "old").unwrap();
            let status =
                child(place.dir.path(), what).env(MOST, most.to_string()).status().unwrap();
            assert!(is_killed(status), "{what} {most}: {status}");
            assert_eq!(fs::read(place.path(target)).unwrap(), b"old");
        }
    }
}

/// The signal is ignored, and a write fails instead. The kernel does the same at a full disk.
#[test]
fn a_file_that_cannot_grow_is_an_error_that_leaves_nothing() {
    let (place, sealed) = place();
    let names = place.names();
    for what in ["seal", "open", "seal over", "open over"] {
        for most in [0, 1, CHUNK, head_len(&sealed) + SEALED_CHUNK, LEN - 1] {
            let own = child(place.dir.path(), what);
            // `exec` keeps ignored signals ignored.
            let mut shell = Command::new("sh");
            shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(own.get_program());
            shell.args(own.get_args());
            for (name, value) in own.get_envs() {
                shell.env(name, value.unwrap());
            }
            let output = shell.env(MOST, most.to_string()).output().unwrap();
            let text = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(11), "{what} {most}: {text}");
            assert!(
                text.contains("could not be written") && text.contains("FileTooLarge"),
                "{text}"
            );
            assert_eq!(place.names(), names, "{what} {most}");
        }
    }
}

/// Between any two steps, including those of the end, which no border marks.
#[test]
fn a_process_killed_at_any_moment_leaves_a_whole_file_or_none() {
    let (place, _) = place();
    let dir = place.dir.path();
    let mut rounds = 0;
    for round in 0..40 {
        for target in ["sealed", "opened"] {
            let _ = fs::remove_file(place.path(target));
        }
        let mut process = child(dir, "loop").spawn().unwrap();
        // Later and later in its life.
        let began = std::time::Instant::now();
        // By name only: what the process has begun may be in place a moment later.
        let has_begun = || place.names().iter().any(|name| name.starts_with(".waxseal-"));
        while !place.path("sealed").exists() && !has_begun() {
            assert!(process.try_wait().unwrap().is_none(), "it ended by itself");
            assert!(began.elapsed() < Duration::from_secs(60), "nothing is written");
        }
        std::thread::sleep(Duration::from_micros(137 * round));
        process.kill().unwrap();
        assert_eq!(process.wait().unwrap().signal(), Some(9));
        let envelope = opened(dir);
        if let Ok(sealed) = fs::read(place.path("sealed")) {
            assert_eq!(read_alice(&envelope, &sealed), (plaintext(LEN), Ok(())));
            rounds += 1;
        }
        if let Ok(opened) = fs::read(place.path("opened")) {
            assert_eq!(opened, plaintext(LEN));
        }
        for (left, _) in left(&place) {
            fs::remove_file(left).unwrap();
        }
    }
    assert!(rounds > 5, "it was always killed before a file was there");
}
