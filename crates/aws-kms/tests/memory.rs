//! DEKs that went through the AWS SDK's HTTP client, searched for in memory, with the system's
//! allocator.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

#[path = "support/kms_memory.rs"]
mod kms_memory;

#[test]
fn the_front_as_a_process_of_its_own() {
    waxseal_testing::kms_front::child::child_s_part();
}

#[test]
fn what_the_sdk_leaves_of_a_dek_is_counted() {
    let found = kms_memory::run("the_front_as_a_process_of_its_own");
    println!("{found:?}");
    assert!(found.held.0 >= 6 && found.held.1 >= 6, "the control: {found:?}");
    assert_eq!(found.closed.0, 0, "a DEK as bytes: {found:?}");
    // Text in buffers of the SDK and its HTTP client is out of reach (SECURITY.md): a copy or two
    // for each of the nine crossings.
    assert!(found.closed.1 <= 9 * 3, "{found:?}");
}
