//! What it takes to deny, revoke and wipe many DEKs: a DEK's share must not grow with their number.
//!
//!     cargo bench -p waxseal-benches --features test-util --bench many_deks
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::{Duration, Instant};

use pollster::block_on;
use waxseal::kek::KekErrorClass;
use waxseal::kek::scripted::ScriptedKek;
use waxseal::{Aad, EncryptionContext, Envelope, Limits, ManualClock};

struct Filled {
    kek: ScriptedKek,
    clock: ManualClock,
    envelope: Envelope,
    messages: Vec<(EncryptionContext, Vec<u8>)>,
}

/// As many DEKs for reading, of a tenant each or all of one.
fn filled(count: usize, one_tenant: bool) -> Filled {
    let (kek, clock) = (ScriptedKek::new("kek").unwrap(), ManualClock::new());
    let limits = Limits::default().max_entries(1 << 20).max_age(Duration::from_secs(100));
    let envelope = Envelope::builder()
        .wrap_with(kek.clone())
        .limits(limits)
        .clock(clock.clone())
        .build()
        .unwrap();
    // A DEK for each message.
    let elsewhere = Envelope::builder()
        .wrap_with(kek.local().clone())
        .limits(Limits::default().max_messages(1));
    let elsewhere = elsewhere.build().unwrap();
    let message = |i| {
        let tenant = if one_tenant { "alice".to_owned() } else { format!("tenant {i}") };
        let context = EncryptionContext::new([("tenant", tenant)]).unwrap();
        let sealed = block_on(elsewhere.encrypt(&context, Aad::empty(), b"payload")).unwrap();
        block_on(envelope.decrypt(&context, Aad::empty(), &sealed)).unwrap();
        (context, sealed)
    };
    let messages = (0..count).map(message).collect();
    Filled { kek, clock, envelope, messages }
}

fn deny(count: usize, one_tenant: bool) -> Duration {
    let Filled { kek, clock, envelope, messages } = filled(count, one_tenant);
    kek.fail_with(KekErrorClass::Denied);
    clock.advance(Duration::from_secs(90));
    let start = Instant::now();
    for (context, sealed) in &messages {
        block_on(envelope.decrypt(context, Aad::empty(), sealed)).unwrap_err();
    }
    start.elapsed()
}

fn revoke(count: usize) -> Duration {
    let Filled { envelope, messages, .. } = filled(count, false);
    let start = Instant::now();
    for (context, _) in &messages {
        envelope.evict_context(context);
    }
    start.elapsed()
}

fn main() {
    println!("{:<34} {:>10} {:>14} {:>12}", "", "DEKs", "in all", "each");
    for count in [4_000_usize, 16_000, 64_000] {
        for (name, took) in [
            ("denied one by one, a tenant each", deny(count, false)),
            ("denied one by one, one tenant", deny(count, true)),
            ("contexts revoked one by one", revoke(count)),
        ] {
            let each = took / u32::try_from(count).unwrap();
            println!("{name:<34} {count:>10} {took:>14.2?} {each:>12.2?}");
        }
    }
}
