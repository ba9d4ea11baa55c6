//! The stand-in for Google Cloud KMS, asked over HTTP as anybody may: what the REST reference says
//! of requests, checksums, states, roles and quotas.

use data_encoding::BASE64;
use reqwest::{Client, Method};
use serde_json::{Value, json};
use waxseal_testing::google::{
    ACCOUNT, EkmFault, GoogleFront, PROJECT, Protection, Source, State, crc32c,
};

struct Ground {
    front: GoogleFront,
    client: Client,
    token: String,
    key: String,
}

impl Ground {
    fn new(protection: Protection) -> Self {
        let front = GoogleFront::start();
        let key = front.create_key("orders", protection);
        let token = front.token(ACCOUNT);
        let client = Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
        Self { front, client, token, key }
    }

    async fn ask_as(
        &self,
        token: &str,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        let url = format!("{}/v1/{path}", self.front.url());
        let request = self.client.request(method, url).bearer_auth(token);
        let request = match body {
            Some(body) => request.json(&body),
            None => request,
        };
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        self.ask_as(&self.token, Method::POST, path, Some(body)).await
    }

    async fn encrypt(&self, body: Value) -> (u16, Value) {
        self.post(&format!("{}:encrypt", self.key), body).await
    }

    async fn decrypt(&self, body: Value) -> (u16, Value) {
        self.post(&format!("{}:decrypt", self.key), body).await
    }

    /// A ciphertext of `dek` under `aad`.
    async fn ciphertext(&self) -> String {
        let (status, answer) = self.encrypt(plain(b"dek", b"aad")).await;
        assert_eq!(status, 200, "{answer}");
        answer["ciphertext"].as_str().unwrap().to_owned()
    }
}

fn plain(data: &[u8], aad: &[u8]) -> Value {
    json!({ "plaintext": BASE64.encode(data), "additionalAuthenticatedData": BASE64.encode(aad) })
}

fn wrapped(ciphertext: &str, aad: &[u8]) -> Value {
    json!({ "ciphertext": ciphertext, "additionalAuthenticatedData": BASE64.encode(aad) })
}

fn status_of(answer: &Value) -> &str {
    answer["error"]["status"].as_str().unwrap_or("OK")
}

fn message_of(answer: &Value) -> &str {
    answer["error"]["message"].as_str().unwrap_or_default()
}

#[test]
fn the_checksum_is_crc32c() {
    // RFC 3720, appendix B.4, and the check value of the catalogue of CRCs.
    assert_eq!(crc32c(b"123456789"), 0xE306_9283);
    assert_eq!(crc32c(&[0; 32]), 0x8A91_36AA);
    assert_eq!(crc32c(&[0xFF; 32]), 0x62A8_AB43);
}

#[tokio::test]
async fn what_was_encrypted_is_decrypted_with_the_same_aad_only() {
    let ground = Ground::new(Protection::Software);
    let (_, answer) = ground.encrypt(plain(b"dek", b"aad")).await;
    assert_eq!(answer["name"], format!("{}/cryptoKeyVersions/1", ground.key));
    assert_eq!(answer["protectionLevel"], "SOFTWARE");
    let ciphertext = answer["ciphertext"].as_str().unwrap();
    let sum = crc32c(&BASE64.decode(ciphertext.as_bytes()).unwrap());
    assert_eq!(answer["ciphertextCrc32c"], sum.to_string(), "an int64 is a string");
    let (_, answer) = ground.decrypt(wrapped(ciphertext, b"aad")).await;
    assert_eq!(answer["plaintext"], BASE64.encode(b"dek"));
    assert_eq!(answer["plaintextCrc32c"], crc32c(b"dek").to_string());
    assert_eq!(answer["usedPrimary"], true);
    let (status, answer) = ground.decrypt(wrapped(ciphertext, b"other")).await;
    assert_eq!((status, status_of(&answer)), (400, "INVALID_ARGUMENT"));
    assert_eq!(message_of(&answer), "Decryption failed: the ciphertext is invalid.");
}

#[tokio::test]
async fn another_key_s_ciphertext_is_told_from_a_damaged_one() {
    let ground = Ground::new(Protection::Software);
    let ciphertext = ground.ciphertext().await;
    let other = ground.front.create_key("other", Protection::Software);
    let (_, answer) = ground.post(&format!("{other}:decrypt"), wrapped(&ciphertext, b"aad")).await;
    assert!(message_of(&answer).contains("verify that 'name' refers to the correct CryptoKey"));
    for bytes in [&b""[..], b"x", &[0x0A, 0x24, 0, 0]] {
        let (_, answer) = ground.decrypt(wrapped(&BASE64.encode(bytes), b"aad")).await;
        assert!(message_of(&answer).contains("the ciphertext is invalid"), "{answer}");
    }
}

#[tokio::test]
async fn checksums_are_verified_where_they_are_sent_and_said_to_be() {
    let ground = Ground::new(Protection::Software);
    let verified = |answer: &Value| {
        ["verifiedPlaintextCrc32c", "verifiedAdditionalAuthenticatedDataCrc32c"]
            .map(|field| answer[field].as_bool().unwrap_or_default())
    };
    let (_, answer) = ground.encrypt(plain(b"dek", b"aad")).await;
    assert_eq!(verified(&answer), [false, false]);
    let mut body = plain(b"dek", b"aad");
    body["plaintextCrc32c"] = crc32c(b"dek").to_string().into();
    let (_, answer) = ground.encrypt(body.clone()).await;
    assert_eq!(verified(&answer), [true, false]);
    body["additionalAuthenticatedDataCrc32c"] = crc32c(b"aad").into();
    let (_, answer) = ground.encrypt(body.clone()).await;
    assert_eq!(verified(&answer), [true, true], "a number is accepted too");
    for (field, value) in [
        ("plaintextCrc32c", json!("1")),
        ("plaintextCrc32c", json!("x")),
        ("additionalAuthenticatedDataCrc32c", json!(1)),
        ("plaintext", json!("***")),
        ("unknown", json!(1)),
    ] {
        let mut body = body.clone();
        body[field] = value;
        let (status, answer) = ground.encrypt(body).await;
        assert_eq!((status, status_of(&answer)), (400, "INVALID_ARGUMENT"), "{field}");
    }
    let mut body = wrapped(&ground.ciphertext().await, b"aad");
    body["ciphertextCrc32c"] = "1".into();
    let (_, answer) = ground.decrypt(body).await;
    assert!(message_of(&answer).contains("checksum in field ciphertextCrc32c"), "{answer}");
}

#[tokio::test]
async fn an_hsm_key_takes_eight_kib_of_plaintext_and_aad_together() {
    for (protection, most) in [(Protection::Hsm, 8 * 1024 - 32), (Protection::Software, 64 * 1024)]
    {
        let ground = Ground::new(protection);
        for (aad, status) in [(most, 200), (most + 1, 400)] {
            let (found, answer) = ground.encrypt(plain(&[7; 32], &vec![1; aad])).await;
            assert_eq!(found, status, "{protection:?} {aad}: {}", message_of(&answer));
        }
    }
}

#[tokio::test]
async fn only_an_enabled_version_is_used_and_the_violation_names_its_state() {
    let ground = Ground::new(Protection::Software);
    let ciphertext = ground.ciphertext().await;
    for state in State::ALL {
        ground.front.world().key(&ground.key).version(1).state = state;
        for (status, answer) in [
            ground.encrypt(plain(b"dek", b"aad")).await,
            ground.decrypt(wrapped(&ciphertext, b"aad")).await,
        ] {
            if state == State::Enabled {
                assert_eq!(status, 200);
                continue;
            }
            assert_eq!((status, status_of(&answer)), (400, "FAILED_PRECONDITION"));
            let name = format!("{}/cryptoKeyVersions/1", ground.key);
            let message = format!("{name} is not enabled, current state is: {}.", state.name());
            assert_eq!(message_of(&answer), message);
            let violation = &answer["error"]["details"][0]["violations"][0];
            assert_eq!(violation["type"], format!("KEY_{}", state.name()));
            assert_eq!(violation["subject"], name);
        }
    }
}

#[tokio::test]
async fn an_administrator_rotates_disables_destroys_and_restores_but_does_not_use() {
    let ground = Ground::new(Protection::Software);
    let old = ground.ciphertext().await;
    ground.front.world().grant(&ground.key, "roles/cloudkms.admin", "admin");
    let admin = ground.front.token("admin");
    let by_admin = async |method: Method, path: &str, body: Value| {
        let (status, answer) =
            ground.ask_as(&admin, method, &format!("{}{path}", ground.key), Some(body)).await;
        assert_eq!(status, 200, "{path}: {answer}");
        answer
    };
    let made = by_admin(Method::POST, "/cryptoKeyVersions", json!({})).await;
    assert_eq!(made["name"], format!("{}/cryptoKeyVersions/2", ground.key));
    let (_, answer) = ground.encrypt(plain(b"dek", b"aad")).await;
    assert!(answer["name"].as_str().unwrap().ends_with("/1"), "not the primary one yet");
    let primary = json!({ "cryptoKeyVersionId": "2" });
    let key = by_admin(Method::POST, ":updatePrimaryVersion", primary).await;
    assert!(key["primary"]["name"].as_str().unwrap().ends_with("/2"));
    let (_, answer) = ground.decrypt(wrapped(&old, b"aad")).await;
    assert_eq!((answer["plaintext"].is_string(), &answer["usedPrimary"]), (true, &Value::Null));
    let patch = "/cryptoKeyVersions/1?updateMask=state";
    let answer = by_admin(Method::PATCH, patch, json!({ "state": "DISABLED" })).await;
    assert_eq!(answer["state"], "DISABLED");
    let answer = by_admin(Method::POST, "/cryptoKeyVersions/1:destroy", json!({})).await;
    assert_eq!(answer["state"], "DESTROY_SCHEDULED");
    let answer = by_admin(Method::POST, "/cryptoKeyVersions/1:restore", json!({})).await;
    assert_eq!(answer["state"], "DISABLED", "not enabled");
    by_admin(Method::PATCH, patch, json!({ "state": "ENABLED" })).await;
    assert_eq!(ground.decrypt(wrapped(&old, b"aad")).await.0, 200);
    for method in ["encrypt", "decrypt"] {
        let path = format!("{}:{method}", ground.key);
        let (status, _) = ground.ask_as(&admin, Method::POST, &path, Some(json!({}))).await;
        assert_eq!(status, 403, "{method}");
    }
}

#[tokio::test]
async fn permission_comes_before_existence_and_tokens_before_both() {
    let ground = Ground::new(Protection::Software);
    let missing = format!("{}-missing", ground.key);
    let (status, answer) = ground.post(&format!("{missing}:encrypt"), plain(b"x", b"")).await;
    assert_eq!((status, status_of(&answer)), (403, "PERMISSION_DENIED"));
    assert!(message_of(&answer).ends_with("(or it may not exist)."), "{answer}");
    let role = "roles/cloudkms.cryptoKeyEncrypter";
    ground.front.world().grant(PROJECT, role, ACCOUNT);
    let (status, answer) = ground.post(&format!("{missing}:encrypt"), plain(b"x", b"")).await;
    assert_eq!((status, status_of(&answer)), (404, "NOT_FOUND"), "granted on the project");
    let path = format!("{}:encrypt", ground.key);
    for (token, reason) in [("unknown", "ACCESS_TOKEN_TYPE_UNSUPPORTED"), ("", "")] {
        let (status, answer) =
            ground.ask_as(token, Method::POST, &path, Some(plain(b"x", b""))).await;
        assert_eq!((status, status_of(&answer)), (401, "UNAUTHENTICATED"));
        assert!(answer.to_string().contains(reason), "{answer}");
    }
    ground.front.expire_tokens();
    let (_, answer) = ground.encrypt(plain(b"x", b"")).await;
    assert!(answer.to_string().contains("ACCESS_TOKEN_EXPIRED"), "{answer}");
}

#[tokio::test]
async fn a_quota_counts_cryptographic_requests_and_not_looks() {
    let ground = Ground::new(Protection::Software);
    ground.front.world().quotas.insert(PROJECT.to_owned(), 2);
    let mut seen = Vec::new();
    for _ in 0..3 {
        seen.push(ground.encrypt(plain(b"x", b"")).await.0);
    }
    assert_eq!(seen, [200, 200, 429]);
    let look = ground.ask_as(&ground.token, Method::GET, &ground.key, None).await;
    assert_eq!((look.0, &look.1["purpose"]), (200, &json!("ENCRYPT_DECRYPT")));
}

#[tokio::test]
async fn a_failure_of_an_external_key_manager_has_two_violations() {
    let ground = Ground::new(Protection::External);
    let ciphertext = ground.ciphertext().await;
    for fault in EkmFault::ALL {
        {
            let mut world = ground.front.world();
            let key = world.key(&ground.key);
            key.ekm = Some(fault);
            key.version(1).state = State::Enabled;
        }
        let (status, answer) = ground.decrypt(wrapped(&ciphertext, b"aad")).await;
        assert_eq!(status, 400);
        let code = match fault {
            EkmFault::DecryptionFailed => "INVALID_ARGUMENT",
            _ => "FAILED_PRECONDITION",
        };
        assert_eq!(status_of(&answer), code, "{fault:?}");
        let violations = &answer["error"]["details"][0]["violations"];
        assert_eq!(violations.as_array().unwrap().len(), 2);
        assert_eq!(violations[1]["type"], fault.domain());
        let state = ground.front.world().key(&ground.key).version(1).state;
        assert_eq!(state == State::Disabled, fault.disables_the_version(), "{fault:?}");
    }
}

#[tokio::test]
async fn the_metadata_server_gives_tokens_to_who_names_its_flavour() {
    let ground = Ground::new(Protection::Software);
    let url = format!(
        "{}/computeMetadata/v1/instance/service-accounts/default/token",
        ground.front.url()
    );
    let plain = ground.client.get(&url).send().await.unwrap();
    assert_eq!(plain.status(), 403);
    let asked = ground.client.get(&url).header("Metadata-Flavor", "Google");
    let answer: Value = asked.send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["token_type"], "Bearer");
    let token = answer["access_token"].as_str().unwrap();
    let look = ground.ask_as(token, Method::GET, &ground.key, None).await;
    assert_eq!(look.0, 200);
    ground.front.set_source(Source::Fails(503, "later".to_owned()));
    let asked = ground.client.get(&url).header("Metadata-Flavor", "Google");
    assert_eq!(asked.send().await.unwrap().status(), 503);
}
