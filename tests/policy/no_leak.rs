//! No decision answers another question than its own: callers, contexts and operations are mixed at
//! random, on several threads, over a cache that is too small and one that is not.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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

/// How an operation is done.
#[derive(Clone, Copy, Debug)]
enum Way {
    Encrypt,
    Decrypt,
    InPlace,
    Cached,
}

#[derive(Clone, Debug)]
enum Step {
    Ask(Who, u8, Way),
    Pass(u8),
    /// The rules change and say so.
    Reload,
    /// The rules change and say nothing.
    Change,
    Forget,
}

fn step() -> impl Strategy<Value = Step> {
    let way =
        prop_oneof![Just(Way::Encrypt), Just(Way::Decrypt), Just(Way::InPlace), Just(Way::Cached)];
    // Few callers, so that the same is asked again and again.
    let few = proptest::option::of((0..2_u8, Just(Vec::new()), 0..2_u8));
    let few = few.prop_map(|who| {
        who.map(|(service, roles, id)| {
            (service, roles, Vec::new(), None, Vec::new(), (id == 1).then_some(0))
        })
    });
    prop_oneof![
        12 => (few, 0..2_u8, way).prop_map(|(who, context, way)| Step::Ask(who, context, way)),
        3 => (1..20_u8).prop_map(Step::Pass),
        1 => Just(Step::Reload),
        2 => Just(Step::Change),
        1 => Just(Step::Forget),
    ]
}

/// What the rules say: whether it is allowed, and for how many seconds that may be used.
fn says(question: &Question<'_>, salt: u64) -> (bool, u64) {
    let mut hasher = DefaultHasher::new();
    (salt, rule(question)).hash(&mut hasher);
    question.context.as_bytes().hash(&mut hasher);
    question.caller.map(Caller::service).hash(&mut hasher);
    question.request_id.hash(&mut hasher);
    question.operation.hash(&mut hasher);
    let drawn = hasher.finish();
    (!drawn.is_multiple_of(3), [30, 0, 5, 20, 60][usize::try_from(drawn / 3 % 5).unwrap()])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// The decision about this question serves exactly until its end, through any call that asks
    /// it.
    #[test]
    fn a_decision_serves_its_own_question_until_it_ends_and_no_longer(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let rules = Rules::open();
        let ground = Ground::new(&rules, PolicyOptions::default());
        let contexts = ["a", "b"].map(|tenant| EncryptionContext::new([("t", tenant)]).unwrap());
        let sealed = contexts.each_ref().map(|context| {
            block_on(ground.envelope.encrypt(context, Aad::empty(), b"x")).unwrap()
        });
        let salt = Arc::new(AtomicU64::new(0));
        let of_rules = salt.clone();
        rules.answer(move |question| {
            let (is_allowed, seconds) = says(question, of_rules.load(Ordering::SeqCst));
            let decision = if is_allowed { Decision::allow() } else { Decision::deny(["no"]) };
            Ok(decision.valid_for(Duration::from_secs(seconds)))
        });
        rules.reload();
        // What was decided, and until when it serves.
        let mut known: HashMap<(Action, u8, Option<Caller>), (bool, u64)> = HashMap::new();
        let mut now = 0;
        for step in &steps {
            let (who, place, way) = match step {
                Step::Ask(who, place, way) => (who, *place, *way),
                Step::Pass(seconds) => {
                    now += u64::from(*seconds);
                    ground.clock.advance(Duration::from_secs((*seconds).into()));
                    continue;
                }
                Step::Change => {
                    salt.fetch_add(1, Ordering::SeqCst);
                    continue;
                }
                Step::Reload => {
                    salt.fetch_add(1, Ordering::SeqCst);
                    rules.reload();
                    known.clear();
                    continue;
                }
                Step::Forget => {
                    ground.envelope.evict_all();
                    known.clear();
                    continue;
                }
            };
            let (caller, context) = (caller(who), &contexts[usize::from(place)]);
            let message = &sealed[usize::from(place)];
            let operation = match way {
                Way::Encrypt => Action::Encrypt,
                Way::Decrypt | Way::InPlace | Way::Cached => Action::Decrypt,
            };
            let question = Question::new(operation, context);
            let question = caller.as_ref().map_or(question, |caller| question.caller(caller));
            let key = (operation, place, caller.clone());
            let in_force = known.get(&key).filter(|(_, until)| now < *until).map(|(is, _)| *is);
            let expected = match (in_force, way) {
                (Some(is_allowed), _) => Some(is_allowed),
                // It would have to ask.
                (None, Way::Cached) => None,
                (None, _) => {
                    let (is_allowed, seconds) = says(&question, salt.load(Ordering::SeqCst));
                    known.insert(key, (is_allowed, now + seconds.min(30)));
                    Some(is_allowed)
                }
            };
            let (envelope, aad) = (&ground.envelope, Aad::empty());
            let mut buffer = message.clone();
            let done = match (&caller, way) {
                (Some(caller), Way::Encrypt) => {
                    block_on(envelope.acting_for(caller).encrypt(context, aad, b"x")).map(|_| true)
                }
                (Some(caller), Way::Decrypt) => {
                    block_on(envelope.acting_for(caller).decrypt(context, aad, message)).map(|_| true)
                }
                (Some(caller), Way::InPlace) => {
                    let view = envelope.acting_for(caller);
                    block_on(view.decrypt_in_place(context, aad, &mut buffer)).map(|_| true)
                }
                (Some(caller), Way::Cached) => {
                    let opened = envelope.acting_for(caller).decrypt_cached(context, aad, message);
                    opened.map(|opened| opened.is_some())
                }
                (None, Way::Encrypt) => block_on(envelope.encrypt(context, aad, b"x")).map(|_| true),
                (None, Way::Decrypt) => block_on(envelope.decrypt(context, aad, message)).map(|_| true),
                (None, Way::InPlace) => {
                    block_on(envelope.decrypt_in_place(context, aad, &mut buffer)).map(|_| true)
                }
                (None, Way::Cached) => {
                    envelope.decrypt_cached(context, aad, message).map(|opened| opened.is_some())
                }
            };
            let seen = match done {
                Ok(true) => Some(true),
                Ok(false) => None,
                Err(error) => {
                    prop_assert_eq!(error.kind(), ErrorKind::PolicyDenied, "{}", error);
                    Some(false)
                }
            };
            prop_assert_eq!(seen, expected, "{:?} at {} of {:?}", step, now, steps);
        }
    }
}
