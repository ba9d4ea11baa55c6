//! What is left in memory of DEKs that went to a Vault server and came back.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use data_encoding::BASE64;
use zeroize::Zeroizing;

use waxseal::kek::KekProvider;
use waxseal_testing::openbao::OpenBao;
use waxseal_testing::scan::Needle;
use waxseal_testing::support::{a_dek, context};
use waxseal_vault_transit::{VaultAuth, VaultTransitKek};

const DEKS: usize = 8;

/// The DEKs of one run, turned over: as bytes, and as the text in which they travelled.
struct Needles {
    raw: Vec<Needle>,
    base64: Vec<Needle>,
}

impl Needles {
    fn new() -> Self {
        Self { raw: Vec::new(), base64: Vec::new() }
    }

    fn add(&mut self, dek: &[u8]) {
        self.raw.push(Needle::of(dek));
        let text = Zeroizing::new(BASE64.encode(dek));
        self.base64.push(Needle::of(text.as_bytes()));
    }

    /// How many copies there are, of bytes and of text.
    fn count(&self) -> (usize, usize) {
        let sum = |needles: &[Needle]| needles.iter().map(Needle::occurrences).sum();
        (sum(&self.raw), sum(&self.base64))
    }
}

/// Copies of DEKs as bytes and as text.
#[derive(Debug)]
pub struct Found {
    /// The control: while the DEKs are held.
    pub held: (usize, usize),
    /// After the DEKs were dropped; the connection is open.
    pub dropped: (usize, usize),
    /// After provider, connections and runtime were dropped too.
    pub closed: (usize, usize),
}

/// Sends new DEKs to a server and has them sent back. Here, a DEK is only ever in memory of the library's own types.
pub fn run() -> Found {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let server = runtime.block_on(async {
        let server = OpenBao::start().await;
        server.create_key("orders", true).await;
        server
    });
    let mut needles = Needles::new();
    let alice = context("alice");
    let (held, dropped) = {
        let kek = runtime.block_on(async {
            let builder = VaultTransitKek::builder("test", "orders").address(server.address());
            builder.auth(VaultAuth::token(server.root_token())).build().unwrap()
        });
        let mut unwrapped = Vec::new();
        for _ in 0..DEKS {
            let dek = a_dek();
            needles.add(dek.expose());
            let wrapped = runtime.block_on(kek.wrap(&alice, &dek)).unwrap();
            unwrapped.push(runtime.block_on(kek.unwrap(&alice, &wrapped)).unwrap());
            let (made, _) = runtime.block_on(kek.generate(&alice)).unwrap();
            needles.add(made.expose());
            unwrapped.push(made);
        }
        let text: Vec<_> =
            unwrapped.iter().map(|dek| Zeroizing::new(BASE64.encode(dek.expose()))).collect();
        let held = needles.count();
        drop((text, unwrapped));
        (held, needles.count())
    };
    drop(runtime);
    Found { held, dropped, closed: needles.count() }
}
