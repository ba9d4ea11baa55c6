//! A provider that a fork left without its runtime says so, where it could only wait for ever.
#![cfg(target_os = "linux")]
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use waxseal_google_kms::GoogleKmsKek;
use waxseal_testing::forked;
use waxseal_testing::google::{GoogleFront, Protection};

#[test]
fn a_forked_child_is_told_to_build_its_own() {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let front = GoogleFront::start();
    let key = front.create_key("orders", Protection::Software);
    let builder = GoogleKmsKek::builder(key).endpoint(front.url()).metadata_server_at(front.url());
    let kek = runtime.block_on(builder.build()).unwrap();
    forked::a_child_is_told_to_build_its_own(&kek);
}
