#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod builder;
#[cfg(test)]
mod crashes;
mod errors;
mod format;
mod local;
mod objects;
mod store;

pub use builder::ObjectKeyStoreBuilder;
pub use store::ObjectKeyStore;
