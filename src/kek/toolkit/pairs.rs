//! An encryption context as a table in configuration, for `#[serde(with = "…")]`.
//!
//! ```
//! use waxseal::EncryptionContext;
//!
//! #[derive(serde::Serialize, serde::Deserialize)]
//! struct Config {
//!     #[serde(with = "waxseal::kek::toolkit::pairs")]
//!     health_context: EncryptionContext,
//! }
//!
//! let config: Config = toml::from_str("health_context = { purpose = \"health\" }")?;
//! assert_eq!(config.health_context.get("purpose"), Some("health"));
//! # Ok::<(), toml::de::Error>(())
//! ```
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::de::{Deserialize, Deserializer, Error};
use serde::ser::Serializer;

use crate::context::EncryptionContext;

/// Writes the pairs.
///
/// # Errors
/// Those of the serializer.
pub fn serialize<S: Serializer>(
    context: &EncryptionContext,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(context.iter())
}

/// Reads the pairs.
///
/// # Errors
/// Those of the deserializer, and an error for pairs that are not a valid encryption context.
pub fn deserialize<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<EncryptionContext, D::Error> {
    EncryptionContext::new(BTreeMap::<String, String>::deserialize(deserializer)?)
        .map_err(D::Error::custom)
}
