//! What several tests share: contexts, messages of every shape, and a provider that counts, fails
//! and lies.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod hooked;
pub mod rivals;
pub mod stage;

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use waxseal::kek::local::LocalKek;
use waxseal::kek::{
    BoxFuture, CallTarget, ContextBinding, Health, KekError, KekErrorClass, KekProvider,
    UnwrappedDek,
};
use waxseal::{
    Aad, Backend, Dek, EncryptionContext, Envelope, KekId, Sealed, Suite, WrappedDek, WrappedKeys,
};

pub use hooked::HookedKek;
pub use pollster::block_on;

pub const SUITES: [Suite; 3] = [Suite::Aes256Gcm, Suite::ChaCha20Poly1305, Suite::Xaes256Gcm];

pub fn context(tenant: &str) -> EncryptionContext {
    EncryptionContext::new([("tenant", tenant), ("table", "cards")]).unwrap()
}

pub fn a_dek() -> Dek {
    let mut bytes = vec![0; Dek::LEN];
    getrandom::fill(&mut bytes).unwrap();
    UnwrappedDek::new(bytes).to_dek().unwrap()
}

pub fn local(name: &str) -> LocalKek {
    LocalKek::in_memory(name).unwrap()
}

pub fn envelope(kek: &LocalKek) -> Envelope {
    Envelope::builder().wrap_with(kek.clone()).build().unwrap()
}

/// xorshift64*: the same numbers in every run of one seed.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        // It would stay at zero.
        Self(seed.max(1))
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }

    pub fn one_in(&mut self, bound: u64) -> bool {
        self.below(bound) == 0
    }

    pub fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(u64::try_from(len).unwrap())).unwrap()
    }
}

/// A runtime of plain threads, one for each task and each sleep.
#[derive(Debug)]
pub struct Threads;

impl waxseal::Runtime for Threads {
    fn spawn(&self, future: BoxFuture<'static, ()>) {
        std::thread::spawn(move || block_on(future));
    }

    fn sleep(&self, duration: std::time::Duration) -> BoxFuture<'static, ()> {
        let over = Arc::new(Mutex::new((false, None::<std::task::Waker>)));
        let thread = over.clone();
        std::thread::spawn(move || {
            std::thread::sleep(duration);
            let mut over = thread.lock().unwrap();
            over.0 = true;
            over.1.take().into_iter().for_each(std::task::Waker::wake);
        });
        Box::pin(std::future::poll_fn(move |cx| {
            let mut over = over.lock().unwrap();
            over.1 = Some(cx.waker().clone());
            if over.0 { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
        }))
    }
}

/// How a [`Probe`] answers instead of the truth.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lie {
    /// `unwrap` and `generate` give 32 bytes that are another DEK.
    OtherDek,
    /// `unwrap` and `generate` give the DEK without its last byte.
    ShortDek,
    /// `unwrap` and `generate` give the DEK and a zero byte.
    LongDek,
    /// `wrap`, `generate` and `rewrap` give an entry under the id of a KEK that the provider does
    /// not recognise.
    ForeignEntry,
    /// `rewrap` gives a wrapped key of another DEK.
    RewrapsOtherDek,
    /// Every call fails.
    Fails(KekErrorClass),
}

/// A local KEK that counts what it is asked, and lies on request.
#[derive(Debug)]
pub struct Probe {
    pub kek: LocalKek,
    pub wraps: AtomicUsize,
    pub unwraps: AtomicUsize,
    pub generates: AtomicUsize,
    pub rewraps: AtomicUsize,
    lie: Mutex<Option<Lie>>,
}

impl Probe {
    pub fn new(name: &str) -> Arc<Self> {
        Self::over(local(name))
    }

    pub fn over(kek: LocalKek) -> Arc<Self> {
        Arc::new(Self {
            kek,
            wraps: AtomicUsize::new(0),
            unwraps: AtomicUsize::new(0),
            generates: AtomicUsize::new(0),
            rewraps: AtomicUsize::new(0),
            lie: Mutex::new(None),
        })
    }

    pub fn lie(&self, lie: impl Into<Option<Lie>>) {
        *self.lie.lock().unwrap() = lie.into();
    }

    pub fn calls(&self) -> usize {
        [&self.wraps, &self.unwraps, &self.generates, &self.rewraps]
            .iter()
            .map(|count| count.load(Ordering::SeqCst))
            .sum()
    }

    fn count(&self, counter: &AtomicUsize) -> Result<Option<Lie>, KekError> {
        counter.fetch_add(1, Ordering::SeqCst);
        match *self.lie.lock().unwrap() {
            Some(Lie::Fails(class)) => Err(KekError::new(class, "by script")),
            lie => Ok(lie),
        }
    }
}

fn bent(dek: UnwrappedDek, lie: Option<Lie>) -> UnwrappedDek {
    let mut bytes = dek.expose().to_vec();
    match lie {
        Some(Lie::OtherDek) => bytes[31] ^= 1,
        Some(Lie::ShortDek) => bytes.truncate(31),
        Some(Lie::LongDek) => bytes.push(0),
        _ => {}
    }
    UnwrappedDek::new(bytes)
}

fn foreign(entry: WrappedDek, lie: Option<Lie>) -> WrappedDek {
    match lie {
        Some(Lie::ForeignEntry) => {
            WrappedDek::new(KekId::new("local:somebody-else").unwrap(), entry.wrapped()).unwrap()
        }
        _ => entry,
    }
}

impl KekProvider for Probe {
    fn id(&self) -> &KekId {
        self.kek.id()
    }

    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        self.kek.is_current(wrapped)
    }

    /// It plays a service that has a rewrap, and lies in it.
    fn rewraps_in_service(&self) -> bool {
        true
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            let lie = self.count(&self.wraps)?;
            Ok(foreign(self.kek.wrap(context, dek).await?, lie))
        })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move {
            let lie = self.count(&self.unwraps)?;
            Ok(bent(self.kek.unwrap(context, wrapped).await?, lie))
        })
    }

    fn generate<'a>(
        &'a self,
        context: &'a EncryptionContext,
    ) -> BoxFuture<'a, Result<(UnwrappedDek, WrappedDek), KekError>> {
        Box::pin(async move {
            let lie = self.count(&self.generates)?;
            let (dek, wrapped) = self.kek.generate(context).await?;
            Ok((bent(dek, lie), foreign(wrapped, lie)))
        })
    }

    fn rewrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            let lie = self.count(&self.rewraps)?;
            match lie {
                Some(Lie::RewrapsOtherDek) => Ok(self.kek.generate(context).await?.1),
                lie => Ok(foreign(self.kek.rewrap(context, wrapped).await?, lie)),
            }
        })
    }

    fn target(&self, kek_id: &KekId) -> CallTarget {
        self.kek.target(kek_id)
    }

    fn context_binding(&self) -> ContextBinding {
        self.kek.context_binding()
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        self.kek.health()
    }
}

/// A sealed message and what opens it.
pub struct Sample {
    pub name: String,
    pub suite: Suite,
    pub keks: Vec<LocalKek>,
    pub context: EncryptionContext,
    pub aad: Vec<u8>,
    pub plaintext: Vec<u8>,
    pub sealed: Vec<u8>,
    /// For the compact form.
    pub wrapped_keys: Option<WrappedKeys>,
}

impl Sample {
    /// An envelope that has nothing cached.
    pub fn cold(&self, backend: Backend) -> Envelope {
        let builder = Envelope::builder().backend(backend);
        self.keks
            .iter()
            .fold(builder, |builder, kek| builder.unwrap_with(kek.clone()))
            .build()
            .unwrap()
    }

    pub fn open(&self, envelope: &Envelope, sealed: &[u8]) -> Result<Vec<u8>, waxseal::Error> {
        let opened = match &self.wrapped_keys {
            None => block_on(envelope.decrypt(&self.context, Aad::from(&self.aad), sealed)),
            Some(keys) => block_on(envelope.decrypt(
                &self.context,
                Aad::from(&self.aad),
                Sealed::compact(sealed, keys),
            )),
        };
        opened.map(|plaintext| plaintext.to_vec())
    }

    /// Where the wrapped keys are in the message.
    pub fn wrapped_range(&self) -> std::ops::Range<usize> {
        let start = 40 + self.suite.nonce_len();
        let len = usize::from(u16::from_le_bytes([self.sealed[6], self.sealed[7]]));
        start..start + len
    }
}

/// Messages of twelve shapes: every suite, one and three KEKs, both forms, empty and longer
/// payloads.
pub fn samples() -> Vec<Sample> {
    let mut samples = Vec::new();
    for suite in SUITES {
        for (keks, compact, len) in [(1, false, 0), (1, false, 33), (3, false, 5), (1, true, 17)] {
            let keks: Vec<_> = (0..keks).map(|i| local(&format!("kek-{i}"))).collect();
            let builder = Envelope::builder().suite(suite);
            let envelope = keks
                .iter()
                .fold(builder, |builder, kek| builder.wrap_with(kek.clone()))
                .build()
                .unwrap();
            let context = context("alice");
            let aad = b"row 17".to_vec();
            let plaintext: Vec<u8> = (0..len).collect();
            let name = format!(
                "{suite:?}, {} KEKs, {}, {len} bytes",
                keks.len(),
                if compact { "compact" } else { "embedded" }
            );
            let (sealed, wrapped_keys) = if compact {
                let sealed =
                    block_on(envelope.encrypt_compact(&context, Aad::from(&aad), &plaintext))
                        .unwrap();
                {
                    let (bytes, keys) = sealed.into_parts();
                    (bytes, Some(keys))
                }
            } else {
                (block_on(envelope.encrypt(&context, Aad::from(&aad), &plaintext)).unwrap(), None)
            };
            samples.push(Sample {
                name,
                suite,
                keks,
                context,
                aad,
                plaintext,
                sealed,
                wrapped_keys,
            });
        }
    }
    samples
}
