//! What can be wrong with a trail.
#![forbid(unsafe_code)]

use std::fmt;

/// The first fault of a trail, and its place. Everything before it is unmodified.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Fault {
    /// What is wrong.
    pub kind: FaultKind,
    /// The name of the file.
    pub file: String,
    /// The number of the line in the file, from 1. At the end of a trail, that of the last line.
    pub line: u64,
    /// The sequence of the record that should be there.
    pub sequence: u64,
}

/// The kinds of faults of a trail.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum FaultKind {
    /// The record was modified.
    Changed,
    /// The line is not a record of a trail.
    NoRecord,
    /// Records from this place on are missing.
    Missing {
        /// The sequence of the last of them.
        through: u64,
    },
    /// The record that belongs here comes later.
    Moved,
    /// A record appears here again.
    Repeated {
        /// The sequence of the record.
        sequence: u64,
    },
    /// The file ends within a line. Its writer was killed and has not started again, or the file
    /// was cut.
    Incomplete,
    /// A file is missing.
    FileMissing {
        /// Its number.
        number: u64,
    },
    /// The record belongs in another file.
    OtherFile,
    /// The record, or a witness, belongs to another trail.
    OtherTrail,
    /// No key accepts this checkpoint, or it is about another chain.
    CheckpointRefused,
    /// This checkpoint names a previous checkpoint other than the last one found.
    CheckpointMissing {
        /// The sequence of the checkpoint that it names.
        sequence: u64,
    },
    /// There is no checkpoint, so nothing is authenticated.
    NoCheckpoint,
    /// The record differs from the witness of this sequence: the chain was rebuilt.
    WitnessDisagrees,
    /// A witness shows that there were more records.
    CutOff {
        /// The highest known sequence.
        through: u64,
    },
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed => f.write_str("the record was changed"),
            Self::NoRecord => f.write_str("the line is not a record of a trail"),
            Self::Missing { through } => write!(f, "records are missing, up to {through}"),
            Self::Moved => f.write_str("the record was moved to a later place"),
            Self::Repeated { sequence } => write!(f, "record {sequence} is repeated"),
            Self::Incomplete => f.write_str("the file ends within a line"),
            Self::FileMissing { number } => write!(f, "file {number} is missing"),
            Self::OtherFile => f.write_str("the record belongs in another file"),
            Self::OtherTrail => f.write_str("the record is of another trail"),
            Self::CheckpointRefused => f.write_str("the checkpoint is not authentic"),
            Self::CheckpointMissing { sequence } => {
                write!(f, "the checkpoint before this one, record {sequence}, is not here")
            }
            Self::NoCheckpoint => f.write_str("nothing is authenticated by a checkpoint"),
            Self::WitnessDisagrees => {
                f.write_str("a checkpoint that was kept elsewhere shows another record")
            }
            Self::CutOff { through } => {
                write!(f, "the end was cut off: there were records up to {through}")
            }
        }
    }
}

/// Writes the file, the line, the sequence, and what is wrong.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kind, file, line, sequence } = self;
        write!(f, "{file}, line {line}, sequence {sequence}: {kind}")
    }
}
