//! The queue in simulated time: who is served, refused or passed over, without a thread or a timer.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::task::Wake;

use super::*;

const SECOND: i64 = 1_000 * MILLISECOND;
const START: i64 = 1_000 * SECOND;
const FOR_EVER: i64 = i64::MAX / 2;

fn ordinary(latest: i64) -> Terms {
    Terms { line: Lane::Ordinary, latest: Some(latest), hold: FOR_EVER }
}

fn reserved(latest: i64) -> Terms {
    Terms { line: Lane::Reserved, ..ordinary(latest) }
}

/// The ticket of a caller that enters at once when it arrives at `now`.
fn enters(queue: &mut Queue, now: i64, terms: Terms) -> Option<Ticket> {
    match queue.arrive(now, terms, &mut Vec::new()) {
        Look::Enter(ticket) => Some(ticket),
        Look::Wait(id, _) => {
            queue.leave(now, terms.line, id, &mut Vec::new());
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

/// Callers of a queue, in simulated time.
struct Scene {
    queue: Queue,
    now: i64,
    events: BTreeSet<(i64, Event)>,
    callers: Vec<Caller>,
    woken: Arc<Mutex<Vec<usize>>>,
    /// How long a call takes.
    service: i64,
    entered: Vec<usize>,
    /// Whether callers stay in the queue after they gave up.
    stays: bool,
}

#[derive(Clone, Copy)]
struct Caller {
    line: Lane,
    /// The deadline that the queue knows.
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
        Self {
            queue,
            now: START,
            events,
            callers,
            woken,
            service,
            entered: Vec::new(),
            stays: false,
        }
    }

    /// A caller that arrives `at`, tells the queue that it waits for `told`, and leaves after
    /// `max_wait`.
    fn caller(&mut self, at: i64, line: Lane, told: i64, max_wait: i64) -> usize {
        let (n, at) = (self.callers.len(), START + at);
        let caller = Caller {
            line,
            deadline: at + told,
            polled: true,
            id: None,
            waits: true,
            outcome: None,
            ticket: None,
        };
        self.callers.push(caller);
        self.events.insert((at, Event::Arrives(n)));
        self.events.insert((at + max_wait, Event::Leaves(n)));
        n
    }

    fn run(&mut self) {
        while let Some((now, event)) = self.events.pop_first() {
            self.now = now;
            let mut woken = Vec::new();
            let (Event::Done(n) | Event::Look(n) | Event::Arrives(n) | Event::Leaves(n)) = event;
            let caller = self.callers[n];
            let terms = Terms { line: caller.line, latest: Some(caller.deadline), hold: FOR_EVER };
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
                    // A call that began continues, whether or not its caller waits.
                    if caller.waits && !self.stays {
                        self.callers[n].waits = false;
                        self.queue.leave(now, caller.line, caller.id.unwrap(), &mut woken);
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
                // Timers have a resolution of a millisecond.
                let again = (again.unwrap() / MILLISECOND + 1) * MILLISECOND;
                self.events.insert((again, Event::Look(n)));
            }
        }
    }

    fn served(&self, from: i64, to: i64) -> usize {
        let served = |caller: &&Caller| matches!(caller.outcome, Some(Outcome::Served(at)) if (from..to).contains(&at));
        self.callers.iter().filter(served).count()
    }

    fn is_empty(&self) -> bool {
        let lines =
            self.queue.lines.iter().all(|line| line.present.is_empty() && line.absent.is_empty());
        lines
            && self.queue.in_flight.is_empty()
            && self.queue.lanes.iter().all(|lane| lane.used == 0)
    }
}

#[test]
fn calls_keep_the_pace_after_the_burst() {
    let mut scene = Scene::new(100, 1000, MILLISECOND);
    for _ in 0..200 {
        scene.caller(0, Lane::Ordinary, 10 * SECOND, 20 * SECOND);
    }
    scene.run();
    // 75 a second in the ordinary lane: 19 are saved up.
    assert_eq!(scene.served(0, 5 * MILLISECOND), 19);
    assert!((93..=95).contains(&scene.served(0, SECOND)), "{}", scene.served(0, SECOND));
    assert_eq!(scene.served(0, 3 * SECOND), 200);
    assert!(scene.is_empty());
}

#[test]
fn turns_come_in_order_while_nobody_waits_for_long() {
    let mut scene = Scene::new(100, 1000, MILLISECOND);
    for n in 0..34 {
        scene.caller(n, Lane::Ordinary, 10 * SECOND, 20 * SECOND);
    }
    scene.run();
    assert_eq!(scene.entered, (0..34).collect::<Vec<_>>());
}

#[test]
fn one_whose_turn_comes_too_late_is_refused_at_once() {
    let mut scene = Scene::new(100, 1000, MILLISECOND);
    for _ in 0..200 {
        scene.caller(0, Lane::Ordinary, SECOND, 20 * SECOND);
    }
    scene.run();
    let refused =
        scene.callers.iter().filter(|caller| caller.outcome == Some(Outcome::Refused(0))).count();
    let served = scene.served(0, 2 * SECOND);
    assert!((93..=95).contains(&served), "{served}");
    assert!(refused >= 200 - 95 && refused + served >= 199, "{refused} of 200, {served} served");
}

#[test]
fn who_leaves_takes_no_turn_along() {
    let mut scene = Scene::new(4, 4, MILLISECOND);
    for _ in 0..30 {
        scene.caller(0, Lane::Ordinary, 5 * SECOND, 200 * MILLISECOND);
    }
    let last = scene.caller(SECOND, Lane::Ordinary, 5 * SECOND, 5 * SECOND);
    scene.run();
    assert!(
        matches!(scene.callers[last].outcome, Some(Outcome::Served(at)) if at < SECOND + 10 * MILLISECOND)
    );
    assert!(scene.is_empty());
}

/// Ten seconds at `load` percent of the pace, then half the pace. Returns the part of the possible
/// calls that were served, and how many callers were not served of those that arrived a second or
/// more after the load had fallen.
fn goodput(
    (per_second, in_flight): (u32, u32),
    load: i64,
    service: i64,
    told: i64,
    max_wait: i64,
    stays: bool,
) -> (f64, usize) {
    const PACE: i64 = 75;
    let mut scene = Scene::new(per_second, in_flight, service);
    let mut random = 1_u64;
    let (mut at, mut after) = (0, Vec::new());
    while at < 15 * SECOND {
        let falls = at >= 10 * SECOND;
        let interval = SECOND * 100 / (PACE * if falls { 50 } else { load });
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Evenly spread around the mean.
        at += i64::try_from(random >> 33).unwrap() % (2 * interval);
        let caller = scene.caller(at, Lane::Ordinary, told, max_wait);
        if at > 11 * SECOND {
            after.push(caller);
        }
    }
    scene.stays = stays;
    scene.run();
    let share = scene.served(SECOND, 10 * SECOND) as f64 / (PACE * 9) as f64;
    let lost =
        after.iter().filter(|n| !matches!(scene.callers[**n].outcome, Some(Outcome::Served(_))));
    (share, lost.count())
}

#[test]
fn under_overload_the_calls_that_the_pace_allows_are_made_for_callers_that_wait_for_them() {
    for load in [110, 150, 300] {
        for service in [5 * MILLISECOND, 80 * MILLISECOND] {
            let short = [service * 5 / 4 + 10 * MILLISECOND, 2 * service + 10 * MILLISECOND];
            for max_wait in short.into_iter().chain([SECOND / 2, SECOND, 30 * SECOND]) {
                // What the queue knows: how long they wait for their turn; the longest that anybody
                // waits, and when they leave; or not even that.
                let told = (max_wait - service).min(5 * SECOND);
                for (told, stays) in [(told, false), (5 * SECOND, false), (5 * SECOND, true)] {
                    let is_short = max_wait < SECOND / 4;
                    if is_short && (stays || (load < 150 && told == 5 * SECOND)) {
                        // Callers that wait no longer than the pace has between two calls cannot
                        // all be served in any order.
                        continue;
                    }
                    let (share, lost) = goodput((100, 64), load, service, told, max_wait, stays);
                    let case = format!(
                        "load {load}, service {service}, max_wait {max_wait}, {told} {stays}"
                    );
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
        for max_wait in [130 * MILLISECOND, 200 * MILLISECOND, SECOND / 2, SECOND, 30 * SECOND] {
            let (share, lost) =
                goodput((10_000, 8), load, 80 * MILLISECOND, 5 * SECOND, max_wait, false);
            println!("load {load}, max_wait {max_wait}: {share:.2}, {lost} lost");
            assert!(
                share >= 0.9 && lost == 0,
                "load {load}, max_wait {max_wait}: {share:.2}, {lost} lost"
            );
        }
    }
}

#[test]
fn those_that_are_not_polled_hold_up_others_for_some_milliseconds_only() {
    for (per_second, in_flight) in [(100, 1000), (100_000, 16)] {
        let mut scene = Scene::new(per_second, in_flight, 5 * MILLISECOND);
        for _ in 0..150 {
            let n = scene.caller(0, Lane::Ordinary, 5 * SECOND, 6 * SECOND);
            scene.callers[n].polled = false;
        }
        let others: Vec<_> = (1..20)
            .map(|n| scene.caller(n * 50 * MILLISECOND, Lane::Ordinary, 5 * SECOND, 6 * SECOND))
            .collect();
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
    let (mut queue, terms) =
        (Queue::new(1000, 2), Terms { hold: SECOND, ..ordinary(START + 5 * SECOND) });
    assert!(enters(&mut queue, START, terms).is_some());
    assert!(enters(&mut queue, START + SECOND / 2, terms).is_none());
    let ticket = enters(&mut queue, START + SECOND + 1, terms).unwrap();
    queue.release(START + 2 * SECOND, ticket, false, &mut Vec::new());
    assert_eq!(queue.lane(Lane::Ordinary).used, 0);
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
        scene.caller(0, Lane::Reserved, 30 * SECOND, 40 * SECOND);
    }
    scene.run();
    assert!(
        scene.served(0, 3 * SECOND) >= 2950,
        "{} in three seconds",
        scene.served(0, 3 * SECOND)
    );

    // A flood of messages to open, at a key service that hangs.
    let mut queue = Queue::new(1000, 8);
    let flood =
        (0..20).filter(|_| enters(&mut queue, START, ordinary(START + SECOND)).is_some()).count();
    let sealing =
        (0..20).filter(|_| enters(&mut queue, START, reserved(START + SECOND)).is_some()).count();
    assert_eq!((flood, sealing), (6, 2));
    // One of what is sealed leaves opening its line.
    let mut scene = Scene::new(100, 64, MILLISECOND);
    for n in 0..500 {
        scene.caller(n, Lane::Reserved, 5 * SECOND, 6 * SECOND);
    }
    let reads: Vec<_> = (0..60)
        .map(|n| scene.caller(SECOND + n * SECOND / 60, Lane::Ordinary, SECOND / 5, SECOND))
        .collect();
    scene.run();
    for n in reads {
        assert!(
            matches!(scene.callers[n].outcome, Some(Outcome::Served(_))),
            "{:?}",
            scene.callers[n].outcome
        );
    }
}

#[test]
fn one_who_waited_for_a_place_hears_that_it_now_waits_for_its_turn() {
    for (per_second, in_flight) in [(1, 1), (2, 2)] {
        let mut scene = Scene::new(per_second, in_flight, 5 * MILLISECOND);
        let callers: Vec<_> =
            (0..3).map(|_| scene.caller(0, Lane::Ordinary, 5 * SECOND, 6 * SECOND)).collect();
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
            for line in [Lane::Ordinary, Lane::Reserved] {
                of.insert(scene.caller(n * SECOND / 20, line, 5 * SECOND, 6 * SECOND), line);
            }
        }
        scene.run();
        let served = |line| {
            let of_line = scene.callers.iter().enumerate().filter(|(n, _)| of[n] == line);
            of_line.filter(|(_, caller)| matches!(caller.outcome, Some(Outcome::Served(_)))).count()
        };
        let (ordinary, sealing) = (served(Lane::Ordinary), served(Lane::Reserved));
        let case =
            format!("{per_second} a second, {in_flight} in flight: {ordinary} and {sealing}");
        let all = f64::from(per_second).min(f64::from(in_flight) * 10.0).min(40.0) * 10.0;
        assert!((ordinary + sealing) as f64 >= 0.9 * all, "{case}");
        assert!(
            ordinary * 5 >= (ordinary + sealing) && sealing * 5 >= (ordinary + sealing),
            "{case}"
        );
        assert!(scene.is_empty());
    }
}
