//! External key stores of the project's own KMS front: their management by the AWS SDK, and the
//! cryptography of their keys over an XKS endpoint that does what a test tells it. Sources stand
//! with the behaviours in `support/kms_front`.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod answers;
mod keys;
mod managing;
mod trouble;

use std::collections::HashMap;
use std::time::Duration;
use waxseal_testing::{kms_front, xks_script};

use aws_sdk_kms::Client;
use aws_sdk_kms::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{
    ConnectionStateType, CustomKeyStoreType, CustomKeyStoresListEntry, DataKeySpec, KeyMetadata,
    KeyState, OriginType, XksProxyAuthenticationCredentialType, XksProxyConnectivityType,
};
use kms_front::{ACCOUNT, KmsFront, Login};
use proptest::prelude::*;
use serde_json::{Value, json};
use xks_script::{Act, Authority, Endpoint};

const REGION: &str = "eu-west-1";
const CANNOT_INTERPRET: &str = "AWS KMS cannot interpret the response from the external key store \
    proxy. If you see this error repeatedly, report it to your external key store proxy \
    administrator.";
const NOT_REACHABLE: &str = "AWS KMS cannot communicate with the external key store proxy. This \
    might be a transient network issue. If you see this error repeatedly, verify that your \
    external key store proxy is active and is connected to the network, and that its endpoint URI \
    is correct in your external keystore.";
const NO_TLS: &str = "AWS KMS cannot establish a TLS connection to the external key store proxy. \
    Verify the TLS configuration, including its certificate.";
const TIMED_OUT: &str = "AWS KMS rejected the request because the external key store proxy did not \
    respond in time. Retry the request. If you see this error repeatedly, report it to your \
    external key store proxy administrator.";
const NOT_CONNECTED: &str = "This KMS key is in a custom key store that is not connected to its \
    external key store proxy. Connect the external key store and try the request again.";

struct Ground {
    front: KmsFront,
    login: Login,
    kms: Client,
    authority: Authority,
    endpoint: Endpoint,
}

impl Ground {
    /// A front that trusts the endpoint's authority and has no key store yet.
    async fn bare() -> Self {
        let front = KmsFront::start();
        let login = front.admin();
        let kms = front.client(REGION, &login);
        let authority = Authority::new();
        front.trust(&authority.pem);
        // The 250 ms of KMS are for tests of them: this machine may be busy.
        front.world().network.write().unwrap().patience = Duration::from_secs(20);
        let endpoint = Endpoint::start(authority.identity("localhost")).await;
        Self { front, login, kms, authority, endpoint }
    }

    /// With a key store that is connected.
    async fn new() -> (Self, String) {
        let ground = Self::bare().await;
        let store = ground.create(&ground.kms, "store").await.unwrap();
        ground.connect(&store).await;
        (ground, store)
    }

    /// With a key too.
    async fn with_key() -> (Self, String, String) {
        let (ground, store) = Self::new().await;
        let key = ground.create_key(&store, "one").await.unwrap();
        (ground, store, key.arn.unwrap())
    }

    fn request(&self, kms: &Client, name: &str) -> CreateStore {
        kms.create_custom_key_store()
            .custom_key_store_name(name)
            .custom_key_store_type(CustomKeyStoreType::ExternalKeyStore)
            .xks_proxy_connectivity(XksProxyConnectivityType::PublicEndpoint)
            .xks_proxy_uri_endpoint(self.endpoint.url())
            .xks_proxy_uri_path(xks_script::PATH)
            .xks_proxy_authentication_credential(credential(
                xks_script::ACCESS_KEY,
                xks_script::SECRET,
            ))
    }

    async fn create(&self, kms: &Client, name: &str) -> Result<String, Refused> {
        refusal(self.request(kms, name).send().await)
            .map(|created| created.custom_key_store_id.unwrap())
    }

    async fn describe(&self, store: &str) -> CustomKeyStoresListEntry {
        let answer =
            self.kms.describe_custom_key_stores().custom_key_store_id(store).send().await.unwrap();
        answer.custom_key_stores.unwrap().remove(0)
    }

    /// Waits until a change of the connection is over.
    async fn settled(&self, store: &str) -> CustomKeyStoresListEntry {
        for _ in 0..1000 {
            let entry = self.describe(store).await;
            let state = entry.connection_state.clone().unwrap();
            if ![ConnectionStateType::Connecting, ConnectionStateType::Disconnecting]
                .contains(&state)
            {
                return entry;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the key store stays on its way");
    }

    async fn connect(&self, store: &str) {
        refusal(self.kms.connect_custom_key_store().custom_key_store_id(store).send().await)
            .unwrap();
        let state = self.settled(store).await.connection_state;
        assert_eq!(state, Some(ConnectionStateType::Connected));
    }

    async fn disconnect(&self, store: &str) {
        refusal(self.kms.disconnect_custom_key_store().custom_key_store_id(store).send().await)
            .unwrap();
        let state = self.settled(store).await.connection_state;
        assert_eq!(state, Some(ConnectionStateType::Disconnected));
    }

    async fn create_key(&self, store: &str, external: &str) -> Result<KeyMetadata, Refused> {
        let request = self.kms.create_key().custom_key_store_id(store).xks_key_id(external);
        refusal(request.origin(OriginType::ExternalKeyStore).send().await)
            .map(|answer| answer.key_metadata.unwrap())
    }

    async fn metadata(&self, key: &str) -> KeyMetadata {
        self.kms.describe_key().key_id(key).send().await.unwrap().key_metadata.unwrap()
    }

    async fn encrypt(&self, key: &str, plaintext: &[u8]) -> Result<Vec<u8>, Refused> {
        let request = self
            .kms
            .encrypt()
            .key_id(key)
            .plaintext(Blob::new(plaintext))
            .encryption_context("tenant", "a");
        refusal(request.send().await).map(|answer| answer.ciphertext_blob.unwrap().into_inner())
    }

    async fn decrypt(&self, key: &str, tenant: &str, blob: &[u8]) -> Result<Vec<u8>, Refused> {
        let request = self.kms.decrypt().key_id(key).ciphertext_blob(Blob::new(blob));
        let answer = refusal(request.encryption_context("tenant", tenant).send().await);
        answer.map(|answer| answer.plaintext.unwrap().into_inner())
    }

    /// Encrypt, Decrypt and GenerateDataKey have to fail with KMSInvalidStateException and this
    /// text.
    async fn assert_cryptography_fails(&self, key: &str, blob: &[u8], text: &str, case: &str) {
        let wanted = Err(refused("KMSInvalidStateException", text));
        assert_eq!(self.encrypt(key, b"text").await, wanted, "Encrypt, {case}");
        assert_eq!(self.decrypt(key, "a", blob).await, wanted, "Decrypt, {case}");
        let generated =
            self.kms.generate_data_key().key_id(key).key_spec(DataKeySpec::Aes256).send().await;
        assert_eq!(refusal(generated).map(|_| Vec::new()), wanted, "GenerateDataKey, {case}");
    }
}

type CreateStore =
    aws_sdk_kms::operation::create_custom_key_store::builders::CreateCustomKeyStoreFluentBuilder;

fn credential(access_key: &str, secret: &str) -> XksProxyAuthenticationCredentialType {
    XksProxyAuthenticationCredentialType::builder()
        .access_key_id(access_key)
        .raw_secret_access_key(secret)
        .build()
        .unwrap()
}

type Bend = fn(&mut Value);

/// Code and message.
type Refused = (String, String);

fn refused(code: &str, message: &str) -> Refused {
    (code.to_owned(), message.to_owned())
}

fn refusal<T, E: ProvideErrorMetadata, R>(answer: Result<T, SdkError<E, R>>) -> Result<T, Refused> {
    answer.map_err(|error| {
        refused(error.code().unwrap_or("no code"), error.message().unwrap_or_default())
    })
}

fn code<T: std::fmt::Debug>(answer: Result<T, Refused>) -> String {
    answer.unwrap_err().0
}

/// The table of the specification ("Error codes", "KMS Considerations").
fn text_of(error_name: &str) -> &'static str {
    texts()[error_name].1
}

fn texts() -> HashMap<&'static str, (u16, &'static str)> {
    HashMap::from([
        ("ValidationException", (400, CANNOT_INTERPRET)),
        (
            "InvalidStateException",
            (
                400,
                "The external key associated with this KMS key in an external key store is not \
                    enabled in the external key manager. Enable the external key in the external \
                    key manager and retry the request.",
            ),
        ),
        (
            "InvalidCiphertextException",
            (
                400,
                "The external key store proxy rejected the request because the specified \
                    ciphertext or encryption context is corrupted, missing, or otherwise invalid.",
            ),
        ),
        (
            "InvalidKeyUsageException",
            (
                400,
                "The external key associated with this KMS key in an external key store does not \
                    support the requested operation. Enable the operation on the key in your \
                    external key manager, and try the request again.",
            ),
        ),
        (
            "AuthenticationFailedException",
            (
                401,
                "The external key store proxy rejected the request because it could not \
                    authenticate AWS KMS. Verify the XKS proxy authentication credentials for your \
                    external key store and update if necessary.",
            ),
        ),
        (
            "AccessDeniedException",
            (
                403,
                "The external key store proxy denied access to the operation. Verify that the user \
                    and the external key are both authorized for this operation, and try the \
                    request again.",
            ),
        ),
        (
            "KeyNotFoundException",
            (
                404,
                "The external key associated with this KMS key in an external key store was not \
                    found in its external key manager. If the external key ID associated with this \
                    KMS key is incorrect, create a new KMS key with the correct external key ID.",
            ),
        ),
        (
            "InvalidUriPathException",
            (
                404,
                "The external key store proxy rejected the request because of an invalid URI path. \
                    Verify the URI path for your external key store and update if necessary.",
            ),
        ),
        (
            "UnsupportedOperationException",
            (
                501,
                "The external key store proxy rejected the request because it does not support the \
                    requested operation. If you see this error repeatedly, report it to your \
                    external key store proxy administrator.",
            ),
        ),
        (
            "DependencyTimeoutException",
            (
                503,
                "The external key store proxy did not respond to the request in the time allotted. \
                    Retry the request. If you see this error repeatedly, report it to your \
                    external key store proxy administrator.",
            ),
        ),
        (
            "ThrottlingException",
            (
                429,
                "The external key store proxy rejected the request due to a very high request \
                    rate. Reduce the frequency of your calls using KMS keys in this external key \
                    store.",
            ),
        ),
        (
            "InternalException",
            (
                500,
                "The external key store proxy rejected the request because it cannot communicate \
                    with the external key manager. Verify that the external key store proxy \
                    configuration is correct and that the external key manager is available.",
            ),
        ),
        ("SomethingElseException", (400, CANNOT_INTERPRET)),
    ])
}

// --- key stores

#[tokio::test]
async fn a_flipped_bit_in_any_byte_of_a_ciphertext_is_refused() {
    let (ground, _, key) = Ground::with_key().await;
    let blob = ground.encrypt(&key, b"thirty-two bytes of a secret key").await.unwrap();
    for at in 0..blob.len() {
        let mut flipped = blob.clone();
        flipped[at] ^= 1 << (at % 8);
        let refused = ground.decrypt(&key, "a", &flipped).await.unwrap_err();
        let invalid = ["InvalidCiphertextException", "KMSInvalidStateException"]
            .contains(&refused.0.as_str());
        assert!(invalid, "byte {at}: {refused:?}");
        assert!(
            refused.1.is_empty() || refused.1 == text_of("InvalidCiphertextException"),
            "byte {at}: {refused:?}"
        );
    }
    for len in [0, 3, 67, 68, 69, 120, blob.len() - 33, blob.len() - 1] {
        assert!(ground.decrypt(&key, "a", &blob[..len]).await.is_err(), "{len} bytes");
    }
    assert_eq!(
        ground.decrypt(&key, "a", &blob).await.unwrap(),
        b"thirty-two bytes of a secret key"
    );
}

#[tokio::test]
async fn connections_are_kept_and_one_that_the_proxy_closed_is_no_failure() {
    let (ground, _, key) = Ground::with_key().await;
    let before = ground.endpoint.connections();
    for _ in 0..20 {
        ground.encrypt(&key, b"text").await.unwrap();
    }
    assert_eq!(ground.endpoint.connections(), before);
    for _ in 0..5 {
        ground.endpoint.hang_up();
        ground.encrypt(&key, b"text").await.unwrap();
    }
    // The request is read, and then the connection ends.
    ground.endpoint.act(Act::Once(Vec::new()));
    ground.encrypt(&key, b"text").await.unwrap();
}

#[tokio::test]
async fn a_proxy_that_does_not_answer_delays_nobody_else() {
    let (ground, store, key) = Ground::with_key().await;
    let standard = ground.front.create_key(REGION);
    ground.front.world().network.write().unwrap().patience = Duration::from_secs(600);
    ground.endpoint.act(Act::Late(Duration::from_secs(600)));
    let slow = ground.encrypt(&key, b"text");
    let others = async {
        while ground.endpoint.asked("/keys/one/encrypt").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let blob = ground.encrypt(&standard, b"text").await.unwrap();
        assert_eq!(ground.decrypt(&standard, "a", &blob).await.unwrap(), b"text");
        ground.describe(&store).await;
        ground.metadata(&key).await;
    };
    tokio::select! {
        early = slow => panic!("{early:?}"),
        () = others => {}
    }
}

#[tokio::test]
async fn a_key_store_has_a_quota_of_its_own() {
    let (ground, store, key) = Ground::with_key().await;
    let standard = ground.front.create_key(REGION);
    assert_eq!(ground.front.world().store(&store).quota, 1800);
    ground.front.world().store(&store).quota = 0;
    let asked = ground.endpoint.asked("/keys/one/encrypt").len();
    let text =
        "You have exceeded the rate at which you may call KMS. Reduce the frequency of your calls.";
    assert_eq!(
        ground.encrypt(&key, b"text").await.unwrap_err(),
        refused("ThrottlingException", text)
    );
    assert_eq!(ground.endpoint.asked("/keys/one/encrypt").len(), asked);
    ground.encrypt(&standard, b"text").await.unwrap();
    ground.metadata(&key).await;
    // Within one second only this many; the SDK tries again, and the next second has its own.
    ground.front.world().store(&store).quota = 2;
    let before = ground.front.count("Encrypt");
    for _ in 0..8 {
        while ground.encrypt(&key, b"text").await.is_err() {}
    }
    assert!(ground.front.count("Encrypt") - before > 8, "nothing was throttled");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any answer of the endpoint: HTTP or not, JSON or not.
    #[test]
    fn any_answer_at_all_is_an_invalid_state_and_the_front_lives_on(answers in answers()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let (ground, _, key) = Ground::with_key().await;
            let blob = ground.encrypt(&key, b"text").await.unwrap();
            // Some answers leave the connection open and say that more is to come.
            ground.front.world().network.write().unwrap().patience = Duration::from_millis(100);
            for act in answers {
                ground.endpoint.act(act.clone());
                let (encrypted, decrypted) =
                    tokio::join!(ground.encrypt(&key, b"text"), ground.decrypt(&key, "a", &blob));
                for refused in [encrypted.unwrap_err(), decrypted.unwrap_err()] {
                    assert_eq!(refused.0, "KMSInvalidStateException", "{act:?}: {refused:?}");
                }
            }
            ground.front.world().network.write().unwrap().patience = Duration::from_secs(20);
            ground.endpoint.act(Act::Honest);
            assert_eq!(ground.decrypt(&key, "a", &blob).await.unwrap(), b"text");
        });
    }
}

fn answers() -> impl Strategy<Value = Vec<Act>> {
    let text = prop_oneof![
        ".{0,40}".prop_map(|text| text),
        Just(
            r#"{"plaintext":"AAAA","ciphertext":"","initializationVector":"AAAAAAAAAAAAAAAA"}"#
                .to_owned()
        ),
        (any::<Vec<u8>>(), any::<Vec<u8>>(), any::<Vec<u8>>()).prop_map(|(a, b, c)| {
            let [a, b, c] = [a, b, c].map(|bytes| data_encoding::BASE64.encode(&bytes));
            json!({
                "plaintext": a,
                "ciphertext": a,
                "authenticationTag": b,
                "initializationVector": c,
                "ciphertextDataIntegrityValue": b,
            })
            .to_string()
        }),
        r#"\{"errorName":"[A-Za-z]{0,20}"\}"#.prop_map(|text| text),
    ];
    let act = prop_oneof![
        any::<Vec<u8>>().prop_map(Act::Bytes),
        any::<Vec<u8>>()
            .prop_map(|bytes| Act::Bytes([b"HTTP/1.1 200 OK\r\n", &bytes[..]].concat())),
        any::<Vec<u8>>().prop_map(|bytes| Act::Bytes(
            [b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", &bytes[..]].concat()
        )),
        (100_u16..1000, text).prop_map(|(status, text)| Act::Raw(status, text)),
    ];
    proptest::collection::vec(act, 4)
}
