//! The stand-ins themselves: the KMS front, its key stores, the XKS proxy, Google Cloud KMS, Azure.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod azure;
mod google;
mod kms_front_path;
mod kms_front_stores;
mod outputs;
mod xks_proxy;
