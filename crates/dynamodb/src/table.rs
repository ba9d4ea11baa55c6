//! The AWS SDK: the store's requests and their outcomes.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::Config;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::operation::put_item::PutItemError;
use aws_sdk_dynamodb::operation::transact_write_items::TransactWriteItemsError;
use aws_sdk_dynamodb::operation::update_item::UpdateItemError;
use aws_sdk_dynamodb::types::AttributeValue;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, KeysAndAttributes, Put,
    ScalarAttributeType, TableStatus, TransactWriteItem, Update,
};
use waxseal::store::StoreError;

use crate::errors::{self, failure};
use crate::format::{AT, ID, Item};

const NOT_THERE: &str = "attribute_not_exists(#id)";
/// The maximum number of keys of one `BatchGetItem`.
const MOST_KEYS: usize = 100;
const POLL: Duration = Duration::from_millis(500);
const CREATION: Duration = Duration::from_secs(300);

/// One table, through one client.
#[derive(Clone)]
pub(crate) struct Table {
    pub(crate) client: Client,
    pub(crate) name: String,
}

/// The outcome of a conditional write that the service understood.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Written {
    Done,
    /// A condition does not hold. Nothing was written.
    Refused,
    /// Another transaction is writing the same items. Nothing was written.
    Conflict,
}

/// A change of an existing item.
pub(crate) struct Change {
    pub(crate) key: Item,
    pub(crate) update: String,
    pub(crate) condition: String,
    pub(crate) names: HashMap<String, String>,
    pub(crate) values: HashMap<String, AttributeValue>,
}

impl Table {
    pub(crate) async fn get(&self, key: Item) -> Result<Option<Item>, StoreError> {
        let call = self.client.get_item().table_name(&self.name).set_key(Some(key));
        let output = call.consistent_read(true).send().await;
        output.map(|output| output.item).map_err(|error| failure("GetItem", &error))
    }

    /// Puts one item unless there is one with its key.
    pub(crate) async fn put_new(&self, item: Item) -> Result<Written, StoreError> {
        let call = self.client.put_item().table_name(&self.name).set_item(Some(item));
        let call = call.condition_expression(NOT_THERE).expression_attribute_names("#id", ID);
        match call.send().await {
            Ok(_) => Ok(Written::Done),
            Err(error) => match error.as_service_error() {
                Some(PutItemError::ConditionalCheckFailedException(_)) => Ok(Written::Refused),
                Some(PutItemError::TransactionConflictException(_)) => Ok(Written::Conflict),
                _ => Err(failure("PutItem", &error)),
            },
        }
    }

    /// Puts all items, unless there is one with the key of any of them.
    pub(crate) async fn put_all_new(&self, items: Vec<Item>) -> Result<Written, StoreError> {
        let mut writes = Vec::with_capacity(items.len());
        for item in items {
            let put = Put::builder().table_name(&self.name).set_item(Some(item));
            let put = put.condition_expression(NOT_THERE).expression_attribute_names("#id", ID);
            let put = put.build().map_err(|error| incomplete(&error))?;
            writes.push(TransactWriteItem::builder().put(put).build());
        }
        self.transact(writes).await
    }

    /// Makes all changes or none.
    pub(crate) async fn change_all(&self, changes: Vec<Change>) -> Result<Written, StoreError> {
        let mut writes = Vec::with_capacity(changes.len());
        for change in changes {
            let update = Update::builder().table_name(&self.name).set_key(Some(change.key));
            let update = update
                .update_expression(change.update)
                .condition_expression(change.condition)
                .set_expression_attribute_names(Some(change.names))
                .set_expression_attribute_values(Some(change.values));
            let update = update.build().map_err(|error| incomplete(&error))?;
            writes.push(TransactWriteItem::builder().update(update).build());
        }
        self.transact(writes).await
    }

    /// The SDK gives each transaction a token, so that its retries cannot apply it twice.
    async fn transact(&self, writes: Vec<TransactWriteItem>) -> Result<Written, StoreError> {
        const OPERATION: &str = "TransactWriteItems";
        let call = self.client.transact_write_items().set_transact_items(Some(writes));
        let Err(error) = call.send().await else { return Ok(Written::Done) };
        match error.as_service_error() {
            Some(TransactWriteItemsError::TransactionCanceledException(cancelled)) => {
                let codes = cancelled.cancellation_reasons().iter().filter_map(|it| it.code());
                let codes: Vec<_> = codes.filter(|code| *code != "None").collect();
                if codes.contains(&"ConditionalCheckFailed") {
                    return Ok(Written::Refused);
                }
                match codes.first() {
                    Some(&"TransactionConflict") => Ok(Written::Conflict),
                    Some(code) => {
                        let text = format!("{OPERATION}: cancelled: {}", errors::tidy(code));
                        Err(errors::error(errors::classify(400, Some(code)), text))
                    }
                    None => Err(failure(OPERATION, &error)),
                }
            }
            Some(TransactWriteItemsError::TransactionInProgressException(_)) => {
                Ok(Written::Conflict)
            }
            _ => Err(failure(OPERATION, &error)),
        }
    }

    /// Changes one item. Tried once: if a first try had succeeded, the SDK's retry would find its
    /// own change and be refused.
    pub(crate) async fn change(&self, change: Change) -> Result<Written, StoreError> {
        let call = self.client.update_item().table_name(&self.name).set_key(Some(change.key));
        let call = call
            .update_expression(change.update)
            .condition_expression(change.condition)
            .set_expression_attribute_names(Some(change.names))
            .set_expression_attribute_values(Some(change.values));
        let once = Config::builder().retry_config(RetryConfig::disabled());
        match call.customize().config_override(once).send().await {
            Ok(_) => Ok(Written::Done),
            Err(error) => match error.as_service_error() {
                Some(UpdateItemError::ConditionalCheckFailedException(_)) => Ok(Written::Refused),
                Some(UpdateItemError::TransactionConflictException(_)) => Ok(Written::Conflict),
                _ => Err(failure("UpdateItem", &error)),
            },
        }
    }

    /// Returns the items of a partition from a sort key on, in order.
    pub(crate) async fn query(
        &self,
        partition: &str,
        from: String,
    ) -> Result<Vec<Item>, StoreError> {
        let (mut items, mut start) = (Vec::new(), None);
        loop {
            let call = self.client.query().table_name(&self.name).consistent_read(true);
            let call = call
                .key_condition_expression("#id = :id AND #at >= :from")
                .expression_attribute_names("#id", ID)
                .expression_attribute_names("#at", AT)
                .expression_attribute_values(":id", AttributeValue::S(partition.to_owned()))
                .expression_attribute_values(":from", AttributeValue::S(from.clone()));
            let output = call.set_exclusive_start_key(start).send().await;
            let output = output.map_err(|error| failure("Query", &error))?;
            items.extend(output.items.unwrap_or_default());
            start = output.last_evaluated_key.filter(|key| !key.is_empty());
            if start.is_none() {
                return Ok(items);
            }
        }
    }

    /// Returns the items that exist, in no particular order.
    pub(crate) async fn get_all(&self, keys: &[Item]) -> Result<Vec<Item>, StoreError> {
        let mut items = Vec::with_capacity(keys.len());
        for keys in keys.chunks(MOST_KEYS) {
            let mut left = keys.to_vec();
            while !left.is_empty() {
                let asked = left.len();
                let request = KeysAndAttributes::builder().set_keys(Some(left));
                let request = request.consistent_read(true).build();
                let request = request.map_err(|error| incomplete(&error))?;
                let call = self.client.batch_get_item().request_items(&self.name, request);
                let output = call.send().await.map_err(|error| failure("BatchGetItem", &error))?;
                for found in output.responses.unwrap_or_default().into_values() {
                    items.extend(found);
                }
                // An answer has at most 16 MB.
                let rest = output.unprocessed_keys.unwrap_or_default();
                left = rest.into_values().flat_map(|rest| rest.keys).collect();
                if left.len() >= asked {
                    return Err(StoreError::throttled("BatchGetItem: no key was processed"));
                }
            }
        }
        Ok(items)
    }

    /// Returns a page of all items, and the key after which the next one begins.
    pub(crate) async fn scan(
        &self,
        after: Option<Item>,
        limit: usize,
    ) -> Result<(Vec<Item>, Option<Item>), StoreError> {
        let limit = i32::try_from(limit.max(1)).unwrap_or(i32::MAX);
        let call = self.client.scan().table_name(&self.name).consistent_read(true).limit(limit);
        let output = call.set_exclusive_start_key(after).send().await;
        let output = output.map_err(|error| failure("Scan", &error))?;
        let next = output.last_evaluated_key.filter(|key| !key.is_empty());
        Ok((output.items.unwrap_or_default(), next))
    }

    /// Creates the table, unless it exists, and waits until it can be used.
    pub(crate) async fn create(&self) -> Result<(), StoreError> {
        let mut call = self.client.create_table().table_name(&self.name);
        for (name, kind) in [(ID, KeyType::Hash), (AT, KeyType::Range)] {
            let attribute = AttributeDefinition::builder()
                .attribute_name(name)
                .attribute_type(ScalarAttributeType::S)
                .build()
                .map_err(|error| incomplete(&error))?;
            let element = KeySchemaElement::builder().attribute_name(name).key_type(kind).build();
            let element = element.map_err(|error| incomplete(&error))?;
            call = call.attribute_definitions(attribute).key_schema(element);
        }
        let call = call.billing_mode(BillingMode::PayPerRequest).deletion_protection_enabled(true);
        if let Err(error) = call.send().await
            && !error.as_service_error().is_some_and(|error| error.is_resource_in_use_exception())
        {
            return Err(failure("CreateTable", &error));
        }
        let began = Instant::now();
        loop {
            let output = self.client.describe_table().table_name(&self.name).send().await;
            let table = output.map_err(|error| failure("DescribeTable", &error))?.table;
            let table = table.ok_or_else(|| StoreError::unavailable("DescribeTable: no table"))?;
            if table.table_status() == Some(&TableStatus::Active) {
                return check_schema(table.key_schema(), table.attribute_definitions());
            }
            if began.elapsed() > CREATION {
                return Err(StoreError::unavailable("the table is not active yet"));
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

fn check_schema(
    keys: &[KeySchemaElement],
    attributes: &[AttributeDefinition],
) -> Result<(), StoreError> {
    let has = |name: &str, kind: &KeyType| {
        keys.iter().any(|key| key.attribute_name() == name && key.key_type() == kind)
            && attributes.iter().any(|attribute| {
                attribute.attribute_name() == name
                    && *attribute.attribute_type() == ScalarAttributeType::S
            })
    };
    if has(ID, &KeyType::Hash) && has(AT, &KeyType::Range) && keys.len() == 2 {
        return Ok(());
    }
    let text =
        "the table has another schema: its partition key must be `id` (S), its sort key `at` (S)";
    Err(StoreError::misconfigured(text))
}

fn incomplete(error: &aws_sdk_dynamodb::error::BuildError) -> StoreError {
    StoreError::misconfigured(format!("the request cannot be made: {error}"))
}
