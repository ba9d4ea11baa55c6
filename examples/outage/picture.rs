//! The panels of the dashboard over the simulation, and when each alert fires.

use std::collections::BTreeMap;
use std::error::Error;

use serde_json::Value;

use super::draw::{self, Chart, Line};
use super::query::evaluate;
use super::recorder::Samples;
use super::simulation::{END, STEP, run};

const DASHBOARD: &str = include_str!("../../docs/telemetry/dashboard.json");
const RULES: &str = include_str!("../../docs/telemetry/alerts.yml");

/// The panels of the picture, by their titles.
const PANELS: [&str; 5] = [
    "Calls to key services",
    "Latency of calls, 50th and 99th percentile",
    "Look-ups that wait for a key service",
    "Stale DEKs and failed renewals",
    "Circuit breakers",
];
/// The alerts of the picture.
const ALERTS: [&str; 3] = ["WaxsealBreakerOpen", "WaxsealRenewalsFail", "WaxsealServedStale"];

/// An alert, as alerts.yml has it.
struct Rule {
    name: String,
    query: String,
    /// How long it has to hold, in seconds.
    holds_for: u32,
}

/// Returns the picture, as SVG.
pub(crate) fn make() -> Result<String, Box<dyn Error>> {
    let samples = run()?;
    let dashboard: Value = serde_json::from_str(DASHBOARD)?;
    let panels = dashboard.pointer("/panels").and_then(Value::as_array);
    let panels = panels.ok_or("the dashboard has no panels")?;
    let mut charts = Vec::new();
    for title in PANELS {
        let panel = panels.iter().find(|panel| text(panel, "title") == title);
        let panel = panel.ok_or_else(|| format!("the dashboard has no panel {title:?}"))?;
        charts.push(chart(title, panel, &samples)?);
    }
    let firing = rules()?.into_iter().map(|rule| Ok((rule.name.clone(), firing(&rule, &samples)?)));
    Ok(draw::picture(&charts, &firing.collect::<Result<Vec<_>, String>>()?))
}

fn text<'v>(value: &'v Value, field: &str) -> &'v str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn chart(title: &str, panel: &Value, samples: &Samples) -> Result<Chart, String> {
    let mut lines: BTreeMap<String, Vec<(u32, f64)>> = BTreeMap::new();
    for target in panel.get("targets").and_then(Value::as_array).into_iter().flatten() {
        let (query, legend) = (text(target, "expr"), text(target, "legendFormat"));
        for at in (0..=END).step_by(STEP as usize) {
            let values = evaluate(query, samples, at);
            let values =
                values.ok_or_else(|| format!("{title}: the query is not known: {query}"))?;
            for (labels, value) in values {
                lines.entry(named(legend, &labels)).or_default().push((at, value));
            }
        }
    }
    // What stays at zero is in the way.
    lines.retain(|_, points| points.iter().any(|(_, value)| *value != 0.0));
    let lines = lines.into_iter().map(|(name, points)| Line { name, points }).collect();
    let unit = panel.pointer("/fieldConfig/defaults/unit").and_then(Value::as_str);
    let unit = unit.unwrap_or_default().to_owned();
    Ok(Chart { title: title.to_owned(), unit, lines })
}

/// A legend with its labels filled in.
fn named(legend: &str, labels: &BTreeMap<String, String>) -> String {
    let fill = |text: String, (name, value): (&String, &String)| {
        text.replace(&format!("{{{{{name}}}}}"), value)
    };
    let filled = labels.iter().fold(legend.to_owned(), fill);
    // A label that the series has not.
    let mut rest = filled.split("{{");
    let begin = rest.next().unwrap_or_default().to_owned();
    let filled = rest.fold(begin, |text, part| text + part.split_once("}}").map_or(part, |p| p.1));
    filled.trim_matches([' ', ',']).to_owned()
}

/// Reads the rules of the picture. Their queries stand on one line.
fn rules() -> Result<Vec<Rule>, String> {
    let rule = |name: &str| {
        let (_, text) = RULES.split_once(&format!("alert: {name}\n"))?;
        let text = text.split("- alert:").next().unwrap_or_default();
        let field = |name: &str| text.lines().find_map(|line| line.trim().strip_prefix(name));
        let minutes =
            field("for: ").map_or(Some(0), |time| time.strip_suffix('m')?.parse().ok())?;
        let query = field("expr: ")?.to_owned();
        Some(Rule { name: name.to_owned(), query, holds_for: minutes * 60 })
    };
    let rules = ALERTS.map(|name| rule(name).ok_or_else(|| format!("alerts.yml: {name}")));
    rules.into_iter().collect()
}

/// The times at which an alert fires.
fn firing(rule: &Rule, samples: &Samples) -> Result<Vec<u32>, String> {
    let (mut since, mut times) = (None, Vec::new());
    for at in (0..=END).step_by(STEP as usize) {
        let values = evaluate(&rule.query, samples, at);
        let values = values.ok_or_else(|| format!("{}: the query is not known", rule.name))?;
        since = (!values.is_empty()).then(|| since.unwrap_or(at));
        if since.is_some_and(|since| at - since >= rule.holds_for) {
            times.push(at);
        }
    }
    Ok(times)
}
