//! How objects are encrypted: under which keys, on whose behalf, and with which AAD.
#![forbid(unsafe_code)]

use super::api::path::Path;
use waxseal::policy::Action;
use waxseal::{
    Aad, Caller, EncryptionContext, Envelope, Error, StreamDecryptor, StreamEncryptor, StreamHead,
    StreamOptions,
};

/// Returns envelope and context for the path of an object.
pub(super) type KeysOf = dyn Fn(&Path) -> Result<ObjectKeys, waxseal::Error> + Send + Sync;

/// The encryption of the object at a path: an envelope and an encryption context.
///
/// A clone is two pointers.
#[derive(Clone, Debug)]
pub struct ObjectKeys {
    pub(super) envelope: Envelope,
    pub(super) context: EncryptionContext,
}

impl ObjectKeys {
    /// Makes this envelope encrypt in this context.
    #[must_use]
    pub fn new(envelope: Envelope, context: EncryptionContext) -> Self {
        Self { envelope, context }
    }

    pub(super) async fn encryptor(
        &self,
        caller: Option<&Caller>,
        aad: Aad<'_>,
        options: StreamOptions,
    ) -> Result<StreamEncryptor, Error> {
        let Self { envelope, context } = self;
        match caller {
            Some(caller) => {
                envelope.acting_for(caller).stream_encryptor(context, aad, options).await
            }
            None => envelope.stream_encryptor(context, aad, options).await,
        }
    }

    pub(super) async fn decryptor(
        &self,
        caller: Option<&Caller>,
        aad: Aad<'_>,
        head: &StreamHead,
    ) -> Result<StreamDecryptor, Error> {
        let Self { envelope, context } = self;
        match caller {
            Some(caller) => envelope.acting_for(caller).stream_decryptor(context, aad, head).await,
            None => envelope.stream_decryptor(context, aad, head).await,
        }
    }

    pub(super) async fn rewrap(
        &self,
        caller: Option<&Caller>,
        head: &StreamHead,
    ) -> Result<StreamHead, Error> {
        let Self { envelope, context } = self;
        match caller {
            Some(caller) => envelope.acting_for(caller).rewrap_head(context, head).await,
            None => envelope.rewrap_head(context, head).await,
        }
    }

    /// Rewraps many heads of this context.
    pub(super) async fn rewrap_all(
        &self,
        caller: Option<&Caller>,
        heads: impl Iterator<Item = &StreamHead>,
    ) -> Vec<Result<Vec<u8>, Error>> {
        let Self { envelope, context } = self;
        let heads = heads.map(|head| (context, head.as_bytes()));
        match caller {
            Some(caller) => envelope.acting_for(caller).rewrap_all(heads).await,
            None => envelope.rewrap_all(heads).await,
        }
    }

    /// Asks the policy about an operation that the store performs.
    pub(super) async fn check(&self, caller: Option<&Caller>, action: Action) -> Result<(), Error> {
        let Self { envelope, context } = self;
        match caller {
            Some(caller) => envelope.acting_for(caller).check_policy(action, context).await,
            None => envelope.check_policy(action, context).await,
        }
    }
}

/// The AAD of objects. It determines which objects anyone who can write to the store can put in
/// place of another. docs/objects.md, "What ties an object to its place", compares the choices.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
#[non_exhaustive]
pub enum Binding {
    /// The whole path, as this store sees it. An object that was moved is refused. A copy or a
    /// rename encrypts the object again.
    #[default]
    Path,
    /// The last segment of the path. Use it if names are unique, as with a UUID: folders can be
    /// renamed, and the store copies between folders. Objects with the same name can be exchanged.
    FileName,
    /// Nothing. Any object of the same encryption context can be put in place of another.
    Nothing,
}

impl Binding {
    pub(super) fn aad(self, path: &Path) -> Aad<'_> {
        match self {
            Self::Path => Aad::from(path.as_ref()),
            Self::FileName => Aad::from(path.filename().unwrap_or_default()),
            Self::Nothing => Aad::empty(),
        }
    }
}
