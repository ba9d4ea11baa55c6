//! Vault failing in every way that is known, on a real server: class, tries, what is cached, the
//! grace, the breaker, the recovery. The page for operators shows the same table.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};
use waxseal::ErrorKind;
use waxseal::kek::KekProvider;
use waxseal_testing::fault_proxy::{self, FaultProxy};
use waxseal_testing::faults::{Fault, Stage, assert_shown, met};
use waxseal_testing::openbao::OpenBao;
use waxseal_vault_transit::{VaultAuth, VaultTransitKek};

use ErrorKind::{Denied, Misconfigured, Throttled, Unavailable};

struct Ground {
    bao: OpenBao,
    proxy: FaultProxy,
    token_file: PathBuf,
}

impl Ground {
    async fn new() -> Self {
        let bao = OpenBao::start().await;
        bao.create_key("orders", true).await;
        bao.policy("orders", "orders").await;
        let proxy = FaultProxy::start(bao.port());
        let token_file = bao.file("token", bao.token(json!({ "policies": ["orders"] })).await);
        Self { bao, proxy, token_file }
    }

    /// A login that is written where the provider looks for it.
    async fn log_in(&self) {
        self.bao.file("token", self.bao.token(json!({ "policies": ["orders"] })).await);
    }

    async fn log_out(&self) {
        self.bao.revoke(&std::fs::read_to_string(&self.token_file).unwrap()).await;
    }
}

impl Stage for Ground {
    async fn kek(&self) -> Arc<dyn KekProvider> {
        let kek = VaultTransitKek::builder("test", "orders")
            .address(format!("http://127.0.0.1:{}", self.proxy.port()))
            .auth(VaultAuth::token_file(&self.token_file))
            .build()
            .unwrap();
        // The login, the description of the key and the first connection take a while on a busy
        // machine.
        kek.read_key().await.unwrap();
        Arc::new(kek)
    }

    fn recovers_at_once(&self) -> bool {
        false
    }
}

fn on_the_line(name: &'static str, begin: fn(&Ground)) -> Fault<Ground> {
    Fault::new(name, Unavailable, begin, |ground| {
        ground.proxy.set(fault_proxy::Fault::None);
        ground.proxy.cut();
    })
}

/// An answer that is not Vault's.
fn instead(name: &'static str, kind: ErrorKind, begin: fn(&Ground)) -> Fault<Ground> {
    Fault::new(name, kind, begin, |ground| {
        ground.proxy.set(fault_proxy::Fault::None);
        ground.proxy.cut();
    })
}

fn answer(ground: &Ground, status: &str, body: &str) {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n", body.len());
    // The proxy closes behind it, and a client that does not know would use the connection again.
    let answer = format!("{head}connection: close\r\ncontent-type: text/html\r\n\r\n{body}");
    ground.proxy.set(fault_proxy::Fault::Replace(answer.into_bytes()));
}

/// A closure whose body may wait.
macro_rules! hand {
    (|$ground:ident| $work:expr) => {
        |$ground: &Ground| {
            Box::pin(async move {
                $work;
            })
        }
    };
}

fn faults() -> Vec<Fault<Ground>> {
    use fault_proxy::Fault as Line;
    vec![
        // --- service ─► Vault
        on_the_line("connection reset", |g| g.proxy.set(Line::Reset)),
        on_the_line("connection cut off", |g| g.proxy.set(Line::Truncate(30))),
        on_the_line("half closed", |g| g.proxy.set(Line::HalfClose)),
        on_the_line("no answer", |g| g.proxy.set(Line::Silence)).slow(),
        on_the_line("not HTTP", |g| g.proxy.set(Line::Replace(b"SSH-2.0-OpenSSH\r\n".to_vec()))),
        on_the_line("a trickle", |g| g.proxy.set(Line::Trickle(Duration::from_millis(100)))).slow(),
        // --- answers that are not valid
        instead("garbage", Unavailable, |g| answer(g, "200 OK", "\u{fffd}[}")),
        instead("an answer without content", Unavailable, |g| answer(g, "200 OK", "{}")),
        instead("a gateway's page", Unavailable, |g| {
            answer(g, "502 Bad Gateway", "<html>Bad Gateway</html>");
        }),
        instead("a gateway's 403", Misconfigured, |g| {
            answer(g, "403 Forbidden", "<html>Forbidden</html>");
        })
        .leaves_breaker_closed(),
        // --- the server
        Fault::with(
            "the server stands still",
            Unavailable,
            hand!(|g| g.bao.stop()),
            hand!(|g| {
                g.bao.go_on();
                g.proxy.cut();
            }),
        )
        .slow(),
        Fault::with(
            "sealed",
            Unavailable,
            hand!(|g| g.bao.seal().await),
            hand!(|g| g.bao.unseal().await),
        ),
        Fault::with(
            "rate limit",
            Throttled,
            hand!(|g| {
                let quota = json!({ "path": "transit", "rate": 0.001, "interval": "1h" });
                g.bao.put("sys/quotas/rate-limit/none", quota).await;
                // The first request still fits.
                g.bao.ask("GET", "transit/keys/orders", Value::Null).await;
            }),
            hand!(|g| {
                g.bao.ask("DELETE", "sys/quotas/rate-limit/none", Value::Null).await;
            }),
        ),
        // --- the login
        Fault::with(
            "token revoked",
            Misconfigured,
            hand!(|g| g.log_out().await),
            hand!(|g| g.log_in().await),
        )
        .recovers("another token in the file"),
        // --- the key, and who may use it
        Fault::with(
            "policy taken away",
            Denied,
            hand!(|g| {
                let only_look = "path \"transit/keys/orders\" { capabilities = [\"read\"] }";
                g.bao.put("sys/policies/acl/orders", json!({ "policy": only_look })).await;
            }),
            hand!(|g| g.bao.policy("orders", "orders").await),
        ),
        Fault::with(
            "key soft-deleted",
            Denied,
            hand!(|g| {
                g.bao.ask("DELETE", "transit/keys/orders/soft-delete", Value::Null).await;
            }),
            hand!(|g| {
                g.bao.put("transit/keys/orders/soft-delete-restore", json!({})).await;
            }),
        ),
        Fault::with(
            "key missing",
            Denied,
            hand!(|g| {
                let config = json!({
                    "deletion_allowed": true, "exportable": true, "allow_plaintext_backup": true,
                });
                g.bao.put("transit/keys/orders/config", config).await;
                let backup = g.bao.get("transit/backup/orders").await;
                g.bao.file("backup", backup["data"].to_string());
                g.bao.ask("DELETE", "transit/keys/orders", Value::Null).await;
            }),
            hand!(|g| {
                let backup = std::fs::read(g.token_file.with_file_name("backup")).unwrap();
                let backup = serde_json::from_slice(&backup).unwrap();
                g.bao.put("transit/restore/orders", backup).await;
            }),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_has_its_class_its_tries_its_grace_and_its_recovery() {
    // Most of the time goes by waiting.
    let each = async |fault| met(&Ground::new().await, fault).await;
    stream::iter(faults()).for_each_concurrent(4, each).await;
}

#[test]
fn the_page_shows_these_faults() {
    assert_shown(include_str!("../../docs/vault.md"), "## What a fault looks like", &faults());
}
