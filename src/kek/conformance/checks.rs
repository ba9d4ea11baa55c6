//! The checks. The name of each is a sentence about the provider.
#![forbid(unsafe_code)]

mod failures;
mod load;
mod refusals;
mod rewrapping;
mod wrapping;

use std::collections::HashSet;
use std::fmt::{Debug, Display};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;

use futures_util::future::join_all;

use super::{Step, Stop, Subject, ensure, failed, ok, step};
use crate::context::EncryptionContext;
use crate::kek::{
    BoxFuture, ContextBinding, Dek, Health, KekError, KekErrorClass, KekId, KekProvider,
    UnwrappedDek, WrappedDek,
};

use failures::{
    is_healthy, keeps_the_dek_out_of_errors, keeps_the_dek_out_of_its_debug,
    reports_each_class_of_failure_and_recovers,
    takes_a_source_of_credentials_that_is_down_for_an_outage,
};
use load::{
    fails_only_the_bad_items_of_a_batch, keeps_the_order_of_a_batch, serves_many_at_once,
    survives_cancellation, works_after_it_was_closed,
};
use refusals::{
    refuses_a_cut_or_lengthened_wrapped_key, refuses_a_damaged_wrapped_key,
    refuses_what_another_kek_wrapped, says_where_it_did_not_ask,
};
use rewrapping::{
    believes_no_version_that_anybody_could_write, follows_a_rotation, generates_deks_of_32_bytes,
    rewraps_where_it_says, rewraps_without_changing_the_dek,
};
use wrapping::{
    binds_the_context_as_it_says, names_few_targets_and_the_same_for_the_same_kek,
    never_wraps_to_the_same_bytes_twice, recognises_its_own_kek_and_not_another,
    takes_contexts_at_their_limits, unwraps_what_it_wrapped,
};

type Check = for<'a> fn(&'a dyn Subject) -> BoxFuture<'a, Result<(), Stop>>;

macro_rules! checks {
    ($($check:ident),* $(,)?) => {
        pub(super) const ALL: &[(&str, Check)] = &[$((stringify!($check), |subject| Box::pin($check(subject)))),*];
    };
}

checks![
    recognises_its_own_kek_and_not_another,
    names_few_targets_and_the_same_for_the_same_kek,
    unwraps_what_it_wrapped,
    takes_contexts_at_their_limits,
    never_wraps_to_the_same_bytes_twice,
    binds_the_context_as_it_says,
    refuses_a_damaged_wrapped_key,
    refuses_a_cut_or_lengthened_wrapped_key,
    refuses_what_another_kek_wrapped,
    says_where_it_did_not_ask,
    generates_deks_of_32_bytes,
    rewraps_without_changing_the_dek,
    rewraps_where_it_says,
    follows_a_rotation,
    believes_no_version_that_anybody_could_write,
    keeps_the_order_of_a_batch,
    fails_only_the_bad_items_of_a_batch,
    serves_many_at_once,
    survives_cancellation,
    works_after_it_was_closed,
    is_healthy,
    reports_each_class_of_failure_and_recovers,
    takes_a_source_of_credentials_that_is_down_for_an_outage,
    keeps_the_dek_out_of_errors,
    keeps_the_dek_out_of_its_debug,
];

/// Expects a refusal that blames the wrapped key or the context. With any other class, anyone who
/// writes messages could disturb every user of the KEK.
fn refused<T: Debug>(what: impl Display, result: &Result<T, KekError>) -> Result<(), Stop> {
    match result {
        Err(error) if matches!(error.class(), KekErrorClass::Invalid | KekErrorClass::Denied) => {
            Ok(())
        }
        Err(error) => failed(format!("{what}: {} instead of invalid or denied", error.class())),
        Ok(_) => failed(format!("{what}: accepted")),
    }
}

/// Expects a refusal, or the same DEK, since some encodings have redundant bits.
fn refused_or_same(
    what: impl Display,
    result: &Result<UnwrappedDek, KekError>,
    dek: &Dek,
) -> Result<(), Stop> {
    match result {
        Ok(unwrapped) if unwrapped.expose() == dek.expose() => Ok(()),
        Ok(_) => failed(format!("{what}: gave another DEK")),
        Err(_) => refused(what, result),
    }
}

fn new_dek() -> Result<Dek, Stop> {
    ok("a new DEK", Dek::random())
}

fn context(pairs: &[(&str, &str)]) -> Result<EncryptionContext, Stop> {
    ok("a context", EncryptionContext::new(pairs.iter().copied()))
}

fn alice() -> Result<EncryptionContext, Stop> {
    context(&[("tenant", "alice"), ("table", "cards")])
}

fn bob() -> Result<EncryptionContext, Stop> {
    context(&[("tenant", "bob"), ("table", "cards")])
}

/// Returns the same entry with other bytes.
fn with_bytes(entry: &WrappedDek, wrapped: Vec<u8>) -> Result<WrappedDek, Stop> {
    let changed = ok("a changed entry", WrappedDek::new(entry.kek_id().clone(), wrapped))?;
    ok("its metadata", changed.with_meta(entry.meta()))
}

fn flipped(entry: &WrappedDek, at: usize) -> Result<WrappedDek, Stop> {
    let mut bytes = entry.wrapped().to_vec();
    if let Some(byte) = bytes.get_mut(at) {
        *byte ^= 1 << (at % 8);
    }
    with_bytes(entry, bytes)
}

async fn unwraps_to(
    provider: &dyn KekProvider,
    context: &EncryptionContext,
    wrapped: &WrappedDek,
    dek: &Dek,
) -> Result<(), Stop> {
    let unwrapped = ok("unwrap", provider.unwrap(context, wrapped).await)?;
    ensure(unwrapped.expose() == dek.expose(), "unwrap gave another DEK")
}

fn enforces_context(provider: &dyn KekProvider) -> bool {
    provider.context_binding() == ContextBinding::Enforced
}
