//! Batches, many calls at once, cancellation and close.
#![forbid(unsafe_code)]

use super::*;

pub(super) async fn keeps_the_order_of_a_batch(subject: &dyn Subject) -> Result<(), Stop> {
    let provider = subject.provider();
    let contexts = [alice()?, bob()?];
    let deks = (0..50).map(|_| new_dek()).collect::<Result<Vec<_>, _>>()?;
    let to_wrap: Vec<_> = contexts.iter().cycle().zip(&deks).collect();
    let wrapped = provider.wrap_many(&to_wrap).await.into_iter().collect::<Result<Vec<_>, _>>();
    let wrapped = ok("wrap_many", wrapped)?;
    let to_rewrap: Vec<_> = contexts.iter().cycle().zip(&wrapped).collect();
    let rewrapped =
        provider.rewrap_many(&to_rewrap).await.into_iter().collect::<Result<Vec<_>, _>>();
    let rewrapped = ok("rewrap_many", rewrapped)?;
    for entries in [&wrapped, &rewrapped] {
        let to_unwrap: Vec<_> = contexts.iter().cycle().zip(entries).collect();
        let unwrapped = provider.unwrap_many(&to_unwrap).await;
        ensure(
            unwrapped.len() == deks.len(),
            format!("{} results for {} items", unwrapped.len(), deks.len()),
        )?;
        for (i, (result, dek)) in unwrapped.into_iter().zip(&deks).enumerate() {
            let unwrapped = ok("unwrap_many", result)?;
            ensure(
                unwrapped.expose() == dek.expose(),
                format!("item {i} of the batch is another DEK"),
            )?;
        }
    }
    ensure(
        provider.wrap_many(&[]).await.is_empty()
            && provider.unwrap_many(&[]).await.is_empty()
            && provider.rewrap_many(&[]).await.is_empty(),
        "an empty batch has results",
    )
}

pub(super) async fn fails_only_the_bad_items_of_a_batch(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, other, context, dek) =
        (subject.provider(), subject.other(), alice()?, new_dek()?);
    let good = ok("wrap", provider.wrap(&context, &dek).await)?;
    let damaged = flipped(&good, good.wrapped().len().saturating_sub(3))?;
    let foreign = ok("wrap by the other KEK", other.wrap(&context, &dek).await)?;
    let bob = bob()?;
    let mut items = vec![
        (&context, &good),
        (&context, &damaged),
        (&context, &good),
        (&context, &foreign),
        (&context, &good),
    ];
    if enforces_context(&*provider) {
        items.extend([(&bob, &good), (&context, &good)]);
    }
    let unwrapped = provider.unwrap_many(&items).await;
    let rewrapped = provider.rewrap_many(&items).await;
    ensure(
        unwrapped.len() == items.len() && rewrapped.len() == items.len(),
        "a result is missing",
    )?;
    for (i, (unwrapped, rewrapped)) in unwrapped.iter().zip(&rewrapped).enumerate() {
        if i % 2 == 1 {
            refused(format!("bad item {i} of unwrap_many"), unwrapped)?;
            refused(format!("bad item {i} of rewrap_many"), rewrapped)?;
            continue;
        }
        match (unwrapped, rewrapped) {
            (Ok(unwrapped), Ok(rewrapped)) => {
                ensure(unwrapped.expose() == dek.expose(), format!("item {i} is another DEK"))?;
                unwraps_to(&*provider, &context, rewrapped, &dek).await?;
            }
            _ => return failed(format!("good item {i} failed beside a bad one")),
        }
    }
    Ok(())
}

pub(super) async fn serves_many_at_once(subject: &dyn Subject) -> Result<(), Stop> {
    let provider = subject.provider();
    let one = |i: usize| {
        let provider: Arc<dyn KekProvider> = provider.clone();
        async move {
            let context = context(&[("caller", &i.to_string())])?;
            let dek = new_dek()?;
            let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
            unwraps_to(&*provider, &context, &wrapped, &dek).await
        }
    };
    join_all((0..64).map(one)).await.into_iter().collect()
}

pub(super) async fn survives_cancellation(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    for _ in 0..10 {
        let mut wrap = provider.wrap(&context, &dek);
        let mut unwrap = provider.unwrap(&context, &wrapped);
        poll_fn(|task| {
            let _ = wrap.as_mut().poll(task).is_ready();
            let _ = unwrap.as_mut().poll(task).is_ready();
            Poll::Ready(())
        })
        .await;
    }
    unwraps_to(&*provider, &context, &wrapped, &dek).await
}

pub(super) async fn works_after_it_was_closed(subject: &dyn Subject) -> Result<(), Stop> {
    let (provider, context, dek) = (subject.provider(), alice()?, new_dek()?);
    let wrapped = ok("wrap", provider.wrap(&context, &dek).await)?;
    for _ in 0..2 {
        provider.close().await;
        provider.close().await;
        unwraps_to(&*provider, &context, &wrapped, &dek).await?;
        // The last envelope may be dropped while its shut-down is not awaited.
        let mut close = provider.close();
        poll_fn(|task| {
            let _ = close.as_mut().poll(task).is_ready();
            Poll::Ready(())
        })
        .await;
        drop(close);
        let wrapped = ok("wrap after it was closed", provider.wrap(&context, &dek).await)?;
        provider.close().await;
        ok("generate after it was closed", provider.generate(&context).await)?;
        provider.close().await;
        let rewrapped =
            ok("rewrap after it was closed", provider.rewrap(&context, &wrapped).await)?;
        provider.close().await;
        ok("health after it was closed", provider.health().await)?;
        unwraps_to(&*provider, &context, &rewrapped, &dek).await?;
    }
    Ok(())
}
