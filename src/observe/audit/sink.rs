//! Where records go besides the file.
#![forbid(unsafe_code)]

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use super::record::Record;
use crate::error::{Error, ErrorKind};

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

/// Appends the lines to a file, and waits until they are on the disk. For the checkpoints, on a
/// volume or a machine that the service cannot rewrite.
#[derive(Debug)]
pub struct AppendTo {
    file: File,
}

impl AppendTo {
    /// Opens the file, or makes it.
    ///
    /// # Errors
    /// [`ErrorKind::Io`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        let file = private(&mut options).open(path).map_err(|error| {
            Error::new(ErrorKind::Io, format!("{}: {error}", path.display())).with_source(error)
        })?;
        Ok(Self { file })
    }
}

impl AuditSink for AppendTo {
    fn write(&mut self, _record: &Record, line: &str) -> io::Result<()> {
        self.file.write_all(line.as_bytes())?;
        self.file.sync_data()
    }
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
    sink: Box<dyn AuditSink>,
    only_checkpoints: bool,
    /// It failed the last time, and a record says so.
    is_failing: bool,
}

/// What a sink made of a record.
pub(super) enum Taken {
    Yes,
    /// It takes records again.
    Again,
    /// It failed, as it did before.
    StillNot,
    /// It failed for the first time.
    Not(String),
}

impl WatchedSink {
    pub(super) fn new(sink: Box<dyn AuditSink>, only_checkpoints: bool) -> Self {
        Self { sink, only_checkpoints, is_failing: false }
    }

    pub(super) fn takes_only_checkpoints(&self) -> bool {
        self.only_checkpoints
    }

    pub(super) fn write(&mut self, record: &Record, line: &str) -> Taken {
        if self.only_checkpoints && record.checkpoint.is_none() {
            return Taken::Yes;
        }
        let sink = &mut self.sink;
        let written = catch_unwind(AssertUnwindSafe(|| sink.write(record, line)));
        let failure = match written {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(panic) => {
                // Not dropped: its destructor is foreign code too.
                std::mem::forget(panic);
                Some("it panicked".to_owned())
            }
        };
        match (failure, std::mem::replace(&mut self.is_failing, false)) {
            (None, false) => Taken::Yes,
            (None, true) => Taken::Again,
            (Some(why), was_failing) => {
                self.is_failing = true;
                if was_failing { Taken::StillNot } else { Taken::Not(why) }
            }
        }
    }
}
