//! A [`Fleet`] from flags, and from a file with the same names.

use std::path::Path;

use crate::Fleet;

/// How a value is written.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Kind {
    Number,
    Whole,
    Time,
}

struct Setting {
    name: &'static str,
    kind: Kind,
    /// The least and the most that is allowed.
    range: (f64, f64),
    help: &'static str,
    field: fn(&mut Fleet) -> &mut f64,
}

const DAY: f64 = crate::DAY;

const SETTINGS: [Setting; 16] = [
    Setting {
        name: "hosts",
        kind: Kind::Whole,
        range: (1.0, 1e6),
        help: "processes",
        field: |fleet| &mut fleet.hosts,
    },
    Setting {
        name: "tenants",
        kind: Kind::Whole,
        range: (1.0, 1e9),
        help: "tenants, each with an encryption context of its own",
        field: |fleet| &mut fleet.tenants,
    },
    Setting {
        name: "writes",
        kind: Kind::Number,
        range: (1e-6, 1e9),
        help: "rows written a second, by all hosts",
        field: |fleet| &mut fleet.writes,
    },
    Setting {
        name: "reads",
        kind: Kind::Number,
        range: (0.0, 1e9),
        help: "rows read a second, by all hosts",
        field: |fleet| &mut fleet.reads,
    },
    Setting {
        name: "recent-share",
        kind: Kind::Number,
        range: (0.0, 1.0),
        help: "share of reads of recent rows; the others are picked from the history",
        field: |fleet| &mut fleet.recent_share,
    },
    Setting {
        name: "recent",
        kind: Kind::Time,
        range: (1.0, 3_660.0 * DAY),
        help: "age of a recent row, at most",
        field: |fleet| &mut fleet.recent,
    },
    Setting {
        name: "history",
        kind: Kind::Time,
        range: (1.0, 3_660.0 * DAY),
        help: "age of any row that is read, at most",
        field: |fleet| &mut fleet.history,
    },
    Setting {
        name: "max-age",
        kind: Kind::Time,
        range: (0.001, DAY),
        help: "Limits::max_age, and the time to live in the caches of the AWS Encryption SDK",
        field: |fleet| &mut fleet.max_age,
    },
    Setting {
        name: "rotate-after",
        kind: Kind::Time,
        range: (60.0, 30.0 * DAY),
        help: "Limits::rotate_after",
        field: |fleet| &mut fleet.rotate_after,
    },
    Setting {
        name: "grace",
        kind: Kind::Time,
        range: (0.0, DAY),
        help: "Limits::stale_if_error_reading and stale_if_error_writing",
        field: |fleet| &mut fleet.grace,
    },
    Setting {
        name: "max-entries",
        kind: Kind::Whole,
        range: (1.0, 1_048_576.0),
        help: "Limits::max_entries, and the entries of the caching CMM",
        field: |fleet| &mut fleet.max_entries,
    },
    Setting {
        name: "branch-period",
        kind: Kind::Time,
        range: (60.0, 1_098.0 * DAY),
        help: "BranchKekBuilder::period",
        field: |fleet| &mut fleet.branch_period,
    },
    Setting {
        name: "branches-per-tenant",
        kind: Kind::Whole,
        range: (0.0, 1e6),
        help: "branches for each tenant; 0 is one for all tenants",
        field: |fleet| &mut fleet.branches_per_tenant,
    },
    Setting {
        name: "outage",
        kind: Kind::Time,
        range: (0.0, 365.0 * DAY),
        help: "how long the key service is away",
        field: |fleet| &mut fleet.outage,
    },
    Setting {
        name: "price",
        kind: Kind::Number,
        range: (0.0, 1e6),
        help: "price of 10,000 calls of the key service",
        field: |fleet| &mut fleet.price,
    },
    Setting {
        name: "latency",
        kind: Kind::Time,
        range: (0.0, 3_600.0),
        help: "how long a call of the key service takes",
        field: |fleet| &mut fleet.latency,
    },
];

/// What the arguments ask for.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Asked {
    /// The list of settings.
    Help,
    /// The plan of a fleet.
    Plan(Fleet),
}

/// Reads flags: `--NAME VALUE`, `--NAME=VALUE`, `--file PATH` and `--help`. Flags go before the
/// file, whatever their order.
///
/// # Errors
/// A text that names the setting or the line.
pub fn from_args(args: impl IntoIterator<Item = String>) -> Result<Asked, String> {
    let mut args = args.into_iter();
    let (mut file, mut flags) = (None, Vec::new());
    while let Some(arg) = args.next() {
        if arg == "--help" || arg == "-h" {
            return Ok(Asked::Help);
        }
        let Some(flag) = arg.strip_prefix("--") else {
            return Err(format!(
                "{arg:?} is not a flag: flags begin with --, and --help lists them"
            ));
        };
        let (name, value) = match flag.split_once('=') {
            Some((name, value)) => (name.to_owned(), value.to_owned()),
            None => {
                let value = args.next().ok_or_else(|| format!("--{flag} has no value"))?;
                (flag.to_owned(), value)
            }
        };
        if name != "file" {
            flags.push((name, value));
        } else if file.replace(value).is_some() {
            return Err("--file is given twice".to_owned());
        }
    }
    let mut fleet = Fleet::default();
    if let Some(path) = file {
        let text = std::fs::read_to_string(Path::new(&path))
            .map_err(|error| format!("{path} cannot be read: {error}"))?;
        apply(&mut fleet, of_file(&text).map_err(|error| format!("{path}: {error}"))?)
            .map_err(|error| format!("{path}: {error}"))?;
    }
    apply(&mut fleet, flags)?;
    check(&fleet)?;
    Ok(Asked::Plan(fleet))
}

/// Reads the lines of a file: `name = value`, as in TOML without tables, with `#` for comments.
fn of_file(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut settings = Vec::new();
    for (line, number) in text.lines().zip(1..) {
        // No value has a `#` in it.
        let line = line.split('#').next().unwrap_or_default().trim();
        if line.is_empty() {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            return Err(format!("line {number} is not \"name = value\": {line}"));
        };
        let value = value.trim();
        let value = value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value);
        settings.push((name.trim().to_owned(), value.to_owned()));
    }
    Ok(settings)
}

fn apply(fleet: &mut Fleet, settings: Vec<(String, String)>) -> Result<(), String> {
    let mut seen = Vec::new();
    for (name, value) in settings {
        let wanted = name.replace('_', "-");
        let Some(setting) = SETTINGS.iter().find(|setting| setting.name == wanted) else {
            let names: Vec<_> = SETTINGS.iter().map(|setting| setting.name).collect();
            return Err(format!("{name} is not a setting: {} are", names.join(", ")));
        };
        if seen.contains(&setting.name) {
            return Err(format!("{name} is given twice"));
        }
        seen.push(setting.name);
        *(setting.field)(fleet) = setting.read(&value)?;
    }
    Ok(())
}

fn check(fleet: &Fleet) -> Result<(), String> {
    let Fleet { recent, history, max_age, grace, recent_share, .. } = *fleet;
    if recent_share > 0.0 && recent > history {
        return Err(format!("recent is {}, more than history ({})", time(recent), time(history)));
    }
    if max_age + grace > DAY {
        let sum = time(max_age + grace);
        return Err(format!("the sum of max-age and grace is {sum}, 1d is allowed"));
    }
    Ok(())
}

impl Setting {
    fn read(&self, text: &str) -> Result<f64, String> {
        let Self { name, kind, range: (least, most), .. } = self;
        let plain = text.replace('_', "");
        let value = match kind {
            Kind::Time => read_time(&plain),
            Kind::Number | Kind::Whole => plain.parse().ok(),
        };
        let is_of_kind = |value: &f64| {
            value.is_finite() && (*kind != Kind::Whole || value.fract().abs() < f64::EPSILON)
        };
        let Some(value) = value.filter(is_of_kind) else {
            let what = match kind {
                Kind::Number => "a number",
                Kind::Whole => "a whole number",
                Kind::Time => "a time with a unit, such as 250ms, 30s, 5m, 1h30m or 30d",
            };
            return Err(format!("{name} is {text:?}, and has to be {what}"));
        };
        if !(*least..=*most).contains(&value) {
            let (least, most) = (self.write(*least), self.write(*most));
            return Err(format!("{name} is {}, {least} to {most} is allowed", self.write(value)));
        }
        Ok(value)
    }

    fn write(&self, value: f64) -> String {
        match self.kind {
            Kind::Time => time(value),
            Kind::Number | Kind::Whole => number(value),
        }
    }
}

const UNITS: [(&str, f64); 5] =
    [("d", DAY), ("h", 3_600.0), ("m", 60.0), ("s", 1.0), ("ms", 0.001)];

fn read_time(text: &str) -> Option<f64> {
    let (mut rest, mut sum) = (text.trim(), 0.0);
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (value, after) = rest.split_at(digits);
        let end = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(end);
        let (_, seconds) = UNITS.iter().find(|(name, _)| *name == unit)?;
        sum += value.parse::<f64>().ok()? * seconds;
        rest = after;
    }
    Some(sum)
}

/// Writes a time as [`from_args`] reads it.
#[must_use]
pub fn time(seconds: f64) -> String {
    let mut left = (seconds * 1e3).round();
    let mut text = String::new();
    for (unit, length) in UNITS {
        let length = length * 1e3;
        let count = (left / length).floor();
        if count >= 1.0 {
            text += &format!("{count}{unit}");
            left -= count * length;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

fn number(value: f64) -> String {
    if value >= 1e7 || (value > 0.0 && value < 1e-3) {
        format!("{value:e}")
    } else {
        format!("{value}")
    }
}

/// Returns the settings of a fleet, one a line, as a file has them.
#[must_use]
pub fn list(fleet: &Fleet) -> String {
    let line = |setting: &Setting| {
        let value = *(setting.field)(&mut fleet.clone());
        let value = match setting.kind {
            Kind::Time => format!("\"{}\"", setting.write(value)),
            Kind::Number | Kind::Whole => setting.write(value),
        };
        format!("{:<20} = {value:<8} # {}\n", setting.name, setting.help)
    };
    SETTINGS.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(args: &[&str]) -> Result<Fleet, String> {
        match from_args(args.iter().map(|arg| (*arg).to_owned()))? {
            Asked::Plan(fleet) => Ok(fleet),
            Asked::Help => Err("help".to_owned()),
        }
    }

    #[test]
    fn what_is_listed_is_read_back() {
        let fleet = Fleet { hosts: 7.0, max_age: 90.5, reads: 0.25, ..Fleet::default() };
        let mut read = Fleet::default();
        apply(&mut read, of_file(&list(&fleet)).unwrap()).unwrap();
        assert_eq!(read, fleet);
    }

    #[test]
    fn each_setting_changes_its_own_field() {
        for setting in &SETTINGS {
            let (least, most) = setting.range;
            for value in [least, most] {
                let mut fleet = Fleet::default();
                let text = setting.write(value);
                apply(&mut fleet, vec![(setting.name.to_owned(), text)]).unwrap();
                let mut expected = Fleet::default();
                *(setting.field)(&mut expected) = value;
                assert_eq!(fleet, expected, "{}", setting.name);
            }
        }
    }

    #[test]
    fn bad_input_is_refused_and_named() {
        let cases: [(&[&str], &str); 13] = [
            (&["hosts"], "\"hosts\" is not a flag"),
            (&["--hosts"], "--hosts has no value"),
            (&["--hosts", "0"], "hosts is 0, 1 to 1000000 is allowed"),
            (&["--hosts", "2.5"], "hosts is \"2.5\", and has to be a whole number"),
            (&["--reads=many"], "reads is \"many\", and has to be a number"),
            (&["--reads", "NaN"], "reads is \"NaN\""),
            (&["--max-age", "300"], "max-age is \"300\", and has to be a time with a unit"),
            (&["--max-age", "2d"], "max-age is 2d, 1ms to 1d is allowed"),
            (&["--max-age", "5m", "--max_age", "6m"], "max_age is given twice"),
            (&["--max-age", "20h", "--grace", "5h"], "the sum of max-age and grace is 1d1h"),
            (&["--recent", "2d", "--history", "1d"], "recent is 2d, more than history (1d)"),
            (&["--maxage", "5m"], "maxage is not a setting: hosts, tenants"),
            (&["--file", "/no/such/file"], "/no/such/file cannot be read"),
        ];
        for (args, expected) in cases {
            let error = asked(args).unwrap_err();
            assert!(error.contains(expected), "{args:?}: {error}");
        }
        assert!(of_file("hosts 3").unwrap_err().contains("line 1 is not"));
    }

    #[test]
    fn flags_go_before_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hosts = 3 # few\nmax_age = \"1m\"\n").unwrap();
        let path = file.path().to_str().unwrap();
        let fleet = asked(&["--hosts=4", "--file", path]).unwrap();
        assert_eq!(fleet, Fleet { hosts: 4.0, max_age: 60.0, ..Fleet::default() });
    }
}
