//! Key rows and entries of branch keys, right and wrong.

use serde_json::{Value, json};

use super::parts::{
    BRANCH, Branch, DEK, INDEX, LIVE, Pairs, Result, TOMBSTONE, ctx, hex, list, named, pairs,
    raw_ctx, row_of, with_row,
};

/// The largest list: 65,535 bytes.
fn largest_list() -> Result<Vec<u8>> {
    let ids: Vec<_> = (0..11).map(|i| format!("kek-{i:02}")).collect();
    let wrapped = |i: usize| vec![0xAA; if i < 10 { 6144 } else { 3973 }];
    let wrapped: Vec<_> = (0..11).map(wrapped).collect();
    let entries: Vec<_> =
        ids.iter().zip(&wrapped).map(|(id, wrapped)| (&**id, &**wrapped, &[][..])).collect();
    list(&entries)
}

pub(super) fn key_rows() -> Result<Vec<Value>> {
    let mut rows = Vec::new();
    let mut push = |why: &str, error: Option<&str>, bytes: Vec<u8>| {
        rows.push(json!({"bytes": hex(bytes), "why": why, "error": error}));
    };
    let branch = Branch::of("orders", &[("tenant", "alice")])?;
    let (id, keys) = (branch.id()?, branch.keys()?);
    let live = |kind, ctx: &[u8]| row_of(LIVE, kind, &id, ctx, &keys);
    let alice = ctx(&pairs(&[("tenant", "alice")]))?;
    let good = branch.row()?;
    push("a branch key", None, good.clone());
    push("a DEK", None, live(DEK, &alice)?);
    push("a blind index key", None, live(INDEX, &alice)?);
    for (why, kind) in [("branch key", BRANCH), ("DEK", DEK), ("blind index key", INDEX)] {
        push(&format!("the tombstone of a {why}"), None, row_of(TOMBSTONE, kind, &id, &[], &[])?);
    }
    push("the empty context", None, live(DEK, &ctx(&Pairs::new())?)?);
    let two = list(&[("local:root", &[7; 76], &[]), ("local:spare", &[8; 76], &[1, 2, 3])])?;
    push("two wrapped keys, one with meta", None, row_of(LIVE, BRANCH, &id, &branch.ctx, &two)?);
    push("reserved names in the context of a DEK", None, live(DEK, &branch.ctx)?);
    push("a reserved name that is not defined", None, {
        live(BRANCH, &ctx(&pairs(&[("waxseal", "x"), ("waxseal:other", "y")]))?)?
    });
    let long = |last| vec![("a".into(), "v".repeat(4096)), ("b".into(), "w".repeat(last))];
    let largest = largest_list()?;
    push("the largest row", None, row_of(LIVE, DEK, &id, &ctx(&long(4080))?, &largest)?);

    let malformed = Some("malformed");
    let changed = |at: usize, byte: u8| {
        let mut bytes = good.clone();
        bytes[at] = byte;
        bytes
    };
    push("nothing", malformed, Vec::new());
    push("two bytes", malformed, good[..2].to_vec());
    push("three bytes", malformed, good[..3].to_vec());
    for at in 0..3 {
        push(&format!("byte {at}"), malformed, changed(at, 0x58));
    }
    push("a message", malformed, [&b"\xC1WX\x01\x01\x01\x00\x00"[..], &[7; 60]].concat());
    push("version 0", Some("unsupported-version"), changed(3, 0));
    push("version 2", Some("unsupported-version"), changed(3, 2));
    push("version 2 with an unknown kind", Some("unsupported-version"), {
        let mut bytes = changed(3, 2);
        bytes[5] = 9;
        bytes
    });
    push("the first four bytes", malformed, good[..4].to_vec());
    push("kind 3", Some("unsupported-kind"), changed(5, 3));
    push("kind 255 with an unknown state", Some("unsupported-kind"), {
        let mut bytes = changed(5, 255);
        bytes[4] = 9;
        bytes
    });
    push("an unknown kind, and nothing behind it", Some("unsupported-kind"), {
        changed(5, 3)[..6].to_vec()
    });
    push("state 2", malformed, changed(4, 2));
    push("a tombstone with context and wrapped keys", malformed, changed(4, TOMBSTONE));
    push("a tombstone with a context", malformed, row_of(TOMBSTONE, DEK, &id, &alice, &[])?);
    push("a tombstone with wrapped keys", malformed, row_of(TOMBSTONE, DEK, &id, &[], &keys)?);
    let tombstone = branch.tombstone()?;
    push("a tombstone cut", malformed, tombstone[..41].to_vec());
    push("a tombstone and a byte more", malformed, [&tombstone[..], &[0]].concat());
    push("state 2 with neither context nor wrapped keys", malformed, {
        row_of(2, BRANCH, &id, &[], &[])?
    });
    push("live, with neither context nor wrapped keys", malformed, {
        row_of(LIVE, BRANCH, &id, &[], &[])?
    });
    push("no context", malformed, live(DEK, &[])?);
    push("no wrapped keys", malformed, row_of(LIVE, DEK, &id, &alice, &[])?);
    push("cut", malformed, good[..good.len() - 1].to_vec());
    push("cut in the id", malformed, good[..20].to_vec());
    push("the fixed part alone", malformed, good[..42].to_vec());
    push("a byte more", malformed, [&good[..], &[0]].concat());
    push("W one too small", malformed, changed(6, good[6] - 1));
    push("W one too large", malformed, changed(6, good[6] + 1));
    push("C one too small", malformed, changed(40, good[40] - 1));
    push("C one too large", malformed, changed(40, good[40] + 1));
    for (name, at, other) in [("C", 40, 6), ("W", 6, 40)] {
        push(&format!("the border moved towards {name}"), malformed, {
            let mut bytes = changed(at, good[at] + 1);
            bytes[other] -= 1;
            bytes
        });
    }
    push("W beyond the end", malformed, changed(7, 0xFF));
    push("C beyond the end", malformed, changed(41, 0xFF));
    for (why, context) in [
        ("out of order", pairs(&[("b", "1"), ("a", "2")])),
        ("with a name twice", pairs(&[("a", "1"), ("a", "2")])),
        ("with two names that differ in case only", pairs(&[("A", "1"), ("a", "2")])),
        (
            "with two reserved names that differ in case only",
            pairs(&[("WAXSEAL:branch", "1"), ("waxseal:branch", "2")]),
        ),
        ("with an empty value", pairs(&[("a", "")])),
        ("with a control character", pairs(&[("a", "x\ny")])),
        ("of 8,193 bytes", long(4081)),
    ] {
        push(&format!("a context {why}"), malformed, live(DEK, &raw_ctx(&context)?)?);
    }
    push("a context with a byte more", malformed, live(DEK, &[&alice[..], &[0]].concat())?);
    push(
        "a context of another version",
        malformed,
        live(DEK, &{
            let mut ctx = alice.clone();
            ctx[3] = 2;
            ctx
        })?,
    );
    for (why, keys) in [
        ("without an entry", vec![0]),
        ("out of order", vec![2, 1, b'b', 1, 0xAA, 0, 1, b'a', 1, 0xAA, 0]),
        ("with a count that is not minimal", vec![251, 1, 0, 1, b'a', 1, 0xAA, 0]),
        ("and a byte behind the last", [&keys[..], &[0]].concat()),
        ("with an empty wrapped key", vec![1, 1, b'a', 0, 0]),
    ] {
        push(&format!("wrapped keys {why}"), malformed, row_of(LIVE, DEK, &id, &alice, &keys)?);
    }
    Ok(rows)
}

pub(super) fn branch_entries() -> Result<Vec<Value>> {
    let mut entries = Vec::new();
    let mut push = |why: &str, valid: bool, bytes: Vec<u8>| {
        entries.push(json!({"bytes": hex(bytes), "why": why, "valid": valid}));
    };
    let branch = Branch::of("orders", &[("tenant", "alice")])?;
    let (id, row) = (branch.id()?, branch.row()?);
    let alice = ctx(&pairs(&[("tenant", "alice")]))?;
    let derived = branch.derived(&named("salt"))?;
    let wrapped = branch.wrapped(&alice, &named("DEK"), &named("nonce"))?;
    push("derived", true, derived.clone());
    push("wrapped", true, wrapped.clone());
    push("self-contained, derived", true, with_row(&derived, &row)?);
    push("self-contained, wrapped", true, with_row(&wrapped, &row)?);
    // Of this many bytes, the most that fit, and one more.
    let sized = |len: usize| -> Result<Vec<u8>> {
        let wrapped = len - 42 - branch.ctx.len() - 1 - 11 - 3 - 1;
        row_of(LIVE, BRANCH, &id, &branch.ctx, &list(&[("local:root", &vec![9; wrapped], &[])])?)
    };
    push("self-contained, derived, of 6,144 bytes", true, with_row(&derived, &sized(6108)?)?);
    push("self-contained, derived, of 6,145 bytes", false, with_row(&derived, &sized(6109)?)?);
    push("self-contained, wrapped, of 6,144 bytes", true, with_row(&wrapped, &sized(6052)?)?);
    push("self-contained, wrapped, of 6,145 bytes", false, with_row(&wrapped, &sized(6053)?)?);
    push("an id that differs behind the reference", true, {
        let mut row = row.clone();
        row[8 + 16] ^= 1;
        with_row(&derived, &row)?
    });

    push("nothing", false, Vec::new());
    for first in [0, 4, 255] {
        push(&format!("form {first}"), false, [&[first], &derived[1..]].concat());
        push(&format!("self-contained, form {first}"), false, {
            with_row(&[&[first], &derived[1..]].concat(), &row)?
        });
    }
    let contained = with_row(&derived, &row)?;
    push("self-contained in self-contained", false, with_row(&contained, &row)?);
    for (why, entry) in [
        ("derived", derived.clone()),
        ("wrapped", wrapped.clone()),
        ("self-contained, derived", contained.clone()),
        ("self-contained, wrapped", with_row(&wrapped, &row)?),
    ] {
        push(&format!("{why}: cut"), false, entry[..entry.len() - 1].to_vec());
        push(&format!("{why}: a byte more"), false, [&entry[..], &[0]].concat());
        push(&format!("{why}: the first byte alone"), false, entry[..1].to_vec());
        push(&format!("{why}: two bytes"), false, entry[..2].to_vec());
    }
    push("form 1 with the length of form 2", false, [&[1], &wrapped[1..]].concat());
    push("form 2 with the length of form 1", false, [&[2], &derived[1..]].concat());
    push("self-contained: the row alone", false, contained[..4 + row.len()].to_vec());
    for (why, at, change) in
        [("R one too small", 2, 0xFF), ("R one too large", 2, 1), ("R beyond the end", 3, 0xF0)]
    {
        let mut entry = contained.clone();
        entry[at] = entry[at].wrapping_add(change);
        push(&format!("self-contained: {why}"), false, entry);
    }
    push("self-contained: no row", false, with_row(&derived, &[])?);
    for (why, at) in [("first", 8), ("16th", 23)] {
        let mut row = row.clone();
        row[at] ^= 1;
        push(
            &format!("self-contained: another {why} byte of the id"),
            false,
            with_row(&derived, &row)?,
        );
    }
    for (why, row) in [
        ("a tombstone", branch.tombstone()?),
        ("the row of a DEK", row_of(LIVE, DEK, &id, &branch.ctx, &branch.keys()?)?),
        ("the row of a blind index key", row_of(LIVE, INDEX, &id, &branch.ctx, &branch.keys()?)?),
        ("a row of version 2", [&row[..3], &[2], &row[4..]].concat()),
        ("a row and a byte more", [&row[..], &[0]].concat()),
        ("a row cut", row[..row.len() - 1].to_vec()),
        ("a row with wrapped keys in another form", {
            row_of(LIVE, BRANCH, &id, &branch.ctx, &[251, 1, 0, 1, b'a', 1, 0xAA, 0])?
        }),
    ] {
        push(&format!("self-contained: {why}"), false, with_row(&derived, &row)?);
    }
    Ok(entries)
}
