//! The conformance suite, over both forms of wrapping.

use std::sync::Arc;

use waxseal::kek::conformance::{self, Outcome, Step, Subject};
use waxseal::kek::{BoxFuture, KekErrorClass, KekProvider};
use waxseal_azure_key_vault::AzureKeyVaultKek;
use waxseal_testing::azure::{Effect, Fault, Refused};

use crate::ground::{CLIENT, Ground, HSM, VAULT};

struct OnTheStandIn {
    ground: Ground,
    host: &'static str,
    kek: AzureKeyVaultKek,
    other: AzureKeyVaultKek,
}

impl OnTheStandIn {
    fn hsm() -> Self {
        let ground = Ground::new();
        let (kek, other) = (ground.hsm("cards"), ground.hsm("other"));
        Self { ground, host: HSM, kek, other }
    }

    fn rsa() -> Self {
        let ground = Ground::with_rsa();
        let (kek, other) = (ground.rsa("cards"), ground.rsa("other"));
        Self { ground, host: VAULT, kek, other }
    }

    fn unwraps_by(&self) -> (&'static str, &'static str) {
        if self.host == HSM { ("decrypt", "decrypt") } else { ("unwrapKey", "unwrapkey") }
    }
}

impl Subject for OnTheStandIn {
    fn provider(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.kek.clone())
    }

    fn other(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.other.clone())
    }

    fn rotate(&self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            self.ground.azure.world().rotate(self.host, "cards");
            match self.kek.read_key().await {
                Ok(_) => Step::Done,
                Err(error) => Step::Failed(error.to_string()),
            }
        })
    }

    fn fail_with(&self, class: KekErrorClass) -> BoxFuture<'_, Step> {
        let refused = match class {
            KekErrorClass::Unavailable => Refused::new(500, "InternalServerError", "", "sorry"),
            KekErrorClass::Throttled => Refused::new(429, "Throttled", "", "too many"),
            KekErrorClass::Denied => Refused::new(403, "Forbidden", "ForbiddenByRbac", "no"),
            KekErrorClass::Invalid => Refused::new(400, "BadParameter", "", "incorrect"),
            KekErrorClass::Misconfigured => {
                Refused::new(403, "Forbidden", "ForbiddenByFirewall", "address")
            }
            _ => return Box::pin(async { Step::NotApplicable }),
        };
        // Only what takes a wrapped key can say *invalid*.
        let fault = Fault::new(Effect::Error(refused, None));
        let fault = match class {
            KekErrorClass::Invalid => fault.on(self.unwraps_by().1),
            _ => fault,
        };
        self.ground.azure.fail(fault);
        Box::pin(async { Step::Done })
    }

    fn fail_credentials(&self) -> BoxFuture<'_, Step> {
        for token in self.ground.azure.world().tokens.values_mut() {
            token.revoked = true;
        }
        self.ground.azure.fail(Fault::new(Effect::Raw(503, "<html>sorry</html>")).on("login"));
        Box::pin(async { Step::Done })
    }

    fn forbid_unwrapping(&self) -> BoxFuture<'_, Step> {
        self.ground.azure.world().forbid(self.host, CLIENT, self.unwraps_by().0);
        Box::pin(async { Step::Done })
    }

    fn restore(&self) -> BoxFuture<'_, Step> {
        self.ground.azure.recover();
        let permission = self.unwraps_by().0;
        self.ground.azure.world().permit(self.host, CLIENT, &[permission]);
        Box::pin(async { Step::Done })
    }
}

fn unseen(report: &conformance::Report) -> Vec<&str> {
    report
        .checks()
        .filter(|(_, outcome)| **outcome != Outcome::Passed)
        .map(|(name, _)| name)
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_provider_conforms_with_a_key_of_a_managed_hsm() {
    let report = conformance::run(&OnTheStandIn::hsm()).await;
    assert!(report.is_conformant(), "{report}");
    assert_eq!(unseen(&report), Vec::<&str>::new(), "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_provider_conforms_with_an_rsa_key_of_a_vault() {
    let report = conformance::run(&OnTheStandIn::rsa()).await;
    assert!(report.is_conformant(), "{report}");
    assert_eq!(unseen(&report), Vec::<&str>::new(), "{report}");
}
