//! A conformance suite for every [`KekProvider`]: those of this project, and yours.
//!
//! Give it a [`Subject`]: the provider, another KEK of the same service, and ways to rotate the KEK
//! or to make the service or its credentials fail. The suite compares what the provider says about
//! itself ([`target`](KekProvider::target), [`context_binding`](KekProvider::context_binding),
//! [`rewraps_in_service`](KekProvider::rewraps_in_service)) with what it does. The suite needs no
//! runtime: run it under the executor that your provider needs.
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
mod outcome;

use std::sync::Arc;

pub use outcome::{Outcome, Report, Step};
pub(crate) use outcome::{Stop, ensure, failed, ok, step};

use super::{BoxFuture, KekErrorClass, KekProvider};

/// What the suite runs on.
pub trait Subject: Send + Sync {
    /// Returns the provider under test.
    fn provider(&self) -> Arc<dyn KekProvider>;

    /// Returns a provider for another KEK of the same key service. The first provider must not
    /// recognise it.
    fn other(&self) -> Arc<dyn KekProvider>;

    /// Returns whether the KEK gives the same bytes when it wraps the same DEK twice, as key
    /// wrapping without a nonce does (RFC 3394, RFC 5649). Two equal wrapped keys show that their
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

    /// Removes the source of the provider's credentials (a login, a token service, an instance's
    /// metadata) and its current credentials, until [`restore`](Self::restore). The next call then
    /// needs the source. The key service itself stays up. By default not applicable: there are no
    /// credentials, or no source that could be down.
    fn fail_credentials(&self) -> BoxFuture<'_, Step> {
        Box::pin(async { Step::NotApplicable })
    }

    /// Removes the provider's permission to unwrap, but not the one to rewrap, until
    /// [`restore`](Self::restore). By default not applicable.
    fn forbid_unwrapping(&self) -> BoxFuture<'_, Step> {
        Box::pin(async { Step::NotApplicable })
    }

    /// Reverts [`fail_with`](Self::fail_with), [`fail_credentials`](Self::fail_credentials) or
    /// [`forbid_unwrapping`](Self::forbid_unwrapping).
    fn restore(&self) -> BoxFuture<'_, Step> {
        Box::pin(async { Step::NotApplicable })
    }
}

/// Runs every check, whether or not earlier ones passed. It makes a few hundred calls to the
/// provider.
pub async fn run(subject: &dyn Subject) -> Report {
    let mut results = Vec::new();
    for (name, check) in checks::ALL {
        results.push((*name, check(subject).await.into()));
    }
    Report::new(results)
}
