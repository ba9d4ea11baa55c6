//! Logins that need more than a role and a token: an agent's, a web token, a wrapped secret id, AWS
//! IAM. Against a real server, and for AWS IAM, which OpenBao has not, a stand-in that checks the
//! signature as STS does.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use waxseal_testing::{openbao, sigv4, support, vault_front};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use data_encoding::{BASE64, BASE64URL_NOPAD};
use openbao::OpenBao;
use serde_json::{Value, json};
use support::{a_dek, context};
use vault_front::in_front_of;
use waxseal::kek::KekErrorClass::{Denied, Misconfigured, Unavailable};
use waxseal::kek::{BoxFuture, KekError, KekErrorClass, KekProvider};
use waxseal_vault_transit::{AwsCredentials, AwsEnvironment, AwsKeys, VaultAuth, VaultTransitKek};

async fn server() -> OpenBao {
    let server = OpenBao::start().await;
    server.create_key("orders", true).await;
    server.policy("orders", "orders").await;
    server
}

fn at(port: u16, auth: VaultAuth) -> VaultTransitKek {
    VaultTransitKek::builder("test", "orders")
        .address(format!("http://127.0.0.1:{port}"))
        .auth(auth)
        .build()
        .unwrap()
}

async fn works(kek: &VaultTransitKek) -> Result<(), KekError> {
    let (alice, dek) = (context("alice"), a_dek());
    let wrapped = kek.wrap(&alice, &dek).await?;
    assert_eq!(kek.unwrap(&alice, &wrapped).await?.expose(), dek.expose());
    Ok(())
}

#[track_caller]
fn fails<T>(result: Result<T, KekError>, class: KekErrorClass, text: &str) {
    let error = result.err().unwrap();
    assert_eq!(error.class(), class, "{error}");
    assert!(error.to_string().contains(text), "{error}, without {text:?}");
}

// --- none

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_adds_its_token_needs_none_of_ours() {
    let server = server().await;
    let token =
        Arc::new(std::sync::Mutex::new(server.token(json!({ "policies": ["orders"] })).await));
    let agent = in_front_of(server.port(), {
        let token = token.clone();
        move |asked, server| {
            assert_eq!(asked.header("x-vault-token"), None, "ours has none");
            let mut headers = asked.headers.clone();
            headers.push(("x-vault-token".to_owned(), token.lock().unwrap().clone()));
            let (method, path, body) =
                (asked.method.clone(), asked.path.clone(), asked.body.clone());
            server(&vault_front::Asked { method, path, headers, body })
        }
    });
    let kek = at(agent, VaultAuth::none());
    works(&kek).await.unwrap();
    kek.health().await.unwrap();
    kek.close().await;
    // The agent's own affairs: its token ends, and it gets another.
    let old = token.lock().unwrap().clone();
    server.revoke(&old).await;
    fails(works(&kek).await, Misconfigured, "ended or was revoked");
    let fresh = server.token(json!({ "policies": ["orders"] })).await;
    *token.lock().unwrap() = fresh;
    works(&kek).await.unwrap();
    // What its policy does not allow is a denial.
    server
        .put(
            "sys/policies/acl/orders",
            json!({ "policy": "path \"other\" { capabilities = [\"read\"] }" }),
        )
        .await;
    fails(works(&kek).await, Denied, "(403");
    // And where nobody adds one, nothing works.
    fails(works(&at(server.port(), VaultAuth::none())).await, Misconfigured, "login (none)");
}

// --- AppRole

#[tokio::test(flavor = "multi_thread")]
async fn role_id_and_secret_id_come_from_files_that_may_change() {
    let server = server().await;
    let (role_id, secret_id) = server.app_role("1h", "1h").await;
    let (role_file, secret_file) =
        (server.file("role", "wrong\n"), server.file("secret", format!("{secret_id}\n")));
    let kek = at(server.port(), VaultAuth::app_role_file(&role_file).secret_id_file(secret_file));
    fails(works(&kek).await, Misconfigured, "login (AppRole)");
    fs::write(&role_file, format!(" {role_id}\n")).unwrap();
    works(&kek).await.unwrap();
    server.put("sys/leases/revoke-prefix/auth/approle", json!({})).await;
    works(&kek).await.unwrap();
    fs::remove_file(&role_file).unwrap();
    kek.close().await;
    fails(works(&kek).await, Misconfigured, "role");
}

/// A secret id in a wrapped response; the token of it.
async fn wrapped_secret_id(server: &OpenBao) -> String {
    wrapped(server, "auth/approle/role/orders/secret-id", json!({})).await
}

async fn wrapped(server: &OpenBao, path: &str, body: Value) -> String {
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let request = client
        .post(format!("{}/v1/{path}", server.address()))
        .header("X-Vault-Token", server.root_token());
    let answer: Value = request
        .header("X-Vault-Wrap-TTL", "60s")
        .json(&body)
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    answer["wrap_info"]["token"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrapped_secret_id_is_looked_into_once_and_kept_for_later_logins() {
    let server = server().await;
    let (role_id, _) = server.app_role("1h", "1h").await;
    let path = server.file("wrapped", wrapped_secret_id(&server).await);
    let kek = at(server.port(), VaultAuth::app_role(&*role_id).wrapped_secret_id_file(&path));
    works(&kek).await.unwrap();
    for _ in 0..2 {
        kek.close().await;
        works(&kek).await.unwrap();
        server.put("sys/leases/revoke-prefix/auth/approle", json!({})).await;
        works(&kek).await.unwrap();
    }
    // Another one is looked into as well.
    fs::write(&path, wrapped_secret_id(&server).await).unwrap();
    kek.close().await;
    works(&kek).await.unwrap();
    // Somebody has used this one: an operator should know.
    let used = at(server.port(), VaultAuth::app_role(&*role_id).wrapped_secret_id_file(&path));
    fails(works(&used).await, Misconfigured, "wrapping token is not valid");
    let value = at(
        server.port(),
        VaultAuth::app_role(&*role_id).wrapped_secret_id(wrapped_secret_id(&server).await),
    );
    works(&value).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrapped_response_that_somebody_put_in_its_place_is_not_used() {
    let server = server().await;
    let (role_id, secret_id) = server.app_role("1h", "1h").await;
    // Even a good secret id, wrapped by the thief who unwrapped the first one.
    let replaced = wrapped(&server, "sys/wrapping/wrap", json!({ "secret_id": secret_id })).await;
    let kek = at(server.port(), VaultAuth::app_role(&*role_id).wrapped_secret_id(&*replaced));
    fails(works(&kek).await, Misconfigured, "somebody may have replaced it");
    let elsewhere =
        at(server.port(), VaultAuth::app_role(role_id).wrapped_secret_id(server.root_token()));
    let error = works(&elsewhere).await.unwrap_err();
    assert_eq!(error.class(), Misconfigured, "{error}");
}

// --- web tokens

#[tokio::test(flavor = "multi_thread")]
async fn a_web_token_logs_in_and_the_file_may_change() {
    let server = server().await;
    let pair = rcgen::KeyPair::generate().unwrap();
    let key =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pair.serialized_der()).unwrap();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let token = |subject: &str, expires: u64| {
        let part = |value: Value| BASE64URL_NOPAD.encode(value.to_string().as_bytes());
        let claims = json!({
            "iss": "shop",
            "sub": subject,
            "aud": "vault",
            "iat": now - 7200,
            "nbf": now - 7200,
            "exp": expires,
        });
        let signed = format!("{}.{}", part(json!({ "alg": "ES256", "typ": "JWT" })), part(claims));
        let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64URL_NOPAD.encode(signature.as_ref()))
    };
    for (mount, kind) in [("jwt", "jwt"), ("sso/oidc", "oidc")] {
        server.put(&format!("sys/auth/{mount}"), json!({ "type": kind })).await;
        let config = json!({
            "jwt_validation_pubkeys": [pair.public_key_pem()],
            "bound_issuer": "shop",
            "default_role": "orders",
        });
        server.put(&format!("auth/{mount}/config"), config).await;
        for (role, subject) in [("orders", "orders"), ("others", "others")] {
            let role_of = json!({
                "role_type": "jwt", "user_claim": "sub", "bound_subject": subject, "bound_audiences": ["vault"],
                "token_policies": ["orders"], "token_ttl": "1h",
            });
            server.put(&format!("auth/{mount}/role/{role}"), role_of).await;
        }
        let path = server.file("jwt", token("orders", now + 3600));
        let kek = at(server.port(), VaultAuth::jwt(&path).mount(mount));
        works(&kek).await.unwrap();
        let by_name = at(server.port(), VaultAuth::jwt(&path).mount(mount).jwt_role("orders"));
        works(&by_name).await.unwrap();
        let other = at(server.port(), VaultAuth::jwt(&path).mount(mount).jwt_role("others"));
        fails(works(&other).await, Misconfigured, "login (JWT)");
        // It ended, and another came in its place.
        fs::write(&path, token("orders", now - 3600)).unwrap();
        kek.close().await;
        fails(works(&kek).await, Misconfigured, "login (JWT)");
        fs::write(&path, token("orders", now + 3600)).unwrap();
        works(&kek).await.unwrap();
    }
}

// --- AWS IAM

const KEY: (&str, &str) = ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY");

/// What the login method does with a request: it sends it to STS, which checks the signature. `Err`
/// says what is wrong.
fn sts(
    login: &Value,
    host: &str,
    server_id: Option<&str>,
    session_token: Option<&str>,
) -> Result<(), String> {
    let text = |field: &str| {
        let bytes = BASE64.decode(login[field].as_str().unwrap().as_bytes()).unwrap();
        String::from_utf8(bytes).unwrap()
    };
    assert_eq!(login["iam_http_request_method"], "POST");
    assert_eq!(text("iam_request_url"), format!("https://{host}/"));
    let body = text("iam_request_body");
    assert_eq!(body, "Action=GetCallerIdentity&Version=2011-06-15");
    let headers: serde_json::Map<String, Value> =
        serde_json::from_str(&text("iam_request_headers")).unwrap();
    let headers: Vec<_> = headers
        .into_iter()
        .map(|(name, values)| (name.to_ascii_lowercase(), values[0].as_str().unwrap().to_owned()))
        .collect();
    let request =
        sigv4::Request { method: "POST", path: "/", headers: &headers, body: body.as_bytes() };
    assert_eq!(request.header("host"), Some(host));
    assert_eq!(request.header("x-amz-security-token"), session_token);
    if request.header("x-vault-aws-iam-server-id") != server_id {
        return Err("missing header \"X-Vault-AWS-IAM-Server-ID\"".to_owned());
    }
    let mut needed = vec!["content-type"];
    needed.extend(server_id.map(|_| "x-vault-aws-iam-server-id"));
    needed.extend(session_token.map(|_| "x-amz-security-token"));
    let claim = sigv4::Claim::read(&request, "sts").map_err(|refusal| format!("{refusal:?}"))?;
    if claim.access_key != KEY.0 {
        return Err("InvalidClientTokenId".to_owned());
    }
    claim
        .check(&request, KEY.1, &needed, SystemTime::now())
        .map_err(|refusal| format!("{refusal:?}"))
}

#[derive(Debug)]
struct Down(AtomicUsize);

impl AwsCredentials for Down {
    fn keys(&self) -> BoxFuture<'_, Result<AwsKeys, KekError>> {
        Box::pin(async {
            match self.0.fetch_add(1, Ordering::SeqCst) {
                0 => Err(KekError::unavailable("the instance's metadata do not answer")),
                _ => Ok(AwsKeys::new(KEY.0, KEY.1).session_token("session-token-text")),
            }
        })
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn aws_iam_logs_in_with_a_signed_request_that_the_server_can_send() {
    let server = server().await;
    let token = server.token(json!({ "policies": ["orders"] })).await;
    let stand_in = |host: &'static str,
                    server_id: Option<&'static str>,
                    session_token: Option<&'static str>| {
        let token = token.clone();
        in_front_of(server.port(), move |asked, server| {
            if asked.path != "/v1/auth/aws/login" {
                return server(asked);
            }
            let login: Value = serde_json::from_slice(&asked.body).unwrap();
            assert_eq!(login["role"], "orders");
            match sts(&login, host, server_id, session_token) {
                Ok(()) => {
                    let auth = json!({
                        "client_token": token,
                        "lease_duration": 0,
                        "renewable": false,
                        "token_type": "batch",
                    });
                    (200, json!({ "auth": auth }).to_string())
                }
                Err(why) => (400, json!({ "errors": [why] }).to_string()),
            }
        })
    };
    let keys = || AwsKeys::new(KEY.0, KEY.1);
    let global = stand_in("sts.amazonaws.com", None, None);
    works(&at(global, VaultAuth::aws_iam("orders", keys()))).await.unwrap();
    let regional = stand_in("sts.eu-west-1.amazonaws.com", Some("vault.example"), Some("token"));
    let auth = VaultAuth::aws_iam("orders", keys().session_token("token")).aws_region("eu-west-1");
    works(&at(regional, auth.aws_server_id("vault.example"))).await.unwrap();
    let china = stand_in("sts.cn-north-1.amazonaws.com.cn", None, None);
    works(&at(china, VaultAuth::aws_iam("orders", keys()).aws_region("cn-north-1"))).await.unwrap();

    let wrong = at(
        global,
        VaultAuth::aws_iam("orders", AwsKeys::new(KEY.0, "another secret key".replace(' ', "-"))),
    );
    fails(works(&wrong).await, Misconfigured, "Mismatch");
    let no_id = at(
        stand_in("sts.amazonaws.com", Some("vault.example"), None),
        VaultAuth::aws_iam("orders", keys()),
    );
    fails(works(&no_id).await, Misconfigured, "missing header");
    let unset = at(global, VaultAuth::aws_iam("orders", AwsEnvironment));
    fails(works(&unset).await, Misconfigured, "AWS_ACCESS_KEY_ID");
    // An outage of where the keys come from is one; and nothing secret is shown.
    let port = stand_in("sts.amazonaws.com", None, Some("session-token-text"));
    let source = VaultAuth::aws_iam("orders", Down(AtomicUsize::new(0)));
    assert_eq!(format!("{source:?}"), "VaultAuth(AWS IAM)");
    let kek = at(port, source);
    fails(works(&kek).await, Unavailable, "metadata");
    tokio::time::sleep(Duration::from_millis(10)).await;
    works(&kek).await.unwrap();
}

#[tokio::test]
async fn logins_that_cannot_be_are_refused_at_build() {
    let keys = || AwsKeys::new("id", "secret");
    for auth in [
        VaultAuth::aws_iam("r", keys()).aws_region("eu west"),
        VaultAuth::aws_iam("r", keys()).aws_region("evil.example/"),
        VaultAuth::aws_iam("r", keys()).aws_server_id("a\nb"),
        VaultAuth::aws_iam("r", keys()).mount("/aws"),
        VaultAuth::jwt("/jwt").mount("a//b"),
        VaultAuth::certificate(),
    ] {
        let name = format!("{auth:?}");
        let error = VaultTransitKek::builder("test", "orders").auth(auth).build().unwrap_err();
        assert!(error.to_string().contains("auth"), "{name}: {error}");
    }
}
