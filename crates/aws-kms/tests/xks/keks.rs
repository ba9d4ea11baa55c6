//! The provider for keys of an [`XksPath`].
#![allow(missing_docs, unreachable_pub, dead_code, async_fn_in_trait)]
#![allow(clippy::unwrap_used)]

use waxseal_aws_kms::{AwsKmsKek, AwsKmsKekBuilder};
use waxseal_testing::xks_path::XksPath;

pub trait XksKeks {
    fn builder(&self, arn: &str) -> AwsKmsKekBuilder;
    async fn kek(&self) -> AwsKmsKek;
    /// Of a key of the store.
    async fn kek_of(&self, arn: &str) -> AwsKmsKek;
}

impl XksKeks for XksPath {
    fn builder(&self, arn: &str) -> AwsKmsKekBuilder {
        AwsKmsKek::builder(arn).client(self.client())
    }

    async fn kek(&self) -> AwsKmsKek {
        self.kek_of(&self.arn).await
    }

    async fn kek_of(&self, arn: &str) -> AwsKmsKek {
        self.builder(arn).external_key_store(&self.store).build().await.unwrap()
    }
}
