//! No decision answers another question than its own: callers, contexts and operations are mixed at
//! random, on several threads, over a cache that is too small and one that is not.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use proptest::prelude::*;
use waxseal::policy::{Action, Decision, PolicyOptions, Question};
use waxseal::{Aad, Caller, EncryptionContext, ErrorKind};
use waxseal_testing::support::block_on;

use crate::ground::{Ground, Rules};

/// What one caller is made of. Small numbers, so that callers share most of their parts.
type Who = Option<(u8, Vec<u8>, Vec<u8>, Option<u8>, Vec<u8>, Option<u8>)>;

fn who() -> impl Strategy<Value = Who> {
    let few = || proptest::collection::vec(0..3_u8, 0..3);
    let id = || proptest::option::of(0..2_u8);
    proptest::option::of((0..3_u8, few(), few(), id(), few(), id()))
}

fn caller(who: &Who) -> Option<Caller> {
    let (service, roles, groups, address, values, request) = who.as_ref()?;
    let text = |n: &u8| format!("n{n}");
    let mut builder = Caller::builder()
        .service(text(service))
        .roles(roles.iter().map(text))
        .groups(groups.iter().map(text))
        .attribute_list("values", values.iter().map(text));
    if let Some(address) = address {
        builder = builder.source_address([10, 0, 0, *address]);
    }
    let caller = builder.build().unwrap();
    Some(request.map_or(caller.clone(), |id| caller.with_request_id(text(&id)).unwrap()))
}

/// A rule that depends on everything: each part decides between allow and deny.
fn rule(question: &Question<'_>) -> bool {
    let mut hasher = DefaultHasher::new();
    question.operation.hash(&mut hasher);
    question.context.as_bytes().hash(&mut hasher);
    question.request_id.hash(&mut hasher);
    if let Some(caller) = question.caller {
        caller.service().hash(&mut hasher);
        caller.roles().for_each(|role| role.hash(&mut hasher));
        0xFF.hash(&mut hasher);
        caller.groups().for_each(|group| group.hash(&mut hasher));
        caller.source_address().hash(&mut hasher);
        caller.attributes().for_each(|attribute| attribute.hash(&mut hasher));
    }
    hasher.finish().is_multiple_of(2)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn no_decision_answers_another_caller_context_or_operation(
        questions in proptest::collection::vec((who(), 0..3_u8, any::<bool>()), 1..60),
        max_decisions in prop_oneof![Just(1_u64), Just(8), Just(10_000)],
        threads in 1..3_usize,
    ) {
        let rules = Rules::new(|question| Ok(match rule(question) {
            true => Decision::allow(),
            false => Decision::deny(["no"]),
        }));
        let ground = Ground::new(&rules, PolicyOptions::default().max_decisions(max_decisions));
        let contexts = ["a", "b", "c"].map(|tenant| EncryptionContext::new([("t", tenant)]).unwrap());
        let open = Rules::open();
        let unlocked = Ground::new(&open, PolicyOptions::default());
        let sealed = contexts.each_ref().map(|context| {
            block_on(unlocked.envelope.encrypt(context, Aad::empty(), b"x")).unwrap()
        });
        let ask = |(who, context, encrypts): &(Who, u8, bool)| {
            let context_of = &contexts[usize::from(*context)];
            let caller = caller(who);
            let operation = if *encrypts { Action::Encrypt } else { Action::Decrypt };
            let question = Question::new(operation, context_of);
            let expected = rule(&caller.as_ref().map_or(question, |caller| question.caller(caller)));
            let message = &sealed[usize::from(*context)];
            let result = match (&caller, encrypts) {
                (Some(caller), true) => {
                    let view = ground.envelope.acting_for(caller);
                    block_on(view.encrypt(context_of, Aad::empty(), b"x")).map(drop)
                }
                (Some(caller), false) => {
                    let view = ground.envelope.acting_for(caller);
                    block_on(view.decrypt(context_of, Aad::empty(), message)).map(drop)
                }
                (None, true) => {
                    block_on(ground.envelope.encrypt(context_of, Aad::empty(), b"x")).map(drop)
                }
                (None, false) => {
                    block_on(ground.envelope.decrypt(context_of, Aad::empty(), message)).map(drop)
                }
            };
            // The messages are of another KEK, so what is allowed fails later.
            let allowed = result.err().is_none_or(|error| error.kind() != ErrorKind::PolicyDenied);
            assert_eq!(allowed, expected, "{who:?} {context} {encrypts}");
        };
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| (0..2).for_each(|_| questions.iter().for_each(ask)));
            }
        });
    }
}
