//! Several KEKs: which is asked, and when the next.

use super::*;

#[tokio::test]
async fn the_preferred_kek_is_asked_and_the_next_one_when_it_fails() {
    let stage = Stage::with(2, |builder| builder.call_policy(policy()));
    stage.open_another().await.unwrap();
    assert_eq!((stage.keks[0].calls().unwraps, stage.keks[1].calls().unwraps), (1, 0));
    for class in [Unavailable, Throttled, Denied, Invalid, Misconfigured] {
        let before = stage.keks[1].calls().unwraps;
        stage.keks[0].script([Act::Fail(class)]);
        stage.open_another().await.unwrap();
        assert_eq!(
            stage.keks[1].calls().unwraps,
            before + 1,
            "{class}: no pause, no second try of the first"
        );
    }
    let before = stage.keks[1].calls().unwraps;
    stage.open_another().await.unwrap();
    assert_eq!(stage.keks[1].calls().unwraps, before, "back at the preferred one");
}

#[tokio::test]
async fn all_that_may_still_succeed_are_tried_again() {
    let stage = Stage::with(2, |builder| builder.call_policy(policy()));
    stage.keks[0].script([Act::Fail(Unavailable), Act::Fail(Unavailable)]);
    stage.keks[1].script([Act::Fail(Denied)]);
    stage.open_another().await.unwrap();
    assert_eq!(
        (stage.keks[0].calls().unwraps, stage.keks[1].calls().unwraps),
        (3, 1),
        "a denial is not asked again"
    );
}

#[tokio::test]
async fn a_kek_that_is_not_asked_does_not_keep_another_from_its_second_try() {
    let stage = Stage::with(2, |builder| builder.call_policy(policy().breaker_probe(ms(60_000))));
    stage.keks[0].fail_with(Unavailable);
    while stage.of_kek(0).breaker == BreakerState::Closed {
        stage.open_another().await.unwrap();
    }
    let before = stage.keks[1].calls().unwraps;
    stage.keks[1].script([Act::Fail(Throttled)]);
    stage.open_another().await.unwrap();
    assert_eq!(stage.keks[1].calls().unwraps, before + 2);
}

#[tokio::test]
async fn a_preferred_kek_that_is_down_is_left_alone_and_returned_to() {
    let stage = Stage::with(2, |builder| builder.call_policy(policy()));
    stage.keks[0].fail_with(Unavailable);
    let start = Instant::now();
    while stage.of_kek(0).breaker == BreakerState::Closed {
        stage.open_another().await.unwrap();
        assert!(start.elapsed() < ms(20_000));
    }
    let calls = stage.keks[0].calls().unwraps;
    for _ in 0..10 {
        stage.open_another().await.unwrap();
    }
    assert!(stage.keks[0].calls().unwraps <= calls + 2, "probes only");
    stage.keks[0].fail_with(None);
    let start = Instant::now();
    while stage.of_kek(0).breaker != BreakerState::Closed {
        stage.open_another().await.unwrap();
        tokio::time::sleep(ms(10)).await;
        assert!(start.elapsed() < ms(10_000), "not returned to");
    }
    let calls = stage.keks[1].calls().unwraps;
    stage.open_another().await.unwrap();
    assert_eq!(stage.keks[1].calls().unwraps, calls);
}

#[tokio::test]
async fn a_preferred_kek_that_is_slower_than_it_mostly_is_gets_company() {
    let patient = CallPolicy::default().timeout(ms(20_000)).deadline(ms(30_000));
    let stage = Stage::with(2, |builder| builder.call_policy(patient));
    for _ in 0..30 {
        stage.open_another().await.unwrap();
    }
    stage.keks[0].script([Act::Hang]);
    let before = stage.keks[1].calls().unwraps;
    let start = Instant::now();
    stage.open_another().await.unwrap();
    assert!(start.elapsed() < ms(5000), "it did not wait for the timeout");
    assert_eq!(stage.keks[1].calls().unwraps, before + 1);

    let never = Stage::with(2, |builder| {
        builder.call_policy(patient.timeout(ms(300)).hedge_percentile(100))
    });
    for _ in 0..30 {
        never.open_another().await.unwrap();
    }
    never.keks[0].script([Act::Hang]);
    let start = Instant::now();
    never.open_another().await.unwrap();
    assert!(start.elapsed() >= ms(300), "the next one only after a failure");
}

#[tokio::test]
async fn writing_needs_every_kek_and_each_has_its_retries() {
    let stage = Stage::with(3, |builder| builder.call_policy(policy()));
    for kek in &stage.keks {
        kek.script([Act::Fail(Unavailable), Act::Fail(Unavailable)]);
    }
    stage.seal_for("bob").await.unwrap();
    stage.keks[2].fail_with(Unavailable);
    let error = stage.seal_for("carol").await.unwrap_err();
    assert!(
        error.kind() == ErrorKind::Unavailable && error.to_string().contains("local:kek2"),
        "{error}"
    );
}
