#![doc = include_str!("../../docs/objects.md")]
#![forbid(unsafe_code)]

mod body;
mod builder;
mod errors;
mod heads;
mod layout;
mod moving;
mod reading;
mod rewrap;
mod store;
mod upload;
mod writing;

pub use builder::{Binding, ObjectKeys, SealedStoreBuilder};
pub use errors::sealing_error;
pub use rewrap::{RewrapOptions, RewrapProgress, Rewrapped};
pub use store::{ContentId, SealedStore};
