//! Messages whose DEK comes from a branch key.

use serde_json::{Value, json};

use super::LONG;
use super::parts::{
    BRANCH, Branch, DEK, LIVE, PERIOD, Pairs, Result, TOMBSTONE, aead, ctx, derive, hex, list,
    local, named, pairs, row_of, with_row,
};

const AAD: &[u8] = b"row 17";
const PLAINTEXT: &[u8] = b"4111 1111 1111 1111";
const SALT: &str = "salt of a message";
/// Why a row cannot be had, docs/format.md leaves open.
const ANY: Option<&str> = Some("any");
const INVALID: Option<&str> = Some("invalid");

/// What a store has: what a row is found by, and the row.
type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// A message in embedded form.
#[derive(Clone)]
struct Message {
    suite: u8,
    context: Pairs,
    dek: [u8; 32],
    list: Vec<u8>,
    rows: Rows,
}

impl Message {
    fn sealed(&self, keys: &[u8]) -> Result<Vec<u8>> {
        let ctx = ctx(&self.context)?;
        let nonce: [u8; 24] = named("nonce of a message");
        let nonce = &nonce[..if self.suite == 3 { 24 } else { 12 }];
        let key = derive(&self.dek, 1, self.suite, &ctx)?;
        let payload = aead(self.suite, &key, nonce, AAD, PLAINTEXT)?;
        let head = [0xC1, b'W', b'X', 1, self.suite, 1];
        let len = u16::try_from(keys.len())?.to_le_bytes();
        let id = derive(&self.dek, 0, 0, &ctx)?;
        Ok([&head, &len[..], &id, nonce, keys, &payload].concat())
    }

    fn json(&self, name: &str, error: Option<&str>) -> Result<Value> {
        self.json_of(name, error, &self.sealed(&self.list)?, None)
    }

    fn compact(&self, name: &str, error: Option<&str>) -> Result<Value> {
        self.json_of(name, error, &self.sealed(&[])?, Some(&self.list))
    }

    fn json_of(
        &self,
        name: &str,
        error: Option<&str>,
        sealed: &[u8],
        wrapped_keys: Option<&Vec<u8>>,
    ) -> Result<Value> {
        let rows: Vec<_> = self.rows.iter().map(|(by, row)| json!([hex(by), hex(row)])).collect();
        let mut value = json!({
            "name": format!("suite {}: {name}", self.suite),
            "context": self.context,
            "aad": hex(AAD),
            "sealed": hex(sealed),
            "wrapped_keys": wrapped_keys.map(hex),
            "rows": rows,
            "error": error,
        });
        if error.is_none() {
            value["plaintext"] = hex(PLAINTEXT).into();
        }
        Ok(value)
    }
}

/// A message with one entry.
fn message(suite: u8, name: &str, context: &Pairs, dek: [u8; 32], entry: &[u8]) -> Result<Message> {
    let list = list(&[(&format!("branch:{name}"), entry, &[])])?;
    Ok(Message { suite, context: context.clone(), dek, list, rows: Rows::new() })
}

/// With a derived DEK, and the row in the store.
fn derived(suite: u8, name: &str, branch: &Branch, context: &Pairs) -> Result<Message> {
    let salt = named(SALT);
    let dek = branch.dek(&ctx(context)?, &salt)?;
    let rows = vec![(branch.reference()?, branch.row()?)];
    Ok(Message { rows, ..message(suite, name, context, dek, &branch.derived(&salt)?)? })
}

/// With a wrapped DEK, and the row in the store.
fn wrapped(suite: u8, name: &str, branch: &Branch, context: &Pairs) -> Result<Message> {
    let dek = named("DEK of a message");
    let entry = branch.wrapped(&ctx(context)?, &dek, &named("nonce of an entry"))?;
    let rows = vec![(branch.reference()?, branch.row()?)];
    Ok(Message { rows, ..message(suite, name, context, dek, &entry)? })
}

/// With a derived DEK, and this row in the entry.
fn contained(name: &str, branch: &Branch, row: &[u8], context: &Pairs) -> Result<Message> {
    let salt = named(SALT);
    let dek = branch.dek(&ctx(context)?, &salt)?;
    message(1, name, context, dek, &with_row(&branch.derived(&salt)?, row)?)
}

pub(super) fn messages() -> Result<Vec<Value>> {
    let mut messages = Vec::new();
    let alice = pairs(&[("tenant", "alice"), ("table", "cards")]);
    let branch = Branch::of("orders", &[("tenant", "alice")])?;
    let (salt, dek) = (named(SALT), named("DEK of a message"));
    let nonce = named("nonce of an entry");
    let wrapped_entry = branch.wrapped(&ctx(&alice)?, &dek, &nonce)?;
    for suite in 1..=3 {
        let stored = derived(suite, "orders", &branch, &alice)?;
        messages.push(stored.json("derived", None)?);
        messages.push(stored.compact("derived, compact", None)?);
        messages.push(wrapped(suite, "orders", &branch, &alice)?.json("wrapped", None)?);
        let own = contained("orders", &branch, &branch.row()?, &alice)?;
        messages.push(Message { suite, ..own }.json("self-contained, derived", None)?);
        let entry = with_row(&wrapped_entry, &branch.row()?)?;
        let own = message(suite, "orders", &alice, dek, &entry)?;
        messages.push(own.json("self-contained, wrapped", None)?);
    }
    messages.extend(other_branches(&alice)?);
    messages.extend(other_lists(&branch, &alice)?);
    messages.extend(refused_entries(&branch, &alice)?);
    messages.extend(refused_stores(&branch, &alice)?);
    messages.extend(refused_branch_keys(&alice)?);

    let stored = derived(1, "orders", &branch, &alice)?;
    let bob = pairs(&[("tenant", "bob"), ("table", "cards")]);
    let other = Message { context: bob, ..stored.clone() };
    let sealed = stored.sealed(&stored.list)?;
    messages.push(other.json_of(
        "derived, read in another tenant's context",
        INVALID,
        &sealed,
        None,
    )?);
    let table = pairs(&[("tenant", "alice"), ("table", "cars")]);
    let other = Message { context: table, ..stored.clone() };
    messages.push(other.json_of("derived, read in another context", INVALID, &sealed, None)?);
    let without = Message { context: pairs(&[("table", "cards")]), ..stored.clone() };
    messages.push(without.json_of("read in a context without the pair", ANY, &sealed, None)?);
    let mut changed = sealed.clone();
    changed[8] ^= 1;
    messages.push(stored.json_of("derived, another DEK id", INVALID, &changed, None)?);
    let (entry, other) = (branch.derived(&salt)?, named("another DEK"));
    let other = Message { dek: other, ..message(1, "orders", &alice, dek, &entry)? };
    messages.push(Message { rows: stored.rows, ..other }.json("derived, of another DEK", INVALID)?);
    Ok(messages)
}

/// More that opens: other projections, names, periods and root KEKs.
fn other_branches(alice: &Pairs) -> Result<Vec<Value>> {
    let mut messages = Vec::new();
    let mut push = |why: &str, name: &str, branch: &Branch, context: &Pairs| -> Result<()> {
        messages.push(derived(1, name, branch, context)?.json(why, None)?);
        Ok(())
    };
    let all = Branch::of("all", &[])?;
    push("a branch without pairs", "all", &all, alice)?;
    push("a branch without pairs, and the empty context", "all", &all, &Pairs::new())?;
    let cells = Branch::of("cells", &[("tenant", "alice"), ("table", "cards")])?;
    push("a branch of two pairs", "cells", &cells, alice)?;
    push("a name of 505 bytes", LONG, &Branch::of(LONG, &[])?, alice)?;
    let leap = [("tenant", "alice"), ("waxseal:branch", "orders")];
    for period in ["2024-02-29T23:59:59Z", "1970-01-01T00:00:00Z"] {
        let context = pairs(&[&leap[..], &[("waxseal:period", period)]].concat());
        let branch = Branch::new(&format!("orders in {period}"), &context)?;
        push(&format!("the period {period}"), "orders", &branch, alice)?;
    }
    Ok(messages)
}

/// More that opens: lists of several entries, in the message and in the row.
fn other_lists(branch: &Branch, alice: &Pairs) -> Result<Vec<Value>> {
    let mut messages = Vec::new();
    let (key, own) = (&branch.key, &branch.ctx);
    let root = local("root", 2, key, own, "a list")?;
    let spare = local("spare", 1, key, own, "a list")?;
    let old = local("root", 1, key, own, "an old version")?;
    let stored = derived(1, "orders", branch, alice)?;
    let of = |keys: &[(&str, &[u8], &[u8])]| -> Result<Message> {
        let row = row_of(LIVE, BRANCH, &branch.id()?, own, &list(keys)?)?;
        Ok(Message { rows: vec![(branch.reference()?, row)], ..stored.clone() })
    };
    let broken = vec![1; 76];
    for (why, keys) in [
        ("two root KEKs", &[("local:root", &*root, &[][..]), ("local:spare", &spare, &[])][..]),
        ("an old version of the root KEK", &[("local:root", &old, &[])]),
        (
            "a root KEK that nobody has",
            &[("local:gone", &broken, &[]), ("local:spare", &spare, &[])],
        ),
        (
            "a wrapped key that is broken",
            &[("local:root", &broken, &[]), ("local:spare", &spare, &[])],
        ),
        ("meta in the row", &[("local:root", &root, b"a hint")]),
        (
            "a branch key in the row, which is skipped",
            &[("branch:orders", &branch.derived(&named(SALT))?, &[]), ("local:root", &root, &[])],
        ),
    ] {
        messages.push(of(keys)?.json(why, None)?);
    }

    let wrapped = wrapped(1, "orders", branch, alice)?;
    let entry = branch.wrapped(&ctx(alice)?, &wrapped.dek, &named("nonce of an entry"))?;
    let direct = local("root", 2, &wrapped.dek, &ctx(alice)?, "the DEK")?;
    let broken = [&[2], &branch.reference()?[..], &[0; 72]].concat();
    for (why, keys, rows) in [
        (
            "a branch key and a KEK",
            [("branch:orders", &*entry, &[][..]), ("local:root", &direct, &[])],
            wrapped.rows.clone(),
        ),
        (
            "a branch key without a row, and a KEK",
            [("branch:orders", &entry, &[]), ("local:root", &direct, &[])],
            Vec::new(),
        ),
        (
            "an entry of a branch key that is broken, and a KEK",
            [("branch:orders", &broken, &[]), ("local:root", &direct, &[])],
            wrapped.rows.clone(),
        ),
        (
            "a branch key, and a KEK that nobody has",
            [("branch:orders", &entry, &[]), ("local:gone", &direct, &[])],
            wrapped.rows.clone(),
        ),
        (
            "a branch key that nobody has, and one that opens",
            [("branch:gone", &entry, &[]), ("branch:orders", &entry, &[])],
            wrapped.rows.clone(),
        ),
    ] {
        let list = list(&keys)?;
        messages.push(Message { list, rows, ..wrapped.clone() }.json(why, None)?);
    }
    let list = list(&[("branch:orders", &entry, b"a hint")])?;
    messages.push(Message { list, ..wrapped.clone() }.json("meta in the message", None)?);
    // The store has the row as well.
    let contained = contained("orders", branch, &branch.row()?, alice)?;
    let rows = wrapped.rows;
    messages.push(Message { rows, ..contained }.json("self-contained, and stored", None)?);
    Ok(messages)
}

fn refused_entries(branch: &Branch, alice: &Pairs) -> Result<Vec<Value>> {
    let mut messages = Vec::new();
    let stored = derived(1, "orders", branch, alice)?;
    let (salt, dek) = (named(SALT), named("DEK of a message"));
    let derived = branch.derived(&salt)?;
    let wrapped = branch.wrapped(&ctx(alice)?, &dek, &named("nonce of an entry"))?;
    let mut push = |why: &str, error, dek: [u8; 32], entry: &[u8]| -> Result<()> {
        let message = message(1, "orders", alice, dek, entry)?;
        let rows = stored.rows.clone();
        messages.push(Message { rows, ..message }.json(why, error)?);
        Ok(())
    };
    for (why, entry) in [
        ("of one byte", vec![1]),
        ("of form 0", [&[0], &derived[1..]].concat()),
        ("of form 4", [&[4], &derived[1..]].concat()),
        ("cut", derived[..32].to_vec()),
        ("with a byte more", [&derived[..], &[0]].concat()),
        ("with another salt", branch.derived(&named("another salt"))?),
    ] {
        push(&format!("an entry {why}"), INVALID, stored.dek, &entry)?;
    }
    let changed = |at: usize| {
        let mut entry = wrapped.clone();
        entry[at] ^= 1;
        entry
    };
    push("wrapped: the nonce", INVALID, dek, &changed(17))?;
    push("wrapped: the encrypted DEK", INVALID, dek, &changed(41))?;
    push("wrapped: the tag", INVALID, dek, &changed(88))?;
    push("wrapped: another reference", ANY, dek, &changed(1))?;
    let mut other = derived.clone();
    other[16] ^= 1;
    push("derived: another reference", ANY, stored.dek, &other)?;
    let cards = ctx(&pairs(&[("tenant", "alice")]))?;
    let entry = branch.wrapped(&cards, &dek, &named("nonce of an entry"))?;
    push("wrapped in another context", INVALID, dek, &entry)?;
    let entry = branch.wrapped(&ctx(alice)?, &named("another DEK"), &named("nonce of an entry"))?;
    push("wrapped, another DEK", INVALID, dek, &entry)?;
    // The wrap key is of the branch key's own context.
    let wrong = Branch { key: branch.key, ctx: ctx(alice)? };
    let encrypted = wrong.encrypted(&ctx(alice)?, &dek, &named("nonce of an entry"))?;
    push("wrapped, with a wrap key of the DEK's context", INVALID, dek, &{
        [&wrapped[..41], &encrypted].concat()
    })?;

    let unknown = message(1, "gone", alice, stored.dek, &derived)?;
    let rows = stored.rows.clone();
    messages
        .push(Message { rows, ..unknown }.json("a branch that nobody has", Some("unknown-kek"))?);
    let other = message(1, "all", alice, stored.dek, &derived)?;
    let rows = stored.rows;
    messages.push(Message { rows, ..other }.json("the name of another branch", INVALID)?);
    Ok(messages)
}

/// Rows that a store does not have, or has otherwise.
fn refused_stores(branch: &Branch, alice: &Pairs) -> Result<Vec<Value>> {
    let mut messages = Vec::new();
    let stored = derived(1, "orders", branch, alice)?;
    let (by, row, id) = (branch.reference()?, branch.row()?, branch.id()?);
    let mut push = |why: &str, error, row: Vec<u8>| -> Result<()> {
        let rows = vec![(by.clone(), row)];
        messages.push(Message { rows, ..stored.clone() }.json(why, error)?);
        Ok(())
    };
    push("a tombstone in the store", ANY, branch.tombstone()?)?;
    push("a damaged row in the store", ANY, row[..row.len() - 1].to_vec())?;
    push("nothing in the store's row", ANY, Vec::new())?;
    let other = Branch::of("all", &[])?;
    push("another branch key's row in the store", ANY, other.row()?)?;
    push("the row of a DEK in the store", ANY, {
        row_of(LIVE, DEK, &id, &branch.ctx, &branch.keys()?)?
    })?;
    push("another branch key's wrapped keys in the row", INVALID, {
        row_of(LIVE, BRANCH, &id, &branch.ctx, &other.keys()?)?
    })?;
    push("another context in the row", INVALID, {
        row_of(LIVE, BRANCH, &id, &other.ctx, &branch.keys()?)?
    })?;
    push("an id that differs behind the reference", INVALID, {
        let mut row = row.clone();
        row[8 + 16] ^= 1;
        row
    })?;
    let nobody = list(&[("local:gone", &[1; 76], &[])])?;
    push("a row that nobody can unwrap", ANY, row_of(LIVE, BRANCH, &id, &branch.ctx, &nobody)?)?;
    let nested = list(&[("branch:orders", &branch.derived(&named(SALT))?, &[])])?;
    push("a row that a branch key wrapped", ANY, {
        row_of(LIVE, BRANCH, &id, &branch.ctx, &nested)?
    })?;

    messages.push(Message { rows: Rows::new(), ..stored.clone() }.json("no row", ANY)?);
    let contained = contained("orders", branch, &row, alice)?;
    let rows = vec![(by.clone(), branch.tombstone()?)];
    let erased = Message { rows, ..contained };
    messages.push(erased.json("self-contained, and erased", ANY)?);
    let mut id = id;
    id[16..].fill(0);
    let rows = vec![(by, row_of(TOMBSTONE, BRANCH, &id, &[], &[])?)];
    let erased = Message { rows, ..erased };
    messages.push(erased.json("self-contained, and erased when the row could not be read", ANY)?);
    Ok(messages)
}

/// Keys that open, of which docs/format.md says that their row is not that of the branch.
fn refused_branch_keys(alice: &Pairs) -> Result<Vec<Value>> {
    let mut messages = Vec::new();
    let name = ("waxseal:branch", "orders");
    let tenant = ("tenant", "alice");
    let period = ("waxseal:period", PERIOD);
    let mut contexts = vec![
        ("another tenant's".to_owned(), vec![("tenant", "bob"), name, period]),
        ("of no tenant".to_owned(), vec![name, period]),
        ("of a tenant by another name".to_owned(), vec![("Tenant", "alice"), name, period]),
        ("with a pair more".to_owned(), vec![tenant, ("table", "cards"), name, period]),
        ("of another branch".to_owned(), vec![tenant, ("waxseal:branch", "all"), period]),
        ("without a branch".to_owned(), vec![tenant, period]),
        ("without a period".to_owned(), vec![tenant, name]),
        ("of a DEK".to_owned(), vec![tenant, ("table", "cards")]),
        ("with another reserved name".to_owned(), vec![tenant, name, period, ("waxseal:x", "y")]),
    ];
    for period in [
        "2026-11-01",
        "2026-11-01T00:00:00",
        "2026-11-01T00:00:00z",
        "2026-11-01t00:00:00Z",
        "2026-11-01 00:00:00Z",
        "2026-11-01T00:00:00.0Z",
        "2026-11-01T00:00:00+00:00",
        "2026-11-01T24:00:00Z",
        "2026-11-01T00:60:00Z",
        "2026-12-31T23:59:60Z",
        "2026-02-29T00:00:00Z",
        "2026-13-01T00:00:00Z",
        "2026-11-00T00:00:00Z",
        "1969-12-31T23:59:59Z",
        "+026-11-01T00:00:00Z",
    ] {
        contexts
            .push((format!("of period {period}"), vec![tenant, name, ("waxseal:period", period)]));
    }
    for (why, context) in contexts {
        let branch = Branch::new(&format!("a key {why}"), &pairs(&context))?;
        let message = derived(1, "orders", &branch, alice)?;
        messages.push(message.json(&format!("a branch key {why}"), INVALID)?);
        let message = contained("orders", &branch, &branch.row()?, alice)?;
        messages.push(message.json(&format!("self-contained, a branch key {why}"), INVALID)?);
    }
    Ok(messages)
}
