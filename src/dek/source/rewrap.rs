//! Rewraps lists of wrapped keys, many together where the key service has batches.
#![forbid(unsafe_code)]

use futures_util::{StreamExt, stream};

use super::{ATTEMPTS, DekSource, revoked_meanwhile};
use crate::context::EncryptionContext;
use crate::error::Error;
use crate::format::WrappedKeys;
use crate::kek::batch::KeyList;
use crate::kek::rewrap::{Check, share};
use crate::suite::DekId;

impl DekSource {
    /// Returns the list that the writing KEKs would make now.
    pub(crate) async fn rewrap_list(
        &self,
        context: &EncryptionContext,
        dek_id: &DekId,
        keys: &WrappedKeys,
        check: Check,
    ) -> Result<WrappedKeys, Error> {
        let mut rewrapped = self.rewrap_lists(&[KeyList { context, dek_id, keys }], check).await;
        rewrapped.pop().unwrap_or_else(|| Err(Error::invalid()))
    }

    /// Does the same as [`rewrap_list`](Self::rewrap_list), for many lists. Returns one result for
    /// each, in order. A failed list does not affect the others.
    pub(crate) async fn rewrap_lists(
        &self,
        lists: &[KeyList<'_>],
        check: Check,
    ) -> Vec<Result<WrappedKeys, Error>> {
        let (at_once, together) = (self.keks.at_once(), self.keks.lists_together());
        let groups = lists.len().div_ceil(together);
        let each = share(at_once, groups);
        let rewrapping = stream::iter(0..groups).map(|group| {
            let group = lists.chunks(together).nth(group).unwrap_or_default();
            self.rewrap_group(group, check, each)
        });
        rewrapping.buffered(at_once).collect::<Vec<_>>().await.into_iter().flatten().collect()
    }

    /// Rewraps lists under the rules of a look-up: shut-down ends it, and after a concurrent
    /// revocation it is repeated for the lists that may be affected.
    async fn rewrap_group(
        &self,
        lists: &[KeyList<'_>],
        check: Check,
        at_once: usize,
    ) -> Vec<Result<WrappedKeys, Error>> {
        let cache = self.cache();
        let mut results: Vec<_> = lists.iter().map(|_| Err(revoked_meanwhile())).collect();
        let mut left: Vec<_> = lists.iter().copied().zip(&mut results).collect();
        left.retain_mut(|(list, result)| match self.check_context(list.context) {
            Ok(()) => true,
            Err(foreign) => {
                **result = Err(foreign);
                false
            }
        });
        for _ in 0..ATTEMPTS {
            if left.is_empty() {
                break;
            }
            let asked: Vec<_> = left.iter().map(|(list, _)| *list).collect();
            let mark = cache.revocations.mark();
            let answers = match self.check_open() {
                Ok(()) => {
                    let rewrapping = self.keks.rewrap_lists(&asked, check, at_once);
                    cache.unless_closed(async { Ok::<_, Error>(rewrapping.await) }).await
                }
                closed => closed.map(|()| Vec::new()),
            };
            match answers.and_then(|answers| self.check_open().map(|()| answers)) {
                Ok(answers) => {
                    for ((_, result), answer) in left.iter_mut().zip(answers) {
                        **result = answer;
                    }
                    left.retain(|(list, _)| cache.revocations.may_concern(mark, list.context));
                }
                Err(closed) => {
                    left.drain(..).for_each(|(_, result)| *result = Err(closed.clone()));
                }
            }
        }
        // Which KEKs each answer depends on is not known.
        left.into_iter().for_each(|(_, result)| *result = Err(revoked_meanwhile()));
        results
    }
}
