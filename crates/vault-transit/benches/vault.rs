//! Reading 1 KiB records with a KEK in Vault: through an envelope, beside a direct
//! `transit/decrypt` of every record, on one loopback server.
//!
//!     cargo bench -p waxseal-vault-transit --bench vault
//!
//! Compare within one run only. Requests are counted on their way to the server, in a run of their
//! own: the counting costs the direct calls a little.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use waxseal_testing::{fault_proxy, openbao};

use data_encoding::BASE64;
use fault_proxy::FaultProxy;
use openbao::OpenBao;
use serde_json::{Value, json};
use waxseal::{Aad, EncryptionContext, Envelope, Limits};
use waxseal_vault_transit::{VaultAuth, VaultTransitKek};

const TENANTS: usize = 16;
const RECORD: [u8; 1024] = [7; 1024];
const TIME: Duration = Duration::from_secs(3);

#[derive(Clone)]
enum Reader {
    /// Every record is decrypted by the server.
    Direct {
        client: reqwest::Client,
        url: String,
        token: String,
        records: Arc<Vec<Value>>,
    },
    Enveloped {
        envelope: Envelope,
        records: Arc<Vec<(EncryptionContext, Vec<u8>)>>,
    },
}

impl Reader {
    async fn read(&self, i: usize) {
        match self {
            Self::Direct { client, url, token, records } => {
                let request =
                    client.post(url).header("X-Vault-Token", token).json(&records[i % TENANTS]);
                let answer: Value = request.send().await.unwrap().json().await.unwrap();
                let plaintext = BASE64
                    .decode(answer["data"]["plaintext"].as_str().unwrap().as_bytes())
                    .unwrap();
                assert_eq!(plaintext, RECORD);
            }
            Self::Enveloped { envelope, records } => {
                let (context, sealed) = &records[i % TENANTS];
                assert_eq!(*envelope.decrypt(context, Aad::empty(), sealed).await.unwrap(), RECORD);
            }
        }
    }

    /// Logged in, and every DEK cached.
    async fn warm(self) -> Self {
        for i in 0..TENANTS {
            self.read(i).await;
        }
        self
    }

    /// Records per second.
    async fn rate(&self, tasks: usize) -> f64 {
        let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let start = Instant::now();
        let running: Vec<_> = (0..tasks)
            .map(|task| {
                let (reader, over, done) = (self.clone(), over.clone(), done.clone());
                tokio::spawn(async move {
                    let mut i = task;
                    while !over.load(Ordering::Relaxed) {
                        reader.read(i).await;
                        done.fetch_add(1, Ordering::Relaxed);
                        i += 1;
                        if i.is_multiple_of(256) {
                            tokio::task::yield_now().await;
                        }
                    }
                })
            })
            .collect();
        tokio::time::sleep(TIME).await;
        over.store(true, Ordering::Relaxed);
        for task in running {
            task.await.unwrap();
        }
        done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
    }
}

async fn direct(server: &OpenBao, port: u16) -> Reader {
    let mut records = Vec::new();
    for tenant in 0..TENANTS {
        let context = BASE64.encode(format!("tenant {tenant}").as_bytes());
        let body = json!({ "plaintext": BASE64.encode(&RECORD), "context": context });
        let answer = server.put("transit/encrypt/orders", body).await;
        records.push(json!({ "ciphertext": answer["data"]["ciphertext"], "context": context }));
    }
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let url = format!("http://127.0.0.1:{port}/v1/transit/decrypt/orders");
    Reader::Direct {
        client,
        url,
        token: server.root_token().to_owned(),
        records: Arc::new(records),
    }
}

async fn enveloped(server: &OpenBao, port: u16, max_age: Duration) -> Reader {
    let kek = |port: u16| {
        let builder =
            VaultTransitKek::builder("bench", "orders").address(format!("http://127.0.0.1:{port}"));
        builder.auth(VaultAuth::token(server.root_token())).build().unwrap()
    };
    let writer = Envelope::builder().wrap_with(kek(server.port())).build().unwrap();
    let mut records = Vec::new();
    for tenant in 0..TENANTS {
        let context = EncryptionContext::new([("tenant", tenant.to_string())]).unwrap();
        let sealed = writer.encrypt(&context, Aad::empty(), &RECORD).await.unwrap();
        records.push((context, sealed));
    }
    let limits = Limits::default().max_age(max_age);
    let envelope = Envelope::builder().unwrap_with(kek(port)).limits(limits).build().unwrap();
    Reader::Enveloped { envelope, records: Arc::new(records) }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let server = OpenBao::start().await;
        server.create_key("orders", true).await;
        let proxy = FaultProxy::start(server.port());
        println!("{TENANTS} tenants, records of 1 KiB, {TIME:?} for each figure\n");
        println!(
            "| tasks | reading | records/s | against direct | requests/s that reach the server |"
        );
        println!("|---|---|---|---|---|");
        for tasks in [1, 8] {
            let mut base = None;
            for (name, max_age) in [
                ("direct `transit/decrypt`", None),
                ("envelope, `max_age` 1 s", Some(Duration::from_secs(1))),
                ("envelope, `max_age` 5 minutes", Some(Duration::from_secs(300))),
            ] {
                let reader = async |port: u16| match max_age {
                    None => direct(&server, port).await,
                    Some(max_age) => enveloped(&server, port, max_age).await,
                };
                let rate = reader(server.port()).await.warm().await.rate(tasks).await;
                let base = *base.get_or_insert(rate);
                let counted = reader(proxy.port()).await.warm().await;
                let before = proxy.requests();
                let start = Instant::now();
                counted.rate(tasks).await;
                let requests = (proxy.requests() - before) as f64 / start.elapsed().as_secs_f64();
                println!("| {tasks} | {name} | {rate:.0} | {:.1} | {requests:.1} |", rate / base);
            }
        }
    });
}
