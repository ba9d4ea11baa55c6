//! What a service does, and what it feels of what happens to its key services.

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use waxseal::{
    Aad, EncryptionContext, Envelope, EnvelopeBuilder, ErrorKind, Event, KekId, Limits, Observer,
};

use crate::clouds::{Cloud, Clouds};

/// What is sealed, and the AAD that ties it to its row.
pub(crate) const CARD: &[u8] = b"4111 1111 1111 1111";
pub(crate) const ROW: &[u8] = b"row 17";

/// Which KEK unwrapped how often, and which version wrapped last.
#[derive(Clone, Debug, Default)]
struct Journal(Arc<Mutex<Pages>>);

#[derive(Debug, Default)]
struct Pages {
    unwrapped: BTreeMap<KekId, usize>,
    versions: BTreeMap<KekId, String>,
}

impl Journal {
    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take_unwrapped(&self) -> BTreeMap<KekId, usize> {
        std::mem::take(&mut self.pages().unwrapped)
    }

    /// The version of the KEK that wrapped last.
    fn version(&self, kek_id: &KekId) -> Option<String> {
        self.pages().versions.get(kek_id).cloned()
    }
}

impl Observer for Journal {
    fn event(&self, event: &Event<'_>) {
        match event {
            Event::Unwrapped { kek_id, .. } => {
                *self.pages().unwrapped.entry((*kek_id).clone()).or_default() += 1;
            }
            Event::Wrapped { kek_id, kek_version, .. } => {
                let version = kek_version.unwrap_or("not told").to_owned();
                self.pages().versions.insert((*kek_id).clone(), version);
            }
            _ => {}
        }
    }
}

/// How an operation went.
pub(crate) type Outcome = Result<(), ErrorKind>;

/// An operation as the table shows it.
#[derive(Clone, Copy)]
pub(crate) struct Timed {
    pub(crate) outcome: Outcome,
    pub(crate) took: Duration,
}

impl fmt::Display for Timed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let outcome = self.outcome.map_or_else(ErrorKind::as_str, |()| "ok");
        f.pad(&format!("{outcome}, {} ms", self.took.as_millis()))
    }
}

/// What the service felt.
pub(crate) struct Felt {
    /// Reads that had to ask a key service.
    pub(crate) reads: Vec<Timed>,
    /// Who unwrapped for them.
    pub(crate) answered: BTreeMap<Cloud, usize>,
    /// Reading and encrypting with a cached DEK.
    pub(crate) cached: Timed,
    /// Calls that these made.
    pub(crate) calls_of_cached: u64,
}

impl Felt {
    pub(crate) fn failed(&self) -> usize {
        self.reads.iter().filter(|read| read.outcome.is_err()).count()
    }

    pub(crate) fn kind(&self) -> Option<ErrorKind> {
        self.reads.iter().find_map(|read| read.outcome.err())
    }

    pub(crate) fn slowest(&self) -> Duration {
        self.reads.iter().map(|read| read.took).max().unwrap_or_default()
    }
}

/// A service with the five KEKs, which prefers one of them for reading.
pub(crate) struct Service {
    /// It has the DEK of the record cached.
    warm: Envelope,
    /// It forgets the DEK before each read.
    cold: Envelope,
    journal: Journal,
    context: EncryptionContext,
    record: Vec<u8>,
}

impl Service {
    pub(crate) fn builder(clouds: &Clouds<'_>, preferred: Cloud) -> EnvelopeBuilder {
        let others = Cloud::ALL.into_iter().filter(|cloud| *cloud != preferred);
        std::iter::once(preferred).chain(others).fold(Envelope::builder(), |builder, cloud| {
            builder.wrap_with(clouds.kek(cloud).clone())
        })
    }

    pub(crate) async fn start(
        clouds: &Clouds<'_>,
        preferred: Cloud,
    ) -> Result<Self, Box<dyn Error>> {
        let journal = Journal::default();
        let service = Self {
            warm: Self::builder(clouds, preferred).build()?,
            cold: Self::builder(clouds, preferred).observer(journal.clone()).build()?,
            journal,
            context: EncryptionContext::new([("tenant", "acme"), ("table", "cards")])?,
            record: Vec::new(),
        };
        let record = service.warm.encrypt(&service.context, Aad::from(ROW), CARD).await?;
        Ok(Self { record, ..service })
    }

    /// Reads until the library knows how long each of these services usually takes.
    pub(crate) async fn get_used_to(
        &self,
        clouds: &Clouds<'_>,
        services: &[Cloud],
    ) -> Result<(), Box<dyn Error>> {
        for service in services {
            let others = Cloud::ALL.into_iter().filter(|other| other != service);
            let others: Vec<_> = others.map(|other| clouds.kek(other).id()).collect();
            others.iter().for_each(|other| self.cold.revoke_kek(other));
            for _ in 0..25 {
                self.read_cold().await.outcome.map_err(|kind| format!("{service}: {kind:?}"))?;
            }
            others.iter().for_each(|other| self.cold.reinstate_kek(other));
        }
        self.journal.take_unwrapped();
        Ok(())
    }

    async fn read(&self, envelope: &Envelope) -> Timed {
        let start = Instant::now();
        let read = envelope.decrypt(&self.context, Aad::from(ROW), &self.record).await;
        let outcome = match read {
            Ok(plaintext) if &*plaintext == CARD => Ok(()),
            Ok(_) => Err(ErrorKind::Invalid),
            Err(error) => Err(error.kind()),
        };
        Timed { outcome, took: start.elapsed() }
    }

    /// As a process that has just started, or that reads an old row.
    async fn read_cold(&self) -> Timed {
        self.cold.evict_context(&self.context);
        self.read(&self.cold).await
    }

    async fn use_dek_cached(&self) -> Timed {
        let start = Instant::now();
        let read = self.read(&self.warm).await.outcome;
        let sealed = self.warm.encrypt(&self.context, Aad::from(ROW), CARD).await;
        let sealed = sealed.map(drop).map_err(|error| error.kind());
        Timed { outcome: read.and(sealed), took: start.elapsed() }
    }

    pub(crate) async fn feel(&self, clouds: &Clouds<'_>, reads: usize) -> Felt {
        let calls = || self.warm.statistics().keks.iter().map(|kek| kek.calls).sum::<u64>();
        let before = calls();
        let cached = self.use_dek_cached().await;
        let calls_of_cached = calls().saturating_sub(before);
        self.journal.take_unwrapped();
        let mut timed = Vec::new();
        for _ in 0..reads {
            timed.push(self.read_cold().await);
        }
        let mut answered = BTreeMap::new();
        for (kek_id, times) in self.journal.take_unwrapped() {
            if let Some(cloud) = clouds.of(&kek_id) {
                *answered.entry(cloud).or_default() += times;
            }
        }
        Felt { reads: timed, answered, cached, calls_of_cached }
    }

    /// Encrypts for somebody who has no DEK yet: every KEK has to wrap it.
    pub(crate) async fn make_dek(&self, tenant: &str) -> Result<Timed, Box<dyn Error>> {
        let context = EncryptionContext::new([("tenant", tenant)])?;
        let start = Instant::now();
        let sealed = self.cold.encrypt(&context, Aad::from(ROW), CARD).await;
        let outcome = sealed.map(drop).map_err(|error| error.kind());
        Ok(Timed { outcome, took: start.elapsed() })
    }

    /// Waits until reads are answered by this service again.
    pub(crate) async fn comes_back(&self, clouds: &Clouds<'_>, to: Cloud) -> bool {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(30) {
            let felt = self.feel(clouds, 1).await;
            if felt.failed() == 0 && felt.answered.contains_key(&to) {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        false
    }

    /// The versions that wrapped last.
    pub(crate) fn versions(&self, clouds: &Clouds<'_>, of: &[Cloud]) -> Vec<Option<String>> {
        of.iter().map(|cloud| self.journal.version(clouds.kek(*cloud).id())).collect()
    }

    /// Makes DEKs until each of these keys wraps by another version than one of `old`. A provider
    /// looks at its key occasionally, so the first one may still name the old version.
    pub(crate) async fn notices(
        &self,
        clouds: &Clouds<'_>,
        of: &[Cloud],
        old: &[Option<String>],
    ) -> Result<bool, Box<dyn Error>> {
        let start = Instant::now();
        for n in 0.. {
            self.make_dek(&format!("after the rotation {n}")).await?;
            let now = self.versions(clouds, of);
            if now.iter().zip(old).all(|(now, old)| now != old) {
                return Ok(true);
            }
            if start.elapsed() > Duration::from_secs(30) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(false)
    }

    /// Whether the record was wrapped by versions that are not the newest.
    pub(crate) fn needs_rewrap(&self) -> Result<bool, waxseal::Error> {
        self.cold.needs_rewrap(&self.record)
    }

    pub(crate) async fn rewrap(&mut self) -> Result<(), waxseal::Error> {
        self.record = self.cold.rewrap(&self.context, &self.record).await?;
        Ok(())
    }
}

/// A service whose DEKs are past `max_age` soon, and which may serve them stale in an outage.
pub(crate) async fn stale_service(
    clouds: &Clouds<'_>,
) -> Result<(Envelope, EncryptionContext, Vec<u8>), Box<dyn Error>> {
    let limits = Limits::default()
        .max_age(Duration::from_secs(2))
        .stale_if_error_reading(Duration::from_secs(600));
    let envelope = Service::builder(clouds, Cloud::Aws).limits(limits).build()?;
    let context = EncryptionContext::new([("tenant", "acme"), ("table", "cards")])?;
    let record = envelope.encrypt(&context, Aad::from(ROW), CARD).await?;
    envelope.decrypt(&context, Aad::from(ROW), &record).await?;
    Ok((envelope, context, record))
}
