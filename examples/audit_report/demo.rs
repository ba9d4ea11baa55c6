//! A day of a service, in a second: uses, a rotation of its KEK, an outage, a denial, an erasure.

use std::path::Path;
use std::time::Duration;

use waxseal::audit::{AppendTo, AuditTrail, CheckpointKey, Disclosure, TrailDirectory};
use waxseal::branch::BranchKek;
use waxseal::kek::KekErrorClass;
use waxseal::kek::scripted::ScriptedKek;
use waxseal::policy::{Action, BoxFuture, Decision, Policy, PolicyOptions, Question};
use waxseal::store::MemoryStore;
use waxseal::{Aad, Caller, EncryptionContext, Envelope, Error, Limits, ManualClock};

const MINUTE: Duration = Duration::from_secs(60);
/// A real service draws it from a random number generator, once.
const SEED: [u8; 32] = *b"an example's key, never for use!";

/// The import writes, billing reads, and nobody else does either.
#[derive(Debug)]
struct Rules;

impl Policy for Rules {
    fn decide<'a>(&'a self, asked: &'a Question<'a>) -> BoxFuture<'a, Result<Decision, Error>> {
        let decision = match (asked.operation, asked.caller.and_then(Caller::service)) {
            (Action::Encrypt, Some("import")) | (Action::Decrypt, Some("billing")) => {
                Decision::allow()
            }
            _ => Decision::deny(["only the import writes, and only billing reads"]),
        };
        Box::pin(async { Ok(decision.with_revision("2026-02-20")) })
    }
}

/// Makes a trail in `directory`, with the copies of its checkpoints beside it. Returns the public
/// key.
pub(crate) fn make(directory: &Path) -> Result<String, Box<dyn std::error::Error>> {
    let clock = ManualClock::new();
    // A Sunday in March.
    clock.advance(Duration::from_secs(1_772_323_200));
    let key = CheckpointKey::ed25519(&SEED);
    let public = key.public_key().unwrap_or_default();
    let trail = AuditTrail::builder()
        .service("cards")
        .directory(TrailDirectory::new(directory))
        .other_context_values(Disclosure::Clear)
        .access_summaries(Duration::from_secs(10))
        .checkpoint_key(key)
        .checkpoint_every(10, MINUTE)
        .checkpoints_to(AppendTo::open(directory.with_extension("checkpoints"))?)
        .clock(clock.clone())
        .start()?;
    pollster::block_on(uses(&trail, &clock))?;
    pollster::block_on(erasure(&trail, &clock))?;
    if !trail.close() {
        return Err("the trail could not be written".into());
    }
    Ok(public.iter().map(|byte| format!("{byte:02x}")).collect())
}

async fn uses(trail: &AuditTrail, clock: &ManualClock) -> Result<(), Error> {
    let kek = ScriptedKek::new("cards")?;
    let caller = |service: &str| Caller::builder().service(service).role("payments").build();
    let (import, billing, intern) = (caller("import")?, caller("billing")?, caller("intern")?);
    let envelope = Envelope::builder()
        .wrap_with(kek.clone())
        .policy(Rules, PolicyOptions::default())
        .limits(Limits::default().stale_if_error_reading(30 * MINUTE))
        .clock(clock.clone())
        .observer(trail.clone())
        .build()?;
    let (acme, aad) =
        (EncryptionContext::new([("tenant", "acme"), ("table", "cards")])?, Aad::empty());
    let other = EncryptionContext::new([("tenant", "globex"), ("table", "cards")])?;
    let sealed = envelope.acting_for(&import).encrypt(&acme, aad, b"4111 1111 1111 1111").await?;
    for _ in 0..41 {
        envelope.acting_for(&billing).decrypt(&acme, aad, &sealed).await?;
    }
    let refused = envelope.acting_for(&intern).decrypt(&acme, aad, &sealed).await.is_err();
    debug_assert!(refused);
    // The KEK is rotated, and what is wrapped from now on has its next version.
    kek.local().rotate()?;
    clock.advance(10 * MINUTE);
    envelope.acting_for(&import).encrypt(&other, aad, b"5500 0000 0000 0004").await?;
    envelope.acting_for(&billing).decrypt(&acme, aad, &sealed).await?;
    // An outage, in which reading continues.
    kek.fail_with(KekErrorClass::Unavailable);
    clock.advance(6 * MINUTE);
    envelope.acting_for(&billing).decrypt(&acme, aad, &sealed).await?;
    // Access is taken away.
    kek.fail_with(KekErrorClass::Denied);
    clock.advance(MINUTE);
    let refused = envelope.acting_for(&billing).decrypt(&acme, aad, &sealed).await.is_err();
    debug_assert!(refused);
    envelope.revoke_kek(&waxseal::KekId::new("local:cards")?);
    envelope.close().await;
    Ok(())
}

async fn erasure(trail: &AuditTrail, clock: &ManualClock) -> Result<(), Error> {
    let branches = BranchKek::builder(ScriptedKek::new("root")?)
        .name("branches")
        .per(["tenant"])
        .store(MemoryStore::new())
        .clock(clock.clone())
        .observer(trail.clone())
        .build()?;
    let envelope = Envelope::builder().wrap_with(branches.clone()).clock(clock.clone()).build()?;
    let leaving = EncryptionContext::new([("tenant", "initech"), ("table", "cards")])?;
    envelope.encrypt(&leaving, Aad::empty(), b"3400 0000 0000 009").await?;
    branches.erase([("tenant", "initech")]).await?;
    envelope.close().await;
    Ok(())
}
