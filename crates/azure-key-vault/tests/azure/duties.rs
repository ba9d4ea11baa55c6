//! The roles that are generated for a domain, applied to the stand-in: what each holder can and
//! cannot do.

use serde_json::{Value, json};
use waxseal::WrappedDek;
use waxseal::domain::DomainConfig;
use waxseal::domain::duties::{Duties, Holders, Role};
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal_azure_key_vault::duties::AzureRoles;
use waxseal_azure_key_vault::{Algorithm, Credential};
use waxseal_testing::azure::TENANT;
use waxseal_testing::support::context;

use crate::ground::{Ground, HSM, VAULT, dek};

const RESOURCE: &str = "/subscriptions/00000000-0000-4000-8000-000000000000/resourceGroups/keys/\
                        providers/Microsoft.KeyVault/vaults/orders";

/// An object id. At the stand-in it is the client id too.
fn id(n: u8) -> String {
    format!("{n:08}-0000-4000-8000-000000000000")
}

const OWNER: u8 = 1;
const ADMINISTRATOR: u8 = 2;
const WRITER: u8 = 3;
const READER: u8 = 4;
const MOVER: u8 = 5;
const AUDITOR: u8 = 6;
const GLASS: u8 = 7;
const NOBODY: u8 = 8;

fn holders() -> Holders {
    Holders::default()
        .key_owners([id(OWNER)])
        .key_administrators([id(ADMINISTRATOR)])
        .writers([id(WRITER)])
        .readers([id(READER)])
        .auditors([id(AUDITOR)])
        .break_glass([id(GLASS)])
}

fn hsm() -> DomainConfig {
    let former = format!("https%3A%2F%2F{HSM}%2Fkeys%2Fother");
    DomainConfig::default().wrap_with(format!("azure-key-vault://{HSM}/cards?former-keys={former}"))
}

fn vault() -> DomainConfig {
    DomainConfig::default().wrap_with("azure-key-vault://orders/cards?algorithm=rsa-oaep-256")
}

fn roles(config: &DomainConfig, holders: &Holders) -> Result<AzureRoles, waxseal::Error> {
    let duties = Duties::new("orders", config, holders)?;
    let builder = AzureRoles::builder(&duties).rewrappers_see_deks(true).key_readers_can_wrap(true);
    match config == &vault() {
        true => builder.vault_resource(RESOURCE).build(),
        false => builder.build(),
    }
}

fn in_force(ground: &Ground, roles: &AzureRoles) {
    for n in OWNER..=NOBODY {
        ground.azure.application(&id(n));
    }
    let mut world = ground.azure.world();
    for host in roles.hosts() {
        for role in Role::ALL {
            world.define_role(host, &roles.role_definition(host, role).unwrap()).unwrap();
        }
    }
    for key in roles.keys() {
        let host = key.strip_prefix("https://").unwrap().split('/').next().unwrap();
        world.assign_roles(host, &roles.assignments(&key).unwrap());
    }
}

/// What somebody can do with a key: wrap, unwrap `wrapped`, look.
async fn uses(ground: &Ground, (host, key): (&str, &str), who: u8, wrapped: &[u8]) -> [bool; 3] {
    let builder =
        ground.builder_at(host, key, ground.azure.port()).credential(credential(ground, who));
    let builder = match host == VAULT {
        true => builder.algorithm(Algorithm::RsaOaep256),
        false => builder,
    };
    let kek = builder.build().unwrap();
    let entry = WrappedDek::new(kek.id().clone(), wrapped).unwrap();
    let alice = context("alice");
    let results = [
        kek.wrap(&alice, &dek()).await.map(|_| ()),
        kek.unwrap(&alice, &entry).await.map(|_| ()),
        kek.read_key().await.map(|_| ()),
    ];
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert_eq!(error.class(), KekErrorClass::Denied, "{who}: {error}");
    }
    results.map(|result| result.is_ok())
}

fn credential(ground: &Ground, who: u8) -> Credential {
    Credential::ClientSecret {
        tenant_id: TENANT.to_owned(),
        client_id: id(who),
        secret_file: ground.azure.files().join(format!("{}.secret", id(who))),
    }
}

/// Asks as an administrator does.
async fn administers(ground: &Ground, host: &str, who: u8, method: &str, path: &str) -> bool {
    let suffix = host.split_once('.').unwrap().1;
    let form = [
        ("grant_type", "client_credentials".to_owned()),
        ("scope", format!("https://{suffix}/.default")),
        ("client_id", id(who)),
        ("client_secret", format!("secret-of-{}", id(who))),
    ];
    let form = form.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    let path_of_login = format!("/{TENANT}/oauth2/v2.0/token");
    let (status, login) = ground.azure.world().log_in(&path_of_login, &form);
    assert_eq!(status, 200, "{login}");
    let client = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only(
            reqwest::Certificate::from_pem_bundle(&std::fs::read(ground.azure.ca_file()).unwrap())
                .unwrap(),
        )
        .resolve(host, ground.azure.address())
        .build()
        .unwrap();
    let url = format!("https://{host}:{}{path}", ground.azure.port());
    let body = json!({
        "attributes": { "enabled": true },
        "properties": { "roleDefinitionId": "waxseal orders reader in orders", "principalId": id(NOBODY) },
    });
    let answer = client
        .request(method.parse().unwrap(), url)
        .bearer_auth(login["access_token"].as_str().unwrap())
        .header("content-type", "application/json")
        .body(body.to_string())
        .send()
        .await
        .unwrap();
    let status = answer.status().as_u16();
    assert!([200, 403].contains(&status), "{who} {method} {path}: {status}");
    status == 200
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_holder_in_a_managed_hsm_can_do_its_duty_and_nothing_else() {
    let roles = roles(&hsm(), &holders().rewrappers([id(MOVER)])).unwrap();
    let ground = Ground::new();
    in_force(&ground, &roles);
    assert_eq!(roles.hosts(), [HSM]);
    let wrapped = [("cards", ground.hsm("cards")), ("other", ground.hsm("other"))];
    for (key, kek) in wrapped {
        let wrapped = kek.wrap(&context("alice"), &dek()).await.unwrap();
        for (who, own, former) in [
            (WRITER, [true, false, false], [false, false, false]),
            (READER, [false, true, false], [false, true, false]),
            (MOVER, [true, true, false], [false, true, false]),
            (AUDITOR, [false, false, true], [false, false, true]),
            (ADMINISTRATOR, [false, false, true], [false, false, true]),
            (OWNER, [false, false, true], [false, false, true]),
            (GLASS, [false, false, false], [false, false, false]),
            (NOBODY, [false, false, false], [false, false, false]),
        ] {
            let seen = uses(&ground, (HSM, key), who, wrapped.wrapped()).await;
            let expected = if key == "cards" { own } else { former };
            assert_eq!(seen, expected, "{who} {key}: wrap, unwrap, look");
        }
    }
    let version = ground.azure.world().newest(HSM, "cards").version.clone();
    let assignment = "/keys/cards/providers/Microsoft.Authorization/roleAssignments/1";
    for (method, path, by_administrator, by_owner) in [
        ("PATCH", format!("/keys/cards/{version}"), true, false),
        ("POST", "/keys/cards/rotate".to_owned(), true, false),
        ("POST", "/keys/cards/backup".to_owned(), false, false),
        ("DELETE", "/keys/cards".to_owned(), false, true),
        ("DELETE", "/deletedkeys/cards".to_owned(), false, false),
        ("POST", "/deletedkeys/cards/recover".to_owned(), false, true),
        ("PUT", assignment.to_owned(), false, true),
    ] {
        for who in [WRITER, READER, MOVER, AUDITOR, GLASS, NOBODY] {
            assert!(!administers(&ground, HSM, who, method, &path).await, "{who} {method} {path}");
        }
        let seen = [
            administers(&ground, HSM, ADMINISTRATOR, method, &path).await,
            administers(&ground, HSM, OWNER, method, &path).await,
        ];
        assert_eq!(seen, [by_administrator, by_owner], "{method} {path}");
    }
}

/// With RSA the vault still separates the roles. No role can prevent that a holder of the public
/// key wraps without the vault.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_holder_in_a_vault_can_do_its_duty_and_nothing_else() {
    let roles = roles(&vault(), &holders().rewrappers([id(MOVER)])).unwrap();
    let ground = Ground::with_rsa();
    in_force(&ground, &roles);
    let wrapped = ground.rsa("cards").wrap(&context("alice"), &dek()).await.unwrap();
    for (who, can) in [
        (WRITER, [true, false, false]),
        (READER, [false, true, false]),
        (MOVER, [true, true, false]),
        (AUDITOR, [false, false, true]),
        (ADMINISTRATOR, [false, false, true]),
        (OWNER, [false, false, true]),
        (GLASS, [false, false, false]),
    ] {
        assert_eq!(uses(&ground, (VAULT, "cards"), who, wrapped.wrapped()).await, can, "{who}");
        let other = uses(&ground, (VAULT, "other"), who, wrapped.wrapped()).await;
        assert_eq!(other, [false; 3], "{who}, of a key of another domain");
    }
    let version = ground.azure.world().newest(VAULT, "cards").version.clone();
    for (method, path, by_administrator, by_owner) in [
        ("PATCH", format!("/keys/cards/{version}"), true, false),
        ("POST", "/keys/cards/rotate".to_owned(), true, false),
        ("POST", "/keys/cards/backup".to_owned(), false, false),
        ("DELETE", "/keys/cards".to_owned(), false, true),
        ("DELETE", "/deletedkeys/cards".to_owned(), false, false),
        ("POST", "/deletedkeys/cards/recover".to_owned(), false, true),
    ] {
        for who in [WRITER, READER, MOVER, AUDITOR, GLASS] {
            assert!(!administers(&ground, VAULT, who, method, &path).await, "{who} {path}");
        }
        let seen = [
            administers(&ground, VAULT, ADMINISTRATOR, method, &path).await,
            administers(&ground, VAULT, OWNER, method, &path).await,
        ];
        assert_eq!(seen, [by_administrator, by_owner], "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn break_glass_unwraps_only_while_its_assignment_is_there() {
    let roles = roles(&hsm(), &holders()).unwrap();
    let ground = Ground::new();
    in_force(&ground, &roles);
    let wrapped = ground.hsm("cards").wrap(&context("alice"), &dek()).await.unwrap();
    let glass = async || uses(&ground, (HSM, "cards"), GLASS, wrapped.wrapped()).await;
    assert_eq!(glass().await, [false; 3]);
    let key = roles.keys().next().unwrap();
    ground.azure.world().assign_roles(HSM, &roles.enabled_break_glass(&key).unwrap());
    assert_eq!(glass().await, [false, true, false]);
    ground.azure.world().vault(HSM).assignments.retain(|it| it.principal != id(GLASS));
    assert_eq!(glass().await, [false; 3]);
}

/// In every document: no role of administration or audit has an action of use, no role of use has
/// one of administration, and nobody may purge, export or take a key out.
#[test]
fn no_role_joins_administration_and_use() {
    for (config, host) in [(hsm(), HSM), (vault(), VAULT)] {
        let roles = roles(&config, &holders().rewrappers([id(MOVER)])).unwrap();
        for role in Role::ALL {
            let definition: Value =
                serde_json::from_str(&roles.role_definition(host, role).unwrap()).unwrap();
            let actions = definition.get("DataActions").unwrap_or(&definition["dataActions"]);
            let actions: Vec<_> =
                actions.as_array().unwrap().iter().map(|it| it.as_str().unwrap()).collect();
            assert!(!actions.is_empty(), "{role}");
            let uses = ["/encrypt/", "/decrypt/", "/wrap/", "/unwrap/"];
            let is_use = |action: &&str| uses.iter().any(|part| action.contains(part));
            let of_use =
                matches!(role, Role::Writer | Role::Reader | Role::Rewrapper | Role::BreakGlass);
            for action in &actions {
                assert_eq!(is_use(action), of_use, "{role} {action}");
                for never in [
                    "purge",
                    "deletedKeys/delete",
                    "export",
                    "release",
                    "backup",
                    "restore",
                    "import",
                    "create",
                    "*",
                ] {
                    assert!(!action.contains(never), "{role} {action}");
                }
            }
            // Who may say who may: in a vault that is of the control plane.
            let says_who = definition.to_string().contains("roleAssignments/write");
            assert_eq!(says_who, role == Role::KeyOwner, "{role}");
        }
        for key in roles.keys() {
            let assigned: Vec<Value> =
                serde_json::from_str(&roles.assignments(&key).unwrap()).unwrap();
            assert!(!assigned.is_empty());
            for one in assigned {
                assert!(one["scope"].as_str().unwrap().contains("/keys/"), "{one}");
            }
        }
    }
}

#[test]
fn what_would_say_more_than_it_seems_is_refused() {
    for name in ["", "ada@example.com", "*", "00000000-0000-4000-8000-00000000000g"] {
        let named = holders().auditors([name]);
        let error = roles(&hsm(), &named).unwrap_err().to_string();
        assert!(error.contains("auditor"), "{name}: {error}");
    }
    let refused = |config: &DomainConfig, holders: &Holders, resource: Option<&str>| {
        let duties = Duties::new("orders", config, holders).unwrap();
        let builder = AzureRoles::builder(&duties);
        let builder = match resource {
            Some(id) => builder.key_readers_can_wrap(true).vault_resource(id),
            None => builder,
        };
        builder.build().unwrap_err().to_string()
    };
    let movers = holders().rewrappers([id(MOVER)]);
    assert!(refused(&hsm(), &movers, None).contains("rewrappers_see_deks"));
    assert!(refused(&vault(), &holders(), None).contains("key_readers_can_wrap"));
    let ownerless = Holders::default().writers([id(WRITER)]);
    assert!(refused(&hsm(), &ownerless, None).contains("key_owners"));
    let elsewhere = DomainConfig::default().wrap_with("local:/tmp/x?name=x");
    assert!(refused(&elsewhere, &holders(), None).contains("no key in Key Vault"));
    for id in
        ["", "/", &RESOURCE.replace("orders", "a b"), &RESOURCE.replace("/resourceGroups", "")]
    {
        assert!(refused(&vault(), &holders(), Some(id)).contains("vault_resource"), "{id}");
    }
    let other = RESOURCE.replace("vaults/orders", "vaults/elsewhere");
    assert!(refused(&vault(), &holders(), Some(&other)).contains("no key in elsewhere"));
    let duties = Duties::new("orders", &vault(), &holders()).unwrap();
    let error = AzureRoles::builder(&duties).key_readers_can_wrap(true).build().unwrap_err();
    assert!(error.to_string().contains("that of orders.vault.azure.net is not given"), "{error}");
    let roles = roles(&hsm(), &Holders::default().key_owners([id(OWNER)])).unwrap();
    let key = roles.keys().next().unwrap();
    assert!(roles.enabled_break_glass(&key).is_err());
    assert!(roles.assignments("another").is_err());
    assert!(roles.role_definition(VAULT, Role::Reader).is_err());
}
