//! A conformance suite for every [`KeyStore`]: those of this project, and yours.
//!
//! Give it a [`Subject`]: the store and, if available, a second handle to it, a way to run tasks in
//! parallel, and ways to make the store unavailable or crash it. The suite needs no runtime: run it
//! under the executor that your store needs. It creates rows with random ids and branches, so it
//! may run on a store with other rows, and more than once. It leaves its rows there.
//!
//! ```
//! use std::sync::Arc;
//! use waxseal::store::conformance::{self, Subject};
//! use waxseal::store::{KeyStore, MemoryStore};
//!
//! struct Memory(MemoryStore);
//!
//! impl Subject for Memory {
//!     fn store(&self) -> Arc<dyn KeyStore> { Arc::new(self.0.clone()) }
//! }
//!
//! let subject = Memory(MemoryStore::new());
//! let report = pollster::block_on(conformance::run(&subject));
//! assert!(report.is_conformant(), "{report}");
//! ```
#![forbid(unsafe_code)]

mod checks;
mod rows;

use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::join_all;

pub use crate::kek::conformance::{Outcome, Report, Step};

use super::{BoxFuture, KeyStore};
use crate::suite::Dek;
use crate::sync::Arc;

/// What the suite runs on.
pub trait Subject: Send + Sync {
    /// Returns a handle to the store under test.
    fn store(&self) -> Arc<dyn KeyStore>;

    /// Returns a handle to the same store with separate connections, as another process would have.
    /// By default the same as [`store`](Self::store).
    fn another(&self) -> Arc<dyn KeyStore> {
        self.store()
    }

    /// Runs tasks at the same time until all have ended, on threads or as tasks of a runtime. By
    /// default one future polls them all, so they interleave only where they wait.
    fn run_at_once(&self, tasks: Vec<BoxFuture<'static, ()>>) -> BoxFuture<'_, ()> {
        Box::pin(join_all(tasks).map(|_| ()))
    }

    /// Makes the store unavailable until [`give_back`](Self::give_back): it cannot be reached, or
    /// does not answer. By default not applicable.
    fn take_away(&self) -> BoxFuture<'_, Step> {
        Box::pin(async { Step::NotApplicable })
    }

    /// Reverts [`take_away`](Self::take_away).
    fn give_back(&self) -> BoxFuture<'_, Step> {
        Box::pin(async { Step::NotApplicable })
    }

    /// Returns how long a call may take while the store is unavailable. By default 30 seconds.
    fn answers_within(&self) -> Duration {
        Duration::from_secs(30)
    }

    /// Kills the store without warning (`kill -9`, a lost machine) and starts it again. By default
    /// not applicable.
    fn crash(&self) -> BoxFuture<'_, Step> {
        Box::pin(async { Step::NotApplicable })
    }
}

/// Runs every check, whether or not earlier ones passed. It makes a few thousand calls to the
/// store.
pub async fn run(subject: &dyn Subject) -> Report {
    let seed = Dek::random().map_or([0; 32], |random| *random.expose());
    let seed = seed.iter().fold(0, |seed: u64, byte| (seed << 8) | u64::from(*byte));
    run_with_seed(subject, seed).await
}

/// Does the same with the random operations of an earlier run, whose failure names their seed.
pub async fn run_with_seed(subject: &dyn Subject, seed: u64) -> Report {
    let mut results = Vec::new();
    for (name, check) in checks::ALL {
        results.push((*name, check(subject, seed).await.into()));
    }
    Report::new(results)
}
