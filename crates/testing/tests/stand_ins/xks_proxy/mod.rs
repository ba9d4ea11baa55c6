//! The project's XKS proxy, compared with the "External Key Store Proxy API Specification", version
//! 1, over a real OpenBao: what the tests of external key stores rest on.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod callers;
mod connections;
mod key_manager;
mod requests;

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, SystemTime};
use waxseal_testing::{fault_proxy, openbao, xks_proxy};

use data_encoding::{BASE64, HEXLOWER};
use fault_proxy::FaultProxy;
use openbao::OpenBao;
use proptest::prelude::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use waxseal_testing::sigv4::{Request, sign};
use xks_proxy::{
    Call, Certificate, Credential, Effect, ErrorName, Fault, Operation, Options, Quota,
    TransitOptions, XksProxy, api,
};

const KEY: &str = "b42c7fbf-de61-441c-ae24-123456789012";
const ALICE: &str = "arn:aws:iam::123456789012:user/Alice";
const MALLORY: &str = "arn:aws:iam::123456789012:user/Mallory";
const DEK: &[u8; 32] = b"a data key that nobody shall log";

/// What KMS does: signs and sends, and keeps nothing.
#[derive(Clone)]
struct Kms {
    client: reqwest::Client,
    port: u16,
    uri_path: String,
    credential: Credential,
    principal: &'static str,
    kms_operation: &'static str,
    /// Seconds that its clock is ahead.
    ahead: i64,
}

impl Kms {
    fn of(proxy: &XksProxy) -> Self {
        Self {
            client: client(proxy, |builder| builder),
            port: proxy.port(),
            uri_path: proxy.uri_path().to_owned(),
            credential: proxy.credential(),
            principal: ALICE,
            kms_operation: "GenerateDataKey",
            ahead: 0,
        }
    }

    fn metadata(&self) -> Value {
        json!({
            "awsPrincipalArn": self.principal, "kmsOperation": self.kms_operation,
            "kmsKeyArn": "arn:aws:kms:us-east-2:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab",
            "kmsRequestId": "4112f4d6-db54-4af4-ae30-c55a22a8dfae",
        })
    }

    fn signed(&self, method: &str, path: &str, body: &[u8]) -> reqwest::RequestBuilder {
        let now = SystemTime::now();
        let shift = Duration::from_secs(self.ahead.unsigned_abs());
        let now = if self.ahead < 0 { now - shift } else { now + shift };
        let headers = [("host".to_owned(), format!("localhost:{}", self.port))];
        let request = Request { method, path, headers: &headers, body };
        let Credential { access_key_id, secret_access_key } = &self.credential;
        let [date, authorization] =
            sign(&request, access_key_id, secret_access_key, "us-east-2", xks_proxy::SERVICE, now);
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        self.client
            .request(method, format!("https://localhost:{}{path}", self.port))
            .header("content-type", "application/json")
            .header(date.0, date.1)
            .header(authorization.0, authorization.1)
            .body(body.to_vec())
    }

    /// To a path below the URI path.
    async fn send(&self, path: &str, body: &[u8]) -> Answer {
        answer_of(self.signed("POST", &format!("{}{path}", self.uri_path), body)).await
    }

    async fn call(&self, operation: Operation, key: &str, parameters: Value) -> Answer {
        let path = match operation {
            Operation::GetHealthStatus => "/health".to_owned(),
            Operation::GetKeyMetadata => format!("/keys/{key}/metadata"),
            Operation::Encrypt => format!("/keys/{key}/encrypt"),
            Operation::Decrypt => format!("/keys/{key}/decrypt"),
        };
        let mut body = json!({ "requestMetadata": self.metadata() });
        body.as_object_mut().unwrap().extend(parameters.as_object().cloned().unwrap_or_default());
        self.send(&path, body.to_string().as_bytes()).await
    }

    async fn encrypt(&self, key: &str, plaintext: &[u8], aad: Option<&[u8]>) -> Answer {
        self.call(Operation::Encrypt, key, to_encrypt(plaintext, aad)).await
    }

    async fn decrypt(&self, key: &str, encrypted: &Value, aad: Option<&[u8]>) -> Answer {
        self.call(Operation::Decrypt, key, to_decrypt(encrypted, aad)).await
    }

    async fn describe(&self, key: &str) -> Answer {
        self.call(Operation::GetKeyMetadata, key, Value::Null).await
    }

    async fn health(&self) -> Answer {
        self.call(Operation::GetHealthStatus, "", Value::Null).await
    }
}

fn client(
    proxy: &XksProxy,
    change: fn(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
) -> reqwest::Client {
    let ca = reqwest::Certificate::from_pem(proxy.ca_pem().as_bytes()).unwrap();
    let here = SocketAddr::from((Ipv4Addr::LOCALHOST, proxy.port()));
    let builder =
        reqwest::Client::builder().no_proxy().tls_certs_only([ca]).resolve("localhost", here);
    change(builder.timeout(Duration::from_secs(60))).build().unwrap()
}

fn to_encrypt(plaintext: &[u8], aad: Option<&[u8]>) -> Value {
    let mut parameters =
        json!({ "plaintext": BASE64.encode(plaintext), "encryptionAlgorithm": "AES_GCM" });
    if let Some(aad) = aad {
        parameters["additionalAuthenticatedData"] = json!(BASE64.encode(aad));
    }
    parameters
}

fn to_decrypt(encrypted: &Value, aad: Option<&[u8]>) -> Value {
    let mut parameters = encrypted.clone();
    parameters.as_object_mut().unwrap().remove("ciphertextDataIntegrityValue");
    parameters["encryptionAlgorithm"] = json!("AES_GCM");
    if let Some(aad) = aad {
        parameters["additionalAuthenticatedData"] = json!(BASE64.encode(aad));
    }
    parameters
}

#[derive(Debug)]
struct Answer {
    status: u16,
    body: Value,
}

async fn answer_of(request: reqwest::RequestBuilder) -> Answer {
    let answer = request.send().await.unwrap();
    let status = answer.status().as_u16();
    if status != 405 {
        assert_eq!(answer.headers()["content-type"], "application/json");
    }
    Answer {
        status,
        body: serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or_default(),
    }
}

impl Answer {
    #[track_caller]
    fn good(self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body
    }

    /// One of the errors of the table, within the bounds of "Error codes".
    #[track_caller]
    fn error(self) -> ErrorName {
        let fields = self.body.as_object().unwrap_or_else(|| panic!("{self:?}"));
        assert!(
            fields.keys().all(|name| name == "errorName" || name == "errorMessage"),
            "{self:?}"
        );
        let message = self.body["errorMessage"].as_str().unwrap();
        assert!(
            message.len() < 512 && message.bytes().all(|byte| (0x20..=0x7e).contains(&byte)),
            "{message}"
        );
        let found =
            ErrorName::ALL.into_iter().find(|name| self.body["errorName"] == name.name()).unwrap();
        assert_eq!(found.parts().0, self.status, "{self:?}");
        found
    }

    #[track_caller]
    fn plaintext(self) -> Vec<u8> {
        let body = self.good();
        assert_eq!(
            body.as_object().unwrap().len(),
            1,
            "Decrypt answers with a plaintext and nothing else"
        );
        field(&body, "plaintext")
    }
}

#[track_caller]
fn field(value: &Value, name: &str) -> Vec<u8> {
    BASE64.decode(value[name].as_str().unwrap().as_bytes()).unwrap()
}

fn with(value: &Value, name: &str, bytes: &[u8]) -> Value {
    let mut value = value.clone();
    value[name] = json!(BASE64.encode(bytes));
    value
}

/// OpenBao over TLS with one key, and a proxy that waits long enough for a busy machine.
struct Ground {
    server: OpenBao,
    proxy: XksProxy,
    kms: Kms,
}

impl Ground {
    async fn start() -> Self {
        let server = OpenBao::with(openbao::Options { tls: true, ..Default::default() }).await;
        let ca = fs::read_to_string(server.ca_file()).unwrap();
        Self::over(server, Some(&ca)).await
    }

    async fn over(server: OpenBao, ca: Option<&str>) -> Self {
        server.create_key(KEY, false).await;
        let transit = TransitOptions::prepare(&server.address(), ca, server.root_token()).await;
        let proxy =
            XksProxy::start(Options { budget: Duration::from_secs(30), ..Options::new(transit) });
        let kms = Kms::of(&proxy);
        Self { server, proxy, kms }
    }

    fn last_call(&self) -> Call {
        self.proxy.calls().pop().unwrap()
    }
}

#[tokio::test]
async fn what_was_encrypted_comes_back_with_the_same_aad_and_with_no_other() {
    let Ground { server: _server, proxy, kms } = Ground::start().await;
    let (most, most_aad) = (vec![0xa5; 4300], vec![0x5a; 8192]);
    for plaintext in [&b""[..], b"Hello World!", DEK, &most] {
        for aad in
            [None, Some(&b""[..]), Some(b"project=nile,department=marketing"), Some(&most_aad)]
        {
            let encrypted = kms.encrypt(KEY, plaintext, aad).await.good();
            assert_eq!(field(&encrypted, "ciphertext").len(), plaintext.len());
            assert_eq!(field(&encrypted, "initializationVector").len(), 12);
            assert_eq!(field(&encrypted, "authenticationTag").len(), 16);
            assert!(field(&encrypted, "ciphertextMetadata").len() <= 20);
            assert_eq!(
                encrypted.as_object().unwrap().len(),
                4,
                "no integrity value unless asked: {encrypted}"
            );
            assert_eq!(kms.decrypt(KEY, &encrypted, aad).await.plaintext(), plaintext);
            let other = kms.decrypt(KEY, &encrypted, Some(b"project=other")).await;
            assert_eq!(other.error(), ErrorName::InvalidCiphertext);
        }
    }
    // No AAD and an AAD of no bytes are the same: "the corresponding length MUST be set to zero"
    // (Encrypt).
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();
    assert_eq!(kms.decrypt(KEY, &encrypted, Some(b"")).await.plaintext(), DEK);
    assert_ne!(encrypted, kms.encrypt(KEY, DEK, None).await.good(), "each time another IV");
    assert_eq!(proxy.arrived(Operation::Encrypt), 18);
}

#[tokio::test]
async fn a_flip_of_any_bit_of_metadata_iv_and_tag_and_of_any_byte_of_the_ciphertext_is_refused() {
    let Ground { server: _server, proxy: _proxy, kms } = Ground::start().await;
    let aad = Some(&b"tenant=7"[..]);
    let encrypted = kms.encrypt(KEY, DEK, aad).await.good();
    let mut refused = 0;
    for (name, bits) in [
        ("ciphertextMetadata", &[1, 2, 4, 8, 16, 32, 64, 128][..]),
        ("initializationVector", &[1, 2, 4, 8, 16, 32, 64, 128]),
        ("authenticationTag", &[1, 2, 4, 8, 16, 32, 64, 128]),
        ("ciphertext", &[1]),
    ] {
        for at in 0..field(&encrypted, name).len() {
            for bit in bits {
                let mut bytes = field(&encrypted, name);
                bytes[at] ^= bit;
                let answer = kms.decrypt(KEY, &with(&encrypted, name, &bytes), aad).await;
                assert_eq!(
                    answer.error(),
                    ErrorName::InvalidCiphertext,
                    "{name}, byte {at}, bit {bit}"
                );
                refused += 1;
            }
        }
    }
    assert_eq!(refused, (5 + 12 + 16) * 8 + 32);
    assert_eq!(kms.decrypt(KEY, &encrypted, aad).await.plaintext(), DEK, "the control");
}

#[tokio::test]
async fn a_ciphertext_whose_parts_are_missing_moved_or_of_another_size_is_refused() {
    let Ground { server, proxy: _proxy, kms } = Ground::start().await;
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();
    let part = |name: &str| field(&encrypted, name);
    let (iv, ciphertext, tag, metadata) = (
        part("initializationVector"),
        part("ciphertext"),
        part("authenticationTag"),
        part("ciphertextMetadata"),
    );
    let mut wrong = vec![
        with(&encrypted, "initializationVector", &iv[..11]),
        with(&encrypted, "initializationVector", b""),
        with(&encrypted, "authenticationTag", &tag[..15]),
        with(&encrypted, "authenticationTag", &[&tag[..], &[0]].concat()),
        with(&encrypted, "ciphertext", &ciphertext[..31]),
        with(&encrypted, "ciphertext", &[&ciphertext[..], &[0]].concat()),
        with(&encrypted, "ciphertextMetadata", b""),
        with(&encrypted, "ciphertextMetadata", &metadata[..4]),
        with(&encrypted, "ciphertextMetadata", &[&metadata[..], &[0]].concat()),
        with(&encrypted, "ciphertextMetadata", &[1; 21]),
        // Version 0, which Transit takes for 1.
        with(&encrypted, "ciphertextMetadata", &[1, 0, 0, 0, 0]),
        // An IV of 16 bytes is allowed by the specification; the same bytes in other fields would
        // be the same to Transit.
        with(
            &with(&encrypted, "initializationVector", &[&iv[..], &ciphertext[..4]].concat()),
            "ciphertext",
            &ciphertext[4..],
        ),
        with(
            &with(&encrypted, "authenticationTag", &[&ciphertext[31..], &tag[..]].concat()),
            "ciphertext",
            &ciphertext[..31],
        ),
    ];
    for name in ["ciphertext", "ciphertextMetadata", "initializationVector", "authenticationTag"] {
        let mut without = encrypted.clone();
        without.as_object_mut().unwrap().remove(name);
        wrong.push(without);
        for value in [
            json!("&&&&"),
            json!("AAA"),
            json!("AAB="),
            json!("AA-_"),
            json!(7),
            json!([1]),
            Value::Null,
        ] {
            let mut changed = encrypted.clone();
            changed[name] = value;
            wrong.push(changed);
        }
    }
    for wrong in wrong {
        assert_eq!(
            kms.decrypt(KEY, &wrong, None).await.error(),
            ErrorName::InvalidCiphertext,
            "{wrong}"
        );
    }
    // The case of the NOTE in "Encrypt": the metadata given back as AAD.
    let mut without = encrypted.clone();
    without.as_object_mut().unwrap().remove("ciphertextMetadata");
    assert_eq!(
        kms.decrypt(KEY, &without, Some(&metadata)).await.error(),
        ErrorName::InvalidCiphertext
    );
    // Another key.
    server.create_key("other.key_1", false).await;
    assert_eq!(
        kms.decrypt("other.key_1", &encrypted, None).await.error(),
        ErrorName::InvalidCiphertext
    );
    assert_eq!(kms.decrypt(KEY, &encrypted, None).await.plaintext(), DEK, "the control");
}

#[tokio::test]
async fn transit_gets_the_aad_and_the_metadata_each_with_its_length() {
    let Ground { server, proxy: _proxy, kms } = Ground::start().await;
    let encrypted = kms.encrypt(KEY, DEK, Some(b"tenant=7")).await.good();
    let metadata = field(&encrypted, "ciphertextMetadata");
    assert_eq!(metadata, [1, 0, 0, 0, 1], "layout 1, key version 1");
    let parts = ["initializationVector", "ciphertext", "authenticationTag"]
        .map(|name| field(&encrypted, name));
    let ciphertext = format!("vault:v1:{}", BASE64.encode(&parts.concat()));
    let ask = async |aad: &[u8]| {
        let body = json!({ "ciphertext": ciphertext, "associated_data": BASE64.encode(aad) });
        server.ask("POST", &format!("transit/decrypt/{KEY}"), body).await
    };
    let (status, answer) = ask(b"\x00\x08tenant=7\x05\x01\x00\x00\x00\x01").await;
    assert_eq!((status, field(&answer["data"], "plaintext")), (200, DEK.to_vec()));
    assert_eq!(ask(b"tenant=7\x01\x00\x00\x00\x01").await.0, 400);
    assert_eq!(api::composed_aad(b"", &[]), Some(vec![0, 0, 0]), "absent is a length of zero");
    assert_eq!(api::composed_aad(&[7; 258], &[9; 20]).unwrap()[..2], [1, 2], "big-endian");
    assert_eq!(api::composed_aad(&[0; 65536], b""), None);
}

#[tokio::test]
async fn the_integrity_value_is_the_one_of_the_specification() {
    // The example of "Encrypt", computed in Appendix C.
    let decode = |text: &str| BASE64.decode(text.as_bytes()).unwrap();
    let sealed = api::Sealed {
        iv: decode("HMrlRw85cAJUd5Ax").try_into().unwrap(),
        ciphertext: decode("ghxkK1txeDNn3q8Y"),
        tag: decode("vBxN2ncH1oEkR8WVXpmyYQ==").try_into().unwrap(),
    };
    let aad = decode("cHJvamVjdD1uaWxlLGRlcGFydG1lbnQ9bWFya2V0aW5n");
    let value = api::cdiv(&aad, &decode("a2V5X3ZlcnNpb249MQ=="), &sealed);
    assert_eq!(
        HEXLOWER.encode(&value),
        "a8703f2260bd8791ec2d15ea0b23e65a0631eedcf2a13a65cc82db3f47cf5ec7"
    );
    assert_eq!(BASE64.encode(&value), "qHA/ImC9h5HsLRXqCyPmWgYx7tzyoTplzILbP0fPXsc=");

    let Ground { server: _server, proxy: _proxy, kms } = Ground::start().await;
    for aad in [None, Some(&b"tenant=7"[..])] {
        let mut parameters = to_encrypt(DEK, aad);
        parameters["ciphertextDataIntegrityValueAlgorithm"] = json!("SHA_256");
        let encrypted = kms.call(Operation::Encrypt, KEY, parameters).await.good();
        let parts =
            ["ciphertextMetadata", "initializationVector", "ciphertext", "authenticationTag"];
        let all =
            [&[aad.unwrap_or_default().to_vec()][..], &parts.map(|name| field(&encrypted, name))]
                .concat();
        assert_eq!(
            field(&encrypted, "ciphertextDataIntegrityValue"),
            Sha256::digest(all.concat())[..]
        );
        assert_eq!(kms.decrypt(KEY, &encrypted, aad).await.plaintext(), DEK);
    }
}

#[tokio::test]
async fn the_log_says_who_asked_what_and_never_a_plaintext() {
    let ground = Ground::start().await;
    let kms = &ground.kms;
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();
    let call = ground.last_call();
    assert_eq!(
        (call.operation, call.key.as_str(), call.error),
        (Some(Operation::Encrypt), KEY, None)
    );
    assert_eq!((call.principal.as_str(), call.kms_operation.as_str()), (ALICE, "GenerateDataKey"));
    assert_eq!(call.kms_request_id, "4112f4d6-db54-4af4-ae30-c55a22a8dfae");
    assert!(
        call.kms_key_arn.starts_with("arn:aws:kms:us-east-2:") && call.elapsed > Duration::ZERO
    );
    kms.decrypt(KEY, &encrypted, None).await.plaintext();
    kms.decrypt(KEY, &encrypted, Some(b"x")).await.error();
    kms.encrypt(KEY, &DEK.repeat(200), None).await.error();
    ground.proxy.key(KEY).disable();
    kms.encrypt(KEY, DEK, None).await.error();
    let calls = ground.proxy.calls();
    let errors: Vec<_> = calls.iter().map(|call| call.error).collect();
    assert_eq!(
        errors,
        [
            None,
            None,
            Some(ErrorName::InvalidCiphertext),
            Some(ErrorName::UnsupportedOperation),
            Some(ErrorName::InvalidState)
        ]
    );
    let log = format!("{calls:?}");
    let secret = &kms.credential.secret_access_key;
    // Any three bytes in a row: Base64 has other letters for each of the three ways they can lie.
    let encoded = (0..3).map(|skip| BASE64.encode(&DEK[skip..30 + skip / 3]));
    for wanted in encoded.chain([String::from_utf8(DEK.to_vec()).unwrap(), secret.clone()]) {
        assert!(!log.contains(&wanted[..20.min(wanted.len())]), "{log}");
    }
}

#[tokio::test]
async fn faults_strike_the_operation_and_key_they_are_meant_for_as_often_as_they_should() {
    let Ground { server, proxy, kms } = Ground::start().await;
    server.create_key("other", false).await;
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();
    for name in ErrorName::ALL {
        proxy.fail(Fault::error(name).on(Operation::Decrypt).for_key(KEY).times(1));
        kms.encrypt(KEY, DEK, None).await.good();
        assert_eq!(
            kms.decrypt("other", &encrypted, None).await.error(),
            ErrorName::InvalidCiphertext
        );
        assert_eq!(kms.decrypt(KEY, &encrypted, None).await.error(), name);
        assert_eq!(kms.decrypt(KEY, &encrypted, None).await.plaintext(), DEK, "only once");
    }
    proxy.fail(Fault::new(Effect::Raw(200, "<html>")).on(Operation::Decrypt));
    let answer = kms.decrypt(KEY, &encrypted, None).await;
    assert_eq!((answer.status, answer.body), (200, Value::Null));
    proxy.recover();

    proxy.fail(
        Fault::new(Effect::Alter(|answer| answer["plaintext"] = json!("bGll")))
            .on(Operation::Decrypt),
    );
    assert_eq!(kms.decrypt(KEY, &encrypted, None).await.plaintext(), b"lie");
    proxy.recover();

    proxy.fail(Fault::new(Effect::Close).on(Operation::Decrypt));
    let path = format!("{}/keys/{KEY}/decrypt", proxy.uri_path());
    kms.signed("POST", &path, b"{}").send().await.unwrap_err();
    proxy.recover();

    let before = proxy.arrived(Operation::GetHealthStatus);
    proxy.fail(Fault::new(Effect::Hang).on(Operation::GetHealthStatus));
    let hanging = tokio::spawn({
        let kms = kms.clone();
        async move { kms.health().await }
    });
    while proxy.arrived(Operation::GetHealthStatus) == before {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!hanging.is_finished());
    hanging.abort();
    proxy.recover();

    let pause = Duration::from_millis(300);
    proxy.fail(Fault::new(Effect::Delay(pause)).on(Operation::GetHealthStatus));
    kms.health().await.good();
    assert!(proxy.calls().last().unwrap().elapsed >= pause);
    proxy.recover();

    proxy.limit(Some(Quota { requests: 2, window: Duration::from_secs(3600) }));
    let mut stranger = kms.clone();
    stranger.credential.secret_access_key.push('A');
    stranger.health().await.error();
    kms.health().await.good();
    kms.describe(KEY).await.good();
    assert_eq!(kms.describe(KEY).await.error(), ErrorName::Throttling);
    proxy.limit(Some(Quota { requests: 1, window: Duration::ZERO }));
    kms.describe(KEY).await.good();
    kms.describe(KEY).await.good();
}
