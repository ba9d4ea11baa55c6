//! The policy of a key, which alone decides who may do what in the key's account.
//!
//! Unlike the default key policy, it does not delegate the decision to the account's identity
//! policies. So nobody gains access by a policy that an administrator of the account attaches. The
//! denials also apply to grants, and to any permission that is added later.
#![forbid(unsafe_code)]

use waxseal::DekOrigin;
use waxseal::domain::duties::Role;

use super::actions::{
    CHANGE, DELETE_IMPORTED, DESCRIBE, GOVERN, IMPORT, LOOK, OPERATE, RECOVER, REWRAP, UNWRAP, USE,
    WITH_CONTEXT, WRAP,
};
use super::keys::DomainKey;
use super::statement::{self, Statement};
use super::{AwsPolicies, with_pairs};

/// How long a second factor counts, in seconds.
const MFA_AGE: &str = "3600";
const DOMAIN: &str = "kms:EncryptionContext:waxseal:domain";

pub(super) fn document(policies: &AwsPolicies, key: &DomainKey) -> String {
    let mut statements = administration(policies, key);
    statements.extend(uses(policies, key));
    statements.extend(denials(policies, key));
    statement::document(statements)
}

fn root(key: &DomainKey) -> String {
    format!("arn:{}:iam::{}:root", key.partition, key.account)
}

/// Statements without principals are left out.
fn to_holders(
    statement: Statement,
    arns: impl IntoIterator<Item = impl Into<String>>,
) -> Option<Statement> {
    let arns: Vec<String> = arns.into_iter().map(Into::into).collect();
    (!arns.is_empty()).then(|| statement.to(arns))
}

fn administration(policies: &AwsPolicies, key: &DomainKey) -> Vec<Statement> {
    let (mut govern, mut operate) = (GOVERN.to_vec(), OPERATE.to_vec());
    if policies.imported_material {
        govern.extend(DELETE_IMPORTED);
        operate.extend(IMPORT);
    }
    let owners = policies.holders_in(Role::KeyOwner, key);
    let administrators = policies.holders_in(Role::KeyAdministrator, key);
    let auditors = policies.holders(Role::Auditor).iter().map(String::as_str);
    let look = owners.iter().chain(&administrators).copied().chain(auditors);
    let recover = Statement::allow("RootUserRecovers", &RECOVER)
        .to([root(key)])
        // Without it every administrator of the account could grant themselves access.
        .when("ArnEquals", "aws:PrincipalArn", [root(key)]);
    let all = [
        to_holders(Statement::allow("OwnersGovern", &govern), owners.clone()),
        to_holders(Statement::allow("AdministratorsOperate", &operate), administrators.clone()),
        to_holders(Statement::allow("OwnersAdministratorsAndAuditorsLook", &LOOK), look),
        policies.root_recovery.then_some(recover),
    ];
    all.into_iter().flatten().collect()
}

/// Returns what a role may do with the key, for its key policy and for identity policies.
pub(super) fn use_by(policies: &AwsPolicies, key: &DomainKey, role: Role) -> Vec<Statement> {
    let (wrapping, unwrapping) =
        (policies.duties.when_wrapping(), policies.duties.when_unwrapping());
    match role {
        Role::Writer if key.wraps => {
            let actions: &[&'static str] = match policies.duties.dek_origin() {
                DekOrigin::KeyService if policies.duties.has_one_kek() => &["kms:GenerateDataKey"],
                // One KEK makes the DEK. The others wrap it.
                DekOrigin::KeyService => &["kms:Encrypt", "kms:GenerateDataKey"],
                _ => &["kms:Encrypt"],
            };
            vec![with_pairs(Statement::allow("WritersWrap", actions), wrapping)]
        }
        Role::Reader => {
            vec![with_pairs(Statement::allow("ReadersUnwrap", &["kms:Decrypt"]), unwrapping)]
        }
        Role::Rewrapper => {
            let from = Statement::allow("RewrappersRewrapFrom", &["kms:ReEncryptFrom"]);
            let to = Statement::allow("RewrappersRewrapTo", &["kms:ReEncryptTo"]);
            let both = [Some(from), key.wraps.then_some(to)].into_iter().flatten();
            let in_place = |statement: Statement| match policies.has_one_key() {
                true => statement.when("Bool", "kms:ReEncryptOnSameKey", ["true"]),
                false => statement,
            };
            both.map(|statement| in_place(with_pairs(statement, unwrapping))).collect()
        }
        Role::BreakGlass => {
            let tag = format!("aws:PrincipalTag/{}", policies.break_glass_tag);
            let allow = Statement::allow("BreakGlassUnwraps", &["kms:Decrypt"]);
            let allow = with_pairs(allow, unwrapping);
            vec![allow.when("StringEquals", tag, [policies.duties.domain()])]
        }
        _ => Vec::new(),
    }
}

fn uses(policies: &AwsPolicies, key: &DomainKey) -> Vec<Statement> {
    let roles = [Role::Writer, Role::Reader, Role::Rewrapper, Role::BreakGlass];
    let mut statements = Vec::new();
    for role in roles {
        let allowed = use_by(policies, key, role).into_iter();
        statements.extend(
            allowed.filter_map(|statement| to_holders(statement, policies.holders(role).to_vec())),
        );
    }
    let all = roles.into_iter().flat_map(|role| policies.holders(role));
    let mut all: Vec<_> = all.map(String::as_str).collect();
    all.sort_unstable();
    all.dedup();
    let describe = Statement::allow("UsersDescribe", &DESCRIBE);
    statements.extend(to_holders(describe, all));
    statements
}

fn denials(policies: &AwsPolicies, key: &DomainKey) -> Vec<Statement> {
    let of = |role| policies.holders(role).iter().map(String::as_str);
    let everybody = |sid, actions: &[&'static str]| Statement::deny(sid, actions).for_everybody();
    let writers = of(Role::Writer).filter(|_| key.wraps);
    let administer = policies.holders_in(Role::KeyOwner, key).into_iter();
    let administer = administer.chain(policies.holders_in(Role::KeyAdministrator, key));
    let administer = administer.map(str::to_owned);
    let administer = administer.chain(policies.root_recovery.then(|| root(key)));
    let days = policies.waiting_period.to_string();
    let mut all = vec![
        everybody("NobodyElseWraps", &WRAP).unless_by(writers),
        everybody("NobodyElseUnwraps", &UNWRAP)
            .unless_by(of(Role::Reader).chain(of(Role::BreakGlass))),
        everybody("NobodyElseRewraps", &REWRAP).unless_by(of(Role::Rewrapper)),
        everybody("NobodyElseAdministers", &CHANGE).unless_by(administer),
        everybody("NobodyHandsUseOn", &["kms:CreateGrant"]),
        everybody("NothingOfAnotherDomain", &WITH_CONTEXT).when(
            "StringNotEquals",
            DOMAIN,
            [policies.duties.domain()],
        ),
        everybody("NoUseThroughOtherServices", &USE).when("Null", "kms:ViaService", ["false"]),
        everybody("NobodyDeletesInAHurry", &["kms:ScheduleKeyDeletion"]).when(
            "NumericLessThan",
            "kms:ScheduleKeyDeletionPendingWindowInDays",
            [days],
        ),
        everybody("NobodyBypassesTheLockoutCheck", &["kms:PutKeyPolicy"]).when(
            "Bool",
            "kms:BypassPolicyLockoutSafetyCheck",
            ["true"],
        ),
    ];
    if !policies.vpc_endpoints.is_empty() {
        all.push(everybody("OnlyThroughTheVpcEndpoints", &WITH_CONTEXT).when(
            "StringNotEquals",
            "aws:SourceVpce",
            policies.vpc_endpoints.clone(),
        ));
    }
    all.extend(break_glass_denials(policies));
    all
}

/// Break-glass is denied unless all of these conditions hold. A key that is absent from the request
/// denies.
fn break_glass_denials(policies: &AwsPolicies) -> Vec<Statement> {
    let holders = policies.holders(Role::BreakGlass).to_vec();
    if holders.is_empty() {
        return Vec::new();
    }
    let deny = |sid| {
        Statement::deny(sid, &UNWRAP).for_everybody().when(
            "ArnEquals",
            "aws:PrincipalArn",
            holders.clone(),
        )
    };
    let tag = format!("aws:PrincipalTag/{}", policies.break_glass_tag);
    let tagged = deny("BreakGlassIsDisabledWithoutItsTag").when(
        "StringNotEquals",
        tag,
        [policies.duties.domain()],
    );
    // Without a second factor the request has no age.
    let mfa = deny("BreakGlassNeedsAFreshSecondFactor").when(
        "NumericGreaterThanIfExists",
        "aws:MultiFactorAuthAge",
        [MFA_AGE],
    );
    [Some(tagged), policies.break_glass_mfa.then_some(mfa)].into_iter().flatten().collect()
}
