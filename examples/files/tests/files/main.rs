//! The binary, as a user runs it.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod terminal;
mod verify;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant, SystemTime};

const DONE: Option<i32> = Some(0);
const FAILED: Option<i32> = Some(1);
const REFUSED: Option<i32> = Some(2);

/// A directory with a key.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
        assert_eq!(place.command(["key", "key"]).status().unwrap().code(), DONE);
        place
    }

    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.path().join(name)
    }

    fn command<A: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_waxseal-files"));
        command.args(arguments).current_dir(self.0.path()).stdin(Stdio::null());
        command
    }

    /// `encrypt` or `decrypt` with the key, and what follows.
    fn with_key(&self, what: &str, rest: &[&str]) -> Command {
        self.command([&[what, "--key", "key", "--context", "tenant=acme"], rest].concat())
    }

    fn run(&self, what: &str, rest: &[&str]) -> (Option<i32>, String) {
        told(&self.with_key(what, rest).output().unwrap())
    }

    fn piped(&self, what: &str, rest: &[&str], input: &[u8]) -> Output {
        let mut process = self
            .with_key(what, rest)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut to = process.stdin.take().unwrap();
        let input = input.to_vec();
        // It may end before it has read all.
        let feeder = std::thread::spawn(move || drop(to.write_all(&input)));
        let output = process.wait_with_output().unwrap();
        feeder.join().unwrap();
        output
    }
}

fn told(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8(output.stderr.clone()).unwrap())
}

/// What is at a path of a tree, as far as it has to come back.
#[derive(PartialEq, Eq, Debug)]
enum There {
    Directory(u32, SystemTime),
    File(u32, SystemTime, Vec<u8>),
    Link(PathBuf),
}

fn tree(root: &Path) -> BTreeMap<PathBuf, There> {
    let mut all = BTreeMap::new();
    let mut left = vec![PathBuf::new()];
    while let Some(path) = left.pop() {
        let place = root.join(&path);
        let of = fs::symlink_metadata(&place).unwrap();
        let (mode, modified) = (of.mode() & 0o7777, of.modified().unwrap());
        let there = if of.is_dir() {
            let entries = fs::read_dir(&place).unwrap();
            left.extend(entries.map(|entry| path.join(entry.unwrap().file_name())));
            There::Directory(mode, modified)
        } else if of.is_symlink() {
            There::Link(fs::read_link(&place).unwrap())
        } else {
            There::File(mode, modified, fs::read(&place).unwrap())
        };
        all.insert(path, there);
    }
    all
}

fn plaintext(len: usize) -> Vec<u8> {
    (0..len).map(|i| u8::try_from((i ^ (i >> 8)) % 251).unwrap()).collect()
}

/// A tree with everything that a tree can have.
fn plant(root: &Path) {
    fs::create_dir(root).unwrap();
    let write = |name: &Path, bytes: &[u8], mode: u32| {
        fs::write(root.join(name), bytes).unwrap();
        fs::set_permissions(root.join(name), Permissions::from_mode(mode)).unwrap();
    };
    write(Path::new("empty"), b"", 0o644);
    write(Path::new("large"), &plaintext(300_000), 0o600);
    write(Path::new("-"), b"dash", 0o444);
    write(Path::new(&"n".repeat(255)), b"long", 0o640);
    write(Path::new(OsStr::from_bytes(b"\xFF\xFE\n")), b"strange", 0o644);
    symlink("large", root.join("link")).unwrap();
    symlink(OsStr::from_bytes(b"/no/where/\xFF"), root.join("dangling")).unwrap();
    let deep: PathBuf = (0..60).map(|i| format!("level {i} {}", "x".repeat(40))).collect();
    fs::create_dir_all(root.join(&deep)).unwrap();
    fs::write(root.join(&deep).join("deep"), b"deep").unwrap();
    fs::create_dir(root.join("no files")).unwrap();
    fs::create_dir(root.join("read only")).unwrap();
    fs::write(root.join("read only/file"), b"text").unwrap();
    let then = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 5000);
    let times = fs::FileTimes::new().set_modified(then);
    File::open(root.join("large")).unwrap().set_times(times).unwrap();
    File::open(root.join("read only")).unwrap().set_times(times).unwrap();
    fs::set_permissions(root.join("read only"), Permissions::from_mode(0o555)).unwrap();
}

/// So that the directory can be removed by others than root.
fn unlock(root: &Path) {
    fs::set_permissions(root.join("read only"), Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_tree_comes_back_as_it_was_and_a_second_run_does_nothing() {
    let place = Place::new();
    plant(&place.path("plain"));
    for rest in [&[][..], &["--threads", "3"]] {
        for (what, from, to) in [("encrypt", "plain", "sealed"), ("decrypt", "sealed", "back")] {
            let run = || place.run(what, &[&[from, to], rest].concat());
            assert_eq!(run(), (DONE, String::new()), "{what}");
            let inodes = |name: &str| -> Vec<u64> {
                let paths = tree(&place.path(name)).into_keys();
                paths
                    .map(|path| fs::symlink_metadata(place.path(name).join(path)).unwrap().ino())
                    .collect()
            };
            let before = inodes(to);
            assert_eq!(run(), (DONE, String::new()), "{what} again");
            assert_eq!(inodes(to), before);
        }
        let plain = tree(&place.path("plain"));
        assert_eq!(plain.len(), 62 + 10);
        let back = tree(&place.path("back"));
        assert_eq!(back.keys().collect::<Vec<_>>(), plain.keys().collect::<Vec<_>>());
        for (path, there) in &plain {
            assert_eq!(&back[path], there, "{}", path.display());
        }
        // The same names, and nothing else that is readable. Links too.
        for (path, there) in tree(&place.path("sealed")) {
            match (there, &plain[&path]) {
                (There::Directory(..), There::Directory(..)) => {}
                (There::File(mode, modified, _), There::File(of, then, _)) => {
                    assert_eq!((mode, modified), (*of, *then));
                }
                (There::File(_, _, bytes), There::Link(text)) => {
                    let text = text.as_os_str().as_bytes();
                    assert!(!bytes.windows(text.len()).any(|part| part == text));
                }
                (there, was) => panic!("{}: {there:?} for {was:?}", path.display()),
            }
        }
        for root in ["sealed", "back"].map(|name| place.path(name)) {
            unlock(&root);
            fs::remove_dir_all(root).unwrap();
        }
    }
    unlock(&place.path("plain"));
}

#[test]
fn a_run_that_was_killed_goes_on_where_it_was() {
    let place = Place::new();
    fs::create_dir(place.path("plain")).unwrap();
    for i in 0..120 {
        let dir = place.path("plain").join(format!("{}", i % 7));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join(format!("{i}")), plaintext(i * 1000)).unwrap();
    }
    let files = |root: &str| -> BTreeMap<PathBuf, u64> {
        let root = place.path(root);
        if !root.exists() {
            return BTreeMap::new();
        }
        let all = tree(&root).into_iter();
        let files = all.filter(|(_, there)| matches!(there, There::File(..)));
        files
            .map(|(path, _)| (path.clone(), fs::metadata(root.join(path)).unwrap().ino()))
            .collect()
    };
    let is_left = |path: &Path| path.to_string_lossy().contains(".waxseal-");
    for (what, from, to) in [("encrypt", "plain", "sealed"), ("decrypt", "sealed", "back")] {
        for killed_at in [3, 40, 80, 119] {
            let mut process = place.with_key(what, &[from, to]).spawn().unwrap();
            let began = Instant::now();
            // What is there when it is looked at may be gone a moment later.
            while count(&place.path(to)) < killed_at && process.try_wait().unwrap().is_none() {
                assert!(began.elapsed() < Duration::from_secs(120));
            }
            process.kill().unwrap();
            process.wait().unwrap();
            let there = files(to);
            let (code, text) = place.run(what, &[from, to]);
            assert_eq!(code, DONE, "{text}");
            let now = files(to);
            for (path, inode) in there.iter().filter(|(path, _)| !is_left(path)) {
                assert_eq!(now[path], *inode, "{} was done twice", path.display());
            }
            let names = |of: &str| -> Vec<PathBuf> {
                files(of).into_keys().filter(|path| !is_left(path)).collect()
            };
            assert_eq!(names(to), names("plain"));
            if killed_at != 119 {
                fs::remove_dir_all(place.path(to)).unwrap();
            }
        }
    }
    for (path, there) in tree(&place.path("plain")) {
        assert_eq!(tree(&place.path("back"))[&path], there, "{}", path.display());
    }
}

/// The files of a tree that another process writes.
fn count(root: &Path) -> usize {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
}

#[test]
fn what_a_killed_run_left_is_not_read_and_that_is_said() {
    let place = Place::new();
    fs::create_dir(place.path("plain")).unwrap();
    fs::write(place.path("plain/a"), "a").unwrap();
    fs::write(place.path("plain/.waxseal-0123.tmp"), "half").unwrap();
    let (code, text) = place.run("encrypt", &["plain", "sealed"]);
    assert_eq!(code, DONE);
    assert!(text.contains(".waxseal-0123.tmp: of a killed run, not read"), "{text}");
    assert!(!place.path("sealed/.waxseal-0123.tmp").exists());
}

#[test]
fn what_is_there_is_known_by_its_content_and_not_overwritten_without_being_told() {
    let place = Place::new();
    fs::create_dir(place.path("plain")).unwrap();
    for name in ["a", "b", "c", "d"] {
        fs::write(place.path("plain").join(name), name.repeat(1000)).unwrap();
    }
    symlink("a", place.path("plain/e")).unwrap();
    assert_eq!(place.run("encrypt", &["plain", "sealed"]).0, DONE);
    let sealed = |name: &str| place.path("sealed").join(name);
    // Cut, exchanged for another file of the tree, no stream at all, and of an older source.
    let whole = fs::read(sealed("a")).unwrap();
    fs::write(sealed("a"), &whole[..whole.len() - 1]).unwrap();
    fs::copy(sealed("c"), sealed("b")).unwrap();
    fs::write(sealed("c"), "something else").unwrap();
    fs::write(place.path("plain/d"), "new").unwrap();
    fs::remove_file(place.path("plain/e")).unwrap();
    symlink("b", place.path("plain/e")).unwrap();
    let before = tree(&place.path("sealed"));
    let (code, text) = place.run("encrypt", &["plain", "sealed"]);
    assert_eq!(code, FAILED);
    for (name, says) in [
        ("a", "does not open"),
        ("b", "does not open"),
        ("c", "does not open (not a sealed value"),
        ("d", "has another version of the file"),
        ("e", "has another version of the link"),
    ] {
        let line = text.lines().find(|line| line.contains(&format!("sealed/{name} exists and")));
        assert!(line.is_some_and(|line| line.contains(says)), "{name}: {text}");
    }
    assert!(text.contains("5 could not be done"), "{text}");
    assert_eq!(tree(&place.path("sealed")), before);
    assert_eq!(place.run("encrypt", &["--overwrite", "plain", "sealed"]), (DONE, String::new()));

    assert_eq!(place.run("decrypt", &["sealed", "back"]), (DONE, String::new()));
    let back = |name: &str| place.path("back").join(name);
    // As long, and with the same time, but another content.
    let modified = fs::metadata(back("a")).unwrap().modified().unwrap();
    fs::write(back("a"), "b".repeat(1000)).unwrap();
    let times = fs::FileTimes::new().set_modified(modified);
    File::open(back("a")).unwrap().set_times(times).unwrap();
    fs::write(back("b"), "").unwrap();
    fs::remove_file(back("e")).unwrap();
    fs::write(back("e"), "a file").unwrap();
    let before = tree(&place.path("back"));
    let (code, text) = place.run("decrypt", &["sealed", "back"]);
    assert_eq!(code, FAILED);
    for says in [
        "back/a exists and has another content",
        "back/b exists and has another content",
        "back/e exists and is something else",
    ] {
        assert!(text.contains(says), "{text}");
    }
    assert_eq!(tree(&place.path("back")), before);
    assert_eq!(place.run("decrypt", &["--overwrite", "sealed", "back"]), (DONE, String::new()));
    let (plain, back) = (tree(&place.path("plain")), tree(&place.path("back")));
    assert!(
        plain
            .iter()
            .filter(|(path, _)| *path != Path::new(""))
            .all(|(path, there)| &back[path] == there)
    );
}

/// In a container each run may have the same process id.
#[test]
fn a_link_is_replaced_also_beside_what_a_killed_run_of_the_same_process_id_left() {
    let place = Place::new();
    for dir in ["plain", "back"] {
        fs::create_dir(place.path(dir)).unwrap();
    }
    symlink("a", place.path("plain/link")).unwrap();
    symlink("other", place.path("back/link")).unwrap();
    assert_eq!(place.run("encrypt", &["plain", "sealed"]).0, DONE);
    let own = place.with_key("decrypt", &["--overwrite", "sealed", "back"]);
    let mut shell = Command::new("sh");
    shell
        .args(["-c", "ln -s left back/.waxseal-$$.tmp && exec \"$0\" \"$@\""])
        .arg(own.get_program())
        .args(own.get_args())
        .current_dir(place.0.path())
        .stdin(Stdio::null());
    assert_eq!(told(&shell.output().unwrap()), (DONE, String::new()));
    assert_eq!(fs::read_link(place.path("back/link")).unwrap(), Path::new("a"));
    assert_eq!(count(&place.path("back")), 2, "the link, and what was left");
}

#[test]
fn a_directory_with_the_name_of_a_temporary_file_is_no_leftover() {
    let place = Place::new();
    fs::create_dir_all(place.path("plain/.waxseal-0.tmp")).unwrap();
    fs::write(place.path("plain/.waxseal-0.tmp/a"), "a").unwrap();
    assert_eq!(place.run("encrypt", &["plain", "sealed"]), (DONE, String::new()));
    assert_eq!(place.run("decrypt", &["sealed", "back"]), (DONE, String::new()));
    assert_eq!(fs::read(place.path("back/.waxseal-0.tmp/a")).unwrap(), b"a");
}

#[test]
fn a_sealed_tree_that_was_changed_gives_its_other_files() {
    let place = Place::new();
    fs::create_dir_all(place.path("plain/sub")).unwrap();
    for name in ["a", "b", "c", "sub/d"] {
        fs::write(place.path("plain").join(name), name.repeat(1000)).unwrap();
    }
    symlink("a", place.path("plain/link")).unwrap();
    assert_eq!(place.run("encrypt", &["plain", "sealed"]).0, DONE);
    let sealed = |name: &str| place.path("sealed").join(name);
    // Exchanged, moved, cut, put in the place of a link, and a link that the run did not make.
    fs::rename(sealed("a"), sealed("link")).unwrap();
    fs::rename(sealed("sub/d"), sealed("d")).unwrap();
    let whole = fs::read(sealed("c")).unwrap();
    fs::write(sealed("c"), &whole[..whole.len() - 1]).unwrap();
    symlink("/etc/passwd", sealed("planted")).unwrap();
    fs::write(sealed("\n\x1b[2J"), "a name that is not text").unwrap();
    let (code, text) = place.run("decrypt", &["sealed", "back"]);
    assert_eq!(code, FAILED);
    for name in ["sealed/link", "sealed/d", "sealed/c", "sealed/planted", r"sealed/\n\u{1b}[2J"] {
        assert!(text.contains(name), "{name}: {text}");
    }
    assert!(!text.contains('\x1b'), "a name moves the cursor");
    let back = tree(&place.path("back"));
    let names: Vec<_> = back.keys().map(|path| path.to_string_lossy()).collect();
    assert_eq!(names, ["", "b", "sub"]);
    assert_eq!(fs::read(place.path("back/b")).unwrap(), "b".repeat(1000).as_bytes());
}

#[test]
fn a_link_in_the_target_does_not_lead_out_of_it() {
    let place = Place::new();
    fs::create_dir_all(place.path("plain/dir")).unwrap();
    fs::create_dir_all(place.path("outside")).unwrap();
    fs::write(place.path("plain/dir/a"), "a").unwrap();
    fs::create_dir(place.path("sealed")).unwrap();
    symlink(place.path("outside"), place.path("sealed/dir")).unwrap();
    for rest in [&["plain", "sealed"][..], &["--overwrite", "plain", "sealed"]] {
        let (code, text) = place.run("encrypt", rest);
        assert_eq!(code, FAILED);
        assert!(text.contains("sealed/dir is not a directory"), "{text}");
        assert_eq!(count(&place.path("outside")), 0);
    }
}

#[test]
fn what_is_neither_file_nor_directory_nor_link_is_reported() {
    let place = Place::new();
    fs::create_dir(place.path("plain")).unwrap();
    fs::write(place.path("plain/a"), "a").unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    let fifo = place.path("plain/fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let (code, text) = place.run("encrypt", &["plain", "sealed"]);
    assert_eq!(code, FAILED);
    assert!(text.contains("plain/fifo: is neither a file nor"), "{text}");
    assert!(place.path("sealed/a").exists());
}

#[test]
fn bytes_go_through_pipes_and_between_pipes_and_files() {
    let place = Place::new();
    for len in [0, 1, 65_536, 300_000] {
        let plain = plaintext(len);
        let sealed = place.piped("encrypt", &["-", "-"], &plain);
        assert_eq!(told(&sealed), (DONE, String::new()));
        let back = place.piped("decrypt", &["--threads", "2", "-", "-"], &sealed.stdout);
        assert_eq!((told(&back), back.stdout), ((DONE, String::new()), plain.clone()));
        // From a pipe to a file and back.
        let to_file = place.piped("encrypt", &["--overwrite", "-", "sealed"], &plain);
        assert_eq!(told(&to_file), (DONE, String::new()));
        let back = place.piped("decrypt", &["sealed", "-"], b"");
        assert_eq!((told(&back), back.stdout), ((DONE, String::new()), plain.clone()));
        let to_file = place.piped("decrypt", &["--overwrite", "-", "back"], &sealed.stdout);
        assert_eq!(told(&to_file), (DONE, String::new()));
        assert_eq!(fs::read(place.path("back")).unwrap(), plain);
        // One file by its own name.
        let (code, text) = place.run("decrypt", &["--overwrite", "sealed", "back"]);
        assert_eq!((code, &*text, fs::read(place.path("back")).unwrap()), (DONE, "", plain));
    }
    let sealed = place.piped("encrypt", &["-", "-", "--aad", "a name"], &plaintext(200_000)).stdout;
    for (rest, cut) in [(&["-", "-", "--aad", "a name"][..], 1), (&["-", "-"], 0)] {
        let refused = place.piped("decrypt", rest, &sealed[..sealed.len() - cut]);
        let (code, text) = told(&refused);
        assert_eq!(code, FAILED);
        assert!(text.contains("what was written is not the whole"), "{text}");
        assert!(plaintext(200_000).starts_with(&refused.stdout));
    }
    for target in ["-", "new"] {
        let (code, _) = told(&place.piped("decrypt", &["-", target], b"no stream"));
        assert_eq!(code, FAILED);
    }
    assert!(!place.path("new").exists());
}

#[test]
fn a_pipe_with_a_name_is_read_and_no_device_is_replaced() {
    let place = Place::new();
    let fifo = place.path("fifo");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let feeder = {
        let fifo = fifo.clone();
        std::thread::spawn(move || fs::write(fifo, plaintext(200_000)).unwrap())
    };
    assert_eq!(place.run("encrypt", &["fifo", "sealed"]), (DONE, String::new()));
    feeder.join().unwrap();
    let back = place.piped("decrypt", &["sealed", "-"], b"");
    assert_eq!((told(&back), back.stdout), ((DONE, String::new()), plaintext(200_000)));
    for target in ["fifo", "/dev/null"] {
        for source in ["sealed", "-"] {
            let rest = ["--overwrite", source, target];
            let (code, text) = told(&place.piped("decrypt", &rest, b""));
            assert_eq!(code, FAILED);
            assert!(text.contains("not a regular file"), "{text}");
            assert!(!fs::symlink_metadata(place.path(target)).unwrap().is_file());
        }
    }
}

#[test]
fn a_pipe_that_nobody_reads_any_more_is_an_error() {
    let place = Place::new();
    let mut process = place
        .with_key("encrypt", &["-", "-"])
        .stdin(File::open("/dev/zero").unwrap())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut some = [0; 1000];
    process.stdout.take().unwrap().read_exact(&mut some).unwrap();
    let (code, text) = told(&process.wait_with_output().unwrap());
    assert_eq!(code, FAILED);
    assert!(text.contains("Broken pipe"), "{text}");
}

#[test]
fn a_command_line_that_is_wrong_or_would_overwrite_is_refused_and_does_nothing() {
    let place = Place::new();
    fs::write(place.path("a"), "a").unwrap();
    fs::write(place.path("there"), "there").unwrap();
    fs::create_dir_all(place.path("dir/sub")).unwrap();
    let before = tree(place.0.path());
    let refused = |output: Output, says: &str| {
        let (code, text) = told(&output);
        assert_eq!(code, REFUSED, "{says}: {text}");
        assert!(text.contains(says), "{says}: {text}");
    };
    for (rest, says) in [
        (&["a", "there"][..], "there exists"),
        (&["-", "there"], "there exists"),
        (&["dir", "dir/new"], "one of the two trees"),
        (&["dir/sub", "dir"], "one of the two trees"),
        (&["dir", "dir"], "one of the two trees"),
        (&["a"], "a source and a target"),
        (&["a", "b", "c"], "a source and a target"),
        (&["--fast", "a", "b"], "--fast: no such option"),
        (&["--threads", "0", "a", "b"], "--threads 0"),
        (&["a", "b", "--threads"], "--threads needs a value"),
        (&["--context", "x", "a", "b"], "NAME=VALUE"),
        (&["--context", "waxseal=x", "a", "b"], "context"),
        (&["--aad", "x", "dir", "new"], "--aad"),
        (&["--attributes", "-", "new"], "--attributes"),
    ] {
        refused(place.with_key("encrypt", rest).output().unwrap(), says);
    }
    refused(place.command(["encrypt", "a", "b"]).output().unwrap(), "--key is needed");
    refused(place.command(["key", "key"]).output().unwrap(), "key exists");
    refused(place.command(["shred", "a"]).output().unwrap(), "no such command");
    for arguments in [&["--help"][..], &[], &["encrypt", "--help"]] {
        let output = place.command(arguments).output().unwrap();
        assert_eq!(output.status.code(), DONE);
        assert!(String::from_utf8(output.stdout).unwrap().contains("Exit codes"));
    }
    assert_eq!(tree(place.0.path()), before);
}

#[test]
fn another_key_or_context_or_a_missing_file_fails_and_says_so() {
    let place = Place::new();
    fs::write(place.path("a"), "a").unwrap();
    assert_eq!(place.run("encrypt", &["a", "sealed"]).0, DONE);
    assert_eq!(place.command(["key", "other"]).status().unwrap().code(), DONE);
    for (arguments, says) in [
        (&["--key", "other", "--context", "tenant=acme", "sealed", "b"][..], "sealed"),
        (&["--key", "key", "--context", "tenant=b", "sealed", "b"], "sealed"),
        (&["--key", "missing", "sealed", "b"], "missing"),
        (&["--key", "key", "missing", "b"], "missing"),
        (&["--key", "key", "missing", "-"], "missing"),
        (&["--key", "key", "a", "b"], "not a sealed value"),
        (&["--key", "key", "--context", "tenant=acme", "sealed", "missing/b"], "missing/b"),
    ] {
        let (code, text) =
            told(&place.command([&["decrypt"], arguments].concat()).output().unwrap());
        assert_eq!(code, FAILED, "{arguments:?}");
        assert!(text.contains(says), "{arguments:?}: {text}");
    }
    assert!(!place.path("b").exists());
}
