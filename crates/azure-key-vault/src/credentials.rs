//! The source of Entra ID tokens.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use azure_core::Error as SdkError;
use azure_core::cloud::{CloudConfiguration, CustomConfiguration};
use azure_core::credentials::{Secret, TokenCredential};
use azure_core::error::ErrorKind as SdkErrorKind;
use azure_core::http::{ClientOptions, RetryOptions, Transport as SdkTransport};
use azure_identity::{
    ClientAssertionCredential, ClientAssertionCredentialOptions, ClientSecretCredential,
    ClientSecretCredentialOptions, ManagedIdentityCredential, ManagedIdentityCredentialOptions,
    UserAssignedId, WorkloadIdentityCredential, WorkloadIdentityCredentialOptions,
};

use crate::assertion::CertificateAssertion;
use crate::errors::NoCredential;
use crate::place::Cloud;
use crate::transport::Transport;

/// Selects the identity of the provider in Entra ID. It holds no secret, only where to find one.
/// Files are read again for each login, so they can be replaced.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)
)]
#[non_exhaustive]
pub enum Credential {
    /// From the environment, with the variables of the Azure SDKs. `AZURE_FEDERATED_TOKEN_FILE`
    /// selects a workload identity, `AZURE_CLIENT_CERTIFICATE_PATH` a certificate, and
    /// `AZURE_CLIENT_SECRET` a secret (each with `AZURE_TENANT_ID` and `AZURE_CLIENT_ID`).
    /// Otherwise the managed identity is used, a user-assigned one if `AZURE_CLIENT_ID` is set.
    #[default]
    Environment,
    /// The managed identity of a virtual machine or an App Service.
    ManagedIdentity {
        /// The client id of a user-assigned identity. By default the system-assigned one.
        #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
        client_id: Option<String>,
    },
    /// The workload identity of a pod on Kubernetes. Unset fields come from the environment that
    /// the webhook of AKS creates.
    WorkloadIdentity {
        /// The tenant.
        #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
        tenant_id: Option<String>,
        /// The client id.
        #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
        client_id: Option<String>,
        /// The file with the service account's token.
        #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
        token_file: Option<PathBuf>,
    },
    /// An application with a secret.
    ClientSecret {
        /// The tenant.
        tenant_id: String,
        /// The client id.
        client_id: String,
        /// The file with the secret. A trailing line break is ignored.
        secret_file: PathBuf,
    },
    /// An application with a certificate of an RSA key.
    ClientCertificate {
        /// The tenant.
        tenant_id: String,
        /// The client id.
        client_id: String,
        /// The PEM file with the certificate and its unencrypted private key.
        certificate_file: PathBuf,
    },
}

/// Makes the SDK's credential, again for each load. So only the keeper caches a token, and files
/// are read again.
#[derive(Clone)]
pub(crate) enum Source {
    /// The user's own credential.
    Given(Arc<dyn TokenCredential>),
    Named {
        credential: Credential,
        authority: Option<String>,
        cloud: Cloud,
        transport: Arc<Transport>,
    },
}

impl Source {
    pub(crate) async fn credential(&self) -> azure_core::Result<Arc<dyn TokenCredential>> {
        match self {
            Self::Given(credential) => Ok(credential.clone()),
            Self::Named { credential, authority, cloud, transport } => {
                let options = options(authority.as_deref(), *cloud, transport.clone());
                let credential = credential.clone();
                // Files are read.
                let made = tokio::task::spawn_blocking(move || make(&credential, options)).await;
                let made =
                    made.map_err(|_| SdkError::with_message(SdkErrorKind::Other, "interrupted"))?;
                // Nobody has been asked yet. The SDK's text may show a URL with a password.
                made.map_err(|error| {
                    match error.get_ref().is_some_and(|it| it.is::<NoCredential>()) {
                        true => error,
                        false => missing(CANNOT_BE_MADE.to_owned()),
                    }
                })
            }
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Given(_) => f.write_str("Given"),
            Self::Named { credential, .. } => credential.fmt(f),
        }
    }
}

fn options(authority: Option<&str>, cloud: Cloud, transport: Arc<Transport>) -> ClientOptions {
    let cloud = match (authority, cloud) {
        (Some(authority), _) => {
            let mut custom = CustomConfiguration::default();
            custom.authority_host = authority.to_owned();
            Some(CloudConfiguration::Custom(custom))
        }
        (None, Cloud::China) => Some(CloudConfiguration::AzureChina),
        (None, Cloud::UsGovernment) => Some(CloudConfiguration::AzureGovernment),
        // AZURE_AUTHORITY_HOST may override it.
        (None, Cloud::Public) => None,
    };
    ClientOptions {
        retry: RetryOptions::none(),
        transport: Some(SdkTransport::new(transport)),
        cloud: cloud.map(Arc::new),
        ..ClientOptions::default()
    }
}

const CANNOT_BE_MADE: &str = "the credential cannot be made: the authority (AZURE_AUTHORITY_HOST) \
                              is no https URL, or a tenant or client id (AZURE_TENANT_ID, \
                              AZURE_CLIENT_ID) is none";

fn missing(text: String) -> SdkError {
    SdkError::new(SdkErrorKind::Credential, NoCredential(text))
}

fn read(path: &Path, what: &str) -> azure_core::Result<String> {
    std::fs::read_to_string(path)
        .map_err(|error| missing(format!("{what} {} cannot be read: {error}", path.display())))
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn needed(name: &str) -> azure_core::Result<String> {
    variable(name).ok_or_else(|| missing(format!("{name} is not set")))
}

fn make(
    credential: &Credential,
    client_options: ClientOptions,
) -> azure_core::Result<Arc<dyn TokenCredential>> {
    Ok(match credential {
        Credential::Environment => return from_environment(client_options),
        Credential::ManagedIdentity { client_id } => {
            let user_assigned_id = client_id.clone().map(UserAssignedId::ClientId);
            let options = ManagedIdentityCredentialOptions { user_assigned_id, client_options };
            ManagedIdentityCredential::new(Some(options))?
        }
        Credential::WorkloadIdentity { tenant_id, client_id, token_file } => {
            let set = |given: &Option<String>, name| match given {
                Some(given) => Ok(given.clone()),
                None => needed(name),
            };
            let token_file = match token_file {
                Some(path) => path.clone(),
                None => needed("AZURE_FEDERATED_TOKEN_FILE")?.into(),
            };
            // The SDK's error does not distinguish a missing file from other failures.
            read(&token_file, "token_file")?;
            WorkloadIdentityCredential::new(Some(WorkloadIdentityCredentialOptions {
                credential_options: ClientAssertionCredentialOptions { client_options },
                client_id: Some(set(client_id, "AZURE_CLIENT_ID")?),
                tenant_id: Some(set(tenant_id, "AZURE_TENANT_ID")?),
                token_file_path: Some(token_file),
            }))?
        }
        Credential::ClientSecret { tenant_id, client_id, secret_file } => {
            let secret = read(secret_file, "secret_file")?;
            with_secret(
                tenant_id,
                client_id,
                secret.trim_end_matches(['\r', '\n']),
                client_options,
            )?
        }
        Credential::ClientCertificate { tenant_id, client_id, certificate_file } => {
            with_certificate(tenant_id, client_id, certificate_file, client_options)?
        }
    })
}

fn from_environment(options: ClientOptions) -> azure_core::Result<Arc<dyn TokenCredential>> {
    if variable("AZURE_FEDERATED_TOKEN_FILE").is_some() {
        let identity =
            Credential::WorkloadIdentity { tenant_id: None, client_id: None, token_file: None };
        return make(&identity, options);
    }
    let application =
        || Ok::<_, SdkError>((needed("AZURE_TENANT_ID")?, needed("AZURE_CLIENT_ID")?));
    if let Some(path) = variable("AZURE_CLIENT_CERTIFICATE_PATH") {
        let (tenant_id, client_id) = application()?;
        return with_certificate(&tenant_id, &client_id, Path::new(&path), options);
    }
    if let Some(secret) = variable("AZURE_CLIENT_SECRET") {
        let (tenant_id, client_id) = application()?;
        return with_secret(&tenant_id, &client_id, &secret, options);
    }
    make(&Credential::ManagedIdentity { client_id: variable("AZURE_CLIENT_ID") }, options)
}

fn with_secret(
    tenant_id: &str,
    client_id: &str,
    secret: &str,
    client_options: ClientOptions,
) -> azure_core::Result<Arc<dyn TokenCredential>> {
    let secret = Secret::new(secret.to_owned());
    let options = ClientSecretCredentialOptions { client_options };
    Ok(ClientSecretCredential::new(tenant_id, client_id.to_owned(), secret, Some(options))?)
}

fn with_certificate(
    tenant_id: &str,
    client_id: &str,
    file: &Path,
    client_options: ClientOptions,
) -> azure_core::Result<Arc<dyn TokenCredential>> {
    let authority = match client_options.cloud.as_deref() {
        Some(CloudConfiguration::Custom(custom)) => custom.authority_host.clone(),
        Some(CloudConfiguration::AzureChina) => "https://login.chinacloudapi.cn".to_owned(),
        Some(CloudConfiguration::AzureGovernment) => "https://login.microsoftonline.us".to_owned(),
        _ => variable("AZURE_AUTHORITY_HOST")
            .unwrap_or_else(|| "https://login.microsoftonline.com".to_owned()),
    };
    let audience = format!("{}/{tenant_id}/oauth2/v2.0/token", authority.trim_end_matches('/'));
    let pem = zeroize::Zeroizing::new(read(file, "certificate_file")?);
    let assertion = CertificateAssertion::read(pem.as_bytes(), client_id, audience)
        .map_err(|why| missing(format!("certificate_file {}: {why}", file.display())))?;
    let options = ClientAssertionCredentialOptions { client_options };
    Ok(ClientAssertionCredential::new(
        tenant_id.to_owned(),
        client_id.to_owned(),
        assertion,
        Some(options),
    )?)
}
