//! What the model knows: until when something serves, and what a key that the root wraps has seen.

use std::collections::HashMap;

use waxseal::kek::KekErrorClass;
use waxseal::store::RowId;
use waxseal::{DekId, ErrorKind};

pub(super) const READING: usize = 0;
pub(super) const WRITING: usize = 1;

/// All times are in milliseconds.
pub(super) const MAX_AGE: i64 = 100_000;
pub(super) const REFRESH_AFTER: i64 = 80_000;
pub(super) const ROTATE_AFTER: i64 = 150_000;
pub(super) const REFUSE_FOR: i64 = 5_000;
/// A twentieth of `MAX_AGE`, at most a second.
pub(super) const RETRY_AFTER: i64 = 1_000;
/// How long the claim to a renewal lasts: the retry interval, and the deadline of a call.
pub(super) const CLAIM: i64 = RETRY_AFTER + 5_000;
/// By what is done.
pub(super) const GRACE: [i64; 2] = [60_000, 20_000];

/// The limits of an envelope over branch keys.
pub(super) struct OfEnvelope {
    pub(super) max_age: i64,
    pub(super) grace: [i64; 2],
}

pub(super) const OF_ENVELOPE: [OfEnvelope; 2] = [
    OfEnvelope { max_age: 3_000_000, grace: [600_000; 2] },
    OfEnvelope { max_age: 60_000, grace: [0; 2] },
];

/// What two clocks show: the one since boot, and the one on the wall.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Moment {
    pub(super) boot: i64,
    pub(super) wall: i64,
}

impl Moment {
    pub(super) fn plus(self, ms: i64) -> Self {
        Self { boot: self.boot + ms, wall: self.wall + ms }
    }

    pub(super) fn earlier(self, other: Self) -> Self {
        Self { boot: self.boot.min(other.boot), wall: self.wall.min(other.wall) }
    }

    pub(super) fn is_past(self, deadline: Self) -> bool {
        self.boot >= deadline.boot || self.wall >= deadline.wall
    }

    /// By the clock that went further.
    pub(super) fn since(self, earlier: Self) -> i64 {
        (self.boot - earlier.boot).max(self.wall - earlier.wall)
    }

    pub(super) fn wall_secs(self) -> i64 {
        self.wall.div_euclid(1000)
    }
}

/// A key that the root vouches for.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Name {
    /// A DEK that the root unwraps.
    Dek(DekId),
    /// What new messages of a context have, without branch keys.
    OfContext(usize),
    /// A branch key.
    Row(RowId),
}

/// What one process knows of one key, for reading or for writing.
#[derive(Clone, Default, Debug)]
pub(super) struct Known {
    /// When the root was asked that said yes last.
    pub(super) yes: Option<Moment>,
    /// Earlier times that may still count: a thread remembers what it used last.
    pub(super) earlier: Vec<Moment>,
    /// When it was last renewed in vain, by boot.
    pub(super) failed_at: Option<i64>,
    /// When its source was last known to be out of service, by boot, if it has not answered since.
    pub(super) outage_at: Option<i64>,
    /// When it may have been renewed in vain, by boot, since the request is refused.
    pub(super) refused_at: Option<i64>,
}

impl Known {
    pub(super) fn says_yes(&mut self, asked: Moment, side: usize, now: Moment) {
        self.earlier.extend(self.yes);
        // The clock on the wall may be set back.
        self.earlier.retain(|yes| now.boot < yes.boot + MAX_AGE + GRACE[side]);
        *self = Self {
            yes: Some(asked),
            earlier: std::mem::take(&mut self.earlier),
            ..Self::default()
        };
    }

    pub(super) fn wiped(&self, side: usize) -> Option<Moment> {
        self.yes.map(|yes| yes.plus(MAX_AGE + GRACE[side]))
    }

    pub(super) fn age(&self, now: Moment) -> Option<i64> {
        self.yes.map(|yes| now.since(yes))
    }

    /// Whether one that a thread may remember serves.
    pub(super) fn is_remembered(&self, now: Moment) -> bool {
        self.earlier.iter().any(|yes| now.since(*yes) < MAX_AGE)
    }
}

pub(super) fn is_outage(class: KekErrorClass) -> bool {
    matches!(class, KekErrorClass::Unavailable | KekErrorClass::Throttled)
}

pub(super) fn kind_of(class: KekErrorClass) -> ErrorKind {
    match class {
        KekErrorClass::Unavailable => ErrorKind::Unavailable,
        KekErrorClass::Throttled => ErrorKind::Throttled,
        KekErrorClass::Denied => ErrorKind::Denied,
        KekErrorClass::Invalid => ErrorKind::Invalid,
        _ => ErrorKind::Misconfigured,
    }
}

/// A time that is known, or known to be between two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Between {
    pub(super) earliest: Moment,
    pub(super) latest: Moment,
}

impl Between {
    pub(super) fn at(moment: Moment) -> Self {
        Self { earliest: moment, latest: moment }
    }

    pub(super) fn or(self, other: Self) -> Self {
        let latest = Moment {
            boot: self.latest.boot.max(other.latest.boot),
            wall: self.latest.wall.max(other.latest.wall),
        };
        Self { earliest: self.earliest.earlier(other.earliest), latest }
    }

    pub(super) fn may_be_past(self, now: Moment) -> bool {
        now.is_past(self.earliest)
    }

    pub(super) fn is_past(self, now: Moment) -> bool {
        now.is_past(self.latest)
    }
}

/// A DEK in an envelope.
#[derive(Clone, Debug)]
pub(super) struct Lease {
    pub(super) context: usize,
    /// The key that it came through, and whether as it is for reading or for writing.
    pub(super) name: Name,
    pub(super) through: usize,
    pub(super) expires: Between,
    pub(super) wiped: Between,
    /// When those expire and are wiped that it replaced, and which a thread may remember.
    pub(super) replaced: Vec<(Between, Between)>,
}

impl Lease {
    /// A DEK that the root answered for.
    pub(super) fn of_root(
        context: usize,
        name: Name,
        (through, side): (usize, usize),
        asked: Moment,
    ) -> Self {
        let expires = asked.plus(MAX_AGE);
        let wiped = Between::at(expires.plus(GRACE[side]));
        Self { context, name, through, expires: Between::at(expires), wiped, replaced: Vec::new() }
    }

    /// A DEK of `envelope` that came through a branch key: it ends no later than that one.
    pub(super) fn through(
        context: usize,
        (name, through): (Name, usize),
        known: &Known,
        (envelope, side): (&OfEnvelope, usize),
        asked: Moment,
        now: Moment,
    ) -> Option<Self> {
        let ends = |yes: Moment| {
            let (expires, wiped) = (yes.plus(MAX_AGE), yes.plus(MAX_AGE + GRACE[through]));
            // A stale one is looked at again soon.
            let expires =
                if now.is_past(expires) { now.plus(RETRY_AFTER).earlier(wiped) } else { expires };
            let expires = asked.plus(envelope.max_age).earlier(expires);
            (expires, expires.plus(envelope.grace[side]).earlier(wiped))
        };
        let (expires, wiped) = ends(known.yes?);
        let (mut expires, mut wiped) = (Between::at(expires), Between::at(wiped));
        for yes in &known.earlier {
            let (sooner, sooner_wiped) = ends(*yes);
            expires = expires.or(Between::at(sooner));
            wiped = wiped.or(Between::at(sooner_wiped));
        }
        Some(Self { context, name, through, expires, wiped, replaced: Vec::new() })
    }

    pub(super) fn in_place_of(mut self, before: Option<&Self>, now: Moment) -> Self {
        let ends = |lease: &Self| (lease.expires, lease.wiped);
        let before = before.into_iter().flat_map(|b| b.replaced.iter().copied().chain([ends(b)]));
        self.replaced = before.filter(|(_, wiped)| now.boot < wiped.latest.boot).collect();
        self
    }

    /// Whether it serves, or one does that a thread may remember.
    pub(super) fn may_serve(&self, now: Moment) -> bool {
        let replaced = self.replaced.iter().map(|(expires, _)| expires);
        replaced.chain([&self.expires]).any(|expires| !expires.is_past(now))
    }

    /// When a handle expires that is made now.
    pub(super) fn for_a_handle(&self) -> Between {
        self.replaced.iter().fold(self.expires, |all, (one, _)| all.or(*one))
    }
}

/// The DEK that a context's messages are encrypted with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Own {
    pub(super) id: DekId,
    pub(super) made_at: Moment,
}

pub(super) type Leases = HashMap<(usize, DekId), Lease>;
