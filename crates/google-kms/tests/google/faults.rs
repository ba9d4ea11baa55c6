//! Cloud KMS failing in every way that is known, and on every hop.

use std::time::Duration;

use futures_util::stream::{self, StreamExt};
use waxseal::ErrorKind;
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal::{Aad, Envelope, Limits, WrappedDek};
use waxseal_testing::fault_proxy::Fault as Line;
use waxseal_testing::faults::{Fault as Case, assert_shown, met};
use waxseal_testing::google::{
    ACCOUNT, Code, Effect, Fault, GoogleFront, Lie, PROJECT, Source, State, Status,
};
use waxseal_testing::support::{a_dek, context};

use crate::{Ground, TRIES, patient};

use ErrorKind::{Denied, Misconfigured, Throttled, Unavailable};

const BOTH: &str = "roles/cloudkms.cryptoKeyEncrypterDecrypter";

fn recover(ground: &Ground) {
    ground.front.recover();
}

fn by_answer(name: &'static str, kind: ErrorKind, begin: fn(&Ground)) -> Case<Ground> {
    Case::new(name, kind, begin, recover)
}

fn on_the_line(name: &'static str, begin: fn(&Ground)) -> Case<Ground> {
    Case::new(name, Unavailable, begin, |g| g.proxy.set(Line::None))
}

fn slow(case: Case<Ground>) -> Case<Ground> {
    case.slow()
}

fn status(front: &GoogleFront, code: Code, message: &str) {
    front.fail(Fault::status(code, message));
}

fn set_state(ground: &Ground, state: State) {
    ground.front.world().key(&ground.key).version(1).state = state;
}

fn in_state(name: &'static str, kind: ErrorKind, begin: fn(&Ground)) -> Case<Ground> {
    Case::new(name, kind, begin, |g| set_state(g, State::Enabled))
}

fn by_the_source(name: &'static str, kind: ErrorKind, source: fn(&Ground)) -> Case<Ground> {
    // The first try still carries a token, which is refused; what follows does not get there.
    Case::new(name, kind, source, |g| g.front.restore_source()).not_counted_there()
}

fn take_tokens(ground: &Ground, status: u16, body: &str) {
    ground.front.set_source(Source::Fails(status, body.to_owned()));
    ground.front.expire_tokens();
}

fn cases() -> Vec<Case<Ground>> {
    vec![
        // --- service ─► Cloud KMS
        on_the_line("connection reset", |g| g.proxy.set(Line::Reset)),
        on_the_line("connection cut off", |g| g.proxy.set(Line::Truncate(30))),
        on_the_line("half closed", |g| g.proxy.set(Line::HalfClose)),
        slow(on_the_line("no answer", |g| g.proxy.set(Line::Silence))),
        on_the_line("not HTTP", |g| {
            g.proxy.set(Line::Replace(b"SSH-2.0-OpenSSH\r\n".to_vec()));
        }),
        slow(on_the_line("a trickle", |g| {
            g.proxy.set(Line::Trickle(Duration::from_millis(100)));
        })),
        slow(by_answer("slow", Unavailable, |g| {
            g.front.fail(Fault::new(Effect::Delay(Duration::from_secs(2))));
        })),
        // --- answers that are not valid
        by_answer("garbage", Unavailable, |g| {
            g.front.fail(Fault::new(Effect::Raw(200, "\u{fffd}[}")));
        }),
        by_answer("an empty answer", Unavailable, |g| {
            g.front.fail(Fault::new(Effect::Raw(200, "{}")));
        }),
        by_answer("half an answer", Unavailable, |g| g.front.lie(Lie::HalfAnAnswer)),
        by_answer("a gateway's page", Unavailable, |g| {
            g.front.fail(Fault::new(Effect::Raw(502, "<html>Bad Gateway</html>")));
        }),
        by_answer("a bare 503", Unavailable, |g| g.front.fail(Fault::new(Effect::Raw(503, "")))),
        by_answer("internal error", Unavailable, |g| {
            status(&g.front, Code::Internal, "Internal error encountered.");
        }),
        by_answer("service unavailable", Unavailable, |g| {
            status(&g.front, Code::Unavailable, "The service is currently unavailable.");
        }),
        by_answer("deadline exceeded", Unavailable, |g| {
            status(&g.front, Code::DeadlineExceeded, "Deadline exceeded.");
        }),
        by_answer("an unknown precondition", Unavailable, |g| {
            status(&g.front, Code::FailedPrecondition, "something nobody has read before");
        }),
        // --- checksums
        by_answer("damaged on the way back", Unavailable, |g| g.front.lie(Lie::DamagedData)),
        by_answer("a wrong checksum", Unavailable, |g| g.front.lie(Lie::WrongChecksum)),
        by_answer("no checksum", Unavailable, |g| g.front.lie(Lie::NoChecksum)),
        by_answer("checksum of the request refused", Unavailable, |g| {
            let message = "The checksum in field ciphertextCrc32c did not match the data in field ciphertext.";
            status(&g.front, Code::InvalidArgument, message);
        }),
        // --- quotas
        by_answer("a bare 429", Throttled, |g| g.front.fail(Fault::new(Effect::Raw(429, "")))),
        Case::new(
            "quota used up",
            Throttled,
            |g| {
                g.front.world().quotas.insert(PROJECT.to_owned(), 0);
            },
            |g| g.front.world().quotas.clear(),
        ),
        // --- the key
        in_state("version disabled", Denied, |g| set_state(g, State::Disabled)),
        in_state("version scheduled for destruction", Denied, |g| {
            set_state(g, State::DestroyScheduled);
        }),
        in_state("version destroyed", Denied, |g| set_state(g, State::Destroyed)),
        in_state("version being destroyed externally", Denied, |g| {
            set_state(g, State::PendingExternalDestruction);
        }),
        in_state("external destruction failed", Denied, |g| {
            set_state(g, State::ExternalDestructionFailed);
        }),
        in_state("version being generated", Unavailable, |g| {
            set_state(g, State::PendingGeneration);
        }),
        in_state("version being imported", Unavailable, |g| set_state(g, State::PendingImport)),
        in_state("generation failed", Misconfigured, |g| set_state(g, State::GenerationFailed)),
        in_state("import failed", Misconfigured, |g| set_state(g, State::ImportFailed)),
        // --- who may use it
        Case::new(
            "permission taken away",
            Denied,
            |g| g.front.world().revoke(&g.key, BOTH, ACCOUNT),
            |g| g.front.world().grant(&g.key, BOTH, ACCOUNT),
        ),
        by_answer("key not found", Denied, |g| {
            status(&g.front, Code::NotFound, "CryptoKey projects/x not found.");
        }),
        Case::new(
            "API not enabled",
            Misconfigured,
            |g| {
                g.front.world().disabled_projects.insert(PROJECT.to_owned());
            },
            |g| g.front.world().disabled_projects.clear(),
        ),
        Case::new(
            "scope insufficient",
            Misconfigured,
            |g| in_scope(g, false),
            |g| in_scope(g, true),
        ),
        by_answer("outside the perimeter", Misconfigured, |g| {
            let status = waxseal_testing::google::status::outside_the_perimeter();
            g.front.fail(Fault::new(Effect::Fails(status)));
        }),
        by_answer("a refusal for an unknown reason", Misconfigured, |g| {
            let status = Status::new(Code::PermissionDenied, "something nobody has read before");
            let status = status.with_info("BRAND_NEW", "googleapis.com", serde_json::json!({}));
            g.front.fail(Fault::new(Effect::Fails(status)));
        }),
        by_answer("IAM's refusal without details", Denied, |g| {
            let message = "Permission 'cloudkms.cryptoKeyVersions.useToDecrypt' denied on resource \
                'x' (or it may not exist).";
            status(&g.front, Code::PermissionDenied, message);
        }),
        by_answer("something else not found", Misconfigured, |g| {
            status(&g.front, Code::NotFound, "Requested entity was not found.");
        }),
        by_answer("a proxy's 403", Misconfigured, |g| {
            g.front.fail(Fault::new(Effect::Raw(403, "<html>blocked</html>")));
        })
        .leaves_breaker_closed(),
        // --- credentials
        Case::new(
            "tokens expired, and none better",
            Misconfigured,
            |g| {
                let status =
                    waxseal_testing::google::status::unauthenticated("ACCESS_TOKEN_EXPIRED");
                g.front.fail(Fault::new(Effect::Fails(status)));
            },
            recover,
        )
        .not_counted_there(),
        by_the_source("metadata server: down", Unavailable, |g| take_tokens(g, 503, "down")),
        by_the_source("metadata server: overloaded", Throttled, |g| take_tokens(g, 429, "")),
        by_the_source("metadata server: no account", Misconfigured, |g| {
            take_tokens(g, 404, "Not Found");
        }),
        by_the_source("metadata server: garbage", Unavailable, |g| {
            take_tokens(g, 200, "<html>welcome to the hotel</html>");
        }),
    ]
}

fn in_scope(ground: &Ground, in_scope: bool) {
    let mut world = ground.front.world();
    world.tokens.values_mut().for_each(|principal| principal.in_scope = in_scope);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_has_its_class_its_tries_and_its_recovery() {
    // Most of the time goes by waiting.
    stream::iter(cases())
        .for_each_concurrent(8, async |case| met(&Ground::software(), case).await)
        .await;
}

/// docs/google-kms.md shows every case of this file, in order, with its class.
#[test]
fn the_docs_show_these_faults() {
    let page = include_str!("../../docs/google-kms.md");
    assert_shown(page, "### What a fault looks like", &cases());
}

/// Every state of a version is a case above, but the one that works.
#[test]
fn no_state_is_left_out() {
    let docs = include_str!("../../docs/google-kms.md");
    for state in State::ALL.into_iter().filter(|state| *state != State::Enabled) {
        assert!(docs.contains(&format!("| `{}` | ", state.name())), "{state:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_context_is_refused_by_cloud_kms_and_nobody_else_notices() {
    let ground = Ground::software();
    let envelope = || async { envelope(&ground).await };
    let sealed = envelope().await.encrypt(&context("alice"), Aad::empty(), b"text").await.unwrap();
    let reader = envelope().await;
    let error = reader.decrypt(&context("bob"), Aad::empty(), &sealed).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    reader.decrypt(&context("alice"), Aad::empty(), &sealed).await.unwrap();
    let calls = ground.front.calls();
    let errors: Vec<_> =
        calls.iter().filter(|c| c.operation == "decrypt").map(|c| c.error).collect();
    assert_eq!(errors, [Some("INVALID_ARGUMENT"), None]);
}

async fn envelope(ground: &Ground) -> Envelope {
    let limits = Limits::default().denial_ttl(Duration::ZERO);
    let builder = Envelope::builder().wrap_with(ground.kek().await).limits(limits);
    builder.call_policy(patient()).build().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_flipped_bit_of_a_wrapped_key_is_invalid() {
    let ground = Ground::software();
    let kek = ground.kek().await;
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = kek.wrap(&alice, &dek).await.unwrap();
    for bit in 0..wrapped.wrapped().len() * 8 {
        let mut bytes = wrapped.wrapped().to_vec();
        bytes[bit / 8] ^= 1 << (bit % 8);
        let damaged = WrappedDek::new(kek.id().clone(), bytes).unwrap();
        let error = kek.unwrap(&alice, &damaged).await.unwrap_err();
        assert_eq!(error.class(), KekErrorClass::Invalid, "bit {bit}: {error}");
        assert!(error.was_asked());
    }
    assert_eq!(kek.unwrap(&alice, &wrapped).await.unwrap().expose(), dek.expose());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_was_destroyed_and_restored_is_denied_until_it_is_enabled() {
    let ground = Ground::software();
    let sealed =
        envelope(&ground).await.encrypt(&context("alice"), Aad::empty(), b"text").await.unwrap();
    let reader = envelope(&ground).await;
    let mut seen = Vec::new();
    for state in [State::DestroyScheduled, State::Disabled, State::Enabled] {
        set_state(&ground, state);
        let read = reader.decrypt(&context("alice"), Aad::empty(), &sealed).await;
        seen.push(read.map(|text| text.to_vec()).map_err(|error| error.kind()));
    }
    assert_eq!(seen, [Err(Denied), Err(Denied), Ok(b"text".to_vec())]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn how_long_to_stay_away_is_passed_on() {
    let ground = Ground::software();
    let kek = ground.kek().await;
    let wrapped = kek.wrap(&context("alice"), &a_dek()).await.unwrap();
    let header = Status::new(Code::ResourceExhausted, "x").with_retry_after(7);
    let detail = Status::new(Code::ResourceExhausted, "x").with_retry_info("2.500s");
    for (status, wait) in [(header, 7000), (detail, 2500)] {
        ground.front.fail(Fault::new(Effect::Fails(status)));
        let error = kek.unwrap(&context("alice"), &wrapped).await.unwrap_err();
        assert_eq!(error.class(), KekErrorClass::Throttled);
        assert_eq!(error.retry_after(), Some(Duration::from_millis(wait)));
        ground.front.recover();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_name_the_version_and_its_state() {
    let ground = Ground::software();
    let kek = ground.kek().await;
    for state in State::ALL.into_iter().filter(|state| *state != State::Enabled) {
        set_state(&ground, state);
        let error = kek.wrap(&context("alice"), &a_dek()).await.unwrap_err().to_string();
        assert!(error.contains(state.name()), "{error}");
        assert!(error.contains("orders/cryptoKeyVersions/1"), "{error}");
        let looked_at = kek.health().await.unwrap_err();
        assert!(looked_at.to_string().contains(state.name()), "{looked_at}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_throttled_is_tried_again_and_served() {
    let ground = Ground::software();
    let sealed =
        envelope(&ground).await.encrypt(&context("alice"), Aad::empty(), b"text").await.unwrap();
    let reader = envelope(&ground).await;
    let times = u32::try_from(TRIES - 1).unwrap();
    ground.front.fail(Fault::status(Code::ResourceExhausted, "x").times(times));
    let text = reader.decrypt(&context("alice"), Aad::empty(), &sealed).await.unwrap();
    assert_eq!(&*text, b"text");
}
