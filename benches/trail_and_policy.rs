//! What a policy and an audit trail cost together where DEK and decision are cached: calls of an
//! envelope with one of them and with both, in units of the same call of an envelope with neither.
//! At most 1.25 with both is the aim.
//!
//!     cargo bench -p waxseal-benches --features aws-lc,audit --bench trail_and_policy
//!
//! Every round times a block of calls of each, one right after the other in random order. A figure
//! is the median over the rounds of the ratios; behind it stand the quartiles. *Control* is the
//! envelope with neither once more.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_precision_loss)]

mod support;

use std::hint::black_box;
use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use support::{AAD, Open, at_once, bench_caller};
use waxseal::audit::{AuditTrail, TrailDirectory};
use waxseal::kek::local::LocalKek;
use waxseal::policy::PolicyOptions;
use waxseal::{Aad, Caller, EncryptionContext, Envelope, Limits};

const TIME: Duration = Duration::from_secs(4);
const CALLS: usize = 200;
const DAY: Duration = Duration::from_secs(24 * 3600);

/// One envelope, and a message of it.
struct Contender {
    name: &'static str,
    envelope: Envelope,
    caller: Option<Caller>,
    sealed: Vec<u8>,
}

type Call = (&'static str, fn(&Contender, &EncryptionContext, &[u8]));

/// Each on behalf of a caller where there is a policy: without one nobody has to be named.
const CALLS_OF: [Call; 3] = [
    ("encrypt", |of, context, payload| {
        let aad = Aad::from(AAD);
        let sealed = match &of.caller {
            Some(caller) => at_once(of.envelope.acting_for(caller).encrypt(context, aad, payload)),
            None => at_once(of.envelope.encrypt(context, aad, payload)),
        };
        black_box(sealed.unwrap());
    }),
    ("decrypt", |of, context, _| {
        let aad = Aad::from(AAD);
        let opened = match &of.caller {
            Some(caller) => {
                at_once(of.envelope.acting_for(caller).decrypt(context, aad, &of.sealed))
            }
            None => at_once(of.envelope.decrypt(context, aad, &of.sealed)),
        };
        black_box(opened.unwrap());
    }),
    ("decrypt_cached", |of, context, _| {
        let aad = Aad::from(AAD);
        let opened = match &of.caller {
            Some(caller) => of.envelope.acting_for(caller).decrypt_cached(context, aad, &of.sealed),
            None => of.envelope.decrypt_cached(context, aad, &of.sealed),
        };
        black_box(opened.unwrap().unwrap());
    }),
];

fn main() {
    let directory = tempfile::tempdir().unwrap();
    // With summaries of who read what, which every call counts into.
    let trail = |name: &str| {
        let directory = TrailDirectory::new(directory.path().join(name));
        let builder = AuditTrail::builder().directory(directory);
        builder.access_summaries(Duration::from_secs(10)).start().unwrap()
    };
    let (alone, beside) = (trail("alone"), trail("beside"));
    let context = EncryptionContext::new([("tenant", "alice"), ("table", "customers")]).unwrap();
    let limits = Limits::default().max_messages(1 << 32).max_bytes(1 << 50).max_age(DAY);
    let kek = LocalKek::in_memory("bench").unwrap();
    for len in [64, 1024, 16 * 1024] {
        let payload = vec![7; len];
        let contender = |name, has_policy: bool, trail: Option<&AuditTrail>| {
            let mut builder = Envelope::builder().wrap_with(kek.clone()).limits(limits);
            if has_policy {
                // Longer than the run, so that each call finds its decision.
                builder = builder.policy(Open, PolicyOptions::default().cache_for(DAY));
            }
            if let Some(trail) = trail {
                builder = builder.observer(trail.clone());
            }
            let envelope = builder.build().unwrap();
            let sealed = pollster::block_on(envelope.encrypt(&context, Aad::from(AAD), &payload));
            let caller = has_policy.then(bench_caller);
            Contender { name, envelope, caller, sealed: sealed.unwrap() }
        };
        let contenders = [
            contender("neither", false, None),
            contender("control", false, None),
            contender("policy", true, None),
            contender("trail", false, Some(&alone)),
            contender("both", true, Some(&beside)),
        ];
        for (name, call) in CALLS_OF {
            row(&format!("{name} {len} B"), &contenders, &|of| call(of, &context, &payload));
        }
    }
    assert!(alone.flush(TIME) && beside.flush(TIME));
}

fn row(title: &str, contenders: &[Contender; 5], call: &dyn Fn(&Contender)) {
    let mut order = [0, 1, 2, 3, 4];
    let (mut ratios, mut bare) = ([const { Vec::new() }; 5], Vec::new());
    let start = Instant::now();
    while start.elapsed() < TIME {
        order.shuffle(&mut rand::rng());
        let mut times = [0.0; 5];
        for &one in &order {
            let begin = Instant::now();
            (0..CALLS).for_each(|_| call(&contenders[one]));
            times[one] = begin.elapsed().as_nanos() as f64 / CALLS as f64;
        }
        bare.push(times[0]);
        (0..5).for_each(|one| ratios[one].push(times[one] / times[0]));
    }
    let quartiles = |values: &mut Vec<f64>| {
        values.sort_by(f64::total_cmp);
        [1, 2, 3].map(|quarter| values[values.len() * quarter / 4])
    };
    let [_, bare, _] = quartiles(&mut bare);
    print!("{title:<22} | {bare:>7.0} ns");
    for (contender, ratios) in contenders.iter().zip(&mut ratios).skip(1) {
        let [low, middle, high] = quartiles(ratios);
        print!(" | {} {middle:.3} ({low:.3}, {high:.3})", contender.name);
    }
    println!();
}
