//! What a cached DEK takes: the figures in docs/performance.md, measured over 4,096 of them, the
//! default bound.
//!
//! `cargo test --features aws-lc --test footprint -- --nocapture` prints them. Counted are the
//! bytes in use in the C library's allocator, so that what aws-lc keeps in C is seen too; one test,
//! so that nothing else allocates meanwhile.
#![cfg(all(target_os = "linux", target_env = "gnu"))]
#![allow(missing_docs, unsafe_code)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use support::{SUITES, block_on, context, local};
use waxseal::{Aad, Backend, Envelope, Limits};
use waxseal_testing::support;

const DEKS: usize = 4096;

fn bytes_in_use() -> usize {
    // SAFETY: it only reads the allocator's own figures, under the allocator's own locks.
    let info = unsafe { libc::mallinfo2() };
    info.uordblks + info.hblkhd
}

fn per_dek(work: impl FnOnce()) -> usize {
    let before = bytes_in_use();
    work();
    bytes_in_use().saturating_sub(before) / DEKS
}

#[test]
fn a_cached_dek_takes_what_the_documentation_says() {
    let kek = local("kek");
    let mut most = (0, 0);
    for backend in Backend::all() {
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
            most = (most.0.max(reading), most.1.max(writing));
        }
    }
    assert!(
        most.0 <= 4 * 1024 && most.1 <= 6 * 1024,
        "docs/performance.md and Limits::max_entries say less: {most:?}"
    );
}
