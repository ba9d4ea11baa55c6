//! The plan of tokens, without any.
#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]

use waxseal::domain::DomainConfig;
use waxseal::domain::duties::{Duties, Holders};
use waxseal_pkcs11::duties::{TokenPlan, TokenPlanBuilder};

fn uri(token: &str, rest: &str) -> String {
    format!("pkcs11:{token};object=cards?module-path=/lib/m.so&pin-source=file:/pin{rest}")
}

fn holders() -> Holders {
    Holders::default().key_owners(["ada"]).writers(["shop"]).readers(["billing"])
}

fn plan(config: &DomainConfig, holders: &Holders) -> TokenPlanBuilder {
    TokenPlan::builder(&Duties::new("cards", config, holders).unwrap())
}

fn refused(config: &DomainConfig, holders: &Holders) -> String {
    plan(config, holders).build().unwrap_err().to_string()
}

#[test]
fn who_has_one_duty_has_a_token_for_it_and_who_has_both_has_one_for_both() {
    let config = DomainConfig::default()
        .wrap_with(uri("token=prod", "&iv-source=token"))
        .unwrap_with(uri("token=old", ""));
    let all = holders().writers(["shop", "till"]).readers(["billing", "till"]);
    let plan = plan(&config, &all).build().unwrap();
    let tokens: Vec<_> = plan
        .tokens()
        .iter()
        .map(|token| {
            let set: Vec<_> = token.attributes().into_iter().filter(|(_, is)| *is).collect();
            let names = set.iter().map(|(name, _)| name.trim_start_matches("CKA_"));
            (token.label(), token.holders().join(" "), names.collect::<Vec<_>>().join(" "))
        })
        .collect();
    let (w, r) = ("TOKEN PRIVATE ENCRYPT SENSITIVE", "TOKEN PRIVATE DECRYPT SENSITIVE");
    assert_eq!(
        tokens,
        [
            ("prod-w", "shop".to_owned(), w.to_owned()),
            ("prod-r", "billing".to_owned(), r.to_owned()),
            ("prod-wr", "till".to_owned(), "TOKEN PRIVATE ENCRYPT DECRYPT SENSITIVE".to_owned()),
            // Nobody wraps with it any more.
            ("old", "billing till".to_owned(), r.to_owned()),
        ]
    );
    assert!(plan.tokens()[0].uri().starts_with("pkcs11:token=prod-w;object=cards?"));
    assert!(plan.tokens()[0].uri().contains("name=prod"));
    let document = plan.document();
    assert!(document.contains("use no key): ada") && document.contains("CKA_EXTRACTABLE CK_FALSE"));
    assert!(!document.contains("PIN: ada"), "{document}");
}

#[test]
fn a_plan_that_would_not_hold_is_refused() {
    let with = |token: &str, rest: &str| DomainConfig::default().wrap_with(uri(token, rest));
    let good = with("token=prod", "&iv-source=token");
    // Its readers would have a key in the token of the writers of the other one.
    let old = uri("token=prod-w", "&iv-source=token").replace("object=", "object=old-");
    for (config, holders, said) in [
        (&good, Holders::default().writers(["shop"]), "key_owners"),
        (&good, holders().rewrappers(["job"]), "rewrappers"),
        (&good, Holders::default().key_owners(["ada"]), "nobody uses it"),
        (&with("token=prod", ""), holders(), "iv-source"),
        (&with("serial=1", "&iv-source=token"), holders(), "label"),
        (&with("token=prod;serial=1", "&iv-source=token"), holders(), "label"),
        (&with(&format!("token={}", "p".repeat(31)), "&iv-source=token"), holders(), "32 bytes"),
        (&DomainConfig::default().wrap_with("local:/k?name=k"), holders(), "no key in a token"),
        (&with("token=prod", "&iv-source=token&versions=by-id"), holders(), "by-id"),
        (&good.clone().unwrap_with(old), holders(), "different duties"),
    ] {
        let text = refused(config, &holders);
        assert!(text.contains(said), "{said}: {text}");
    }
    let accepted = plan(&good, &holders().rewrappers(["job"])).rewrappers_see_deks(true);
    let accepted = accepted.build().unwrap();
    assert!(accepted.tokens().iter().any(|token| token.holders() == ["job".to_owned()]));
}
