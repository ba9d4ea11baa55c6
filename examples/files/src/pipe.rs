//! What comes from standard input or goes to standard output, and files that are made of it.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use pollster::block_on;
use waxseal::{Aad, Envelope, StreamHead, StreamOptions};

use crate::arguments::{Arguments, Command, Place};
use crate::{Stop, bar, shown};

pub(crate) fn run(arguments: &Arguments, envelope: &Envelope) -> Result<(), Stop> {
    if arguments.attributes {
        return Err(Stop::Refused("--attributes: a pipe has none".to_owned()));
    }
    let (from, len): (File, _) = match &arguments.source {
        Place::Pipe => (owned(&io::stdin())?, None),
        Place::Path(path) => {
            let file = File::open(path).map_err(|error| at(path, error))?;
            let len = file.metadata().ok().filter(|of| of.is_file()).map(|of| of.len());
            (file, len)
        }
    };
    let bar = bar(len);
    let from = bar.wrap_read(from);
    let result = match &arguments.target {
        Place::Pipe => {
            let what = match arguments.command {
                Command::Decrypt => "plaintext",
                _ => "a sealed stream",
            };
            if io::stdout().is_terminal() && !arguments.terminal {
                let problem = format!("{what} is not written to a terminal without --terminal");
                return Err(Stop::Refused(problem));
            }
            let to = owned(&io::stdout())?;
            let incomplete = |stop| match stop {
                Stop::Failed(problem) => {
                    Stop::Failed(format!("{problem}\nfiles: what was written is not the whole"))
                }
                stop => stop,
            };
            through(arguments, envelope, from, to, &bar).map_err(incomplete)
        }
        Place::Path(target) => {
            if target.symlink_metadata().is_ok() && !arguments.overwrite {
                let problem = format!("{} exists: see --overwrite", shown(target));
                return Err(Stop::Refused(problem));
            }
            place(target, arguments.overwrite, |file| {
                through(arguments, envelope, from, file, &bar)
            })
        }
    };
    bar.finish_and_clear();
    result
}

/// Not by way of `Stdin` and `Stdout`, which copy and look for lines.
fn owned(of: &impl AsFd) -> io::Result<File> {
    Ok(File::from(of.as_fd().try_clone_to_owned()?))
}

pub(crate) fn at(path: &Path, error: impl std::error::Error) -> Stop {
    Stop::Failed(format!("{}: {}", shown(path), crate::with_causes(&error)))
}

fn through(
    arguments: &Arguments,
    envelope: &Envelope,
    mut from: impl Read + Send,
    to: impl Write + Send,
    bar: &ProgressBar,
) -> Result<(), Stop> {
    let (context, threads) = (&arguments.context, arguments.threads);
    let aad = arguments.aad.as_deref().unwrap_or_default();
    let aad = Aad::from(aad.as_encoded_bytes());
    let done = match arguments.command {
        Command::Decrypt => {
            let head = StreamHead::read(&mut from)?;
            let decryptor = block_on(envelope.stream_decryptor(context, aad, &head))?;
            decryptor.decrypt(threads, from, to)
        }
        _ => {
            let options = StreamOptions::default();
            let encryptor = block_on(envelope.stream_encryptor(context, aad, options))?;
            encryptor.encrypt(threads, from, to)
        }
    };
    bar.tick();
    Ok(done.map(drop)?)
}

/// Makes a file that is at `target` whole, or not at all, as the library does.
pub(crate) fn place(
    target: &Path,
    overwrite: bool,
    write: impl FnOnce(&File) -> Result<(), Stop>,
) -> Result<(), Stop> {
    let parent = target.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = parent.map_or_else(|| PathBuf::from("."), Path::to_owned);
    // The rename would replace a device, too.
    if target.symlink_metadata().is_ok_and(|there| !there.is_file()) {
        return Err(Stop::Failed(format!("{} is not a regular file", shown(target))));
    }
    let mut builder = tempfile::Builder::new();
    builder.prefix(".waxseal-").suffix(".tmp").rand_bytes(16);
    let new = builder.tempfile_in(&directory).map_err(|error| at(target, error))?;
    write(new.as_file())?;
    new.as_file().sync_all().map_err(|error| at(target, error))?;
    let placed = match overwrite {
        true => new.persist(target),
        false => new.persist_noclobber(target),
    };
    placed.map_err(|error| at(target, error.error))?;
    let synced = File::open(&directory).and_then(|directory| directory.sync_all());
    synced.map_err(|error| at(target, error))
}
