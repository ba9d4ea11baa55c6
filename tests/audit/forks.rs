//! What a fork leaves of the keys of a trail: nothing.

use waxseal::audit::{
    AuditKey, AuditTrail, CheckpointKey, CheckpointVerifier, Disclosure, TrailDirectory,
};
use waxseal::{Dek, ErrorKind};

use crate::ground::{Place, builder};

/// Runs it in the child of a fork. It may not allocate more than it has to, nor print.
#[allow(unsafe_code)]
fn in_a_child(holds: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child runs `holds` alone and ends without a destructor of the parent's.
    match unsafe { libc::fork() } {
        0 => {
            let held = std::panic::catch_unwind(std::panic::AssertUnwindSafe(holds));
            // SAFETY: it only ends the child.
            unsafe { libc::_exit(if matches!(held, Ok(true)) { 0 } else { 3 }) }
        }
        child => {
            let mut status = 0;
            // SAFETY: it is our child, and `status` is there for the answer.
            unsafe { libc::waitpid(child, &raw mut status, 0) };
            libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
        }
    }
}

/// All keys of the parent read as zeros, so anybody could make the hashes and the MACs.
#[test]
fn in_the_child_of_a_fork_a_key_of_the_parent_hashes_and_accepts_nothing() {
    let (key, dek) = (AuditKey::random().unwrap(), Dek::random().unwrap());
    let expired = |key: &AuditKey| {
        key.hash_value("tenant", "acme").is_err_and(|error| error.kind() == ErrorKind::Expired)
    };
    assert!(key.hash_value("tenant", "acme").is_ok());
    assert!(in_a_child(|| expired(&key)));
    assert!(in_a_child(|| expired(&AuditKey::from_dek(&dek))));
    assert!(in_a_child(|| AuditKey::random().unwrap().hash_value("tenant", "acme").is_ok()));
}

#[test]
fn in_the_child_of_a_fork_no_trail_starts_with_a_key_of_the_parent() {
    let place = Place::new();
    let refused = |builder: waxseal::audit::AuditTrailBuilder, option: &str| {
        let error = builder.start().err();
        error.is_some_and(|error| {
            error.kind() == ErrorKind::InvalidOption && error.to_string().contains(option)
        })
    };
    let key = || AuditKey::random().unwrap();
    let hashing = || builder(&place).other_context_values(Disclosure::Hashed);
    let of_parent = hashing().context_key(key());
    assert!(in_a_child(|| refused(of_parent, "context_key")));
    let of_parent = builder(&place).checkpoint_key(CheckpointKey::mac(key()));
    assert!(in_a_child(|| refused(of_parent, "checkpoint_key")));
    let of_parent = builder(&place)
        .checkpoint_key(CheckpointKey::ed25519(&[7; 32]))
        .earlier_checkpoint_key(CheckpointVerifier::mac(key()));
    assert!(in_a_child(|| refused(of_parent, "earlier_checkpoint_key")));
    assert!(!place.path.exists());
    // One of its own works there.
    assert!(in_a_child(|| {
        let directory = TrailDirectory::new(&place.path);
        let own = AuditTrail::builder()
            .directory(directory)
            .other_context_values(Disclosure::Hashed)
            .context_key(key());
        own.start().is_ok_and(|trail| trail.close())
    }));
}
