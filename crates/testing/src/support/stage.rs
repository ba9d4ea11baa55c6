//! An envelope over a scripted KEK, with a clock that the test moves and a log of its events.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use waxseal::kek::scripted::ScriptedKek;
use waxseal::{
    Aad, EncryptionContext, Envelope, EnvelopeBuilder, Error, ErrorKind, Event, Limits,
    ManualClock, Observer, WrappedDek, WrappedKeys,
};

use super::{block_on, context};

pub fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

pub fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Writes down the names of events.
#[derive(Debug, Clone, Default)]
pub struct Log(Arc<Mutex<Vec<String>>>);

impl Observer for Log {
    fn event(&self, event: &Event<'_>) {
        let text = format!("{event:?}");
        self.0.lock().unwrap().push(text.split([' ', '{']).next().unwrap().to_owned());
    }
}

impl Log {
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    pub fn count(&self, name: &str) -> usize {
        self.0.lock().unwrap().iter().filter(|event| *event == name).count()
    }
}

/// An envelope over a scripted KEK with its own clock: `max_age` 100 s, renewal from 72 to 80 s on.
pub struct Stage {
    pub kek: ScriptedKek,
    pub clock: ManualClock,
    pub log: Log,
    pub envelope: Envelope,
    pub alice: EncryptionContext,
    /// Sealed elsewhere, so that it has to be unwrapped here.
    pub sealed: Vec<u8>,
}

impl Stage {
    pub fn new(limits: Limits) -> Self {
        Self::with(limits, |builder| builder)
    }

    pub fn with(limits: Limits, more: impl FnOnce(EnvelopeBuilder) -> EnvelopeBuilder) -> Self {
        let (kek, clock, log) =
            (ScriptedKek::new("kek").unwrap(), ManualClock::new(), Log::default());
        let alice = context("alice");
        let sealed =
            block_on(super::envelope(kek.local()).encrypt(&alice, Aad::empty(), b"payload"))
                .unwrap();
        let builder = Envelope::builder().wrap_with(kek.clone()).limits(limits.max_age(secs(100)));
        let envelope = more(builder.clock(clock.clone()).observer(log.clone())).build().unwrap();
        Self { kek, clock, log, envelope, alice, sealed }
    }

    pub fn read(&self) -> Result<(), Error> {
        block_on(self.envelope.decrypt(&self.alice, Aad::empty(), &self.sealed))
            .map(|plaintext| assert_eq!(&*plaintext, b"payload"))
    }

    pub fn write(&self) -> Result<(), Error> {
        block_on(self.envelope.encrypt(&self.alice, Aad::empty(), b"x")).map(|_| ())
    }

    pub fn calls(&self) -> (u64, u64) {
        (self.kek.calls().unwraps, self.kek.calls().wraps)
    }
}

impl Stage {
    /// Reads the same message with other wrapped keys.
    pub fn read_by(&self, entries: impl IntoIterator<Item = WrappedDek>) -> Result<(), Error> {
        let sealed = with_entries(&self.sealed, entries);
        block_on(self.envelope.decrypt(&self.alice, Aad::empty(), &sealed)).map(|_| ())
    }
}

impl Log {
    /// Waits until an event was emitted this often: events of DEKs that expire come a little later.
    pub fn wait_for(&self, name: &str, count: usize) {
        let start = Instant::now();
        while self.count(name) < count && start.elapsed() < secs(10) {
            std::thread::sleep(ms(1));
        }
        assert_eq!(self.count(name), count, "{name}");
    }
}

/// The entries of a message's wrapped keys.
pub fn entries_of(sealed: &[u8]) -> Vec<WrappedDek> {
    let len = usize::from(u16::from_le_bytes([sealed[6], sealed[7]]));
    WrappedKeys::try_from(&sealed[52..52 + len]).unwrap().entries().to_vec()
}

/// The same message with other wrapped keys: what anybody can make who can write to the table.
pub fn with_entries(sealed: &[u8], entries: impl IntoIterator<Item = WrappedDek>) -> Vec<u8> {
    let len = usize::from(u16::from_le_bytes([sealed[6], sealed[7]]));
    let keys = WrappedKeys::new(entries).unwrap();
    let new_len = u16::try_from(keys.as_bytes().len()).unwrap().to_le_bytes();
    [&sealed[..6], &new_len, &sealed[8..52], keys.as_bytes(), &sealed[52 + len..]].concat()
}

pub fn kind<T>(result: Result<T, Error>) -> ErrorKind {
    match result {
        Ok(_) => panic!("succeeded"),
        Err(error) => error.kind(),
    }
}
