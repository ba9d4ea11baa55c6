//! The provider's calls to Cloud KMS, each made once, and their outcomes.
#![forbid(unsafe_code)]

use zeroize::Zeroizing;

use crate::answers::{self, Description, Unwrapped, Wrapped};
use crate::credentials::{Keeper, Loaded};
use crate::errors::Failure;
use crate::format::Naming;
use crate::transport::{OnItsWay, Reply, Transport};
use waxseal::EncryptionContext;
use waxseal::kek::Login;

/// Cloud KMS, and the credentials for it.
pub(crate) struct Service {
    transport: Transport,
    keeper: Keeper,
}

impl Service {
    pub(crate) fn new(transport: Transport, keeper: Keeper) -> Self {
        Self { transport, keeper }
    }

    pub(crate) fn endpoint(&self) -> &str {
        self.transport.origin()
    }

    pub(crate) fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    pub(crate) fn login(&self) -> Login {
        self.keeper.login()
    }

    pub(crate) fn on_its_way(&self) -> OnItsWay {
        self.transport.on_its_way()
    }

    /// Makes one call, and repeats it with another token if Cloud KMS refuses the first.
    async fn call(
        &self,
        operation: &str,
        path: &str,
        body: impl Fn() -> Option<Zeroizing<Vec<u8>>>,
    ) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let loaded = self.keeper.load().await?;
        let (failure, generation) = match self.once(operation, path, loaded, body()).await {
            Err((failure, generation)) if failure.is_of_credentials => (failure, generation),
            answer => return answer.map_err(|(failure, _)| failure),
        };
        if !self.keeper.renew(generation) {
            return Err(failure);
        }
        let loaded = self.keeper.load().await?;
        self.once(operation, path, loaded, body()).await.map_err(|(failure, _)| failure)
    }

    /// A failure comes with the generation of its token.
    async fn once(
        &self,
        operation: &str,
        path: &str,
        loaded: Loaded,
        body: Option<Zeroizing<Vec<u8>>>,
    ) -> Result<Zeroizing<Vec<u8>>, (Failure, u64)> {
        let Loaded { headers, generation } = loaded;
        let sent = self.transport.send(operation, path, headers, body).await;
        let Reply { status, retry_after, body } = sent.map_err(|failure| (failure, generation))?;
        if (200..300).contains(&status) {
            self.keeper.accepted(generation);
            return Ok(body);
        }
        let failure = Failure::answered(operation, status, retry_after, &body);
        if !failure.is_of_credentials {
            self.keeper.accepted(generation);
        }
        Err((failure, generation))
    }

    /// The additional authenticated data is the SHA-256 of the context: the largest context,
    /// together with a DEK, would not fit into the 8 KiB that an HSM key accepts.
    pub(crate) async fn encrypt(
        &self,
        key: &Naming,
        context: &EncryptionContext,
        dek: &[u8],
    ) -> Result<Wrapped, Failure> {
        let path = format!("/v1/{}:encrypt", key.asked());
        let request = || Some(answers::request("plaintext", dek, context.digest()));
        let body = self.call("encrypt", &path, request).await?;
        answers::encrypted(&body, key)
    }

    pub(crate) async fn decrypt(
        &self,
        key: &str,
        context: &EncryptionContext,
        ciphertext: &[u8],
    ) -> Result<Unwrapped, Failure> {
        let path = format!("/v1/{key}:decrypt");
        let request = || Some(answers::request("ciphertext", ciphertext, context.digest()));
        let body = self.call("decrypt", &path, request).await?;
        answers::decrypted(&body)
    }

    pub(crate) async fn get(&self, key: &Naming) -> Result<Description, Failure> {
        let body = self.call("get", &format!("/v1/{}", key.asked()), || None).await?;
        answers::described(&body, key)
    }
}
