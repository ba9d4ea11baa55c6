//! Keys in external key stores: the XKS protocol, end to end.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod faults;
mod keks;
mod stores;
