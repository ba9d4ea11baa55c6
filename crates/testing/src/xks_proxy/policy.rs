//! The policy decision: Rego, evaluated in process.

use regorus::{Engine, Value};

/// The policy and the data it decides by.
pub struct Policy {
    engine: Engine,
}

impl Policy {
    /// What the proxy decides by if nothing else is said; its data are grants and denied
    /// principals.
    pub const DEFAULT: &str = include_str!("policy.rego");

    /// Rego v1 only. In the old syntax `allow` without `if` would be true for everybody, so what
    /// does not parse as v1 is an error here.
    pub fn new(rego: &str, data: &serde_json::Value) -> Result<Self, String> {
        let mut engine = Engine::new();
        engine.set_strict_builtin_errors(true);
        engine
            .add_policy("policy.rego".to_owned(), rego.to_owned())
            .map_err(|error| error.to_string())?;
        engine.add_data_json(&data.to_string()).map_err(|error| error.to_string())?;
        Ok(Self { engine })
    }

    /// `Err` is a denial, with the reason, which is for the log only. Everything that is not
    /// plainly `true`, including an error, is a denial.
    pub fn decide(&self, input: &serde_json::Value) -> Result<(), String> {
        // A copy, so that nothing of this request is left for the next.
        let mut engine = self.engine.clone();
        engine.set_input_json(&input.to_string()).map_err(|error| format!("the input: {error}"))?;
        match engine.eval_rule("data.xks.allow".to_owned()) {
            Ok(Value::Bool(true)) => Ok(()),
            Ok(_) => {
                let reasons = engine.eval_rule("data.xks.deny_reason".to_owned());
                Err(reasons.map_or_else(
                    |error| format!("no reason: {error}"),
                    |reasons| reasons.to_string(),
                ))
            }
            Err(error) => Err(format!("the policy fails: {error}")),
        }
    }
}
