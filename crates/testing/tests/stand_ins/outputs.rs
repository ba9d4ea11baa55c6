//! What searches the output of all tests for secrets.

use std::iter;

use data_encoding::{BASE64, HEXLOWER};
use waxseal_testing::outputs::{CONTROL, Search, forms, note_secret};

/// The one secret that is meant to be found.
#[test]
fn the_control_of_the_search_is_printed() {
    let control: [u8; 16] = std::array::from_fn(|n| n as u8 * 13 + 1);
    note_secret(control);
    println!("{CONTROL}{}", BASE64.encode(&control));
}

#[test]
fn a_secret_among_thousands_is_found_in_every_form_and_in_the_midst_of_others() {
    let secrets: Vec<[u8; 32]> = iter::repeat_with(rand::random).take(2000).collect();
    let noted: String = secrets.iter().map(|secret| HEXLOWER.encode(secret) + "\n").collect();
    let search = Search::new(&noted);
    for half in secrets[1234].chunks(16) {
        for (form, bytes) in forms(half) {
            let output = [b"behind this: ", &bytes[..], b" and before that"].concat();
            let found = search.found_in(&output);
            assert!(!found.is_empty(), "{form}");
            assert!(found.iter().all(|(at, ..)| (13..17).contains(at)), "{form}: {found:?}");
        }
    }
    let random: Vec<u8> = iter::repeat_with(rand::random).take(1 << 20).collect();
    assert!(search.found_in(&random).is_empty());
    assert!(search.found_in(HEXLOWER.encode(&random).as_bytes()).is_empty());
}
