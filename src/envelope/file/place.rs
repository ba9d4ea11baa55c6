//! Where a file comes from, and how the new one takes its place.
#![forbid(unsafe_code)]

use std::fs;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf, absolute, is_separator};

use tempfile::NamedTempFile;

use super::kept::Replaced;
use super::{FileOptions, kept};
use crate::error::{Error, ErrorKind};

/// Temporary files are named `.waxseal-*.tmp`, whatever the target's name: it may be as long as a
/// name can be.
const PREFIX: &str = ".waxseal-";
const SUFFIX: &str = ".tmp";

/// A regular file that is open for reading.
pub(super) struct Source<'p> {
    pub(super) path: &'p Path,
    pub(super) file: File,
    /// As it was when it was opened.
    pub(super) metadata: Metadata,
}

impl<'p> Source<'p> {
    pub(super) fn open(path: &'p Path) -> Result<Self, Error> {
        let cannot = |error| failed("could not be opened", path, error);
        // Before it is opened, which may do something to a device.
        is_regular(path, &fs::metadata(path).map_err(cannot)?)?;
        let mut options = fs::OpenOptions::new();
        options.read(true);
        // A pipe that has taken its place must not make this wait.
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::custom_flags(
            &mut options,
            rustix::fs::OFlags::NONBLOCK.bits().cast_signed(),
        );
        let file = options.open(path).map_err(cannot)?;
        let metadata = file.metadata().map_err(cannot)?;
        is_regular(path, &metadata)?;
        Ok(Self { path, file, metadata })
    }

    pub(super) fn len(&self) -> u64 {
        self.metadata.len()
    }

    /// Refuses what was read if the file is known to have changed meanwhile. A change that keeps the
    /// length, within one tick of the file system's clock, is not seen.
    pub(super) fn check_unchanged(&self, read: u64) -> Result<(), Error> {
        let cannot = |error| failed("could not be read", self.path, error);
        let now = self.file.metadata().map_err(cannot)?;
        let times = (now.modified().map_err(cannot)?, self.metadata.modified().map_err(cannot)?);
        match read == self.len() && now.len() == self.len() && times.0 == times.1 {
            true => Ok(()),
            false => Err(refused("changed while it was read", self.path)),
        }
    }
}

fn is_regular(path: &Path, metadata: &Metadata) -> Result<(), Error> {
    match metadata.file_type() {
        kind if kind.is_file() => Ok(()),
        kind if kind.is_dir() => Err(refused("is a directory", path)),
        kind if kind.is_symlink() => Err(refused("is a symbolic link", path)),
        _ => Err(refused("is no regular file: pipes and devices take streams", path)),
    }
}

/// A path at which a file can be placed.
pub(super) struct Target<'p> {
    /// As it was given, for errors.
    pub(super) path: &'p Path,
    /// From the root: the process may change its directory before the file is whole.
    place: PathBuf,
    directory: PathBuf,
    overwrite: bool,
}

impl<'p> Target<'p> {
    /// Checks what can be known before anything is written.
    pub(super) fn check(
        path: &'p Path,
        source: &Source<'_>,
        overwrite: bool,
    ) -> Result<Self, Error> {
        let is_directory = path.to_string_lossy().ends_with(is_separator);
        if path.file_name().is_none() || is_directory {
            return Err(refused("does not name a file", path));
        }
        let place = absolute(path).map_err(|error| failed("could not be used", path, error))?;
        let directory = place.parent().unwrap_or(&place).to_owned();
        let target = Self { path, place, directory, overwrite };
        target.existing(source)?;
        Ok(target)
    }

    /// Returns what is there now, and may be replaced.
    fn existing(&self, source: &Source<'_>) -> Result<Option<Replaced>, Error> {
        let path = self.path;
        let existing = match fs::symlink_metadata(&self.place) {
            Ok(existing) => existing,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed("could not be used", path, error)),
        };
        if is_same(&existing, source, &self.place) {
            let detail = format!("source and target are one file: {}", path.display());
            return Err(Error::new(ErrorKind::InvalidOption, detail));
        }
        is_regular(path, &existing)?;
        match self.overwrite {
            true => Ok(Some(Replaced::new(&self.place, existing))),
            false => Err(failed("exists", path, io::ErrorKind::AlreadyExists.into())),
        }
    }

    /// Makes the temporary file beside the target, for this user only.
    pub(super) fn begin(&self) -> Result<New<'_>, Error> {
        let cannot = |error| failed("is in a directory that could not be used", self.path, error);
        // First: without it the rename is not durable.
        let directory = open_directory(&self.directory).map_err(cannot)?;
        let mut builder = tempfile::Builder::new();
        builder.prefix(PREFIX).suffix(SUFFIX).rand_bytes(16);
        let temporary = builder.tempfile_in(&self.directory).map_err(cannot)?;
        Ok(New { target: self, temporary, directory })
    }
}

#[cfg(unix)]
fn is_same(existing: &Metadata, source: &Source<'_>, _: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let place = |of: &Metadata| (of.dev(), of.ino());
    place(existing) == place(&source.metadata)
}

#[cfg(not(unix))]
fn is_same(_: &Metadata, source: &Source<'_>, target: &Path) -> bool {
    let place = |path: &Path| fs::canonicalize(path).ok();
    place(source.path).is_some_and(|source| place(target) == Some(source))
}

/// Only Unix can sync a directory.
fn open_directory(path: &Path) -> io::Result<Option<File>> {
    if cfg!(unix) { File::open(path).map(Some) } else { Ok(None) }
}

/// A file that is being written. It is removed on drop.
pub(super) struct New<'t> {
    target: &'t Target<'t>,
    temporary: NamedTempFile,
    directory: Option<File>,
}

impl New<'_> {
    pub(super) fn file(&self) -> &File {
        self.temporary.as_file()
    }

    /// Gives it what the source has, and puts it at its place, durably.
    pub(super) fn commit(self, source: &Source<'_>, options: &FileOptions) -> Result<(), Error> {
        let Self { target, temporary, directory } = self;
        let cannot = |error| failed("could not be written", target.path, error);
        // Once more: hours may have passed, and something else may be there.
        let replaced = target.existing(source)?;
        kept::keep(source, temporary.as_file(), replaced.as_ref(), options)
            .map_err(|error| failed("cannot have what the source has", target.path, error))?;
        temporary.as_file().sync_all().map_err(cannot)?;
        let placed = match target.overwrite {
            true => temporary.persist(&target.place),
            false => temporary.persist_noclobber(&target.place),
        };
        placed.map_err(|error| failed("could not be put in place", target.path, error.error))?;
        match directory.map_or(Ok(()), |directory| directory.sync_all()) {
            // Some file systems cannot.
            Err(error) if error.kind() != io::ErrorKind::InvalidInput => {
                Err(failed("is in place, and may be gone after a crash", target.path, error))
            }
            _ => Ok(()),
        }
    }
}

pub(super) fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    refused(what, path).with_source(error)
}

fn refused(what: &str, path: &Path) -> Error {
    Error::new(ErrorKind::Io, format!("{} {what}", path.display()))
}
