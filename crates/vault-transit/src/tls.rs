//! Trusted certificates and the client's own: certificates and keys from files, which are read
//! again when they change.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use reqwest::{Certificate, Identity};
use zeroize::Zeroizing;

use waxseal::kek::toolkit::{FileContent, read_file};
use waxseal::{Error, ErrorKind};

/// The source of the CA certificates, which replace the system's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Roots {
    File(PathBuf),
    /// Every file in it.
    Directory(PathBuf),
    /// PEM text.
    Text(String),
}

/// The client's certificate chain and private key, in PEM.
pub(crate) enum Client {
    Files(PathBuf, PathBuf),
    Texts(Zeroizing<String>, Zeroizing<String>),
}

/// Where it comes from.
#[derive(Default)]
pub(crate) struct TlsSources {
    pub(crate) roots: Option<Roots>,
    pub(crate) client: Option<Client>,
}

/// The content of the files.
#[derive(Clone, Default)]
pub(crate) struct TlsMaterial {
    /// Used instead of the system's root certificates, if set.
    pub(crate) roots: Option<Vec<Certificate>>,
    pub(crate) identity: Option<Identity>,
}

/// What distinguishes one state of the files from another, without reading them.
#[derive(Clone, PartialEq, Eq, Default)]
pub(crate) struct Signature(Vec<(PathBuf, Option<FileState>)>);

/// The time of the last change, the length, and the file's identity.
type FileState = (SystemTime, u64, u64);

/// The maximum size of a certificate, key or bundle.
const MAX_FILE: usize = 8 * 1024 * 1024;

impl TlsSources {
    pub(crate) fn has_files(&self) -> bool {
        matches!(self.roots, Some(Roots::File(_) | Roots::Directory(_)))
            || matches!(self.client, Some(Client::Files(..)))
    }

    pub(crate) fn signature(&self) -> Signature {
        let mut paths = Vec::new();
        match &self.roots {
            Some(Roots::File(path)) => paths.push(path.clone()),
            Some(Roots::Directory(path)) => paths.extend(files_in(path).unwrap_or_default()),
            Some(Roots::Text(_)) | None => {}
        }
        if let Some(Client::Files(certificate, key)) = &self.client {
            paths.extend([certificate.clone(), key.clone()]);
        }
        let state = |path: &Path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len(), file_number(&metadata)))
        };
        Signature(paths.into_iter().map(|path| (path.clone(), state(&path))).collect())
    }

    pub(crate) fn read(&self) -> Result<TlsMaterial, Error> {
        Ok(TlsMaterial {
            roots: self.roots.as_ref().map(read_roots).transpose()?,
            identity: self.client.as_ref().map(read_identity).transpose()?,
        })
    }
}

#[cfg(unix)]
fn file_number(metadata: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn file_number(_: &std::fs::Metadata) -> u64 {
    0
}

fn read_roots(roots: &Roots) -> Result<Vec<Certificate>, Error> {
    let certificates = match roots {
        Roots::File(path) => bundle(&read(path)?, &path.display())?,
        Roots::Text(pem) => bundle(pem.as_bytes(), &"the text")?,
        Roots::Directory(path) => {
            let files = files_in(path).map_err(|error| unreadable("ca_directory", path, error))?;
            let mut certificates = Vec::new();
            for file in files {
                certificates.extend(bundle(&read(&file)?, &file.display())?);
            }
            if certificates.is_empty() {
                return Err(invalid(format!("ca_directory: {} holds no file", path.display())));
            }
            certificates
        }
    };
    Ok(certificates)
}

fn bundle(pem: &[u8], whose: &dyn std::fmt::Display) -> Result<Vec<Certificate>, Error> {
    match Certificate::from_pem_bundle(pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(invalid(format!("ca_file: {whose} holds no PEM certificate"))),
    }
}

/// Returns the files of a directory tree, in order. Links are followed. Hidden names, in which
/// Kubernetes keeps the targets of its links, are skipped.
fn files_in(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut rest = vec![(directory.to_owned(), 0)];
    while let Some((directory, depth)) = rest.pop() {
        for entry in std::fs::read_dir(directory)? {
            let path = entry?.path();
            let hidden =
                path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if hidden {
                continue;
            }
            if !path.is_dir() {
                files.push(path);
            } else if depth < MAX_DEPTH {
                rest.push((path, depth + 1));
            }
        }
    }
    files.sort();
    Ok(files)
}

const MAX_DEPTH: usize = 8;

fn read_identity(client: &Client) -> Result<Identity, Error> {
    match client {
        Client::Files(certificate, key) => {
            let whose = format!("{} and {}", certificate.display(), key.display());
            identity(&read(certificate)?, &read(key)?, &whose)
        }
        Client::Texts(certificate, key) => {
            identity(certificate.as_bytes(), key.as_bytes(), "the texts")
        }
    }
}

fn identity(certificate: &[u8], key: &[u8], whose: &str) -> Result<Identity, Error> {
    let mut both = Zeroizing::new(Vec::with_capacity(certificate.len() + 1 + key.len()));
    both.extend_from_slice(certificate);
    both.push(b'\n');
    both.extend_from_slice(key);
    Identity::from_pem(&both).map_err(|_| {
        invalid(format!("client_certificate: {whose} hold no PEM certificate and key"))
    })
}

fn read(path: &Path) -> Result<FileContent, Error> {
    read_file(path, MAX_FILE).map_err(|error| match error.kind() {
        std::io::ErrorKind::FileTooLarge => invalid(format!(
            "ca_file or client_certificate: {} is larger than 8 MiB",
            path.display()
        )),
        _ => unreadable("ca_file or client_certificate", path, error),
    })
}

fn unreadable(option: &str, path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorKind::Io, format!("{option}: {} cannot be read", path.display()))
        .with_source(error)
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidOption, detail)
}
