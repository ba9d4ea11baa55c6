//! What Google answers to a request that fails: a `google.rpc.Status` as JSON (AIP-193, "Error
//! model"), with the details that say more.

use serde_json::{Value, json};

/// The code in words, and the HTTP status that goes with it (`google/rpc/code.proto`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    InvalidArgument,
    FailedPrecondition,
    Unauthenticated,
    PermissionDenied,
    NotFound,
    Aborted,
    ResourceExhausted,
    Internal,
    Unavailable,
    DeadlineExceeded,
}

impl Code {
    pub fn name(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::FailedPrecondition => "FAILED_PRECONDITION",
            Self::Unauthenticated => "UNAUTHENTICATED",
            Self::PermissionDenied => "PERMISSION_DENIED",
            Self::NotFound => "NOT_FOUND",
            Self::Aborted => "ABORTED",
            Self::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Self::Internal => "INTERNAL",
            Self::Unavailable => "UNAVAILABLE",
            Self::DeadlineExceeded => "DEADLINE_EXCEEDED",
        }
    }

    pub fn http(self) -> u16 {
        match self {
            Self::InvalidArgument | Self::FailedPrecondition => 400,
            Self::Unauthenticated => 401,
            Self::PermissionDenied => 403,
            Self::NotFound => 404,
            Self::Aborted => 409,
            Self::ResourceExhausted => 429,
            Self::Internal => 500,
            Self::Unavailable => 503,
            Self::DeadlineExceeded => 504,
        }
    }
}

/// A failure, as the caller sees it.
#[derive(Clone, Debug)]
pub struct Status {
    pub code: Code,
    pub message: String,
    pub details: Vec<Value>,
    /// The header `Retry-After`, in seconds.
    pub retry_after: Option<u32>,
}

impl Status {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Vec::new(), retry_after: None }
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// With a `google.rpc.ErrorInfo`.
    pub fn with_info(mut self, reason: &str, domain: &str, metadata: Value) -> Self {
        self.details.push(json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": reason, "domain": domain, "metadata": metadata,
        }));
        self
    }

    /// With a `google.rpc.PreconditionFailure`: type and subject of each violation.
    pub fn with_violations(mut self, violations: &[(&str, &str)]) -> Self {
        let violations: Vec<_> = violations
            .iter()
            .map(|(kind, subject)| json!({ "type": kind, "subject": subject }))
            .collect();
        self.details.push(json!({
            "@type": "type.googleapis.com/google.rpc.PreconditionFailure",
            "violations": violations,
        }));
        self
    }

    /// With a `google.rpc.RetryInfo`.
    pub fn with_retry_info(mut self, delay: &str) -> Self {
        self.details.push(json!({
            "@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay,
        }));
        self
    }

    pub fn with_retry_after(mut self, seconds: u32) -> Self {
        self.retry_after = Some(seconds);
        self
    }

    pub fn to_json(&self) -> Value {
        let mut error = json!({
            "code": self.code.http(), "message": self.message, "status": self.code.name(),
        });
        if !self.details.is_empty() {
            error["details"] = self.details.clone().into();
        }
        json!({ "error": error })
    }
}

/// "Permission denied on resource" as IAM words it for Cloud KMS. A key that does not exist is
/// answered the same way to a caller without permission ("or it may not exist").
pub fn permission_denied(permission: &str, resource: &str) -> Status {
    Status::new(
        Code::PermissionDenied,
        format!("Permission '{permission}' denied on resource '{resource}' (or it may not exist)."),
    )
    .with_info(
        "IAM_PERMISSION_DENIED",
        "cloudkms.googleapis.com",
        json!({ "permission": permission, "resource": resource }),
    )
}

pub fn not_found(what: &str, name: &str) -> Status {
    Status::new(Code::NotFound, format!("{what} {name} not found."))
}

/// A version that is not ENABLED ("Key version states": only an enabled one may be used), worded as
/// the service does, with the violation that names the state.
pub fn not_enabled(version: &str, state: &str) -> Status {
    Status::new(
        Code::FailedPrecondition,
        format!("{version} is not enabled, current state is: {state}."),
    )
    .with_violations(&[(&format!("KEY_{state}"), version)])
}

/// Credentials that are missing, unknown or expired (`google.api.ErrorReason`).
pub fn unauthenticated(reason: &str) -> Status {
    let message = if reason == "CREDENTIALS_MISSING" {
        "Request is missing required authentication credential. Expected OAuth 2 access token, \
            login cookie or other valid authentication credential."
    } else {
        "Request had invalid authentication credentials. Expected OAuth 2 access token, login \
            cookie or other valid authentication credential."
    };
    Status::new(Code::Unauthenticated, message).with_info(
        reason,
        "googleapis.com",
        json!({ "service": "cloudkms.googleapis.com" }),
    )
}

/// "Cryptographic requests" of a project are used up ("Quotas", Cloud KMS).
pub fn quota_exceeded(project: &str) -> Status {
    Status::new(
        Code::ResourceExhausted,
        format!(
            "Quota exceeded for quota metric 'Cryptographic requests' and limit 'Cryptographic \
                requests per minute' of service 'cloudkms.googleapis.com' for consumer \
                '{project}'."
        ),
    )
    .with_info(
        "RATE_LIMIT_EXCEEDED",
        "googleapis.com",
        json!({
            "consumer": project,
            "quota_metric": "cloudkms.googleapis.com/crypto_requests",
            "service": "cloudkms.googleapis.com",
        }),
    )
}

/// The API is not enabled in the project (`google.api.ErrorReason.SERVICE_DISABLED`).
pub fn service_disabled(project: &str) -> Status {
    Status::new(
        Code::PermissionDenied,
        format!(
            "Cloud Key Management Service (KMS) API has not been used in project {project} before or it is disabled."
        ),
    )
    .with_info(
        "SERVICE_DISABLED",
        "googleapis.com",
        json!({ "consumer": project, "service": "cloudkms.googleapis.com" }),
    )
}

/// A request from outside a perimeter ("VPC Service Controls", "Troubleshooting").
pub fn outside_the_perimeter() -> Status {
    Status::new(
        Code::PermissionDenied,
        "Request is prohibited by organization's policy. vpcServiceControlsUniqueIdentifier: 7Ux",
    )
    .with_violations(&[("VPC_SERVICE_CONTROLS", "7Ux")])
    .with_info(
        "SECURITY_POLICY_VIOLATED",
        "googleapis.com",
        json!({ "service": "cloudkms.googleapis.com", "uid": "7Ux" }),
    )
}
