//! Finds expressions so long that the engine would follow them to the end of the stack.
//!
//! regorus 0.14 limits how deep brackets are nested, but not how many operators or look-ups follow
//! each other. Each makes its tree one level deeper. A stack overflow takes the whole process down,
//! so a policy must not be able to cause one.
#![forbid(unsafe_code)]

use super::heads::code_lines;

/// The maximum number of operators, look-ups and calls of one expression, including those of the
/// enclosing expressions.
pub(super) const MOST: usize = 128;

/// Words that join or begin a part of an expression.
const WORDS: [&str; 3] = ["in", "not", "or"];
/// Words between two expressions.
const ENDS: [&str; 2] = ["else", "if"];

fn joins(c: char) -> bool {
    "+-*/%&|<>=!.".contains(c)
}

/// Returns the line at which an expression has too many.
pub(super) fn too_long(text: &str) -> Option<usize> {
    // The counts for each open bracket, and their sum.
    let (mut open, mut sum, mut goes_on) = (vec![0_usize], 0_usize, false);
    for (line, code) in code_lines(text) {
        let code = code.trim();
        if code.is_empty() {
            continue;
        }
        // A line ends an expression, unless it ends or the next begins with an operator.
        if !goes_on && !code.starts_with(|c| joins(c) || "[(".contains(c)) {
            end(&mut open, &mut sum);
        }
        let mut word = String::new();
        for c in code.chars().chain([' ']) {
            if c.is_alphanumeric() || c == '_' {
                word.push(c);
                continue;
            }
            let is_joined = WORDS.contains(&&*word);
            if ENDS.contains(&&*word) {
                end(&mut open, &mut sum);
            }
            word.clear();
            let joined = usize::from(is_joined) + usize::from(joins(c) || "([{".contains(c));
            sum = sum.saturating_add(joined);
            if let Some(here) = open.last_mut() {
                *here = here.saturating_add(joined);
            }
            if sum > MOST {
                return Some(line);
            }
            match c {
                '(' | '[' | '{' => open.push(0),
                ')' | ']' | '}' if open.len() > 1 => {
                    sum = sum.saturating_sub(open.pop().unwrap_or_default());
                }
                ',' | ';' => end(&mut open, &mut sum),
                _ => {}
            }
        }
        let last = code.split_whitespace().next_back().unwrap_or_default();
        goes_on = code.ends_with(joins) || WORDS.contains(&last);
    }
    None
}

/// An expression ends, and another begins within the same brackets.
fn end(open: &mut [usize], sum: &mut usize) {
    if let Some(here) = open.last_mut() {
        *sum = sum.saturating_sub(std::mem::take(here));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_strung_together_is_counted_wherever_its_lines_end() {
        let many = |part: &str, count: usize| part.repeat(count);
        for rule in [
            format!("a if 0 {} == 0", many("+ 1 ", MOST)),
            format!("a if 0 {} == 0", many("+\n1 ", MOST)),
            format!("a if 0 {} == 0", many("\n+ 1", MOST)),
            format!("a if {{1}} {} == 0", many("| {1} ", MOST)),
            format!("a if input{}", many(".a", MOST + 1)),
            format!("a if input{}", many("[0]", MOST + 1)),
            format!("a if input{}", many("\n[0]", MOST + 1)),
            format!("a if {}1 == 0", many("-", MOST)),
            format!("a if {}true", many("not ", MOST + 1)),
            format!("a if 1 {}", many("in [1] ", MOST)),
            // In brackets within brackets none of which has too many.
            format!("a if {}1{} == 0", many("(1 + ", MOST / 2 + 1), many(")", MOST / 2 + 1)),
        ] {
            let text = format!("package p\n\n{rule}\n");
            assert!(too_long(&text).is_some_and(|line| line >= 3), "{rule}");
        }
    }

    #[test]
    fn a_long_policy_of_short_expressions_is_not_refused() {
        let many = |part: &str| part.repeat(10 * MOST);
        for rule in [
            format!("a if {{\n{}}}", many("\tinput.a.b == data.c[x] + 1\n")),
            format!("a if {{ {} }}", many("input.a == 1; ")),
            format!("a := [{}]", many("[\"a\", 1.5, {\"b\": -2}],\n")),
            format!("a := {{{}}}", many("\"x\": data.y[0], ")),
            format!("a if {{ # {} }}", many("+ 1 ")),
            format!("a := \"{}\"", many("+.-")),
            format!("a := `{}`", many("+\n-")),
            many("a contains input.a.b if input.c.d != 1\n\n"),
            many("a := 1 if {\n\tnot input.x\n} else := 2 if {\n\tnot input.y\n}\n"),
            format!("a if 0 {} == 0", "+ 1 ".repeat(MOST - 4)),
        ] {
            let text = format!("package p\n\n{rule}\n");
            assert_eq!(too_long(&text), None, "{}", &rule[..rule.len().min(80)]);
        }
    }
}
