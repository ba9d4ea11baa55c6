//! What a cached DEK and a data domain take: the figures in docs/performance.md, measured over
//! 4,096 DEKs, the default bound, and those in docs/domains.md.
//!
//! `cargo test --features aws-lc --test footprint -- --nocapture` prints them. Counted are the
//! bytes in use in the C library's allocator, so that what aws-lc keeps in C is seen too; one test
//! at a time, so that nothing else allocates meanwhile.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(missing_docs, unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::sync::Mutex;

use support::{SUITES, block_on, context, local};
use waxseal::domain::{Branches, DomainConfig, Domains, Schemes};
use waxseal::store::MemoryStore;
use waxseal::{Aad, Backend, Envelope, Limits};
use waxseal_testing::support;

const DEKS: usize = 4096;
const DOMAINS: usize = 1000;

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn bytes_in_use() -> usize {
    // SAFETY: it only reads the allocator's own figures, under the allocator's own locks.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

fn per_one_of<T>(count: usize, work: impl FnOnce() -> T) -> (usize, T) {
    let before = bytes_in_use();
    let made = work();
    (bytes_in_use().saturating_sub(before) / count, made)
}

fn per_dek(work: impl FnOnce()) -> usize {
    per_one_of(DEKS, work).0
}

#[test]
fn a_cached_dek_takes_what_the_documentation_says() {
    let _one = ONE_AT_A_TIME.lock().unwrap();
    let kek = local("kek");
    // The choice among the backends may have each key in two of them.
    let (mut most, mut most_of_two) = ((0, 0), (0, 0));
    for backend in Backend::all().iter().chain(&[Backend::Fastest]) {
        for suite in SUITES {
            // Twice the room, so that none makes room for another.
            let limits = Limits::default().max_entries(2 * DEKS as u64);
            let builder = || {
                Envelope::builder()
                    .wrap_with(kek.clone())
                    .backend(*backend)
                    .suite(suite)
                    .limits(limits)
            };
            let (writer, reader) = (builder().build().unwrap(), builder().build().unwrap());
            let mut messages = Vec::with_capacity(DEKS);
            let writing = per_dek(|| {
                for i in 0..DEKS {
                    let context = context(&format!("tenant-{i:06}"));
                    block_on(writer.encryptor(&context)).unwrap();
                }
            });
            for i in 0..DEKS {
                messages.push(
                    block_on(writer.encrypt(
                        &context(&format!("tenant-{i:06}")),
                        Aad::empty(),
                        b"x",
                    ))
                    .unwrap(),
                );
            }
            let reading = per_dek(|| {
                for (i, message) in messages.iter().enumerate() {
                    let context = context(&format!("tenant-{i:06}"));
                    assert_eq!(
                        &*block_on(reader.decrypt(&context, Aad::empty(), message)).unwrap(),
                        b"x"
                    );
                }
            });
            let (w, r) = (writer.statistics(), reader.statistics());
            assert_eq!(
                (w.writing_deks, w.reading_deks, r.reading_deks),
                (4096, 4096, 4096),
                "all are cached"
            );
            println!(
                "{backend:?} {suite:?}: {reading} bytes to open, {writing} bytes to seal and open"
            );
            let most = match backend {
                Backend::Fastest => &mut most_of_two,
                _ => &mut most,
            };
            *most = (most.0.max(reading), most.1.max(writing));
        }
    }
    assert!(
        most.0 <= 4 * 1024 && most.1 <= 6 * 1024,
        "docs/performance.md and Limits::max_entries say less: {most:?}"
    );
    assert!(
        most_of_two.0 <= 5 * 1024 && most_of_two.1 <= 8 * 1024,
        "docs/performance.md says less: {most_of_two:?}"
    );
}

#[test]
fn a_data_domain_takes_what_the_documentation_says() {
    let _one = ONE_AT_A_TIME.lock().unwrap();
    let (kek, store) = (local("kek"), MemoryStore::new());
    let schemes = Schemes::default()
        .kek("kek", move |_| {
            let kek = kek.clone();
            async move { Ok(kek) }
        })
        .store("keys", move |_| {
            let store = store.clone();
            async move { Ok(store) }
        });
    let plain = DomainConfig::default().wrap_with("kek:shared");
    let branches = plain.clone().store("keys:shared").branches(Branches::per(["tenant"]));
    let mut most = 0;
    for (name, config) in [("alone", plain), ("with branch keys", branches)] {
        let (idle, domains) = per_one_of(DOMAINS, || {
            let mut builder = Domains::builder().schemes(schemes.clone());
            for n in 0..DOMAINS {
                builder = builder.domain(format!("domain-{n:04}"), config.clone());
            }
            block_on(builder.build()).unwrap()
        });
        let (in_use, ()) = per_one_of(DOMAINS, || {
            for domain in domains.all() {
                let context = domain.context([("tenant", "alice")]).unwrap();
                let envelope = domain.envelope();
                let sealed = block_on(envelope.encrypt(&context, Aad::empty(), b"x")).unwrap();
                block_on(envelope.decrypt(&context, Aad::empty(), &sealed)).unwrap();
            }
        });
        println!("a domain {name}: {idle} bytes, and {in_use} more with one DEK in use");
        most = most.max(idle);
        block_on(domains.close());
    }
    assert!(most <= 32 * 1024, "docs/domains.md says less: {most}");
}
