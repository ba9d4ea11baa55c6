//! The table of providers in the README says what the providers say of themselves.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use waxseal::kek::local::LocalKek;
use waxseal::kek::{ContextBinding, KekProvider};
use waxseal_aws_kms::AwsKmsKek;
use waxseal_azure_key_vault::{Algorithm, AzureKeyVaultKek, Credential};
use waxseal_google_kms::GoogleKmsKek;
use waxseal_pkcs11::Pkcs11Kek;
use waxseal_testing::kms_front::{Login, client_at};
use waxseal_vault_transit::{ContextBinding as Binding, VaultAuth, VaultTransitKek};

const README: &str = include_str!("../../../README.md");
const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/11112222-3333-4444-5555-666677778888";
const GOOGLE_KEY: &str = "projects/p/locations/l/keyRings/r/cryptoKeys/k";
/// Nobody listens there, and nobody is called.
const NOWHERE: &str = "http://127.0.0.1:9";

/// What a row says of a provider, but for its name and what it was tested against.
#[derive(PartialEq, Eq, Debug)]
struct Row {
    of_type: String,
    context: String,
    rewrap: String,
    batch: String,
    calls: String,
}

/// The rows of the table, and the names of the columns.
fn table() -> (Vec<&'static str>, Vec<Vec<&'static str>>) {
    let section = README.split("\n## Providers\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let cells = |line: &'static str| {
        let inner = line.strip_prefix('|').unwrap().strip_suffix('|').unwrap();
        inner.split('|').map(str::trim).collect::<Vec<_>>()
    };
    let mut lines = section.lines().filter(|line| line.starts_with('|')).map(cells);
    let head = lines.next().unwrap();
    (head, lines.skip(1).collect())
}

/// Without what is said in brackets, and without what follows the first word where that is free.
fn said(cells: &[&str]) -> Row {
    let bare = |cell: &str| cell.split(" (").next().unwrap().to_owned();
    let of_type = cells[1].trim_matches('`').to_owned();
    let context = cells[2].split([' ', ':']).next().unwrap().to_owned();
    let calls = bare(cells[5]).split(':').next().unwrap().to_owned();
    Row { of_type, context, rewrap: bare(cells[3]), batch: cells[4].to_owned(), calls }
}

fn says(of_type: &str, kek: &dyn KekProvider) -> Row {
    let context = match kek.context_binding() {
        ContextBinding::Enforced => "enforced",
        ContextBinding::Checked => "checked",
        ContextBinding::Unauthenticated => "unauthenticated",
        _ => panic!("a new way to bind a context"),
    };
    let rewrap = if kek.rewraps_in_service() { "in the service" } else { "unwrap and wrap" };
    let target = kek.target(kek.id());
    let calls = match target.advice().call_budget() {
        None => "no limit of its own".to_owned(),
        Some(budget) => {
            let text = format!("{budget:?}");
            let number = |name: &str| {
                let rest = text.split(name).nth(1).unwrap();
                rest.chars().take_while(char::is_ascii_digit).collect::<String>()
            };
            match (number("per_second: "), number("in_flight: ")) {
                // As many as there may be: the sessions are what limits.
                (per_second, in_flight) if per_second == "1000000" => {
                    format!("{in_flight} in flight")
                }
                (per_second, in_flight) => {
                    format!("{per_second} per second, {in_flight} in flight")
                }
            }
        }
    };
    Row {
        of_type: of_type.to_owned(),
        context: context.to_owned(),
        rewrap: rewrap.to_owned(),
        batch: kek.batch_size().to_string(),
        calls,
    }
}

fn login() -> Login {
    Login { access_key: "AKIA".into(), secret: "none".into(), session_token: None }
}

fn azure(host: &str, algorithm: Algorithm) -> AzureKeyVaultKek {
    let credential = Credential::ManagedIdentity { client_id: None };
    let builder = AzureKeyVaultKek::builder(host, "cards").algorithm(algorithm);
    builder.credential(credential).build().unwrap()
}

fn vault() -> waxseal_vault_transit::VaultTransitKekBuilder {
    let builder = VaultTransitKek::builder("cluster", "orders").address(NOWHERE);
    builder.auth(VaultAuth::token("none"))
}

#[tokio::test]
async fn the_readme_says_of_each_provider_what_it_says_of_itself() {
    let client = || client_at(NOWHERE, "eu-west-1", &login());
    let aws = AwsKmsKek::builder(ARN).client(client()).build().await.unwrap();
    let xks = AwsKmsKek::builder(ARN).client(client()).external_key_store("cks-1234567890abcdef0");
    let xks = xks.build().await.unwrap();
    let google = |is_external| {
        let builder = GoogleKmsKek::builder(GOOGLE_KEY).endpoint(NOWHERE);
        builder.metadata_server_at(NOWHERE).external_key_manager(is_external)
    };
    let (google, ekm) = (google(false).build().await.unwrap(), google(true).build().await.unwrap());
    let managed_hsm = azure("orders.managedhsm.azure.net", Algorithm::A256Gcm);
    let rsa = azure("orders.vault.azure.net", Algorithm::RsaOaep256);
    let hsm = Pkcs11Kek::builder("/no/module.so", "orders").token("none").pin("0000");
    let (vault, hsm) = (vault().build().unwrap(), hsm.build().unwrap());
    let local = LocalKek::in_memory("orders").unwrap();
    let (aws_type, google_type) =
        ("waxseal_aws_kms::AwsKmsKek", "waxseal_google_kms::GoogleKmsKek");
    let azure_type = "waxseal_azure_key_vault::AzureKeyVaultKek";
    let seen = [
        says(aws_type, &aws),
        says(aws_type, &xks),
        says(google_type, &google),
        says(google_type, &ekm),
        says(azure_type, &managed_hsm),
        says(azure_type, &rsa),
        says("waxseal_vault_transit::VaultTransitKek", &vault),
        says("waxseal_pkcs11::Pkcs11Kek", &hsm),
        says("waxseal::kek::local::LocalKek", &local),
    ];
    let (head, rows) = table();
    let columns = [
        "KEK in",
        "type",
        "encryption context",
        "rewrap",
        "batch",
        "calls of a process",
        "tested against",
    ];
    assert_eq!(head, columns);
    assert!(rows.iter().all(|row| row.len() == columns.len()));
    let (own, rest) = rows.split_at(seen.len());
    assert_eq!(own.iter().map(|row| said(row)).collect::<Vec<_>>(), seen);
    // A provider of one's own.
    assert_eq!(rest.len(), 1);
    assert_eq!(rest[0][1], "implements `KekProvider`");
}

/// What the brackets of the row of Vault say.
#[tokio::test]
async fn a_key_of_vault_that_is_not_derived_is_as_its_user_chooses() {
    let associated = vault().binding(Binding::AssociatedData).build().unwrap();
    assert!(!associated.rewraps_in_service());
    assert_eq!(associated.context_binding(), ContextBinding::Enforced);
    let unbound = vault().binding(Binding::Unbound).build().unwrap();
    assert!(unbound.rewraps_in_service());
    assert_eq!(unbound.context_binding(), ContextBinding::Checked);
}

/// The links to pages for operators, and every page of a provider is linked.
#[test]
fn the_readme_links_the_page_of_each_provider() {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
    let (_, rows) = table();
    let mut linked: Vec<_> = rows
        .iter()
        .filter_map(|row| row[0].split("](").nth(1)?.split([')', '#']).next())
        .filter(|path| path.starts_with("crates/"))
        .collect();
    linked.dedup();
    assert_eq!(linked.len(), 7, "{linked:?}");
    for path in linked {
        assert!(std::path::Path::new(root).join(path).is_file(), "{path}");
    }
}
