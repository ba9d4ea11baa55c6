//! Health, classes of failure, and secrets that must not appear in texts.
#![forbid(unsafe_code)]

use super::*;

pub(super) async fn is_healthy(subject: &dyn Subject) -> Result<(), Stop> {
    match ok("health", subject.provider().health().await)? {
        Health::Ready => Ok(()),
        Health::Degraded(why) => failed(format!("degraded: {why}")),
    }
}

pub(super) async fn reports_each_class_of_failure_and_recovers(
    subject: &dyn Subject,
) -> Result<(), Stop> {
    use KekErrorClass::{Denied, Invalid, Misconfigured, Throttled, Unavailable};

    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    let mut applicable = false;
    for class in [Unavailable, Throttled, Denied, Misconfigured, Invalid] {
        match subject.fail_with(class).await {
            Step::NotApplicable => continue,
            Step::Failed(why) => {
                return failed(format!("the subject could not fail with {class}: {why}"));
            }
            Step::Done => applicable = true,
        }
        let unwrapped = provider.unwrap(&context, &wrapped).await.map(|_| ());
        let wrap = provider.wrap(&context, &dek).await.map(|_| ());
        step(subject.restore().await)?;
        let mut results = vec![("unwrap", unwrapped)];
        // Invalid concerns one wrapped key, so it says nothing about wrapping another DEK.
        if class != Invalid {
            results.push(("wrap", wrap));
        }
        for (call, result) in results {
            match result {
                Err(error) if error.class() == class => {}
                Err(error) => {
                    return failed(format!(
                        "{call}: {error}, although the subject fails with {class}"
                    ));
                }
                Ok(()) => {
                    return failed(format!(
                        "{call}: succeeded, although the subject fails with {class}"
                    ));
                }
            }
        }
        unwraps_to(&*provider, &context, &wrapped, &dek).await?;
    }
    if applicable { Ok(()) } else { Err(Stop::NotApplicable) }
}

pub(super) async fn takes_a_source_of_credentials_that_is_down_for_an_outage(
    subject: &dyn Subject,
) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    step(subject.fail_credentials().await)?;
    let unwrap = provider.unwrap(&context, &wrapped).await.map(|_| ());
    let wrap = provider.wrap(&context, &dek).await.map(|_| ());
    let health = provider.health().await.map(|_| ());
    step(subject.restore().await)?;
    for (call, result) in [("unwrap", unwrap), ("wrap", wrap), ("health", health)] {
        match result {
            // Denied would evict every DEK, and misconfigured would also end stale serving.
            Err(error)
                if matches!(
                    error.class(),
                    KekErrorClass::Unavailable | KekErrorClass::Throttled
                ) => {}
            Err(error) => {
                return failed(format!("{call} without a source of credentials: {error}"));
            }
            Ok(()) if call == "health" => {}
            Ok(()) => {
                return failed(format!("{call}: succeeded, although no credentials are available"));
            }
        }
    }
    unwraps_to(&*provider, &context, &wrapped, &dek).await?;
    ok("wrap with credentials again", provider.wrap(&context, &dek).await).map(|_| ())
}

pub(super) async fn keeps_the_dek_out_of_errors(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    let damaged = flipped(&wrapped, wrapped.wrapped().len().saturating_sub(3))?;
    if let Err(error) = provider.unwrap(&context, &damaged).await {
        let mut text = format!("{error} {error:?}");
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text.push_str(&format!(" {error} {error:?}"));
            cause = error.source();
        }
        ensure(!shows(&text, &dek), "an error shows the DEK")?;
    }
    Ok(())
}

pub(super) async fn keeps_the_dek_out_of_its_debug(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    let unwrapped = ok("unwrap", provider.unwrap(&context, &wrapped).await)?;
    let text = format!("{provider:?} {provider:#?} {wrapped:?} {unwrapped:?}");
    ensure(!shows(&text, &dek), "Debug shows the DEK")
}

/// Whether the text contains the DEK in a form in which people or derived implementations write
/// bytes.
fn shows(text: &str, dek: &Dek) -> bool {
    let hex: String = dek.expose().iter().map(|byte| format!("{byte:02x}")).collect();
    let list = format!("{:?}", dek.expose());
    let without_space = |text: &str| text.split_whitespace().collect::<String>();
    text.to_lowercase().contains(&hex)
        || without_space(text).contains(without_space(&list).trim_matches(['[', ']']))
}
