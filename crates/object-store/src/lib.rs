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
#[cfg(feature = "object_store_0_13")]
pub mod v0_13;
#[cfg(feature = "object_store_0_14")]
pub mod v0_14;

pub use builder::ObjectKeyStoreBuilder;
pub use store::ObjectKeyStore;
