//! Destinations of records apart from the file.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::OpenOptions;
use std::io;

use super::record::Record;
use crate::sync::foreign::{Contained, caught};

/// Receives the records of a trail, in order, on the thread of the trail.
///
/// A sink that blocks stops the trail, so give it timeouts. A sink that fails or panics misses that
/// record. The trail continues, and reports it in a record and in
/// [`AuditStatistics::sink_failures`](super::AuditStatistics::sink_failures).
pub trait AuditSink: fmt::Debug + Send {
    /// Receives one record. `line` is the line of the file, with its end. Keep it byte for byte if
    /// the copy is to be verified.
    ///
    /// # Errors
    /// Whatever went wrong. Its text appears in the trail, so it must not contain a secret.
    fn write(&mut self, record: &Record, line: &str) -> io::Result<()>;
}

/// Only the owner may read the created file.
pub(super) fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

/// Sends every record to the `tracing` facade, under the target `waxseal::audit`, level *info*,
/// with the fields `activity` and `record`, the line without its end.
#[cfg(feature = "tracing")]
#[derive(Clone, Copy, Debug, Default)]
pub struct TracingSink;

#[cfg(feature = "tracing")]
impl AuditSink for TracingSink {
    fn write(&mut self, record: &Record, line: &str) -> io::Result<()> {
        tracing::info!(
            target: "waxseal::audit",
            activity = &*record.activity,
            record = line.trim_end_matches('\n'),
        );
        Ok(())
    }
}

/// A sink whose panic counts as a failure, and its state.
#[derive(Debug)]
pub(super) struct WatchedSink {
    sink: Contained<Box<dyn AuditSink>>,
    only_checkpoints: bool,
    /// Whether a record says, or is about to say, that it fails.
    is_noted: bool,
    /// The last checkpoint that it did not accept, and its line. It gets that one before the next.
    missed: Option<(Record, String)>,
}

/// The result of giving a sink a record.
pub(super) enum Taken {
    Yes,
    /// It accepts records again.
    Again,
    /// It failed, and a record already says so.
    StillNot,
    /// It failed, and no record says so yet.
    Not(String),
}

impl WatchedSink {
    pub(super) fn new(sink: Box<dyn AuditSink>, only_checkpoints: bool) -> Self {
        let sink = Contained::new(sink);
        Self { sink, only_checkpoints, is_noted: false, missed: None }
    }

    pub(super) fn takes_only_checkpoints(&self) -> bool {
        self.only_checkpoints
    }

    pub(super) fn write(&mut self, record: &Record, line: &str) -> Taken {
        if self.only_checkpoints && record.checkpoint.is_none() {
            return Taken::Yes;
        }
        let mut failure = None;
        if let Some((missed, its_line)) = self.missed.take() {
            failure = self.failure_of(&missed, &its_line);
        }
        if failure.is_none() {
            failure = self.failure_of(record, line);
        }
        if failure.is_some() && self.only_checkpoints {
            self.missed = Some((record.clone(), line.to_owned()));
        }
        match failure {
            None if self.is_noted => Taken::Again,
            None => Taken::Yes,
            Some(_) if self.is_noted => Taken::StillNot,
            Some(why) => Taken::Not(why),
        }
    }

    /// Gives it the record, and returns why it did not accept it.
    fn failure_of(&mut self, record: &Record, line: &str) -> Option<String> {
        let sink = self.sink.get_mut()?;
        // The text of its error is foreign code too.
        let written = caught(|| sink.write(record, line).err().map(|error| error.to_string()));
        written.unwrap_or_else(|| Some("it panicked".to_owned()))
    }

    /// Notes that a record says whether it fails.
    pub(super) fn noted(&mut self, fails: bool) {
        self.is_noted = fails;
    }
}
