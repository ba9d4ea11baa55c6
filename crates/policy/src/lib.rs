#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod answer;
#[cfg(feature = "opa")]
mod opa;
#[cfg(feature = "rego")]
mod rego;

#[cfg(feature = "opa")]
pub use opa::{OpaPolicy, OpaPolicyBuilder};
#[cfg(feature = "signatures")]
pub use rego::BundleKey;
#[cfg(feature = "rego")]
pub use rego::{
    Finding, Lint, RegoPolicy, RegoPolicyBuilder, RegoSources, RegoStatus, TestResult, lint,
    run_tests,
};
