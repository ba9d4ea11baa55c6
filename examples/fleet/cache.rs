//! One cached key that is used occasionally: how often it is asked for, how many uses wait, and how
//! long it lasts without its key service.

/// When a key is used.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Use {
    /// At random, this often a second (a Poisson process).
    AtRandom(f64),
    /// Evenly, with this many seconds in between.
    Every(f64),
}

impl Use {
    /// Returns the mean age of the key at the first use that finds it at least `age` old. It was
    /// used when it was made.
    fn first_after(self, age: f64) -> f64 {
        match self {
            Self::AtRandom(rate) => age + 1.0 / rate,
            Self::Every(interval) => (age / interval).ceil().max(1.0) * interval,
        }
    }

    /// Returns the probability that there is no use between two ages.
    fn none_between(self, from: f64, to: f64) -> f64 {
        match self {
            Self::AtRandom(rate) => (-rate * (to - from)).exp(),
            Self::Every(_) if self.first_after(from) < to => 0.0,
            Self::Every(_) => 1.0,
        }
    }

    /// Returns the mean number of uses a second.
    #[must_use]
    pub fn rate(self) -> f64 {
        match self {
            Self::AtRandom(rate) => rate,
            Self::Every(interval) => 1.0 / interval,
        }
    }
}

/// How long a key is cached.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Keeping {
    /// After this time it does not serve.
    pub max_age: f64,
    /// From this age on a use renews it ahead, without waiting. It is drawn for each key between
    /// these two.
    pub refresh: (f64, f64),
    /// How much longer it serves while the key service is unavailable.
    pub grace: f64,
}

/// In how many steps something is integrated.
const STEPS: u32 = 64;
/// The steps of a key's age.
const AGES: u32 = 200;
/// The groups of keys by how long they go on.
const GROUPS: u32 = 10;

fn ages(max_age: f64) -> impl Iterator<Item = f64> {
    (0..=AGES).map(move |nth| max_age * f64::from(nth) / f64::from(AGES))
}

/// As [`mean`], in few steps.
fn coarse_mean(range: (f64, f64), f: impl Fn(f64) -> f64) -> f64 {
    let at = |part: f64| f(range.0 + (range.1 - range.0) * part);
    (at(0.1) + at(0.3) + at(0.5) + at(0.7) + at(0.9)) / 5.0
}

/// Returns the mean of `f` over the middles of equal parts of a range.
pub(crate) fn mean(range: (f64, f64), f: impl Fn(f64) -> f64) -> f64 {
    let part = (range.1 - range.0) / f64::from(STEPS);
    let at = |step: u32| range.0 + part * (f64::from(step) + 0.5);
    (0..STEPS).map(|step| f(at(step))).sum::<f64>() / f64::from(STEPS)
}

impl Keeping {
    /// Waxseal's defaults: renewed from four fifths of `max_age` on, up to a tenth earlier.
    #[must_use]
    pub fn ahead(max_age: f64, grace: f64) -> Self {
        Self { max_age, refresh: (0.72 * max_age, 0.8 * max_age), grace }
    }

    /// Dropped at `max_age` and never renewed ahead, as peers do.
    #[must_use]
    pub fn until(max_age: f64) -> Self {
        Self { max_age, refresh: (max_age, max_age), grace: 0.0 }
    }

    /// Returns the mean time from one call to the next.
    #[must_use]
    pub fn cycle(&self, used: Use) -> f64 {
        mean(self.refresh, |refresh| used.first_after(refresh))
    }

    /// Returns the probability that the key goes unused until it is dropped.
    #[must_use]
    pub fn lapses(&self, used: Use) -> f64 {
        mean(self.refresh, |refresh| used.none_between(refresh, self.max_age))
    }

    /// Returns how long a key lasts if each renewal succeeds in time: until the first renewal after
    /// `rotate_after`.
    #[must_use]
    pub fn lifetime(&self, used: Use, rotate_after: f64) -> f64 {
        let cycle = self.cycle(used);
        let square = mean(self.refresh, |refresh| used.first_after(refresh).powi(2));
        // The renewal that comes after a given time comes later by half the mean square of the
        // cycle over its mean (the inspection paradox).
        let rotation = (rotate_after + square / (2.0 * cycle)).max(cycle);
        let (lapses, renewals) = (self.lapses(used), rotation / cycle);
        if lapses < 1e-12 {
            return rotation;
        }
        // The mean of a geometric number of cycles, cut off.
        cycle * ((1.0 - (1.0 - lapses).powf(renewals)) / lapses).max(1.0)
    }

    /// Returns groups of keys by how long they go on: the share of the keys in each, and the share
    /// of what they encrypt.
    #[must_use]
    pub fn lengths(&self, used: Use, rotate_after: f64) -> Vec<(f64, f64)> {
        let lapses = self.lapses(used).min(1.0 - 1e-9);
        if lapses < 1e-12 {
            return vec![(1.0, 1.0)];
        }
        let most = (rotate_after / self.cycle(used) + 0.5).max(1.0);
        // Quantiles of a geometric number of cycles, cut off.
        let part = 1.0 / f64::from(GROUPS);
        let quantile = |nth: u32| part * (f64::from(nth) + 0.5);
        let length =
            |nth| ((1.0 - quantile(nth)).ln() / (1.0 - lapses).ln()).ceil().clamp(1.0, most);
        let all: f64 = (0..GROUPS).map(length).sum();
        (0..GROUPS).map(|nth| (part, length(nth) / all)).collect()
    }
}

/// The life of a cached key that is used at random, from call to call: the probability that it was
/// not renewed yet, by its age.
#[derive(Clone, PartialEq, Debug)]
pub struct Life {
    keeping: Keeping,
    rate: f64,
    /// At equally spaced ages from 0 to `max_age`.
    unrenewed: Vec<f64>,
}

impl Life {
    /// A key that each use looks at, so often a second.
    #[must_use]
    pub fn used(keeping: Keeping, rate: f64) -> Self {
        let at = |age: f64| mean(keeping.refresh, |due| (-rate * (age - due).max(0.0)).exp());
        Self { keeping, rate, unrenewed: ages(keeping.max_age).map(at).collect() }
    }

    /// A branch key with cached DEKs under it, which are used so often a second together. A use
    /// looks at the branch key only if its DEK is not cached, or is due. A DEK ends with the branch
    /// key, and is due after the same part of the time that it has left as any other key.
    #[must_use]
    pub fn under_deks(keeping: Keeping, rate: f64, deks: f64) -> Self {
        let (deks, each) = (deks.max(1.0), rate / deks.max(1.0));
        if each * keeping.max_age < 1e-4 {
            return Self::used(keeping, rate);
        }
        let ages: Vec<f64> = ages(keeping.max_age).collect();
        let step = keeping.max_age / f64::from(AGES);
        // The probability that a DEK that was derived at an age of the branch key does not look at
        // it again until another age.
        let part = (keeping.refresh.0 / keeping.max_age, keeping.refresh.1 / keeping.max_age);
        let quiet = |derived: f64, until: f64| {
            coarse_mean(part, |part| {
                let due = derived + part * (keeping.max_age - derived);
                (-each * (until - due).max(0.0)).exp()
            })
        };
        let quiet: Vec<Vec<f64>> = ages
            .iter()
            .map(|derived| ages.iter().map(|until| quiet(*derived, until.max(*derived))).collect())
            .collect();
        // For a DEK that is derived at age 0, and for one that is not cached then: how often it is
        // derived in each step, as long as that does not renew the branch key.
        let derived = |at_once: bool| {
            let mut steps: Vec<f64> = Vec::with_capacity(ages.len());
            let first = |age: f64| if at_once { 0.0 } else { (-each * age).exp() };
            for (nth, pair) in ages.windows(2).enumerate() {
                let [from, to] = pair else { continue };
                let again = |(before, times): (usize, &f64)| {
                    let of = |age: usize| quiet.get(before).and_then(|row| row.get(age));
                    times * (of(nth).unwrap_or(&1.0) - of(nth + 1).unwrap_or(&1.0))
                };
                let own = if at_once && nth == 0 { 1.0 } else { 0.0 };
                let sum: f64 = steps.iter().enumerate().map(again).sum();
                steps.push(own + first(*from) - first(*to) + sum);
            }
            steps
        };
        let (renewer, other) = (derived(true), derived(false));
        // The probability that no DEK looks at the branch key between its due time and an age.
        let silent = |steps: &[f64], at_once: bool, due: f64, nth: usize, age: f64| {
            let none = if at_once { 0.0 } else { (-each * age).exp() };
            let of = |(before, times): (usize, &f64)| {
                times * quiet.get(before).and_then(|row| row.get(nth)).unwrap_or(&1.0)
            };
            let until = steps.iter().enumerate().take_while(|(before, _)| {
                ages.get(*before).is_some_and(|from| from + step / 2.0 < due)
            });
            (none + until.map(of).sum::<f64>()).clamp(0.0, 1.0)
        };
        let unrenewed = |(nth, age): (usize, &f64)| {
            coarse_mean(keeping.refresh, |due| {
                if *age <= due {
                    return 1.0;
                }
                let one = silent(&renewer, true, due, nth, *age);
                one * silent(&other, false, due, nth, *age).powf(deks - 1.0)
            })
        };
        Self { keeping, rate, unrenewed: ages.iter().enumerate().map(unrenewed).collect() }
    }

    /// Returns the time that it was there and not renewed up to an age, on average.
    fn there(&self, until: f64) -> f64 {
        let step = self.keeping.max_age / f64::from(AGES);
        let mut from = 0.0;
        let mut sum = 0.0;
        for pair in self.unrenewed.windows(2) {
            let [at, then] = pair else { continue };
            let part = ((until - from) / step).clamp(0.0, 1.0);
            sum += step * part * (at + (then - at) * part / 2.0);
            from += step;
        }
        let late = (until - self.keeping.max_age).max(0.0);
        sum + self.lapses() * (1.0 - (-self.rate * late).exp()) / self.rate
    }

    /// Returns the probability that it goes unused until it is dropped.
    #[must_use]
    pub fn lapses(&self) -> f64 {
        self.unrenewed.last().copied().unwrap_or(1.0)
    }

    /// Returns how often a second the key service is called for it.
    #[must_use]
    pub fn calls(&self) -> f64 {
        if self.rate <= 0.0 { 0.0 } else { 1.0 / self.there(f64::INFINITY) }
    }

    /// Returns how many uses a second wait for such a call.
    #[must_use]
    pub fn waits(&self) -> f64 {
        self.calls() * self.lapses()
    }

    /// Returns the share of uses that find it cached, `outage` seconds after the key service went
    /// away. At 0 it is the share that does not wait in ordinary times.
    #[must_use]
    pub fn serves(&self, outage: f64) -> f64 {
        let Keeping { max_age, grace, .. } = self.keeping;
        let left = if outage > 0.0 { (max_age + grace - outage).max(0.0) } else { max_age };
        (self.there(left) * self.calls()).min(1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_used_all_the_time_is_renewed_ahead_and_nobody_waits() {
        let busy = Life::used(Keeping::ahead(300.0, 0.0), 100.0);
        assert!((1.0 / busy.calls() - 228.0).abs() < 0.5, "{}", 1.0 / busy.calls());
        assert!(busy.waits() < 1e-12, "{}", busy.waits());
        let dropped = Life::used(Keeping::until(300.0), 100.0);
        assert!((1.0 / dropped.calls() - 300.0).abs() < 0.5, "{}", 1.0 / dropped.calls());
        assert_eq!(dropped.calls().to_bits(), dropped.waits().to_bits(), "all are waited for");
    }

    #[test]
    fn a_key_used_once_a_day_costs_a_call_each_time() {
        let rare = Life::used(Keeping::ahead(300.0, 0.0), 1.0 / 86_400.0);
        assert!((rare.waits() * 86_400.0 - 1.0).abs() < 0.01, "{}", rare.waits());
    }

    #[test]
    fn a_life_agrees_with_its_mean() {
        for rate in [1e-4, 1e-2, 1.0] {
            let (keeping, used) = (Keeping::ahead(300.0, 0.0), Use::AtRandom(rate));
            let life = Life::used(keeping, rate);
            let ratio = life.calls() * keeping.cycle(used);
            assert!((ratio - 1.0).abs() < 0.002, "{rate}: {ratio}");
            assert!((life.lapses() - keeping.lapses(used)).abs() < 1e-3, "{rate}");
        }
    }

    #[test]
    fn a_branch_key_is_looked_at_less_often_than_its_deks_are_used() {
        let keeping = Keeping::ahead(300.0, 0.0);
        // Half of the time the one DEK is due before the branch key, and then again only after
        // three quarters of the rest.
        let one = 1.0 / Life::under_deks(keeping, 100.0, 1.0).calls();
        assert!((250.0..262.0).contains(&one), "{one}");
        // Of very many, some is always due.
        let many = 1.0 / Life::under_deks(keeping, 100.0, 1e5).calls();
        assert!((many - 228.0).abs() < 2.0, "{many}");
        let (few, direct) = (Life::under_deks(keeping, 0.02, 20.0), Life::used(keeping, 0.02));
        assert!(few.lapses() > direct.lapses() * 1.05, "{} {}", few.lapses(), direct.lapses());
    }

    #[test]
    fn a_row_a_minute_renews_its_dek_in_the_fourth_minute() {
        let (five, minute) = (Keeping::ahead(300.0, 0.0), Use::Every(60.0));
        assert!((five.cycle(minute) - 240.0).abs() < 1e-9);
        assert!((five.lifetime(minute, 60.0) - 240.0).abs() < 1e-9, "the shortest rotation");
        assert!((five.lifetime(minute, 86_400.0) - 86_520.0).abs() < 1.0);
        let hourly = five.lifetime(Use::Every(3_600.0), 86_400.0);
        assert!((hourly - 3_600.0).abs() < 1e-9, "none was renewed in time: {hourly}");
    }

    #[test]
    fn without_its_key_service_a_key_lasts_for_what_is_left_of_max_age_and_for_the_grace() {
        let busy = |grace| Life::used(Keeping::ahead(300.0, grace), 1000.0);
        assert!(busy(0.0).serves(60.0) > 0.99 && busy(0.0).serves(301.0) < 1e-9);
        assert!(busy(3_600.0).serves(3_600.0) > 0.99 && busy(3_600.0).serves(86_400.0) < 1e-9);
        // On average it is half way through its 228 seconds when the outage begins.
        let lasts = 600.0 * mean((0.0, 600.0), |at| busy(0.0).serves(at));
        assert!((lasts - (300.0 - 114.0)).abs() < 5.0, "{lasts}");
        // The grace is for outages only.
        let rare = Life::used(Keeping::ahead(300.0, 3_600.0), 1e-3);
        let wait = 1.0 - rare.serves(0.0);
        assert!((wait - rare.waits() / 1e-3).abs() < 1e-6, "{wait}");
    }
}
