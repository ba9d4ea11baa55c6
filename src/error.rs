//! The error of the public interface.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::TryReserveError;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use strsim::levenshtein;

use crate::duration;

/// Describes what went wrong.
///
/// Match on [`kind`](Error::kind), ask [`is_retryable`](Error::is_retryable) before a retry, and
/// show [`ErrorKind::advice`] to people. The `Display` text is for people and may change. It does
/// not repeat the text of [`source`](std::error::Error::source): `{error:#}` writes both. An error
/// never carries key bytes, plaintext or AAD. A failed authentication does not say which part
/// failed, since that would help an attacker.
///
/// A clone is a pointer: callers that waited for the same response share the same error.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    detail: Cow<'static, str>,
    cause: Option<Arc<dyn std::error::Error + Send + Sync>>,
    /// The cause as it appears in the chain of sources.
    shown_cause: Option<Arc<ShownCause>>,
    /// The reasons of a policy's denial.
    reasons: Option<Arc<[Box<str>]>>,
    /// The failed item of a call for many.
    item: Option<usize>,
}

/// The kinds of [`Error`].
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(feature = "serde", derive(serde::Serialize), serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum ErrorKind {
    /// The bytes do not begin like a sealed value. Such bytes are never returned as plaintext.
    NotSealed,
    /// Sealed under a format version that this build does not know.
    UnsupportedVersion,
    /// Sealed with a suite that this build does not know.
    UnsupportedSuite,
    /// A kind of sealed value that this build does not know, or that this call does not open.
    UnsupportedKind,
    /// A stream whose chunks have a size that this build does not know.
    UnsupportedChunkSize,
    /// The bytes break a rule of the format: too short, too long, not in canonical form.
    Malformed,
    /// The message is in compact form and its wrapped keys were not supplied.
    MissingWrappedKeys,
    /// No configured provider recognises a KEK id of this message.
    UnknownKek,
    /// Message, wrapped keys, encryption context and AAD do not match, or were changed.
    Invalid,
    /// The key service could not be reached or could not answer. Retryable.
    Unavailable,
    /// The key service asks for fewer calls. Retryable, more slowly.
    Throttled,
    /// The key service refuses the use of the KEK.
    Denied,
    /// The policy refuses the operation, or gave no clear answer. [`Error::reasons`] lists why.
    PolicyDenied,
    /// The key service cannot be used until an operator acts: credentials, connection,
    /// configuration.
    Misconfigured,
    /// The key service, or its provider, broke its contract.
    Provider,
    /// An encryption context breaks a limit or uses a reserved name.
    InvalidContext,
    /// A [`Caller`](crate::Caller) breaks a limit.
    InvalidCaller,
    /// A configuration value is out of range, or two contradict each other.
    InvalidOption,
    /// A plaintext, or a list of wrapped keys, is larger than the format or a limit allows.
    TooLarge,
    /// The buffer is too small for the in-place operation.
    BufferSize,
    /// The handle reached its cap on messages or bytes. Get a new one.
    Exhausted,
    /// The handle passed the end of its lease, or the process forked since it was made. Get a new
    /// one.
    Expired,
    /// The handle is for another DEK or suite than this message. Get one for this message.
    OtherDek,
    /// The envelope was shut down.
    ShutDown,
    /// The operating system's random number generator failed.
    Randomness,
    /// A file could not be read, written or locked, or the reader of a stream failed. The
    /// [`cause`](Error::cause) is an [`io::Error`](std::io::Error) where the system refused.
    Io,
    /// No data domain has this name, or this value of the pair by which domains are chosen.
    UnknownDomain,
}

impl ErrorKind {
    /// Returns its name in lower case, for logs and labels.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotSealed => "not-sealed",
            Self::UnsupportedVersion => "unsupported-version",
            Self::UnsupportedSuite => "unsupported-suite",
            Self::UnsupportedKind => "unsupported-kind",
            Self::UnsupportedChunkSize => "unsupported-chunk-size",
            Self::Malformed => "malformed",
            Self::MissingWrappedKeys => "missing-wrapped-keys",
            Self::UnknownKek => "unknown-kek",
            Self::Invalid => "invalid",
            Self::Unavailable => "unavailable",
            Self::Throttled => "throttled",
            Self::Denied => "denied",
            Self::PolicyDenied => "policy-denied",
            Self::Misconfigured => "misconfigured",
            Self::Provider => "provider",
            Self::InvalidContext => "invalid-context",
            Self::InvalidCaller => "invalid-caller",
            Self::InvalidOption => "invalid-option",
            Self::TooLarge => "too-large",
            Self::BufferSize => "buffer-size",
            Self::Exhausted => "exhausted",
            Self::Expired => "expired",
            Self::OtherDek => "other-dek",
            Self::ShutDown => "shut-down",
            Self::Randomness => "randomness",
            Self::Io => "io",
            Self::UnknownDomain => "unknown-domain",
        }
    }

    /// Returns a short piece of advice for people.
    ///
    /// ```
    /// assert_eq!(waxseal::ErrorKind::Throttled.advice(), "retry after a longer delay, or raise the quota");
    /// ```
    #[must_use]
    pub fn advice(self) -> &'static str {
        self.text().1
    }

    /// Returns what happened and the advice.
    fn text(self) -> (&'static str, &'static str) {
        match self {
            Self::NotSealed => ("not a sealed value", "check where the bytes come from"),
            Self::UnsupportedVersion => {
                ("unknown format version", "use a newer release of the library")
            }
            Self::UnsupportedSuite => ("unknown suite", "use a newer release of the library"),
            Self::UnsupportedKind => {
                ("unsupported kind of sealed value", "use the call for this kind")
            }
            Self::UnsupportedChunkSize => {
                ("unsupported size of chunks", "use a newer release of the library")
            }
            Self::Malformed => (
                "malformed sealed value",
                "the bytes were cut or changed: restore them from a backup",
            ),
            Self::MissingWrappedKeys => (
                "compact message without wrapped keys",
                "pass its wrapped keys with Sealed::compact, or to rewrap_wrapped_keys",
            ),
            Self::UnknownKek => (
                "no provider for any KEK that wrapped the key",
                "add the provider of one of them with unwrap_with",
            ),
            Self::Invalid => (
                "message, wrapped keys, context and AAD do not belong together",
                "check the encryption context and the AAD; if both are right, the value was changed",
            ),
            Self::Unavailable => ("key service or store unavailable", "retry after a delay"),
            Self::Throttled => (
                "key service or store throttled the call",
                "retry after a longer delay, or raise the quota",
            ),
            Self::Denied => (
                "key service denied the use of the KEK",
                "check that the KEK exists and is enabled, and that the caller may use it",
            ),
            Self::PolicyDenied => (
                "the policy denied the operation",
                "see the reasons of the error; the policy says who may do what",
            ),
            Self::Misconfigured => (
                "key service or store not usable as configured",
                "check credentials, connection and configuration",
            ),
            Self::Provider => {
                ("key provider broke its contract", "report it to the maintainer of the provider")
            }
            Self::InvalidContext => {
                ("invalid encryption context", "change the pair that the error names")
            }
            Self::InvalidCaller => ("invalid caller", "change the part that the error names"),
            Self::InvalidOption => {
                ("invalid configuration", "change the option that the error names")
            }
            Self::TooLarge => {
                ("too large", "make what the error names smaller, or raise its limit")
            }
            Self::BufferSize => {
                ("buffer of the wrong size", "size it with prefix_len and tag_len of the encryptor")
            }
            Self::Exhausted => ("handle exhausted", "get a new handle"),
            Self::Expired => ("handle expired", "get a new handle"),
            Self::OtherDek => ("handle is for another DEK", "get a handle for this message"),
            Self::ShutDown => ("envelope shut down", "build a new one"),
            Self::Randomness => (
                "the system's random number generator failed",
                "nothing was encrypted: repair the system",
            ),
            Self::Io => ("file could not be used", "check its path, owner, mode and lock"),
            Self::UnknownDomain => ("unknown data domain", "check its name, or configure it"),
        }
    }
}

impl ErrorKind {
    /// Whether the key service is unreachable or throttling.
    pub(crate) fn is_outage(self) -> bool {
        matches!(self, Self::Unavailable | Self::Throttled)
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text().0)
    }
}

impl Error {
    /// Makes an error of this kind. The detail says what is wrong and contains no secret.
    pub fn new(kind: ErrorKind, detail: impl Into<Cow<'static, str>>) -> Self {
        let (cause, shown_cause, reasons, item) = (None, None, None, None);
        Self(Arc::new(Inner { kind, detail: detail.into(), cause, shown_cause, reasons, item }))
    }

    /// Returns the error of a denial by a policy. Its text includes the reasons.
    pub(crate) fn policy_denied(what: &str, reasons: Arc<[Box<str>]>) -> Self {
        let detail = match &*reasons {
            [] => format!("{what}: the policy gave no reason"),
            reasons => format!("{what}: {}", reasons.join("; ")),
        };
        Self::new(ErrorKind::PolicyDenied, detail).with(|inner| inner.reasons = Some(reasons))
    }

    /// Adds the cause. Its Debug and Display must be free of secrets. As a
    /// [`source`](std::error::Error::source) it is shown with unprintable characters escaped.
    /// [`cause`](Self::cause) returns it unchanged.
    #[must_use]
    pub fn with_source(self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.with_cause(Arc::from(source.into()))
    }

    /// Adds a cause that other errors share: see [`with_source`](Self::with_source).
    pub(crate) fn with_cause(self, cause: Arc<dyn std::error::Error + Send + Sync>) -> Self {
        let shown_cause = Some(Arc::new(ShownCause::of(&*cause)));
        self.with(|inner| (inner.cause, inner.shown_cause) = (Some(cause), shown_cause))
    }

    /// Changes it. If others hold this error, the new one has a copy of its parts.
    fn with(self, change: impl FnOnce(&mut Inner)) -> Self {
        let mut inner = Arc::unwrap_or_clone(self.0);
        change(&mut inner);
        Self(Arc::new(inner))
    }

    /// Returns the cause itself, for downcasting.
    #[must_use]
    pub fn cause(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
        self.0.cause.as_deref()
    }

    /// Returns the error of a failed random number generator. It is not a `From` of the generator
    /// crate's error, whose version would then be part of the public interface.
    pub(crate) fn randomness(source: getrandom::Error) -> Self {
        Self::new(ErrorKind::Randomness, "").with_source(source)
    }

    /// Returns the error for a result that no memory or buffer can hold: on 32 bits its input may
    /// fill half of the address space.
    pub(crate) fn no_memory(_: TryReserveError) -> Self {
        Self::new(ErrorKind::TooLarge, "no memory for the result in one buffer")
    }

    /// Returns the remembered answer of a key service, for callers that get it without another
    /// call. An error without a detail stays without one.
    pub(crate) fn remembered(&self, ttl: Duration) -> Self {
        if self.0.detail.is_empty() {
            return self.clone();
        }
        let ttl = duration::write(ttl);
        self.clone().with(|Inner { detail, .. }| {
            *detail = format!("{detail} (remembered, not asked again; denial_ttl is {ttl})").into();
        })
    }

    /// Returns the same error, with a location before its detail.
    pub(crate) fn at(&self, place: impl fmt::Display) -> Self {
        self.clone().with(|Inner { detail, .. }| {
            *detail = match &**detail {
                "" => place.to_string().into(),
                detail => format!("{place}: {detail}").into(),
            };
        })
    }

    /// Returns the same error, for one item of a call for many.
    #[cold]
    pub(crate) fn of_item(&self, index: usize) -> Self {
        self.at(format_args!("item {index}")).with(|inner| inner.item = Some(index))
    }

    /// Returns the index of the item that failed in a call for many, such as
    /// [`decrypt_many`](crate::Envelope::decrypt_many). The first one is 0. `None` if the failure
    /// is not about one item, and for other calls.
    #[must_use]
    pub fn item(&self) -> Option<usize> {
        self.0.item
    }

    /// Returns the error of every failed authentication. It has no detail, whatever the cause.
    pub(crate) fn invalid() -> Self {
        Self::new(ErrorKind::Invalid, "")
    }

    /// Returns the library's own error in a failed read or write, if it is one. Returns `None` for
    /// an error of the inner reader or writer.
    ///
    /// ```
    /// use waxseal::{Error, ErrorKind};
    ///
    /// let error = std::io::Error::from(Error::new(ErrorKind::Expired, ""));
    /// assert_eq!(Error::of_io(&error).map(Error::kind), Some(ErrorKind::Expired));
    /// ```
    #[must_use]
    pub fn of_io(error: &std::io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// Returns the kind of failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// Returns the reasons that the policy gave for a denial. They may contain any text: show the
    /// error itself to people, which escapes them. Empty for every other kind.
    #[must_use]
    pub fn reasons(&self) -> &[Box<str>] {
        self.0.reasons.as_deref().unwrap_or_default()
    }

    /// Returns the detail, without the text of the kind.
    pub(crate) fn detail(&self) -> &str {
        &self.0.detail
    }

    /// Returns whether the same call may succeed later without any change.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        self.0.kind.is_outage()
    }
}

/// `{:#}` also writes the chain of sources, with a colon before each.
impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.kind.text().0)?;
        if !self.0.detail.is_empty() {
            write!(f, ": {}", Shown(&self.0.detail))?;
        }
        let mut source = std::error::Error::source(self).filter(|_| f.alternate());
        while let Some(cause) = source {
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("detail", &self.0.detail)
            .field("source", &self.0.shown_cause)
            .finish()
    }
}

/// For readers and writers of streams. [`Error::of_io`] recovers it.
impl From<Error> for std::io::Error {
    fn from(error: Error) -> Self {
        use std::io::ErrorKind as Kind;

        let kind = match error.kind() {
            ErrorKind::NotSealed
            | ErrorKind::UnsupportedVersion
            | ErrorKind::UnsupportedSuite
            | ErrorKind::UnsupportedKind
            | ErrorKind::UnsupportedChunkSize
            | ErrorKind::Malformed
            | ErrorKind::Invalid => Kind::InvalidData,
            ErrorKind::Denied | ErrorKind::PolicyDenied => Kind::PermissionDenied,
            _ => Kind::Other,
        };
        Self::new(kind, error)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.shown_cause.as_deref().map(|source| source as _)
    }
}

/// Returns the known name that is closest to a mistyped one.
pub(crate) fn nearest<'k>(name: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // Short names are all close to each other, and long ones rarely have that many typing errors.
    if !(2..=128).contains(&name.len()) {
        return None;
    }
    let distances = known.into_iter().map(|known| (levenshtein(name, known), known));
    distances.min().filter(|(distance, _)| *distance <= 2).map(|(_, known)| known)
}

/// Text from a message or a server, escaped for display. Control characters, line and paragraph
/// separators, and everything else that is invisible or changes the direction of text are escaped.
/// So it cannot begin a line of a log, move a cursor, or look like other text. Escaping twice gives
/// the same text.
pub(crate) struct Shown<'a>(pub(crate) &'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // `Debug` of a text also escapes quotes and backslashes.
        for part in self.0.split_inclusive(['"', '\'', '\\']) {
            let text = part.trim_end_matches(['"', '\'', '\\']);
            write!(f, "{}{}", text.escape_debug(), part.get(text.len()..).unwrap_or_default())?;
        }
        Ok(())
    }
}

/// A foreign error and its causes, shown as [`Shown`], since their texts may contain anything.
pub(crate) struct ShownCause {
    text: String,
    debug: String,
    source: Option<Box<Self>>,
}

impl ShownCause {
    pub(crate) fn of(error: &(dyn std::error::Error + 'static)) -> Self {
        Self::of_chain(error, MOST_CAUSES)
    }

    fn of_chain(error: &(dyn std::error::Error + 'static), most: usize) -> Self {
        let source = error
            .source()
            .filter(|_| most > 1)
            .map(|source| Box::new(Self::of_chain(source, most - 1)));
        Self {
            text: Shown(&error.to_string()).to_string(),
            debug: Shown(&format!("{error:?}")).to_string(),
            source,
        }
    }
}

/// The maximum number of causes shown: an error may be its own cause.
const MOST_CAUSES: usize = 16;

impl fmt::Display for ShownCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ShownCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.debug)
    }
}

impl std::error::Error for ShownCause {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

#[cfg(test)]
mod tests {
    use super::{Error, ErrorKind, Shown, ShownCause};

    #[test]
    fn an_error_that_is_its_own_cause_is_shown_all_the_same() {
        #[derive(Debug, thiserror::Error)]
        #[error("again")]
        struct Again;
        #[derive(Debug)]
        struct Itself;
        impl std::fmt::Display for Itself {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("itself\n")
            }
        }
        impl std::error::Error for Itself {
            fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
                Some(self)
            }
        }
        let causes = |cause: &ShownCause| {
            std::iter::successors(Some(cause), |cause| cause.source.as_deref()).count()
        };
        let shown = ShownCause::of(&Itself);
        assert_eq!((causes(&shown), shown.to_string().as_str()), (16, "itself\\n"));
        assert_eq!(causes(&ShownCause::of(&Again)), 1);
    }

    #[test]
    fn the_alternate_text_has_the_sources_and_the_plain_one_does_not() {
        #[derive(Debug, thiserror::Error)]
        #[error("{0}")]
        struct Cause(&'static str, #[source] Option<Box<Self>>);
        let cause = Cause("connect\n", Some(Box::new(Cause("refused", None))));
        let error = Error::new(ErrorKind::Unavailable, "kms").with_source(cause);
        assert_eq!(error.to_string(), "key service or store unavailable: kms");
        assert_eq!(
            format!("{error:#}"),
            "key service or store unavailable: kms: connect\\n: refused"
        );
        let error = Error::new(ErrorKind::Expired, "");
        assert_eq!(format!("{error:#}"), error.to_string());
    }

    #[test]
    fn what_a_message_or_a_server_wrote_is_shown_on_one_line_and_as_what_it_is() {
        for (text, shown) in [
            (
                "arn:aws:kms:eu-west-1:111122223333:key/1",
                "arn:aws:kms:eu-west-1:111122223333:key/1",
            ),
            (
                "a \"quoted\" one, d\u{e9}j\u{e0} vu, \u{939}\u{93f}\u{928}\u{94d}, C:\\new",
                "a \"quoted\" one, d\u{e9}j\u{e0} vu, \u{939}\u{93f}\u{928}\u{94d}, C:\\new",
            ),
            ("a\r\nb\tc\0", "a\\r\\nb\\tc\\0"),
            ("\u{1b}[2J\u{9b}2J\u{7f}", "\\u{1b}[2J\\u{9b}2J\\u{7f}"),
            ("a\u{2028}b\u{2029}c\u{85}", "a\\u{2028}b\\u{2029}c\\u{85}"),
            (
                "\u{202e}evil\u{2066}\u{200b}\u{feff}\u{e0041}",
                "\\u{202e}evil\\u{2066}\\u{200b}\\u{feff}\\u{e0041}",
            ),
            ("", ""),
        ] {
            assert_eq!(Shown(text).to_string(), shown);
            assert_eq!(Shown(shown).to_string(), shown, "shown twice");
            let error = Error::new(ErrorKind::Unavailable, text.to_owned());
            assert!(error.to_string().contains(shown), "{error}");
        }
    }

    #[test]
    fn a_cause_is_shown_escaped_and_can_be_downcast() {
        use std::error::Error as _;
        let foreign = std::io::Error::other("no\r\n\u{1b}[2Jsuch file");
        let shared = Error::new(ErrorKind::Io, "cards.kek");
        let error = shared.clone().with_source(foreign);
        let source = error.source().unwrap();
        for shown in [source.to_string(), format!("{error:?}"), format!("{source:?}")] {
            assert!(shown.contains("no\\r\\n\\u{1b}[2Jsuch file"), "{shown}");
            assert!(!shown.contains(char::is_control), "{shown}");
        }
        let cause = error.cause().unwrap().downcast_ref::<std::io::Error>().unwrap();
        assert_eq!(cause.to_string(), "no\r\n\u{1b}[2Jsuch file");
        assert!(shared.source().is_none() && shared.cause().is_none());
    }

    #[test]
    fn the_text_says_what_happened_and_what_to_do() {
        let error = Error::new(ErrorKind::TooLarge, "max_bytes is 10");
        assert_eq!(error.to_string(), "too large: max_bytes is 10");
        assert_eq!(error.kind().advice(), "make what the error names smaller, or raise its limit");
        assert_eq!(error.kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn only_an_unavailable_or_throttled_key_service_is_worth_a_retry() {
        assert!(Error::new(ErrorKind::Unavailable, "").is_retryable());
        assert!(Error::new(ErrorKind::Throttled, "").is_retryable());
        for kind in [
            ErrorKind::Denied,
            ErrorKind::Invalid,
            ErrorKind::Misconfigured,
            ErrorKind::Expired,
            ErrorKind::Malformed,
        ] {
            assert!(!Error::new(kind, "").is_retryable(), "{kind}");
        }
    }

    #[test]
    fn an_error_is_one_pointer_wide() {
        assert_eq!(size_of::<Result<(), Error>>(), size_of::<usize>());
    }
}
