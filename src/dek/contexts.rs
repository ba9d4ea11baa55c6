//! Which encryption contexts a source serves.
//!
//! A context of a data domain has the reserved pair `waxseal:domain`. The pair is bound into every
//! key with the rest of the context, so no message crosses from domain to domain.
#![forbid(unsafe_code)]

use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind, nearest};

/// The reserved name of the pair that names the data domain.
pub(crate) const DOMAIN: &str = "waxseal:domain";

impl EncryptionContext {
    /// Returns the data domain that the context belongs to: the value of its reserved pair
    /// `waxseal:domain`, which only a [`Domain`](crate::domain::Domain) adds.
    #[must_use]
    pub fn domain(&self) -> Option<&str> {
        self.get(DOMAIN)
    }
}

/// The contexts of one data domain.
#[derive(Debug)]
pub(crate) struct DomainContexts {
    domain: Box<str>,
    must_have: Box<[Box<str>]>,
    /// `None` allows any.
    may_have: Option<Box<[Box<str>]>>,
}

impl DomainContexts {
    pub(crate) fn new<'n>(
        domain: &str,
        must_have: impl IntoIterator<Item = &'n str>,
        may_have: Option<impl IntoIterator<Item = &'n str>>,
    ) -> Self {
        Self {
            domain: domain.into(),
            must_have: must_have.into_iter().map(Into::into).collect(),
            may_have: may_have.map(|names| names.into_iter().map(Into::into).collect()),
        }
    }

    pub(crate) fn name(&self) -> &str {
        &self.domain
    }

    /// Makes a context of the domain from the caller's pairs.
    pub(crate) fn context<N, V>(
        &self,
        pairs: impl IntoIterator<Item = (N, V)>,
    ) -> Result<EncryptionContext, Error>
    where
        N: AsRef<str>,
        V: AsRef<str>,
    {
        let of_caller = EncryptionContext::new(pairs)?;
        let pairs = of_caller.iter().chain([(DOMAIN, self.name())]);
        let context = EncryptionContext::with_reserved_names(pairs)?;
        self.check(&context).map(|()| context)
    }

    /// Refuses a context of another domain or of none, and one with names that are not allowed.
    pub(crate) fn check(&self, context: &EncryptionContext) -> Result<(), Error> {
        match context.domain() {
            Some(domain) if domain == self.name() => {}
            Some(other) => return Err(self.refused(format!("it belongs to domain {other:?}"))),
            None => return Err(self.refused("it belongs to no domain: Domain::context makes one")),
        }
        let mut reserved = context.reserved_names();
        if let Some(name) = reserved.find(|name| *name != DOMAIN) {
            return Err(self.refused(format!("name {name:?} is reserved")));
        }
        if let Some(missing) = self.must_have.iter().find(|name| context.get(name).is_none()) {
            let names = context.iter().map(|(name, _)| name);
            let instead = names.filter(|name| !self.must_have.iter().any(|must| **must == **name));
            let hint = nearest(missing, instead);
            let hint = hint.map(|name| format!("; it has {name:?}")).unwrap_or_default();
            return Err(self.refused(format!("it has no pair {missing:?}{hint}")));
        }
        let Some(may_have) = &self.may_have else { return Ok(()) };
        let mut known = self.must_have.iter().chain(may_have).map(|name| &**name);
        let names = context.iter().map(|(name, _)| name).filter(|name| *name != DOMAIN);
        for name in names {
            if !known.clone().any(|known| known == name) {
                let hint = nearest(name, known.by_ref());
                let hint = hint.map(|name| format!("; did you mean {name:?}?"));
                let detail = format!("it may not have {name:?}{}", hint.unwrap_or_default());
                return Err(self.refused(detail));
            }
        }
        Ok(())
    }

    fn refused(&self, why: impl std::fmt::Display) -> Error {
        let detail = format!("not one of domain {:?}: {why}", self.name());
        Error::new(ErrorKind::InvalidContext, detail)
    }
}

/// Refuses a context of a data domain, and any other with reserved names.
pub(super) fn check_of_no_domain(context: &EncryptionContext) -> Result<(), Error> {
    let Some(name) = context.reserved_names().next() else { return Ok(()) };
    let detail = match context.domain() {
        Some(domain) => format!("it belongs to domain {domain:?}, but this envelope to none"),
        None => format!("name {name:?} is reserved (it starts with \"waxseal\")"),
    };
    Err(Error::new(ErrorKind::InvalidContext, detail))
}
