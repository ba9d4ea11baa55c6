//! What the benchmarks share: the bare AEAD, which everything is compared with, and an envelope.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::cast_precision_loss)]

use std::future::Future;
use std::pin::pin;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use aes_gcm::aead::inout::InOutBuf;
use aes_gcm::aead::{AeadInOut, KeyInit};
use waxseal::kek::local::LocalKek;
use waxseal::policy::{BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::{
    Aad, Backend, Caller, Decryptor, EncryptionContext, Encryptor, Envelope, Error, Limits, Suite,
};

pub const AAD: &[u8] = b"row 17";
const NONCE: [u8; 12] = [7; 12];
const KEY: [u8; 32] = [9; 32];

/// AES-256-GCM of one backend: in place, its key expanded, a nonce that costs nothing.
pub enum Bare {
    RustCrypto(Box<aes_gcm::Aes256Gcm>),
    #[cfg(feature = "aws-lc")]
    AwsLc(Box<aws_lc_rs::aead::LessSafeKey>),
    #[cfg(feature = "ring")]
    Ring(Box<ring::aead::LessSafeKey>),
}

impl Bare {
    pub fn new(backend: Backend) -> Self {
        match backend.chosen(Suite::Aes256Gcm) {
            #[cfg(feature = "ring")]
            Backend::Ring => {
                use ring::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
                let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &KEY).unwrap());
                Self::Ring(Box::new(key))
            }
            #[cfg(feature = "aws-lc")]
            Backend::AwsLc => {
                use aws_lc_rs::aead::{AES_256_GCM, LessSafeKey, UnboundKey};
                Self::AwsLc(Box::new(LessSafeKey::new(
                    UnboundKey::new(&AES_256_GCM, &KEY).unwrap(),
                )))
            }
            _ => Self::RustCrypto(Box::new(aes_gcm::Aes256Gcm::new(&KEY.into()))),
        }
    }

    /// Encrypts in place and gives the tag. Never inlined: within some callers the code of
    /// RustCrypto comes out half as fast.
    #[inline(never)]
    pub fn seal(&self, payload: &mut [u8]) -> [u8; 16] {
        self.seal_under(NONCE, AAD, payload)
    }

    /// As [`seal`](Self::seal), with a nonce and an AAD of the caller's.
    #[inline]
    pub fn seal_under(&self, nonce: [u8; 12], aad: &[u8], payload: &mut [u8]) -> [u8; 16] {
        match self {
            Self::RustCrypto(key) => {
                key.encrypt_inout_detached(&nonce.into(), aad, payload.into()).unwrap().into()
            }
            #[cfg(feature = "aws-lc")]
            Self::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let tag = key
                    .seal_in_place_separate_tag(Nonce::from(&nonce), Aad::from(aad), payload)
                    .unwrap();
                tag.as_ref().try_into().unwrap()
            }
            #[cfg(feature = "ring")]
            Self::Ring(key) => {
                use ring::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key.seal_in_place_separate_tag(nonce, Aad::from(aad), payload).unwrap();
                tag.as_ref().try_into().unwrap()
            }
        }
    }

    /// Encrypts from one buffer to another and gives the tag. ring works in place only.
    #[inline(never)]
    pub fn seal_to(&self, from: &[u8], to: &mut [u8]) -> [u8; 16] {
        match self {
            Self::RustCrypto(key) => {
                let payload = InOutBuf::new(from, to).unwrap();
                key.encrypt_inout_detached(&NONCE.into(), AAD, payload).unwrap().into()
            }
            #[cfg(feature = "aws-lc")]
            Self::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let (nonce, mut tag) = (Nonce::from(&NONCE), [0; 16]);
                key.seal_out_of_place_scatter(nonce, Aad::from(AAD), from, to, &[], &mut tag)
                    .unwrap();
                tag
            }
            #[cfg(feature = "ring")]
            Self::Ring(_) => {
                to.copy_from_slice(from);
                self.seal(to)
            }
        }
    }

    /// Decrypts in place.
    #[inline(never)]
    pub fn open(&self, payload: &mut [u8], tag: &[u8; 16]) {
        self.open_under(NONCE, AAD, payload, tag);
    }

    /// Decrypts from one buffer to another. ring works in place only.
    #[inline(never)]
    pub fn open_to(&self, from: &[u8], to: &mut [u8], tag: &[u8; 16]) {
        match self {
            Self::RustCrypto(key) => {
                let payload = InOutBuf::new(from, to).unwrap();
                key.decrypt_inout_detached(&NONCE.into(), AAD, payload, tag.into()).unwrap();
            }
            #[cfg(feature = "aws-lc")]
            Self::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                key.open_separate_gather(Nonce::from(&NONCE), Aad::from(AAD), from, tag, to)
                    .unwrap();
            }
            #[cfg(feature = "ring")]
            Self::Ring(_) => {
                to.copy_from_slice(from);
                self.open(to, tag);
            }
        }
    }

    /// As [`open`](Self::open), with a nonce and an AAD of the caller's.
    #[inline]
    pub fn open_under(&self, nonce: [u8; 12], aad: &[u8], payload: &mut [u8], tag: &[u8; 16]) {
        match self {
            Self::RustCrypto(key) => {
                key.decrypt_inout_detached(&nonce.into(), aad, payload.into(), tag.into()).unwrap();
            }
            #[cfg(feature = "aws-lc")]
            Self::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                key.open_in_place_separate_tag(Nonce::from(&nonce), Aad::from(aad), tag, payload)
                    .unwrap();
            }
            #[cfg(feature = "ring")]
            Self::Ring(key) => {
                use ring::aead::{Aad, Nonce};
                let (nonce, tag) = (Nonce::assume_unique_for_key(nonce), (*tag).into());
                key.open_in_place_separate_tag(nonce, Aad::from(aad), tag, payload, 0..).unwrap();
            }
        }
    }
}

type Call<'a> = Box<dyn Fn(&mut Vec<u8>) + Sync + 'a>;

/// One way to seal or to open a message.
pub struct Contender<'a> {
    pub name: &'static str,
    /// What a buffer holds before the call.
    before: Vec<u8>,
    call: Call<'a>,
}

impl Contender<'_> {
    pub fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    /// Buffers for one block of calls: many, so that looking at the clock weighs little, but within
    /// the fastest cache.
    pub fn buffers(&self) -> Vec<Vec<u8>> {
        let len = self.before.len().max(1);
        (0..(24 * 1024 / len).clamp(1, 32)).map(|_| Vec::with_capacity(len + 4096)).collect()
    }

    /// Puts into `buffer` what the call expects.
    pub fn fill(&self, buffer: &mut Vec<u8>) {
        buffer.clear();
        buffer.extend_from_slice(&self.before);
    }

    pub fn call(&self, buffer: &mut Vec<u8>) {
        (self.call)(buffer);
    }

    /// The nanoseconds that one call on each of the buffers takes together.
    pub fn time(&self, buffers: &mut [Vec<u8>]) -> f64 {
        buffers.iter_mut().for_each(|buffer| self.fill(buffer));
        let start = Instant::now();
        buffers.iter_mut().for_each(|buffer| self.call(buffer));
        start.elapsed().as_nanos() as f64
    }
}

/// A bare key, and an envelope with one DEK that lasts for the whole run.
pub struct Ground {
    bare: Bare,
    envelope: Envelope,
    /// The same behind a policy, and for whom it acts.
    guarded: Envelope,
    caller: Caller,
    context: EncryptionContext,
    sealing: Encryptor,
    opening: Decryptor,
}

impl Ground {
    pub fn new(backend: Backend) -> Self {
        let limits = Limits::default()
            .max_messages(1 << 32)
            .max_bytes(1 << 50)
            .max_age(Duration::from_secs(24 * 3600));
        let kek = LocalKek::in_memory("bench").unwrap();
        let builder = || Envelope::builder().wrap_with(kek.clone()).backend(backend).limits(limits);
        let envelope = builder().build().unwrap();
        // Longer than the run, so that each call finds its decision.
        let options = PolicyOptions::default().cache_for(Duration::from_secs(24 * 3600));
        let (guarded, caller) = (builder().policy(Open, options).build().unwrap(), bench_caller());
        let context =
            EncryptionContext::new([("tenant", "alice"), ("table", "customers")]).unwrap();
        let sealing = at_once(envelope.encryptor(&context)).unwrap();
        let sealed = sealing.encrypt(Aad::from(AAD), b"").unwrap();
        let opening = at_once(envelope.decryptor(&context, &sealed)).unwrap();
        let bare = Bare::new(backend);
        Self { bare, envelope, guarded, caller, context, sealing, opening }
    }

    /// Room for a message, with the plaintext in its place.
    fn message(&self, len: usize) -> Vec<u8> {
        vec![7; self.sealing.prefix_len() + len + self.sealing.tag_len()]
    }

    /// The bare AEAD, on the bytes at which a message has its plaintext.
    pub fn bare_seal(&self, len: usize) -> Contender<'_> {
        let prefix_len = self.sealing.prefix_len();
        let call = move |buffer: &mut Vec<u8>| {
            let (payload, tag) = buffer[prefix_len..].split_at_mut(len);
            tag.copy_from_slice(&self.bare.seal(payload));
        };
        Contender { name: "bare", before: self.message(len), call: Box::new(call) }
    }

    pub fn bare_open(&self, len: usize) -> Contender<'_> {
        let prefix_len = self.sealing.prefix_len();
        let mut before = self.message(len);
        let (payload, tag) = before[prefix_len..].split_at_mut(len);
        tag.copy_from_slice(&self.bare.seal(payload));
        let call = move |buffer: &mut Vec<u8>| {
            let (payload, tag) = buffer[prefix_len..].split_at_mut(len);
            self.bare.open(payload, (&*tag).try_into().unwrap());
        };
        Contender { name: "bare", before, call: Box::new(call) }
    }

    /// The library's ways to seal in place.
    pub fn seal(&self, len: usize) -> [Contender<'_>; 3] {
        let handle =
            |buffer: &mut Vec<u8>| self.sealing.encrypt_in_place(Aad::from(AAD), buffer).unwrap();
        let look_up = |buffer: &mut Vec<u8>| {
            at_once(self.envelope.encryptor(&self.context))
                .unwrap()
                .encrypt_in_place(Aad::from(AAD), buffer)
                .unwrap();
        };
        // Moves the plaintext up by the length of the prefix, so its cost grows with the size.
        let moving = |buffer: &mut Vec<u8>| {
            at_once(self.envelope.encrypt_in_place(&self.context, Aad::from(AAD), buffer)).unwrap();
        };
        [
            Contender { name: "handle", before: self.message(len), call: Box::new(handle) },
            Contender { name: "look-up", before: self.message(len), call: Box::new(look_up) },
            Contender { name: "encrypt_in_place", before: vec![7; len], call: Box::new(moving) },
        ]
    }

    /// The library's ways to open in place.
    pub fn open(&self, len: usize) -> [Contender<'_>; 2] {
        let mut sealed = self.message(len);
        self.sealing.encrypt_in_place(Aad::from(AAD), &mut sealed).unwrap();
        let handle = |buffer: &mut Vec<u8>| {
            self.opening.decrypt_in_place(Aad::from(AAD), buffer).unwrap();
        };
        let look_up = |buffer: &mut Vec<u8>| {
            at_once(self.envelope.decrypt_in_place(&self.context, Aad::from(AAD), buffer)).unwrap();
        };
        [
            Contender { name: "handle", before: sealed.clone(), call: Box::new(handle) },
            Contender { name: "look-up", before: sealed, call: Box::new(look_up) },
        ]
    }

    /// The same calls on behalf of a caller, behind a policy whose decision is cached.
    pub fn acting(&self, len: usize) -> [Contender<'_>; 3] {
        let mut sealed = self.message(len);
        self.sealing.encrypt_in_place(Aad::from(AAD), &mut sealed).unwrap();
        let view = self.guarded.acting_for(&self.caller);
        // The decision and the DEK are cached from here on.
        at_once(view.decrypt(&self.context, Aad::from(AAD), &*sealed)).unwrap();
        let encrypt = move |buffer: &mut Vec<u8>| {
            at_once(view.encrypt(&self.context, Aad::from(AAD), &*buffer)).unwrap();
        };
        let decrypt = move |buffer: &mut Vec<u8>| {
            at_once(view.decrypt(&self.context, Aad::from(AAD), &*buffer)).unwrap();
        };
        let cached = move |buffer: &mut Vec<u8>| {
            view.decrypt_cached(&self.context, Aad::from(AAD), &*buffer).unwrap().unwrap();
        };
        [
            Contender { name: "encrypt, policy", before: vec![7; len], call: Box::new(encrypt) },
            Contender { name: "decrypt, policy", before: sealed.clone(), call: Box::new(decrypt) },
            Contender { name: "decrypt_cached, policy", before: sealed, call: Box::new(cached) },
        ]
    }

    /// The calls that allocate their result.
    pub fn allocating(&self, len: usize) -> [Contender<'_>; 4] {
        let mut sealed = self.message(len);
        self.sealing.encrypt_in_place(Aad::from(AAD), &mut sealed).unwrap();
        let encrypt = |buffer: &mut Vec<u8>| {
            at_once(self.envelope.encrypt(&self.context, Aad::from(AAD), &*buffer)).unwrap();
        };
        let decrypt = |buffer: &mut Vec<u8>| {
            at_once(self.envelope.decrypt(&self.context, Aad::from(AAD), &*buffer)).unwrap();
        };
        let decrypt_cached = |buffer: &mut Vec<u8>| {
            self.envelope.decrypt_cached(&self.context, Aad::from(AAD), &*buffer).unwrap().unwrap();
        };
        let decryptor = |buffer: &mut Vec<u8>| {
            at_once(self.envelope.decryptor(&self.context, &*buffer)).unwrap();
        };
        [
            Contender { name: "encrypt", before: vec![7; len], call: Box::new(encrypt) },
            Contender { name: "decrypt", before: sealed.clone(), call: Box::new(decrypt) },
            Contender {
                name: "decrypt_cached",
                before: sealed.clone(),
                call: Box::new(decrypt_cached),
            },
            Contender { name: "decryptor", before: sealed, call: Box::new(decryptor) },
        ]
    }
}

/// Allows everything. What a decision costs to make is not measured here.
#[derive(Debug)]
pub struct Open;

impl Policy for Open {
    fn decide<'a>(&'a self, _: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        Box::pin(async { Ok(Decision::allow()) })
    }
}

/// A caller of the size that callers have.
pub fn bench_caller() -> Caller {
    Caller::builder()
        .service("reporting")
        .roles(["analyst", "reader"])
        .source_address([10, 1, 2, 3])
        .attribute("department", "finance")
        .build()
        .unwrap()
}

/// What a future gives that does not have to wait, without the cost of an executor.
pub fn at_once<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("had to wait"),
    }
}

/// The middle one; of an even number the upper of the two. Sorts.
pub fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
