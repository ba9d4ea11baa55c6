//! DEKs that went through the HTTP client, searched for in memory, with the system's allocator.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

#[path = "support/google_memory.rs"]
mod google_memory;

#[test]
fn the_stand_in_as_a_process_of_its_own() {
    waxseal_testing::google::child::child_s_part();
}

#[test]
fn what_the_client_leaves_of_a_dek_is_counted() {
    let found = google_memory::run("the_stand_in_as_a_process_of_its_own");
    println!("{found:?}");
    assert!(found.held.0 >= 6 && found.held.1 >= 6, "the control: {found:?}");
    assert_eq!(found.closed.0, 0, "a DEK as bytes: {found:?}");
    // Text in the buffers of the HTTP client's connections is out of reach (SECURITY.md): a copy or
    // two for each of the twelve crossings.
    assert!(found.closed.1 <= 12 * 3, "{found:?}");
}
