//! KMS's answers, in types that are not the SDK's.
#![forbid(unsafe_code)]

use std::time::SystemTime;

use waxseal::kek::{KekErrorClass, UnwrappedDek};

use crate::errors::Failure;
use crate::format::KeyMaterialId;

/// A wrapped DEK as KMS returned it.
pub(crate) struct Wrapped {
    pub(crate) key_arn: String,
    pub(crate) blob: Vec<u8>,
    pub(crate) material: Option<KeyMaterialId>,
}

/// A DEK, and the key material that wrapped it, if KMS names it.
pub(crate) struct Unwrapped {
    pub(crate) dek: UnwrappedDek,
    pub(crate) material: Option<KeyMaterialId>,
}

/// The answer of `DescribeKey`.
pub(crate) struct Description {
    pub(crate) arn: String,
    pub(crate) state: State,
    pub(crate) is_for_encryption: bool,
    pub(crate) material: Option<KeyMaterialId>,
    /// When KMS deletes the imported key material.
    pub(crate) expires: Option<SystemTime>,
    /// Set for a key whose origin is `EXTERNAL_KEY_STORE`.
    pub(crate) external_key_store: Option<String>,
    pub(crate) external_key: Option<String>,
}

impl Description {
    pub(crate) fn check_usable(&self) -> Result<(), Failure> {
        let text =
            |class| Failure::new(class, format!("{} is in state {}", self.arn, self.state.name));
        self.state.usable.map_err(text)
    }
}

/// A key's state, in KMS's words, and whether it can be used.
pub(crate) struct State {
    pub(crate) name: String,
    /// `Ok` if it can be used, and otherwise the class of the failure of a use.
    pub(crate) usable: Result<(), KekErrorClass>,
}
