//! Branch keys: what a cold read costs, what ends with a branch key, who makes one, erasure, stores
//! that lie, races, rewrapping, and the key store of an envelope.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod at_once;
mod bounds;
mod conforms;
mod erasure;
mod ground;
mod lies;
mod one_row;
mod races;
mod reading;
mod rewrap;
mod store_calls;
mod stored;
mod streams;
mod told;
mod walk;
mod writing;
