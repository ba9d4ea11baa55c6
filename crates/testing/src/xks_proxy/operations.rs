//! The four operations of the specification, on keys in Transit.

use data_encoding::BASE64;
use serde_json::{Value, json};

use super::Switches;
use super::api::{
    CiphertextMetadata, ErrorName, Refused, ToDecrypt, ToEncrypt, cdiv, composed_aad, encrypted,
};
use super::transit::Transit;

/// "GetHealthStatus". Transit is asked each time, so a good answer is always `ACTIVE`, and what is
/// not good is an error.
pub(super) async fn health(transit: &Transit) -> Result<Value, Refused> {
    let server = transit.check().await?;
    Ok(json!({
        "xksProxyFleetSize": 1,
        "xksProxyVendor": "Waxseal",
        "xksProxyModel": concat!("Waxseal test proxy ", env!("CARGO_PKG_VERSION")),
        "ekmVendor": "OpenBao",
        "ekmFleetDetails": [
            { "id": server.id, "model": format!("OpenBao {} Transit", server.version), "healthStatus": "ACTIVE" },
        ],
    }))
}

/// "GetKeyMetadata".
pub(super) async fn metadata(
    transit: &Transit,
    key: &str,
    switches: Switches,
) -> Result<Value, Refused> {
    let key = transit.describe(key).await?;
    let allowed = |usage: &&str| match *usage {
        "ENCRYPT" => switches.encrypts,
        "DECRYPT" => switches.decrypts,
        _ => true,
    };
    let status = if switches.enabled && !key.soft_deleted { "ENABLED" } else { "DISABLED" };
    let usage: Vec<_> = key.usage.into_iter().filter(allowed).collect();
    Ok(json!({ "keySpec": key.spec, "keyUsage": usage, "keyStatus": status }))
}

fn usable(switches: Switches, allowed: bool) -> Result<(), Refused> {
    if !switches.enabled {
        return Err(ErrorName::InvalidState.because("the key is disabled in the proxy"));
    }
    if !allowed {
        return Err(ErrorName::InvalidKeyUsage.because("the proxy's switches"));
    }
    Ok(())
}

/// "Encrypt". The version has to be known beforehand, since it is in the metadata and so in the
/// AAD.
pub(super) async fn encrypt(
    transit: &Transit,
    key: &str,
    switches: Switches,
    input: &ToEncrypt,
) -> Result<Value, Refused> {
    usable(switches, switches.encrypts)?;
    let description = transit.describe(key).await?;
    if description.soft_deleted {
        return Err(ErrorName::InvalidState.because("the key is soft-deleted"));
    }
    if description.spec != "AES_256" || !description.usage.contains(&"ENCRYPT") {
        return Err(
            ErrorName::InvalidKeyUsage.because(format!("a key of type {}", description.spec))
        );
    }
    let latest = description.latest;
    let aad = full_aad(&input.aad, latest)?;
    let sealed = transit.encrypt(key, latest, &input.plaintext, &aad).await?;
    if !input.cdiv {
        return Ok(encrypted(&sealed, latest, None));
    }
    // The value first and the trial after it: "the ordering ... is important" (Appendix C).
    let value = cdiv(&input.aad, &latest.bytes(), &sealed);
    if transit.decrypt(key, latest, &sealed, &aad).await? != input.plaintext {
        return Err(ErrorName::Internal.because("the trial decryption gave another plaintext"));
    }
    Ok(encrypted(&sealed, latest, Some(value)))
}

/// "Decrypt".
pub(super) async fn decrypt(
    transit: &Transit,
    key: &str,
    switches: Switches,
    input: &ToDecrypt,
) -> Result<Value, Refused> {
    usable(switches, switches.decrypts)?;
    let aad = full_aad(&input.aad, input.metadata)?;
    let plaintext = transit.decrypt(key, input.metadata, &input.sealed, &aad).await?;
    Ok(json!({ "plaintext": BASE64.encode(&plaintext) }))
}

fn full_aad(aad: &[u8], metadata: CiphertextMetadata) -> Result<Vec<u8>, Refused> {
    composed_aad(aad, &metadata.bytes())
        .ok_or_else(|| ErrorName::UnsupportedOperation.because("lengths"))
}
