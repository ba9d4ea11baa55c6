//! DEKs that went through a Vault server's HTTP client, searched for in memory, with the system's
//! allocator.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

#[path = "support/vault_memory.rs"]
mod vault_memory;

#[test]
fn the_library_leaves_no_dek_behind() {
    let found = vault_memory::run();
    println!("{found:?}");
    assert!(found.held.0 >= 16 && found.held.1 >= 16, "the control: {found:?}");
    assert_eq!(found.dropped.0, 0, "a DEK as bytes: {found:?}");
    assert_eq!(found.closed.0, 0, "a DEK as bytes: {found:?}");
}
