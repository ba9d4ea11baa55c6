//! How the store handles an operator's changes, an outage and another program's items.

use std::time::{Duration, Instant};

use aws_sdk_dynamodb::types::{
    AttributeDefinition, AttributeValue, BillingMode, KeySchemaElement, KeyType,
    ScalarAttributeType,
};
use waxseal::ErrorKind;
use waxseal::store::{KeyStore, StoreError, StoreErrorClass};
use waxseal_dynamodb::DynamoDbKeyStore;
use waxseal_testing::stand_in::{Line, Relay, StandIn};

use crate::{client, new_store, row, store_at};

/// Every call's error.
async fn errors(store: &DynamoDbKeyStore) -> Vec<(&'static str, Option<StoreError>)> {
    let row = row(1, 0, 0);
    let branch = row.place().unwrap().branch;
    vec![
        ("insert", store.insert(&row).await.err()),
        ("get", store.get(row.id()).await.err()),
        ("branch", store.branch(&branch, 0).await.err()),
        ("replace", store.replace(&row, &row).await.err()),
        ("erase_branch", store.erase_branch(&branch).await.err()),
        ("scan", store.scan(None, 1).await.err()),
        ("health", store.health().await.err()),
    ]
}

fn are(errors: Vec<(&'static str, Option<StoreError>)>, class: StoreErrorClass, text: &str) {
    for (call, error) in errors {
        let error = error.unwrap_or_else(|| panic!("{call} succeeded"));
        assert_eq!(error.class(), class, "{call}: {error}");
        assert!(error.to_string().contains(text), "{call}: {error}");
    }
}

#[tokio::test]
async fn a_table_that_is_not_there_is_misconfigured() {
    for server in [StandIn::moto(), StandIn::ministack()] {
        let store = store_at(&server.url(), "no-such-table", Duration::from_secs(30)).await;
        are(errors(&store).await, StoreErrorClass::Misconfigured, "ResourceNotFoundException");
    }
}

#[tokio::test]
async fn a_server_that_is_killed_is_unavailable_within_the_bound() {
    let mut server = StandIn::moto();
    new_store(&server.url(), "killed").await;
    let store = store_at(&server.url(), "killed", Duration::from_secs(5)).await;
    store.health().await.unwrap();
    server.kill();
    let began = Instant::now();
    are(errors(&store).await, StoreErrorClass::Unavailable, "");
    assert!(began.elapsed() < Duration::from_secs(7 * 6), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_server_that_says_nothing_is_unavailable_within_the_bound() {
    let server = StandIn::moto();
    new_store(&server.url(), "silent").await;
    let relay = Relay::to(server.port());
    let store = store_at(&relay.url(), "silent", Duration::from_millis(1500)).await;
    relay.set(Line::Silent);
    let began = Instant::now();
    are(errors(&store).await, StoreErrorClass::Unavailable, "no answer in time");
    assert!(began.elapsed() < Duration::from_secs(7 * 2), "{:?}", began.elapsed());
    relay.set(Line::Open);
    store_at(&relay.url(), "silent", Duration::from_secs(30)).await.health().await.unwrap();
}

#[tokio::test]
async fn a_table_with_other_keys_is_misconfigured() {
    let server = StandIn::moto();
    let key = KeySchemaElement::builder().attribute_name("pk").key_type(KeyType::Hash);
    let attribute =
        AttributeDefinition::builder().attribute_name("pk").attribute_type(ScalarAttributeType::S);
    let call = client(&server.url()).create_table().table_name("others");
    call.billing_mode(BillingMode::PayPerRequest)
        .key_schema(key.build().unwrap())
        .attribute_definitions(attribute.build().unwrap())
        .send()
        .await
        .unwrap();
    let store = store_at(&server.url(), "others", Duration::from_secs(30)).await;
    let error = store.create_table().await.unwrap_err();
    assert_eq!(error.class(), StoreErrorClass::Misconfigured);
    assert!(error.to_string().contains("`id`"), "{error}");
    let error = store.health().await.unwrap_err();
    assert_eq!(error.class(), StoreErrorClass::Misconfigured, "{error}");
}

#[tokio::test]
async fn an_item_of_another_program_and_a_row_that_was_deleted_are_named() {
    let server = StandIn::moto();
    let store = new_store(&server.url(), "shared").await;
    let (row, client) = (row(1, 0, 0), client(&server.url()));
    store.insert(&row).await.unwrap();
    let key = |id: &str| (AttributeValue::S(id.to_owned()), AttributeValue::S("row".to_owned()));
    let (id, at) = key(&format!("row#{}", row.id()));
    client.delete_item().table_name("shared").key("id", id).key("at", at).send().await.unwrap();
    let bounded = store_at(&server.url(), "shared", Duration::from_secs(5)).await;
    let error = bounded.branch(&row.place().unwrap().branch, 0).await.unwrap_err();
    assert_eq!(error.class(), StoreErrorClass::Misconfigured, "{error}");
    assert!(error.to_string().contains(&row.id().to_string()), "{error}");

    let (id, at) = key("customer#17");
    client.put_item().table_name("shared").item("id", id).item("at", at).send().await.unwrap();
    let error = loop {
        if let Err(error) = store.scan(None, 10).await {
            break error;
        }
    };
    assert_eq!(error.class(), StoreErrorClass::Misconfigured);
    assert!(error.to_string().contains("customer#17"), "{error}");
}

#[tokio::test]
async fn a_client_without_credentials_is_misconfigured() {
    let server = StandIn::moto();
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(aws_sdk_dynamodb::config::BehaviorVersion::latest())
        .region(aws_sdk_dynamodb::config::Region::new("eu-west-1"))
        .endpoint_url(server.url());
    let client = aws_sdk_dynamodb::Client::from_conf(config.build());
    let store = DynamoDbKeyStore::builder().table("keys").client(client).build().await.unwrap();
    are(errors(&store).await, StoreErrorClass::Misconfigured, "no credentials");
}

#[tokio::test]
async fn every_option_that_is_wrong_fails_at_build() {
    let with =
        |table: &str| DynamoDbKeyStore::builder().table(table).client(client("http://127.0.0.1:1"));
    for (builder, named) in [
        (DynamoDbKeyStore::builder().client(client("http://127.0.0.1:1")), "table"),
        (with("a b c"), "table"),
        (with("keys").timeout(Duration::from_millis(99)), "timeout"),
        (with("keys").timeout(Duration::from_secs(301)), "timeout"),
        (
            DynamoDbKeyStore::builder()
                .table("keys")
                .sdk_config(&aws_config::SdkConfig::builder().build()),
            "region",
        ),
    ] {
        let error = builder.build().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption);
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[tokio::test]
async fn the_builder_s_region_and_endpoint_win() {
    let server = StandIn::moto();
    new_store(&server.url(), "keys").await;
    let builder = || DynamoDbKeyStore::builder().table("keys").client(client("http://127.0.0.1:1"));
    let timeout = Duration::from_secs(3);
    let error = builder().timeout(timeout).build().await.unwrap().health().await.unwrap_err();
    assert_eq!(error.class(), StoreErrorClass::Unavailable, "{error}");
    builder().endpoint_url(server.url()).build().await.unwrap().health().await.unwrap();
    // moto has another set of tables in each Region.
    let elsewhere = builder().endpoint_url(server.url()).region("us-west-2").build().await.unwrap();
    let error = elsewhere.health().await.unwrap_err();
    assert_eq!(error.class(), StoreErrorClass::Misconfigured, "{error}");
}

/// An envelope is used from threads without a runtime too. A panic there would be every caller's.
#[test]
fn a_caller_without_a_runtime_gets_an_answer() {
    use waxseal_testing::support::block_on;

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let nowhere = "http://127.0.0.1:1";
    let store = runtime.block_on(store_at(nowhere, "keys", Duration::from_secs(5)));
    let row = row(1, 0, 1);
    let error = block_on(store.get(row.id())).unwrap_err();
    assert_eq!(error.class(), StoreErrorClass::Unavailable, "{error}");
    let error = block_on(store.insert(&row)).unwrap_err();
    assert_eq!(error.class(), StoreErrorClass::Unavailable, "{error}");
}
