//! Opens streams: looks up the DEK, derives the stream's key, and ties its end to the DEK's.
#![forbid(unsafe_code)]

use super::super::lease::{Lease, expired};
use super::super::registry::{Leased, end_all};
use super::super::stream::StreamDek;
use super::super::{ReadingDek, WritingDek};
use super::{
    ATTEMPTS, DekOf, DekRequest, DekSource, ReadingRequest, WritingRequest, revoked_meanwhile,
    unless_taken_away,
};
use crate::context::EncryptionContext;
use crate::error::{Error, ErrorKind};
use crate::format::stream::Head;
use crate::suite::{ChunkSize, Commitment, StreamSalt};
use crate::sync::Arc;

/// A new stream to which nothing has been written yet.
pub(crate) struct BegunStream {
    pub(crate) key: Arc<StreamDek>,
    pub(crate) dek: Arc<WritingDek>,
    pub(crate) salt: StreamSalt,
    pub(crate) commitment: Commitment,
}

impl DekSource {
    /// Begins a stream, which counts as a message.
    pub(crate) async fn begin_stream(
        self: &Arc<Self>,
        context: &EncryptionContext,
        chunk: ChunkSize,
        aad: &[u8],
    ) -> Result<BegunStream, Error> {
        let limits = self.options().limits.of_streams()?;
        limits.check_chunk(chunk.bytes())?;
        // Always from the operating system, whatever the option for nonces: once per stream.
        let mut salt = [0; 24];
        getrandom::fill(&mut salt).map_err(Error::randomness)?;
        let begin = |dek: &Arc<WritingDek>| {
            dek.begin_stream()?;
            let (key, commitment) =
                dek.lease.with_stream_root(|root| root.begin(&salt, chunk, aad)).flatten()?;
            let stream = StreamDek::written(dek, &key, &limits);
            let key = self.followed(stream, &dek.lease)?;
            Ok(BegunStream { key, dek: dek.clone(), salt, commitment })
        };
        self.with_held(WritingRequest { context }, begin).await
    }

    /// Opens a stream whose head has the right commitment.
    pub(crate) async fn open_stream(
        self: &Arc<Self>,
        request: ReadingRequest<'_>,
        head: &Head<'_>,
        aad: &[u8],
    ) -> Result<Arc<StreamDek>, Error> {
        let limits = self.options().limits.of_streams()?;
        let open = |dek: &Arc<ReadingDek>| {
            let key =
                dek.open_stream(|root| root.open(head.salt, head.chunk, aad, head.commitment))?;
            self.followed(StreamDek::read(dek, &key, &limits), &dek.lease)
        };
        self.with_held(request, open).await
    }

    /// Does the same as [`with`](Self::with), for work that keeps the DEK.
    async fn with_held<Q: DekRequest, R>(
        self: &Arc<Self>,
        request: Q,
        work: impl Fn(&Arc<DekOf<Q>>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let mut taken_away = 0;
        while taken_away < ATTEMPTS {
            let held = self.held(request, taken_away > 0).await?;
            match work(&held) {
                Err(error) if error.kind() == ErrorKind::Exhausted => {}
                result => match unless_taken_away(result)? {
                    Some(result) => return Ok(result),
                    None => taken_away += 1,
                },
            }
        }
        Err(revoked_meanwhile())
    }

    /// Registers the stream to be wiped on time and to end with its parents.
    fn followed(&self, stream: StreamDek, dek: &Lease) -> Result<Arc<StreamDek>, Error> {
        let stream = Arc::new(stream);
        self.cache().look_after(&stream);
        // A revocation from here on finds the stream. An earlier one has ended the DEK, or did not
        // find it because its time was over.
        if dek.has_ended() || stream.lease().has_revoked_parent() {
            end_all(std::slice::from_ref(&stream));
            return Err(expired());
        }
        Ok(stream)
    }
}
