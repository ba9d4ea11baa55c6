//! The cryptographic operations: found, let through, done.

use std::sync::Mutex;

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::crypto::MaterialId;
use super::request::{Answer, bytes, context, text};
use super::world::{Caller, World};
use super::{KmsError, random};

/// A field that is there or not.
fn with(mut answer: Value, name: &str, material: MaterialId) -> Value {
    if let Some(material) = material {
        answer[name] = json!(material);
    }
    answer
}

pub async fn encrypt(world: &Mutex<World>, caller: &Caller, body: &Value) -> Answer {
    let (key, context, plaintext) = {
        let world = world.lock().unwrap();
        let key = world.find(caller, text(body, "KeyId")?)?;
        let context = context(body, "EncryptionContext")?;
        world.authorise(caller, "Encrypt", key, body, &context, None)?;
        (world.usable(caller, "Encrypt", key)?, context, bytes(body, "Plaintext", 4096)?)
    };
    let (blob, _) = key.seal(&context, &plaintext).await?;
    // No KeyMaterialId here ("Response Elements" of Encrypt in the API Reference).
    Ok(
        json!({ "CiphertextBlob": BASE64.encode(&blob), "KeyId": key.arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT" }),
    )
}

pub async fn generate_data_key(world: &Mutex<World>, caller: &Caller, body: &Value) -> Answer {
    let (key, context) = {
        let world = world.lock().unwrap();
        let key = world.find(caller, text(body, "KeyId")?)?;
        let context = context(body, "EncryptionContext")?;
        world.authorise(caller, "GenerateDataKey", key, body, &context, None)?;
        (world.usable(caller, "GenerateDataKey", key)?, context)
    };
    if body["KeySpec"] != "AES_256" {
        return Err(KmsError::validation("the front makes AES_256 data keys".into()));
    }
    let plaintext = random::<32>();
    let (blob, material) = key.seal(&context, &plaintext).await?;
    let answer = json!({
        "CiphertextBlob": BASE64.encode(&blob), "Plaintext": BASE64.encode(&plaintext), "KeyId": key.arn,
    });
    Ok(with(answer, "KeyMaterialId", material))
}

pub async fn decrypt(world: &Mutex<World>, caller: &Caller, body: &Value) -> Answer {
    let blob = bytes(body, "CiphertextBlob", 6144)?;
    let (key, context) = {
        let world = world.lock().unwrap();
        let key = world.key_of(caller, &body["KeyId"], &blob)?;
        let context = context(body, "EncryptionContext")?;
        world.authorise(caller, "Decrypt", key, body, &context, None)?;
        (world.usable(caller, "Decrypt", key)?, context)
    };
    let (plaintext, material) = key.open(&context, &blob).await?;
    let answer = json!({
        "Plaintext": BASE64.encode(&plaintext), "KeyId": key.arn, "EncryptionAlgorithm": "SYMMETRIC_DEFAULT",
    });
    Ok(with(answer, "KeyMaterialId", material))
}

/// Needs kms:ReEncryptFrom on the one key and kms:ReEncryptTo on the other ("ReEncrypt" in the API
/// Reference).
pub async fn re_encrypt(world: &Mutex<World>, caller: &Caller, body: &Value) -> Answer {
    let blob = bytes(body, "CiphertextBlob", 6144)?;
    let before = context(body, "SourceEncryptionContext")?;
    let after = context(body, "DestinationEncryptionContext")?;
    let (from, to) = {
        let world = world.lock().unwrap();
        let to = world.find(caller, text(body, "DestinationKeyId")?)?;
        let from = world.key_of(caller, &body["SourceKeyId"], &blob)?;
        let same = Some(from.arn == to.arn);
        world.authorise(caller, "ReEncryptFrom", from, body, &before, same)?;
        world.authorise(caller, "ReEncryptTo", to, body, &after, same)?;
        (world.usable(caller, "ReEncrypt", from)?, world.usable(caller, "ReEncrypt", to)?)
    };
    let (plaintext, source_material) = from.open(&before, &blob).await?;
    let (blob, material) = to.seal(&after, &plaintext).await?;
    let answer =
        json!({ "CiphertextBlob": BASE64.encode(&blob), "SourceKeyId": from.arn, "KeyId": to.arn });
    Ok(with(
        with(answer, "SourceKeyMaterialId", source_material),
        "DestinationKeyMaterialId",
        material,
    ))
}
