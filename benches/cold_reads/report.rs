//! The table: one line for each figure, with its goal.

use std::process::ExitCode;
use std::time::Duration;

#[derive(Default)]
pub(crate) struct Report {
    missed: u32,
}

/// A number that prints itself.
pub(crate) enum Figure {
    Count(f64),
    Per100(f64),
    Time(Duration),
    Text(String),
}

impl std::fmt::Display for Figure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = match self {
            Self::Count(count) if count.fract().abs() < 1e-9 => format!("{count:.0}"),
            Self::Count(count) => format!("{count:.1}"),
            Self::Per100(calls) => format!("{calls:.2} per 100"),
            Self::Time(time) if *time < Duration::from_millis(1) => {
                format!("{:.1} µs", time.as_secs_f64() * 1e6)
            }
            Self::Time(time) => format!("{:.1} ms", time.as_secs_f64() * 1e3),
            Self::Text(text) => text.clone(),
        };
        f.pad(&text)
    }
}

impl Report {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn heading(&mut self, text: &str, columns: [&str; 3]) {
        let [measured, by_rule, goal] = columns;
        println!("\n{text}");
        println!("{:<58} {measured:>18} {by_rule:>18}   {goal}", "");
    }

    pub(crate) fn line(&mut self, name: &str, measured: Option<Figure>, by_rule: Option<Figure>) {
        let cell = |figure: Option<Figure>| figure.map_or(String::new(), |f| f.to_string());
        println!("{name:<58} {:>18} {:>18}", cell(measured), cell(by_rule));
    }

    /// A count that has to be within its goal.
    pub(crate) fn count(&mut self, name: &str, measured: f64, by_rule: Option<Figure>, most: f64) {
        self.goal(name, Figure::Count(measured), by_rule, measured <= most, &format!("<= {most}"));
    }

    /// Any figure with a goal that fails the benchmark.
    pub(crate) fn goal(
        &mut self,
        name: &str,
        measured: Figure,
        by_rule: Option<Figure>,
        met: bool,
        goal: &str,
    ) {
        let by_rule = by_rule.map_or(String::new(), |figure| figure.to_string());
        let verdict = if met { "met" } else { "NOT MET" };
        println!("{name:<58} {measured:>18} {by_rule:>18}   {goal}: {verdict}");
        self.missed += u32::from(!met);
    }

    /// A time. It depends on what else the machine does, so it fails nothing.
    pub(crate) fn time(&mut self, name: &str, measured: Duration, below: Duration) {
        let verdict = if measured < below { "met" } else { "NOT MET" };
        let (measured, below) = (Figure::Time(measured), Figure::Time(below));
        println!("{name:<58} {measured:>18} {:>18}   < {below}: {verdict}", "");
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        match self.missed {
            0 => ExitCode::SUCCESS,
            missed => {
                println!("\n{missed} counts miss their goal.");
                ExitCode::FAILURE
            }
        }
    }
}
