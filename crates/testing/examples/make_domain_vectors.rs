//! Makes `tests/vectors/domains.json`, whose form `tests/vectors/README.md` describes.
//!
//!     cargo run -p waxseal-testing --example make_domain_vectors > tests/vectors/domains.json
//!
//! DEKs and nonces are random, so every run makes other bytes: a published vector is kept, and new
//! ones are added beside it.

use std::error::Error;

use data_encoding::HEXLOWER;
use pollster::block_on;
use serde_json::{Value, json};
use waxseal::branch::BranchKek;
use waxseal::domain::{Branches, Domain, DomainConfig, Domains, Schemes};
use waxseal::kek::local::LocalKek;
use waxseal::store::{KeyStore, MemoryStore};
use waxseal::{Aad, EncryptionContext, Envelope, Error as WaxsealError, WrappedKeys};

const SECRET: [u8; 32] = [0x5a; 32];
const PAIRS: [(&str, &str); 2] = [("table", "cards"), ("tenant", "alice")];

fn main() -> Result<(), Box<dyn Error>> {
    let mut messages = Vec::new();
    for (what, config) in [
        ("wrapped by the KEK", wrapped()),
        ("branch key in a store", wrapped().branches(per_tenant()).store("store:shared")),
        ("branch key in the message", wrapped().branches(per_tenant().self_contained())),
    ] {
        let store = MemoryStore::new();
        let domains = domains(&config, &store)?;
        for name in ["orders", "billing"] {
            messages.extend(of_domain(what, &domains.domain(name)?, &store)?);
        }
    }
    messages.extend(of_none()?);
    let orders = domains(&wrapped(), &MemoryStore::new())?.domain("orders")?;
    let of_page = orders.context([("tenant", "alice")])?;
    let vectors = json!({
        "format": 1,
        "known_domain": {
            "dek": hex(&(0..32).collect::<Vec<u8>>()),
            "domain": "orders",
            "context": [["tenant", "alice"]],
            "context_bytes": hex(of_page.as_bytes()),
            // As docs/format.md has it.
            "dek_id": "255cfbde0e80c8559530069ecde7dd38e3a4adc230d3c31fbca1fb7dc53d580e",
        },
        "keks": [{ "id": "local:shared", "versions": { "1": hex(&SECRET) } }],
        "branches": [{ "name": "common", "per": ["tenant"] }],
        "messages": messages,
    });
    println!("{}", serde_json::to_string_pretty(&vectors)?);
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    HEXLOWER.encode(bytes)
}

fn wrapped() -> DomainConfig {
    DomainConfig::default().wrap_with("kek:shared")
}

fn per_tenant() -> Branches {
    Branches::per(["tenant"]).name("common")
}

fn kek() -> Result<LocalKek, WaxsealError> {
    LocalKek::from_secrets("shared", [(1, &SECRET)])
}

/// Two domains that have everything in common but their names.
fn domains(config: &DomainConfig, store: &MemoryStore) -> Result<Domains, WaxsealError> {
    let store = store.clone();
    let schemes = Schemes::default().kek("kek", |_| async { kek() }).store("store", move |_| {
        let store = store.clone();
        async move { Ok(store) }
    });
    let builder = Domains::builder().schemes(schemes).domain("orders", config.clone());
    block_on(builder.domain("billing", config.clone()).build())
}

/// A message that opens in its domain, and in no other and not without one.
fn of_domain(
    what: &str,
    domain: &Domain,
    store: &MemoryStore,
) -> Result<Vec<Value>, Box<dyn Error>> {
    let (envelope, context) = (domain.envelope(), domain.context(PAIRS)?);
    let sealed = block_on(envelope.encrypt(&context, Aad::from(b"row 7"), b"4111"))?;
    let compact = block_on(envelope.encrypt_compact(&context, Aad::from(b"row 7"), b"4111"))?;
    let (compact, keys) = compact.into_parts();
    let rows = rows(store)?;
    let mut messages = Vec::new();
    for (form, sealed, keys) in [("embedded", &sealed, None), ("compact", &compact, Some(&keys))] {
        for reader in [Some("orders"), Some("billing"), None] {
            let opens = reader == Some(domain.name());
            let name = format!(
                "{what}, {form}, of {}, read in {}",
                domain.name(),
                reader.unwrap_or("none")
            );
            messages.push(message(&name, reader, sealed, keys, opens, &rows));
        }
    }
    Ok(messages)
}

/// Messages of no domain, by the same KEK and by a branch of the same name.
fn of_none() -> Result<Vec<Value>, Box<dyn Error>> {
    let (context, store) = (EncryptionContext::new(PAIRS)?, MemoryStore::new());
    let branch = BranchKek::builder(kek()?).name("common").per(["tenant"]);
    let branch = branch.store(store.clone()).build()?;
    let mut messages = Vec::new();
    for (what, envelope) in [
        ("wrapped by the KEK", Envelope::builder().wrap_with(kek()?).build()?),
        ("branch key in a store", Envelope::builder().wrap_with(branch).build()?),
    ] {
        let sealed = block_on(envelope.encrypt(&context, Aad::from(b"row 7"), b"4111"))?;
        for reader in [Some("orders"), None] {
            let name = format!("{what}, of none, read in {}", reader.unwrap_or("none"));
            messages.push(message(&name, reader, &sealed, None, reader.is_none(), &rows(&store)?));
        }
    }
    Ok(messages)
}

fn rows(store: &MemoryStore) -> Result<Vec<Value>, Box<dyn Error>> {
    let rows = block_on(store.scan(None, 100))?.rows;
    Ok(rows.iter().map(|row| json!([hex(row.id().as_bytes()), hex(row.as_bytes())])).collect())
}

fn message(
    name: &str,
    domain: Option<&str>,
    sealed: &[u8],
    wrapped_keys: Option<&WrappedKeys>,
    opens: bool,
    rows: &[Value],
) -> Value {
    let mut message = json!({
        "name": name,
        "domain": domain,
        "context": PAIRS,
        "aad": hex(b"row 7"),
        "sealed": hex(sealed),
        "wrapped_keys": wrapped_keys.map(|keys| hex(keys.as_bytes())),
        "error": (!opens).then_some("invalid"),
        "rows": rows,
    });
    if let (true, Some(fields)) = (opens, message.as_object_mut()) {
        fields.insert("plaintext".to_owned(), hex(b"4111").into());
    }
    message
}
