//! Which caller has a place among the calls in flight.

use super::*;
use crate::CallBudget;
use crate::kek::call::Lane;

/// Takes a place and counts who else has one; or gives up after some polls.
fn take_a_permit(
    budget: &CallBudget,
    lane: Lane,
    at_once: &AtomicU64,
    most: u64,
    polls: usize,
) -> bool {
    let Some(permit) = block_on(poll_at_most(polls, budget.permit(lane))) else { return false };
    assert!(permit.is_some(), "nobody is refused who waits without a limit");
    assert!(at_once.fetch_add(1, SeqCst) < most, "more in flight than allowed");
    shuttle::thread::yield_now();
    at_once.fetch_sub(1, SeqCst);
    true
}

#[test]
fn callers_that_give_up_neither_lose_a_place_nor_keep_others_from_it() {
    for in_flight in [1, 2] {
        explore(move || {
            let budget = CallBudget::new(1000, in_flight).unwrap();
            let at_once = Arc::new(AtomicU64::new(0));
            let callers: Vec<_> = (0..4)
                .map(|n| {
                    let (budget, at_once) = (budget.clone(), at_once.clone());
                    let lane = if n % 2 == 0 { Lane::Ordinary } else { Lane::Reserved };
                    // The first two leave while they wait.
                    let polls = if n < 2 { 1 + n } else { usize::MAX };
                    spawn(move || {
                        take_a_permit(&budget, lane, &at_once, u64::from(in_flight), polls) || n < 2
                    })
                })
                .collect();
            assert!(join(callers).into_iter().all(|served| served));
            for lane in [Lane::Ordinary, Lane::Reserved] {
                assert!(
                    take_a_permit(&budget, lane, &at_once, u64::from(in_flight), 1),
                    "a place was lost"
                );
            }
        });
    }
}
