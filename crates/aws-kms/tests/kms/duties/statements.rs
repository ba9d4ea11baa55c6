//! That no statement is idle.

use kms_front::policy;
use kms_front::{ACCOUNT, Caller, Traits};
use serde_json::{Value, json};
use waxseal_testing::kms_front;

use super::ground::*;

/// What a request has apart from its principal and its action.
struct Situation {
    traits: Traits,
    pairs: &'static [(&'static str, &'static str)],
    same: Option<bool>,
    body: Value,
}

/// One in which everything is allowed that ever is, and others that differ in one thing.
fn situations() -> Vec<Situation> {
    let tags = |value: &str| [(TAG.to_owned(), value.to_owned())].into();
    let open = || Situation {
        traits: Traits {
            tags: tags("orders"),
            has_session: true,
            mfa_age: Some(1),
            source_vpce: Some("vpce-0123456789abcdef0".to_owned()),
            via_service: None,
        },
        pairs: &CONTEXT,
        same: Some(true),
        body: Value::Null,
    };
    let with = |change: fn(&mut Traits)| {
        let mut situation = open();
        change(&mut situation.traits);
        situation
    };
    vec![
        open(),
        with(|traits| traits.tags.clear()),
        with(|traits| traits.mfa_age = None),
        with(|traits| traits.mfa_age = Some(4000)),
        with(|traits| traits.source_vpce = None),
        with(|traits| traits.via_service = Some("s3.eu-west-1.amazonaws.com".into())),
        Situation { pairs: &CONTEXT[..1], ..open() },
        Situation { pairs: &CONTEXT[1..], ..open() },
        Situation { same: Some(false), ..open() },
        Situation { body: json!({ "PendingWindowInDays": 7 }), ..open() },
        Situation { body: json!({ "BypassPolicyLockoutSafetyCheck": true }), ..open() },
    ]
}

/// What the key's policy decides for everybody, up to the first decision that is not as before.
fn decisions(ground: &Ground, before: Option<&[bool]>) -> Vec<bool> {
    let (mut decided, actions) = (Vec::new(), policy::actions().collect::<Vec<_>>());
    let world = ground.front.world();
    let key = world.keys.iter().find(|key| key.arn == ground.key).unwrap();
    for situation in situations() {
        let context = situation.pairs.iter().map(|(n, v)| (n.to_string(), v.to_string())).collect();
        for (_, login) in &ground.logins {
            let caller = Caller {
                principal: world.principals[&login.access_key].arn.clone(),
                account: ACCOUNT.to_owned(),
                region: REGION.to_owned(),
                request_id: String::new(),
                traits: situation.traits.clone(),
            };
            for action in &actions {
                let (action, body) = (action.trim_start_matches("kms:"), &situation.body);
                let answer = world.authorise(&caller, action, key, body, &context, situation.same);
                decided.push(answer.is_ok());
                if before.is_some_and(|before| before[decided.len() - 1] != answer.is_ok()) {
                    return decided;
                }
            }
        }
    }
    decided
}

#[tokio::test]
async fn every_statement_of_the_key_policy_is_needed() {
    let (ground, policies) = Ground::bare(|builder| {
        builder
            .vpc_endpoints(["vpce-0123456789abcdef0"])
            .imported_material(true)
            .break_glass_mfa(true)
    });
    // Only the key policy counts here.
    for principal in ground.front.world().principals.values_mut() {
        principal.policies.clear();
    }
    let whole: Value = serde_json::from_str(&policies.key_policy(&ground.key).unwrap()).unwrap();
    // What an owner may add by mistake: the denials hold all the same.
    let mut with_mistake = whole.clone();
    with_mistake["Statement"].as_array_mut().unwrap().push(json!({
        "Sid": "Mistake", "Effect": "Allow", "Principal": "*", "Action": "kms:*", "Resource": "*",
    }));
    let decide = |policy: &Value, before: Option<&[bool]>| {
        ground.front.world().key(&ground.key).policy = policy.clone();
        decisions(&ground, before)
    };
    let (alone, mistaken) = (decide(&whole, None), decide(&with_mistake, None));
    for (place, statement) in whole["Statement"].as_array().unwrap().iter().enumerate() {
        let without = |policy: &Value| {
            let mut policy = policy.clone();
            policy["Statement"].as_array_mut().unwrap().remove(place);
            policy
        };
        let changes = decide(&without(&whole), Some(&alone)) != alone
            || decide(&without(&with_mistake), Some(&mistaken)) != mistaken;
        assert!(changes, "{} changes nothing", statement["Sid"]);
    }
    // Of an added allowance, what is denied to others stays denied.
    ground.front.world().key(&ground.key).policy = with_mistake;
    for name in ["admin", "auditor", "key-owner", "key-administrator"] {
        for action in ["Encrypt", "Decrypt", "ReEncryptFrom", "ReEncryptTo", "CreateGrant"] {
            assert!(!ground.decides(name, action, &CONTEXT), "{name} {action}");
        }
    }
}
