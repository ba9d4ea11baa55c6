//! A KEK in a key file, or in memory for tests.
//!
//! **It does not replace a key service.** Anyone who can read the file has the KEK. No policy
//! limits its use, no use is logged, and revoking it means deleting a file that may have been
//! copied. Use it for development, for tests, and on machines whose disk is the trust boundary
//! anyway.
#![forbid(unsafe_code)]

mod config;
mod format;
mod key_file;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use super::{
    BoxFuture, ContextBinding, Dek, Health, KekError, KekId, KekProvider, UnwrappedDek, WrappedDek,
};
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use sha2::{Digest, Sha256};

use crate::memory::Secret32;
use crate::suite::{AeadKey, Backend, InOut, Nonce, Nonces, Suite, derive};
pub use config::Config;
use format::{KeyFile, LocalWrapped};
use key_file::{FileOnDisk, Stamp};

/// Wraps DEKs by a key that this process holds.
///
/// Its id is `local:NAME`. It has versions. [`rotate`](Self::rotate) adds one, which wraps from
/// then on. Older ones still unwrap until they are [retired](Self::retire). A clone is another
/// handle to the same KEK.
///
/// ```
/// use waxseal::kek::local::LocalKek;
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("orders.kek");
/// let kek = LocalKek::open_or_create(&path, "orders")?;
/// assert_eq!(kek.rotate()?, 2);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct LocalKek(Arc<Inner>);

struct Inner {
    id: KekId,
    file: Option<FileOnDisk>,
    ring: RwLock<KeyRing>,
}

/// The versions, ready for use.
struct KeyRing {
    /// Retired versions have no key.
    keys: BTreeMap<u32, Option<Arc<VersionKey>>>,
    current: u32,
    /// The state of the key file that they were read from. Looking into the file does not change
    /// it, so changes by another process are still noticed.
    of_file: Option<Stamp>,
}

struct VersionKey {
    secret: Secret32,
    wrap_key: Arc<AeadKey>,
}

impl KeyRing {
    fn from_file(id: &KekId, file: KeyFile, of_file: Option<Stamp>) -> Result<Self, Error> {
        let mut keys = BTreeMap::new();
        for (version, secret) in file.versions {
            let key = match secret {
                Some(secret) => {
                    let wrap_key = derive_wrap_key(&secret, id.as_str())?;
                    let wrap_key =
                        AeadKey::expand(Backend::default(), Suite::Xaes256Gcm, &wrap_key)?;
                    Some(Arc::new(VersionKey { secret, wrap_key }))
                }
                None => None,
            };
            keys.insert(version, key);
        }
        match keys.last_key_value() {
            Some((current, Some(_))) => Ok(Self { current: *current, keys, of_file }),
            _ => Err(Error::new(ErrorKind::Io, "the key file has no current version")),
        }
    }

    fn to_file(&self, name: &str) -> Result<KeyFile, Error> {
        let forked = || {
            Error::new(
                ErrorKind::Expired,
                "a KEK in memory cannot be changed in the child of a fork",
            )
        };
        let mut versions = Vec::new();
        for (version, key) in &self.keys {
            let secret = key.as_ref().map(|key| key.secret.try_clone().ok_or_else(forked));
            versions.push((*version, secret.transpose()?));
        }
        Ok(KeyFile { name: name.into(), versions })
    }
}

impl LocalKek {
    /// Opens a key file.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if it is missing, is not a regular file, is accessible to anyone but its
    /// owner (mode beyond 0600), is not a key file, or was changed.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let disk = FileOnDisk::new(path.as_ref())?;
        let (file, stamp) = disk.read()?;
        Self::from_file(file, Some((disk, stamp)))
    }

    /// Opens a key file, or creates one with a first version if it is missing. Two processes that
    /// do so at the same time get the same KEK.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); [`ErrorKind::InvalidOption`] for a name that is not 1 to 506
    /// bytes or that differs from the name in an existing file.
    pub fn open_or_create(path: impl AsRef<Path>, name: &str) -> Result<Self, Error> {
        check_name(name)?;
        let disk = FileOnDisk::new(path.as_ref())?;
        let (file, stamp) = disk.read_or_create(|| first_version(name))?;
        check_same_name(&file.name, name)?;
        Self::from_file(file, Some((disk, stamp)))
    }

    /// Makes a KEK that exists only in this process, for tests.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for a name that is not 1 to 506 bytes.
    pub fn in_memory(name: &str) -> Result<Self, Error> {
        check_name(name)?;
        Self::from_file(first_version(name)?, None)
    }

    /// Makes a KEK from secrets that you keep elsewhere, 32 uniformly random bytes for each
    /// version. The highest version is the current one.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for a name that is not 1 to 506 bytes, for no version, and for
    /// a duplicate version.
    pub fn from_secrets<'a>(
        name: &str,
        secrets: impl IntoIterator<Item = (u32, &'a [u8; 32])>,
    ) -> Result<Self, Error> {
        check_name(name)?;
        let mut versions = Vec::new();
        for (version, secret) in secrets {
            versions.push((version, Secret32::from_slice(secret)));
        }
        versions.sort_by_key(|(version, _)| *version);
        if versions.is_empty() || versions.array_windows().any(|[(a, _), (b, _)]| a == b) {
            return Err(Error::new(
                ErrorKind::InvalidOption,
                "secrets: at least one, and each version once",
            ));
        }
        Self::from_file(KeyFile { name: name.into(), versions }, None)
    }

    fn from_file(file: KeyFile, disk: Option<(FileOnDisk, Stamp)>) -> Result<Self, Error> {
        let id = KekId::new(format!("local:{}", file.name))?;
        let (disk, stamp) = disk.unzip();
        let ring = RwLock::new(KeyRing::from_file(&id, file, stamp)?);
        Ok(Self(Arc::new(Inner { id, file: disk, ring })))
    }

    /// Returns the version that wraps.
    #[must_use]
    pub fn current_version(&self) -> u32 {
        self.read(|ring| ring.current)
    }

    /// Returns all versions, ascending, and whether each still unwraps.
    #[must_use]
    pub fn versions(&self) -> Vec<(u32, bool)> {
        self.read(|ring| ring.keys.iter().map(|(version, key)| (*version, key.is_some())).collect())
    }

    /// Makes a new version, which wraps from now on, and returns its number. Older versions still
    /// unwrap.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] if the key file cannot be locked, read or replaced; the KEK is then
    /// unchanged.
    pub fn rotate(&self) -> Result<u32, Error> {
        self.change(|file| {
            let last = file.versions.last().map_or(0, |(version, _)| *version);
            let next = last
                .checked_add(1)
                .ok_or_else(|| Error::new(ErrorKind::InvalidOption, "no version left"))?;
            file.versions.push((next, Some(Secret32::random()?)));
            Ok(next)
        })
    }

    /// Destroys the secret of an old version. **DEKs that it wrapped can never be unwrapped
    /// again.** Rewrap first.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] for the current version and for one that does not exist;
    /// [`ErrorKind::Io`] as for [`rotate`](Self::rotate). Retiring a retired version changes
    /// nothing.
    pub fn retire(&self, version: u32) -> Result<(), Error> {
        self.change(|file| {
            if file.versions.last().is_some_and(|(current, _)| *current == version) {
                return Err(Error::new(
                    ErrorKind::InvalidOption,
                    "version: the current one cannot be retired",
                ));
            }
            let entry = file.versions.iter_mut().find(|(existing, _)| *existing == version);
            let (_, secret) = entry.ok_or_else(|| {
                Error::new(ErrorKind::InvalidOption, format!("version: there is no {version}"))
            })?;
            *secret = None;
            Ok(())
        })
    }

    /// Reads the key file again. Wrapping and unwrapping do that automatically when another process
    /// has replaced the file. This method also reports whether it could be read.
    ///
    /// # Errors
    /// Those of [`open`](Self::open); the KEK is then unchanged.
    pub fn reload(&self) -> Result<(), Error> {
        match &self.0.file {
            Some(disk) => self.install(disk.read()?),
            None => Ok(()),
        }
    }

    fn change<T>(&self, edit: impl FnOnce(&mut KeyFile) -> Result<T, Error>) -> Result<T, Error> {
        match &self.0.file {
            Some(disk) => {
                let (found, result) = disk.update(edit)?;
                self.install(found)?;
                Ok(result)
            }
            None => {
                let mut ring = self.0.ring.write().unwrap_or_else(PoisonError::into_inner);
                let mut file = ring.to_file(self.name())?;
                let result = edit(&mut file)?;
                *ring = KeyRing::from_file(&self.0.id, file, None)?;
                Ok(result)
            }
        }
    }

    fn install(&self, (file, stamp): (KeyFile, Stamp)) -> Result<(), Error> {
        if &*file.name != self.name() {
            return Err(Error::new(ErrorKind::Io, "the key file now belongs to another KEK"));
        }
        let ring = KeyRing::from_file(&self.0.id, file, Some(stamp))?;
        *self.0.ring.write().unwrap_or_else(PoisonError::into_inner) = ring;
        Ok(())
    }

    fn name(&self) -> &str {
        self.0.id.as_str().strip_prefix("local:").unwrap_or_default()
    }

    fn read<T>(&self, look: impl FnOnce(&KeyRing) -> T) -> T {
        look(&self.0.ring.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the key file if another process replaced it. While it cannot be read, the KEK
    /// continues with the versions in memory, and `health` reports that.
    fn follow_file(&self) {
        let seen = self.read(|ring| ring.of_file);
        if self.0.file.as_ref().is_some_and(|disk| disk.differs_from(seen)) {
            let _ = self.reload();
        }
    }

    fn key(&self, version: u32) -> Result<Arc<VersionKey>, KekError> {
        match self.read(|ring| ring.keys.get(&version).cloned()) {
            Some(Some(key)) => Ok(key),
            Some(None) => {
                Err(KekError::denied(format!("version {version} of {} is retired", self.0.id)))
            }
            None => Err(KekError::invalid(format!("{} has no version {version}", self.0.id))),
        }
    }

    fn wrap_now(&self, context: &EncryptionContext, dek: &Dek) -> Result<WrappedDek, KekError> {
        let failed = |error: Error| KekError::unavailable("wrapping failed").with_source(error);
        self.follow_file();
        let version = self.current_version();
        let key = self.key(version)?;
        let nonce = Nonce::random(Nonces::System, Suite::Xaes256Gcm).map_err(failed)?;
        let mut encrypted =
            Secret32::from_slice(dek.expose()).ok_or_else(|| KekError::invalid("not a DEK"))?;
        let tag = key
            .wrap_key
            .seal(nonce.as_bytes(), context.as_bytes(), InOut::in_place(encrypted.expose_mut()))
            .map_err(failed)?;
        let nonce = nonce.as_bytes().try_into().map_err(|_| KekError::invalid("not a nonce"))?;
        let wrapped =
            LocalWrapped { version, nonce, dek: encrypted.expose(), tag: &tag }.to_bytes();
        WrappedDek::new(self.0.id.clone(), wrapped).map_err(failed)
    }

    fn unwrap_now(
        &self,
        context: &EncryptionContext,
        wrapped: &WrappedDek,
    ) -> Result<UnwrappedDek, KekError> {
        if !self.recognises(wrapped.kek_id()) {
            return Err(KekError::invalid("wrapped by another KEK").without_asking());
        }
        let parts = LocalWrapped::read(wrapped.wrapped())
            .ok_or_else(|| KekError::invalid("not a local wrapped key").without_asking())?;
        self.follow_file();
        let key = self.key(parts.version)?;
        let mut dek = UnwrappedDek::new(parts.dek.to_vec());
        key.wrap_key
            .open(parts.nonce, context.as_bytes(), InOut::in_place(dek.expose_mut()), parts.tag)
            .map_err(|_| KekError::invalid("the wrapped key or the context is wrong"))?;
        Ok(dek)
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > KeyFile::MAX_NAME {
        let detail = format!("name: {} bytes, 1 to {} are allowed", name.len(), KeyFile::MAX_NAME);
        return Err(Error::new(ErrorKind::InvalidOption, detail));
    }
    Ok(())
}

fn check_same_name(found: &str, name: &str) -> Result<(), Error> {
    if found == name {
        return Ok(());
    }
    let detail = format!("name: the key file is for {found:?}, not for {name:?}");
    Err(Error::new(ErrorKind::InvalidOption, detail))
}

fn first_version(name: &str) -> Result<KeyFile, Error> {
    Ok(KeyFile { name: name.into(), versions: vec![(1, Some(Secret32::random()?))] })
}

impl KekProvider for LocalKek {
    fn context_binding(&self) -> ContextBinding {
        ContextBinding::Enforced
    }

    fn id(&self) -> &KekId {
        &self.0.id
    }

    fn is_current(&self, wrapped: &WrappedDek) -> Option<bool> {
        Some(
            LocalWrapped::read(wrapped.wrapped())
                .is_some_and(|parts| parts.version == self.current_version()),
        )
    }

    fn key_version(&self, wrapped: &WrappedDek) -> Option<Box<str>> {
        LocalWrapped::read(wrapped.wrapped()).map(|parts| parts.version.to_string().into())
    }

    fn wrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        dek: &'a Dek,
    ) -> BoxFuture<'a, Result<WrappedDek, KekError>> {
        Box::pin(async move { self.wrap_now(context, dek) })
    }

    fn unwrap<'a>(
        &'a self,
        context: &'a EncryptionContext,
        wrapped: &'a WrappedDek,
    ) -> BoxFuture<'a, Result<UnwrappedDek, KekError>> {
        Box::pin(async move { self.unwrap_now(context, wrapped) })
    }

    fn health(&self) -> BoxFuture<'_, Result<Health, KekError>> {
        Box::pin(async move {
            Ok(match self.reload() {
                Ok(()) => Health::Ready,
                Err(error) => Health::Degraded(format!("in use from memory, but {error}")),
            })
        })
    }
}

impl fmt::Debug for LocalKek {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalKek")
            .field("id", &self.0.id)
            .field("versions", &self.versions())
            .finish()
    }
}

/// Use 10 of the derivation (docs/format.md, "Derivation").
const USE_WRAP_KEY: u8 = 0x10;

/// Derives the key under which the KEK wraps, bound to the KEK's id instead of a context.
fn derive_wrap_key(kek_secret: &Secret32, kek_id: &str) -> Result<Secret32, Error> {
    let mut key = Secret32::zeroed();
    let digest: [u8; 32] = Sha256::digest(kek_id).into();
    derive(kek_secret, USE_WRAP_KEY, Suite::Xaes256Gcm.id(), &digest, key.expose_mut())?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::suite::derive_dek_id;

    #[test]
    fn the_wrap_key_is_bound_to_the_kek_s_id_and_is_no_other_key_of_the_secret() {
        let dek = Dek::from_slice(&[7; 32]).unwrap();
        let secret = Secret32::from_slice(dek.expose()).unwrap();
        let of = |id: &str| *derive_wrap_key(&secret, id).unwrap().expose();
        let id = *derive_dek_id(&dek, &EncryptionContext::empty()).unwrap().as_bytes();
        assert!(of("local:a") != of("local:b") && of("local:a") != id);
        assert_eq!(of("local:a"), of("local:a"));
    }
}
