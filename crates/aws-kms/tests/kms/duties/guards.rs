//! What protects a key from those who have a role, and from everybody else.

use aws_sdk_kms::primitives::Blob;
use kms_front::policy::{self, Keys, Question, Verdict};
use kms_front::request::uuid;
use kms_front::{ACCOUNT, Caller, State, Traits};
use serde_json::Value;
use waxseal::domain::duties::Role;
use waxseal::{Aad, ErrorKind};
use waxseal_testing::kms_front;

use super::ground::*;

#[tokio::test]
async fn nobody_locks_himself_out_and_the_root_user_recovers() {
    let (ground, policies) = Ground::bare(|builder| builder);
    let policy = policies.key_policy(&ground.key).unwrap();
    // The account's administrator may set any policy now. This one would lock him out.
    let refused = ground.set_policy("admin", &policy).await.unwrap_err();
    assert!(refused.contains("MalformedPolicyDocument"), "{refused}");
    assert!(refused.contains("will not allow you to update the key policy"), "{refused}");
    ground.set_policy("key-owner", &policy).await.unwrap();
    ground.set_policy("key-owner", &policy).await.unwrap();

    let other_owner = holders().key_owners([arn("admin-2")]);
    ground.front.principal("role/admin-2", vec![]);
    let other = builder(&config(&[&ground.key]), &other_owner).build().unwrap();
    let other = other.key_policy(&ground.key).unwrap();
    let refused = ground.set_policy("key-owner", &other).await.unwrap_err();
    assert!(refused.contains("will not allow you"), "{refused}");
    let bypass = ground.client("key-owner").put_key_policy().key_id(&ground.key).policy(&other);
    let bypass = bypass.bypass_policy_lockout_safety_check(true).send().await;
    assert_eq!(code(bypass), DENIED);

    // The owner's role is deleted. Nobody else who may attach policies can get in, except the root
    // user.
    ground.front.world().principals.remove(&ground.login("key-owner").access_key);
    let refused = ground.set_policy("admin", &policy).await.unwrap_err();
    assert!(refused.contains(DENIED), "{refused}");
    ground.set_policy("root", &other).await.unwrap();

    let (ground, policies) = Ground::bare(|builder| builder.root_recovery(false));
    ground.set_policy("key-owner", &policies.key_policy(&ground.key).unwrap()).await.unwrap();
    assert_eq!(ground.allowed("root", &CONTEXT), set(&[]));
}

#[tokio::test]
async fn a_grant_of_before_is_worth_nothing() {
    let (ground, policies) = Ground::bare(|builder| builder);
    let stranger = ground.front.principal("role/stranger", vec![]);
    let grant = ground.client("admin").create_grant().key_id(&ground.key);
    let grant = grant.grantee_principal(arn("stranger")).operations("Decrypt".into());
    let grant = grant.operations("Encrypt".into()).send().await.unwrap();
    let encrypt = || {
        let request = ground.front.client(REGION, &stranger).encrypt().key_id(&ground.key);
        let request = request.plaintext(Blob::new([7; 32]));
        let request = request.encryption_context("waxseal:domain", "orders");
        request.encryption_context("tenant", "alice").send()
    };
    assert_eq!(code(encrypt().await), "ok", "the control");
    ground.set_policy("key-owner", &policies.key_policy(&ground.key).unwrap()).await.unwrap();
    assert_eq!(code(encrypt().await), DENIED);
    let listed = ground.client("auditor").list_grants().key_id(&ground.key).send().await.unwrap();
    assert_eq!(listed.grants.unwrap().len(), 1, "the auditor sees it");
    let revoke = ground.client("key-owner").revoke_grant().key_id(&ground.key);
    assert_eq!(code(revoke.grant_id(grant.grant_id.unwrap()).send().await), "ok");
}

#[tokio::test]
async fn break_glass_is_disabled_until_somebody_else_enables_it() {
    let ground = Ground::with(|builder| builder.break_glass_mfa(true)).await;
    let may = |change: &dyn Fn(&mut Traits)| {
        let session = Traits { has_session: true, ..Traits::default() };
        ground.front.with_traits(ground.login("break-glass"), |traits| {
            *traits = session.clone();
            change(traits);
        });
        ground.decides("break-glass", "Decrypt", &CONTEXT)
    };
    let tag = |traits: &mut Traits, value: &str| {
        traits.tags.insert(TAG.into(), value.into());
    };
    assert!(!may(&|_| {}), "as it is");
    assert!(!may(&|traits| traits.mfa_age = Some(10)), "a second factor alone");
    assert!(!may(&|traits| tag(traits, "orders")), "the tag alone");
    assert!(
        !may(&|traits| {
            tag(traits, "orders");
            traits.has_session = false;
        }),
        "long-term credentials"
    );
    assert!(
        !may(&|traits| {
            tag(traits, "orders");
            traits.mfa_age = Some(3601);
        }),
        "an old second factor"
    );
    assert!(
        !may(&|traits| {
            tag(traits, "billing");
            traits.mfa_age = Some(10);
        }),
        "the tag of another domain"
    );
    assert!(may(&|traits| {
        tag(traits, "orders");
        traits.mfa_age = Some(3600);
    }));
    assert_eq!(ground.allowed("break-glass", &CONTEXT), set(&[&["DescribeKey", "Decrypt"]]));

    let other = Ground::with(|builder| builder.break_glass_tag("glass")).await;
    other.front.with_traits(other.login("break-glass"), |traits| {
        traits.tags.insert("glass".into(), "orders".into());
    });
    assert!(other.decides("break-glass", "Decrypt", &CONTEXT));
}

#[tokio::test]
async fn keys_are_used_through_the_vpc_endpoint_and_directly() {
    let ground = Ground::with(|builder| builder.vpc_endpoints(["vpce-0123456789abcdef0"])).await;
    let at = |name: &str, endpoint: Option<&str>, via: Option<&str>| {
        ground.front.with_traits(ground.login(name), |traits| {
            traits.source_vpce = endpoint.map(str::to_owned);
            traits.via_service = via.map(str::to_owned);
        });
    };
    for (endpoint, via, may) in [
        (Some("vpce-0123456789abcdef0"), None, true),
        (Some("vpce-0fedcba9876543210"), None, false),
        (None, None, false),
        (Some("vpce-0123456789abcdef0"), Some("s3.eu-west-1.amazonaws.com"), false),
    ] {
        at("reader", endpoint, via);
        at("writer", endpoint, via);
        at("rewrapper", endpoint, via);
        for (name, action) in
            [("reader", "Decrypt"), ("writer", "Encrypt"), ("rewrapper", "ReEncryptFrom")]
        {
            assert_eq!(ground.decides(name, action, &CONTEXT), may, "{name} {endpoint:?} {via:?}");
        }
    }
    // From anywhere, so that a wrong network setting locks nobody out.
    assert!(ground.decides("key-owner", "PutKeyPolicy", &[]));
    assert!(ground.decides("key-administrator", "DisableKey", &[]));
}

#[tokio::test]
async fn a_deletion_waits_can_be_cancelled_and_is_final_in_the_end() {
    let ground = Ground::with(|builder| builder.waiting_period_days(14)).await;
    let (owner, key) = (ground.client("key-owner"), &ground.key);
    let schedule = async |days: Option<i32>| {
        let request = owner.schedule_key_deletion().key_id(key).set_pending_window_in_days(days);
        code(request.send().await)
    };
    for days in [7, 13] {
        assert_eq!(schedule(Some(days)).await, DENIED, "{days}");
    }
    assert_eq!(schedule(Some(6)).await, DENIED, "KMS would not take it either");
    assert_eq!(schedule(Some(14)).await, "ok");
    let administrator = ground.client("key-administrator");
    assert_eq!(code(administrator.cancel_key_deletion().key_id(key).send().await), "ok");
    assert_eq!(ground.front.world().key(key).state, State::Disabled, "and enabled by hand");
    assert_eq!(code(administrator.enable_key().key_id(key).send().await), "ok");
    assert_eq!(schedule(None).await, "ok", "30 days");
    let decrypt = || async {
        let domain = ground.domain("writer", "orders", config(&[key])).await;
        let context = domain.context([("tenant", "alice")]).unwrap();
        domain.envelope().encrypt(&context, Aad::empty(), b"x").await.unwrap_err().kind()
    };
    assert_eq!(decrypt().await, ErrorKind::Denied);
    let description = owner.describe_key().key_id(key).send().await.unwrap().key_metadata.unwrap();
    assert!(description.deletion_date.is_some());
    ground.front.world().ahead = std::time::Duration::from_secs(31 * 24 * 3600);
    // Signatures are dated; a client would be told that its clock is wrong.
    let caller = Caller {
        principal: arn("key-owner"),
        account: ACCOUNT.into(),
        region: REGION.into(),
        request_id: uuid(),
        traits: Traits::default(),
    };
    let gone = ground.front.world().find(&caller, key).err().unwrap();
    assert_eq!(gone.code, "NotFoundException");
}

#[tokio::test]
async fn the_service_control_policy_guards_deletion_whatever_the_key_policy_says() {
    let (ground, policies) = Ground::bare(|builder| builder);
    let key = &ground.key;
    let schedule = async |by: &str, days: i32| {
        let kms = ground.client(by);
        let answer =
            code(kms.schedule_key_deletion().key_id(key).pending_window_in_days(days).send().await);
        let _ = ground.client("admin").cancel_key_deletion().key_id(key).send().await;
        let _ = ground.client("admin").enable_key().key_id(key).send().await;
        answer
    };
    assert_eq!(schedule("admin", 7).await, "ok", "the control");
    let other = ground.front.create_key(REGION);
    ground.front.attach_service_control_policy(&policies.service_control_policy());
    assert_eq!(schedule("admin", 30).await, DENIED);
    assert_eq!(schedule("root", 30).await, DENIED);
    assert_eq!(schedule("key-owner", 29).await, DENIED);
    assert_eq!(schedule("key-owner", 30).await, "ok");
    let admin = ground.client("admin");
    assert_eq!(code(admin.schedule_key_deletion().key_id(other).send().await), "ok", "not its key");

    // Who enables break-glass. The front has no IAM, so its evaluation alone is asked.
    let guard: Value = serde_json::from_str(&policies.service_control_policy()).unwrap();
    let of_owner: Value = serde_json::from_str(&policies.identity_policy(Role::KeyOwner)).unwrap();
    let asks = |policy: &Value, who: &str, action: &str, tags: &[&str], on: &str| {
        let mut keys = Keys::default();
        keys.set("aws:PrincipalArn", arn(who));
        tags.iter().for_each(|tag| keys.set("aws:TagKeys", tag));
        let (context, on) = (Default::default(), arn(on));
        let principal = &arn(who);
        let question = Question {
            principal,
            account: ACCOUNT,
            action,
            resource: &on,
            context: &context,
            keys: &keys,
        };
        policy::evaluate(policy, &question)
    };
    let (both, other) = (["team", TAG], ["team"]);
    for action in ["iam:TagRole", "iam:UntagRole", "sts:TagSession"] {
        let guards = |who, tags: &[&str], on| asks(&guard, who, action, tags, on);
        assert_eq!(guards("break-glass", &both, "break-glass"), Verdict::Denied);
        assert_eq!(guards("admin", &[TAG], "break-glass"), Verdict::Denied);
        assert_eq!(guards("key-owner", &[TAG], "break-glass"), Verdict::Silent);
        assert_eq!(guards("admin", &other, "break-glass"), Verdict::Silent);
        assert_eq!(guards("admin", &both, "shop"), Verdict::Silent);

        let allows = |tags: &[&str], on| asks(&of_owner, "key-owner", action, tags, on);
        let may = if action == "sts:TagSession" { Verdict::Silent } else { Verdict::Allowed };
        assert_eq!(allows(&[TAG], "break-glass"), may, "{action}");
        assert_eq!(allows(&both, "break-glass"), Verdict::Silent);
        assert_eq!(allows(&[TAG], "key-owner"), Verdict::Silent);
    }
}

#[tokio::test]
async fn imported_material_is_imported_by_administrators_and_deleted_by_owners() {
    let imports = ["GetParametersForImport", "ImportKeyMaterial"];
    for (imported, by_owner) in [(false, false), (true, true)] {
        let ground = Ground::with(|builder| builder.imported_material(imported)).await;
        for (name, _) in &ground.logins {
            let may = imported && *name == "key-administrator";
            for action in imports {
                assert_eq!(ground.decides(name, action, &[]), may, "{name} {action}");
            }
            let deletes = by_owner && *name == "key-owner";
            assert_eq!(ground.decides(name, "DeleteImportedKeyMaterial", &[]), deletes, "{name}");
        }
    }
}
