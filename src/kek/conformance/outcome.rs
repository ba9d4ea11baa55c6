//! The results of a conformance suite's checks, and helpers for writing checks. The suite of key
//! stores uses them too.
#![forbid(unsafe_code)]

use std::fmt::{self, Display};

/// The outcome of a step that a suite asks of its subject.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// It is done.
    Done,
    /// This service, or this set-up, cannot do it.
    NotApplicable,
    /// It failed, and so does the check.
    Failed(String),
}

/// The result of one check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It passed.
    Passed,
    /// The subject cannot do what the check needs.
    NotApplicable,
    /// It failed, for this reason.
    Failed(String),
}

/// The results of a run of a suite. Display has one line per check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report(Vec<(&'static str, Outcome)>);

impl Report {
    pub(crate) fn new(results: Vec<(&'static str, Outcome)>) -> Self {
        Self(results)
    }

    /// Returns whether no check failed.
    #[must_use]
    pub fn is_conformant(&self) -> bool {
        !self.0.iter().any(|(_, outcome)| matches!(outcome, Outcome::Failed(_)))
    }

    /// Returns every check by name, in the order of the run.
    pub fn checks(&self) -> impl Iterator<Item = (&'static str, &Outcome)> {
        self.0.iter().map(|(name, outcome)| (*name, outcome))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, outcome) in &self.0 {
            match outcome {
                Outcome::Passed => writeln!(f, "passed          {name}")?,
                Outcome::NotApplicable => writeln!(f, "not applicable  {name}")?,
                Outcome::Failed(why) => writeln!(f, "FAILED          {name}: {why}")?,
            }
        }
        Ok(())
    }
}

/// The reason why a check ended early.
pub(crate) enum Stop {
    NotApplicable,
    Failed(String),
}

impl From<Result<(), Stop>> for Outcome {
    fn from(result: Result<(), Stop>) -> Self {
        match result {
            Ok(()) => Self::Passed,
            Err(Stop::NotApplicable) => Self::NotApplicable,
            Err(Stop::Failed(why)) => Self::Failed(why),
        }
    }
}

pub(crate) fn failed<T>(why: impl Display) -> Result<T, Stop> {
    Err(Stop::Failed(why.to_string()))
}

/// Returns the value of a call that must succeed.
pub(crate) fn ok<T, E: Display>(what: &str, result: Result<T, E>) -> Result<T, Stop> {
    result.map_err(|error| Stop::Failed(format!("{what}: {error}")))
}

pub(crate) fn ensure(holds: bool, why: impl Display) -> Result<(), Stop> {
    if holds { Ok(()) } else { failed(why) }
}

pub(crate) fn step(step: Step) -> Result<(), Stop> {
    match step {
        Step::Done => Ok(()),
        Step::NotApplicable => Err(Stop::NotApplicable),
        Step::Failed(why) => Err(Stop::Failed(why)),
    }
}
