//! The command line.

use std::ffi::{OsStr, OsString};
use std::num::NonZero;
use std::path::PathBuf;

use waxseal::EncryptionContext;

pub(crate) const HELP: &str = "\
files: encrypts and decrypts files, trees of files and pipes

    files key FILE                              makes a key
    files encrypt --key FILE [OPTIONS] SOURCE TARGET
    files decrypt --key FILE [OPTIONS] SOURCE TARGET

SOURCE and TARGET are two files, two directories, or - for standard input and output.

    --key FILE            the key, made by `files key`
    --context NAME=VALUE  a pair of the encryption context. Repeat it for more. Not secret
    --aad TEXT            authenticated with a file or a pipe, and needed to decrypt it.
                          In a tree each file has its path in the tree: a sealed file
                          that was moved or exchanged is refused
    --overwrite           replaces targets that exist
    --terminal            writes to a terminal, which is refused otherwise
    --threads N           works on N chunks at once; by default 1
    --attributes          keeps extended attributes of the user. They are not encrypted
    --verify              reads sealed files that are there already, to the end, and compares
                          them with their sources

Names, lengths, times and permissions of files are not encrypted. Symbolic links are: a
sealed tree has a file in their place.

A run that was interrupted goes on when it is started again. What is done already is known
by its content, not by its name: a decrypted file by all of it; a sealed one by its head,
its last chunk, and the length and time of its source, or with --verify by all of it.
Files named .waxseal-*.tmp are what a killed run left. They are not read.

Exit codes: 0 all is done; 1 something failed, and standard error says what; 2 refused,
and nothing was done.";

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Command {
    Key,
    Encrypt,
    Decrypt,
}

#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Place {
    Path(PathBuf),
    /// Standard input or output.
    Pipe,
}

#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) command: Command,
    pub(crate) key: PathBuf,
    pub(crate) context: EncryptionContext,
    pub(crate) aad: Option<OsString>,
    pub(crate) overwrite: bool,
    pub(crate) terminal: bool,
    pub(crate) attributes: bool,
    pub(crate) verify: bool,
    pub(crate) threads: NonZero<usize>,
    pub(crate) source: Place,
    pub(crate) target: Place,
}

impl Arguments {
    /// Returns `None` if the help is asked for, and otherwise what is wrong.
    pub(crate) fn read(
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Option<Self>, String> {
        let mut arguments = arguments.into_iter();
        let Some(command) = arguments.next() else { return Ok(None) };
        let command = match command.to_str() {
            Some("key") => Command::Key,
            Some("encrypt") => Command::Encrypt,
            Some("decrypt") => Command::Decrypt,
            Some("--help" | "-h" | "help") => return Ok(None),
            _ => return Err(format!("{}: no such command", command.display())),
        };
        let (mut key, mut aad, mut pairs, mut places) = (None, None, Vec::new(), Vec::new());
        let (mut overwrite, mut terminal, mut attributes) = (false, false, false);
        let mut verify = false;
        let (mut threads, mut only_places) = (NonZero::<usize>::MIN, false);
        while let Some(argument) = arguments.next() {
            let mut value = || {
                let missing = || format!("{} needs a value", argument.display());
                arguments.next().ok_or_else(missing)
            };
            match argument.to_str() {
                Some("-") if !only_places => places.push(Place::Pipe),
                _ if only_places || !starts_with_dash(&argument) => {
                    places.push(Place::Path(argument.into()));
                }
                Some("--") => only_places = true,
                Some("--help" | "-h") => return Ok(None),
                Some("--key") => key = Some(PathBuf::from(value()?)),
                Some("--aad") => aad = Some(value()?),
                Some("--context") => pairs.push(pair(&value()?)?),
                Some("--overwrite") => overwrite = true,
                Some("--terminal") => terminal = true,
                Some("--attributes") => attributes = true,
                Some("--verify") => verify = true,
                Some("--threads") => threads = number(&value()?)?,
                _ => return Err(format!("{}: no such option", argument.display())),
            }
        }
        let mut places = places.into_iter();
        let (source, target) = match (command, places.next(), places.next()) {
            (Command::Key, Some(Place::Path(path)), None) if key.is_none() => {
                key = Some(path);
                (Place::Pipe, Place::Pipe)
            }
            (Command::Key, ..) => return Err("`key` takes one file".to_owned()),
            (_, Some(source), Some(target)) if places.next().is_none() => (source, target),
            _ => return Err("a source and a target are needed".to_owned()),
        };
        let context = EncryptionContext::new(pairs).map_err(|error| error.to_string())?;
        let key = key.ok_or("--key is needed: `files key FILE` makes one")?;
        Ok(Some(Self {
            command,
            key,
            context,
            aad,
            overwrite,
            terminal,
            attributes,
            verify,
            threads,
            source,
            target,
        }))
    }
}

fn starts_with_dash(argument: &OsStr) -> bool {
    argument.as_encoded_bytes().starts_with(b"-")
}

fn pair(argument: &OsStr) -> Result<(String, String), String> {
    let pair = argument.to_str().and_then(|text| text.split_once('='));
    let pair = pair.map(|(name, value)| (name.to_owned(), value.to_owned()));
    pair.ok_or_else(|| format!("--context {}: NAME=VALUE is needed", argument.display()))
}

fn number(argument: &OsStr) -> Result<NonZero<usize>, String> {
    let number = argument.to_str().and_then(|text| text.parse().ok());
    let number = number.filter(|number: &NonZero<usize>| number.get() <= 256);
    number.ok_or_else(|| format!("--threads {}: 1 to 256 is needed", argument.display()))
}
