//! Checkpoints: authenticated records of the chain's state.
//!
//! Anyone who can write the file can rebuild a hash chain. Nobody can rebuild a checkpoint without
//! its key, and nobody can take back one that has left the machine.
#![forbid(unsafe_code)]

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use super::chain::{Chain, ChainHash, Line, TrailId};
use super::key::{AuditKey, Use};
use super::record::{CheckpointFields, Record, UNAUTHENTICATED};
use super::signature::{Ed25519Key, Ed25519Public};
use crate::error::{Error, ErrorKind};
use crate::hex;

/// The activity of a checkpoint record.
pub(super) const CHECKPOINT: &str = "checkpoint";

const DOMAIN: &[u8] = b"waxseal.audit.v1 checkpoint\0";
const ED25519: &str = "Ed25519";
const HMAC: &str = "HMAC-SHA-256";

/// The key that authenticates checkpoints. It shows nothing in Debug.
#[derive(Debug)]
pub struct CheckpointKey(Kind<Ed25519Key>);

/// The key that checks checkpoints.
#[derive(Debug)]
pub struct CheckpointVerifier(Kind<Ed25519Public>);

#[derive(Debug)]
enum Kind<K> {
    Ed25519(K),
    Mac(AuditKey),
}

impl<K> Kind<K> {
    fn is_of_this_process(&self) -> bool {
        match self {
            Self::Ed25519(_) => true,
            Self::Mac(key) => key.is_of_this_process(),
        }
    }
}

impl CheckpointKey {
    /// Signs with Ed25519. `seed` is the secret key of RFC 8032: 32 bytes from a random number
    /// generator, which the caller wipes. Anyone with only the [public key](Self::public_key) can
    /// verify but not sign, so use this if others verify the trail.
    #[must_use]
    pub fn ed25519(seed: &[u8; 32]) -> Self {
        Self(Kind::Ed25519(Ed25519Key::from_seed(seed)))
    }

    /// Authenticates with HMAC-SHA-256. Anyone who can verify can also make checkpoints.
    #[must_use]
    pub fn mac(key: AuditKey) -> Self {
        Self(Kind::Mac(key))
    }

    /// Returns the public key, for [`CheckpointVerifier::ed25519`]. `None` for a MAC.
    #[must_use]
    pub fn public_key(&self) -> Option<[u8; 32]> {
        match &self.0 {
            Kind::Ed25519(key) => Some(key.public()),
            Kind::Mac(_) => None,
        }
    }

    /// Returns the name of the key in checkpoints, which reveals nothing about the key: 16
    /// hexadecimal digits. Empty for a MAC key in the child of a fork, where the key is gone.
    #[must_use]
    pub fn id(&self) -> String {
        match &self.0 {
            Kind::Ed25519(key) => id_of_public(&key.public()),
            Kind::Mac(key) => id_of_mac(key),
        }
    }

    /// Whether the key is still usable. In the child of a fork a MAC key is not.
    pub(super) fn is_of_this_process(&self) -> bool {
        self.0.is_of_this_process()
    }

    /// Returns the key that accepts its checkpoints. `None` in the child of a fork, which has no
    /// MAC key.
    pub(super) fn verifier(&self) -> Option<CheckpointVerifier> {
        let kind = match &self.0 {
            Kind::Ed25519(key) => return CheckpointVerifier::ed25519(&key.public()).ok(),
            Kind::Mac(key) => Kind::Mac(key.try_clone()?),
        };
        Some(CheckpointVerifier(kind))
    }

    fn algorithm(&self) -> &'static str {
        match &self.0 {
            Kind::Ed25519(_) => ED25519,
            Kind::Mac(_) => HMAC,
        }
    }

    /// Returns `None` in the child of a fork, which has no MAC key.
    fn authenticate(&self, message: &[u8]) -> Option<String> {
        match &self.0 {
            Kind::Ed25519(key) => Some(hex::encode(&key.sign(message))),
            Kind::Mac(key) => Some(hex::encode(&key.mac(Use::Checkpoints, &[message])?)),
        }
    }
}

impl CheckpointVerifier {
    /// Verifies signatures of Ed25519.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidOption`] if these bytes are not a public key.
    pub fn ed25519(public_key: &[u8; 32]) -> Result<Self, Error> {
        Ed25519Public::from_bytes(public_key).map(|key| Self(Kind::Ed25519(key)))
    }

    /// Verifies MACs.
    #[must_use]
    pub fn mac(key: AuditKey) -> Self {
        Self(Kind::Mac(key))
    }

    /// Returns the name of the key: see [`CheckpointKey::id`].
    #[must_use]
    pub fn id(&self) -> String {
        match &self.0 {
            Kind::Ed25519(key) => id_of_public(key.as_bytes()),
            Kind::Mac(key) => id_of_mac(key),
        }
    }

    pub(super) fn is_of_this_process(&self) -> bool {
        self.0.is_of_this_process()
    }

    /// Whether this key authenticated the checkpoint. A MAC key accepts none in the child of a
    /// fork.
    #[must_use]
    pub fn accepts(&self, checkpoint: &Checkpoint) -> bool {
        let (message, fields) = (checkpoint.message(), &checkpoint.fields);
        match &self.0 {
            Kind::Ed25519(key) => {
                fields.algorithm == ED25519
                    && hex::decode(&fields.signature).is_some_and(|tag| key.accepts(&message, &tag))
            }
            Kind::Mac(key) => {
                fields.algorithm == HMAC
                    && hex::decode(&fields.signature)
                        .is_some_and(|tag| key.accepts(Use::Checkpoints, &[&message], &tag))
            }
        }
    }
}

fn id_of_public(key: &[u8; 32]) -> String {
    let digest: [u8; 32] = Sha256::digest(key).into();
    hex::encode(&digest).chars().take(16).collect()
}

fn id_of_mac(key: &AuditKey) -> String {
    let mac = key.mac(Use::CheckpointKeyId, &[]);
    mac.map_or_else(String::new, |mac| hex::encode(&mac).chars().take(16).collect())
}

/// A checkpoint, as a record of the trail or as its copy that left the machine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    pub(super) trail: TrailId,
    sequence: u64,
    time: String,
    pub(super) head: ChainHash,
    /// The previous checkpoint.
    pub(super) previous: Link,
    /// The hash of the record itself.
    pub(super) hash: ChainHash,
    pub(super) fields: CheckpointFields,
}

impl Checkpoint {
    /// Reads a line of the trail, as a sink received it. The signature is not checked.
    ///
    /// # Errors
    /// [`ErrorKind::Malformed`] if the line is not a checkpoint.
    pub fn read(line: &str) -> Result<Self, Error> {
        let line = Line::read(line.trim_end_matches('\n').as_bytes());
        line.filter(|line| line.is_canonical)
            .and_then(|line| Self::of(&line))
            .ok_or_else(|| Error::new(ErrorKind::Malformed, "not a checkpoint of an audit trail"))
    }

    /// Returns the sequence of its record. It authenticates all earlier records.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Returns its time, in the form of RFC 3339.
    #[must_use]
    pub fn time(&self) -> &str {
        &self.time
    }

    pub(super) fn of(line: &Line<'_>) -> Option<Self> {
        let (record, hash) = (&line.record, line.hash);
        let fields = record.checkpoint.clone().filter(|_| record.activity == CHECKPOINT)?;
        Some(Self {
            trail: TrailId::of(record)?,
            sequence: record.sequence,
            time: record.time.clone(),
            head: ChainHash::read(&fields.head)?,
            previous: Link {
                sequence: fields.previous_sequence,
                hash: ChainHash::read(&fields.previous)?,
            },
            hash,
            fields,
        })
    }

    pub(super) fn is_signed(&self) -> bool {
        self.fields.is_signed()
    }

    /// Returns the reference by which the next checkpoint names this one.
    pub(super) fn link(&self) -> Link {
        Link { sequence: self.sequence, hash: self.hash }
    }

    fn message(&self) -> Vec<u8> {
        let chain = Chain { trail: self.trail, next: self.sequence, head: self.head };
        message(&chain, &self.previous, &self.time)
    }
}

/// A reference to an authenticated checkpoint, as the next one contains it. Thanks to it, none can
/// be removed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link {
    pub(super) sequence: u64,
    pub(super) hash: ChainHash,
}

impl Link {
    /// Returns the reference in the first checkpoint of a trail. Record 0 is never a checkpoint.
    pub(super) fn first(trail: TrailId) -> Self {
        Self { sequence: 0, hash: trail.start() }
    }
}

/// Returns the signed bytes. Everything before the time has a fixed length.
fn message(chain: &Chain, previous: &Link, time: &str) -> Vec<u8> {
    [
        DOMAIN,
        chain.trail.as_bytes(),
        &chain.next.to_le_bytes(),
        chain.head.as_bytes(),
        &previous.sequence.to_le_bytes(),
        previous.hash.as_bytes(),
        time.as_bytes(),
    ]
    .concat()
}

/// Makes the record of a checkpoint at the end of `chain`. Without a key it is unauthenticated.
pub(super) fn checkpoint(
    key: Option<&CheckpointKey>,
    chain: &Chain,
    previous: &Link,
    time: String,
) -> Record {
    let authenticated = key.and_then(|key| {
        let signature = key.authenticate(&message(chain, previous, &time))?;
        Some((key.algorithm(), key.id(), signature))
    });
    let (algorithm, key_id, signature) =
        authenticated.unwrap_or((UNAUTHENTICATED, String::new(), String::new()));
    let fields = CheckpointFields {
        head: chain.head.to_string(),
        previous_sequence: previous.sequence,
        previous: previous.hash.to_string(),
        algorithm: Cow::Borrowed(algorithm),
        key_id,
        signature,
    };
    Record { time, checkpoint: Some(fields), ..Record::of(CHECKPOINT) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint_of(key: &CheckpointKey) -> Checkpoint {
        let chain = Chain::new(TrailId::read("0123456789abcdef").unwrap());
        let mut record = checkpoint(
            Some(key),
            &chain,
            &Link::first(chain.trail),
            "2026-03-01T00:00:00Z".to_owned(),
        );
        Checkpoint::read(&chain.seal(&mut record).unwrap().line).unwrap()
    }

    fn keys() -> [(CheckpointKey, CheckpointVerifier); 2] {
        let key = AuditKey::random().unwrap();
        let mac = CheckpointVerifier::mac(key.try_clone().unwrap());
        let signing = CheckpointKey::ed25519(&[9; 32]);
        let public = CheckpointVerifier::ed25519(&signing.public_key().unwrap()).unwrap();
        [(CheckpointKey::mac(key), mac), (signing, public)]
    }

    #[test]
    fn a_checkpoint_is_accepted_as_it_is_and_not_when_any_part_of_it_is_another() {
        for (key, verifier) in keys() {
            let made = checkpoint_of(&key);
            assert!(verifier.accepts(&made));
            assert_eq!((key.id(), &made.fields.key_id), (verifier.id(), &verifier.id()));
            let other = ChainHash::read(&"1".repeat(64)).unwrap();
            let fields = |edit: fn(&mut CheckpointFields)| {
                let mut fields = made.fields.clone();
                edit(&mut fields);
                fields
            };
            for changed in [
                Checkpoint { sequence: 1, ..made.clone() },
                Checkpoint { time: "2026-03-01T00:00:01Z".to_owned(), ..made.clone() },
                Checkpoint { head: other, ..made.clone() },
                Checkpoint { previous: Link { sequence: 1, ..made.previous }, ..made.clone() },
                Checkpoint { previous: Link { hash: other, ..made.previous }, ..made.clone() },
                Checkpoint { trail: TrailId::read("0123456789abcdee").unwrap(), ..made.clone() },
                Checkpoint { fields: fields(|f| f.signature.clear()), ..made.clone() },
                Checkpoint { fields: fields(|f| f.signature = "0".repeat(128)), ..made.clone() },
                Checkpoint {
                    fields: fields(|f| f.algorithm = UNAUTHENTICATED.into()),
                    ..made.clone()
                },
            ] {
                assert!(!verifier.accepts(&changed), "{changed:?}");
            }
        }
    }

    #[test]
    fn the_key_of_one_kind_or_of_another_trail_accepts_nothing() {
        let [(mac, of_mac), (signing, of_signing)] = keys();
        assert!(!of_mac.accepts(&checkpoint_of(&signing)));
        assert!(!of_signing.accepts(&checkpoint_of(&mac)));
        assert!(!of_signing.accepts(&checkpoint_of(&CheckpointKey::ed25519(&[8; 32]))));
        let unsigned = {
            let chain = Chain::new(TrailId::read("0123456789abcdef").unwrap());
            let mut record = checkpoint(None, &chain, &Link::first(chain.trail), String::new());
            Checkpoint::read(&chain.seal(&mut record).unwrap().line).unwrap()
        };
        assert!(!of_mac.accepts(&unsigned) && !of_signing.accepts(&unsigned));
    }
}
