//! The keys that a provider uses, and where: its own keys, one after another if an alias changes;
//! keys that only unwrap; or, within limits, keys that messages name.
#![forbid(unsafe_code)]

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::format::{KeyArn, KeyMaterialId};
use waxseal::{KekId, WrappedDek};

/// The maximum number of keys that an alias is followed to. After that the provider has to be built
/// again.
const MOST_MOVES: usize = 64;
/// The maximum number of entries whose key material is known only from `Decrypt`.
const MOST_SETTLED: usize = 4096;

pub(crate) enum Keys {
    One(Own),
    Discovered(Discovery),
}

/// Where to unwrap a wrapped key. Whatever the key itself says, it is one of the configured places.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Target {
    pub(crate) region: String,
    pub(crate) arn: String,
}

impl Target {
    fn new(region: &str, arn: &str) -> Self {
        Self { region: region.to_owned(), arn: arn.to_owned() }
    }
}

/// A key that wraps, and what is known of its key material.
pub(crate) struct Key {
    pub(crate) id: KekId,
    known: Mutex<Option<Known>>,
}

/// The current key material, if known.
#[derive(Clone, Copy)]
pub(crate) struct Known {
    pub(crate) material: Option<KeyMaterialId>,
    /// When the question was asked, not when the answer came, so that a late answer does not
    /// replace a newer one.
    pub(crate) asked: Instant,
    pub(crate) good_for: Duration,
}

impl Key {
    pub(crate) fn new(id: KekId) -> Self {
        Self { id, known: Mutex::default() }
    }

    pub(crate) fn arn(&self) -> &str {
        self.id.as_str()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn known(&self) -> Option<Known> {
        *self.lock()
    }

    pub(crate) fn learn(&self, new: Known) {
        let mut known = self.lock();
        if known.is_none_or(|known| known.asked <= new.asked) {
            *known = Some(new);
        }
    }

    /// Keeps what is known, and asks nothing for a while.
    pub(crate) fn pause(&self, good_for: Duration) {
        let mut known = self.lock();
        let material = known.and_then(|known| known.material);
        *known = Some(Known { material, asked: Instant::now(), good_for });
    }
}

/// The one key that wraps now, and those that also unwrap.
pub(crate) struct Own {
    /// The alias by which the key was named, if any. It may be changed to another key.
    alias: Option<String>,
    first: Key,
    /// The keys that the alias named later, each once.
    later: Box<[OnceLock<Key>]>,
    /// 0 for the first.
    current: AtomicUsize,
    related: bool,
    former: Vec<KekId>,
}

impl Own {
    pub(crate) fn new(id: KekId, alias: Option<String>, related: bool, former: Vec<KekId>) -> Self {
        let moves = if alias.is_some() { MOST_MOVES } else { 0 };
        let later = std::iter::repeat_with(OnceLock::new).take(moves).collect();
        Self { alias, first: Key::new(id), later, current: AtomicUsize::new(0), related, former }
    }

    /// Returns the key that wraps now.
    pub(crate) fn current(&self) -> &Key {
        let later = self
            .current
            .load(Ordering::Acquire)
            .checked_sub(1)
            .and_then(|index| self.later.get(index)?.get());
        later.unwrap_or(&self.first)
    }

    pub(crate) fn alias(&self) -> Option<&str> {
        self.alias.as_deref()
    }

    /// Returns the keys that have wrapped.
    fn ids(&self) -> impl Iterator<Item = &KekId> {
        std::iter::once(&self.first)
            .chain(self.later.iter().map_while(OnceLock::get))
            .map(|key| &key.id)
    }

    /// Records that the alias now names this key. Returns `false` if it has named too many.
    pub(crate) fn move_to(&self, id: &KekId) -> bool {
        if &self.first.id == id {
            self.current.store(0, Ordering::Release);
            return true;
        }
        for (index, slot) in self.later.iter().enumerate() {
            if &slot.get_or_init(|| Key::new(id.clone())).id == id {
                self.current.store(index + 1, Ordering::Release);
                return true;
            }
        }
        false
    }

    /// `here` is the Region that the provider calls.
    pub(crate) fn target(&self, kek_id: &KekId, here: &str) -> Option<Target> {
        if self.ids().any(|id| id == kek_id) || self.former.contains(kek_id) {
            return Some(Target::new(here, kek_id.as_str()));
        }
        if !self.related {
            return None;
        }
        let other = KeyArn::read(kek_id.as_str())?;
        let related =
            |id: &&KekId| KeyArn::read(id.as_str()).is_some_and(|own| own.is_related_to(&other));
        self.ids().find(related).map(|id| Target::new(here, id.as_str()))
    }
}

/// The bounds of discovery.
pub(crate) struct Discovery {
    /// Not an ARN, so it cannot appear in a message.
    pub(crate) id: KekId,
    pub(crate) partition: String,
    pub(crate) accounts: Vec<String>,
    pub(crate) regions: Vec<String>,
    pub(crate) related: bool,
}

impl Discovery {
    pub(crate) fn id_for(partition: &str, accounts: &[String]) -> String {
        format!("aws-kms-discovery:{partition}:{}", accounts.join(","))
    }

    pub(crate) fn target(&self, kek_id: &KekId, here: &str) -> Option<Target> {
        let key = KeyArn::read(kek_id.as_str())?;
        let is_allowed = key.partition == self.partition
            && self.accounts.iter().any(|account| account == key.account);
        if !is_allowed {
            None
        } else if self.regions.iter().any(|allowed| allowed == key.region) {
            Some(Target::new(key.region, kek_id.as_str()))
        } else if self.related && key.is_multi_region() {
            Some(Target::new(here, &key.in_region(here)))
        } else {
            None
        }
    }
}

impl Keys {
    /// Returns the KEK that wraps now.
    pub(crate) fn id(&self) -> &KekId {
        match self {
            Self::One(own) => &own.current().id,
            Self::Discovered(discovery) => &discovery.id,
        }
    }

    /// Returns where to unwrap an entry of `kek_id`; `None` if it is not for this provider.
    pub(crate) fn target(&self, kek_id: &KekId, here: &str) -> Option<Target> {
        match self {
            Self::One(own) => own.target(kek_id, here),
            Self::Discovered(discovery) => discovery.target(kek_id, here),
        }
    }
}

/// The key material that `Decrypt` named for entries that do not name it, or name another one.
#[derive(Default)]
pub(crate) struct Settled(Mutex<SettledEntries>);

#[derive(Default)]
struct SettledEntries {
    by_entry: HashMap<[u8; 32], KeyMaterialId>,
    /// The oldest first.
    order: VecDeque<[u8; 32]>,
}

impl Settled {
    fn lock(&self) -> MutexGuard<'_, SettledEntries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn learn(&self, wrapped: &WrappedDek, material: Option<KeyMaterialId>) {
        let Some(material) =
            material.filter(|material| KeyMaterialId::of_meta(wrapped.meta()) != Some(*material))
        else {
            return;
        };
        let entry = digest(wrapped);
        let mut settled = self.lock();
        if settled.by_entry.insert(entry, material).is_none() {
            settled.order.push_back(entry);
        }
        if settled.order.len() > MOST_SETTLED
            && let Some(oldest) = settled.order.pop_front()
        {
            settled.by_entry.remove(&oldest);
        }
    }

    /// Returns the key material that wrapped this entry: what KMS said, or else what the entry
    /// itself says.
    pub(crate) fn material_of(&self, wrapped: &WrappedDek) -> Option<KeyMaterialId> {
        let settled = {
            let settled = self.lock();
            if settled.by_entry.is_empty() {
                None
            } else {
                settled.by_entry.get(&digest(wrapped)).copied()
            }
        };
        settled.or_else(|| KeyMaterialId::of_meta(wrapped.meta()))
    }
}

fn digest(wrapped: &WrappedDek) -> [u8; 32] {
    let id = wrapped.kek_id().as_str();
    let mut hash = Sha256::new();
    hash.update(id.len().to_be_bytes());
    hash.update(id);
    hash.update(wrapped.wrapped());
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: &str = "eu-west-1";

    fn key(id: &str) -> KekId {
        KekId::new(format!("arn:aws:kms:{HERE}:111122223333:key/{id}")).unwrap()
    }

    #[test]
    fn an_alias_is_followed_back_and_forth_and_earlier_keys_still_unwrap() {
        let own = Own::new(key("a"), Some("alias/orders".to_owned()), false, vec![key("z")]);
        for to in ["b", "a", "b", "c", "b"] {
            assert!(own.move_to(&key(to)));
            assert_eq!(own.current().id, key(to));
        }
        for id in ["a", "b", "c", "z"] {
            assert_eq!(
                own.target(&key(id), HERE),
                Some(Target::new(HERE, key(id).as_str())),
                "{id}"
            );
        }
        assert_eq!(own.target(&key("d"), HERE), None);
    }

    #[test]
    fn an_alias_is_not_followed_without_end() {
        let own = Own::new(key("first"), Some("alias/orders".to_owned()), false, Vec::new());
        let moved = (0..1000).filter(|n| own.move_to(&key(&n.to_string()))).count();
        assert_eq!(moved, MOST_MOVES);
        assert!(own.move_to(&key("3")));
    }

    #[test]
    fn a_key_that_is_named_by_its_arn_does_not_move() {
        let own = Own::new(key("a"), None, false, Vec::new());
        assert!(!own.move_to(&key("b")));
        assert_eq!(own.current().id, key("a"));
    }

    #[test]
    fn what_kms_said_of_an_entry_counts_more_than_the_entry_and_is_bounded() {
        let settled = Settled::default();
        let entry = |n: usize| WrappedDek::new(key("a"), n.to_be_bytes().to_vec()).unwrap();
        let material = KeyMaterialId([7; 32]);
        assert_eq!(settled.material_of(&entry(0)), None);
        for n in 0..MOST_SETTLED + 10 {
            settled.learn(&entry(n), Some(material));
        }
        assert_eq!(settled.material_of(&entry(0)), None, "the oldest is forgotten");
        assert_eq!(settled.material_of(&entry(MOST_SETTLED)), Some(material));
        assert_eq!(settled.lock().by_entry.len(), MOST_SETTLED);
        let lying = entry(3).with_meta(vec![1; 32]).unwrap();
        settled.learn(&lying, Some(material));
        assert_eq!(settled.material_of(&lying), Some(material));
        let honest =
            WrappedDek::new(key("b"), vec![1]).unwrap().with_meta(material.0.to_vec()).unwrap();
        settled.learn(&honest, Some(material));
        assert_eq!(settled.lock().by_entry.len(), MOST_SETTLED, "what says it itself is not kept");
    }
}
