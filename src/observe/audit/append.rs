//! A sink that appends to a file, for the copies of checkpoints.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::chain::MAX_LINE;
use super::file::sync_directory;
use super::record::Record;
use super::sink::{AuditSink, private};
use super::unusable;
use crate::error::Error;

/// Appends the lines to a file, and waits until they are on disk. Use it for the checkpoints, on a
/// volume or a machine that the service cannot rewrite.
///
/// A file whose last line is incomplete, after a crash or on a full disk, is left unchanged. So is
/// a file for which a sync failed, since its content is unknown then. The lines continue in a file
/// of the same name with `.2` appended, then `.3` and so on. The checkpoint that failed is written
/// again there with the next one. [`Verifier::witnesses`](super::Verifier::witnesses) reads all of
/// these files.
#[derive(Debug)]
pub struct AppendTo {
    path: PathBuf,
    /// The number of the last existing file.
    number: u32,
    /// `None` after a failure.
    file: Option<File>,
}

impl AppendTo {
    /// Opens the file, or creates it.
    ///
    /// # Errors
    /// [`ErrorKind::Io`](crate::ErrorKind::Io).
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let failed = failed_at(path);
        let number = last_number(path).map_err(&failed)?.max(1);
        let mut options = OpenOptions::new();
        private(options.append(true).read(true).create(true));
        let mut file = options.open(name(path, number)).map_err(&failed)?;
        let is_whole = ends_with_a_line(&mut file).map_err(&failed)?;
        Ok(Self { path: path.to_owned(), number, file: Some(file).filter(|_| is_whole) })
    }

    /// Continues in the next file, which is durable before anything is written to it.
    fn begin_next(&self) -> io::Result<(u32, File)> {
        let number = self.number.checked_add(1).ok_or(io::ErrorKind::StorageFull)?;
        let path = name(&self.path, number);
        let mut options = OpenOptions::new();
        let file = private(options.append(true).create_new(true)).open(&path)?;
        let synced = file.sync_all().and_then(|()| match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => sync_directory(parent),
            _ => sync_directory(Path::new(".")),
        });
        match synced {
            Ok(()) => Ok((number, file)),
            Err(error) => {
                let _ = fs::remove_file(path);
                Err(error)
            }
        }
    }
}

impl AuditSink for AppendTo {
    fn write(&mut self, _record: &Record, line: &str) -> io::Result<()> {
        let (number, mut file) = match self.file.take() {
            Some(file) => (self.number, file),
            None => self.begin_next()?,
        };
        let written = file.write_all(line.as_bytes()).and_then(|()| file.sync_data());
        match written {
            Ok(()) => (self.number, self.file) = (number, Some(file)),
            // Nothing else is in it yet.
            Err(_) if number != self.number => drop(fs::remove_file(name(&self.path, number))),
            Err(_) => {}
        }
        written
    }
}

fn failed_at(path: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let path = path.to_owned();
    move |error| unusable(path.display(), error)
}

fn name(path: &Path, number: u32) -> PathBuf {
    if number < 2 {
        return path.to_owned();
    }
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

/// Returns the number of consecutive files.
fn last_number(path: &Path) -> io::Result<u32> {
    let mut number = 0_u32;
    loop {
        let next = number.checked_add(1).ok_or(io::ErrorKind::InvalidInput)?;
        match fs::symlink_metadata(name(path, next)) {
            Ok(_) => number = next,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(number),
            Err(error) => return Err(error),
        }
    }
}

fn ends_with_a_line(file: &mut File) -> io::Result<bool> {
    // A pipe or a terminal has no end.
    if !file.metadata()?.is_file() || file.seek(SeekFrom::End(0))? == 0 {
        return Ok(true);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last == *b"\n")
}

/// Reads the lines of all files, without their ends, each with its position. An incomplete last
/// line is left out. If `read` refuses a line and another file follows, the rest of that file is
/// left out too, since the disk failed there.
pub(super) fn read_lines(
    path: &Path,
    mut read: impl FnMut(&str) -> Result<(), Error>,
) -> Result<(), Error> {
    let failed = failed_at(path);
    let last = last_number(path).map_err(&failed)?.max(1);
    for number in 1..=last {
        let path = name(path, number);
        let file = File::open(&path).map_err(&failed)?;
        let (mut file, mut bytes, mut line) = (BufReader::new(file), Vec::new(), 0_u64);
        loop {
            bytes.clear();
            let most = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
            file.by_ref().take(most).read_until(b'\n', &mut bytes).map_err(&failed)?;
            if bytes.pop_if(|last| *last == b'\n').is_none() && bytes.len() < MAX_LINE {
                break;
            }
            line = line.saturating_add(1);
            let text = std::str::from_utf8(&bytes).unwrap_or_default();
            match read(text) {
                Ok(()) => {}
                Err(_) if number < last => break,
                Err(error) => {
                    let detail = format!("{}, line {line}: {error}", path.display());
                    return Err(Error::new(error.kind(), detail));
                }
            }
        }
    }
    Ok(())
}
