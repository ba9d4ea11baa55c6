//! The text of ACL policies.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

/// A policy's rule for one path.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
struct Rule {
    capabilities: BTreeSet<&'static str>,
    /// The parameters that a request may have, with their values as HCL, or none for any value.
    /// Without parameters any request may be made.
    parameters: BTreeMap<&'static str, &'static [&'static str]>,
}

/// The rules of one policy. The rules of two roles for one path are merged.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Rules(BTreeMap<String, Rule>);

impl Rules {
    pub(super) fn allow(&mut self, path: impl Into<String>, capabilities: &[&'static str]) {
        self.0.entry(path.into()).or_default().capabilities.extend(capabilities);
    }

    pub(super) fn allow_with(
        &mut self,
        path: impl Into<String>,
        capabilities: &[&'static str],
        parameters: &[(&'static str, &'static [&'static str])],
    ) {
        let rule = self.0.entry(path.into()).or_default();
        rule.capabilities.extend(capabilities);
        rule.parameters.extend(parameters.iter().copied());
    }

    /// Denies it, even to a token that another policy allows it.
    pub(super) fn deny(&mut self, path: impl Into<String>) {
        self.0.insert(path.into(), Rule { capabilities: ["deny"].into(), ..Rule::default() });
    }

    /// Writes the policy below a comment. Nothing in it needs escaping, since names were checked.
    pub(super) fn hcl(&self, comment: &str) -> String {
        let mut text = format!("# {comment}\n");
        for (path, rule) in &self.0 {
            let capabilities: Vec<_> =
                rule.capabilities.iter().map(|name| format!("\"{name}\"")).collect();
            let capabilities = capabilities.join(", ");
            // Writing to a string cannot fail.
            let _ = write!(text, "\npath \"{path}\" {{\n  capabilities = [{capabilities}]\n");
            if !rule.parameters.is_empty() {
                text.push_str("  allowed_parameters = {\n");
                for (name, values) in &rule.parameters {
                    let _ = writeln!(text, "    \"{name}\" = [{}]", values.join(", "));
                }
                text.push_str("  }\n");
            }
            text.push_str("}\n");
        }
        text
    }
}
