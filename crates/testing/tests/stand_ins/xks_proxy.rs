//! The project's XKS proxy, held against the "External Key Store Proxy API Specification", version 1, over a real OpenBao: what the tests of external key
//! stores rest on.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

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
    // No AAD and an AAD of no bytes are the same: "the corresponding length MUST be set to zero" (Encrypt).
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
        // An IV of 16 bytes is allowed by the specification; the same bytes in other fields would be the same to Transit.
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
async fn every_error_of_the_table_is_given_where_it_is_meant() {
    let server = OpenBao::start().await;
    server.create_key(KEY, false).await;
    let network = FaultProxy::start(server.port());
    let mut transit = TransitOptions::prepare(&server.address(), None, server.root_token()).await;
    transit.address = format!("http://127.0.0.1:{}", network.port());
    let proxy =
        XksProxy::start(Options { budget: Duration::from_secs(3), ..Options::new(transit) });
    let kms = Kms::of(&proxy);
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();
    let key = proxy.key(KEY);
    let mut seen = Vec::new();

    let mut wrong_algorithm = to_encrypt(DEK, None);
    wrong_algorithm["encryptionAlgorithm"] = json!("AES_CBC");
    seen.push((
        kms.call(Operation::Encrypt, KEY, wrong_algorithm).await.error(),
        ErrorName::Validation,
    ));

    key.disable();
    seen.push((kms.decrypt(KEY, &encrypted, None).await.error(), ErrorName::InvalidState));
    key.enable();

    seen.push((
        kms.decrypt(KEY, &encrypted, Some(b"x")).await.error(),
        ErrorName::InvalidCiphertext,
    ));

    key.restrict(true, false);
    seen.push((kms.decrypt(KEY, &encrypted, None).await.error(), ErrorName::InvalidKeyUsage));
    key.restrict(true, true);

    let mut stranger = kms.clone();
    stranger.credential.secret_access_key.push('A');
    seen.push((stranger.health().await.error(), ErrorName::AuthenticationFailed));

    proxy.deny(ALICE);
    seen.push((kms.decrypt(KEY, &encrypted, None).await.error(), ErrorName::AccessDenied));
    proxy.allow(ALICE);

    seen.push((kms.encrypt("no-such-key", DEK, None).await.error(), ErrorName::KeyNotFound));
    seen.push((kms.send("/keys", b"{}").await.error(), ErrorName::InvalidUriPath));

    proxy.limit(Some(Quota { requests: 0, window: Duration::from_secs(3600) }));
    seen.push((kms.health().await.error(), ErrorName::Throttling));
    proxy.limit(None);

    seen.push((kms.encrypt(KEY, &[0; 4301], None).await.error(), ErrorName::UnsupportedOperation));

    network.set(fault_proxy::Fault::Silence);
    seen.push((kms.decrypt(KEY, &encrypted, None).await.error(), ErrorName::DependencyTimeout));
    network.set(fault_proxy::Fault::None);

    server.seal().await;
    seen.push((kms.decrypt(KEY, &encrypted, None).await.error(), ErrorName::Internal));
    server.unseal().await;
    assert_eq!(kms.decrypt(KEY, &encrypted, None).await.plaintext(), DEK, "the control");

    for (given, meant) in &seen {
        assert_eq!(given, meant);
    }
    let given: Vec<_> = seen.into_iter().map(|(given, _)| given).collect();
    assert_eq!(given, ErrorName::ALL, "all of them, in the order of the table");
}

#[tokio::test]
async fn a_parameter_that_is_missing_wrong_or_too_large_is_refused_by_its_own_name() {
    let Ground { server: _server, proxy, kms } = Ground::start().await;
    let good = to_encrypt(DEK, Some(b"tenant=7"));
    kms.call(Operation::Encrypt, KEY, good.clone()).await.good();
    let changed = |name: &str, value: Value| {
        let mut parameters = good.clone();
        parameters[name] = value;
        parameters
    };
    for (name, value, error) in [
        ("plaintext", Value::Null, ErrorName::Validation),
        ("plaintext", json!(7), ErrorName::Validation),
        ("plaintext", json!("AAA"), ErrorName::Validation),
        ("plaintext", json!(BASE64.encode(&[0; 4301])), ErrorName::UnsupportedOperation),
        ("additionalAuthenticatedData", json!("a b="), ErrorName::Validation),
        ("additionalAuthenticatedData", json!({}), ErrorName::Validation),
        (
            "additionalAuthenticatedData",
            json!(BASE64.encode(&[0; 8193])),
            ErrorName::UnsupportedOperation,
        ),
        ("encryptionAlgorithm", Value::Null, ErrorName::Validation),
        ("encryptionAlgorithm", json!("aes_gcm"), ErrorName::Validation),
        ("ciphertextDataIntegrityValueAlgorithm", json!("MD5"), ErrorName::Validation),
        ("ciphertextDataIntegrityValueAlgorithm", Value::Null, ErrorName::Validation),
        ("requestMetadata", json!("x"), ErrorName::Validation),
        ("requestMetadata", json!({}), ErrorName::Validation),
        ("padding", json!("x".repeat(70_000)), ErrorName::UnsupportedOperation),
    ] {
        let answer = kms.call(Operation::Encrypt, KEY, changed(name, value)).await;
        assert_eq!(answer.error(), error, "{name}");
    }
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();
    let long = with(&encrypted, "ciphertext", &[0; 4301]);
    assert_eq!(kms.decrypt(KEY, &long, None).await.error(), ErrorName::UnsupportedOperation);
    let mut other = to_decrypt(&encrypted, None);
    other["encryptionAlgorithm"] = json!("AES_SIV");
    assert_eq!(kms.call(Operation::Decrypt, KEY, other).await.error(), ErrorName::Validation);
    let endless =
        json!({ "requestMetadata": kms.metadata(), "padding": "x".repeat(2_000_000) }).to_string();
    let path = format!("{}/health", proxy.uri_path());
    kms.signed("POST", &path, endless.as_bytes()).send().await.unwrap_err();
    // The metadata: what is REQUIRED of each operation has to be there, what is not listed may be, and kmsOperation may say anything.
    let metadata = kms.metadata();
    for (operation, required) in [
        (Operation::GetHealthStatus, &["kmsOperation", "kmsRequestId"][..]),
        (Operation::GetKeyMetadata, &["kmsOperation", "kmsRequestId", "awsPrincipalArn"]),
        (Operation::Encrypt, &["kmsOperation", "kmsRequestId", "awsPrincipalArn", "kmsKeyArn"]),
        (Operation::Decrypt, &["kmsOperation", "kmsRequestId", "awsPrincipalArn", "kmsKeyArn"]),
    ] {
        let parameters = match operation {
            Operation::Encrypt => to_encrypt(DEK, None),
            Operation::Decrypt => to_decrypt(&encrypted, None),
            _ => json!({}),
        };
        for name in ["kmsOperation", "kmsRequestId", "awsPrincipalArn", "kmsKeyArn"] {
            let mut without = parameters.clone();
            without["requestMetadata"] = metadata.clone();
            without["requestMetadata"].as_object_mut().unwrap().remove(name);
            let answer = kms.call(operation, KEY, without.clone()).await;
            if required.contains(&name) {
                assert_eq!(answer.error(), ErrorName::Validation, "{operation:?} without {name}");
                without["requestMetadata"][name] = json!(["no", "string"]);
                let answer = kms.call(operation, KEY, without).await;
                assert_eq!(
                    answer.error(),
                    ErrorName::Validation,
                    "{operation:?}, {name} is no string"
                );
            } else {
                answer.good();
            }
        }
        let mut more = parameters.clone();
        more["requestMetadata"] = metadata.clone();
        more["requestMetadata"]["kmsOperation"] = json!("BulkEverything");
        more["requestMetadata"]["awsSourceVpce"] = json!("vpce-1");
        more["requestMetadata"]["sourceIdentity"] = json!({ "of": "a later version" });
        more["requestMetadata"]["kmsRequestId"] = json!("not a UUID, \u{1f9ff}");
        more["requestMetadata"]["awsPrincipalArn"] =
            json!(format!("arn:aws:iam::1:user/{}", "p".repeat(2027)));
        more["requestMetadata"]["kmsKeyArn"] =
            json!(format!("arn:aws:kms:eu-west-1:1:key/{}", "k".repeat(2020)));
        kms.call(operation, KEY, more.clone()).await.good();
        more["requestMetadata"]["awsSourceVpce"] = json!(1);
        assert_eq!(kms.call(operation, KEY, more).await.error(), ErrorName::Validation);
    }
    // Another content type.
    let body = json!({ "requestMetadata": metadata }).to_string();
    let plain = kms.signed("POST", &path, body.as_bytes()).build().unwrap();
    let mut headers = plain.headers().clone();
    headers.insert("content-type", "text/plain".parse().unwrap());
    let request = kms.client.post(plain.url().clone()).headers(headers.clone()).body(body.clone());
    assert_eq!(answer_of(request).await.error(), ErrorName::Validation);
    headers.insert("content-type", "application/json; charset=utf-8".parse().unwrap());
    answer_of(kms.client.post(plain.url().clone()).headers(headers).body(body)).await.good();
}

#[tokio::test]
async fn other_methods_are_not_allowed_and_other_paths_not_found() {
    let Ground { server: _server, proxy, kms } = Ground::start().await;
    let below = |path: &str| format!("{}{path}", proxy.uri_path());
    for path in ["/health", "/keys/k/metadata", "/keys/k/encrypt", "/keys/k/decrypt"] {
        for method in ["GET", "PUT", "DELETE", "HEAD"] {
            let answer = kms.signed(method, &below(path), b"").send().await.unwrap();
            assert_eq!(
                (answer.status().as_u16(), &answer.headers()["allow"]),
                (405, &"POST".parse().unwrap())
            );
        }
    }
    let long = format!("/keys/{}/encrypt", "k".repeat(129));
    for path in [
        "",
        "/",
        "/Health",
        "/health/",
        "/healthy",
        "//health",
        "/health?x=1",
        "/keys",
        "/keys/",
        "/keys//encrypt",
        "/keys/k",
        "/keys/k/",
        "/keys/k/sign",
        "/keys/k/Encrypt",
        "/keys/k/encrypt/",
        "/keys/a/b/encrypt",
        "/keys/%6b/encrypt",
        "/keys/k%2e/encrypt",
        "/keys/k~/encrypt",
        "/keys/k:1/metadata",
        &long,
    ] {
        assert_eq!(kms.send(path, b"{}").await.error(), ErrorName::InvalidUriPath, "{path}");
    }
    for path in ["/", "/kms/xks/v2/health", "/kms/xks/v1health", "/prefix/kms/xks/v1/health"] {
        let answer = answer_of(kms.signed("POST", path, b"{}")).await;
        assert_eq!(answer.error(), ErrorName::InvalidUriPath, "{path}");
    }
    // Ids that the specification allows, and that Transit cannot have or would take for another path.
    for id in ["-", "...", "a-", ".a", "-.-", &"k".repeat(128)] {
        assert_eq!(kms.describe(id).await.error(), ErrorName::KeyNotFound, "{id}");
        assert_eq!(kms.encrypt(id, DEK, None).await.error(), ErrorName::KeyNotFound, "{id}");
    }
}

#[tokio::test]
async fn a_dot_segment_as_a_key_id_reaches_no_other_path_of_the_key_manager() {
    let Ground { server: _server, proxy, kms } = Ground::start().await;
    // A client normalises such a path, so the request is written by hand, inside TLS.
    for id in [".", ".."] {
        let path = format!("{}/keys/{id}/metadata", proxy.uri_path());
        let body = json!({ "requestMetadata": kms.metadata() }).to_string();
        let headers = [("host".to_owned(), format!("localhost:{}", proxy.port()))];
        let request =
            Request { method: "POST", path: &path, headers: &headers, body: body.as_bytes() };
        let Credential { access_key_id, secret_access_key } = &kms.credential;
        let now = SystemTime::now();
        let [date, authorization] =
            sign(&request, access_key_id, secret_access_key, "us-east-2", xks_proxy::SERVICE, now);
        let text = format!(
            "POST {path} HTTP/1.1\r\nhost: {}\r\n{}: {}\r\n{}: {}\r\ncontent-type: application/json\r\n\
             connection: close\r\ncontent-length: {}\r\n\r\n{body}",
            headers[0].1,
            date.0,
            date.1,
            authorization.0,
            authorization.1,
            body.len()
        );
        let answer = raw(&proxy, text.as_bytes()).await;
        assert!(
            answer.starts_with("HTTP/1.1 404 ") && answer.contains("KeyNotFoundException"),
            "{answer}"
        );
    }
}

/// Bytes over TLS, and all that comes back.
async fn raw(proxy: &XksProxy, bytes: &[u8]) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio_rustls::rustls::crypto::aws_lc_rs;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(proxy.ca_pem().as_bytes()).unwrap()).unwrap();
    let config =
        ClientConfig::builder_with_provider(std::sync::Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
    let tcp = tokio::net::TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port())).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(config));
    let mut tls = connector.connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
    tls.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // The other side may end without closing TLS in order.
    let _ = tls.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_proxy_with_a_path_prefix_serves_below_it_only() {
    let server = OpenBao::start().await;
    let transit = TransitOptions::prepare(&server.address(), None, server.root_token()).await;
    let path_prefix = "keystores/4a0d79d6-1d1b-49fd-9dbe-799cb9c0fb3f".to_owned();
    let options = Options { path_prefix, budget: Duration::from_secs(30), ..Options::new(transit) };
    let proxy = XksProxy::start(options);
    assert_eq!(proxy.uri_path(), "/keystores/4a0d79d6-1d1b-49fd-9dbe-799cb9c0fb3f/kms/xks/v1");
    let mut kms = Kms::of(&proxy);
    kms.health().await.good();
    kms.uri_path = "/kms/xks/v1".to_owned();
    assert_eq!(kms.health().await.error(), ErrorName::InvalidUriPath);
}

#[tokio::test]
async fn a_signature_counts_only_if_key_secret_service_body_path_and_time_are_right() {
    let Ground { server: _server, proxy, kms } = Ground::start().await;
    kms.health().await.good();
    let refused = async |kms: &Kms| {
        let before = proxy.calls().len();
        assert_eq!(kms.health().await.error(), ErrorName::AuthenticationFailed);
        let call = proxy.calls()[before].clone();
        assert!(
            call.access_key_id.is_empty() && call.kms_request_id.is_empty(),
            "what is unsigned is not logged"
        );
        call.reason
    };
    let changed = |change: fn(&mut Kms)| {
        let mut kms = kms.clone();
        change(&mut kms);
        kms
    };
    assert_eq!(
        refused(&changed(|kms| kms.credential.access_key_id.push('A'))).await,
        "an unknown access key id"
    );
    assert_eq!(
        refused(&changed(|kms| kms.credential.secret_access_key.insert(0, 'A'))).await,
        "Mismatch"
    );
    // "Any requests more than 5 minutes in the past (or future, due to clock drift)" (Appendix A).
    assert_eq!(refused(&changed(|kms| kms.ahead = 330)).await, "Skewed");
    assert_eq!(refused(&changed(|kms| kms.ahead = -330)).await, "Skewed");
    changed(|kms| kms.ahead = 240).health().await.good();
    changed(|kms| kms.ahead = -240).health().await.good();

    let path = format!("{}/health", proxy.uri_path());
    let body = json!({ "requestMetadata": kms.metadata() }).to_string();
    let other_body = body.replace("GenerateDataKey", "KmsHealthCheck");
    let signed = || kms.signed("POST", &path, body.as_bytes());
    answer_of(signed()).await.good();
    assert_eq!(answer_of(signed().body(other_body)).await.error(), ErrorName::AuthenticationFailed);
    let elsewhere =
        kms.signed("POST", &format!("{}/keys/{KEY}/metadata", proxy.uri_path()), body.as_bytes());
    let mut moved = elsewhere.build().unwrap();
    moved.url_mut().set_path(&path);
    let answer = answer_of(reqwest::RequestBuilder::from_parts(kms.client.clone(), moved)).await;
    assert_eq!(answer.error(), ErrorName::AuthenticationFailed);

    let headers = [("host".to_owned(), format!("localhost:{}", proxy.port()))];
    let request = Request { method: "POST", path: &path, headers: &headers, body: body.as_bytes() };
    let Credential { access_key_id, secret_access_key } = &kms.credential;
    let [date, for_kms] =
        sign(&request, access_key_id, secret_access_key, "us-east-2", "kms", SystemTime::now());
    let unsigned = || {
        kms.client.post(format!("{}{path}", proxy.url())).header("content-type", "application/json")
    };
    let other_service =
        unsigned().header(date.0, date.1).header(for_kms.0, for_kms.1).body(body.clone());
    assert_eq!(answer_of(other_service).await.error(), ErrorName::AuthenticationFailed);
    assert_eq!(
        answer_of(unsigned().body(body.clone())).await.error(),
        ErrorName::AuthenticationFailed
    );
    let basic = unsigned().basic_auth(access_key_id, Some(secret_access_key)).body(body.clone());
    assert_eq!(answer_of(basic).await.error(), ErrorName::AuthenticationFailed);
}

#[tokio::test]
async fn credentials_rotate_without_a_request_that_fails() {
    let Ground { server: _server, proxy, kms: before } = Ground::start().await;
    let mut after = before.clone();
    after.credential = proxy.add_credential();
    assert_eq!(proxy.credential(), after.credential);
    before.health().await.good();
    after.health().await.good();
    assert_eq!(proxy.calls().last().unwrap().access_key_id, after.credential.access_key_id);
    proxy.remove_credential(&before.credential.access_key_id);
    after.health().await.good();
    assert_eq!(before.health().await.error(), ErrorName::AuthenticationFailed);
    // Appendix A and "XKS proxy configuration in AWS KMS console".
    let Credential { access_key_id, secret_access_key } = &after.credential;
    assert!(
        (20..=30).contains(&access_key_id.len()) && (43..=64).contains(&secret_access_key.len())
    );
    assert!(
        access_key_id
            .bytes()
            .all(|byte| byte.is_ascii_uppercase() || (b'2'..=b'7').contains(&byte))
    );
    assert!(!format!("{:?}", after.credential).contains(secret_access_key.as_str()));
}

#[tokio::test]
async fn the_policy_denies_one_principal_and_only_the_log_says_why() {
    let ground = Ground::start().await;
    let Ground { server: _server, proxy, kms } = &ground;
    let mut mallory = kms.clone();
    mallory.principal = MALLORY;
    let encrypted = mallory.encrypt(KEY, DEK, None).await.good();
    proxy.deny(MALLORY);
    for operation in [Operation::GetKeyMetadata, Operation::Encrypt, Operation::Decrypt] {
        let parameters = match operation {
            Operation::Encrypt => to_encrypt(DEK, None),
            Operation::Decrypt => to_decrypt(&encrypted, None),
            _ => json!({}),
        };
        let answer = mallory.call(operation, KEY, parameters.clone()).await;
        assert!(!answer.body.to_string().contains("denied_principals"), "{answer:?}");
        assert_eq!(answer.error(), ErrorName::AccessDenied);
        let call = ground.last_call();
        assert!(call.reason.contains("the principal is in denied_principals"), "{call:?}");
        assert_eq!((call.principal.as_str(), call.operation), (MALLORY, Some(operation)));
        kms.call(operation, KEY, parameters).await.good();
    }
    // Denied before the key is looked at: whether there is one is not said.
    assert_eq!(mallory.encrypt("no-such-key", DEK, None).await.error(), ErrorName::AccessDenied);
    mallory.health().await.good();
    proxy.allow(MALLORY);
    assert_eq!(mallory.decrypt(KEY, &encrypted, None).await.plaintext(), DEK);
}

#[tokio::test]
async fn a_key_can_be_kept_for_some_callers_some_operations_and_some_kms_operations() {
    let Ground { server, proxy, kms } = Ground::start().await;
    server.create_key("other", false).await;
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();
    proxy.set_grants(json!([{
        "principals": ["arn:aws:iam::123456789012:user/*"], "keys": [KEY], "operations": ["Decrypt"],
        "kms_operations": ["Decrypt", "ReEncrypt"],
    }]));
    let mut reader = kms.clone();
    reader.kms_operation = "Decrypt";
    assert_eq!(reader.decrypt(KEY, &encrypted, None).await.plaintext(), DEK);
    assert_eq!(reader.encrypt(KEY, DEK, None).await.error(), ErrorName::AccessDenied);
    assert_eq!(reader.decrypt("other", &encrypted, None).await.error(), ErrorName::AccessDenied);
    assert_eq!(
        kms.decrypt(KEY, &encrypted, None).await.error(),
        ErrorName::AccessDenied,
        "GenerateDataKey"
    );
    reader.principal = "arn:aws:iam::210987654321:user/Alice";
    assert_eq!(reader.decrypt(KEY, &encrypted, None).await.error(), ErrorName::AccessDenied);
    assert!(proxy.calls().last().unwrap().reason.contains("no grant covers"));
    proxy.set_grants(json!([]));
    assert_eq!(kms.describe(KEY).await.error(), ErrorName::AccessDenied);
}

#[tokio::test]
async fn a_policy_that_fails_denies_and_one_in_the_old_syntax_is_not_taken() {
    let Ground { server: _server, proxy, kms } = Ground::start().await;
    kms.describe(KEY).await.good();
    for old in [
        "package xks\ndefault allow = false\nallow { input.operation == \"Encrypt\" }",
        "package xks\nallow { true }",
        "package xks\ndefault allow := false\nallow = true { true }",
        "this is no Rego",
    ] {
        proxy.set_policy(old).unwrap_err();
        kms.describe(KEY).await.good();
    }
    for failing in [
        // No rule of that name, a rule that is not defined, and one that is no boolean.
        "package xks\npermit := true",
        "package other\ndefault allow := true",
        "package xks\nallow if input.operation == \"Nothing\"",
        "package xks\nallow := \"true\"",
        "package xks\nallow := 1",
        // Errors: two values at once, a wrong type, a division by zero.
        "package xks\nallow := true if input.operation\nallow := false if input.externalKeyId",
        "package xks\ndefault allow := false\nallow if to_number(input.externalKeyId) > 0",
        "package xks\ndefault allow := false\nallow if not 1 / 0 == 1",
    ] {
        proxy.set_policy(failing).unwrap();
        assert_eq!(kms.describe(KEY).await.error(), ErrorName::AccessDenied, "{failing}");
    }
    proxy
        .set_policy(
            "package xks\ndefault allow := false\nallow if input.operation == \"GetKeyMetadata\"",
        )
        .unwrap();
    kms.describe(KEY).await.good();
    assert_eq!(kms.encrypt(KEY, DEK, None).await.error(), ErrorName::AccessDenied);
}

#[tokio::test]
async fn metadata_say_what_the_key_is_what_it_is_for_and_whether_it_is_enabled() {
    let Ground { server, proxy, kms } = Ground::start().await;
    let both =
        json!({ "keySpec": "AES_256", "keyUsage": ["ENCRYPT", "DECRYPT"], "keyStatus": "ENABLED" });
    assert_eq!(kms.describe(KEY).await.good(), both);
    let key = proxy.key(KEY);
    key.disable();
    assert_eq!(kms.describe(KEY).await.good()["keyStatus"], "DISABLED");
    assert_eq!(kms.encrypt(KEY, DEK, None).await.error(), ErrorName::InvalidState);
    key.enable();
    key.restrict(false, true);
    assert_eq!(kms.describe(KEY).await.good()["keyUsage"], json!(["DECRYPT"]));
    assert_eq!(kms.encrypt(KEY, DEK, None).await.error(), ErrorName::InvalidKeyUsage);
    key.restrict(true, true);
    assert_eq!(kms.describe(KEY).await.good(), both);
    // Keys of Transit that KMS cannot use.
    for (name, kind) in
        [("chacha", "chacha20-poly1305"), ("small", "aes128-gcm96"), ("sign", "ed25519")]
    {
        server.put(&format!("transit/keys/{name}"), json!({ "type": kind })).await;
        assert_ne!(kms.describe(name).await.good()["keySpec"], "AES_256");
        assert_eq!(
            kms.encrypt(name, DEK, None).await.error(),
            ErrorName::InvalidKeyUsage,
            "{kind}"
        );
    }
    server.create_key("derived", true).await;
    assert_eq!(kms.describe("derived").await.good()["keyUsage"], json!([]));
    assert_eq!(kms.encrypt("derived", DEK, None).await.error(), ErrorName::InvalidKeyUsage);
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();
    assert_eq!(kms.decrypt("derived", &encrypted, None).await.error(), ErrorName::InvalidKeyUsage);
    // A key that is gone, or never was: for the key of the health check, too, since it is none of KMS's.
    for id in ["no-such-key", xks_proxy::transit::HEALTH_KEY] {
        assert_eq!(kms.describe(id).await.error(), ErrorName::KeyNotFound);
        assert_eq!(kms.encrypt(id, DEK, None).await.error(), ErrorName::KeyNotFound);
        assert_eq!(kms.decrypt(id, &encrypted, None).await.error(), ErrorName::KeyNotFound);
    }
    server.ask("DELETE", &format!("transit/keys/{KEY}/soft-delete"), Value::Null).await;
    assert_eq!(kms.describe(KEY).await.good()["keyStatus"], "DISABLED");
    assert_eq!(kms.encrypt(KEY, DEK, None).await.error(), ErrorName::InvalidState);
    assert_eq!(kms.decrypt(KEY, &encrypted, None).await.error(), ErrorName::InvalidState);
}

#[tokio::test]
async fn an_old_key_version_still_decrypts_until_the_operator_forbids_it() {
    let Ground { server, proxy: _proxy, kms } = Ground::start().await;
    let old = kms.encrypt(KEY, DEK, Some(b"a")).await.good();
    for _ in 0..299 {
        server.rotate(KEY).await;
    }
    let new = kms.encrypt(KEY, DEK, Some(b"a")).await.good();
    assert_eq!(field(&old, "ciphertextMetadata"), [1, 0, 0, 0, 1]);
    assert_eq!(field(&new, "ciphertextMetadata"), [1, 0, 0, 1, 44], "version 300");
    for encrypted in [&old, &new] {
        assert_eq!(kms.decrypt(KEY, encrypted, Some(b"a")).await.plaintext(), DEK);
    }
    let swapped = with(&old, "ciphertextMetadata", &field(&new, "ciphertextMetadata"));
    assert_eq!(kms.decrypt(KEY, &swapped, Some(b"a")).await.error(), ErrorName::InvalidCiphertext);
    server.put(&format!("transit/keys/{KEY}/config"), json!({ "min_decryption_version": 2 })).await;
    assert_eq!(kms.decrypt(KEY, &old, Some(b"a")).await.error(), ErrorName::InvalidState);
    assert_eq!(kms.decrypt(KEY, &new, Some(b"a")).await.plaintext(), DEK);
}

#[tokio::test]
async fn what_the_key_manager_lacks_is_no_fault_of_the_caller() {
    let mut ground = Ground::over(
        OpenBao::with(openbao::Options { durable: true, ..Default::default() }).await,
        None,
    )
    .await;
    let kms = ground.kms.clone();
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();

    // A rate limit of the server, for its mount.
    let quota = json!({ "path": "transit/", "rate": 1, "interval": "1h" });
    ground.server.put("sys/quotas/rate-limit/transit", quota).await;
    let mut last = kms.decrypt(KEY, &encrypted, None).await;
    for _ in 0..3 {
        last = kms.decrypt(KEY, &encrypted, None).await;
    }
    assert_eq!(last.error(), ErrorName::Throttling);
    ground.server.ask("DELETE", "sys/quotas/rate-limit/transit", Value::Null).await;
    assert_eq!(kms.decrypt(KEY, &encrypted, None).await.plaintext(), DEK);

    // Down, and back with the keys that it had.
    ground.server.kill();
    for answer in
        [kms.decrypt(KEY, &encrypted, None).await, kms.describe(KEY).await, kms.health().await]
    {
        assert_eq!(answer.error(), ErrorName::Internal);
    }
    assert!(ground.last_call().reason.contains("cannot be reached"), "{:?}", ground.last_call());
    ground.server.restart().await;
    assert_eq!(kms.decrypt(KEY, &encrypted, None).await.plaintext(), DEK);
    kms.health().await.good();

    // The key for health checks is gone: nothing says any longer that the next request would succeed.
    let health_key = format!("transit/keys/{}", xks_proxy::transit::HEALTH_KEY);
    ground.server.put(&format!("{health_key}/config"), json!({ "deletion_allowed": true })).await;
    ground.server.ask("DELETE", &health_key, Value::Null).await;
    let answer = kms.health().await;
    assert_ne!(answer.status, 200, "{answer:?}");
    ground.server.put(&health_key, json!({})).await;
    kms.health().await.good();

    // The engine is gone, which is not "the key is gone".
    ground.server.ask("DELETE", "sys/mounts/transit", Value::Null).await;
    assert_eq!(kms.describe(KEY).await.error(), ErrorName::Internal);
    assert_eq!(kms.decrypt(KEY, &encrypted, None).await.error(), ErrorName::Internal);
}

#[tokio::test]
async fn the_proxys_token_may_use_keys_and_nothing_else_and_its_loss_denies_nobody() {
    let server = OpenBao::start().await;
    server.create_key(KEY, false).await;
    let transit = TransitOptions::prepare(&server.address(), None, server.root_token()).await;
    let token = transit.token.clone();
    let outside = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    for (method, path) in [
        ("POST", "transit/keys/new-key"),
        ("POST", "transit/encrypt/new-key"),
        ("POST", &format!("transit/keys/{KEY}/rotate")),
        ("POST", &format!("transit/rewrap/{KEY}")),
        ("POST", &format!("transit/datakey/plaintext/{KEY}")),
        ("DELETE", &format!("transit/keys/{KEY}")),
        ("GET", &format!("transit/export/encryption-key/{KEY}")),
        ("GET", "transit/keys?list=true"),
        ("GET", "auth/token/lookup-self"),
        ("GET", "sys/mounts"),
    ] {
        let request =
            outside.request(method.parse().unwrap(), format!("{}/v1/{path}", server.address()));
        let request = request
            .header("x-vault-token", &token)
            .json(&json!({ "plaintext": "aGk=", "ciphertext": "x" }));
        let status = request.send().await.unwrap().status().as_u16();
        assert_eq!(status, 403, "{method} {path}");
    }
    let proxy =
        XksProxy::start(Options { budget: Duration::from_secs(30), ..Options::new(transit) });
    let kms = Kms::of(&proxy);
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();
    server.revoke(&token).await;
    for answer in [kms.decrypt(KEY, &encrypted, None).await, kms.health().await] {
        assert_eq!(answer.error(), ErrorName::Internal);
        assert!(proxy.calls().last().unwrap().reason.contains("403"));
    }
}

#[tokio::test]
async fn a_key_manager_that_is_slow_or_talks_nonsense_is_reported_within_the_budget() {
    let server = OpenBao::start().await;
    server.create_key(KEY, false).await;
    let network = FaultProxy::start(server.port());
    let mut transit = TransitOptions::prepare(&server.address(), None, server.root_token()).await;
    transit.address = format!("http://127.0.0.1:{}", network.port());
    assert!(
        Options::new(transit.clone()).budget < Duration::from_millis(250),
        "KMS waits no longer"
    );
    let proxy =
        XksProxy::start(Options { budget: Duration::from_secs(2), ..Options::new(transit) });
    let kms = Kms::of(&proxy);
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();
    let answer = |text: &str| {
        let head = format!(
            "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
            text.len()
        );
        fault_proxy::Fault::Replace((head + text).into_bytes())
    };
    let elsewhere = format!(
        "HTTP/1.1 307 Temporary Redirect\r\nlocation: {}/v1/transit/decrypt/{KEY}\r\n\
         connection: close\r\ncontent-length: 0\r\n\r\n",
        server.address()
    );
    for (fault, name) in [
        (fault_proxy::Fault::Silence, ErrorName::DependencyTimeout),
        (fault_proxy::Fault::Trickle(Duration::from_millis(100)), ErrorName::DependencyTimeout),
        (fault_proxy::Fault::Reset, ErrorName::Internal),
        (fault_proxy::Fault::Truncate(40), ErrorName::Internal),
        (fault_proxy::Fault::Replace(b"garbage".to_vec()), ErrorName::Internal),
        // To where a good answer would come from: it is not followed, and the token not sent there.
        (fault_proxy::Fault::Replace(elsewhere.into_bytes()), ErrorName::Internal),
        (answer(""), ErrorName::Internal),
        (answer("[]"), ErrorName::Internal),
        (answer(r#"{"data":{"plaintext":"&"}}"#), ErrorName::Internal),
        (answer(r#"{"data":{"plaintext":"c2hvcnQ="}}"#), ErrorName::Internal),
    ] {
        network.cut();
        network.set(fault.clone());
        let answer = kms.decrypt(KEY, &encrypted, None).await;
        assert_eq!(answer.error(), name, "{fault:?}, {:?}", proxy.calls().pop());
        network.set(fault_proxy::Fault::None);
        network.cut();
    }
    // Encrypt: what Transit is said to have made is looked at before it is passed on.
    let key = r#""type":"aes256-gcm96","derived":false,"supports_encryption":true"#;
    for data in [
        "{}".to_owned(),
        r#"{"type":"aes256-gcm96"}"#.to_owned(),
        format!(r#"{{{key},"latest_version":0}}"#),
        format!(r#"{{{key},"latest_version":4294967296}}"#),
        // The same answer serves as description and as result.
        format!(
            r#"{{{key},"latest_version":1,"ciphertext":"vault:v2:{}"}}"#,
            BASE64.encode(&[0; 60])
        ),
        format!(
            r#"{{{key},"latest_version":1,"ciphertext":"vault:v1:{}"}}"#,
            BASE64.encode(&[0; 59])
        ),
        format!(
            r#"{{{key},"latest_version":1,"ciphertext":"vault:v1:{}"}}"#,
            BASE64.encode(&[0; 27])
        ),
        format!(r#"{{{key},"latest_version":1,"ciphertext":"vault:v1:?"}}"#),
    ] {
        network.set(answer(&format!(r#"{{"data":{data}}}"#)));
        let answer = kms.encrypt(KEY, DEK, None).await;
        assert_eq!(answer.error(), ErrorName::Internal, "{data}: {:?}", proxy.calls().pop());
    }
    // A ciphertext that does not decrypt, or to something else: without the trial it would be passed on (Appendix C).
    for plaintext in [&b""[..], &[7; 32]] {
        let (made_up, plaintext) = (BASE64.encode(&[0; 60]), BASE64.encode(plaintext));
        let all = format!(
            r#"{{{key},"latest_version":1,"ciphertext":"vault:v1:{made_up}","plaintext":"{plaintext}"}}"#
        );
        network.set(answer(&format!(r#"{{"data":{all}}}"#)));
        kms.encrypt(KEY, DEK, None).await.good();
        let mut parameters = to_encrypt(DEK, None);
        parameters["ciphertextDataIntegrityValueAlgorithm"] = json!("SHA_256");
        assert_eq!(
            kms.call(Operation::Encrypt, KEY, parameters).await.error(),
            ErrorName::Internal
        );
    }
    network.set(fault_proxy::Fault::None);
    network.cut();
    assert_eq!(kms.decrypt(KEY, &encrypted, None).await.plaintext(), DEK, "the control");
}

#[tokio::test]
async fn the_health_check_tries_the_key_manager_and_says_what_it_is() {
    let Ground { server, proxy, kms } = Ground::start().await;
    proxy.set_grants(json!([]));
    let health = kms.health().await.good();
    assert_eq!(health["xksProxyFleetSize"], 1);
    for name in ["xksProxyVendor", "xksProxyModel", "ekmVendor"] {
        assert!(!health[name].as_str().unwrap().is_empty());
    }
    let fleet = health["ekmFleetDetails"].as_array().unwrap();
    assert_eq!((fleet.len(), &fleet[0]["healthStatus"]), (1, &json!("ACTIVE")));
    assert_eq!(fleet[0]["model"], "OpenBao 2.7.2 Transit");
    assert_eq!(fleet[0]["id"], server.get("sys/health").await["cluster_id"]);
    proxy.block(true);
    assert_eq!(kms.health().await.error(), ErrorName::InvalidState);
    proxy.block(false);
    server.seal().await;
    assert_eq!(kms.health().await.error(), ErrorName::Internal);
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

#[tokio::test]
async fn a_client_refuses_the_proxy_with_a_certificate_of_another_name_another_authority_or_another_time()
 {
    let Ground { server: _server, proxy, kms } = Ground::start().await;
    // Each time a client with no connection left from before.
    let fresh = || Kms { client: client(&proxy, |builder| builder), ..kms.clone() };
    for (certificate, complaint) in [
        (Certificate::OtherName, "NotValidForName"),
        (Certificate::OtherAuthority, "BadSignature"),
        (Certificate::Expired, "Expired"),
    ] {
        fresh().health().await.good();
        proxy.present(certificate);
        let before = proxy.arrived(Operation::GetHealthStatus);
        let error = fresh()
            .signed("POST", &format!("{}/health", proxy.uri_path()), b"{}")
            .send()
            .await
            .unwrap_err();
        assert!(format!("{error:?}").contains(complaint), "{certificate:?}: {error:?}");
        assert_eq!(proxy.arrived(Operation::GetHealthStatus), before, "nothing was sent");
        proxy.present(Certificate::Right);
    }
    fresh().health().await.good();
    // Whoever is connected already is cut off, so that it has to look at the certificate.
    proxy.fail(Fault::new(Effect::Hang).on(Operation::GetKeyMetadata));
    let path = format!("{}/keys/{KEY}/metadata", proxy.uri_path());
    let connected = tokio::spawn(fresh().signed("POST", &path, b"{}").send());
    while proxy.arrived(Operation::GetKeyMetadata) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    proxy.present(Certificate::OtherName);
    let error = connected.await.unwrap().unwrap_err();
    assert!(!error.is_timeout(), "{error:?}");
}

#[tokio::test]
async fn both_versions_of_tls_are_served_and_nothing_in_the_clear() {
    let Ground { server: _server, proxy, kms } = Ground::start().await;
    for change in [
        (|builder| builder.tls_version_max(reqwest::tls::Version::TLS_1_2))
            as fn(reqwest::ClientBuilder) -> _,
        |builder| builder.tls_version_min(reqwest::tls::Version::TLS_1_3),
    ] {
        Kms { client: client(&proxy, change), ..kms.clone() }.health().await.good();
    }
    let before = proxy.arrived(Operation::GetHealthStatus);
    let plain = format!("http://localhost:{}{}/health", proxy.port(), proxy.uri_path());
    kms.client.post(plain).body("{}").send().await.unwrap_err();
    assert_eq!(proxy.arrived(Operation::GetHealthStatus), before);
}

#[tokio::test]
async fn a_proxy_that_is_killed_refuses_connections_and_comes_back_as_it_was() {
    let Ground { server: _server, proxy, kms } = Ground::start().await;
    let encrypted = kms.encrypt(KEY, DEK, None).await.good();
    proxy.deny(MALLORY);
    proxy.fail(Fault::new(Effect::Hang).on(Operation::Decrypt).times(1));
    let hanging = tokio::spawn({
        let path = format!("{}/keys/{KEY}/decrypt", proxy.uri_path());
        kms.signed("POST", &path, b"{}").send()
    });
    while proxy.arrived(Operation::Decrypt) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    proxy.kill();
    hanging.await.unwrap().unwrap_err();
    // A client with no connection left from before.
    let kms = Kms { client: client(&proxy, |builder| builder), ..kms };
    let path = format!("{}/health", proxy.uri_path());
    assert!(kms.signed("POST", &path, b"{}").send().await.unwrap_err().is_connect());
    proxy.restart();
    assert_eq!(kms.decrypt(KEY, &encrypted, None).await.plaintext(), DEK);
    let mallory = Kms { principal: MALLORY, ..kms.clone() };
    assert_eq!(mallory.decrypt(KEY, &encrypted, None).await.error(), ErrorName::AccessDenied);
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,40}".prop_map(Value::from),
        proptest::collection::vec(any::<u8>(), 0..64)
            .prop_map(|bytes| json!(BASE64.encode(&bytes))),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map("[a-zA-Z]{0,12}", inner, 0..4)
                .prop_map(|map| json!(map)),
        ]
    })
}

#[test]
fn no_body_makes_the_proxy_panic_or_say_yes() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let ground = runtime.block_on(Ground::start());
    let kms = &ground.kms;
    let aad = Some(&b"tenant=7"[..]);
    let encrypted = runtime.block_on(kms.encrypt(KEY, DEK, aad)).good();
    let paths = [
        "/health",
        "/keys/k/metadata",
        &format!("/keys/{KEY}/encrypt"),
        &format!("/keys/{KEY}/decrypt"),
    ]
    .map(ToOwned::to_owned);
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..Default::default() };
    let refused = |answer: Answer| {
        let name = answer.error();
        prop_assert!(
            name != ErrorName::Internal && name != ErrorName::DependencyTimeout,
            "{name:?}"
        );
        Ok(())
    };
    proptest!(config.clone(), |(at in 0..4_usize, bytes in proptest::collection::vec(any::<u8>(), 0..300))| {
        refused(runtime.block_on(kms.send(&paths[at], &bytes)))?;
    });
    proptest!(config.clone(), |(at in 0..4_usize, body in any_json())| {
        refused(runtime.block_on(kms.send(&paths[at], body.to_string().as_bytes())))?;
    });
    // One field of a good request is something else.
    let fields = [
        "ciphertext",
        "ciphertextMetadata",
        "initializationVector",
        "authenticationTag",
        "additionalAuthenticatedData",
        "encryptionAlgorithm",
        "requestMetadata",
    ];
    proptest!(config, |(at in 0..7_usize, value in any_json())| {
        let mut body = to_decrypt(&encrypted, aad);
        body[fields[at]] = value;
        refused(runtime.block_on(kms.call(Operation::Decrypt, KEY, body)))?;
    });
    assert_eq!(runtime.block_on(kms.decrypt(KEY, &encrypted, aad)).plaintext(), DEK, "the control");
    assert!(ground.proxy.calls().len() >= 600);
}
