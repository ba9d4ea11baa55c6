//! What each role may do, and may not.

use aws_sdk_kms::primitives::Blob;
use kms_front::policy;
use kms_front::{KmsFront, State};
use serde_json::{Value, json};
use waxseal::domain::duties::Role;
use waxseal::domain::{Branches, DomainConfig, Domains, Schemes};
use waxseal::store::RewrapOptions;
use waxseal::{Aad, DekOrigin, ErrorKind};
use waxseal_aws_kms::AwsKmsKek;
use waxseal_testing::kms_front;

use super::ground::*;

#[tokio::test]
async fn of_all_actions_of_the_service_each_role_has_its_own() {
    let ground = Ground::new().await;
    let operate =
        ["CancelKeyDeletion", "DisableKey", "EnableKey", "EnableKeyRotation", "RotateKeyOnDemand"];
    let govern = [
        "CancelKeyDeletion",
        "DisableKeyRotation",
        "PutKeyPolicy",
        "RevokeGrant",
        "ScheduleKeyDeletion",
    ];
    // The auditor's two lists are of the account, and need no key.
    let expected = [
        ("key-administrator", set(&[&LOOK, &operate])),
        ("key-owner", set(&[&LOOK, &govern])),
        ("writer", set(&[&["DescribeKey", "Encrypt"]])),
        ("reader", set(&[&["DescribeKey", "Decrypt"]])),
        ("rewrapper", set(&[&["DescribeKey", "ReEncryptFrom", "ReEncryptTo"]])),
        ("auditor", set(&[&LOOK])),
        ("break-glass", set(&[&["DescribeKey"]])),
        ("service", set(&[&["DescribeKey", "Encrypt", "Decrypt"]])),
        ("admin", set(&[])),
        ("root", set(&[&["DescribeKey", "GetKeyPolicy", "PutKeyPolicy"]])),
    ];
    for (name, actions) in &expected {
        assert_eq!(ground.allowed(name, &CONTEXT), *actions, "{name}");
    }
    // Without the pairs of the domain nothing is left that has a context.
    for context in [
        &[("waxseal:domain", "billing"), ("tenant", "alice")][..],
        &[("tenant", "alice")],
        &[("waxseal:domain", "orders")],
        &[],
    ] {
        for (name, actions) in &expected {
            let with_context = ["Encrypt", "Decrypt", "ReEncryptFrom", "ReEncryptTo"];
            let left = actions.iter().filter(|action| !with_context.contains(&action.as_str()));
            assert_eq!(
                ground.allowed(name, context),
                left.cloned().collect(),
                "{name} {context:?}"
            );
        }
    }
    // The control: under the default key policy the account's administrator may do everything.
    let (bare, _) = Ground::bare(|builder| builder);
    assert_eq!(bare.allowed("admin", &[]).len(), policy::actions().count());
    assert!(bare.decides("writer", "Encrypt", &CONTEXT));
    assert!(!bare.decides("writer", "Decrypt", &CONTEXT), "its identity policy alone");
}

#[tokio::test]
async fn the_requests_themselves_are_answered_so() {
    let ground = Ground::new().await;
    let key = &ground.key;
    let encrypted = ground.client("service").encrypt().key_id(key).plaintext(Blob::new([7; 32]));
    let encrypted = encrypted.encryption_context("waxseal:domain", "orders");
    let encrypted = encrypted.encryption_context("tenant", "alice").send().await.unwrap();
    let blob = encrypted.ciphertext_blob.unwrap();
    for (name, _) in &ground.logins {
        let kms = ground.client(name);
        let decrypts = kms.decrypt().key_id(key).ciphertext_blob(blob.clone());
        let decrypts = decrypts.encryption_context("waxseal:domain", "orders");
        let decrypts = decrypts.encryption_context("tenant", "alice").send().await;
        assert_eq!(decrypts.is_ok(), ["reader", "service"].contains(name), "{name} decrypts");
        let is = |names: &[&str]| names.contains(name);
        for (what, answer, may) in [
            (
                "rotates",
                code(kms.rotate_key_on_demand().key_id(key).send().await),
                is(&["key-administrator"]),
            ),
            (
                "disables",
                code(kms.disable_key().key_id(key).send().await),
                is(&["key-administrator"]),
            ),
            (
                "stops rotation",
                code(kms.disable_key_rotation().key_id(key).send().await),
                is(&["key-owner"]),
            ),
            (
                "lists grants",
                code(kms.list_grants().key_id(key).send().await),
                is(&["key-administrator", "key-owner", "auditor"]),
            ),
            ("lists keys", code(kms.list_keys().send().await), is(&["auditor", "admin"])),
            (
                "grants",
                code(
                    kms.create_grant()
                        .key_id(key)
                        .grantee_principal(arn("reader"))
                        .operations("Decrypt".into())
                        .send()
                        .await,
                ),
                false,
            ),
            (
                "names",
                code(kms.create_alias().target_key_id(key).alias_name("alias/x").send().await),
                false,
            ),
            ("imports", code(kms.delete_imported_key_material().key_id(key).send().await), false),
        ] {
            assert_eq!(answer == "ok", may, "{name} {what}: {answer}");
            assert!(may || answer == DENIED, "{name} {what}: {answer}");
        }
        ground.front.world().key(key).state = State::Enabled;
    }
}

#[tokio::test]
async fn a_domain_is_written_read_and_rewrapped_by_those_who_have_the_roles() {
    let ground = Ground::new().await;
    let config = || config(&[&ground.key]);
    let writer = ground.domain("writer", "orders", config()).await;
    let context = writer.context([("tenant", "alice")]).unwrap();
    let sealed = writer.envelope().encrypt(&context, Aad::empty(), b"cake").await.unwrap();

    let reader = ground.domain("reader", "orders", config()).await;
    assert_eq!(
        &*reader.envelope().decrypt(&context, Aad::empty(), &sealed).await.unwrap(),
        b"cake"
    );
    let refused = reader.envelope().encrypt(&context, Aad::empty(), b"cake").await;
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Denied);
    for name in ["key-administrator", "key-owner", "auditor", "break-glass", "rewrapper", "admin"] {
        let domain = ground.domain(name, "orders", config()).await;
        let opened = domain.envelope().decrypt(&context, Aad::empty(), &sealed).await;
        assert_eq!(opened.unwrap_err().kind(), ErrorKind::Denied, "{name}");
        let written = domain.envelope().encrypt(&context, Aad::empty(), b"cake").await;
        assert_eq!(written.unwrap_err().kind(), ErrorKind::Denied, "{name}");
    }
    // A process that has another domain in its configuration, under the same key.
    let billing = ground.domain("service", "billing", config()).await;
    let of_billing = billing.context([("tenant", "alice")]).unwrap();
    let written = billing.envelope().encrypt(&of_billing, Aad::empty(), b"cake").await;
    assert_eq!(written.unwrap_err().kind(), ErrorKind::Denied);

    ground.front.world().rotate(&ground.key, true);
    let (decrypts, rewrapper) =
        (ground.front.count("Decrypt"), ground.domain("rewrapper", "orders", config()).await);
    let rewrapped = rewrapper.envelope().rewrap_unverified(&context, &sealed).await.unwrap();
    assert_eq!(ground.front.count("Decrypt"), decrypts, "it sees no DEK");
    let fresh = ground.domain("reader", "orders", config()).await;
    let opened = fresh.envelope().decrypt(&context, Aad::empty(), &rewrapped).await.unwrap();
    assert_eq!(&*opened, b"cake");
}

#[tokio::test]
async fn deks_that_the_service_makes_need_their_own_action() {
    let front = KmsFront::start();
    let key = front.create_key(REGION);
    let made_there = config(&[&key]).dek_origin(DekOrigin::KeyService);
    let policies = builder(&made_there, &holders()).build().unwrap();
    let document: Value = serde_json::from_str(&policies.identity_policy(Role::Writer)).unwrap();
    let login = front.principal("role/writer", vec![document]);
    for (config, may) in [(made_there, true), (config(&[&key]), false)] {
        let client = front.client(REGION, &login);
        let schemes = Schemes::default().kek("aws-kms", move |uri: String| {
            let client = client.clone();
            async move { AwsKmsKek::from_config(&uri.parse()?).client(client).build().await }
        });
        let domains = Domains::builder().schemes(schemes).domain("orders", config);
        let orders = domains.build().await.unwrap().domain("orders").unwrap();
        let context = orders.context([("tenant", "alice")]).unwrap();
        assert_eq!(orders.envelope().encrypt(&context, Aad::empty(), b"x").await.is_ok(), may);
    }
}

#[tokio::test]
async fn branch_keys_are_wrapped_and_no_other_key() {
    let ground = Ground::new().await;
    let branches = || Branches::per(["tenant"]).name("shop");
    let self_contained = config(&[&ground.key]).branches(branches().self_contained());
    let policies = builder(&self_contained, &holders()).build().unwrap();
    ground.set_policy("key-owner", &policies.key_policy(&ground.key).unwrap()).await.unwrap();
    let writer = ground.domain("writer", "orders", self_contained.clone()).await;
    let context = writer.context([("tenant", "alice")]).unwrap();
    let sealed = writer.envelope().encrypt(&context, Aad::empty(), b"cake").await.unwrap();
    let reader = ground.domain("reader", "orders", self_contained.clone()).await;
    assert_eq!(
        &*reader.envelope().decrypt(&context, Aad::empty(), &sealed).await.unwrap(),
        b"cake"
    );
    // A DEK, and a branch key of another name.
    let plain = ground.domain("writer", "orders", config(&[&ground.key])).await;
    let other = config(&[&ground.key]).branches(Branches::per(["tenant"]).self_contained());
    let other = ground.domain("writer", "orders", other).await;
    for domain in [plain, other] {
        let written = domain.envelope().encrypt(&context, Aad::empty(), b"cake").await;
        assert_eq!(written.unwrap_err().kind(), ErrorKind::Denied);
    }

    // Shared branch keys: a writer or rewrapper of them reads too.
    let shared = config(&[&ground.key]).branches(branches()).store("memory:keys");
    let all = holders().writers([arn("service")]).rewrappers([arn("service")]);
    let policies = builder(&shared, &all).build().unwrap();
    ground.set_policy("key-owner", &policies.key_policy(&ground.key).unwrap()).await.unwrap();
    let service = ground.domain("service", "orders", shared).await;
    let context = service.context([("tenant", "bob")]).unwrap();
    let sealed = service.envelope().encrypt(&context, Aad::empty(), b"cake").await.unwrap();
    ground.front.world().rotate(&ground.key, true);
    let branches = service.branches().unwrap();
    let done = branches.rewrap_branch_keys(RewrapOptions::default(), |_| {}).await.unwrap();
    assert_eq!((done.failed, done.unknown), (0, 0));
    assert_eq!(
        &*service.envelope().decrypt(&context, Aad::empty(), &sealed).await.unwrap(),
        b"cake"
    );
}

#[tokio::test]
async fn a_rewrap_leads_to_keys_of_the_domain_only() {
    let front = KmsFront::start();
    let (new, former, foreign) =
        (front.create_key(REGION), front.create_key(REGION), front.create_key(REGION));
    let moving = DomainConfig::default()
        .wrap_with(format!("aws-kms://{new}?former-keys={former}"))
        .must_have(["tenant"]);
    let policies = builder(&moving, &holders()).build().unwrap();
    assert_eq!(policies.keys().collect::<Vec<_>>(), [&new, &former]);
    let identity = |role| serde_json::from_str::<Value>(&policies.identity_policy(role)).unwrap();
    let owner = front.principal("role/key-owner", vec![identity(Role::KeyOwner)]);
    // Somebody attached more to it than it should have.
    let everything = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Action": "kms:*", "Resource": "*" }] });
    let rewrapper =
        front.principal("role/rewrapper", vec![identity(Role::Rewrapper), everything.clone()]);
    let writer = front.principal("role/writer", vec![identity(Role::Writer), everything]);
    for name in ["key-administrator", "reader", "service", "auditor", "break-glass"] {
        front.principal(&format!("role/{name}"), vec![]);
    }
    let encrypt = |key: &str| {
        let request = front.client(REGION, &writer).encrypt().key_id(key);
        let request = request.plaintext(Blob::new([7; 32]));
        let request = request.encryption_context("waxseal:domain", "orders");
        request.encryption_context("tenant", "alice").send()
    };
    let blob = encrypt(&former).await.unwrap().ciphertext_blob.unwrap();
    let elsewhere = encrypt(&foreign).await.unwrap().ciphertext_blob.unwrap();
    for key in [&new, &former] {
        let policy = policies.key_policy(key).unwrap();
        let put = front.client(REGION, &owner).put_key_policy().key_id(key).policy(policy);
        put.send().await.unwrap();
    }
    assert_eq!(code(encrypt(&new).await), "ok");
    assert_eq!(code(encrypt(&former).await), DENIED, "it only unwraps");
    let rewrap = async |from: &str, to: &str, blob: &Blob| {
        let request = front.client(REGION, &rewrapper).re_encrypt().ciphertext_blob(blob.clone());
        let request = request.source_key_id(from).destination_key_id(to);
        let request = request.source_encryption_context("waxseal:domain", "orders");
        let request = request.source_encryption_context("tenant", "alice");
        let request = request.destination_encryption_context("waxseal:domain", "orders");
        code(request.destination_encryption_context("tenant", "alice").send().await)
    };
    assert_eq!(rewrap(&former, &new, &blob).await, "ok");
    assert_eq!(rewrap(&former, &foreign, &blob).await, DENIED, "where he could decrypt it");
    assert_eq!(rewrap(&foreign, &foreign, &elsewhere).await, DENIED);
    assert_eq!(rewrap(&former, &former, &blob).await, DENIED, "it only unwraps");
}
