//! The local provider: versions, and a key file that survives what happens to files.
#![cfg(unix)]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::PathBuf;
use waxseal_testing::support;

use support::{block_on, context, envelope};
use waxseal::kek::local::LocalKek;
use waxseal::kek::{Health, KekProvider};
use waxseal::{Aad, Envelope, ErrorKind};

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self) -> PathBuf {
        self.0.path().join("orders.kek")
    }

    fn kek(&self) -> LocalKek {
        LocalKek::open_or_create(self.file(), "orders").unwrap()
    }
}

#[test]
fn a_key_file_is_made_private_and_opened_again() {
    let dir = Dir::new();
    assert_eq!(LocalKek::open(dir.file()).unwrap_err().kind(), ErrorKind::Io, "open makes none");
    let kek = dir.kek();
    assert_eq!(fs::metadata(dir.file()).unwrap().mode() & 0o777, 0o600);
    assert_eq!(kek.id().as_str(), "local:orders");
    let sealed = block_on(envelope(&kek).encrypt(&context("alice"), Aad::empty(), b"x")).unwrap();
    for again in [LocalKek::open(dir.file()).unwrap(), dir.kek()] {
        assert_eq!(
            &*block_on(envelope(&again).decrypt(&context("alice"), Aad::empty(), &sealed)).unwrap(),
            b"x"
        );
    }
}

#[test]
fn a_key_file_that_others_may_touch_is_refused() {
    let dir = Dir::new();
    dir.kek();
    for mode in [0o640, 0o604, 0o620, 0o602, 0o601, 0o666, 0o777] {
        fs::set_permissions(dir.file(), fs::Permissions::from_mode(mode)).unwrap();
        let error = LocalKek::open(dir.file()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Io);
        assert!(error.to_string().contains(&format!("{mode:04o}")), "{error}");
    }
    for mode in [0o600, 0o400] {
        fs::set_permissions(dir.file(), fs::Permissions::from_mode(mode)).unwrap();
        LocalKek::open(dir.file()).unwrap();
    }
}

#[test]
fn what_is_no_key_file_is_an_error_and_is_left_as_it_is() {
    let dir = Dir::new();
    for content in [&b""[..], b"not a key file", &[0; 5000]] {
        fs::write(dir.file(), content).unwrap();
        fs::set_permissions(dir.file(), fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(
            LocalKek::open_or_create(dir.file(), "orders").unwrap_err().kind(),
            ErrorKind::Io
        );
        assert_eq!(fs::read(dir.file()).unwrap(), content);
    }
    fs::remove_file(dir.file()).unwrap();
    fs::create_dir(dir.file()).unwrap();
    assert_eq!(LocalKek::open(dir.file()).unwrap_err().kind(), ErrorKind::Io, "a directory");
    assert_eq!(
        LocalKek::open_or_create(dir.0.path().join("no/such/dir"), "orders").unwrap_err().kind(),
        ErrorKind::Io
    );
    assert_eq!(LocalKek::open("/").unwrap_err().kind(), ErrorKind::Io);
    symlink(dir.0.path().join("nowhere"), dir.0.path().join("link")).unwrap();
    assert_eq!(
        LocalKek::open(dir.0.path().join("link")).unwrap_err().kind(),
        ErrorKind::Io,
        "a dangling link"
    );
}

#[test]
fn every_changed_byte_of_a_key_file_is_noticed() {
    let dir = Dir::new();
    dir.kek().rotate().unwrap();
    let good = fs::read(dir.file()).unwrap();
    for at in 0..good.len() {
        let mut changed = good.clone();
        changed[at] ^= 0x10;
        fs::write(dir.file(), &changed).unwrap();
        assert_eq!(LocalKek::open(dir.file()).unwrap_err().kind(), ErrorKind::Io, "byte {at}");
    }
}

#[test]
fn a_name_is_part_of_the_key_and_a_key_file_has_one() {
    let dir = Dir::new();
    dir.kek();
    assert_eq!(
        LocalKek::open_or_create(dir.file(), "others").unwrap_err().kind(),
        ErrorKind::InvalidOption
    );
    for name in ["", &"n".repeat(507)] {
        assert_eq!(LocalKek::in_memory(name).unwrap_err().kind(), ErrorKind::InvalidOption);
    }
    assert_eq!(LocalKek::in_memory(&"n".repeat(506)).unwrap().id().as_str().len(), 512);

    // One secret under two names wraps under two keys.
    let [a, b] = ["a", "b"].map(|name| LocalKek::from_secrets(name, [(1, &[7; 32])]).unwrap());
    let wrapped = block_on(a.generate(&context("alice"))).unwrap().1;
    let relabelled = waxseal::WrappedDek::new(b.id().clone(), wrapped.wrapped()).unwrap();
    assert!(block_on(b.unwrap(&context("alice"), &relabelled)).is_err());
}

#[test]
fn secrets_from_elsewhere_have_distinct_versions() {
    assert!(LocalKek::from_secrets("a", []).is_err());
    assert!(LocalKek::from_secrets("a", [(1, &[1; 32]), (1, &[2; 32])]).is_err());
    let kek = LocalKek::from_secrets("a", [(9, &[1; 32]), (3, &[2; 32])]).unwrap();
    assert_eq!((kek.current_version(), kek.versions()), (9, vec![(3, true), (9, true)]));
}

#[test]
fn rotate_rewrap_retire_leaves_every_rewrapped_message_readable_and_no_other() {
    let dir = Dir::new();
    let kek = dir.kek();
    let alice = context("alice");
    let seal = |plaintext: &[u8]| {
        block_on(envelope(&kek).encrypt(&alice, Aad::empty(), plaintext)).unwrap()
    };
    let (kept, lost) = (seal(b"kept"), seal(b"lost"));
    assert_eq!(kek.rotate().unwrap(), 2);
    let service = envelope(&kek);
    assert!(service.needs_rewrap(&kept).unwrap());
    let rewrapped = block_on(service.rewrap(&alice, &kept)).unwrap();
    assert!(!service.needs_rewrap(&rewrapped).unwrap());
    assert_eq!(rewrapped.len(), kept.len());
    let payload = 52 + usize::from(u16::from_le_bytes([kept[6], kept[7]]));
    assert_eq!(
        (&rewrapped[..52], &rewrapped[payload..]),
        (&kept[..52], &kept[payload..]),
        "only the wrapped keys change"
    );

    assert_eq!(kek.retire(2).unwrap_err().kind(), ErrorKind::InvalidOption, "the current version");
    assert_eq!(kek.retire(3).unwrap_err().kind(), ErrorKind::InvalidOption, "no such version");
    kek.retire(1).unwrap();
    kek.retire(1).unwrap();
    for kek in [kek.clone(), LocalKek::open(dir.file()).unwrap()] {
        assert_eq!(kek.versions(), [(1, false), (2, true)]);
        let cold = envelope(&kek);
        assert_eq!(&*block_on(cold.decrypt(&alice, Aad::empty(), &rewrapped)).unwrap(), b"kept");
        assert_eq!(
            block_on(cold.decrypt(&alice, Aad::empty(), &lost)).unwrap_err().kind(),
            ErrorKind::Denied
        );
    }
}

#[test]
fn the_secret_of_a_retired_version_is_not_in_the_file() {
    let dir = Dir::new();
    let kek = dir.kek();
    // 4 + 2 + "orders" + 2 + 4 + 1 bytes precede the first secret.
    let secret = fs::read(dir.file()).unwrap()[19..51].to_vec();
    kek.rotate().unwrap();
    let holds = |bytes: &[u8]| bytes.windows(32).any(|window| window == secret);
    assert!(holds(&fs::read(dir.file()).unwrap()), "the control");
    kek.retire(1).unwrap();
    assert!(!holds(&fs::read(dir.file()).unwrap()));
    let names: Vec<_> =
        fs::read_dir(dir.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "no temporary file is left: {names:?}");
}

#[test]
fn another_process_rotation_and_retirement_are_noticed_without_a_restart() {
    let dir = Dir::new();
    let (ours, theirs) = (dir.kek(), dir.kek());
    let alice = context("alice");
    let old = block_on(envelope(&theirs).encrypt(&alice, Aad::empty(), b"old")).unwrap();
    theirs.rotate().unwrap();
    let new = block_on(envelope(&theirs).encrypt(&alice, Aad::empty(), b"new")).unwrap();
    assert_eq!(&*block_on(envelope(&ours).decrypt(&alice, Aad::empty(), &new)).unwrap(), b"new");
    assert_eq!(ours.current_version(), 2);
    theirs.retire(1).unwrap();
    assert_eq!(
        block_on(envelope(&ours).decrypt(&alice, Aad::empty(), &old)).unwrap_err().kind(),
        ErrorKind::Denied
    );
}

/// As a readiness probe does, every few seconds and right after a rotation.
#[test]
fn who_asks_for_the_health_hides_no_rotation_of_another_process() {
    let dir = Dir::new();
    let (ours, theirs) = (dir.kek(), dir.kek());
    let alice = context("alice");
    theirs.rotate().unwrap();
    let new = block_on(envelope(&theirs).encrypt(&alice, Aad::empty(), b"new")).unwrap();
    assert_eq!(block_on(ours.health()).unwrap(), Health::Ready);
    assert_eq!(&*block_on(envelope(&ours).decrypt(&alice, Aad::empty(), &new)).unwrap(), b"new");
    let (_, wrapped) = block_on(ours.generate(&alice)).unwrap();
    assert_eq!(ours.is_current(&wrapped), Some(true));
    assert_eq!(ours.current_version(), 2, "wraps by the new version");
}

/// What was read before a rotation may be taken over after it.
#[test]
fn who_reads_the_key_file_while_it_is_rotated_undoes_no_rotation() {
    let dir = Dir::new();
    let kek = dir.kek();
    for _ in 0..100 {
        let next = std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| kek.reload().unwrap());
            }
            kek.rotate().unwrap()
        });
        let (_, wrapped) = block_on(kek.generate(&context("alice"))).unwrap();
        assert_eq!(kek.key_version(&wrapped).as_deref(), Some(&*next.to_string()));
    }
}

/// Anything may have been put in its place.
#[test]
fn the_key_file_of_another_kek_degrades_and_is_not_used() {
    let dir = Dir::new();
    let kek = dir.kek();
    fs::remove_file(dir.file()).unwrap();
    let other = LocalKek::open_or_create(dir.file(), "others").unwrap();
    other.rotate().unwrap();
    for _ in 0..2 {
        assert!(matches!(block_on(kek.health()).unwrap(), Health::Degraded(_)));
        block_on(kek.generate(&context("alice"))).unwrap();
        assert_eq!(kek.current_version(), 1);
    }
}

#[test]
fn a_key_file_that_is_lost_or_spoiled_while_in_use_degrades_and_does_not_stop() {
    let dir = Dir::new();
    let kek = dir.kek();
    let alice = context("alice");
    let sealed = block_on(envelope(&kek).encrypt(&alice, Aad::empty(), b"x")).unwrap();
    for spoil in [
        |path: PathBuf| fs::write(path, b"spoiled").unwrap(),
        |path| fs::remove_file(path).unwrap(),
    ] {
        spoil(dir.file());
        assert_eq!(
            &*block_on(envelope(&kek).decrypt(&alice, Aad::empty(), &sealed)).unwrap(),
            b"x"
        );
        assert!(matches!(block_on(kek.health()).unwrap(), Health::Degraded(_)));
        assert_eq!(kek.rotate().unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(kek.reload().unwrap_err().kind(), ErrorKind::Io);
        assert_eq!(kek.current_version(), 1, "unchanged");
    }
}

#[test]
fn two_writers_at_once_lose_no_rotation() {
    let dir = Dir::new();
    dir.kek();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let kek = LocalKek::open(dir.file()).unwrap();
                for _ in 0..5 {
                    kek.rotate().unwrap();
                }
            });
        }
    });
    let versions = LocalKek::open(dir.file()).unwrap().versions();
    assert_eq!(versions, (1..=41).map(|version| (version, true)).collect::<Vec<_>>());
}

#[test]
fn many_first_starts_at_once_make_one_kek() {
    for _ in 0..10 {
        let dir = Dir::new();
        let alice = context("alice");
        let keks: Vec<LocalKek> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8).map(|_| scope.spawn(|| dir.kek())).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        let sealed = block_on(envelope(&keks[0]).encrypt(&alice, Aad::empty(), b"x")).unwrap();
        for kek in &keks {
            assert_eq!(
                &*block_on(envelope(kek).decrypt(&alice, Aad::empty(), &sealed)).unwrap(),
                b"x"
            );
        }
    }
}

#[test]
fn debug_of_everything_that_holds_a_kek_shows_no_secret() {
    let secret = [0xAB; 32];
    let kek = LocalKek::from_secrets("a", [(1, &secret)]).unwrap();
    let envelope = Envelope::builder().wrap_with(kek.clone()).build().unwrap();
    let texts = [
        format!("{kek:?}"),
        format!("{:#?}", Envelope::builder().wrap_with(kek)),
        format!("{envelope:?}"),
        format!("{:?}", block_on(envelope.encryptor(&context("alice"))).unwrap()),
    ];
    for text in texts {
        assert!(!text.contains("171") && !text.to_lowercase().contains("abab"), "{text}");
        assert!(text.contains("local:a") || text.contains("dek_id"), "{text}");
    }
}
