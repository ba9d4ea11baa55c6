#![doc = guide::links!()]
#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod auth;
mod auth_config;
mod aws;
mod builder;
mod checks;
mod client;
mod config;
mod denials;
pub mod duties;
mod endpoints;
mod environment;
mod errors;
mod format;
pub mod guide;
mod inner;
mod key;
mod key_reading;
mod login;
mod provider;
mod requests;
mod session;
mod tls;
mod transport;

pub use auth_config::AuthConfig;
pub use aws::{AwsCredentials, AwsEnvironment, AwsKeys};
pub use builder::VaultTransitKekBuilder;
pub use config::Config;
pub use key::{ContextBinding, KeyInfo};
pub use login::VaultAuth;
pub use provider::VaultTransitKek;
