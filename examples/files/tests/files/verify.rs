//! What is done already, read to its end.

use std::fs::{self, File};
use std::path::PathBuf;

use super::{DONE, FAILED, Place, plaintext, tree};

#[test]
fn verify_reads_all_of_what_is_sealed_already() {
    let place = Place::new();
    fs::create_dir(place.path("plain")).unwrap();
    for name in ["a", "b", "c"] {
        fs::write(place.path("plain").join(name), plaintext(300_000)).unwrap();
    }
    assert_eq!(place.run("encrypt", &["plain", "sealed"]).0, DONE);
    assert_eq!(place.run("encrypt", &["--verify", "plain", "sealed"]), (DONE, String::new()));
    // A byte in the middle of a sealed file, and one in the middle of a source whose time is as
    // before.
    let of = |path: PathBuf| fs::metadata(path).unwrap().modified().unwrap();
    for path in [place.path("sealed/a"), place.path("plain/b")] {
        let (time, mut bytes) = (of(path.clone()), fs::read(&path).unwrap());
        bytes[150_000] ^= 1;
        fs::write(&path, bytes).unwrap();
        let times = fs::FileTimes::new().set_modified(time);
        File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
    }
    let before = tree(&place.path("sealed"));
    assert_eq!(place.run("encrypt", &["plain", "sealed"]), (DONE, String::new()));
    let (code, text) = place.run("encrypt", &["--verify", "plain", "sealed"]);
    assert_eq!(code, FAILED);
    assert!(text.contains("sealed/a exists and does not open"), "{text}");
    assert!(text.contains("sealed/b exists and has another content than its source"), "{text}");
    assert!(text.contains("2 could not be done"), "{text}");
    assert_eq!(tree(&place.path("sealed")), before);
    let (code, _) = place.run("encrypt", &["--verify", "--overwrite", "plain", "sealed"]);
    assert_eq!(code, DONE);
    assert_eq!(place.run("encrypt", &["--verify", "plain", "sealed"]), (DONE, String::new()));
    assert_eq!(place.run("decrypt", &["sealed", "back"]), (DONE, String::new()));
    assert_eq!(fs::read(place.path("back/b")).unwrap(), fs::read(place.path("plain/b")).unwrap());
}
