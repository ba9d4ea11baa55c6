//! What the AWS Encryption SDK and Asherah do, by their documentation and source. Nothing here was
//! measured.
//!
//! Each rule has its source. "Specification" is `awslabs/aws-encryption-sdk-specification`,
//! "Asherah" is `godaddy/asherah`, both on GitHub, and "Developer guide" is the AWS Encryption SDK
//! Developer Guide.

use crate::cache::{Keeping, Life, Use};
use crate::plan::{Fleet, Keys, Plan, Reads, outage_of};
use crate::{DAY, HOUR};

/// Without a cache.
pub const NO_CACHE: &str = "AWS Encryption SDK, no cache: a new data key for every encryption, so \
    one call for each, and one for each decryption (Developer guide, \"Data key caching\").";

/// The caching CMM.
pub const CACHING_CMM: &str = "AWS Encryption SDK, caching CMM: a data key encrypts for one process \
    and context until its max age, 2^32 messages or 2^63-1 bytes; a cold or expired one costs a \
    call that the caller waits for; entries for decryption are apart, by encrypted data keys \
    (Specification, framework/caching-cmm.md; Developer guide, \"Setting cache security \
    thresholds\").";

/// The hierarchical keyring.
pub const HIERARCHICAL: &str = "AWS Encryption SDK, hierarchical keyring: data keys are wrapped by \
    branch keys; a branch key's version that is not cached, or past the cache limit TTL, costs one \
    read of DynamoDB and one KMS Decrypt; encryption and decryption are cached apart, 1,000 entries \
    by default; versions are made by an operator, here after each branch period (Specification, \
    framework/aws-kms/aws-kms-hierarchical-keyring.md; Developer guide, \"AWS KMS Hierarchical \
    keyrings\").";

/// Asherah.
pub const ASHERAH: &str = "Asherah: the key service unwraps system keys only, which unwrap the \
    intermediate keys of partitions, which unwrap a data row key for each row; a cached key is \
    loaded again after the revoke check interval of 60 minutes, and the caller waits; keys expire \
    after 90 days; 1,000 entries a cache (Asherah, go/appencryption/policy.go, key_cache.go and \
    envelope.go; docs/KeyCaching.md). Sessions are taken to be cached, which is not the default.";

/// The default number of entries of the hierarchical keyring's cache.
pub const HIERARCHICAL_CAPACITY: f64 = 1_000.0;
/// `DefaultExpireAfter`.
pub const ASHERAH_EXPIRES: f64 = 90.0 * DAY;
/// `DefaultRevokedCheckInterval`.
pub const ASHERAH_CHECKS: f64 = HOUR;
/// `DefaultKeyCacheMaxSize`.
pub const ASHERAH_CAPACITY: f64 = 1_000.0;

/// The AWS Encryption SDK with one data key for each message.
#[must_use]
pub fn no_cache(fleet: &Fleet) -> Plan {
    let failing = if fleet.outage > 0.0 { 1.0 } else { 0.0 };
    Plan {
        name: "AWS ESDK, no cache",
        calls: fleet.writes + fleet.reads,
        reads_waiting: 1.0,
        reads_failing: failing,
        writes_failing: failing,
        ..Plan::default()
    }
}

/// The AWS Encryption SDK with its caching CMM, with the fleet's `max_age` and `max_entries`.
#[must_use]
pub fn caching_cmm(fleet: &Fleet) -> Plan {
    let keeping = Keeping::until(fleet.max_age);
    let life = |rate| Life::used(keeping, rate);
    let contexts = fleet.contexts();
    let lifetime = keeping.cycle(Use::AtRandom(fleet.writes / fleet.hosts / contexts));
    let classes = fleet.classes(lifetime).into_iter();
    let reads = classes.filter_map(|class| Keys::new(class, life)).collect();
    let reads = Reads::new(reads, fleet.max_entries);
    fleet.plan("AWS ESDK, caching CMM", &fleet.writing(contexts, life), &reads)
}

/// The AWS Encryption SDK with its hierarchical keyring: cache limit TTL as the fleet's `max_age`,
/// branch keys and periods as the fleet's.
#[must_use]
pub fn hierarchical(fleet: &Fleet) -> Plan {
    let life = |rate| Life::used(Keeping::until(fleet.max_age), rate);
    let branches = fleet.branches();
    let classes = fleet.branch_classes(branches, fleet.branch_period).into_iter();
    let reads = classes.filter_map(|class| Keys::new(class, life)).collect();
    let reads = Reads::new(reads, HIERARCHICAL_CAPACITY);
    let writes = fleet.writing(branches, life);
    let mut plan = fleet.plan("AWS ESDK, hierarchical keyring", &writes, &reads);
    plan.store_reads = plan.calls;
    plan.store_rows = branches * fleet.periods(fleet.branch_period);
    // VersionKey: GenerateDataKeyWithoutPlaintext and ReEncrypt.
    plan.calls += 2.0 * branches / fleet.branch_period;
    plan
}

/// Asherah with its default policy and cached sessions. Its partitions are the fleet's contexts.
#[must_use]
pub fn asherah(fleet: &Fleet) -> Plan {
    let life = |rate| Life::used(Keeping::until(ASHERAH_CHECKS), rate);
    let partitions = fleet.contexts();
    // One entry serves encryption and decryption, so writes count as uses of the newest key.
    let [(newest, read), first, between] = fleet.branch_classes(partitions, ASHERAH_EXPIRES);
    let written = fleet.writes / fleet.hosts;
    let classes = [(newest, read + written), first, between];
    let keys: Vec<_> = classes.into_iter().filter_map(|class| Keys::new(class, life)).collect();
    // The intermediate keys of a session have their own cache.
    let intermediate = Reads::new(keys, f64::INFINITY);
    // Each load of an intermediate key uses a system key, of which one is live at a time.
    let system_keys = fleet.periods(ASHERAH_EXPIRES);
    let system = life(intermediate.calls / system_keys);
    let calls = fleet.hosts * system_keys * system.calls();
    let uses = (fleet.reads + fleet.writes) / fleet.hosts;
    // An outage is felt where neither the intermediate key nor the system key is still cached.
    let failing = outage_of(fleet.outage, |at| {
        let unserved = |keys: &Keys| keys.rate / uses * (1.0 - keys.life.serves(at));
        (1.0 - system.serves(at)) * intermediate.keys.iter().map(unserved).sum::<f64>()
    });
    Plan {
        name: "Asherah",
        calls,
        reads_waiting: (system_keys * system.waits() / uses).min(1.0),
        reads_waiting_for_store: (intermediate.waits / uses).min(1.0),
        store_rows: system_keys + partitions * system_keys,
        store_reads: fleet.hosts * intermediate.calls + calls,
        reads_failing: failing,
        writes_failing: failing,
    }
}
