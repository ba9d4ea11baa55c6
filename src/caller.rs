//! The caller on whose behalf the library is used, and the action.
#![forbid(unsafe_code)]

use std::collections::hash_map::RandomState;
use std::fmt;
use std::hash::{BuildHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use crate::error::{Error, ErrorKind};

/// What a caller wants to do, as policies and observers see it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum Action {
    /// Encrypt a message.
    Encrypt,
    /// Decrypt a message.
    Decrypt,
    /// Rewrap the keys of a message, or those in a store.
    Rewrap,
    /// Erase the keys of a branch.
    Erase,
}

impl Action {
    /// Every action.
    pub const ALL: [Self; 4] = [Self::Encrypt, Self::Decrypt, Self::Rewrap, Self::Erase];

    /// Returns its name in lower case.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Encrypt => "encrypt",
            Self::Decrypt => "decrypt",
            Self::Rewrap => "rewrap",
            Self::Erase => "erase",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The caller on whose behalf an operation is done. A [policy](crate::policy) decides about it, and
/// observers see it.
///
/// The library trusts what it is given. Take it from something authenticated, such as a verified
/// token or a client certificate, and never from a header that anyone can set.
///
/// A caller is immutable, and a clone is a pointer. Make one for each session or user and keep it.
///
/// ```
/// use waxseal::Caller;
///
/// let caller = Caller::builder()
///     .service("reporting")
///     .role("finance-analyst")
///     .groups(["emea", "audit"])
///     .source_address([10, 1, 2, 3])
///     .attribute("clearance", "confidential")
///     .build()?;
/// assert_eq!(caller.service(), Some("reporting"));
/// // Per request: two pointers.
/// let caller = caller.with_request_id("4b0c6a1e")?;
/// assert_eq!(caller.request_id(), Some("4b0c6a1e"));
/// # Ok::<(), waxseal::Error>(())
/// ```
///
/// Debug omits the source address, the groups, the attribute values and the request id.
#[derive(Clone)]
pub struct Caller {
    who: Arc<Who>,
    request_id: Option<Arc<str>>,
}

/// The part that stays the same from request to request.
struct Who {
    parts: Parts,
    /// A hash of the parts, keyed per process, so that nobody outside can construct a collision.
    hash: u64,
    /// Approximate size of the parts in bytes.
    memory: usize,
}

#[derive(PartialEq, Eq, Hash, Default)]
struct Parts {
    service: Option<Box<str>>,
    /// Ascending, without duplicates.
    roles: Box<[Box<str>]>,
    /// Ascending, without duplicates.
    groups: Box<[Box<str>]>,
    source_address: Option<IpAddr>,
    /// Ascending by name, without duplicate names.
    attributes: Box<[(Box<str>, AttributeValue)]>,
}

/// The value of an attribute of a [`Caller`].
#[derive(Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(untagged))]
#[non_exhaustive]
pub enum AttributeValue {
    /// One text.
    One(Box<str>),
    /// A list of texts, in the order in which they were given.
    Many(Box<[Box<str>]>),
}

impl AttributeValue {
    /// Returns its texts.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + '_ {
        let texts = match self {
            Self::One(text) => std::slice::from_ref(text),
            Self::Many(texts) => texts,
        };
        texts.iter().map(|text| &**text)
    }
}

/// Values may be personal data.
impl fmt::Debug for AttributeValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} values", self.iter().len())
    }
}

impl Caller {
    /// The maximum total size of all texts in bytes.
    pub const MAX_BYTES: usize = 64 * 1024;
    /// The maximum size of one text in bytes. The minimum is 1.
    pub const MAX_TEXT_BYTES: usize = 1024;
    /// The maximum number of texts of each kind: roles, groups, attributes, values of one
    /// attribute.
    pub const MAX_TEXTS: usize = 1024;

    /// Returns a builder. Every field is optional.
    pub fn builder() -> CallerBuilder {
        CallerBuilder::default()
    }

    /// Returns the same caller in another request. The id has 1 to 1,024 bytes without control
    /// characters. Observers and the policy see it. The policy is then asked again for each
    /// request: see
    /// [`PolicyOptions::ignore_request_id`](crate::policy::PolicyOptions::ignore_request_id).
    ///
    /// # Errors
    /// [`ErrorKind::InvalidCaller`] for any other text.
    pub fn with_request_id(&self, id: impl AsRef<str>) -> Result<Self, Error> {
        let id = id.as_ref();
        check_text("request_id", id)?;
        Ok(Self { who: self.who.clone(), request_id: Some(id.into()) })
    }

    /// Returns the name of the service.
    #[must_use]
    pub fn service(&self) -> Option<&str> {
        self.who.parts.service.as_deref()
    }

    /// Returns the roles, ascending.
    pub fn roles(&self) -> impl ExactSizeIterator<Item = &str> + '_ {
        self.who.parts.roles.iter().map(|role| &**role)
    }

    /// Returns the groups, ascending.
    pub fn groups(&self) -> impl ExactSizeIterator<Item = &str> + '_ {
        self.who.parts.groups.iter().map(|group| &**group)
    }

    /// Returns the address that the request came from.
    #[must_use]
    pub fn source_address(&self) -> Option<IpAddr> {
        self.who.parts.source_address
    }

    /// Returns the attributes, ascending by name.
    pub fn attributes(&self) -> impl ExactSizeIterator<Item = (&str, &AttributeValue)> + '_ {
        self.who.parts.attributes.iter().map(|(name, value)| (&**name, value))
    }

    /// Returns the id of the request.
    #[must_use]
    pub fn request_id(&self) -> Option<&str> {
        self.request_id.as_deref()
    }

    pub(crate) fn without_request_id(&self) -> Self {
        Self { who: self.who.clone(), request_id: None }
    }

    /// Whether both are the same caller, ignoring the request id.
    #[inline]
    pub(crate) fn is_who(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.who, &other.who) || self.who.is_equal(&other.who)
    }

    /// Returns a hash that nobody outside this process can predict.
    pub(crate) fn who_hash(&self) -> u64 {
        self.who.hash
    }

    /// Returns the approximate size in bytes.
    pub(crate) fn memory(&self) -> usize {
        self.who.memory.saturating_add(memory_of(self.request_id()))
    }
}

/// Compares all fields, including the request id.
impl PartialEq for Caller {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        self.request_id == other.request_id && self.is_who(other)
    }
}

impl Eq for Caller {}

impl Hash for Caller {
    fn hash<H: Hasher>(&self, state: &mut H) {
        (self.who.hash, &self.request_id).hash(state);
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Parts { service, roles, groups, source_address: _, attributes } = &self.who.parts;
        let names: Vec<_> = attributes.iter().map(|(name, _)| name).collect();
        f.debug_struct("Caller")
            .field("service", service)
            .field("roles", roles)
            .field("groups", &groups.len())
            .field("attributes", &names)
            .finish_non_exhaustive()
    }
}

impl Who {
    #[inline(never)]
    fn is_equal(&self, other: &Self) -> bool {
        self.hash == other.hash && self.parts == other.parts
    }
}

impl Parts {
    fn memory(&self) -> usize {
        let texts = self.service.iter().chain(&self.roles).chain(&self.groups);
        let of_attribute = |(name, value): &(Box<str>, AttributeValue)| {
            memory_of([&**name]) + MEMORY_OF_A_TEXT + memory_of(value.iter())
        };
        memory_of(texts.map(|text| &**text))
            + self.attributes.iter().map(of_attribute).sum::<usize>()
    }
}

/// A pointer with its length, and the minimum overhead of an allocation.
const MEMORY_OF_A_TEXT: usize = 48;

/// Returns the approximate size of these texts in bytes.
pub(crate) fn memory_of<'t>(texts: impl IntoIterator<Item = &'t str>) -> usize {
    texts.into_iter().map(|text| MEMORY_OF_A_TEXT + text.len()).sum()
}

/// Builds a [`Caller`]. Every text has 1 to 1,024 bytes and no control characters. There are at
/// most 1,024 roles, groups, attributes and values of one attribute, and at most 64 KiB of text in
/// total. Input over a limit is not stored, however long it is.
#[derive(Default)]
#[must_use = "nothing happens until `build`"]
pub struct CallerBuilder {
    service: Option<Box<str>>,
    roles: Vec<Box<str>>,
    groups: Vec<Box<str>>,
    source_address: Option<IpAddr>,
    attributes: Vec<(Box<str>, AttributeValue)>,
    bytes: usize,
    /// The first error.
    error: Option<Error>,
}

impl CallerBuilder {
    /// Sets the name of the service that uses the library.
    pub fn service(mut self, name: impl AsRef<str>) -> Self {
        self.service = self.kept("service", name.as_ref());
        self
    }

    /// Adds a role.
    pub fn role(self, role: impl AsRef<str>) -> Self {
        self.roles([role])
    }

    /// Adds roles. Their order does not matter.
    pub fn roles<R: AsRef<str>>(mut self, roles: impl IntoIterator<Item = R>) -> Self {
        let mut all = std::mem::take(&mut self.roles);
        self.keep_all("roles", roles, &mut all);
        self.roles = all;
        self
    }

    /// Adds a group.
    pub fn group(self, group: impl AsRef<str>) -> Self {
        self.groups([group])
    }

    /// Adds groups. Their order does not matter.
    pub fn groups<G: AsRef<str>>(mut self, groups: impl IntoIterator<Item = G>) -> Self {
        let mut all = std::mem::take(&mut self.groups);
        self.keep_all("groups", groups, &mut all);
        self.groups = all;
        self
    }

    /// Sets the address that the request came from.
    pub fn source_address(mut self, address: impl Into<IpAddr>) -> Self {
        self.source_address = Some(address.into());
        self
    }

    /// Sets an attribute, such as `("department", "finance")`.
    pub fn attribute(mut self, name: impl AsRef<str>, value: impl AsRef<str>) -> Self {
        let name = name.as_ref();
        if let Some(value) = self.kept(name, value.as_ref()) {
            self.set(name, AttributeValue::One(value));
        }
        self
    }

    /// Sets an attribute with a list of values.
    pub fn attribute_list<V: AsRef<str>>(
        mut self,
        name: impl AsRef<str>,
        values: impl IntoIterator<Item = V>,
    ) -> Self {
        let (name, mut all) = (name.as_ref(), Vec::new());
        self.keep_all(name, values, &mut all);
        self.set(name, AttributeValue::Many(all.into()));
        self
    }

    /// Builds the caller.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidCaller`], naming what is wrong.
    pub fn build(self) -> Result<Caller, Error> {
        static HASHING: LazyLock<RandomState> = LazyLock::new(RandomState::new);

        let Self { service, roles, groups, source_address, mut attributes, error, .. } = self;
        if let Some(error) = error {
            return Err(error);
        }
        attributes.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        if let Some([(name, _), _]) = attributes.array_windows().find(|[(a, _), (b, _)]| a == b) {
            return Err(invalid(format!("attribute {name:?} is set twice")));
        }
        let set = |mut texts: Vec<Box<str>>| {
            texts.sort_unstable();
            texts.dedup();
            texts.into_boxed_slice()
        };
        let (roles, groups) = (set(roles), set(groups));
        let attributes = attributes.into_boxed_slice();
        let parts = Parts { service, roles, groups, source_address, attributes };
        let (hash, memory) = (HASHING.hash_one(&parts), parts.memory());
        Ok(Caller { who: Arc::new(Who { parts, hash, memory }), request_id: None })
    }

    fn set(&mut self, name: &str, value: AttributeValue) {
        if self.attributes.len() == Caller::MAX_TEXTS {
            self.fail(invalid(format!("more than {} attributes", Caller::MAX_TEXTS)));
        } else if let Some(name) = self.kept("the name of an attribute", name) {
            self.attributes.push((name, value));
        }
    }

    fn keep_all<T: AsRef<str>>(
        &mut self,
        what: &str,
        texts: impl IntoIterator<Item = T>,
        all: &mut Vec<Box<str>>,
    ) {
        for text in texts {
            if all.len() == Caller::MAX_TEXTS {
                return self.fail(invalid(format!("{what}: more than {}", Caller::MAX_TEXTS)));
            }
            match self.kept(what, text.as_ref()) {
                Some(text) => all.push(text),
                None => return,
            }
        }
    }

    /// Returns the text, unless it or the total is too long.
    fn kept(&mut self, what: &str, text: &str) -> Option<Box<str>> {
        let bytes = self.bytes.saturating_add(text.len());
        if let Err(error) = check_text(what, text) {
            self.fail(error);
        } else if bytes > Caller::MAX_BYTES {
            self.fail(invalid(format!("more than {} bytes of texts", Caller::MAX_BYTES)));
        } else {
            self.bytes = bytes;
            return Some(text.into());
        }
        None
    }

    fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
    }
}

impl fmt::Debug for CallerBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallerBuilder").field("service", &self.service).finish_non_exhaustive()
    }
}

fn check_text(what: &str, text: &str) -> Result<(), Error> {
    let most = Caller::MAX_TEXT_BYTES;
    // An attribute's name may itself be long.
    let what = what.get(..what.floor_char_boundary(64)).unwrap_or_default();
    if text.is_empty() || text.len() > most {
        return Err(invalid(format!("{what}: {} bytes, 1 to {most} are allowed", text.len())));
    }
    if text.bytes().any(|byte| byte < 0x20 || byte == 0x7F) {
        return Err(invalid(format!("{what}: a control character")));
    }
    Ok(())
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidCaller, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_roles_and_groups_makes_no_other_caller() {
        let one = Caller::builder().roles(["b", "a", "b"]).groups(["y", "x"]).build().unwrap();
        let other = Caller::builder().role("a").role("b").groups(["x", "y"]).build().unwrap();
        assert_eq!(one, other);
        assert_eq!(one.who_hash(), other.who_hash());
        assert_ne!(one, one.with_request_id("7").unwrap());
        assert!(one.is_who(&one.with_request_id("7").unwrap()));
    }

    #[test]
    fn an_error_about_a_long_name_is_short() {
        let name = format!("x{}", "\u{e9}".repeat(500_000));
        let error = Caller::builder().attribute(&name, "").build().unwrap_err();
        assert!(error.to_string().len() < 1000, "{} bytes", error.to_string().len());
    }

    #[test]
    fn what_moves_from_one_field_to_another_is_another_caller() {
        let builders = [
            Caller::builder().service("a"),
            Caller::builder().role("a"),
            Caller::builder().group("a"),
            Caller::builder().attribute("a", "a"),
            Caller::builder().attribute_list("a", ["a"]),
            Caller::builder().attribute_list("a", ["a", "a"]),
            Caller::builder().source_address([10, 0, 0, 1]),
            Caller::builder(),
        ];
        let callers = builders.map(|builder| builder.build().unwrap());
        for (i, one) in callers.iter().enumerate() {
            for (j, other) in callers.iter().enumerate() {
                assert_eq!(one == other, i == j, "{i} {j}");
            }
        }
    }

    #[test]
    fn each_bound_bites_at_its_edge_and_names_what_is_wrong() {
        let text = |bytes| "x".repeat(bytes);
        let many = |count: usize| (0..count).map(|i| format!("v{i}"));
        let refused = |builder: CallerBuilder, what: &str| {
            let error = builder.build().unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidCaller);
            assert!(error.to_string().contains(what), "{error}");
        };
        assert!(Caller::builder().service(text(1024)).build().is_ok());
        refused(Caller::builder().service(text(1025)), "service: 1025 bytes");
        refused(Caller::builder().role(""), "roles: 0 bytes");
        refused(Caller::builder().group("a\nb"), "groups: a control character");
        assert!(Caller::builder().attribute_list("teams", many(1024)).build().is_ok());
        refused(Caller::builder().attribute_list("teams", many(1025)), "teams: more than 1024");
        let huge = Caller::builder().groups((0..63).map(|i| format!("{i:01024}")));
        refused(huge.attribute("a", text(1024)), "more than 65536 bytes");
        refused(Caller::builder().attribute("a", "1").attribute("a", "2"), "\"a\" is set twice");
        let builder =
            many(1025).fold(Caller::builder(), |builder, name| builder.attribute(name, "v"));
        refused(builder, "more than 1024 attributes");
        assert!(Caller::builder().build().unwrap().with_request_id(text(1025)).is_err());
    }

    #[test]
    fn a_list_of_a_hundred_thousand_values_is_refused_before_it_is_read() {
        let mut read = 0;
        let values = (0..100_000).map(|i| format!("value {i}")).inspect(|_| read += 1);
        assert!(Caller::builder().attribute_list("teams", values).build().is_err());
        assert_eq!(read, 1025);
    }

    #[test]
    fn debug_shows_no_personal_data() {
        let caller = Caller::builder()
            .service("reporting")
            .group("secret-group")
            .source_address([10, 9, 8, 7])
            .attribute("mail", "alice@example.org")
            .build()
            .unwrap()
            .with_request_id("secret-request")
            .unwrap();
        let shown = format!("{caller:?} {:?}", caller.attributes().collect::<Vec<_>>());
        assert!(shown.contains("reporting") && shown.contains("mail"), "{shown}");
        for hidden in ["secret", "10.9", "alice"] {
            assert!(!shown.contains(hidden), "{shown}");
        }
    }
}
