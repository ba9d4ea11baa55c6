//! A conformance suite for every [`KekProvider`]: those of this project, and yours.
//!
//! Give it a [`Subject`]: the provider, another KEK of the same service, and ways to rotate the KEK
//! or to make the service or its credentials fail. The suite checks what the provider says about
//! itself ([`target`](KekProvider::target), [`context_binding`](KekProvider::context_binding),
//! [`rewraps_in_service`](KekProvider::rewraps_in_service)) against what it does. The suite needs
//! no runtime: run it under the executor that your provider needs.
//!
//! ```
//! use std::sync::Arc;
//! use waxseal::kek::conformance::{self, Subject};
//! use waxseal::kek::{KekProvider, local::LocalKek};
//!
//! struct Local { kek: LocalKek, other: LocalKek }
//!
//! impl Subject for Local {
//!     fn provider(&self) -> Arc<dyn KekProvider> { Arc::new(self.kek.clone()) }
//!     fn other(&self) -> Arc<dyn KekProvider> { Arc::new(self.other.clone()) }
//! }
//!
//! let subject = Local { kek: LocalKek::in_memory("a")?, other: LocalKek::in_memory("b")? };
//! let report = pollster::block_on(conformance::run(&subject));
//! assert!(report.is_conformant(), "{report}");
//! # Ok::<(), waxseal::Error>(())
//! ```
#![forbid(unsafe_code)]

mod checks;

use std::fmt;
use std::sync::Arc;

use super::{BoxFuture, KekErrorClass, KekProvider};

/// What the suite runs on.
pub trait Subject: Send + Sync {
    /// Returns the provider under test.
    fn provider(&self) -> Arc<dyn KekProvider>;

    /// Returns a provider for another KEK of the same key service, which the first does not
    /// recognise.
    fn other(&self) -> Arc<dyn KekProvider>;

    /// Returns whether the KEK gives the same bytes when it wraps the same DEK twice, as key
    /// wrapping without a nonce does (RFC 3394, RFC 5649). Two such wrapped keys show that their
    /// DEKs are equal, which the DEK ids show anyway. By default `false`: wrapping is randomised.
    fn wraps_deterministically(&self) -> bool {
        false
    }

    /// Makes a new version of the KEK, which wraps from now on. By default not applicable.
    fn rotate(&self) -> BoxFuture<'_, Step> {
        Box::pin(async { Step::NotApplicable })
    }

    /// Makes every call to the service fail in this way, until [`restore`](Self::restore). By
    /// default not applicable.
    fn fail_with(&self, class: KekErrorClass) -> BoxFuture<'_, Step> {
        let _ = class;
        Box::pin(async { Step::NotApplicable })
    }

    /// Takes away the source of the provider's credentials (a login, a token service, an instance's
    /// metadata) and its current credentials, until [`restore`](Self::restore). The next call then
    /// needs the source. The key service itself stays up. By default not applicable: there are no
    /// credentials, or no source that could be down.
    fn fail_credentials(&self) -> BoxFuture<'_, Step> {
        Box::pin(async { Step::NotApplicable })
    }

    /// Takes away the provider's permission to unwrap, but not the one to rewrap, until
    /// [`restore`](Self::restore). By default not applicable.
    fn forbid_unwrapping(&self) -> BoxFuture<'_, Step> {
        Box::pin(async { Step::NotApplicable })
    }

    /// Ends what [`fail_with`](Self::fail_with), [`fail_credentials`](Self::fail_credentials) or
    /// [`forbid_unwrapping`](Self::forbid_unwrapping) began.
    fn restore(&self) -> BoxFuture<'_, Step> {
        Box::pin(async { Step::NotApplicable })
    }
}

/// The outcome of a step that the suite asked its [`Subject`] for.
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

/// The results of [`run`]. Display has a line per check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report(Vec<(&'static str, Outcome)>);

impl Report {
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

/// Runs every check, whether or not earlier ones passed. It makes a few hundred calls to the
/// provider.
pub async fn run(subject: &dyn Subject) -> Report {
    let mut results = Vec::new();
    for (name, check) in checks::ALL {
        let outcome = match check(subject).await {
            Ok(()) => Outcome::Passed,
            Err(checks::Stop::NotApplicable) => Outcome::NotApplicable,
            Err(checks::Stop::Failed(why)) => Outcome::Failed(why),
        };
        results.push((*name, outcome));
    }
    Report(results)
}
