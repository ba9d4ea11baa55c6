//! Puts an [`AwsKms`] together.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

use tokio::runtime::Handle;

use super::super::KekError;
use super::client::{Client, Overrides, SdkConfig, Service, Source};
use super::errors::Failure;
use super::{AwsKms, Discovery, Keys};
use crate::error::{Error, ErrorKind};
use crate::format::KekId;
use crate::format::kms::KeyArn;

const DEFAULT_KEY_MAX_AGE: Duration = Duration::from_secs(300);
const LONGEST_KEY_MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// For the one question that is asked at build, which no policy of an envelope bounds yet.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(10);
/// KMS takes no more in a call.
const MOST_GRANT_TOKENS: usize = 10;
const LONGEST_GRANT_TOKEN: usize = 8192;

/// Configures an [`AwsKms`]. Nothing but the key is needed: credentials and Region then come from where the AWS SDK looks by default.
#[must_use = "nothing happens until `build`"]
pub struct AwsKmsBuilder {
    what: What,
    source: Source,
    overrides: Overrides,
    related_keys: bool,
    former_keys: Vec<String>,
    regions: Vec<String>,
    grant_tokens: Vec<String>,
    key_max_age: Duration,
}

enum What {
    Key(String),
    Discovery { partition: String, accounts: Vec<String> },
}

impl AwsKmsBuilder {
    fn new(what: What) -> Self {
        Self {
            what,
            source: Source::Defaults,
            overrides: Overrides::default(),
            related_keys: false,
            former_keys: Vec::new(),
            regions: Vec::new(),
            grant_tokens: Vec::new(),
            key_max_age: DEFAULT_KEY_MAX_AGE,
        }
    }

    pub(super) fn key(key: String) -> Self {
        Self::new(What::Key(key))
    }

    pub(super) fn discovery(partition: String, accounts: Vec<String>) -> Self {
        Self::new(What::Discovery { partition, accounts })
    }

    /// A client of the service's own, with its credentials, HTTP client, interceptors and timeouts. Its retries are not used:
    /// [`CallPolicy`](crate::CallPolicy) decides about those.
    pub fn client(mut self, client: Client) -> Self {
        self.source = Source::Client(client);
        self
    }

    /// The service's own AWS configuration. As [`client`](Self::client), of which the one set last counts.
    pub fn sdk_config(mut self, config: &SdkConfig) -> Self {
        self.source = Source::SdkConfig(Box::new(config.clone()));
        self
    }

    /// The Region to call. By default that of the key's ARN, else that of the configuration.
    pub fn region(mut self, region: impl Into<String>) -> Self {
        self.overrides.region = Some(region.into());
        self
    }

    /// Another endpoint, such as that of a VPC. It has to be `https`, but on this machine itself.
    pub fn endpoint_url(mut self, url: impl Into<String>) -> Self {
        self.overrides.endpoint_url = Some(url.into());
        self
    }

    /// Whether to call the FIPS endpoint. By default as in the configuration.
    pub fn fips(mut self, fips: bool) -> Self {
        self.overrides.fips = Some(fips);
        self
    }

    /// Whether to call the endpoint that has IPv4 and IPv6. By default as in the configuration.
    pub fn dual_stack(mut self, dual_stack: bool) -> Self {
        self.overrides.dual_stack = Some(dual_stack);
        self
    }

    /// Also unwraps what the related keys of this multi-Region key wrapped in other Regions, by this key in this Region. With discovery, by
    /// the related key in the configured Region. By default off.
    pub fn related_keys(mut self, related_keys: bool) -> Self {
        self.related_keys = related_keys;
        self
    }

    /// ARNs of earlier keys, of the same Region: they still unwrap, and [`rewrap`](crate::Envelope::rewrap) moves their DEKs to this
    /// key within KMS. By default none.
    pub fn former_keys<S: Into<String>>(mut self, arns: impl IntoIterator<Item = S>) -> Self {
        self.former_keys = arns.into_iter().map(Into::into).collect();
        self
    }

    /// For discovery: the Regions whose keys are used. By default the configured one.
    pub fn regions<S: Into<String>>(mut self, regions: impl IntoIterator<Item = S>) -> Self {
        self.regions = regions.into_iter().map(Into::into).collect();
        self
    }

    /// Grant tokens for every call, at most 10: a grant that was just made is known everywhere only after a few minutes, except to
    /// whoever shows its token. [`AwsKms::set_grant_tokens`] changes them later.
    pub fn grant_tokens<S: Into<String>>(mut self, tokens: impl IntoIterator<Item = S>) -> Self {
        self.grant_tokens = tokens.into_iter().map(Into::into).collect();
        self
    }

    /// How long it is believed which key material is the current one, before `DescribeKey` is asked again in the background of a wrap. 1 s to
    /// 24 h, by default 5 minutes.
    pub fn key_max_age(mut self, age: Duration) -> Self {
        self.key_max_age = age;
        self
    }

    /// Checks the options. KMS is asked only for a key that is not named by its ARN (`DescribeKey`), so a service that names the ARN
    /// starts without KMS.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], naming the option; outside a tokio runtime. For a key that has to be asked for: those of KMS.
    pub async fn build(self) -> Result<AwsKms, Error> {
        let runtime = Handle::try_current().map_err(|_| {
            invalid("build: the provider works on a tokio runtime and has to be built in one".to_owned())
        })?;
        if !(Duration::from_secs(1)..=LONGEST_KEY_MAX_AGE).contains(&self.key_max_age) {
            return Err(invalid(format!("key_max_age: {:?}, 1 s to 24 h are allowed", self.key_max_age)));
        }
        check_grant_tokens(&self.grant_tokens)?;
        let mut overrides = self.overrides;
        check_endpoint(&overrides)?;
        if let Some(region) = &overrides.region {
            check_region("region", region)?;
        }
        let (keys, asked_for) = match self.what {
            What::Key(key) => {
                let asked_for = match KeyArn::read(&key) {
                    Some(_) => None,
                    None => Some(key.clone()),
                };
                // An alias may be given by its ARN too.
                if let Some(region) = region_of(&key) {
                    if overrides.region.as_deref().is_some_and(|other| other != region) {
                        return Err(invalid(format!("region: {key} is in another Region")));
                    }
                    check_region("key", region)?;
                    overrides.region = Some(region.to_owned());
                }
                if !self.regions.is_empty() {
                    return Err(invalid("regions: only with discovery".to_owned()));
                }
                (Keys::One { arn: key, related: self.related_keys, former: Vec::new() }, asked_for)
            }
            What::Discovery { partition, accounts } => {
                if !self.former_keys.is_empty() {
                    return Err(invalid("former_keys: not with discovery".to_owned()));
                }
                let discovery = Discovery { partition, accounts, regions: self.regions, related: self.related_keys };
                check_discovery(&discovery)?;
                (Keys::Discovered(discovery), None)
            }
        };
        let service = Service::new(self.source, overrides).await?;
        let id = match &keys {
            Keys::One { arn, .. } if asked_for.is_none() => arn.clone(),
            Keys::One { arn, .. } => resolve(&service, arn, &self.grant_tokens).await?,
            Keys::Discovered(discovery) => discovery.id(),
        };
        let keys = match keys {
            Keys::One { related, .. } => Keys::One {
                former: former_keys(&id, self.former_keys)?,
                related: check_related(&id, related)?,
                arn: id.clone(),
            },
            Keys::Discovered(discovery) => Keys::Discovered(discovery.in_region_at_least(service.region())),
        };
        Ok(AwsKms::new(KekId::new(id)?, keys, service, runtime, self.grant_tokens, self.key_max_age))
    }
}

pub(super) fn check_grant_tokens(tokens: &[String]) -> Result<(), Error> {
    if tokens.len() > MOST_GRANT_TOKENS {
        return Err(invalid(format!("grant_tokens: {}, at most {MOST_GRANT_TOKENS} are allowed", tokens.len())));
    }
    if tokens.iter().any(|token| token.is_empty() || token.len() > LONGEST_GRANT_TOKEN) {
        return Err(invalid(format!("grant_tokens: a token has 1 to {LONGEST_GRANT_TOKEN} bytes")));
    }
    Ok(())
}

/// A DEK goes over the line in both directions.
fn check_endpoint(overrides: &Overrides) -> Result<(), Error> {
    let Some(url) = &overrides.endpoint_url else { return Ok(()) };
    if overrides.fips == Some(true) || overrides.dual_stack == Some(true) {
        return Err(invalid("endpoint_url: contradicts fips and dual_stack, which choose another endpoint".to_owned()));
    }
    let (scheme, rest) = url.split_once("://").unwrap_or_default();
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => authority,
    };
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    let is_here = host == "localhost" || address.is_ok_and(|address| address.is_loopback());
    if host.is_empty() || authority.contains('@') || !(scheme == "https" || scheme == "http" && is_here) {
        return Err(invalid("endpoint_url: not an https URL".to_owned()));
    }
    Ok(())
}

fn check_region(option: &str, region: &str) -> Result<(), Error> {
    let is_name = (1..=64).contains(&region.len())
        && region.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if is_name { Ok(()) } else { Err(invalid(format!("{option}: {region:?} is no Region"))) }
}

fn check_discovery(discovery: &Discovery) -> Result<(), Error> {
    let is_account = |account: &String| account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
    if discovery.accounts.is_empty() || !discovery.accounts.iter().all(is_account) {
        return Err(invalid("discovery: name at least one account, of 12 digits".to_owned()));
    }
    let is_partition = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
    if !discovery.partition.starts_with("aws") || !discovery.partition.bytes().all(is_partition) {
        return Err(invalid("discovery: name the partition, such as \"aws\"".to_owned()));
    }
    discovery.regions.iter().try_for_each(|region| check_region("regions", region))
}

/// The Region in the ARN of a key or of an alias.
fn region_of(key: &str) -> Option<&str> {
    if !key.starts_with("arn:") {
        return None;
    }
    key.split(':').nth(3)
}

/// The key that an id or alias means now.
async fn resolve(service: &Service, key: &str, grant_tokens: &[String]) -> Result<String, Error> {
    let found = tokio::time::timeout(RESOLVE_TIMEOUT, service.describe(key, grant_tokens.to_vec())).await;
    let late = || KekError::unavailable(format!("DescribeKey: no answer within {RESOLVE_TIMEOUT:?}"));
    let found = found.map_err(|_| late())?.map_err(KekError::from)?;
    match KeyArn::read(&found.arn) {
        Some(_) => Ok(found.arn),
        None => Err(KekError::from(Failure::not_understood("DescribeKey")).into()),
    }
}

fn check_related(id: &str, related: bool) -> Result<bool, Error> {
    match KeyArn::read(id) {
        Some(arn) if related && !arn.is_multi_region() => {
            Err(invalid(format!("related_keys: {id} is no multi-Region key")))
        }
        _ => Ok(related),
    }
}

fn former_keys(id: &str, arns: Vec<String>) -> Result<Vec<KekId>, Error> {
    let own = KeyArn::read(id);
    let mut former = Vec::with_capacity(arns.len());
    for arn in arns {
        match (KeyArn::read(&arn), own) {
            (Some(key), Some(own)) if key.region == own.region && arn != id => former.push(KekId::new(&arn)?),
            _ => return Err(invalid(format!("former_keys: {arn:?} is not the ARN of another key in the same Region"))),
        }
    }
    Ok(former)
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidOption, detail)
}

impl fmt::Debug for AwsKmsBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("AwsKmsBuilder");
        match &self.what {
            What::Key(key) => debug.field("key", key),
            What::Discovery { partition, accounts } => debug.field("partition", partition).field("accounts", accounts),
        };
        debug
            .field("region", &self.overrides.region)
            .field("endpoint_url", &self.overrides.endpoint_url)
            .field("former_keys", &self.former_keys)
            .field("related_keys", &self.related_keys)
            .finish_non_exhaustive()
    }
}
