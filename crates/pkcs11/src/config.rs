//! The configuration of a [`Pkcs11Kek`] as data, and as a URI of RFC 7512.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use data_encoding::HEXLOWER_PERMISSIVE;
use percent_encoding::percent_decode_str;
use waxseal::kek::toolkit::uri::{Uri, UriWriter, encode_segment};
use waxseal::{Error, ErrorKind};

use crate::builder::Pkcs11KekBuilder;
use crate::key::{IvSource, Versions, hex};
use crate::pin::PinSource;
use crate::provider::Pkcs11Kek;

const PREFIX: &str = "pkcs11:";
/// The parameters after the `?`. The last two are recognised and refused.
const PARAMETERS: [&str; 12] = [
    "module-path",
    "pin-source",
    "name",
    "iv-source",
    "versions",
    "sessions",
    "key-max-age",
    "helper",
    "helper-deadline",
    "helper-variables",
    "pin-value",
    "module-name",
];
/// The attributes before the `?`, separated by semicolons.
const ATTRIBUTES: [&str; 8] =
    ["token", "serial", "manufacturer", "model", "slot-id", "object", "id", "type"];

/// The configuration of a [`Pkcs11Kek`] as data. It says where the PIN is, never the PIN itself.
///
/// It can be read from a file (feature `serde`; the fields are named like the methods, and
/// `module_path`, `object`, `id` in hexadecimal digits) and from a URI as in RFC 7512:
///
/// ```
/// use waxseal_pkcs11::{Config, IvSource, Pkcs11Kek, PinSource};
///
/// let uri = "pkcs11:token=prod;object=orders\
///            ?module-path=/usr/lib/softhsm/libsofthsm2.so&pin-source=file:/run/secrets/pin\
///            &iv-source=caller";
/// let config: Config = uri.parse()?;
/// let same = Config::new("/usr/lib/softhsm/libsofthsm2.so", "orders")
///     .token("prod")
///     .pin_source(PinSource::File("/run/secrets/pin".into()))
///     .iv_source(IvSource::Caller);
/// assert_eq!(config, same);
///
/// let kek = Pkcs11Kek::from_config(&config).build()?;
/// # Ok::<(), waxseal::Error>(())
/// ```
///
/// Before the `?` are the attributes `token`, `serial`, `manufacturer`, `model`, `slot-id`,
/// `object`, `id` (percent-encoded bytes) and `type` (only `secret-key`). After it are
/// `module-path`, `pin-source` (`file:/PATH`, `/PATH` or `env:NAME`), and this project's attributes
/// `name`, `iv-source`, `versions`, `sessions`, `key-max-age`, `helper`, `helper-deadline` and
/// `helper-variables` (names separated by commas). A `pin-value` is refused, because a PIN must not
/// be in a configuration. So is a `module-name`: name the file.
///
/// Values that are out of range or contradict each other are refused when the provider is
/// [built](Pkcs11KekBuilder::build).
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(try_from = "Fields", into = "Fields")
)]
pub struct Config(Fields);

/// The fields in a file.
#[derive(Clone, PartialEq, Eq, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(deny_unknown_fields)
)]
struct Fields {
    module_path: PathBuf,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    token: Option<String>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    serial: Option<String>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    manufacturer: Option<String>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    model: Option<String>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    slot_id: Option<u64>,
    object: String,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    id: Option<String>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    name: Option<String>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    pin_source: Option<PinSource>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    iv_source: Option<IvSource>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    versions: Option<Versions>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    sessions: Option<u32>,
    #[cfg_attr(
        feature = "serde",
        serde(
            default,
            skip_serializing_if = "Option::is_none",
            with = "waxseal::kek::toolkit::duration"
        )
    )]
    key_max_age: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Option::is_none"))]
    helper: Option<PathBuf>,
    #[cfg_attr(
        feature = "serde",
        serde(
            default,
            skip_serializing_if = "Option::is_none",
            with = "waxseal::kek::toolkit::duration"
        )
    )]
    helper_deadline: Option<Duration>,
    #[cfg_attr(feature = "serde", serde(default, skip_serializing_if = "Vec::is_empty"))]
    helper_variables: Vec<String>,
}

macro_rules! text_setters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $name(mut self, $name: impl Into<String>) -> Self {
                self.0.$name = Some($name.into());
                self
            }
        )*
    };
}

impl Config {
    /// Configures a provider for the key with the label `object`, by the module in the file
    /// `module_path`. See [`Pkcs11Kek::builder`].
    pub fn new(module_path: impl Into<PathBuf>, object: impl Into<String>) -> Self {
        Self(Fields {
            module_path: module_path.into(),
            token: None,
            serial: None,
            manufacturer: None,
            model: None,
            slot_id: None,
            object: object.into(),
            id: None,
            name: None,
            pin_source: None,
            iv_source: None,
            versions: None,
            sessions: None,
            key_max_age: None,
            helper: None,
            helper_deadline: None,
            helper_variables: Vec::new(),
        })
    }

    text_setters! {
        /// Sets the token's label. See [`Pkcs11KekBuilder::token`].
        token,
        /// Sets the token's serial number. See [`Pkcs11KekBuilder::serial`].
        serial,
        /// Sets the token's manufacturer.
        manufacturer,
        /// Sets the token's model.
        model,
        /// Sets the token's name in the KEK id. See [`Pkcs11KekBuilder::name`].
        name,
    }

    /// Sets the number of the slot. See [`Pkcs11KekBuilder::slot_id`].
    #[must_use]
    pub fn slot_id(mut self, slot: u64) -> Self {
        self.0.slot_id = Some(slot);
        self
    }

    /// Sets the key's `CKA_ID`. See [`Pkcs11KekBuilder::id`].
    #[must_use]
    pub fn id(mut self, id: impl AsRef<[u8]>) -> Self {
        self.0.id = Some(hex(id.as_ref()));
        self
    }

    /// Sets the source of the PIN. See [`Pkcs11KekBuilder::pin_source`].
    #[must_use]
    pub fn pin_source(mut self, source: PinSource) -> Self {
        self.0.pin_source = Some(source);
        self
    }

    /// Sets the only IV source. See [`Pkcs11KekBuilder::iv_source`].
    #[must_use]
    pub fn iv_source(mut self, source: IvSource) -> Self {
        self.0.iv_source = Some(source);
        self
    }

    /// Sets which keys are versions of the KEK. See [`Pkcs11KekBuilder::versions`].
    #[must_use]
    pub fn versions(mut self, versions: Versions) -> Self {
        self.0.versions = Some(versions);
        self
    }

    /// Sets the maximum number of open sessions. See [`Pkcs11KekBuilder::sessions`].
    #[must_use]
    pub fn sessions(mut self, sessions: u32) -> Self {
        self.0.sessions = Some(sessions);
        self
    }

    /// Sets how long the list of keys is used. See [`Pkcs11KekBuilder::key_max_age`].
    #[must_use]
    pub fn key_max_age(mut self, age: Duration) -> Self {
        self.0.key_max_age = Some(age);
        self
    }

    /// Sets the program that loads the module. See [`Pkcs11KekBuilder::helper`].
    #[must_use]
    pub fn helper(mut self, program: impl Into<PathBuf>) -> Self {
        self.0.helper = Some(program.into());
        self
    }

    /// Sets how long a helper may take. See [`Pkcs11KekBuilder::helper_deadline`].
    #[must_use]
    pub fn helper_deadline(mut self, deadline: Duration) -> Self {
        self.0.helper_deadline = Some(deadline);
        self
    }

    /// Sets which variables a helper gets. See [`Pkcs11KekBuilder::helper_variables`].
    #[must_use]
    pub fn helper_variables(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.0.helper_variables = names.into_iter().map(Into::into).collect();
        self
    }

    /// Returns the token's label, if only that identifies the token.
    pub(crate) fn token_label(&self) -> Option<&str> {
        let fields = &self.0;
        let is_alone = fields.serial.is_none()
            && fields.manufacturer.is_none()
            && fields.model.is_none()
            && fields.slot_id.is_none();
        fields.token.as_deref().filter(|_| is_alone)
    }

    pub(crate) fn key_label(&self) -> &str {
        &self.0.object
    }

    /// In hexadecimal digits.
    pub(crate) fn key_id(&self) -> Option<&str> {
        self.0.id.as_deref()
    }

    pub(crate) fn has_versions_by_id(&self) -> bool {
        self.0.versions == Some(Versions::ById)
    }

    pub(crate) fn has_no_iv_source(&self) -> bool {
        self.0.iv_source.is_none()
    }

    /// Returns the same KEK in a token with another label.
    pub(crate) fn in_token(&self, label: &str) -> Self {
        let mut config = self.clone();
        let before = config.0.token.replace(label.to_owned());
        config.0.name = config.0.name.or(before);
        config
    }

    fn checked(mut fields: Fields) -> Result<Self, Error> {
        if let Some(id) = &mut fields.id {
            let bytes = HEXLOWER_PERMISSIVE.decode(id.as_bytes()).map_err(|_| {
                Error::new(ErrorKind::InvalidOption, "id: expected pairs of hexadecimal digits")
            })?;
            *id = hex(&bytes);
        }
        Ok(Self(fields))
    }
}

impl Pkcs11Kek {
    /// Makes the KEK of a [`Config`] URI. In a configuration of data domains it is the scheme
    /// `pkcs11` of [`Schemes::kek`](waxseal::domain::Schemes::kek).
    ///
    /// # Errors
    /// Those of [`Config`]'s URI and of [`build`](Pkcs11KekBuilder::build).
    pub async fn from_uri(uri: String) -> Result<Self, Error> {
        Self::from_config(&uri.parse()?).build()
    }

    /// Starts a builder with the options of `config`. Options set on the builder replace them.
    pub fn from_config(config: &Config) -> Pkcs11KekBuilder {
        let fields = config.0.clone();
        let mut builder = Self::builder(fields.module_path, fields.object);
        if let Some(label) = fields.token {
            builder = builder.token(label);
        }
        if let Some(serial) = fields.serial {
            builder = builder.serial(serial);
        }
        if let Some(manufacturer) = fields.manufacturer {
            builder = builder.manufacturer(manufacturer);
        }
        if let Some(model) = fields.model {
            builder = builder.model(model);
        }
        if let Some(slot) = fields.slot_id {
            builder = builder.slot_id(slot);
        }
        if let Some(id) = fields.id {
            // It was checked before, or `Config::id` wrote it.
            builder = builder.id(HEXLOWER_PERMISSIVE.decode(id.as_bytes()).unwrap_or_default());
        }
        if let Some(name) = fields.name {
            builder = builder.name(name);
        }
        if let Some(source) = fields.pin_source {
            builder = builder.pin_source(source);
        }
        if let Some(source) = fields.iv_source {
            builder = builder.iv_source(source);
        }
        if let Some(versions) = fields.versions {
            builder = builder.versions(versions);
        }
        if let Some(sessions) = fields.sessions {
            builder = builder.sessions(sessions);
        }
        if let Some(age) = fields.key_max_age {
            builder = builder.key_max_age(age);
        }
        if let Some(program) = fields.helper {
            builder = builder.helper(program);
        }
        if let Some(deadline) = fields.helper_deadline {
            builder = builder.helper_deadline(deadline);
        }
        builder.helper_variables(fields.helper_variables)
    }
}

/// The attributes before the `?`, still percent-encoded.
struct Attributes<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Attributes<'a> {
    fn read(uri: &Uri<'a>) -> Result<Self, Error> {
        let mut attributes = Vec::new();
        for attribute in uri.place().split(';').filter(|attribute| !attribute.is_empty()) {
            let Some((name, value)) = attribute.split_once('=') else {
                return Err(uri.error("an attribute has no `=`"));
            };
            if !ATTRIBUTES.contains(&name) {
                return Err(uri.error(unknown(name)));
            }
            if attributes.iter().any(|(other, _)| *other == name) {
                return Err(uri.error(format!("attribute `{name}` occurs twice")));
            }
            attributes.push((name, value));
        }
        Ok(Self(attributes))
    }

    fn raw(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(other, _)| *other == name).map(|(_, value)| *value)
    }

    fn text(&self, uri: &Uri<'_>, name: &str) -> Result<Option<String>, Error> {
        let part = format!("attribute `{name}`");
        self.raw(name).map(|value| uri.decode(&part, value)).transpose()
    }
}

/// The name is repeated only if it cannot be a secret in the wrong place.
fn unknown(name: &str) -> String {
    let is_shown = (1..=32).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    match name {
        "pin-source" | "module-path" | "name" | "iv-source" | "versions" | "sessions"
        | "key-max-age" | "helper" | "helper-deadline" | "helper-variables" => {
            format!("`{name}` belongs after the `?`")
        }
        "pin-value" => pin_value(),
        _ if is_shown => {
            format!("attribute `{name}` is unknown; known are {}", ATTRIBUTES.join(", "))
        }
        _ => "an attribute has no valid name".to_owned(),
    }
}

fn pin_value() -> String {
    "`pin-value` would put the PIN into the URI; name a file with `pin-source`".to_owned()
}

impl FromStr for Config {
    type Err = Error;

    /// Reads the URI.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], naming the part that is wrong without showing a value.
    fn from_str(text: &str) -> Result<Self, Error> {
        let uri = Uri::read(text, PREFIX, &PARAMETERS)?;
        if uri.has("pin-value") {
            return Err(uri.error(pin_value()));
        }
        if uri.has("module-name") {
            return Err(
                uri.error("`module-name` is not searched for; name the file with `module-path`")
            );
        }
        let attributes = Attributes::read(&uri)?;
        let text = |name| attributes.text(&uri, name);
        match text("type")?.as_deref() {
            None | Some("secret-key") => {}
            Some(_) => return Err(uri.error("attribute `type`: a KEK is a secret-key")),
        }
        let number = |part: &str, text: Option<String>| {
            let wrong = |_| uri.error(format!("{part} is not a number"));
            text.map(|text| text.parse::<u64>().map_err(wrong)).transpose()
        };
        let id = attributes.raw("id").map(|id| -> Result<_, Error> {
            // Any bytes are allowed, so its encoding is checked before it is decoded.
            uri.decode_path("attribute `id`", id)?;
            Ok(hex(&percent_decode_str(id).collect::<Vec<_>>()))
        });
        let sessions = number("parameter `sessions`", uri.text("sessions")?)?;
        let sessions = sessions.map(|sessions| {
            u32::try_from(sessions).map_err(|_| uri.error("parameter `sessions` is too large"))
        });
        let source = uri.text("pin-source")?.map(|text| {
            let wrong = |error: Error| uri.error(format!("parameter `{}`", bare(&error)));
            text.parse::<PinSource>().map_err(wrong)
        });
        let iv_source = uri.text("iv-source")?.map(|text| {
            text.parse::<IvSource>()
                .map_err(|error| uri.error(format!("parameter `{}`", bare(&error))))
        });
        let versions = uri.text("versions")?.map(|text| {
            text.parse::<Versions>()
                .map_err(|error| uri.error(format!("parameter `{}`", bare(&error))))
        });
        let missing = |what: &str| uri.error(format!("{what} is missing"));
        Self::checked(Fields {
            module_path: uri
                .path("module-path")?
                .ok_or_else(|| missing("parameter `module-path`, the file of the module,"))?,
            token: text("token")?,
            serial: text("serial")?,
            manufacturer: text("manufacturer")?,
            model: text("model")?,
            slot_id: number("attribute `slot-id`", text("slot-id")?)?,
            object: text("object")?
                .ok_or_else(|| missing("attribute `object`, the key's label,"))?,
            id: id.transpose()?,
            name: uri.text("name")?,
            pin_source: source.transpose()?,
            iv_source: iv_source.transpose()?,
            versions: versions.transpose()?,
            sessions: sessions.transpose()?,
            key_max_age: uri.duration("key-max-age")?,
            helper: uri.path("helper")?,
            helper_deadline: uri.duration("helper-deadline")?,
            helper_variables: uri.list("helper-variables")?,
        })
    }
}

/// `NAME: DETAIL` of an option's error as "NAME` DETAIL".
fn bare(error: &Error) -> String {
    let text = error.to_string();
    let detail = ["pin-source: ", "iv-source: ", "versions: "]
        .iter()
        .find_map(|name| text.find(name).and_then(|at| text.get(at..)));
    detail.unwrap_or(&text).replacen(": ", "`: ", 1)
}

/// Writes the URI.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fields = &self.0;
        let mut attributes = Vec::new();
        let texts = [
            ("token", fields.token.as_ref()),
            ("serial", fields.serial.as_ref()),
            ("manufacturer", fields.manufacturer.as_ref()),
            ("model", fields.model.as_ref()),
            ("object", Some(&fields.object)),
        ];
        for (name, text) in texts {
            if let Some(text) = text {
                attributes.push(format!("{name}={}", encode_segment(text)));
            }
        }
        if let Some(slot) = fields.slot_id {
            attributes.push(format!("slot-id={slot}"));
        }
        if let Some(id) = &fields.id {
            let pairs = id.as_bytes().chunks(2).map(String::from_utf8_lossy);
            attributes
                .push(format!("id={}", pairs.map(|pair| format!("%{pair}")).collect::<String>()));
        }
        let mut uri = UriWriter::new(PREFIX, &attributes.join(";"));
        uri.path("module-path", Some(&fields.module_path));
        uri.text("pin-source", fields.pin_source.as_ref().map(PinSource::to_string).as_deref());
        uri.text("name", fields.name.as_deref());
        uri.text("iv-source", fields.iv_source.map(|source| source.to_string()).as_deref());
        uri.text("versions", fields.versions.map(|versions| versions.to_string()).as_deref());
        uri.text("sessions", fields.sessions.map(|sessions| sessions.to_string()).as_deref());
        uri.duration("key-max-age", fields.key_max_age);
        uri.path("helper", fields.helper.as_deref());
        uri.duration("helper-deadline", fields.helper_deadline);
        uri.list("helper-variables", fields.helper_variables.iter().map(String::as_str));
        f.write_str(&uri.finish())
    }
}

#[cfg(feature = "serde")]
impl TryFrom<Fields> for Config {
    type Error = Error;

    fn try_from(fields: Fields) -> Result<Self, Error> {
        Self::checked(fields)
    }
}

#[cfg(feature = "serde")]
impl From<Config> for Fields {
    fn from(config: Config) -> Self {
        config.0
    }
}
