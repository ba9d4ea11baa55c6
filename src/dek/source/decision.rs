//! The decision of a look-up. docs/lifetimes.md has it as a table.
#![forbid(unsafe_code)]

use super::super::lease::Age;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Decision {
    /// The cached DEK serves.
    Serve,
    /// The cached DEK serves, and this request renews it.
    ServeAndRenew,
    /// The key service is asked first.
    Ask,
    /// The key service refused this exact request a moment ago.
    Refuse,
}

/// Decides what a look-up does. `outage_is_known` refers to the source KEKs of the DEK. `is_turn`
/// means that this request may renew it now, and `is_refused` that it was denied or found invalid a
/// moment ago.
pub(super) fn decide(
    age: Age,
    outage_is_known: bool,
    is_turn: bool,
    is_refused: impl FnOnce() -> bool,
) -> Decision {
    let serves = match age {
        Age::Fresh => return Decision::Serve,
        Age::Due => true,
        Age::Stale => outage_is_known,
        Age::Ended => false,
    };
    match serves {
        true if is_turn => Decision::ServeAndRenew,
        true => Decision::Serve,
        false if is_refused() => Decision::Refuse,
        false => Decision::Ask,
    }
}

#[cfg(test)]
mod tests {
    use super::Decision::{Ask, Refuse, Serve, ServeAndRenew};
    use super::*;

    /// docs/lifetimes.md says the same, row by row.
    #[test]
    fn the_table_of_the_documentation_is_the_function() {
        let page = include_str!("../../../docs/lifetimes.md");
        let table =
            page.split("| age | outage known |").nth(1).unwrap().split("\n\n").next().unwrap();
        let mut rows = 0;
        for row in table.lines().skip(2) {
            let cells: Vec<_> = row.trim_matches('|').split('|').map(str::trim).collect();
            let age = match cells[0] {
                "fresh" => Age::Fresh,
                "due" => Age::Due,
                "stale, within `stale_if_error`" => Age::Stale,
                "none, or past its end" => Age::Ended,
                other => panic!("{other}"),
            };
            let either = |cell: &str| match cell {
                "yes" => vec![true],
                "no" => vec![false],
                "any" => vec![true, false],
                other => panic!("{other}"),
            };
            let expected = match cells[4] {
                "serve" => Serve,
                "serve and renew" => ServeAndRenew,
                "ask" => Ask,
                "refuse" => Refuse,
                other => panic!("{other}"),
            };
            for outage in either(cells[1]) {
                for turn in either(cells[2]) {
                    for refused in either(cells[3]) {
                        assert_eq!(decide(age, outage, turn, || refused), expected, "{row}");
                        rows += 1;
                    }
                }
            }
        }
        assert_eq!(rows, 4 * 8, "every case stands in the table, once");
    }
}
