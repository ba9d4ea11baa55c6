//! Everything used from `aws_config`, in one place.
#![forbid(unsafe_code)]

pub(crate) use aws_config::meta::ProviderChainError;
pub(crate) use aws_config::{SdkConfig, defaults};
