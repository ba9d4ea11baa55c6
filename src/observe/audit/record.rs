//! One record of the trail, and its names in JSON.
//!
//! Names are those of the Open Cybersecurity Schema Framework (OCSF) and of OpenTelemetry if they
//! have one, and begin with `waxseal` otherwise. docs/audit.md lists them.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The version of lines and chain.
pub(super) const FORMAT_VERSION: u32 = 1;
/// The prefix of the activities of records about a sink.
pub(super) const ABOUT_A_SINK: &str = "sink_";

/// One record of an audit trail.
///
/// Which fields are present depends on what happened. In JSON a field without a value is left out.
/// No field holds a key, a plaintext or an AAD.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Record {
    /// Counts the records of a trail from 0, without gaps, across all its files.
    #[serde(rename = "metadata.sequence")]
    pub sequence: u64,
    /// Identifies the record: the id of its trail and its sequence.
    #[serde(rename = "metadata.uid")]
    pub uid: String,
    /// When it happened, as RFC 3339 in UTC.
    #[serde(rename = "time_dt")]
    pub time: String,
    /// What happened, such as `dek_made`. docs/audit.md lists all.
    #[serde(rename = "activity_name")]
    pub activity: Cow<'static, str>,
    /// The outcome: `Success` or `Failure`.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub status: Option<Cow<'static, str>>,
    /// The kind of a failure: see [`ErrorKind::as_str`](crate::ErrorKind::as_str).
    #[serde(rename = "error.type", skip_serializing_if = "Option::is_none", default)]
    pub error_type: Option<Cow<'static, str>>,
    /// The service that keeps the trail.
    #[serde(rename = "service.name", skip_serializing_if = "Option::is_none", default)]
    pub service: Option<String>,
    /// The operation: `wrap`, `unwrap`, `generate` or `rewrap` of a key service.
    #[serde(rename = "api.operation", skip_serializing_if = "Option::is_none", default)]
    pub operation: Option<Cow<'static, str>>,
    /// How long a call took, in microseconds.
    #[serde(rename = "waxseal.duration_us", skip_serializing_if = "Option::is_none", default)]
    pub duration_us: Option<u64>,
    /// The caller's service.
    #[serde(rename = "actor.app_name", skip_serializing_if = "Option::is_none", default)]
    pub caller_service: Option<String>,
    /// The caller's roles.
    #[serde(rename = "waxseal.caller.roles", skip_serializing_if = "Vec::is_empty", default)]
    pub caller_roles: Vec<String>,
    /// The caller's groups.
    #[serde(rename = "actor.user.groups", skip_serializing_if = "Vec::is_empty", default)]
    pub caller_groups: Vec<String>,
    /// The caller's address.
    #[serde(rename = "src_endpoint.ip", skip_serializing_if = "Option::is_none", default)]
    pub caller_address: Option<String>,
    /// The caller's own id of the request.
    #[serde(
        rename = "waxseal.caller.request_id",
        skip_serializing_if = "Option::is_none",
        default
    )]
    pub caller_request_id: Option<String>,
    /// The revision of the policy that decided.
    #[serde(rename = "policy.version", skip_serializing_if = "Option::is_none", default)]
    pub policy_revision: Option<String>,
    /// Why the policy denied.
    #[serde(rename = "waxseal.policy.reasons", skip_serializing_if = "Vec::is_empty", default)]
    pub policy_reasons: Vec<String>,
    /// The data domain.
    #[serde(rename = "waxseal.domain", skip_serializing_if = "Option::is_none", default)]
    pub domain: Option<String>,
    /// The DEK.
    #[serde(rename = "waxseal.dek.id", skip_serializing_if = "Option::is_none", default)]
    pub dek_id: Option<String>,
    /// The branch key, in place of a DEK.
    #[serde(rename = "waxseal.branch_key.id", skip_serializing_if = "Option::is_none", default)]
    pub branch_key_id: Option<String>,
    /// The KEK.
    #[serde(rename = "waxseal.kek.id", skip_serializing_if = "Option::is_none", default)]
    pub kek_id: Option<String>,
    /// The KEKs of a record about several.
    #[serde(rename = "waxseal.kek.ids", skip_serializing_if = "Vec::is_empty", default)]
    pub kek_ids: Vec<String>,
    /// The version of the KEK, as its key service counts it.
    #[serde(rename = "waxseal.kek.version", skip_serializing_if = "Option::is_none", default)]
    pub kek_version: Option<String>,
    /// The key service's own id of the request, which is also in its log.
    #[serde(rename = "api.request.uid", skip_serializing_if = "Option::is_none", default)]
    pub request_id: Option<String>,
    /// The key, Region or store behind a KEK, if it has a separate name.
    #[serde(rename = "waxseal.kek.target", skip_serializing_if = "Option::is_none", default)]
    pub kek_target: Option<String>,
    /// The encryption context by name. [`Disclosure`](super::Disclosure) decides how a value is
    /// shown.
    #[serde(rename = "waxseal.context", skip_serializing_if = "Option::is_none", default)]
    pub context: Option<BTreeMap<String, ContextValue>>,
    /// The key store.
    #[serde(rename = "waxseal.store", skip_serializing_if = "Option::is_none", default)]
    pub store: Option<String>,
    /// The sequence of the record that this one repeats, since that one may not be on disk.
    #[serde(rename = "waxseal.repeats", skip_serializing_if = "Option::is_none", default)]
    pub repeats: Option<u64>,
    /// How many: keys erased, records dropped.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub count: Option<u64>,
    /// The first moment of what is counted, as RFC 3339.
    #[serde(rename = "start_time_dt", skip_serializing_if = "Option::is_none", default)]
    pub start_time: Option<String>,
    /// The last moment of what is counted, as RFC 3339.
    #[serde(rename = "end_time_dt", skip_serializing_if = "Option::is_none", default)]
    pub end_time: Option<String>,
    /// More text for people, at most 1,024 bytes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub message: Option<String>,
    /// The options of an envelope, by name.
    #[serde(rename = "waxseal.configuration", skip_serializing_if = "BTreeMap::is_empty", default)]
    pub configuration: BTreeMap<String, String>,
    /// The trail itself, in a record about it.
    #[serde(rename = "waxseal.trail", skip_serializing_if = "Option::is_none", default)]
    pub trail: Option<TrailFields>,
    /// The checkpoint, in a record that is one.
    #[serde(rename = "waxseal.checkpoint", skip_serializing_if = "Option::is_none", default)]
    pub checkpoint: Option<CheckpointFields>,
}

/// The algorithm of a checkpoint without a key. Such a checkpoint is evidence only once it has left
/// the machine.
pub(super) const UNAUTHENTICATED: &str = "none";

/// The content of a checkpoint record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[non_exhaustive]
pub struct CheckpointFields {
    /// The hash of the record before this one.
    pub head: String,
    /// The sequence of the authenticated checkpoint before this one. 0 in the first.
    pub previous_sequence: u64,
    /// The hash of that checkpoint. In the first, the start of the chain.
    pub previous: String,
    /// `Ed25519`, `HMAC-SHA-256` or `none`.
    pub algorithm: Cow<'static, str>,
    /// Identifies the key: see [`CheckpointKey::id`](super::CheckpointKey::id).
    pub key_id: String,
    /// The signature or the MAC, in hexadecimal digits.
    pub signature: String,
}

impl CheckpointFields {
    /// Whether it claims to be authenticated.
    pub(super) fn is_signed(&self) -> bool {
        self.algorithm != UNAUTHENTICATED
    }
}

/// What the records `trail_file_opened` and `trail_resumed` say about the trail.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct TrailFields {
    /// The version of the format of lines and chain, currently 1.
    pub version: u32,
    /// The id of the trail: 16 hexadecimal digits, drawn when its first file was made.
    pub id: String,
    /// The number of the file, from 1.
    pub file: u64,
    /// The hash of the last record before this one, or the start of the chain.
    pub previous: String,
    /// A sync failed for the previous file. Its records from this sequence on may be lost in a
    /// crash of the machine, and are repeated here, except for checkpoints and records about the
    /// trail.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub unsynced_from: Option<u64>,
    /// The key of the checkpoints from here on.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub checkpoint_key: Option<String>,
    /// The id of the process that writes.
    #[serde(rename = "process.pid")]
    pub process: u32,
}

/// A value of an encryption context in a record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
#[non_exhaustive]
pub enum ContextValue {
    /// The value itself.
    Clear(String),
    /// Its keyed hash: see [`AuditKey::hash_value`](super::AuditKey::hash_value).
    Hashed {
        /// HMAC-SHA-256, 64 hexadecimal digits.
        hmac: String,
    },
    /// It is left out.
    LeftOut,
}

/// The maximum size of a record's message in bytes.
const MAX_MESSAGE: usize = 1024;

impl Record {
    pub(super) fn of(activity: &'static str) -> Self {
        Self { activity: Cow::Borrowed(activity), ..Self::default() }
    }

    pub(super) fn succeeded(mut self) -> Self {
        self.status = Some(Cow::Borrowed("Success"));
        self
    }

    pub(super) fn failed(mut self, kind: &'static str) -> Self {
        self.status = Some(Cow::Borrowed("Failure"));
        self.error_type = Some(Cow::Borrowed(kind));
        self
    }

    /// Sets the message, cut at [`MAX_MESSAGE`] so that a line stays within its bound.
    pub(super) fn with_message(mut self, mut message: String) -> Self {
        let end = message.floor_char_boundary(MAX_MESSAGE);
        message.truncate(end);
        self.message = Some(message);
        self
    }
}

/// Formats nanoseconds since 1970. Times beyond RFC 3339, after the year 9999, become the last one
/// it can express.
pub(super) fn rfc3339(nanos: i64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanos)).ok();
    let text = time.and_then(|time| time.format(&Rfc3339).ok());
    text.unwrap_or_else(|| "9999-12-31T23:59:59Z".to_owned())
}
