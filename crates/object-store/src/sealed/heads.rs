//! The heads of objects, cached so that a ranged read is one request. They are not secret.
//!
//! A cached head is valid only for the version of the object that it was read with. Every request
//! that relies on it names that version, and the answer is compared with it.
#![forbid(unsafe_code)]

use std::sync::Arc;

use super::api::ObjectMeta;
use super::api::path::Path;
use moka::sync::Cache;
use waxseal::StreamHead;

/// The head of one version of an object.
pub(super) struct Known {
    pub(super) head: StreamHead,
    /// The metadata of the encrypted object.
    pub(super) meta: ObjectMeta,
    pub(super) plaintext_len: u64,
}

impl Known {
    /// Returns whether an answer is about the same version.
    pub(super) fn is_of(&self, meta: &ObjectMeta) -> bool {
        let known = &self.meta;
        let same = |a: &Option<String>, b: &Option<String>| a.is_none() || b.is_none() || a == b;
        let is_named = known.e_tag.is_some() && meta.e_tag.is_some();
        known.size == meta.size
            && same(&known.e_tag, &meta.e_tag)
            && same(&known.version, &meta.version)
            && (is_named || known.last_modified == meta.last_modified)
    }

    /// Returns the tag by which a request can require this version. A weak tag never matches.
    pub(super) fn strong_tag(&self) -> Option<&str> {
        self.meta.e_tag.as_deref().filter(|tag| !tag.starts_with("W/"))
    }

    fn weight(&self, path: &Path) -> u32 {
        let tags = [&self.meta.e_tag, &self.meta.version];
        let tags: usize = tags.into_iter().flatten().map(String::len).sum();
        // The path is stored twice. The rest is about the size of the types and the cache itself.
        let weight = self.head.len() + 2 * path.as_ref().len() + tags + 400;
        u32::try_from(weight).unwrap_or(u32::MAX)
    }
}

/// The cache of a store. Clones share it.
#[derive(Clone)]
pub(super) struct Heads(Option<Cache<Path, Arc<Known>>>);

impl Heads {
    /// Caches about this many bytes. With 0 it caches nothing.
    pub(super) fn new(bytes: u64) -> Self {
        let cache = || {
            Cache::builder()
                .max_capacity(bytes)
                .weigher(|path, known: &Arc<Known>| known.weight(path))
                .build()
        };
        Self((bytes > 0).then(cache))
    }

    pub(super) fn get(&self, path: &Path) -> Option<Arc<Known>> {
        self.0.as_ref()?.get(path)
    }

    /// Caches a head, if later requests can require its version.
    pub(super) fn keep(&self, path: &Path, known: &Arc<Known>) {
        if let Some(cache) = &self.0
            && known.strong_tag().is_some()
        {
            cache.insert(path.clone(), known.clone());
        }
    }

    pub(super) fn forget(&self, path: &Path) {
        if let Some(cache) = &self.0 {
            cache.invalidate(path);
        }
    }

    #[cfg(test)]
    fn held(&self) -> u64 {
        let cache = self.0.as_ref();
        cache.inspect(|cache| cache.run_pending_tasks()).map_or(0, Cache::weighted_size)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use waxseal::{Aad, EncryptionContext, Envelope, kek::local::LocalKek};

    use super::*;

    fn meta(e_tag: Option<&str>) -> ObjectMeta {
        ObjectMeta {
            location: Path::from("a"),
            last_modified: SystemTime::UNIX_EPOCH.into(),
            size: 2000,
            e_tag: e_tag.map(str::to_owned),
            version: None,
        }
    }

    async fn known(meta: ObjectMeta) -> Arc<Known> {
        let kek = LocalKek::in_memory("test").unwrap();
        let envelope = Envelope::builder().wrap_with(kek).build().unwrap();
        let context = EncryptionContext::empty();
        let writer = envelope.encrypt_stream(&context, Aad::empty(), Vec::new()).await.unwrap();
        let head = StreamHead::from_prefix(&writer.finish().unwrap()).unwrap();
        Arc::new(Known { head, meta, plaintext_len: 0 })
    }

    #[tokio::test]
    async fn heads_are_bounded_by_their_bytes_and_none_is_kept_that_no_request_can_name() {
        let heads = Heads::new(20_000);
        let strong = known(meta(Some("\"1\""))).await;
        for i in 0..10_000 {
            heads.keep(&Path::from(format!("object {i}")), &strong);
        }
        let held = heads.held();
        assert!((1..=20_000).contains(&held), "{held}");
        for other in [None, Some("W/\"1\"")] {
            let path = Path::from("other");
            heads.keep(&path, &known(meta(other)).await);
            assert!(heads.get(&path).is_none());
        }
        let off = Heads::new(0);
        off.keep(&Path::from("a"), &strong);
        assert!(off.get(&Path::from("a")).is_none());
        let heads = Heads::new(20_000);
        heads.keep(&Path::from("a"), &strong);
        assert!(heads.get(&Path::from("a")).is_some());
        heads.forget(&Path::from("a"));
        assert!(heads.get(&Path::from("a")).is_none());
    }

    #[tokio::test]
    async fn another_version_differs_in_tag_version_length_or_where_there_is_no_tag_in_time() {
        let one = known(meta(Some("\"1\""))).await;
        assert!(one.is_of(&meta(Some("\"1\""))));
        assert!(!one.is_of(&meta(Some("\"2\""))));
        assert!(!one.is_of(&ObjectMeta { size: 2001, ..meta(Some("\"1\"")) }));
        let later = SystemTime::now().into();
        assert!(one.is_of(&ObjectMeta { last_modified: later, ..meta(Some("\"1\"")) }));
        assert!(!one.is_of(&ObjectMeta { last_modified: later, ..meta(None) }));
        let version = |of: &str| Some(of.to_owned());
        let two = known(ObjectMeta { version: version("a"), ..meta(Some("\"1\"")) }).await;
        assert!(!two.is_of(&ObjectMeta { version: version("b"), ..meta(Some("\"1\"")) }));
    }
}
