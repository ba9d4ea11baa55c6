//! Finds legal Rego that is most likely a mistake.
#![forbid(unsafe_code)]

use std::fmt;
use std::time::Duration;

use waxseal::policy::{Action, Question};
use waxseal::{EncryptionContext, Error};

use super::engine::Compiled;
use super::heads;
use super::heads::code_lines;
use super::sources::{self, RegoSources, is_test};
use crate::answer;

const TIME_LIMIT: Duration = Duration::from_secs(10);

/// The kinds of warnings about a policy.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Lint {
    /// `allow` is true unless something says otherwise: `default allow := true`.
    DefaultAllow,
    /// A caller without a name is allowed.
    AllowsNobody,
    /// There is no test.
    NoTest,
    /// The syntax of Rego v0, in which `allow` without `if` may be true for everybody. Such a
    /// policy does not load.
    OldSyntax,
    /// `not` before a call, `in`, arithmetic, or an index that is a path: if a part of it is
    /// undefined, Rego engines differ in the meaning. Put it in a separate rule.
    NegatedCall,
    /// The head of a rule looks up something that may be undefined for one of several solutions.
    /// The engine would drop the others, and with them reasons to deny. Such a policy does not
    /// load.
    LookupInHead,
    /// The policy reads the machine's clock. Use `input.time`, which tests can set.
    WallClock,
}

impl Lint {
    fn keeps_from_loading(self) -> bool {
        matches!(self, Self::OldSyntax | Self::LookupInHead)
    }
}

/// A warning.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Finding {
    /// The kind of the warning.
    pub lint: Lint,
    /// The file, or the package.
    pub file: String,
    /// The line, counted from 1, if it is about one.
    pub line: Option<usize>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.lint {
            Lint::DefaultAllow => "allow is true by default",
            Lint::AllowsNobody => "a caller that is not named is allowed",
            Lint::NoTest => "there is no test (a rule test_... in a file that ends in _test.rego)",
            Lint::OldSyntax => "the syntax of Rego v0: write `if` before a body, and `contains`",
            Lint::NegatedCall => {
                "not before a call, `in` or a nested path: engines differ where a part is undefined"
            }
            Lint::LookupInHead => "the head looks something up: look it up in the body",
            Lint::WallClock => "the machine's clock is read: use input.time",
        };
        match self.line {
            Some(line) => write!(f, "{}:{line}: {what}", self.file),
            None => write!(f, "{}: {what}", self.file),
        }
    }
}

/// Looks for likely mistakes in the policy of a package. It is for tests and CI: a policy with
/// findings still loads and decides, except for the old syntax and look-ups in heads.
///
/// ```
/// use waxseal_policy::{Lint, RegoSources, lint};
///
/// let sources = RegoSources::new().rego("a.rego", "package waxseal\ndefault allow := true");
/// let found: Vec<_> = lint(&sources, "waxseal")?.iter().map(|finding| finding.lint).collect();
/// assert_eq!(found, [Lint::DefaultAllow, Lint::AllowsNobody, Lint::NoTest]);
/// # Ok::<(), waxseal::Error>(())
/// ```
///
/// # Errors
/// Those of [`RegoPolicyBuilder::build`](crate::RegoPolicyBuilder::build), unless a finding says
/// why it does not load.
pub fn lint(sources: &RegoSources, package: &str) -> Result<Vec<Finding>, Error> {
    let contents = sources::read(&sources.sources)?;
    let mut findings = Vec::new();
    let policies = || contents.modules.iter().filter(|(name, _)| !is_test(name));
    for ((name, text), lines) in policies().zip(heads::lookups(policies().map(|(_, text)| &**text)))
    {
        of_text(name, text, &mut findings);
        findings.extend(lines.into_iter().map(|line| Finding {
            lint: Lint::LookupInHead,
            file: name.clone(),
            line: Some(line),
        }));
    }
    match Compiled::new(&contents, package, TIME_LIMIT, false) {
        Ok(compiled) => {
            if allows_nobody(&compiled)? {
                findings.push(about(Lint::AllowsNobody, package));
            }
        }
        Err(_) if findings.iter().any(|finding| finding.lint.keeps_from_loading()) => {}
        Err(error) => return Err(error),
    }
    let has_test = |text: &str| code_lines(text).any(|(_, line)| line.starts_with("test_"));
    if !contents.modules.iter().any(|(name, text)| is_test(name) && has_test(text)) {
        findings.push(about(Lint::NoTest, package));
    }
    Ok(findings)
}

fn about(lint: Lint, package: &str) -> Finding {
    Finding { lint, file: format!("package {package}"), line: None }
}

fn allows_nobody(compiled: &Compiled) -> Result<bool, Error> {
    let context = EncryptionContext::empty();
    for action in Action::ALL {
        let question = serde_json::to_string(&Question::new(action, &context)).unwrap_or_default();
        // A failure is a denial.
        let document = compiled.ask(&question).unwrap_or(None);
        if answer::decision(document.as_ref()).is_allowed() {
            return Ok(true);
        }
    }
    Ok(false)
}

fn of_text(name: &str, text: &str, findings: &mut Vec<Finding>) {
    for (number, line) in code_lines(text) {
        let words: Vec<_> = line.split_whitespace().collect();
        let mut found = |lint| {
            findings.push(Finding { lint, file: name.to_owned(), line: Some(number) });
        };
        if let ["default", rule, rest @ ..] = &*words {
            let value = rest.concat();
            if *rule == "allow" && value.trim_start_matches([':', '=']) == "true"
                || rest.is_empty() && ["allow:=true", "allow=true"].contains(rule)
            {
                found(Lint::DefaultAllow);
            }
        }
        if is_old_rule(&line, &words) {
            found(Lint::OldSyntax);
        }
        if line.split("not ").skip(1).any(differs_negated) && words.contains(&"not") {
            found(Lint::NegatedCall);
        }
        if line.contains("time.now_ns(") {
            found(Lint::WallClock);
        }
    }
}

/// A rule whose body begins without `if`: `allow {`, `deny[reason] {`.
fn is_old_rule(line: &str, words: &[&str]) -> bool {
    let begins_rule = line.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let [first, .., last] = words else { return false };
    begins_rule
        && *last == "{"
        && !["import", "package", "default"].contains(first)
        // An assigned object is not a body.
        && !words.iter().any(|word| ["if", "contains", ":=", "=", "else"].contains(word))
}

/// Whether the expression after `not` has a part whose absence is not a plain `false`.
fn differs_negated(behind: &str) -> bool {
    let negated = behind.split([';', '}']).next().unwrap_or_default();
    let negated = negated.split(" with ").next().unwrap_or_default();
    let is_path = |text: &str| text.contains(['.', '[']);
    let in_brackets = negated.split('[').skip(1).filter_map(|inner| inner.split(']').next());
    let computes = [" in ", " + ", " - ", " * ", " / ", " % ", " & ", " | "];
    negated.contains('(')
        || in_brackets.into_iter().any(is_path)
        || is_path(negated) && computes.iter().any(|sign| negated.contains(sign))
}
