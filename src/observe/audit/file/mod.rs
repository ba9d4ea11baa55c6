//! The files of a trail: one directory, one writer, one file after the other.
//!
//! It knows lines and their lengths, but not their content.
#![forbid(unsafe_code)]

pub(super) mod names;
mod recovery;
pub(super) mod regular;

use std::fs::{self, File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::sink::private;
use super::unusable;
use crate::clock::Moment;
use crate::error::{Error, ErrorKind};

const DEFAULT_MAX_BYTES: u64 = 64 << 20;
const MIN_MAX_BYTES: u64 = 4096;
const DEFAULT_MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// When the trail waits for its writes to be on disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
#[non_exhaustive]
pub enum SyncPolicy {
    /// After each group of records written together. A crash of the machine loses what happened
    /// since, usually milliseconds. The default.
    #[default]
    Records,
    /// With each checkpoint, with each new file and at the end.
    Checkpoints,
    /// Never. The operating system decides. Even then, a crash of the process alone loses nothing.
    Never,
}

/// The directory of a trail, and how its files are written.
///
/// The files are `trail-00000001.jsonl` and so on. Only one process may write: the start of a
/// second one fails. Old files are never deleted. Move them away starting with the oldest, and
/// [tell the verifier](super::Verifier::first_file).
#[derive(Clone, Debug)]
#[must_use]
pub struct TrailDirectory {
    path: PathBuf,
    max_bytes: u64,
    max_age: Duration,
    sync: SyncPolicy,
}

impl TrailDirectory {
    /// Sets the path of the directory. If missing, it is created for its owner only. Its parent
    /// must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        let (max_bytes, max_age) = (DEFAULT_MAX_BYTES, DEFAULT_MAX_AGE);
        Self { path: path.into(), max_bytes, max_age, sync: SyncPolicy::default() }
    }

    /// Sets the file size in bytes at which a new file begins. At least 4,096, by default 64 MiB.
    pub fn max_bytes(mut self, max_bytes: u64) -> Self {
        self.max_bytes = max_bytes;
        self
    }

    /// Sets the file age at which a new file begins, with the next record. By default 24 hours.
    pub fn max_age(mut self, max_age: Duration) -> Self {
        self.max_age = max_age;
        self
    }

    /// Sets when the trail waits for the disk. By default [`SyncPolicy::Records`].
    pub fn sync(mut self, sync: SyncPolicy) -> Self {
        self.sync = sync;
        self
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        let refused = |detail: String| Err(Error::new(ErrorKind::InvalidOption, detail));
        if self.max_bytes < MIN_MAX_BYTES {
            return refused(format!("max_bytes of a trail is at least {MIN_MAX_BYTES}"));
        }
        if self.max_age.is_zero() {
            return refused("max_age of a trail is more than 0".to_owned());
        }
        Ok(())
    }
}

/// The file that is being written, and the lock on the directory.
#[derive(Debug)]
pub(super) struct TrailFiles {
    options: TrailDirectory,
    /// Locked as long as it is open.
    lock: File,
    /// The highest number in use.
    number: u64,
    open: Option<OpenFile>,
    /// What the start moved aside.
    moved_aside: Vec<MovedAside>,
}

/// What a start moved aside because the trail does not continue after it: its nature and its new
/// place, as text.
#[derive(Debug)]
pub(super) enum MovedAside {
    IncompleteLine(String),
    UnsignedFile(String),
}

#[derive(Debug)]
struct OpenFile {
    file: File,
    number: u64,
    /// Its length in complete lines.
    len: u64,
    /// A write failed, so it may end with an incomplete line.
    is_torn: bool,
    /// A sync failed. The system may have dropped what it could not write, and reports that only
    /// once: a later sync that succeeds proves nothing. So nothing more is written to it.
    is_doubtful: bool,
    /// When it was begun, in nanoseconds of the clock since boot, which nobody can set.
    begun: i64,
}

/// What happened to the file since the last line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FileState {
    AsItWas,
    /// It is full, or old, or there is none yet.
    Over,
    /// It was removed, renamed or replaced.
    Gone,
    /// Somebody else changed its length.
    Changed,
    /// It is unknown how much of it is on disk.
    Doubtful,
}

impl TrailFiles {
    /// Locks the directory and finds the end of the existing files.
    pub(super) fn open(options: TrailDirectory, now: Moment) -> Result<Self, Error> {
        let failed = failed_in(&options.path);
        make_directory(&options.path).map_err(&failed)?;
        let lock = lock(&options.path).map_err(&failed)?;
        let found = recovery::recover(&options.path).map_err(&failed)?;
        let mut files = Self { options, lock, number: 0, open: None, moved_aside: Vec::new() };
        if let Some(found) = found {
            files.number = found.number;
            files.moved_aside.extend(found.moved_aside);
            let path = files.path();
            let file = regular::open(OpenOptions::new().append(true), &path).map_err(&failed)?;
            let age = begun(&file).map_or(0, |begun| now.wall_nanos().saturating_sub(begun));
            let begun = now.boot_nanos().saturating_sub(age.max(0));
            files.open = Some(OpenFile {
                file,
                number: found.number,
                len: found.len,
                is_torn: false,
                is_doubtful: false,
                begun,
            });
        }
        Ok(files)
    }

    /// What the start moved aside, once.
    pub(super) fn take_moved_aside(&mut self) -> Vec<MovedAside> {
        std::mem::take(&mut self.moved_aside)
    }

    /// Moves the only file aside, so that the next file is the first of another trail.
    pub(super) fn set_aside(&mut self) -> Result<(), Error> {
        let (from, name) = (self.path(), names::file_name(self.number()));
        let moved = recovery::set_aside(&self.options.path, &from, self.number());
        let to = moved.map_err(failed_in(&self.options.path))?;
        let what = format!(
            "{name} had one record and no checkpoint. It is now {to}, and a new trail begins"
        );
        self.moved_aside.push(MovedAside::UnsignedFile(what));
        (self.open, self.number) = (None, 0);
        Ok(())
    }

    pub(super) fn directory(&self) -> &Path {
        &self.options.path
    }

    fn path(&self) -> PathBuf {
        names::path_of(&self.options.path, self.number())
    }

    /// The number of the file that is being written.
    pub(super) fn number(&self) -> u64 {
        self.open.as_ref().map_or(self.number, |open| open.number)
    }

    /// Whether the newest file is still empty.
    pub(super) fn is_empty(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.len == 0)
    }

    /// Checks the file, and cuts off the remains of a failed write.
    pub(super) fn look(&mut self, now: Moment) -> io::Result<FileState> {
        let path = self.path();
        let Some(open) = &mut self.open else { return Ok(FileState::Over) };
        if open.is_doubtful {
            return Ok(FileState::Doubtful);
        }
        if open.is_torn {
            open.file.set_len(open.len)?;
            open.is_torn = false;
        }
        let there = match fs::symlink_metadata(&path) {
            Ok(there) => there,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(FileState::Gone),
            Err(error) => return Err(error),
        };
        if !is_same(&there, &open.file.metadata()?) {
            return Ok(FileState::Gone);
        }
        if there.len() != open.len {
            return Ok(FileState::Changed);
        }
        let age = u128::try_from(now.boot_nanos().saturating_sub(open.begun)).unwrap_or(0);
        let is_over = open.len >= self.options.max_bytes || age >= self.options.max_age.as_nanos();
        Ok(if is_over && open.len > 0 { FileState::Over } else { FileState::AsItWas })
    }

    /// Creates the next file and continues in it.
    pub(super) fn next(&mut self, now: Moment) -> io::Result<()> {
        self.lock_again_if_removed()?;
        let number = self.number.saturating_add(1);
        let path = names::path_of(&self.options.path, number);
        let mut options = OpenOptions::new();
        let made = private(options.append(true).create_new(true)).open(&path);
        if made.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::AlreadyExists) {
            // It is not part of this trail, and the verifier reports it. The next try takes the
            // next number.
            self.number = number;
        }
        let file = made?;
        if self.options.sync != SyncPolicy::Never
            && let Err(error) = file.sync_all().and_then(|()| sync_directory(&self.options.path))
        {
            // The next try creates it again, since its name may not be on disk.
            let _ = fs::remove_file(path);
            return Err(error);
        }
        // Everything has been synced, except for a file that somebody else changed.
        if let Some(before) = self.open.take_if(|open| !open.is_doubtful)
            && self.options.sync != SyncPolicy::Never
        {
            let _ = before.file.sync_data();
        }
        let (is_torn, is_doubtful, begun) = (false, false, now.boot_nanos());
        self.number = number;
        self.open = Some(OpenFile { file, number, len: 0, is_torn, is_doubtful, begun });
        Ok(())
    }

    /// Another process may write to the directory once its lock was removed.
    fn lock_again_if_removed(&mut self) -> io::Result<()> {
        let there = fs::symlink_metadata(self.options.path.join(names::LOCK));
        let ours = self.lock.metadata()?;
        if !there.is_ok_and(|there| is_same(&there, &ours)) {
            self.lock = lock(&self.options.path)?;
        }
        Ok(())
    }

    /// Appends a line. After an error, none of it is in the file once [`look`](Self::look)
    /// succeeds.
    pub(super) fn append(&mut self, line: &str) -> io::Result<()> {
        let Some(open) = &mut self.open else {
            return Err(io::Error::other("there is no file"));
        };
        if let Err(error) = open.file.write_all(line.as_bytes()) {
            open.is_torn = true;
            return Err(error);
        }
        open.len = open.len.saturating_add(u64::try_from(line.len()).unwrap_or(u64::MAX));
        Ok(())
    }

    /// Syncs if the policy requires it. `is_checkpoint`: a checkpoint was just written. Returns
    /// whether everything written is on disk now.
    pub(super) fn sync(&mut self, is_checkpoint: bool) -> io::Result<bool> {
        let waits = match self.options.sync {
            SyncPolicy::Records => true,
            SyncPolicy::Checkpoints => is_checkpoint,
            SyncPolicy::Never => false,
        };
        match &mut self.open {
            Some(open) if waits => {
                let synced = open.file.sync_data();
                open.is_doubtful |= synced.is_err();
                synced.map(|()| true)
            }
            _ => Ok(false),
        }
    }

    /// Whether writes have to be synced at some time.
    pub(super) fn is_synced(&self) -> bool {
        self.options.sync != SyncPolicy::Never
    }

    pub(super) fn is_doubtful(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.is_doubtful)
    }
}

fn failed_in(directory: &Path) -> impl Fn(io::Error) -> Error + use<> {
    let directory = directory.to_owned();
    move |error| unusable(format_args!("audit trail in {}", directory.display()), error)
}

fn make_directory(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    match builder.create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

/// A child that another thread just forked also holds the lock, until it runs its program.
const LOCK_WITHIN: Duration = Duration::from_secs(1);
const LOCK_AGAIN: Duration = Duration::from_millis(10);

fn lock(directory: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    private(options.write(true).create(true).truncate(false));
    let lock = regular::open(&mut options, &directory.join(names::LOCK))?;
    let began = Instant::now();
    let mut locked = lock.try_lock();
    while matches!(locked, Err(TryLockError::WouldBlock)) && began.elapsed() < LOCK_WITHIN {
        std::thread::sleep(LOCK_AGAIN);
        locked = lock.try_lock();
    }
    match locked {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => {
            Err(io::Error::new(io::ErrorKind::ResourceBusy, "another process or trail writes it"))
        }
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Returns when the file was created, if the system knows. Otherwise the age counts from the start.
fn begun(file: &File) -> Option<i64> {
    let made = file.metadata().ok()?.created().ok()?;
    let since = made.duration_since(std::time::SystemTime::UNIX_EPOCH).ok()?;
    i64::try_from(since.as_nanos()).ok()
}

#[cfg(unix)]
fn is_same(a: &Metadata, b: &Metadata) -> bool {
    use std::os::unix::fs::MetadataExt;
    (a.dev(), a.ino()) == (b.dev(), b.ino())
}

/// On other systems the length has to do.
#[cfg(not(unix))]
fn is_same(_: &Metadata, _: &Metadata) -> bool {
    true
}

/// A new name in a directory is durable once the directory is synced.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(path)?.sync_all() } else { Ok(()) }
}
