//! Puts an [`Envelope`] together.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::Envelope;
use crate::dek::{DekOrigin, DekSource, Keks, Limits, SourceOptions};
use crate::error::{Error, ErrorKind};
use crate::format::{KekId, WrappedKeys};
use crate::kek::KekProvider;
use crate::memory::clock::Clock;
#[cfg(any(test, feature = "conformance"))]
use crate::memory::clock::ManualClock;
use crate::observer::Observer;
use crate::runtime::Runtime;
use crate::suite::{Backend, Nonces, Suite};

/// Configures an [`Envelope`]. Only [`write_to`](Self::write_to) or [`read_from`](Self::read_from) is needed.
#[derive(Default)]
#[must_use = "nothing happens until `build`"]
pub struct Builder {
    write_to: Vec<Arc<dyn KekProvider>>,
    read_from: Vec<Arc<dyn KekProvider>>,
    suite: Suite,
    backend: Backend,
    nonces: Nonces,
    dek_origin: DekOrigin,
    limits: Limits,
    clock: Clock,
    runtime: Option<Arc<dyn Runtime>>,
    observer: Option<Arc<dyn Observer>>,
}

impl Builder {
    /// A KEK that wraps every new DEK, and unwraps. Call it several times for several KEKs: each can then open every
    /// message alone, so **revoking one of them revokes nothing while another works**, and while one is down nothing new can be sealed.
    /// The order is the order of preference for reading.
    pub fn write_to(mut self, provider: impl KekProvider + 'static) -> Self {
        self.write_to.push(Arc::new(provider));
        self
    }

    /// A KEK that only unwraps: an old one, or another service's. Asked after those of [`write_to`](Self::write_to).
    pub fn read_from(mut self, provider: impl KekProvider + 'static) -> Self {
        self.read_from.push(Arc::new(provider));
        self
    }

    /// The suite of new messages; those of every suite are opened. By default [`Suite::Aes256Gcm`].
    pub fn suite(mut self, suite: Suite) -> Self {
        self.suite = suite;
        self
    }

    /// Whose cryptography runs. By default the fastest of this build.
    pub fn backend(mut self, backend: Backend) -> Self {
        self.backend = backend;
        self
    }

    /// Where nonces come from. By default [`Nonces::Thread`].
    pub fn nonces(mut self, nonces: Nonces) -> Self {
        self.nonces = nonces;
        self
    }

    /// Who makes DEKs. By default [`DekOrigin::Local`].
    pub fn dek_origin(mut self, origin: DekOrigin) -> Self {
        self.dek_origin = origin;
        self
    }

    /// How much and how long a DEK is used, and how many are kept.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Where DEKs are renewed ahead of time. With the feature `tokio`, by default the tokio runtime in which
    /// [`build`](Self::build) is called, if there is one. Without a runtime, the caller that finds a DEK due renews it.
    pub fn runtime(mut self, runtime: impl Runtime + 'static) -> Self {
        self.runtime = Some(Arc::new(runtime));
        self
    }

    /// Who gets every event of every DEK's life. By default nobody.
    pub fn observer(mut self, observer: impl Observer + 'static) -> Self {
        self.observer = Some(Arc::new(observer));
        self
    }

    /// A clock that a test moves. Keys are still wiped by the process's wiping thread, which looks at it once a second.
    #[cfg(any(test, feature = "conformance"))]
    pub fn clock(mut self, clock: ManualClock) -> Self {
        self.clock = Clock::Manual(clock);
        self
    }

    /// Checks everything that can be checked without asking a key service.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`], naming the option: no provider at all, more than 16 for writing, two with one KEK id, or a limit
    /// out of its range.
    pub fn build(self) -> Result<Envelope, Error> {
        let limits = self.limits.check(self.suite)?;
        if self.write_to.is_empty() && self.read_from.is_empty() {
            return Err(invalid("write_to: no KEK, neither for writing nor for reading".to_owned()));
        }
        if self.write_to.len() > WrappedKeys::MAX_ENTRIES {
            let detail =
                format!("write_to: {} KEKs, at most {} are allowed", self.write_to.len(), WrappedKeys::MAX_ENTRIES);
            return Err(invalid(detail));
        }
        refuse_twice("write_to", &self.write_to)?;
        let reading: Vec<_> = self.write_to.iter().chain(&self.read_from).cloned().collect();
        refuse_twice("read_from", &reading)?;
        let options = SourceOptions {
            suite: self.suite,
            backend: self.backend,
            nonces: self.nonces,
            origin: self.dek_origin,
            limits,
            clock: self.clock,
            runtime: self.runtime.or_else(ambient_runtime),
            observer: self.observer,
        };
        Ok(Envelope::new(DekSource::new(Keks::new(self.write_to, reading), options)))
    }
}

#[cfg(feature = "tokio")]
fn ambient_runtime() -> Option<Arc<dyn Runtime>> {
    let handle = tokio::runtime::Handle::try_current().ok()?;
    Some(Arc::new(crate::runtime::Tokio(handle)))
}

#[cfg(not(feature = "tokio"))]
fn ambient_runtime() -> Option<Arc<dyn Runtime>> {
    None
}

fn refuse_twice(option: &str, providers: &[Arc<dyn KekProvider>]) -> Result<(), Error> {
    let mut ids: Vec<&KekId> = providers.iter().map(|provider| provider.id()).collect();
    ids.sort();
    match ids.array_windows().find(|[a, b]| a == b) {
        Some([twice, _]) => Err(invalid(format!("{option}: two providers for {twice}"))),
        None => Ok(()),
    }
}

fn invalid(detail: String) -> Error {
    Error::new(ErrorKind::InvalidOption, detail)
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids = |providers: &[Arc<dyn KekProvider>]| providers.iter().map(|p| p.id().clone()).collect::<Vec<_>>();
        f.debug_struct("Builder")
            .field("write_to", &ids(&self.write_to))
            .field("read_from", &ids(&self.read_from))
            .field("suite", &self.suite)
            .field("backend", &self.backend)
            .field("nonces", &self.nonces)
            .field("dek_origin", &self.dek_origin)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}
