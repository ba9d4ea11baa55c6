//! What a second thread brings: the library's gain from it, by the bare AEAD's own gain on the same
//! machine at the same time.
//!
//!     cargo bench -p waxseal-benches --features aws-lc --bench scaling
//!
//! Both threads use one envelope, one DEK and one handle, each on buffers of its own: 1 KiB, in
//! place. The *gain* is the calls a second of two threads by those of one. A pair is the gain of
//! the bare AEAD and that of the library, measured right after each other; the ratio is the median
//! over 15 pairs of the second by the first. Nothing else should run meanwhile.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

mod support;

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use support::{Contender, Ground, median};
use waxseal::Backend;

const LEN: usize = 1024;
const PAIRS: usize = 15;
/// How long each of a pair's four measurements takes.
const TIME: Duration = Duration::from_millis(100);

/// Calls a nanosecond of so many threads together. Filling the buffers again is not timed.
fn rate(contender: &Contender<'_>, threads: usize) -> f64 {
    let together = Barrier::new(threads);
    let one = || {
        let mut buffers = contender.buffers();
        together.wait();
        let (start, mut timed, mut calls) = (Instant::now(), 0.0, 0);
        while start.elapsed() < TIME {
            timed += contender.time(&mut buffers);
            calls += u32::try_from(buffers.len()).unwrap();
        }
        f64::from(calls) / timed
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(one)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    })
}

fn gain(contender: &Contender<'_>) -> f64 {
    let one = rate(contender, 1);
    rate(contender, 2) / one
}

fn row(title: &str, bare: &Contender<'_>, ours: &Contender<'_>) {
    let (mut bares, mut gains, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for pair in 0..PAIRS {
        // The order changes, so that a machine that becomes slower favours neither.
        let (of_bare, of_ours) = if pair % 2 == 0 {
            let of_bare = gain(bare);
            (of_bare, gain(ours))
        } else {
            let of_ours = gain(ours);
            (gain(bare), of_ours)
        };
        bares.push(of_bare);
        gains.push(of_ours);
        ratios.push(of_ours / of_bare);
    }
    let (ratio, bare, gain) = (median(&mut ratios), median(&mut bares), median(&mut gains));
    let (low, high) = (ratios[PAIRS / 4], ratios[PAIRS - 1 - PAIRS / 4]);
    println!(
        "{title:<34} | gain: bare {bare:.2}, ours {gain:.2} | ratio {ratio:.3} (quartiles {low:.3}, {high:.3})"
    );
}

fn main() {
    for backend in Backend::all().iter().rev() {
        let ground = Ground::new(*backend);
        let bare = ground.bare_seal(LEN);
        row(&format!("{backend:?}, seal, control"), &bare, &bare);
        for ours in &ground.seal(LEN) {
            row(&format!("{backend:?}, seal, {}", ours.name), &bare, ours);
        }
        let bare = ground.bare_open(LEN);
        row(&format!("{backend:?}, open, control"), &bare, &bare);
        for ours in &ground.open(LEN) {
            row(&format!("{backend:?}, open, {}", ours.name), &bare, ours);
        }
    }
}
