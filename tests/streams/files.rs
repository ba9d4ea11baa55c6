//! Whole files: what is kept, what is refused, and what is there after a failure.

use std::fs::{self, File, FileTimes, Permissions};
use std::io::{self, Write};
use std::num::NonZero;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use super::ground::*;
use waxseal::kek::local::LocalKek;
use waxseal::store::MemoryStore;
use waxseal::{Aad, Envelope, Error, ErrorKind, FileOptions, Limits, StreamHead};
use waxseal_testing::support::stage::Stage;

/// A directory with a plaintext, and an envelope.
pub(super) struct Place {
    pub(super) dir: tempfile::TempDir,
    pub(super) kek: LocalKek,
    pub(super) envelope: Envelope,
}

impl Place {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let kek = local("kek");
        let envelope = envelope(&kek);
        Self { dir, kek, envelope }
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Puts a plaintext of this length at `name`.
    fn plain(&self, name: &str, len: usize) -> PathBuf {
        fs::write(self.path(name), plaintext(len)).unwrap();
        self.path(name)
    }

    fn seal(&self, from: &Path, to: &Path, options: &FileOptions) -> Result<u64, Error> {
        let options = options.clone().stream(small());
        block_on(self.envelope.encrypt_file(&context("alice"), Aad::from(AAD), from, to, &options))
    }

    fn open(&self, from: &Path, to: &Path, options: &FileOptions) -> Result<u64, Error> {
        block_on(self.envelope.decrypt_file(&context("alice"), Aad::from(AAD), from, to, options))
    }

    /// What is there, sorted.
    pub(super) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.dir.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

type Step = fn(&Place, &Path, &Path, &FileOptions) -> Result<u64, Error>;

fn plain() -> FileOptions {
    FileOptions::default()
}

/// The kind of the operating system's error.
fn io_kind(error: &Error) -> Option<io::ErrorKind> {
    assert_eq!(error.kind(), ErrorKind::Io, "{error}");
    error.cause().and_then(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind)
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o7777
}

#[test]
fn a_file_comes_back_with_its_permissions_and_times() {
    let place = Place::new();
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    for (i, len) in [0, 1, CHUNK - 1, CHUNK, 5 * CHUNK + 77].into_iter().enumerate() {
        for (threads, kept) in [(1, 0o640), (3, 0o600), (2, 0o444), (1, 0o755)] {
            let name = format!("{i}-{threads}-{kept:o}");
            let from = place.plain(&name, len);
            File::options()
                .write(true)
                .open(&from)
                .unwrap()
                .set_times(FileTimes::new().set_modified(then).set_accessed(then))
                .unwrap();
            fs::set_permissions(&from, Permissions::from_mode(kept)).unwrap();
            let (sealed, back) =
                (place.path(&format!("{name}.sealed")), place.path(&format!("{name}.back")));
            let options = plain().threads(NonZero::new(threads).unwrap());
            assert_eq!(place.seal(&from, &sealed, &options).unwrap(), len as u64);
            assert_eq!(place.open(&sealed, &back, &options).unwrap(), len as u64);
            assert_eq!(fs::read(&back).unwrap(), plaintext(len));
            for path in [&sealed, &back] {
                assert_eq!(mode(path), kept, "{}", path.display());
                assert_eq!(fs::metadata(path).unwrap().modified().unwrap(), then);
            }
            // What any other reader makes of it.
            let read = read_alice(&place.envelope, &fs::read(&sealed).unwrap());
            assert_eq!(read, (plaintext(len), Ok(())));
        }
    }
    assert!(place.names().iter().all(|name| !name.contains(".tmp")), "{:?}", place.names());
}

#[test]
fn the_extended_attributes_of_the_user_are_kept_on_request_only() {
    use rustix::fs::{XattrFlags, getxattr, listxattr, setxattr};
    let place = Place::new();
    let from = place.plain("a", 9);
    let values = [("user.note", vec![7; 900]), ("user.empty", vec![]), ("user.b", vec![0, 255])];
    for (name, value) in &values {
        setxattr(&from, *name, value, XattrFlags::empty()).unwrap();
    }
    let names = |path: &Path| {
        let mut names = [0; 4096];
        let len = listxattr(path, &mut names[..]).unwrap();
        let mut names: Vec<_> = names[..len]
            .split(|byte| *byte == 0)
            .map(|name| String::from_utf8(name.to_vec()).unwrap())
            .filter(|name| name.starts_with("user."))
            .collect();
        names.sort();
        names
    };
    for (asked, name) in [(false, "without"), (true, "with")] {
        let options = if asked { plain().extended_attributes() } else { plain() };
        let (sealed, back) = (place.path(name), place.path(&format!("{name}.back")));
        place.seal(&from, &sealed, &options).unwrap();
        place.open(&sealed, &back, &options).unwrap();
        for path in [&sealed, &back] {
            if !asked {
                assert!(names(path).is_empty());
                continue;
            }
            assert_eq!(names(path), ["user.b", "user.empty", "user.note"]);
            for (name, value) in &values {
                let mut buffer = [0; 1000];
                let len = getxattr(path, *name, &mut buffer[..]).unwrap();
                assert_eq!(&buffer[..len], &value[..], "{name}");
            }
        }
    }
}

#[test]
fn a_target_that_exists_is_replaced_only_when_told_and_lets_nobody_else_in() {
    let place = Place::new();
    let (from, to) = (place.plain("a", 2 * CHUNK), place.plain("b", 3));
    let refused = place.seal(&from, &to, &plain()).unwrap_err();
    assert_eq!(io_kind(&refused), Some(io::ErrorKind::AlreadyExists), "{refused}");
    assert!(refused.to_string().contains("/b exists"), "{refused}");
    assert_eq!(fs::read(&to).unwrap(), plaintext(3));
    for (of_source, of_replaced, expected) in
        [(0o644, 0o600, 0o600), (0o600, 0o644, 0o600), (0o640, 0o664, 0o640)]
    {
        fs::set_permissions(&from, Permissions::from_mode(of_source)).unwrap();
        fs::set_permissions(&to, Permissions::from_mode(of_replaced)).unwrap();
        place.seal(&from, &to, &plain().overwrite()).unwrap();
        assert_eq!(mode(&to), expected);
        let read = read_alice(&place.envelope, &fs::read(&to).unwrap());
        assert_eq!(read, (plaintext(2 * CHUNK), Ok(())));
    }
    // Another name of what was replaced keeps it.
    fs::hard_link(&to, place.path("c")).unwrap();
    let sealed = fs::read(&to).unwrap();
    place.seal(&from, &to, &plain().overwrite()).unwrap();
    assert_eq!(fs::read(place.path("c")).unwrap(), sealed);
    assert_ne!(fs::read(&to).unwrap(), sealed);
    assert_eq!(place.names(), ["a", "b", "c"]);
}

#[test]
fn a_target_that_comes_into_being_meanwhile_is_not_overwritten() {
    let place = Place::new();
    let (from, to) = (place.plain("a", 5 * CHUNK), place.path("b"));
    let sealed = place.path("sealed");
    place.seal(&from, &sealed, &plain()).unwrap();
    let meanwhile = {
        let to = to.clone();
        plain().on_progress(move |_| fs::write(&to, "another's").unwrap())
    };
    for (step, source) in [(Place::seal as Step, &from), (Place::open, &sealed)] {
        let refused = step(&place, source, &to, &meanwhile).unwrap_err();
        assert_eq!(io_kind(&refused), Some(io::ErrorKind::AlreadyExists), "{refused}");
        assert_eq!(fs::read(&to).unwrap(), b"another's");
        fs::remove_file(&to).unwrap();
    }
    assert_eq!(place.names(), ["a", "sealed"]);
}

#[test]
fn permissions_and_targets_that_change_meanwhile_are_looked_at_once_more() {
    let place = Place::new();
    let (from, to, kept) = (place.plain("a", 5 * CHUNK), place.plain("b", 3), place.plain("k", 5));
    let set = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    // Of the source, and of what is replaced.
    for changed in [&from, &to] {
        set(&from, 0o644);
        set(&to, 0o644);
        let path = changed.clone();
        let options = plain().overwrite().on_progress(move |_| {
            fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        });
        place.seal(&from, &to, &options).unwrap();
        assert_eq!(mode(&to), 0o600, "{}", changed.display());
    }
    // A link, and another name of the source.
    type Change = fn(&Path, &Path) -> io::Result<()>;
    let changes: [(Change, &PathBuf); 2] =
        [(|from, to| symlink(from, to), &kept), (|from, to| fs::hard_link(from, to), &from)];
    for (change, of) in changes {
        let (path, of) = (to.clone(), of.clone());
        let options = plain().overwrite().on_progress(move |_| {
            fs::remove_file(&path).unwrap();
            change(&of, &path).unwrap();
        });
        place.seal(&from, &to, &options).unwrap_err();
        assert_eq!(place.names(), ["a", "b", "k"]);
        fs::remove_file(&to).unwrap();
        fs::write(&to, "another's").unwrap();
    }
    assert_eq!(fs::read(&from).unwrap(), plaintext(5 * CHUNK));
    assert_eq!(fs::read(&kept).unwrap(), plaintext(5));
}

#[test]
fn a_private_file_is_for_this_user_only_whatever_the_source_says() {
    let place = Place::new();
    let (from, sealed, to) = (place.plain("a", 9), place.path("s"), place.path("b"));
    place.seal(&from, &sealed, &plain()).unwrap();
    fs::set_permissions(&sealed, Permissions::from_mode(0o666)).unwrap();
    let user = fs::metadata(&sealed).unwrap().uid();
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&sealed, Some(12345), Some(12345)).unwrap();
    }
    for options in [plain().private(), plain().private().overwrite()] {
        place.open(&sealed, &to, &options).unwrap();
        assert_eq!((mode(&to), fs::metadata(&to).unwrap().uid()), (0o600, user));
    }
    assert_eq!(fs::read(&to).unwrap(), plaintext(9));
    assert!(format!("{:?}", plain().private()).contains("private: true"));
}

#[test]
fn what_replaces_a_file_is_not_given_to_a_user_who_could_not_read_that_file() {
    let place = Place::new();
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (from, to) = (place.plain("a", 9), place.path("b"));
    std::os::unix::fs::chown(&from, Some(12345), None).unwrap();
    let owner = |path: &Path| fs::metadata(path).unwrap().uid();
    place.seal(&from, &to, &plain()).unwrap();
    assert_eq!(owner(&to), 12345);
    place.seal(&from, &to, &plain().overwrite()).unwrap();
    assert_eq!(owner(&to), 12345);
    std::os::unix::fs::chown(&to, Some(0), None).unwrap();
    fs::set_permissions(&to, Permissions::from_mode(0o600)).unwrap();
    place.seal(&from, &to, &plain().overwrite()).unwrap();
    assert_eq!((owner(&to), mode(&to)), (0, 0o600));
}

#[test]
fn what_is_no_regular_file_is_neither_read_nor_replaced() {
    let place = Place::new();
    let from = place.plain("a", 9);
    let kept = place.plain("kept", 5);
    let [dir, fifo, link, dangling, to_dir] =
        ["dir", "fifo", "link", "dangling", "to-dir"].map(|name| place.path(name));
    fs::create_dir(&dir).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    symlink(&kept, &link).unwrap();
    symlink("nowhere", &dangling).unwrap();
    symlink(&dir, &to_dir).unwrap();
    let names = place.names();
    let devices = ["/dev/stdout", "/dev/null", "/dev/full", "/dev/fd/1"].map(PathBuf::from);
    let elsewhere = ["/", "..", ".", "", "new/", "new/."].map(|name| place.path(name));
    let targets = [&dir, &fifo, &link, &dangling, &to_dir];
    for target in targets.into_iter().chain(&devices).chain(&elsewhere) {
        for options in [plain(), plain().overwrite()] {
            let refused = place.seal(&from, target, &options).unwrap_err();
            assert!(io_kind(&refused).is_none(), "{refused}");
        }
    }
    for source in [&dir, &fifo, &to_dir, &devices[1], &devices[2]] {
        for step in [Place::seal as Step, Place::open] {
            let refused = step(&place, source, &place.path("new"), &plain()).unwrap_err();
            assert!(io_kind(&refused).is_none(), "{refused}");
        }
    }
    for (source, target) in [("missing", "new"), ("dangling", "new"), ("a", "missing/new")] {
        let (source, target) = (place.path(source), place.path(target));
        let refused = place.seal(&source, &target, &plain()).unwrap_err();
        assert_eq!(io_kind(&refused), Some(io::ErrorKind::NotFound), "{refused}");
    }
    assert_eq!((place.names(), fs::read(&kept).unwrap()), (names, plaintext(5)));
    // A link to a source is followed, and one on the way to the target too.
    symlink(&from, place.path("to-a")).unwrap();
    place.seal(&place.path("to-a"), &to_dir.join("sealed"), &plain()).unwrap();
    place.open(&dir.join("sealed"), &place.path("new"), &plain()).unwrap();
    assert_eq!(fs::read(place.path("new")).unwrap(), plaintext(9));
}

#[test]
fn a_file_is_never_its_own_target() {
    let place = Place::new();
    let from = place.plain("a", 2 * CHUNK);
    fs::hard_link(&from, place.path("hard")).unwrap();
    symlink(&from, place.path("soft")).unwrap();
    for (source, target) in [("a", "a"), ("a", "hard"), ("hard", "a"), ("soft", "a")] {
        for options in [plain(), plain().overwrite()] {
            let refused = place.seal(&place.path(source), &place.path(target), &options);
            let refused = refused.unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::InvalidOption, "{source} {target}: {refused}");
        }
    }
    assert_eq!(fs::read(&from).unwrap(), plaintext(2 * CHUNK));
}

#[test]
fn a_directory_that_cannot_be_written_is_an_error_before_anything_is_read() {
    let place = Place::new();
    let from = place.plain("a", 9);
    // Root may write everywhere but there.
    let is_root = rustix::process::geteuid().is_root();
    let to = if is_root { PathBuf::from("/proc/self/new") } else { place.path("ro/new") };
    if !is_root {
        fs::create_dir(place.path("ro")).unwrap();
        fs::set_permissions(place.path("ro"), Permissions::from_mode(0o555)).unwrap();
    }
    let read = Arc::new(AtomicU64::new(0));
    let count = read.clone();
    let options = plain().on_progress(move |_| {
        count.fetch_add(1, SeqCst);
    });
    let refused = place.seal(&from, &to, &options).unwrap_err();
    assert!(io_kind(&refused).is_some(), "{refused}");
    assert_eq!(read.load(SeqCst), 0);
}

#[test]
fn a_source_that_changes_while_it_is_read_gives_no_target() {
    let place = Place::new();
    type Change = fn(&Path);
    let changes: [(&str, Change); 4] = [
        ("grows", |path| {
            File::options().append(true).open(path).unwrap().write_all(b"more").unwrap();
        }),
        ("shrinks", |path| File::options().write(true).open(path).unwrap().set_len(9).unwrap()),
        ("is emptied", |path| drop(File::create(path).unwrap())),
        ("is written over", |path| {
            // The clock of the file system ticks every few milliseconds.
            std::thread::sleep(Duration::from_millis(50));
            File::options().write(true).open(path).unwrap().write_all(b"other").unwrap();
        }),
    ];
    for (name, change) in changes {
        for at in [1, 3, 5] {
            for threads in [1, 3] {
                let (from, to) = (place.plain("a", 5 * CHUNK + 9), place.path("b"));
                let (calls, path) = (AtomicU64::new(0), from.clone());
                let options =
                    plain().threads(NonZero::new(threads).unwrap()).on_progress(move |_| {
                        if calls.fetch_add(1, SeqCst) + 1 == at {
                            change(&path);
                        }
                    });
                let refused = place.seal(&from, &to, &options).unwrap_err();
                assert!(refused.to_string().contains("changed while"), "{name}: {refused}");
                assert_eq!(place.names(), ["a"], "{name}");
            }
        }
    }
    // The kernel says 0 bytes, and has some.
    let refused = place.seal(Path::new("/proc/self/status"), &place.path("b"), &plain());
    assert!(refused.unwrap_err().to_string().contains("changed while"));
    assert_eq!(place.names(), ["a"]);
}

#[test]
fn a_stream_that_is_refused_anywhere_leaves_no_plaintext_and_what_was_there() {
    let place = Place::new();
    let (from, sealed, to) = (place.plain("a", 4 * CHUNK + 9), place.path("s"), place.path("b"));
    place.seal(&from, &sealed, &plain()).unwrap();
    let good = fs::read(&sealed).unwrap();
    let head = head_len(&good);
    for options in [plain(), plain().overwrite(), plain().threads(NonZero::new(3).unwrap())] {
        for border in (0..=4).map(|chunk| head + chunk * SEALED_CHUNK).chain([good.len() - 1]) {
            for at in [border - 1, border, border + 1].into_iter().filter(|at| *at < good.len()) {
                let mut flipped = good.clone();
                flipped[at] ^= 1;
                for bad in [&flipped[..], &good[..at]] {
                    fs::write(&sealed, bad).unwrap();
                    let refused = place.open(&sealed, &to, &options).unwrap_err();
                    let kinds = [ErrorKind::Invalid, ErrorKind::Malformed];
                    assert!(kinds.contains(&refused.kind()), "{at}: {refused}");
                    assert!(refused.to_string().contains("/s"), "it names the file: {refused}");
                    assert_eq!(place.names(), ["a", "s"]);
                    fs::write(&to, "kept").unwrap();
                    place.open(&sealed, &to, &plain().overwrite()).unwrap_err();
                    assert_eq!(fs::read(&to).unwrap(), b"kept");
                    fs::remove_file(&to).unwrap();
                }
            }
        }
    }
    fs::write(&sealed, b"no stream").unwrap();
    assert_eq!(place.open(&sealed, &to, &plain()).unwrap_err().kind(), ErrorKind::NotSealed);
    assert_eq!(place.names(), ["a", "s"]);
}

#[test]
fn nobody_else_can_read_the_plaintext_before_its_end_is_authentic() {
    let place = Place::new();
    let from = place.plain("a", 6 * CHUNK);
    fs::set_permissions(&from, Permissions::from_mode(0o644)).unwrap();
    let sealed = place.path("s");
    place.seal(&from, &sealed, &plain()).unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (dir, found) = (place.dir.path().to_owned(), seen.clone());
    let options = plain().on_progress(move |bytes| {
        let temporary = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap()).find(|entry| {
            let name = entry.file_name().into_string().unwrap();
            name.starts_with(".waxseal-") && name.ends_with(".tmp")
        });
        let of = temporary.unwrap().metadata().unwrap();
        found.lock().unwrap().push((bytes, of.mode() & 0o777, of.len()));
    });
    place.open(&sealed, &place.path("b"), &options).unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen.iter().all(|(bytes, mode, len)| *mode == 0o600 && len == bytes), "{seen:?}");
    // What was reported: chunk by chunk, up to the end.
    let bytes: Vec<_> = seen.iter().map(|(bytes, ..)| *bytes).collect();
    assert_eq!(bytes, (1..=6).map(|chunk| chunk * CHUNK as u64).collect::<Vec<_>>());
    assert_eq!(mode(&place.path("b")), 0o644);
}

#[test]
fn a_caller_that_panics_or_gives_up_leaves_nothing_behind() {
    let place = Place::new();
    let (from, to) = (place.plain("a", 5 * CHUNK), place.path("b"));
    for threads in [1, 3] {
        let options =
            plain().threads(NonZero::new(threads).unwrap()).on_progress(|_| panic!("by the test"));
        let panicked = catch_unwind(AssertUnwindSafe(|| place.seal(&from, &to, &options)));
        assert!(panicked.is_err());
        assert_eq!(place.names(), ["a"]);
    }
    // The key service does not answer, and the caller leaves.
    let stage = Stage::new(Limits::default());
    stage.kek.wait_for(|| Box::pin(std::future::pending()));
    let options = plain();
    let aad = Aad::from(AAD);
    let mut call = Box::pin(stage.envelope.encrypt_file(&stage.alice, aad, &from, &to, &options));
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(call.as_mut().poll(&mut cx).is_pending());
    assert_eq!(place.names(), ["a"]);
    drop(call);
    assert_eq!(place.names(), ["a"]);
}

#[test]
fn a_stream_that_ends_by_a_revocation_leaves_no_target() {
    let place = Place::new();
    let (from, sealed, to) = (place.plain("a", 5 * CHUNK), place.path("s"), place.path("b"));
    place.seal(&from, &sealed, &plain()).unwrap();
    for (step, source) in [(Place::seal as Step, &from), (Place::open, &sealed)] {
        let envelope = place.envelope.clone();
        let options = plain().on_progress(move |_| envelope.evict_all());
        let expired = step(&place, source, &to, &options).unwrap_err();
        assert_eq!(expired.kind(), ErrorKind::Expired);
        assert_eq!(place.names(), ["a", "s"]);
    }
}

#[test]
fn a_key_that_was_looked_up_before_serves_where_blocking_is_allowed() {
    let place = Place::new();
    let (from, sealed, to) = (place.plain("a", 3 * CHUNK), place.path("s"), place.path("b"));
    let (alice, aad) = (context("alice"), Aad::from(AAD));
    let encryptor = block_on(place.envelope.stream_encryptor(&alice, aad, small())).unwrap();
    assert_eq!(encryptor.encrypt_file(&from, &sealed, &plain()).unwrap(), 3 * CHUNK as u64);
    let bytes = fs::read(&sealed).unwrap();
    let head = StreamHead::read(&bytes[..]).unwrap();
    assert_eq!(head.chunk_size(), CHUNK, "by the options of the encryptor");
    let decryptor = block_on(place.envelope.stream_decryptor(&alice, aad, &head)).unwrap();
    // The head was rewrapped meanwhile, and then it is another stream.
    let other = local("a-kek-with-a-longer-name");
    let rewrapping = Envelope::builder().wrap_with(other).unwrap_with(place.kek.clone());
    let rewrapping = rewrapping.build().unwrap();
    let new_head = block_on(rewrapping.rewrap_head(&alice, &head)).unwrap();
    assert_ne!(new_head.as_bytes(), head.as_bytes());
    fs::write(&sealed, [new_head.as_bytes(), &bytes[head.len()..]].concat()).unwrap();
    decryptor.clone().decrypt_file(&sealed, &to, &plain()).unwrap();
    assert_eq!(fs::read(&to).unwrap(), plaintext(3 * CHUNK));
    fs::write(&sealed, sealed_by(&place.envelope, small(), b"another")).unwrap();
    let refused = decryptor.decrypt_file(&sealed, place.path("c"), &plain()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert_eq!(place.names(), ["a", "b", "s"]);
}

#[cfg(feature = "tokio")]
#[::tokio::test]
async fn files_are_encrypted_and_decrypted_from_async_code() {
    let place = Place::new();
    let (from, sealed, to) = (place.plain("a", 3 * CHUNK), place.path("s"), place.path("b"));
    let (alice, aad) = (context("alice"), Aad::from(AAD));
    let encryptor = place.envelope.stream_encryptor(&alice, aad, small()).await.unwrap();
    let target = sealed.clone();
    let work = move || encryptor.encrypt_file(from, target, &plain());
    assert_eq!(::tokio::task::spawn_blocking(work).await.unwrap().unwrap(), 3 * CHUNK as u64);
    let head = StreamHead::read(File::open(&sealed).unwrap()).unwrap();
    let decryptor = place.envelope.stream_decryptor(&alice, aad, &head).await.unwrap();
    let target = to.clone();
    let work = move || decryptor.decrypt_file(sealed, target, &plain());
    assert_eq!(::tokio::task::spawn_blocking(work).await.unwrap().unwrap(), 3 * CHUNK as u64);
    assert_eq!(fs::read(&to).unwrap(), plaintext(3 * CHUNK));
}

#[test]
fn a_compact_file_needs_a_key_store() {
    let place = Place::new();
    let (from, to) = (place.plain("a", 9), place.path("b"));
    let compact = plain().stream(small().compact());
    let (alice, aad) = (context("alice"), Aad::from(AAD));
    let seal =
        |envelope: &Envelope| block_on(envelope.encrypt_file(&alice, aad, &from, &to, &compact));
    assert_eq!(seal(&place.envelope).unwrap_err().kind(), ErrorKind::InvalidOption);
    let stored = Envelope::builder().wrap_with(place.kek.clone()).key_store(MemoryStore::new());
    let stored = stored.build().unwrap();
    seal(&stored).unwrap();
    block_on(stored.decrypt_file(&alice, aad, &to, place.path("c"), &plain())).unwrap();
    assert_eq!(fs::read(place.path("c")).unwrap(), plaintext(9));
}

#[test]
fn names_may_be_as_long_as_the_file_system_has_them_and_need_not_be_utf_8() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let from = place.plain("a", 9);
    let long = place.path(&"n".repeat(255));
    let strange = place.dir.path().join(std::ffi::OsStr::from_bytes(b"\xFF\n\x1b[2J"));
    for to in [&long, &strange] {
        place.seal(&from, to, &plain()).unwrap();
        let error = place.seal(&from, to, &plain()).unwrap_err().to_string();
        assert!(!error.contains(['\n', '\x1b']), "{error:?}");
        place.open(to, &place.path("back"), &plain().overwrite()).unwrap();
        assert_eq!(fs::read(place.path("back")).unwrap(), plaintext(9));
    }
    let too_long = place.path(&"n".repeat(256));
    assert!(place.seal(&from, &too_long, &plain()).is_err());
}

#[test]
fn of_many_who_write_one_target_one_wins_and_every_file_is_whole() {
    let place = Place::new();
    let sources: Vec<_> = (0..8).map(|i| place.plain(&format!("a{i}"), i * CHUNK + 5)).collect();
    let all = |to: &Path, options: &FileOptions| -> Vec<Result<u64, Error>> {
        std::thread::scope(|scope| {
            let place = &place;
            let calls: Vec<_> = sources
                .iter()
                .map(|from| scope.spawn(move || place.seal(from, to, options)))
                .collect();
            calls.into_iter().map(|call| call.join().unwrap()).collect()
        })
    };
    let is_one_of_them = |to: &Path| {
        let (read, whole) = read_alice(&place.envelope, &fs::read(to).unwrap());
        assert_eq!(whole, Ok(()));
        assert!((0..8).any(|i| plaintext(i * CHUNK + 5) == read));
        read.len() as u64
    };
    for round in 0..10 {
        let to = place.path(&format!("b{round}"));
        let (won, lost): (Vec<_>, Vec<_>) = all(&to, &plain()).into_iter().partition(Result::is_ok);
        assert_eq!(won.len(), 1);
        for lost in lost {
            assert_eq!(io_kind(&lost.unwrap_err()), Some(io::ErrorKind::AlreadyExists));
        }
        assert_eq!(is_one_of_them(&to), *won[0].as_ref().unwrap());
        assert!(all(&to, &plain().overwrite()).iter().all(Result::is_ok));
        is_one_of_them(&to);
    }
    assert_eq!(place.names().len(), 8 + 10);
}

/// One more user may read, which the mode shows as bits of the group.
fn access_list() -> Vec<u8> {
    let entries = [(0x01, 6, u32::MAX), (0x02, 4, 12345), (0x04, 0, u32::MAX)];
    let entries = entries.into_iter().chain([(0x10, 4, u32::MAX), (0x20, 0, u32::MAX)]);
    let mut list = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        let (tag, permissions): (u16, u16) = (tag, permissions);
        list.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        list.extend(id.to_le_bytes());
    }
    list
}

#[test]
fn an_access_list_lets_nobody_in_who_was_out_where_it_is_gone() {
    use rustix::fs::{XattrFlags, setxattr};
    let place = Place::new();
    let (from, to, list) = (place.plain("a", 9), place.path("b"), access_list());
    let give = |path: &Path| setxattr(path, "system.posix_acl_access", &list, XattrFlags::empty());
    if give(&from) == Err(rustix::io::Errno::NOTSUP) {
        // A file system without such lists has no such file.
        return;
    }
    assert_eq!(mode(&from), 0o640);
    place.seal(&from, &to, &plain()).unwrap();
    assert_eq!(mode(&to), 0o600);
    // Of what is replaced, too.
    fs::set_permissions(place.plain("c", 9), Permissions::from_mode(0o644)).unwrap();
    give(&to).unwrap();
    assert_eq!(mode(&to), 0o640);
    place.seal(&place.path("c"), &to, &plain().overwrite()).unwrap();
    assert_eq!(mode(&to), 0o600);
}

/// The mode of a new file is then the mask of the list: with the bits of the group, more users than
/// the group could read it.
#[test]
fn an_access_list_that_a_directory_gives_to_its_new_files_lets_nobody_in() {
    use rustix::fs::{XattrFlags, setxattr};
    let place = Place::new();
    let (from, dir) = (place.plain("a", 9), place.path("d"));
    fs::set_permissions(&from, Permissions::from_mode(0o640)).unwrap();
    let sealed = place.path("s");
    place.seal(&from, &sealed, &plain()).unwrap();
    assert_eq!(mode(&sealed), 0o640);
    fs::create_dir(&dir).unwrap();
    let flags = XattrFlags::empty();
    if setxattr(&dir, "system.posix_acl_default", &access_list(), flags).is_err() {
        // A file system without such lists.
        return;
    }
    for (step, source, name) in [(Place::seal as Step, &from, "b"), (Place::open, &sealed, "c")] {
        for options in [plain(), plain().overwrite()] {
            step(&place, source, &dir.join(name), &options).unwrap();
            assert_eq!(mode(&dir.join(name)), 0o600, "{name}");
        }
    }
}
