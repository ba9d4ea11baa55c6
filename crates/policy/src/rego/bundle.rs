//! Reads a bundle of OPA: a gzip-compressed tar archive, which may be signed.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::io::{self, Read};

use flate2::read::MultiGzDecoder;
use tar::{Archive, EntryType};
use waxseal::Error;

use super::files::{FileIn, MAX_BYTES, MAX_FILES, SIGNATURES, bad};

/// The requirement on a bundle's signature.
#[derive(Clone, Debug)]
pub(super) enum Signed {
    /// There must be none. A publisher who signs a bundle expects that the signature is verified.
    Not,
    /// It is ignored.
    Unverified,
    /// It must be present, and made by one of these keys.
    #[cfg(feature = "signatures")]
    By(std::sync::Arc<[super::signature::BundleKey]>),
}

/// Returns the files of a bundle.
pub(super) fn read(name: &str, bytes: &[u8], signed: &Signed) -> Result<Vec<FileIn>, Error> {
    let files = unpack(name, bytes)?;
    match signed {
        Signed::Not if files.iter().any(|file| file.path == SIGNATURES) => {
            let what =
                "is signed: name the key with signed_bundle, or take it as unverified_bundle";
            Err(bad(name, what))
        }
        Signed::Not | Signed::Unverified => Ok(files),
        #[cfg(feature = "signatures")]
        Signed::By(keys) => super::signature::verify(name, &files, keys).map(|()| files),
    }
}

fn unpack(name: &str, bytes: &[u8]) -> Result<Vec<FileIn>, Error> {
    let broken = |error: io::Error| bad(name, "is not a complete .tar.gz").with_source(error);
    // Unpacking is bounded, whatever the archive says about itself.
    let unpacked = MultiGzDecoder::new(bytes).take(MAX_BYTES + 1);
    let mut archive = Archive::new(unpacked);
    let (mut files, mut paths) = (Vec::new(), BTreeSet::new());
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        match entry.header().entry_type() {
            EntryType::Regular | EntryType::Continuous => {}
            EntryType::Directory | EntryType::XGlobalHeader => continue,
            _ => return Err(bad(name, "has an entry that is neither a file nor a directory")),
        }
        let path = entry.path_bytes();
        let path = std::str::from_utf8(&path).map_err(|_| bad(name, "a path is not UTF-8"))?;
        let path = path.trim_start_matches("./").trim_start_matches('/').to_owned();
        if path.split('/').any(|part| part == "..") {
            return Err(bad(name, "a path leads out of the bundle"));
        }
        if !paths.insert(path.clone()) {
            return Err(bad(name, &format!("{path:?} is there twice")));
        }
        if files.len() == MAX_FILES {
            return Err(bad(name, &format!("more than {MAX_FILES} files")));
        }
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).map_err(broken)?;
        if u64::try_from(bytes.len()).ok() != Some(entry.size()) {
            return Err(bad(name, "is cut off, or larger than is read"));
        }
        files.push(FileIn { path, bytes });
    }
    let mut rest = archive.into_inner();
    // A checksum at the very end is checked only when everything was read.
    io::copy(&mut rest, &mut io::sink()).map_err(broken)?;
    if rest.limit() == 0 {
        return Err(bad(name, &format!("more than {MAX_BYTES} bytes")));
    }
    if files.is_empty() {
        return Err(bad(name, "has no file"));
    }
    Ok(files)
}
