//! The identity policies: what a role may do, and that it has no other duty.
#![forbid(unsafe_code)]

use waxseal::domain::duties::{Duty, Role};

use super::AwsPolicies;
use super::actions::{
    CHANGE, DELETE_IMPORTED, DESCRIBE, GOVERN, IMPORT, LIST, LOOK, OPERATE, READ_TRAIL, TAG_ROLE,
    USE,
};
use super::key_policy::use_by;
use super::statement::{self, Statement};

pub(super) fn document(policies: &AwsPolicies, role: Role) -> String {
    let on_keys = |statement: Statement| statement.on(policies.keys());
    let mut statements = Vec::new();
    let mut allow = |sid, actions: &[&'static str]| {
        statements.push(on_keys(Statement::allow(sid, actions)));
    };
    match role {
        Role::KeyOwner => {
            allow("Govern", &GOVERN);
            if policies.imported_material {
                allow("DeleteImported", &DELETE_IMPORTED);
            }
            allow("Look", &LOOK);
        }
        Role::KeyAdministrator => {
            allow("Operate", &OPERATE);
            if policies.imported_material {
                allow("Import", &IMPORT);
            }
            allow("Look", &LOOK);
        }
        Role::Auditor => {
            allow("Look", &LOOK);
            statements.push(Statement::allow("List", &LIST));
            statements.push(Statement::allow("ReadTheTrail", &READ_TRAIL));
        }
        _ => {
            allow("Describe", &DESCRIBE);
            statements.extend(uses(policies, role));
        }
    }
    if role == Role::KeyOwner && !policies.holders(Role::BreakGlass).is_empty() {
        statements.push(enable_break_glass(policies));
    }
    statements.extend(denials(policies, role));
    statement::document(statements)
}

/// Only by this tag. A request to tag has at least one.
fn enable_break_glass(policies: &AwsPolicies) -> Statement {
    Statement::allow("EnableBreakGlass", &TAG_ROLE)
        .on(policies.holders(Role::BreakGlass).to_vec())
        .when("ForAllValues:StringEquals", "aws:TagKeys", [policies.break_glass_tag.as_str()])
}

/// Keys that are used the same way share statements.
fn uses(policies: &AwsPolicies, role: Role) -> Vec<Statement> {
    let mut statements = Vec::new();
    for (wraps, suffix) in [(true, ""), (false, "OfFormerKeys")] {
        let keys: Vec<_> = policies.keys.iter().filter(|key| key.wraps == wraps).collect();
        let Some(first) = keys.first() else { continue };
        let arns = || keys.iter().map(|key| key.arn.as_str());
        let named = use_by(policies, first, role).into_iter();
        statements.extend(named.map(|statement| statement.on(arns()).named_with(suffix)));
    }
    statements
}

fn denials(policies: &AwsPolicies, role: Role) -> Vec<Statement> {
    let deny = |sid, actions: &[&'static str]| Statement::deny(sid, actions).on(policies.keys());
    let no_use = || deny("NoUse", &USE);
    let no_administration = || deny("NoAdministration", &CHANGE);
    match role.duty() {
        Duty::Administration => vec![no_use()],
        Duty::Audit => vec![no_use(), no_administration()],
        _ => {
            let elsewhere = Statement::deny("NoRewrapToOtherKeys", &["kms:ReEncryptTo"])
                .on_all_but(policies.keys());
            let elsewhere = (role == Role::Rewrapper).then_some(elsewhere);
            [no_administration()].into_iter().chain(elsewhere).collect()
        }
    }
}
