//! What an audit trail costs where the DEK is cached, as ratios to the same calls without one.
//!
//!     cargo bench -p waxseal-benches --features aws-lc,audit --bench audit
//!
//! Every round times a block of calls of each envelope, one right after the other in random order.
//! A figure is the median over the rounds.
#![allow(missing_docs)]
#![allow(clippy::indexing_slicing, clippy::unwrap_used)]

mod support;

use std::hint::black_box;
use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use support::median;
use waxseal::audit::{AuditTrail, TrailDirectory};
use waxseal::kek::local::LocalKek;
use waxseal::{Aad, Caller, EncryptionContext, Envelope};

const TIME: Duration = Duration::from_secs(4);
const CALLS: u32 = 2000;

struct Contender {
    name: &'static str,
    envelope: Envelope,
    sealed: Vec<u8>,
}

fn main() {
    let directory = tempfile::tempdir().unwrap();
    let trail = |name: &str, summaries: bool| {
        let builder =
            AuditTrail::builder().directory(TrailDirectory::new(directory.path().join(name)));
        let every = Duration::from_secs(10);
        let builder = if summaries { builder.access_summaries(every) } else { builder };
        builder.start().unwrap()
    };
    let (plain, counting) = (trail("plain", false), trail("counting", true));
    let context = EncryptionContext::new([("tenant", "alice")]).unwrap();
    let kek = LocalKek::in_memory("bench").unwrap();
    let contender = |name: &'static str, trail: Option<&AuditTrail>| {
        let builder = Envelope::builder().wrap_with(kek.clone());
        let builder = match trail {
            Some(trail) => builder.observer(trail.clone()),
            None => builder,
        };
        let envelope = builder.build().unwrap();
        let sealed = pollster::block_on(envelope.encrypt(&context, Aad::empty(), &[7; 64]));
        Contender { name, envelope, sealed: sealed.unwrap() }
    };
    let contenders = [
        contender("without a trail", None),
        contender("control", None),
        contender("with a trail", Some(&plain)),
        contender("with summaries", Some(&counting)),
    ];
    let caller = Caller::builder().service("billing").role("clerk").build().unwrap();
    let decrypt_for = |of: &Contender| {
        let envelope = of.envelope.acting_for(&caller);
        let plain = envelope.decrypt_cached(&context, Aad::empty(), black_box(&of.sealed));
        assert!(plain.unwrap().is_some());
    };
    let decrypt = |of: &Contender| {
        let plain = of.envelope.decrypt_cached(&context, Aad::empty(), black_box(&of.sealed));
        assert!(plain.unwrap().is_some());
    };
    let encrypt = |of: &Contender| {
        let text = black_box(&[7; 64]);
        black_box(pollster::block_on(of.envelope.encrypt(&context, Aad::empty(), text)).unwrap());
    };
    for threads in [1, 2] {
        row("decrypt_cached, 64 B", threads, &contenders, &decrypt);
        row("the same for a caller", threads, &contenders, &decrypt_for);
        row("encrypt, 64 B", threads, &contenders, &encrypt);
    }
    assert!(plain.flush(TIME) && counting.flush(TIME));
}

fn row(title: &str, threads: usize, contenders: &[Contender], call: &(dyn Fn(&Contender) + Sync)) {
    let mut times = vec![Vec::new(); contenders.len()];
    let mut order: Vec<_> = (0..contenders.len()).collect();
    let start = Instant::now();
    while start.elapsed() < TIME {
        order.shuffle(&mut rand::rng());
        for &contender in &order {
            let began = Instant::now();
            std::thread::scope(|scope| {
                for _ in 0..threads {
                    scope.spawn(|| (0..CALLS).for_each(|_| call(&contenders[contender])));
                }
            });
            times[contender].push(began.elapsed().as_secs_f64() * 1e9 / f64::from(CALLS));
        }
    }
    let medians: Vec<f64> = times.iter_mut().map(|times| median(times)).collect();
    print!("{title:<22} {threads} threads | {:>6.0} ns", medians[0]);
    for (contender, time) in contenders.iter().zip(&medians).skip(1) {
        print!(" | {} {:.3} ({:+.0} ns)", contender.name, time / medians[0], time - medians[0]);
    }
    println!();
}
