//! For how long a decision is used, and for whom.

use std::time::Duration;

use waxseal::kek::local::LocalKek;
use waxseal::policy::{Decision, PolicyOptions};
use waxseal::{Aad, Caller, EncryptionContext, Envelope, ErrorKind, Limits};
use waxseal_testing::support::block_on;

use crate::ground::{Ground, Rules, SECOND, caller, context, denied};

fn encrypt(
    ground: &Ground,
    who: &Caller,
    context: &EncryptionContext,
) -> Result<Vec<u8>, waxseal::Error> {
    block_on(ground.envelope.acting_for(who).encrypt(context, Aad::empty(), b"x"))
}

#[test]
fn a_decision_is_used_for_thirty_seconds_from_the_question_on() {
    let ground = Ground::new(&Rules::open(), PolicyOptions::default());
    let (who, acme) = (caller("a", "r"), context("acme"));
    for _ in 0..3 {
        encrypt(&ground, &who, &acme).unwrap();
    }
    ground.clock.advance(29 * SECOND);
    encrypt(&ground, &who, &acme).unwrap();
    assert_eq!(ground.rules.count(), 1);
    ground.rules.answer(|_| Ok(Decision::deny(["closed"])));
    encrypt(&ground, &who, &acme).unwrap();
    ground.clock.advance(SECOND);
    assert_eq!(denied(encrypt(&ground, &who, &acme)), ["closed"]);
    // A denial is a decision too.
    ground.rules.answer(|_| Ok(Decision::allow()));
    ground.clock.advance(29 * SECOND);
    denied(encrypt(&ground, &who, &acme));
    assert_eq!(ground.rules.count(), 2);
    ground.clock.advance(SECOND);
    encrypt(&ground, &who, &acme).unwrap();
}

#[test]
fn a_slow_answer_counts_from_the_question_and_a_wall_clock_that_jumps_ends_it() {
    let rules = Rules::open();
    let ground = Ground::new(&rules, PolicyOptions::default());
    let (who, acme, clock) = (caller("a", "r"), context("acme"), ground.clock.clone());
    let slow = clock.clone();
    rules.answer(move |_| {
        slow.advance(20 * SECOND);
        Ok(Decision::allow())
    });
    encrypt(&ground, &who, &acme).unwrap();
    clock.advance(9 * SECOND);
    encrypt(&ground, &who, &acme).unwrap();
    assert_eq!(rules.count(), 1);
    clock.advance(SECOND);
    encrypt(&ground, &who, &acme).unwrap();
    assert_eq!(rules.count(), 2);
    rules.answer(|_| Ok(Decision::allow()));
    clock.set_wall_forward(30 * SECOND);
    encrypt(&ground, &who, &acme).unwrap();
    assert_eq!(rules.count(), 3);
    clock.set_wall_back(3600 * SECOND);
    clock.advance(30 * SECOND);
    encrypt(&ground, &who, &acme).unwrap();
    assert_eq!(rules.count(), 4, "a wall clock set back prolongs nothing");
}

#[test]
fn no_decision_is_used_longer_than_a_dek() {
    let (rules, who, acme) = (Rules::open(), caller("a", "r"), context("acme"));
    let options = PolicyOptions::default().cache_for(3600 * SECOND);
    let ground = Ground::with(&rules, options, |builder| {
        builder.limits(Limits::default().max_age(10 * SECOND))
    });
    encrypt(&ground, &who, &acme).unwrap();
    ground.clock.advance(9 * SECOND);
    encrypt(&ground, &who, &acme).unwrap();
    assert_eq!(rules.count(), 1);
    ground.clock.advance(SECOND);
    encrypt(&ground, &who, &acme).unwrap();
    assert_eq!(rules.count(), 2);
}

#[test]
fn a_decision_may_set_a_shorter_time_and_no_longer_one() {
    let (rules, who, acme) = (Rules::open(), caller("a", "r"), context("acme"));
    let ground = Ground::new(&rules, PolicyOptions::default());
    for (own, lasts) in [(5, 5), (3600, 30), (0, 0)] {
        rules.reload();
        rules.asked();
        rules.answer(move |_| Ok(Decision::allow().valid_for(own * SECOND)));
        encrypt(&ground, &who, &acme).unwrap();
        if lasts > 0 {
            ground.clock.advance((lasts - 1) * SECOND);
            encrypt(&ground, &who, &acme).unwrap();
            assert_eq!(rules.count(), 1, "{own}");
            ground.clock.advance(SECOND);
        }
        encrypt(&ground, &who, &acme).unwrap();
        assert_eq!(rules.count(), 2, "{own}");
    }
}

#[test]
fn with_a_time_of_zero_every_operation_asks() {
    let ground = Ground::new(&Rules::open(), PolicyOptions::default().cache_for(Duration::ZERO));
    let (who, acme) = (caller("a", "r"), context("acme"));
    for count in 1..=3 {
        encrypt(&ground, &who, &acme).unwrap();
        assert_eq!(ground.rules.count(), count);
    }
    let view = ground.envelope.acting_for(&who);
    let sealed = encrypt(&ground, &who, &acme).unwrap();
    assert!(view.decrypt_cached(&acme, Aad::empty(), &sealed).unwrap().is_none());
    let error = block_on(view.encryptor(&acme)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");
    assert_eq!(block_on(view.decryptor(&acme, &sealed)).unwrap_err().kind(), error.kind());
}

#[test]
fn a_reload_is_felt_at_the_next_operation() {
    let ground = Ground::new(&Rules::open(), PolicyOptions::default());
    let (who, acme) = (caller("a", "r"), context("acme"));
    encrypt(&ground, &who, &acme).unwrap();
    ground.rules.answer(|_| Ok(Decision::deny(["revoked"])));
    encrypt(&ground, &who, &acme).unwrap();
    ground.rules.reload();
    assert_eq!(denied(encrypt(&ground, &who, &acme)), ["revoked"]);
    ground.rules.answer(|_| Ok(Decision::allow()));
    denied(encrypt(&ground, &who, &acme));
    ground.envelope.evict_all();
    encrypt(&ground, &who, &acme).unwrap();
}

#[test]
fn a_decision_of_the_rules_before_a_reload_is_not_used() {
    let rules = Rules::open();
    let ground = Ground::new(&rules, PolicyOptions::default());
    let (who, acme) = (caller("a", "r"), context("acme"));
    // The reload comes while the question is in flight.
    let reloads = rules.clone();
    rules.answer(move |_| {
        if reloads.count() == 1 {
            reloads.reload();
            return Ok(Decision::allow());
        }
        Ok(Decision::deny(["new rules"]))
    });
    assert_eq!(denied(encrypt(&ground, &who, &acme)), ["new rules"]);
    assert_eq!(rules.count(), 2);
    // Rules that keep changing decide nothing.
    let reloads = rules.clone();
    rules.answer(move |_| {
        reloads.reload();
        Ok(Decision::allow())
    });
    rules.reload();
    rules.asked();
    let reasons = denied(encrypt(&ground, &who, &acme));
    assert!(reasons[0].contains("changed during each request"), "{reasons:?}");
    assert_eq!(rules.count(), 3);
}

#[test]
fn each_request_has_its_own_decision_unless_the_id_is_ignored() {
    let acme = context("acme");
    for (options, asked) in
        [(PolicyOptions::default(), 3), (PolicyOptions::default().ignore_request_id(), 1)]
    {
        let rules = Rules::new(move |question| {
            assert_eq!(question.request_id.is_some(), asked == 3);
            Ok(Decision::allow())
        });
        let ground = Ground::new(&rules, options);
        for id in ["1", "2", "1", "3", "1"] {
            let who = caller("a", "r").with_request_id(id).unwrap();
            encrypt(&ground, &who, &acme).unwrap();
        }
        assert_eq!(rules.count(), asked);
    }
}

#[test]
fn two_envelopes_with_one_policy_share_no_decision() {
    let rules = Rules::open();
    let grounds = ["orders", "users"]
        .map(|domain| Ground::new(&rules, PolicyOptions::default().domain(domain)));
    rules.answer(|question| {
        Ok(match question.domain {
            Some("orders") => Decision::allow(),
            _ => Decision::deny(["domain"]),
        })
    });
    let (who, acme) = (caller("a", "r"), context("acme"));
    for _ in 0..3 {
        encrypt(&grounds[0], &who, &acme).unwrap();
        denied(encrypt(&grounds[1], &who, &acme));
    }
    assert_eq!(rules.count(), 2);
}

#[test]
fn an_option_out_of_range_is_refused_by_name() {
    let day = 24 * 3600 * SECOND;
    for (options, text) in [
        (PolicyOptions::default().max_decisions(0), "max_decisions is 0"),
        (PolicyOptions::default().max_decisions((1 << 20) + 1), "max_decisions is 1048577"),
        (PolicyOptions::default().timeout(Duration::ZERO), "timeout is 0s"),
        (PolicyOptions::default().timeout(61 * SECOND), "timeout is 1m1s"),
        (PolicyOptions::default().last_known_for(day + SECOND), "last_known_for is 1d1s"),
    ] {
        let kek = LocalKek::in_memory("kek").unwrap();
        let builder = Envelope::builder().wrap_with(kek).policy(Rules::open(), options);
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn a_cache_of_one_decision_forgets_and_never_mixes() {
    let rules = Rules::role("reader");
    let ground = Ground::new(&rules, PolicyOptions::default().max_decisions(1));
    let callers: Vec<_> = (0..200)
        .map(|n| caller(&format!("s{n}"), if n % 3 == 0 { "reader" } else { "other" }))
        .collect();
    let acme = context("acme");
    for round in 0..3 {
        for (n, who) in callers.iter().enumerate() {
            assert_eq!(encrypt(&ground, who, &acme).is_ok(), n % 3 == 0, "{round} {n}");
        }
    }
}

#[test]
fn with_ignore_request_id_no_decision_leaks_from_one_request_to_another() {
    let rules = Rules::new(|question| {
        Ok(match question.caller.and_then(Caller::request_id) {
            Some("approved") => Decision::allow(),
            _ => Decision::deny(["not approved"]),
        })
    });
    let ground = Ground::new(&rules, PolicyOptions::default().ignore_request_id());
    let acme = context("acme");
    let request = |id: &str| {
        let who = caller("a", "r").with_request_id(id).unwrap();
        block_on(ground.envelope.acting_for(&who).encrypt(&acme, Aad::empty(), b"x"))
    };
    // The policy saw the id, and the cache does not have it.
    let (first, another) = (request("approved").is_ok(), request("another").is_ok());
    assert!(!(first && another), "the decision about one request answered another");
}
