//! Searching memory for keys, and a KEK that shows a test which DEKs went through it.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use hkdf::Hkdf;
use sha2::{Sha256, Sha512};
use waxseal::kek::local::LocalKek;
use waxseal::kek::{BoxFuture, Health, KekError, KekProvider, UnwrappedDek};
use waxseal::{Dek, EncryptionContext, KekId, Suite, WrappedDek};

/// What is looked for, kept so that the search does not find itself: every byte turned over.
#[derive(Clone)]
pub struct Needle(Vec<u8>);

impl Needle {
    pub fn of(bytes: &[u8]) -> Self {
        Self(bytes.iter().map(|byte| !byte).collect())
    }

    /// As it was written by [`to_hex`](Self::to_hex), by another process perhaps.
    pub fn from_hex(text: &str) -> Self {
        Self(data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap())
    }

    pub fn to_hex(&self) -> String {
        data_encoding::HEXLOWER.encode(&self.0)
    }

    /// The bytes themselves, in ordinary memory.
    pub fn bytes(&self) -> Vec<u8> {
        self.0.iter().map(|byte| !byte).collect()
    }

    /// How often it stands in the writable memory of this process.
    pub fn occurrences(&self) -> usize {
        let [found] = in_own_memory([self]);
        found
    }
}

/// How often each stands in the writable memory of this process.
pub fn in_own_memory<const N: usize>(needles: [&Needle; N]) -> [usize; N] {
    let overlap = needles[0].0.len() - 1;
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    let memory = fs::File::open("/proc/self/mem").unwrap();
    let mut found = [0; N];
    let mut chunk = vec![0; 1 << 16];
    let own = chunk.as_ptr().addr()..chunk.as_ptr().addr() + chunk.len();
    for line in maps.lines().filter(|line| line.split(' ').nth(1).unwrap().starts_with("rw")) {
        let (from, to) = line.split(' ').next().unwrap().split_once('-').unwrap();
        let [from, to] = [from, to].map(|at| usize::from_str_radix(at, 16).unwrap());
        // The buffer of the search is not searched; what stands before it and behind it in the same
        // mapping is.
        let around = if (from..to).contains(&own.start) {
            [(from, own.start), (own.end, to)]
        } else {
            [(from, to), (to, to)]
        };
        for (mut at, to) in around {
            while at + overlap < to {
                let len = chunk.len().min(to - at);
                // What cannot be read, such as memory of a device, is not ordinary memory.
                let Ok(read @ 1..) = memory.read_at(&mut chunk[..len], at.try_into().unwrap())
                else {
                    break;
                };
                for (sum, more) in found.iter_mut().zip(in_bytes(&chunk[..read], needles)) {
                    *sum += more;
                }
                // Overlap, so that nothing is missed at a border; the same place is not counted
                // twice.
                at += if read > overlap { read - overlap } else { read };
            }
        }
    }
    chunk.fill(0);
    found
}

/// How often each stands in `bytes`. All are of one length.
pub fn in_bytes<const N: usize>(bytes: &[u8], needles: [&Needle; N]) -> [usize; N] {
    static ZEROS: [u8; 1 << 16] = [0; 1 << 16];
    let mut found = [0; N];
    // Most memory was never used.
    if ZEROS.starts_with(bytes) {
        return found;
    }
    for (needle, found) in needles.iter().zip(&mut found) {
        for at in memchr::memchr_iter(!needle.0[0], bytes) {
            let Some(window) = bytes.get(at..at + needle.0.len()) else { break };
            *found +=
                usize::from(window.iter().zip(&needle.0).all(|(byte, turned)| *byte == !turned));
        }
    }
    found
}

/// What is to be found of one DEK.
#[derive(Clone)]
pub struct Keys {
    pub dek: Needle,
    /// HMAC's states after its two padded keys, from which all that is derived from the DEK can be
    /// derived.
    pub hmac: [Needle; 2],
    pub message_key: Needle,
    /// What the AEAD holds while the key serves: two round keys of AES, or ChaCha20's key itself.
    pub schedule: Needle,
}

impl Keys {
    pub fn new(dek: Needle, context: &EncryptionContext, suite: Suite) -> Self {
        let (message_key, schedule) = without_trace(|| {
            let (mut key, mut dek) = ([0; 32], dek.bytes());
            let info = [b"waxseal.v1", &[1, suite.id()][..], context.digest()].concat();
            Hkdf::<Sha256>::from_prk(&dek).unwrap().expand(&info, &mut key).unwrap();
            let schedule = match suite {
                Suite::ChaCha20Poly1305 => Needle::of(&key),
                _ => Needle::of(&round_keys(&key)),
            };
            let needles = (Needle::of(&key), schedule);
            zeroize::Zeroize::zeroize(&mut dek);
            zeroize::Zeroize::zeroize(&mut key);
            needles
        });
        let hmac = [0x36, 0x5C].map(|pad| without_trace(|| Needle::of(&hmac_state(&dek, pad))));
        Self { hmac, dek, message_key, schedule }
    }

    pub fn all(&self) -> [&Needle; 5] {
        let [inner, outer] = &self.hmac;
        [&self.dek, inner, outer, &self.message_key, &self.schedule]
    }

    pub fn occurrences(&self) -> [usize; 5] {
        in_own_memory(self.all())
    }
}

/// What is to be found of a stream in AES-256-GCM: the root that its DEK has, its own key, and the
/// key's schedule.
pub fn of_stream(
    dek: &Needle,
    context: &EncryptionContext,
    (salt, chunk_log2, aad): (&[u8], u8, &[u8]),
) -> [Needle; 3] {
    without_trace(|| {
        let (mut dek, mut root, mut key) = (dek.bytes(), [0; 64], [0; 32]);
        let info = [b"waxseal.v1", &[2, 1][..], context.digest()].concat();
        Hkdf::<Sha256>::from_prk(&dek).unwrap().expand(&info, &mut root[..32]).unwrap();
        let label = b"c2sp.org/chunked-encryption@v1+AEAD_AES_256_GCM\0";
        let info = [&label[..], salt, &[chunk_log2], aad].concat();
        Hkdf::<Sha512>::from_prk(&root).unwrap().expand(&info, &mut key).unwrap();
        let needles = [&root[..32], &key, &round_keys(&key)].map(Needle::of);
        zeroize::Zeroize::zeroize(&mut dek);
        zeroize::Zeroize::zeroize(&mut root);
        zeroize::Zeroize::zeroize(&mut key);
        needles
    })
}

/// SHA-256's state after the block that HMAC makes of a key and a padding (RFC 2104), as it stands
/// in memory.
fn hmac_state(dek: &Needle, pad: u8) -> [u8; 32] {
    let mut state = [
        0x6A09_E667,
        0xBB67_AE85,
        0x3C6E_F372,
        0xA54F_F53A,
        0x510E_527F,
        0x9B05_688C,
        0x1F83_D9AB,
        0x5BE0_CD19_u32,
    ];
    let mut block = [pad; 64];
    for (byte, turned) in block.iter_mut().zip(&dek.0) {
        *byte ^= !turned;
    }
    sha2::block_api::compress256(&mut state, &[block]);
    let mut bytes = [0; 32];
    for (four, word) in bytes.chunks_mut(4).zip(state) {
        four.copy_from_slice(&word.to_ne_bytes());
    }
    zeroize::Zeroize::zeroize(&mut block);
    zeroize::Zeroize::zeroize(&mut state);
    bytes
}

type OnDek = Arc<dyn Fn(&[u8]) -> BoxFuture<'static, ()> + Send + Sync>;

/// A local KEK that calls a test's code with every DEK that it is to wrap, and every one that it
/// unwrapped.
#[derive(Clone)]
pub struct Spy {
    kek: LocalKek,
    on_dek: OnDek,
}

impl std::fmt::Debug for Spy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Spy").field("kek", &self.kek).finish_non_exhaustive()
    }
}

impl Spy {
    pub fn new(
        kek: LocalKek,
        on_dek: impl Fn(&[u8]) -> BoxFuture<'static, ()> + Send + Sync + 'static,
    ) -> Self {
        Self { kek, on_dek: Arc::new(on_dek) }
    }

    /// One that only remembers the last DEK.
    pub fn that_remembers(kek: LocalKek) -> (Self, Arc<Mutex<Option<Needle>>>) {
        let seen = Arc::new(Mutex::new(None));
        let last = seen.clone();
        let spy = Self::new(kek, move |dek| {
            *last.lock().unwrap() = Some(Needle::of(dek));
            Box::pin(async {})
        });
        (spy, seen)
    }
}

impl KekProvider for Spy {
    fn id(&self) -> &KekId {
        self.kek.id()
    }

    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        self.kek.is_current(wrapped)
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            (self.on_dek)(dek.expose()).await;
            self.kek.wrap(context, dek).await
        })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move {
            let dek = self.kek.unwrap(context, wrapped).await?;
            (self.on_dek)(dek.expose()).await;
            Ok(dek)
        })
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        self.kek.health()
    }
}

/// The third and fourth round keys of AES-256 (FIPS 197, section 5.2), made in a way of its own:
/// from two neighbours the whole key follows. A single round key does not give it, and compiled AES
/// code leaves one on the stack occasionally.
fn round_keys(key: &[u8; 32]) -> [u8; 32] {
    fn multiply(mut a: u8, mut b: u8) -> u8 {
        let mut product = 0;
        while b != 0 {
            if b & 1 == 1 {
                product ^= a;
            }
            a = (a << 1) ^ if a & 0x80 == 0 { 0 } else { 0x1B };
            b >>= 1;
        }
        product
    }
    fn s_box(byte: u8) -> u8 {
        let inverse = (0..=255).find(|other| multiply(byte, *other) == 1).unwrap_or(0);
        (0..5).fold(0x63, |sum, by| sum ^ inverse.rotate_left(by))
    }
    let mut words: Vec<[u8; 4]> = key.chunks(4).map(|word| word.try_into().unwrap()).collect();
    for i in 8..16 {
        let [a, b, c, d] = words[i - 1];
        let mut word = match i {
            8 => [s_box(b) ^ 1, s_box(c), s_box(d), s_box(a)],
            12 => [s_box(a), s_box(b), s_box(c), s_box(d)],
            _ => [a, b, c, d],
        };
        for (byte, old) in word.iter_mut().zip(words[i - 8]) {
            *byte ^= old;
        }
        words.push(word);
    }
    let round_keys = words[8..].concat().try_into().unwrap();
    words.iter_mut().for_each(|word| word.fill(0));
    std::hint::black_box(words);
    round_keys
}

/// What the test itself computes with keys must not be what it finds.
pub fn without_trace<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    #[inline(never)]
    fn apart<T>(work: impl FnOnce() -> T) -> T {
        work()
    }
    #[inline(never)]
    fn overwrite() {
        std::hint::black_box([0_u8; 256 * 1024]);
    }
    on_a_stack_of_its_own(|| {
        let result = apart(work);
        overwrite();
        result
    })
}

/// The library runs here, and what it leaves on the stack stays: threads end, and their stacks are
/// kept for the next.
pub fn on_a_stack_of_its_own<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}
