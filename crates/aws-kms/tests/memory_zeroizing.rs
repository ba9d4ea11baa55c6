//! DEKs that went through the AWS SDK's HTTP client, searched for in memory, with an allocator that
//! wipes what is freed, as SECURITY.md recommends.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

#[path = "support/kms_memory.rs"]
mod kms_memory;

use std::alloc::System;
use waxseal_testing::kms_front::child;

use zeroizing_alloc::ZeroAlloc;

#[global_allocator]
static ALLOCATOR: ZeroAlloc<System> = ZeroAlloc(System);

#[test]
fn the_front_as_a_process_of_its_own() {
    child::child_s_part();
}

#[test]
fn no_dek_is_left_behind() {
    let found = kms_memory::run("the_front_as_a_process_of_its_own");
    println!("{found:?}");
    assert!(found.held.0 >= 6 && found.held.1 >= 6, "the control: {found:?}");
    assert_eq!(found.closed, (0, 0), "a DEK as bytes or as text: {found:?}");
}
