//! A key in an external key manager: every error domain, and what else Google does.

use futures_util::stream::{self, StreamExt};
use waxseal::ErrorKind;
use waxseal::kek::{CallAdvice, KekErrorClass, KekProvider};
use waxseal_testing::faults::{Fault as Case, assert_shown, met};
use waxseal_testing::google::{EkmFault, Protection, State};
use waxseal_testing::support::{a_dek, context};

use crate::Ground;

use ErrorKind::{Denied, Misconfigured, Throttled, Unavailable};

fn external() -> Ground {
    Ground::new(Protection::External)
}

fn fail(ground: &Ground, fault: EkmFault) {
    ground.front.world().key(&ground.key).ekm = Some(fault);
}

/// The operator mends the key manager, and enables the version that Google may have disabled.
fn mend(ground: &Ground) {
    let mut world = ground.front.world();
    let key = world.key(&ground.key);
    key.ekm = None;
    key.version(1).state = State::Enabled;
}

fn cases() -> Vec<Case<Ground>> {
    macro_rules! cases {
        ($($name:literal: $fault:ident is $kind:ident,)*) => {
            vec![$(Case::new($name, $kind, |g| fail(g, EkmFault::$fault), mend)),*]
        };
    }
    cases![
        "EKM: permission denied": PermissionDenied is Denied,
        "EKM: permission denied at the host": HostPermissionDenied is Denied,
        "EKM: justification not accepted": JustificationDenied is Denied,
        "EKM: key not found": NotFound is Denied,
        "EKM: key URI invalid": KeyUriInvalid is Misconfigured,
        "EKM: host not supported": KeyHostNotWhitelisted is Misconfigured,
        "EKM: name not resolved": Dns is Unavailable,
        "EKM: resource exhausted": ResourceExhausted is Throttled,
        "EKM: network unreachable": UnreachableNetwork is Unavailable,
        "EKM: overloaded": Overloaded is Throttled,
        "EKM: timeout": Timeout is Unavailable,
        "EKM: request cancelled": RequestCancelled is Unavailable,
        "EKM: certificate not accepted": TlsCert is Misconfigured,
        "EKM: unusable response": UnexpectedResponse is Unavailable,
        "EKM: server error": ServerError is Unavailable,
        "EKM: not implemented": NotImplemented is Misconfigured,
        "EKM: unexpected error": UnexpectedError is Unavailable,
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_error_domain_has_its_class_its_tries_and_its_recovery() {
    stream::iter(cases()).for_each_concurrent(8, async |case| met(&external(), case).await).await;
}

/// docs/ekm.md shows every case of this file, in order, with its class.
#[test]
fn the_docs_show_these_faults() {
    let page = include_str!("../../docs/ekm.md");
    assert_shown(page, "## What a fault looks like", &cases());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_domain_of_the_reference_is_known() {
    let ground = external();
    let kek = ground.kek().await;
    let wrapped = kek.wrap(&context("alice"), &a_dek()).await.unwrap();
    let page = include_str!("../../docs/ekm.md");
    for fault in EkmFault::ALL {
        fail(&ground, fault);
        let error = kek.unwrap(&context("alice"), &wrapped).await.unwrap_err();
        assert!(error.to_string().contains(fault.domain()), "{error}");
        let row = format!("| `{}` | {} |", fault.domain(), error.class());
        assert!(page.contains(&row), "{fault:?}: {row}");
        mend(&ground);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_key_manager_cannot_decrypt_is_invalid_and_stops_no_other_use() {
    let ground = external();
    let kek = ground.kek().await;
    let wrapped = kek.wrap(&context("alice"), &a_dek()).await.unwrap();
    fail(&ground, EkmFault::DecryptionFailed);
    let error = kek.unwrap(&context("alice"), &wrapped).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Invalid, "{error}");
    kek.wrap(&context("alice"), &a_dek()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denial_of_the_key_also_disables_its_version_until_an_operator_enables_it() {
    let ground = external();
    let kek = ground.kek().await;
    let wrapped = kek.wrap(&context("alice"), &a_dek()).await.unwrap();
    fail(&ground, EkmFault::PermissionDenied);
    let first = kek.unwrap(&context("alice"), &wrapped).await.unwrap_err();
    assert_eq!(first.class(), KekErrorClass::Denied);
    assert!(first.to_string().contains("EXTERNAL_PERMISSION_DENIED"), "{first}");
    ground.front.world().key(&ground.key).ekm = None;
    let second = kek.unwrap(&context("alice"), &wrapped).await.unwrap_err();
    assert_eq!(second.class(), KekErrorClass::Denied, "given back, and still disabled");
    assert!(second.to_string().contains("KEY_DISABLED"), "{second}");
    mend(&ground);
    kek.unwrap(&context("alice"), &wrapped).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_reason_of_an_access_that_was_not_accepted_is_in_the_error() {
    let ground = external();
    let kek = ground.kek().await;
    fail(&ground, EkmFault::JustificationDenied);
    let error = kek.wrap(&context("alice"), &a_dek()).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Denied);
    assert!(error.to_string().contains("CUSTOMER_INITIATED_ACCESS"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_external_key_is_known_by_the_first_answer_or_by_its_option() {
    let timeout = |advice: &CallAdvice| format!("{advice:?}").contains("timeout: Some");
    for protection in [Protection::External, Protection::ExternalVpc] {
        let ground = Ground::new(protection);
        let kek = ground.kek().await;
        assert!(!timeout(kek.target(kek.id()).advice()), "nobody has asked");
        kek.wrap(&context("alice"), &a_dek()).await.unwrap();
        assert!(timeout(kek.target(kek.id()).advice()));
        let told = ground.builder(&ground.key).external_key_manager(true).build().await.unwrap();
        assert!(timeout(told.target(told.id()).advice()));
        let read = ground.kek().await;
        assert_eq!(read.read_key().await.unwrap().protection_level, protection.name());
        assert!(timeout(read.target(read.id()).advice()));
    }
    let ground = Ground::new(Protection::Hsm);
    let kek = ground.kek().await;
    kek.wrap(&context("alice"), &a_dek()).await.unwrap();
    assert!(!timeout(kek.target(kek.id()).advice()));
}
