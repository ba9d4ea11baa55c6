//! DEKs that went through a Vault server's HTTP client, searched for in memory, with an allocator
//! that wipes what is freed, as SECURITY.md recommends.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

#[path = "support/vault_memory.rs"]
mod vault_memory;

use std::alloc::System;

use zeroizing_alloc::ZeroAlloc;

#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

#[test]
fn the_library_leaves_no_dek_behind() {
    let found = vault_memory::run();
    println!("{found:?}");
    assert!(found.held.0 >= 16 && found.held.1 >= 16, "the control: {found:?}");
    assert_eq!(found.dropped.0, 0, "a DEK as bytes: {found:?}");
    assert_eq!(found.closed, (0, 0), "a DEK as bytes or as text: {found:?}");
}
