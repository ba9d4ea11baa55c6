//! Each question has its answer from the example's trail, and the page shows it.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

#[path = "../audit_report/demo.rs"]
mod demo;
#[path = "../audit_report/questions.rs"]
mod questions;

use questions::answer;

/// Without what differs from run to run: DEK ids, and times, since the threads of the library read
/// the example's clock when they come to it.
fn settled(text: &str) -> String {
    let words = text.lines().map(|line| {
        let settled = line.split(' ').map(|word| {
            let is_id = word.len() == 8 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
            // How many records there are depends on when the wiping thread looked.
            let is_number = line.contains(" record") && word.bytes().all(|b| b.is_ascii_digit());
            if is_number {
                "7"
            } else if is_id {
                "01234567"
            } else if word.starts_with("2026-") {
                "2026"
            } else {
                word
            }
        });
        settled.collect::<Vec<_>>().join(" ")
    });
    words.collect::<Vec<_>>().join("\n")
}

#[test]
fn each_question_is_answered_as_the_page_shows() {
    let directory = tempfile::tempdir().unwrap();
    let trail = directory.path().join("audit");
    let public = demo::make(&trail).unwrap();
    let checkpoints = trail.with_extension("checkpoints");
    let page = include_str!("../../docs/audit.md");
    let part = page.split("## An auditor's questions").nth(1).unwrap();
    let mut asked = 0;
    for shown in part.split("```text\n$ audit_report ").skip(1) {
        let (command, rest) = shown.split_once('\n').unwrap();
        let expected = rest.split("\n```").next().unwrap();
        let question = command.split(' ').next().unwrap().parse().unwrap();
        let (text, is_whole) =
            answer(question, &trail, Some(&public), Some(&checkpoints), 1).unwrap();
        assert!(is_whole);
        let text: Vec<_> = text.lines().map(str::trim_end).collect();
        let text = text.join("\n");
        assert_eq!(settled(&text), settled(expected), "{command}:\n{text}");
        asked += 1;
    }
    assert_eq!(asked, 12, "the page shows every question");
}

#[test]
fn an_answer_from_a_trail_that_was_touched_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let trail = directory.path().join("audit");
    demo::make(&trail).unwrap();
    let file = trail.join("trail-00000001.jsonl");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(&file, text.replacen("\"denied\"", "\"deniet\"", 1)).unwrap();
    let (text, is_whole) = answer("refused".parse().unwrap(), &trail, None, None, 1).unwrap();
    assert!(!is_whole && text.contains("the record was changed"), "{text}");
}
