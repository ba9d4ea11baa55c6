//! What the operator of a token does: makes, gives out, changes and destroys keys, and tries what a
//! user must not be able to do.
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::path::Path;

use cryptoki::context::Pkcs11;
use cryptoki::mechanism::Mechanism;
use cryptoki::object::{Attribute, KeyType, ObjectClass};
use cryptoki::session::{Session, UserType};
use cryptoki::types::AuthPin;

use super::{PIN, SO_PIN, TOKEN};

pub(super) fn done_by_operator(module: &Pkcs11, words: &[&str]) {
    let (user, officer) = (AuthPin::new(PIN.into()), AuthPin::new(SO_PIN.into()));
    if let ["init", label] = words {
        let slot = module.get_slots_with_token().unwrap().into_iter();
        let is_new = |slot: &cryptoki::slot::Slot| {
            !module.get_token_info(*slot).unwrap().token_initialized()
        };
        let slot = slot.into_iter().find(is_new).unwrap();
        module.init_token(slot, &officer, label).unwrap();
        let session = session_at(module, label);
        session.login(UserType::So, Some(&officer)).unwrap();
        session.init_pin(&user).unwrap();
        return;
    }
    if let ["pin", old, new] = words {
        let session = session_at(module, TOKEN);
        session.login(UserType::User, Some(&AuthPin::new((*old).into()))).unwrap();
        let (old, new) = (AuthPin::new((*old).into()), AuthPin::new((*new).into()));
        session.set_pin(&old, &new).unwrap();
        return;
    }
    if let ["give-out" | "give-out-as" | "tamper", token, label, ..] = words {
        let session = session_at(module, token);
        session.login(UserType::User, Some(&user)).unwrap();
        return match words {
            ["give-out", .., flags, value] => give_out(&session, label, flags, value),
            ["give-out-as", .., attributes, value] => {
                give_out_as(&session, label, attributes, value);
            }
            _ => tamper(&session, label),
        };
    }
    if let ["plant", label, id] = words {
        // As somebody does who has no PIN.
        let template = [
            Attribute::Token(true),
            Attribute::Private(false),
            Attribute::Class(ObjectClass::SECRET_KEY),
            Attribute::KeyType(KeyType::AES),
            Attribute::Value(vec![7; 32]),
            Attribute::Label(label.as_bytes().to_vec()),
            Attribute::Id(vec![id.parse().unwrap()]),
            Attribute::Encrypt(true),
            Attribute::Decrypt(true),
        ];
        session_at(module, TOKEN).create_object(&template).unwrap();
        return;
    }
    let session = session_at(module, TOKEN);
    session.login(UserType::User, Some(&user)).unwrap();
    let hex = |id: &str| {
        let digits = id.as_bytes().chunks(2).map(|pair| std::str::from_utf8(pair).unwrap());
        digits.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect::<Vec<_>>()
    };
    let find = |label: &str, id: &str| {
        let label = Attribute::Label(label.as_bytes().to_vec());
        let found = session.find_objects(&[label, Attribute::Id(hex(id))]).unwrap();
        assert_eq!(found.len(), 1, "{words:?}");
        found[0]
    };
    match words {
        ["key", label, id, flags] => {
            let template = [
                Attribute::Token(true),
                Attribute::Private(true),
                Attribute::Class(ObjectClass::SECRET_KEY),
                Attribute::KeyType(KeyType::AES),
                Attribute::ValueLen(32.into()),
                Attribute::Label(label.as_bytes().to_vec()),
                Attribute::Id(hex(id)),
                Attribute::Encrypt(flags.contains('e')),
                Attribute::Decrypt(flags.contains('d')),
                Attribute::Sensitive(flags.contains('s')),
                Attribute::Extractable(flags.contains('x')),
            ];
            session.generate_key(&Mechanism::AesKeyGen, &template).unwrap();
        }
        ["data", label] => {
            let template = [
                Attribute::Token(true),
                Attribute::Private(true),
                Attribute::Class(ObjectClass::DATA),
                Attribute::Label(label.as_bytes().to_vec()),
            ];
            session.create_object(&template).unwrap();
        }
        ["destroy", label, id] => session.destroy_object(find(label, id)).unwrap(),
        ["allow", label, id, flags] => {
            let template =
                [Attribute::Encrypt(flags.contains('e')), Attribute::Decrypt(flags.contains('d'))];
            session.update_attributes(find(label, id), &template).unwrap();
        }
        _ => panic!("no operation {words:?}"),
    }
}

fn give_out(session: &Session, label: &str, flags: &str, value: &str) {
    let template = [
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Value(data_encoding::HEXLOWER.decode(value.as_bytes()).unwrap()),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::Id(vec![1]),
        Attribute::Encrypt(flags.contains('e')),
        Attribute::Decrypt(flags.contains('d')),
        Attribute::Wrap(false),
        Attribute::Unwrap(false),
        Attribute::Derive(false),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Modifiable(false),
        Attribute::Copyable(false),
    ];
    session.create_object(&template).unwrap();
}

fn give_out_as(session: &Session, label: &str, attributes: &str, value: &str) {
    let mut template = vec![
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::Value(data_encoding::HEXLOWER.decode(value.as_bytes()).unwrap()),
        Attribute::Label(label.as_bytes().to_vec()),
        Attribute::Id(vec![1]),
    ];
    template.extend(attributes.split(',').map(|attribute| {
        let (name, value) = attribute.split_once('=').unwrap();
        let value = value.parse().unwrap();
        match name {
            "CKA_TOKEN" => Attribute::Token(value),
            "CKA_PRIVATE" => Attribute::Private(value),
            "CKA_ENCRYPT" => Attribute::Encrypt(value),
            "CKA_DECRYPT" => Attribute::Decrypt(value),
            "CKA_WRAP" => Attribute::Wrap(value),
            "CKA_UNWRAP" => Attribute::Unwrap(value),
            "CKA_DERIVE" => Attribute::Derive(value),
            "CKA_SENSITIVE" => Attribute::Sensitive(value),
            "CKA_EXTRACTABLE" => Attribute::Extractable(value),
            "CKA_MODIFIABLE" => Attribute::Modifiable(value),
            "CKA_COPYABLE" => Attribute::Copyable(value),
            _ => panic!("no attribute {name}"),
        }
    }));
    session.create_object(&template).unwrap();
}

fn tamper(session: &Session, label: &str) {
    let found = session.find_objects(&[Attribute::Label(label.as_bytes().to_vec())]).unwrap();
    let [key] = found[..] else { panic!("{found:?}") };
    let both = [Attribute::Encrypt(true), Attribute::Decrypt(true)];
    let each = [
        vec![Attribute::Encrypt(true)],
        vec![Attribute::Decrypt(true)],
        vec![Attribute::Wrap(true)],
        vec![Attribute::Modifiable(true)],
        vec![Attribute::Extractable(true)],
        vec![Attribute::Sensitive(false)],
    ];
    let mut worked = Vec::new();
    // A value that the key has already changes nothing, and may be accepted.
    let flags = |key| {
        use cryptoki::object::AttributeType::{Decrypt, Encrypt, Extractable, Sensitive, Wrap};
        let asked = [Encrypt, Decrypt, Wrap, Extractable, Sensitive];
        session.get_attributes(key, &asked).unwrap()
    };
    let before = flags(key);
    for change in each {
        let changed = session.update_attributes(key, &change);
        println!("tamper: {change:?}: {changed:?}");
        if flags(key) != before {
            worked.push(format!("{change:?}"));
        }
    }
    for template in [&both[..], &[Attribute::Token(false)]] {
        let copied = session.copy_object(key, template);
        println!("tamper: a copy with {template:?}: {copied:?}");
        if copied.is_ok_and(|copy| flags(copy) != before) {
            worked.push(format!("a copy with {template:?}"));
        }
    }
    let value = session.get_attributes(key, &[cryptoki::object::AttributeType::Value]);
    if value.is_ok_and(|value| !value.is_empty()) {
        worked.push("reading it".to_owned());
    }
    let template = [
        Attribute::Token(false),
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(32.into()),
        Attribute::Wrap(true),
    ];
    if let Ok(wrapper) = session.generate_key(&Mechanism::AesKeyGen, &template) {
        for mechanism in [Mechanism::AesKeyWrap, Mechanism::AesKeyWrapPad] {
            if session.wrap_key(&mechanism, wrapper, key).is_ok() {
                worked.push(format!("wrapping it out by {mechanism:?}"));
            }
        }
    }
    assert!(worked.is_empty(), "the token let a user do this: {worked:?}");
}

fn session_at(module: &Pkcs11, label: &str) -> Session {
    let slots = module.get_slots_with_token().unwrap();
    let is_it =
        |slot: &cryptoki::slot::Slot| module.get_token_info(*slot).unwrap().label() == label;
    module.open_rw_session(slots.into_iter().find(is_it).unwrap()).unwrap()
}

/// Does what other code of this process may do with a module: it logs out, or ends the module.
pub fn interfere(module: &Path, ends: bool) {
    let module = Pkcs11::new(module).unwrap();
    if ends {
        return module.finalize().unwrap();
    }
    let slots = module.get_slots_with_token().unwrap();
    let is_it =
        |slot: &cryptoki::slot::Slot| module.get_token_info(*slot).unwrap().label() == TOKEN;
    let session = module.open_ro_session(slots.into_iter().find(is_it).unwrap()).unwrap();
    session.logout().unwrap();
}
