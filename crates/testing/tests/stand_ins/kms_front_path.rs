//! The XKS protocol, end to end, on one machine: the AWS SDK -> the KMS front -> TLS -> the XKS
//! proxy -> its policy -> Transit of a real OpenBao. How the front takes what no honest proxy
//! answers is in `kms_front_stores.rs`.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::ops::{Deref, DerefMut};
use std::time::Duration;
use waxseal_testing::{kms_front, openbao, xks_path, xks_proxy};

use aws_sdk_kms::Client;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeySpec, OriginType};
use serde_json::json;
use xks_path::{AMPLE, KEY, REGION, XksPath};
use xks_proxy::{Certificate, Effect, ErrorName, Fault, Operation, Quota};

const DEK: &[u8] = b"thirty-two bytes of a secret key";

// What each text says and no other does: the whole texts are in `kms_front_stores.rs`.
const INVALID: &str =
    "rejected the request because the specified ciphertext or encryption context is corrupted";
const NOT_ENABLED: &str = "is not enabled in the external key manager";
const UNSUITED: &str = "does not support the requested operation. Enable the operation on the key";
const NOT_FOUND: &str = "was not found in its external key manager";
const DENIED: &str = "denied access to the operation";
const NOT_AUTHENTICATED: &str = "it could not authenticate AWS KMS";
const NO_MANAGER: &str = "it cannot communicate with the external key manager";
const THROTTLED: &str = "due to a very high request rate";
const ALLOTTED: &str = "did not respond to the request in the time allotted";
const TIMED_OUT: &str =
    "rejected the request because the external key store proxy did not respond in time";
const NOT_REACHABLE: &str = "AWS KMS cannot communicate with the external key store proxy";
const NO_TLS: &str = "AWS KMS cannot establish a TLS connection";
const NOT_INTERPRETED: &str = "AWS KMS cannot interpret the response";

/// The path, called by the SDK itself.
struct Ground {
    path: XksPath,
    kms: Client,
}

impl Deref for Ground {
    type Target = XksPath;

    fn deref(&self) -> &XksPath {
        &self.path
    }
}

impl DerefMut for Ground {
    fn deref_mut(&mut self) -> &mut XksPath {
        &mut self.path
    }
}

type Refused = (String, String);

fn refusal<T, E: ProvideErrorMetadata, R>(answer: Result<T, SdkError<E, R>>) -> Result<T, Refused> {
    answer.map_err(|error| {
        (error.code().unwrap_or("no code").to_owned(), error.message().unwrap_or("").to_owned())
    })
}

impl Ground {
    async fn start() -> Self {
        Self::with(openbao::Options::default()).await
    }

    async fn with(options: openbao::Options) -> Self {
        let path = XksPath::with(options).await;
        let kms = path.operator();
        Self { path, kms }
    }

    async fn create_key(&self, external: &str) -> Result<String, Refused> {
        let request = self.kms.create_key().custom_key_store_id(&self.store).xks_key_id(external);
        let answer = refusal(request.origin(OriginType::ExternalKeyStore).send().await);
        answer.map(|answer| answer.key_metadata.unwrap().arn.unwrap())
    }

    async fn reconnect(&self) -> String {
        self.disconnect().await;
        self.try_to_connect().await
    }

    async fn encrypt(&self) -> Result<Vec<u8>, Refused> {
        let request = self
            .kms
            .encrypt()
            .key_id(&self.arn)
            .plaintext(Blob::new(DEK))
            .encryption_context("tenant", "a");
        refusal(request.send().await).map(|answer| answer.ciphertext_blob.unwrap().into_inner())
    }

    async fn decrypt(&self, blob: &[u8]) -> Result<Vec<u8>, Refused> {
        self.decrypt_for(&self.kms, "a", blob).await
    }

    async fn decrypt_for(
        &self,
        kms: &Client,
        tenant: &str,
        blob: &[u8],
    ) -> Result<Vec<u8>, Refused> {
        let request = kms.decrypt().key_id(&self.arn).ciphertext_blob(Blob::new(blob));
        let answer = refusal(request.encryption_context("tenant", tenant).send().await);
        answer.map(|answer| answer.plaintext.unwrap().into_inner())
    }

    async fn assert_fails(&self, blob: &[u8], text: &str) {
        assert_refused(self.encrypt().await, text);
        assert_refused(self.decrypt(blob).await, text);
    }

    async fn assert_works(&self, blob: &[u8]) {
        let new = self.encrypt().await.unwrap();
        for blob in [blob, &new] {
            assert_eq!(self.decrypt(blob).await.unwrap(), DEK);
        }
    }
}

#[track_caller]
fn assert_refused(answer: Result<Vec<u8>, Refused>, text: &str) {
    let (code, message) = answer.unwrap_err();
    assert_eq!(code, "KMSInvalidStateException", "{message}");
    assert!(message.contains(text), "{message:?} is not about {text:?}");
}

#[tokio::test]
async fn a_dek_is_wrapped_by_both_and_every_request_is_found_in_the_log_of_the_proxy() {
    let ground = Ground::start().await;
    let made = ground.kms.generate_data_key().key_id(&ground.arn).key_spec(DataKeySpec::Aes256);
    let made = made.encryption_context("tenant", "a").send().await.unwrap();
    let blob = made.ciphertext_blob.unwrap().into_inner();
    assert_eq!(ground.decrypt(&blob).await.unwrap(), made.plaintext.unwrap().into_inner());
    assert_refused(ground.decrypt_for(&ground.kms, "b", &blob).await, INVALID);
    let largest = vec![7; 4096];
    let request = ground
        .kms
        .encrypt()
        .key_id(&ground.arn)
        .plaintext(Blob::new(&*largest))
        .encryption_context("tenant", "a");
    let blob = request.send().await.unwrap().ciphertext_blob.unwrap().into_inner();
    assert_eq!(ground.decrypt(&blob).await.unwrap(), largest);

    // There and back: a standard key, and another external key.
    ground.bao.create_key("other", false).await;
    let other = ground.create_key("other").await.unwrap();
    let standard = ground.front.create_key(REGION);
    let mut blob = ground.encrypt().await.unwrap();
    for to in [&standard, &other, &ground.arn] {
        let moved =
            ground.kms.re_encrypt().ciphertext_blob(Blob::new(&*blob)).destination_key_id(to);
        let moved = moved
            .source_encryption_context("tenant", "a")
            .destination_encryption_context("tenant", "a");
        blob = moved.send().await.unwrap().ciphertext_blob.unwrap().into_inner();
    }
    assert_eq!(ground.decrypt(&blob).await.unwrap(), DEK);

    let (mut found, calls) = (0, ground.front.calls());
    for logged in ground.proxy.calls() {
        let call = calls.iter().find(|call| call.request_id == logged.kms_request_id).unwrap();
        assert_eq!(call.operation, logged.kms_operation);
        if logged.operation != Some(Operation::GetHealthStatus) {
            assert_eq!(call.principal, logged.principal);
            assert_eq!(logged.kms_key_arn.is_empty(), call.operation == "CreateKey");
            found += 1;
        }
    }
    assert!(found >= 12, "{found}");
}

#[tokio::test]
async fn a_rotation_in_the_key_manager_is_invisible_until_old_versions_are_switched_off() {
    let ground = Ground::start().await;
    let old = ground.encrypt().await.unwrap();
    ground.bao.rotate(KEY).await;
    ground.assert_works(&old).await;
    let new = ground.encrypt().await.unwrap();
    ground
        .bao
        .put(&format!("transit/keys/{KEY}/config"), json!({ "min_decryption_version": 2 }))
        .await;
    assert_refused(ground.decrypt(&old).await, NOT_ENABLED);
    ground.assert_works(&new).await;
}

#[tokio::test]
async fn a_flipped_bit_in_any_byte_of_a_ciphertext_is_refused_on_the_whole_path() {
    let ground = Ground::start().await;
    let blob = ground.encrypt().await.unwrap();
    let decrypts = ground.proxy.arrived(Operation::Decrypt);
    for at in 0..blob.len() {
        let mut flipped = blob.clone();
        flipped[at] ^= 1 << (at % 8);
        let (code, message) = ground.decrypt(&flipped).await.unwrap_err();
        // By KMS, which then says nothing, or by the key manager: but never because something
        // broke.
        let by_kms = code == "InvalidCiphertextException" && message.is_empty();
        assert!(by_kms || message.contains(INVALID), "byte {at}: {code}, {message}");
    }
    assert!(
        ground.proxy.arrived(Operation::Decrypt) > decrypts + 60,
        "most of it only the key manager can see"
    );
    assert_eq!(ground.decrypt(&blob).await.unwrap(), DEK);
}

#[tokio::test]
async fn the_policy_of_the_proxy_denies_one_principal_and_not_another() {
    let ground = Ground::start().await;
    let policy = json!({
        "Version": "2012-10-17",
        "Statement": [{ "Effect": "Allow", "Action": "kms:*", "Resource": "*" }],
    });
    let mallory = ground.front.client(REGION, &ground.front.principal("mallory", vec![policy]));
    let blob = ground.encrypt().await.unwrap();
    assert_eq!(ground.decrypt_for(&mallory, "a", &blob).await.unwrap(), DEK);
    let arn = format!("arn:aws:iam::{}:user/mallory", kms_front::ACCOUNT);
    ground.proxy.deny(&arn);
    assert_refused(ground.decrypt_for(&mallory, "a", &blob).await, DENIED);
    ground.assert_works(&blob).await;
    ground.proxy.allow(&arn);
    assert_eq!(ground.decrypt_for(&mallory, "a", &blob).await.unwrap(), DEK);
}

#[tokio::test]
async fn what_is_switched_for_an_external_key_is_what_its_kms_key_says() {
    let ground = Ground::start().await;
    let blob = ground.encrypt().await.unwrap();
    let external = ground.proxy.key(KEY);
    external.disable();
    ground.assert_fails(&blob, NOT_ENABLED).await;
    external.enable();
    external.restrict(false, true);
    assert_refused(ground.encrypt().await, UNSUITED);
    assert_eq!(ground.decrypt(&blob).await.unwrap(), DEK);
    external.restrict(true, true);
    ground.assert_works(&blob).await;

    let code = async |external: &str| ground.create_key(external).await.unwrap_err().0;
    assert_eq!(code(KEY).await, "XksKeyAlreadyInUseException");
    assert_eq!(code("none").await, "XksKeyNotFoundException");
    ground.bao.put("transit/keys/small", json!({ "type": "aes128-gcm96" })).await;
    assert_eq!(code("small").await, "XksKeyInvalidConfigurationException");
    ground.bao.create_key("asleep", false).await;
    ground.proxy.key("asleep").disable();
    assert_eq!(code("asleep").await, "XksKeyInvalidConfigurationException");
    ground.proxy.key("asleep").enable();
    ground.proxy.key("asleep").restrict(true, false);
    assert_eq!(code("asleep").await, "XksKeyInvalidConfigurationException");

    ground
        .bao
        .put(&format!("transit/keys/{KEY}/config"), json!({ "deletion_allowed": true }))
        .await;
    ground.bao.ask("DELETE", &format!("transit/keys/{KEY}"), json!({})).await;
    ground.assert_fails(&blob, NOT_FOUND).await;
}

#[tokio::test]
async fn outages_of_the_proxy_and_of_the_key_manager_are_told_apart_and_end_by_themselves() {
    let mut ground = Ground::with(openbao::Options { durable: true, ..Default::default() }).await;
    let blob = ground.encrypt().await.unwrap();
    ground.proxy.kill();
    ground.assert_fails(&blob, NOT_REACHABLE).await;
    ground.proxy.restart();
    ground.assert_works(&blob).await;
    ground.bao.kill();
    ground.assert_fails(&blob, NO_MANAGER).await;
    ground.bao.restart().await;
    ground.assert_works(&blob).await;
    ground.proxy.kill();
    assert_eq!(ground.reconnect().await, "XKS_PROXY_NOT_REACHABLE");
    ground.proxy.restart();
    assert_eq!(ground.reconnect().await, "CONNECTED");
    ground.assert_works(&blob).await;
}

#[tokio::test]
async fn a_sealed_key_manager_is_no_failure_of_the_key() {
    let ground = Ground::start().await;
    let blob = ground.encrypt().await.unwrap();
    ground.bao.seal().await;
    ground.assert_fails(&blob, NO_MANAGER).await;
    assert_eq!(ground.reconnect().await, "XKS_PROXY_INVALID_RESPONSE");
    ground.bao.unseal().await;
    assert_eq!(ground.reconnect().await, "CONNECTED");
    ground.assert_works(&blob).await;
}

#[tokio::test]
async fn credentials_of_the_proxy_are_rotated_without_a_failure() {
    let ground = Ground::start().await;
    let blob = ground.encrypt().await.unwrap();
    let old = ground.proxy.credential();
    let new = ground.proxy.add_credential();
    ground.assert_works(&blob).await;
    let update = ground.kms.update_custom_key_store().custom_key_store_id(&ground.store);
    refusal(update.xks_proxy_authentication_credential(XksPath::credential(&new)).send().await)
        .unwrap();
    ground.proxy.remove_credential(&old.access_key_id);
    ground.assert_works(&blob).await;
    // Forgotten at KMS.
    ground.proxy.add_credential();
    ground.proxy.remove_credential(&new.access_key_id);
    ground.assert_fails(&blob, NOT_AUTHENTICATED).await;
    assert_eq!(ground.reconnect().await, "INVALID_CREDENTIALS");
}

#[tokio::test]
async fn a_certificate_that_is_not_right_is_refused_whatever_is_wrong_with_it() {
    let ground = Ground::start().await;
    let blob = ground.encrypt().await.unwrap();
    for wrong in [Certificate::OtherName, Certificate::OtherAuthority, Certificate::Expired] {
        ground.proxy.present(wrong);
        ground.assert_fails(&blob, NO_TLS).await;
        assert_eq!(ground.reconnect().await, "XKS_PROXY_INVALID_TLS_CONFIGURATION");
        ground.proxy.present(Certificate::Right);
        assert_eq!(ground.reconnect().await, "CONNECTED");
        ground.assert_works(&blob).await;
    }
}

#[tokio::test]
async fn every_error_of_the_proxy_is_told_and_so_are_its_quota_and_its_silence() {
    let ground = Ground::start().await;
    let blob = ground.encrypt().await.unwrap();
    for (name, text) in [
        (ErrorName::Validation, NOT_INTERPRETED),
        (ErrorName::InvalidState, NOT_ENABLED),
        (ErrorName::InvalidCiphertext, INVALID),
        (ErrorName::InvalidKeyUsage, UNSUITED),
        (ErrorName::AuthenticationFailed, NOT_AUTHENTICATED),
        (ErrorName::AccessDenied, DENIED),
        (ErrorName::KeyNotFound, NOT_FOUND),
        (ErrorName::InvalidUriPath, "because of an invalid URI path"),
        (ErrorName::Throttling, THROTTLED),
        (ErrorName::UnsupportedOperation, "because it does not support the requested operation"),
        (ErrorName::DependencyTimeout, ALLOTTED),
        (ErrorName::Internal, NO_MANAGER),
    ] {
        ground.proxy.fail(Fault::error(name));
        ground.assert_fails(&blob, text).await;
        ground.proxy.recover();
    }
    ground.proxy.fail(Fault::new(Effect::Close));
    ground.assert_fails(&blob, NOT_REACHABLE).await;
    ground.proxy.recover();
    // A tag that is changed on the way: the integrity value shows it before the DEK is used.
    let lie = |answer: &mut serde_json::Value| {
        answer["authenticationTag"] = json!("vBxN2ncH1oEkR8WVXpmyYQ==")
    };
    ground.proxy.fail(Fault::new(Effect::Alter(lie)).on(Operation::Encrypt));
    assert_refused(ground.encrypt().await, NOT_INTERPRETED);
    ground.proxy.recover();
    ground.proxy.limit(Some(Quota { requests: 0, window: Duration::from_secs(3600) }));
    ground.assert_fails(&blob, THROTTLED).await;
    ground.proxy.limit(None);
    ground.kms_waits(Duration::from_secs(1));
    ground.proxy.fail(Fault::new(Effect::Hang));
    ground.assert_fails(&blob, TIMED_OUT).await;
    assert_eq!(ground.reconnect().await, "XKS_PROXY_TIMED_OUT");
    ground.proxy.recover();
    ground.kms_waits(AMPLE);
    assert_eq!(ground.reconnect().await, "CONNECTED");
    ground.assert_works(&blob).await;
}
