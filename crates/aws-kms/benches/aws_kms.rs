//! Compares decryption with a cached DEK to one `Decrypt` for every message, on the KMS front of
//! the tests over loopback (no TLS and no distance: the least that a call to a key service costs).
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::hint::black_box;
use waxseal_testing::kms_front;

use criterion::{Criterion, criterion_group, criterion_main};
use kms_front::KmsFront;
use waxseal::{Aad, EncryptionContext, Envelope};
use waxseal_aws_kms::AwsKmsKek;

fn decrypt(criterion: &mut Criterion) {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let front = KmsFront::start();
    let (login, arn) = (front.admin(), front.create_key("eu-west-1"));
    let client = front.client("eu-west-1", &login);
    let context = EncryptionContext::new([("tenant", "alice"), ("table", "cards")]).unwrap();
    let (envelope, sealed) = runtime.block_on(async {
        let kek = AwsKmsKek::builder(&arn).client(client).build().await.unwrap();
        let envelope = Envelope::builder().wrap_with(kek).build().unwrap();
        let sealed = envelope.encrypt(&context, Aad::from(b"row 17"), &[7; 1024]).await.unwrap();
        (envelope, sealed)
    });
    let mut group = criterion.benchmark_group("aws kms, 1 KiB");
    group.bench_function("decrypt, DEK cached", |bencher| {
        bencher.iter(|| {
            runtime
                .block_on(envelope.decrypt(&context, Aad::from(b"row 17"), black_box(&sealed)))
                .unwrap()
        });
    });
    group.bench_function("decrypt, asked each time", |bencher| {
        bencher.iter(|| {
            envelope.evict_all();
            runtime
                .block_on(envelope.decrypt(&context, Aad::from(b"row 17"), black_box(&sealed)))
                .unwrap()
        });
    });
    group.finish();
}

criterion_group!(benches, decrypt);
criterion_main!(benches);
