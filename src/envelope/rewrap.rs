//! Makes new wrapped keys for old messages. The payload is not touched, and if the key service can
//! rewrap, no DEK enters the process.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::{Envelope, Sealed, StreamHead};
use crate::caller::{Action, Caller};
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::stream::{carried_keys, with_wrapped_keys};
use crate::format::{KeyKind, KeyRow, WrappedKeys};
use crate::kek::batch::KeyList;
use crate::kek::rewrap::Check;
use crate::store::{RewrapOptions, RewrapProgress};
use crate::suite::DekId;

impl Envelope {
    /// Returns whether [`rewrap`](Self::rewrap) would change the wrapped keys of a message. A
    /// rewrap makes an entry for each writing KEK, under its current version, and no other. Returns
    /// `false` if no KEK is for writing, since such an envelope rewraps nothing.
    ///
    /// This is **a hint** from the bytes alone, whose metadata is not authenticated. Use it to skip
    /// unnecessary work. Anyone who can write messages can make it return `false`. Before you
    /// destroy an old version of a KEK, [`rewrap`](Self::rewrap) every message, whatever this
    /// returns.
    ///
    /// # Errors
    /// The kinds for bytes that are not a message, and
    /// [`ErrorKind::MissingWrappedKeys`] for a compact one
    /// without its wrapped keys.
    pub fn needs_rewrap<'s>(&self, sealed: impl Into<Sealed<'s>>) -> Result<bool, Error> {
        let wrapped_keys = sealed.into().wrapped_keys()?;
        Ok(self.wrapped_keys_need_rewrap(&WrappedKeys::try_from(wrapped_keys)?))
    }

    /// Does the same as [`needs_rewrap`](Self::needs_rewrap), for separately stored wrapped keys.
    #[must_use]
    pub fn wrapped_keys_need_rewrap(&self, keys: &WrappedKeys) -> bool {
        let writing = &self.source().keks().writing;
        !writing.is_empty() && keys.entries().len() != writing.len()
            || writing.iter().any(|kek| {
                !keys
                    .entries()
                    .iter()
                    .any(|entry| entry.kek_id() == kek.id() && kek.is_current(entry) != Some(false))
            })
    }

    /// Returns the same message, wrapped by the current versions of the writing KEKs and by no
    /// others. Nonce, ciphertext and tag are copied unchanged. For a stream, see
    /// [`rewrap_head`](Self::rewrap_head).
    ///
    /// Metadata is not trusted. An entry is wrapped again unless its `wrapped` bytes alone show
    /// that it is current, so under AWS KMS every call costs one `ReEncrypt`.
    /// [`needs_rewrap`](Self::needs_rewrap) says which messages probably need it.
    ///
    /// Every entry of the result, kept or new, is unwrapped and checked against the DEK id before
    /// an old one is dropped, so the caller needs permission to unwrap.
    /// [`rewrap_unverified`](Self::rewrap_unverified) does not need it.
    ///
    /// # Errors
    /// Those of the key service; [`ErrorKind::Invalid`] if an entry does not contain the DEK in
    /// this context; [`ErrorKind::UnsupportedKind`] or others for bytes that are not a message;
    /// [`ErrorKind::MissingWrappedKeys`] for a compact message: use
    /// [`rewrap_wrapped_keys`](Self::rewrap_wrapped_keys). The old message remains valid.
    pub async fn rewrap(
        &self,
        context: &EncryptionContext,
        sealed: &[u8],
    ) -> Result<Vec<u8>, Error> {
        self.rewrap_message(None, context, sealed, Check::UnwrapEach).await
    }

    /// Rewraps a stream like [`rewrap`](Self::rewrap). It needs only the head. If the new head is
    /// as [long](StreamHead::len) as the old one, overwrite the old one with it. Otherwise the new
    /// stream is the new head followed by the rest of the old stream.
    /// [`StreamOptions::room`](crate::StreamOptions::room) decides which. No chunk is read or
    /// changed.
    ///
    /// ```
    /// # use waxseal::{Aad, EncryptionContext, Envelope, StreamHead, kek::local::LocalKek};
    /// # use std::io::Write;
    /// # pollster::block_on(async {
    /// # let kek = LocalKek::in_memory("test")?;
    /// # let envelope = Envelope::builder().wrap_with(kek.clone()).build()?;
    /// # let context = EncryptionContext::empty();
    /// # let mut file = envelope.encrypt_stream(&context, Aad::empty(), Vec::new()).await?.finish()?;
    /// # kek.rotate()?;
    /// let old = StreamHead::from_prefix(&file)?;
    /// let new = envelope.rewrap_head(&context, &old).await?;
    /// assert_eq!(new.len(), old.len());
    /// file[..new.len()].copy_from_slice(new.as_bytes());
    /// assert!(envelope.decrypt_stream(&context, Aad::empty(), &file[..]).await.is_ok());
    /// # Ok::<(), Box<dyn std::error::Error>>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// Those of [`rewrap`](Self::rewrap).
    pub async fn rewrap_head(
        &self,
        context: &EncryptionContext,
        head: &StreamHead,
    ) -> Result<StreamHead, Error> {
        StreamHead::from_prefix(&self.rewrap(context, head.as_bytes()).await?)
    }

    /// Rewraps many messages, each like [`rewrap`](Self::rewrap). Messages of one DEK have the same
    /// wrapped keys until some are rewrapped. Those with the same wrapped keys cost the calls of
    /// one. Returns one result for each message, in order. A failed message does not affect the
    /// others.
    ///
    /// If a key service has batches (Vault Transit), one call rewraps many lists and another checks
    /// them. Otherwise each list has its own calls. Calls run in parallel within the
    /// [`CallBudget`](crate::CallBudget), and each has its own
    /// [`deadline`](crate::CallPolicy::deadline). All results are kept in memory until the last one
    /// is complete, so split a large table into parts.
    ///
    /// ```
    /// # use waxseal::{Aad, EncryptionContext, Envelope, kek::local::LocalKek};
    /// # pollster::block_on(async {
    /// # let kek = LocalKek::in_memory("test")?;
    /// # let envelope = Envelope::builder().wrap_with(kek.clone()).build()?;
    /// # let context = EncryptionContext::empty();
    /// # let mut rows = Vec::new();
    /// # for row in 0..100_u64 {
    /// #     rows.push(envelope.encrypt(&context, Aad::from(&row.to_be_bytes()), b"text").await?);
    /// # }
    /// # kek.rotate()?;
    /// // 100 rows of one DEK: one rewrap.
    /// let rewrapped = envelope.rewrap_all(rows.iter().map(|row| (&context, &**row))).await;
    /// for row in rewrapped {
    ///     assert!(!envelope.needs_rewrap(&row?)?);
    /// }
    /// # Ok::<(), waxseal::Error>(()) }).unwrap();
    /// ```
    pub async fn rewrap_all<'m>(
        &self,
        messages: impl IntoIterator<Item = (&'m EncryptionContext, &'m [u8])>,
    ) -> Vec<Result<Vec<u8>, Error>> {
        self.rewrap_all_for(None, messages).await
    }

    pub(super) async fn rewrap_all_for<'m>(
        &self,
        caller: Option<&Caller>,
        messages: impl IntoIterator<Item = (&'m EncryptionContext, &'m [u8])>,
    ) -> Vec<Result<Vec<u8>, Error>> {
        let messages: Vec<_> = messages.into_iter().collect();
        let contexts = || messages.iter().map(|(context, _)| *context);
        let denied = self.denied(Action::Rewrap, contexts(), caller).await;
        let mut lists = Lists::default();
        let places: Vec<_> = messages
            .iter()
            .map(|&(context, sealed)| {
                if let Some(error) = denied.get(context) {
                    return Err(error.clone());
                }
                Ok::<_, Error>((sealed, lists.place_of(context, embedded(sealed)?)?))
            })
            .collect();
        let lists: Vec<_> = lists.lists.iter().map(List::as_key_list).collect();
        let rewrapped = self.source().rewrap_lists(&lists, Check::UnwrapEach).await;
        // If the rules changed or a decision ended meanwhile, the policy is asked again.
        let denied = match self.still_permits(&denied) {
            true => denied,
            false => self.denied(Action::Rewrap, contexts(), caller).await,
        };
        let answer =
            |place: usize| rewrapped.get(place).cloned().unwrap_or_else(|| Err(Error::invalid()));
        places
            .into_iter()
            .zip(contexts())
            .map(|(place, context)| {
                let (sealed, place) = place?;
                denied.get(context).map_or(Ok(()), |error| Err(error.clone()))?;
                with_wrapped_keys(sealed, answer(place)?.as_bytes())
            })
            .collect()
    }

    /// Rewraps like [`rewrap`](Self::rewrap), for a process that may not unwrap. It trusts what the
    /// key service returns, **and a wrong response makes the message unreadable forever** once the
    /// old bytes are gone. Keep them until the new ones have been read.
    ///
    /// A KEK without an entry gets one only if some other entry can be unwrapped.
    ///
    /// # Errors
    /// Those of [`rewrap`](Self::rewrap).
    pub async fn rewrap_unverified(
        &self,
        context: &EncryptionContext,
        sealed: &[u8],
    ) -> Result<Vec<u8>, Error> {
        self.rewrap_message(None, context, sealed, Check::None).await
    }

    /// Rewraps the wrapped keys of compact messages of the DEK `dek_id`, like
    /// [`rewrap`](Self::rewrap).
    ///
    /// # Errors
    /// Those of [`rewrap`](Self::rewrap).
    pub async fn rewrap_wrapped_keys(
        &self,
        context: &EncryptionContext,
        dek_id: &DekId,
        keys: &WrappedKeys,
    ) -> Result<WrappedKeys, Error> {
        let permitted = self.permit(Action::Rewrap, context, None).await?;
        let rewrapped = self.source().rewrap_list(context, dek_id, keys, Check::UnwrapEach).await?;
        self.confirm(permitted, Action::Rewrap, context, None).await.map(|()| rewrapped)
    }

    /// Rewraps the wrapped keys of every DEK in the [key store](crate::EnvelopeBuilder::key_store)
    /// under the current versions of the writing KEKs, and under no other KEK. Compact messages do
    /// not change. Afterwards a retired KEK can be disabled: see docs/key-stores.md, "Rotation
    /// day". Messages that carry their wrapped keys need [`rewrap`](Self::rewrap).
    ///
    /// It reads the store page by page and calls `progress` after each page. If a KEK has batches,
    /// one call rewraps many keys. Each new entry is unwrapped and checked before the old one is
    /// dropped, and a row is replaced only if nobody else changed it meanwhile. An interrupted run
    /// can [resume](RewrapOptions::after), and running it again does what is left. Branch keys are
    /// not changed: use [`rewrap_branch_keys`](crate::branch::BranchKek::rewrap_branch_keys) for
    /// them. Neither are the keys of other [data domains](crate::domain). A policy is asked once,
    /// with the empty context.
    ///
    /// ```
    /// # use waxseal::{Aad, EncryptionContext, Envelope, kek::local::LocalKek, store::MemoryStore};
    /// use waxseal::store::RewrapOptions;
    ///
    /// # pollster::block_on(async {
    /// # let (old, new) = (LocalKek::in_memory("old")?, LocalKek::in_memory("new")?);
    /// # let (store, context) = (MemoryStore::new(), EncryptionContext::empty());
    /// # let writer = Envelope::builder().wrap_with(old.clone()).key_store(store.clone()).build()?;
    /// # let sealed = writer.encrypt_compact(&context, Aad::empty(), b"text").await?.into_parts().0;
    /// let envelope =
    ///     Envelope::builder().wrap_with(new.clone()).unwrap_with(old).key_store(store.clone()).build()?;
    /// let mut cursor = None; // Keep it, to resume an interrupted run.
    /// let done = envelope
    ///     .rewrap_stored(RewrapOptions::default(), |so_far| cursor = so_far.next.clone())
    ///     .await?;
    /// assert_eq!((done.rewrapped, done.failed, done.unknown), (1, 0, 0));
    ///
    /// // The old KEK is not needed any more.
    /// let reader = Envelope::builder().wrap_with(new).key_store(store).build()?;
    /// assert_eq!(&*reader.decrypt(&context, Aad::empty(), &sealed).await?, b"text");
    /// # Ok::<(), waxseal::Error>(()) }).unwrap();
    /// ```
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] without a key store. The first outage of the store or of a KEK,
    /// and a shut-down, end the run: the last progress says where to resume. Check
    /// [`RewrapProgress::failed`] and [`RewrapProgress::unknown`] too.
    pub async fn rewrap_stored(
        &self,
        options: RewrapOptions,
        progress: impl FnMut(&RewrapProgress),
    ) -> Result<RewrapProgress, Error> {
        self.permit(Action::Rewrap, &EncryptionContext::empty(), None).await?;
        let source = self.source();
        let is_own = |row: &KeyRow| {
            row.kind() == KeyKind::Dek && row.context().is_some_and(|of| source.is_of_domain(of))
        };
        source.rewrap_store(options, is_own, progress).await
    }

    pub(super) async fn rewrap_message(
        &self,
        caller: Option<&Caller>,
        context: &EncryptionContext,
        sealed: &[u8],
        check: Check,
    ) -> Result<Vec<u8>, Error> {
        let permitted = self.permit(Action::Rewrap, context, caller).await?;
        let (dek_id, wrapped_keys) = embedded(sealed)?;
        let keys = WrappedKeys::try_from(wrapped_keys)?;
        let keys = self.source().rewrap_list(context, &dek_id, &keys, check).await?;
        self.confirm(permitted, Action::Rewrap, context, caller).await?;
        with_wrapped_keys(sealed, keys.as_bytes())
    }
}

/// Returns the DEK id and the wrapped keys of a message or stream that carries them.
fn embedded(sealed: &[u8]) -> Result<(DekId, &[u8]), Error> {
    match carried_keys(sealed)? {
        (dek_id, []) => {
            let detail = format!("{dek_id}: call rewrap_wrapped_keys");
            Err(Error::new(ErrorKind::MissingWrappedKeys, detail))
        }
        carried => Ok(carried),
    }
}

/// The distinct lists of wrapped keys of many messages, in the order of their first message.
#[derive(Default)]
struct Lists<'m> {
    lists: Vec<List<'m>>,
    places: HashMap<(DekId, [u8; 32], &'m [u8]), usize>,
}

struct List<'m> {
    context: &'m EncryptionContext,
    dek_id: DekId,
    keys: WrappedKeys,
}

impl List<'_> {
    fn as_key_list(&self) -> KeyList<'_> {
        KeyList { context: self.context, dek_id: &self.dek_id, keys: &self.keys }
    }
}

impl<'m> Lists<'m> {
    fn place_of(
        &mut self,
        context: &'m EncryptionContext,
        (dek_id, wrapped_keys): (DekId, &'m [u8]),
    ) -> Result<usize, Error> {
        match self.places.entry((dek_id, *context.digest(), wrapped_keys)) {
            Entry::Occupied(place) => Ok(*place.get()),
            Entry::Vacant(place) => {
                let keys = WrappedKeys::try_from(wrapped_keys)?;
                self.lists.push(List { context, dek_id, keys });
                Ok(*place.insert(self.lists.len() - 1))
            }
        }
    }
}
