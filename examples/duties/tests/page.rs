//! What the page shows is what the example writes.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeSet;

const PAGE: &str = include_str!("../../../docs/duties.md");
const DOMAINS: &str = include_str!("../domains.toml");
const DUTIES: &str = include_str!("../duties.toml");

fn blocks() -> Vec<(&'static str, &'static str)> {
    let marked = PAGE.split("<!-- written: ").skip(1);
    marked
        .map(|rest| {
            let (name, rest) = rest.split_once(" -->\n```").unwrap();
            let (_, text) = rest.split_once('\n').unwrap();
            (name, text.split_once("```").unwrap().0)
        })
        .collect()
}

#[test]
fn the_page_shows_what_the_example_writes() {
    let documents = waxseal_duties::documents(DOMAINS, DUTIES).unwrap();
    let shown = blocks();
    assert!(shown.len() >= 8, "{}", shown.len());
    for (name, text) in shown {
        let written: Vec<_> =
            documents.iter().filter(|document| document.name.starts_with(name)).collect();
        assert_eq!(written.len(), 1, "{name}");
        assert_eq!(written[0].text, text, "{name}:\n{}", written[0].text);
    }
    let inputs = ["domains", "duties"].map(|name| {
        let part = PAGE.split(&format!("<!-- file: {name} -->\n```toml\n")).nth(1).unwrap();
        part.split("```").next().unwrap()
    });
    assert_eq!(inputs, [DOMAINS, DUTIES]);
}

#[test]
fn every_document_has_a_name_of_its_own_and_lines_that_can_be_read() {
    let documents = waxseal_duties::documents(DOMAINS, DUTIES).unwrap();
    let names: BTreeSet<_> = documents.iter().map(|document| &document.name).collect();
    assert_eq!(names.len(), documents.len());
    for document in &documents {
        for line in document.text.lines() {
            let limit = if document.name.contains("postgres") { 160 } else { 120 };
            assert!(line.len() <= limit, "{}: {line}", document.name);
        }
    }
    assert_eq!(documents, waxseal_duties::documents(DOMAINS, DUTIES).unwrap());
}

#[test]
fn an_error_says_in_which_domain_and_service() {
    let refused = |domains: &str, duties: &str, why: &str| {
        let error = waxseal_duties::documents(domains, duties).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    refused(DOMAINS, "[oders.aws-kms]", "there is no domain \"oders\"");
    refused(DOMAINS, "[orders.aws-kms]\nwirters = []", "unknown field `wirters`");
    refused(DOMAINS, "[orders.aws-kms]", "orders.aws-kms: invalid configuration: key_owners");
    refused(
        DOMAINS,
        "[orders.vault-transit]",
        "orders.vault-transit: invalid configuration: the domain has no key there",
    );
    refused(DOMAINS, "[orders.postgres]\nreaders = [\"public\"]", "orders.postgres: ");
    let both = DUTIES.replace("readers = [", "readers = [\"orders_owner\", ");
    refused(DOMAINS, &both, "\"orders_owner\"");
    let shared = DOMAINS.replace(
        "vault-transit://vault.example:8200/transit/payroll?cluster=prod-eu",
        "aws-kms://arn:aws:kms:eu-west-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab",
    );
    let tax = "[domains.tax]\n\
        wrap_with = [\"vault-transit://vault.example:8200/transit/tax?cluster=prod-eu\"]\n";
    let twice = format!("{DOMAINS}\n{tax}");
    let audits = "auditors = [\"audit\"]";
    let duties = format!("[payroll.vault-transit]\n{audits}\n[tax.vault-transit]\n{audits}\n");
    refused(&twice, &duties, "payroll and tax share the policy \"audit\" of prod-eu");
    let duties = duties.replacen("audit\"", "payroll-audit\"", 1);
    let one_key = twice.replace("transit/tax", "transit/payroll");
    refused(&one_key, &duties, "payroll and tax share the key transit/payroll of prod-eu");
    let owner = "key_owners = [\"arn:aws:iam::111122223333:role/o\"]";
    let duties = format!("[orders.aws-kms]\n{owner}\n[payroll.aws-kms]\n{owner}\n");
    refused(&shared, &duties, "orders and payroll share the key");
}
