//! How a key wraps.
#![forbid(unsafe_code)]

/// Selects how a key wraps.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize, serde::Deserialize),
    serde(rename_all = "kebab-case")
)]
#[non_exhaustive]
pub enum Algorithm {
    /// `encrypt` and `decrypt` with AES-256-GCM, by a key of type `oct-HSM`. The digest of the
    /// encryption context is the additional authenticated data, so the HSM itself refuses another
    /// context. The default in a Managed HSM.
    #[cfg_attr(feature = "serde", serde(rename = "a256gcm"))]
    A256Gcm,
    /// `wrapKey` and `unwrapKey` with RSA-OAEP-256. **Wrapping is unauthenticated**: anyone with
    /// the public key can make messages that a reader accepts, and no permission prevents that. The
    /// page [`azure`](crate::guide::azure) explains what is lost. An envelope accepts such a KEK
    /// only with
    /// [`allow_unauthenticated_wrapping`](waxseal::EnvelopeBuilder::allow_unauthenticated_wrapping).
    #[cfg_attr(feature = "serde", serde(rename = "rsa-oaep-256"))]
    RsaOaep256,
}

impl Algorithm {
    pub(crate) const ALL: [Self; 2] = [Self::A256Gcm, Self::RsaOaep256];

    /// Its name in configuration.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::A256Gcm => "a256gcm",
            Self::RsaOaep256 => "rsa-oaep-256",
        }
    }

    pub(crate) fn fits(self, kind: &str) -> bool {
        match self {
            Self::A256Gcm => matches!(kind, "oct-HSM" | "oct"),
            Self::RsaOaep256 => matches!(kind, "RSA-HSM" | "RSA"),
        }
    }

    pub(crate) fn operations(self) -> [&'static str; 2] {
        match self {
            Self::A256Gcm => ["encrypt", "decrypt"],
            Self::RsaOaep256 => ["wrapKey", "unwrapKey"],
        }
    }
}
