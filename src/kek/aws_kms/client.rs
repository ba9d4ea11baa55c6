//! The AWS SDK: the calls that the provider makes, each once, and what became of them.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};

pub(super) use aws_config::SdkConfig;
use aws_credential_types::provider::error::CredentialsError;
pub(super) use aws_sdk_kms::Client;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::{BehaviorVersion, Builder as ConfigBuilder, Config, IdentityCache, Region};
use aws_sdk_kms::error::{ConnectorError, ProvideErrorMetadata, SdkError};
use aws_sdk_kms::operation::RequestId;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeySpec, KeyState, KeyUsageType, OriginType};

use super::super::{KekErrorClass, UnwrappedDek};
use super::errors::Failure;
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::kms::KeyMaterialId;

/// New credentials are fetched after a refusal, but not more often than this.
const STALE_AT_MOST_EVERY: Duration = Duration::from_secs(1);

/// How the SDK says that a client was made without credentials, in an error that has no public type.
const NO_CREDENTIALS: &str = "failed to select an auth scheme";

/// Where clients come from.
pub(super) enum Source {
    /// The SDK's default chains, looked up at build.
    Defaults,
    SdkConfig(Box<SdkConfig>),
    Client(Client),
}

/// What is laid over the source's own configuration.
#[derive(Default)]
pub(super) struct Overrides {
    pub(super) region: Option<String>,
    pub(super) endpoint_url: Option<String>,
    pub(super) fips: Option<bool>,
    pub(super) dual_stack: Option<bool>,
}

/// KMS in one Region, and in others where discovery may go there.
pub(super) struct Service {
    config: Config,
    region: String,
    clients: RwLock<Clients>,
}

struct Clients {
    by_region: BTreeMap<String, Client>,
    renewed: Option<Instant>,
}

/// A wrapped DEK as KMS gave it.
pub(super) struct Wrapped {
    pub(super) key_arn: String,
    pub(super) blob: Vec<u8>,
    pub(super) material: Option<KeyMaterialId>,
}

/// What `DescribeKey` said.
pub(super) struct Description {
    pub(super) arn: String,
    pub(super) state: State,
    pub(super) is_for_encryption: bool,
    pub(super) material: Option<KeyMaterialId>,
    /// When imported key material is deleted by KMS.
    pub(super) expires: Option<SystemTime>,
    /// Of a key whose origin is `EXTERNAL_KEY_STORE`.
    pub(super) external_key_store: Option<String>,
    pub(super) external_key: Option<String>,
}

impl Description {
    pub(super) fn check_usable(&self) -> Result<(), Failure> {
        let text = |class| Failure::new(class, format!("{} is in state {}", self.arn, self.state.name));
        self.state.usable.map_err(text)
    }
}

/// A key's state, in the words of KMS, and whether it can be used.
pub(super) struct State {
    pub(super) name: String,
    /// `Ok` if it can be used; else what a use would come to.
    pub(super) usable: Result<(), KekErrorClass>,
}

/// Key, encryption context and grant tokens: what every call names.
#[derive(Clone)]
pub(super) struct Under {
    pub(super) key: String,
    pub(super) context: EncryptionContext,
    pub(super) grant_tokens: Vec<String>,
}

impl Under {
    fn context(&self) -> Option<HashMap<String, String>> {
        let pairs = || self.context.iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        (!self.context.is_empty()).then(|| pairs().collect())
    }

    fn grant_tokens(&self) -> Option<Vec<String>> {
        (!self.grant_tokens.is_empty()).then(|| self.grant_tokens.clone())
    }
}

impl Service {
    /// The SDK's own retries are switched off: `kek::call` decides, for all providers alike.
    pub(super) async fn new(source: Source, overrides: Overrides) -> Result<Self, Error> {
        let mut config = match source {
            Source::Client(client) => client.config().to_builder(),
            Source::SdkConfig(shared) => from_shared(&shared),
            Source::Defaults => from_shared(&load_defaults(&overrides).await),
        };
        if let Some(region) = overrides.region {
            config.set_region(Some(Region::new(region)));
        }
        if let Some(url) = overrides.endpoint_url {
            config.set_endpoint_url(Some(url));
        }
        if overrides.fips.is_some() {
            config.set_use_fips(overrides.fips);
        }
        if overrides.dual_stack.is_some() {
            config.set_use_dual_stack(overrides.dual_stack);
        }
        let config = config.retry_config(RetryConfig::disabled()).build();
        let Some(region) = config.region().map(ToString::to_string) else {
            let detail = "region: neither the key's ARN, nor the builder, nor the AWS configuration names one";
            return Err(Error::new(ErrorKind::InvalidOption, detail));
        };
        let client = client(config.clone())?;
        let clients = Clients { by_region: BTreeMap::from([(region.clone(), client)]), renewed: None };
        Ok(Self { config, region, clients: RwLock::new(clients) })
    }

    pub(super) fn region(&self) -> &str {
        &self.region
    }

    fn client(&self, region: &str) -> Result<Client, Failure> {
        if let Some(client) = self.clients.read().unwrap_or_else(PoisonError::into_inner).by_region.get(region) {
            return Ok(client.clone());
        }
        let config = self.config.to_builder().region(Region::new(region.to_owned())).build();
        let client = client(config).map_err(|error| Failure::new(KekErrorClass::Misconfigured, error.to_string()))?;
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        Ok(clients.by_region.entry(region.to_owned()).or_insert(client).clone())
    }

    /// What the SDK holds as good credentials was refused: forget it, so that the next call fetches them anew.
    fn forget_credentials(&self) {
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        if clients.renewed.is_some_and(|renewed| renewed.elapsed() < STALE_AT_MOST_EVERY) {
            return;
        }
        clients.renewed = Some(Instant::now());
        for slot in clients.by_region.values_mut() {
            let config = slot.config().to_builder().identity_cache(IdentityCache::lazy().build()).build();
            if let Ok(fresh) = client(config) {
                *slot = fresh;
            }
        }
    }

    async fn send<T, E>(
        &self,
        operation: &str,
        call: impl Future<Output = Result<T, SdkError<E, HttpResponse>>>,
    ) -> Result<T, Failure>
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let failure = match call.await {
            Ok(output) => return Ok(output),
            Err(error) => failure(operation, &error),
        };
        if failure.is_of_stale_credentials() {
            self.forget_credentials();
        }
        Err(failure)
    }

    pub(super) async fn encrypt(&self, under: Under, dek: &[u8]) -> Result<Wrapped, Failure> {
        let call = self.client(&self.region)?.encrypt();
        let call = call.set_encryption_context(under.context()).set_grant_tokens(under.grant_tokens());
        let output = self.send("Encrypt", call.key_id(under.key).plaintext(Blob::new(dek)).send()).await?;
        wrapped("Encrypt", output.key_id, output.ciphertext_blob, None)
    }

    pub(super) async fn generate(&self, under: Under) -> Result<(UnwrappedDek, Wrapped), Failure> {
        let call = self.client(&self.region)?.generate_data_key().key_spec(DataKeySpec::Aes256);
        let call = call.set_encryption_context(under.context()).set_grant_tokens(under.grant_tokens());
        let output = self.send("GenerateDataKey", call.key_id(under.key).send()).await?;
        let dek = plaintext("GenerateDataKey", output.plaintext)?;
        let material = output.key_material_id.as_deref().and_then(KeyMaterialId::read);
        Ok((dek, wrapped("GenerateDataKey", output.key_id, output.ciphertext_blob, material)?))
    }

    /// The key is named in every call: the ciphertext names one too, and KMS would believe it.
    pub(super) async fn decrypt(&self, region: &str, under: Under, blob: Vec<u8>) -> Result<UnwrappedDek, Failure> {
        let call = self.client(region)?.decrypt().ciphertext_blob(Blob::new(blob));
        let call = call.set_encryption_context(under.context()).set_grant_tokens(under.grant_tokens());
        let output = self.send("Decrypt", call.key_id(&under.key).send()).await?;
        let dek = plaintext("Decrypt", output.plaintext)?;
        match output.key_id {
            Some(key) if key == under.key => Ok(dek),
            // KMS never does that; whoever does is not believed, and says nothing of other wrapped keys.
            _ => Err(Failure::new(KekErrorClass::Invalid, "Decrypt: the answer is another key's")),
        }
    }

    pub(super) async fn re_encrypt(&self, from: String, under: Under, blob: Vec<u8>) -> Result<Wrapped, Failure> {
        let call = self.client(&self.region)?.re_encrypt().ciphertext_blob(Blob::new(blob));
        let call = call.set_source_encryption_context(under.context()).source_key_id(from);
        let call = call.set_destination_encryption_context(under.context()).set_grant_tokens(under.grant_tokens());
        let output = self.send("ReEncrypt", call.destination_key_id(under.key).send()).await?;
        let material = output.destination_key_material_id.as_deref().and_then(KeyMaterialId::read);
        wrapped("ReEncrypt", output.key_id, output.ciphertext_blob, material)
    }

    pub(super) async fn describe(&self, key: &str, grant_tokens: Vec<String>) -> Result<Description, Failure> {
        let call = self.client(&self.region)?.describe_key().key_id(key);
        let call = call.set_grant_tokens((!grant_tokens.is_empty()).then_some(grant_tokens));
        let output = self.send("DescribeKey", call.send()).await?;
        let key = output.key_metadata.ok_or_else(|| Failure::not_understood("DescribeKey"))?;
        let is_external = key.origin == Some(OriginType::ExternalKeyStore);
        Ok(Description {
            arn: key.arn.ok_or_else(|| Failure::not_understood("DescribeKey"))?,
            state: state(key.key_state.as_ref(), key.enabled),
            is_for_encryption: key.key_usage.is_none_or(|usage| usage == KeyUsageType::EncryptDecrypt),
            material: key.current_key_material_id.as_deref().and_then(KeyMaterialId::read),
            expires: key.valid_to.and_then(|time| SystemTime::try_from(time).ok()),
            external_key_store: key.custom_key_store_id.filter(|_| is_external),
            external_key: key.xks_key_configuration.and_then(|external| external.id),
        })
    }

    /// A custom key store's connection state, and the error code of a failed one.
    #[cfg(feature = "xks")]
    pub(super) async fn describe_store(&self, id: &str) -> Result<(String, Option<String>), Failure> {
        const OPERATION: &str = "DescribeCustomKeyStores";
        let call = self.client(&self.region)?.describe_custom_key_stores().custom_key_store_id(id);
        let stores = self.send(OPERATION, call.send()).await?.custom_key_stores.unwrap_or_default();
        let store = stores.into_iter().find(|store| store.custom_key_store_id() == Some(id));
        let store = store.ok_or_else(|| Failure::not_understood(OPERATION))?;
        let connection_state = store.connection_state.ok_or_else(|| Failure::not_understood(OPERATION))?;
        let code = store.connection_error_code.map(|code| code.as_str().to_owned());
        Ok((connection_state.as_str().to_owned(), code))
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("region", &self.region).finish_non_exhaustive()
    }
}

fn from_shared(shared: &SdkConfig) -> ConfigBuilder {
    let config = ConfigBuilder::from(shared);
    match shared.behavior_version() {
        Some(_) => config,
        // A client without one is refused by a panic.
        None => config.behavior_version(BehaviorVersion::latest()),
    }
}

async fn load_defaults(overrides: &Overrides) -> SdkConfig {
    let loader = aws_config::defaults(BehaviorVersion::latest());
    match &overrides.region {
        // No look-up of a Region that is known: it may ask the instance's metadata service.
        Some(region) => loader.region(Region::new(region.clone())).load().await,
        None => loader.load().await,
    }
}

/// A client; what the SDK answers with a panic, such as a configuration without a way to sleep, is an error here.
fn client(config: Config) -> Result<Client, Error> {
    std::panic::catch_unwind(AssertUnwindSafe(|| Client::from_conf(config)))
        .map_err(|_| Error::new(ErrorKind::InvalidOption, "the AWS SDK refuses the client's configuration"))
}

fn wrapped(
    operation: &str,
    key_arn: Option<String>,
    blob: Option<Blob>,
    material: Option<KeyMaterialId>,
) -> Result<Wrapped, Failure> {
    match (key_arn, blob) {
        (Some(key_arn), Some(blob)) => Ok(Wrapped { key_arn, blob: blob.into_inner(), material }),
        _ => Err(Failure::not_understood(operation)),
    }
}

/// Takes the bytes over, so that they are wiped here.
fn plaintext(operation: &str, blob: Option<Blob>) -> Result<UnwrappedDek, Failure> {
    blob.map(|blob| UnwrappedDek::new(blob.into_inner())).ok_or_else(|| Failure::not_understood(operation))
}

fn state(state: Option<&KeyState>, enabled: bool) -> State {
    use KekErrorClass::{Denied, Unavailable};
    let usable = match state {
        // KMS goes on serving while the primary key of related keys changes ("Key states of AWS KMS keys").
        Some(KeyState::Enabled | KeyState::Updating) => Ok(()),
        None if enabled => Ok(()),
        Some(
            KeyState::Disabled
            | KeyState::PendingDeletion
            | KeyState::PendingImport
            | KeyState::PendingReplicaDeletion
            | KeyState::Unavailable,
        ) => Err(Denied),
        // Creating, and what is not known yet.
        _ => Err(Unavailable),
    };
    State { name: state.map_or_else(|| "unknown".to_owned(), |state| state.as_str().to_owned()), usable }
}

fn failure<E>(operation: &str, error: &SdkError<E, HttpResponse>) -> Failure
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    // Neither Debug nor the source of an SDK error is passed on: they carry the answer's body.
    match error {
        SdkError::ServiceError(service) => {
            let (status, meta) = (service.raw().status().as_u16(), service.err().meta());
            let mut failure = Failure::answered(operation, status, meta.code(), meta.message());
            if let Some(id) = meta.request_id() {
                failure.text = format!("{} (request {id})", failure.text);
            }
            failure
        }
        SdkError::ResponseError(_) => Failure::not_understood(operation),
        SdkError::TimeoutError(_) => {
            Failure::new(KekErrorClass::Unavailable, format!("{operation}: no answer in time"))
        }
        SdkError::DispatchFailure(dispatch) => not_sent(operation, dispatch.as_connector_error()),
        _ => Failure::new(KekErrorClass::Misconfigured, format!("{operation}: the request cannot be made")),
    }
}

/// Not answered: for want of credentials, or of a connection.
fn not_sent(operation: &str, error: Option<&ConnectorError>) -> Failure {
    let mut cause: Option<&(dyn StdError + 'static)> = error.map(|error| error as _);
    let (mut texts, mut class) = (Vec::new(), KekErrorClass::Unavailable);
    while let Some(error) = cause {
        if let Some(credentials) = error.downcast_ref::<CredentialsError>() {
            class = of_credentials(credentials);
            // What a credential provider says is not shown: it may be the output of a program.
            texts = vec![credentials.to_string()];
            break;
        }
        texts.push(error.to_string());
        cause = error.source();
    }
    texts.dedup();
    if texts.iter().any(|text| text.contains(NO_CREDENTIALS)) {
        class = KekErrorClass::Misconfigured;
        texts = vec!["no credentials are configured".to_owned()];
    }
    Failure::new(class, format!("{operation}: {}", texts.join(": ")))
}

/// Whether the way to the credentials is out of order, or what is at its end.
fn of_credentials(error: &CredentialsError) -> KekErrorClass {
    if matches!(error, CredentialsError::ProviderTimedOut(_)) {
        return KekErrorClass::Unavailable;
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        if error.downcast_ref::<ConnectorError>().is_some_and(|error| error.is_io() || error.is_timeout()) {
            return KekErrorClass::Unavailable;
        }
        cause = error.source();
    }
    KekErrorClass::Misconfigured
}
