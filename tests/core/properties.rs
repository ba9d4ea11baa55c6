//! Properties over many inputs.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use proptest::prelude::*;
use support::{SUITES, block_on, local};
use waxseal::{Aad, EncryptionContext, Envelope, Sealed, WrappedKeys, inspect, is_sealed};
use waxseal_testing::support;

/// Valid pairs, unsorted, names made distinct by a number.
fn pairs() -> impl Strategy<Value = Vec<(String, String)>> {
    prop::collection::vec(("[^\\x00-\\x1f\\x7f]{0,20}", "[^\\x00-\\x1f\\x7f]{1,40}"), 0..8)
        .prop_map(|pairs| {
            pairs
                .into_iter()
                .enumerate()
                .map(|(i, (name, value))| (format!("{i}{name}"), value))
                .collect()
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn any_payload_context_and_aad_come_back(
        pairs in pairs(), aad: Vec<u8>, plaintext in prop::collection::vec(any::<u8>(), 0..5000), suite in 0..3_usize,
        compact: bool,
    ) {
        let kek = local("kek");
        let context = EncryptionContext::new(pairs_of(&pairs)).unwrap();
        let writer = Envelope::builder().wrap_with(kek.clone()).suite(SUITES[suite]).build().unwrap();
        let reader = Envelope::builder().unwrap_with(kek).build().unwrap();
        if compact {
            let sealed = block_on(writer.encrypt_compact(&context, Aad::from(&aad), &plaintext)).unwrap();
            let compact = Sealed::compact(sealed.as_bytes(), sealed.wrapped_keys());
            let opened = block_on(reader.decrypt(&context, Aad::from(&aad), compact)).unwrap();
            prop_assert_eq!(&*opened, &plaintext[..]);
        } else {
            let sealed = block_on(writer.encrypt(&context, Aad::from(&aad), &plaintext)).unwrap();
            prop_assert_eq!(inspect(&sealed).unwrap().plaintext_len, Some(plaintext.len()));
            prop_assert_eq!(&*block_on(reader.decrypt(&context, Aad::from(&aad), &sealed)).unwrap(), &plaintext[..]);
        }
    }

    #[test]
    fn a_context_is_its_pairs_whatever_their_order(pairs in pairs(), seed: u64) {
        let context = EncryptionContext::new(pairs_of(&pairs)).unwrap();
        let mut other = pairs.clone();
        let len = other.len().max(1);
        other.rotate_left(usize::try_from(seed % u64::try_from(len).unwrap()).unwrap());
        prop_assert_eq!(&EncryptionContext::new(pairs_of(&other)).unwrap(), &context);
        prop_assert_eq!(&EncryptionContext::try_from(context.as_bytes()).unwrap(), &context);
    }

    #[test]
    fn two_contexts_never_share_bytes(a in pairs(), b in pairs()) {
        let sorted = |pairs: &[(String, String)]| { let mut pairs = pairs.to_vec(); pairs.sort(); pairs };
        let [x, y] = [&a, &b].map(|pairs| EncryptionContext::new(pairs_of(pairs)).unwrap());
        prop_assert_eq!(x.as_bytes() == y.as_bytes(), sorted(&a) == sorted(&b));
        prop_assert_eq!(x == y, x.as_bytes() == y.as_bytes());
        prop_assert_eq!(x.digest() == y.digest(), x == y);
    }

    /// The same characters, cut into names and values at other places.
    #[test]
    fn moving_a_border_between_name_and_value_changes_the_bytes(
        text in "[a-z]{4,20}",
        a in 1..3_usize,
        b in 1..3_usize,
    ) {
        let cut = |at: usize| EncryptionContext::new([text.split_at(at)]).unwrap();
        prop_assert_eq!(cut(a).as_bytes() == cut(b).as_bytes(), a == b);
    }

    #[test]
    fn no_bytes_make_a_parser_panic(bytes: Vec<u8>, head in 0..8_usize) {
        let start = [
            &b"\xC1WX\x01\x01\x01"[..],
            b"\xC1WX\x01\x03\x01",
            b"\xC1WX",
            b"WXC\x01",
            b"\x01",
            b"\x02",
            b"",
            b"\xC1WX\x01\x02\x02",
        ];
        let bytes = [start[head], &bytes].concat();
        let _ = (is_sealed(&bytes), inspect(&bytes).is_ok());
        let _ = EncryptionContext::try_from(&bytes[..]).map(|context| assert_eq!(context.as_bytes(), bytes));
        let _ = WrappedKeys::try_from(&bytes[..]).map(|keys| assert_eq!(keys.as_bytes(), bytes));
        let envelope = Envelope::builder().wrap_with(local("kek")).build().unwrap();
        prop_assert!(block_on(envelope.decrypt(&EncryptionContext::empty(), Aad::empty(), &bytes)).is_err());
    }
}

fn pairs_of(pairs: &[(String, String)]) -> Vec<(&str, &str)> {
    pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}
