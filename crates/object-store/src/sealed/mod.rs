//! Encrypted objects. These files are compiled once for each enabled version of `object_store`:
//! `api` is the crate of that version, and `extras` covers what only its results have.
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
