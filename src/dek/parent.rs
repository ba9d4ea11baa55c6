//! A cached key as the parent of keys that are derived from it: a branch key of DEKs, a DEK of
//! streams.
#![forbid(unsafe_code)]

use super::registry::Leased;
use crate::clock::Moment;
use crate::format::KekId;
use crate::kek::{Dependants, ParentKey};
use crate::suite::DekId;
use crate::sync::{Arc, Weak};

/// Keeps the lease of a key as long as anything derived from it. It does not extend the lease.
pub(crate) struct LeaseParent<D: Leased> {
    dek: Arc<D>,
    kek_ids: Box<[KekId]>,
}

impl<D: Leased> LeaseParent<D> {
    /// Returns the parent of a DEK's streams.
    pub(super) fn of_streams(dek: Arc<D>) -> Self {
        Self { kek_ids: dek.lease().all_kek_ids().cloned().collect(), dek }
    }

    /// Returns the parent of a branch's DEKs. `branch` is the KEK id by which they name the branch.
    pub(crate) fn of_branch(dek: Arc<D>, branch: &KekId) -> Self {
        let mut kek_ids = vec![branch.clone()];
        for kek_id in dek.lease().all_kek_ids() {
            if !kek_ids.contains(kek_id) {
                kek_ids.push(kek_id.clone());
            }
        }
        Self { dek, kek_ids: kek_ids.into() }
    }
}

impl<D: Leased> ParentKey for LeaseParent<D> {
    fn bounds(&self, now: Moment) -> (Moment, Moment) {
        self.dek.lease().bounds_of_dependants(now)
    }

    fn kek_ids(&self) -> &[KekId] {
        &self.kek_ids
    }

    fn key_id(&self) -> DekId {
        self.dek.lease().id
    }

    fn is_revoked(&self) -> bool {
        self.dek.lease().is_revoked()
    }

    fn is_gone(&self) -> bool {
        self.dek.lease().is_gone()
    }

    fn identity(&self) -> usize {
        self.dek.lease().identity()
    }

    fn add_dependants(&self, dependants: Weak<dyn Dependants>) {
        self.dek.lease().add_dependants(dependants);
    }
}
