//! Guards a domain from outside its keys: the service control policy, and the alarm.
#![forbid(unsafe_code)]

use waxseal::domain::duties::Role;

use super::AwsPolicies;
use super::actions::{DELETE, TAG};
use super::json::{Json, object};
use super::statement::{self, Statement};

pub(super) fn document(policies: &AwsPolicies) -> String {
    let owners = || policies.holders(Role::KeyOwner).to_vec();
    let days = policies.waiting_period.to_string();
    let glass = policies.holders(Role::BreakGlass).to_vec();
    let mut statements = vec![
        Statement::deny("OnlyOwnersDelete", &DELETE).on(policies.keys()).unless_by(owners()),
        Statement::deny("NobodyDeletesInAHurry", &["kms:ScheduleKeyDeletion"])
            .on(policies.keys())
            .when("NumericLessThan", "kms:ScheduleKeyDeletionPendingWindowInDays", [days]),
    ];
    if !glass.is_empty() {
        statements.push(
            Statement::deny("OnlyOwnersEnableBreakGlass", &TAG)
                .on(glass)
                .when(
                    "ForAnyValue:StringEquals",
                    "aws:TagKeys",
                    [policies.break_glass_tag.as_str()],
                )
                .unless_by(owners()),
        );
    }
    statement::document(statements)
}

/// From "Creating events with CloudTrail API activity" in the EventBridge User Guide, and
/// "CloudTrail userIdentity element" in the CloudTrail User Guide.
pub(super) fn event_pattern(policies: &AwsPolicies) -> String {
    let list = |items: &[&str]| Json::List(items.iter().map(|item| Json::from(*item)).collect());
    let roles = policies.holders(Role::BreakGlass);
    let arns = Json::List(roles.iter().map(|arn| Json::from(arn.as_str())).collect());
    let names = roles.iter().filter_map(|arn| arn.rsplit('/').next());
    let names = Json::List(names.map(Json::from).collect());
    let issuer = object([("sessionIssuer", object([("arn", arns)]))]);
    let used = object([
        ("source", list(&["aws.kms"])),
        ("detail", object([("userIdentity", object([("sessionContext", issuer)]))])),
    ]);
    let enabled = object([
        ("source", list(&["aws.iam"])),
        (
            "detail",
            object([
                ("eventName", list(&["TagRole"])),
                ("requestParameters", object([("roleName", names)])),
            ]),
        ),
    ]);
    object([
        ("detail-type", list(&["AWS API Call via CloudTrail"])),
        ("$or", Json::List(vec![used, enabled])),
    ])
    .pretty()
}
