//! The key file on disk: who may read it, how it is replaced, and how two writers stay out of each
//! other's way.
#![forbid(unsafe_code)]

use std::fs::{File, Metadata};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use zeroize::Zeroizing;

use super::format::{KeyFile, MAX_KEY_FILE};
use crate::error::{Error, ErrorKind};

/// A key file's path.
pub(super) struct FileOnDisk {
    path: PathBuf,
    directory: PathBuf,
}

/// What a key file looks like from outside. It changes whenever the file is replaced, so it belongs
/// to the content that was read with it, and is kept with what was made of that.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    modified: Option<SystemTime>,
    len: u64,
    inode: u64,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(metadata);
        #[cfg(not(unix))]
        let inode = 0;
        Self { modified: metadata.modified().ok(), len: metadata.len(), inode }
    }
}

impl FileOnDisk {
    pub(super) fn new(path: &Path) -> Result<Self, Error> {
        let directory = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        if path.file_name().is_none() {
            return Err(Error::new(
                ErrorKind::Io,
                format!("{} is not the path of a file", path.display()),
            ));
        }
        Ok(Self { path: path.to_owned(), directory })
    }

    pub(super) fn read(&self) -> Result<(KeyFile, Stamp), Error> {
        self.read_if_there()?
            .ok_or_else(|| self.error("is missing", io::ErrorKind::NotFound.into()))
    }

    pub(super) fn read_or_create(
        &self,
        first: impl FnOnce() -> Result<KeyFile, Error>,
    ) -> Result<(KeyFile, Stamp), Error> {
        if let Some(found) = self.read_if_there()? {
            return Ok(found);
        }
        let _lock = self.lock()?;
        if let Some(found) = self.read_if_there()? {
            return Ok(found);
        }
        let file = first()?;
        let stamp = self.replace(&file)?;
        Ok((file, stamp))
    }

    /// Reads, edits and replaces the file, while no other process does.
    pub(super) fn update<T>(
        &self,
        edit: impl FnOnce(&mut KeyFile) -> Result<T, Error>,
    ) -> Result<((KeyFile, Stamp), T), Error> {
        let _lock = self.lock()?;
        let (mut file, _) = self.read()?;
        let result = edit(&mut file)?;
        let stamp = self.replace(&file)?;
        Ok(((file, stamp), result))
    }

    /// Whether there is a file whose metadata differ from `seen`.
    pub(super) fn differs_from(&self, seen: Option<Stamp>) -> bool {
        let now = std::fs::metadata(&self.path).ok().map(|metadata| Stamp::of(&metadata));
        now.is_some() && now != seen
    }

    fn read_if_there(&self) -> Result<Option<(KeyFile, Stamp)>, Error> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.error("cannot be opened", error)),
        };
        // The open file is checked, and not whatever the path names by then.
        let metadata = file.metadata().map_err(|error| self.error("cannot be looked at", error))?;
        if !metadata.is_file() {
            return Err(self.error("is not a regular file", io::ErrorKind::InvalidInput.into()));
        }
        self.check_private(&metadata)?;
        // Room for the whole file at once: a growing buffer would leave secrets in the blocks it
        // outgrew.
        let len = usize::try_from(metadata.len().min(MAX_KEY_FILE)).unwrap_or(0);
        let mut bytes = Zeroizing::new(Vec::with_capacity(len + 64));
        file.take(MAX_KEY_FILE + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| self.error("cannot be read", error))?;
        let file = KeyFile::read(&bytes).ok_or_else(|| {
            self.error("is not a key file, or was changed", io::ErrorKind::InvalidData.into())
        })?;
        Ok(Some((file, Stamp::of(&metadata))))
    }

    #[cfg(unix)]
    fn check_private(&self, metadata: &Metadata) -> Result<(), Error> {
        let mode = std::os::unix::fs::MetadataExt::mode(metadata) & 0o777;
        if mode & 0o077 != 0 {
            let detail = format!(
                "{} has mode {mode:04o}; others than its owner must have no access (0600)",
                self.path.display()
            );
            return Err(Error::new(ErrorKind::Io, detail));
        }
        Ok(())
    }

    #[cfg(not(unix))]
    fn check_private(&self, _metadata: &Metadata) -> Result<(), Error> {
        Ok(())
    }

    /// Writes a second file, then renames it over the first. A reader sees the old content or the
    /// new, and so does the next start after a power failure.
    fn replace(&self, file: &KeyFile) -> Result<Stamp, Error> {
        let bytes = file
            .to_bytes()
            .ok_or_else(|| Error::new(ErrorKind::TooLarge, "the key file has too many versions"))?;
        let failed = |error| self.error("cannot be written", error);
        // Mode 0600 from the start.
        let mut new = tempfile::Builder::new()
            .prefix(".waxseal-")
            .tempfile_in(&self.directory)
            .map_err(failed)?;
        new.write_all(&bytes).and_then(|()| new.as_file().sync_all()).map_err(failed)?;
        let file = new.persist(&self.path).map_err(|error| failed(error.error))?;
        File::open(&self.directory).and_then(|directory| directory.sync_all()).map_err(failed)?;
        Ok(Stamp::of(&file.metadata().map_err(failed)?))
    }

    /// Waits for the lock. It is a separate file, since every writer replaces the key file itself.
    fn lock(&self) -> Result<File, Error> {
        let mut path = self.path.clone().into_os_string();
        path.push(".lock");
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options.open(&path).map_err(|error| self.error("cannot be locked", error))?;
        file.lock().map_err(|error| self.error("cannot be locked", error))?;
        Ok(file)
    }

    fn error(&self, what: &str, source: io::Error) -> Error {
        Error::new(ErrorKind::Io, format!("{} {what}", self.path.display())).with_source(source)
    }
}
