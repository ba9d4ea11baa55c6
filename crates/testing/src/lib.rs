//! Servers, stand-ins and tools of waxseal's tests.
//!
//! Without features: what the tests of the library itself share. With the feature `servers`: a real
//! OpenBao, stand-ins for AWS KMS with external key stores, Google Cloud KMS and Azure, an XKS
//! proxy, and what breaks the connections to them. With `postgres`: a real PostgreSQL. With `opa`:
//! the engine of Open Policy Agent. With `pkcs11`: SoftHSM2 and kryoptic. What tests the stand-ins
//! is in `tests/` of this crate.
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::new_without_default)]

#[cfg(feature = "servers")]
pub mod azure;
#[cfg(any(feature = "opa", feature = "postgres", feature = "servers"))]
pub mod certificates;
#[cfg(feature = "servers")]
pub mod crossings;
pub mod faults;
#[cfg(target_os = "linux")]
pub mod forked;
pub mod outputs;
pub mod ports;
pub mod python;
pub mod scan;
pub mod seaweedfs;
pub mod stand_in;
pub mod support;

pub mod fault_proxy;
#[cfg(feature = "servers")]
pub mod google;
#[cfg(feature = "servers")]
pub mod kms_front;
#[cfg(feature = "servers")]
pub mod middlebox;
#[cfg(feature = "opa")]
pub mod opa;
#[cfg(feature = "servers")]
pub mod openbao;
#[cfg(feature = "pkcs11")]
pub mod pkcs11;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "servers")]
pub mod server_child;
#[cfg(feature = "servers")]
mod server_thread;
#[cfg(feature = "servers")]
pub mod sigv4;
#[cfg(feature = "servers")]
pub mod vault_front;
#[cfg(feature = "servers")]
pub mod xks_path;
#[cfg(feature = "servers")]
pub mod xks_proxy;
#[cfg(feature = "servers")]
pub mod xks_script;

/// The top of the repository.
pub fn top() -> &'static std::path::Path {
    let testing = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    testing.ancestors().nth(2).unwrap()
}

/// The workspace's `target` directory, where servers are installed once.
pub fn target_directory() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target")
}

/// Waits until every thread of a process that was sent SIGSTOP stands still: until then it may
/// answer.
pub fn wait_until_stopped(process: u32) {
    let threads = format!("/proc/{process}/task");
    let stands_still = |thread: std::io::Result<std::fs::DirEntry>| {
        let stat = std::fs::read_to_string(thread.unwrap().path().join("stat"));
        // The state comes behind the name, which is in brackets. A thread that ended has none.
        stat.map_or(true, |stat| {
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        })
    };
    while !std::fs::read_dir(&threads).unwrap().all(stands_still) {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}
