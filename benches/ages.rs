//! What a read costs while its DEK is fresh, due (and cannot be renewed), and in an outage past its
//! age: the last two against the first, interleaved, medians.
//!
//!     cargo bench -p waxseal-benches --features aws-lc,test-util --bench ages
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::{Duration, Instant};

use pollster::block_on;
use waxseal::kek::KekErrorClass;
use waxseal::kek::scripted::ScriptedKek;
use waxseal::{
    Aad, EncryptionContext, Envelope, KekId, Limits, ManualClock, WrappedDek, WrappedKeys,
};

const ROUNDS: usize = 201;
const READS: u32 = 500;

struct Reader {
    _kek: ScriptedKek,
    envelope: Envelope,
    alice: EncryptionContext,
    sealed: Vec<u8>,
}

impl Reader {
    /// A reader of one message whose DEK has this age, and whose list of wrapped keys is so much
    /// longer.
    fn new(age: Duration, extra: usize) -> Self {
        let (kek, clock) = (ScriptedKek::new("kek").unwrap(), ManualClock::new());
        let alice = EncryptionContext::new([("tenant", "alice")]).unwrap();
        let elsewhere = Envelope::builder().wrap_with(kek.local().clone()).build().unwrap();
        let compact = block_on(elsewhere.encrypt_compact(&alice, Aad::empty(), &[7; 64])).unwrap();
        let junk = (0..extra.div_ceil(6000)).map(|i| {
            WrappedDek::new(KekId::new(format!("x{i:02}")).unwrap(), vec![1; extra.min(6000)])
                .unwrap()
        });
        let keys =
            WrappedKeys::new(compact.wrapped_keys().entries().iter().cloned().chain(junk)).unwrap();
        let len = u16::try_from(keys.as_bytes().len()).unwrap().to_le_bytes();
        let message = compact.as_bytes();
        let sealed =
            [&message[..6], &len, &message[8..52], keys.as_bytes(), &message[52..]].concat();
        let limits = Limits::default()
            .max_age(Duration::from_secs(100))
            .stale_if_error_reading(Duration::from_secs(80_000));
        let builder =
            Envelope::builder().unwrap_with(kek.clone()).limits(limits).clock(clock.clone());
        let envelope = builder.build().unwrap();
        let reader = Self { _kek: kek.clone(), envelope, alice, sealed };
        reader.read();
        kek.fail_with(KekErrorClass::Unavailable);
        clock.advance(age);
        // It learns of the outage.
        reader.read();
        reader
    }

    fn read(&self) {
        block_on(self.envelope.decrypt(&self.alice, Aad::empty(), &self.sealed)).unwrap();
    }

    fn time(&self) -> Duration {
        let start = Instant::now();
        (0..READS).for_each(|_| self.read());
        start.elapsed() / READS
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

fn main() {
    println!(
        "{:>24} {:>10} {:>16} {:>16}",
        "bytes of wrapped keys", "fresh", "due", "past its age"
    );
    for extra in [0, 6_000, 60_000] {
        let readers = [0, 95, 101].map(|age| Reader::new(Duration::from_secs(age), extra));
        let mut times = [const { Vec::new() }; 3];
        for _ in 0..ROUNDS {
            for (reader, times) in readers.iter().zip(&mut times) {
                times.push(reader.time());
            }
        }
        let [fresh, due, past] = times.map(median);
        let ratio = |time: Duration| {
            format!("{time:.0?} ({:.2})", time.as_secs_f64() / fresh.as_secs_f64())
        };
        println!("{:>24} {fresh:>10.0?} {:>16} {:>16}", extra + 100, ratio(due), ratio(past));
    }
}
