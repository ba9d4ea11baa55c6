//! What is left in memory of DEKs that went to Cloud KMS and came back. The stand-in is a separate
//! process.
#![allow(dead_code)]
#![allow(missing_docs, unreachable_pub)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use waxseal_google_kms::GoogleKmsKek;
use waxseal_testing::crossings::{self, Crossings, Found};
use waxseal_testing::google::child::KEY;
use waxseal_testing::server_child::ServerChild;

/// Has DEKs wrapped and unwrapped. `child` is the name of the test that plays the stand-in.
pub fn run(child: &str) -> Found {
    let front = ServerChild::start(child);
    let runtime = crossings::runtime();
    let builder = GoogleKmsKek::builder(KEY).endpoint(front.url()).metadata_server_at(front.url());
    let kek = runtime.block_on(builder.build()).unwrap();
    let crossings = Crossings { deks: 6, generated: false, text: crossings::base64 };
    crossings.found(runtime, vec![kek])
}
