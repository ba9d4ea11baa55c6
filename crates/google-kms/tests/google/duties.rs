//! The policies that are generated for a domain, applied to the stand-in: what each holder can and
//! cannot do.

use serde_json::{Value, json};
use waxseal::domain::DomainConfig;
use waxseal::domain::duties::{Duties, Holders, Role};
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal_google_kms::GoogleKmsKek;
use waxseal_google_kms::duties::GooglePolicies;
use waxseal_testing::google::{Protection, RING, Source};
use waxseal_testing::support::{a_dek, context};

use crate::Ground;

fn holders() -> Holders {
    Holders::default()
        .key_owners(["user:owner"])
        .key_administrators(["user:administrator"])
        .writers(["serviceAccount:writer"])
        .readers(["serviceAccount:reader"])
        .auditors(["user:auditor"])
        .break_glass(["user:glass"])
}

fn key(id: &str) -> String {
    format!("{RING}/cryptoKeys/{id}")
}

fn config() -> DomainConfig {
    DomainConfig::default().wrap_with(format!(
        "google-kms://{}?former-keys={}",
        key("orders"),
        key("old")
    ))
}

fn policies(holders: &Holders) -> Result<GooglePolicies, waxseal::Error> {
    let duties = Duties::new("orders", &config(), holders)?;
    GooglePolicies::builder(&duties).rewrappers_see_deks(true).build()
}

/// The keys, with the policies and roles in force that the page says.
fn ground(policies: &GooglePolicies) -> Ground {
    let ground = Ground::software();
    ground.front.create_key("old", Protection::Software);
    for role in [Role::KeyAdministrator, Role::KeyOwner] {
        let name = format!("projects/orders-prod/roles/{}", policies.role_id(role).unwrap());
        let definition = policies.role_definition(role).unwrap();
        ground.front.world().define_role(&name, &definition);
    }
    for name in policies.keys() {
        put(&ground, name, &policies.key_policy(name).unwrap());
    }
    ground
}

fn put(ground: &Ground, key: &str, policy: &str) {
    let policy: Value = serde_json::from_str(policy).unwrap();
    ground.front.world().set_policy(key, &policy).unwrap();
}

/// What the account can do with a key: wrap, unwrap `wrapped`, look.
async fn uses(ground: &Ground, key: &str, account: &str, wrapped: &[u8]) -> [bool; 3] {
    ground.front.set_source(Source::Gives { account: account.to_owned(), seconds: 3600 });
    let kek: GoogleKmsKek = ground.builder(key).build().await.unwrap();
    let entry = waxseal::WrappedDek::new(kek.id().clone(), wrapped).unwrap();
    let alice = context("alice");
    let results = [
        kek.wrap(&alice, &a_dek()).await.map(|_| ()),
        kek.unwrap(&alice, &entry).await.map(|_| ()),
        kek.read_key().await.map(|_| ()),
    ];
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert_eq!(error.class(), KekErrorClass::Denied, "{account}: {error}");
    }
    results.map(|result| result.is_ok())
}

/// Asks as an administrator does.
async fn administers(ground: &Ground, account: &str, path: &str, body: Value) -> bool {
    let token = ground.front.token(account);
    let url = format!("{}/v1/{}{path}", ground.front.url(), ground.key);
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let method =
        if path.contains("updateMask") { reqwest::Method::PATCH } else { reqwest::Method::POST };
    let request = client.request(method, url).bearer_auth(token);
    let request = request.header("content-type", "application/json").body(body.to_string());
    let status = request.send().await.unwrap().status().as_u16();
    assert!([200, 403].contains(&status), "{account} {path}: {status}");
    status == 200
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_holder_can_do_its_duty_and_nothing_else() {
    let policies = policies(&holders().rewrappers(["serviceAccount:mover"])).unwrap();
    assert_eq!(policies.keys().collect::<Vec<_>>(), [key("orders"), key("old")]);
    let ground = ground(&policies);
    let wrapped = {
        let both = "roles/cloudkms.cryptoKeyEncrypterDecrypter";
        ground.front.world().grant(RING, both, "maker");
        ground.front.set_source(Source::Gives { account: "maker".to_owned(), seconds: 3600 });
        let wrap = async |name: &str| {
            let kek = ground.builder(name).build().await.unwrap();
            kek.wrap(&context("alice"), &a_dek()).await.unwrap().wrapped().to_vec()
        };
        [wrap(&key("orders")).await, wrap(&key("old")).await]
    };
    for (account, own, former) in [
        ("writer", [true, false, false], [false, false, false]),
        ("reader", [false, true, false], [false, true, false]),
        ("mover", [true, true, false], [false, true, false]),
        ("auditor", [false, false, true], [false, false, true]),
        ("administrator", [false, false, true], [false, false, true]),
        ("owner", [false, false, true], [false, false, true]),
        ("glass", [false, false, false], [false, false, false]),
        ("nobody", [false, false, false], [false, false, false]),
    ] {
        let seen = uses(&ground, &key("orders"), account, &wrapped[0]).await;
        assert_eq!(seen, own, "{account}: wrap, unwrap, look");
        let seen = uses(&ground, &key("old"), account, &wrapped[1]).await;
        assert_eq!(seen, former, "{account}, of the former key");
    }
    let policy: Value = serde_json::from_str(&policies.key_policy(&ground.key).unwrap()).unwrap();
    let version = |path: &str| format!("/cryptoKeyVersions/1{path}");
    for (path, body, by_administrator, by_owner) in [
        ("/cryptoKeyVersions".to_owned(), json!({}), true, false),
        (":updatePrimaryVersion".to_owned(), json!({ "cryptoKeyVersionId": "2" }), true, false),
        (version("?updateMask=state"), json!({ "state": "DISABLED" }), true, false),
        (version(":destroy"), json!({}), false, true),
        (version(":restore"), json!({}), false, true),
        (":setIamPolicy".to_owned(), json!({ "policy": policy }), false, true),
    ] {
        let seen = [
            administers(&ground, "administrator", &path, body.clone()).await,
            administers(&ground, "owner", &path, body.clone()).await,
        ];
        assert_eq!(seen, [by_administrator, by_owner], "{path}");
        for account in ["writer", "reader", "mover", "auditor", "glass"] {
            assert!(!administers(&ground, account, &path, body.clone()).await, "{account} {path}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn break_glass_decrypts_while_it_is_enabled_and_not_after_its_time() {
    let policies = policies(&holders()).unwrap();
    let ground = ground(&policies);
    ground.front.world().grant(RING, "roles/cloudkms.cryptoKeyEncrypter", "maker");
    ground.front.set_source(Source::Gives { account: "maker".to_owned(), seconds: 3600 });
    let kek = ground.kek().await;
    let wrapped = kek.wrap(&context("alice"), &a_dek()).await.unwrap().wrapped().to_vec();
    let glass = async || uses(&ground, &ground.key, "glass", &wrapped).await;
    assert_eq!(glass().await, [false; 3]);
    let enabled = policies.enabled_break_glass(&ground.key, "2999-01-01T00:00:00Z").unwrap();
    put(&ground, &ground.key, &enabled);
    assert_eq!(glass().await, [false, true, false]);
    let over = policies.enabled_break_glass(&ground.key, "2020-01-01T00:00:00Z").unwrap();
    put(&ground, &ground.key, &over);
    assert_eq!(glass().await, [false; 3]);
    for until in ["", "tomorrow", "2999-01-01T00:00:00+01:00", "2999-01-01T00:00:00Z\")||true"] {
        assert!(policies.enabled_break_glass(&ground.key, until).is_err(), "{until}");
    }
    assert!(policies.enabled_break_glass("another", "2999-01-01T00:00:00Z").is_err());
}

#[test]
fn what_would_say_more_than_it_seems_is_refused() {
    for member in [
        "allUsers",
        "allAuthenticatedUsers",
        "domain:example.com",
        "ada@example.com",
        "user:",
        "user:a b",
        "user:ada\",\"allUsers",
        "deleted:user:ada",
        "projectOwner:orders-prod",
    ] {
        let error = policies(&holders().auditors([member])).unwrap_err().to_string();
        assert!(error.contains("is not a member"), "{member}: {error}");
    }
    let refused = |holders: &Holders, config: &DomainConfig| {
        let duties = Duties::new("orders", config, holders).unwrap();
        GooglePolicies::builder(&duties).build().unwrap_err().to_string()
    };
    let movers = holders().rewrappers(["serviceAccount:mover"]);
    assert!(refused(&movers, &config()).contains("rewrappers_see_deks"));
    let ownerless = Holders::default().writers(["serviceAccount:writer"]);
    assert!(refused(&ownerless, &config()).contains("key_owners"));
    let elsewhere = DomainConfig::default().wrap_with("local:/tmp/x?name=x");
    assert!(refused(&holders(), &elsewhere).contains("no key in Cloud KMS"));
    let glassless = Holders::default().key_owners(["user:owner"]);
    let policies = policies(&glassless).unwrap();
    assert!(policies.enabled_break_glass(&key("orders"), "2999-01-01T00:00:00Z").is_err());
    assert!(policies.key_policy("another").is_err());
    assert_eq!(policies.role_id(Role::Reader), None);
    assert_eq!(policies.role_definition(Role::Reader), None);
}
