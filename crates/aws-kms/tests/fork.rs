//! A provider that a fork left without its runtime says so, where it could only wait for ever.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use waxseal_aws_kms::AwsKmsKek;
use waxseal_testing::forked;
use waxseal_testing::kms_front::KmsFront;

#[test]
fn a_forked_child_is_told_to_build_its_own() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let front = KmsFront::start();
    let client = front.client("eu-west-1", &front.admin());
    let arn = front.create_key("eu-west-1");
    let kek =
        runtime.block_on(async { AwsKmsKek::builder(arn).client(client).build().await.unwrap() });
    forked::a_child_is_told_to_build_its_own(&kek);
}
