//! A fleet of services, and what it costs in the long run.
//!
//! Rows and reads come at random and evenly spread over hosts and tenants. Each host is one
//! process, and is taken to run for long: what a restart costs is in [`cold`](crate::cold).

use crate::cache::{Keeping, Life, Use, mean};
use crate::{DAY, HOUR, MINUTE};

/// What a fleet does and how it is configured. Rates are a second, of all hosts together.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Fleet {
    /// Processes.
    pub hosts: f64,
    /// Tenants. Each has an encryption context of its own.
    pub tenants: f64,
    /// Rows written.
    pub writes: f64,
    /// Rows read.
    pub reads: f64,
    /// The share of reads that are of recent rows. The others are picked at random from `history`.
    pub recent_share: f64,
    /// How old a recent row is at most.
    pub recent: f64,
    /// How old the rows are at most that are read.
    pub history: f64,
    /// `Limits::max_age`, and the time to live in the caches of the AWS Encryption SDK.
    pub max_age: f64,
    /// `Limits::rotate_after`.
    pub rotate_after: f64,
    /// `Limits::stale_if_error_reading` and `stale_if_error_writing`.
    pub grace: f64,
    /// `Limits::max_entries`.
    pub max_entries: f64,
    /// `BranchKekBuilder::period`.
    pub branch_period: f64,
    /// Branches for each tenant, each for its own contexts. 0 is one branch for all tenants.
    pub branches_per_tenant: f64,
    /// How long the key service is away.
    pub outage: f64,
    /// The price of 10,000 calls.
    pub price: f64,
    /// How long a call takes.
    pub latency: f64,
}

impl Default for Fleet {
    fn default() -> Self {
        Self {
            hosts: 10.0,
            tenants: 100.0,
            writes: 100.0,
            reads: 1_000.0,
            recent_share: 0.8,
            recent: HOUR,
            history: 30.0 * DAY,
            max_age: 5.0 * MINUTE,
            rotate_after: DAY,
            grace: 0.0,
            max_entries: 4_096.0,
            branch_period: 30.0 * DAY,
            branches_per_tenant: 1.0,
            outage: 30.0 * MINUTE,
            price: 0.03,
            latency: 0.02,
        }
    }
}

/// What a fleet costs with one design.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Plan {
    /// The design.
    pub name: &'static str,
    /// Calls of the key service a second.
    pub calls: f64,
    /// The share of reads that wait for the key service.
    pub reads_waiting: f64,
    /// The share of reads that wait for the key store and not for the key service.
    pub reads_waiting_for_store: f64,
    /// Rows in the key store.
    pub store_rows: f64,
    /// Reads of the key store a second.
    pub store_reads: f64,
    /// The share of reads that fail during the outage.
    pub reads_failing: f64,
    /// The share of writes that fail during the outage.
    pub writes_failing: f64,
}

/// Keys of one host that are used alike.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Keys {
    pub(crate) count: f64,
    /// Of all of them together.
    pub(crate) rate: f64,
    pub(crate) life: Life,
}

impl Keys {
    /// `life` is given how often one of them is used. `None` if there are none.
    pub(crate) fn new((count, rate): (f64, f64), life: impl Fn(f64) -> Life) -> Option<Self> {
        (count > 0.0 && rate > 0.0).then(|| Self { count, rate, life: life(rate / count) })
    }

    pub(crate) fn calls(&self) -> f64 {
        self.count * self.life.calls()
    }
}

/// The reading of one host.
pub(crate) struct Reads {
    pub(crate) keys: Vec<Keys>,
    pub(crate) calls: f64,
    pub(crate) waits: f64,
    /// The share of what would be cached for which there is room.
    room: f64,
}

impl Reads {
    /// Which key is dropped because there is no room for more does not depend on how it is used.
    pub(crate) fn new(keys: Vec<Keys>, capacity: f64) -> Self {
        let sum = |of: fn(&Keys) -> f64| keys.iter().map(of).sum::<f64>();
        let (calls, waits) = (sum(Keys::calls), sum(|keys| keys.count * keys.life.waits()));
        let room = (capacity / sum(|keys| keys.count * keys.life.serves(0.0))).min(1.0);
        let rate = sum(|keys| keys.rate);
        if room >= 1.0 || rate <= 0.0 {
            return Self { keys, calls, waits, room: 1.0 };
        }
        let renewals = (calls - waits) * room;
        let waits = rate - (rate - waits) * room;
        Self { keys, calls: waits + renewals, waits, room }
    }

    /// Returns the share of reads that fail during an outage.
    fn failing(&self, outage: f64) -> f64 {
        let rate: f64 = self.keys.iter().map(|keys| keys.rate).sum();
        if rate <= 0.0 {
            return 0.0;
        }
        outage_of(outage, |at| {
            let served = |keys: &Keys| keys.rate * keys.life.serves(at) * self.room;
            1.0 - self.keys.iter().map(served).sum::<f64>() / rate
        })
    }
}

/// Returns the mean over an outage of this many seconds.
pub(crate) fn outage_of(outage: f64, failing: impl Fn(f64) -> f64) -> f64 {
    if outage <= 0.0 { 0.0 } else { mean((0.0, outage), failing) }
}

impl Fleet {
    /// Returns the number of encryption contexts.
    #[must_use]
    pub fn contexts(&self) -> f64 {
        self.tenants * self.branches_per_tenant.max(1.0)
    }

    /// Returns the number of branches.
    #[must_use]
    pub fn branches(&self) -> f64 {
        if self.branches_per_tenant < 1.0 { 1.0 } else { self.contexts() }
    }

    /// Returns how many periods of this length the rows are of.
    #[must_use]
    pub fn periods(&self, period: f64) -> f64 {
        self.history / period + 1.0
    }

    fn read_rates(&self) -> (f64, f64) {
        let reads = self.reads / self.hosts;
        (reads * self.recent_share, reads * (1.0 - self.recent_share))
    }

    /// Returns how many keys the recent rows have, and all rows, and how often one host uses them,
    /// if each host has a key for each context and replaces it after `lifetime`.
    pub(crate) fn classes(&self, lifetime: f64) -> [(f64, f64); 2] {
        let writers = self.hosts * self.contexts();
        let keys = |window: f64| {
            let rows = (window * self.writes).max(1.0);
            (writers * (window / lifetime + 1.0)).min(rows)
        };
        let (recent, old) = self.read_rates();
        [(keys(self.recent), recent), (keys(self.history), old)]
    }

    /// Returns how many keys there are of the present period, of the first one of the history, and
    /// of those between, and how often one host uses them for reading, if all hosts share a key for
    /// each branch and period. The first and the last period are in the history by half on average.
    pub(crate) fn branch_classes(&self, branches: f64, period: f64) -> [(f64, f64); 3] {
        let (recent, old) = self.read_rates();
        let whole = self.history / period;
        let [(_, present), first, between] = if whole >= 1.0 {
            [(1.0, 0.5 / whole), (1.0, 0.5 / whole), (whole - 1.0, 1.0 - 1.0 / whole)]
        } else {
            [(1.0, 1.0 - 0.5 * whole), (whole, 0.5 * whole), (0.0, 0.0)]
        };
        let class = |(keys, share): (f64, f64)| (branches * keys, old * share);
        [(branches, recent + old * present), class(first), class(between)]
    }

    pub(crate) fn plan(&self, name: &'static str, writes: &Keys, reads: &Reads) -> Plan {
        let waiting = self.hosts * reads.waits / self.reads;
        Plan {
            name,
            calls: self.hosts * (writes.calls() + reads.calls),
            reads_waiting: if self.reads > 0.0 { waiting.min(1.0) } else { 0.0 },
            reads_failing: reads.failing(self.outage),
            writes_failing: outage_of(self.outage, |at| 1.0 - writes.life.serves(at)),
            ..Plan::default()
        }
    }

    /// Returns the keys with which one host writes, if there are so many.
    pub(crate) fn writing(&self, count: f64, life: impl Fn(f64) -> Life) -> Keys {
        let rate = self.writes / self.hosts;
        Keys { count, rate, life: life(rate / count) }
    }

    fn keeping(&self) -> Keeping {
        Keeping::ahead(self.max_age, self.grace)
    }

    fn written(&self) -> Use {
        Use::AtRandom(self.writes / self.hosts / self.contexts())
    }

    /// Returns how long one DEK encrypts.
    #[must_use]
    pub fn dek_lifetime(&self) -> f64 {
        self.keeping().lifetime(self.written(), self.rotate_after)
    }

    /// Waxseal, its DEKs wrapped by the key service.
    #[must_use]
    pub fn without_branch_keys(&self) -> Plan {
        let keeping = self.keeping();
        let life = |rate| Life::used(keeping, rate);
        // A DEK that encrypted more rows is read more often.
        let lengths = keeping.lengths(self.written(), self.rotate_after);
        let groups = self.classes(self.dek_lifetime()).into_iter().flat_map(|(count, rate)| {
            lengths.iter().map(move |(of_keys, of_rows)| (count * of_keys, rate * of_rows))
        });
        let reads = groups.filter_map(|group| Keys::new(group, life)).collect();
        let reads = Reads::new(reads, self.max_entries);
        self.plan("Waxseal", &self.writing(self.contexts(), life), &reads)
    }

    /// Waxseal, its DEKs derived from branch keys in a store.
    #[must_use]
    pub fn with_branch_keys(&self) -> Plan {
        let keeping = self.keeping();
        let branches = self.branches();
        let deks_of_branch = self.contexts() / branches;
        // For each context a host writes with one DEK, and reads the DEKs of all hosts.
        let writing = |rate| Life::under_deks(keeping, rate, deks_of_branch);
        let [(recent, _), (old, _)] = self.classes(self.dek_lifetime());
        let deks = if self.recent_share >= 1.0 { recent } else { old };
        let each = deks / branches / self.periods(self.branch_period);
        let reading = |rate| Life::under_deks(keeping, rate, each);
        let classes = self.branch_classes(branches, self.branch_period);
        let reads = classes.into_iter().filter_map(|class| Keys::new(class, reading)).collect();
        let reads = Reads::new(reads, self.max_entries);
        let mut plan = self.plan("Waxseal, branch keys", &self.writing(branches, writing), &reads);
        // Each call unwraps a row that was read right before.
        plan.store_reads = plan.calls;
        plan.store_rows = branches * self.periods(self.branch_period);
        plan.calls += branches / self.branch_period;
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peers;

    #[test]
    fn shares_are_shares_and_branch_keys_never_cost_more_calls() {
        let fleets = [
            Fleet::default(),
            Fleet { tenants: 1e6, ..Fleet::default() },
            Fleet { recent_share: 0.0, history: 365.0 * DAY, ..Fleet::default() },
            Fleet { branches_per_tenant: 0.0, branch_period: DAY, ..Fleet::default() },
            Fleet { reads: 0.0, outage: 0.0, ..Fleet::default() },
            Fleet { hosts: 1.0, tenants: 1.0, writes: 1e-6, ..Fleet::default() },
        ];
        for fleet in fleets {
            let (plain, branches) = (fleet.without_branch_keys(), fleet.with_branch_keys());
            let others = [
                peers::no_cache(&fleet),
                peers::caching_cmm(&fleet),
                peers::hierarchical(&fleet),
                peers::asherah(&fleet),
            ];
            for plan in [plain, branches].into_iter().chain(others) {
                let shares = [
                    plan.reads_waiting,
                    plan.reads_waiting_for_store,
                    plan.reads_failing,
                    plan.writes_failing,
                ];
                assert!(
                    shares.iter().all(|share| (0.0..=1.0).contains(share)),
                    "{fleet:?}: {plan:?}"
                );
                assert!(plan.calls.is_finite() && plan.calls >= 0.0, "{plan:?}");
            }
            assert!(branches.calls < plain.calls * 1.01, "{plain:?} {branches:?}");
        }
    }

    #[test]
    fn an_outage_is_ridden_out_with_grace() {
        let fleet = Fleet { branches_per_tenant: 0.0, ..Fleet::default() };
        let without = fleet.with_branch_keys();
        assert!(without.reads_failing > 0.8, "{without:?}");
        let with = Fleet { grace: HOUR, ..fleet }.with_branch_keys();
        assert!(with.reads_failing < 0.01 && with.writes_failing < 0.01, "{with:?}");
    }

    #[test]
    fn more_deks_than_the_cache_holds_are_waited_for() {
        let fleet = Fleet { recent_share: 0.0, reads: 1e6, ..Fleet::default() };
        let roomy = Fleet { max_entries: 1e6, ..fleet }.without_branch_keys();
        let tight = Fleet { max_entries: 100.0, ..fleet }.without_branch_keys();
        assert!(roomy.reads_waiting < 0.1 && tight.reads_waiting > 0.9, "{roomy:?} {tight:?}");
    }
}
