//! The actions of each role, as KMS names them.
//!
//! Source: "Actions, resources, and condition keys for AWS Key Management Service" in the Service
//! Authorization Reference.
#![forbid(unsafe_code)]

/// All actions that use a key, or grant its use.
pub(super) const USE: [&str; 5] =
    ["kms:Encrypt", "kms:GenerateDataKey*", "kms:Decrypt", "kms:ReEncrypt*", "kms:CreateGrant"];
/// The actions among them that have an encryption context.
pub(super) const WITH_CONTEXT: [&str; 4] =
    ["kms:Encrypt", "kms:GenerateDataKey*", "kms:Decrypt", "kms:ReEncrypt*"];
pub(super) const WRAP: [&str; 2] = ["kms:Encrypt", "kms:GenerateDataKey*"];
pub(super) const UNWRAP: [&str; 1] = ["kms:Decrypt"];
pub(super) const REWRAP: [&str; 1] = ["kms:ReEncrypt*"];

/// All actions that change a key, or who may do what with it. `SynchronizeMultiRegionKey` is not
/// included: only KMS calls it, by its service-linked role ("Authorizing AWS KMS to synchronize
/// multi-Region keys").
pub(super) const CHANGE: [&str; 20] = [
    "kms:CancelKeyDeletion",
    "kms:CreateAlias",
    "kms:DeleteAlias",
    "kms:DeleteImportedKeyMaterial",
    "kms:DisableKey",
    "kms:DisableKeyRotation",
    "kms:EnableKey",
    "kms:EnableKeyRotation",
    "kms:GetParametersForImport",
    "kms:ImportKeyMaterial",
    "kms:PutKeyPolicy",
    "kms:ReplicateKey",
    "kms:RevokeGrant",
    "kms:RotateKeyOnDemand",
    "kms:ScheduleKeyDeletion",
    "kms:TagResource",
    "kms:UntagResource",
    "kms:UpdateAlias",
    "kms:UpdateKeyDescription",
    "kms:UpdatePrimaryRegion",
];
pub(super) const DELETE: [&str; 2] = ["kms:ScheduleKeyDeletion", "kms:DeleteImportedKeyMaterial"];

/// The actions for looking that every role has.
pub(super) const DESCRIBE: [&str; 1] = ["kms:DescribeKey"];
/// The actions for looking that administrators, owners and auditors have.
pub(super) const LOOK: [&str; 7] = [
    "kms:DescribeKey",
    "kms:GetKeyPolicy",
    "kms:GetKeyRotationStatus",
    "kms:ListGrants",
    "kms:ListKeyPolicies",
    "kms:ListKeyRotations",
    "kms:ListResourceTags",
];
pub(super) const OPERATE: [&str; 5] = [
    "kms:CancelKeyDeletion",
    "kms:DisableKey",
    "kms:EnableKey",
    "kms:EnableKeyRotation",
    "kms:RotateKeyOnDemand",
];
pub(super) const GOVERN: [&str; 5] = [
    "kms:CancelKeyDeletion",
    "kms:DisableKeyRotation",
    "kms:PutKeyPolicy",
    "kms:RevokeGrant",
    "kms:ScheduleKeyDeletion",
];
/// Administrators' actions for imported key material.
pub(super) const IMPORT: [&str; 2] = ["kms:GetParametersForImport", "kms:ImportKeyMaterial"];
/// Owners' actions for imported key material.
pub(super) const DELETE_IMPORTED: [&str; 1] = ["kms:DeleteImportedKeyMaterial"];
/// The root user's actions for setting a key policy when no owner is left.
pub(super) const RECOVER: [&str; 3] = ["kms:DescribeKey", "kms:GetKeyPolicy", "kms:PutKeyPolicy"];
/// Auditors' actions that concern no particular key.
pub(super) const LIST: [&str; 2] = ["kms:ListAliases", "kms:ListKeys"];
pub(super) const READ_TRAIL: [&str; 5] = [
    "cloudtrail:DescribeTrails",
    "cloudtrail:GetEventSelectors",
    "cloudtrail:GetTrail",
    "cloudtrail:GetTrailStatus",
    "cloudtrail:LookupEvents",
];
/// Owners' actions for enabling break-glass.
pub(super) const TAG_ROLE: [&str; 2] = ["iam:TagRole", "iam:UntagRole"];
/// The actions that give a principal the tag that opens break-glass.
pub(super) const TAG: [&str; 3] = ["iam:TagRole", "iam:UntagRole", "sts:TagSession"];
