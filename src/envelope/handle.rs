//! What both handles know apart from their DEK.
#![forbid(unsafe_code)]

use std::sync::Arc;

use crate::caller::Caller;
use crate::error::Error;
use crate::policy::Permission;

/// The special properties of a handle. Most handles have none, and the check costs one comparison.
#[derive(Clone)]
pub(super) struct HandleTerms(Option<Arc<Special>>);

struct Special {
    /// It was issued past `max_age`, during an outage.
    is_stale: bool,
    /// The policy's decision that it rests on.
    permission: Option<Permission>,
    /// The caller on whose behalf it is used, if uses are counted by caller.
    caller: Option<Caller>,
}

impl HandleTerms {
    #[inline]
    pub(super) fn new(is_stale: bool) -> Self {
        if is_stale { Self::stale() } else { Self(None) }
    }

    #[cold]
    #[inline(never)]
    fn stale() -> Self {
        Self(Some(Arc::new(Special { is_stale: true, permission: None, caller: None })))
    }

    /// Does the same for a named caller, based on a decision of the policy.
    pub(super) fn resting_on(
        self,
        permission: Option<Permission>,
        caller: Option<&Caller>,
    ) -> Self {
        if permission.is_none() && caller.is_none() {
            return self;
        }
        let is_stale = self.0.is_some_and(|special| special.is_stale);
        let caller = caller.map(Caller::without_request_id);
        Self(Some(Arc::new(Special { is_stale, permission, caller })))
    }

    /// Returns the caller whose messages are counted.
    #[inline]
    pub(super) fn caller(&self) -> Option<&Caller> {
        self.0.as_ref()?.caller.as_ref()
    }

    /// Returns whether it was issued stale, or an error if the policy no longer allows its use.
    #[inline]
    pub(super) fn is_stale(&self) -> Result<bool, Error> {
        self.0.as_ref().map_or(Ok(false), |special| special.is_stale())
    }
}

impl Special {
    #[cold]
    #[inline(never)]
    fn is_stale(&self) -> Result<bool, Error> {
        if let Some(permission) = &self.permission {
            permission.check()?;
        }
        Ok(self.is_stale)
    }
}
