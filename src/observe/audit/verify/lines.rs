//! The lines of a trail, one after the other, in bounded memory.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use super::super::chain::MAX_LINE;
use super::super::file::names::{file_name, numbers, path_of};
use super::super::file::regular;

/// Reads the files of a directory, or a stream of lines.
pub(super) struct Lines<'r> {
    current: Option<Box<dyn BufRead + 'r>>,
    /// The remaining files, by number.
    files: VecDeque<(u64, PathBuf)>,
    /// The number of the current file. `None` for a stream.
    pub(super) file: Option<u64>,
    /// The number of the current line in its file, from 1. 0 before the first.
    pub(super) line: u64,
    pub(super) bytes: Vec<u8>,
}

/// What comes next.
pub(super) enum Next {
    /// A line, without its end, is in [`Lines::bytes`].
    Line,
    /// The file ends within a line.
    Incomplete,
    /// The line is longer than allowed.
    TooLong,
    /// The file with this number is missing, but a later one exists.
    Missing(u64),
    End,
}

impl<'r> Lines<'r> {
    /// Reads the files of a directory, from the number `first` to `last`.
    pub(super) fn of_directory(directory: &Path, first: u64, last: u64) -> io::Result<Self> {
        let numbers = numbers(directory)?;
        let numbers = numbers.into_iter().filter(|number| (first..=last).contains(number));
        let files = numbers.map(|number| (number, path_of(directory, number))).collect();
        let file = Some(first.saturating_sub(1));
        Ok(Self { current: None, files, file, line: 0, bytes: Vec::new() })
    }

    pub(super) fn of_stream(stream: impl Read + 'r) -> Self {
        let current: Option<Box<dyn BufRead + 'r>> = Some(Box::new(BufReader::new(stream)));
        Self { current, files: VecDeque::new(), file: None, line: 0, bytes: Vec::new() }
    }

    /// Returns the name of the current file.
    pub(super) fn name(&self) -> String {
        self.file.map_or_else(|| "the stream".to_owned(), file_name)
    }

    /// Skips the rest of the current file. Returns `false` for a stream.
    pub(super) fn skip_file(&mut self) -> bool {
        self.current = None;
        self.file.is_some()
    }

    /// Goes to the next line, in the next file if this one is over.
    pub(super) fn next(&mut self) -> io::Result<Next> {
        loop {
            if let Some(file) = &mut self.current {
                self.bytes.clear();
                let most = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
                if file.take(most).read_until(b'\n', &mut self.bytes)? > 0 {
                    self.line = self.line.saturating_add(1);
                    return Ok(match self.bytes.pop_if(|last| *last == b'\n') {
                        Some(_) => Next::Line,
                        None if self.bytes.len() == MAX_LINE => Next::TooLong,
                        None => Next::Incomplete,
                    });
                }
                self.current = None;
            }
            let Some((number, path)) = self.files.pop_front() else { return Ok(Next::End) };
            let expected = self.file.map_or(number, |file| file.saturating_add(1));
            (self.file, self.line) = (Some(number), 0);
            if number != expected {
                return Ok(Next::Missing(expected));
            }
            let file = regular::open(OpenOptions::new().read(true), &path)?;
            self.current = Some(Box::new(BufReader::with_capacity(MAX_LINE, file)));
        }
    }
}
