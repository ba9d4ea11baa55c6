//! The principals of a policy: roles and users by their ARNs.
#![forbid(unsafe_code)]

use waxseal::domain::duties::{Duties, Role};
use waxseal::{Error, ErrorKind};

/// The parts of the ARN of a role or a user, `arn:PARTITION:iam::ACCOUNT:role/[PATH/]NAME`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PrincipalArn<'a> {
    pub(super) arn: &'a str,
    pub(super) partition: &'a str,
    pub(super) account: &'a str,
    /// `role` or `user`.
    pub(super) kind: &'a str,
    /// Without the path.
    pub(super) name: &'a str,
}

impl<'a> PrincipalArn<'a> {
    /// Reads an ARN. Returns `None` for anything else: the session of a role, an account, a
    /// service, a wildcard.
    pub(super) fn read(arn: &'a str) -> Option<Self> {
        let mut parts = arn.splitn(6, ':');
        let mut next = || parts.next();
        let (head, partition, service, region, account, resource) =
            (next()?, next()?, next()?, next()?, next()?, next()?);
        let (kind, path) = resource.split_once('/')?;
        let (_, name) = resource.rsplit_once('/')?;
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        // IAM User Guide, "IAM and AWS STS quotas": `+=,.@_-` in names, and `/` between the parts
        // of a path. None of the other characters that a path may have is worth the risk in a
        // policy.
        let is_named = |byte: u8| byte.is_ascii_alphanumeric() || b"+=,.@_-/".contains(&byte);
        let well_formed = head == "arn"
            && partition.starts_with("aws")
            && partition.bytes().all(is_word)
            && service == "iam"
            && region.is_empty()
            && account.len() == 12
            && account.bytes().all(|byte| byte.is_ascii_digit())
            && ["role", "user"].contains(&kind)
            && (1..=64).contains(&name.len())
            && path.len() <= 576
            && path.bytes().all(is_named)
            && !resource.contains("//");
        well_formed.then_some(Self { arn, partition, account, kind, name })
    }
}

/// Checks what the library cannot: that names are ARNs, and that no two of them name one principal.
pub(super) fn check(duties: &Duties) -> Result<(), Error> {
    let mut seen: Vec<(PrincipalArn<'_>, Role)> = Vec::new();
    for role in Role::ALL {
        for name in duties.holders(role) {
            let arn = PrincipalArn::read(name).ok_or_else(|| {
                invalid(format!("{role}: {name:?} is not the ARN of an IAM role or user"))
            })?;
            if role == Role::BreakGlass && arn.kind != "role" {
                return Err(invalid(format!("{role}: {name:?} is not an IAM role")));
            }
            // Nobody can tag them, and sessions of Identity Center take tags from the directory.
            let of_aws = [":role/aws-reserved/", ":role/aws-service-role/"];
            if role == Role::BreakGlass && of_aws.iter().any(|path| name.contains(path)) {
                return Err(invalid(format!("{role}: {name:?} is a role that AWS alone may tag")));
            }
            // Names are unique in their account whatever their path and case ("IAM identifiers").
            let is_same = |other: &PrincipalArn<'_>| {
                (other.account, other.kind) == (arn.account, arn.kind)
                    && other.name.eq_ignore_ascii_case(arn.name)
            };
            if let Some((other, _)) =
                seen.iter().find(|(other, _)| is_same(other) && other.arn != arn.arn)
            {
                let (one, other) = (arn.arn, other.arn);
                return Err(invalid(format!(
                    "{role}: {one:?} and {other:?} cannot both exist: names are unique in an account"
                )));
            }
            seen.push((arn, role));
        }
    }
    Ok(())
}

pub(super) fn invalid(detail: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOption, detail.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arns_of_roles_and_users_are_read_and_nothing_else() {
        for arn in [
            "arn:aws:iam::111122223333:role/orders",
            "arn:aws-cn:iam::111122223333:role/team/orders-1.a@b,c=d+e_f",
            "arn:aws:iam::111122223333:user/ada",
        ] {
            assert_eq!(PrincipalArn::read(arn).map(|read| read.arn), Some(arn));
        }
        for arn in [
            "",
            "*",
            "111122223333",
            "arn:aws:iam::111122223333:root",
            "arn:aws:iam::111122223333:role/*",
            "arn:aws:iam::111122223333:role/a?",
            "arn:aws:iam::111122223333:role/${aws:username}",
            "arn:aws:iam::111122223333:role/",
            "arn:aws:iam::111122223333:role//a",
            "arn:aws:iam::111122223333:role/a/",
            "arn:aws:iam::111122223333:role/a\"b",
            "arn:aws:iam::111122223333:role/a b",
            "arn:aws:iam::111122223333:role/ä",
            "arn:aws:iam::111122223333:role/a:b",
            "arn:aws:iam::111122223333:group/a",
            "arn:aws:iam::11112222333:role/a",
            "arn:aws:iam:eu-west-1:111122223333:role/a",
            "arn:aws:sts::111122223333:assumed-role/orders/session",
            "arn:other:iam::111122223333:role/a",
            "AROAIIAWEXAMPLEID",
        ] {
            assert_eq!(PrincipalArn::read(arn), None, "{arn}");
        }
    }
}
