//! A whole stream on several threads.
//!
//! Each thread reads a chunk, processes it, and writes it when its turn comes. So chunks leave in
//! order, an error comes after everything before it, and each thread has one chunk in memory.
#![forbid(unsafe_code)]

use std::io;
use std::io::{Read, Write};
use std::num::NonZero;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};

use super::{StreamDecryptor, StreamEncryptor, checked};
use crate::error::Error;
use crate::memory::wipe;
use crate::suite::TAG_LEN;

impl StreamEncryptor {
    /// Encrypts all of `from` to a stream in `to`, on up to `threads` threads: this one, and others
    /// that end before the call does. There are no more threads than chunks. Each holds one chunk
    /// in memory. Returns the number of bytes read.
    ///
    /// ```
    /// # use waxseal::{Aad, EncryptionContext, Envelope, StreamHead, StreamOptions, kek::local::LocalKek};
    /// # use std::num::NonZero;
    /// # pollster::block_on(async {
    /// # let envelope = Envelope::builder().wrap_with(LocalKek::in_memory("test")?).build()?;
    /// # let (context, threads) = (EncryptionContext::empty(), NonZero::new(4).unwrap());
    /// # let (input, mut sealed, mut output) = (vec![7; 1 << 20], Vec::new(), Vec::new());
    /// let options = StreamOptions::default().chunk_size(1 << 18);
    /// let encryptor = envelope.stream_encryptor(&context, Aad::empty(), options).await?;
    /// encryptor.encrypt(threads, &input[..], &mut sealed)?;
    ///
    /// let mut from = &sealed[..];
    /// let head = StreamHead::read(&mut from)?;
    /// let decryptor = envelope.stream_decryptor(&context, Aad::empty(), &head).await?;
    /// assert_eq!(decryptor.decrypt(threads, from, &mut output)?, 1 << 20);
    /// assert_eq!(output, input);
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// Those of the reader, the writer and the encryption. Every reader then refuses what was
    /// written, unless all of it was written and the flush failed. A reader that blocks delays no
    /// chunk before it. The call returns only when its read does, even after the writer failed.
    pub fn encrypt<R, W>(self, threads: NonZero<usize>, from: R, mut to: W) -> io::Result<u64>
    where
        R: Read + Send,
        W: Write + Send,
    {
        put(&mut to, &self.head)?;
        let chunk = self.chunk.bytes();
        let seal = |index, buffer: &mut [u8]| {
            self.seal_chunk(index, None, buffer)?;
            Ok(buffer.len())
        };
        Ok(Line::new(from, to, (chunk, TAG_LEN)).run(threads, seal)?.read)
    }
}

impl StreamDecryptor {
    /// Decrypts a stream to `to`, on up to `threads` threads: this one, and others that end before
    /// the call does. There are no more threads than chunks. `from` supplies the bytes that follow
    /// the head. Each thread holds one chunk in memory. Returns the number of bytes written.
    ///
    /// Written plaintext is authentic and in order. **Only success shows that it is the whole.**
    ///
    /// # Errors
    /// Those of the reader and the writer; an [error of the library](crate::Error::of_io) if a
    /// chunk is not authentic or the stream was cut. Everything before it was written. A reader
    /// that blocks has the same effect as with
    /// [`StreamEncryptor::encrypt`](super::StreamEncryptor::encrypt).
    pub fn decrypt<R, W>(self, threads: NonZero<usize>, from: R, to: W) -> io::Result<u64>
    where
        R: Read + Send,
        W: Write + Send,
    {
        let sealed = self.chunk.bytes() + TAG_LEN;
        let open = |index, buffer: &mut [u8]| self.open(index, buffer);
        Ok(Line::new(from, to, (sealed, 0)).run(threads, open)?.written)
    }
}

/// Chunks that are read in order, processed in parallel, and written in order.
struct Line<R, W> {
    /// The size of a full chunk as it is read, and how much processing adds to it. A shorter chunk
    /// is the last.
    full: usize,
    growth: usize,
    input: Mutex<Input<R>>,
    output: Mutex<Output<W>>,
    next: Condvar,
}

struct Input<R> {
    reader: R,
    next: u64,
    ended: bool,
    read: u64,
}

struct Output<W> {
    writer: W,
    /// The chunk whose turn it is.
    turn: u64,
    written: u64,
    /// The first failure, in the order of the chunks. Nothing is written after it.
    failed: Option<io::Error>,
    /// A thread panicked.
    broken: bool,
}

struct Counts {
    read: u64,
    written: u64,
}

/// The next task of a thread.
struct Job {
    index: u64,
    /// How much of the buffer was read, or the error.
    len: io::Result<usize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<R: Read + Send, W: Write + Send> Line<R, W> {
    fn new(reader: R, writer: W, (full, growth): (usize, usize)) -> Self {
        let input = Input { reader, next: 0, ended: false, read: 0 };
        let output = Output { writer, turn: 0, written: 0, failed: None, broken: false };
        let (input, output) = (Mutex::new(input), Mutex::new(output));
        Self { full, growth, input, output, next: Condvar::new() }
    }

    /// `work` turns a chunk into its output, which it leaves at the front of the buffer.
    fn run(
        self,
        threads: NonZero<usize>,
        work: impl Fn(u64, &mut [u8]) -> Result<usize, Error> + Sync,
    ) -> io::Result<Counts> {
        thread::scope(|scope| self.work(scope, threads.get() - 1, &work));
        let read = lock(&self.input).read;
        let mut output = lock(&self.output);
        match output.failed.take() {
            Some(error) => Err(error),
            None => {
                flush(&mut output.writer)?;
                Ok(Counts { read, written: output.written })
            }
        }
    }

    /// Processes one chunk after the other. If another chunk follows the first one, and up to
    /// `others` threads are allowed, it starts another thread, which does the same. So there are no
    /// more threads than chunks.
    fn work<'scope, 'env>(
        &'env self,
        scope: &'scope Scope<'scope, 'env>,
        mut others: usize,
        work: &'env (impl Fn(u64, &mut [u8]) -> Result<usize, Error> + Sync),
    ) {
        // Dropped last, even on a panic.
        let mut part = Part { line: self, buffer: vec![0; self.full + self.growth], done: false };
        while let Some(Job { index, len }) = self.read(&mut part.buffer) {
            if others > 0 && len.as_ref().is_ok_and(|len| *len == self.full) {
                let next = thread::Builder::new().name("waxseal-stream".to_owned());
                // Fewer threads can do the work too.
                drop(next.spawn_scoped(scope, move || self.work(scope, others - 1, work)));
                others = 0;
            }
            let out = len.and_then(|len| {
                let chunk = part.buffer.get_mut(..len + self.growth).unwrap_or_default();
                Ok(work(index, chunk)?)
            });
            if !self.write(index, out, &part.buffer) {
                break;
            }
        }
        part.done = true;
    }

    /// Reads the next chunk. `None` after the last.
    fn read(&self, buffer: &mut [u8]) -> Option<Job> {
        let mut input = lock(&self.input);
        if input.ended {
            return None;
        }
        let index = input.next;
        let room = buffer.get_mut(..self.full).unwrap_or_default();
        // Even if the reader panics.
        input.ended = true;
        let len = fill(&mut input.reader, room);
        input.ended = !len.as_ref().is_ok_and(|len| *len == self.full);
        input.next += 1;
        input.read += len.as_ref().map_or(0, |len| *len as u64);
        Some(Job { index, len })
    }

    /// Waits for the chunk's turn and writes it. Returns `false` if nothing is left to do.
    fn write(&self, index: u64, out: io::Result<usize>, buffer: &[u8]) -> bool {
        let is_waiting = |output: &mut Output<W>| {
            output.turn != index && output.failed.is_none() && !output.broken
        };
        let output = lock(&self.output);
        let waited = self.next.wait_while(output, is_waiting);
        let mut output = waited.unwrap_or_else(PoisonError::into_inner);
        if output.failed.is_some() || output.broken {
            return false;
        }
        let written = out.and_then(|len| {
            put(&mut output.writer, buffer.get(..len).unwrap_or_default())?;
            Ok(len)
        });
        match written {
            Ok(len) => {
                output.written += len as u64;
                output.turn += 1;
            }
            Err(error) => output.failed = Some(error),
        }
        let goes_on = output.failed.is_none();
        drop(output);
        self.next.notify_all();
        goes_on
    }
}

/// A thread's buffer.
struct Part<'l, R, W> {
    line: &'l Line<R, W>,
    buffer: Vec<u8>,
    done: bool,
}

impl<R, W> Drop for Part<'_, R, W> {
    fn drop(&mut self) {
        wipe(&mut self.buffer);
        if !self.done {
            // The thread panicked, and the others must not wait for its turn.
            lock(&self.line.output).broken = true;
            self.line.next.notify_all();
        }
    }
}

/// Reads until the buffer is full or the input ends.
fn fill(reader: &mut impl Read, mut buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while !buffer.is_empty() {
        match reader.read(buffer).and_then(|n| checked(n, buffer.len())) {
            Ok(0) => break,
            Ok(n) => {
                filled += n;
                buffer = buffer.get_mut(n..).unwrap_or_default();
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Does the same as `write_all`, which panics if a writer claims that it took more than it was
/// given.
fn put(writer: &mut impl Write, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match writer.write(bytes).and_then(|n| checked(n, bytes.len())) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => bytes = bytes.get(n..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Flushes, and retries if interrupted.
fn flush(writer: &mut impl Write) -> io::Result<()> {
    loop {
        match writer.flush() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            flushed => return flushed,
        }
    }
}
