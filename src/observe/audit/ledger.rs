//! Writes records: assigns each its place in the chain, and passes it to the file and the sinks.
//!
//! It belongs to one thread. After any failure the same record can be tried again.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use super::chain::{Chain, MAX_LINE, TrailId, record_of};
use super::checkpoint::{CheckpointKey, Link, checkpoint};
use super::disclosure::Disclosures;
use super::draft::Draft;
use super::file::names::file_name;
use super::file::{FileState, MovedAside, TrailFiles};
use super::queue::Dropped;
use super::record::{ABOUT_A_SINK, CheckpointFields, FORMAT_VERSION, Record, TrailFields, rfc3339};
use super::resume::Resumed;
use super::sink::{Taken, WatchedSink};
use crate::clock::{Clock, Moment};
use crate::error::Error;

/// The maximum number of bytes kept for rewriting if the disk fails.
const MAX_UNSYNCED: usize = 16 << 20;
/// A synchronised clock goes back by less than this.
const CLOCK_TOLERANCE: i64 = 1_000_000_000;

/// When a checkpoint is made.
#[derive(Clone, Copy, Debug)]
pub(super) struct CheckpointTerms {
    pub(super) records: u64,
    pub(super) interval: Duration,
}

/// The parts of a ledger.
#[derive(Debug)]
pub(super) struct LedgerTerms {
    pub(super) service: Option<String>,
    pub(super) disclosures: Disclosures,
    pub(super) key: Option<CheckpointKey>,
    pub(super) checkpoints: CheckpointTerms,
    pub(super) sinks: Vec<WatchedSink>,
    pub(super) clock: Clock,
}

/// The writer of a trail.
#[derive(Debug)]
pub(super) struct Ledger {
    terms: LedgerTerms,
    chain: Chain,
    /// The last authenticated checkpoint.
    last_checkpoint: Link,
    files: Option<TrailFiles>,
    /// The number of records since the last checkpoint.
    unchecked: u64,
    /// A file was damaged, and only a checkpoint lets the next start verify what follows it.
    needs_checkpoint: bool,
    /// Read from the clock since boot, which nobody can set.
    checked_at: i64,
    /// By how much the wall clock was ahead when the last event happened.
    clock_offset: Option<i64>,
    /// Records about the trail itself that are due before the next one.
    notes: Vec<Record>,
    unsynced: Unsynced,
    /// Lines of a doubtful file, which the next file has to repeat.
    again: VecDeque<String>,
    /// The sequence from which that file is doubtful, until the next file records it.
    unsynced_from: Option<u64>,
    written: u64,
    sink_failures: u64,
}

impl Ledger {
    /// Continues at the end of the files, or begins a trail.
    pub(super) fn new(
        terms: LedgerTerms,
        files: Option<TrailFiles>,
        resumed: Option<Resumed>,
    ) -> Result<Self, Error> {
        let (chain, last_checkpoint) = match &resumed {
            Some(resumed) => (resumed.chain, resumed.previous),
            None => {
                let trail = TrailId::random()?;
                (Chain::new(trail), Link::first(trail))
            }
        };
        let now = terms.clock.now().boot_nanos();
        let mut ledger = Self {
            terms,
            chain,
            last_checkpoint,
            files,
            unchecked: 0,
            needs_checkpoint: false,
            checked_at: now,
            clock_offset: None,
            notes: Vec::new(),
            unsynced: Unsynced::default(),
            again: VecDeque::new(),
            unsynced_from: None,
            written: 0,
            sink_failures: 0,
        };
        // A new file says the same in its first record.
        match &resumed {
            Some(resumed) => {
                let record = ledger.about_the_trail("trail_resumed");
                let unclosed = "the trail was not closed before: what was queued then is lost";
                ledger.notes.push(match resumed.is_closed {
                    true => record,
                    false => record.failed("io").with_message(unclosed.to_owned()),
                });
            }
            None if ledger.files.is_none() => {
                ledger.notes.push(ledger.about_the_trail("trail_opened"));
            }
            None => {}
        }
        let moved_aside = ledger.files.as_mut().map(TrailFiles::take_moved_aside);
        for moved_aside in moved_aside.unwrap_or_default() {
            let (record, what) = match moved_aside {
                MovedAside::IncompleteLine(what) => (Record::of("incomplete_line_moved"), what),
                MovedAside::UnsignedFile(what) => (Record::of("unsigned_file_moved"), what),
            };
            ledger.notes.push(record.failed("malformed").with_message(what));
        }
        Ok(ledger)
    }

    /// Writes the first record, so that a start fails in a directory that cannot be written.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        // A crash before the first checkpoint leaves one record, which the next start moves aside.
        // The start would refuse more records, which no checkpoint authenticates.
        if self.chain.next == 0 && self.terms.key.is_some() && self.files.is_some() {
            self.open_file()?;
            self.checkpoint()?;
        }
        self.prepare()?;
        self.sync()
    }

    /// Returns how many records were written and how many sinks failed, since the last call.
    pub(super) fn take_counts(&mut self) -> (u64, u64) {
        (std::mem::take(&mut self.written), std::mem::take(&mut self.sink_failures))
    }

    fn boot_now(&self) -> i64 {
        self.terms.clock.now().boot_nanos()
    }

    fn now(&self) -> i64 {
        self.terms.clock.now().wall_nanos()
    }

    fn about_the_trail(&self, activity: &'static str) -> Record {
        let fields = TrailFields {
            version: FORMAT_VERSION,
            id: self.chain.trail.to_string(),
            checkpoint_key: self.terms.key.as_ref().map(CheckpointKey::id),
            process: std::process::id(),
            // Its place is known when it is written.
            file: 0,
            previous: String::new(),
            unsynced_from: None,
        };
        Record { trail: Some(fields), ..Record::of(activity) }
    }

    /// Writes a record of an event. After an error the same draft can be passed again.
    pub(super) fn append(&mut self, draft: &Draft) -> io::Result<()> {
        self.prepare()?;
        let back = self.clock_offset.map_or(0, |before| before.saturating_sub(draft.clock_offset));
        if back > CLOCK_TOLERANCE {
            let seconds = back / 1_000_000_000;
            let note = Record::of("clock_set_back").with_message(format!("by {seconds} s"));
            self.write(note, draft.wall_nanos)?;
        }
        self.clock_offset = Some(draft.clock_offset);
        let mut record = draft.record.clone();
        let of_domain = draft.of_domain.as_deref();
        let shown = |context| self.terms.disclosures.shown(context, of_domain);
        record.context = draft.context.as_ref().map(shown);
        self.write(record, draft.wall_nanos)
    }

    /// Writes how many records were dropped.
    pub(super) fn append_dropped(&mut self, dropped: &Dropped) -> io::Result<()> {
        let record = Record {
            count: Some(dropped.count),
            start_time: Some(rfc3339(dropped.first)),
            end_time: Some(rfc3339(dropped.last)),
            ..Record::of("records_dropped").failed("too-large")
        };
        self.append(&Draft::new(
            self.terms.clock.now(),
            record.with_message("the queue was full".to_owned()),
        ))
    }

    /// Records that writing failed for a while.
    pub(super) fn note_failures(&mut self, tries: u64, last: &str) {
        let record = Record { count: Some(tries), ..Record::of("trail_write_failed").failed("io") };
        self.notes.push(record.with_message(last.to_owned()));
    }

    /// Makes a checkpoint if its time has come.
    pub(super) fn checkpoint_if_due(&mut self) -> io::Result<()> {
        let CheckpointTerms { records, interval } = self.terms.checkpoints;
        let age = u128::try_from(self.boot_now().saturating_sub(self.checked_at)).unwrap_or(0);
        let is_due = self.needs_checkpoint || age >= interval.as_nanos();
        if self.unchecked >= records || self.unchecked > 0 && is_due || self.is_doubtful() {
            self.prepare()?;
            return self.checkpoint();
        }
        Ok(())
    }

    /// Writes the last record.
    pub(super) fn append_end(&mut self) -> io::Result<()> {
        self.append(&Draft::new(self.terms.clock.now(), self.about_the_trail("trail_closed")))
    }

    /// Writes the notes about its sink that the last checkpoint caused. Nothing else follows them.
    pub(super) fn append_last_notes(&mut self) -> io::Result<()> {
        if self.notes.is_empty() {
            return Ok(());
        }
        self.prepare()?;
        self.checkpoint()
    }

    /// Syncs. If that failed before, the records are first repeated in another file.
    pub(super) fn sync(&mut self) -> io::Result<()> {
        if self.is_doubtful() {
            self.checkpoint_if_due()?;
        }
        self.wait_for_the_disk(false)
    }

    fn is_doubtful(&self) -> bool {
        self.files.as_ref().is_some_and(TrailFiles::is_doubtful)
    }

    fn wait_for_the_disk(&mut self, is_checkpoint: bool) -> io::Result<()> {
        if let Some(files) = &mut self.files
            && files.sync(is_checkpoint)?
        {
            self.unsynced = Unsynced::default();
        }
        Ok(())
    }

    /// Prepares the file for a record, and writes the pending records about the trail.
    fn prepare(&mut self) -> io::Result<()> {
        self.open_file()?;
        let now = self.now();
        while let Some(note) = self.notes.first().cloned() {
            self.write(note, now)?;
            self.notes.remove(0);
        }
        while let Some(line) = self.again.front() {
            if let Some(record) = repeated(line) {
                self.write(record, now)?;
            }
            self.again.pop_front();
        }
        Ok(())
    }

    /// Opens a file for a record. A new file begins with a record about itself.
    fn open_file(&mut self) -> io::Result<()> {
        self.go_on_in_a_file(self.terms.clock.now())?;
        if self.files.as_ref().is_some_and(TrailFiles::is_empty) {
            let mut record = self.about_the_trail("trail_file_opened");
            if let Some(trail) = &mut record.trail {
                trail.unsynced_from = self.unsynced_from;
            }
            self.write(record, self.now())?;
            self.unsynced_from = None;
        }
        Ok(())
    }

    fn go_on_in_a_file(&mut self, now: Moment) -> io::Result<()> {
        let Some(files) = &mut self.files else { return Ok(()) };
        let (state, name) = (files.look(now)?, file_name(files.number()));
        let note = match state {
            FileState::AsItWas => return Ok(()),
            FileState::Over => {
                self.checkpoint()?;
                None
            }
            FileState::Gone => Some(Record::of("file_removed")),
            FileState::Changed => Some(Record::of("file_changed")),
            FileState::Doubtful => {
                let count = Some(self.unsynced.count);
                Some(Record { count, ..Record::of("file_sync_failed") })
            }
        };
        if let Some(files) = &mut self.files {
            files.next(now)?;
        }
        if state == FileState::Doubtful {
            self.repeat();
        }
        self.needs_checkpoint |= note.is_some();
        self.notes.extend(note.map(|note| note.failed("io").with_message(name)));
        Ok(())
    }

    /// Repeats the records that may not be on disk.
    fn repeat(&mut self) {
        let unsynced = std::mem::take(&mut self.unsynced);
        self.unsynced_from = unsynced.first;
        // Records of the new file come after those that an earlier file owes.
        self.again.extend(unsynced.lines);
    }

    /// Writes a checkpoint over everything since the last one, and syncs.
    pub(super) fn checkpoint(&mut self) -> io::Result<()> {
        if self.unchecked == 0 {
            return Ok(());
        }
        let sends = self.terms.sinks.iter().any(WatchedSink::takes_only_checkpoints);
        if self.terms.key.is_some() || sends {
            let now = self.now();
            let key = self.terms.key.as_ref();
            let record = checkpoint(key, &self.chain, &self.last_checkpoint, rfc3339(now));
            let sequence = self.chain.next;
            let is_signed = record.checkpoint.as_ref().is_some_and(CheckpointFields::is_signed);
            self.write(record, now)?;
            if is_signed {
                self.last_checkpoint = Link { sequence, hash: self.chain.head };
            }
        }
        (self.unchecked, self.checked_at, self.needs_checkpoint) = (0, self.boot_now(), false);
        self.wait_for_the_disk(true)
    }

    /// Writes one record. On success it is in the file. Sinks follow.
    fn write(&mut self, mut record: Record, at: i64) -> io::Result<()> {
        if record.time.is_empty() {
            record.time = rfc3339(at);
        }
        record.service.clone_from(&self.terms.service);
        if let Some(trail) = &mut record.trail {
            trail.previous = self.chain.head.to_string();
            trail.file = self.files.as_ref().map_or(0, TrailFiles::number);
        }
        let mut sealed = self.chain.seal(&mut record)?;
        if sealed.line.len() > MAX_LINE {
            record = cut(record);
            sealed = self.chain.seal(&mut record)?;
        }
        if let Some(files) = &mut self.files {
            files.append(&sealed.line)?;
        }
        self.chain = sealed.chain;
        self.unchecked = self.unchecked.saturating_add(1);
        self.written = self.written.saturating_add(1);
        self.hand_to_sinks(&record, &sealed.line);
        if self.files.as_ref().is_some_and(TrailFiles::is_synced) {
            self.unsynced.add(record.sequence, sealed.line);
        }
        Ok(())
    }

    fn hand_to_sinks(&mut self, record: &Record, line: &str) {
        // Otherwise the notes about a sink that fails sporadically would cause more notes.
        let is_a_note = record.activity.starts_with(ABOUT_A_SINK);
        for (place, sink) in self.terms.sinks.iter_mut().enumerate() {
            let note = match sink.write(record, line) {
                Taken::Yes => continue,
                Taken::Again => Some(Record::of("sink_recovered").succeeded()),
                Taken::StillNot => None,
                Taken::Not(why) => Some(Record::of("sink_failed").failed("io").with_message(why)),
            };
            if note.as_ref().is_none_or(|note| note.error_type.is_some()) {
                self.sink_failures = self.sink_failures.saturating_add(1);
            }
            if let Some(note) = note.filter(|_| !is_a_note) {
                sink.noted(note.error_type.is_some());
                self.notes.push(Record { count: u64::try_from(place).ok(), ..note });
            }
        }
    }
}

/// The records written since the last sync.
#[derive(Debug, Default)]
struct Unsynced {
    /// The sequence of the first record.
    first: Option<u64>,
    /// The number of records.
    count: u64,
    /// Their lines, as far as there is room.
    lines: Vec<String>,
    bytes: usize,
}

impl Unsynced {
    fn add(&mut self, sequence: u64, line: String) {
        self.first.get_or_insert(sequence);
        self.count = self.count.saturating_add(1);
        let bytes = self.bytes.saturating_add(line.len());
        if bytes <= MAX_UNSYNCED {
            self.bytes = bytes;
            self.lines.push(line);
        }
    }
}

/// Returns the record of a line for repetition, unless it only says where another file stood.
fn repeated(line: &str) -> Option<Record> {
    let record = record_of(line)?;
    let repeats = record.repeats.or(Some(record.sequence));
    let is_repeated = record.trail.is_none() && record.checkpoint.is_none();
    is_repeated.then_some(Record { repeats, ..record })
}

/// Removes the parts that can make a record too long.
fn cut(record: Record) -> Record {
    let record =
        Record { context: None, configuration: Default::default(), kek_ids: Vec::new(), ..record };
    record.with_message("cut: the record was longer than a line may be".to_owned())
}
