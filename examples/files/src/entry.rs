//! One file or symbolic link: whether it is done already, and doing it.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, BufRead, BufReader, ErrorKind as IoErrorKind, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use indicatif::ProgressBar;
use pollster::block_on;
use waxseal::{Aad, Envelope, Error, ErrorKind, FileOptions, SeekableStream};

use crate::arguments::{Arguments, Command};
use crate::pipe::{at, place};
use crate::{Stop, bar, shown};

/// No link is longer.
const LONGEST_LINK: u64 = 4096;

/// What is authenticated of an entry, in addition to its bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    File,
    Link,
}

impl Kind {
    /// The kind and the path in the tree: a file that was moved or exchanged is refused.
    fn aad(self, path: &Path) -> Vec<u8> {
        let kind = if self == Self::File { "file" } else { "link" };
        [kind.as_bytes(), &[0], path.as_os_str().as_bytes()].concat()
    }
}

/// What is at a target.
enum Found {
    Nothing,
    /// What this run would put there.
    Done,
    /// Something else, and what.
    Other(String),
}

/// Does one file that is given by its own paths.
pub(crate) fn whole_file(
    arguments: &Arguments,
    envelope: &Envelope,
    source: &Path,
    target: &Path,
) -> Result<(), Stop> {
    if target.symlink_metadata().is_ok() && !arguments.overwrite {
        return Err(Stop::Refused(format!("{} exists: see --overwrite", shown(target))));
    }
    let bar = bar(fs::metadata(source).ok().map(|of| of.len()));
    let aad = arguments.aad.as_deref().unwrap_or_default().as_encoded_bytes();
    let entry = Entry { arguments, envelope, bar: &bar, path: Path::new(""), source, target };
    let result = match arguments.command {
        Command::Decrypt => entry.open_file(aad, 0),
        _ => entry.seal_file(aad, 0),
    };
    bar.finish_and_clear();
    result
}

/// An entry of a tree.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'e> {
    pub(crate) arguments: &'e Arguments,
    pub(crate) envelope: &'e Envelope,
    pub(crate) bar: &'e ProgressBar,
    /// Its path in the tree.
    pub(crate) path: &'e Path,
    pub(crate) source: &'e Path,
    pub(crate) target: &'e Path,
}

impl Entry<'_> {
    /// Does it, unless it is done. `before` is where the progress bar stands.
    pub(crate) fn run(self, metadata: &Metadata, before: u64) -> Result<(), Stop> {
        match (self.arguments.command, metadata.file_type()) {
            (Command::Encrypt, kind) if kind.is_file() => {
                let aad = Kind::File.aad(self.path);
                match self.sealed_file(&aad, metadata)? {
                    Found::Done => Ok(()),
                    found => self.unless_other(found)?.seal_file(&aad, before),
                }
            }
            (Command::Encrypt, kind) if kind.is_symlink() => self.seal_link(),
            (Command::Decrypt, kind) if kind.is_file() => self.open(before),
            _ => Err(self.failed("is neither a file nor a directory, and is left out")),
        }
    }

    fn failed(self, problem: impl std::fmt::Display) -> Stop {
        Stop::Failed(format!("{}: {problem}", shown(self.source)))
    }

    /// Something else may be replaced only if that was said.
    fn unless_other(self, found: Found) -> Result<Self, Stop> {
        match found {
            Found::Other(what) if !self.arguments.overwrite => {
                let target = shown(self.target);
                Err(Stop::Failed(format!("{target} exists and {what}: see --overwrite")))
            }
            _ => Ok(self),
        }
    }

    fn options(self, before: u64) -> FileOptions {
        let bar = self.bar.clone();
        let mut options = FileOptions::default()
            .threads(self.arguments.threads)
            .on_progress(move |bytes| bar.set_position(before + bytes));
        if self.arguments.overwrite {
            options = options.overwrite();
        }
        if self.arguments.attributes {
            options = options.extended_attributes();
        }
        options
    }

    fn seal_file(self, aad: &[u8], before: u64) -> Result<(), Stop> {
        let (context, aad) = (&self.arguments.context, Aad::from(aad));
        let options = self.options(before);
        block_on(self.envelope.encrypt_file(context, aad, self.source, self.target, &options))?;
        Ok(())
    }

    fn open_file(self, aad: &[u8], before: u64) -> Result<(), Stop> {
        let (context, aad) = (&self.arguments.context, Aad::from(aad));
        let options = self.options(before);
        block_on(self.envelope.decrypt_file(context, aad, self.source, self.target, &options))?;
        Ok(())
    }

    /// Opens a sealed file: its head is of this context and AAD, and its last chunk is there.
    fn stream(self, path: &Path, aad: &[u8]) -> Result<SeekableStream<Arc<File>>, Error> {
        let cannot = |error: io::Error| Error::new(ErrorKind::Io, "").with_source(error);
        let file = Arc::new(File::open(path).map_err(cannot)?);
        block_on(self.envelope.open_stream(&self.arguments.context, Aad::from(aad), file))
    }

    /// What is at the target of a file that is to be encrypted.
    fn sealed_file(self, aad: &[u8], source: &Metadata) -> Result<Found, Stop> {
        let Some(target) = self.target_metadata()? else { return Ok(Found::Nothing) };
        if !target.is_file() {
            return Ok(Found::Other("is not a file".to_owned()));
        }
        let is_new = |len| len == source.len() && target.modified().ok() == source.modified().ok();
        match self.stream(self.target, aad) {
            Ok(stream) if is_new(stream.len()) => match self.arguments.verify {
                true => self.compared(stream),
                false => Ok(Found::Done),
            },
            Ok(_) => Ok(Found::Other("has another version of the file".to_owned())),
            Err(error) => self.is_other(error),
        }
    }

    /// Compares all of a sealed file with its source.
    fn compared(self, sealed: SeekableStream<Arc<File>>) -> Result<Found, Stop> {
        let source = File::open(self.source).map_err(|error| at(self.source, error))?;
        match is_same(sealed, BufReader::with_capacity(1 << 16, source)) {
            Ok(true) => Ok(Found::Done),
            Ok(false) => Ok(Found::Other("has another content than its source".to_owned())),
            Err(error) => match Error::of_io(&error) {
                Some(own) => self.is_other(own.clone()),
                None => Err(at(self.target, error)),
            },
        }
    }

    /// The target is there, and this is why it does not open.
    fn is_other(self, error: Error) -> Result<Found, Stop> {
        match error.kind() {
            ErrorKind::NotSealed
            | ErrorKind::Malformed
            | ErrorKind::Invalid
            | ErrorKind::UnknownKek
            | ErrorKind::UnsupportedVersion
            | ErrorKind::UnsupportedKind
            | ErrorKind::UnsupportedSuite
            | ErrorKind::UnsupportedChunkSize => {
                Ok(Found::Other(format!("does not open ({error})")))
            }
            _ => Err(at(self.target, error)),
        }
    }

    fn target_metadata(self) -> Result<Option<Metadata>, Stop> {
        match fs::symlink_metadata(self.target) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) if error.kind() == IoErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(self.target, error)),
        }
    }

    /// A link is a stream with the text of the link.
    fn seal_link(self) -> Result<(), Stop> {
        let text = fs::read_link(self.source).map_err(|error| self.failed(error))?;
        let aad = Kind::Link.aad(self.path);
        let found = match self.target_metadata()? {
            None => Found::Nothing,
            Some(of) if !of.is_file() => Found::Other("is not a file".to_owned()),
            Some(_) => match self.stream(self.target, &aad).map(|stream| text_of(&stream)) {
                Ok(Ok(sealed)) if sealed == text => Found::Done,
                Ok(_) => Found::Other("has another version of the link".to_owned()),
                Err(error) => self.is_other(error)?,
            },
        };
        if matches!(found, Found::Done) {
            return Ok(());
        }
        self.unless_other(found)?;
        place(self.target, self.arguments.overwrite, |file| {
            let (context, aad) = (&self.arguments.context, Aad::from(&aad[..]));
            let mut writer = block_on(self.envelope.encrypt_stream(context, aad, file))?;
            writer.write_all(text.as_os_str().as_bytes())?;
            Ok(writer.finish().map(drop)?)
        })
    }

    /// Decrypts a file of a sealed tree, which is a file or a link.
    fn open(self, before: u64) -> Result<(), Stop> {
        let aad = Kind::File.aad(self.path);
        let (kind, stream) = match self.stream(self.source, &aad) {
            Ok(stream) => (Kind::File, stream),
            Err(error) if error.kind() == ErrorKind::Invalid => {
                let link = self.stream(self.source, &Kind::Link.aad(self.path));
                (Kind::Link, link.map_err(|error| self.failed(crate::with_causes(&error)))?)
            }
            Err(error) => return Err(self.failed(crate::with_causes(&error))),
        };
        let found = match (kind, self.target_metadata()?) {
            (_, None) => Found::Nothing,
            (Kind::Link, Some(_)) => {
                let text = text_of(&stream).map_err(|error| self.failed(error))?;
                match fs::read_link(self.target) {
                    Ok(there) if there == text => Found::Done,
                    _ => Found::Other("is something else than this link".to_owned()),
                }
            }
            (Kind::File, Some(of)) if !of.is_file() => Found::Other("is not a file".to_owned()),
            (Kind::File, Some(of)) if of.len() != stream.len() => {
                Found::Other("has another content".to_owned())
            }
            (Kind::File, Some(_)) => {
                let there = File::open(self.target).map_err(|error| at(self.target, error))?;
                match is_same(stream, BufReader::with_capacity(1 << 16, there)) {
                    Ok(true) => Found::Done,
                    Ok(false) => Found::Other("has another content".to_owned()),
                    Err(error) => return Err(self.failed(error)),
                }
            }
        };
        if matches!(found, Found::Done) {
            return Ok(());
        }
        self.unless_other(found)?;
        match kind {
            Kind::File => self.open_file(&aad, before),
            Kind::Link => self.open_link(),
        }
    }

    fn open_link(self) -> Result<(), Stop> {
        let stream = self.stream(self.source, &Kind::Link.aad(self.path))?;
        let text = text_of(&stream).map_err(|error| self.failed(error))?;
        let may_replace = || -> Result<bool, Stop> {
            let is_replaced = |of: Metadata| of.is_file() || of.is_symlink();
            Ok(self.arguments.overwrite && self.target_metadata()?.is_none_or(is_replaced))
        };
        match symlink(&text, self.target) {
            Err(error) if error.kind() == IoErrorKind::AlreadyExists && may_replace()? => {
                // Beside it first, so that there is always one of the two.
                let mut builder = tempfile::Builder::new();
                builder.prefix(".waxseal-").suffix(".tmp").rand_bytes(16);
                let directory = self.target.parent().unwrap_or_else(|| Path::new("."));
                let new = builder.make_in(directory, |path| symlink(&text, path));
                let new = new.map_err(|error| at(self.target, error))?.into_temp_path();
                new.persist(self.target).map_err(|error| at(self.target, error.error))
            }
            result => result.map_err(|error| at(self.target, error)),
        }
    }
}

fn text_of(stream: &SeekableStream<Arc<File>>) -> io::Result<PathBuf> {
    if stream.len() > LONGEST_LINK {
        return Err(IoErrorKind::InvalidData.into());
    }
    let text = stream.read_range(0..stream.len())?;
    Ok(OsString::from_vec(text.to_vec()).into())
}

/// Whether both have the same bytes.
fn is_same(mut one: impl BufRead, mut other: impl BufRead) -> io::Result<bool> {
    loop {
        let (a, b) = (one.fill_buf()?, other.fill_buf()?);
        let both = a.len().min(b.len());
        if both == 0 || a.get(..both) != b.get(..both) {
            return Ok(a.is_empty() && b.is_empty());
        }
        one.consume(both);
        other.consume(both);
    }
}
