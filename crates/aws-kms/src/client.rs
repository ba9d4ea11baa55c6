//! The AWS SDK: the provider's calls, each made once, and their outcomes.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, HashMap};
use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

pub(crate) use aws_sdk_kms::Client;
use aws_sdk_kms::config::http::HttpResponse;
use aws_sdk_kms::config::retry::RetryConfig;
use aws_sdk_kms::config::{
    BehaviorVersion, Builder as ConfigBuilder, Config, Credentials, IdentityCache, Region,
};
use aws_sdk_kms::error::{ConnectorError, ProvideErrorMetadata, SdkError};
use aws_sdk_kms::operation::RequestId;
use aws_sdk_kms::primitives::Blob;
use aws_sdk_kms::types::{DataKeySpec, KeyState, KeyUsageType, OriginType};

use crate::answers::{Description, State, Unwrapped, Wrapped};
use crate::credentials::Keeper;
use crate::errors::Failure;
use crate::format::KeyMaterialId;
use crate::refusals::{Refusal, refusal};
use crate::sdk::{self, SdkConfig};
use crate::transport::{self, InTheClear, OnItsWay, PlainTextGuard, Pool, Probe, ProbeHandle};
use waxseal::EncryptionContext;
use waxseal::kek::toolkit::{certificates, report_request_id};
use waxseal::kek::{KekErrorClass, Login, UnwrappedDek};
use waxseal::{Error, ErrorKind};

/// Nothing is sent over the network while the endpoint is looked up.
const ENDPOINT_TIMEOUT: Duration = Duration::from_secs(10);

/// The SDK's words for a client without credentials, in an error that has no public type.
const NO_CREDENTIALS: &str = "failed to select an auth scheme";

/// The source of clients.
pub(crate) enum Source {
    /// The SDK's default sources, looked up at build.
    Defaults,
    SdkConfig(Box<SdkConfig>),
    Client(Client),
}

/// The overrides of the source's own configuration.
#[derive(Default)]
pub(crate) struct Overrides {
    pub(crate) region: Option<String>,
    pub(crate) endpoint_url: Option<String>,
    pub(crate) fips: Option<bool>,
    pub(crate) dual_stack: Option<bool>,
}

/// KMS in one Region, and in others if discovery may use them.
pub(crate) struct Service {
    config: Config,
    region: String,
    /// The target of calls to this Region: scheme, host and port. For error texts.
    endpoint: Option<String>,
    keeper: Keeper,
    /// The user supplied the HTTP client.
    foreign_http: bool,
    /// The endpoint is plain http, on this machine.
    in_the_clear: bool,
    clients: RwLock<BTreeMap<String, Slot>>,
    pools: AtomicU64,
}

#[derive(Clone)]
struct Slot {
    client: Client,
    pool: Arc<Pool>,
}

/// Key, encryption context and grant tokens, which every call includes.
#[derive(Clone)]
pub(crate) struct Under {
    pub(crate) key: String,
    pub(crate) context: EncryptionContext,
    pub(crate) grant_tokens: Vec<String>,
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
    /// The SDK's own retries are disabled: `kek::call` decides, for all providers alike. So is its
    /// identity cache: see `credentials`.
    pub(crate) async fn new(source: Source, overrides: Overrides) -> Result<Self, Error> {
        let mut config = match source {
            Source::Client(client) => client.config().to_builder(),
            Source::SdkConfig(shared) => from_shared(&shared),
            Source::Defaults => {
                check_roots()?;
                from_shared(&load_defaults(&overrides).await)
            }
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
        let keeper = Keeper::default();
        let config = config.retry_config(RetryConfig::disabled()).identity_cache(keeper.clone());
        let config = config.interceptor(PlainTextGuard).build();
        let Some(region) = config.region().map(ToString::to_string) else {
            let detail = "region: neither the key's ARN, nor the builder, nor the AWS configuration names one";
            return Err(Error::new(ErrorKind::InvalidOption, detail));
        };
        let foreign_http = config.http_client().is_some();
        if !foreign_http {
            check_roots()?;
        }
        let clients = RwLock::default();
        let mut service = Self {
            config,
            region,
            endpoint: None,
            keeper,
            foreign_http,
            in_the_clear: false,
            clients,
            pools: AtomicU64::new(0),
        };
        let slot = service.make(&service.region)?;
        if let Some(endpoint) = endpoint_of(&slot.client).await {
            if !transport::is_private(&endpoint) {
                return Err(in_the_clear(&endpoint));
            }
            service.in_the_clear = transport::is_plain(&endpoint);
            service.endpoint = Some(transport::origin(&endpoint).to_owned());
        }
        Ok(service)
    }

    pub(crate) fn region(&self) -> &str {
        &self.region
    }

    pub(crate) fn login(&self) -> Login {
        self.keeper.login()
    }

    fn make(&self, region: &str) -> Result<Slot, Error> {
        let number = self.pools.fetch_add(1, Ordering::Relaxed);
        let config = self.config.to_builder().region(Region::new(region.to_owned()));
        let config = if self.foreign_http {
            config.timeout_config(transport::timeouts_of_pool(self.config.timeout_config(), number))
        } else {
            config.http_client(transport::http_client(self.in_the_clear))
        };
        Ok(Slot { client: client(config.build())?, pool: Arc::new(Pool::new()) })
    }

    /// Returns a client whose pool is still trusted.
    fn slot(&self, region: &str) -> Result<Slot, Failure> {
        let fit = |slot: &&Slot| !slot.pool.is_left();
        if let Some(slot) =
            self.clients.read().unwrap_or_else(PoisonError::into_inner).get(region).filter(fit)
        {
            return Ok(slot.clone());
        }
        let mut clients = self.clients.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = clients.get(region).filter(fit) {
            return Ok(slot.clone());
        }
        let slot = self.make(region);
        let slot = slot
            .map_err(|error| Failure::unasked(KekErrorClass::Misconfigured, error.to_string()))?;
        clients.insert(region.to_owned(), slot.clone());
        Ok(slot)
    }

    /// Records that a call to this Region is in flight, for a caller that may drop it: the spawned
    /// task is dropped too late for the next try. `None` while there is no client with pooled
    /// connections. None is made here, because the caller may be on any runtime.
    pub(crate) fn on_its_way(&self, region: &str) -> Option<OnItsWay> {
        let clients = self.clients.read().unwrap_or_else(PoisonError::into_inner);
        clients.get(region).map(|slot| OnItsWay::new(slot.pool.clone()))
    }

    /// Makes one call, and repeats it with other credentials if KMS refuses ones that looked valid.
    async fn send<T, E, F>(
        &self,
        region: &str,
        operation: &str,
        call: impl Fn(&Client) -> F,
    ) -> Result<T, Failure>
    where
        T: RequestId,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let before = self.keeper.generation();
        let failure = match self.send_once(region, operation, &call).await {
            Err(failure) if failure.is_of_stale_credentials() => failure,
            answer => return answer,
        };
        // The first load belongs to the call itself.
        let refused = if before == 0 { self.keeper.generation() } else { before };
        match self.keeper.renew(refused).await {
            Ok(true) => self.send_once(region, operation, &call).await,
            Ok(false) => Err(failure),
            Err(error) => Err(not_loaded(operation, &*error).unwrap_or(failure)),
        }
    }

    async fn send_once<T, E, F>(
        &self,
        region: &str,
        operation: &str,
        call: &impl Fn(&Client) -> F,
    ) -> Result<T, Failure>
    where
        T: RequestId,
        F: Future<Output = Result<T, SdkError<E, HttpResponse>>>,
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let Slot { client, pool } = self.slot(region)?;
        let on_its_way = OnItsWay::new(pool.clone());
        let answer = call(&client).await;
        match &answer {
            Ok(_) | Err(SdkError::ServiceError(_) | SdkError::ResponseError(_)) => {
                pool.answered(on_its_way.elapsed())
            }
            Err(SdkError::TimeoutError(_)) => pool.leave(),
            Err(SdkError::DispatchFailure(dispatch))
                if dispatch.as_connector_error().is_some_and(is_of_a_line) =>
            {
                pool.leave();
            }
            Err(_) => {}
        }
        on_its_way.over();
        let request_id = match &answer {
            Ok(output) => output.request_id(),
            Err(error) => error.as_service_error().and_then(|error| error.meta().request_id()),
        };
        // Only of this call, and not of the requests about the key that may follow.
        if let Some(request_id) = request_id.filter(|_| !operation.starts_with("Describe")) {
            report_request_id(request_id);
        }
        let endpoint = self.endpoint.as_deref().filter(|_| region == self.region);
        answer.map_err(|error| failure(operation, endpoint, &error))
    }

    pub(crate) async fn encrypt(&self, under: Under, dek: &[u8]) -> Result<Wrapped, Failure> {
        let call = |client: &Client| {
            let call = client.encrypt().key_id(&under.key).plaintext(Blob::new(dek));
            call.set_encryption_context(under.context())
                .set_grant_tokens(under.grant_tokens())
                .send()
        };
        let output = self.send(&self.region, "Encrypt", call).await?;
        wrapped("Encrypt", output.key_id, output.ciphertext_blob, None)
    }

    pub(crate) async fn generate(&self, under: Under) -> Result<(UnwrappedDek, Wrapped), Failure> {
        let call = |client: &Client| {
            let call = client.generate_data_key().key_id(&under.key).key_spec(DataKeySpec::Aes256);
            call.set_encryption_context(under.context())
                .set_grant_tokens(under.grant_tokens())
                .send()
        };
        let output = self.send(&self.region, "GenerateDataKey", call).await?;
        let dek = plaintext("GenerateDataKey", output.plaintext)?;
        let material = output.key_material_id.as_deref().and_then(KeyMaterialId::read);
        Ok((dek, wrapped("GenerateDataKey", output.key_id, output.ciphertext_blob, material)?))
    }

    /// Every call names the key. The ciphertext names one too, and KMS would trust it.
    pub(crate) async fn decrypt(
        &self,
        region: &str,
        under: Under,
        blob: &[u8],
    ) -> Result<Unwrapped, Failure> {
        let call = |client: &Client| {
            let call = client.decrypt().key_id(&under.key).ciphertext_blob(Blob::new(blob));
            call.set_encryption_context(under.context())
                .set_grant_tokens(under.grant_tokens())
                .send()
        };
        let output = self.send(region, "Decrypt", call).await?;
        let dek = plaintext("Decrypt", output.plaintext)?;
        let material = output.key_material_id.as_deref().and_then(KeyMaterialId::read);
        match output.key_id {
            Some(key) if key == under.key => Ok(Unwrapped { dek, material }),
            // KMS never does that. Such an answer says nothing about other wrapped keys.
            _ => Err(Failure::new(KekErrorClass::Invalid, "Decrypt: the answer is another key's")),
        }
    }

    pub(crate) async fn re_encrypt(
        &self,
        from: &str,
        under: Under,
        blob: &[u8],
    ) -> Result<Wrapped, Failure> {
        let call = |client: &Client| {
            let call = client.re_encrypt().ciphertext_blob(Blob::new(blob)).source_key_id(from);
            let call =
                call.destination_key_id(&under.key).set_source_encryption_context(under.context());
            call.set_destination_encryption_context(under.context())
                .set_grant_tokens(under.grant_tokens())
                .send()
        };
        let output = self.send(&self.region, "ReEncrypt", call).await?;
        let material = output.destination_key_material_id.as_deref().and_then(KeyMaterialId::read);
        wrapped("ReEncrypt", output.key_id, output.ciphertext_blob, material)
    }

    pub(crate) async fn describe(
        &self,
        region: &str,
        key: &str,
        grant_tokens: &[String],
    ) -> Result<Description, Failure> {
        let call = |client: &Client| {
            let tokens = (!grant_tokens.is_empty()).then(|| grant_tokens.to_vec());
            client.describe_key().key_id(key).set_grant_tokens(tokens).send()
        };
        let output = self.send(region, "DescribeKey", call).await?;
        let key = output.key_metadata.ok_or_else(|| Failure::not_understood("DescribeKey"))?;
        let is_external = key.origin == Some(OriginType::ExternalKeyStore);
        Ok(Description {
            arn: key.arn.ok_or_else(|| Failure::not_understood("DescribeKey"))?,
            state: state(key.key_state.as_ref(), key.enabled),
            is_for_encryption: key
                .key_usage
                .is_none_or(|usage| usage == KeyUsageType::EncryptDecrypt),
            material: key.current_key_material_id.as_deref().and_then(KeyMaterialId::read),
            expires: key.valid_to.and_then(|time| SystemTime::try_from(time).ok()),
            external_key_store: key.custom_key_store_id.filter(|_| is_external),
            external_key: key.xks_key_configuration.and_then(|external| external.id),
        })
    }

    /// Returns a custom key store's connection state, and the error code of a failed one.
    pub(crate) async fn describe_store(
        &self,
        id: &str,
    ) -> Result<(String, Option<String>), Failure> {
        const OPERATION: &str = "DescribeCustomKeyStores";
        let call =
            |client: &Client| client.describe_custom_key_stores().custom_key_store_id(id).send();
        let output = self.send(&self.region, OPERATION, call).await?;
        let stores = output.custom_key_stores.unwrap_or_default();
        let store = stores.into_iter().find(|store| store.custom_key_store_id() == Some(id));
        let store = store.ok_or_else(|| Failure::not_understood(OPERATION))?;
        let connection_state =
            store.connection_state.ok_or_else(|| Failure::not_understood(OPERATION))?;
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
        // A client without one panics.
        None => config.behavior_version(BehaviorVersion::latest()),
    }
}

async fn load_defaults(overrides: &Overrides) -> SdkConfig {
    let loader = sdk::defaults(BehaviorVersion::latest());
    match &overrides.region {
        // A known Region is not looked up, since that may call the instance's metadata service.
        Some(region) => loader.region(Region::new(region.clone())).load().await,
        None => loader.load().await,
    }
}

/// Makes a client. Where the SDK panics, such as for a configuration without a way to sleep, this
/// returns an error.
fn client(config: Config) -> Result<Client, Error> {
    std::panic::catch_unwind(AssertUnwindSafe(|| Client::from_conf(config))).map_err(|_| {
        Error::new(ErrorKind::InvalidOption, "the AWS SDK refuses the client's configuration")
    })
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
    blob.map(|blob| UnwrappedDek::new(blob.into_inner()))
        .ok_or_else(|| Failure::not_understood(operation))
}

fn state(state: Option<&KeyState>, enabled: bool) -> State {
    use KekErrorClass::{Denied, Unavailable};
    let usable = match state {
        // KMS keeps working while the primary key of related keys changes ("Key states of AWS KMS
        // keys").
        Some(KeyState::Enabled | KeyState::Updating) => Ok(()),
        None if enabled => Ok(()),
        Some(
            KeyState::Disabled
            | KeyState::PendingDeletion
            | KeyState::PendingImport
            | KeyState::PendingReplicaDeletion
            | KeyState::Unavailable,
        ) => Err(Denied),
        // Creating, and unknown states.
        _ => Err(Unavailable),
    };
    State {
        name: state.map_or_else(|| "unknown".to_owned(), |state| state.as_str().to_owned()),
        usable,
    }
}

fn failure<E>(operation: &str, endpoint: Option<&str>, error: &SdkError<E, HttpResponse>) -> Failure
where
    E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
{
    // Neither Debug nor the source of an SDK error is passed on, since they contain the answer's
    // body.
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
        SdkError::DispatchFailure(dispatch) => {
            not_sent(operation, endpoint, dispatch.as_connector_error())
        }
        _ => Failure::unasked(
            KekErrorClass::Misconfigured,
            format!("{operation}: the request cannot be made"),
        ),
    }
}

/// No answer, for lack of credentials or of a connection.
fn not_sent(operation: &str, endpoint: Option<&str>, error: Option<&ConnectorError>) -> Failure {
    let error: Option<&(dyn StdError + 'static)> = error.map(|error| error as _);
    if let Some(failure) = error.and_then(|error| not_loaded(operation, error)) {
        return failure;
    }
    let (mut texts, mut cause) = (Vec::new(), error);
    while let Some(error) = cause {
        if error.is::<InTheClear>() {
            let detail = format!("{operation}: endpoint: {}", transport::IN_THE_CLEAR);
            return Failure::unasked(KekErrorClass::Misconfigured, detail);
        }
        texts.push(error.to_string());
        cause = error.source();
    }
    texts.dedup();
    if texts.iter().any(|text| text.contains(NO_CREDENTIALS)) {
        let detail = format!("{operation}: no credentials are configured");
        return Failure::unasked(KekErrorClass::Misconfigured, detail);
    }
    // Including a proxy's certificate. An operator has to act, as for every provider.
    let is_certificate = texts.iter().any(|text| certificates::blamed_in(text));
    let class =
        if is_certificate { KekErrorClass::Misconfigured } else { KekErrorClass::Unavailable };
    let to = endpoint.map(|endpoint| format!(" at {endpoint}")).unwrap_or_default();
    Failure::new(class, format!("{operation}{to}: {}", texts.join(": ")))
}

/// Returns what a failure to load credentials means; `None` for any other failure.
fn not_loaded(operation: &str, error: &(dyn StdError + 'static)) -> Option<Failure> {
    let Refusal { class, text, was_asked } = refusal(error)?;
    let text = format!("{operation}: {text}");
    Some(if was_asked { Failure::new(class, text) } else { Failure::unasked(class, text) })
}

/// Whether an established connection failed. Others waiting in the pool may be no better.
fn is_of_a_line(error: &ConnectorError) -> bool {
    if refusal(error).is_some() {
        return false;
    }
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(error) = cause {
        if error.is::<InTheClear>() || error.to_string().contains(NO_CREDENTIALS) {
            return false;
        }
        if let Some(error) = error.downcast_ref::<io::Error>()
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            return false;
        }
        cause = error.source();
    }
    true
}

fn check_roots() -> Result<(), Error> {
    if transport::has_roots() {
        Ok(())
    } else {
        Err(Error::new(ErrorKind::InvalidOption, transport::NO_ROOTS))
    }
}

/// Returns the target of this client's calls, whether it comes from the builder, the configuration,
/// the environment or a profile. Nothing is sent. `None` if the SDK finds no endpoint; the call
/// then reports the reason.
async fn endpoint_of(client: &Client) -> Option<String> {
    let probe = Arc::new(Probe::default());
    let nobody = Credentials::new("none", "none", None, None, "none");
    let nobody =
        Config::builder().credentials_provider(nobody).identity_cache(IdentityCache::no_cache());
    let call = client.describe_key().key_id("none").customize().config_override(nobody);
    let call = call.interceptor(ProbeHandle(probe.clone())).send();
    let _ = tokio::time::timeout(ENDPOINT_TIMEOUT, call).await;
    probe.found()
}

fn in_the_clear(endpoint: &str) -> Error {
    let place = endpoint.split(['?', '#']).next().unwrap_or_default();
    // Anything before an @ may be a password.
    let place = if place.contains('@') { "" } else { place.trim_end_matches('/') };
    let from = "it comes from the builder, the client, or the AWS configuration (AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_KMS, a profile)";
    Error::new(
        ErrorKind::InvalidOption,
        format!("endpoint {place}: {}; {from}", transport::IN_THE_CLEAR),
    )
}
