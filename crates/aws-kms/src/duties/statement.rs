//! Statements of policies.
#![forbid(unsafe_code)]

use super::json::{Json, object, one_or_many};

/// One statement. A policy of an identity has no principals.
#[derive(Clone, Debug)]
pub(super) struct Statement {
    sid: String,
    effect: &'static str,
    principals: Option<Vec<String>>,
    actions: Vec<&'static str>,
    /// The element's name and values.
    resource: (&'static str, Vec<String>),
    /// Operator, key, values.
    conditions: Vec<(&'static str, String, Vec<String>)>,
}

impl Statement {
    pub(super) fn allow(sid: &'static str, actions: &[&'static str]) -> Self {
        Self::new(sid, "Allow", actions)
    }

    pub(super) fn deny(sid: &'static str, actions: &[&'static str]) -> Self {
        Self::new(sid, "Deny", actions)
    }

    fn new(sid: &'static str, effect: &'static str, actions: &[&'static str]) -> Self {
        let actions = actions.to_vec();
        let (sid, resource) = (sid.to_owned(), ("Resource", vec!["*".to_owned()]));
        Self { sid, effect, principals: None, actions, resource, conditions: Vec::new() }
    }

    pub(super) fn to<P: Into<String>>(mut self, principals: impl IntoIterator<Item = P>) -> Self {
        self.principals = Some(principals.into_iter().map(Into::into).collect());
        self
    }

    pub(super) fn for_everybody(self) -> Self {
        self.to(["*"])
    }

    pub(super) fn on<R: Into<String>>(mut self, resources: impl IntoIterator<Item = R>) -> Self {
        self.resource = ("Resource", resources.into_iter().map(Into::into).collect());
        self
    }

    pub(super) fn on_all_but<R: Into<String>>(
        mut self,
        resources: impl IntoIterator<Item = R>,
    ) -> Self {
        self.resource = ("NotResource", resources.into_iter().map(Into::into).collect());
        self
    }

    /// Appends to the statement's name, so that it is unique in a document.
    pub(super) fn named_with(mut self, suffix: &str) -> Self {
        self.sid.push_str(suffix);
        self
    }

    /// Adds a condition. All conditions must hold.
    pub(super) fn when<V: Into<String>>(
        mut self,
        operator: &'static str,
        key: impl Into<String>,
        values: impl IntoIterator<Item = V>,
    ) -> Self {
        let values = values.into_iter().map(Into::into).collect();
        self.conditions.push((operator, key.into(), values));
        self
    }

    /// Applies the statement to everybody except these principals. Without any, it applies to
    /// everybody.
    pub(super) fn unless_by<P: Into<String>>(self, arns: impl IntoIterator<Item = P>) -> Self {
        let arns: Vec<String> = arns.into_iter().map(Into::into).collect();
        if arns.is_empty() {
            return self;
        }
        self.when("ArnNotEquals", "aws:PrincipalArn", arns)
    }

    fn json(self) -> Json {
        let mut fields = vec![("Sid", Json::from(self.sid)), ("Effect", self.effect.into())];
        if let Some(principals) = self.principals {
            let everybody = principals.iter().any(|principal| principal == "*");
            let principals = one_or_many(principals);
            let of_account = || object([("AWS", principals.clone())]);
            fields.push(("Principal", if everybody { "*".into() } else { of_account() }));
        }
        fields.push(("Action", one_or_many(self.actions)));
        fields.push((self.resource.0, one_or_many(self.resource.1)));
        if !self.conditions.is_empty() {
            fields.push(("Condition", conditions(self.conditions)));
        }
        object(fields)
    }
}

/// Writes conditions with one operator as one object.
fn conditions(all: Vec<(&'static str, String, Vec<String>)>) -> Json {
    let mut by_operator: Vec<(&'static str, Vec<(String, Json)>)> = Vec::new();
    for (operator, key, values) in all {
        let condition = (key, one_or_many(values));
        match by_operator.iter_mut().find(|(other, _)| *other == operator) {
            Some((_, conditions)) => conditions.push(condition),
            None => by_operator.push((operator, vec![condition])),
        }
    }
    object(by_operator.into_iter().map(|(operator, keys)| (operator, object(keys))))
}

/// Writes a policy.
pub(super) fn document(statements: Vec<Statement>) -> String {
    let statements = statements.into_iter().map(Statement::json).collect();
    object([("Version", Json::from("2012-10-17")), ("Statement", Json::List(statements))]).pretty()
}
