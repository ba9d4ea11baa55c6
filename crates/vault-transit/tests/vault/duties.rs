//! The generated ACL policies of a domain on a real server: what each role needs works, and nothing
//! else does.

use std::path::Path;

use openbao::OpenBao;
use proptest::prelude::{prop_assert, prop_assert_eq, proptest};
use serde_json::{Value, json};
use waxseal::domain::duties::{Duties, Holders};
use waxseal::domain::{Branches, Domain, DomainConfig, Domains, Schemes};
use waxseal::{Aad, DekOrigin, ErrorKind};
use waxseal_testing::openbao;
use waxseal_vault_transit::duties::VaultPolicies;
use waxseal_vault_transit::{VaultAuth, VaultTransitKek};

const URI: &str = "vault-transit://vault.example/transit/orders?cluster=test";

fn config() -> DomainConfig {
    DomainConfig::default().wrap_with(URI).must_have(["tenant"])
}

fn holders() -> Holders {
    Holders::default()
        .key_administrators(["administrator"])
        .key_owners(["owner"])
        .writers(["writer", "service"])
        .readers(["reader", "service"])
        .rewrappers(["rewrapper"])
        .auditors(["auditor"])
        .break_glass(["glass"])
}

fn policies(config: &DomainConfig) -> VaultPolicies {
    let duties = Duties::new("orders", config, &holders()).unwrap();
    VaultPolicies::builder(&duties).build().unwrap()
}

struct Ground {
    server: OpenBao,
    client: reqwest::Client,
}

impl Ground {
    async fn new(config: &DomainConfig) -> Self {
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        let ground = Self { server: OpenBao::start().await, client };
        ground.server.create_key("orders", true).await;
        let policies = policies(config);
        for name in policies.names() {
            ground.write(name, &policies.policy(name).unwrap()).await;
        }
        ground
    }

    async fn write(&self, name: &str, policy: &str) {
        self.server.put(&format!("sys/policies/acl/{name}"), json!({ "policy": policy })).await;
    }

    async fn token(&self, policies: &[&str]) -> String {
        self.server.token(json!({ "policies": policies, "ttl": "1h" })).await
    }

    async fn ask(&self, token: &str, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let url = format!("{}/v1/{path}", self.server.address());
        let request = self.client.request(method, url).header("X-Vault-Token", token);
        let request = if body.is_null() { request } else { request.json(body) };
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or(Value::Null))
    }

    /// Whether the policies allow it, regardless of what follows.
    async fn may(&self, token: &str, (method, path, body): &Request) -> bool {
        let (status, answer) = self.ask(token, method, path, body).await;
        if status == 403 {
            assert!(answer.to_string().contains("permission denied"), "{path}: {answer}");
        }
        status != 403
    }

    async fn domain(&self, policies: &[&str], config: DomainConfig) -> Domain {
        let (address, token) = (self.server.address(), self.token(policies).await);
        let schemes = Schemes::default().kek("vault-transit", move |uri: String| {
            let (address, token) = (address.clone(), token.clone());
            async move {
                let builder = VaultTransitKek::from_config(&uri.parse()?);
                builder.address(address).auth(VaultAuth::token(token)).build()
            }
        });
        let builder = Domains::builder().schemes(schemes).domain("orders", config);
        builder.build().await.unwrap().domain("orders").unwrap()
    }
}

const ALL: [&str; 8] =
    ["administrator", "owner", "writer", "reader", "service", "rewrapper", "auditor", "glass"];

/// Method, path and body.
type Request = (&'static str, &'static str, Value);

/// Requests, and who may make them.
fn requests() -> Vec<(Request, Vec<&'static str>)> {
    let (plain, context) = ("AAAA", "YWI=");
    let wrap = json!({ "plaintext": plain, "context": context });
    let unwrap = json!({ "ciphertext": "vault:v1:AAAA", "context": context });
    let only = |name| vec![name];
    let settings = |name: &str, value: Value| json!({ name: value });
    let post = |path, body| ("POST", path, body);
    let get = |path| ("GET", path, Value::Null);
    let mut all = vec![
        (get("transit/keys/orders"), ALL.to_vec()),
        (post("transit/encrypt/orders", wrap.clone()), vec!["writer", "service"]),
        (post("transit/decrypt/orders", unwrap.clone()), vec!["reader", "service"]),
        (post("transit/rewrap/orders", unwrap), only("rewrapper")),
        (post("transit/keys/orders/rotate", json!({})), only("administrator")),
        (
            post("transit/keys/orders/config", settings("auto_rotate_period", json!("720h"))),
            vec!["administrator", "owner"],
        ),
        (
            post("transit/keys/orders/config", settings("min_decryption_version", json!(1))),
            vec!["administrator", "owner"],
        ),
        (
            post("transit/keys/orders/config", settings("deletion_allowed", json!(false))),
            only("owner"),
        ),
        (post("transit/keys/orders/config", settings("exportable", json!(true))), vec![]),
        (
            post("transit/keys/orders/config", settings("allow_plaintext_backup", json!(true))),
            vec![],
        ),
        (
            post("transit/keys/orders", json!({ "derived": true, "type": "aes256-gcm96" })),
            only("owner"),
        ),
        (post("transit/keys/orders", json!({ "derived": "true" })), only("owner")),
        // Not derived. No policy can demand a parameter and let the owner read the key.
        (post("transit/keys/orders", json!({})), only("owner")),
        (post("transit/keys/orders", json!({ "derived": false })), vec![]),
        (
            post("transit/keys/orders", json!({ "derived": true, "convergent_encryption": true })),
            vec![],
        ),
        (post("transit/keys/orders", json!({ "derived": true, "exportable": true })), vec![]),
        (post("transit/keys/orders", json!({ "derived": true, "type": "rsa-2048" })), vec![]),
        (post("transit/keys/orders/trim", json!({ "min_available_version": 1 })), only("owner")),
        (get("sys/policies/acl/reader"), only("auditor")),
        (get("sys/audit"), only("auditor")),
        (post("sys/audit-hash/file", json!({ "input": "YWI=" })), only("auditor")),
    ];
    let nobodys = [
        post("transit/datakey/plaintext/orders", json!({ "context": context })),
        post("transit/datakey/wrapped/orders", json!({ "context": context })),
        post("transit/keys/orders/import", json!({})),
        post("transit/keys/orders/import_version", json!({})),
        get("transit/export/encryption-key/orders"),
        get("transit/export/encryption-key/orders/1"),
        get("transit/byok-export/other/orders"),
        get("transit/backup/orders"),
        post("transit/restore/orders", json!({ "backup": "x" })),
        post("transit/restore", json!({ "backup": "x" })),
        post("transit/hmac/orders", json!({ "input": plain })),
        post("transit/sign/orders", json!({ "input": plain })),
        post("transit/encrypt/other", wrap),
        get("transit/keys/other"),
        get("transit/keys?list=true"),
        post("transit/keys/other", json!({ "derived": true })),
        ("DELETE", "transit/keys/other", Value::Null),
        post("sys/policies/acl/reader", json!({ "policy": "" })),
        post("sys/audit/x", json!({ "type": "file" })),
        ("DELETE", "sys/audit/x", Value::Null),
        get("sys/mounts"),
        post("auth/token/create", json!({ "policies": ["root"] })),
    ];
    all.extend(nobodys.map(|request| (request, vec![])));
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_policy_allows_its_own_and_nothing_else() {
    let ground = Ground::new(&config()).await;
    for name in ALL {
        let token = ground.token(&[name]).await;
        for (request, who) in requests() {
            let (method, path, body) = &request;
            let may = ground.may(&token, &request).await;
            assert_eq!(may, who.contains(&name), "{name}: {method} {path} {body}");
        }
    }
    // Last, since it ends the key: deletion takes two steps, and both are the owner's.
    let delete = ("DELETE", "transit/keys/orders", Value::Null);
    for name in ALL {
        let may = ground.may(&ground.token(&[name]).await, &delete).await;
        assert_eq!(may, name == "owner", "{name} deletes");
    }
    let owner = ground.token(&["owner"]).await;
    let allow = json!({ "deletion_allowed": true });
    ground.ask(&owner, "POST", "transit/keys/orders/config", &allow).await;
    for (method, step, exists) in
        [("DELETE", "soft-delete", 400), ("POST", "soft-delete-restore", 200)]
    {
        let path = format!("transit/keys/orders/{step}");
        let (status, answer) = ground.ask(&owner, method, &path, &json!({})).await;
        assert!(status < 300, "{step}: {status} {answer}");
        let encrypt = json!({ "plaintext": "AAAA", "context": "YWI=" });
        let (status, _) = ground.server.ask("POST", "transit/encrypt/orders", encrypt).await;
        assert_eq!(status, exists, "{step}");
    }
    let (status, answer) = ground.ask(&owner, "DELETE", "transit/keys/orders", &Value::Null).await;
    assert_eq!(status, 204, "{answer}");
    // And makes the next one, derived.
    let made = json!({ "derived": true });
    let (status, answer) = ground.ask(&owner, "POST", "transit/keys/orders", &made).await;
    assert!(status < 300, "{status} {answer}");
    assert_eq!(ground.server.get("transit/keys/orders").await["data"]["derived"], true);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_with_the_policies_of_two_duties_can_do_neither() {
    let ground = Ground::new(&config()).await;
    // Somebody's policy for everything, beside.
    ground
        .write("all", "path \"transit/*\" { capabilities = [\"create\", \"read\", \"update\"] }")
        .await;
    let wrap =
        ("POST", "transit/encrypt/orders", json!({ "plaintext": "AAAA", "context": "YWI=" }));
    let unwrap = (
        "POST",
        "transit/decrypt/orders",
        json!({ "ciphertext": "vault:v1:AAAA", "context": "YWI=" }),
    );
    let rotate = ("POST", "transit/keys/orders/rotate", json!({}));
    let settings = json!({ "deletion_allowed": false });
    let settings = ("POST", "transit/keys/orders/config", settings);
    for (own, uses, sets, rotates) in [
        (vec!["owner", "reader", "writer", "all"], false, false, false),
        (vec!["administrator", "service", "all"], false, false, false),
        (vec!["auditor", "service", "all"], false, false, false),
        (vec!["auditor", "owner", "all"], false, false, false),
        // The controls.
        (vec!["service", "all"], true, false, false),
        (vec!["owner", "all"], false, true, true),
        (vec!["all"], true, true, true),
    ] {
        let token = ground.token(&own).await;
        for (request, may) in
            [(&wrap, uses), (&unwrap, uses), (&settings, sets), (&rotate, rotates)]
        {
            assert_eq!(ground.may(&token, request).await, may, "{own:?} {request:?}");
        }
    }
    // A version of the key is nobody's, though another policy has all paths.
    let export = ("GET", "transit/export/encryption-key/orders/1", Value::Null);
    for name in ALL {
        let token = ground.token(&[name, "all"]).await;
        assert!(!ground.may(&token, &export).await, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_domain_is_written_read_and_rewrapped_by_those_who_have_the_roles() {
    let ground = Ground::new(&config()).await;
    let writer = ground.domain(&["writer", "default"], config()).await;
    let context = writer.context([("tenant", "alice")]).unwrap();
    let sealed = writer.envelope().encrypt(&context, Aad::empty(), b"cake").await.unwrap();
    for name in ALL {
        let domain = ground.domain(&[name, "default"], config()).await;
        let opened = domain.envelope().decrypt(&context, Aad::empty(), &sealed).await;
        match opened {
            Ok(opened) => assert!(["reader", "service"].contains(&name) && &*opened == b"cake"),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Denied, "{name}: {error}");
                assert!(!["reader", "service"].contains(&name), "{name}: {error}");
            }
        }
        let written = domain.envelope().encrypt(&context, Aad::empty(), b"cake").await;
        assert_eq!(written.is_ok(), ["writer", "service"].contains(&name), "{name} writes");
    }
    ground.server.rotate("orders").await;
    let rewrapper = ground.domain(&["rewrapper", "default"], config()).await;
    let rewrapped = rewrapper.envelope().rewrap_unverified(&context, &sealed).await.unwrap();
    assert_ne!(rewrapped, sealed);
    let reader = ground.domain(&["reader", "default"], config()).await;
    let opened = reader.envelope().decrypt(&context, Aad::empty(), &rewrapped).await.unwrap();
    assert_eq!(&*opened, b"cake");

    // DEKs that the server makes need their own path, and branch keys what DEKs need.
    let made_there = config().dek_origin(DekOrigin::KeyService);
    let service = ground.domain(&["writer", "default"], made_there.clone()).await;
    assert!(service.envelope().encrypt(&context, Aad::empty(), b"x").await.is_err());
    ground.write("writer", &policies(&made_there).policy("writer").unwrap()).await;
    let service = ground.domain(&["writer", "default"], made_there).await;
    service.envelope().encrypt(&context, Aad::empty(), b"x").await.unwrap();
    let branches = config().branches(Branches::per(["tenant"]).self_contained());
    let service = ground.domain(&["service", "default"], branches).await;
    let sealed = service.envelope().encrypt(&context, Aad::empty(), b"cake").await.unwrap();
    assert!(service.envelope().decrypt(&context, Aad::empty(), &sealed).await.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn break_glass_is_disabled_until_somebody_else_writes_its_policy() {
    let ground = Ground::new(&config()).await;
    let service = ground.domain(&["service", "default"], config()).await;
    let context = service.context([("tenant", "alice")]).unwrap();
    let sealed = service.envelope().encrypt(&context, Aad::empty(), b"cake").await.unwrap();
    let policies = policies(&config());
    let (enabled, disabled) =
        (policies.enabled_break_glass("glass").unwrap(), policies.policy("glass").unwrap());
    assert!(policies.enabled_break_glass("reader").is_err());
    let token = ground.token(&["glass"]).await;
    let unwrap = json!({ "ciphertext": "vault:v1:AAAA", "context": "YWI=" });
    let unwrap = ("POST", "transit/decrypt/orders", unwrap);
    let to_itself = ("POST", "sys/policies/acl/glass", json!({ "policy": enabled }));
    for (policy, opens) in [(None, false), (Some(&enabled), true), (Some(&disabled), false)] {
        if let Some(policy) = policy {
            ground.write("glass", policy).await;
        }
        let glass = ground.domain(&["glass", "default"], config()).await;
        let opened = glass.envelope().decrypt(&context, Aad::empty(), &sealed).await;
        assert_eq!(opened.is_ok(), opens);
        let written = glass.envelope().encrypt(&context, Aad::empty(), b"x").await;
        assert_eq!(written.unwrap_err().kind(), ErrorKind::Denied);
        // A token that is in use notices, in both directions.
        assert_eq!(ground.may(&token, &unwrap).await, opens);
        assert!(!ground.may(&token, &to_itself).await);
    }
}

fn paths(policy: &str) -> Vec<&str> {
    let blocks = policy.split("path \"").skip(1);
    let allowed = blocks.filter(|block| !block.contains("\"deny\""));
    allowed.map(|block| block.split('"').next().unwrap()).collect()
}

#[test]
fn the_smallest_policy_of_the_page_is_that_of_a_service_with_all_roles_of_use() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/vault.md");
    let page = std::fs::read_to_string(page).unwrap();
    let of_page = page.split("```hcl\n").nth(1).unwrap().split("```").next().unwrap();
    let holders = Holders::default().writers(["x"]).readers(["x"]).rewrappers(["x"]);
    let mut generated = Vec::new();
    for origin in [DekOrigin::Local, DekOrigin::KeyService] {
        let duties = Duties::new("orders", &config().dek_origin(origin), &holders).unwrap();
        let policies = VaultPolicies::builder(&duties).build().unwrap();
        generated.extend(paths(&policies.policy("x").unwrap()).into_iter().map(str::to_owned));
    }
    generated.sort_unstable();
    generated.dedup();
    let mut of_page = paths(of_page);
    of_page.sort_unstable();
    assert_eq!(generated, of_page);
}

#[test]
fn what_cannot_stand_in_a_policy_is_refused() {
    let build = |config: &DomainConfig, holders: &Holders| {
        let duties = Duties::new("orders", config, holders).unwrap();
        VaultPolicies::builder(&duties).build().map(|_| ()).map_err(|error| error.to_string())
    };
    for name in ["root", "default", "A", "a b", "a\"b", "a/b", "*", "+", "a{{b}}"] {
        let refused = build(&config(), &Holders::default().readers([name])).unwrap_err();
        assert!(refused.contains("not the name of a policy"), "{refused}");
    }
    for place in [
        "tr%22ansit/orders",
        "tr*/orders",
        "+/orders",
        "transit/%2A",
        "transit/a%2Fb",
        "transit/..",
        "{{x}}/orders",
        "transit/a%5Cb",
    ] {
        let config =
            DomainConfig::default().wrap_with(format!("vault-transit://v/{place}?cluster=c"));
        let refused = build(&config, &Holders::default()).unwrap_err();
        assert!(refused.contains("cannot stand in a policy"), "{place}: {refused}");
    }
    let none = DomainConfig::default().wrap_with("local:/x?name=x");
    assert!(build(&none, &Holders::default()).unwrap_err().contains("no key there"));

    let second = config().unwrap_with("vault-transit://other/kek/former?cluster=second");
    assert!(build(&second, &Holders::default()).unwrap_err().contains("cluster: "));
    let holders = Holders::default().writers(["w"]).readers(["r"]);
    let duties = Duties::new("orders", &second, &holders).unwrap();
    let of = |cluster: &str| VaultPolicies::builder(&duties).cluster(cluster).build();
    assert!(of("third").is_err());
    let policies = of("second").unwrap();
    assert_eq!(paths(&policies.policy("r").unwrap()), ["kek/decrypt/former", "kek/keys/former"]);
    assert_eq!(paths(&policies.policy("w").unwrap()), ["kek/keys/former"], "it only unwraps");
    assert!(policies.policy("nobody").is_err());
    assert_eq!(policies.names().collect::<Vec<_>>(), ["r", "w"]);
}

proptest! {
    /// Any text in a name is refused, or is between two quotes.
    #[test]
    fn a_name_never_changes_what_a_policy_says(
        written in "[a-z\"*+{}$%\\\\ \n\u{e9}\u{2028}-]{1,4}",
        place in 0..3usize,
    ) {
        let at = |wanted: usize| if place == wanted { written.as_str() } else { "" };
        let (mount, key, name) =
            (format!("transit{}", at(0)), format!("orders{}", at(1)), format!("reader{}", at(2)));
        let encoded =
            |text: &str| text.bytes().map(|byte| format!("%{byte:02x}")).collect::<String>();
        let uri = format!("vault-transit://v/{}/{}?cluster=c", encoded(&mount), encoded(&key));
        let holders = Holders::default().readers([name.clone()]).auditors(["audit"]);
        let config = DomainConfig::default().wrap_with(uri);
        let is_safe = |c: char| match place {
            2 => c.is_ascii_lowercase() || c == '-',
            _ => c.is_ascii_lowercase() || "\u{e9}- ".contains(c),
        };
        let built = Duties::new("orders", &config, &holders)
            .and_then(|duties| VaultPolicies::builder(&duties).build());
        let Ok(policies) = built else {
            prop_assert!(!written.chars().all(is_safe), "{written:?} was refused in {place}");
            return Ok(());
        };
        prop_assert!(written.chars().all(is_safe), "{written:?} was accepted in {place}");
        let policy = policies.policy(&name).unwrap();
        let path = format!(
            "path \"{mount}/decrypt/{key}\" {{\n  capabilities = [\"update\"]\n}}",
        );
        prop_assert!(policy.contains(&path), "{}", policy);
        // A reader: two paths of its own, and what is denied.
        prop_assert_eq!(policy.matches("path \"").count(), 14);
        prop_assert_eq!(policy.matches("capabilities = [\"deny\"]").count(), 12);
        let acl = format!("path \"sys/policies/acl/{name}\"");
        prop_assert!(policies.policy("audit").unwrap().contains(&acl));
        prop_assert_eq!(policies.policy(&name).unwrap(), policy);
    }
}
