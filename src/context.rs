//! The encryption context and its canonical bytes (docs/format.md, "Encryption context").
#![forbid(unsafe_code)]

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::{Error, ErrorKind};

/// The first bytes of an encoded encryption context: `WXC` and the version of the encoding.
pub(crate) const CONTEXT_MAGIC: [u8; 4] = *b"WXC\x01";

/// Name/value pairs that say what a DEK is for, such as tenant, table and purpose.
///
/// They go to the key service with every wrap and unwrap. AWS KMS logs them **in the clear**, so
/// put no secrets and no personal data in them. They are bound into every key and partition the DEK
/// cache. Anything specific to one message, such as a row's primary key, goes into the AAD instead.
///
/// A context is immutable. Its canonical bytes and their SHA-256 are computed once, so keep a
/// context and clone it. A clone is a pointer.
///
/// ```
/// use waxseal::EncryptionContext;
///
/// let context = EncryptionContext::new([("tenant", "alice"), ("table", "cards")])?;
/// assert_eq!(context.get("tenant"), Some("alice"));
/// // Order does not matter: the bytes are canonical.
/// assert_eq!(context, EncryptionContext::new([("table", "cards"), ("tenant", "alice")])?);
/// # Ok::<(), waxseal::Error>(())
/// ```
#[derive(Clone)]
pub struct EncryptionContext(Arc<Inner>);

struct Inner {
    /// Ascending by name bytes.
    pairs: Box<[(Box<str>, Box<str>)]>,
    bytes: Box<[u8]>,
    digest: [u8; 32],
}

impl EncryptionContext {
    /// The maximum size of the canonical encoding in bytes.
    pub const MAX_BYTES: usize = 8192;
    /// The maximum number of pairs.
    pub const MAX_PAIRS: usize = 64;
    /// The maximum size of a name in bytes. The minimum is 1.
    pub const MAX_NAME_BYTES: usize = 256;
    /// The maximum size of a value in bytes. The minimum is 1.
    pub const MAX_VALUE_BYTES: usize = 4096;

    /// Builds a context from pairs in any order.
    ///
    /// Names and values are UTF-8 without control characters (U+0000 to U+001F, U+007F). They are
    /// used as given, without Unicode normalisation. Names are unique even if ASCII case is
    /// ignored, and do not start with `waxseal` in any case.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidContext`], naming what is wrong, for a pair that breaks one of these
    /// rules or a limit above.
    pub fn new<N, V>(pairs: impl IntoIterator<Item = (N, V)>) -> Result<Self, Error>
    where
        N: AsRef<str>,
        V: AsRef<str>,
    {
        let pairs = pairs.into_iter().map(|pair| match is_reserved(pair.0.as_ref()) {
            true => Err(invalid(format!(
                "name {:?} is reserved (it starts with \"waxseal\")",
                pair.0.as_ref()
            ))),
            false => Ok(pair),
        });
        Self::of_any_names(pairs)
    }

    /// Does the same as [`new`](Self::new), for the library's own contexts, which use reserved
    /// names.
    pub(crate) fn with_reserved_names<N, V>(
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Result<Self, Error>
    where
        N: AsRef<str>,
        V: AsRef<str>,
    {
        Self::of_any_names(pairs.into_iter().map(Ok))
    }

    fn of_any_names<N, V>(pairs: impl Iterator<Item = Result<(N, V), Error>>) -> Result<Self, Error>
    where
        N: AsRef<str>,
        V: AsRef<str>,
    {
        let mut owned: Vec<(Box<str>, Box<str>)> = Vec::new();
        for pair in pairs {
            let (name, value) = pair?;
            let (name, value) = (name.as_ref(), value.as_ref());
            check_text(format_args!("a name"), name, Self::MAX_NAME_BYTES)?;
            check_text(format_args!("the value of {name:?}"), value, Self::MAX_VALUE_BYTES)?;
            if owned.len() == Self::MAX_PAIRS {
                return Err(invalid(format!("more than {} pairs", Self::MAX_PAIRS)));
            }
            if let Some((other, _)) =
                owned.iter().find(|(other, _)| other.eq_ignore_ascii_case(name))
            {
                return Err(invalid(format!(
                    "names {other:?} and {name:?} are the same when case is ignored"
                )));
            }
            owned.push((name.into(), value.into()));
        }
        owned.sort_unstable_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
        Self::from_sorted(owned.into_boxed_slice())
    }

    /// Returns the context without pairs. It has canonical bytes too.
    #[must_use]
    pub fn empty() -> Self {
        let bytes: Box<[u8]> = Box::new([
            CONTEXT_MAGIC[0],
            CONTEXT_MAGIC[1],
            CONTEXT_MAGIC[2],
            CONTEXT_MAGIC[3],
            0,
            0,
        ]);
        let digest = Sha256::digest(&bytes).into();
        Self(Arc::new(Inner { pairs: Box::default(), bytes, digest }))
    }

    fn from_sorted(pairs: Box<[(Box<str>, Box<str>)]>) -> Result<Self, Error> {
        let mut bytes = Vec::with_capacity(256);
        bytes.extend_from_slice(&CONTEXT_MAGIC);
        push_u16(&mut bytes, pairs.len())?;
        for (name, value) in &pairs {
            for text in [name, value] {
                push_u16(&mut bytes, text.len())?;
                bytes.extend_from_slice(text.as_bytes());
            }
        }
        if bytes.len() > Self::MAX_BYTES {
            return Err(invalid(format!(
                "{} bytes encoded, at most {} are allowed",
                bytes.len(),
                Self::MAX_BYTES
            )));
        }
        let digest = Sha256::digest(&bytes).into();
        Ok(Self(Arc::new(Inner { pairs, bytes: bytes.into_boxed_slice(), digest })))
    }

    /// Returns the canonical bytes. They are the same for the same pairs in any order.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// Returns the SHA-256 of the canonical bytes.
    #[must_use]
    pub fn digest(&self) -> &[u8; 32] {
        &self.0.digest
    }

    /// Returns the pairs, ascending by name bytes.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> + '_ {
        self.0.pairs.iter().map(|(name, value)| (&**name, &**value))
    }

    /// Returns the value of `name`, compared byte for byte.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find_map(|(other, value)| (other == name).then_some(value))
    }

    /// Returns whether there are no pairs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.pairs.is_empty()
    }

    /// Returns the pair names that are reserved for the library's own contexts.
    pub(crate) fn reserved_names(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(name, _)| name).filter(|name| is_reserved(name))
    }
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidContext, detail)
}

fn is_reserved(name: &str) -> bool {
    name.as_bytes().get(..7).is_some_and(|start| start.eq_ignore_ascii_case(b"waxseal"))
}

fn check_text(what: fmt::Arguments<'_>, text: &str, max: usize) -> Result<(), Error> {
    if text.is_empty() || text.len() > max {
        return Err(invalid(format!("{what} has {} bytes, 1 to {max} are allowed", text.len())));
    }
    if text.bytes().any(|byte| byte < 0x20 || byte == 0x7F) {
        return Err(invalid(format!("{what} has a control character: {text:?}")));
    }
    Ok(())
}

fn push_u16(bytes: &mut Vec<u8>, value: usize) -> Result<(), Error> {
    let value = u16::try_from(value)
        .map_err(|_| invalid("longer than a length field can say".to_owned()))?;
    bytes.extend_from_slice(&value.to_le_bytes());
    Ok(())
}

impl Default for EncryptionContext {
    fn default() -> Self {
        Self::empty()
    }
}

impl PartialEq for EncryptionContext {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.bytes == other.0.bytes
    }
}

impl Eq for EncryptionContext {}

impl Hash for EncryptionContext {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.digest.hash(state);
    }
}

impl fmt::Debug for EncryptionContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind_of(result: Result<EncryptionContext, Error>) -> ErrorKind {
        result.unwrap_err().kind()
    }

    #[test]
    fn an_error_names_the_pair_that_is_wrong() {
        for (name, value, text) in [
            ("", "acme", "a name has 0 bytes, 1 to 256 are allowed"),
            ("tenant", "", "the value of \"tenant\" has 0 bytes, 1 to 4096 are allowed"),
            ("tenant", "a\n", "the value of \"tenant\" has a control character: \"a\\n\""),
        ] {
            let error = EncryptionContext::new([("table", "cards"), (name, value)]).unwrap_err();
            assert_eq!(error.to_string(), format!("invalid encryption context: {text}"));
        }
    }

    #[test]
    fn the_encoding_is_the_one_of_the_format_page() {
        let context = EncryptionContext::new([("tenant", "alice")]).unwrap();
        assert_eq!(context.as_bytes(), b"WXC\x01\x01\x00\x06\x00tenant\x05\x00alice");
        assert_eq!(EncryptionContext::empty().as_bytes(), b"WXC\x01\x00\x00");
        assert_eq!(EncryptionContext::new::<&str, &str>([]).unwrap(), EncryptionContext::empty());
    }

    #[test]
    fn each_limit_bites_at_its_edge() {
        let long = "n".repeat(257);
        assert!(EncryptionContext::new([(&long[..256], "v")]).is_ok());
        assert_eq!(kind_of(EncryptionContext::new([(&long, "v")])), ErrorKind::InvalidContext);
        let long = "v".repeat(4097);
        assert!(EncryptionContext::new([("n", &long[..4096])]).is_ok());
        assert_eq!(kind_of(EncryptionContext::new([("n", &long)])), ErrorKind::InvalidContext);
        assert_eq!(kind_of(EncryptionContext::new([("", "v")])), ErrorKind::InvalidContext);
        assert_eq!(kind_of(EncryptionContext::new([("n", "")])), ErrorKind::InvalidContext);

        let pairs = |n: usize| (0..n).map(|i| (format!("n{i}"), "v")).collect::<Vec<_>>();
        assert!(EncryptionContext::new(pairs(64)).is_ok());
        assert_eq!(kind_of(EncryptionContext::new(pairs(65))), ErrorKind::InvalidContext);

        // 6 + (4 + 1 + 4096) + (4 + 1 + value) = 8192 for a value of 4080 bytes.
        let fits = [("a", "v".repeat(4096)), ("b", "v".repeat(4080))];
        assert_eq!(EncryptionContext::new(fits).unwrap().as_bytes().len(), 8192);
        let over = [("a", "v".repeat(4096)), ("b", "v".repeat(4081))];
        assert_eq!(kind_of(EncryptionContext::new(over)), ErrorKind::InvalidContext);
    }

    #[test]
    fn names_are_unique_without_case_and_not_reserved() {
        assert_eq!(
            kind_of(EncryptionContext::new([("Tenant", "a"), ("tenant", "b")])),
            ErrorKind::InvalidContext
        );
        for name in ["waxseal", "WAXSEAL-x", "WaxSealed"] {
            assert_eq!(
                kind_of(EncryptionContext::new([(name, "v")])),
                ErrorKind::InvalidContext,
                "{name}"
            );
        }
        assert!(EncryptionContext::new([("waxsea", "v"), ("a-waxseal", "v")]).is_ok());
    }

    #[test]
    fn control_characters_are_refused_and_the_rest_of_unicode_is_not() {
        for bad in ["\0", "a\nb", "\u{1f}", "\u{7f}"] {
            assert_eq!(kind_of(EncryptionContext::new([("n", bad)])), ErrorKind::InvalidContext);
            assert_eq!(kind_of(EncryptionContext::new([(bad, "v")])), ErrorKind::InvalidContext);
        }
        let composed = EncryptionContext::new([("n", "\u{e9}")]).unwrap();
        let decomposed = EncryptionContext::new([("n", "e\u{301}")]).unwrap();
        assert_ne!(composed, decomposed, "bytes as given, no normalisation");
    }
}
