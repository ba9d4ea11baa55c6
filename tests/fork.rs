//! What a fork must not do: let parent and child draw the same DEK or nonce, or seal under one DEK.
#![cfg(target_os = "linux")]
#![allow(missing_docs, unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::sync::Mutex;
use waxseal_testing::support;

use rustix::process::{WaitOptions, waitpid};
use support::{SUITES, block_on, context, local};
use waxseal::{Aad, Backend, Envelope, ErrorKind, Nonces, inspect};

/// Forks, runs `work` in the child, and gives what it wrote.
fn in_child(work: impl FnOnce(&mut File)) -> Vec<u8> {
    // One fork at a time; the children touch nothing that another test's thread could hold.
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap();
    let (read, write) = rustix::pipe::pipe().unwrap();
    // SAFETY: the child runs the library and writes to a pipe, and leaves without running anything
    // of the test harness. glibc's allocator is usable in the child of a threaded process.
    match unsafe { libc::fork() } {
        0 => {
            let mut write = File::from(write);
            let worked =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&mut write)));
            // SAFETY: ends this process at once; nothing of it is needed any more.
            unsafe { libc::_exit(i32::from(worked.is_err())) }
        }
        child if child > 0 => {
            drop(write);
            let mut bytes = Vec::new();
            File::from(read).read_to_end(&mut bytes).unwrap();
            let pid = rustix::process::Pid::from_raw(child);
            let (_, status) = waitpid(pid, WaitOptions::empty()).unwrap().unwrap();
            assert_eq!(status.exit_status(), Some(0), "the child failed");
            bytes
        }
        _ => panic!("fork failed"),
    }
}

/// DEK id and nonce of each message.
fn parts(messages: &[u8], len: usize, nonce_len: usize) -> Vec<([u8; 32], Vec<u8>)> {
    assert!(!messages.is_empty() && messages.len().is_multiple_of(len));
    messages
        .chunks(len)
        .map(|m| (*inspect(m).unwrap().dek_id.as_bytes(), m[40..40 + nonce_len].to_vec()))
        .collect()
}

#[test]
fn parent_and_child_share_no_dek_and_no_nonce() {
    for backend in Backend::all() {
        for nonces in [Nonces::Thread, Nonces::System] {
            for suite in SUITES {
                let builder = Envelope::builder()
                    .wrap_with(local("kek"))
                    .backend(*backend)
                    .nonces(nonces)
                    .suite(suite);
                let envelope = builder.build().unwrap();
                let alice = context("alice");
                let seal = || block_on(envelope.encrypt(&alice, Aad::empty(), b"x")).unwrap();
                // Warm: DEK cached, generator seeded and used.
                let before = seal();
                let child = in_child(|pipe| {
                    for _ in 0..200 {
                        pipe.write_all(&seal()).unwrap();
                    }
                });
                let parent: Vec<u8> = (0..200).flat_map(|_| seal()).collect();
                let (len, nonce_len) = (before.len(), suite.nonce_len());
                let (parent, child) =
                    (parts(&parent, len, nonce_len), parts(&child, len, nonce_len));
                let deks = |parts: &[([u8; 32], Vec<u8>)]| {
                    parts.iter().map(|(dek, _)| *dek).collect::<HashSet<_>>()
                };
                assert_eq!(
                    deks(&parent),
                    deks(&parts(&before, len, nonce_len)),
                    "the parent goes on with its DEK"
                );
                assert_eq!(deks(&child).len(), 1);
                assert!(
                    deks(&parent).is_disjoint(&deks(&child)),
                    "{backend:?} {nonces:?} {suite:?}: one DEK"
                );
                let all: HashSet<_> = parent.iter().chain(&child).map(|(_, nonce)| nonce).collect();
                assert_eq!(all.len(), 400, "{backend:?} {nonces:?} {suite:?}: a nonce twice");
            }
        }
    }
}

#[test]
fn a_hundred_thousand_messages_across_a_fork_repeat_no_nonce_under_one_key() {
    const EACH: usize = 50_000;
    let envelope = Envelope::builder().wrap_with(local("kek")).build().unwrap();
    let alice = context("alice");
    // DEK id and nonce of each message.
    let seal = |sink: &mut dyn FnMut(&[u8])| {
        for _ in 0..EACH {
            let message = block_on(envelope.encrypt(&alice, Aad::empty(), b"x")).unwrap();
            sink(&message[8..52]);
        }
    };
    block_on(envelope.encrypt(&alice, Aad::empty(), b"x")).unwrap();
    let mut all = in_child(|pipe| {
        let mut pipe = std::io::BufWriter::with_capacity(1 << 20, pipe);
        seal(&mut |part| pipe.write_all(part).unwrap());
        pipe.flush().unwrap();
    });
    seal(&mut |part| all.extend_from_slice(part));
    let distinct: HashSet<&[u8]> = all.chunks(44).collect();
    assert_eq!(distinct.len(), 2 * EACH);
    assert_eq!(
        all.chunks(44).map(|part| &part[..32]).collect::<HashSet<_>>().len(),
        2,
        "a DEK for each process"
    );
}

/// Nothing that a thread of the parent was doing at the fork keeps the child from its choice.
#[test]
fn the_fastest_backend_is_chosen_in_a_child_too() {
    use std::sync::atomic::{AtomicBool, Ordering};

    let (stop, chosen) = (AtomicBool::new(false), || SUITES.map(|s| Backend::Fastest.chosen(s)));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    chosen();
                }
            });
        }
        for _ in 0..20 {
            let child = in_child(|pipe| write!(pipe, "{:?}", chosen()).unwrap());
            assert_eq!(String::from_utf8(child).unwrap(), format!("{:?}", chosen()));
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn two_children_of_one_parent_and_a_grandchild_share_nothing_either() {
    let envelope = Envelope::builder().wrap_with(local("kek")).build().unwrap();
    let alice = context("alice");
    let seal = || block_on(envelope.encrypt(&alice, Aad::empty(), b"x")).unwrap();
    let len = seal().len();
    let mut seen = HashSet::new();
    for _ in 0..2 {
        let bytes = in_child(|pipe| {
            pipe.write_all(&seal()).unwrap();
            // SAFETY: as in `in_child`.
            match unsafe { libc::fork() } {
                0 => {
                    pipe.write_all(&seal()).unwrap();
                    // SAFETY: as in `in_child`.
                    unsafe { libc::_exit(0) }
                }
                child => {
                    waitpid(rustix::process::Pid::from_raw(child), WaitOptions::empty()).unwrap();
                }
            }
        });
        for (dek, nonce) in parts(&bytes, len, 12) {
            assert!(seen.insert(dek.to_vec()), "a DEK twice");
            assert!(seen.insert(nonce), "a nonce twice");
        }
    }
    assert_eq!(seen.len(), 8);
}

#[test]
fn a_sealing_key_ends_at_a_fork_and_an_opening_key_does_not() {
    let envelope = Envelope::builder().wrap_with(local("kek")).build().unwrap();
    let alice = context("alice");
    let sealed = block_on(envelope.encrypt(&alice, Aad::empty(), b"x")).unwrap();
    let sealing = block_on(envelope.encryptor(&alice)).unwrap();
    let opening = block_on(envelope.decryptor(&alice, &sealed)).unwrap();
    let child = in_child(|pipe| {
        let error = sealing.encrypt(Aad::empty(), b"x").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Expired);
        assert_eq!(&*opening.decrypt(Aad::empty(), &sealed).unwrap(), b"x");
        let key = block_on(envelope.encryptor(&alice)).unwrap();
        pipe.write_all(&key.encrypt(Aad::empty(), b"by the child").unwrap()).unwrap();
    });
    assert_eq!(
        &*block_on(envelope.decrypt(&alice, Aad::empty(), &child)).unwrap(),
        b"by the child"
    );
    sealing.encrypt(Aad::empty(), b"x").unwrap();
}

/// The items of a call for many are the caller's code, and that may fork.
#[test]
fn a_call_for_many_ends_in_a_child_that_its_items_made() {
    let envelope = support::envelope(&local("kek"));
    let alice = context("alice");
    let sealing = block_on(envelope.encryptor(&alice)).unwrap();
    let (read, write) = rustix::pipe::pipe().unwrap();
    let (seen, child) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
    let items = std::iter::repeat_n((Aad::empty(), "x"), 200).inspect(|_| {
        seen.set(seen.get() + 1);
        // In the second look, in the middle of the second block.
        if seen.get() == 300 {
            // SAFETY: as in `in_child`.
            child.set(unsafe { libc::fork() });
        }
    });
    let sealed = sealing.encrypt_many(items);
    if child.get() == 0 {
        let is_refused = sealed.is_err_and(|error| error.kind() == ErrorKind::Expired);
        File::from(write).write_all(&[u8::from(is_refused)]).unwrap();
        // SAFETY: as in `in_child`.
        unsafe { libc::_exit(0) }
    }
    drop(write);
    let mut answer = Vec::new();
    File::from(read).read_to_end(&mut answer).unwrap();
    waitpid(rustix::process::Pid::from_raw(child.get()), WaitOptions::empty()).unwrap();
    assert_eq!(answer, [1], "the child encrypts nothing under the parent's DEK");
    assert_eq!(sealed.unwrap().len(), 200);
}

#[test]
fn a_kek_in_memory_goes_on_in_the_child_but_cannot_be_changed_there() {
    let kek = local("kek");
    let envelope = support::envelope(&kek);
    let alice = context("alice");
    let sealed = block_on(envelope.encrypt(&alice, Aad::empty(), b"x")).unwrap();
    let child = in_child(|pipe| {
        // Its versions would be made from secrets that are wiped here.
        assert_eq!(kek.rotate().unwrap_err().kind(), ErrorKind::Expired);
        assert_eq!(kek.versions(), [(1, true)]);
        let envelope = support::envelope(&kek);
        assert_eq!(&*block_on(envelope.decrypt(&alice, Aad::empty(), &sealed)).unwrap(), b"x");
        pipe.write_all(&block_on(envelope.encrypt(&alice, Aad::empty(), b"by the child")).unwrap())
            .unwrap();
    });
    assert_eq!(kek.rotate().unwrap(), 2);
    assert_eq!(
        &*block_on(envelope.decrypt(&alice, Aad::empty(), &child)).unwrap(),
        b"by the child"
    );
}

#[test]
fn a_dek_that_is_being_wrapped_at_a_fork_seals_nothing_in_the_child() {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll, Waker};
    use waxseal::kek::scripted::ScriptedKek;

    let (kek, go) = (ScriptedKek::new("kek").unwrap(), Arc::new(AtomicBool::new(false)));
    let wait = go.clone();
    kek.wait_for(move || {
        let wait = wait.clone();
        Box::pin(std::future::poll_fn(move |_| {
            if wait.load(Ordering::SeqCst) { Poll::Ready(()) } else { Poll::Pending }
        }))
    });
    let envelope = Envelope::builder().wrap_with(kek).build().unwrap();
    let alice = context("alice");
    let mut call = pin!(envelope.encrypt(&alice, Aad::empty(), b"x"));
    let mut waker = Context::from_waker(Waker::noop());
    assert!(call.as_mut().poll(&mut waker).is_pending());
    in_child(|_| {
        go.store(true, Ordering::SeqCst);
        let Poll::Ready(result) = call.as_mut().poll(&mut waker) else { panic!("still waiting") };
        assert_eq!(result.unwrap_err().kind(), ErrorKind::Expired);
    });
    go.store(true, Ordering::SeqCst);
    let Poll::Ready(Ok(sealed)) = call.as_mut().poll(&mut waker) else {
        panic!("the parent goes on")
    };
    assert_eq!(&*block_on(envelope.decrypt(&alice, Aad::empty(), &sealed)).unwrap(), b"x");
}

#[test]
fn what_a_thread_remembers_of_the_parents_deks_is_not_used_in_the_child() {
    let envelope = support::envelope(&local("kek"));
    let alice = context("alice");
    let sealed = block_on(envelope.encrypt(&alice, Aad::empty(), b"x")).unwrap();
    // Twice, so that this thread remembers the DEK.
    for _ in 0..2 {
        assert!(envelope.decrypt_cached(&alice, Aad::empty(), &sealed).unwrap().is_some());
    }
    in_child(|_| {
        assert!(
            envelope.decrypt_cached(&alice, Aad::empty(), &sealed).unwrap().is_none(),
            "the parent's DEK"
        );
        assert_eq!(&*block_on(envelope.decrypt(&alice, Aad::empty(), &sealed)).unwrap(), b"x");
    });
    assert!(envelope.decrypt_cached(&alice, Aad::empty(), &sealed).unwrap().is_some());
}

#[test]
fn a_branch_key_derives_no_dek_twice_across_a_fork_and_what_came_through_it_ends() {
    use waxseal::branch::BranchKek;
    use waxseal::kek::scripted::ScriptedKek;
    use waxseal::store::MemoryStore;

    let (root, store) = (ScriptedKek::new("root").unwrap(), MemoryStore::new());
    let branch = BranchKek::builder(root.clone()).name("orders").store(store).build().unwrap();
    let envelope = Envelope::builder().wrap_with(branch.clone()).build().unwrap();
    let contexts: Vec<_> = (0..50).map(|at| context(&format!("tenant {at}"))).collect();
    let seal = |at: usize| block_on(envelope.encrypt(&contexts[at], Aad::empty(), b"x")).unwrap();
    let before: Vec<_> = (0..50).map(seal).collect();
    let sealing = block_on(envelope.encryptor(&contexts[0])).unwrap();
    let unwraps = root.calls().unwraps;
    let child = in_child(|pipe| {
        assert_eq!(sealing.encrypt(Aad::empty(), b"x").unwrap_err().kind(), ErrorKind::Expired);
        let cached = envelope.decrypt_cached(&contexts[0], Aad::empty(), &before[0]).unwrap();
        assert!(cached.is_none(), "the parent's DEK");
        for at in 0..50 {
            pipe.write_all(&seal(at)).unwrap();
            block_on(envelope.decrypt(&contexts[at], Aad::empty(), &before[at])).unwrap();
        }
        // The parent's branch key is not the child's: one unwrap for writing with it, which is
        // enough for reading.
        assert_eq!(root.calls().unwraps, unwraps + 1);
        // The end of the child's branch key ends the child's DEKs.
        let sealing = block_on(envelope.encryptor(&contexts[0])).unwrap();
        branch.evict_all();
        assert_eq!(sealing.encrypt(Aad::empty(), b"x").unwrap_err().kind(), ErrorKind::Expired);
    });
    let len = before[0].len();
    let mut deks = HashSet::new();
    for message in before.iter().map(|message| &message[..]).chain(child.chunks(len)) {
        assert!(deks.insert(message[8..40].to_vec()), "a DEK twice");
    }
    assert_eq!(deks.len(), 100);
    for (at, message) in child.chunks(len).enumerate() {
        block_on(envelope.decrypt(&contexts[at], Aad::empty(), message)).unwrap();
    }
    sealing.encrypt(Aad::empty(), b"x").unwrap();
    assert_eq!(root.calls().unwraps, unwraps, "the parent goes on with its branch key");
}

/// Says that every name is a domain.
#[cfg(feature = "domains")]
#[derive(Debug)]
struct Every;

#[cfg(feature = "domains")]
impl waxseal::domain::DomainResolver for Every {
    fn resolve<'a>(
        &'a self,
        _: &'a str,
    ) -> waxseal::kek::BoxFuture<'a, Result<Option<waxseal::domain::DomainConfig>, waxseal::Error>>
    {
        let config = waxseal::domain::DomainConfig::default().wrap_with("kek:a").store("memory:a");
        Box::pin(async { Ok(Some(config)) })
    }
}

/// Threads of the parent hold every lock of the domains now and then. None of them is in the child.
#[cfg(feature = "domains")]
#[test]
fn a_child_uses_reloads_and_resolves_domains_while_the_parent_s_threads_did() {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use waxseal::domain::{Domains, ResolverLimits, Schemes};

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("domains.toml");
    let text = |tenants: usize| {
        format!(
            "[domains.own]\nwrap_with = [\"kek:a\"]\nstore = \"memory:a\"\nmust_have = [\"t{tenants}\"]\n"
        )
    };
    let write = |tenants: usize| {
        let new = folder.path().join(format!("new-{tenants}"));
        std::fs::write(&new, text(tenants)).unwrap();
        std::fs::rename(new, &path).unwrap();
    };
    write(0);
    let limits = ResolverLimits::default()
        .fresh_for(std::time::Duration::ZERO)
        .refused_for(std::time::Duration::ZERO)
        .max_domains(4);
    let builder = Domains::builder()
        .schemes(Schemes::default().kek("kek", async |_| Ok(local("kek"))))
        .file(&path)
        .resolver(Every)
        .resolver_limits(limits);
    let domains = block_on(builder.build()).unwrap();
    let seal = |domain: &waxseal::domain::Domain, pairs: &[(String, &str)]| {
        let context = domain.context(pairs.iter().map(|(n, v)| (n.as_str(), *v))).unwrap();
        block_on(domain.envelope().encrypt(&context, Aad::empty(), b"x")).unwrap()
    };
    let (is_over, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..3 {
            let (domains, is_over, rounds) = (&domains, &is_over, &rounds);
            let write = &write;
            scope.spawn(move || {
                let mut round = 0;
                while !is_over.load(Ordering::SeqCst) {
                    round += 1;
                    match thread {
                        0 => {
                            write(round);
                            block_on(domains.reload()).unwrap();
                        }
                        _ => drop(seal(
                            &block_on(domains.resolve(&format!("r{}", round % 8))).unwrap(),
                            &[],
                        )),
                    }
                    rounds.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for fork in 0..40 {
                let seen = rounds.load(Ordering::SeqCst);
                while rounds.load(Ordering::SeqCst) < seen + 3 {
                    std::thread::yield_now();
                }
                let told = in_child(|pipe| {
                    // SAFETY: a child that waits for ever is ended by the signal.
                    unsafe { libc::alarm(60) };
                    let known = domains.domain("own").unwrap();
                    seal(&block_on(domains.resolve("r1")).unwrap(), &[]);
                    seal(&block_on(domains.resolve(&format!("new-{fork}"))).unwrap(), &[]);
                    block_on(domains.reload()).unwrap();
                    drop(known);
                    block_on(domains.close());
                    pipe.write_all(b"done").unwrap();
                });
                assert_eq!(told, b"done", "fork {fork}");
            }
        }));
        is_over.store(true, Ordering::SeqCst);
        outcome.unwrap();
    });
}

/// Parent and child would encrypt different bytes under the same nonces.
#[test]
fn a_stream_that_was_begun_before_a_fork_is_not_written_in_the_child() {
    let envelope = Envelope::builder().wrap_with(local("kek")).build().unwrap();
    let alice = context("alice");
    let options = waxseal::StreamOptions::default().chunk_size(4096);
    let encryptor = block_on(envelope.stream_encryptor(&alice, Aad::empty(), options)).unwrap();
    let mut writer = encryptor.writer(Vec::new());
    writer.write_all(&[7; 5000]).unwrap();
    let kind = |error: std::io::Error| waxseal::Error::of_io(&error).unwrap().kind();
    let child = in_child(|pipe| {
        // What was encrypted before may still be written: the parent writes the same.
        assert_eq!(kind(writer.write_all(&[8; 5000]).unwrap_err()), ErrorKind::Expired);
        assert_eq!(kind(writer.try_finish().unwrap_err()), ErrorKind::Expired);
        // A stream of its own is another matter.
        let mut own = block_on(envelope.encrypt_stream(&alice, Aad::empty(), Vec::new())).unwrap();
        own.write_all(b"of the child").unwrap();
        pipe.write_all(&own.finish().unwrap()).unwrap();
    });
    writer.write_all(&[8; 5000]).unwrap();
    let sealed = writer.finish().unwrap();
    assert_ne!(inspect(&sealed).unwrap().dek_id, inspect(&child).unwrap().dek_id);
    for (sealed, len) in [(&sealed, 10_000), (&child, 12)] {
        let mut plaintext = Vec::new();
        let reader = block_on(envelope.decrypt_stream(&alice, Aad::empty(), &sealed[..]));
        assert_eq!(reader.unwrap().read_to_end(&mut plaintext).unwrap(), len);
    }
}
