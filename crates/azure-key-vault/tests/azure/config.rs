//! The configuration as data and as a URI, and what the builder refuses.

use std::time::Duration;

use waxseal::kek::KekProvider;
use waxseal_azure_key_vault::{
    Algorithm, AzureKeyVaultKek, AzureKeyVaultKekBuilder, Config, Credential, HealthCheck,
};

const HSM: &str = "orders.managedhsm.azure.net";

fn every() -> Vec<Config> {
    let id = |text: &str| Some(text.to_owned());
    let credentials = [
        Credential::Environment,
        Credential::ManagedIdentity { client_id: None },
        Credential::ManagedIdentity { client_id: id("c") },
        Credential::WorkloadIdentity { tenant_id: None, client_id: None, token_file: None },
        Credential::WorkloadIdentity {
            tenant_id: id("t"),
            client_id: id("c"),
            token_file: Some("/run/token".into()),
        },
        Credential::ClientSecret {
            tenant_id: "t".to_owned(),
            client_id: "c".to_owned(),
            secret_file: "/run/a secret".into(),
        },
        Credential::ClientCertificate {
            tenant_id: "t".to_owned(),
            client_id: "c".to_owned(),
            certificate_file: "/run/cert.pem".into(),
        },
    ];
    let full = Config::new(HSM, "cards")
        .algorithm(Algorithm::A256Gcm)
        .former_keys(["https://old.vault.azure.net/keys/a", "https://old.vault.azure.net/keys/b"])
        .authority_host("https://login.microsoftonline.us")
        .address("10.0.0.4:443".parse().unwrap())
        .ca_file("/etc/ca.pem")
        .key_max_age(Duration::from_secs(60))
        .health_check(HealthCheck::TryUse);
    let mut configs = vec![
        Config::new("orders", "cards"),
        Config::new("orders", "cards").algorithm(Algorithm::RsaOaep256),
        full.clone(),
    ];
    configs.extend(credentials.map(|credential| full.clone().credential(credential)));
    configs
}

#[test]
fn a_config_is_read_back_from_its_uri_and_from_toml() {
    for config in every() {
        let uri = config.to_string();
        assert_eq!(uri.parse::<Config>().unwrap(), config, "{uri}");
        let text = toml::to_string(&config).unwrap();
        assert_eq!(toml::from_str::<Config>(&text).unwrap(), config, "{text}");
    }
}

#[test]
fn a_uri_that_is_wrong_names_the_part_and_shows_no_value() {
    for (rest, part) in [
        ("", "VAULT/KEY"),
        ("orders", "VAULT/KEY"),
        ("orders/", "VAULT/KEY"),
        ("orders/cards/0a", "VAULT/KEY"),
        ("u:hunter2@orders/cards", "no user or password"),
        ("u:hunter2%40orders/cards", "no user or password"),
        ("orders/cards?authority-host=https://u:hunter2@login.example", "`authority-host`"),
        ("orders/cards?algorithm=hunter2", "`algorithm` is none of"),
        ("orders/cards?credential=hunter2", "`credential` is not one of"),
        ("orders/cards?health-check=hunter2", "`health-check` is none of"),
        ("orders/cards?address=hunter2", "`address` is not"),
        ("orders/cards?secret=hunter2", "`secret` would put a secret into the URI"),
        ("orders/cards?client-id=c", "`client-id` does not belong"),
        ("orders/cards?credential=managed-identity&tenant-id=t", "`tenant-id` does not belong"),
        ("orders/cards?credential=client-secret&client-id=c", "`tenant-id` is missing"),
        (
            "orders/cards?credential=client-secret&client-id=c&tenant-id=t",
            "`secret-file` is missing",
        ),
        ("orders/cards?key-max-age=5", "`key-max-age` is not a duration"),
    ] {
        let error = format!("azure-key-vault://{rest}").parse::<Config>().unwrap_err().to_string();
        assert!(error.contains(part), "{rest}: {error}");
        assert!(!error.contains("hunter2"), "{rest}: {error}");
    }
}

/// Every option, with a value that is refused.
#[tokio::test]
async fn a_wrong_option_is_refused_by_its_name() {
    type Change = fn(AzureKeyVaultKekBuilder) -> AzureKeyVaultKekBuilder;
    let cases: [(&str, &str, &str, Change); 10] = [
        ("vault", "example.com", "cards", |builder| builder),
        ("vault", "https://u:hunter2@orders.vault.azure.net", "cards", |builder| builder),
        ("key", HSM, "cards/0a", |builder| builder),
        ("key", HSM, "", |builder| builder),
        ("algorithm", "orders", "cards", |builder| builder),
        ("key_max_age", HSM, "cards", |builder| builder.key_max_age(Duration::ZERO)),
        ("key_max_age", HSM, "cards", |builder| builder.key_max_age(Duration::from_secs(90_000))),
        ("authority_host", HSM, "cards", |builder| builder.authority_host("http://login.example")),
        ("authority_host", HSM, "cards", |builder| {
            builder.authority_host("https://u:hunter2@login.example")
        }),
        ("ca_file", HSM, "cards", |builder| builder.ca_file("/no/such/file.pem")),
    ];
    for (option, vault, key, change) in cases {
        let error = change(AzureKeyVaultKek::builder(vault, key)).build().unwrap_err().to_string();
        assert!(error.contains(&format!("{option}: ")), "{option}: {error}");
        assert!(!error.contains("hunter2"), "{option}: {error}");
        let builder = AzureKeyVaultKek::builder(vault, key);
        assert!(!format!("{builder:?}").contains("hunter2"), "{builder:?}");
    }
}

#[test]
fn outside_a_runtime_it_is_refused_in_words() {
    let error = AzureKeyVaultKek::builder(HSM, "cards").build().unwrap_err().to_string();
    assert!(error.contains("build: ") && error.contains("runtime"), "{error}");
}

#[tokio::test]
async fn the_id_is_the_keys_identifier_without_a_version_and_a_port() {
    for vault in [HSM, "https://Orders.ManagedHSM.azure.net/", "orders.managedhsm.azure.net:8443"] {
        let kek = AzureKeyVaultKek::builder(vault, "cards").build().unwrap();
        assert_eq!(kek.id().as_str(), "https://orders.managedhsm.azure.net/keys/cards");
    }
    let uri = "azure-key-vault://orders/cards?algorithm=rsa-oaep-256".to_owned();
    let kek = AzureKeyVaultKek::from_uri(uri).await.unwrap();
    assert_eq!(kek.id().as_str(), "https://orders.vault.azure.net/keys/cards");
}
