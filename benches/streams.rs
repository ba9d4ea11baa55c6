//! Streams: their rate by that of the best bare AEAD, what a second thread brings, and the memory
//! of a long one.
//!
//!     cargo bench -p waxseal-benches --features aws-lc,ring --bench streams
//!     cargo bench -p waxseal-benches --features aws-lc,ring --bench streams -- pipe 10
//!
//! The first puts 64 MiB and 1 MiB from memory to memory in chunks of 64 KiB, to buffers that were
//! used before. The unit is the rate of the fastest bare AEAD of the build, in place on one chunk
//! over and over, which stays in the nearest cache. Beside it: the same AEAD from buffer to buffer
//! over all of the memory, on one thread and on two, a copy, and a fill with zeros. All contenders
//! take turns in random order; a figure is the median of the rounds, and what two threads gain that
//! of the ratios of a round. The second puts so many GiB through a pipe between two threads, one
//! that encrypts and one that decrypts, and prints the most memory that the process ever had.
//! Nothing else should run meanwhile.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_precision_loss)]

mod support;

use std::io::{self, Read, Write};
use std::num::NonZero;
use std::time::{Duration, Instant};

use rand::seq::SliceRandom;
use support::{Bare, median};
use waxseal::kek::local::LocalKek;
use waxseal::{
    Aad, Backend, EncryptionContext, Envelope, Limits, StreamDecryptor, StreamEncryptor, StreamHead,
};

const LEN: usize = 64 << 20;
const CHUNK: usize = 64 << 10;
const SEALED: usize = CHUNK + 16;
const ROUNDS: usize = 15;

struct Ground {
    envelope: Envelope,
    context: EncryptionContext,
}

impl Ground {
    fn new(backend: Backend) -> Self {
        let kek = LocalKek::in_memory("bench").unwrap();
        let limits =
            Limits::default().max_bytes(1 << 50).max_stream_age(Duration::from_secs(23 * 3600));
        let builder = Envelope::builder().wrap_with(kek).backend(backend).limits(limits);
        let context = EncryptionContext::new([("tenant", "alice")]).unwrap();
        Self { envelope: builder.build().unwrap(), context }
    }

    fn encryptor(&self) -> StreamEncryptor {
        let options = Default::default();
        let encryptor = self.envelope.stream_encryptor(&self.context, Aad::empty(), options);
        pollster::block_on(encryptor).unwrap()
    }

    fn decryptor(&self, from: &mut impl Read) -> StreamDecryptor {
        let head = StreamHead::read(from).unwrap();
        let decryptor = self.envelope.stream_decryptor(&self.context, Aad::empty(), &head);
        pollster::block_on(decryptor).unwrap()
    }
}

/// Its name, and what gives the seconds of one run.
type Contender = (String, Box<dyn FnMut() -> f64>);

fn timed(work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    start.elapsed().as_secs_f64()
}

/// As many bytes through the bare AEAD, in place on one chunk.
fn bare_in_place(bare: &Bare, len: usize) -> f64 {
    let mut chunk = vec![7; CHUNK];
    timed(|| {
        for _ in 0..len / CHUNK {
            std::hint::black_box(bare.seal(&mut chunk));
        }
    })
}

/// The bare AEAD from buffer to buffer. The chunks lie as in a stream, each with its tag behind it.
fn bare_between(bare: &Bare, from: &[u8], to: &mut [u8]) {
    for (from, to) in from.chunks(CHUNK).zip(to.chunks_exact_mut(SEALED)) {
        let (to, tag) = to.split_last_chunk_mut().unwrap();
        *tag = bare.seal_to(from, to);
    }
}

fn rates(len: usize) {
    // Once for each size: what all contenders share is never freed.
    let plaintext: &'static Vec<u8> = Box::leak(Box::new((0..=255).cycle().take(len).collect()));
    let aeads: Vec<_> = Backend::all().iter().map(|b| (*b, Bare::new(*b))).collect();
    let aeads: &'static [(Backend, Bare)] = Box::leak(aeads.into());
    let mut contenders: Vec<Contender> = Vec::new();
    for (backend, aead) in aeads {
        contenders.push((
            format!("{backend:?}, bare, in place"),
            Box::new(move || bare_in_place(aead, len)),
        ));
    }
    let mut copy = vec![1; len];
    contenders.push((
        "a copy".to_owned(),
        Box::new(move || timed(|| std::hint::black_box(&mut copy).copy_from_slice(plaintext))),
    ));
    let mut zeros = vec![1; len];
    contenders.push((
        "zeros".to_owned(),
        Box::new(move || timed(|| std::hint::black_box(&mut zeros).fill(0))),
    ));
    for (backend, aead) in aeads.iter().rev() {
        let ground: &'static Ground = Box::leak(Box::new(Ground::new(*backend)));
        let sealed = ground.encryptor().encrypt_slice(NonZero::<usize>::MIN, plaintext).unwrap();
        let sealed: &'static [u8] = Box::leak(sealed.into_boxed_slice());
        let [one, two] = [1, 2].map(|n| NonZero::new(n).unwrap());
        let mut add = |name: &str, run: Box<dyn FnMut() -> f64>| {
            contenders.push((format!("{backend:?}, {name}"), run));
        };
        let mut to = vec![1; len / CHUNK * SEALED];
        add("bare", Box::new(move || timed(|| bare_between(aead, plaintext, &mut to))));
        let mut to = vec![1; len / CHUNK * SEALED];
        let halves = move || {
            let (first, second) = to.split_at_mut(len / CHUNK / 2 * SEALED);
            timed(|| {
                std::thread::scope(|scope| {
                    scope.spawn(|| bare_between(aead, &plaintext[..len / 2], first));
                    bare_between(aead, &plaintext[len / 2..], second);
                });
            })
        };
        add("bare, two threads", Box::new(halves));

        let mut to = Vec::with_capacity(2 * len);
        let write = move || {
            to.clear();
            let mut writer = ground.encryptor().writer(&mut to);
            timed(|| {
                writer.write_all(plaintext).unwrap();
                writer.finish().unwrap();
            })
        };
        add("encrypt, writer", Box::new(write));
        for (threads, name) in [(one, "slices"), (two, "slices, two threads")] {
            let mut to = vec![1; sealed.len()];
            let slices = move || {
                let key = ground.encryptor();
                timed(|| key.encrypt_slice_to(threads, plaintext, &mut to).unwrap())
            };
            add(&format!("encrypt, {name}"), Box::new(slices));
        }
        for (threads, name) in [(one, "one thread"), (two, "two threads")] {
            let mut to = Vec::with_capacity(2 * len);
            let line = move || {
                to.clear();
                let key = ground.encryptor();
                timed(|| _ = key.encrypt(threads, &plaintext[..], &mut to).unwrap())
            };
            add(&format!("encrypt, reader to writer, {name}"), Box::new(line));
        }

        let mut to = Vec::with_capacity(2 * len);
        let read = move || {
            to.clear();
            let mut from = sealed;
            let mut reader = ground.decryptor(&mut from).reader(from);
            let time = timed(|| _ = io::copy(&mut reader, &mut to).unwrap());
            assert!(to == *plaintext);
            time
        };
        add("decrypt, read to the end", Box::new(read));
        let mut to = vec![1; len];
        let exactly = move || {
            let mut from = sealed;
            let mut reader = ground.decryptor(&mut from).reader(from);
            timed(|| reader.read_exact(&mut to).unwrap())
        };
        add("decrypt, read to a buffer", Box::new(exactly));
        for (threads, name) in [(one, "slices"), (two, "slices, two threads")] {
            let mut to = vec![1; len];
            let slices = move || {
                let mut from = sealed;
                let key = ground.decryptor(&mut from);
                let time = timed(|| key.decrypt_slice_to(threads, from, &mut to).unwrap());
                assert!(to == *plaintext);
                time
            };
            add(&format!("decrypt, {name}"), Box::new(slices));
        }
        for (threads, name) in [(one, "one thread"), (two, "two threads")] {
            let mut to = Vec::with_capacity(2 * len);
            let line = move || {
                to.clear();
                let mut from = sealed;
                let key = ground.decryptor(&mut from);
                timed(|| _ = key.decrypt(threads, from, &mut to).unwrap())
            };
            add(&format!("decrypt, reader to writer, {name}"), Box::new(line));
        }
    }
    let mut times = vec![Vec::new(); contenders.len()];
    let mut order: Vec<_> = (0..contenders.len()).collect();
    for _ in 0..ROUNDS {
        order.shuffle(&mut rand::rng());
        for &at in &order {
            // The first run of a turn brings what fits there into the caches.
            let mut runs: Vec<_> =
                (0..(LEN / len).clamp(2, 8)).map(|_| (contenders[at].1)()).collect();
            times[at].push(median(&mut runs[1..]));
        }
    }
    let medians: Vec<_> = times.iter().map(|times| median(&mut times.clone())).collect();
    let best = medians[..aeads.len()].iter().copied().fold(f64::INFINITY, f64::min);
    println!("{} MiB", len >> 20);
    for (at, ((name, _), time)) in contenders.iter().zip(&medians).enumerate() {
        let gain = name.ends_with("two threads").then(|| {
            let mut ratios: Vec<_> =
                times[at - 1].iter().zip(&times[at]).map(|(one, two)| one / two).collect();
            format!(" | by one thread {:.2}", median(&mut ratios))
        });
        println!(
            "{name:>55}: {:6.2} GB/s, {:.2} of the best bare{}",
            len as f64 / time / 1e9,
            best / time,
            gain.unwrap_or_default()
        );
    }
}

/// The most memory that this process ever had, in KiB.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn pipe(gib: u64) {
    let ground = Ground::new(Backend::default());
    let (mut from, to) = io::pipe().unwrap();
    let (len, start) = (gib << 30, Instant::now());
    let read = std::thread::scope(|scope| {
        scope.spawn(|| {
            let writer = ground.envelope.encrypt_stream(&ground.context, Aad::empty(), to);
            let mut writer = pollster::block_on(writer).unwrap();
            let block = vec![7; 1 << 16];
            for _ in 0..len / block.len() as u64 {
                writer.write_all(&block).unwrap();
            }
            writer.finish().unwrap();
        });
        io::copy(&mut ground.decryptor(&mut from).reader(from), &mut io::sink()).unwrap()
    });
    assert_eq!(read, len);
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "{gib} GiB through a pipe: {:.2} GB/s, at most {:.1} MiB of memory",
        len as f64 / seconds / 1e9,
        peak() as f64 / 1024.0
    );
}

fn main() {
    let arguments: Vec<String> =
        std::env::args().filter(|argument| argument != "--bench").collect();
    match arguments.get(1).map(String::as_str) {
        Some("pipe") => pipe(arguments.get(2).map_or(10, |gib| gib.parse().unwrap())),
        _ => [1 << 20, LEN].into_iter().for_each(rates),
    }
}
