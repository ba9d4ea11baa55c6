//! What a policy costs where its decision is cached: calls of an envelope behind a policy, on
//! behalf of a caller, in units of the same call of an envelope without one.
//!
//!     cargo bench -p waxseal-benches --features aws-lc --bench policy
//!
//! Every round times a block of calls of each, one right after the other in random order. A figure
//! is the median over the rounds of the ratios; behind it stand the quartiles. *Control* is the
//! envelope without a policy once more.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_precision_loss)]

mod support;

use std::hint::black_box;
use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use support::{AAD, Open, at_once, bench_caller};
use waxseal::kek::local::LocalKek;
use waxseal::policy::PolicyOptions;
use waxseal::{Aad, Caller, EncryptionContext, Envelope, Limits};

const TIME: Duration = Duration::from_secs(3);
const CALLS: usize = 200;

type Call<'a> = (&'static str, Box<dyn Fn() + 'a>);

/// The calls of one envelope, without a policy or behind one.
fn calls<'a>(
    envelope: &'a Envelope,
    caller: Option<&'a Caller>,
    context: &'a EncryptionContext,
    payload: &'a [u8],
    sealed: &'a [u8],
) -> [Call<'a>; 4] {
    let aad = Aad::from(AAD);
    let encrypt = move || {
        let sealed = match caller {
            Some(caller) => at_once(envelope.acting_for(caller).encrypt(context, aad, payload)),
            None => at_once(envelope.encrypt(context, aad, payload)),
        };
        black_box(sealed.unwrap());
    };
    let decrypt = move || {
        let opened = match caller {
            Some(caller) => at_once(envelope.acting_for(caller).decrypt(context, aad, sealed)),
            None => at_once(envelope.decrypt(context, aad, sealed)),
        };
        black_box(opened.unwrap());
    };
    let cached = move || {
        let opened = match caller {
            Some(caller) => envelope.acting_for(caller).decrypt_cached(context, aad, sealed),
            None => envelope.decrypt_cached(context, aad, sealed),
        };
        black_box(opened.unwrap().unwrap());
    };
    let handle = match caller {
        Some(caller) => at_once(envelope.acting_for(caller).decryptor(context, sealed)),
        None => at_once(envelope.decryptor(context, sealed)),
    }
    .unwrap();
    let handle = move || {
        black_box(handle.decrypt(aad, sealed).unwrap());
    };
    [
        ("encrypt", Box::new(encrypt)),
        ("decrypt", Box::new(decrypt)),
        ("decrypt_cached", Box::new(cached)),
        ("decryptor, decrypt", Box::new(handle)),
    ]
}

fn time(call: &dyn Fn()) -> f64 {
    let start = Instant::now();
    (0..CALLS).for_each(|_| call());
    start.elapsed().as_nanos() as f64 / CALLS as f64
}

fn row(len: usize, plain: &Call<'_>, behind: &Call<'_>) {
    let contenders = [&plain.1, &plain.1, &behind.1];
    let (mut order, mut ratios, mut bare) = ([0, 1, 2], [Vec::new(), Vec::new()], Vec::new());
    let start = Instant::now();
    while start.elapsed() < TIME {
        order.shuffle(&mut rand::rng());
        let mut times = [0.0; 3];
        order.iter().for_each(|&one| times[one] = time(contenders[one]));
        bare.push(times[0]);
        ratios[0].push(times[1] / times[0]);
        ratios[1].push(times[2] / times[0]);
    }
    let quartiles = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
    };
    let [_, bare, _] = quartiles(&mut bare);
    let [control, policy] = ratios.each_mut().map(quartiles);
    let shown = |[low, middle, high]: [f64; 3]| format!("{middle:.3} ({low:.3}, {high:.3})");
    println!(
        "{:<20} {len:>6} B | {bare:>7.0} ns | control {} | policy {}",
        plain.0,
        shown(control),
        shown(policy)
    );
}

fn main() {
    let limits = Limits::default()
        .max_messages(1 << 32)
        .max_bytes(1 << 50)
        .max_age(Duration::from_secs(24 * 3600));
    let kek = LocalKek::in_memory("bench").unwrap();
    let builder = || Envelope::builder().wrap_with(kek.clone()).limits(limits);
    let plain = builder().build().unwrap();
    // Longer than the run, so that each call finds its decision.
    let options = PolicyOptions::default().cache_for(Duration::from_secs(24 * 3600));
    let behind = builder().policy(Open, options).build().unwrap();
    let caller = bench_caller();
    let context = EncryptionContext::new([("tenant", "alice"), ("table", "customers")]).unwrap();
    for len in [64, 1024, 16 * 1024] {
        let payload = vec![7; len];
        let sealed = at_once(plain.encrypt(&context, Aad::from(AAD), &payload)).unwrap();
        let without = calls(&plain, None, &context, &payload, &sealed);
        let with = calls(&behind, Some(&caller), &context, &payload, &sealed);
        for (without, with) in without.iter().zip(&with) {
            row(len, without, with);
        }
    }
}
