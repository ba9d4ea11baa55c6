//! Makes `tests/vectors/branch_keys.json`, whose form `tests/vectors/README.md` describes.
//!
//!     cargo run -p waxseal-testing --example make_branch_vectors > tests/vectors/branch_keys.json
//!
//! Everything is put together from docs/format.md, without the library. Keys, salts and nonces come
//! from their names, so every run makes the same bytes.

#![allow(clippy::indexing_slicing)]

mod messages;
mod parts;
mod rows;

use parts::{Branch, PERIOD, Pairs, Result, ctx, derive, hex, kek_secret, named, pairs};
use serde_json::{Value, json};

/// The branches that a reader is configured with: the name, and the names of the pairs.
const BRANCHES: [(&str, &[&str]); 4] =
    [("orders", &["tenant"]), ("cells", &["tenant", "table"]), ("all", &[]), (LONG, &[])];
/// 505 bytes, the most.
pub(crate) const LONG: &str = match std::str::from_utf8(&[b'n'; 505]) {
    Ok(name) => name,
    Err(_) => "",
};

fn main() -> Result<()> {
    let kek = |name: &str, versions: u32| {
        let secrets = (1..=versions)
            .map(|version| (version.to_string(), hex(kek_secret(name, version)).into()));
        let secrets: serde_json::Map<String, Value> = secrets.collect();
        json!({"id": format!("local:{name}"), "versions": secrets})
    };
    let branches = BRANCHES.map(|(name, per)| json!({"name": name, "per": per}));
    let vectors = json!({
        "format": 1,
        "known_answers": known_answers()?,
        "keks": [kek("root", 2), kek("spare", 1)],
        "branches": branches,
        "key_rows": rows::key_rows()?,
        "branch_entries": rows::branch_entries()?,
        "messages": messages::messages()?,
    });
    println!("{}", serde_json::to_string_pretty(&vectors)?);
    Ok(())
}

fn known_answers() -> Result<Value> {
    let context =
        pairs(&[("tenant", "alice"), ("waxseal:branch", "orders"), ("waxseal:period", PERIOD)]);
    let up = |from: u8, i: usize| u8::try_from(i).map_or(0, |i| from + i);
    let branch = Branch { key: std::array::from_fn(|i| up(0x20, i)), ctx: ctx(&context)? };
    let salt: [u8; 16] = std::array::from_fn(|i| up(0x40, i));
    let alice = pairs(&[("tenant", "alice")]);
    let more = pairs(&[("tenant", "alice"), ("table", "cards")]);
    let (mut derived, mut wrapped) = (Vec::new(), Vec::new());
    for (context, salt) in [
        (alice.clone(), salt),
        (alice, named("another salt")),
        (more.clone(), salt),
        (Pairs::new(), salt),
    ] {
        let ctx = ctx(&context)?;
        let dek = branch.dek(&ctx, &salt)?;
        let dek_id = hex(derive(&dek, 0, 0, &ctx)?);
        derived.push(
            json!({"context": context, "salt": hex(salt), "dek": hex(dek), "dek_id": dek_id}),
        );
    }
    for (context, name) in [(more, "more"), (Pairs::new(), "none")] {
        let (dek, nonce) = (named(&format!("DEK of {name}")), named(&format!("nonce of {name}")));
        let encrypted = branch.encrypted(&ctx(&context)?, &dek, &nonce)?;
        wrapped.push(json!({
            "context": context, "dek": hex(dek), "nonce": hex(nonce), "encrypted": hex(encrypted),
        }));
    }
    Ok(json!({
        "branch_key": hex(branch.key),
        "context": context,
        "context_bytes": hex(&branch.ctx),
        "id": hex(branch.id()?),
        "wrap_key": hex(derive(&branch.key, 0x11, 3, &branch.ctx)?),
        "derived": derived,
        "wrapped": wrapped,
    }))
}
