//! A custom key store and its connection.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::KmsError;
use super::xks::XksClient;

/// ConnectionState, and ConnectionErrorCode, which "appears in the response only when the
/// ConnectionState is FAILED".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Connection {
    Connected,
    Connecting,
    Failed(&'static str),
    Disconnected,
    Disconnecting,
}

impl Connection {
    pub fn name(self) -> &'static str {
        match self {
            Self::Connected => "CONNECTED",
            Self::Connecting => "CONNECTING",
            Self::Failed(_) => "FAILED",
            Self::Disconnected => "DISCONNECTED",
            Self::Disconnecting => "DISCONNECTING",
        }
    }
}

pub struct KeyStore {
    pub id: String,
    pub name: String,
    pub region: String,
    pub account: String,
    pub created: f64,
    pub connection: Connection,
    /// How often it was connected or disconnected: what a later change has overtaken is dropped.
    pub change: u64,
    pub proxy: Arc<XksClient>,
    /// "1800 operations per second. These quotas are calculated separately for each custom key
    /// store" ("Custom key store request quotas" in the Guide).
    pub quota: u32,
    /// Since when, and how many.
    pub counted: Mutex<(Instant, u32)>,
}

impl KeyStore {
    /// One more cryptographic operation. The text is that of "Throttling AWS KMS requests" in the
    /// Guide.
    pub fn count(&self) -> Result<(), KmsError> {
        let mut counted = self.counted.lock().unwrap();
        if counted.0.elapsed() >= Duration::from_secs(1) {
            *counted = (Instant::now(), 0);
        }
        counted.1 += 1;
        if counted.1 <= self.quota {
            return Ok(());
        }
        let detail = "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.";
        Err(KmsError::new(400, "ThrottlingException", detail))
    }

    pub fn entry(&self) -> Value {
        let settings = self.proxy.settings();
        let mut entry = json!({
            "CustomKeyStoreId": self.id, "CustomKeyStoreName": self.name, "CustomKeyStoreType": "EXTERNAL_KEY_STORE",
            "ConnectionState": self.connection.name(), "CreationDate": self.created,
            "XksProxyConfiguration": {
                "Connectivity": "PUBLIC_ENDPOINT", "AccessKeyId": settings.access_key_id,
                "UriEndpoint": settings.endpoint, "UriPath": settings.path,
            },
        });
        if let Connection::Failed(code) = self.connection {
            entry["ConnectionErrorCode"] = json!(code);
        }
        entry
    }

    pub fn state_error(&self, operation: &str) -> KmsError {
        let detail = format!(
            "{operation} is not valid for a custom key store that is {}.",
            self.connection.name()
        );
        KmsError::new(400, "CustomKeyStoreInvalidStateException", detail)
    }
}

pub fn not_found(id: &str) -> KmsError {
    KmsError::new(
        400,
        "CustomKeyStoreNotFoundException",
        format!("Custom key store {id} does not exist."),
    )
}
