//! DEKs that went through the SDK and the HTTP client, searched for in memory, with the system's
//! allocator.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

#[path = "support/azure_memory.rs"]
mod azure_memory;

use azure_memory::DEKS;

#[test]
fn the_stand_in_as_a_process_of_its_own() {
    waxseal_testing::azure::child::child_s_part();
}

#[test]
fn what_the_client_leaves_of_a_dek_is_counted() {
    let found = azure_memory::run("the_stand_in_as_a_process_of_its_own");
    println!("{found:?}");
    assert!(found.held.0 >= 2 * DEKS && found.held.1 >= 2 * DEKS, "the control: {found:?}");
    assert_eq!(found.closed.0, 0, "a DEK as bytes: {found:?}");
    // Text in the buffers of the connections and of the SDK is out of reach (SECURITY.md): a copy
    // or two for each crossing.
    assert!(found.closed.1 <= 4 * DEKS * 3, "{found:?}");
}
