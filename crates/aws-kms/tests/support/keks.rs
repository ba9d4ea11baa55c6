//! The provider for keys of an [`XksPath`].
#![allow(missing_docs, unreachable_pub, dead_code, async_fn_in_trait)]
#![allow(clippy::unwrap_used)]

use waxseal_aws_kms::{AwsKms, AwsKmsBuilder};
use waxseal_testing::xks_path::XksPath;

pub trait XksKeks {
    fn builder(&self, arn: &str) -> AwsKmsBuilder;
    async fn kek(&self) -> AwsKms;
    /// Of a key of the store.
    async fn kek_of(&self, arn: &str) -> AwsKms;
}

impl XksKeks for XksPath {
    fn builder(&self, arn: &str) -> AwsKmsBuilder {
        AwsKms::builder(arn).client(self.client())
    }

    async fn kek(&self) -> AwsKms {
        self.kek_of(&self.arn).await
    }

    async fn kek_of(&self, arn: &str) -> AwsKms {
        self.builder(arn).external_key_store(&self.store).build().await.unwrap()
    }
}
