//! Calls that carry many items: one request, and one result for each item.
#![forbid(unsafe_code)]

use futures_util::FutureExt;

use super::breaker::Order;
use super::{CallBounds, GuardedKek};
use crate::context::EncryptionContext;
use crate::kek::{BoxFuture, Dek, KekError, KekErrorClass, UnwrappedDek, WrappedDek};
use crate::observe::Operation;
use crate::sync::foreign::caught;

/// The result of one item of a batch.
type ItemResult<T> = Result<T, KekError>;

/// The three calls return one result for each item, in order. A single item is an ordinary call.
impl GuardedKek {
    /// Returns the maximum number of items of one request: at least 1.
    pub(crate) fn batch_size(&self) -> usize {
        caught(|| self.provider.batch_size()).unwrap_or(1).max(1)
    }

    pub(crate) async fn wrap_many(
        &self,
        bounds: CallBounds,
        items: &[(&EncryptionContext, &Dek)],
    ) -> Vec<ItemResult<WrappedDek>> {
        match *items {
            [(context, dek)] => vec![self.wrap(bounds, context, dek).await],
            _ => {
                self.many(bounds, Operation::Wrap, items, |items| self.provider.wrap_many(items))
                    .await
            }
        }
    }

    pub(crate) async fn unwrap_many(
        &self,
        bounds: CallBounds,
        items: &[(&EncryptionContext, &WrappedDek)],
    ) -> Vec<ItemResult<UnwrappedDek>> {
        match *items {
            [(context, wrapped)] => vec![self.unwrap(bounds, context, wrapped).await],
            _ => {
                self.many(bounds, Operation::Unwrap, items, |items| {
                    self.provider.unwrap_many(items)
                })
                .await
            }
        }
    }

    pub(crate) async fn rewrap_many(
        &self,
        bounds: CallBounds,
        items: &[(&EncryptionContext, &WrappedDek)],
    ) -> Vec<ItemResult<WrappedDek>> {
        match *items {
            [(context, wrapped)] => vec![self.rewrap(bounds, context, wrapped).await],
            _ => {
                self.many(bounds, Operation::Rewrap, items, |items| {
                    self.provider.rewrap_many(items)
                })
                .await
            }
        }
    }

    /// Asks for all items in one call, and again for those that an outage affected, as often as the
    /// policy allows.
    async fn many<I: Copy, T>(
        &self,
        bounds: CallBounds,
        operation: Operation,
        items: &[I],
        ask: impl for<'b> Fn(&'b [I]) -> BoxFuture<'b, Vec<ItemResult<T>>>,
    ) -> Vec<ItemResult<T>> {
        let mut results: Vec<Option<ItemResult<T>>> = items.iter().map(|_| None).collect();
        let mut tries = 0;
        while !items.is_empty() {
            let waits = |result: &Option<ItemResult<T>>| match result {
                Some(Err(error)) => error.is_worth_a_retry(),
                Some(Ok(_)) => false,
                None => true,
            };
            let (places, asked): (Vec<_>, Vec<_>) =
                results.iter_mut().zip(items).filter(|(result, _)| waits(result)).unzip();
            let answers = self.many_once(bounds, operation, &asked, &ask).await;
            tries += 1;
            // The longest pause that any of them asks for.
            let outage = answers
                .iter()
                .filter_map(|answer| answer.as_ref().err())
                .filter(|error| error.is_worth_a_retry())
                .max_by_key(|error| (error.retry_after(), error.severity_rank()))
                .cloned();
            for (place, answer) in places.into_iter().zip(answers) {
                *place = Some(answer);
            }
            let Some(outage) = outage else { break };
            if !self.pause(bounds, tries, &outage, self.id()).await {
                break;
            }
        }
        let told = |result: ItemResult<T>| match result {
            Err(error) if error.is_worth_a_retry() => Err(error.after(tries)),
            result => result,
        };
        results.into_iter().flatten().map(told).collect()
    }

    /// Tries once.
    async fn many_once<I: Copy, T>(
        &self,
        bounds: CallBounds,
        operation: Operation,
        items: &[I],
        ask: &impl for<'b> Fn(&'b [I]) -> BoxFuture<'b, Vec<ItemResult<T>>>,
    ) -> Vec<ItemResult<T>> {
        let mut answers = Vec::new();
        let answered = &mut answers;
        let work = move || {
            ask(items).map(move |answers| {
                *answered = answers;
                outcome(answered, items.len())
            })
        };
        let outcome = self.calls.once(bounds, self.own(operation), Order::Usual, work).await;
        match outcome {
            // Nothing was answered, so the failure of the call is that of each item.
            Err(failure) if answers.len() != items.len() => {
                items.iter().map(|_| Err(failure.clone())).collect()
            }
            _ => answers,
        }
    }
}

/// Returns what a batch says about the key service. It failed if every item did. Then the item that
/// says most about the service decides. An item that the provider itself refused says nothing.
fn outcome<T>(answers: &[ItemResult<T>], items: usize) -> Result<(), KekError> {
    if answers.len() != items {
        return Err(KekError::unavailable("the provider did not answer for every item"));
    }
    let failures = answers.iter().filter_map(|answer| answer.as_ref().err());
    let shows = |error: &&KekError| {
        let is_refusal = matches!(error.class(), KekErrorClass::Denied | KekErrorClass::Invalid);
        (error.was_asked(), is_refusal)
    };
    match failures.max_by_key(shows) {
        Some(failure) if answers.iter().all(Result::is_err) => Err(failure.clone()),
        _ => Ok(()),
    }
}
