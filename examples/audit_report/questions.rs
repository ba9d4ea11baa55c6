//! The questions, and what of the trail answers each.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write;
use std::path::Path;
use std::str::FromStr;

use waxseal::DekId;
use waxseal::audit::{CheckpointVerifier, ContextValue, Record, Verification, Verifier};

/// What an auditor asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Question {
    Keys,
    Used,
    Callers,
    Decided,
    Refused,
    Rotated,
    OldKeys,
    Erased,
    Operated,
    Outages,
    Touched,
    Gaps,
}

impl FromStr for Question {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "keys" => Self::Keys,
            "used" => Self::Used,
            "callers" => Self::Callers,
            "decided" => Self::Decided,
            "refused" => Self::Refused,
            "rotated" => Self::Rotated,
            "old-keys" => Self::OldKeys,
            "erased" => Self::Erased,
            "operated" => Self::Operated,
            "outages" => Self::Outages,
            "touched" => Self::Touched,
            "gaps" => Self::Gaps,
            _ => return Err(format!("{text} is not a question")),
        })
    }
}

/// Returns the answer, and whether the trail is as it was written.
pub(crate) fn answer(
    question: Question,
    directory: &Path,
    public_key: Option<&str>,
    checkpoints: Option<&Path>,
    first_file: u64,
) -> Result<(String, bool), Box<dyn Error>> {
    let mut verifier = Verifier::new().first_file(first_file);
    if let Some(digits) = public_key {
        // 64 hexadecimal digits, as a DEK id has.
        let key: DekId = digits.parse()?;
        verifier = verifier.key(CheckpointVerifier::ed25519(key.as_bytes())?);
    }
    if let Some(path) = checkpoints {
        verifier = verifier.witnesses(path)?;
    }
    let mut report = Report::new(question);
    let found = verifier.verify_each(directory, |record| report.read(record))?;
    Ok((report.finish(&found), found.fault.is_none()))
}

/// The answer as it grows, record by record: memory goes with the answer, not with the trail.
struct Report {
    question: Question,
    lines: Vec<String>,
    counts: BTreeMap<String, Count>,
    /// The KEKs and versions that wrapped each DEK last.
    wrapped: BTreeMap<String, BTreeMap<String, String>>,
    erased: BTreeSet<String>,
}

#[derive(Default)]
struct Count {
    times: u64,
    first: String,
    last: String,
}

impl Report {
    fn new(question: Question) -> Self {
        Self {
            question,
            lines: Vec::new(),
            counts: BTreeMap::new(),
            wrapped: BTreeMap::new(),
            erased: BTreeSet::new(),
        }
    }

    fn read(&mut self, record: &Record) {
        let activity = &*record.activity;
        match (self.question, activity) {
            (Question::Keys, "dek_wrapped" | "dek_unwrapped") => {
                let key = format!("{}  {}", kek(record), context(record));
                self.count(key, 1, record);
            }
            (Question::Used, "dek_used") => {
                let operation = record.operation.as_deref().unwrap_or("");
                let key = format!("{}  {operation}  {}", service(record), context(record));
                self.count(key, record.count.unwrap_or(0), record);
            }
            (Question::Callers, "dek_used_by" | "dek_used_by_others") => {
                let key = format!("{}  {}  {}", caller(record), operation(record), context(record));
                self.count(key, record.count.unwrap_or(0), record);
            }
            (Question::Decided, "policy_allowed" | "policy_denied" | "policy_failed") => {
                let revision = record.policy_revision.as_deref().unwrap_or("none");
                let who = caller(record);
                let key = format!("{activity}  revision {revision}  {who}  {}", operation(record));
                self.count(key, 1, record);
            }
            (Question::Refused, "policy_denied") => {
                let (who, why) = (caller(record), record.policy_reasons.join("; "));
                let what = format!("{who}  {}  {}  {why}", operation(record), context(record));
                self.line(record, &what);
            }
            (Question::Refused, "denied") => self.line(record, &context(record)),
            (Question::Refused, "kek_called") if is(record, "denied") => {
                self.line(record, &format!("{} {}", operation(record), kek(record)));
            }
            (Question::Rotated, "dek_made") => {
                self.line(record, &format!("{}  {}", short(record), context(record)));
            }
            (Question::Rotated, "dek_wrapped") => self.count(kek(record), 1, record),
            (Question::OldKeys, "dek_wrapped") => self.wrapped(record),
            (Question::OldKeys | Question::Erased, "branch_erased") => {
                self.erased.insert(context(record));
                let (count, store) = (record.count.unwrap_or(0), record.store.as_deref());
                let text = format!("{count} keys in {}  {}", store.unwrap_or(""), context(record));
                if self.question == Question::Erased {
                    self.line(record, &text);
                }
            }
            (
                Question::Operated,
                "configured" | "kek_revoked" | "kek_reinstated" | "shut_down" | "trail_closed"
                | "trail_file_opened" | "trail_resumed",
            ) => {
                let mut text = kek(record);
                // The rest of the configuration is in the record.
                let shown = ["suite", "wrap_with", "unwrap_with", "key_store", "branch_keys"];
                for (name, value) in &record.configuration {
                    if shown.contains(&&**name) && !value.is_empty() {
                        let _ = write!(text, " {name}={value}");
                    }
                }
                self.line(record, &text);
            }
            (
                Question::Outages,
                "dek_served_stale" | "dek_renewal_failed" | "breaker_opened" | "breaker_closed"
                | "started_without",
            ) => {
                let kind = record.error_type.as_deref().unwrap_or("");
                self.line(record, &format!("{kind} {}{}", kek(record), context(record)));
            }
            (
                Question::Gaps,
                "records_dropped"
                | "trail_write_failed"
                | "incomplete_line_moved"
                | "unsigned_file_moved"
                | "file_sync_failed"
                | "file_removed"
                | "file_changed"
                | "clock_set_back"
                | "sink_failed",
            ) => {
                let count = record.count.map(|count| format!("{count}  ")).unwrap_or_default();
                self.line(record, &format!("{count}{}", record.message.as_deref().unwrap_or("")));
            }
            _ => {}
        }
    }

    fn line(&mut self, record: &Record, text: &str) {
        self.lines.push(format!("{}  {:<17} {text}", record.time, record.activity));
    }

    fn count(&mut self, key: String, times: u64, record: &Record) {
        let count = self.counts.entry(key).or_default();
        if count.times == 0 {
            count.first.clone_from(record.start_time.as_ref().unwrap_or(&record.time));
        }
        count.times += times;
        count.last.clone_from(&record.time);
    }

    fn wrapped(&mut self, record: &Record) {
        let Some(dek) = record.dek_id.as_ref().or(record.branch_key_id.as_ref()) else { return };
        let kek_id = record.kek_id.clone().unwrap_or_default();
        self.wrapped.entry(dek.clone()).or_default().insert(kek_id, kek(record));
    }

    fn finish(mut self, found: &Verification) -> String {
        for keks in std::mem::take(&mut self.wrapped).into_values() {
            let by = keks.into_values().collect::<Vec<_>>().join(" and ");
            self.counts.entry(by).or_default().times += 1;
        }
        let mut text = String::new();
        for line in &self.lines {
            let _ = writeln!(text, "{line}");
        }
        for (key, Count { times, first, last }) in &self.counts {
            let when =
                if first.is_empty() { String::new() } else { format!("  {first} to {last}") };
            let _ = writeln!(text, "{times:>8}  {key}{when}");
        }
        if self.question == Question::Touched {
            let Verification { records, checkpoints, is_closed, .. } = found;
            let _ = writeln!(text, "{records} records, {checkpoints} checkpoints accepted");
            match found.authenticated_before {
                Some(before) => {
                    writeln!(text, "everything before record {before} is authenticated")
                }
                None => writeln!(text, "nothing is authenticated: no key was given"),
            }
            .unwrap_or_default();
            let end =
                if *is_closed { "was closed" } else { "was not closed: it goes on, or was cut" };
            let _ = writeln!(text, "the trail {end}");
        }
        if text.is_empty() {
            text.push_str("nothing\n");
        }
        match &found.fault {
            None => {}
            Some(fault) => {
                let _ = writeln!(text, "THE TRAIL HAS A FAULT, and is read up to it: {fault}");
            }
        }
        text
    }
}

fn is(record: &Record, kind: &str) -> bool {
    record.error_type.as_deref() == Some(kind)
}

fn service(record: &Record) -> &str {
    record.service.as_deref().unwrap_or("")
}

/// On whose behalf.
fn caller(record: &Record) -> String {
    let roles = record.caller_roles.join(", ");
    match &record.caller_service {
        Some(service) if roles.is_empty() => service.clone(),
        Some(service) => format!("{service} ({roles})"),
        None => "nobody who is named".to_owned(),
    }
}

fn operation(record: &Record) -> &str {
    record.operation.as_deref().unwrap_or("")
}

fn short(record: &Record) -> String {
    let id = record.dek_id.as_ref().or(record.branch_key_id.as_ref());
    let kind = if record.branch_key_id.is_some() { "branch key" } else { "DEK" };
    id.map(|id| format!("{kind} {}", id.get(..8).unwrap_or(id))).unwrap_or_default()
}

fn kek(record: &Record) -> String {
    let version = record.kek_version.as_ref().map(|version| format!(" version {version}"));
    format!("{}{}", record.kek_id.as_deref().unwrap_or(""), version.unwrap_or_default())
}

fn context(record: &Record) -> String {
    let pairs = record.context.iter().flatten().map(|(name, value)| match value {
        ContextValue::Clear(value) => format!("{name}={value}"),
        ContextValue::Hashed { hmac } => format!("{name}=hmac:{}", hmac.get(..8).unwrap_or(hmac)),
        _ => format!("{name}=?"),
    });
    pairs.collect::<Vec<_>>().join(" ")
}
