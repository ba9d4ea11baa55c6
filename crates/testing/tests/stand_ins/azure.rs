//! The stand-in for Key Vault, Managed HSM and Entra ID, by plain requests: what it answers to
//! whom.

use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use waxseal_testing::azure::{Azure, TENANT};

const HSM: &str = "orders.managedhsm.azure.net";
const VAULT: &str = "orders.vault.azure.net";
const CLIENT: &str = "service";

struct Client {
    azure: Azure,
    http: reqwest::Client,
}

impl Client {
    fn new() -> Self {
        let azure = Azure::start();
        azure.application(CLIENT);
        let pem = std::fs::read(azure.ca_file()).unwrap();
        let http = reqwest::Client::builder()
            .tls_certs_only([reqwest::Certificate::from_pem(&pem).unwrap()])
            .resolve(HSM, azure.address())
            .resolve(VAULT, azure.address())
            .build()
            .unwrap();
        for host in [HSM, VAULT] {
            let all = ["encrypt", "decrypt", "wrapKey", "unwrapKey", "get"];
            azure.world().permit(host, CLIENT, &all);
        }
        Self { azure, http }
    }

    async fn log_in(&self, audience: &str, secret: &str) -> (u16, Value) {
        let url = format!("{}/{TENANT}/oauth2/v2.0/token", self.azure.authority_host());
        let form = format!(
            "grant_type=client_credentials&client_id={CLIENT}&client_secret={secret}\
             &scope=https%3A%2F%2F{audience}%2F.default"
        );
        let answer = self.http.post(url).body(form).send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }

    async fn token(&self, audience: &str) -> String {
        let (_, answer) = self.log_in(audience, "secret-of-service").await;
        answer["access_token"].as_str().unwrap().to_owned()
    }

    async fn post(&self, host: &str, path: &str, token: &str, body: Value) -> (u16, Value) {
        let url = format!("https://{host}:{}{path}?api-version=7.6", self.azure.port());
        let request = self.http.post(url).bearer_auth(token).json(&body);
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap())
    }
}

fn inner(answer: &Value) -> &str {
    answer["error"]["innererror"]["code"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_request_without_a_token_is_challenged_and_a_token_has_one_audience() {
    let client = Client::new();
    client.azure.world().create_aes(HSM, "cards");
    let url = format!("https://{HSM}:{}/keys/cards/", client.azure.port());
    let answer = client.http.get(&url).send().await.unwrap();
    assert_eq!(answer.status(), 401);
    let challenge = answer.headers()["www-authenticate"].to_str().unwrap();
    assert!(challenge.contains("resource=\"https://managedhsm.azure.net\""), "{challenge}");
    let of_vaults = client.token("vault.azure.net").await;
    let answer = client.http.get(&url).bearer_auth(of_vaults).send().await.unwrap();
    assert_eq!(answer.status(), 401);
    let of_hsms = client.token("managedhsm.azure.net").await;
    let answer = client.http.get(&url).bearer_auth(of_hsms).send().await.unwrap();
    assert_eq!(answer.status(), 200);
    let (status, refused) = client.log_in("vault.azure.net", "wrong").await;
    assert_eq!((status, refused["error"].as_str()), (401, Some("invalid_client")));
}

#[tokio::test]
async fn aes_binds_the_aad_and_the_version_and_rsa_binds_nothing() {
    let client = Client::new();
    client.azure.world().create_aes(HSM, "cards");
    client.azure.world().create_rsa(VAULT, "cards");
    let token = client.token("managedhsm.azure.net").await;
    let value = BASE64URL_NOPAD.encode(&[7; 32]);
    let asked = json!({ "alg": "A256GCM", "value": value, "aad": "AQID" });
    let (status, sealed) = client.post(HSM, "/keys/cards//encrypt", &token, asked).await;
    assert_eq!(status, 200, "{sealed}");
    let kid = sealed["kid"].as_str().unwrap();
    let path = format!("{}/decrypt", kid.strip_prefix(&format!("https://{HSM}")).unwrap());
    let asked = |aad: &str| {
        json!({
            "alg": "A256GCM", "value": sealed["value"], "iv": sealed["iv"], "tag": sealed["tag"],
            "aad": aad,
        })
    };
    let (status, opened) = client.post(HSM, &path, &token, asked("AQID")).await;
    assert_eq!((status, opened["value"].as_str()), (200, Some(value.as_str())));
    let (status, _) = client.post(HSM, &path, &token, asked("AQIE")).await;
    assert_eq!(status, 400);
    client.azure.world().rotate(HSM, "cards");
    assert_eq!(client.post(HSM, &path, &token, asked("AQID")).await.0, 200, "the old version");
    let newest = "/keys/cards//decrypt";
    assert_eq!(client.post(HSM, newest, &token, asked("AQID")).await.0, 400, "the new one");

    let token = client.token("vault.azure.net").await;
    let asked = json!({ "alg": "RSA-OAEP-256", "value": value });
    let (status, wrapped) = client.post(VAULT, "/keys/cards//wrapkey", &token, asked).await;
    assert_eq!(status, 200, "{wrapped}");
    let asked = json!({ "alg": "RSA-OAEP-256", "value": wrapped["value"] });
    let (_, opened) = client.post(VAULT, "/keys/cards//unwrapkey", &token, asked).await;
    assert_eq!(opened["value"].as_str(), Some(value.as_str()));
}

#[tokio::test]
async fn states_permissions_networks_and_limits_answer_by_their_inner_codes() {
    let client = Client::new();
    client.azure.world().create_aes(HSM, "cards");
    let token = client.token("managedhsm.azure.net").await;
    let encrypt = async || {
        let asked = json!({ "alg": "A256GCM", "value": "AAAA" });
        client.post(HSM, "/keys/cards//encrypt", &token, asked).await
    };
    assert_eq!(encrypt().await.0, 200);
    client.azure.world().newest(HSM, "cards").enabled = false;
    let (status, answer) = encrypt().await;
    assert_eq!((status, inner(&answer)), (403, "KeyDisabled"));
    client.azure.world().newest(HSM, "cards").enabled = true;
    client.azure.world().newest(HSM, "cards").expires = Some(1);
    assert_eq!(inner(&encrypt().await.1), "KeyExpired");
    client.azure.world().newest(HSM, "cards").expires = None;
    client.azure.world().delete(HSM, "cards");
    let (status, answer) = encrypt().await;
    assert_eq!((status, answer["error"]["code"].as_str()), (404, Some("KeyNotFound")));
    client.azure.world().recover(HSM, "cards");
    client.azure.world().forbid(HSM, CLIENT, "encrypt");
    assert_eq!(inner(&encrypt().await.1), "ForbiddenByRbac");
    client.azure.world().permit(HSM, CLIENT, &["encrypt"]);
    client.azure.world().vault(HSM).firewall = Some(vec![]);
    assert_eq!(inner(&encrypt().await.1), "ForbiddenByFirewall");
    client.azure.world().vault(HSM).firewall = None;
    client.azure.world().vault(HSM).limit = Some(1);
    assert_eq!(encrypt().await.0, 200);
    assert_eq!(encrypt().await.0, 429);
}
