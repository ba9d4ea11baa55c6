//! Finds where the lines of a directory end, after a clean end or a crash.
//!
//! A line without its end was being written when the process or the machine stopped. Its bytes are
//! moved to a separate file, so that nothing is lost, and the trail continues after the last
//! complete line.
#![forbid(unsafe_code)]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use super::super::sink::private;
use super::{MovedAside, names, regular};

/// How much is read at once in search of the last line.
const BLOCK: u64 = 8192;

/// The end of an existing trail.
pub(super) struct Found {
    /// The last existing file.
    pub(super) number: u64,
    /// Its length in complete lines.
    pub(super) len: u64,
    /// The incomplete line, if there was one.
    pub(super) moved_aside: Option<MovedAside>,
}

/// Finds the end of the trail in `directory`. `None` if there is no file. Moves an incomplete last
/// line aside.
pub(super) fn recover(directory: &Path) -> io::Result<Option<Found>> {
    let numbers = names::numbers(directory)?;
    let Some(&number) = numbers.last() else { return Ok(None) };
    let (len, moved_aside) = complete(directory, number)?;
    Ok(Some(Found { number, len, moved_aside }))
}

/// Cuts off what follows the last complete line, after copying it. Returns the remaining length.
fn complete(directory: &Path, number: u64) -> io::Result<(u64, Option<MovedAside>)> {
    let path = names::path_of(directory, number);
    let mut file = regular::open(OpenOptions::new().read(true).write(true), &path)?;
    let len = file.metadata()?.len();
    let whole = end_of_last_line(&mut file, len)?;
    if whole == len {
        return Ok((len, None));
    }
    let (name, mut kept) = new_partial(directory, number, whole)?;
    file.seek(SeekFrom::Start(whole))?;
    io::copy(&mut file, &mut kept)?;
    kept.sync_all()?;
    file.set_len(whole)?;
    file.sync_all()?;
    let bytes = len.saturating_sub(whole);
    let file = names::file_name(number);
    let what = format!("{bytes} bytes of an incomplete line of {file} are now in {name}");
    Ok((whole, Some(MovedAside::IncompleteLine(what))))
}

/// Renames a whole file to a name that no trail file has. Returns the new name.
pub(super) fn set_aside(directory: &Path, from: &Path, number: u64) -> io::Result<String> {
    let mut count = 1_u32;
    loop {
        let name = names::unsigned_name(number, count);
        let to = directory.join(&name);
        match fs::symlink_metadata(&to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::rename(from, to)?;
                return Ok(name);
            }
            // One from an earlier start is kept.
            Ok(_) => count = count.checked_add(1).ok_or(io::ErrorKind::AlreadyExists)?,
            Err(error) => return Err(error),
        }
    }
}

/// Creates a file for an incomplete line. One from an earlier crash at the same place is kept.
fn new_partial(directory: &Path, number: u64, at: u64) -> io::Result<(String, File)> {
    let mut count = 1_u32;
    loop {
        let name = names::partial_name(number, at, count);
        let mut options = OpenOptions::new();
        match private(options.write(true).create_new(true)).open(directory.join(&name)) {
            Ok(file) => return Ok((name, file)),
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Err(error) => count = count.checked_add(1).ok_or(error)?,
        }
    }
}

/// Returns the offset after the last line feed before `end`, or 0.
fn end_of_last_line(file: &mut File, end: u64) -> io::Result<u64> {
    let mut end = end;
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        read_range(file, start, end, &mut block)?;
        if let Some(at) = block.iter().rposition(|byte| *byte == b'\n') {
            return Ok(start.saturating_add(u64::try_from(at).unwrap_or(0)).saturating_add(1));
        }
        end = start;
    }
    Ok(0)
}

fn read_range(file: &mut File, start: u64, end: u64, bytes: &mut Vec<u8>) -> io::Result<()> {
    bytes.clear();
    file.seek(SeekFrom::Start(start))?;
    file.take(end.saturating_sub(start)).read_to_end(bytes)?;
    Ok(())
}
