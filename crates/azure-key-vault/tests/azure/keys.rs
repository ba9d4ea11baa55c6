//! States of a key and its versions, permissions and network rules, and how each passes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use waxseal::kek::{Health, KekErrorClass, KekProvider};
use waxseal_azure_key_vault::HealthCheck;
use waxseal_testing::azure::{Access, World};
use waxseal_testing::support::context;

use crate::ground::{CLIENT, Ground, HSM, dek};

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// What a change does to wrapping, unwrapping and health, and that all is well when it is undone.
struct Change {
    name: &'static str,
    begin: fn(&mut World),
    end: fn(&mut World),
    wrap: Option<KekErrorClass>,
    unwrap: Option<KekErrorClass>,
    health: Option<KekErrorClass>,
}

fn changes() -> Vec<Change> {
    use KekErrorClass::{Denied, Misconfigured};
    let newest = |world: &mut World| world.newest(HSM, "cards").enabled = false;
    vec![
        Change {
            name: "the version is disabled",
            begin: newest,
            end: |world| world.newest(HSM, "cards").enabled = true,
            wrap: Some(Denied),
            unwrap: Some(Denied),
            health: Some(Denied),
        },
        // "Date-time controlled operations": decrypt works outside nbf and exp.
        Change {
            name: "the version has expired",
            begin: |world| world.newest(HSM, "cards").expires = Some(now() - 10),
            end: |world| world.newest(HSM, "cards").expires = None,
            wrap: Some(Denied),
            unwrap: None,
            health: None,
        },
        Change {
            name: "the version is not valid yet",
            begin: |world| world.newest(HSM, "cards").not_before = Some(now() + 1000),
            end: |world| world.newest(HSM, "cards").not_before = None,
            wrap: Some(Denied),
            unwrap: None,
            health: None,
        },
        Change {
            name: "the key permits nothing",
            begin: |world| world.key(HSM, "cards").operations.clear(),
            end: |world| world.key(HSM, "cards").operations.extend(["encrypt", "decrypt"]),
            wrap: Some(Denied),
            unwrap: Some(Denied),
            health: Some(Denied),
        },
        Change {
            name: "the key is deleted, and recovered",
            begin: |world| world.delete(HSM, "cards"),
            end: |world| world.recover(HSM, "cards"),
            wrap: Some(Denied),
            unwrap: Some(Denied),
            health: Some(Denied),
        },
        Change {
            name: "no role to encrypt",
            begin: |world| world.forbid(HSM, CLIENT, "encrypt"),
            end: |world| world.permit(HSM, CLIENT, &["encrypt"]),
            wrap: Some(Denied),
            unwrap: None,
            health: None,
        },
        Change {
            name: "no access policy to decrypt",
            begin: |world| {
                world.vault(HSM).access = Access::Policies;
                world.forbid(HSM, CLIENT, "decrypt");
            },
            end: |world| {
                world.vault(HSM).access = Access::Rbac;
                world.permit(HSM, CLIENT, &["decrypt"]);
            },
            wrap: None,
            unwrap: Some(Denied),
            health: None,
        },
        Change {
            name: "no role to read the key",
            begin: |world| world.forbid(HSM, CLIENT, "get"),
            end: |world| world.permit(HSM, CLIENT, &["get"]),
            wrap: None,
            unwrap: None,
            health: Some(Denied),
        },
        Change {
            name: "the firewall knows other addresses only",
            begin: |world| world.vault(HSM).firewall = Some(vec![[10, 0, 0, 1].into()]),
            end: |world| world.vault(HSM).firewall = None,
            wrap: Some(Misconfigured),
            unwrap: Some(Misconfigured),
            health: Some(Misconfigured),
        },
        Change {
            name: "public network access is off",
            begin: |world| world.vault(HSM).private_only = true,
            end: |world| world.vault(HSM).private_only = false,
            wrap: Some(Misconfigured),
            unwrap: Some(Misconfigured),
            health: Some(Misconfigured),
        },
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_state_of_key_permission_and_network_has_its_class_and_passes() {
    let ground = Ground::new();
    let kek = ground.hsm("cards");
    let alice = context("alice");
    let wrapped = kek.wrap(&alice, &dek()).await.unwrap();
    for change in changes() {
        let name = change.name;
        (change.begin)(&mut ground.azure.world());
        let wrap = kek.wrap(&alice, &dek()).await.err().map(|error| error.class());
        let unwrap = kek.unwrap(&alice, &wrapped).await.err().map(|error| error.class());
        let health = kek.health().await.err().map(|error| error.class());
        assert_eq!((wrap, unwrap, health), (change.wrap, change.unwrap, change.health), "{name}");
        (change.end)(&mut ground.azure.world());
        kek.wrap(&alice, &dek()).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        kek.unwrap(&alice, &wrapped).await.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(kek.health().await.unwrap(), Health::Ready, "{name}");
    }
}

/// A purged key is gone permanently, and a new one of its name unwraps nothing of the old one.
#[tokio::test]
async fn a_purged_key_does_not_come_back_by_its_name() {
    let ground = Ground::new();
    let kek = ground.hsm("cards");
    let wrapped = kek.wrap(&context("alice"), &dek()).await.unwrap();
    {
        let mut world = ground.azure.world();
        world.delete(HSM, "cards");
        world.purge(HSM, "cards");
        world.create_aes(HSM, "cards");
    }
    let error = kek.unwrap(&context("alice"), &wrapped).await.unwrap_err();
    assert_eq!(error.class(), KekErrorClass::Denied);
    kek.wrap(&context("alice"), &dek()).await.unwrap();
}

/// A rotation policy makes versions automatically: the next wrap uses the newest, and says so.
#[tokio::test]
async fn old_versions_unwrap_until_they_are_disabled_one_by_one() {
    let ground = Ground::new();
    let kek = ground.hsm("cards");
    let alice = context("alice");
    let old = kek.wrap(&alice, &dek()).await.unwrap();
    let old_version = kek.key_version(&old).unwrap();
    let newest = ground.azure.world().rotate(HSM, "cards");
    let new = kek.wrap(&alice, &dek()).await.unwrap();
    assert_eq!(kek.key_version(&new).as_deref(), Some(newest.as_str()));
    assert_eq!((kek.is_current(&old), kek.is_current(&new)), (Some(false), Some(true)));
    kek.unwrap(&alice, &old).await.unwrap();
    let set = |enabled| {
        let mut world = ground.azure.world();
        let versions = &mut world.key(HSM, "cards").versions;
        versions.iter_mut().find(|it| *it.version == *old_version).unwrap().enabled = enabled;
    };
    set(false);
    assert_eq!(kek.unwrap(&alice, &old).await.unwrap_err().class(), KekErrorClass::Denied);
    kek.unwrap(&alice, &new).await.unwrap();
    set(true);
    kek.unwrap(&alice, &old).await.unwrap();
}

/// Another process rotates. Until `key_max_age` this one may not know; then it reads the key.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotation_that_nobody_mentioned_is_noticed_after_key_max_age() {
    let ground = Ground::new();
    let kek = ground
        .builder_at(HSM, "cards", ground.azure.port())
        .key_max_age(Duration::from_secs(1))
        .build()
        .unwrap();
    let wrapped = kek.wrap(&context("alice"), &dek()).await.unwrap();
    assert_eq!(kek.is_current(&wrapped), Some(true));
    ground.azure.world().rotate(HSM, "cards");
    let start = std::time::Instant::now();
    while kek.is_current(&wrapped) != Some(false) {
        assert!(start.elapsed() < Duration::from_secs(60), "it is never noticed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn health_tells_that_a_key_exists_from_that_it_may_be_used() {
    let ground = Ground::new();
    let with = |check| {
        ground.builder_at(HSM, "cards", ground.azure.port()).health_check(check).build().unwrap()
    };
    let (read, wraps, uses) =
        (with(HealthCheck::Read), with(HealthCheck::TryWrap), with(HealthCheck::TryUse));
    for kek in [&read, &wraps, &uses] {
        assert_eq!(kek.health().await.unwrap(), Health::Ready);
    }
    ground.azure.world().forbid(HSM, CLIENT, "decrypt");
    assert_eq!(read.health().await.unwrap(), Health::Ready);
    assert_eq!(wraps.health().await.unwrap(), Health::Ready);
    assert_eq!(uses.health().await.unwrap_err().class(), KekErrorClass::Denied);
    ground.azure.world().forbid(HSM, CLIENT, "encrypt");
    assert_eq!(read.health().await.unwrap(), Health::Ready);
    assert_eq!(wraps.health().await.unwrap_err().class(), KekErrorClass::Denied);
    ground.azure.world().newest(HSM, "cards").expires = Some(now() + 3 * 24 * 3600);
    let Health::Degraded(text) = read.health().await.unwrap() else { panic!("it ends soon") };
    assert!(text.contains("expires in 2 days"), "{text}");
}

/// A reader does not care whether the newest version wraps.
#[tokio::test]
async fn health_says_of_a_key_that_only_unwraps_that_it_is_degraded() {
    let ground = Ground::new();
    let kek = ground.hsm("cards");
    let wrapped = kek.wrap(&context("alice"), &dek()).await.unwrap();
    type Begin = fn(&mut World);
    let begins: [(&str, Begin); 3] = [
        ("has expired", |world| world.newest(HSM, "cards").expires = Some(now() - 10)),
        ("is not valid yet", |world| world.newest(HSM, "cards").not_before = Some(now() + 1000)),
        ("does not permit encrypt", |world| {
            world.key(HSM, "cards").operations.retain(|it| *it != "encrypt")
        }),
    ];
    for (why, begin) in begins {
        begin(&mut ground.azure.world());
        let Health::Degraded(text) = kek.health().await.unwrap() else { panic!("{why}") };
        assert!(text.contains("unwraps") && text.contains(why), "{text}");
        assert_eq!(
            kek.wrap(&context("alice"), &dek()).await.unwrap_err().class(),
            KekErrorClass::Denied
        );
        kek.unwrap(&context("alice"), &wrapped).await.unwrap();
        let mut world = ground.azure.world();
        world.newest(HSM, "cards").expires = None;
        world.newest(HSM, "cards").not_before = None;
    }
    ground.azure.world().key(HSM, "cards").operations.push("encrypt");
    assert_eq!(kek.health().await.unwrap(), Health::Ready);
    ground.azure.world().key(HSM, "cards").operations.retain(|it| *it != "decrypt");
    let Health::Degraded(text) = kek.health().await.unwrap() else { panic!("it wraps only") };
    assert!(text.contains("wraps, and does not permit decrypt"), "{text}");
}
