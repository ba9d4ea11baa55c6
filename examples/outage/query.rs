//! Evaluates the queries of the dashboard and of the alerts, as far as the picture needs them.
//!
//! ```text
//! query  = part [" / " part] [" > NUMBER" | " == NUMBER"]
//! part   = ("sum" | "max") " by (" labels ") (" ("rate" | "increase") "(" metric "[" time "]))"
//!        | the same with a metric in place of the rate
//!        | "histogram_quantile(" number ", " part ")"
//! metric = NAME ["{" LABEL ("=" | "!=") "\"" VALUE "\"" "}"]
//! ```
//!
//! `rate` and `increase` are those of the samples at both ends of the time, without Prometheus's
//! extrapolation. A counter of the simulation is never set back.

use std::collections::BTreeMap;

use super::recorder::{Samples, Series};

/// For `$__rate_interval`, in seconds.
const RATE_INTERVAL: u32 = 120;

/// The labels of a result, and its value.
pub(crate) type Values = BTreeMap<BTreeMap<String, String>, f64>;

/// Evaluates a query at a time. `None` for one that it does not know.
pub(crate) fn evaluate(query: &str, samples: &Samples, at: u32) -> Option<Values> {
    let query = query.trim();
    for (sign, holds) in [(" > ", f64::gt as fn(&f64, &f64) -> bool), (" == ", f64::eq)] {
        if let Some((query, bound)) = query.rsplit_once(sign) {
            let (bound, mut values) = (bound.parse().ok()?, evaluate(query, samples, at)?);
            values.retain(|_, value| holds(value, &bound));
            return Some(values);
        }
    }
    if let Some((above, below)) = query.split_once(" / ") {
        let (above, below) = (evaluate(above, samples, at)?, evaluate(below, samples, at)?);
        let share = |(labels, value): (BTreeMap<_, _>, f64)| {
            let whole = below.get(&labels).filter(|whole| **whole > 0.0)?;
            Some((labels, value / whole))
        };
        return Some(above.into_iter().filter_map(share).collect());
    }
    if let Some(rest) = query.strip_prefix("histogram_quantile(") {
        let (quantile, part) = rest.strip_suffix(')')?.split_once(", ")?;
        return Some(quantiles(quantile.parse().ok()?, evaluate(part, samples, at)?));
    }
    let (aggregate, rest) = query.split_once(" by (")?;
    let (labels, rest) = rest.split_once(") (")?;
    let labels: Vec<_> = labels.split(", ").collect();
    let of_series = part(rest.strip_suffix(')')?, samples, at)?;
    let mut values = Values::new();
    for (series, value) in of_series {
        let named = |label: &&str| Some(((*label).to_owned(), series.labels.get(*label)?.clone()));
        let group = labels.iter().filter_map(named).collect();
        let total = values.entry(group).or_insert(if aggregate == "max" { f64::MIN } else { 0.0 });
        *total = if aggregate == "max" { total.max(value) } else { *total + value };
    }
    Some(values)
}

fn part<'s>(text: &str, samples: &'s Samples, at: u32) -> Option<Vec<(&'s Series, f64)>> {
    let function = ["rate(", "increase("].into_iter().find(|name| text.starts_with(name));
    let Some(function) = function else {
        let values =
            |(series, values): (&'s Series, &BTreeMap<u32, f64>)| Some((series, *values.get(&at)?));
        return Some(selected(text, samples)?.filter_map(values).collect());
    };
    let (metric, time) = text.strip_prefix(function)?.strip_suffix("])")?.split_once('[')?;
    let seconds = match time.strip_suffix('m') {
        Some(minutes) => minutes.parse::<u32>().ok()? * 60,
        None if time == "$__rate_interval" => RATE_INTERVAL,
        None => return None,
    };
    let per = if function == "rate(" { f64::from(seconds) } else { 1.0 };
    let increases = |(series, values): (&'s Series, &BTreeMap<u32, f64>)| {
        let mut within = values.range(at.saturating_sub(seconds)..=at).map(|(_, value)| value);
        let (first, last) = (within.next()?, within.next_back()?);
        Some((series, (last - first) / per))
    };
    Some(selected(metric, samples)?.filter_map(increases).collect())
}

fn selected<'s>(
    metric: &str,
    samples: &'s Samples,
) -> Option<impl Iterator<Item = (&'s Series, &'s BTreeMap<u32, f64>)>> {
    let (name, selector) = match metric.split_once('{') {
        Some((name, selector)) => (name, Some(selector.strip_suffix("\"}")?)),
        None => (metric, None),
    };
    let name = name.to_owned();
    let wanted = match selector.map(|text| (text, text.split_once("!=\""))) {
        None => None,
        Some((_, Some((label, value)))) => Some((label.to_owned(), value.to_owned(), false)),
        Some((text, None)) => {
            let (label, value) = text.split_once("=\"")?;
            Some((label.to_owned(), value.to_owned(), true))
        }
    };
    let is_wanted = move |series: &Series| {
        let matches = wanted.as_ref().is_none_or(|(label, value, is_equal)| {
            (series.labels.get(label) == Some(value)) == *is_equal
        });
        series.name == name && matches
    };
    Some(samples.iter().filter(move |(series, _)| is_wanted(series)))
}

/// As Prometheus: linear within a bucket.
fn quantiles(quantile: f64, of_buckets: Values) -> Values {
    let mut histograms: BTreeMap<BTreeMap<String, String>, Vec<(f64, f64)>> = BTreeMap::new();
    for (mut labels, count) in of_buckets {
        let end = match labels.remove("le").as_deref() {
            Some("+Inf") => f64::INFINITY,
            Some(end) => end.parse().unwrap_or(f64::INFINITY),
            None => continue,
        };
        histograms.entry(labels).or_default().push((end, count));
    }
    let mut values = Values::new();
    for (labels, mut buckets) in histograms {
        buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
        let all = buckets.last().map_or(0.0, |(_, count)| *count);
        if all == 0.0 {
            continue;
        }
        let (rank, mut before) = (quantile * all, (0.0, 0.0));
        for (end, count) in buckets {
            if count >= rank {
                let value = match end.is_finite() {
                    true => before.0 + (end - before.0) * (rank - before.1) / (count - before.1),
                    false => before.0,
                };
                values.insert(labels, value);
                break;
            }
            before = (end, count);
        }
    }
    values
}
