//! Rego policies, evaluated in this process by regorus. Only Rego v1 is supported.
#![forbid(unsafe_code)]

mod builder;
mod bundle;
mod chains;
mod engine;
mod files;
mod heads;
mod lint;
mod policy;
#[cfg(feature = "signatures")]
mod signature;
mod sources;
mod tester;
mod uri;

pub use builder::RegoPolicyBuilder;
pub use lint::{Finding, Lint, lint};
pub use policy::{RegoPolicy, RegoStatus};
#[cfg(feature = "signatures")]
pub use signature::BundleKey;
pub use sources::RegoSources;
pub use tester::{TestResult, run_tests};
