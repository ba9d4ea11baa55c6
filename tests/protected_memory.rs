//! The memory that secrets live in, from outside: core dumps, the kernel's own list, and systems
//! that refuse.
//!
//! Each test begins itself again as a child, which says in lines of `key=value` what it found.
#![cfg(target_os = "linux")]
#![allow(missing_docs, unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Waker};
use std::time::Duration;
use waxseal_testing::{scan, support};

use rustix::process::{Resource, Rlimit, setrlimit};
use scan::{Keys, Needle, Spy, in_bytes, on_a_stack_of_its_own};
use support::{block_on, context, local};
use waxseal::{Aad, Backend, Envelope, Event, Limits, Observer, Suite, memory_protection};

const ROLE: &str = "WAXSEAL_TEST_ROLE";

/// What this process is to be: the child of a test, if one asked for it.
fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}

/// A child of a test that runs the same test in another role.
struct Other {
    child: Child,
    stdin: ChildStdin,
    lines: BufReader<std::process::ChildStdout>,
}

impl Other {
    fn start(test: &str, role: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (stdin, lines) =
            (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
        Self { child, stdin, lines }
    }

    /// Everything it says until its next pause.
    fn until_pause(&mut self) -> HashMap<String, String> {
        let mut said = HashMap::new();
        loop {
            let mut line = String::new();
            assert_ne!(self.lines.read_line(&mut line).unwrap(), 0, "the child ended: {said:?}");
            match line.trim_end().split_once('=') {
                Some(("PAUSE", _)) => return said,
                Some((key, value)) => drop(said.insert(key.to_owned(), value.to_owned())),
                None => {}
            }
        }
    }

    fn go_on(&mut self) {
        self.stdin.write_all(b"\n").unwrap();
    }

    fn finish(mut self) {
        self.go_on();
        std::io::copy(&mut self.lines, &mut std::io::sink()).unwrap();
        assert!(self.child.wait().unwrap().success(), "the child failed");
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn say(key: &str, value: impl std::fmt::Display) {
    // The harness leaves a line of its own unfinished.
    println!("\n{key}={value}");
}

/// Waits until the parent lets it go on.
fn pause() {
    say("PAUSE", "");
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

fn words<'s>(said: &'s HashMap<String, String>, key: &str) -> &'s str {
    said.get(key).unwrap_or_else(|| panic!("the child did not say {key}: {said:?}"))
}

// --- the kernel's list

/// The flags of the mapping that an address lies in: proc(5), `VmFlags` in /proc/pid/smaps.
fn flags_at(address: usize) -> Vec<String> {
    let mut inside = false;
    for line in fs::read_to_string("/proc/self/smaps").unwrap().lines() {
        if let Some((from, to)) = line.split(' ').next().unwrap().split_once('-') {
            let range =
                usize::from_str_radix(from, 16).ok().zip(usize::from_str_radix(to, 16).ok());
            if let Some((from, to)) = range {
                inside = (from..to).contains(&address);
            }
        }
        if let (true, Some(flags)) = (inside, line.strip_prefix("VmFlags:")) {
            return flags.split_whitespace().map(str::to_owned).collect();
        }
    }
    panic!("no mapping has this address");
}

/// Kilobytes that this process has locked.
fn locked_kilobytes() -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmLck:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Where a DEK lies that a provider holds.
fn address_of_a_dek() -> usize {
    let at = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let seen = at.clone();
    let spy = Spy::new(local("kek"), move |dek| {
        seen.store(dek.as_ptr().addr(), std::sync::atomic::Ordering::SeqCst);
        Box::pin(async {})
    });
    let envelope = Envelope::builder().wrap_with(spy).build().unwrap();
    block_on(envelope.encrypt(&context("alice"), Aad::empty(), b"x")).unwrap();
    at.load(std::sync::atomic::Ordering::SeqCst)
}

#[test]
fn under_a_usual_limit_a_dek_lies_in_memory_that_is_locked_not_dumped_and_wiped_on_fork() {
    const NAME: &str =
        "under_a_usual_limit_a_dek_lies_in_memory_that_is_locked_not_dumped_and_wiped_on_fork";
    if role().is_none() {
        let mut other = Other::start(NAME, "child");
        let said = other.until_pause();
        let flags: Vec<_> = words(&said, "flags").split(' ').collect();
        for flag in ["lo", "dd", "wf"] {
            assert!(flags.contains(&flag), "{flag} is not among {flags:?}");
        }
        let ordinary: Vec<_> = words(&said, "ordinary").split(' ').collect();
        assert!(
            !["lo", "dd", "wf"].iter().any(|flag| ordinary.contains(flag)),
            "the control: {ordinary:?}"
        );
        assert_eq!(words(&said, "before"), "0");
        assert_ne!(words(&said, "locked"), "0");
        assert_eq!(words(&said, "complete"), "true", "{}", words(&said, "message"));
        return other.finish();
    }
    say("before", locked_kilobytes());
    say("complete", memory_protection().is_complete());
    say("message", memory_protection());
    say("flags", flags_at(address_of_a_dek()).join(" "));
    say("ordinary", flags_at(vec![1_u8; 32].as_ptr().addr()).join(" "));
    say("locked", locked_kilobytes());
    pause();
}

// --- limits and refusals

/// Leaves this process no right to lock more than `bytes`: root could.
fn limit_locked_memory(bytes: u64) {
    setrlimit(Resource::Memlock, Rlimit { current: Some(bytes), maximum: Some(bytes) }).unwrap();
    if rustix::process::geteuid().is_root() {
        // SAFETY: makes this process one of a user without rights; it is the child of a test, and
        // ends with it.
        assert_eq!(unsafe { libc::setresuid(65_534, 65_534, 65_534) }, 0);
    }
}

/// Has the kernel refuse a system call from here on, if its third argument is `third`, with EPERM
/// (seccomp(2)).
fn refuse(call: libc::c_long, third: Option<u32>) {
    let statement =
        |code: u32, k: u32| libc::sock_filter { code: code.try_into().unwrap(), jt: 0, jf: 0, k };
    let jump = |k: u32, jt: u8, jf: u8| libc::sock_filter {
        jt,
        jf,
        ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k)
    };
    let load = |at: u32| statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, at);
    let allow = statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW);
    let eperm = statement(
        libc::BPF_RET | libc::BPF_K,
        libc::SECCOMP_RET_ERRNO | u32::try_from(libc::EPERM).unwrap(),
    );
    // The number of the call is at 0 of `seccomp_data`, the low half of its third argument at 32.
    let call = u32::try_from(call).unwrap();
    let mut program = match third {
        None => vec![load(0), jump(call, 1, 0), allow, eperm],
        Some(third) => vec![load(0), jump(call, 0, 2), load(32), jump(third, 1, 0), allow, eperm],
    };
    let filter =
        libc::sock_fprog { len: program.len().try_into().unwrap(), filter: program.as_mut_ptr() };
    // SAFETY: the filter is valid for the time of the call, which copies it; it binds this thread,
    // and the threads that it starts.
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        assert_eq!(
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter),
            0
        );
    }
}

/// Counts the messages to an operator.
#[derive(Debug)]
struct Told(Arc<AtomicUsize>);

impl Observer for Told {
    fn event(&self, event: &Event<'_>) {
        if let Event::MemoryNotProtected { protection } = event {
            assert!(!protection.is_complete());
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Thousands of versions of a KEK in memory, and so of secrets, and messages sealed and opened all
/// the while. How often an operator was told.
fn work_hard() -> usize {
    let secrets: Vec<[u8; 32]> = (0..3000_u32)
        .map(|i| {
            let mut secret = [0xA5; 32];
            secret[..4].copy_from_slice(&i.to_le_bytes());
            secret
        })
        .collect();
    let kek = || waxseal::kek::local::LocalKek::from_secrets("many", (1..).zip(&secrets)).unwrap();
    let told = Arc::new(AtomicUsize::new(0));
    let observed =
        || Envelope::builder().wrap_with(kek()).observer(Told(told.clone())).build().unwrap();
    let (envelope, reader) = (observed(), observed());
    for tenant in 0..200 {
        let tenant = context(&format!("{tenant}"));
        let sealed = block_on(envelope.encrypt(&tenant, Aad::from(b"row"), b"payload")).unwrap();
        assert_eq!(
            &*block_on(reader.decrypt(&tenant, Aad::from(b"row"), &sealed)).unwrap(),
            b"payload"
        );
    }
    // Every one of them is still what it was: a new version is made from what is kept of all the
    // others.
    let kek = kek();
    assert_eq!(kek.rotate().unwrap(), 3001);
    let other =
        waxseal::kek::local::LocalKek::from_secrets("many", [(3000, &secrets[2999])]).unwrap();
    let sealed =
        block_on(support::envelope(&other).encrypt(&context("a"), Aad::empty(), b"x")).unwrap();
    assert_eq!(
        &*block_on(support::envelope(&kek).decrypt(&context("a"), Aad::empty(), &sealed)).unwrap(),
        b"x"
    );
    told.load(Ordering::SeqCst)
}

#[test]
fn what_a_system_refuses_is_said_and_everything_works_without_it() {
    const NAME: &str = "what_a_system_refuses_is_said_and_everything_works_without_it";
    // Locked, excluded from dumps, wiped on fork; what the message has to name.
    let cases = [
        ("limit 65536", [false, true, true], "the limit is 65536 bytes, 65536 of "),
        ("limit 0", [false, true, true], "the limit is 0 bytes, 0 of "),
        ("no mlock", [false, true, true], "mlock: Operation not permitted"),
        ("no MADV_DONTDUMP", [true, false, true], "MADV_DONTDUMP: Operation not permitted"),
        ("no MADV_WIPEONFORK", [true, true, false], "MADV_WIPEONFORK: Operation not permitted"),
        ("nothing", [false, false, false], "MADV_DONTDUMP: "),
    ];
    let Some(role) = role() else {
        for (role, in_force, words_of_it) in cases {
            let mut other = Other::start(NAME, role);
            let said = other.until_pause();
            let message = words(&said, "message");
            assert_eq!(words(&said, "in force"), format!("{in_force:?}"), "{role}: {message}");
            assert!(message.contains(words_of_it), "{role}: {message}");
            assert_eq!(words(&said, "told"), "1", "{role}: of two envelopes and hundreds of DEKs");
            other.finish();
        }
        return;
    };
    match role.as_str() {
        "limit 65536" => limit_locked_memory(65_536),
        "limit 0" => limit_locked_memory(0),
        "no mlock" => refuse(libc::SYS_mlock, None),
        "no MADV_DONTDUMP" => {
            refuse(libc::SYS_madvise, Some(libc::MADV_DONTDUMP.try_into().unwrap()))
        }
        "no MADV_WIPEONFORK" => {
            refuse(libc::SYS_madvise, Some(libc::MADV_WIPEONFORK.try_into().unwrap()))
        }
        "nothing" => {
            refuse(libc::SYS_mlock, None);
            refuse(libc::SYS_madvise, None);
        }
        _ => panic!("no such role"),
    }
    let told = work_hard();
    let protection = memory_protection();
    let in_force = [protection.locked, protection.excluded_from_dumps, protection.wiped_on_fork];
    say("in force", format!("{in_force:?}"));
    say("message", &protection);
    say("told", told);
    pause();
}

// --- core dumps

/// The tool that dumps a running process, with gdb; installed where it is missing. Panics, and so
/// fails the test, when it cannot be.
fn gcore() -> PathBuf {
    let path = PathBuf::from("/usr/bin/gcore");
    if !path.exists() {
        let lock = File::create(Path::new(env!("CARGO_TARGET_TMPDIR")).join("gdb.lock")).unwrap();
        lock.lock().unwrap();
        let install = "apt-get update -qq && apt-get install -qq -y --no-install-recommends gdb";
        let root = rustix::process::geteuid().is_root();
        let mut command = if root { Command::new("sh") } else { Command::new("sudo") };
        let command = if root { &mut command } else { command.args(["-n", "sh"]) };
        let status = command
            .arg("-c")
            .arg(install)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .status()
            .unwrap();
        assert!(
            status.success(),
            "gdb, whose gcore this test needs, could not be installed: {install}"
        );
    }
    assert!(path.exists(), "gcore is not at {}", path.display());
    path
}

/// The memory of a process, as a core dump has it.
fn core_dump(of: &Child) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let prefix = directory.path().join("core");
    let output =
        Command::new(gcore()).arg("-o").arg(&prefix).arg(of.id().to_string()).output().unwrap();
    let path = directory.path().join(format!("core.{}", of.id()));
    let dump = fs::read(&path);
    dump.unwrap_or_else(|error| {
        panic!("no core dump ({error}): {}", String::from_utf8_lossy(&output.stderr))
    })
}

fn backend(name: &str) -> Backend {
    *Backend::all().iter().find(|backend| format!("{backend:?}") == name).unwrap()
}

#[test]
fn a_core_dump_has_no_dek_and_after_the_deadline_nothing() {
    const NAME: &str = "a_core_dump_has_no_dek_and_after_the_deadline_nothing";
    let Some(role) = role() else {
        for backend in Backend::all() {
            let mut other = Other::start(NAME, &format!("{backend:?}"));
            let said = other.until_pause();
            let needle = |name: &str| Needle::from_hex(words(&said, name));
            let [dek, held, other_bytes] = ["dek", "held", "other bytes"].map(needle);
            let keys = Keys::new(dek, &context("alice"), Suite::default());
            let dump = core_dump(&other.child);
            let [in_dump] = in_bytes(&dump, [&held]);
            assert!(
                in_dump >= 1,
                "{backend:?}: the control: a DEK that was copied into ordinary memory is in the dump"
            );
            drop(dump);
            other.go_on();

            let said = other.until_pause();
            assert_ne!(
                words(&said, "held in memory"),
                "0",
                "{backend:?}: the control: the DEK is being wrapped"
            );
            let dump = core_dump(&other.child);
            assert_eq!(
                in_bytes(&dump, [&keys.dek, &held]),
                [0, 0],
                "{backend:?}: the DEKs cached and being wrapped"
            );
            let [schedule] = in_bytes(&dump, [&keys.schedule]);
            assert!(
                schedule >= 1,
                "{backend:?}: while it serves, the backend's key schedule is in the dump"
            );
            drop(dump);
            other.go_on();
            let said = other.until_pause();
            assert_eq!(words(&said, "held in memory"), "0");
            let dump = core_dump(&other.child);
            let [in_dump] = in_bytes(&dump, [&other_bytes]);
            assert!(in_dump >= 1, "{backend:?}: the control: what nobody wiped is there");
            assert_eq!(in_bytes(&dump, keys.all()), [0; 5], "{backend:?}: after the deadline");
            assert_eq!(in_bytes(&dump, [&held]), [0], "{backend:?}: after its caller went away");
            other.finish();
        }
        return;
    };
    // Where only ancestors may look into a process, others may look into this one.
    let _ = rustix::process::set_ptracer(rustix::process::PTracer::Any);
    // At hand: sealed and opened with.
    let limits = Limits::default().max_age(Duration::from_secs(600));
    let (envelope, sealed, dek) = on_a_stack_of_its_own(|| {
        let (spy, seen) = Spy::that_remembers(local("kek"));
        let envelope = Envelope::builder().wrap_with(spy).backend(backend(&role)).limits(limits);
        let clock = waxseal::ManualClock::new();
        let envelope = envelope.clock(clock.clone()).build().unwrap();
        let sealed =
            block_on(envelope.encrypt(&context("alice"), Aad::empty(), b"payload")).unwrap();
        block_on(envelope.decrypt(&context("alice"), Aad::empty(), &sealed)).unwrap();
        let dek = seen.lock().unwrap().take().unwrap();
        ((envelope, clock), sealed, dek)
    });
    let (envelope, clock) = envelope;
    // In a provider's hands, for as long as a caller waits.
    let (held_sender, held) = std::sync::mpsc::channel();
    let holder = Spy::new(local("holder"), move |dek| {
        held_sender.send(Needle::of(dek)).unwrap();
        Box::pin(std::future::pending())
    });
    let holder = Envelope::builder().wrap_with(holder).backend(backend(&role)).build().unwrap();
    let waiting = context("bob");
    let mut call = Box::pin(holder.encrypt(&waiting, Aad::empty(), b"x"));
    assert!(call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
    let held = held.recv().unwrap();
    // What nobody wipes: some other thirty-two bytes.
    let other_bytes = Needle::of(&std::array::from_fn::<u8, 32, _>(|i| sealed[8 + i] ^ 0x5A));
    let kept = other_bytes.bytes();
    for (name, needle) in [("dek", &dek), ("held", &held), ("other bytes", &other_bytes)] {
        say(name, needle.to_hex());
    }
    let mut copy = held.bytes();
    pause();
    zeroize::Zeroize::zeroize(&mut copy);
    say("held in memory", held.occurrences());
    pause();
    drop(call);
    clock.advance(Duration::from_secs(601));
    // The thread that wipes looks once a second.
    let keys = Keys::new(dek, &context("alice"), Suite::default());
    let start = std::time::Instant::now();
    while keys.occurrences() != [0; 5] && start.elapsed() < Duration::from_secs(30) {
        std::thread::sleep(Duration::from_millis(100));
    }
    say("held in memory", held.occurrences());
    pause();
    drop((envelope, kept));
}
