//! A service for an hour, twenty minutes of it without its key service.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use pollster::block_on;
use waxseal::kek::KekErrorClass;
use waxseal::kek::scripted::ScriptedKek;
use waxseal::{Aad, EncryptionContext, Envelope, Limits, ManualClock, MetricsObserver};

use super::recorder::{Recording, Samples};

/// Seconds between two scrapes, and between two requests of a tenant.
pub(crate) const STEP: u32 = 30;
pub(crate) const END: u32 = 60 * 60;
/// When the key service is down, in seconds.
pub(crate) const OUTAGE: std::ops::Range<u32> = 20 * 60..40 * 60;
/// A call to the key service, while it is up and while it is down.
const UP: Duration = Duration::from_millis(12);
const DOWN: Duration = Duration::from_millis(80);
const TENANTS: u32 = 24;

/// The same message of the same tenant, written by another process: reading it needs a call.
struct Tenant {
    context: EncryptionContext,
    /// The newest, and older ones of a DEK each.
    recent: Vec<u8>,
    old: Vec<Vec<u8>>,
}

pub(crate) fn limits() -> Limits {
    Limits::default()
        .max_age(Duration::from_secs(300))
        .refresh_after(Duration::from_secs(235))
        .stale_if_error_reading(Duration::from_secs(600))
        .stale_if_error_writing(Duration::from_secs(600))
}

/// Returns what was recorded.
pub(crate) fn run() -> Result<Samples, Box<dyn Error>> {
    let recording = Recording::default();
    metrics::with_local_recorder(&recording.clone(), || run_recorded(&recording))?;
    Ok(recording.take())
}

fn run_recorded(recording: &Recording) -> Result<(), Box<dyn Error>> {
    let (kek, clock) = (ScriptedKek::new("orders")?, ManualClock::new());
    let tenants = (0..TENANTS).map(|number| tenant(&kek, number)).collect::<Result<Vec<_>, _>>()?;
    // What has passed since the last scrape, in milliseconds: calls take time.
    let passed = Arc::new(AtomicU64::new(0));
    let envelope = Envelope::builder()
        .wrap_with(kek.clone())
        .clock(clock.clone())
        .limits(limits())
        .observer(MetricsObserver)
        .build()?;
    let calls_take = |time: Duration| {
        let (clock, passed) = (clock.clone(), passed.clone());
        kek.wait_for(move || {
            let millis = u64::try_from(time.as_millis()).unwrap_or_default();
            passed.fetch_add(millis, Ordering::SeqCst);
            clock.advance(time);
            Box::pin(async {})
        });
    };
    calls_take(UP);
    for step in 0..=END / STEP {
        let now = step * STEP;
        if now == OUTAGE.start {
            kek.fail_with(KekErrorClass::Unavailable);
            calls_take(DOWN);
        } else if now == OUTAGE.end {
            kek.fail_with(None);
            calls_take(UP);
        }
        for (number, tenant) in (0_u32..).zip(&tenants) {
            // They begin one after the other, so that they are not due together.
            if number % 8 <= step {
                requests(&envelope, tenant, step);
            }
        }
        envelope.statistics().record_metrics("orders");
        recording.scrape(now);
        let rest = u64::from(STEP) * 1000;
        clock.advance(Duration::from_millis(rest.saturating_sub(passed.swap(0, Ordering::SeqCst))));
    }
    Ok(())
}

/// Writes a row, reads ten that are new, and occasionally an old one. What fails is in the metrics.
fn requests(envelope: &Envelope, tenant: &Tenant, step: u32) {
    let open = |sealed: &[u8]| {
        drop(block_on(envelope.decrypt(&tenant.context, Aad::empty(), sealed)));
    };
    drop(block_on(envelope.encrypt(&tenant.context, Aad::empty(), b"row")));
    (0..10).for_each(|_| open(&tenant.recent));
    if step.is_multiple_of(6)
        && let Some(old) = tenant.old.get((step / 6) as usize % tenant.old.len())
    {
        open(old);
    }
}

fn tenant(kek: &ScriptedKek, number: u32) -> Result<Tenant, waxseal::Error> {
    let context = EncryptionContext::new([("tenant", format!("tenant {number}"))])?;
    let sealed_elsewhere = || {
        let elsewhere = Envelope::builder().wrap_with(kek.local().clone()).build()?;
        block_on(elsewhere.encrypt(&context, Aad::empty(), b"row"))
    };
    let recent = sealed_elsewhere()?;
    let old = (0..END / STEP / 6 + 1).map(|_| sealed_elsewhere()).collect::<Result<_, _>>()?;
    Ok(Tenant { context, recent, old })
}
