//! The memory of cached decisions is bounded. Each test has its own process to measure.

use waxseal::policy::{Decision, PolicyOptions};
use waxseal::{Aad, Caller};
use waxseal_testing::support::block_on;

use crate::ground::{Ground, Rules, alone, caller, context};

fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn ten_thousand_denials_are_bounded_in_memory() {
    alone("bounds::ten_thousand_denials_are_bounded_in_memory", || {
        let rules = Rules::new(|_| Ok(Decision::deny((0..32).map(|n| format!("{n:0512}")))));
        let ground = Ground::new(&rules, PolicyOptions::default());
        let (who, acme, before) = (caller("a", "r"), context("acme"), resident_mib());
        for n in 0..10_000 {
            let who = who.with_request_id(n.to_string()).unwrap();
            let _ = block_on(ground.envelope.acting_for(&who).encrypt(&acme, Aad::empty(), b"x"));
            if n % 1000 == 0 {
                ground.rules.asked();
            }
        }
        let grown = resident_mib() - before;
        assert!(grown < 40, "{grown} MiB for 10,000 decisions of one KiB");
    });
}

#[test]
fn a_million_attribute_values_are_bounded_in_memory() {
    alone("bounds::a_million_attribute_values_are_bounded_in_memory", || {
        let ground = Ground::new(&Rules::open(), PolicyOptions::default());
        let (acme, before) = (context("acme"), resident_mib());
        for n in 0..200 {
            let mut builder = Caller::builder().service(format!("s{n}"));
            for attribute in 0..60 {
                builder = builder.attribute_list(format!("a{attribute}"), vec!["x"; 1024]);
            }
            let who = builder.build().unwrap();
            block_on(ground.envelope.acting_for(&who).encrypt(&acme, Aad::empty(), b"x")).unwrap();
        }
        let grown = resident_mib() - before;
        assert!(grown < 40, "{grown} MiB for at most 10,000 KiB of texts");
    });
}
