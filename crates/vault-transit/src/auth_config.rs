//! A login as data: its method, and where its secrets are.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use crate::aws::AwsEnvironment;
use crate::environment;
use crate::login::VaultAuth;
use waxseal::kek::toolkit::uri::{Uri, UriWriter};
use waxseal::{Error, ErrorKind};

/// A login as data, for a [`Config`](crate::Config). It says where a secret is, never the secret.
/// Other logins need code: [`VaultAuth`].
///
/// | `method` in a file, `auth` in a URI | is | with |
/// |---|---|---|
/// | `none` | [`VaultAuth::none`] | |
/// | `environment` | [`VaultAuth::token`], with `BAO_TOKEN` or `VAULT_TOKEN` as it is when the builder starts | |
/// | `token-file` | [`VaultAuth::token_file`] | `token_file` |
/// | `app-role` | [`VaultAuth::app_role`] | `role_id` or `role_id_file`; `secret_id_file` or `wrapped_secret_id_file` |
/// | `kubernetes` | [`VaultAuth::kubernetes`] | `role`; `jwt_file` |
/// | `jwt` | [`VaultAuth::jwt`] | `jwt_file`; `role` |
/// | `certificate` | [`VaultAuth::certificate`] | `role` |
/// | `aws-iam` | [`VaultAuth::aws_iam`] with [`AwsEnvironment`] | `role`; `aws_region`, `aws_server_id` |
///
/// All but the first three accept `mount`, which in a URI is `auth-mount`. In a URI,
/// `token-file=PATH` without `auth` is enough.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "Fields", into = "Fields")
)]
pub struct AuthConfig(Fields);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
enum AuthMethod {
    None,
    Environment,
    TokenFile,
    AppRole,
    Kubernetes,
    Jwt,
    Certificate,
    AwsIam,
}

impl AuthMethod {
    const ALL: [Self; 8] = [
        Self::None,
        Self::Environment,
        Self::TokenFile,
        Self::AppRole,
        Self::Kubernetes,
        Self::Jwt,
        Self::Certificate,
        Self::AwsIam,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Environment => "environment",
            Self::TokenFile => "token-file",
            Self::AppRole => "app-role",
            Self::Kubernetes => "kubernetes",
            Self::Jwt => "jwt",
            Self::Certificate => "certificate",
            Self::AwsIam => "aws-iam",
        }
    }

    /// Returns the options that it accepts.
    fn options(self) -> &'static [&'static str] {
        match self {
            Self::None | Self::Environment => &[],
            Self::TokenFile => &["token_file"],
            Self::AppRole => {
                &["mount", "role_id", "role_id_file", "secret_id_file", "wrapped_secret_id_file"]
            }
            Self::Kubernetes | Self::Jwt => &["mount", "role", "jwt_file"],
            Self::Certificate => &["mount", "role"],
            Self::AwsIam => &["mount", "role", "aws_region", "aws_server_id"],
        }
    }

    /// Returns the options of which it needs one.
    fn needs(self) -> &'static [&'static str] {
        match self {
            Self::None | Self::Environment | Self::Certificate => &[],
            Self::TokenFile => &["token_file"],
            Self::AppRole => &["role_id", "role_id_file"],
            Self::Kubernetes | Self::AwsIam => &["role"],
            Self::Jwt => &["jwt_file"],
        }
    }
}

/// The fields in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
struct Fields {
    method: AuthMethod,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    mount: Option<String>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    role: Option<String>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    role_id: Option<String>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    role_id_file: Option<PathBuf>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    secret_id_file: Option<PathBuf>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    wrapped_secret_id_file: Option<PathBuf>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    token_file: Option<PathBuf>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    jwt_file: Option<PathBuf>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    aws_region: Option<String>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    aws_server_id: Option<String>,
}

impl AuthConfig {
    fn of(method: AuthMethod) -> Self {
        Self(Fields {
            method,
            mount: None,
            role: None,
            role_id: None,
            role_id_file: None,
            secret_id_file: None,
            wrapped_secret_id_file: None,
            token_file: None,
            jwt_file: None,
            aws_region: None,
            aws_server_id: None,
        })
    }

    /// Sends no token, because something in front of the server adds one.
    #[must_use]
    pub fn none() -> Self {
        Self::of(AuthMethod::None)
    }

    /// Uses the token in `BAO_TOKEN`, or else in `VAULT_TOKEN`.
    #[must_use]
    pub fn environment() -> Self {
        Self::of(AuthMethod::Environment)
    }

    /// Uses the token in a file.
    #[must_use]
    pub fn token_file(path: impl Into<PathBuf>) -> Self {
        let mut auth = Self::of(AuthMethod::TokenFile);
        auth.0.token_file = Some(path.into());
        auth
    }

    /// Logs in by AppRole with this role id. Add the file with the secret id.
    #[must_use]
    pub fn app_role(role_id: impl Into<String>) -> Self {
        let mut auth = Self::of(AuthMethod::AppRole);
        auth.0.role_id = Some(role_id.into());
        auth
    }

    /// Logs in by AppRole with the role id in a file. Add the file with the secret id.
    #[must_use]
    pub fn app_role_file(path: impl Into<PathBuf>) -> Self {
        let mut auth = Self::of(AuthMethod::AppRole);
        auth.0.role_id_file = Some(path.into());
        auth
    }

    /// Logs in by Kubernetes with this role.
    #[must_use]
    pub fn kubernetes(role: impl Into<String>) -> Self {
        Self::of(AuthMethod::Kubernetes).role(role)
    }

    /// Logs in with the JSON web token in a file.
    #[must_use]
    pub fn jwt(path: impl Into<PathBuf>) -> Self {
        Self::of(AuthMethod::Jwt).jwt_file(path)
    }

    /// Logs in by the connection's TLS client certificate.
    #[must_use]
    pub fn certificate() -> Self {
        Self::of(AuthMethod::Certificate)
    }

    /// Logs in by AWS IAM with this role and the keys in the environment.
    #[must_use]
    pub fn aws_iam(role: impl Into<String>) -> Self {
        Self::of(AuthMethod::AwsIam).role(role)
    }

    /// Sets the mount of the method.
    #[must_use]
    pub fn mount(mut self, path: impl Into<String>) -> Self {
        self.0.mount = Some(path.into());
        self
    }

    /// Sets the role of the Kubernetes, JWT, certificate or AWS IAM method.
    #[must_use]
    pub fn role(mut self, role: impl Into<String>) -> Self {
        self.0.role = Some(role.into());
        self
    }

    /// Sets the file with AppRole's secret id.
    #[must_use]
    pub fn secret_id_file(mut self, path: impl Into<PathBuf>) -> Self {
        (self.0.secret_id_file, self.0.wrapped_secret_id_file) = (Some(path.into()), None);
        self
    }

    /// Sets the file with the token of a wrapped response that holds AppRole's secret id.
    #[must_use]
    pub fn wrapped_secret_id_file(mut self, path: impl Into<PathBuf>) -> Self {
        (self.0.secret_id_file, self.0.wrapped_secret_id_file) = (None, Some(path.into()));
        self
    }

    /// Sets the file with the web token of the Kubernetes or JWT method.
    #[must_use]
    pub fn jwt_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.jwt_file = Some(path.into());
        self
    }

    /// Sets the Region whose STS the server asks.
    #[must_use]
    pub fn aws_region(mut self, name: impl Into<String>) -> Self {
        self.0.aws_region = Some(name.into());
        self
    }

    /// Sets the value that the server requires for `X-Vault-AWS-IAM-Server-ID`.
    #[must_use]
    pub fn aws_server_id(mut self, value: impl Into<String>) -> Self {
        self.0.aws_server_id = Some(value.into());
        self
    }

    /// Reports an option that the method does not accept, or one that is missing.
    fn check(&self) -> Result<(), String> {
        let fields = &self.0;
        let options = [
            ("mount", fields.mount.is_some()),
            ("role", fields.role.is_some()),
            ("role_id", fields.role_id.is_some()),
            ("role_id_file", fields.role_id_file.is_some()),
            ("secret_id_file", fields.secret_id_file.is_some()),
            ("wrapped_secret_id_file", fields.wrapped_secret_id_file.is_some()),
            ("token_file", fields.token_file.is_some()),
            ("jwt_file", fields.jwt_file.is_some()),
            ("aws_region", fields.aws_region.is_some()),
            ("aws_server_id", fields.aws_server_id.is_some()),
        ];
        let method = fields.method;
        let is_set = |name: &str| options.iter().any(|(option, set)| *set && *option == name);
        if let Some((option, _)) =
            options.iter().find(|(option, set)| *set && !method.options().contains(option))
        {
            return Err(format!("auth: {option} does not go with {}", method.as_str()));
        }
        let needs = method.needs();
        match needs.iter().filter(|option| is_set(option)).count() {
            0 if !needs.is_empty() => {
                return Err(format!("auth: {} needs {}", method.as_str(), needs.join(" or ")));
            }
            2.. => return Err(format!("auth: only one of {}", needs.join(" and "))),
            _ => {}
        }
        if is_set("secret_id_file") && is_set("wrapped_secret_id_file") {
            return Err("auth: only one of secret_id_file and wrapped_secret_id_file".to_owned());
        }
        Ok(())
    }

    fn checked(self) -> Result<Self, Error> {
        self.check().map_err(|why| Error::new(ErrorKind::InvalidOption, why))?;
        Ok(self)
    }

    /// Returns the login that it describes, or why there is none.
    pub(crate) fn into_auth(self) -> Result<VaultAuth, String> {
        self.check()?;
        let fields = self.0;
        let auth = match fields.method {
            AuthMethod::None => VaultAuth::none(),
            AuthMethod::Environment => {
                let found = environment::token(|name| std::env::var_os(name))?;
                VaultAuth::token(found.ok_or("auth: neither BAO_TOKEN nor VAULT_TOKEN is set")?)
            }
            AuthMethod::TokenFile => VaultAuth::token_file(fields.token_file.unwrap_or_default()),
            AuthMethod::AppRole => {
                let auth = match (fields.role_id, fields.role_id_file) {
                    (Some(id), _) => VaultAuth::app_role(id),
                    (None, path) => VaultAuth::app_role_file(path.unwrap_or_default()),
                };
                match (fields.secret_id_file, fields.wrapped_secret_id_file) {
                    (Some(path), _) => auth.secret_id_file(path),
                    (None, Some(path)) => auth.wrapped_secret_id_file(path),
                    (None, None) => auth,
                }
            }
            AuthMethod::Kubernetes => {
                let auth = VaultAuth::kubernetes(fields.role.unwrap_or_default());
                fields.jwt_file.into_iter().fold(auth, VaultAuth::jwt_file)
            }
            AuthMethod::Jwt => {
                let auth = VaultAuth::jwt(fields.jwt_file.unwrap_or_default());
                fields.role.into_iter().fold(auth, VaultAuth::jwt_role)
            }
            AuthMethod::Certificate => {
                fields.role.into_iter().fold(VaultAuth::certificate(), VaultAuth::certificate_role)
            }
            AuthMethod::AwsIam => {
                let auth = VaultAuth::aws_iam(fields.role.unwrap_or_default(), AwsEnvironment);
                let auth = fields.aws_region.into_iter().fold(auth, VaultAuth::aws_region);
                fields.aws_server_id.into_iter().fold(auth, VaultAuth::aws_server_id)
            }
        };
        Ok(fields.mount.into_iter().fold(auth, VaultAuth::mount))
    }

    /// Reads the parameters of a URI that are about the login.
    pub(crate) fn read(uri: &Uri<'_>) -> Result<Option<Self>, Error> {
        let named = uri.one_of("auth", &AuthMethod::ALL, AuthMethod::as_str)?;
        let by_file = || uri.has("token-file").then_some(AuthMethod::TokenFile);
        let method = named.or_else(by_file);
        let options = OPTIONS.iter().find(|option| uri.has(option));
        let Some(method) = method else {
            return match options {
                Some(option) => {
                    Err(uri.error(format!("parameter `{option}` needs parameter `auth`")))
                }
                None => Ok(None),
            };
        };
        let fields = Fields {
            method,
            mount: uri.text("auth-mount")?,
            role: uri.text("role")?,
            role_id: uri.text("role-id")?,
            role_id_file: uri.path("role-id-file")?,
            secret_id_file: uri.path("secret-id-file")?,
            wrapped_secret_id_file: uri.path("wrapped-secret-id-file")?,
            token_file: uri.path("token-file")?,
            jwt_file: uri.path("jwt-file")?,
            aws_region: uri.text("aws-region")?,
            aws_server_id: uri.text("aws-server-id")?,
        };
        Self(fields).checked().map(Some)
    }

    pub(crate) fn write(&self, uri: &mut UriWriter) {
        let fields = &self.0;
        uri.text("auth", Some(fields.method.as_str()));
        uri.text("auth-mount", fields.mount.as_deref());
        uri.text("role", fields.role.as_deref());
        uri.text("role-id", fields.role_id.as_deref());
        uri.path("role-id-file", fields.role_id_file.as_deref());
        uri.path("secret-id-file", fields.secret_id_file.as_deref());
        uri.path("wrapped-secret-id-file", fields.wrapped_secret_id_file.as_deref());
        uri.path("token-file", fields.token_file.as_deref());
        uri.path("jwt-file", fields.jwt_file.as_deref());
        uri.text("aws-region", fields.aws_region.as_deref());
        uri.text("aws-server-id", fields.aws_server_id.as_deref());
    }
}

/// The parameters that are meaningful only with a method.
const OPTIONS: [&str; 9] = [
    "auth-mount",
    "role",
    "role-id",
    "role-id-file",
    "secret-id-file",
    "wrapped-secret-id-file",
    "jwt-file",
    "aws-region",
    "aws-server-id",
];

#[cfg(feature = "serde")]
impl TryFrom<Fields> for AuthConfig {
    type Error = Error;

    fn try_from(fields: Fields) -> Result<Self, Error> {
        Self(fields).checked()
    }
}

#[cfg(feature = "serde")]
impl From<AuthConfig> for Fields {
    fn from(auth: AuthConfig) -> Self {
        auth.0
    }
}
