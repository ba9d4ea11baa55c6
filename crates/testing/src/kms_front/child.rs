//! The front in a [`ServerChild`](crate::server_child::ServerChild).

use serde_json::json;

use super::{ACCOUNT, KmsFront, Login};

/// The Region of the key that it has.
pub const REGION: &str = "eu-west-1";
/// The key that it has.
pub const ARN: &str = "arn:aws:kms:eu-west-1:111122223333:key/11112222-3333-4444-5555-666677778888";

/// Of a principal who may do everything.
pub fn login() -> Login {
    Login { access_key: "AKIACHILD".into(), secret: "of the child".into(), session_token: None }
}

/// To be called by a test of this name and nothing else in every binary that starts such a child.
pub fn child_s_part() {
    crate::server_child::serve_as_child(|| {
        let front = KmsFront::start();
        let everything = json!({ "Version": "2012-10-17", "Statement": [
            { "Effect": "Allow", "Action": "kms:*", "Resource": "*" },
        ] });
        front.enroll("child", &login(), vec![everything]);
        front.world().insert_key(REGION, ACCOUNT, ARN.rsplit('/').next().unwrap(), Some([7; 32]));
        let url = front.url();
        (front, url)
    });
}
