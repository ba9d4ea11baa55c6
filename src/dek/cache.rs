//! The DEKs at hand: bounded in number by moka, in age by the DEKs themselves.
#![forbid(unsafe_code)]

use std::sync::Arc;

use moka::sync::Cache;

use super::{LimitsInForce, ReadingDek, WritingDek};
use crate::context::EncryptionContext;
use crate::suite::{DekId, Suite};

/// Reading and writing DEKs apart.
pub(crate) struct DekCache {
    /// By the digest of the context.
    writing: Cache<[u8; 32], Arc<WritingDek>>,
    /// One entry per suite: a message that names another suite has another key.
    reading: Cache<(DekId, Suite), Arc<ReadingDek>>,
}

impl DekCache {
    pub(super) fn new(limits: &LimitsInForce) -> Self {
        Self {
            writing: Cache::builder().max_capacity(limits.max_entries).time_to_live(limits.max_age).build(),
            reading: Cache::builder().max_capacity(limits.max_entries).time_to_live(limits.max_age).build(),
        }
    }

    pub(super) fn writing(&self, context: &EncryptionContext) -> Option<Arc<WritingDek>> {
        self.writing.get(context.digest()).filter(|dek| dek.context == *context && dek.is_fresh())
    }

    /// Does the id of a hit belong to the caller's context? Nothing else would notice a wrong tenant as early.
    pub(super) fn reading(&self, context: &EncryptionContext, id: &DekId, suite: Suite) -> Hit {
        match self.reading.get(&(*id, suite)).filter(|dek| dek.is_fresh()) {
            Some(dek) if dek.context == *context => Hit::Dek(dek),
            Some(_) => Hit::OtherContext,
            None => Hit::None,
        }
    }

    pub(super) fn put_writing(&self, dek: Arc<WritingDek>) {
        self.writing.insert(*dek.context.digest(), dek);
    }

    pub(super) fn put_reading(&self, dek: Arc<ReadingDek>) {
        self.reading.insert((dek.id, dek.suite), dek);
    }
}

/// What a look-up found.
pub(super) enum Hit {
    Dek(Arc<ReadingDek>),
    /// The id commits to another context than the caller's, so no key service has to be asked.
    OtherContext,
    None,
}
