//! What the front reads out of a request, and the shape of an answer.

use std::collections::BTreeMap;

use data_encoding::{BASE64, HEXLOWER};
use serde_json::Value;

use super::{KmsError, random};

pub type Answer = Result<Value, KmsError>;
pub type Context = BTreeMap<String, String>;

pub fn text<'a>(body: &'a Value, name: &str) -> Result<&'a str, KmsError> {
    body[name].as_str().ok_or_else(|| {
        KmsError::validation(format!(
            "Value null at '{name}' failed to satisfy constraint: Member must not be null"
        ))
    })
}

pub fn bytes(body: &Value, name: &str, most: usize) -> Result<Vec<u8>, KmsError> {
    let bytes = BASE64
        .decode(text(body, name)?.as_bytes())
        .map_err(|_| KmsError::new(400, "SerializationException", "base64"))?;
    if bytes.is_empty() || bytes.len() > most {
        return Err(KmsError::validation(format!(
            "Value at '{name}' failed to satisfy constraint: length 1 to {most}"
        )));
    }
    Ok(bytes)
}

pub fn context(body: &Value, name: &str) -> Result<Context, KmsError> {
    let mut context = Context::new();
    for (name, value) in body[name].as_object().into_iter().flatten() {
        context.insert(
            name.clone(),
            value.as_str().ok_or_else(|| KmsError::validation("context".into()))?.to_owned(),
        );
    }
    // No page of KMS gives a limit; 8192 bytes of additional authenticated data are what its
    // specification asks of a proxy of an external key store.
    if context.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>() > 8192 {
        return Err(KmsError::validation("encryption context exceeds 8192 bytes".into()));
    }
    Ok(context)
}

/// The form of key ids and of request ids.
pub fn uuid() -> String {
    let hex = HEXLOWER.encode(&random::<16>());
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}
