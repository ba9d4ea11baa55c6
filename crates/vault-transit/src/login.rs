//! The ways for a process to prove its identity to a server, and the requests for each. Nothing is
//! kept between two logins.
#![forbid(unsafe_code)]

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use crate::aws::{self, AwsCredentials, AwsKeys};
use crate::endpoints::{
    AppRoleLogin, Auth, CertificateLogin, JwtLogin, KubernetesLogin, SecretText, Unwrapped,
    WrappingState, app_role_login, aws_login, certificate_login, is_path, jwt_login,
    kubernetes_login, wrapping_lookup, wrapping_unwrap,
};
use crate::errors::Failure;
use crate::transport::{SMALL, Token, Transport};
use waxseal::kek::KekError;
use waxseal::kek::toolkit::read_file;

/// Selects how this process logs in. Its Debug shows no secret.
///
/// Files are read again at each login, so an orchestrator can replace them.
pub struct VaultAuth(Method);

enum Method {
    /// Something in between adds the token.
    Nothing,
    Token(Token),
    TokenFile(PathBuf),
    AppRole {
        mount: String,
        role_id: Source,
        secret_id: Option<Source>,
        /// Whether the secret id is the token of a response that holds it.
        wrapped: bool,
    },
    Kubernetes {
        mount: String,
        role: String,
        jwt: PathBuf,
    },
    Jwt {
        mount: String,
        role: Option<String>,
        jwt: PathBuf,
    },
    Certificate {
        mount: String,
        role: Option<String>,
    },
    AwsIam {
        mount: String,
        role: String,
        credentials: Arc<dyn AwsCredentials>,
        region: Option<String>,
        server_id: Option<String>,
    },
    /// A text that can never be a token. Build refuses it.
    Unusable(&'static str),
}

enum Source {
    Value(SecretText),
    File(PathBuf),
}

impl Source {
    fn value(text: impl Into<String>) -> Self {
        Self::Value(SecretText::new(text.into()))
    }
}

const KUBERNETES_JWT: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";
const MAX_FILE: usize = 64 * 1024;

impl VaultAuth {
    /// Sends no token, for an agent or a proxy in front of the server that adds one to each
    /// request. If that token has expired, calls fail as *misconfigured*.
    #[must_use]
    pub fn none() -> Self {
        Self(Method::Nothing)
    }

    /// Uses this token. It is renewed as long as the server allows. When it expires, every call
    /// fails as *misconfigured*. Use it for development, or if the process ends before the token
    /// does.
    #[must_use]
    pub fn token(token: impl Into<String>) -> Self {
        match Token::new(SecretText::new(token.into())) {
            Some(token) => Self(Method::Token(token)),
            None => Self(Method::Unusable(
                "the token is empty or has a character that a token cannot have",
            )),
        }
    }

    /// Uses the token in this file, such as the sink of a Vault agent. The file is read again when
    /// its token is refused or expires.
    #[must_use]
    pub fn token_file(path: impl Into<PathBuf>) -> Self {
        Self(Method::TokenFile(path.into()))
    }

    /// Logs in by AppRole with this role id, at the mount `approle`. Add the secret id if the role
    /// requires one.
    #[must_use]
    pub fn app_role(role_id: impl Into<String>) -> Self {
        Self::of_app_role(Source::value(role_id))
    }

    /// Logs in by AppRole with the role id in this file, like [`app_role`](Self::app_role).
    #[must_use]
    pub fn app_role_file(path: impl Into<PathBuf>) -> Self {
        Self::of_app_role(Source::File(path.into()))
    }

    fn of_app_role(role_id: Source) -> Self {
        Self(Method::AppRole {
            mount: "approle".to_owned(),
            role_id,
            secret_id: None,
            wrapped: false,
        })
    }

    /// Sets AppRole's secret id. Has no effect on other methods.
    #[must_use]
    pub fn secret_id(self, secret_id: impl Into<String>) -> Self {
        self.with_secret_id(Source::value(secret_id), false)
    }

    /// Sets the file with AppRole's secret id. Has no effect on other methods.
    #[must_use]
    pub fn secret_id_file(self, path: impl Into<PathBuf>) -> Self {
        self.with_secret_id(Source::File(path.into()), false)
    }

    /// Sets the token of a [wrapped response](https://openbao.org/docs/concepts/response-wrapping/)
    /// that holds AppRole's secret id. Has no effect on other methods.
    ///
    /// The response can be opened only once, so this process keeps the secret id for later logins.
    /// A response that does not come from the creation of a secret id is refused. A token that was
    /// already used is *misconfigured*: someone else may have the secret id.
    #[must_use]
    pub fn wrapped_secret_id(self, token: impl Into<String>) -> Self {
        self.with_secret_id(Source::value(token), true)
    }

    /// Sets the file with the token of a wrapped response: see
    /// [`wrapped_secret_id`](Self::wrapped_secret_id). A new token in it is used at the next login.
    #[must_use]
    pub fn wrapped_secret_id_file(self, path: impl Into<PathBuf>) -> Self {
        self.with_secret_id(Source::File(path.into()), true)
    }

    fn with_secret_id(mut self, source: Source, is_wrapped: bool) -> Self {
        if let Method::AppRole { secret_id, wrapped, .. } = &mut self.0 {
            (*secret_id, *wrapped) = (Some(source), is_wrapped);
        }
        self
    }

    /// Logs in by Kubernetes with this role, at the mount `kubernetes`, with the token of the pod's
    /// service account.
    #[must_use]
    pub fn kubernetes(role: impl Into<String>) -> Self {
        Self(Method::Kubernetes {
            mount: "kubernetes".to_owned(),
            role: role.into(),
            jwt: KUBERNETES_JWT.into(),
        })
    }

    /// Logs in with the JSON web token in this file, at the mount `jwt`, for the method's default
    /// role. For OpenID Connect, set its mount: a service already has its issuer's token and needs
    /// no browser.
    #[must_use]
    pub fn jwt(path: impl Into<PathBuf>) -> Self {
        Self(Method::Jwt { mount: "jwt".to_owned(), role: None, jwt: path.into() })
    }

    /// Sets the role of the JWT method. Has no effect on other methods.
    #[must_use]
    pub fn jwt_role(mut self, name: impl Into<String>) -> Self {
        if let Method::Jwt { role, .. } = &mut self.0 {
            *role = Some(name.into());
        }
        self
    }

    /// Sets another file for the web token. Has no effect on methods without one.
    #[must_use]
    pub fn jwt_file(mut self, path: impl Into<PathBuf>) -> Self {
        if let Method::Kubernetes { jwt, .. } | Method::Jwt { jwt, .. } = &mut self.0 {
            *jwt = path.into();
        }
        self
    }

    /// Logs in by the connection's TLS client certificate, at the mount `cert`, for the role that
    /// matches it.
    #[must_use]
    pub fn certificate() -> Self {
        Self(Method::Certificate { mount: "cert".to_owned(), role: None })
    }

    /// Restricts the certificate method to this role. Has no effect on other methods.
    #[must_use]
    pub fn certificate_role(mut self, name: impl Into<String>) -> Self {
        if let Method::Certificate { role, .. } = &mut self.0 {
            *role = Some(name.into());
        }
        self
    }

    /// Logs in by AWS IAM with this role, at the mount `aws`. HashiCorp Vault only: OpenBao has no
    /// such method. Nothing is sent to AWS from here. The server gets a signed request to STS that
    /// proves who signed it.
    #[must_use]
    pub fn aws_iam(role: impl Into<String>, credentials: impl AwsCredentials + 'static) -> Self {
        Self(Method::AwsIam {
            mount: "aws".to_owned(),
            role: role.into(),
            credentials: Arc::new(credentials),
            region: None,
            server_id: None,
        })
    }

    /// Sets the Region whose STS the server asks. By default the global endpoint. It must match the
    /// server's `sts_endpoint`. Has no effect on other methods.
    #[must_use]
    pub fn aws_region(mut self, name: impl Into<String>) -> Self {
        if let Method::AwsIam { region, .. } = &mut self.0 {
            *region = Some(name.into());
        }
        self
    }

    /// Sets the value that the server requires for `X-Vault-AWS-IAM-Server-ID`. Has no effect on
    /// other methods.
    #[must_use]
    pub fn aws_server_id(mut self, value: impl Into<String>) -> Self {
        if let Method::AwsIam { server_id, .. } = &mut self.0 {
            *server_id = Some(value.into());
        }
        self
    }

    /// Sets the mount of the method. Has no effect on tokens.
    #[must_use]
    pub fn mount(mut self, path: impl Into<String>) -> Self {
        if let Some(mount) = self.mount_mut() {
            *mount = path.into();
        }
        self
    }

    fn mount_mut(&mut self) -> Option<&mut String> {
        match &mut self.0 {
            Method::AppRole { mount, .. }
            | Method::Kubernetes { mount, .. }
            | Method::Jwt { mount, .. }
            | Method::Certificate { mount, .. }
            | Method::AwsIam { mount, .. } => Some(mount),
            Method::Nothing | Method::Token(_) | Method::TokenFile(_) | Method::Unusable(_) => None,
        }
    }

    fn its_mount(&self) -> Option<&str> {
        match &self.0 {
            Method::AppRole { mount, .. }
            | Method::Kubernetes { mount, .. }
            | Method::Jwt { mount, .. }
            | Method::Certificate { mount, .. }
            | Method::AwsIam { mount, .. } => Some(mount),
            Method::Nothing | Method::Token(_) | Method::TokenFile(_) | Method::Unusable(_) => None,
        }
    }

    /// Returns what is wrong with it, as far as that is known without a call.
    pub(crate) fn check(&self, has_certificate: bool) -> Result<(), &'static str> {
        let is_name = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        match &self.0 {
            Method::Unusable(why) => Err(why),
            _ if self.its_mount().is_some_and(|mount| !is_path(mount)) => {
                Err("the mount of the login method is not a path")
            }
            Method::Certificate { .. } if !has_certificate => {
                Err("a login by certificate needs client_certificate")
            }
            Method::AwsIam { region: Some(region), .. } if !is_name(region) => {
                Err("aws_region is not a Region's name")
            }
            Method::AwsIam { server_id: Some(id), .. }
                if id.is_empty() || !id.bytes().all(|b| b.is_ascii_graphic()) =>
            {
                Err("aws_server_id is not a header value")
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self.0 {
            Method::Nothing => "none",
            Method::Token(_) => "token",
            Method::TokenFile(_) => "token file",
            Method::AppRole { .. } => "AppRole",
            Method::Kubernetes { .. } => "Kubernetes",
            Method::Jwt { .. } => "JWT",
            Method::Certificate { .. } => "certificate",
            Method::AwsIam { .. } => "AWS IAM",
            Method::Unusable(_) => "unusable",
        }
    }

    /// Whether logging in again gives another token.
    pub(crate) fn makes_tokens(&self) -> bool {
        self.its_mount().is_some()
    }

    /// Whether another token may come from elsewhere.
    pub(crate) fn is_a_file(&self) -> bool {
        matches!(self.0, Method::TokenFile(_))
    }
}

impl fmt::Debug for VaultAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VaultAuth({})", self.name())
    }
}

/// The credentials of a login, as read for it.
pub(crate) enum Credentials {
    /// A token that needs no login, or none at all.
    Token(Option<Token>),
    AppRole {
        role_id: SecretText,
        secret_id: Option<SecretText>,
    },
    Jwt(SecretText),
    Certificate(u64),
    Aws(AwsKeys),
}

/// A secret id from a wrapped response, which can be opened only once.
pub(crate) struct Kept {
    token: SecretText,
    secret_id: SecretText,
}

/// The server to ask, and how files are read.
pub(crate) struct Desk<'a> {
    pub(crate) auth: &'a VaultAuth,
    pub(crate) transport: &'a Transport,
    pub(crate) hasher: &'a RandomState,
}

impl Desk<'_> {
    pub(crate) async fn credentials(&self) -> Result<Credentials, Failure> {
        Ok(match &self.auth.0 {
            Method::Nothing => Credentials::Token(None),
            Method::Token(token) => Credentials::Token(Some(token.share())),
            Method::TokenFile(path) => {
                let token = Token::new(self.read_file(path).await?);
                Credentials::Token(Some(token.ok_or_else(|| file_failure(path, "holds no token"))?))
            }
            Method::AppRole { role_id, secret_id, .. } => Credentials::AppRole {
                role_id: self.read(role_id).await?,
                secret_id: match secret_id {
                    Some(source) => Some(self.read(source).await?),
                    None => None,
                },
            },
            Method::Kubernetes { jwt, .. } | Method::Jwt { jwt, .. } => {
                Credentials::Jwt(self.read_file(jwt).await?)
            }
            Method::Certificate { .. } => {
                Credentials::Certificate(self.transport.generation().await)
            }
            Method::AwsIam { credentials, .. } => {
                Credentials::Aws(credentials.keys().await.map_err(of_aws)?)
            }
            Method::Unusable(why) => return Err(Failure::misconfigured(*why).without_asking()),
        })
    }

    /// Returns a value that distinguishes sets of credentials.
    pub(crate) fn fingerprint(&self, credentials: &Credentials) -> u64 {
        match credentials {
            Credentials::Token(token) => self.hasher.hash_one(token.as_ref().map(Token::bytes)),
            Credentials::AppRole { role_id, secret_id } => self
                .hasher
                .hash_one((role_id.0.as_str(), secret_id.as_ref().map(|id| id.0.as_str()))),
            Credentials::Jwt(jwt) => self.hasher.hash_one(jwt.0.as_str()),
            Credentials::Certificate(generation) => *generation,
            Credentials::Aws(keys) => self.hasher.hash_one(keys.id()),
        }
    }

    /// Logs in with these credentials. Only for a method that makes tokens.
    pub(crate) async fn log_in(
        &self,
        credentials: Credentials,
        kept: &mut Option<Kept>,
    ) -> Result<Auth, Failure> {
        match (&self.auth.0, credentials) {
            (
                Method::AppRole { mount, wrapped, .. },
                Credentials::AppRole { role_id, secret_id },
            ) => {
                let secret_id = match secret_id {
                    Some(token) if *wrapped => Some(self.unwrap(mount, token, kept).await?),
                    other => other,
                };
                let secret_id = secret_id.as_ref().map(|id| id.0.as_str());
                self.ask(&app_role_login(mount, AppRoleLogin { role_id: &role_id.0, secret_id }))
                    .await
            }
            (Method::Kubernetes { mount, role, .. }, Credentials::Jwt(jwt)) => {
                self.ask(&kubernetes_login(mount, KubernetesLogin { role, jwt: &jwt.0 })).await
            }
            (Method::Jwt { mount, role, .. }, Credentials::Jwt(jwt)) => {
                self.ask(&jwt_login(mount, JwtLogin { role: role.as_deref(), jwt: &jwt.0 })).await
            }
            (Method::Certificate { mount, role }, _) => {
                self.ask(&certificate_login(mount, CertificateLogin { name: role.as_deref() }))
                    .await
            }
            (Method::AwsIam { mount, role, region, server_id, .. }, Credentials::Aws(keys)) => {
                let login = aws::login(
                    role,
                    &keys,
                    region.as_deref(),
                    server_id.as_deref(),
                    SystemTime::now(),
                );
                let login = login.ok_or_else(|| {
                    Failure::misconfigured(format!(
                        "{}: the keys cannot be keys of AWS",
                        self.operation()
                    ))
                    .without_asking()
                })?;
                self.ask(&aws_login(mount, login)).await
            }
            _ => {
                Err(Failure::misconfigured(format!("{}: nothing to log in with", self.operation()))
                    .without_asking())
            }
        }
    }

    pub(crate) fn operation(&self) -> String {
        format!("login ({})", self.auth.name())
    }

    async fn ask<E: rustify::endpoint::Endpoint>(&self, request: &E) -> Result<Auth, Failure> {
        let operation = self.operation();
        let reply = self.transport.send(&operation, request, None, SMALL).await?;
        let answer = reply.success::<serde::de::IgnoredAny>(&operation).map_err(login_failure)?;
        answer.auth.ok_or_else(|| Failure::not_understood(&operation))
    }

    /// Returns the secret id in a wrapped response, from an earlier look if it is the same
    /// response.
    async fn unwrap(
        &self,
        mount: &str,
        token: SecretText,
        kept: &mut Option<Kept>,
    ) -> Result<SecretText, Failure> {
        let copy = |text: &SecretText| SecretText(text.0.clone());
        if let Some(kept) = kept.as_ref().filter(|kept| kept.token.0 == token.0) {
            return Ok(copy(&kept.secret_id));
        }
        let operation = format!("{}: the wrapped secret id", self.operation());
        let header = Token::new(copy(&token)).ok_or_else(|| {
            Failure::misconfigured(format!("{operation} is not a token")).without_asking()
        })?;
        // If somebody took the secret id out and replaced the response, the replacement was created
        // elsewhere.
        let state =
            self.transport.send(&operation, &wrapping_lookup(&token.0), None, SMALL).await?;
        let state = state.success::<WrappingState>(&operation).map_err(login_failure)?;
        let path = state.data.ok_or_else(|| Failure::not_understood(&operation))?.creation_path;
        let of_a_role = path.contains(&format!("auth/{mount}/role/"));
        if !of_a_role || !["/secret-id", "/custom-secret-id"].iter().any(|end| path.ends_with(end))
        {
            let why = "was not made by this method's roles; somebody may have replaced it";
            return Err(Failure::misconfigured(format!("{operation} {why}")));
        }
        let reply =
            self.transport.send(&operation, &wrapping_unwrap(), Some(&header), SMALL).await?;
        let answer = reply.success::<Unwrapped>(&operation).map_err(login_failure)?;
        let secret_id = answer.data.ok_or_else(|| Failure::not_understood(&operation))?.secret_id;
        *kept = Some(Kept { token, secret_id: copy(&secret_id) });
        Ok(secret_id)
    }

    async fn read(&self, source: &Source) -> Result<SecretText, Failure> {
        match source {
            Source::Value(value) => Ok(SecretText(value.0.clone())),
            Source::File(path) => self.read_file(path).await,
        }
    }

    async fn read_file(&self, path: &Path) -> Result<SecretText, Failure> {
        let wanted = path.to_owned();
        let read = tokio::task::spawn_blocking(move || read_secret(&wanted)).await;
        read.ok().flatten().ok_or_else(|| file_failure(path, "cannot be read as a short text"))
    }
}

/// A refused login says nothing about the key: an operator has to act. Only a locked namespace
/// affects everybody.
pub(crate) fn login_failure(failure: Failure) -> Failure {
    if failure.is_passing() || failure.locked {
        return failure;
    }
    Failure { class: waxseal::kek::KekErrorClass::Misconfigured, on_the_way: false, ..failure }
}

/// Handles missing AWS credentials. An outage of their source is an outage, and any other failure
/// concerns only them.
fn of_aws(error: KekError) -> Failure {
    let message = format!("login (AWS IAM): {}", error.message());
    let failure = Failure {
        retry_after: error.retry_after(),
        asked: error.was_asked(),
        ..Failure::new(error.class(), message)
    };
    login_failure(failure)
}

fn file_failure(path: &Path, what: &str) -> Failure {
    Failure::misconfigured(format!("login: {} {what}", path.display())).without_asking()
}

/// Returns a short text without surrounding white space; `None` if it is not one.
fn read_secret(path: &Path) -> Option<SecretText> {
    let bytes = read_file(path, MAX_FILE).ok()?;
    let text = std::str::from_utf8(&bytes).ok()?.trim();
    (!text.is_empty()).then(|| SecretText::new(text.to_owned()))
}
