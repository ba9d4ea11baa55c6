//! Whole files, encrypted or decrypted to another path.
//!
//! ```text
//!   Plan: source is open, target is possible ──► look-up (await) ──► temporary file beside the target
//!         ──► the stream ──► what is kept, sync ──► rename ──► sync of the directory
//! ```
//!
//! Everything after the look-up is synchronous. `source` and `place` know paths and renames, `kept`
//! knows a file's attributes. None of them knows a key.
#![forbid(unsafe_code)]

mod kept;
mod place;
mod source;

use std::fmt;
use std::fs::File;
use std::io;
use std::io::{Read, Write};
use std::num::NonZero;
use std::path::Path;
use std::sync::Arc;

use super::stream::{StreamDecryptor, StreamEncryptor, StreamHead, StreamOptions};
use super::{Aad, ActingFor, Envelope};
use crate::caller::Caller;
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use place::Target;
use source::Source;

/// How a file is encrypted or decrypted. Unset options have their defaults.
///
/// ```
/// use std::num::NonZero;
/// use waxseal::FileOptions;
///
/// let options = FileOptions::default().overwrite().threads(NonZero::new(4).unwrap());
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct FileOptions {
    overwrite: bool,
    private: bool,
    extended_attributes: bool,
    threads: NonZero<usize>,
    stream: StreamOptions,
    progress: Option<Arc<dyn Fn(u64) + Send + Sync>>,
}

impl Default for FileOptions {
    fn default() -> Self {
        Self {
            overwrite: false,
            private: false,
            extended_attributes: false,
            threads: NonZero::<usize>::MIN,
            stream: StreamOptions::default(),
            progress: None,
        }
    }
}

impl FileOptions {
    /// Replaces an existing target, in one step. Without it, an existing target is refused, even if
    /// it appears meanwhile.
    #[must_use]
    pub fn overwrite(mut self) -> Self {
        self.overwrite = true;
        self
    }

    /// Lets only this user read the new file, even if others may read the source. Set it if others
    /// can change a sealed file, or may read it because it is encrypted. Its permissions and owner
    /// are not authenticated, and without this option the plaintext gets the same ones.
    #[must_use]
    pub fn private(mut self) -> Self {
        self.private = true;
        self
    }

    /// Keeps the user's extended attributes (`user.*`), on Linux. They are not encrypted.
    #[must_use]
    pub fn extended_attributes(mut self) -> Self {
        self.extended_attributes = true;
        self
    }

    /// Sets how many threads work on the chunks, including the calling one; by default 1. Each
    /// holds one chunk in memory.
    #[must_use]
    pub fn threads(mut self, threads: NonZero<usize>) -> Self {
        self.threads = threads;
        self
    }

    /// Sets the chunk size, room and form of the written stream.
    #[must_use]
    pub fn stream(mut self, options: StreamOptions) -> Self {
        self.stream = options;
        self
    }

    /// Sets a function that receives the number of plaintext bytes so far, about once per chunk and
    /// on the working threads.
    #[must_use]
    pub fn on_progress(mut self, report: impl Fn(u64) + Send + Sync + 'static) -> Self {
        self.progress = Some(Arc::new(report));
        self
    }
}

impl fmt::Debug for FileOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FileOptions")
            .field("overwrite", &self.overwrite)
            .field("private", &self.private)
            .field("extended_attributes", &self.extended_attributes)
            .field("threads", &self.threads)
            .field("stream", &self.stream)
            .finish_non_exhaustive()
    }
}

impl Envelope {
    /// Encrypts a file to a stream at `target`. Returns the number of bytes read.
    ///
    /// The target is complete and durable, or absent, whenever the process or the machine stops:
    /// the stream is written to a file next to it, synced, and renamed. It keeps the source's
    /// permissions and times. An existing target is refused without
    /// [`overwrite`](FileOptions::overwrite). docs/streams.md, "Files", has the details.
    ///
    /// **It blocks while it reads and writes.** Only the look-up of the key is asynchronous. In
    /// async code get a [`stream_encryptor`](Self::stream_encryptor), and call
    /// [`StreamEncryptor::encrypt_file`] where blocking is allowed.
    ///
    /// ```
    /// # use waxseal::{Aad, EncryptionContext, Envelope, FileOptions, kek::local::LocalKek};
    /// # let dir = tempfile::tempdir()?;
    /// # let (plain, sealed, restored) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("c"));
    /// # std::fs::write(&plain, "text")?;
    /// # pollster::block_on(async {
    /// # let envelope = Envelope::builder().wrap_with(LocalKek::in_memory("test")?).build()?;
    /// let context = EncryptionContext::new([("tenant", "acme"), ("purpose", "backup")])?;
    /// let (aad, options) = (Aad::from(b"backup 17"), FileOptions::default());
    ///
    /// envelope.encrypt_file(&context, aad, &plain, &sealed, &options).await?;
    /// envelope.decrypt_file(&context, aad, &sealed, &restored, &options).await?;
    /// assert_eq!(std::fs::read(&restored)?, b"text");
    /// # Ok::<(), Box<dyn std::error::Error>>(()) })?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// Those of [`stream_encryptor`](Self::stream_encryptor). [`ErrorKind::Io`] if a file could not
    /// be used, or the source changed meanwhile; [`cause`](Error::cause) is the [`io::Error`], with
    /// the kind [`AlreadyExists`](io::ErrorKind::AlreadyExists) for an existing target.
    /// [`ErrorKind::InvalidOption`] if source and target are the same file, and for a compact
    /// stream without a [key store](crate::EnvelopeBuilder::key_store). After an error `target` is
    /// as it was before.
    pub async fn encrypt_file(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        source: impl AsRef<Path>,
        target: impl AsRef<Path>,
        options: &FileOptions,
    ) -> Result<u64, Error> {
        self.encrypt_file_for(None, (context, aad), (source.as_ref(), target.as_ref()), options)
            .await
    }

    /// Decrypts the stream in a file to `target`. Returns the number of bytes written.
    ///
    /// The target is complete and durable, or absent, as with [`encrypt_file`](Self::encrypt_file).
    /// Until the end of the stream is authenticated, the plaintext is in a file with another name,
    /// which only this user may read. An error removes it. If the process is killed it stays, as
    /// `.waxseal-*.tmp`.
    ///
    /// **It blocks while it reads and writes.** In async code call
    /// [`StreamDecryptor::decrypt_file`].
    ///
    /// # Errors
    /// Those of [`decrypt_stream`](Self::decrypt_stream), and for files those of
    /// [`encrypt_file`](Self::encrypt_file).
    pub async fn decrypt_file(
        &self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        source: impl AsRef<Path>,
        target: impl AsRef<Path>,
        options: &FileOptions,
    ) -> Result<u64, Error> {
        self.decrypt_file_for(None, (context, aad), (source.as_ref(), target.as_ref()), options)
            .await
    }

    async fn encrypt_file_for(
        &self,
        caller: Option<&Caller>,
        (context, aad): (&EncryptionContext, Aad<'_>),
        (source, target): (&Path, &Path),
        options: &FileOptions,
    ) -> Result<u64, Error> {
        if options.stream.is_compact() && !self.source.has_store() {
            let detail = "compact: a file without wrapped keys needs a key_store that has them";
            return Err(Error::new(ErrorKind::InvalidOption, detail));
        }
        let plan = Plan::new(source, target, options)?;
        let encryptor = self.stream_encryptor_for(caller, context, aad, options.stream).await?;
        plan.encrypt(encryptor)
    }

    async fn decrypt_file_for(
        &self,
        caller: Option<&Caller>,
        (context, aad): (&EncryptionContext, Aad<'_>),
        (source, target): (&Path, &Path),
        options: &FileOptions,
    ) -> Result<u64, Error> {
        let plan = Plan::new(source, target, options)?;
        let head = plan.head()?;
        let decryptor = self.stream_decryptor_for(caller, context, aad, &head).await;
        plan.decrypt(decryptor.map_err(|error| error.at(source.display()))?)
    }
}

impl ActingFor<'_> {
    /// Does the same as [`Envelope::encrypt_file`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::encrypt_file`].
    pub async fn encrypt_file(
        self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        source: impl AsRef<Path>,
        target: impl AsRef<Path>,
        options: &FileOptions,
    ) -> Result<u64, Error> {
        let paths = (source.as_ref(), target.as_ref());
        self.envelope.encrypt_file_for(self.caller, (context, aad), paths, options).await
    }

    /// Does the same as [`Envelope::decrypt_file`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::decrypt_file`].
    pub async fn decrypt_file(
        self,
        context: &EncryptionContext,
        aad: Aad<'_>,
        source: impl AsRef<Path>,
        target: impl AsRef<Path>,
        options: &FileOptions,
    ) -> Result<u64, Error> {
        let paths = (source.as_ref(), target.as_ref());
        self.envelope.decrypt_file_for(self.caller, (context, aad), paths, options).await
    }
}

impl StreamEncryptor {
    /// Does the same as [`Envelope::encrypt_file`], without a look-up. It is for threads on which
    /// blocking is allowed. The stream's options are those of this encryptor.
    ///
    /// ```no_run
    /// # use waxseal::{Aad, EncryptionContext, Envelope, FileOptions, StreamOptions};
    /// # async fn backup(envelope: Envelope, context: EncryptionContext) -> Result<(), Box<dyn std::error::Error>> {
    /// let options = StreamOptions::default().chunk_size(1 << 20);
    /// let encryptor = envelope.stream_encryptor(&context, Aad::empty(), options).await?;
    /// let work = move || encryptor.encrypt_file("data", "data.sealed", &FileOptions::default());
    /// let read = tokio::task::spawn_blocking(work).await??;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [`Envelope::encrypt_file`], apart from those of the look-up.
    pub fn encrypt_file(
        self,
        source: impl AsRef<Path>,
        target: impl AsRef<Path>,
        options: &FileOptions,
    ) -> Result<u64, Error> {
        Plan::new(source.as_ref(), target.as_ref(), options)?.encrypt(self)
    }
}

impl StreamDecryptor {
    /// Does the same as [`Envelope::decrypt_file`], without a look-up. It is for threads on which
    /// blocking is allowed. `source` is the whole stream, with its head, which a rewrap may have
    /// changed meanwhile.
    ///
    /// # Errors
    /// Those of [`Envelope::decrypt_file`], apart from those of the look-up. [`ErrorKind::Invalid`]
    /// if the file holds another stream.
    pub fn decrypt_file(
        self,
        source: impl AsRef<Path>,
        target: impl AsRef<Path>,
        options: &FileOptions,
    ) -> Result<u64, Error> {
        let plan = Plan::new(source.as_ref(), target.as_ref(), options)?;
        let head = plan.head()?;
        match head.is_of_the_same_stream(self.head()) {
            true => plan.decrypt(self),
            false => Err(Error::invalid().at(source.as_ref().display())),
        }
    }
}

/// An open source and a valid target. Nothing is written yet.
struct Plan<'p> {
    source: Source<'p>,
    target: Target<'p>,
    options: &'p FileOptions,
}

impl<'p> Plan<'p> {
    fn new(source: &'p Path, target: &'p Path, options: &'p FileOptions) -> Result<Self, Error> {
        let source = Source::open(source)?;
        let target = Target::check(target, &source, options.overwrite)?;
        Ok(Self { source, target, options })
    }

    fn head(&self) -> Result<StreamHead, Error> {
        StreamHead::read(&self.source.file).map_err(|error| error.at(self.source.path.display()))
    }

    fn encrypt(self, encryptor: StreamEncryptor) -> Result<u64, Error> {
        let new = self.target.begin()?;
        // One byte more than it had, to notice that it grew without following an endless log.
        let from = self.input().take(self.source.len().saturating_add(1));
        let to = Output::new(new.file(), self.target.path, None);
        let read = encryptor.encrypt(self.options.threads, from, to);
        let read = read.map_err(|error| failed(error, self.target.path))?;
        self.source.check_unchanged(read)?;
        new.commit(&self.source, self.options)?;
        Ok(read)
    }

    fn decrypt(self, decryptor: StreamDecryptor) -> Result<u64, Error> {
        let new = self.target.begin()?;
        let from = Input { progress: None, ..self.input() };
        let to = Output::new(new.file(), self.target.path, self.options.progress.as_deref());
        let written = decryptor.decrypt(self.options.threads, from, to);
        let written = written.map_err(|error| failed(error, self.source.path))?;
        new.commit(&self.source, self.options)?;
        Ok(written)
    }

    fn input(&self) -> Input<'_> {
        let (file, path) = (&self.source.file, self.source.path);
        Input { file, path, read: 0, progress: self.options.progress.as_deref() }
    }
}

type Progress<'f> = Option<&'f (dyn Fn(u64) + Send + Sync)>;

/// Reads the source. Its errors name the path.
struct Input<'f> {
    file: &'f File,
    path: &'f Path,
    read: u64,
    progress: Progress<'f>,
}

impl Read for Input<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.file.read(buffer).map_err(|error| named("read", self.path, error))?;
        self.read = self.read.saturating_add(n as u64);
        if let Some(report) = self.progress {
            report(self.read);
        }
        Ok(n)
    }
}

/// Writes the temporary file. Its errors name the path of the target.
struct Output<'f> {
    file: &'f File,
    path: &'f Path,
    written: u64,
    progress: Progress<'f>,
}

impl<'f> Output<'f> {
    fn new(file: &'f File, path: &'f Path, progress: Progress<'f>) -> Self {
        Self { file, path, written: 0, progress }
    }
}

impl Write for Output<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes).map_err(|error| named("written", self.path, error))?;
        self.written = self.written.saturating_add(n as u64);
        if let Some(report) = self.progress {
            report(self.written);
        }
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Returns an error with its path, in a form that passes through a reader or writer.
fn named(what: &str, path: &Path, error: io::Error) -> io::Error {
    // Those are retried.
    if error.kind() == io::ErrorKind::Interrupted {
        return error;
    }
    source::failed(&format!("could not be {what}"), path, error).into()
}

/// Returns the error of a whole stream. `path` is named in the library's own refusals.
fn failed(error: io::Error, path: &Path) -> Error {
    match error.downcast::<Error>() {
        Ok(error) if error.kind() == ErrorKind::Io => error,
        Ok(error) => error.at(path.display()),
        Err(error) => source::failed("could not be used", path, error),
    }
}
