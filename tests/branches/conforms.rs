//! The branch KEK against the conformance suite of providers.

use std::sync::Arc;

use waxseal::branch::BranchKek;
use waxseal::kek::KekErrorClass;
use waxseal::kek::conformance::{self, Outcome, Step, Subject};
use waxseal::kek::scripted::ScriptedKek;
use waxseal::kek::{BoxFuture, KekProvider};
use waxseal::store::MemoryStore;
use waxseal::{Envelope, ErrorKind};
use waxseal_testing::support::{HookedKek, block_on};

struct Branch {
    root: ScriptedKek,
    kek: BranchKek,
    other: BranchKek,
}

impl Branch {
    fn new(has_store: bool) -> Self {
        let (root, store) = (ScriptedKek::new("root").unwrap(), MemoryStore::new());
        let kek = |name: &str| {
            let builder = BranchKek::builder(root.clone()).name(name);
            match has_store {
                true => builder.store(store.clone()),
                false => builder.self_contained(),
            }
            .build()
            .unwrap()
        };
        let (kek, other) = (kek("a"), kek("b"));
        Self { root, kek, other }
    }
}

impl Subject for Branch {
    fn provider(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.kek.clone())
    }

    fn other(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.other.clone())
    }

    /// The roots fail, and no branch key is cached.
    fn fail_with(&self, class: KekErrorClass) -> BoxFuture<'_, Step> {
        self.root.fail_with(class);
        self.kek.evict_all();
        Box::pin(async { Step::Done })
    }

    fn restore(&self) -> BoxFuture<'_, Step> {
        self.root.fail_with(None);
        self.kek.evict_all();
        Box::pin(async { Step::Done })
    }
}

#[test]
fn branch_keks_conform_with_a_store_and_without() {
    for has_store in [true, false] {
        let report = block_on(conformance::run(&Branch::new(has_store)));
        assert!(report.is_conformant(), "store {has_store}: {report}");
        let not_applicable: Vec<_> = report
            .checks()
            .filter(|(_, outcome)| **outcome == Outcome::NotApplicable)
            .map(|(name, _)| name)
            .collect();
        // A root rotates, and no entry of a message is ever known to be current by its bytes:
        // rewrap.rs has the tests.
        let expected = [
            "rewraps_where_it_says",
            "follows_a_rotation",
            "believes_no_version_that_anybody_could_write",
            "takes_a_source_of_credentials_that_is_down_for_an_outage",
        ];
        assert_eq!(not_applicable, expected);
    }
}

/// Its new DEKs would be random ones that the branch key wraps, and would not end with it.
#[test]
fn a_provider_around_a_branch_kek_that_does_not_derive_is_refused() {
    // One that does not forward `derives_deks` has its default.
    let forgetful = |kek: &BranchKek| HookedKek::around(kek.clone()).deriving_deks(false);
    let branch = Branch::new(true);
    for builder in [
        Envelope::builder().wrap_with(forgetful(&branch.kek)),
        Envelope::builder().wrap_with(branch.root.clone()).unwrap_with(forgetful(&branch.kek)),
    ] {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        let text = error.to_string();
        assert!(text.contains("branch:a") && text.contains("derives_deks"), "{text}");
    }
}
