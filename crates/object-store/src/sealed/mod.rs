//! Encrypted objects. The files here are compiled once for each version of `object_store` that has
//! a feature: `api` is the crate of that version, and `extras` what its results have and those of
//! others have not.
#![forbid(unsafe_code)]

use super::{api, extras};

mod body;
mod builder;
mod by_store;
mod errors;
mod heads;
mod keys;
mod layout;
mod moving;
mod portions;
mod reading;
mod rewrap;
mod starts;
mod store;
mod upload;
mod writing;

pub use builder::SealedStoreBuilder;
pub use errors::sealing_error;
pub use keys::{Binding, ObjectKeys};
pub use rewrap::{RewrapOptions, RewrapProgress, Rewrapped};
pub use starts::{ReplaceStart, StartChange};
pub use store::{ContentId, SealedStore};
