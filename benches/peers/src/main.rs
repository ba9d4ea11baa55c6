//! Waxseal beside its peers, in one run: see `run`, which makes the Python environment.
//!
//! Every figure is the time of a peer by that of Waxseal for the same bytes, from memory to memory,
//! on one thread, each with one local key: above 1, Waxseal is faster. Rounds alternate between all
//! of them, and a figure is the median over the rounds of the ratio within a round. The peers of
//! Python run in one process that is there from the beginning, and measure themselves: no start and
//! no pipe is in their time.
//!
//! What an interpreter and a binding cost in each call is in the row of 0 bytes. The second table
//! of each pair takes it off: there a figure compares what the bytes take beyond an empty call, on
//! both sides.
#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::hint::black_box;
use std::io::{BufRead, BufReader, Read, Write};
use std::ops::Deref;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use age_core::format::{FileKey, Stanza};
use age_core::primitives::{aead_decrypt, aead_encrypt};
use age_core::secrecy::ExposeSecret;
use pollster::block_on;
use waxseal::kek::local::LocalKek;
use waxseal::{Aad, EncryptionContext, Envelope, Limits};

const SIZES: [usize; 7] = [0, 1 << 10, 16 << 10, 64 << 10, 1 << 20, 16 << 20, 64 << 20];
/// From this size on, what the bytes take is more than the noise of an empty call.
const BULK: usize = 64 << 10;
const ROUNDS: usize = 5;
/// So long each is measured in a round, and for one call at least.
const SLOT: Duration = Duration::from_millis(25);

type Opened = Box<dyn Deref<Target = [u8]>>;

/// What is measured: encrypts and decrypts. Both give what they made.
trait Subject {
    fn encrypt(&self, plaintext: &[u8]) -> Vec<u8>;
    fn decrypt(&self, sealed: &[u8]) -> Opened;
}

struct Ours {
    envelope: Envelope,
    context: EncryptionContext,
}

impl Ours {
    fn new() -> Self {
        let limits = Limits::default().max_bytes(1 << 50).max_messages(1 << 32);
        let kek = LocalKek::in_memory("bench").unwrap();
        let envelope = Envelope::builder().wrap_with(kek).limits(limits).build().unwrap();
        Self { envelope, context: EncryptionContext::new([("tenant", "alice")]).unwrap() }
    }
}

/// `Envelope::encrypt_stream` and `decrypt_stream`, in chunks of 64 KiB.
struct Stream(Ours);

impl Subject for Stream {
    fn encrypt(&self, plaintext: &[u8]) -> Vec<u8> {
        let Ours { envelope, context } = &self.0;
        let to = Vec::with_capacity(plaintext.len() + plaintext.len() / 1024 + 1024);
        let writer = envelope.encrypt_stream(context, Aad::empty(), to);
        let mut writer = block_on(writer).unwrap();
        writer.write_all(plaintext).unwrap();
        writer.finish().unwrap()
    }

    fn decrypt(&self, sealed: &[u8]) -> Opened {
        let Ours { envelope, context } = &self.0;
        let mut opened = Vec::with_capacity(sealed.len());
        let mut reader = block_on(envelope.decrypt_stream(context, Aad::empty(), sealed)).unwrap();
        reader.read_to_end(&mut opened).unwrap();
        Box::new(opened)
    }
}

/// `Envelope::encrypt` and `decrypt`: one message.
struct Message(Ours);

impl Subject for Message {
    fn encrypt(&self, plaintext: &[u8]) -> Vec<u8> {
        block_on(self.0.envelope.encrypt(&self.0.context, Aad::empty(), plaintext)).unwrap()
    }

    /// Its time has the wipe of the plaintext in it.
    fn decrypt(&self, sealed: &[u8]) -> Opened {
        let opened = block_on(self.0.envelope.decrypt(&self.0.context, Aad::empty(), sealed));
        Box::new(opened.unwrap())
    }
}

/// age with its own recipients, an X25519 key.
struct Age(age::x25519::Identity, age::x25519::Recipient);

/// age with a recipient that wraps file keys by a symmetric key, as a local KEK does.
struct AgeSymmetric([u8; 32]);

impl age::Recipient for AgeSymmetric {
    fn wrap_file_key(
        &self,
        file_key: &FileKey,
    ) -> Result<(Vec<Stanza>, HashSet<String>), age::EncryptError> {
        // Each file has another key, so the nonce may be the same.
        let body = aead_encrypt(&self.0, file_key.expose_secret());
        Ok((vec![Stanza { tag: "bench".into(), args: vec![], body }], HashSet::new()))
    }
}

impl age::Identity for AgeSymmetric {
    fn unwrap_stanza(&self, stanza: &Stanza) -> Option<Result<FileKey, age::DecryptError>> {
        let key = aead_decrypt(&self.0, 16, &stanza.body).ok()?;
        Some(Ok(FileKey::new(Box::new(key.try_into().ok()?))))
    }
}

fn age_encrypt(recipient: &dyn age::Recipient, plaintext: &[u8]) -> Vec<u8> {
    let encryptor = age::Encryptor::with_recipients([recipient].into_iter()).unwrap();
    let to = Vec::with_capacity(plaintext.len() + plaintext.len() / 1024 + 1024);
    let mut writer = encryptor.wrap_output(to).unwrap();
    writer.write_all(plaintext).unwrap();
    writer.finish().unwrap()
}

fn age_decrypt(identity: &dyn age::Identity, sealed: &[u8]) -> Opened {
    let mut opened = Vec::with_capacity(sealed.len());
    let decryptor = age::Decryptor::new_buffered(sealed).unwrap();
    decryptor.decrypt([identity].into_iter()).unwrap().read_to_end(&mut opened).unwrap();
    Box::new(opened)
}

impl Subject for Age {
    fn encrypt(&self, plaintext: &[u8]) -> Vec<u8> {
        age_encrypt(&self.1, plaintext)
    }

    fn decrypt(&self, sealed: &[u8]) -> Opened {
        age_decrypt(&self.0, sealed)
    }
}

impl Subject for AgeSymmetric {
    fn encrypt(&self, plaintext: &[u8]) -> Vec<u8> {
        age_encrypt(self, plaintext)
    }

    fn decrypt(&self, sealed: &[u8]) -> Opened {
        age_decrypt(self, sealed)
    }
}

/// Seconds of one call.
fn time(subject: &dyn Subject, what: &str, plaintext: &[u8]) -> f64 {
    let sealed = subject.encrypt(plaintext);
    assert!(**subject.decrypt(&sealed) == *plaintext);
    let (mut calls, start) = (0, Instant::now());
    loop {
        match what {
            "encrypt" => drop(black_box(subject.encrypt(plaintext))),
            _ => drop(black_box(subject.decrypt(&sealed))),
        }
        calls += 1;
        if start.elapsed() >= SLOT {
            return start.elapsed().as_secs_f64() / f64::from(calls);
        }
    }
}

/// The process of peers.py.
struct Python {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
}

impl Python {
    fn start(python: &str, script: &str) -> Self {
        let mut process = Command::new(python)
            .arg(script)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the Python of the environment that `run` makes");
        let (to, from) = (process.stdin.take().unwrap(), process.stdout.take().unwrap());
        let mut python = Self { process, to, from: BufReader::new(from) };
        assert_eq!(python.line(), "ready");
        python
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    fn time(&mut self, name: &str, what: &str, size: usize) -> f64 {
        writeln!(self.to, "{name} {what} {size} {}", SLOT.as_secs_f64()).unwrap();
        self.line().parse().expect("a time: see what Python says above")
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

fn shown(bytes: usize) -> String {
    match bytes {
        0 => "0 B".to_owned(),
        1..1_048_576 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

/// The seconds that everybody takes for one size.
#[derive(Clone)]
struct Round {
    ours: [f64; 2],
    peers: Vec<f64>,
}

/// What a peer is compared with.
#[derive(Clone, Copy)]
enum With {
    /// Our stream: it works in chunks too.
    Stream,
    /// Our message: it makes no stream itself.
    Message,
}

impl Round {
    /// Returns the time of each peer by ours.
    fn ratios(&self, with: &[With]) -> Vec<f64> {
        let [stream, message] = self.ours;
        let ours = |with: &With| match with {
            With::Stream => stream,
            With::Message => message,
        };
        self.peers.iter().zip(with).map(|(peer, with)| peer / ours(with)).collect()
    }

    /// Takes off what an empty call takes.
    fn beyond(&self, empty: &Self) -> Self {
        let peers = self.peers.iter().zip(&empty.peers).map(|(all, empty)| all - empty);
        Self {
            ours: [self.ours[0] - empty.ours[0], self.ours[1] - empty.ours[1]],
            peers: peers.collect(),
        }
    }
}

/// Prints the medians of these rounds as a row, and returns the least ratio.
fn row(size: usize, rounds: &[Round], with: &[With]) -> f64 {
    print!("| {} |", shown(size));
    for ours in 0..2 {
        print!(" {:.1} µs |", median(rounds.iter().map(|it| it.ours[ours]).collect()) * 1e6);
    }
    let ratios: Vec<_> = rounds.iter().map(|round| round.ratios(with)).collect();
    let of = |peer: usize| median(ratios.iter().map(|ratios| ratios[peer]).collect());
    let medians: Vec<_> = (0..with.len()).map(of).collect();
    medians.iter().for_each(|ratio| print!(" {ratio:.2} |"));
    println!();
    medians.into_iter().fold(f64::INFINITY, f64::min)
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, python, script] = &arguments[..] else {
        panic!("use ./run, which gives the Python of its environment and the script")
    };
    let mut python = Python::start(python, script);
    let identity = age::x25519::Identity::generate();
    let recipient = identity.to_public();
    let rust: [(&str, Box<dyn Subject>); 2] = [
        ("age, X25519", Box::new(Age(identity, recipient))),
        ("age, a symmetric key", Box::new(AgeSymmetric([7; 32]))),
    ];
    let of_python = [
        ("AWS ESDK (Python)", "esdk", With::Stream),
        ("Tink stream, 1 MiB (Python)", "tink-1m", With::Stream),
        ("Tink stream, 4 KiB (Python)", "tink-4k", With::Stream),
        ("Tink AEAD (Python)", "tink-aead", With::Message),
    ];
    let names = rust.iter().map(|(name, _)| *name).chain(of_python.map(|(name, ..)| name));
    let names: Vec<_> = names.collect();
    let with = rust.iter().map(|_| With::Stream).chain(of_python.map(|(.., with)| with));
    let with: Vec<_> = with.collect();
    let ours = [
        Box::new(Stream(Ours::new())) as Box<dyn Subject>,
        Box::new(Message(Ours::new())) as Box<dyn Subject>,
    ];
    let title = |of: &str| {
        println!("| {of} | Waxseal, stream | Waxseal, message | {} |", names.join(" | "));
        println!("|---|{}", "---:|".repeat(2 + names.len()));
    };
    let mut least = f64::INFINITY;
    for what in ["encrypt", "decrypt"] {
        title(what);
        let mut empty: Vec<Round> = Vec::new();
        let mut bulk = Vec::new();
        for size in SIZES {
            let plaintext = vec![7; size];
            let mut rounds = Vec::new();
            for _ in 0..ROUNDS {
                let ours = [0, 1].map(|of| time(&*ours[of], what, &plaintext));
                let mut peers: Vec<_> =
                    rust.iter().map(|(_, peer)| time(&**peer, what, &plaintext)).collect();
                peers.extend(of_python.map(|(_, name, _)| python.time(name, what, size)));
                rounds.push(Round { ours, peers });
            }
            least = least.min(row(size, &rounds, &with));
            if size == 0 {
                empty = rounds;
            } else if size >= BULK {
                bulk.push((size, rounds));
            }
        }
        println!();
        title(&format!("{what}, beyond an empty call"));
        for (size, rounds) in bulk {
            let beyond = rounds.iter().zip(&empty).map(|(all, empty)| all.beyond(empty));
            least = least.min(row(size, &beyond.collect::<Vec<_>>(), &with));
        }
        println!();
    }
    println!("the least of all: {least:.2}");
}
