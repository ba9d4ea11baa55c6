//! Which names and domains are refused before they reach a document, and which get a document.

use kms_front::ACCOUNT;
use kms_front::policy;
use proptest::prelude::{prop_assert, prop_assert_eq, proptest};
use serde_json::Value;
use waxseal::domain::duties::{Duties, Holders, Role};
use waxseal::domain::{Branches, DomainConfig};
use waxseal::{DekOrigin, ErrorKind};
use waxseal_aws_kms::duties::{AwsPolicies, AwsPoliciesBuilder};
use waxseal_testing::kms_front;

use super::ground::*;

#[test]
fn what_the_generator_cannot_make_safe_is_refused_with_its_reason() {
    let key = format!("arn:aws:kms:{REGION}:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab");
    let other_account = key.replace(ACCOUNT, "444455556666");
    let refused = |config: &DomainConfig, holders: &Holders, why: &str| {
        let duties = Duties::new("orders", config, holders).unwrap();
        let error = AwsPolicies::builder(&duties).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(error.to_string().contains(why), "{error}");
    };
    let plain = || DomainConfig::default();
    for (uri, why) in [
        ("aws-kms://alias/orders?region=eu-west-1".to_owned(), "named by an id or an alias"),
        ("aws-kms://?partition=aws&accounts=111122223333".to_owned(), "one by discovery"),
        (format!("aws-kms://{key}?health-check=try-use"), "waxseal:domain"),
        (format!("aws-kms://{key}?health-check=try-wrap"), "waxseal:domain"),
        ("local:/orders.kek?name=orders".to_owned(), "no KEK in AWS KMS"),
        (format!("aws-kms://{other_account}"), "none is in account 444455556666"),
        (format!("aws-kms://{}", key.replace("arn:aws:", "arn:aws-cn:")), "another partition"),
    ] {
        refused(&plain().wrap_with(uri), &holders(), why);
    }
    let config = || plain().wrap_with(format!("aws-kms://{key}"));
    refused(&config(), &Holders::default(), "key_owners: none");
    for name in ["*", "ada", "arn:aws:iam::111122223333:root", "arn:aws:iam::111122223333:role/*"] {
        refused(&config(), &holders().readers([name]), "not the ARN of an IAM role or user");
    }
    let user = format!("arn:aws:iam::{ACCOUNT}:user/ada");
    refused(&config(), &holders().break_glass([user]), "is not an IAM role");
    let of_sso = arn("aws-reserved/sso.amazonaws.com/eu-west-1/AWSReservedSSO_Night_01234567");
    refused(&config(), &holders().break_glass([of_sso]), "AWS alone may tag");
    let elsewhere = arn("glass").replace(ACCOUNT, "444455556666");
    refused(&config(), &holders().break_glass([elsewhere]), "nobody could enable it");
    // One role by another spelling: it would be owner and reader.
    refused(&config(), &holders().readers([arn("team/Key-Owner")]), "cannot both exist");
    for name in ["a b", "ä", "a\"b", "${aws:username}", "a*", "a?"] {
        refused(&config().must_have([name]), &holders(), "cannot stand in a condition");
        let branches = Branches::default().name(name).self_contained();
        refused(&config().branches(branches), &holders(), "cannot stand in a condition");
    }
    let many: Vec<_> = (0..700).map(|i| arn(&format!("reader-number-{i}"))).collect();
    refused(&config(), &holders().readers(many), "the key policy would have");
    let many: Vec<_> = (0..100).map(|i| arn(&format!("owner-number-{i}"))).collect();
    refused(&config(), &holders().key_owners(many), "the service control policy would have");

    let with = |set: fn(AwsPoliciesBuilder) -> AwsPoliciesBuilder| {
        set(builder(&config(), &holders())).build()
    };
    for (set, option) in [
        (
            (|builder| builder.waiting_period_days(6)) as fn(AwsPoliciesBuilder) -> _,
            "waiting_period_days",
        ),
        (|builder| builder.waiting_period_days(31), "waiting_period_days"),
        (|builder| builder.vpc_endpoints(["vpce-*"]), "vpc_endpoints"),
        (|builder| builder.vpc_endpoints(["0123456789abcdef0"]), "vpc_endpoints"),
        (|builder| builder.break_glass_tag("a b"), "break_glass_tag"),
        (|builder| builder.break_glass_tag(""), "break_glass_tag"),
    ] {
        let error = with(set).unwrap_err().to_string();
        assert!(error.contains(option), "{error}");
    }
    let policies = with(|builder| builder).unwrap();
    assert!(policies.key_policy(&other_account).is_err());
}

#[test]
fn with_several_keks_a_writer_also_wraps_what_another_made() {
    let key = |id: &str| format!("arn:aws:kms:{REGION}:{ACCOUNT}:key/{id}");
    let (first, second) = (key("first"), key("second"));
    for (keys, encrypts) in [(vec![&*first], false), (vec![&*first, &*second], true)] {
        let config = config(&keys).dek_origin(DekOrigin::KeyService);
        let policies = builder(&config, &holders()).build().unwrap();
        let of_writers = policies.identity_policy(Role::Writer);
        assert!(of_writers.contains("\"kms:GenerateDataKey\""), "{of_writers}");
        assert_eq!(of_writers.contains("\"kms:Encrypt\""), encrypts, "{of_writers}");
    }
}

#[test]
fn the_alarm_of_break_glass_has_a_name_and_matches_its_roles() {
    let key = format!("arn:aws:kms:{REGION}:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab");
    let policies = builder(&config(&[&key]), &holders()).build().unwrap();
    assert_eq!(policies.break_glass_alarm(), "waxseal-orders-break-glass");
    let pattern: Value =
        serde_json::from_str(&policies.break_glass_event_pattern().unwrap()).unwrap();
    let issuer = "/$or/0/detail/userIdentity/sessionContext/sessionIssuer/arn/0";
    assert_eq!(pattern.pointer(issuer).unwrap(), &arn("break-glass"));
    assert_eq!(
        pattern.pointer("/$or/1/detail/requestParameters/roleName/0").unwrap(),
        "break-glass"
    );
    let nobody = holders().break_glass([""; 0]);
    let nobody = builder(&config(&[&key]), &nobody).build().unwrap();
    assert_eq!(nobody.break_glass_event_pattern(), None);
    assert!(!nobody.key_policy(&key).unwrap().contains("BreakGlass"));
}

proptest! {
    /// Any text in a name is refused, or is in the documents unchanged.
    #[test]
    fn a_name_never_changes_what_a_document_says(
        names in proptest::collection::vec("[a-zA-Z0-9_.,=+@-]{1,12}", 7),
        written in "[a-z*?$\"\\\\{}\\[\\],: \n\u{e9}\u{202e}]{1,6}",
        place in 0..9usize,
    ) {
        let key = format!("arn:aws:kms:{REGION}:{ACCOUNT}:key/1234abcd-12ab-34cd-56ef-1234567890ab");
        let name = |i: usize| {
            let written = if place == i { written.as_str() } else { "" };
            arn(&format!("{i}{}{written}", names[i]))
        };
        let (domain, pair) = match place {
            7 => (format!("orders{written}"), "tenant".to_owned()),
            8 => ("orders".to_owned(), format!("tenant{written}")),
            _ => ("orders".to_owned(), "tenant".to_owned()),
        };
        let holders = Holders::default()
            .key_owners([name(0)])
            .key_administrators([name(1)])
            .writers([name(2)])
            .readers([name(3)])
            .rewrappers([name(4)])
            .auditors([name(5)])
            .break_glass([name(6)]);
        let config = DomainConfig::default()
            .wrap_with(format!("aws-kms://{key}"))
            .must_have([pair.clone()]);
        let build = || AwsPolicies::builder(&Duties::new(&domain, &config, &holders)?).build();
        let is_safe = |c: char| match place {
            0..=6 => c.is_ascii_alphanumeric() || c == ',',
            7 => c.is_ascii_alphanumeric(),
            _ => c.is_ascii_alphanumeric() || c == ':',
        };
        let Ok(policies) = build() else {
            prop_assert!(!written.chars().all(is_safe), "{written:?} was refused in {place}");
            return Ok(());
        };
        prop_assert!(written.chars().all(is_safe), "{written:?} was accepted in {place}");
        let text = policies.key_policy(&key).unwrap();
        let policy: Value = serde_json::from_str(&text).unwrap();
        policy::check(&policy, policy::Kind::OfAKey).unwrap();
        let statements = policy["Statement"].as_array().unwrap();
        prop_assert_eq!(statements.len(), 20);
        let denials = statements.iter().filter(|statement| statement["Effect"] == "Deny");
        prop_assert_eq!(denials.count(), 10);
        let shown = [format!("\"{domain}\""), format!("\"kms:EncryptionContext:{pair}\"")];
        for shown in shown.into_iter().chain((0..7).map(|i| format!("\"{}\"", name(i)))) {
            prop_assert!(text.contains(&shown), "{shown} is not in {text}");
        }
        for role in Role::ALL {
            let policy = serde_json::from_str(&policies.identity_policy(role)).unwrap();
            policy::check(&policy, policy::Kind::OfAnIdentity).unwrap();
        }
        prop_assert_eq!(build().unwrap().key_policy(&key).unwrap(), text);
    }
}
