//! Walks through a tree. The target has the same directories and names.

use std::fs::{self, DirBuilder, File, FileTimes, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use waxseal::Envelope;

use crate::arguments::Arguments;
use crate::entry::Entry;
use crate::pipe::at;
use crate::{Stop, bar, shown};

pub(crate) fn run(
    arguments: &Arguments,
    envelope: &Envelope,
    source: &Path,
    target: &Path,
) -> Result<(), Stop> {
    if arguments.aad.is_some() {
        return Err(Stop::Refused("--aad: in a tree each file has its path".to_owned()));
    }
    apart(source, target)?;
    let bar = bar(Some(len_of(source)));
    let mut walk = Walk { arguments, envelope, bar: &bar, done: 0, failed: 0 };
    let metadata = fs::metadata(source).map_err(|error| at(source, error))?;
    walk.directory(Path::new(""), source, target, &metadata);
    let failed = walk.failed;
    bar.finish_and_clear();
    if failed == 0 { Ok(()) } else { Err(Stop::Reported(failed)) }
}

/// Refuses a target within the source, which would be walked through, and the other way round.
fn apart(source: &Path, target: &Path) -> Result<(), Stop> {
    let source = fs::canonicalize(source).map_err(|error| at(source, error))?;
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    let there = fs::canonicalize(target).or_else(|_| {
        let parent = fs::canonicalize(parent.unwrap_or_else(|| Path::new(".")))?;
        Ok::<_, io::Error>(parent.join(target.file_name().unwrap_or_default()))
    });
    let there = there.map_err(|error| at(target, error))?;
    match there.starts_with(&source) || source.starts_with(&there) {
        true => Err(Stop::Refused("one of the two trees is in the other".to_owned())),
        false => Ok(()),
    }
}

/// The bytes of all files, as far as they can be told.
fn len_of(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let len = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => len_of(&entry.path()),
        Ok(kind) if kind.is_file() => entry.metadata().map_or(0, |of| of.len()),
        _ => 0,
    };
    entries.map(len).sum()
}

struct Walk<'w> {
    arguments: &'w Arguments,
    envelope: &'w Envelope,
    bar: &'w ProgressBar,
    /// The bytes of the source so far.
    done: u64,
    failed: usize,
}

impl Walk<'_> {
    fn say(&self, text: &str) {
        self.bar.suspend(|| eprintln!("files: {text}"));
    }

    fn fail(&mut self, stop: Stop) {
        self.failed += 1;
        if let Stop::Failed(problem) | Stop::Refused(problem) = stop {
            self.say(&problem);
        }
    }

    fn directory(&mut self, path: &Path, source: &Path, target: &Path, metadata: &Metadata) {
        let failed_before = self.failed;
        if let Err(stop) = make(target, metadata) {
            return self.fail(stop);
        }
        let entries =
            fs::read_dir(source).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let mut names: Vec<PathBuf> = match entries {
            Ok(entries) => entries.into_iter().map(|entry| entry.file_name().into()).collect(),
            Err(error) => return self.fail(at(source, error)),
        };
        names.sort();
        for name in names {
            self.entry(&path.join(&name), &source.join(&name), &target.join(&name));
        }
        // With all that belongs into it.
        if self.failed == failed_before
            && let Err(error) = finish(target, metadata)
        {
            self.fail(at(target, error));
        }
    }

    fn entry(&mut self, path: &Path, source: &Path, target: &Path) {
        let metadata = match fs::symlink_metadata(source) {
            Ok(metadata) => metadata,
            Err(error) => return self.fail(at(source, error)),
        };
        // No run leaves a directory.
        if is_left_over(path) && !metadata.is_dir() {
            return self.say(&format!("{}: of a killed run, not read", shown(source)));
        }
        if metadata.is_dir() {
            return self.directory(path, source, target, &metadata);
        }
        let Self { arguments, envelope, bar, .. } = *self;
        let entry = Entry { arguments, envelope, bar, path, source, target };
        if let Err(stop) = entry.run(&metadata, self.done) {
            self.fail(stop);
        }
        if metadata.is_file() {
            self.done += metadata.len();
        }
        self.bar.set_position(self.done);
    }
}

fn is_left_over(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().as_encoded_bytes();
    name.starts_with(b".waxseal-") && name.ends_with(b".tmp")
}

/// The mode of a directory while it is filled.
fn mode_while_filled(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o777 | 0o700
}

/// Makes a directory, or takes one that is there: a link to one would lead out of the tree.
fn make(target: &Path, metadata: &Metadata) -> Result<(), Stop> {
    let cannot = |error| at(target, error);
    match DirBuilder::new().mode(0o700).create(target) {
        Ok(()) => {
            let mode = Permissions::from_mode(mode_while_filled(metadata));
            fs::set_permissions(target, mode).map_err(cannot)?;
            // Its name has to last, too.
            let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
            let parent = File::open(parent.unwrap_or_else(|| Path::new("."))).map_err(cannot)?;
            parent.sync_all().map_err(cannot)
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            match fs::symlink_metadata(target).map_err(cannot)?.is_dir() {
                true => Ok(()),
                false => Err(Stop::Failed(format!("{} is not a directory", shown(target)))),
            }
        }
        Err(error) => Err(cannot(error)),
    }
}

/// Gives a directory that was made here the times and permissions of its source. In any case the
/// links that were made in it last.
fn finish(target: &Path, metadata: &Metadata) -> io::Result<()> {
    let directory = File::open(target)?;
    if directory.metadata()?.mode() & 0o777 != mode_while_filled(metadata) {
        return directory.sync_all();
    }
    let times = FileTimes::new().set_modified(metadata.modified()?);
    directory.set_times(times)?;
    directory.sync_all()?;
    fs::set_permissions(target, Permissions::from_mode(metadata.mode() & 0o777))
}
