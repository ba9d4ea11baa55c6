#![doc = guide::links!()]
#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod builder;
mod client;
mod config;
mod credentials;
mod errors;
mod format;
pub mod guide;
mod health;
mod keys;
mod provider;
mod refusals;
mod transport;
mod xks;

pub use builder::AwsKmsKekBuilder;
pub use config::Config;
pub use health::HealthCheck;
pub use provider::{AwsKmsKek, KeyInfo};
pub use xks::ExternalKeyStore;
