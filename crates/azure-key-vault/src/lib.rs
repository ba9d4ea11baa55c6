#![doc = guide::links!()]
#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod algorithm;
mod assertion;
mod budgets;
mod builder;
mod client;
mod config;
mod credentials;
pub mod duties;
mod errors;
mod format;
pub mod guide;
mod health;
mod keeper;
mod place;
mod provider;
mod transport;

pub use algorithm::Algorithm;
pub use builder::AzureKeyVaultKekBuilder;
pub use config::Config;
pub use credentials::Credential;
pub use health::HealthCheck;
pub use provider::{AzureKeyVaultKek, KeyInfo};
