//! The provider: translates the library's requests to calls on threads with sessions.
#![forbid(unsafe_code)]

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use waxseal::kek::{
    BoxFuture, CallTarget, ContextBinding, Health, KekError, KekProvider, Login, UnwrappedDek,
};
use waxseal::{Dek, EncryptionContext, KekId, WrappedDek};
use zeroize::Zeroizing;

use crate::errors::{Failure, forked};
use crate::format::Wrapped;
use crate::key::{KeyInfo, hex};
use crate::link::Link;
use crate::oneshot::Receiver;
use crate::pool::{Counted, Pool};
use crate::token::{Token, Wrapping, check_process, not_ours};

/// The number of calls of a batch that wait or run at one time, for each session.
const AT_ONCE: usize = 4;

/// Wraps DEKs by an AES key in a hardware security module, with PKCS#11's `CKM_AES_GCM`. A clone is
/// another handle to the same provider.
///
/// Its id is `pkcs11:TOKEN/OBJECT`, from the label of the token (or the
/// [`name`](crate::Pkcs11KekBuilder::name) that you set) and the label of the key. The digest of
/// the encryption context is the additional authenticated data, so the token itself refuses a wrong
/// context.
///
/// Functions of PKCS#11 block. They run on the provider's threads, each with a session, so any
/// executor may poll a future, and no runtime is needed. A call in progress cannot be interrupted,
/// even if its future is dropped. Until it ends it keeps its thread and its session.
#[derive(Clone)]
pub struct Pkcs11Kek(Arc<Inner>);

struct Inner {
    id: KekId,
    target: CallTarget,
    pool: Pool,
    at_once: usize,
}

/// The counts and the current state of a provider.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Statistics {
    /// Encryptions of a DEK in the token. A rewrap is one of these and one of `unwraps`.
    pub wraps: u64,
    /// Decryptions of a DEK in the token.
    pub unwraps: u64,
    /// Open sessions.
    pub sessions: usize,
    /// Calls that wait for a session.
    pub waiting: usize,
}

impl Pkcs11Kek {
    pub(crate) fn new(id: KekId, target: CallTarget, pool: Pool, sessions: usize) -> Self {
        let at_once = sessions.saturating_mul(AT_ONCE);
        Self(Arc::new(Inner { id, target, pool, at_once }))
    }

    /// Connects if necessary, reads the key's versions and flags, and determines the token's IV
    /// source. Use it at the start of a service, to fail early, and before a rewrap run, so that
    /// [`is_current`](KekProvider::is_current) knows a new version at once.
    ///
    /// # Errors
    /// Those of the token; *misconfigured* for a key or a token that cannot be used as it is.
    pub async fn read_key(&self) -> Result<KeyInfo, KekError> {
        self.call(Counted::Nothing, |token, link| link.check(token)).await
    }

    /// Returns the provider's counts, without a call.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let counts = self.0.pool.counts();
        Statistics {
            wraps: counts.wraps,
            unwraps: counts.unwraps,
            sessions: counts.sessions,
            waiting: counts.waiting,
        }
    }

    /// Allows one more try of PINs that this provider's token refused, after an operator corrected
    /// the token and not the PIN. Without this, a PIN that was refused, or may have counted as
    /// wrong, is not tried again by any provider of this process, since a token locks after a few
    /// wrong PINs. For a provider that has never tried to log in, it applies to all tokens.
    ///
    /// # Errors
    /// *Misconfigured* in the child of a fork.
    pub fn forget_refused_pins(&self) -> Result<(), KekError> {
        check_process()?;
        if let Some(pins) = &self.0.pool.token().pins {
            pins.forget_refused();
        }
        Ok(())
    }

    fn submit<T: Send + 'static>(
        &self,
        counted: Counted,
        mut work: impl FnMut(&Token, &mut Link) -> Result<T, Failure> + Send + 'static,
    ) -> Result<Receiver<Result<T, Failure>>, KekError> {
        // Before any lock: the child of a fork could have inherited it locked.
        if !self.0.pool.is_of_this_process() {
            return Err(forked().into());
        }
        check_process()?;
        let inner = Arc::downgrade(&self.0);
        let work = move |link: &mut Link| match inner.upgrade() {
            Some(inner) => work(inner.pool.token(), link),
            None => Err(Failure::unavailable("the provider was dropped").without_asking()),
        };
        Ok(self.0.pool.submit(counted, work)?)
    }

    async fn call<T: Send + 'static>(
        &self,
        counted: Counted,
        work: impl FnMut(&Token, &mut Link) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, KekError> {
        answer(self.submit(counted, work)?).await
    }

    fn submit_wrap(
        &self,
        context: &EncryptionContext,
        dek: &Dek,
    ) -> Result<Receiver<Result<Vec<u8>, Failure>>, KekError> {
        let wrapping =
            Wrapping { aad: *context.digest(), dek: Zeroizing::new(dek.expose().to_vec()) };
        self.submit(Counted::Wrap, move |token, link| link.wrap(token, &wrapping))
    }

    fn submit_unwrap(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Result<Receiver<Result<UnwrappedDek, Failure>>, KekError> {
        if wrapped.kek_id() != &self.0.id {
            return Err(KekError::invalid("wrapped by another KEK").without_asking());
        }
        if Wrapped::read(wrapped.wrapped()).is_none() {
            return Err(not_ours().into());
        }
        let (aad, bytes) = (*context.digest(), wrapped.wrapped().to_vec());
        self.submit(Counted::Unwrap, move |token, link| link.unwrap(token, &aad, &bytes))
    }

    fn entry(&self, bytes: Vec<u8>) -> Result<WrappedDek, KekError> {
        WrappedDek::new(self.0.id.clone(), bytes).map_err(|error| {
            KekError::unavailable("the token's answer makes no entry").with_source(error)
        })
    }

    /// Begins a bounded number of calls, and awaits them in order.
    async fn each<I: Copy, T, R>(
        &self,
        items: &[I],
        begin: impl Fn(I) -> Result<Receiver<Result<T, Failure>>, KekError>,
        finish: impl Fn(T) -> Result<R, KekError>,
    ) -> Vec<Result<R, KekError>> {
        let mut results = Vec::with_capacity(items.len());
        for items in items.chunks(self.0.at_once.max(1)) {
            let begun: Vec<_> = items.iter().map(|item| begin(*item)).collect();
            for call in begun {
                let result = match call {
                    Ok(receiver) => answer(receiver).await,
                    Err(error) => Err(error),
                };
                results.push(result.and_then(&finish));
            }
        }
        results
    }
}

async fn answer<T>(receiver: Receiver<Result<T, Failure>>) -> Result<T, KekError> {
    match receiver.await {
        Some(result) => result.map_err(KekError::from),
        None => Err(KekError::unavailable("the call panicked, or the provider was dropped")),
    }
}

fn dek_of(unwrapped: &UnwrappedDek) -> Result<Dek, KekError> {
    unwrapped.to_dek().ok_or_else(|| KekError::invalid("the unwrapped DEK is not 32 bytes"))
}

impl KekProvider for Pkcs11Kek {
    fn id(&self) -> &KekId {
        &self.0.id
    }

    /// Returns the token as the target, with a budget of as many calls in flight as there are
    /// sessions.
    fn target(&self, _: &KekId) -> CallTarget {
        self.0.target.clone()
    }

    /// Returns enforced: the context's digest is additional authenticated data of AES-GCM. Before
    /// the first wrap, a test confirms that the token refuses another one.
    fn context_binding(&self) -> ContextBinding {
        ContextBinding::Enforced
    }

    /// Compares the `CKA_ID` in the entry with that of the key that wraps. `None` before the first
    /// connection.
    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        let key_id = Wrapped::read(wrapped.wrapped())?.key_id;
        self.0.pool.token().is_current(key_id)
    }

    /// Returns the `CKA_ID` in hexadecimal digits.
    fn key_version(&self, wrapped: &WrappedDek) -> Option<Box<str>> {
        let key_id = Wrapped::read(wrapped.wrapped())?.key_id;
        if key_id.is_empty() { None } else { Some(hex(key_id).into()) }
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move { self.entry(answer(self.submit_wrap(context, dek)?).await?) })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move { answer(self.submit_unwrap(context, wrapped)?).await })
    }

    /// Uses the token's generator (`C_GenerateRandom`), or this process's if it has none.
    fn generate<'a>(
        &'a self,
        context: &'a EncryptionContext,
    ) -> BoxFuture<'a, Result<(UnwrappedDek, WrappedDek), KekError>> {
        Box::pin(async move {
            let aad = *context.digest();
            let generate = move |token: &Token, link: &mut Link| link.generate(token, aad);
            let (dek, bytes) = self.call(Counted::Wrap, generate).await?;
            Ok((UnwrappedDek::new(dek.to_vec()), self.entry(bytes)?))
        })
    }

    /// Makes two calls: PKCS#11 has no function for it, so the DEK passes through this process.
    fn rewrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            let unwrapped = answer(self.submit_unwrap(context, wrapped)?).await?;
            let dek = dek_of(&unwrapped)?;
            self.entry(answer(self.submit_wrap(context, &dek)?).await?)
        })
    }

    /// Runs in parallel on the sessions, a bounded number at a time.
    fn wrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a Dek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        Box::pin(self.each(
            items,
            |(context, dek)| self.submit_wrap(context, dek),
            |bytes| self.entry(bytes),
        ))
    }

    fn unwrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<UnwrappedDek, KekError>>> {
        Box::pin(self.each(items, |(context, wrapped)| self.submit_unwrap(context, wrapped), Ok))
    }

    fn rewrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        Box::pin(async move {
            let mut results = Vec::with_capacity(items.len());
            // A limited number at a time, so that few DEKs are in memory.
            for items in items.chunks(self.0.at_once.max(1)) {
                let unwrapped = self.unwrap_many(items).await;
                let begun: Vec<_> = items
                    .iter()
                    .zip(unwrapped)
                    .map(|((context, _), unwrapped)| {
                        self.submit_wrap(context, &dek_of(&unwrapped?)?)
                    })
                    .collect();
                for call in begun {
                    results.push(match call {
                        Ok(receiver) => answer(receiver).await.and_then(|bytes| self.entry(bytes)),
                        Err(error) => Err(error),
                    });
                }
            }
            results
        })
    }

    /// Reads the key's flags and makes a trial. `Degraded` for a key that can be extracted or read,
    /// or that may not be used in both directions, and for a token that recently got a wrong PIN or
    /// has fewer sessions than allowed here.
    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        Box::pin(async move {
            let mut notes = self.read_key().await?.notes;
            let counts = self.0.pool.counts();
            if counts.is_limited {
                notes.push(format!("the token had no session left: {} are open", counts.sessions));
            }
            Ok(match notes.is_empty() {
                true => Health::Ready,
                false => Health::Degraded(notes.join("; ")),
            })
        })
    }

    fn login(&self) -> Option<Login> {
        let token = self.0.pool.token();
        token.pins.as_ref()?;
        let logins = token.logins.load(Ordering::Relaxed);
        Some(Login::new(logins, token.failed_logins.load(Ordering::Relaxed)))
    }

    /// Ends the threads and their sessions, after the calls in progress. The module stays loaded.
    /// The login ends with the last session of the process at the token.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.0.pool.close())
    }
}

/// Shows no PIN.
impl fmt::Debug for Pkcs11Kek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pkcs11Kek({}, {})", self.0.id, self.0.pool.token().module.display())
    }
}
