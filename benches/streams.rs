//! Streams: their rate by that of the bare AEAD, what a second thread brings, and the memory of a long one.
//!
//!     cargo bench -p waxseal-benches --features aws-lc --bench streams
//!     cargo bench -p waxseal-benches --features aws-lc --bench streams -- pipe 10
//!
//! The first times 64 MiB from memory to memory in chunks of 64 KiB, interleaved with the bare AEAD in place on buffers of 64 KiB; a
//! figure is the median over the rounds of ours by theirs in the same round. The second puts so many GiB through a pipe between two
//! threads, one that encrypts and one that decrypts, and prints the most memory that the process ever had. Nothing else should run
//! meanwhile.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_precision_loss)]

mod support;

use std::io::{self, Read, Write};
use std::num::NonZero;
use std::time::{Duration, Instant};

use support::{Bare, median};
use waxseal::kek::local::LocalKek;
use waxseal::{Aad, Backend, EncryptionContext, Envelope, Limits, StreamDecryptor, StreamHead};

const LEN: usize = 64 << 20;
const CHUNK: usize = 64 << 10;
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

    fn encrypt(&self, threads: usize, from: &[u8], to: &mut Vec<u8>) -> f64 {
        to.clear();
        let encryptor = pollster::block_on(self.envelope.stream_encryptor(
            &self.context,
            Aad::empty(),
            Default::default(),
        ));
        let (encryptor, start) = (encryptor.unwrap(), Instant::now());
        match threads {
            1 => {
                let mut writer = encryptor.writer(to);
                writer.write_all(from).unwrap();
                writer.finish().unwrap();
            }
            n => drop(encryptor.encrypt(NonZero::new(n).unwrap(), from, to).unwrap()),
        }
        start.elapsed().as_secs_f64()
    }

    fn decryptor(&self, from: &mut impl Read) -> StreamDecryptor {
        let head = StreamHead::read(from).unwrap();
        let decryptor = self.envelope.stream_decryptor(&self.context, Aad::empty(), &head);
        pollster::block_on(decryptor).unwrap()
    }

    fn decrypt(&self, threads: usize, mut from: &[u8], to: &mut Vec<u8>) -> f64 {
        to.clear();
        let (decryptor, start) = (self.decryptor(&mut from), Instant::now());
        match threads {
            1 => drop(io::copy(&mut decryptor.reader(from), to).unwrap()),
            n => drop(decryptor.decrypt(NonZero::new(n).unwrap(), from, to).unwrap()),
        }
        start.elapsed().as_secs_f64()
    }
}

/// As many bytes through the bare AEAD.
fn bare(bare: &Bare, chunk: &mut [u8]) -> f64 {
    let start = Instant::now();
    for _ in 0..LEN / CHUNK {
        std::hint::black_box(bare.seal(chunk));
    }
    start.elapsed().as_secs_f64()
}

fn rates() {
    let plaintext: Vec<u8> = (0..=255).cycle().take(LEN).collect();
    let (mut sealed, mut opened) = (Vec::with_capacity(LEN * 2), Vec::with_capacity(LEN * 2));
    for backend in Backend::all().iter().rev() {
        let (ground, aead) = (Ground::new(*backend), Bare::new(*backend));
        let mut chunk = vec![7; CHUNK];
        let mut figures = [const { Vec::new() }; 5];
        for _ in 0..ROUNDS {
            let bare = bare(&aead, &mut chunk);
            let [encrypt, encrypt_2] = [1, 2].map(|n| ground.encrypt(n, &plaintext, &mut sealed));
            let [decrypt, decrypt_2] = [1, 2].map(|n| ground.decrypt(n, &sealed, &mut opened));
            assert!(opened == plaintext);
            let round =
                [bare, bare / encrypt, bare / decrypt, encrypt / encrypt_2, decrypt / decrypt_2];
            figures.iter_mut().zip(round).for_each(|(all, figure)| all.push(figure));
        }
        let [bare, encrypt, decrypt, encrypt_2, decrypt_2] =
            figures.map(|mut figures| median(&mut figures));
        println!(
            "{backend:?}: bare {:.2} GB/s | of its rate: encrypt {encrypt:.2}, decrypt {decrypt:.2} | \
             two threads by one: encrypt {encrypt_2:.2}, decrypt {decrypt_2:.2}",
            LEN as f64 / bare / 1e9
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
        _ => rates(),
    }
}
