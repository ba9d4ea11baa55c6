//! Many values in one call: a column, or the rows of a page.
//!
//! Work that a single call does for its message is done once for all: the look-up, the check of the
//! policy, the reservation, the reading of the clock. The results are consecutive in one buffer.
#![forbid(unsafe_code)]

use std::collections::{HashMap, HashSet};
use std::ops::Deref;

use super::values::no_memory;
use super::{
    Aad, ActingFor, CompactEncryptor, Decryptor, Encryptor, Envelope, Plaintexts, Sealed, Values,
    request,
};
use crate::caller::Action;
use crate::context::EncryptionContext;
use crate::dek::{BLOCK, Block, Many, Pinned, ReadingDek, ReadingRequest, Reservation, WritingDek};
use crate::error::{Error, ErrorKind};
use crate::format::{Form, Header, Message};
use crate::observe::Access;
use crate::suite::{DekId, Suite, Tag};

/// Between two checks of the clock, the lease and the process, [`BLOCK`] values are processed, and
/// no more once they have this many bytes.
const BLOCK_BYTES: usize = 256 * 1024;

/// The maximum number of DEKs held beyond the cache's capacity. Each takes about 3.3 KB.
const MOST_HELD: usize = 4096;

/// One message, and its AAD.
type Item<'s> = (Aad<'s>, Sealed<'s>);

/// What is needed to decrypt one message.
struct Parts<'s> {
    aad: &'s [u8],
    nonce: &'s [u8],
    ciphertext: &'s [u8],
    tag: &'s Tag,
}

impl<'s> Parts<'s> {
    #[inline]
    fn of(aad: Aad<'s>, sealed: &'s [u8], message: &Message<'s>) -> Self {
        let ciphertext = sealed.get(message.payload.clone()).unwrap_or_default();
        Self { aad: aad.as_bytes(), nonce: message.nonce, ciphertext, tag: message.tag }
    }
}

/// Messages that were read.
struct Read<'s> {
    parts: Vec<Parts<'s>>,
    runs: Vec<Run<'s>>,
}

/// Messages of one DEK that follow each other.
struct Run<'s> {
    first: Message<'s>,
    /// The index after the last.
    end: usize,
}

impl<'s> Read<'s> {
    /// Reads all of them.
    fn of(items: &[Item<'s>], has_store: impl Fn() -> bool) -> Result<Self, Error> {
        let (mut parts, mut runs) = (Vec::with_capacity(items.len()), Vec::<Run<'s>>::new());
        let mut last = None::<(Sealed<'s>, Message<'s>)>;
        for (index, (aad, sealed)) in items.iter().enumerate() {
            let like =
                last.as_ref().and_then(|(is, like)| sealed.parse_like(*is, like, &has_store));
            let message = match like {
                Some(like) => like,
                None => sealed.parse(&has_store).inspect(|message| {
                    if runs.last().is_none_or(|run| dek_of(&run.first) != dek_of(message)) {
                        runs.push(Run { first: message.clone(), end: index });
                    }
                    last = Some((*sealed, message.clone()));
                }),
            };
            let message = message.map_err(|error| error.of_item(index))?;
            parts.push(Parts::of(*aad, sealed.as_bytes(), &message));
            if let Some(run) = runs.last_mut() {
                run.end = index + 1;
            }
        }
        Ok(Self { parts, runs })
    }
}

impl Envelope {
    /// Encrypts many values of one context, each with its AAD. Each result is a separate message,
    /// as if made by [`encrypt`](Self::encrypt). They can be decrypted one by one or together.
    ///
    /// All are encrypted under one DEK, with one look-up, and counted together before the first is
    /// encrypted. A small value costs little more than the AEAD. Each message carries the wrapped
    /// keys. For columns of small values, [`CompactEncryptor::encrypt_many`] leaves them out.
    ///
    /// The items are iterated twice, since their sizes are needed first.
    ///
    /// ```
    /// # use waxseal::{Aad, EncryptionContext, Envelope, kek::local::LocalKek};
    /// # pollster::block_on(async {
    /// # let envelope = Envelope::builder().wrap_with(LocalKek::in_memory("test")?).build()?;
    /// # let context = EncryptionContext::empty();
    /// let rows = [("row 1", "Alice"), ("row 2", "Bob")];
    /// let items = rows.iter().map(|(row, name)| (Aad::from(*row), *name));
    /// let sealed = envelope.encrypt_many(&context, items).await?;
    ///
    /// let items = rows.iter().zip(&sealed).map(|((row, _), sealed)| (Aad::from(*row), sealed));
    /// let opened = envelope.decrypt_many(&context, items).await?;
    /// assert_eq!(opened.get(1), Some(&b"Bob"[..]));
    /// # Ok::<(), waxseal::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt). Nothing is returned then. [`Error::item`] names the
    /// item that is too large. [`ErrorKind::TooLarge`] is also returned if there are more than
    /// [`max_messages`](crate::Limits::max_messages), or more than
    /// [`max_bytes`](crate::Limits::max_bytes) in total, or if there is no memory for the results.
    /// Then nothing is counted.
    pub async fn encrypt_many<'i, P, I>(
        &self,
        context: &EncryptionContext,
        items: I,
    ) -> Result<Values, Error>
    where
        P: AsRef<[u8]> + ?Sized + 'i,
        I: IntoIterator<Item = (Aad<'i>, &'i P), IntoIter: Clone>,
    {
        self.for_nobody().encrypt_many(context, items).await
    }

    /// Decrypts many messages of one context, each with its AAD. They may belong to any number of
    /// DEKs. Consecutive messages of one DEK share the look-up, and DEKs that are not cached are
    /// unwrapped together, as by [`prepare`](Self::prepare).
    ///
    /// **All or nothing**: if one message fails, no plaintext is returned, and everything that was
    /// decrypted is wiped.
    ///
    /// # Errors
    /// Those of [`decrypt`](Self::decrypt). [`Error::item`] names the message that failed; others
    /// may be wrong too. All messages are parsed before a key service is asked. Authentic messages
    /// count as uses.
    pub async fn decrypt_many<'s, S, I>(
        &self,
        context: &EncryptionContext,
        items: I,
    ) -> Result<Plaintexts, Error>
    where
        S: Into<Sealed<'s>>,
        I: IntoIterator<Item = (Aad<'s>, S)>,
    {
        self.for_nobody().decrypt_many(context, items).await
    }

    async fn seal_many<'i, P, I>(
        &self,
        context: &EncryptionContext,
        items: I,
    ) -> Result<Values, Error>
    where
        P: AsRef<[u8]> + ?Sized + 'i,
        I: Iterator<Item = (Aad<'i>, &'i P)> + Clone,
    {
        let many = sum(items.clone(), self.source.max_len())?;
        let room = |dek: &WritingDek| room(dek, Form::Embedded, many);
        let seal = |reservation: &Reservation<&WritingDek>, room| {
            let goes_on = || reservation.dek().lease.check_in_use();
            seal_all(reservation, room, Form::Embedded, items.clone(), many, goes_on)
        };
        match many.is_empty() {
            true => Ok(Values::default()),
            false => self.source.with_writing_many(context, many, room, seal).await,
        }
    }

    /// Decrypts the parsed `items` into `opened`, which is empty.
    async fn open_many(
        &self,
        context: &EncryptionContext,
        items: &[Item<'_>],
        Read { parts, runs }: &Read<'_>,
        opened: &mut Plaintexts,
    ) -> Result<(), Error> {
        let held = self.unwrap_together(context, runs).await;
        let bytes = parts.iter().map(|parts| parts.ciphertext.len()).fold(0, usize::saturating_add);
        *opened = Plaintexts::with_room(parts.len(), bytes)?;
        for Run { first, end } in runs {
            let held = held.get(&dek_of(first));
            let parts = parts.get(..*end).unwrap_or_default();
            let mut next = first.clone();
            loop {
                let begin = opened.len();
                let open = |dek: &ReadingDek| match open_run(dek, &next, parts, opened) {
                    // Everything decrypted before the DEK ended, or was used up, is kept.
                    Err(error) if opened.len() > begin && has_ended(&error) => Ok(()),
                    result => result,
                };
                let result = self.source.with_prepared(request(context, &next), held, open).await;
                // A DEK of another message would never make progress.
                let result = match opened.len() > begin {
                    true => result,
                    false => result.and_then(|()| Err(Error::invalid())),
                };
                result.map_err(|error| match error.item() {
                    Some(_) => error,
                    None => error.of_item(begin),
                })?;
                match items.get(opened.len()) {
                    Some((_, sealed)) if opened.len() < *end => next = self.parse(*sealed)?,
                    _ => break,
                }
            }
        }
        Ok(())
    }

    /// Has the DEKs unwrapped together, if there are several. Failures show later. The DEKs are
    /// held, so that a cache without room for all of them costs no second call.
    async fn unwrap_together(
        &self,
        context: &EncryptionContext,
        runs: &[Run<'_>],
    ) -> HashMap<(DekId, Suite), Pinned<ReadingDek>> {
        if runs.len() < 2 {
            return HashMap::new();
        }
        let mut seen = HashSet::new();
        let firsts = runs.iter().map(|run| &run.first).filter(|first| seen.insert(dek_of(first)));
        let requests: Vec<_> = firsts.map(|first| request(context, first)).collect();
        if requests.len() < 2 {
            return HashMap::new();
        }
        let prepared = self.source.prepare(&requests, MOST_HELD).await;
        let id = |request: &ReadingRequest<'_>| (*request.id, request.suite);
        let held = requests.iter().map(id).zip(prepared);
        held.filter_map(|(id, prepared)| Some((id, prepared.ok()??))).collect()
    }
}

impl ActingFor<'_> {
    /// Whether messages are counted by caller.
    #[inline]
    pub(super) fn is_counted(self) -> bool {
        self.caller.is_some() && self.envelope.source.counts_callers()
    }

    /// Counts messages of one DEK by their caller.
    fn count_many(
        self,
        access: Access,
        context: &EncryptionContext,
        dek_id: &DekId,
        messages: usize,
    ) {
        if let Some(caller) = self.caller {
            let messages = u64::try_from(messages).unwrap_or(u64::MAX);
            self.envelope.source.count(caller, dek_id, context, access, messages);
        }
    }

    /// Does the same as [`Envelope::encrypt_many`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::encrypt_many`].
    pub async fn encrypt_many<'i, P, I>(
        self,
        context: &EncryptionContext,
        items: I,
    ) -> Result<Values, Error>
    where
        P: AsRef<[u8]> + ?Sized + 'i,
        I: IntoIterator<Item = (Aad<'i>, &'i P), IntoIter: Clone>,
    {
        let permitted = self.permit(Action::Encrypt, context).await?;
        let sealed = self.plain().seal_many(context, items.into_iter()).await?;
        self.confirm(permitted, Action::Encrypt, context).await?;
        // All belong to one DEK.
        let first = sealed.get(0).and_then(|sealed| Header::of(sealed).ok());
        if let Some(header) = first.filter(|_| self.is_counted()) {
            self.count_many(Access::Encrypt, context, &header.dek_id, sealed.len());
        }
        Ok(sealed)
    }

    /// Does the same as [`Envelope::decrypt_many`] on behalf of the caller.
    ///
    /// # Errors
    /// Those of [`Envelope::decrypt_many`].
    pub async fn decrypt_many<'s, S, I>(
        self,
        context: &EncryptionContext,
        items: I,
    ) -> Result<Plaintexts, Error>
    where
        S: Into<Sealed<'s>>,
        I: IntoIterator<Item = (Aad<'s>, S)>,
    {
        let items: Vec<_> = items.into_iter().map(|(aad, sealed)| (aad, sealed.into())).collect();
        // A caller that is denied learns nothing about the messages.
        let permitted = self.permit(Action::Decrypt, context).await?;
        let read = Read::of(&items, || self.plain().source.has_store())?;
        let mut opening =
            Opening { acting: self, context, runs: &read.runs, opened: Plaintexts::default() };
        self.plain().open_many(context, &items, &read, &mut opening.opened).await?;
        self.confirm(permitted, Action::Decrypt, context).await?;
        Ok(opening.end())
    }
}

impl Encryptor {
    /// Encrypts many values, each with its AAD: see [`Envelope::encrypt_many`].
    ///
    /// # Errors
    /// Those of [`encrypt`](Self::encrypt). Nothing is returned then. [`ErrorKind::Exhausted`] if
    /// the caps do not allow all of them; then nothing is counted. [`ErrorKind::TooLarge`] if no
    /// DEK's caps would.
    pub fn encrypt_many<'i, P, I>(&self, items: I) -> Result<Values, Error>
    where
        P: AsRef<[u8]> + ?Sized + 'i,
        I: IntoIterator<Item = (Aad<'i>, &'i P), IntoIter: Clone>,
    {
        self.encrypt_many_in(Form::Embedded, items.into_iter())
    }

    fn encrypt_many_in<'i, P, I>(&self, form: Form, items: I) -> Result<Values, Error>
    where
        P: AsRef<[u8]> + ?Sized + 'i,
        I: Iterator<Item = (Aad<'i>, &'i P)> + Clone,
    {
        let many = sum(items.clone(), self.max_len())?;
        if many.is_empty() {
            return Ok(Values::default());
        }
        let (reservation, room) = self.reserve_many(many, |dek| room(dek, form, many))?;
        let sealed = seal_all(&reservation, room, form, items, many, || self.check_time())?;
        self.count(many.messages());
        Ok(sealed)
    }
}

impl CompactEncryptor {
    /// Encrypts many values, each with its AAD: see [`Envelope::encrypt_many`]. The results have no
    /// wrapped keys. They are consecutive in one buffer, each 68 bytes longer than its value (80
    /// with XAES-256-GCM). To decrypt one, use [`Sealed::compact`] with the [wrapped
    /// keys](Self::wrapped_keys).
    ///
    /// # Errors
    /// Those of [`Encryptor::encrypt_many`].
    pub fn encrypt_many<'i, P, I>(&self, items: I) -> Result<Values, Error>
    where
        P: AsRef<[u8]> + ?Sized + 'i,
        I: IntoIterator<Item = (Aad<'i>, &'i P), IntoIter: Clone>,
    {
        self.0.encrypt_many_in(Form::Compact, items.into_iter())
    }
}

impl Decryptor {
    /// Decrypts many messages of its DEK, each with its AAD. **All or nothing**, like
    /// [`Envelope::decrypt_many`].
    ///
    /// # Errors
    /// Those of [`decrypt`](Self::decrypt). [`Error::item`] names the message that failed.
    pub fn decrypt_many<'s, S, I>(&self, items: I) -> Result<Plaintexts, Error>
    where
        S: Into<Sealed<'s>>,
        I: IntoIterator<Item = (Aad<'s>, S)>,
    {
        let mut opened = Plaintexts::default();
        let result =
            self.open_all(items.into_iter().map(|(aad, it)| (aad, it.into())), &mut opened);
        // Messages before a failure were decrypted too.
        self.count(u64::try_from(opened.len()).unwrap_or(u64::MAX));
        result.map(|()| opened)
    }

    fn open_all<'s>(
        &self,
        mut items: impl Iterator<Item = (Aad<'s>, Sealed<'s>)>,
        opened: &mut Plaintexts,
    ) -> Result<(), Error> {
        let (mut block, mut last) = (Vec::with_capacity(BLOCK), None::<(&[u8], Message<'s>)>);
        loop {
            let mut bytes = 0;
            block.clear();
            while block.len() < BLOCK
                && bytes < BLOCK_BYTES
                && let Some((aad, sealed)) = items.next()
            {
                let sealed = sealed.as_bytes();
                let index = opened.len() + block.len();
                let like = last.as_ref().and_then(|(is, like)| like.parse_like(is, sealed));
                let message = like.unwrap_or_else(|| {
                    let message = Message::parse(sealed)?;
                    self.check_is_of_dek(&message)?;
                    last = Some((sealed, message.clone()));
                    Ok(message)
                });
                let message = message.map_err(|error| error.of_item(index))?;
                bytes += message.payload.len();
                block.push(Parts::of(aad, sealed, &message));
            }
            if block.is_empty() {
                return Ok(());
            }
            self.check_time()?;
            opened.expect(block.len(), bytes, items.size_hint().0)?;
            open_block(self.dek(), &block, opened)?;
        }
    }
}

/// A call that decrypts for a caller. Its messages are counted however it ends, even if a later
/// message fails or the caller gives up.
struct Opening<'o, 's> {
    acting: ActingFor<'o>,
    context: &'o EncryptionContext,
    runs: &'o [Run<'s>],
    opened: Plaintexts,
}

impl Opening<'_, '_> {
    fn end(mut self) -> Plaintexts {
        self.count();
        std::mem::take(&mut self.opened)
    }

    fn count(&self) {
        if self.opened.is_empty() || !self.acting.is_counted() {
            return;
        }
        let (mut counts, mut begin) = (HashMap::<DekId, usize>::new(), 0);
        for Run { first, end } in self.runs {
            let end = self.opened.len().min(*end);
            if end > begin {
                *counts.entry(first.header.dek_id).or_default() += end - begin;
                begin = end;
            }
        }
        for (dek_id, messages) in counts {
            self.acting.count_many(Access::Decrypt, self.context, &dek_id, messages);
        }
    }
}

impl Drop for Opening<'_, '_> {
    fn drop(&mut self) {
        self.count();
    }
}

/// Counts the items and their bytes. Each may have `max_len` bytes.
fn sum<'i, P: AsRef<[u8]> + ?Sized + 'i>(
    items: impl Iterator<Item = (Aad<'i>, &'i P)>,
    max_len: u64,
) -> Result<Many, Error> {
    let mut many = Many::default();
    for (index, (_, plaintext)) in items.enumerate() {
        many.add(plaintext.as_ref().len(), max_len).map_err(|error| error.of_item(index))?;
    }
    Ok(many)
}

/// Makes room for the sealed messages, before they are counted.
fn room(dek: &WritingDek, form: Form, many: Many) -> Result<Values, Error> {
    let len = dek.sealed_len(form, many).ok_or_else(no_memory)?;
    Values::with_room(usize::try_from(many.messages()).unwrap_or(usize::MAX), len)
}

/// Encrypts the reserved messages into the room for them. `goes_on` is checked between blocks.
fn seal_all<'i, D: Deref<Target = WritingDek>, P: AsRef<[u8]> + ?Sized + 'i>(
    reservation: &Reservation<D>,
    mut sealed: Values,
    form: Form,
    mut items: impl Iterator<Item = (Aad<'i>, &'i P)>,
    many: Many,
    goes_on: impl Fn() -> Result<(), Error>,
) -> Result<Values, Error> {
    let mut left = many;
    let mut blocks = reservation.blocks(form);
    let mut block = Block::new();
    loop {
        // The caller's code runs before nonces are drawn for the block, since it may take long, or
        // fork.
        block.clear();
        while block.len() < BLOCK
            && block.bytes() < BLOCK_BYTES
            && let Some((aad, plaintext)) = items.next()
        {
            block.push(aad.as_bytes(), plaintext.as_ref());
        }
        left = left.without(block.len(), block.bytes()).ok_or_else(changed)?;
        if block.len() == 0 {
            return if left.is_empty() { Ok(sealed) } else { Err(changed()) };
        }
        if !sealed.is_empty() {
            goes_on()?;
        }
        let (bytes, ends) = sealed.parts_mut();
        blocks.seal(&block, bytes, ends)?;
    }
}

#[cold]
fn changed() -> Error {
    Error::new(ErrorKind::InvalidOption, "the items changed between the two iterations")
}

fn dek_of(message: &Message<'_>) -> (DekId, Suite) {
    (message.header.dek_id, message.header.suite)
}

fn has_ended(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Expired | ErrorKind::Exhausted)
}

/// Decrypts the next part of `parts`, up to the end of the run of `next`. It decrypts nothing of
/// another DEK.
fn open_run(
    dek: &ReadingDek,
    next: &Message<'_>,
    parts: &[Parts<'_>],
    opened: &mut Plaintexts,
) -> Result<(), Error> {
    if dek_of(next) != (dek.lease.id, dek.lease.suite) {
        return Ok(());
    }
    let begin = opened.len();
    loop {
        let (mut len, mut bytes) = (0, 0_usize);
        let rest = parts.get(opened.len()..).unwrap_or_default();
        while len < BLOCK
            && bytes < BLOCK_BYTES
            && let Some(parts) = rest.get(len)
        {
            len += 1;
            bytes = bytes.saturating_add(parts.ciphertext.len());
        }
        let block = rest.get(..len).unwrap_or_default();
        if block.is_empty() {
            return Ok(());
        }
        if opened.len() > begin {
            dek.lease.check_in_use()?;
        }
        open_block(dek, block, opened)?;
    }
}

/// Decrypts consecutive messages. If one fails, those before it are kept.
fn open_block(
    dek: &ReadingDek,
    mut block: &[Parts<'_>],
    opened: &mut Plaintexts,
) -> Result<(), Error> {
    // Runs once, unless fewer uses are left.
    while !block.is_empty() {
        let wanted = dek.take_uses(block.len())?;
        let (now, later) = block.split_at_checked(wanted).unwrap_or((block, &[]));
        let begin = opened.len();
        let result = dek.with_keys(|keys| {
            opened.append(
                now,
                |parts| parts.ciphertext,
                |Parts { aad, nonce, ciphertext, tag }, data| {
                    keys.message(ciphertext.len()).open(nonce, aad, data, tag)
                },
            )
        });
        dek.give_back_uses(wanted - (opened.len() - begin));
        result.flatten()?;
        block = later;
    }
    Ok(())
}
