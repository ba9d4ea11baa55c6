//! The module in a helper process: what crashes, hangs or lies there, and what the service sees.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::{Duration, Instant};

use pollster::block_on;
use rustix::process::{Pid, Signal, kill_process};
use waxseal::kek::{Health, KekErrorClass, KekProvider};
use waxseal_pkcs11::{PinSource, Pkcs11KekBuilder};
use waxseal_testing::pkcs11::{Ground, KEY, Kind, PIN, alone};
use waxseal_testing::support::{a_dek, context};

use super::until;
use KekErrorClass::{Denied, Invalid, Misconfigured, Unavailable};

pub(super) const HELPER: &str = env!("CARGO_BIN_EXE_waxseal-pkcs11-helper");

pub(super) fn isolated(ground: &Ground) -> Pkcs11KekBuilder {
    super::builder(ground).helper(HELPER)
}

/// The running helpers of this process, in any state.
pub(super) fn helpers() -> Vec<i32> {
    let own = std::process::id();
    let processes = fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let stat = |pid: i32| fs::read_to_string(format!("/proc/{pid}/stat")).ok();
    processes
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            stat(*pid).is_some_and(|stat| {
                let (name, rest) = stat.rsplit_once(')').unwrap_or(("", ""));
                let parent = rest.split_whitespace().nth(1);
                name.contains("(waxseal-pkcs11-") && parent == Some(&own.to_string())
            })
        })
        .collect()
}

fn signal(pid: i32, signal: Signal) {
    let _ = kill_process(Pid::from_raw(pid).unwrap(), signal);
}

fn is_loaded(module: &Path) -> bool {
    let name = module.file_name().unwrap().to_str().unwrap();
    fs::read_to_string("/proc/self/maps").unwrap().contains(name)
}

#[test]
fn the_module_and_the_pin_are_in_the_helper_and_nothing_else_shows_the_pin() {
    alone(Kind::Shim, |ground| {
        let pins = PinSource::Environment("WAXSEAL_TEST_PIN".to_owned());
        let kek = isolated(ground).pin_source(pins).sessions(1).build().unwrap();
        assert!(helpers().is_empty(), "the first call starts it");
        assert_eq!(block_on(kek.health()).unwrap(), Health::Ready);
        let [helper] = helpers()[..] else { panic!("{:?}", helpers()) };
        assert!(!is_loaded(&ground.module()));
        if let Ok(maps) = fs::read_to_string(format!("/proc/{helper}/maps")) {
            assert!(maps.contains("waxseal_pkcs11_shim"));
        }
        for file in ["cmdline", "environ"] {
            // Only root may read it of such a process.
            if let Ok(bytes) = fs::read(format!("/proc/{helper}/{file}")) {
                assert!(!String::from_utf8_lossy(&bytes).contains(PIN), "{file}");
            }
        }
        let limits = fs::read_to_string(format!("/proc/{helper}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
        let info = block_on(kek.read_key()).unwrap();
        assert_eq!((info.current.as_str(), info.versions.len()), ("01", 1));
        assert_eq!(kek.login().unwrap().logins, 1);
        block_on(kek.close());
        assert!(helpers().is_empty(), "closed, and waited for");
        assert_eq!(ground.called("C_OpenSession"), ground.called("C_CloseSession"));
    });
}

/// Each way to die, at each function of the module, before and after it worked.
#[test]
fn a_module_that_dies_or_hangs_fails_its_call_and_the_next_one_works() {
    alone(Kind::Shim, |ground| {
        let build = || isolated(ground).helper_deadline(Duration::from_secs(5)).sessions(1).build();
        let kek = build().unwrap();
        let (alice, dek) = (context("alice"), a_dek());
        let wrapped = block_on(kek.wrap(&alice, &dek)).unwrap();
        for (way, said) in [
            ("crash", "signal: 6"),
            ("segv", "signal: 11"),
            ("exit", "exit status: 0"),
            ("hang", "did not answer"),
        ] {
            let hangs = way == "hang";
            for function in ["C_EncryptInit", "C_Encrypt", "C_DecryptInit", "C_Decrypt"] {
                // Each takes the whole deadline.
                if hangs && function.contains("Init") {
                    continue;
                }
                ground.control(&format!("{function} {way}\n"));
                let error = if function.contains("Enc") {
                    block_on(kek.wrap(&alice, &dek)).unwrap_err()
                } else {
                    block_on(kek.unwrap(&alice, &wrapped)).unwrap_err()
                };
                assert!(error.class() == Unavailable && error.was_asked(), "{error}");
                assert!(error.to_string().contains(said), "{way} {function}: {error}");
                assert!(helpers().is_empty(), "it is gone, and waited for");
                ground.control("");
                let unwrapped = block_on(kek.unwrap(&alice, &wrapped)).unwrap();
                assert_eq!(unwrapped.expose(), dek.expose());
            }
            // On the way to a session.
            for function in [
                "C_Initialize",
                "C_GetSlotList",
                "C_GetTokenInfo",
                "C_OpenSession",
                "C_FindObjectsInit",
            ] {
                block_on(kek.close());
                ground.control(&format!("{function} {way}\n"));
                let error = block_on(kek.unwrap(&alice, &wrapped)).unwrap_err();
                assert_eq!(error.class(), Unavailable, "{way} {function}: {error}");
                assert!(error.to_string().contains(said), "{way} {function}: {error}");
                ground.control("");
                block_on(kek.unwrap(&alice, &wrapped)).unwrap();
            }
            // On the way out.
            ground.control(&format!("C_CloseSession {way}\n"));
            block_on(kek.close());
            assert!(helpers().is_empty());
            ground.control("");
            block_on(kek.unwrap(&alice, &wrapped)).unwrap();
        }
    });
}

#[test]
fn a_module_that_crashes_at_any_of_its_calls_fails_one_call() {
    alone(Kind::Shim, |ground| crashes_at_each_call(ground));
}

#[test]
fn a_module_that_crashes_at_any_of_its_calls_fails_one_call_with_kryoptic() {
    alone(Kind::ShimKryoptic, |ground| crashes_at_each_call(ground));
}

fn crashes_at_each_call(ground: &Ground) {
    let kek = isolated(ground).sessions(1).build().unwrap();
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = block_on(kek.wrap(&alice, &dek)).unwrap();
    let mut survived = 0;
    for n in 1..=80 {
        block_on(kek.close());
        ground.control(&format!("any segv {n}\n"));
        match block_on(kek.unwrap(&alice, &wrapped)) {
            Ok(unwrapped) => {
                assert_eq!(unwrapped.expose(), dek.expose());
                survived += 1;
            }
            Err(error) => {
                assert_eq!(error.class(), Unavailable, "{n}: {error}");
                assert!(error.to_string().contains("signal: 11"), "{n}: {error}");
                assert!(helpers().is_empty(), "it is gone, and waited for");
                assert_eq!(survived, 0, "{n}");
            }
        }
        ground.control("");
        // At once, unless it died over the PIN.
        until("it works again", || match block_on(kek.unwrap(&alice, &wrapped)) {
            Ok(unwrapped) => unwrapped.expose() == dek.expose(),
            Err(error) => {
                assert!(error.to_string().contains("not tried again yet"), "{n}: {error}");
                false
            }
        });
        if survived == 3 {
            println!("a session and a call are {} calls of the module", n - 3);
            assert!(n > 10);
            return;
        }
    }
    panic!("it never survives");
}

#[test]
fn a_helper_that_dies_again_and_again_is_started_less_and_less_often() {
    alone(Kind::Shim, |ground| {
        let kek = isolated(ground).sessions(1).build().unwrap();
        let (alice, dek) = (context("alice"), a_dek());
        let wrapped = block_on(kek.wrap(&alice, &dek)).unwrap();
        ground.control("C_DecryptInit crash\n");
        let (start, initialized) = (Instant::now(), ground.called("C_Initialize"));
        let (mut calls, mut refused) = (0, 0);
        while start.elapsed() < Duration::from_secs(3) {
            let error = block_on(kek.unwrap(&alice, &wrapped)).unwrap_err();
            assert_eq!(error.class(), Unavailable, "{error}");
            calls += 1;
            refused += usize::from(!error.was_asked());
            thread::sleep(Duration::from_millis(5));
        }
        let starts = ground.called("C_Initialize") - initialized;
        println!("{starts} helpers for {calls} calls");
        assert!((2..=8).contains(&starts) && refused > 50, "{starts} {refused}");
        ground.control("");
        until("it is started again", || block_on(kek.unwrap(&alice, &wrapped)).is_ok());
        // And the next crash is the first again.
        ground.control("C_DecryptInit crash\n");
        block_on(kek.unwrap(&alice, &wrapped)).unwrap_err();
        ground.control("");
        block_on(kek.unwrap(&alice, &wrapped)).unwrap();
    });
}

#[test]
fn a_helper_that_is_killed_or_stopped_at_any_moment_costs_its_call_and_nothing_else() {
    alone(Kind::SoftHsm, |ground| killed(ground));
}

#[test]
fn a_helper_with_kryoptic_that_is_killed_or_stopped_at_any_moment_costs_its_call() {
    alone(Kind::Kryoptic, |ground| killed(ground));
}

fn killed(ground: &Ground) {
    let kek = isolated(ground).helper_deadline(Duration::from_secs(2)).sessions(3).build().unwrap();
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = block_on(kek.wrap(&alice, &dek)).unwrap();
    let copy = |from: &Path, to: &Path| {
        let copied = std::process::Command::new("cp").arg("-a").args([from, to]).status();
        assert!(copied.unwrap().success());
    };
    let kept = ground.directory.join("kept");
    copy(&ground.tokens(), &kept);
    let is_over = Arc::new(AtomicBool::new(false));
    let (worked, failed) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let killer = {
        let (is_over, worked) = (is_over.clone(), worked.clone());
        thread::spawn(move || {
            let mut n = 0;
            while !is_over.load(Ordering::SeqCst) {
                // Now and then a helper lives long enough, however busy the machine is. So does the
                // first: the next one may find a damaged token, and then no call works any more.
                let before = worked.load(Ordering::SeqCst);
                while n % 4 == 0
                    && worked.load(Ordering::SeqCst) == before
                    && !is_over.load(Ordering::SeqCst)
                {
                    thread::sleep(Duration::from_millis(1));
                }
                // Other moments each time, and another helper.
                thread::sleep(Duration::from_micros(500 + n * 7919 % 120_000));
                let helpers = helpers();
                let n_th = usize::try_from(n).unwrap().checked_rem(helpers.len());
                if let Some(n_th) = n_th {
                    let with = if n % 16 == 15 { Signal::STOP } else { Signal::KILL };
                    signal(helpers[n_th], with);
                }
                n += 1;
            }
            n
        })
    };
    let callers: Vec<_> = (0..3)
        .map(|_| {
            let (kek, wrapped, is_over) = (kek.clone(), wrapped.clone(), is_over.clone());
            let (worked, failed) = (worked.clone(), failed.clone());
            let dek = *dek.expose();
            thread::spawn(move || {
                let (alice, own) = (context("alice"), a_dek());
                while !is_over.load(Ordering::SeqCst) {
                    for result in [
                        block_on(kek.wrap(&alice, &own)).map(|_| ()),
                        block_on(kek.unwrap(&alice, &wrapped))
                            .map(|unwrapped| assert_eq!(*unwrapped.expose(), dek)),
                    ] {
                        match result {
                            Ok(()) => drop(worked.fetch_add(1, Ordering::SeqCst)),
                            Err(error) => {
                                assert_eq!(error.class(), Unavailable, "{error}");
                                failed.fetch_add(1, Ordering::SeqCst);
                                thread::sleep(Duration::from_millis(1));
                            }
                        }
                    }
                }
            })
        })
        .collect();
    thread::sleep(Duration::from_secs(10));
    let counts = || (worked.load(Ordering::SeqCst), failed.load(Ordering::SeqCst));
    until("calls work, and fail", || counts().0 > 0 && counts().1 > 0);
    is_over.store(true, Ordering::SeqCst);
    let killed = killer.join().unwrap();
    callers.into_iter().for_each(|caller| caller.join().unwrap());
    let (worked, failed) = counts();
    println!("{killed} signals: {worked} calls worked, {failed} failed");
    if ground.kind == Kind::SoftHsm {
        // SoftHSM2 writes its token's file at each login, and not in one step: a process that is
        // killed just then leaves a damaged token behind. An operator puts its files back.
        block_on(kek.close());
        fs::remove_dir_all(ground.tokens()).unwrap();
        copy(&kept, &ground.tokens());
    }
    let mut said = String::new();
    until("it recovers", || match block_on(kek.unwrap(&alice, &wrapped)) {
        Ok(unwrapped) => unwrapped.expose() == dek.expose(),
        Err(error) => {
            if said != error.to_string() {
                said = error.to_string();
                println!("{said}");
            }
            false
        }
    });
    block_on(kek.close());
    assert!(helpers().is_empty(), "{:?}", helpers());
}

#[test]
fn a_wrong_pin_is_given_once_whatever_helper_asks_and_however_it_ends() {
    alone(Kind::Shim, |ground| {
        fs::write(ground.pin_file(), "wrong-pin\n").unwrap();
        let (one, other) =
            (isolated(ground).build().unwrap(), isolated(ground).sessions(1).build().unwrap());
        let here = super::kek(ground);
        for _ in 0..3 {
            for kek in [&one, &other, &here, &isolated(ground).build().unwrap()] {
                let error = block_on(kek.read_key()).unwrap_err();
                assert_eq!(error.class(), Misconfigured, "{error}");
                assert!(error.to_string().contains("CKR_PIN_INCORRECT"), "{error}");
                block_on(kek.close());
            }
        }
        assert_eq!(ground.called("C_Login"), 1, "by helpers or not");
        assert!(one.login().unwrap().failures > 0);
        // The helper dies before or after the token has looked at the PIN: who knows.
        for (n, way) in ["crash", "segv", "exit", "hang"].iter().enumerate() {
            // After a login the token has counted nothing.
            fs::write(ground.pin_file(), PIN).unwrap();
            block_on(one.read_key()).unwrap();
            block_on(one.close());
            fs::write(ground.pin_file(), format!("wrong-pin-{n}")).unwrap();
            ground.control(&format!("C_Login {way}\n"));
            let deadline = Duration::from_secs(4);
            // One helper at a time, so that none waits for the deaths of another one.
            let kek = isolated(ground).helper_deadline(deadline).sessions(1).build().unwrap();
            let before = ground.called("C_Login");
            assert_eq!(block_on(kek.read_key()).unwrap_err().class(), Unavailable);
            if n % 2 == 0 {
                // The token has its say at the second time.
                ground.control("");
            }
            for _ in 0..3 {
                let error = block_on(kek.read_key()).unwrap_err();
                assert!(matches!(error.class(), Misconfigured | Unavailable), "{error}");
                assert!(ground.called("C_Login") <= before + 2, "{way}");
            }
            until("it is given up", || {
                let error = block_on(kek.read_key()).unwrap_err();
                error.class() == Misconfigured && !error.was_asked()
            });
            ground.control("");
            for _ in 0..3 {
                let error = block_on(kek.read_key()).unwrap_err();
                assert!(error.class() == Misconfigured && !error.was_asked(), "{error}");
            }
            assert_eq!(ground.called("C_Login"), before + 2, "{way}");
            // Where the token has counted a wrong one already, it is given once.
            if n % 2 == 0 {
                fs::write(ground.pin_file(), format!("another-wrong-pin-{n}")).unwrap();
                ground.control(&format!("C_Login {way}\n"));
                assert_eq!(block_on(kek.read_key()).unwrap_err().class(), Unavailable);
                ground.control("");
                thread::sleep(Duration::from_millis(1100));
                let error = block_on(kek.read_key()).unwrap_err();
                assert!(error.class() == Misconfigured && !error.was_asked(), "{error}");
                assert!(error.to_string().contains("counted a wrong PIN"), "{error}");
                assert_eq!(ground.called("C_Login"), before + 3, "{way}");
            }
        }
        fs::write(ground.pin_file(), PIN).unwrap();
        block_on(one.read_key()).unwrap();
        block_on(other.read_key()).unwrap();
        // One that logged in before is given again after its helper died.
        block_on(one.close());
        ground.control("C_Login crash\n");
        assert_eq!(block_on(one.read_key()).unwrap_err().class(), Unavailable);
        ground.control("");
        until("it logs in again", || block_on(one.read_key()).is_ok());
    });
}

#[test]
fn many_sessions_that_start_at_once_with_a_wrong_pin_give_it_once() {
    alone(Kind::Shim, |ground| {
        ground.control("login silent\nC_Login sleep 100\n");
        fs::write(ground.pin_file(), "wrong-pin").unwrap();
        let kek = isolated(ground).sessions(8).build().unwrap();
        let (alice, dek) = (context("alice"), a_dek());
        for _ in 0..3 {
            let items: Vec<_> = (0..40).map(|_| (&alice, &dek)).collect();
            for result in block_on(kek.wrap_many(&items)) {
                let class = result.unwrap_err().class();
                assert!(matches!(class, Misconfigured | Unavailable), "{class}");
            }
        }
        assert_eq!(ground.called("C_Login"), 1);
    });
}

#[test]
fn callers_that_give_up_and_handles_that_are_dropped_leave_no_helper() {
    alone(Kind::Shim, |ground| {
        let (alice, dek) = (context("alice"), a_dek());
        let kek = isolated(ground).sessions(2).build().unwrap();
        block_on(kek.wrap(&alice, &dek)).unwrap();
        ground.control("C_EncryptInit sleep 300\n");
        for _ in 0..200 {
            let mut wrap = kek.wrap(&alice, &dek);
            let mut task = Context::from_waker(Waker::noop());
            assert!(matches!(wrap.as_mut().poll(&mut task), Poll::Pending));
        }
        assert!(helpers().len() <= 2);
        ground.control("");
        block_on(kek.wrap(&alice, &dek)).unwrap();
        drop(kek);
        until("they end with the last handle", || helpers().is_empty());
        // A thread that asks and ends, a runtime that ends.
        let kek = isolated(ground).sessions(2).build().unwrap();
        let clone = kek.clone();
        thread::spawn(move || block_on(clone.wrap(&context("bob"), &a_dek())).unwrap())
            .join()
            .unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let clone = kek.clone();
        drop(runtime.spawn(async move { clone.wrap(&context("bob"), &a_dek()).await }));
        drop(runtime);
        block_on(kek.wrap(&alice, &dek)).unwrap();
        block_on(kek.close());
        assert!(helpers().is_empty());
    });
}

#[test]
fn a_key_is_denied_and_a_damaged_one_invalid_as_without_a_helper() {
    alone(Kind::SoftHsm, |ground| {
        let kek = isolated(ground).build().unwrap();
        let (alice, dek) = (context("alice"), a_dek());
        let wrapped = block_on(kek.wrap(&alice, &dek)).unwrap();
        let error = block_on(kek.unwrap(&context("bob"), &wrapped)).unwrap_err();
        assert!(error.class() == Invalid && error.was_asked(), "{error}");
        assert_eq!(kek.is_current(&wrapped), Some(true));
        ground.allow(KEY, "01", "");
        until("it is denied", || {
            block_on(kek.unwrap(&alice, &wrapped)).is_err_and(|error| error.class() == Denied)
        });
        ground.allow(KEY, "01", "ed");
        until("it is allowed", || block_on(kek.unwrap(&alice, &wrapped)).is_ok());
        // A token that is gone, and comes back.
        ground.remove_tokens();
        until("it is seen to be gone", || {
            block_on(kek.close());
            match block_on(kek.wrap(&alice, &dek)) {
                Ok(_) => false,
                Err(error) => {
                    assert_eq!(error.class(), Unavailable, "{error}");
                    true
                }
            }
        });
        ground.put_tokens_back();
        until("it is found again", || block_on(kek.unwrap(&alice, &wrapped)).is_ok());
    });
}

#[test]
fn a_new_version_is_used_by_all_helpers_once_one_has_seen_it() {
    alone(Kind::Kryoptic, |ground| {
        let kek = isolated(ground)
            .versions(waxseal_pkcs11::Versions::ById)
            .key_max_age(Duration::from_secs(3600))
            .build()
            .unwrap();
        let (alice, dek) = (context("alice"), a_dek());
        let items: Vec<_> = (0..40).map(|_| (&alice, &dek)).collect();
        block_on(kek.wrap_many(&items)).into_iter().for_each(|item| drop(item.unwrap()));
        ground.key(KEY, "02", "eds");
        assert_eq!(block_on(kek.read_key()).unwrap().current, "02");
        for wrapped in block_on(kek.wrap_many(&items)) {
            assert_eq!(kek.key_version(&wrapped.unwrap()).as_deref(), Some("02"));
        }
    });
}

const VICTIM: &str = "WAXSEAL_TEST_VICTIM";

/// Has helpers, one of them within the module, and waits to be killed. Only in the process that the
/// test below starts.
#[test]
fn a_service_that_waits_to_be_killed() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    alone(Kind::Shim, |ground| {
        let kek = isolated(ground).sessions(2).build().unwrap();
        let (alice, dek) = (context("alice"), a_dek());
        let wrapped = block_on(kek.wrap(&alice, &dek)).unwrap();
        ground.control("C_DecryptInit hang\n");
        let clone = kek.clone();
        thread::spawn(move || block_on(clone.unwrap(&context("alice"), &wrapped)).map(|_| ()));
        until("it hangs", || ground.called("C_DecryptInit") > 0);
        // The other one has nothing to do.
        until("there are two", || {
            let _ = block_on(kek.wrap(&alice, &dek));
            helpers().len() == 2
        });
        println!("helpers: {:?}", helpers());
        thread::sleep(Duration::from_secs(600));
    });
}

#[test]
fn helpers_end_with_a_service_that_is_killed() {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};
    alone(Kind::Shim, |_| {
        let mut service = Command::new(std::env::current_exe().unwrap())
            .args(["isolation::a_service_that_waits_to_be_killed", "--exact", "--nocapture"])
            .env(VICTIM, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(service.stdout.take().unwrap()).lines();
        let pids: Vec<i32> = lines
            .find_map(|line| {
                let line = line.unwrap();
                let (_, pids) = line.split_once("helpers: [")?;
                Some(
                    pids.trim_end_matches(']')
                        .split(", ")
                        .map(|pid| pid.parse().unwrap())
                        .collect(),
                )
            })
            .unwrap();
        assert_eq!(pids.len(), 2);
        service.kill().unwrap();
        service.wait().unwrap();
        let runs = |pid: &i32| {
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.contains("(waxseal-pkcs11-") && !stat.contains(") Z ")
        };
        until("they are gone", || !pids.iter().any(runs));
    });
}
