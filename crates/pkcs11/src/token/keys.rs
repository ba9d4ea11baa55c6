//! Finds the keys of a KEK, and reads what they may be used for.
#![forbid(unsafe_code)]

use cryptoki::object::{Attribute, AttributeType, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;

use super::codes::classify;
use crate::errors::Failure;
use crate::format::MAX_ID;
use crate::key::{Versions, as_number, hex};

/// By what a key is found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct KeyName {
    pub(crate) label: String,
    pub(crate) id: Option<Vec<u8>>,
    pub(crate) versions: Versions,
}

/// One version of the KEK.
#[derive(Clone, Debug)]
pub(crate) struct KeyObject {
    pub(crate) handle: ObjectHandle,
    pub(crate) id: Vec<u8>,
    pub(crate) encrypts: bool,
    pub(crate) decrypts: bool,
    sensitive: bool,
    extractable: bool,
    /// It is seen after a login only, and can be made after one only.
    private: bool,
}

/// The versions of the KEK, the current one last.
#[derive(Clone, Debug)]
pub(crate) struct Keys(Vec<KeyObject>);

impl Keys {
    pub(crate) fn find(
        session: &Session,
        name: &KeyName,
        is_logged_in: bool,
    ) -> Result<Self, Failure> {
        let failed = |error: &cryptoki::error::Error| classify("find the key", error);
        let mut wanted = vec![
            Attribute::Token(true),
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Label(name.label.clone().into_bytes()),
        ];
        if let Some(id) = &name.id {
            wanted.push(Attribute::Id(id.clone()));
        }
        let handles = session.find_objects(&wanted).map_err(|error| failed(&error))?;
        let mut keys = Vec::with_capacity(handles.len());
        for handle in handles {
            keys.push(KeyObject::read(session, handle).map_err(|error| failed(&error))?);
        }
        // A key that is public may have been made without the PIN, by anybody who reaches the
        // token: it is not a version of a private key.
        if keys.iter().any(|key| key.private) {
            keys.retain(|key| key.private);
        }
        if keys.is_empty() {
            return Err(Self::not_found(session, name, is_logged_in));
        }
        Self::of(keys, name).map_err(Failure::misconfigured)
    }

    fn of(mut keys: Vec<KeyObject>, name: &KeyName) -> Result<Self, String> {
        let label = &name.label;
        if keys.iter().any(|key| key.id.len() > MAX_ID) {
            return Err(format!("a key {label:?} has a CKA_ID of more than {MAX_ID} bytes"));
        }
        keys.sort_by(|one, other| as_number(&one.id).cmp(&as_number(&other.id)));
        if keys.len() > 1 && name.versions == Versions::Single {
            let ids: Vec<_> = keys.iter().map(|key| format!("{:?}", hex(&key.id))).collect();
            return Err(format!(
                "{} keys have the label {label:?}, with the ids {}; name one by its id, or say \
                 that they are versions (by-id)",
                keys.len(),
                ids.join(", ")
            ));
        }
        let same = |pair: &[KeyObject]| match pair {
            [one, other] => as_number(&one.id) == as_number(&other.id),
            _ => false,
        };
        if keys.windows(2).any(same) {
            return Err(format!("two keys with the label {label:?} have the same CKA_ID"));
        }
        Ok(Self(keys))
    }

    /// Tells a key that is not there from one that is of another kind, or not seen.
    fn not_found(session: &Session, name: &KeyName, is_logged_in: bool) -> Failure {
        let label = &name.label;
        let id = name.id.as_deref().map(|id| format!(" and the id {:?}", hex(id)));
        let id = id.unwrap_or_default();
        if !is_logged_in {
            let text =
                format!("no key has the label {label:?}{id}, as far as is seen without a login");
            return Failure::misconfigured(text);
        }
        let others = session
            .find_objects(&[Attribute::Token(true), Attribute::Label(label.clone().into_bytes())]);
        match others {
            Ok(others) if !others.is_empty() && name.id.is_none() => {
                let text = format!("what has the label {label:?} is not an AES key");
                Failure::misconfigured(text)
            }
            _ => {
                let all = session.find_objects(&[Attribute::Token(true)]);
                let is_bare = all.map_or(true, |all| all.is_empty());
                let failure = Failure::denied(format!("no key has the label {label:?}{id}"));
                Failure { is_bare, ..failure }
            }
        }
    }

    pub(crate) fn current(&self) -> Option<&KeyObject> {
        self.0.last()
    }

    pub(crate) fn with_id(&self, id: &[u8]) -> Option<&KeyObject> {
        self.0.iter().find(|key| key.id == id)
    }

    pub(crate) fn ids(&self) -> impl Iterator<Item = &[u8]> {
        self.0.iter().map(|key| &*key.id)
    }

    /// What an operator should look at.
    pub(crate) fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        for key in &self.0 {
            let id = hex(&key.id);
            if key.extractable {
                notes.push(format!("key {id:?} can be extracted (CKA_EXTRACTABLE)"));
            }
            if !key.sensitive {
                notes.push(format!("key {id:?} can be read in the clear (CKA_SENSITIVE is false)"));
            }
            if !key.decrypts {
                notes.push(format!("key {id:?} must not unwrap (CKA_DECRYPT is false)"));
            }
        }
        if let Some(key) = self.current()
            && !key.encrypts
        {
            notes.push(format!("key {:?} must not wrap (CKA_ENCRYPT is false)", hex(&key.id)));
        }
        notes
    }
}

impl KeyObject {
    pub(crate) fn works_both_ways(&self) -> bool {
        self.encrypts && self.decrypts
    }

    /// A flag that the token does not tell counts as what is worse for the key's secrecy, and as
    /// permitted for its use: the token decides about that.
    fn read(session: &Session, handle: ObjectHandle) -> cryptoki::error::Result<Self> {
        let mut key = Self {
            handle,
            id: Vec::new(),
            encrypts: true,
            decrypts: true,
            sensitive: false,
            extractable: true,
            private: false,
        };
        let asked = [
            AttributeType::Id,
            AttributeType::Encrypt,
            AttributeType::Decrypt,
            AttributeType::Sensitive,
            AttributeType::Extractable,
            AttributeType::Private,
        ];
        for attribute in session.get_attributes(handle, &asked)? {
            match attribute {
                Attribute::Id(id) => key.id = id,
                Attribute::Encrypt(may) => key.encrypts = may,
                Attribute::Decrypt(may) => key.decrypts = may,
                Attribute::Sensitive(is) => key.sensitive = is,
                Attribute::Extractable(is) => key.extractable = is,
                Attribute::Private(is) => key.private = is,
                _ => {}
            }
        }
        Ok(key)
    }
}
