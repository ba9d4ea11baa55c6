//! Backends that share the work by the length of a message, and messages of one DEK in both forms.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]

use support::{SUITES, block_on, context, envelope, local};
use waxseal::{Aad, Backend, Envelope, ErrorKind};
use waxseal_testing::support;

use super::many::{assert_are, items, rows, sealed};

/// The choice among backends goes by the length of a message, and what it makes does not.
#[test]
fn short_and_longer_messages_of_every_backend_are_read_by_every_other() {
    let backends = || Backend::all().iter().chain(&[Backend::Fastest]);
    let (kek, alice) = (local("kek"), context("alice"));
    let rows: Vec<_> = [0, 1, 16, 1023, 1024, 1025, 1026, 5000]
        .map(|len| (b"row".to_vec(), (0..=255).cycle().take(len).collect::<Vec<u8>>()))
        .into();
    for (suite, writer) in SUITES.into_iter().flat_map(|s| backends().map(move |b| (s, *b))) {
        let of = |backend| {
            let builder = Envelope::builder().wrap_with(kek.clone());
            builder.suite(suite).backend(backend).build().unwrap()
        };
        let encryptor = block_on(of(writer).encryptor(&alice)).unwrap();
        let together = encryptor.encrypt_many(items(&rows)).unwrap();
        for reader in backends() {
            let reader = of(*reader);
            let decryptor = block_on(reader.decryptor(&alice, together.get(0).unwrap()));
            let decryptor = decryptor.unwrap();
            assert_are(&decryptor.decrypt_many(sealed(&rows, &together)).unwrap(), &rows);
            for (aad, value) in items(&rows) {
                let one = encryptor.encrypt(aad, value).unwrap();
                assert_eq!(&*block_on(reader.decrypt(&alice, aad, &one)).unwrap(), value);
                let mut in_place = one;
                assert_eq!(decryptor.decrypt_in_place(aad, &mut in_place).unwrap(), value);
            }
        }
    }
}

#[test]
fn a_handle_decrypts_messages_of_its_dek_with_and_without_wrapped_keys_and_no_others() {
    let (envelope, alice) = (envelope(&local("kek")), context("alice"));
    let encryptor = block_on(envelope.encryptor(&alice)).unwrap();
    let other = block_on(self::envelope(&local("kek")).encryptor(&alice)).unwrap();
    let (rows, compact) = (rows(200), encryptor.clone().compact());
    let embedded = encryptor.encrypt_many(items(&rows)).unwrap();
    let bare = compact.encrypt_many(items(&rows)).unwrap();
    // In runs of both, and in turns.
    let mixed = |n: usize| match n.is_multiple_of(2) ^ (n / 20).is_multiple_of(2) {
        true => embedded.get(n).unwrap(),
        false => bare.get(n).unwrap(),
    };
    let decryptor = block_on(envelope.decryptor(&alice, embedded.get(0).unwrap())).unwrap();
    let messages: Vec<_> = (0..rows.len()).map(mixed).collect();
    let items_of = |messages: &[&[u8]]| {
        let aads = rows.iter().map(|(aad, _)| Aad::from(aad)).collect::<Vec<_>>();
        decryptor.decrypt_many(aads.into_iter().zip(messages.iter().copied()))
    };
    assert_are(&items_of(&messages).unwrap(), &rows);
    for at in [0, 1, 63, 64, 65, 199] {
        let mut changed = messages.clone();
        let of_another_dek = other.encrypt(Aad::from(&rows[at].0), &rows[at].1).unwrap();
        changed[at] = &of_another_dek;
        let error = items_of(&changed).err().unwrap();
        assert_eq!((error.kind(), error.item()), (ErrorKind::OtherDek, Some(at)));
        changed[at] = &messages[at][..60];
        let error = items_of(&changed).err().unwrap();
        assert_eq!((error.kind(), error.item()), (ErrorKind::Malformed, Some(at)));
        let mut forged = messages[at].to_vec();
        *forged.last_mut().unwrap() ^= 1;
        changed[at] = &forged;
        let error = items_of(&changed).err().unwrap();
        assert_eq!((error.kind(), error.item()), (ErrorKind::Invalid, Some(at)));
    }
}
