//! Finds rules with which the engine would lose reasons to deny.
//!
//! regorus 0.14 drops what a rule has found so far if the value in its head is undefined for the
//! last of several solutions. For example, `deny_reason contains data.why[role] if some role in
//! input.caller.roles` yields nothing if the last role has no entry. Other engines drop only that
//! one solution. If the look-up is in the body, they agree.
#![forbid(unsafe_code)]

use std::collections::{BTreeMap, BTreeSet};

/// A rule, without comments and without the content of texts.
struct Rule {
    /// The number of its first line, from 1.
    line: usize,
    text: String,
}

/// Returns the lines of rules whose head looks up something that may be undefined for one of
/// several solutions.
pub(super) fn lookups<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<Vec<usize>> {
    let all: Vec<_> = texts.map(rules).collect();
    let mut names = BTreeMap::<_, BTreeSet<_>>::new();
    for rules in &all {
        let of_rules = rules.iter().filter_map(|rule| first_name(&rule.text));
        names.entry(package(rules)).or_default().extend(of_rules);
    }
    let at_fault = |rules: &Vec<Rule>| {
        let imports: BTreeSet<_> = rules.iter().filter_map(|rule| imported(&rule.text)).collect();
        let names = names.get(package(rules));
        let is_known =
            |name: &str| imports.contains(name) || names.is_some_and(|names| names.contains(name));
        let lost = rules.iter().filter(|rule| loses(&rule.text, &is_known));
        lost.map(|rule| rule.line).collect()
    };
    all.iter().map(at_fault).collect()
}

/// Splits a policy at lines that begin outside of all brackets.
fn rules(text: &str) -> Vec<Rule> {
    let (mut all, mut depth, mut goes_on) = (Vec::<Rule>::new(), 0_usize, false);
    for (line, code) in code_lines(text) {
        let code = code.trim();
        if code.is_empty() {
            continue;
        }
        match all.last_mut() {
            Some(rule) if depth > 0 || goes_on || continues(code) => {
                rule.text.push('\n');
                rule.text.push_str(code);
            }
            _ => all.push(Rule { line, text: code.to_owned() }),
        }
        for c in code.chars() {
            match c {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth = depth.saturating_sub(1),
                _ => {}
            }
        }
        let last = code.split_whitespace().next_back().unwrap_or_default();
        goes_on = ["if", "contains", "in", ":=", "=", "|", "&", ","].contains(&last);
    }
    all
}

fn is_of_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c| !is_of_name(c)).filter(|word| !word.is_empty())
}

/// Whether a line cannot begin a rule. The engine accepts `if` on its own line.
fn continues(code: &str) -> bool {
    let first = words(code).next().unwrap_or_default();
    code.starts_with([':', '=']) || ["else", "if", "contains"].contains(&first)
}

/// The package of a file.
fn package(rules: &[Rule]) -> &str {
    rules.iter().find_map(|rule| rule.text.strip_prefix("package ")).unwrap_or_default().trim()
}

/// Returns the name by which a file refers to what it imports.
fn imported(rule: &str) -> Option<&str> {
    words(rule.strip_prefix("import ")?).last()
}

/// The names that a body sets.
fn set_in(body: &str) -> impl Iterator<Item = &str> {
    body.match_indices(":=").filter_map(|(at, _)| words(body.get(..at)?).last())
}

/// The variables that a body declares.
fn declared(body: &str) -> BTreeSet<&str> {
    let of_some = body.split("some ").skip(1).flat_map(|rest| {
        let end = rest.find(['\n', ';']).unwrap_or(rest.len());
        let names = rest.get(..end).unwrap_or_default();
        words(names.split(" in ").next().unwrap_or_default())
    });
    of_some.chain(set_in(body)).collect()
}

fn first_name(rule: &str) -> Option<&str> {
    words(rule).find(|word| *word != "default")
}

fn loses(rule: &str, is_known: &impl Fn(&str) -> bool) -> bool {
    let Some((head, body)) = at_top(rule, "if") else { return false };
    let body = body.trim_start();
    let head = without_comprehensions(head);
    let body = without_comprehensions(body.strip_prefix('{').unwrap_or(body));
    let (of_name, value) =
        ["contains", ":=", "="].iter().find_map(|sign| at_top(&head, sign)).unwrap_or((&head, ""));
    // `level[KEY] := VALUE`: the key is part of the head too.
    let key = of_name.split_once('[').map_or("", |(_, key)| key);
    // A variable of the rule hides a rule of the same name.
    let own = declared(&body);
    let varies = |name: &str| {
        let is_name = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        let is_own = own.contains(name) || !is_known(name);
        is_name && is_own && !["input", "data"].contains(&name)
    };
    [key, value].iter().any(|part| looks_up(part, is_known, &varies)) && may_repeat(&body, &varies)
}

/// A comprehension is never undefined, and has separate solutions.
fn without_comprehensions(text: &str) -> String {
    let (mut kept, mut open) = (String::with_capacity(text.len()), Vec::new());
    for c in text.chars() {
        match c {
            '(' | '[' | '{' => open.push((kept.len(), false)),
            '|' => open.last_mut().into_iter().for_each(|(_, is_one)| *is_one = true),
            ')' | ']' | '}' => {
                if let Some((begin, true)) = open.pop() {
                    kept.truncate(begin);
                    kept.push('0');
                    continue;
                }
            }
            _ => {}
        }
        kept.push(c);
    }
    kept
}

/// Splits where a word occurs outside of brackets.
fn at_top<'a>(text: &'a str, word: &str) -> Option<(&'a str, &'a str)> {
    let mut depth = 0_usize;
    for (at, c) in text.char_indices() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        let (before, rest) = text.split_at(at);
        let Some(after) = rest.strip_prefix(word).filter(|_| depth == 0) else { continue };
        let is_sign = !word.starts_with(is_of_name);
        let is_alone = !before.ends_with(is_of_name) && !after.starts_with(is_of_name);
        // `=` is not part of `==` or `:=`.
        let is_other = before.ends_with(['=', ':', '!', '<', '>']) || after.starts_with('=');
        if is_sign && !is_other || !is_sign && is_alone {
            return Some((before, after));
        }
    }
    None
}

/// Whether an expression has a path whose value depends on a variable, or calls a function of the
/// policy. Both may be undefined for one solution and not for another.
fn looks_up(text: &str, is_known: &impl Fn(&str) -> bool, varies: &impl Fn(&str) -> bool) -> bool {
    let mut rest = text;
    while let Some(at) = rest.find(is_of_name) {
        let (before, from) = rest.split_at(at);
        let end = from.find(|c| !is_of_name(c)).unwrap_or(from.len());
        let (name, after) = from.split_at(end);
        rest = after;
        // What follows a dot is not a root.
        if before.ends_with('.') {
            continue;
        }
        let path = after.find(|c| !is_of_name(c) && c != '.').unwrap_or(after.len());
        let (dots, behind) = after.split_at(path);
        let is_call = behind.starts_with('(');
        let is_path = dots.starts_with('.') || behind.starts_with('[');
        if is_call && (is_known(name) || name == "data") {
            return true;
        }
        // In `data.texts["en"][role]` the second bracket varies.
        let mut brackets = path_behind(after).split('[').skip(1);
        let in_brackets =
            brackets.any(|inner| words(inner.split(']').next().unwrap_or_default()).any(varies));
        if is_path && !is_call && (varies(name) || in_brackets) {
            return true;
        }
    }
    false
}

/// Returns the part after a name that belongs to the same path: `.a["b"][c]`.
fn path_behind(after: &str) -> &str {
    let mut depth = 0_usize;
    let end = after.find(|c| match c {
        '[' => {
            depth += 1;
            false
        }
        ']' if depth > 0 => {
            depth -= 1;
            false
        }
        _ => depth == 0 && !is_of_name(c) && c != '.',
    });
    after.get(..end.unwrap_or(after.len())).unwrap_or_default()
}

/// Whether a body may have several solutions.
fn may_repeat(body: &str, varies: &impl Fn(&str) -> bool) -> bool {
    let iterates = words(body).any(|word| ["some", "_", "walk"].contains(&word));
    let mut pieces = body.split('[');
    let mut before = pieces.next().unwrap_or_default();
    let indexes = pieces.any(|piece| {
        let is_index = before.ends_with(|c| is_of_name(c) || c == ']' || c == ')');
        before = piece;
        let inner = piece.split([']', ',']).next().unwrap_or_default().trim();
        let is_set = set_in(body).any(|name| name == inner);
        is_index && inner.chars().all(is_of_name) && varies(inner) && !is_set
    });
    iterates || indexes
}

/// Returns the lines of a policy with their numbers, without comments and without the content of
/// texts.
pub(super) fn code_lines(text: &str) -> impl Iterator<Item = (usize, String)> {
    let (mut code, mut rest) = (String::with_capacity(text.len()), text.chars().peekable());
    while let Some(c) = rest.next() {
        match c {
            '#' => while rest.next_if(|c| *c != '\n').is_some() {},
            '"' => {
                code.push_str("\"\"");
                while let Some(c) = rest.next_if(|c| *c != '\n') {
                    match c {
                        '\\' => drop(rest.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            '`' => {
                code.push_str("\"\"");
                // A raw text may span lines.
                for c in rest.by_ref().take_while(|c| *c != '`') {
                    if c == '\n' {
                        code.push('\n');
                    }
                }
            }
            c => code.push(c),
        }
    }
    let lines: Vec<_> = code.lines().map(str::to_owned).collect();
    lines.into_iter().enumerate().map(|(index, line)| (index + 1, line))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &str) -> Vec<usize> {
        lookups([text].into_iter()).concat()
    }

    #[test]
    fn a_look_up_in_the_head_of_a_rule_that_iterates_is_found() {
        for rule in [
            "a contains data.why[role] if some role in input.roles",
            "a contains data.why[role].text if {\n\tsome role in input.roles\n}",
            "a contains [role, data.why[role]] if some role in input.roles",
            "a contains {\"b\": why[role]} if some role in input.roles",
            "a contains sprintf(\"%s\", [data.why[role]]) if some role in input.roles",
            "a contains approval.by if some approval in data.approvals",
            "a contains data.why[i].text if data.rules[i].denied",
            "a contains data.why[i].text if {\n\tdata.rules[i].denied\n}",
            "a contains label(role) if some role in input.roles",
            "a contains x.y if walk(input, [x, _])",
            "a contains role.name if input.roles[_] == role",
            "a[role] := data.why[role] if some role in input.roles",
            "a[data.why[role]] := role if some role in input.roles",
            "a[data.why[role]] if some role in input.roles",
            "a := data.why[role] if some role in input.roles",
            "a = data.why[role] if some role in input.roles",
            "a contains\n\tdata.why[role] if\n\tsome role in input.roles",
            "a contains data.why[role] if {\n\tx := {1} | {2}\n\tsome role in x\n}",
            "a contains data.why[role]\nif some role in input.roles",
            "a contains data.why[role] if {\n\tcaller := input.caller\n\trole := caller.roles[r]\n}",
            "a contains data.texts[\"en\"][role] if some role in input.roles",
            "a contains lib.label(role) if some role in input.roles\nimport data.lib",
            "a contains data.why[role] if some role in input.roles\nrole := 1",
        ] {
            let text =
                format!("package p\n\n# 1\nwhy[b] := 1 if b\nlabel(c) := c if c\n\n{rule}\n");
            assert_eq!(lines(&text), [7], "{rule}");
            let indented = text.replace('\n', "\n    ");
            assert_eq!(lines(&indented), [7], "{rule}");
        }
    }

    #[test]
    fn what_is_the_same_for_all_solutions_or_cannot_be_undefined_is_not() {
        for rule in [
            "a contains why if {\n\tsome role in input.roles\n\twhy := data.why[role]\n}",
            "a contains [role, why] if {\n\tsome role in input.roles\n\twhy := data.why[role]\n}",
            "a contains input.caller.service if some role in input.roles",
            "a contains input[\"caller\"].service if some role in input.roles",
            "a contains data.why[input.operation] if input.operation",
            "a contains clock[0] if some role in input.roles",
            "a contains data.why[clock[0]] if some role in input.roles",
            "a contains concat(\" \", [role, time.weekday(now)]) if some role in input.roles",
            "a contains {x | some x in data.why[input.a]} if input.b",
            "a contains [[x, data.why[x]] | some x in data.b] if some role in input.roles",
            "a contains data.why[role] if {\n\trole := max([x | some x in data.b])\n}",
            "a contains data.why[role] if {\n\trole := input.role\n\tdata.known[role]\n}",
            "a contains data.tables[input.table].owner if {\n\tdata.tables[input.table].owner != 1\n}",
            "a if {\n\tsome role in input.roles\n\tdata.why[role]\n}",
            "a := \"b\" if some role in input.roles",
            "a := {role: why[role] | some role in input.roles}",
            "a := data.why[\"if some b\"]",
            "# a contains data.why[role] if some role in input.roles",
            "default a := false",
            "a == data.b[c]",
        ] {
            let text = format!("package p\n\nimport data.b\n\nclock := [1]\nnow := 1\n\n{rule}\n");
            assert_eq!(lines(&text), Vec::<usize>::new(), "{rule}");
        }
    }
}
