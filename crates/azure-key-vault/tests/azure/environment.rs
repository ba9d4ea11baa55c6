//! A dirty environment: variables of other tools, stale files, proxies. It belongs to the process,
//! so each case runs in a separate one.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use waxseal::kek::KekProvider;
use waxseal_azure_key_vault::{AzureKeyVaultKek, Credential};
use waxseal_testing::azure::{TENANT, Token};
use waxseal_testing::support::context;

use crate::ground::{CLIENT, Ground, HSM, dek};

const PLACE: &str = "WAXSEAL_TEST_AZURE_PLACE";
const CHILD: &str = "environment::the_process_with_that_environment";

/// Wraps once, and says what came of it. It does nothing elsewhere.
#[test]
fn the_process_with_that_environment() {
    let Ok(place) = std::env::var(PLACE) else { return };
    let [port, ca_file, secret_file] = place.split(' ').collect::<Vec<_>>()[..] else { panic!() };
    let port: u16 = port.parse().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let answer = runtime.block_on(async {
        let builder = AzureKeyVaultKek::builder(format!("{HSM}:{port}"), "cards")
            .address(([127, 0, 0, 1], port).into())
            .ca_file(ca_file);
        let builder = match secret_file {
            "-" => builder,
            file => builder.authority_host(format!("https://localhost:{port}")).credential(
                Credential::ClientSecret {
                    tenant_id: TENANT.to_owned(),
                    client_id: CLIENT.to_owned(),
                    secret_file: file.into(),
                },
            ),
        };
        let kek = match builder.build() {
            Ok(kek) => kek,
            Err(error) => return format!("not built: {error}"),
        };
        match kek.wrap(&context("alice"), &dek()).await {
            Ok(_) => "wrapped".to_owned(),
            Err(error) => format!("{}, asked {}: {error}", error.class(), error.was_asked()),
        }
    });
    println!("\nanswer: {answer}");
}

struct Environment {
    ground: Ground,
}

impl Environment {
    /// What the process says whose environment has these variables, and none of the names below.
    fn run(&self, has_credential: bool, variables: &[(&str, &str)]) -> String {
        let secret_file = match has_credential {
            true => self.ground.secret_file.display().to_string(),
            false => "-".to_owned(),
        };
        let azure = &self.ground.azure;
        let place = format!("{} {} {secret_file}", azure.port(), azure.ca_file().display());
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", CHILD, "--nocapture"]).env(PLACE, place);
        for (name, _) in std::env::vars() {
            let lower = name.to_lowercase();
            if lower.ends_with("_proxy")
                || lower.starts_with("azure_")
                || lower.contains("identity")
            {
                command.env_remove(name);
            }
        }
        command.envs(variables.iter().copied());
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{variables:?}: {text}");
        let answer = text.lines().find_map(|line| line.strip_prefix("answer: "));
        let answer = answer.unwrap_or_else(|| panic!("{variables:?}: {text}")).to_owned();
        assert!(!answer.contains("hunter2"), "{answer}");
        answer
    }

    /// With the variables of a client secret, and these instead of them.
    fn by_secret(&self, variables: &[(&str, &str)]) -> String {
        let authority = self.ground.azure.authority_host();
        let secret = format!("secret-of-{CLIENT}");
        let mut all = vec![
            ("AZURE_AUTHORITY_HOST", &*authority),
            ("AZURE_TENANT_ID", TENANT),
            ("AZURE_CLIENT_ID", CLIENT),
            ("AZURE_CLIENT_SECRET", &secret),
        ];
        all.extend(variables);
        self.run(false, &all)
    }
}

fn environment() -> Environment {
    Environment { ground: Ground::new() }
}

#[test]
fn variables_of_the_sdks_log_in_and_wrong_ones_are_an_operator_s_matter() {
    let environment = environment();
    assert_eq!(environment.by_secret(&[]), "wrapped");
    for (variables, part) in [
        (&[("AZURE_AUTHORITY_HOST", "http://u:hunter2@127.0.0.1:1")][..], "the credential cannot"),
        (&[("AZURE_AUTHORITY_HOST", "no url hunter2")], "the credential cannot"),
        (&[("AZURE_TENANT_ID", "../../hunter2")], "the credential cannot"),
        (&[("AZURE_TENANT_ID", "")], "AZURE_TENANT_ID is not set"),
        (&[("AZURE_CLIENT_ID", "")], "AZURE_CLIENT_ID is not set"),
        // Left from somewhere else, and stronger than the secret.
        (&[("AZURE_FEDERATED_TOKEN_FILE", "/nowhere/token")], "token_file /nowhere/token"),
        (&[("AZURE_CLIENT_CERTIFICATE_PATH", "/nowhere/pem")], "certificate_file /nowhere/pem"),
    ] {
        let answer = environment.by_secret(variables);
        assert!(answer.starts_with("misconfigured, asked false"), "{variables:?}: {answer}");
        assert!(answer.contains(part), "{variables:?}: {answer}");
    }
    let answer = environment.by_secret(&[("AZURE_CLIENT_SECRET", "hunter2")]);
    assert!(answer.starts_with("misconfigured, asked true"), "{answer}");
}

#[test]
fn a_credential_that_was_chosen_does_not_care_for_the_environment() {
    let answer = environment().run(
        true,
        &[
            ("AZURE_AUTHORITY_HOST", "https://127.0.0.1:1"),
            ("AZURE_TENANT_ID", "hunter2"),
            ("AZURE_CLIENT_ID", "hunter2"),
            ("AZURE_CLIENT_SECRET", "hunter2"),
            ("AZURE_FEDERATED_TOKEN_FILE", "/nowhere"),
            ("AZURE_CLIENT_CERTIFICATE_PATH", "/nowhere"),
            ("IDENTITY_ENDPOINT", "http://127.0.0.1:1"),
        ],
    );
    assert_eq!(answer, "wrapped");
}

/// The identity service is asked in the clear, with a header that is a secret.
#[test]
fn an_identity_service_on_another_machine_is_not_asked_in_the_clear() {
    let environment = environment();
    let elsewhere =
        [("IDENTITY_ENDPOINT", "http://192.0.2.1/token"), ("IDENTITY_HEADER", "hunter2")];
    let answer = environment.run(false, &elsewhere);
    assert!(answer.starts_with("misconfigured"), "{answer}");
    assert!(answer.contains("in the clear"), "{answer}");
    let nobody =
        [("IDENTITY_ENDPOINT", "http://127.0.0.1:1/token"), ("IDENTITY_HEADER", "hunter2")];
    let answer = environment.run(false, &nobody);
    assert!(answer.starts_with("unavailable"), "{answer}");
}

/// The identity service of App Service and containers: a token for every caller with the header.
/// Returns its URL.
fn identity_service(ground: &Ground, status: &'static str) -> String {
    ground.azure.world().tokens.insert(
        "token-of-the-identity".to_owned(),
        Token {
            client_id: CLIENT.to_owned(),
            audience: "https://managedhsm.azure.net".to_owned(),
            expires: SystemTime::now() + Duration::from_secs(3600),
            revoked: false,
        },
    );
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/token", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            let len = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..len]).to_lowercase();
            let is_allowed = request.contains("x-identity-header: hunter2")
                && request.contains("resource=https%3a%2f%2fmanagedhsm.azure.net");
            let (status, body) = match is_allowed {
                true => {
                    let end = SystemTime::now() + Duration::from_secs(3600);
                    let end = end.duration_since(UNIX_EPOCH).unwrap().as_secs().to_string();
                    let token = serde_json::json!({
                        "access_token": "token-of-the-identity", "expires_on": end,
                        "resource": "https://managedhsm.azure.net", "token_type": "Bearer",
                    });
                    (status, token.to_string())
                }
                false => ("401 Unauthorized", "{\"error\":\"unauthorized\"}".to_owned()),
            };
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: \
                    close\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    url
}

#[test]
fn a_managed_identity_gets_its_token_past_every_proxy() {
    let environment = environment();
    let url = identity_service(&environment.ground, "200 OK");
    let of = |header| [("IDENTITY_ENDPOINT", &*url), ("IDENTITY_HEADER", header)];
    assert_eq!(environment.run(false, &of("hunter2")), "wrapped");
    let mut with_proxy = of("hunter2").to_vec();
    with_proxy.extend([("HTTP_PROXY", "http://127.0.0.1:1"), ("http_proxy", "http://127.0.0.1:1")]);
    assert_eq!(environment.run(false, &with_proxy), "wrapped");
    let answer = environment.run(false, &of("another"));
    assert!(answer.starts_with("misconfigured, asked true"), "{answer}");
    for status in ["500 Internal Server Error", "503 Service Unavailable", "404 Not Found"] {
        let url = identity_service(&environment.ground, status);
        let broken = [("IDENTITY_ENDPOINT", &*url), ("IDENTITY_HEADER", "hunter2")];
        let answer = environment.run(false, &broken);
        assert!(answer.starts_with("unavailable"), "{status}: {answer}");
    }
}

#[test]
fn a_proxy_of_the_environment_is_used_and_one_that_is_no_good_does_not_stop_a_service() {
    let environment = environment();
    for name in ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"] {
        let answer = environment.run(true, &[(name, "http://127.0.0.1:1")]);
        assert!(answer.starts_with("unavailable"), "{name}: {answer}");
        let past = [(name, "http://127.0.0.1:1"), ("NO_PROXY", ".azure.net,localhost")];
        assert_eq!(environment.run(true, &past), "wrapped", "{name}");
    }
    for proxy in ["", "u:hunter2@", "::", "http://u:hunter2@[", "socks5://u:hunter2@127.0.0.1:1"] {
        let answer = environment.run(true, &[("HTTPS_PROXY", proxy)]);
        let is_known = answer == "wrapped" || answer.starts_with("unavailable");
        assert!(is_known, "{proxy}: {answer}");
    }
}
