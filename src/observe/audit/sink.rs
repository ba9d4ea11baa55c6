//! Where records go besides the file.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::OpenOptions;
use std::io;

use super::record::Record;
use crate::sync::foreign::{Contained, caught};

/// Receives the records of a trail, in order, on the thread of the trail.
///
/// A sink that blocks stops the trail, so it has its own timeouts. One that fails or panics misses
/// that record: the trail goes on, and says so in a record and in
/// [`AuditStatistics::sink_failures`](super::AuditStatistics::sink_failures).
pub trait AuditSink: fmt::Debug + Send {
    /// Receives one record. `line` is the line of the file, with its end. Keep it byte for byte if
    /// the copy is to be verified.
    ///
    /// # Errors
    /// Whatever went wrong. Its text comes into the trail, so it has no secret.
    fn write(&mut self, record: &Record, line: &str) -> io::Result<()>;
}

/// Only the owner may read what is made.
pub(super) fn private(options: &mut OpenOptions) -> &mut OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

/// Sends every record to the `tracing` facade, under the target `waxseal::audit`, level *info*, with
/// the fields `activity` and `record`, the line without its end.
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

/// A sink whose panic is a failure, and what it is given.
#[derive(Debug)]
pub(super) struct WatchedSink {
    sink: Contained<Box<dyn AuditSink>>,
    only_checkpoints: bool,
    /// A record says that it fails, or is about to.
    is_noted: bool,
    /// The last checkpoint that it did not take, and its line. It gets it before the next one.
    missed: Option<(Record, String)>,
}

/// What a sink made of a record.
pub(super) enum Taken {
    Yes,
    /// It takes records again.
    Again,
    /// It failed, and a record says so already.
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

    /// Gives it the record, and returns why it did not take it.
    fn failure_of(&mut self, record: &Record, line: &str) -> Option<String> {
        let sink = self.sink.get_mut()?;
        // The text of its error is its code too.
        let written = caught(|| sink.write(record, line).err().map(|error| error.to_string()));
        written.unwrap_or_else(|| Some("it panicked".to_owned()))
    }

    /// A record says that it fails, or that it does so no longer.
    pub(super) fn noted(&mut self, fails: bool) {
        self.is_noted = fails;
    }
}
