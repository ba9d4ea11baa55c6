//! The picture of an outage in the documentation is what the dashboard's queries show today.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

#[path = "../outage/draw.rs"]
mod draw;
#[path = "../outage/picture.rs"]
mod picture;
#[path = "../outage/query.rs"]
mod query;
#[path = "../outage/recorder.rs"]
mod recorder;
#[path = "../outage/simulation.rs"]
mod simulation;

use std::collections::BTreeMap;

use recorder::{Samples, Series};

#[test]
fn the_picture_of_the_page_is_what_the_command_draws() {
    let drawn = picture::make().unwrap();
    assert!(
        drawn == include_str!("../../docs/telemetry/outage.svg"),
        "draw it again: cargo run --release -p waxseal-examples --features outage --example outage"
    );
}

#[test]
fn queries_are_evaluated_as_prometheus_does() {
    let series = |name: &str, labels: &[(&str, &str)], values: &[f64]| {
        let labels = labels.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        let series = Series { name: name.to_owned(), labels: labels.collect() };
        (series, (0..).step_by(60).zip(values.iter().copied()).collect::<BTreeMap<u32, f64>>())
    };
    let samples = Samples::from([
        series("calls", &[("kek", "a"), ("outcome", "ok")], &[0.0, 60.0, 120.0, 180.0]),
        series("calls", &[("kek", "a"), ("outcome", "late")], &[0.0, 0.0, 0.0, 60.0]),
        series("open", &[("kek", "a")], &[0.0, 1.0, 0.0, 0.0]),
        series("open", &[("kek", "b")], &[0.0, 0.0, 0.0, 0.0]),
        series("s_bucket", &[("kek", "a"), ("le", "0.1")], &[0.0, 50.0, 50.0, 50.0]),
        series("s_bucket", &[("kek", "a"), ("le", "0.2")], &[0.0, 90.0, 90.0, 90.0]),
        series("s_bucket", &[("kek", "a"), ("le", "+Inf")], &[0.0, 100.0, 100.0, 100.0]),
    ]);
    for (query, at, expected) in [
        ("sum by (kek) (rate(calls[2m]))", 180, vec![("kek=a", 1.5)]),
        ("sum by (kek) (rate(calls[$__rate_interval]))", 120, vec![("kek=a", 1.0)]),
        ("sum by (kek) (increase(calls{outcome=\"late\"}[1m])) > 0", 180, vec![("kek=a", 60.0)]),
        ("sum by (kek) (increase(calls{outcome=\"late\"}[1m])) > 0", 120, vec![]),
        ("sum by (kek) (increase(calls{outcome!=\"late\"}[1m]))", 120, vec![("kek=a", 60.0)]),
        ("max by (kek, target) (open)", 60, vec![("kek=a", 1.0), ("kek=b", 0.0)]),
        ("max by (kek, target) (open) == 1", 60, vec![("kek=a", 1.0)]),
        ("max by (kek, target) (open) == 1", 120, vec![]),
        (
            "sum by (kek) (rate(calls{outcome=\"late\"}[1m])) / sum by (kek) (rate(calls[1m]))",
            180,
            vec![("kek=a", 0.5)],
        ),
        // No call, no share.
        ("sum by (kek) (rate(s_bucket[1m])) / sum by (kek) (rate(s_bucket[1m]))", 180, vec![]),
        (
            "histogram_quantile(0.5, sum by (kek, le) (rate(s_bucket[1m])))",
            60,
            vec![("kek=a", 0.1)],
        ),
        (
            "histogram_quantile(0.7, sum by (kek, le) (rate(s_bucket[1m])))",
            60,
            vec![("kek=a", 0.15)],
        ),
        (
            "histogram_quantile(0.99, sum by (kek, le) (rate(s_bucket[1m])))",
            60,
            vec![("kek=a", 0.2)],
        ),
    ] {
        let values = query::evaluate(query, &samples, at).unwrap_or_else(|| panic!("{query}"));
        let text = |labels: BTreeMap<String, String>| {
            labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<String>()
        };
        let values: Vec<_> =
            values.into_iter().map(|(labels, value)| (text(labels), value)).collect();
        assert_eq!(values.len(), expected.len(), "{query}: {values:?}");
        for ((labels, value), (expected_labels, expected)) in values.iter().zip(expected) {
            assert_eq!(labels, expected_labels, "{query}");
            assert!((value - expected).abs() < 1e-9, "{query}: {value}");
        }
    }
    for unknown in ["avg by (kek) (open", "rate(open[5m])", "sum by (kek) (rate(open[1h]))"] {
        assert!(query::evaluate(unknown, &samples, 60).is_none(), "{unknown}");
    }
}
