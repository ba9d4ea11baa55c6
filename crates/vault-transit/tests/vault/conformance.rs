//! The Vault Transit provider passes the conformance suite against a real server.

use std::sync::Arc;

use serde_json::json;
use waxseal::kek::conformance::{self, Outcome, Step, Subject};
use waxseal::kek::{BoxFuture, KekErrorClass, KekProvider};
use waxseal_testing::openbao::{OpenBao, Options};
use waxseal_vault_transit::{ContextBinding, VaultAuth, VaultTransitKek};

struct Stage {
    server: OpenBao,
    kek: VaultTransitKek,
    other: VaultTransitKek,
}

impl Subject for Stage {
    fn provider(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.kek.clone())
    }

    fn other(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.other.clone())
    }

    fn rotate(&self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            self.server.rotate("orders").await;
            Step::Done
        })
    }

    fn fail_with(&self, class: KekErrorClass) -> BoxFuture<'_, Step> {
        Box::pin(async move {
            match class {
                KekErrorClass::Throttled => {
                    self.server
                        .put(
                            "sys/quotas/rate-limit/all",
                            json!({ "rate": 0.001, "path": "transit/" }),
                        )
                        .await;
                    // What the quota allows at first is used up.
                    while self.server.ask("GET", "transit/keys/orders", json!(null)).await.0 != 429
                    {
                    }
                    Step::Done
                }
                KekErrorClass::Denied => {
                    self.server.ask("DELETE", "sys/policies/acl/orders", json!(null)).await;
                    Step::Done
                }
                _ => Step::NotApplicable,
            }
        })
    }

    fn forbid_unwrapping(&self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            let may = |verb: &str| {
                format!(
                    "path \"transit/{verb}/orders\" {{ capabilities = [\"read\", \"update\"] }}\n"
                )
            };
            let policy: String = ["keys", "encrypt", "rewrap"].into_iter().map(may).collect();
            self.server.put("sys/policies/acl/orders", json!({ "policy": policy })).await;
            Step::Done
        })
    }

    fn restore(&self) -> BoxFuture<'_, Step> {
        Box::pin(async {
            self.server.ask("DELETE", "sys/quotas/rate-limit/all", json!(null)).await;
            self.server.policy("orders", "orders").await;
            Step::Done
        })
    }
}

async fn stage(options: Options, derived: bool, binding: Option<ContextBinding>) -> Stage {
    let server = OpenBao::with(options.clone()).await;
    server.policy("orders", "orders").await;
    server.policy("others", "others").await;
    for key in ["orders", "others"] {
        server.create_key(key, derived).await;
    }
    let (role_id, secret_id) = server.app_role("1h", "1h").await;
    let kek = |key: &str, auth| {
        let builder = VaultTransitKek::builder("test", key).address(server.address()).auth(auth);
        let builder = if options.tls { builder.ca_file(server.ca_file()) } else { builder };
        match binding {
            Some(binding) => builder.binding(binding),
            None => builder,
        }
        .build()
        .unwrap()
    };
    let others = server.token(json!({ "policies": ["others"], "ttl": "1h" })).await;
    let other = kek("others", VaultAuth::token(others));
    let kek = kek("orders", VaultAuth::app_role(role_id).secret_id(secret_id));
    Stage { server, kek, other }
}

async fn conforms(stage: Stage) {
    let report = conformance::run(&stage).await;
    println!("{report}");
    assert!(report.is_conformant(), "{report}");
    let unseen: Vec<_> = report
        .checks()
        .filter(|(_, outcome)| **outcome != Outcome::Passed)
        .map(|(name, _)| name)
        .collect();
    assert_eq!(unseen, ["takes_a_source_of_credentials_that_is_down_for_an_outage"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn it_conforms_over_tls_with_a_derived_key() {
    conforms(stage(Options { tls: true, ..Options::default() }, true, None).await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_conforms_over_tls_with_a_plain_key_that_binds_by_associated_data() {
    conforms(
        stage(
            Options { tls: true, ..Options::default() },
            false,
            Some(ContextBinding::AssociatedData),
        )
        .await,
    )
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_conforms_over_tls_with_a_plain_key_that_binds_nothing() {
    conforms(
        stage(Options { tls: true, ..Options::default() }, false, Some(ContextBinding::Unbound))
            .await,
    )
    .await;
}
