//! Holds the instructions of the library's own code against stored figures, under valgrind's
//! callgrind, on x86-64 Linux.
//!
//!     cargo bench -p waxseal-benches --features aws-lc --bench instructions               fails if a figure went up or down
//!     cargo bench -p waxseal-benches --features aws-lc --bench instructions -- --store    stores what it sees
//!
//! Instructions do not depend on what else the machine does, as times do. Counted is what runs
//! between the call of a function of the library and its return, in this program: the library and
//! the Rust crates that it uses. Not counted are the AEAD (aws-lc picks its code by processor, and
//! valgrind knows fewer instructions than processors do) and the C library (its code differs
//! between releases); of the latter the number of calls is held.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

mod support;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::{env, fmt, fs};

use support::{Contender, Ground};
use waxseal::Backend;

/// A figure is the difference between a run of this many calls and one of so many more, per call:
/// what happens before the first call, and once only, is not in it. One look-up in 65 goes to the
/// shared cache, and the nonce generator makes its words in blocks; that evens out.
const FEW: u32 = 65;
const MORE: u32 = 10 * 65;

/// In percent, up and down. On one machine the figures do not move at all; what is left to other
/// machines is the nonce generator, which picks its code by processor (about 20 instructions a
/// nonce). An allocation more is seen in the calls, a read of the clock or a hash more in the
/// instructions.
const TOLERANCE: f64 = 3.0;

/// Callgrind begins or ends counting at the entry of each of these and turns back at its return: it
/// counts within the first, but not within the AEAD. (And in the AEAD where we do not count, before
/// a scenario begins: that goes by name and file.)
const COUNTED: &str = "*instructions::measured";
const NOT_COUNTED: [&str; 2] = ["*EVP_AEAD_CTX_seal_scatter", "*EVP_AEAD_CTX_open_gather"];

#[inline(never)]
fn measured(contender: &Contender<'_>, buffer: &mut Vec<u8>) {
    contender.call(buffer);
}

fn scenarios(ground: &Ground) -> Vec<(String, Contender<'_>)> {
    let mut scenarios = Vec::new();
    // In place, the size must not matter.
    for (len, size) in [(64, "64 B"), (16 * 1024, "16 KiB")] {
        scenarios.extend(
            ground
                .seal(len)
                .map(|contender| (format!("seal {size}, {}", contender.name), contender)),
        );
        scenarios.extend(
            ground
                .open(len)
                .map(|contender| (format!("open {size}, {}", contender.name), contender)),
        );
    }
    let allocating = ground.allocating(1024).into_iter().chain(ground.acting(1024));
    scenarios.extend(allocating.map(|contender| (contender.name.to_owned(), contender)));
    scenarios
}

/// Runs one scenario, for callgrind to look at.
fn run(wanted: &str, calls: u32) {
    let ground = Ground::new(Backend::default());
    let (_, contender) = scenarios(&ground).into_iter().find(|(name, _)| name == wanted).unwrap();
    let buffer = &mut contender.buffers()[0];
    for _ in 0..calls {
        contender.fill(buffer);
        measured(&contender, buffer);
    }
}

/// Per call.
#[derive(Clone, Copy)]
struct Figures {
    instructions: f64,
    /// Into the C library: copies, fills, comparisons, allocations.
    calls: f64,
}

impl Figures {
    fn differ_from(self, stored: Self) -> bool {
        let off = |seen: f64, stored: f64| (seen - stored).abs() > stored * TOLERANCE / 100.0;
        off(self.instructions, stored.instructions) || off(self.calls, stored.calls)
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>8.1} {:>6.2}", self.instructions, self.calls)
    }
}

/// What a profile of callgrind says (its format: valgrind's manual, "Callgrind Format
/// Specification").
struct Profile {
    /// Of all calls together.
    total: Figures,
    /// What each function costs itself, without those that it calls.
    functions: BTreeMap<String, f64>,
}

impl Profile {
    fn of(text: &str, program: &Path) -> Self {
        let program = program.to_str().unwrap();
        let mut names: HashMap<(char, String), String> = HashMap::new();
        // A name is given with its number where it occurs first, and by its number after.
        let mut name = |kind: char, value: &str| -> String {
            let (number, rest) = value.split_once(')').unwrap();
            let name = names.entry((kind, number.to_owned())).or_default();
            if !rest.is_empty() {
                rest.trim().clone_into(name);
            }
            name.clone()
        };
        let (mut object, mut file, mut function) = (String::new(), String::new(), String::new());
        let (mut called_object, mut is_inclusive) = (None, false);
        let (mut instructions, mut calls, mut functions) = (0.0, 0.0, BTreeMap::new());
        for line in text.lines() {
            let is_ours =
                object == program && !file.contains("/aws-lc/") && !function.starts_with("aws_lc_");
            match line.split_once('=') {
                Some(("ob", value)) => object = name('o', value),
                Some(("fl", value)) => file = name('f', value),
                Some(("fn", value)) => function = name('n', value),
                Some(("cob", value)) => called_object = Some(name('o', value)),
                Some(("fi" | "fe" | "cfi" | "cfl", value)) => drop(name('f', value)),
                Some(("cfn", value)) => drop(name('n', value)),
                Some(("calls", value)) => {
                    let called = called_object.take().unwrap_or_else(|| object.clone());
                    if is_ours && called != program {
                        calls += value.split(' ').next().unwrap().parse::<f64>().unwrap();
                    }
                    is_inclusive = true;
                }
                // A cost line: position and instructions. After `calls` it is what the called
                // function cost.
                _ if line.starts_with(|c: char| c.is_ascii_digit() || "+-*".contains(c)) => {
                    let cost: f64 =
                        line.split(' ').nth(1).map_or(0.0, |cost| cost.parse().unwrap());
                    if !std::mem::take(&mut is_inclusive) && is_ours {
                        instructions += cost;
                        *functions.entry(function.clone()).or_default() += cost;
                    }
                }
                _ => {}
            }
        }
        Self { total: Figures { instructions, calls }, functions }
    }
}

/// What one call costs.
fn measure(scenario: &str) -> Profile {
    let program = env::current_exe().unwrap();
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("instructions");
    fs::create_dir_all(&directory).unwrap();
    let runs = [FEW, FEW + MORE].map(|calls| {
        let file = directory.join(format!("{scenario}, {calls} calls"));
        let mut valgrind = Command::new("valgrind");
        valgrind.args(["--tool=callgrind", "--quiet", "--collect-atstart=no", "--compress-pos=no"]);
        valgrind.arg(format!("--callgrind-out-file={}", file.display()));
        valgrind.args(
            [COUNTED]
                .iter()
                .chain(&NOT_COUNTED)
                .map(|function| format!("--toggle-collect={function}")),
        );
        valgrind.arg(&program).args(["--run", scenario, &calls.to_string()]).stderr(Stdio::piped());
        let child = valgrind.spawn();
        (
            file,
            child.unwrap_or_else(|error| {
                panic!("valgrind cannot be started (apt-get install valgrind): {error}")
            }),
        )
    });
    let [few, all] = runs.map(|(file, child)| {
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "{scenario}:\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        Profile::of(&fs::read_to_string(file).unwrap(), &program)
    });
    let per_call = |few: f64, all: f64| (all - few) / f64::from(MORE);
    let total = Figures {
        instructions: per_call(few.total.instructions, all.total.instructions),
        calls: per_call(few.total.calls, all.total.calls),
    };
    assert!(total.instructions > 50.0, "{scenario}: nothing was counted");
    let of_few = |function: &String| few.functions.get(function).copied().unwrap_or_default();
    let functions =
        all.functions.into_iter().map(|(name, cost)| (name.clone(), per_call(of_few(&name), cost)));
    Profile { total, functions: functions.collect() }
}

fn compiler() -> String {
    let output = Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .arg("--version")
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// The lines of the stored file: a scenario, then its two figures.
fn read(text: &str) -> BTreeMap<String, Figures> {
    let mut stored = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (rest, calls) = line.rsplit_once(' ').unwrap();
        let (scenario, instructions) = rest.trim().rsplit_once(' ').unwrap();
        let figures =
            Figures { instructions: instructions.parse().unwrap(), calls: calls.parse().unwrap() };
        stored.insert(scenario.trim().to_owned(), figures);
    }
    stored
}

fn main() -> ExitCode {
    let arguments: Vec<_> = env::args().skip(1).collect();
    if let [flag, scenario, calls, ..] = &arguments[..]
        && flag == "--run"
    {
        run(scenario, calls.parse().unwrap());
        return ExitCode::SUCCESS;
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("instructions.txt");
    let ground = Ground::new(Backend::default());
    let seen: Vec<_> =
        scenarios(&ground).into_iter().map(|(name, _)| (measure(&name), name)).collect();

    if arguments.iter().any(|argument| argument == "--store") {
        let mut text = format!(
            "# {}. Per call: instructions of our own code, calls into the C library.\n",
            compiler()
        );
        seen.iter().for_each(|(profile, name)| text += &format!("{name:<32} {}\n", profile.total));
        fs::write(&file, &text).unwrap();
        print!("{text}");
        return ExitCode::SUCCESS;
    }

    let text = fs::read_to_string(&file).unwrap();
    let mut stored = read(&text);
    let mut failures = 0;
    println!("{:<32} {:>8} {:>6}   {:>8} {:>6}", "", "stored", "calls", "now", "calls");
    for (profile, name) in &seen {
        let Some(before) = stored.remove(name) else {
            println!("{name:<32} {:>15}   {}   NOT STORED", "", profile.total);
            failures += 1;
            continue;
        };
        let differ = profile.total.differ_from(before);
        println!(
            "{name:<32} {before}   {}{}",
            profile.total,
            if differ { "   DIFFERS" } else { "" }
        );
        if differ {
            failures += 1;
            let mut functions: Vec<_> = profile.functions.iter().collect();
            functions.sort_by(|a, b| b.1.total_cmp(a.1));
            functions
                .iter()
                .take(12)
                .for_each(|(function, cost)| println!("    {cost:>8.1}  {function}"));
        }
    }
    for name in stored.keys() {
        println!("{name:<32} is stored, and was not measured");
        failures += 1;
    }
    if failures == 0 {
        return ExitCode::SUCCESS;
    }
    println!(
        "\n{failures} figures are not within {TOLERANCE} % of what is stored. This is {}, stored was:\n{}\n\
         If the change is meant, or the compiler's, store the new figures and say why in the commit:\n\
         cargo bench -p waxseal-benches --features aws-lc --bench instructions -- --store",
        compiler(),
        text.lines().next().unwrap_or_default(),
    );
    ExitCode::FAILURE
}
