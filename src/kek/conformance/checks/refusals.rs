//! What a provider refuses.
#![forbid(unsafe_code)]

use super::*;

pub(super) async fn refuses_a_damaged_wrapped_key(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    for at in 0..wrapped.wrapped().len() {
        let result = provider.unwrap(&context, &flipped(&wrapped, at)?).await;
        refused_or_same(format!("one bit of byte {at} flipped"), &result, &dek)?;
    }
    unwraps_to(&*provider, &context, &wrapped, &dek).await
}

pub(super) async fn refuses_a_cut_or_lengthened_wrapped_key(
    subject: &dyn Subject,
) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    let bytes = wrapped.wrapped();
    let mut others: Vec<Vec<u8>> =
        (1..bytes.len()).step_by(5).filter_map(|len| Some(bytes.get(..len)?.to_vec())).collect();
    others.push([bytes, &[0]].concat());
    others.push([bytes, bytes].concat());
    others.push(vec![0; bytes.len()]);
    others.push(vec![0xFF; WrappedDek::MAX_WRAPPED]);
    for other in others {
        let what = format!("{} bytes instead of {}", other.len(), bytes.len());
        let result = provider.unwrap(&context, &with_bytes(&wrapped, other)?).await;
        refused_or_same(what, &result, &dek)?;
    }
    Ok(())
}

pub(super) async fn refuses_what_another_kek_wrapped(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, other, context, dek) =
        (subject.provider(), subject.other(), alice()?, new_dek()?);
    let foreign = ok("wrap by the other KEK", other.wrap(&context, &dek).await)?;
    refused("an entry of another KEK", &provider.unwrap(&context, &foreign).await)?;
    refused("rewrap of an entry of another KEK", &provider.rewrap(&context, &foreign).await)?;
    let relabelled =
        ok("a relabelled entry", WrappedDek::new(provider.id().clone(), foreign.wrapped()))?;
    refused(
        "another KEK's wrapped key under this KEK's id",
        &provider.unwrap(&context, &relabelled).await,
    )
}

pub(super) async fn says_where_it_did_not_ask(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, other, context, dek) =
        (subject.provider(), subject.other(), alice()?, new_dek()?);
    let foreign = ok("wrap by the other KEK", other.wrap(&context, &dek).await)?;
    for (what, result) in [
        (
            "unwrap of an entry of another KEK",
            provider.unwrap(&context, &foreign).await.map(|_| ()),
        ),
        (
            "rewrap of an entry of another KEK",
            provider.rewrap(&context, &foreign).await.map(|_| ()),
        ),
    ] {
        refused(what, &result)?;
        ensure(
            result.is_err_and(|error| !error.was_asked()),
            format!("{what}: counts as the key service's answer"),
        )?;
    }
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    let damaged = [
        flipped(&wrapped, 0)?,
        flipped(&wrapped, wrapped.wrapped().len().saturating_sub(3))?,
        with_bytes(&wrapped, vec![0])?,
        with_bytes(&wrapped, vec![0xFF; WrappedDek::MAX_WRAPPED])?,
    ];
    // Without credentials the service cannot be asked, so the provider itself decides.
    match subject.fail_credentials().await {
        Step::Done => {}
        Step::NotApplicable => return Ok(()),
        Step::Failed(why) => {
            return failed(format!("the subject's credentials could not fail: {why}"));
        }
    }
    let mut answers = Vec::new();
    for damaged in &damaged {
        answers.push(provider.unwrap(&context, damaged).await);
    }
    step(subject.restore().await)?;
    for answer in answers {
        let by_itself = answer
            .is_err_and(|error| error.class() != KekErrorClass::Invalid || !error.was_asked());
        ensure(
            by_itself,
            "a verdict on a damaged wrapped key counts as the answer of a key service that was not asked",
        )?;
    }
    unwraps_to(&*provider, &context, &wrapped, &dek).await
}
