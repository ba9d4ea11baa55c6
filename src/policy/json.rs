//! A question as the input of a Rego policy.
#![forbid(unsafe_code)]

use serde::ser::{Serialize, SerializeMap, SerializeStruct, Serializer};

use super::Question;
use crate::caller::Caller;
use crate::context::EncryptionContext;

/// Unknown fields are left out, because `null` is a value in Rego.
impl Serialize for Question<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut object = serializer.serialize_map(None)?;
        object.serialize_entry("operation", &self.operation)?;
        if let Some(domain) = self.domain {
            object.serialize_entry("domain", domain)?;
        }
        object.serialize_entry("kek_ids", self.kek_ids)?;
        object.serialize_entry("context", &Context(self.context))?;
        if let Some(caller) = self.caller {
            object.serialize_entry("caller", &Who(caller))?;
        }
        object.serialize_entry("time", &self.time_rfc3339())?;
        if let Some(id) = self.request_id {
            object.serialize_entry("request_id", id)?;
        }
        object.end()
    }
}

struct Context<'a>(&'a EncryptionContext);

impl Serialize for Context<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter())
    }
}

/// A caller without its request.
struct Who<'a>(&'a Caller);

impl Serialize for Who<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let caller = self.0;
        let mut object = serializer.serialize_struct("Caller", 5)?;
        match caller.service() {
            Some(service) => object.serialize_field("service", service)?,
            None => object.skip_field("service")?,
        }
        object.serialize_field("roles", &Texts(|| caller.roles()))?;
        object.serialize_field("groups", &Texts(|| caller.groups()))?;
        match caller.source_address() {
            Some(address) => object.serialize_field("source_address", &address)?,
            None => object.skip_field("source_address")?,
        }
        object.serialize_field("attributes", &Attributes(caller))?;
        object.end()
    }
}

struct Texts<F>(F);

impl<'a, F: Fn() -> I, I: Iterator<Item = &'a str>> Serialize for Texts<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

struct Attributes<'a>(&'a Caller);

impl Serialize for Attributes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.attributes())
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::caller::Action;
    use crate::format::KekId;

    #[test]
    fn a_question_is_written_as_the_page_shows_it() {
        let context = EncryptionContext::new([("tenant", "acme"), ("table", "cards")]).unwrap();
        let caller = Caller::builder()
            .service("reporting")
            .role("analyst")
            .group("emea")
            .source_address([10, 1, 2, 3])
            .attribute("clearance", "confidential")
            .attribute_list("teams", ["a", "b"])
            .build()
            .unwrap()
            .with_request_id("4b0c6a1e")
            .unwrap();
        let kek_ids = [KekId::new("arn:aws:kms:eu-west-1:111122223333:key/1234").unwrap()];
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_942_365);
        let question = Question::new(Action::Decrypt, &context)
            .domain("orders")
            .kek_ids(&kek_ids)
            .caller(&caller)
            .time(time);
        let page = include_str!("mod.rs").split("```json").nth(1).unwrap();
        let page = page.split("```").next().unwrap().replace("///", "");
        let documented: serde_json::Value = serde_json::from_str(&page).unwrap();
        assert_eq!(serde_json::to_value(question).unwrap(), documented);

        let nobody = Question::new(Action::Erase, &context).time(time);
        let expected = serde_json::json!({
            "operation": "erase", "kek_ids": [], "context": {"tenant": "acme", "table": "cards"},
            "time": "2026-11-29T08:52:45Z",
        });
        assert_eq!(serde_json::to_value(nobody).unwrap(), expected);
    }
}
