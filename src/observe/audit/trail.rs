//! The trail itself: an observer, its options and its counts.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::checkpoint::{CheckpointKey, CheckpointVerifier};
use super::disclosure::{Disclosure, Disclosures, SHORTEST_SUMMARY};
use super::draft::Draft;
use super::file::{TrailDirectory, TrailFiles};
use super::key::AuditKey;
use super::ledger::{CheckpointTerms, Ledger, LedgerTerms};
use super::queue::{Backpressure, Queue};
use super::resume::{self, End};
use super::sink::{AuditSink, WatchedSink};
use super::unusable;
use super::writer::Writer;
use crate::clock::Clock;
#[cfg(any(test, feature = "test-util"))]
use crate::clock::ManualClock;
use crate::error::{Error, ErrorKind};
use crate::observe::{Event, Observer};

const DEFAULT_CAPACITY: usize = 10_000;
const HARD_CAPACITY: usize = 1 << 20;
const DEFAULT_CHECKPOINT_RECORDS: u64 = 1000;
const DEFAULT_CHECKPOINT_INTERVAL: Duration = Duration::from_secs(60);
const DEFAULT_CLOSE_WITHIN: Duration = Duration::from_secs(5);
const MAX_SERVICE: usize = 256;

/// An audit trail: an [`Observer`] that keeps a record of every event.
///
/// It only queues events. A separate thread writes them, so no caller waits for a disk. Give a
/// clone to each envelope of the service, and keep one to close the trail after them.
///
/// When the last clone is dropped, the trail is [closed](Self::close). In the child of a fork it
/// records nothing: build another one there, in another directory.
///
/// ```
/// use waxseal::audit::{AuditTrail, CheckpointKey, Disclosure, TrailDirectory, Verifier};
/// use waxseal::{Aad, EncryptionContext, Envelope, kek::local::LocalKek};
///
/// # pollster::block_on(async {
/// # let directory = tempfile::tempdir()?;
/// # let (path, seed) = (directory.path().join("audit"), [7; 32]);
/// let trail = AuditTrail::builder()
///     .service("cards")
///     .directory(TrailDirectory::new(&path))
///     .context_value("table", Disclosure::Clear)
///     .checkpoint_key(CheckpointKey::ed25519(&seed))
///     .start()?;
/// let kek = LocalKek::in_memory("test")?;
/// let envelope = Envelope::builder().wrap_with(kek).observer(trail.clone()).build()?;
///
/// let context = EncryptionContext::new([("tenant", "acme"), ("table", "cards")])?;
/// envelope.encrypt(&context, Aad::empty(), b"4111 1111 1111 1111").await?;
/// envelope.close().await;
/// assert!(trail.close());
///
/// let verified = Verifier::new().verify(&path)?;
/// assert!(verified.fault.is_none() && verified.is_closed);
/// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
/// ```
#[derive(Clone)]
pub struct AuditTrail(Arc<Shared>);

struct Shared {
    queue: Arc<Queue>,
    clock: Clock,
    close_within: Duration,
    summaries: Option<Duration>,
    has_context_key: bool,
}

/// Counts what a trail did since its start.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct AuditStatistics {
    /// Records that were written, including those about the trail itself.
    pub written: u64,
    /// Events that wait to be written.
    pub waiting: u64,
    /// Events that were dropped because the queue was full or the trail had ended.
    pub dropped: u64,
    /// Tries to write to the file that failed.
    pub write_failures: u64,
    /// Records that a sink did not accept.
    pub sink_failures: u64,
    /// Why nothing can be written at the moment.
    pub failure: Option<String>,
}

impl AuditTrail {
    /// Returns a builder.
    pub fn builder() -> AuditTrailBuilder {
        AuditTrailBuilder::default()
    }

    /// Waits until all events so far are written, and on disk as far as the
    /// [`SyncPolicy`](super::SyncPolicy) requires. Returns `false` if that took longer than
    /// `within`.
    #[must_use]
    pub fn flush(&self, within: Duration) -> bool {
        self.0.queue.flush(within)
    }

    /// Ends the trail with a last record and a checkpoint, and waits for it as long as
    /// [`close_within`](AuditTrailBuilder::close_within) allows. Returns `false` if something was
    /// not written. Later events are dropped and counted.
    pub fn close(&self) -> bool {
        self.0.queue.end(self.0.close_within)
    }

    /// Returns its counts so far.
    #[must_use]
    pub fn statistics(&self) -> AuditStatistics {
        let (counts, waiting, failure) = self.0.queue.counts();
        AuditStatistics {
            written: counts.written,
            waiting: u64::try_from(waiting).unwrap_or(u64::MAX),
            dropped: counts.dropped,
            write_failures: counts.write_failures,
            sink_failures: counts.sink_failures,
            failure,
        }
    }

    pub(super) fn draft(&self, event: &Event<'_>) -> Draft {
        Draft::of(event, self.0.clock.now())
    }

    pub(super) fn push(&self, draft: Draft) {
        self.0.queue.push(draft);
    }

    pub(super) fn has_context_key(&self) -> bool {
        self.0.has_context_key
    }
}

impl Observer for AuditTrail {
    fn event(&self, event: &Event<'_>) {
        self.push(self.draft(event));
    }

    fn access_summaries(&self) -> Option<Duration> {
        self.0.summaries
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.queue.end(self.close_within);
    }
}

impl fmt::Debug for AuditTrail {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("AuditTrail").field(&self.statistics()).finish()
    }
}

/// Configures an [`AuditTrail`]. It needs a [`directory`](Self::directory) or a
/// [`sink`](Self::sink).
#[derive(Debug, Default)]
#[must_use = "nothing happens until `start`"]
pub struct AuditTrailBuilder {
    service: Option<String>,
    directory: Option<TrailDirectory>,
    sinks: Vec<WatchedSink>,
    disclosures: Disclosures,
    checkpoint_key: Option<CheckpointKey>,
    earlier_keys: Vec<CheckpointVerifier>,
    checkpoint_records: Option<u64>,
    checkpoint_interval: Option<Duration>,
    capacity: Option<usize>,
    backpressure: Backpressure,
    close_within: Option<Duration>,
    summaries: Option<Duration>,
    clock: Clock,
}

impl AuditTrailBuilder {
    /// Sets the name of the service, which is in every record. At most 256 bytes.
    pub fn service(mut self, name: impl Into<String>) -> Self {
        self.service = Some(name.into());
        self
    }

    /// Sets the directory of the trail's files. Without one the records go only to the sinks, and
    /// each start begins a new chain.
    pub fn directory(mut self, directory: TrailDirectory) -> Self {
        self.directory = Some(directory);
        self
    }

    /// Adds a sink that receives every record. Call it once for each.
    pub fn sink(mut self, sink: impl AuditSink + 'static) -> Self {
        self.sinks.push(WatchedSink::new(Box::new(sink), false));
        self
    }

    /// Adds a sink that receives only the checkpoints. A checkpoint that has left the machine
    /// cannot be rewritten with the file, so it proves that a file was cut or rebuilt.
    pub fn checkpoints_to(mut self, sink: impl AuditSink + 'static) -> Self {
        self.sinks.push(WatchedSink::new(Box::new(sink), true));
        self
    }

    /// Sets the key that authenticates checkpoints. Without one, checkpoints are written only if
    /// there is a sink [for them](Self::checkpoints_to), unauthenticated.
    pub fn checkpoint_key(mut self, key: CheckpointKey) -> Self {
        self.checkpoint_key = Some(key);
        self
    }

    /// Adds a key that authenticated earlier checkpoints of this trail. Call it once for each. A
    /// start needs it as long as the last files have such checkpoints.
    pub fn earlier_checkpoint_key(mut self, key: CheckpointVerifier) -> Self {
        self.earlier_keys.push(key);
        self
    }

    /// Sets the maximum number of records and the maximum time between checkpoints. By default
    /// 1,000 and 60 seconds. There is also one at the end of each file. Without new records there
    /// is none.
    pub fn checkpoint_every(mut self, records: u64, interval: Duration) -> Self {
        (self.checkpoint_records, self.checkpoint_interval) = (Some(records), Some(interval));
        self
    }

    /// Sets how the value of one name of the encryption context appears in records.
    pub fn context_value(mut self, name: impl Into<String>, shown: Disclosure) -> Self {
        self.disclosures.by_name.insert(name.into(), shown);
        self
    }

    /// Sets how the values of all other names appear. By default they are
    /// [left out](Disclosure::LeftOut).
    pub fn other_context_values(mut self, shown: Disclosure) -> Self {
        self.disclosures.usual = shown;
        self
    }

    /// Sets the key of [hashed](Disclosure::Hashed) values. Keep it: without it nobody can search
    /// for a value in an old trail.
    pub fn context_key(mut self, key: AuditKey) -> Self {
        self.disclosures.key = Some(key);
        self
    }

    /// Makes a record at this interval for each DEK that was used: how many messages were encrypted
    /// or decrypted with it. At least a second; ten seconds are usual. By default there are none.
    /// Counting costs a few nanoseconds per use of a cached DEK.
    pub fn access_summaries(mut self, every: Duration) -> Self {
        self.summaries = Some(every);
        self
    }

    /// Sets the maximum number of waiting events. 1 to 1,048,576, by default 10,000. Each takes
    /// about a kilobyte.
    pub fn capacity(mut self, events: usize) -> Self {
        self.capacity = Some(events);
        self
    }

    /// Sets what happens to events beyond that number. By default [`Backpressure::Drop`].
    pub fn backpressure(mut self, backpressure: Backpressure) -> Self {
        self.backpressure = backpressure;
        self
    }

    /// Sets how long [`close`](AuditTrail::close), and the drop of the last clone, wait for
    /// unwritten records. By default 5 seconds.
    pub fn close_within(mut self, limit: Duration) -> Self {
        self.close_within = Some(limit);
        self
    }

    /// Sets a clock that tests control.
    #[cfg(any(test, feature = "test-util"))]
    pub fn clock(mut self, clock: ManualClock) -> Self {
        self.clock = Clock::Manual(clock);
        self
    }

    /// Starts the trail. The first record says that it started.
    ///
    /// An existing trail is verified before it continues. With a [key](Self::checkpoint_key),
    /// verification starts at the last file with a checkpoint that the key, or an [earlier
    /// one](Self::earlier_checkpoint_key), accepts. Without a key, it covers the chain of the last
    /// file. A trail that was modified does not continue. Begin a new one in another directory, and
    /// keep the old one as evidence. If a trail has one record and no checkpoint, its file is moved
    /// aside, and a new trail begins.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], naming the option. [`ErrorKind::Io`] if the directory cannot
    /// be used, another process or trail writes to it, or its content does not verify, naming file
    /// and line. [`ErrorKind::UnsupportedVersion`]. [`ErrorKind::Randomness`].
    pub fn start(self) -> Result<AuditTrail, Error> {
        self.check()?;
        let (now, has_context_key) = (self.clock.now(), self.disclosures.key.is_some());
        let keys = match &self.checkpoint_key {
            Some(key) => self.earlier_keys.into_iter().chain(key.verifier()).collect(),
            None => Vec::new(),
        };
        let mut files =
            self.directory.map(|directory| TrailFiles::open(directory, now)).transpose()?;
        let resumed = match &mut files {
            Some(files) => match resume::end_of(files.directory(), keys)? {
                End::Known(resumed) => Some(resumed),
                End::OnlyBegun => {
                    files.set_aside()?;
                    None
                }
                End::Nothing => None,
            },
            None => None,
        };
        let terms = LedgerTerms {
            service: self.service,
            disclosures: self.disclosures,
            key: self.checkpoint_key,
            checkpoints: CheckpointTerms {
                records: self.checkpoint_records.unwrap_or(DEFAULT_CHECKPOINT_RECORDS),
                interval: self.checkpoint_interval.unwrap_or(DEFAULT_CHECKPOINT_INTERVAL),
            },
            sinks: self.sinks,
            clock: self.clock.clone(),
        };
        let failed = |error| unusable("audit trail", error);
        let mut ledger = Ledger::new(terms, files, resumed)?;
        ledger.begin().map_err(failed)?;
        let capacity = self.capacity.unwrap_or(DEFAULT_CAPACITY);
        let queue = Arc::new(Queue::new(capacity, self.backpressure));
        let writer = Writer::new(queue.clone(), ledger);
        std::thread::Builder::new()
            .name("waxseal-audit".to_owned())
            .spawn(move || writer.run())
            .map_err(failed)?;
        let close_within = self.close_within.unwrap_or(DEFAULT_CLOSE_WITHIN);
        let (clock, summaries) = (self.clock, self.summaries);
        let shared = Shared { queue, clock, close_within, summaries, has_context_key };
        Ok(AuditTrail(Arc::new(shared)))
    }

    fn check(&self) -> Result<(), Error> {
        let refused = |detail: &str| Err(Error::new(ErrorKind::InvalidOption, detail.to_owned()));
        let takes_records = |sink: &WatchedSink| !sink.takes_only_checkpoints();
        if self.directory.is_none() && !self.sinks.iter().any(takes_records) {
            return refused("directory: an audit trail needs a directory or a sink");
        }
        if let Some(directory) = &self.directory {
            directory.check()?;
        }
        if self.service.as_ref().is_some_and(|name| name.is_empty() || name.len() > MAX_SERVICE) {
            return refused("service: 1 to 256 bytes are allowed");
        }
        if self.capacity.is_some_and(|capacity| capacity == 0 || capacity > HARD_CAPACITY) {
            return refused("capacity: 1 to 1048576 events are allowed");
        }
        if self.summaries.is_some_and(|every| every < SHORTEST_SUMMARY) {
            return refused("access_summaries: at least a second");
        }
        if self.checkpoint_records == Some(0) {
            return refused("checkpoint_every: at least 1 record is needed");
        }
        if self.checkpoint_key.is_none() && !self.earlier_keys.is_empty() {
            return refused("earlier_checkpoint_key: it needs a checkpoint_key");
        }
        self.check_process()?;
        if self.disclosures.hashes() && self.disclosures.key.is_none() {
            return refused("context_value: hashed values need a context_key");
        }
        Ok(())
    }

    /// Checks that the process has not forked. In the child of a fork the parent's keys read as
    /// zeros.
    fn check_process(&self) -> Result<(), Error> {
        let context_key = self.disclosures.key.as_ref().map(AuditKey::is_of_this_process);
        let checkpoint_key = self.checkpoint_key.as_ref().map(CheckpointKey::is_of_this_process);
        let earlier = self.earlier_keys.iter().all(CheckpointVerifier::is_of_this_process);
        for (option, is_here) in [
            ("context_key", context_key.unwrap_or(true)),
            ("checkpoint_key", checkpoint_key.unwrap_or(true)),
            ("earlier_checkpoint_key", earlier),
        ] {
            if !is_here {
                let detail = format!("{option}: the process forked since the key was made");
                return Err(Error::new(ErrorKind::InvalidOption, detail));
            }
        }
        Ok(())
    }
}
