#![doc = guide::links!()]
#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod answers;
mod builder;
mod client;
mod config;
mod credentials;
pub mod duties;
mod errors;
mod format;
mod grant_tokens;
pub mod guide;
mod health;
mod health_check;
mod keys;
mod provider;
mod refusals;
mod sdk;
mod stores;
mod transport;
mod xks;

pub use builder::AwsKmsKekBuilder;
pub use config::Config;
pub use health_check::HealthCheck;
pub use provider::{AwsKmsKek, KeyInfo};
pub use xks::ExternalKeyStore;
