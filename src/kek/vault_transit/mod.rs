//! A KEK in the Transit engine of HashiCorp Vault or OpenBao.
//!
//! ```no_run
//! use waxseal::Envelope;
//! use waxseal::kek::vault_transit::{VaultAuth, VaultTransit};
//!
//! # async fn start() -> Result<(), waxseal::Error> {
//! let kek = VaultTransit::builder("prod-eu", "orders")
//!     .address("https://vault.example:8200")
//!     .ca_file("/etc/ssl/vault-ca.pem")
//!     .auth(VaultAuth::app_role("orders-service").secret_id_file("/run/secrets/secret-id"))
//!     .build()?;
//! let envelope = Envelope::builder().write_to(kek).build()?;
//! # Ok(()) }
//! ```
//!
//! How to create the key, the smallest policy, rotation, and what an operator sees are in `docs/vault.md`.
//!
//! # How the encryption context binds
//!
//! | key | what Vault gets | Vault enforces the context | rewrap and datakey on the server |
//! |---|---|---|---|
//! | derived (recommended) | the context's canonical bytes as `context` | yes | yes |
//! | not derived, [`ContextBinding::AssociatedData`] | the same as `associated_data` | yes | no: Transit cannot rewrap such ciphertexts, so this process unwraps and wraps |
//! | not derived, [`ContextBinding::Unbound`] | nothing | no; the DEK id still commits to it, so a wrong context is found here, after Vault released the DEK | yes |
//!
//! Which of the first and the others applies is read from the key itself: Transit ignores a `context` under a key that is not derived, without a word.
#![forbid(unsafe_code)]

mod auth;
mod builder;
mod endpoints;
mod errors;
mod transport;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use base64ct::{Base64, Encoding};
use rustify::endpoint::Endpoint;
use tokio::sync::Mutex;
use zeroize::Zeroizing;

pub use auth::VaultAuth;
pub use builder::VaultTransitBuilder;

use super::home::Home;
use super::{BoxFuture, Dek, Health, KekError, KekErrorClass, KekId, KekProvider, UnwrappedDek, WrappedDek};
use crate::context::EncryptionContext;
use crate::format::vault::VaultCiphertext;
use auth::Authenticator;
use endpoints::{
    Item, KeyConfiguration, SecretText, ServerHealth, Wrapped, WrappedBatch, data_key, many, one, read_key,
};
use errors::{Failure, classify_item};
use transport::{Reply, SMALL, Transport};

/// One key of a Transit engine, as a [`KekProvider`]. A clone is another handle to the same.
///
/// Its id is `vault:CLUSTER/MOUNT/KEY`. The cluster's name is the caller's: two clusters may both have `transit/orders`, and their names, which
/// stand in every sealed message, tell them apart. A namespace is not part of the id: give the same key in two namespaces two cluster names.
///
/// A wrapped DEK is Transit's own text, `vault:vN:…`, so other tools can read it too.
#[derive(Clone)]
pub struct VaultTransit(Arc<Inner>);

/// How the encryption context binds under a key that is not derived. See the [module's table](self).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum ContextBinding {
    /// As `associated_data`: Vault enforces it, and cannot rewrap on the server.
    AssociatedData,
    /// Not at Vault, which releases the DEK for any context; the DEK id finds a wrong one after that. Vault rewraps on the server.
    Unbound,
}

/// What the server says of a key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct KeyInfo {
    /// Whether the encryption context is bound by derivation.
    pub derived: bool,
    /// The version that wraps.
    pub latest_version: u32,
    /// The oldest version that unwraps.
    pub min_decryption_version: u32,
}

/// How the context goes into requests, decided from the key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Binding {
    Derived,
    AssociatedData,
    Unbound,
}

struct Inner {
    id: KekId,
    mount: String,
    key: String,
    chosen: Option<ContextBinding>,
    key_max_age: Duration,
    transport: Arc<Transport>,
    auth: Arc<Authenticator>,
    home: Home,
    known: ArcSwapOption<Known>,
    /// Held by the one who reads the key; when that failed last, and how.
    reading: Mutex<Option<(Instant, Failure)>>,
    reading_in_background: Arc<AtomicBool>,
    /// A refusal might have come of an outdated idea of the key.
    in_doubt: AtomicBool,
    /// The highest version seen, in the key or in an answer; 0 before the first.
    latest_version: AtomicU32,
}

struct Known {
    info: KeyInfo,
    binding: Binding,
    at: Instant,
}

/// After a refusal the key is read anew, but not more often than this: refusals can be provoked by whoever writes messages.
const DOUBT_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// Items of one request: the server's default limit is 1,000 strings, and an item has six.
const BATCH_ITEMS: usize = 128;
/// Bytes of one request's contexts and ciphertexts; the server's default limit is 32 MiB.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Operation {
    Wrap,
    Unwrap,
    Rewrap,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Wrap => "wrap",
            Self::Unwrap => "unwrap",
            Self::Rewrap => "rewrap",
        }
    }

    fn verb(self) -> &'static str {
        match self {
            Self::Wrap => "encrypt",
            Self::Unwrap => "decrypt",
            Self::Rewrap => "rewrap",
        }
    }
}

/// What goes into one item of a request: a DEK in base64, or a ciphertext.
struct Input {
    text: Zeroizing<String>,
    context: EncryptionContext,
}

impl VaultTransit {
    /// Starts the configuration for the key `key` in the cluster that the caller calls `cluster`. Reads no environment variable.
    pub fn builder(cluster: impl Into<String>, key: impl Into<String>) -> VaultTransitBuilder {
        VaultTransitBuilder::new(cluster, key)
    }

    /// As [`builder`](Self::builder), with what these environment variables say; what is set on the builder wins: `VAULT_ADDR`, `VAULT_TOKEN`,
    /// `VAULT_NAMESPACE`, `VAULT_CACERT`, `VAULT_CLIENT_CERT` and `VAULT_CLIENT_KEY`, `VAULT_CLIENT_TIMEOUT`, `VAULT_PROXY_ADDR` or `VAULT_HTTP_PROXY`, and
    /// `HTTPS_PROXY` and its kin.
    ///
    /// `VAULT_SKIP_VERIFY`, `VAULT_CAPATH` and `VAULT_TLS_SERVER_NAME` are refused at build, not ignored.
    pub fn from_env(cluster: impl Into<String>, key: impl Into<String>) -> VaultTransitBuilder {
        VaultTransitBuilder::new(cluster, key).variables(|name| std::env::var_os(name))
    }

    /// Logs in if need be and reads the key now: at the start of a service, to fail early, and before a run that
    /// rewraps, so that [`is_current`](KekProvider::is_current) knows the latest version.
    ///
    /// # Errors
    /// Those of the server; *misconfigured* for a key that cannot be used as it is.
    pub async fn read_key(&self) -> Result<KeyInfo, KekError> {
        let inner = self.0.clone();
        let known = self.0.home.run(async move { inner.read_key_now().await }).await?;
        Ok(known.info)
    }

    async fn single(&self, operation: Operation, input: Input) -> Result<Wrapped, KekError> {
        let inner = self.0.clone();
        self.0.home.run(async move { inner.single(operation, &input).await }).await
    }

    async fn batch(&self, operation: Operation, inputs: Vec<Input>) -> Vec<Result<Wrapped, Failure>> {
        let (inner, len) = (self.0.clone(), inputs.len());
        let work = async move { Ok::<_, KekError>(inner.batch(operation, &inputs).await) };
        match self.0.home.run(work).await {
            Ok(results) => results,
            Err(error) => (0..len).map(|_| Err(Failure::new(error.class(), error.to_string()))).collect(),
        }
    }

    /// The ciphertext of an entry of this key, if it can be one.
    fn ciphertext(&self, context: &EncryptionContext, wrapped: &WrappedDek) -> Result<Input, KekError> {
        if wrapped.kek_id() != &self.0.id {
            return Err(KekError::invalid("wrapped by another KEK"));
        }
        match VaultCiphertext::read(wrapped.wrapped()) {
            Some(ciphertext) => {
                Ok(Input { text: Zeroizing::new(ciphertext.text.to_owned()), context: context.clone() })
            }
            None => Err(KekError::invalid("not a ciphertext of Vault's Transit engine")),
        }
    }

    fn wrapped(&self, operation: Operation, result: Wrapped) -> Result<WrappedDek, KekError> {
        self.0.wrapped(operation.name(), result.ciphertext.as_deref()).map_err(KekError::from)
    }

    fn unwrapped(result: Wrapped) -> Result<UnwrappedDek, KekError> {
        decode(result.plaintext.as_ref()).ok_or_else(|| Failure::not_understood("unwrap").into())
    }

    /// Whether ciphertexts of this key can be rewrapped on the server.
    async fn rewraps_on_the_server(&self) -> Result<bool, KekError> {
        let inner = self.0.clone();
        let known = self.0.home.run(async move { inner.known().await }).await?;
        Ok(known.binding != Binding::AssociatedData)
    }
}

impl Inner {
    /// One request with the session's token; once more after a new login, if that was refused.
    async fn call<E: Endpoint>(&self, operation: &str, endpoint: &E, most: usize) -> Result<Reply, Failure> {
        let session = self.auth.session().await?;
        let reply = self.transport.send(operation, endpoint, Some(&session.token), most).await?;
        if reply.status != 403 {
            return Ok(reply);
        }
        let Some(session) = self.auth.after_refusal(&session).await? else { return Ok(reply) };
        let reply = self.transport.send(operation, endpoint, Some(&session.token), most).await?;
        if reply.status == 403 {
            self.auth.refused_again().await;
        }
        Ok(reply)
    }

    // --- the key

    /// What is known of the key; read first if nothing is, or if it is in doubt.
    async fn known(self: &Arc<Self>) -> Result<Arc<Known>, Failure> {
        match self.known.load_full() {
            Some(known) if !self.is_in_doubt(&known) => {
                self.look_ahead(&known);
                Ok(known)
            }
            _ => {
                let asked = Instant::now();
                let mut last_failure = self.reading.lock().await;
                // Somebody may have read it meanwhile, or failed to.
                match (self.known.load_full(), &*last_failure) {
                    (Some(known), _) if !self.is_in_doubt(&known) => Ok(known),
                    (_, Some((at, failure))) if *at >= asked => Err(failure.clone()),
                    _ => {
                        let known = self.read_key_now().await;
                        *last_failure = known.as_ref().err().map(|failure| (Instant::now(), failure.clone()));
                        known
                    }
                }
            }
        }
    }

    fn is_in_doubt(&self, known: &Known) -> bool {
        self.in_doubt.load(Ordering::Relaxed) && known.at.elapsed() >= DOUBT_AT_MOST_EVERY
    }

    /// Reads the key in the background when what is known of it is old.
    fn look_ahead(self: &Arc<Self>, known: &Known) {
        if known.at.elapsed() >= self.key_max_age {
            self.read_key_in_background();
        }
    }

    fn read_key_in_background(self: &Arc<Self>) {
        let inner = self.clone();
        self.home.spawn_one(&self.reading_in_background, async move {
            // A failure changes nothing: whoever needs the key meets it too.
            let _ = inner.read_key_now().await;
        });
    }

    async fn read_key_now(&self) -> Result<Arc<Known>, Failure> {
        let at = Instant::now();
        let reply = self.call("read the key", &read_key(&self.mount, &self.key), SMALL).await?;
        let answer = reply.success::<KeyConfiguration>("read the key")?;
        let key = answer.data.ok_or_else(|| Failure::not_understood("read the key"))?;
        let binding = self.binding_of(&key)?;
        let info = KeyInfo {
            derived: key.derived,
            latest_version: key.latest_version,
            min_decryption_version: key.min_decryption_version,
        };
        let known = Arc::new(Known { info, binding, at });
        self.latest_version.store(info.latest_version, Ordering::Relaxed);
        self.in_doubt.store(false, Ordering::Relaxed);
        self.known.store(Some(known.clone()));
        Ok(known)
    }

    /// Decides from the key's own configuration how the context binds. What an earlier reading decided is forgotten when it does not hold any more.
    fn binding_of(&self, key: &KeyConfiguration) -> Result<Binding, Failure> {
        let refused = |class, why: &str| {
            self.known.store(None);
            Err(Failure::new(class, format!("the key {} {why}", self.key)))
        };
        let is_usable =
            matches!(&*key.key_type, "aes256-gcm96" | "chacha20-poly1305" | "xchacha20-poly1305" | "managed_key");
        match (key.derived, self.chosen) {
            _ if key.soft_deleted => refused(KekErrorClass::Denied, "is soft-deleted"),
            _ if !is_usable => {
                let why = format!(
                    "has the type {}; aes256-gcm96 or chacha20-poly1305 is wanted",
                    errors::presentable(&key.key_type)
                );
                refused(KekErrorClass::Misconfigured, &why)
            }
            _ if key.convergent_encryption => {
                refused(KekErrorClass::Misconfigured, "is convergent: it wraps without randomness")
            }
            (true, _) => Ok(Binding::Derived),
            (false, Some(ContextBinding::AssociatedData)) => Ok(Binding::AssociatedData),
            (false, Some(ContextBinding::Unbound)) => Ok(Binding::Unbound),
            (false, None) => {
                let why = "is not derived, so the server ignores the context; create it with derived=true, or choose a binding";
                refused(KekErrorClass::Misconfigured, why)
            }
        }
    }

    /// A refusal of this kind may come of a key that is not what it was.
    fn note(&self, failure: Failure) -> Failure {
        if matches!(failure.class, KekErrorClass::Invalid | KekErrorClass::Denied) {
            self.in_doubt.store(true, Ordering::Relaxed);
        }
        failure
    }

    // --- DEKs

    async fn single(self: &Arc<Self>, operation: Operation, input: &Input) -> Result<Wrapped, Failure> {
        let binding = self.known().await?.binding;
        let encoded = encode_context(binding, &input.context);
        let request =
            one(&self.mount, operation.verb(), &self.key, item(operation, binding, input, encoded.as_deref(), None));
        let reply = self.call(operation.name(), &request, SMALL).await?;
        let answer = reply.success::<Wrapped>(operation.name()).map_err(|failure| self.note(failure))?;
        answer.data.ok_or_else(|| Failure::not_understood(operation.name()))
    }

    async fn batch(self: &Arc<Self>, operation: Operation, inputs: &[Input]) -> Vec<Result<Wrapped, Failure>> {
        let binding = match self.known().await {
            Ok(known) => known.binding,
            Err(failure) => return inputs.iter().map(|_| Err(failure.clone())).collect(),
        };
        let mut results = Vec::with_capacity(inputs.len());
        let mut rest = inputs;
        while !rest.is_empty() {
            let (now, later) = rest.split_at(items_of_one_request(rest));
            rest = later;
            match self.one_batch(operation, binding, now).await {
                Ok(answers) => results.extend(answers),
                Err(failure) => results.extend(now.iter().map(|_| Err(failure.clone()))),
            }
        }
        results
    }

    /// One result per item, in order, whatever the status of the whole.
    async fn one_batch(
        &self,
        operation: Operation,
        binding: Binding,
        inputs: &[Input],
    ) -> Result<Vec<Result<Wrapped, Failure>>, Failure> {
        let name = operation.name();
        let contexts: Vec<_> = inputs.iter().map(|input| encode_context(binding, &input.context)).collect();
        let items = inputs.iter().zip(&contexts).enumerate();
        let items =
            items.map(|(i, (input, context))| item(operation, binding, input, context.as_deref(), Some(i.to_string())));
        let request = many(&self.mount, operation.verb(), &self.key, items.collect());
        let reply = self.call(name, &request, SMALL + inputs.len() * 16 * 1024).await?;
        // Some items failed, or none did; a failure of the whole has no results.
        let batch = match reply.read::<endpoints::Answer<WrappedBatch>>().and_then(|answer| answer.data) {
            Some(batch) if reply.is_success() || reply.status == 400 => batch,
            _ if reply.is_success() => return Err(Failure::not_understood(name)),
            _ => return Err(self.note(reply.failure(name))),
        };
        let in_order = batch
            .batch_results
            .iter()
            .enumerate()
            .all(|(i, result)| result.reference.as_deref().is_none_or(|reference| reference == i.to_string()));
        if batch.batch_results.len() != inputs.len() || !in_order {
            return Err(Failure::not_understood(name));
        }
        let result = |result: Wrapped| match result.error.as_deref() {
            Some(text) if !text.is_empty() => Err(self.note(classify_item(name, text))),
            _ => Ok(result),
        };
        Ok(batch.batch_results.into_iter().map(result).collect())
    }

    async fn generate(self: &Arc<Self>, context: &EncryptionContext) -> Result<Wrapped, Failure> {
        let binding = self.known().await?.binding;
        let request = data_key(&self.mount, &self.key, encode_context(binding, context));
        let reply = self.call("generate", &request, SMALL).await?;
        let answer = reply.success::<Wrapped>("generate").map_err(|failure| self.note(failure))?;
        answer.data.ok_or_else(|| Failure::not_understood("generate"))
    }

    /// The entry for a ciphertext that the server returned. What it says of the key's version is believed.
    fn wrapped(&self, operation: &str, ciphertext: Option<&str>) -> Result<WrappedDek, Failure> {
        let not_understood = || Failure::not_understood(operation);
        let bytes = ciphertext.ok_or_else(not_understood)?.as_bytes();
        let version = VaultCiphertext::read(bytes).ok_or_else(not_understood)?.version;
        let wrapped = WrappedDek::new(self.id.clone(), bytes).map_err(|_| not_understood())?;
        self.latest_version.fetch_max(version, Ordering::Relaxed);
        Ok(wrapped)
    }

    async fn health(self: &Arc<Self>) -> Result<Health, Failure> {
        let reply = self.transport.send_to_root("health", &endpoints::health()).await?;
        let state: ServerHealth = match reply.read() {
            Some(state) => state,
            None if reply.is_success() => return Err(Failure::not_understood("health")),
            None => return Err(reply.failure("health")),
        };
        if !state.initialized {
            return Err(Failure::misconfigured("health: the server is not initialised"));
        }
        if state.sealed {
            return Err(Failure::unavailable("health: the server is sealed"));
        }
        if state.replication_dr_mode == "secondary" {
            return Err(Failure::unavailable("health: the node is a disaster-recovery secondary"));
        }
        self.read_key_now().await?;
        if let Some(trouble) = self.auth.trouble() {
            return Ok(Health::Degraded(format!("the token cannot be kept alive: {trouble}")));
        }
        if state.standby || state.performance_standby {
            return Ok(Health::Degraded("the node is a standby; it passes calls on to the active one".to_owned()));
        }
        Ok(Health::Ready)
    }
}

/// How many of these go into one request; at least one.
fn items_of_one_request(inputs: &[Input]) -> usize {
    let mut bytes = 0;
    let fits = inputs.iter().take(BATCH_ITEMS).take_while(|input| {
        bytes += input.text.len() + input.context.as_bytes().len() * 4 / 3;
        bytes <= BATCH_BYTES
    });
    fits.count().max(1).min(inputs.len())
}

fn item<'a>(
    operation: Operation,
    binding: Binding,
    input: &'a Input,
    context: Option<&'a str>,
    reference: Option<String>,
) -> Item<'a> {
    let text = Some(input.text.as_str());
    let (plaintext, ciphertext) = if operation == Operation::Wrap { (text, None) } else { (None, text) };
    let (context, associated_data) = if binding == Binding::Derived { (context, None) } else { (None, context) };
    Item { plaintext, ciphertext, context, associated_data, reference }
}

/// The context's canonical bytes, if they go to the server.
fn encode_context(binding: Binding, context: &EncryptionContext) -> Option<String> {
    (binding != Binding::Unbound).then(|| Base64::encode_string(context.as_bytes()))
}

/// A DEK in base64, in a buffer of its size.
fn encode_dek(dek: &Dek) -> Zeroizing<String> {
    Zeroizing::new(Base64::encode_string(dek.expose()))
}

/// A DEK of whatever length out of base64; nobody has checked it yet.
fn decode(text: Option<&SecretText>) -> Option<UnwrappedDek> {
    let text = text?;
    let mut bytes = UnwrappedDek::new(vec![0; text.0.len() / 4 * 3]);
    let len = Base64::decode(text.0.as_bytes(), bytes.expose_mut()).ok()?.len();
    match bytes.expose().get(..len) {
        Some(exact) if len < bytes.expose().len() => Some(UnwrappedDek::new(exact.to_vec())),
        _ => Some(bytes),
    }
}

impl KekProvider for VaultTransit {
    fn id(&self) -> &KekId {
        &self.0.id
    }

    /// From the version in the text, against the latest one that is known: from the key ([`VaultTransit::read_key`], and again when that is older than
    /// [`key_max_age`](VaultTransitBuilder::key_max_age)) or from an answer. `None` while none is known; the first question starts a reading.
    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        match self.0.known.load_full() {
            Some(known) => self.0.look_ahead(&known),
            None => self.0.read_key_in_background(),
        }
        let latest = self.0.latest_version.load(Ordering::Relaxed);
        let ciphertext = VaultCiphertext::read(wrapped.wrapped()).filter(|_| latest > 0)?;
        Some(ciphertext.version >= latest)
    }

    fn wrap<'a>(&'a self, context: &'a EncryptionContext, dek: &'a Dek) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            let input = Input { text: encode_dek(dek), context: context.clone() };
            self.wrapped(Operation::Wrap, self.single(Operation::Wrap, input).await?)
        })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move {
            let input = self.ciphertext(context, wrapped)?;
            Self::unwrapped(self.single(Operation::Unwrap, input).await?)
        })
    }

    /// By Transit's `datakey`; under [`ContextBinding::AssociatedData`], which that does not take, made here and wrapped.
    fn generate<'a>(
        &'a self,
        context: &'a EncryptionContext,
    ) -> BoxFuture<'a, Result<(UnwrappedDek, WrappedDek), KekError>> {
        Box::pin(async move {
            if !self.rewraps_on_the_server().await? {
                let dek = Dek::random().map_err(|error| KekError::unavailable("no randomness").with_source(error))?;
                let wrapped = self.wrap(context, &dek).await?;
                return Ok((UnwrappedDek::new(dek.expose().to_vec()), wrapped));
            }
            let (inner, context) = (self.0.clone(), context.clone());
            let made = self.0.home.run(async move { inner.generate(&context).await }).await?;
            let wrapped = self.0.wrapped("generate", made.ciphertext.as_deref())?;
            let dek = decode(made.plaintext.as_ref()).ok_or_else(|| Failure::not_understood("generate"))?;
            Ok((dek, wrapped))
        })
    }

    /// On the server; under [`ContextBinding::AssociatedData`] here.
    fn rewrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move {
            let input = self.ciphertext(context, wrapped)?;
            if !self.rewraps_on_the_server().await? {
                let dek = Self::unwrapped(self.single(Operation::Unwrap, input).await?)?;
                let dek = dek.to_dek().ok_or_else(|| KekError::invalid("the unwrapped DEK is not 32 bytes"))?;
                return self.wrap(context, &dek).await;
            }
            self.wrapped(Operation::Rewrap, self.single(Operation::Rewrap, input).await?)
        })
    }

    fn wrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a Dek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        Box::pin(async move {
            let inputs = items
                .iter()
                .map(|(context, dek)| Ok(Input { text: encode_dek(dek), context: (*context).clone() }))
                .collect();
            self.each(Operation::Wrap, inputs, |result| self.wrapped(Operation::Wrap, result)).await
        })
    }

    fn unwrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<UnwrappedDek, KekError>>> {
        Box::pin(async move {
            let inputs = items.iter().map(|(context, wrapped)| self.ciphertext(context, wrapped)).collect();
            self.each(Operation::Unwrap, inputs, Self::unwrapped).await
        })
    }

    /// One request; under [`ContextBinding::AssociatedData`] two, and the DEKs pass through this process.
    fn rewrap_many<'a>(
        &'a self,
        items: &'a [(&'a EncryptionContext, &'a WrappedDek)],
    ) -> BoxFuture<'a, Vec<Result<WrappedDek, KekError>>> {
        Box::pin(async move {
            let on_the_server = self.rewraps_on_the_server().await;
            if !matches!(on_the_server, Ok(false)) {
                let inputs = items.iter().map(|(context, wrapped)| self.ciphertext(context, wrapped)).collect();
                return self.each(Operation::Rewrap, inputs, |result| self.wrapped(Operation::Rewrap, result)).await;
            }
            let unwrapped = self.unwrap_many(items).await;
            let inputs = items
                .iter()
                .zip(unwrapped)
                .map(|((context, _), unwrapped)| {
                    let dek =
                        unwrapped?.to_dek().ok_or_else(|| KekError::invalid("the unwrapped DEK is not 32 bytes"))?;
                    Ok(Input { text: encode_dek(&dek), context: (*context).clone() })
                })
                .collect();
            self.each(Operation::Wrap, inputs, |result| self.wrapped(Operation::Wrap, result)).await
        })
    }

    /// Sealed, not initialised and standby are told apart; then the login, the policy for reading the key, and the key itself are tried.
    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        Box::pin(async move {
            let inner = self.0.clone();
            self.0.home.run(async move { inner.health().await }).await
        })
    }
}

impl VaultTransit {
    /// Sends the items that can be sent, and puts every result in its place.
    async fn each<T>(
        &self,
        operation: Operation,
        inputs: Vec<Result<Input, KekError>>,
        finish: impl Fn(Wrapped) -> Result<T, KekError>,
    ) -> Vec<Result<T, KekError>> {
        let mut good = Vec::with_capacity(inputs.len());
        let places: Vec<Result<(), KekError>> =
            inputs.into_iter().map(|input| input.map(|input| good.push(input))).collect();
        let answers = if good.is_empty() { Vec::new() } else { self.batch(operation, good).await };
        let mut answers = answers.into_iter();
        places
            .into_iter()
            .map(|place| {
                place?;
                match answers.next() {
                    Some(answer) => finish(answer?),
                    None => Err(Failure::not_understood(operation.name()).into()),
                }
            })
            .collect()
    }
}

impl fmt::Debug for VaultTransit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VaultTransit({}, {})", self.0.id, self.0.auth.method())
    }
}
