//! A KEK in AWS KMS.
//!
//! ```no_run
//! use waxseal::Envelope;
//! use waxseal_aws_kms::AwsKmsKek;
//!
//! # async fn start() -> Result<(), waxseal::Error> {
//! let kek = AwsKmsKek::builder("arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab").build().await?;
//! let envelope = Envelope::builder().wrap_with(kek).build()?;
//! # Ok(()) }
//! ```
//!
//! Policies, rotation, several Regions, quotas and what CloudTrail shows are in `docs/aws-kms.md`.
//! A key in an external key store is used in the same way; what differs is in `docs/xks.md`.
//!
//! # What KMS gets
//!
//! The encryption context, pair by pair, with every call, so key policies and grants can require
//! it, and CloudTrail shows it **in the clear**. `Decrypt` and `ReEncrypt` always name the key: a
//! ciphertext alone would have KMS use any key that the caller may use.
//!
//! | of the provider | call |
//! |---|---|
//! | `wrap`: a DEK made here ([`DekOrigin::Local`](waxseal::DekOrigin), the default) | `Encrypt` |
//! | `generate`: a DEK made by KMS ([`DekOrigin::KeyService`](waxseal::DekOrigin)) | `GenerateDataKey` |
//! | `unwrap` | `Decrypt` |
//! | `rewrap` | `ReEncrypt`; no DEK comes into the process |
//! | `health`, [`AwsKmsKek::read_key`], and now and then with `wrap` | `DescribeKey`; `health` uses the key too, where [`HealthCheck`] says so |
//!
//! # Which key material wrapped a DEK
//!
//! KMS keeps the earlier material of a rotated key and unwraps by it without a word. The metadata
//! of a wrapped key holds the `KeyMaterialId` (32 bytes), so
//! [`is_current`](waxseal::kek::KekProvider::is_current) tells without a call what an earlier material wrapped.
//! `GenerateDataKey` and `ReEncrypt` say which one they used; `Encrypt` does not, so there it is
//! the one that `DescribeKey` named **before**: a DEK wrapped during a rotation may look old, and
//! is then rewrapped once for nothing, but never looks new while it is old. Without permission for
//! `DescribeKey` such wrapped keys carry no metadata: `needs_rewrap` sees no need for them, and
//! `rewrap` wraps them anew. `Decrypt` says which material it used, so an entry that this process
//! unwrapped is settled by that.
#![forbid(unsafe_code)]

mod builder;
mod client;
mod config;
mod credentials;
mod errors;
mod format;
mod health;
mod keys;
mod provider;
mod refusals;
mod transport;
mod xks;

pub use builder::AwsKmsKekBuilder;
pub use config::Config;
pub use health::HealthCheck;
pub use provider::{AwsKmsKek, KeyInfo};
pub use xks::ExternalKeyStore;
