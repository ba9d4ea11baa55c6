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
mod ekm;
mod errors;
mod format;
pub mod guide;
mod health;
mod health_check;
mod keys;
mod provider;
mod refusals;
mod table;
mod transport;

pub use builder::GoogleKmsKekBuilder;
pub use config::Config;
pub use health_check::HealthCheck;
pub use provider::{GoogleKmsKek, KeyInfo};
