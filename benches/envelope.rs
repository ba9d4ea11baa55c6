//! The hot path beside the bare AEAD, and cached against uncached reading.
//!
//!     cargo bench -p waxseal-benches --features aws-lc
//!
//! Compare within one run only. `bare` is the AEAD in place with its key expanded; the other rows
//! do the same work through the library. What exactly it adds is what `overhead` measures.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used)]

#[path = "../examples/support/tap.rs"]
#[allow(unreachable_pub)]
mod tap;

mod support;

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use pollster::block_on;
use support::{AAD, Bare};
use tap::Tap;
use waxseal::kek::local::LocalKek;
use waxseal::{Aad, Backend, EncryptionContext, Envelope, Limits};

const SIZES: [usize; 5] = [16, 64, 1024, 16 * 1024, 1024 * 1024];

fn context() -> EncryptionContext {
    EncryptionContext::new([("tenant", "alice"), ("table", "customers")]).unwrap()
}

fn hot_path(criterion: &mut Criterion) {
    for backend in Backend::all() {
        let kek = LocalKek::in_memory("bench").unwrap();
        // One DEK for the whole run.
        let limits = Limits::default()
            .max_messages(1 << 32)
            .max_bytes(1 << 50)
            .max_age(Duration::from_secs(24 * 3600));
        let envelope =
            Envelope::builder().wrap_with(kek).backend(*backend).limits(limits).build().unwrap();
        let context = context();
        let bare = Bare::new(*backend);

        let mut group = criterion.benchmark_group(format!("seal/{backend:?}"));
        for size in SIZES {
            group.throughput(Throughput::Bytes(size.try_into().unwrap()));
            let plaintext = vec![7; size];
            let mut payload = plaintext.clone();
            group.bench_function(BenchmarkId::new("bare", size), |b| {
                b.iter(|| black_box(bare.seal(&mut payload)))
            });
            let key = block_on(envelope.encryptor(&context)).unwrap();
            let mut buffer = vec![0; key.prefix_len() + size + key.tag_len()];
            group.bench_function(BenchmarkId::new("handle, in place", size), |b| {
                b.iter(|| key.encrypt_in_place(Aad::from(AAD), &mut buffer).unwrap());
            });
            group.bench_function(BenchmarkId::new("lookup, in place", size), |b| {
                b.iter(|| {
                    block_on(envelope.encryptor(&context))
                        .unwrap()
                        .encrypt_in_place(Aad::from(AAD), &mut buffer)
                        .unwrap()
                });
            });
            group.bench_function(BenchmarkId::new("handle", size), |b| {
                b.iter(|| key.encrypt(Aad::from(AAD), &plaintext).unwrap())
            });
            group.bench_function(BenchmarkId::new("plain call", size), |b| {
                b.iter(|| {
                    block_on(envelope.encrypt(&context, Aad::from(AAD), &plaintext)).unwrap()
                });
            });
        }
        group.finish();

        let mut group = criterion.benchmark_group(format!("open/{backend:?}"));
        for size in SIZES {
            group.throughput(Throughput::Bytes(size.try_into().unwrap()));
            let sealed =
                block_on(envelope.encrypt(&context, Aad::from(AAD), &vec![7; size])).unwrap();
            let mut payload = vec![7; size];
            let tag = bare.seal(&mut payload);
            // In place each opening needs a sealed buffer again; copying one in is not timed.
            let fresh = || (payload.clone(), sealed.clone());
            group.bench_function(BenchmarkId::new("bare", size), |b| {
                b.iter_batched_ref(
                    fresh,
                    |(payload, _)| bare.open(payload, &tag),
                    BatchSize::SmallInput,
                );
            });
            let key = block_on(envelope.decryptor(&context, &sealed)).unwrap();
            group.bench_function(BenchmarkId::new("handle, in place", size), |b| {
                b.iter_batched_ref(
                    fresh,
                    |(_, sealed)| key.decrypt_in_place(Aad::from(AAD), sealed).unwrap().len(),
                    BatchSize::SmallInput,
                );
            });
            group.bench_function(BenchmarkId::new("lookup, in place", size), |b| {
                b.iter_batched_ref(
                    fresh,
                    |(_, sealed)| {
                        block_on(envelope.decrypt_in_place(&context, Aad::from(AAD), sealed))
                            .unwrap()
                            .len()
                    },
                    BatchSize::SmallInput,
                );
            });
            group.bench_function(BenchmarkId::new("handle", size), |b| {
                b.iter(|| key.decrypt(Aad::from(AAD), &sealed).unwrap())
            });
            group.bench_function(BenchmarkId::new("plain call", size), |b| {
                b.iter(|| block_on(envelope.decrypt(&context, Aad::from(AAD), &sealed)).unwrap());
            });
        }
        group.finish();
    }
}

fn cached_against_uncached(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decrypt 1 KiB");
    for (name, delay) in [("local", 0), ("1 ms", 1), ("300 ms", 300)] {
        // Blocks the thread: nobody else wants to run.
        let wait = move |_| std::thread::sleep(Duration::from_millis(delay));
        let kek = LocalKek::in_memory("bench").unwrap();
        let kek = if delay == 0 { Tap::new(kek, |_| {}) } else { Tap::new(kek, wait) };
        let writer = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
        let context = context();
        let sealed = block_on(writer.encrypt(&context, Aad::from(AAD), &[7; 1024])).unwrap();
        group.bench_function(BenchmarkId::new("cached", name), |b| {
            b.iter(|| block_on(writer.decrypt(&context, Aad::from(AAD), &sealed)).unwrap());
        });
        if delay > 100 {
            group.sample_size(10);
        }
        group.bench_function(BenchmarkId::new("uncached", name), |b| {
            b.iter_batched(
                || Envelope::builder().unwrap_with(kek.clone()).build().unwrap(),
                |cold| block_on(cold.decrypt(&context, Aad::from(AAD), &sealed)).unwrap(),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1)).sample_size(30);
    targets = hot_path, cached_against_uncached
}
criterion_main!(benches);
