//! What distinguishes one request to the key services from another.
#![forbid(unsafe_code)]

use sha2::{Digest, Sha256};

use crate::context::EncryptionContext;
use crate::suite::{DekId, Suite};

/// Identifies one exact request to the key services. A remembered outcome affects no other request.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct RequestKey([u8; 32]);

impl RequestKey {
    /// The key of a request to unwrap these wrapped keys to this DEK, in this context and suite.
    pub(in crate::dek) fn unwrap(
        context: &EncryptionContext,
        id: &DekId,
        suite: Suite,
        wrapped_keys: &[u8],
    ) -> Self {
        let digest = Sha256::new_with_prefix(b"unwrap")
            .chain_update([suite.id()])
            .chain_update(context.digest())
            .chain_update(id.as_bytes())
            .chain_update(wrapped_keys);
        Self(digest.finalize().into())
    }

    /// The key of a request to make and wrap a new DEK for this context.
    pub(in crate::dek) fn wrap(context: &EncryptionContext) -> Self {
        Self(Sha256::new_with_prefix(b"wrap").chain_update(context.digest()).finalize().into())
    }
}
