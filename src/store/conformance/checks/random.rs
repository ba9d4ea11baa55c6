//! Random operations, on the store and on a model of it.
#![forbid(unsafe_code)]

use super::*;
use crate::store::MemoryStore;
use crate::suite::DekId;

const OPERATIONS: usize = 400;

/// SplitMix64 (Steele, Lea, Flood 2014): the seed is all that is needed to repeat a run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u32) -> u32 {
        u32::try_from(self.next() % u64::from(bound.max(1))).unwrap_or(0)
    }

    fn choose<'a, T>(&mut self, from: &'a [T]) -> Option<&'a T> {
        let index = self.below(u32::try_from(from.len()).unwrap_or(1));
        from.get(usize::try_from(index).unwrap_or(0))
    }
}

/// The ids and branches of one run. The operations on them depend only on the seed.
struct Names {
    ids: Vec<DekId>,
    branches: Vec<BranchId>,
}

impl Names {
    fn new() -> Result<Self, Stop> {
        let ids = (0..24).map(|_| new_id()).collect::<Result<_, _>>()?;
        let branches = (0..3).map(|_| new_branch()).collect::<Result<_, _>>()?;
        Ok(Self { ids, branches })
    }

    /// Returns some row of some version, at some place or at none.
    fn row(&self, random: &mut Random) -> Result<StoredRow, Stop> {
        let id = *random.choose(&self.ids).unwrap_or(&new_id()?);
        let branch = *random.choose(&self.branches).unwrap_or(&new_branch()?);
        let (period, epoch) = (i64::from(random.below(4)), random.below(2));
        let at = (random.below(4) > 0).then_some(place(branch, period, epoch));
        version(id, at, random.below(3))
    }
}

pub(super) async fn does_what_the_model_does(subject: &dyn Subject, seed: u64) -> Result<(), Stop> {
    let (names, model, mut random) = (Names::new()?, MemoryStore::new(), Random(seed));
    for operation in 0..OPERATIONS {
        let store = handle(subject, operation);
        if let Err(Stop::Failed(why)) = same_step(&*store, &model, &names, &mut random).await {
            return failed(format!("operation {operation} of seed {seed}: {why}"));
        }
    }
    for branch in &names.branches {
        let expected = ok("the model", model.branch(branch, i64::MIN).await)?;
        let expected: Vec<_> = expected.iter().collect();
        let what = format!("after all operations of seed {seed}");
        branch_is(subject, branch, i64::MIN, &expected, &what).await?;
    }
    Ok(())
}

async fn same_step(
    store: &dyn KeyStore,
    model: &MemoryStore,
    names: &Names,
    random: &mut Random,
) -> Result<(), Stop> {
    let row = names.row(random)?;
    match random.below(16) {
        0..5 => {
            let expected = ok("the model", model.insert(&row).await)?;
            let found = ok("insert", store.insert(&row).await)?;
            // If one row has the id and another the place, either may be returned.
            let by_id = ok("the model", model.get(row.id()).await)?.map(Insertion::Exists);
            ensure(
                found == expected
                    || Some(&found) == by_id.as_ref() && expected != Insertion::Inserted,
                format!("insert of {}: {found:?}, not {expected:?}", shown(Some(&row))),
            )
        }
        5..7 => same(
            ok("get", store.get(row.id()).await)?.as_ref(),
            ok("the model", model.get(row.id()).await)?.as_ref(),
            "get",
        ),
        7..9 => {
            let Some(branch) = random.choose(&names.branches) else { return Ok(()) };
            let from = i64::from(random.below(5));
            let expected = ok("the model", model.branch(branch, from).await)?;
            let found = ok("branch", store.branch(branch, from).await)?;
            ensure(found == expected, format!("branch from {from}: {found:?}, not {expected:?}"))
        }
        9..15 => {
            // Usually a stored row, so that the operation succeeds, and otherwise one that may be
            // gone.
            let there = ok("the model", model.get(row.id()).await)?;
            let old = there.filter(|_| random.below(4) > 0).unwrap_or_else(|| row.clone());
            let erase = random.below(8) == 0;
            let new = match old.row() {
                Ok(read) => version(*read.id(), old.place().copied(), random.below(3))?,
                Err(_) => row,
            };
            let new = if erase { new.tombstone() } else { new };
            let expected = ok("the model", model.replace(&old, &new).await)?;
            let found = ok("replace", store.replace(&old, &new).await)?;
            ensure(
                found == expected,
                format!(
                    "replace of {} by {}: {found}, not {expected}",
                    shown(Some(&old)),
                    shown(Some(&new))
                ),
            )
        }
        _ => {
            let Some(branch) = random.choose(&names.branches) else { return Ok(()) };
            let expected = ok("the model", model.erase_branch(branch).await)?;
            let found = ok("erase_branch", store.erase_branch(branch).await)?;
            ensure(found == expected, format!("erase_branch: {found:?}, not {expected:?}"))
        }
    }
}
