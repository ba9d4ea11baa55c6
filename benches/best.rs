//! The library by the best bare AEAD of this machine: in place, into a new buffer, and many small
//! values in one call.
//!
//!     cargo bench -p waxseal-benches --features aws-lc,ring --bench best
//!
//! The unit of a row is the fastest bare AES-256-GCM, in place, among the backends of the build,
//! for the same size in the same run. All contenders of a row take turns in random order; a figure
//! is the median of the rounds. The library runs on its default backend. Words behind `--` choose
//! the rows whose titles have one of them: `-- many "1048576 B"`.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::cast_precision_loss)]

mod support;

use std::hint::black_box;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use support::{AAD, Bare, at_once, median};
use waxseal::kek::local::LocalKek;
use waxseal::{Aad, Backend, EncryptionContext, Envelope, Limits, Suite};

const TIME: Duration = Duration::from_secs(2);
const VALUES: usize = 10_000;

/// Its name, and what gives the nanoseconds of one call.
type Contender<'a> = (String, Box<dyn FnMut() -> f64 + 'a>);

fn per_call(calls: usize, mut call: impl FnMut()) -> f64 {
    let start = Instant::now();
    for _ in 0..calls {
        call();
    }
    start.elapsed().as_nanos() as f64 / calls as f64
}

/// What a caller would write without the library, on one of the AEADs: the least that a message of
/// this format takes. It draws the nonces from a generator of the same kind, and neither counts nor
/// looks at a clock.
struct ByHand<'a> {
    aead: &'a Bare,
    nonces: StdRng,
    /// Everything before the ciphertext, with room for the nonce.
    prefix: [u8; 52],
}

impl<'a> ByHand<'a> {
    fn new(aead: &'a Bare) -> Self {
        Self { aead, nonces: StdRng::from_seed([7; 32]), prefix: [1; 52] }
    }

    fn nonce(&mut self) -> [u8; 12] {
        let mut nonce = [0; 12];
        let words = nonce.as_chunks_mut::<4>().0;
        words.iter_mut().for_each(|word| *word = self.nonces.next_u32().to_le_bytes());
        nonce
    }

    fn seal_in_place(&mut self, aad: &[u8], buffer: &mut [u8]) {
        let (prefix, rest) = buffer.split_at_mut(52);
        let (payload, tag) = rest.split_last_chunk_mut().unwrap();
        let nonce = self.nonce();
        prefix.copy_from_slice(&self.prefix);
        prefix[40..].copy_from_slice(&nonce);
        *tag = self.aead.seal_under(nonce, aad, payload);
    }

    fn seal_many(&mut self, rows: &[([u8; 8], [u8; 16])]) -> (Vec<u8>, Vec<usize>) {
        let mut sealed = Vec::with_capacity(rows.len() * 84);
        let mut ends = Vec::with_capacity(rows.len());
        for (row, value) in rows {
            let (begin, nonce) = (sealed.len(), self.nonce());
            sealed.extend_from_slice(&self.prefix);
            sealed.extend_from_slice(value);
            let message = &mut sealed[begin..];
            message[40..52].copy_from_slice(&nonce);
            let tag = self.aead.seal_under(nonce, row, &mut message[52..]);
            sealed.extend_from_slice(&tag);
            ends.push(sealed.len());
        }
        (sealed, ends)
    }

    fn open_many(&self, rows: &[([u8; 8], [u8; 16])], sealed: &[u8]) -> (Vec<u8>, Vec<usize>) {
        let mut opened = Vec::with_capacity(rows.len() * 16);
        let mut ends = Vec::with_capacity(rows.len());
        for ((row, _), message) in rows.iter().zip(sealed.as_chunks::<84>().0) {
            let (begin, nonce) = (opened.len(), message[40..52].try_into().unwrap());
            opened.extend_from_slice(&message[52..68]);
            let tag = message.last_chunk().unwrap();
            self.aead.open_under(nonce, row, &mut opened[begin..], tag);
            ends.push(opened.len());
        }
        (opened, ends)
    }
}

/// Prints the medians, and by how much they exceed the best of the first `bare`.
fn row(title: &str, bare: usize, mut contenders: Vec<Contender<'_>>) {
    let mut chosen = std::env::args().skip(1).filter(|argument| argument != "--bench").peekable();
    if chosen.peek().is_some() && !chosen.any(|part| title.contains(&part)) {
        return;
    }
    let mut times = vec![Vec::new(); contenders.len()];
    let mut order: Vec<_> = (0..contenders.len()).collect();
    let start = Instant::now();
    while start.elapsed() < TIME {
        order.shuffle(&mut rand::rng());
        for &at in &order {
            let time = (contenders[at].1)();
            times[at].push(time);
        }
    }
    let medians: Vec<_> = times.iter_mut().map(|times| median(times)).collect();
    let best = medians[..bare].iter().copied().fold(f64::INFINITY, f64::min);
    print!("{title:>22}");
    for ((name, _), time) in contenders.iter().zip(&medians) {
        print!(" | {name} {time:.0} ns ({:.2}, {:+.0})", time / best, time - best);
    }
    println!();
}

fn main() {
    let chosen = Backend::default().chosen(Suite::Aes256Gcm);
    println!("default: {:?}, which is {chosen:?} for AES-256-GCM", Backend::default());
    let limits = Limits::default()
        .max_messages(1 << 32)
        .max_bytes(1 << 50)
        .max_age(Duration::from_secs(23 * 3600));
    let kek = LocalKek::in_memory("bench").unwrap();
    let envelope = Envelope::builder().wrap_with(kek).limits(limits).build().unwrap();
    let context = EncryptionContext::new([("tenant", "alice"), ("table", "customers")]).unwrap();
    let aad = Aad::from(AAD);
    let key = at_once(envelope.encryptor(&context)).unwrap();
    let aeads: Vec<_> =
        Backend::all().iter().map(|backend| (*backend, Bare::new(*backend))).collect();

    for len in [16, 64, 1024, 16 << 10, 64 << 10, 1 << 20] {
        let calls = (65536 / len).clamp(1, 256);
        let plaintext = vec![7; len];
        let sealed = key.encrypt(aad, &plaintext).unwrap();
        let opening = at_once(envelope.decryptor(&context, &sealed)).unwrap();

        let mut buffer = vec![0; key.prefix_len() + len + key.tag_len()];
        let mut buffers = vec![sealed.clone(); calls];
        let mut contenders: Vec<Contender<'_>> = Vec::new();
        for (backend, bare) in &aeads {
            let mut payload = plaintext.clone();
            let call = move || per_call(calls, || _ = black_box(bare.seal(&mut payload)));
            contenders.push((format!("{backend:?}"), Box::new(call)));
        }
        for (backend, bare) in &aeads {
            let (mut by_hand, mut buffer) = (ByHand::new(bare), vec![0; 52 + len + 16]);
            let call = move || per_call(calls, || by_hand.seal_in_place(AAD, &mut buffer));
            contenders.push((format!("{backend:?} by hand"), Box::new(call)));
            // The least that safe code does to a new buffer.
            let plaintext = &plaintext;
            let once = move || {
                let mut message = vec![0; 52 + len + 16];
                let (to, tag) = message[52..].split_last_chunk_mut().unwrap();
                *tag = bare.seal_to(plaintext, to);
                drop(black_box(message));
            };
            let call = move || per_call(calls, once);
            contenders.push((format!("{backend:?} by hand, new buffer"), Box::new(call)));
        }
        let in_place = || per_call(calls, || key.encrypt_in_place(aad, &mut buffer).unwrap());
        contenders.push(("handle, in place".to_owned(), Box::new(in_place)));
        let handle = || per_call(calls, || drop(black_box(key.encrypt(aad, &plaintext).unwrap())));
        contenders.push(("handle".to_owned(), Box::new(handle)));
        let call = || at_once(envelope.encrypt(&context, aad, &plaintext)).unwrap();
        let look_up = || per_call(calls, || drop(black_box(call())));
        contenders.push(("encrypt".to_owned(), Box::new(look_up)));
        row(&format!("encrypt {len} B"), aeads.len(), contenders);

        let mut contenders: Vec<Contender<'_>> = Vec::new();
        for (backend, bare) in &aeads {
            let mut ciphertext = plaintext.clone();
            let tag = bare.seal(&mut ciphertext);
            let mut buffers = vec![ciphertext.clone(); calls];
            let call = move || {
                buffers.iter_mut().for_each(|buffer| buffer.copy_from_slice(&ciphertext));
                let mut at = 0;
                per_call(calls, || {
                    bare.open(&mut buffers[at], &tag);
                    at += 1;
                })
            };
            contenders.push((format!("{backend:?}"), Box::new(call)));
        }
        for (backend, bare) in &aeads {
            let mut ciphertext = plaintext.clone();
            let tag = bare.seal(&mut ciphertext);
            // It is plaintext, and so it is wiped.
            let once = move || {
                let mut opened = vec![0; len];
                bare.open_to(&ciphertext, &mut opened, &tag);
                black_box(&mut opened).fill(0);
                drop(black_box(opened));
            };
            let call = move || per_call(calls, &once);
            contenders.push((format!("{backend:?} by hand, new buffer"), Box::new(call)));
        }
        let in_place = || {
            buffers.iter_mut().for_each(|buffer| buffer.copy_from_slice(&sealed));
            let mut at = 0;
            per_call(calls, || {
                opening.decrypt_in_place(aad, &mut buffers[at]).unwrap();
                at += 1;
            })
        };
        contenders.push(("handle, in place".to_owned(), Box::new(in_place)));
        let handle = || per_call(calls, || drop(black_box(opening.decrypt(aad, &sealed).unwrap())));
        contenders.push(("handle".to_owned(), Box::new(handle)));
        let call = || at_once(envelope.decrypt(&context, aad, &sealed)).unwrap();
        let look_up = || per_call(calls, || drop(black_box(call())));
        contenders.push(("decrypt".to_owned(), Box::new(look_up)));
        row(&format!("decrypt {len} B"), aeads.len(), contenders);
    }

    // A column: each value with an AAD of its own.
    let rows: Vec<_> = (0..VALUES).map(|n| (n.to_be_bytes(), [7_u8; 16])).collect();
    let items = || rows.iter().map(|(row, value)| (Aad::from(row), value));
    let compact = key.clone().compact();
    let [embedded, short] =
        [key.encrypt_many(items()), compact.encrypt_many(items())].map(Result::unwrap);
    let opening = at_once(envelope.decryptor(&context, embedded.get(0).unwrap())).unwrap();
    let sealed =
        |values| rows.iter().zip(values).map(|((row, _), sealed)| (Aad::from(row), sealed));
    let by_value = |call: &dyn Fn()| per_call(1, call) / VALUES as f64;
    let bare = |open: bool| {
        let each = move |(backend, bare): &'static (Backend, Bare)| -> Contender<'static> {
            let mut ciphertext = [7; 16];
            let tag = bare.seal(&mut ciphertext);
            let call = move || {
                per_call(VALUES, || match open {
                    true => bare.open(&mut { ciphertext }, &tag),
                    false => _ = black_box(bare.seal(&mut { ciphertext })),
                })
            };
            (format!("{backend:?}"), Box::new(call))
        };
        let aeads: &'static [(Backend, Bare)] = Box::leak(
            Backend::all().iter().map(|b| (*b, Bare::new(*b))).collect::<Vec<_>>().into(),
        );
        aeads.iter().map(each).collect::<Vec<_>>()
    };
    let mut contenders: Vec<Contender<'_>> = bare(false);
    for (backend, bare) in &aeads {
        let (mut by_hand, rows) = (ByHand::new(bare), &rows);
        let call = move || per_call(1, || drop(black_box(by_hand.seal_many(rows)))) / VALUES as f64;
        contenders.push((format!("{backend:?} by hand"), Box::new(call)));
    }
    let singly =
        || items().for_each(|(aad, value)| drop(black_box(compact.encrypt(aad, value).unwrap())));
    let handle = || drop(black_box(key.encrypt_many(items()).unwrap()));
    let short_handle = || drop(black_box(compact.encrypt_many(items()).unwrap()));
    let whole = || drop(black_box(at_once(envelope.encrypt_many(&context, items())).unwrap()));
    contenders.push(("one by one".to_owned(), Box::new(|| by_value(&singly))));
    contenders.push(("handle".to_owned(), Box::new(|| by_value(&handle))));
    contenders.push(("handle, compact".to_owned(), Box::new(|| by_value(&short_handle))));
    contenders.push(("envelope".to_owned(), Box::new(|| by_value(&whole))));
    row("encrypt_many 16 B", aeads.len(), contenders);
    let mut contenders: Vec<Contender<'_>> = bare(true);
    for (backend, bare) in &aeads {
        let (mut by_hand, rows) = (ByHand::new(bare), &rows);
        let sealed = by_hand.seal_many(rows).0;
        let call = move || {
            per_call(1, || drop(black_box(by_hand.open_many(rows, &sealed)))) / VALUES as f64
        };
        contenders.push((format!("{backend:?} by hand"), Box::new(call)));
    }
    let open = |(aad, sealed)| drop(black_box(opening.decrypt(aad, sealed).unwrap()));
    let singly = || sealed(&short).for_each(open);
    let handle = || drop(black_box(opening.decrypt_many(sealed(&embedded)).unwrap()));
    let short_handle = || drop(black_box(opening.decrypt_many(sealed(&short)).unwrap()));
    let whole = || {
        drop(black_box(at_once(envelope.decrypt_many(&context, sealed(&embedded))).unwrap()));
    };
    contenders.push(("one by one".to_owned(), Box::new(|| by_value(&singly))));
    contenders.push(("handle".to_owned(), Box::new(|| by_value(&handle))));
    contenders.push(("handle, compact".to_owned(), Box::new(|| by_value(&short_handle))));
    contenders.push(("envelope".to_owned(), Box::new(|| by_value(&whole))));
    row("decrypt_many 16 B", aeads.len(), contenders);
}
