//! A million random steps of lifetimes against a simple model, with a clock that the test moves.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::HashSet;
use std::time::Duration;
use waxseal_testing::support;

use support::{block_on, context};
use waxseal::kek::scripted::ScriptedKek;
use waxseal::kek::{KekErrorClass, KekProvider};
use waxseal::{
    Aad, CallPolicy, DekId, EncryptionContext, Envelope, ErrorKind, Limits, ManualClock, inspect,
};

const STEPS: usize = 1_000_000;
const MAX_AGE: u64 = 100_000;
const REFRESH_AFTER: u64 = 80_000;
/// By what is done: see [`READING`] and the others.
const GRACE: [u64; 3] = [60_000, 20_000, 60_000];
const ROTATE_AFTER: u64 = 350_000;
const REFUSE_FOR: u64 = 5_000;
/// A twentieth of `MAX_AGE`, at most a second.
const RETRY_AFTER: u64 = 1_000;
/// How long the claim to a renewal lasts: the retry interval, and the deadline of a call.
const CLAIM: u64 = RETRY_AFTER + 5_000;

/// What is done: reading a message from elsewhere, writing one, reading the first message of the own DEK.
const READING: usize = 0;
const WRITING: usize = 1;
const READING_OWN: usize = 2;

const FAILURES: [Option<KekErrorClass>; 6] = [
    None,
    Some(KekErrorClass::Unavailable),
    Some(KekErrorClass::Throttled),
    Some(KekErrorClass::Denied),
    Some(KekErrorClass::Invalid),
    Some(KekErrorClass::Misconfigured),
];

/// xorshift64*: the same steps in every run of one seed.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}

/// What the model knows of one DEK: when the key service last said yes, and until when its no is remembered.
#[derive(Clone, Copy, Default)]
struct Dek {
    yes_at: Option<u64>,
    no_until: u64,
    no_is_invalid: bool,
    /// When it was last renewed in vain, and whether that was for an outage.
    failed_at: Option<(u64, bool)>,
}

/// The DEK that a context's messages were last encrypted with.
#[derive(Clone)]
struct Own {
    id: DekId,
    made_at: u64,
    first: Vec<u8>,
}

struct World {
    kek: ScriptedKek,
    clock: ManualClock,
    envelope: Envelope,
    contexts: Vec<EncryptionContext>,
    messages: Vec<Vec<u8>>,
    now: u64,
    failure: Option<KekErrorClass>,
    revoked: bool,
    deks: [Vec<Dek>; 3],
    own: Vec<Option<Own>>,
    /// The DEK that was replaced last, and until when a thread that remembers it may use it.
    replaced: Vec<Option<(DekId, u64)>>,
    seen: HashSet<DekId>,
    asked: u64,
    renewed: u64,
}

impl World {
    fn new() -> Self {
        let (kek, clock) = (ScriptedKek::new("kek").unwrap(), ManualClock::new());
        let contexts: Vec<_> = (0..4).map(|i| context(&format!("{i}"))).collect();
        let elsewhere = support::envelope(kek.local());
        let messages = contexts
            .iter()
            .map(|context| block_on(elsewhere.encrypt(context, Aad::empty(), b"x")).unwrap())
            .collect();
        let limits = Limits::default()
            .max_age(Duration::from_millis(MAX_AGE))
            .refresh_after(Duration::from_millis(REFRESH_AFTER))
            .rotate_after(Duration::from_millis(ROTATE_AFTER))
            .stale_if_error_reading(Duration::from_millis(GRACE[0]))
            .stale_if_error_writing(Duration::from_millis(GRACE[1]))
            .denial_ttl(Duration::from_millis(REFUSE_FOR));
        // The circuit breaker has tests of its own; here it stays closed.
        let builder =
            Envelope::builder().wrap_with(kek.clone()).limits(limits).clock(clock.clone());
        let envelope =
            builder.call_policy(CallPolicy::default().breaker_failures(1000)).build().unwrap();
        let deks = std::array::from_fn(|_| vec![Dek::default(); contexts.len()]);
        let (own, replaced) = (vec![None; contexts.len()], vec![None; contexts.len()]);
        Self {
            kek,
            clock,
            envelope,
            contexts,
            messages,
            now: 0,
            failure: None,
            revoked: false,
            deks,
            own,
            replaced,
            seen: HashSet::new(),
            asked: 0,
            renewed: 0,
        }
    }

    /// One operation, held against the model.
    fn operate(&mut self, side: usize, i: usize) {
        let message = match (side, &self.own[i]) {
            (READING_OWN, None) => return,
            (READING_OWN, Some(own)) => &own.first,
            _ => &self.messages[i],
        };
        let before = self.kek.calls();
        let mut written = None;
        let result = if side == WRITING {
            block_on(self.envelope.encrypt(&self.contexts[i], Aad::empty(), b"x"))
                .map(|message| written = Some(message))
        } else {
            block_on(self.envelope.decrypt(&self.contexts[i], Aad::empty(), message)).map(|_| ())
        };
        let after = self.kek.calls();
        let asked = match side {
            WRITING => after.wraps - before.wraps,
            _ => after.unwraps - before.unwraps,
        };
        assert_eq!(after.total() - before.total(), asked, "asked for something else");
        self.asked += asked;

        let (now, failure) = (self.now, self.failure);
        let dek = self.deks[side][i];
        let age = dek.yes_at.map(|at| now - at);
        let outage = matches!(failure, Some(KekErrorClass::Unavailable | KekErrorClass::Throttled));
        let what = format!(
            "at {now}: {side} {i}, age {age:?}, {failure:?}, revoked {}: {result:?}, asked {asked}",
            self.revoked
        );

        // Never more calls than the model allows.
        let young = age.is_some_and(|age| age < REFRESH_AFTER * 9 / 10);
        let most = if young || self.revoked || now < dek.no_until { 0 } else { 1 };
        assert!(asked <= most, "{what}");
        // Never served past a limit, and never refused within it.
        let serves = age.is_some_and(|age| age < MAX_AGE);
        let lately = dek.failed_at.filter(|(at, _)| now < at + RETRY_AFTER);
        let known_outage = lately.is_some_and(|(_, outage)| outage);
        let ridden_out = if asked == 1 { outage } else { known_outage };
        let in_grace = age.is_some_and(|age| age < MAX_AGE + GRACE[side]) && ridden_out;
        let renewed = asked == 1 && failure.is_none();
        // A denial holds for the very call whose renewal was denied.
        let denied = asked == 1 && failure == Some(KekErrorClass::Denied);
        assert_eq!(result.is_ok(), !denied && (serves || in_grace || renewed), "{what}");
        // With nothing at hand, it asks, unless it knows the answer.
        if !serves && !in_grace && !self.revoked && now >= dek.no_until {
            assert_eq!(asked, 1, "{what}");
        }
        // While a failure is fresh, nobody asks again for what serves.
        if (serves && lately.is_some()) || (in_grace && known_outage) {
            assert_eq!(asked, 0, "{what}");
        }
        if let Err(error) = result {
            let expected = match failure {
                _ if now < dek.no_until && dek.no_is_invalid => ErrorKind::Invalid,
                _ if self.revoked || now < dek.no_until => ErrorKind::Denied,
                Some(KekErrorClass::Unavailable) => ErrorKind::Unavailable,
                Some(KekErrorClass::Throttled) => ErrorKind::Throttled,
                Some(KekErrorClass::Denied) => ErrorKind::Denied,
                Some(KekErrorClass::Invalid) => ErrorKind::Invalid,
                Some(KekErrorClass::Misconfigured) => ErrorKind::Misconfigured,
                _ => panic!("{what}"),
            };
            assert_eq!(error.kind(), expected, "{what}");
        }

        if let Some(message) = written {
            self.check_rotation(i, dek, renewed, message, &what);
        }
        let dek = &mut self.deks[side][i];
        if asked == 1 {
            match failure {
                None => *dek = Dek { yes_at: Some(now), ..Dek::default() },
                Some(KekErrorClass::Denied) => {
                    *dek = Dek { no_until: now + REFUSE_FOR, ..Dek::default() };
                    if side == WRITING {
                        self.replaced[i] = None;
                    }
                }
                Some(class) => {
                    dek.failed_at = Some((now, outage));
                    if class == KekErrorClass::Invalid {
                        (dek.no_until, dek.no_is_invalid) = (now + REFUSE_FOR, true);
                    }
                }
            }
        } else if self.revoked && !serves {
            // A revocation is remembered as a denial.
            if now >= dek.no_until {
                (dek.no_until, dek.no_is_invalid) = (now + REFUSE_FOR, false);
            }
        }
    }

    /// Whether a message has the DEK that it should have.
    fn check_rotation(&mut self, i: usize, dek: Dek, renewed: bool, message: Vec<u8>, what: &str) {
        let now = self.now;
        let id = inspect(&message).unwrap().dek_id;
        let is_there = dek.yes_at.is_some_and(|at| now < at + MAX_AGE + GRACE[WRITING]);
        let own = self.own[i].as_ref().filter(|_| is_there);
        let goes_on = own.filter(|own| !renewed || now < own.made_at + ROTATE_AFTER);
        let replaced = self.replaced[i].filter(|(_, until)| !renewed && now < *until);
        if replaced.is_some_and(|(replaced, _)| replaced == id) {
            return;
        }
        if let Some(own) = goes_on {
            assert_eq!(id, own.id, "{what}: another DEK after {} ms", now - own.made_at);
            self.renewed += u64::from(renewed);
            return;
        }
        assert!(renewed && self.seen.insert(id), "{what}: a DEK that was over encrypted");
        let end = dek.yes_at.map_or(0, |at| at + MAX_AGE + GRACE[WRITING]).min(now + CLAIM);
        self.replaced[i] = own.map(|own| (own.id, end));
        self.own[i] = Some(Own { id, made_at: now, first: message });
        // It is there for reading as well, for as long as any other, whatever happens to it in writing.
        self.deks[READING_OWN][i] = Dek { yes_at: Some(now), ..Dek::default() };
    }

    fn forget(&mut self) {
        self.deks.iter_mut().flatten().for_each(|dek| dek.yes_at = None);
        self.replaced.fill(None);
    }

    fn step(&mut self, random: &mut Random) {
        match random.below(1000) {
            0..=899 => {
                let i = usize::try_from(random.below(4)).unwrap();
                let side = match random.below(6) {
                    0 | 1 => WRITING,
                    2 => READING_OWN,
                    _ => READING,
                };
                self.operate(side, i);
            }
            900..=969 => {
                // Mostly a little, now and then past everything.
                let by =
                    if random.below(10) == 0 { random.below(300_000) } else { random.below(8_000) };
                if random.below(10) == 0 {
                    self.clock.set_wall_forward(Duration::from_millis(by));
                    // The clock since boot has seen nothing; bring it along, so that the model needs one time only.
                    self.clock.set_wall_back(Duration::from_millis(by));
                }
                self.clock.advance(Duration::from_millis(by));
                self.now += by;
            }
            970..=994 => {
                // Half of the time all is well.
                let failure = if random.below(2) == 0 { 0 } else { random.below(6) };
                self.failure = FAILURES[usize::try_from(failure).unwrap()];
                self.kek.fail_with(self.failure);
            }
            995 => {
                let i = usize::try_from(random.below(4)).unwrap();
                self.envelope.evict_context(&self.contexts[i]);
                self.deks.iter_mut().for_each(|side| side[i].yes_at = None);
                self.replaced[i] = None;
            }
            996 => {
                self.envelope.revoke_kek(self.kek.id());
                self.revoked = true;
                self.forget();
            }
            997 | 998 => {
                self.envelope.reinstate_kek(self.kek.id());
                self.revoked = false;
                self.deks.iter_mut().flatten().for_each(|dek| dek.no_until = 0);
            }
            _ => {
                self.envelope.evict_all();
                self.forget();
                self.deks.iter_mut().flatten().for_each(|dek| dek.no_until = 0);
            }
        }
    }
}

#[test]
fn nothing_serves_past_a_limit_and_nothing_is_asked_too_often() {
    let mut random = Random(0x5EED);
    let mut world = World::new();
    for _ in 0..STEPS {
        world.step(&mut random);
    }
    assert!(world.asked > 10_000, "the steps reached the key service only {} times", world.asked);
    assert!(world.renewed > 1_000, "a DEK went on only {} times", world.renewed);
    let rotated = world.seen.len();
    assert!(rotated > 1_000, "only {rotated} DEKs were made");
}
