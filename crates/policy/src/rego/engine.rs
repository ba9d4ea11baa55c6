//! The only file that knows regorus: compiles a policy, and evaluates it.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fmt;
use std::num::NonZeroU32;
use std::time::Duration;

use regorus::utils::limits::ExecutionTimerConfig;
use regorus::{Engine, Value};
use waxseal::{Error, ErrorKind};

use super::files::bad;
use super::sources::{Contents, is_test};
use super::{chains, heads};

/// The number of evaluation steps between two checks of the clock.
const CHECK_INTERVAL: NonZeroU32 = NonZeroU32::new(64).unwrap();

/// A compiled policy.
#[derive(Clone)]
pub(super) struct Compiled {
    engine: Engine,
    /// `data.PACKAGE`.
    query: String,
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiled").field("query", &self.query).finish_non_exhaustive()
    }
}

impl Compiled {
    /// Compiles the policy of a package. Tests are left out unless they are to run.
    pub(super) fn new(
        contents: &Contents,
        package: &str,
        time_limit: Duration,
        with_tests: bool,
    ) -> Result<Self, Error> {
        check_package(package)?;
        // Rego v1, which is the default, is set explicitly: in the old syntax, `allow` without `if`
        // may be true for everybody.
        let mut engine = Engine::new();
        engine.set_strict_builtin_errors(true);
        engine.set_execution_timer_config(ExecutionTimerConfig {
            limit: time_limit,
            check_interval: CHECK_INTERVAL,
        });
        let (mut has_allow, mut packages) = (false, BTreeSet::new());
        refuse_long_expressions(contents)?;
        refuse_lookups_in_heads(contents)?;
        for (name, text) in &contents.modules {
            if is_test(name) && !with_tests {
                continue;
            }
            let found = engine
                .add_policy(name.clone(), text.clone())
                .map_err(|error| refused(name, &error))?;
            packages.insert(found.strip_prefix("data.").unwrap_or(&found).to_owned());
            if found == format!("data.{package}") {
                has_allow |= engine
                    .has_declared_rule_rooted_at(name, "allow")
                    .map_err(|error| refused(name, &error))?;
            }
        }
        if !has_allow {
            let text = match packages.contains(package) || packages.is_empty() {
                true => format!("package {package} has no rule allow"),
                false => {
                    let found: Vec<_> = packages.into_iter().collect();
                    let found = found.join(", ");
                    format!("no file has the package {package}, which decides; they have {found}")
                }
            };
            return Err(bad("policy", &text));
        }
        refuse_data_over_rules(&engine, contents)?;
        let data = serde_json::Value::Object(contents.data.clone()).to_string();
        engine.add_data_json(&data).map_err(|error| refused("data", &error))?;
        let mut compiled = Self { engine, query: format!("data.{package}") };
        // Calls of missing functions and conflicting rules are found now. This also prepares once
        // what all questions need.
        compiled.engine.set_input(Value::new_object());
        compiled
            .engine
            .eval_query(compiled.query.clone(), false)
            .map_err(|error| refused("it fails on an empty question", &error))?;
        Ok(compiled)
    }

    /// Returns the document of the package for this input, or `None` if it is undefined.
    pub(super) fn ask(&self, input: &str) -> Result<Option<serde_json::Value>, Error> {
        self.query(&self.query, input)
    }

    /// Returns the value of a query.
    pub(super) fn query(
        &self,
        query: &str,
        input: &str,
    ) -> Result<Option<serde_json::Value>, Error> {
        // A copy, so that nothing of this question remains for the next.
        let mut engine = self.engine.clone();
        engine.set_input_json(input).map_err(failed)?;
        let mut results = engine.eval_query(query.to_owned(), false).map_err(failed)?.result;
        let Some(mut result) = results.pop() else { return Ok(None) };
        if !results.is_empty() || result.expressions.len() != 1 {
            return Err(Error::new(ErrorKind::Provider, "the policy has several answers"));
        }
        match result.expressions.pop().map(|expression| expression.value) {
            None | Some(Value::Undefined) => Ok(None),
            Some(value) => serde_json::to_value(&value)
                .map(Some)
                .map_err(|_| Error::new(ErrorKind::Provider, "the answer is not JSON")),
        }
    }
}

/// Refuses expressions that the engine would follow until the stack ends, and the process with it.
fn refuse_long_expressions(contents: &Contents) -> Result<(), Error> {
    for (name, text) in &contents.modules {
        // OPA accepts none. Anything after it might not be read.
        if text.contains('\0') {
            return Err(bad(name, "the text has a zero byte"));
        }
        if let Some(line) = chains::too_long(text) {
            let what = format!(
                "an expression has more than {} operators and look-ups: give parts of it rules of \
                 their own",
                chains::MOST
            );
            return Err(bad(&format!("{name}:{line}"), &what));
        }
    }
    Ok(())
}

/// Refuses look-ups with which the engine would silently drop reasons to deny.
fn refuse_lookups_in_heads(contents: &Contents) -> Result<(), Error> {
    let policies = || contents.modules.iter().filter(|(name, _)| !is_test(name));
    let found = heads::lookups(policies().map(|(_, text)| &**text));
    let first = policies().zip(found).find_map(|((name, _), lines)| Some((name, *lines.first()?)));
    first.map_or(Ok(()), |(name, line)| {
        let what = "the head looks up what may be undefined for one of several solutions: look it \
                    up in the body, and name it in the head";
        Err(bad(&format!("{name}:{line}"), what))
    })
}

/// If the data have a value in the place of a rule, the engine uses the value and ignores the rule,
/// so anyone who writes data could allow. OPA refuses that too.
fn refuse_data_over_rules(engine: &Engine, contents: &Contents) -> Result<(), Error> {
    let packages = engine.get_policy_package_components();
    for package in packages.map_err(|error| refused("policy", &error))? {
        let mut path = package.components.iter();
        let Some(place) = path.try_fold(&contents.data, |data, name| data.get(name)?.as_object())
        else {
            continue;
        };
        let is_name = |key: &&String| key.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        // In case of doubt it counts as a rule.
        let is_rule = |key: &&String| {
            engine.has_declared_rule_rooted_at(&package.source_file, key).unwrap_or(true)
        };
        if let Some(key) = place.keys().filter(is_name).find(is_rule) {
            let what =
                format!("{}.{key} stands in the place of a rule", package.components.join("."));
            return Err(bad("data", &what));
        }
    }
    Ok(())
}

/// Checks that a package consists of names separated by dots.
fn check_package(package: &str) -> Result<(), Error> {
    let is_name = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    match package.split('.').all(is_name) {
        true => Ok(()),
        false => Err(bad("package", &format!("{package:?} is not the name of a package"))),
    }
}

/// Returns the error for a policy that cannot be used.
fn refused(name: &str, error: &impl fmt::Display) -> Error {
    bad(name, &one_line(error))
}

/// Returns the error for a policy that did not answer one question.
fn failed(error: impl fmt::Display) -> Error {
    Error::new(ErrorKind::Provider, one_line(&error))
}

/// Puts an error of the engine, which shows the place in the policy on several lines, on one line.
fn one_line(error: &impl fmt::Display) -> String {
    let text = error.to_string();
    let words: Vec<_> = text.split_whitespace().collect();
    let mut line = words.join(" ");
    line.truncate(line.floor_char_boundary(400));
    line
}
