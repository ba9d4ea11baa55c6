//! A fault on every hop between a service and its external key: the class, the tries, what is
//! served from the cache and within `stale_if_error`, the breaker, the recovery.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use crate::keks::XksKeks;
use std::sync::Arc;
use std::time::Duration;
use waxseal_testing::faults::{Doing, Fault as ShownFault, Stage, assert_shown, met};
use waxseal_testing::{fault_proxy, kms_front, xks_path, xks_proxy};

use futures_util::stream::{self, StreamExt};
use serde_json::{Value, json};
use waxseal::kek::KekProvider;
use waxseal::{CallPolicy, ErrorKind};
use xks_path::{AMPLE, KEY, KMS_PATIENCE, XksPath};
use xks_proxy::{Certificate, Effect, ErrorName, Fault, Quota};

use ErrorKind::{Denied, Invalid, Misconfigured, Throttled, Unavailable};

/// Asynchronous, since an operator's hand is: seal, disconnect, delete.
type Hand = for<'a> fn(&'a XksPath) -> Doing<'a>;

/// The path, as the shared checks see it.
struct OnThePath(XksPath);

impl Stage for OnThePath {
    async fn kek(&self) -> Arc<dyn KekProvider> {
        Arc::new(self.0.kek().await)
    }

    fn arrived(&self) -> Option<usize> {
        Some(self.0.front.arrived("Decrypt"))
    }

    /// The provider advises them.
    fn tries(&self) -> u32 {
        4
    }

    fn policy(&self, is_slow: bool) -> CallPolicy {
        policy(is_slow)
    }

    fn hurry(&self) {
        self.0.kms_waits(KMS_PATIENCE);
    }

    fn take_time(&self) {
        self.0.kms_waits(AMPLE);
    }
}

struct Case {
    /// As in the table of docs/xks.md.
    name: &'static str,
    kind: ErrorKind,
    /// KMS is given no more than its 250 ms meanwhile, and we are not patient.
    is_slow: bool,
    begin: Hand,
    end: Hand,
}

/// A closure whose body may wait, as a `Hand`.
macro_rules! hand {
    (|$path:ident| $work:expr) => {
        |$path| {
            Box::pin(async move {
                $work;
            })
        }
    };
}

fn by_the_proxy(name: &'static str, kind: ErrorKind, begin: Hand) -> Case {
    Case { name, kind, is_slow: false, begin, end: hand!(|path| path.proxy.recover()) }
}

fn slow(name: &'static str, begin: Hand) -> Case {
    Case { is_slow: true, ..by_the_proxy(name, Unavailable, begin) }
}

fn cases() -> Vec<Case> {
    vec![
        // --- service ─► KMS
        Case {
            name: "KMS: connection reset",
            kind: Unavailable,
            is_slow: false,
            begin: hand!(|path| path.to_kms.set(fault_proxy::Fault::Reset)),
            end: hand!(|path| path.to_kms.set(fault_proxy::Fault::None)),
        },
        Case {
            name: "KMS: garbage",
            kind: Unavailable,
            is_slow: false,
            begin: hand!(|path| path
                .to_kms
                .set(fault_proxy::Fault::Replace(b"SSH-2.0-OpenSSH\r\n".to_vec()))),
            end: hand!(|path| path.to_kms.set(fault_proxy::Fault::None)),
        },
        Case {
            name: "KMS: no answer",
            kind: Unavailable,
            is_slow: true,
            begin: hand!(|path| path.to_kms.set(fault_proxy::Fault::Silence)),
            end: hand!(|path| path.to_kms.set(fault_proxy::Fault::None)),
        },
        Case {
            name: "KMS: credentials expired",
            kind: Misconfigured,
            is_slow: false,
            begin: hand!(|path| expire(path, true)),
            end: hand!(|path| expire(path, false)),
        },
        Case {
            name: "KMS: key disabled",
            kind: Denied,
            is_slow: false,
            begin: hand!(
                |path| path.front.world().key(&path.arn).state = kms_front::State::Disabled
            ),
            end: hand!(|path| path.front.world().key(&path.arn).state = kms_front::State::Enabled),
        },
        Case {
            name: "KMS: quota of the store used up",
            kind: Throttled,
            is_slow: false,
            begin: hand!(|path| path.front.world().store(&path.store).quota = 0),
            end: hand!(|path| path.front.world().store(&path.store).quota = 1800),
        },
        Case {
            name: "KMS: store disconnected",
            kind: Denied,
            is_slow: false,
            begin: hand!(|path| path.disconnect().await),
            end: hand!(|path| path.connect().await),
        },
        Case {
            name: "KMS: store could not be connected again",
            kind: Misconfigured,
            is_slow: false,
            begin: hand!(|path| {
                path.disconnect().await;
                path.proxy.fail(Fault::error(ErrorName::AuthenticationFailed));
                path.try_to_connect().await;
            }),
            end: hand!(|path| {
                path.proxy.recover();
                path.disconnect().await;
                path.connect().await;
            }),
        },
        // --- KMS ─► XKS proxy
        Case {
            name: "proxy: connection refused",
            kind: Unavailable,
            is_slow: false,
            begin: hand!(|path| path.proxy.kill()),
            end: hand!(|path| path.proxy.restart()),
        },
        by_the_proxy(
            "proxy: connection ends without an answer",
            Unavailable,
            hand!(|path| {
                path.proxy.fail(Fault::new(Effect::Close));
            }),
        ),
        slow("proxy: stopped", hand!(|path| path.proxy.fail(Fault::new(Effect::Hang)))),
        slow(
            "proxy: slower than 250 ms",
            hand!(|path| {
                path.proxy.fail(Fault::new(Effect::Delay(Duration::from_millis(400))));
            }),
        ),
        by_the_proxy(
            "proxy: garbage",
            Unavailable,
            hand!(|path| path.proxy.fail(Fault::new(Effect::Raw(200, "\u{fffd}[}")))),
        ),
        by_the_proxy(
            "proxy: an error page",
            Unavailable,
            hand!(|path| {
                path.proxy.fail(Fault::new(Effect::Raw(502, "<html>Bad Gateway</html>")));
            }),
        ),
        Case {
            name: "proxy: connection reset in the TLS handshake",
            kind: Misconfigured,
            is_slow: false,
            begin: hand!(|path| {
                path.go_through_the_breaker().await;
                path.to_proxy.set(fault_proxy::Fault::Reset);
            }),
            end: hand!(|path| path.to_proxy.set(fault_proxy::Fault::None)),
        },
        Case {
            name: "proxy: certificate expired",
            kind: Misconfigured,
            is_slow: false,
            begin: hand!(|path| path.proxy.present(Certificate::Expired)),
            end: hand!(|path| path.proxy.present(Certificate::Right)),
        },
        Case {
            name: "proxy: certificate for another name",
            kind: Misconfigured,
            is_slow: false,
            begin: hand!(|path| path.proxy.present(Certificate::OtherName)),
            end: hand!(|path| path.proxy.present(Certificate::Right)),
        },
        Case {
            name: "proxy: certificate of another authority",
            kind: Misconfigured,
            is_slow: false,
            begin: hand!(|path| path.proxy.present(Certificate::OtherAuthority)),
            end: hand!(|path| path.proxy.present(Certificate::Right)),
        },
        Case {
            name: "proxy: credential changed without KMS",
            kind: Misconfigured,
            is_slow: false,
            begin: hand!(|path| {
                let old = path.proxy.credential();
                path.proxy.add_credential();
                path.proxy.remove_credential(&old.access_key_id);
            }),
            end: hand!(|path| {
                let new = XksPath::credential(&path.proxy.credential());
                let call =
                    path.operator().update_custom_key_store().custom_key_store_id(&path.store);
                call.xks_proxy_authentication_credential(new).send().await.unwrap();
            }),
        },
        by_the_proxy(
            "proxy: wrong path",
            Misconfigured,
            hand!(|path| path.proxy.fail(Fault::error(ErrorName::InvalidUriPath))),
        ),
        Case {
            name: "proxy: rate limit",
            kind: Throttled,
            is_slow: false,
            begin: hand!(|path| path
                .proxy
                .limit(Some(Quota { requests: 0, window: Duration::from_secs(3600) }))),
            end: hand!(|path| path.proxy.limit(None)),
        },
        by_the_proxy(
            "proxy: cannot do that",
            Misconfigured,
            hand!(|path| {
                path.proxy.fail(Fault::error(ErrorName::UnsupportedOperation));
            }),
        ),
        by_the_proxy(
            "proxy: says the wrapped key is damaged",
            Invalid,
            hand!(|path| {
                path.proxy.fail(Fault::error(ErrorName::InvalidCiphertext));
            }),
        ),
        // --- policy
        Case {
            name: "policy: denies the principal",
            kind: Denied,
            is_slow: false,
            begin: hand!(|path| path.proxy.deny(&path.principal())),
            end: hand!(|path| path.proxy.allow(&path.principal())),
        },
        // --- XKS proxy ─► key manager
        Case {
            name: "key manager: connection reset",
            kind: Unavailable,
            is_slow: false,
            begin: hand!(|path| path.to_bao.set(fault_proxy::Fault::Reset)),
            end: hand!(|path| path.to_bao.set(fault_proxy::Fault::None)),
        },
        Case {
            name: "key manager: garbage",
            kind: Unavailable,
            is_slow: false,
            begin: hand!(|path| path
                .to_bao
                .set(fault_proxy::Fault::Replace(b"SSH-2.0-OpenSSH\r\n".to_vec()))),
            end: hand!(|path| path.to_bao.set(fault_proxy::Fault::None)),
        },
        Case {
            name: "key manager: slower than 250 ms",
            kind: Unavailable,
            is_slow: true,
            begin: hand!(|path| path
                .to_bao
                .set(fault_proxy::Fault::Delay(Duration::from_millis(400)))),
            end: hand!(|path| path.to_bao.set(fault_proxy::Fault::None)),
        },
        Case {
            name: "key manager: stopped",
            kind: Unavailable,
            is_slow: true,
            begin: hand!(|path| path.bao.stop()),
            end: hand!(|path| path.bao.go_on()),
        },
        Case {
            name: "key manager: no answer",
            kind: Unavailable,
            is_slow: true,
            begin: hand!(|path| path.to_bao.set(fault_proxy::Fault::Silence)),
            end: hand!(|path| path.to_bao.set(fault_proxy::Fault::None)),
        },
        Case {
            name: "key manager: sealed",
            kind: Unavailable,
            is_slow: false,
            begin: hand!(|path| path.bao.seal().await),
            end: hand!(|path| path.bao.unseal().await),
        },
        Case {
            name: "key manager: rate limit",
            kind: Throttled,
            is_slow: false,
            begin: hand!(|path| {
                path.bao
                    .put(
                        "sys/quotas/rate-limit/none",
                        json!({ "path": "transit", "rate": 0.001, "interval": "1h" }),
                    )
                    .await;
                // The first request still fits.
                path.bao.ask("GET", &format!("transit/keys/{KEY}"), Value::Null).await;
            }),
            end: hand!(|path| {
                path.bao.ask("DELETE", "sys/quotas/rate-limit/none", Value::Null).await;
            }),
        },
        Case {
            name: "key manager: key disabled",
            kind: Denied,
            is_slow: false,
            begin: hand!(|path| path.proxy.key(KEY).disable()),
            end: hand!(|path| path.proxy.key(KEY).enable()),
        },
        Case {
            name: "key manager: key soft-deleted",
            kind: Denied,
            is_slow: false,
            begin: hand!(|path| {
                let soft = format!("transit/keys/{KEY}/soft-delete");
                path.bao.ask("DELETE", &soft, Value::Null).await;
            }),
            end: hand!(|path| {
                let restore = format!("transit/keys/{KEY}/soft-delete-restore");
                path.bao.put(&restore, json!({})).await;
            }),
        },
        Case {
            name: "key manager: key missing",
            kind: Denied,
            is_slow: false,
            begin: hand!(|path| {
                let config = json!({ "deletion_allowed": true, "exportable": true, "allow_plaintext_backup": true });
                path.bao.put(&format!("transit/keys/{KEY}/config"), config).await;
                let backup = path.bao.get(&format!("transit/backup/{KEY}")).await;
                path.bao.file("backup", backup["data"].to_string());
                path.bao.ask("DELETE", &format!("transit/keys/{KEY}"), Value::Null).await;
            }),
            end: hand!(|path| {
                let backup = std::fs::read(path.bao.audit_file().with_file_name("backup")).unwrap();
                path.bao
                    .put(
                        &format!("transit/restore/{KEY}"),
                        serde_json::from_slice(&backup).unwrap(),
                    )
                    .await;
            }),
        },
    ]
}

fn expire(path: &XksPath, expired: bool) {
    path.front.world().principals.get_mut(&path.login.access_key).unwrap().expired = expired;
}

fn policy(is_slow: bool) -> CallPolicy {
    let ms = Duration::from_millis;
    let timeout = if is_slow { ms(2000) } else { AMPLE };
    CallPolicy::default()
        .timeout(timeout)
        .deadline(ms(60_000))
        .backoff(ms(1))
        .breaker_failures(1000)
}

fn faults() -> Vec<ShownFault<OnThePath>> {
    let fault = |Case { name, kind, is_slow, begin, end }: Case| {
        let fault = ShownFault::with(
            name,
            kind,
            move |stage: &OnThePath| begin(&stage.0),
            move |stage: &OnThePath| end(&stage.0),
        );
        if is_slow { fault.slow() } else { fault }
    };
    cases().into_iter().map(fault).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_on_each_hop_has_its_class_its_tries_and_its_recovery() {
    // Most of the time goes by waiting.
    let each = async |fault| met(&OnThePath(XksPath::start().await), fault).await;
    stream::iter(faults()).for_each_concurrent(6, each).await;
}

/// docs/xks.md shows every case of this file, in order.
#[test]
fn the_docs_show_these_faults() {
    let page = include_str!("../../docs/xks.md");
    assert_shown(page, "## What an outage of each hop looks like", &faults());
}
