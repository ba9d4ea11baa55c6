//! Who may have which role, and what key services see of a domain's contexts.

use waxseal::domain::duties::{Duties, Duty, Holders, Role};
use waxseal::domain::{Branches, DomainConfig};
use waxseal::{DekOrigin, ErrorKind};

fn config() -> DomainConfig {
    DomainConfig::default().wrap_with("local:/orders.kek?name=orders")
}

/// `name` with one role.
fn with(holders: Holders, role: Role, name: &str) -> Holders {
    match role {
        Role::KeyAdministrator => holders.key_administrators([name]),
        Role::KeyOwner => holders.key_owners([name]),
        Role::Writer => holders.writers([name]),
        Role::Reader => holders.readers([name]),
        Role::Rewrapper => holders.rewrappers([name]),
        Role::Auditor => holders.auditors([name]),
        Role::BreakGlass => holders.break_glass([name]),
        _ => panic!("{role}"),
    }
}

#[test]
fn nobody_has_roles_of_two_duties() {
    for first in Role::ALL {
        for second in Role::ALL {
            let holders = with(with(Holders::default(), first, "ada"), second, "ADA");
            let result = Duties::new("orders", &config(), &holders);
            if first.duty() == second.duty() {
                result.unwrap();
                continue;
            }
            let error = result.unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidOption);
            let said = error.to_string();
            assert!(said.contains(first.as_str()) && said.contains(second.as_str()), "{said}");
            assert!(said.contains("separate duties"), "{said}");
        }
    }
    assert_ne!(Role::KeyAdministrator.duty(), Duty::Use);
}

#[test]
fn each_holder_is_named_once_in_one_order() {
    let holders = Holders::default().writers(["b", "a", "b"]);
    let duties = Duties::new("orders", &config(), &holders).unwrap();
    assert_eq!(duties.holders(Role::Writer), ["a", "b"]);
    assert_eq!(duties.holders(Role::Reader), [""; 0]);
    assert_eq!(duties.domain(), "orders");
}

#[test]
fn names_and_domains_that_cannot_be_written_down_are_refused() {
    for name in ["", "a\nb", "a\0", "\u{7f}", &"x".repeat(2049)] {
        for role in Role::ALL {
            let holders = with(Holders::default(), role, name);
            let error = Duties::new("orders", &config(), &holders).unwrap_err();
            assert!(error.to_string().contains(role.as_str()), "{error}");
        }
    }
    for domain in ["", "a b", "a\"b", "${aws:username}", "*"] {
        let error = Duties::new(domain, &config(), &Holders::default()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidOption, "{domain}");
    }
    let reserved = config().must_have(["waxseal:domain"]);
    let error = Duties::new("orders", &reserved, &Holders::default()).unwrap_err();
    assert!(error.to_string().contains("domains.orders.must_have"), "{error}");
}

#[test]
fn who_writes_or_rewraps_shared_branch_keys_is_a_reader_too() {
    let shared = config().store("memory:keys").branches(Branches::per(["tenant"]));
    let own = config().branches(Branches::per(["tenant"]).self_contained());
    for role in [Role::Writer, Role::Rewrapper] {
        let holders = with(Holders::default(), role, "shop");
        let error = Duties::new("orders", &shared, &holders).unwrap_err();
        assert!(error.to_string().contains("has to be a reader too"), "{error}");
        Duties::new("orders", &own, &holders).unwrap();
        Duties::new("orders", &config(), &holders).unwrap();
        let duties = Duties::new("orders", &shared, &holders.readers(["shop"])).unwrap();
        assert!(duties.shares_branch_keys());
    }
}

#[test]
fn a_key_service_sees_the_pairs_of_deks_or_those_of_branch_keys() {
    let owned = |pairs: &[(&str, &str)]| -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect()
    };
    let plain = config().must_have(["tenant", "table"]);
    let plain = Duties::new("orders", &plain, &Holders::default()).unwrap();
    assert_eq!(plain.when_wrapping(), plain.when_unwrapping());
    assert_eq!(plain.when_wrapping().equal, owned(&[("waxseal:domain", "orders")]));
    assert_eq!(plain.when_wrapping().present, ["table", "tenant"]);

    let branched = config()
        .must_have(["table"])
        .dek_origin(DekOrigin::KeyService)
        .branches(Branches::per(["tenant"]).name("shop").self_contained());
    let branched = Duties::new("orders", &branched, &Holders::default()).unwrap();
    assert_eq!(branched.dek_origin(), DekOrigin::KeyService);
    let (wrapping, unwrapping) = (branched.when_wrapping(), branched.when_unwrapping());
    let of_branch = [("waxseal:domain", "orders"), ("waxseal:branch", "shop")];
    assert_eq!(wrapping.equal, owned(&of_branch));
    assert_eq!(wrapping.present, ["tenant", "waxseal:period"]);
    assert_eq!(unwrapping.equal, owned(&of_branch[..1]));
    assert_eq!(unwrapping.present, ["tenant"]);
}

#[test]
fn a_role_is_read_by_its_name() {
    for role in Role::ALL {
        assert_eq!(role.as_str().parse::<Role>().unwrap(), role);
    }
    let error = "raeder".parse::<Role>().unwrap_err();
    assert!(error.to_string().contains("did you mean \"reader\"?"), "{error}");
    let error = "x".parse::<Role>().unwrap_err();
    assert!(error.to_string().contains("key-administrator, key-owner"), "{error}");
}

#[cfg(feature = "domains")]
#[test]
fn holders_are_read_from_a_file_and_a_wrong_field_is_refused() {
    let read: Holders = toml::from_str("writers = [\"shop\"]\nbreak_glass = [\"night\"]").unwrap();
    assert_eq!(read, Holders::default().writers(["shop"]).break_glass(["night"]));
    let error = toml::from_str::<Holders>("wirters = [\"shop\"]").unwrap_err();
    assert!(error.to_string().contains("unknown field `wirters`"), "{error}");
}
