//! Who may call next: a pace for each lane, the places in flight, and those that wait. It knows no timer and no lock:
//! whoever waits looks when it is woken, and at the time that its latest look named.
//!
//! ```text
//!  arrive ──► wait in line ──► look: a turn of the pace and a place ──► call ──► release
//!     │             │ leave: the place in line is gone at once
//!     └─ refused: its turn would come too late
//! ```
//!
//! - A turn is taken by whoever is there when it comes, never ahead of time: who leaves takes no turn along.
//! - Lines are served in order. While callers give up, or one has waited for [`LONG_WAIT`], the newest is served first: who
//!   has waited longest is who leaves next, and serving those in order makes calls for nobody.
//! - A turn is offered to the first in line. If it is not taken up within [`UNANSWERED`], those before whoever looks are
//!   passed over until they look again.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::Duration;

use super::Share;

/// How much is saved up while nobody calls.
pub(super) const BURST: i64 = 250 * MILLISECOND;
/// After how long the newest is served before the one that has waited this long.
pub(super) const LONG_WAIT: i64 = 250 * MILLISECOND;
/// For how long the newest is served first after somebody gave up.
const PRESSED_FOR: i64 = 1000 * MILLISECOND;
/// How long the first in line may leave a turn that was offered.
const UNANSWERED: i64 = 10 * MILLISECOND;
/// How often those further back look whether the first in line is there, ...
const LOOK_EVERY: i64 = 10 * MILLISECOND;
/// ... and how many of them there must be to look less often.
const LOOKS_APART: i64 = MILLISECOND / 5;
const MILLISECOND: i64 = 1_000_000;

/// Both lanes, the lines before them, and the calls in flight. Every time is in nanoseconds.
pub(super) struct Queue {
    lanes: [Lane; 2],
    lines: [Line; 2],
    /// Calls in flight, by when they have ended at the latest.
    in_flight: BTreeMap<(i64, u64), Share>,
    /// With a single place in flight both lanes share it, in turn.
    single: bool,
    served_last: Share,
    /// Those that no timer wakes.
    untimed: BTreeMap<u64, Option<Waker>>,
    next_id: u64,
    /// Wakers that are not needed any more. One may be the last that holds a task, which may be in line itself: whoever holds the lock
    /// must not drop it.
    discarded: Vec<Waker>,
}

/// What a share of the budget allows.
struct Lane {
    pace: Pace,
    most: usize,
    used: usize,
    offer: Option<Offer>,
}

/// A turn that was offered and not taken yet.
#[derive(Clone, Copy)]
struct Offer {
    to: u64,
    /// `i64::MAX` while there is none to take.
    since: i64,
    /// Whether it was woken since something changed.
    told: bool,
}

/// Those that wait for one share, by when they came.
#[derive(Default)]
struct Line {
    present: BTreeMap<u64, Waiter>,
    /// Those that left an offer unanswered: a future that is not polled. They keep their place in line for when they are.
    absent: BTreeMap<u64, Waiter>,
    pressed_until: i64,
}

struct Waiter {
    since: i64,
    latest: i64,
    waker: Option<Waker>,
}

/// A call's place in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ticket {
    lane: Share,
    ends: i64,
    id: u64,
}

/// What a look found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    Enter(Ticket),
    /// Its turn would come too late.
    Refused,
    /// Waits under this number; to look again when woken, and at this time if there is one.
    Wait(u64, Option<i64>),
}

/// What it takes to enter.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    pub(super) share: Share,
    /// Until when it may wait; `None` without a timer: then it waits for a place only, and no pace is kept.
    pub(super) latest: Option<i64>,
    /// How long its call takes at most.
    pub(super) hold: i64,
}

const SHARES: [Share; 2] = [Share::Ordinary, Share::Reserved];

impl Queue {
    pub(super) fn new(per_second: u32, in_flight: u32) -> Self {
        let most = usize::try_from(in_flight).unwrap_or(usize::MAX).max(1);
        let reserved = if most == 1 { 0 } else { (most / 4).max(1) };
        let second = 4_000 * MILLISECOND / i64::from(per_second.max(1));
        let lane = |interval, most| Lane { pace: Pace::new(interval), most, used: 0, offer: None };
        Self {
            lanes: [lane(second / 3, most - reserved), lane(second, reserved)],
            lines: [Line::default(), Line::default()],
            in_flight: BTreeMap::new(),
            single: most == 1,
            served_last: Share::Reserved,
            untimed: BTreeMap::new(),
            next_id: 0,
            discarded: Vec::new(),
        }
    }

    /// What is to be dropped when the lock is free.
    pub(super) fn take_discarded(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.discarded)
    }

    fn lane(&self, of: Share) -> &Lane {
        let [ordinary, reserved] = &self.lanes;
        if of == Share::Ordinary { ordinary } else { reserved }
    }

    fn lane_mut(&mut self, of: Share) -> &mut Lane {
        let [ordinary, reserved] = &mut self.lanes;
        if of == Share::Ordinary { ordinary } else { reserved }
    }

    fn line(&self, of: Share) -> &Line {
        let [ordinary, reserved] = &self.lines;
        if of == Share::Ordinary { ordinary } else { reserved }
    }

    fn line_mut(&mut self, of: Share) -> &mut Line {
        let [ordinary, reserved] = &mut self.lines;
        if of == Share::Ordinary { ordinary } else { reserved }
    }

    /// Somebody comes: enters at once, waits, or is refused since its turn would come too late.
    pub(super) fn arrive(&mut self, now: i64, terms: Terms, woken: &mut Vec<Waker>) -> Look {
        let id = self.next_id;
        self.next_id += 1;
        let Some(latest) = terms.latest else {
            self.untimed.insert(id, None);
            return self.look(now, terms, id, None, woken);
        };
        self.settle(now, None, woken);
        let newest_first = self.line(terms.share).is_newest_first(now);
        let ahead = if newest_first { 0 } else { self.line(terms.share).present.len() };
        if self.turn(now, terms.share, ahead) > latest {
            return Look::Refused;
        }
        self.line_mut(terms.share).present.insert(id, Waiter { since: now, latest, waker: None });
        if newest_first {
            self.refuse_the_hopeless(now, terms.share, woken);
        }
        self.look(now, terms, id, None, woken)
    }

    /// When a share's next turn is with so many ahead, if nobody leaves.
    fn turn(&self, now: i64, share: Share, ahead: usize) -> i64 {
        let of = |lane: Share, ahead: usize| self.lane(lane).pace.turn(now, ahead);
        match share {
            Share::Ordinary => of(Share::Ordinary, ahead),
            // Of four turns that both lanes give, three are ordinary ones.
            Share::Reserved => of(Share::Reserved, ahead / 4).min(of(Share::Ordinary, ahead - ahead / 4)),
        }
    }

    /// With the newest served first, those that came first have all others ahead of them.
    fn refuse_the_hopeless(&mut self, now: i64, share: Share, woken: &mut Vec<Waker>) {
        self.line_mut(share).drop_late(now, woken);
        while let Some((id, latest)) = self.line(share).present.first_key_value().map(|(id, first)| (*id, first.latest))
            && let ahead @ 1.. = self.line(share).present.len() - 1
            && self.turn(now, share, ahead) > latest
        {
            woken.extend(self.line_mut(share).present.remove(&id).and_then(|refused| refused.waker));
        }
    }

    /// Looks whether it is `id`'s turn, and takes it.
    pub(super) fn look(
        &mut self,
        now: i64,
        terms: Terms,
        id: u64,
        waker: Option<&Waker>,
        woken: &mut Vec<Waker>,
    ) -> Look {
        let Terms { share, latest, hold } = terms;
        let Some(latest) = latest else { return self.look_untimed(share, id, waker) };
        let line = self.line_mut(share);
        if let Some(waiter) = line.absent.remove(&id) {
            line.present.insert(id, waiter);
        }
        let Some(waiter) = line.present.get_mut(&id) else { return Look::Refused };
        if now > latest {
            let late = line.present.remove(&id);
            line.pressed(now);
            self.discarded.extend(late.and_then(|waiter| waiter.waker));
            self.settle(now, None, woken);
            return Look::Refused;
        }
        if let Some(waker) = waker
            && !waiter.waker.as_ref().is_some_and(|known| known.will_wake(waker))
        {
            let before = waiter.waker.replace(waker.clone());
            self.discarded.extend(before);
        }
        self.settle(now, Some(id), woken);
        let lanes: &[Share] =
            if share == Share::Reserved { &[Share::Reserved, Share::Ordinary] } else { &[Share::Ordinary] };
        for lane in lanes {
            if self.is_free(*lane, now) && self.may_take(*lane, now, share, id, woken) {
                let entered = self.line_mut(share).present.remove(&id);
                self.discarded.extend(entered.and_then(|waiter| waiter.waker));
                let ticket = self.enter(*lane, share, id, now.saturating_add(hold), Some(now));
                self.settle(now, None, woken);
                return Look::Enter(ticket);
            }
        }
        Look::Wait(id, Some(self.look_again(now, lanes, id).min(latest.saturating_add(1))))
    }

    /// Whoever is first at a place has it: with no timer nobody can tell whether those before are there.
    fn look_untimed(&mut self, share: Share, id: u64, waker: Option<&Waker>) -> Look {
        for lane in [share, Share::Ordinary] {
            if self.has_place(lane) {
                let entered = self.untimed.remove(&id);
                self.discarded.extend(entered.flatten());
                return Look::Enter(self.enter(lane, share, id, i64::MAX, None));
            }
        }
        let before = self.untimed.insert(id, waker.cloned());
        self.discarded.extend(before.flatten());
        Look::Wait(id, None)
    }

    fn enter(&mut self, lane: Share, share: Share, id: u64, ends: i64, paced: Option<i64>) -> Ticket {
        let taken = self.lane_mut(lane);
        taken.used += 1;
        if let Some(now) = paced {
            taken.pace.take(now);
        }
        self.served_last = share;
        self.change_offers(lane, |offer| *offer = None);
        self.in_flight.insert((ends, id), lane);
        Ticket { lane, ends, id }
    }

    /// Whoever waits under `id` goes away.
    pub(super) fn leave(&mut self, now: i64, share: Share, id: u64, woken: &mut Vec<Waker>) {
        let untimed = self.untimed.remove(&id).flatten();
        let line = self.line_mut(share);
        let left = [line.present.remove(&id), line.absent.remove(&id)];
        if left.iter().any(Option::is_some) {
            line.pressed(now);
        }
        self.discarded.extend(left.into_iter().flatten().filter_map(|waiter| waiter.waker).chain(untimed));
        self.settle(now, None, woken);
    }

    /// A call has ended; `unused`: it was never made, and its turn is given back.
    pub(super) fn release(&mut self, now: i64, ticket: Ticket, unused: bool, woken: &mut Vec<Waker>) {
        if self.in_flight.remove(&(ticket.ends, ticket.id)).is_some() {
            self.leave_place(ticket.lane);
        }
        if unused {
            self.lane_mut(ticket.lane).pace.give_back();
        }
        self.settle(now, None, woken);
        woken.extend(self.untimed.values_mut().filter_map(Option::take));
    }

    fn leave_place(&mut self, lane: Share) {
        let left = self.lane_mut(lane);
        left.used = left.used.saturating_sub(1);
        // Whoever is first has waited for a place, and may now wait for its turn.
        self.change_offers(lane, |offer| offer.iter_mut().for_each(|offer| offer.told = false));
    }

    fn change_offers(&mut self, of: Share, change: impl Fn(&mut Option<Offer>)) {
        for lane in SHARES {
            if self.single || lane == of {
                change(&mut self.lane_mut(lane).offer);
            }
        }
    }

    /// Takes back the places of calls that must have ended, and sees to it that the first of each line knows of its turn.
    fn settle(&mut self, now: i64, looking: Option<u64>, woken: &mut Vec<Waker>) {
        // A call whose future is not polled holds its place in vain, and no longer than it could have taken.
        while let Some(((ends, _), lane)) = self.in_flight.first_key_value().map(|(key, lane)| (*key, *lane))
            && ends < now
        {
            self.in_flight.pop_first();
            self.leave_place(lane);
        }
        for line in &mut self.lines {
            if line.oldest().is_some_and(|since| since.saturating_add(LONG_WAIT) < now) {
                line.pressed(now);
            }
        }
        for lane in SHARES {
            let Some((share, first)) = self.first(lane, now) else {
                self.lane_mut(lane).offer = None;
                continue;
            };
            let known = self.lane(lane).offer.filter(|offer| offer.to == first);
            // Its time counts from when there was a turn for it to take.
            let since = match known {
                Some(offer) if offer.since < i64::MAX => offer.since,
                _ if self.is_free(lane, now) => now,
                _ => i64::MAX,
            };
            self.lane_mut(lane).offer = Some(Offer { to: first, since, told: true });
            let is_told = known.is_some_and(|offer| offer.told && offer.since == since);
            if !is_told && looking != Some(first) {
                let waiter = self.line(share).present.get(&first);
                woken.extend(waiter.and_then(|waiter| waiter.waker.clone()));
            }
        }
    }

    fn has_place(&self, lane: Share) -> bool {
        if self.single {
            return self.lanes.iter().all(|lane| lane.used == 0);
        }
        let lane = self.lane(lane);
        lane.used < lane.most
    }

    fn is_free(&self, lane: Share, now: i64) -> bool {
        self.has_place(lane)
            && self.lane(lane).pace.is_free(now)
            && !(self.single && lane == Share::Reserved && self.is_ordinary_ones_turn(now))
    }

    /// Of a single place: whose turn it is when both wait.
    fn is_ordinary_ones_turn(&self, now: i64) -> bool {
        let waits = |share: Share| !self.line(share).present.is_empty();
        waits(Share::Ordinary)
            && self.lane(Share::Ordinary).pace.is_free(now)
            && (self.served_last == Share::Reserved || !waits(Share::Reserved))
    }

    /// The lines that a lane serves, the first one first: its own, and the ordinary lane the reserved line where it has nobody of its own.
    fn lines_of(&self, lane: Share, now: i64) -> &'static [Share] {
        match lane {
            Share::Reserved => &[Share::Reserved],
            Share::Ordinary if self.single && self.lane(Share::Reserved).pace.is_free(now) => {
                if self.served_last == Share::Ordinary {
                    &[Share::Reserved, Share::Ordinary]
                } else {
                    &[Share::Ordinary, Share::Reserved]
                }
            }
            Share::Ordinary => &[Share::Ordinary, Share::Reserved],
        }
    }

    fn first(&self, lane: Share, now: i64) -> Option<(Share, u64)> {
        self.lines_of(lane, now).iter().find_map(|share| Some((*share, self.line(*share).first(now)?)))
    }

    /// Whether `id` is the first, or all before it let an offer go by.
    fn may_take(&mut self, lane: Share, now: i64, share: Share, id: u64, woken: &mut Vec<Waker>) -> bool {
        let Some((_, first)) = self.first(lane, now) else { return false };
        if first == id {
            return true;
        }
        let offer = self.lane(lane).offer;
        if offer.is_none_or(|offer| offer.to != first || offer.since.saturating_add(UNANSWERED) > now) {
            return false;
        }
        for before in self.lines_of(lane, now) {
            if *before == share {
                self.line_mut(share).pass_over(now, Some(id), woken);
                break;
            }
            self.line_mut(*before).pass_over(now, None, woken);
        }
        true
    }

    /// When `id`, which waits, should look again though nobody wakes it.
    fn look_again(&self, now: i64, lanes: &[Share], id: u64) -> i64 {
        let waiting: usize = self.lines.iter().map(|line| line.present.len()).sum();
        let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
        let mut when = i64::MAX;
        for lane in lanes {
            let is_first = self.first(*lane, now).is_some_and(|(_, first)| first == id);
            let place = match self.has_place(*lane) {
                true => now,
                // Whoever ends wakes the first; who does not end is not waited for.
                false => self.in_flight.first_key_value().map_or(i64::MAX, |((ends, _), _)| ends.saturating_add(1)),
            };
            let turn = place.max(self.lane(*lane).pace.turn(now, 0));
            when = when.min(match is_first && turn > now {
                true => turn,
                false => now.saturating_add(LOOK_EVERY.max(waiting.saturating_mul(LOOKS_APART))),
            });
        }
        when
    }
}

impl Line {
    fn pressed(&mut self, now: i64) {
        self.pressed_until = now.saturating_add(PRESSED_FOR);
    }

    fn is_newest_first(&self, now: i64) -> bool {
        now < self.pressed_until
    }

    /// When the one came that has waited longest.
    fn oldest(&self) -> Option<i64> {
        let first = |waiters: &BTreeMap<u64, Waiter>| waiters.first_key_value().map(|(_, waiter)| waiter.since);
        first(&self.present).into_iter().chain(first(&self.absent)).min()
    }

    fn first(&self, now: i64) -> Option<u64> {
        let first = match self.is_newest_first(now) {
            true => self.present.last_key_value(),
            false => self.present.first_key_value(),
        };
        first.map(|(id, _)| *id)
    }

    /// All before `id`, or all, are absent until they look again, and are woken to do so.
    fn pass_over(&mut self, now: i64, id: Option<u64>, woken: &mut Vec<Waker>) {
        let mut before = match id {
            None => std::mem::take(&mut self.present),
            Some(id) if self.is_newest_first(now) => self.present.split_off(&id.saturating_add(1)),
            Some(id) => {
                let rest = self.present.split_off(&id);
                std::mem::replace(&mut self.present, rest)
            }
        };
        woken.extend(before.values().filter_map(|waiter| waiter.waker.clone()));
        self.absent.append(&mut before);
        self.drop_late(now, woken);
    }

    /// Forgets those absent whose time is over, from the oldest on.
    fn drop_late(&mut self, now: i64, woken: &mut Vec<Waker>) {
        while let Some(oldest) = self.absent.first_entry()
            && oldest.get().latest < now
        {
            woken.extend(oldest.remove().waker);
        }
    }
}

/// The generic cell rate algorithm.
struct Pace {
    /// Between two calls.
    interval: i64,
    /// When the next call would be if all had kept the interval.
    next: i64,
}

impl Pace {
    fn new(interval: i64) -> Self {
        Self { interval, next: i64::MIN }
    }

    fn is_free(&self, now: i64) -> bool {
        self.next <= now
    }

    /// When the turn is that comes after `ahead` others.
    fn turn(&self, now: i64, ahead: usize) -> i64 {
        let ahead = i64::try_from(ahead).unwrap_or(i64::MAX).saturating_mul(self.interval);
        self.next.max(now.saturating_sub(BURST)).saturating_add(ahead)
    }

    fn take(&mut self, now: i64) {
        self.next = self.turn(now, 1);
    }

    fn give_back(&mut self) {
        self.next = self.next.saturating_sub(self.interval);
    }
}

pub(super) fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeSet, HashMap};
    use std::sync::{Arc, Mutex};
    use std::task::Wake;

    use super::*;

    const SECOND: i64 = 1_000 * MILLISECOND;
    const START: i64 = 1_000 * SECOND;
    const FOR_EVER: i64 = i64::MAX / 2;

    fn ordinary(latest: i64) -> Terms {
        Terms { share: Share::Ordinary, latest: Some(latest), hold: FOR_EVER }
    }

    fn reserved(latest: i64) -> Terms {
        Terms { share: Share::Reserved, ..ordinary(latest) }
    }

    /// Who arrives at `now` and enters at once.
    fn enters(queue: &mut Queue, now: i64, terms: Terms) -> Option<Ticket> {
        match queue.arrive(now, terms, &mut Vec::new()) {
            Look::Enter(ticket) => Some(ticket),
            Look::Wait(id, _) => {
                queue.leave(now, terms.share, id, &mut Vec::new());
                None
            }
            Look::Refused => None,
        }
    }

    #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
    enum Event {
        Done(usize),
        Look(usize),
        Arrives(usize),
        Leaves(usize),
    }

    /// Callers of a queue, in a time of their own.
    struct Scene {
        queue: Queue,
        now: i64,
        events: BTreeSet<(i64, Event)>,
        callers: Vec<Caller>,
        woken: Arc<Mutex<Vec<usize>>>,
        /// How long a call takes.
        service: i64,
        entered: Vec<usize>,
        /// Whether the queue does not hear of those that leave.
        stays: bool,
    }

    #[derive(Clone, Copy)]
    struct Caller {
        share: Share,
        /// What the queue is told.
        deadline: i64,
        /// Whether its future is polled after the first time.
        polled: bool,
        id: Option<u64>,
        waits: bool,
        outcome: Option<Outcome>,
        ticket: Option<Ticket>,
    }

    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Outcome {
        Served(i64),
        Left,
        Refused(i64),
    }

    struct Bell(usize, Arc<Mutex<Vec<usize>>>);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            self.1.lock().unwrap().push(self.0);
        }
    }

    impl Scene {
        fn new(per_second: u32, in_flight: u32, service: i64) -> Self {
            let queue = Queue::new(per_second, in_flight);
            let (events, callers, woken) = (BTreeSet::new(), Vec::new(), Arc::default());
            Self { queue, now: START, events, callers, woken, service, entered: Vec::new(), stays: false }
        }

        /// One who comes `at`, tells the queue of one patience and leaves after another.
        fn caller(&mut self, at: i64, share: Share, told: i64, patience: i64) -> usize {
            let (n, at) = (self.callers.len(), START + at);
            let caller =
                Caller { share, deadline: at + told, polled: true, id: None, waits: true, outcome: None, ticket: None };
            self.callers.push(caller);
            self.events.insert((at, Event::Arrives(n)));
            self.events.insert((at + patience, Event::Leaves(n)));
            n
        }

        fn run(&mut self) {
            while let Some((now, event)) = self.events.pop_first() {
                self.now = now;
                let mut woken = Vec::new();
                let (Event::Done(n) | Event::Look(n) | Event::Arrives(n) | Event::Leaves(n)) = event;
                let caller = self.callers[n];
                let terms = Terms { share: caller.share, latest: Some(caller.deadline), hold: FOR_EVER };
                match event {
                    Event::Arrives(_) => {
                        let mut look = self.queue.arrive(now, terms, &mut woken);
                        if let Look::Wait(id, _) = look {
                            self.callers[n].id = Some(id);
                            look = self.look(n, terms, id, &mut woken);
                        }
                        self.found(n, look);
                    }
                    Event::Look(_) if caller.polled && caller.waits => {
                        let look = self.look(n, terms, caller.id.unwrap(), &mut woken);
                        self.found(n, look);
                    }
                    Event::Look(_) => {}
                    Event::Leaves(_) if caller.outcome.is_some() => {}
                    Event::Leaves(_) => {
                        self.callers[n].outcome = Some(Outcome::Left);
                        // What was begun takes its time, whoever waits.
                        if caller.waits && !self.stays {
                            self.callers[n].waits = false;
                            self.queue.leave(now, caller.share, caller.id.unwrap(), &mut woken);
                        }
                    }
                    Event::Done(_) => {
                        self.queue.release(now, caller.ticket.unwrap(), false, &mut woken);
                        self.callers[n].outcome.get_or_insert(Outcome::Served(now - START));
                    }
                }
                woken.into_iter().for_each(Waker::wake);
                for woken in std::mem::take(&mut *self.woken.lock().unwrap()) {
                    // A task is run some microseconds after it was woken.
                    self.events.insert((now + 20_000, Event::Look(woken)));
                }
            }
        }

        fn look(&mut self, n: usize, terms: Terms, id: u64, woken: &mut Vec<Waker>) -> Look {
            let waker = Waker::from(Arc::new(Bell(n, self.woken.clone())));
            self.queue.look(self.now, terms, id, Some(&waker), woken)
        }

        fn found(&mut self, n: usize, look: Look) {
            match look {
                Look::Enter(ticket) => {
                    (self.callers[n].ticket, self.callers[n].waits) = (Some(ticket), false);
                    self.entered.push(n);
                    self.events.insert((self.now + self.service, Event::Done(n)));
                }
                Look::Refused => {
                    self.callers[n].waits = false;
                    self.callers[n].outcome.get_or_insert(Outcome::Refused(self.now - START));
                }
                Look::Wait(_, again) => {
                    // Timers have a grain of a millisecond.
                    let again = (again.unwrap() / MILLISECOND + 1) * MILLISECOND;
                    self.events.insert((again, Event::Look(n)));
                }
            }
        }

        fn served(&self, from: i64, to: i64) -> usize {
            let served =
                |caller: &&Caller| matches!(caller.outcome, Some(Outcome::Served(at)) if (from..to).contains(&at));
            self.callers.iter().filter(served).count()
        }

        fn is_empty(&self) -> bool {
            let lines = self.queue.lines.iter().all(|line| line.present.is_empty() && line.absent.is_empty());
            lines && self.queue.in_flight.is_empty() && self.queue.lanes.iter().all(|lane| lane.used == 0)
        }
    }

    #[test]
    fn calls_keep_the_pace_after_the_burst() {
        let mut scene = Scene::new(100, 1000, MILLISECOND);
        for _ in 0..200 {
            scene.caller(0, Share::Ordinary, 10 * SECOND, 20 * SECOND);
        }
        scene.run();
        // 75 a second for opening: 19 are saved up.
        assert_eq!(scene.served(0, 5 * MILLISECOND), 19);
        assert!((93..=95).contains(&scene.served(0, SECOND)), "{}", scene.served(0, SECOND));
        assert_eq!(scene.served(0, 3 * SECOND), 200);
        assert!(scene.is_empty());
    }

    #[test]
    fn turns_come_in_order_while_nobody_waits_for_long() {
        let mut scene = Scene::new(100, 1000, MILLISECOND);
        for n in 0..34 {
            scene.caller(n, Share::Ordinary, 10 * SECOND, 20 * SECOND);
        }
        scene.run();
        assert_eq!(scene.entered, (0..34).collect::<Vec<_>>());
    }

    #[test]
    fn one_whose_turn_comes_too_late_is_refused_at_once() {
        let mut scene = Scene::new(100, 1000, MILLISECOND);
        for _ in 0..200 {
            scene.caller(0, Share::Ordinary, SECOND, 20 * SECOND);
        }
        scene.run();
        let refused = scene.callers.iter().filter(|caller| caller.outcome == Some(Outcome::Refused(0))).count();
        let served = scene.served(0, 2 * SECOND);
        assert!((93..=95).contains(&served), "{served}");
        assert!(refused >= 200 - 95 && refused + served >= 199, "{refused} of 200, {served} served");
    }

    #[test]
    fn who_leaves_takes_no_turn_along() {
        let mut scene = Scene::new(4, 4, MILLISECOND);
        for _ in 0..30 {
            scene.caller(0, Share::Ordinary, 5 * SECOND, 200 * MILLISECOND);
        }
        let last = scene.caller(SECOND, Share::Ordinary, 5 * SECOND, 5 * SECOND);
        scene.run();
        assert!(matches!(scene.callers[last].outcome, Some(Outcome::Served(at)) if at < SECOND + 10 * MILLISECOND));
        assert!(scene.is_empty());
    }

    /// At `load` percent of the pace for ten seconds, then half the pace: what was served of what could have been, and what was not
    /// served of what came when the load had fallen for a second.
    fn goodput(
        (per_second, in_flight): (u32, u32),
        load: i64,
        service: i64,
        told: i64,
        patience: i64,
        stays: bool,
    ) -> (f64, usize) {
        const PACE: i64 = 75;
        let mut scene = Scene::new(per_second, in_flight, service);
        let mut random = 1_u64;
        let (mut at, mut after) = (0, Vec::new());
        while at < 15 * SECOND {
            let falls = at >= 10 * SECOND;
            let interval = SECOND * 100 / (PACE * if falls { 50 } else { load });
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Evenly spread around the mean.
            at += i64::try_from(random >> 33).unwrap() % (2 * interval);
            let caller = scene.caller(at, Share::Ordinary, told, patience);
            if at > 11 * SECOND {
                after.push(caller);
            }
        }
        scene.stays = stays;
        scene.run();
        let share = scene.served(SECOND, 10 * SECOND) as f64 / (PACE * 9) as f64;
        let lost = after.iter().filter(|n| !matches!(scene.callers[**n].outcome, Some(Outcome::Served(_))));
        (share, lost.count())
    }

    #[test]
    fn under_overload_the_calls_that_the_pace_allows_are_made_for_callers_that_wait_for_them() {
        for load in [110, 150, 300] {
            for service in [5 * MILLISECOND, 80 * MILLISECOND] {
                let short = [service * 5 / 4 + 10 * MILLISECOND, 2 * service + 10 * MILLISECOND];
                for patience in short.into_iter().chain([SECOND / 2, SECOND, 30 * SECOND]) {
                    // What the queue knows: how long they wait for their turn; the longest that anybody waits, and when they
                    // leave; or not even that.
                    let told = (patience - service).min(5 * SECOND);
                    for (told, stays) in [(told, false), (5 * SECOND, false), (5 * SECOND, true)] {
                        let is_short = patience < SECOND / 4;
                        if is_short && (stays || (load < 150 && told == 5 * SECOND)) {
                            // With as little patience as the pace has between two calls, no order of unknown callers serves all.
                            continue;
                        }
                        let (share, lost) = goodput((100, 64), load, service, told, patience, stays);
                        let case = format!("load {load}, service {service}, patience {patience}, {told} {stays}");
                        assert!(share >= 0.9, "{case}: {share:.2} of the pace");
                        assert!(lost == 0, "{case}: {lost} lost after the load had fallen");
                    }
                }
            }
        }
    }

    #[test]
    fn under_overload_no_place_in_flight_is_wasted_on_callers_that_are_about_to_leave() {
        // Six places of 80 ms: 75 a second.
        for load in [150, 300] {
            for patience in [130 * MILLISECOND, 200 * MILLISECOND, SECOND / 2, SECOND, 30 * SECOND] {
                let (share, lost) = goodput((10_000, 8), load, 80 * MILLISECOND, 5 * SECOND, patience, false);
                println!("load {load}, patience {patience}: {share:.2}, {lost} lost");
                assert!(share >= 0.9 && lost == 0, "load {load}, patience {patience}: {share:.2}, {lost} lost");
            }
        }
    }

    #[test]
    fn those_that_are_not_polled_hold_up_others_for_some_milliseconds_only() {
        for (per_second, in_flight) in [(100, 1000), (100_000, 16)] {
            let mut scene = Scene::new(per_second, in_flight, 5 * MILLISECOND);
            for _ in 0..150 {
                let n = scene.caller(0, Share::Ordinary, 5 * SECOND, 6 * SECOND);
                scene.callers[n].polled = false;
            }
            let others: Vec<_> =
                (1..20).map(|n| scene.caller(n * 50 * MILLISECOND, Share::Ordinary, 5 * SECOND, 6 * SECOND)).collect();
            scene.run();
            for n in others {
                let came = scene.callers[n].deadline - 5 * SECOND - START;
                let Some(Outcome::Served(at)) = scene.callers[n].outcome else { panic!("not served") };
                assert!(at - came < 75 * MILLISECOND, "{} ms", (at - came) / MILLISECOND);
            }
        }
    }

    #[test]
    fn a_call_that_is_not_polled_keeps_its_place_no_longer_than_it_could_have_taken() {
        let (mut queue, terms) = (Queue::new(1000, 2), Terms { hold: SECOND, ..ordinary(START + 5 * SECOND) });
        assert!(enters(&mut queue, START, terms).is_some());
        assert!(enters(&mut queue, START + SECOND / 2, terms).is_none());
        let ticket = enters(&mut queue, START + SECOND + 1, terms).unwrap();
        queue.release(START + 2 * SECOND, ticket, false, &mut Vec::new());
        assert_eq!(queue.lane(Share::Ordinary).used, 0);
    }

    #[test]
    fn a_turn_that_was_not_used_is_given_back() {
        let mut queue = Queue::new(4, 64);
        for _ in 0..10 {
            let ticket = enters(&mut queue, START, ordinary(START + SECOND)).unwrap();
            queue.release(START, ticket, true, &mut Vec::new());
        }
        let ticket = enters(&mut queue, START, ordinary(START + SECOND)).unwrap();
        queue.release(START, ticket, false, &mut Vec::new());
        assert!(enters(&mut queue, START + 1, ordinary(START + SECOND / 10)).is_none());
    }

    #[test]
    fn the_reserved_share_has_its_own_lane_and_what_the_ordinary_one_leaves() {
        let mut scene = Scene::new(1000, 64, 5 * MILLISECOND);
        for _ in 0..3000 {
            scene.caller(0, Share::Reserved, 30 * SECOND, 40 * SECOND);
        }
        scene.run();
        assert!(scene.served(0, 3 * SECOND) >= 2950, "{} in three seconds", scene.served(0, 3 * SECOND));

        // A flood of messages to open, at a key service that hangs.
        let mut queue = Queue::new(1000, 8);
        let flood = (0..20).filter(|_| enters(&mut queue, START, ordinary(START + SECOND)).is_some()).count();
        let sealing = (0..20).filter(|_| enters(&mut queue, START, reserved(START + SECOND)).is_some()).count();
        assert_eq!((flood, sealing), (6, 2));
        // One of what is sealed leaves opening its share.
        let mut scene = Scene::new(100, 64, MILLISECOND);
        for n in 0..500 {
            scene.caller(n, Share::Reserved, 5 * SECOND, 6 * SECOND);
        }
        let reads: Vec<_> =
            (0..60).map(|n| scene.caller(SECOND + n * SECOND / 60, Share::Ordinary, SECOND / 5, SECOND)).collect();
        scene.run();
        for n in reads {
            assert!(matches!(scene.callers[n].outcome, Some(Outcome::Served(_))), "{:?}", scene.callers[n].outcome);
        }
    }

    #[test]
    fn one_who_waited_for_a_place_hears_that_it_now_waits_for_its_turn() {
        for (per_second, in_flight) in [(1, 1), (2, 2)] {
            let mut scene = Scene::new(per_second, in_flight, 5 * MILLISECOND);
            let callers: Vec<_> = (0..3).map(|_| scene.caller(0, Share::Ordinary, 5 * SECOND, 6 * SECOND)).collect();
            scene.run();
            for n in callers {
                let outcome = scene.callers[n].outcome;
                assert!(matches!(outcome, Some(Outcome::Served(at)) if at < 3 * SECOND), "{outcome:?}");
            }
        }
    }

    #[test]
    fn with_one_call_in_flight_or_one_a_second_both_shares_are_served() {
        for (per_second, in_flight) in [(1, 1), (1, 64), (1000, 1), (2, 2), (3, 3)] {
            let mut scene = Scene::new(per_second, in_flight, 100 * MILLISECOND);
            let mut of = HashMap::new();
            for n in 0..200 {
                for share in [Share::Ordinary, Share::Reserved] {
                    of.insert(scene.caller(n * SECOND / 20, share, 5 * SECOND, 6 * SECOND), share);
                }
            }
            scene.run();
            let served = |share| {
                let of_share = scene.callers.iter().enumerate().filter(|(n, _)| of[n] == share);
                of_share.filter(|(_, caller)| matches!(caller.outcome, Some(Outcome::Served(_)))).count()
            };
            let (ordinary, sealing) = (served(Share::Ordinary), served(Share::Reserved));
            let case = format!("{per_second} a second, {in_flight} in flight: {ordinary} and {sealing}");
            let all = f64::from(per_second).min(f64::from(in_flight) * 10.0).min(40.0) * 10.0;
            assert!((ordinary + sealing) as f64 >= 0.9 * all, "{case}");
            assert!(ordinary * 5 >= (ordinary + sealing) && sealing * 5 >= (ordinary + sealing), "{case}");
            assert!(scene.is_empty());
        }
    }
}
