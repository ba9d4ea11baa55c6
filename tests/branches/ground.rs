//! A fleet: processes with their own branch KEKs and envelopes over one root, one store and one
//! clock.

use std::time::Duration;

use waxseal::branch::{BranchKek, BranchKekBuilder};
use waxseal::kek::scripted::ScriptedKek;
use waxseal::store::scripted::ScriptedStore;
use waxseal::store::{KeyStore, StoredRow};
use waxseal::{
    Aad, EncryptionContext, Envelope, EnvelopeBuilder, Error, KekId, Limits, ManualClock,
};
use waxseal_testing::support::stage::Log;
use waxseal_testing::support::{block_on, context};

pub(crate) use waxseal_testing::support::stage::{kind, ms, secs};

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(86_400);
/// Longer than any DEK of a test lives.
pub(crate) const LONG: Duration = Duration::from_secs(80_000);

pub(crate) fn kek_id(id: &str) -> KekId {
    KekId::new(id).unwrap()
}

/// What all processes share.
pub(crate) struct Fleet {
    pub(crate) root: ScriptedKek,
    pub(crate) store: ScriptedStore,
    pub(crate) clock: ManualClock,
}

/// One process: its branch KEK, an envelope over it, and what the branch KEK's observer heard.
pub(crate) struct Process {
    pub(crate) kek: BranchKek,
    pub(crate) envelope: Envelope,
    pub(crate) branch_log: Log,
}

impl Fleet {
    pub(crate) fn new() -> Self {
        Self {
            root: ScriptedKek::new("root").unwrap(),
            store: ScriptedStore::in_memory(),
            clock: ManualClock::new(),
        }
    }

    /// The branch KEK of the name `orders`, one branch for each tenant.
    pub(crate) fn branch(&self) -> BranchKekBuilder {
        BranchKek::builder(self.root.clone())
            .name("orders")
            .per(["tenant"])
            .clock(self.clock.clone())
    }

    pub(crate) fn process(&self) -> Process {
        self.process_with(|branch| branch, |envelope| envelope)
    }

    pub(crate) fn process_with(
        &self,
        branch: impl FnOnce(BranchKekBuilder) -> BranchKekBuilder,
        envelope: impl FnOnce(EnvelopeBuilder) -> EnvelopeBuilder,
    ) -> Process {
        let branch_log = Log::default();
        let kek = branch(self.branch().store(self.store.clone()))
            .observer(branch_log.clone())
            .build()
            .unwrap();
        let envelope = envelope(self.envelope(&kek)).build().unwrap();
        Process { kek, envelope, branch_log }
    }

    pub(crate) fn envelope(&self, kek: &BranchKek) -> EnvelopeBuilder {
        Envelope::builder().wrap_with(kek.clone()).clock(self.clock.clone())
    }

    /// A process without a store.
    pub(crate) fn self_contained(&self) -> Process {
        let branch_log = Log::default();
        let kek = self.branch().self_contained().observer(branch_log.clone()).build().unwrap();
        let envelope = self.envelope(&kek).build().unwrap();
        Process { kek, envelope, branch_log }
    }

    /// Wraps and unwraps by the root.
    pub(crate) fn calls(&self) -> (u64, u64) {
        (self.root.calls().wraps, self.root.calls().unwraps)
    }

    pub(crate) fn rows(&self) -> Vec<StoredRow> {
        rows_of(&**self.store.store())
    }
}

pub(crate) fn rows_of(store: &dyn KeyStore) -> Vec<StoredRow> {
    let (mut rows, mut next) = (Vec::new(), None);
    loop {
        let page = block_on(store.scan(next.as_ref(), 1000)).unwrap();
        rows.extend(page.rows);
        next = page.next;
        if next.is_none() {
            return rows;
        }
    }
}

/// A context of the tenant's branch, with its own DEK.
pub(crate) fn table(tenant: &str, table: impl std::fmt::Display) -> EncryptionContext {
    EncryptionContext::new([("tenant", tenant), ("table", &table.to_string())]).unwrap()
}

impl Process {
    pub(crate) fn seal_for(&self, context: &EncryptionContext) -> Result<Vec<u8>, Error> {
        block_on(self.envelope.encrypt(context, Aad::empty(), b"payload"))
    }

    pub(crate) fn open_for(&self, context: &EncryptionContext, sealed: &[u8]) -> Result<(), Error> {
        block_on(self.envelope.decrypt(context, Aad::empty(), sealed))
            .map(|plaintext| assert_eq!(&*plaintext, b"payload"))
    }

    pub(crate) fn seal(&self, tenant: &str) -> Vec<u8> {
        self.seal_for(&context(tenant)).unwrap()
    }

    pub(crate) fn open(&self, tenant: &str, sealed: &[u8]) -> Result<(), Error> {
        self.open_for(&context(tenant), sealed)
    }

    pub(crate) fn is_cached(&self, tenant: &str, sealed: &[u8]) -> bool {
        self.envelope
            .decrypt_cached(&context(tenant), Aad::empty(), sealed)
            .is_ok_and(|plaintext| plaintext.is_some())
    }
}

/// A grace of nearly a day, for reading and writing.
pub(crate) fn with_grace() -> Limits {
    Limits::default().stale_if_error_reading(LONG).stale_if_error_writing(LONG)
}
