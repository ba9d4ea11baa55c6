//! Records metrics as Prometheus would: each series with its value at each time.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};

/// The buckets that docs/telemetry.md recommends, in seconds.
const BUCKETS: [f64; 9] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0];

/// A name with its labels.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
}

/// The values of a series at the times of the scrapes. Those before it was there are missing.
pub(crate) type Samples = BTreeMap<Series, BTreeMap<u32, f64>>;

/// A value, as the bits of a float.
#[derive(Default)]
struct Cell(AtomicU64);

impl Cell {
    fn change(&self, work: impl Fn(f64) -> f64) {
        let new = |bits| work(f64::from_bits(bits)).to_bits();
        self.0.update(Ordering::SeqCst, Ordering::SeqCst, new);
    }
}

#[derive(Clone, Default)]
pub(crate) struct Recording(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    cells: BTreeMap<Series, Arc<Cell>>,
    samples: Samples,
}

impl Recording {
    fn with<R>(&self, work: impl FnOnce(&mut State) -> R) -> R {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn cell(&self, key: &Key, suffix: &str, le: Option<String>) -> Arc<Cell> {
        let labels = key.labels().map(|label| (label.key().to_owned(), label.value().to_owned()));
        let labels = labels.chain(le.map(|le| ("le".to_owned(), le))).collect();
        let series = Series { name: format!("{}{suffix}", key.name()), labels };
        self.with(|state| state.cells.entry(series).or_default().clone())
    }

    /// Notes every value at this time.
    pub(crate) fn scrape(&self, at: u32) {
        self.with(|State { cells, samples }| {
            for (series, cell) in cells {
                let value = f64::from_bits(cell.0.load(Ordering::SeqCst));
                samples.entry(series.clone()).or_default().insert(at, value);
            }
        });
    }

    pub(crate) fn take(&self) -> Samples {
        self.with(|state| std::mem::take(&mut state.samples))
    }
}

impl CounterFn for Cell {
    #[allow(clippy::cast_precision_loss)]
    fn increment(&self, by: u64) {
        self.change(|value| value + by as f64);
    }

    #[allow(clippy::cast_precision_loss)]
    fn absolute(&self, to: u64) {
        self.change(|value| value.max(to as f64));
    }
}

impl GaugeFn for Cell {
    fn increment(&self, by: f64) {
        self.change(|value| value + by);
    }

    fn decrement(&self, by: f64) {
        self.change(|value| value - by);
    }

    fn set(&self, to: f64) {
        self.change(|_| to);
    }
}

/// A cell for each bucket, and the end of each.
struct Buckets(Vec<(f64, Arc<Cell>)>);

impl HistogramFn for Buckets {
    fn record(&self, value: f64) {
        let reached = self.0.iter().filter(|(end, _)| value <= *end);
        reached.for_each(|(_, cell)| cell.change(|count| count + 1.0));
    }
}

impl Recorder for Recording {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.cell(key, "", None))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.cell(key, "", None))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        let ends = BUCKETS.iter().map(|end| (*end, end.to_string()));
        let ends = ends.chain([(f64::INFINITY, "+Inf".to_owned())]);
        let cells = ends.map(|(end, le)| (end, self.cell(key, "_bucket", Some(le))));
        Histogram::from_arc(Arc::new(Buckets(cells.collect())))
    }
}
