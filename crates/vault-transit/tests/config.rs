//! The configuration as data: serde, the URI, that each option reaches the provider; and what an
//! error and its causes say.
#![cfg(feature = "serde")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;
use waxseal::ErrorKind;
use waxseal::kek::{BoxFuture, KekError, KekErrorClass, KekProvider};
use waxseal_testing::openbao::{OpenBao, Options};
use waxseal_testing::support::{a_dek, context};
use waxseal_vault_transit::{
    AuthConfig, AwsCredentials, AwsKeys, Config, ContextBinding, VaultAuth, VaultTransitKek,
    VaultTransitKekBuilder,
};

fn full() -> Config {
    Config::new("prod-eu", "orders")
        .mount("team a/transit")
        .address("https://vault.example:8200")
        .namespace("team/b")
        .ca_file("/etc/ssl/vault ca.pem")
        .client_certificate("/c.pem", "/k.pem")
        .server_name("vault.internal")
        .proxy("http://proxy:3128")
        .connect_timeout(Duration::from_secs(2))
        .timeout(Duration::from_secs(90))
        .allow_plain_http(true)
        .binding(ContextBinding::AssociatedData)
        .key_max_age(Duration::from_millis(1500))
        .auth(AuthConfig::kubernetes("orders").mount("k8s").jwt_file("/token"))
}

const FULL: &str = "vault-transit://vault.example:8200/team%20a/transit/orders?cluster=prod-eu&namespace=team/b\
    &ca-file=/etc/ssl/vault%20ca.pem&client-certificate=/c.pem&client-key-file=/k.pem&server-name=vault.internal\
    &proxy=http://proxy:3128&connect-timeout=2s&timeout=1m30s&allow-plain-http=true&binding=associated-data\
    &key-max-age=1s500ms&auth=kubernetes&auth-mount=k8s&role=orders&jwt-file=/token";

const FULL_IN_TOML: &str = "
cluster = 'prod-eu'
mount = 'team a/transit'
key = 'orders'
address = 'https://vault.example:8200'
namespace = 'team/b'
ca_file = '/etc/ssl/vault ca.pem'
client_certificate = '/c.pem'
client_key_file = '/k.pem'
server_name = 'vault.internal'
proxy = 'http://proxy:3128'
connect_timeout = '2s'
timeout = '90s'
allow_plain_http = true
binding = 'associated-data'
key_max_age = '1.5s'
[auth]
method = 'kubernetes'
mount = 'k8s'
role = 'orders'
jwt_file = '/token'
";

#[test]
fn code_a_file_and_a_uri_say_the_same() {
    assert_eq!(full().to_string(), FULL);
    assert_eq!(FULL.parse::<Config>().unwrap(), full());
    assert_eq!(toml::from_str::<Config>(FULL_IN_TOML).unwrap(), full());
    assert_eq!((full().cluster(), full().key()), ("prod-eu", "orders"));

    let least = Config::new("dev", "orders");
    assert_eq!(least.to_string(), "vault-transit:///transit/orders?cluster=dev");
    assert_eq!(least.to_string().parse::<Config>().unwrap(), least);
    assert_eq!(toml::from_str::<Config>("cluster = 'dev'\nkey = 'orders'").unwrap(), least);
    let agent = least.clone().address("http://127.0.0.1:8100").auth(AuthConfig::none());
    let uri = "vault-transit:///transit/orders?cluster=dev&address=http://127.0.0.1:8100&auth=none";
    assert_eq!((agent.to_string().as_str(), uri.parse::<Config>().unwrap()), (uri, agent));
    let short: Config =
        "vault-transit:///transit/orders?cluster=dev&token-file=/token".parse().unwrap();
    assert_eq!(short, least.auth(AuthConfig::token_file("/token")));
}

fn any_auth() -> impl Strategy<Value = AuthConfig> {
    let text = || ".{0,8}";
    prop_oneof![
        Just(AuthConfig::none()),
        Just(AuthConfig::environment()),
        text().prop_map(AuthConfig::token_file),
        (text(), text()).prop_map(|(id, path)| AuthConfig::app_role(id).secret_id_file(path)),
        (text(), text())
            .prop_map(|(id, path)| AuthConfig::app_role_file(id).wrapped_secret_id_file(path)),
        (text(), text()).prop_map(|(role, path)| AuthConfig::kubernetes(role).jwt_file(path)),
        (text(), text()).prop_map(|(path, role)| AuthConfig::jwt(path).role(role)),
        (text(), text())
            .prop_map(|(role, mount)| AuthConfig::certificate().role(role).mount(mount)),
        (text(), text(), text()).prop_map(|(role, region, id)| AuthConfig::aws_iam(role)
            .aws_region(region)
            .aws_server_id(id)),
    ]
}

fn any_config() -> impl Strategy<Value = Config> {
    let some = || prop::option::of(".{0,12}");
    let url = || prop::option::of(prop_oneof!["[^@]{0,20}", "https://[a-z0-9.:\\[\\]]{1,20}"]);
    let names = (".{0,12}", ".{0,12}", ".{1,12}", url(), some(), some(), some(), some(), url());
    let rest = (
        prop::option::of((any::<u64>(), any::<u64>(), any::<u64>())),
        any::<bool>(),
        prop::option::of(prop_oneof![
            Just(ContextBinding::AssociatedData),
            Just(ContextBinding::Unbound)
        ]),
        prop::option::of(any_auth()),
    );
    (names, rest).prop_map(|(names, (times, plain, binding, auth))| {
        let (cluster, mount, key, address, namespace, ca, directory, name, proxy) = names;
        let mut config = Config::new(cluster, key).mount(mount).allow_plain_http(plain);
        if let Some(address) = address {
            config = config.address(address);
        }
        if let Some(namespace) = namespace {
            config = config.namespace(namespace);
        }
        if let Some(ca) = ca {
            config = config.ca_file(&ca).client_certificate(&ca, &ca);
        }
        if let Some(directory) = directory {
            config = config.ca_directory(directory);
        }
        if let Some(name) = name {
            config = config.server_name(name);
        }
        if let Some(proxy) = proxy {
            config = config.proxy(proxy);
        }
        if let Some((a, b, c)) = times {
            let [a, b, c] = [a, b, c].map(Duration::from_secs);
            config = config.connect_timeout(a).timeout(b).key_max_age(c);
        }
        if let Some(binding) = binding {
            config = config.binding(binding);
        }
        auth.map_or(config.clone(), |auth| config.auth(auth))
    })
}

proptest! {
    #[test]
    fn the_uri_is_read_back(config in any_config()) {
        prop_assert_eq!(config.to_string().parse::<Config>().unwrap(), config);
    }

    #[test]
    fn serde_reads_back_what_it_wrote(config in any_config()) {
        let json = serde_json::to_string(&config).unwrap();
        prop_assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config.clone());
        let toml = toml::to_string(&config).unwrap();
        prop_assert_eq!(toml::from_str::<Config>(&toml).unwrap(), config);
    }
}

#[test]
fn an_error_names_the_part_and_shows_no_secret() {
    let plain = "vault-transit://vault/transit/orders?cluster=c";
    for (uri, part) in [
        ("vault://x/transit/k?cluster=c".to_owned(), "does not begin with `vault-transit://`"),
        ("vault-transit://vault?cluster=c".to_owned(), "the path is not MOUNT/KEY"),
        ("vault-transit://vault/orders?cluster=c".to_owned(), "the path is not MOUNT/KEY"),
        ("vault-transit://vault/transit/?cluster=c".to_owned(), "the key is missing"),
        ("vault-transit://vault/transit/orders".to_owned(), "parameter `cluster` is missing"),
        (
            "vault-transit://u:hunter2@vault/transit/orders?cluster=c".to_owned(),
            "no user or password before the host",
        ),
        (
            "vault-transit://hvs%2Ehunter2/transit/orders?cluster=c".to_owned(),
            "the host has a character",
        ),
        (format!("{plain}&address=https://a"), "parameter `address`: not together with a host"),
        (
            "vault-transit:///transit/orders?cluster=c&address=https://u:hunter2@a".to_owned(),
            "address: must not contain a user or a password",
        ),
        (
            format!("{plain}&proxy=http://u:hunter2@proxy"),
            "proxy: must not contain a user or a password",
        ),
        (
            format!("{plain}&token=hunter2"),
            "`token` would put a secret into the URI; name a file with `token-file`",
        ),
        (format!("{plain}&secret-id=hunter2"), "name a file with `secret-id-file`"),
        (format!("{plain}&password=hunter2"), "a secret must not be in the URI"),
        (format!("{plain}&hvs.hunter2"), "a parameter has no valid name"),
        (format!("{plain}&namespcae=x"), "did you mean `namespace`?"),
        (format!("{plain}&ca-file=/a&ca-directory=/b"), "ca_file: not together with ca_directory"),
        (format!("{plain}&client-certificate=/a"), "client_certificate: needs client_key_file"),
        (format!("{plain}&binding=none"), "`binding` is neither associated-data nor unbound"),
        (format!("{plain}&timeout=5"), "`timeout` is not a duration with its unit"),
        (format!("{plain}&allow-plain-http=1"), "`allow-plain-http` is neither true nor false"),
        (format!("{plain}&auth=userpass"), "`auth` is none of none, environment, token-file"),
        (format!("{plain}&role=x"), "parameter `role` needs parameter `auth`"),
        (format!("{plain}&auth=kubernetes"), "auth: kubernetes needs role"),
        (
            format!("{plain}&auth=app-role&role-id=a&role-id-file=/b"),
            "auth: only one of role_id and role_id_file",
        ),
        (
            format!("{plain}&auth=app-role&role-id=a&secret-id-file=/a&wrapped-secret-id-file=/b"),
            "auth: only one of secret_id_file and wrapped_secret_id_file",
        ),
        (format!("{plain}&auth=none&role=x"), "auth: role does not go with none"),
        (
            format!("{plain}&auth=kubernetes&role=a&token-file=/a"),
            "auth: token_file does not go with kubernetes",
        ),
    ] {
        let error = uri.parse::<Config>().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(error.to_string().contains(part), "{uri}: {error}");
        assert!(!format!("{error:?}").contains("hunter2"), "{uri}: {error:?}");
    }
    let plain = "cluster = 'c'\nkey = 'k'\n";
    for (toml, part) in [
        ("key = 'k'".to_owned(), "cluster"),
        (format!("{plain}token = 'hunter2'"), "token"),
        (format!("{plain}adress = 'hunter2'"), "adress"),
        (format!("{plain}timeout = 5"), "a duration with its unit"),
        (format!("{plain}address = 'https://u:hunter2@vault'"), "address: must not contain"),
        (format!("{plain}[auth]\nmethod = 'token'\ntoken = 'hunter2'"), "token"),
        (
            format!("{plain}[auth]\nmethod = 'app-role'\nrole_id = 'a'\nsecret_id = 'hunter2'"),
            "secret_id",
        ),
        (format!("{plain}[auth]\nmethod = 'aws-iam'"), "auth: aws-iam needs role"),
    ] {
        let error = toml::from_str::<Config>(&toml).unwrap_err();
        assert!(
            error.message().contains(part) && !error.message().contains("hunter2"),
            "{toml}: {error}"
        );
    }
    let config =
        Config::new("c", "k").address("https://u:hunter2@vault").proxy("http://u:hunter2@proxy");
    let json = serde_json::to_string(&config).unwrap_or_default();
    let builder = VaultTransitKek::from_config(&config);
    assert!(!format!("{config} {config:?} {json} {builder:?}").contains("hunter2"));
}

#[tokio::test]
async fn every_option_reaches_the_builder() {
    let directory = tempfile::tempdir().unwrap();
    let junk = directory.path().join("junk.pem");
    std::fs::write(&junk, "no certificate").unwrap();
    let plain = || Config::new("c", "k").auth(AuthConfig::none());
    let with = |auth| Config::new("c", "k").auth(auth);
    VaultTransitKek::from_config(&plain()).build().unwrap();
    for (config, named) in [
        (Config::new("a/b", "k").auth(AuthConfig::none()), "cluster"),
        (Config::new("c", "a/b").auth(AuthConfig::none()), "key"),
        (plain().mount(".."), "mount"),
        (plain().address("ftp://vault"), "address"),
        (plain().address("https://u:p@vault"), "address"),
        (plain().address("http://vault.example"), "address"),
        (plain().namespace(".."), "namespace"),
        (plain().ca_file(&junk), "ca_file"),
        (plain().ca_directory(directory.path().join("none")), "ca_directory"),
        (plain().client_certificate(&junk, &junk), "client_certificate"),
        (plain().server_name("10.0.0.1"), "server_name"),
        (plain().proxy("socks5://proxy"), "proxy"),
        (plain().proxy("http://u:p@proxy"), "proxy"),
        (plain().connect_timeout(Duration::ZERO), "connect_timeout"),
        (plain().timeout(Duration::ZERO), "timeout"),
        (plain().key_max_age(Duration::ZERO), "key_max_age"),
        (Config::new("c", "k"), "auth"),
        (with(AuthConfig::certificate()), "client_certificate"),
        (with(AuthConfig::aws_iam("r").aws_region("no region")), "aws_region"),
        (with(AuthConfig::aws_iam("r").aws_server_id("two words")), "aws_server_id"),
        (with(AuthConfig::app_role("r").mount("..")), "mount"),
        (with(AuthConfig::kubernetes("r").mount("..")), "mount"),
        (with(AuthConfig::jwt("/t").mount("..")), "mount"),
        (with(AuthConfig::token_file("/t").role("r")), "role does not go"),
    ] {
        let error = VaultTransitKek::from_config(&config).build().unwrap_err();
        assert!(error.to_string().contains(named), "{config}: {error}");
    }
    let plain_http = plain().address("http://vault.example").allow_plain_http(true);
    VaultTransitKek::from_config(&plain_http).build().unwrap();
}

async fn server(derived: bool) -> OpenBao {
    let server = OpenBao::with(Options { tls: true, ..Options::default() }).await;
    server.policy("orders", "orders").await;
    server.create_key("orders", derived).await;
    server
}

fn uri(server: &OpenBao, more: &str) -> String {
    let host = server.address().replace("https://", "");
    format!(
        "vault-transit://{host}/transit/orders?cluster=test&ca-file={}{more}",
        server.ca_file().display()
    )
}

#[tokio::test]
async fn a_kek_of_a_uri_logs_in_wraps_and_unwraps() {
    let server = server(true).await;
    let (role_id, secret_id) = server.app_role("1h", "1h").await;
    let secret_id_file = server.file("secret-id", secret_id);
    let token = server.token(json!({ "policies": ["orders"], "ttl": "1h" })).await;
    let token_file = server.file("token", token);
    let (alice, dek) = (context("alice"), a_dek());
    for login in [
        format!("&auth=app-role&role-id={role_id}&secret-id-file={}", secret_id_file.display()),
        format!("&token-file={}", token_file.display()),
    ] {
        let config: Config = uri(&server, &login).parse().unwrap();
        let kek = VaultTransitKek::from_uri(uri(&server, &login)).await.unwrap();
        assert_eq!(kek.id().as_str(), "vault:test/transit/orders");
        let wrapped = kek.wrap(&alice, &dek).await.unwrap();
        assert_eq!(kek.unwrap(&alice, &wrapped).await.unwrap().expose(), dek.expose());
        // Each says something that counts.
        let without_ca = config.clone().ca_directory(token_file.parent().unwrap().join("none"));
        assert!(VaultTransitKek::from_config(&without_ca).build().is_err());
        let nowhere =
            VaultTransitKek::from_config(&config.clone().namespace("nowhere")).build().unwrap();
        assert!(nowhere.wrap(&alice, &dek).await.is_err());
    }
    let missing = AuthConfig::app_role(&role_id).secret_id_file("/none");
    let config: Config = uri(&server, "").parse().unwrap();
    let kek = VaultTransitKek::from_config(&config.auth(missing)).build().unwrap();
    assert!(kek.wrap(&alice, &dek).await.unwrap_err().to_string().contains("/none"));
}

#[tokio::test]
async fn the_binding_of_a_uri_counts() {
    let server = server(false).await;
    let token = server.token(json!({ "policies": ["orders"], "ttl": "1h" })).await;
    let token_file = server.file("token", token);
    let (alice, dek) = (context("alice"), a_dek());
    for (binding, enforced) in
        [("", None), ("&binding=associated-data", Some(true)), ("&binding=unbound", Some(false))]
    {
        let uri = uri(&server, &format!("&token-file={}{binding}", token_file.display()));
        let kek = VaultTransitKek::from_config(&uri.parse().unwrap()).build().unwrap();
        let wrapped = kek.wrap(&alice, &dek).await;
        let Some(enforced) = enforced else {
            assert_eq!(wrapped.unwrap_err().class(), KekErrorClass::Misconfigured);
            continue;
        };
        assert_eq!(
            kek.unwrap(&context("bob"), &wrapped.unwrap()).await.is_err(),
            enforced,
            "{binding}"
        );
    }
}

/// An error and its causes, as anyhow prints them. No part of a line occurs again in it or below.
fn says_nothing_twice(error: &dyn std::error::Error) -> String {
    let lines: Vec<_> = std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect();
    for (i, line) in lines.iter().enumerate() {
        for below in lines.iter().skip(i + 1) {
            assert!(!line.contains(below.as_str()), "{lines:#?}");
        }
        let parts: Vec<_> = line
            .split([':', ';', '(', ')'])
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .collect();
        for (n, part) in parts.iter().enumerate() {
            assert!(!parts[n + 1..].contains(part), "{lines:#?}");
        }
    }
    lines.join("\n")
}

#[derive(Debug)]
struct NoKeys;

impl AwsCredentials for NoKeys {
    fn keys(&self) -> BoxFuture<'_, Result<AwsKeys, KekError>> {
        Box::pin(async { Err(KekError::misconfigured("the profile is missing").without_asking()) })
    }
}

#[tokio::test]
async fn no_failure_says_anything_twice() {
    let server = server(true).await;
    let stranger = self::server(true).await;
    let (alice, dek) = (context("alice"), a_dek());
    let of = async |builder: VaultTransitKekBuilder| {
        let error = builder.build().unwrap().wrap(&alice, &dek).await.unwrap_err();
        let text = says_nothing_twice(&error);
        says_nothing_twice(&waxseal::Error::from(error));
        text
    };
    let token = server.token(json!({ "policies": ["orders"], "ttl": "1h" })).await;
    let builder = |address: String| VaultTransitKek::builder("test", "orders").address(address);
    let good = || builder(server.address()).ca_file(server.ca_file());
    // No connection; a certificate of another CA.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let text = of(builder(format!("http://{closed}")).auth(VaultAuth::token(&*token))).await;
    assert!(text.contains("no connection"), "{text}");
    let other_ca =
        builder(server.address()).ca_file(stranger.ca_file()).auth(VaultAuth::token(&*token));
    let text = of(other_ca).await;
    assert!(text.contains("certificate"), "{text}");
    // A login that is refused, and a token that may not.
    let text = of(good().auth(VaultAuth::app_role("nobody").secret_id("none"))).await;
    assert!(text.contains("login (AppRole)"), "{text}");
    let text = of(good().auth(VaultAuth::token("s.unknown"))).await;
    assert!(text.contains("403"), "{text}");
    let poor = server.token(json!({ "policies": ["default"], "ttl": "1h" })).await;
    let text = of(good().auth(VaultAuth::token(poor))).await;
    assert!(text.contains("permission denied"), "{text}");
    // The key.
    let none = VaultTransitKek::builder("test", "none")
        .address(server.address())
        .ca_file(server.ca_file());
    let text = of(none.auth(VaultAuth::token(server.root_token()))).await;
    assert!(text.starts_with("denied: "), "{text}");
    // What others said, put into the provider's own words.
    let text = of(good().auth(VaultAuth::aws_iam("orders", NoKeys))).await;
    assert_eq!(text, "misconfigured: login (AWS IAM): the profile is missing");
    let home =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let kek = {
        let _inside = home.enter();
        good().auth(VaultAuth::token(&*token)).build().unwrap()
    };
    home.shutdown_background();
    let many = std::thread::spawn(move || {
        let items = [(&alice, &dek)];
        pollster::block_on(kek.wrap_many(&items)).remove(0).unwrap_err()
    });
    says_nothing_twice(&many.join().unwrap());
    // At build.
    let error = good().ca_file("/none.pem").auth(VaultAuth::none()).build().unwrap_err();
    says_nothing_twice(&error);
}

#[tokio::test]
async fn debug_of_whatever_is_public_shows_no_secret() {
    let server = server(true).await;
    let builder = VaultTransitKek::builder("test", "orders")
        .address(server.address())
        .ca_file(server.ca_file())
        .auth(VaultAuth::token(server.root_token()));
    let shown = format!("{builder:?}");
    assert!(shown.contains("orders") && !shown.contains(server.root_token()), "{shown}");
    let kek = builder.build().unwrap();
    let info = kek.read_key().await.unwrap();
    let shown = format!("{kek:?} {info:?} {:?}", ContextBinding::Unbound);
    assert!(!shown.contains(server.root_token()), "{shown}");
    assert_eq!(serde_json::to_value(info).unwrap()["derived"], true);
}
