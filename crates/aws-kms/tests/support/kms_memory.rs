//! What is left in memory of DEKs that went to AWS KMS and came back. The KMS front is a separate
//! process.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use waxseal_aws_kms::AwsKmsKek;
use waxseal_testing::crossings::{self, Crossings, Found};
use waxseal_testing::kms_front::{child as kms_child, client_at};
use waxseal_testing::server_child::ServerChild;

/// Has DEKs wrapped and unwrapped. `child` is the name of the test that plays the front.
pub fn run(child: &str) -> Found {
    let front = ServerChild::start(child);
    let runtime = crossings::runtime();
    let client = client_at(front.url(), kms_child::REGION, &kms_child::login());
    let kek = runtime.block_on(AwsKmsKek::builder(kms_child::ARN).client(client).build()).unwrap();
    let crossings = Crossings { deks: 3, generated: true, text: crossings::base64 };
    crossings.found(runtime, vec![kek])
}
