//! The source file, and the errors about files.
#![forbid(unsafe_code)]

use std::fs;
use std::fs::{File, Metadata};
use std::io;
use std::path::Path;

use crate::error::{Error, ErrorKind};

/// A regular file that is open for reading.
pub(super) struct Source<'p> {
    pub(super) path: &'p Path,
    pub(super) file: File,
    /// The metadata at the time of opening.
    pub(super) metadata: Metadata,
}

impl<'p> Source<'p> {
    pub(super) fn open(path: &'p Path) -> Result<Self, Error> {
        let cannot = |error| failed("could not be opened", path, error);
        // Checked before opening, which may affect a device.
        is_regular(path, &fs::metadata(path).map_err(cannot)?)?;
        let mut options = fs::OpenOptions::new();
        options.read(true);
        // A pipe that has taken its place must not block this.
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

    /// Refuses the content if the file is known to have changed while it was read. A change that
    /// keeps the length, within one tick of the file system's clock, is not seen.
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

pub(super) fn is_regular(path: &Path, metadata: &Metadata) -> Result<(), Error> {
    match metadata.file_type() {
        kind if kind.is_file() => Ok(()),
        kind if kind.is_dir() => Err(refused("is a directory", path)),
        kind if kind.is_symlink() => Err(refused("is a symbolic link", path)),
        _ => Err(refused("is not a regular file: use streams for pipes and devices", path)),
    }
}

pub(super) fn failed(what: &str, path: &Path, error: io::Error) -> Error {
    refused(what, path).with_source(error)
}

pub(super) fn refused(what: &str, path: &Path) -> Error {
    Error::new(ErrorKind::Io, format!("{} {what}", path.display()))
}
