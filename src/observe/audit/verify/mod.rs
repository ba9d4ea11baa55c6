//! Verifies a trail: finds the first record that was modified or is not in its place.
//!
//! It trusts no byte that it reads, and holds one line at a time.
#![forbid(unsafe_code)]

mod fault;
mod lines;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::ops::RangeInclusive;
use std::path::Path;

pub use fault::{Fault, FaultKind};
use lines::{Lines, Next};

use super::append;
use super::chain::{Chain, ChainHash, Line, TrailId};
use super::checkpoint::{CHECKPOINT, Checkpoint, CheckpointVerifier, Link};
use super::record::{ABOUT_A_SINK, FORMAT_VERSION, Record};
use super::unusable;
use crate::error::{Error, ErrorKind};

/// Verifies the files of a trail.
///
/// Without a key it finds every modification, unless the chain was rebuilt too. With the
/// [key](Self::key) of the checkpoints it also finds rebuilt chains, up to the last checkpoint.
/// With [witnesses](Self::witness), which are copies of checkpoints that were kept elsewhere, it
/// also finds that the end was cut off.
///
/// Memory is bounded by one line of 64 KiB, and the witnesses.
#[derive(Debug, Default)]
#[must_use]
pub struct Verifier {
    keys: Vec<CheckpointVerifier>,
    /// By sequence. More than one only if they differ.
    witnesses: BTreeMap<u64, Vec<Checkpoint>>,
    first_file: Option<u64>,
}

/// The result of a verification.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Verification {
    /// The id of the trail.
    pub trail: Option<String>,
    /// How many records are unmodified, up to the first fault.
    pub records: u64,
    /// The sequence of the first of them. 0 unless older files were moved away.
    pub first_sequence: u64,
    /// The hash of the last of them.
    pub last_hash: Option<ChainHash>,
    /// How many checkpoints a key accepted.
    pub checkpoints: u64,
    /// The sequence of the last checkpoint that a key accepted. Everything before it is
    /// authenticated. Anyone who can write the file can make what follows it.
    pub authenticated_before: Option<u64>,
    /// How often the wall clock was set back while the trail was written.
    pub clock_set_back: u64,
    /// How often the trail continued without having been closed, for example after a crash.
    pub not_closed: u64,
    /// How often a sync failed, so that the trail continued in another file.
    pub sync_failures: u64,
    /// How many records are missing because a sync failed and the machine crashed. The next file
    /// repeats them, except for checkpoints and records about the trail, and says from which one on
    /// they may be missing.
    pub lost_at_sync: u64,
    /// Whether the last record says that the trail was closed. Otherwise it is still being written,
    /// its process was killed, or the end was cut off.
    pub is_closed: bool,
    /// The first fault.
    pub fault: Option<Fault>,
}

impl Verifier {
    /// Makes a verifier.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a key. Then there must be a checkpoint, and one of the keys must accept each
    /// checkpoint.
    pub fn key(mut self, key: CheckpointVerifier) -> Self {
        self.keys.push(key);
        self
    }

    /// Adds a checkpoint that was kept elsewhere: see
    /// [`checkpoints_to`](super::AuditTrailBuilder::checkpoints_to). A checkpoint of another trail
    /// is a fault, and so are two of one sequence that differ.
    pub fn witness(mut self, checkpoint: Checkpoint) -> Self {
        let sequence = checkpoint.sequence();
        let known = self.witnesses.entry(sequence).or_default();
        if !known.contains(&checkpoint) {
            known.push(checkpoint);
        }
        self
    }

    /// Adds every checkpoint that an [`AppendTo`](super::AppendTo) with this path has written, to
    /// it and to its continuation files. Lines that a crash or a failing disk left incomplete are
    /// ignored.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]. [`ErrorKind::Malformed`] for a line that is not a checkpoint, naming file
    /// and line.
    pub fn witnesses(self, path: impl AsRef<Path>) -> Result<Self, Error> {
        let mut all = Vec::new();
        append::read_lines(path.as_ref(), |line| {
            all.push(Checkpoint::read(line)?);
            Ok(())
        })?;
        Ok(all.into_iter().fold(self, Self::witness))
    }

    /// Sets the number of the first file, if older ones were moved away. By default 1. The place in
    /// the chain that this file claims is then believed, unless a witness or a key contradicts it.
    pub fn first_file(mut self, number: u64) -> Self {
        self.first_file = Some(number);
        self
    }

    /// Verifies the files of a directory.
    ///
    /// # Errors
    /// [`ErrorKind::Io`]. [`ErrorKind::UnsupportedVersion`] for a trail of another format.
    /// [`ErrorKind::InvalidOption`] for a witness that no key accepts. A modified trail is not an
    /// error but a [`Fault`].
    pub fn verify(&self, directory: impl AsRef<Path>) -> Result<Verification, Error> {
        self.verify_each(directory, |_| {})
    }

    /// Does the same as [`verify`](Self::verify), and passes each unmodified record to `each`.
    ///
    /// # Errors
    /// Those of [`verify`](Self::verify).
    pub fn verify_each(
        &self,
        directory: impl AsRef<Path>,
        each: impl FnMut(&Record),
    ) -> Result<Verification, Error> {
        let directory = directory.as_ref();
        let failed = failed_in(directory);
        let first = self.first_file.unwrap_or(1).max(1);
        let lines = Lines::of_directory(directory, first, u64::MAX).map_err(&failed)?;
        self.run(lines, first, each, failed).map(|passed| passed.found)
    }

    /// Verifies only the files from `first` to `last`.
    pub(super) fn verify_between(
        &self,
        directory: &Path,
        first: u64,
        last: u64,
    ) -> Result<Passed, Error> {
        let failed = failed_in(directory);
        let lines = Lines::of_directory(directory, first, last).map_err(&failed)?;
        self.run(lines, first, |_| {}, failed)
    }

    /// Verifies the lines of a stream, as a [sink](super::AuditSink) received them.
    ///
    /// # Errors
    /// Those of [`verify`](Self::verify).
    pub fn verify_stream(
        &self,
        stream: impl Read,
        each: impl FnMut(&Record),
    ) -> Result<Verification, Error> {
        let failed = |error: io::Error| {
            Error::new(ErrorKind::Io, "audit trail: the stream cannot be read").with_source(error)
        };
        let first = self.first_file.unwrap_or(1);
        self.run(Lines::of_stream(stream), first, each, failed).map(|passed| passed.found)
    }

    fn run(
        &self,
        lines: Lines<'_>,
        first_file: u64,
        each: impl FnMut(&Record),
        failed: impl Fn(io::Error) -> Error,
    ) -> Result<Passed, Error> {
        self.check_witnesses()?;
        let mut pass = Pass {
            verifier: self,
            lines,
            first_file: first_file.max(1),
            chain: None,
            last_checkpoint: None,
            lost: Vec::new(),
            unauthenticated: None,
            found: nothing(),
        };
        pass.run(each).map_err(|stopped| match stopped {
            Stopped::Io(error) => failed(error),
            Stopped::Version(version) => {
                let detail = format!("an audit trail of version {version}");
                Error::new(ErrorKind::UnsupportedVersion, detail)
            }
        })?;
        let Pass { chain, last_checkpoint, found, .. } = pass;
        Ok(Passed { found, chain, last_checkpoint })
    }

    fn check_witnesses(&self) -> Result<(), Error> {
        let mut witnesses = self.witnesses.values().flatten();
        match witnesses.find(|witness| !self.keys.is_empty() && !self.accepts(witness)) {
            Some(witness) => {
                let sequence = witness.sequence();
                let detail =
                    format!("witness: the checkpoint of sequence {sequence} is accepted by no key");
                Err(Error::new(ErrorKind::InvalidOption, detail))
            }
            None => Ok(()),
        }
    }

    fn has_witness_of_another(&self, trail: TrailId) -> bool {
        self.witnesses.values().flatten().any(|witness| witness.trail != trail)
    }

    fn accepts(&self, checkpoint: &Checkpoint) -> bool {
        self.keys.iter().any(|key| key.accepts(checkpoint))
    }
}

/// The result of a pass over a trail.
pub(super) struct Passed {
    pub(super) found: Verification,
    /// The chain after the last unmodified record.
    pub(super) chain: Option<Chain>,
    /// The last checkpoint that claims to be authenticated.
    pub(super) last_checkpoint: Option<Link>,
}

fn failed_in(directory: &Path) -> impl Fn(io::Error) -> Error {
    move |error| unusable(format_args!("audit trail in {}", directory.display()), error)
}

fn nothing() -> Verification {
    Verification {
        trail: None,
        records: 0,
        first_sequence: 0,
        last_hash: None,
        checkpoints: 0,
        authenticated_before: None,
        clock_set_back: 0,
        not_closed: 0,
        sync_failures: 0,
        lost_at_sync: 0,
        is_closed: false,
        fault: None,
    }
}

/// The reason why nothing can be said about the trail.
enum Stopped {
    Io(io::Error),
    Version(u32),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// One pass over a trail.
struct Pass<'v, 'r> {
    verifier: &'v Verifier,
    lines: Lines<'r>,
    /// In file 1 the first record must be the first of the trail.
    first_file: u64,
    chain: Option<Chain>,
    last_checkpoint: Option<Link>,
    /// The sequences of missing records that a later file explains.
    lost: Vec<RangeInclusive<u64>>,
    /// The fault that such a file explains, until a checkpoint authenticates that file.
    unauthenticated: Option<Fault>,
    found: Verification,
}

impl Pass<'_, '_> {
    fn run(&mut self, mut each: impl FnMut(&Record)) -> Result<(), Stopped> {
        let mut next = self.lines.next()?;
        let fault = loop {
            let fault = match next {
                Next::Line => match self.record()? {
                    Ok(record) => {
                        // A repeated record whose original is here was already seen.
                        if record.repeats.is_none_or(|sequence| self.is_lost(sequence)) {
                            each(&record);
                        }
                        next = self.lines.next()?;
                        continue;
                    }
                    Err(fault) => fault,
                },
                Next::End => break self.missing_at_the_end(),
                Next::Incomplete => self.fault(FaultKind::Incomplete),
                Next::TooLong => self.fault(FaultKind::NoRecord),
                Next::Missing(number) => break Some(self.fault(FaultKind::FileMissing { number })),
            };
            let is_torn = matches!(fault.kind, FaultKind::Incomplete | FaultKind::NoRecord);
            if !is_torn || !self.next_file_explains(&fault)? {
                break Some(fault);
            }
            next = Next::Line;
        };
        self.found.fault = fault.or_else(|| self.unauthenticated.take());
        Ok(())
    }

    /// Whether the next file begins with a record which says that the end of this one may be
    /// missing. Then that record is the current line.
    fn next_file_explains(&mut self, fault: &Fault) -> Result<bool, Stopped> {
        if !self.lines.skip_file() {
            return Ok(false);
        }
        let Next::Line = self.lines.next()? else { return Ok(false) };
        let bytes = std::mem::take(&mut self.lines.bytes);
        let explains = Line::read(&bytes).is_some_and(|line| self.goes_on_behind(&line, fault));
        self.lines.bytes = bytes;
        Ok(explains)
    }

    /// Whether a line is the first of a file and says that the records from the expected one up to
    /// it may be missing. Then the chain continues there.
    fn goes_on_behind(&mut self, line: &Line<'_>, fault: &Fault) -> bool {
        let record = &line.record;
        let Some(chain) = self.chain else { return false };
        let from = record.trail.as_ref().and_then(|trail| trail.unsynced_from);
        let previous = record.trail.as_ref().and_then(|trail| ChainHash::read(&trail.previous));
        let (Some(from), Some(head)) = (from, previous) else { return false };
        let is_the_gap = from <= chain.next && chain.next < record.sequence;
        if self.lines.line != 1 || TrailId::of(record) != Some(chain.trail) || !is_the_gap {
            return false;
        }
        self.lost.push(chain.next..=record.sequence.saturating_sub(1));
        let lost = record.sequence.saturating_sub(chain.next);
        self.found.lost_at_sync = self.found.lost_at_sync.saturating_add(lost);
        if !self.verifier.keys.is_empty() {
            self.unauthenticated.get_or_insert_with(|| fault.clone());
        }
        self.chain = Some(Chain { next: record.sequence, head, ..chain });
        true
    }

    fn is_lost(&self, sequence: u64) -> bool {
        self.lost.iter().any(|lost| lost.contains(&sequence))
    }

    /// Returns the sequence of the record that must come next.
    fn expected(&self) -> u64 {
        self.chain.map_or(0, |chain| chain.next)
    }

    fn fault(&self, kind: FaultKind) -> Fault {
        let (file, line) = (self.lines.name(), self.lines.line);
        Fault { kind, file, line, sequence: self.expected() }
    }

    /// Checks the line that was just read.
    fn record(&mut self) -> Result<Result<Record, Fault>, Stopped> {
        // Looking ahead overwrites the line in the buffer.
        let bytes = std::mem::take(&mut self.lines.bytes);
        let Some(line) = Line::read(&bytes) else {
            return Ok(Err(self.fault(FaultKind::NoRecord)));
        };
        let Some(trail) = TrailId::of(&line.record) else {
            return Ok(Err(self.fault(FaultKind::NoRecord)));
        };
        let Some(chain) = self.chain.or_else(|| self.start(&line.record, trail)) else {
            return Ok(Err(self.fault(FaultKind::NoRecord)));
        };
        let is_first = self.chain.replace(chain).is_none();
        if trail != chain.trail || is_first && self.verifier.has_witness_of_another(trail) {
            return Ok(Err(self.fault(FaultKind::OtherTrail)));
        }
        if line.record.sequence != chain.next {
            let through = line.record.sequence.saturating_sub(1);
            let fault = self.fault(FaultKind::Missing { through });
            if !self.goes_on_behind(&line, &fault) {
                return Ok(Err(self.out_of_place(line.record.sequence)));
            }
        }
        let chain = self.chain.unwrap_or(chain);
        if !line.follows(chain.head) {
            return Ok(Err(self.fault(FaultKind::Changed)));
        }
        if let Some(version) = line.record.trail.as_ref().map(|trail| trail.version)
            && version != FORMAT_VERSION
        {
            return Err(Stopped::Version(version));
        }
        // A later version may have other fields, so its number is checked first.
        if !line.is_canonical {
            return Ok(Err(self.fault(FaultKind::NoRecord)));
        }
        if let Some(kind) = self.objection(&line, chain.head) {
            return Ok(Err(self.fault(kind)));
        }
        self.accept(&line, chain);
        let record = line.record;
        self.lines.bytes = bytes;
        Ok(Ok(record))
    }

    /// Returns the state of the chain before the first record.
    fn start(&self, record: &Record, trail: TrailId) -> Option<Chain> {
        if self.first_file == 1 {
            return Some(Chain::new(trail));
        }
        let head = ChainHash::read(&record.trail.as_ref()?.previous)?;
        Some(Chain { trail, next: record.sequence, head })
    }

    /// Returns what is wrong with a record that follows unchanged.
    fn objection(&mut self, line: &Line<'_>, head: ChainHash) -> Option<FaultKind> {
        let record = &line.record;
        let begins = record.activity == "trail_file_opened";
        let is_of_this_file = record.trail.as_ref().map(|trail| trail.file) == self.lines.file;
        let is_first = self.lines.line == 1;
        let previous = record.trail.as_ref().and_then(|trail| ChainHash::read(&trail.previous));
        if record.trail.is_some() && previous != Some(head) {
            return Some(FaultKind::Changed);
        }
        if self.lines.file.is_some() && (begins != is_first || begins && !is_of_this_file) {
            return Some(FaultKind::OtherFile);
        }
        if let Some(witnesses) = self.verifier.witnesses.get(&record.sequence)
            && witnesses.iter().any(|witness| witness.hash != line.hash)
        {
            return Some(FaultKind::WitnessDisagrees);
        }
        if record.activity != CHECKPOINT {
            return None;
        }
        let checkpoint = Checkpoint::of(line).filter(|checkpoint| checkpoint.head == head);
        let Some(checkpoint) = checkpoint else { return Some(FaultKind::CheckpointRefused) };
        if let Some(kind) = self.unlinked(&checkpoint) {
            return Some(kind);
        }
        if self.verifier.keys.is_empty() {
            return None;
        }
        if !self.verifier.accepts(&checkpoint) {
            return Some(FaultKind::CheckpointRefused);
        }
        self.found.checkpoints = self.found.checkpoints.saturating_add(1);
        self.found.authenticated_before = Some(record.sequence);
        self.unauthenticated = None;
        None
    }

    /// Returns the fault of an authenticated checkpoint that does not name the previous one.
    fn unlinked(&mut self, checkpoint: &Checkpoint) -> Option<FaultKind> {
        if !checkpoint.is_signed() {
            return None;
        }
        let named = checkpoint.previous;
        let before = self.last_checkpoint.replace(checkpoint.link());
        let is_linked = match before {
            // The checkpoint that it names may be lost.
            Some(before) => named == before || self.is_lost(named.sequence),
            None if self.first_file == 1 => named == Link::first(checkpoint.trail),
            // That checkpoint is in a file that was moved away.
            None => self.found.records > 0 && named.sequence < self.found.first_sequence,
        };
        (!is_linked).then_some(FaultKind::CheckpointMissing { sequence: named.sequence })
    }

    fn accept(&mut self, line: &Line<'_>, chain: Chain) {
        let (record, found) = (&line.record, &mut self.found);
        if found.records == 0 {
            (found.trail, found.first_sequence) = (Some(chain.trail.to_string()), record.sequence);
        }
        found.records = found.records.saturating_add(1);
        found.last_hash = Some(line.hash);
        if record.activity == "trail_resumed" && found.records > 1 && !found.is_closed {
            found.not_closed = found.not_closed.saturating_add(1);
        }
        if record.trail.as_ref().is_some_and(|trail| trail.unsynced_from.is_some()) {
            found.sync_failures = found.sync_failures.saturating_add(1);
        }
        match &*record.activity {
            "clock_set_back" => found.clock_set_back = found.clock_set_back.saturating_add(1),
            // It follows the last record.
            CHECKPOINT => {}
            activity if activity.starts_with(ABOUT_A_SINK) => {}
            activity => found.is_closed = activity == "trail_closed",
        }
        self.chain = Some(Chain { head: line.hash, next: chain.next.saturating_add(1), ..chain });
    }

    /// Handles a record that belongs elsewhere, or claims to. Reads on to find out which, as far as
    /// the file can be read.
    fn out_of_place(&mut self, sequence: u64) -> Fault {
        let fault = self.fault(FaultKind::Changed);
        let expected = fault.sequence;
        // Only its sequence differs, and it is in the right place.
        let is_in_place = self.next_sequence() == expected.checked_add(1);
        let is_before = sequence < expected;
        let kind = if !is_before && self.comes_later(expected) {
            FaultKind::Moved
        } else if is_in_place {
            FaultKind::Changed
        } else if is_before {
            FaultKind::Repeated { sequence }
        } else {
            FaultKind::Missing { through: sequence.saturating_sub(1) }
        };
        Fault { kind, ..fault }
    }

    /// Whether the current line or a later one claims this sequence.
    fn comes_later(&mut self, sequence: u64) -> bool {
        let mut there = Line::read(&self.lines.bytes).map(|line| line.record.sequence);
        while there != Some(sequence) {
            let Ok(Next::Line) = self.lines.next() else { return false };
            there = Line::read(&self.lines.bytes).map(|line| line.record.sequence);
        }
        true
    }

    /// Returns the sequence that the next line claims.
    fn next_sequence(&mut self) -> Option<u64> {
        let Ok(Next::Line) = self.lines.next() else { return None };
        Line::read(&self.lines.bytes).map(|line| line.record.sequence)
    }

    /// Returns what is missing after the last record.
    fn missing_at_the_end(&self) -> Option<Fault> {
        if self.chain.is_none() {
            let number = self.first_file;
            return Some(self.fault(FaultKind::FileMissing { number }));
        }
        let next = self.expected();
        if let Some((&through, _)) = self.verifier.witnesses.range(next..).next_back() {
            return Some(self.fault(FaultKind::CutOff { through }));
        }
        if self.verifier.witnesses.values().any(|witnesses| witnesses.len() > 1) {
            return Some(self.fault(FaultKind::WitnessDisagrees));
        }
        let is_unknown = !self.verifier.keys.is_empty() && self.found.checkpoints == 0;
        is_unknown.then(|| self.fault(FaultKind::NoCheckpoint))
    }
}
