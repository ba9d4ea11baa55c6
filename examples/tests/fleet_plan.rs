//! The planner's estimates against envelopes that write and read at random times, on a clock that
//! the test moves.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::time::Duration;

use fleet::{DAY, Fleet, HOUR, MINUTE};
use pollster::block_on;
use waxseal::branch::BranchKek;
use waxseal::kek::KekErrorClass;
use waxseal::kek::local::LocalKek;
use waxseal::kek::scripted::ScriptedKek;
use waxseal::store::MemoryStore;
use waxseal::{Aad, DekId, EncryptionContext, Envelope, Limits, ManualClock, inspect};

/// What is estimated has to be this close to what was measured.
const TOLERANCE: f64 = 0.05;

/// SplitMix64, so that each run has the same rows.
struct Random(u64);

impl Random {
    fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.word() % u64::try_from(count).unwrap()).unwrap()
    }

    /// The time until the next event of so many a second.
    fn wait(&mut self, rate: f64) -> f64 {
        let high = u32::try_from(self.word() >> 32).unwrap();
        -((f64::from(high) + 1.0) / 4_294_967_296.0).ln() / rate
    }
}

/// One host: an envelope, and what counts its calls.
struct Host {
    envelope: Envelope,
    branches: Option<BranchKek>,
    root: ScriptedKek,
}

impl Host {
    fn calls(&self) -> f64 {
        count(self.root.calls().total())
    }

    /// Reads that waited for the key service.
    fn waits(&self) -> f64 {
        match &self.branches {
            Some(kek) => count(kek.statistics().reading_misses),
            None => count(self.envelope.statistics().reading_misses),
        }
    }
}

fn count(count: u64) -> f64 {
    f64::from(u32::try_from(count).unwrap())
}

struct Ground {
    fleet: Fleet,
    clock: ManualClock,
    local: LocalKek,
    store: Option<MemoryStore>,
    random: Random,
    contexts: Vec<EncryptionContext>,
}

fn up_to(count: f64) -> impl Iterator<Item = u32> {
    (0..).take_while(move |nth| f64::from(*nth) < count)
}

fn seconds(seconds: f64) -> Duration {
    Duration::from_secs_f64(seconds)
}

impl Ground {
    fn new(fleet: Fleet, with_branch_keys: bool) -> Self {
        let clock = ManualClock::new();
        // The history begins in the middle of a period.
        clock.advance(seconds(100.5 * fleet.branch_period));
        let context = |tenant| EncryptionContext::new([("tenant", format!("{tenant}"))]).unwrap();
        Self {
            fleet,
            clock,
            local: LocalKek::in_memory("root").unwrap(),
            store: with_branch_keys.then(MemoryStore::new),
            random: Random(12),
            contexts: up_to(fleet.tenants).map(context).collect(),
        }
    }

    fn hosts(&self) -> Vec<Host> {
        let Fleet { max_age, rotate_after, branch_period, .. } = self.fleet;
        let limits =
            Limits::default().max_age(seconds(max_age)).rotate_after(seconds(rotate_after));
        let host = |_| {
            let root = ScriptedKek::over(self.local.clone());
            let envelope = Envelope::builder().limits(limits).clock(self.clock.clone());
            let branches = self.store.clone().map(|store| {
                BranchKek::builder(root.clone())
                    .name("orders")
                    .per(["tenant"])
                    .period(seconds(branch_period))
                    .store(store)
                    .limits(limits)
                    .clock(self.clock.clone())
                    .build()
                    .unwrap()
            });
            let envelope = match branches.clone() {
                Some(kek) => envelope.wrap_with(kek),
                None => envelope.wrap_with(root.clone()),
            };
            Host { envelope: envelope.build().unwrap(), branches, root }
        };
        up_to(self.fleet.hosts).map(host).collect()
    }

    /// Lets random hosts do something so often for so long.
    fn run(&mut self, rate: f64, time: f64, hosts: usize, mut act: impl FnMut(&mut Self, usize)) {
        let mut passed = 0.0;
        loop {
            let wait = self.random.wait(rate);
            passed += wait;
            if passed > time {
                return;
            }
            self.clock.advance(seconds(wait));
            let host = self.random.below(hosts);
            act(self, host);
        }
    }
}

fn close(what: &str, estimated: f64, measured: f64) {
    println!("{what:<56} estimated {estimated:>10.4}, measured {measured:>10.4}");
    assert!(
        (estimated - measured).abs() <= TOLERANCE * measured.abs(),
        "{what}: estimated {estimated}, measured {measured}"
    );
}

/// A row's tenant and message.
type Row = (usize, Vec<u8>);

fn write(ground: &mut Ground, hosts: &[Host], host: usize) -> Row {
    let tenant = ground.random.below(ground.contexts.len());
    let sealed = hosts[host].envelope.encrypt(&ground.contexts[tenant], Aad::empty(), b"row");
    (tenant, block_on(sealed).unwrap())
}

fn read(ground: &mut Ground, hosts: &[Host], rows: &[Row], host: usize) -> bool {
    let (tenant, sealed) = &rows[ground.random.below(rows.len())];
    let context = &ground.contexts[*tenant];
    block_on(hosts[host].envelope.decrypt(context, Aad::empty(), sealed)).is_ok()
}

fn compare(name: &str, fleet: Fleet, with_branch_keys: bool) {
    let name = format!("{name}{}", if with_branch_keys { ", branch keys" } else { "" });
    let mut ground = Ground::new(fleet, with_branch_keys);
    let plan = |fleet: &Fleet| match with_branch_keys {
        true => fleet.with_branch_keys(),
        false => fleet.without_branch_keys(),
    };

    // Writing goes on for longer than the history, so that it begins in the middle of a DEK.
    let writers = ground.hosts();
    ground.run(fleet.writes, fleet.rotate_after, writers.len(), |ground, host| {
        write(ground, &writers, host);
    });
    let before: f64 = writers.iter().map(Host::calls).sum();
    let rows_before = ground.store.as_ref().map_or(0, MemoryStore::len);
    let mut rows = Vec::new();
    ground.run(fleet.writes, fleet.history, writers.len(), |ground, host| {
        rows.push(write(ground, &writers, host));
    });
    let calls: f64 = writers.iter().map(Host::calls).sum::<f64>() - before;
    let only_writing = plan(&Fleet { reads: 0.0, ..fleet });
    close(&format!("{name}: calls/s of writing"), only_writing.calls, calls / fleet.history);
    let mut deks: Vec<DekId> =
        rows.iter().map(|(_, sealed)| inspect(sealed).unwrap().dek_id).collect();
    deks.sort_unstable();
    deks.dedup();
    if !with_branch_keys {
        let estimated =
            fleet.hosts * fleet.contexts() * (fleet.history / fleet.dek_lifetime() + 1.0);
        close(&format!("{name}: DEKs"), estimated, count(deks.len().try_into().unwrap()));
    }
    drop(writers);
    if let Some(store) = &ground.store {
        // Of the earlier ones, each branch still used one.
        let rows = count((store.len() - rows_before).try_into().unwrap()) + fleet.branches();
        close(&format!("{name}: rows in the store"), plan(&fleet).store_rows, rows);
    }

    let readers = ground.hosts();
    let reading = |ground: &mut Ground, time: f64| {
        let (mut reads, mut failed) = (0.0, 0.0);
        ground.run(fleet.reads, time, readers.len(), |ground, host| {
            reads += 1.0;
            failed += if read(ground, &readers, &rows, host) { 0.0 } else { 1.0 };
        });
        (reads, failed)
    };
    reading(&mut ground, HOUR);
    let sum = |of: fn(&Host) -> f64| readers.iter().map(of).sum::<f64>();
    let (calls, waits) = (sum(Host::calls), sum(Host::waits));
    let time = 10.0 * HOUR;
    let (reads, failed) = reading(&mut ground, time);
    assert!(failed == 0.0);
    let both = plan(&fleet);
    let estimated = both.calls - only_writing.calls;
    close(&format!("{name}: calls/s of reading"), estimated, (sum(Host::calls) - calls) / time);
    let measured = (sum(Host::waits) - waits) / reads;
    close(&format!("{name}: share of reads that wait"), both.reads_waiting, measured);
    // Outages, with time to recover in between.
    let (mut reads, mut failed) = (0.0, 0.0);
    for _ in 0..15 {
        readers.iter().for_each(|host| host.root.fail_with(KekErrorClass::Unavailable));
        let outage = reading(&mut ground, fleet.outage);
        reads += outage.0;
        failed += outage.1;
        readers.iter().for_each(|host| host.root.fail_with(None));
        reading(&mut ground, 30.0 * MINUTE);
    }
    close(
        &format!("{name}: share of reads that an outage fails"),
        both.reads_failing,
        failed / reads,
    );
}

/// Writers that renew each DEK in time, and some that do not.
fn fleets() -> [(&'static str, Fleet); 2] {
    let fleet = Fleet {
        hosts: 3.0,
        tenants: 2.0,
        reads: 0.75,
        recent_share: 0.0,
        outage: 10.0 * MINUTE,
        branch_period: 6.0 * HOUR,
        history: DAY,
        rotate_after: HOUR,
        ..Fleet::default()
    };
    [
        ("busy writers", Fleet { writes: 6.0 / 10.0, ..fleet }),
        (
            "rare writes",
            Fleet { writes: 6.0 / 150.0, rotate_after: DAY, history: 2.0 * DAY, ..fleet },
        ),
    ]
}

#[test]
fn the_planner_agrees_with_envelopes_without_branch_keys() {
    for (name, fleet) in fleets() {
        compare(name, fleet, false);
    }
}

#[test]
fn the_planner_agrees_with_envelopes_with_branch_keys() {
    for (name, fleet) in fleets() {
        compare(name, fleet, true);
    }
}
