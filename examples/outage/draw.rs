//! Draws charts, one below the other on one axis of time.

use std::fmt::Write;

use super::simulation::{END, OUTAGE, STEP};

/// A line of a chart.
pub(crate) struct Line {
    pub(crate) name: String,
    /// Seconds and value.
    pub(crate) points: Vec<(u32, f64)>,
}

pub(crate) struct Chart {
    pub(crate) title: String,
    /// As Grafana calls it.
    pub(crate) unit: String,
    pub(crate) lines: Vec<Line>,
}

const WIDTH: f64 = 960.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 690.0;
const PLOT: f64 = 110.0;
const GAP: f64 = 52.0;
const TOP: f64 = 84.0;
const ROW: f64 = 22.0;
/// Colours that colour-blind people can distinguish too (Okabe and Ito).
const COLOURS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#5c5c5c"];

/// Returns the charts, and below them when each alert fires.
pub(crate) fn picture(charts: &[Chart], alerts: &[(String, Vec<u32>)]) -> String {
    let mut svg = String::new();
    let plots: f64 = charts.iter().map(|_| PLOT + GAP).sum();
    #[allow(clippy::cast_precision_loss)]
    let height = TOP + plots + alerts.len() as f64 * ROW + 66.0;
    let bottom = height - 44.0;
    let _ = write!(
        svg,
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" font-size="12" fill="#222">
<title>The dashboard over an outage of the key service from minute 20 to minute 40</title>
<rect width="100%" height="100%" fill="#fff"/>
<text x="{LEFT}" y="28" font-size="16" font-weight="bold">The dashboard over an outage of the key service</text>
<text x="{LEFT}" y="48" fill="#555">24 tenants; max_age 5 minutes, stale_if_error 10 minutes. Drawn by the example `outage`.</text>
"##
    );
    let (from, to) = (x(OUTAGE.start), x(OUTAGE.end));
    let _ = writeln!(
        svg,
        r##"<rect x="{from:.1}" y="62" width="{:.1}" height="{:.1}" fill="#fbe9e0"/>
<text x="{:.1}" y="74" text-anchor="middle" fill="#a33b00" font-size="11">the key service is down</text>"##,
        to - from,
        bottom - 62.0,
        (from + to) / 2.0,
    );
    let mut top = TOP + 14.0;
    for chart in charts {
        draw_chart(&mut svg, chart, top);
        top += PLOT + GAP;
    }
    draw_alerts(&mut svg, alerts, top - 8.0);
    for minute in (0..=END / 60).step_by(10) {
        let _ = writeln!(
            svg,
            r##"<text x="{:.1}" y="{:.1}" text-anchor="middle" fill="#555">{minute} min</text>"##,
            x(minute * 60),
            bottom + 20.0,
        );
    }
    svg.push_str("</svg>\n");
    svg
}

fn x(at: u32) -> f64 {
    LEFT + (RIGHT - LEFT) * f64::from(at) / f64::from(END)
}

fn draw_chart(svg: &mut String, chart: &Chart, top: f64) {
    let most = chart.lines.iter().flat_map(|line| &line.points).map(|(_, value)| *value);
    let most = round_up(most.fold(0.0, f64::max));
    let y = |value: f64| top + PLOT * (1.0 - value / most);
    let _ = writeln!(
        svg,
        r##"<text x="{LEFT}" y="{:.1}" font-weight="bold">{}</text>"##,
        top - 8.0,
        escaped(&chart.title),
    );
    for value in [0.0, most / 2.0, most] {
        let _ = writeln!(
            svg,
            r##"<line x1="{LEFT}" x2="{RIGHT}" y1="{0:.1}" y2="{0:.1}" stroke="#ddd"/>
<text x="{1}" y="{2:.1}" text-anchor="end" fill="#555" font-size="11">{3}</text>"##,
            y(value),
            LEFT - 6.0,
            y(value) + 4.0,
            shown(value, &chart.unit),
        );
    }
    let mut legend = top + 10.0;
    for (line, colour) in chart.lines.iter().zip(COLOURS.iter().cycle()) {
        let mut path = String::new();
        let mut last = None;
        for (at, value) in &line.points {
            // A query that has no value for a while has a gap.
            let goes_on = last.is_some_and(|last| at - last == STEP);
            let command = if goes_on { 'L' } else { 'M' };
            let _ = write!(path, "{command}{:.1} {:.1}", x(*at), y(*value));
            last = Some(*at);
        }
        let _ = writeln!(
            svg,
            r##"<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>
<line x1="{0}" x2="{1}" y1="{2:.1}" y2="{2:.1}" stroke="{colour}" stroke-width="3"/>
<text x="{3}" y="{4:.1}" font-size="11">{5}</text>"##,
            RIGHT + 14.0,
            RIGHT + 30.0,
            legend - 4.0,
            RIGHT + 36.0,
            legend,
            escaped(&line.name),
        );
        legend += 16.0;
    }
}

fn draw_alerts(svg: &mut String, alerts: &[(String, Vec<u32>)], top: f64) {
    let _ = writeln!(
        svg,
        r##"<text x="{LEFT}" y="{:.1}" font-weight="bold">Alerts</text>"##,
        top - 6.0
    );
    let mut top = top;
    for (name, times) in alerts {
        let _ = writeln!(
            svg,
            r##"<line x1="{LEFT}" x2="{RIGHT}" y1="{0:.1}" y2="{0:.1}" stroke="#ddd"/>
<text x="{1}" y="{2:.1}" font-size="11">{3}</text>"##,
            top + 8.0,
            RIGHT + 14.0,
            top + 12.0,
            escaped(name),
        );
        for at in times {
            let _ = writeln!(
                svg,
                r##"<rect x="{:.1}" y="{:.1}" width="{:.1}" height="12" fill="#b00020"/>"##,
                x(*at),
                top + 2.0,
                x(STEP) - x(0) + 0.2,
            );
        }
        top += ROW;
    }
}

/// The next of 1, 2, 5, 10, 20, and so on.
fn round_up(most: f64) -> f64 {
    if most <= 0.0 {
        return 1.0;
    }
    let power = 10_f64.powf(most.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * power);
    steps.into_iter().find(|step| most <= *step * 1.0001).unwrap_or(most)
}

fn shown(value: f64, unit: &str) -> String {
    match unit {
        "percentunit" => format!("{:.0} %", value * 100.0),
        "s" => format!("{:.0} ms", value * 1000.0),
        "ops" | "reqps" | "cps" => format!("{value}/s"),
        _ => format!("{value}"),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
