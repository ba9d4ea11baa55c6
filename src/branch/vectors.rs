//! The committed vectors of branch keys (tests/vectors/README.md), opened with the parts of a
//! branch key provider.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use data_encoding::HEXLOWER;
use pollster::block_on;
use serde_json::Value;

use super::format::{BranchEntry, Form};
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::{KeyKind, KeyRow, Message, WrappedDek, WrappedKeys};
use crate::kek::KekProvider;
use crate::kek::local::LocalKek;
use crate::store::RowId;
use crate::suite::{
    AeadKey, Backend, BranchKey, BranchWrapped, Dek, DekId, derive_dek_id, derive_message_key,
};

fn vectors() -> Value {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/branch_keys.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn list(value: &Value) -> &Vec<Value> {
    value.as_array().unwrap()
}

fn hex(value: &Value) -> Vec<u8> {
    HEXLOWER.decode(value.as_str().unwrap().as_bytes()).unwrap()
}

fn array<const N: usize>(value: &Value) -> [u8; N] {
    hex(value).try_into().unwrap()
}

fn context(value: &Value) -> EncryptionContext {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let pairs = list(value).iter().map(|pair| (text(&pair[0]), text(&pair[1])));
    EncryptionContext::with_reserved_names(pairs).unwrap()
}

/// The configuration of a reader, and the content of its store.
struct Reader {
    backend: Backend,
    keks: Vec<LocalKek>,
    branches: BTreeMap<String, Vec<String>>,
    store: BTreeMap<RowId, Vec<u8>>,
}

impl Reader {
    fn new(vectors: &Value, message: &Value, backend: Backend) -> Self {
        let kek = |kek: &Value| {
            let name = kek["id"].as_str().unwrap().strip_prefix("local:").unwrap();
            let versions = kek["versions"].as_object().unwrap().iter();
            let secrets: Vec<(u32, [u8; 32])> = versions
                .map(|(version, secret)| (version.parse().unwrap(), array(secret)))
                .collect();
            LocalKek::from_secrets(name, secrets.iter().map(|(v, s)| (*v, s))).unwrap()
        };
        let branch = |branch: &Value| {
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            (text(&branch["name"]), list(&branch["per"]).iter().map(text).collect())
        };
        let rows = list(&message["rows"]).iter();
        Self {
            backend,
            keks: list(&vectors["keks"]).iter().map(kek).collect(),
            branches: list(&vectors["branches"]).iter().map(branch).collect(),
            store: rows.map(|row| (RowId::from_bytes(array(&row[0])), hex(&row[1]))).collect(),
        }
    }

    fn open(&self, message: &Value) -> Result<Vec<u8>, Error> {
        let (context, sealed) = (context(&message["context"]), hex(&message["sealed"]));
        let parts = Message::parse(&sealed)?;
        let keys = match &message["wrapped_keys"] {
            Value::Null => parts.wrapped_keys.to_vec(),
            keys => hex(keys),
        };
        let keys = WrappedKeys::try_from(&keys[..])?;
        let mut known = keys.entries().iter().filter(|entry| self.knows(entry)).peekable();
        if known.peek().is_none() {
            return Err(Error::new(ErrorKind::UnknownKek, ""));
        }
        let dek = known
            .find_map(|entry| {
                let dek = match self.name_of(entry) {
                    Some(name) => self.through_branch(name, &context, entry.wrapped()),
                    None => self.unwrap(&context, entry),
                };
                dek.filter(|dek| is_of(dek, &context, &parts.header.dek_id))
            })
            .ok_or_else(Error::invalid)?;
        let suite = parts.header.suite;
        let key = derive_message_key(&dek, &context, suite)?;
        let key = AeadKey::expand(self.backend, suite, &key)?;
        let mut payload = sealed[parts.payload].to_vec();
        let data = crate::suite::InOut::in_place(&mut payload);
        key.open(parts.nonce, &hex(&message["aad"]), data, parts.tag)?;
        Ok(payload)
    }

    fn name_of<'e>(&self, entry: &'e WrappedDek) -> Option<&'e str> {
        entry.kek_id().as_str().strip_prefix("branch:")
    }

    fn knows(&self, entry: &WrappedDek) -> bool {
        match self.name_of(entry) {
            Some(name) => self.branches.contains_key(name),
            None => self.keks.iter().any(|kek| kek.recognises(entry.kek_id())),
        }
    }

    fn unwrap(&self, context: &EncryptionContext, entry: &WrappedDek) -> Option<Dek> {
        let kek = self.keks.iter().find(|kek| kek.recognises(entry.kek_id()))?;
        block_on(kek.unwrap(context, entry)).ok()?.to_dek()
    }

    /// docs/format.md, "Reading an entry".
    fn through_branch(&self, name: &str, context: &EncryptionContext, entry: &[u8]) -> Option<Dek> {
        let BranchEntry { row_id, form, row } = BranchEntry::read(entry)?;
        let stored = self.store.get(&row_id).map(|row| KeyRow::try_from(&row[..]));
        let erased = matches!(&stored, Some(Ok(row)) if row.is_tombstone());
        let row = match row {
            Some(_) if erased => return None,
            Some(row) => row,
            None => stored?.ok()?,
        };
        let own = row.context()?;
        let (period, id) = (own.get("waxseal:period")?, *row.id());
        let per = self.branches.get(name)?.iter();
        let pairs: Option<Vec<_>> = per.map(|name| Some((&**name, context.get(name)?))).collect();
        let expected =
            [&pairs?[..], &[("waxseal:branch", name), ("waxseal:period", period)]].concat();
        let expected = EncryptionContext::with_reserved_names(expected).unwrap();
        if row.kind() != KeyKind::Branch || RowId::from(&id) != row_id || *own != expected {
            return None;
        }
        if !is_period(period) {
            return None;
        }
        let entries = row.wrapped_keys()?.entries().iter();
        let roots = entries.filter(|entry| self.name_of(entry).is_none());
        let key = roots.filter_map(|entry| self.unwrap(own, entry)).find(|k| is_of(k, own, &id))?;
        let key = BranchKey::new(key, own.clone()).ok()?;
        match form {
            Form::Derived(salt) => key.derive(context, &salt).ok(),
            Form::Wrapped(wrapped) => key.unwrap(self.backend, context, &wrapped).ok(),
        }
    }
}

fn is_of(key: &Dek, context: &EncryptionContext, id: &DekId) -> bool {
    derive_dek_id(key, context).unwrap() == *id
}

/// Checks the form that docs/format.md prescribes, as far as the vectors violate it.
fn is_period(text: &str) -> bool {
    let shape = text.bytes().zip("dddd-dd-ddTdd:dd:ddZ".bytes());
    let shaped = text.len() == 20
        && shape
            .into_iter()
            .all(|(c, as_)| if as_ == b'd' { c.is_ascii_digit() } else { c == as_ });
    let number = |range: std::ops::Range<usize>| text[range].parse::<u32>().unwrap();
    shaped && {
        let (year, month) = (number(0..4), number(5..7));
        let days = match month {
            2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        year >= 1970
            && (1..=12).contains(&month)
            && (1..=days).contains(&number(8..10))
            && number(11..13) < 24
            && number(14..16) < 60
            && number(17..19) < 60
    }
}

#[test]
fn every_valid_entry_is_read_and_no_other() {
    let vectors = vectors();
    let entries = list(&vectors["branch_entries"]);
    assert!(entries.len() >= 49);
    for vector in entries {
        let (bytes, why) = (hex(&vector["bytes"]), &vector["why"]);
        let read = BranchEntry::read(&bytes);
        assert_eq!(read.is_some(), vector["valid"].as_bool().unwrap(), "{why}");
        if let Some(entry) = read {
            assert_eq!(entry.to_bytes().unwrap(), bytes, "{why}");
        }
    }
}

#[test]
fn the_known_answers_hold() {
    let vectors = vectors();
    let known = &vectors["known_answers"];
    let own = context(&known["context"]);
    assert_eq!(own.as_bytes(), hex(&known["context_bytes"]));
    let key = Dek::from_slice(&hex(&known["branch_key"])).unwrap();
    let key = BranchKey::new(key, own).unwrap();
    assert_eq!(key.id().as_bytes()[..], hex(&known["id"]));
    for answer in list(&known["derived"]) {
        let context = context(&answer["context"]);
        let dek = key.derive(&context, &array(&answer["salt"])).unwrap();
        assert_eq!(dek.expose()[..], hex(&answer["dek"]));
        assert_eq!(derive_dek_id(&dek, &context).unwrap().as_bytes()[..], hex(&answer["dek_id"]));
    }
    for (answer, backend) in
        list(&known["wrapped"]).iter().flat_map(|a| Backend::all().iter().map(move |b| (a, *b)))
    {
        let encrypted = hex(&answer["encrypted"]);
        let (dek, tag) = encrypted.split_at(32);
        let (dek, tag) = (dek.try_into().unwrap(), tag.try_into().unwrap());
        let wrapped = BranchWrapped { nonce: array(&answer["nonce"]), dek, tag };
        let dek = key.unwrap(backend, &context(&answer["context"]), &wrapped).unwrap();
        assert_eq!(dek.expose()[..], hex(&answer["dek"]));
    }
    assert!(list(&known["derived"]).len() >= 4 && list(&known["wrapped"]).len() >= 2);
}

#[test]
fn every_valid_message_opens_and_no_other() {
    let vectors = vectors();
    let messages = list(&vectors["messages"]);
    assert!(messages.len() >= 116);
    for (message, backend) in
        messages.iter().flat_map(|m| Backend::all().iter().map(move |b| (m, *b)))
    {
        let name = &message["name"];
        let opened = Reader::new(&vectors, message, backend).open(message);
        match (opened, message["error"].as_str()) {
            (Ok(plaintext), None) => assert_eq!(plaintext, hex(&message["plaintext"]), "{name}"),
            (Err(_), Some("any")) => {}
            (Err(error), Some(expected)) => assert_eq!(error.kind().as_str(), expected, "{name}"),
            (Ok(_), Some(_)) => panic!("{name} opened"),
            (Err(error), None) => panic!("{name}: {error}"),
        }
    }
}
