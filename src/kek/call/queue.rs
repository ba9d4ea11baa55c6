//! Decides which caller may call next: a pace for each lane, permits for the calls in flight, and
//! the waiting callers. The queue knows no timer and no lock. A caller looks when it is woken, and
//! at the time that its latest look returned.
//!
//! ```text
//!  arrive ──► wait in line ──► look: a turn of the pace and a permit ──► call ──► release
//!     │             │ leave: the position in line is free at once
//!     └─ refused: its turn would come too late
//! ```
//!
//! - A turn is taken when it comes, never ahead of time. A caller that leaves takes no turn with
//!   it.
//! - Lines are served in order. Under overload, when callers give up or one has waited for
//!   [`LONG_WAIT`], the newest is served first. The caller that has waited longest is the next to
//!   give up, so calls in order would be wasted.
//! - A turn is offered to the first in line. If the first does not take it within [`UNANSWERED`],
//!   the callers ahead of the one that looks are passed over until they look again.
#![forbid(unsafe_code)]

mod line;
mod pace;

use std::collections::BTreeMap;
use std::task::Waker;
use std::time::Duration;

use super::Lane;
use line::{Line, Waiter};
use pace::Pace;

/// How much of the pace is saved up while there are no calls.
pub(super) const BURST: i64 = 250 * MILLISECOND;
/// A caller that has waited this long is a sign of overload.
pub(super) const LONG_WAIT: i64 = 250 * MILLISECOND;
/// How long the first in line may leave an offered turn unanswered.
const UNANSWERED: i64 = 10 * MILLISECOND;
/// How often a caller further back looks whether the first in line takes its turn.
const LOOK_EVERY: i64 = 10 * MILLISECOND;
/// The shortest mean time between two such looks of all callers together.
const LOOKS_APART: i64 = MILLISECOND / 5;
const MILLISECOND: i64 = 1_000_000;

/// Holds both lanes, the line of each, and the calls in flight. Every time is in nanoseconds.
pub(super) struct Queue {
    lanes: [LaneState; 2],
    lines: [Line; 2],
    /// Calls in flight, by the latest time at which they have ended.
    in_flight: BTreeMap<(i64, u64), Lane>,
    /// There is a single permit, which the lanes use in turn.
    single: bool,
    served_last: Lane,
    /// Callers without a timer.
    untimed: BTreeMap<u64, Option<Waker>>,
    next_id: u64,
    /// Wakers that are no longer needed. They must not be dropped under the lock: one may be the
    /// last owner of a task that is in line itself.
    discarded: Vec<Waker>,
}

/// What one lane of the budget allows and uses.
struct LaneState {
    pace: Pace,
    most: usize,
    used: usize,
    offer: Option<Offer>,
}

/// A turn that was offered and is not taken yet.
#[derive(Clone, Copy)]
struct Offer {
    to: u64,
    /// `i64::MAX` while there is no turn to take.
    since: i64,
    /// Whether it was woken since something changed.
    notified: bool,
}

/// The permit of one call in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Ticket {
    lane: Lane,
    ends: i64,
    id: u64,
}

/// The result of a look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Look {
    Enter(Ticket),
    /// The turn would come too late.
    Refused,
    /// The caller waits under this id. It looks again when it is woken, and at this time if one is
    /// given.
    Wait(u64, Option<i64>),
}

/// The conditions of one caller.
#[derive(Clone, Copy)]
pub(super) struct Terms {
    pub(super) line: Lane,
    /// The latest time until which the caller may wait. `None` without a timer: then it waits only
    /// for a permit, and no pace applies.
    pub(super) latest: Option<i64>,
    /// The longest time that its call takes.
    pub(super) hold: i64,
}

const LANES: [Lane; 2] = [Lane::Ordinary, Lane::Reserved];

impl Queue {
    pub(super) fn new(per_second: u32, in_flight: u32) -> Self {
        let most = usize::try_from(in_flight).unwrap_or(usize::MAX).max(1);
        let reserved = if most == 1 { 0 } else { (most / 4).max(1) };
        let second = 4_000 * MILLISECOND / i64::from(per_second.max(1));
        let lane =
            |interval, most| LaneState { pace: Pace::new(interval), most, used: 0, offer: None };
        Self {
            lanes: [lane(second / 3, most - reserved), lane(second, reserved)],
            lines: [Line::default(), Line::default()],
            in_flight: BTreeMap::new(),
            single: most == 1,
            served_last: Lane::Reserved,
            untimed: BTreeMap::new(),
            next_id: 0,
            discarded: Vec::new(),
        }
    }

    /// Returns what the caller has to drop after releasing the lock.
    pub(super) fn take_discarded(&mut self) -> Vec<Waker> {
        std::mem::take(&mut self.discarded)
    }

    fn lane(&self, of: Lane) -> &LaneState {
        let [ordinary, reserved] = &self.lanes;
        if of == Lane::Ordinary { ordinary } else { reserved }
    }

    fn lane_mut(&mut self, of: Lane) -> &mut LaneState {
        let [ordinary, reserved] = &mut self.lanes;
        if of == Lane::Ordinary { ordinary } else { reserved }
    }

    fn line(&self, of: Lane) -> &Line {
        let [ordinary, reserved] = &self.lines;
        if of == Lane::Ordinary { ordinary } else { reserved }
    }

    fn line_mut(&mut self, of: Lane) -> &mut Line {
        let [ordinary, reserved] = &mut self.lines;
        if of == Lane::Ordinary { ordinary } else { reserved }
    }

    /// Adds a caller. It enters at once, waits, or is refused because its turn would come too late.
    pub(super) fn arrive(&mut self, now: i64, terms: Terms, woken: &mut Vec<Waker>) -> Look {
        let id = self.next_id;
        self.next_id += 1;
        let Some(latest) = terms.latest else {
            self.untimed.insert(id, None);
            return self.look(now, terms, id, None, woken);
        };
        self.settle(now, None, woken);
        let newest_first = self.line(terms.line).is_newest_first(now);
        let ahead = if newest_first { 0 } else { self.line(terms.line).present.len() };
        if self.turn(now, terms.line, ahead) > latest {
            return Look::Refused;
        }
        self.line_mut(terms.line).present.insert(id, Waiter { since: now, latest, waker: None });
        if newest_first {
            self.refuse_late(now, terms.line, woken);
        }
        self.look(now, terms, id, None, woken)
    }

    /// Returns the time of a line's next turn with this many callers ahead, if none of them leaves.
    fn turn(&self, now: i64, line: Lane, ahead: usize) -> i64 {
        let of = |lane: Lane, ahead: usize| self.lane(lane).pace.turn(now, ahead);
        match line {
            Lane::Ordinary => of(Lane::Ordinary, ahead),
            // Three of four turns are in the ordinary lane.
            Lane::Reserved => {
                of(Lane::Reserved, ahead / 4).min(of(Lane::Ordinary, ahead - ahead / 4))
            }
        }
    }

    /// Refuses callers whose turn would come too late. While the newest is served first, the oldest
    /// has all others ahead of it.
    fn refuse_late(&mut self, now: i64, line: Lane, woken: &mut Vec<Waker>) {
        self.line_mut(line).drop_late(now, woken);
        while let Some((id, latest)) =
            self.line(line).present.first_key_value().map(|(id, first)| (*id, first.latest))
            && let ahead @ 1.. = self.line(line).present.len() - 1
            && self.turn(now, line, ahead) > latest
        {
            woken.extend(self.line_mut(line).present.remove(&id).and_then(|refused| refused.waker));
        }
    }

    /// Takes the turn if it belongs to `id`.
    pub(super) fn look(
        &mut self,
        now: i64,
        terms: Terms,
        id: u64,
        waker: Option<&Waker>,
        woken: &mut Vec<Waker>,
    ) -> Look {
        let Terms { line, latest, hold } = terms;
        let Some(latest) = latest else { return self.look_untimed(line, id, waker) };
        let waiting = self.line_mut(line);
        if let Some(waiter) = waiting.absent.remove(&id) {
            waiting.present.insert(id, waiter);
        }
        let Some(waiter) = waiting.present.get_mut(&id) else { return Look::Refused };
        if now > latest {
            let late = waiting.present.remove(&id);
            waiting.overloaded(now);
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
        let lanes: &[Lane] = if line == Lane::Reserved {
            &[Lane::Reserved, Lane::Ordinary]
        } else {
            &[Lane::Ordinary]
        };
        for lane in lanes {
            if self.is_free(*lane, now) && self.may_take(*lane, now, line, id, woken) {
                let entered = self.line_mut(line).present.remove(&id);
                self.discarded.extend(entered.and_then(|waiter| waiter.waker));
                let ticket = self.enter(*lane, line, id, now.saturating_add(hold), Some(now));
                self.settle(now, None, woken);
                return Look::Enter(ticket);
            }
        }
        Look::Wait(id, Some(self.look_again(now, lanes, id).min(latest.saturating_add(1))))
    }

    /// Takes any free permit. Without a timer a caller cannot know whether those ahead are still
    /// polled.
    fn look_untimed(&mut self, line: Lane, id: u64, waker: Option<&Waker>) -> Look {
        for lane in [line, Lane::Ordinary] {
            if self.has_permit(lane) {
                let entered = self.untimed.remove(&id);
                self.discarded.extend(entered.flatten());
                return Look::Enter(self.enter(lane, line, id, i64::MAX, None));
            }
        }
        let before = self.untimed.insert(id, waker.cloned());
        self.discarded.extend(before.flatten());
        Look::Wait(id, None)
    }

    fn enter(&mut self, lane: Lane, line: Lane, id: u64, ends: i64, paced: Option<i64>) -> Ticket {
        let taken = self.lane_mut(lane);
        taken.used += 1;
        if let Some(now) = paced {
            taken.pace.take(now);
        }
        self.served_last = line;
        self.change_offers(lane, |offer| *offer = None);
        self.in_flight.insert((ends, id), lane);
        Ticket { lane, ends, id }
    }

    /// Removes the caller that waits under `id`.
    pub(super) fn leave(&mut self, now: i64, line: Lane, id: u64, woken: &mut Vec<Waker>) {
        let untimed = self.untimed.remove(&id).flatten();
        let waiting = self.line_mut(line);
        let left = [waiting.present.remove(&id), waiting.absent.remove(&id)];
        if left.iter().any(Option::is_some) {
            waiting.overloaded(now);
        }
        self.discarded
            .extend(left.into_iter().flatten().filter_map(|waiter| waiter.waker).chain(untimed));
        self.settle(now, None, woken);
    }

    /// Records that a call has ended. If it is `unused`, no call was made, and its turn is given
    /// back.
    pub(super) fn release(
        &mut self,
        now: i64,
        ticket: Ticket,
        unused: bool,
        woken: &mut Vec<Waker>,
    ) {
        if self.in_flight.remove(&(ticket.ends, ticket.id)).is_some() {
            self.free_permit(ticket.lane);
        }
        if unused {
            self.lane_mut(ticket.lane).pace.give_back();
        }
        self.settle(now, None, woken);
        woken.extend(self.untimed.values_mut().filter_map(Option::take));
    }

    fn free_permit(&mut self, lane: Lane) {
        let left = self.lane_mut(lane);
        left.used = left.used.saturating_sub(1);
        // The first in line waited for a permit, and may now wait for its turn.
        self.change_offers(lane, |offer| offer.iter_mut().for_each(|offer| offer.notified = false));
    }

    fn change_offers(&mut self, of: Lane, change: impl Fn(&mut Option<Offer>)) {
        for lane in LANES {
            if self.single || lane == of {
                change(&mut self.lane_mut(lane).offer);
            }
        }
    }

    /// Takes back the permits of calls that must have ended, and wakes the first caller of each
    /// line for its turn.
    fn settle(&mut self, now: i64, looking: Option<u64>, woken: &mut Vec<Waker>) {
        // A call whose future is not polled keeps its permit no longer than the call could have
        // taken.
        while let Some(((ends, _), lane)) =
            self.in_flight.first_key_value().map(|(key, lane)| (*key, *lane))
            && ends < now
        {
            self.in_flight.pop_first();
            self.free_permit(lane);
        }
        for line in &mut self.lines {
            if line.oldest().is_some_and(|since| since.saturating_add(LONG_WAIT) < now) {
                line.overloaded(now);
            }
        }
        for lane in LANES {
            let Some((line, first)) = self.first(lane, now) else {
                self.lane_mut(lane).offer = None;
                continue;
            };
            let known = self.lane(lane).offer.filter(|offer| offer.to == first);
            // The time to answer starts when there is a turn to take.
            let since = match known {
                Some(offer) if offer.since < i64::MAX => offer.since,
                _ if self.is_free(lane, now) => now,
                _ => i64::MAX,
            };
            self.lane_mut(lane).offer = Some(Offer { to: first, since, notified: true });
            let is_notified = known.is_some_and(|offer| offer.notified && offer.since == since);
            if !is_notified && looking != Some(first) {
                let waiter = self.line(line).present.get(&first);
                woken.extend(waiter.and_then(|waiter| waiter.waker.clone()));
            }
        }
    }

    fn has_permit(&self, lane: Lane) -> bool {
        if self.single {
            return self.lanes.iter().all(|lane| lane.used == 0);
        }
        let lane = self.lane(lane);
        lane.used < lane.most
    }

    fn is_free(&self, lane: Lane, now: i64) -> bool {
        self.has_permit(lane)
            && self.lane(lane).pace.is_free(now)
            && !(self.single && lane == Lane::Reserved && self.is_ordinary_next(now))
    }

    /// Whether the ordinary lane is next, if there is a single permit.
    fn is_ordinary_next(&self, now: i64) -> bool {
        let waits = |line: Lane| !self.line(line).present.is_empty();
        waits(Lane::Ordinary)
            && self.lane(Lane::Ordinary).pace.is_free(now)
            && (self.served_last == Lane::Reserved || !waits(Lane::Reserved))
    }

    /// Returns the lines that a lane serves, the first one first. The ordinary lane also serves the
    /// reserved line when its own is empty.
    fn lines_of(&self, lane: Lane, now: i64) -> &'static [Lane] {
        match lane {
            Lane::Reserved => &[Lane::Reserved],
            Lane::Ordinary if self.single && self.lane(Lane::Reserved).pace.is_free(now) => {
                if self.served_last == Lane::Ordinary {
                    &[Lane::Reserved, Lane::Ordinary]
                } else {
                    &[Lane::Ordinary, Lane::Reserved]
                }
            }
            Lane::Ordinary => &[Lane::Ordinary, Lane::Reserved],
        }
    }

    fn first(&self, lane: Lane, now: i64) -> Option<(Lane, u64)> {
        self.lines_of(lane, now).iter().find_map(|line| Some((*line, self.line(*line).first(now)?)))
    }

    /// Whether `id` is the first, or all callers before it let an offer pass.
    fn may_take(
        &mut self,
        lane: Lane,
        now: i64,
        line: Lane,
        id: u64,
        woken: &mut Vec<Waker>,
    ) -> bool {
        let Some((_, first)) = self.first(lane, now) else { return false };
        if first == id {
            return true;
        }
        let offer = self.lane(lane).offer;
        if offer
            .is_none_or(|offer| offer.to != first || offer.since.saturating_add(UNANSWERED) > now)
        {
            return false;
        }
        for before in self.lines_of(lane, now) {
            if *before == line {
                self.line_mut(line).pass_over(now, Some(id), woken);
                break;
            }
            self.line_mut(*before).pass_over(now, None, woken);
        }
        true
    }

    /// Returns when `id` should look again if it is not woken before.
    fn look_again(&self, now: i64, lanes: &[Lane], id: u64) -> i64 {
        let waiting: usize = self.lines.iter().map(|line| line.present.len()).sum();
        let waiting = i64::try_from(waiting).unwrap_or(i64::MAX);
        let mut when = i64::MAX;
        for lane in lanes {
            let is_first = self.first(*lane, now).is_some_and(|(_, first)| first == id);
            let permit = match self.has_permit(*lane) {
                true => now,
                // A call that ends wakes the first. One that does not end gives back its permit at
                // its latest time.
                false => self
                    .in_flight
                    .first_key_value()
                    .map_or(i64::MAX, |((ends, _), _)| ends.saturating_add(1)),
            };
            let turn = permit.max(self.lane(*lane).pace.turn(now, 0));
            when = when.min(match is_first && turn > now {
                true => turn,
                false => now.saturating_add(LOOK_EVERY.max(waiting.saturating_mul(LOOKS_APART))),
            });
        }
        when
    }
}

pub(super) fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
