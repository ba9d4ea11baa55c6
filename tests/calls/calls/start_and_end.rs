//! How a service starts and ends.

use super::*;

#[tokio::test]
async fn the_start_needs_the_key_service_or_does_without_as_configured() {
    for (class, tolerated) in [
        (Unavailable, true),
        (Throttled, true),
        (Denied, false),
        (Misconfigured, false),
        (Invalid, false),
    ] {
        let kek = ScriptedKek::new("kek").unwrap();
        kek.fail_with(class);
        let start = |how| {
            let log = Log::default();
            let builder = Envelope::builder().wrap_with(kek.clone()).observer(log.clone());
            let options = StartOptions::default().start_up(how).warm_up([&context("alice")]);
            (builder.call_policy(policy()).start(options), log)
        };
        let (builder, _) = start(StartUp::RequireKeyServices);
        assert!(builder.await.is_err(), "{class}");
        let (builder, log) = start(StartUp::TolerateOutage);
        let started = builder.await;
        assert_eq!(started.is_ok(), tolerated, "{class}");
        assert_eq!(log.count("StartedWithout"), usize::from(tolerated));
        if let Ok(envelope) = started {
            assert!(
                envelope
                    .encrypt(&context("alice"), Aad::empty(), b"x")
                    .await
                    .unwrap_err()
                    .is_retryable()
            );
            kek.fail_with(None);
            envelope.encrypt(&context("alice"), Aad::empty(), b"x").await.unwrap();
        }
    }
    let kek = ScriptedKek::new("kek").unwrap();
    let envelope = Envelope::builder()
        .wrap_with(kek.clone())
        .start(StartOptions::default().warm_up([&context("alice")]))
        .await
        .unwrap();
    assert_eq!(kek.calls().wraps, 1);
    envelope.encrypt(&context("alice"), Aad::empty(), b"x").await.unwrap();
    assert_eq!(kek.calls().wraps, 1, "it was warm");
}

#[tokio::test]
async fn a_key_service_that_hangs_does_not_keep_the_start() {
    let kek = HookedKek::around(ScriptedKek::new("kek").unwrap())
        .on_health(|_| Box::pin(std::future::pending()));
    let error = Envelope::builder()
        .wrap_with(kek)
        .call_policy(policy())
        .start(StartOptions::default())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn warming_up_makes_the_deks_of_all_contexts_and_tells_the_first_failure() {
    let stage = Stage::new();
    let contexts: Vec<_> = (0..50).map(|n| context(&n.to_string())).collect();
    stage.envelope.warm_up(&contexts).await.unwrap();
    stage.envelope.warm_up(&contexts).await.unwrap();
    assert_eq!(stage.kek().calls().wraps, 50);
    stage.kek().fail_with(Unavailable);
    stage.envelope.warm_up(&contexts).await.unwrap();
    let error = stage.envelope.warm_up([&contexts[0], &context("new")]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

#[tokio::test]
async fn shutting_down_ends_handles_and_calls_that_hang_and_wipes() {
    let stage = Arc::new(Stage::with(1, |builder| {
        builder.call_policy(CallPolicy::default().timeout(ms(60_000)).deadline(ms(60_000)))
    }));
    let sealed = stage.sealed().await;
    stage.open(&sealed).await.unwrap();
    stage.seal_for("alice").await.unwrap();
    let sealing = stage.envelope.encryptor(&stage.alice).await.unwrap();
    let opening = stage.envelope.decryptor(&stage.alice, &sealed).await.unwrap();
    stage.kek().script([Act::Hang, Act::Hang]);
    let hanging: Vec<_> = [false, true]
        .into_iter()
        .map(|seals| {
            let stage = stage.clone();
            tokio::spawn(async move {
                if seals { stage.seal_for("bob").await } else { stage.open_another().await }
            })
        })
        .collect();
    tokio::time::sleep(ms(50)).await;
    stage.envelope.shut_down();
    stage.envelope.shut_down();
    for call in hanging {
        let ended = tokio::time::timeout(ms(10_000), call).await.expect("it hangs").unwrap();
        assert_eq!(kind(ended), Some(ErrorKind::ShutDown));
    }
    assert_eq!(kind(sealing.encrypt(Aad::empty(), b"x")), Some(ErrorKind::Expired));
    assert_eq!(kind(opening.decrypt(Aad::empty(), &sealed)), Some(ErrorKind::Expired));
    assert_eq!(kind(stage.open(&sealed).await), Some(ErrorKind::ShutDown));
    assert_eq!(kind(stage.seal_for("alice").await), Some(ErrorKind::ShutDown));
    assert_eq!(kind(stage.envelope.rewrap(&stage.alice, &sealed).await), Some(ErrorKind::ShutDown));
    assert!(
        stage
            .envelope
            .clone()
            .decrypt_cached(&stage.alice, Aad::empty(), &sealed)
            .unwrap()
            .is_none()
    );
    assert_eq!(
        stage.log.count("Wiped"),
        3,
        "one for reading; one for writing, and the same for reading"
    );
}

#[test]
fn an_envelope_outlasts_the_runtime_that_it_was_built_in() {
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let first = runtime();
    let stage = first.block_on(async { Stage::new() });
    drop(first);
    // Polled with a runtime or without, a try that hangs ends, and another follows after a pause.
    for second in [Some(runtime()), None] {
        stage.kek().script([Act::Hang, Act::Fail(Unavailable), Act::Succeed]);
        match second {
            Some(second) => second.block_on(stage.open_another()).unwrap(),
            None => support::block_on(stage.open_another()).unwrap(),
        }
    }
    assert_eq!(stage.calls(), 6);
}

#[derive(Debug, Default)]
struct Configured(Mutex<Vec<(String, String)>>);

impl Observer for Configured {
    fn event(&self, event: &Event<'_>) {
        if let Event::Configured { options, .. } = event {
            let options = options.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
            self.0.lock().unwrap().extend(options);
        }
    }
}

#[test]
fn whoever_observes_is_told_of_the_policy_with_its_defaults() {
    let configured = Arc::new(Configured::default());
    let policy = CallPolicy::default().tries(1).breaker_failures(7);
    let builder = Envelope::builder().wrap_with(support::local("kek")).call_policy(policy);
    builder.observer(configured.clone()).build().unwrap();
    let options = configured.0.lock().unwrap();
    let (_, shown) = options.iter().find(|(name, _)| name == "call_policy").unwrap();
    assert_eq!(
        shown,
        "CallPolicy { timeout: 2s, deadline: 5s, tries: 1, backoff: 50ms, hedge_percentile: 95, \
         breaker_failures: 7, breaker_probe: 500ms }"
    );
}
