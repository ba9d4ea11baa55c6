#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![forbid(unsafe_code)]

mod builder;
mod errors;
mod format;
mod store;
mod table;

pub use builder::DynamoDbKeyStoreBuilder;
pub use store::DynamoDbKeyStore;
