//! Builds a [`Pkcs11Kek`] from the caller's options.
#![forbid(unsafe_code)]

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use waxseal::kek::toolkit::uri::encode_segment;
use waxseal::kek::{CallAdvice, CallTarget};
use waxseal::{CallBudget, Error, ErrorKind, KekId};
use zeroize::Zeroizing;

use crate::format::MAX_ID;
#[cfg(unix)]
use crate::helper_program::Helper;
use crate::key::{IvSource, Versions, hex};
use crate::ledger::{OwnPin, PinGiver};
use crate::pin::{Pin, PinSource};
use crate::pool::Pool;
use crate::provider::Pkcs11Kek;
use crate::token::{Token, TokenName};

const DEFAULT_SESSIONS: u32 = 4;
const SESSIONS: std::ops::RangeInclusive<u32> = 1..=64;
const DEFAULT_KEY_MAX_AGE: Duration = Duration::from_secs(60);
const KEY_MAX_AGES: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);
/// The token limits calls per second. The budget is about sessions.
const PER_SECOND: u32 = 1_000_000;
#[cfg(unix)]
const DEFAULT_HELPER_DEADLINE: Duration = Duration::from_secs(30);
#[cfg(unix)]
const HELPER_DEADLINES: std::ops::RangeInclusive<Duration> =
    Duration::from_millis(100)..=Duration::from_secs(3600);
/// The maximum size of a token's label in bytes (`CK_TOKEN_INFO`).
const LONGEST_TOKEN: usize = 32;

/// Configures a [`Pkcs11Kek`]. Unset options have their defaults.
#[must_use = "nothing happens until `build`"]
pub struct Pkcs11KekBuilder {
    module: PathBuf,
    object: String,
    id: Option<Vec<u8>>,
    token: TokenName,
    name: Option<String>,
    pin: Option<Pin>,
    iv_source: Option<IvSource>,
    versions: Versions,
    sessions: u32,
    key_max_age: Duration,
    helper: Option<PathBuf>,
    helper_deadline: Option<Duration>,
    helper_variables: Vec<String>,
}

impl Pkcs11Kek {
    /// Starts the configuration for the AES key with the label `object`, at a token of the PKCS#11
    /// module in the file `module`. [`token`](Pkcs11KekBuilder::token),
    /// [`serial`](Pkcs11KekBuilder::serial) or [`slot_id`](Pkcs11KekBuilder::slot_id) must identify
    /// the token.
    pub fn builder(module: impl Into<PathBuf>, object: impl Into<String>) -> Pkcs11KekBuilder {
        Pkcs11KekBuilder {
            module: module.into(),
            object: object.into(),
            id: None,
            token: TokenName::default(),
            name: None,
            pin: None,
            iv_source: None,
            versions: Versions::default(),
            sessions: DEFAULT_SESSIONS,
            key_max_age: DEFAULT_KEY_MAX_AGE,
            helper: None,
            helper_deadline: None,
            helper_variables: Vec::new(),
        }
    }
}

impl Pkcs11KekBuilder {
    /// Sets the token's label. It is part of the KEK id, unless [`name`](Self::name) is set.
    pub fn token(mut self, label: impl Into<String>) -> Self {
        self.token.label = Some(label.into());
        self
    }

    /// Sets the token's serial number, for tokens that share a label. A restored or replaced token
    /// has another.
    pub fn serial(mut self, serial: impl Into<String>) -> Self {
        self.token.serial = Some(serial.into());
        self
    }

    /// Sets the token's manufacturer.
    pub fn manufacturer(mut self, manufacturer: impl Into<String>) -> Self {
        self.token.manufacturer = Some(manufacturer.into());
        self
    }

    /// Sets the token's model.
    pub fn model(mut self, model: impl Into<String>) -> Self {
        self.token.model = Some(model.into());
        self
    }

    /// Sets the number of the slot. Modules may renumber their slots at each start, so prefer the
    /// label.
    pub fn slot_id(mut self, slot: u64) -> Self {
        self.token.slot_id = Some(slot);
        self
    }

    /// Sets the token's name in the KEK id, which is in every message. By default it is the token's
    /// label. Two tokens with the same label need two names.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Sets the key's `CKA_ID`, 1 to 64 bytes, if several keys have the label. It is then part of
    /// the KEK id. Not allowed with [`Versions::ById`].
    pub fn id(mut self, id: impl Into<Vec<u8>>) -> Self {
        self.id = Some(id.into());
        self
    }

    /// Sets the source of the user's PIN. Without a PIN there is no login, which suits tokens whose
    /// keys are public objects, or processes in which other code logs in.
    pub fn pin_source(mut self, source: PinSource) -> Self {
        self.pin = Some(Pin::From(source));
        self
    }

    /// Sets the user's PIN itself. It is wiped with the provider.
    pub fn pin(mut self, pin: impl Into<String>) -> Self {
        self.pin = Some(Pin::Given(Zeroizing::new(pin.into())));
        self
    }

    /// Sets the only IV source to try. By default the sources are tried in the order of
    /// [`IvSource`], and the first that works is kept.
    pub fn iv_source(mut self, source: IvSource) -> Self {
        self.iv_source = Some(source);
        self
    }

    /// Sets which keys are versions of the KEK: by default there is one.
    pub fn versions(mut self, versions: Versions) -> Self {
        self.versions = versions;
        self
    }

    /// Sets the maximum number of open sessions, each on its own thread: 1 to 64, by default 4. The
    /// first call opens the first session, and more are opened as calls wait. If the token allows
    /// fewer, there are fewer.
    pub fn sessions(mut self, sessions: u32) -> Self {
        self.sessions = sessions;
        self
    }

    /// Sets how long the list of keys and flags is used: 100 ms to 1 hour, by default 60 seconds.
    /// The next wrap then reads it again.
    pub fn key_max_age(mut self, age: Duration) -> Self {
        self.key_max_age = age;
        self
    }

    /// Sets the program that loads the module in a separate process for each session, so that a
    /// module that crashes or hangs does not affect this process. The path is absolute. The program
    /// is `waxseal-pkcs11-helper` of this crate, in the same version, or one that calls
    /// [`helper::run`](crate::helper::run). Only on Unix. By default the module is loaded here.
    pub fn helper(mut self, program: impl Into<PathBuf>) -> Self {
        self.helper = Some(program.into());
        self
    }

    /// Sets how long a helper may take for one request before it is killed and the call fails as
    /// *unavailable*: 100 ms to 1 hour, by default 30 seconds. It must be longer than the token
    /// ever takes, including to refuse a wrong PIN, since a PIN whose helper was killed may be
    /// tried again. A login or the first call may call several functions of the module. Only with
    /// [`helper`](Self::helper).
    pub fn helper_deadline(mut self, deadline: Duration) -> Self {
        self.helper_deadline = Some(deadline);
        self
    }

    /// Sets which of this process's environment variables a helper gets, such as `SOFTHSM2_CONF`.
    /// By default, and with no name, it gets all. It never gets the one that contains the PIN. Only
    /// with [`helper`](Self::helper).
    pub fn helper_variables(mut self, names: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.helper_variables = names.into_iter().map(Into::into).collect();
        self
    }

    /// Checks everything that can be checked without the module, and builds the provider. It loads
    /// nothing, since the first call does. The provider needs no runtime.
    ///
    /// # Errors
    /// [`InvalidOption`](ErrorKind::InvalidOption), naming the option.
    pub fn build(self) -> Result<Pkcs11Kek, Error> {
        if !self.module.is_absolute() {
            return Err(invalid(
                "module_path: has to be absolute, so that no other file is loaded",
            ));
        }
        if self.object.is_empty() {
            return Err(invalid("object: the key's label is missing"));
        }
        if self.token.label.is_none() && self.token.serial.is_none() && self.token.slot_id.is_none()
        {
            return Err(invalid("token: name the token by its label, serial or slot_id"));
        }
        for (option, text) in [
            ("token", &self.token.label),
            ("serial", &self.token.serial),
            ("manufacturer", &self.token.manufacturer),
            ("model", &self.token.model),
        ] {
            let fits = text.as_ref().is_none_or(|text| (1..=LONGEST_TOKEN).contains(&text.len()));
            if !fits {
                return Err(invalid(format!("{option}: 1 to {LONGEST_TOKEN} bytes are allowed")));
            }
        }
        if let Some(id) = &self.id {
            if !(1..=MAX_ID).contains(&id.len()) {
                return Err(invalid(format!("id: 1 to {MAX_ID} bytes are allowed")));
            }
            if self.versions == Versions::ById {
                return Err(invalid("id: not together with versions by-id, which have an id each"));
            }
        }
        if !SESSIONS.contains(&self.sessions) {
            let text = format!("sessions is {}, 1 to 64 are allowed", self.sessions);
            return Err(invalid(text));
        }
        if !KEY_MAX_AGES.contains(&self.key_max_age) {
            let (from, to) = (KEY_MAX_AGES.start(), KEY_MAX_AGES.end());
            return Err(invalid(format!(
                "key_max_age is {:?}, {from:?} to {to:?} are allowed",
                self.key_max_age
            )));
        }
        let name = self.name.as_ref().or(self.token.label.as_ref()).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| {
            invalid("name: needed where the token's label is not set, since it is in the KEK id")
        })?;
        let mut id = format!("pkcs11:{}/{}", encode_segment(name), encode_segment(&self.object));
        if let Some(key_id) = &self.id {
            id.push_str(&format!("/{}", hex(key_id)));
        }
        let id = KekId::new(id)?;
        let budget = CallBudget::new(PER_SECOND, self.sessions)?;
        let advice = CallAdvice::default().budget(budget);
        let target = CallTarget::new(id.as_str()).with_advice(advice);
        let hidden = match &self.pin {
            Some(Pin::From(PinSource::Environment(name))) => Some(name.clone()),
            _ => None,
        };
        #[cfg_attr(not(unix), allow(unused_variables, clippy::let_unit_value))]
        let helper = helper(self.helper, self.helper_deadline, (self.helper_variables, hidden))?;
        let token = Token::new(
            self.module,
            self.token,
            (self.object, self.id, self.versions),
            self.pin.map(|pin| Box::new(OwnPin::new(pin)) as Box<dyn PinGiver>),
            self.iv_source,
            self.key_max_age,
        );
        #[cfg(unix)]
        let token = token.with_helper(helper);
        let most = usize::try_from(self.sessions).unwrap_or(1);
        Ok(Pkcs11Kek::new(id, target, Pool::new(token, most), most))
    }
}

#[cfg(not(unix))]
fn helper(
    program: Option<PathBuf>,
    deadline: Option<Duration>,
    (variables, _): (Vec<String>, Option<String>),
) -> Result<(), Error> {
    if program.is_some() || deadline.is_some() || !variables.is_empty() {
        return Err(invalid("helper: only on Unix"));
    }
    Ok(())
}

/// Returns the requested helper.
#[cfg(unix)]
fn helper(
    program: Option<PathBuf>,
    deadline: Option<Duration>,
    (variables, hidden): (Vec<String>, Option<String>),
) -> Result<Option<Helper>, Error> {
    let Some(program) = program else {
        return match (deadline, variables.is_empty()) {
            (Some(_), _) => Err(invalid("helper_deadline: there is no helper")),
            (_, false) => Err(invalid("helper_variables: there is no helper")),
            (None, true) => Ok(None),
        };
    };
    let is_name = |name: &String| !name.is_empty() && !name.contains(['=', '\0']);
    if !variables.iter().all(is_name) {
        return Err(invalid("helper_variables: a name is empty, or has `=` or a zero byte"));
    }
    if !program.is_absolute() {
        return Err(invalid("helper: has to be absolute, so that no other program is started"));
    }
    let deadline = deadline.unwrap_or(DEFAULT_HELPER_DEADLINE);
    if !HELPER_DEADLINES.contains(&deadline) {
        let (from, to) = (HELPER_DEADLINES.start(), HELPER_DEADLINES.end());
        return Err(invalid(format!(
            "helper_deadline is {deadline:?}, {from:?} to {to:?} are allowed"
        )));
    }
    Ok(Some(Helper::new(program, deadline, variables, hidden)))
}

fn invalid(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOption, detail.into())
}

/// Shows no PIN.
impl fmt::Debug for Pkcs11KekBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pkcs11KekBuilder")
            .field("module", &self.module)
            .field("token", &self.token)
            .field("object", &self.object)
            .field("id", &self.id)
            .field("name", &self.name)
            .field("pin", &self.pin)
            .field("iv_source", &self.iv_source)
            .field("versions", &self.versions)
            .field("sessions", &self.sessions)
            .field("key_max_age", &self.key_max_age)
            .field("helper", &self.helper)
            .field("helper_deadline", &self.helper_deadline)
            .field("helper_variables", &self.helper_variables)
            .finish()
    }
}
