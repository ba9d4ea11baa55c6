//! What a policy decided, about whom.

use waxseal::policy::{BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::{Aad, Caller, Envelope, Error, ErrorKind};
use waxseal_testing::support::{block_on, local};

use crate::ground::{Place, builder, context};

/// Allows readers, fails for callers without a role, and denies all others.
#[derive(Debug)]
struct Readers;

impl Policy for Readers {
    fn decide<'a>(&'a self, question: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        let mut roles = question.caller.into_iter().flat_map(|caller| caller.roles());
        let decision = match roles.next() {
            Some("reader") => Ok(Decision::allow()),
            Some(_) => Ok(Decision::deny(["only readers read"])),
            None => Err(Error::new(ErrorKind::Unavailable, "no answer")),
        };
        Box::pin(async { decision.map(|decision| decision.with_revision("r7")) })
    }
}

#[test]
fn a_decision_is_recorded_with_caller_reasons_and_revision() {
    let place = Place::new();
    let trail = builder(&place).start().unwrap();
    let envelope = Envelope::builder()
        .wrap_with(local("audited"))
        .policy(Readers, PolicyOptions::default())
        .observer(trail.clone())
        .build()
        .unwrap();
    let caller = |role: &str| {
        let builder = Caller::builder().service("reports").group("emea").role(role);
        let builder = builder.attribute("badge", "4711-secret").source_address([10, 1, 2, 3]);
        builder.build().unwrap().with_request_id("request-9").unwrap()
    };
    let encrypt = |caller: &Caller| {
        block_on(envelope.acting_for(caller).encrypt(&context(), Aad::empty(), b"text"))
    };
    encrypt(&caller("reader")).unwrap();
    let denied = encrypt(&caller("intern")).unwrap_err();
    assert_eq!(denied.kind(), ErrorKind::PolicyDenied);
    block_on(envelope.encrypt(&context(), Aad::empty(), b"text")).unwrap_err();
    drop(envelope);
    assert!(trail.close());

    let records = place.records();
    let of = |activity: &str| {
        let mut found = records.iter().filter(|record| record.activity == activity);
        found.next().cloned().unwrap_or_default()
    };
    for (activity, role, status) in
        [("policy_allowed", "reader", "Success"), ("policy_denied", "intern", "Failure")]
    {
        let record = of(activity);
        assert_eq!(record.status.as_deref(), Some(status), "{activity}: {records:#?}");
        assert_eq!(record.operation.as_deref(), Some("encrypt"));
        assert_eq!(record.caller_service.as_deref(), Some("reports"));
        assert_eq!(record.caller_roles, [role]);
        assert_eq!(record.caller_groups, ["emea"]);
        assert_eq!(record.caller_address.as_deref(), Some("10.1.2.3"));
        assert_eq!(record.caller_request_id.as_deref(), Some("request-9"));
        assert_eq!(record.policy_revision.as_deref(), Some("r7"));
        assert!(record.context.is_some());
    }
    assert_eq!(of("policy_denied").policy_reasons, ["only readers read"]);
    assert_eq!(of("policy_failed").error_type.as_deref(), Some("unavailable"));
    let lines = place.lines(1).concat();
    assert!(!lines.contains("4711-secret"), "attributes are left out");
}
