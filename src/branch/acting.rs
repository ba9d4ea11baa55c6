//! Branch keys on behalf of a caller.
#![forbid(unsafe_code)]

use super::BranchKek;
use crate::caller::{Action, Caller};
use crate::context::EncryptionContext;
use crate::error::Error;
use crate::store::{Erasure, RewrapOptions, RewrapProgress};

impl BranchKek {
    /// Returns a view that acts on behalf of `caller`, which the
    /// [policy](super::BranchKekBuilder::policy) and the observers see. It works like
    /// [`Envelope::acting_for`](crate::Envelope::acting_for).
    #[must_use]
    pub fn acting_for<'k>(&'k self, caller: &'k Caller) -> ActingFor<'k> {
        ActingFor { kek: self, caller }
    }

    /// Checks whether the policy allows an operation.
    pub(super) async fn permit(
        &self,
        operation: Action,
        context: &EncryptionContext,
        caller: Option<&Caller>,
    ) -> Result<(), Error> {
        match &self.0.guard {
            Some(guard) => guard.permit(operation, context, caller).await.map(|_| ()),
            None => Ok(()),
        }
    }
}

/// A [`BranchKek`] on behalf of a [`Caller`]: see [`BranchKek::acting_for`].
#[derive(Clone, Copy, Debug)]
pub struct ActingFor<'k> {
    kek: &'k BranchKek,
    caller: &'k Caller,
}

impl ActingFor<'_> {
    /// Does the same as [`BranchKek::erase`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`BranchKek::erase`].
    pub async fn erase<N, V>(
        self,
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Erasure, Error>
    where
        N: AsRef<str>,
        V: AsRef<str>,
    {
        self.kek.erase_for(Some(self.caller), EncryptionContext::new(pairs)?).await
    }

    /// Does the same as [`BranchKek::rewrap_branch_keys`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`BranchKek::rewrap_branch_keys`].
    pub async fn rewrap_branch_keys(
        self,
        options: RewrapOptions,
        progress: impl FnMut(&RewrapProgress),
    ) -> Result<RewrapProgress, Error> {
        self.kek.rewrap_branch_keys_for(Some(self.caller), options, progress).await
    }
}
