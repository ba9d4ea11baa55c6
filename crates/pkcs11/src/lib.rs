#![doc = guide::links!()]
#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod builder;
mod config;
pub mod duties;
mod errors;
mod format;
pub mod guide;
#[cfg(unix)]
pub mod helper;
#[cfg(unix)]
mod helper_program;
mod key;
mod ledger;
mod link;
mod oneshot;
mod pin;
mod pool;
mod provider;
mod token;

pub use builder::Pkcs11KekBuilder;
pub use config::Config;
pub use key::{IvSource, KeyInfo, Versions};
pub use pin::PinSource;
pub use provider::{Pkcs11Kek, Statistics};
