//! Runs the tests of a policy.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::time::Duration;

use waxseal::Error;

use super::engine::Compiled;
use super::files::bad;
use super::sources::{self, RegoSources, is_test};

const TIME_LIMIT: Duration = Duration::from_secs(10);

/// The result of one test.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct TestResult {
    /// Its package and rule.
    pub name: String,
    /// Whether it is true.
    pub passed: bool,
    /// The error in which it ended.
    pub error: Option<Error>,
}

/// Runs every rule whose name begins with `test_`, in the files that end in `_test.rego`, as `opa
/// test` does. A test passes if it is true. `package` is the one that decides.
///
/// # Errors
/// Those of [`RegoPolicyBuilder::build`](crate::RegoPolicyBuilder::build), and if there is no test.
pub fn run_tests(sources: &RegoSources, package: &str) -> Result<Vec<TestResult>, Error> {
    let contents = sources::read(&sources.sources)?;
    let mut tests = BTreeSet::new();
    for (_, text) in contents.modules.iter().filter(|(name, _)| is_test(name)) {
        let first = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
        let package = text.lines().find_map(|line| line.strip_prefix("package ")).unwrap_or("");
        let rules = text.lines().filter(|line| line.starts_with("test_")).map(first);
        tests.extend(rules.map(|rule| format!("{}.{rule}", package.trim())));
    }
    if tests.is_empty() {
        return Err(bad("policy", "no test was found"));
    }
    let compiled = Compiled::new(&contents, package, TIME_LIMIT, true)?;
    let run = |name: String| match compiled.query(&format!("data.{name}"), "{}") {
        Ok(value) => {
            TestResult { name, passed: value == Some(serde_json::Value::Bool(true)), error: None }
        }
        Err(error) => TestResult { name, passed: false, error: Some(error) },
    };
    Ok(tests.into_iter().map(run).collect())
}
