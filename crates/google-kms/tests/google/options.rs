//! Every option: what it does, and that a wrong value fails.

use waxseal::{CallBudget, EncryptionContext, ErrorKind};
use waxseal_google_kms::{Config, GoogleKmsKek, GoogleKmsKekBuilder, HealthCheck};

const KEY: &str = "projects/orders-prod/locations/europe-west1/keyRings/services/cryptoKeys/orders";

async fn refusal(builder: GoogleKmsKekBuilder) -> String {
    let error = builder.build().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");
    error.to_string()
}

#[tokio::test]
async fn a_wrong_option_is_named() {
    let builder = || GoogleKmsKek::builder(KEY);
    let other = format!("{KEY}-old");
    for (builder, option) in [
        (GoogleKmsKek::builder(""), "key: "),
        (GoogleKmsKek::builder("orders"), "key: "),
        (GoogleKmsKek::builder(format!("{KEY}/cryptoKeyVersions/1")), "it names a version"),
        (builder().former_keys(["orders"]), "former_keys: "),
        (builder().former_keys([KEY]), "former_keys: "),
        (builder().former_keys([&other, &other]), "former_keys: "),
        (builder().former_keys((0..257).map(|n| format!("{KEY}-{n}"))), "former_keys: 257"),
        (builder().endpoint("cloudkms.googleapis.com"), "endpoint: "),
        (builder().endpoint("https://"), "endpoint: "),
        (builder().endpoint("http://cloudkms.googleapis.com"), "endpoint: "),
        (builder().endpoint("https://cloudkms.googleapis.com/v1"), "endpoint: "),
        (builder().endpoint("https://cloudkms.googleapis.com?x"), "endpoint: "),
        (builder().endpoint("https://me:hunter2@cloudkms.googleapis.com"), "endpoint: "),
        (builder().metadata_server_at("http://example.com"), "metadata_server_at: "),
        (builder().metadata_server_at("http://me:hunter2@127.0.0.1"), "metadata_server_at: "),
        (builder().quota_project(""), "quota_project: "),
        (builder().quota_project("a b"), "quota_project: "),
        (builder().quota_project("a\r\nx-other: 1"), "quota_project: "),
    ] {
        let error = refusal(builder).await;
        assert!(error.contains(option), "{option}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[tokio::test]
async fn building_makes_no_call_and_needs_no_credentials() {
    for builder in [
        GoogleKmsKek::builder(KEY),
        GoogleKmsKek::builder(KEY).metadata_server(),
        GoogleKmsKek::builder(KEY).metadata_server_at("http://169.254.169.254"),
        GoogleKmsKek::builder(KEY).credentials_file("/nonexistent"),
        GoogleKmsKek::builder(KEY).endpoint("https://cloudkms.europe-west3.rep.googleapis.com/"),
        GoogleKmsKek::builder(KEY).call_budget(CallBudget::new(1, 1).unwrap()),
    ] {
        builder.build().await.unwrap();
    }
}

#[test]
fn outside_a_runtime_it_cannot_be_built() {
    let built = waxseal_testing::support::block_on(GoogleKmsKek::builder(KEY).build());
    assert!(built.unwrap_err().to_string().contains("tokio runtime"));
}

fn full() -> Config {
    Config::new(KEY)
        .credentials_file("/etc/orders/google.json")
        .quota_project("billing")
        .endpoint("https://cloudkms.europe-west3.rep.googleapis.com")
        .external_key_manager(true)
        .former_keys([format!("{KEY}-1"), format!("{KEY}-2")])
        .health_check(HealthCheck::TryUse)
        .health_context(EncryptionContext::new([("purpose", "health"), ("a", "b,c=d")]).unwrap())
}

#[test]
fn a_configuration_is_read_back_from_its_uri_and_from_toml() {
    for config in [
        full(),
        Config::new(KEY),
        Config::new(KEY).metadata_server(true),
        Config::new(KEY).metadata_server_at("http://127.0.0.1:8080"),
    ] {
        assert_eq!(config.to_string().parse::<Config>().unwrap(), config, "{config}");
        #[cfg(feature = "serde")]
        {
            let file = toml::to_string(&config).unwrap();
            assert_eq!(toml::from_str::<Config>(&file).unwrap(), config, "{file}");
        }
    }
}

#[test]
fn a_wrong_uri_names_the_part_and_shows_no_value() {
    for (uri, part) in [
        ("google-kms://".to_owned(), "the key is not"),
        ("google-kms://projects/p".to_owned(), "the key is not"),
        (format!("google-kms://{KEY}/cryptoKeyVersions/1"), "the key is not"),
        (format!("google-kms://hunter2@{KEY}"), "no user or password"),
        (format!("google-kms://{KEY}?health-check=hunter2"), "health-check"),
        (format!("google-kms://{KEY}?metadata-server=hunter2"), "metadata-server"),
        (format!("google-kms://{KEY}?external-key-manager=hunter2"), "external-key-manager"),
        (format!("google-kms://{KEY}?token=hunter2"), "token"),
        (format!("google-kms://{KEY}?health-context=hunter2"), "health-context"),
        (
            format!("google-kms://{KEY}?metadata-server=true&credentials-file=/x"),
            "only one of them",
        ),
        (format!("google-kms://{KEY}?endpoint=https://u:hunter2%40h"), "endpoint"),
        (format!("aws-kms://{KEY}"), "google-kms://"),
    ] {
        let error = uri.parse::<Config>().unwrap_err().to_string();
        assert!(error.contains(part), "{uri}: {error}");
        assert!(!error.contains("hunter2"), "{uri}: {error}");
    }
}

#[cfg(feature = "serde")]
#[test]
fn a_wrong_file_is_refused() {
    for (file, part) in [
        ("", "key: it is missing"),
        ("key = \"k\"\nkei = 1", "unknown field"),
        ("key = \"k\"\nhealth_check = \"x\"", "unknown variant"),
        ("key = \"k\"\nendpoint = \"https://u:p@h\"", "endpoint"),
        ("key = \"k\"\nmetadata_server = true\nmetadata_server_at = \"x\"", "only one"),
    ] {
        let error = toml::from_str::<Config>(file).unwrap_err().to_string();
        assert!(error.contains(part), "{file}: {error}");
    }
}

#[tokio::test]
async fn a_configuration_reaches_the_builder() {
    for (config, option) in [
        (Config::new("orders"), "key: "),
        (Config::new(KEY).former_keys([KEY]), "former_keys: "),
        (Config::new(KEY).endpoint("ftp://x"), "endpoint: "),
        (Config::new(KEY).endpoint("https://u:p@x"), "endpoint: "),
        (Config::new(KEY).metadata_server_at("http://x"), "metadata_server_at: "),
        (Config::new(KEY).quota_project("a b"), "quota_project: "),
    ] {
        let error = refusal(GoogleKmsKek::from_config(&config)).await;
        assert!(error.contains(option), "{option}: {error}");
    }
    let kek = GoogleKmsKek::from_uri(format!("google-kms://{KEY}?metadata-server=true"));
    assert!(format!("{:?}", kek.await.unwrap()).contains("the metadata server"));
    let shown = format!("{:?}", GoogleKmsKek::from_config(&full()));
    assert!(shown.contains("a credentials file"), "{shown}");
}
