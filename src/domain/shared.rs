//! Key stores and policies that several domains share by naming one URI.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use super::config::Address;
use crate::error::Error;
use crate::memory::fork::PerProcess;
use crate::sync::{Arc, Mutex, PoisonError, Weak};

/// The instances in use, by URI. One lives as long as a domain holds it.
pub(super) struct Shared<T: ?Sized>(PerProcess<Mutex<HashMap<Address, Weak<T>>>>);

impl<T: ?Sized> Default for Shared<T> {
    fn default() -> Self {
        Self(PerProcess::new())
    }
}

impl<T: ?Sized> Shared<T> {
    /// Returns the instance for a URI, or makes it.
    pub(super) async fn get_or_make(
        &self,
        uri: &Address,
        make: impl Future<Output = Result<Arc<T>, Error>>,
    ) -> Result<Arc<T>, Error> {
        if let Some(there) = self.entry(uri, None) {
            return Ok(there);
        }
        let made = make.await?;
        // Another domain may have been quicker. Then its instance is used.
        Ok(self.entry(uri, Some(&made)).unwrap_or(made))
    }

    fn entry(&self, uri: &Address, made: Option<&Arc<T>>) -> Option<Arc<T>> {
        let all = self.0.get_or_init(Mutex::default);
        let mut all = all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, one| one.strong_count() > 0);
        if let Some(made) = made
            && !all.contains_key(uri)
        {
            all.insert(uri.clone(), Arc::downgrade(made));
        }
        all.get(uri).and_then(Weak::upgrade)
    }
}
