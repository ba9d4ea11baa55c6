//! What the library adds to the bare AEAD, in place, in units of what the bare AEAD takes for 1 KiB
//! in the same run.
//!
//!     cargo bench -p waxseal-benches --features aws-lc --bench overhead
//!
//! Every round times a block of calls of each contender, one right after the other in random order,
//! on the same buffers. A figure is the median over the rounds of (ours - bare), by the median of
//! bare 1 KiB in the same rounds; behind it stands half the 95 % confidence interval of that
//! median. *Control* is the bare AEAD once more, and shows what the machine can tell apart.
#![allow(missing_docs)]
#![allow(clippy::indexing_slicing)]

mod support;

use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use support::{Contender, Ground, median};
use waxseal::Backend;

const SIZES: [usize; 5] = [0, 64, 1024, 16 * 1024, 1024 * 1024];
/// How long each row is measured.
const TIME: Duration = Duration::from_secs(3);

fn row(title: &str, unit: &Contender<'_>, contenders: &[Contender<'_>]) {
    let [bare, others @ ..] = contenders else { return };
    let (mut unit_buffers, mut buffers) = (unit.buffers(), bare.buffers());
    let calls = |buffers: &[Vec<u8>]| f64::from(u32::try_from(buffers.len()).unwrap_or(u32::MAX));
    let (mut units, mut bares, mut added) =
        (Vec::new(), Vec::new(), vec![Vec::new(); others.len()]);
    let mut times = vec![0.0; contenders.len()];
    let mut order: Vec<_> = (0..contenders.len()).collect();
    let start = Instant::now();
    while start.elapsed() < TIME {
        units.push(unit.time(&mut unit_buffers) / calls(&unit_buffers));
        order.shuffle(&mut rand::rng());
        for &contender in &order {
            times[contender] = contenders[contender].time(&mut buffers) / calls(&buffers);
        }
        bares.push(times[0]);
        for (added, time) in added.iter_mut().zip(&times[1..]) {
            added.push(time - times[0]);
        }
    }
    let unit = median(&mut units);
    print!("{title} | bare {:>7.0} ns, unit {unit:>3.0} ns", median(&mut bares));
    for (contender, added) in others.iter().zip(&mut added) {
        let middle = median(added);
        // Between these ranks the true median lies in 95 of 100 runs.
        let reach = added.len().isqrt().min(added.len() / 2);
        let interval =
            added[(added.len() / 2 + reach).min(added.len() - 1)] - added[added.len() / 2 - reach];
        print!(" | {} {:.2} ±{:.2}", contender.name, middle / unit, interval / 2.0 / unit);
    }
    println!();
}

fn main() {
    for backend in Backend::all().iter().rev() {
        let ground = Ground::new(*backend);
        for len in SIZES {
            let control = ground.bare_seal(len).named("control");
            let contenders: Vec<_> =
                [ground.bare_seal(len), control].into_iter().chain(ground.seal(len)).collect();
            row(&format!("{backend:?}, seal {len:>7} B"), &ground.bare_seal(1024), &contenders);
        }
        for len in SIZES {
            let control = ground.bare_open(len).named("control");
            let contenders: Vec<_> =
                [ground.bare_open(len), control].into_iter().chain(ground.open(len)).collect();
            row(&format!("{backend:?}, open {len:>7} B"), &ground.bare_open(1024), &contenders);
        }
    }
}
