//! The first form of a record, made on the thread where the event happens. The trail's thread does
//! the rest.
#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::disclosure::DomainAudit;
use super::record::{Record, rfc3339};
use crate::caller::{Action, Caller};
use crate::clock::Moment;
use crate::context::EncryptionContext;
use crate::error::ErrorKind;
use crate::format::KekId;
use crate::observe::{Access, Event};
use crate::suite::DekId;

/// The maximum number of KEKs listed, so that a line stays within its bound.
const MAX_KEKS: usize = 16;
/// The maximum size of the name of a store or a target in bytes.
const MAX_NAME: usize = 512;
/// The maximum number of roles, groups and reasons listed.
const MAX_ROLES: usize = 16;
const MAX_REASONS: usize = 16;

/// The reserved pair in the context of a branch key.
const BRANCH: &str = "waxseal:branch";

/// A record without its place, its service and its view of the context.
#[derive(Debug)]
pub(super) struct Draft {
    /// Nanoseconds since 1970 by the wall clock.
    pub(super) wall_nanos: i64,
    /// By how much the wall clock was ahead of the clock since boot, in nanoseconds. It shows that
    /// the wall clock was set, in whatever order drafts arrive.
    pub(super) clock_offset: i64,
    pub(super) record: Record,
    pub(super) context: Option<EncryptionContext>,
    /// The settings of the context's domain.
    pub(super) of_domain: Option<Arc<DomainAudit>>,
}

impl Draft {
    pub(super) fn new(at: Moment, record: Record) -> Self {
        let (wall_nanos, clock_offset) = (at.wall_nanos(), offset(at));
        Self { wall_nanos, clock_offset, record, context: None, of_domain: None }
    }

    /// Makes the draft of an event.
    pub(super) fn of(event: &Event<'_>, at: Moment) -> Self {
        let context = context_of(event);
        let domain = context.and_then(EncryptionContext::domain).map(ToOwned::to_owned);
        let record = recorded(event, at.wall_nanos());
        let record = Record { domain: domain.or(record.domain.clone()), ..record };
        Self { context: context.cloned(), ..Self::new(at, record) }
    }
}

fn offset(at: Moment) -> i64 {
    at.wall_nanos().saturating_sub(at.boot_nanos())
}

/// Adds a DEK id to a record, or the id of a branch key.
fn about(record: Record, id: &DekId, context: &EncryptionContext) -> Record {
    let id = Some(id.to_string());
    match context.get(BRANCH) {
        Some(_) => Record { branch_key_id: id, ..record },
        None => Record { dek_id: id, ..record },
    }
}

fn of_kek(record: Record, kek_id: &KekId) -> Record {
    Record { kek_id: Some(kek_id.to_string()), ..record }
}

fn before(wall_nanos: i64, within: Duration) -> i64 {
    wall_nanos.saturating_sub(i64::try_from(within.as_nanos()).unwrap_or(i64::MAX))
}

fn micros(elapsed: Duration) -> u64 {
    u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX)
}

fn context_of<'e>(event: &Event<'e>) -> Option<&'e EncryptionContext> {
    match *event {
        Event::Made { context, .. }
        | Event::Wrapped { context, .. }
        | Event::Unwrapped { context, .. }
        | Event::Refreshed { context, .. }
        | Event::RenewalFailed { context, .. }
        | Event::ServedStale { context, .. }
        | Event::Denied { context, .. }
        | Event::Erased { context, .. }
        | Event::Evicted { context, .. }
        | Event::Accessed { context, .. }
        | Event::AccessedBy { context, .. }
        | Event::PolicyAllowed { context, .. }
        | Event::PolicyDenied { context, .. }
        | Event::PolicyFailed { context, .. }
        | Event::Wiped { context, .. } => Some(context),
        _ => None,
    }
}

fn recorded(event: &Event<'_>, wall_nanos: i64) -> Record {
    match *event {
        Event::Made { dek_id, context, kek_ids } => {
            let kek_ids = kek_ids.iter().take(MAX_KEKS).map(ToString::to_string).collect();
            Record { kek_ids, ..about(Record::of("dek_made").succeeded(), dek_id, context) }
        }
        Event::Wrapped { dek_id, context, kek_id, kek_version, request_id } => {
            let record = about(Record::of("dek_wrapped").succeeded(), dek_id, context);
            answered(of_kek(record, kek_id), kek_version, request_id)
        }
        Event::Unwrapped { dek_id, context, kek_id, kek_version, request_id } => {
            let record = about(Record::of("dek_unwrapped").succeeded(), dek_id, context);
            answered(of_kek(record, kek_id), kek_version, request_id)
        }
        Event::Refreshed { dek_id, context } => {
            about(Record::of("dek_renewed").succeeded(), dek_id, context)
        }
        Event::RenewalFailed { dek_id, context, kind } => {
            about(Record::of("dek_renewal_failed").failed(kind.as_str()), dek_id, context)
        }
        Event::ServedStale { dek_id, context, kind } => {
            about(Record::of("dek_served_stale").failed(kind.as_str()), dek_id, context)
        }
        Event::Denied { dek_id, context } => {
            let record = Record::of("denied").failed(ErrorKind::Denied.as_str());
            match dek_id {
                Some(dek_id) => about(record, dek_id, context),
                None => record,
            }
        }
        Event::DamagedRow { row_id, store } => {
            let record = Record::of("damaged_row").failed(ErrorKind::Malformed.as_str());
            of_store(record, store).with_message(format!("row {row_id}"))
        }
        Event::Erased { context: _, store, keys } => {
            let record = of_store(Record::of("branch_erased").succeeded(), store);
            Record { count: Some(keys), ..record }
        }
        Event::Evicted { dek_id, context } => about(Record::of("dek_evicted"), dek_id, context),
        Event::Accessed { dek_id, context, access, messages, within } => {
            let record = about(Record::of("dek_used").succeeded(), dek_id, context);
            accessed(record, access, messages, within, wall_nanos)
        }
        Event::AccessedBy { caller, dek_id, context, access, messages, within } => {
            let record = about(Record::of("dek_used_by").succeeded(), dek_id, context);
            let record = on_behalf_of(record, Some(caller));
            accessed(record, access, messages, within, wall_nanos)
        }
        Event::AccessedByOthers { access, messages, within } => {
            let record = Record::of("dek_used_by_others").succeeded();
            let record = record.with_message("more callers than are tracked".to_owned());
            accessed(record, access, messages, within, wall_nanos)
        }
        Event::Wiped { dek_id, context } => about(Record::of("dek_wiped"), dek_id, context),
        Event::Called { kek_id, operation, elapsed, kind, abandoned, request_id } => {
            let record = called("kek_called", operation.as_str(), elapsed, kind, abandoned);
            answered(of_kek(record, kek_id), None, request_id)
        }
        Event::StoreCalled { store, operation, elapsed, kind, abandoned } => {
            let record = called("store_called", operation.as_str(), elapsed, kind, abandoned);
            of_store(record, store)
        }
        Event::StoreBreakerOpened { store } => of_store(Record::of("store_breaker_opened"), store),
        Event::StoreBreakerClosed { store } => of_store(Record::of("store_breaker_closed"), store),
        Event::BreakerOpened { kek_id, target } => {
            of_target(Record::of("breaker_opened"), kek_id, target)
        }
        Event::BreakerClosed { kek_id, target } => {
            of_target(Record::of("breaker_closed"), kek_id, target)
        }
        Event::MemoryNotProtected { protection } => {
            Record::of("memory_not_protected").with_message(protection.to_string())
        }
        Event::ObserverPanicked { observer } => {
            Record::of("observer_panicked").with_message(format!("observer {observer}"))
        }
        Event::Configured { wrap_with, unwrap_with, options } => {
            configured(wrap_with, unwrap_with, options)
        }
        Event::Revoked { kek_id } => of_kek(Record::of("kek_revoked"), kek_id),
        Event::Reinstated { kek_id } => of_kek(Record::of("kek_reinstated"), kek_id),
        Event::ShutDown => Record::of("shut_down"),
        Event::PolicyAllowed { caller, operation, context: _, revision, elapsed } => {
            let record = Record::of("policy_allowed").succeeded();
            decided(record, caller, operation, revision, elapsed)
        }
        Event::PolicyDenied { caller, operation, context: _, reasons, revision, elapsed } => {
            let record = Record::of("policy_denied").failed(ErrorKind::PolicyDenied.as_str());
            let reasons = reasons.iter().take(MAX_REASONS).map(|reason| cut(reason)).collect();
            let record = Record { policy_reasons: reasons, ..record };
            decided(record, caller, operation, revision, elapsed)
        }
        Event::PolicyFailed { operation, context: _, error, last_known } => {
            let record = Record::of("policy_failed").failed(error.kind().as_str());
            let record = record.with_message(match last_known {
                true => format!("the last known decision serves: {error}"),
                false => error.to_string(),
            });
            decided(record, None, operation, None, None)
        }
        Event::DomainsReloaded { opened, changed, ended, kept } => {
            let message = format!("{opened} new, {changed} changed, {ended} ended, {kept} kept");
            Record::of("domains_reloaded").succeeded().with_message(message)
        }
        Event::DomainsNotReloaded { error } => {
            let record = Record::of("domains_reloaded").failed(error.kind().as_str());
            record.with_message(error.to_string())
        }
        Event::StartedWithout { kek_id, kind } => {
            of_kek(Record::of("started_without").failed(kind.as_str()), kek_id)
        }
    }
}

/// Adds a policy's decision: the caller and the operation.
fn decided(
    record: Record,
    caller: Option<&Caller>,
    operation: Action,
    revision: Option<&str>,
    elapsed: Option<Duration>,
) -> Record {
    Record {
        operation: Some(Cow::Borrowed(operation.as_str())),
        policy_revision: revision.map(cut),
        duration_us: elapsed.map(micros),
        ..on_behalf_of(record, caller)
    }
}

/// Adds a count and its time.
fn accessed(
    record: Record,
    access: Access,
    messages: u64,
    within: Duration,
    wall_nanos: i64,
) -> Record {
    Record {
        operation: Some(Cow::Borrowed(access.as_str())),
        count: Some(messages),
        start_time: Some(rfc3339(before(wall_nanos, within))),
        end_time: Some(rfc3339(wall_nanos)),
        ..record
    }
}

fn on_behalf_of(record: Record, caller: Option<&Caller>) -> Record {
    let few = |names: &mut dyn Iterator<Item = &str>| names.take(MAX_ROLES).map(cut).collect();
    Record {
        caller_service: caller.and_then(Caller::service).map(cut),
        caller_roles: caller.map(|caller| few(&mut caller.roles())).unwrap_or_default(),
        caller_groups: caller.map(|caller| few(&mut caller.groups())).unwrap_or_default(),
        caller_address: caller.and_then(Caller::source_address).map(|of| of.to_string()),
        caller_request_id: caller.and_then(Caller::request_id).map(cut),
        ..record
    }
}

fn called(
    activity: &'static str,
    operation: &'static str,
    elapsed: Duration,
    kind: Option<ErrorKind>,
    abandoned: bool,
) -> Record {
    let record = match kind {
        None => Record::of(activity).succeeded(),
        Some(kind) => Record::of(activity).failed(kind.as_str()),
    };
    let record = Record {
        operation: Some(Cow::Borrowed(operation)),
        duration_us: Some(micros(elapsed)),
        ..record
    };
    if abandoned { record.with_message("no caller waited".to_owned()) } else { record }
}

/// Adds what the key service and its provider report about a request.
fn answered(record: Record, kek_version: Option<&str>, request_id: Option<&str>) -> Record {
    Record { kek_version: kek_version.map(cut), request_id: request_id.map(cut), ..record }
}

fn configured(
    wrap_with: &[KekId],
    unwrap_with: &[KekId],
    options: &[(&'static str, String)],
) -> Record {
    let ids = |ids: &[KekId]| ids.iter().take(MAX_KEKS).map(ToString::to_string).collect();
    let wrap_with: Vec<String> = ids(wrap_with);
    let unwrap_with: Vec<String> = ids(unwrap_with);
    let mut configuration: BTreeMap<String, String> =
        options.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    configuration.insert("wrap_with".to_owned(), wrap_with.join(" "));
    configuration.insert("unwrap_with".to_owned(), unwrap_with.join(" "));
    let kek_ids = [wrap_with, unwrap_with].concat();
    let domain = configuration.get("domain").cloned();
    Record { kek_ids, configuration, domain, ..Record::of("configured") }
}

fn cut(name: &str) -> String {
    name.get(..name.floor_char_boundary(MAX_NAME)).unwrap_or_default().to_owned()
}

fn of_store(record: Record, store: &str) -> Record {
    Record { store: Some(cut(store)), ..record }
}

fn of_target(record: Record, kek_id: &KekId, target: Option<&str>) -> Record {
    Record { kek_target: target.map(cut), ..of_kek(record, kek_id) }
}
