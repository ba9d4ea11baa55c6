//! Puts a new file in place.
#![forbid(unsafe_code)]

use std::fs;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf, absolute, is_separator};

use tempfile::NamedTempFile;

use super::kept::Replaced;
use super::source::{Source, failed, is_regular, refused};
use super::{FileOptions, kept};
use crate::error::{Error, ErrorKind};

/// Temporary files are named `.waxseal-*.tmp`, whatever the target's name, which may already have
/// the maximum length.
const PREFIX: &str = ".waxseal-";
const SUFFIX: &str = ".tmp";

/// A path at which a file can be placed.
pub(super) struct Target<'p> {
    /// As the caller gave it, for errors.
    pub(super) path: &'p Path,
    /// Absolute: the process may change its directory before the file is complete.
    place: PathBuf,
    directory: PathBuf,
    overwrite: bool,
}

impl<'p> Target<'p> {
    /// Checks everything that can be known before writing.
    pub(super) fn check(
        path: &'p Path,
        source: &Source<'_>,
        overwrite: bool,
    ) -> Result<Self, Error> {
        // `new/` and `new/.` name a directory. As a `Path`, both end in `new`.
        let text = path.to_string_lossy();
        let is_directory = text.strip_suffix('.').unwrap_or(&text).ends_with(is_separator);
        if path.file_name().is_none() || is_directory {
            return Err(refused("does not name a file", path));
        }
        let place = absolute(path).map_err(|error| failed("could not be used", path, error))?;
        let directory = place.parent().unwrap_or(&place).to_owned();
        let target = Self { path, place, directory, overwrite };
        target.existing(source)?;
        Ok(target)
    }

    /// Returns the file that is there now, if it may be replaced.
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

    /// Creates the temporary file next to the target, for this user only.
    pub(super) fn begin(&self) -> Result<New<'_>, Error> {
        let cannot = |error| failed("is in a directory that could not be used", self.path, error);
        // Opened first: without it the rename is not durable.
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

    /// Gives it the attributes of the source, and puts it in place, durably.
    pub(super) fn commit(self, source: &Source<'_>, options: &FileOptions) -> Result<(), Error> {
        let Self { target, temporary, directory } = self;
        let cannot = |error| failed("could not be written", target.path, error);
        // Checked again: hours may have passed, and something else may be there.
        let replaced = target.existing(source)?;
        kept::keep(source, temporary.as_file(), replaced.as_ref(), options).map_err(|error| {
            failed("cannot take over the source's attributes", target.path, error)
        })?;
        temporary.as_file().sync_all().map_err(cannot)?;
        let placed = match target.overwrite {
            true => temporary.persist(&target.place),
            false => temporary.persist_noclobber(&target.place),
        };
        placed.map_err(|error| failed("could not be put in place", target.path, error.error))?;
        match directory.map_or(Ok(()), |directory| directory.sync_all()) {
            // Some file systems cannot do it.
            Err(error) if error.kind() != io::ErrorKind::InvalidInput => {
                Err(failed("is in place, but may be lost in a crash", target.path, error))
            }
            _ => Ok(()),
        }
    }
}
