//! What observers are told of branch keys.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use waxseal::kek::KekErrorClass::{Denied, Unavailable};
use waxseal::{DekId, Event, Limits, Observer};

use super::ground::{Fleet, secs, with_grace};

#[derive(Clone, Debug, Default)]
struct Told(Arc<Mutex<Vec<(&'static str, DekId)>>>);

impl Observer for Told {
    fn event(&self, event: &Event<'_>) {
        let told = match event {
            Event::Made { dek_id, .. } => ("made", **dek_id),
            Event::Wrapped { dek_id, .. } => ("wrapped", **dek_id),
            Event::Unwrapped { dek_id, .. } => ("unwrapped", **dek_id),
            Event::Refreshed { dek_id, .. } => ("refreshed", **dek_id),
            Event::RenewalFailed { dek_id, .. } => ("renewal failed", **dek_id),
            Event::ServedStale { dek_id, .. } => ("served stale", **dek_id),
            Event::Denied { dek_id: Some(dek_id), .. } => ("denied", **dek_id),
            Event::Evicted { dek_id, .. } => ("evicted", **dek_id),
            Event::Wiped { dek_id, .. } => ("wiped", **dek_id),
            _ => return,
        };
        self.0.lock().unwrap().push(told);
    }
}

/// A message and a row name 16 bytes of the id.
#[test]
fn every_event_of_a_branch_key_in_a_store_has_its_whole_id() {
    let (fleet, told) = (Fleet::new(), Told::default());
    let process = |limits: Limits| {
        fleet.process_with(|b| b.limits(limits).observer(told.clone()), |envelope| envelope)
    };
    let writer = process(with_grace().max_entries(1));
    let sealed = ["acme", "globex"].map(|tenant| (tenant, writer.seal(tenant)));
    let open = || sealed.iter().for_each(|(tenant, sealed)| drop(writer.open(tenant, sealed)));
    open();
    // Its entry in the other's place is evicted, so one of them is cached.
    for failure in [Some(Unavailable), None, Some(Denied)] {
        fleet.root.fail_with(failure);
        fleet.clock.advance(secs(301));
        open();
        open();
    }
    fleet.root.fail_with(None);
    let reader = process(Limits::default());
    for _ in 0..3 {
        reader.open("acme", &sealed[0].1).unwrap();
        fleet.clock.advance(secs(280));
    }
    fleet.root.fail_with(Unavailable);
    reader.open("acme", &sealed[0].1).unwrap();
    fleet.root.fail_with(Denied);
    let cold = process(Limits::default());
    assert!(cold.open("acme", &sealed[0].1).is_err());
    drop((writer, reader, cold));

    let told = told.0.lock().unwrap();
    let ids = |of: &str| -> BTreeSet<_> {
        told.iter().filter(|told| told.0 == of).map(|told| told.1).collect()
    };
    let made = ids("made");
    assert_eq!(made.len(), 2);
    for what in [
        "wrapped",
        "unwrapped",
        "refreshed",
        "renewal failed",
        "served stale",
        "denied",
        "evicted",
        "wiped",
    ] {
        let ids = ids(what);
        assert!(!ids.is_empty() && ids.is_subset(&made), "{what}: {ids:?} of {made:?}");
    }
}
