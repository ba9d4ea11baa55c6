//! Keys in Google Cloud KMS, on the stand-in: the REST reference, not Google.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod conformance;
mod connections;
mod credentials;
mod duties;
mod ekm;
mod environment;
mod faults;
mod keys;
mod lies;
mod options;
mod real;
mod roles;

use std::sync::Arc;
use std::time::Duration;

use waxseal::kek::KekProvider;
use waxseal::{CallBudget, CallPolicy};
use waxseal_google_kms::{GoogleKmsKek, GoogleKmsKekBuilder};
use waxseal_testing::fault_proxy::FaultProxy;
use waxseal_testing::faults::Stage;
use waxseal_testing::google::{GoogleFront, Protection};

/// The stand-in, with something in between that breaks connections, and a key.
struct Ground {
    front: GoogleFront,
    proxy: FaultProxy,
    key: String,
}

impl Ground {
    fn new(protection: Protection) -> Self {
        let front = GoogleFront::start();
        let proxy = FaultProxy::start(front.port());
        let key = front.create_key("orders", protection);
        Self { front, proxy, key }
    }

    fn software() -> Self {
        Self::new(Protection::Software)
    }

    fn builder(&self, key: &str) -> GoogleKmsKekBuilder {
        GoogleKmsKek::builder(key)
            .endpoint(format!("http://127.0.0.1:{}", self.proxy.port()))
            .metadata_server_at(self.front.url())
    }

    async fn kek(&self) -> GoogleKmsKek {
        self.builder(&self.key).build().await.unwrap()
    }
}

impl Stage for Ground {
    async fn kek(&self) -> Arc<dyn KekProvider> {
        // The default budget is shared by all tests of this process.
        let budget = CallBudget::new(10_000, 64).unwrap();
        let kek = self.builder(&self.key).call_budget(budget).build().await.unwrap();
        // The first token and connection take a while on a busy machine.
        kek.read_key().await.unwrap();
        Arc::new(kek)
    }

    fn arrived(&self) -> Option<usize> {
        Some(self.front.arrived("decrypt"))
    }
}

const TRIES: usize = 3;

/// Only a fault in which nothing comes waits so long, and sets less.
fn patient() -> CallPolicy {
    let ms = Duration::from_millis;
    CallPolicy::default()
        .timeout(ms(20_000))
        .deadline(ms(60_000))
        .tries(TRIES.try_into().unwrap())
        .backoff(ms(1))
        .breaker_failures(1000)
}
