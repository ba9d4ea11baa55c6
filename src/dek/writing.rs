//! A DEK that this process made, and how much it may still encrypt.
//!
//! Each renewal gives it another lease. Its leases share the keys and the budget, and each ends at
//! its own deadline.
#![forbid(unsafe_code)]

use std::ops::Deref;

use super::LimitsInForce;
use super::budget::Budget;
use super::lease::{Lease, Terms, expired};
use super::registry::{Leased, announce_later};
use crate::clock::Moment;
use crate::error::{Error, ErrorKind};
use crate::format::limits::MAX_PLAINTEXT;
use crate::format::{Form, Prefix, WrappedKeys};
use crate::memory::{fork, wipe};
use crate::suite::{DekKeys, InOut, Nonce, Nonces, TAG_LEN, Tag};
use crate::sync::Arc;
use crate::sync::atomic::{AtomicUsize, Ordering};

/// How many messages of a batch are encrypted together: their nonces are drawn at once.
pub(crate) const BLOCK: usize = 64;

/// Up to this total size, messages of a batch are assembled, or decrypted, in one piece that fits
/// the nearest cache, which costs less than appending each part. Beyond it that would be an extra
/// pass.
pub(crate) const SHORT_BLOCK: usize = 16 * 1024;

/// The keys of a DEK for writing, of one suite, within its limits.
pub(crate) struct WritingDek {
    pub(crate) lease: Lease,
    pub(crate) wrapped_keys: WrappedKeys,
    embedded: Prefix,
    compact: Prefix,
    nonces: Nonces,
    max_len: u64,
    /// The process that made it. In a forked child it encrypts nothing.
    generation: u64,
    /// From this time on, a renewal replaces it.
    rotate_at: Moment,
    shared: Arc<Shared>,
}

/// The counts that all leases of one DEK share.
struct Shared {
    budget: Budget,
    /// The leases whose end has not been reported yet.
    leases: AtomicUsize,
}

impl Leased for WritingDek {
    fn lease(&self) -> &Lease {
        &self.lease
    }

    fn is_for_reading(&self) -> bool {
        false
    }

    fn take_counted(&self) -> u64 {
        self.shared.budget.take_counted()
    }

    /// The end of the last lease is the end of the keys.
    fn is_end_to_report(&self) -> bool {
        self.lease.is_first_to_announce_the_end()
            && self.shared.leases.fetch_sub(1, Ordering::AcqRel) == 1
    }
}

/// Runs when the last owner is gone: the DEK was replaced, and its keys end with it.
impl Drop for WritingDek {
    fn drop(&mut self) {
        self.lease.end();
        announce_later(self);
    }
}

impl WritingDek {
    /// `asked` is when the request for it began. `generation` is taken before the DEK is drawn, so
    /// that a fork during the call to the key service is noticed.
    pub(super) fn new(
        lease: Lease,
        wrapped_keys: WrappedKeys,
        nonces: Nonces,
        limits: &LimitsInForce,
        asked: Moment,
        generation: u64,
    ) -> Result<Self, Error> {
        Ok(Self {
            embedded: Prefix::new(lease.suite, lease.id, wrapped_keys.as_bytes())?,
            compact: Prefix::new(lease.suite, lease.id, &[])?,
            lease,
            wrapped_keys,
            nonces,
            max_len: max_len(limits),
            generation,
            rotate_at: asked.plus(limits.rotate_after),
            shared: Arc::new(Shared {
                budget: Budget::new(limits.max_messages, limits.max_bytes),
                leases: AtomicUsize::new(1),
            }),
        })
    }

    /// Whether it continues to encrypt after a renewal.
    pub(super) fn goes_on(&self, now: Moment) -> bool {
        !now.is_past(self.rotate_at) && !self.is_nearly_used_up() && !self.is_used_up()
    }

    /// Returns another lease on the same keys, unless this one has ended. The registry calls it
    /// under its lock.
    pub(super) fn another_lease(&self, terms: Terms<'_>, limits: &LimitsInForce) -> Option<Self> {
        let lease = self.lease.another(terms, limits)?;
        // No lease is issued after the last one was reported as wiped.
        let join = |leases: usize| leases.checked_add(1).filter(|_| leases > 0);
        self.shared.leases.fetch_update(Ordering::AcqRel, Ordering::Acquire, join).ok()?;
        Some(Self {
            lease,
            wrapped_keys: self.wrapped_keys.clone(),
            embedded: self.embedded.clone(),
            compact: self.compact.clone(),
            nonces: self.nonces,
            max_len: self.max_len,
            generation: self.generation,
            rotate_at: self.rotate_at,
            shared: self.shared.clone(),
        })
    }

    pub(super) fn is_of_this_process(&self) -> bool {
        self.is_of(fork::generation())
    }

    pub(super) fn is_of(&self, generation: u64) -> bool {
        self.generation == generation
    }

    /// Whether a message was refused because the budget was used up.
    pub(super) fn is_used_up(&self) -> bool {
        self.shared.budget.is_used_up()
    }

    pub(super) fn is_nearly_used_up(&self) -> bool {
        self.shared.budget.is_low()
    }

    /// Counts a stream as a message. Its bytes are counted as it grows.
    pub(super) fn begin_stream(&self) -> Result<(), Error> {
        self.check_process()?;
        self.shared.budget.reserve(0)
    }

    /// Counts `len` more plaintext bytes of a stream.
    pub(super) fn grow_stream(&self, len: usize) -> Result<(), Error> {
        self.check_process()?;
        self.shared.budget.reserve_bytes(u64::try_from(len).unwrap_or(u64::MAX))
    }

    /// Prevents the child of a fork from encrypting other bytes under the nonces of its parent.
    pub(super) fn check_process(&self) -> Result<(), Error> {
        if self.is_of_this_process() { Ok(()) } else { Err(expired()) }
    }

    /// Returns what precedes the ciphertext of each of its messages.
    pub(crate) fn prefix(&self, form: Form) -> &Prefix {
        match form {
            Form::Embedded => &self.embedded,
            Form::Compact => &self.compact,
        }
    }

    /// Returns the total length of this many messages.
    pub(crate) fn sealed_len(&self, form: Form, many: Many) -> Option<usize> {
        let added = self.prefix(form).len().checked_add(TAG_LEN)?;
        let added = usize::try_from(many.messages).ok()?.checked_mul(added)?;
        usize::try_from(many.bytes).ok()?.checked_add(added)
    }

    /// Returns how long a message may be.
    pub(crate) fn max_len(&self) -> u64 {
        self.max_len
    }
}

/// A number of messages and their total plaintext bytes.
#[derive(Clone, Copy, Default)]
pub(crate) struct Many {
    messages: u64,
    bytes: u64,
}

impl Many {
    pub(crate) fn messages(self) -> u64 {
        self.messages
    }

    pub(crate) fn is_empty(self) -> bool {
        self.messages == 0 && self.bytes == 0
    }

    /// Adds a message of `len` bytes, of which `max_len` may be encrypted.
    #[inline]
    pub(crate) fn add(&mut self, len: usize, max_len: u64) -> Result<(), Error> {
        let len = check_len(len, max_len)?;
        *self = Self {
            messages: self.messages.saturating_add(1),
            bytes: self.bytes.saturating_add(len),
        };
        Ok(())
    }

    /// Returns what is left after removing this many messages and bytes. `None` if there are fewer.
    pub(crate) fn without(self, messages: usize, bytes: usize) -> Option<Self> {
        let messages = self.messages.checked_sub(u64::try_from(messages).ok()?)?;
        Some(Self { messages, bytes: self.bytes.checked_sub(u64::try_from(bytes).ok()?)? })
    }

    /// Checks whether an unused DEK could encrypt all of them.
    pub(super) fn check(self, max_messages: u64, max_bytes: u64) -> Result<(), Error> {
        let Self { messages, bytes } = self;
        if messages <= max_messages && bytes <= max_bytes {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::TooLarge,
            format!(
                "{messages} messages of {bytes} bytes together; max_messages allows {max_messages} \
                 and max_bytes {max_bytes} under one DEK"
            ),
        ))
    }
}

/// The right to encrypt one message, or as many as were counted together.
pub(crate) struct Reservation<D>(D);

impl<D: Deref<Target = WritingDek>> Reservation<D> {
    /// Counts a message of `len` plaintext bytes for a handle, unless the DEK's time is over.
    #[inline]
    pub(crate) fn for_handle(dek: D, len: usize, given_stale: bool) -> Result<Self, Error> {
        dek.lease.check_handle(given_stale)?;
        Self::new(dek, len)
    }

    /// Counts a message for a call that has just obtained the DEK.
    pub(super) fn new(dek: D, len: usize) -> Result<Self, Error> {
        dek.check_process()?;
        let len = check_len(len, dek.max_len)?;
        dek.shared.budget.reserve(len)?;
        Ok(Self(dek))
    }

    /// Counts many messages for a handle: all or none. `room` is made first.
    pub(crate) fn of_many_for_handle<R>(
        dek: D,
        many: Many,
        given_stale: bool,
        room: impl FnOnce(&WritingDek) -> Result<R, Error>,
    ) -> Result<(Self, R), Error> {
        dek.lease.check_handle(given_stale)?;
        let budget = &dek.shared.budget;
        many.check(budget.max_messages(), budget.max_bytes())?;
        let room = room(&dek)?;
        Ok((Self::of_many(dek, many)?, room))
    }

    /// Counts many messages, which an unused DEK could encrypt: all or none.
    pub(super) fn of_many(dek: D, many: Many) -> Result<Self, Error> {
        dek.check_process()?;
        dek.shared.budget.reserve_of(many.messages, many.bytes)?;
        Ok(Self(dek))
    }

    pub(crate) fn dek(&self) -> &WritingDek {
        &self.0
    }

    /// Returns an encryptor of the counted messages, in one form.
    pub(crate) fn blocks(&self, form: Form) -> Blocks<'_> {
        let dek = &*self.0;
        Blocks { dek, prefix: dek.prefix(form), room: Vec::new(), laid_out: (0, 0) }
    }

    /// Encrypts under a new nonce, and fills `prefix` and `tag` around it. Returns *expired*, with
    /// everything untouched, if the DEK has ended since.
    pub(crate) fn seal(
        &self,
        form: Form,
        aad: &[u8],
        prefix: &mut [u8],
        data: InOut<'_>,
        tag: &mut Tag,
    ) -> Result<(), Error> {
        let dek = &*self.0;
        dek.lease.with_dek_keys(|keys| {
            let key = keys.message(data.to.len());
            let nonce = Nonce::random(dek.nonces, dek.lease.suite)?;
            dek.prefix(form).write(nonce.as_bytes(), prefix)?;
            key.seal_with(nonce.as_bytes(), aad, data, tag)
        })?
    }
}

/// Messages that are encrypted together: the AAD and the plaintext of up to [`BLOCK`].
pub(crate) struct Block<'i> {
    items: Vec<(&'i [u8], &'i [u8])>,
    /// The total size of the plaintexts.
    bytes: usize,
    /// Whether all have the same length.
    is_even: bool,
}

impl<'i> Block<'i> {
    pub(crate) fn new() -> Self {
        Self { items: Vec::with_capacity(BLOCK), bytes: 0, is_even: true }
    }

    pub(crate) fn clear(&mut self) {
        self.items.clear();
        (self.bytes, self.is_even) = (0, true);
    }

    #[inline]
    pub(crate) fn push(&mut self, aad: &'i [u8], plaintext: &'i [u8]) {
        self.is_even &= self.items.last().is_none_or(|(_, last)| last.len() == plaintext.len());
        self.bytes = self.bytes.saturating_add(plaintext.len());
        self.items.push((aad, plaintext));
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// Returns the total length of the plaintexts.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// Encrypts the messages of a reservation block by block.
pub(crate) struct Blocks<'r> {
    dek: &'r WritingDek,
    prefix: &'r Prefix,
    /// The buffer in which a short block is assembled. It stays in the nearest cache. If all
    /// messages have one length, each finds the previous prefix already in place.
    room: Vec<u8>,
    /// This many messages of this plaintext length have their prefixes in `room`.
    laid_out: (usize, usize),
}

impl Blocks<'_> {
    /// Encrypts a block after the content of `sealed`, where there is room for it, and appends the
    /// end of each message. After an error nothing of the block is there.
    ///
    /// No code that could fork runs between drawing the nonces and using them.
    pub(crate) fn seal(
        &mut self,
        block: &Block<'_>,
        sealed: &mut Vec<u8>,
        ends: &mut Vec<usize>,
    ) -> Result<(), Error> {
        let Self { dek, prefix, .. } = *self;
        dek.check_process()?;
        let (mut nonces, nonce_len) = ([0; 24 * BLOCK], dek.lease.suite.nonce_len());
        let nonces = nonces.get_mut(..block.len() * nonce_len).ok_or_else(too_many)?;
        dek.nonces.fill(nonces)?;
        let (begin, added) = (sealed.len(), prefix.len() + TAG_LEN);
        let bytes = block.bytes.saturating_add(block.len().saturating_mul(added));
        let has_room = begin.checked_add(bytes).is_some_and(|end| end <= sealed.capacity());
        let mut room = match has_room {
            false => return Err(too_many()),
            true if bytes <= SHORT_BLOCK => Some(self.lay_out(block, bytes)?),
            true => None,
        };
        let seal = |keys: &DekKeys| {
            let mut begin = 0;
            for ((aad, plaintext), nonce) in block.items.iter().zip(nonces.chunks_exact(nonce_len))
            {
                let end = begin + plaintext.len() + added;
                let (message, from) = match &mut room {
                    Some(room) => (room.get_mut(begin..end), Some(*plaintext)),
                    None => (Some(appended(sealed, prefix, nonce, plaintext)?), None),
                };
                begin = end;
                let Parts { room, to, tag } = Parts::of(message, prefix)?;
                prefix.write_nonce(nonce, room)?;
                keys.message(plaintext.len()).seal_with(nonce, aad, InOut { from, to }, tag)?;
            }
            Ok(())
        };
        let result = dek.lease.with_dek_keys(seal).flatten();
        if result.is_err() {
            wipe(sealed.get_mut(begin..).unwrap_or_default());
            sealed.truncate(begin);
            wipe(&mut self.room);
            self.laid_out = (0, 0);
            return result;
        }
        if bytes <= SHORT_BLOCK {
            sealed.extend_from_slice(self.room.get(..bytes).unwrap_or_default());
        }
        let mut end = begin;
        ends.extend(block.items.iter().map(|(_, plaintext)| {
            end += plaintext.len() + added;
            end
        }));
        Ok(())
    }

    /// Returns room for the messages of a block, which have this many bytes in total. Each begins
    /// with the prefix.
    fn lay_out(&mut self, block: &Block<'_>, bytes: usize) -> Result<&mut [u8], Error> {
        let first = block.items.first().map_or(0, |(_, plaintext)| plaintext.len());
        if self.room.len() < bytes {
            self.room.resize(bytes, 0);
        }
        let room = self.room.get_mut(..bytes).ok_or_else(too_many)?;
        let (messages, len) = self.laid_out;
        if !block.is_even || len != first || messages < block.len() {
            self.laid_out = (0, 0);
            let nonce = [0; 24];
            let nonce = nonce.get(..self.dek.lease.suite.nonce_len()).unwrap_or_default();
            let mut begin = 0;
            for (_, plaintext) in &block.items {
                let end = begin + self.prefix.len() + plaintext.len() + TAG_LEN;
                let parts = Parts::of(room.get_mut(begin..end), self.prefix)?;
                self.prefix.write(nonce, parts.room)?;
                begin = end;
            }
            if block.is_even {
                self.laid_out = (block.len(), first);
            }
        }
        Ok(room)
    }
}

/// Appends a message with its plaintext, for which there is room, and returns it.
fn appended<'s>(
    sealed: &'s mut Vec<u8>,
    prefix: &Prefix,
    nonce: &[u8],
    plaintext: &[u8],
) -> Result<&'s mut [u8], Error> {
    let begin = sealed.len();
    sealed.resize(begin + prefix.len(), 0);
    prefix.write(nonce, sealed.get_mut(begin..).unwrap_or_default())?;
    sealed.extend_from_slice(plaintext);
    sealed.resize(sealed.len() + TAG_LEN, 0);
    Ok(sealed.get_mut(begin..).unwrap_or_default())
}

/// The parts of a message.
struct Parts<'m> {
    /// The place of the prefix.
    room: &'m mut [u8],
    to: &'m mut [u8],
    tag: &'m mut Tag,
}

impl<'m> Parts<'m> {
    #[inline(always)]
    fn of(message: Option<&'m mut [u8]>, prefix: &Prefix) -> Result<Self, Error> {
        let parts = message.and_then(|message| message.split_at_mut_checked(prefix.len()));
        let (room, rest) = parts.ok_or_else(too_many)?;
        let (to, tag) = rest.split_last_chunk_mut::<TAG_LEN>().ok_or_else(too_many)?;
        Ok(Self { room, to, tag })
    }
}

/// Returns the longest plaintext that an unused DEK may encrypt.
pub(super) fn max_len(limits: &LimitsInForce) -> u64 {
    limits.max_bytes.min(MAX_PLAINTEXT)
}

#[inline]
pub(super) fn check_len(len: usize, max: u64) -> Result<u64, Error> {
    u64::try_from(len).ok().filter(|len| *len <= max).ok_or_else(|| too_large(len, max))
}

#[cold]
fn too_many() -> Error {
    Error::new(ErrorKind::TooLarge, "more than a block has room for")
}

#[cold]
fn too_large(len: usize, max: u64) -> Error {
    Error::new(
        ErrorKind::TooLarge,
        format!("{len} bytes of plaintext; max_bytes and the format allow {max}"),
    )
}
